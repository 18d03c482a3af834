/*
 * The second tier: between the vCPU's state and the process that runs an address space.
 */
#include "engine/soft/direct.h"

#include <asm/hwcap2.h>
#include <asm/prctl.h>
#include <cpuid.h>
#include <errno.h>
#include <limits.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/error.h"
#include "base/file.h"
#include "base/log.h"

#define HOST_CS 0x33 /* of 64-bit user code: the kernel's, for every process */
#define HOST_SS 0x2b

/* Of the flags, what user code may change of its own; and of those, what a signal handler's return does not set. */
#define FLAGS_USER (FL_ARITH | FL_DF | FL_TF | FL_AC | FL_NT | FL_ID)
#define FLAGS_EXTRA (FL_NT | FL_ID)

/* --- life -------------------------------------------------------------------------------------------------- */

static uint64_t host_xcr0(void)
{
    uint32_t a, d;
    __asm__("xgetbv" : "=a"(a), "=d"(d) : "c"(0));
    return (uint64_t)d << 32 | a;
}

static bool host_has_rdpid(void)
{
    unsigned a, b, c, d;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (c >> 22 & 1);
}

static uint32_t host_mxcsr_mask(void)
{
    uint8_t area[512] __attribute__((aligned(16)));
    uint32_t mask;
    memset(area, 0, sizeof area);
    __asm__ volatile("fxsave64 %0" : "+m"(area));
    memcpy(&mask, area + 28, 4);
    return mask ? mask : 0xffbf;
}

/* Instructions for programs, by the bits of CPUID that announce them. */
static const struct {
    uint32_t leaf, subleaf;
    struct cpuid_regs bits;
} for_programs[] = {
    {1, 0, {.ecx = 0x72d83203, .edx = 0x07808100}},
    {7, 0, {.ebx = 0xfdaf4b39, .ecx = 0x3ac05f7b, .edx = 0x03c1413c}},
    {7, 1, {.eax = 0x00e01cbf, .edx = UINT32_MAX}},
    {0xd, 1, {.eax = 7}},
    {0x80000001, 0, {.ecx = 0x20218961, .edx = 0xc8400000}},
    {0x80000008, 0, {.ebx = 0x11}},
};

/* Does the host's CPUID show programs no more than the guest's?  (Numbers of processors are others.) */
static bool shows_the_same(const struct cpu *c)
{
    for (size_t i = 0; i < sizeof for_programs / sizeof *for_programs; i++) {
        struct cpuid_regs h = {0}, g, bits = for_programs[i].bits;
        cpu_cpuid(c, for_programs[i].leaf, for_programs[i].subleaf, &g);
        if (for_programs[i].leaf <= __get_cpuid_max(for_programs[i].leaf & 0x80000000, NULL))
            __cpuid_count(for_programs[i].leaf, for_programs[i].subleaf, h.eax, h.ebx, h.ecx, h.edx);
        if ((h.eax & bits.eax & ~g.eax) || (h.ebx & bits.ebx & ~g.ebx) || (h.ecx & bits.ecx & ~g.ecx) ||
            (h.edx & bits.edx & ~g.edx))
            return false;
    }
    return true;
}

/* An eighth of what a process may have is left to the stub, and to mappings that the kernel splits. */
static unsigned mappings(void)
{
    char *text, err[ERROR_SIZE];
    unsigned long may = MIRROR_MAPPINGS;
    if (file_read("/proc/sys/vm/max_map_count", 64, &text, NULL, err, sizeof err) == 0) {
        may = strtoul(text, NULL, 10);
        free(text);
    }
    may = may < 4096 ? 4096 : may > INT_MAX ? INT_MAX : may;
    return (unsigned)(may - may / 8);
}

