#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "board.h"
#include "memory/ahead.h"

static void low_memory_is_one_piece(void **state)
{
    struct memory *m;
    assert_int_equal(memory_create(&m, 16 << 20), 0);
    assert_int_equal(m->low_size, 16 << 20);
    assert_int_equal(m->high_size, 0);
    assert_int_equal(m->end, 16 << 20);
    assert_true(memory_is_ram(m, 0, 16 << 20));
    assert_false(memory_is_ram(m, 0, (16 << 20) + 1));
    assert_false(memory_is_ram(m, UINT64_MAX, 2));
    assert_ptr_equal(memory_hva(m, 4096, 8), m->base + 4096);
    uint64_t zero = 1;
    assert_int_equal(memory_read(m, (16 << 20) - 8, &zero, 8), 0);
    assert_int_equal(zero, 0);
    assert_int_equal(memory_write(m, (16 << 20) - 4, &zero, 8), -EFAULT);
    memory_destroy(m);
}

static void discarded_pages_read_as_zero(void **state)
{
    struct memory *m;
    uint8_t *low, *high;
    assert_int_equal(memory_create(&m, 4ull << 30), 0);
    low = memory_hva(m, 0x10000, 0x4000);
    high = memory_hva(m, MEMORY_HOLE_END + 0x10000, 0x4000);
    memset(low, 1, 0x4000);
    memset(high, 2, 0x4000);
    assert_int_equal(memory_discard(m, 0x10800, 0x2000), 0); /* one whole page */
    assert_int_equal(memory_discard(m, MEMORY_HOLE_END + 0x11000, 0x3000), 0);
    for (unsigned i = 0; i < 0x4000; i++) {
        assert_int_equal(low[i], i / 4096 == 1 ? 0 : 1);
        assert_int_equal(high[i], i / 4096 ? 0 : 2);
    }
    low[0x1000] = 3;
    assert_int_equal(memory_discard(m, 0x11000, 0xfff), 0); /* less than a page */
    assert_int_equal(low[0x1000], 3);
    assert_int_equal(memory_discard(m, MEMORY_HOLE_START - 4096, 8192), -EFAULT);
    assert_int_equal(memory_discard(m, UINT64_MAX - 4095, 8192), -EFAULT);
    memory_destroy(m);
}

static unsigned resident(const uint8_t *at, unsigned pages)
{
    unsigned char there[256];
    unsigned n = 0;
    assert_true(pages <= sizeof there);
    assert_int_equal(mincore((void *)(uintptr_t)at, pages * 4096ul, there), 0);
    for (unsigned i = 0; i < pages; i++)
        n += there[i] & 1;
    return n;
}

static void a_touched_page_brings_its_chunk(void **state)
{
    const uint64_t chunk = 1ull << MEMORY_CHUNK_SHIFT;
    struct memory *m;
    assert_int_equal(memory_create(&m, 16 << 20), 0);
    if (madvise(m->base, 4096, MADV_POPULATE_WRITE))
        skip(); /* Linux 5.14 */
    memory_touch(m, 3 * chunk + 12345);
    assert_int_equal(resident(m->base + 3 * chunk, (unsigned)(chunk / 4096)), chunk / 4096);
    assert_int_equal(resident(m->base + 2 * chunk, (unsigned)(chunk / 4096)), 0);
    assert_int_equal(resident(m->base + 4 * chunk, (unsigned)(chunk / 4096)), 0);
    m->base[3 * chunk] = 1;
    memory_touch(m, 3 * chunk);
    assert_int_equal(m->base[3 * chunk], 1);
    memory_destroy(m);
}

