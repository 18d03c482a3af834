/*
 * The guest's CPUID: host AND keep, OR set, row by row; then what depends on the number of vCPUs,
 * and at the time of asking what depends on the vCPU and its registers.  SDM vol. 2 CPUID, AMD APM
 * vol. 3 appendix E; 0x40000000 on: KVM's interface.
 *
 * Speculation.  Guest code runs as user code of one host process, through the engine's own dispatch:
 * a guest's retpolines, buffer fills and SPEC_CTRL writes cannot steer the host's predictors, so its
 * mitigations would cost time and protect nothing.  The host's mitigations guard the process boundary.
 * The guest is therefore told "not affected" (SRSO_NO, BTC_NO, SSB_NO, TSA_*_NO, ARCH_CAPABILITIES'
 * *_NO) and that its processor restricts indirect branches by itself (AMD: automatic IBRS; Intel:
 * enhanced IBRS), whose switch bits are stored and have no other effect.
 */
#include <cpuid.h>
#include <errno.h>
#include <stdlib.h>

#include "cpu/cpu_int.h"

#define BIT(n) (1u << (n))
#define ALL 0xffffffffu

/* Leaf 1: SSE3 PCLMUL SSSE3 FMA CX16 PCID SSE4.1 SSE4.2 MOVBE POPCNT AES XSAVE AVX F16C RDRAND */
#define L1_ECX_KEEP                                                                                                    \
    (BIT(0) | BIT(1) | BIT(9) | BIT(12) | BIT(13) | BIT(17) | BIT(19) | BIT(20) | BIT(22) | BIT(23) | BIT(25) |        \
     BIT(26) | BIT(28) | BIT(29) | BIT(30))
/* x2APIC, TSC deadline: the machine's own APIC has them; hypervisor */
#define L1_ECX_SET (BIT(21) | BIT(24) | BIT(31))
/* FPU DE PSE TSC MSR PAE MCE CX8 APIC SEP MTRR PGE MCA CMOV PAT PSE36 CLFSH MMX FXSR SSE SSE2 SS.
 * Not VME: virtual-8086 extensions are not modelled. */
#define L1_EDX_KEEP 0x0f8bfbfdu
/* FSGSBASE TSC_ADJUST BMI1 AVX2 FDP SMEP BMI2 ERMS INVPCID no-FCS AVX512F/DQ RDSEED ADX SMAP IFMA CLFLUSHOPT CLWB
 * AVX512CD SHA AVX512BW/VL */
#define L7_EBX_KEEP                                                                                                    \
    (BIT(0) | BIT(3) | BIT(5) | BIT(6) | BIT(7) | BIT(8) | BIT(9) | BIT(10) | BIT(13) | BIT(16) | BIT(17) | BIT(18) |  \
     BIT(19) | BIT(20) | BIT(21) | BIT(23) | BIT(24) | BIT(28) | BIT(29) | BIT(30) | BIT(31))
/* VBMI UMIP VBMI2 GFNI VAES VPCLMULQDQ VNNI BITALG VPOPCNTDQ RDPID MOVDIRI MOVDIR64B */
#define L7_ECX_KEEP                                                                                                    \
    (BIT(1) | BIT(2) | BIT(6) | BIT(8) | BIT(9) | BIT(10) | BIT(11) | BIT(12) | BIT(14) | BIT(22) | BIT(27) | BIT(28))
/* FSRM VP2INTERSECT SERIALIZE AVX512_FP16 */
#define L7_EDX_KEEP (BIT(4) | BIT(8) | BIT(14) | BIT(23))
/* AVX_VNNI AVX512_BF16 FZRM FSRS FSRC */
#define L7_1_EAX_KEEP (BIT(4) | BIT(5) | BIT(10) | BIT(11) | BIT(12))
/* LAHF ABM SSE4A MISALIGNSSE 3DNOWPREFETCH TOPOEXT */
#define X1_ECX_KEEP (BIT(0) | BIT(5) | BIT(6) | BIT(7) | BIT(8) | BIT(22))
/* SYSCALL NX MMXEXT PDPE1GB RDTSCP LM, and AMD's copies of leaf 1 (FPU..PGE less VME, MCA..PSE36, MMX, FXSR) */
#define X1_EDX_KEEP (BIT(11) | BIT(20) | BIT(22) | BIT(26) | BIT(27) | BIT(29) | 0x0183f3fdu)
/* LFENCE serialises, FSRS, FSRC */
#define X21_EAX_KEEP (BIT(2) | BIT(10) | BIT(11))
/* null selector clears base, automatic IBRS, SRSO_NO, SRSO_USER_KERNEL_NO */
#define X21_EAX_SET (BIT(6) | BIT(8) | BIT(29) | BIT(30))

