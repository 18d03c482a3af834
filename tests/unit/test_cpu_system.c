/* Control and debug registers, XCR0, INVPCID, I/O permission, MSRs, CPUID and the paravirtual clock. */
#include <cpuid.h>

#include "cpu_fixture.h"

static void cr0_rules(void **state)
{
    struct fixture *f = *state;
    struct cpu *c = &f->cpu;
    enter_long(f);
    assert_fault(cpu_write_cr(c, 0, 1ull << 32), EXC_GP, 0);
    assert_fault(cpu_write_cr(c, 0, CR0_PG), EXC_GP, 0);
    assert_fault(cpu_write_cr(c, 0, c->cr0 | CR0_NW), EXC_GP, 0);
    assert_fault(cpu_write_cr(c, 0, c->cr0 & ~(uint64_t)CR0_PG), EXC_GP, 0); /* in 64-bit mode */
    c->seg[CS].attr = 0xc9b;
    assert_ok(cpu_write_cr(c, 0, c->cr0 & ~(uint64_t)CR0_PG));
    assert_true(!cpu_long_mode(c) && (c->cr0 & CR0_ET));
    c->cr4 = 0;
    assert_fault(cpu_write_cr(c, 0, c->cr0 | CR0_PG), EXC_GP, 0); /* LME without PAE */
    c->cr4 = CR4_PAE;
    assert_ok(cpu_write_cr(c, 0, c->cr0 | CR0_PG));
    assert_true(cpu_long_mode(c));
    assert_ok(cpu_lmsw(c, CR0_TS));
    assert_true((c->cr0 & CR0_TS) && (c->cr0 & CR0_PE) && (c->cr0 & CR0_PG));
    c->cpl = 3;
    assert_fault(cpu_write_cr(c, 0, c->cr0), EXC_GP, 0);
    assert_fault(cpu_write_cr(c, 1, 0), EXC_UD, 0);
}

static unsigned flushes, keeps, switches;
static void count_flush(struct cpu *cpu, bool globals)
{
    flushes++;
}
static void count_switch(struct cpu *cpu, bool keep)
{
    switches++, keeps += keep;
}

static void cr3_cr4_cr8_rules(void **state)
{
    struct fixture *f = *state;
    struct cpu *c = &f->cpu;
    uint64_t value;
    f->ops.tlb_flush_all = count_flush;
    f->ops.address_space_changed = count_switch;
    enter_long(f);
    assert_fault(cpu_write_cr(c, 3, PML4_AT | 1ull << 63), EXC_GP, 0);
    assert_fault(cpu_write_cr(c, 3, PML4_AT | 1ull << 51), EXC_GP, 0);
    assert_fault(cpu_write_cr(c, 4, 0), EXC_GP, 0);
    assert_fault(cpu_write_cr(c, 4, CR4_PAE | CR4_LA57), EXC_GP, 0);
    assert_fault(cpu_write_cr(c, 4, CR4_PAE | 1ull << 40), EXC_GP, 0);
    flushes = switches = keeps = 0;
    assert_ok(cpu_write_cr(c, 4, CR4_PAE | CR4_PGE));
    assert_int_equal(flushes, 1);
    assert_ok(cpu_write_cr(c, 4, CR4_PAE | CR4_PGE));
    assert_int_equal(flushes, 1);
    struct cpuid_regs one;
    cpu_cpuid(c, 1, 0, &one);
    if (one.ecx & 1 << 17) {
        c->cr3 |= 8;
        assert_fault(cpu_write_cr(c, 4, CR4_PAE | CR4_PCIDE), EXC_GP, 0);
        c->cr3 = PML4_AT;
        assert_ok(cpu_write_cr(c, 4, CR4_PAE | CR4_PCIDE));
        assert_ok(cpu_write_cr(c, 3, PML4_AT | 5 | 1ull << 63));
        assert_true(c->cr3 == (PML4_AT | 5) && switches == 1 && keeps == 1);
    }
    assert_fault(cpu_write_cr(c, 8, 16), EXC_GP, 0);
    assert_ok(cpu_write_cr(c, 2, 0xabc));
    assert_ok(cpu_read_cr(c, 2, &value));
    assert_true(value == 0xabc);
}

