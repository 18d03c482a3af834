/* virtio-balloon: pages that go back to the host, statistics, and what a guest may do wrong. */
#include <errno.h>
#include <sys/stat.h>

#include "devices/virtio/balloon.h"
#include "memory/memory.h"
#include "virtio_guest.h"

#define STATS (1ull << 1)
#define HINTS (1ull << 3)
#define REPORTING (1ull << 5)
#define ALL (FEATURES_ALL | STATS | HINTS | REPORTING)
#define PFNS 0x80000ull
#define FIRST 0x100000ull /* guest memory that may go */

static struct balloon *balloon;
static uint64_t dirty_bytes;
static unsigned in_a_row, longest; /* ranges given back between two passes of the loop */
static struct loop_timer pass;

static void on_dirty(void *opaque, uint64_t gpa, uint64_t len)
{
    if (gpa < FIRST)
        return;
    dirty_bytes += len;
    if (++in_a_row > longest)
        longest = in_a_row;
}

static void on_pass(void *opaque)
{
    in_a_row = 0;
    loop_timer_set(fx.loop, &pass, 0);
}

static int setup(void **state)
{
    fixture_open(&fx);
    const struct balloon_config config = {.handle = &balloon};
    assert_int_equal(virtio_balloon_class.create(&dev, &fx.env, &config), 0);
    driver_find(&drv, &fx, 1);
    fx.bus->dma_dirty = on_dirty;
    dirty_bytes = 0;
    memset(memory_hva(fx.memory, FIRST, 0x100000), 0x5a, 0x100000);
    memset(memory_hva(fx.memory, PFNS, 0x1000), 0x5a, 0x1000);
    return 0;
}

static int teardown(void **state)
{
    virtio_balloon_class.destroy(&dev);
    assert_null(dev.state);
    fixture_close(&fx);
    return 0;
}

static uint64_t host_bytes(void)
{
    struct stat st;
    assert_int_equal(fstat(fx.memory->fd, &st), 0);
    return (uint64_t)st.st_blocks * 512;
}

static uint8_t byte_at(uint64_t gpa)
{
    return *(uint8_t *)memory_hva(fx.memory, gpa, 1);
}

static void give(unsigned q, const uint32_t *pages, unsigned n)
{
    memory_write(fx.memory, PFNS, pages, n * sizeof *pages);
    vq_buffer(q, (uint16_t)(vq_avail[q] % VQ_SIZE), PFNS, n * (uint32_t)sizeof *pages, 0);
    vq_kick(q);
    spin();
    assert_int_equal(vq_used(q), 1);
    vq_take(q, NULL);
}

static void inflated_pages_go_back_to_the_host(void **state)
{
    const uint32_t pages[] = {0x102, 0x103, 0x104, 0x110, 0x101};
    vq_start(ALL, 5);
    uint64_t before = host_bytes();
    give(0, pages, 5);
    assert_int_equal(before - host_bytes(), 5 * 4096);
    assert_int_equal(balloon_returned(balloon), 5 * 4096);
    assert_int_equal(dirty_bytes, 5 * 4096);
    assert_int_equal(byte_at(0x101000), 0);
    assert_int_equal(byte_at(0x104fff), 0);
    assert_int_equal(byte_at(0x105000), 0x5a);
    assert_int_equal(byte_at(0x10ffff), 0x5a);
    assert_int_equal(byte_at(0x110000), 0);
    *(uint8_t *)memory_hva(fx.memory, 0x101000, 1) = 7; /* still the guest's to use */
    give(1, pages, 5);
    assert_int_equal(byte_at(0x101000), 7);
}

static void pages_that_are_not_the_guests_are_left_alone(void **state)
{
    const uint32_t pages[] = {0xffffffff, FIXTURE_RAM >> 12, 0xc0000, 0xe0000, 0x3ff, 0};
    vq_start(ALL, 5);
    uint64_t before = host_bytes();
    give(0, pages, 5);
    assert_int_equal(host_bytes(), before); /* 0x3ff was never touched */
    assert_int_equal(balloon_returned(balloon), 4096);
    assert_int_equal(status(&drv) & VIRTIO_NEEDS_RESET, 0);
}

static void a_range_across_the_end_is_left_alone(void **state)
{
    uint32_t pages[4];
    for (uint32_t i = 0; i < 4; i++)
        pages[i] = (FIXTURE_RAM >> 12) - 2 + i;
    vq_start(ALL, 5);
    give(0, pages, 4);
    assert_int_equal(balloon_returned(balloon), 0);
}

