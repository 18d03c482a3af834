/* virtio-fs (5.11): a directory of the host as a file system; the FUSE messages go to backends/share.h. */
#pragma once
#include "devices/device.h"

struct share;

struct virtio_fs_config {
    struct share *share; /* the device's from create on */
    const char *tag;     /* by which the guest mounts it, at most 36 bytes */
};

extern const struct device_class virtio_fs_class;