static int start(struct direct *d)
{
    d->writable = calloc(d->engine->n_pages, 1);
    if (!d->writable)
        return -ENOMEM;
    int failed = copies_start(d);
    if (failed)
        return error_sys(d->why, sizeof d->why, failed, "guest code cannot run directly");
    d->host_xcr0 = host_xcr0();
    d->cpuid_traps = syscall(SYS_arch_prctl, ARCH_SET_CPUID, 1) == 0; /* 1: as it is; a host that cannot says so */
    d->cpuid_tells = !d->cpuid_traps && (d->host_xcr0 != d->engine->xcr0 || !shows_the_same(&d->engine->vcpu->cpu));
    d->has_rdpid = host_has_rdpid();
    d->bases_by_calls = !(getauxval(AT_HWCAP2) & HWCAP2_FSGSBASE);
    d->mxcsr_mask = host_mxcsr_mask();
    d->mappings = mappings();
    d->cpu = -1;
    if (syscall(SYS_sched_getaffinity, 0, sizeof d->cpus, d->cpus) < 0)
        memset(d->cpus, 0xff, sizeof d->cpus);
    d->random = 1;
    return direct_child_start(d, d->why, sizeof d->why);
}

/* That it cannot be had is no error: `why` is for the statistics. */
int soft_direct_create(struct engine *e)
{
    if (e->config.direct == ENGINE_DIRECT_OFF)
        return 0;
    struct direct *d = calloc(1, sizeof *d);
    if (!d)
        return -ENOMEM;
    d->engine = e;
    d->mode = e->config.direct;
    e->direct = d;
    int r = start(d);
    if (r)
        d->mode = ENGINE_DIRECT_OFF;
    return r == -ENOMEM ? r : 0;
}

void soft_direct_destroy(struct engine *e)
{
    struct direct *d = e->direct;
    if (!d)
        return;
    copies_stop(d);
    for (unsigned i = 0; i < DIRECT_SLOTS; i++)
        pages_free(&d->slots[i]), free(d->slots[i].initial);
    free(d->writable);
    free(d);
    e->direct = NULL;
}

static void begin_anew(struct direct *d, bool possible)
{
    for (unsigned i = 0; i < DIRECT_SLOTS; i++) {
        struct direct_slot *s = &d->slots[i];
        pages_free(s);
        s->state = SLOT_NONE;
        s->root = 0;
        s->stale = s->clear = false;
        s->n_calls = s->n_pending = s->n_code = 0;
        s->fault = 0;
    }
    memset(d->writable, 0, d->engine->n_pages);
    memset(d->copies, 0, sizeof d->copies);
    d->current = NULL;
    copies_stop(d);
    if (!possible || copies_start(d)) {
        d->mode = ENGINE_DIRECT_OFF;
        d->spare = NULL;
        error_set(d->why, sizeof d->why, 0, "its processes cannot get at the memory of a machine that was forked");
    }
}

bool soft_direct_began(const struct engine *e)
{
    return e->direct && e->direct->stats.started;
}

void soft_direct_memory(struct peers *p)
{
    for (unsigned i = 0; i < p->n; i++)
        for (unsigned k = 0; p->of[i]->direct && k < DIRECT_SLOTS; k++)
            p->of[i]->direct->slots[k].clear = true; /* what can be written to has to be announced again */
    if (!direct_child_memory_differs(p))
        return;
    bool possible = direct_child_memory(p);
    for (unsigned i = 0; i < p->n; i++)
        if (p->of[i]->direct && p->of[i]->direct->mode != ENGINE_DIRECT_OFF)
            begin_anew(p->of[i]->direct, possible);
}

/* --- state ------------------------------------------------------------------------------------------------- */

