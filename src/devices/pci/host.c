/*
 * The PCI host bridge: bus 0 with 32 slots, reached through the ports 0xCF8/0xCFC (PCI 3.0, 3.2.2.3)
 * and through ECAM (PCI Express 7.2.2).  The reset control register 0xCF9 lies between those ports
 * and is therefore here as well.
 *
 *   CONFIG_ADDRESS 0xCF8:  31 enable | 23-16 bus | 15-8 devfn | 7-2 register
 *   ECAM offset:           27-20 bus | 19-12 devfn | 11-0 register
 */
#include <errno.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "devices/pci/pci.h"

#define PORTS_SIZE 8u
#define RESET_CONTROL_OFFSET 1u /* 0xCF9 */
enum { RESET_CPU = 4, RESET_WRITABLE = 0x0e };

struct pci_host_state {
    struct pci_state bridge;
    uint32_t address;
    uint8_t reset_control;
};

struct pci_host {
    struct pci_host_state saved;
    struct device_env env;
    struct pci_function bridge;
    struct pci_function *functions[256];
    uint32_t gsi_users[PCI_GSI_COUNT][256 / 32]; /* which devfns hold each line up */
    struct bus_range ports, ecam;
    uint64_t next_mem;
    uint32_t next_port;
};

struct bus *pci_bus(struct pci_host *host)
{
    return host->env.bus;
}

/* --- accesses ------------------------------------------------------------------------------------ */

static struct pci_function *addressed(struct pci_host *h)
{
    bool on_bus0 = (h->saved.address & 0x80ff0000u) == 0x80000000u;
    return on_bus0 ? h->functions[(h->saved.address >> 8) & 0xff] : NULL;
}

static uint64_t ports_read(void *opaque, uint64_t offset, unsigned size)
{
    struct pci_host *h = opaque;

    if (offset >= 4) {
        struct pci_function *f = addressed(h);
        unsigned reg = (h->saved.address & 0xfc) + (unsigned)(offset & 3);
        return f && (offset & 3) + size <= 4 ? pci_config_read(f, reg, size) : ~0ull;
    }
    if (offset == 0 && size == 4)
        return h->saved.address;
    return offset == RESET_CONTROL_OFFSET && size == 1 ? h->saved.reset_control : ~0ull;
}

static void ports_write(void *opaque, uint64_t offset, uint64_t value, unsigned size)
{
    struct pci_host *h = opaque;

    if (offset >= 4) {
        struct pci_function *f = addressed(h);
        if (f && (offset & 3) + size <= 4)
            pci_config_write(f, (h->saved.address & 0xfc) + (unsigned)(offset & 3), (uint32_t)value, size);
    } else if (offset == 0 && size == 4) {
        h->saved.address = (uint32_t)value & 0x80fffffcu;
    } else if (offset == RESET_CONTROL_OFFSET && size == 1) {
        bool rising = (value & RESET_CPU) && !(h->saved.reset_control & RESET_CPU);
        h->saved.reset_control = (uint8_t)value & RESET_WRITABLE;
        if (rising && h->env.event)
            h->env.event(h->env.event_opaque, MACHINE_RESET);
    }
}

static uint64_t ecam_read(void *opaque, uint64_t offset, unsigned size)
{
    struct pci_host *h = opaque;
    struct pci_function *f = h->functions[(offset >> 12) & 0xff];
    unsigned reg = offset & 0xfff;

    if (!f)
        return ~0ull;
    if (size == 8)
        return pci_config_read(f, reg, 4) | (uint64_t)pci_config_read(f, reg + 4, 4) << 32;
    return pci_config_read(f, reg, size);
}

static void ecam_write(void *opaque, uint64_t offset, uint64_t value, unsigned size)
{
    struct pci_host *h = opaque;
    struct pci_function *f = h->functions[(offset >> 12) & 0xff];
    unsigned reg = offset & 0xfff;

    if (!f)
        return;
    pci_config_write(f, reg, (uint32_t)value, size == 8 ? 4 : size);
    if (size == 8)
        pci_config_write(f, reg + 4, (uint32_t)(value >> 32), 4);
}

static const struct bus_ops ports_ops = {.read = ports_read, .write = ports_write};
static const struct bus_ops ecam_ops = {.read = ecam_read, .write = ecam_write};

/* --- interrupts ------------------------------------------------------------------------------------ */

void pci_host_set_intx(struct pci_host *h, struct pci_function *f, bool level)
{
    unsigned gsi = pci_gsi(f->devfn >> 3, 0);
    uint32_t *users = h->gsi_users[gsi - PCI_GSI_BASE];
    uint32_t any = 0;

    if (level)
        users[f->devfn / 32] |= 1u << f->devfn % 32;
    else
        users[f->devfn / 32] &= ~(1u << f->devfn % 32);
    for (unsigned i = 0; i < 256 / 32; i++)
        any |= users[i];
    if (h->env.isa_irq)
        irq_set(&h->env.isa_irq[gsi], any != 0);
}

