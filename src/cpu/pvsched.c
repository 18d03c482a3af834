/*
 * What KVM lets a guest know of its vCPUs that do not run, and what the guest may ask for them
 * (Linux: Documentation/virt/kvm/x86, msr.rst and hypercalls.rst).
 *
 *      steal page, MSR 4b564d03:  u64 steal (ns), u32 version, u32 flags, u8 preempted, u8 pad[3], u32 pad[11]
 *      hypercall, VMCALL or VMMCALL:  number in rax, arguments in rbx, rcx, rdx, rsi; the result in rax
 *
 * version is odd while steal is being written.  `preempted` is written by others as well: who flushes TLBs asks a vCPU
 * that does not run to flush its own before it goes on, instead of waking it up.
 */
#include <stddef.h>

#include "cpu/cpu_int.h"

struct pv_steal {
    uint64_t steal;
    uint32_t version, flags;
    uint8_t preempted, pad[47];
};
_Static_assert(sizeof(struct pv_steal) == 64, "as KVM's");

enum { PREEMPTED = 1, FLUSH_TLB = 2 };
enum { ENABLED = 1 };

static struct pv_steal *steal_page(struct cpu *cpu)
{
    if (!(cpu->steal_time & ENABLED))
        return NULL;
    return cpu_hva_for_write(cpu, cpu->steal_time & ~63ull, sizeof(struct pv_steal));
}

void cpu_steal_update(struct cpu *cpu, uint64_t ns)
{
    volatile struct pv_steal *page = steal_page(cpu);
    if (!page)
        return;
    uint32_t version = page->version | 1;
    page->version = version; /* x86 keeps stores in order; the compiler does by volatile */
    page->steal = ns;
    page->version = version + 1;
}

uint64_t cpu_steal_shown(struct cpu *cpu)
{
    const struct pv_steal *page = steal_page(cpu);
    return page ? page->steal : 0;
}

void cpu_halts(struct cpu *cpu)
{
    struct pv_steal *page = steal_page(cpu);
    if (page)
        __atomic_store_n(&page->preempted, PREEMPTED, __ATOMIC_SEQ_CST);
}

void cpu_goes_on(struct cpu *cpu)
{
    struct pv_steal *page = steal_page(cpu);
    if (page && (__atomic_exchange_n(&page->preempted, 0, __ATOMIC_SEQ_CST) & FLUSH_TLB))
        cpu->ops->tlb_flush_all(cpu, true);
}

/* --- hypercalls -------------------------------------------------------------------------------------------- */

enum { KICK_CPU = 5, SEND_IPI = 10, SCHED_YIELD = 11 };
enum { NOT_PERMITTED = -1, NOT_THERE = -1000 };

static int64_t send_ipi(struct cpu *cpu, const uint64_t args[4])
{
    return cpu->irq && cpu->irq->send_ipi ? cpu->irq->send_ipi(cpu->irq_opaque, args) : NOT_THERE;
}

static int64_t kick(struct cpu *cpu, const uint64_t args[4])
{
    return cpu->irq && cpu->irq->wake ? cpu->irq->wake(cpu->irq_opaque, args[1]) : NOT_THERE;
}

bool cpu_hypercall(struct cpu *cpu)
{
    const bool wide = cpu_64bit(cpu);
    const uint64_t mask = wide ? UINT64_MAX : UINT32_MAX, number = cpu->gpr[RAX] & mask;
    const uint64_t args[4] = {cpu->gpr[RBX] & mask, cpu->gpr[RCX] & mask, cpu->gpr[RDX] & mask, cpu->gpr[RSI] & mask};
    int64_t result = NOT_THERE;
    if (cpu->cpl)
        result = NOT_PERMITTED;
    else if (number == KICK_CPU)
        result = kick(cpu, args);
    else if (number == SEND_IPI && wide) /* a mask of 128 bits in two of them */
        result = send_ipi(cpu, args);
    else if (number == SCHED_YIELD)
        result = 0;
    cpu->gpr[RAX] = (uint64_t)result & mask;
    return number == SCHED_YIELD && !cpu->cpl;
}
