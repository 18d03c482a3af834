/*
 * I/O APIC (Intel 82093AA data sheet; version 0x20 with the EOI register of later chipsets): 24 pins
 * that become interrupt messages on the bus.
 */
#pragma once
#include "devices/device.h"

#define IOAPIC_BASE 0xfec00000u
#define IOAPIC_PINS 24

/* No configuration: config is NULL. */
extern const struct device_class ioapic_class;

/* Drives a pin; has the type of irq_line.set.  `opaque` = the device's state. */
void ioapic_set_irq(void *opaque, unsigned pin, bool level);

/* A local APIC ended a level-triggered interrupt of this vector (SDM 3, 11.8.5). */
void ioapic_eoi(void *opaque, unsigned vector);