enum { ON_ANY, ON_AMD, ON_INTEL };

struct rule {
    uint32_t leaf, subleaf;
    bool indexed;
    uint8_t vendor;
    struct cpuid_regs keep, set;
};

/* What is not here is zero: VMX, SVM, MONITOR, performance counters, PT, AMX, CET, PKU, LA57, SEV. */
static const struct rule rules[] = {
    {0, 0, 0, ON_ANY, {ALL, ALL, ALL, ALL}},
    {1, 0, 0, ON_ANY, {ALL, 0xffff, L1_ECX_KEEP, L1_EDX_KEEP}, {.ecx = L1_ECX_SET}},
    {2, 0, 0, ON_INTEL, {ALL, ALL, ALL, ALL}},
    {4, 0, 1, ON_INTEL, {0x3ff, ALL, ALL, ALL}},
    {4, 1, 1, ON_INTEL, {0x3ff, ALL, ALL, ALL}},
    {4, 2, 1, ON_INTEL, {0x3ff, ALL, ALL, ALL}},
    {4, 3, 1, ON_INTEL, {0x3ff, ALL, ALL, ALL}},
    {6, 0, 0, ON_ANY, {0}, {.eax = BIT(2)}}, /* the APIC timer always runs */
    /* added: TSC_ADJUST, SERIALIZE */
    {7, 0, 1, ON_ANY, {0, L7_EBX_KEEP, L7_ECX_KEEP, L7_EDX_KEEP}, {.ebx = BIT(1), .edx = BIT(14)}},
    {7, 1, 1, ON_ANY, {L7_1_EAX_KEEP}},
    {7, 2, 1, ON_INTEL, {0}, {.edx = BIT(4)}},       /* BHI_CTRL: else kernels clear the branch history at each entry */
    {0xd, 1, 1, ON_ANY, {BIT(0) | BIT(1) | BIT(2)}}, /* XSAVEOPT, XSAVEC, XGETBV with ECX = 1 */
    {0x80000000, 0, 0, ON_ANY, {ALL, ALL, ALL, ALL}},
    {0x80000001, 0, 0, ON_ANY, {ALL, ALL, X1_ECX_KEEP, X1_EDX_KEEP}},
    {0x80000002, 0, 0, ON_ANY, {ALL, ALL, ALL, ALL}},
    {0x80000003, 0, 0, ON_ANY, {ALL, ALL, ALL, ALL}},
    {0x80000004, 0, 0, ON_ANY, {ALL, ALL, ALL, ALL}},
    {0x80000005, 0, 0, ON_AMD, {ALL, ALL, ALL, ALL}},
    {0x80000006, 0, 0, ON_ANY, {ALL, ALL, ALL, ALL}},
    {0x80000007, 0, 0, ON_ANY, {0}, {.edx = BIT(8)}}, /* invariant TSC */
    {0x80000008, 0, 0, ON_INTEL, {0xffff}},
    {0x80000008, 0, 0, ON_AMD, {0xffff, BIT(0) | BIT(2)}, {.ebx = BIT(26) | BIT(29)}}, /* CLZERO XSAVEERPTR; SSB_NO
                                                                                          BTC_NO */
    {0x80000019, 0, 0, ON_AMD, {ALL, ALL}},
    {0x8000001a, 0, 0, ON_AMD, {ALL}},
    {0x8000001d, 0, 1, ON_AMD, {0x3ff, ALL, ALL, ALL}},
    {0x8000001d, 1, 1, ON_AMD, {0x3ff, ALL, ALL, ALL}},
    {0x8000001d, 2, 1, ON_AMD, {0x3ff, ALL, ALL, ALL}},
    {0x8000001d, 3, 1, ON_AMD, {0x3ff, ALL, ALL, ALL}},
    {0x80000021, 0, 0, ON_AMD, {X21_EAX_KEEP}, {.eax = X21_EAX_SET, .ecx = BIT(1) | BIT(2)}}, /* TSA_SQ_NO, TSA_L1_NO */
};

