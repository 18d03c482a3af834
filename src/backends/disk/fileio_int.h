/* What fileio.c, uring.c and threads.c share. */
#pragma once
#include <liburing.h>
#include <pthread.h>

#include "backends/disk/fileio.h"
#include "host/loop.h"

#define FILEIO_RING 64u        /* submitted at a time, */
#define FILEIO_ENDED_MOST 512u /* and ended, before anybody looks: as many as a disk's queues have */
#define FILEIO_THREADS_N 4u

struct fileio_ops {
    int (*create)(struct fileio *io);
    void (*destroy)(struct fileio *io);
    /* Begins as much of io->pending as there is room for.  false: try again a little later. */
    bool (*start)(struct fileio *io);
    /* Hands over what has ended, by fileio_ended.  Returns how many. */
    unsigned (*reap)(struct fileio *io);
    void (*wait)(struct fileio *io);              /* blocks until reap would find something, or for a moment */
    void (*quiet)(struct fileio *io, bool quiet); /* no event for what ends now: reap is about to be called */
};

struct fileio {
    const struct fileio_ops *ops;
    struct loop *loop;
    int event_fd; /* readable when there is something to reap */
    struct loop_timer retry;
    struct fileio_op *pending, **pending_end;
    unsigned in_flight; /* begun */
    bool kicking, again;
    struct io_uring ring;
    struct fileio_pool *pool;
};

extern const struct fileio_ops fileio_uring, fileio_threads;

/* An operation's step has ended with a system call's result (bytes, or -errno).  Done, or pending again. */
void fileio_ended(struct fileio *io, struct fileio_op *op, int64_t result);
/* Takes the first of the pending ones; NULL: none. */
struct fileio_op *fileio_next(struct fileio *io);
