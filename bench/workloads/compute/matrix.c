/* A product of two square matrices of doubles as in a textbook, rows times columns: scalar SSE2, strided loads. */
/* quick: yes */
#include "bench.h"
#include <string.h>

#define N 360

static double a[N][N], b[N][N], c[N][N];

static void multiply(void)
{
    for (int i = 0; i < N; i++)
        for (int j = 0; j < N; j++) {
            double sum = 0;
            for (int k = 0; k < N; k++)
                sum += a[i][k] * b[k][j];
            c[i][j] = sum;
        }
}

int main(void)
{
    uint64_t seed = 521288629ull, sum = 0;
    for (int i = 0; i < N; i++)
        for (int j = 0; j < N; j++) {
            /* no round numbers: QEMU's fast path for doubles is only for inexact results */
            a[i][j] = (double)(next_random(&seed) % 1000) / 7;
            b[i][j] = (double)(next_random(&seed) % 1000) / 11;
        }
    double start = now();
    for (long pass = 0; pass < 3 * scale(); pass++)
        multiply();
    double seconds = now() - start;
    for (int i = 0; i < N; i++)
        for (int j = 0; j < N; j++) {
            uint64_t bits;
            memcpy(&bits, &c[i][j], sizeof bits);
            sum = sum * 31 + bits;
        }
    report("matrix", seconds, sum);
    return 0;
}
