/*
 * The chips of a PC: interrupt controllers, timers, clock, keyboard controller, serial port, ACPI. They are wired to
 * each other as in machine/pc.c, and reads and writes of each size go to their ports, registers and MSRs while the
 * input lets time pass. Two vCPUs, that never run, take interrupts.
 */
#include <time.h>

#include "loop.h"

#include "cpu/cpu.h"
#include "devices/acpi_pm.h"
#include "devices/hpet.h"
#include "devices/i8042.h"
#include "devices/i8254.h"
#include "devices/i8259.h"
#include "devices/ioapic.h"
#include "devices/lapic.h"
#include "devices/pvpanic.h"
#include "devices/rtc.h"
#include "devices/uart16550.h"

#define STEPS_MAX 120u
#define CPUS 2u
#define PORT_UART 0x3f8u
#define PINS 24u
#define EVENTS 3

enum part { PIC, IOAPIC, LAPIC, PIT, RTC, HPET, KEYBOARD, UART, POWER, PVPANIC, PARTS };
enum {
    STEP_PORT,
    STEP_MEMORY,
    STEP_HPET,
    STEP_CMOS,
    STEP_MSR,
    STEP_TIME,
    STEP_ACKNOWLEDGE,
    STEP_LINE,
    STEP_INPUT,
    STEP_RESTORE,
    STEP_MESSAGE,
    STEPS
};

struct target {
    struct fuzz_machine m;
    struct irq_line gsi[PINS], intr;
    bool level[PINS];
    struct device parts[PARTS];
    struct cpu cpus[CPUS];
};
static struct target t;

int __wrap_clock_gettime(clockid_t id, struct timespec *ts);
int __wrap_clock_gettime(clockid_t id, struct timespec *ts)
{
    *ts = (struct timespec){(time_t)(1700000000 + fuzz_loop.now / 1000000000), (long)(fuzz_loop.now % 1000000000)};
    return 0;
}

/* --- wires ------------------------------------------------------------------------------------------------------- */

static void gsi_set(void *opaque, unsigned gsi, bool level)
{
    assert_true(gsi < PINS);
    t.level[gsi] = level;
    if (gsi < 16)
        i8259_set_irq(t.parts[PIC].state, gsi, level);
    ioapic_set_irq(t.parts[IOAPIC].state, gsi ? gsi : 2, level);
}

static void legacy(void *opaque, bool on)
{
    i8254_connect_irq(t.parts[PIT].state, !on);
    rtc_connect_irq(t.parts[RTC].state, !on);
}

static void event(void *opaque, int what)
{
    assert_true(what >= 0 && what < EVENTS);
}
/* The reader is slow now and then: as it takes less, somebody has to come back. */
static size_t output(void *opaque, const void *data, size_t len)
{
    assert_true(len && len <= 4096 + 64);
    return len > 2048 ? len - 2048 : len;
}
static void on_space(void *opaque) {}
static void kick(void *opaque, unsigned i)
{
    assert_true(i < CPUS);
}

static const struct i8259_config pic_config = {.intr = &t.intr};
static const struct lapic_config lapic_config = {.n_cpus = CPUS, .virtual_wire = true};
static const struct rtc_config rtc_config = {.low_memory = 3ull << 30, .high_memory = 5ull << 30};
static const struct hpet_config hpet_config = {.legacy = legacy};
static const struct uart16550_config uart_config = {.port = PORT_UART, .irq = 4, .output = output};

static const struct {
    const struct device_class *class;
    const void *config;
} parts[PARTS] = {
    [PIC] = {&i8259_class, &pic_config},     [IOAPIC] = {&ioapic_class, NULL},
    [LAPIC] = {&lapic_class, &lapic_config}, [PIT] = {&i8254_class, NULL},
    [RTC] = {&rtc_class, &rtc_config},       [HPET] = {&hpet_class, &hpet_config},
    [KEYBOARD] = {&i8042_class, NULL},       [UART] = {&uart16550_class, &uart_config},
    [POWER] = {&acpi_pm_class, NULL},        [PVPANIC] = {&pvpanic_class, NULL},
};

static void connect_interrupts(void)
{
    void *lapic = t.parts[LAPIC].state;

    t.intr = (struct irq_line){lapic_set_lint, lapic, 0};
    t.m.bus->msi = lapic_msi;
    t.m.bus->msi_opaque = lapic;
    lapic_set_extint(lapic, i8259_acknowledge, t.parts[PIC].state);
    lapic_set_eoi(lapic, ioapic_eoi, t.parts[IOAPIC].state);
    for (unsigned i = 0; i < CPUS; i++) {
        t.cpus[i].request = 0;
        t.cpus[i].tsc_khz = 1000000;
        t.cpus[i].tsc_offset = -__builtin_ia32_rdtsc(); /* the one clock that goes on: it begins at zero */
        lapic_attach_cpu(lapic, i, &t.cpus[i], kick, NULL);
    }
}

