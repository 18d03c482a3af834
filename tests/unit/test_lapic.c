#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <unistd.h>

#include "board.h"

#include "cpu/cpu.h"
#include "devices/lapic.h"

enum { CPUS = 4 };
static struct cpu cpu[CPUS];
static unsigned kicks[CPUS], eois, eoi_vector, extints;
static struct board *extint_board;

static void kick(void *opaque, unsigned i)
{
    kicks[i]++;
}
static void note_eoi(void *opaque, unsigned vector)
{
    eois++, eoi_vector = vector;
}

static int give_extint(void *opaque)
{
    extints++;
    lapic_set_lint(extint_board->device.state, 0, false);
    return 0x77;
}

static uint64_t tsc_khz(void)
{
    static uint64_t khz;
    if (!khz) {
        uint64_t ns = clock_ns(), tsc = __builtin_ia32_rdtsc();
        usleep(20000);
        khz = (__builtin_ia32_rdtsc() - tsc) * 1000000 / (clock_ns() - ns);
    }
    return khz;
}

static struct board *lapic_board(bool virtual_wire)
{
    struct lapic_config config = {CPUS, virtual_wire};
    struct board *b = board_create(&lapic_class, &config);
    memset(cpu, 0, sizeof(cpu));
    memset(kicks, 0, sizeof(kicks));
    eois = extints = 0;
    extint_board = b;
    for (unsigned i = 0; i < CPUS; i++) {
        cpu[i].memory = b->memory;
        cpu[i].tsc_khz = tsc_khz();
        cpu[i].tsc_offset = -(int64_t)__builtin_ia32_rdtsc();
        lapic_attach_cpu(b->device.state, i, &cpu[i], kick, NULL);
    }
    lapic_set_eoi(b->device.state, note_eoi, NULL);
    lapic_set_extint(b->device.state, give_extint, NULL);
    b->bus->msi = lapic_msi;
    b->bus->msi_opaque = b->device.state;
    return b;
}

static uint32_t get(struct board *b, unsigned reg)
{
    return readl(b, LAPIC_BASE + reg);
}
static void put(struct board *b, unsigned reg, uint32_t v)
{
    writel(b, LAPIC_BASE + reg, v);
}
static bool pending(unsigned i)
{
    return cpu[i].irq->pending(cpu[i].irq_opaque);
}
static int acknowledge(unsigned i)
{
    return cpu[i].irq->acknowledge(cpu[i].irq_opaque);
}
static bool wrmsr(unsigned i, uint32_t n, uint64_t v)
{
    return cpu[i].irq->write_msr(cpu[i].irq_opaque, n, v);
}
static bool rdmsr(unsigned i, uint32_t n, uint64_t *v)
{
    return cpu[i].irq->read_msr(cpu[i].irq_opaque, n, v);
}

static uint64_t msr(unsigned i, uint32_t n)
{
    uint64_t v = 0;
    assert_true(rdmsr(i, n, &v));
    return v;
}

/* Takes the request bits of vCPU i, as its thread would. */
static uint32_t requests(unsigned i)
{
    return atomic_exchange(&cpu[i].request, 0);
}

static void enable_all(struct board *b)
{
    for (unsigned i = 0; i < CPUS; i++) {
        bus_set_initiator(b->bus, i);
        put(b, 0xf0, 0x1ff);
    }
    bus_set_initiator(b->bus, 0);
}

static void enable_x2apic(void)
{
    for (unsigned i = 0; i < CPUS; i++) {
        assert_true(wrmsr(i, 0x1b, msr(i, 0x1b) | 0x400));
        assert_true(wrmsr(i, 0x80f, 0x1ff));
    }
}

