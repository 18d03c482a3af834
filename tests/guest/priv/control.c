/* Control registers, model-specific registers and who may touch them (SDM vol. 3, 2.5; vol. 2). */
#include "lib.h"

static void test_cr0(void)
{
    u64 cr0 = read_cr0();
    EXPECT_NONE(CATCH(write_cr0(cr0 | 1ull << 30)));   /* CD alone */
    EXPECT_NONE(CATCH(write_cr0(cr0 & ~(1ull << 4)))); /* ET stays 1 */
    EXPECT_EQ(read_cr0() >> 4 & 1, 1);
    write_cr0(cr0 | CR0_TS);
    EXPECT_EQ(read_cr0(), cr0 | CR0_TS);
    EXPECT_NONE(TRY("clts"));
    EXPECT_EQ(read_cr0(), cr0);
    u64 smsw = 0;
    __asm__ volatile("smsw %0" : "=r"(smsw));
    EXPECT_EQ((u32)smsw, (u32)cr0);
    __asm__ volatile("lmsw %w0" : : "r"(CR0_TS)); /* cannot clear PE; sets TS, clears MP and EM */
    EXPECT_EQ(read_cr0(), (cr0 & ~(u64)CR0_MP) | CR0_TS);
    write_cr0(cr0);
}

static void test_cr0_invalid(void)
{
    u64 cr0 = read_cr0();
    EXPECT_TRAP(CATCH(write_cr0(cr0 & ~1ull)), GP, 0);      /* PG without PE */
    EXPECT_TRAP(CATCH(write_cr0(cr0 | 1ull << 29)), GP, 0); /* NW without CD */
    EXPECT_TRAP(CATCH(write_cr0(cr0 | 1ull << 32)), GP, 0); /* reserved */
    EXPECT_TRAP(CATCH(write_cr0(cr0 | 1ull << 63)), GP, 0);
    EXPECT_EQ(read_cr0(), cr0);
}

static void test_cr3(void)
{
    unsigned width = cpuid(0x80000008, 0).a & 0xff;
    u64 cr3 = read_cr3();
    if (width < 52)
        EXPECT_TRAP(CATCH(write_cr3(cr3 | 1ull << width)), GP, 0);
    EXPECT_TRAP(CATCH(write_cr3(cr3 | 1ull << 60)), GP, 0);
    EXPECT_TRAP(CATCH(write_cr3(cr3 | 1ull << 63)), GP, 0); /* without PCIDE a reserved bit */
    EXPECT_NONE(CATCH(write_cr3(cr3 | 0x18)));              /* PWT, PCD */
    EXPECT_EQ(read_cr3(), cr3 | 0x18);
    write_cr3(cr3);
}

static void test_cr4(void)
{
    u64 cr4 = read_cr4();
    EXPECT_TRAP(CATCH(write_cr4(cr4 | 1ull << 15)), GP, 0);
    EXPECT_TRAP(CATCH(write_cr4(cr4 | 1ull << 63)), GP, 0);
    EXPECT_TRAP(CATCH(write_cr4(cr4 | 1ull << 32)), GP, 0);
    EXPECT_EQ(read_cr4(), cr4);
}

static void test_cr4_values(void)
{
    u64 cr4 = read_cr4();
    EXPECT_NONE(CATCH(write_cr4(cr4 | CR4_PGE | CR4_TSD | CR4_DE)));
    EXPECT_EQ(read_cr4(), cr4 | CR4_PGE | CR4_TSD | CR4_DE);
    write_cr4(cr4);
}

static void test_cr4_mode(void)
{
    u64 cr4 = read_cr4();
    EXPECT_TRAP(CATCH(write_cr4(cr4 | 1ull << 12)), GP, 0);          /* LA57: not there, or not while in long mode */
    EXPECT_TRAP(CATCH(write_cr4(read_cr4() & ~(1ull << 5))), GP, 0); /* PAE in long mode */
}