/* What differs from the state of 64-bit user code on a host, as Linux has it, stays in tier 1. */
bool direct_suitable(const struct soft_vcpu *v, const struct direct *d)
{
    const struct cpu *c = &v->cpu;
    static const uint8_t empty[] = {DS, ES, FS, GS};
    const uint32_t plain = MMU_USER | MODE_64 | MODE_FSGSBASE;
    if (c->cpl != 3 || v->mode != plain || (c->rflags & (FL_AC | FL_TF)) || v->n_watch || !(c->rflags & FL_IF) ||
        !(c->cr0 & CR0_AM) || (c->cr4 & CR4_LA57))
        return false;
    if (c->seg[CS].selector != HOST_CS || c->seg[SS].selector != HOST_SS || c->rip >= DIRECT_TOP)
        return false;
    for (unsigned i = 0; i < sizeof empty; i++)
        if (c->seg[empty[i]].selector)
            return false;
    if (d->bases_by_calls && (c->seg[FS].base >= DIRECT_TOP || c->seg[GS].base >= DIRECT_TOP))
        return false;
    return true;
}

static struct direct_context *context(const struct direct_slot *s)
{
    return (struct direct_context *)(s->stack + s->frame + FRAME_CONTEXT);
}

/* Where the kernel's frame has the registers, by their numbers in instructions. */
#define AT(name) offsetof(struct direct_context, name) / 8
static const uint8_t register_at[16] = {AT(rax), AT(rcx), AT(rdx), AT(rbx), AT(rsp), AT(rbp), AT(rsi), AT(rdi),
                                        AT(r8),  AT(r9),  AT(r10), AT(r11), AT(r12), AT(r13), AT(r14), AT(r15)};

enum { XSTATE_BV = 512, XSTATE_HEADER_END = 576, SW_BYTES = 464, XCR0_PKRU = 1 << 9 };

static void simd_copy(const struct engine *e, uint8_t *to, const uint8_t *from, uint64_t components, uint32_t size)
{
    cpu_copy(to, from, SW_BYTES);
    for (unsigned i = 2; i < 8; i++)
        if ((components >> i & 1) && e->xs_size[i] && e->xs_offset[i] + e->xs_size[i] <= size)
            cpu_copy(to + e->xs_offset[i], from + e->xs_offset[i], e->xs_size[i]);
}

static void simd_out(struct soft_vcpu *v, const struct direct_slot *s)
{
    uint8_t *area = s->stack + s->fpstate;
    uint64_t have, more;
    cpu_copy(area, s->initial + FRAME_CONTEXT - FRAME_UCONTEXT, s->fpstate_size);
    cpu_copy(&have, v->xsave + XSTATE_BV, 8);
    cpu_copy(&more, area + XSTATE_BV, 8);
    have &= v->engine->xcr0;
    simd_copy(v->engine, area, v->xsave, have, s->fpstate_size);
    have |= more & XCR0_PKRU;
    cpu_copy(area + XSTATE_BV, &have, 8);
}

/* The guest may have written to it what it liked: nothing of it may make our XRSTOR fault. */
static void simd_in(struct soft_vcpu *v, const struct direct *d, const struct direct_slot *s)
{
    const uint8_t *area = s->stack + s->fpstate;
    uint64_t have;
    uint32_t mxcsr;
    cpu_copy(&have, area + XSTATE_BV, 8);
    have &= v->engine->xcr0;
    simd_copy(v->engine, v->xsave, area, have, s->fpstate_size);
    for (unsigned i = XSTATE_BV; i < XSTATE_HEADER_END; i++)
        v->xsave[i] = 0;
    cpu_copy(v->xsave + XSTATE_BV, &have, 8);
    cpu_copy(&mxcsr, v->xsave + 24, 4);
    mxcsr &= d->mxcsr_mask;
    cpu_copy(v->xsave + 24, &mxcsr, 4);
    if (have & 1)
        return;
    for (unsigned i = 0; i < 160; i++) /* x87 as it is initially: some look at it here */
        if (i < 24 || i >= 32)
            v->xsave[i] = 0;
    v->xsave[0] = 0x7f, v->xsave[1] = 3;
}

/* The bases of FS and GS.  By calls, which cost as much as a tenth of an exit, they are set again only where the guest
 * has others now; or where another program may have set them, which its root does not tell once that is used again. */
