/* Watching memory: contents as they were at one moment, and contents that come when they are needed. */
#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "memory/memory.h"
#include "memory/watch.h"

#define SIZE (64ull << 20)
#define CHUNKS (SIZE >> WATCH_SHIFT)

static struct memory *m;
static uint8_t kept[CHUNKS], first_byte[CHUNKS];
static unsigned loads[CHUNKS];

static int setup(void **state)
{
    memset(kept, 0, sizeof kept);
    memset(loads, 0, sizeof loads);
    return memory_create(&m, SIZE);
}

static int teardown(void **state)
{
    memory_destroy(m);
    return 0;
}

static void room(void *opaque) {}

static void keep(void *opaque, uint64_t chunk, const void *bytes, uint32_t length)
{
    assert_int_equal(length, WATCH_CHUNK);
    kept[chunk]++;
    first_byte[chunk] = *(const uint8_t *)bytes;
}
static const struct memory_keeper keeper = {room, keep, NULL};

static void load(void *opaque, uint64_t chunk, void *bytes, uint32_t length)
{
    loads[chunk]++;
    memset(bytes, (int)(chunk % 250 + 1), length);
}
static bool has(void *opaque, uint64_t chunk)
{
    return chunk != 50;
}
static const struct memory_source source = {.load = load, .has = has};

static void a_chunk_is_kept_before_it_is_written_to(void **state)
{
    uint8_t byte = 9, bytes[WATCH_CHUNK];
    uint32_t length;

    memory_write(m, 5 * WATCH_CHUNK, "a", 1);
    assert_int_equal(memory_keep_begin(m, &keeper), 0);
    assert_false(memory_may_write(m, 5 * WATCH_CHUNK));
    assert_int_equal(memory_read(m, 5 * WATCH_CHUNK, &byte, 1), 0); /* reading changes nothing */
    assert_int_equal(kept[5], 0);
    assert_int_equal(memory_write(m, 5 * WATCH_CHUNK, "b", 1), 0);
    assert_int_equal(kept[5], 1);
    assert_int_equal(first_byte[5], 'a');
    assert_true(memory_may_write(m, 5 * WATCH_CHUNK));
    assert_int_equal(memory_write(m, 5 * WATCH_CHUNK, "c", 1), 0); /* once is enough */
    assert_int_equal(kept[5], 1);
    assert_false(memory_keep_take(m, 5, bytes, &length));
    memory_keep_end(m);
    assert_false(memory_is_watched(m));
}

static void what_nobody_wrote_to_is_taken(void **state)
{
    uint8_t bytes[WATCH_CHUNK];
    uint32_t length = 0;

    memory_write(m, 7 * WATCH_CHUNK + 1, "x", 1);
    assert_int_equal(memory_keep_begin(m, &keeper), 0);
    assert_true(memory_keep_take(m, 7, bytes, &length));
    assert_int_equal(length, WATCH_CHUNK);
    assert_int_equal(bytes[1], 'x');
    memory_write(m, 7 * WATCH_CHUNK + 1, "y", 1);
    assert_int_equal(kept[7], 0);
    memory_keep_end(m);
}

static void what_has_no_contents_is_skipped(void **state)
{
    memory_write(m, 100 * WATCH_CHUNK, "x", 1);
    assert_int_equal(memory_keep_begin(m, &keeper), 0);
    uint64_t first = memory_keep_skip(m, 0);
    assert_true(first > 0 && first <= 100); /* huge pages may be at work */
    assert_true(memory_may_write(m, 0));
    assert_false(memory_may_write(m, 100 * WATCH_CHUNK));
    memory_keep_end(m);
}

static void a_range_over_chunks_keeps_all_of_them(void **state)
{
    assert_int_equal(memory_keep_begin(m, &keeper), 0);
    memory_hva(m, 3 * WATCH_CHUNK - 1, WATCH_CHUNK + 2);
    for (unsigned i = 0; i < 6; i++)
        assert_int_equal(kept[i], i >= 2 && i <= 4);
    memory_keep_end(m);
}

