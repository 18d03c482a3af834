/* Single-step, breakpoints and the debug registers (SDM vol. 3, chapter 17). */
#include "lib.h"

#define LABEL(name) extern u8 name[]
enum { DR6_BS = 1 << 14, DR6_BD = 1 << 13 };
#define DR6_FIXED 0xffff0ff0ull

static u64 read_dr6(void)
{
    u64 v;
    __asm__ volatile("mov %%dr6, %0" : "=r"(v));
    return v;
}
static u64 read_dr7(void)
{
    u64 v;
    __asm__ volatile("mov %%dr7, %0" : "=r"(v));
    return v;
}
static void write_dr6(u64 v)
{
    __asm__ volatile("mov %0, %%dr6" : : "r"(v));
}
static void write_dr7(u64 v)
{
    __asm__ volatile("mov %0, %%dr7" : : "r"(v));
}
static void write_dr0(u64 v)
{
    __asm__ volatile("mov %0, %%dr0" : : "r"(v));
}
static void write_dr1(u64 v)
{
    __asm__ volatile("mov %0, %%dr1" : : "r"(v));
}
static void write_dr2(u64 v)
{
    __asm__ volatile("mov %0, %%dr2" : : "r"(v));
}
static void write_dr3(u64 v)
{
    __asm__ volatile("mov %0, %%dr3" : : "r"(v));
}

/* What each debug exception reported, in order. */
static struct {
    u64 rip, dr6, flags;
} hit[64];
static volatile unsigned hits;
static bool stop_stepping;

static void on_debug(struct frame *f)
{
    u64 dr6 = read_dr6();
    if (hits < 64) {
        hit[hits].rip = f->rip;
        hit[hits].dr6 = dr6;
        hit[hits].flags = f->flags;
    }
    hits++;
    write_dr6(DR6_FIXED);
    if (!(dr6 & DR6_BS))
        f->flags |= F_RF; /* an instruction breakpoint is a fault: do not stop there again */
    if (stop_stepping)
        f->flags &= ~(u64)F_TF;
}

static void start(void)
{
    hits = 0;
    stop_stepping = false;
    write_dr6(DR6_FIXED);
    write_dr7(0x400);
    set_handler(DB, on_debug);
}

static void end(void)
{
    write_dr7(0x400);
    set_handler(DB, NULL);
}

LABEL(step1);
LABEL(step2);
LABEL(step3);
LABEL(step4);

static void test_step(void)
{
    start();
    __asm__ volatile(
        "pushf; orl $0x100, (%%rsp); popf; nop; .globl step1; step1: mov $1, %%eax; .globl step2; step2: add $2, %%eax;"
        ".globl step3; step3: pushf; andl $~0x100, (%%rsp); popf; .globl step4; step4: nop"
        :
        :
        : "rax", "cc", "memory");
    end();
    EXPECT_EQ(hits, 6); /* after nop, mov, add, pushf, and, popf: not after the popf that began it */
    EXPECT_EQ(hit[0].rip, (u64)step1);
    EXPECT_EQ(hit[1].rip, (u64)step2);
    EXPECT_EQ(hit[2].rip, (u64)step3);
    EXPECT_EQ(hit[5].rip, (u64)step4);
    EXPECT_EQ(hit[0].dr6 & 0xffff, (DR6_FIXED & 0xffff) | DR6_BS);
    EXPECT_EQ(hit[0].flags & F_TF, F_TF);
}

static void test_step_branches(void)
{
    start();
    __asm__ volatile(
        "pushf; orl $0x100, (%%rsp); popf; mov $3, %%ecx; 1: dec %%ecx; jnz 1b; call 2f; jmp 3f; 2: ret; 3:"
        "pushf; andl $~0x100, (%%rsp); popf"
        :
        :
        : "rcx", "cc", "memory");
    end();
    EXPECT_EQ(hits, 1 + 6 + 3 + 3);
}