static void pae_entries_are_checked(void **state)
{
    struct fixture *f = *state;
    struct cpu *c = &f->cpu;
    enter_protected(f);
    c->cr4 = CR4_PAE;
    c->efer = 0;
    c->cr3 = PML4_AT;
    *at(f, PML4_AT) = PD_AT | 3; /* R/W is reserved there */
    assert_fault(cpu_write_cr(c, 0, c->cr0 | CR0_PG), EXC_GP, 0);
    *at(f, PML4_AT) = PD_AT | 1;
    assert_ok(cpu_write_cr(c, 0, c->cr0 | CR0_PG));
}

static void debug_registers(void **state)
{
    struct fixture *f = *state;
    struct cpu *c = &f->cpu;
    uint64_t value;
    enter_long(f);
    assert_ok(cpu_write_dr(c, 7, 0x401));
    assert_ok(cpu_write_dr(c, 5, 0));
    assert_ok(cpu_read_dr(c, 7, &value));
    assert_int_equal(value, 0x400);
    assert_fault(cpu_write_dr(c, 7, 1ull << 32), EXC_GP, 0);
    assert_ok(cpu_write_dr(c, 6, 0));
    assert_int_equal(c->dr6, 0xffff0ff0);
    c->cr4 |= CR4_DE;
    assert_fault(cpu_read_dr(c, 4, &value), EXC_UD, 0);
    c->dr7 |= 1 << 13;
    assert_fault(cpu_read_dr(c, 0, &value), EXC_DB, 0);
    assert_int_equal(c->exc.dr6, 1 << 13);
    c->cpl = 3;
    assert_fault(cpu_read_dr(c, 0, &value), EXC_GP, 0);
}

static void xcr0_rules(void **state)
{
    struct fixture *f = *state;
    struct cpu *c = &f->cpu;
    struct cpuid_regs d;
    cpu_cpuid(c, 0xd, 0, &d);
    enter_long(f);
    assert_fault(cpu_xsetbv(c, 0, 1), EXC_UD, 0);
    c->cr4 |= CR4_OSXSAVE;
    assert_ok(cpu_xsetbv(c, 0, 1));
    assert_fault(cpu_xsetbv(c, 0, 2), EXC_GP, 0);
    assert_fault(cpu_xsetbv(c, 0, 5), EXC_GP, 0);
    assert_fault(cpu_xsetbv(c, 0, 0x27), EXC_GP, 0);
    assert_fault(cpu_xsetbv(c, 1, 1), EXC_GP, 0);
    assert_fault(cpu_xsetbv(c, 0, 0x207), EXC_GP, 0);
    assert_ok(cpu_xsetbv(c, 0, d.eax));
    cpu_cpuid(c, 0xd, 0, &d);
    assert_int_equal(d.ebx, d.ecx);
    assert_ok(cpu_xsetbv(c, 0, 1));
    cpu_cpuid(c, 0xd, 0, &d);
    assert_int_equal(d.ebx, 576);
    cpu_cpuid(c, 1, 0, &d);
    assert_true(d.ecx & 1 << 27);
}

static void invpcid_rules(void **state)
{
    struct fixture *f = *state;
    enter_long(f);
    assert_fault(cpu_invpcid(&f->cpu, 4, (uint64_t[]){0, 0}), EXC_GP, 0);
    assert_fault(cpu_invpcid(&f->cpu, 0, (uint64_t[]){1, 0}), EXC_GP, 0);
    assert_fault(cpu_invpcid(&f->cpu, 2, (uint64_t[]){0x1000, 0}), EXC_GP, 0);
    assert_fault(cpu_invpcid(&f->cpu, 0, (uint64_t[]){0, 1ull << 60}), EXC_GP, 0);
    assert_ok(cpu_invpcid(&f->cpu, 0, (uint64_t[]){0, 0x1000}));
    assert_ok(cpu_invpcid(&f->cpu, 2, (uint64_t[]){5, 0}));
}

static void io_permission(void **state)
{
    struct fixture *f = *state;
    enter_long(f);
    assert_ok(cpu_check_io(&f->cpu, 0x3f8, 1));
    to_user64(f);
    assert_fault(cpu_check_io(&f->cpu, 0x3f8, 1), EXC_GP, 0);
    f->cpu.tr.limit = 0x68 + 0x2000;
    *(uint16_t *)(f->memory->base + TSS_AT + 102) = 0x68;
    memset(f->memory->base + TSS_AT + 0x68, 0xff, 0x400);
    f->memory->base[TSS_AT + 0x68 + 0x3f8 / 8] = 0xfc;
    assert_ok(cpu_check_io(&f->cpu, 0x3f8, 2));
    assert_fault(cpu_check_io(&f->cpu, 0x3f8, 4), EXC_GP, 0);
    assert_fault(cpu_check_io(&f->cpu, 0x3fa, 1), EXC_GP, 0);
    f->cpu.rflags |= FL_IOPL;
    assert_ok(cpu_check_io(&f->cpu, 0x3fa, 1));
    f->cpu.rflags |= FL_VM; /* the bitmap counts whatever IOPL is */
    assert_fault(cpu_check_io(&f->cpu, 0x3fa, 1), EXC_GP, 0);
}

