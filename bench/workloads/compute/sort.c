/* Quicksort of random numbers: loads, stores and branches that mispredict. */
/* quick: yes */
#include "bench.h"
#include <stdlib.h>

#define COUNT 2000000

static void insertion_sort(uint32_t *a, long n)
{
    for (long i = 1; i < n; i++) {
        uint32_t x = a[i];
        long j = i;
        for (; j > 0 && a[j - 1] > x; j--)
            a[j] = a[j - 1];
        a[j] = x;
    }
}

static uint32_t median(uint32_t a, uint32_t b, uint32_t c)
{
    if (a < b)
        return b < c ? b : a < c ? c : a;
    return a < c ? a : b < c ? c : b;
}

static void quicksort(uint32_t *a, long n)
{
    while (n > 16) {
        uint32_t pivot = median(a[0], a[n / 2], a[n - 1]);
        long i = 0, j = n - 1;
        while (i <= j) {
            while (a[i] < pivot)
                i++;
            while (a[j] > pivot)
                j--;
            if (i <= j) {
                uint32_t t = a[i];
                a[i++] = a[j];
                a[j--] = t;
            }
        }
        if (j + 1 < n - i) { /* recurse into the smaller part: the stack stays short */
            quicksort(a, j + 1);
            a += i;
            n -= i;
        } else {
            quicksort(a + i, n - i);
            n = j + 1;
        }
    }
    insertion_sort(a, n);
}

int main(void)
{
    uint32_t *a = malloc(COUNT * sizeof *a);
    uint64_t seed = 362436069ull, sum = 0;
    double seconds = 0;
    if (!a)
        return 1;
    for (long pass = 0; pass < scale(); pass++) {
        for (long i = 0; i < COUNT; i++)
            a[i] = (uint32_t)(next_random(&seed) >> 20);
        double start = now();
        quicksort(a, COUNT);
        seconds += now() - start;
    }
    for (long i = 0; i < COUNT; i++) {
        if (i && a[i - 1] > a[i])
            return 1;
        sum = sum * 31 + a[i];
    }
    report("sort", seconds, sum);
    return 0;
}
