/*
 * A connection of virtio-vsock: what its packets mean, and its socket.
 *
 *              guest's REQUEST            RESPONSE            both directions done
 *      (none) -----------------> ASKED -------------> OPEN ------------------------> CLOSING --(RST)--> gone
 *         \---- ours ---> CONNECTING ---(RESPONSE)---/  \--(RST after SHUTDOWN, bytes left)--> DRAINING --> gone
 *
 * Each of them may become RESETTING, when we owe the guest a RST, and DEAD.
 *
 * The socket is watched edge-triggered: `readable` is what is known of it, and a connection that may have a packet for
 * the guest is in the ready list, which vsock.c serves in turn while the guest offers buffers.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "devices/virtio/vsock_int.h"

/* --- the table -------------------------------------------------------------------------------------------- */

static struct conn **bucket(struct vsock *vs, uint32_t guest_port, uint32_t host_port)
{
    return &vs->buckets[(guest_port * 31 + host_port) % VSOCK_BUCKETS];
}

struct conn *conn_find(struct vsock *vs, uint32_t guest_port, uint32_t host_port)
{
    struct conn *c = *bucket(vs, guest_port, host_port);

    while (c && (c->guest_port != guest_port || c->host_port != host_port))
        c = c->bucket_next;
    return c;
}

static void unhash(struct conn *c)
{
    struct conn **at = bucket(c->vs, c->guest_port, c->host_port);

    if (!c->hashed)
        return;
    while (*at != c)
        at = &(*at)->bucket_next;
    *at = c->bucket_next;
    c->hashed = false;
}

void conn_ready(struct conn *c)
{
    struct vsock *vs = c->vs;

    if (c->ready)
        return;
    c->ready = true;
    c->ready_next = NULL;
    c->ready_prev = vs->ready_last;
    *(vs->ready_last ? &vs->ready_last->ready_next : &vs->ready_first) = c;
    vs->ready_last = c;
    vsock_schedule(vs);
}

void conn_idle(struct conn *c)
{
    struct vsock *vs = c->vs;

    if (!c->ready)
        return;
    c->ready = false;
    *(c->ready_prev ? &c->ready_prev->ready_next : &vs->ready_first) = c->ready_next;
    *(c->ready_next ? &c->ready_next->ready_prev : &vs->ready_last) = c->ready_prev;
}

struct conn *conn_new(struct vsock *vs, enum conn_state state, uint32_t guest_port, uint32_t host_port, int fd)
{
    struct conn **at = bucket(vs, guest_port, host_port);
    struct conn *c = vs->n_conns < VSOCK_CONNECTIONS_MAX ? calloc(1, sizeof *c) : NULL;

    if (!c)
        return NULL;
    *c = (struct conn){.vs = vs,
                       .state = state,
                       .guest_port = guest_port,
                       .host_port = host_port,
                       .fd = fd,
                       .deadline_ns = UINT64_MAX,
                       .window = vs->n_large < VSOCK_LARGE_MAX ? VSOCK_WINDOW_LARGE : VSOCK_WINDOW_SMALL,
                       .next = vs->all,
                       .bucket_next = *at,
                       .hashed = true};
    vs->n_large += c->window == VSOCK_WINDOW_LARGE;
    vs->n_conns++;
    if (vs->all)
        vs->all->prev = c;
    return vs->all = *at = c;
}

static void close_fd(struct conn *c)
{
    if (c->watched)
        loop_fd_del(c->vs->loop, c->fd);
    c->watched = false;
    if (c->fd >= 0)
        close(c->fd);
    c->fd = -1;
    ring_destroy(&c->out);
    c->out = (struct ring){0};
}

void conn_kill(struct conn *c, int error)
{
    unhash(c);
    conn_idle(c);
    c->state = CONN_DEAD;
    c->error = error;
    c->deadline_ns = UINT64_MAX;
    vsock_schedule(c->vs);
}

/* A descriptor whose `done` is outstanding is still its caller's. */
static void tell_failure(struct conn *c)
{
    void (*done)(void *, int, uint32_t) = c->done;

    if (!done)
        return;
    c->done = NULL;
    c->fd = -1;
    done(c->opaque, c->error, 0);
}

