/*
 * The bus: address range -> handler, interrupt lines, message-signalled interrupts, and DMA.
 *
 * Locking: `bus->lock` is the one lock of all device state.  bus_read/bus_write take it around the
 * handler; the event loop holds it while it calls timers and descriptors; a device never takes it.
 */
#pragma once
#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct memory;

enum bus_space { BUS_MEM, BUS_PORT, BUS_SPACES };

/* A handler sees offsets inside its own range and sizes 1, 2, 4 or 8 (ports: 1, 2, 4); an access
 * never leaves the range.  Either function may be NULL: reads give all ones, writes are dropped. */
struct bus_ops {
    uint64_t (*read)(void *opaque, uint64_t offset, unsigned size);
    void (*write)(void *opaque, uint64_t offset, uint64_t value, unsigned size);
};

struct bus_range {
    uint64_t base, size;
    const struct bus_ops *ops;
    void *opaque;
    const char *name; /* for --log device and --stats */
    uint64_t reads, writes;
};

#define BUS_MAX_RANGES 128

struct bus {
    pthread_mutex_t lock;
    struct memory *memory;
    struct bus_range *ranges[BUS_SPACES][BUS_MAX_RANGES]; /* sorted by base */
    unsigned n_ranges[BUS_SPACES];
    struct bus_range *last[BUS_SPACES]; /* the range hit last; guarded by lock */
    pthread_key_t initiator;            /* per thread: the vCPU that it runs */
    /* Called for each message-signalled interrupt (a write to 0xFEExxxxx).  Set by the machine. */
    void (*msi)(void *opaque, uint64_t address, uint32_t data);
    void *msi_opaque;
    /* Called after DMA has written [gpa, gpa+len): the engine drops translations of it.  Set by engine. */
    void (*dma_dirty)(void *opaque, uint64_t gpa, uint64_t len);
    void *dma_dirty_opaque;
    /* Called after each access that reached a device, lock held; NULL unless accesses are logged. */
    void (*trace)(void *opaque, const struct bus_range *range, bool write, uint64_t offset, uint64_t value,
                  unsigned size);
    void *trace_opaque;
};

int bus_create(struct bus **out, struct memory *memory);
void bus_destroy(struct bus *bus);

/* Maps; -EBUSY on overlap, -ENOSPC when the table is full.  The caller keeps *range alive. */
int bus_map(struct bus *bus, enum bus_space space, struct bus_range *range);
void bus_unmap(struct bus *bus, enum bus_space space, struct bus_range *range);

/* Says which vCPU the calling thread's accesses come from (what the bus ID pins say on hardware); a
 * thread that never says so speaks for vCPU 0.  Every local APIC is at the same address, so its
 * handler asks. */
void bus_set_initiator(struct bus *bus, unsigned cpu);
unsigned bus_initiator(const struct bus *bus);

/* One access of 1, 2, 4 or 8 bytes; takes the lock.  Unmapped: reads as all ones. */
uint64_t bus_read(struct bus *bus, enum bus_space space, uint64_t addr, unsigned size);
void bus_write(struct bus *bus, enum bus_space space, uint64_t addr, uint64_t value, unsigned size);

/* Device access to guest RAM by guest-physical address.  -EFAULT unless all of it is RAM. */
int dma_read(struct bus *bus, uint64_t gpa, void *buf, size_t len);
int dma_write(struct bus *bus, uint64_t gpa, const void *buf, size_t len);

/* Gives the host back what the guest does not need: whole pages in the range then read as zero.  As memory_discard. */
int dma_discard(struct bus *bus, uint64_t gpa, uint64_t len);

/* Sends a message-signalled interrupt; the lock is held by the caller. */
void bus_msi(struct bus *bus, uint64_t address, uint32_t data);

/* An interrupt line: a device drives it, an interrupt controller owns `set`. */
struct irq_line {
    void (*set)(void *opaque, unsigned number, bool level);
    void *opaque;
    unsigned number;
};
static inline void irq_set(const struct irq_line *line, bool level)
{
    if (line->set)
        line->set(line->opaque, line->number, level);
}
