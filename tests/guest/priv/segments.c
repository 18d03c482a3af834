/* Segments, far transfers, IRET to every mode, SYSCALL and SYSRET, LDT and TSS (SDM vol. 3, chapters 3, 5, 7). */
#include "lib.h"

#define LABEL(name) extern u8 name[]
#define S(i) (FREE_SELECTOR + 8 * (i))
LABEL(far_target);

enum { ACCESSED = 1ull << 40, PRESENT = 1ull << 47 };
static u64 dpl(u64 descriptor, u64 level)
{
    return (descriptor & ~(3ull << 45)) | level << 45;
}

struct far {
    u64 offset;
    u16 selector;
} __attribute__((packed));

static const struct trap *far_jump(u16 selector)
{
    struct far target = {0, selector};
    return CATCH(__asm__ volatile("leaq 1f(%%rip), %%rax; mov %%rax, %0; rex.W ljmp *%0; 1:"
                                  : "+m"(target)
                                  :
                                  : "rax", "memory"));
}

static const struct trap *far_call(u16 selector)
{
    struct far target = {(u64)far_target, selector};
    return CATCH(__asm__ volatile("rex.W lcall *%0" : : "m"(target) : "rax", "rcx", "rdx", "memory"));
}
__asm__(".globl far_target; far_target: mov (%rsp), %rcx; mov 8(%rsp), %rdx; mov %cs, %eax; lretq");

static void test_far(void)
{
    EXPECT_NONE(far_jump(KCODE));
    EXPECT_NONE(far_call(KCODE));
    gdt[S(0) / 8] = gdt[1];
    EXPECT_NONE(far_jump(S(0)));
    u64 cs;
    __asm__ volatile("mov %%cs, %0" : "=r"(cs));
    EXPECT_EQ(cs, S(0));
    EXPECT_NONE(far_jump(KCODE));
    EXPECT_TRAP(far_jump(0), GP, 0);
    EXPECT_TRAP(far_jump(0x100), GP, 0x100);
    EXPECT_TRAP(far_jump(KDATA), GP, KDATA);
    EXPECT_TRAP(far_jump(UCODE), GP, UCODE & ~3); /* DPL 3: not from ring 0 */
    gdt[S(0) / 8] = gdt[1] & ~PRESENT;
    EXPECT_TRAP(far_jump(S(0)), NP, S(0));
    gdt[S(0) / 8] = (gdt[1] & ~ACCESSED) | 1ull << 42; /* conforming */
    EXPECT_NONE(far_jump(S(0)));
    EXPECT_NONE(far_jump(KCODE));
    EXPECT_TRAP(far_call(KDATA), GP, KDATA);
    EXPECT_TRAP(far_jump(TSS), GP, TSS); /* no task switches in long mode */
}

static void test_far_accessed(void)
{
    gdt[S(0) / 8] = gdt[1] & ~ACCESSED;
    EXPECT_NONE(far_jump(S(0)));
    EXPECT_EQ(gdt[S(0) / 8] & ACCESSED, ACCESSED); /* loading sets the accessed bit */
    EXPECT_NONE(far_jump(KCODE));
}

static void test_far_d_and_l(void)
{
    gdt[S(0) / 8] = gdt[1] | 1ull << 54; /* D and L */
    EXPECT_TRAP(far_jump(S(0)), GP, S(0));
}

static void test_far_return(void)
{
    EXPECT_NONE(TRY("pushq $8; lea 1f(%%rip), %%rax; push %%rax; lretq; 1:"));
    EXPECT_NONE(TRY("mov %%rsp, %%rcx; sub $32, %%rsp; pushq $8; lea 1f(%%rip), %%rax; push %%rax; lretq $32; 1: mov "
                    "%%rcx, %%rsp"));
    EXPECT_TRAP(TRY("pushq $0; pushq $0; lretq"), GP, 0);
    EXPECT_TRAP(TRY("pushq $0x10; pushq $0; lretq"), GP, 0x10);
    EXPECT_NONE(TRY("sub $8, %%rsp; movl $8, 4(%%rsp); lea 1f(%%rip), %%rax; mov %%eax, (%%rsp); lretl; 1:"));
}

static u64 data_load(int reg, u16 selector)
{
    const struct trap *t = reg == 0   ? CATCH(__asm__ volatile("mov %w0, %%ds"
                                                             :
                                                             : "r"(selector)))
                           : reg == 1 ? CATCH(__asm__ volatile("mov %w0, %%es"
                                                               :
                                                               : "r"(selector)))
                           : reg == 2 ? CATCH(__asm__ volatile("mov %w0, %%fs"
                                                               :
                                                               : "r"(selector)))
                                      : CATCH(__asm__ volatile("mov %w0, %%gs"
                                                               :
                                                               : "r"(selector)));
    return t->vector << 32 | (t->vector == NONE ? 0 : t->error);
}

