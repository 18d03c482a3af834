/*
 * The `user` network: libslirp, which speaks TCP, UDP and ICMP with the guest and ordinary sockets with the world.
 *
 *      10.0.2.0/24   guest 10.0.2.15 (by DHCP), host and gateway 10.0.2.2, DNS 10.0.2.3
 *      fec0::/64     guest by router advertisements,  host fec0::2, DNS fec0::3
 *
 * Long segments cross it whole in both directions (slirp_frames.h): per byte, little is left to do.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <linux/capability.h>
#include <poll.h>
#include <slirp/libslirp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "backends/net/offload.h"
#include "backends/net/slirp_frames.h"
#include "backends/net/worker.h"
#include "host/loop.h"
#include "host/sandbox.h"

/* What libslirp may make a packet of: the most that it allows. */
#define STACK_MTU 65520
#define MESSAGES_PER_PASS 16u
#define PORT_TRIES 16
#define TURNS_HELD_MAX 16u

struct timer {
    struct timer *next;
    SlirpTimerCb fn;
    void *opaque;
    int64_t expire_ms; /* INT64_MAX: not set */
};

struct stack {
    Slirp *slirp;
    struct wire wire;
    struct worker_out out;
    struct timer *timers;
    struct pollfd *fds;
    int n_fds, fds_size;
    struct worker_watchdog watchdog;
    unsigned turns_held; /* since frames began to wait for more */
};

/* --- what libslirp asks for --------------------------------------------------------------------------------------- */

static ssize_t send_packet(const void *buf, size_t len, void *opaque)
{
    struct stack *s = opaque;
    slirp_frames_out(&s->out, buf, len);
    return (ssize_t)len;
}

static void guest_error(const char *message, void *opaque)
{
    /* A guest would fill the log with them. */
}

static int64_t now_ns(void *opaque)
{
    return (int64_t)clock_ns();
}

static void *timer_new(SlirpTimerCb fn, void *fn_opaque, void *opaque)
{
    struct stack *s = opaque;
    struct timer *t = malloc(sizeof *t);

    if (!t)
        abort(); /* libslirp has no word for it; the outer process starts another */
    *t = (struct timer){s->timers, fn, fn_opaque, INT64_MAX};
    s->timers = t;
    return t;
}

static void timer_free(void *timer, void *opaque)
{
    struct stack *s = opaque;

    for (struct timer **t = &s->timers; *t; t = &(*t)->next)
        if (*t == timer) {
            *t = (*t)->next;
            break;
        }
    free(timer);
}

static void timer_mod(void *timer, int64_t expire_ms, void *opaque)
{
    struct timer *t = timer;
    t->expire_ms = expire_ms;
}

static void ignore_fd(int fd, void *opaque) {}

static void ignore_notify(void *opaque) {}

static const SlirpCb callbacks = {
    .send_packet = send_packet,
    .guest_error = guest_error,
    .clock_get_ns = now_ns,
    .timer_new = timer_new,
    .timer_free = timer_free,
    .timer_mod = timer_mod,
    .register_poll_fd = ignore_fd,
    .unregister_poll_fd = ignore_fd,
    .notify = ignore_notify,
};

static void run_timers(struct stack *s)
{
    int64_t now = (int64_t)(clock_ns() / 1000000);

    for (struct timer *t = s->timers, *next; t; t = next) {
        next = t->next;
        if (t->expire_ms > now)
            continue;
        t->expire_ms = INT64_MAX;
        t->fn(t->opaque);
    }
}

static void shorten(const struct stack *s, uint32_t *timeout_ms)
{
    int64_t now = (int64_t)(clock_ns() / 1000000);

    for (const struct timer *t = s->timers; t; t = t->next) {
        int64_t left = t->expire_ms == INT64_MAX ? INT64_MAX : t->expire_ms - now;
        if (left < (int64_t)*timeout_ms)
            *timeout_ms = left > 0 ? (uint32_t)left : 0;
    }
}

/* --- polling ------------------------------------------------------------------------------------------------------ */

static const struct {
    int slirp;
    short poll;
} poll_words[] = {{SLIRP_POLL_IN, POLLIN},
                  {SLIRP_POLL_OUT, POLLOUT},
                  {SLIRP_POLL_PRI, POLLPRI},
                  {SLIRP_POLL_ERR, POLLERR},
                  {SLIRP_POLL_HUP, POLLHUP}};

