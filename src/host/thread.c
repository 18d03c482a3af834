#include "host/thread.h"

#include <signal.h>
#include <stdint.h>
#include <sys/mman.h>

int thread_start(pthread_t *thread, const pthread_attr_t *attributes, void *(*run)(void *opaque), void *opaque)
{
    sigset_t all, old;

    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    int err = pthread_create(thread, attributes, run, opaque);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    return -err;
}

#define PAGE 4096u
#define DEEP (256u << 10)

void thread_trim_stack(void)
{
    const uintptr_t end = ((uintptr_t)__builtin_frame_address(0) & -(uintptr_t)PAGE) - PAGE; /* below what is in use */

    (void)madvise((void *)(end - DEEP), DEEP, MADV_DONTNEED); /* where nothing is mapped there is nothing to do */
}
