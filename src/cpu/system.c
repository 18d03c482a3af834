/*
 * Control and debug registers, XCR0, INVPCID and I/O permission.
 * SDM vol. 3, 2.5 (control registers), 4.10.4 (invalidation), 17.2 (debug registers), vol. 1 13.3
 * (XCR0), 19.5.2 (I/O bitmap), vol. 2 (MOV to CR, LMSW, XSETBV, INVPCID).
 */
#include "cpu/cpu_int.h"
#include "memory/memory.h"

static void flush_all(struct cpu *cpu, bool globals_too)
{
    if (cpu->ops && cpu->ops->tlb_flush_all)
        cpu->ops->tlb_flush_all(cpu, globals_too);
}

static int gp0(struct cpu *cpu)
{
    return cpu_raise_error(cpu, EXC_GP, 0);
}

/* PAE's four top entries are checked when they become current (SDM 4.4.1). */
static int check_pdptes(struct cpu *cpu, uint64_t cr0, uint64_t cr3, uint64_t cr4)
{
    if (!(cr0 & CR0_PG) || !(cr4 & CR4_PAE) || (cpu->efer & EFER_LME))
        return CPU_OK;
    for (unsigned i = 0; i < 4; i++) {
        const uint64_t *p = memory_hva_read(cpu->memory, (cr3 & 0xffffffe0) + i * 8, 8);
        uint64_t entry = p ? __atomic_load_n(p, __ATOMIC_RELAXED) : 0;
        if ((entry & 1) && (entry & (cpu_phys_reserved(cpu) | 0xfff00000000001e6ull)))
            return gp0(cpu);
    }
    return CPU_OK;
}

static int write_cr0(struct cpu *cpu, uint64_t value)
{
    const uint64_t known = CR0_PE | CR0_MP | CR0_EM | CR0_TS | CR0_NE | CR0_WP | CR0_AM | CR0_NW | CR0_CD | CR0_PG;
    uint64_t old = cpu->cr0;
    bool enable = (value & CR0_PG) && !(old & CR0_PG), disable = !(value & CR0_PG) && (old & CR0_PG);
    if (value >> 32)
        return gp0(cpu);
    value = (value & known) | CR0_ET; /* the other bits of the low half are ignored */
    if (((value & CR0_PG) && !(value & CR0_PE)) || ((value & CR0_NW) && !(value & CR0_CD)))
        return gp0(cpu);
    if (enable && (cpu->efer & EFER_LME) && (!(cpu->cr4 & CR4_PAE) || (cpu->seg[CS].attr & SEG_L)))
        return gp0(cpu);
    if (disable && (cpu_64bit(cpu) || (cpu->cr4 & CR4_PCIDE)))
        return gp0(cpu);
    if (((old ^ value) & (CR0_PG | CR0_CD | CR0_NW)) && check_pdptes(cpu, value, cpu->cr3, cpu->cr4))
        return CPU_FAULT;
    cpu->cr0 = value;
    if (enable && (cpu->efer & EFER_LME))
        cpu->efer |= EFER_LMA;
    if (disable)
        cpu->efer &= ~(uint64_t)EFER_LMA;
    if (!(value & CR0_PE))
        cpu->cpl = 0;
    if ((old ^ value) & (CR0_PG | CR0_WP | CR0_PE))
        flush_all(cpu, true);
    if (old != value)
        cpu_mode_changed(cpu);
    return CPU_OK;
}

static int write_cr3(struct cpu *cpu, uint64_t value)
{
    bool pcide = cpu->cr4 & CR4_PCIDE, keep = pcide && (value >> 63);
    if (cpu_long_mode(cpu)) {
        if (pcide)
            value &= ~(1ull << 63);
        if (value & (cpu_phys_reserved(cpu) | 0xfff0000000000000ull))
            return gp0(cpu);
    } else {
        value = (uint32_t)value;
    }
    if (check_pdptes(cpu, cpu->cr0, value, cpu->cr4))
        return CPU_FAULT;
    cpu->cr3 = value;
    if (cpu->ops && cpu->ops->address_space_changed)
        cpu->ops->address_space_changed(cpu, keep);
    return CPU_OK;
}

