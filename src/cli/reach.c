#include "cli/reach.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/error.h"
#include "cli/life.h"

/* One line, and not a byte more: what follows is the stream's. */
static int read_line(int fd, char *line, size_t size)
{
    size_t len = 0;

    while (len + 1 < size) {
        ssize_t n = recv(fd, line + len, 1, 0);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return n < 0 ? -errno : -ECONNRESET;
        if (line[len] == '\n')
            break;
        len++;
    }
    line[len] = 0;
    return 0;
}

static int connect_unix(const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int fd;

    if (strlen(path) >= sizeof(address.sun_path))
        return -ENAMETOOLONG;
    strcpy(address.sun_path, path);
    fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd >= 0 && connect(fd, (const struct sockaddr *)&address, sizeof(address))) {
        int r = -errno;
        close(fd);
        return r;
    }
    return fd < 0 ? -errno : fd;
}

static int reach_socket(const char *path, unsigned port, char *err, size_t n)
{
    char line[64];
    int fd = connect_unix(path);

    if (fd < 0)
        return error_sys(err, n, fd, "cannot connect to %s", path);
    int len = snprintf(line, sizeof(line), "CONNECT %u\n", port);
    int r = send(fd, line, (size_t)len, MSG_NOSIGNAL) == len ? read_line(fd, line, sizeof(line)) : -errno;
    if (!r && strncmp(line, "OK ", 3) == 0)
        return fd;
    close(fd);
    if (r && r != -ECONNRESET)
        return error_sys(err, n, r, "cannot connect to %s", path);
    return error_set(err, n, -ECONNRESET, "nothing listens on port %u in the guest: its agent is not there, or not yet",
                     port);
}

int reach_guest(const char *vm, unsigned port, char *err, size_t n)
{
    struct registry r;
    struct client c;

    if (strchr(vm, '/'))
        return reach_socket(vm, port, err, n);
    int failed = registry_find(&r, err, n);
    if (!failed)
        failed = client_open(&c, &r, vm, err, n);
    if (failed)
        return failed;
    return client_stream(&c, "connect", json_pack("{s:i}", "port", (int)port), err, n);
}
