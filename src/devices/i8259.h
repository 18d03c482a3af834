/*
 * The pair of 8259A interrupt controllers of a PC (Intel 8259A data sheet), slave on IR2 of the
 * master, with the edge/level registers 0x4D0/0x4D1 of the PIIX/ICH chipsets.
 */
#pragma once
#include "devices/device.h"

struct i8259_config {
    const struct irq_line *intr; /* the master's INTR pin: to LINT0 of the boot processor's APIC */
};

extern const struct device_class i8259_class;

/* Drives input 0-15; has the type of irq_line.set.  `opaque` = the device's state. */
void i8259_set_irq(void *opaque, unsigned irq, bool level);

/* The interrupt-acknowledge cycle: the vector to deliver.  Always has one: 7 of its chip if the
 * request has gone meanwhile (the data sheet's spurious interrupt). */
int i8259_acknowledge(void *opaque);
