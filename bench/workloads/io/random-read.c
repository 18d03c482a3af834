/* 4 KiB of the disk at random places, one at a time, past the page cache. */
#include "system.h"
#include <fcntl.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

struct disk {
    int fd;
    uint64_t blocks;
    void *buffer;
};

static long read_blocks(long n, void *arg)
{
    const struct disk *d = arg;
    uint64_t state = 88172645463325252ull;
    while (n--)
        if (pread(d->fd, d->buffer, 4096, (off_t)(next_random(&state) % d->blocks * 4096)) != 4096)
            return 1;
    return 0;
}

int main(void)
{
    struct stat st;
    struct disk d = {.fd = open("/bench/data", O_RDONLY | O_DIRECT)};
    if (d.fd < 0 || fstat(d.fd, &st) || posix_memalign(&d.buffer, 4096, 4096))
        return 1;
    d.blocks = (uint64_t)st.st_size / 4096;
    return measure("random-read", read_blocks, &d);
}