static void a_large_page_brings_eight_chunks(void **state)
{
    const uint64_t chunk = 1ull << MEMORY_CHUNK_SHIFT, large = 8 * chunk;
    struct memory *m;
    assert_int_equal(memory_create(&m, 15 << 20), 0);
    if (!memory_ask_large(m, large + 12345))
        skip(); /* Linux 6.1, with memory that is not in pieces */
    for (unsigned i = 0; i < 24; i++)
        assert_int_equal(m->touched[i], i >= 8 && i < 16 ? MEMORY_THERE : MEMORY_NEW);
    for (uint64_t at = 0; at < large; at += chunk)
        assert_int_equal(resident(m->base + large + at, (unsigned)(chunk / 4096)), chunk / 4096);
    for (uint64_t at = 0; at < large; at++)
        assert_int_equal(m->base[large + at], 0);
    m->base[large + 1] = 1;
    memory_touch(m, large);
    assert_int_equal(m->touched[8], MEMORY_USED);
    assert_int_equal(m->base[large + 1], 1);
    assert_false(memory_ask_large(m, large)); /* it was asked for */
    memory_touch(m, 2 * large + 3 * chunk);
    assert_false(memory_ask_large(m, 2 * large)); /* a part of it is in use */
    assert_int_equal(m->touched[16], MEMORY_NEW);
    assert_false(memory_ask_large(m, 7 * large)); /* not all of it is RAM */
    memory_destroy(m);
}

static void *serve(void *opaque)
{
    memory_ahead_serve(opaque);
    return NULL;
}

static bool comes_to_be(const struct memory *m, unsigned chunk, uint8_t wanted)
{
    for (unsigned i = 0; i < 5000; i++) {
        if (__atomic_load_n(&m->touched[chunk], __ATOMIC_RELAXED) == wanted)
            return true;
        usleep(1000);
    }
    return false;
}

static void a_run_of_chunks_is_gone_ahead_of(void **state)
{
    const uint64_t chunk = 1ull << MEMORY_CHUNK_SHIFT;
    struct memory *m;
    pthread_t thread;
    assert_int_equal(memory_create(&m, 16 << 20), 0);
    if (madvise(m->base, 4096, MADV_POPULATE_WRITE))
        skip(); /* Linux 5.14 */
    assert_int_equal(memory_ahead_create(m), 0);
    assert_int_equal(pthread_create(&thread, NULL, serve, m), 0);
    memory_touch(m, 20 * chunk); /* none of a run yet */
    memory_touch(m, 21 * chunk);
    for (unsigned i = 22; i < 26; i++)
        assert_true(comes_to_be(m, i, MEMORY_THERE));
    assert_int_equal(resident(m->base + 25 * chunk, (unsigned)(chunk / 4096)), chunk / 4096);
    assert_int_equal(m->touched[26], MEMORY_NEW);
    assert_int_equal(m->touched[19], MEMORY_NEW);
    memory_touch(m, 22 * chunk); /* what is there is used, and it goes on */
    assert_int_equal(m->touched[22], MEMORY_USED);
    assert_true(comes_to_be(m, 26, MEMORY_THERE));
    memory_touch(m, 2 * chunk);
    memory_touch(m, 1 * chunk); /* downwards, to the end */
    assert_true(comes_to_be(m, 0, MEMORY_THERE));
    memory_touch(m, 62 * chunk);
    memory_touch(m, 63 * chunk); /* the last */
    memory_ahead_end(m);
    pthread_join(thread, NULL);
    assert_int_equal(m->touched[27], MEMORY_NEW);
    memory_destroy(m);
}

static void memory_beyond_3_gib_moves_above_the_hole(void **state)
{
    struct memory *m;
    uint32_t v = 0x12345678, w = 0;
    assert_int_equal(memory_create(&m, 5ull << 30), 0);
    assert_int_equal(m->low_size, 3ull << 30);
    assert_int_equal(m->high_size, 2ull << 30);
    assert_int_equal(m->end, 6ull << 30);
    assert_false(memory_is_ram(m, MEMORY_HOLE_START, 1));
    assert_false(memory_is_ram(m, MEMORY_HOLE_START - 1, 2));
    assert_int_equal(memory_write(m, MEMORY_HOLE_END, &v, 4), 0);
    assert_int_equal(pread(m->fd, &w, 4, 3ll << 30), 4); /* the file has no hole */
    assert_int_equal(w, v);
    memory_destroy(m);
}

