/* Checksums and long segments: every frame that comes out must be one that a careful receiver takes. */
#include <errno.h>
#include <netinet/in.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "backends/net/offload.h"
#include "backends/net/wire.h"

#define PAYLOAD_MAX 60000u

static uint8_t frame[NET_FRAME_MAX], payload[PAYLOAD_MAX];

/* A plain sum, byte by byte, as RFC 1071 says it. */
static unsigned slow_sum(const uint8_t *p, size_t len, unsigned sum)
{
    for (size_t i = 0; i < len; i++)
        sum += i % 2 ? p[i] : (unsigned)p[i] << 8;
    while (sum >> 16)
        sum = (sum & 0xffff) + (sum >> 16);
    return sum;
}

static void put16be(uint8_t *p, unsigned v)
{
    p[0] = (uint8_t)(v >> 8);
    p[1] = (uint8_t)v;
}
static unsigned be16(const uint8_t *p)
{
    return (unsigned)p[0] << 8 | p[1];
}
static uint32_t be32(const uint8_t *p)
{
    return be16(p) << 16 | be16(p + 2);
}

/* A TCP (or UDP) packet with an open checksum in frame[]; returns its length and the header that goes with it. */
static size_t make(struct net_header *h, unsigned version, unsigned vlans, unsigned protocol, size_t bytes)
{
    unsigned l3 = 14 + 4 * vlans, l4 = l3 + (version == 4 ? 24 : 40), l4_size = protocol == IPPROTO_TCP ? 32 : 8;
    uint8_t *ip = frame + l3, *up = frame + l4;

    memset(frame, 0, l4 + l4_size);
    for (unsigned i = 0; i < vlans; i++)
        put16be(frame + 12 + 4 * i, 0x8100);
    put16be(frame + l3 - 2, version == 4 ? 0x0800 : 0x86dd);
    if (version == 4) {
        ip[0] = 0x46; /* one word of options */
        put16be(ip + 2, (unsigned)(24 + l4_size + bytes));
        put16be(ip + 4, 0xfffe);
        ip[8] = 64;
        ip[9] = (uint8_t)protocol;
        memcpy(ip + 12, "\x0a\x00\x02\x0f\x0a\x00\x02\x02\x01\x01\x01\x00", 12);
        put16be(ip + 10, ~slow_sum(ip, 24, 0) & 0xffff);
    } else {
        ip[0] = 0x60;
        put16be(ip + 4, (unsigned)(l4_size + bytes));
        ip[6] = (uint8_t)protocol;
        memset(ip + 8, 0xfe, 32);
    }
    memcpy(up, "\x12\x34\x00\x50\xff\xff\xff\x00", 8);
    if (protocol == IPPROTO_TCP) {
        up[12] = 0x80;
        up[13] = 0x99; /* CWR, ACK, PSH, FIN */
    } else {
        put16be(up + 4, (unsigned)(8 + bytes));
    }
    struct offload_frame f = {.l3 = l3, .version = version, .protocol = (uint8_t)protocol};
    uint16_t sum = offload_fold(offload_pseudo(frame, &f, (unsigned)(l4_size + bytes)));
    memcpy(up + (protocol == IPPROTO_TCP ? 16 : 6), &sum, 2);
    memcpy(up + l4_size, payload, bytes);
    *h = (struct net_header){
        .flags = NET_NEEDS_CSUM, .csum_start = (uint16_t)l4, .csum_offset = protocol == IPPROTO_TCP ? 16 : 6};
    return l4 + l4_size + bytes;
}

/* The receiver's view: all sums of the packet are right. */
static void assert_sums(const uint8_t *p, size_t len, struct offload_frame *f)
{
    uint8_t pseudo[8] = {0};

    assert_true(offload_parse(p, len, f));
    assert_int_equal(f->end, len);
    if (f->version == 4)
        assert_int_equal(slow_sum(p + f->l3, f->l4 - f->l3, 0), 0xffff);
    put16be(pseudo + 2, f->end - f->l4);
    pseudo[7] = f->protocol;
    unsigned sum = f->version == 4 ? slow_sum(p + f->l3 + 12, 8, 0) : slow_sum(p + f->l3 + 8, 32, 0);
    sum = slow_sum(pseudo, 8, sum);
    assert_int_equal(slow_sum(p + f->l4, f->end - f->l4, sum), 0xffff);
}

