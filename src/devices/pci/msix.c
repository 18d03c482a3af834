/*
 * MSI-X (PCI 3.0, 6.8.2): a table of messages and a bit array of those that wait behind a mask.
 *
 * BAR, 4 KiB:   0x000  n entries of 16 bytes: address, data, control (bit 0 masks)
 *               0x800  pending bits, read-only
 * Capability:   +2 control (0-10: n - 1, 14: mask all, 15: enable)  +4 table  +8 pending bits
 */
#include <errno.h>
#include <string.h>

#include "devices/pci/pci.h"

#define MSIX_BAR_SIZE 0x1000u
#define MSIX_PBA 0x800u
#define MSIX_ENTRY_SIZE 16u
#define MSIX_CAP_SIZE 12u
enum { CONTROL_MASK_ALL = 1 << 14, CONTROL_ENABLE = 1 << 15 };

_Static_assert(PCI_MSIX_MAX *MSIX_ENTRY_SIZE <= MSIX_PBA, "table and pending bits do not overlap");

static uint16_t control(const struct pci_function *f)
{
    return pci_get16(f->state->config + f->msix_cap + 2);
}

bool pci_msix_enabled(const struct pci_function *f)
{
    return f->msix_cap && (control(f) & CONTROL_ENABLE);
}

static bool masked(const struct pci_function *f, unsigned vector)
{
    return (control(f) & CONTROL_MASK_ALL) || (f->state->msix[vector].control & 1);
}

static uint64_t *pending_word(struct pci_function *f, unsigned vector)
{
    return &f->state->msix_pending[vector / 64];
}

/* Only interrupt messages leave: a table entry that points into RAM would be a write nobody expects. */
static void send(struct pci_function *f, unsigned vector)
{
    const struct pci_msix_entry *e = &f->state->msix[vector];
    if (pci_is_master(f) && (e->address >> 20) == 0xFEE)
        bus_msi(pci_bus(f->host), e->address, e->data);
}

void pci_msix_notify(struct pci_function *f, unsigned vector)
{
    if (vector >= f->n_vectors || !pci_msix_enabled(f))
        return;
    if (masked(f, vector))
        *pending_word(f, vector) |= 1ull << vector % 64;
    else
        send(f, vector);
}

static void send_if_unmasked(struct pci_function *f, unsigned vector)
{
    uint64_t bit = 1ull << vector % 64;
    if (!(*pending_word(f, vector) & bit) || !pci_msix_enabled(f) || masked(f, vector))
        return;
    *pending_word(f, vector) &= ~bit;
    send(f, vector);
}

void pci_msix_control_written(struct pci_function *f)
{
    for (unsigned i = 0; i < f->n_vectors; i++)
        send_if_unmasked(f, i);
}

static uint32_t *entry_word(struct pci_function *f, uint64_t offset, uint32_t words[4])
{
    const struct pci_msix_entry *e = &f->state->msix[offset / MSIX_ENTRY_SIZE];
    words[0] = (uint32_t)e->address;
    words[1] = (uint32_t)(e->address >> 32);
    words[2] = e->data;
    words[3] = e->control;
    return &words[offset % MSIX_ENTRY_SIZE / 4];
}

static uint32_t read_word(struct pci_function *f, uint64_t offset)
{
    uint32_t words[4];
    if (offset < f->n_vectors * MSIX_ENTRY_SIZE)
        return *entry_word(f, offset, words);
    if (offset >= MSIX_PBA && offset < MSIX_PBA + sizeof f->state->msix_pending)
        return (uint32_t)(f->state->msix_pending[(offset - MSIX_PBA) / 8] >> (offset % 8 * 8));
    return 0;
}

static void write_word(struct pci_function *f, uint64_t offset, uint32_t value)
{
    uint32_t words[4];
    if (offset >= f->n_vectors * MSIX_ENTRY_SIZE)
        return;
    unsigned vector = (unsigned)(offset / MSIX_ENTRY_SIZE);
    struct pci_msix_entry *e = &f->state->msix[vector];
    *entry_word(f, offset, words) = value;
    e->address = (words[0] | (uint64_t)words[1] << 32) & ~3ull;
    e->data = words[2];
    e->control = words[3] & 1;
    send_if_unmasked(f, vector);
}

static uint64_t msix_read(void *opaque, uint64_t offset, unsigned size)
{
    struct pci_function *f = opaque;
    if (size == 8)
        return offset % 8 ? ~0ull : read_word(f, offset) | (uint64_t)read_word(f, offset + 4) << 32;
    unsigned shift = (unsigned)(offset & 3) * 8;
    return (uint64_t)read_word(f, offset & ~3ull) >> shift;
}

/* Software must use aligned 4- or 8-byte writes (6.8.2); others have no defined effect: none. */
static void msix_write(void *opaque, uint64_t offset, uint64_t value, unsigned size)
{
    if (size < 4 || offset % size)
        return;
    write_word(opaque, offset, (uint32_t)value);
    if (size == 8)
        write_word(opaque, offset + 4, (uint32_t)(value >> 32));
}

static const struct bus_ops msix_ops = {.read = msix_read, .write = msix_write};

void pci_msix_init(struct pci_function *f, unsigned bar, unsigned n_vectors)
{
    unsigned at = pci_add_capability(f, PCI_CAP_MSIX, MSIX_CAP_SIZE);

    pci_bar_init(f, bar, PCI_BAR_MEM32, MSIX_BAR_SIZE, &msix_ops, f);
    f->n_vectors = n_vectors;
    f->msix_cap = at;
    pci_put16(f->power_on + at + 2, (uint16_t)(n_vectors - 1));
    pci_put32(f->power_on + at + 4, bar);
    pci_put32(f->power_on + at + 8, MSIX_PBA | bar);
    pci_put16(f->writable + at + 2, CONTROL_MASK_ALL | CONTROL_ENABLE);
}

void pci_msix_reset(struct pci_function *f)
{
    memset(f->state->msix_pending, 0, sizeof f->state->msix_pending);
    for (unsigned i = 0; i < PCI_MSIX_MAX; i++)
        f->state->msix[i] = (struct pci_msix_entry){.control = 1};
}
