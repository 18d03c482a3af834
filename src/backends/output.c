#include "backends/output.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "backends/ring.h"
#include "base/log.h"
#include "host/loop.h"
#include "host/sandbox.h"
#include "host/thread.h"
#include "base/logfile.h"

#define QUEUE_BYTES (1u << 20)
#define GIVE_UP_SECONDS 10

struct output {
    pthread_mutex_t lock;  /* guards everything below; never held across write(2) */
    pthread_cond_t wake;   /* to the thread: data, closing */
    pthread_cond_t change; /* from the thread: space, progress, idle */
    struct ring ring;
    int fd;
    int space; /* eventfd: told of room when `wanted`; or -1 */
    bool wanted;
    struct logfile *log; /* or NULL: written through this, fd is its own */
    bool writing;        /* the thread is inside write(2) with ring's front */
    bool closing;
    bool abandoned; /* output_flush has waited in vain, and said so */
    pthread_t thread;
    struct loop *loop; /* may be NULL */
    char name[108];
};

/* One write, unlocked: only the thread drops from the ring, so its front stays valid. */
static ssize_t write_some(struct output *o, int fd, const uint8_t *data, size_t len)
{
    ssize_t n;

    if (o->log) {
        int failed = logfile_write(o->log, data, len);
        return failed ? failed : (ssize_t)len;
    }
    for (;;) {
        n = write(fd, data, len);
        if (n >= 0)
            return n;
        if (errno == EAGAIN) /* somebody else made the descriptor non-blocking */
            poll(&(struct pollfd){.fd = fd, .events = POLLOUT}, 1, -1);
        else if (errno != EINTR)
            return -errno;
    }
}

/* The reader has gone or the disk is full: there is nobody to keep the bytes for. */
static void give_up(struct output *o, int error)
{
    if (o->fd >= 0 && !(error == EPIPE || error == ECONNRESET))
        log_say("writing to %s failed (%s): what the guest prints from here on is lost", o->name, strerror(error));
    o->fd = -1;
    ring_drop(&o->ring, o->ring.len);
}

/* Whoever waits for a change in the queue learns of it; o->lock held. */
static void changed(struct output *o)
{
    uint64_t one = 1;

    pthread_cond_broadcast(&o->change);
    if (!o->wanted || o->space < 0)
        return;
    o->wanted = false;
    (void)!write(o->space, &one, sizeof one);
}

/* There may be a sandbox since the thread was started: before it touches what a guest prints. */
static bool confine(struct output *o)
{
    const struct sandbox *s = o->loop ? loop_sandbox(o->loop) : NULL;

    return s && sandbox_thread(s, SANDBOX_WRITER) == 0;
}

static void *writer(void *opaque)
{
    struct output *o = opaque;
    bool confined = false;

    pthread_mutex_lock(&o->lock);
    for (;;) {
        const uint8_t *data;
        size_t len = ring_front(&o->ring, &data);
        int fd = o->fd;
        if (len == 0) {
            if (o->closing)
                break;
            pthread_cond_wait(&o->wake, &o->lock);
            continue;
        }
        o->writing = true;
        pthread_mutex_unlock(&o->lock);
        confined = confined || confine(o);
        ssize_t n = write_some(o, fd, data, len);
        pthread_mutex_lock(&o->lock);
        o->writing = false;
        if (n >= 0)
            ring_drop(&o->ring, (size_t)n);
        else
            give_up(o, (int)-n);
        changed(o);
    }
    pthread_mutex_unlock(&o->lock);
    return NULL;
}

static int create(struct output **out, int fd, struct logfile *log, const char *name, struct loop *loop)
{
    struct output *o = calloc(1, sizeof(*o));
    pthread_condattr_t monotonic;
    int r;

    if (!o)
        return -ENOMEM;
    r = ring_create(&o->ring, QUEUE_BYTES);
    if (r)
        goto no_ring;
    o->loop = loop;
    o->fd = fd;
    o->space = -1;
    o->log = log;
    snprintf(o->name, sizeof(o->name), "%s", name);
    pthread_mutex_init(&o->lock, NULL);
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&o->wake, &monotonic);
    pthread_cond_init(&o->change, &monotonic);
    pthread_condattr_destroy(&monotonic);
    r = thread_start(&o->thread, NULL, writer, o);
    if (r)
        goto no_thread;
    *out = o;
    return 0;

