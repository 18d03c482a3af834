/* The guest's CPUID under KVM: what a table of cpu/ has, less what this KVM does not do. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>

#include "engine/kvm/kvm_int.h"

#define MAX_ENTRIES 256

struct cpuid_list {
    struct kvm_cpuid2 head;
    struct kvm_cpuid_entry2 entry[MAX_ENTRIES];
};

/* Registers that are sets of features: a bit is shown only if KVM supports it. */
enum { A = 1, B = 2, C = 4, D = 8 };
static const struct feature_leaf {
    uint32_t leaf, subleaf;
    unsigned registers;
    struct cpuid_regs always; /* done outside KVM, by the local APIC of the machine */
} feature_leaves[] = {
    {0x1, 0, C | D, {.ecx = 1u << 21 /* x2APIC */ | 1u << 24 /* TSC deadline */ | 1u << 31, .edx = 1u << 9 /* APIC */}},
    {0x7, 0, B | C | D},
    {0x7, 1, A | B | C | D},
    {0x7, 2, A | B | C | D},
    {0xd, 0, A | D},
    {0xd, 1, A | C | D},
    {0x19, 0, A | B | C | D},
    {0x24, 0, B},
    {0x40000001, 0, A},
    {0x80000001, 0, C | D, {.edx = 1u << 9}},
    {0x80000007, 0, D},
    {0x80000008, 0, B},
    {0x80000021, 0, A | C},
};

/*
 * Speculation is the one subject on which cpu_cpuid() cannot speak here.  Under the translator a guest's
 * mitigations protect nothing, and it is told that it needs none; under KVM its code runs on the real
 * predictors, so what it may switch and what it is immune to are the host's, as KVM reports them.
 */
#define BIT(n) (1u << (n))
static const struct {
    uint32_t leaf, subleaf;
    struct cpuid_regs bits;
} speculation[] = {
    /* MD_CLEAR, SPEC_CTRL, STIBP, L1D_FLUSH, ARCH_CAPABILITIES, SSBD */
    {0x7, 0, {.edx = BIT(10) | BIT(26) | BIT(27) | BIT(28) | BIT(29) | BIT(31)}},
    /* PSFD, IPRED_CTRL, RRSBA_CTRL, DDPD_U, BHI_CTRL, MCDT_NO */
    {0x7, 2, {.edx = 0x3f}},
    /* IBPB, IBRS, STIBP and their modes, SSBD, VIRT_SSBD, SSB_NO, PSFD, BTC_NO, IBPB_RET */
    {0x80000008, 0, {.ebx = 0x770fd000}},
    /* VERW_CLEAR, automatic IBRS, SBPB, IBPB_BRTYPE, SRSO_NO, SRSO_USER_KERNEL_NO; TSA_SQ_NO, TSA_L1_NO */
    {0x80000021, 0, {.eax = BIT(5) | BIT(8) | 0xfu << 27, .ecx = BIT(1) | BIT(2)}},
};

/* KVM's paravirtual features that work with no interrupt controller in KVM: clock sources (0, 3, 24),
 * no I/O delay (1).  EOI, IPI and unhalt by hypercall would go to its own local APIC. */
#define PV_FEATURES (1u << 0 | 1u << 1 | 1u << 3 | 1u << 24)

/* Leaves with subleaves, and how many of these are asked for at most. */
static const struct {
    uint32_t leaf, count;
} indexed_leaves[] = {
    {0x4, 8}, {0x7, 3}, {0xb, 4}, {0xd, 64}, {0x1f, 6}, {0x24, 2}, {0x8000001d, 8}, {0x80000026, 6},
};

static uint32_t subleaf_count(uint32_t leaf)
{
    for (unsigned i = 0; i < sizeof(indexed_leaves) / sizeof(indexed_leaves[0]); i++)
        if (indexed_leaves[i].leaf == leaf)
            return indexed_leaves[i].count;
    return 0;
}

static struct kvm_cpuid_entry2 find_entry(const struct cpuid_list *list, uint32_t leaf, uint32_t subleaf)
{
    for (uint32_t i = 0; i < list->head.nent; i++) {
        const struct kvm_cpuid_entry2 *e = &list->entry[i];
        if (e->function == leaf && (e->index == subleaf || !(e->flags & KVM_CPUID_FLAG_SIGNIFCANT_INDEX)))
            return *e;
    }
    return (struct kvm_cpuid_entry2){0};
}

static void apply_mask(struct cpuid_regs *r, const struct feature_leaf *f, const struct kvm_cpuid_entry2 *can)
{
    if (f->registers & A)
        r->eax &= can->eax | f->always.eax;
    if (f->registers & B)
        r->ebx &= can->ebx | f->always.ebx;
    if (f->registers & C)
        r->ecx &= can->ecx | f->always.ecx;
    if (f->registers & D)
        r->edx &= can->edx | f->always.edx;
}

static uint32_t choose(uint32_t ours, uint32_t kvms, uint32_t bits)
{
    return (ours & ~bits) | (kvms & bits);
}

