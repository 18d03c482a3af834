/*
 * The random number device, and with it all that queues and their descriptors can be made to be: it has one queue and
 * nothing to keep. Its bytes are made up, so that an input does the same each time.
 */
#include <sys/types.h>

#include "loop.h"

#include "driver.h"

#define STEPS_MAX 100u

ssize_t __wrap_getrandom(void *buf, size_t len, unsigned flags);
ssize_t __wrap_getrandom(void *buf, size_t len, unsigned flags)
{
    memset(buf, 0x52, len);
    return (ssize_t)len;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct fuzz_machine m;
    struct fuzz_input in = {data, size};
    struct device dev = {.name = "rng", .class = &virtio_rng_class};
    struct driver driver;

    fuzz_loop_begin();
    fuzz_machine_ready(&m);
    assert_int_equal(virtio_rng_class.create(&dev, &m.env, NULL), 0);
    driver_attach(&driver, &m);
    driver_start(&driver, fuzz_u64(&in) | 1);
    for (unsigned i = 0; i < STEPS_MAX && in.left; i++) {
        uint8_t what = fuzz_u8(&in) % (DRIVER_STEPS + 1);
        if (what < DRIVER_STEPS)
            driver_step(&driver, &in, what);
        else
            driver_restore(&dev, &in);
    }
    virtio_rng_class.destroy(&dev);
    fuzz_loop_is_empty();
    return 0;
}
