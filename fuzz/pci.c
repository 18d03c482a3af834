/*
 * PCI and virtio's transport: configuration space by both ways, BARs that move onto each other, MSI-X tables, the
 * registers behind them, and a saved state of all that. Two functions: a virtio device that uses everything the
 * transport has, and a plain one with BARs of each kind and as many vectors as there can be.
 */
#include "loop.h"

#include "driver.h"

#define STEPS_MAX 100u
#define QUEUES 4u
#define CONFIG 24u

enum {
    STEP_ECAM = DRIVER_STEPS,
    STEP_PORTS,
    STEP_BAR,
    STEP_MSIX,
    STEP_MOVE,
    STEP_WINDOW,
    STEP_WISH,
    STEP_RESTORE,
    STEPS
};

struct target {
    struct fuzz_machine m;
    struct virtio_device virtio;
    struct virtio_state state;
    uint8_t config[CONFIG];
    bool busy;
    struct pci_function plain;
    struct pci_state plain_state;
    struct driver driver;
};
static struct target t;

/* --- the functions ----------------------------------------------------------------------------------------------- */

static void config_read(struct virtio_device *v, uint32_t offset, void *buf, unsigned size)
{
    assert_true(offset < CONFIG && size <= CONFIG - offset);
    memcpy(buf, t.config + offset, size);
}
static void config_write(struct virtio_device *v, uint32_t offset, const void *buf, unsigned size)
{
    assert_true(offset < CONFIG && size <= CONFIG - offset);
    memcpy(t.config + offset, buf, size);
}

/* Copies what it can read to where it can write. */
static void notify(struct virtio_device *v, unsigned q)
{
    struct virtio_chain chain;
    uint8_t bytes[64];

    assert_true(q < QUEUES && virtio_live(v));
    for (unsigned i = 0; i < 2 * RING_SIZE && virtio_pop(v, q, &chain) > 0; i++) {
        size_t n = virtio_chain_read(v, &chain, 0, bytes, sizeof bytes);
        n = virtio_chain_write(v, &chain, 0, bytes, n);
        virtio_push(v, &chain, (uint32_t)n);
    }
    virtio_rearm(v, q);
    virtio_signal(v, q);
}
static bool busy(struct virtio_device *v)
{
    return t.busy;
}
static void quiet(struct virtio_device *v) {}

static const struct virtio_ops ops = {.name = "fuzz",
                                      .device_id = 42,
                                      .class_code = 0x00ff00,
                                      .n_queues = QUEUES,
                                      .queue_size = 64,
                                      .features = 0xff,
                                      .config_size = CONFIG,
                                      .config_read = config_read,
                                      .config_write = config_write,
                                      .notify = notify,
                                      .started = quiet,
                                      .reset = quiet,
                                      .busy = busy};

static uint64_t bar_read(void *opaque, uint64_t offset, unsigned size)
{
    assert_true(offset < *(const uint64_t *)opaque && size <= *(const uint64_t *)opaque - offset);
    return offset;
}
static void bar_write(void *opaque, uint64_t offset, uint64_t value, unsigned size)
{
    assert_true(offset < *(const uint64_t *)opaque && size <= *(const uint64_t *)opaque - offset);
}
static const struct bus_ops bar_ops = {bar_read, bar_write};

static void add_plain(void)
{
    static const struct pci_identity id = {.vendor = 0x1234, .device = 0x5678, .class_code = 0xff0000, .intx = true};
    static uint64_t sizes[] = {0x20, 0x100, 0x4000};

    pci_function_init(&t.plain, &t.plain_state, "plain", &id);
    pci_bar_init(&t.plain, 0, PCI_BAR_PORT, sizes[0], &bar_ops, &sizes[0]);
    pci_bar_init(&t.plain, 1, PCI_BAR_MEM32, sizes[1], &bar_ops, &sizes[1]);
    pci_bar_init(&t.plain, 2, PCI_BAR_MEM64, sizes[2], &bar_ops, &sizes[2]);
    pci_msix_init(&t.plain, 4, PCI_MSIX_MAX);
    assert_int_equal(pci_add(t.m.env.pci, &t.plain), 0);
}

static void on_msi(void *opaque, uint64_t address, uint32_t data)
{
    assert_int_equal(address >> 20, 0xfee);
}

