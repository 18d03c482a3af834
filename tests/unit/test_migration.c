/* The stream of a migration: what is put arrives; damage of any kind is refused.  And the record that decides. */
#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/error.h"
#include "vm/migration_record.h"
#include "vm/migration_wire.h"
#include "vm/tree.h"

static uint8_t chunk[WIRE_CHUNK];
static struct wire w;
static struct wire_frame f;
static const char *why;

/* Pages: 0 and 2 noise, 1 zeroes, the rest text. */
static int setup(void **state)
{
    uint64_t x = 1;

    for (unsigned i = 0; i < WIRE_CHUNK; i++) {
        x = x * 6364136223846793005ull + 1442695040888963407ull;
        chunk[i] = i / WIRE_PAGE % 2 == 0 && i < 3 * WIRE_PAGE ? (uint8_t)(x >> 56) : (uint8_t) "guise "[i % 6];
    }
    memset(chunk + WIRE_PAGE, 0, WIRE_PAGE);
    return wire_open(&w, memfd_create("stream", MFD_CLOEXEC), false);
}

static int teardown(void **state)
{
    close(w.fd);
    wire_close(&w);
    return 0;
}

/* What was put is to be read. */
static void turn(void)
{
    int fd = w.fd;

    wire_close(&w);
    lseek(fd, 0, SEEK_SET);
    assert_int_equal(wire_open(&w, fd, false), 0);
}

static void a_chunk_arrives(void **state)
{
    for (unsigned compress = 0; compress < 2; compress++) {
        assert_int_equal(ftruncate(w.fd, 0), 0);
        turn();
        w.compress = compress;
        assert_int_equal(wire_put_chunk(&w, WIRE_MEMORY, 77, chunk, 0x800f, false), 0);
        assert_int_equal(wire_put_end(&w), 0);
        turn();
        assert_int_equal(wire_get(&w, &f, &why), 0);
        assert_int_equal(f.type, WIRE_MEMORY);
        assert_int_equal(f.number, 77);
        assert_int_equal(f.present, 0x800d);
        assert_int_equal(f.zeroes, 2);
        assert_memory_equal(f.bytes, chunk, WIRE_PAGE);
        assert_memory_equal(f.bytes + WIRE_PAGE, chunk + 2 * WIRE_PAGE, 2 * WIRE_PAGE);
        assert_memory_equal(f.bytes + 3 * WIRE_PAGE, chunk + 15 * WIRE_PAGE, WIRE_PAGE);
        assert_int_equal(wire_get(&w, &f, &why), 0);
        assert_int_equal(f.type, WIRE_END);
        assert_int_equal(wire_get(&w, &f, &why), -ECONNRESET);
    }
}

static void zeroes_need_not_be_said_twice(void **state)
{
    assert_int_equal(wire_put_chunk(&w, WIRE_MEMORY, 1, chunk, 2, true), 0);
    assert_int_equal(w.bytes, 0);
    assert_int_equal(wire_put_chunk(&w, WIRE_DISK, 1, chunk, 2, false), 0);
    assert_int_equal(w.bytes, 24);
}

static void a_section_arrives(void **state)
{
    const struct section s = {.kind = "cpu", .name = "0", .version = 3, .size = 300, .bytes = chunk};

    assert_int_equal(wire_put_section(&w, &s), 0);
    turn();
    assert_int_equal(wire_get(&w, &f, &why), 0);
    assert_string_equal(f.section->kind, "cpu");
    assert_string_equal(f.section->name, "0");
    assert_int_equal(f.section->version, 3);
    assert_int_equal(f.section->size, 300);
    assert_memory_equal(f.section->bytes, chunk, 300);
}

static void every_wrong_bit_is_seen(void **state)
{
    const struct section s = {.kind = "cpu", .name = "0", .version = 3, .size = 30, .bytes = chunk};

    assert_int_equal(wire_put_section(&w, &s), 0);
    assert_int_equal(wire_put_end(&w), 0);
    size_t length = w.bytes;
    for (size_t bit = 0; bit < 8 * length; bit++) {
        uint8_t byte;
        int failed;
        assert_int_equal(pread(w.fd, &byte, 1, (off_t)(bit / 8)), 1);
        byte ^= (uint8_t)(1 << bit % 8);
        assert_int_equal(pwrite(w.fd, &byte, 1, (off_t)(bit / 8)), 1);
        turn();
        failed = wire_get(&w, &f, &why);
        if (!failed)
            failed = wire_get(&w, &f, &why);
        assert_true(failed == -EBADMSG || failed == -ECONNRESET);
        byte ^= (uint8_t)(1 << bit % 8);
        assert_int_equal(pwrite(w.fd, &byte, 1, (off_t)(bit / 8)), 1);
    }
}

static void a_missing_frame_is_seen(void **state)
{
    assert_int_equal(wire_put_chunk(&w, WIRE_MEMORY, 1, chunk, 1, false), 0);
    lseek(w.fd, 0, SEEK_SET);
    assert_int_equal(wire_put_end(&w), 0);
    turn();
    assert_int_equal(wire_get(&w, &f, &why), -EBADMSG);
    assert_string_equal(why, "frames of it are missing");
}