/* Each iteration of a repeated instruction is a step, with rip still at it. */
static void test_step_rep(void)
{
    static u8 from[8], to[8];
    start();
    __asm__ volatile("lea %0, %%rsi; lea %1, %%rdi; mov $5, %%ecx; pushf; orl $0x100, (%%rsp); popf; .globl step_rep; "
                     "step_rep: rep movsb;"
                     "pushf; andl $~0x100, (%%rsp); popf"
                     :
                     : "m"(from), "m"(to)
                     : "rcx", "rsi", "rdi", "cc", "memory");
    end();
    LABEL(step_rep);
    EXPECT_EQ(hits, 5 + 3);
    EXPECT_EQ(hit[0].rip, (u64)step_rep);
    EXPECT_EQ(hit[3].rip, (u64)step_rep);
    EXPECT_EQ(hit[4].rip, (u64)step_rep + 2);
}

/* No step between a load of ss and the instruction behind it. */
static void test_step_shadow(void)
{
    start();
    LABEL(step_ss);
    __asm__ volatile("mov %%ss, %%ecx; pushf; orl $0x100, (%%rsp); popf; mov %%ecx, %%ss; nop; .globl step_ss; step_ss:"
                     "pushf; andl $~0x100, (%%rsp); popf"
                     :
                     :
                     : "rcx", "cc", "memory");
    end();
    EXPECT_EQ(hits, 1 + 3);
    EXPECT_EQ(hit[0].rip, (u64)step_ss);
}

/* int n clears TF and pushes it: the handler runs at full speed, stepping goes on behind the int. */
static void nothing(struct frame *f)
{
    (void)f;
}
static void test_step_int(void)
{
    start();
    set_handler(0x56, nothing);
    LABEL(step_int);
    __asm__ volatile("pushf; orl $0x100, (%%rsp); popf; int $0x56; .globl step_int; step_int: nop; pushf; andl "
                     "$~0x100, (%%rsp); popf"
                     :
                     :
                     : "cc", "memory");
    end();
    set_handler(0x56, NULL);
    EXPECT_EQ(hits, 1 + 3);
    EXPECT_EQ(hit[0].rip,
              (u64)step_int + 1); /* iretq restores TF: the instruction behind int is the first one stepped */
}

/* A fault is delivered instead of the step. */
static void skip_ud2(struct frame *f)
{
    f->rip += 2;
}
static void test_step_fault(void)
{
    start();
    set_handler(UD, skip_ud2);
    __asm__ volatile("pushf; orl $0x100, (%%rsp); popf; ud2; nop; pushf; andl $~0x100, (%%rsp); popf"
                     :
                     :
                     : "cc", "memory");
    end();
    set_handler(UD, NULL);
    EXPECT_EQ(hits, 4);
}

USER_CODE(u_steps, "nop\nmov $1, %eax\nadd $2, %eax");
static void test_step_user(void)
{
    start();
    struct context c = user_context(u_steps);
    c.flags |= F_TF; /* iretq sets TF: the first instruction of ring 3 is stepped */
    EXPECT_TRAP(run(&c), BACK, 0);
    end();
    EXPECT_EQ(hits, 3);
    EXPECT_EQ(hit[0].rip, c.rip + 1);
    EXPECT_EQ(trap.f.flags & F_TF, F_TF);
    EXPECT_EQ(trap.f.rax, 3);
}

LABEL(syscall_step);
__asm__("syscall_step: nop; sysretq");
USER_CODE(u_step_syscall, "nop\nsyscall\nnop\nnop");
static void test_step_syscall(void)
{
    write_msr(MSR_STAR, (u64)(UCODE32) << 48 | (u64)KCODE << 32);
    write_msr(MSR_LSTAR, (u64)syscall_step);
    write_msr(MSR_FMASK, F_TF | F_IF);
    start();
    struct context c = user_context(u_step_syscall);
    c.flags |= F_TF;
    EXPECT_TRAP(run(&c), BACK, 0);
    end();
    EXPECT(hits >= 3 && hits <= 4); /* whether sysret's own end counts differs between makers */
    EXPECT_EQ(hit[hits - 1].rip, c.rip + 5);
}

