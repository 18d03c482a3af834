/* What both ways of file operations have in common: the queue, short transfers, the end of a file. */
#include "backends/disk/fileio.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "backends/disk/fileio_int.h"

/* How often an operation may come back without progress before that is an error: interruptions, a full kernel. */
#define TRIES_MAX 1000u
#define RETRY_NS 1000000u

static void enqueue(struct fileio *io, struct fileio_op *op)
{
    op->next = NULL;
    *io->pending_end = op;
    io->pending_end = &op->next;
}

struct fileio_op *fileio_next(struct fileio *io)
{
    struct fileio_op *op = io->pending;

    if (op && !(io->pending = op->next))
        io->pending_end = &io->pending;
    return op;
}

/* Drops the first `bytes` of what op has still to transfer. */
static void advance(struct fileio_op *op, uint64_t bytes)
{
    op->offset += bytes;
    while (op->n_iov && bytes >= op->iov->iov_len) {
        bytes -= op->iov->iov_len;
        op->iov++;
        op->n_iov--;
    }
    if (op->n_iov) {
        op->iov->iov_base = (char *)op->iov->iov_base + bytes;
        op->iov->iov_len -= bytes;
    }
}

static void zero_rest(struct fileio_op *op)
{
    for (unsigned i = 0; i < op->n_iov; i++)
        memset(op->iov[i].iov_base, 0, op->iov[i].iov_len);
}

/* ECANCELED: the thread that had submitted it has ended (the machine was reset), not the operation's wish. */
static bool again(const struct fileio_op *op, int64_t result)
{
    return (result == -EINTR || result == -EAGAIN || result == -ECANCELED) && op->tries < TRIES_MAX;
}

static void finish(struct fileio_op *op, int64_t result)
{
    op->result = result < 0 ? (int)result : 0;
    op->done(op);
}

void fileio_ended(struct fileio *io, struct fileio_op *op, int64_t result)
{
    io->in_flight--;
    if (again(op, result)) {
        op->tries++;
        enqueue(io, op);
        return;
    }
    if (result < 0 || (op->kind != FILEIO_READ && op->kind != FILEIO_WRITE)) {
        finish(op, result);
        return;
    }
    advance(op, (uint64_t)result);
    if (!op->n_iov) {
        finish(op, 0);
    } else if (result > 0) {
        op->tries = 0;
        enqueue(io, op);
    } else if (op->kind == FILEIO_READ) {
        zero_rest(op);
        finish(op, 0);
    } else {
        finish(op, -ENOSPC); /* a write that writes nothing and has no error: a device's end */
    }
}

void fileio_submit(struct fileio *io, struct fileio_op *op)
{
    op->tries = 0;
    enqueue(io, op);
}

/* What ends at once, as reads from the page cache do, is handed over here: the loop need not wake up for it. */
void fileio_kick(struct fileio *io)
{
    bool started = true;

    if (io->kicking) {
        io->again = true;
        return;
    }
    io->kicking = true;
    do {
        io->again = false;
        if (io->pending) {
            io->ops->quiet(io, true);
            started = io->ops->start(io);
            io->ops->reap(io);
            io->ops->quiet(io, false);
        }
        /* Also what ended between the last look and the moment from which on events are sent. */
        if (io->ops->reap(io))
            io->again = true;
    } while (io->again || (io->pending && started));
    io->kicking = false;
    if (!started)
        loop_timer_set(io->loop, &io->retry, clock_ns() + RETRY_NS);
}

bool fileio_wait(struct fileio *io)
{
    fileio_kick(io);
    if (!io->in_flight)
        return io->pending != NULL; /* the kernel has no room: the caller tries again */
    io->ops->wait(io);
    fileio_kick(io);
    return true;
}

static void ready(void *opaque, uint32_t events)
{
    struct fileio *io = opaque;
    uint64_t count;

    (void)!read(io->event_fd, &count, sizeof count);
    fileio_kick(io);
}

static void retry(void *opaque)
{
    fileio_kick(opaque);
}

static int create(struct fileio *io, enum fileio_engine engine)
{
    io->ops = engine == FILEIO_THREADS ? &fileio_threads : &fileio_uring;
    int err = io->ops->create(io);
    if (err && engine == FILEIO_AUTO) {
        io->ops = &fileio_threads;
        err = io->ops->create(io);
    }
    if (err)
        return err;
    err = loop_fd_add(io->loop, io->event_fd, EPOLLIN, ready, io);
    if (err)
        io->ops->destroy(io);
    return err;
}

int fileio_create(struct fileio **out, struct loop *loop, enum fileio_engine engine)
{
    struct fileio *io = calloc(1, sizeof *io);
    if (!io)
        return -ENOMEM;
    io->loop = loop;
    io->pending_end = &io->pending;
    loop_timer_init(&io->retry, retry, io);
    io->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    int err = io->event_fd < 0 ? -errno : create(io, engine);
    if (err) {
        if (io->event_fd >= 0)
            close(io->event_fd);
        free(io);
        return err;
    }
    *out = io;
    return 0;
}

void fileio_destroy(struct fileio *io)
{
    if (!io)
        return;
    loop_timer_cancel(io->loop, &io->retry);
    loop_fd_del(io->loop, io->event_fd);
    io->ops->destroy(io);
    close(io->event_fd);
    free(io);
}