static void registers_after_reset(void **state)
{
    struct board *b = lapic_board(false);
    assert_int_equal(get(b, 0x20), 0);
    assert_int_equal(get(b, 0x30), 0x00050014);
    assert_int_equal(get(b, 0xf0), 0xff);
    assert_int_equal(get(b, 0xe0), 0xffffffff);
    for (unsigned reg = 0x320; reg <= 0x370; reg += 0x10)
        assert_int_equal(get(b, reg), 0x10000);
    put(b, 0x350, 0x700); /* the mask stays while software has not enabled the APIC */
    assert_int_equal(get(b, 0x350), 0x10700);
    assert_int_equal(msr(0, 0x1b), 0xfee00900);
    assert_int_equal(msr(1, 0x1b), 0xfee00800);
    bus_set_initiator(b->bus, 2);
    assert_int_equal(get(b, 0x20), 2 << 24);
    bus_set_initiator(b->bus, 0);
    board_destroy(b);
}

static void a_message_becomes_an_interrupt(void **state)
{
    struct board *b = lapic_board(false);
    bus_msi(b->bus, 0xfee00000, 0x41);
    assert_false(pending(0)); /* disabled by software */
    enable_all(b);
    bus_msi(b->bus, 0xfee00000, 0x41);
    assert_true(pending(0));
    assert_false(pending(1));
    assert_int_equal(requests(0), REQ_IRQ);
    assert_int_equal(kicks[0], 1);
    assert_int_equal(get(b, 0x220), 2); /* IRR */
    assert_int_equal(acknowledge(0), 0x41);
    assert_false(pending(0));
    assert_int_equal(acknowledge(0), -1);
    assert_int_equal(get(b, 0x120), 2); /* ISR */
    assert_int_equal(get(b, 0xa0), 0x40);
    put(b, 0xb0, 0);
    assert_int_equal(get(b, 0x120), 0);
    assert_int_equal(eois, 0); /* an edge tells no I/O APIC */
    board_destroy(b);
}

static void priorities_hold_back(void **state)
{
    struct board *b = lapic_board(false);
    enable_all(b);
    bus_msi(b->bus, 0xfee00000, 0x45);
    assert_int_equal(acknowledge(0), 0x45);
    bus_msi(b->bus, 0xfee00000, 0x4f); /* the same class waits */
    assert_false(pending(0));
    bus_msi(b->bus, 0xfee00000, 0x50);
    assert_true(pending(0));
    assert_int_equal(acknowledge(0), 0x50);
    requests(0);
    put(b, 0xb0, 0);
    assert_false(pending(0));
    put(b, 0xb0, 0);
    assert_true(pending(0));
    assert_int_equal(requests(0), REQ_IRQ);
    cpu[0].irq->set_tpr(cpu[0].irq_opaque, 4);
    assert_int_equal(cpu[0].irq->get_tpr(cpu[0].irq_opaque), 4);
    assert_int_equal(get(b, 0x80), 0x40);
    assert_false(pending(0));
    assert_int_equal(acknowledge(0), -1);
    requests(0);
    cpu[0].irq->set_tpr(cpu[0].irq_opaque, 3);
    assert_int_equal(requests(0), REQ_IRQ);
    assert_int_equal(acknowledge(0), 0x4f);
    board_destroy(b);
}

static void the_end_of_a_level_is_broadcast(void **state)
{
    struct board *b = lapic_board(false);
    enable_all(b);
    bus_msi(b->bus, 0xfee00000, 0xc061);
    assert_int_equal(acknowledge(0), 0x61);
    assert_int_equal(get(b, 0x1b0), 2); /* TMR */
    put(b, 0xb0, 0);
    assert_int_equal(eois, 1);
    assert_int_equal(eoi_vector, 0x61);
    board_destroy(b);
}

static unsigned who(unsigned vector)
{
    unsigned mask = 0;
    for (unsigned i = 0; i < CPUS; i++)
        if (acknowledge(i) == (int)vector) {
            mask |= 1u << i;
            bus_set_initiator(extint_board->bus, i);
            if (msr(i, 0x1b) & 0x400)
                wrmsr(i, 0x80b, 0);
            else
                put(extint_board, 0xb0, 0);
        }
    bus_set_initiator(extint_board->bus, 0);
    return mask;
}