/* Bits that only mean something with a part of the SIMD state. */
static const struct {
    uint64_t needs;
    uint32_t leaf, subleaf;
    struct cpuid_regs bits;
} simd_bits[] = {
    {4, 1, 0, {.ecx = BIT(12) | BIT(28) | BIT(29)}},
    {4, 7, 0, {.ebx = BIT(5), .ecx = BIT(9) | BIT(10)}},
    {4, 7, 1, {.eax = BIT(4)}},
    {0xe0,
     7,
     0,
     {.ebx = BIT(16) | BIT(17) | BIT(21) | BIT(28) | BIT(30) | BIT(31),
      .ecx = BIT(1) | BIT(6) | BIT(11) | BIT(12) | BIT(14),
      .edx = BIT(8) | BIT(23)}},
    {0xe0, 7, 1, {.eax = BIT(5)}},
};

static struct cpuid_regs host_cpuid(uint32_t leaf, uint32_t subleaf)
{
    struct cpuid_regs r = {0};
    uint32_t max = __get_cpuid_max(leaf & 0x80000000, NULL);
    if (leaf <= max)
        __cpuid_count(leaf, subleaf, r.eax, r.ebx, r.ecx, r.edx);
    return r;
}

static uint64_t host_xcr0(void)
{
    uint32_t low, high;
    if (!(host_cpuid(1, 0).ecx & BIT(27)))
        return 3;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (uint64_t)high << 32 | low;
}

static struct cpuid_regs *add(struct cpuid_table *t, uint32_t leaf, uint32_t subleaf, bool indexed, struct cpuid_regs r)
{
    struct cpuid_entry *e = &t->entries[t->n_entries++];
    *e = (struct cpuid_entry){.leaf = leaf, .subleaf = subleaf, .indexed = indexed, .regs = r};
    return &e->regs;
}

const struct cpuid_regs *cpuid_find(const struct cpuid_table *t, uint32_t leaf, uint32_t subleaf)
{
    for (unsigned i = 0; i < t->n_entries; i++) {
        const struct cpuid_entry *e = &t->entries[i];
        if (e->leaf == leaf && (!e->indexed || e->subleaf == subleaf))
            return &e->regs;
    }
    return NULL;
}

static struct cpuid_regs *find(struct cpuid_table *t, uint32_t leaf, uint32_t subleaf)
{
    return (struct cpuid_regs *)cpuid_find(t, leaf, subleaf);
}

static void add_rules(struct cpuid_table *t)
{
    for (unsigned i = 0; i < sizeof rules / sizeof *rules; i++) {
        const struct rule *r = &rules[i];
        if (r->vendor != ON_ANY && (r->vendor == ON_AMD) != t->amd)
            continue;
        struct cpuid_regs h = host_cpuid(r->leaf, r->subleaf);
        add(t, r->leaf, r->subleaf, r->indexed,
            (struct cpuid_regs){(h.eax & r->keep.eax) | r->set.eax, (h.ebx & r->keep.ebx) | r->set.ebx,
                                (h.ecx & r->keep.ecx) | r->set.ecx, (h.edx & r->keep.edx) | r->set.edx});
    }
    for (unsigned i = 0; i < sizeof simd_bits / sizeof *simd_bits; i++) {
        struct cpuid_regs *r = find(t, simd_bits[i].leaf, simd_bits[i].subleaf);
        if ((t->xcr0_mask & simd_bits[i].needs) == simd_bits[i].needs)
            continue;
        r->eax &= ~simd_bits[i].bits.eax;
        r->ebx &= ~simd_bits[i].bits.ebx;
        r->ecx &= ~simd_bits[i].bits.ecx;
        r->edx &= ~simd_bits[i].bits.edx;
    }
}

