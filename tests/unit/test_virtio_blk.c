/* virtio-blk against drivers that are right and drivers that are hostile. */
#include "virtio_driver.h"

#include <stdatomic.h>
#include <stddef.h>

#include <linux/virtio_blk.h>

#include "devices/virtio/blk.h"
#include "host/loop.h"
#include "mock_disk.h"

#define DISK_BYTES (2u << 20)
#define HEADER 0x18000u
#define OUTCOME 0x18100u
#define FEATURES_BLK                                                                                                   \
    (FEATURES_ALL | 1ull << VIRTIO_BLK_F_FLUSH | 1ull << VIRTIO_BLK_F_DISCARD | 1ull << VIRTIO_BLK_F_WRITE_ZEROES |    \
     1ull << VIRTIO_BLK_F_CONFIG_WCE | 1ull << VIRTIO_BLK_F_MQ)

static struct fixture fx;
static struct mock_disk mock;
static struct device dev;
static struct driver drv;

static int open_device(bool read_only)
{
    fixture_open(&fx);
    mock_open(&mock, DISK_BYTES);
    mock.disk.read_only = read_only;
    struct blk_config config = {.disk = &mock.disk};
    dev = (struct device){.name = "blk", .class = &virtio_blk_class};
    assert_int_equal(virtio_blk_class.create(&dev, &fx.env, &config), 0);
    driver_find(&drv, &fx, 1);
    return 0;
}

static int setup(void **state)
{
    open_device(false);
    start(&drv, FEATURES_BLK);
    return 0;
}

static int setup_read_only(void **state)
{
    open_device(true);
    return 0;
}

static int teardown(void **state)
{
    virtio_blk_class.destroy(&dev);
    assert_null(dev.state);
    assert_true(mock.closed);
    assert_int_equal(mock.disk.in_flight, 0);
    mock_free(&mock);
    fixture_close(&fx);
    return 0;
}

static uint8_t *ram(uint64_t gpa)
{
    return memory_hva(fx.memory, gpa, 1);
}

/* Header, data, outcome as three buffers at places of their own; `slot` tells requests apart. */
static void put_request(unsigned slot, uint32_t type, uint64_t sector, uint64_t data, uint32_t len, bool data_in)
{
    uint64_t header[2] = {type, sector};
    uint16_t d = (uint16_t)(slot * 3);

    memory_write(fx.memory, HEADER + slot * 16, header, sizeof header);
    *ram(OUTCOME + slot) = 0xee;
    put_desc(&drv, DESC, d, HEADER + slot * 16, 16, NEXT, (uint16_t)(d + (len ? 1 : 2)));
    if (len)
        put_desc(&drv, DESC, d + 1, data, len, (uint16_t)(NEXT | (data_in ? WRITE : 0)), (uint16_t)(d + 2));
    put_desc(&drv, DESC, d + 2, OUTCOME + slot, 1, WRITE, 0);
    offer(&drv, d);
}

static uint8_t request(uint32_t type, uint64_t sector, uint64_t data, uint32_t len, bool data_in)
{
    uint16_t before = used_idx(&drv);

    put_request(0, type, sector, data, len, data_in);
    kick(&drv);
    assert_int_equal((uint16_t)(used_idx(&drv) - before), 1);
    return *ram(OUTCOME);
}

/* --- drivers that are right --------------------------------------------------------------------------------- */

static void what_it_says(void **state)
{
    struct virtio_blk_config c;

    for (unsigned i = 0; i < sizeof c; i++)
        ((uint8_t *)&c)[i] = (uint8_t)mem_in(&fx, drv.device + i, 1);
    assert_int_equal(cfg_in(&fx, 1, 2, 2), 0x1042);
    assert_int_equal(c.capacity, DISK_BYTES / 512);
    assert_int_equal(c.seg_max, 254);
    assert_int_equal(c.blk_size, 512);
    assert_int_equal(c.num_queues, 8);
    assert_int_equal(c.wce, 1);
    assert_int_equal(mem_in(&fx, drv.device + sizeof c, 1), 0);
}

