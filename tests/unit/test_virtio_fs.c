/* virtio-fs: a driver on one side, a file server of our own making on the other, each of them right or hostile. */
#include <errno.h>
#include <fcntl.h>
#include <linux/fuse.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "backends/share.h"
#include "devices/virtio/fs.h"
#include "virtio_guest.h"

enum { HIPRIO, REQUESTS };
#define OUT 0x100000ull /* a request, 16 KiB for each descriptor */
#define IN 0x200000ull  /* a reply, likewise */
#define BIG 0x300000ull
#define STEP 0x4000ull

static struct mailbox server;
static int arena;
static uint8_t *slots;
static struct {
    struct share_request_head head;
    uint8_t bytes[SHARE_INLINE];
} got;
static size_t got_size;

static int setup(void **state)
{
    struct share *share;
    int pair[2];

    fixture_open(&fx);
    assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair), 0);
    arena = memfd_create("arena", MFD_CLOEXEC);
    assert_int_equal(ftruncate(arena, SHARE_ARENA_SIZE), 0);
    slots = mmap(NULL, SHARE_ARENA_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, arena, 0);
    mailbox_init(&server, slots + SHARE_MAILBOX, pair[1], 1);
    assert_int_equal(share_adopt(&share, pair[0], arena, fx.loop), 0);
    const struct virtio_fs_config config = {.share = share, .tag = "share0"};
    assert_int_equal(virtio_fs_class.create(&dev, &fx.env, &config), 0);
    driver_find(&drv, &fx, 1);
    vq_start(FEATURES_ALL, 2);
    while (mailbox_receive(&server, &got, sizeof got) > 0) /* resets */
        ;
    return 0;
}

static int teardown(void **state)
{
    virtio_fs_class.destroy(&dev);
    assert_null(dev.state);
    munmap(slots, SHARE_ARENA_SIZE);
    if (server.fd >= 0)
        close(server.fd);
    fixture_close(&fx);
    return 0;
}

/* --- the guest ----------------------------------------------------------------------------------------------- */

static uint64_t out_at(uint16_t i)
{
    return OUT + STEP * (i / 2);
}
static uint64_t in_at(uint16_t i)
{
    return IN + STEP * (i / 2);
}

/* Offers a request of `length` bytes as descriptors i (even) and i + 1, the latter with room for `room`. */
static void request(unsigned q, uint16_t i, uint32_t opcode, uint64_t unique, uint32_t length, uint32_t room)
{
    const struct fuse_in_header in = {.len = length, .opcode = opcode, .unique = unique, .nodeid = 1};
    uint64_t at = length > STEP ? BIG : out_at(i);

    assert_int_equal(memory_write(fx.memory, at, &in, length < sizeof in ? length : sizeof in), 0);
    put_desc(&drv, VQ_AT(q), i, at, length, room ? NEXT : 0, (uint16_t)(i + 1));
    if (room)
        put_desc(&drv, VQ_AT(q), i + 1u, in_at(i), room, WRITE, 0);
    vq_offer(q, i);
    vq_kick(q);
}

static struct fuse_out_header result(uint64_t at)
{
    struct fuse_out_header out;
    assert_int_equal(memory_read(fx.memory, at, &out, sizeof out), 0);
    return out;
}

/* --- the server ---------------------------------------------------------------------------------------------- */

static bool take(void)
{
    ssize_t n = mailbox_receive(&server, &got, sizeof got);
    got_size = n > 0 ? (size_t)n : 0;
    return n > 0;
}

static uint64_t got_unique(void)
{
    return ((struct fuse_in_header *)got.bytes)->unique;
}

static void answer_raw(uint32_t index, uint32_t length, uint32_t claimed, uint64_t unique, int error, size_t here)
{
    struct {
        struct share_reply_head head;
        uint8_t bytes[SHARE_INLINE + 100];
    } out = {.head = {.index = index, .length = length}};
    const struct fuse_out_header h = {.len = claimed, .error = error, .unique = unique};

    memset(out.bytes, 0x5a, sizeof out.bytes);
    memcpy(out.bytes, &h, sizeof h);
    const struct iovec piece = {&out, sizeof out.head + here};
    assert_int_equal(mailbox_send(&server, &piece, 1), 0);
}

static void answer(uint32_t length)
{
    answer_raw(got.head.index, length, length, got_unique(), 0, length);
}

/* --- the rules kept ------------------------------------------------------------------------------------------ */

