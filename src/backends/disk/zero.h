/* Makes a range of a file read as zeroes: by a hole, by ZERO_RANGE, or by writing, whichever the host can do. */
#pragma once
#include "backends/disk/fileio.h"

#define ZERO_BUFFER 65536u
#define ZERO_PIECES 4u

/* What is known of a file. */
struct zero_file {
    struct fileio *io;
    int fd;
    bool no_hole, no_zero; /* the file system or device has said so */
    void *zeroes;          /* ZERO_BUFFER bytes */
};

struct zero_job {
    struct fileio_op op;
    struct zero_file *file;
    uint64_t offset, length, left;
    void (*done)(struct zero_job *job); /* as of fileio_op; op.result is the result */
    struct iovec pieces[ZERO_PIECES];
};

int zero_file_init(struct zero_file *f, struct fileio *io, int fd);
void zero_file_destroy(struct zero_file *f);
/* hole: give the space back if that can be done.  job->done is the caller's to set. */
void zero_start(struct zero_job *job, struct zero_file *f, uint64_t offset, uint64_t length, bool hole);
/* Gives the space back if that can be done; what the range reads as afterwards is not said. */
void zero_discard(struct zero_job *job, struct zero_file *f, uint64_t offset, uint64_t length);
