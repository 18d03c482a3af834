/*
 * Pages of the host's before the guest uses them.
 *
 * Guests use their memory by runs of chunks (memory.h), upwards or downwards: of the 400 that Linux uses until its
 * first process, 12 do not lie beside one that is in use.  So a thread asks for those that come next, while the guest
 * runs; on a host with a CPU to spare it finds them there.  The thread is the caller's: it serves until it is told to
 * end.
 */
#pragma once
#include "memory/memory.h"

/* 0 or -ENOMEM.  Before there are accesses. */
int memory_ahead_create(struct memory *m);
/* Chunks that will be used, for all that is known; taken over (malloc).  Before it serves, which it then begins with.
 */
void memory_ahead_expect(struct memory *m, uint32_t *chunks, unsigned n);
void memory_ahead_serve(struct memory *m); /* returns after memory_ahead_end */
void memory_ahead_end(struct memory *m);   /* any thread */
void memory_ahead_destroy(struct memory *m);

/* A chunk is in use from now on.  Any thread; keeps SIMD registers as they are. */
void memory_ahead_follow(struct memory *m, uint64_t chunk);