static void test_other_crs(void)
{
    EXPECT_TRAP(TRY("mov %%cr1, %%rax"), UD, 0);
    EXPECT_TRAP(TRY("mov %%rax, %%cr1"), UD, 0);
    EXPECT_TRAP(TRY(".byte 0x0f, 0x20, 0xe8"), UD, 0);       /* mov %cr5, %rax */
    EXPECT_TRAP(TRY(".byte 0x0f, 0x22, 0xf0"), UD, 0);       /* mov %rax, %cr6 */
    EXPECT_TRAP(TRY(".byte 0x44, 0x0f, 0x20, 0xc8"), UD, 0); /* mov %cr9, %rax */
    write_cr2(0x123456789abcdef0);
    EXPECT_EQ(read_cr2(), 0x123456789abcdef0);
}

static void test_cr8(void)
{
    for (u64 i = 0; i < 16; i++) {
        write_cr8(i);
        EXPECT_EQ(read_cr8(), i);
        EXPECT_EQ(*(volatile u32 *)0xfee00080, i << 4); /* the local APIC's task priority is the same register */
    }
    *(volatile u32 *)0xfee00080 = 0x53;
    EXPECT_EQ(read_cr8(), 5);
    write_cr8(0);
}

static void test_cr8_reserved(void)
{
    EXPECT_TRAP(CATCH(write_cr8(16)), GP, 0);
    EXPECT_TRAP(CATCH(write_cr8(1ull << 63)), GP, 0);
}

static void test_efer(void)
{
    u64 efer = read_msr(MSR_EFER);
    EXPECT_EQ(efer, 0xd01); /* SCE, LME, LMA, NXE */
    EXPECT_EQ(read_msr(MSR_EFER), efer);
}

static void test_efer_invalid(void)
{
    u64 efer = read_msr(MSR_EFER);
    EXPECT_TRAP(CATCH(write_msr(MSR_EFER, efer & ~0x100ull)), GP, 0); /* LME while paging */
    EXPECT_TRAP(CATCH(write_msr(MSR_EFER, efer | 1ull << 63)), GP, 0);
}

static const u32 addresses[] = {MSR_LSTAR, MSR_CSTAR, MSR_FS_BASE, MSR_GS_BASE, MSR_KERNEL_GS_BASE};

static void test_msr_canonical(void)
{
    for (unsigned i = 0; i < sizeof addresses / sizeof *addresses; i++) {
        u64 saved = read_msr(addresses[i]);
        EXPECT_TRAP(CATCH(write_msr(addresses[i], 0x800000000000)), GP, 0);
        EXPECT_EQ(read_msr(addresses[i]), saved);
    }
    EXPECT_TRAP(CATCH(write_msr(0x277, 0x0007040600070402)), GP, 0); /* PAT: no memory type 2 */
    EXPECT_TRAP(CATCH(write_msr(0x277, 0x0807040600070406)), GP, 0);
}

static void test_msrs(void)
{
    for (unsigned i = 0; i < sizeof addresses / sizeof *addresses; i++) {
        u64 saved = read_msr(addresses[i]);
        EXPECT_NONE(CATCH(write_msr(addresses[i], 0xffff800012345678)));
        EXPECT_EQ(read_msr(addresses[i]), 0xffff800012345678);
        write_msr(addresses[i], saved);
    }
    EXPECT_EQ(read_msr(0x1b) & 0xfffff000, 0xfee00000); /* APIC base, and the boot processor */
    EXPECT_EQ(read_msr(0x1b) & 0x900, 0x900);
    write_msr(0x277, 0x0007040600070406);
    EXPECT_EQ(read_msr(0x277), 0x0007040600070406);
}

static void test_unknown_msrs(void)
{
    EXPECT_TRAP(CATCH((void)read_msr(0x12345678)), GP, 0);
    EXPECT_TRAP(CATCH(write_msr(0x12345678, 0)), GP, 0);
    EXPECT_TRAP(CATCH((void)read_msr(0xc0001234)), GP, 0);
}