static void the_tag_and_the_number_of_queues(void **state)
{
    char tag[36];

    assert_int_equal(cfg_in(&fx, 1, 2, 2), 0x1040 + 26);
    for (unsigned i = 0; i < sizeof tag; i++)
        tag[i] = (char)mem_in(&fx, drv.device + i, 1);
    assert_string_equal(tag, "share0");
    assert_int_equal(mem_in(&fx, drv.device + 36, 4), 1);
}

static void a_request_goes_and_its_reply_comes(void **state)
{
    uint32_t len;

    request(REQUESTS, 0, FUSE_GETATTR, 7, 56, 4096);
    assert_true(take());
    assert_int_equal(got.head.kind, SHARE_FUSE);
    assert_int_equal(got.head.length, 56);
    assert_int_equal(got.head.reply_max, 4096);
    assert_int_equal(got.head.slot, SHARE_NO_SLOT);
    assert_int_equal(got_size, sizeof got.head + 56);
    assert_int_equal(got_unique(), 7);
    assert_int_equal(vq_used(REQUESTS), 0);
    answer(120);
    spin();
    assert_int_equal(vq_used(REQUESTS), 1);
    assert_int_equal(vq_take(REQUESTS, &len), 0);
    assert_int_equal(len, 120);
    assert_int_equal(result(IN).unique, 7);
    uint8_t last;
    memory_read(fx.memory, IN + 119, &last, 1);
    assert_int_equal(last, 0x5a);
    assert_true(fx.level[17]);
}

static void replies_come_in_any_order(void **state)
{
    uint32_t index[5];

    for (uint16_t i = 0; i < 5; i++) {
        request(REQUESTS, (uint16_t)(2 * i), FUSE_GETATTR, 100u + i, 56, 4096);
        assert_true(take());
        index[i] = got.head.index;
    }
    for (int i = 4; i >= 0; i--)
        answer_raw(index[i], 16, 16, 100u + (unsigned)i, -ENOENT, 16);
    spin();
    for (int i = 4; i >= 0; i--) {
        assert_int_equal(vq_take(REQUESTS, NULL), 2 * i);
        assert_int_equal(result(in_at((uint16_t)(2 * i))).error, -ENOENT);
    }
}

static void bulk_travels_in_a_slot(void **state)
{
    uint32_t length = SHARE_HEAD + 0x20000, len;
    uint8_t *ram = memory_hva(fx.memory, BIG, length);

    for (uint32_t i = 0; i < length; i++)
        ram[i] = (uint8_t)(i * 7);
    request(REQUESTS, 0, FUSE_WRITE, 1, length, 64);
    assert_true(take());
    assert_int_equal(got_size, sizeof got.head + SHARE_HEAD);
    assert_int_equal(got.head.length, length);
    assert_true(got.head.slot < SHARE_SLOTS);
    const uint8_t *slot = slots + (size_t)got.head.slot * SHARE_SLOT_SIZE;
    assert_memory_equal(slot, ram + SHARE_HEAD, length - SHARE_HEAD);
    answer(24);
    spin();
    vq_take(REQUESTS, &len);
    assert_int_equal(len, 24);
    /* and back */
    request(REQUESTS, 2, FUSE_READ, 2, 80, 16 + 0x3000);
    assert_true(take());
    assert_true(got.head.slot < SHARE_SLOTS);
    memset(slots + (size_t)got.head.slot * SHARE_SLOT_SIZE, 0xa7, 0x3000);
    answer_raw(got.head.index, 16 + 0x3000, 16 + 0x3000, 2, 0, 16);
    spin();
    vq_take(REQUESTS, &len);
    assert_int_equal(len, 16 + 0x3000);
    const uint8_t *in = memory_hva(fx.memory, in_at(2), 16 + 0x3000);
    for (unsigned i = 16; i < 16 + 0x3000; i++)
        assert_int_equal(in[i], 0xa7);
}