no_thread:
    ring_destroy(&o->ring);
no_ring:
    free(o);
    return r;
}

int output_create(struct output **out, int fd, const char *name, struct loop *loop)
{
    return create(out, fd, NULL, name, loop);
}

int output_create_log(struct output **out, struct logfile *log, const char *name, struct loop *loop)
{
    return create(out, log->fd, log, name, loop);
}

void output_write(struct output *o, const void *data, size_t len)
{
    const uint8_t *from = data;

    pthread_mutex_lock(&o->lock);
    while (len && o->fd >= 0) {
        size_t n = ring_put(&o->ring, from, len);
        from += n;
        len -= n;
        pthread_cond_signal(&o->wake);
        if (len)
            pthread_cond_wait(&o->change, &o->lock);
    }
    pthread_mutex_unlock(&o->lock);
}

size_t output_try(struct output *o, const void *data, size_t len)
{
    pthread_mutex_lock(&o->lock);
    size_t n = o->fd >= 0 ? ring_put(&o->ring, data, len) : len;
    o->wanted = n < len;
    pthread_cond_signal(&o->wake);
    pthread_mutex_unlock(&o->lock);
    return n;
}

void output_set_space(struct output *o, int fd)
{
    pthread_mutex_lock(&o->lock);
    o->space = fd;
    pthread_mutex_unlock(&o->lock);
}

void output_attach(struct output *o, int fd)
{
    pthread_mutex_lock(&o->lock);
    o->fd = fd;
    pthread_mutex_unlock(&o->lock);
}

void output_detach(struct output *o)
{
    pthread_mutex_lock(&o->lock);
    while (o->writing)
        pthread_cond_wait(&o->change, &o->lock);
    o->fd = -1;
    ring_drop(&o->ring, o->ring.len);
    changed(o);
    pthread_mutex_unlock(&o->lock);
}

/* Waits until the ring is empty.  false: no byte was taken for GIVE_UP_SECONDS. */
static bool drain(struct output *o)
{
    struct timespec until;
    size_t before = o->ring.len;

    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec += GIVE_UP_SECONDS;
    while (!o->abandoned && (o->ring.len || o->writing)) {
        if (pthread_cond_timedwait(&o->change, &o->lock, &until) == ETIMEDOUT)
            return false;
        if (o->ring.len != before) {
            before = o->ring.len;
            clock_gettime(CLOCK_MONOTONIC, &until);
            until.tv_sec += GIVE_UP_SECONDS;
        }
    }
    return true;
}

void output_flush(struct output *o)
{
    pthread_mutex_lock(&o->lock);
    bool drained = drain(o);
    size_t left = o->ring.len;
    if (!drained)
        o->abandoned = true;
    pthread_mutex_unlock(&o->lock);
    if (!drained)
        log_say("nobody has read from %s for %d seconds: %zu bytes of the guest's output are lost", o->name,
                GIVE_UP_SECONDS, left);
}

void output_destroy(struct output *o)
{
    if (!o)
        return;
    output_flush(o);
    pthread_mutex_lock(&o->lock);
    o->closing = true;
    pthread_cond_signal(&o->wake);
    pthread_mutex_unlock(&o->lock);
    if (o->abandoned)
        pthread_cancel(o->thread); /* it is inside write(2) or poll(2), where the lock is not held */
    pthread_join(o->thread, NULL);
    pthread_cond_destroy(&o->change);
    pthread_cond_destroy(&o->wake);
    pthread_mutex_destroy(&o->lock);
    ring_destroy(&o->ring);
    free(o);
}
