/* Disks: each opens its backend and becomes a controller of its own. */
#include "backends/disk.h"
#include "devices/nvme/nvme.h"
#include "devices/virtio/blk.h"
#include "vm/attach.h"

static int add_nvme(struct vm *vm, struct disk *disk, char *error, size_t n)
{
    const struct nvme_config config = {.disk = disk};
    return machine_add(vm->machine, "nvme", &nvme_class, &config, error, n);
}

static int add_virtio(struct vm *vm, struct disk *disk, char *error, size_t n)
{
    const struct blk_config config = {.disk = disk};
    return machine_add(vm->machine, "virtio-blk", &virtio_blk_class, &config, error, n);
}

static int (*const add[])(struct vm *vm, struct disk *disk, char *error,
                          size_t n) = {[DISK_BUS_NVME] = add_nvme, [DISK_BUS_VIRTIO] = add_virtio};

int disk_attach(struct vm *vm, char *error, size_t n)
{
    int err = 0;

    for (unsigned i = 0; i < vm->config->disks.n && !err; i++) {
        struct disk *disk;
        err = disk_open(&disk, vm->config->disks.value[i], vm->loop, error, n);
        if (err)
            return err;
        err = add[disk->spec.bus](vm, disk, error, n);
        if (err)
            disk_close(disk);
        else
            vm->disks[vm->n_disks++] = disk;
    }
    return err;
}
