/*
 * diskio DEVICE SECONDS NAME: what a disk does for one program, by O_DIRECT, a part of SECONDS each:
 * "NAME: WHAT, UNIT<tab>VALUE" for sequential MB/s of 1 MiB, and operations a second of 4 KiB at random places, one at
 * a time and by 16 processes, and of 4 KiB written and flushed.
 */
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <linux/fs.h>

#include "bench.h"

#define PIECE (1u << 20)
#define BLOCK 4096u
#define WORKERS 16

static int fd;
static uint64_t size;
static uint8_t *buffer;
static double seconds;
static const char *disk;

static void check(ssize_t got, size_t wanted)
{
    if (got != (ssize_t)wanted) {
        perror("diskio");
        exit(1);
    }
}

static void sequential(const char *name, int writing)
{
    uint64_t at = 0, n = 0;
    double start = now(), passed;

    do {
        check(writing ? pwrite(fd, buffer, PIECE, (off_t)at) : pread(fd, buffer, PIECE, (off_t)at), PIECE);
        at = at + 2 * PIECE <= size ? at + PIECE : 0;
        n++;
        passed = now() - start;
    } while (passed < seconds);
    if (writing)
        fsync(fd);
    printf("%s: %s, MB/s\t%.0f\n", disk, name, (double)n * PIECE / (now() - start) / 1e6);
}

static uint64_t randomly(int writing, int flush, uint64_t state)
{
    uint64_t n = 0;
    double start = now();

    do {
        off_t at = (off_t)(next_random(&state) % (size / BLOCK) * BLOCK);
        check(writing ? pwrite(fd, buffer, BLOCK, at) : pread(fd, buffer, BLOCK, at), BLOCK);
        if (flush)
            fdatasync(fd);
        n++;
    } while (now() - start < seconds);
    return n;
}

static void print_rate(const char *name, uint64_t n)
{
    printf("%s: %s, 1/s\t%.0f\n", disk, name, (double)n / seconds);
}

static uint64_t by_many(int writing)
{
    uint64_t *counts = mmap(NULL, WORKERS * sizeof *counts, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0),
             n = 0;

    fflush(stdout);
    for (int i = 0; i < WORKERS; i++)
        if (fork() == 0) {
            counts[i] = randomly(writing, 0, 88172645463325252ull + (uint64_t)i);
            _exit(0);
        }
    for (int i = 0; i < WORKERS; i++)
        wait(NULL);
    for (int i = 0; i < WORKERS; i++)
        n += counts[i];
    return n;
}

int main(int argc, char **argv)
{
    if (argc != 4 || posix_memalign((void **)&buffer, BLOCK, PIECE))
        return 2;
    fd = open(argv[1], O_RDWR | O_DIRECT);
    if (fd < 0 || ioctl(fd, BLKGETSIZE64, &size)) {
        perror(argv[1]);
        return 1;
    }
    seconds = atof(argv[2]);
    disk = argv[3];
    memset(buffer, 0x5a, PIECE);
    sequential("write", 1);
    sequential("read", 0);
    print_rate("random read", randomly(0, 0, 1));
    print_rate("random write", randomly(1, 0, 2));
    print_rate("random read by 16", by_many(0));
    print_rate("random write by 16", by_many(1));
    print_rate("write and flush", randomly(1, 1, 3));
    puts("DONE");
    return 0;
}
