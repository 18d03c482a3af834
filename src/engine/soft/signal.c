/*
 * Exceptions that the real CPU raises inside translated code.
 *
 * A copied instruction may divide by zero, be undefined on this CPU, meet an unmasked SIMD exception, or
 * (a misaligned movaps) a protection fault: the kernel tells us by a signal.  The host's program
 * counter says which guest instruction it was, the registers are the guest's own, and the exception is
 * injected into the guest.  A signal anywhere else is a bug of ours and takes the default action.
 */
#include "engine/soft/soft_int.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/ucontext.h>

/* The one piece of per-thread state: a signal handler has no argument of ours. */
static _Thread_local struct soft_vcpu *current;

static const struct pc_map *find_map(const struct engine *e, const struct block *b, uint32_t at)
{
    const struct pc_map *map = &e->maps[b->first_map];
    const struct pc_map *best = NULL;
    bool cold = at >= e->cache.hot_end;
    at -= cold ? b->cold_start : b->hot_start;
    for (unsigned i = 0; i < b->n_map; i++)
        if (map[i].cold == cold && map[i].host <= at && (!best || map[i].host >= best->host))
            best = &map[i];
    return best;
}

static void save_registers(struct soft_vcpu *v, const greg_t *r)
{
    static const int regs[16] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
                                 REG_R8,  -1,      -1,      -1,      REG_R12, REG_R13, REG_R14, REG_R15};
    for (unsigned i = 0; i < 16; i++)
        if (regs[i] >= 0)
            v->cpu.gpr[i] = (uint64_t)r[regs[i]];
    v->cpu.rflags = (v->cpu.rflags & ~(uint32_t)FL_ARITH) | ((uint32_t)r[REG_EFL] & FL_ARITH);
}

static bool vector_of(int sig, const siginfo_t *info, const greg_t *r, struct soft_vcpu *v)
{
    v->signal_has_error = false;
    switch (sig) {
    case SIGILL:
        v->signal_vector = EXC_UD;
        return true;
    case SIGFPE:
        v->signal_vector = r[REG_TRAPNO] == EXC_MF ? EXC_MF : r[REG_TRAPNO] == EXC_XM ? EXC_XM : EXC_DE;
        return true;
    case SIGTRAP:
        v->signal_vector = EXC_DB;
        return true;
    case SIGBUS:
        v->signal_vector = r[REG_TRAPNO] == EXC_SS ? EXC_SS : EXC_AC;
        v->signal_has_error = true;
        return r[REG_TRAPNO] == EXC_AC || r[REG_TRAPNO] == EXC_SS;
    case SIGSEGV: /* #GP: the address is right, its alignment is not; a #PF would be a bug of ours */
        v->signal_vector = EXC_GP;
        v->signal_has_error = true;
        return r[REG_TRAPNO] == EXC_GP;
    default:
        return false;
    }
}

/* The memory access that belongs to a host address, if there is one; of two (pop to memory) the one under way. */
static const struct site *find_site(const struct soft_vcpu *v, const struct block *b, const struct pc_map *m,
                                    uint32_t at)
{
    const struct site *last = NULL;
    bool in_order = at >= b->hot_start && at < b->hot_end;
    for (uint32_t i = b->first_site; i < b->first_site + b->n_sites; i++) {
        const struct site *s = &v->engine->sites[i];
        if (s->pc != m->guest || s->helper || !s->size)
            continue;
        if (!in_order || s->next > at)
            return s;
        last = s;
    }
    return last;
}

/* An address that is not canonical reaches the CPU only from an empty slot (mmu.c): #SS through the stack's
 * segment, unless the operand is misaligned, which is looked at first. */
static bool empty_slot(const struct site *s, const greg_t *r)
{
    uint64_t host = (uint64_t)r[s->address == R9 ? REG_R9 : s->address == R10 ? REG_R10 : REG_R11];
    return (s->access & SITE_STACK) && host >> 47 && !(host & s->gp_align);
}

/* Some hosts (under PVM) do not return to a program whose RSP is not canonical: it gets #GP wherever it is then, or #UD
 * where the hypervisor cannot emulate the instruction.  So also between the guest's instructions, and in the glue. */
static bool is_lost_stack(const struct soft_vcpu *v, int sig, const greg_t *r)
{
    uint64_t rip = (uint64_t)r[REG_RIP], glue = (uint64_t)soft_enter;
    const struct code_cache *c = &v->engine->cache;
    bool ours = rip - (uint64_t)c->rx < c->size || rip - glue < (uint64_t)soft_glue_end - glue;
    bool refused = sig == SIGILL || (sig == SIGSEGV && r[REG_TRAPNO] == EXC_GP);
    return ours && refused && !cpu_canonical(&v->cpu, (uint64_t)r[REG_RSP]);
}