USER_CODE(u_hlt, "hlt");
USER_CODE(u_cli, "cli");
USER_CODE(u_sti, "sti");
USER_CODE(u_clts, "clts");
USER_CODE(u_invd, "invd");
USER_CODE(u_wbinvd, "wbinvd");
USER_CODE(u_invlpg, "invlpg (%rsp)");
USER_CODE(u_swapgs, "swapgs");
USER_CODE(u_rdmsr, "mov $0x10, %ecx\nrdmsr");
USER_CODE(u_wrmsr, "mov $0xc0000102, %ecx\nwrmsr");
USER_CODE(u_mov_cr0, "mov %cr0, %rax");
USER_CODE(u_mov_cr3, "mov %rax, %cr3");
USER_CODE(u_mov_cr8, "mov %cr8, %rax");
USER_CODE(u_mov_dr, "mov %dr7, %rax");
USER_CODE(u_mov_to_dr, "mov %rax, %dr0");
USER_CODE(u_lgdt, "lgdt (%rsp)");
USER_CODE(u_lidt, "lidt (%rsp)");
USER_CODE(u_lldt, "xor %eax, %eax\nlldt %ax");
USER_CODE(u_ltr, "xor %eax, %eax\nltr %ax");
USER_CODE(u_lmsw, "lmsw %ax");
USER_CODE(u_sysret, "sysretq");
USER_CODE(u_in, "in $0x21, %al");
USER_CODE(u_out, "mov $0x80, %edx\nout %al, %dx");
USER_CODE(u_ins, "mov $0x80, %edx\nmov %rsp, %rdi\ninsb");
USER_CODE(u_outs, "mov $0x80, %edx\nmov %rsp, %rsi\noutsb");
USER_CODE(u_xsetbv, "xor %ecx, %ecx\nxor %edx, %edx\nmov $7, %eax\nxsetbv");

static void test_privileged(void)
{
    static const struct {
        const char *name;
        const void *code;
    } list[] = {
        {"hlt", u_hlt},       {"cli", u_cli},       {"sti", u_sti},       {"clts", u_clts},   {"invd", u_invd},
        {"wbinvd", u_wbinvd}, {"invlpg", u_invlpg}, {"swapgs", u_swapgs}, {"rdmsr", u_rdmsr}, {"wrmsr", u_wrmsr},
        {"cr0", u_mov_cr0},   {"cr3", u_mov_cr3},   {"cr8", u_mov_cr8},   {"dr7", u_mov_dr},  {"dr0", u_mov_to_dr},
        {"lgdt", u_lgdt},     {"lidt", u_lidt},     {"lldt", u_lldt},     {"ltr", u_ltr},     {"lmsw", u_lmsw},
        {"sysret", u_sysret}, {"in", u_in},         {"out", u_out},       {"ins", u_ins},     {"outs", u_outs},
    };
    for (unsigned i = 0; i < sizeof list / sizeof *list; i++) {
        struct context c = user_context(list[i].code);
        const struct trap *t = run(&c);
        if (t->vector != GP || t->error)
            fail(__FILE__, __LINE__, list[i].name, t->vector << 32 | t->error, (u64)GP << 32);
    }
}

USER_CODE(u_pushf, "pushf\npop %rax");
USER_CODE(u_popf, "push $0x3202\npopf\npushf\npop %rax"); /* IF, IOPL 3: neither may change */
USER_CODE(u_popf_off, "push $2\npopf\npushf\npop %rax");
USER_CODE(u_cli_sti, "cli\npushf\npop %rbx\nsti\nnop\npushf\npop %rax");

static void test_iopl(void)
{
    struct context c = user_context(u_popf);
    EXPECT_TRAP(run(&c), BACK, 0);
    EXPECT_EQ(trap.f.rax, 2);
    c = user_context(u_popf_off); /* with interrupts on and IOPL 0 they stay on */
    c.flags = 2 | F_IF;
    EXPECT_TRAP(run(&c), BACK, 0);
    EXPECT_EQ(trap.f.rax, 2 | F_IF);
    c = user_context(u_cli_sti);
    c.flags = 2 | F_IOPL;
    EXPECT_TRAP(run(&c), BACK, 0);
    EXPECT_EQ(trap.f.rbx, 2 | F_IOPL);
    EXPECT_EQ(trap.f.rax, 2 | F_IOPL | F_IF);
    c = user_context(u_popf_off); /* IOPL 3: IF may be changed, IOPL may not */
    c.flags = 2 | F_IOPL | F_IF;
    EXPECT_TRAP(run(&c), BACK, 0);
    EXPECT_EQ(trap.f.rax, 2 | F_IOPL);
    c = user_context(u_in);
    c.flags = 2 | F_IOPL;
    EXPECT_TRAP(run(&c), BACK, 0);
}

