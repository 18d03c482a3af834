/* x87, SSE and AVX: when they are switched off, their exceptions, and saving them (SDM vol. 3, chapters 13 and 14). */
#include "lib.h"

static u8 area[4096] __attribute__((aligned(64)));

static void set_ts(void)
{
    write_cr0(read_cr0() | CR0_TS);
}
static void clear_ts(void)
{
    __asm__ volatile("clts");
}
static bool has_xsave(void)
{
    return cpuid(1, 0).c >> 26 & 1;
}
static bool has_avx(void)
{
    return cpuid(1, 0).c >> 28 & 1;
}
static void xsetbv(u32 v)
{
    __asm__ volatile("xsetbv" : : "a"(v), "d"(0), "c"(0));
}

static void test_task_switched(void)
{
    set_ts();
    EXPECT_TRAP(TRY("fld1"), NM, 0);
    EXPECT_TRAP(TRY("fnstsw %%ax"), NM, 0);
    EXPECT_TRAP(TRY("fwait"), NM, 0); /* MP is set */
    EXPECT_TRAP(TRY("movaps %%xmm0, %%xmm1"), NM, 0);
    EXPECT_TRAP(TRY("movq %%mm0, %%mm1"), NM, 0);
    EXPECT_TRAP(CATCH(__asm__ volatile("fxsave (%0)" : : "r"(area) : "memory")), NM, 0);
    EXPECT_TRAP(CATCH(__asm__ volatile("ldmxcsr (%0)" : : "r"(area) : "memory")), NM, 0);
    EXPECT_NONE(TRY("prefetcht0 (%%rsp)"));
    EXPECT_NONE(TRY("sfence"));
    EXPECT_NONE(TRY("movnti %%rax, -64(%%rsp)"));
    EXPECT_NONE(TRY("xor %%eax, %%eax; popcnt %%rax, %%rax"));
    write_cr0(read_cr0() & ~(u64)CR0_MP);
    EXPECT_NONE(TRY("fwait"));
    EXPECT_TRAP(TRY("fld1"), NM, 0);
    write_cr0(read_cr0() | CR0_MP);
    clear_ts();
    EXPECT_NONE(TRY("fninit; fld1; fstp %%st(0); movaps %%xmm0, %%xmm1"));
}

static void test_emulation(void)
{
    u64 cr0 = read_cr0();
    write_cr0(cr0 | CR0_EM);
    EXPECT_TRAP(TRY("fld1"), NM, 0);
    EXPECT_TRAP(TRY("movaps %%xmm0, %%xmm1"), UD, 0);
    EXPECT_TRAP(TRY("movq %%mm0, %%mm1"), UD, 0);
    EXPECT_NONE(TRY("sfence"));
    write_cr0(cr0);
}

static void test_osfxsr(void)
{
    u64 cr4 = read_cr4();
    write_cr4(cr4 & ~(u64)CR4_OSFXSR);
    EXPECT_TRAP(TRY("movaps %%xmm0, %%xmm1"), UD, 0);
    EXPECT_TRAP(TRY("addpd %%xmm0, %%xmm1"), UD, 0);
    EXPECT_NONE(TRY("movq %%mm0, %%mm1; emms"));
    EXPECT_NONE(TRY("fld1; fstp %%st(0)"));
    write_cr4(cr4);
}

/* An unmasked x87 exception waits for the next waiting instruction. */
extern u8 mf_at[];
static void test_x87_exception(void)
{
    u16 control = 0x037b; /* divide by zero unmasked */
    const struct trap *t = CATCH(
        __asm__ volatile("fninit; fldcw %0; fld1; fldz; fdivrp; nop; nop; fnstsw %%ax; .globl mf_at; mf_at: fwait"
                         :
                         : "m"(control)
                         : "rax"));
    EXPECT_TRAP(t, MF, 0);
    EXPECT_EQ(t->f.rip, (u64)mf_at);
    EXPECT_EQ(t->f.rax & 0x84, 0x84); /* ZE and ES */
    EXPECT_NONE(TRY("fnclex; fwait; fninit"));
    t = CATCH(__asm__ volatile("fninit; fldcw %0; fld1; fldz; fdivrp; fld1" : : "m"(control)));
    EXPECT_TRAP(t, MF, 0);
    EXPECT_NONE(TRY("fninit"));
}

