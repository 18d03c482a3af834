/*
 * The machine: a PC without firmware.
 *
 *      memory      0 RAM .. 3 GiB | 0xC0000000 PCI 32-bit windows | 0xE0000000 ECAM | 0xFEC00000 I/O APIC
 *                  0xFED00000 HPET | 0xFEE00000 local APICs | 4 GiB RAM .. | PCI 64-bit window
 *      ports       0x20/0xA0 8259s  0x40 8254  0x60/0x64/0x92 8042  0x70 RTC  0x3F8 COM1  0x505 pvpanic
 *                  0x600 ACPI  0x640 CPUs that come and go  0xCF8 PCI and reset
 *      interrupts  GSI 0-15 are the ISA lines (0 timer, 4 COM1, 8 RTC, 9 ACPI), 16-19 PCI INTA-D
 *
 * GSI n goes to input n of the 8259 pair (n < 16) and to pin n of the I/O APIC, but for the timer: its
 * line 0 is pin 2, as on every PC since the I/O APIC exists.
 */
#include "machine/pc.h"

#include "cpu/cpu.h"
#include "devices/acpi_cpus.h"
#include "devices/acpi_pm.h"
#include "devices/generation.h"
#include "devices/hpet.h"
#include "devices/i8042.h"
#include "devices/i8254.h"
#include "devices/i8259.h"
#include "devices/ioapic.h"
#include "devices/lapic.h"
#include "devices/pci/pci.h"
#include "devices/pvpanic.h"
#include "devices/rtc.h"
#include "devices/uart16550.h"
#include "devices/virtio/virtio.h"
#include "memory/memory.h"

#define TIMER_GSI 0u
#define TIMER_PIN 2u
#define ISA_IRQS 16u
#define UART_PORT 0x3f8u
#define UART_IRQ 4u
#define RESET_PORT 0xcf9u
#define RESET_VALUE 0x06u
#define CMOS_CENTURY 0x32u
/* The 64-bit window starts at a multiple of this above RAM: all of it below 2^38 for RAM under 128 GiB,
 * which processors with few address bits can reach. */
#define WINDOW64_ALIGN 0x1000000000ull

/* General-purpose: the DSDT's _E00, _E01. */
#define CPUS_EVENT 0u
#define GENERATION_EVENT 1u

_Static_assert(LAPIC_MAX_CPUS >= BOOT_MAX_CPUS, "each vCPU has an APIC");
_Static_assert(ACPI_CPUS_MAX >= BOOT_MAX_CPUS, "and a register");

/* --- configurations: what each device needs beyond its environment ---------------------------------- */

union part_config {
    struct i8259_config pic;
    struct lapic_config lapic;
    struct rtc_config rtc;
    struct hpet_config hpet;
    struct uart16550_config uart;
    struct acpi_cpus_config cpus;
    struct generation_config generation;
};

static void pic_config(struct machine *m, union part_config *c)
{
    c->pic = (struct i8259_config){.intr = &m->intr};
}

static void lapic_config(struct machine *m, union part_config *c)
{
    c->lapic = (struct lapic_config){.n_cpus = m->config.n_cpus, .virtual_wire = true};
}

static void rtc_config(struct machine *m, union part_config *c)
{
    c->rtc = (struct rtc_config){.low_memory = m->memory->low_size, .high_memory = m->memory->high_size};
}

/* In legacy replacement mode the HPET owns IRQ 0 and IRQ 8. */
static void hpet_legacy(void *opaque, bool on)
{
    struct machine *m = opaque;
    i8254_connect_irq(m->parts[PART_PIT].state, !on);
    rtc_connect_irq(m->parts[PART_RTC].state, !on);
}

static void hpet_config(struct machine *m, union part_config *c)
{
    c->hpet = (struct hpet_config){.legacy = hpet_legacy, .opaque = m};
}

static void uart_config(struct machine *m, union part_config *c)
{
    c->uart = (struct uart16550_config){.port = UART_PORT,
                                        .irq = UART_IRQ,
                                        .output = m->config.console_output,
                                        .wait = m->config.console_wait,
                                        .opaque = m->config.console_opaque};
}

static void cpus_notify(void *opaque)
{
    struct machine *m = opaque;
    acpi_pm_event(&m->parts[PART_POWER], CPUS_EVENT);
}

static void cpus_connect(void *opaque, unsigned i, bool present)
{
    struct machine *m = opaque;
    lapic_set_present(m->parts[PART_LAPIC].state, i, present);
}

static void cpus_answer(void *opaque, unsigned i, bool left)
{
    struct machine *m = opaque;
    if (m->cpu_answer)
        m->cpu_answer(m->cpu_answer_opaque, i, left);
}

static void cpus_config(struct machine *m, union part_config *c)
{
    c->cpus = (struct acpi_cpus_config){.n_cpus = m->config.n_cpus,
                                        .n_present = m->config.n_present,
                                        .notify = cpus_notify,
                                        .connect = cpus_connect,
                                        .answer = cpus_answer,
                                        .opaque = m};
}

static void generation_notify(void *opaque)
{
    struct machine *m = opaque;
    acpi_pm_event(&m->parts[PART_POWER], GENERATION_EVENT);
}

static void generation_config(struct machine *m, union part_config *c)
{
    c->generation = (struct generation_config){.notify = generation_notify, .opaque = m};
}

/* --- the ordered array of devices --------------------------------------------------------------------- */

