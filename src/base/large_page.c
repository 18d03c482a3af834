#include "base/large_page.h"

#include <stdatomic.h>
#include <sys/mman.h>
#include <time.h>

#define QUIET __attribute__((target("general-regs-only")))
#define LONG_NS 5000000u /* twenty times what one takes that the host has at hand */

static _Atomic bool none;

/* The thread's own, so that it counts what the kernel had to do, not who else was busy. */
QUIET static uint64_t cpu_ns(void)
{
    struct timespec t;

    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec;
}

QUIET bool large_page_ask(void *at)
{
    const uint64_t begin = cpu_ns();

    if (atomic_load(&none))
        return false;
    /* a small page has to be there, in which the others come together */
    const bool got = !madvise(at, 4096, MADV_POPULATE_WRITE) && !madvise(at, LARGE_PAGE, MADV_COLLAPSE);
    if (!got || cpu_ns() - begin > LONG_NS)
        atomic_store(&none, true);
    return got;
}
