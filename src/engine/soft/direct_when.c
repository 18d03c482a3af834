/*
 * When an address space runs directly: where ticks find that it computes, as long as it has run for long enough at a
 * time to pay for its exits.
 */
#include "engine/soft/direct.h"

#define SEEN_ENOUGH 2u     /* ticks in user mode, one after another, until it is tried */
#define QUIET_US 15u       /* between two things that translated code needs C for, on the way to that */
#define COLD 100u          /* blocks translated between two ticks, which take longer than exits would */
#define COLD_FAILS 2u      /* log2 of what failures cost that this does away with */
#define MISSES 256u        /* of pages that are not counted: first they have to come */
#define JUDGE 32u          /* exits that are judged together */
#define QUIET_PERCENT 133u /* or so much of what an exit costs, if that is more */
#define WORTH_PERCENT 50u  /* of what an exit costs: that long it has to run between two */
#define TRANSLATED 256u    /* ticks that a program stays in translated code which is faster there */
#define WAIT_MOST 10u      /* log2 of the ticks until it is tried again */
#define FORGET_MS 100u     /* not found by a tick for so long, its failures may have been another program's */
#define YOUNG_MS 100u      /* of a copy's CPU time, as long as it has not been idle */

static uint64_t us_ticks(const struct direct *d, uint64_t us)
{
    return us * d->engine->tsc_khz / 1000;
}

struct space *space_of(struct direct *d, uint64_t root)
{
    return &d->spaces[(root * 0x9e3779b97f4a7c15ull >> 40) % SPACES];
}

void space_give_up(struct direct *d, struct space *sp, bool for_long)
{
    if (!sp->direct)
        return;
    d->stats.given_up++;
    sp->fail = for_long ? WAIT_MOST : sp->paid ? 0 : sp->fail + (sp->fail < WAIT_MOST);
    sp->wait = sp->fail ? 1u << sp->fail : 0;
    sp->seen = 0;
    sp->direct = false;
}

void space_begin(struct direct *d, const struct direct_slot *s, struct space *sp)
{
    sp->exits = 0;
    sp->began = direct_child_cpu_ns(s);
    sp->entries = d->stats.entries;
    sp->ran = d->ran;
}

/* Has it run long enough at a time, for so many exits?  By the time stamps around it; and no more than its process has
 * had of a CPU, less what exits cost at least, since it may have had to wait for one. */
static bool has_paid(const struct direct *d, const struct direct_slot *s, const struct space *sp, unsigned exits)
{
    uint64_t enough = exits * d->price.wall * WORTH_PERCENT / 100,
             cost = (d->stats.entries - sp->entries) * d->price.cpu;
    uint64_t ran = (d->ran - sp->ran) * 1000000 / d->engine->tsc_khz;
    return (d->trap_tsc || ran >= enough) && direct_child_cpu_ns(s) - sp->began >= cost + enough;
}

void space_judge(struct direct *d, const struct direct_slot *s, struct space *sp, enum direct_exit exit,
                 unsigned misses)
{
    sp->misses += misses;
    if (sp->misses > MISSES)
        sp->exits += misses;
    if (exit != DIRECT_KICK)
        sp->exits++;
    if (sp->exits < JUDGE) { /* what does nothing but compute has paid without them */
        sp->paid = sp->paid || has_paid(d, s, sp, JUDGE);
        return;
    }
    const bool paid = has_paid(d, s, sp, sp->exits);
    sp->paid |= paid;
    if (d->mode == ENGINE_DIRECT_ON && !paid)
        space_give_up(d, sp, false);
    else if (d->mode == ENGINE_DIRECT_ON && compare_wanted(d, &sp->compare))
        sp->direct = false;
    sp->began = 0;
}

/* Does the guest do little between ticks but compute? */
static bool quiet(struct soft_vcpu *v, struct direct *d)
{
    uint64_t now = __builtin_ia32_rdtsc(), work = v->stats.helpers + v->stats.exceptions[EXC_PF];
    uint64_t exits = d->price.wall * QUIET_PERCENT / 100000, us = exits > QUIET_US ? exits : QUIET_US;
    bool is = now - d->last_tick > us_ticks(d, us) * (work - d->last_work);
    d->last_tick = now;
    d->last_work = work;
    return is;
}

/* Has most of the code since the last tick not run before?  That is where direct execution saves most. */
static bool cold(const struct soft_vcpu *v, struct direct *d)
{
    bool is = v->stats.blocks - d->last_blocks > COLD;
    d->last_blocks = v->stats.blocks;
    return is;
}

static void arm(struct direct *d, struct space *sp)
{
    sp->direct = true;
    sp->paid = false;
    sp->misses = 0;
    sp->began = 0;
    compare_begin(d, &sp->compare);
}

/* false: the address space is as it is to be. */
static bool undecided(struct direct *d, struct space *sp)
{
    switch (compare_tick(d, &sp->compare)) {
    case COMPARE_GOES_ON:
        return false;
    case COMPARE_TRANSLATED:
        d->stats.compared++;
        sp->wait = TRANSLATED;
        sp->seen = 0;
        return false;
    case COMPARE_DIRECT:
        arm(d, sp);
        return false;
    default:
        return !sp->direct;
    }
}

/* A copy that still takes on its identity: that is soon over, and nearly all of them have no more to compute. */
static bool is_young(const struct soft_vcpu *v)
{
    return v->engine->config.lean && !v->stats.halts && soft_clock_ns(CLOCK_THREAD_CPUTIME_ID) < YOUNG_MS * 1000000ull;
}

/* An interrupt has come: what does it find? */
void soft_direct_tick(struct soft_vcpu *v)
{
    struct direct *d = v->engine->direct;
    if (!(v->cpu.request & ~(uint32_t)REQ_FLUSH) || d->mode != ENGINE_DIRECT_ON)
        return;
    if (d->entries == d->stats.entries)
        direct_child_release(d);
    d->entries = d->stats.entries;
    struct space *sp = space_of(d, direct_root(v));
    if (sp->root != direct_root(v)) {
        *sp = (struct space){.root = direct_root(v)};
        d->last = NULL;
    }
    const bool user = v->cpu.cpl == 3, again = d->last == sp, computes = quiet(v, d) && user;
    if (d->last_tick - sp->found > us_ticks(d, FORGET_MS * 1000) && !sp->direct)
        sp->fail = sp->wait = 0;
    sp->found = d->last_tick;
    /* a program that is quite new itself will be over before it pays */
    const bool starts = cold(v, d) && user && again && sp->fail <= COLD_FAILS;
    d->last = sp;
    if (!undecided(d, sp))
        return;
    if (sp->wait && !starts) {
        sp->wait--;
        return;
    }
    sp->wait = 0;
    sp->seen = starts ? SEEN_ENOUGH : !computes ? 0 : again ? sp->seen + 1 : 1;
    if (sp->seen < (sp->paid ? 1 : SEEN_ENOUGH) || is_young(v) || !direct_suitable(v, d))
        return;
    arm(d, sp);
    d->stats.tried++;
}

bool soft_direct_armed(const struct soft_vcpu *v)
{
    struct direct *d = v->engine->direct;
    const struct space *sp = space_of(d, direct_root(v));
    return d->mode == ENGINE_DIRECT_ON ? sp->direct && sp->root == direct_root(v) : d->mode != ENGINE_DIRECT_OFF;
}
