/* --vsock: the guest's stream connections to the host. */
#include "backends/vsock_host.h"
#include "devices/virtio/vsock.h"
#include "vm/attach.h"

int vsock_attach(struct vm *vm, char *error, size_t n)
{
    struct vsock_host_spec spec;
    struct vsock_host *host;

    if (!vm->config->vsock_path)
        return 0;
    int err = vsock_host_parse(vm->config->vsock_path, &spec, error, n);
    if (!err)
        err = vsock_host_open(&host, spec.path, vm->loop, vm->keeper, error, n);
    if (err)
        return err;
    const struct vsock_config config = {.cid = spec.cid, .host = host, .handle = &vm->vsock};
    err = machine_add(vm->machine, "vsock", &virtio_vsock_class, &config, error, n);
    if (err)
        vsock_host_close(host);
    return err;
}