static void destinations_of_xapic(void **state)
{
    struct board *b = lapic_board(false);
    enable_all(b);
    bus_msi(b->bus, 0xfee02000, 0x41);
    assert_int_equal(who(0x41), 4);
    bus_msi(b->bus, 0xfeeff000, 0x41);
    assert_int_equal(who(0x41), 15);
    for (unsigned i = 0; i < CPUS; i++) {
        bus_set_initiator(b->bus, i);
        put(b, 0xd0, 1u << (24 + i));
    }
    bus_msi(b->bus, 0xfee0a004, 0x41); /* flat: 1 and 3 */
    assert_int_equal(who(0x41), 10);
    for (unsigned i = 0; i < CPUS; i++) { /* cluster model: two clusters of two */
        bus_set_initiator(b->bus, i);
        put(b, 0xe0, 0x0fffffff);
        put(b, 0xd0, (i / 2) << 28 | 1u << (24 + i % 2));
    }
    bus_msi(b->bus, 0xfee13004, 0x41);
    assert_int_equal(who(0x41), 12);
    bus_msi(b->bus, 0xfeef1004, 0x41); /* the first of each */
    assert_int_equal(who(0x41), 5);
    board_destroy(b);
}

static void lowest_priority_takes_turns(void **state)
{
    struct board *b = lapic_board(false);
    unsigned seen = 0;
    enable_all(b);
    for (unsigned i = 0; i < CPUS; i++) {
        bus_set_initiator(b->bus, i);
        put(b, 0xd0, 1u << (24 + i));
    }
    bus_set_initiator(b->bus, 0);
    for (unsigned i = 0; i < CPUS; i++) {
        bus_msi(b->bus, 0xfee0f004, 0x141);
        unsigned one = who(0x41);
        assert_int_equal(__builtin_popcount(one), 1);
        seen |= one;
    }
    assert_int_equal(seen, 15);
    cpu[0].irq->set_tpr(cpu[0].irq_opaque, 1);
    cpu[1].irq->set_tpr(cpu[1].irq_opaque, 1);
    cpu[3].irq->set_tpr(cpu[3].irq_opaque, 1);
    bus_msi(b->bus, 0xfee0f004, 0x141);
    assert_int_equal(who(0x41), 4);
    board_destroy(b);
}

static void interprocessor_interrupts(void **state)
{
    struct board *b = lapic_board(false);
    enable_all(b);
    bus_set_initiator(b->bus, 1);
    put(b, 0x310, 3 << 24);
    put(b, 0x300, 0x4042);
    assert_int_equal(get(b, 0x300), 0x4042); /* never busy */
    assert_int_equal(who(0x42), 8);
    bus_set_initiator(b->bus, 1);
    put(b, 0x300, 0x44042); /* self */
    assert_int_equal(who(0x42), 2);
    bus_set_initiator(b->bus, 1);
    put(b, 0x300, 0x84042); /* all */
    assert_int_equal(who(0x42), 15);
    bus_set_initiator(b->bus, 1);
    put(b, 0x300, 0xc4042); /* others */
    assert_int_equal(who(0x42), 13);
    for (unsigned i = 0; i < CPUS; i++)
        requests(i);
    bus_set_initiator(b->bus, 1);
    put(b, 0x300, 0xc4400); /* NMI to the others */
    assert_int_equal(requests(0), REQ_NMI);
    assert_int_equal(requests(1), 0);
    board_destroy(b);
}

static void init_and_start_up(void **state)
{
    struct board *b = lapic_board(false);
    enable_all(b);
    put(b, 0x310, 2 << 24);
    put(b, 0x300, 0xc500); /* INIT, assert, level */
    assert_int_equal(requests(2), REQ_INIT);
    bus_set_initiator(b->bus, 2);
    assert_int_equal(get(b, 0xf0), 0xff);    /* as after reset, */
    assert_int_equal(get(b, 0x20), 2 << 24); /* but its ID */
    bus_set_initiator(b->bus, 0);
    put(b, 0x300, 0x8500); /* de-assert */
    assert_int_equal(requests(2), 0);
    put(b, 0x300, 0x4609);
    assert_int_equal(requests(2), REQ_SIPI);
    assert_int_equal(cpu[2].sipi_vector, 9);
    assert_int_equal(requests(1), 0);
    board_destroy(b);
}