/* Breakpoints on instructions: a fault before it runs, RF lets it run. */
LABEL(bp_at);
LABEL(bp_at2);
static u64 run_bp(void)
{
    u64 x;
    __asm__ volatile("mov $1, %%eax; .globl bp_at; bp_at: add $2, %%eax; .globl bp_at2; bp_at2: add $4, %%eax"
                     : "=a"(x)
                     :
                     : "cc");
    return x;
}

static void test_breakpoint(void)
{
    start();
    EXPECT_EQ(run_bp(), 7); /* translated before the breakpoint is set */
    write_dr0((u64)bp_at);
    write_dr3((u64)bp_at2);
    write_dr7(0x400 | 1 << 1 | 1 << 6); /* G0, L3 */
    EXPECT_EQ(run_bp(), 7);
    EXPECT_EQ(hits, 2);
    EXPECT_EQ(hit[0].rip, (u64)bp_at);
    EXPECT_EQ(hit[0].dr6 & 0xf, 1);
    EXPECT_EQ(hit[0].dr6 & DR6_BS, 0);
    EXPECT_EQ(hit[1].rip, (u64)bp_at2);
    EXPECT_EQ(hit[1].dr6 & 0xf, 8);
    write_dr7(0x400);
    EXPECT_EQ(run_bp(), 7);
    EXPECT_EQ(hits, 2);
    end();
}

/* Set on code that runs well already, and that is reached by a computed branch. */
LABEL(bp_function);
__asm__("bp_function: inc %eax; ret");
static void test_breakpoint_indirect(void)
{
    u64 n;
    start();
    for (int i = 0; i < 3; i++) {
        if (i == 1) {
            write_dr0((u64)bp_function);
            write_dr7(0x400 | 1 << 1);
        } else {
            write_dr7(0x400);
        }
        __asm__ volatile("xor %%eax, %%eax; mov $20, %%ecx; 1: call *%1; dec %%ecx; jnz 1b"
                         : "=&a"(n)
                         : "r"(bp_function)
                         : "rcx", "cc");
        EXPECT_EQ(n, 20);
        EXPECT_EQ(hits, i ? 20 : 0);
    }
    EXPECT_EQ(hit[0].rip, (u64)bp_function);
    end();
}

/* Two breakpoints at one address report both; one that is off may be reported but does not stop. */
static void test_breakpoint_both(void)
{
    start();
    write_dr0((u64)bp_at);
    write_dr1((u64)bp_at);
    write_dr7(0x400 | 1 << 1 | 1 << 3);
    EXPECT_EQ(run_bp(), 7);
    EXPECT_EQ(hits, 1);
    EXPECT_EQ(hit[0].dr6 & 3, 3);
    end();
}

static volatile u64 watched[4] __attribute__((aligned(32)));

/* Breakpoints on data: a trap behind the access. */
LABEL(watch_after);
static void test_watch(void)
{
    static const struct {
        u64 length_bits;
        unsigned length;
    } lengths[] = {{0, 1}, {1, 2}, {3, 4}, {2, 8}};
    for (unsigned i = 0; i < 4; i++) {
        start();
        write_dr1((u64)&watched[1]);
        write_dr7(0x400 | 1 << 3 | 1ull << 20 | lengths[i].length_bits << 22); /* G1, writes */
        for (int offset = -8; offset < 16; offset++) {
            unsigned before = hits;
            *((volatile u8 *)&watched[1] + offset) = 1;
            EXPECT_EQ(hits - before, offset >= 0 && offset < (int)lengths[i].length);
            before = hits;
            (void)*((volatile u8 *)&watched[1] + offset); /* reads do not count */
            EXPECT_EQ(hits - before, 0);
        }
        if (hits)
            EXPECT_EQ(hit[0].dr6 & 0xf, 2);
        end();
    }
    start();
    write_dr2((u64)&watched[2]);
    write_dr7(0x400 | 1 << 5 | 3ull << 24 | 3ull << 26); /* G2, reads and writes, 4 bytes */
    __asm__ volatile("mov %0, %%eax; .globl watch_after; watch_after:" : : "m"(watched[2]) : "rax");
    EXPECT_EQ(hits, 1);
    EXPECT_EQ(hit[0].rip, (u64)watch_after);
    EXPECT_EQ(hit[0].dr6 & 0xf, 4);
    *(volatile u64 *)((u64)&watched[2] - 4) = 0; /* overlaps */
    EXPECT_EQ(hits, 2);
    __asm__ volatile("push %0; pop %0" : "+m"(watched[2]));
    EXPECT_EQ(hits, 4);
    end();
}

