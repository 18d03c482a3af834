/* The VM process: `guise vm NAME`, started by the command line and on its own from then on. */
#pragma once
#include "vm/registry.h"

/* What it begins with, instead of a boot. */
struct process_source {
    const char *snapshot; /* a file (restore.h); or NULL */
    const int *copy;      /* descriptors that a machine that is forked has handed over (fork.h); or none */
    unsigned n_copy;
    bool incoming;      /* it is to be received (migration.h), */
    bool disk_away;     /* but for its own disk's file, which is here; */
    const char *engine; /* and was on this one */
};

/*
 * Starts it for a VM whose lock is held, and lets the lock go over to it.  *client is a control connection to it
 * (client.h), on which `attached` makes the run depend.  When the process cannot go on it says so there: an event
 * "failed", then the end.  source: NULL, too.  One that has been given up to another process is not started: -EBUSY.
 * 0, or -errno with a sentence; the lock is the caller's to close either way.
 */
int process_start(const struct registry *r, const struct vm_record *record, int lock, bool attached,
                  const struct process_source *source, int *client, char *err, size_t n);

/* The process's main function: runs the VM `name`, whose lock is descriptor 4, with descriptor 3 as its first control
 * connection, until it ends; those of a copy's source, `copy` of them, are the next; engine: where an incoming one was.
 * Returns an exit status. */
int process_main(const char *name, bool attached, const char *snapshot, unsigned copy, const char *incoming,
                 const char *engine);

/* Waits until the process that runs it has ended and let go of everything.  0, or -ETIMEDOUT. */
int process_wait(const struct registry *r, const char *name, int timeout_ms);
