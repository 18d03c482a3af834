/* A system micro-benchmark: an operation repeated until a batch of it takes long enough to time. */
#pragma once
#include "bench.h"

#define BATCH_SECONDS 0.3

/* Runs `operation(n, arg)`, which does n operations and returns how many failed, with growing n;
 * the earlier batches are the warm-up.  Prints nanoseconds for one operation. */
static inline int measure(const char *name, long (*operation)(long n, void *arg), void *arg)
{
    for (long n = 16;; n *= 2) {
        double start = now();
        if (operation(n, arg)) {
            fprintf(stderr, "%s: an operation failed\n", name);
            return 1;
        }
        double seconds = now() - start;
        if (seconds < BATCH_SECONDS)
            continue;
        printf("%s, ns\t%.1f\n", name, seconds * 1e9 / (double)n);
        fflush(stdout);
        return 0;
    }
}