static void sums(void **state)
{
    for (size_t at = 0; at < 5; at++)
        for (size_t len = 0; len < 200; len++) {
            uint16_t got = offload_fold(offload_sum(payload + at, len, 0));
            assert_int_equal(be16((uint8_t *)&got), slow_sum(payload + at, len, 0));
        }
    memset(payload, 0xff, sizeof payload);
    assert_int_equal(offload_fold(offload_sum(payload, sizeof payload, ~0ull >> 8)),
                     slow_sum(payload, 0, (unsigned)offload_fold(~0ull >> 8)));
    for (size_t i = 0; i < sizeof payload; i++)
        payload[i] = (uint8_t)(i * 31 + i / 251);
}

static void checksums_are_completed(void **state)
{
    struct net_header h;
    struct offload_frame f;

    for (unsigned vlans = 0; vlans < 3; vlans++)
        for (unsigned version = 4; version <= 6; version += 2)
            for (size_t bytes = 0; bytes < 70; bytes++)
                for (unsigned udp = 0; udp < 2; udp++) {
                    size_t len = make(&h, version, vlans, udp ? IPPROTO_UDP : IPPROTO_TCP, bytes);
                    assert_true(offload_check(&h, frame, len));
                    offload_checksum(&h, frame, len);
                    assert_int_equal(h.flags, NET_DATA_VALID);
                    assert_sums(frame, len, &f);
                }
}

static void padding_is_not_summed(void **state)
{
    struct net_header h;
    struct offload_frame f;
    size_t len = make(&h, 4, 0, IPPROTO_UDP, 3);

    memset(frame + len, 0xaa, 20);
    assert_true(offload_check(&h, frame, len + 20));
    offload_checksum(&h, frame, len + 20);
    assert_sums(frame, len, &f);
}

/* A UDP sum of zero is sent as ones: zero means that there is none. */
static void udp_sum_of_zero(void **state)
{
    struct net_header h;
    size_t len = make(&h, 4, 0, IPPROTO_UDP, 2);
    struct net_header again = h;

    frame[len - 2] = frame[len - 1] = 0;
    assert_true(offload_check(&h, frame, len));
    uint8_t copy[100];
    memcpy(copy, frame, len);
    offload_checksum(&h, copy, len);
    memcpy(frame + len - 2, copy + h.csum_start + 14 + 24 + 6, 2); /* what makes the rest's sum ones */
    offload_checksum(&again, frame, len);
    assert_int_equal(be16(frame + 14 + 24 + 6), 0xffff);
}

struct parts {
    unsigned n, refuse_at;
    uint8_t data[PAYLOAD_MAX];
    size_t len;
    uint32_t sequence;
    uint8_t flags[2000];
    unsigned id[2000];
};

static bool take(void *opaque, const uint8_t *p, size_t len)
{
    struct parts *parts = opaque;
    struct offload_frame f;

    if (parts->n == parts->refuse_at)
        return false;
    assert_sums(p, len, &f);
    if (parts->n == 0)
        parts->sequence = be32(p + f.l4 + 4);
    assert_int_equal(be32(p + f.l4 + 4), parts->sequence + (uint32_t)parts->len);
    parts->flags[parts->n] = p[f.l4 + 13];
    parts->id[parts->n++] = f.version == 4 ? be16(p + f.l3 + 4) : 0;
    memcpy(parts->data + parts->len, p + f.payload, f.end - f.payload);
    parts->len += f.end - f.payload;
    return true;
}

static void long_segments_are_cut(void **state)
{
    static const size_t lengths[] = {1, 1448, 1449, 2896, 2897, 60000};
    struct parts *parts = malloc(sizeof *parts);
    struct net_header h;
    unsigned total;

    for (unsigned version = 4; version <= 6; version += 2)
        for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
            size_t len = make(&h, version, version == 6, IPPROTO_TCP, lengths[i]);
            h.gso_type = (uint8_t)((version == 4 ? NET_SEGMENT_TCP4 : NET_SEGMENT_TCP6) | NET_SEGMENT_ECN);
            h.gso_size = 1448;
            assert_true(offload_check(&h, frame, len));
            *parts = (struct parts){.refuse_at = 3};
            unsigned done = offload_segment(&h, frame, len, 0, take, parts, &total);
            assert_int_equal(total, (lengths[i] + 1447) / 1448);
            assert_int_equal(done, total < 3 ? total : 3);
            parts->refuse_at = ~0u; /* and goes on where it was stopped */
            assert_int_equal(offload_segment(&h, frame, len, done, take, parts, &total), total);
            assert_int_equal(parts->n, total);
            assert_int_equal(parts->len, lengths[i]);
            assert_memory_equal(parts->data, payload, lengths[i]);
            for (unsigned k = 0; k < total; k++) {
                uint8_t flags = 0x10 | (k == 0 ? 0x80 : 0) | (k + 1 == total ? 9 : 0);
                assert_int_equal(parts->flags[k], flags);
                assert_int_equal(parts->id[k], version == 4 ? (0xfffe + k) & 0xffff : 0);
            }
        }
    free(parts);
}