static void msr_rules(void **state)
{
    struct fixture *f = *state;
    struct cpu *c = &f->cpu;
    static const struct {
        uint32_t index;
        uint64_t value;
        bool good;
    } writes[] = {
        {0xc0000082, 0xffffffff81000000, true},
        {0xc0000082, 1ull << 60, false},
        {0xc0000100, 1ull << 47, false},
        {0xc0000101, 0xffff800000000000, true},
        {0xc0000102, 0x7fffffffffff, true},
        {0xc0000103, 5, true},
        {0xc0000103, 1ull << 32, false},
        {0x277, 0x0007040600070406, true},
        {0x277, 2, false},
        {0x277, 8, false},
        {0x2ff, 0xc06, true},
        {0x2ff, 2, false},
        {0x2ff, 0x100, false},
        {0x250, 0x0606060606060606, true},
        {0x250, 0x07, false},
        {0x200, 0x1000006, true},
        {0x200, 0x1000106, false},
        {0x201, 0xff000800, true},
        {0x201, 1ull << 55, false},
        {0x210, 0, false},
        {0xc0000080, EFER_SCE | EFER_LME | EFER_NXE, true},
        {0xc0000080, EFER_SCE, false},
        {0xc0000080, EFER_LME | EFER_SVME, false},
        {0xfe, 0, false},
        {0xdeadbeef, 0, false},
        {0x179, 0, false},
        {0x174, 8, true},
        {0x1b, 0, false} /* no APIC here */,
    };
    uint64_t value;
    enter_long(f);
    for (unsigned i = 0; i < sizeof writes / sizeof *writes; i++) {
        if (!writes[i].good) {
            assert_fault(cpu_wrmsr(c, writes[i].index, writes[i].value), EXC_GP, 0);
            continue;
        }
        assert_ok(cpu_wrmsr(c, writes[i].index, writes[i].value));
        assert_ok(cpu_rdmsr(c, writes[i].index, &value));
        uint64_t expected = writes[i].value | (writes[i].index == 0xc0000080 ? EFER_LMA : 0);
        assert_true(value == expected);
    }
    c->cpl = 3;
    assert_fault(cpu_rdmsr(c, 0x10, &value), EXC_GP, 0);
}

/* Read by Linux without a net on the processors it may believe to be on. */
static void msrs_that_kernels_trust(void **state)
{
    struct fixture *f = *state;
    static const uint32_t amd[] = {0xc0010010, 0xc0010015, 0xc001001a, 0xc001001d, 0xc0011029, 0x8b, 0xc0010114};
    static const uint32_t intel[] = {0x17, 0x1a0, 0x8b, 0x3a, 0x48, 0x10a};
    static const uint32_t any[] = {0xfe, 0x179, 0x17a, 0x2ff, 0x200, 0x250, 0x26f, 0x277, 0x10, 0x3b, 0x1d9};
    uint64_t value;
    struct cpuid_regs v;
    cpu_cpuid(&f->cpu, 0, 0, &v);
    bool is_intel = v.ebx == 0x756e6547;
    for (unsigned i = 0; i < (is_intel ? sizeof intel : sizeof amd) / 4; i++)
        assert_ok(cpu_rdmsr(&f->cpu, is_intel ? intel[i] : amd[i], &value));
    for (unsigned i = 0; i < sizeof any / 4; i++)
        assert_ok(cpu_rdmsr(&f->cpu, any[i], &value));
    if (!is_intel) {
        assert_ok(cpu_rdmsr(&f->cpu, 0xc0010015, &value));
        assert_true(value & 1 << 24);
    }
}

