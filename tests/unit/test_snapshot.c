/* The file of a snapshot: what is written is read; damage of any kind is refused. */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/crc32c.h"
#include "base/error.h"
#include "vm/snapshot_file.h"

#define CHUNKS 5u
#define BYTES ((CHUNKS - 1) * SNAPSHOT_CHUNK + 4096ull)

static char err[ERROR_SIZE];
static uint8_t chunks[CHUNKS][SNAPSHOT_CHUNK];

/* 0 zeroes, 1 noise, 2 text, 3 zeroes, 4 the short last one. */
static void fill_chunks(void)
{
    uint64_t x = 1;

    memset(chunks, 0, sizeof chunks);
    for (unsigned i = 0; i < SNAPSHOT_CHUNK; i++) {
        x = x * 6364136223846793005ull + 1442695040888963407ull;
        chunks[1][i] = (uint8_t)(x >> 56);
        chunks[2][i] = (uint8_t) "guise "[i % 6];
    }
    memset(chunks[4], 7, 4096);
}

static int make(void)
{
    struct snapshot_writer *w;
    struct sections s = {0};
    int fd = memfd_create("snapshot", MFD_CLOEXEC);

    fill_chunks();
    assert_true(fd >= 0);
    assert_int_equal(snapshot_writer_create(&w, fd), 0);
    assert_int_equal(snapshot_write_extent(w, SNAPSHOT_MEMORY, BYTES), 0);
    for (unsigned i = CHUNKS; i-- > 0;) /* in any order */
        assert_int_equal(snapshot_write_chunk(w, SNAPSHOT_MEMORY, i, chunks[i], i == 4 ? 4096 : SNAPSHOT_CHUNK), 0);
    sections_add(&s, "toy", "one.0", 3, "some state", 10);
    sections_add(&s, "toy", "empty", 1, NULL, 0);
    assert_int_equal(s.failed, 0);
    assert_int_equal(snapshot_write_sections(w, &s), 0);
    assert_int_equal(snapshot_write_end(w), 0);
    snapshot_writer_destroy(w);
    sections_free(&s);
    return fd;
}

static void what_is_written_is_read(void **state)
{
    struct snapshot_file f;
    uint8_t bytes[SNAPSHOT_CHUNK];
    int fd = make();

    assert_int_equal(snapshot_open(&f, fd, "it", err, sizeof err), 0);
    assert_int_equal(f.extent[SNAPSHOT_MEMORY].bytes, BYTES);
    assert_int_equal(f.extent[SNAPSHOT_MEMORY].n, CHUNKS);
    assert_int_equal(f.extent[SNAPSHOT_DISK].n, 0);
    assert_int_equal(snapshot_kept(&f, SNAPSHOT_MEMORY), 3);
    for (unsigned i = 0; i < CHUNKS; i++) {
        memset(bytes, 0xaa, sizeof bytes);
        assert_int_equal(snapshot_read_chunk(&f, SNAPSHOT_MEMORY, i, bytes), i != 0 && i != 3);
        assert_memory_equal(bytes, chunks[i], sizeof bytes);
    }
    assert_int_equal(snapshot_read_chunk(&f, SNAPSHOT_MEMORY, CHUNKS, bytes), -EINVAL);
    const struct section *s = sections_find(&f.sections, "toy", "one.0");
    assert_non_null(s);
    assert_int_equal(s->version, 3);
    assert_int_equal(s->size, 10);
    assert_memory_equal(s->bytes, "some state", 10);
    assert_non_null(sections_find(&f.sections, "toy", "empty"));
    assert_null(sections_find(&f.sections, "toy", "two"));
    snapshot_close(&f);
    close(fd);
}

/* As one does that is written while it changes. */
static void the_last_of_a_chunk_counts(void **state)
{
    struct snapshot_writer *w;
    struct snapshot_file f;
    uint8_t bytes[SNAPSHOT_CHUNK];
    int fd = memfd_create("snapshot", MFD_CLOEXEC);

    fill_chunks();
    assert_int_equal(snapshot_writer_create(&w, fd), 0);
    assert_int_equal(snapshot_write_extent(w, SNAPSHOT_MEMORY, BYTES), 0);
    assert_int_equal(snapshot_write_chunk(w, SNAPSHOT_MEMORY, 0, chunks[1], SNAPSHOT_CHUNK), 0);
    assert_int_equal(snapshot_write_chunk(w, SNAPSHOT_MEMORY, 1, chunks[1], SNAPSHOT_CHUNK), 0);
    assert_int_equal(snapshot_write_chunk(w, SNAPSHOT_MEMORY, 0, chunks[2], SNAPSHOT_CHUNK), 0);
    assert_int_equal(snapshot_write_chunk(w, SNAPSHOT_MEMORY, 1, chunks[3], SNAPSHOT_CHUNK), 0);
    assert_int_equal(snapshot_write_end(w), 0);
    snapshot_writer_destroy(w);
    assert_int_equal(snapshot_open(&f, fd, "it", err, sizeof err), 0);
    assert_int_equal(snapshot_kept(&f, SNAPSHOT_MEMORY), 1);
    assert_int_equal(snapshot_read_chunk(&f, SNAPSHOT_MEMORY, 0, bytes), 1);
    assert_memory_equal(bytes, chunks[2], sizeof bytes);
    assert_int_equal(snapshot_read_chunk(&f, SNAPSHOT_MEMORY, 1, bytes), 0); /* zeroes by now */
    assert_memory_equal(bytes, chunks[3], sizeof bytes);
    snapshot_close(&f);
    close(fd);
}

static void it_is_small(void **state)
{
    int fd = make();

    /* The noise, and little more: text and zeroes take next to nothing. */
    assert_true(lseek(fd, 0, SEEK_END) < SNAPSHOT_CHUNK + 4096);
    close(fd);
}

