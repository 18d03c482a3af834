/*
 * An NVMe controller with one namespace: NVM Express 1.4 over PCI, MSI-X only.  Linux has its driver built in where
 * virtio is a module, so a root disk needs no initramfs.  Files: nvme.c (registers, life cycle), queue.c (rings),
 * prp.c (guest memory of a command), admin.c and identify.c (administration), io.c (the disk).
 */
#pragma once
#include "devices/device.h"

struct disk;

struct nvme_config {
    struct disk *disk; /* the device's from create on; on failure still the caller's */
};

extern const struct device_class nvme_class;
