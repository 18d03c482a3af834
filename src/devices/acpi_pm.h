/* ACPI fixed hardware: PM1a event and control blocks, the PM timer, general-purpose events (ACPI 6.5, 4.8.3, 4.8.4). */
#pragma once
#include "devices/device.h"

#define ACPI_PM1A_EVT 0x600u /* 4 bytes: status, enable */
#define ACPI_PM1A_CNT 0x604u /* 2 bytes */
#define ACPI_PM_TMR 0x608u   /* 4 bytes */
#define ACPI_GPE0 0x60cu     /* 2 bytes: status, enable; event 0: a CPU comes or is to go */
#define ACPI_PM_PORTS 14u
#define ACPI_SCI_GSI 9u
#define ACPI_S5_TYPE 5u /* SLP_TYP of S5 in the DSDT */
#define ACPI_PM_TIMER_HZ 3579545u

extern const struct device_class acpi_pm_class; /* config NULL */

/* Presses the fixed power button; lock held. */
void acpi_pm_power_button(struct device *dev);
/* General-purpose event n, 0..7, has happened; lock held. */
void acpi_pm_event(struct device *dev, unsigned n);
