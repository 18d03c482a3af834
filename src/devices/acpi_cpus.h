/*
 * CPUs that come and go while the machine runs: one register for each, which the methods of the DSDT
 * (boot/dsdt.c) read and write, and a notification when there is something to read.
 */
#pragma once
#include <stdbool.h>

#include "devices/device.h"

#define ACPI_CPUS_PORT 0x640u
#define ACPI_CPUS_MAX 64u
/* A CPU's register: what reads see ... */
#define ACPI_CPU_PRESENT 1u
#define ACPI_CPU_INSERTED 2u /* it is new, and the guest has not written this bit yet */
#define ACPI_CPU_LEAVE 4u    /* the guest is to let it go, and has not written this bit yet */
/* ... and what is written, beside these two: */
#define ACPI_CPU_EJECT 8u
#define ACPI_CPU_REFUSE 16u /* it cannot be let go */

struct acpi_cpus_config {
    unsigned n_cpus; /* possible ones, 1..ACPI_CPUS_MAX */
    unsigned
        n_present; /* of them, at the start, the first ones; 0: all are there for ever, and there are no registers */
    void (*notify)(void *opaque);                            /* an event is to be read */
    void (*connect)(void *opaque, unsigned i, bool present); /* CPU i is there, or is there no more */
    void (*answer)(void *opaque, unsigned i, bool left);     /* the guest has let CPU i go, or refuses */
    void *opaque;
};

extern const struct device_class acpi_cpus_class;

/* Below: lock held; of a machine whose CPUs can come and go. */

/* Which ones there are: bits. */
uint64_t acpi_cpus_present(const struct device *dev);
/* Those that the guest has been asked to let go, and has not yet, nor refused. */
uint64_t acpi_cpus_leaving(const struct device *dev);
/* CPU i, which is not there, is from now on. */
void acpi_cpus_insert(struct device *dev, unsigned i);
/* Asks the guest to let CPU i go, not CPU 0; or no longer, if it has not. */
void acpi_cpus_ask(struct device *dev, unsigned i, bool leave);