static void x2apic_is_entered_and_left_by_the_rules(void **state)
{
    struct board *b = lapic_board(false);
    uint64_t v;
    assert_false(rdmsr(0, 0x802, &v));
    assert_false(wrmsr(0, 0x1b, 0xfee00500)); /* x2APIC without enable */
    assert_false(wrmsr(0, 0x1b, 0xfee01900)); /* elsewhere */
    assert_false(wrmsr(0, 0x1b, 0xfee00901)); /* reserved bit */
    assert_true(wrmsr(0, 0x1b, 0xfee00100));  /* off */
    assert_int_equal(get(b, 0x30), 0xffffffff);
    assert_false(wrmsr(0, 0x1b, 0xfee00d00)); /* not from off */
    assert_true(wrmsr(0, 0x1b, 0xfee00900));
    enable_x2apic();
    assert_false(wrmsr(0, 0x1b, 0xfee00900)); /* not back to xAPIC */
    assert_int_equal(msr(3, 0x802), 3);
    assert_int_equal(msr(3, 0x80d), 8);
    assert_int_equal(get(b, 0x30), 0xffffffff); /* no memory-mapped registers any more */
    static const uint32_t absent[] = {0x800, 0x801, 0x80e, 0x831, 0x84f, 0x8ff, 0x80b, 0x83f, 0x840};
    for (unsigned i = 0; i < sizeof(absent) / sizeof(absent[0]); i++)
        assert_false(rdmsr(0, absent[i], &v));
    static const uint32_t read_only[] = {0x802, 0x803, 0x80a, 0x80d, 0x810, 0x818, 0x827, 0x839};
    for (unsigned i = 0; i < sizeof(read_only) / sizeof(read_only[0]); i++)
        assert_false(wrmsr(0, read_only[i], 0));
    assert_false(wrmsr(0, 0x808, 0x100));
    assert_false(wrmsr(0, 0x80b, 1));
    assert_false(wrmsr(0, 0x832, 1u << 19));
    assert_false(wrmsr(0, 0x830, 1u << 20));
    board_destroy(b);
}

static void x2apic_interrupts(void **state)
{
    struct board *b = lapic_board(false);
    enable_x2apic();
    assert_true(wrmsr(0, 0x830, 3ull << 32 | 0x42));
    assert_int_equal(who(0x42), 8);
    assert_true(wrmsr(0, 0x830, 0x0005ull << 32 | 0x842)); /* logical, cluster 0, members 0 and 2 */
    assert_int_equal(who(0x42), 5);
    assert_true(wrmsr(0, 0x830, 0xffffffffull << 32 | 0x42));
    assert_int_equal(who(0x42), 15);
    assert_true(wrmsr(0, 0x830, 0xffull << 32 | 0x42)); /* 255 is an ID here */
    assert_int_equal(who(0x42), 0);
    assert_true(wrmsr(2, 0x83f, 0x42));
    assert_int_equal(who(0x42), 4);
    bus_msi(b->bus, 0xfee0a004, 0x42); /* messages have 8 bits: cluster 0 */
    assert_int_equal(who(0x42), 10);
    board_destroy(b);
}

static void errors_are_recorded(void **state)
{
    struct board *b = lapic_board(false);
    enable_all(b);
    put(b, 0x370, 0xfe);
    put(b, 0x300, 0x44005); /* an illegal vector to itself */
    assert_int_equal(get(b, 0x280), 0);
    put(b, 0x280, 0);
    assert_int_equal(get(b, 0x280), 0x20);
    assert_int_equal(acknowledge(0), 0xfe);
    put(b, 0xb0, 0);
    bus_msi(b->bus, 0xfee00000, 0x05);
    get(b, 0x40); /* no register */
    put(b, 0x280, 0);
    assert_int_equal(get(b, 0x280), 0xc0);
    put(b, 0x370, 5); /* an error interrupt that is an error */
    bus_msi(b->bus, 0xfee00000, 0x05);
    board_destroy(b);
}

