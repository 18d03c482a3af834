/* What the commands about named VMs share. */
#pragma once
#include "cli/cli.h"
#include "cli/progress.h"
#include "vm/client.h"
#include "vm/process.h"
#include "vm/registry.h"

#define READY_MS 180000 /* a guest that has not come up by then will not */

/* Parses options and at most `most` operands, and opens the registry.  Returns how many operands there are, or -1 with
 * *status set. */
int life_parse(const struct command *self, int argc, char **argv, void *out, int most, struct registry *r, int *status);

/* The same for commands that take the names of one or more VMs: does `each` for every one of them, and returns the
 * first exit status that is not STATUS_OK. */
int life_each(const struct command *self, int argc, char **argv, void *out,
              int (*each)(const struct registry *r, const char *name, const void *arguments));

/* A VM that is being started, seen from outside. */
struct life_start {
    const struct registry *registry;
    const struct vm_record *record;
    struct client client; /* events come on it */
    struct progress *progress;
    struct process_source source; /* what to begin with; empty: from the beginning */
};

/* Starts the process of a VM whose lock is held (it is let go here) and waits until its CPUs run.  Returns STATUS_OK,
 * or what to exit with after the failed stage, the reason and the end of the serial log have been said; `client` is
 * closed then. */
int life_begin(struct life_start *s, int lock, bool attached);

/* Waits until the agent in the guest is there (the client has just begun).  As life_begin, but the VM may run on. */
int life_wait_ready(struct life_start *s, int timeout_ms);

/* Cuts the power of one that runs, and waits until its process has ended: STATUS_OK, or what to exit with. */
int life_cut_power(const struct registry *r, const char *name);
/* The same of one that may have ended by itself. */
int life_cut_power_if_on(const struct registry *r, const char *name);

/* The last lines of a VM's serial output, on standard error, indented. */
void life_quote_serial(const struct registry *r, const char *name);
