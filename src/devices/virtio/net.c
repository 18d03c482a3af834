#include "devices/virtio/net.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "devices/virtio/net_int.h"

#define QUEUE_SIZE 256u
/* Buffers that one received frame may be spread over. */
#define BUFFERS_MAX 128u
#define SPEED_MBITS 10000u

/* --- reception (5.1.6.3, 5.1.6.4) --------------------------------------------------------------------------------- */

/* A buffer that can hold nothing is a broken driver's. */
static bool usable(struct virtio_device *v, const struct virtio_chain *chain, size_t least)
{
    if (chain->in_bytes >= least)
        return true;
    virtio_fail(v, "a receive buffer is too short for a frame's header");
    return false;
}

enum outcome { TAKEN, LOST, NO_BUFFER };

/* The next buffer.  Asks to be told of one that comes later: behind those that are held already. */
static int pop_buffer(struct virtio_device *v, struct virtio_chain *chain)
{
    int r = virtio_pop(v, NET_RX, chain);

    return !r && virtio_rearm(v, NET_RX) ? virtio_pop(v, NET_RX, chain) : r;
}

/* Without mergeable buffers a frame that does not fit is lost, and the buffer kept (5.1.6.3.1 has the sizes). */
static enum outcome receive_whole(struct net_card *c, const struct net_header *h, const uint8_t *frame, size_t len)
{
    struct virtio_device *v = &c->virtio;
    int r = pop_buffer(v, &c->chain);

    if (r <= 0)
        return r ? LOST : NO_BUFFER;
    if (!usable(v, &c->chain, sizeof *h))
        return LOST;
    if (c->chain.in_bytes < sizeof *h + len) {
        virtio_unpop(v, &c->chain);
        return LOST;
    }
    virtio_chain_write(v, &c->chain, 0, h, sizeof *h);
    virtio_chain_write(v, &c->chain, sizeof *h, frame, len);
    virtio_push(v, &c->chain, (uint32_t)(sizeof *h + len));
    return TAKEN;
}

/* Over as many buffers as it takes; the driver sees all of them at once, or none. */
static enum outcome receive_merged(struct net_card *c, const struct net_header *h, const uint8_t *frame, size_t len)
{
    struct virtio_device *v = &c->virtio;
    unsigned size = v->state->queues[NET_RX].size, most = size < BUFFERS_MAX ? size : BUFFERS_MAX, n = 0;
    struct net_header header = *h;
    size_t done = 0;

    do {
        struct virtio_chain *chain = n ? &c->chain : &c->first;
        size_t skip = n ? 0 : sizeof header;
        int r = n == most ? 0 : pop_buffer(v, chain);
        if (r < 0 || (r > 0 && !usable(v, chain, skip + !n)))
            return LOST;
        if (r == 0) {
            for (unsigned i = 0; i < n; i++)
                virtio_unpop(v, &c->first);
            return n == most ? LOST : NO_BUFFER; /* all that there can be is not enough */
        }
        size_t room = chain->in_bytes - skip, piece = room < len - done ? room : len - done;
        virtio_chain_write(v, chain, skip, frame + done, piece);
        virtio_fill(v, chain, n++, (uint32_t)(skip + piece));
        done += piece;
    } while (done < len);
    header.num_buffers = (uint16_t)n;
    virtio_chain_write(v, &c->first, 0, &header, sizeof header);
    virtio_publish(v, NET_RX, n);
    return TAKEN;
}

static bool receive(void *opaque, const struct net_header *h, const uint8_t *frame, size_t len)
{
    struct net_card *c = opaque;
    struct virtio_device *v = &c->virtio;
    if (!virtio_live(v) || !v->state->queues[NET_RX].enabled || !net_filter_wants(&c->saved, frame, len))
        return true;
    enum outcome o = (virtio_has(v, NET_F_MRG_RXBUF) ? receive_merged : receive_whole)(c, h, frame, len);
    c->received |= o == TAKEN;
    c->kicks = 0;
    c->starved = o == NO_BUFFER;
    return !c->starved;
}

static void received(void *opaque)
{
    struct net_card *c = opaque;

    if (c->received)
        virtio_signal(&c->virtio, NET_RX);
    c->received = false;
}

static void writable(void *opaque)
{
    net_transmit_unblocked(opaque);
}

/* --- the link (5.1.4) --------------------------------------------------------------------------------------------- */

static void link_changed(void *opaque, bool up)
{
    struct net_card *c = opaque;

    c->saved.announce = up && virtio_has(&c->virtio, NET_F_GUEST_ANNOUNCE);
    virtio_config_changed(&c->virtio);
}

/* 5.1.4 */
struct __attribute__((packed)) net_config {
    uint8_t mac[6];
    uint16_t status, max_pairs, mtu;
    uint32_t speed; /* Mbit/s */
    uint8_t duplex;
};
enum { STATUS_LINK_UP = 1, STATUS_ANNOUNCE = 2 };

static const struct net_client client = {
    .receive = receive, .received = received, .writable = writable, .link = link_changed};

static void config_read(struct virtio_device *v, uint32_t offset, void *buf, unsigned size)
{
    struct net_card *c = net_card_of(v);
    struct net_config config = {
        .status = (uint16_t)((net_link(c->net) ? STATUS_LINK_UP : 0) | (c->saved.announce ? STATUS_ANNOUNCE : 0)),
        .max_pairs = 1,
        .mtu = (uint16_t)net_mtu(c->net),
        .speed = SPEED_MBITS,
        .duplex = 1,
    };

    if (net_rate(c->net)) {
        uint64_t mbits = net_rate(c->net) * 8 / 1000000;
        config.speed = mbits < 1 ? 1 : mbits > 0x7fffffff ? 0x7fffffff : (uint32_t)mbits;
    }
    memcpy(config.mac, c->saved.mac, sizeof config.mac);
    memcpy(buf, (const uint8_t *)&config + offset, size);
}

