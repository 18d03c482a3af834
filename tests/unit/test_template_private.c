/* Memory in common under a guest that announces no write: the host's kernel copies its pages, and they are found again
 * when there is to be another template. */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmocka.h>

#include "memory/memory.h"
#include "memory/template.h"
#include "memory/watch.h"

#include "template_fixture.h"

static int begin(void *opaque)
{
    return 0;
}
static void nothing(void *opaque) {}
static const struct memory_writer_ops writer = {begin, nothing, nothing};

static struct memory *new_memory(uint64_t size)
{
    struct memory *m;

    assert_int_equal(memory_create(&m, size), 0);
    memory_set_writer(m, &writer, NULL);
    assert_true(memory_can_be_common(m));
    return m;
}

/* As a guest does it. */
static uint32_t *word(const struct memory *m, uint64_t page)
{
    return (uint32_t *)(void *)(m->base + page * PAGE);
}

static struct memory *with_pattern(void)
{
    struct memory *m = new_memory(SIZE);

    for (uint32_t i = 0; i < PAGES / 2; i++)
        *word(m, i) = i;
    return m;
}

static struct memory *copy_of(const struct memory *m)
{
    return adopt(new_memory(m->size), m);
}

static uint64_t own_pages(const struct memory *m)
{
    return own_bytes(m) / PAGE;
}

/* --- tests ------------------------------------------------------------------------------------------------------- */

static void what_is_written_is_ones_own(void **state)
{
    struct memory *m = with_pattern();
    const uint32_t *before = word(m, 7);

    freeze(m);
    struct memory *copy = copy_of(m);
    for (uint32_t i = 0; i < PAGES / 2; i++)
        assert_int_equal(*word(m, i) + *word(copy, i), 2 * i);
    assert_int_equal(own_pages(m) + own_pages(copy), 0); /* reading takes nothing */
    assert_false(memory_is_watched(m) || memory_is_watched(copy));
    assert_true(memory_may_write(copy, 8 * PAGE));
    *word(m, 7) = 70;
    *word(copy, 7) = 71;
    assert_int_equal(memory_write(copy, 8 * PAGE, "abcd", 4), 0); /* as a device does it */
    *word(copy, PAGES - 1) = 5;                                   /* where nothing was */
    assert_int_equal(*before, 70);
    assert_int_equal(*word(copy, 7), 71);
    assert_int_equal(*word(m, 8), 8);
    assert_int_equal(*word(m, PAGES - 1), 0);
    assert_int_equal(own_pages(m), 1);
    assert_int_equal(own_pages(copy), 3);
    memory_destroy(m); /* the copy keeps what it has */
    assert_int_equal(*word(copy, 9), 9);
    memory_destroy(copy);
}

static void copies_of_copies_have_what_those_had(void **state)
{
    struct memory *of[MEMORY_TEMPLATES_MAX + 4];
    const unsigned n = sizeof of / sizeof *of; /* more than there are templates: some are flattened */

    of[0] = with_pattern();
    for (unsigned i = 1; i < n; i++) {
        *word(of[i - 1], i) = 1000 + i;
        freeze(of[i - 1]);
        *word(of[i - 1], 100) = i;
        of[i] = copy_of(of[i - 1]);
    }
    for (unsigned i = 0; i < n; i++) {
        for (uint32_t page = 1; page < n; page++)
            assert_int_equal(*word(of[i], page), page <= i + 1 ? 1000 + page : page);
        assert_int_equal(*word(of[i], 100), i + 1 < n ? i + 1 : 100);
        assert_int_equal(*word(of[i], 200), 200);
        memory_destroy(of[i]);
    }
}

static void the_same_is_copied_again(void **state)
{
    struct memory *m = with_pattern(), *copies[12];

    for (unsigned i = 0; i < 12; i++) {
        *word(m, i) = 1000 + i;
        *word(m, 300) = i;
        freeze(m);
        assert_int_equal(own_pages(m), 0);
        copies[i] = copy_of(m);
    }
    for (unsigned i = 0; i < 12; i++) {
        for (uint32_t page = 0; page < 12; page++)
            assert_int_equal(*word(copies[i], page), page <= i ? 1000 + page : page);
        assert_int_equal(*word(copies[i], 300), i);
        memory_destroy(copies[i]);
    }
    memory_destroy(m);
}

