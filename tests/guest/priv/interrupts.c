/* Local APIC, its timer, I/O APIC, 8259s, PIT; priorities, shadows, NMI (SDM vol. 3, chapters 6.8 and 10). */
#include "lib.h"

#define APIC(offset) (*(volatile u32 *)(0xfee00000ull + (offset)))
enum {
    APIC_ID = 0x20,
    APIC_VERSION = 0x30,
    APIC_TPR = 0x80,
    APIC_PPR = 0xa0,
    APIC_EOI = 0xb0,
    APIC_SVR = 0xf0,
    APIC_ISR = 0x100
};
enum {
    APIC_IRR = 0x200,
    APIC_ICR = 0x300,
    APIC_ICR_HIGH = 0x310,
    APIC_TIMER = 0x320,
    APIC_LINT0 = 0x350,
    APIC_INITIAL = 0x380
};
enum { APIC_CURRENT = 0x390, APIC_DIVIDE = 0x3e0 };
#define MASKED 0x10000u
#define SELF 0x40000u

static volatile unsigned count[256], order[64], order_length;
static volatile u64 last_rip;
static volatile bool x2apic;

static void eoi(void)
{
    if (x2apic)
        write_msr(0x80b, 0);
    else
        APIC(APIC_EOI) = 0;
}

static void on_interrupt(struct frame *f)
{
    count[f->vector]++;
    if (order_length < 64)
        order[order_length++] = (unsigned)f->vector;
    last_rip = f->rip;
    eoi();
}

static void clear(void)
{
    for (int i = 0; i < 256; i++)
        count[i] = 0;
    order_length = 0;
}

static void apic_on(void)
{
    APIC(APIC_SVR) = 0x1ff;
    APIC(APIC_TPR) = 0;
    APIC(APIC_TIMER) = MASKED;
    for (unsigned vector = 0x40; vector < 0x100; vector++)
        set_handler(vector, on_interrupt);
    clear();
}

static void enable(void)
{
    __asm__ volatile("sti; nop; nop; nop; nop; cli" : : : "memory");
}
static void self(unsigned vector)
{
    APIC(APIC_ICR) = SELF | vector;
}
static bool irr(unsigned vector)
{
    return APIC(APIC_IRR + vector / 32 * 16) >> (vector % 32) & 1;
}
static bool isr(unsigned vector)
{
    return APIC(APIC_ISR + vector / 32 * 16) >> (vector % 32) & 1;
}

/* Waits with interrupts on until the condition or about a second. */
#define WAIT(condition)                                                                                                \
    ({                                                                                                                 \
        u64 end_ = read_tsc() + 4000000000ull;                                                                         \
        while (!(condition) && read_tsc() < end_)                                                                      \
            __asm__ volatile("sti; nop; pause; cli" : : : "memory");                                                   \
        (condition);                                                                                                   \
    })

static void test_registers(void)
{
    apic_on();
    EXPECT_EQ(APIC(APIC_ID) >> 24, cpuid(1, 0).b >> 24);
    u32 version = APIC(APIC_VERSION);
    EXPECT((version & 0xff) >= 0x10 && (version & 0xff) <= 0x1f);
    EXPECT((version >> 16 & 0xff) >= 4);
    APIC(APIC_TIMER) = MASKED | 0x77;
    EXPECT_EQ(APIC(APIC_TIMER), MASKED | 0x77);
    APIC(APIC_TPR) = 0x40;
    EXPECT_EQ(APIC(APIC_PPR), 0x40);
    APIC(APIC_TPR) = 0;
}

static void test_self_ipi(void)
{
    apic_on();
    self(0x60);
    EXPECT_EQ(irr(0x60), 1);
    EXPECT_EQ(count[0x60], 0);
    enable();
    EXPECT_EQ(count[0x60], 1);
    EXPECT_EQ(irr(0x60), 0);
    EXPECT_EQ(isr(0x60), 0);
    for (unsigned vector = 0x40; vector < 0xf0; vector++) {
        self(vector);
        enable();
        EXPECT_EQ(count[vector], vector == 0x60 ? 2 : 1);
    }
    /* to itself by its number, and to all */
    APIC(APIC_ICR_HIGH) = APIC(APIC_ID);
    APIC(APIC_ICR) = 0x61;
    EXPECT(WAIT(count[0x61] == 2));
    APIC(APIC_ICR) = 0x80062;
    EXPECT(WAIT(count[0x62] == 2));
    APIC(APIC_ICR) = 0xc0063; /* all but itself */
    enable();
    EXPECT_EQ(count[0x63], 1);
}

