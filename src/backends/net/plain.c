#include "backends/net/plain.h"

#include <string.h>

#include "backends/net/offload.h"

bool net_plain_send(struct net_plain *p, const struct iovec *iov, unsigned n,
                    bool (*emit)(void *opaque, const uint8_t *frame, size_t len), void *opaque)
{
    struct net_header h;
    size_t len = 0;
    unsigned total;

    memcpy(&h, iov[0].iov_base, sizeof h);
    for (unsigned i = 1; i < n; len += iov[i++].iov_len)
        memcpy(p->frame + len, iov[i].iov_base, iov[i].iov_len);
    if (!offload_check(&h, p->frame, len))
        return true;
    if (!offload_is_long(&h)) {
        offload_checksum(&h, p->frame, len);
        p->done = 0;
        return emit(opaque, p->frame, len);
    }
    unsigned done = offload_segment(&h, p->frame, len, p->done, emit, opaque, &total);
    p->done = done < total ? done : 0;
    return done >= total;
}
