/* Exceptions and software interrupts: vectors, error codes, return addresses, stacks, double faults (SDM vol. 3,
 * chapter 6). */
#include "lib.h"

#define LABEL(name) extern u8 name[]
LABEL(de_at);
LABEL(ud_at);
LABEL(after_int3);
LABEL(after_int1);
LABEL(after_int);

/* The error code of a fault that a gate causes; QEMU's TCG counts gates as 16 bytes there. */
static u64 gate_error(unsigned vector)
{
    return vector * (on_tcg() ? 16 : 8) + 2;
}

static void test_divide(void)
{
    EXPECT_TRAP(TRY("xor %%edx, %%edx; xor %%ecx, %%ecx; mov $1, %%eax; .globl de_at; de_at: div %%ecx"), DE, 0);
    EXPECT_EQ(trap.f.rip, (u64)de_at);
    EXPECT_TRAP(TRY("mov $1, %%edx; xor %%eax, %%eax; mov $1, %%ecx; div %%ecx"), DE, 0);
    EXPECT_TRAP(TRY("mov $0x8000000000000000, %%rax; cqo; mov $-1, %%rcx; idiv %%rcx"), DE, 0);
    EXPECT_TRAP(TRY("mov $0x8000, %%eax; xor %%edx, %%edx; mov $0, %%cl; div %%cl"), DE, 0);
    EXPECT_EQ(trap.f.rax, 0x8000); /* nothing is changed */
    EXPECT_NONE(TRY("mov $100, %%eax; xor %%edx, %%edx; mov $7, %%ecx; div %%ecx"));
}

static void test_undefined(void)
{
    EXPECT_TRAP(TRY(".globl ud_at; ud_at: ud2"), UD, 0);
    EXPECT_EQ(trap.f.rip, (u64)ud_at);
    EXPECT_EQ(trap.f.cs, KCODE);
    EXPECT_EQ(trap.f.ss, KDATA);
    EXPECT_TRAP(TRY(".byte 0x0f, 0xff, 0xc0"), UD, 0); /* ud0 */
    EXPECT_TRAP(TRY(".byte 0x06"), UD, 0);             /* push %es and its like left 64-bit mode */
    EXPECT_TRAP(TRY(".byte 0x0e"), UD, 0);
    EXPECT_TRAP(TRY(".byte 0x16"), UD, 0);
    EXPECT_TRAP(TRY(".byte 0x1f"), UD, 0);
    EXPECT_TRAP(TRY(".byte 0x27"), UD, 0); /* daa */
    EXPECT_TRAP(TRY(".byte 0x37"), UD, 0); /* aaa */
    EXPECT_TRAP(TRY(".byte 0x60"), UD, 0); /* pusha */
    EXPECT_TRAP(TRY(".byte 0x61"), UD, 0);
    EXPECT_TRAP(TRY(".byte 0x9a, 0, 0, 0, 0, 8, 0"), UD, 0); /* direct far call */
    EXPECT_TRAP(TRY(".byte 0xea, 0, 0, 0, 0, 8, 0"), UD, 0);
    EXPECT_TRAP(TRY(".byte 0xce"), UD, 0);       /* into */
    EXPECT_TRAP(TRY(".byte 0xd4, 0x0a"), UD, 0); /* aam */
    EXPECT_TRAP(TRY(".byte 0x82, 0xc0, 0"), UD, 0);
    EXPECT_TRAP(TRY(".byte 0xfe, 0xd0"), UD, 0);       /* fe /2 */
    EXPECT_TRAP(TRY(".byte 0xff, 0xf8"), UD, 0);       /* ff /7 */
    EXPECT_TRAP(TRY(".byte 0x8e, 0xc8"), UD, 0);       /* mov %eax, %cs */
    EXPECT_TRAP(TRY(".byte 0x8c, 0xf0"), UD, 0);       /* segment register 6 */
    EXPECT_TRAP(TRY(".byte 0x8d, 0xc0"), UD, 0);       /* lea of a register */
    EXPECT_TRAP(TRY(".byte 0x0f, 0xb8, 0xc0"), UD, 0); /* popcnt without f3 */
    EXPECT_TRAP(TRY(".byte 0x0f, 0xc7, 0xc8"), UD, 0); /* cmpxchg8b of a register */
}

