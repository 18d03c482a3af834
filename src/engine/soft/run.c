/*
 * The software engine's run loop, and the C side of every way out of translated code.
 *
 *     run:   take events -> find or translate the block at rip -> enter -> (translated code runs on,
 *            through glue and helpers, until somebody sets v->poll) -> leave
 */
#include "engine/soft/soft_int.h"

#include <asm/prctl.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

void soft_fpu_park(struct soft_vcpu *v)
{
    if (!v->fpu_live)
        return;
    uint64_t mask = v->engine->xcr0;
    __asm__ volatile("xsave64 (%0)" ::"r"(v->xsave), "a"((uint32_t)mask), "d"((uint32_t)(mask >> 32)) : "memory");
    static const uint32_t mxcsr = 0x1f80;
    __asm__ volatile("fninit\n ldmxcsr %0" ::"m"(mxcsr));
    v->fpu_live = 0;
}

void soft_fpu_unpark(struct soft_vcpu *v)
{
    uint64_t mask = v->engine->xcr0;
    __asm__ volatile("xrstor64 (%0)" ::"r"(v->xsave), "a"((uint32_t)mask), "d"((uint32_t)(mask >> 32)) : "memory");
    v->fpu_live = 1;
}

void soft_fail(struct soft_vcpu *v, const char *why)
{
    if (!v->failed) {
        snprintf(v->error, sizeof(v->error), "%s (at guest rip %#llx)", why, (unsigned long long)v->cpu.rip);
        v->failed = true;
    }
    atomic_store(&v->poll, 1);
}

static bool chance(struct engine *e, unsigned one_in)
{
    e->random = e->random * 6364136223846793005ull + 1442695040888963407ull;
    return (e->random >> 33) % one_in == 0;
}

/* config.stress: what may happen to the block that was found, or to all, happens now and then. */
static struct block *stress(struct soft_vcpu *v, struct block *b)
{
    struct engine *e = v->engine;
    if (chance(e, 100000)) {
        soft_cache_flush(e);
        return NULL;
    }
    if (chance(e, 20000)) {
        soft_region_next(e);
        return NULL;
    }
    if (chance(e, 200))
        soft_cpu_ops.tlb_flush_all(&v->cpu, chance(e, 2));
    if (chance(e, 100))
        v->promote_left = PROMOTE_BLOCKS;
    if (!b || !chance(e, 200))
        return b;
    if (chance(e, 2)) {
        unsigned bit = soft_indexed_bit(b->gpa);
        e->hot[bit / 64] ^= 1ull << (bit % 64);
    }
    soft_fpu_park(v);
    soft_block_kill(e, b);
    return NULL;
}

static struct block *taken_ahead(struct soft_vcpu *v, uint64_t gpa, uint64_t rip, uint32_t mode)
{
    soft_fpu_park(v);
    return soft_course_take(v->engine, gpa, rip, mode) ? soft_block_find(v->engine, gpa, rip, mode) : NULL;
}

/* The block at cpu.rip, translated if need be.  NULL: a fetch fault is recorded. */
static struct block *block_at_rip_in(struct soft_vcpu *v, uint32_t mode, bool no_windows)
{
    uint64_t gpa, rip = v->mode & MODE_64 ? v->cpu.rip : (uint32_t)v->cpu.rip, gva = soft_code_gva(v, rip);
    if (soft_translate_exec(v, gva, &gpa, NULL))
        return NULL;
    struct block *b = soft_block_find(v->engine, gpa, rip, mode);
    if (!b && v->engine->course)
        b = taken_ahead(v, gpa, rip, mode);
    if (v->engine->config.stress)
        b = stress(v, b);
    if (b && b->gpa2 == UINT64_MAX)
        return b;
    if (b) { /* straddles: is the second page still the same? */
        uint64_t second;
        uint64_t next = (gva & ~4095ull) + 4096;
        if (soft_translate_exec(v, v->mode & MODE_64 ? next : (uint32_t)next, &second, NULL))
            return NULL;
        if (second == b->gpa2)
            return b;
        soft_fpu_park(v);
        soft_block_kill(v->engine, b);
    }
    soft_fpu_park(v);
    uint64_t start = soft_ticks(v->engine);
    struct block *made = soft_translate(v, rip, gpa, mode, no_windows);
    soft_ticks_nested(v, TIME_TRANSLATE, start);
    if (v->engine->course)
        soft_course_missed(v->engine, gpa);
    return made;
}