static int write_cr4(struct cpu *cpu, uint64_t value)
{
    const uint64_t paging = CR4_PSE | CR4_PAE | CR4_PGE | CR4_SMEP | CR4_SMAP | CR4_LA57 | CR4_PKE;
    uint64_t old = cpu->cr4, changed = old ^ value;
    if (value & ~(cpu->cpuid ? cpu->cpuid->cr4_mask : ~0ull))
        return gp0(cpu);
    if (cpu_long_mode(cpu) && (!(value & CR4_PAE) || (changed & CR4_LA57)))
        return gp0(cpu);
    if ((changed & value & CR4_PCIDE) && (!cpu_long_mode(cpu) || (cpu->cr3 & 0xfff)))
        return gp0(cpu);
    if ((changed & (CR4_PAE | CR4_PSE | CR4_PGE | CR4_SMEP)) && check_pdptes(cpu, cpu->cr0, cpu->cr3, value))
        return CPU_FAULT;
    cpu->cr4 = value;
    if ((changed & paging) || (changed & old & CR4_PCIDE))
        flush_all(cpu, true);
    if (changed)
        cpu_mode_changed(cpu);
    return CPU_OK;
}

static int write_cr8(struct cpu *cpu, uint64_t value)
{
    if (value & ~15ull)
        return gp0(cpu);
    if (cpu->irq && cpu->irq->set_tpr)
        cpu->irq->set_tpr(cpu->irq_opaque, value);
    return CPU_OK;
}

int cpu_write_cr(struct cpu *cpu, unsigned n, uint64_t value)
{
    if (n != 0 && n != 2 && n != 3 && n != 4 && n != 8)
        return cpu_raise(cpu, EXC_UD);
    if (cpu->cpl)
        return gp0(cpu);
    switch (n) {
    case 0:
        return write_cr0(cpu, value);
    case 2:
        cpu->cr2 = value;
        return CPU_OK;
    case 3:
        return write_cr3(cpu, value);
    case 4:
        return write_cr4(cpu, value);
    default:
        return write_cr8(cpu, value);
    }
}

int cpu_read_cr(struct cpu *cpu, unsigned n, uint64_t *value)
{
    if (n != 0 && n != 2 && n != 3 && n != 4 && n != 8)
        return cpu_raise(cpu, EXC_UD);
    if (cpu->cpl)
        return gp0(cpu);
    if (n == 8)
        *value = cpu->irq && cpu->irq->get_tpr ? cpu->irq->get_tpr(cpu->irq_opaque) : 0;
    else
        *value = n == 0 ? cpu->cr0 : n == 2 ? cpu->cr2 : n == 3 ? cpu->cr3 : cpu->cr4;
    return CPU_OK;
}

int cpu_lmsw(struct cpu *cpu, uint16_t value)
{
    if (cpu->cpl)
        return gp0(cpu);
    uint64_t low = CR0_MP | CR0_EM | CR0_TS; /* PE can be set, not cleared */
    return write_cr0(cpu, (cpu->cr0 & ~low) | (value & (low | CR0_PE)));
}

/* --- debug registers ---------------------------------------------------------------------------------- */
enum { DR6_BD = 1 << 13, DR7_GD = 1 << 13 };

/* What both directions check; *n becomes 6 or 7 for the aliases 4 and 5. */
static int check_dr(struct cpu *cpu, unsigned *n)
{
    if (*n > 7 || ((*n == 4 || *n == 5) && (cpu->cr4 & CR4_DE)))
        return cpu_raise(cpu, EXC_UD);
    if (cpu->cpl)
        return gp0(cpu);
    if (cpu->dr7 & DR7_GD)
        return cpu_raise_debug(cpu, DR6_BD);
    if (*n == 4 || *n == 5)
        *n += 2;
    return CPU_OK;
}

