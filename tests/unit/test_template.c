/* Memory that machines have in common: a page is copied when it is first written to, and nobody sees another's. */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include <cmocka.h>

#include "memory/memory.h"
#include "memory/template.h"
#include "memory/watch.h"

#include "template_fixture.h"

static struct memory *with_pattern(void)
{
    struct memory *m;

    assert_int_equal(memory_create(&m, SIZE), 0);
    for (uint32_t i = 0; i < PAGES / 2; i++)
        assert_int_equal(memory_write(m, i * PAGE, &i, sizeof i), 0);
    return m;
}

static void put(struct memory *m, uint32_t page, uint32_t value)
{
    assert_int_equal(memory_write(m, page * PAGE, &value, sizeof value), 0);
}

static uint32_t get(const struct memory *m, uint32_t page)
{
    uint32_t value;

    assert_int_equal(memory_read(m, page * PAGE, &value, sizeof value), 0);
    return value;
}

static struct memory *copy_of(const struct memory *m)
{
    struct memory *copy;

    assert_int_equal(memory_create(&copy, m->size), 0);
    return adopt(copy, m);
}

static unsigned exhaustions;

static void exhausted(void *opaque)
{
    exhaustions++;
}

/* --- tests ------------------------------------------------------------------------------------------------------- */

static void a_page_is_copied_when_it_is_written_to(void **state)
{
    struct memory *m = with_pattern();
    const uint32_t *before = memory_hva_read(m, 7 * PAGE, PAGE);

    freeze(m);
    struct memory *copy = copy_of(m);
    assert_int_equal(own_bytes(m) + own_bytes(copy), 0);
    assert_int_equal(get(m, 7), 7);
    assert_int_equal(get(copy, 7), 7);
    assert_int_equal(own_bytes(m) + own_bytes(copy), 0); /* reading takes nothing */
    assert_false(memory_may_write(m, 7 * PAGE));
    put(m, 7, 70);
    put(copy, 7, 71);
    assert_true(memory_may_write(m, 7 * PAGE));
    assert_false(memory_may_write(m, 8 * PAGE));
    assert_int_equal(get(m, 7), 70);
    assert_int_equal(get(copy, 7), 71);
    assert_int_equal(*before, 70); /* an address stays what it was */
    assert_int_equal(own_bytes(m), PAGE);
    assert_int_equal(own_bytes(copy), PAGE);
    put(copy, PAGES - 1, 5); /* where nothing was */
    assert_int_equal(get(m, PAGES - 1), 0);
    memory_destroy(m); /* the copy keeps what it has */
    assert_int_equal(get(copy, 9), 9);
    memory_destroy(copy);
}

static void pages_that_are_as_they_were_are_shared_again(void **state)
{
    struct memory *m = with_pattern();

    freeze(m);
    struct memory *first = copy_of(m);
    put(first, 20, 1);
    freeze(first);
    struct memory *copy = copy_of(first);
    for (uint32_t i = 7; i < 12; i++)
        put(copy, i, 100 + i);
    put(copy, 20, 2);
    put(copy, 23, 3);
    for (uint32_t i = 7; i < 11; i++)
        put(copy, i, i);
    put(copy, 20, 1); /* as the second template has it */
    const uint64_t before = own_bytes(copy);
    memory_share_again(copy);
    assert_in_range(before - own_bytes(copy), 5 * PAGE, before - 2 * PAGE); /* some that lie ahead, too */
    for (uint32_t i = 7; i < 11; i++) {
        assert_int_equal(get(copy, i), i);
        assert_false(memory_may_write(copy, i * PAGE));
    }
    assert_int_equal(get(copy, 11), 111);
    assert_int_equal(get(copy, 20), 1);
    assert_int_equal(get(copy, 23), 3);
    assert_true(memory_may_write(copy, 11 * PAGE));
    put(copy, 8, 80); /* it is copied as before */
    assert_int_equal(get(copy, 8), 80);
    assert_int_equal(get(m, 8), 8);
    freeze(copy);
    struct memory *last = copy_of(copy);
    assert_int_equal(get(last, 8), 80);
    assert_int_equal(get(last, 9), 9);
    assert_int_equal(get(last, 11), 111);
    assert_int_equal(get(last, 20), 1);
    memory_destroy(last);
    memory_destroy(copy);
    memory_destroy(first);
    memory_destroy(m);
}