/* Over the edge of a page, by a call's push, by an instruction that reads and writes. */
static void test_watch_kinds(void)
{
    static u64 area[1024] __attribute__((aligned(4096)));
    LABEL(watch_called);
    start();
    write_dr0((u64)&area[512]);
    write_dr7(0x400 | 1 << 1 | 1ull << 16);
    *(volatile u64 *)((u64)&area[512] - 4) = 1;
    EXPECT_EQ(hits, 1);
    *(volatile u32 *)((u64)&area[512] - 4) = 1;
    EXPECT_EQ(hits, 1);
    __asm__ volatile("lock xaddl %%eax, %0" : "+m"(area[512]) : "a"(1) : "cc");
    EXPECT_EQ(hits, 2);
    __asm__ volatile(
        "mov %%rsp, %%rcx; lea %0, %%rsp; call watch_called; .globl watch_called; watch_called: mov %%rcx, %%rsp"
        : "+m"(area[513])
        :
        : "rcx", "memory");
    EXPECT_EQ(hits, 3);
    EXPECT_EQ(hit[2].rip, (u64)watch_called);
    __asm__ volatile("mov %%rsp, %%rcx; lea %0, %%rsp; pushf; mov %%rcx, %%rsp" : "+m"(area[513]) : : "rcx", "memory");
    EXPECT_EQ(hits, 4);
    EXPECT_EQ(hit[3].dr6 & 0xf, 1);
    end();
}

static void test_watch_rep(void)
{
    static u8 area[64] __attribute__((aligned(8)));
    start();
    write_dr0((u64)&area[20]);
    write_dr7(0x400 | 1 << 1 | 1ull << 16);
    memset(area, 5, 64);
    EXPECT_EQ(hits, 1);
    for (int i = 0; i < 64; i++)
        EXPECT_EQ(area[i], 5);
    end();
}

USER_CODE(u_watch, "movb $1, (%rdi)\nnop");
static void test_watch_user(void)
{
    u8 *page = page_alloc();
    map(TEST_VA, (u64)page, PTE_P | PTE_W | PTE_U);
    start();
    write_dr0(TEST_VA + 9);
    write_dr7(0x400 | 1 << 0 | 1ull << 16);
    struct context c = user_context(u_watch);
    c.rdi = TEST_VA + 9;
    EXPECT_TRAP(run(&c), BACK, 0);
    EXPECT_EQ(hits, 1);
    EXPECT_EQ(hit[0].rip, c.rip + 3);
    page[9] = 0; /* the same memory at another address: breakpoints are for linear addresses */
    EXPECT_EQ(hits, 1);
    end();
}

static void test_io_breakpoint(void)
{
    u64 cr4 = read_cr4();
    start();
    write_cr4(cr4 | CR4_DE);
    write_dr0(0x80);
    write_dr7(0x400 | 1 << 1 | 2ull << 16);
    out8(0x80, 1);
    EXPECT_EQ(hits, 1);
    EXPECT_EQ(hit[0].dr6 & 0xf, 1);
    out8(0x21, 0xff);
    EXPECT_EQ(hits, 1);
    end();
    write_cr4(cr4);
}

