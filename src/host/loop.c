#include "host/loop.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

/* Timers belong to devices and vCPUs, a number fixed when the machine is built, never by a guest. */
#define MAX_TIMERS 4096
#define EVENTS_PER_PASS 32

enum { TAG_TIMER = 0, TAG_WAKE = 1, TAG_FIRST_FD = 2 };

struct watch {
    void (*fn)(void *opaque, uint32_t events);
    void *opaque;
    uint32_t generation; /* tells an event queued for a watch since deleted from one for its successor */
    bool used;
};

/* All but `stop` is guarded by *lock. */
struct loop {
    pthread_mutex_t *lock;
    int epoll_fd, timer_fd, wake_fd;
    _Atomic bool stop;
    const struct sandbox *_Atomic sandbox; /* set once; others read it */
    bool in_pass;      /* callbacks are running: the pass's end arms the timer once for all of them */
    uint64_t pass_ns;  /* the time for which due timers are being run */
    uint64_t armed_ns; /* what timer_fd will expire at; UINT64_MAX: nothing */
    unsigned n_timers;
    struct loop_timer *heap[MAX_TIMERS]; /* binary heap, earliest first; a timer knows its place */
    struct watch *watches;               /* indexed by descriptor */
    int n_watches;
    uint32_t generation;
    struct loop_mailbox *mailboxes; /* read without the lock: changed only while one thread is there */
};

uint64_t clock_ns(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000000000ull + (uint64_t)ts.tv_nsec;
}

/* --- the heap ----------------------------------------------------------------------------------- */

static void heap_place(struct loop *loop, unsigned i, struct loop_timer *t)
{
    loop->heap[i] = t;
    t->heap_index = (int)i;
}

static void heap_up(struct loop *loop, unsigned i, struct loop_timer *t)
{
    while (i > 0) {
        struct loop_timer *parent = loop->heap[(i - 1) / 2];
        if (parent->deadline_ns <= t->deadline_ns)
            break;
        heap_place(loop, i, parent);
        i = (i - 1) / 2;
    }
    heap_place(loop, i, t);
}

static void heap_down(struct loop *loop, unsigned i, struct loop_timer *t)
{
    for (;;) {
        unsigned child = 2 * i + 1;
        if (child >= loop->n_timers)
            break;
        if (child + 1 < loop->n_timers && loop->heap[child + 1]->deadline_ns < loop->heap[child]->deadline_ns)
            child++;
        if (t->deadline_ns <= loop->heap[child]->deadline_ns)
            break;
        heap_place(loop, i, loop->heap[child]);
        i = child;
    }
    heap_place(loop, i, t);
}

static void heap_remove(struct loop *loop, struct loop_timer *t)
{
    unsigned i = (unsigned)t->heap_index;
    struct loop_timer *last = loop->heap[--loop->n_timers];
    t->heap_index = -1;
    if (last == t)
        return;
    if (i > 0 && last->deadline_ns < loop->heap[(i - 1) / 2]->deadline_ns)
        heap_up(loop, i, last);
    else
        heap_down(loop, i, last);
}

/* --- timers ------------------------------------------------------------------------------------- */

void loop_timer_init(struct loop_timer *t, void (*fn)(void *), void *opaque)
{
    *t = (struct loop_timer){.fn = fn, .opaque = opaque, .deadline_ns = UINT64_MAX, .heap_index = -1};
}

/*
 * timer_fd is only ever moved to an earlier time here.  A guest sets its clock-event deadline
 * thousands of times a second, mostly later than the one before; the early wake-up that is left
 * armed costs one pass of the loop, a system call each time would cost far more.
 */
static void arm(struct loop *loop)
{
    uint64_t first = loop->n_timers ? loop->heap[0]->deadline_ns : UINT64_MAX;
    if (first >= loop->armed_ns)
        return;
    uint64_t ns = first ? first : 1; /* zero would disarm */
    struct itimerspec spec = {.it_value = {.tv_sec = (time_t)(ns / 1000000000), .tv_nsec = (long)(ns % 1000000000)}};
    timerfd_settime(loop->timer_fd, TFD_TIMER_ABSTIME, &spec, NULL);
    loop->armed_ns = first;
}

void loop_timer_set(struct loop *loop, struct loop_timer *t, uint64_t deadline_ns)
{
    if (deadline_ns == UINT64_MAX) {
        loop_timer_cancel(loop, t);
        return;
    }
    /* A timer runs once in a pass, so that one always in the past starves neither the others nor,
     * since the lock is given up between passes, the vCPUs. */
    if (loop->in_pass && deadline_ns <= loop->pass_ns)
        deadline_ns = loop->pass_ns + 1;
    uint64_t before = t->deadline_ns;
    t->deadline_ns = deadline_ns;
    if (t->heap_index < 0) {
        if (loop->n_timers == MAX_TIMERS) {
            fprintf(stderr, "guise: more than %d timers in one machine\n", MAX_TIMERS);
            abort();
        }
        heap_up(loop, loop->n_timers++, t);
    } else if (deadline_ns < before) {
        heap_up(loop, (unsigned)t->heap_index, t);
    } else {
        heap_down(loop, (unsigned)t->heap_index, t);
    }
    if (!loop->in_pass)
        arm(loop);
}

void loop_timer_cancel(struct loop *loop, struct loop_timer *t)
{
    if (t->heap_index >= 0)
        heap_remove(loop, t);
    t->deadline_ns = UINT64_MAX;
}

static void run_timers(struct loop *loop)
{
    loop->pass_ns = clock_ns();
    while (loop->n_timers && loop->heap[0]->deadline_ns <= loop->pass_ns) {
        struct loop_timer *t = loop->heap[0];
        heap_remove(loop, t);
        t->deadline_ns = UINT64_MAX;
        t->fn(t->opaque);
    }
}

