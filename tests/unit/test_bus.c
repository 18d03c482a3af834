#include <errno.h>

#include "board.h"

struct probe {
    uint64_t offset, value;
    unsigned size, calls;
    uint64_t answer;
};

static uint64_t probe_read(void *opaque, uint64_t offset, unsigned size)
{
    struct probe *p = opaque;
    p->offset = offset, p->size = size, p->calls++;
    return p->answer;
}

static void probe_write(void *opaque, uint64_t offset, uint64_t value, unsigned size)
{
    struct probe *p = opaque;
    p->offset = offset, p->size = size, p->value = value, p->calls++;
}

static const struct bus_ops probe_ops = {probe_read, probe_write};
static const struct bus_ops deaf_ops = {NULL, NULL};

static void an_access_finds_its_range(void **state)
{
    struct board *b = board_create(NULL, NULL);
    struct probe probe[10] = {0};
    struct bus_range range[10];
    for (unsigned i = 0; i < 10; i++) { /* mapped out of order */
        unsigned k = i * 7 % 10;
        range[k] = (struct bus_range){0x1000 + k * 0x100, 0x80, &probe_ops, &probe[k], "probe"};
        assert_int_equal(bus_map(b->bus, BUS_MEM, &range[k]), 0);
    }
    for (unsigned k = 0; k < 10; k++) {
        probe[k].answer = 0x1122334455667700ull + k;
        assert_int_equal(bus_read(b->bus, BUS_MEM, 0x1000 + k * 0x100 + 8, 2), 0x7700 + k);
        assert_int_equal(probe[k].offset, 8);
        bus_write(b->bus, BUS_MEM, 0x107f + k * 0x100, 0xabcd, 1);
        assert_int_equal(probe[k].offset, 0x7f);
        assert_int_equal(probe[k].value, 0xcd);
        assert_int_equal(range[k].reads, 1);
        assert_int_equal(range[k].writes, 1);
        assert_int_equal(bus_read(b->bus, BUS_MEM, 0x1080 + k * 0x100, 8), UINT64_MAX);
    }
    for (unsigned k = 0; k < 10; k++) {
        bus_unmap(b->bus, BUS_MEM, &range[k]);
        assert_int_equal(bus_read(b->bus, BUS_MEM, 0x1000 + k * 0x100, 4), 0xffffffff);
    }
    board_destroy(b);
}

static void an_access_over_an_end_is_split(void **state)
{
    struct board *b = board_create(NULL, NULL);
    struct probe p = {.answer = 0x11}, q = {.answer = 0x2222};
    struct bus_range one = {0x100, 1, &probe_ops, &p, "one"}, two = {0x102, 2, &probe_ops, &q, "two"};
    assert_int_equal(bus_map(b->bus, BUS_PORT, &one), 0);
    assert_int_equal(bus_map(b->bus, BUS_PORT, &two), 0);
    assert_int_equal(bus_read(b->bus, BUS_PORT, 0x100, 4), 0x2222ff11);
    bus_write(b->bus, BUS_PORT, 0x100, 0x44332211, 4);
    assert_int_equal(p.value, 0x11);
    assert_int_equal(q.value, 0x4433);
    assert_int_equal(q.size, 2);
    assert_int_equal(bus_read(b->bus, BUS_PORT, 0xffff, 4), 0xffffffff);
    bus_unmap(b->bus, BUS_PORT, &one);
    bus_unmap(b->bus, BUS_PORT, &two);
    board_destroy(b);
}

