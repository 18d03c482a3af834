/* A tap interface of the host: the kernel takes and gives frames with their offloads (IFF_VNET_HDR). */
#include <errno.h>
#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "backends/net/net_int.h"
#include "base/error.h"
#include "base/log.h"

/* Frames handed to the guest before others of the event loop get their turn. */
#define FRAMES_PER_PASS 64u

struct tap {
    struct net *net;
    int fd;
    bool reading;
    size_t len; /* of the frame in hand; 0: none */
    struct net_header header;
    uint8_t frame[NET_FRAME_MAX];
};

/* 1: a frame is in hand; 0: none; -errno: the interface is gone. */
static int fill(struct tap *t)
{
    const struct iovec iov[] = {{&t->header, sizeof t->header}, {t->frame, sizeof t->frame}};

    if (t->len)
        return 1;
    ssize_t got = readv(t->fd, iov, 2);
    if (got < 0)
        return errno == EAGAIN || errno == EINTR ? 0 : -errno;
    if (got <= (ssize_t)sizeof t->header)
        return got ? 0 : -ENODEV;
    t->len = (size_t)got - sizeof t->header;
    return 1;
}

static void watch(struct tap *t, bool reading)
{
    if (t->reading == reading)
        return;
    t->reading = reading;
    loop_fd_mod(t->net->loop, t->fd, reading ? EPOLLIN : 0);
}

static void pump(struct tap *t)
{
    bool room = true;
    int r = 1;

    for (unsigned i = 0; i < FRAMES_PER_PASS && room && (r = fill(t)) > 0; i++) {
        room = net_deliver(t->net, &t->header, t->frame, t->len);
        if (room)
            t->len = 0;
    }
    net_delivered(t->net);
    if (r >= 0) {
        watch(t, room);
        return;
    }
    log_say("network: the tap interface %s is gone: %s", t->net->spec.where, strerror(-r));
    loop_fd_del(t->net->loop, t->fd);
    net_set_link(t->net, false);
}

static void on_frame(void *opaque, uint32_t events)
{
    pump(opaque);
}

static void tap_resume(struct net *net)
{
    struct tap *t = net->backend;

    if (!t->reading)
        pump(t);
}

/* What the kernel does not take (the interface is down, a frame that it finds wrong) is lost, as on a wire. */
static bool tap_send(struct net *net, const struct iovec *iov, unsigned n)
{
    struct tap *t = net->backend;

    while (writev(t->fd, iov, (int)n) < 0 && errno == EINTR)
        ;
    return true;
}

static void tap_offloads(struct net *net, unsigned offloads)
{
    static const unsigned words[][2] = {
        {NET_CSUM, TUN_F_CSUM}, {NET_TSO4, TUN_F_TSO4}, {NET_TSO6, TUN_F_TSO6}, {NET_ECN, TUN_F_TSO_ECN}};
    const struct tap *t = net->backend;
    unsigned flags = 0;

    for (size_t i = 0; i < sizeof words / sizeof *words; i++)
        if ((offloads & words[i][0]) && (offloads & NET_CSUM))
            flags |= words[i][1];
    ioctl(t->fd, TUNSETOFFLOAD, (unsigned long)flags); /* what it gives beyond is finished by net_deliver */
}

static int set_up(int fd, const char *name, char *err, size_t n)
{
    struct ifreq request = {.ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR};
    int header = sizeof(struct net_header);

    if (strlen(name) >= sizeof request.ifr_name)
        return error_set(err, n, -EINVAL, "the name of the tap interface %s is longer than %zu bytes", name,
                         sizeof request.ifr_name - 1);
    memcpy(request.ifr_name, name, strlen(name) + 1);
    if (ioctl(fd, TUNSETIFF, &request) < 0)
        return errno == EPERM || errno == EBUSY
                   ? error_sys(err, n, -errno,
                               "cannot use the tap interface %s (root can make one for you: ip tuntap add mode tap "
                               "user NAME name %s)",
                               name, name)
                   : error_sys(err, n, -errno, "cannot use the tap interface %s", name);
    if (ioctl(fd, TUNSETVNETHDRSZ, &header) < 0)
        return error_sys(err, n, -errno, "the tap interface %s has no offloads", name);
    return 0;
}

static int tap_open(struct net *net, char *err, size_t n)
{
    struct tap *t = calloc(1, sizeof *t);
    int r = 0;

    if (!t)
        return error_sys(err, n, -ENOMEM, "cannot set up the network");
    t->net = net;
    t->reading = true;
    t->fd = open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC);
    if (t->fd < 0)
        r = error_sys(err, n, -errno, "cannot open /dev/net/tun, which tap interfaces need");
    if (!r)
        r = set_up(t->fd, net->spec.where, err, n);
    if (!r && (r = loop_fd_add(net->loop, t->fd, EPOLLIN, on_frame, t)))
        error_sys(err, n, r, "cannot watch the tap interface");
    if (r) {
        if (t->fd >= 0)
            close(t->fd);
        free(t);
        return r;
    }
    net->backend = t;
    tap_offloads(net, 0);
    return 0;
}

static void tap_close(struct net *net)
{
    struct tap *t = net->backend;

    loop_fd_del(net->loop, t->fd);
    close(t->fd);
    free(t);
}

const struct net_kind net_kind_tap = {
    .word = "tap",
    .where = "NAME",
    .open = tap_open,
    .close = tap_close,
    .send = tap_send,
    .resume = tap_resume,
    .offloads = tap_offloads,
};