static void bases_out(const struct cpu *c, const struct direct *d, struct direct_slot *s)
{
    const uint64_t fs = c->seg[FS].base, gs = c->seg[GS].base;
    const bool known = s->based && s->loads == d->loads;
    s->orders->fs_base = fs, s->orders->gs_base = gs;
    s->shared->fs_base = s->shared->gs_base = 0; /* of whoever ran before */
    s->orders->tasks = (d->trap_tsc ? 0 : TASK_CLOCK) |
                       (!d->bases_by_calls ? TASK_BASES
                                           : (known && fs == s->fs_base ? 0 : TASK_SET_FS) |
                                                 (known && gs == s->gs_base ? 0 : TASK_SET_GS));
    s->fs_base = fs, s->gs_base = gs;
    s->loads = d->loads;
    s->based = true;
}

static void state_out(struct soft_vcpu *v, const struct direct *d, struct direct_slot *s)
{
    const struct cpu *c = &v->cpu;
    struct direct_context *k = context(s);
    const uint64_t no_mask = 0;
    cpu_copy(s->stack + s->frame + FRAME_UCONTEXT, s->initial, FRAME_CONTEXT - FRAME_UCONTEXT);
    for (unsigned i = 0; i < 16; i++)
        ((uint64_t *)k)[register_at[i]] = c->gpr[i];
    k->rip = c->rip;
    k->eflags = (c->rflags & (FL_ARITH | FL_DF)) | FL_ONE | FL_IF;
    k->cs = HOST_CS, k->ss = HOST_SS, k->fs = k->gs = 0;
    k->fpstate = DIRECT_STACK + s->fpstate;
    cpu_copy(s->stack + s->frame + FRAME_MASK, &no_mask, 8);
    s->orders->flags = (c->rflags & FLAGS_EXTRA) | FL_ONE;
    bases_out(c, d, s);
    simd_out(v, s);
}

static uint64_t user_base(const struct soft_vcpu *v, uint64_t base)
{
    return cpu_canonical(&v->cpu, base) ? base : 0;
}

/* Segment registers that it has loaded: again, from the guest's own tables.  What these do not allow is left out. */
static void selectors_in(struct soft_vcpu *v, const struct direct *d, struct direct_slot *s,
                         const struct direct_context *k)
{
    struct cpu *c = &v->cpu;
    const struct direct_state *st = s->shared;
    const uint32_t loaded[] = {[ES] = st->es, [SS] = k->ss, [DS] = st->ds, [FS] = st->fs, [GS] = st->gs};
    for (unsigned i = ES; i <= GS; i++)
        if (i != CS && (uint16_t)loaded[i] != c->seg[i].selector)
            (void)cpu_load_segment(c, i, (uint16_t)loaded[i]);
    if (d->bases_by_calls) {
        s->based &= !(loaded[FS] | loaded[GS]);
    } else {
        c->seg[FS].base = user_base(v, st->fs_base);
        c->seg[GS].base = user_base(v, st->gs_base);
    }
    if (k->cs != HOST_CS && cpu_far_jump(c, k->cs, c->rip, 8))
        c->rip = DIRECT_TOP; /* faults there */
}

static void state_in(struct soft_vcpu *v, const struct direct *d, struct direct_slot *s, const struct direct_context *k)
{
    struct cpu *c = &v->cpu;
    for (unsigned i = 0; i < 16; i++)
        c->gpr[i] = ((const uint64_t *)k)[register_at[i]];
    c->rip = k->rip;
    c->rflags = (c->rflags & ~(uint32_t)FLAGS_USER) | ((uint32_t)k->eflags & FLAGS_USER);
    simd_in(v, d, s);
    selectors_in(v, d, s, k);
    soft_update_mode(v);
}

/* --- exits ------------------------------------------------------------------------------------------------- */

struct stop {
    int signal;
    uint64_t trap, error, address, call; /* of the last exception; the address of a system call */
};