static void test_registers(void)
{
    u64 cr4 = read_cr4();
    write_dr7(0);
    EXPECT_EQ(read_dr7(), 0x400);
    write_dr7(0x400);
    write_dr6(0);
    EXPECT_EQ(read_dr6() & 0xffffe00f, 0xffff0000 & 0xffffe00f);
    write_dr0(0xffff800012345678);
    u64 v;
    __asm__ volatile("mov %%dr0, %0" : "=r"(v));
    EXPECT_EQ(v, 0xffff800012345678);
    write_cr4(cr4 & ~(u64)CR4_DE);
    __asm__ volatile(".byte 0x0f, 0x21, 0xf0" : "=a"(v)); /* mov %dr6, %rax; dr4 is dr6 without CR4.DE */
    EXPECT_EQ(v, read_dr6());
    __asm__ volatile(".byte 0x0f, 0x21, 0xe0" : "=a"(v)); /* mov %dr4, %rax */
    EXPECT_EQ(v, read_dr6());
    __asm__ volatile(".byte 0x0f, 0x21, 0xe8" : "=a"(v)); /* mov %dr5, %rax */
    EXPECT_EQ(v, 0x400);
    write_cr4(cr4 | CR4_DE);
    EXPECT_TRAP(TRY(".byte 0x0f, 0x21, 0xe0"), UD, 0);
    EXPECT_TRAP(TRY(".byte 0x0f, 0x23, 0xe8"), UD, 0);
    write_cr4(cr4);
}

static void test_registers_invalid(void)
{
    EXPECT_TRAP(CATCH(write_dr7(0x400 | 1ull << 32)), GP, 0);
    EXPECT_TRAP(CATCH(write_dr6(1ull << 32)), GP, 0);
}

static void test_general_detect(void)
{
    write_dr6(DR6_FIXED);
    write_dr7(0x400 | 1 << 13);
    const struct trap *t = CATCH(read_dr7());
    EXPECT_TRAP(t, DB, 0);
    write_dr7(0x400); /* delivery has cleared GD */
    EXPECT_EQ(read_dr6() & (DR6_BD | DR6_BS | 0xf), DR6_BD);
    write_dr6(DR6_FIXED);
}

/* iretq with RF: no breakpoint at the first instruction. */
USER_CODE(u_rf, "nop\nnop");
static void test_resume_flag(void)
{
    struct context c = user_context(u_rf);
    start();
    write_dr0(c.rip);
    write_dr7(0x400 | 1 << 1);
    c.flags |= F_RF;
    EXPECT_TRAP(run(&c), BACK, 0);
    EXPECT_EQ(hits, 0);
    c.flags = 2;
    EXPECT_TRAP(run(&c), BACK, 0);
    EXPECT_EQ(hits, 1);
    EXPECT_EQ(hit[0].rip, c.rip);
    end();
}

static void test_resume_flag_cleared(void)
{
    struct context c = user_context(u_rf);
    c.flags |= F_RF;
    EXPECT_TRAP(run(&c), BACK, 0);
    EXPECT_EQ(trap.f.flags & F_RF, 0); /* the first instruction has used it up */
}

/* A fault pushes RF so that the handler's return does not run into a breakpoint there again. */
static u64 fault_flags;
static void note_flags(struct frame *f)
{
    fault_flags = f->flags;
    f->rip += 2;
}
static void test_fault_flags(void)
{
    set_handler(UD, note_flags);
    __asm__ volatile("ud2");
    set_handler(UD, NULL);
    EXPECT_EQ(fault_flags & F_RF, F_RF);
}

const struct test tests[] = {
    {"step", test_step, NULL},
    {"step-branches", test_step_branches, NULL},
    {"step-rep", test_step_rep, NULL},
    {"step-shadow", test_step_shadow, NULL},
    {"step-int", test_step_int, NULL},
    {"step-fault", test_step_fault, NULL},
    {"step-user", test_step_user, NULL},
    {"step-syscall", test_step_syscall, NULL},
    {"breakpoint", test_breakpoint, NULL},
    {"breakpoint-indirect", test_breakpoint_indirect, NULL},
    {"breakpoint-both", test_breakpoint_both, NULL},
    {"watch", test_watch, NULL},
    {"watch-kinds", test_watch_kinds, NULL},
    {"watch-rep", test_watch_rep, NULL},
    {"watch-user", test_watch_user, NULL},
    {"io-breakpoint", test_io_breakpoint, NULL},
    {"registers", test_registers, NULL},
    {"registers-invalid", test_registers_invalid, NULL},
    {"general-detect", test_general_detect, "only writes trap"},
    {"resume-flag", test_resume_flag, NULL},
    {"resume-flag-cleared", test_resume_flag_cleared, "it stays set"},
    {"fault-flags", test_fault_flags, "RF is pushed as it is"},
    {NULL, NULL, NULL},
};
