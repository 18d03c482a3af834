/*
 * A loop without descriptors, threads and clocks, in place of host/loop.c: time stands still until the target lets it
 * pass, so what a target does depends on its input alone. A target that includes this links everything else as it is;
 * the library's own loop is not pulled in, since all of its names are here.
 *
 * A target's machine has one loop. Whoever set a timer or watched a descriptor takes it back before it goes away:
 * fuzz_loop_is_empty, at the end of an input.
 */
#pragma once
#include <errno.h>

#include "fixture.h"
#include "host/loop.h"

#define FUZZ_TIMERS 64u
#define FUZZ_FDS 64
#define FUZZ_FD_FIRST 1000 /* a target makes descriptors up, from here on */

struct loop {
    struct loop_timer *timers[FUZZ_TIMERS];
    unsigned n_timers;
    uint64_t now;
    const struct sandbox *sandbox;
    pthread_mutex_t *lock;
    struct loop_mailbox *mailboxes;
    struct fuzz_watch {
        void (*fn)(void *opaque, uint32_t events);
        void *opaque;
        uint32_t events; /* 0: not watched */
    } fds[FUZZ_FDS];
};
static struct loop fuzz_loop;

int loop_create(struct loop **out, pthread_mutex_t *lock)
{
    fuzz_loop.lock = lock;
    *out = &fuzz_loop;
    return 0;
}
void loop_destroy(struct loop *loop) {}
void loop_run(struct loop *loop) {}
void loop_stop(struct loop *loop) {}
void loop_set_sandbox(struct loop *loop, const struct sandbox *sandbox)
{
    loop->sandbox = sandbox;
}
const struct sandbox *loop_sandbox(struct loop *loop)
{
    return loop->sandbox;
}
pthread_mutex_t *loop_lock(struct loop *loop)
{
    return loop->lock;
}
struct loop_mailbox **loop_mailboxes(struct loop *loop)
{
    return &loop->mailboxes;
}

uint64_t clock_ns(void)
{
    return fuzz_loop.now;
}

void loop_timer_init(struct loop_timer *t, void (*fn)(void *), void *opaque)
{
    *t = (struct loop_timer){.fn = fn, .opaque = opaque, .deadline_ns = UINT64_MAX, .heap_index = -1};
}

void loop_timer_cancel(struct loop *loop, struct loop_timer *t)
{
    if (t->heap_index >= 0) {
        struct loop_timer *last = loop->timers[--loop->n_timers];
        assert_true(loop->timers[t->heap_index] == t);
        loop->timers[t->heap_index] = last;
        last->heap_index = t->heap_index;
        t->heap_index = -1;
    }
    t->deadline_ns = UINT64_MAX;
}

void loop_timer_set(struct loop *loop, struct loop_timer *t, uint64_t deadline_ns)
{
    if (deadline_ns == UINT64_MAX) {
        loop_timer_cancel(loop, t);
        return;
    }
    t->deadline_ns = deadline_ns;
    if (t->heap_index < 0) {
        assert_true(loop->n_timers < FUZZ_TIMERS);
        t->heap_index = (int)loop->n_timers;
        loop->timers[loop->n_timers++] = t;
    }
}

static inline struct fuzz_watch *fuzz_watch(struct loop *loop, int fd)
{
    return fd >= FUZZ_FD_FIRST && fd < FUZZ_FD_FIRST + FUZZ_FDS ? &loop->fds[fd - FUZZ_FD_FIRST] : NULL;
}

int loop_fd_add(struct loop *loop, int fd, uint32_t events, void (*fn)(void *opaque, uint32_t events), void *opaque)
{
    struct fuzz_watch *w = fuzz_watch(loop, fd);

    assert_true(w && !w->events);
    *w = (struct fuzz_watch){fn, opaque, events};
    return 0;
}
int loop_fd_mod(struct loop *loop, int fd, uint32_t events)
{
    struct fuzz_watch *w = fuzz_watch(loop, fd);

    if (!w || !w->events)
        return -ENOENT;
    w->events = events;
    return 0;
}
void loop_fd_del(struct loop *loop, int fd)
{
    struct fuzz_watch *w = fuzz_watch(loop, fd);

    if (w)
        w->events = 0;
}

/* --- what a target does with it ---------------------------------------------------------------------------------- */

/* An event of a descriptor, if somebody watches it for that. */
static inline void fuzz_loop_event(int fd, uint32_t events)
{
    struct fuzz_watch w = *fuzz_watch(&fuzz_loop, fd);

    if (w.events)
        w.fn(w.opaque, events);
}

static inline struct loop_timer *fuzz_loop_due(void)
{
    struct loop_timer *first = NULL;

    for (unsigned i = 0; i < fuzz_loop.n_timers; i++)
        if (!first || fuzz_loop.timers[i]->deadline_ns < first->deadline_ns)
            first = fuzz_loop.timers[i];
    return first && first->deadline_ns <= fuzz_loop.now ? first : NULL;
}

/* Lets time pass and runs what is due, at most `passes` timers: one that is always due does not hang the target. */
static inline void fuzz_loop_pass(uint64_t ns, unsigned passes)
{
    struct loop_timer *t;

    fuzz_loop.now += ns;
    while (passes-- && (t = fuzz_loop_due())) {
        loop_timer_cancel(&fuzz_loop, t);
        t->fn(t->opaque);
    }
}

/* At the beginning of an input. */
static inline void fuzz_loop_begin(void)
{
    fuzz_loop.now = 1000000000000ull;
}

/* At its end, when all devices are gone. */
static inline void fuzz_loop_is_empty(void)
{
    assert_int_equal(fuzz_loop.n_timers, 0);
    for (int i = 0; i < FUZZ_FDS; i++)
        assert_true(!fuzz_loop.fds[i].events);
}