static void the_8259_comes_through_lint0(void **state)
{
    struct board *b = lapic_board(true);
    lapic_set_lint(b->device.state, 0, true);
    assert_true(pending(0));
    assert_false(pending(1));
    assert_int_equal(acknowledge(0), 0x77);
    assert_false(pending(0));
    put(b, 0x350, 0x10700);
    lapic_set_lint(b->device.state, 0, true);
    assert_false(pending(0));
    put(b, 0x350, 0x700);
    assert_true(pending(0));
    cpu[0].irq->set_tpr(cpu[0].irq_opaque, 15); /* priorities are no matter for it */
    assert_true(pending(0));
    assert_int_equal(acknowledge(0), 0x77);
    put(b, 0x350, 0x55); /* as a fixed interrupt: on the edge */
    cpu[0].irq->set_tpr(cpu[0].irq_opaque, 0);
    lapic_set_lint(b->device.state, 0, true);
    assert_int_equal(acknowledge(0), 0x55);
    lapic_set_lint(b->device.state, 0, false);
    assert_true(wrmsr(0, 0x1b, 0xfee00100)); /* with the APIC off it is the INTR pin */
    lapic_set_lint(b->device.state, 0, true);
    assert_true(pending(0));
    assert_int_equal(acknowledge(0), 0x77);
    requests(1);
    lapic_set_lint(b->device.state, 1, true); /* LINT1: NMI */
    assert_int_equal(requests(1), REQ_NMI);
    bus_msi(b->bus, 0xfee01000, 0x700); /* ExtINT as a message */
    assert_int_equal(acknowledge(1), 0x77);
    assert_false(pending(1));
    board_destroy(b);
}

static void one_shot_and_periodic(void **state)
{
    struct board *b = lapic_board(false);
    enable_all(b);
    put(b, 0x3e0, 3); /* divide by 16 */
    put(b, 0x320, 0x31);
    put(b, 0x380, 62500); /* 1 ms */
    assert_in_range(get(b, 0x390), 1, 62500);
    board_run(b, 5000000);
    assert_int_equal(get(b, 0x390), 0);
    assert_int_equal(acknowledge(0), 0x31);
    put(b, 0xb0, 0);
    board_run(b, 3000000);
    assert_false(pending(0));
    put(b, 0x320, 0x20031);
    uint64_t start = clock_ns();
    unsigned ticks = 0;
    put(b, 0x380, 62500);
    for (unsigned i = 0; i < 50; i++) {
        board_run(b, 1000000);
        if (acknowledge(0) == 0x31) {
            ticks++;
            put(b, 0xb0, 0);
        }
    }
    assert_in_range(ticks, 40, (clock_ns() - start) / 1000000 + 1);
    /* A new divider changes the pace and not the count. */
    put(b, 0x320, 0x31);
    put(b, 0x380, 4000000000u);
    uint32_t one = get(b, 0x390);
    put(b, 0x3e0, 0xb);
    uint32_t two = get(b, 0x390);
    assert_in_range(one - two, 0, 5000000);
    put(b, 0x380, 0);
    assert_int_equal(get(b, 0x390), 0);
    put(b, 0x320, 0x20031); /* the shortest period does not hang the host */
    put(b, 0x380, 1);
    board_run(b, 2000000);
    assert_true(pending(0));
    board_destroy(b);
}

static uint64_t guest_tsc(unsigned i)
{
    return __builtin_ia32_rdtsc() + (uint64_t)cpu[i].tsc_offset;
}

