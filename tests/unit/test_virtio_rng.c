/* virtio-rng from the driver's side. */
#include "virtio_driver.h"

static struct fixture fx;
static struct device rng;
static struct driver drv;

static int setup(void **state)
{
    fixture_open(&fx);
    assert_int_equal(virtio_rng_class.create(&rng, &fx.env, NULL), 0);
    driver_find(&drv, &fx, 1);
    return 0;
}

static int teardown(void **state)
{
    virtio_rng_class.destroy(&rng);
    assert_null(rng.state);
    fixture_close(&fx);
    return 0;
}

static unsigned ones(uint64_t at, unsigned len)
{
    unsigned n = 0;
    for (unsigned i = 0; i < len; i++)
        n += (unsigned)__builtin_popcount(*((uint8_t *)memory_hva(fx.memory, at + i, 1)));
    return n;
}

static void fills_buffers(void **state)
{
    assert_int_equal(cfg_in(&fx, 1, 2, 2), 0x1044);
    assert_int_equal(drv.device, 0); /* no configuration of its own */
    start(&drv, FEATURES_ALL);
    memset(memory_hva(fx.memory, DATA, 0x10000), 0, 0x10000);
    put_desc(&drv, DESC, 0, DATA, 1000, WRITE | NEXT, 1);
    put_desc(&drv, DESC, 1, DATA + 0x4000, 24, WRITE, 0);
    offer(&drv, 0);
    kick(&drv);
    assert_int_equal(used_idx(&drv), 1);
    assert_int_equal(ram32(&drv, USED + 8), 1024);
    assert_in_range(ones(DATA, 1000), 3600, 4400); /* 16 standard deviations */
    assert_int_not_equal(ones(DATA + 0x4000, 24), 0);
    assert_int_equal(ones(DATA + 1000, 0x3000), 0); /* not one byte beyond */
    assert_true(fx.level[17]);
}

static void a_large_request_gets_a_part(void **state)
{
    start(&drv, FEATURES_ALL);
    put_desc(&drv, DESC, 0, DATA, 0x100000, WRITE, 0);
    offer(&drv, 0);
    kick(&drv);
    assert_in_range(ram32(&drv, USED + 8), 1, 0x100000);
}

static void a_readable_buffer_gets_nothing(void **state)
{
    start(&drv, FEATURES_ALL);
    put_desc(&drv, DESC, 0, DATA, 64, 0, 0);
    offer(&drv, 0);
    kick(&drv);
    assert_int_equal(used_idx(&drv), 1);
    assert_int_equal(ram32(&drv, USED + 8), 0);
}

static void dma_is_announced(void *opaque, uint64_t gpa, uint64_t len)
{
    if (gpa <= DATA && DATA + 64 <= gpa + len)
        *(bool *)opaque = true;
}

static void translations_are_told(void **state)
{
    bool told = false;
    fx.bus->dma_dirty = dma_is_announced;
    fx.bus->dma_dirty_opaque = &told;
    start(&drv, FEATURES_ALL);
    put_desc(&drv, DESC, 0, DATA, 64, WRITE, 0);
    offer(&drv, 0);
    kick(&drv);
    assert_true(told);
}

static void reset_and_restore(void **state)
{
    const struct device_class *c = rng.class ? rng.class : &virtio_rng_class;
    uint8_t *saved = malloc(c->save_size);
    start(&drv, FEATURES_ALL);
    memcpy(saved, (char *)rng.state + c->save_offset, c->save_size);
    c->reset(&rng);
    assert_int_equal(cfg_in(&fx, 1, PCI_COMMAND, 2), 0);
    memcpy((char *)rng.state + c->save_offset, saved, c->save_size);
    c->post_restore(&rng);
    put_desc(&drv, DESC, 0, DATA, 64, WRITE, 0);
    offer(&drv, 0);
    kick(&drv);
    assert_int_equal(used_idx(&drv), 1);
    free(saved);
}

#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
int main(void)
{
    const struct CMUnitTest tests[] = {T(fills_buffers), T(a_large_request_gets_a_part),
                                       T(a_readable_buffer_gets_nothing), T(translations_are_told),
                                       T(reset_and_restore)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
