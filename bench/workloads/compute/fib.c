/* Fibonacci by plain recursion: calls and returns. */
/* quick: yes */
#include "bench.h"

static __attribute__((noinline, noclone)) unsigned long fib(unsigned n)
{
    if (n < 2)
        return n;
    unsigned long x = fib(n - 1);
    unsigned long y = fib(n - 2);
    __asm__ volatile("" : "+r"(x), "+r"(y)); /* keeps both calls: no loop with an accumulator */
    return x + y;
}

int main(void)
{
    double start = now();
    unsigned long x = 0;
    for (long i = 0; i < scale(); i++)
        x += fib(38);
    report("fib", now() - start, x);
    return 0;
}
