/*
 * virtio-fs and the VM process's end of the file server: a hostile driver on one side, a hostile server on the other.
 * The device is live when the input begins.
 */
#include "fixture.h"

#include <fcntl.h>
#include <linux/fuse.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "backends/share.h"
#include "devices/virtio/fs.h"
#include "devices/virtio/virtio.h"
#include "sockets.h"

#define RING(q) (0x1000ull + 0x4000ull * (q)) /* table, then available and used rings */
#define RING_SIZE 64u
#define DATA 0x20000ull
#define STEPS_MAX 200u

enum {
    STEP_REQUEST,
    STEP_RAW,
    STEP_SERVER,
    STEP_ANSWER,
    STEP_REGISTER,
    STEP_MEMORY,
    STEP_RESET,
    STEP_SAVE,
    STEP_RING,
    STEPS
};

struct target {
    struct fuzz_machine m;
    struct device dev;
    uint64_t regs;
    struct mailbox server;
    uint16_t avail[2];
    uint32_t last_index;
    uint64_t last_unique;
};

static void write_reg(struct target *t, uint64_t at, uint64_t value, unsigned size)
{
    bus_write(t->m.bus, BUS_MEM, t->regs + at, value, size);
}

static void start(struct target *t)
{
    bus_write(t->m.bus, BUS_MEM, FUZZ_SLOT_CONFIG + PCI_COMMAND, PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER, 2);
    t->regs = fuzz_bar(&t->m, 0);
    write_reg(t, 20, 0, 1);
    write_reg(t, 20, VIRTIO_ACKNOWLEDGE | VIRTIO_DRIVER, 1);
    for (unsigned i = 0; i < 2; i++) {
        write_reg(t, 8, i, 4);
        write_reg(t, 12, i ? 1 : 1u << VIRTIO_F_INDIRECT_DESC | 1u << VIRTIO_F_EVENT_IDX, 4);
    }
    write_reg(t, 20, VIRTIO_ACKNOWLEDGE | VIRTIO_DRIVER | VIRTIO_FEATURES_OK, 1);
    for (unsigned q = 0; q < 2; q++) {
        write_reg(t, 22, q, 2);
        write_reg(t, 24, RING_SIZE, 2);
        write_reg(t, 32, RING(q), 8);
        write_reg(t, 40, RING(q) + 0x1000, 8);
        write_reg(t, 48, RING(q) + 0x2000, 8);
        write_reg(t, 28, 1, 2);
        t->avail[q] = 0;
    }
    write_reg(t, 20, VIRTIO_ACKNOWLEDGE | VIRTIO_DRIVER | VIRTIO_FEATURES_OK | VIRTIO_DRIVER_OK, 1);
}

static void put_desc(struct target *t, unsigned q, unsigned i, uint64_t at, uint32_t len, uint16_t flags, uint16_t next)
{
    const struct {
        uint64_t at;
        uint32_t len;
        uint16_t flags, next;
    } d = {at, len, flags, next};
    fuzz_put(&t->m, RING(q) + 16ull * (i % RING_SIZE), &d, sizeof d);
}

static void offer(struct target *t, unsigned q, uint16_t head)
{
    uint16_t idx = (uint16_t)(t->avail[q] + 1);
    fuzz_put(&t->m, RING(q) + 0x1004 + 2ull * (t->avail[q] % RING_SIZE), &head, 2);
    fuzz_put(&t->m, RING(q) + 0x1002, &idx, 2);
    t->avail[q] = idx;
    write_reg(t, 0x3000 + 4 * q, q, 2);
}

static void step_request(struct target *t, struct fuzz_input *in)
{
    unsigned q = fuzz_u8(in) & 1, i = fuzz_u8(in) & 30;
    uint32_t length = fuzz_u16(in), room = fuzz_u16(in);
    const struct fuse_in_header h = {.len = length, .opcode = fuzz_u8(in) % 52, .unique = fuzz_u8(in)};

    fuzz_put(&t->m, DATA, &h, sizeof h);
    put_desc(t, q, i, DATA, length * (h.opcode == FUSE_WRITE ? 8 : 1), room ? 1 : 0, (uint16_t)(i + 1));
    put_desc(t, q, i + 1, DATA + 0x10000, room, 2, 0);
    offer(t, q, (uint16_t)i);
}

static void step_raw(struct target *t, struct fuzz_input *in)
{
    unsigned q = fuzz_u8(in) & 1;
    for (unsigned n = fuzz_u8(in) % 6, i = fuzz_u8(in) % RING_SIZE; n; n--, i++)
        put_desc(t, q, i, fuzz_u32(in) % (FUZZ_RAM + 4096), fuzz_u32(in) >> (fuzz_u8(in) % 32), fuzz_u8(in) & 7,
                 fuzz_u8(in));
    offer(t, q, fuzz_u8(in));
}

