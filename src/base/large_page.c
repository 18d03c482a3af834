#include "base/large_page.h"

#include <stdatomic.h>
#include <stddef.h>
#include <sys/mman.h>
#include <time.h>

#include "base/simd.h"

#define PAGE 4096u
#define LONG_NS 5000000u /* twenty times what one takes that the host has at hand */

void *large_page_map(uint64_t size, int protection)
{
    const uint64_t room = size + LARGE_PAGE;
    uint8_t *p = mmap(NULL, room, protection, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

    if (p == MAP_FAILED)
        return NULL;
    const uint64_t head = -(uintptr_t)p & (LARGE_PAGE - 1), end = (head + size + PAGE - 1) & -(uint64_t)PAGE;
    if (head)
        munmap(p, head);
    if (end < room)
        munmap(p + end, room - end);
    return p + head;
}

static _Atomic bool none;

/* The thread's own, so that it counts what the kernel had to do, not who else was busy. */
SIMD_GENERAL static uint64_t cpu_ns(void)
{
    struct timespec t;

    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec;
}

SIMD_GENERAL bool large_page_ask(void *at)
{
    if (atomic_load(&none))
        return false;
    const uint64_t begin = cpu_ns();
    /* a small page has to be there, in which the others come together */
    const bool got = !madvise(at, PAGE, MADV_POPULATE_WRITE) && !madvise(at, LARGE_PAGE, MADV_COLLAPSE);
    if (!got || cpu_ns() - begin > LONG_NS)
        atomic_store(&none, true);
    return got;
}