static void what_is_given_back_is_kept_first(void **state)
{
    memory_write(m, 9 * WATCH_CHUNK, "z", 1);
    assert_int_equal(memory_keep_begin(m, &keeper), 0);
    assert_int_equal(memory_discard(m, 9 * WATCH_CHUNK, 4096), 0);
    assert_int_equal(kept[9], 1);
    assert_int_equal(first_byte[9], 'z');
    memory_keep_end(m);
}

static void contents_come_when_they_are_needed(void **state)
{
    uint8_t byte = 0;

    assert_int_equal(memory_load_begin(m, &source), 0);
    assert_int_equal(memory_read(m, 3 * WATCH_CHUNK + 17, &byte, 1), 0);
    assert_int_equal(byte, 4);
    assert_int_equal(loads[3], 1);
    memory_write(m, 4 * WATCH_CHUNK, "q", 1); /* the rest of the chunk is what it was */
    memory_read(m, 4 * WATCH_CHUNK, &byte, 1);
    assert_int_equal(byte, 'q');
    memory_read(m, 4 * WATCH_CHUNK + 1, &byte, 1);
    assert_int_equal(byte, 5);
    assert_int_equal(loads[4], 1);
    assert_true(memory_load_chunk(m, 6, NULL));
    assert_false(memory_load_chunk(m, 6, NULL));
    assert_int_equal(loads[5], 0);
    for (uint64_t i = 0; i < CHUNKS; i++)
        memory_load_chunk(m, i, NULL);
    assert_int_equal(loads[50], 0); /* it has none to come */
    assert_int_equal(loads[51], 1);
    memory_load_end(m);
    assert_false(memory_is_watched(m));
}

static void what_is_to_come_is_kept_as_well(void **state)
{
    uint8_t bytes[WATCH_CHUNK];
    uint32_t length;

    assert_int_equal(memory_load_begin(m, &source), 0);
    assert_int_equal(memory_keep_begin(m, &keeper), 0);
    memory_write(m, 8 * WATCH_CHUNK, "w", 1);
    assert_int_equal(first_byte[8], 9);
    assert_true(memory_keep_take(m, 10, bytes, &length));
    assert_int_equal(bytes[0], 11);
    assert_int_equal(memory_keep_skip(m, 11), 11); /* no contents here, but elsewhere */
    memory_keep_end(m);
    assert_true(memory_is_watched(m));
    memory_load_end(m);
}

/* A page walk may announce while the guest's registers are live. */
static void simd_registers_stay(void **state)
{
    static const uint8_t pattern[16] __attribute__((aligned(16))) = "sixteen letters";
    uint8_t after[16] __attribute__((aligned(16)));
    const struct memory *memory = m;

    assert_int_equal(memory_keep_begin(m, &keeper), 0);
    register const struct memory *a __asm__("rdi") = memory;
    register uint64_t b __asm__("rsi") = 20 * WATCH_CHUNK, c __asm__("rdx") = 8, d __asm__("rcx") = 1;
    __asm__ volatile("movdqa %5, %%xmm7\n call *%6\n movdqa %%xmm7, %4"
                     : "+r"(a), "+r"(b), "+r"(c), "+r"(d), "=m"(after)
                     : "m"(pattern), "r"(memory_announce)
                     : "memory", "rax", "r8", "r9", "r10", "r11", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5",
                       "xmm6", "xmm7");
    assert_int_equal(kept[20], 1);
    assert_memory_equal(after, pattern, 16);
    memory_keep_end(m);
}

static void *write_everywhere(void *opaque)
{
    for (uint64_t i = 0; i < CHUNKS; i++)
        memory_write(m, i * WATCH_CHUNK, "!", 1);
    return NULL;
}

static void threads_agree(void **state)
{
    pthread_t threads[3];
    uint8_t bytes[WATCH_CHUNK];
    uint32_t length;
    unsigned taken = 0;

    for (uint64_t i = 0; i < CHUNKS; i++)
        memory_write(m, i * WATCH_CHUNK, "o", 1);
    assert_int_equal(memory_keep_begin(m, &keeper), 0);
    for (unsigned i = 0; i < 3; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, write_everywhere, NULL), 0);
    for (uint64_t i = CHUNKS; i-- > 0;)
        if (memory_keep_take(m, i, bytes, &length)) {
            assert_int_equal(bytes[0], 'o');
            taken++;
        }
    for (unsigned i = 0; i < 3; i++)
        pthread_join(threads[i], NULL);
    for (uint64_t i = 0; i < CHUNKS; i++) {
        taken += kept[i];
        if (kept[i])
            assert_int_equal(first_byte[i], 'o');
    }
    assert_int_equal(taken, CHUNKS);
    memory_keep_end(m);
}

