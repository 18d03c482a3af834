/* Real mode, from long mode and back (SDM vol. 3, chapter 20; 9.9.2): real.S has the code. */
#include "lib.h"

#define LOW 0x10000ull /* where it is copied to: segment 0x1000 */
extern u8 real_start[], real_end[], real_stubs[], results[];
void real_run(const void *routine);
extern u8 real_basics[], real_segments[], real_far[], real_interrupts[], real_exceptions[], real_strings[],
    real_stack[], real_branches[], real_unreal[], real_hlt[], real_system[], real_step[], real_break[], real_smc[],
    int40[], tick[];

static u16 word(unsigned n)
{
    return *(volatile u16 *)(LOW + (u64)(results - real_start) + 2 * n);
}

static u32 dword(unsigned n) /* n counts words */
{
    return word(n) | (u32)word(n + 1) << 16;
}

static void vector(unsigned n, const u8 *handler)
{
    volatile u16 *entry = (volatile u16 *)(n * 4ul);
    __asm__("" : "+r"(entry)); /* the compiler thinks that nothing is at 0 */
    entry[0] = (u16)(handler - real_start);
    entry[1] = LOW >> 4;
}

static void run_real(const void *routine)
{
    memset((void *)LOW, 0, 0x30000); /* and the segments 2000h and 3000h */
    memcpy((void *)LOW, real_start, (size_t)(real_end - real_start));
    for (unsigned n = 0; n < 32; n++)
        vector(n, real_stubs + 8 * n);
    vector(0x40, int40);
    vector(0x50, tick);
    real_run(routine);
}

static void test_basics(void)
{
    run_real(real_basics);
    EXPECT_EQ(word(0) & 1, 0);
    EXPECT_EQ(word(1), 0x1000);
    EXPECT_EQ(word(2), 0xffee);
    EXPECT_EQ(dword(4), 0x23456789);
    EXPECT_EQ(dword(6), 0xffff1000);
    EXPECT_EQ(word(8), 0x1000);
    EXPECT_EQ(word(9), 0x6789);
    EXPECT_EQ(word(11), 0x8003);
    EXPECT_EQ(word(12), 1);
    EXPECT_EQ(word(13), 0x123);
    EXPECT_EQ(word(14), 4);
    EXPECT_EQ(word(15), 0);
    EXPECT_EQ(word(16), 0xff80);
    EXPECT_EQ(word(17), 0xffff);
}

static void test_segments(void)
{
    run_real(real_segments);
    EXPECT_EQ(*(volatile u16 *)0x20010, 0xbeef);
    EXPECT_EQ(word(0), 0xbeef);
    EXPECT_EQ(word(1), 0xbeef);
    EXPECT_EQ(word(2), 0x1fff);
    EXPECT_EQ(word(3), 4); /* les */
    EXPECT_EQ(word(4), 0x2002);
    EXPECT_EQ(*(volatile u16 *)0x20024, 0xcafe);
    EXPECT_EQ(word(5), 0xfffe); /* lds */
    EXPECT_EQ(word(6), 0x2000);
    EXPECT_EQ(word(7), 0xcafe); /* through lgs */
    EXPECT_EQ(word(8), 0x5151); /* through lss */
}

static void test_far(void)
{
    run_real(real_far);
    EXPECT_EQ(word(0), 0x0ff0);
    EXPECT_EQ(word(1), 0x0fe0);
    EXPECT_EQ(word(2), 0x0fd0);
    EXPECT_EQ(word(3), 0xffee);
    EXPECT_EQ(word(4), 0xffee); /* lret $4 */
    EXPECT_EQ(word(5), 0x0ffc);
    EXPECT_EQ(word(6), 0xffee);
}

static void test_interrupts(void)
{
    run_real(real_interrupts);
    EXPECT_EQ(word(0), 0x4321);
    EXPECT_EQ(word(1), 6); /* behind sti, mov, int */
    EXPECT_EQ(word(2), 0x1000);
    EXPECT_EQ(word(3) & F_IF, F_IF);
    EXPECT_EQ(word(4) & F_IF, 0);
}

static void test_exceptions(void)
{
    static const struct {
        u16 vector, behind;
    } wanted[] = {{UD, 0}, {DE, 0}, {GP, 0}, {SS, 0}, {0xff, 0}, {BP, 1}, {OF, 1}, {BR, 0},
                  {UD, 0}, {UD, 0}, {GP, 0}, {UD, 0}, {NP, 2},   {GP, 0}, {UD, 0}, {UD, 0}};
    run_real(real_exceptions);
    for (unsigned n = 0; n < sizeof wanted / sizeof wanted[0]; n++) {
        EXPECT_EQ(word(2 * n) | n << 16, wanted[n].vector | n << 16);
        if (wanted[n].vector != 0xff)
            EXPECT_EQ(word(2 * n + 1) | n << 16, wanted[n].behind | n << 16);
    }
}

