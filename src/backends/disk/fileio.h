/*
 * Asynchronous operations on files: by io_uring, or by a few threads where the kernel or a container refuses it.
 *
 * An operation is queued by fileio_submit and begun by fileio_kick.  It is whole when it is done: short reads and
 * writes go on, what lies behind the end of a file reads as zeroes.  `done` is called with the loop's lock held, on the
 * loop's thread or inside fileio_kick and fileio_wait.
 */
#pragma once
#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

struct fileio;
struct loop;

enum fileio_kind {
    FILEIO_READ,
    FILEIO_WRITE,    /* flags: 0 or RWF_DSYNC */
    FILEIO_SYNC,     /* fdatasync */
    FILEIO_ALLOCATE, /* flags: mode of fallocate(2) */
};

struct fileio_op {
    enum fileio_kind kind;
    int fd, flags;
    struct iovec *iov; /* used up */
    unsigned n_iov;
    unsigned tries;
    uint64_t offset, length; /* length: of FILEIO_ALLOCATE */
    void (*done)(struct fileio_op *op);
    void *opaque;
    int result;   /* 0 or -errno */
    int64_t step; /* what the last system call returned */
    struct fileio_op *next;
};

enum fileio_engine { FILEIO_AUTO, FILEIO_URING, FILEIO_THREADS };

/* 0/-errno.  FILEIO_AUTO does not fail because io_uring is refused. */
int fileio_create(struct fileio **out, struct loop *loop, enum fileio_engine engine);
/* Nothing may be in flight. */
void fileio_destroy(struct fileio *io);
void fileio_submit(struct fileio *io, struct fileio_op *op);
void fileio_kick(struct fileio *io);
/* Blocks until an operation went further.  false: there is none. */
bool fileio_wait(struct fileio *io);