/* Code runs into the end of its segment one instruction at a time. */
static struct block *block_in_segment(struct soft_vcpu *v, uint32_t mode, bool no_windows)
{
    uint32_t limit = v->cpu.seg[CS].limit;
    if (v->cpu.rip > limit) {
        cpu_raise_error(&v->cpu, EXC_GP, 0);
        return NULL;
    }
    struct block *b = block_at_rip_in(v, mode, no_windows);
    if (b && v->cpu.rip + b->length - 1 > limit && b->n_insns > 1)
        b = block_at_rip_in(v, mode | MODE_TF, true);
    if (b && v->cpu.rip + b->length - 1 > limit) {
        cpu_raise_error(&v->cpu, EXC_GP, 0);
        return NULL;
    }
    return b;
}

static struct block *block_of_mode(struct soft_vcpu *v, uint32_t mode, bool no_windows)
{
    return mode & MODE_SEGMENTED ? block_in_segment(v, mode, no_windows) : block_at_rip_in(v, mode, no_windows);
}

static struct block *block_at_rip(struct soft_vcpu *v)
{
    return block_of_mode(v, v->mode, false);
}

static const void *enter_block(struct soft_vcpu *v, const struct block *b)
{
    if (!(b->mode & MODE_FIXED_PC))
        v->code_base = v->cpu.rip & ~4095ull;
    if (!v->fpu_live)
        soft_fpu_unpark(v);
    return soft_code(v->engine, b->entry);
}

const void *soft_deliver(struct soft_vcpu *v)
{
    v->debug_hits = 0; /* the exception has them, or is a fault: it happens all over again */
    v->stats.exceptions[v->cpu.exc.vector & 31]++;
    if (cpu_deliver(&v->cpu) == CPU_SHUTDOWN) {
        v->shutdown = true;
        atomic_store(&v->poll, 1);
    }
    return soft_next(v);
}

/* The instruction is complete and rip behind it: the trap that it ends with, or on.  Breakpoints on data and
 * ports that it met wait in v->debug_hits. */
const void *soft_step_done(struct soft_vcpu *v)
{
    uint32_t dr6 = v->debug_hits | (v->mode & MODE_TF ? DR6_BS : 0);
    if (!dr6)
        return soft_next(v);
    cpu_raise_debug(&v->cpu, dr6);
    return soft_deliver(v);
}

/* One instruction at cpu.rip, whatever comes after it: in a block as with RFLAGS.TF, whose end only looks at
 * what is due (helper_single_step).  A breakpoint on it has been passed. */
const void *soft_next_single(struct soft_vcpu *v)
{
    struct block *b = block_of_mode(v, (v->mode | MODE_TF) & ~(uint32_t)MODE_BREAK, true);
    return b ? enter_block(v, b) : soft_deliver(v);
}

/* The code for cpu.rip if a computed branch knows it, or NULL: no look-up then. */
static const void *known_target(struct soft_vcpu *v)
{
    const struct ibtc *t = &v->ibtc[soft_mmu(v)];
    unsigned i = ibtc_index(v, soft_mmu(v), v->cpu.rip);
    if (v->engine->config.stress && chance(v->engine, 8))
        return NULL;
    if (t->tag[i] != v->cpu.rip || t->entry[i] == soft_glue_ibtc_miss || (v->mode & MODE_BY_C))
        return NULL;
    soft_flags_out(v);
    v->slow_flags = v->arith; /* where computed branches have them */
    v->target = t->entry[i];
    v->target_index = i;
    if (!v->fpu_live)
        soft_fpu_unpark(v);
    return soft_jump;
}

