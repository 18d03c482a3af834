/*
 * A VM that moves to another process, perhaps on another host, while it runs (docs/MIGRATION.md).
 *
 *      source       begin -> [ rounds: memory and disk that have changed, while the guest runs ] -> the vCPUs stand
 *                   still, the rest and the state of the machine are sent -> sent -> given up -> ends
 *      destination  begin -> receiving -> complete: all of it is there, checked, its disk on stable storage -> go: runs
 *
 * At any step before it is given up the source can go on, and does when the command that moves it goes away or a
 * stream breaks; afterwards it runs only when it is told that the destination never will.  The destination runs only
 * when it is told.  Who tells is the command (cli/migrate.c); what is decided stands in a file (migration_record.h)
 * before anybody acts on it.
 *
 * The command and its counterpart make the connections and hand us their descriptors: this process can open none.
 */
#pragma once
#include <jansson.h>

#include "vm/control.h"
#include "vm/registry.h"
#include "vm/vm_int.h"

#define MIGRATION_STREAMS_MAX 8u
/* Of post-copy, beside those that carry the machine: one for what somebody waits for, and one that goes the other way,
 * by which it is asked for. */
#define MIGRATION_EXTRA 2u
#define MIGRATION_ALL_MAX (MIGRATION_STREAMS_MAX + MIGRATION_EXTRA)

/* The control socket's "migrate" and "incoming" (docs/CONTROL.md). */
json_t *command_migrate(struct control_call *call);
json_t *command_incoming(struct control_call *call);

/* The event loop is to end for it, and then, with no vCPU running: migration_step.  Bus lock held, all. */
bool migration_due(const struct vm *vm);
void migration_step(struct vm *vm);
/* The vCPUs are not to run. */
bool migration_holds(const struct vm *vm);
/* It is being sent or received. */
bool migration_is_under_way(const struct vm *vm);
/* The machine goes; no vCPU runs. */
void migration_abandon(struct vm *vm);

/* --- the destination ---------------------------------------------------------------------------------------------- */

/* Of its socket for memory that comes later (incoming_arrive.c): RUNTIME/NAME.pages. */
#define MIGRATION_DOOR "pages"

/* Talks to the door of the machine `name`, which does not depend on the event loop: new streams (descriptors, the
 * caller's) instead of those that were cut; or none: the source has died.  0, or -errno with a sentence. */
int arriving_tell(const struct registry *r, const char *name, const int *fds, unsigned n_fds, char *err, size_t n);

/* The machine, which was set up for it (vm_config.incoming), waits to be received.  0, or -errno with a sentence. */
int incoming_open(struct vm *vm, char *err, size_t n);
