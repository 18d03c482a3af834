/*
 * The software engine's run loop, and the C side of every way out of translated code.
 *
 *     run:   take events -> find or translate the block at rip -> enter -> (translated code runs on,
 *            through glue and helpers, until somebody sets v->poll) -> leave
 */
#include "engine/soft/soft_int.h"

#include <Zydis/Zydis.h>
#include <asm/prctl.h>
#include <cpuid.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

/* --- SIMD state ------------------------------------------------------------------------------------ */

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

/* --- where a block is ------------------------------------------------------------------------------- */

uint64_t soft_site_pc(const struct soft_vcpu *v, const struct block *b)
{
    return b->mode & MODE_FIXED_PC ? b->gva : v->code_base + b->gva;
}

void soft_fail(struct soft_vcpu *v, const char *why)
{
    if (!v->failed) {
        snprintf(v->error, sizeof(v->error), "%s (at guest rip %#llx)", why, (unsigned long long)v->cpu.rip);
        v->failed = true;
    }
    atomic_store(&v->poll, 1);
}

static bool fpu_traps(const struct cpu *c, uint64_t all)
{
    uint64_t want = CR4_OSFXSR | CR4_OSXSAVE;
    return (c->cr0 & (CR0_EM | CR0_TS)) || (c->cr4 & want) != want || (c->xcr0 & all) != all;
}

/* Is a data segment other than 4 GB that may be read and written? */
static bool restricted(const struct segment *s)
{
    return s->limit != UINT32_MAX ||
           (s->attr & (SEG_P | SEG_CODE | SEG_EXPAND_DOWN | SEG_WRITABLE)) != (SEG_P | SEG_WRITABLE);
}

/* FS and GS have a base always, and are empty often: MODE_NULL_FS, MODE_NULL_GS. */
static bool segmented(const struct cpu *c)
{
    static const uint8_t flat[] = {ES, SS, DS};
    for (unsigned i = 0; i < sizeof(flat); i++)
        if (c->seg[flat[i]].base || restricted(&c->seg[flat[i]]))
            return true;
    return c->seg[CS].limit != UINT32_MAX || !(c->seg[SS].attr & SEG_DB) ||
           ((c->seg[FS].attr & SEG_P) && restricted(&c->seg[FS])) ||
           ((c->seg[GS].attr & SEG_P) && restricted(&c->seg[GS]));
}

static bool breaks_on_instructions(const struct cpu *c)
{
    for (unsigned i = 0; i < 4; i++)
        if ((c->dr7 >> (2 * i) & 3) && (c->dr7 >> (16 + 4 * i) & 3) == 0)
            return true;
    return false;
}

void soft_update_mode(struct soft_vcpu *v)
{
    struct cpu *c = &v->cpu;
    uint32_t mode = 0;
    if (c->cpl == 3)
        mode = MMU_USER;
    else
        mode = MODE_FIXED_PC | (c->cr4 & CR4_SMAP && !(c->rflags & FL_AC) ? MMU_KERNEL : MMU_KERNEL_AC);
    if (c->cpl == 0)
        mode |= MODE_CPL0;
    if (cpu_64bit(c))
        mode |= MODE_64;
    else if (!(c->seg[CS].attr & SEG_DB) || !(c->cr0 & CR0_PE) || (c->rflags & FL_VM) || c->seg[CS].base)
        mode |= MODE_16;
    else if (segmented(c))
        mode |= MODE_SEGMENTED;
    if (!(mode & MODE_64))
        mode |= MODE_FIXED_PC | (c->seg[FS].attr & SEG_P ? 0 : MODE_NULL_FS) |
                (c->seg[GS].attr & SEG_P ? 0 : MODE_NULL_GS);
    if (c->cpl == 3 && (c->rflags & FL_AC) && (c->cr0 & CR0_AM))
        mode |= MODE_ALIGN;
    if (c->rflags & FL_TF)
        mode |= MODE_TF;
    if ((c->dr7 | v->watched_dr7) & 0xff)
        soft_watch_update(v);
    if ((c->dr7 & 0xff) && breaks_on_instructions(c))
        mode |= MODE_BREAK; /* helper_break ends RF, before the instruction that it was for */
    else
        c->rflags &= ~(uint32_t)FL_RF; /* without a breakpoint nobody can tell when it ends */
    if (fpu_traps(c, v->engine->xcr0))
        mode |= MODE_FPU_TRAP;
    v->mode = mode;
    unsigned which = (mode & MODE_MMU) != MMU_USER;
    if (v->ibtc_mode[which] != (mode & MODE_IBTC)) {
        v->ibtc_mode[which] = mode & MODE_IBTC;
        soft_ibtc_flush(v, which);
    }
}

