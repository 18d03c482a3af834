/* The Mandelbrot set in extended precision: the old stack of registers. */
#include "bench.h"

static unsigned escape(long double cr, long double ci)
{
    long double r = 0, i = 0;
    unsigned n = 0;
    for (; n < 250 && r * r + i * i < 4; n++) {
        long double next = r * r - i * i + cr;
        i = 2 * r * i + ci;
        r = next;
    }
    return n;
}

int main(void)
{
    uint64_t sum = 0;
    double start = now();
    for (long y = 0; y < 240 * scale(); y++)
        for (int x = 0; x < 320; x++)
            sum = sum * 31 + escape(x / 128.0L - 1.75L, y % 240 / 120.0L - 1.0L);
    report("x87", now() - start, sum);
    return 0;
}