static void reads_what_was_written(void **state)
{
    for (unsigned i = 0; i < 4096; i++)
        ram(DATA)[i] = (uint8_t)(i * 7 + i / 256);
    assert_int_equal(request(VIRTIO_BLK_T_OUT, 100, DATA, 4096, false), VIRTIO_BLK_S_OK);
    assert_memory_equal(mock.data + 100 * 512, ram(DATA), 4096);
    assert_int_equal(ram32(&drv, USED + 8), 1); /* the outcome only */
    assert_int_equal(request(VIRTIO_BLK_T_IN, 100, DATA + 0x1000, 4096, true), VIRTIO_BLK_S_OK);
    assert_memory_equal(ram(DATA), ram(DATA + 0x1000), 4096);
    assert_int_equal(ram32(&drv, USED + 4 + 8 + 4), 4097);
    assert_true(fx.level[17]);
    assert_int_equal(request(VIRTIO_BLK_T_FLUSH, 0, 0, 0, false), VIRTIO_BLK_S_OK);
    assert_int_equal(mock.count[DISK_FLUSH], 1);
}

/* 2.7.4: the device makes no assumptions about how a request is cut into buffers. */
static void any_layout(void **state)
{
    uint64_t header[2] = {VIRTIO_BLK_T_OUT, 8};

    for (unsigned i = 0; i < 1024; i++)
        ram(DATA)[i] = (uint8_t)(i * 3);
    memory_write(fx.memory, HEADER, header, 16);
    put_desc(&drv, DESC, 0, HEADER, 5, NEXT, 1); /* the header in two pieces, the second with data behind it */
    memmove(ram(DATA - 11), ram(HEADER + 5), 11);
    put_desc(&drv, DESC, 1, DATA - 11, 11 + 100, NEXT, 2);
    put_desc(&drv, DESC, 2, DATA + 100, 1024 - 100, NEXT, 3);
    put_desc(&drv, DESC, 3, OUTCOME, 1, WRITE, 0);
    offer(&drv, 0);
    kick(&drv);
    assert_int_equal(*ram(OUTCOME), VIRTIO_BLK_S_OK);
    assert_memory_equal(mock.data + 8 * 512, ram(DATA), 1024);
    header[0] = VIRTIO_BLK_T_IN;
    memory_write(fx.memory, HEADER, header, 16);
    memset(ram(DATA + 0x2000), 0xee, 0x1000);
    put_desc(&drv, DESC, 4, HEADER, 16, NEXT, 5); /* data and outcome in one buffer, after a piece of one byte */
    put_desc(&drv, DESC, 5, DATA + 0x2000, 1, WRITE | NEXT, 6);
    put_desc(&drv, DESC, 6, DATA + 0x2001, 1024, WRITE, 0);
    offer(&drv, 4);
    kick(&drv);
    assert_memory_equal(ram(DATA + 0x2000), ram(DATA), 1024);
    assert_int_equal(ram(DATA + 0x2000)[1024], VIRTIO_BLK_S_OK);
    assert_int_equal(ram(DATA + 0x2000)[1025], 0xee);
}

static void serial_number(void **state)
{
    memset(ram(DATA), 0xee, 64);
    assert_int_equal(request(VIRTIO_BLK_T_GET_ID, 0, DATA, 20, true), VIRTIO_BLK_S_OK);
    assert_memory_equal(ram(DATA), "MOCK1\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0", 20);
    assert_int_equal(ram(DATA)[20], 0xee);
    assert_int_equal(request(VIRTIO_BLK_T_GET_ID, 0, DATA, 3, true), VIRTIO_BLK_S_OK);
    assert_int_equal(request(0x77, 0, DATA, 512, true), VIRTIO_BLK_S_UNSUPP);
}

static void put_range(unsigned i, uint64_t sector, uint32_t sectors, uint32_t flags)
{
    memory_write(fx.memory, DATA + 16 * i, &sector, 8);
    memory_write(fx.memory, DATA + 16 * i + 8, &sectors, 4);
    memory_write(fx.memory, DATA + 16 * i + 12, &flags, 4);
}