static void test_undefined_groups(void)
{
    EXPECT_TRAP(TRY(".byte 0xc6, 0xc8, 0"), UD, 0); /* c6 /1 */
    EXPECT_TRAP(TRY(".byte 0x8f, 0xc8"), UD, 0);    /* 8f /1, no XOP here */
}

static void test_lock(void)
{
    EXPECT_TRAP(TRY("lock; nop"), UD, 0);
    EXPECT_TRAP(TRY(".byte 0xf0, 0x89, 0x04, 0x24"), UD, 0); /* lock mov %eax, (%rsp) */
    EXPECT_TRAP(TRY(".byte 0xf0, 0x01, 0xc0"), UD, 0);       /* lock add of a register */
    EXPECT_TRAP(TRY(".byte 0xf0, 0x39, 0x04, 0x24"), UD, 0); /* lock cmp */
    EXPECT_TRAP(TRY(".byte 0xf0, 0x03, 0x04, 0x24"), UD, 0); /* lock add to a register */
    EXPECT_TRAP(TRY(".byte 0xf0, 0xcc"), UD, 0);
    EXPECT_NONE(TRY("sub $8, %%rsp; lock addq $1, (%%rsp); add $8, %%rsp"));
}

static void test_length(void)
{
    /* 15 bytes are an instruction, 16 are not */
    EXPECT_NONE(TRY(".byte 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x90"));
    EXPECT_TRAP(
        TRY(".byte 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x90"), GP,
        0);
}

static void resume(struct frame *f)
{
    trap.vector = f->vector, *(struct frame *)&trap.f = *f;
}

static void test_traps(void)
{
    set_handler(BP, resume);
    EXPECT_NONE(TRY("int3; .globl after_int3; after_int3:"));
    EXPECT_EQ(trap.f.rip, (u64)after_int3);
    set_handler(BP, NULL);
    EXPECT_TRAP(TRY("int $0x51; .globl after_int; after_int:"), 0x51, 0);
    EXPECT_EQ(trap.f.rip, (u64)after_int);
}

USER_CODE(u_icebp, ".byte 0xf1");

static void test_int1(void)
{
    set_handler(DB, resume);
    EXPECT_NONE(TRY(".byte 0xf1; .globl after_int1; after_int1:"));
    EXPECT_EQ(trap.f.vector, DB);
    EXPECT_EQ(trap.f.rip, (u64)after_int1);
    set_handler(DB, NULL);
    struct context c = user_context(u_icebp); /* asks for no DPL */
    EXPECT_TRAP(run(&c), DB, 0);
}

/* The registers and the frame as the handler sees them, and that everything comes back by iretq. */
static void change(struct frame *f)
{
    trap.f.rax = f->rax;
    f->rax = 0xabcdef;
    f->flags |= F_CF;
}

static void test_resume(void)
{
    u64 rax = 0x1234, carry, moved;
    set_handler(0x52, change);
    __asm__ volatile("mov %%rsp, %%rbx; clc; int $0x52; setc %%cl; movzx %%cl, %%ecx; sub %%rsp, %%rbx"
                     : "+a"(rax), "=b"(moved), "=c"(carry)
                     :
                     : "memory", "cc");
    EXPECT_EQ(trap.f.rax, 0x1234);
    EXPECT_EQ(rax, 0xabcdef);
    EXPECT_EQ(carry, 1);
    EXPECT_EQ(moved, 0);
    set_handler(0x52, NULL);
}

static volatile u64 seen_flags, seen_rsp;
static void look(struct frame *f)
{
    seen_flags = read_flags();
    seen_rsp = (u64)f; /* the stub pushed it whole: its end is where the processor began */
}

static void test_gate_kinds(void)
{
    set_handler(0x53, look);
    /* interrupt gate: IF, TF, NT, RF off; the others stay */
    __asm__ volatile("push $0x4202; popf; stc; int $0x53; push $2; popf" : : : "cc", "memory");
    EXPECT_EQ(seen_flags & (F_IF | F_TF | F_NT), 0);
    /* trap gate: IF stays */
    idt[2 * 0x53] |= 1ull << 40; /* 8e -> 8f */
    __asm__ volatile("push $0x4202; popf; int $0x53; push $2; popf" : : : "cc", "memory");
    EXPECT_EQ(seen_flags & (F_IF | F_TF | F_NT), F_IF);
    gate_default(0x53);
    /* the stack is aligned to 16 before the frame is pushed */
    for (int i = 0; i < 16; i++) {
        __asm__ volatile("mov %%rsp, %%rbx; sub %0, %%rsp; int $0x53; mov %%rbx, %%rsp"
                         :
                         : "r"((u64)i)
                         : "rbx", "memory");
        EXPECT_EQ((seen_rsp + sizeof(struct frame)) & 15, 0);
    }
    set_handler(0x53, NULL);
}

