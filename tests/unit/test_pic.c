#include "board.h"

#include "devices/i8259.h"

static struct irq_line intr = {board_set_irq, NULL, 23};

static struct board *pic_board(void)
{
    static const uint16_t base[2] = {0x20, 0xa0};
    static struct board *current; /* the output goes to line 23 of the board that is made here */
    static struct i8259_config config = {&intr};
    struct board *b = board_create(NULL, NULL);
    current = b;
    intr.opaque = current;
    b->device.class = &i8259_class;
    assert_int_equal(i8259_class.create(&b->device, &b->env, &config), 0);
    for (unsigned i = 0; i < 2; i++) { /* as every PC's system does */
        outb(b, base[i], 0x11);
        outb(b, base[i] + 1, i ? 0x28 : 0x20);
        outb(b, base[i] + 1, i ? 2 : 4);
        outb(b, base[i] + 1, 1);
        outb(b, base[i] + 1, 0);
    }
    return b;
}

static void set(struct board *b, unsigned irq, bool level)
{
    i8259_set_irq(b->device.state, irq, level);
}

static int acknowledge(struct board *b)
{
    return i8259_acknowledge(b->device.state);
}

static void an_edge_is_taken_once(void **state)
{
    struct board *b = pic_board();
    set(b, 4, true);
    assert_true(b->level[23]);
    assert_int_equal(acknowledge(b), 0x24);
    assert_false(b->level[23]);
    outb(b, 0x20, 0x20); /* EOI; the line is still high, and no new edge */
    assert_false(b->level[23]);
    set(b, 4, false);
    set(b, 4, true);
    assert_true(b->level[23]);
    board_destroy(b);
}

static void a_level_comes_again_until_it_falls(void **state)
{
    struct board *b = pic_board();
    outb(b, 0x4d1, 0x08); /* IRQ 11 */
    assert_int_equal(inb(b, 0x4d1), 0x08);
    outb(b, 0x4d0, 0xff);
    assert_int_equal(inb(b, 0x4d0), 0xf8); /* 0-2 stay edges */
    outb(b, 0x4d0, 0);
    set(b, 11, true);
    assert_int_equal(acknowledge(b), 0x2b);
    assert_false(b->level[23]);
    outb(b, 0xa0, 0x20);
    outb(b, 0x20, 0x20);
    assert_true(b->level[23]);
    assert_int_equal(acknowledge(b), 0x2b);
    set(b, 11, false);
    outb(b, 0xa0, 0x63); /* specific EOIs */
    outb(b, 0x20, 0x62);
    assert_false(b->level[23]);
    board_destroy(b);
}

static void priorities_nest(void **state)
{
    struct board *b = pic_board();
    set(b, 5, true);
    assert_int_equal(acknowledge(b), 0x25);
    set(b, 7, true); /* lower: waits */
    assert_false(b->level[23]);
    set(b, 8, true); /* slave, at IR2: higher */
    assert_true(b->level[23]);
    assert_int_equal(acknowledge(b), 0x28);
    outb(b, 0x20, 0x0b);
    assert_int_equal(inb(b, 0x20), 0x24); /* ISR: 2 and 5 */
    outb(b, 0xa0, 0x20);
    outb(b, 0x20, 0x20);
    assert_int_equal(inb(b, 0x20), 0x20);
    outb(b, 0x20, 0x20);
    assert_true(b->level[23]);
    assert_int_equal(acknowledge(b), 0x27);
    board_destroy(b);
}

static void a_masked_request_waits(void **state)
{
    struct board *b = pic_board();
    outb(b, 0x21, 0x10);
    set(b, 4, true);
    assert_false(b->level[23]);
    outb(b, 0x20, 0x0a);
    assert_int_equal(inb(b, 0x20), 0x10); /* IRR */
    outb(b, 0x21, 0);
    assert_true(b->level[23]);
    outb(b, 0x21, 0xff);
    assert_int_equal(acknowledge(b), 0x27); /* gone: spurious */
    outb(b, 0x20, 0x0b);
    assert_int_equal(inb(b, 0x20), 0); /* and nothing in service */
    board_destroy(b);
}

static void automatic_eoi_and_rotation(void **state)
{
    struct board *b = pic_board();
    outb(b, 0x20, 0x11);
    outb(b, 0x21, 0x30);
    outb(b, 0x21, 4);
    outb(b, 0x21, 3);
    outb(b, 0x20, 0x80); /* rotate on automatic EOI */
    set(b, 0, false), set(b, 0, true);
    set(b, 1, false), set(b, 1, true);
    assert_int_equal(acknowledge(b), 0x30);
    set(b, 0, false), set(b, 0, true);
    assert_int_equal(acknowledge(b), 0x31); /* 0 has the lowest priority now */
    assert_int_equal(acknowledge(b), 0x30);
    board_destroy(b);
}

static void poll_mode_acknowledges(void **state)
{
    struct board *b = pic_board();
    set(b, 3, true);
    outb(b, 0x20, 0x0c);
    assert_int_equal(inb(b, 0x20), 0x83);
    outb(b, 0x20, 0x0c);
    assert_int_equal(inb(b, 0x20), 0x00);
    board_destroy(b);
}

static void linux_probe_sees_a_pic(void **state)
{
    struct board *b = pic_board();
    outb(b, 0xa1, 0xff);
    outb(b, 0x21, 0xfb); /* what probe_8259A writes and wants back */
    assert_int_equal(inb(b, 0x21), 0xfb);
    board_destroy(b);
}

static void a_restored_vector_is_one_byte(void **state)
{
    struct board *b = pic_board();
    memset((char *)b->device.state + i8259_class.save_offset, 0xff, i8259_class.save_size);
    i8259_class.post_restore(&b->device);
    assert_in_range(acknowledge(b), 0, 255);
    board_destroy(b);
}

static void garbage(void **state)
{
    struct board *b = pic_board();
    for (unsigned i = 0; i < 40; i++)
        set(b, i, true);
    board_garbage(b, BUS_PORT, 0x20, 2, 1);
    board_garbage(b, BUS_PORT, 0xa0, 2, 2);
    board_garbage(b, BUS_PORT, 0x4d0, 2, 3);
    for (unsigned i = 0; i < 1000; i++) {
        set(b, i % 16, i & 16);
        assert_in_range(acknowledge(b), 0, 255);
    }
    board_garbage_state(b, BUS_PORT, 0x20, 2);
    board_destroy(b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(an_edge_is_taken_once),
        cmocka_unit_test(a_level_comes_again_until_it_falls),
        cmocka_unit_test(priorities_nest),
        cmocka_unit_test(a_masked_request_waits),
        cmocka_unit_test(automatic_eoi_and_rotation),
        cmocka_unit_test(poll_mode_acknowledges),
        cmocka_unit_test(linux_probe_sees_a_pic),
        cmocka_unit_test(a_restored_vector_is_one_byte),
        cmocka_unit_test(garbage),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