static void set_phys_bits(struct cpuid_table *t, unsigned bits)
{
    t->phys_bits = bits;
    if (t->phys_bits > 48)
        t->phys_bits = 48; /* what the translator's tables are laid out for */
    if (t->phys_bits < 36)
        t->phys_bits = 36;
    t->phys_reserved = 0x000fffffffffffffull & ~((1ull << t->phys_bits) - 1);
}

static void add_limits(struct cpuid_table *t)
{
    struct cpuid_regs *basic = find(t, 0, 0), *extended = find(t, 0x80000000, 0), *sizes = find(t, 0x80000008, 0);
    uint32_t least = t->amd ? 0xd : 0x16, most = t->amd ? 0x10 : 0x1f;
    basic->eax = basic->eax < least ? least : basic->eax > most ? most : basic->eax;
    extended->eax = t->amd ? 0x80000021 : 0x80000008;
    find(t, 7, 0)->eax = !t->amd ? 2 : host_cpuid(7, 0).eax ? 1 : 0; /* the last subleaf shown */
    set_phys_bits(t, sizes->eax & 0xff);
    sizes->eax = t->phys_bits | 48 << 8; /* no LA57: 48 linear bits */
}

/* XSAVE's areas: standard offsets are the host's, since the guest's XSAVE is the host's (SDM vol. 1, 13.4). */
static void add_xsave(struct cpuid_table *t)
{
    struct cpuid_regs top = {.eax = t->xcr0_mask, .edx = t->xcr0_mask >> 32, .ebx = 576, .ecx = 576};
    if (!(find(t, 1, 0)->ecx & BIT(26)))
        return;
    for (unsigned i = 2; i < 63; i++) {
        if (!(t->xcr0_mask >> i & 1))
            continue;
        struct cpuid_regs part = host_cpuid(0xd, i);
        add(t, 0xd, i, true, part);
        if (part.ebx + part.eax > top.ecx)
            top.ecx = part.ebx + part.eax;
    }
    add(t, 0xd, 0, true, top);
}

static uint32_t bits_for(unsigned n)
{
    uint32_t bits = 0;
    while (1u << bits < n)
        bits++;
    return bits;
}

/* One package of n single-threaded cores; level 3 caches are shared by all, the others by none. */
static void add_topology(struct cpuid_table *t, unsigned n)
{
    uint32_t cache = t->amd ? 0x8000001d : 4, shift = bits_for(n), cores = n < 256 ? n : 255;
    struct cpuid_regs *one = find(t, 1, 0), *sizes = find(t, 0x80000008, 0);
    one->ebx |= cores << 16;
    if (n > 1)
        one->edx |= BIT(28);
    for (unsigned i = 0; i < 4; i++) {
        struct cpuid_regs *c = find(t, cache, i);
        if (!(c->eax & 31))
            continue;
        if ((c->eax >> 5 & 7) == 3)
            c->eax |= (n - 1) << 14;
        if (!t->amd)
            c->eax |= ((1u << shift) - 1) << 26;
    }
    if (t->amd) {
        sizes->ecx = shift << 12 | (n - 1);
        if (n > 1)
            find(t, 0x80000001, 0)->ecx |= BIT(1); /* CmpLegacy */
        add(t, 0x8000001e, 0, false, (struct cpuid_regs){0});
    }
    for (uint32_t leaf = 0xb; leaf <= 0x1f; leaf += 0x14) {
        if (leaf > find(t, 0, 0)->eax)
            break;
        add(t, leaf, 0, true, (struct cpuid_regs){0, 1, 1 << 8, 0});
        add(t, leaf, 1, true, (struct cpuid_regs){shift, n, 2 << 8 | 1, 0});
    }
}

