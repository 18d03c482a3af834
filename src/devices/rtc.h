/*
 * The MC146818A real-time clock and its 128 bytes of CMOS memory, ports 0x70/0x71: time of day from
 * the host's UTC clock, periodic, alarm and update interrupts on IRQ 8, memory sizes where firmware
 * leaves them.
 */
#pragma once
#include "devices/device.h"

struct rtc_config {
    uint64_t low_memory, high_memory; /* bytes of RAM below 4 GiB, and from 4 GiB up */
};

extern const struct device_class rtc_class;

/* Whether the clock drives IRQ 8: the HPET takes the line over in legacy replacement mode. */
void rtc_connect_irq(void *opaque, bool connected);