static void what_was_written_here_and_there_is_joined(void **state)
{
    struct memory *m = with_pattern();
    struct memory_run *runs;
    uint32_t n_runs;
    int fds[MEMORY_TEMPLATES_MAX];

    freeze(m);
    for (uint32_t page = 0; page < PAGES; page += 2)
        *word(m, page) = page + 1;
    freeze(m);
    memory_templates(m, fds, &runs, &n_runs);
    assert_in_range(n_runs, 1, 2 * 1024 + 1);
    free(runs);
    struct memory *copy = copy_of(m);
    for (uint32_t page = 0; page < PAGES; page++)
        assert_int_equal(*word(copy, page), page % 2 == 0 ? page + 1 : page < PAGES / 2 ? page : 0);
    memory_destroy(copy);
    memory_destroy(m);
}

/* What was written to a page, or the template has, is gone: also in copies that are made of it. */
static void what_is_given_back_is_zeroes(void **state)
{
    struct memory *m = with_pattern();

    freeze(m);
    struct memory *copy = copy_of(m);
    *word(copy, 11) = 111;
    assert_int_equal(memory_discard(copy, 10 * PAGE, 5 * PAGE), 0);
    assert_int_equal(own_pages(copy), 0);
    for (uint32_t page = 9; page < 16; page++)
        assert_int_equal(*word(copy, page), page >= 10 && page < 15 ? 0 : page);
    *word(copy, 12) = 120;
    freeze(copy);
    struct memory *last = copy_of(copy);
    *word(copy, 13) = 130;
    for (uint32_t page = 9; page < 16; page++)
        assert_int_equal(*word(last, page), page == 12 ? 120 : page >= 10 && page < 15 ? 0 : page);
    assert_int_equal(memory_discard(last, 12 * PAGE, PAGE), 0);
    assert_int_equal(*word(last, 12), 0);
    assert_int_equal(*word(copy, 12), 120);
    assert_int_equal(*word(m, 12), 12);
    memory_destroy(last);
    memory_destroy(copy);
    memory_destroy(m);
}

static unsigned mappings(void)
{
    FILE *maps = fopen("/proc/self/maps", "r");
    unsigned n = 0;

    for (int c; (c = getc(maps)) != EOF;)
        n += c == '\n';
    fclose(maps);
    return n;
}

/* A process may have 65530 mappings. */
static void pages_that_are_given_back_here_and_there_are_not_too_many(void **state)
{
    const uint64_t pages = 80000;
    struct memory *m = new_memory(pages * PAGE);

    for (uint64_t i = 0; i < pages; i++)
        *word(m, i) = 1;
    freeze(m);
    for (uint64_t i = 0; i < pages; i += 2)
        assert_int_equal(memory_discard(m, i * PAGE, PAGE), 0);
    assert_in_range(mappings(), 1, 40000);
    for (uint64_t i = 0; i < pages; i++)
        assert_int_equal(*word(m, i), i % 2);
    memory_destroy(m);
}

/* For snapshots and migration. */
static void it_is_read_as_it_is(void **state)
{
    struct memory *m = with_pattern();
    uint8_t bytes[WATCH_CHUNK];

    freeze(m);
    *word(m, 16) = 160;
    assert_true(memory_read_chunk(m, 1, bytes));
    assert_int_equal(*(uint32_t *)(void *)bytes, 160);
    assert_int_equal(*(uint32_t *)(void *)(bytes + PAGE), 17);
    assert_false(memory_read_chunk(m, PAGES / 16 - 1, bytes));
    *word(m, PAGES - 1) = 7;
    assert_true(memory_read_chunk(m, PAGES / 16 - 1, bytes));
    assert_int_equal(*(uint32_t *)(void *)(bytes + 15 * PAGE), 7);
    assert_int_equal(memory_log_begin(m), 0);
    *word(m, 17) = 170;
    memory_log_end(m);
    assert_false(memory_is_watched(m));
    assert_true(memory_read_chunk(m, 1, bytes));
    assert_int_equal(*(uint32_t *)(void *)(bytes + PAGE), 170);
    memory_destroy(m);
}

