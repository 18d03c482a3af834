/* A loop for disks to be driven by, and one request at a time or many. */
#pragma once
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "backends/disk.h"
#include "base/error.h"
#include "host/loop.h"

struct disk_fixture {
    pthread_mutex_t lock;
    struct loop *loop;
    char directory[64];
    char error[ERROR_SIZE];
};

static inline void disk_fixture_open(struct disk_fixture *f)
{
    memset(f, 0, sizeof *f);
    pthread_mutex_init(&f->lock, NULL);
    assert_int_equal(loop_create(&f->loop, &f->lock), 0);
    strcpy(f->directory, "/tmp/guise-disk.XXXXXX");
    assert_non_null(mkdtemp(f->directory));
}

static inline void disk_fixture_close(struct disk_fixture *f)
{
    char command[128];

    loop_destroy(f->loop);
    snprintf(command, sizeof command, "rm -rf %s", f->directory);
    assert_int_equal(system(command), 0);
}

/* The one of a test, and what cmocka does around each of its parts. */
static struct disk_fixture fx;

static inline int disk_setup(void **state)
{
    disk_fixture_open(&fx);
    return 0;
}

static inline int disk_teardown(void **state)
{
    disk_fixture_close(&fx);
    return 0;
}

/* The path of a file in the fixture's directory; the next call but fifteen overwrites it. */
static inline const char *disk_path(struct disk_fixture *f, const char *name)
{
    static char paths[16][128];
    static unsigned turn;
    char *path = paths[turn++ % 16];

    snprintf(path, sizeof paths[0], "%s/%s", f->directory, name);
    return path;
}

static inline const char *disk_file(struct disk_fixture *f, const char *name, uint64_t size)
{
    const char *path = disk_path(f, name);
    int fd = open(path, O_RDWR | O_CREAT | O_TRUNC, 0600);

    assert_true(fd >= 0);
    assert_int_equal(ftruncate(fd, (off_t)size), 0);
    close(fd);
    return path;
}

static inline struct disk *disk_must_open(struct disk_fixture *f, const char *words)
{
    struct disk *disk = NULL;
    int err = disk_open(&disk, words, f->loop, f->error, sizeof f->error);

    if (err)
        fail_msg("%s: %s", words, f->error);
    return disk;
}

static inline void disk_is_done(struct disk_request *r)
{
    *(bool *)r->opaque = true;
}

/* One request, to its end. */
static inline int disk_do(struct disk *d, enum disk_op op, uint32_t flags, uint64_t offset, void *data, uint64_t length)
{
    bool done = false;
    struct iovec iov = {data, length};
    struct disk_request r = {.op = op,
                             .flags = flags,
                             .offset = offset,
                             .length = length,
                             .iov = &iov,
                             .n_iov = op == DISK_READ || op == DISK_WRITE,
                             .done = disk_is_done,
                             .opaque = &done};
    disk_submit(d, &r);
    assert_false(done); /* never inside submit */
    disk_drain(d);
    assert_true(done);
    return r.result;
}

static inline int disk_read(struct disk *d, uint64_t offset, void *data, uint64_t length)
{
    return disk_do(d, DISK_READ, 0, offset, data, length);
}
static inline int disk_write(struct disk *d, uint64_t offset, const void *data, uint64_t length)
{
    return disk_do(d, DISK_WRITE, 0, offset, (void *)(uintptr_t)data, length);
}

static inline uint64_t disk_random(uint64_t *seed)
{
    *seed ^= *seed << 13;
    *seed ^= *seed >> 7;
    return *seed ^= *seed << 17;
}

static inline void disk_fill(uint8_t *data, size_t len, uint64_t seed)
{
    for (size_t i = 0; i < len; i++)
        data[i] = (uint8_t)(disk_random(&seed) >> 24);
}

static inline uint64_t disk_blocks(const char *path) /* 512-byte blocks that the host uses for it */
{
    struct stat st;
    assert_int_equal(stat(path, &st), 0);
    return (uint64_t)st.st_blocks;
}