static void build(void)
{
    struct device_env env = t.m.env;

    env.isa_irq = t.gsi;
    env.event = event;
    t.intr = (struct irq_line){0};
    memset(t.level, 0, sizeof t.level);
    for (unsigned i = 0; i < PINS; i++)
        t.gsi[i] = (struct irq_line){0};
    for (unsigned i = 0; i < PARTS; i++) {
        t.parts[i] = (struct device){.name = parts[i].class->type, .class = parts[i].class};
        assert_int_equal(parts[i].class->create(&t.parts[i], &env, parts[i].config), 0);
        if (i != LAPIC)
            continue;
        connect_interrupts();
        for (unsigned n = 0; n < PINS; n++)
            t.gsi[n] = (struct irq_line){gsi_set, NULL, n};
    }
    uart16550_set_space(t.parts[UART].state, on_space, NULL);
}

/* --- the guest --------------------------------------------------------------------------------------------------- */

static void step_port(struct fuzz_input *in)
{
    static const uint16_t ports[] = {0x20,  0x21,  0xa0,  0xa1,  0x40,  0x41,  0x42,  0x43,  0x60,  0x61,  0x64,
                                     0x70,  0x71,  0x92,  0x3f8, 0x3f9, 0x3fa, 0x3fb, 0x3fc, 0x3fd, 0x3fe, 0x3ff,
                                     0x4d0, 0x4d1, 0x505, 0x600, 0x602, 0x604, 0x608, 0x606, 0x607, 0x60b};
    uint8_t which = fuzz_u8(in), how = which >> 5;
    uint16_t port = ports[which % 32];
    unsigned size = how & 2 ? 1u << fuzz_u8(in) % 3 : 1;

    if (how & 1)
        bus_write(t.m.bus, BUS_PORT, port, size == 1 ? fuzz_u8(in) : fuzz_u32(in), size);
    else
        bus_read(t.m.bus, BUS_PORT, port, size);
}

static void step_memory(struct fuzz_input *in)
{
    uint8_t how = fuzz_u8(in);
    uint64_t at = fuzz_u16(in) & 0x3ff;
    unsigned size = how & 0x10 ? 1u << fuzz_u8(in) % 4 : 4;

    bus_set_initiator(t.m.bus, how >> 5 & 1);
    if ((how & 3) == 0)
        at = IOAPIC_BASE + (at & 0x70 & (how & 4 ? 0x70 : 0x10)) + (how & 8 ? at & 15 : 0);
    else if ((how & 3) == 1)
        at += HPET_BASE;
    else
        at = LAPIC_BASE + (how & 8 ? at : at & ~15u);
    if (how & 0x80)
        bus_write(t.m.bus, BUS_MEM, at, how & 0x40 ? fuzz_u64(in) : fuzz_u16(in), size);
    else
        bus_read(t.m.bus, BUS_MEM, at, size);
}

/* A register of the HPET that does something, with a value that makes sense there. */
static void step_hpet(struct fuzz_input *in)
{
    uint8_t how = fuzz_u8(in);
    uint64_t timer = 0x100 + 0x20ull * (how >> 6) % 0x60;

    switch (how & 3) {
    case 0: /* runs, takes the legacy lines; or is cleared, or set */
        bus_write(t.m.bus, BUS_MEM, HPET_BASE + (how & 8 ? 0x20 : 0x10), how >> 4, 8);
        break;
    case 1:
        bus_write(t.m.bus, BUS_MEM, HPET_BASE + timer, fuzz_u16(in), how & 4 ? 4 : 8);
        break;
    case 2:
        bus_write(t.m.bus, BUS_MEM, HPET_BASE + timer + 8, (uint64_t)fuzz_u16(in) << (how & 4 ? 0 : 16), 8);
        break;
    default:
        bus_write(t.m.bus, BUS_MEM, HPET_BASE + 0xf0, fuzz_u64(in) >> (how & 4 ? 0 : 40), how & 8 ? 4 : 8);
    }
}

/* A register of the I/O APIC or of the CMOS, index first. */
static void step_cmos(struct fuzz_input *in)
{
    uint8_t how = fuzz_u8(in), index = fuzz_u8(in);

    if (how & 1) {
        bus_write(t.m.bus, BUS_MEM, IOAPIC_BASE, index & 0x3f, 4);
        bus_write(t.m.bus, BUS_MEM, IOAPIC_BASE + 0x10, how & 2 ? fuzz_u32(in) : fuzz_u16(in), 4);
        return;
    }
    bus_write(t.m.bus, BUS_PORT, 0x70, how & 2 ? index : index & 0xf, 1);
    if (how & 4)
        bus_read(t.m.bus, BUS_PORT, 0x71, 1);
    else
        bus_write(t.m.bus, BUS_PORT, 0x71, fuzz_u8(in), 1);
}

