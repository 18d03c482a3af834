/* Contents that come later, to who accesses memory without a word. */
#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "memory/faults.h"
#include "memory/memory.h"
#include "memory/template.h"
#include "memory/watch.h"

#define SIZE ((16ull << 20) + 4096) /* the last chunk is one page */
#define PAGE 4096u
#define PAGES (SIZE / PAGE)
#define READERS 4u

static int begin(void *opaque)
{
    return 0;
}
static void nothing(void *opaque) {}
static const struct memory_writer_ops writer = {begin, nothing, nothing};

static _Atomic unsigned loads;

/* Every third chunk stays zeroes. */
static bool has(void *opaque, uint64_t chunk)
{
    return chunk % 3 != 2;
}

static uint32_t expected(uint64_t page)
{
    return has(NULL, page * PAGE / WATCH_CHUNK) ? (uint32_t)page + 1 : 0;
}

static void load(void *opaque, uint64_t chunk, void *bytes, uint32_t length)
{
    loads++;
    memset(bytes, 0, length);
    for (uint32_t at = 0; at < length; at += PAGE) {
        uint32_t value = expected((chunk * WATCH_CHUNK + at) / PAGE);
        memcpy((uint8_t *)bytes + at, &value, sizeof value);
    }
}

static void lost(void *opaque, int err)
{
    abort();
}

static const struct memory_source source = {.load = load, .lost = lost, .has = has};

static uint32_t *word(const struct memory *m, uint64_t page)
{
    return (uint32_t *)(void *)(m->base + page * PAGE);
}

static void *serve(void *opaque)
{
    memory_faults_serve(opaque);
    return NULL;
}

/* As guests do it, in no order, each page once more than there are readers. */
static void *look_and_count(void *opaque)
{
    const struct memory *m = opaque;

    for (uint64_t i = 0, page = 0; i < PAGES; i++, page = (page + 389) % PAGES)
        if (*word(m, page) != expected(page) || __atomic_add_fetch(&word(m, page)[1], 1, __ATOMIC_SEQ_CST) > READERS)
            return opaque;
    return NULL;
}

static struct memory *absent(void)
{
    struct memory *m;

    assert_int_equal(memory_create(&m, SIZE), 0);
    memory_set_writer(m, &writer, NULL);
    loads = 0;
    assert_int_equal(memory_load_begin(m, &source), 0);
    if (memory_faults_open(m, false)) {
        memory_destroy(m);
        skip();
    }
    return m;
}

static void who_accesses_memory_waits_for_it(void **state)
{
    struct memory *m = absent();
    pthread_t server, readers[READERS];
    uint32_t early;
    void *wrong;

    assert_int_equal(memory_read(m, 5 * PAGE, &early, sizeof early), 0); /* a device, before */
    assert_int_equal(early, 6);
    m->base[1000 * PAGE + 8] = 1; /* something is in the way of what is to come */
    assert_int_equal(memory_faults_begin(m), 0);
    assert_false(memory_is_settled(m));
    assert_int_equal(pthread_create(&server, NULL, serve, m), 0);
    for (unsigned i = 0; i < READERS; i++)
        assert_int_equal(pthread_create(&readers[i], NULL, look_and_count, m), 0);
    for (uint64_t i = 0; i < memory_chunks(m); i += 7) /* as the thread that brings the rest */
        memory_load_chunk(m, i, NULL);
    for (unsigned i = 0; i < READERS; i++) {
        pthread_join(readers[i], &wrong);
        assert_null(wrong);
    }
    assert_in_range(loads, memory_chunks(m) * 2 / 3, memory_chunks(m) * 2 / 3 + 1); /* each once */
    memory_load_end(m);
    memory_faults_end(m);
    pthread_join(server, NULL);
    assert_true(memory_is_settled(m));
    assert_int_equal(m->faults, -1);
    for (uint64_t page = 0; page < PAGES; page++)
        assert_int_equal(word(m, page)[1], READERS);
    memory_destroy(m);
}