static void add_paravirtual(struct cpuid_table *t)
{
    /* "KVMKVMKVM\0\0\0"; clock source (old and new MSRs), no I/O delay, stable clock */
    add(t, 0x40000000, 0, false, (struct cpuid_regs){0x40000010, 0x4b4d564b, 0x564b4d56, 0x4d});
    add(t, 0x40000001, 0, false, (struct cpuid_regs){BIT(0) | BIT(1) | BIT(3) | BIT(24), 0, 0, 0});
    add(t, 0x40000010, 0, false, (struct cpuid_regs){0});
    if (t->amd)
        return;
    add(t, 0x15, 0, false, (struct cpuid_regs){0});
    add(t, 0x16, 0, false, (struct cpuid_regs){0});
    find(t, 7, 0)->edx |= BIT(26) | BIT(29); /* SPEC_CTRL, ARCH_CAPABILITIES */
}

/* Bits of CR4 and EFER that the features shown give. */
static void derive_masks(struct cpuid_table *t)
{
    struct cpuid_regs one = *find(t, 1, 0), seven = *find(t, 7, 0), ext = *find(t, 0x80000001, 0);
    const struct {
        uint32_t have;
        uint64_t bit;
    } cr4[] = {
        {one.ecx & BIT(26), CR4_OSXSAVE},   {one.ecx & BIT(17), CR4_PCIDE}, {seven.ecx & BIT(2), CR4_UMIP},
        {seven.ebx & BIT(0), CR4_FSGSBASE}, {seven.ebx & BIT(7), CR4_SMEP}, {seven.ebx & BIT(20), CR4_SMAP},
    };
    t->cr4_mask = CR4_TSD | CR4_DE | CR4_PSE | CR4_PAE | CR4_MCE | CR4_PGE | CR4_PCE | CR4_OSFXSR | CR4_OSXMMEXCPT;
    for (unsigned i = 0; i < sizeof cr4 / sizeof *cr4; i++)
        if (cr4[i].have)
            t->cr4_mask |= cr4[i].bit;
    t->efer_mask = EFER_SCE | EFER_LME | EFER_LMA | (ext.edx & BIT(20) ? EFER_NXE : 0) | (t->amd ? EFER_AIBRSE : 0);
    t->gbpages = ext.edx & BIT(26);
}

/* ns per tick as a 32-bit fraction of a shifted tick count, the fraction's top bit set. */
void cpuid_table_clock(struct cpuid_table *t, uint64_t tsc_khz, uint64_t tsc_base)
{
    uint64_t khz = t->tsc_khz = tsc_khz;
    t->tsc_base = tsc_base;
    t->pv_shift = 0;
    while (khz > 2000000) { /* more than 2 GHz: mul would lose bits */
        khz >>= 1;
        t->pv_shift--;
    }
    while (khz <= 1000000) {
        khz <<= 1;
        t->pv_shift++;
    }
    unsigned __int128 numerator = (unsigned __int128)1000000 << 32;
    if (t->pv_shift < 0)
        numerator <<= -t->pv_shift;
    else
        numerator >>= t->pv_shift;
    t->pv_mul = (uint64_t)numerator / t->tsc_khz; /* numerator < 2^52 * 2^12 */
}

static uint64_t host_tsc(void)
{
    uint32_t low, high;
    __asm__ volatile("rdtsc" : "=a"(low), "=d"(high));
    return (uint64_t)high << 32 | low;
}

void cpuid_table_set_tsc(struct cpuid_table *t, uint64_t tsc_khz)
{
    const uint32_t khz = (uint32_t)tsc_khz;

    *find(t, 0x40000010, 0) = (struct cpuid_regs){khz, 0, 0, 0};
    if (!t->amd) {
        /* The crystal runs at 1 GHz as the APIC timer does; TSC = crystal * EBX / EAX. */
        *find(t, 0x15, 0) = (struct cpuid_regs){1000000, khz, 1000000000, 0};
        *find(t, 0x16, 0) = (struct cpuid_regs){khz / 1000, khz / 1000, 100, 0};
    }
    cpuid_table_clock(t, tsc_khz, t->tsc_base);
}