static void copies_of_copies_have_what_those_had(void **state)
{
    struct memory *of[MEMORY_TEMPLATES_MAX + 4];
    const unsigned n = sizeof of / sizeof *of; /* more than there are templates: some are flattened */

    of[0] = with_pattern();
    for (unsigned i = 1; i < n; i++) {
        put(of[i - 1], i, 1000 + i);
        freeze(of[i - 1]);
        put(of[i - 1], 100, i);
        of[i] = copy_of(of[i - 1]);
    }
    for (unsigned i = 0; i < n; i++) {
        for (uint32_t page = 1; page < n; page++)
            assert_int_equal(get(of[i], page), page <= i + 1 ? 1000 + page : page);
        assert_int_equal(get(of[i], 100), i + 1 < n ? i + 1 : 100);
        assert_int_equal(get(of[i], 200), 200);
        memory_destroy(of[i]);
    }
}

static void what_was_written_here_and_there_is_joined(void **state)
{
    struct memory *m = with_pattern();
    struct memory_run *runs;
    uint32_t n_runs;
    int fds[MEMORY_TEMPLATES_MAX];

    freeze(m);
    for (uint32_t page = 0; page < PAGES; page += 2)
        put(m, page, page + 1);
    freeze(m);
    memory_templates(m, fds, &runs, &n_runs);
    assert_in_range(n_runs, 1, 2 * 1024 + 1);
    free(runs);
    struct memory *copy = copy_of(m);
    for (uint32_t page = 0; page < PAGES / 2; page++)
        assert_int_equal(get(copy, page), page % 2 ? page : page + 1);
    memory_destroy(copy);
    memory_destroy(m);
}

static void what_is_given_back_is_zeroes(void **state)
{
    struct memory *m = with_pattern();

    freeze(m);
    struct memory *copy = copy_of(m);
    assert_int_equal(memory_discard(copy, 10 * PAGE, 5 * PAGE), 0);
    assert_int_equal(own_bytes(copy), 0);
    for (uint32_t page = 9; page < 16; page++)
        assert_int_equal(get(copy, page), page >= 10 && page < 15 ? 0 : page);
    assert_int_equal(get(m, 12), 12);
    memory_destroy(copy);
    memory_destroy(m);
}

/* A process may have 65530 mappings. */
static void pages_that_are_given_back_here_and_there_are_not_too_many(void **state)
{
    const uint32_t pages = 80000;
    struct memory *m;

    assert_int_equal(memory_create(&m, (uint64_t)pages * PAGE), 0);
    for (uint32_t i = 0; i < pages; i++)
        put(m, i, i);
    freeze(m);
    struct memory *copy = copy_of(m);
    memory_set_exhausted(copy, exhausted, NULL);
    for (uint32_t i = 0; i < pages; i += 2)
        assert_int_equal(memory_discard(copy, (uint64_t)i * PAGE, PAGE), 0);
    assert_int_equal(exhaustions, 0);
    for (uint32_t i = 0; i < pages; i++)
        assert_int_equal(get(copy, i), i % 2 ? i : 0);
    memory_destroy(copy);
    memory_destroy(m);
}

static uint32_t kept;

static void room(void *opaque) {}
static void keep(void *opaque, uint64_t chunk, const void *bytes, uint32_t length)
{
    kept += chunk == 1 && *(const uint32_t *)bytes == 16;
}

static void it_is_kept_before_it_is_copied(void **state)
{
    const struct memory_keeper keeper = {room, keep, NULL};
    struct memory *m = with_pattern();
    uint8_t bytes[WATCH_CHUNK];
    uint32_t length;

    freeze(m);
    kept = 0;
    assert_true(memory_is_settled(m));
    assert_int_equal(memory_keep_begin(m, &keeper), 0);
    assert_false(memory_is_settled(m));
    put(m, 16, 4);
    assert_int_equal(kept, 1);
    assert_true(memory_keep_take(m, 2, bytes, &length));
    assert_int_equal(*(uint32_t *)bytes, 32);
    assert_int_equal(memory_keep_skip(m, PAGES / 2 / 16), SIZE >> WATCH_SHIFT); /* holes in all files */
    memory_keep_end(m);
    assert_true(memory_is_watched(m)); /* there are templates yet */
    memory_destroy(m);
}

static void *write_everywhere(void *opaque)
{
    struct memory *m = opaque;

    for (uint32_t page = 0; page < PAGES; page++) {
        uint32_t *p = memory_hva(m, page * PAGE, PAGE);
        __atomic_fetch_add(&p[1], 1, __ATOMIC_SEQ_CST);
    }
    return NULL;
}

static void threads_agree(void **state)
{
    struct memory *m = with_pattern();
    pthread_t threads[4];
    uint32_t word;

    freeze(m);
    for (unsigned i = 0; i < 4; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, write_everywhere, m), 0);
    for (unsigned i = 0; i < 4; i++)
        pthread_join(threads[i], NULL);
    for (uint32_t page = 0; page < PAGES; page++) {
        assert_int_equal(memory_read(m, page * PAGE + 4, &word, sizeof word), 0);
        assert_int_equal(word, 4);
        assert_int_equal(get(m, page), page < PAGES / 2 ? page : 0);
    }
    memory_destroy(m);
}

