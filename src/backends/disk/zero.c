#include "backends/disk/zero.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <stdlib.h>
#include <string.h>

#define MODE_HOLE (FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE)
#define MODE_ZERO (FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE)

static struct zero_job *job_of(struct fileio_op *op)
{
    return (struct zero_job *)op; /* its first member */
}

static void write_next(struct fileio_op *op)
{
    struct zero_job *job = job_of(op);
    uint64_t offset = job->offset + job->length - job->left;
    unsigned n = 0;

    if (op->result || !job->left) {
        job->done(job);
        return;
    }
    for (; n < ZERO_PIECES && job->left; n++) {
        job->pieces[n].iov_base = job->file->zeroes;
        job->pieces[n].iov_len = job->left < ZERO_BUFFER ? job->left : ZERO_BUFFER;
        job->left -= job->pieces[n].iov_len;
    }
    job->op = (struct fileio_op){.kind = FILEIO_WRITE,
                                 .fd = job->file->fd,
                                 .iov = job->pieces,
                                 .n_iov = n,
                                 .offset = offset,
                                 .done = write_next};
    fileio_submit(job->file->io, &job->op);
}

static bool refused(const struct fileio_op *op)
{
    return op->result == -EOPNOTSUPP || op->result == -ENOSYS || op->result == -EINVAL;
}

static void allocate(struct zero_job *job, int mode, void (*done)(struct fileio_op *op))
{
    job->op = (struct fileio_op){.kind = FILEIO_ALLOCATE,
                                 .fd = job->file->fd,
                                 .flags = mode,
                                 .offset = job->offset,
                                 .length = job->length,
                                 .done = done};
    fileio_submit(job->file->io, &job->op);
}

static void allocated(struct fileio_op *op)
{
    struct zero_job *job = job_of(op);
    struct zero_file *f = job->file;

    if (!refused(op)) {
        job->done(job);
        return;
    }
    *(op->flags == MODE_HOLE ? &f->no_hole : &f->no_zero) = true;
    op->result = 0;
    if (op->flags == MODE_ZERO && !f->no_hole)
        allocate(job, MODE_HOLE, allocated);
    else
        write_next(op);
}

void zero_start(struct zero_job *job, struct zero_file *f, uint64_t offset, uint64_t length, bool hole)
{
    job->file = f;
    job->offset = offset;
    job->length = job->left = length;
    job->op.result = 0;
    if (!f->no_hole && (hole || f->no_zero))
        allocate(job, MODE_HOLE, allocated);
    else if (!f->no_zero)
        allocate(job, MODE_ZERO, allocated);
    else
        write_next(&job->op);
}

static void discarded(struct fileio_op *op)
{
    struct zero_job *job = job_of(op);

    if (refused(op)) { /* a wish: nothing is wrong when the space stays in use */
        job->file->no_hole = true;
        op->result = 0;
    }
    job->done(job);
}

void zero_discard(struct zero_job *job, struct zero_file *f, uint64_t offset, uint64_t length)
{
    job->file = f;
    job->offset = offset;
    job->length = length;
    allocate(job, MODE_HOLE, discarded);
}

int zero_file_init(struct zero_file *f, struct fileio *io, int fd)
{
    *f = (struct zero_file){.io = io, .fd = fd, .zeroes = calloc(1, ZERO_BUFFER)};
    return f->zeroes ? 0 : -ENOMEM;
}

void zero_file_destroy(struct zero_file *f)
{
    free(f->zeroes);
}