#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
static void pages_that_are_written_to_are_noted_once_a_round(void **state)
{
    uint16_t pages[CHUNKS];
    uint64_t at = 3 * WATCH_CHUNK + 2 * 4096;

    memory_write(m, 7 * WATCH_CHUNK, "a", 1);
    assert_int_equal(memory_log_begin(m), 0);
    assert_true(memory_is_watched(m));
    assert_false(memory_may_write(m, at));
    assert_int_equal(memory_write(m, at + 4095, "ab", 2), 0); /* over the end of a page */
    assert_true(memory_may_write(m, at));
    assert_true(memory_may_write(m, at + 4096));
    assert_false(memory_may_write(m, at + 2 * 4096));
    assert_int_equal(memory_log_count(m), 2);
    memory_log_take(m, pages);
    assert_int_equal(pages[3], 3 << 2);
    assert_int_equal(pages[7], 0);
    assert_int_equal(memory_log_count(m), 0);
    assert_false(memory_may_write(m, at)); /* the next round's is another */
    uint8_t byte;
    assert_int_equal(memory_read(m, at, &byte, 1), 0);
    assert_int_equal(memory_log_count(m), 0);
    assert_int_equal(memory_discard(m, 8 * WATCH_CHUNK, 4096), 0); /* given up is written to */
    memory_log_take(m, pages);
    assert_int_equal(pages[8], 1);
    memory_log_end(m);
    assert_false(memory_is_watched(m));
    assert_true(memory_may_write(m, at));
}

static void contents_that_come_later_are_not_written_to(void **state)
{
    uint8_t byte;

    assert_int_equal(memory_load_begin(m, &source), 0);
    assert_int_equal(memory_log_begin(m), 0);
    assert_int_equal(memory_read(m, 2 * WATCH_CHUNK, &byte, 1), 0);
    assert_int_equal(loads[2], 1);
    assert_int_equal(memory_log_count(m), 0);
    memory_log_end(m);
    assert_true(memory_is_watched(m));
    memory_load_end(m);
    assert_false(memory_is_watched(m));
}

/* --- changes that are told afterwards ------------------------------------------------------------------------------
 */

static struct {
    unsigned begun, ended;
    uint64_t gpa, pages;
} writer;

static int writer_begin(void *opaque)
{
    writer.begun++;
    return 0;
}

static void writer_collect(void *opaque)
{
    memory_log_note(m, writer.gpa, writer.pages);
    writer.pages = 0;
}

static void writer_end(void *opaque)
{
    writer.ended++;
}

static const struct memory_writer_ops writer_ops = {writer_begin, writer_collect, writer_end};

static void writes_that_nobody_announces_are_asked_for(void **state)
{
    uint16_t pages[CHUNKS];

    memory_set_writer(m, &writer_ops, NULL);
    assert_false(memory_is_announced(m));
    assert_int_equal(memory_log_begin(m), 0);
    assert_int_equal(writer.begun, 1);
    memory_write(m, 2 * WATCH_CHUNK, "a", 1); /* a device's, which is announced */
    writer.gpa = 4 * WATCH_CHUNK;
    writer.pages = 1 | 1ull << 15 | 1ull << 17;
    assert_int_equal(memory_log_chunks(m), 3);
    assert_int_equal(memory_log_count(m), 4); /* what was told stays */
    memory_log_take(m, pages);
    assert_int_equal(pages[2], 1);
    assert_int_equal(pages[4], 0x8001);
    assert_int_equal(pages[5], 2);
    assert_int_equal(memory_log_count(m), 0);
    writer.gpa = (CHUNKS - 1) * WATCH_CHUNK; /* behind its end there is nothing, whatever is said */
    writer.pages = ~0ull;
    memory_log_take(m, pages);
    assert_int_equal(pages[CHUNKS - 1], (uint16_t)((1u << (m->size - writer.gpa) / 4096) - 1));
    memory_log_end(m);
    assert_int_equal(writer.ended, 1);
    memory_set_writer(m, NULL, NULL);
}

