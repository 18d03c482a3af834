/* Disks: each opens its backend and becomes a controller of its own. */
#include "backends/disk.h"
#include "backends/disk/disk_away.h"
#include "devices/nvme/nvme.h"
#include "devices/virtio/blk.h"
#include "vm/attach.h"
#include "vm/life.h"
#include "vm/prepare.h"

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

/* Of a machine that is being received: those that are written to are still its source's, but for a disk of its own that
 * is sent. */
static bool is_away(const struct vm *vm, unsigned i)
{
    struct disk_spec spec;

    if (!vm->config->incoming || disk_parse(vm->config->disks.value[i], &spec, NULL, 0) || !disk_spec_can_leave(&spec))
        return false;
    return i || vm->config->disk_away || !record_has_disk(vm->config->life->record);
}

int disk_attach(struct vm *vm, char *error, size_t n)
{
    int err = 0;

    for (unsigned i = 0; i < vm->config->disks.n && !err; i++) {
        struct disk *disk = NULL;
        err = (is_away(vm, i) ? disk_open_away : disk_open)(&disk, vm->config->disks.value[i], vm->loop, error, n);
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