/* The host's kernel on behalf of a guest, as KVM is; and what was given back meanwhile. */
static void system_calls_wait_as_well(void **state)
{
    struct memory *m = absent();
    pthread_t server;
    int pipes[2];
    uint32_t got[3];

    assert_int_equal(memory_faults_begin(m), 0);
    assert_int_equal(pthread_create(&server, NULL, serve, m), 0);
    assert_int_equal(pipe(pipes), 0);
    for (unsigned i = 0; i < 3; i++)
        assert_int_equal(write(pipes[1], word(m, (i + 10) * 16), 4), 4);
    assert_int_equal(read(pipes[0], got, sizeof got), sizeof got);
    for (unsigned i = 0; i < 3; i++)
        assert_int_equal(got[i], expected((i + 10) * 16));
    assert_int_equal(memory_discard(m, 160 * PAGE, 2 * PAGE), 0);
    assert_int_equal(*word(m, 160), 0);
    assert_int_equal(*word(m, 162), expected(162));
    assert_int_equal(memory_discard(m, 640 * PAGE, PAGE), 0); /* which was not there yet */
    assert_int_equal(*word(m, 640), 0);
    assert_int_equal(*word(m, 641), expected(641));
    memory_faults_end(m); /* the machine ends */
    pthread_join(server, NULL);
    assert_int_equal(*word(m, 2000), 0);
    memory_load_end(m);
    close(pipes[0]);
    close(pipes[1]);
    memory_destroy(m);
}

/* --- contents that somebody sends ----------------------------------------------------------------------------------
 */

static _Atomic uint64_t asked;

static void ask(void *opaque, uint64_t chunk)
{
    asked |= 1ull << chunk;
}

/* Chunks 1 and 2: the first is there, but for what has changed since; the second is not. */
static bool lacked(void *opaque, uint64_t chunk)
{
    return chunk == 1 || chunk == 2;
}

static void *look_at_chunk_1(void *opaque)
{
    struct memory *m = opaque;
    uintptr_t sum = 0;

    for (uint64_t page = 16; page < 32; page++)
        sum += *word(m, page);
    return (void *)sum;
}

/* Of pages that are there, what has changed is not seen before it comes, nor are those that lie beside it. */
static void what_was_sent_before_is_not_seen_while_it_is_old(void **state)
{
    const struct memory_source sent = {.ask = ask, .lost = lost, .has = lacked};
    static uint32_t bytes[2 * PAGE / sizeof(uint32_t)];
    struct memory *m;
    pthread_t server, reader;
    void *sum;

    assert_int_equal(memory_create(&m, SIZE), 0);
    memory_set_writer(m, &writer, NULL);
    for (uint64_t page = 0; page < 32; page++)
        *word(m, page) = 1;
    assert_int_equal(memory_load_begin(m, &sent), 0);
    if (memory_faults_open(m, true)) {
        memory_destroy(m);
        skip();
    }
    asked = 0;
    assert_int_equal(memory_faults_begin(m), 0);
    assert_int_equal(pthread_create(&server, NULL, serve, m), 0);
    assert_int_equal(*word(m, 3), 1); /* it is there, and nothing else will come */
    *word(m, 3) = 2;
    assert_int_equal(*word(m, 48), 0); /* nor here */
    assert_int_equal(pthread_create(&reader, NULL, look_at_chunk_1, m), 0);
    while (!asked)
        usleep(1000);
    usleep(20000);
    assert_int_equal(asked, 1ull << 1);
    bytes[0] = 100;
    bytes[PAGE / sizeof(uint32_t)] = 200;
    assert_true(memory_bring_chunk(m, 1, 1u << 4 | 1u << 7, 1u << 9, bytes));
    pthread_join(reader, &sum);
    assert_int_equal((uintptr_t)sum, 100 + 200 + 16 - 3);
    assert_true(memory_bring_chunk(m, 2, 1, 0, bytes)); /* before somebody looks */
    assert_int_equal(*word(m, 32), 100);
    assert_int_equal(*word(m, 33), 0);
    assert_int_equal(memory_discard(m, 16 * PAGE, PAGE), 0);
    assert_int_equal(*word(m, 16), 0);
    memory_load_end(m);
    memory_faults_end(m);
    pthread_join(server, NULL);
    assert_int_equal(*word(m, 3), 2);
    assert_int_equal(*word(m, 20), 100);
    assert_int_equal(*word(m, 25), 0);
    memory_destroy(m);
}

#define T(name) cmocka_unit_test(name)
int main(void)
{
    const struct CMUnitTest tests[] = {
        T(who_accesses_memory_waits_for_it),
        T(system_calls_wait_as_well),
        T(what_was_sent_before_is_not_seen_while_it_is_old),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
