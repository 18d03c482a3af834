#include "host/thread.h"

#include <signal.h>

int thread_start(pthread_t *thread, const pthread_attr_t *attributes, void *(*run)(void *opaque), void *opaque)
{
    sigset_t all, old;

    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    int err = pthread_create(thread, attributes, run, opaque);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    return -err;
}
