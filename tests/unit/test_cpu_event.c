/* Exceptions, interrupts and IRET: frames, stacks, error codes, double and triple faults. */
#include "cpu_fixture.h"

static uint64_t *frame64(struct fixture *f)
{
    return at(f, f->cpu.gpr[RSP]);
}
static uint32_t *frame32(struct fixture *f)
{
    return (uint32_t *)at(f, f->cpu.gpr[RSP]);
}

static void same_level_in_long_mode(void **state)
{
    struct fixture *f = *state;
    enter_long(f);
    f->cpu.gpr[RSP] = STACK1 + 5; /* the frame is aligned to 16 */
    f->cpu.rflags |= FL_TF | FL_NT;
    cpu_raise_page_fault(&f->cpu, 0x1234567, PFERR_W);
    assert_int_equal(f->cpu.cr2, 0);
    assert_ok(cpu_deliver(&f->cpu));
    assert_true(f->cpu.rip == 0x21000 + 16 * EXC_PF);
    assert_true(f->cpu.cr2 == 0x1234567);
    assert_true(f->cpu.gpr[RSP] == STACK1 - 48);
    uint64_t *s = frame64(f);
    assert_true(s[0] == PFERR_W && s[1] == CODE_AT && s[2] == KCODE64);
    assert_true(s[3] == (FL_ONE | FL_IF | FL_TF | FL_NT | FL_RF));
    assert_true(s[4] == STACK1 + 5 && s[5] == KDATA);
    assert_int_equal(f->cpu.rflags, FL_ONE);
    assert_int_equal(f->cpu.seg[SS].selector, KDATA);
}

static void from_user_and_back(void **state)
{
    struct fixture *f = *state;
    enter_long(f);
    to_user64(f);
    f->cpu.seg[DS] = f->cpu.seg[ES] = (struct segment){UDATA, 0xcf3, 0xffffffff, 0};
    f->cpu.seg[FS] = (struct segment){.base = 0x7777000};
    assert_ok(cpu_deliver_interrupt(&f->cpu, 0x40));
    assert_int_equal(f->cpu.cpl, 0);
    assert_true(f->cpu.gpr[RSP] == STACK0 - 40);
    assert_int_equal(f->cpu.seg[SS].selector, 0);
    assert_int_equal(f->cpu.rflags & FL_IF, 0);
    uint64_t *s = frame64(f);
    assert_true(s[0] == CODE_AT && s[1] == UCODE64 && s[2] == (FL_ONE | FL_IF) && s[3] == USER_STACK && s[4] == UDATA);
    f->cpu.nmi_blocked = 1;
    assert_ok(cpu_iret(&f->cpu, 8));
    assert_int_equal(f->cpu.cpl, 3);
    assert_int_equal(f->cpu.nmi_blocked, 0);
    assert_true(f->cpu.rip == CODE_AT && f->cpu.gpr[RSP] == USER_STACK);
    assert_int_equal(f->cpu.rflags, FL_ONE | FL_IF);
    assert_int_equal(f->cpu.seg[DS].selector, UDATA);
    assert_true(f->cpu.seg[FS].base == 0x7777000);
}

static void ist_and_trap_gate(void **state)
{
    struct fixture *f = *state;
    enter_long(f);
    set_gate64(f, 0x30, KCODE64, 0x12345678, 0x8f, 1);
    assert_ok(cpu_deliver_interrupt(&f->cpu, 0x30));
    assert_true(f->cpu.gpr[RSP] == IST1 - 40);
    assert_int_equal(f->cpu.seg[SS].selector, KDATA); /* no change of level: SS stays */
    assert_true(f->cpu.rflags & FL_IF);
    assert_true(f->cpu.rip == 0x12345678);
}

