/* Segment loads, fast system calls, far transfers, call gates and task switches. */
#include "cpu_fixture.h"

static void data_segment_loads(void **state)
{
    struct fixture *f = *state;
    static const struct {
        uint8_t reg, cpl;
        uint16_t selector;
        uint8_t vector;
        uint16_t error;
    } cases[] = {
        {DS, 0, 0, 0, 0},
        {DS, 3, 3, 0, 0},
        {DS, 0, KDATA, 0, 0},
        {ES, 0, KDATA | 3, EXC_GP, KDATA},
        {DS, 3, KDATA, EXC_GP, KDATA},
        {DS, 3, UDATA, 0, 0},
        {FS, 0, UDATA, 0, 0},
        {GS, 0, CONFORMING, 0, 0},
        {GS, 3, CONFORMING | 3, 0, 0},
        {DS, 0, RODATA, 0, 0},
        {DS, 0, XONLY, EXC_GP, XONLY},
        {DS, 0, TSS_SEL, EXC_GP, TSS_SEL},
        {DS, 0, ABSENT, EXC_NP, ABSENT},
        {DS, 0, 0xf00, EXC_GP, 0xf00},
        {DS, 0, 0xc, EXC_GP, 0xc} /* no LDT */,
        {SS, 0, KDATA, 0, 0},
        {SS, 0, RODATA, EXC_GP, RODATA},
        {SS, 0, UDATA, EXC_GP, UDATA & ~3},
        {SS, 0, ABSENT, EXC_SS, ABSENT},
        {SS, 3, UDATA, 0, 0},
        {SS, 0, KCODE64, EXC_GP, KCODE64},
        {SS, 3, 3, EXC_GP, 0},
        {SS, 0, 0, 0, 0},
        {SS, 0, 1, EXC_GP, 0},
    };
    for (unsigned i = 0; i < sizeof cases / sizeof *cases; i++) {
        enter_long(f);
        f->cpu.cpl = cases[i].cpl;
        f->cpu.irq_shadow = 0;
        int r = cpu_load_segment(&f->cpu, cases[i].reg, cases[i].selector);
        if (cases[i].vector) {
            assert_fault(r, cases[i].vector, cases[i].error);
            assert_int_equal(f->cpu.seg[cases[i].reg].selector, KDATA);
            continue;
        }
        assert_ok(r);
        assert_int_equal(f->cpu.seg[cases[i].reg].selector, cases[i].selector);
        assert_int_equal(f->cpu.irq_shadow, cases[i].reg == SS);
    }
    enter_protected(f);
    assert_fault(cpu_load_segment(&f->cpu, SS, 0), EXC_GP, 0); /* a null SS only in 64-bit mode */
    assert_ok(cpu_load_segment(&f->cpu, DS, DATA16));
    assert_int_equal(f->cpu.seg[DS].limit, 0xffff);
}

static void accessed_bit_is_set_once(void **state)
{
    struct fixture *f = *state;
    enter_long(f);
    set_descriptor(f, DATA16, 0x1234, 0xffff, 0x92);
    assert_ok(cpu_load_segment(&f->cpu, DS, DATA16));
    assert_true(*at(f, GDT_AT + DATA16) >> 40 & 1);
    assert_int_equal(f->cpu.seg[DS].base, 0x1234);
    assert_true(f->cpu.seg[DS].attr & SEG_ACCESSED);
    at(f, PT_AT)[1] = GDT_AT | 1; /* read-only now: a set bit is not written again */
    assert_ok(cpu_load_segment(&f->cpu, ES, DATA16));
    *at(f, GDT_AT + DATA16) &= ~(1ull << 40);
    assert_fault(cpu_load_segment(&f->cpu, ES, DATA16), EXC_PF, PFERR_P | PFERR_W);
}

