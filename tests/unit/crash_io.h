/*
 * File operations on a host that loses power: what is written is there to be read at once, as in the page cache, but on
 * stable storage only after a sync; at a crash any part of the rest is there as well, in pieces of 512 bytes.
 * Operations end in any order, some later, and some fail.
 */
#pragma once
#include <sys/eventfd.h>

#include "backends/disk/fileio_int.h"
#include "disk_fixture.h"

#define CRASH_PIECE 512u
#define CRASH_QUEUE 4096u

struct crash_write {
    uint64_t offset, length;
    uint8_t *data; /* NULL: a hole */
    uint64_t number;
};

struct crash_io {
    struct fileio io; /* first: it is what a backend gets */
    uint64_t seed;
    int stable; /* the file as it is on stable storage */
    struct fileio_op *todo[CRASH_QUEUE];
    unsigned n_todo;
    struct crash_write *writes; /* not yet on stable storage */
    unsigned n_writes, max_writes;
    bool dead;     /* the power is off: nothing has an effect */
    bool orderly;  /* everything at once, in order */
    unsigned fail; /* one operation in so many fails; 0: none */
    int fail_with;
    unsigned syncs;
    uint64_t number; /* of the next write */
};

static inline struct crash_io *crash_of(struct fileio *io)
{
    return (struct crash_io *)io;
}

static inline void crash_note(struct crash_io *c, uint64_t offset, uint64_t length, const struct iovec *iov)
{
    if (c->n_writes == c->max_writes) {
        c->max_writes = c->max_writes ? 2 * c->max_writes : 64;
        c->writes = realloc(c->writes, c->max_writes * sizeof *c->writes);
    }
    struct crash_write *w = &c->writes[c->n_writes++];
    *w = (struct crash_write){offset, length, iov ? malloc(length) : NULL, c->number++};
    for (uint64_t done = 0; iov && done < length; done += iov++->iov_len)
        memcpy(w->data + done, iov->iov_base, iov->iov_len);
}

static inline void crash_apply(int fd, const struct crash_write *w, uint64_t at, uint64_t length)
{
    static const uint8_t zeroes[65536];

    while (length) {
        uint64_t piece = length < sizeof zeroes ? length : sizeof zeroes;
        assert_int_equal(pwrite(fd, w->data ? w->data + at : zeroes, piece, (off_t)(w->offset + at)), piece);
        at += piece;
        length -= piece;
    }
}

/* A sync covers what was written before it began, not before it ended. */
static inline void crash_sync(struct crash_io *c, uint64_t before)
{
    unsigned kept = 0;

    for (unsigned i = 0; i < c->n_writes; i++) {
        struct crash_write w = c->writes[i];
        if (w.number < before) {
            crash_apply(c->stable, &w, 0, w.length);
            free(w.data);
        } else {
            c->writes[kept++] = w;
        }
    }
    c->n_writes = kept;
    c->syncs++;
}

/* What was written last is on stable storage by itself: it takes the place of whatever was on its way there. */
static inline void crash_sync_last(struct crash_io *c)
{
    struct crash_write last = c->writes[--c->n_writes];
    uint64_t end = last.offset + last.length;
    unsigned n = c->n_writes;

    crash_apply(c->stable, &last, 0, last.length);
    for (unsigned i = 0; i < n; i++) {
        struct crash_write w = c->writes[i]; /* its parts before and behind remain, in its place in the order */
        uint64_t w_end = w.offset + w.length;
        if (w.offset >= end || last.offset >= w_end)
            continue;
        uint64_t head = last.offset > w.offset ? last.offset - w.offset : 0;
        uint64_t tail = w_end > end ? w_end - end : 0;
        c->writes[i].length = head;
        if (!tail)
            continue;
        struct iovec rest = {w.data ? w.data + w.length - tail : NULL, tail};
        crash_note(c, end, tail, w.data ? &rest : NULL);
        struct crash_write moved = c->writes[c->n_writes - 1];
        moved.number = w.number;
        memmove(&c->writes[i + 2], &c->writes[i + 1], (c->n_writes - i - 2) * sizeof moved);
        c->writes[i + 1] = moved;
        i++;
        n++;
    }
    free(last.data);
}

