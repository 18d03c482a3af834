/* Inside restoring: restore.c (the machine) and restore_memory.c (its memory, later). */
#pragma once
#include "vm/snapshot.h"

#define LOADING_SET_MOST 16384u /* chunks of a working set: 1 GiB */

struct loading {
    struct vm *vm;
    struct restore *restore;
    pthread_t thread;
    bool has_thread;
    pthread_t server; /* of faults (memory/faults.h) */
    bool serves;
    struct loop_timer look;
    _Atomic bool stop, recording;
    _Atomic int failed; /* the first error of reading */
    /* With the lock of the watch held: */
    bool by_thread; /* it is the thread that asks */
    uint32_t n_set;
    uint32_t set[LOADING_SET_MOST]; /* in the order in which they were asked for; little-endian */
    uint8_t last[SNAPSHOT_CHUNK];   /* for a chunk that is shorter */
};

/* All of the machine's memory is to come.  0/-errno. */
int loading_begin(struct vm *vm, struct restore *r);
/* Brings it, for an engine whose guest would not wait for a piece.  No vCPU runs.  0, or -errno with a sentence. */
int loading_all(struct vm *vm, char *err, size_t n);
/* The same, if the host says what such a guest waits for: then it may run at once.  false: it does not. */
bool loading_serve(struct vm *vm);
/* The vCPUs are about to run. */
int loading_start(struct vm *vm);
