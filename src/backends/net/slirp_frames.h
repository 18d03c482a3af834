/*
 * Between the card's frames and libslirp's, which knows no offloads: its checksums are complete, its packets of any
 * length up to the MTU that it was told.  It is told the longest, so that a TCP segment of the guest goes in whole, and
 * one for the guest comes out long and is passed on as such, to be cut by the guest's card if at all.
 *
 * How long a segment for the guest is the guest's SYN says (its MSS option, RFC 9293 3.7.1): that of an Ethernet is
 * raised on its way in.  One below an Ethernet's (a tunnel inside the guest) is left, so such connections get no long
 * ones.
 */
#pragma once
#include <stddef.h>
#include <stdint.h>

#include "backends/net.h"

struct worker_out;

/* A frame of the guest, of any kind, changed in place: `feed` gets what libslirp takes, no times or once or more. */
void slirp_frames_in(struct net_header *h, uint8_t *frame, size_t len,
                     void (*feed)(void *opaque, const uint8_t *frame, size_t len), void *opaque);

/* A frame of libslirp's: passed on, or in fragments if it is too long for an Ethernet. */
void slirp_frames_out(struct worker_out *out, const uint8_t *frame, size_t len);