/* The other end reads all there is, and remembers one to answer. */
static void drain(struct target *t)
{
    struct {
        struct share_request_head head;
        uint8_t bytes[SHARE_INLINE];
    } p;

    while (mailbox_receive(&t->server, &p, sizeof p) > 0)
        if (p.head.kind == SHARE_FUSE && p.head.reply_max) {
            t->last_index = p.head.index;
            memcpy(&t->last_unique, p.bytes + 8, 8);
        }
}

static void step_answer(struct target *t, struct fuzz_input *in, bool honest)
{
    struct {
        struct share_reply_head head;
        struct fuse_out_header out;
        uint8_t bytes[SHARE_INLINE];
    } p = {.head = {.index = t->last_index}};

    drain(t);
    p.head.index = honest ? t->last_index : fuzz_u32(in) % 1100;
    p.head.length = honest ? 16 + fuzz_u8(in) : fuzz_u32(in) >> fuzz_u8(in) % 32;
    p.out.len = honest ? p.head.length : fuzz_u32(in);
    p.out.unique = honest ? t->last_unique : fuzz_u8(in);
    size_t here = honest ? p.head.length : 1 + fuzz_u16(in) % (sizeof p - 1);
    const struct iovec piece = {&p, honest ? sizeof p.head + here : here};
    mailbox_send(&t->server, &piece, 1);
    loop_run(t->m.loop);
}

/* The other end writes what it likes where the counters are, or into a message. */
static void step_ring(struct target *t, struct fuzz_input *in)
{
    uint8_t how = fuzz_u8(in);
    struct mailbox_ring *r = how & 1 ? t->server.out : t->server.in;
    _Atomic uint32_t *words[] = {&r->written, &r->wants_room, &r->read, &r->asleep};
    uint32_t value = fuzz_u16(in);

    if (how & 2)
        atomic_fetch_add(words[how >> 2 & 3], value - 0x8000);
    else
        r->bytes[value] = how;
    mailbox_wake(&t->server);
    loop_run(t->m.loop);
}

static void step_save(struct target *t, struct fuzz_input *in)
{
    uint8_t *state = (uint8_t *)t->dev.state + virtio_fs_class.save_offset;

    for (unsigned n = fuzz_u8(in) % 8; n; n--) {
        size_t at = sizeof(struct pci_state) + fuzz_u16(in) % (virtio_fs_class.save_size - sizeof(struct pci_state));
        state[at] = fuzz_u8(in);
    }
    virtio_fs_class.post_restore(&t->dev);
}

static void step(struct target *t, struct fuzz_input *in)
{
    uint8_t bytes[64];

    switch (fuzz_u8(in) % STEPS) {
    case STEP_REQUEST:
        step_request(t, in);
        break;
    case STEP_RAW:
        step_raw(t, in);
        break;
    case STEP_SERVER:
        step_answer(t, in, false);
        break;
    case STEP_ANSWER:
        step_answer(t, in, true);
        break;
    case STEP_REGISTER:
        write_reg(t, fuzz_u16(in) % 0x3010, fuzz_u64(in), 1u << fuzz_u8(in) % 4);
        break;
    case STEP_MEMORY:
        fuzz_bytes(in, bytes, sizeof bytes);
        fuzz_put(&t->m, fuzz_u16(in), bytes, sizeof bytes);
        break;
    case STEP_RESET:
        start(t);
        break;
    case STEP_SAVE:
        step_save(t, in);
        break;
    case STEP_RING:
        step_ring(t, in);
        break;
    }
}

/* One file for all inputs, empty for each. */
static int ready_arena(uint8_t **mapped)
{
    static int fd = -1;
    static uint8_t *arena;

    if (fd < 0) {
        fd = memfd_create("arena", MFD_CLOEXEC);
        assert_true(fd >= 0 && ftruncate(fd, SHARE_ARENA_SIZE) == 0);
        arena = mmap(NULL, SHARE_ARENA_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        assert_true(arena != MAP_FAILED);
    }
    *mapped = arena;
    assert_true(!fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, SHARE_ARENA_SIZE));
    return dup(fd);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct target t;
    struct fuzz_input in = {data, size};
    struct share *share;
    uint8_t *arena;
    int pair[2];

    fuzz_machine_ready(&t.m);
    assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair), 0);
    assert_int_equal(share_adopt(&share, pair[0], ready_arena(&arena), t.m.loop), 0);
    mailbox_init(&t.server, arena + SHARE_MAILBOX, pair[1], 1);
    const struct virtio_fs_config config = {.share = share, .tag = "share0"};
    t.dev = (struct device){.name = "share", .class = &virtio_fs_class};
    assert_int_equal(virtio_fs_class.create(&t.dev, &t.m.env, &config), 0);
    start(&t);
    for (unsigned i = 0; i < STEPS_MAX && in.left; i++)
        step(&t, &in);
    virtio_fs_class.destroy(&t.dev);
    close(t.server.fd);
    assert_true(!sockets_open());
    return 0;
}
