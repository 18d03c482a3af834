/*
 * PCI: configuration space, base address registers, INTx and MSI-X of a function, and the host bridge.
 *
 * A device embeds a struct pci_function and keeps a struct pci_state in the part of it that is saved.
 * It calls pci_function_init, describes itself (identity, BARs, capabilities), and pci_add puts it on
 * bus 0, where BARs get addresses so that guests that come without firmware find them assigned.
 * All functions: bus lock held.
 */
#pragma once
#include <stdbool.h>
#include <stdint.h>

#include "bus/bus.h"
#include "devices/device.h"

#define PCI_CONFIG_SIZE 256u
#define PCI_BARS 6u
#define PCI_MSIX_MAX 128u
#define PCI_DEVFN(slot, function) ((uint8_t)((slot) << 3 | (function)))

/* Where the guest finds PCI in its address space; the ACPI tables say the same. */
#define PCI_PORT_ADDRESS 0xCF8u
#define PCI_ECAM_BASE 0xE0000000ull
#define PCI_ECAM_SIZE 0x100000ull /* bus 0: 256 functions x 4 KiB */
#define PCI_MMIO32_BASE 0xC0000000ull
#define PCI_MMIO32_SIZE 0x20000000ull
#define PCI_MMIO64_SIZE 0x1000000000ull
#define PCI_IO_BASE 0xC000u /* BARs of ports are assigned from here */
#define PCI_GSI_BASE 16u    /* INTx: four lines, GSI 16-19 */
#define PCI_GSI_COUNT 4u

/* Registers of the type 0 header (PCI 3.0, 6.1) that are named in code. */
enum {
    PCI_VENDOR_ID = 0x00,
    PCI_DEVICE_ID = 0x02,
    PCI_COMMAND = 0x04,
    PCI_STATUS = 0x06,
    PCI_REVISION = 0x08,
    PCI_CLASS = 0x09,
    PCI_HEADER_TYPE = 0x0e,
    PCI_BAR0 = 0x10,
    PCI_SUBSYSTEM_VENDOR = 0x2c,
    PCI_SUBSYSTEM_ID = 0x2e,
    PCI_CAP_POINTER = 0x34,
    PCI_INTERRUPT_LINE = 0x3c,
    PCI_INTERRUPT_PIN = 0x3d,
};
enum {
    PCI_COMMAND_IO = 1,
    PCI_COMMAND_MEMORY = 2,
    PCI_COMMAND_MASTER = 4,
    PCI_COMMAND_INTX_OFF = 1 << 10,
    PCI_STATUS_INTX = 1 << 3,
    PCI_STATUS_CAPS = 1 << 4,
};
enum { PCI_CAP_VENDOR = 0x09, PCI_CAP_MSIX = 0x11 };

struct pci_msix_entry {
    uint64_t address;
    uint32_t data;
    uint32_t control; /* bit 0: masked */
};

/* What is saved of a function: plain bytes. */
struct pci_state {
    uint8_t config[PCI_CONFIG_SIZE];
    uint32_t intx; /* the level that the device drives, before command and routing */
    struct pci_msix_entry msix[PCI_MSIX_MAX];
    uint64_t msix_pending[PCI_MSIX_MAX / 64];
};

enum pci_bar_kind { PCI_BAR_NONE, PCI_BAR_PORT, PCI_BAR_MEM32, PCI_BAR_MEM64 };

struct pci_bar {
    enum pci_bar_kind kind;
    uint64_t size;
    struct bus_range range;
    bool mapped;
};

struct pci_host;

struct pci_function {
    struct pci_host *host; /* NULL before pci_add */
    struct pci_state *state;
    const char *name;
    uint8_t devfn;
    uint8_t power_on[PCI_CONFIG_SIZE]; /* configuration space after reset */
    uint8_t writable[PCI_CONFIG_SIZE]; /* bits that the guest may change */
    uint8_t clear_on_one[PCI_CONFIG_SIZE];
    unsigned cap_end, last_cap;
    struct pci_bar bars[PCI_BARS];
    unsigned n_vectors, msix_cap;
    /* Optional: registers that are doors to something (virtio's PCI_CFG capability).  Before a read of,
     * after a write to, [offset, offset+size). */
    void (*config_read)(struct pci_function *f, unsigned offset, unsigned size);
    void (*config_written)(struct pci_function *f, unsigned offset, unsigned size);
};