static void ldt_and_task_register(void **state)
{
    struct fixture *f = *state;
    enter_long(f);
    *at(f, GDT_AT + TSS_SEL + 8) = 0xffff8000; /* upper half of the 16-byte descriptors */
    *at(f, GDT_AT + LDT_SEL + 8) = 0;
    assert_ok(cpu_ltr(&f->cpu, TSS_SEL));
    assert_true(f->cpu.tr.base == (0xffff800000000000 | TSS_AT));
    assert_true(*at(f, GDT_AT + TSS_SEL) >> 41 & 1); /* busy */
    assert_fault(cpu_ltr(&f->cpu, TSS_SEL), EXC_GP, TSS_SEL);
    assert_fault(cpu_ltr(&f->cpu, 0), EXC_GP, 0);
    assert_fault(cpu_ltr(&f->cpu, KDATA), EXC_GP, KDATA);
    assert_ok(cpu_lldt(&f->cpu, LDT_SEL));
    assert_true(f->cpu.ldtr.base == LDT_AT && f->cpu.ldtr.limit == 0x3f);
    assert_fault(cpu_lldt(&f->cpu, KDATA), EXC_GP, KDATA);
    *at(f, LDT_AT + 8) = *at(f, GDT_AT + KDATA);
    assert_ok(cpu_load_segment(&f->cpu, DS, 0xc));
    assert_ok(cpu_lldt(&f->cpu, 0));
    assert_fault(cpu_load_segment(&f->cpu, DS, 0xc), EXC_GP, 0xc);
    f->cpu.cpl = 3;
    assert_fault(cpu_lldt(&f->cpu, LDT_SEL), EXC_GP, 0);
    cpu_reset(&f->cpu);
    assert_fault(cpu_ltr(&f->cpu, TSS_SEL), EXC_UD, 0);
}

static void queries(void **state)
{
    struct fixture *f = *state;
    uint64_t value = 0;
    bool zf;
    enter_long(f);
    assert_ok(cpu_query_descriptor(&f->cpu, DESC_LAR, KCODE64, &zf, &value));
    assert_true(zf && value == 0x00af9b00);
    assert_ok(cpu_query_descriptor(&f->cpu, DESC_LSL, KDATA, &zf, &value));
    assert_true(zf && value == 0xffffffff);
    assert_ok(cpu_query_descriptor(&f->cpu, DESC_LSL, DATA16, &zf, &value));
    assert_true(zf && value == 0xffff);
    assert_ok(cpu_query_descriptor(&f->cpu, DESC_LAR, 0xf08, &zf, &value));
    assert_false(zf);
    assert_ok(cpu_query_descriptor(&f->cpu, DESC_LAR, 0, &zf, &value));
    assert_false(zf);
    assert_ok(cpu_query_descriptor(&f->cpu, DESC_VERW, RODATA, &zf, NULL));
    assert_false(zf);
    assert_ok(cpu_query_descriptor(&f->cpu, DESC_VERR, RODATA, &zf, NULL));
    assert_true(zf);
    assert_ok(cpu_query_descriptor(&f->cpu, DESC_VERR, XONLY, &zf, NULL));
    assert_false(zf);
    f->cpu.cpl = 3;
    assert_ok(cpu_query_descriptor(&f->cpu, DESC_VERR, KDATA, &zf, NULL));
    assert_false(zf);
    assert_ok(cpu_query_descriptor(&f->cpu, DESC_VERW, UDATA, &zf, NULL));
    assert_true(zf);
    assert_ok(cpu_query_descriptor(&f->cpu, DESC_VERR, LDT_SEL, &zf, NULL));
    assert_false(zf);
}

