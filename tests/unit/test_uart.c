#include "board.h"

#include "devices/uart16550.h"

enum {
    RBR = 0x3f8,
    IER = 0x3f9,
    IIR = 0x3fa,
    FCR = 0x3fa,
    LCR = 0x3fb,
    MCR = 0x3fc,
    LSR = 0x3fd,
    MSR = 0x3fe,
    SCR = 0x3ff
};

static char written[100000];
static size_t n_written, n_calls, room;
static unsigned spaces, waits;

static size_t output(void *opaque, const void *data, size_t len)
{
    n_calls++;
    len = len < room ? len : room;
    room -= len;
    if (n_written + len <= sizeof(written))
        memcpy(written + n_written, data, len);
    n_written += len;
    return len;
}

/* The second time the reader takes some. */
static struct board *waiting;
static bool wait_for_room(void *opaque)
{
    if (++waits % 2)
        return true;
    room = 1000;
    uart16550_flush(waiting->device.state);
    return true;
}

static bool has_to_go(void *opaque)
{
    waits++;
    return false;
}

static void on_space(void *opaque)
{
    spaces++;
}

static struct board *uart_board_waiting(bool (*wait)(void *opaque))
{
    const struct uart16550_config config = {0x3f8, 4, output, wait, NULL};
    n_written = n_calls = spaces = waits = 0;
    room = SIZE_MAX;
    struct board *b = board_create(&uart16550_class, &config);
    uart16550_set_space(b->device.state, on_space, NULL);
    return b;
}

static struct board *uart_board(void)
{
    return uart_board_waiting(NULL);
}

static size_t type(struct board *b, const char *text)
{
    return uart16550_input(b->device.state, text, strlen(text));
}

/* The steps by which Linux's 8250 driver decides what is there (autoconfig). */
static void linux_probe_finds_a_16550a(void **state)
{
    struct board *b = uart_board();
    outb(b, IER, 0);
    assert_int_equal(inb(b, IER), 0);
    outb(b, IER, 0x0f);
    assert_int_equal(inb(b, IER) & 0x0f, 0x0f);
    outb(b, IER, 0);
    outb(b, MCR, 0x1a); /* loopback, OUT2, RTS */
    assert_int_equal(inb(b, MSR) & 0xf0, 0x90);
    outb(b, MCR, 0);
    outb(b, LCR, 0xbf); /* no extended registers behind this */
    outb(b, FCR, 0);
    outb(b, LCR, 0);
    outb(b, FCR, 1);
    assert_int_equal(inb(b, IIR) >> 6, 3);
    outb(b, LCR, 0x80);
    assert_int_not_equal(inb(b, IIR), 0); /* else a 16650 is suspected */
    outb(b, LCR, 0xbf);
    assert_int_not_equal(inb(b, IIR), 0);
    outb(b, FCR, 1);
    outb(b, LCR, 0x80);
    outb(b, FCR, 0x21); /* a 16750's 64-byte mode does not stick */
    assert_int_equal(inb(b, IIR) & 0x20, 0);
    outb(b, LCR, 0);
    outb(b, IER, 0x40); /* an XScale's unit enable does not either */
    assert_int_equal(inb(b, IER) & 0x40, 0);
    outb(b, SCR, 0xa5);
    assert_int_equal(inb(b, SCR), 0xa5);
    board_destroy(b);
}

static void the_divisor_is_behind_dlab(void **state)
{
    struct board *b = uart_board();
    outb(b, LCR, 0x83);
    outb(b, RBR, 0x34);
    outb(b, IER, 0x12);
    assert_int_equal(inb(b, RBR), 0x34);
    assert_int_equal(inb(b, IER), 0x12);
    outb(b, LCR, 3);
    assert_int_equal(inb(b, IER), 0);
    board_run(b, 1000000);
    assert_int_equal(n_written, 0);
    board_destroy(b);
}

/* The driver's start-up test: the interrupt must come each time that it is enabled. */
static void an_empty_transmitter_interrupts(void **state)
{
    struct board *b = uart_board();
    for (unsigned i = 0; i < 2; i++) {
        outb(b, IER, 2);
        assert_true(b->level[4]);
        assert_int_equal(inb(b, IIR) & 0x0f, 2);
        assert_false(b->level[4]);
        assert_int_equal(inb(b, IIR) & 0x0f, 1);
        outb(b, IER, 0);
    }
    outb(b, IER, 2);
    inb(b, IIR);
    unsigned before = b->edges[4];
    outb(b, RBR, 'x');
    assert_int_equal(b->edges[4], before + 1);
    assert_int_equal(inb(b, LSR) & 0x60, 0x60);
    board_destroy(b);
}

