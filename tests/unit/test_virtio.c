/* The virtio core against drivers that are right and drivers that are hostile. */
#include <pthread.h>
#include <stdatomic.h>

#include "virtio_driver.h"

/* A device that takes what it is given and keeps the last chain; completes at once when told to. */
struct sink {
    struct virtio_state state;
    struct virtio_device v;
    struct virtio_chain chain;
    int popped;
    unsigned notified, resets;
    bool complete;
    uint8_t config[8];
};

static struct fixture fx;
static struct sink sink;
static struct driver drv;

static struct sink *of(struct virtio_device *v)
{
    return (struct sink *)((char *)v - offsetof(struct sink, v));
}

static void sink_notify(struct virtio_device *v, unsigned q)
{
    struct sink *s = of(v);
    s->notified++;
    while ((s->popped = virtio_pop(v, q, &s->chain)) > 0 && s->complete)
        virtio_push(v, &s->chain, s->chain.in_bytes);
    if (s->complete) {
        virtio_rearm(v, q);
        virtio_signal(v, q);
    }
}

static void sink_reset(struct virtio_device *v)
{
    of(v)->resets++;
}
static void sink_config_read(struct virtio_device *v, uint32_t offset, void *buf, unsigned size)
{
    memcpy(buf, of(v)->config + offset, size);
}
static void sink_config_write(struct virtio_device *v, uint32_t offset, const void *buf, unsigned size)
{
    memcpy(of(v)->config + offset, buf, size);
}

static const struct virtio_ops sink_ops = {
    .name = "sink",
    .device_id = 42,
    .class_code = 0xff0000,
    .n_queues = 2,
    .queue_size = 64,
    .features = 1,
    .config_size = 8,
    .config_read = sink_config_read,
    .config_write = sink_config_write,
    .notify = sink_notify,
    .reset = sink_reset,
};

static int setup(void **state)
{
    fixture_open(&fx);
    memset(&sink, 0, sizeof sink);
    assert_int_equal(virtio_init(&sink.v, &sink.state, &sink_ops, &fx.env), 0);
    driver_find(&drv, &fx, 1);
    return 0;
}

static int teardown(void **state)
{
    virtio_destroy(&sink.v);
    fixture_close(&fx);
    return 0;
}

static void expect_failed(const char *part)
{
    assert_non_null(sink.v.error);
    assert_non_null(strstr(sink.v.error, part));
    assert_true(status(&drv) & VIRTIO_NEEDS_RESET);
    /* Silent until reset, then as new. */
    unsigned notified = sink.notified;
    kick(&drv);
    assert_int_equal(sink.notified, notified);
    start(&drv, FEATURES_ALL);
    assert_false(status(&drv) & VIRTIO_NEEDS_RESET);
    put_desc(&drv, DESC, 0, DATA, 16, 0, 0);
    offer(&drv, 0);
    sink.complete = true;
    kick(&drv);
    assert_int_equal(used_idx(&drv), 1);
}

/* --- a driver that follows the rules ------------------------------------------------------------------ */

static void identity_and_registers(void **state)
{
    assert_int_equal(cfg_in(&fx, 1, 0, 4), 0x106a1af4);
    assert_int_equal(get(&drv, 18, 2), 2);
    set(&drv, 0, 1, 4);
    assert_int_equal(get(&drv, 4, 4), 1); /* VERSION_1 */
    set(&drv, 0, 2, 4);
    assert_int_equal(get(&drv, 4, 4), 0);
    set(&drv, 22, 1, 2);
    assert_int_equal(get(&drv, 24, 2), 64);
    assert_int_equal(get(&drv, 30, 2), 1);
    assert_int_equal(get(&drv, 26, 2), 0xffff);
    set(&drv, 22, 2, 2); /* no such queue */
    assert_int_equal(get(&drv, 24, 2), 0);
    set(&drv, 24, 8, 2);
    set(&drv, 28, 1, 2);
    assert_int_equal(get(&drv, 28, 2), 0);
    set(&drv, 16, 7, 2); /* no such vector */
    assert_int_equal(get(&drv, 16, 2), 0xffff);
}

static void features_must_be_agreed(void **state)
{
    negotiate(&drv, 1); /* without VERSION_1 */
    assert_false(status(&drv) & VIRTIO_FEATURES_OK);
    set(&drv, 20, VIRTIO_DRIVER_OK | 3, 1);
    assert_false(status(&drv) & VIRTIO_DRIVER_OK);
    negotiate(&drv, FEATURES_ALL | 1ull << 40); /* not offered */
    assert_false(status(&drv) & VIRTIO_FEATURES_OK);
    negotiate(&drv, FEATURES_ALL);
    assert_true(status(&drv) & VIRTIO_FEATURES_OK);
    set(&drv, 8, 0, 4);
    set(&drv, 12, 1, 4); /* too late */
    assert_int_equal(get(&drv, 12, 4), (uint32_t)FEATURES_ALL);
}

