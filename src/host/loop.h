/*
 * The event loop of a VM process: timers and file descriptors, one thread (epoll + timerfd).
 *
 * Callbacks run on the loop's thread with the lock given to loop_create held.  Every function but
 * loop_run may be called from any thread that holds that lock.
 */
#pragma once
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

struct loop;
struct loop_mailbox;
struct sandbox;

struct loop_timer {
    void (*fn)(void *opaque);
    void *opaque;
    uint64_t deadline_ns; /* CLOCK_MONOTONIC; UINT64_MAX when not armed */
    int heap_index;       /* -1 when not armed; the loop's business */
};

int loop_create(struct loop **out, pthread_mutex_t *lock);
void loop_destroy(struct loop *loop);
void loop_run(struct loop *loop);  /* until loop_stop */
void loop_stop(struct loop *loop); /* from any thread, lock not needed */

void loop_timer_init(struct loop_timer *t, void (*fn)(void *), void *opaque);
void loop_timer_set(struct loop *loop, struct loop_timer *t, uint64_t deadline_ns);
void loop_timer_cancel(struct loop *loop, struct loop_timer *t);

/* Watches fd for EPOLLIN/EPOLLOUT/...; `fn` gets the events.  0 or -errno. */
int loop_fd_add(struct loop *loop, int fd, uint32_t events, void (*fn)(void *opaque, uint32_t events), void *opaque);
int loop_fd_mod(struct loop *loop, int fd, uint32_t events);
void loop_fd_del(struct loop *loop, int fd);

/* The sandbox that the process has entered (host/sandbox.h), for threads that were there before: each takes its own
 * list of system calls before it works on.  Any thread; NULL before. */
void loop_set_sandbox(struct loop *loop, const struct sandbox *sandbox);
const struct sandbox *loop_sandbox(struct loop *loop);

/* For loop_mailbox.c: the lock, and its list. */
pthread_mutex_t *loop_lock(struct loop *loop);
struct loop_mailbox **loop_mailboxes(struct loop *loop);

uint64_t clock_ns(void); /* CLOCK_MONOTONIC now */
