/*
 * Model-specific registers: one sorted table, index -> who reads, who writes.  SDM vol. 4, AMD APM
 * vol. 2 appendix A.  What is not in the table does not exist: #GP(0).
 *
 * Beside the architectural ones there are those that Linux reads or writes without a net
 * (rdmsrl, not rdmsrl_safe) on the processors whose family and model CPUID may show.
 */
#include "cpu/cpu_int.h"

enum { ANY, AMD, INTEL }; /* whose processors have it */

struct msr {
    uint32_t first, last;
    uint8_t vendor;
    bool (*read)(struct cpu *cpu, const struct msr *m, uint32_t index, uint64_t *value);
    bool (*write)(struct cpu *cpu, const struct msr *m, uint32_t index, uint64_t value); /* NULL: read-only */
    uint64_t value; /* of a constant; of a field: bits that may be set */
    size_t offset;  /* of a field in struct cpu */
};

#define ALL_BITS (~0ull)

static uint64_t *field(struct cpu *cpu, const struct msr *m, uint32_t index)
{
    return (uint64_t *)((char *)cpu + m->offset) + (index - m->first);
}

static bool read_field(struct cpu *cpu, const struct msr *m, uint32_t index, uint64_t *value)
{
    *value = *field(cpu, m, index);
    return true;
}

static bool write_field(struct cpu *cpu, const struct msr *m, uint32_t index, uint64_t value)
{
    if (value & ~m->value)
        return false;
    *field(cpu, m, index) = value;
    return true;
}

static bool write_address(struct cpu *cpu, const struct msr *m, uint32_t index, uint64_t value)
{
    if (!cpu_canonical(cpu, value))
        return false;
    *field(cpu, m, index) = value;
    return true;
}

static bool read_constant(struct cpu *cpu, const struct msr *m, uint32_t index, uint64_t *value)
{
    *value = m->value;
    return true;
}

/* AMD's microcode revision names its CPU.  The newest there can be for the guest's, from family 1Ah on: Linux compares
 * it with the first that has a working RDSEED, and else warns on the console; whether it works is for the host to know,
 * which hides it in CPUID if not. */
static bool read_amd_revision(struct cpu *cpu, const struct msr *m, uint32_t index, uint64_t *value)
{
    struct cpuid_regs r;
    cpu_cpuid(cpu, 1, 0, &r);
    uint32_t family = r.eax >> 20 & 0xff, models = r.eax >> 16 & 15, model = r.eax >> 4 & 15, stepping = r.eax & 15;
    *value = family < 0xb ? m->value : family << 24 | models << 20 | model << 12 | stepping << 8 | 0xff;
    return true;
}

/* For registers whose bits only tune what is not modelled (caches, prediction, errata). */
static bool write_ignored(struct cpu *cpu, const struct msr *m, uint32_t index, uint64_t value)
{
    return true;
}

/* --- time ------------------------------------------------------------------------------------------- */
static bool read_tsc(struct cpu *cpu, const struct msr *m, uint32_t index, uint64_t *value)
{
    *value = cpu_guest_tsc(cpu);
    return true;
}

static void move_tsc(struct cpu *cpu, uint64_t delta)
{
    cpu->tsc_offset += (int64_t)delta;
    cpu->tsc_adjust += delta;
    cpu_pvclock_update(cpu);
}

static bool write_tsc(struct cpu *cpu, const struct msr *m, uint32_t index, uint64_t value)
{
    move_tsc(cpu, value - cpu_guest_tsc(cpu));
    return true;
}

static bool write_tsc_adjust(struct cpu *cpu, const struct msr *m, uint32_t index, uint64_t value)
{
    move_tsc(cpu, value - cpu->tsc_adjust);
    return true;
}

static bool write_pv_time(struct cpu *cpu, const struct msr *m, uint32_t index, uint64_t value)
{
    cpu->kvmclock_system_time = value;
    cpu_pvclock_update(cpu);
    return true;
}

static bool write_pv_wall(struct cpu *cpu, const struct msr *m, uint32_t index, uint64_t value)
{
    cpu->kvmclock_wall = value;
    pvclock_write_wall(cpu, value);
    return true;
}

static bool kvm_shows(const struct cpu *cpu, unsigned bit)
{
    const struct cpuid_regs *features = cpu->cpuid ? cpuid_find(cpu->cpuid, 0x40000001, 0) : NULL;
    return features && (features->eax >> bit & 1);
}