static void the_target_is_in_the_configuration(void **state)
{
    vq_start(ALL, 5);
    uint8_t generation = (uint8_t)get(&drv, 21, 1);
    assert_int_equal(balloon_set_target(balloon, FIXTURE_RAM), -ERANGE); /* nothing would be left */
    assert_int_equal(balloon_set_target(balloon, UINT64_MAX), -ERANGE);
    fx.memory->size = 1ull << 30; /* as if there were more */
    assert_int_equal(balloon_set_target(balloon, (1ull << 30) - (32ull << 20)), 0);
    assert_int_equal(balloon_set_target(balloon, (10ull << 20) + 5000), 0);
    assert_int_equal(balloon_target(balloon), (10ull << 20) + 4096);
    fx.memory->size = FIXTURE_RAM;
    assert_int_equal(mem_in(&fx, drv.device, 4), 2561);
    assert_int_not_equal(get(&drv, 21, 1), generation);
    assert_true(fx.level[17]); /* the driver is told */
    mem_out(&fx, drv.device + 4, 2000, 4);
    assert_int_equal(balloon_actual(balloon), 2000 * 4096);
    mem_out(&fx, drv.device + 5, 0x08, 1);
    assert_int_equal(mem_in(&fx, drv.device + 4, 4), 0x8d0);
    for (unsigned at = 0; at < 16; at += 4) /* the rest is not the driver's to write */
        if (at != 4)
            mem_out(&fx, drv.device + at, 0xffffffff, 4);
    assert_int_equal(mem_in(&fx, drv.device, 4), 2561);
    assert_int_equal(mem_in(&fx, drv.device + 8, 4), 0);
    set(&drv, 20, 0, 1);
    assert_int_equal(balloon_actual(balloon), 0);
    assert_int_equal(balloon_target(balloon), 2561 * 4096); /* the next driver hears of it, too */
}

static void put_stat(unsigned i, uint16_t tag, uint64_t value)
{
    memory_write(fx.memory, PFNS + 10 * i, &tag, 2);
    memory_write(fx.memory, PFNS + 10 * i + 2, &value, 8);
}

static void statistics(void **state)
{
    struct balloon_stats s;
    vq_start(ALL, 5);
    assert_int_equal(balloon_stats(balloon, &s), 0);
    balloon_refresh(balloon); /* nothing offered yet: nothing happens */
    put_stat(0, 4, 1000);
    put_stat(1, 5, 2000);
    put_stat(2, 0x7777, 3000); /* from the future */
    vq_buffer(2, 0, PFNS, 30, 0);
    vq_kick(2);
    uint64_t first = balloon_stats(balloon, &s);
    assert_true(first != 0);
    assert_int_equal(s.free, 1000);
    assert_int_equal(s.total, 2000);
    assert_true(s.available == UINT64_MAX && s.swap_in == UINT64_MAX);
    assert_int_equal(vq_used(2), 0); /* it is the device's until new ones are wanted */
    balloon_refresh(balloon);
    assert_int_equal(vq_used(2), 1);
    balloon_refresh(balloon);
    assert_int_equal(vq_used(2), 1);
    put_stat(0, 4, 1500);
    vq_buffer(2, 0, PFNS, 35, 0); /* half an entry too much */
    vq_kick(2);
    assert_true(balloon_stats(balloon, &s) >= first);
    assert_int_equal(s.free, 1500);
}

static void reports_go_back_to_the_host(void **state)
{
    vq_start(ALL, 5);
    uint64_t before = host_bytes();
    put_desc(&drv, VQ_AT(4), 0, 0x110000, 0x8000, WRITE | NEXT, 1);
    put_desc(&drv, VQ_AT(4), 1, 0x120800, 0x2000, WRITE, 0); /* not whole pages: one within */
    vq_offer(4, 0);
    vq_kick(4);
    spin();
    assert_int_equal(vq_used(4), 1);
    assert_int_equal(before - host_bytes(), 0x9000);
    assert_int_equal(byte_at(0x110000), 0);
    assert_int_equal(byte_at(0x120fff), 0x5a);
    assert_int_equal(byte_at(0x121000), 0);
    assert_int_equal(byte_at(0x122000), 0x5a);
}

static void reports_at_either_place(void **state)
{
    vq_start(FEATURES_ALL | REPORTING, 5); /* without hints: queue 3, as Linux counts */
    vq_buffer(3, 0, 0x110000, 0x1000, WRITE);
    vq_kick(3);
    vq_buffer(4, 0, 0x111000, 0x1000, WRITE);
    vq_kick(4);
    spin();
    assert_int_equal(byte_at(0x110000), 0);
    assert_int_equal(byte_at(0x111000), 0);
    vq_start(FEATURES_ALL, 5); /* without the feature nothing is given back */
    vq_buffer(3, 0, 0x112000, 0x1000, WRITE);
    vq_kick(3);
    vq_buffer(4, 0, 0x113000, 0x1000, WRITE);
    vq_kick(4);
    spin();
    assert_int_equal(byte_at(0x112000), 0x5a);
    assert_int_equal(byte_at(0x113000), 0x5a);
}