static void test_data_segments(void)
{
    for (int reg = 0; reg < 4; reg++) {
        EXPECT_EQ(data_load(reg, 0), (u64)NONE << 32);
        EXPECT_EQ(data_load(reg, 3), (u64)NONE << 32);
        EXPECT_EQ(data_load(reg, KDATA), (u64)NONE << 32);
        EXPECT_EQ(data_load(reg, UDATA), (u64)NONE << 32);
        EXPECT_EQ(data_load(reg, KDATA | 3), (u64)GP << 32 | KDATA); /* RPL 3 of a ring 0 segment */
        EXPECT_EQ(data_load(reg, KCODE), (u64)NONE << 32);           /* readable code */
        EXPECT_EQ(data_load(reg, 0x100), (u64)GP << 32 | 0x100);
        EXPECT_EQ(data_load(reg, TSS), (u64)GP << 32 | TSS);
        EXPECT_EQ(data_load(reg, 4), (u64)GP << 32 | 4); /* no LDT */
        gdt[S(0) / 8] = gdt[2] & ~PRESENT;
        EXPECT_EQ(data_load(reg, S(0)), (u64)NP << 32 | S(0));
        gdt[S(0) / 8] = gdt[1] & ~(1ull << 41); /* execute-only */
        EXPECT_EQ(data_load(reg, S(0)), (u64)GP << 32 | S(0));
        gdt[S(0) / 8] = gdt[2] & ~ACCESSED;
        EXPECT_EQ(data_load(reg, S(0)), (u64)NONE << 32);
        EXPECT_EQ(gdt[S(0) / 8], gdt[2] | ACCESSED);
        data_load(reg, reg < 2 ? KDATA : 0);
    }
}

static const struct trap *load_ss(u16 selector)
{
    return CATCH(__asm__ volatile("mov %w0, %%ss; mov %1, %%ss" : : "r"(selector), "r"(KDATA)));
}

static void test_stack_segment(void)
{
    EXPECT_NONE(load_ss(KDATA));
    EXPECT_NONE(load_ss(0)); /* ring 0 of 64-bit mode may */
    EXPECT_TRAP(load_ss(UDATA), GP, UDATA & ~3);
    EXPECT_TRAP(load_ss(KCODE), GP, KCODE);
    EXPECT_TRAP(load_ss(0x100), GP, 0x100);
    gdt[S(0) / 8] = gdt[2] & ~PRESENT;
    EXPECT_TRAP(load_ss(S(0)), SS, S(0));
    gdt[S(0) / 8] = gdt[2] & ~(1ull << 41); /* read-only */
    EXPECT_TRAP(load_ss(S(0)), GP, S(0));
}

static void test_stack_segment_rpl(void)
{
    EXPECT_TRAP(load_ss(3), GP, 0);
}

static void test_segment_base(void)
{
    u64 *data = page_alloc();
    data[1] = 0x5555;
    map(0xc1000000, (u64)data, PTE_P | PTE_W);
    gdt[S(0) / 8] = 0x00cf93000000ffff | 0xc1ull << 56;
    data_load(2, S(0));
    EXPECT_EQ(read_msr(MSR_FS_BASE), 0xc1000000);
    u64 v;
    __asm__ volatile("mov %%fs:8, %0" : "=r"(v));
    EXPECT_EQ(v, 0x5555);
    data_load(0, S(0)); /* ds has no base in 64-bit mode */
    __asm__ volatile("movq %%ds:(%1), %0" : "=r"(v) : "r"(&data[1]));
    EXPECT_EQ(v, 0x5555);
    data_load(0, KDATA);
    data_load(2, 0);
    write_msr(MSR_FS_BASE, 0);
}

static void test_lar_lsl(void)
{
    u64 r = 0, zf;
    __asm__ volatile("lar %2, %0; setz %b1; movzx %b1, %k1" : "+r"(r), "=q"(zf) : "r"((u64)KCODE) : "cc");
    EXPECT_EQ(zf, 1);
    EXPECT_EQ(r & 0xf0ff00, 0xa09b00); /* bits 16 to 19 are undefined */
    __asm__ volatile("lsl %2, %0; setz %b1; movzx %b1, %k1" : "+r"(r), "=q"(zf) : "r"((u64)KDATA) : "cc");
    EXPECT_EQ(zf, 1);
    EXPECT_EQ(r, 0xffffffff);
    __asm__ volatile("lsl %2, %0; setz %b1; movzx %b1, %k1" : "+r"(r), "=q"(zf) : "r"((u64)TSS) : "cc");
    EXPECT_EQ(r, sizeof tss - 1);
    r = 0x77;
    __asm__ volatile("lar %2, %0; setz %b1; movzx %b1, %k1" : "+r"(r), "=q"(zf) : "r"(0x100ull) : "cc");
    EXPECT_EQ(zf, 0);
    EXPECT_EQ(r, 0x77);
    __asm__ volatile("lar %2, %0; setz %b1; movzx %b1, %k1" : "+r"(r), "=q"(zf) : "r"(0ull) : "cc");
    EXPECT_EQ(zf, 0);
    __asm__ volatile("verr %w1; setz %b0; movzx %b0, %k0" : "=q"(zf) : "r"(KCODE) : "cc");
    EXPECT_EQ(zf, 1);
    __asm__ volatile("verw %w1; setz %b0; movzx %b0, %k0" : "=q"(zf) : "r"(KCODE) : "cc");
    EXPECT_EQ(zf, 0);
    __asm__ volatile("verw %w1; setz %b0; movzx %b0, %k0" : "=q"(zf) : "r"(KDATA) : "cc");
    EXPECT_EQ(zf, 1);
}

