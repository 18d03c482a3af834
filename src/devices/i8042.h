/*
 * The keyboard controller (8042) with nothing plugged in, for what PCs do with it besides keys:
 * resetting the machine; and port 0x92, the fast A20 gate and reset.
 */
#pragma once
#include "devices/device.h"

/* No configuration: config is NULL. */
extern const struct device_class i8042_class;