static void test_x87_masked(void)
{
    u16 status;
    __asm__ volatile("fninit; fld1; fldz; fdivrp; fnstsw %0" : "=m"(status));
    EXPECT_EQ(status & 0x84, 4);
}

static void test_x87_stack(void)
{
    u16 status;
    __asm__ volatile("fninit; fld1; fld1; fld1; fld1; fld1; fld1; fld1; fld1; fld1; fnstsw %0; fninit" : "=m"(status));
    EXPECT_EQ(status & 0x241, 0x241); /* the stack is full: IE, SF, C1 */
}

extern u8 xm_at[];
static void test_simd_exception(void)
{
    u32 mxcsr = 0x1f80 & ~0x200; /* divide by zero unmasked */
    const struct trap *t = CATCH(__asm__ volatile("ldmxcsr %0; mov $1, %%eax; cvtsi2sd %%eax, %%xmm1; xorpd %%xmm2, "
                                                  "%%xmm2; .globl xm_at; xm_at: divsd %%xmm2, %%xmm1"
                                                  :
                                                  : "m"(mxcsr)
                                                  : "rax"));
    EXPECT_TRAP(t, XM, 0);
    EXPECT_EQ(t->f.rip, (u64)xm_at);
    __asm__ volatile("stmxcsr %0" : "=m"(mxcsr));
    EXPECT_EQ(mxcsr & 0x3f, 4);
    write_cr4(read_cr4() & ~(u64)CR4_OSXMMEXCPT);
    EXPECT_TRAP(TRY("mov $1, %%eax; cvtsi2sd %%eax, %%xmm1; xorpd %%xmm2, %%xmm2; divsd %%xmm2, %%xmm1"), UD, 0);
    write_cr4(read_cr4() | CR4_OSXMMEXCPT);
    mxcsr = 0x1f80;
    __asm__ volatile("ldmxcsr %0" : : "m"(mxcsr));
}

static void test_mxcsr(void)
{
    u32 mxcsr = 0xffff;
    EXPECT_NONE(CATCH(__asm__ volatile("ldmxcsr %0" : : "m"(mxcsr))));
    mxcsr = 0;
    __asm__ volatile("stmxcsr %0" : "=m"(mxcsr));
    EXPECT_EQ(mxcsr, 0xffff);
    mxcsr = 0x1f80;
    __asm__ volatile("ldmxcsr %0" : : "m"(mxcsr));
}

static void test_mxcsr_reserved(void)
{
    u32 mxcsr = 1u << 16;
    EXPECT_TRAP(CATCH(__asm__ volatile("ldmxcsr %0" : : "m"(mxcsr))), GP, 0);
}

static void test_alignment(void)
{
    EXPECT_TRAP(CATCH(__asm__ volatile("movaps (%0), %%xmm0" : : "r"(area + 8))), GP, 0);
    EXPECT_TRAP(CATCH(__asm__ volatile("movaps %%xmm0, (%0)" : : "r"(area + 1))), GP, 0);
    EXPECT_TRAP(CATCH(__asm__ volatile("addpd (%0), %%xmm0" : : "r"(area + 8))), GP, 0);
    EXPECT_TRAP(CATCH(__asm__ volatile("movntdq %%xmm0, (%0)" : : "r"(area + 4))), GP, 0);
    EXPECT_NONE(CATCH(__asm__ volatile("movups (%0), %%xmm0" : : "r"(area + 1))));
    EXPECT_NONE(CATCH(__asm__ volatile("movaps (%0), %%xmm0" : : "r"(area + 16))));
    EXPECT_TRAP(CATCH(__asm__ volatile("fxsave (%0)" : : "r"(area + 8) : "memory")), GP, 0);
    EXPECT_TRAP(CATCH(__asm__ volatile("fxrstor (%0)" : : "r"(area + 8) : "memory")), GP, 0);
    EXPECT_TRAP(CATCH(__asm__ volatile("cmpxchg16b (%0)" : : "r"(area + 8) : "rax", "rdx", "memory", "cc")), GP, 0);
}