static void ranges_do_not_overlap(void **state)
{
    struct board *b = board_create(NULL, NULL);
    struct bus_range a = {0x100, 0x10, &deaf_ops, NULL, "a"}, c = a, top = {UINT64_MAX, 1, &deaf_ops, NULL, "top"};
    assert_int_equal(bus_map(b->bus, BUS_MEM, &a), 0);
    assert_int_equal(bus_map(b->bus, BUS_MEM, &top), 0);
    static const uint64_t bad[][2] = {{0x100, 0x10}, {0x10f, 1}, {0xff, 2}, {0, 0x1000}, {0x108, 1}};
    for (unsigned i = 0; i < 5; i++) {
        c.base = bad[i][0], c.size = bad[i][1];
        assert_int_equal(bus_map(b->bus, BUS_MEM, &c), -EBUSY);
    }
    c.base = UINT64_MAX - 1, c.size = 4;
    assert_int_equal(bus_map(b->bus, BUS_MEM, &c), -EINVAL);
    c.base = 0x10000, c.size = 1;
    assert_int_equal(bus_map(b->bus, BUS_PORT, &c), -EINVAL);
    c.base = 0x110, c.size = 0xf0;
    assert_int_equal(bus_map(b->bus, BUS_MEM, &c), 0);
    assert_int_equal(bus_read(b->bus, BUS_MEM, 0x110, 8), UINT64_MAX); /* no read handler */
    bus_write(b->bus, BUS_MEM, 0x110, 0, 8);
    bus_unmap(b->bus, BUS_MEM, &a);
    bus_unmap(b->bus, BUS_MEM, &c);
    bus_unmap(b->bus, BUS_MEM, &top);
    bus_unmap(b->bus, BUS_MEM, &top); /* nothing */
    board_destroy(b);
}

static void a_full_table_says_so(void **state)
{
    struct board *b = board_create(NULL, NULL);
    static struct bus_range r[BUS_MAX_RANGES + 1];
    for (unsigned i = 0; i <= BUS_MAX_RANGES; i++) {
        r[i] = (struct bus_range){i * 16, 16, &deaf_ops, NULL, "r"};
        assert_int_equal(bus_map(b->bus, BUS_MEM, &r[i]), i < BUS_MAX_RANGES ? 0 : -ENOSPC);
    }
    for (unsigned i = 0; i < BUS_MAX_RANGES; i++)
        bus_unmap(b->bus, BUS_MEM, &r[i]);
    board_destroy(b);
}

static void note_dirty(void *opaque, uint64_t gpa, uint64_t len)
{
    uint64_t *note = opaque;
    note[0] = gpa, note[1] = len, note[2]++;
}

static void dma_tells_before_it_writes(void **state)
{
    struct board *b = board_create(NULL, NULL);
    uint64_t note[3] = {0}, v = 42, w = 0;
    b->bus->dma_dirty = note_dirty;
    b->bus->dma_dirty_opaque = note;
    assert_int_equal(dma_write(b->bus, 0x2000, &v, 8), 0);
    assert_int_equal(note[0], 0x2000);
    assert_int_equal(note[1], 8);
    assert_int_equal(dma_read(b->bus, 0x2000, &w, 8), 0);
    assert_int_equal(w, 42);
    assert_int_equal(dma_write(b->bus, (2 << 20) - 4, &v, 8), -EFAULT);
    assert_int_equal(dma_read(b->bus, UINT64_MAX - 3, &v, 8), -EFAULT);
    assert_int_equal(note[2], 1);
    board_destroy(b);
}

static void *other_initiator(void *opaque)
{
    struct board *b = opaque;
    bus_set_initiator(b->bus, 3);
    return (void *)(uintptr_t)bus_initiator(b->bus);
}

static void each_thread_has_its_vcpu(void **state)
{
    struct board *b = board_create(NULL, NULL);
    pthread_t t;
    void *seen;
    pthread_create(&t, NULL, other_initiator, b);
    pthread_join(t, &seen);
    assert_int_equal((uintptr_t)seen, 3);
    assert_int_equal(bus_initiator(b->bus), 0);
    board_destroy(b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(an_access_finds_its_range),  cmocka_unit_test(an_access_over_an_end_is_split),
        cmocka_unit_test(ranges_do_not_overlap),      cmocka_unit_test(a_full_table_says_so),
        cmocka_unit_test(dma_tells_before_it_writes), cmocka_unit_test(each_thread_has_its_vcpu),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
