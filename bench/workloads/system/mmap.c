/* mmap + munmap of 64 KiB that nobody touches. */
#include "system.h"
#include <sys/mman.h>

static long map(long n, void *arg)
{
    (void)arg;
    while (n--) {
        void *p = mmap(NULL, 65536, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (p == MAP_FAILED || munmap(p, 65536))
            return 1;
    }
    return 0;
}

int main(void)
{
    return measure("mmap", map, NULL);
}
