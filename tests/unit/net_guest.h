/* A guest's network stack, as small as it can be, at the end of a backend's cable: what tests say to a network. */
#pragma once
#include <arpa/inet.h>
#include <errno.h>
#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#include "backends/net.h"
#include "backends/net/offload.h"
#include "host/loop.h"

#define KEPT 512u

struct cable {
    pthread_mutex_t lock;
    struct loop *loop;
};

struct frame {
    struct net_header header;
    size_t len;
    uint8_t *bytes;
};

struct guest {
    struct cable *cable;
    struct net *net;
    uint8_t mac[6], gateway[6];
    struct frame in[KEPT]; /* received and not yet looked at */
    unsigned n_in, room;   /* room: how many more it takes */
    unsigned writable, links;
    bool up;
};

static inline bool guest_receive(void *opaque, const struct net_header *h, const uint8_t *bytes, size_t len)
{
    struct guest *g = opaque;
    if (g->n_in == KEPT || !g->room)
        return false;
    g->room--;
    struct frame *f = &g->in[g->n_in++];
    *f = (struct frame){*h, len, malloc(len + 1)};
    memcpy(f->bytes, bytes, len);
    return true;
}
static inline void guest_received(void *opaque) {}
static inline void guest_writable(void *opaque)
{
    struct guest *g = opaque;
    g->writable++;
}
static inline void guest_link(void *opaque, bool up)
{
    struct guest *g = opaque;
    g->links++;
    g->up = up;
}

static inline void cable_open(struct cable *c)
{
    pthread_mutex_init(&c->lock, NULL);
    assert_int_equal(loop_create(&c->loop, &c->lock), 0);
}
static inline void cable_close(struct cable *c)
{
    loop_destroy(c->loop);
    pthread_mutex_destroy(&c->lock);
}

static inline void cable_stop(void *opaque)
{
    struct cable *c = opaque;
    loop_stop(c->loop);
}
/* Lets the loop run for a while. */
static inline void cable_run(struct cable *c, unsigned ms)
{
    struct loop_timer stop;
    pthread_mutex_lock(&c->lock);
    loop_timer_init(&stop, cable_stop, c);
    loop_timer_set(c->loop, &stop, clock_ns() + (uint64_t)ms * 1000000);
    pthread_mutex_unlock(&c->lock);
    loop_run(c->loop);
}

static inline void guest_open(struct guest *g, struct cable *c, const char *spec, uint8_t number)
{
    static const struct net_client client = {guest_receive, guest_received, guest_writable, guest_link};
    char err[512] = "";

    *g = (struct guest){.cable = c, .mac = {0x52, 0x54, 0, 0, 0, number}, .room = ~0u, .up = true};
    if (net_open(&g->net, spec, c->loop, err, sizeof err))
        fail_msg("%s: %s", spec, err);
    net_attach(g->net, &client, g);
    net_set_offloads(g->net, NET_CSUM | NET_TSO4 | NET_TSO6);
}
static inline void guest_forget(struct guest *g)
{
    while (g->n_in)
        free(g->in[--g->n_in].bytes);
}
static inline void guest_close(struct guest *g)
{
    net_close(g->net);
    guest_forget(g);
}

/* --- frames ------------------------------------------------------------------------------------------------------- */

static inline void be16_put(uint8_t *p, unsigned v)
{
    p[0] = (uint8_t)(v >> 8);
    p[1] = (uint8_t)v;
}
static inline unsigned be16_get(const uint8_t *p)
{
    return (unsigned)p[0] << 8 | p[1];
}
static inline void be32_put(uint8_t *p, uint32_t v)
{
    be16_put(p, v >> 16);
    be16_put(p + 2, v & 0xffff);
}
static inline uint32_t be32_get(const uint8_t *p)
{
    return be16_get(p) << 16 | be16_get(p + 2);
}

static inline bool guest_send_header(struct guest *g, struct net_header *h, uint8_t *bytes, size_t len)
{
    const struct iovec iov[] = {{h, sizeof *h}, {bytes, len}};
    pthread_mutex_lock(&g->cable->lock);
    bool taken = net_send(g->net, iov, 2);
    net_flush(g->net);
    pthread_mutex_unlock(&g->cable->lock);
    return taken;
}
static inline void guest_send(struct guest *g, uint8_t *bytes, size_t len)
{
    struct net_header h = {0};
    assert_true(guest_send_header(g, &h, bytes, len));
}

/* Ethernet and IPv4 in front of `len` bytes at out+34; protocol's checksum is left open at its offset. */
static inline size_t guest_ipv4(struct guest *g, uint8_t *out, const char *from, const char *to, uint8_t protocol,
                                size_t len, struct net_header *h)
{
    uint8_t *ip = out + 14;

    memcpy(out, g->gateway, 6);
    memcpy(out + 6, g->mac, 6);
    be16_put(out + 12, 0x0800);
    memset(ip, 0, 20);
    ip[0] = 0x45;
    be16_put(ip + 2, (unsigned)(20 + len));
    ip[8] = 64;
    ip[9] = protocol;
    inet_pton(AF_INET, from, ip + 12);
    inet_pton(AF_INET, to, ip + 16);
    uint16_t sum = (uint16_t)~offload_fold(offload_sum(ip, 20, 0));
    memcpy(ip + 10, &sum, 2);
    struct offload_frame f = {.l3 = 14, .version = 4, .protocol = protocol};
    unsigned at = protocol == 6 ? 16 : 6;
    sum = offload_fold(offload_pseudo(out, &f, (unsigned)len));
    memcpy(out + 34 + at, &sum, 2);
    *h = (struct net_header){.flags = NET_NEEDS_CSUM, .csum_start = 34, .csum_offset = (uint16_t)at};
    return 34 + len;
}

