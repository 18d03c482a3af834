#include "host/unix.h"

#include <errno.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/error.h"

static int address_of(struct sockaddr_un *address, const char *path)
{
    size_t len = strlen(path);

    if (len >= sizeof address->sun_path)
        return -ENAMETOOLONG;
    *address = (struct sockaddr_un){.sun_family = AF_UNIX};
    memcpy(address->sun_path, path, len + 1);
    return 0;
}

static int connect_to(const struct sockaddr_un *address)
{
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

    if (fd >= 0 && connect(fd, (const struct sockaddr *)address, sizeof *address) < 0) {
        int err = errno;
        close(fd);
        return -err;
    }
    return fd < 0 ? -errno : fd;
}

int unix_connect(const char *path)
{
    struct sockaddr_un address;
    int err = address_of(&address, path);

    return err ? err : connect_to(&address);
}

/* A socket file is left over when its owner was killed: then connecting is refused. */
static bool is_stale(const struct sockaddr_un *address)
{
    struct stat st;

    if (lstat(address->sun_path, &st) < 0 || !S_ISSOCK(st.st_mode))
        return false;
    int fd = connect_to(address);
    if (fd >= 0)
        close(fd);
    return fd == -ECONNREFUSED;
}

/* The mode is set before anybody can connect: bind makes the file, listen opens the door. */
static int listen_at(const struct sockaddr_un *address, int backlog)
{
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0), err;

    if (fd < 0)
        return -errno;
    if (bind(fd, (const struct sockaddr *)address, sizeof *address) < 0) {
        err = -errno;
        close(fd);
        return err;
    }
    if (chmod(address->sun_path, 0600) < 0 || listen(fd, backlog) < 0) {
        err = -errno;
        unlink(address->sun_path);
        close(fd);
        return err;
    }
    return fd;
}

int unix_listen(const char *path, int backlog, char *err, size_t n)
{
    struct sockaddr_un address;

    if (address_of(&address, path))
        return error_set(err, n, -ENAMETOOLONG, "the socket's path %s is longer than %zu bytes, the system's limit",
                         path, sizeof address.sun_path - 1);
    if (is_stale(&address))
        unlink(address.sun_path);
    int fd = listen_at(&address, backlog);
    return fd < 0 ? error_sys(err, n, fd, "the socket %s cannot be made", path) : fd;
}

union descriptors {
    struct cmsghdr head;
    char bytes[CMSG_SPACE(UNIX_FDS_MAX * sizeof(int))];
};

ssize_t unix_send_fds(int socket, const void *bytes, size_t len, const int *fds, unsigned n, int flags)
{
    struct iovec piece = {(void *)(uintptr_t)bytes, len};
    union descriptors control = {
        .head = {.cmsg_len = CMSG_LEN(n * sizeof *fds), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS}};
    struct msghdr m = {.msg_iov = &piece, .msg_iovlen = 1};

    if (n > UNIX_FDS_MAX)
        return -EINVAL;
    if (n) {
        memcpy(CMSG_DATA(&control.head), fds, n * sizeof *fds);
        m.msg_control = &control;
        m.msg_controllen = CMSG_SPACE(n * sizeof *fds);
    }
    ssize_t sent = sendmsg(socket, &m, MSG_NOSIGNAL | flags);
    return sent < 0 ? -errno : sent;
}

ssize_t unix_receive_fds(int socket, void *bytes, size_t len, int *fds, unsigned *n, int flags)
{
    struct iovec piece = {bytes, len};
    union descriptors control;
    struct msghdr m = {.msg_iov = &piece, .msg_iovlen = 1, .msg_control = &control};
    m.msg_controllen = CMSG_LEN((*n < UNIX_FDS_MAX ? *n : UNIX_FDS_MAX) *
                                sizeof *fds); /* no padding: it would be used */
    ssize_t got = recvmsg(socket, &m, MSG_CMSG_CLOEXEC | flags);
    const struct cmsghdr *c = got < 0 ? NULL : CMSG_FIRSTHDR(&m);

    *n = 0;
    if (c && c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_RIGHTS) {
        *n = (unsigned)((c->cmsg_len - CMSG_LEN(0)) / sizeof *fds);
        memcpy(fds, CMSG_DATA(c), *n * sizeof *fds);
    }
    return got < 0 ? -errno : got;
}
