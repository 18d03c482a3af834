/*
 * Steal time: how long a vCPU has wanted to run and its thread has had no CPU, for the guest's scheduler and its `top`.
 *
 * It is the time by the clock in which it runs guest code, less the CPU time of its thread and of the processes that
 * run programs for it.  What it waits for devices or for memory of the host's counts, too.
 */
#include "engine/soft/soft_int.h"

#define PERIOD_NS 1000000

static void mark(struct engine *e)
{
    e->steal.wall = soft_clock_ns(CLOCK_MONOTONIC);
    e->steal.cpu = soft_clock_ns(CLOCK_THREAD_CPUTIME_ID) + soft_direct_cpu_ns(e);
}

static bool is_shown(const struct engine *e)
{
    return e->vcpu->cpu.steal_time & 1;
}

void soft_steal_begin(struct engine *e)
{
    if (is_shown(e))
        mark(e);
}

void soft_steal_update(struct engine *e)
{
    if (!is_shown(e) || soft_clock_ns(CLOCK_MONOTONIC) - e->steal.wall < PERIOD_NS)
        return;
    const uint64_t wall = e->steal.wall, cpu = e->steal.cpu;
    mark(e);
    if (!wall) { /* it has just begun to be shown; or the machine was restored: it never goes back */
        e->steal.total = cpu_steal_shown(&e->vcpu->cpu);
        return;
    }
    const uint64_t passed = e->steal.wall - wall, used = e->steal.cpu > cpu ? e->steal.cpu - cpu : 0;
    e->steal.total += passed > used ? passed - used : 0;
    cpu_steal_update(&e->vcpu->cpu, e->steal.total);
}