/* RAM on both sides of the hole. */
static void memory_has_two_parts(void **state)
{
    const uint64_t last = MEMORY_HOLE_START / PAGE - 1, high = MEMORY_HOLE_END / PAGE;
    struct memory *m = new_memory(MEMORY_HOLE_START + SIZE);

    *word(m, last) = 1;
    *word(m, high) = 2;
    freeze(m);
    struct memory *copy = copy_of(m);
    *word(copy, last) += 10;
    *word(copy, high) += 10;
    freeze(copy);
    *word(copy, high) += 100;
    struct memory *next = copy_of(copy);
    assert_int_equal(*word(m, last) * 1000 + *word(m, high), 1002);
    assert_int_equal(*word(copy, last) * 1000 + *word(copy, high), 11112);
    assert_int_equal(*word(next, last) * 1000 + *word(next, high), 11012);
    memory_destroy(next);
    memory_destroy(copy);
    memory_destroy(m);
}

static void what_cannot_be_frozen_goes_on(void **state)
{
    struct memory *m = with_pattern();
    int fd = new_file();

    freeze(m);
    struct memory *copy = copy_of(m);
    *word(m, 3) = 30;
    assert_int_equal(fcntl(m->fd, F_ADD_SEALS, F_SEAL_SEAL), 0);
    assert_int_equal(memory_freeze(m, fd), -EPERM);
    assert_int_equal(*word(m, 3), 30);
    *word(m, 3) = 31;
    *word(m, 4) = 40;
    assert_int_equal(*word(m, 3), 31);
    assert_int_equal(*word(m, 4), 40);
    assert_int_equal(*word(m, 5), 5);
    assert_int_equal(*word(copy, 3), 3);
    close(fd);
    memory_destroy(copy);
    memory_destroy(m);
}

/* What it has written cannot be put into its file. */
static void without_memory_it_is_not_frozen(void **state)
{
    struct memory *m = with_pattern();
    int fd = new_file();

    freeze(m);
    struct memory *copy = copy_of(m);
    *word(m, 3) = 30;
    assert_int_equal(fcntl(m->fd, F_ADD_SEALS, F_SEAL_WRITE), 0);
    assert_int_equal(memory_freeze(m, fd), -ENOMEM);
    assert_int_equal(*word(m, 3), 30);
    *word(m, 4) = 40;
    assert_int_equal(own_pages(m), 2);
    assert_int_equal(*word(m, 5), 5);
    assert_int_equal(*word(copy, 3), 3);
    close(fd);
    memory_destroy(copy);
    memory_destroy(m);
}

static void where_the_host_does_not_tell_nothing_is_common(void **state)
{
    struct memory *m = with_pattern();
    int fd = new_file();

    close(m->pagemap);
    m->pagemap = -1;
    assert_false(memory_can_be_common(m));
    assert_int_equal(memory_freeze(m, fd), -ENOTSUP);
    *word(m, 3) = 30;
    close(fd);
    memory_destroy(m);
}

/* Where pages are in the host's memory is not to be had by it, not even for root. */
static void it_does_not_tell_where_pages_are(void **state)
{
    struct memory *m = with_pattern();
    uint64_t entry;

    assert_int_equal(pread(m->pagemap, &entry, sizeof entry, (off_t)((uintptr_t)m->base / PAGE * sizeof entry)), 8);
    assert_true(entry >> 63);
    assert_int_equal(entry & ((1ull << 55) - 1), 0);
    memory_destroy(m);
}

#define T(name) cmocka_unit_test(name)
int main(void)
{
    const struct CMUnitTest tests[] = {
        T(what_is_written_is_ones_own),
        T(copies_of_copies_have_what_those_had),
        T(the_same_is_copied_again),
        T(what_was_written_here_and_there_is_joined),
        T(what_is_given_back_is_zeroes),
        T(pages_that_are_given_back_here_and_there_are_not_too_many),
        T(it_is_read_as_it_is),
        T(memory_has_two_parts),
        T(what_cannot_be_frozen_goes_on),
        T(without_memory_it_is_not_frozen),
        T(where_the_host_does_not_tell_nothing_is_common),
        T(it_does_not_tell_where_pages_are),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