struct pci_identity {
    uint16_t vendor, device, subsystem_vendor, subsystem;
    uint32_t class_code; /* class << 16 | subclass << 8 | programming interface */
    uint8_t revision;
    bool intx; /* uses INTA# */
};

/* --- a function (pci.c) ------------------------------------------------------------------------ */
void pci_function_init(struct pci_function *f, struct pci_state *state, const char *name,
                       const struct pci_identity *id);
/* size: a power of two, >= 16 for memory, 4-256 for ports; a MEM64 BAR takes index and index + 1. */
void pci_bar_init(struct pci_function *f, unsigned index, enum pci_bar_kind kind, uint64_t size,
                  const struct bus_ops *ops, void *opaque);
/* Adds a capability of len bytes (header included) and returns its offset; contents are zero. */
unsigned pci_add_capability(struct pci_function *f, uint8_t id, unsigned len);
void pci_function_reset(struct pci_function *f);
/* Maps BARs and drives INTx as the (restored) state says. */
void pci_function_restored(struct pci_function *f);
void pci_function_destroy(struct pci_function *f);

uint32_t pci_config_read(struct pci_function *f, unsigned offset, unsigned size);
void pci_config_write(struct pci_function *f, unsigned offset, uint32_t value, unsigned size);

void pci_set_intx(struct pci_function *f, bool level);
/* May the function reach memory (DMA and MSI-X)?  Command register, bus master. */
bool pci_is_master(const struct pci_function *f);

static inline uint16_t pci_get16(const uint8_t *p)
{
    return (uint16_t)(p[0] | p[1] << 8);
}
static inline uint32_t pci_get32(const uint8_t *p)
{
    return pci_get16(p) | (uint32_t)pci_get16(p + 2) << 16;
}
static inline void pci_put16(uint8_t *p, uint16_t v)
{
    p[0] = (uint8_t)v;
    p[1] = (uint8_t)(v >> 8);
}
static inline void pci_put32(uint8_t *p, uint32_t v)
{
    pci_put16(p, (uint16_t)v);
    pci_put16(p + 2, (uint16_t)(v >> 16));
}

/* --- MSI-X (msix.c) ---------------------------------------------------------------------------- */
/* Gives the function n vectors (1 to PCI_MSIX_MAX), with table and pending bits in BAR `bar`. */
void pci_msix_init(struct pci_function *f, unsigned bar, unsigned n_vectors);
bool pci_msix_enabled(const struct pci_function *f);
/* Sends vector (or remembers it while masked).  A vector that does not exist is ignored. */
void pci_msix_notify(struct pci_function *f, unsigned vector);
void pci_msix_control_written(struct pci_function *f); /* for pci.c: masks may have been lifted */
void pci_msix_reset(struct pci_function *f);

/* --- the host bridge (host.c) -------------------------------------------------------------------- */
extern const struct device_class pci_host_class; /* state is a struct pci_host; config NULL */

/* Puts f on bus 0 (first free slot) and assigns its BARs.  -ENOSPC when there is no room. */
int pci_add(struct pci_host *host, struct pci_function *f);
void pci_remove(struct pci_host *host, struct pci_function *f);
struct bus *pci_bus(struct pci_host *host);
/* For pci.c: f's wish on INTA# after masking. */
void pci_host_set_intx(struct pci_host *host, struct pci_function *f, bool level);
/* The GSI of pin (0 = INTA#) of a slot: each slot is rotated by one. */
static inline unsigned pci_gsi(unsigned slot, unsigned pin)
{
    return PCI_GSI_BASE + (slot + pin) % PCI_GSI_COUNT;
}