static inline int64_t crash_execute(struct crash_io *c, struct fileio_op *op)
{
    int64_t result = 0;

    if (c->dead)
        return -EIO;
    if (c->fail && disk_random(&c->seed) % c->fail == 0 && op->kind != FILEIO_READ)
        return c->fail_with;
    if (op->kind == FILEIO_READ)
        result = preadv(op->fd, op->iov, (int)op->n_iov, (off_t)op->offset);
    else if (op->kind == FILEIO_WRITE)
        result = pwritev(op->fd, op->iov, (int)op->n_iov, (off_t)op->offset);
    else if (op->kind == FILEIO_ALLOCATE)
        result = fallocate(op->fd, op->flags, (off_t)op->offset, (off_t)op->length);
    else
        crash_sync(c, op->offset);
    if (result < 0)
        return -errno;
    if (op->kind == FILEIO_WRITE)
        crash_note(c, op->offset, (uint64_t)result, op->iov);
    if (op->kind == FILEIO_ALLOCATE)
        crash_note(c, op->offset, op->length, NULL);
    if (op->kind == FILEIO_WRITE && (op->flags & RWF_DSYNC))
        crash_sync_last(c);
    return result;
}

static inline bool crash_start(struct fileio *io)
{
    struct crash_io *c = crash_of(io);
    struct fileio_op *op;

    while ((op = fileio_next(io))) {
        assert_true(c->n_todo < CRASH_QUEUE);
        c->todo[c->n_todo++] = op;
        if (op->kind == FILEIO_SYNC)
            op->offset = c->number;
        io->in_flight++;
    }
    return true;
}

static inline void crash_end_one(struct crash_io *c)
{
    unsigned i = c->orderly ? 0 : (unsigned)(disk_random(&c->seed) % c->n_todo);
    struct fileio_op *op = c->todo[i];

    memmove(&c->todo[i], &c->todo[i + 1], (--c->n_todo - i) * sizeof *c->todo);
    fileio_ended(&c->io, op, crash_execute(c, op));
}

static inline unsigned crash_reap(struct fileio *io)
{
    struct crash_io *c = crash_of(io);
    unsigned n = 0;

    while (c->n_todo && (c->orderly || disk_random(&c->seed) % 4 == 0)) {
        crash_end_one(c);
        n++;
    }
    return n;
}

static inline void crash_wait(struct fileio *io)
{
    if (crash_of(io)->n_todo)
        crash_end_one(crash_of(io));
}

static inline void crash_quiet(struct fileio *io, bool quiet) {}

static inline void crash_destroy(struct fileio *io)
{
    struct crash_io *c = crash_of(io);

    for (unsigned i = 0; i < c->n_writes; i++)
        free(c->writes[i].data);
    free(c->writes);
    close(c->stable);
}

static const struct fileio_ops crash_ops = {
    .destroy = crash_destroy, .start = crash_start, .reap = crash_reap, .wait = crash_wait, .quiet = crash_quiet};

static inline void crash_copy(const char *from, const char *to)
{
    char command[400];
    snprintf(command, sizeof command, "cp --sparse=always %s %s", from, to);
    assert_int_equal(system(command), 0);
}

/* For the file `path`; `stable` is where its stable storage is. */
static inline struct crash_io *crash_create(struct loop *loop, const char *path, const char *stable, uint64_t seed)
{
    struct crash_io *c = calloc(1, sizeof *c);

    crash_copy(path, stable);
    c->io.ops = &crash_ops;
    c->io.loop = loop;
    c->io.pending_end = &c->io.pending;
    loop_timer_init(&c->io.retry, NULL, NULL);
    c->io.event_fd = eventfd(0, EFD_CLOEXEC);
    c->seed = seed;
    c->stable = open(stable, O_RDWR | O_CLOEXEC);
    c->fail_with = -EIO;
    assert_true(c->stable >= 0);
    return c;
}

/* The power fails: some of what was not synced reaches the stable file, in any order. */
static inline void crash_power_off(struct crash_io *c)
{
    unsigned likely = (unsigned)(disk_random(&c->seed) % 5);

    c->dead = true;
    for (unsigned pass = 0; pass < 2; pass++)
        for (unsigned k = c->n_writes; k-- > 0;) {
            const struct crash_write *w = &c->writes[pass ? k : disk_random(&c->seed) % c->n_writes];
            for (uint64_t at = 0; at < w->length; at += CRASH_PIECE)
                if (disk_random(&c->seed) % 4 < likely)
                    crash_apply(c->stable, w, at, w->length - at < CRASH_PIECE ? w->length - at : CRASH_PIECE);
        }
}