static void syscall_and_sysret(void **state)
{
    struct fixture *f = *state;
    struct cpuid_regs v;
    cpu_cpuid(&f->cpu, 0, 0, &v);
    enter_long(f);
    to_user64(f);
    f->cpu.star = (uint64_t)0x18 << 48 | (uint64_t)KCODE64 << 32;
    f->cpu.lstar = 0xffffffff81000000;
    f->cpu.sfmask = FL_IF | FL_DF | FL_TF;
    f->cpu.rflags = FL_ONE | FL_IF | FL_CF | FL_RF;
    assert_ok(cpu_syscall(&f->cpu, CODE_AT + 2));
    assert_true(f->cpu.rip == 0xffffffff81000000 && f->cpu.gpr[RCX] == CODE_AT + 2);
    assert_true(f->cpu.gpr[R11] == (FL_ONE | FL_IF | FL_CF) && f->cpu.rflags == (FL_ONE | FL_CF));
    assert_true(f->cpu.cpl == 0 && f->cpu.seg[CS].selector == KCODE64 && f->cpu.seg[SS].selector == KDATA);
    assert_true(cpu_64bit(&f->cpu) && f->cpu.gpr[RSP] == USER_STACK);
    assert_ok(cpu_sysret(&f->cpu, 8));
    assert_true(f->cpu.cpl == 3 && f->cpu.rip == CODE_AT + 2 && f->cpu.seg[CS].selector == UCODE64);
    assert_true(f->cpu.seg[SS].selector == UDATA && f->cpu.rflags == (FL_ONE | FL_IF | FL_CF));
    assert_fault(cpu_sysret(&f->cpu, 8), EXC_GP, 0);
    assert_ok(cpu_syscall(&f->cpu, CODE_AT + 2));
    assert_ok(cpu_sysret(&f->cpu, 4));
    assert_true(!cpu_64bit(&f->cpu) && f->cpu.seg[CS].selector == UCODE32);
    to_user64(f);
    assert_ok(cpu_syscall(&f->cpu, 0x8000000000000000));
    if (v.ebx == 0x756e6547) { /* "Genu": Intel refuses in the kernel, AMD lets user mode fault */
        assert_fault(cpu_sysret(&f->cpu, 8), EXC_GP, 0);
    } else {
        assert_ok(cpu_sysret(&f->cpu, 8));
        assert_true(f->cpu.rip == 0x8000000000000000 && f->cpu.cpl == 3);
    }
    f->cpu.efer &= ~(uint64_t)EFER_SCE;
    assert_fault(cpu_syscall(&f->cpu, 0), EXC_UD, 0);
    assert_fault(cpu_sysret(&f->cpu, 8), EXC_UD, 0);
}

static void sysenter_and_sysexit(void **state)
{
    struct fixture *f = *state;
    enter_protected(f);
    to_user32(f);
    assert_fault(cpu_sysenter(&f->cpu), EXC_GP, 0);
    f->cpu.sysenter_cs = 0x08;
    f->cpu.sysenter_esp = 0x7000;
    f->cpu.sysenter_eip = 0x5000;
    f->cpu.rflags |= FL_IF;
    assert_ok(cpu_sysenter(&f->cpu));
    assert_true(f->cpu.cpl == 0 && f->cpu.rip == 0x5000 && f->cpu.gpr[RSP] == 0x7000 && !(f->cpu.rflags & FL_IF));
    f->cpu.gpr[RDX] = 0x1111;
    f->cpu.gpr[RCX] = 0x2222;
    assert_ok(cpu_sysexit(&f->cpu, 4));
    assert_true(f->cpu.cpl == 3 && f->cpu.rip == 0x1111 && f->cpu.gpr[RSP] == 0x2222);
    assert_true(f->cpu.seg[CS].selector == (0x18 | 3) && f->cpu.seg[SS].selector == (0x20 | 3));
    assert_fault(cpu_sysexit(&f->cpu, 4), EXC_GP, 0);
}

static void swapgs(void **state)
{
    struct fixture *f = *state;
    enter_long(f);
    f->cpu.seg[GS].base = 1;
    f->cpu.kernel_gs_base = 2;
    assert_ok(cpu_swapgs(&f->cpu));
    assert_true(f->cpu.seg[GS].base == 2 && f->cpu.kernel_gs_base == 1);
    f->cpu.cpl = 3;
    assert_fault(cpu_swapgs(&f->cpu), EXC_GP, 0);
    enter_protected(f);
    f->cpu.efer = 0;
    assert_fault(cpu_swapgs(&f->cpu), EXC_UD, 0);
}

static void far_jumps(void **state)
{
    struct fixture *f = *state;
    static const struct {
        uint16_t selector;
        uint8_t vector;
        uint16_t error;
    } bad[] = {
        {0, EXC_GP, 0},
        {KDATA, EXC_GP, KDATA},
        {UCODE64, EXC_GP, UCODE64 & ~3},
        {0xf00, EXC_GP, 0xf00},
        {TSS_SEL, EXC_GP, TSS_SEL} /* no task switch in long mode */,
    };
    enter_long(f);
    for (unsigned i = 0; i < sizeof bad / sizeof *bad; i++)
        assert_fault(cpu_far_jump(&f->cpu, bad[i].selector, 0x5000, 8), bad[i].vector, bad[i].error);
    assert_fault(cpu_far_jump(&f->cpu, KCODE64, 0x8000000000000000, 8), EXC_GP, 0);
    assert_ok(cpu_far_jump(&f->cpu, KCODE32, 0x5000, 4)); /* to compatibility mode */
    assert_true(!cpu_64bit(&f->cpu) && f->cpu.rip == 0x5000);
    assert_ok(cpu_far_jump(&f->cpu, KCODE64, 0x6000, 4));
    assert_true(cpu_64bit(&f->cpu));
    to_user64(f);
    assert_ok(cpu_far_jump(&f->cpu, CONFORMING, 0x6000, 4));
    assert_true(f->cpu.cpl == 3 && f->cpu.seg[CS].selector == (CONFORMING | 3));
    cpu_reset(&f->cpu);
    assert_ok(cpu_far_jump(&f->cpu, 0x1234, 0x10, 2));
    assert_true(f->cpu.seg[CS].base == 0x12340 && f->cpu.rip == 0x10);
    assert_fault(cpu_far_jump(&f->cpu, 0, 0x12345, 4), EXC_GP, 0);
}