static void discards_and_zeroes(void **state)
{
    memset(mock.data, 0xff, 65536);
    put_range(0, 0, 8, 0);
    put_range(1, 64, 8, 0);
    assert_int_equal(request(VIRTIO_BLK_T_DISCARD, 0, DATA, 32, false), VIRTIO_BLK_S_OK);
    assert_int_equal(mock.count[DISK_DISCARD], 2);
    assert_int_equal(mock.data[64 * 512], 0);
    assert_int_equal(mock.data[8 * 512], 0xff);
    put_range(0, 16, 8, 1);
    assert_int_equal(request(VIRTIO_BLK_T_WRITE_ZEROES, 0, DATA, 16, false), VIRTIO_BLK_S_OK);
    assert_int_equal(mock.data[16 * 512], 0);
    assert_int_equal(mock.unmap, 1);
    put_range(0, 16, 8, 2);
    assert_int_equal(request(VIRTIO_BLK_T_WRITE_ZEROES, 0, DATA, 16, false), VIRTIO_BLK_S_UNSUPP);
    put_range(0, 16, 8, 1);
    assert_int_equal(request(VIRTIO_BLK_T_DISCARD, 0, DATA, 16, false), VIRTIO_BLK_S_UNSUPP);
    assert_int_equal(request(VIRTIO_BLK_T_DISCARD, 0, DATA, 15, false), VIRTIO_BLK_S_IOERR);
    assert_int_equal(request(VIRTIO_BLK_T_DISCARD, 0, 0, 0, false), VIRTIO_BLK_S_IOERR);
    assert_int_equal(request(VIRTIO_BLK_T_DISCARD, 0, DATA, 33 * 16, false), VIRTIO_BLK_S_IOERR);
    put_range(0, 0, 0xffffffff, 0);
    assert_int_equal(request(VIRTIO_BLK_T_DISCARD, 0, DATA, 16, false), VIRTIO_BLK_S_IOERR);
    put_range(0, 0, 8, 0);
    put_range(1, ~0ull, 8, 0);
    assert_int_equal(request(VIRTIO_BLK_T_DISCARD, 0, DATA, 32, false), VIRTIO_BLK_S_IOERR);
    assert_int_equal(mock.count[DISK_DISCARD], 2); /* not half of it either */
    start(&drv, FEATURES_ALL);
    put_range(0, 0, 8, 0);
    assert_int_equal(request(VIRTIO_BLK_T_DISCARD, 0, DATA, 16, false), VIRTIO_BLK_S_UNSUPP);
}

static void write_through(void **state)
{
    assert_int_equal(request(VIRTIO_BLK_T_OUT, 0, DATA, 512, false), VIRTIO_BLK_S_OK);
    assert_int_equal(mock.fua, 0);
    mem_out(&fx, drv.device + offsetof(struct virtio_blk_config, wce), 0, 1);
    assert_int_equal(mem_in(&fx, drv.device + offsetof(struct virtio_blk_config, wce), 1), 0);
    assert_int_equal(request(VIRTIO_BLK_T_OUT, 0, DATA, 512, false), VIRTIO_BLK_S_OK);
    assert_int_equal(mock.fua, 1);
    start(&drv, FEATURES_BLK);
    assert_int_equal(request(VIRTIO_BLK_T_OUT, 0, DATA, 512, false), VIRTIO_BLK_S_OK);
    assert_int_equal(mock.fua, 1); /* a reset has switched it on again */
    start(&drv, FEATURES_ALL);     /* a driver that cannot flush */
    assert_int_equal(request(VIRTIO_BLK_T_OUT, 0, DATA, 512, false), VIRTIO_BLK_S_OK);
    assert_int_equal(mock.fua, 2);
}

static void errors_of_the_disk(void **state)
{
    for (unsigned i = 0; i < MOCK_OPS; i++)
        mock.fail[i] = -ENOSPC;
    put_range(0, 0, 8, 0);
    assert_int_equal(request(VIRTIO_BLK_T_IN, 0, DATA + 512, 512, true), VIRTIO_BLK_S_IOERR);
    assert_int_equal(request(VIRTIO_BLK_T_OUT, 0, DATA + 512, 512, false), VIRTIO_BLK_S_IOERR);
    assert_int_equal(request(VIRTIO_BLK_T_FLUSH, 0, 0, 0, false), VIRTIO_BLK_S_IOERR);
    assert_int_equal(request(VIRTIO_BLK_T_DISCARD, 0, DATA, 16, false), VIRTIO_BLK_S_IOERR);
    assert_int_equal(request(VIRTIO_BLK_T_WRITE_ZEROES, 0, DATA, 16, false), VIRTIO_BLK_S_IOERR);
}

static void read_only(void **state)
{
    start(&drv, FEATURES_ALL | 1ull << VIRTIO_BLK_F_RO | 1ull << VIRTIO_BLK_F_FLUSH);
    assert_int_equal(status(&drv) & VIRTIO_DRIVER_OK, VIRTIO_DRIVER_OK);
    assert_int_equal(request(VIRTIO_BLK_T_OUT, 0, DATA, 512, false), VIRTIO_BLK_S_IOERR);
    assert_int_equal(request(VIRTIO_BLK_T_IN, 0, DATA, 512, true), VIRTIO_BLK_S_OK);
    assert_int_equal(mock.count[DISK_WRITE], 0);
    negotiate(&drv, FEATURES_ALL | 1ull << VIRTIO_BLK_F_DISCARD); /* is not offered */
    assert_int_equal(status(&drv) & VIRTIO_FEATURES_OK, 0);
}

