#include "backends/net/offload.h"

#include <netinet/in.h>
#include <string.h>

#define ETHERNET 14u
#define VLAN 4u
#define VLANS_MAX 2u
#define IPV4_MIN 20u
#define IPV6 40u
#define IPV6_EXTENSIONS_MAX 8u
#define TCP_MIN 20u
#define UDP 8u
enum { TYPE_IPV4 = 0x0800, TYPE_IPV6 = 0x86dd, TYPE_VLAN = 0x8100, TYPE_QINQ = 0x88a8 };
enum { TCP_FIN = 1, TCP_PSH = 8, TCP_CWR = 0x80 };
/* Smaller ones than any TCP uses would make a thousand frames of one. */
#define SEGMENT_MIN 48u
/* Of a segment: Ethernet, VLANs, IP with its options or extensions, TCP. */
#define HEADERS_MAX 512u

static unsigned get16(const uint8_t *p)
{
    return (unsigned)p[0] << 8 | p[1];
}

static void put16(uint8_t *p, unsigned v)
{
    p[0] = (uint8_t)(v >> 8);
    p[1] = (uint8_t)v;
}

static uint32_t get32(const uint8_t *p)
{
    return (uint32_t)get16(p) << 16 | get16(p + 2);
}

static void put32(uint8_t *p, uint32_t v)
{
    put16(p, v >> 16);
    put16(p + 2, v & 0xffff);
}

/* --- checksums ---------------------------------------------------------------------------------------------------- */

/* Words are added as they lie in memory: the sum's bytes come out in the network's order (RFC 1071, 2B). */
uint64_t offload_sum(const uint8_t *p, size_t len, uint64_t sum)
{
    uint64_t even = 0, odd = 0, rest = 0;

    while (len >= 16) {
        uint32_t w[4];
        memcpy(w, p, sizeof w);
        even += (uint64_t)w[0] + w[2]; /* 2^32 words would fit */
        odd += (uint64_t)w[1] + w[3];
        p += 16;
        len -= 16;
    }
    for (; len >= 2; p += 2, len -= 2) {
        uint16_t w;
        memcpy(&w, p, sizeof w);
        rest += w;
    }
    if (len)
        rest += *p;
    return sum + offload_fold(even) + offload_fold(odd) + rest;
}

uint16_t offload_fold(uint64_t sum)
{
    sum = (sum & 0xffffffff) + (sum >> 32);
    sum = (sum & 0xffffffff) + (sum >> 32);
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    return (uint16_t)sum;
}

uint64_t offload_pseudo(const uint8_t *frame, const struct offload_frame *f, unsigned len)
{
    const uint8_t *ip = frame + f->l3;
    uint8_t tail[8];

    put32(tail, len);
    put32(tail + 4, f->protocol);
    return offload_sum(tail, sizeof tail, f->version == 4 ? offload_sum(ip + 12, 8, 0) : offload_sum(ip + 8, 32, 0));
}

static void set_sum(uint8_t *at, uint64_t sum)
{
    uint16_t folded = offload_fold(sum);
    memcpy(at, &folded, sizeof folded);
}

/* UDP: 0 stands for "none", the sum 0 for itself is sent as ones (RFC 768). */
static void set_checksum(uint8_t *at, uint64_t sum, bool udp)
{
    uint16_t folded = (uint16_t)~offload_fold(sum);
    if (!folded && udp)
        folded = 0xffff;
    memcpy(at, &folded, sizeof folded);
}

/* --- where things are --------------------------------------------------------------------------------------------- */

static bool parse_ipv4(const uint8_t *frame, size_t len, struct offload_frame *f)
{
    const uint8_t *ip = frame + f->l3;

    if (len - f->l3 < IPV4_MIN)
        return false;
    unsigned header = (ip[0] & 15u) * 4, total = get16(ip + 2);
    if (ip[0] >> 4 != 4 || header < IPV4_MIN || total < header || total > len - f->l3)
        return false;
    f->version = 4;
    f->l4 = f->l3 + header;
    f->end = f->l3 + total;
    f->protocol = ip[9];
    if (get16(ip + 6) & 0x3fff) /* a fragment: offset or "more" */
        f->protocol = 255;
    return true;
}

static bool is_extension(uint8_t next)
{
    return next == IPPROTO_HOPOPTS || next == IPPROTO_ROUTING || next == IPPROTO_DSTOPTS;
}

static bool parse_ipv6(const uint8_t *frame, size_t len, struct offload_frame *f)
{
    const uint8_t *ip = frame + f->l3;

    if (len - f->l3 < IPV6 || ip[0] >> 4 != 6 || get16(ip + 4) > len - f->l3 - IPV6)
        return false;
    f->version = 6;
    f->l4 = f->l3 + IPV6;
    f->end = f->l4 + get16(ip + 4);
    f->protocol = ip[6];
    for (unsigned i = 0; is_extension(f->protocol); i++) {
        if (i == IPV6_EXTENSIONS_MAX || f->end - f->l4 < 8)
            return false;
        unsigned size = (frame[f->l4 + 1] + 1u) * 8;
        if (size > f->end - f->l4)
            return false;
        f->protocol = frame[f->l4];
        f->l4 += size;
    }
    return true;
}