/* A template that could change or shrink, is too small, or a layout that does not add up. */
static void a_strangers_templates_are_checked(void **state)
{
    struct memory *m = with_pattern(), *fresh, *large;
    struct memory_run whole = {PAGES, 0}, wrong[] = {{PAGES, 1}, {PAGES - 1, 0}, {PAGES + 1, 0}, {UINT32_MAX, 0}};
    int fds[MEMORY_TEMPLATES_MAX], open_file = new_file();
    struct memory_run *runs;
    uint32_t n_runs;

    freeze(m);
    assert_int_equal(memory_templates(m, fds, &runs, &n_runs), 1);
    assert_int_equal(ftruncate(open_file, (off_t)(SIZE + MEMORY_SPARE)), 0);
    assert_int_equal(memory_create(&fresh, SIZE), 0);
    assert_int_equal(memory_create(&large, 2 * SIZE), 0);
    assert_int_equal(memory_adopt(fresh, &open_file, 1, &whole, 1), -EINVAL);
    assert_int_equal(memory_adopt(large, fds, 1, &whole, 1), -EINVAL);
    assert_int_equal(memory_adopt(fresh, fds, 0, &whole, 1), -EINVAL);
    assert_int_equal(memory_adopt(fresh, fds, MEMORY_TEMPLATES_MAX + 1, &whole, 1), -EINVAL);
    for (unsigned i = 0; i < sizeof wrong / sizeof *wrong; i++)
        assert_int_equal(memory_adopt(fresh, fds, 1, &wrong[i], 1), -EINVAL);
    assert_int_equal(memory_freeze(fresh, open_file), -EINVAL); /* not empty */
    assert_true(mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fds[0], 0) == MAP_FAILED);
    assert_int_equal(pwrite(fds[0], "x", 1, 0), -1);
    assert_int_equal(ftruncate(fds[0], 0), -1);
    free(runs);
    close(open_file);
    memory_destroy(large);
    memory_destroy(fresh);
    memory_destroy(m);
}

/* Whoever writes goes on for a moment, nobody else sees it, and the machine is told once. */
static void without_memory_the_machine_is_told(void **state)
{
    struct memory *m = with_pattern();
    struct rlimit before, none = {0, RLIM_INFINITY};

    freeze(m);
    struct memory *copy = copy_of(m);
    memory_set_exhausted(m, exhausted, NULL);
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &before), 0);
    none.rlim_max = before.rlim_max;
    signal(SIGXFSZ, SIG_IGN);
    setrlimit(RLIMIT_FSIZE, &none);
    uint32_t *p = memory_hva(m, 5 * PAGE, PAGE), *q = memory_hva(m, 9 * PAGE, PAGE);
    p[1] = q[1] = 1;
    setrlimit(RLIMIT_FSIZE, &before);
    assert_int_equal(exhaustions, 1);
    assert_int_equal(get(copy, 5), 5);
    memory_destroy(copy);
    memory_destroy(m);
}

/* No seal can be put on it any more: it does not become a template, and the machine runs on. */
static void what_cannot_be_frozen_goes_on(void **state)
{
    struct memory *m = with_pattern();
    int fd = new_file();

    freeze(m);
    put(m, 3, 30);
    assert_int_equal(fcntl(m->fd, F_ADD_SEALS, F_SEAL_SEAL), 0);
    assert_int_equal(memory_freeze(m, fd), -EPERM);
    put(m, 3, 31);
    put(m, 4, 40);
    assert_int_equal(get(m, 3), 31);
    assert_int_equal(get(m, 4), 40);
    assert_int_equal(get(m, 5), 5);
    close(fd);
    memory_destroy(m);
}

#define T(name) cmocka_unit_test(name)
int main(void)
{
    const struct CMUnitTest tests[] = {
        T(pages_that_are_as_they_were_are_shared_again),
        T(a_page_is_copied_when_it_is_written_to),
        T(copies_of_copies_have_what_those_had),
        T(what_was_written_here_and_there_is_joined),
        T(what_is_given_back_is_zeroes),
        T(pages_that_are_given_back_here_and_there_are_not_too_many),
        T(it_is_kept_before_it_is_copied),
        T(threads_agree),
        T(a_strangers_templates_are_checked),
        T(without_memory_the_machine_is_told),
        T(what_cannot_be_frozen_goes_on),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
