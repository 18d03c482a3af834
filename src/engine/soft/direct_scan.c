/*
 * Looking through a page of code for instructions that a program must not run directly, sixteen bytes at a time: each
 * page is looked through whenever it is mapped, and memchr() for 0x0f stops at every fiftieth byte of it.
 *
 * Called with the guest's SIMD state parked.
 */
#include <emmintrin.h>

#include "engine/soft/direct.h"

/* CPUID; RDPID and XSAVEC; RDPKRU, WRPKRU and XGETBV; XSAVE, WRFSBASE and WRGSBASE; LSL. */
static const uint8_t seconds[] = {0xa2, 0xc7, 0x01, 0xae, 0x03};

static bool is_second(uint8_t byte)
{
    bool is = false;
    for (unsigned i = 0; i < sizeof seconds; i++)
        is |= byte == seconds[i];
    return is;
}

static unsigned candidates(const uint8_t *p)
{
    const __m128i first = _mm_cmpeq_epi8(_mm_loadu_si128((const __m128i *)p), _mm_set1_epi8(0x0f)),
                  next = _mm_loadu_si128((const __m128i *)(p + 1));
    __m128i any = _mm_setzero_si128();
    for (unsigned i = 0; i < sizeof seconds; i++)
        any = _mm_or_si128(any, _mm_cmpeq_epi8(next, _mm_set1_epi8((char)seconds[i])));
    return (unsigned)_mm_movemask_epi8(_mm_and_si128(first, any));
}

const uint8_t *scan_special(const uint8_t *p, const uint8_t *end)
{
    for (; end - p > 16; p += 16) {
        const unsigned found = candidates(p);
        if (found)
            return p + __builtin_ctz(found);
    }
    for (; end - p > 1; p++)
        if (p[0] == 0x0f && is_second(p[1]))
            return p;
    return NULL;
}