static void a_chain_of_both_directions(void **state)
{
    uint8_t back[32];
    start(&drv, FEATURES_ALL);
    memory_write(fx.memory, DATA, "hello, world", 12);
    put_desc(&drv, DESC, 3, DATA, 6, NEXT, 7);
    put_desc(&drv, DESC, 7, DATA + 6, 6, NEXT, 1);
    put_desc(&drv, DESC, 1, DATA + 0x100, 4, NEXT | WRITE, 2);
    put_desc(&drv, DESC, 2, DATA + 0x200, 9, WRITE, 0);
    offer(&drv, 3);
    kick(&drv);
    assert_int_equal(sink.chain.n_out, 2);
    assert_int_equal(sink.chain.n_in, 2);
    assert_int_equal(sink.chain.out_bytes, 12);
    assert_int_equal(sink.chain.in_bytes, 13);
    assert_int_equal(virtio_chain_read(&sink.v, &sink.chain, 4, back, sizeof back), 8);
    assert_memory_equal(back, "o, world", 8);
    assert_int_equal(virtio_chain_write(&sink.v, &sink.chain, 2, "abcdefghijklmnop", 16), 11);
    memory_read(fx.memory, DATA + 0x200, back, 9);
    assert_memory_equal(back, "cdefghijk", 9);
    virtio_push(&sink.v, &sink.chain, 13);
    assert_int_equal(used_idx(&drv), 1);
    assert_int_equal(ram32(&drv, USED + 4), 3);
    assert_int_equal(ram32(&drv, USED + 8), 13);
}

static void an_indirect_chain(void **state)
{
    start(&drv, FEATURES_ALL);
    put_desc(&drv, DESC, 0, DATA, 8, NEXT, 1); /* one direct, then the table */
    put_desc(&drv, DESC, 1, TABLE, 32, INDIRECT, 0);
    put_desc(&drv, TABLE, 0, DATA + 8, 8, NEXT, 1);
    put_desc(&drv, TABLE, 1, DATA + 16, 8, WRITE, 0);
    offer(&drv, 0);
    kick(&drv);
    assert_int_equal(sink.chain.n_out, 2);
    assert_int_equal(sink.chain.n_in, 1);
}

static void indices_wrap(void **state)
{
    start(&drv, 1ull << VIRTIO_F_VERSION_1);
    sink.complete = true;
    put_desc(&drv, DESC, 0, DATA, 8, WRITE, 0);
    for (unsigned i = 0; i < 70000; i++) {
        offer(&drv, 0);
        kick(&drv);
    }
    assert_int_equal(used_idx(&drv), (uint16_t)70000);
    assert_int_equal(sink.v.error, NULL);
}

static void event_index_spares_interrupts(void **state)
{
    start(&drv, FEATURES_ALL);
    sink.complete = true;
    put_desc(&drv, DESC, 0, DATA, 8, WRITE, 0);
    ram16_put(&drv, AVAIL + 4 + 2 * RING_SIZE, 2); /* used_event: tell me at the third */
    unsigned n = 0;
    for (unsigned i = 0; i < 4; i++) {
        offer(&drv, 0);
        kick(&drv);
        assert_int_equal(ram16(&drv, USED + 4 + 8 * RING_SIZE), i + 1); /* avail_event */
        n += fx.level[17];
        if (i == 0 || i == 2)
            assert_true(fx.level[17]); /* the first is always told */
        assert_int_equal(mem_in(&fx, drv.isr, 1), i == 0 || i == 2);
        assert_false(fx.level[17]); /* reading acknowledged */
    }
    assert_int_equal(n, 2);
}

static void no_interrupt_flag(void **state)
{
    start(&drv, 1ull << VIRTIO_F_VERSION_1);
    sink.complete = true;
    put_desc(&drv, DESC, 0, DATA, 8, WRITE, 0);
    ram16_put(&drv, AVAIL, 1);
    offer(&drv, 0);
    kick(&drv);
    assert_false(fx.level[17]);
    ram16_put(&drv, AVAIL, 0);
    offer(&drv, 0);
    kick(&drv);
    assert_true(fx.level[17]);
}