/* Linux takes RDSEED of family 1Ah for broken, and says so, before such a revision of the very model. */
static void microcode_is_of_the_cpu(void **state)
{
    struct fixture *f = *state;
    struct cpuid_regs v;
    uint64_t value;
    cpu_cpuid(&f->cpu, 1, 0, &v);
    if ((v.eax >> 20 & 0xff) < 0xb)
        skip();
    assert_ok(cpu_rdmsr(&f->cpu, 0x8b, &value));
    assert_int_equal(value >> 24, v.eax >> 20 & 0xff);
    assert_int_equal(value >> 20 & 15, v.eax >> 16 & 15);
    assert_int_equal(value >> 12 & 15, v.eax >> 4 & 15);
    assert_int_equal(value >> 8 & 15, v.eax & 15);
    assert_int_equal(value & 0xff, 0xff);
}

/* Linux does not believe BHI_NO: it wants the switch, and without it runs a loop at each system call. */
static void branch_history_has_a_switch(void **state)
{
    struct fixture *f = *state;
    struct cpuid_regs v;
    uint64_t value;
    cpu_cpuid(&f->cpu, 0, 0, &v);
    if (v.ebx != 0x756e6547)
        skip();
    cpu_cpuid(&f->cpu, 7, 0, &v);
    assert_true(v.eax >= 2);
    cpu_cpuid(&f->cpu, 7, 2, &v);
    assert_true(v.edx & 1 << 4);
    assert_ok(cpu_wrmsr(&f->cpu, 0x48, 0x401));
    assert_ok(cpu_rdmsr(&f->cpu, 0x48, &value));
    assert_int_equal(value, 0x401);
    assert_fault(cpu_wrmsr(&f->cpu, 0x48, 0x800), EXC_GP, 0);
}

static void every_msr_index_is_found(void **state)
{
    struct fixture *f = *state;
    uint64_t value;
    unsigned readable = 0;
    f->cpu.log = NULL;
    for (uint32_t base = 0; base < 3; base++)
        for (uint32_t i = 0; i < 0x2000; i++)
            readable += !cpu_rdmsr(&f->cpu, base == 0 ? i : base == 1 ? 0xc0000000 + i : 0xc0010000 + i, &value);
    assert_in_range(readable, 50, 100);
}

static void tsc_moves(void **state)
{
    struct fixture *f = *state;
    const uint64_t step = 1000000000000, soon = step / 100;
    uint64_t first, value, adjust;
    assert_ok(cpu_rdmsr(&f->cpu, 0x10, &first));
    assert_in_range(__builtin_ia32_rdtsc() - first, 0, soon); /* the host's, until it is set */
    assert_ok(cpu_wrmsr(&f->cpu, 0x10, first + step));
    assert_ok(cpu_rdmsr(&f->cpu, 0x10, &value));
    assert_in_range(value, first + step, first + step + soon);
    assert_ok(cpu_rdmsr(&f->cpu, 0x3b, &adjust));
    assert_in_range(adjust, step - soon, step);
    assert_ok(cpu_wrmsr(&f->cpu, 0x3b, 0));
    assert_ok(cpu_rdmsr(&f->cpu, 0x10, &value));
    assert_in_range(value, first, first + soon);
}

static void cpuid_is_within_the_host(void **state)
{
    struct fixture *f = *state;
    /* What guise gives by itself: hypervisor, x2APIC, TSC deadline; TSC_ADJUST, SERIALIZE; CmpLegacy; HTT */
    static const struct {
        uint32_t leaf, subleaf, ebx, ecx, edx;
    } rows[] = {
        {1, 0, 0xffffffff, 1u << 31 | 1 << 24 | 1 << 21, 1 << 28},
        {7, 0, 1 << 1, 0, 1u << 26 | 1 << 29 | 1 << 14},
        {7, 1, 0, 0, 0},
        {0x80000001, 0, 0, 1 << 1, 0},
    };
    for (unsigned i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct cpuid_regs g;
        unsigned a, b, c, d;
        __cpuid_count(rows[i].leaf, rows[i].subleaf, a, b, c, d);
        cpu_cpuid(&f->cpu, rows[i].leaf, rows[i].subleaf, &g);
        if (rows[i].leaf != 7 || rows[i].subleaf) /* the number of subleaves */
            assert_int_equal(g.eax & ~a, 0);
        assert_int_equal(g.ebx & ~b & ~rows[i].ebx, 0);
        assert_int_equal(g.ecx & ~c & ~rows[i].ecx, 0);
        assert_int_equal(g.edx & ~d & ~rows[i].edx, 0);
    }
}