static void step_msr(struct fuzz_input *in)
{
    uint8_t how = fuzz_u8(in);
    struct cpu *cpu = &t.cpus[how & 1];
    uint64_t value = how & 2 ? fuzz_u64(in) : fuzz_u16(in);
    uint32_t msr = how & 4 ? 0x1b : how & 8 ? 0x6e0 : 0x800u + fuzz_u8(in) % 0x40;

    if (msr == 0x1b && (how & 0x10))
        value = LAPIC_BASE | (value & 0xd00);
    if (how & 0x20)
        cpu->irq->write_msr(cpu->irq_opaque, msr, value);
    else
        cpu->irq->read_msr(cpu->irq_opaque, msr, &value);
    if (how & 0x40)
        cpu->irq->set_tpr(cpu->irq_opaque, value & 15);
    cpu->irq->get_tpr(cpu->irq_opaque);
}

/* As the vCPU does when an interrupt is pending, or when it is not any more. */
static void step_acknowledge(struct fuzz_input *in)
{
    uint8_t how = fuzz_u8(in);
    struct cpu *cpu = &t.cpus[how & 1];

    cpu->request = 0;
    if (!cpu->irq->pending(cpu->irq_opaque) && !(how & 2))
        return;
    int vector = cpu->irq->acknowledge(cpu->irq_opaque);
    assert_true(vector >= -1 && vector < 256);
    if (how & 4) {
        bus_set_initiator(t.m.bus, how & 1);
        bus_write(t.m.bus, BUS_MEM, LAPIC_BASE + 0xb0, 0, 4);
    }
}

/* --- the rest of the board --------------------------------------------------------------------------------------- */

static void step_line(struct fuzz_input *in)
{
    uint8_t how = fuzz_u8(in);

    if ((how & 0x60) == 0x60)
        acpi_pm_power_button(&t.parts[POWER]);
    else if ((how & 0x60) == 0x40)
        lapic_set_lint(t.parts[LAPIC].state, 1, how & 1);
    else
        gsi_set(NULL, (how & 0x1f) % PINS, how & 0x80);
}

static void step_input(struct fuzz_input *in)
{
    static const uint8_t typed[5000];
    size_t len = fuzz_u16(in) % sizeof typed;

    if (len < 0x800)
        len %= 20;
    assert_true(uart16550_input(t.parts[UART].state, typed, len) <= len);
}

static void step_restore(struct fuzz_input *in)
{
    struct device *dev = &t.parts[fuzz_u8(in) % PARTS];
    uint8_t *state = (uint8_t *)dev->state + dev->class->save_offset, how = fuzz_u8(in);

    if (how & 0x80) {
        dev->class->reset(dev);
        return;
    }
    if (dev->class->pre_save)
        dev->class->pre_save(dev);
    for (unsigned n = dev->class->save_size ? how % 8 : 0; n; n--) {
        uint16_t at = fuzz_u16(in);
        state[at % dev->class->save_size] = fuzz_u8(in);
    }
    if (dev->class->post_restore)
        dev->class->post_restore(dev);
}

static void step_message(struct fuzz_input *in)
{
    uint32_t address = fuzz_u32(in), data = fuzz_u16(in);

    pthread_mutex_lock(&t.m.bus->lock);
    lapic_msi(t.parts[LAPIC].state, 0xfee00000u | (address & 0xfffff), data);
    pthread_mutex_unlock(&t.m.bus->lock);
}

/* From a nanosecond to hours. */
static void step_time(struct fuzz_input *in)
{
    uint16_t time = fuzz_u16(in);

    fuzz_loop_pass((uint64_t)(time & 0x3ff) << (time >> 10) % 40, 12);
}

static void step(struct fuzz_input *in)
{
    static void (*const steps[STEPS])(struct fuzz_input * in) = {
        [STEP_PORT] = step_port,
        [STEP_MEMORY] = step_memory,
        [STEP_HPET] = step_hpet,
        [STEP_CMOS] = step_cmos,
        [STEP_MSR] = step_msr,
        [STEP_TIME] = step_time,
        [STEP_ACKNOWLEDGE] = step_acknowledge,
        [STEP_LINE] = step_line,
        [STEP_INPUT] = step_input,
        [STEP_RESTORE] = step_restore,
        [STEP_MESSAGE] = step_message,
    };

    steps[fuzz_u8(in) % STEPS](in);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct fuzz_input in = {data, size};

    fuzz_loop_begin();
    fuzz_machine_ready(&t.m);
    build();
    for (unsigned i = 0; i < STEPS_MAX && in.left; i++)
        step(&in);
    for (unsigned i = PARTS; i; i--)
        parts[i - 1].class->destroy(&t.parts[i - 1]);
    fuzz_loop_is_empty();
    assert_int_equal(t.m.bus->n_ranges[BUS_MEM], 1); /* the host bridge's own */
    assert_int_equal(t.m.bus->n_ranges[BUS_PORT], 1);
    return 0;
}
