/*
 * The generation of a virtual machine (Microsoft's "Virtual Machine Generation ID"): 16 bytes at random in reserved
 * memory, at an address that the DSDT tells, which are others whenever the machine goes on from a state that it, or
 * another one, has been in before.  The guest is told by a general-purpose event; Linux starts its random numbers anew
 * then.
 *
 * A guest that goes on from a snapshot of before there was this device has other things in that memory: it is left
 * alone.
 */
#pragma once
#include "devices/device.h"

#define GENERATION_ADDRESS 0xeffc0u /* behind the ACPI tables, in what the memory map has as reserved */

struct generation_config {
    void (*notify)(void *opaque); /* raises the event */
    void *opaque;
};

extern const struct device_class generation_class; /* config: struct generation_config */

/* The guest's tables have just been made: it begins. */
void generation_begin(struct device *dev);
/* Another one; the guest is told. */
void generation_renew(struct device *dev);