static void readable_buffers_are_not_reports(void **state)
{
    vq_start(ALL, 5);
    vq_buffer(4, 0, 0x110000, 0x1000, 0);
    vq_kick(4);
    spin();
    assert_int_equal(byte_at(0x110000), 0x5a);
    assert_int_equal(vq_used(4), 1);
}

/* The rings themselves may be reported: the device reads zeros, and goes on or stops, but stands. */
static void the_rings_themselves(void **state)
{
    vq_start(ALL, 5);
    vq_buffer(4, 0, VQ_AT(0), 0x14000, WRITE);
    vq_kick(4);
    spin();
    vq_start(ALL, 5);
    const uint32_t page = 0x140;
    give(0, &page, 1);
    assert_int_equal(byte_at(0x140000), 0);
}

static void loops_and_memory_outside(void **state)
{
    for (unsigned q = 0; q < 5; q++) {
        vq_start(ALL, 5);
        put_desc(&drv, VQ_AT(q), 0, PFNS, 16, NEXT, 0);
        vq_offer(q, 0);
        vq_kick(q);
        spin();
        assert_true(status(&drv) & VIRTIO_NEEDS_RESET);
        vq_start(ALL, 5);
        vq_buffer(q, 0, drv.notify, 16, 0);
        vq_kick(q);
        spin();
        assert_true(status(&drv) & VIRTIO_NEEDS_RESET);
    }
}

static void a_reset_before_the_work_is_done(void **state)
{
    vq_start(ALL, 5);
    vq_buffer(4, 0, 0x110000, 0x1000, WRITE);
    vq_kick(4);
    set(&drv, 20, 0, 1);
    spin();
    assert_int_equal(byte_at(0x110000), 0x5a);
}

static void many_buffers_are_done_in_turns(void **state)
{
    vq_start(ALL, 5);
    for (uint16_t i = 0; i < VQ_SIZE; i++)
        vq_buffer(4, i, FIRST + 0x1000ull * i, 0x1000, WRITE);
    vq_kick(4);
    spin();
    assert_int_equal(vq_used(4), VQ_SIZE);
    assert_int_equal(balloon_returned(balloon), VQ_SIZE * 0x1000);
}

/* The worst of page numbers: each is a range of its own. */
static void a_large_chain_is_done_in_turns(void **state)
{
    enum { N = 10000 };
    static uint32_t pages[N];
    for (unsigned i = 0; i < N; i++)
        pages[i] = 0x100 + i * 2 % 0x100;
    vq_start(ALL, 5);
    longest = in_a_row = 0;
    loop_timer_init(&pass, on_pass, NULL);
    loop_timer_set(fx.loop, &pass, 0);
    give(0, pages, N);
    loop_timer_cancel(fx.loop, &pass);
    assert_in_range(longest, 1, 2048);
    assert_int_equal(balloon_returned(balloon), N * 4096ull);
    give(0, pages, 2); /* the next one from its beginning */
    assert_int_equal(balloon_returned(balloon), (N + 2) * 4096ull);
}

static void save_and_restore(void **state)
{
    const struct device_class *c = &virtio_balloon_class;
    uint8_t *saved = malloc(c->save_size);
    struct balloon_stats s;
    vq_start(ALL, 5);
    put_stat(0, 4, 1000);
    vq_buffer(2, 0, PFNS, 10, 0);
    vq_kick(2);
    memcpy(saved, (char *)dev.state + c->save_offset, c->save_size);
    c->reset(&dev);
    memcpy((char *)dev.state + c->save_offset, saved, c->save_size);
    c->post_restore(&dev);
    balloon_refresh(balloon); /* the buffer that was there is there */
    assert_int_equal(vq_used(2), 1);
    vq_buffer(2, 0, PFNS, 10, 0);
    vq_kick(2);
    assert_true(balloon_stats(balloon, &s) > 0);
    assert_int_equal(s.free, 1000);
    free(saved);
}

#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
int main(void)
{
    const struct CMUnitTest tests[] = {
        T(inflated_pages_go_back_to_the_host),
        T(pages_that_are_not_the_guests_are_left_alone),
        T(a_range_across_the_end_is_left_alone),
        T(the_target_is_in_the_configuration),
        T(statistics),
        T(reports_go_back_to_the_host),
        T(reports_at_either_place),
        T(readable_buffers_are_not_reports),
        T(the_rings_themselves),
        T(loops_and_memory_outside),
        T(a_reset_before_the_work_is_done),
        T(many_buffers_are_done_in_turns),
        T(a_large_chain_is_done_in_turns),
        T(save_and_restore),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
