/* virtio-blk (5.2): a disk for guests that have the driver. */
#pragma once
#include "devices/device.h"

struct disk;

struct blk_config {
    struct disk *disk; /* the device's from create on; on failure still the caller's */
};

extern const struct device_class virtio_blk_class;