/* The first frame kept that `wanted` likes; it is taken out and stays valid until the next call. */
static inline struct frame *guest_await(struct guest *g, bool (*wanted)(const struct frame *f, const void *opaque),
                                        const void *opaque, unsigned ms)
{
    static struct frame found;

    free(found.bytes);
    found = (struct frame){0};
    for (uint64_t end = clock_ns() + (uint64_t)ms * 1000000; clock_ns() < end;) {
        for (unsigned i = 0; i < g->n_in; i++)
            if (wanted(&g->in[i], opaque)) {
                found = g->in[i];
                memmove(&g->in[i], &g->in[i + 1], (--g->n_in - i) * sizeof *g->in);
                return &found;
            }
        if (g->n_in == KEPT)
            guest_forget(g);
        cable_run(g->cable, 2);
        pthread_mutex_lock(&g->cable->lock);
        net_resume(g->net);
        pthread_mutex_unlock(&g->cable->lock);
    }
    return NULL;
}

static inline bool is_arp_reply(const struct frame *f, const void *opaque)
{
    return f->len >= 42 && be16_get(f->bytes + 12) == 0x0806 && be16_get(f->bytes + 20) == 2;
}

/* Asks for the gateway's address. */
static inline void guest_arp(struct guest *g)
{
    uint8_t arp[42] = {0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 8, 6, 0, 1, 8, 0, 6, 4, 0, 1};

    memcpy(arp + 6, g->mac, 6);
    memcpy(arp + 22, g->mac, 6);
    memcpy(arp + 28, "\x0a\0\x02\x0f", 4);
    memcpy(arp + 38, "\x0a\0\x02\x02", 4);
    guest_send(g, arp, sizeof arp);
    struct frame *f = guest_await(g, is_arp_reply, NULL, 5000);
    assert_non_null(f);
    memcpy(g->gateway, f->bytes + 6, 6);
}

/* --- TCP: one connection, one side at a time ---------------------------------------------------------------------- */

struct tcp {
    struct guest *g;
    const char *to;
    unsigned from_port, to_port;
    uint32_t next, expected; /* sequence numbers: of ours, of theirs */
};
enum { FIN = 1, SYN = 2, RST = 4, PSH = 8, ACK = 16 };

static inline void tcp_put(struct tcp *t, unsigned flags, const void *data, size_t len)
{
    static uint8_t out[NET_FRAME_MAX];
    struct net_header h;
    uint8_t *tcp = out + 34;
    unsigned size = flags & SYN ? 24 : 20;

    memset(tcp, 0, size);
    be16_put(tcp, t->from_port);
    be16_put(tcp + 2, t->to_port);
    be32_put(tcp + 4, t->next);
    be32_put(tcp + 8, flags & ACK ? t->expected : 0);
    tcp[12] = (uint8_t)(size / 4 << 4);
    tcp[13] = (uint8_t)flags;
    be16_put(tcp + 14, 65535);
    memcpy(tcp + 20, "\x02\x04\x05\xb4", 4); /* MSS 1460 */
    if (len)
        memcpy(tcp + size, data, len);
    size_t total = guest_ipv4(t->g, out, "10.0.2.15", t->to, 6, size + len, &h);
    if (len > 1460) {
        h.gso_type = NET_SEGMENT_TCP4;
        h.gso_size = 1460;
    }
    assert_true(guest_send_header(t->g, &h, out, total));
    t->next += (uint32_t)len + (flags & (SYN | FIN) ? 1 : 0);
}

static inline bool is_tcp(const struct frame *f, const void *opaque)
{
    const struct tcp *t = opaque;
    struct offload_frame p;

    return offload_parse(f->bytes, f->len, &p) && p.protocol == 6 && p.payload &&
           be16_get(f->bytes + p.l4) == t->to_port && be16_get(f->bytes + p.l4 + 2) == t->from_port;
}

static inline void tcp_connect(struct tcp *t)
{
    tcp_put(t, SYN, NULL, 0);
    struct frame *f = guest_await(t->g, is_tcp, t, 5000);
    assert_non_null(f);
    assert_int_equal(f->bytes[34 + 13], SYN | ACK);
    t->expected = be32_get(f->bytes + 34 + 4) + 1;
    tcp_put(t, ACK, NULL, 0);
}

/* Reads until `len` bytes have come or the other side has ended; returns how many.  *longest: of the frames. */
static inline size_t tcp_read(struct tcp *t, uint8_t *data, size_t len, size_t *longest)
{
    size_t got = 0;

    *longest = 0;
    while (got < len) {
        struct frame *f = guest_await(t->g, is_tcp, t, 5000);
        struct offload_frame p;
        if (!f)
            return got;
        offload_parse(f->bytes, f->len, &p);
        size_t size = p.end - p.payload;
        uint8_t flags = f->bytes[p.l4 + 13];
        assert_false(flags & RST);
        if (be32_get(f->bytes + p.l4 + 4) != t->expected)
            continue; /* said twice */
        size_t take = size < len - got ? size : len - got;
        memcpy(data + got, f->bytes + p.payload, take);
        got += take;
        t->expected += (uint32_t)size + (flags & FIN ? 1 : 0);
        *longest = f->len > *longest ? f->len : *longest;
        if (size || (flags & FIN))
            tcp_put(t, ACK, NULL, 0);
        if (flags & FIN)
            break;
    }
    return got;
}