static void configuration_changes(void **state)
{
    start(&drv, FEATURES_ALL);
    mem_out(&fx, drv.device + 4, 0x11223344, 4);
    assert_int_equal(mem_in(&fx, drv.device + 4, 4), 0x11223344);
    assert_int_equal(mem_in(&fx, drv.device + 6, 4), 0); /* leaves the configuration */
    unsigned before = (unsigned)get(&drv, 21, 1);
    virtio_config_changed(&sink.v);
    assert_int_equal(get(&drv, 21, 1), before + 1);
    assert_int_equal(mem_in(&fx, drv.isr, 1), 2);
}

static void window_in_configuration_space(void **state)
{
    unsigned cap = 0;
    for (unsigned i = 0, at; (at = find_capability(&fx, 1, PCI_CAP_VENDOR, i)); i++)
        if (cfg_in(&fx, 1, at + 3, 1) == 5)
            cap = at;
    assert_int_not_equal(cap, 0);
    cfg_out(&fx, 1, cap + 4, 0, 1);
    cfg_out(&fx, 1, cap + 8, 18, 4);
    cfg_out(&fx, 1, cap + 12, 2, 4);
    assert_int_equal(cfg_in(&fx, 1, cap + 16, 4), 2); /* number of queues */
    cfg_out(&fx, 1, cap + 8, 20, 4);
    cfg_out(&fx, 1, cap + 12, 1, 4);
    cfg_out(&fx, 1, cap + 16, 3, 4);
    assert_int_equal(status(&drv), 3);
    cfg_out(&fx, 1, cap + 8, 0xffffffff, 4); /* beyond the BAR, odd lengths */
    cfg_in(&fx, 1, cap + 16, 4);
    cfg_out(&fx, 1, cap + 12, 0xffffffff, 4);
    cfg_out(&fx, 1, cap + 16, 3, 4);
    cfg_out(&fx, 1, cap + 4, 7, 1);
    cfg_in(&fx, 1, cap + 16, 4);
}

/* --- hostile drivers, by name ---------------------------------------------------------------------------- */

static void loop_in_chain(void **state)
{
    start(&drv, FEATURES_ALL);
    put_desc(&drv, DESC, 0, DATA, 8, NEXT, 1);
    put_desc(&drv, DESC, 1, DATA, 8, NEXT, 0);
    offer(&drv, 0);
    kick(&drv);
    expect_failed("loops");
}

static void loop_in_indirect_table(void **state)
{
    start(&drv, FEATURES_ALL);
    put_desc(&drv, DESC, 0, TABLE, 16 * 4, INDIRECT, 0);
    put_desc(&drv, TABLE, 0, DATA, 8, NEXT, 0);
    offer(&drv, 0);
    kick(&drv);
    expect_failed("loops");
}

static void indirect_within_indirect(void **state)
{
    start(&drv, FEATURES_ALL);
    put_desc(&drv, DESC, 0, TABLE, 16, INDIRECT, 0);
    put_desc(&drv, TABLE, 0, TABLE, 16, INDIRECT, 0);
    offer(&drv, 0);
    kick(&drv);
    expect_failed("contains an indirect");
}

static void indirect_with_next(void **state)
{
    start(&drv, FEATURES_ALL);
    put_desc(&drv, DESC, 0, TABLE, 16, INDIRECT | NEXT, 1);
    offer(&drv, 0);
    kick(&drv);
    expect_failed("has a next");
}

static void indirect_without_feature(void **state)
{
    start(&drv, 1ull << VIRTIO_F_VERSION_1);
    put_desc(&drv, DESC, 0, TABLE, 16, INDIRECT, 0);
    offer(&drv, 0);
    kick(&drv);
    expect_failed("without the feature");
}

static void indirect_table_lengths(void **state)
{
    static const uint32_t wrong[] = {0, 1, 15, 17, 16 * (VIRTIO_CHAIN_MAX + 1), 0xfffffff0};
    for (unsigned i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        sink.complete = false;
        start(&drv, FEATURES_ALL);
        put_desc(&drv, DESC, 0, TABLE, wrong[i], INDIRECT, 0);
        offer(&drv, 0);
        kick(&drv);
        expect_failed("wrong length");
    }
}

static void length_wrap(void **state)
{
    static const struct {
        uint64_t addr;
        uint32_t len;
    } wrong[] = {
        {DATA, 0xffffffff}, {~0ull, 2},      {~0ull - 15, 16},        {FIXTURE_RAM - 8, 9},
        {FIXTURE_RAM, 1},   {0xfee00000, 4}, {PCI_MMIO32_BASE, 4096}, {1ull << 63, 16},
    };
    for (unsigned i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        sink.complete = false;
        start(&drv, FEATURES_ALL);
        put_desc(&drv, DESC, 0, wrong[i].addr, wrong[i].len, WRITE, 0);
        offer(&drv, 0);
        kick(&drv);
        expect_failed("outside RAM");
    }
}

