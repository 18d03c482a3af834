/* Single-precision filter and dot products over arrays, by AVX2 and FMA as gcc makes them. */
/* options: -O3 -mavx2 -mfma -ffast-math */
/* quick: yes */
#include "bench.h"
#include <string.h>

#define N 8192
#define TAPS 32

static float in[N + TAPS], out[N], tap[TAPS];

static void filter(void)
{
    for (int i = 0; i < N; i++) {
        float sum = 0;
        for (int k = 0; k < TAPS; k++)
            sum += in[i + k] * tap[k];
        out[i] = sum;
    }
}

int main(void)
{
    uint64_t seed = 362436069ull, sum = 0;

    for (int i = 0; i < N + TAPS; i++)
        in[i] = (float)(next_random(&seed) % 64);
    for (int k = 0; k < TAPS; k++)
        tap[k] = (float)(k % 5) - 2; /* whole numbers: exact, in whatever order they are added */
    double start = now();
    for (long pass = 0; pass < 8000 * scale(); pass++) {
        filter();
        __asm__ volatile("" : : "r"(out) : "memory");
    }
    double seconds = now() - start;
    for (int i = 0; i < N; i++) {
        uint32_t bits;
        memcpy(&bits, &out[i], sizeof bits);
        sum = sum * 31 + bits;
    }
    report("simd", seconds, sum);
    return 0;
}