static void test_io_bitmap(void)
{
    struct context c = user_context(u_out);
    EXPECT_TRAP(run(&c), GP, 0);
    tss.io_bitmap[0x80 / 8] = 0xfe; /* port 0x80 */
    EXPECT_TRAP(run(&c), BACK, 0);
    c = user_context(u_in); /* not port 0x21 */
    EXPECT_TRAP(run(&c), GP, 0);
    tss.io_bitmap[0x80 / 8] = 0xff;
    c = user_context(u_out);
    EXPECT_TRAP(run(&c), GP, 0);
}

USER_CODE(u_io_word, "mov $0x87, %edx\nin %dx, %ax");

static void test_io_bitmap_word(void)
{
    struct context c = user_context(u_io_word); /* a word at 0x87 asks for 0x87 and 0x88 */
    tss.io_bitmap[0x80 / 8] = 0x7f;
    EXPECT_TRAP(run(&c), GP, 0);
    tss.io_bitmap[0x88 / 8] = 0xfe;
    EXPECT_TRAP(run(&c), BACK, 0);
    tss.io_bitmap[0x80 / 8] = tss.io_bitmap[0x88 / 8] = 0xff;
}

USER_CODE(u_rdtsc, "rdtsc");
USER_CODE(u_rdtscp, "rdtscp");
USER_CODE(u_sgdt, "sub $16, %rsp\nsgdt (%rsp)");
USER_CODE(u_sidt, "sub $16, %rsp\nsidt (%rsp)");
USER_CODE(u_sldt, "sldt %eax");
USER_CODE(u_str, "str %eax");
USER_CODE(u_smsw, "smsw %eax");

static void test_tsd(void)
{
    u64 cr4 = read_cr4();
    struct context c = user_context(u_rdtsc), p = user_context(u_rdtscp);
    EXPECT_TRAP(run(&c), BACK, 0);
    write_cr4(cr4 | CR4_TSD);
    EXPECT_TRAP(run(&c), GP, 0);
    if (cpuid(0x80000001, 0).d >> 27 & 1)
        EXPECT_TRAP(run(&p), GP, 0);
    EXPECT_NONE(TRY("rdtsc"));
    write_cr4(cr4);
}

static void test_umip(void)
{
    static const void *const code[] = {u_sgdt, u_sidt, u_sldt, u_str, u_smsw};
    u64 cr4 = read_cr4();
    if (!(cpuid(7, 0).c >> 2 & 1))
        return skip("no UMIP");
    for (unsigned i = 0; i < 5; i++) {
        struct context c = user_context(code[i]);
        EXPECT_TRAP(run(&c), BACK, 0);
        write_cr4(cr4 | CR4_UMIP);
        EXPECT_TRAP(run(&c), GP, 0);
        write_cr4(cr4);
    }
}

static void test_fsgsbase(void)
{
    u64 cr4 = read_cr4();
    if (!(cpuid(7, 0).b & 1))
        return skip("no FSGSBASE");
    EXPECT_TRAP(TRY("rdfsbase %%rax"), UD, 0);
    EXPECT_TRAP(TRY("wrgsbase %%rax"), UD, 0);
    write_cr4(cr4 | CR4_FSGSBASE);
    u64 v = 0x123456789000, r;
    __asm__ volatile("wrfsbase %1; rdfsbase %0" : "=r"(r) : "r"(v));
    EXPECT_EQ(r, v);
    EXPECT_EQ(read_msr(MSR_FS_BASE), v);
    __asm__ volatile("wrgsbase %1; rdgsbase %0" : "=r"(r) : "r"(v + 1));
    EXPECT_EQ(r, v + 1);
    EXPECT_EQ(read_msr(MSR_GS_BASE), v + 1);
    __asm__ volatile("wrfsbase %k1; rdfsbase %0" : "=r"(r) : "r"(v)); /* 32-bit form: zero-extended */
    EXPECT_EQ(r, v & 0xffffffff);
    write_msr(MSR_FS_BASE, 0);
    write_msr(MSR_GS_BASE, 0);
    write_cr4(cr4);
}

