#include "backends/socket.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "backends/input.h"
#include "backends/output.h"
#include "base/error.h"
#include "host/loop.h"
#include "host/unix.h"

#define PAUSE_NS 500000000ull /* of accepting, when there are too many descriptors */

struct socket_server {
    char *path;
    int listener, client;
    int hangup; /* a duplicate of client, watched for the hang-up alone while input does its own watching */
    struct loop *loop;
    struct loop_timer again; /* the end of a pause */
    struct input *in;
    struct output *out;
    void (*changed)(void *opaque, bool present);
    void *opaque;
};

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
    s->changed(s->opaque, false);
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

    if (fd < 0) {
        if (errno == EMFILE || errno == ENFILE || errno == ENOMEM || errno == ENOBUFS) {
            loop_fd_del(s->loop, s->listener); /* it would be ready all the time */
            loop_timer_set(s->loop, &s->again, clock_ns() + PAUSE_NS);
        }
        return;
    }
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
    s->changed(s->opaque, true);
}

static void on_again(void *opaque)
{
    struct socket_server *s = opaque;

    loop_fd_add(s->loop, s->listener, EPOLLIN, on_listener, s);
}

int socket_open(struct socket_server **out, const char *path, struct loop *loop, struct input *in, struct output *o,
                void (*changed)(void *opaque, bool present), void *opaque, char *err, size_t n)
{
    struct socket_server *s = calloc(1, sizeof(*s));
    int r;

    if (!s || !(s->path = strdup(path))) {
        free(s);
        return error_sys(err, n, -ENOMEM, "the socket %s cannot be made", path);
    }
    s->client = s->hangup = -1;
    s->loop = loop;
    loop_timer_init(&s->again, on_again, s);
    s->in = in;
    s->out = o;
    s->changed = changed;
    s->opaque = opaque;
    r = s->listener = unix_listen(path, 1, err, n);
    if (r < 0)
        goto fail;
    r = loop_fd_add(loop, s->listener, EPOLLIN, on_listener, s);
    if (r == 0) {
        *out = s;
        return 0;
    }
    error_sys(err, n, r, "the socket %s cannot be made", path);
    close(s->listener);
    unlink(path);
fail:
    free(s->path);
    free(s);
    return r;
}

bool socket_has_client(const struct socket_server *s)
{
    return s->client >= 0;
}

void socket_close(struct socket_server *s)
{
    if (!s)
        return;
    disconnect(s);
    loop_timer_cancel(s->loop, &s->again);
    loop_fd_del(s->loop, s->listener);
    close(s->listener);
    unlink(s->path);
    free(s->path);
    free(s);
}