int cpu_write_dr(struct cpu *cpu, unsigned n, uint64_t value)
{
    if (check_dr(cpu, &n))
        return CPU_FAULT;
    if (n < 4) {
        cpu->dr[n] = value;
    } else {
        if (value >> 32)
            return gp0(cpu);
        if (n == 6)
            cpu->dr6 = (value & 0xe00f) | 0xffff0ff0;
        else
            cpu->dr7 = (value & 0xffff23ff) | 0x400;
    }
    if (n != 6)
        cpu_mode_changed(cpu);
    return CPU_OK;
}

int cpu_read_dr(struct cpu *cpu, unsigned n, uint64_t *value)
{
    if (check_dr(cpu, &n))
        return CPU_FAULT;
    *value = n < 4 ? cpu->dr[n] : n == 6 ? cpu->dr6 : cpu->dr7;
    return CPU_OK;
}

/* --- XCR0 ----------------------------------------------------------------------------------------------- */
int cpu_xsetbv(struct cpu *cpu, uint32_t index, uint64_t value)
{
    enum { X87 = 1, SSE = 2, AVX = 4, AVX512 = 0xe0 };
    if (!(cpu->cr4 & CR4_OSXSAVE))
        return cpu_raise(cpu, EXC_UD);
    if (cpu->cpl || index != 0 || !(value & X87) || (value & ~(cpu->cpuid ? cpu->cpuid->xcr0_mask : 3)))
        return gp0(cpu);
    if ((value & AVX) && !(value & SSE))
        return gp0(cpu);
    if ((value & AVX512) && ((value & AVX512) != AVX512 || !(value & AVX)))
        return gp0(cpu);
    cpu->xcr0 = value;
    cpu_mode_changed(cpu);
    return CPU_OK;
}

/* --- INVPCID -------------------------------------------------------------------------------------------- */
int cpu_invpcid(struct cpu *cpu, uint64_t type, const uint64_t descriptor[2])
{
    uint16_t pcid = descriptor[0] & 0xfff;
    if (cpu->cpl || type > 3 || (descriptor[0] >> 12))
        return gp0(cpu);
    if (type < 2 && pcid && !(cpu->cr4 & CR4_PCIDE))
        return gp0(cpu);
    if (type == 0 && !cpu_canonical(cpu, descriptor[1]))
        return gp0(cpu);
    if (type >= 2) {
        flush_all(cpu, type == 2);
        return CPU_OK;
    }
    if (!cpu->ops)
        return CPU_OK;
    bool current = !(cpu->cr4 & CR4_PCIDE) || pcid == (cpu->cr3 & 0xfff);
    if (type == 0 && current && cpu->ops->tlb_flush_page)
        cpu->ops->tlb_flush_page(cpu, descriptor[1]);
    else if (cpu->ops->tlb_flush_pcid) /* one page of another address space: more than asked is allowed */
        cpu->ops->tlb_flush_pcid(cpu, pcid);
    return CPU_OK;
}

/* --- I/O permission ------------------------------------------------------------------------------------- */
int cpu_check_io(struct cpu *cpu, uint16_t port, unsigned size)
{
    uint16_t map, bits;
    uint32_t type = cpu->tr.attr & 15;
    if (cpu_real_mode(cpu) || (!cpu_v86(cpu) && cpu->cpl <= cpu_iopl(cpu)))
        return CPU_OK;
    /* Only 32- and 64-bit TSSs have a bitmap; its place is at offset 102. */
    if (!(cpu->tr.attr & SEG_P) || (type != SYS_TSS && type != SYS_TSS_BUSY) || cpu->tr.limit < 103)
        return gp0(cpu);
    if (sys_read(cpu, cpu->tr.base + 102, &map, 2))
        return CPU_FAULT;
    uint32_t offset = map + port / 8;
    if (offset + 1 > cpu->tr.limit) /* two bytes are always read (SDM 19.5.2) */
        return gp0(cpu);
    if (sys_read(cpu, cpu->tr.base + offset, &bits, 2))
        return CPU_FAULT;
    return (bits >> (port & 7)) & ((1u << size) - 1) ? gp0(cpu) : CPU_OK;
}
