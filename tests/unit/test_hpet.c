#include <unistd.h>

#include "board.h"

#include "devices/hpet.h"

static uint64_t readq(struct board *b, unsigned reg)
{
    return bus_read(b->bus, BUS_MEM, HPET_BASE + reg, 8);
}
static void writeq(struct board *b, unsigned reg, uint64_t v)
{
    bus_write(b->bus, BUS_MEM, HPET_BASE + reg, v, 8);
}

static unsigned legacy_calls;
static bool legacy_on;
static void note_legacy(void *opaque, bool on)
{
    legacy_calls++;
    legacy_on = on;
}
static const struct hpet_config config = {note_legacy, NULL};

static void it_says_what_it_is(void **state)
{
    struct board *b = board_create(&hpet_class, &config);
    assert_int_equal(readq(b, 0) >> 32, 10000000);
    assert_int_equal(readl(b, HPET_BASE + 4), 10000000);
    assert_int_equal(readq(b, 0) & 0xffffffff, 0x8086a201);
    assert_int_equal(readq(b, 0x100) >> 32, 0x00f00000);
    assert_int_equal(readq(b, 0x100) & 0x30, 0x30);
    writeq(b, 0, 0);
    assert_int_equal(readq(b, 0) >> 32, 10000000);
    board_destroy(b);
}

static void the_counter_runs_when_enabled(void **state)
{
    struct board *b = board_create(&hpet_class, &config);
    assert_int_equal(readq(b, 0xf0), 0);
    writeq(b, 0xf0, 0xfffffff0);
    usleep(1000);
    assert_int_equal(readq(b, 0xf0), 0xfffffff0);
    uint64_t start = clock_ns();
    writeq(b, 0x10, 1);
    usleep(2000);
    uint64_t v = readq(b, 0xf0);
    assert_in_range(v, 0xfffffff0 + 200000ull, 0xfffffff0 + (clock_ns() - start) / 10);
    assert_true(v >> 32); /* all of 64 bits */
    writeq(b, 0x10, 0);
    v = readq(b, 0xf0);
    usleep(1000);
    assert_int_equal(readq(b, 0xf0), v);
    board_destroy(b);
}

static void one_shot_in_legacy_mode(void **state)
{
    struct board *b = board_create(&hpet_class, &config);
    legacy_calls = 0;
    writeq(b, 0x10, 3);
    assert_true(legacy_on);
    assert_int_equal(legacy_calls, 1);
    writeq(b, 0x100, 0x04 | 0x100);                                    /* enabled, 32 bits, edge */
    writel(b, HPET_BASE + 0x108, (uint32_t)readq(b, 0xf0) + 10000000); /* 100 ms */
    board_run(b, 5000000);
    assert_int_equal(b->edges[0], 0);
    board_run(b, 200000000);
    assert_int_equal(b->edges[0], 1);
    board_run(b, 3000000);
    assert_int_equal(b->edges[0], 1);
    writeq(b, 0x10, 1);
    assert_false(legacy_on);
    board_destroy(b);
}

static void periodic_as_linux_programs_it(void **state)
{
    struct board *b = board_create(&hpet_class, &config);
    writeq(b, 0x10, 3);
    writel(b, HPET_BASE + 0x100, 0x04 | 0x08 | 0x40 | 0x100);
    writel(b, HPET_BASE + 0x108, (uint32_t)readq(b, 0xf0) + 100000); /* first: the comparator */
    writel(b, HPET_BASE + 0x108, 100000);                            /* then: the period */
    int rounds = 0;
    do { /* on a busy host some come late, and fall together */
        board_run(b, 100500000);
        rounds++;
    } while (b->edges[0] < 20 && rounds < 20);
    assert_in_range(b->edges[0], 20, 103 * rounds);
    /* Timer 1 is the RTC's line. */
    writel(b, HPET_BASE + 0x120, 0x104);
    writel(b, HPET_BASE + 0x128, (uint32_t)readq(b, 0xf0) + 10000);
    board_run(b, 2000000);
    assert_int_equal(b->edges[8], 1);
    board_destroy(b);
}

static void level_holds_until_cleared(void **state)
{
    struct board *b = board_create(&hpet_class, &config);
    writeq(b, 0x10, 1);
    writel(b, HPET_BASE + 0x140, 0x04 | 0x02 | 21 << 9);
    writeq(b, 0x148, readq(b, 0xf0) + 10000);
    board_run(b, 3000000);
    assert_true(b->level[21]);
    assert_int_equal(readq(b, 0x20), 4);
    writeq(b, 0x20, 4);
    assert_false(b->level[21]);
    assert_int_equal(readq(b, 0x20), 0);
    board_destroy(b);
}

static void garbage(void **state)
{
    struct board *b = board_create(&hpet_class, &config);
    board_garbage(b, BUS_MEM, HPET_BASE, 0x400, 1);
    board_garbage(b, BUS_MEM, HPET_BASE, 0x160, 2);
    board_garbage_state(b, BUS_MEM, HPET_BASE, 0x160);
    board_destroy(b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(it_says_what_it_is),        cmocka_unit_test(the_counter_runs_when_enabled),
        cmocka_unit_test(one_shot_in_legacy_mode),   cmocka_unit_test(periodic_as_linux_programs_it),
        cmocka_unit_test(level_holds_until_cleared), cmocka_unit_test(garbage),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