/* --- the guest --------------------------------------------------------------------------------------------------- */

static struct pci_function *one(uint8_t n)
{
    return n & 1 ? &t.plain : &t.virtio.pci;
}

static void access_config(uint8_t devfn, unsigned offset, uint64_t value, unsigned size, bool write)
{
    uint64_t at = PCI_ECAM_BASE + ((uint64_t)devfn << 12) + offset;

    if (write)
        bus_write(t.m.bus, BUS_MEM, at, value, size);
    else
        bus_read(t.m.bus, BUS_MEM, at, size);
}

static void step_ecam(struct fuzz_input *in)
{
    uint8_t how = fuzz_u8(in);
    uint16_t offset = fuzz_u16(in);

    access_config(how & 0x40 ? fuzz_u8(in) : one(how)->devfn, how & 0x20 ? offset & 0xfff : offset & 0xff, fuzz_u64(in),
                  1u << (how >> 1 & 3), how & 0x80);
}

static void step_ports(struct fuzz_input *in)
{
    uint8_t how = fuzz_u8(in);
    unsigned size = 1u << (how & 7) % 3;
    uint16_t port = (uint16_t)(PCI_PORT_ADDRESS + (how & 0x40 ? 4 : 0) + (how >> 3 & 3));

    if (how & 0x80)
        bus_write(t.m.bus, BUS_PORT, port, fuzz_u32(in), size);
    else if (how & 0x20) /* a register of one of ours */
        bus_write(t.m.bus, BUS_PORT, PCI_PORT_ADDRESS,
                  0x80000000u | (uint32_t)one(how)->devfn << 8 | (fuzz_u8(in) & 0xfc), 4);
    else
        bus_read(t.m.bus, BUS_PORT, port, size);
}

/* Wherever it is now: in the bytes of a BAR, or a little beyond. */
static void access_bar(struct fuzz_input *in, struct pci_function *f, unsigned index, uint64_t within)
{
    const struct pci_bar *bar = &f->bars[index];
    enum bus_space space = bar->kind == PCI_BAR_PORT ? BUS_PORT : BUS_MEM;
    uint8_t how = fuzz_u8(in);
    uint64_t at = bar->range.base + (fuzz_u16(in) % (within + 8));
    unsigned size = 1u << (how & 3);

    if (bar->kind == PCI_BAR_NONE)
        return;
    if (space == BUS_PORT && size == 8)
        size = 1;
    if (how & 0x80)
        bus_write(t.m.bus, space, at, fuzz_u64(in), size);
    else
        bus_read(t.m.bus, space, at, size);
}

static void step_bar(struct fuzz_input *in)
{
    uint8_t which = fuzz_u8(in);
    struct pci_function *f = one(which);

    access_bar(in, f, (which >> 1) % PCI_BARS, f->bars[(which >> 1) % PCI_BARS].size);
}

/* A vector's message, its mask, and the interrupt itself. */
static void step_msix(struct fuzz_input *in)
{
    uint8_t how = fuzz_u8(in);
    struct pci_function *f = one(how);
    unsigned vector = fuzz_u8(in) % (f->n_vectors + 2), bar = how & 1 ? 4 : 2;
    uint64_t entry = f->bars[bar].range.base + 16ull * vector;

    if (how & 2)
        access_config(f->devfn, f->msix_cap + 2, (uint64_t)fuzz_u8(in) << 8, 2, true);
    if (how & 4)
        bus_write(t.m.bus, BUS_MEM, entry, how & 8 ? fuzz_u64(in) : 0xfee00000, 8);
    if (how & 0x10)
        bus_write(t.m.bus, BUS_MEM, entry + 8, fuzz_u64(in), 8);
    if (how & 0x20)
        pci_msix_notify(f, vector);
    if (how & 0x40)
        access_bar(in, f, bar, 0x1000);
}

/* A BAR to another place: near where others are, or anywhere. */
static void step_move(struct fuzz_input *in)
{
    uint8_t how = fuzz_u8(in);
    struct pci_function *f = one(how);
    unsigned index = (how >> 1 & 7) % PCI_BARS, at = PCI_BAR0 + 4 * index;
    uint32_t to = how & 0x10 ? fuzz_u32(in) : PCI_MMIO32_BASE + (uint32_t)(fuzz_u8(in) << 8);

    access_config(f->devfn, at, to, 4, true);
    if (how & 0x20)
        access_config(f->devfn, at + 4, how & 0x40 ? fuzz_u32(in) : 0, 4, true);
    access_config(f->devfn, PCI_COMMAND, how & 0x80 ? fuzz_u16(in) : 7, 2, true);
}

