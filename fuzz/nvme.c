/*
 * The NVMe controller: registers, doorbells, commands in its queues, memory behind its back, a disk that takes its
 * time. The controller is ready and has one pair of I/O queues when the input begins, so that the input need not find
 * that.
 */
#include "fixture.h"

#include "devices/nvme/nvme.h"
#include "devices/nvme/nvme_int.h"
#include "mock_disk.h"

#define ASQ 0x1000u
#define ACQ 0x2000u
#define IOSQ 0x3000u
#define IOCQ 0x4000u
#define ENTRIES 16u
#define STEPS_MAX 200u

enum {
    STEP_COMMAND,
    STEP_DOORBELL,
    STEP_REGISTER,
    STEP_MEMORY,
    STEP_RELEASE,
    STEP_CONFIG,
    STEP_READ,
    STEP_SAVE,
    STEPS
};

struct target {
    struct fuzz_machine m;
    struct mock_disk disk;
    struct device dev;
    uint64_t regs;
    unsigned tail[2];
};

static void write_reg(struct target *t, uint64_t at, uint64_t value, unsigned size)
{
    bus_write(t->m.bus, BUS_MEM, t->regs + at, value, size);
}

static void put(struct target *t, unsigned q, const struct nvme_command *c)
{
    fuzz_put(&t->m, (q ? IOSQ : ASQ) + 64 * t->tail[q], c, sizeof *c);
    t->tail[q] = (t->tail[q] + 1) % ENTRIES;
    write_reg(t, 0x1000 + 8 * q, t->tail[q], 4);
}

static void begin(struct target *t)
{
    const struct nvme_command cq = {.opcode = 5, .prp1 = IOCQ, .cdw10 = (ENTRIES - 1) << 16 | 1, .cdw11 = 3};
    const struct nvme_command sq = {.opcode = 1, .prp1 = IOSQ, .cdw10 = (ENTRIES - 1) << 16 | 1, .cdw11 = 1 << 16 | 1};

    bus_write(t->m.bus, BUS_MEM, FUZZ_SLOT_CONFIG + PCI_COMMAND, PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER, 2);
    t->regs = fuzz_bar(&t->m, 0);
    t->tail[0] = t->tail[1] = 0;
    write_reg(t, 0x24, (ENTRIES - 1) << 16 | (ENTRIES - 1), 4);
    write_reg(t, 0x28, ASQ, 8);
    write_reg(t, 0x30, ACQ, 8);
    write_reg(t, 0x14, 0x460001, 4);
    put(t, 0, &cq);
    put(t, 0, &sq);
}

/* Half of the fields come from the input, the rest is such that more than the first check is passed. */
static void step_command(struct target *t, struct fuzz_input *in)
{
    uint8_t how = fuzz_u8(in);
    struct nvme_command c = {.opcode = fuzz_u8(in), .nsid = 1, .cid = fuzz_u8(in)};

    c.prp1 = how & 1 ? fuzz_u64(in) : (uint64_t)fuzz_u8(in) << 12;
    c.prp2 = how & 2 ? fuzz_u64(in) : (uint64_t)fuzz_u8(in) << 11;
    c.cdw10 = how & 4 ? fuzz_u32(in) : fuzz_u8(in);
    c.cdw11 = how & 8 ? fuzz_u32(in) : 0;
    c.cdw12 = how & 16 ? fuzz_u32(in) : fuzz_u8(in);
    if (how & 32) {
        c.flags = fuzz_u8(in);
        c.nsid = fuzz_u32(in);
        c.cdw13 = fuzz_u32(in);
    }
    put(t, how >> 7, &c);
}

static void step_memory(struct target *t, struct fuzz_input *in)
{
    uint8_t bytes[64];
    uint8_t page = fuzz_u8(in), len = fuzz_u8(in) % sizeof bytes;
    uint64_t at = (uint64_t)page << 12 | (fuzz_u16(in) & 0xff8);

    fuzz_bytes(in, bytes, len);
    fuzz_put(&t->m, at, bytes, len);
}

/* Saves, changes a few of the bytes, restores: a state file from a stranger. */
static void step_save(struct target *t, struct fuzz_input *in)
{
    uint8_t *state = (uint8_t *)t->dev.state + nvme_class.save_offset;

    nvme_class.pre_save(&t->dev);
    for (unsigned n = fuzz_u8(in) % 8; n; n--) {
        size_t at = sizeof(struct pci_state) + fuzz_u16(in) % (nvme_class.save_size - sizeof(struct pci_state));
        state[at] = fuzz_u8(in);
    }
    nvme_class.post_restore(&t->dev);
}

static void step(struct target *t, struct fuzz_input *in)
{
    uint8_t kind = fuzz_u8(in);

    t->disk.hold = kind & 0x80;
    t->disk.fail[(kind >> 4) % MOCK_OPS] = kind & 0x40 ? -EIO : 0;
    switch (kind % STEPS) {
    case STEP_COMMAND:
        step_command(t, in);
        break;
    case STEP_DOORBELL:
        write_reg(t, 0x1000 + 4 * (fuzz_u8(in) % 40), fuzz_u16(in), 4);
        break;
    case STEP_REGISTER:
        write_reg(t, fuzz_u8(in) % 0x40, fuzz_u64(in), 1u << fuzz_u8(in) % 4);
        break;
    case STEP_MEMORY:
        step_memory(t, in);
        break;
    case STEP_RELEASE:
        mock_release(&t->disk);
        break;
    case STEP_CONFIG:
        bus_write(t->m.bus, BUS_MEM, FUZZ_SLOT_CONFIG + fuzz_u8(in), fuzz_u32(in), 4);
        break;
    case STEP_READ:
        bus_read(t->m.bus, BUS_MEM, t->regs + fuzz_u16(in) % 0x4000, 1u << fuzz_u8(in) % 4);
        break;
    case STEP_SAVE:
        step_save(t, in);
        break;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct target t;
    struct fuzz_input in = {data, size};

    fuzz_machine_ready(&t.m);
    mock_open(&t.disk, 64 << 10);
    struct nvme_config config = {.disk = &t.disk.disk};
    t.dev = (struct device){.name = "nvme", .class = &nvme_class};
    assert_int_equal(nvme_class.create(&t.dev, &t.m.env, &config), 0);
    begin(&t);
    for (unsigned i = 0; i < STEPS_MAX && in.left; i++)
        step(&t, &in);
    nvme_class.destroy(&t.dev);
    assert_true(t.disk.closed && !t.disk.disk.in_flight);
    mock_free(&t.disk);
    return 0;
}
