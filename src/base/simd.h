/*
 * The guest's SIMD registers, put aside: who is called while they are live in the host's, and calls libc, which uses
 * those as it likes, does so between these two.  Its caller is built, as they are, for general registers only.
 *
 * x87, SSE, AVX and AVX-512, as an XSAVE area (SDM vol. 1, 13.4).
 */
#pragma once
#include <stdint.h>

#define SIMD_COMPONENTS 0xe7u
#define SIMD_AREA 2816u
#define SIMD_GENERAL __attribute__((target("general-regs-only")))

struct simd_area {
    uint8_t bytes[SIMD_AREA];
} __attribute__((aligned(64)));

SIMD_GENERAL static inline void simd_put_aside(struct simd_area *area)
{
    static const uint32_t mxcsr = 0x1f80;
    void *header = area->bytes + 512; /* of which XSAVE writes a part */
    uint64_t size = 64;

    __asm__ volatile("rep stosb" : "+D"(header), "+c"(size) : "a"(0) : "memory");
    __asm__ volatile("xsave64 (%0)" ::"r"(area), "a"(SIMD_COMPONENTS), "d"(0) : "memory");
    __asm__ volatile("fninit\n ldmxcsr %0" ::"m"(mxcsr));
}

SIMD_GENERAL static inline void simd_take_back(struct simd_area *area)
{
    __asm__ volatile("xrstor64 (%0)" ::"r"(area), "a"(SIMD_COMPONENTS), "d"(0) : "memory");
}
