/* Moving a vCPU's state between struct cpu and KVM. */
#include <errno.h>
#include <string.h>
#include <sys/ioctl.h>

#include "engine/kvm/kvm_int.h"
#include "engine/simd_area.h"

#define MSR_APIC_BASE 0x1b
#define MSR_PV_WALL 0x4b564d00
#define MSR_PV_TIME 0x4b564d01

#define FIELD(index, name)                                                                                             \
    {                                                                                                                  \
        index, offsetof(struct cpu, name), false                                                                       \
    }
#define OPTIONAL(index, name)                                                                                          \
    {                                                                                                                  \
        index, offsetof(struct cpu, name), true                                                                        \
    }

const struct msr_field kvm_msr_fields[] = {
    FIELD(0xc0000081, star),
    FIELD(0xc0000082, lstar),
    FIELD(0xc0000083, cstar),
    FIELD(0xc0000084, sfmask),
    FIELD(0xc0000102, kernel_gs_base),
    FIELD(0x174, sysenter_cs),
    FIELD(0x175, sysenter_esp),
    FIELD(0x176, sysenter_eip),
    FIELD(0x277, pat),
    OPTIONAL(0xc0000103, tsc_aux),
    OPTIONAL(0x1a0, misc_enable),
    OPTIONAL(0x48, spec_ctrl),
    OPTIONAL(0x17a, mcg_status),
    OPTIONAL(0x2ff, mtrr_def_type),
    OPTIONAL(0x250, mtrr_fixed[0]),
    OPTIONAL(0x258, mtrr_fixed[1]),
    OPTIONAL(0x259, mtrr_fixed[2]),
    OPTIONAL(0x268, mtrr_fixed[3]),
    OPTIONAL(0x269, mtrr_fixed[4]),
    OPTIONAL(0x26a, mtrr_fixed[5]),
    OPTIONAL(0x26b, mtrr_fixed[6]),
    OPTIONAL(0x26c, mtrr_fixed[7]),
    OPTIONAL(0x26d, mtrr_fixed[8]),
    OPTIONAL(0x26e, mtrr_fixed[9]),
    OPTIONAL(0x26f, mtrr_fixed[10]),
    OPTIONAL(0x200, mtrr_base[0]),
    OPTIONAL(0x201, mtrr_mask[0]),
    OPTIONAL(0x202, mtrr_base[1]),
    OPTIONAL(0x203, mtrr_mask[1]),
    OPTIONAL(0x204, mtrr_base[2]),
    OPTIONAL(0x205, mtrr_mask[2]),
    OPTIONAL(0x206, mtrr_base[3]),
    OPTIONAL(0x207, mtrr_mask[3]),
    OPTIONAL(0x208, mtrr_base[4]),
    OPTIONAL(0x209, mtrr_mask[4]),
    OPTIONAL(0x20a, mtrr_base[5]),
    OPTIONAL(0x20b, mtrr_mask[5]),
    OPTIONAL(0x20c, mtrr_base[6]),
    OPTIONAL(0x20d, mtrr_mask[6]),
    OPTIONAL(0x20e, mtrr_base[7]),
    OPTIONAL(0x20f, mtrr_mask[7]),
    OPTIONAL(0x1d9, debug_control),
    OPTIONAL(0xc001011f, virt_spec_ctrl),
    OPTIONAL(0xc0011029, decode_config),
    /* Last: writing these makes KVM write guest memory, with the TSC already right. */
    OPTIONAL(MSR_PV_WALL, kvmclock_wall),
    OPTIONAL(MSR_PV_TIME, kvmclock_system_time),
};
const unsigned kvm_n_msr_fields = sizeof(kvm_msr_fields) / sizeof(kvm_msr_fields[0]);
_Static_assert(sizeof(kvm_msr_fields) / sizeof(kvm_msr_fields[0]) <= VCPU_MSRS, "VCPU_MSRS is too small");

struct one_msr {
    struct kvm_msrs head;
    struct kvm_msr_entry entry[VCPU_MSRS];
};