static void software_interrupts_check_the_gate(void **state)
{
    struct fixture *f = *state;
    enter_long(f);
    to_user64(f);
    assert_fault(cpu_soft_interrupt(&f->cpu, 0x41, EXC_SOFT_INT, CODE_AT + 2), EXC_GP, 0x41 << 3 | 2);
    assert_true(f->cpu.rip == CODE_AT);
    assert_ok(cpu_soft_interrupt(&f->cpu, 0x80, EXC_SOFT_INT, CODE_AT + 2));
    assert_true(frame64(f)[0] == CODE_AT + 2);
    assert_false(frame64(f)[2] & FL_RF);
    to_user64(f);
    f->cpu.rip = CODE_AT;
    assert_ok(cpu_soft_interrupt(&f->cpu, 1, EXC_HARD, CODE_AT + 1)); /* int1: the gate's DPL does not count */
    to_user64(f);
    set_gate64(f, 0x80, KCODE64, 0x5000, 0x6e, 0);
    assert_fault(cpu_soft_interrupt(&f->cpu, 0x80, EXC_SOFT_INT, 0), EXC_NP, 0x80 << 3 | 2);
    f->cpu.idtr.limit = 0x80 * 16;
    assert_fault(cpu_soft_interrupt(&f->cpu, 0x80, EXC_SOFT_INT, 0), EXC_GP, 0x80 << 3 | 2);
}

static void bad_handlers(void **state)
{
    struct fixture *f = *state;
    static const struct {
        uint16_t selector;
        uint8_t vector;
        uint32_t error;
    } cases[] = {
        {0, EXC_GP, 0},
        {KDATA, EXC_GP, KDATA},
        {KCODE32, EXC_GP, KCODE32},
        {0xf00, EXC_GP, 0xf00},
    };
    enter_long(f);
    for (unsigned i = 0; i < sizeof cases / sizeof *cases; i++) {
        set_gate64(f, 0x80, cases[i].selector, 0x5000, 0xee, 0);
        assert_fault(cpu_soft_interrupt(&f->cpu, 0x80, EXC_SOFT_INT, 0), cases[i].vector, cases[i].error);
    }
    set_gate64(f, 0x80, KCODE64, 0x8000000000000000, 0xee, 0); /* not canonical */
    assert_fault(cpu_soft_interrupt(&f->cpu, 0x80, EXC_SOFT_INT, 0), EXC_GP, 0);
    set_gate64(f, 0x80, KCODE64, 0x5000, 0xee, 0);
    f->cpu.gpr[RSP] = 0x8000000000000000;
    assert_fault(cpu_soft_interrupt(&f->cpu, 0x80, EXC_SOFT_INT, 0), EXC_SS, 0);
    to_user64(f);
    f->cpu.tr.limit = 4;
    assert_fault(cpu_soft_interrupt(&f->cpu, 0x80, EXC_SOFT_INT, 0), EXC_TS, TSS_SEL);
}

static void nested_faults(void **state)
{
    struct fixture *f = *state;
    enter_long(f);
    set_gate64(f, EXC_GP, KCODE64, 0x5000, 0x0e, 0); /* #GP's gate is not present: #NP during #GP = #DF */
    cpu_raise_error(&f->cpu, EXC_GP, 8);
    assert_ok(cpu_deliver(&f->cpu));
    assert_true(f->cpu.rip == 0x21000 + 16 * EXC_DF);
    assert_true(frame64(f)[0] == 0 && frame64(f)[1] == CODE_AT);

    enter_long(f);
    set_gate64(f, EXC_UD, KCODE64, 0x5000, 0x0e, 0); /* benign first: #NP is delivered, external bit set */
    cpu_raise(&f->cpu, EXC_UD);
    assert_ok(cpu_deliver(&f->cpu));
    assert_true(f->cpu.rip == 0x21000 + 16 * EXC_NP);
    assert_true(frame64(f)[0] == (EXC_UD << 3 | 3));

    enter_long(f);
    set_gate64(f, EXC_PF, KCODE64, 0x5000, 0x8e, 2); /* IST2 = 0: pushing page-faults inside #PF */
    set64(f, TSS_AT + 0x2c, 0x200000000ull);
    cpu_raise_page_fault(&f->cpu, 0x123, 0);
    assert_ok(cpu_deliver(&f->cpu));
    assert_true(f->cpu.rip == 0x21000 + 16 * EXC_DF);
    assert_true(f->cpu.cr2 == 0x200000000ull - 48);

    enter_long(f);
    f->cpu.idtr.limit = 0; /* nothing works: triple fault */
    cpu_raise_error(&f->cpu, EXC_GP, 0);
    assert_int_equal(cpu_deliver(&f->cpu), CPU_SHUTDOWN);
    assert_true(f->cpu.rip == CODE_AT);
}

