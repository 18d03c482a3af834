/*
 * The way out: a bounded queue and a thread that writes it to a descriptor.
 *
 * A thread with blocking writes, because nothing else works for every descriptor one can be handed:
 * a regular file cannot be polled; setting O_NONBLOCK on an inherited terminal or pipe would change
 * it for the shell and all others who share it, and would stay so after a crash.
 */
#pragma once
#include <stddef.h>

struct logfile;
struct loop;
struct output;

/* name is for messages.  fd may be -1: output vanishes until output_attach.  The fd stays the caller's.  The thread
 * takes to the sandbox of `loop`, which may be NULL, when there is one. */
int output_create(struct output **out, int fd, const char *name, struct loop *loop);

/* The same for a log of bounded size, which stays the caller's. */
int output_create_log(struct output **out, struct logfile *log, const char *name, struct loop *loop);

/* Queues; waits while the queue is full.  Vanishes when there is no descriptor or it is broken. */
void output_write(struct output *o, const void *data, size_t len);

/* Queues what fits, without waiting; returns how much.  When that is not all, `space` will tell once there is room
 * again.  Vanishes (and is counted as taken) as with output_write. */
size_t output_try(struct output *o, const void *data, size_t len);

/* fd, an eventfd or the like, is written to when there is room after a short output_try.  -1: no longer. */
void output_set_space(struct output *o, int fd);

void output_attach(struct output *o, int fd);

/* Forgets the descriptor and what is queued for it.  If a write can be in progress the caller has made it
 * fail first (shutdown(2)); returns when the thread no longer uses the descriptor. */
void output_detach(struct output *o);

/* Waits until what is queued is written; gives up, with a message, after ten seconds without progress. */
void output_flush(struct output *o);

/* Flushes and frees.  o may be NULL. */
void output_destroy(struct output *o);