static void stop_read(const struct direct_slot *s, const struct direct_context *k, struct stop *why)
{
    const uint8_t *info = s->stack + s->frame + FRAME_INFO;
    *why = (struct stop){.trap = k->trapno, .error = k->err, .address = k->cr2};
    cpu_copy(&why->signal, info, 4);
    cpu_copy(&why->call, info + 16, 8);
}

/* The instruction is begun again, by tier 1, which knows what it does to a guest. */
static void back(struct soft_vcpu *v, unsigned bytes)
{
    v->cpu.rip -= bytes;
}

static enum direct_exit system_call(struct soft_vcpu *v, const struct stop *why)
{
    if (why->call != v->cpu.rip) { /* in the kernel's half: by its page for old programs, which has returned */
        v->cpu.gpr[RSP] -= 8;
        v->cpu.rip = why->call;
        return DIRECT_EXCEPTION;
    }
    back(v, 2);
    return DIRECT_SYSCALL;
}

static enum direct_exit trap(struct soft_vcpu *v, const struct stop *why)
{
    if (why->trap == EXC_DB && (v->cpu.rflags & FL_TF))
        return DIRECT_TRAP;
    back(v, 1); /* int3, int1 */
    return DIRECT_EXCEPTION;
}

static enum direct_exit understand(struct soft_vcpu *v, struct direct *d, struct direct_slot *s, const struct stop *why)
{
    switch (why->signal) {
    case SIGUSR1:
        return DIRECT_KICK;
    case SIGSYS:
        return system_call(v, why);
    case SIGTRAP:
        return trap(v, why);
    case SIGSEGV:
    case SIGBUS:
        if (why->trap == EXC_PF)
            return mirror_miss(v, d, s, why->address,
                               why->error & PFERR_I   ? ACCESS_EXEC
                               : why->error & PFERR_W ? ACCESS_WRITE
                                                      : ACCESS_READ);
        return DIRECT_EXCEPTION;
    default:
        return DIRECT_EXCEPTION;
    }
}

/* --- a stay ------------------------------------------------------------------------------------------------ */

/* For another address space: one that starts, or has none; a new one; else that which has not run for longest. */
static struct direct_slot *free_slot(struct direct *d)
{
    struct direct_slot *none = NULL, *oldest = NULL;
    for (unsigned i = 0; i < DIRECT_SLOTS; i++) {
        struct direct_slot *s = &d->slots[i];
        if (s->state == SLOT_STARTING || (s->state == SLOT_READY && !s->root))
            return s;
        if (s->state == SLOT_NONE && !none)
            none = s;
        if (s->state == SLOT_READY && (!oldest || s->used < oldest->used))
            oldest = s;
    }
    return none ? none : oldest;
}

/* While that is not known, no process has run any of the guest's code. */
static bool measure(struct soft_vcpu *v, struct direct *d, struct direct_slot *s)
{
    direct_child_measure(v, d, s);
    if (!d->price.known)
        return false;
    mirror_forget(d, s);
    return true;
}

static struct direct_slot *slot_of(struct soft_vcpu *v, struct direct *d, uint64_t root)
{
    for (unsigned i = 0; i < DIRECT_SLOTS; i++)
        if (d->slots[i].state == SLOT_READY && d->slots[i].root == root)
            return &d->slots[i];
    struct direct_slot *s = free_slot(d);
    if (!s || !direct_slot_ready(d, s))
        return NULL;
    if (!d->price.known && !measure(v, d, s))
        return NULL;
    if (s->root)
        mirror_forget(d, s);
    s->root = root;
    s->stale = s->clear = false;
    s->n_pending = s->n_code = 0;
    mirror_prefill(v, d, s);
    return s;
}

static struct direct_slot *choose(struct soft_vcpu *v, struct direct *d)
{
    const uint64_t root = direct_root(v);
    const uint16_t pcid = direct_pcid(v);
    struct direct_slot *s = d->current && d->current->root == root ? d->current : slot_of(v, d, root);
    if (!s)
        return NULL;
    if (s->pcid != pcid)
        s->stale = true;
    s->pcid = pcid;
    s->used = ++d->clock;
    d->current = s;
    return s;
}

