/* The VM process: `guise vm NAME`, started by the command line and on its own from then on. */
#pragma once
#include "vm/registry.h"

/*
 * Starts it for a VM whose lock is held, and lets the lock go over to it.  *client is a control connection to it
 * (client.h), on which `attached` makes the run depend.  When the process cannot go on it says so there: an event
 * "failed", then the end.  snapshot: a file to begin with (restore.h), or NULL.  0, or -errno with a sentence; the lock
 * is the caller's to close either way.
 */
int process_start(const struct registry *r, const struct vm_record *record, int lock, bool attached,
                  const char *snapshot, int *client, char *err, size_t n);

/* The process's main function: runs the VM `name`, whose lock is descriptor 4, with descriptor 3 as its first control
 * connection, until it ends.  Returns an exit status. */
int process_main(const char *name, bool attached, const char *snapshot);

/* Waits until the process that runs it has ended and let go of everything.  0, or -ETIMEDOUT. */
int process_wait(const struct registry *r, const char *name, int timeout_ms);