static void test_priority(void)
{
    apic_on();
    self(0x50);
    self(0x81);
    self(0x70);
    self(0x82);
    enable();
    EXPECT_EQ(order_length, 4);
    EXPECT(order[0] == 0x82 && order[1] == 0x81 && order[2] == 0x70 && order[3] == 0x50);
}

static volatile unsigned seen_inside;
static void on_outer(struct frame *f)
{
    count[f->vector]++;
    self(0x62); /* the same class: waits for the end of this one */
    self(0x90); /* above: comes at once */
    __asm__ volatile("sti; nop; nop; cli" : : : "memory");
    seen_inside = count[0x62] | count[0x90] << 8 | isr(0x65) << 16;
    eoi();
}

static void test_nesting(void)
{
    apic_on();
    set_handler(0x65, on_outer);
    self(0x65);
    enable();
    EXPECT_EQ(seen_inside, 0x10100);
    EXPECT_EQ(count[0x62], 1);
    EXPECT_EQ(count[0x65], 1);
}

static void test_task_priority(void)
{
    apic_on();
    write_cr8(8);
    self(0x7f);
    self(0x8f);
    self(0x90);
    enable();
    EXPECT_EQ(count[0x90], 1); /* only above class 8 */
    EXPECT_EQ(count[0x8f] + count[0x7f], 0);
    __asm__ volatile("sti");
    write_cr8(7);
    __asm__ volatile("nop; nop; cli");
    EXPECT_EQ(count[0x8f], 1);
    EXPECT_EQ(count[0x7f], 0);
    write_cr8(0);
    enable();
    EXPECT_EQ(count[0x7f], 1);
    APIC(APIC_TPR) = 0x90;
    self(0x85);
    enable();
    EXPECT_EQ(count[0x85], 0);
    APIC(APIC_TPR) = 0;
    enable();
    EXPECT_EQ(count[0x85], 1);
}

/* sti and mov ss hold interrupts off for one more instruction. */
extern u8 shadow_sti[], shadow_ss[], no_shadow[], shadow_popf[];
static void test_shadow(void)
{
    apic_on();
    self(0x60);
    __asm__ volatile("sti; nop; .globl shadow_sti; shadow_sti: nop; nop; cli");
    EXPECT_EQ(count[0x60], 1);
    EXPECT_EQ(last_rip, (u64)shadow_sti);
    self(0x60);
    __asm__ volatile("sti; cli; nop; nop");
    EXPECT_EQ(count[0x60], 1); /* not even one instruction with interrupts on */
    __asm__ volatile("mov %%ss, %%eax; push $0x202; popf; .globl shadow_popf; shadow_popf: nop; cli"
                     :
                     :
                     : "rax", "cc", "memory");
    EXPECT_EQ(count[0x60], 2);
    EXPECT_EQ(last_rip, (u64)shadow_popf); /* popf has no shadow */
    APIC(APIC_TPR) = 0x70;
    self(0x60);
    __asm__ volatile(
        "mov %%ss, %%ecx; xor %%eax, %%eax; sti; nop; mov %%rax, %%cr8; .globl no_shadow; no_shadow: nop; cli"
        :
        :
        : "rax", "rcx", "memory");
    EXPECT_EQ(last_rip, (u64)no_shadow);
    EXPECT_EQ(count[0x60], 3);
    self(0x60);
    __asm__ volatile("mov %%ss, %%ecx; sti; mov %%ecx, %%ss; nop; .globl shadow_ss; shadow_ss: nop; nop; cli"
                     :
                     :
                     : "rcx", "memory");
    EXPECT_EQ(count[0x60], 4);
}

static void test_halt(void)
{
    apic_on();
    for (int i = 0; i < 20; i++) {
        self(0x60);
        __asm__ volatile("sti; hlt; cli" : : : "memory"); /* it waits already: hlt ends at once */
    }
    EXPECT_EQ(count[0x60], 20);
}

