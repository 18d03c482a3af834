/*
 * One time on all CPUs: what a thread reads is not before what another has read and told of.
 */
#include "smp.h"

static struct meeting meeting;
static double since;
static bool over;
static _Alignas(128) uint64_t latest;
static uint64_t (*read_clock)(void);
static const char *clock_name;

static uint64_t by_tsc(void)
{
    __builtin_ia32_lfence();
    return tsc();
}

static uint64_t by_tscp(void)
{
    unsigned cpu;
    return __builtin_ia32_rdtscp(&cpu);
}

static uint64_t ns_of(clockid_t id)
{
    struct timespec t;
    clock_gettime(id, &t);
    return (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec;
}

static uint64_t monotonic(void)
{
    return ns_of(CLOCK_MONOTONIC);
}
static uint64_t raw(void)
{
    return ns_of(CLOCK_MONOTONIC_RAW);
}
static uint64_t boottime(void)
{
    return ns_of(CLOCK_BOOTTIME);
}
static uint64_t realtime(void)
{
    return ns_of(CLOCK_REALTIME);
}
static uint64_t by_call(void) /* the kernel's own, not the vDSO's */
{
    struct timespec t;
    syscall(SYS_clock_gettime, CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec;
}

static const struct {
    const char *name;
    uint64_t (*read)(void);
} clocks[] = {{"RDTSC", by_tsc},
              {"RDTSCP", by_tscp},
              {"CLOCK_MONOTONIC", monotonic},
              {"CLOCK_MONOTONIC_RAW", raw},
              {"CLOCK_BOOTTIME", boottime},
              {"CLOCK_REALTIME", realtime},
              {"clock_gettime of the kernel's", by_call}};
enum { CLOCKS = sizeof clocks / sizeof *clocks };

static void clock_thread(unsigned me)
{
    meet(&meeting);
    for (unsigned i = 0; !__atomic_load_n(&over, __ATOMIC_RELAXED); i++) {
        uint64_t told = __atomic_load_n(&latest, __ATOMIC_ACQUIRE);
        const uint64_t t = read_clock();
        if (t < told)
            complain("%s: %lu behind what another CPU has read", clock_name, told - t);
        while (t > told && !__atomic_compare_exchange_n(&latest, &told, t, false, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE))
            ;
        if (me == 0 && i % 64 == 0 && !time_left(since, 0.06))
            __atomic_store_n(&over, true, __ATOMIC_RELAXED);
    }
}

static const char *never_backwards(void)
{
    const unsigned n = n_cpus < 8 ? n_cpus : 8;
    for (unsigned i = 0; i < CLOCKS; i++) {
        read_clock = clocks[i].read, clock_name = clocks[i].name;
        latest = 0, over = false, since = now();
        meeting = (struct meeting){.n = n};
        together(n, clock_thread);
    }
    return complaint();
}

static const char *one_thread(void)
{
    uint64_t last[CLOCKS] = {0};
    since = now();
    for (unsigned k = 0; time_left(since, 0.15); k++) {
        pin(k);
        for (unsigned i = 0; i < CLOCKS; i++) {
            const uint64_t t = clocks[i].read();
            if (t < last[i])
                complain("%s: %lu back on CPU %u", clocks[i].name, last[i] - t, k % n_cpus);
            last[i] = t;
        }
    }
    return complaint();
}

/* How fast they go, on each CPU: a difference of a thousandth is a fault, a pause of the host's is none. */
static const char *same_rate(void)
{
    double first = 0;
    const unsigned n = n_cpus < 8 ? n_cpus : 8;
    for (unsigned i = 0; i < n; i++) {
        double best = 1, rate = 0;
        pin(i);
        for (unsigned tries = 0; tries < 3; tries++) {
            uint64_t t[2], a[2];
            double error = 0;
            for (unsigned k = 0; k < 2; k++) {
                a[k] = by_tsc(), t[k] = raw();
                error += (double)(by_tsc() - a[k]);
                if (k == 0)
                    nanosleep(&(struct timespec){0, 5000000}, NULL);
            }
            error /= (double)(a[1] - a[0]);
            if (error < best)
                best = error, rate = (double)(a[1] - a[0]) / (double)(t[1] - t[0]);
        }
        if (i == 0)
            first = rate;
        if (rate < first * 0.999 - first * best || rate > first * 1.001 + first * best)
            complain("%.6f ticks a nanosecond on CPU %u, %.6f on the first", rate, i, first);
    }
    return complaint();
}

const struct check clock_checks[] = {
    {"clocks never go back from CPU to CPU", never_backwards, 2},
    {"clocks never go back for a thread that moves", one_thread, 2},
    {"time goes as fast on each CPU", same_rate, 2},
    {0},
};
