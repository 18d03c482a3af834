/*
 * The devices that a configuration asks for, beside those that every machine has: one row each, in the order in
 * which the guest finds them on its PCI bus.
 */
#include "vm/attach.h"

static const struct attachment {
    int (*attach)(struct vm *vm, char *error, size_t n);
} attachments[] = {
    {disk_attach}, {vsock_attach}, {ports_attach}, {balloon_attach}, {net_attach_cards}, {share_attach}, {0},
};

int vm_attach_devices(struct vm *vm, char *error, size_t n)
{
    int err = 0;

    for (const struct attachment *a = attachments; a->attach && !err; a++)
        err = a->attach(vm, error, n);
    return err;
}