static void debug_exception_state(void **state)
{
    struct fixture *f = *state;
    enter_long(f);
    f->cpu.dr7 |= 1 << 13;
    cpu_raise_debug(&f->cpu, 1 << 14);
    assert_ok(cpu_deliver(&f->cpu));
    assert_int_equal(f->cpu.dr6, 0xffff0ff0 | 1 << 14);
    assert_int_equal(f->cpu.dr7 & 1 << 13, 0);
    assert_false(frame64(f)[2] & FL_RF);
}

static void iret_in_long_mode(void **state)
{
    struct fixture *f = *state;
    static const struct {
        uint64_t rip, cs, ss;
        uint8_t vector;
        uint32_t error;
    } bad[] = {
        {0x5000, 0, KDATA, EXC_GP, 0},
        {0x5000, KDATA, KDATA, EXC_GP, KDATA},
        {0x5000, 0xf08, KDATA, EXC_GP, 0xf08},
        {0x5000, UCODE64 & ~3, UDATA, EXC_GP, UCODE64 & ~3},
        {0x5000, UCODE64, KDATA, EXC_GP, KDATA},
        {0x5000, UCODE64, 0, EXC_GP, 0},
        {0x5000, UCODE32, 0, EXC_GP, 0},
        {0x5000, KCODE64, ABSENT, EXC_SS, ABSENT},
        {0x8000000000000000, UCODE64, UDATA, EXC_GP, 0},
        {0x100000000, UCODE32, UDATA, EXC_GP, 0},
    };
    for (unsigned i = 0; i < sizeof bad / sizeof *bad; i++) {
        enter_long(f);
        uint64_t s[5] = {bad[i].rip, bad[i].cs, FL_ONE, 0x6000, bad[i].ss};
        memcpy(at(f, STACK1), s, sizeof s);
        assert_fault(cpu_iret(&f->cpu, 8), bad[i].vector, bad[i].error);
        assert_true(f->cpu.rip == CODE_AT && f->cpu.gpr[RSP] == STACK1 && f->cpu.cpl == 0);
    }
    enter_long(f);
    uint64_t compat[5] = {0x5000, UCODE32, FL_ONE | FL_IF | FL_AC | FL_IOPL, 0x6000, UDATA};
    memcpy(at(f, STACK1), compat, sizeof compat);
    assert_ok(cpu_iret(&f->cpu, 8));
    assert_false(cpu_64bit(&f->cpu));
    assert_int_equal(f->cpu.rflags, FL_ONE | FL_IF | FL_AC | FL_IOPL);
    assert_int_equal(f->cpu.cpl, 3);
    assert_int_equal(f->cpu.seg[DS].attr, 0); /* kernel data is no longer held */

    enter_long(f);
    uint64_t same[5] = {0x5000, KCODE64, FL_ONE, 0x6008, 0}; /* null SS at ring 0 */
    memcpy(at(f, STACK1), same, sizeof same);
    assert_ok(cpu_iret(&f->cpu, 8));
    assert_true(f->cpu.gpr[RSP] == 0x6008 && f->cpu.seg[SS].attr == 0);
    enter_long(f);
    f->cpu.rflags |= FL_NT;
    assert_fault(cpu_iret(&f->cpu, 8), EXC_GP, 0);
}

