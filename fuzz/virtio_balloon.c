/*
 * The balloon: lists of page numbers, reports of free memory, statistics, a host that changes its mind. Pages that come
 * back are looked at and not given to the kernel: that takes a system call each.
 */
#include <errno.h>

#include "loop.h"

#include "devices/virtio/balloon.h"
#include "driver.h"

#define STEPS_MAX 100u
#define CLAIMED (256ull << 20) /* what the machine says it has, or no target would be possible */

enum { STEP_PASS = DRIVER_STEPS, STEP_PAGES, STEP_TARGET, STEP_STATS, STEP_RESTORE, STEPS };

struct target {
    struct fuzz_machine m;
    struct device dev;
    struct balloon *balloon;
    struct driver driver;
};

int __wrap_memory_discard(struct memory *m, uint64_t gpa, uint64_t len);
int __wrap_memory_discard(struct memory *m, uint64_t gpa, uint64_t len)
{
    uint8_t *page = memory_hva(m, gpa, len);

    assert_true(page && len);
    page[0] = page[len - 1] = 0;
    return 0;
}

/* Page numbers, some of them in a row, in the queue that takes them. */
static void step_pages(struct target *t, struct fuzz_input *in)
{
    uint32_t pages[16];
    uint8_t how = fuzz_u8(in), n = 1 + how % 15;
    const struct descriptor d = {.addr = DATA, .len = (uint32_t)(n * sizeof *pages - (how & 0x10 ? 1 : 0))};

    pages[0] = fuzz_u16(in) % 0x120;
    for (unsigned i = 1; i < n; i++)
        pages[i] = how & 0x20 ? fuzz_u32(in) : pages[i - 1] + 1;
    driver_put(&t->driver, DATA, pages, sizeof pages);
    driver_put(&t->driver, RING(how >> 7), &d, sizeof d);
    driver_offer(&t->driver, how >> 7, 0);
    driver_notify(&t->driver, how >> 7);
}

static void step_target(struct target *t, struct fuzz_input *in)
{
    int err = balloon_set_target(t->balloon, fuzz_u64(in) >> fuzz_u8(in) % 64);

    assert_true(!err || err == -ERANGE);
    balloon_target(t->balloon);
    balloon_actual(t->balloon);
}

static void step_stats(struct target *t, struct fuzz_input *in)
{
    struct balloon_stats stats;

    if (fuzz_u8(in) & 1)
        balloon_refresh(t->balloon);
    balloon_stats(t->balloon, &stats);
}

static void step(struct target *t, struct fuzz_input *in)
{
    uint8_t what = fuzz_u8(in) % STEPS;

    switch (what) {
    case STEP_PASS:
        fuzz_loop_pass(fuzz_u16(in), 4);
        break;
    case STEP_PAGES:
        step_pages(t, in);
        break;
    case STEP_TARGET:
        step_target(t, in);
        break;
    case STEP_STATS:
        step_stats(t, in);
        break;
    case STEP_RESTORE:
        driver_restore(&t->dev, in);
        break;
    default:
        driver_step(&t->driver, in, what);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct target t;
    struct fuzz_input in = {data, size};
    const struct balloon_config config = {.handle = &t.balloon};

    fuzz_loop_begin();
    fuzz_machine_ready(&t.m);
    t.m.memory->size = CLAIMED;
    t.dev = (struct device){.name = "balloon", .class = &virtio_balloon_class};
    assert_int_equal(virtio_balloon_class.create(&t.dev, &t.m.env, &config), 0);
    driver_attach(&t.driver, &t.m);
    driver_start(&t.driver, fuzz_u64(&in) | 1);
    for (unsigned i = 0; i < STEPS_MAX && in.left; i++)
        step(&t, &in);
    fuzz_loop_pass(0, 4);
    virtio_balloon_class.destroy(&t.dev);
    fuzz_loop_is_empty();
    return 0;
}
