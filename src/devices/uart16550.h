/*
 * The 16550A serial port (National Semiconductor PC16550D data sheet), with a line of unlimited
 * speed on both sides.
 */
#pragma once
#include "devices/device.h"

struct uart16550_config {
    uint16_t port; /* 0x3f8 */
    unsigned irq;  /* 4 */
    /* Bytes that the guest wrote, many at a time; called with the bus lock held; must not block. */
    void (*output)(void *opaque, const void *data, size_t len);
    void *opaque;
};

extern const struct device_class uart16550_class;

/* Bytes for the guest; returns how many were taken.  After less than len, on_space is called (lock
 * held) when there is room again. */
size_t uart16550_input(void *state, const void *data, size_t len);
void uart16550_set_space(void *state, void (*on_space)(void *opaque), void *opaque);

/* Hands over what the guest wrote and was held back to make larger pieces. */
void uart16550_flush(void *state);