static void test_fxsave(void)
{
    memset(area, 0, sizeof area);
    u64 value = 0x123456789abcdef0, at = (u64)area;
    __asm__ volatile(
        "fninit; fldpi; movq %1, %%xmm3; fxsave (%0); fninit; pxor %%xmm3, %%xmm3; fxrstor (%0); movq %%xmm3, %1"
        : "+r"(at), "+r"(value)
        :
        : "memory");
    EXPECT_EQ(value, 0x123456789abcdef0);
    EXPECT_EQ(*(u16 *)area, 0x37f);
    EXPECT_EQ(*(u16 *)(area + 2) >> 11 & 7, 7);
    EXPECT_EQ(*(u64 *)(area + 32), 0xc90fdaa22168c235);
    EXPECT_EQ(*(u16 *)(area + 40), 0x4000);
    EXPECT_EQ(*(u64 *)(area + 160 + 3 * 16), 0x123456789abcdef0);
    EXPECT_EQ(*(u32 *)(area + 24), 0x1f80);
    __asm__ volatile("fninit");
}

static void test_fxrstor_reserved(void)
{
    __asm__ volatile("fninit; fxsave (%0)" : : "r"(area) : "memory");
    *(u32 *)(area + 24) = 1u << 20; /* reserved bits of MXCSR */
    EXPECT_TRAP(CATCH(__asm__ volatile("fxrstor (%0)" : : "r"(area) : "memory")), GP, 0);
}

static void test_xsave(void)
{
    if (!has_xsave())
        return skip("no XSAVE");
    EXPECT_TRAP(CATCH(__asm__ volatile("xsave (%0)" : : "r"(area), "a"(3), "d"(0) : "memory")), UD, 0);
    write_cr4(read_cr4() | CR4_OSXSAVE);
    xsetbv(has_avx() ? 7 : 3);
    memset(area, 0, sizeof area);
    u64 value = 0x1122334455667788, back;
    __asm__ volatile("movq %0, %%xmm5" : : "r"(value));
    EXPECT_NONE(CATCH(__asm__ volatile("xsave (%0)" : : "r"(area), "a"(7), "d"(0) : "memory")));
    EXPECT_EQ(*(u64 *)(area + 160 + 5 * 16), value);
    EXPECT_EQ(*(u64 *)(area + 512) & 2, 2); /* the header says what is there */
    __asm__ volatile("pxor %%xmm5, %%xmm5; xrstor (%1); movq %%xmm5, %0"
                     : "=r"(back)
                     : "r"(area), "a"(7), "d"(0)
                     : "memory");
    EXPECT_EQ(back, value);
    *(u64 *)(area + 512) = 0; /* nothing saved: initial values */
    __asm__ volatile("xrstor (%1); movq %%xmm5, %0" : "=r"(back) : "r"(area), "a"(7), "d"(0) : "memory");
    EXPECT_EQ(back, 0);
    EXPECT_TRAP(CATCH(__asm__ volatile("xsave (%0)" : : "r"(area + 16), "a"(7), "d"(0) : "memory")), GP, 0);
    *(u64 *)(area + 512) = 1ull << 62; /* a component that is not enabled */
    EXPECT_TRAP(CATCH(__asm__ volatile("xrstor (%0)" : : "r"(area), "a"(7), "d"(0) : "memory")), GP, 0);
    write_cr4(read_cr4() & ~(u64)CR4_OSXSAVE);
}

static void test_xrstor_reserved(void)
{
    if (!has_xsave())
        return skip("no XSAVE");
    write_cr4(read_cr4() | CR4_OSXSAVE);
    xsetbv(3);
    memset(area, 0, sizeof area);
    EXPECT_NONE(CATCH(__asm__ volatile("xsave (%0)" : : "r"(area), "a"(3), "d"(0) : "memory")));
    *(u64 *)(area + 512) = 3;
    *(u64 *)(area + 528) = 1; /* bytes 8 to 23 of the header must be 0 */
    EXPECT_TRAP(CATCH(__asm__ volatile("xrstor (%0)" : : "r"(area), "a"(7), "d"(0) : "memory")), GP, 0);
    write_cr4(read_cr4() & ~(u64)CR4_OSXSAVE);
}