static uint64_t *msr_of(struct cpu *c, unsigned i)
{
    return (uint64_t *)((char *)c + kvm_msr_fields[i].offset);
}

/* --- struct cpu -> the shape KVM wants --------------------------------------------------------- */

static struct kvm_segment segment_to_kvm(const struct segment *s)
{
    return (struct kvm_segment){
        .base = s->base,
        .limit = s->limit,
        .selector = s->selector,
        .type = s->attr & SEG_TYPE,
        .s = !!(s->attr & SEG_S),
        .dpl = (s->attr & SEG_DPL) >> SEG_DPL_SHIFT,
        .present = !!(s->attr & SEG_P),
        .avl = !!(s->attr & SEG_AVL),
        .l = !!(s->attr & SEG_L),
        .db = !!(s->attr & SEG_DB),
        .g = !!(s->attr & SEG_G),
        .unusable = !(s->attr & SEG_P),
    };
}

/* On Intel a null segment is "unusable" whatever its present bit says. */
static struct segment segment_from_kvm(const struct kvm_segment *k)
{
    bool present = k->present && !k->unusable;
    return (struct segment){
        .base = k->base,
        .limit = k->limit,
        .selector = k->selector,
        .attr = (uint16_t)(k->type | k->s << 4 | k->dpl << SEG_DPL_SHIFT | (present ? SEG_P : 0) |
                           (k->avl ? SEG_AVL : 0) | (k->l ? SEG_L : 0) | (k->db ? SEG_DB : 0) | (k->g ? SEG_G : 0)),
    };
}

static const struct {
    enum gpr gpr;
    uint16_t offset;
} gpr_map[16] = {
    {RAX, offsetof(struct kvm_regs, rax)}, {RBX, offsetof(struct kvm_regs, rbx)}, {RCX, offsetof(struct kvm_regs, rcx)},
    {RDX, offsetof(struct kvm_regs, rdx)}, {RSI, offsetof(struct kvm_regs, rsi)}, {RDI, offsetof(struct kvm_regs, rdi)},
    {RSP, offsetof(struct kvm_regs, rsp)}, {RBP, offsetof(struct kvm_regs, rbp)}, {R8, offsetof(struct kvm_regs, r8)},
    {R9, offsetof(struct kvm_regs, r9)},   {R10, offsetof(struct kvm_regs, r10)}, {R11, offsetof(struct kvm_regs, r11)},
    {R12, offsetof(struct kvm_regs, r12)}, {R13, offsetof(struct kvm_regs, r13)}, {R14, offsetof(struct kvm_regs, r14)},
    {R15, offsetof(struct kvm_regs, r15)},
};

static const struct {
    uint16_t cpu, kvm;
} segment_map[] = {
    {offsetof(struct cpu, seg[ES]), offsetof(struct kvm_sregs, es)},
    {offsetof(struct cpu, seg[CS]), offsetof(struct kvm_sregs, cs)},
    {offsetof(struct cpu, seg[SS]), offsetof(struct kvm_sregs, ss)},
    {offsetof(struct cpu, seg[DS]), offsetof(struct kvm_sregs, ds)},
    {offsetof(struct cpu, seg[FS]), offsetof(struct kvm_sregs, fs)},
    {offsetof(struct cpu, seg[GS]), offsetof(struct kvm_sregs, gs)},
    {offsetof(struct cpu, ldtr), offsetof(struct kvm_sregs, ldt)},
    {offsetof(struct cpu, tr), offsetof(struct kvm_sregs, tr)},
};

static void regs_from_cpu(const struct cpu *c, struct kvm_regs *r)
{
    for (unsigned i = 0; i < 16; i++)
        *(__u64 *)((char *)r + gpr_map[i].offset) = c->gpr[gpr_map[i].gpr];
    r->rip = c->rip;
    r->rflags = c->rflags | FL_ONE;
}

