#include "backends/net/slirp_frames.h"

#include <netinet/in.h>
#include <stdbool.h>
#include <string.h>

#include "backends/net/offload.h"
#include "backends/net/worker.h"

#define MTU 1500u
#define MSS_V4 (MTU - 40u)
#define MSS_V6 (MTU - 60u)
/* Two of them fill the window of 64 KiB that libslirp knows: one is on its way while the other is acknowledged. */
#define MSS_RAISED 32000u
#define TCP_SYN 2
enum { OPTION_END = 0, OPTION_NOP = 1, OPTION_MSS = 2 };
#define FRAGMENT_HEADER 8u /* of IPv6 */

static unsigned get16(const uint8_t *p)
{
    return (unsigned)p[0] << 8 | p[1];
}

static void put16(uint8_t *p, unsigned v)
{
    p[0] = (uint8_t)(v >> 8);
    p[1] = (uint8_t)v;
}

/* --- in ----------------------------------------------------------------------------------------------------------- */

/* The MSS option's value in a TCP header [tcp, end), or NULL. */
static uint8_t *find_mss(uint8_t *tcp, const uint8_t *end)
{
    for (uint8_t *p = tcp + 20; p < end;) {
        if (*p == OPTION_END)
            return NULL;
        if (*p == OPTION_NOP) {
            p++;
            continue;
        }
        if (end - p < 2 || p[1] < 2 || p[1] > end - p)
            return NULL;
        if (*p == OPTION_MSS && p[1] == 4)
            return p + 2;
        p += p[1];
    }
    return NULL;
}

/* RFC 1624, equation 3. */
static void fix_sum(uint8_t *sum, unsigned before, unsigned after)
{
    uint32_t s = (~get16(sum) & 0xffffu) + (~before & 0xffffu) + after;
    s = (s & 0xffff) + (s >> 16);
    s = (s & 0xffff) + (s >> 16);
    put16(sum, ~s & 0xffff);
}

static void raise_mss(uint8_t *frame, size_t len)
{
    struct offload_frame f;

    if (!offload_parse(frame, len, &f) || f.protocol != IPPROTO_TCP || !f.payload || !(frame[f.l4 + 13] & TCP_SYN))
        return;
    uint8_t *mss = find_mss(frame + f.l4, frame + f.payload);
    if (!mss || get16(mss) < (f.version == 4 ? MSS_V4 : MSS_V6) || get16(mss) >= MSS_RAISED)
        return;
    if ((mss - frame - f.l4) % 2) /* an option may begin anywhere; the sum's words do not */
        return;
    fix_sum(frame + f.l4 + OFFLOAD_CSUM_TCP, get16(mss), MSS_RAISED);
    put16(mss, MSS_RAISED);
}

struct feeder {
    void (*feed)(void *opaque, const uint8_t *frame, size_t len);
    void *opaque;
};

static bool feed_part(void *opaque, const uint8_t *frame, size_t len)
{
    struct feeder *f = opaque;
    f->feed(f->opaque, frame, len);
    return true;
}

/* libslirp answers an IPv6 packet longer than its MTU with "too big". */
static bool goes_whole(const struct net_header *h, size_t len)
{
    return !offload_is_long(h) || len <= 65535;
}

void slirp_frames_in(struct net_header *h, uint8_t *frame, size_t len,
                     void (*feed)(void *opaque, const uint8_t *frame, size_t len), void *opaque)
{
    struct feeder feeder = {feed, opaque};
    unsigned total;

    if (!offload_check(h, frame, len))
        return;
    if (!goes_whole(h, len)) {
        offload_segment(h, frame, len, 0, feed_part, &feeder, &total);
        return;
    }
    offload_checksum(h, frame, len);
    raise_mss(frame, len);
    feed(opaque, frame, len);
}

/* --- out ---------------------------------------------------------------------------------------------------------- */

static void put(struct worker_out *out, const struct net_header *h, const uint8_t *headers, size_t headers_len,
                const uint8_t *rest, size_t rest_len)
{
    const struct iovec iov[] = {{(void *)(uintptr_t)h, sizeof *h},
                                {(void *)(uintptr_t)headers, headers_len},
                                {(void *)(uintptr_t)rest, rest_len}};
    worker_out_put(out, iov, rest_len ? 3 : 2);
}

