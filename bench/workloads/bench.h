/* What every benchmark program shares: a clock and one line of output. */
#pragma once
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

static inline double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

/* How many times the work is done that a quick run does once: `--scale` of bench/run.sh. */
static inline long scale(void)
{
    const char *s = getenv("scale");
    return s ? atol(s) : 1;
}

/* A small generator so that every machine sorts, hashes and multiplies the same data. */
static inline uint64_t next_random(uint64_t *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}

static inline void report(const char *name, double seconds, uint64_t checksum)
{
    printf("%s, s\t%.6f\t%016llx\n", name, seconds, (unsigned long long)checksum);
    fflush(stdout);
}
