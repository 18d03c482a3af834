#include "board.h"

#include "devices/i8042.h"

static uint8_t command(struct board *b, uint8_t c)
{
    outb(b, 0x64, c);
    assert_int_equal(inb(b, 0x64) & 1, 1);
    return inb(b, 0x60);
}

/* The steps by which Linux's i8042 driver looks for a controller and what is plugged in. */
static void linux_probe_finds_no_device(void **state)
{
    struct board *b = board_create(&i8042_class, NULL);
    assert_int_equal(inb(b, 0x64) & 1, 0); /* flushes at once */
    assert_int_equal(command(b, 0xaa), 0x55);
    uint8_t mode = command(b, 0x20);
    outb(b, 0x64, 0x60);
    outb(b, 0x60, mode | 0x10);
    assert_int_equal(command(b, 0x20), mode | 0x10);
    outb(b, 0x64, 0xd3); /* the mouse loop comes back as the keyboard's: no such port */
    outb(b, 0x60, 0x5a);
    assert_int_equal(inb(b, 0x64) & 0x21, 0x01);
    inb(b, 0x60);
    assert_int_equal(command(b, 0xa9), 0x01);
    outb(b, 0x60, 0xf2); /* the keyboard's identity: time-out at once */
    assert_int_equal(inb(b, 0x64) & 0x41, 0x41);
    assert_int_equal(inb(b, 0x60), 0xfe);
    assert_int_equal(inb(b, 0x64) & 0x41, 0);
    board_destroy(b);
}

static void three_ways_to_reset(void **state)
{
    struct board *b = board_create(&i8042_class, NULL);
    outb(b, 0x64, 0xff); /* pulses nothing */
    assert_int_equal(b->resets, 0);
    outb(b, 0x64, 0xfe);
    assert_int_equal(b->resets, 1);
    outb(b, 0x64, 0xd1);
    outb(b, 0x60, 0xdf);
    assert_int_equal(b->resets, 1);
    outb(b, 0x64, 0xd1);
    outb(b, 0x60, 0xde);
    assert_int_equal(b->resets, 2);
    assert_int_equal(inb(b, 0x92), 2);
    outb(b, 0x92, 0);
    assert_int_equal(inb(b, 0x92), 0);
    outb(b, 0x92, 3);
    assert_int_equal(b->resets, 3);
    board_destroy(b);
}

static void garbage(void **state)
{
    struct board *b = board_create(&i8042_class, NULL);
    board_garbage(b, BUS_PORT, 0x60, 5, 1);
    board_garbage(b, BUS_PORT, 0x92, 1, 2);
    board_garbage_state(b, BUS_PORT, 0x60, 5);
    board_destroy(b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(linux_probe_finds_no_device),
        cmocka_unit_test(three_ways_to_reset),
        cmocka_unit_test(garbage),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
