/*
 * randio FILE SECONDS: 4 KiB reads, then 4 KiB writes with O_DIRECT at random places of FILE, one at a time; prints
 * how many of each a second.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "bench.h"

#define BLOCK 4096u

static double rate(int fd, uint64_t blocks, double seconds, void *buffer, int writing)
{
    uint64_t state = 88172645463325252ull, n = 0;
    double start = now(), passed;

    do {
        off_t at = (off_t)(next_random(&state) % blocks * BLOCK);
        ssize_t done = writing ? pwrite(fd, buffer, BLOCK, at) : pread(fd, buffer, BLOCK, at);
        if (done != BLOCK) {
            fprintf(stderr, "randio: %s\n", strerror(errno));
            exit(1);
        }
        n++;
        passed = now() - start;
    } while (passed < seconds);
    return (double)n / passed;
}

int main(int argc, char **argv)
{
    struct stat st;
    void *buffer;

    if (argc != 3 || posix_memalign(&buffer, BLOCK, BLOCK))
        return 2;
    int fd = open(argv[1], O_RDWR | O_DIRECT);
    if (fd < 0 || fstat(fd, &st) || st.st_size < (off_t)BLOCK) {
        fprintf(stderr, "randio: %s: %s\n", argv[1], strerror(errno));
        return 1;
    }
    memset(buffer, 0x5a, BLOCK);
    double seconds = atof(argv[2]);
    printf("random 4 KiB reads, 1/s\t%.0f\n", rate(fd, (uint64_t)st.st_size / BLOCK, seconds, buffer, 0));
    printf("random 4 KiB writes, 1/s\t%.0f\n", rate(fd, (uint64_t)st.st_size / BLOCK, seconds, buffer, 1));
    return close(fd) != 0;
}