bool offload_parse(const uint8_t *frame, size_t len, struct offload_frame *f)
{
    unsigned type, vlans = 0;

    *f = (struct offload_frame){.l3 = ETHERNET};
    if (len < ETHERNET)
        return false;
    type = get16(frame + ETHERNET - 2);
    while ((type == TYPE_VLAN || type == TYPE_QINQ) && vlans++ < VLANS_MAX) {
        if (len - f->l3 < VLAN)
            return false;
        type = get16(frame + f->l3 + 2);
        f->l3 += VLAN;
    }
    if (type != TYPE_IPV4 && type != TYPE_IPV6)
        return true;
    if (!(type == TYPE_IPV4 ? parse_ipv4 : parse_ipv6)(frame, len, f))
        return false;
    if (f->protocol == IPPROTO_TCP) {
        unsigned size = f->end - f->l4 < TCP_MIN ? 0 : (frame[f->l4 + 12] >> 4) * 4u;
        if (size < TCP_MIN || size > f->end - f->l4)
            return false;
        f->payload = f->l4 + size;
    } else if (f->protocol == IPPROTO_UDP) {
        if (f->end - f->l4 < UDP)
            return false;
        f->payload = f->l4 + UDP;
    }
    return true;
}

/* --- the header --------------------------------------------------------------------------------------------------- */

/* A long segment must be what it says, and its checksum open: its parts get one each. */
static bool check_long(struct net_header *h, const uint8_t *frame, size_t len)
{
    unsigned type = h->gso_type & ~NET_SEGMENT_ECN;
    struct offload_frame f;

    if (type != NET_SEGMENT_TCP4 && type != NET_SEGMENT_TCP6)
        return false;
    if (!(h->flags & NET_NEEDS_CSUM) || h->gso_size < SEGMENT_MIN || !offload_parse(frame, len, &f))
        return false;
    if (f.version != (type == NET_SEGMENT_TCP4 ? 4u : 6u) || f.protocol != IPPROTO_TCP || h->csum_start != f.l4 ||
        h->csum_offset != OFFLOAD_CSUM_TCP || f.payload > HEADERS_MAX)
        return false;
    h->hdr_len = (uint16_t)f.payload; /* a hint that senders fill in variously (5.1.6.2) */
    return true;
}

bool offload_check(struct net_header *h, const uint8_t *frame, size_t len)
{
    if (len < ETHERNET || len > 0xffff + HEADERS_MAX)
        return false;
    h->flags &= NET_NEEDS_CSUM | NET_DATA_VALID;
    if (!(h->flags & NET_NEEDS_CSUM))
        h->csum_start = h->csum_offset = 0;
    else if (h->csum_start < ETHERNET || h->csum_start > len || h->csum_offset + 2u > len - h->csum_start)
        return false;
    if (offload_is_long(h))
        return check_long(h, frame, len);
    h->gso_size = h->hdr_len = 0;
    return true;
}

void offload_checksum(struct net_header *h, uint8_t *frame, size_t len)
{
    struct offload_frame f;
    size_t end = len;

    if (!(h->flags & NET_NEEDS_CSUM))
        return;
    /* Behind a short packet there is padding, which is no part of the sum. */
    bool known = offload_parse(frame, len, &f) && f.version && f.end >= h->csum_start + h->csum_offset + 2u;
    if (known)
        end = f.end;
    bool udp = known && f.protocol == IPPROTO_UDP && h->csum_start == f.l4 && h->csum_offset == OFFLOAD_CSUM_UDP;
    set_checksum(frame + h->csum_start + h->csum_offset, offload_sum(frame + h->csum_start, end - h->csum_start, 0),
                 udp);
    h->flags = NET_DATA_VALID;
    h->csum_start = h->csum_offset = 0;
}

/* --- cutting ------------------------------------------------------------------------------------------------------ */

/* The headers of the segment whose payload begins at `at` and has `size` bytes. */
static void fix_headers(uint8_t *out, const struct offload_frame *f, unsigned index, unsigned at, unsigned size,
                        bool last)
{
    uint8_t *ip = out + f->l3, *tcp = out + f->l4;
    unsigned l4_size = f->payload - f->l4 + size;

    if (f->version == 4) {
        put16(ip + 2, f->l4 - f->l3 + l4_size);
        put16(ip + 4, (get16(ip + 4) + index) & 0xffff);
        put16(ip + 10, 0);
        set_checksum(ip + 10, offload_sum(ip, f->l4 - f->l3, 0), false);
    } else {
        put16(ip + 4, f->l4 - f->l3 - IPV6 + l4_size);
    }
    put32(tcp + 4, get32(tcp + 4) + at);
    if (!last)
        tcp[13] &= (uint8_t) ~(TCP_FIN | TCP_PSH);
    if (index)
        tcp[13] &= (uint8_t)~TCP_CWR; /* the first alone answers congestion (RFC 3168, 6.1.2) */
    set_sum(tcp + OFFLOAD_CSUM_TCP, offload_pseudo(out, f, l4_size));
}

unsigned offload_segment(const struct net_header *h, const uint8_t *frame, size_t len, unsigned first,
                         bool (*emit)(void *opaque, const uint8_t *frame, size_t len), void *opaque, unsigned *total)
{
    uint8_t out[HEADERS_MAX + 0xffff];
    struct offload_frame f;

    *total = 0;
    if (!offload_parse(frame, len, &f) || !f.payload || f.payload > HEADERS_MAX || !h->gso_size)
        return 0;
    unsigned bytes = f.end - f.payload;
    *total = bytes ? (bytes + h->gso_size - 1) / h->gso_size : 1;
    for (unsigned i = first; i < *total; i++) {
        unsigned at = i * h->gso_size;
        unsigned size = bytes - at < h->gso_size ? bytes - at : h->gso_size;
        memcpy(out, frame, f.payload);
        fix_headers(out, &f, i, at, size, i + 1 == *total);
        memcpy(out + f.payload, frame + f.payload + at, size);
        set_checksum(out + f.l4 + OFFLOAD_CSUM_TCP, offload_sum(out + f.l4, f.payload - f.l4 + size, 0), false);
        if (!emit(opaque, out, f.payload + size))
            return i;
    }
    return *total;
}