/* --- finding the next block ------------------------------------------------------------------------- */

/* The block at cpu.rip, translated if need be.  NULL: a fetch fault is recorded. */
static struct block *block_at_rip_in(struct soft_vcpu *v, uint32_t mode, bool no_windows)
{
    uint64_t gpa, gva = v->cpu.rip;
    if (!(v->mode & MODE_64))
        gva = (uint32_t)gva;
    if (soft_translate_exec(v, gva, &gpa, NULL))
        return NULL;
    struct block *b = soft_block_find(v->engine, gpa, gva, mode);
    if (b && b->gpa2 == UINT64_MAX)
        return b;
    if (b) { /* straddles: is the second page still the same? */
        uint64_t second;
        if (soft_translate_exec(v, (gva & ~4095ull) + 4096, &second, NULL))
            return NULL;
        if (second == b->gpa2)
            return b;
        soft_fpu_park(v);
        soft_block_kill(v->engine, b);
    }
    soft_fpu_park(v);
    uint64_t start = soft_ticks(v->engine);
    struct block *made = soft_translate(v, gva, gpa, mode, no_windows);
    soft_ticks_nested(v, TIME_TRANSLATE, start);
    return made;
}

/* Code runs into the end of its segment one instruction at a time. */
static struct block *block_in_segment(struct soft_vcpu *v)
{
    uint32_t limit = v->cpu.seg[CS].limit;
    if (v->cpu.rip > limit) {
        cpu_raise_error(&v->cpu, EXC_GP, 0);
        return NULL;
    }
    struct block *b = block_at_rip_in(v, v->mode, false);
    if (b && v->cpu.rip + b->length - 1 > limit && b->n_insns > 1)
        b = block_at_rip_in(v, v->mode | MODE_TF, true);
    if (b && v->cpu.rip + b->length - 1 > limit) {
        cpu_raise_error(&v->cpu, EXC_GP, 0);
        return NULL;
    }
    return b;
}

static struct block *block_at_rip(struct soft_vcpu *v)
{
    return v->mode & MODE_SEGMENTED ? block_in_segment(v) : block_at_rip_in(v, v->mode, false);
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
    struct block *b = block_at_rip_in(v, (v->mode | MODE_TF) & ~(uint32_t)MODE_BREAK, true);
    return b ? enter_block(v, b) : soft_deliver(v);
}