/* A long segment: its checksum is left open again, as the sum of the pseudo header (virtio 1.2, 5.1.6.4). */
static void put_segment(struct worker_out *out, const uint8_t *frame, size_t len, const struct offload_frame *f)
{
    uint8_t headers[256];
    struct net_header h = {
        .flags = NET_NEEDS_CSUM,
        .gso_type = f->version == 4 ? NET_SEGMENT_TCP4 : NET_SEGMENT_TCP6,
        .hdr_len = (uint16_t)f->payload,
        .gso_size = (uint16_t)(f->version == 4 ? MSS_V4 : MSS_V6),
        .csum_start = (uint16_t)f->l4,
        .csum_offset = OFFLOAD_CSUM_TCP,
        .num_buffers = 1,
    };

    if (f->payload > sizeof headers)
        return;
    memcpy(headers, frame, f->payload);
    uint16_t sum = offload_fold(offload_pseudo(frame, f, f->end - f->l4));
    memcpy(headers + f->l4 + OFFLOAD_CSUM_TCP, &sum, sizeof sum);
    put(out, &h, headers, f->payload, frame + f->payload, len - f->payload);
}

static const struct net_header plain = {.flags = NET_DATA_VALID, .num_buffers = 1};
static const struct net_header unknown = {.num_buffers = 1};

/* RFC 791, 3.2. */
static void put_fragments_v4(struct worker_out *out, const uint8_t *frame, const struct offload_frame *f)
{
    uint8_t headers[14 + 60];
    unsigned step = (MTU - (f->l4 - f->l3)) & ~7u, bytes = f->end - f->l4;

    if (f->l4 > sizeof headers)
        return;
    for (unsigned at = 0; at < bytes; at += step) {
        unsigned size = bytes - at < step ? bytes - at : step;
        uint8_t *ip = headers + f->l3;
        memcpy(headers, frame, f->l4);
        put16(ip + 2, f->l4 - f->l3 + size);
        put16(ip + 6, at / 8 | (at + size < bytes ? 0x2000u : 0));
        put16(ip + 10, 0);
        uint16_t sum = (uint16_t)~offload_fold(offload_sum(ip, f->l4 - f->l3, 0));
        memcpy(ip + 10, &sum, sizeof sum);
        put(out, &unknown, headers, f->l4, frame + f->l4 + at, size);
    }
}

/* RFC 8200, 4.5.  The datagram's checksum tells packets apart well enough: the identification has to differ within a
 * minute only, and libslirp has none for us. */
static void put_fragments_v6(struct worker_out *out, const uint8_t *frame, const struct offload_frame *f)
{
    uint8_t headers[14 + 40 + FRAGMENT_HEADER];
    unsigned l4 = f->l3 + 40, step = (MTU - 40 - FRAGMENT_HEADER) & ~7u, bytes = f->end - l4;

    if (f->l4 != l4 || l4 + FRAGMENT_HEADER > sizeof headers)
        return;
    uint32_t id = (uint32_t)offload_fold(offload_sum(frame + l4, bytes, 0)) << 16 | (bytes & 0xffff);
    for (unsigned at = 0; at < bytes; at += step) {
        unsigned size = bytes - at < step ? bytes - at : step;
        uint8_t *fragment = headers + l4;
        memcpy(headers, frame, l4);
        put16(headers + f->l3 + 4, FRAGMENT_HEADER + size);
        headers[f->l3 + 6] = IPPROTO_FRAGMENT;
        fragment[0] = f->protocol;
        fragment[1] = 0;
        put16(fragment + 2, at | (at + size < bytes ? 1u : 0));
        memcpy(fragment + 4, &id, sizeof id);
        put(out, &unknown, headers, l4 + FRAGMENT_HEADER, frame + l4 + at, size);
    }
}

void slirp_frames_out(struct worker_out *out, const uint8_t *frame, size_t len)
{
    struct offload_frame f;

    if (!offload_parse(frame, len, &f) || !f.version)
        put(out, &unknown, frame, len, NULL, 0);
    else if (f.protocol == IPPROTO_TCP && f.payload && f.end - f.payload > (f.version == 4 ? MSS_V4 : MSS_V6))
        put_segment(out, frame, len, &f);
    else if (f.end - f.l3 <= MTU)
        put(out, f.payload ? &plain : &unknown, frame, len, NULL, 0);
    else if (f.version == 4)
        put_fragments_v4(out, frame, &f);
    else
        put_fragments_v6(out, frame, &f);
}