static void regs_to_cpu(struct cpu *c, const struct kvm_regs *r)
{
    for (unsigned i = 0; i < 16; i++)
        c->gpr[gpr_map[i].gpr] = *(const __u64 *)((const char *)r + gpr_map[i].offset);
    c->rip = r->rip;
    c->rflags = (uint32_t)r->rflags | FL_ONE;
}

static void sregs_from_cpu(const struct vcpu *v, struct kvm_sregs *s)
{
    const struct cpu *c = &v->cpu;
    for (unsigned i = 0; i < sizeof(segment_map) / sizeof(segment_map[0]); i++)
        *(struct kvm_segment *)((char *)s + segment_map[i].kvm) = segment_to_kvm(
            (const struct segment *)((const char *)c + segment_map[i].cpu));
    s->ss.dpl = c->cpl; /* KVM takes the privilege level from here */
    s->gdt = (struct kvm_dtable){.base = c->gdtr.base, .limit = (uint16_t)c->gdtr.limit};
    s->idt = (struct kvm_dtable){.base = c->idtr.base, .limit = (uint16_t)c->idtr.limit};
    s->cr0 = c->cr0;
    s->cr2 = c->cr2;
    s->cr3 = c->cr3;
    s->cr4 = c->cr4;
    s->efer = c->efer;
    if (c->irq)
        c->irq->read_msr(c->irq_opaque, MSR_APIC_BASE, (uint64_t *)&s->apic_base);
}

static void sregs_to_cpu(struct vcpu *v, const struct kvm_sregs *s)
{
    struct cpu *c = &v->cpu;
    for (unsigned i = 0; i < sizeof(segment_map) / sizeof(segment_map[0]); i++)
        *(struct segment *)((char *)c + segment_map[i].cpu) = segment_from_kvm(
            (const struct kvm_segment *)((const char *)s + segment_map[i].kvm));
    c->cpl = s->ss.dpl;
    c->gdtr = (struct descriptor_table){.base = s->gdt.base, .limit = s->gdt.limit};
    c->idtr = (struct descriptor_table){.base = s->idt.base, .limit = s->idt.limit};
    c->cr0 = s->cr0;
    c->cr2 = s->cr2;
    c->cr3 = s->cr3;
    c->cr4 = s->cr4;
    c->efer = s->efer;
}

static void state_from_cpu(struct vcpu *v, struct vcpu_state *st)
{
    struct cpu *c = &v->cpu;
    memset(st, 0, sizeof(*st)); /* padding too: states are compared as bytes */
    regs_from_cpu(c, &st->regs);
    sregs_from_cpu(v, &st->sregs);
    memcpy(st->debug.db, c->dr, sizeof(c->dr));
    st->debug.dr6 = c->dr6;
    st->debug.dr7 = c->dr7;
    st->xcr0 = c->xcr0;
    for (unsigned i = 0; i < kvm_n_msr_fields; i++)
        st->msr[i] = *msr_of(c, i);
    st->tsc_offset = c->tsc_offset;
    st->irq_shadow = c->irq_shadow;
    st->nmi_blocked = c->nmi_blocked;
}

/* --- struct cpu -> KVM ------------------------------------------------------------------------- */

static int import_failed(struct vcpu *v, const char *what)
{
    int err = -errno;
    vcpu_fail(v, "KVM refuses the virtual CPU's %s: %s", what, strerror(-err));
    return err;
}

/* KVM's own TSC offset is made that of struct cpu, which the local APIC's deadline is reckoned by. */
static int import_tsc(struct vcpu *v, int64_t offset)
{
    struct kvm_device_attr attr = {
        .group = KVM_VCPU_TSC_CTRL,
        .attr = KVM_VCPU_TSC_OFFSET,
        .addr = (uintptr_t)&offset,
    };
    return ioctl(v->fd, KVM_SET_DEVICE_ATTR, &attr);
}

int vcpu_set_tsc(struct vcpu *v)
{
    if (import_tsc(v, v->cpu.tsc_offset))
        return import_failed(v, "time-stamp counter");
    v->known.tsc_offset = v->cpu.tsc_offset;
    return 0;
}

