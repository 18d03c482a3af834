/*
 * A virtio driver in the hands of the input: it brings a device up as a good one would, and then builds rings,
 * descriptors and register accesses that are right but for what the input wants. For targets of one virtio device.
 */
#pragma once
#include "fixture.h"

#include "devices/virtio/virtio.h"

#define RING_SIZE 16u
#define RING(q) (0x1000u + 0x400u * (q)) /* descriptors; available and used rings behind */
#define AVAIL 0x100u
#define USED 0x200u
#define DATA 0x8000u
#define DATA_PIECE 0x200u
#define TABLE 0x7000u /* of indirect descriptors */
enum { NEXT = 1, WRITE = 2, INDIRECT = 4 };

struct descriptor {
    uint64_t addr;
    uint32_t len;
    uint16_t flags, next;
};

struct driver {
    struct fuzz_machine *m;
    uint64_t regs, features; /* those that the device offers */
    unsigned n_queues;
};

static inline void driver_out(struct driver *d, uint64_t at, uint64_t value, unsigned size)
{
    bus_write(d->m->bus, BUS_MEM, d->regs + at, value, size);
}

static inline void driver_put(struct driver *d, uint64_t at, const void *bytes, size_t len)
{
    dma_write(d->m->bus, at, bytes, len);
}

static inline void driver_notify(struct driver *d, unsigned q)
{
    driver_out(d, 0x3000 + 4 * q, 0, 2);
}

/* Bit 0 of features: only such as are offered, else nothing would go on. */
static inline void driver_start(struct driver *d, uint64_t features)
{
    if (features & 1)
        features &= d->features;
    features |= 1ull << VIRTIO_F_VERSION_1;
    driver_out(d, 20, 0, 1);
    driver_out(d, 20, VIRTIO_ACKNOWLEDGE | VIRTIO_DRIVER, 1);
    for (unsigned i = 0; i < 2; i++) {
        driver_out(d, 8, i, 4);
        driver_out(d, 12, (uint32_t)(features >> 32 * i), 4);
    }
    driver_out(d, 20, VIRTIO_FEATURES_OK, 1);
    for (unsigned q = 0; q < d->n_queues; q++) {
        driver_out(d, 22, q, 2);
        driver_out(d, 24, RING_SIZE, 2);
        driver_out(d, 32, RING(q), 8);
        driver_out(d, 40, RING(q) + AVAIL, 8);
        driver_out(d, 48, RING(q) + USED, 8);
        driver_out(d, 28, 1, 2);
    }
    driver_out(d, 20, VIRTIO_DRIVER_OK, 1);
}

/* The first function behind the host bridge is the device's. */
static inline void driver_attach(struct driver *d, struct fuzz_machine *m)
{
    bus_write(m->bus, BUS_MEM, FUZZ_SLOT_CONFIG + PCI_COMMAND, PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER, 2);
    *d = (struct driver){.m = m, .regs = fuzz_bar(m, 0)};
    for (unsigned i = 0; i < 2; i++) {
        driver_out(d, 0, i, 4);
        d->features |= bus_read(m->bus, BUS_MEM, d->regs + 4, 4) << 32 * i;
    }
    d->n_queues = (unsigned)bus_read(m->bus, BUS_MEM, d->regs + 18, 2);
}

static inline void driver_offer(struct driver *d, unsigned q, uint16_t head)
{
    uint16_t idx = 0;

    memory_read(d->m->memory, RING(q) + AVAIL + 2, &idx, 2);
    driver_put(d, RING(q) + AVAIL + 4 + 2 * (idx % RING_SIZE), &head, 2);
    idx++;
    driver_put(d, RING(q) + AVAIL + 2, &idx, 2);
}

/* A chain in a table of its own: what is in queue q at `head` moves there. */
static inline void driver_make_indirect(struct driver *d, unsigned q, unsigned head)
{
    struct descriptor table[RING_SIZE];
    const struct descriptor whole = {.addr = TABLE, .len = sizeof table, .flags = INDIRECT};

    memory_read(d->m->memory, RING(q), table, sizeof table);
    if (head) { /* a table is entered at its first descriptor */
        struct descriptor first = table[0];
        table[0] = table[head];
        table[head] = first;
    }
    driver_put(d, TABLE, table, sizeof table);
    driver_put(d, RING(q) + 16 * head, &whole, sizeof whole);
}