static void output_goes_out_in_pieces(void **state)
{
    struct board *b = uart_board();
    for (unsigned i = 0; i < 10000; i++)
        outb(b, RBR, (uint8_t)('a' + i % 26));
    assert_int_equal(n_calls, 2); /* the buffer filled twice */
    board_run(b, 3000000);
    assert_int_equal(n_written, 10000);
    assert_int_equal(n_calls, 3);
    for (unsigned i = 0; i < 10000; i++)
        assert_int_equal(written[i], 'a' + i % 26);
    outb(b, RBR, '!');
    uart16550_flush(b->device.state);
    assert_int_equal(n_written, 10001);
    outb(b, RBR, '?');
    board_destroy(b); /* nothing is lost */
    assert_int_equal(n_written, 10002);
}

static void say(struct board *b, size_t from, size_t to)
{
    for (size_t i = from; i < to; i++)
        outb(b, RBR, (uint8_t)('a' + i % 26));
}

static void assert_said(size_t len)
{
    assert_int_equal(n_written, len);
    for (size_t i = 0; i < len; i++)
        assert_int_equal(written[i], 'a' + i % 26);
}

/* A driver that works by interrupts sends 16 bytes for each. */
static void a_slow_reader_keeps_the_transmitter_full(void **state)
{
    struct board *b = uart_board_waiting(has_to_go);
    outb(b, IER, 2);
    room = 0;
    say(b, 0, 4080);
    assert_int_equal(inb(b, LSR) & 0x60, 0x60);
    assert_int_equal(inb(b, IIR) & 0x0f, 2);
    say(b, 4080, 4096);
    assert_int_equal(inb(b, LSR) & 0x60, 0);
    assert_int_equal(inb(b, IIR) & 0x0f, 1);
    assert_false(b->level[4]);
    outb(b, IER, 0), outb(b, IER, 2);
    assert_false(b->level[4]); /* it is not empty */
    say(b, 4096, 4100);
    assert_int_equal(waits, 0);
    room = 10;
    assert_int_equal(uart16550_flush(b->device.state), 4090);
    assert_true(b->level[4]);
    assert_int_equal(inb(b, LSR) & 0x60, 0x60);
    assert_int_equal(inb(b, IIR) & 0x0f, 2);
    b->device.class->reset(&b->device); /* what was said is said */
    room = SIZE_MAX;
    assert_int_equal(uart16550_flush(b->device.state), 0);
    assert_said(4100);
    board_destroy(b);
}

static void who_writes_on_is_held_until_there_is_room(void **state)
{
    struct board *b = waiting = uart_board_waiting(wait_for_room);
    room = 500;
    say(b, 0, 20000);
    assert_in_range(waits, 20, 40);
    room = SIZE_MAX;
    board_destroy(b);
    assert_said(20000);
}

static void who_is_held_and_has_to_go_loses_what_it_writes_then(void **state)
{
    struct board *b = uart_board_waiting(has_to_go);
    room = 0;
    say(b, 0, 5000);
    assert_int_equal(waits, 5000 - 4160);
    room = SIZE_MAX;
    board_destroy(b);
    assert_said(4160);
}

static void input_interrupts(void **state)
{
    struct board *b = uart_board();
    outb(b, FCR, 0x81); /* trigger at 8 */
    outb(b, MCR, 0x0b);
    outb(b, IER, 1);
    assert_int_equal(type(b, "abc"), 3);
    assert_true(b->level[4]);
    assert_int_equal(inb(b, IIR), 0xcc); /* time-out */
    type(b, "defgh");
    assert_int_equal(inb(b, IIR), 0xc4);
    for (const char *p = "abcdefgh"; *p; p++) {
        assert_int_equal(inb(b, LSR) & 1, 1);
        assert_int_equal(inb(b, RBR), *p);
    }
    assert_int_equal(inb(b, LSR) & 1, 0);
    assert_false(b->level[4]);
    board_destroy(b);
}