static int import_xcr0(struct vcpu *v, uint64_t xcr0)
{
    struct kvm_xcrs x = {.nr_xcrs = 1, .xcrs[0] = {.xcr = 0, .value = xcr0}};
    return ioctl(v->fd, KVM_SET_XCRS, &x);
}

static int import_events(struct vcpu *v, const struct vcpu_state *st)
{
    struct kvm_vcpu_events e = {
        .flags = KVM_VCPUEVENT_VALID_SHADOW | KVM_VCPUEVENT_VALID_NMI_PENDING,
        .interrupt.shadow = st->irq_shadow ? KVM_X86_SHADOW_INT_STI : 0,
        .nmi.masked = st->nmi_blocked,
    };
    return ioctl(v->fd, KVM_SET_VCPU_EVENTS, &e);
}

/* Not the place of the wall clock that a restored guest once gave: KVM writes there, and it may be something else now.
 */
static bool is_due(const struct vcpu *v, const struct vcpu_state *st, unsigned i)
{
    return st->msr[i] != v->known.msr[i] && !(v->everything && kvm_msr_fields[i].index == MSR_PV_WALL);
}

static int import_msrs(struct vcpu *v, const struct vcpu_state *st)
{
    for (unsigned i = 0; i < kvm_n_msr_fields; i++) {
        if (v->msr_absent[i] || !is_due(v, st, i))
            continue;
        struct one_msr m = {.head.nmsrs = 1, .entry[0] = {.index = kvm_msr_fields[i].index, .data = st->msr[i]}};
        if (ioctl(v->fd, KVM_SET_MSRS, &m) == 1 || kvm_msr_fields[i].optional)
            continue;
        vcpu_fail(v, "KVM refuses %#llx for MSR %#x", (unsigned long long)st->msr[i], kvm_msr_fields[i].index);
        return -EINVAL;
    }
    return 0;
}

/* --- the machine's clock ------------------------------------------------------------------------ */

static uint64_t host_tsc(void)
{
    return __builtin_ia32_rdtsc();
}

/* The clock that KVM shows begins when its machine is made; a restored guest's has been running for longer.  Once, by
 * whoever is the first to run: nobody has seen the other. */
static int import_clock(struct kvm_engine *e)
{
    int err = 0;
    pthread_mutex_lock(&e->lock);
    if (!e->clock_is_set) {
        struct kvm_clock_data clock = {.clock = cpuid_table_now(e->cpuid, host_tsc())};
        err = ioctl(e->vm, KVM_SET_CLOCK, &clock) ? -errno : 0;
        e->clock_is_set = true;
    }
    pthread_mutex_unlock(&e->lock);
    return err;
}

/* For who saves it (cpu/saved.c): when that clock read 0, as it goes now. */
static void export_clock(struct kvm_engine *e)
{
    struct kvm_clock_data clock = {0};
    uint64_t before = host_tsc();
    if (ioctl(e->vm, KVM_GET_CLOCK, &clock))
        return;
    uint64_t now = clock.flags & KVM_CLOCK_HOST_TSC ? clock.host_tsc : before;
    pthread_mutex_lock(&e->lock);
    cpuid_table_set_now(e->cpuid, now, clock.clock);
    pthread_mutex_unlock(&e->lock);
}

/* Order: the registers that decide which values the others may have come first; KVM_SET_REGS drops
 * pending exceptions, so the events are last. */