static void far_calls_and_returns(void **state)
{
    struct fixture *f = *state;
    enter_long(f);
    assert_ok(cpu_far_call(&f->cpu, KCODE32, 0x5000, 8, CODE_AT + 7));
    assert_true(at(f, STACK1 - 16)[0] == CODE_AT + 7 && at(f, STACK1 - 16)[1] == KCODE64);
    assert_true(f->cpu.rip == 0x5000 && f->cpu.gpr[RSP] == STACK1 - 16);
    assert_ok(cpu_far_return(&f->cpu, 8, 8));
    assert_true(f->cpu.rip == CODE_AT + 7 && f->cpu.gpr[RSP] == STACK1 + 8 && cpu_64bit(&f->cpu));
    uint64_t outer[4] = {0x7000, UCODE64, USER_STACK, UDATA};
    f->cpu.gpr[RSP] = STACK1;
    memcpy(at(f, STACK1), outer, sizeof outer);
    assert_ok(cpu_far_return(&f->cpu, 8, 0));
    assert_true(f->cpu.cpl == 3 && f->cpu.rip == 0x7000 && f->cpu.gpr[RSP] == USER_STACK && !f->cpu.seg[DS].attr);
    memcpy(at(f, USER_STACK), (uint64_t[]){0x7000, KCODE64}, 16);
    assert_fault(cpu_far_return(&f->cpu, 8, 0), EXC_GP, KCODE64);
}

static void call_gates(void **state)
{
    struct fixture *f = *state;
    enter_protected(f);
    /* 32-bit gate, DPL 3, two parameters, to ring 0 at 0x5678 */
    *at(f, GDT_AT + GATE_SEL) = 0x5678 | (uint64_t)KCODE32 << 16 | 2ull << 32 | 0xecull << 40;
    to_user32(f);
    memcpy(at(f, USER_STACK), (uint32_t[]){0xaaa, 0xbbb}, 8);
    assert_ok(cpu_far_call(&f->cpu, GATE_SEL, 0, 4, CODE_AT + 7));
    uint32_t *s = (uint32_t *)at(f, f->cpu.gpr[RSP]);
    assert_true(f->cpu.cpl == 0 && f->cpu.rip == 0x5678 && f->cpu.gpr[RSP] == STACK0 - 24);
    assert_true(s[0] == CODE_AT + 7 && s[1] == UCODE32 && s[2] == 0xaaa && s[3] == 0xbbb && s[4] == USER_STACK &&
                s[5] == UDATA);
    assert_ok(cpu_far_return(&f->cpu, 4, 8));
    assert_true(f->cpu.cpl == 3 && f->cpu.rip == CODE_AT + 7 && f->cpu.gpr[RSP] == USER_STACK + 8);
    assert_fault(cpu_far_jump(&f->cpu, GATE_SEL, 0, 4), EXC_GP, KCODE32); /* a jump does not go inward */

    enter_long(f);
    *at(f, GDT_AT + GATE_SEL) = 0x5678 | (uint64_t)KCODE64 << 16 | 0xecull << 40;
    *at(f, GDT_AT + GATE_SEL + 8) = 0xffffffff;
    to_user64(f);
    assert_ok(cpu_far_call(&f->cpu, GATE_SEL, 0, 8, CODE_AT + 7));
    assert_true(f->cpu.rip == 0xffffffff00005678 && f->cpu.gpr[RSP] == STACK0 - 32 && f->cpu.seg[SS].selector == 0);
    assert_true(at(f, f->cpu.gpr[RSP])[3] == UDATA && at(f, f->cpu.gpr[RSP])[2] == USER_STACK);
    *at(f, GDT_AT + GATE_SEL) &= ~(3ull << 45);
    to_user64(f);
    assert_fault(cpu_far_call(&f->cpu, GATE_SEL, 0, 8, 0), EXC_GP, GATE_SEL);
}

