/* pvpanic: one port by which a guest kernel says that it has panicked (ACPI id QEMU0001). */
#pragma once
#include "devices/device.h"

#define PVPANIC_PORT 0x505u

extern const struct device_class pvpanic_class; /* config NULL */