/* --- descriptors -------------------------------------------------------------------------------- */

static int watch_slot(struct loop *loop, int fd)
{
    if (fd < loop->n_watches)
        return 0;
    int n = fd + 16;
    struct watch *grown = realloc(loop->watches, (size_t)n * sizeof(*grown));
    if (!grown)
        return -ENOMEM;
    for (int i = loop->n_watches; i < n; i++)
        grown[i] = (struct watch){0};
    loop->watches = grown;
    loop->n_watches = n;
    return 0;
}

static int control(struct loop *loop, int op, int fd, uint32_t events, uint64_t tag)
{
    struct epoll_event ev = {.events = events, .data.u64 = tag};
    return epoll_ctl(loop->epoll_fd, op, fd, &ev) < 0 ? -errno : 0;
}

static uint64_t watch_tag(const struct loop *loop, int fd)
{
    return TAG_FIRST_FD + (uint64_t)(unsigned)fd + ((uint64_t)loop->watches[fd].generation << 32);
}

int loop_fd_add(struct loop *loop, int fd, uint32_t events, void (*fn)(void *opaque, uint32_t events), void *opaque)
{
    if (fd < 0)
        return -EBADF;
    int err = watch_slot(loop, fd);
    if (err)
        return err;
    if (loop->watches[fd].used)
        return -EEXIST;
    loop->watches[fd] = (struct watch){.fn = fn, .opaque = opaque, .generation = ++loop->generation, .used = true};
    err = control(loop, EPOLL_CTL_ADD, fd, events, watch_tag(loop, fd));
    if (err)
        loop->watches[fd].used = false;
    return err;
}

int loop_fd_mod(struct loop *loop, int fd, uint32_t events)
{
    if (fd < 0 || fd >= loop->n_watches || !loop->watches[fd].used)
        return -ENOENT;
    return control(loop, EPOLL_CTL_MOD, fd, events, watch_tag(loop, fd));
}

void loop_fd_del(struct loop *loop, int fd)
{
    if (fd < 0 || fd >= loop->n_watches || !loop->watches[fd].used)
        return;
    loop->watches[fd].used = false;
    control(loop, EPOLL_CTL_DEL, fd, 0, 0);
}

static void dispatch(struct loop *loop, const struct epoll_event *ev)
{
    if (ev->data.u64 == TAG_TIMER) {
        loop->armed_ns = UINT64_MAX;
        return;
    }
    if (ev->data.u64 == TAG_WAKE)
        return;
    int fd = (int)((uint32_t)ev->data.u64 - TAG_FIRST_FD);
    struct watch *w = &loop->watches[fd];
    if (w->used && w->generation == (uint32_t)(ev->data.u64 >> 32))
        w->fn(w->opaque, ev->events);
}

/* --- the loop ----------------------------------------------------------------------------------- */

void loop_run(struct loop *loop)
{
    struct epoll_event events[EVENTS_PER_PASS];

    while (!atomic_load(&loop->stop)) {
        int n = epoll_wait(loop->epoll_fd, events, EVENTS_PER_PASS, -1);
        pthread_mutex_lock(loop->lock);
        loop->in_pass = true;
        loop->pass_ns = 0; /* descriptors' callbacks may set what is due at once */
        for (int i = 0; i < n; i++)
            dispatch(loop, &events[i]);
        run_timers(loop);
        loop->in_pass = false;
        arm(loop);
        pthread_mutex_unlock(loop->lock);
    }
    atomic_store(&loop->stop, false);
    uint64_t drained;
    (void)!read(loop->wake_fd, &drained, sizeof(drained));
}

void loop_stop(struct loop *loop)
{
    atomic_store(&loop->stop, true);
    uint64_t one = 1;
    (void)!write(loop->wake_fd, &one, sizeof(one));
}

void loop_set_sandbox(struct loop *loop, const struct sandbox *sandbox)
{
    atomic_store(&loop->sandbox, sandbox);
}

const struct sandbox *loop_sandbox(struct loop *loop)
{
    return atomic_load(&loop->sandbox);
}

pthread_mutex_t *loop_lock(struct loop *loop)
{
    return loop->lock;
}

struct loop_mailbox **loop_mailboxes(struct loop *loop)
{
    return &loop->mailboxes;
}

int loop_create(struct loop **out, pthread_mutex_t *lock)
{
    struct loop *loop = calloc(1, sizeof(*loop));
    if (!loop)
        return -ENOMEM;
    loop->lock = lock;
    loop->armed_ns = UINT64_MAX;
    loop->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    loop->timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
    loop->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    int err = loop->epoll_fd < 0 || loop->timer_fd < 0 || loop->wake_fd < 0 ? -errno : 0;
    /* Edge-triggered: an expiry needs no read() to be taken back, the next settime does that. */
    if (!err)
        err = control(loop, EPOLL_CTL_ADD, loop->timer_fd, EPOLLIN | EPOLLET, TAG_TIMER);
    if (!err)
        err = control(loop, EPOLL_CTL_ADD, loop->wake_fd, EPOLLIN, TAG_WAKE);
    if (err) {
        loop_destroy(loop);
        return err;
    }
    *out = loop;
    return 0;
}

void loop_destroy(struct loop *loop)
{
    if (!loop)
        return;
    int fds[] = {loop->wake_fd, loop->timer_fd, loop->epoll_fd};
    for (unsigned i = 0; i < sizeof(fds) / sizeof(fds[0]); i++)
        if (fds[i] >= 0)
            close(fds[i]);
    free(loop->watches);
    free(loop);
}