static void tsc_deadline(void **state)
{
    struct board *b = lapic_board(false);
    enable_x2apic();
    assert_true(wrmsr(1, 0x6e0, 12345));
    assert_int_equal(msr(1, 0x6e0), 0); /* not in that mode */
    assert_true(wrmsr(1, 0x832, 0x40000 | 0xec));
    uint64_t deadline = guest_tsc(1) + cpu[1].tsc_khz * 3; /* 3 ms */
    assert_true(wrmsr(1, 0x6e0, deadline));
    assert_int_equal(msr(1, 0x6e0), deadline);
    board_run(b, 1000000);
    assert_true(!pending(1) || guest_tsc(1) >= deadline); /* a busy host may have taken longer */
    board_run(b, 4000000);
    assert_true(pending(1));
    assert_true(guest_tsc(1) >= deadline);
    assert_int_equal(msr(1, 0x6e0), 0);
    assert_int_equal(acknowledge(1), 0xec);
    assert_true(wrmsr(1, 0x80b, 0));
    assert_true(wrmsr(1, 0x6e0, 1)); /* past: at once */
    assert_int_equal(acknowledge(1), 0xec);
    assert_true(wrmsr(1, 0x80b, 0));
    assert_true(wrmsr(1, 0x6e0, guest_tsc(1) + cpu[1].tsc_khz));
    assert_true(wrmsr(1, 0x6e0, 0)); /* disarmed */
    board_run(b, 3000000);
    assert_false(pending(1));
    assert_true(wrmsr(1, 0x6e0, UINT64_MAX)); /* for ever */
    board_run(b, 1000000);
    assert_false(pending(1));
    enum { N = 100000 };
    uint64_t start = clock_ns();
    for (unsigned i = 0; i < N; i++)
        wrmsr(1, 0x6e0, guest_tsc(1) + cpu[1].tsc_khz * 1000 + i);
    print_message("a TSC deadline: %lu ns\n", (unsigned long)((clock_ns() - start) / N));
    board_destroy(b);
}

static void a_restored_timer_goes_on(void **state)
{
    struct board *b = lapic_board(false);
    enable_all(b);
    put(b, 0x3e0, 0xb);
    put(b, 0x320, 0x31);
    put(b, 0x380, 50000000); /* 50 ms */
    const struct device_class *class = &lapic_class;
    void *image = malloc(class->save_size);
    class->pre_save(&b->device);
    memcpy(image, (char *)b->device.state + class->save_offset, class->save_size);
    class->reset(&b->device);
    usleep(60000);
    memcpy((char *)b->device.state + class->save_offset, image, class->save_size);
    class->post_restore(&b->device);
    free(image);
    assert_in_range(get(b, 0x390), 20000000, 50000000); /* a busy host takes its time */
    board_run(b, 80000000);
    assert_int_equal(acknowledge(0), 0x31);
    board_destroy(b);
}

/*
 * Two vCPU threads that only look at their APIC when REQ_IRQ says so, as a vCPU does, and interrupt
 * each other in turns while the loop's thread fires their deadlines.  A lost request would hang them.
 */
enum { ROUNDS = 5000 };
struct vcpu {
    unsigned i;
    unsigned ipis, timers;
    struct board *b;
};

static bool vcpu_step(struct vcpu *v)
{
    if (!(atomic_fetch_and(&cpu[v->i].request, ~(uint32_t)REQ_IRQ) & REQ_IRQ) || !pending(v->i))
        return false;
    int vector = acknowledge(v->i);
    if (vector < 0)
        return false;
    wrmsr(v->i, 0x80b, 0);
    if (vector == 0xec) {
        v->timers++;
        wrmsr(v->i, 0x6e0, guest_tsc(v->i) + cpu[v->i].tsc_khz / 50); /* 20 us */
    }
    v->ipis += vector == 0x42;
    return vector == 0x42;
}