static const struct part {
    const char *name;
    const struct device_class *class;
    void (*config)(struct machine *m, union part_config *c); /* NULL: the class wants none */
} parts[PARTS] = {
    [PART_PIC] = {"pic", &i8259_class, pic_config},
    [PART_IOAPIC] = {"ioapic", &ioapic_class, NULL},
    [PART_LAPIC] = {"lapic", &lapic_class, lapic_config},
    [PART_PIT] = {"pit", &i8254_class, NULL},
    [PART_RTC] = {"rtc", &rtc_class, rtc_config},
    [PART_HPET] = {"hpet", &hpet_class, hpet_config},
    [PART_KEYBOARD] = {"keyboard", &i8042_class, NULL},
    [PART_COM1] = {"com1", &uart16550_class, uart_config},
    [PART_POWER] = {"power", &acpi_pm_class, NULL},
    [PART_PVPANIC] = {"pvpanic", &pvpanic_class, NULL},
    [PART_PCI] = {"pci", &pci_host_class, NULL},
    [PART_RNG] = {"rng", &virtio_rng_class, NULL},
    [PART_CPUS] = {"cpus", &acpi_cpus_class, cpus_config},
    [PART_GENERATION] = {"generation", &generation_class, generation_config},
};

/* --- wires ---------------------------------------------------------------------------------------------- */

static void gsi_set(void *opaque, unsigned gsi, bool level)
{
    struct machine *m = opaque;

    m->gsi_level[gsi] = level;
    if (gsi == TIMER_GSI || gsi == TIMER_PIN) { /* two lines share this pin; 2 itself is the 8259s' cascade */
        if (gsi == TIMER_GSI)
            i8259_set_irq(m->parts[PART_PIC].state, gsi, level);
        level = m->gsi_level[TIMER_GSI] || m->gsi_level[TIMER_PIN];
        ioapic_set_irq(m->parts[PART_IOAPIC].state, TIMER_PIN, level);
        return;
    }
    if (gsi < ISA_IRQS)
        i8259_set_irq(m->parts[PART_PIC].state, gsi, level);
    ioapic_set_irq(m->parts[PART_IOAPIC].state, gsi, level);
}

/* Everything that can interrupt is created after the three controllers, so lines work from the start. */
static void connect_interrupts(struct machine *m)
{
    void *lapic = m->parts[PART_LAPIC].state;

    m->intr = (struct irq_line){lapic_set_lint, lapic, 0};
    m->bus->msi = lapic_msi;
    m->bus->msi_opaque = lapic;
    lapic_set_extint(lapic, i8259_acknowledge, m->parts[PART_PIC].state);
    lapic_set_eoi(lapic, ioapic_eoi, m->parts[PART_IOAPIC].state);
    for (unsigned i = 0; i < PC_GSIS; i++)
        m->gsi[i] = (struct irq_line){gsi_set, m, i};
}

int pc_build(struct machine *m, const char **failed)
{
    m->env.bus = m->bus;
    m->env.loop = m->loop;
    m->env.isa_irq = m->gsi;
    for (unsigned i = 0; i < PARTS; i++) {
        union part_config config;
        struct device *dev = &m->parts[i];

        dev->name = *failed = parts[i].name;
        dev->class = parts[i].class;
        if (parts[i].config)
            parts[i].config(m, &config);
        m->n_parts = i + 1;
        int err = dev->class->create(dev, &m->env, parts[i].config ? &config : NULL);
        if (err)
            return err;
        if (i == PART_LAPIC)
            connect_interrupts(m);
        if (i == PART_PCI)
            m->env.pci = dev->state;
    }
    return 0;
}

void pc_describe_cpus(const struct machine *m, struct platform *p)
{
    p->absent_cpus = ~acpi_cpus_present(&m->parts[PART_CPUS]);
}

void pc_describe(const struct machine *m, struct platform *p)
{
    uint64_t above_ram = m->memory->end > MEMORY_HOLE_END ? m->memory->end : MEMORY_HOLE_END;

    *p = (struct platform){
        .n_cpus = m->config.n_cpus,
        .cpus_port = m->config.n_present ? ACPI_CPUS_PORT : 0,
        .cpu_bits = {ACPI_CPU_PRESENT, ACPI_CPU_INSERTED, ACPI_CPU_LEAVE, ACPI_CPU_EJECT, ACPI_CPU_REFUSE},
        .lapic_base = LAPIC_BASE,
        .ioapic_base = IOAPIC_BASE,
        .hpet_base = HPET_BASE,
        .ecam_base = PCI_ECAM_BASE,
        .ecam_size = PCI_ECAM_SIZE,
        .mmio32_base = PCI_MMIO32_BASE,
        .mmio32_size = PCI_MMIO32_SIZE,
        .mmio64_base = (above_ram + WINDOW64_ALIGN - 1) & ~(WINDOW64_ALIGN - 1),
        .mmio64_size = PCI_MMIO64_SIZE,
        .pci_gsi_base = PCI_GSI_BASE,
        .pci_gsi_count = PCI_GSI_COUNT,
        .pm1a_event = ACPI_PM1A_EVT,
        .pm1a_control = ACPI_PM1A_CNT,
        .pm_timer = ACPI_PM_TMR,
        .gpe0 = ACPI_GPE0,
        .generation = GENERATION_ADDRESS,
        .pm_ports = ACPI_PM_PORTS,
        .reset_port = RESET_PORT,
        .reset_value = RESET_VALUE,
        .pvpanic_port = PVPANIC_PORT,
        .uart_port = UART_PORT,
        .uart_irq = UART_IRQ,
        .sci_gsi = ACPI_SCI_GSI,
        .s5_type = ACPI_S5_TYPE,
        .century = CMOS_CENTURY,
    };
    pc_describe_cpus(m, p);
}