/* --- the device --------------------------------------------------------------------------------------------------- */

static void notify(struct virtio_device *v, unsigned q)
{
    struct net_card *c = net_card_of(v);

    if (q == NET_CONTROL) {
        net_control_run(c);
    } else if (q == NET_TX) {
        net_transmit_notified(c);
    } else if (c->starved) {
        c->starved = false;
        net_resume(c->net);
    }
}

static void started(struct virtio_device *v)
{
    struct net_card *c = net_card_of(v);

    net_set_offloads(c->net, net_control_offloads(v->state->driver_features & c->saved.offloads));
}

static void forget(struct virtio_device *v)
{
    struct net_card *c = net_card_of(v);

    net_filter_reset(&c->saved);
    memcpy(c->saved.mac, c->mac, sizeof c->mac);
    c->saved.offloads = ~0ull;
    c->saved.announce = false;
    c->received = false;
    if (!c->net) /* not yet, while it is being made */
        return;
    net_transmit_forget(c);
    net_set_offloads(c->net, 0);
    if (c->starved) {
        c->starved = false;
        net_resume(c->net); /* what waited for a buffer is for nobody now */
    }
}

static const struct virtio_ops ops = {
    .name = "virtio-net",
    .device_id = 1,
    .class_code = 0x020000,
    .n_queues = 3,
    .queue_size = QUEUE_SIZE,
    .features = NET_FEATURE(CSUM) | NET_FEATURE(GUEST_CSUM) | NET_FEATURE(CTRL_GUEST_OFFLOADS) | NET_FEATURE(MTU) |
                NET_FEATURE(MAC) | NET_FEATURE(GUEST_TSO4) | NET_FEATURE(GUEST_TSO6) | NET_FEATURE(GUEST_ECN) |
                NET_FEATURE(HOST_TSO4) | NET_FEATURE(HOST_TSO6) | NET_FEATURE(HOST_ECN) | NET_FEATURE(MRG_RXBUF) |
                NET_FEATURE(STATUS) | NET_FEATURE(CTRL_VQ) | NET_FEATURE(CTRL_RX) | NET_FEATURE(CTRL_VLAN) |
                NET_FEATURE(CTRL_RX_EXTRA) | NET_FEATURE(GUEST_ANNOUNCE) | NET_FEATURE(CTRL_MAC_ADDR) |
                NET_FEATURE(SPEED_DUPLEX),
    .config_size = sizeof(struct net_config),
    .config_read = config_read,
    .notify = notify,
    .started = started,
    .reset = forget,
};

static int net_create(struct device *dev, const struct device_env *env, const void *config)
{
    const struct virtio_net_config_words *words = config;
    struct net_card *c = calloc(1, sizeof *c);

    if (!c)
        return -ENOMEM;
    memcpy(c->mac, words->mac, sizeof c->mac);
    c->loop = env->loop;
    net_transmit_init(c);
    int err = virtio_init(&c->virtio, &c->saved.virtio, &ops, env);
    if (err) {
        free(c);
        return err;
    }
    c->net = words->net;
    if (!net_mtu(c->net))
        c->virtio.features &= ~NET_FEATURE(MTU);
    dev->state = c;
    net_attach(c->net, &client, c);
    return 0;
}

static void net_reset(struct device *dev)
{
    struct net_card *c = dev->state;
    virtio_reset(&c->virtio);
}

static void net_destroy(struct device *dev)
{
    struct net_card *c = dev->state;
    if (!c)
        return;
    net_transmit_forget(c);
    net_close(c->net);
    virtio_destroy(&c->virtio);
    free(c);
    dev->state = NULL;
}

/* Whoever is to be found at another port of a switch from now on says so, for the guest has no cause to: by a request
 * of RARP (RFC 903), which says where this address is and nothing about addresses of higher protocols.  A guest that
 * can announce itself (5.1.6.5.4) does that, too. */
static void announce(struct net_card *c)
{
    uint8_t frame[60] = {0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0x80, 0x35, /* Ethernet: RARP */
                         0,    1,    8,    0,    6,    4,    0, 3};
    struct net_header header = {0};
    const struct iovec iov[] = {{&header, sizeof header}, {frame, sizeof frame}};

    memcpy(frame + 6, c->saved.mac, 6);  /* from */
    memcpy(frame + 22, c->saved.mac, 6); /* sender */
    memcpy(frame + 32, c->saved.mac, 6); /* target */
    if (!net_link(c->net) || !virtio_live(&c->virtio))
        return;
    net_send(c->net, iov, 2);
    net_flush(c->net);
    link_changed(c, true);
}

static void net_restored(struct device *dev)
{
    struct net_card *c = dev->state;

    net_filter_restored(&c->saved);
    virtio_restored(&c->virtio);
    c->starved = c->received = false;
    net_transmit_forget(c);
    started(&c->virtio);
    net_resume(c->net);
    announce(c);
    net_transmit(c);
}

const struct device_class virtio_net_class = {
    .type = "virtio-net",
    .create = net_create,
    .reset = net_reset,
    .destroy = net_destroy,
    .save_offset = offsetof(struct net_card, saved),
    .save_size = sizeof(struct net_card_state),
    .post_restore = net_restored,
};
