/* File operations by a few threads, where io_uring is refused. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

#include "backends/disk/fileio_int.h"
#include "host/sandbox.h"
#include "host/thread.h"

#define STACK 262144u

struct fileio_pool {
    struct loop *loop;
    int event_fd;
    pthread_mutex_t lock; /* guards all below; taken with the loop's lock held, never the other way round */
    pthread_cond_t work, ended;
    struct fileio_op *todo, **todo_end;
    struct fileio_op *done; /* newest first */
    bool stop;
    pthread_t threads[FILEIO_THREADS_N];
    unsigned n;
};

static int64_t execute(const struct fileio_op *op)
{
    int64_t result = 0;

    switch (op->kind) {
    case FILEIO_READ:
        result = preadv(op->fd, op->iov, (int)op->n_iov, (off_t)op->offset);
        break;
    case FILEIO_WRITE:
        result = pwritev2(op->fd, op->iov, (int)op->n_iov, (off_t)op->offset, op->flags);
        break;
    case FILEIO_SYNC:
        result = fdatasync(op->fd);
        break;
    case FILEIO_ALLOCATE:
        result = fallocate(op->fd, op->flags, (off_t)op->offset, (off_t)op->length);
        break;
    }
    return result < 0 ? -errno : result;
}

static struct fileio_op *take(struct fileio_pool *p)
{
    struct fileio_op *op;

    pthread_mutex_lock(&p->lock);
    while (!p->todo && !p->stop)
        pthread_cond_wait(&p->work, &p->lock);
    op = p->todo;
    if (op && !(p->todo = op->next))
        p->todo_end = &p->todo;
    pthread_mutex_unlock(&p->lock);
    return op;
}

static void give_back(struct fileio_pool *p, struct fileio_op *op)
{
    uint64_t one = 1;

    pthread_mutex_lock(&p->lock);
    op->next = p->done;
    p->done = op;
    pthread_cond_signal(&p->ended);
    pthread_mutex_unlock(&p->lock);
    (void)!write(p->event_fd, &one, sizeof one);
}

static void *worker(void *opaque)
{
    struct fileio_pool *p = opaque;
    const struct sandbox *confined = NULL; /* there may be one since the thread was started */
    struct fileio_op *op;

    while ((op = take(p))) {
        if (!confined && (confined = loop_sandbox(p->loop)))
            sandbox_thread(confined, SANDBOX_WORKER);
        op->step = execute(op);
        give_back(p, op);
    }
    return NULL;
}

static int start_threads(struct fileio_pool *p)
{
    pthread_attr_t attr;
    int err = 0;

    pthread_attr_init(&attr);
    pthread_attr_setstacksize(&attr, STACK);
    while (p->n < FILEIO_THREADS_N && !err) {
        err = thread_start(&p->threads[p->n], &attr, worker, p);
        p->n += !err;
    }
    pthread_attr_destroy(&attr);
    return p->n ? 0 : err;
}

static void threads_destroy(struct fileio *io)
{
    struct fileio_pool *p = io->pool;

    pthread_mutex_lock(&p->lock);
    p->stop = true;
    pthread_cond_broadcast(&p->work);
    pthread_mutex_unlock(&p->lock);
    while (p->n)
        pthread_join(p->threads[--p->n], NULL);
    pthread_cond_destroy(&p->ended);
    pthread_cond_destroy(&p->work);
    pthread_mutex_destroy(&p->lock);
    free(p);
    io->pool = NULL;
}

static int threads_create(struct fileio *io)
{
    struct fileio_pool *p = calloc(1, sizeof *p);
    if (!p)
        return -ENOMEM;
    p->loop = io->loop;
    p->event_fd = io->event_fd;
    p->todo_end = &p->todo;
    pthread_mutex_init(&p->lock, NULL);
    pthread_cond_init(&p->work, NULL);
    pthread_cond_init(&p->ended, NULL);
    io->pool = p;
    int err = start_threads(p);
    if (err)
        threads_destroy(io);
    return err;
}

static bool threads_start(struct fileio *io)
{
    struct fileio_pool *p = io->pool;

    pthread_mutex_lock(&p->lock);
    *p->todo_end = io->pending;
    for (struct fileio_op *op = io->pending; op; op = op->next) {
        io->in_flight++;
        p->todo_end = &op->next;
        pthread_cond_signal(&p->work);
    }
    pthread_mutex_unlock(&p->lock);
    io->pending = NULL;
    io->pending_end = &io->pending;
    return true;
}

static unsigned threads_reap(struct fileio *io)
{
    unsigned n = 0;

    pthread_mutex_lock(&io->pool->lock);
    struct fileio_op *op = io->pool->done, *next;
    io->pool->done = NULL;
    pthread_mutex_unlock(&io->pool->lock);
    for (; op; op = next, n++) {
        next = op->next;
        fileio_ended(io, op, op->step);
    }
    return n;
}

static void threads_wait(struct fileio *io)
{
    struct fileio_pool *p = io->pool;

    pthread_mutex_lock(&p->lock);
    while (!p->done)
        pthread_cond_wait(&p->ended, &p->lock);
    pthread_mutex_unlock(&p->lock);
}

static void threads_quiet(struct fileio *io, bool quiet) {}

const struct fileio_ops fileio_threads = {
    .create = threads_create,
    .destroy = threads_destroy,
    .start = threads_start,
    .reap = threads_reap,
    .wait = threads_wait,
    .quiet = threads_quiet,
};