static void conn_free(struct conn *c)
{
    struct vsock *vs = c->vs;

    close_fd(c);
    *(c->prev ? &c->prev->next : &vs->all) = c->next;
    if (c->next)
        c->next->prev = c->prev;
    vs->n_conns--;
    vs->n_large -= c->window == VSOCK_WINDOW_LARGE;
    free(c);
}

void conn_reap(struct vsock *vs)
{
    for (struct conn *c = vs->all; c;) {
        struct conn *next = c->next;
        if (c->state == CONN_DEAD || c->state == CONN_RESETTING)
            tell_failure(c); /* may make new ones: those are in front of all */
        if (c->state == CONN_DEAD)
            conn_free(c);
        c = next;
    }
}

/* Ends it and tells the guest: the RST takes its turn, as any packet.  On the loop's thread. */
static void reset(struct conn *c, int error)
{
    if (!c->done)
        close_fd(c);
    c->state = CONN_RESETTING;
    c->error = error;
    c->deadline_ns = UINT64_MAX;
    conn_ready(c);
    vsock_schedule(c->vs);
}

/* --- towards the host ---------------------------------------------------------------------------------------- */

/* Counts bytes as consumed; tells the guest in time, before its credit is used up. */
static void forwarded(struct conn *c, size_t len)
{
    c->forwarded += (uint32_t)len;
    if (c->state == CONN_OPEN && c->forwarded - c->forwarded_told >= c->window / 4) {
        c->credit = true;
        conn_ready(c);
    }
}

/* Nobody reads fd any more: what the guest has sent vanishes, and it hears of that. */
static void reader_gone(struct conn *c)
{
    c->fd_closed = true;
    forwarded(c, c->out.len);
    ring_destroy(&c->out);
    c->out = (struct ring){0};
    conn_ready(c);
}

/* How many bytes fd took. */
static size_t write_fd(struct conn *c, const uint8_t *data, size_t len)
{
    ssize_t n = send(c->fd, data, len, MSG_NOSIGNAL | MSG_DONTWAIT);

    if (n < 0 && errno != EAGAIN)
        reader_gone(c);
    if (n <= 0)
        return 0;
    forwarded(c, (size_t)n);
    return (size_t)n;
}

/* Both directions have nothing more to carry: fd is not needed.  Who has heard of whom decides what is left to say. */
static void finish(struct conn *c)
{
    if (c->state == CONN_DRAINING) {
        conn_kill(c, 0);
    } else if (c->guest_shut == VSOCK_SHUT_BOTH) {
        reset(c, 0); /* the confirmation that the guest waits for (5.10.6.5) */
    } else {
        close_fd(c);
        c->state = CONN_CLOSING;
        vsock_deadline(c->vs, c, VSOCK_CLOSE_NS);
        conn_ready(c);
    }
}

/* Passes on a half-close when all before it has been passed on, and sees whether that was all. */
static void settle(struct conn *c)
{
    if (c->state != CONN_OPEN && c->state != CONN_DRAINING)
        return;
    bool no_more = (c->guest_shut & VSOCK_SHUT_SEND) && !c->out.len;
    if (no_more && !c->write_shut && !c->fd_closed)
        shutdown(c->fd, SHUT_WR);
    c->write_shut |= no_more;
    bool out_done = no_more || c->fd_closed;
    bool in_done = (c->fd_eof && (c->told_shut & VSOCK_SHUT_SEND)) || (c->guest_shut & VSOCK_SHUT_RCV);
    if (out_done && in_done)
        finish(c);
}

static void flush(struct conn *c)
{
    const uint8_t *data;
    size_t len, n;

    while (c->out.len && !c->fd_closed) {
        len = ring_front(&c->out, &data);
        n = write_fd(c, data, len);
        if (!n)
            break;
        ring_drop(&c->out, n);
        if (c->state == CONN_DRAINING)
            vsock_deadline(c->vs, c, VSOCK_DRAIN_NS);
    }
    if (!c->out.len && c->out.data) {
        ring_destroy(&c->out);
        c->out = (struct ring){0};
    }
}

