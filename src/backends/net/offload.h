/*
 * What a network card would do to a frame on its way out: the checksum that the sender left open, and cutting a long
 * TCP segment to frames that a wire takes.  All of it on input of strangers: a header and a frame that do not agree
 * are refused.
 */
#pragma once
#include "backends/net.h"

/* Offsets into the frame. */
struct offload_frame {
    unsigned l3, l4, payload; /* payload: behind the TCP or UDP header; 0 for other protocols and fragments */
    unsigned version;         /* of IP: 4, 6, or 0: another protocol */
    uint8_t protocol;         /* IPPROTO_... */
    unsigned end;             /* of the IP packet: what is behind it is padding */
};

enum { OFFLOAD_CSUM_TCP = 16, OFFLOAD_CSUM_UDP = 6 }; /* offset of the checksum in its header */

/* false: the frame is too short, or its IP header does not fit it. */
bool offload_parse(const uint8_t *frame, size_t len, struct offload_frame *f);

/* Adds the words of p[0..len) to a sum in the network's order; fold turns it into 16 bits (RFC 1071). */
uint64_t offload_sum(const uint8_t *p, size_t len, uint64_t sum);
uint16_t offload_fold(uint64_t sum);
/* The pseudo header's part, for an upper-layer packet of `len` bytes (RFC 9293 3.1, RFC 8200 8.1). */
uint64_t offload_pseudo(const uint8_t *frame, const struct offload_frame *f, unsigned len);

/* Does the header fit the frame?  Clears what is meaningless in it.  false: drop the frame. */
bool offload_check(struct net_header *h, const uint8_t *frame, size_t len);

/* Computes the checksum that the header asks for, in place, and clears the request.  After offload_check. */
void offload_checksum(struct net_header *h, uint8_t *frame, size_t len);

static inline bool offload_is_long(const struct net_header *h)
{
    return h->gso_type != NET_SEGMENT_NONE;
}

/*
 * Cuts a long TCP segment: `emit` gets frames with complete checksums, from the `first` on.  A false from it ends the
 * work; returns how many frames, of *total, are then done.  After offload_check.
 */
unsigned offload_segment(const struct net_header *h, const uint8_t *frame, size_t len, unsigned first,
                         bool (*emit)(void *opaque, const uint8_t *frame, size_t len), void *opaque, unsigned *total);