static void cpuid_tells_one_story(void **state)
{
    struct fixture *f = *state;
    struct cpuid_regs r, lm;
    f->cpu.index = 1;
    cpu_cpuid(&f->cpu, 1, 0, &r);
    assert_int_equal(r.ebx >> 24, 1);
    assert_int_equal(r.ebx >> 16 & 0xff, 2);
    assert_true(r.edx & 1 << 28);
    assert_int_equal(r.ecx & (1 << 3 | 1 << 5), 0); /* MONITOR, VMX */
    cpu_cpuid(&f->cpu, 0xb, 1, &r);
    assert_true(r.eax == 1 && r.ebx == 2 && r.ecx == 0x201 && r.edx == 1);
    cpu_cpuid(&f->cpu, 0xb, 2, &r);
    assert_true(r.eax == 0 && r.ebx == 0 && r.ecx == 2 && r.edx == 1);
    cpu_cpuid(&f->cpu, 0x80000001, 0, &lm);
    assert_true(lm.edx & 1 << 29);
    assert_int_equal(lm.ecx & 1 << 2, 0); /* SVM */
    cpu_cpuid(&f->cpu, 0x40000000, 0, &r);
    assert_memory_equal(&r.ebx, "KVMK", 4);
    cpu_cpuid(&f->cpu, 0x40000010, 0, &r);
    assert_int_equal(r.eax, 2500000);
    cpu_cpuid(&f->cpu, 0x80000008, 0, &r);
    assert_true((r.eax & 0xff) <= 48);
    cpu_cpuid(&f->cpu, 0x7fffffff, 0, &r);
    cpu_cpuid(&f->cpu, 0x80ffffff, 0, &r);
    assert_true(!r.eax && !r.ebx && !r.ecx && !r.edx);
    cpu_cpuid(&f->cpu, 0xa, 0, &r);
    assert_int_equal(r.eax, 0);
    struct cpuid_table *t;
    assert_true(cpuid_table_create(&t, 0, 2500000) < 0);
    for (uint64_t khz = 800000; khz < 6000000; khz += 700000) {
        assert_int_equal(cpuid_table_create(&t, 5, khz), 0);
        cpuid_table_destroy(t);
    }
}

/* What a vCPU that does not run leaves to be done, and what it has waited. */
static void steal_page(void **state)
{
    struct fixture *f = *state;
    struct cpu *c = &f->cpu;
    enum { AT = 0x32000, FLUSH = 2 };
    uint8_t *page = (uint8_t *)at(f, AT), *preempted = page + 16;
    f->ops.tlb_flush_all = count_flush;
    assert_fault(cpu_wrmsr(c, 0x4b564d03, AT | 1), EXC_GP, 0); /* CPUID does not show it */
    assert_fault(cpu_wrmsr(c, 0x4b564d04, AT | 1), EXC_GP, 0);
    cpuid_table_show_kvm(f->table, 1 << 5 | 1 << 6);
    assert_fault(cpu_wrmsr(c, 0x4b564d03, AT | 3), EXC_GP, 0);
    assert_fault(cpu_wrmsr(c, 0x4b564d04, AT | 3), EXC_GP, 0);
    cpu_steal_update(c, 5);
    cpu_halts(c);
    assert_true(*at(f, AT) == 0 && !*preempted); /* not wanted yet */
    assert_ok(cpu_wrmsr(c, 0x4b564d03, AT | 1));
    cpu_steal_update(c, 123456789);
    assert_true(*at(f, AT) == 123456789 && *(uint32_t *)(page + 8) % 2 == 0 && *(uint32_t *)(page + 8) > 0);
    cpu_halts(c);
    assert_int_equal(*preempted, 1);
    flushes = 0;
    cpu_goes_on(c);
    assert_true(*preempted == 0 && flushes == 0);
    cpu_halts(c);
    *preempted |= FLUSH;
    cpu_goes_on(c);
    assert_true(*preempted == 0 && flushes == 1);
    assert_ok(cpu_wrmsr(c, 0x4b564d03, 0xfffffffff000 | 1)); /* not RAM: nothing happens */
    cpu_halts(c);
    cpu_goes_on(c);
    cpu_steal_update(c, 1);
}

static int64_t sent(void *opaque, const uint64_t args[4])
{
    assert_true(args[0] == 5 && args[1] == 6 && args[2] == 7 && args[3] == 0xfd);
    return 2;
}
static int64_t woken(void *opaque, uint64_t id)
{
    return id == 6 ? 0 : -1;
}