/* The process is of no more use; what a guest's program had in its registers may be gone with it. */
static void lose(struct soft_vcpu *v, struct direct *d, struct direct_slot *s)
{
    for (uint64_t page = 0; page < v->engine->n_pages; page++)
        d->writable[page] &= (uint8_t) ~(1u << (s - d->slots));
    pages_free(s);
    s->root = 0;
    d->current = NULL;
    direct_slot_replace(d, s);
}

/* Processes that read the host's clock, or such that do not. */
static void follow_clock(struct soft_vcpu *v, struct direct *d)
{
    if (d->trap_tsc == (v->cpu.tsc_offset != 0))
        return;
    d->trap_tsc = !d->trap_tsc;
    for (unsigned i = 0; i < DIRECT_SLOTS; i++)
        if (d->slots[i].state != SLOT_NONE)
            lose(v, d, &d->slots[i]);
}

/* Until something is to be done that only tier 1 can do.  The mirror is right to begin with. */
static enum direct_exit stay(struct soft_vcpu *v, struct direct *d, struct direct_slot *s)
{
    uint64_t last_miss = 0, last_rip = 0;
    for (;;) {
        state_out(v, d, s);
        const uint64_t gone = s->shared->gone, start = __builtin_ia32_rdtsc();
        int r = direct_child_run(v, d, s);
        s->based &= r == 0; /* else it has not got to setting them */
        if (r == -ECANCELED)
            return DIRECT_KICK;
        d->stats.ticks += __builtin_ia32_rdtsc() - start;
        d->ran += direct_child_ran(d, s);
        d->stats.entries++;
        if (r == -ESRCH) {
            enum direct_exit how = d->trap_tsc || s->shared->gone != gone ? DIRECT_LOST : DIRECT_ENDED;
            if (d->stats.exits[how]++ == 0 && how == DIRECT_LOST)
                log_say(
                    "a process that ran a program of the guest's was lost, and that program gets a general-protection "
                    "fault; if more of them do, use --engine soft,direct=off");
            lose(v, d, s);
            return how;
        }
        if (r == -ENOMEM) {
            s->clear = true;
            return DIRECT_REFUSED;
        }
        struct direct_context k = *context(s);
        /* a program's doing, perhaps an earlier one's: not ours */
        if (r == -EPROTO || (k.rip >= DIRECT_BASE && k.rip < DIRECT_END)) {
            d->stats.exits[DIRECT_STRAY]++;
            lose(v, d, s);
            return DIRECT_STRAY;
        }
        struct stop why;
        stop_read(s, &k, &why);
        state_in(v, d, s, &k);
        enum direct_exit exit = understand(v, d, s, &why);
        d->stats.exits[exit]++;
        if (exit != DIRECT_MAPPED)
            return exit;
        if (v->poll)
            return DIRECT_KICK;
        if (last_miss == (why.address & ~4095ull) + (why.error & 31) && last_rip == k.rip)
            return DIRECT_REFUSED;
        last_miss = (why.address & ~4095ull) + (why.error & 31), last_rip = k.rip;
        if (!direct_suitable(v, d))
            return DIRECT_EXCEPTION;
        mirror_refresh(v, d, s);
    }
}

/* --- the way in and out ---------------------------------------------------------------------------------------- */

#define PIECES 32u /* of translated code in a page that cannot be executed, before it stays there */

static bool wanted(struct soft_vcpu *v, struct direct *d)
{
    if (v->cpu.cpl != 3 || v->poll || !soft_direct_armed(v) || !direct_suitable(v, d))
        return false;
    if (d->mode != ENGINE_DIRECT_RANDOM)
        return true;
    d->random = d->random * 1664525 + 1013904223;
    return d->random >> 31;
}

