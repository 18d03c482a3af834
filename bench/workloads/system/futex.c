/* Two threads that wake each other in turns: one operation is there and back. */
#include "system.h"
#include <linux/futex.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/syscall.h>
#include <unistd.h>

static _Atomic uint32_t turn; /* even: the first thread's; UINT32_MAX: the end */

static void pass_to(uint32_t next)
{
    atomic_store(&turn, next);
    syscall(SYS_futex, &turn, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
}

static uint32_t wait_for_other(uint32_t mine)
{
    uint32_t seen;
    while ((seen = atomic_load(&turn)) == mine)
        syscall(SYS_futex, &turn, FUTEX_WAIT_PRIVATE, mine, NULL, NULL, 0);
    return seen;
}

static void *other(void *arg)
{
    for (uint32_t seen = 0; (seen = wait_for_other(seen)) != UINT32_MAX;)
        pass_to(seen = 0);
    return arg;
}

static long round_trips(long n, void *arg)
{
    (void)arg;
    while (n--) {
        pass_to(1);
        wait_for_other(1);
    }
    return 0;
}

int main(void)
{
    pthread_t thread;
    if (pthread_create(&thread, NULL, other, NULL))
        return 1;
    int status = measure("futex", round_trips, NULL);
    pass_to(UINT32_MAX);
    pthread_join(thread, NULL);
    return status;
}
