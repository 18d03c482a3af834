/*
 * virtio-vsock (5.10): stream connections between the guest and the host without a network.
 *
 * The host's end of a connection is a stream socket of this process, which the device reads and writes: what a
 * client of the Unix socket (backends/vsock_host.h) brought, or what other parts of guise hand in here.  A half-close
 * passes both ways; a reader that is slow holds up its own connection only, by its credit.
 *
 * All functions: bus lock held.  What they call runs on the loop's thread, lock held, never from inside the call.
 */
#pragma once
#include <stdint.h>

#include "devices/device.h"

#define VSOCK_CID_HOST 2u
#define VSOCK_CID_GUEST 3u
#define VSOCK_CONNECTIONS_MAX 4096u

struct vsock;
struct vsock_host;

struct vsock_config {
    uint64_t cid;            /* of the guest, at least 3 */
    struct vsock_host *host; /* the device's from a successful create on; may be NULL */
    struct vsock **handle;   /* receives the device, for the functions below; may be NULL */
};

extern const struct device_class virtio_vsock_class; /* config: struct vsock_config */

/*
 * Connects the stream socket fd to a port of the guest.  0: done is called once, with err 0 and the host's port (fd is
 * the device's as soon as done returns, no byte has been read or written before), or with -ECONNREFUSED (nobody
 * listens), -ETIMEDOUT, -ECONNRESET (the guest was reset) or -ESHUTDOWN (the device goes away): fd is then the
 * caller's as before.  Or at once -ENOTSOCK, -EHOSTDOWN (no driver in the guest yet), -EMFILE, -ENOMEM.
 */
int vsock_connect(struct vsock *vs, uint32_t port, int fd, void (*done)(void *opaque, int err, uint32_t host_port),
                  void *opaque);

/* Forgets a vsock_connect whose done has not been called; it will not be. */
void vsock_connect_cancel(struct vsock *vs, int fd);

/*
 * Guest-initiated connections to (CID 2, port) go to `accept`, which returns a stream socket that becomes the
 * device's, or -errno to refuse.  Ports without one go to the vsock_host.  accept NULL: no longer.  0, or -ENOSPC.
 */
int vsock_listen(struct vsock *vs, uint32_t port, int (*accept)(void *opaque, uint32_t guest_port), void *opaque);

/* How many connections exist, those being set up included. */
unsigned vsock_connections(const struct vsock *vs);
