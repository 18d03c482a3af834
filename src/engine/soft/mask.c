/*
 * Masked accesses: which bytes an instruction will really touch, by the mask registers as they are now.
 */
#include "engine/soft/soft_int.h"

static uint64_t read_k(unsigned k)
{
    uint64_t r = 0;
    switch (k) {
    case 1:
        __asm__ volatile("kmovq %%k1, %0" : "=r"(r));
        break;
    case 2:
        __asm__ volatile("kmovq %%k2, %0" : "=r"(r));
        break;
    case 3:
        __asm__ volatile("kmovq %%k3, %0" : "=r"(r));
        break;
    case 4:
        __asm__ volatile("kmovq %%k4, %0" : "=r"(r));
        break;
    case 5:
        __asm__ volatile("kmovq %%k5, %0" : "=r"(r));
        break;
    case 6:
        __asm__ volatile("kmovq %%k6, %0" : "=r"(r));
        break;
    case 7:
        __asm__ volatile("kmovq %%k7, %0" : "=r"(r));
        break;
    default:
        r = ~0ull;
    }
    return r;
}

#define YMM(n)                                                                                                         \
    case n:                                                                                                            \
        __asm__ volatile("vmovdqu %%ymm" #n ", (%0)" ::"r"(out) : "memory");                                           \
        break

static void read_ymm(unsigned n, uint8_t out[32])
{
    switch (n) {
        YMM(0);
        YMM(1);
        YMM(2);
        YMM(3);
        YMM(4);
        YMM(5);
        YMM(6);
        YMM(7);
        YMM(8);
        YMM(9);
        YMM(10);
        YMM(11);
        YMM(12);
        YMM(13);
        YMM(14);
        YMM(15);
    }
}

/* Which elements the instruction will really touch, bit i for element i. */
static uint64_t active_elements(const struct site *s)
{
    if (s->mask_kind == MASK_K) {
        uint64_t k = read_k(s->mask_reg);
        if (s->arg == 1) { /* broadcast: an element is used when any of its copies is */
            uint64_t used = 0;
            for (unsigned i = 0; i < s->arg2; i++)
                used |= (k >> i & 1) << i % (s->size / s->element);
            return used;
        }
        if (s->arg == 2) { /* compress, expand: packed from the start */
            unsigned n = (unsigned)__builtin_popcountll(
                k & (s->size / s->element >= 64 ? ~0ull : (1ull << s->size / s->element) - 1));
            return n >= 64 ? ~0ull : (1ull << n) - 1;
        }
        return k;
    }
    uint8_t ymm[32];
    uint64_t bits = 0;
    read_ymm(s->mask_reg, ymm);
    for (unsigned i = 0; i < s->size / s->element; i++)
        bits |= (uint64_t)(ymm[(i + 1) * s->element - 1] >> 7) << i;
    return bits;
}

uint64_t soft_active_bytes(const struct site *s)
{
    if (s->mask_kind == MASK_NONE)
        return ~0ull;
    uint64_t elements = active_elements(s), bytes = 0;
    unsigned n = s->size / s->element;
    for (unsigned i = 0; i < n && i < 64; i++)
        if (elements >> i & 1)
            bytes |= (s->element >= 8 ? 0xffull : (1ull << s->element) - 1) << i * s->element;
    return bytes;
}
