/*
 * Writes records and says which of them are on stable storage; after a crash, says which of them are there.  Static;
 * runs in a guest of tests/guest/disk-kill.sh, which compares the two.
 *
 *   write-verify verify DIRECTORY         found KIND SLOT SEQUENCE, for each record; damaged KIND SLOT
 *   write-verify write DIRECTORY SEED     until killed: flushed KIND SLOT SEQUENCE, after each fsync
 *
 * Kinds: `file`, replaced by rename, each version whole or not there; `log`, appended to, a prefix of it whole;
 * `block`, written in place by O_DIRECT and fdatasync, of which the newest is checked only where no write was under
 * way.  Beside them, work that nobody promises anything for: large writes, removals, holes.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define FILES 16u
#define BLOCKS 64u
#define BLOCK 4096u
#define RECORD_MAX 60000u
#define LOG_RECORD 1500u

struct record {
    uint32_t magic, slot, sequence, length; /* length: bytes behind this */
    uint64_t sum;
};

static uint8_t data[sizeof(struct record) + RECORD_MAX] __attribute__((aligned(4096)));
static uint64_t seed;

static uint64_t next(void)
{
    seed ^= seed << 13;
    seed ^= seed >> 7;
    return seed ^= seed << 17;
}

static uint64_t sum(const uint8_t *p, size_t n)
{
    uint64_t h = 0xcbf29ce484222325ull;
    while (n--)
        h = (h ^ *p++) * 0x100000001b3ull;
    return h;
}

static size_t make(uint32_t slot, uint32_t sequence, uint32_t length)
{
    struct record *r = (struct record *)data;
    uint64_t fill = ((uint64_t)slot << 32 | sequence) * 0x9e3779b97f4a7c15ull | 1;

    for (uint32_t i = 0; i < length; i++) {
        fill ^= fill << 13, fill ^= fill >> 7, fill ^= fill << 17;
        data[sizeof *r + i] = (uint8_t)(fill >> 20);
    }
    *r = (struct record){0x47524543, slot, sequence, length, sum(data + sizeof *r, length)};
    return sizeof *r + length;
}

static int valid(uint32_t slot, size_t got)
{
    const struct record *r = (const struct record *)data;
    return got >= sizeof *r && r->magic == 0x47524543 && r->slot == slot && r->length <= got - sizeof *r &&
           r->sum == sum(data + sizeof *r, r->length);
}

static void die(const char *what)
{
    printf("failed %s: %s\n", what, strerror(errno));
    exit(1);
}

static void say(const char *what, const char *kind, unsigned slot, unsigned sequence)
{
    char line[80];
    int n = snprintf(line, sizeof line, "%s %s %u %u\n", what, kind, slot, sequence);
    if (write(1, line, (size_t)n) != n)
        exit(1);
}

/* Reads at most a record from the file; -1: it is not there. */
static ssize_t load(const char *path)
{
    int fd = open(path, O_RDONLY);
    ssize_t n = fd < 0 ? -1 : read(fd, data, sizeof data);
    if (fd >= 0)
        close(fd);
    return n;
}

/* --- verify ------------------------------------------------------------------------------------------------ */

static uint32_t found[3][BLOCKS];

static void verify_files(int silent)
{
    for (unsigned i = 0; i < FILES; i++) {
        char path[32];
        snprintf(path, sizeof path, "file-%u", i);
        ssize_t n = load(path);
        if (n < 0)
            continue;
        found[0][i] = valid(i, (size_t)n) ? ((struct record *)data)->sequence : 0;
        if (!silent)
            say(valid(i, (size_t)n) ? "found" : "damaged", "file", i, found[0][i]);
    }
}

static uint32_t verify_log(int silent)
{
    int fd = open("log", O_RDONLY);
    uint32_t n = 0;

    while (fd >= 0 &&
           read(fd, data, sizeof(struct record) + LOG_RECORD) == (ssize_t)(sizeof(struct record) + LOG_RECORD) &&
           valid(n + 1, sizeof(struct record) + LOG_RECORD))
        n++;
    if (fd >= 0)
        close(fd);
    if (!silent)
        say("found", "log", 0, n);
    return n;
}