static void slots_run_out_and_small_requests_pass(void **state)
{
    unsigned taken = 0;
    uint32_t index[SHARE_SLOTS + 4];

    for (uint16_t i = 0; i < SHARE_SLOTS + 4; i++)
        request(REQUESTS, (uint16_t)(2 * i), FUSE_READ, i, 80, 0x3000);
    request(HIPRIO, 0, FUSE_GETATTR, 99, 56, 4096);
    while (take() && got_unique() != 99)
        index[taken++] = got.head.index;
    assert_int_equal(got_unique(), 99);
    assert_int_equal(taken, SHARE_SLOTS);
    answer(16);
    for (unsigned i = 0; i < 4; i++)
        answer_raw(index[i], 16, 16, i, 0, 16);
    spin();
    for (unsigned i = 0; i < 4; i++) {
        assert_true(take());
        assert_int_equal(got_unique(), SHARE_SLOTS + i); /* in order */
    }
    assert_false(take());
    assert_int_equal(vq_used(HIPRIO), 1);
    assert_int_equal(vq_used(REQUESTS), 4);
}

static void forget_and_interrupt_have_no_reply(void **state)
{
    request(HIPRIO, 0, FUSE_FORGET, 1, 48, 0);
    assert_true(take());
    assert_int_equal(got.head.reply_max, 0);
    assert_int_equal(vq_used(HIPRIO), 1); /* given back at once */
    request(HIPRIO, 2, FUSE_INTERRUPT, 2, 48, 16);
    assert_true(take());
    assert_int_equal(vq_used(HIPRIO), 2);
    for (uint16_t i = 0; i < 40; i++) { /* more often than there are numbers for requests */
        request(HIPRIO, (uint16_t)(2 * (i % 8)), FUSE_FORGET, 3, 48, 0);
        assert_true(take());
    }
    assert_int_equal(vq_used(HIPRIO), 42);
}

static void the_server_takes_no_more_and_then_does(void **state)
{
    unsigned sent = 0, n = 0;
    struct share_request_head h;

    for (uint16_t i = 0; i < VQ_SIZE; i += 2) {
        request(REQUESTS, i, FUSE_SETXATTR, i, SHARE_INLINE, 64); /* together more than fits */
        sent++;
    }
    for (unsigned round = 0; round < 100 && n < sent; round++) {
        while (mailbox_receive(&server, &got, sizeof got) > 0) {
            assert_int_equal(got_unique(), 2 * n);
            h = got.head;
            answer_raw(h.index, 16, 16, got_unique(), 0, 16);
            n++;
        }
        spin();
    }
    assert_int_equal(n, sent);
    spin();
    assert_int_equal(vq_used(REQUESTS), sent);
}

/* --- the driver breaks them ---------------------------------------------------------------------------------- */

static void a_chain_that_loops(void **state)
{
    put_desc(&drv, VQ_AT(REQUESTS), 0, OUT, 56, NEXT, 1);
    put_desc(&drv, VQ_AT(REQUESTS), 1, OUT, 56, NEXT, 0);
    vq_offer(REQUESTS, 0);
    vq_kick(REQUESTS);
    assert_true(status(&drv) & VIRTIO_NEEDS_RESET);
    assert_false(take());
}

static void lengths_that_wrap(void **state)
{
    put_desc(&drv, VQ_AT(REQUESTS), 0, OUT, 0xffffffff, NEXT, 1);
    put_desc(&drv, VQ_AT(REQUESTS), 1, IN, 0xffffffff, WRITE, 0);
    vq_offer(REQUESTS, 0);
    vq_kick(REQUESTS);
    assert_true(status(&drv) & VIRTIO_NEEDS_RESET);
}

static void an_index_beyond_the_table(void **state)
{
    vq_offer(REQUESTS, VQ_SIZE + 7);
    vq_kick(REQUESTS);
    assert_true(status(&drv) & VIRTIO_NEEDS_RESET);
}

static void what_is_no_request_comes_back_empty(void **state)
{
    uint32_t len;

    request(REQUESTS, 0, FUSE_GETATTR, 1, 39, 4096); /* no whole header */
    request(REQUESTS, 2, FUSE_GETATTR, 1, 56, 0);    /* no room for a reply */
    request(REQUESTS, 4, FUSE_GETATTR, 1, 56, 15);
    request(HIPRIO, 0, FUSE_BATCH_FORGET, 1, 8192, 0);    /* longer than any */
    put_desc(&drv, VQ_AT(REQUESTS), 6, IN, 64, WRITE, 0); /* nothing to read */
    vq_offer(REQUESTS, 6);
    vq_kick(REQUESTS);
    assert_int_equal(vq_used(REQUESTS), 4);
    for (unsigned i = 0; i < 4; i++) {
        vq_take(REQUESTS, &len);
        assert_int_equal(len, 0);
    }
    assert_int_equal(vq_used(HIPRIO), 1);
    assert_false(take());
    assert_false(status(&drv) & VIRTIO_NEEDS_RESET);
}

