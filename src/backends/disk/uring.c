/*
 * File operations by io_uring.
 *
 * Any thread that holds the lock submits (vCPUs do), so what the kernel finishes later on is finished in that thread's
 * name; if the thread ends first, the kernel cancels, and fileio.c submits again.
 */
#include <errno.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "backends/disk/fileio_int.h"

/* 5.12: its workers are threads of this process, under its limits and filters.  Older ones have neither all
 * operations nor the switch for events. */
static int check_features(const struct io_uring_params *p)
{
    return p->features & IORING_FEAT_NATIVE_WORKERS ? 0 : -ENOSYS;
}

/* A ring executes operations that no system-call filter sees: so it takes these, on open files, and no others for ever.
 */
static int restrict_operations(struct io_uring *ring)
{
    struct io_uring_restriction allowed[] = {
        {.opcode = IORING_RESTRICTION_SQE_OP, .sqe_op = IORING_OP_READV},
        {.opcode = IORING_RESTRICTION_SQE_OP, .sqe_op = IORING_OP_WRITEV},
        {.opcode = IORING_RESTRICTION_SQE_OP, .sqe_op = IORING_OP_FSYNC},
        {.opcode = IORING_RESTRICTION_SQE_OP, .sqe_op = IORING_OP_FALLOCATE},
        {.opcode = IORING_RESTRICTION_SQE_FLAGS_ALLOWED, .sqe_flags = IOSQE_ASYNC},
    };
    /* By hand: Debian 12's liburing declares these two and does not have them. */
    long err = syscall(SYS_io_uring_register, ring->ring_fd, IORING_REGISTER_RESTRICTIONS, allowed,
                       sizeof allowed / sizeof *allowed);
    if (!err)
        err = syscall(SYS_io_uring_register, ring->ring_fd, IORING_REGISTER_ENABLE_RINGS, NULL, 0);
    return err ? -errno : 0;
}

static int uring_create(struct fileio *io)
{
    struct io_uring_params params = {.flags = IORING_SETUP_R_DISABLED | IORING_SETUP_CQSIZE,
                                     .cq_entries = FILEIO_ENDED_MOST};
    int err = io_uring_queue_init_params(FILEIO_RING, &io->ring, &params);

    if (err)
        return err;
    err = check_features(&params);
    if (!err)
        err = io_uring_register_eventfd(&io->ring, io->event_fd);
    if (!err)
        err = restrict_operations(&io->ring);
    if (err)
        io_uring_queue_exit(&io->ring);
    return err;
}

static void uring_destroy(struct fileio *io)
{
    io_uring_queue_exit(&io->ring);
}

static void prepare(struct io_uring_sqe *sqe, struct fileio_op *op)
{
    switch (op->kind) {
    case FILEIO_READ:
        io_uring_prep_readv(sqe, op->fd, op->iov, op->n_iov, op->offset);
        break;
    case FILEIO_WRITE:
        io_uring_prep_writev2(sqe, op->fd, op->iov, op->n_iov, op->offset, op->flags);
        break;
    case FILEIO_SYNC:
        io_uring_prep_fsync(sqe, op->fd, IORING_FSYNC_DATASYNC);
        break;
    case FILEIO_ALLOCATE:
        io_uring_prep_fallocate(sqe, op->fd, op->flags, (off_t)op->offset, (off_t)op->length);
        break;
    }
    /* Came back for want of resources: now by a worker, that can wait for them. */
    io_uring_sqe_set_flags(sqe, op->tries ? IOSQE_ASYNC : 0);
    io_uring_sqe_set_data(sqe, op);
}

static bool submit(struct fileio *io)
{
    int n;

    do
        n = io_uring_submit(&io->ring);
    while (n == -EINTR);
    return n >= 0 && !io_uring_sq_ready(&io->ring);
}

static bool uring_start(struct fileio *io)
{
    while (io->pending) {
        struct io_uring_sqe *sqe = io_uring_get_sqe(&io->ring);
        if (!sqe && submit(io))
            sqe = io_uring_get_sqe(&io->ring);
        if (!sqe)
            return false;
        io->in_flight++;
        prepare(sqe, fileio_next(io));
    }
    return submit(io);
}

static unsigned uring_reap(struct fileio *io)
{
    struct io_uring_cqe *cqe;
    unsigned n = 0;

    while (io_uring_peek_cqe(&io->ring, &cqe) == 0) {
        struct fileio_op *op = io_uring_cqe_get_data(cqe);
        int result = cqe->res;
        io_uring_cqe_seen(&io->ring, cqe);
        fileio_ended(io, op, result);
        n++;
    }
    return n;
}

static void uring_wait(struct fileio *io)
{
    struct __kernel_timespec moment = {.tv_nsec = 1000000};
    struct io_uring_cqe *cqe;

    if (!submit(io)) { /* no memory: what waits may be what the kernel has not got */
        io_uring_wait_cqe_timeout(&io->ring, &cqe, &moment);
        return;
    }
    while (io_uring_wait_cqe(&io->ring, &cqe) == -EINTR)
        ;
}

static void uring_quiet(struct fileio *io, bool quiet)
{
    (void)io_uring_cq_eventfd_toggle(&io->ring, !quiet);
}

const struct fileio_ops fileio_uring = {
    .create = uring_create,
    .destroy = uring_destroy,
    .start = uring_start,
    .reap = uring_reap,
    .wait = uring_wait,
    .quiet = uring_quiet,
};