static void test_base_canonical(void)
{
    u64 cr4 = read_cr4();
    if (!(cpuid(7, 0).b & 1))
        return skip("no FSGSBASE");
    write_cr4(cr4 | CR4_FSGSBASE);
    EXPECT_TRAP(TRY("mov $0x800000000000, %%rax; wrfsbase %%rax"), GP, 0);
    EXPECT_TRAP(TRY("mov $0x800000000000, %%rax; wrgsbase %%rax"), GP, 0);
    write_cr4(cr4);
}

USER_CODE(u_gs, "mov %gs:8, %rax\nmov %fs:(%rdi), %rbx\nmov %gs:(%rsi), %ecx");

static void test_segment_bases(void)
{
    u64 *data = page_alloc();
    data[0] = 0x1111, data[1] = 0x2222, data[2] = 0x3333;
    map(TEST_VA, (u64)data, PTE_P | PTE_U);
    write_msr(MSR_FS_BASE, TEST_VA - 0x1000);
    write_msr(MSR_GS_BASE, TEST_VA);
    struct context c = user_context(u_gs);
    c.rdi = 0x1000;
    c.rsi = 16;
    EXPECT_TRAP(run(&c), BACK, 0);
    EXPECT_EQ(trap.f.rax, 0x2222);
    EXPECT_EQ(trap.f.rbx, 0x1111);
    EXPECT_EQ(trap.f.rcx, 0x3333);
    write_msr(MSR_KERNEL_GS_BASE, TEST_VA + 8);
    u64 r;
    __asm__ volatile("swapgs; mov %%gs:0, %0" : "=r"(r));
    EXPECT_EQ(r, 0x2222);
    EXPECT_EQ(read_msr(MSR_KERNEL_GS_BASE), TEST_VA);
    EXPECT_EQ(read_msr(MSR_GS_BASE), TEST_VA + 8);
    write_msr(MSR_GS_BASE, 0x7ffffffffff0); /* canonical, with the offset no longer */
    EXPECT_TRAP(TRY("mov %%gs:0x20, %%rax"), GP, 0);
    write_msr(MSR_GS_BASE, 0);
    write_msr(MSR_FS_BASE, 0);
}

static void test_xcr0(void)
{
    u64 cr4 = read_cr4();
    if (!(cpuid(1, 0).c >> 26 & 1))
        return skip("no XSAVE");
    EXPECT_TRAP(TRY("xor %%ecx, %%ecx; xgetbv"), UD, 0);
    EXPECT_EQ(cpuid(1, 0).c >> 27 & 1, 0);
    write_cr4(cr4 | CR4_OSXSAVE);
    EXPECT_EQ(cpuid(1, 0).c >> 27 & 1, 1);
    EXPECT_NONE(TRY("xor %%ecx, %%ecx; xgetbv"));
    EXPECT_TRAP(TRY("mov $2, %%ecx; xgetbv"), GP, 0);
    EXPECT_TRAP(TRY("xor %%ecx, %%ecx; xor %%edx, %%edx; mov $2, %%eax; xsetbv"), GP, 0); /* x87 must be on */
    EXPECT_TRAP(TRY("xor %%ecx, %%ecx; xor %%edx, %%edx; mov $5, %%eax; xsetbv"), GP, 0); /* AVX without SSE */
    EXPECT_TRAP(TRY("xor %%ecx, %%ecx; mov $0x80000000, %%edx; mov $3, %%eax; xsetbv"), GP, 0);
    EXPECT_TRAP(TRY("mov $1, %%ecx; xor %%edx, %%edx; mov $3, %%eax; xsetbv"), GP, 0);
    EXPECT_NONE(TRY("xor %%ecx, %%ecx; xor %%edx, %%edx; mov $3, %%eax; xsetbv"));
    u32 low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    EXPECT_EQ((u64)high << 32 | low, 3);
    EXPECT_EQ(cpuid(13, 0).b, 576); /* what is enabled now: the legacy area and the header */
    struct context c = user_context(u_xsetbv);
    EXPECT_TRAP(run(&c), GP, 0);
    write_cr4(cr4);
}