static void test_gate_faults(void)
{
    EXPECT_TRAP(TRY("int $0x54"), 0x54, 0);
    idt[2 * 0x54] &= ~(1ull << 47); /* not present */
    EXPECT_TRAP(TRY("int $0x54"), NP, gate_error(0x54));
    set_gate(0x54, (u64)ud_at, 0, 0x8e, 0);
    EXPECT_TRAP(TRY("int $0x54"), GP, 0); /* no code segment */
    set_gate(0x54, (u64)ud_at, KDATA, 0x8e, 0);
    EXPECT_TRAP(TRY("int $0x54"), GP, KDATA);
    set_gate(0x54, (u64)ud_at, 0x100, 0x8e, 0);
    EXPECT_TRAP(TRY("int $0x54"), GP, 0x100); /* beyond the GDT */
    set_gate(0x54, (u64)ud_at, FREE_SELECTOR, 0x8e, 0);
    gdt[FREE_SELECTOR / 8] = gdt[1] & ~(1ull << 47);
    EXPECT_TRAP(TRY("int $0x54"), NP, FREE_SELECTOR);
    set_gate(0x54, (u64)ud_at, KCODE, 0x85, 0); /* a task gate: not in long mode */
    EXPECT_TRAP(TRY("int $0x54"), GP, gate_error(0x54));
    set_gate(0x54, (u64)ud_at, KCODE32, 0x8e, 0); /* a handler must be 64-bit code */
    EXPECT_TRAP(TRY("int $0x54"), GP, KCODE32);
    gate_default(0x54);
    gdt[FREE_SELECTOR / 8] = 0;
    load_idt(0x53 * 16 - 1);
    EXPECT_TRAP(TRY("int $0x54"), GP, gate_error(0x54));
    load_idt(4095);
}

USER_CODE(u_int54, "int $0x54");
USER_CODE(u_int3, "int3");
USER_CODE(u_into64, ".byte 0xce");
USER_CODE(u_ud2, "ud2");
USER_CODE(u_div, "xor %ecx, %ecx\ndiv %ecx");
USER_CODE(u_stack, "mov $0x8000000000000000, %rsp\npush %rax");

static void test_user_gates(void)
{
    struct context c = user_context(u_int54);
    EXPECT_TRAP(run(&c), GP, gate_error(0x54)); /* a gate of DPL 0 */
    EXPECT_EQ(trap.f.rip, c.rip);
    idt[2 * 0x54] |= 3ull << 45;
    EXPECT_TRAP(run(&c), 0x54, 0);
    EXPECT_EQ(trap.f.rip, c.rip + 2);
    EXPECT_EQ(trap.f.cs, UCODE);
    EXPECT_EQ(trap.f.ss, UDATA);
    EXPECT_EQ(trap.f.rsp, c.rsp);
    EXPECT_EQ(trap.f.flags, 2);
    EXPECT_EQ(trap.frame_at, tss.rsp[0] - 8);
    gate_default(0x54);
    c = user_context(u_int3);
    EXPECT_TRAP(run(&c), BP, 0);
    gate_default(BP);
    idt[2 * BP] &= ~(3ull << 45);
    EXPECT_TRAP(run(&c), GP, gate_error(BP));
    gate_default(BP);
    c = user_context(u_into64);
    EXPECT_TRAP(run(&c), UD, 0);
    c = user_context(u_ud2);
    EXPECT_TRAP(run(&c), UD, 0);
    EXPECT_EQ(trap.f.rip, c.rip);
    c = user_context(u_div);
    EXPECT_TRAP(run(&c), DE, 0);
}

static void test_user_stack_fault(void)
{
    struct context c = user_context(u_stack);
    EXPECT_TRAP(run(&c), SS, 0);
}