static void flags_follow_privilege(void **state)
{
    struct fixture *f = *state;
    enter_long(f);
    to_user64(f);
    f->cpu.rflags = FL_ONE;
    assert_ok(cpu_popf(&f->cpu, 0xffffffff, 8));
    assert_int_equal(f->cpu.rflags, FL_ONE | FL_ARITH | FL_DF | FL_TF | FL_NT | FL_AC | FL_ID);
    f->cpu.rflags = FL_ONE | FL_IOPL;
    assert_ok(cpu_popf(&f->cpu, FL_IF, 8));
    assert_int_equal(f->cpu.rflags, FL_ONE | FL_IF | FL_IOPL);
    f->cpu.cpl = 0;
    assert_ok(cpu_popf(&f->cpu, 0, 2));
    assert_int_equal(f->cpu.rflags, FL_ONE);
    f->cpu.rflags |= FL_RF;
    assert_int_equal(cpu_pushf_value(&f->cpu), FL_ONE);
}

static void protected_mode_levels(void **state)
{
    struct fixture *f = *state;
    enter_protected(f);
    to_user32(f);
    cpu_raise_error(&f->cpu, EXC_GP, 0x18);
    assert_ok(cpu_deliver(&f->cpu));
    assert_true(f->cpu.gpr[RSP] == STACK0 - 24);
    uint32_t *s = frame32(f);
    assert_true(s[0] == 0x18 && s[1] == CODE_AT && s[2] == UCODE32 && s[4] == USER_STACK && s[5] == UDATA);
    assert_int_equal(f->cpu.seg[SS].selector, KDATA);
    f->cpu.gpr[RSP] += 4;
    assert_ok(cpu_iret(&f->cpu, 4));
    assert_true(f->cpu.cpl == 3 && f->cpu.gpr[RSP] == USER_STACK && f->cpu.rip == CODE_AT);
    assert_true(f->cpu.rflags & FL_RF);

    enter_protected(f);
    f->cpu.cpl = 0;
    assert_ok(cpu_soft_interrupt(&f->cpu, 0x80, EXC_SOFT_INT, 0x777));
    assert_true(f->cpu.gpr[RSP] == STACK1 - 12 && frame32(f)[0] == 0x777);
    assert_ok(cpu_iret(&f->cpu, 4));
    assert_true(f->cpu.rip == 0x777 && f->cpu.gpr[RSP] == STACK1);
    set_gate32(f, 0x80, KCODE32, 0x1234, 0x86); /* 16-bit gate */
    assert_ok(cpu_soft_interrupt(&f->cpu, 0x80, EXC_SOFT_INT, 0x777));
    assert_true(f->cpu.gpr[RSP] == STACK1 - 6 && f->cpu.rip == 0x1234);
    *(uint32_t *)at(f, TSS_AT + 8) = RODATA; /* a stack that cannot be written */
    to_user32(f);
    cpu_raise_error(&f->cpu, EXC_UD, 0);
    assert_ok(cpu_deliver(&f->cpu) == CPU_SHUTDOWN ? CPU_OK : CPU_FAULT); /* #TS, then #DF needs the same stack */
}