static void test_ldt(void)
{
    static u64 ldt[4];
    u64 base = (u64)ldt;
    gdt[S(0) / 8] = (sizeof ldt - 1) | (base & 0xffffff) << 16 | 0x82ull << 40 | (base >> 24 & 0xff) << 56;
    gdt[S(1) / 8] = base >> 32;
    EXPECT_NONE(CATCH(__asm__ volatile("lldt %w0" : : "r"(S(0)))));
    u64 sel = ~0ull;
    __asm__ volatile("sldt %0" : "=r"(sel));
    EXPECT_EQ(sel, S(0));
    ldt[1] = gdt[2];
    ldt[2] = gdt[1];
    EXPECT_EQ(data_load(2, 8 | 4), (u64)NONE << 32);
    EXPECT_EQ(data_load(2, 24 | 4), (u64)GP << 32 | 24 | 4); /* an empty entry */
    EXPECT_EQ(data_load(2, 32 | 4), (u64)GP << 32 | 32 | 4); /* beyond its limit */
    EXPECT_NONE(far_jump(16 | 4));
    EXPECT_NONE(far_jump(KCODE));
    EXPECT_TRAP(CATCH(__asm__ volatile("lldt %w0" : : "r"(KDATA))), GP, KDATA);
    EXPECT_TRAP(CATCH(__asm__ volatile("lldt %w0" : : "r"(0x100))), GP, 0x100);
    EXPECT_TRAP(CATCH(__asm__ volatile("lldt %w0" : : "r"(12))), GP, 12);
    gdt[S(0) / 8] &= ~PRESENT;
    EXPECT_TRAP(CATCH(__asm__ volatile("lldt %w0" : : "r"(S(0)))), NP, S(0));
    EXPECT_NONE(CATCH(__asm__ volatile("lldt %w0" : : "r"(0))));
    EXPECT_EQ(data_load(2, 8 | 4), (u64)GP << 32 | 8 | 4);
    data_load(2, 0);
}

static void test_ltr(void)
{
    EXPECT_EQ(gdt[TSS / 8] >> 40 & 0xff, 0x8b); /* busy since it was loaded */
    EXPECT_TRAP(CATCH(__asm__ volatile("ltr %w0" : : "r"(TSS))), GP, TSS);
    gdt[TSS / 8] &= ~(2ull << 40);
    EXPECT_NONE(CATCH(__asm__ volatile("ltr %w0" : : "r"(TSS))));
    EXPECT_EQ(gdt[TSS / 8] >> 40 & 0xff, 0x8b);
    EXPECT_TRAP(CATCH(__asm__ volatile("ltr %w0" : : "r"(KDATA))), GP, KDATA);
    gdt[S(0) / 8] = gdt[TSS / 8] & ~(2ull << 40) & ~PRESENT;
    gdt[S(1) / 8] = 0;
    EXPECT_TRAP(CATCH(__asm__ volatile("ltr %w0" : : "r"(S(0)))), NP, S(0));
}

static void test_ltr_null(void)
{
    EXPECT_TRAP(CATCH(__asm__ volatile("ltr %w0" : : "r"(0))), GP, 0);
}

/* iretq */
USER_CODE(u_nothing, "mov %cs, %eax\nmov %ss, %ebx\nmov %ds, %ecx\nmov %es, %edx");
USER_CODE32(u32_nothing, "mov %cs, %eax\nmov %ss, %ebx\nmov $-1, %ecx\ninc %ecx\nmov %esp, %edx");

