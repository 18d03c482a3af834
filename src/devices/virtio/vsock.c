/*
 * virtio-vsock (5.10): the device.  Queues: 0 packets for the guest, 1 packets of the guest, 2 events for the guest.
 *
 * All work is done by the loop's thread, in work(): a notification only wakes it up.  So sockets are read, written and
 * closed, and callbacks called, on one thread; a reset that a vCPU asks for marks connections and leaves.
 */
#include "devices/virtio/vsock.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "backends/vsock_host.h"
#include "devices/virtio/vsock_int.h"

#define HEADER sizeof(struct vsock_header)
#define FIRST_PORT 0x40000000u /* of the host's ends of its own connections; up to 0x7fffffff */
#define BUDGET 256u            /* packets each way in one go, so that other devices get their turn */
enum { QUEUE_RX, QUEUE_TX, QUEUE_EVENT };
enum { F_STREAM = 0 };

static struct vsock *of(struct virtio_device *v)
{
    return (struct vsock *)((char *)v - offsetof(struct vsock, virtio));
}

void vsock_schedule(struct vsock *vs)
{
    loop_timer_set(vs->loop, &vs->work, 0);
}

/* --- packets of the guest --------------------------------------------------------------------------------------- */

static void reply_reset(struct vsock *vs, const struct vsock_header *h)
{
    if (h->op != VSOCK_OP_RST)
        vs->replies[vs->n_replies++] = (struct vsock_reply){h->src_port, h->dst_port, h->type};
}

static void one_packet(struct vsock *vs, const struct virtio_chain *chain)
{
    struct vsock_header h;
    struct conn *c;

    if (virtio_chain_read(&vs->virtio, chain, 0, &h, HEADER) < HEADER || h.src_cid != vs->cid ||
        h.dst_cid != VSOCK_CID_HOST)
        return; /* addressed to or from nobody: dropped */
    if (h.type != VSOCK_TYPE_STREAM) {
        reply_reset(vs, &h);
        return;
    }
    c = conn_find(vs, h.src_port, h.dst_port);
    if (!c && h.op == VSOCK_OP_REQUEST)
        c = conn_new(vs, CONN_ASKED, h.src_port, h.dst_port, -1);
    else if (c &&
             (h.len > VSOCK_PACKET_MAX || virtio_chain_read(&vs->virtio, chain, HEADER, vs->payload, h.len) < h.len))
        h.op = 0; /* it has less than it says: the connection cannot go on */
    if (!c)
        reply_reset(vs, &h);
    else if (c->state == CONN_ASKED && h.op == VSOCK_OP_REQUEST)
        conn_asked(c, &h);
    else
        conn_packet(c, &h);
}

/* Each packet causes at most one reply: taken only while there is room for that.  True: there are more. */
static bool tx_drain(struct vsock *vs)
{
    struct virtio_chain chain;
    bool taken = false, more = true;
    unsigned budget = BUDGET;

    while (budget-- && vs->n_replies < VSOCK_REPLIES_MAX) {
        if (virtio_pop(&vs->virtio, QUEUE_TX, &chain) <= 0) {
            more = virtio_rearm(&vs->virtio, QUEUE_TX);
            if (!more)
                break;
            continue;
        }
        one_packet(vs, &chain);
        virtio_push(&vs->virtio, &chain, 0);
        taken = true;
    }
    if (taken)
        virtio_signal(&vs->virtio, QUEUE_TX);
    return more;
}

/* --- packets for the guest ---------------------------------------------------------------------------------------- */

static bool next_reply(struct vsock *vs, struct vsock_header *h)
{
    struct vsock_reply r = vs->replies[0];

    if (!vs->n_replies)
        return false;
    memmove(vs->replies, vs->replies + 1, --vs->n_replies * sizeof *vs->replies);
    *h = (struct vsock_header){.src_port = r.host_port, .dst_port = r.guest_port, .type = r.type, .op = VSOCK_OP_RST};
    return true;
}

/* Connections take turns, one packet each. */
static bool next_packet(struct vsock *vs, struct vsock_header *h, uint32_t room)
{
    struct conn *c;

    if (next_reply(vs, h))
        return true;
    while ((c = vs->ready_first)) {
        conn_idle(c);
        if (conn_next(c, h, room)) {
            if (c->state != CONN_DEAD)
                conn_ready(c);
            return true;
        }
    }
    return false;
}

static bool has_packets(const struct vsock *vs)
{
    return vs->n_replies || vs->ready_first;
}

/* Fills one buffer of the guest.  False: there was nothing to put into it. */
static bool fill(struct vsock *vs, const struct virtio_chain *chain)
{
    struct vsock_header h;
    uint32_t room = (uint32_t)(chain->in_bytes - HEADER);

    if (!next_packet(vs, &h, room < VSOCK_PACKET_MAX ? room : VSOCK_PACKET_MAX))
        return false;
    h.src_cid = VSOCK_CID_HOST;
    h.dst_cid = vs->cid;
    virtio_chain_write(&vs->virtio, chain, 0, &h, HEADER);
    virtio_chain_write(&vs->virtio, chain, HEADER, vs->payload, h.len);
    virtio_push(&vs->virtio, chain, (uint32_t)HEADER + h.len);
    return true;
}

