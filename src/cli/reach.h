/* A stream to a port inside a VM. */
#pragma once
#include <stddef.h>

#include "agent/protocol.h"

/*
 * `vm` is the name of a VM that runs, or, with a slash in it, the path of a vsock's Unix socket (`guise run --vsock
 * PATH`, and those of other VMMs that keep to the same convention).  Returns a descriptor, the caller's to close, or
 * -errno with a sentence: -ENOENT there is no such VM, -ECONNREFUSED it does not run, -ECONNRESET nothing listens there
 * in the guest.
 */
int reach_guest(const char *vm, unsigned port, char *err, size_t n);

/*
 * A stream to QEMU's guest agent in a VM: to the socket of its console port, given to the VM as --port
 * org.qemu.guest_agent.0=socket:PATH, or `vm` is such a socket's path and ends in .qga.  Returns a descriptor, the
 * caller's to close, or -errno without a word: there is no such way.
 */
int reach_qga(const char *vm);