static void test_iret_modes(void)
{
    struct context c = user_context(u_nothing);
    EXPECT_TRAP(run(&c), BACK, 0);
    EXPECT_EQ(trap.f.rax, UCODE);
    EXPECT_EQ(trap.f.rbx, UDATA);
    EXPECT_EQ(trap.f.rcx, 0); /* segments of ring 0 are taken away */
    EXPECT_EQ(trap.f.rdx, 0);
    c = user_context32(u32_nothing);
    EXPECT_TRAP(run(&c), BACK, 0);
    EXPECT_EQ(trap.f.rax, UCODE32);
    EXPECT_EQ(trap.f.rbx, UDATA);
    EXPECT_EQ(trap.f.rcx, 0);
    EXPECT_EQ(trap.f.rdx, c.rsp);
    /* rings 1 and 2 */
    for (u64 ring = 1; ring < 3; ring++) {
        gdt[S(0) / 8] = dpl(gdt[1], ring);
        gdt[S(1) / 8] = dpl(gdt[2], ring);
        *table_entry(USER_VA, 1) &= ~PTE_U; /* supervisor pages: rings 0 to 2 */
        *table_entry(USER_STACK + 4096, 1) &= ~PTE_U;
        write_cr3(read_cr3());
        c = user_context(u_nothing);
        c.cs = S(0) | ring;
        c.ss = S(1) | ring;
        EXPECT_TRAP(run(&c), BACK, 0);
        EXPECT_EQ(trap.f.rax, S(0) | ring);
        EXPECT_EQ(trap.f.ss, S(1) | ring);
        *table_entry(USER_VA, 1) |= PTE_U;
        *table_entry(USER_STACK + 4096, 1) |= PTE_U;
        write_cr3(read_cr3());
    }
}

static void test_iret_same_ring(void)
{
    u64 cs = 0, sp = 0;
    __asm__ volatile("mov %%rsp, %%rcx; mov %%ss, %%eax; push %%rax; push %%rcx; pushf; pushq $8; lea 1f(%%rip), "
                     "%%rax; push %%rax; iretq;"
                     "1: mov %%cs, %0; sub %%rsp, %%rcx; mov %%rcx, %1"
                     : "=r"(cs), "=r"(sp)
                     :
                     : "rax", "rcx", "memory", "cc");
    EXPECT_EQ(cs, KCODE);
    EXPECT_EQ(sp, 0);
    /* to a null ss in ring 0 */
    __asm__ volatile("mov %%rsp, %%rcx; pushq $0; push %%rcx; pushf; pushq $8; lea 1f(%%rip), %%rax; push %%rax; iretq;"
                     "1: mov %%ss, %0; mov %1, %%ss"
                     : "=&r"(sp)
                     : "r"(KDATA)
                     : "rax", "rcx", "memory", "cc");
    EXPECT_EQ(sp, 0);
}

/* The fault is iretq's own, before anything has changed. */
static void expect_iret(const struct context *c, u64 vector, u64 error, int line)
{
    extern u8 enter_iret[];
    const struct trap *t = run(c);
    if (t->vector != vector || t->error != error || t->f.rip != (u64)enter_iret)
        fail(__FILE__, line, "iretq: vector, error code", t->vector << 32 | t->error, vector << 32 | error);
    if (t->f.cs != KCODE)
        fail(__FILE__, line, "iretq: cs", t->f.cs, KCODE);
}

static void test_iret_faults(void)
{
    struct context c = user_context(u_nothing);
    c.cs = 0;
    expect_iret(&c, GP, 0, __LINE__);
    c.cs = 0x103;
    expect_iret(&c, GP, 0x100, __LINE__);
    c.cs = KDATA;
    expect_iret(&c, GP, KDATA, __LINE__);
    c.cs = KCODE | 3; /* RPL is not the DPL */
    expect_iret(&c, GP, KCODE, __LINE__);
    c = user_context(u_nothing);
    c.ss = 3; /* null in ring 3 */
    expect_iret(&c, GP, 0, __LINE__);
    c.ss = KDATA;
    expect_iret(&c, GP, KDATA, __LINE__);
    c.ss = UCODE;
    expect_iret(&c, GP, UCODE & ~3, __LINE__);
    c = user_context(u_nothing);
    gdt[S(0) / 8] = gdt[5] & ~PRESENT;
    c.cs = S(0) | 3;
    expect_iret(&c, NP, S(0), __LINE__);
}

static void test_iret_ss(void)
{
    struct context c = user_context(u_nothing);
    gdt[S(0) / 8] = gdt[4] & ~PRESENT;
    c.ss = S(0) | 3;
    expect_iret(&c, SS, S(0), __LINE__);
}

static void test_iret_nt(void)
{
    EXPECT_TRAP(TRY("push $0x4002; popf; iretq"), GP, 0);
    write_flags(2);
}

static void test_iret_canonical(void)
{
    struct context c = user_context(u_nothing);
    c.rip = 0x800000000000;
    EXPECT_EQ(run(&c)->vector, GP);
    EXPECT_EQ(trap.error, 0);
}

USER_CODE(u_iret, "mov %rsp, %rcx\npush $0x23\npush %rcx\npush $0x3202\npush $0x2b\nlea 1f(%rip), %rax\npush "
                  "%rax\niretq\n1: pushf\npop %rbx\nmov %cs, %edx");
USER_CODE(u_iret_down, "push $0x10\npush %rsp\npush $2\npush $8\npush $0\niretq");
USER_CODE(u_iret_compat,
          "mov %esp, %ecx\npush $0x23\npush %rcx\npush $2\npush $0x1b\nlea 1f(%rip), %rax\nmov $0x100000000000, "
          "%rdx\nsub %rdx, %rax\nmov $0xc0000000, %edx\nadd %rdx, %rax\npush %rax\niretq\n"
          ".code32\n1: inc %eax\nmov %cs, %ebx\n.code64");