static void task_switches(void **state)
{
    struct fixture *f = *state;
    uint8_t *two = f->memory->base + 0x3400;
    enter_protected(f);
    set_descriptor(f, TSS_SEL, TSS_AT, 0x67, 0x8b); /* this one is running */
    set_descriptor(f, TSS2_SEL, 0x3400, 0x67, 0x89);
    *(uint32_t *)(two + 0x20) = 0x6000;
    *(uint32_t *)(two + 0x24) = FL_ONE;
    *(uint32_t *)(two + 0x38) = 0x9000;
    *(uint32_t *)(two + 0x28) = 0x1234;
    static const uint16_t selectors[6] = {KDATA, KCODE32, KDATA, KDATA, 0, 0};
    for (unsigned i = 0; i < 6; i++)
        *(uint32_t *)(two + 0x48 + 4 * i) = selectors[i];
    assert_ok(cpu_far_call(&f->cpu, TSS2_SEL, 0, 4, CODE_AT + 7));
    assert_true(f->cpu.rip == 0x6000 && f->cpu.gpr[RAX] == 0x1234 && f->cpu.gpr[RSP] == 0x9000);
    assert_true((f->cpu.rflags & FL_NT) && (f->cpu.cr0 & CR0_TS) && *(uint16_t *)two == TSS_SEL);
    assert_true(f->cpu.tr.selector == TSS2_SEL && (*at(f, GDT_AT + TSS2_SEL) >> 41 & 1));
    assert_ok(cpu_iret(&f->cpu, 4));
    assert_true(f->cpu.rip == CODE_AT + 7 && f->cpu.gpr[RSP] == STACK1 && f->cpu.tr.selector == TSS_SEL);
    assert_false(*at(f, GDT_AT + TSS2_SEL) >> 41 & 1);
    /* a jump away and back: jmp far [disp32] is six bytes */
    memcpy(at(f, f->cpu.rip), (uint8_t[]){0xff, 0x2d, 0, 0, 0, 0}, 6);
    assert_ok(cpu_far_jump(&f->cpu, TSS2_SEL, 0, 4));
    assert_true(f->cpu.tr.selector == TSS2_SEL && !(f->cpu.rflags & FL_NT));
    memcpy(at(f, f->cpu.rip), (uint8_t[]){0xea, 0, 0, 0, 0, TSS_SEL, 0}, 7);
    assert_ok(cpu_far_jump(&f->cpu, TSS_SEL, 0, 4));
    assert_true(f->cpu.rip == CODE_AT + 7 + 6 && f->cpu.tr.selector == TSS_SEL);
    assert_false(*at(f, GDT_AT + TSS2_SEL) >> 41 & 1);
    f->cpu.gpr[RSP] = STACK1;
    /* #GP through a task gate gets its error code on the new task's stack */
    *at(f, IDT_AT + 8 * EXC_GP) = (uint64_t)TSS2_SEL << 16 | 0x85ull << 40;
    *(uint32_t *)(two + 0x20) = 0x6000;
    *(uint32_t *)(two + 0x38) = 0x9000;
    cpu_raise_error(&f->cpu, EXC_GP, 0x1230);
    assert_ok(cpu_deliver(&f->cpu));
    assert_true(f->cpu.rip == 0x6000 && f->cpu.gpr[RSP] == 0x8ffc && *(uint32_t *)at(f, 0x8ffc) == 0x1230);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        CPU_TEST(data_segment_loads),
        CPU_TEST(accessed_bit_is_set_once),
        CPU_TEST(ldt_and_task_register),
        CPU_TEST(queries),
        CPU_TEST(syscall_and_sysret),
        CPU_TEST(sysenter_and_sysexit),
        CPU_TEST(swapgs),
        CPU_TEST(far_jumps),
        CPU_TEST(far_calls_and_returns),
        CPU_TEST(call_gates),
        CPU_TEST(task_switches),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
