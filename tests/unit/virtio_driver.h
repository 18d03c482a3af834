/* A small virtio driver for tests: finds the windows by the capabilities and drives one queue in RAM. */
#pragma once
#include "devices/virtio/virtio.h"
#include "machine_fixture.h"

#define RING_SIZE 16u
#define DESC 0x10000u
#define AVAIL 0x11000u
#define USED 0x12000u
#define TABLE 0x14000u /* for indirect descriptors */
#define DATA 0x20000u
enum { NEXT = 1, WRITE = 2, INDIRECT = 4 };

struct driver {
    struct fixture *f;
    unsigned slot;
    uint64_t common, isr, device, notify;
};

static inline uint64_t window(struct driver *d, unsigned type)
{
    for (unsigned i = 0, cap; (cap = find_capability(d->f, d->slot, PCI_CAP_VENDOR, i)); i++)
        if (cfg_in(d->f, d->slot, cap + 3, 1) == type) {
            unsigned bar = PCI_BAR0 + 4 * cfg_in(d->f, d->slot, cap + 4, 1);
            uint64_t base = (cfg_in(d->f, d->slot, bar, 4) & ~0xfu) | (uint64_t)cfg_in(d->f, d->slot, bar + 4, 4) << 32;
            return base + cfg_in(d->f, d->slot, cap + 8, 4);
        }
    return 0;
}

static inline void driver_find(struct driver *d, struct fixture *f, unsigned slot)
{
    *d = (struct driver){.f = f, .slot = slot};
    d->common = window(d, 1);
    d->notify = window(d, 2);
    d->isr = window(d, 3);
    d->device = window(d, 4);
    cfg_out(f, slot, PCI_COMMAND, PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER, 2);
}

static inline uint64_t get(struct driver *d, unsigned at, unsigned size)
{
    return mem_in(d->f, d->common + at, size);
}
static inline void set(struct driver *d, unsigned at, uint64_t v, unsigned size)
{
    mem_out(d->f, d->common + at, v, size);
}
static inline uint8_t status(struct driver *d)
{
    return (uint8_t)get(d, 20, 1);
}

static inline void negotiate(struct driver *d, uint64_t features)
{
    set(d, 20, 0, 1);
    set(d, 20, VIRTIO_ACKNOWLEDGE | VIRTIO_DRIVER, 1);
    for (unsigned i = 0; i < 2; i++) {
        set(d, 8, i, 4);
        set(d, 12, (uint32_t)(features >> 32 * i), 4);
    }
    set(d, 20, status(d) | VIRTIO_FEATURES_OK, 1);
}

static inline void queue_at(struct driver *d, uint16_t size, uint64_t desc, uint64_t avail, uint64_t used)
{
    set(d, 22, 0, 2);
    set(d, 24, size, 2);
    set(d, 32, desc, 8);
    set(d, 40, (uint32_t)avail, 4);
    set(d, 44, (uint32_t)(avail >> 32), 4);
    set(d, 48, used, 8);
    set(d, 28, 1, 2);
}

#define FEATURES_ALL (1ull << VIRTIO_F_VERSION_1 | 1ull << VIRTIO_F_INDIRECT_DESC | 1ull << VIRTIO_F_EVENT_IDX)

static inline void start(struct driver *d, uint64_t features)
{
    memset(memory_hva(d->f->memory, DESC, 0x10000), 0, 0x10000);
    negotiate(d, features);
    queue_at(d, RING_SIZE, DESC, AVAIL, USED);
    set(d, 20, status(d) | VIRTIO_DRIVER_OK, 1);
}

static inline void put_desc(struct driver *d, uint64_t table, unsigned i, uint64_t addr, uint32_t len, uint16_t flags,
                            uint16_t next)
{
    uint8_t raw[16];
    memcpy(raw, &addr, 8);
    memcpy(raw + 8, &len, 4);
    memcpy(raw + 12, &flags, 2);
    memcpy(raw + 14, &next, 2);
    assert_int_equal(memory_write(d->f->memory, table + 16 * i, raw, 16), 0);
}

static inline uint16_t ram16(struct driver *d, uint64_t at)
{
    uint16_t v;
    assert_int_equal(memory_read(d->f->memory, at, &v, 2), 0);
    return v;
}
static inline uint32_t ram32(struct driver *d, uint64_t at)
{
    return ram16(d, at) | (uint32_t)ram16(d, at + 2) << 16;
}
static inline void ram16_put(struct driver *d, uint64_t at, uint16_t v)
{
    memory_write(d->f->memory, at, &v, 2);
}

/* Offers the chain that begins at `head`. */
static inline void offer(struct driver *d, uint16_t head)
{
    uint16_t idx = ram16(d, AVAIL + 2);
    ram16_put(d, AVAIL + 4 + 2 * (idx % RING_SIZE), head);
    ram16_put(d, AVAIL + 2, (uint16_t)(idx + 1));
}
static inline void kick(struct driver *d)
{
    mem_out(d->f, d->notify, 0, 2);
}
static inline uint16_t used_idx(struct driver *d)
{
    return ram16(d, USED + 2);
}