static void test_iret_user(void)
{
    struct context c = user_context(u_iret);
    EXPECT_TRAP(run(&c), BACK, 0);
    EXPECT_EQ(trap.f.rbx, 2); /* neither IF nor IOPL */
    EXPECT_EQ(trap.f.rdx, UCODE);
    EXPECT_EQ(trap.f.rsp, c.rsp);
    c = user_context(u_iret_down); /* up to ring 0: never */
    EXPECT_TRAP(run(&c), GP, KCODE);
    c = user_context(u_iret_compat);
    c.rsp = USER_STACK32 + 4096;
    EXPECT_TRAP(run(&c), BACK, 0);
    EXPECT_EQ(trap.f.cs, UCODE32);
    EXPECT_EQ(trap.f.rbx, UCODE32);
}

/* Compatibility mode: 32-bit operands, bases and limits, instructions that 64-bit mode dropped. */
USER_CODE32(u32_ops, "mov $0xffffffff, %eax\ninc %eax\nmov $5, %ebx\n.byte 0x43\n" /* inc %ebx */
                     "push $0x1234\npop %edx\npusha\nmov $0, %ebx\npopa\nmov $0x39, %al\nadd $0x28, %al\ndaa\nmovzx "
                     "%al, %eax\nlea 4(%esp), %esi\nsub %esp, %esi");
USER_CODE32(u32_wrap, "mov $0x23, %eax\nmov %eax, %ds\n"                /* the way to ring 3 has emptied it */
                      "mov $0xfffffff8, %eax\nmov 0x20(%eax), %ebx\n"); /* 0x18 after the wrap */
USER_CODE32(u32_seg, "push %ds\npush %es\nmov $0x48 + 3, %eax\nmov %eax, %ds\nmov 4, %ebx\nmov %eax, %es\nmov "
                     "%es:(%esi), %ecx\npop %es\npop %ds");
USER_CODE32(u32_limit, "mov $0x48 + 3, %eax\nmov %eax, %ds\nmov 0xffd, %ebx");
USER_CODE32(u32_stack, "mov $0x50 + 3, %eax\nmov %esp, %ecx\nmov %eax, %ss\nmov $16, %esp\npush $7\nmov (%esp), "
                       "%ebx\nmov %esp, %edx\nmov $0x23, %eax\nmov %eax, %ss\nmov %ecx, %esp");
USER_CODE32(u32_far,
            "call 3f\n3: pop %eax\nadd $1f - 3b, %eax\npush $0x2b\npush %eax\nlcall *(%esp)\nadd $8, %esp\nmov %cs, "
            "%ebx\njmp 2f\n.code64\n1: mov $0x123456789abcdef0, %rdx\nmov %cs, %ecx\nlretl\n.code32\n2:");
USER_CODE32(u32_les, "push $0x23\npush $0x1111\nles (%esp), %eax\nmov %es, %ebx\nadd $8, %esp");
USER_CODE32(u32_16, "mov $0xffff0000, %eax\nmov $0x1234, %ax\nmov $0x12345678, %ebx\nlea 0x1000(%bx), %ecx");
USER_CODE32(u32_readonly, "mov $0x58 + 3, %eax\nmov %eax, %ds\nmov 0, %ebx\nmov %ebx, 0");

USER_CODE32(u32_down, "mov $0x48 + 3, %eax\nmov %eax, %ds\nmov 0x1000, %ebx\nmov 0xfff, %cl");
USER_CODE32(u32_null, "mov 0x1000, %ebx"); /* the way to ring 3 has emptied ds */
USER_CODE32(u32_string, "mov $0x48 + 3, %eax\nmov %eax, %ds\nmov %eax, %es\nxor %esi, %esi\nmov $8, %ecx\nrep movsb");
USER_CODE32(u32_push, "mov $0x50 + 3, %eax\nmov %eax, %ss\nmov %edi, %esp\npush $7");
USER_CODE32(u32_bit, "mov $0x48 + 3, %eax\nmov %eax, %ds\nbt %edi, 0");
USER_CODE32(u32_xlat, "mov $0x48 + 3, %eax\nmov %eax, %ds\nmov $0xff0, %ebx\nmov %edi, %eax\nxlat");
USER_CODE32(u32_loop, "mov $0x70003, %ecx\nxor %eax, %eax\n1: inc %eax\n.byte 0x67\nloop 1b\nmov %ecx, %edx\n.byte "
                      "0x67, 0xe3, 1\ninc %eax");