/* True: there are buffers and packets left. */
static bool rx_fill(struct vsock *vs)
{
    struct virtio_chain chain;
    bool given = false, more = true;
    unsigned budget = BUDGET;

    while (more && budget-- && has_packets(vs)) {
        int popped = virtio_pop(&vs->virtio, QUEUE_RX, &chain);
        if (popped > 0 && chain.in_bytes < HEADER) {
            virtio_fail(&vs->virtio, "the driver offers a buffer that is smaller than a packet's header");
            more = false;
        } else if (popped > 0) {
            more = fill(vs, &chain);
            given |= more;
            if (!more)
                virtio_unpop(&vs->virtio, &chain);
        } else {
            more = virtio_rearm(&vs->virtio, QUEUE_RX);
        }
    }
    if (given)
        virtio_signal(&vs->virtio, QUEUE_RX);
    return more && has_packets(vs);
}

/* --- events ------------------------------------------------------------------------------------------------------ */

/* After a restore: le32 VIRTIO_VSOCK_EVENT_TRANSPORT_RESET, which is 0 (5.10.6.7). */
static void tell_reset(struct vsock *vs)
{
    struct virtio_chain chain;
    uint32_t event = 0;

    if (!vs->saved.reset_due || !virtio_live(&vs->virtio))
        return;
    if (virtio_pop(&vs->virtio, QUEUE_EVENT, &chain) <= 0) {
        if (virtio_rearm(&vs->virtio, QUEUE_EVENT))
            vsock_schedule(vs);
        return;
    }
    virtio_push(&vs->virtio, &chain, (uint32_t)virtio_chain_write(&vs->virtio, &chain, 0, &event, sizeof event));
    virtio_signal(&vs->virtio, QUEUE_EVENT);
    vs->saved.reset_due = false;
}

/* --- the loop's thread ------------------------------------------------------------------------------------------- */

/* Asks the host whether it takes what the guest has asked for. */
static void answer(struct vsock *vs, struct conn *c)
{
    for (unsigned i = 0; i < vs->n_listeners; i++)
        if (vs->listeners[i].port == c->host_port) {
            conn_answer(c, vs->listeners[i].accept(vs->listeners[i].opaque, c->guest_port));
            return;
        }
    conn_answer(c, vs->host ? vsock_host_dial(vs->host, c->host_port) : -ECONNREFUSED);
}

static void answer_all(struct vsock *vs)
{
    for (struct conn *c = vs->all, *next; vs->asked && c; c = next) {
        next = c->next;
        if (c->state == CONN_ASKED)
            answer(vs, c);
    }
    vs->asked = false;
}

static void work(void *opaque)
{
    struct vsock *vs = opaque;

    conn_reap(vs);
    tell_reset(vs);
    bool more = tx_drain(vs);
    answer_all(vs);
    bool full = vs->n_replies == VSOCK_REPLIES_MAX;
    bool left = rx_fill(vs);
    /* Full of replies that nobody takes: the guest's next buffer for them goes on from here. */
    if (virtio_live(&vs->virtio) && (left || (more && !(full && vs->n_replies == VSOCK_REPLIES_MAX))))
        vsock_schedule(vs);
}

static void on_deadline(void *opaque)
{
    struct vsock *vs = opaque;
    uint64_t now = clock_ns(), first = UINT64_MAX;

    for (struct conn *c = vs->all; c; c = c->next) {
        if (c->deadline_ns <= now)
            conn_expired(c);
        else if (c->deadline_ns < first)
            first = c->deadline_ns;
    }
    loop_timer_set(vs->loop, &vs->deadlines, first);
}

void vsock_deadline(struct vsock *vs, struct conn *c, uint64_t after_ns)
{
    c->deadline_ns = clock_ns() + after_ns;
    if (c->deadline_ns < vs->deadlines.deadline_ns)
        loop_timer_set(vs->loop, &vs->deadlines, c->deadline_ns);
}

/* --- the rest of guise ------------------------------------------------------------------------------------------- */

static uint32_t free_port(struct vsock *vs, uint32_t guest_port)
{
    do {
        if (vs->next_port++ == 0x7fffffff)
            vs->next_port = FIRST_PORT;
    } while (conn_find(vs, guest_port, vs->next_port));
    return vs->next_port;
}

static bool is_stream_socket(int fd)
{
    int type = 0;
    socklen_t len = sizeof type;

    return getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &len) == 0 && type == SOCK_STREAM;
}