/* Where to go on at cpu.rip.  cpu.rflags is right here. */
const void *soft_next(struct soft_vcpu *v)
{
    for (;;) {
        /* an interrupt that waits for IF does not keep us out: popf, iret and sti pass here */
        if (v->cpu.request && ((v->cpu.rflags & FL_IF) || (v->cpu.request & ~(uint32_t)(REQ_IRQ | REQ_WINDOW))))
            atomic_store(&v->poll, 1);
        if (v->poll)
            return soft_leave;
        if (v->mode & MODE_16) {
            soft_fail(
                v, (v->cpu.seg[CS].attr & SEG_DB) && (v->cpu.cr0 & CR0_PE)
                       ? "the software engine does not run 32-bit code in a segment with a base yet"
                       : "the software engine does not run 16-bit code yet: boot a kernel by its 64-bit or PVH entry");
            return soft_leave;
        }
        struct block *b = block_at_rip(v);
        if (b)
            return enter_block(v, b);
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

/* --- ways out of translated code (called by glue) ------------------------------------------------------ */

const void *soft_helper(struct soft_vcpu *v);
const void *soft_exit(struct soft_vcpu *v);
const void *soft_ibtc_miss(struct soft_vcpu *v);
const void *soft_poll(struct soft_vcpu *v);
const void *soft_hot(struct soft_vcpu *v);
static struct block *promote(struct soft_vcpu *v, struct block *b);

const void *soft_helper(struct soft_vcpu *v)
{
    const struct site *s = &v->engine->sites[v->site];
    soft_flags_in(v);
    v->cpu.rip = soft_site_pc(v, s->block) + s->pc;
    v->stats.helpers++;
    v->stats.by_mnemonic[s->mnemonic & 2047]++;
    const void *next = s->helper(v, s);
    if (!v->fpu_live && next != soft_leave)
        soft_fpu_unpark(v);
    soft_flags_out(v);
    return next;
}

static bool may_chain(struct soft_vcpu *v, const struct exit *x, const struct block *to)
{
    if (x->from->dead || ((x->from->mode ^ to->mode) & ~(uint32_t)MODE_UNGROUPED))
        return false;
    if (!x->cross)
        return to->gpa >> 12 == x->from->gpa >> 12 && to->gpa2 == UINT64_MAX;
    /* another page: only while both are global, for then nothing but a flush of globals undoes it */
    uint64_t gpa;
    bool from_global = false, to_global = false, second_global = true;
    if (soft_translate_exec(v, x->from->gva, &gpa, &from_global) || soft_translate_exec(v, to->gva, &gpa, &to_global))
        return false;
    if (to->gpa2 != UINT64_MAX && soft_translate_exec(v, (to->gva & ~4095ull) + 4096, &gpa, &second_global))
        return false;
    return from_global && to_global && second_global;
}

const void *soft_exit(struct soft_vcpu *v)
{
    struct engine *e = v->engine;
    struct exit *x = &e->exits[v->site];
    soft_flags_in(v);
    v->stats.exits++;
    v->cpu.rip = soft_site_pc(v, x->from) + (uint64_t)(int64_t)x->target;
    if (!(v->mode & MODE_64))
        v->cpu.rip = (uint32_t)v->cpu.rip;
    if (v->poll)
        return soft_next(v);
    uint64_t evictions = e->vcpus[0]->stats.evictions;
    struct block *b = block_at_rip(v);
    if (b && v->promote_left) {
        v->promote_left--;
        if (!b->hot && b->mode == v->mode && b != x->from)
            b = promote(v, b);
    }
    const void *next;
    if (!b) {
        next = soft_deliver(v);
    } else {
        if (evictions == e->vcpus[0]->stats.evictions && may_chain(v, x, b)) {
            soft_chain(e, x, b);
            v->stats.chained++;
            if (x->cross)
                v->exec_bloom[1][b->gva >> 63][b->gva >> 18 & 63] |= 1ull << (b->gva >> 12 & 63);
        }
        next = enter_block(v, b);
    }
    soft_flags_out(v);
    return next;
}

const void *soft_ibtc_miss(struct soft_vcpu *v)
{
    soft_flags_in(v);
    v->stats.ibtc_miss++;
    const void *next;
    if (v->poll) {
        next = soft_next(v);
    } else {
        struct block *b = block_at_rip(v);
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
    unsigned bit = soft_indexed_bit(b->gpa);
    bool no_windows = b->no_windows;
    e->hot[bit / 64] |= 1ull << (bit % 64);
    v->stats.promoted++;
    soft_fpu_park(v);
    if (!b->dead)
        soft_block_kill(e, b);
    return block_at_rip_in(v, v->mode, no_windows);
}

/* From glue: the block has run often in this tick. */
const void *soft_hot(struct soft_vcpu *v)
{
    const struct site *s = &v->engine->sites[v->site];
    soft_flags_in(v);
    v->cpu.rip = soft_site_pc(v, s->block);
    v->heat[v->site % HEAT_COUNT] = HEAT_START;
    v->promote_left = PROMOTE_BLOCKS;
    struct block *b = promote(v, s->block);
    const void *next = b ? enter_block(v, b) : soft_deliver(v);
    soft_flags_out(v);
    return next;
}

const void *soft_poll(struct soft_vcpu *v)
{
    const struct site *s = &v->engine->sites[v->site];
    soft_flags_in(v);
    v->stats.polls++;
    v->cpu.rip = soft_site_pc(v, s->block) + s->pc;
    return soft_leave;
}

/* --- the loop -------------------------------------------------------------------------------------------- */

static void set_gs_base(struct soft_vcpu *v)
{
    syscall(SYS_arch_prctl, ARCH_SET_GS, (unsigned long)v);
}

static void handle_dma(struct soft_vcpu *v)
{
    struct engine *e = v->engine;
    pthread_mutex_lock(&e->dma_lock);
    if (e->n_dma > sizeof(e->dma_pages) / sizeof(e->dma_pages[0]))
        soft_cache_flush(e);
    else
        for (unsigned i = 0; i < e->n_dma; i++)
            soft_invalidate(e, e->dma_pages[i] << 12, 4096);
    e->n_dma = 0;
    pthread_mutex_unlock(&e->dma_lock);
}

/* Everything asynchronous arrives here.  false: leave with *exit. */
static bool take_requests(struct soft_vcpu *v, enum engine_exit *exit, bool *single)
{
    struct cpu *c = &v->cpu;
    atomic_store(&v->poll, 0);
    for (unsigned i = 0; i < SLOT_COUNT; i++)
        v->budget[i] = SLOT_BUDGET;
    for (unsigned i = 0; i < HEAT_COUNT; i++)
        v->heat[i] = HEAT_START;
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
        handle_dma(v);
    }
    if (c->request & REQ_EXIT) {
        atomic_fetch_and(&c->request, ~(uint32_t)REQ_EXIT);
        *exit = ENGINE_EXIT_REQUEST;
        return false;
    }
    bool delivered = false;
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
        if (v->mode & MODE_16) {
            soft_next(v);
            return NULL;
        }
        struct block *b = single ? block_at_rip_in(v, v->mode | MODE_TF, true) : block_at_rip(v);
        if (b)
            return enter_block(v, b);
        v->stats.exceptions[v->cpu.exc.vector & 31]++;
        if (cpu_deliver(&v->cpu) == CPU_SHUTDOWN)
            v->shutdown = true;
        single = false;
    }
}

static enum engine_exit soft_run(struct engine *e, unsigned i, char *error)
{
    struct soft_vcpu *v = e->vcpus[i];
    enum engine_exit exit;
    soft_signals_thread(v);
    set_gs_base(v);
    soft_update_mode(v);
    for (;;) {
        bool single = false;
        if (!take_requests(v, &exit, &single))
            break;
        /* Something that cannot be delivered yet (IF clear) stays in cpu.request without keeping us
         * here: sti, popf and iret look at it again. */
        const void *next = first_block(v, single);
        if (!next)
            continue;
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
    if (exit == ENGINE_EXIT_ERROR)
        snprintf(error, 256, "%s", v->error);
    return exit;
}

/* --- life cycle -------------------------------------------------------------------------------------------- */

static void dma_dirty(void *opaque, uint64_t gpa, uint64_t len)
{
    struct engine *e = opaque;
    bool any = false;
    for (uint64_t page = gpa >> 12; page <= (gpa + len - 1) >> 12 && page < e->n_pages; page++) {
        if (!e->code_granules[page])
            continue;
        pthread_mutex_lock(&e->dma_lock);
        unsigned max = sizeof(e->dma_pages) / sizeof(e->dma_pages[0]);
        if (e->n_dma < max)
            e->dma_pages[e->n_dma] = page;
        if (e->n_dma <= max)
            e->n_dma++;
        pthread_mutex_unlock(&e->dma_lock);
        any = true;
    }
    for (unsigned i = 0; any && i < e->n_cpus; i++) {
        atomic_fetch_or(&e->vcpus[i]->cpu.request, REQ_FLUSH);
        atomic_store(&e->vcpus[i]->poll, 1);
    }
}

static bool host_has(const char *what, char *why, size_t size, bool has)
{
    if (!has && why)
        snprintf(why, size, "this CPU lacks %s, which the software engine needs", what);
    return has;
}

static bool soft_probe(char *why, size_t size)
{
    return host_has("BMI2", why, size, __builtin_cpu_supports("bmi2")) &&
           host_has("SSE4.2", why, size, __builtin_cpu_supports("sse4.2")) &&
           host_has("AVX2", why, size, __builtin_cpu_supports("avx2"));
}

static uint64_t host_xcr0(void)
{
    uint32_t a, d;
    __asm__("xgetbv" : "=a"(a), "=d"(d) : "c"(0));
    return ((uint64_t)d << 32 | a) & 0xe7; /* x87, SSE, AVX, AVX-512 */
}

/* The host's TSC frequency: as the hypervisor below says, or measured against the clock. */
static uint64_t measure_tsc_khz(void)
{
    uint32_t a, b, c, d;
    __cpuid(0x40000000, a, b, c, d);
    if (a >= 0x40000010 && a < 0x40000100) {
        __cpuid(0x40000010, a, b, c, d);
        if (a > 100000)
            return a;
    }
    struct timespec t0, t1;
    clock_gettime(CLOCK_MONOTONIC_RAW, &t0);
    uint64_t tsc0 = __builtin_ia32_rdtsc(), ns;
    do {
        clock_gettime(CLOCK_MONOTONIC_RAW, &t1);
        ns = (uint64_t)(t1.tv_sec - t0.tv_sec) * 1000000000ull + (uint64_t)(t1.tv_nsec - t0.tv_nsec);
    } while (ns < 20000000);
    return (__builtin_ia32_rdtsc() - tsc0) * 1000000 / ns;
}

static void vcpu_glue(struct soft_vcpu *v)
{
    v->self = v;
    v->glue_slow = soft_glue_slow;
    v->glue_commit = soft_glue_commit;
    v->glue_helper = soft_glue_helper;
    v->glue_exit = soft_glue_exit;
    v->glue_ibtc_miss = soft_glue_ibtc_miss;
    v->glue_poll = soft_glue_poll;
    v->glue_window = soft_glue_window;
    v->glue_demote = soft_glue_demote;
    v->glue_hot = soft_glue_hot;
}

static void fpu_initial(struct soft_vcpu *v)
{
    v->xsave[0] = 0x7f; /* FCW 037F */
    v->xsave[1] = 0x03;
    v->xsave[24] = 0x80; /* MXCSR 1F80 */
    v->xsave[25] = 0x1f;
}

static int vcpu_create(struct engine *e, unsigned i)
{
    struct soft_vcpu *v = mmap(NULL, sizeof(*v), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (v == MAP_FAILED)
        return -ENOMEM;
    e->vcpus[i] = v;
    v->engine = e;
    v->cpu.index = i;
    v->cpu.n_cpus = e->n_cpus;
    v->cpu.memory = e->config.memory;
    v->cpu.bus = e->config.bus;
    v->cpu.ops = &soft_cpu_ops;
    v->cpu.cpuid = e->cpuid;
    v->cpu.tsc_khz = e->tsc_khz;
    vcpu_glue(v);
    if (e->config.timing)
        soft_timing_install(v);
    e->amd = soft_is_amd(&v->cpu);
    fpu_initial(v);
    soft_tlb_init(v);
    v->translator = soft_translator_create(&v->cpu);
    return v->translator ? 0 : -ENOMEM;
}

static void soft_destroy(struct engine *e)
{
    if (!e)
        return;
    for (unsigned i = 0; i < e->n_cpus; i++)
        if (e->vcpus && e->vcpus[i]) {
            soft_translator_destroy(e->vcpus[i]->translator);
            munmap(e->vcpus[i], sizeof(*e->vcpus[i]));
        }
    soft_cache_destroy(e);
    cpuid_table_destroy(e->cpuid);
    free(e->vcpus);
    free(e);
}

static int soft_create(struct engine **out, const struct engine_config *config)
{
    struct engine *e = calloc(1, sizeof(*e));
    if (!e)
        return -ENOMEM;
    e->config = *config;
    e->n_cpus = config->n_cpus;
    e->xcr0 = host_xcr0();
    soft_xsave_layout(e);
    pthread_mutex_init(&e->dma_lock, NULL);
    e->tsc_khz = measure_tsc_khz();
    e->vcpus = calloc(e->n_cpus, sizeof(*e->vcpus));
    int rc = e->vcpus ? cpuid_table_create(&e->cpuid, e->n_cpus, e->tsc_khz) : -ENOMEM;
    rc = rc ? rc : soft_cache_create(e);
    for (unsigned i = 0; !rc && i < e->n_cpus; i++)
        rc = vcpu_create(e, i);
    if (!rc)
        rc = soft_signals_install();
    if (rc) {
        soft_destroy(e);
        return rc;
    }
    config->bus->dma_dirty = dma_dirty;
    config->bus->dma_dirty_opaque = e;
    *out = e;
    return 0;
}

static struct cpu *soft_vcpu_cpu(struct engine *e, unsigned i)
{
    return &e->vcpus[i]->cpu;
}

static void soft_kick(struct engine *e, unsigned i)
{
    atomic_store(&e->vcpus[i]->poll, 1);
}

void *engine_soft_fpu(struct engine *e, unsigned i)
{
    return e->vcpus[i]->xsave;
}

/* The instructions most often done by a helper. */
static void print_helpers(const struct stats *s, FILE *out)
{
    bool shown[2048] = {false};
    for (unsigned n = 0; n < 24; n++) {
        unsigned best = 0;
        for (unsigned k = 1; k < 2048; k++)
            if (!shown[k] && s->by_mnemonic[k] > s->by_mnemonic[best])
                best = k;
        if (!best || !s->by_mnemonic[best])
            return;
        shown[best] = true;
        fprintf(out, "  helper %-14s %12llu\n", ZydisMnemonicGetString((ZydisMnemonic)best),
                (unsigned long long)s->by_mnemonic[best]);
    }
}

#define STAT(name) fprintf(out, "  %-14s %12llu\n", #name, (unsigned long long)s->name)
static void soft_stats(struct engine *e, FILE *out)
{
    for (unsigned i = 0; i < e->n_cpus; i++) {
        const struct stats *s = &e->vcpus[i]->stats;
        fprintf(out, "vcpu %u (software engine)\n", i);
        if (e->config.timing)
            soft_timing_print(e->vcpus[i], out);
        STAT(blocks);
        STAT(insns);
        STAT(guest_bytes);
        STAT(evictions);
        STAT(invalidated);
        STAT(enters);
        STAT(slow_read);
        STAT(slow_write);
        STAT(window_fill);
        STAT(window_refused);
        STAT(demoted);
        STAT(promoted);
        STAT(slow_cross);
        STAT(slow_mmio);
        STAT(slow_code);
        STAT(walks);
        STAT(tlb_flush);
        STAT(tlb_flush_page);
        STAT(cr3_writes);
        STAT(helpers);
        STAT(exits);
        STAT(chained);
        STAT(ibtc_miss);
        STAT(ibtc_insert);
        STAT(interrupts);
        STAT(polls);
        STAT(halts);
        STAT(signals);
        print_helpers(s, out);
        for (unsigned k = 0; k < 32; k++)
            if (s->exceptions[k])
                fprintf(out, "  exception %-4u %12llu\n", k, (unsigned long long)s->exceptions[k]);
    }
    fprintf(out, "code cache: %u bytes hot, %u bytes cold\n", e->cache.hot, e->cache.cold - e->cache.hot_end);
}

const struct engine_ops engine_soft = {
    .name = "soft",
    .probe = soft_probe,
    .create = soft_create,
    .destroy = soft_destroy,
    .vcpu = soft_vcpu_cpu,
    .run = soft_run,
    .kick = soft_kick,
    .stats = soft_stats,
};
