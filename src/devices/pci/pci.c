/* A PCI function's configuration space: write masks, BARs that move, capabilities, INTx. */
#include "devices/pci/pci.h"

#include <string.h>

#define COMMAND_WRITABLE (PCI_COMMAND_IO | PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER | PCI_COMMAND_INTX_OFF | 1 << 8)
#define FIRST_CAPABILITY 0x40u
#define INTERRUPT_LINE_UNKNOWN 0xff

void pci_function_init(struct pci_function *f, struct pci_state *state, const char *name, const struct pci_identity *id)
{
    memset(f, 0, sizeof *f);
    memset(state, 0, sizeof *state);
    f->state = state;
    f->name = name;
    f->cap_end = FIRST_CAPABILITY;
    uint8_t *c = f->power_on;
    pci_put16(c + PCI_VENDOR_ID, id->vendor);
    pci_put16(c + PCI_DEVICE_ID, id->device);
    c[PCI_REVISION] = id->revision;
    c[PCI_CLASS] = (uint8_t)id->class_code;
    c[PCI_CLASS + 1] = (uint8_t)(id->class_code >> 8);
    c[PCI_CLASS + 2] = (uint8_t)(id->class_code >> 16);
    pci_put16(c + PCI_SUBSYSTEM_VENDOR, id->subsystem_vendor);
    pci_put16(c + PCI_SUBSYSTEM_ID, id->subsystem);
    c[PCI_INTERRUPT_PIN] = id->intx;
    c[PCI_INTERRUPT_LINE] = INTERRUPT_LINE_UNKNOWN;
    pci_put16(f->writable + PCI_COMMAND, COMMAND_WRITABLE);
    f->writable[0x0c] = 0xff; /* cache line size and latency timer mean nothing here but hold values */
    f->writable[0x0d] = 0xff;
    f->writable[PCI_INTERRUPT_LINE] = 0xff;
    pci_put16(f->clear_on_one + PCI_STATUS, 0xf900);
}

void pci_bar_init(struct pci_function *f, unsigned index, enum pci_bar_kind kind, uint64_t size,
                  const struct bus_ops *ops, void *opaque)
{
    static const uint8_t type_bits[] = {[PCI_BAR_PORT] = 1, [PCI_BAR_MEM32] = 0, [PCI_BAR_MEM64] = 4};
    struct pci_bar *bar = &f->bars[index];
    unsigned at = PCI_BAR0 + 4 * index;
    uint64_t mask = ~(size - 1);

    bar->kind = kind;
    bar->size = size;
    bar->range = (struct bus_range){.size = size, .ops = ops, .opaque = opaque, .name = f->name};
    f->power_on[at] = type_bits[kind];
    pci_put32(f->writable + at, (uint32_t)mask);
    if (kind == PCI_BAR_MEM64)
        pci_put32(f->writable + at + 4, (uint32_t)(mask >> 32));
}

unsigned pci_add_capability(struct pci_function *f, uint8_t id, unsigned len)
{
    unsigned at = f->cap_end;
    uint8_t *link = f->last_cap ? &f->power_on[f->last_cap + 1] : &f->power_on[PCI_CAP_POINTER];

    *link = (uint8_t)at;
    f->power_on[at] = id;
    f->last_cap = at;
    f->cap_end = (at + len + 3) & ~3u;
    f->power_on[PCI_STATUS] |= PCI_STATUS_CAPS;
    return at;
}

static bool in_range(unsigned at, unsigned offset, unsigned size, unsigned len)
{
    return offset < at + len && at < offset + size;
}

/* --- BARs ---------------------------------------------------------------------------------------- */

static uint64_t bar_address(const struct pci_function *f, unsigned index)
{
    const uint8_t *reg = f->state->config + PCI_BAR0 + 4 * index;
    uint64_t value = pci_get32(reg);
    if (f->bars[index].kind == PCI_BAR_MEM64)
        value |= (uint64_t)pci_get32(reg + 4) << 32;
    return value & ~(f->bars[index].size - 1);
}

/* A BAR is there when decoding is on and the address makes sense: not zero, no wrap, ports in 16 bits. */
static bool bar_decodes(const struct pci_function *f, unsigned index, uint64_t address)
{
    const struct pci_bar *bar = &f->bars[index];
    bool port = bar->kind == PCI_BAR_PORT;
    uint64_t top = port ? 0x10000 : bar->kind == PCI_BAR_MEM32 ? 0x100000000ull : 1ull << 52;

    if (!(f->state->config[PCI_COMMAND] & (port ? PCI_COMMAND_IO : PCI_COMMAND_MEMORY)))
        return false;
    return address && address < top && bar->size <= top - address;
}

