/* The SIMD registers of a saved machine, which anybody may have made: the same for every engine. */
#pragma once
#include <errno.h>
#include <string.h>

#include "engine/engine.h"

enum { SIMD_LEGACY = 512, SIMD_HEADER = 64, SIMD_MXCSR = 24 };

/* What XRSTOR would refuse is not in `area` afterwards, nor are others than these components: it runs in the host.
 * -EINVAL: there are too few bytes, or too many. */
static inline int simd_area_take(uint8_t area[ENGINE_SIMD_MAX], const uint8_t *bytes, size_t n, uint64_t components)
{
    uint64_t has;
    uint32_t mxcsr;

    if (n < SIMD_LEGACY + SIMD_HEADER || n > ENGINE_SIMD_MAX)
        return -EINVAL;
    memset(area, 0, ENGINE_SIMD_MAX);
    memcpy(area, bytes, n);
    memcpy(&mxcsr, area + SIMD_MXCSR, sizeof mxcsr);
    mxcsr &= 0xffff;
    memcpy(area + SIMD_MXCSR, &mxcsr, sizeof mxcsr);
    memcpy(&has, area + SIMD_LEGACY, sizeof has);
    has &= components;
    memset(area + SIMD_LEGACY, 0, SIMD_HEADER);
    memcpy(area + SIMD_LEGACY, &has, sizeof has);
    return 0;
}
