/* What pc.c (the list of devices and their wires) and machine.c (everything that walks it) share. */
#pragma once
#include "boot/boot.h"
#include "devices/device.h"
#include "machine/machine.h"

#define PC_GSIS 24
#define MACHINE_ADDED_MAX 24u

/* The order of the array of devices: who is built later may use who was built before. */
enum pc_part {
    PART_PIC,
    PART_IOAPIC,
    PART_LAPIC,
    PART_PIT,
    PART_RTC,
    PART_HPET,
    PART_KEYBOARD,
    PART_COM1,
    PART_POWER,
    PART_PVPANIC,
    PART_PCI,
    PART_RNG,
    PART_CPUS,
    PART_GENERATION,
    PARTS, /* from here on: what machine_add brings */
};

struct machine {
    struct machine_config config;
    struct memory *memory;
    struct bus *bus;
    struct loop *loop;
    struct device_env env;
    struct irq_line gsi[PC_GSIS];
    bool gsi_level[PC_GSIS];
    struct irq_line intr; /* the 8259 pair's output, to LINT0 of the boot processor */
    struct device parts[PARTS + MACHINE_ADDED_MAX];
    unsigned n_parts;
    struct platform platform;
    struct boot_entry entry;
    int kernel_fd, initrd_fds[BOOT_INITRDS_MAX];
    unsigned n_initrds; /* open ones */
    struct cpu *cpus[BOOT_MAX_CPUS];
    void (*cpu_answer)(void *opaque, unsigned i, bool left);
    void *cpu_answer_opaque;
    void (*event)(void *opaque, int event);
    void *event_opaque;
};

/* Creates the devices in order and connects them.  On failure those that exist are in m->parts. */
int pc_build(struct machine *m, const char **failed);
/* The addresses and interrupts of all that, for the tables. */
void pc_describe(const struct machine *m, struct platform *p);
/* Which CPUs are there, for the tables. */
void pc_describe_cpus(const struct machine *m, struct platform *p);