/* Each length is fine, their sum does not fit 32 bits: 4 GiB by 2 MiB x 2048 is more than a chain holds, so
 * the bound on buffers catches it first. */
static void too_many_buffers(void **state)
{
    start(&drv, FEATURES_ALL);
    put_desc(&drv, DESC, 0, DATA, 8, NEXT, 1);
    put_desc(&drv, DESC, 1, TABLE, 16 * VIRTIO_CHAIN_MAX, INDIRECT, 0);
    for (unsigned i = 0; i < VIRTIO_CHAIN_MAX; i++)
        put_desc(&drv, TABLE, i, DATA, 1, i + 1 < VIRTIO_CHAIN_MAX ? NEXT : 0, (uint16_t)(i + 1));
    offer(&drv, 0);
    kick(&drv);
    expect_failed("too many");
}

static void length_zero(void **state)
{
    start(&drv, FEATURES_ALL);
    put_desc(&drv, DESC, 0, DATA, 0, 0, 0);
    offer(&drv, 0);
    kick(&drv);
    expect_failed("length zero");
}

static void index_beyond_queue_size(void **state)
{
    start(&drv, FEATURES_ALL);
    offer(&drv, RING_SIZE);
    kick(&drv);
    expect_failed("beyond its table");
    sink.complete = false;
    start(&drv, FEATURES_ALL);
    put_desc(&drv, DESC, 0, DATA, 8, NEXT, 0xffff);
    offer(&drv, 0);
    kick(&drv);
    expect_failed("beyond its table");
}

static void available_index_jumps(void **state)
{
    start(&drv, FEATURES_ALL);
    ram16_put(&drv, AVAIL + 2, RING_SIZE + 1);
    kick(&drv);
    expect_failed("more than the queue size");
}

static void readable_after_writable(void **state)
{
    start(&drv, FEATURES_ALL);
    put_desc(&drv, DESC, 0, DATA, 8, WRITE | NEXT, 1);
    put_desc(&drv, DESC, 1, DATA, 8, 0, 0);
    offer(&drv, 0);
    kick(&drv);
    expect_failed("follows");
}

static void unaligned_or_outside_rings(void **state)
{
    static const struct {
        uint16_t size;
        uint64_t desc, avail, used;
        const char *why;
    } wrong[] = {
        {16, DESC + 8, AVAIL, USED, "unaligned"},         {16, DESC, AVAIL + 1, USED, "unaligned"},
        {16, DESC, AVAIL, USED + 2, "unaligned"},         {16, FIXTURE_RAM - 128, AVAIL, USED, "outside RAM"},
        {16, DESC, FIXTURE_RAM - 4, USED, "outside RAM"}, {16, DESC, AVAIL, ~0ull - 3, "outside RAM"},
        {0, DESC, AVAIL, USED, "power of two"},           {12, DESC, AVAIL, USED, "power of two"},
        {128, DESC, AVAIL, USED, "power of two"},
    };
    for (unsigned i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        sink.complete = false;
        negotiate(&drv, FEATURES_ALL);
        queue_at(&drv, wrong[i].size, wrong[i].desc, wrong[i].avail, wrong[i].used);
        assert_int_equal(get(&drv, 28, 2), 0);
        set(&drv, 20, status(&drv) | VIRTIO_DRIVER_OK, 1);
        expect_failed(wrong[i].why);
    }
}

static void reset_in_the_middle(void **state)
{
    start(&drv, FEATURES_ALL);
    put_desc(&drv, DESC, 0, DATA, 8, WRITE, 0);
    offer(&drv, 0);
    kick(&drv);
    assert_int_equal(sink.chain.in_bytes, 8);
    struct virtio_chain held = sink.chain;
    unsigned resets = sink.resets;
    start(&drv, FEATURES_ALL); /* resets, then is live again */
    assert_int_equal(sink.resets, resets + 1);
    assert_int_equal(virtio_chain_write(&sink.v, &held, 0, "too late", 8), 0);
    virtio_push(&sink.v, &held, 8);
    assert_int_equal(used_idx(&drv), 0);
}

static void moving_an_enabled_queue(void **state)
{
    start(&drv, FEATURES_ALL);
    set(&drv, 32, 0x1000, 8);
    set(&drv, 24, 4, 2);
    assert_int_equal(get(&drv, 32, 8), DESC);
    assert_int_equal(get(&drv, 24, 2), RING_SIZE);
}