static bool write_steal_time(struct cpu *cpu, const struct msr *m, uint32_t index, uint64_t value)
{
    if (!kvm_shows(cpu, 5) || (value & 0x3e))
        return false;
    cpu->steal_time = value;
    return true;
}

static bool write_pv_eoi(struct cpu *cpu, const struct msr *m, uint32_t index, uint64_t value)
{
    if (!kvm_shows(cpu, 6) || (value & 2))
        return false;
    cpu->pv_eoi = value;
    return true;
}

/* --- the local APIC's, and paging ------------------------------------------------------------------- */
static bool read_apic(struct cpu *cpu, const struct msr *m, uint32_t index, uint64_t *value)
{
    return cpu->irq && cpu->irq->read_msr && cpu->irq->read_msr(cpu->irq_opaque, index, value);
}

static bool write_apic(struct cpu *cpu, const struct msr *m, uint32_t index, uint64_t value)
{
    return cpu->irq && cpu->irq->write_msr && cpu->irq->write_msr(cpu->irq_opaque, index, value);
}

static bool write_efer(struct cpu *cpu, const struct msr *m, uint32_t index, uint64_t value)
{
    const uint64_t known = EFER_SCE | EFER_LME | EFER_LMA | EFER_NXE;
    uint64_t old = cpu->efer;
    if (value & ~((cpu->cpuid ? cpu->cpuid->efer_mask : known) | EFER_LMA))
        return false;
    if (((old ^ value) & EFER_LME) && (cpu->cr0 & CR0_PG))
        return false;
    value = (value & ~(uint64_t)EFER_LMA) | (old & EFER_LMA); /* LMA follows LME and PG only */
    cpu->efer = value;
    if (((old ^ value) & EFER_NXE) && cpu->ops && cpu->ops->tlb_flush_all)
        cpu->ops->tlb_flush_all(cpu, true);
    if (old != value)
        cpu_mode_changed(cpu);
    return true;
}

/* --- memory types (SDM 11.11, 11.12) ------------------------------------------------------------------ */
enum { MTRR_TYPES = 0x73 /* UC WC WT WP WB */, PAT_TYPES = 0xf3 /* and UC- */ };

static bool valid_types(uint64_t value, unsigned allowed)
{
    for (unsigned i = 0; i < 8; i++, value >>= 8)
        if ((value & 0xff) > 7 || !(allowed & (1u << (value & 7))))
            return false;
    return true;
}

static bool write_pat(struct cpu *cpu, const struct msr *m, uint32_t index, uint64_t value)
{
    if (!valid_types(value, PAT_TYPES))
        return false;
    cpu->pat = value;
    return true;
}

static bool write_mtrr_fixed(struct cpu *cpu, const struct msr *m, uint32_t index, uint64_t value)
{
    if (!valid_types(value, MTRR_TYPES))
        return false;
    *field(cpu, m, index) = value;
    return true;
}

static bool write_mtrr_def(struct cpu *cpu, const struct msr *m, uint32_t index, uint64_t value)
{
    if ((value & ~0xcffull) || !valid_types(value & 0xff, MTRR_TYPES))
        return false;
    cpu->mtrr_def_type = value;
    return true;
}

/* Base and mask alternate. */
static bool read_mtrr_variable(struct cpu *cpu, const struct msr *m, uint32_t index, uint64_t *value)
{
    unsigned n = (index - m->first) / 2;
    *value = index & 1 ? cpu->mtrr_mask[n] : cpu->mtrr_base[n];
    return true;
}

static bool write_mtrr_variable(struct cpu *cpu, const struct msr *m, uint32_t index, uint64_t value)
{
    unsigned n = (index - m->first) / 2;
    uint64_t reserved = cpu_phys_reserved(cpu) | 0xfff0000000000000ull;
    if (value & (reserved | (index & 1 ? 0x7ff : 0xf00)))
        return false;
    if (!(index & 1) && !valid_types(value & 0xff, MTRR_TYPES))
        return false;
    *(index & 1 ? &cpu->mtrr_mask[n] : &cpu->mtrr_base[n]) = value;
    return true;
}