static void bar_update(struct pci_function *f, unsigned index)
{
    struct pci_bar *bar = &f->bars[index];
    if (bar->kind == PCI_BAR_NONE || !f->host)
        return;
    struct bus *bus = pci_bus(f->host);
    enum bus_space space = bar->kind == PCI_BAR_PORT ? BUS_PORT : BUS_MEM;
    uint64_t address = bar_address(f, index);
    bool wanted = bar_decodes(f, index, address);

    if (bar->mapped && (!wanted || address != bar->range.base)) {
        bus_unmap(bus, space, &bar->range);
        bar->mapped = false;
    }
    if (wanted && !bar->mapped) {
        bar->range.base = address;
        /* On overlap the one who was there first answers, as on a real bus nobody knows who would. */
        bar->mapped = bus_map(bus, space, &bar->range) == 0;
    }
}

static void update_bars(struct pci_function *f)
{
    for (unsigned i = 0; i < PCI_BARS; i++)
        bar_update(f, i);
}

/* --- INTx ---------------------------------------------------------------------------------------- */

static void update_intx(struct pci_function *f)
{
    uint8_t *c = f->state->config;
    bool off = pci_get16(c + PCI_COMMAND) & PCI_COMMAND_INTX_OFF;

    c[PCI_STATUS] = (uint8_t)((c[PCI_STATUS] & ~PCI_STATUS_INTX) | (f->state->intx ? PCI_STATUS_INTX : 0));
    if (f->host && c[PCI_INTERRUPT_PIN])
        pci_host_set_intx(f->host, f, f->state->intx && !off && !pci_msix_enabled(f));
}

void pci_set_intx(struct pci_function *f, bool level)
{
    f->state->intx = level;
    update_intx(f);
}

bool pci_is_master(const struct pci_function *f)
{
    return f->state->config[PCI_COMMAND] & PCI_COMMAND_MASTER;
}

/* --- configuration accesses ------------------------------------------------------------------------ */

static bool access_ok(unsigned offset, unsigned size)
{
    return (size == 1 || size == 2 || size == 4) && offset < PCI_CONFIG_SIZE && size <= PCI_CONFIG_SIZE - offset;
}

uint32_t pci_config_read(struct pci_function *f, unsigned offset, unsigned size)
{
    uint32_t value = 0;

    if (!access_ok(offset, size))
        return ~0u;
    if (f->config_read)
        f->config_read(f, offset, size);
    for (unsigned i = 0; i < size; i++)
        value |= (uint32_t)f->state->config[offset + i] << (8 * i);
    return value;
}

void pci_config_write(struct pci_function *f, unsigned offset, uint32_t value, unsigned size)
{
    if (!access_ok(offset, size))
        return;
    for (unsigned i = 0; i < size; i++) {
        uint8_t byte = (uint8_t)(value >> (8 * i)), mask = f->writable[offset + i];
        uint8_t *reg = &f->state->config[offset + i];
        *reg = (uint8_t)((*reg & ~mask) | (byte & mask));
        *reg &= (uint8_t) ~(byte & f->clear_on_one[offset + i]);
    }
    if (in_range(PCI_COMMAND, offset, size, 2) || in_range(PCI_BAR0, offset, size, 4 * PCI_BARS))
        update_bars(f);
    if (f->msix_cap && in_range(f->msix_cap + 2, offset, size, 2))
        pci_msix_control_written(f);
    if (in_range(PCI_COMMAND, offset, size, 2) || (f->msix_cap && in_range(f->msix_cap + 2, offset, size, 2)))
        update_intx(f);
    if (f->config_written)
        f->config_written(f, offset, size);
}

void pci_function_reset(struct pci_function *f)
{
    memcpy(f->state->config, f->power_on, sizeof f->state->config);
    pci_msix_reset(f);
    update_bars(f);
    pci_set_intx(f, false);
}

void pci_function_restored(struct pci_function *f)
{
    update_bars(f);
    update_intx(f);
}

void pci_function_destroy(struct pci_function *f)
{
    if (!f->host)
        return;
    pci_host_set_intx(f->host, f, false);
    for (unsigned i = 0; i < PCI_BARS; i++)
        if (f->bars[i].mapped)
            bus_unmap(pci_bus(f->host), f->bars[i].kind == PCI_BAR_PORT ? BUS_PORT : BUS_MEM, &f->bars[i].range);
    pci_remove(f->host, f);
}