static void test_timer_one_shot(void)
{
    apic_on();
    APIC(APIC_DIVIDE) = 3; /* by 16 */
    APIC(APIC_TIMER) = 0x41;
    APIC(APIC_INITIAL) = 200000;
    u32 first = APIC(APIC_CURRENT);
    EXPECT(first <= 200000 && first > 0);
    EXPECT(WAIT(APIC(APIC_CURRENT) < first));
    EXPECT(WAIT(count[0x41] == 1));
    EXPECT_EQ(APIC(APIC_CURRENT), 0);
    u64 end = read_tsc() + 20000000;
    while (read_tsc() < end)
        enable();
    EXPECT_EQ(count[0x41], 1);
    APIC(APIC_INITIAL) = 1000000;
    APIC(APIC_INITIAL) = 0; /* stopped */
    EXPECT_EQ(APIC(APIC_CURRENT), 0);
    APIC(APIC_TIMER) = MASKED | 0x41;
    APIC(APIC_INITIAL) = 1000; /* runs, but is not delivered */
    EXPECT(WAIT(APIC(APIC_CURRENT) == 0));
    EXPECT_EQ(count[0x41], 1);
    EXPECT_EQ(irr(0x41), 0);
}

static void test_timer_periodic(void)
{
    apic_on();
    APIC(APIC_DIVIDE) = 3;
    APIC(APIC_TIMER) = 0x20000 | 0x42;
    APIC(APIC_INITIAL) = 20000;
    EXPECT(WAIT(count[0x42] >= 10));
    /* and out of hlt */
    unsigned before = count[0x42];
    for (int i = 0; i < 5; i++)
        __asm__ volatile("sti; hlt; cli" : : : "memory");
    EXPECT(count[0x42] >= before + 5);
    APIC(APIC_INITIAL) = 0;
    APIC(APIC_TIMER) = MASKED;
    enable();
}

static void test_timer_deadline(void)
{
    if (!(cpuid(1, 0).c >> 24 & 1))
        return skip("no TSC deadline");
    apic_on();
    APIC(APIC_TIMER) = 0x40000 | 0x43;
    __asm__ volatile("mfence");
    u64 deadline = read_tsc() + 3000000;
    write_msr(0x6e0, deadline);
    EXPECT_EQ(read_msr(0x6e0), deadline);
    EXPECT(WAIT(count[0x43] == 1));
    EXPECT(read_tsc() >= deadline);
    EXPECT_EQ(read_msr(0x6e0), 0);
    write_msr(0x6e0, 1); /* long past: at once */
    EXPECT(WAIT(count[0x43] == 2));
    write_msr(0x6e0, read_tsc() + 3000000);
    write_msr(0x6e0, 0); /* disarmed */
    u64 end = read_tsc() + 9000000;
    while (read_tsc() < end)
        enable();
    EXPECT_EQ(count[0x43], 2);
    write_msr(0x6e0, read_tsc() + 2000000);
    __asm__ volatile("sti; hlt; cli" : : : "memory");
    EXPECT_EQ(count[0x43], 3);
    APIC(APIC_TIMER) = MASKED;
}

static void test_x2apic(void)
{
    if (!(cpuid(1, 0).c >> 21 & 1))
        return skip("no x2APIC");
    apic_on();
    u64 base = read_msr(0x1b);
    EXPECT_TRAP(CATCH((void)read_msr(0x802)), GP, 0); /* not while it is off */
    write_msr(0x1b, base | 1 << 10);
    x2apic = true;
    EXPECT_EQ(read_msr(0x802), cpuid(11, 0).d);
    EXPECT_EQ(read_msr(0x80f), 0x1ff);
    write_msr(0x83f, 0x66); /* self IPI */
    enable();
    EXPECT_EQ(count[0x66], 1);
    write_msr(0x830, (u64)read_msr(0x802) << 32 | 0x67);
    enable();
    EXPECT_EQ(count[0x67], 1);
    write_msr(0x808, 0x70);
    EXPECT_EQ(read_cr8(), 7);
    write_msr(0x808, 0);
    EXPECT_TRAP(CATCH(write_msr(0x80b, 1)), GP, 0); /* the end of an interrupt is 0 */
    EXPECT_TRAP(CATCH(write_msr(0x802, 1)), GP, 0); /* read-only */
    EXPECT_TRAP(CATCH((void)read_msr(0x831)), GP, 0);
    EXPECT_TRAP(CATCH(write_msr(0x1b, base)), GP, 0); /* not back without switching off */
    write_msr(0x1b, base & ~(3ull << 10));
    write_msr(0x1b, base);
    x2apic = false;
    EXPECT_EQ(APIC(APIC_SVR) & 0x1ff, 0xff); /* as after reset */
    apic_on();
}

