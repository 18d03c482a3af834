/*
 * CPUs that go and come again while others, and they themselves, have work.
 */
#include "smp.h"

#include <fcntl.h>

static double since;
static bool over;

static bool set_online(unsigned cpu, bool online)
{
    char path[64];
    snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu%u/online", cpu);
    const int fd = open(path, O_WRONLY | O_CLOEXEC);
    const bool done = fd >= 0 && write(fd, online ? "1" : "0", 1) == 1;
    if (!done)
        complain("%s: %s", path, strerror(errno));
    if (fd >= 0)
        close(fd);
    return done;
}

static uint64_t compute(void)
{
    uint64_t x = 1;
    for (unsigned i = 0; i < 100000; i++)
        x = (x ^ x >> 29) * 0x9e3779b97f4a7c15ull + i;
    return x;
}

static void *work(void *unused)
{
    const uint64_t wanted = compute();
    double last = now();
    (void)unused;
    for (unsigned i = 0; !__atomic_load_n(&over, __ATOMIC_RELAXED); i++) {
        if (compute() != wanted)
            complain("other results");
        const double t = now();
        if (t < last)
            complain("the clock goes back by %g s", last - t);
        last = t;
        if (i % 16 == 0)
            nanosleep(&(struct timespec){0, 10000}, NULL);
    }
    return NULL;
}

static void cycle(unsigned cpu)
{
    if (!set_online(cpu, false))
        return;
    if (sysconf(_SC_NPROCESSORS_ONLN) != n_cpus - 1)
        complain("%ld CPUs without CPU %u", sysconf(_SC_NPROCESSORS_ONLN), cpu);
    if (!set_online(cpu, true))
        return;
    pin(cpu);
    if (sched_getcpu() != (int)cpu)
        complain("CPU %u is not used again", cpu);
    pin(0);
}

static const char *again_and_again(void)
{
    pthread_t workers[8];
    unsigned cycles = 0;
    if (!in_guest)
        return NULL;
    const unsigned n = n_cpus < 8 ? n_cpus : 8;
    since = now();
    for (unsigned i = 0; i < n; i++)
        pthread_create(&workers[i], NULL, work, NULL);
    for (; (cycles < n_cpus || time_left(since, 0.6)) && !complaint(); cycles++)
        cycle(1 + cycles % (n_cpus - 1));
    __atomic_store_n(&over, true, __ATOMIC_RELAXED);
    for (unsigned i = 0; i < n; i++)
        pthread_join(workers[i], NULL);
    return complaint();
}

const struct check hotplug_checks[] = {{"CPUs go and come again", again_and_again, 2}, {0}};