/* Goes on with a wild stack pointer for long enough that the host interrupts it everywhere. */
USER_CODE(u_wild_stack, "mov $0x5555000000000000, %rsp\nlea 2f(%rip), %rax\nmov $20000000, %ecx\n"
                        "1: jmp *%rax\n2: incq 9f(%rip)\ndec %ecx\njnz 1b\nint $0x30\n9: .quad 0");

/* Which the architecture allows.  Where the host does not, the program gets a fault and the machine goes on. */
static void test_user_wild_stack(void)
{
    struct context c = user_context(u_wild_stack);
    const struct trap *t = run(&c);
    EXPECT(t->vector == BACK || t->vector == GP || t->vector == UD);
    EXPECT_EQ(t->f.rsp, 0x5555000000000000);
}

USER_CODE32(u32_into, "mov $0x7fffffff, %eax\nadd $1, %eax\ninto");
USER_CODE32(u32_into_not, "xor %eax, %eax\ninto");
USER_CODE32(u32_bound, "push $9\npush $5\nmov $4, %eax\nbound %eax, (%esp)");
USER_CODE32(u32_bound_not, "push $9\npush $5\nmov $9, %eax\nbound %eax, (%esp)");
USER_CODE32(u32_int54, "int $0x54");
USER_CODE32(u32_ud, ".byte 0xd6\n"); /* salc: an instruction in 32-bit code */
USER_CODE32(u32_syscall_none, "ud2");

static void test_compat_traps(void)
{
    struct context c = user_context32(u32_into);
    EXPECT_TRAP(run(&c), OF, 0);
    EXPECT_EQ(trap.f.rip, c.rip + 9);
    EXPECT_EQ(trap.f.cs, UCODE32);
    c = user_context32(u32_into_not);
    EXPECT_TRAP(run(&c), BACK, 0);
    c = user_context32(u32_bound);
    EXPECT_TRAP(run(&c), BR, 0);
    EXPECT_EQ(trap.f.rip, c.rip + 9);
    c = user_context32(u32_bound_not);
    EXPECT_TRAP(run(&c), BACK, 0);
    c = user_context32(u32_int54);
    EXPECT_TRAP(run(&c), GP, gate_error(0x54));
    c = user_context32(u32_ud);
    c.flags = 3;
    EXPECT_TRAP(run(&c), BACK, 0);
    EXPECT_EQ(trap.f.rax & 0xff, 0xff);
    c = user_context32(u32_syscall_none);
    EXPECT_TRAP(run(&c), UD, 0);
}

USER_CODE(u_ac, "pushf\norl $0x40000, (%rsp)\npopf\nmov 1(%rsp), %eax");
USER_CODE(u_ac_ok, "pushf\norl $0x40000, (%rsp)\npopf\nmov (%rsp), %rax\nmov 1(%rsp), %al");

static void test_alignment_check(void)
{
    struct context c = user_context(u_ac), fine = user_context(u_ac_ok);
    EXPECT_TRAP(run(&c), BACK, 0); /* CR0.AM is off */
    write_cr0(read_cr0() | CR0_AM);
    EXPECT_TRAP(run(&c), AC, 0);
    EXPECT_TRAP(run(&fine), BACK, 0);
    write_flags(2 | F_AC); /* never in ring 0 */
    EXPECT_NONE(TRY("mov 1(%%rsp), %%eax"));
    write_flags(2);
    write_cr0(read_cr0() & ~(u64)CR0_AM);
}

/* Which combinations make a double fault (SDM vol. 3, table 6-5). */
static void break_gate(unsigned vector)
{
    idt[2 * vector] &= ~(1ull << 47);
}

static void test_double_fault(void)
{
    /* contributory after contributory */
    break_gate(DE);
    EXPECT_TRAP(TRY("xor %%ecx, %%ecx; div %%ecx"), DF, 0);
    EXPECT(trap.frame_at < tss.ist[0] && trap.frame_at > tss.ist[0] - 4096); /* on its own stack */
    gate_default(DE);
    break_gate(GP);
    EXPECT_TRAP(TRY("mov $0x800000000000, %%rax; mov (%%rax), %%al"), DF, 0);
    gate_default(GP);
    /* contributory after a page fault */
    break_gate(PF);
    EXPECT_TRAP(CATCH((void)*(volatile u8 *)TEST_VA), DF, 0);
    gate_default(PF);
    /* contributory after a benign exception: just the second one */
    break_gate(UD);
    EXPECT_EQ(TRY("ud2")->vector, NP);
    EXPECT_EQ(trap.error & ~1ull, gate_error(UD)); /* bit 0, "an external event": Intel sets it, AMD need not */
    gate_default(UD);
    break_gate(BP);
    EXPECT_TRAP(TRY("int3"), NP, gate_error(BP));
    gate_default(BP);
}

