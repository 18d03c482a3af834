/*
 * What a fuzz target needs: a machine's RAM, bus, loop and PCI host, made once and empty again for each input, and
 * a reader of the input that never runs out: beyond its end everything is zero.
 *
 * Only what was written is made empty.  Devices tell the bus what they write, for the sake of translated code
 * (bus->dma_dirty); a target writes with fuzz_put, which does so as well.  Whoever forgets is found out now and then.
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
#define FUZZ_PAGE 4096u
#define FUZZ_CHECK_EVERY 4096u /* inputs from one look at all of RAM to the next */

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
    uint64_t written[FUZZ_RAM / FUZZ_PAGE / 64]; /* a bit for each page */
    unsigned inputs;
};

static inline void fuzz_line(void *opaque, unsigned n, bool level) {}

static inline void fuzz_written(void *opaque, uint64_t gpa, uint64_t len)
{
    struct fuzz_machine *m = opaque;

    assert_true(memory_is_ram(m->memory, gpa, len));
    if (len)
        for (uint64_t page = gpa / FUZZ_PAGE; page <= (gpa + len - 1) / FUZZ_PAGE; page++)
            m->written[page / 64] |= 1ull << page % 64;
}

/* The guest's own write: false where there is no RAM. */
static inline bool fuzz_put(struct fuzz_machine *m, uint64_t gpa, const void *data, size_t len)
{
    return dma_write(m->bus, gpa, data, len) == 0;
}

static inline void fuzz_empty_ram(struct fuzz_machine *m)
{
    static const uint8_t zero[FUZZ_PAGE];

    for (unsigned i = 0; i < FUZZ_RAM / FUZZ_PAGE / 64; i++)
        for (; m->written[i]; m->written[i] &= m->written[i] - 1)
            memset(m->memory->base + (64 * i + (unsigned)__builtin_ctzll(m->written[i])) * FUZZ_PAGE, 0, FUZZ_PAGE);
    if (m->inputs++ % FUZZ_CHECK_EVERY == 0)
        for (uint64_t at = 0; at < FUZZ_RAM; at += FUZZ_PAGE)
            assert_true(!memcmp(m->memory->base + at, zero, FUZZ_PAGE));
}

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
        m->bus->dma_dirty = fuzz_written;
        m->bus->dma_dirty_opaque = m;
    }
    if (m->host.state) /* a new one each time: addresses that it has given away do not come back */
        pci_host_class.destroy(&m->host);
    assert_int_equal(pci_host_class.create(&m->host, &m->env, NULL), 0);
    m->env.pci = m->host.state;
    fuzz_empty_ram(m);
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
