/*
 * The 16550A serial port (National Semiconductor PC16550D data sheet), with a line of unlimited
 * speed on both sides.
 *
 * When the other end takes nothing the transmitter is not empty: a driver waits for its interrupt, as on a slow line.
 * A CPU that writes on all the same is held until there is room, so that nothing is lost.
 */
#pragma once
#include "devices/device.h"

struct uart16550_config {
    uint16_t port; /* 0x3f8 */
    unsigned irq;  /* 4 */
    /* Bytes that the guest wrote, many at a time; returns how many were taken.  After less than len, uart16550_flush is
     * to be called when there is room again.  Called with the bus lock held; must not block. */
    size_t (*output)(void *opaque, const void *data, size_t len);
    /* Holds the CPU whose access this is, the bus lock released meanwhile, until something may have changed.  false:
     * it is wanted elsewhere, and what it writes is lost.  NULL: always so. */
    bool (*wait)(void *opaque);
    void *opaque;
};

extern const struct device_class uart16550_class;

/* Bytes for the guest; returns how many were taken.  After less than len, on_space is called (lock
 * held) when there is room again. */
size_t uart16550_input(void *state, const void *data, size_t len);
void uart16550_set_space(void *state, void (*on_space)(void *opaque), void *opaque);

/* Hands over what the guest wrote and was held back to make larger pieces; returns how much is left. */
size_t uart16550_flush(void *state);