static void dma_is_announced(void *opaque, uint64_t gpa, uint64_t len)
{
    if (gpa <= DATA && DATA + 512 <= gpa + len)
        *(unsigned *)opaque += 1;
}

static void translations_are_told(void **state)
{
    unsigned told = 0;

    fx.bus->dma_dirty = dma_is_announced;
    fx.bus->dma_dirty_opaque = &told;
    request(VIRTIO_BLK_T_OUT, 0, DATA, 512, false);
    assert_int_equal(told, 0);
    request(VIRTIO_BLK_T_IN, 0, DATA, 512, true);
    assert_int_equal(told, 1);
}

static void several_at_work(void **state)
{
    mock.hold = true;
    for (unsigned i = 0; i < 5; i++)
        put_request(i, VIRTIO_BLK_T_IN, i, DATA + i * 512, 512, true);
    kick(&drv);
    assert_int_equal(mock.n_held, 5);
    assert_int_equal(used_idx(&drv), 0);
    mock_release(&mock);
    assert_int_equal(used_idx(&drv), 5);
    assert_int_equal(ram32(&drv, USED + 4), 12); /* in the order of the disk, the last first */
}

/* --- hostile drivers, by name ----------------------------------------------------------------------------------- */

static void sectors_that_wrap(void **state)
{
    static const uint64_t wrong[] = {DISK_BYTES / 512, DISK_BYTES / 512 - 1, ~0ull,
                                     ~0ull - 1,        1ull << 55,           (1ull << 55) - 1};

    for (unsigned i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        assert_int_equal(request(VIRTIO_BLK_T_IN, wrong[i], DATA, 1024, true), VIRTIO_BLK_S_IOERR);
        assert_int_equal(request(VIRTIO_BLK_T_OUT, wrong[i], DATA, 1024, false), VIRTIO_BLK_S_IOERR);
    }
    assert_int_equal(request(VIRTIO_BLK_T_IN, 0, DATA, 511, true), VIRTIO_BLK_S_IOERR);
    assert_int_equal(request(VIRTIO_BLK_T_OUT, 0, DATA, 513, false), VIRTIO_BLK_S_IOERR);
    assert_int_equal(mock.count[DISK_READ] + mock.count[DISK_WRITE], 0);
}

static void expect_failed(void)
{
    assert_true(status(&drv) & VIRTIO_NEEDS_RESET);
    start(&drv, FEATURES_BLK);
}

static void requests_without_header_or_outcome(void **state)
{
    put_desc(&drv, DESC, 0, HEADER, 15, NEXT, 1); /* too short a header */
    put_desc(&drv, DESC, 1, OUTCOME, 1, WRITE, 0);
    offer(&drv, 0);
    kick(&drv);
    expect_failed();
    put_desc(&drv, DESC, 0, HEADER, 16, 0, 0); /* no place for the outcome */
    offer(&drv, 0);
    kick(&drv);
    expect_failed();
    put_desc(&drv, DESC, 0, OUTCOME, 1, WRITE, 0); /* nothing readable */
    offer(&drv, 0);
    kick(&drv);
    expect_failed();
    assert_int_equal(request(VIRTIO_BLK_T_IN, 0, DATA, 512, true), VIRTIO_BLK_S_OK);
}

static void loops_and_lengths(void **state)
{
    put_desc(&drv, DESC, 0, HEADER, 16, NEXT, 1);
    put_desc(&drv, DESC, 1, DATA, 512, NEXT | WRITE, 1);
    offer(&drv, 0);
    kick(&drv);
    expect_failed();
    put_desc(&drv, DESC, 0, HEADER, 16, NEXT, 1);
    put_desc(&drv, DESC, 1, DATA, 0xffffffff, NEXT | WRITE, 2);
    put_desc(&drv, DESC, 2, OUTCOME, 1, WRITE, 0);
    offer(&drv, 0);
    kick(&drv);
    expect_failed();
    offer(&drv, 0xffff);
    kick(&drv);
    expect_failed();
}