static void virtual_8086(void **state)
{
    struct fixture *f = *state;
    enter_protected(f);
    uint32_t s[9] = {0x100, 0x2000, FL_ONE | FL_VM | FL_IF, 0xff0, 0x3000, 0x11, 0x22, 0x33, 0x44};
    memcpy(at(f, STACK1), s, sizeof s);
    assert_ok(cpu_iret(&f->cpu, 4));
    assert_true(f->cpu.cpl == 3 && (f->cpu.rflags & FL_VM));
    assert_true(f->cpu.seg[CS].base == 0x20000 && f->cpu.seg[SS].base == 0x30000 && f->cpu.seg[GS].base == 0x440);
    assert_true(f->cpu.rip == 0x100 && f->cpu.gpr[RSP] == 0xff0);
    assert_fault(cpu_soft_interrupt(&f->cpu, 0x80, EXC_SOFT_INT, 0x102), EXC_GP, 0); /* IOPL 0 */
    assert_fault(cpu_iret(&f->cpu, 2), EXC_GP, 0);
    assert_fault(cpu_popf(&f->cpu, 0, 2), EXC_GP, 0);
    assert_ok(cpu_deliver_interrupt(&f->cpu, 0x50));
    assert_true(f->cpu.cpl == 0 && !(f->cpu.rflags & FL_VM) && f->cpu.gpr[RSP] == STACK0 - 36);
    uint32_t *p = frame32(f);
    assert_true(p[0] == 0x100 && p[1] == 0x2000 && (p[2] & FL_VM) && p[3] == 0xff0 && p[4] == 0x3000);
    assert_true(p[5] == 0x11 && p[6] == 0x22 && p[7] == 0x33 && p[8] == 0x44 && f->cpu.seg[DS].attr == 0);
    assert_ok(cpu_iret(&f->cpu, 4));
    assert_true((f->cpu.rflags & FL_VM) && f->cpu.seg[FS].selector == 0x33);
}

static void real_mode(void **state)
{
    struct fixture *f = *state;
    cpu_reset(&f->cpu);
    assert_true(f->cpu.seg[CS].base + f->cpu.rip == 0xfffffff0);
    f->cpu.seg[CS].base = 0x5000;
    f->cpu.seg[CS].selector = 0x500;
    f->cpu.rip = 0x10;
    f->cpu.gpr[RSP] = 0x12340002; /* wraps in 16 bits; the upper half stays */
    f->cpu.seg[SS].base = 0x30000;
    f->cpu.rflags = FL_ONE | FL_IF;
    *(uint32_t *)at(f, 4 * 0x21) = 0x70001234;
    assert_ok(cpu_deliver_interrupt(&f->cpu, 0x21));
    assert_true(f->cpu.gpr[RSP] == 0x1234fffc && f->cpu.rip == 0x1234 && f->cpu.seg[CS].base == 0x70000);
    assert_int_equal(*(uint16_t *)(f->memory->base + 0x30000), FL_ONE | FL_IF);
    assert_int_equal(*(uint16_t *)(f->memory->base + 0x3fffc), 0x10);
    assert_ok(cpu_iret(&f->cpu, 2));
    assert_true(f->cpu.rip == 0x10 && f->cpu.seg[CS].selector == 0x500 && f->cpu.gpr[RSP] == 0x12340002);
    f->cpu.idtr.limit = 3;
    cpu_raise(&f->cpu, EXC_UD);
    assert_int_equal(cpu_deliver(&f->cpu), CPU_SHUTDOWN);
}

/* --- what is due at an instruction boundary ------------------------------------------------------------- */
struct controller {
    int vector;
};
static bool pending(void *opaque)
{
    return ((struct controller *)opaque)->vector >= 0;
}
static int acknowledge(void *opaque)
{
    struct controller *c = opaque;
    int vector = c->vector;
    c->vector = -1;
    return vector;
}

