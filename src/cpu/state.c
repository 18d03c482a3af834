/* Power-on state, INIT and the recording of exceptions.  SDM vol. 3, 9.1.1 (table 9-1) and 6.15. */
#include "cpu/cpu_int.h"

enum { RESET_CR0 = 0x60000010 };

/* SDM table 9-1: what both RESET and INIT give. */
static void reset_common(struct cpu *cpu)
{
    for (unsigned i = 0; i < 16; i++)
        cpu->gpr[i] = 0;
    const struct cpuid_regs *version = cpu->cpuid ? cpuid_find(cpu->cpuid, 1, 0) : NULL;
    cpu->gpr[RDX] = version ? version->eax : 0x600;
    for (unsigned i = 0; i < 6; i++)
        cpu->seg[i] = (struct segment){.attr = SEG_P | SEG_S | SEG_WRITABLE | SEG_ACCESSED, .limit = 0xffff};
    cpu->seg[CS] = (struct segment){.selector = 0xf000,
                                    .base = 0xffff0000,
                                    .limit = 0xffff,
                                    .attr = SEG_P | SEG_S | SEG_CODE | SEG_READABLE | SEG_ACCESSED};
    cpu->rip = 0xfff0;
    cpu->rflags = FL_ONE;
    cpu->gdtr = cpu->idtr = (struct descriptor_table){.limit = 0xffff};
    cpu->ldtr = (struct segment){.attr = SEG_P | SYS_LDT, .limit = 0xffff};
    cpu->tr = (struct segment){.attr = SEG_P | SYS_TSS_BUSY, .limit = 0xffff};
    for (unsigned i = 0; i < 4; i++)
        cpu->dr[i] = 0;
    cpu->dr6 = 0xffff0ff0;
    cpu->dr7 = 0x400;
    cpu->cr2 = cpu->cr3 = cpu->cr4 = cpu->efer = 0;
    cpu->cpl = cpu->irq_shadow = cpu->nmi_blocked = cpu->halted = cpu->unhalted = cpu->delivering = 0;
    cpu->kernel_gs_base = 0;
}

/* The processor whose index is 0 is the bootstrap processor; the others sleep until SIPI. */
static void wait_for_sipi(struct cpu *cpu)
{
    cpu->wait_sipi = cpu->halted = cpu->index != 0;
}

void cpu_reset(struct cpu *cpu)
{
    reset_common(cpu);
    cpu->cr0 = RESET_CR0;
    cpu->xcr0 = 1;
    cpu->star = cpu->lstar = cpu->cstar = cpu->sfmask = 0;
    cpu->sysenter_cs = cpu->sysenter_esp = cpu->sysenter_eip = 0;
    cpu->pat = 0x0007040600070406ull;
    cpu->tsc_aux = cpu->tsc_adjust = cpu->spec_ctrl = 0;
    cpu->debug_control = cpu->virt_spec_ctrl = cpu->decode_config = 0;
    cpu->misc_enable = 0x1801; /* fast strings; no branch trace, no PEBS */
    /* A reset clears MTRR enable and leaves it to the firmware.  A directly booted kernel has no
     * firmware before it, and no cache is modelled here: start as firmware leaves it, enabled and
     * write-back (otherwise Linux turns PAT off). */
    cpu->mtrr_def_type = 0x806;
    for (unsigned i = 0; i < 11; i++)
        cpu->mtrr_fixed[i] = 0;
    for (unsigned i = 0; i < 8; i++)
        cpu->mtrr_base[i] = cpu->mtrr_mask[i] = 0;
    cpu->mcg_status = 0;
    cpu->kvmclock_system_time = cpu->kvmclock_wall = 0;
    cpu->steal_time = cpu->pv_eoi = 0;
    /* The host's, as long as the guest does not set it: so programs that run directly may read it. */
    cpu->tsc_offset = 0;
    atomic_store(&cpu->request, 0);
    wait_for_sipi(cpu);
    cpu_mode_changed(cpu);
    if (cpu->ops && cpu->ops->tlb_flush_all)
        cpu->ops->tlb_flush_all(cpu, true);
}

void cpu_init_signal(struct cpu *cpu)
{
    uint64_t cache = cpu->cr0 & (CR0_CD | CR0_NW);
    reset_common(cpu); /* INIT keeps XCR0, MTRRs, TSC and the syscall MSRs */
    cpu->cr0 = CR0_ET | cache;
    wait_for_sipi(cpu);
    cpu_mode_changed(cpu);
    if (cpu->ops && cpu->ops->tlb_flush_all)
        cpu->ops->tlb_flush_all(cpu, true);
}

void cpu_mode_changed(struct cpu *cpu)
{
    if (cpu->ops && cpu->ops->mode_changed)
        cpu->ops->mode_changed(cpu);
}

int cpu_raise(struct cpu *cpu, unsigned vector)
{
    cpu->exc = (struct exception){.vector = vector};
    return CPU_FAULT;
}

int cpu_raise_error(struct cpu *cpu, unsigned vector, uint32_t error)
{
    cpu->exc = (struct exception){.vector = vector, .has_error = true, .error = error};
    return CPU_FAULT;
}

int cpu_raise_page_fault(struct cpu *cpu, uint64_t gva, uint32_t error)
{
    cpu->exc = (struct exception){.vector = EXC_PF, .has_error = true, .error = error, .cr2 = gva};
    return CPU_FAULT;
}

int cpu_raise_debug(struct cpu *cpu, uint32_t dr6)
{
    cpu->exc = (struct exception){.vector = EXC_DB, .dr6 = dr6};
    return CPU_FAULT;
}
