/*
 * What a fuzz target needs: a machine's RAM, bus, loop and PCI host, made once and empty again for each input, and
 * a reader of the input that never runs out: beyond its end everything is zero.
 */
#pragma once
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "devices/device.h"
#include "devices/pci/pci.h"
#include "memory/memory.h"

/* For fixtures of tests/unit: what does not hold is a finding. */
#define assert_true(x) ((x) ? (void)0 : abort())
#define assert_int_equal(x, y) assert_true((x) == (y))

#define FUZZ_RAM (1u << 20)

struct fuzz_input {
    const uint8_t *data;
    size_t left;
};

static inline void fuzz_bytes(struct fuzz_input *in, void *out, size_t len)
{
    size_t n = len < in->left ? len : in->left;

    memset(out, 0, len);
    if (n)
        memcpy(out, in->data, n);
    in->data += n;
    in->left -= n;
}

static inline uint8_t fuzz_u8(struct fuzz_input *in)
{
    uint8_t v;
    fuzz_bytes(in, &v, sizeof v);
    return v;
}
static inline uint16_t fuzz_u16(struct fuzz_input *in)
{
    uint16_t v;
    fuzz_bytes(in, &v, sizeof v);
    return v;
}
static inline uint32_t fuzz_u32(struct fuzz_input *in)
{
    uint32_t v;
    fuzz_bytes(in, &v, sizeof v);
    return v;
}
static inline uint64_t fuzz_u64(struct fuzz_input *in)
{
    uint64_t v;
    fuzz_bytes(in, &v, sizeof v);
    return v;
}

struct fuzz_machine {
    struct memory *memory;
    struct bus *bus;
    struct loop *loop;
    struct irq_line lines[24];
    struct device_env env;
    struct device host;
};

static inline void fuzz_line(void *opaque, unsigned n, bool level) {}

/* Makes the machine at the first call; empties its RAM at each. */
static inline void fuzz_machine_ready(struct fuzz_machine *m)
{
    if (!m->memory) {
        assert_int_equal(memory_create(&m->memory, FUZZ_RAM), 0);
        assert_int_equal(bus_create(&m->bus, m->memory), 0);
        assert_int_equal(loop_create(&m->loop, &m->bus->lock), 0);
        for (unsigned i = 0; i < 24; i++)
            m->lines[i] = (struct irq_line){fuzz_line, m, i};
        m->env = (struct device_env){.bus = m->bus, .loop = m->loop, .isa_irq = m->lines};
    }
    if (m->host.state) /* a new one each time: addresses that it has given away do not come back */
        pci_host_class.destroy(&m->host);
    assert_int_equal(pci_host_class.create(&m->host, &m->env, NULL), 0);
    m->env.pci = m->host.state;
    memset(m->memory->base, 0, FUZZ_RAM);
}

/* Configuration space of the first device behind the host bridge, by ECAM. */
#define FUZZ_SLOT_CONFIG (PCI_ECAM_BASE + (1u << 15))

static inline uint64_t fuzz_bar(struct fuzz_machine *m, unsigned bar)
{
    uint64_t at = FUZZ_SLOT_CONFIG + PCI_BAR0 + 4 * bar;
    uint64_t low = bus_read(m->bus, BUS_MEM, at, 4);
    return (low & ~0xfull) | ((low & 6) == 4 ? bus_read(m->bus, BUS_MEM, at + 4, 4) << 32 : 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
