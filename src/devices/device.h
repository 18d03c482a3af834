/*
 * One skeleton for every device.  machine/pc.c holds the ordered array of them; creation, reset,
 * save, restore and listing walk that same array.  virtio/rng.c is the template to copy.
 *
 * A device is handed what it needs (struct device_env) and nothing else: it never includes engine/
 * or machine/.  All of its functions run with the bus lock held.
 */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "bus/bus.h"
#include "host/loop.h"

struct pci_host;

struct device_env {
    struct bus *bus;
    struct loop *loop;
    struct pci_host *pci;     /* NULL before the host bridge exists */
    struct irq_line *isa_irq; /* 24 lines (GSI): to the 8259 pair (0-15) and the I/O APIC (0-23) */
    /* The machine's reaction to a guest's wish: enum machine_event of this header. */
    void (*event)(void *opaque, int event);
    void *event_opaque;
};

enum machine_event {
    MACHINE_POWEROFF, /* ACPI S5 */
    MACHINE_RESET,    /* reset register, keyboard controller pulse, 0xCF9 */
    MACHINE_PANIC,    /* pvpanic: the guest kernel says it has crashed */
};

struct device {
    const char *name;
    const struct device_class *class;
    void *state; /* the device's own structure, allocated by create */
    /* While it is restored: the host's clock that it was saved by has gone on, and the pause passes for the guest. */
    bool clock_goes_on;
};

struct device_class {
    const char *type;
    /* Allocates state into dev->state and maps its ranges.  `config` is the class's own. 0/-errno. */
    int (*create)(struct device *dev, const struct device_env *env, const void *config);
    void (*reset)(struct device *dev);
    void (*destroy)(struct device *dev);
    /* The bytes that make up the saved state, a plain struct with no pointers, at state+offset. */
    size_t save_offset, save_size;
    uint32_t save_version;                    /* raised by whoever changes them but by adding at the end */
    void (*pre_save)(struct device *dev);     /* brings the saved bytes up to date; may be NULL */
    void (*post_restore)(struct device *dev); /* re-arm timers, re-drive lines; may be NULL */
};

/* For post_restore: how much later by clock_ns is what was at a time by the clock of the save, if the guest's own time
 * goes on where it stood. */
static inline uint64_t device_later(const struct device *dev, uint64_t save_ns)
{
    return dev->clock_goes_on ? 0 : clock_ns() - save_ns;
}