static void most_of_what_is_expected_comes_by_large_pages(void **state)
{
    static const uint32_t list[] = {30, 8, 9, 16, 17, 10, 11, 12, 13, 18, 19, 20, UINT32_MAX};
    uint32_t *expected = malloc(sizeof list);
    struct memory *m;
    assert_non_null(expected);
    memcpy(expected, list, sizeof list);
    assert_int_equal(memory_create(&m, 16 << 20), 0);
    if (madvise(m->base, 4096, MADV_POPULATE_WRITE))
        skip();
    assert_int_equal(memory_ahead_create(m), 0);
    memory_ahead_expect(m, expected, sizeof list / sizeof *list);
    pthread_t thread;
    assert_int_equal(pthread_create(&thread, NULL, serve, m), 0);
    assert_true(comes_to_be(m, 20, MEMORY_THERE));
    memory_ahead_end(m);
    pthread_join(thread, NULL);
    if (memory_ask_large(m, 4ul << 20))                 /* the host has some at hand */
        assert_int_equal(m->touched[15], MEMORY_THERE); /* six of eight */
    assert_int_equal(m->touched[13], MEMORY_THERE);
    assert_int_equal(m->touched[21], MEMORY_NEW); /* five */
    assert_int_equal(m->touched[30], MEMORY_THERE);
    assert_int_equal(m->touched[31], MEMORY_NEW);
    memory_destroy(m);
}

static void sizes_that_make_no_sense_are_refused(void **state)
{
    struct memory *m;
    assert_int_equal(memory_create(&m, 4096), -EINVAL);
    assert_int_equal(memory_create(&m, (1 << 20) + 1), -EINVAL);
    assert_int_equal(memory_create(&m, UINT64_MAX & ~4095ull), -EINVAL);
}

static void the_file_cannot_be_cut(void **state)
{
    struct memory *m;
    assert_int_equal(memory_create(&m, 1 << 20), 0);
    assert_int_equal(ftruncate(m->fd, 0), -1);
    assert_int_equal(errno, EPERM);
    memory_destroy(m);
}

static int died_of(struct memory *m, uint64_t gpa)
{
    int status;
    pid_t child = fork();
    if (child == 0) {
        signal(SIGSEGV, SIG_DFL);
        *(volatile uint8_t *)(m->base + gpa) = 1;
        _exit(0);
    }
    waitpid(child, &status, 0);
    return WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status) ? SIGSEGV /* ASan says so by exit */ : 0;
}

static void the_hole_and_the_page_behind_fault(void **state)
{
    struct memory *m;
    assert_int_equal(memory_create(&m, 4ull << 30), 0);
    assert_int_equal(died_of(m, 0), 0);
    assert_int_equal(died_of(m, MEMORY_HOLE_START), SIGSEGV);
    assert_int_equal(died_of(m, m->end - 1), 0);
    assert_int_equal(died_of(m, m->end), SIGSEGV);
    memory_destroy(m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(low_memory_is_one_piece),
        cmocka_unit_test(memory_beyond_3_gib_moves_above_the_hole),
        cmocka_unit_test(discarded_pages_read_as_zero),
        cmocka_unit_test(a_touched_page_brings_its_chunk),
        cmocka_unit_test(a_run_of_chunks_is_gone_ahead_of),
        cmocka_unit_test(a_large_page_brings_eight_chunks),
        cmocka_unit_test(most_of_what_is_expected_comes_by_large_pages),
        cmocka_unit_test(sizes_that_make_no_sense_are_refused),
        cmocka_unit_test(the_file_cannot_be_cut),
        cmocka_unit_test(the_hole_and_the_page_behind_fault),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