static void notify_before_live_or_without_mastering(void **state)
{
    kick(&drv);
    assert_int_equal(sink.notified, 0);
    start(&drv, FEATURES_ALL);
    mem_out(&fx, drv.notify + 4, 0, 2); /* queue 1 is not enabled */
    mem_out(&fx, drv.notify + 400, 0, 2);
    mem_out(&fx, drv.notify + 2, 0, 2);
    cfg_out(&fx, 1, PCI_COMMAND, PCI_COMMAND_MEMORY, 2);
    kick(&drv);
    assert_int_equal(sink.notified, 0);
}

/* Another thread flips a descriptor between good and bad; each chain that comes out must be good. */
static _Atomic bool flipping;
static void *flip(void *opaque)
{
    volatile uint64_t *addr = memory_hva(fx.memory, DESC, 16);
    volatile uint32_t *len = (volatile uint32_t *)(addr + 1);
    volatile uint16_t *next = (volatile uint16_t *)(addr + 1) + 3;
    while (atomic_load(&flipping)) {
        *len = 0xffffffff;
        *addr = 0xfee00000;
        *next = 0xffff;
        *len = 16;
        *addr = DATA;
        *next = 1;
    }
    return NULL;
}

static void double_fetch(void **state)
{
    pthread_t thread;
    unsigned good = 0;

    atomic_store(&flipping, true);
    start(&drv, FEATURES_ALL);
    put_desc(&drv, DESC, 1, DATA, 8, WRITE, 0);
    put_desc(&drv, DESC, 0, DATA, 16, NEXT, 1);
    pthread_create(&thread, NULL, flip, NULL);
    /* On a busy host the other thread may be stopped with a bad one in place: then it takes longer. */
    for (unsigned i = 0; i < 20000 || (!good && i < 20000000); i++) {
        sink.popped = 0;
        start(&drv, FEATURES_ALL);
        put_desc(&drv, DESC, 1, DATA, 8, WRITE, 0);
        ram16_put(&drv, DESC + 12, NEXT);
        offer(&drv, 0);
        sink.chain.n_out = sink.chain.n_in = 0;
        kick(&drv);
        if (sink.v.error)
            continue;
        good++;
        for (unsigned b = 0; b < sink.chain.n_out + sink.chain.n_in; b++)
            assert_true(memory_is_ram(fx.memory, sink.chain.buf[b].gpa, sink.chain.buf[b].len));
    }
    atomic_store(&flipping, false);
    pthread_join(thread, NULL);
    assert_true(good > 0);
}

/* A state from a stranger with a queue that would never have been accepted. */
static void hostile_saved_state(void **state)
{
    start(&drv, FEATURES_ALL);
    sink.state.queues[0].desc = ~0ull - 7;
    sink.state.queues[0].size = 0xffff;
    virtio_restored(&sink.v);
    assert_int_equal(sink.state.queues[0].enabled, 0);
    expect_failed("");
}

static void registers_at_random(void **state)
{
    uint64_t seed = 0x9e3779b97f4a7c15;
    for (unsigned i = 0; i < 300000; i++) {
        seed = seed * 6364136223846793005ull + 1442695040888963407ull;
        unsigned size = 1u << (seed >> 60 & 3), at = (seed >> 40) % (0x4000 - size);
        if (seed >> 50 & 1)
            at %= 64;
        if (seed >> 51 & 1)
            mem_out(&fx, drv.common + at, seed >> 8, size);
        else
            mem_in(&fx, drv.common + at, size);
    }
}

#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
int main(void)
{
    const struct CMUnitTest tests[] = {
        T(identity_and_registers),
        T(features_must_be_agreed),
        T(a_chain_of_both_directions),
        T(an_indirect_chain),
        T(indices_wrap),
        T(event_index_spares_interrupts),
        T(no_interrupt_flag),
        T(configuration_changes),
        T(window_in_configuration_space),
        T(loop_in_chain),
        T(loop_in_indirect_table),
        T(indirect_within_indirect),
        T(indirect_with_next),
        T(indirect_without_feature),
        T(indirect_table_lengths),
        T(length_wrap),
        T(too_many_buffers),
        T(length_zero),
        T(index_beyond_queue_size),
        T(available_index_jumps),
        T(readable_after_writable),
        T(unaligned_or_outside_rings),
        T(reset_in_the_middle),
        T(moving_an_enabled_queue),
        T(notify_before_live_or_without_mastering),
        T(double_fetch),
        T(hostile_saved_state),
        T(registers_at_random),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