static void hypercalls(void **state)
{
    struct fixture *f = *state;
    struct cpu *c = &f->cpu;
    static const struct cpu_irq_ops irq = {.send_ipi = sent, .wake = woken};
    const struct {
        uint64_t number;
        unsigned cpl;
        bool yields;
        int64_t result;
    } calls[] = {{10, 0, false, 2},
                 {5, 0, false, 0},
                 {11, 0, true, 0},
                 {10, 3, false, -1},
                 {11, 3, false, -1},
                 {1, 0, false, -1000},
                 {1ull << 32, 0, false, -1000}};
    enter_long(f);
    for (unsigned there = 0; there < 2; there++) {
        c->irq = there ? &irq : NULL;
        for (unsigned i = 0; i < sizeof calls / sizeof *calls; i++) {
            c->gpr[RAX] = calls[i].number;
            c->gpr[RBX] = 5, c->gpr[RCX] = 6, c->gpr[RDX] = 7, c->gpr[RSI] = 0xfd;
            c->cpl = (uint8_t)calls[i].cpl;
            assert_true(cpu_hypercall(c) == calls[i].yields);
            bool missing = !there && !calls[i].cpl && calls[i].number != 11;
            assert_int_equal((int64_t)c->gpr[RAX], missing ? -1000 : calls[i].result);
        }
    }
}

static void paravirtual_clock(void **state)
{
    struct fixture *f = *state;
    static const uint64_t rates[] = {900000, 1000000, 2000000, 2000001, 2596096, 4000001, 5700000};
    for (unsigned i = 0; i < sizeof rates / sizeof *rates; i++) {
        cpuid_table_destroy(f->table);
        assert_int_equal(cpuid_table_create(&f->table, 1, rates[i]), 0);
        f->cpu.cpuid = f->table;
        cpu_reset(&f->cpu);
        assert_ok(cpu_wrmsr(&f->cpu, 0x4b564d01, 0x30000 | 1));
        uint32_t *page = (uint32_t *)at(f, 0x30000);
        assert_true(page[0] && !(page[0] & 1));
        assert_int_equal(((uint8_t *)page)[29], 1); /* stable */
        uint64_t tsc = rates[i] * 1000 * 3600 * 24; /* one day */
        int8_t shift = ((int8_t *)page)[28];
        uint64_t shifted = shift < 0 ? tsc >> -shift : tsc << shift;
        uint64_t ns = (unsigned __int128)shifted * page[6] >> 32;
        int64_t error = (int64_t)(ns - 86400000000000);
        assert_true(error <= 0 && error > -100000); /* below 2 parts in 10^9 */
        /* the guest moves its TSC: its clock does not move */
        uint64_t stamp = *(uint64_t *)(page + 2);
        int64_t offset = f->cpu.tsc_offset;
        assert_ok(cpu_wrmsr(&f->cpu, 0x10, 1ull << 50));
        assert_true(*(uint64_t *)(page + 2) - stamp == (uint64_t)(f->cpu.tsc_offset - offset));
    }
    assert_ok(cpu_wrmsr(&f->cpu, 0x4b564d00, 0x31000));
    uint32_t *wall = (uint32_t *)at(f, 0x31000);
    assert_true(!(wall[0] & 1) && wall[1] > 1600000000 && wall[2] < 1000000000);
    assert_ok(cpu_wrmsr(&f->cpu, 0x4b564d01, 0xfffffffff000 | 1)); /* not RAM: nothing happens */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        CPU_TEST(cr0_rules),
        CPU_TEST(cr3_cr4_cr8_rules),
        CPU_TEST(pae_entries_are_checked),
        CPU_TEST(debug_registers),
        CPU_TEST(xcr0_rules),
        CPU_TEST(invpcid_rules),
        CPU_TEST(io_permission),
        CPU_TEST(msr_rules),
        CPU_TEST(msrs_that_kernels_trust),
        CPU_TEST(microcode_is_of_the_cpu),
        CPU_TEST(branch_history_has_a_switch),
        CPU_TEST(every_msr_index_is_found),
        CPU_TEST(tsc_moves),
        CPU_TEST(cpuid_is_within_the_host),
        CPU_TEST(cpuid_tells_one_story),
        CPU_TEST(paravirtual_clock),
        CPU_TEST(steal_page),
        CPU_TEST(hypercalls),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