enum direct_next soft_direct_run(struct soft_vcpu *v)
{
    struct direct *d = v->engine->direct;
    if (!wanted(v, d))
        return DIRECT_NEXT_CODE;
    follow_clock(v, d);
    struct direct_slot *s = choose(v, d);
    if (!s)
        return DIRECT_NEXT_CODE;
    mirror_refresh(v, d, s);
    if (mirror_hidden(s, v->cpu.rip))
        return d->pieces++ < PIECES ? DIRECT_NEXT_PIECE : DIRECT_NEXT_CODE;
    d->pieces = 0;
    struct space *sp = space_of(d, direct_root(v));
    uint64_t misses = d->stats.misses;
    if (!sp->began)
        space_begin(d, s, sp);
    enum direct_exit exit = stay(v, d, s);
    space_judge(d, s, sp, exit, (unsigned)(d->stats.misses - misses));
    switch (exit) {
    case DIRECT_KICK:
        return DIRECT_NEXT_LOOP;
    case DIRECT_FAULT:
        return DIRECT_NEXT_DELIVER;
    case DIRECT_STRAY:
    case DIRECT_ENDED:
        space_give_up(d, sp, true);
        return DIRECT_NEXT_CODE;
    case DIRECT_LOST: /* its program is to know */
        space_give_up(d, sp, true);
        cpu_raise_error(&v->cpu, EXC_GP, 0);
        return DIRECT_NEXT_DELIVER;
    case DIRECT_TRAP:
        cpu_raise_debug(&v->cpu, DR6_BS);
        return DIRECT_NEXT_DELIVER;
    case DIRECT_EXCEPTION:
    case DIRECT_CODE:
        return DIRECT_NEXT_INSTRUCTION;
    case DIRECT_HIDDEN:
        return DIRECT_NEXT_PIECE;
    default:
        return DIRECT_NEXT_CODE;
    }
}

void soft_direct_stats(struct engine *e, FILE *out)
{
    static const char *const names[DIRECT_EXITS] = {
        [DIRECT_MAPPED] = "page mapped", [DIRECT_KICK] = "interrupt",      [DIRECT_SYSCALL] = "system call",
        [DIRECT_FAULT] = "page fault",   [DIRECT_EXCEPTION] = "exception", [DIRECT_TRAP] = "single step",
        [DIRECT_CODE] = "store to code", [DIRECT_HIDDEN] = "hidden code",  [DIRECT_REFUSED] = "refused",
        [DIRECT_LOST] = "lost",          [DIRECT_STRAY] = "in the stub",   [DIRECT_ENDED] = "ended",
    };
    const struct direct *d = e->direct;
    if (!d)
        return;
    const struct direct_stats *s = &d->stats;
    if (d->why[0])
        fprintf(out, "direct execution: none, %s\n", d->why);
    fprintf(out,
            "direct execution: %llu ms in %llu entries, %llu ms of that in the guest's code; %llu processes, %llu "
            "times tried, "
            "%llu given up, %llu faster in translated code\n",
            (unsigned long long)(s->ticks / e->tsc_khz), (unsigned long long)s->entries,
            (unsigned long long)(d->ran / e->tsc_khz), (unsigned long long)s->started, (unsigned long long)s->tried,
            (unsigned long long)s->given_up, (unsigned long long)s->compared);
    if (d->price.known)
        fprintf(out, "  an exit costs %llu ns\n", (unsigned long long)d->price.wall);
    fprintf(out, "  pages mapped %llu, unmapped %llu, checked %llu; mirrors cleared %llu, made room in %llu\n",
            (unsigned long long)s->mapped, (unsigned long long)s->unmapped, (unsigned long long)s->checked,
            (unsigned long long)s->cleared, (unsigned long long)s->evicted);
    for (unsigned i = 0; i < DIRECT_EXITS; i++)
        if (s->exits[i])
            fprintf(out, "  left for %-14s %12llu\n", names[i], (unsigned long long)s->exits[i]);
}
