/*
 * The stages of something that takes a while, on standard error.
 *
 *      a terminal     one line that changes:   [ 1.2 s] boot: waiting for the agent
 *      --verbose      a line a stage, with its duration
 *      else           nothing
 *
 * When a stage fails the caller says why in a sentence; progress_failed leaves the stage's name for it.
 */
#pragma once
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

struct progress {
    const char *stage; /* NULL: none yet */
    bool line, verbose;
    bool shown; /* there is a line to wipe */
    uint64_t began_ns, stage_ns;
    pthread_t thread; /* progress_alone */
    atomic_bool alone;
};

void progress_begin(struct progress *p, bool verbose, bool quiet);
/* The stage before has ended well. `what` is shown beside the name, or NULL. */
void progress_stage(struct progress *p, const char *stage, const char *what);
/* How far the stage is: a bar, where there is a line; total 0: not known. */
void progress_part(struct progress *p, uint64_t done, uint64_t total);
/* Shows the time that has passed; call it a few times a second while waiting.  Returns how many ms to wait at most. */
int progress_tick(struct progress *p);
/* The stage, which is told meanwhile by a thread of its own: for a call that comes back when all is done.  Next comes
 * progress_end. */
void progress_alone(struct progress *p, const char *stage);
/* Wipes the line; what comes next on the terminal is somebody else's.  Returns the stage that it ended in. */
const char *progress_end(struct progress *p);
