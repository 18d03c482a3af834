/* --share: directories of the host, by virtio-fs.  The n-th one has the tag share_tag(n), counted from 0. */
#include "backends/share.h"
#include "devices/virtio/fs.h"
#include "vm/attach.h"

static int attach_one(struct vm *vm, unsigned i, char *error, size_t n)
{
    char tag[SHARE_TAG_SIZE];
    struct share *share;
    int err = share_open(&share, vm->config->shares.value[i], vm->loop, error, n);

    if (err)
        return err;
    share_tag(tag, i);
    const struct virtio_fs_config config = {.share = share, .tag = tag};
    err = machine_add(vm->machine, "share", &virtio_fs_class, &config, error, n);
    if (err)
        share_close(share);
    else
        vm->shares[vm->n_shares++] = share;
    return err;
}

int share_attach(struct vm *vm, char *error, size_t n)
{
    int err = 0;

    for (unsigned i = 0; i < vm->config->shares.n && !err; i++)
        err = attach_one(vm, i, error, n);
    return err;
}