/* --- assembly --------------------------------------------------------------------------------------- */

/* What firmware would do: give each BAR an address, but leave decoding off. */
static int assign_bars(struct pci_host *h, struct pci_function *f)
{
    for (unsigned i = 0; i < PCI_BARS; i++) {
        struct pci_bar *bar = &f->bars[i];
        uint8_t *reg = f->power_on + PCI_BAR0 + 4 * i;
        if (bar->kind == PCI_BAR_NONE)
            continue;
        if (bar->kind == PCI_BAR_PORT) {
            uint32_t at = (h->next_port + (uint32_t)bar->size - 1) & ~((uint32_t)bar->size - 1);
            if (at + bar->size > 0x10000)
                return -ENOSPC;
            h->next_port = at + (uint32_t)bar->size;
            pci_put32(reg, pci_get32(reg) | at);
            continue;
        }
        uint64_t align = bar->size < 0x1000 ? 0x1000 : bar->size; /* a page holds one device only */
        uint64_t at = (h->next_mem + align - 1) & ~(align - 1);
        if (at + align > PCI_MMIO32_BASE + PCI_MMIO32_SIZE)
            return -ENOSPC;
        h->next_mem = at + align;
        pci_put32(reg, pci_get32(reg) | (uint32_t)at);
    }
    return 0;
}

static int add_at(struct pci_host *h, struct pci_function *f, uint8_t devfn)
{
    f->devfn = devfn;
    int err = assign_bars(h, f);
    if (err)
        return err;
    if (f->power_on[PCI_INTERRUPT_PIN])
        f->power_on[PCI_INTERRUPT_LINE] = (uint8_t)pci_gsi(devfn >> 3, 0);
    f->host = h;
    h->functions[devfn] = f;
    pci_function_reset(f);
    return 0;
}

int pci_add(struct pci_host *h, struct pci_function *f)
{
    for (unsigned slot = 0; slot < 32; slot++)
        if (!h->functions[PCI_DEVFN(slot, 0)])
            return add_at(h, f, PCI_DEVFN(slot, 0));
    return -ENOSPC;
}

void pci_remove(struct pci_host *h, struct pci_function *f)
{
    if (h->functions[f->devfn] == f)
        h->functions[f->devfn] = NULL;
    f->host = NULL;
}

static void host_destroy(struct device *dev)
{
    struct pci_host *h = dev->state;
    if (!h)
        return;
    if (h->bridge.host)
        pci_function_destroy(&h->bridge);
    bus_unmap(h->env.bus, BUS_PORT, &h->ports);
    bus_unmap(h->env.bus, BUS_MEM, &h->ecam);
    free(h);
    dev->state = NULL;
}

static int host_create(struct device *dev, const struct device_env *env, const void *config)
{
    static const struct pci_identity id = {
        .vendor = 0x1b36, .device = 0x0008, .subsystem_vendor = 0x1af4, .subsystem = 0x1100, .class_code = 0x060000};
    struct pci_host *h = calloc(1, sizeof *h);
    if (!h)
        return -ENOMEM;
    h->env = *env;
    h->next_mem = PCI_MMIO32_BASE;
    h->next_port = PCI_IO_BASE;
    h->ports = (struct bus_range){PCI_PORT_ADDRESS, PORTS_SIZE, &ports_ops, h, "pci-ports", 0, 0};
    h->ecam = (struct bus_range){PCI_ECAM_BASE, PCI_ECAM_SIZE, &ecam_ops, h, "pci-ecam", 0, 0};
    int err = bus_map(env->bus, BUS_PORT, &h->ports);
    if (err)
        goto free_host;
    err = bus_map(env->bus, BUS_MEM, &h->ecam);
    if (err)
        goto unmap_ports;
    pci_function_init(&h->bridge, &h->saved.bridge, "pci-host", &id);
    err = add_at(h, &h->bridge, PCI_DEVFN(0, 0));
    if (err)
        goto unmap_ecam;
    dev->state = h;
    return 0;

unmap_ecam:
    bus_unmap(env->bus, BUS_MEM, &h->ecam);
unmap_ports:
    bus_unmap(env->bus, BUS_PORT, &h->ports);
free_host:
    free(h);
    return err;
}

static void host_reset(struct device *dev)
{
    struct pci_host *h = dev->state;
    h->saved.address = 0;
    h->saved.reset_control = 0;
    pci_function_reset(&h->bridge);
}

static void host_restored(struct device *dev)
{
    struct pci_host *h = dev->state;
    pci_function_restored(&h->bridge);
}

const struct device_class pci_host_class = {
    .type = "pci-host",
    .create = host_create,
    .reset = host_reset,
    .destroy = host_destroy,
    .save_offset = offsetof(struct pci_host, saved),
    .save_size = sizeof(struct pci_host_state),
    .post_restore = host_restored,
};
