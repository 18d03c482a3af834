/*
 * The local APICs of all vCPUs (SDM 3, chapter 11): xAPIC registers at 0xFEE00000, x2APIC MSRs, the
 * three timer modes, interprocessor interrupts, and the receiving end of interrupt messages.
 *
 * One device for all of them, because every message is a question to each: is this for you?
 */
#pragma once
#include "devices/device.h"

#define LAPIC_BASE 0xfee00000u
#define LAPIC_MAX_CPUS 64
/* The timer counts a bus clock of 1 GHz (before the divider), as under KVM. */
#define LAPIC_BUS_HZ 1000000000ull

struct lapic_config {
    unsigned n_cpus; /* 1..LAPIC_MAX_CPUS; APIC id = vCPU index */
    /* With no firmware to do it: after reset the boot processor is in virtual wire mode (SVR enabled,
     * LINT0 = ExtINT, LINT1 = NMI), and the others are enabled with LINT1 = NMI. */
    bool virtual_wire;
};

extern const struct device_class lapic_class;

struct cpu;
/* Gives vCPU i its APIC: sets cpu->irq and cpu->irq_opaque.  `kick` is called after cpu->request was
 * set, with the bus lock held.  Call before the vCPU runs. */
void lapic_attach_cpu(void *state, unsigned i, struct cpu *cpu, void (*kick)(void *opaque, unsigned i), void *opaque);

/* CPU i is there (as all are after create), or not: then its APIC hears nothing, and it waits as after INIT. */
void lapic_set_present(void *state, unsigned i, bool present);

/* A message-signalled interrupt (SDM 3, 11.11); has the type of bus->msi.  `opaque` = the state. */
void lapic_msi(void *opaque, uint64_t address, uint32_t data);

/* The LINT pins of the boot processor (number 0) and LINT1 of all (number 1); type of irq_line.set. */
void lapic_set_lint(void *opaque, unsigned pin, bool level);

/* What answers an ExtINT acknowledge cycle (i8259_acknowledge), and who hears of EOIs of
 * level-triggered interrupts (ioapic_eoi).  Set once, when the machine is built. */
void lapic_set_extint(void *state, int (*acknowledge)(void *opaque), void *opaque);
void lapic_set_eoi(void *state, void (*eoi)(void *opaque, unsigned vector), void *opaque);