/* The same pages many times over: 2 MiB and more in one request. */
static void a_request_longer_than_any(void **state)
{
    uint32_t len;
    const struct fuse_in_header in = {.len = 3 << 20, .opcode = FUSE_WRITE};

    memory_write(fx.memory, BIG, &in, sizeof in);
    for (unsigned i = 0; i < 3; i++)
        put_desc(&drv, VQ_AT(REQUESTS), i, BIG, 0x80000, NEXT, (uint16_t)(i + 1));
    put_desc(&drv, VQ_AT(REQUESTS), 3, IN, 64, WRITE, 0);
    vq_offer(REQUESTS, 0);
    vq_kick(REQUESTS);
    assert_int_equal(vq_used(REQUESTS), 1);
    vq_take(REQUESTS, &len);
    assert_int_equal(len, 0);
    assert_false(take());
}

static void a_request_is_fetched_once(void **state)
{
    struct fuse_in_header in;

    request(REQUESTS, 0, FUSE_GETATTR, 7, 56, 4096);
    in = (struct fuse_in_header){.len = 9999, .opcode = FUSE_UNLINK, .unique = 8};
    memory_write(fx.memory, OUT, &in, sizeof in); /* too late */
    assert_true(take());
    assert_int_equal(((struct fuse_in_header *)got.bytes)->opcode, FUSE_GETATTR);
    answer(16);
    spin();
    assert_int_equal(vq_used(REQUESTS), 1);
    assert_int_equal(result(IN).unique, 7);
}

static void a_reset_in_the_middle_of_a_request(void **state)
{
    uint32_t old;

    request(REQUESTS, 0, FUSE_READ, 7, 80, 0x3000);
    assert_true(take());
    old = got.head.index;
    uint32_t session = got.head.session;
    vq_start(FEATURES_ALL, 2);
    memset(memory_hva(fx.memory, IN, 4096), 0, 4096);
    assert_true(take());
    assert_int_equal(got.head.kind, SHARE_RESET);
    assert_int_equal(got.head.session, session + 1);
    answer_raw(old, 16, 16, 7, -EIO, 16); /* the answer to the old one */
    spin();
    assert_int_equal(vq_used(REQUESTS), 0);
    assert_int_equal(result(IN).error, 0);
    request(REQUESTS, 0, FUSE_INIT, 8, 104, 4096);
    assert_true(take());
    assert_int_equal(got.head.session, session + 1);
    answer(80);
    spin();
    assert_int_equal(vq_used(REQUESTS), 1);
}

static void a_reset_while_requests_wait_for_slots(void **state)
{
    for (uint16_t i = 0; i < SHARE_SLOTS + 8; i++)
        request(REQUESTS, (uint16_t)(2 * i), FUSE_READ, i, 80, 0x3000);
    vq_start(FEATURES_ALL, 2);
    unsigned n = 0;
    uint32_t index[SHARE_SLOTS];
    while (take())
        if (got.head.kind == SHARE_FUSE)
            index[n++] = got.head.index;
    assert_int_equal(n, SHARE_SLOTS); /* those that waited are gone */
    for (unsigned i = 0; i < n; i++)
        answer_raw(index[i], 16, 16, i, 0, 16);
    spin();
    assert_int_equal(vq_used(REQUESTS), 0);
    for (uint16_t i = 0; i < SHARE_SLOTS; i++) { /* and all slots are there again */
        request(REQUESTS, (uint16_t)(2 * i), FUSE_READ, i, 80, 0x3000);
        assert_true(take());
    }
}

static void a_reply_into_the_devices_own_registers(void **state)
{
    /* buffers must be RAM: a device's window is none */
    put_desc(&drv, VQ_AT(REQUESTS), 0, OUT, 56, NEXT, 1);
    put_desc(&drv, VQ_AT(REQUESTS), 1, drv.notify, 64, WRITE, 0);
    vq_offer(REQUESTS, 0);
    vq_kick(REQUESTS);
    assert_true(status(&drv) & VIRTIO_NEEDS_RESET);
    assert_false(take());
}

/* Another processor of the guest, as quick as the device: each chain that comes back is offered again. */
static unsigned refills;
static void refill(void *opaque, uint64_t gpa, uint64_t len)
{
    if (gpa == VQ_AT(REQUESTS) + 0x2002 && refills < 5000) {
        refills++;
        vq_offer(REQUESTS, 0);
    }
}

