/*
 * Unix stream sockets: the doors of a VM process on the host (control, vsock, consoles).
 */
#pragma once
#include <stddef.h>

/* A listening, non-blocking socket at `path`, mode 0600; a stale file, that nobody listens on, is replaced.  Returns
 * the descriptor, or -errno with one sentence.  The caller closes it and unlinks the path. */
int unix_listen(const char *path, int backlog, char *err, size_t n);

/* A connection to the socket at `path`, or -errno; never waits: -EAGAIN when its listener's queue is full. */
int unix_connect(const char *path);
