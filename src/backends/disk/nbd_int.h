/* Between nbd.c and those who have a connection for it. */
#pragma once
#include "backends/disk.h"
#include "host/child.h"

/* A disk behind an NBD server: by the socket fd (taken over, also on failure), or if fd is -1 by spec->path: a URI or a
 * Unix socket.  child: the server if it is ours, stopped when the disk is closed (also on failure); pid 0: it is not.
 */
int nbd_disk_open(struct disk **out, const struct disk_spec *spec, struct loop *loop, int fd, struct child child,
                  char *err, size_t n);