static void *vcpu_run(void *opaque)
{
    struct vcpu *v = opaque;
    bus_set_initiator(v->b->bus, v->i);
    wrmsr(v->i, 0x832, 0x40000 | 0xec);
    wrmsr(v->i, 0x6e0, 1);
    if (v->i == 0)
        wrmsr(0, 0x830, 1ull << 32 | 0x42);
    uint64_t give_up = clock_ns() + 20000000000ull;
    while ((v->ipis < ROUNDS || v->timers < 20) && clock_ns() < give_up) {
        if (vcpu_step(v))
            wrmsr(v->i, 0x830, (uint64_t)!v->i << 32 | 0x42);
        else
            sched_yield();
    }
    wrmsr(v->i, 0x6e0, 0);
    return NULL;
}

static void *loop_thread(void *opaque)
{
    struct board *b = opaque;
    loop_run(b->loop);
    return NULL;
}

static void threads_lose_no_interrupt(void **state)
{
    struct board *b = lapic_board(false);
    struct vcpu v[2] = {{0, 0, 0, b}, {1, 0, 0, b}};
    pthread_t thread[2], loop;
    enable_x2apic();
    pthread_create(&loop, NULL, loop_thread, b);
    for (unsigned i = 0; i < 2; i++)
        pthread_create(&thread[i], NULL, vcpu_run, &v[i]);
    for (unsigned i = 0; i < 2; i++)
        pthread_join(thread[i], NULL);
    loop_stop(b->loop);
    pthread_join(loop, NULL);
    for (unsigned i = 0; i < 2; i++) {
        assert_true(v[i].ipis >= ROUNDS);
        assert_true(v[i].timers >= 20);
    }
    board_destroy(b);
}

static void garbage(void **state)
{
    struct board *b = lapic_board(true);
    uint64_t seed = 5, v;
    for (unsigned mode = 0; mode < 2; mode++) {
        board_garbage(b, BUS_MEM, LAPIC_BASE, 0x1000, 1 + mode);
        board_garbage(b, BUS_MEM, LAPIC_BASE, 0x400, 3 + mode);
        if (mode == 0)
            enable_x2apic();
        for (unsigned i = 0; i < 100000; i++) {
            uint64_t r = board_random(&seed);
            unsigned who_does = r & 3;
            uint32_t index = r & 4 ? 0x800 + (r >> 8 & 0x3f) : r & 64 ? 0x6e0 : 0x800 + (r >> 8 & 0xff);
            uint64_t value = board_random(&seed) & (r & 8 ? UINT64_MAX : 0xf00000fffull);
            r & 16 ? wrmsr(who_does, index, value) : rdmsr(who_does, index, &v);
            if (r & 32)
                acknowledge(who_does);
            bus_msi(b->bus, board_random(&seed), (uint32_t)board_random(&seed));
        }
        board_run(b, 2000000);
    }
    board_garbage_state(b, BUS_MEM, LAPIC_BASE, 0x400);
    board_destroy(b);
}

/* With nothing else to come, the guest may end an interrupt by a word in its memory. */
static void an_interrupt_ends_by_memory(void **state)
{
    struct board *b = lapic_board(false);
    enum { AT = 0x5000 };
    uint32_t *word = (uint32_t *)(b->memory->base + AT);
    enable_all(b);
    enable_x2apic();
    cpu[1].pv_eoi = AT | 1;
    assert_true(wrmsr(0, 0x830, 1ull << 32 | 0x51));
    requests(1);
    assert_true(acknowledge(1) == 0x51 && *word == 1);
    *word = 0; /* by the guest; nobody sees it yet, but the next one finds its way */
    assert_true(wrmsr(0, 0x830, 1ull << 32 | 0x41));
    assert_true((requests(1) & REQ_IRQ) && pending(1));
    assert_true(acknowledge(1) == 0x41 && *word == 1);
    /* one that comes before the end takes the short way away */
    assert_true(wrmsr(0, 0x830, 1ull << 32 | 0x31));
    assert_true(acknowledge(1) == -1 && *word == 0 && !pending(1));
    assert_true(wrmsr(1, 0x80b, 0));
    assert_true(acknowledge(1) == 0x31);
    *word = 0;
    assert_int_equal(msr(1, 0x811) & 1 << 0x11, 0); /* who looks at the APIC sees that it has ended */
    /* two at once: by the APIC */
    assert_true(wrmsr(0, 0x830, 1ull << 32 | 0x61) && wrmsr(0, 0x830, 1ull << 32 | 0x71));
    assert_true(acknowledge(1) == 0x71 && *word == 0);
    assert_true(wrmsr(1, 0x80b, 0) && acknowledge(1) == 0x61 && *word == 1);
    *word = 0;
    /* a level, of whose end the I/O APIC wants to hear */
    bus_msi(b->bus, LAPIC_BASE | 1 << 12, 0xc081);
    assert_true(acknowledge(1) == 0x81 && *word == 0 && eois == 0);
    assert_true(wrmsr(1, 0x80b, 0) && eois == 1);
    board_destroy(b);
}

