/*
 * The host's end of virtio-vsock: Unix sockets, by the convention that Firecracker has made common.
 *
 *      into the guest     a client connects to PATH and writes "CONNECT PORT\n"; when the guest has accepted it gets
 *                         "OK N\n" (N: the host's port of the connection) and from then on the guest's bytes; when the
 *                         guest refuses, the connection is closed
 *      out of the guest   a connection to port P of the host (CID 2) goes to the listening Unix socket PATH_P
 *
 * Called with the loop's lock held; what it calls runs on the loop's thread.
 */
#pragma once
#include <stddef.h>
#include <stdint.h>

struct keeper;
struct loop;
struct vsock_host;

#define VSOCK_HOST_PATH_MAX 96

struct vsock_host_spec {
    char path[VSOCK_HOST_PATH_MAX];
    uint64_t cid; /* of the guest */
};

/* "PATH[,cid=N]"; N is at least 3, which it is unless told.  0, or -EINVAL with one sentence. */
int vsock_host_parse(const char *text, struct vsock_host_spec *spec, char *err, size_t n);
int vsock_host_check(const char *text, char *err, size_t n);

/*
 * Connects the stream socket fd to a port of the guest.  0: done is called once, later, with err 0 (fd is then the
 * callee's, after done has returned) or -errno (fd stays with whoever made it).  Or -errno: done is not called.
 */
typedef int vsock_connect_fn(void *opaque, uint32_t port, int fd,
                             void (*done)(void *opaque, int err, uint32_t host_port), void *done_opaque);

/* Listens at path.  `keeper`, which may be NULL, connects to PATH_P where this process cannot (host/keeper.h).  0, or
 * -errno with one sentence.  Clients wait until vsock_host_serve. */
int vsock_host_open(struct vsock_host **out, const char *path, struct loop *loop, struct keeper *keeper, char *err,
                    size_t n);
void vsock_host_serve(struct vsock_host *h, vsock_connect_fn *connect, void *opaque);

/* For a connection out of the guest: a connected socket, or -errno. */
int vsock_host_dial(struct vsock_host *h, uint32_t port);

/* Removes the socket file.  Nobody's `done` is outstanding.  h may be NULL. */
void vsock_host_close(struct vsock_host *h);