static void test_strings(void)
{
    run_real(real_strings);
    EXPECT_EQ(word(0), 0xfffe);
    EXPECT_EQ(word(1), 0);
    EXPECT_EQ(word(2), 4); /* from the segment's end on to its beginning */
    EXPECT_EQ(word(3), 0);
    EXPECT_EQ(word(4), 0xabcd); /* the counter is cx */
    EXPECT_EQ(word(5), 0x1111);
    EXPECT_EQ(word(6), 0x3333);
    EXPECT_EQ(word(7), 0xfffc); /* and downwards */
    EXPECT_EQ(word(8), 0x1111);
    EXPECT_EQ(word(9), 5);
    EXPECT_EQ(word(10), 0x105);
    EXPECT_EQ(word(11), 0x2222);
    EXPECT_EQ(word(12), 0x2222);
    EXPECT_EQ(word(13), 0x33);
}

static void test_stack(void)
{
    run_real(real_stack);
    EXPECT_EQ(word(0), 0xfffe);
    EXPECT_EQ(dword(2), 0x5678fffe);
    EXPECT_EQ(word(6), 0xdef0);
    EXPECT_EQ(dword(8), 0x9abcdef0);
    EXPECT_EQ(word(10), 0xfff8);
    EXPECT_EQ(word(11), 0xaaaa);
    EXPECT_EQ(word(12), 0xdddd);
    EXPECT_EQ(word(13), 8);
    EXPECT_EQ(word(14), 6);
    EXPECT_EQ(word(15), 2);
    EXPECT_EQ(word(16), 6);
    EXPECT_EQ(word(17), 8);
    EXPECT_EQ(word(18), 0);
    EXPECT_EQ(word(19), 6);
    EXPECT_EQ(word(20), 0xfffe);
    EXPECT_EQ(word(21), 0xfa);
    EXPECT_EQ(word(22), 0x7788);
    EXPECT_EQ(word(23), 0x2222);
}

static void test_branches(void)
{
    run_real(real_branches);
    EXPECT_EQ(word(1), 0x77); /* round the end of the segment */
    EXPECT_EQ(word(0), 3);
    EXPECT_EQ(word(2), 0);
    EXPECT_EQ(word(3), 0);
    EXPECT_EQ(word(4), 0);
    EXPECT_EQ(word(5), 2);
}

static void test_unreal(void)
{
    run_real(real_unreal);
    EXPECT_EQ(dword(0), 0x0000ffff); /* the first half of a descriptor above 1 MiB */
}

static void test_hlt(void)
{
    run_real(real_hlt);
    EXPECT_EQ(word(0), 1);
}

static void test_system(void)
{
    struct cpuid c = cpuid(0, 0);
    run_real(real_system);
    EXPECT_EQ(dword(0), 0x200000); /* EFLAGS.ID can be changed */
    EXPECT_EQ(dword(2), c.b);
    EXPECT_EQ(dword(4) & 0x500, 0);
    EXPECT_EQ(word(6), 0x3ff); /* lidt's */
    EXPECT_EQ(dword(7), 0);
    EXPECT_EQ(dword(14) & 0x80000001, 0);
    EXPECT_EQ(word(16), 3);
    EXPECT_EQ(word(17), 0x37f);
}

static void test_step(void)
{
    run_real(real_step);
    EXPECT_EQ(word(0), 11);
}

static void test_break(void)
{
    run_real(real_break);
    EXPECT_EQ(word(0), 2);
    EXPECT_EQ(word(1), word(6)); /* a fault: in front of the instruction */
    EXPECT_EQ(word(2) & 15, 1);
    EXPECT_EQ(word(3), word(5)); /* a trap */
    EXPECT_EQ(word(4) & 15, 2);
}

static void test_smc(void)
{
    run_real(real_smc);
    EXPECT_EQ(word(0), 5);
}

const struct test tests[] = {{"basics", test_basics, NULL},
                             {"segments", test_segments, NULL},
                             {"far", test_far, NULL},
                             {"interrupts", test_interrupts, NULL},
                             {"exceptions", test_exceptions, "segments have no limits"},
                             {"strings", test_strings, NULL},
                             {"stack", test_stack, NULL},
                             {"branches", test_branches, NULL},
                             {"unreal", test_unreal, NULL},
                             {"hlt", test_hlt, NULL},
                             {"system", test_system, NULL},
                             {"step", test_step, NULL},
                             {"break", test_break, "it ends with a segmentation fault"},
                             {"smc", test_smc, NULL},
                             {0}};