static void a_full_queue_pushes_back(void **state)
{
    struct board *b = uart_board();
    static char text[10000];
    for (unsigned i = 0; i < sizeof(text); i++)
        text[i] = (char)(i * 7);
    outb(b, FCR, 1);
    outb(b, MCR, 3);
    size_t sent = uart16550_input(b->device.state, text, sizeof(text)), got = 0;
    assert_in_range(sent, 4096, 4200);
    while (got < sizeof(text)) {
        if (inb(b, LSR) & 1) {
            assert_int_equal(inb(b, RBR), (uint8_t)text[got]);
            got++;
        } else {
            assert_true(got == sent || spaces);
        }
        if (spaces) {
            spaces = 0;
            sent += uart16550_input(b->device.state, text + sent, sizeof(text) - sent);
        }
    }
    assert_int_equal(sent, sizeof(text));
    assert_false(inb(b, LSR) & 2); /* no overrun */
    board_destroy(b);
}

/* What comes before the driver opens the port survives the driver's start-up. */
static void early_input_is_kept(void **state)
{
    struct board *b = uart_board();
    outb(b, FCR, 1);
    outb(b, MCR, 3); /* an early console */
    type(b, "a command that is piped in\n");
    outb(b, MCR, 1); /* its successor drops RTS */
    outb(b, FCR, 7);
    outb(b, FCR, 0);
    inb(b, LSR), inb(b, RBR), inb(b, IIR), inb(b, MSR);
    outb(b, FCR, 1);
    outb(b, IER, 5);
    outb(b, MCR, 0x0b);
    for (const char *p = "a command that is piped in\n"; *p; p++)
        assert_int_equal(inb(b, RBR), *p);
    board_destroy(b);
}

static void a_guest_that_polls_without_setup_reads(void **state)
{
    struct board *b = uart_board();
    type(b, "hi");
    assert_int_equal(inb(b, LSR) & 1, 1);
    assert_int_equal(inb(b, RBR), 'h');
    assert_int_equal(inb(b, RBR), 'i');
    assert_int_equal(inb(b, LSR) & 1, 0);
    board_destroy(b);
}

static void loopback_returns_what_is_sent(void **state)
{
    struct board *b = uart_board();
    outb(b, FCR, 1);
    outb(b, MCR, 0x10);
    type(b, "from outside");
    outb(b, RBR, 0x5a);
    assert_int_equal(inb(b, RBR), 0x5a);
    assert_int_equal(inb(b, LSR) & 1, 0);
    for (unsigned i = 0; i < 17; i++)
        outb(b, RBR, (uint8_t)i);
    assert_int_equal(inb(b, LSR) & 2, 2); /* overrun */
    assert_int_equal(inb(b, LSR) & 2, 0);
    board_run(b, 2000000);
    assert_int_equal(n_written, 0);
    board_destroy(b);
}

static void modem_lines_tell_changes(void **state)
{
    struct board *b = uart_board();
    assert_int_equal(inb(b, MSR), 0xb0);
    outb(b, IER, 8);
    outb(b, MCR, 0x10); /* all drop */
    assert_true(b->level[4]);
    assert_int_equal(inb(b, IIR) & 0x0f, 0);
    assert_int_equal(inb(b, MSR), 0x0b);
    assert_false(b->level[4]);
    assert_int_equal(inb(b, MSR), 0x00);
    board_destroy(b);
}

static void garbage(void **state)
{
    struct board *b = uart_board();
    static char text[5000];
    board_garbage(b, BUS_PORT, 0x3f8, 8, 1);
    for (unsigned i = 0; i < 30; i++) {
        uart16550_input(b->device.state, text, sizeof(text));
        outb(b, MCR, (uint8_t)(i * 3)), outb(b, FCR, (uint8_t)i), inb(b, RBR), outb(b, IER, (uint8_t)i);
    }
    board_garbage(b, BUS_PORT, 0x3f8, 8, 2);
    board_garbage_state(b, BUS_PORT, 0x3f8, 8);
    board_destroy(b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(linux_probe_finds_a_16550a),
        cmocka_unit_test(the_divisor_is_behind_dlab),
        cmocka_unit_test(an_empty_transmitter_interrupts),
        cmocka_unit_test(output_goes_out_in_pieces),
        cmocka_unit_test(a_slow_reader_keeps_the_transmitter_full),
        cmocka_unit_test(who_writes_on_is_held_until_there_is_room),
        cmocka_unit_test(who_is_held_and_has_to_go_loses_what_it_writes_then),
        cmocka_unit_test(input_interrupts),
        cmocka_unit_test(a_full_queue_pushes_back),
        cmocka_unit_test(early_input_is_kept),
        cmocka_unit_test(a_guest_that_polls_without_setup_reads),
        cmocka_unit_test(loopback_returns_what_is_sent),
        cmocka_unit_test(modem_lines_tell_changes),
        cmocka_unit_test(garbage),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
