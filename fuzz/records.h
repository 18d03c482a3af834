/* Messages between a VM and its network's helper (backends/net/wire.h): records of frames among a few addresses. */
#pragma once
#include "fixture.h"

#define FUZZ_WIRE_MAX 130000u /* no message is longer */

/* A few records that are right but for what the input wants. */
static inline size_t fuzz_wire_message(struct fuzz_input *in, uint8_t *out)
{
    uint8_t how = fuzz_u8(in);
    size_t at = 0;

    for (unsigned n = 1 + how % 4; n; n--) {
        uint8_t macs = fuzz_u8(in);
        uint32_t len = how & 0x40 ? fuzz_u16(in) >> (macs == 0xff ? 0 : 3) : 14 + fuzz_u8(in) % 64;
        uint8_t *frame = out + at + 16;
        if (how & 0x80 && n == 1)
            len = fuzz_u32(in);
        memcpy(out + at, &len, sizeof len);
        fuzz_bytes(in, out + at + 4, how & 0x20 ? 12 : 0);
        memset(frame, 0, 14);
        frame[0] = macs & 1; /* a group */
        frame[5] = macs >> 1 & 7;
        frame[6] = macs >> 7;
        frame[11] = macs >> 4 & 7;
        at += 16 + (len < 0x10000 ? (len + 3) & ~3u : 0);
        if (at > 60000)
            break;
    }
    return how & 0x10 ? at - fuzz_u8(in) % 16 : at;
}