static bool refilled(void *opaque)
{
    return refills == 5000;
}

static void a_driver_that_refills_does_not_keep_the_device(void **state)
{
    refills = 0;
    fx.bus->dma_dirty = refill;
    request(REQUESTS, 0, FUSE_GETATTR, 1, 39, 4096); /* comes back at once */
    assert_in_range(refills, 100, 1000);
    assert_true(spin_until(refilled, NULL, 2000)); /* the rest from the loop, pass by pass */
    refills = 0;
    vq_offer(REQUESTS, 0);
    vq_kick(REQUESTS);
    vq_start(FEATURES_ALL, 2);
    unsigned before = refills;
    spin();
    assert_int_equal(refills, before); /* a reset ends it */
}

static bool dirty;
static void on_dirty(void *opaque, uint64_t gpa, uint64_t len)
{
    dirty |= gpa <= IN && IN + 16 <= gpa + len;
}

static void translations_are_told(void **state)
{
    dirty = false;
    fx.bus->dma_dirty = on_dirty;
    request(REQUESTS, 0, FUSE_GETATTR, 7, 56, 4096);
    assert_true(take());
    answer(16);
    spin();
    assert_true(dirty);
}

/* --- the server breaks them ---------------------------------------------------------------------------------- */

static void a_reply_to_nothing_is_ignored(void **state)
{
    request(REQUESTS, 0, FUSE_GETATTR, 7, 56, 4096);
    assert_true(take());
    uint32_t index = got.head.index;
    answer_raw(index + 1, 16, 16, 7, 0, 16);
    answer_raw(UINT32_MAX, 16, 16, 7, 0, 16);
    answer_raw(SHARE_CALLS_MAX, 16, 16, 7, 0, 16);
    spin();
    assert_int_equal(vq_used(REQUESTS), 0);
    answer(16);
    answer(16); /* twice */
    spin();
    assert_int_equal(vq_used(REQUESTS), 1);
}

static void a_wrong_reply_is_an_io_error(void **state)
{
    static const struct {
        uint32_t length, claimed;
        uint64_t unique;
        size_t here;
    } wrong[] = {
        {16, 16, 8, 16},       /* to another request */
        {16, 400, 7, 16},      /* says another length */
        {400, 400, 7, 16},     /* rest in a slot that it has not got */
        {8, 16, 7, 16},        /* shorter than it is */
        {4000, 4000, 7, 4000}, /* longer than the room */
        {UINT32_MAX, UINT32_MAX, 7, 16},
        {16, 16, 7, 8}, /* no whole header */
        {16, 16, 7, 40},
    };

    for (unsigned i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        request(REQUESTS, 0, FUSE_GETATTR, 7, 56, 2000);
        assert_true(take());
        answer_raw(got.head.index, wrong[i].length, wrong[i].claimed, wrong[i].unique, 0, wrong[i].here);
        spin();
        assert_int_equal(vq_used(REQUESTS), 1);
        uint32_t len;
        vq_take(REQUESTS, &len);
        assert_int_equal(len, 16);
        assert_int_equal(result(IN).error, -EIO);
        assert_int_equal(result(IN).unique, 7);
    }
}

static void a_dead_server_is_an_io_error(void **state)
{
    request(REQUESTS, 0, FUSE_GETATTR, 7, 56, 4096);
    for (uint16_t i = 1; i < SHARE_SLOTS + 5; i++)
        request(REQUESTS, (uint16_t)(2 * i), FUSE_READ, i, 80, 0x3000);
    close(server.fd);
    server.fd = -1;
    spin();
    assert_int_equal(vq_used(REQUESTS), SHARE_SLOTS + 5);
    assert_int_equal(result(IN).error, -EIO);
    while (vq_used(REQUESTS))
        vq_take(REQUESTS, NULL);
    request(REQUESTS, 2, FUSE_GETATTR, 9, 56, 4096);
    assert_int_equal(vq_used(REQUESTS), 1);
    assert_int_equal(result(in_at(2)).error, -EIO);
    assert_int_equal(result(in_at(2)).unique, 9);
    request(HIPRIO, 0, FUSE_FORGET, 1, 48, 0);
    assert_int_equal(vq_used(HIPRIO), 1);
    vq_start(FEATURES_ALL, 2); /* the device as such lives on */
}