/* --- contents that come by themselves ----------------------------------------------------------------------------- */

static _Atomic unsigned asked[CHUNKS];

static void ask(void *opaque, uint64_t chunk)
{
    asked[chunk]++;
}

static void *read_byte(void *opaque)
{
    static uint8_t byte;

    memory_read(m, 7 * WATCH_CHUNK + 100, &byte, 1);
    return &byte;
}

static void who_needs_a_chunk_asks_and_waits_until_it_is_brought(void **state)
{
    const struct memory_source comes = {.ask = ask, .has = has};
    static uint8_t page[4096] = {[100] = 42};
    pthread_t thread;
    void *byte;

    assert_int_equal(memory_load_begin(m, &comes), 0);
    assert_false(memory_lacks_chunk(m, 50));
    assert_int_equal(pthread_create(&thread, NULL, read_byte, NULL), 0);
    while (!asked[7])
        usleep(1000);
    assert_true(memory_bring_chunk(m, 8, 0, 0, NULL)); /* another one is no help */
    usleep(10000);
    assert_true(memory_lacks_chunk(m, 7));
    assert_true(memory_bring_chunk(m, 7, 1, 0, page));
    assert_int_equal(pthread_join(thread, &byte), 0);
    assert_int_equal(*(uint8_t *)byte, 42);
    assert_int_equal(asked[7], 1);
    assert_int_equal(asked[8], 0);
    memory_load_end(m);
    assert_false(memory_is_watched(m));
}

static void what_is_brought_replaces_what_was_there_by_pages(void **state)
{
    const struct memory_source comes = {.ask = ask, .has = has};
    static uint8_t pages[2 * 4096];
    uint8_t bytes[3];

    for (unsigned i = 0; i < 4; i++)
        memory_write(m, 9 * WATCH_CHUNK + i * 4096, "x", 1);
    pages[0] = 'a', pages[4096] = 'b';
    assert_int_equal(memory_load_begin(m, &comes), 0);
    assert_true(memory_bring_chunk(m, 9, 1 | 4, 8, pages));
    assert_false(memory_bring_chunk(m, 9, 1 | 4, 8, pages + 4096)); /* too late */
    for (unsigned i = 0; i < 4; i++) {
        assert_int_equal(memory_read(m, 9 * WATCH_CHUNK + i * 4096, bytes, 1), 0);
        assert_int_equal(bytes[0], "axb"[i]); /* the last is zeroes */
    }
    memory_load_end(m);
}

static void what_is_kept_can_be_looked_at_again(void **state)
{
    uint8_t bytes[WATCH_CHUNK];

    memory_write(m, 5 * WATCH_CHUNK, "a", 1);
    assert_int_equal(memory_keep_begin(m, &keeper), 0);
    for (unsigned i = 0; i < 2; i++) {
        assert_true(memory_keep_look(m, 5, bytes));
        assert_int_equal(bytes[0], 'a');
    }
    memory_write(m, 5 * WATCH_CHUNK, "b", 1);
    assert_int_equal(kept[5], 1);
    assert_false(memory_keep_look(m, 5, bytes));
    memory_keep_end(m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        T(a_chunk_is_kept_before_it_is_written_to),
        T(what_nobody_wrote_to_is_taken),
        T(what_has_no_contents_is_skipped),
        T(a_range_over_chunks_keeps_all_of_them),
        T(what_is_given_back_is_kept_first),
        T(contents_come_when_they_are_needed),
        T(what_is_to_come_is_kept_as_well),
        T(simd_registers_stay),
        T(threads_agree),
        T(pages_that_are_written_to_are_noted_once_a_round),
        T(writes_that_nobody_announces_are_asked_for),
        T(contents_that_come_later_are_not_written_to),
        T(who_needs_a_chunk_asks_and_waits_until_it_is_brought),
        T(what_is_brought_replaces_what_was_there_by_pages),
        T(what_is_kept_can_be_looked_at_again),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