static void test_tsc(void)
{
    u64 a = read_tsc(), b = read_tsc();
    EXPECT(b >= a);
    write_msr(0x10, 1000);
    b = read_tsc();
    EXPECT(b >= 1000 && b < 1000 + 100000000000ull);
    if (cpuid(0x80000001, 0).d >> 27 & 1) {
        u32 aux, low, high;
        write_msr(MSR_TSC_AUX, 0x1234);
        __asm__ volatile("rdtscp" : "=a"(low), "=d"(high), "=c"(aux));
        EXPECT_EQ(aux, 0x1234);
        if (cpuid(7, 0).c >> 22 & 1) {
            u64 pid;
            __asm__ volatile("rdpid %0" : "=r"(pid));
            EXPECT_EQ(pid, 0x1234);
        }
    }
}

static void test_tables(void)
{
    struct {
        u16 limit;
        u64 base;
    } __attribute__((packed)) saved, now;
    __asm__ volatile("sgdt %0" : "=m"(saved));
    EXPECT_EQ(saved.base, (u64)gdt);
    EXPECT_EQ(saved.limit, 255);
    __asm__ volatile("sidt %0" : "=m"(now));
    EXPECT_EQ(now.base, (u64)idt);
    EXPECT_EQ(now.limit, 4095);
    u64 sel = ~0ull;
    __asm__ volatile("str %0" : "=r"(sel));
    EXPECT_EQ(sel, TSS);
}

static void test_tables_canonical(void)
{
    struct {
        u16 limit;
        u64 base;
    } __attribute__((packed)) bad = {0xff, 0x800000000000};
    EXPECT_TRAP(CATCH(__asm__ volatile("lgdt %0" : : "m"(bad))), GP, 0);
    EXPECT_TRAP(CATCH(__asm__ volatile("lidt %0" : : "m"(bad))), GP, 0);
}

static void test_undefined_in_long_mode(void)
{
    EXPECT_TRAP(TRY(".byte 0x0f, 0x00, 0xf0"), UD, 0); /* 0f 00 /6 */
    EXPECT_TRAP(TRY(".byte 0x0f, 0x01, 0xc0"), UD, 0); /* enclv or nothing: not in ring 0 of a guest without VMX */
    EXPECT_TRAP(TRY(".byte 0x0f, 0xb9, 0xc0"), UD, 0); /* ud1 */
    EXPECT_TRAP(TRY(".byte 0x0f, 0x0a"), UD, 0);
}

const struct test tests[] = {
    {"cr0", test_cr0, NULL},
    {"cr0-invalid", test_cr0_invalid, "it takes any value"},
    {"cr3-reserved", test_cr3, "it takes any value"},
    {"cr4-reserved", test_cr4, "it leaves a nested guest that is not there"},
    {"cr4-values", test_cr4_values, NULL},
    {"cr4-paging-mode", test_cr4_mode, "it changes PAE and LA57"},
    {"cr-undefined", test_other_crs, NULL},
    {"cr8-tpr", test_cr8, NULL},
    {"cr8-reserved", test_cr8_reserved, "it takes any value"},
    {"efer", test_efer, NULL},
    {"efer-invalid", test_efer_invalid, "it takes any value"},
    {"msr-values", test_msrs, NULL},
    {"msr-invalid", test_msr_canonical, "it takes any value"},
    {"msr-unknown", test_unknown_msrs, "it knows all"},
    {"privileged-in-ring-3", test_privileged, NULL},
    {"iopl", test_iopl, NULL},
    {"io-bitmap", test_io_bitmap, NULL},
    {"io-bitmap-word", test_io_bitmap_word, NULL},
    {"rdtsc-tsd", test_tsd, NULL},
    {"umip", test_umip, NULL},
    {"fsgsbase", test_fsgsbase, NULL},
    {"fsgsbase-canonical", test_base_canonical, "it takes any value"},
    {"segment-bases-swapgs", test_segment_bases, NULL},
    {"xcr0", test_xcr0, NULL},
    {"tsc", test_tsc, NULL},
    {"descriptor-table-registers", test_tables, NULL},
    {"descriptor-table-canonical", test_tables_canonical, "it takes any value"},
    {"undefined-0f", test_undefined_in_long_mode, NULL},
    {NULL, NULL, NULL},
};
