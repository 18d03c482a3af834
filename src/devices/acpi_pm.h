/* ACPI fixed hardware: PM1a event and control blocks, the PM timer (ACPI 6.5, 4.8.3). */
#pragma once
#include "devices/device.h"

#define ACPI_PM1A_EVT 0x600u /* 4 bytes: status, enable */
#define ACPI_PM1A_CNT 0x604u /* 2 bytes */
#define ACPI_PM_TMR 0x608u   /* 4 bytes */
#define ACPI_SCI_GSI 9u
#define ACPI_S5_TYPE 5u /* SLP_TYP of S5 in the DSDT */
#define ACPI_PM_TIMER_HZ 3579545u

extern const struct device_class acpi_pm_class; /* config NULL */

/* Presses the fixed power button; lock held. */
void acpi_pm_power_button(struct device *dev);