static void reset_and_restore(void **state)
{
    const struct device_class *class = &virtio_fs_class;
    uint8_t *saved = malloc(class->save_size);

    memcpy(saved, (char *)dev.state + class->save_offset, class->save_size);
    class->reset(&dev);
    assert_int_equal(cfg_in(&fx, 1, PCI_COMMAND, 2), 0);
    memcpy((char *)dev.state + class->save_offset, saved, class->save_size);
    class->post_restore(&dev);
    while (take())
        ;
    request(REQUESTS, 0, FUSE_GETATTR, 7, 56, 4096);
    assert_true(take());
    free(saved);
}

static void garbage_as_state(void **state)
{
    const struct device_class *class = &virtio_fs_class;
    uint8_t *saved = (uint8_t *)dev.state + class->save_offset;
    unsigned seed = 1;

    for (unsigned round = 0; round < 50; round++) {
        for (size_t i = 0; i < class->save_size; i++)
            saved[i] = (uint8_t)rand_r(&seed);
        class->post_restore(&dev);
        for (unsigned q = 0; q < 4; q++)
            vq_kick(q);
        class->reset(&dev);
    }
    driver_find(&drv, &fx, 1);
}

/* --- words
 * ----------------------------------------------------------------------------------------------------------------------
 */

static void words_are_taken_apart(void **state)
{
    struct share_words w;
    char err[512], tag[SHARE_TAG_SIZE];

    assert_int_equal(share_parse("/tmp", &w, err, sizeof err), 0);
    assert_string_equal(w.directory, "/tmp");
    assert_null(w.path);
    assert_false(w.read_only);
    assert_int_equal(share_parse("dir:/mnt/x:ro:mounts", &w, err, sizeof err), 0);
    assert_string_equal(w.directory, "dir");
    assert_string_equal(w.path, "/mnt/x");
    assert_true(w.read_only && w.mounts);
    assert_int_equal(share_parse("dir:locks", &w, err, sizeof err), 0);
    assert_true(w.locks && !w.mounts && !w.read_only);
    assert_int_equal(share_parse("/:ro", &w, err, sizeof err), 0);
    assert_true(w.read_only && !w.path);
    assert_int_equal(share_parse("", &w, err, sizeof err), -EINVAL);
    assert_int_equal(share_parse(":/mnt", &w, err, sizeof err), -EINVAL);
    assert_int_equal(share_parse("/a:mnt", &w, err, sizeof err), -EINVAL);
    assert_int_equal(share_parse("/a:/mnt:/srv", &w, err, sizeof err), -EINVAL);
    assert_int_equal(share_parse("/a:/mnt/../etc", &w, err, sizeof err), -EINVAL);
    assert_int_equal(share_parse("/a:/mnt/..x", &w, err, sizeof err), 0);
    assert_int_equal(share_check("/", err, sizeof err), 0);
    assert_int_equal(share_check("/no/such", err, sizeof err), -ENOENT);
    assert_int_equal(share_check("/proc/version", err, sizeof err), -ENOTDIR);
    assert_non_null(strstr(err, "/proc/version is not a directory"));
    share_tag(tag, 12);
    assert_string_equal(tag, "share12");
}

#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
int main(void)
{
    const struct CMUnitTest tests[] = {
        T(the_tag_and_the_number_of_queues),
        T(a_request_goes_and_its_reply_comes),
        T(replies_come_in_any_order),
        T(bulk_travels_in_a_slot),
        T(slots_run_out_and_small_requests_pass),
        T(forget_and_interrupt_have_no_reply),
        T(the_server_takes_no_more_and_then_does),
        T(a_chain_that_loops),
        T(lengths_that_wrap),
        T(an_index_beyond_the_table),
        T(what_is_no_request_comes_back_empty),
        T(a_request_longer_than_any),
        T(a_request_is_fetched_once),
        T(a_reset_in_the_middle_of_a_request),
        T(a_reset_while_requests_wait_for_slots),
        T(a_reply_into_the_devices_own_registers),
        T(a_driver_that_refills_does_not_keep_the_device),
        T(translations_are_told),
        T(a_reply_to_nothing_is_ignored),
        T(a_wrong_reply_is_an_io_error),
        T(a_dead_server_is_an_io_error),
        T(reset_and_restore),
        T(garbage_as_state),
        cmocka_unit_test(words_are_taken_apart),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