/* The buffers are the rings and the header itself: the guest's memory, its loss. */
static void reentrant_buffers(void **state)
{
    memset(mock.data, 0xff, 65536);
    put_request(0, VIRTIO_BLK_T_IN, 0, DESC, 4096, true);
    kick(&drv);
    put_request(1, VIRTIO_BLK_T_IN, 0, AVAIL, 512, true);
    kick(&drv);
    start(&drv, FEATURES_BLK);
    put_request(0, VIRTIO_BLK_T_IN, 0, USED, 512, true);
    kick(&drv);
    start(&drv, FEATURES_BLK);
    put_request(0, VIRTIO_BLK_T_IN, 0, HEADER, 512, true);
    kick(&drv);
}

/* The driver resets with requests in the hands of the disk: the reset is not over before they are, and they answer
 * nobody. */
static void reset_in_the_middle(void **state)
{
    mock.hold = true;
    for (unsigned i = 0; i < 5; i++)
        put_request(i, VIRTIO_BLK_T_IN, i, DATA + i * 512, 512, true);
    kick(&drv);
    assert_int_equal(mock.n_held, 5);
    set(&drv, 20, 0, 1);
    assert_int_not_equal(status(&drv), 0);
    set(&drv, 20, 0, 1); /* once more */
    assert_int_not_equal(status(&drv), 0);
    memset(ram(OUTCOME), 0xee, 16);
    mock.hold = false;
    mock_release(&mock);
    assert_int_equal(status(&drv), 0);
    for (unsigned i = 0; i < 16; i++)
        assert_int_equal(ram(OUTCOME)[i], 0xee);
    start(&drv, FEATURES_BLK);
    assert_int_equal(used_idx(&drv), 0);
    assert_int_equal(request(VIRTIO_BLK_T_IN, 0, DATA, 512, true), VIRTIO_BLK_S_OK);
}

/* In the middle of a discard of several ranges: the rest of them is not begun. */
static void reset_between_ranges(void **state)
{
    for (unsigned i = 0; i < 8; i++)
        put_range(i, i * 64, 8, 0);
    mock.hold = true;
    put_request(0, VIRTIO_BLK_T_DISCARD, 0, DATA, 128, false);
    kick(&drv);
    set(&drv, 20, 0, 1);
    mock_release(&mock);
    assert_int_equal(mock.count[DISK_DISCARD], 1);
    assert_int_equal(status(&drv), 0);
    mock.hold = false;
}

static void machine_reset_in_the_middle(void **state)
{
    mock.hold = true;
    put_request(0, VIRTIO_BLK_T_IN, 0, DATA, 512, true);
    kick(&drv);
    virtio_blk_class.reset(&dev);
    assert_int_equal(mock.n_held, 0);
    mock.hold = false;
    driver_find(&drv, &fx, 1);
    start(&drv, FEATURES_BLK);
    assert_int_equal(request(VIRTIO_BLK_T_IN, 0, DATA, 512, true), VIRTIO_BLK_S_OK);
}

static void destroyed_in_the_middle(void **state)
{
    mock.hold = true;
    put_request(0, VIRTIO_BLK_T_IN, 0, DATA, 512, true);
    put_request(1, VIRTIO_BLK_T_OUT, 0, DATA, 512, false);
    kick(&drv);
    assert_int_equal(mock.n_held, 2);
}

/* Another thread changes header and descriptors while they are read. */
static _Atomic bool flipping;
static void *flip(void *opaque)
{
    volatile uint64_t *sector = (volatile uint64_t *)ram(HEADER + 8);
    volatile uint32_t *len = (volatile uint32_t *)ram(DESC + 16 + 8);
    while (atomic_load(&flipping)) {
        *sector = ~0ull;
        *len = 0xffffffff;
        *sector = 0;
        *len = 512;
    }
    return NULL;
}

/* Another processor of the guest, as quick as the device: each chain that comes back is offered again. */
#define REFILLS 5000u
static unsigned refills;
static void refill(void *opaque, uint64_t gpa, uint64_t len)
{
    if (gpa == USED + 2 && refills < REFILLS) {
        refills++;
        offer(&drv, 0);
    }
}

static void stop_when_refilled(void *opaque)
{
    static unsigned passes;

    if (refills == REFILLS || ++passes > 1000)
        loop_stop(fx.loop);
    else
        loop_timer_set(fx.loop, opaque, clock_ns());
}

