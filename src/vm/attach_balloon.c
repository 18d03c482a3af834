/* --balloon: the guest's unused memory goes back to the host. */
#include "devices/virtio/balloon.h"
#include "vm/attach.h"

int balloon_attach(struct vm *vm, char *error, size_t n)
{
    const struct balloon_config config = {.handle = &vm->balloon};

    return vm->config->balloon ? machine_add(vm->machine, "balloon", &virtio_balloon_class, &config, error, n) : 0;
}
