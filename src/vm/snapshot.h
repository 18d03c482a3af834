/*
 * Saving a VM while it runs, and beginning with what was saved.
 *
 *      asked -> disks are flushed while the guest runs -> [ vCPUs stand still: devices finish, state is taken, the disk
 *      gets a new layer ] -> the guest runs on, and a thread writes memory as it was -> complete
 *
 * The command that asks makes the files and gives us their descriptors: this process can open none.  What it does with
 * them, and what becomes of a snapshot that is not completed, is cli/snapshot.c's.
 */
#pragma once
#include <jansson.h>

#include "memory/template.h"
#include "vm/control.h"
#include "vm/snapshot_file.h"
#include "vm/vm_int.h"

#define SNAPSHOT_ABOUT_SCHEMA 1

/* The control socket's "snapshot" (docs/CONTROL.md). */
json_t *command_snapshot(struct control_call *call);

/* The event loop is to end for it, and then, with no vCPU running: snapshot_take.  Bus lock held, both. */
bool snapshot_due(const struct vm *vm);
void snapshot_take(struct vm *vm);
/* The vCPUs' SIMD registers, as sections and back: 0/-errno; *bad says whose are missing or impossible. */
int snapshot_save_simd(struct vm *vm, struct sections *out);
int snapshot_load_simd(struct vm *vm, const struct sections *in, unsigned *bad);
/* After that the vCPUs run again, having stood still for so long. */
void snapshot_taken(struct vm *vm, uint64_t pause_ns);
/* The machine goes: what is being saved is given up. */
void snapshot_abandon(struct vm *vm);

/* --- restore.c ---------------------------------------------------------------------------------------------- */

/* What a vm_config.restore says; of a file that is open. */
struct restore {
    struct snapshot_file file;
    int set_fd;       /* of the working set beside it (restore_memory.c), or -1 */
    bool copy;        /* of a machine that was forked: its memory is */
    uint64_t tsc_khz; /* of this host, as that one has measured it; or 0 */
    unsigned n_templates;
    int templates[MEMORY_TEMPLATES_MAX]; /* these */
    int code;                            /* and what that one's engine had made of code; or -1 */
    char name[256];                      /* for messages */
};

/* Opens and checks the file of a snapshot that is `path`.  to_run: and what is needed to go on from it.  0, or -errno
 * with a sentence. */
int restore_open(struct restore *r, const char *path, bool to_run, char *err, size_t n);
/* The same for a copy of a machine: fds are the state's and the templates' (fork.h), which are taken over. */
int restore_open_copy(struct restore *r, const int *fds, unsigned count, char *err, size_t n);
void restore_close(struct restore *r);
/* The engine that it goes on with (vm_engine_again). */
void restore_choose_engine(const struct restore *r, struct vm_config *config);
/* What can be known without making the machine: that it is of one like `record`, and that this host's CPU will do. */
struct vm_record;
int restore_check(const struct restore *r, const struct vm_record *record, char *err, size_t n);
/* Makes the machine, which was set up for it and has not run, what was saved.  Bus lock held.  0, or -errno with a
 * sentence. */
int restore_machine(struct vm *vm, struct restore *r, char *err, size_t n);
/* In the sandbox: what has to be there before a vCPU runs.  0, or -errno with a sentence. */
int restore_load(struct vm *vm, char *err, size_t n);
/* Its vCPUs are about to run: says so, and tells the guest. */
void restore_started(struct vm *vm, const struct restore *r);
/* The machine goes; no vCPU runs. */
void restore_stop(struct vm *vm);