static void test_compat_operations(void)
{
    struct context c = user_context32(u32_ops);
    EXPECT_TRAP(run(&c), BACK, 0);
    EXPECT_EQ(trap.f.rax, 0x67); /* 39 + 28 in decimal */
    EXPECT_EQ(trap.f.rbx, 6);
    EXPECT_EQ(trap.f.rdx, 0x1234);
    EXPECT_EQ(trap.f.rsi, 4);
    c = user_context32(u32_16);
    EXPECT_TRAP(run(&c), BACK, 0);
    EXPECT_EQ(trap.f.rax, 0xffff1234);
    EXPECT_EQ(trap.f.rcx, 0x6678);
    c = user_context32(u32_loop); /* counts in cx */
    EXPECT_TRAP(run(&c), BACK, 0);
    EXPECT_EQ(trap.f.rax, 3);
    EXPECT_EQ(trap.f.rdx, 0x70000);
    u8 *low = page_alloc();
    *(u32 *)(low + 0x18) = 0x600df00d;
    u64 *entry = table_entry(0, 2), saved = *entry;
    *table_entry(0, 3) |= PTE_U;
    u64 *table = page_alloc();
    table[0] = (u64)low | PTE_P | PTE_U;
    *entry = (u64)table | PTE_P | PTE_W | PTE_U;
    for (int i = 256; i < 512; i++)
        table[i] = (u64)i << 12 | PTE_P | PTE_W;
    write_cr3(read_cr3());
    c = user_context32(u32_wrap);
    EXPECT_TRAP(run(&c), BACK, 0);
    EXPECT_EQ(trap.f.rbx, 0x600df00d);
    *entry = saved;
    write_cr3(read_cr3());
    c = user_context32(u32_les);
    EXPECT_TRAP(run(&c), BACK, 0);
    EXPECT_EQ(trap.f.rax, 0x1111);
    EXPECT_EQ(trap.f.rbx, UDATA);
    c = user_context32(u32_far);
    EXPECT_TRAP(run(&c), BACK, 0);
    EXPECT_EQ(trap.f.rdx, 0x123456789abcdef0);
    EXPECT_EQ(trap.f.rcx, UCODE);
    EXPECT_EQ(trap.f.rbx, UCODE32);
}

static void set_data(int i, u32 base, u32 limit, u64 flags)
{
    gdt[S(i) / 8] = (limit & 0xffff) | (u64)(base & 0xffffff) << 16 | flags << 40 | (u64)(limit >> 16 & 15) << 48 |
                    1ull << 54 | (u64)(base >> 24) << 56;
}

static void test_compat_segments(void)
{
    u32 *data = page_alloc();
    map(0xc1000000, (u64)data, PTE_P | PTE_W | PTE_U);
    data[1] = 0x1111;
    data[2] = 0x2222;
    set_data(0, 0xc1000000, 0xfff, 0xf3);
    struct context c = user_context32(u32_seg);
    c.rsi = 8;
    EXPECT_TRAP(run(&c), BACK, 0);
    EXPECT_EQ(trap.f.rbx, 0x1111);
    EXPECT_EQ(trap.f.rcx, 0x2222);
    set_data(1, 0xc1000000, 0xfff, 0xf3);
    c = user_context32(u32_stack);
    EXPECT_TRAP(run(&c), BACK, 0);
    EXPECT_EQ(trap.f.rbx, 7);
    EXPECT_EQ(trap.f.rdx, 12);
    EXPECT_EQ(data[3], 7);
}

/* Limits and access rights are checked in compatibility mode. */
static void test_compat_limits(void)
{
    set_data(0, 0xc1000000, 0xfff, 0xf3);
    set_data(2, 0xc1000000, 0xfff, 0xf1); /* read-only */
    struct context c = user_context32(u32_limit);
    EXPECT_TRAP(run(&c), GP, 0);
    c = user_context32(u32_readonly);
    EXPECT_TRAP(run(&c), GP, 0);
}

static void test_compat_limits_more(void)
{
    u32 *data = page_alloc();
    struct context c = user_context32(u32_down);
    map(0xc1000000, (u64)data, PTE_P | PTE_W | PTE_U);
    data[0] = 0x3333;
    set_data(0, 0xc0fff000, 0xfff, 0xf7); /* expands down: what is above the limit */
    EXPECT_TRAP(run(&c), GP, 0);
    EXPECT_EQ(trap.f.rbx, 0x3333);
    c = user_context32(u32_null);
    EXPECT_TRAP(run(&c), GP, 0);
    set_data(0, 0xc1000000, 0xfff, 0xf3);
    c = user_context32(u32_string);
    c.rdi = 0xffc;
    EXPECT_TRAP(run(&c), GP, 0);
    EXPECT_EQ(trap.f.rcx, 4);
    EXPECT_EQ(trap.f.rdi, 0x1000);
    EXPECT_EQ(data[1023], 0x3333);
    set_data(1, 0xc1000000, 0xfff, 0xf3);
    for (int i = 0; i < 3; i++) {
        c = user_context32(u32_push);
        c.rdi = i == 0 ? 0x1000 : i == 1 ? 0x1001 : 2;
        EXPECT_TRAP(run(&c), i ? SS : BACK, 0);
    }
    for (int i = 0; i < 2; i++) {
        c = user_context32(u32_bit); /* the bit's byte counts, of the operand's 4 */
        c.rdi = 0x7fff + i;
        EXPECT_TRAP(run(&c), i ? GP : BACK, 0);
        c = user_context32(u32_xlat);
        c.rdi = 0xf + i;
        EXPECT_TRAP(run(&c), i ? GP : BACK, 0);
    }
}

