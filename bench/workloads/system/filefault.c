/* Page faults on a file that is in the page cache: map 256 pages, read each, unmap.  One operation is one page. */
#include "system.h"
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#define PAGES 256

static long touch(long n, void *arg)
{
    int fd = *(int *)arg;
    for (long done = 0; done < n; done += PAGES) {
        long pages = n - done < PAGES ? n - done : PAGES;
        char *p = mmap(NULL, PAGES * 4096, PROT_READ, MAP_SHARED, fd, 0);
        if (p == MAP_FAILED || madvise(p, PAGES * 4096, MADV_RANDOM))
            return 1;
        for (long i = 0; i < pages; i++)
            (void)((volatile char *)p)[i * 4096];
        munmap(p, PAGES * 4096);
    }
    return 0;
}

int main(void)
{
    static char page[PAGES * 4096];
    int fd = open("/tmp/filefault", O_RDWR | O_CREAT | O_TRUNC, 0600);
    if (fd < 0 || write(fd, page, sizeof page) != sizeof page)
        return 1;
    int status = measure("filefault", touch, &fd);
    unlink("/tmp/filefault");
    return status;
}