static void test_avx(void)
{
    if (!has_xsave() || !has_avx())
        return skip("no AVX");
    EXPECT_TRAP(TRY("vmovaps %%ymm0, %%ymm1"), UD, 0); /* without OSXSAVE */
    write_cr4(read_cr4() | CR4_OSXSAVE);
    xsetbv(3);
    EXPECT_TRAP(TRY("vmovaps %%ymm0, %%ymm1"), UD, 0); /* XCR0 has no AVX */
    EXPECT_TRAP(TRY("vpxor %%xmm0, %%xmm0, %%xmm0"), UD, 0);
    xsetbv(7);
    EXPECT_NONE(TRY("vmovaps %%ymm0, %%ymm1"));
    set_ts();
    EXPECT_TRAP(TRY("vmovaps %%ymm0, %%ymm1"), NM, 0);
    clear_ts();
    EXPECT_TRAP(CATCH(__asm__ volatile("vmovaps (%0), %%ymm0" : : "r"(area + 16))), GP, 0);
    EXPECT_NONE(CATCH(__asm__ volatile("vmovups (%0), %%ymm0" : : "r"(area + 1))));
    xsetbv(3);
    write_cr4(read_cr4() & ~(u64)CR4_OSXSAVE);
}

/* What a page fault in the middle leaves: nothing. */
static void test_faults(void)
{
    u8 *page = page_alloc();
    map(TEST_VA, (u64)page, PTE_P | PTE_W);
    map(TEST_VA + 4096, (u64)page, 0);
    u64 low, high;
    __asm__ volatile("movq %0, %%xmm1" : : "r"(0x55ull));
    EXPECT_TRAP(CATCH(__asm__ volatile("movups (%0), %%xmm1" : : "r"(TEST_VA + 4088))), PF, 0);
    __asm__ volatile("movq %%xmm1, %0; psrldq $8, %%xmm1; movq %%xmm1, %1" : "=r"(low), "=r"(high));
    EXPECT_EQ(low, 0x55);
    EXPECT_EQ(high, 0);
    EXPECT_TRAP(CATCH(__asm__ volatile("fxsave (%0)" : : "r"(TEST_VA + 3840) : "memory")), PF, 2);
}

static void test_partial_store(void)
{
    u8 *page = page_alloc();
    map(TEST_VA, (u64)page, PTE_P | PTE_W);
    map(TEST_VA + 4096, (u64)page, 0);
    __asm__ volatile("pcmpeqd %xmm0, %xmm0");
    EXPECT_TRAP(CATCH(__asm__ volatile("movups %%xmm0, (%0)" : : "r"(TEST_VA + 4088) : "memory")), PF, 2);
    EXPECT_EQ(trap.cr2, TEST_VA + 4096);
    EXPECT_EQ(*(u64 *)(page + 4088), 0);
}

USER_CODE(u_sse, "movaps %xmm0, %xmm1");
USER_CODE(u_fxsave, "fxsave (%rdi)");
static void test_user(void)
{
    struct context c = user_context(u_sse);
    set_ts();
    EXPECT_TRAP(run(&c), NM, 0);
    clear_ts();
    EXPECT_TRAP(run(&c), BACK, 0);
    c = user_context(u_fxsave);
    c.rdi = (u64)area;
    EXPECT_TRAP(run(&c), PF, 7);
}

const struct test tests[] = {
    {"task-switched", test_task_switched, NULL},
    {"emulation", test_emulation, NULL},
    {"osfxsr", test_osfxsr, NULL},
    {"x87-exception", test_x87_exception, "fwait does not report it"},
    {"x87-masked", test_x87_masked, NULL},
    {"x87-stack-overflow", test_x87_stack, "the stack never overflows"},
    {"simd-exception", test_simd_exception, "it raises none"},
    {"mxcsr", test_mxcsr, NULL},
    {"mxcsr-reserved", test_mxcsr_reserved, "it takes any value"},
    {"alignment", test_alignment, NULL},
    {"fxsave", test_fxsave, NULL},
    {"fxrstor-reserved", test_fxrstor_reserved, "it takes any value"},
    {"xsave", test_xsave, NULL},
    {"xrstor-reserved", test_xrstor_reserved, NULL},
    {"avx", test_avx, NULL},
    {"faults", test_faults, NULL},
    {"partial-store", test_partial_store, "half of it is written"},
    {"user", test_user, NULL},
    {NULL, NULL, NULL},
};
