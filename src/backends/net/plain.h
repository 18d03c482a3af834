/* For backends whose world knows neither open checksums nor long segments: frames as they go over a wire. */
#pragma once
#include "backends/net.h"

struct net_plain {
    unsigned done; /* parts of the long segment at hand that are sent */
    uint8_t frame[NET_FRAME_MAX];
};

/* Sends the guest's frame by `emit`, finished.  false: emit has said so; the same frame is offered again later and goes
 * on where it stopped. */
bool net_plain_send(struct net_plain *p, const struct iovec *iov, unsigned n,
                    bool (*emit)(void *opaque, const uint8_t *frame, size_t len), void *opaque);
