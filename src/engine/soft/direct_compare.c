/*
 * Which tier is faster, for a program whose exits are close to one another.
 *
 * How much faster code runs directly is not known beforehand: a third for ciphers in vector registers, four times for
 * an interpreter.  Where it runs but some microseconds between two exits, it is measured: a program that does the same
 * again and again, as many system calls in each of some windows of time, gets translated code for a few
 * ticks, and the tier that did more of them keeps it.
 */
#include <Zydis/Zydis.h>

#include "engine/soft/direct.h"

#define WINDOW_MS 4u
#define STEADY 4u       /* windows that were alike */
#define CLOSE_US 20u    /* from one event to the next */
#define TRIAL_MS 16u    /* of translated code, of which the first half is for getting warm */
#define AGAIN_TICKS 64u /* from one trial to the next, at first: each that changes nothing doubles it */
#define AGAIN_MOST 4096u

/* Page faults do not count: how many there are says what a program is about, not how fast it is. */
static uint64_t events_so_far(const struct direct *d)
{
    return d->engine->vcpu->stats.by_mnemonic[ZYDIS_MNEMONIC_SYSCALL];
}

static uint64_t ms_ticks(const struct direct *d, uint64_t ms)
{
    return ms * d->engine->tsc_khz;
}

void compare_begin(const struct direct *d, struct compare *c)
{
    c->start = __builtin_ia32_rdtsc();
    c->events = events_so_far(d);
    c->loads = d->loads;
}

/* Events in a second, since compare_begin(); 0: another program has run, and it says nothing. */
static uint64_t rate(const struct direct *d, const struct compare *c)
{
    const uint64_t ticks = __builtin_ia32_rdtsc() - c->start;
    return c->loads != d->loads || !ticks ? 0 : (events_so_far(d) - c->events) * d->engine->tsc_khz * 1000 / ticks;
}

static bool alike(uint64_t a, uint64_t b)
{
    return a > b ? a - b <= a / 4 : b - a <= b / 4;
}

bool compare_wanted(const struct direct *d, struct compare *c)
{
    if (__builtin_ia32_rdtsc() - c->start < ms_ticks(d, WINDOW_MS))
        return false;
    const uint64_t now = rate(d, c);
    c->steady = now >= 1000000 / CLOSE_US && alike(now, c->direct) ? c->steady + 1 : 0;
    c->direct = now;
    compare_begin(d, c);
    if (c->steady < STEADY || c->wait)
        return false;
    c->steady = 0;
    c->trial = 1;
    return true;
}

enum compare_result compare_tick(const struct direct *d, struct compare *c)
{
    c->wait -= c->wait > 0;
    if (!c->trial)
        return COMPARE_NOTHING;
    if (__builtin_ia32_rdtsc() - c->start < ms_ticks(d, TRIAL_MS / 2))
        return COMPARE_GOES_ON;
    if (c->trial == 1) {
        c->trial = 2;
        compare_begin(d, c);
        return COMPARE_GOES_ON;
    }
    const uint64_t translated = rate(d, c);
    c->trial = 0;
    if (translated > c->direct) {
        c->again = 0;
        c->wait = 0;
        return COMPARE_TRANSLATED;
    }
    c->again = c->again == 0 ? AGAIN_TICKS : c->again < AGAIN_MOST ? 2 * c->again : AGAIN_MOST;
    c->wait = c->again;
    compare_begin(d, c);
    return COMPARE_DIRECT;
}
