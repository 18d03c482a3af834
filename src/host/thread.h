/* Threads beside the event loop's and the vCPUs'. */
#pragma once
#include <pthread.h>

/* Starts one that takes no signals: these are the business of the threads that were there before.  attributes may be
 * NULL.  0/-errno. */
int thread_start(pthread_t *thread, const pthread_attr_t *attributes, void *(*run)(void *opaque), void *opaque);

/* What deeper calls have used of this thread's stack goes back to the host, up to 256 KiB of it. */
void thread_trim_stack(void);