static void a_driver_that_refills_does_not_keep_the_device(void **state)
{
    struct loop_timer stop;

    refills = 0;
    fx.bus->dma_dirty = refill;
    mock.hold = true;
    negotiate(&drv, FEATURES_BLK);
    queue_at(&drv, 256, DESC, AVAIL, USED); /* every entry says chain 0 */
    set(&drv, 20, status(&drv) | VIRTIO_DRIVER_OK, 1);
    for (unsigned i = 0; i < 130; i++) { /* more than are at work at a time */
        put_request(0, VIRTIO_BLK_T_OUT, 0, DATA, 512, false);
        kick(&drv);
    }
    mock.hold = false;
    mock_release(&mock); /* now the chains that come back are taken by the disk's completions */
    assert_in_range(refills, 100, 1000);
    loop_timer_init(&stop, stop_when_refilled, &stop);
    loop_timer_set(fx.loop, &stop, clock_ns());
    loop_run(fx.loop);
    assert_int_equal(refills, REFILLS); /* the rest from the loop, pass by pass */
}

static void double_fetch(void **state)
{
    pthread_t thread;

    atomic_store(&flipping, true);
    put_request(0, VIRTIO_BLK_T_IN, 0, DATA, 512, true);
    pthread_create(&thread, NULL, flip, NULL);
    for (unsigned i = 0; i < 20000; i++) {
        if (status(&drv) & VIRTIO_NEEDS_RESET)
            start(&drv, FEATURES_BLK);
        put_request(0, VIRTIO_BLK_T_IN, 0, DATA, 512, true);
        kick(&drv);
    }
    atomic_store(&flipping, false);
    pthread_join(thread, NULL);
}

static void state_goes_on(void **state)
{
    uint8_t *saved = malloc(virtio_blk_class.save_size);

    mock.hold = true;
    put_request(0, VIRTIO_BLK_T_OUT, 0, DATA, 512, false);
    kick(&drv);
    virtio_blk_class.pre_save(&dev);
    assert_int_equal(used_idx(&drv), 1);
    memcpy(saved, (char *)dev.state + virtio_blk_class.save_offset, virtio_blk_class.save_size);
    put_request(1, VIRTIO_BLK_T_OUT, 0, DATA, 512, false);
    kick(&drv); /* at work when the old state comes back */
    memcpy((char *)dev.state + virtio_blk_class.save_offset, saved, virtio_blk_class.save_size);
    mock.hold = false;
    virtio_blk_class.post_restore(&dev);
    assert_int_equal(mock.n_held, 0);
    assert_int_equal(used_idx(&drv), 2); /* the second is in the ring still: taken again */
    free(saved);
}

static void hostile_saved_state(void **state)
{
    uint8_t *bytes = (uint8_t *)dev.state + virtio_blk_class.save_offset;
    uint64_t seed = 9;

    for (unsigned round = 0; round < 300; round++) {
        put_request(round % 5, VIRTIO_BLK_T_IN, 0, DATA, 512, true);
        mock.hold = round & 1;
        kick(&drv);
        virtio_blk_class.pre_save(&dev);
        for (unsigned i = 0; i < 1 + round % 64; i++) {
            seed ^= seed << 13, seed ^= seed >> 7, seed ^= seed << 17;
            size_t at = sizeof(struct pci_state) + seed % (virtio_blk_class.save_size - sizeof(struct pci_state));
            bytes[at] = (uint8_t)(seed >> 32);
        }
        virtio_blk_class.post_restore(&dev);
        kick(&drv);
        mock_release(&mock);
        virtio_blk_class.reset(&dev);
        driver_find(&drv, &fx, 1);
        start(&drv, FEATURES_BLK);
    }
}

#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
int main(void)
{
    const struct CMUnitTest tests[] = {
        T(what_it_says),
        T(reads_what_was_written),
        T(any_layout),
        T(serial_number),
        T(discards_and_zeroes),
        T(write_through),
        T(errors_of_the_disk),
        cmocka_unit_test_setup_teardown(read_only, setup_read_only, teardown),
        T(translations_are_told),
        T(several_at_work),
        T(sectors_that_wrap),
        T(requests_without_header_or_outcome),
        T(loops_and_lengths),
        T(reentrant_buffers),
        T(reset_in_the_middle),
        T(reset_between_ranges),
        T(machine_reset_in_the_middle),
        T(destroyed_in_the_middle),
        T(a_driver_that_refills_does_not_keep_the_device),
        T(double_fetch),
        T(state_goes_on),
        T(hostile_saved_state),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