int cpuid_table_create(struct cpuid_table **out, unsigned n_cpus, uint64_t tsc_khz)
{
    if (!n_cpus || n_cpus > 255 || tsc_khz < 1000 || tsc_khz > 100000000)
        return -EINVAL;
    struct cpuid_table *t = calloc(1, sizeof *t);
    if (!t)
        return -ENOMEM;
    struct cpuid_regs vendor = host_cpuid(0, 0);
    t->amd = vendor.ebx == 0x68747541 || vendor.ebx == 0x6f677948; /* "Auth", "Hygo" */
    t->tsc_base = host_tsc();
    t->xcr0_mask = host_xcr0() & 0xe7;
    if ((t->xcr0_mask & 0xe0) != 0xe0)
        t->xcr0_mask &= 7;
    add_rules(t);
    add_limits(t);
    add_xsave(t);
    add_topology(t, n_cpus);
    add_paravirtual(t);
    derive_masks(t);
    cpuid_table_set_tsc(t, tsc_khz);
    *out = t;
    return 0;
}

void cpuid_table_show_kvm(struct cpuid_table *t, uint32_t features)
{
    find(t, 0x40000001, 0)->eax |= features;
}

void cpuid_table_adapt(struct cpuid_table *t,
                       void (*adapt)(void *opaque, uint32_t leaf, uint32_t subleaf, struct cpuid_regs *r), void *opaque)
{
    for (unsigned i = 0; i < t->n_entries; i++)
        adapt(opaque, t->entries[i].leaf, t->entries[i].subleaf, &t->entries[i].regs);
    const struct cpuid_regs *xsave = find(t, 0xd, 0);
    if (xsave)
        t->xcr0_mask &= xsave->eax | (uint64_t)xsave->edx << 32 | 3;
    set_phys_bits(t, find(t, 0x80000008, 0)->eax & 0xff);
    derive_masks(t);
}

uint64_t cpuid_table_now(const struct cpuid_table *t, uint64_t host_tsc)
{
    return (unsigned __int128)(host_tsc - t->tsc_base) * 1000000 / t->tsc_khz;
}

void cpuid_table_set_now(struct cpuid_table *t, uint64_t host_tsc, uint64_t ns)
{
    t->tsc_base = host_tsc - (uint64_t)((unsigned __int128)ns * t->tsc_khz / 1000000);
}

void cpuid_table_destroy(struct cpuid_table *t)
{
    free(t);
}

/* Size of the XSAVE area for the components now enabled, standard or compacted. */
static uint32_t xsave_size(const struct cpu *cpu, bool compacted)
{
    uint32_t size = 576;
    for (unsigned i = 2; i < 63; i++) {
        const struct cpuid_regs *part = cpu->xcr0 >> i & 1 ? cpuid_find(cpu->cpuid, 0xd, i) : NULL;
        if (!part)
            continue;
        if (compacted)
            size = (part->ecx & 2 ? (size + 63) & ~63u : size) + part->eax;
        else if (part->ebx + part->eax > size)
            size = part->ebx + part->eax;
    }
    return size;
}

static void fill_dynamic(const struct cpu *cpu, uint32_t leaf, uint32_t subleaf, struct cpuid_regs *r)
{
    switch (leaf) {
    case 1:
        r->ebx |= cpu->index << 24;
        r->ecx |= cpu->cr4 & CR4_OSXSAVE ? BIT(27) : 0;
        break;
    case 0xb:
    case 0x1f:
        r->ecx |= subleaf & 0xff;
        r->edx = cpu->index;
        break;
    case 0xd:
        if (subleaf < 2)
            r->ebx = xsave_size(cpu, subleaf == 1);
        break;
    case 0x8000001e:
        r->eax = r->ebx = cpu->index;
        break;
    default:
        break;
    }
}

void cpu_cpuid(const struct cpu *cpu, uint32_t leaf, uint32_t subleaf, struct cpuid_regs *out)
{
    *out = (struct cpuid_regs){0};
    if (!cpu->cpuid)
        return;
    uint32_t max = cpuid_find(cpu->cpuid, 0, 0)->eax;
    if (!cpu->cpuid->amd && leaf > max && leaf < 0x40000000)
        leaf = max; /* Intel answers with the last basic leaf (SDM vol. 2, CPUID) */
    const struct cpuid_regs *r = cpuid_find(cpu->cpuid, leaf, subleaf);
    if (r)
        *out = *r;
    else if (leaf != 0xb && leaf != 0x1f)
        return;
    else if (leaf > max)
        return;
    fill_dynamic(cpu, leaf, subleaf, out);
}