/* A chain for the device to read, or to write, that is right but for what the input wants: bits of `wrong` choose
 * descriptors whose flags, addresses and links come from the input. */
static inline void driver_chain(struct driver *d, struct fuzz_input *in, unsigned q, bool to_write)
{
    unsigned how = fuzz_u8(in), n = 1 + how % 5, head = fuzz_u8(in) % RING_SIZE;
    uint8_t wrong = fuzz_u8(in);

    for (unsigned i = 0; i < n; i++) {
        struct descriptor desc = {.addr = DATA + (uint64_t)fuzz_u8(in) % 64 * DATA_PIECE, .len = fuzz_u16(in) & 0x3ff};
        desc.flags = (uint16_t)((i + 1 < n ? NEXT : 0) | (to_write ? WRITE : 0));
        desc.next = (uint16_t)((head + i + 1) % RING_SIZE);
        if (wrong & 1 << i) {
            desc.flags ^= fuzz_u8(in) & 7;
            desc.addr ^= wrong & 0x40 ? fuzz_u64(in) : 0;
            desc.len = wrong & 0x20 ? fuzz_u32(in) : desc.len;
            desc.next = wrong & 0x80 ? fuzz_u16(in) : desc.next;
        }
        driver_put(d, RING(q) + 16 * ((head + i) % RING_SIZE), &desc, sizeof desc);
    }
    if (how & 0x40)
        driver_make_indirect(d, q, head);
    driver_offer(d, q, (uint16_t)head);
    if (how & 0x80)
        driver_notify(d, q);
}

/* --- steps that every device has --------------------------------------------------------------------------------- */

enum { DRIVER_CHAIN, DRIVER_NOTIFY, DRIVER_MEMORY, DRIVER_REGISTER, DRIVER_CONFIG, DRIVER_START, DRIVER_STEPS };

/* Bytes into a ring, or the data. */
static inline void driver_memory(struct driver *d, struct fuzz_input *in)
{
    uint8_t bytes[32], len = fuzz_u8(in) % sizeof bytes;
    uint16_t at = fuzz_u16(in);

    fuzz_bytes(in, bytes, len);
    driver_put(d, at & 0x8000 ? DATA + (at & 0x7fff) : 0x1000u + (at & 0x7fff), bytes, len);
}

static inline void driver_register(struct driver *d, struct fuzz_input *in)
{
    uint16_t at = fuzz_u16(in);
    unsigned size = 1u << (at >> 14);

    at &= 0x3fff;
    if (fuzz_u8(in) & 1) /* the common configuration has most to lose */
        driver_out(d, at % 64, fuzz_u64(in), size);
    else if (at & 1)
        driver_out(d, at & ~1u, fuzz_u32(in), size);
    else
        bus_read(d->m->bus, BUS_MEM, d->regs + at, size);
}

static inline void driver_step(struct driver *d, struct fuzz_input *in, unsigned what)
{
    uint8_t q;

    switch (what) {
    case DRIVER_CHAIN:
        q = fuzz_u8(in);
        driver_chain(d, in, q % d->n_queues, q & 0x80);
        break;
    case DRIVER_NOTIFY:
        driver_notify(d, fuzz_u8(in) % (d->n_queues + 1));
        break;
    case DRIVER_MEMORY:
        driver_memory(d, in);
        break;
    case DRIVER_REGISTER:
        driver_register(d, in);
        break;
    case DRIVER_CONFIG:
        bus_write(d->m->bus, BUS_MEM, FUZZ_SLOT_CONFIG + fuzz_u8(in), fuzz_u32(in), 4);
        break;
    case DRIVER_START:
        driver_start(d, fuzz_u64(in));
        break;
    }
}

/* A state file from a stranger, or a reset of the machine: some bytes of what is saved of the device are other ones
 * now. Those of configuration space are the `pci` target's. */
static inline void driver_restore(struct device *dev, struct fuzz_input *in)
{
    const struct device_class *class = dev->class;
    uint8_t *state = (uint8_t *)dev->state + class->save_offset, how = fuzz_u8(in);

    if (how & 0x80) {
        class->reset(dev);
        return;
    }
    if (class->pre_save)
        class->pre_save(dev);
    for (unsigned n = how % 8; n; n--) {
        size_t at = sizeof(struct pci_state) + fuzz_u16(in) % (class->save_size - sizeof(struct pci_state));
        state[at] = fuzz_u8(in);
    }
    class->post_restore(dev);
}