/* Where to go on at cpu.rip.  cpu.rflags is right here. */
const void *soft_next(struct soft_vcpu *v)
{
    soft_told(v);
    for (;;) {
        /* an interrupt that waits for IF does not keep us out: popf, iret and sti pass here */
        if (v->cpu.request && ((v->cpu.rflags & FL_IF) || (v->cpu.request & ~(uint32_t)(REQ_IRQ | REQ_WINDOW))))
            atomic_store(&v->poll, 1);
        if (v->poll)
            return soft_leave;
        const void *known = known_target(v);
        if (known)
            return known;
        struct block *b = block_at_rip(v);
        if (b) {
            if (!(b->mode & MODE_BY_C))
                soft_ibtc_insert(v, v->cpu.rip, b);
            return enter_block(v, b);
        }
        v->stats.exceptions[v->cpu.exc.vector & 31]++;
        if (cpu_deliver(&v->cpu) == CPU_SHUTDOWN) {
            v->shutdown = true;
            atomic_store(&v->poll, 1);
        }
    }
}

#define WINDOW_REFUSALS_MAX 8

const void *soft_next_ungrouped(struct soft_vcpu *v, struct block *b)
{
    if (v->poll)
        return soft_leave;
    if (++b->refusals == WINDOW_REFUSALS_MAX && !b->dead) {
        uint64_t at = v->cpu.rip;
        v->cpu.rip = soft_site_pc(v, b);
        soft_fpu_park(v);
        soft_block_kill(v->engine, b);
        if (!block_at_rip_in(v, v->mode, true))
            return soft_deliver(v);
        v->cpu.rip = at;
    }
    struct block *around = block_at_rip_in(v, v->mode | MODE_UNGROUPED, true);
    return around ? enter_block(v, around) : soft_deliver(v);
}

static struct block *promote(struct soft_vcpu *v, struct block *b);

const void *soft_helper(struct soft_vcpu *v)
{
    const struct site *s = &v->engine->sites[v->site];
    soft_flags_in(v);
    v->cpu.rip = soft_site_pc(v, soft_site_block(v->engine, s)) + s->pc;
    v->stats.helpers++;
    v->stats.by_mnemonic[s->mnemonic & 2047]++;
    helper_fn *helper = (helper_fn *)((intptr_t)soft_helper + s->helper);
    const void *next = helper(v, s);
    soft_told(v);
    if (!v->fpu_live && next != soft_leave)
        soft_fpu_unpark(v);
    soft_flags_out(v);
    return next;
}

/* Does it leave the page, be it by what the target's last instruction has in the next? */
static bool crosses(const struct exit *x, const struct block *to)
{
    return x->cross || to->gpa2 != UINT64_MAX;
}

static bool may_chain(struct soft_vcpu *v, const struct exit *x, const struct block *to)
{
    const struct block *from = &v->engine->blocks[x->from];
    if (from->dead || ((x->mode ^ to->mode) & ~(uint32_t)MODE_UNGROUPED))
        return false;
    if (!crosses(x, to))
        return to->gpa >> 12 == from->gpa >> 12;
    if (!(x->mode & MODE_FIXED_PC))
        return false;
    /* another page: only while both are global, for then nothing but a flush of globals undoes it */
    uint64_t gpa;
    bool from_global = false, to_global = false, second_global = true;
    if (soft_translate_exec(v, from->gva, &gpa, &from_global) || soft_translate_exec(v, to->gva, &gpa, &to_global))
        return false;
    if (to->gpa2 != UINT64_MAX && soft_translate_exec(v, (to->gva & ~4095ull) + 4096, &gpa, &second_global))
        return false;
    return from_global && to_global && second_global;
}

void soft_chain_cross(struct engine *e, struct exit *x, struct block *to)
{
    x->cross = crosses(x, to);
    soft_chain(e, x, to);
    if (x->cross)
        e->vcpu->exec_bloom[1][to->gva >> 63][to->gva >> 18 & 63] |= 1ull << (to->gva >> 12 & 63);
}