int vcpu_import(struct vcpu *v)
{
    struct vcpu_state st;
    state_from_cpu(v, &st);
    struct vcpu_state *old = &v->known;
    bool all = v->everything;
    if (all && import_clock(v->engine))
        return import_failed(v, "clock");
    if (!all && !v->push_events && memcmp(&st, old, sizeof(st)) == 0)
        return 0;
    if ((all || memcmp(&st.sregs, &old->sregs, sizeof(st.sregs))) && ioctl(v->fd, KVM_SET_SREGS, &st.sregs))
        return import_failed(v, "system registers");
    if ((all || memcmp(&st.regs, &old->regs, sizeof(st.regs))) && ioctl(v->fd, KVM_SET_REGS, &st.regs))
        return import_failed(v, "registers");
    if ((all || st.xcr0 != old->xcr0) && import_xcr0(v, st.xcr0))
        return import_failed(v, "XCR0");
    if ((all || memcmp(&st.debug, &old->debug, sizeof(st.debug))) && ioctl(v->fd, KVM_SET_DEBUGREGS, &st.debug))
        return import_failed(v, "debug registers");
    if ((all || st.tsc_offset != old->tsc_offset) && import_tsc(v, st.tsc_offset))
        return import_failed(v, "time-stamp counter");
    int err = import_msrs(v, &st);
    if (err)
        return err;
    bool events = all || v->push_events || st.irq_shadow != old->irq_shadow || st.nmi_blocked != old->nmi_blocked;
    if (events && import_events(v, &st))
        return import_failed(v, "events");
    v->ready = (st.regs.rflags & FL_IF) && !st.irq_shadow;
    v->known = st;
    v->everything = v->push_events = false;
    return 0;
}

/* KVM keeps the guest's time page; whoever stopped the guest may have written it too (cpu/pvclock.c), so
 * KVM is made to write it anew, and to tell the guest's watchdogs of the pause. */
void vcpu_resume_clock(struct vcpu *v)
{
    struct one_msr m = {.head.nmsrs = 1, .entry[0] = {.index = MSR_PV_TIME, .data = v->cpu.kvmclock_system_time}};
    if (!(v->cpu.kvmclock_system_time & 1)) /* not in use */
        return;
    ioctl(v->fd, KVM_SET_MSRS, &m);
    ioctl(v->fd, KVM_KVMCLOCK_CTRL, 0);
}

/* KVM shows CPUID's APIC bit by its own copy of APIC_BASE. */
int vcpu_set_apic_base(struct vcpu *v)
{
    struct kvm_sregs s;
    uint64_t base = 0;
    if (!v->cpu.irq->read_msr(v->cpu.irq_opaque, MSR_APIC_BASE, &base))
        return 0;
    if (ioctl(v->fd, KVM_GET_SREGS, &s))
        return import_failed(v, "APIC base");
    s.apic_base = base;
    if (ioctl(v->fd, KVM_SET_SREGS, &s))
        return import_failed(v, "APIC base");
    v->known.sregs.apic_base = base;
    return 0;
}

/* --- KVM -> struct cpu ------------------------------------------------------------------------- */

static int export_failed(struct vcpu *v, const char *what)
{
    int err = -errno;
    vcpu_fail(v, "KVM does not give the virtual CPU's %s: %s", what, strerror(-err));
    return err;
}

static int export_msrs(struct vcpu *v)
{
    struct one_msr m = {0};
    unsigned field[VCPU_MSRS];
    for (unsigned i = 0; i < kvm_n_msr_fields; i++) {
        if (v->msr_absent[i])
            continue;
        field[m.head.nmsrs] = i;
        m.entry[m.head.nmsrs++].index = kvm_msr_fields[i].index;
    }
    int n = ioctl(v->fd, KVM_GET_MSRS, &m);
    if (n < (int)m.head.nmsrs)
        return export_failed(v, "MSRs");
    for (int i = 0; i < n; i++)
        *msr_of(&v->cpu, field[i]) = m.entry[i].data;
    return 0;
}

/* An event that KVM has accepted but not begun is delivered here, by the architecture's own rules,
 * so that struct cpu alone is the whole state. */