static int watch(struct stack *s, int fd, short events)
{
    if (s->n_fds == s->fds_size) {
        int size = s->fds_size ? 2 * s->fds_size : 64;
        struct pollfd *grown = realloc(s->fds, (size_t)size * sizeof *grown);
        if (!grown)
            abort();
        s->fds = grown;
        s->fds_size = size;
    }
    s->fds[s->n_fds] = (struct pollfd){.fd = fd, .events = events};
    return s->n_fds++;
}

static int add_poll(int fd, int events, void *opaque)
{
    short wanted = 0;

    for (size_t i = 0; i < sizeof poll_words / sizeof *poll_words; i++)
        if (events & poll_words[i].slirp)
            wanted |= poll_words[i].poll;
    return watch(opaque, fd, wanted);
}

static int get_events(int index, void *opaque)
{
    const struct stack *s = opaque;
    int events = 0;

    for (size_t i = 0; index < s->n_fds && i < sizeof poll_words / sizeof *poll_words; i++)
        if (s->fds[index].revents & poll_words[i].poll)
            events |= poll_words[i].slirp;
    return events;
}

/* --- published ports ---------------------------------------------------------------------------------------------- */

/* A port that is free at this moment, or 0. */
static uint16_t free_port(const struct net_publish *p)
{
    struct sockaddr_in at = {.sin_family = AF_INET};
    socklen_t len = sizeof at;
    int fd = socket(AF_INET, (p->udp ? SOCK_DGRAM : SOCK_STREAM) | SOCK_CLOEXEC, 0);

    memcpy(&at.sin_addr, p->ip, sizeof p->ip);
    if (fd < 0 || bind(fd, (struct sockaddr *)&at, sizeof at) < 0 || getsockname(fd, (struct sockaddr *)&at, &len) < 0)
        at.sin_port = 0;
    if (fd >= 0)
        close(fd);
    return ntohs(at.sin_port);
}

static int publish(struct stack *s, struct net_publish *p)
{
    struct in_addr host, guest = {inet_addr("10.0.2.15")};
    bool choose = !p->host_port;
    int err = 0;

    memcpy(&host, p->ip, sizeof host);
    for (int i = 0; i < PORT_TRIES; i++) {
        if (choose)
            p->host_port = free_port(p);
        errno = 0;
        if (slirp_add_hostfwd(s->slirp, p->udp, host, p->host_port, guest, p->guest_port) == 0)
            return 0;
        err = errno ? -errno : -EINVAL;
        if (!choose || err != -EADDRINUSE)
            break;
    }
    return err;
}

static void say_why(struct control_message *m)
{
    const struct net_publish *p = &m->publish;
    const char *advice = m->status == -EADDRINUSE      ? "it is in use: choose another, or 0 for any that is free"
                         : m->status == -EACCES        ? "ports below 1024 need root: choose a higher one"
                         : m->status == -EADDRNOTAVAIL ? "this host does not have that address"
                                                       : strerror(-m->status);
    snprintf(m->text, sizeof m->text, "cannot publish %s port %u.%u.%u.%u:%u: %s", p->udp ? "UDP" : "TCP", p->ip[0],
             p->ip[1], p->ip[2], p->ip[3], p->host_port, advice);
}

static void answer(struct stack *s, struct control_message *m)
{
    struct net_publish *p = &m->publish;
    struct in_addr host;

    m->status = 0;
    if (m->type == CONTROL_ADD) {
        m->status = publish(s, p);
        if (m->status)
            say_why(m);
    } else if (m->type == CONTROL_REMOVE) {
        memcpy(&host, p->ip, sizeof host);
        if (slirp_remove_hostfwd(s->slirp, p->udp, host, p->host_port))
            m->status = -ENOENT;
    } else {
        return;
    }
    m->type = CONTROL_ANSWER;
    control_send(HELPER_CONTROL, m);
}

/* --- the loop ----------------------------------------------------------------------------------------------------- */

static void feed(void *opaque, const uint8_t *frame, size_t len)
{
    struct stack *s = opaque;
    slirp_input(s->slirp, frame, (int)len);
}

/* false: the VM is gone. */
static bool take_frames(struct stack *s)
{
    struct net_header *h;
    uint8_t *frame;
    size_t len;
    int r = 1;

    for (unsigned i = 0; i < MESSAGES_PER_PASS && (r = wire_fill(&s->wire)) > 0; i++)
        while (wire_next(&s->wire, &h, &frame, &len)) {
            slirp_frames_in(h, frame, len, feed, s);
            wire_done(&s->wire);
        }
    return r >= 0;
}

