/*
 * HPET (IA-PC HPET specification 1.0a): a 64-bit counter of 100 MHz and three timers.
 */
#pragma once
#include "devices/device.h"

#define HPET_BASE 0xfed00000u
#define HPET_PERIOD_FS 10000000u /* 10 ns */
#define HPET_TIMERS 3

struct hpet_config {
    /* Legacy replacement mode began or ended: timers 0 and 1 now drive IRQ 0 and IRQ 8, and the 8254
     * and the RTC must not (i8254_connect_irq, rtc_connect_irq). */
    void (*legacy)(void *opaque, bool on);
    void *opaque;
};

extern const struct device_class hpet_class;