static void headers_that_lie(void **state)
{
    struct net_header good, h;
    size_t len = make(&good, 4, 0, IPPROTO_TCP, 5000);

    good.gso_type = NET_SEGMENT_TCP4;
    good.gso_size = 1000;
    h = good;
    assert_true(offload_check(&h, frame, len));
    assert_int_equal(h.hdr_len, 14 + 24 + 32);
#define LIE(change)                                                                                                    \
    do {                                                                                                               \
        h = good;                                                                                                      \
        change;                                                                                                        \
        assert_false(offload_check(&h, frame, len));                                                                   \
    } while (0)
    LIE(h.gso_type = NET_SEGMENT_TCP6);
    LIE(h.gso_type = 3); /* UDP fragments are not offered */
    LIE(h.gso_type = 0x7f);
    LIE(h.gso_size = 0);
    LIE(h.gso_size = 1);
    LIE(h.flags = 0);
    LIE(h.csum_start = 0xffff);
    LIE(h.csum_start = (uint16_t)(len - 1));
    LIE(h.csum_start = 37);
    LIE(h.csum_offset = 0xffff);
    LIE(h.csum_offset = 6);
    LIE(len = 13);
    len = make(&good, 4, 0, IPPROTO_TCP, 5000);
    good.gso_type = NET_SEGMENT_TCP4;
    good.gso_size = 1000;
    LIE(frame[14] = 0x4f; frame[14 + 60 + 12] = 0x10); /* a TCP header of 4 bytes */
    frame[14] = 0x46;
    LIE(put16be(frame + 16, 0xffff)); /* longer than the frame */
    LIE(put16be(frame + 16, 20));     /* shorter than its own header */
    make(&h, 4, 0, IPPROTO_TCP, 5000);
    LIE(frame[20] = 0x20); /* a fragment */
    make(&h, 6, 0, IPPROTO_TCP, 5000);
    LIE(frame[14 + 6] = IPPROTO_UDP);
}

static void anything_at_all(void **state)
{
    struct parts *parts = malloc(sizeof *parts);
    uint64_t seed = 99;
    unsigned total, passed = 0;

    for (unsigned round = 0; round < 200000; round++) {
        struct net_header h;
        size_t len = make(&h, round % 2 ? 4 : 6, round % 3, IPPROTO_TCP, 300);
        h.gso_type = round % 2 ? NET_SEGMENT_TCP4 : NET_SEGMENT_TCP6;
        h.gso_size = 100;
        for (unsigned i = 0; i < round % 5; i++) {
            seed = seed * 6364136223846793005ull + 1442695040888963407ull;
            if (seed >> 63)
                frame[(seed >> 40) % 120] = (uint8_t)(seed >> 32);
            else
                ((uint8_t *)&h)[(seed >> 40) % sizeof h] = (uint8_t)(seed >> 32);
            if ((seed >> 20) % 8 == 0)
                len = (seed >> 24) % len + 1;
        }
        if (!offload_check(&h, frame, len))
            continue;
        passed++;
        if (offload_is_long(&h)) {
            *parts = (struct parts){.refuse_at = 0};
            assert_int_equal(offload_segment(&h, frame, len, 0, take, parts, &total), 0);
            assert_in_range(total, 1, 1400);
        } else {
            offload_checksum(&h, frame, len);
        }
    }
    assert_in_range(passed, 20000, 200000);
    free(parts);
}

#define T(name) cmocka_unit_test(name)
int main(void)
{
    const struct CMUnitTest tests[] = {T(sums),
                                       T(checksums_are_completed),
                                       T(padding_is_not_summed),
                                       T(udp_sum_of_zero),
                                       T(long_segments_are_cut),
                                       T(headers_that_lie),
                                       T(anything_at_all)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
