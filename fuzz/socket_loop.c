#include "socket_loop.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/epoll.h>

#include "sockets.h"

#define WATCHES 16u
#define TIMERS 16u
#define PASSES_MAX 100000u /* whoever wants more will never have enough */

struct watch {
    int fd; /* -1: none */
    uint32_t events, generation;
    void (*fn)(void *opaque, uint32_t events);
    void *opaque;
};

struct loop {
    pthread_mutex_t *lock;
    struct watch watches[WATCHES];
    struct loop_timer *timers[TIMERS];
    uint32_t generation;
    bool in_pass, stop;
    struct loop_mailbox *mailboxes;
};

static uint64_t now = 1000000000;

uint64_t clock_ns(void)
{
    return now;
}

void clock_advance(uint64_t ns)
{
    now += ns;
}

int loop_create(struct loop **out, pthread_mutex_t *lock)
{
    struct loop *loop = calloc(1, sizeof *loop);

    if (!loop)
        return -ENOMEM;
    loop->lock = lock;
    for (unsigned i = 0; i < WATCHES; i++)
        loop->watches[i].fd = -1;
    *out = loop;
    return 0;
}

void loop_destroy(struct loop *loop)
{
    free(loop);
}

void loop_stop(struct loop *loop)
{
    loop->stop = true;
}

void loop_set_sandbox(struct loop *loop, const struct sandbox *sandbox) {}

const struct sandbox *loop_sandbox(struct loop *loop)
{
    return NULL;
}

pthread_mutex_t *loop_lock(struct loop *loop)
{
    return loop->lock;
}

struct loop_mailbox **loop_mailboxes(struct loop *loop)
{
    return &loop->mailboxes;
}

/* --- timers ---------------------------------------------------------------------------------------------------- */

void loop_timer_init(struct loop_timer *t, void (*fn)(void *), void *opaque)
{
    *t = (struct loop_timer){.fn = fn, .opaque = opaque, .deadline_ns = UINT64_MAX, .heap_index = -1};
}

void loop_timer_set(struct loop *loop, struct loop_timer *t, uint64_t deadline_ns)
{
    unsigned i = 0;

    if (deadline_ns == UINT64_MAX) {
        loop_timer_cancel(loop, t);
        return;
    }
    t->deadline_ns = loop->in_pass && deadline_ns <= now ? now + 1 : deadline_ns; /* once in a pass */
    if (t->heap_index >= 0)
        return;
    while (loop->timers[i])
        if (++i == TIMERS)
            abort();
    loop->timers[i] = t;
    t->heap_index = (int)i;
}

void loop_timer_cancel(struct loop *loop, struct loop_timer *t)
{
    if (t->heap_index >= 0)
        loop->timers[t->heap_index] = NULL;
    t->heap_index = -1;
    t->deadline_ns = UINT64_MAX;
}

static bool run_timers(struct loop *loop)
{
    bool any = false;

    for (unsigned i = 0; i < TIMERS; i++) {
        struct loop_timer *t = loop->timers[i];
        if (!t || t->deadline_ns > now)
            continue;
        loop_timer_cancel(loop, t);
        t->fn(t->opaque);
        any = true;
    }
    return any;
}

/* --- descriptors ----------------------------------------------------------------------------------------------- */

static struct watch *find_watch(struct loop *loop, int fd)
{
    for (unsigned i = 0; i < WATCHES; i++)
        if (loop->watches[i].fd == fd)
            return &loop->watches[i];
    return NULL;
}

int loop_fd_add(struct loop *loop, int fd, uint32_t events, void (*fn)(void *opaque, uint32_t events), void *opaque)
{
    struct watch *w = find_watch(loop, -1);

    if (fd < 0)
        return -EBADF;
    if (find_watch(loop, fd))
        return -EEXIST;
    if (!w)
        return -ENOMEM;
    *w = (struct watch){fd, events, ++loop->generation, fn, opaque};
    return 0;
}

int loop_fd_mod(struct loop *loop, int fd, uint32_t events)
{
    struct watch *w = fd < 0 ? NULL : find_watch(loop, fd);

    if (!w)
        return -ENOENT;
    w->events = events;
    return 0;
}

void loop_fd_del(struct loop *loop, int fd)
{
    struct watch *w = fd < 0 ? NULL : find_watch(loop, fd);

    if (w)
        w->fd = -1;
}

/* As epoll does: first what has happened, then the callbacks, though one may end what the next is about. */
static bool dispatch(struct loop *loop)
{
    uint32_t happened[WATCHES], generation[WATCHES];
    bool any = false;

    for (unsigned i = 0; i < WATCHES; i++) {
        const struct watch *w = &loop->watches[i];
        happened[i] = w->fd < 0 ? 0 : sockets_events(w->fd) & (w->events | EPOLLHUP | EPOLLERR);
        generation[i] = w->generation;
    }
    for (unsigned i = 0; i < WATCHES; i++) {
        struct watch *w = &loop->watches[i];
        if (!happened[i] || w->fd < 0 || w->generation != generation[i])
            continue;
        w->fn(w->opaque, happened[i]);
        any = true;
    }
    return any;
}

void loop_run(struct loop *loop)
{
    bool any = true;

    for (unsigned passes = 0; any && !loop->stop; passes++) {
        if (passes == PASSES_MAX)
            abort();
        pthread_mutex_lock(loop->lock);
        loop->in_pass = true;
        any = dispatch(loop);
        any |= run_timers(loop);
        loop->in_pass = false;
        now += any;
        pthread_mutex_unlock(loop->lock);
    }
    loop->stop = false;
}
