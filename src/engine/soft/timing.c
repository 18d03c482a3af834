/*
 * Where time goes, for --stats: the ways out of translated code once more, each with a clock around it.
 *
 * Installed in place of the plain ones when the engine is created with `timing`, so that nothing is paid
 * otherwise.  Translated code's share is what is left of the time in the run loop.
 */
#include "engine/soft/soft_int.h"

const void *soft_timed_slow(struct soft_vcpu *v);
const void *soft_timed_window(struct soft_vcpu *v);
const void *soft_timed_demote(struct soft_vcpu *v);
const void *soft_timed_commit(struct soft_vcpu *v);
const void *soft_timed_helper(struct soft_vcpu *v);
const void *soft_timed_exit(struct soft_vcpu *v);
const void *soft_timed_hot(struct soft_vcpu *v);
const void *soft_timed_ibtc_miss(struct soft_vcpu *v);
extern const char soft_timed_glue_slow[], soft_timed_glue_window[], soft_timed_glue_demote[], soft_timed_glue_commit[],
    soft_timed_glue_helper[], soft_timed_glue_exit[], soft_timed_glue_hot[], soft_timed_glue_ibtc_miss[];

#define TIMED(name, kind)                                                                                              \
    const void *soft_timed_##name(struct soft_vcpu *v)                                                                 \
    {                                                                                                                  \
        uint64_t start = __builtin_ia32_rdtsc();                                                                       \
        v->nested_ticks = 0;                                                                                           \
        const void *next = soft_##name(v);                                                                             \
        v->stats.ticks[kind] += __builtin_ia32_rdtsc() - start - v->nested_ticks;                                      \
        return next;                                                                                                   \
    }
TIMED(slow, TIME_MMU)
TIMED(window, TIME_MMU)
TIMED(demote, TIME_BRANCH)
TIMED(commit, TIME_MMU)
TIMED(helper, TIME_HELPER)
TIMED(exit, TIME_BRANCH)
TIMED(hot, TIME_BRANCH)
TIMED(ibtc_miss, TIME_BRANCH)

void soft_ticks_nested(struct soft_vcpu *v, enum time_kind kind, uint64_t start)
{
    if (!v->engine->config.timing)
        return;
    uint64_t ticks = __builtin_ia32_rdtsc() - start;
    v->stats.ticks[kind] += ticks;
    v->nested_ticks += ticks;
}

void soft_timing_install(struct soft_vcpu *v)
{
    v->glue_slow = soft_timed_glue_slow;
    v->glue_window = soft_timed_glue_window;
    v->glue_demote = soft_timed_glue_demote;
    v->glue_commit = soft_timed_glue_commit;
    v->glue_helper = soft_timed_glue_helper;
    v->glue_exit = soft_timed_glue_exit;
    v->glue_hot = soft_timed_glue_hot;
    v->glue_ibtc_miss = soft_timed_glue_ibtc_miss;
}

void soft_timing_print(const struct soft_vcpu *v, FILE *out)
{
    static const char *const names[TIME_KINDS] = {"translated code", "memory slow paths", "instructions in C",
                                                  "finding blocks",  "translating",       "devices"};
    const uint64_t *ticks = v->stats.ticks;
    uint64_t other = 0, khz = v->engine->tsc_khz ? v->engine->tsc_khz : 1;
    for (unsigned i = 1; i < TIME_KINDS; i++)
        other += ticks[i];
    for (unsigned i = 0; i < TIME_KINDS; i++) {
        uint64_t t = i ? ticks[i] : ticks[0] > other ? ticks[0] - other : 0;
        uint64_t ms = t / khz, share = ticks[0] ? t * 1000 / ticks[0] : 0;
        fprintf(out, "  time in %-18s %7llu ms %3llu.%llu %%\n", names[i], (unsigned long long)ms,
                (unsigned long long)(share / 10), (unsigned long long)(share % 10));
    }
}