static void set_speculation(struct cpuid_regs *r, uint32_t leaf, uint32_t subleaf, const struct cpuid_list *supported)
{
    for (unsigned i = 0; i < sizeof(speculation) / sizeof(speculation[0]); i++) {
        const struct cpuid_regs *bits = &speculation[i].bits;
        if (speculation[i].leaf != leaf || speculation[i].subleaf != subleaf)
            continue;
        struct kvm_cpuid_entry2 can = find_entry(supported, leaf, subleaf);
        r->eax = choose(r->eax, can.eax, bits->eax);
        r->ebx = choose(r->ebx, can.ebx, bits->ebx);
        r->ecx = choose(r->ecx, can.ecx, bits->ecx);
        r->edx = choose(r->edx, can.edx, bits->edx);
    }
    if (leaf == 0x7 && subleaf == 0 && find_entry(supported, 0x7, 2).edx && r->eax < 2)
        r->eax = 2; /* or nobody looks at subleaf 2 */
}

static void filter(struct cpuid_regs *r, uint32_t leaf, uint32_t subleaf, const struct cpuid_list *supported)
{
    for (unsigned i = 0; i < sizeof(feature_leaves) / sizeof(feature_leaves[0]); i++) {
        const struct feature_leaf *f = &feature_leaves[i];
        if (f->leaf != leaf || f->subleaf != subleaf)
            continue;
        struct kvm_cpuid_entry2 can = find_entry(supported, leaf, subleaf);
        apply_mask(r, f, &can);
    }
    set_speculation(r, leaf, subleaf, supported);
    if (leaf == 0xd && subleaf >= 2) { /* a state component that XCR0 will not take has no place in the area */
        struct kvm_cpuid_entry2 can = find_entry(supported, 0xd, 0), super = find_entry(supported, 0xd, 1);
        uint64_t components = ((uint64_t)can.edx << 32 | can.eax) | ((uint64_t)super.edx << 32 | super.ecx);
        if (!(components >> subleaf & 1))
            *r = (struct cpuid_regs){0};
    }
    if (leaf == 0x40000001)
        r->eax &= PV_FEATURES;
    if (leaf == 0x80000008) {
        struct kvm_cpuid_entry2 can = find_entry(supported, leaf, 0);
        if ((can.eax & 0xff) && (can.eax & 0xff) < (r->eax & 0xff))
            r->eax = (r->eax & ~0xffu) | (can.eax & 0xff);
    }
}

static void adapt(void *opaque, uint32_t leaf, uint32_t subleaf, struct cpuid_regs *r)
{
    filter(r, leaf, subleaf, opaque);
}

/* To be freed, whatever *err is. */
static struct cpuid_list *ask_supported(int kvm, int *err)
{
    struct cpuid_list *supported = calloc(1, sizeof(*supported));
    *err = -ENOMEM;
    if (!supported)
        return NULL;
    supported->head.nent = MAX_ENTRIES;
    *err = ioctl(kvm, KVM_GET_SUPPORTED_CPUID, supported) ? -errno : 0;
    return supported;
}

int kvm_cpuid_table(struct cpuid_table **out, int kvm, unsigned n_cpus, uint64_t tsc_khz)
{
    int err;
    struct cpuid_list *supported = ask_supported(kvm, &err);
    if (!err)
        err = cpuid_table_create(out, n_cpus, tsc_khz);
    if (!err)
        cpuid_table_adapt(*out, adapt, supported);
    free(supported);
    return err;
}

static int add_entry(struct cpuid_list *list, struct vcpu *v, uint32_t leaf, uint32_t subleaf,
                     const struct cpuid_list *supported)
{
    struct cpuid_regs r;
    if (list->head.nent == MAX_ENTRIES)
        return -E2BIG;
    cpu_cpuid(&v->cpu, leaf, subleaf, &r);
    filter(&r, leaf, subleaf, supported); /* again: what depends on the vCPU was not in the table */
    if (subleaf && !(r.eax | r.ebx | r.ecx | r.edx))
        return 0;
    list->entry[list->head.nent++] = (struct kvm_cpuid_entry2){
        .function = leaf,
        .index = subleaf,
        .eax = r.eax,
        .ebx = r.ebx,
        .ecx = r.ecx,
        .edx = r.edx,
        .flags = subleaf_count(leaf) ? KVM_CPUID_FLAG_SIGNIFCANT_INDEX : 0,
    };
    return 0;
}

static int add_range(struct cpuid_list *list, struct vcpu *v, uint32_t first, const struct cpuid_list *supported)
{
    struct cpuid_regs r;
    cpu_cpuid(&v->cpu, first, 0, &r);
    if (r.eax < first && first != 0)
        return 0;
    if (r.eax - first > 0x100)
        return -E2BIG;
    for (uint32_t leaf = first, last = r.eax; leaf <= last; leaf++) {
        uint32_t n = subleaf_count(leaf), subleaf = 0;
        do {
            int err = add_entry(list, v, leaf, subleaf, supported);
            if (err)
                return err;
        } while (++subleaf < n);
    }
    return 0;
}

int vcpu_set_cpuid(struct vcpu *v)
{
    static const uint32_t ranges[] = {0, 0x40000000, 0x80000000};
    int err;
    struct cpuid_list *supported = ask_supported(v->engine->kvm, &err), *list = calloc(1, sizeof(*list));
    if (!err && !list)
        err = -ENOMEM;
    for (unsigned i = 0; i < sizeof(ranges) / sizeof(ranges[0]) && !err; i++)
        err = add_range(list, v, ranges[i], supported);
    if (!err && ioctl(v->fd, KVM_SET_CPUID2, list))
        err = -errno;
    free(list);
    free(supported);
    return err;
}
