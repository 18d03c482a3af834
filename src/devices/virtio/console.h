/*
 * virtio-console (5.3) with several ports: byte streams between programs of the guest and the host, by name.
 *
 * A port may be a console for the guest's kernel (hvc0).  The host's end is a backends/chr.h; a reader there that is
 * slow holds up its own port only.
 */
#pragma once
#include <stdbool.h>

#include "devices/device.h"

#define CONSOLE_PORTS_MAX 7u /* two queues each beside those of control, of 16 */
#define CONSOLE_NAME_MAX 64u /* with the final NUL */

struct chr;

struct console_port_config {
    const char *name; /* what the guest finds below /sys/class/virtio-ports; copied */
    struct chr *chr;  /* the device's from a successful create on */
    bool console;     /* the first port only: the guest's hvc0 */
};

struct console_config {
    struct console_port_config ports[CONSOLE_PORTS_MAX];
    unsigned n_ports;
};

extern const struct device_class virtio_console_class; /* config: struct console_config */