/* The registers by way of configuration space (PCI_CFG). */
static void step_window(struct fuzz_input *in)
{
    uint8_t how = fuzz_u8(in), devfn = t.virtio.pci.devfn;
    unsigned cap = t.virtio.cfg_window;

    access_config(devfn, cap + 4, how & 0x10 ? fuzz_u8(in) : 0, 1, true);
    access_config(devfn, cap + 8, how & 0x20 ? fuzz_u32(in) : fuzz_u16(in) & 0x303f, 4, true);
    access_config(devfn, cap + 12, how & 0x40 ? fuzz_u32(in) : 1u << (how & 7) % 3, 4, true);
    access_config(devfn, cap + 16 + (how >> 3 & 1), fuzz_u32(in), 1u << (how & 7) % 3, how & 0x80);
}

/* --- the devices' own side --------------------------------------------------------------------------------------- */

static void step_wish(struct fuzz_input *in)
{
    uint8_t how = fuzz_u8(in);

    t.busy = how & 1;
    if (how & 2)
        virtio_config_changed(&t.virtio);
    if (how & 4)
        virtio_fail(&t.virtio, "because");
    if (how & 8)
        pci_set_intx(&t.plain, how & 0x10);
    if (how & 0x20)
        virtio_queue_interrupt(&t.virtio, fuzz_u8(in) % QUEUES);
    if (how & 0x40)
        virtio_reset(&t.virtio);
    if (how & 0x80)
        pci_function_reset(&t.plain);
}

static void spoil(struct fuzz_input *in, void *state, size_t size)
{
    for (unsigned n = 1 + fuzz_u8(in) % 8; n; n--) {
        uint16_t at = fuzz_u16(in);
        ((uint8_t *)state)[at % size] = fuzz_u8(in);
    }
}

static void step_restore(struct fuzz_input *in)
{
    switch (fuzz_u8(in) % 3) {
    case 0:
        spoil(in, &t.state, sizeof t.state);
        virtio_restored(&t.virtio);
        break;
    case 1:
        spoil(in, &t.plain_state, sizeof t.plain_state);
        pci_function_restored(&t.plain);
        break;
    default:
        pci_host_class.reset(&t.m.host);
        pci_host_class.post_restore(&t.m.host);
    }
}

static void step(struct fuzz_input *in)
{
    uint8_t what = fuzz_u8(in) % STEPS;
    static void (*const steps[])(struct fuzz_input * in) = {
        [STEP_ECAM] = step_ecam, [STEP_PORTS] = step_ports,   [STEP_BAR] = step_bar,   [STEP_MSIX] = step_msix,
        [STEP_MOVE] = step_move, [STEP_WINDOW] = step_window, [STEP_WISH] = step_wish, [STEP_RESTORE] = step_restore,
    };

    if (what < DRIVER_STEPS)
        driver_step(&t.driver, in, what);
    else
        steps[what](in);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct fuzz_input in = {data, size};

    fuzz_loop_begin();
    fuzz_machine_ready(&t.m);
    t.m.bus->msi = on_msi;
    t.busy = false;
    memset(t.config, 0, sizeof t.config);
    assert_int_equal(virtio_init(&t.virtio, &t.state, &ops, &t.m.env), 0);
    add_plain();
    driver_attach(&t.driver, &t.m);
    if (fuzz_u8(&in) & 1)
        driver_start(&t.driver, ~0ull);
    access_config(t.plain.devfn, PCI_COMMAND, 7, 2, true);
    for (unsigned i = 0; i < STEPS_MAX && in.left; i++)
        step(&in);
    pci_function_destroy(&t.plain);
    virtio_destroy(&t.virtio);
    assert_int_equal(t.m.bus->n_ranges[BUS_MEM], 1); /* the host bridge's own */
    assert_int_equal(t.m.bus->n_ranges[BUS_PORT], 1);
    return 0;
}
