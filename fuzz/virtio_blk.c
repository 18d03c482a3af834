/*
 * virtio-blk: descriptors, rings and requests, registers, a disk that takes its time.  The device is ready with one
 * queue when the input begins.
 */
#include "fixture.h"

#include <errno.h>

#include "devices/virtio/blk.h"
#include "devices/virtio/virtio.h"
#include "mock_disk.h"

#define DESC 0x1000u
#define AVAIL 0x2000u
#define USED 0x3000u
#define HEADERS 0x4000u
#define ENTRIES 16u
#define STEPS_MAX 200u

enum {
    STEP_REQUEST,
    STEP_DESCRIPTOR,
    STEP_OFFER,
    STEP_MEMORY,
    STEP_RELEASE,
    STEP_REGISTER,
    STEP_CONFIG,
    STEP_SAVE,
    STEPS
};

struct target {
    struct fuzz_machine m;
    struct mock_disk disk;
    struct device dev;
    uint64_t regs;
    uint16_t avail;
};

static void reg(struct target *t, uint64_t at, uint64_t value, unsigned size)
{
    bus_write(t->m.bus, BUS_MEM, t->regs + at, value, size);
}

static void put(struct target *t, uint64_t at, const void *data, size_t len)
{
    fuzz_put(&t->m, at, data, len);
}

/* Windows of BAR 0: common configuration at 0, notifications at 0x3000 (devices/virtio/transport.c). */
static void begin(struct target *t, uint64_t features)
{
    bus_write(t->m.bus, BUS_MEM, FUZZ_SLOT_CONFIG + PCI_COMMAND, PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER, 2);
    t->regs = fuzz_bar(&t->m, 0);
    t->avail = 0;
    reg(t, 20, 3, 1);
    for (unsigned i = 0; i < 2; i++) {
        reg(t, 8, i, 4);
        reg(t, 12, (uint32_t)(features >> 32 * i), 4);
    }
    reg(t, 20, 11, 1);
    reg(t, 24, ENTRIES, 2);
    reg(t, 32, DESC, 8);
    reg(t, 40, AVAIL, 8);
    reg(t, 48, USED, 8);
    reg(t, 28, 1, 2);
    reg(t, 20, 15, 1);
}

static void descriptor(struct target *t, unsigned i, uint64_t addr, uint32_t len, uint16_t flags, uint16_t next)
{
    uint64_t at = DESC + 16 * (i % ENTRIES);

    put(t, at, &addr, 8);
    put(t, at + 8, &len, 4);
    put(t, at + 12, &flags, 2);
    put(t, at + 14, &next, 2);
}

static void offer(struct target *t, uint16_t head)
{
    put(t, AVAIL + 4 + 2 * (t->avail % ENTRIES), &head, 2);
    t->avail++;
    put(t, AVAIL + 2, &t->avail, 2);
}

/* A request that is nearly right. */
static void step_request(struct target *t, struct fuzz_input *in)
{
    uint8_t how = fuzz_u8(in), slot = fuzz_u8(in) % 5;
    struct {
        uint32_t type, reserved;
        uint64_t sector;
    } header = {fuzz_u8(in) % 16, 0, how & 1 ? fuzz_u64(in) : fuzz_u8(in)};
    uint32_t len = how & 2 ? fuzz_u32(in) : 512u * (fuzz_u8(in) % 8);
    uint16_t first = (uint16_t)(slot * 3), write = how & 4 ? 2 : 0;

    put(t, HEADERS + slot * 16, &header, sizeof header);
    descriptor(t, first, HEADERS + slot * 16, how & 8 ? fuzz_u8(in) : 16, 1, (uint16_t)(first + 1));
    descriptor(t, first + 1u, how & 16 ? fuzz_u64(in) : (uint64_t)fuzz_u8(in) << 12, len, 1 | write,
               (uint16_t)(first + 2));
    descriptor(t, first + 2u, 0x8000u + slot, 1, 2, 0);
    offer(t, first);
    reg(t, 0x3000, 0, 2);
}

static void step(struct target *t, struct fuzz_input *in)
{
    uint8_t kind = fuzz_u8(in), bytes[64], len;

    t->disk.hold = kind & 0x80;
    t->disk.fail[(kind >> 4) % MOCK_OPS] = kind & 0x40 ? -EIO : 0;
    switch (kind % STEPS) {
    case STEP_REQUEST:
        step_request(t, in);
        break;
    case STEP_DESCRIPTOR:
        descriptor(t, fuzz_u8(in), fuzz_u32(in), fuzz_u32(in), fuzz_u8(in) & 7, fuzz_u8(in));
        break;
    case STEP_OFFER:
        offer(t, fuzz_u8(in));
        reg(t, 0x3000 + 4 * (fuzz_u8(in) % 10), 0, 2);
        break;
    case STEP_MEMORY:
        len = fuzz_u8(in) % sizeof bytes;
        fuzz_bytes(in, bytes, len);
        put(t, fuzz_u16(in), bytes, len);
        break;
    case STEP_RELEASE:
        mock_release(&t->disk);
        break;
    case STEP_REGISTER:
        reg(t, fuzz_u16(in) & 0x203f, fuzz_u64(in), 1u << fuzz_u8(in) % 4);
        break;
    case STEP_CONFIG:
        if (kind & 8)
            bus_read(t->m.bus, BUS_MEM, t->regs + fuzz_u16(in) % 0x4000, 1u << fuzz_u8(in) % 4);
        else
            bus_write(t->m.bus, BUS_MEM, FUZZ_SLOT_CONFIG + fuzz_u8(in), fuzz_u32(in), 4);
        break;
    case STEP_SAVE:
        virtio_blk_class.pre_save(&t->dev);
        for (unsigned n = fuzz_u8(in) % 8; n; n--) {
            size_t at = sizeof(struct pci_state) +
                        fuzz_u16(in) % (virtio_blk_class.save_size - sizeof(struct pci_state));
            ((uint8_t *)t->dev.state)[virtio_blk_class.save_offset + at] = fuzz_u8(in);
        }
        virtio_blk_class.post_restore(&t->dev);
        break;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct target t;
    struct fuzz_input in = {data, size};

    fuzz_machine_ready(&t.m);
    mock_open(&t.disk, 64 << 10);
    t.disk.disk.read_only = fuzz_u8(&in) == 1;
    struct blk_config config = {.disk = &t.disk.disk};
    t.dev = (struct device){.name = "blk", .class = &virtio_blk_class};
    assert_int_equal(virtio_blk_class.create(&t.dev, &t.m.env, &config), 0);
    begin(&t, 1ull << VIRTIO_F_VERSION_1 | 1ull << VIRTIO_F_INDIRECT_DESC | (uint64_t)fuzz_u8(&in) << 9);
    for (unsigned i = 0; i < STEPS_MAX && in.left; i++)
        step(&t, &in);
    virtio_blk_class.destroy(&t.dev);
    assert_true(t.disk.closed && !t.disk.disk.in_flight);
    mock_free(&t.disk);
    return 0;
}