static bool take_requests(struct stack *s)
{
    struct control_message m;
    int r;

    while ((r = control_receive(HELPER_CONTROL, &m)) > 0)
        answer(s, &m);
    return r >= 0;
}

/* Frames for the VM go out when nothing else is ready, or after some turns: libslirp takes one datagram from a socket
 * in a turn, and a message (and a wake-up) for each would cost more than they. */
static int wait_for_events(struct stack *s, uint32_t timeout_ms)
{
    if (wire_pending(&s->wire) && !s->out.first && s->turns_held++ < TURNS_HELD_MAX) {
        int n = poll(s->fds, (nfds_t)s->n_fds, 0);
        if (n)
            return n;
    }
    s->turns_held = 0;
    s->fds[0].events = worker_out_flush(&s->out) ? POLLIN : POLLIN | POLLOUT;
    return poll(s->fds, (nfds_t)s->n_fds, (int)timeout_ms);
}

/* One turn: poll, then whatever is ready.  While the VM does not read, the world's sockets are left alone. */
static bool turn(struct stack *s)
{
    uint32_t timeout_ms = WORKER_TURN_MS;
    bool open = s->out.waiting < WORKER_ENOUGH;

    s->watchdog.turns++;
    s->n_fds = 0;
    watch(s, HELPER_DATA, POLLIN);
    watch(s, HELPER_CONTROL, POLLIN);
    if (open)
        slirp_pollfds_fill(s->slirp, &timeout_ms, add_poll, s);
    shorten(s, &timeout_ms);
    int n = wait_for_events(s, timeout_ms);
    if (n < 0 && errno != EINTR)
        return false;
    run_timers(s);
    if (open)
        slirp_pollfds_poll(s->slirp, n < 0, get_events, s);
    return n <= 0 || ((!s->fds[0].revents || take_frames(s)) && (!s->fds[1].revents || take_requests(s)));
}

static Slirp *new_slirp(struct stack *s, const char *reach)
{
    SlirpConfig config = {
        .version = 1,
        .in_enabled = true,
        .vnetwork.s_addr = inet_addr("10.0.2.0"),
        .vnetmask.s_addr = inet_addr("255.255.255.0"),
        .vhost.s_addr = inet_addr("10.0.2.2"),
        .vdhcp_start.s_addr = inet_addr("10.0.2.15"),
        .vnameserver.s_addr = inet_addr("10.0.2.3"),
        .in6_enabled = true,
        .vprefix_len = 64,
        .if_mtu = STACK_MTU,
        .if_mru = STACK_MTU,
        .restricted = strcmp(reach, "none") == 0,
        .disable_host_loopback = strcmp(reach, "all") != 0,
    };

    inet_pton(AF_INET6, "fec0::", &config.vprefix_addr6);
    inet_pton(AF_INET6, "fec0::2", &config.vhost6);
    inet_pton(AF_INET6, "fec0::3", &config.vnameserver6);
    return slirp_new(&config, &callbacks, s);
}

/* It follows connections wherever its user may, and opens one file now and then: to see where names are asked for. */
static int confine(void)
{
    static const struct sandbox_path files[] = {
        {"/etc/resolv.conf", SANDBOX_READ}, {"/run/systemd/resolve", SANDBOX_READ}, {"/run/resolvconf", SANDBOX_READ}};
    const struct sandbox_spec spec = {.role = SANDBOX_NET,
                                      .paths = files,
                                      .n_paths = sizeof files / sizeof *files,
                                      .network = true,
                                      .capabilities = 1ull << CAP_NET_BIND_SERVICE};

    return sandbox_enter(&spec, NULL, NULL, 0);
}

static int slirp_main(const char *reach)
{
    struct stack s = {0};
    int err = wire_init(&s.wire, HELPER_DATA);

    if (err)
        return worker_hopeless(err, "the network cannot be set up: %s", strerror(-err));
    worker_out_init(&s.out, &s.wire, WORKER_TOO_MUCH);
    s.slirp = new_slirp(&s, reach);
    if (!s.slirp)
        return worker_hopeless(-EIO, "libslirp %s does not start", slirp_version_string());
    err = worker_watch(&s.watchdog, WORKER_WATCH_S);
    if (!err)
        err = confine();
    if (err)
        return worker_hopeless(err, "the network's helper process cannot enter its sandbox: %s", strerror(-err));
    worker_up();
    while (turn(&s))
        ;
    slirp_cleanup(s.slirp);
    worker_out_free(&s.out);
    wire_free(&s.wire);
    free(s.fds);
    return WORKER_DONE;
}

const struct worker_kind worker_slirp = {"user", slirp_main};