/* --- the table ---------------------------------------------------------------------------------------- */
#define STORED(name, writer) .read = read_field, .write = writer, .offset = offsetof(struct cpu, name)
#define FIELD(name, bits)                                                                                              \
    .read = read_field, .write = write_field, .value = (bits), .offset = offsetof(struct cpu, name)
#define ADDRESS(name) .read = read_field, .write = write_address, .offset = offsetof(struct cpu, name)
#define CONSTANT(number) .read = read_constant, .value = (number)
#define TUNING(number) .read = read_constant, .write = write_ignored, .value = (number)

/* IA32_ARCH_CAPABILITIES: see the note on speculation in cpuid.c. */
#define ARCH_CAPABILITIES                                                                                              \
    (1ull << 0 | 1ull << 1 | 1ull << 3 | 1ull << 4 | 1ull << 5 | 1ull << 6 | 1ull << 8 | 1ull << 13 | 1ull << 14 |     \
     1ull << 15 | 1ull << 20 | 1ull << 24 | 1ull << 26 | 1ull << 27 | 1ull << 62)

static const struct msr table[] = {
    {0x10, 0x10, ANY, .read = read_tsc, .write = write_tsc},
    {0x11, 0x11, ANY, STORED(kvmclock_wall, write_pv_wall)},
    {0x12, 0x12, ANY, STORED(kvmclock_system_time, write_pv_time)},
    {0x17, 0x17, INTEL, CONSTANT(0)}, /* platform id */
    {0x1b, 0x1b, ANY, .read = read_apic, .write = write_apic},
    {0x3a, 0x3a, INTEL, CONSTANT(1)}, /* feature control: locked, no VMX */
    {0x3b, 0x3b, ANY, STORED(tsc_adjust, write_tsc_adjust)},
    {0x48, 0x48, INTEL, FIELD(spec_ctrl, 0x407)}, /* IBRS STIBP SSBD BHI_DIS_S */
    {0x49, 0x49, INTEL, .write = write_ignored},  /* prediction barrier: write-only */
    {0x79, 0x79, INTEL, .write = write_ignored},  /* microcode update trigger */
    {0x8b, 0x8b, INTEL, .read = read_constant, .write = write_ignored, .value = 0x100000000ull},
    {0x8b, 0x8b, AMD, .read = read_amd_revision, .value = 0x0a101248},
    {0xce, 0xce, INTEL, CONSTANT(0)},   /* platform info */
    {0xfe, 0xfe, ANY, CONSTANT(0x508)}, /* MTRRs: 8 variable, fixed, write-combining */
    {0x10a, 0x10a, INTEL, CONSTANT(ARCH_CAPABILITIES)},
    {0x140, 0x140, INTEL, TUNING(0)}, /* misc features enables */
    {0x174, 0x174, ANY, FIELD(sysenter_cs, 0xffffffff)},
    {0x175, 0x175, ANY, ADDRESS(sysenter_esp)},
    {0x176, 0x176, ANY, ADDRESS(sysenter_eip)},
    {0x179, 0x179, ANY, CONSTANT(0)}, /* machine check: no banks */
    {0x17a, 0x17a, ANY, FIELD(mcg_status, 7)},
    {0x198, 0x199, INTEL, TUNING(0)}, /* performance status and control */
    {0x1a0, 0x1a0, INTEL, FIELD(misc_enable, 0x400c51889ull)},
    {0x1d9, 0x1d9, ANY, TUNING(0)},   /* DEBUGCTL: no branch records */
    {0x1db, 0x1de, AMD, CONSTANT(0)}, /* last branch and exception */
    {0x200, 0x20f, ANY, .read = read_mtrr_variable, .write = write_mtrr_variable},
    {0x250, 0x250, ANY, STORED(mtrr_fixed[0], write_mtrr_fixed)},
    {0x258, 0x259, ANY, STORED(mtrr_fixed[1], write_mtrr_fixed)},
    {0x268, 0x26f, ANY, STORED(mtrr_fixed[3], write_mtrr_fixed)},
    {0x277, 0x277, ANY, STORED(pat, write_pat)},
    {0x2ff, 0x2ff, ANY, STORED(mtrr_def_type, write_mtrr_def)},
    {0x6e0, 0x6e0, ANY, .read = read_apic, .write = write_apic},
    {0x800, 0x8ff, ANY, .read = read_apic, .write = write_apic},
    {0x4b564d00, 0x4b564d00, ANY, STORED(kvmclock_wall, write_pv_wall)},
    {0x4b564d01, 0x4b564d01, ANY, STORED(kvmclock_system_time, write_pv_time)},
    {0x4b564d03, 0x4b564d03, ANY, STORED(steal_time, write_steal_time)},
    {0x4b564d04, 0x4b564d04, ANY, STORED(pv_eoi, write_pv_eoi)},
    {0xc0000080, 0xc0000080, ANY, STORED(efer, write_efer)},
    {0xc0000081, 0xc0000081, ANY, FIELD(star, ALL_BITS)},
    {0xc0000082, 0xc0000082, ANY, ADDRESS(lstar)},
    {0xc0000083, 0xc0000083, ANY, ADDRESS(cstar)},
    {0xc0000084, 0xc0000084, ANY, FIELD(sfmask, 0xffffffff)},
    {0xc0000100, 0xc0000100, ANY, ADDRESS(seg[FS].base)},
    {0xc0000101, 0xc0000101, ANY, ADDRESS(seg[GS].base)},
    {0xc0000102, 0xc0000102, ANY, ADDRESS(kernel_gs_base)},
    {0xc0000103, 0xc0000103, ANY, FIELD(tsc_aux, 0xffffffff)},
    {0xc0010010, 0xc0010010, AMD, TUNING(0)},              /* SYSCFG: no memory encryption, no TOM2 */
    {0xc0010015, 0xc0010015, AMD, TUNING(1u << 24)},       /* HWCR: the TSC counts at P0 frequency */
    {0xc001001a, 0xc001001a, AMD, TUNING(0)},              /* TOP_MEM */
    {0xc001001d, 0xc001001d, AMD, TUNING(0)},              /* TOP_MEM2 */
    {0xc001001f, 0xc001001f, AMD, TUNING(0)},              /* northbridge configuration */
    {0xc0010020, 0xc0010020, AMD, .write = write_ignored}, /* microcode loader */
    {0xc0010055, 0xc0010055, AMD, CONSTANT(0)},            /* interrupt pending: no C1E */
    {0xc0010058, 0xc0010058, AMD, TUNING(0)},              /* MMIO configuration base: disabled */
    {0xc0010114, 0xc0010114, AMD, CONSTANT(0x10)},         /* VM_CR: SVM disabled */
    {0xc0010140, 0xc0010141, AMD, CONSTANT(0)},            /* OS-visible workarounds: none */
    {0xc0011020, 0xc0011023, AMD, TUNING(0)},              /* LS, IC, DC, BU configuration */
    {0xc0011029, 0xc0011029, AMD, TUNING(1u << 1)},        /* DE_CFG: LFENCE serialises */
    {0xc001102a, 0xc001102a, AMD, TUNING(0)},
};