USER_CODE(u_touch, "mov (%rdi), %al");
USER_CODE(u_gp, "hlt");

static void test_double_fault_stack(void)
{
    u64 stack = tss.rsp[0];
    struct context c = user_context(u_touch);
    c.rdi = TEST_VA;
    EXPECT_TRAP(run(&c), PF, 4);
    /* page fault while delivering a page fault: ring 0's stack is not mapped */
    tss.rsp[0] = TEST_VA + 4096;
    EXPECT_TRAP(run(&c), DF, 0);
    /* page fault while delivering a contributory exception: the page fault */
    c = user_context(u_gp);
    idt[2 * PF] |= 1ull << 32; /* on a stack of its own */
    EXPECT_TRAP(run(&c), PF, 2);
    gate_default(PF);
    /* ring 0's stack is not canonical: #SS while delivering #GP is a double fault, while #UD is not */
    tss.rsp[0] = 0x800000000000;
    EXPECT_TRAP(run(&c), DF, 0);
    idt[2 * SS] |= 1ull << 32;
    c = user_context(u_ud2);
    EXPECT_EQ(run(&c)->vector, SS);
    EXPECT_EQ(trap.error & ~1ull, 0);
    gate_default(SS);
    tss.rsp[0] = stack;
}

static void test_ist(void)
{
    static u8 area[4096] __attribute__((aligned(16)));
    tss.ist[6] = (u64)area + 4096 - 8; /* IST 7, not aligned: the processor aligns */
    idt[2 * 0x55] |= 7ull << 32;
    EXPECT_TRAP(TRY("int $0x55"), 0x55, 0);
    EXPECT_EQ(trap.frame_at, (u64)area + 4096 - 16 - 8);
    struct context c = user_context(u_int54);
    gate_default(0x54);
    idt[2 * 0x54] |= 7ull << 32 | 3ull << 45;
    EXPECT_TRAP(run(&c), 0x54, 0);
    EXPECT_EQ(trap.frame_at, (u64)area + 4096 - 16 - 8);
    gate_default(0x54);
    gate_default(0x55);
}

/* A fault inside a handler, and a fault after that: states nest. */
static volatile int depth;
static void nested(struct frame *f)
{
    f->rip += 2; /* ud2 */
    if (++depth < 20)
        __asm__ volatile("ud2");
    depth++;
}

static void test_nested(void)
{
    depth = 0;
    set_handler(UD, nested);
    EXPECT_NONE(TRY("ud2"));
    EXPECT_EQ(depth, 40);
    set_handler(UD, NULL);
}

const struct test tests[] = {
    {"divide", test_divide, NULL},
    {"undefined-opcodes", test_undefined, NULL},
    {"undefined-groups", test_undefined_groups, "it does not look at the register field"},
    {"lock", test_lock, "it takes lock before mov and cmp"},
    {"length", test_length, NULL},
    {"traps", test_traps, NULL},
    {"int1", test_int1, "it has no icebp"},
    {"resume", test_resume, NULL},
    {"gate-kinds", test_gate_kinds, NULL},
    {"gate-faults", test_gate_faults, NULL},
    {"user-gates", test_user_gates, NULL},
    {"user-wild-stack", test_user_wild_stack, NULL},
    {"user-stack-fault", test_user_stack_fault, "#GP instead of #SS"},
    {"compat-traps", test_compat_traps, NULL},
    {"alignment-check", test_alignment_check, "it checks no alignment"},
    {"double-fault", test_double_fault, NULL},
    {"double-fault-stack", test_double_fault_stack, NULL},
    {"interrupt-stack-table", test_ist, NULL},
    {"nested", test_nested, NULL},
    {NULL, NULL, NULL},
};