/* The 8259s and the PIT, as a PC boots. */
static void on_pic(struct frame *f)
{
    count[f->vector]++;
    out8(0x20, 0x20);
}

static void pic_start(void)
{
    out8(0x20, 0x11), out8(0x21, 0xf0), out8(0x21, 4), out8(0x21, 1); /* master at 0xf0 */
    out8(0xa0, 0x11), out8(0xa1, 0xf8), out8(0xa1, 2), out8(0xa1, 1);
    out8(0x21, 0xff);
    out8(0xa1, 0xff);
    for (unsigned vector = 0xf0; vector < 0xf8; vector++)
        set_handler(vector, on_pic);
}

static void pit_program(u8 mode, u16 value)
{
    out8(0x43, mode);
    out8(0x40, (u8)value);
    out8(0x40, (u8)(value >> 8));
}

static void test_pit_pic(void)
{
    apic_on();
    pic_start();
    APIC(APIC_LINT0) = 0x700; /* ExtINT */
    pit_program(0x34, 2000);  /* rate generator, 1.7 ms */
    out8(0x21, 0xfe);
    EXPECT(WAIT(count[0xf0] >= 5));
    out8(0x21, 0xff);
    enable();
    enable();
    unsigned n = count[0xf0];
    u64 end = read_tsc() + 20000000;
    while (read_tsc() < end)
        enable();
    EXPECT_EQ(count[0xf0], n);
    APIC(APIC_LINT0) = MASKED;
}

static void test_pit_one_shot(void)
{
    apic_on();
    pic_start();
    APIC(APIC_LINT0) = 0x700;
    pit_program(0x30, 3000); /* mode 0: interrupt on terminal count */
    enable();
    out8(0x21, 0xfe);
    clear();
    pit_program(0x30, 3000);
    EXPECT(WAIT(count[0xf0] == 1));
    u64 end = read_tsc() + 20000000;
    while (read_tsc() < end)
        enable();
    EXPECT_EQ(count[0xf0], 1);
    out8(0x21, 0xff);
    APIC(APIC_LINT0) = MASKED;
}

static u16 pit_read(void)
{
    out8(0x43, 0); /* latch counter 0 */
    u8 low = in8(0x40);
    return (u16)(low | in8(0x40) << 8);
}

static void test_pit_counts(void)
{
    pit_program(0x34, 0); /* 65536 */
    u16 a = pit_read(), b = a;
    u64 end = read_tsc() + 4000000000ull;
    while (b == a && read_tsc() < end)
        b = pit_read();
    EXPECT(b != a);
    /* channel 2 through port 0x61: how kernels measure the TSC */
    out8(0x61, (in8(0x61) & ~2) | 1);
    out8(0x43, 0xb0);
    out8(0x42, 0xff);
    out8(0x42, 0x0f); /* 4095: 3.4 ms */
    EXPECT_EQ(in8(0x61) & 0x20, 0);
    u64 start = read_tsc();
    while (!(in8(0x61) & 0x20) && read_tsc() < start + 4000000000ull)
        ;
    EXPECT(in8(0x61) & 0x20);
    EXPECT(read_tsc() - start > 1000000);
}

/* The PIT through the I/O APIC: pin 2, or 0 where nothing is overridden. */
static void ioapic_write(u32 reg, u32 value)
{
    *(volatile u32 *)0xfec00000 = reg;
    *(volatile u32 *)0xfec00010 = value;
}
static u32 ioapic_read(u32 reg)
{
    *(volatile u32 *)0xfec00000 = reg;
    return *(volatile u32 *)0xfec00010;
}

static void test_pit_ioapic(void)
{
    apic_on();
    EXPECT((ioapic_read(1) >> 16 & 0xff) >= 23);
    ioapic_write(0x10 + 2 * 2 + 1, APIC(APIC_ID));
    ioapic_write(0x10 + 2 * 2, 0x44);
    EXPECT_EQ(ioapic_read(0x10 + 2 * 2) & ~0x5000u, 0x44);
    pit_program(0x34, 2000);
    EXPECT(WAIT(count[0x44] >= 5));
    ioapic_write(0x10 + 2 * 2, MASKED | 0x44);
    enable();
    enable();
    unsigned n = count[0x44];
    u64 end = read_tsc() + 20000000;
    while (read_tsc() < end)
        enable();
    EXPECT_EQ(count[0x44], n);
}

