/*
 * The virtual machines of a user: a directory each, and no daemon that would have to know of them.
 *
 *      DATA/vms/NAME/  vm.json       what it is (record.h)
 *                      lock          held (flock) by whoever changes it or runs it; its content says who and since when
 *                      disk.overlay  serial.log  guise.log  events.log  ...
 *               .new-NAME-PID/       being made; becomes NAME in one step
 *               .gone-NAME-PID/      being removed
 *      RUNTIME/ NAME.ctl NAME.vsock NAME.pages  sockets, while it runs
 *
 * A lock lives as long as a process has the descriptor: it is handed on from the command to the VM process without a
 * gap, and is gone the moment the last of them dies, however that happens.  What was left behind by deaths is swept up
 * by whoever comes next.
 */
#pragma once
#include "vm/record.h"

#define VM_DISK "disk.overlay" /* what the machine wrote, over its image's disk */

struct registry {
    char vms[PATH_MAX];
    char runtime[64];
};

enum vm_state {
    VM_CREATED,
    VM_RUNNING,
    VM_STOPPED,
    VM_DIED,     /* without having said a word */
    VM_INCOMING, /* it is being received (migration.h), or waits to be told to run */
    VM_MOVED,    /* it has been given up to another process */
};
extern const char *const vm_state_names[];

/* What the lock file says. */
struct vm_run {
    enum vm_state state;
    bool held;           /* somebody has the lock: a process that runs it, or is about to end, or a command */
    int pid;             /* of that process; 0: none */
    uint64_t started_ms; /* since 1970; 0: not known */
    uint64_t ended_ms;   /* VM_STOPPED */
    char engine[16];     /* VM_RUNNING, once it is chosen */
    char reason[512];    /* VM_STOPPED: one sentence */
    bool failed;         /* VM_STOPPED: not as the guest or the user wished */
    bool exited;         /* the command that it was started for has ended, */
    int exit_status;     /* like this */
};

/* Finds or makes the directories.  0, or -errno with a sentence; so do all of these. */
int registry_find(struct registry *r, char *err, size_t n);
/* The same, and sweeps. */
int registry_open(struct registry *r, char *err, size_t n);

/* Makes the VM of `record`, whose name is chosen here when it is empty; *lock is held.  -EEXIST. */
int registry_create(const struct registry *r, struct vm_record *record, int *lock, char *err, size_t n);
/* -ENOENT: there is none of that name (the sentence has the nearest one that exists). */
int registry_load(const struct registry *r, const char *name, struct vm_record *record, char *err, size_t n);
/* The same without reading it: one that cannot be read can still be removed. */
int registry_exists(const struct registry *r, const char *name, char *err, size_t n);
/* Replaces vm.json; the caller holds the lock. */
int registry_save(const struct registry *r, const struct vm_record *record, char *err, size_t n);
/* All names, sorted; free with registry_free_names.  Returns how many, or -errno. */
int registry_names(const struct registry *r, char (**names)[NAME_SIZE], char *err, size_t n);
/* A throw-away one, which this is not any more, stays.  The caller, or a process of its own, holds the lock. */
int registry_keep(const struct registry *r, struct vm_record *record, char *err, size_t n);

/* -EBUSY: it runs, or another command is at work with it.  The descriptor is close-on-exec. */
int registry_lock(const struct registry *r, const char *name, int *lock, char *err, size_t n);
/* Removes it with all that it has; takes over the lock and closes it.  The name is free at once. */
int registry_remove(const struct registry *r, const char *name, int lock, char *err, size_t n);

/* Who holds the lock, or how the last run ended. */
void registry_run(const struct registry *r, const char *name, struct vm_run *run);
/* The same for one whose lock the caller holds: how the last run ended. */
void registry_last_run(int lock, struct vm_run *run);
/* Says so in the lock file; whoever runs it does. */
int registry_set_run(int lock, const struct vm_run *run);

/* "DIR/NAME/FILE" and "RUNTIME/NAME.SUFFIX" */
int registry_path(const struct registry *r, const char *name, const char *file, char out[PATH_MAX], char *err,
                  size_t n);
int registry_socket(const struct registry *r, const char *name, const char *suffix, char out[108], char *err, size_t n);