/* In a library's code: translated code has none. */
static bool is_cpuid(int sig, const greg_t *r)
{
    static const uint8_t bytes[] = {0x0f, 0xa2};
    return sig == SIGSEGV && r[REG_TRAPNO] == EXC_GP && !memcmp((const void *)r[REG_RIP], bytes, sizeof bytes);
}

/* The guest's program gets the #GP in turn: at the block, or where it was last seen.  Its other registers are as they
 * were there, since what is in the host's may be an address of ours. */
static void lose_stack(struct soft_vcpu *v, const struct block *b, const greg_t *r)
{
    v->signal_vector = EXC_GP;
    v->signal_has_error = true;
    v->signal_around = NULL;
    v->cpu.gpr[RSP] = (uint64_t)r[REG_RSP];
    if (b)
        v->cpu.rip = soft_site_pc(v, b);
}

static void default_action(int sig)
{
    signal(sig, SIG_DFL); /* returning runs the instruction again */
}

/* The guest's state at the instruction that has faulted. */
static void take_state(struct soft_vcpu *v, struct block *b, const struct pc_map *m, uint32_t at, const greg_t *r)
{
    const struct site *s = find_site(v, b, m, at);
    if (v->signal_vector == EXC_GP && s && empty_slot(s, r))
        v->signal_vector = EXC_SS;
    bool window = v->signal_vector == EXC_GP && !s && !(b->mode & MODE_UNGROUPED) && !b->no_windows;
    v->signal_around = window ? b : NULL;
    uint64_t rdi = v->cpu.gpr[RDI];
    save_registers(v, r);
    if (s && s->lent)
        v->cpu.gpr[RDI] = rdi;
    if (m->flags_in_memory) {
        v->arith = (uint16_t)v->slow_flags;
        soft_flags_in(v);
    }
    v->cpu.rip = soft_site_pc(v, b) + m->guest;
}

static void handler(int sig, siginfo_t *info, void *context)
{
    ucontext_t *uc = context;
    greg_t *r = uc->uc_mcontext.gregs;
    struct soft_vcpu *v = current;
    if (!v) {
        default_action(sig);
        return;
    }
    const struct code_cache *c = &v->engine->cache;
    uint64_t at = (uint64_t)r[REG_RIP] - (uint64_t)c->rx;
    struct block *b = at < c->size ? soft_block_of_host(v->engine, (uint32_t)at) : NULL;
    const struct pc_map *m = b ? find_map(v->engine, b, (uint32_t)at) : NULL;
    if (at >= c->size && is_cpuid(sig, r) && soft_direct_cpuid(v->engine))
        return;
    bool lost = !m && is_lost_stack(v, sig, r);
    if (!lost && (!m || !vector_of(sig, info, r, v))) {
        default_action(sig);
        return;
    }
    v->stats.signals++;
    if (lost)
        lose_stack(v, b, r);
    else
        take_state(v, b, m, (uint32_t)at, r);
    r[REG_RIP] = (greg_t)soft_glue_signal;
    r[REG_RSP] = (greg_t)v->host_rsp;
    r[REG_EFL] &= ~(greg_t)(FL_DF | FL_TF | FL_AC);
}

/* From glue, out of the handler: SIMD state is live again as the instruction left it. */
const void *soft_signal_fault(struct soft_vcpu *v)
{
    soft_end_locked(v);
    if (v->signal_around) {
        const void *around = soft_next_ungrouped(v, v->signal_around);
        soft_flags_out(v);
        return around;
    }
    if (v->signal_vector == EXC_XM && !(v->cpu.cr4 & CR4_OSXMMEXCPT))
        v->signal_vector = EXC_UD; /* SDM vol. 3, 6.15, interrupt 19 */
    if (v->signal_has_error)
        cpu_raise_error(&v->cpu, v->signal_vector, 0);
    else
        cpu_raise(&v->cpu, v->signal_vector);
    const void *next = soft_deliver(v);
    soft_flags_out(v);
    return next;
}

int soft_signals_install(void)
{
    static const int signals[] = {SIGILL, SIGFPE, SIGSEGV, SIGBUS, SIGTRAP};
    struct sigaction sa = {.sa_sigaction = handler, .sa_flags = SA_SIGINFO | SA_ONSTACK};
    sigemptyset(&sa.sa_mask);
    for (unsigned i = 0; i < sizeof(signals) / sizeof(signals[0]); i++)
        if (sigaction(signals[i], &sa, NULL) < 0)
            return -errno;
    return 0;
}

void soft_signals_thread(struct soft_vcpu *v)
{
    if (current == v)
        return;
    current = v;
    size_t bytes = 128u << 10;
    void *stack = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (stack == MAP_FAILED)
        return;
    stack_t ss = {.ss_sp = stack, .ss_size = bytes};
    sigaltstack(&ss, NULL);
}