static void what_a_destination_asks_arrives(void **state)
{
    const uint8_t bits[3] = {0x81, 0, 0x55};

    assert_int_equal(wire_put_lacks(&w, bits, sizeof bits), 0);
    assert_int_equal(wire_put_ask(&w, 1234567), 0);
    turn();
    assert_int_equal(wire_get(&w, &f, &why), 0);
    assert_int_equal(f.type, WIRE_LACKS);
    assert_int_equal(f.length, sizeof bits);
    assert_memory_equal(f.bytes, bits, sizeof bits);
    assert_int_equal(wire_get(&w, &f, &why), 0);
    assert_int_equal(f.type, WIRE_ASK);
    assert_int_equal(f.number, 1234567);
}

static void an_answer_is_one_also_when_there_is_nothing_to_say(void **state)
{
    assert_int_equal(wire_answer_chunk(&w, 5, chunk, 0), 0);
    assert_int_equal(wire_answer_chunk(&w, 6, chunk, 2), 0);
    turn();
    assert_int_equal(wire_get(&w, &f, &why), 0);
    assert_int_equal(f.number, 5);
    assert_int_equal(f.present | f.zeroes, 0);
    assert_int_equal(wire_get(&w, &f, &why), 0);
    assert_int_equal(f.zeroes, 2);
}

/* --- the record -------------------------------------------------------------------------------------------------- */

static struct registry r;
static char err[ERROR_SIZE];

static void make(bool destination, bool decided)
{
    struct migration_record m = {
        .id = "0123456789abcdef0123456789abcdef", .name = "vm", .peer = "unix:/there", .destination = destination};
    int fd = migration_record_make(&r, &m, err, sizeof err);

    assert_true(fd >= 0);
    if (decided)
        assert_int_equal(migration_decide(fd, true), 0);
    close(fd);
}

static int setup_registry(void **state)
{
    char path[] = "/tmp/guise-migration-XXXXXX", vm[64];

    if (!mkdtemp(path))
        return -1;
    snprintf(r.vms, sizeof r.vms, "%s/vms", path);
    snprintf(vm, sizeof vm, "%s/vms/vm", path);
    return mkdir(r.vms, 0700) || mkdir(vm, 0700) ? -1 : 0;
}

static int teardown_registry(void **state)
{
    *strrchr(r.vms, '/') = 0;
    return tree_remove(r.vms);
}

static void one_that_was_given_up_does_not_start(void **state)
{
    struct migration_record m;

    assert_int_equal(migration_may_start(&r, "vm", err, sizeof err), 0);
    make(false, true);
    assert_int_equal(migration_may_start(&r, "vm", err, sizeof err), -EBUSY);
    assert_non_null(strstr(err, "unix:/there"));
    assert_int_equal(migration_record_read(&r, "vm", &m, err, sizeof err), 0);
    assert_true(m.decided && !m.destination);
}

static void what_came_to_nothing_is_forgotten(void **state)
{
    struct migration_record m;

    make(false, false);
    assert_int_equal(migration_may_start(&r, "vm", err, sizeof err), 0);
    assert_int_equal(migration_record_read(&r, "vm", &m, err, sizeof err), -ENOENT);
}

static void one_that_was_received_in_part_does_not_start(void **state)
{
    make(true, false);
    assert_int_equal(migration_may_start(&r, "vm", err, sizeof err), -EBUSY);
}

static void what_ran_here_is_remembered(void **state)
{
    struct migration_record m;
    const char *id = "0123456789abcdef0123456789abcdef";

    make(true, true);
    assert_int_equal(migration_may_start(&r, "vm", err, sizeof err), 0);
    assert_int_equal(migration_record_find(&r, id, &m, err, sizeof err), 0);
    assert_true(m.decided && m.destination);
}

static void one_that_died_while_its_memory_was_at_both_sides_does_not_start(void **state)
{
    struct migration_record m;
    const char *id = "0123456789abcdef0123456789abcdef";

    make(true, false);
    int fd = migration_record_open(&r, "vm", err, sizeof err);
    assert_true(fd >= 0);
    assert_int_equal(migration_decide_partly(fd), 0);
    assert_int_equal(migration_may_start(&r, "vm", err, sizeof err), -EBUSY);
    assert_non_null(strstr(err, "--here"));
    assert_int_equal(migration_record_find(&r, id, &m, err, sizeof err), 0);
    assert_true(m.decided && m.partly);
    assert_int_equal(migration_decide(fd, true), 0); /* the rest has come */
    close(fd);
    assert_int_equal(migration_record_find(&r, id, &m, err, sizeof err), 0);
    assert_true(m.decided && !m.partly);
    assert_int_equal(migration_may_start(&r, "vm", err, sizeof err), 0);
}

static void what_was_never_told_to_run_is_not(void **state)
{
    struct migration_record m;
    const char *id = "0123456789abcdef0123456789abcdef";

    make(true, false);
    migration_record_forget(&r, id);
    assert_int_equal(migration_record_find(&r, id, &m, err, sizeof err), -ENOENT);
}

#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
#define R(name) cmocka_unit_test_setup_teardown(name, setup_registry, teardown_registry)

int main(void)
{
    const struct CMUnitTest tests[] = {
        T(a_chunk_arrives),
        T(zeroes_need_not_be_said_twice),
        T(a_section_arrives),
        T(every_wrong_bit_is_seen),
        T(a_missing_frame_is_seen),
        T(what_a_destination_asks_arrives),
        T(an_answer_is_one_also_when_there_is_nothing_to_say),
        R(one_that_was_given_up_does_not_start),
        R(what_came_to_nothing_is_forgotten),
        R(one_that_was_received_in_part_does_not_start),
        R(what_ran_here_is_remembered),
        R(one_that_died_while_its_memory_was_at_both_sides_does_not_start),
        R(what_was_never_told_to_run_is_not),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