static void hypercalls_reach_many(void **state)
{
    struct board *b = lapic_board(false);
    const uint64_t some[] = {1 << 1 | 1 << 2, 0, 1, 0x91}, beyond[] = {UINT64_MAX, UINT64_MAX, 3, 0x91},
                   far[] = {1, 1, UINT64_MAX, 0x91}, nmi[] = {1, 0, 0, 4 << 8}, odd[] = {1, 0, 0, 5 << 8},
                   shorthand[] = {1, 0, 0, 1 << 18 | 0x91};
    enable_all(b);
    enable_x2apic();
    for (unsigned i = 0; i < CPUS; i++)
        requests(i);
    assert_int_equal(cpu[0].irq->send_ipi(cpu[0].irq_opaque, some), 2);
    assert_true(!requests(0) && !requests(1) && (requests(2) & REQ_IRQ) && (requests(3) & REQ_IRQ));
    assert_true(acknowledge(2) == 0x91 && acknowledge(3) == 0x91);
    assert_int_equal(cpu[0].irq->send_ipi(cpu[0].irq_opaque, beyond), 1);
    assert_int_equal(cpu[0].irq->send_ipi(cpu[0].irq_opaque, far), 0);
    assert_int_equal(cpu[3].irq->send_ipi(cpu[3].irq_opaque, nmi), 1);
    assert_true(requests(0) & REQ_NMI);
    assert_int_equal(cpu[3].irq->send_ipi(cpu[3].irq_opaque, odd), 0);
    assert_int_equal(cpu[3].irq->send_ipi(cpu[3].irq_opaque, shorthand), -22);
    assert_int_equal(cpu[3].irq->wake(cpu[3].irq_opaque, 1), 0);
    assert_int_equal(requests(1), REQ_WAKE);
    assert_int_equal(cpu[3].irq->wake(cpu[3].irq_opaque, 1000), 0);
    board_destroy(b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(registers_after_reset),
        cmocka_unit_test(a_message_becomes_an_interrupt),
        cmocka_unit_test(priorities_hold_back),
        cmocka_unit_test(the_end_of_a_level_is_broadcast),
        cmocka_unit_test(destinations_of_xapic),
        cmocka_unit_test(lowest_priority_takes_turns),
        cmocka_unit_test(interprocessor_interrupts),
        cmocka_unit_test(init_and_start_up),
        cmocka_unit_test(x2apic_is_entered_and_left_by_the_rules),
        cmocka_unit_test(x2apic_interrupts),
        cmocka_unit_test(an_interrupt_ends_by_memory),
        cmocka_unit_test(hypercalls_reach_many),
        cmocka_unit_test(errors_are_recorded),
        cmocka_unit_test(the_8259_comes_through_lint0),
        cmocka_unit_test(one_shot_and_periodic),
        cmocka_unit_test(tsc_deadline),
        cmocka_unit_test(a_restored_timer_goes_on),
        cmocka_unit_test(threads_lose_no_interrupt),
        cmocka_unit_test(garbage),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