static void boundaries(void **state)
{
    struct fixture *f = *state;
    struct controller controller = {0x55};
    const struct cpu_irq_ops irq = {.pending = pending, .acknowledge = acknowledge};
    bool delivered;
    enter_long(f);
    f->cpu.irq = &irq;
    f->cpu.irq_opaque = &controller;
    f->cpu.rflags = FL_ONE;
    f->cpu.request = REQ_IRQ;
    assert_ok(cpu_take_events(&f->cpu, &delivered)); /* IF is clear: wait for the window */
    assert_false(delivered);
    assert_int_equal(f->cpu.request, REQ_WINDOW);
    f->cpu.rflags |= FL_IF;
    f->cpu.irq_shadow = 1;
    assert_ok(cpu_take_events(&f->cpu, &delivered)); /* the shadow covers one boundary */
    assert_false(delivered);
    assert_ok(cpu_take_events(&f->cpu, &delivered));
    assert_true(delivered && f->cpu.rip == 0x21000 + 16 * 0x55);
    assert_int_equal(f->cpu.request, 0);
    f->cpu.request = REQ_NMI;
    assert_ok(cpu_take_events(&f->cpu, &delivered));
    assert_true(delivered && f->cpu.rip == 0x21000 + 16 * EXC_NMI && f->cpu.nmi_blocked);
    f->cpu.request = REQ_NMI;
    assert_ok(cpu_take_events(&f->cpu, &delivered));
    assert_true(!delivered && f->cpu.request == REQ_NMI);
    f->cpu.halted = f->cpu.irq_shadow = 1;
    f->cpu.request = REQ_IRQ;
    controller.vector = 0x56;
    f->cpu.rflags |= FL_IF;
    assert_ok(cpu_take_events(&f->cpu, &delivered)); /* sti; hlt */
    assert_true(delivered && !f->cpu.halted);
}

/* Another vCPU ends HLT, or lets the next one not begin; what waited for IF meanwhile is not lost. */
static void woken_by_another(void **state)
{
    struct fixture *f = *state;
    bool delivered;
    struct controller controller = {0x56};
    const struct cpu_irq_ops irq = {.pending = pending, .acknowledge = acknowledge};
    enter_long(f);
    f->cpu.irq = &irq;
    f->cpu.irq_opaque = &controller;
    f->cpu.rflags = FL_ONE;
    f->cpu.halted = 1;
    f->cpu.request = REQ_IRQ;
    assert_ok(cpu_take_events(&f->cpu, &delivered));
    assert_true(!delivered && f->cpu.halted && f->cpu.request == 0);
    f->cpu.request = REQ_WAKE;
    assert_ok(cpu_take_events(&f->cpu, &delivered));
    assert_true(!delivered && !f->cpu.halted && !f->cpu.unhalted && (f->cpu.request & REQ_IRQ));
    f->cpu.request = REQ_WAKE;
    assert_ok(cpu_take_events(&f->cpu, &delivered));
    assert_true(!f->cpu.halted && f->cpu.unhalted);
}

static void init_and_sipi(void **state)
{
    struct fixture *f = *state;
    bool delivered;
    f->cpu.index = 1;
    enter_long(f);
    f->cpu.request = REQ_INIT;
    assert_ok(cpu_take_events(&f->cpu, &delivered));
    assert_true(f->cpu.wait_sipi && f->cpu.halted && !(f->cpu.cr0 & CR0_PE) && f->cpu.efer == 0);
    f->cpu.sipi_vector = 0x9a;
    f->cpu.request = REQ_SIPI;
    assert_ok(cpu_take_events(&f->cpu, &delivered));
    assert_true(delivered && !f->cpu.wait_sipi && f->cpu.seg[CS].base == 0x9a000 && f->cpu.rip == 0);
    f->cpu.rip = 5;
    f->cpu.request = REQ_SIPI; /* ignored when running */
    assert_ok(cpu_take_events(&f->cpu, &delivered));
    assert_true(!delivered && f->cpu.rip == 5);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        CPU_TEST(same_level_in_long_mode),
        CPU_TEST(from_user_and_back),
        CPU_TEST(ist_and_trap_gate),
        CPU_TEST(software_interrupts_check_the_gate),
        CPU_TEST(bad_handlers),
        CPU_TEST(nested_faults),
        CPU_TEST(debug_exception_state),
        CPU_TEST(iret_in_long_mode),
        CPU_TEST(flags_follow_privilege),
        CPU_TEST(protected_mode_levels),
        CPU_TEST(virtual_8086),
        CPU_TEST(real_mode),
        CPU_TEST(boundaries),
        CPU_TEST(woken_by_another),
        CPU_TEST(init_and_sipi),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
