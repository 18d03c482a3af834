/*
 * Transmission (5.1.6.2).
 *
 * A notification costs an exit from the guest, a system call and, in the end, an interrupt: for a frame now and then,
 * and for the acknowledgements of a transfer, nothing is faster than to send at once.  A guest that sends many small
 * frames on its own is served otherwise: notifications are not asked for, and the queue is looked at every 50
 * microseconds until there is nothing in it.
 */
#include "devices/virtio/net_int.h"
#include "memory/memory.h"

/* Frames taken in one pass; a guest with several CPUs could fill the queue for ever. */
#define FRAMES_PER_PASS 512u
#define LOOK_NS 50000u
/* So many notifications, each within this time after the last and with nothing received, make a stream. */
#define KICKS_STREAM 8u
#define KICK_GAP_NS 500000u

/* The chain without its header, as the backend wants it: pieces of guest memory, which it reads once. */
static unsigned gather(struct virtio_device *v, const struct virtio_chain *chain, struct iovec *iov)
{
    size_t skip = sizeof(struct net_header);
    unsigned n = 0;

    for (unsigned i = 0; i < chain->n_out; i++) {
        const struct virtio_buffer *b = &chain->buf[i];
        if (skip >= b->len) {
            skip -= b->len;
            continue;
        }
        uint8_t *hva = (uint8_t *)(uintptr_t)memory_hva_read(v->bus->memory, b->gpa, b->len);
        iov[n++] = (struct iovec){hva + skip, b->len - skip};
        skip = 0;
    }
    return n;
}

/* false: the backend has no room. */
static bool send_chain(struct net_card *c, const struct virtio_chain *chain)
{
    struct net_header header;
    struct iovec iov[NET_IOV_MAX];

    if (virtio_chain_read(&c->virtio, chain, 0, &header, sizeof header) != sizeof header)
        return true; /* nothing but a piece of a header: lost */
    header.num_buffers = 0;
    iov[0] = (struct iovec){&header, sizeof header};
    unsigned n = gather(&c->virtio, chain, iov + 1);
    return !n || net_send(c->net, iov, n + 1);
}

/* Sends what there is, at most `most` frames; returns how many. */
static unsigned send_some(struct net_card *c, unsigned most)
{
    struct virtio_device *v = &c->virtio;
    struct virtio_chain *chain = &c->chain;
    unsigned n = 0;

    while (n < most && virtio_pop(v, NET_TX, chain) > 0) {
        if (!send_chain(c, chain)) {
            virtio_unpop(v, chain);
            c->blocked = true; /* until net_transmit_unblocked */
            break;
        }
        virtio_push(v, chain, 0);
        n++;
    }
    return n;
}

static void finish(struct net_card *c, unsigned sent)
{
    net_flush(c->net);
    if (sent)
        virtio_signal(&c->virtio, NET_TX);
}

void net_transmit(struct net_card *c)
{
    unsigned sent = 0;

    c->blocked = c->looking = false;
    do
        sent += send_some(c, FRAMES_PER_PASS - sent);
    while (!c->blocked && sent < FRAMES_PER_PASS && virtio_rearm(&c->virtio, NET_TX));
    finish(c, sent);
    if (sent == FRAMES_PER_PASS)
        loop_timer_set(c->loop, &c->again, clock_ns());
}

static void look_again(struct net_card *c)
{
    c->looking = true;
    loop_timer_set(c->loop, &c->again, clock_ns() + LOOK_NS);
}

static void pass(void *opaque)
{
    struct net_card *c = opaque;

    if (c->blocked)
        return;
    unsigned sent = c->looking ? send_some(c, FRAMES_PER_PASS) : 0;
    finish(c, sent);
    if (sent && !c->blocked) {
        look_again(c);
        return;
    }
    c->looking = false;
    if (!c->blocked)
        net_transmit(c); /* and asks for notifications */
}

static bool is_stream(struct net_card *c)
{
    uint64_t now = clock_ns();

    c->kicks = now - c->kick_ns < KICK_GAP_NS ? c->kicks + 1 : 0;
    c->kick_ns = now;
    return c->kicks >= KICKS_STREAM;
}

void net_transmit_notified(struct net_card *c)
{
    if (c->blocked || c->looking)
        return;
    if (is_stream(c))
        look_again(c);
    else
        net_transmit(c);
}

void net_transmit_unblocked(struct net_card *c)
{
    if (c->blocked)
        net_transmit(c);
}

void net_transmit_forget(struct net_card *c)
{
    loop_timer_cancel(c->loop, &c->again);
    c->blocked = c->looking = false;
    c->kicks = 0;
}

void net_transmit_init(struct net_card *c)
{
    loop_timer_init(&c->again, pass, c);
}
