/* Page faults: map 256 pages, touch each, unmap.  One operation is one page. */
/* quick: yes */
#include "system.h"
#include <errno.h>
#include <sys/mman.h>

#define PAGES 256

static long touch(long n, void *arg)
{
    (void)arg;
    for (long done = 0; done < n; done += PAGES) {
        long pages = n - done < PAGES ? n - done : PAGES;
        char *p = mmap(NULL, PAGES * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (p == MAP_FAILED || (madvise(p, PAGES * 4096, MADV_NOHUGEPAGE) && errno != EINVAL)) /* there are none */
            return 1;
        for (long i = 0; i < pages; i++)
            ((volatile char *)p)[i * 4096] = 1;
        munmap(p, PAGES * 4096);
    }
    return 0;
}

int main(void)
{
    return measure("fault", touch, NULL);
}