int vsock_connect(struct vsock *vs, uint32_t port, int fd, void (*done)(void *opaque, int err, uint32_t host_port),
                  void *opaque)
{
    if (!is_stream_socket(fd))
        return -ENOTSOCK;
    if (!virtio_live(&vs->virtio))
        return -EHOSTDOWN;
    if (vs->n_conns == VSOCK_CONNECTIONS_MAX)
        return -EMFILE;
    struct conn *c = conn_new(vs, CONN_CONNECTING, port, free_port(vs, port), fd);
    if (!c)
        return -ENOMEM;
    c->done = done;
    c->opaque = opaque;
    vsock_deadline(vs, c, VSOCK_CONNECT_NS);
    conn_ready(c);
    return 0;
}

void vsock_connect_cancel(struct vsock *vs, int fd)
{
    for (struct conn *c = vs->all; c; c = c->next)
        if (c->done && c->fd == fd) {
            conn_cancel(c);
            return;
        }
}

int vsock_listen(struct vsock *vs, uint32_t port, int (*accept)(void *opaque, uint32_t guest_port), void *opaque)
{
    unsigned i = 0;

    while (i < vs->n_listeners && vs->listeners[i].port != port)
        i++;
    if (!accept) {
        if (i < vs->n_listeners)
            vs->listeners[i] = vs->listeners[--vs->n_listeners];
        return 0;
    }
    if (i == VSOCK_LISTENERS_MAX)
        return -ENOSPC;
    vs->n_listeners += i == vs->n_listeners;
    vs->listeners[i] = (struct vsock_listener){port, accept, opaque};
    return 0;
}

unsigned vsock_connections(const struct vsock *vs)
{
    return vs->n_conns;
}

static int host_connects(void *opaque, uint32_t port, int fd, void (*done)(void *opaque, int err, uint32_t host_port),
                         void *done_opaque)
{
    return vsock_connect(opaque, port, fd, done, done_opaque);
}

/* --- the device -------------------------------------------------------------------------------------------------- */

static void on_notify(struct virtio_device *v, unsigned q)
{
    vsock_schedule(of(v));
}

/* Any connection is part of what a reset forgets. */
static void on_reset(struct virtio_device *v)
{
    struct vsock *vs = of(v);

    vs->n_replies = 0;
    vs->saved.reset_due = false;
    for (struct conn *c = vs->all; c; c = c->next)
        if (c->state != CONN_DEAD)
            conn_kill(c, -ECONNRESET);
}

static void config_read(struct virtio_device *v, uint32_t offset, void *buf, unsigned size)
{
    memcpy(buf, (const char *)&of(v)->cid + offset, size);
}

static const struct virtio_ops vsock_ops = {
    .name = "virtio-vsock",
    .device_id = 19,
    .class_code = 0x078000,
    .n_queues = 3,
    .queue_size = 256,
    .features = 1ull << F_STREAM,
    .config_size = sizeof(uint64_t),
    .config_read = config_read,
    .notify = on_notify,
    .reset = on_reset,
};

static int vsock_create(struct device *dev, const struct device_env *env, const void *config)
{
    const struct vsock_config *c = config;
    struct vsock *vs = calloc(1, sizeof *vs);

    if (!vs)
        return -ENOMEM;
    vs->loop = env->loop;
    vs->cid = c->cid;
    vs->next_port = FIRST_PORT;
    loop_timer_init(&vs->work, work, vs);
    loop_timer_init(&vs->deadlines, on_deadline, vs);
    int err = virtio_init(&vs->virtio, &vs->saved.virtio, &vsock_ops, env);
    if (err) {
        free(vs);
        return err;
    }
    vs->host = c->host;
    if (vs->host)
        vsock_host_serve(vs->host, host_connects, vs);
    if (c->handle)
        *c->handle = vs;
    dev->state = vs;
    return 0;
}

static void vsock_reset(struct device *dev)
{
    struct vsock *vs = dev->state;
    virtio_reset(&vs->virtio);
}

static void vsock_destroy(struct device *dev)
{
    struct vsock *vs = dev->state;

    if (!vs)
        return;
    for (struct conn *c = vs->all; c; c = c->next)
        conn_kill(c, c->state == CONN_DEAD ? c->error : -ESHUTDOWN);
    conn_reap(vs);
    loop_timer_cancel(vs->loop, &vs->work);
    loop_timer_cancel(vs->loop, &vs->deadlines);
    vsock_host_close(vs->host);
    virtio_destroy(&vs->virtio);
    free(vs);
    dev->state = NULL;
}

/* The connections of the process that saved are not here; those of this one are not in what was saved. */
static void vsock_restored(struct device *dev)
{
    struct vsock *vs = dev->state;

    on_reset(&vs->virtio);
    virtio_restored(&vs->virtio);
    vs->saved.reset_due = true;
    vsock_schedule(vs);
}

const struct device_class virtio_vsock_class = {
    .type = "virtio-vsock",
    .create = vsock_create,
    .reset = vsock_reset,
    .destroy = vsock_destroy,
    .save_offset = offsetof(struct vsock, saved),
    .save_size = sizeof(struct vsock_saved),
    .post_restore = vsock_restored,
};
