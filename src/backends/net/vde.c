/*
 * A port of a vde_switch.  Over the stream socket PATH/ctl a request (version 3) names a datagram socket of ours; the
 * answer is the address of the switch's.  Each datagram is a frame.  The port lives as long as the stream.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#include "backends/net/net_int.h"
#include "backends/net/plain.h"
#include "base/error.h"
#include "base/log.h"
#include "base/path.h"

#define MAGIC 0xfeedfaceu
#define VERSION 3u
#define NEW_PORT 0u
#define ANSWER_S 5
/* Frames handed to the guest before others of the event loop get their turn. */
#define FRAMES_PER_PASS 64u

struct __attribute__((packed)) request {
    uint32_t magic, version, type;
    struct sockaddr_un data;
    char description[128];
};

struct vde {
    struct net *net;
    int control, data;
    struct sockaddr_un own; /* empty path: not bound */
    bool reading, full;
    size_t len; /* of the frame in hand; 0: none */
    struct net_header header;
    uint8_t frame[NET_FRAME_MAX];
    struct net_plain plain;
};

static void watch(struct vde *v, bool reading, bool full)
{
    if (v->reading == reading && v->full == full)
        return;
    v->reading = reading;
    v->full = full;
    loop_fd_mod(v->net->loop, v->data, (reading ? EPOLLIN : 0u) | (full ? EPOLLOUT : 0u));
}

static bool fill(struct vde *v)
{
    ssize_t got = v->len ? 1 : read(v->data, v->frame, sizeof v->frame);

    if (got > 0 && !v->len) {
        v->len = (size_t)got;
        v->header = (struct net_header){0};
    }
    return got > 0;
}

static void pump(struct vde *v)
{
    bool room = true;

    for (unsigned i = 0; i < FRAMES_PER_PASS && room && fill(v); i++) {
        room = net_deliver(v->net, &v->header, v->frame, v->len);
        if (room)
            v->len = 0;
    }
    watch(v, room, v->full);
    net_delivered(v->net);
}

static void on_data(void *opaque, uint32_t events)
{
    struct vde *v = opaque;

    if (events & EPOLLOUT) {
        watch(v, v->reading, false);
        net_writable(v->net);
    }
    if (events & EPOLLIN)
        pump(v);
}

/* The switch says nothing more here but its end. */
static void on_control(void *opaque, uint32_t events)
{
    struct vde *v = opaque;
    char nothing[64];

    if (read(v->control, nothing, sizeof nothing) > 0)
        return;
    log_say("network: the vde_switch %s has ended; the guest has no network now", v->net->spec.where);
    loop_fd_del(v->net->loop, v->control);
    loop_fd_del(v->net->loop, v->data);
    net_set_link(v->net, false);
}

static void vde_resume(struct net *net)
{
    struct vde *v = net->backend;

    if (!v->reading)
        pump(v);
}

/* What the switch does not take for another reason than want of room is lost, as on a wire. */
static bool emit(void *opaque, const uint8_t *frame, size_t len)
{
    const struct vde *v = opaque;
    return write(v->data, frame, len) >= 0 || (errno != EAGAIN && errno != ENOBUFS);
}

static bool vde_send(struct net *net, const struct iovec *iov, unsigned n)
{
    struct vde *v = net->backend;

    if (net_plain_send(&v->plain, iov, n, emit, v))
        return true;
    watch(v, v->reading, true);
    return false;
}

/* --- joining ------------------------------------------------------------------------------------------------------ */

static int open_sockets(struct vde *v, char *err, size_t n)
{
    char directory[PATH_RUNTIME_MAX + 64];
    int r = path_runtime(directory, sizeof directory, err, n);

    if (r)
        return r;
    v->own.sun_family = AF_UNIX;
    r = path_format(v->own.sun_path, sizeof v->own.sun_path, err, n, "%s/vde-%d-%p", directory, getpid(), (void *)v);
    if (r)
        return r;
    v->control = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    v->data = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (v->control < 0 || v->data < 0)
        return error_sys(err, n, -errno, "cannot make a socket for the network");
    unlink(v->own.sun_path);
    if (bind(v->data, (struct sockaddr *)&v->own, sizeof v->own)) {
        r = error_sys(err, n, -errno, "cannot make the socket %s", v->own.sun_path);
        v->own.sun_path[0] = 0;
        return r;
    }
    return 0;
}

static int ask(struct vde *v, char *err, size_t n)
{
    struct request request = {.magic = MAGIC, .version = VERSION, .type = NEW_PORT, .data = v->own};
    struct sockaddr_un at = {.sun_family = AF_UNIX}, answer;
    const struct timeval patience = {.tv_sec = ANSWER_S};
    const char *where = v->net->spec.where;

    int r = path_format(at.sun_path, sizeof at.sun_path, err, n, "%s/ctl", where);
    if (r)
        return r;
    snprintf(request.description, sizeof request.description, "guise %d", getpid());
    size_t size = offsetof(struct request, description) + strlen(request.description);
    setsockopt(v->control, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    if (connect(v->control, (struct sockaddr *)&at, sizeof at))
        return error_sys(err, n, -errno, "no vde_switch answers at %s", where);
    if (send(v->control, &request, size, 0) != (ssize_t)size ||
        recv(v->control, &answer, sizeof answer, 0) != sizeof answer ||
        connect(v->data, (struct sockaddr *)&answer, sizeof answer))
        return error_sys(err, n, errno ? -errno : -EPROTO, "the vde_switch %s gives no port", where);
    return 0;
}

static void vde_close(struct net *net)
{
    struct vde *v = net->backend;
    const int fds[] = {v->data, v->control};

    for (unsigned i = 0; i < 2; i++)
        if (fds[i] >= 0) {
            loop_fd_del(net->loop, fds[i]);
            close(fds[i]);
        }
    if (v->own.sun_path[0])
        unlink(v->own.sun_path);
    free(v);
}

static int vde_open(struct net *net, char *err, size_t n)
{
    struct vde *v = calloc(1, sizeof *v);

    if (!v)
        return error_sys(err, n, -ENOMEM, "cannot set up the network");
    *v = (struct vde){.net = net, .control = -1, .data = -1, .reading = true};
    net->backend = v;
    int r = open_sockets(v, err, n);
    if (!r)
        r = ask(v, err, n);
    if (!r) {
        r = loop_fd_add(net->loop, v->data, EPOLLIN, on_data, v);
        if (!r)
            r = loop_fd_add(net->loop, v->control, EPOLLIN, on_control, v);
        if (r)
            error_sys(err, n, r, "cannot watch the network");
    }
    if (r)
        vde_close(net);
    return r;
}

const struct net_kind net_kind_vde = {
    .word = "vde",
    .where = "PATH",
    .open = vde_open,
    .close = vde_close,
    .send = vde_send,
    .resume = vde_resume,
};
