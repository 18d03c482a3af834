#include "devices/lapic_int.h"

/*
 * The timer (SDM 11.5.4).  One-shot and periodic are described by the time of their start, so the
 * current count is worked out when asked and no error adds up over periods.
 */

/* The host is not woken more often than this by a periodic timer; missed periods coalesce. */
#define MIN_PERIOD_NS 20000

static unsigned divisor_shift(uint32_t divide)
{
    unsigned code = (divide & 3) | (divide >> 1 & 4);
    return (code + 1) & 7; /* 000 is 2, ..., 110 is 128, 111 is 1 */
}

/* The bus clock is 1 GHz: a bus tick is a nanosecond. */
static uint64_t period_ns(const struct lapic_regs *r)
{
    return (uint64_t)r->initial_count << divisor_shift(r->divide);
}

static uint32_t timer_mode(const struct lapic_regs *r)
{
    return r->lvt[LVT_TIMER] & LVT_TIMER_MODE;
}

static uint64_t guest_tsc(const struct lapic *a)
{
    return __builtin_ia32_rdtsc() + (a->cpu ? (uint64_t)a->cpu->tsc_offset : 0);
}

static uint64_t deadline_from_tsc(const struct lapic *a, uint64_t now_ns)
{
    uint64_t now = guest_tsc(a), khz = a->cpu ? a->cpu->tsc_khz : 0;
    if (a->regs->tsc_deadline <= now || !khz)
        return now_ns;
    unsigned __int128 ns = ((unsigned __int128)(a->regs->tsc_deadline - now) * 1000000 + khz - 1) / khz;
    return ns < INT64_MAX ? now_ns + (uint64_t)ns : INT64_MAX;
}

static uint64_t next_period(const struct lapic_regs *r, uint64_t now)
{
    uint64_t period = period_ns(r);
    uint64_t next = r->timer_start + ((now - r->timer_start) / period + 1) * period;
    return period < MIN_PERIOD_NS ? now + MIN_PERIOD_NS : next;
}

void lapic_timer_arm(struct lapic *a)
{
    struct lapic_regs *r = a->regs;
    uint64_t at = UINT64_MAX, now = clock_ns();
    if (timer_mode(r) & LVT_DEADLINE) {
        if (r->tsc_deadline)
            at = deadline_from_tsc(a, now);
    } else if (r->timer_start && r->initial_count) {
        at = timer_mode(r) == LVT_PERIODIC ? next_period(r, now) : r->timer_start + period_ns(r);
    }
    loop_timer_set(a->set->loop, &a->timer, at);
}

void lapic_timer_fired(void *opaque)
{
    struct lapic *a = opaque;
    struct lapic_regs *r = a->regs;
    if (timer_mode(r) & LVT_DEADLINE) {
        /* The two clocks differ by what NTP slews: the guest must not see its deadline in the future. */
        if (a->cpu && guest_tsc(a) < r->tsc_deadline) {
            lapic_timer_arm(a);
            return;
        }
        r->tsc_deadline = 0;
    } else if (timer_mode(r) == LVT_PERIODIC) {
        lapic_timer_arm(a);
    } else {
        r->timer_start = 0;
    }
    lapic_local(a, LVT_TIMER);
}

uint32_t lapic_timer_count(const struct lapic *a)
{
    const struct lapic_regs *r = a->regs;
    if (!r->timer_start || !r->initial_count || (timer_mode(r) & LVT_DEADLINE))
        return 0;
    uint64_t period = period_ns(r), now = clock_ns();
    uint64_t elapsed = now > r->timer_start ? now - r->timer_start : 0;
    if (timer_mode(r) == LVT_PERIODIC)
        elapsed %= period;
    else if (elapsed >= period)
        return 0;
    return (uint32_t)((period - elapsed) >> divisor_shift(r->divide));
}

void lapic_timer_load(struct lapic *a, uint32_t initial)
{
    struct lapic_regs *r = a->regs;
    if (timer_mode(r) & LVT_DEADLINE)
        return; /* SDM 11.5.4.1: ignored */
    r->initial_count = initial;
    r->timer_start = initial ? clock_ns() : 0;
    lapic_timer_arm(a);
}

/* A new divider applies from now on: the count stays where it is. */
void lapic_timer_set_divide(struct lapic *a, uint32_t divide)
{
    struct lapic_regs *r = a->regs;
    uint64_t count = lapic_timer_count(a);
    r->divide = divide & 0xb;
    if (r->timer_start && r->initial_count) {
        uint64_t gone = ((uint64_t)r->initial_count - count) << divisor_shift(r->divide);
        uint64_t now = clock_ns();
        r->timer_start = now > gone ? now - gone : 1;
        lapic_timer_arm(a);
    }
}

void lapic_timer_set_lvt(struct lapic *a, uint32_t lvt)
{
    struct lapic_regs *r = a->regs;
    uint32_t changed = r->lvt[LVT_TIMER] ^ lvt;
    r->lvt[LVT_TIMER] = lvt;
    if (changed & LVT_DEADLINE) { /* SDM 11.5.4.1: into or out of deadline mode disarms */
        r->tsc_deadline = 0;
        r->timer_start = 0;
        r->initial_count = 0;
    }
    if (changed & LVT_TIMER_MODE)
        lapic_timer_arm(a);
}

void lapic_timer_set_deadline(struct lapic *a, uint64_t tsc)
{
    struct lapic_regs *r = a->regs;
    if (!(timer_mode(r) & LVT_DEADLINE))
        return; /* reads give 0 then, and writes go nowhere */
    r->tsc_deadline = tsc;
    if (tsc && a->cpu && tsc <= guest_tsc(a)) { /* already past: no need to ask the loop */
        r->tsc_deadline = 0;
        loop_timer_cancel(a->set->loop, &a->timer);
        lapic_local(a, LVT_TIMER);
    } else {
        lapic_timer_arm(a);
    }
}