static void verify_blocks(int silent)
{
    int fd = open("blocks", O_RDONLY);

    for (unsigned i = 0; fd >= 0 && i < BLOCKS; i++) {
        ssize_t n = pread(fd, data, BLOCK, (off_t)i * BLOCK);
        int empty = n == BLOCK && !((struct record *)data)->magic;
        found[2][i] = valid(i, (size_t)(n < 0 ? 0 : n)) ? ((struct record *)data)->sequence : 0;
        if (!silent)
            say(found[2][i] || empty ? "found" : "damaged", "block", i, found[2][i]);
    }
    if (fd >= 0)
        close(fd);
}

/* --- write --------------------------------------------------------------------------------------------------- */

static void write_file(int directory)
{
    unsigned slot = (unsigned)(next() % FILES);
    size_t n = make(slot, ++found[0][slot], (uint32_t)(1 + next() % RECORD_MAX));
    char to[32];

    snprintf(to, sizeof to, "file-%u", slot);
    int fd = open("new", O_WRONLY | O_CREAT | O_TRUNC, 0600);
    if (fd < 0 || write(fd, data, n) != (ssize_t)n || fsync(fd) || close(fd) || rename("new", to) || fsync(directory))
        die("file");
    say("flushed", "file", slot, found[0][slot]);
}

static void write_log(int fd, uint32_t *records)
{
    size_t n = make(*records + 1, 1, LOG_RECORD);

    if (pwrite(fd, data, n, (off_t)(*records * n)) != (ssize_t)n || fdatasync(fd))
        die("log");
    say("flushed", "log", 0, ++*records);
}

static void write_block(int fd)
{
    unsigned slot = (unsigned)(next() % BLOCKS);

    make(slot, ++found[2][slot], BLOCK - sizeof(struct record));
    if (pwrite(fd, data, BLOCK, (off_t)slot * BLOCK) != BLOCK || fdatasync(fd))
        die("block");
    say("flushed", "block", slot, found[2][slot]);
}

static void write_noise(void)
{
    char path[32];

    snprintf(path, sizeof path, "noise-%u", (unsigned)(next() % 8));
    if (next() % 4 == 0) {
        unlink(path);
        return;
    }
    int fd = open(path, O_WRONLY | O_CREAT, 0600);
    off_t at = (off_t)(next() % 64 * 32768);
    if (fd < 0)
        die("noise");
    if (next() % 4 == 0)
        (void)!fallocate(fd, 3 /* PUNCH_HOLE | KEEP_SIZE */, at, 65536);
    else
        (void)!pwrite(fd, data, sizeof data, at);
    close(fd);
}

static void write_all(void)
{
    int directory = open(".", O_RDONLY | O_DIRECTORY), log = open("log", O_WRONLY | O_CREAT, 0600);
    int blocks = open("blocks", O_RDWR | O_CREAT | O_DIRECT, 0600);

    verify_files(1);
    verify_blocks(1);
    uint32_t records = verify_log(1);
    if (directory < 0 || log < 0 || blocks < 0 ||
        ftruncate(log, (off_t)records * (off_t)(sizeof(struct record) + LOG_RECORD)) ||
        ftruncate(blocks, (off_t)BLOCKS * BLOCK) || fsync(blocks) || fsync(log) || fsync(directory))
        die("set-up");
    say("begun", "-", 0, 0);
    for (;;) {
        switch (next() % 5) {
        case 0:
            write_file(directory);
            break;
        case 1:
            write_log(log, &records);
            break;
        case 2:
            write_block(blocks);
            break;
        default:
            write_noise();
        }
    }
}

int main(int argc, char **argv)
{
    if (argc < 3 || chdir(argv[2]))
        return 2;
    seed = argc > 3 ? strtoull(argv[3], NULL, 10) * 2 + 1 : 1;
    if (strcmp(argv[1], "write") == 0)
        write_all();
    verify_files(0);
    verify_log(0);
    verify_blocks(0);
    say("verified", "-", 0, 0);
    return 0;
}