static void on_fd(void *opaque, uint32_t events)
{
    struct conn *c = opaque;

    if (c->state != CONN_OPEN && c->state != CONN_DRAINING)
        return;
    if (events & (EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR)) {
        c->readable = true;
        conn_ready(c);
    }
    if (events & (EPOLLHUP | EPOLLERR))
        reader_gone(c);
    else if (events & EPOLLOUT)
        flush(c);
    settle(c);
}

static int open_fd(struct conn *c, int fd)
{
    c->fd = fd;
    int err = loop_fd_add(c->vs->loop, fd, EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET, on_fd, c);
    c->watched = !err;
    c->state = CONN_OPEN;
    c->deadline_ns = UINT64_MAX;
    return err;
}

void conn_answer(struct conn *c, int fd)
{
    if (fd < 0 || open_fd(c, fd)) {
        reset(c, 0);
        return;
    }
    c->respond = true;
    conn_ready(c);
}

/* --- packets from the guest ------------------------------------------------------------------------------------ */

/* The host's side learns of it first, so that its own first words come before the guest's. */
static void got_response(struct conn *c, const struct vsock_header *h)
{
    void (*done)(void *, int, uint32_t) = c->done;
    int fd = c->fd;

    if (c->state != CONN_CONNECTING) {
        reset(c, -ECONNRESET);
        return;
    }
    c->done = NULL;
    done(c->opaque, 0, c->host_port);
    if (open_fd(c, fd))
        reset(c, 0);
}

/* Of a connection that the guest has closed in order, what is still on its way reaches the host's reader. */
static void got_reset(struct conn *c, const struct vsock_header *h)
{
    if (c->state == CONN_OPEN && c->guest_shut == VSOCK_SHUT_BOTH && c->out.len && !c->fd_closed) {
        unhash(c);
        conn_idle(c);
        c->state = CONN_DRAINING;
        vsock_deadline(c->vs, c, VSOCK_DRAIN_NS);
        return;
    }
    conn_kill(c, c->state == CONN_CONNECTING ? -ECONNREFUSED : c->error);
}

static void got_shutdown(struct conn *c, const struct vsock_header *h)
{
    c->guest_shut |= h->flags & VSOCK_SHUT_BOTH;
    if (c->state == CONN_CLOSING) {
        if (c->guest_shut == VSOCK_SHUT_BOTH)
            reset(c, 0);
        return;
    }
    if (c->state != CONN_OPEN) {
        reset(c, -ECONNRESET);
        return;
    }
    if ((c->guest_shut & VSOCK_SHUT_RCV) && !c->fd_eof)
        shutdown(c->fd, SHUT_RD);
    settle(c);
}

static void got_data(struct conn *c, const struct vsock_header *h)
{
    size_t written = 0;

    c->received += h->len;
    if (c->state == CONN_CLOSING || c->fd_closed) {
        forwarded(c, h->len);
        return;
    }
    bool over = c->received - c->forwarded > c->window;
    if (c->state != CONN_OPEN || over || (c->guest_shut & VSOCK_SHUT_SEND)) {
        reset(c, -ECONNRESET);
        return;
    }
    if (!c->out.len)
        written = write_fd(c, c->vs->payload, h->len);
    if (written == h->len)
        return;
    if (c->fd_closed) {
        forwarded(c, h->len);
        settle(c);
    } else if (!c->out.data && ring_create(&c->out, c->window)) {
        reset(c, 0);
    } else {
        ring_put(&c->out, c->vs->payload + written, h->len - written);
    }
}

static void got_credit_request(struct conn *c, const struct vsock_header *h)
{
    c->credit = true;
    conn_ready(c);
}

static void got_credit(struct conn *c, const struct vsock_header *h) {}

static void got_nonsense(struct conn *c, const struct vsock_header *h)
{
    reset(c, -ECONNRESET);
}

static void (*const handlers[])(struct conn *c, const struct vsock_header *h) = {
    [0] = got_nonsense,
    [VSOCK_OP_REQUEST] = got_nonsense, /* of a connection that exists */
    [VSOCK_OP_RESPONSE] = got_response,
    [VSOCK_OP_RST] = got_reset,
    [VSOCK_OP_SHUTDOWN] = got_shutdown,
    [VSOCK_OP_RW] = got_data,
    [VSOCK_OP_CREDIT_UPDATE] = got_credit,
    [VSOCK_OP_CREDIT_REQUEST] = got_credit_request,
};

