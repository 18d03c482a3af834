/* Virtual-8086 mode, 16-bit protected mode, 32-bit code with a base: outside long mode (SDM vol. 3, chapters 20, 21).
 */
#include "lib.h"

#define LOW 0x10000ull
extern u8 low_start[], low_end[], stubs32[];
extern u8 v86_state[], v86_stack[], v86_bound[], v86_halts[], v86_vex[], v86_sldt[], v86_port[], v86_flags[], v86_far[],
    small_state[], small_far[], small_limit[], small_stack[], based_state[];
extern u64 legacy_gdt[], caught_esp, caught_eax, caught_ebx;
extern u32 frame[9];
extern struct {
    u16 limit;
    u64 base;
} __attribute__((packed)) legacy_idt_pointer;
void legacy_run(void);

enum { F_VM = 1 << 17 };
enum { EIP, CS, EFLAGS, ESP, SS_, ES, DS, FS, GS };
enum { SMALL_CODE = 0x20 | 3, SMALL_DATA = 0x28 | 3, BASED_CODE = 0x38 | 3 };

static u64 idt32[256];
static struct {
    u32 link, esp0, ss0, rest[22];
    u16 trap, io_map;
    u8 bitmap[33];
} __attribute__((packed, aligned(16))) tss32;
static u8 stack0[4096] __attribute__((aligned(16)));

static struct {
    u32 vector, error, eip, cs, eflags, esp, ss, es, ds, fs, gs;
} caught;

static u16 *low(u64 linear)
{
    u16 *p = (u16 *)linear;
    __asm__("" : "+r"(p));
    return p;
}

static void set_up(void)
{
    u64 base = (u64)&tss32, limit = sizeof tss32 - 1;
    for (unsigned n = 0; n < 256; n++) {
        u64 to = (u64)stubs32 + 16 * n;
        idt32[n] = (to & 0xffff) | 0x18u << 16 | 0xee00ull << 32 | (to >> 16 & 0xffff) << 48;
    }
    legacy_idt_pointer.base = (u64)idt32;
    tss32.ss0 = 0x10;
    tss32.esp0 = (u32)(u64)(stack0 + sizeof stack0);
    tss32.io_map = 104;
    memset(tss32.bitmap, 0xff, sizeof tss32.bitmap);
    legacy_gdt[6] = limit | (base & 0xffffff) << 16 | 0x89ull << 40 | (base >> 24) << 56;
    memset((void *)LOW, 0, 0x30000);
    memcpy((void *)LOW, low_start, (size_t)(low_end - low_start));
}

static void run_legacy(const u8 *routine, u16 cs, u16 ss, u32 flags)
{
    set_up();
    frame[EIP] = (u32)(routine - low_start);
    frame[CS] = cs;
    frame[EFLAGS] = 2 | flags;
    frame[ESP] = 0xabcd0000;
    frame[SS_] = ss;
    frame[ES] = 0x2001;
    frame[DS] = 0x2000;
    frame[FS] = frame[GS] = 0;
    legacy_run();
    memcpy(&caught, (void *)caught_esp, sizeof caught);
}

static void run_v86(const u8 *routine, u32 flags)
{
    run_legacy(routine, LOW >> 4, 0x3000, F_VM | flags);
}

static void test_v86(void)
{
    run_v86(v86_state, 0);
    EXPECT_EQ(caught.vector, BP);
    EXPECT_EQ(*low(0x20020), 0x5a5a);
    EXPECT_EQ(caught_ebx & 0xffff, 0x5a5a);
    EXPECT_EQ(*low(0x3fffe), 0x5a5a);
    EXPECT_EQ(caught.esp & 0xffff, 0xfffe);
    EXPECT_EQ(caught.cs, 0x1000);
    EXPECT_EQ(caught.ss, 0x3000);
    EXPECT_EQ(caught.es, 0x2001);
    EXPECT_EQ(caught.ds, 0x2000);
    EXPECT_EQ(caught.fs, 0x1000);
    EXPECT_EQ(caught.eflags & F_VM, F_VM);
    EXPECT_EQ(caught_eax & 0xffff, *low(LOW));
    run_v86(v86_stack, 0);
    EXPECT_EQ(caught.vector, UD);
    EXPECT_EQ(caught_ebx & 0xffff, 0);
    run_v86(v86_far, 0);
    EXPECT_EQ(caught.vector, BP);
    EXPECT_EQ(caught_ebx & 0xffff, 0xff0);
}

static void test_v86_faults(void)
{
    run_v86(v86_bound, 0);
    EXPECT_EQ(caught.vector, GP);
    EXPECT_EQ(caught.eip, v86_bound + 3 - low_start);
    run_v86(v86_halts, 0);
    EXPECT_EQ(caught.vector, GP);
    run_v86(v86_vex, 0);
    EXPECT_EQ(caught.vector, UD);
    run_v86(v86_sldt, 0);
    EXPECT_EQ(caught.vector, UD);
    run_v86(v86_port, F_IOPL); /* the bitmap counts, whatever IOPL is */
    EXPECT_EQ(caught.vector, GP);
}

static void test_v86_flags(void)
{
    run_v86(v86_flags, F_IOPL | F_IF);
    EXPECT_EQ(caught.vector, 0x41);
    EXPECT_EQ(caught_ebx & F_IF, F_IF);
    EXPECT_EQ(caught_eax & F_IF, 0);
    run_v86(v86_flags, F_IF); /* without IOPL the first of them faults */
    EXPECT_EQ(caught.vector, GP);
    EXPECT_EQ(caught.eip, v86_flags - low_start);
}

static void run_small(const u8 *routine, u16 cs)
{
    run_legacy(routine, cs, SMALL_DATA, 0);
}

static void test_small(void)
{
    /* ring 3 gets no data segment from the frame: ds is null there, and so is what it reaches */
    run_small(small_state, SMALL_CODE);
    EXPECT_EQ(caught.vector, GP);
    run_small(small_limit, SMALL_CODE);
    EXPECT_EQ(caught.vector, GP);
    EXPECT_EQ(caught.eip, small_limit + 3 + 3 + 2 + 3 - low_start);
    EXPECT_EQ(caught_eax & 0xff, 0);
    run_small(small_stack, SMALL_CODE);
    EXPECT_EQ(caught.vector, SS);
    EXPECT_EQ(caught.esp & 0xffff, 1);
    run_small(small_far, SMALL_CODE);
    EXPECT_EQ(caught.vector, BP);
    EXPECT_EQ(caught_ebx & 0xffff, BASED_CODE);
    EXPECT_EQ(caught.cs, SMALL_CODE);
    EXPECT_EQ(caught.esp & 0xffff, 0);
}

static void test_based(void)
{
    run_small(based_state, BASED_CODE);
    EXPECT_EQ(caught.vector, BP);
    EXPECT_EQ(caught_eax, 0);
    EXPECT_EQ(caught_ebx & 0xffff, 0xfffc); /* it goes round */
    EXPECT_EQ(caught_ebx >> 16, caught.esp >> 16);
    EXPECT_EQ(*low(0x2fffc), 0x1234);
}

const struct test tests[] = {{"v86", test_v86, NULL},
                             {"v86-faults", test_v86_faults, "segments have no limits"},
                             {"v86-flags", test_v86_flags, NULL},
                             {"16-bit", test_small, "segments have no limits"},
                             {"32-bit-with-base", test_based, NULL},
                             {0}};
