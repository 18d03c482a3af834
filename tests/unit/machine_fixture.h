/* What a device test needs: RAM, bus, loop, recorded interrupt lines, messages and events, a PCI host. */
#pragma once
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "devices/pci/pci.h"
#include "memory/memory.h"

#define FIXTURE_RAM (4u << 20)

struct fixture {
    struct memory *memory;
    struct bus *bus;
    struct loop *loop;
    struct irq_line lines[24];
    bool level[24];
    unsigned n_msi, n_events;
    uint64_t msi_address;
    uint32_t msi_data;
    int event;
    struct device_env env;
    struct device host;
};

static inline void fixture_line(void *opaque, unsigned n, bool level)
{
    ((struct fixture *)opaque)->level[n] = level;
}

static inline void fixture_msi(void *opaque, uint64_t address, uint32_t data)
{
    struct fixture *f = opaque;
    f->n_msi++;
    f->msi_address = address;
    f->msi_data = data;
}

static inline void fixture_event(void *opaque, int event)
{
    struct fixture *f = opaque;
    f->n_events++;
    f->event = event;
}

static inline void fixture_open(struct fixture *f)
{
    memset(f, 0, sizeof *f);
    assert_int_equal(memory_create(&f->memory, FIXTURE_RAM), 0);
    assert_int_equal(bus_create(&f->bus, f->memory), 0);
    assert_int_equal(loop_create(&f->loop, &f->bus->lock), 0);
    for (unsigned i = 0; i < 24; i++)
        f->lines[i] = (struct irq_line){fixture_line, f, i};
    f->bus->msi = fixture_msi;
    f->bus->msi_opaque = f;
    f->env = (struct device_env){
        .bus = f->bus, .loop = f->loop, .isa_irq = f->lines, .event = fixture_event, .event_opaque = f};
    assert_int_equal(pci_host_class.create(&f->host, &f->env, NULL), 0);
    f->env.pci = f->host.state;
}

static inline void fixture_close(struct fixture *f)
{
    pci_host_class.destroy(&f->host);
    assert_int_equal(f->bus->n_ranges[BUS_MEM] + f->bus->n_ranges[BUS_PORT], 0); /* nobody left a range behind */
    loop_destroy(f->loop);
    bus_destroy(f->bus);
    memory_destroy(f->memory);
}

static inline uint64_t mem_in(struct fixture *f, uint64_t at, unsigned size)
{
    return bus_read(f->bus, BUS_MEM, at, size);
}
static inline void mem_out(struct fixture *f, uint64_t at, uint64_t v, unsigned size)
{
    bus_write(f->bus, BUS_MEM, at, v, size);
}
static inline uint64_t port_in(struct fixture *f, uint16_t at, unsigned size)
{
    return bus_read(f->bus, BUS_PORT, at, size);
}
static inline void port_out(struct fixture *f, uint16_t at, uint64_t v, unsigned size)
{
    bus_write(f->bus, BUS_PORT, at, v, size);
}

/* Configuration space through ECAM. */
static inline uint32_t cfg_in(struct fixture *f, unsigned slot, unsigned reg, unsigned size)
{
    return (uint32_t)mem_in(f, PCI_ECAM_BASE + (slot << 15) + reg, size);
}
static inline void cfg_out(struct fixture *f, unsigned slot, unsigned reg, uint32_t v, unsigned size)
{
    mem_out(f, PCI_ECAM_BASE + (slot << 15) + reg, v, size);
}

static inline unsigned find_capability(struct fixture *f, unsigned slot, uint8_t id, unsigned nth)
{
    unsigned at = cfg_in(f, slot, PCI_CAP_POINTER, 1);
    for (unsigned i = 0; at && i < 48; i++, at = cfg_in(f, slot, at + 1, 1))
        if (cfg_in(f, slot, at, 1) == id && nth-- == 0)
            return at;
    return 0;
}