void conn_asked(struct conn *c, const struct vsock_header *h)
{
    c->peer_alloc = h->buf_alloc;
    c->peer_forwarded = h->fwd_cnt;
    c->vs->asked = true;
}

static uint32_t peer_credit(const struct conn *c)
{
    uint32_t flying = c->sent - c->peer_forwarded;

    return flying < c->peer_alloc ? c->peer_alloc - flying : 0;
}

void conn_packet(struct conn *c, const struct vsock_header *h)
{
    if (c->state == CONN_RESETTING && h->op != VSOCK_OP_RST)
        return;
    c->peer_alloc = h->buf_alloc;
    c->peer_forwarded = h->fwd_cnt;
    if (c->readable && peer_credit(c))
        conn_ready(c);
    (h->op < sizeof handlers / sizeof *handlers ? handlers[h->op] : got_nonsense)(c, h);
}

/* --- packets for the guest --------------------------------------------------------------------------------------- */

/* How many bytes of fd are in vs->payload now. */
static uint32_t read_fd(struct conn *c, uint32_t room)
{
    uint32_t credit = peer_credit(c), most = credit < room ? credit : room;

    if (!c->readable || c->fd_eof || !most || (c->guest_shut & VSOCK_SHUT_RCV))
        return 0;
    ssize_t n = recv(c->fd, c->vs->payload, most, MSG_DONTWAIT);
    if (n > 0)
        return (uint32_t)n;
    if (n < 0 && errno == EAGAIN)
        c->readable = false;
    else
        c->fd_eof = true;
    return 0;
}

/* What of the two directions has ended on the host's side. */
static uint8_t host_shut(const struct conn *c)
{
    if (c->state == CONN_CLOSING)
        return VSOCK_SHUT_BOTH;
    return (uint8_t)((c->fd_eof ? VSOCK_SHUT_SEND : 0) | (c->fd_closed ? VSOCK_SHUT_RCV : 0));
}

static bool shutdown_due(struct conn *c, struct vsock_header *h)
{
    uint8_t shut = host_shut(c);

    if (!(shut & ~c->told_shut))
        return false;
    c->told_shut |= shut;
    h->op = VSOCK_OP_SHUTDOWN;
    h->flags = c->told_shut;
    return true;
}

static bool next_open(struct conn *c, struct vsock_header *h, uint32_t room)
{
    if (c->respond) {
        c->respond = false;
        h->op = VSOCK_OP_RESPONSE;
        return true;
    }
    h->len = read_fd(c, room);
    if (h->len) {
        c->sent += h->len;
        h->op = VSOCK_OP_RW;
        return true;
    }
    if (shutdown_due(c, h))
        return true;
    h->op = VSOCK_OP_CREDIT_UPDATE;
    return c->credit;
}

static bool next(struct conn *c, struct vsock_header *h, uint32_t room)
{
    switch (c->state) {
    case CONN_CONNECTING:
        h->op = VSOCK_OP_REQUEST;
        return !c->asked && (c->asked = true);
    case CONN_OPEN:
        return next_open(c, h, room);
    case CONN_CLOSING:
        return shutdown_due(c, h);
    case CONN_RESETTING:
        h->op = VSOCK_OP_RST;
        return true;
    default:
        return false;
    }
}

bool conn_next(struct conn *c, struct vsock_header *h, uint32_t room)
{
    *h = (struct vsock_header){.src_port = c->host_port, .dst_port = c->guest_port, .type = VSOCK_TYPE_STREAM};
    if (!next(c, h, room))
        return false;
    h->buf_alloc = c->window;
    h->fwd_cnt = c->forwarded_told = c->forwarded;
    c->credit = false;
    if (h->op == VSOCK_OP_SHUTDOWN)
        settle(c);
    if (h->op == VSOCK_OP_RST)
        conn_kill(c, c->error);
    return true;
}

void conn_cancel(struct conn *c)
{
    c->done = NULL;
    c->fd = -1;
    if (c->state == CONN_CONNECTING)
        reset(c, 0);
}

void conn_expired(struct conn *c)
{
    if (c->state == CONN_DRAINING)
        conn_kill(c, 0);
    else
        reset(c, -ETIMEDOUT);
}