/* Ring 0 in compatibility mode, and back. */
static void test_compat_ring0(void)
{
    u64 result;
    __asm__ volatile(
        "mov %%rsp, %%rcx; pushq $0x30; lea 1f(%%rip), %%rax; push %%rax; lretq;"
        ".code32; 1: mov $0xffffffff, %%eax; inc %%eax; mov %%cs, %%eax; ljmp $8, $2f; .code64; 2: mov %%rcx, %%rsp"
        : "=a"(result)
        :
        : "rcx", "memory", "cc");
    EXPECT_EQ(result, KCODE32);
}

/* SYSCALL and SYSRET */
USER_CODE(u_syscall, "mov $0x1111, %eax\nstc\nsyscall\nmov %cs, %ebx\nmov %ss, %edx\npushf\npop %rsi");
LABEL(syscall_entry);
LABEL(syscall_entry_compat);
static volatile u64 syscall_rcx, syscall_r11, syscall_flags, syscall_cs, syscall_ss, syscall_rsp;
__asm__("syscall_entry: mov %rcx, syscall_rcx; mov %r11, syscall_r11; mov %rsp, syscall_rsp; mov $syscall_stack + "
        "4096, %rsp;"
        "pushf; pop syscall_flags; mov %cs, %ebx; mov %rbx, syscall_cs; mov %ss, %ebx; mov %rbx, syscall_ss;"
        "mov $0x2222, %eax; mov syscall_rsp, %rsp; or $0x4001, %r11; and $~0x4000, %r11; sysretq;"
        "syscall_entry_compat: mov %rcx, syscall_rcx; mov $0x3333, %eax; sysretl; .lcomm syscall_stack, 4096");

static void set_syscall(void)
{
    write_msr(MSR_STAR, (u64)(UCODE32) << 48 | (u64)KCODE << 32);
    write_msr(MSR_LSTAR, (u64)syscall_entry);
    write_msr(MSR_CSTAR, (u64)syscall_entry_compat);
    write_msr(MSR_FMASK, F_CF | F_IF | F_TF | F_DF | F_AC);
}

static void test_syscall(void)
{
    struct context c = user_context(u_syscall);
    set_syscall();
    c.flags = 2 | F_DF;
    EXPECT_TRAP(run(&c), BACK, 0);
    EXPECT_EQ(syscall_rcx, c.rip + 8);
    EXPECT_EQ(syscall_r11, 2 | F_DF | F_CF);
    EXPECT_EQ(syscall_flags, 2);
    EXPECT_EQ(syscall_cs, KCODE);
    EXPECT_EQ(syscall_ss, KDATA);
    EXPECT_EQ(syscall_rsp, c.rsp);
    EXPECT_EQ(trap.f.rax, 0x2222);
    EXPECT_EQ(trap.f.rbx, UCODE);
    EXPECT_EQ(trap.f.rdx, UDATA);
    EXPECT_EQ(trap.f.rsi, 2 | F_DF | F_CF);
    write_msr(MSR_EFER, read_msr(MSR_EFER) & ~1ull);
    EXPECT_TRAP(run(&c), UD, 0);
    EXPECT_TRAP(TRY("sysretq"), UD, 0);
    write_msr(MSR_EFER, read_msr(MSR_EFER) | 1);
}

USER_CODE32(u32_landing, "mov %cs, %ebx\nmov $-1, %ecx\ninc %ecx");
static void test_sysret_compat(void)
{
    set_syscall();
    const struct trap *t = CATCH(__asm__ volatile("mov $2, %%r11d; mov %0, %%rsp; sysretl"
                                                  :
                                                  : "r"(USER_STACK32 + 4096), "c"(user_address32(u32_landing))));
    EXPECT_TRAP(t, BACK, 0);
    EXPECT_EQ(trap.f.cs, UCODE32);
    EXPECT_EQ(trap.f.rbx, UCODE32);
    EXPECT_EQ(trap.f.ss, UDATA);
}

USER_CODE32(u32_syscall, "mov $1, %eax\nsyscall\nmov %cs, %ebx");
static void test_syscall_compat(void)
{
    if (cpuid(0, 0).c != 0x444d4163) /* only AMD's processors have it in compatibility mode */
        return skip("not AMD");
    set_syscall();
    struct context c = user_context32(u32_syscall);
    EXPECT_TRAP(run(&c), BACK, 0);
    EXPECT_EQ(trap.f.rax, 0x3333);
    EXPECT_EQ(syscall_rcx, c.rip + 7);
    EXPECT_EQ(trap.f.rbx, UCODE32);
}