const void *soft_exit(struct soft_vcpu *v)
{
    struct engine *e = v->engine;
    struct exit *x = &e->exits[v->site];
    if (x->flags_in_memory && x->flags_live)
        v->arith = (uint16_t)v->slow_flags;
    soft_flags_in(v);
    v->stats.exits++;
    v->cpu.rip = soft_site_pc(v, &e->blocks[x->from]) + (uint64_t)(int64_t)x->target;
    if (!(v->mode & MODE_64))
        v->cpu.rip = (uint32_t)v->cpu.rip;
    if (v->poll)
        return soft_next(v);
    uint64_t evictions = v->stats.evictions;
    struct block *b = block_at_rip(v);
    if (b && v->promote_left) {
        v->promote_left--;
        if (!b->hot && b->mode == v->mode && b != &e->blocks[x->from])
            b = promote(v, b);
    }
    const void *next;
    if (!b) {
        next = soft_deliver(v);
    } else {
        if (evictions == v->stats.evictions && may_chain(v, x, b) && !soft_code_spared(e, x->patch)) {
            soft_chain_cross(e, x, b);
            v->stats.chained++;
        }
        next = enter_block(v, b);
    }
    soft_flags_out(v);
    return next;
}

const void *soft_ibtc_miss(struct soft_vcpu *v)
{
    v->arith = (uint16_t)v->slow_flags; /* where computed branches have them */
    soft_flags_in(v);
    v->stats.ibtc_miss++;
    const void *next;
    if (v->poll) {
        next = soft_next(v);
    } else {
        v->computed = true;
        struct block *b = block_at_rip(v);
        v->computed = false;
        if (b) {
            soft_ibtc_insert(v, v->cpu.rip, b);
            next = enter_block(v, b);
        } else {
            next = soft_deliver(v);
        }
    }
    soft_flags_out(v);
    return next;
}

/* Marks a block hot and translates it again; what runs after it is found by following its exits, which
 * are unchained now. */
static struct block *promote(struct soft_vcpu *v, struct block *b)
{
    struct engine *e = v->engine;
    bool no_windows = b->no_windows;
    soft_set_hot(e, b->gpa);
    if (e->note)
        soft_note_better(e, b);
    v->stats.promoted++;
    soft_fpu_park(v);
    if (!b->dead)
        soft_block_kill(e, b);
    return block_at_rip_in(v, v->mode, no_windows);
}

/* Left at the start of a block, by its number, with the flags in memory. */
static struct block *left_at_start(struct soft_vcpu *v)
{
    struct block *b = &v->engine->blocks[v->site];
    if (b->flags_live)
        v->arith = (uint16_t)v->slow_flags;
    soft_flags_in(v);
    v->cpu.rip = soft_site_pc(v, b);
    return b;
}

/* From glue: the block has run often in this tick. */
const void *soft_hot(struct soft_vcpu *v)
{
    struct block *b = left_at_start(v);
    v->heat[v->site % HEAT_COUNT] = HEAT_START;
    v->promote_left = PROMOTE_BLOCKS;
    b = promote(v, b);
    const void *next = b ? enter_block(v, b) : soft_deliver(v);
    soft_flags_out(v);
    return next;
}

const void *soft_poll(struct soft_vcpu *v)
{
    left_at_start(v);
    v->stats.polls++;
    return soft_leave;
}

static void set_gs_base(struct soft_vcpu *v)
{
    syscall(SYS_arch_prctl, ARCH_SET_GS, (unsigned long)v);
}

/* A tick for what is counted in ticks, whatever the guest's are. */
#define TICK_MS 1u

static void renew_counts(struct soft_vcpu *v)
{
    const uint64_t now = __builtin_ia32_rdtsc();
    if (now - v->renewed < (uint64_t)TICK_MS * v->engine->tsc_khz)
        return;
    v->renewed = now;
    for (unsigned i = 0; i < SLOT_COUNT; i++)
        v->budget[i] = SLOT_BUDGET;
    for (unsigned i = 0; i < HEAT_COUNT; i++)
        v->heat[i] = HEAT_START;
}

