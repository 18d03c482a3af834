/*
 * Unix stream sockets: the doors of a VM process on the host (control, vsock, consoles).
 */
#pragma once
#include <stddef.h>
#include <sys/types.h>

/* A listening, non-blocking socket at `path`, mode 0600; a stale file, that nobody listens on, is replaced.  Returns
 * the descriptor, or -errno with one sentence.  The caller closes it and unlinks the path. */
int unix_listen(const char *path, int backlog, char *err, size_t n);

/* A connection to the socket at `path`, or -errno; never waits: -EAGAIN when its listener's queue is full. */
int unix_connect(const char *path);

/* Descriptors along with bytes, which they arrive with; of a stream with the first of them.  flags: MSG_*. */
#define UNIX_FDS_MAX 16u
/* As sendmsg, but -errno; never SIGPIPE. */
ssize_t unix_send_fds(int socket, const void *bytes, size_t len, const int *fds, unsigned n, int flags);
/* As recvmsg, but -errno.  *n is how many descriptors there is room for, and then how many have come: the caller's.
 * What is more than that is closed. */
ssize_t unix_receive_fds(int socket, void *bytes, size_t len, int *fds, unsigned *n, int flags);