/* Call gates: 16 bytes in long mode; from ring 3 with a change of stacks. */
LABEL(gate_target);
static volatile u64 gate_frame[4], gate_cs;
__asm__("gate_target: mov %cs, %eax; mov %rax, gate_cs; mov (%rsp), %rax; mov %rax, gate_frame; mov 8(%rsp), %rax; mov "
        "%rax, gate_frame + 8;"
        "mov 16(%rsp), %rax; mov %rax, gate_frame + 16; mov 24(%rsp), %rax; mov %rax, gate_frame + 24; lretq");
USER_CODE(u_gate, "push $0x48 + 3\npush $0\nmov $0, %eax\nlcall *4(%rsp)\nadd $16, %rsp\nmov %cs, %ebx");

static void set_call_gate(u64 address, u16 selector, u64 type)
{
    gdt[S(0) / 8] = (address & 0xffff) | (u64)selector << 16 | type << 40 | (address >> 16 & 0xffff) << 48;
    gdt[S(1) / 8] = address >> 32;
}

static void test_call_gate(void)
{
    struct context c = user_context(u_gate);
    set_call_gate((u64)gate_target, KCODE, 0xec);
    EXPECT_TRAP(run(&c), BACK, 0);
    EXPECT_EQ(gate_cs, KCODE);
    EXPECT_EQ(gate_frame[1], UCODE);
    EXPECT_EQ(gate_frame[2], c.rsp - 16);
    EXPECT_EQ(gate_frame[3], UDATA);
    EXPECT_EQ(trap.f.rbx, UCODE);
    EXPECT_EQ(trap.f.rsp, c.rsp);
    set_call_gate((u64)gate_target, KCODE, 0x8c); /* DPL 0 */
    EXPECT_TRAP(run(&c), GP, S(0));
    set_call_gate((u64)gate_target, KCODE, 0x6c); /* not present */
    EXPECT_TRAP(run(&c), NP, S(0));
    set_call_gate((u64)gate_target, KDATA, 0xec);
    EXPECT_TRAP(run(&c), GP, KDATA);
    set_call_gate((u64)far_target, KCODE, 0xec);
    EXPECT_NONE(far_call(S(0))); /* from ring 0: no change of stacks */
}

USER_CODE(u_seg_far, "push $8\npush $0\nlretq");
USER_CODE(u_seg_ds, "mov $0x10, %eax\nmov %eax, %ds");
USER_CODE(u_seg_ss, "xor %eax, %eax\nmov %eax, %ss");
USER_CODE(u_seg_cs, "push $0x2b\nlea 1f(%rip), %rax\npush %rax\nlretq\n1: mov %cs, %ebx");

static void test_user_segments(void)
{
    struct context c = user_context(u_seg_far);
    EXPECT_TRAP(run(&c), GP, KCODE);
    c = user_context(u_seg_ds);
    EXPECT_TRAP(run(&c), GP, KDATA);
    c = user_context(u_seg_ss);
    EXPECT_TRAP(run(&c), GP, 0);
    c = user_context(u_seg_cs);
    EXPECT_TRAP(run(&c), BACK, 0);
    EXPECT_EQ(trap.f.rbx, UCODE);
}

const struct test tests[] = {
    {"far-jump-call", test_far, NULL},
    {"far-jump-accessed", test_far_accessed, "it leaves the bit"},
    {"far-jump-d-and-l", test_far_d_and_l, "it does not look"},
    {"far-return", test_far_return, NULL},
    {"data-segments", test_data_segments, NULL},
    {"stack-segment", test_stack_segment, NULL},
    {"stack-segment-null-rpl", test_stack_segment_rpl, "it does not look"},
    {"segment-base", test_segment_base, NULL},
    {"lar-lsl-verr-verw", test_lar_lsl, NULL},
    {"ldt", test_ldt, NULL},
    {"task-register", test_ltr, NULL},
    {"task-register-null", test_ltr_null, "it loads it"},
    {"iret-modes", test_iret_modes, NULL},
    {"iret-same-ring", test_iret_same_ring, NULL},
    {"iret-faults", test_iret_faults, NULL},
    {"iret-stack-not-present", test_iret_ss, "#NP instead of #SS"},
    {"iret-nested-task", test_iret_nt, NULL},
    {"iret-canonical", test_iret_canonical, NULL},
    {"iret-in-ring-3", test_iret_user, NULL},
    {"compat-operations", test_compat_operations, NULL},
    {"compat-segments", test_compat_segments, NULL},
    {"compat-limits", test_compat_limits, "it checks no limits"},
    {"compat-limits-more", test_compat_limits_more, "it checks no limits"},
    {"compat-ring-0", test_compat_ring0, NULL},
    {"syscall-sysret", test_syscall, NULL},
    {"sysret-compat", test_sysret_compat, NULL},
    {"syscall-compat", test_syscall_compat, NULL},
    {"call-gate", test_call_gate, NULL},
    {"segments-in-ring-3", test_user_segments, NULL},
    {NULL, NULL, NULL},
};