/* -EBADMSG and a sentence, never a crash. */
static void refused(int fd)
{
    struct snapshot_file f;

    err[0] = 0;
    assert_int_equal(snapshot_open(&f, fd, "it", err, sizeof err), -EBADMSG);
    assert_non_null(strstr(err, "it is"));
    snapshot_close(&f);
}

static void one_that_is_cut_off_is_refused(void **state)
{
    int fd = make();
    off_t length = lseek(fd, 0, SEEK_END);

    for (off_t at = 0; at < length; at += at < 200 || at > length - 1200 ? 1 : 997) {
        int shorter = memfd_create("shorter", MFD_CLOEXEC);
        char *bytes = malloc((size_t)length);
        assert_int_equal(pread(fd, bytes, (size_t)at, 0), at);
        assert_int_equal(pwrite(shorter, bytes, (size_t)at, 0), at);
        refused(shorter);
        free(bytes);
        close(shorter);
    }
    close(fd);
}

static void one_that_was_never_finished_is_refused(void **state)
{
    struct snapshot_writer *w;
    int fd = memfd_create("snapshot", MFD_CLOEXEC);

    assert_int_equal(snapshot_writer_create(&w, fd), 0);
    assert_int_equal(snapshot_write_extent(w, SNAPSHOT_MEMORY, 64ull << 20), 0);
    fill_chunks();
    for (unsigned i = 0; i < 100; i++)
        assert_int_equal(snapshot_write_chunk(w, SNAPSHOT_MEMORY, i, chunks[1], SNAPSHOT_CHUNK), 0);
    snapshot_writer_destroy(w);
    refused(fd);
    assert_non_null(strstr(err, "never finished"));
    close(fd);
}

/* A bit in a chunk is seen when that is read, one anywhere else at once. */
static void damage_is_seen(void **state)
{
    int fd = make();
    off_t length = lseek(fd, 0, SEEK_END);
    unsigned seen = 0, total = 0;

    for (off_t at = 0; at < length; at += at < 100 || at > length - 1200 ? 1 : 499) {
        struct snapshot_file f;
        uint8_t byte, other, bytes[SNAPSHOT_CHUNK];
        assert_int_equal(pread(fd, &byte, 1, at), 1);
        other = byte ^ 0x10;
        assert_int_equal(pwrite(fd, &other, 1, at), 1);
        int bad = snapshot_open(&f, fd, "it", err, sizeof err);
        for (unsigned i = 0; i < CHUNKS && !bad; i++)
            bad = snapshot_read_chunk(&f, SNAPSHOT_MEMORY, i, bytes) < 0;
        snapshot_close(&f);
        assert_int_equal(pwrite(fd, &byte, 1, at), 1);
        seen += bad != 0;
        total++;
    }
    assert_int_equal(seen, total);
    close(fd);
}

static void something_else_is_refused(void **state)
{
    int fd = memfd_create("other", MFD_CLOEXEC);

    refused(fd);
    assert_non_null(strstr(err, "not a snapshot"));
    assert_int_equal(ftruncate(fd, 100000), 0);
    refused(fd);
    close(fd);
}

static void a_newer_format_is_refused(void **state)
{
    struct snapshot_file f;
    uint8_t h[64];
    int fd = make();

    assert_int_equal(pread(fd, h, sizeof h, 0), sizeof h);
    h[8] = 2;
    uint32_t crc = crc32c(crc32c(0, h, 12), h + 16, 48);
    memcpy(h + 12, &crc, 4);
    assert_int_equal(pwrite(fd, h, sizeof h, 0), sizeof h);
    assert_int_equal(snapshot_open(&f, fd, "it", err, sizeof err), -ENOTSUP);
    assert_non_null(strstr(err, "newer guise"));
    snapshot_close(&f);
    close(fd);
}

static void chunks_are_copied_as_they_are(void **state)
{
    struct snapshot_writer *w;
    struct snapshot_file from, to;
    struct sections s = {0};
    uint8_t bytes[SNAPSHOT_CHUNK];
    int fd = make(), copy = memfd_create("copy", MFD_CLOEXEC);

    assert_int_equal(snapshot_open(&from, fd, "it", err, sizeof err), 0);
    assert_int_equal(snapshot_writer_create(&w, copy), 0);
    assert_int_equal(snapshot_write_extent(w, SNAPSHOT_MEMORY, BYTES), 0);
    for (unsigned i = 0; i < CHUNKS; i++)
        assert_int_equal(snapshot_copy_chunk(w, SNAPSHOT_MEMORY, i, &from), 0);
    assert_int_equal(snapshot_write_sections(w, &from.sections), 0);
    assert_int_equal(snapshot_write_end(w), 0);
    snapshot_writer_destroy(w);
    assert_int_equal(snapshot_open(&to, copy, "it", err, sizeof err), 0);
    for (unsigned i = 0; i < CHUNKS; i++) {
        assert_true(snapshot_read_chunk(&to, SNAPSHOT_MEMORY, i, bytes) >= 0);
        assert_memory_equal(bytes, chunks[i], sizeof bytes);
    }
    assert_int_equal(to.sections.n, from.sections.n);
    snapshot_close(&to);
    snapshot_close(&from);
    sections_free(&s);
    close(copy);
    close(fd);
}

#define T(name) cmocka_unit_test(name)
int main(void)
{
    const struct CMUnitTest tests[] = {
        T(what_is_written_is_read),
        T(the_last_of_a_chunk_counts),
        T(it_is_small),
        T(one_that_is_cut_off_is_refused),
        T(one_that_was_never_finished_is_refused),
        T(damage_is_seen),
        T(something_else_is_refused),
        T(a_newer_format_is_refused),
        T(chunks_are_copied_as_they_are),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
