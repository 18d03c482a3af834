#include "backends/socket.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "backends/input.h"
#include "backends/output.h"
#include "base/error.h"
#include "host/loop.h"

struct socket_server {
    struct sockaddr_un address;
    int listener, client;
    int hangup; /* a duplicate of client, watched for the hang-up alone while input does its own watching */
    struct loop *loop;
    struct input *in;
    struct output *out;
};

/* A socket file is left over when its owner was killed: then connecting is refused. */
static bool is_stale(const struct sockaddr_un *address)
{
    struct stat st;
    bool stale = false;

    if (lstat(address->sun_path, &st) < 0 || !S_ISSOCK(st.st_mode))
        return false;
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return false;
    if (connect(fd, (const struct sockaddr *)address, sizeof(*address)) < 0)
        stale = errno == ECONNREFUSED;
    close(fd);
    return stale;
}

static int listen_at(struct socket_server *s)
{
    const struct sockaddr *address = (const struct sockaddr *)&s->address;

    if (is_stale(&s->address))
        unlink(s->address.sun_path);
    s->listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (s->listener < 0)
        return -errno;
    /* The mode is set before anybody can connect: bind makes the file, listen opens the door. */
    if (bind(s->listener, address, sizeof(s->address)) < 0)
        return -errno;
    if (chmod(s->address.sun_path, 0600) < 0 || listen(s->listener, 1) < 0) {
        int r = -errno;
        unlink(s->address.sun_path);
        return r;
    }
    return 0;
}

static void on_listener(void *opaque, uint32_t events);

static void disconnect(struct socket_server *s)
{
    if (s->client < 0)
        return;
    input_detach(s->in);
    shutdown(s->client, SHUT_RDWR); /* a write in progress fails now */
    output_detach(s->out);
    loop_fd_del(s->loop, s->hangup);
    close(s->hangup);
    close(s->client);
    s->client = s->hangup = -1;
    loop_fd_add(s->loop, s->listener, EPOLLIN, on_listener, s);
}

static void on_hangup(void *opaque, uint32_t events)
{
    if (events & (EPOLLHUP | EPOLLERR))
        disconnect(opaque);
}

static void on_listener(void *opaque, uint32_t events)
{
    struct socket_server *s = opaque;
    int fd = accept4(s->listener, NULL, NULL, SOCK_CLOEXEC);

    if (fd < 0)
        return;
    int hangup = fcntl(fd, F_DUPFD_CLOEXEC, 3);
    if (hangup < 0 || loop_fd_add(s->loop, hangup, 0, on_hangup, s) < 0) {
        if (hangup >= 0)
            close(hangup);
        close(fd);
        return;
    }
    s->client = fd;
    s->hangup = hangup;
    loop_fd_del(s->loop, s->listener);
    output_attach(s->out, fd);
    input_attach(s->in, fd);
}

int socket_open(struct socket_server **out, const char *path, struct loop *loop, struct input *in, struct output *o,
                char *err, size_t n)
{
    struct socket_server *s = calloc(1, sizeof(*s));
    int r;

    if (!s)
        return error_sys(err, n, -ENOMEM, "the socket %s cannot be made", path);
    *s = (struct socket_server){.listener = -1, .client = -1, .hangup = -1, .loop = loop, .in = in, .out = o};
    s->address.sun_family = AF_UNIX;
    if (strlen(path) >= sizeof(s->address.sun_path)) {
        r = error_set(err, n, -ENAMETOOLONG, "the socket's path %s is longer than %zu bytes, the system's limit", path,
                      sizeof(s->address.sun_path) - 1);
        goto fail;
    }
    memcpy(s->address.sun_path, path, strlen(path) + 1);
    r = listen_at(s);
    if (r == 0)
        r = loop_fd_add(loop, s->listener, EPOLLIN, on_listener, s);
    if (r == 0) {
        *out = s;
        return 0;
    }
    error_sys(err, n, r, "the socket %s cannot be made", path);
    if (s->listener >= 0)
        close(s->listener);
fail:
    free(s);
    return r;
}

void socket_close(struct socket_server *s)
{
    if (!s)
        return;
    disconnect(s);
    loop_fd_del(s->loop, s->listener);
    close(s->listener);
    unlink(s->address.sun_path);
    free(s);
}