/* The table is sorted by index; two neighbours may share one, for different vendors. */
static const struct msr *find(const struct cpu *cpu, uint32_t index)
{
    unsigned low = 0, high = sizeof table / sizeof *table, vendor = cpu_is_amd(cpu) ? AMD : INTEL;
    while (low < high) {
        unsigned middle = (low + high) / 2;
        if (table[middle].last < index)
            low = middle + 1;
        else
            high = middle;
    }
    for (; low < sizeof table / sizeof *table && table[low].first <= index; low++)
        if (table[low].vendor == ANY || table[low].vendor == vendor)
            return &table[low];
    return NULL;
}

static int refuse(struct cpu *cpu, const char *what, uint32_t index, uint64_t value)
{
    if (cpu->log)
        cpu->log(cpu, "exc", "%s %x %llx: #GP", what, index, (unsigned long long)value);
    return cpu_raise_error(cpu, EXC_GP, 0);
}

int cpu_rdmsr(struct cpu *cpu, uint32_t index, uint64_t *value)
{
    const struct msr *m = find(cpu, index);
    if (cpu->cpl || !m || !m->read || !m->read(cpu, m, index, value))
        return refuse(cpu, "rdmsr", index, 0);
    return CPU_OK;
}

int cpu_wrmsr(struct cpu *cpu, uint32_t index, uint64_t value)
{
    const struct msr *m = find(cpu, index);
    if (cpu->cpl || !m || !m->write || !m->write(cpu, m, index, value))
        return refuse(cpu, "wrmsr", index, value);
    return CPU_OK;
}