/* Everything asynchronous arrives here.  false: leave with *exit. */
static bool take_requests(struct soft_vcpu *v, enum engine_exit *exit, bool *single)
{
    struct cpu *c = &v->cpu;
    atomic_store(&v->poll, 0);
    renew_counts(v);
    if (v->engine->note)
        soft_note_tick(v->engine);
    if (v->engine->course)
        soft_course_tick(v->engine);
    if (v->failed) {
        *exit = ENGINE_EXIT_ERROR;
        return false;
    }
    if (v->shutdown) {
        v->shutdown = false;
        *exit = ENGINE_EXIT_SHUTDOWN;
        return false;
    }
    if (c->request & REQ_FLUSH) {
        atomic_fetch_and(&c->request, ~(uint32_t)REQ_FLUSH);
        soft_serve(v->engine);
    }
    if (c->request & REQ_EXIT) {
        atomic_fetch_and(&c->request, ~(uint32_t)REQ_EXIT);
        *exit = ENGINE_EXIT_REQUEST;
        return false;
    }
    bool delivered = false;
    if (c->request & REQ_IRQ)
        soft_steal_update(v->engine);
    if (c->request || c->irq_shadow || c->halted) {
        bool shadow = c->irq_shadow;
        if (cpu_take_events(c, &delivered) == CPU_SHUTDOWN) {
            *exit = ENGINE_EXIT_SHUTDOWN;
            return false;
        }
        c->irq_shadow = 0;
        *single = shadow && !delivered && c->request; /* one instruction, then look again */
        if (delivered) {
            v->stats.interrupts++;
        }
    }
    if (c->halted) {
        v->stats.halts++;
        *exit = ENGINE_EXIT_HALT;
        return false;
    }
    return true;
}

static const void *first_block(struct soft_vcpu *v, bool single)
{
    for (;;) {
        if (v->failed || v->shutdown)
            return NULL;
        struct block *b = single ? block_of_mode(v, v->mode | MODE_TF, true) : block_at_rip(v);
        if (b)
            return enter_block(v, b);
        v->stats.exceptions[v->cpu.exc.vector & 31]++;
        if (cpu_deliver(&v->cpu) == CPU_SHUTDOWN)
            v->shutdown = true;
        single = false;
    }
}

enum engine_exit soft_run(struct engine *e, unsigned i, char *error)
{
    e = e->peers->of[i];
    struct soft_vcpu *v = e->vcpu;
    enum engine_exit exit;
    soft_signals_thread(v);
    set_gs_base(v);
    bus_set_initiator(e->config.bus, i);
    soft_update_mode(v);
    soft_go_inside(e);
    if (e->carried)
        soft_carry_begin(e);
    cpu_goes_on(&v->cpu);
    soft_steal_begin(e);
    for (;;) {
        bool single = false;
        if (e->direct)
            soft_direct_tick(v);
        if (!take_requests(v, &exit, &single))
            break;
        enum direct_next how = e->direct && !single ? soft_direct_run(v) : DIRECT_NEXT_CODE;
        if (how == DIRECT_NEXT_LOOP)
            continue;
        /* Something that cannot be delivered yet (IF clear) stays in cpu.request without keeping us
         * here: sti, popf and iret look at it again. */
        const void *next = how == DIRECT_NEXT_DELIVER ? soft_deliver(v)
                                                      : first_block(v, single || how == DIRECT_NEXT_INSTRUCTION);
        if (!next)
            continue;
        if (how == DIRECT_NEXT_INSTRUCTION || how == DIRECT_NEXT_PIECE)
            atomic_store(&v->poll, 1);
        soft_told(v);
        v->next = next;
        soft_flags_out(v);
        v->stats.enters++;
        uint64_t start = soft_ticks(e);
        soft_enter(v);
        if (e->config.timing)
            v->stats.ticks[TIME_RUN] += __builtin_ia32_rdtsc() - start;
        soft_fpu_park(v);
    }
    soft_fpu_park(v);
    soft_steal_update(e);
    if (exit == ENGINE_EXIT_HALT)
        cpu_halts(&v->cpu);
    soft_told(v);
    soft_come_out(e);
    if (exit == ENGINE_EXIT_ERROR)
        snprintf(error, 256, "%s", v->error);
    return exit;
}