static int export_pending(struct vcpu *v, const struct kvm_vcpu_events *e)
{
    struct cpu *c = &v->cpu;
    int err = CPU_OK;
    if (e->nmi.pending) {
        atomic_fetch_or(&c->request, REQ_NMI);
        v->push_events = true;
    }
    if (e->exception.injected || e->exception.pending) {
        c->exc = (struct exception){
            .vector = e->exception.nr,
            .has_error = e->exception.has_error_code,
            .error = e->exception.error_code,
            .cr2 = c->cr2,
        };
        err = cpu_deliver(c);
    } else if (e->nmi.injected) {
        err = cpu_deliver_nmi(c);
    } else if (e->interrupt.injected) {
        err = cpu_deliver_interrupt(c, e->interrupt.nr);
    } else {
        return 0;
    }
    v->push_events = true; /* KVM must forget its own copy of the event */
    if (err == CPU_SHUTDOWN) {
        vcpu_fail(v, "a pending event could not be delivered: triple fault");
        return -EFAULT;
    }
    return 0;
}

/* What KVM has in registers, and with `full` everything. */
int vcpu_export(struct vcpu *v, bool full)
{
    struct kvm_regs regs;
    struct kvm_sregs sregs;
    struct kvm_vcpu_events events;
    struct kvm_debugregs debug;
    struct kvm_xcrs xcrs;
    struct cpu *c = &v->cpu;

    if (ioctl(v->fd, KVM_GET_REGS, &regs) || ioctl(v->fd, KVM_GET_SREGS, &sregs) ||
        ioctl(v->fd, KVM_GET_VCPU_EVENTS, &events))
        return export_failed(v, "registers");
    regs_to_cpu(c, &regs);
    sregs_to_cpu(v, &sregs);
    c->irq_shadow = events.interrupt.shadow != 0;
    c->nmi_blocked = events.nmi.masked;
    if (full) {
        if (ioctl(v->fd, KVM_GET_DEBUGREGS, &debug) || ioctl(v->fd, KVM_GET_XCRS, &xcrs))
            return export_failed(v, "debug registers and XCR0");
        memcpy(c->dr, debug.db, sizeof(c->dr));
        c->dr6 = debug.dr6;
        c->dr7 = debug.dr7;
        for (unsigned i = 0; i < xcrs.nr_xcrs && i < KVM_MAX_XCRS; i++)
            if (xcrs.xcrs[i].xcr == 0)
                c->xcr0 = xcrs.xcrs[i].value;
        int err = export_msrs(v);
        if (err)
            return err;
        if (c->index == 0)
            export_clock(v->engine);
    }
    state_from_cpu(v, &v->known);
    return full ? export_pending(v, &events) : 0;
}

/* --- SIMD registers: they stay with KVM until somebody asks --------------------------------------- */

_Static_assert(sizeof(struct kvm_xsave) == ENGINE_SIMD_MAX, "it is XSAVE's standard format");

int vcpu_get_simd(struct vcpu *v, uint8_t *out)
{
    struct kvm_xsave area;
    if (ioctl(v->fd, KVM_GET_XSAVE, &area))
        return -errno;
    memcpy(out, &area, sizeof(area));
    return sizeof(area);
}

/* Anybody's: what there is no place for is left out, and KVM refuses what else XRSTOR would. */
int vcpu_set_simd(struct vcpu *v, const uint8_t *bytes, size_t n)
{
    struct kvm_xsave area;
    struct cpuid_regs shown;
    cpu_cpuid(&v->cpu, 0xd, 0, &shown);
    int err = simd_area_take((uint8_t *)&area, bytes, n, shown.eax | (uint64_t)shown.edx << 32 | 3);
    if (err)
        return err;
    return ioctl(v->fd, KVM_SET_XSAVE, &area) ? -errno : 0;
}

void vcpu_find_msrs(struct vcpu *v)
{
    for (unsigned i = 0; i < kvm_n_msr_fields; i++) {
        struct one_msr m = {.head.nmsrs = 1, .entry[0].index = kvm_msr_fields[i].index};
        v->msr_absent[i] = ioctl(v->fd, KVM_GET_MSRS, &m) != 1;
        v->known.msr[i] = m.entry[0].data; /* writing it again might be complained of in the host's log */
    }
}
