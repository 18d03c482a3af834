#include <unistd.h>

#include "board.h"

#include "devices/rtc.h"

static const struct rtc_config config = {3ull << 30, 2ull << 30};

static uint8_t get(struct board *b, uint8_t i)
{
    outb(b, 0x70, i);
    return inb(b, 0x71);
}

static void put(struct board *b, uint8_t i, uint8_t v)
{
    outb(b, 0x70, i);
    outb(b, 0x71, v);
}

static unsigned bcd(uint8_t v)
{
    return (v >> 4) * 10u + (v & 15);
}

static time_t guest_time(struct board *b)
{
    while (get(b, 10) & 0x80)
        ;
    struct tm tm = {.tm_sec = (int)bcd(get(b, 0)),
                    .tm_min = (int)bcd(get(b, 2)),
                    .tm_hour = (int)bcd(get(b, 4)),
                    .tm_mday = (int)bcd(get(b, 7)),
                    .tm_mon = (int)bcd(get(b, 8)) - 1,
                    .tm_year = (int)(bcd(get(b, 0x32)) * 100 + bcd(get(b, 9))) - 1900};
    return timegm(&tm);
}

static void it_tells_the_time(void **state)
{
    struct board *b = board_create(&rtc_class, &config);
    time_t host = time(NULL);
    assert_in_range(guest_time(b) - host + 1, 1, 2);
    assert_int_equal(get(b, 13), 0x80);
    assert_int_equal(get(b, 11), 2);
    assert_int_equal(get(b, 10) & 0x7f, 0x26);
    board_destroy(b);
}

static void formats(void **state)
{
    struct board *b = board_create(&rtc_class, &config);
    put(b, 11, 0x82);
    static const uint8_t set[][2] = {{0, 0x56}, {2, 0x34}, {4, 0x00}, {7, 0x29}, {8, 0x02}, {9, 0x24}, {0x32, 0x20}};
    for (unsigned i = 0; i < 7; i++)
        put(b, set[i][0], set[i][1]);
    assert_int_equal(get(b, 0), 0x56); /* frozen */
    put(b, 11, 0x02);
    struct tm tm;
    time_t t = guest_time(b);
    gmtime_r(&t, &tm);
    assert_int_equal(tm.tm_mday, 29);
    assert_int_equal(tm.tm_mon, 1);
    assert_int_equal(tm.tm_hour, 0);
    assert_int_equal(tm.tm_min, 34);
    assert_int_equal(get(b, 6), 5); /* a Thursday */
    put(b, 11, 0x00);
    assert_int_equal(get(b, 4), 0x12); /* midnight is 12 am */
    put(b, 11, 0x04);
    assert_int_equal(get(b, 2), 34);
    put(b, 11, 0x80); /* 12-hour: 11 pm */
    put(b, 4, 0x91);
    put(b, 11, 0x00);
    assert_int_equal(get(b, 4), 0x91);
    put(b, 11, 0x02);
    assert_int_equal(get(b, 4), 0x23);
    put(b, 0, 0x10); /* without SET a register takes effect at once */
    assert_in_range(bcd(get(b, 0)), 10, 11);
    board_destroy(b);
}

static void updates_interrupt_each_second(void **state)
{
    struct board *b = board_create(&rtc_class, &config);
    put(b, 11, 0x12);
    board_run(b, 1100000000);
    assert_int_equal(b->edges[8], 1);
    assert_true(b->level[8]);
    assert_int_equal(get(b, 12) & 0x90, 0x90);
    assert_false(b->level[8]);
    assert_int_equal(get(b, 12), 0);
    board_destroy(b);
}

static void the_alarm_rings(void **state)
{
    struct board *b = board_create(&rtc_class, &config);
    time_t t = guest_time(b) + 1;
    struct tm tm;
    gmtime_r(&t, &tm);
    put(b, 1, (uint8_t)(tm.tm_sec / 10 << 4 | tm.tm_sec % 10));
    put(b, 3, 0xff);
    put(b, 5, 0xc0);
    get(b, 12);
    put(b, 11, 0x22);
    board_run(b, 1100000000);
    assert_int_equal(b->edges[8], 1);
    assert_int_equal(get(b, 12) & 0xa0, 0xa0);
    board_destroy(b);
}

static void periodic_interrupts(void **state)
{
    struct board *b = board_create(&rtc_class, &config);
    put(b, 10, 0x26); /* 1024 Hz */
    put(b, 11, 0x42);
    unsigned ticks = 0;
    uint64_t start = clock_ns();
    for (unsigned i = 0; i < 100; i++) {
        board_run(b, 500000);
        ticks += (get(b, 12) & 0xc0) == 0xc0;
    }
    assert_in_range(ticks, 30, (clock_ns() - start) * 1024 / 1000000000 + 1);
    put(b, 11, 0x02);
    usleep(2000);
    assert_int_equal(get(b, 12) & 0x40, 0x40); /* the flag comes without the interrupt */
    board_destroy(b);
}

static void cmos_tells_the_memory(void **state)
{
    struct board *b = board_create(&rtc_class, &config);
    assert_int_equal(get(b, 0x15) | get(b, 0x16) << 8, 640);
    assert_int_equal(get(b, 0x30) | get(b, 0x31) << 8, 0xffff);
    assert_int_equal(get(b, 0x34) | get(b, 0x35) << 8, ((3u << 30) - (16u << 20)) >> 16);
    assert_int_equal(get(b, 0x5b) | get(b, 0x5c) << 8 | get(b, 0x5d) << 16, 0x8000);
    unsigned sum = 0;
    for (uint8_t i = 0x10; i < 0x2e; i++)
        sum += get(b, i);
    assert_int_equal(get(b, 0x2e) << 8 | get(b, 0x2f), sum);
    put(b, 0x80 | 0x50, 0xab); /* the NMI bit is no part of the index */
    assert_int_equal(get(b, 0x50), 0xab);
    rtc_class.reset(&b->device);
    assert_int_equal(get(b, 0x50), 0xab); /* backed by a battery */
    board_destroy(b);
}

static void the_hpet_takes_the_line(void **state)
{
    struct board *b = board_create(&rtc_class, &config);
    rtc_connect_irq(b->device.state, false);
    put(b, 11, 0x42);
    board_run(b, 5000000);
    assert_false(b->level[8]);
    rtc_connect_irq(b->device.state, true);
    assert_true(b->level[8]);
    board_destroy(b);
}

static void garbage(void **state)
{
    struct board *b = board_create(&rtc_class, &config);
    uint64_t seed = 4;
    board_garbage(b, BUS_PORT, 0x70, 2, 1);
    for (unsigned i = 0; i < 100000; i++) {
        uint64_t r = board_random(&seed);
        r & 1 ? put(b, r >> 8 & 15, (uint8_t)(r >> 16)) : (void)get(b, r >> 8 & 15);
    }
    board_garbage_state(b, BUS_PORT, 0x70, 2);
    board_destroy(b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(it_tells_the_time),
        cmocka_unit_test(formats),
        cmocka_unit_test(updates_interrupt_each_second),
        cmocka_unit_test(the_alarm_rings),
        cmocka_unit_test(periodic_interrupts),
        cmocka_unit_test(cmos_tells_the_memory),
        cmocka_unit_test(the_hpet_takes_the_line),
        cmocka_unit_test(garbage),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
