/*
 * The 8254 programmable interval timer (Intel 8254 data sheet): channel 0 on IRQ 0, channel 1
 * without an output, channel 2 behind port 0x61 (NMI status and control: gate, speaker, OUT2).
 */
#pragma once
#include "devices/device.h"

#define I8254_HZ 1193182

/* No configuration: config is NULL. */
extern const struct device_class i8254_class;

/* Whether channel 0 drives IRQ 0: the HPET takes the line over in legacy replacement mode. */
void i8254_connect_irq(void *opaque, bool connected);
