#include "bus/bus.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "memory/memory.h"

int bus_create(struct bus **out, struct memory *memory)
{
    struct bus *bus = calloc(1, sizeof(*bus));
    if (!bus)
        return -ENOMEM;
    bus->memory = memory;
    int err = pthread_key_create(&bus->initiator, NULL);
    if (!err) {
        err = pthread_mutex_init(&bus->lock, NULL);
        if (err)
            pthread_key_delete(bus->initiator);
    }
    if (err) {
        free(bus);
        return -err;
    }
    *out = bus;
    return 0;
}

void bus_destroy(struct bus *bus)
{
    if (!bus)
        return;
    pthread_mutex_destroy(&bus->lock);
    pthread_key_delete(bus->initiator);
    free(bus);
}

void bus_set_initiator(struct bus *bus, unsigned cpu)
{
    pthread_setspecific(bus->initiator, (void *)(uintptr_t)cpu);
}

unsigned bus_initiator(const struct bus *bus)
{
    return (unsigned)(uintptr_t)pthread_getspecific(bus->initiator);
}

/* The index of the first range with base > addr. */
static unsigned upper_bound(const struct bus *bus, enum bus_space space, uint64_t addr)
{
    unsigned low = 0, high = bus->n_ranges[space];
    while (low < high) {
        unsigned mid = (low + high) / 2;
        if (bus->ranges[space][mid]->base <= addr)
            low = mid + 1;
        else
            high = mid;
    }
    return low;
}

static bool contains(const struct bus_range *r, uint64_t addr, uint64_t size)
{
    return addr >= r->base && addr - r->base < r->size && size <= r->size - (addr - r->base);
}

int bus_map(struct bus *bus, enum bus_space space, struct bus_range *range)
{
    unsigned n = bus->n_ranges[space];
    uint64_t last = range->base + (range->size - 1);
    if (!range->size || last < range->base || (space == BUS_PORT && last > 0xffff))
        return -EINVAL;
    unsigned at = upper_bound(bus, space, range->base);
    struct bus_range **table = bus->ranges[space];
    if (at > 0 && range->base - table[at - 1]->base < table[at - 1]->size)
        return -EBUSY;
    if (at < n && table[at]->base <= last)
        return -EBUSY;
    if (n == BUS_MAX_RANGES)
        return -ENOSPC;
    memmove(&table[at + 1], &table[at], (n - at) * sizeof(*table));
    table[at] = range;
    bus->n_ranges[space]++;
    return 0;
}

void bus_unmap(struct bus *bus, enum bus_space space, struct bus_range *range)
{
    struct bus_range **table = bus->ranges[space];
    unsigned at = upper_bound(bus, space, range->base);
    if (at == 0 || table[at - 1] != range)
        return;
    memmove(&table[at - 1], &table[at], (bus->n_ranges[space] - at) * sizeof(*table));
    bus->n_ranges[space]--;
    if (bus->last[space] == range)
        bus->last[space] = NULL;
}

/* The range that holds all of [addr, addr+size), or NULL. */
static struct bus_range *find(struct bus *bus, enum bus_space space, uint64_t addr, unsigned size)
{
    struct bus_range *r = bus->last[space];
    if (r && contains(r, addr, size))
        return r;
    unsigned at = upper_bound(bus, space, addr);
    if (at == 0 || !contains(bus->ranges[space][at - 1], addr, size))
        return NULL;
    return bus->last[space] = bus->ranges[space][at - 1];
}

static uint64_t size_mask(unsigned size)
{
    return size >= 8 ? UINT64_MAX : (1ull << (size * 8)) - 1;
}

/* An access that straddles the end of a range is two accesses of half the size, low half first. */
static uint64_t read_locked(struct bus *bus, enum bus_space space, uint64_t addr, unsigned size)
{
    struct bus_range *r = find(bus, space, addr, size);
    if (r) {
        r->reads++;
        uint64_t value = r->ops->read ? r->ops->read(r->opaque, addr - r->base, size) : UINT64_MAX;
        value &= size_mask(size);
        if (bus->trace)
            bus->trace(bus->trace_opaque, r, false, addr - r->base, value, size);
        return value;
    }
    if (size <= 1)
        return size_mask(size);
    unsigned half = size / 2;
    uint64_t low = read_locked(bus, space, addr, half);
    return low | read_locked(bus, space, addr + half, half) << (half * 8);
}

static void write_locked(struct bus *bus, enum bus_space space, uint64_t addr, uint64_t value, unsigned size)
{
    struct bus_range *r = find(bus, space, addr, size);
    if (r) {
        r->writes++;
        if (r->ops->write)
            r->ops->write(r->opaque, addr - r->base, value & size_mask(size), size);
        if (bus->trace)
            bus->trace(bus->trace_opaque, r, true, addr - r->base, value & size_mask(size), size);
        return;
    }
    if (size <= 1)
        return;
    unsigned half = size / 2;
    write_locked(bus, space, addr, value, half);
    write_locked(bus, space, addr + half, value >> (half * 8), half);
}

uint64_t bus_read(struct bus *bus, enum bus_space space, uint64_t addr, unsigned size)
{
    pthread_mutex_lock(&bus->lock);
    uint64_t value = read_locked(bus, space, addr, size);
    pthread_mutex_unlock(&bus->lock);
    return value;
}

void bus_write(struct bus *bus, enum bus_space space, uint64_t addr, uint64_t value, unsigned size)
{
    pthread_mutex_lock(&bus->lock);
    write_locked(bus, space, addr, value, size);
    pthread_mutex_unlock(&bus->lock);
}

int dma_read(struct bus *bus, uint64_t gpa, void *buf, size_t len)
{
    return memory_read(bus->memory, gpa, buf, len);
}

int dma_write(struct bus *bus, uint64_t gpa, const void *buf, size_t len)
{
    if (!memory_is_ram(bus->memory, gpa, len))
        return -EFAULT;
    int failed = memory_write(bus->memory, gpa, buf, len);
    if (bus->dma_dirty)
        bus->dma_dirty(bus->dma_dirty_opaque, gpa, len);
    return failed;
}

int dma_discard(struct bus *bus, uint64_t gpa, uint64_t len)
{
    if (!len || !memory_is_ram(bus->memory, gpa, len))
        return -EFAULT;
    int failed = memory_discard(bus->memory, gpa, len);
    if (bus->dma_dirty)
        bus->dma_dirty(bus->dma_dirty_opaque, gpa, len);
    return failed;
}

void bus_msi(struct bus *bus, uint64_t address, uint32_t data)
{
    if (bus->msi)
        bus->msi(bus->msi_opaque, address, data);
}