/* NMI: not masked by IF, masked by itself until iret. */
static volatile unsigned nmis, nmi_depth, nmi_deepest;
static void on_nmi(struct frame *f)
{
    (void)f;
    nmis++;
    nmi_depth++;
    if (nmi_depth > nmi_deepest)
        nmi_deepest = nmi_depth;
    if (nmis == 1) { /* another one comes, but not before iretq */
        APIC(APIC_ICR_HIGH) = APIC(APIC_ID);
        APIC(APIC_ICR) = 0x4400;
        for (int i = 0; i < 1000; i++)
            __asm__ volatile("pause");
    }
    nmi_depth--;
}

static void test_nmi(void)
{
    apic_on();
    set_handler(NMI, on_nmi);
    nmis = nmi_depth = nmi_deepest = 0;
    APIC(APIC_ICR_HIGH) = APIC(APIC_ID);
    APIC(APIC_ICR) = 0x4400; /* NMI, asserted */
    EXPECT(WAIT(nmis == 2));
    EXPECT_EQ(nmi_deepest, 1);
    set_handler(NMI, NULL);
}

/* Interrupts while ring 3 runs, from a periodic timer: all registers survive. */
USER_CODE(u_spin, "mov $100000, %ecx\nxor %eax, %eax\nxor %edx, %edx\n1: add $3, %rax\nxor %rax, %rdx\nrol $7, "
                  "%rdx\nadc %rcx, %rdx\ndec %ecx\njnz 1b");
static void test_user(void)
{
    struct context c = user_context(u_spin);
    EXPECT_TRAP(run(&c), BACK, 0);
    u64 wanted = trap.f.rdx;
    apic_on();
    APIC(APIC_DIVIDE) = 11; /* by 1 */
    APIC(APIC_TIMER) = 0x20000 | 0x45;
    APIC(APIC_INITIAL) = 60000;
    c.flags = 2 | F_IF;
    u64 end = read_tsc() + 4000000000ull;
    while (count[0x45] < 20 && read_tsc() < end) {
        EXPECT_TRAP(run(&c), BACK, 0);
        EXPECT_EQ(trap.f.rdx, wanted);
        EXPECT_EQ(trap.f.rax, 300000);
    }
    APIC(APIC_INITIAL) = 0;
    APIC(APIC_TIMER) = MASKED;
    enable();
    EXPECT(count[0x45] >= 20);
}

/* A string operation under a storm of interrupts does not lose its place. */
static void test_rep(void)
{
    static u8 from[65536], to[65536];
    for (unsigned i = 0; i < sizeof from; i++)
        from[i] = (u8)(i * 7 + (i >> 8));
    apic_on();
    APIC(APIC_DIVIDE) = 11;
    APIC(APIC_TIMER) = 0x20000 | 0x46;
    APIC(APIC_INITIAL) = 30000;
    for (int i = 0; i < 30; i++) {
        memset(to, 0, sizeof to);
        __asm__ volatile("sti");
        memcpy(to, from, sizeof to);
        __asm__ volatile("cli");
        EXPECT_EQ(memcmp(to, from, sizeof to), 0);
    }
    APIC(APIC_INITIAL) = 0;
    APIC(APIC_TIMER) = MASKED;
    enable();
}

const struct test tests[] = {
    {"apic-registers", test_registers, NULL},
    {"self-ipi", test_self_ipi, NULL},
    {"priority", test_priority, NULL},
    {"nesting", test_nesting, NULL},
    {"task-priority", test_task_priority, NULL},
    {"shadow", test_shadow, NULL},
    {"halt", test_halt, NULL},
    {"timer-one-shot", test_timer_one_shot, NULL},
    {"timer-periodic", test_timer_periodic, NULL},
    {"timer-deadline", test_timer_deadline, NULL},
    {"x2apic", test_x2apic, NULL},
    {"pit-8259", test_pit_pic, NULL},
    {"pit-one-shot", test_pit_one_shot, NULL},
    {"pit-counts", test_pit_counts, NULL},
    {"pit-ioapic", test_pit_ioapic, NULL},
    {"nmi", test_nmi, NULL},
    {"user", test_user, NULL},
    {"rep", test_rep, NULL},
    {NULL, NULL, NULL},
};
