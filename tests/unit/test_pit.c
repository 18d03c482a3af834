#include <unistd.h>

#include "board.h"

#include "devices/i8254.h"

static void load(struct board *b, unsigned channel, unsigned mode, uint16_t count)
{
    outb(b, 0x43, (uint8_t)(channel << 6 | 0x30 | mode << 1));
    outb(b, (uint16_t)(0x40 + channel), (uint8_t)count);
    outb(b, (uint16_t)(0x40 + channel), (uint8_t)(count >> 8));
}

static uint16_t latched(struct board *b, unsigned channel)
{
    outb(b, 0x43, (uint8_t)(channel << 6));
    uint8_t low = inb(b, (uint16_t)(0x40 + channel));
    return (uint16_t)(low | inb(b, (uint16_t)(0x40 + channel)) << 8);
}

static void the_rate_generator_ticks(void **state)
{
    struct board *b = board_create(&i8254_class, NULL);
    for (unsigned mode = 2; mode <= 3; mode++) {
        unsigned before = b->edges[0];
        load(b, 0, mode, I8254_HZ / 1000);
        board_run(b, 100000000);
        assert_in_range(b->edges[0] - before, 20, 103); /* never more; fewer on a busy host */
    }
    board_destroy(b);
}

static void one_shot_fires_once(void **state)
{
    struct board *b = board_create(&i8254_class, NULL);
    load(b, 0, 4, 1193); /* as Linux's clock event */
    board_run(b, 5000000);
    unsigned after = b->edges[0];
    assert_int_equal(after, 2); /* OUT rose with the control word, and at the end of the count */
    board_run(b, 5000000);
    assert_int_equal(b->edges[0], after);
    load(b, 0, 0, 1193); /* interrupt on terminal count */
    assert_false(b->level[0]);
    board_run(b, 5000000);
    assert_true(b->level[0]);
    board_destroy(b);
}

static void the_counter_counts(void **state)
{
    struct board *b = board_create(&i8254_class, NULL);
    load(b, 0, 2, 0);
    uint64_t start = clock_ns();
    uint16_t one = latched(b, 0);
    usleep(5000);
    uint16_t two = latched(b, 0);
    uint64_t ticks = (clock_ns() - start) * I8254_HZ / 1000000000;
    assert_in_range((uint16_t)(one - two), 5965, ticks + 2);
    board_destroy(b);
}

static void read_back_latches_status_and_count(void **state)
{
    struct board *b = board_create(&i8254_class, NULL);
    outb(b, 0x43, 0x34);
    outb(b, 0x43, 0xe2);                  /* status of channel 0 */
    assert_int_equal(inb(b, 0x40), 0xf4); /* OUT high, null count, both bytes, mode 2 */
    load(b, 0, 2, 50000);
    outb(b, 0x43, 0xc2); /* both */
    assert_int_equal(inb(b, 0x40), 0xb4);
    uint8_t low = inb(b, 0x40);
    unsigned count = low | inb(b, 0x40) << 8;
    assert_in_range(count, 1, 50000);
    board_destroy(b);
}

static void a_latch_stands_until_read(void **state)
{
    struct board *b = board_create(&i8254_class, NULL);
    load(b, 0, 2, 60000);
    outb(b, 0x43, 0);
    usleep(100);
    uint16_t kept = latched(b, 0); /* the second latch command is ignored */
    assert_true(kept > 60000 - 100);
    board_destroy(b);
}

/* The calibration that kernels do with channel 2, mode 0 and port 0x61. */
static void channel_2_times_by_its_gate(void **state)
{
    struct board *b = board_create(&i8254_class, NULL);
    outb(b, 0x61, (inb(b, 0x61) & ~2) | 1);
    uint64_t start = clock_ns();
    load(b, 2, 0, I8254_HZ / 100);
    assert_false(inb(b, 0x61) & 0x20);
    while (!(inb(b, 0x61) & 0x20))
        ;
    uint64_t ns = clock_ns() - start;
    assert_in_range(ns, 9990000, 60000000);
    /* With the gate low nothing counts. */
    outb(b, 0x61, 0);
    load(b, 2, 0, 1000);
    uint16_t one = latched(b, 2);
    usleep(2000);
    assert_int_equal(latched(b, 2), one);
    assert_false(inb(b, 0x61) & 0x20);
    outb(b, 0x61, 1); /* and goes on where it was */
    usleep(2000);
    assert_true(inb(b, 0x61) & 0x20);
    outb(b, 0x61, 0);
    outb(b, 0x61, 1);
    assert_true(inb(b, 0x61) & 0x20); /* the end of the count stays reached */
    board_destroy(b);
}

static void bcd_counts_by_tens(void **state)
{
    struct board *b = board_create(&i8254_class, NULL);
    outb(b, 0x43, 0x35);
    outb(b, 0x40, 0x00);
    outb(b, 0x40, 0x10); /* 1000 */
    for (unsigned i = 0; i < 1000; i++) {
        uint16_t v = latched(b, 0);
        for (unsigned k = 0; k < 16; k += 4)
            assert_true((v >> k & 15) < 10);
        assert_true(v <= 0x1000);
    }
    board_destroy(b);
}

static void the_refresh_bit_toggles(void **state)
{
    struct board *b = board_create(&i8254_class, NULL);
    unsigned toggles = 0;
    uint8_t last = inb(b, 0x61) & 0x10;
    for (uint64_t end = clock_ns() + 2000000; clock_ns() < end;) {
        uint8_t now = inb(b, 0x61) & 0x10;
        toggles += now != last;
        last = now;
    }
    assert_true(toggles > 20);
    board_destroy(b);
}

static void the_hpet_takes_the_line(void **state)
{
    struct board *b = board_create(&i8254_class, NULL);
    load(b, 0, 2, 1193);
    i8254_connect_irq(b->device.state, false);
    unsigned before = b->edges[0];
    board_run(b, 5000000);
    assert_int_equal(b->edges[0], before);
    i8254_connect_irq(b->device.state, true);
    board_run(b, 5000000);
    assert_true(b->edges[0] > before);
    board_destroy(b);
}

static void garbage(void **state)
{
    struct board *b = board_create(&i8254_class, NULL);
    board_garbage(b, BUS_PORT, 0x40, 4, 1);
    for (unsigned i = 0; i < 20000; i++)
        outb(b, 0x61, (uint8_t)i), outb(b, (uint16_t)(0x40 + i % 4), (uint8_t)(i * 37)), inb(b, 0x42);
    board_garbage_state(b, BUS_PORT, 0x40, 4);
    board_destroy(b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_rate_generator_ticks),  cmocka_unit_test(one_shot_fires_once),
        cmocka_unit_test(the_counter_counts),        cmocka_unit_test(read_back_latches_status_and_count),
        cmocka_unit_test(a_latch_stands_until_read), cmocka_unit_test(channel_2_times_by_its_gate),
        cmocka_unit_test(bcd_counts_by_tens),        cmocka_unit_test(the_refresh_bit_toggles),
        cmocka_unit_test(the_hpet_takes_the_line),   cmocka_unit_test(garbage),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
