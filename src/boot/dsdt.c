/*
 * The DSDT: what is on the board.
 *
 *   \_S5                         power-off
 *   \_SB  C000...                processors; those that come and go have methods
 *         PCI0                   host bridge: windows (_CRS), interrupt routing (_PRT), features (_OSC)
 *         COM1 RTC PVPN BRD      serial port, clock, pvpanic, ranges nobody else may use
 *         VGEN                   where the machine's generation ID is
 *   \_GPE._E00 _E01              something is to be asked of processors; the generation is another one
 */
#include <stdio.h>

#include "boot/aml.h"
#include "boot/dsdt.h"

#define PCI_SLOTS 32u
#define PCI_PORTS 0xcf8u

enum {
    OP_AND = 0x7b,
    OP_OR = 0x7d,
    OP_RETURN = 0xa4,
    OP_LEQUAL = 0x93,
    OP_CREATE_DWORD = 0x8a,
    OP_NOTIFY = 0x86,
    OP_STORE = 0x70,
    OP_LAND = 0x90,
    OP_LNOT = 0x92,
    OP_LGREATER = 0x94,
    OP_LOCAL0 = 0x60,
    OP_ARG0 = 0x68,
    OP_ARG1 = 0x69,
    OP_ARG3 = 0x6b,
};

static void put_s5(struct aml *a, const struct platform *p)
{
    aml_name(a, "\\_S5");
    size_t package = aml_package(a, 4);
    aml_integer(a, p->s5_type);
    for (unsigned i = 1; i < 4; i++)
        aml_integer(a, 0);
    aml_close(a, package);
}

/* --- processors --------------------------------------------------------------------------------- */

enum { NOTIFY_DEVICE_CHECK = 1, NOTIFY_EJECT = 3 }; /* 5.6.6, and the sources of _OST, 6.3.5 */
enum { NOTIFY_GENERATION = 0x80 };
enum { STA_WORKS = 0xf, STA_ABSENT = 0 };
enum { OST_EJECT_IN_PROGRESS = 0x84 };

/* If (And (STAT, bit)): to be filled and closed. */
static size_t if_bit(struct aml *a, uint8_t operand, const char *path, uint64_t bit)
{
    size_t open = aml_if(a);
    aml_byte(a, OP_AND);
    if (path)
        aml_path(a, path);
    else
        aml_byte(a, operand);
    aml_integer(a, bit);
    aml_byte(a, 0); /* the result is stored nowhere */
    return open;
}

static void put_return(struct aml *a, uint64_t value)
{
    aml_byte(a, OP_RETURN);
    aml_integer(a, value);
}

/* Its MADT entry (6.2.10) as it is when it is there, whatever the table said at the start. */
static void put_mat(struct aml *a, unsigned i)
{
    const uint8_t entry[] = {0, 8, (uint8_t)i, (uint8_t)i, 1, 0, 0, 0};
    aml_name(a, "_MAT");
    size_t buffer = aml_buffer(a, sizeof entry);
    aml_bytes(a, entry, sizeof entry);
    aml_close(a, buffer);
}

/* The OS reports what became of a request (6.3.5): a failure to let it go is told to the host. */
static void put_ost(struct aml *a, const struct platform *p)
{
    size_t method = aml_method(a, "_OST", 3);
    size_t eject = aml_if(a);
    aml_byte(a, OP_LAND);
    aml_byte(a, OP_LEQUAL);
    aml_byte(a, OP_ARG0);
    aml_integer(a, NOTIFY_EJECT);
    aml_byte(a, OP_LAND);
    aml_byte(a, OP_LGREATER);
    aml_byte(a, OP_ARG1);
    aml_integer(a, 0);
    aml_byte(a, OP_LNOT);
    aml_byte(a, OP_LEQUAL);
    aml_byte(a, OP_ARG1);
    aml_integer(a, OST_EJECT_IN_PROGRESS);
    aml_store(a, p->cpu_bits.refuse, "STAT");
    aml_close(a, eject);
    aml_close(a, method);
}

/* What has happened to it is acknowledged and handed on. */
static void put_event(struct aml *a, const struct platform *p, const char *name)
{
    const struct {
        uint8_t bit, notify;
    } events[] = {{p->cpu_bits.inserted, NOTIFY_DEVICE_CHECK}, {p->cpu_bits.leave, NOTIFY_EJECT}};
    size_t method = aml_method(a, "EVNT", 0);
    aml_byte(a, OP_STORE);
    aml_path(a, "STAT");
    aml_byte(a, OP_LOCAL0);
    for (size_t i = 0; i < sizeof events / sizeof *events; i++) {
        size_t happened = if_bit(a, OP_LOCAL0, NULL, events[i].bit);
        aml_store(a, events[i].bit, "STAT");
        aml_byte(a, OP_NOTIFY);
        aml_path(a, name);
        aml_integer(a, events[i].notify);
        aml_close(a, happened);
    }
    aml_close(a, method);
}

static void put_hotplug(struct aml *a, const struct platform *p, unsigned i, const char *name)
{
    aml_port_byte(a, "CREG", "STAT", (uint16_t)(p->cpus_port + i));
    size_t sta = aml_method(a, "_STA", 0);
    size_t present = if_bit(a, 0, "STAT", p->cpu_bits.present);
    put_return(a, STA_WORKS);
    aml_close(a, present);
    put_return(a, STA_ABSENT);
    aml_close(a, sta);
    put_mat(a, i);
    if (i) { /* CPU 0 stays */
        size_t eject = aml_method(a, "_EJ0", 1);
        aml_store(a, p->cpu_bits.eject, "STAT");
        aml_close(a, eject);
    }
    put_ost(a, p);
    put_event(a, p, name);
}

static void put_processors(struct aml *a, const struct platform *p)
{
    char name[16];

    for (unsigned i = 0; i < p->n_cpus; i++) {
        snprintf(name, sizeof name, "C%03X", i & 0xfff);
        size_t device = aml_device(a, name);
        aml_name(a, "_HID");
        aml_string(a, "ACPI0007");
        aml_name(a, "_UID");
        aml_integer(a, i);
        if (p->cpus_port)
            put_hotplug(a, p, i, name);
        aml_close(a, device);
    }
}

/* An edge (_Exx): it is acknowledged before the method looks, so what comes meanwhile is another one. */
static void put_events(struct aml *a, const struct platform *p)
{
    char path[24];

    size_t gpe = aml_scope(a, "\\_GPE");
    if (p->cpus_port) {
        size_t method = aml_method(a, "_E00", 0);
        for (unsigned i = 0; i < p->n_cpus; i++) {
            snprintf(path, sizeof path, "\\_SB.C%03X.EVNT", i & 0xfff);
            aml_path(a, path);
        }
        aml_close(a, method);
    }
    size_t method = aml_method(a, "_E01", 0);
    aml_byte(a, OP_NOTIFY);
    aml_path(a, "\\_SB.VGEN");
    aml_integer(a, NOTIFY_GENERATION);
    aml_close(a, method);
    aml_close(a, gpe);
}

/* --- PCI0 ---------------------------------------------------------------------------------------- */

static void put_pci_windows(struct aml *a, const struct platform *p)
{
    aml_name(a, "_CRS");
    size_t crs = aml_resources(a);
    aml_bus_window(a, 0, (uint16_t)(p->ecam_size / 0x100000 - 1));
    aml_io(a, PCI_PORTS, 8);
    aml_io_window(a, 0, PCI_PORTS - 1);
    aml_io_window(a, PCI_PORTS + 8, 0xffff);
    aml_memory32_window(a, (uint32_t)p->mmio32_base, (uint32_t)p->mmio32_size);
    aml_memory64_window(a, p->mmio64_base, p->mmio64_size);
    aml_resources_close(a, crs);
}

/* Each slot's four pins, wired straight to I/O APIC inputs (6.2.13). */
static void put_pci_routing(struct aml *a, const struct platform *p)
{
    aml_name(a, "_PRT");
    size_t table = aml_package(a, PCI_SLOTS * 4);
    for (unsigned slot = 0; slot < PCI_SLOTS; slot++)
        for (unsigned pin = 0; pin < 4; pin++) {
            size_t route = aml_package(a, 4);
            aml_integer(a, (uint64_t)slot << 16 | 0xffff);
            aml_integer(a, pin);
            aml_integer(a, 0);
            aml_integer(a, p->pci_gsi_base + (slot + pin) % p->pci_gsi_count);
            aml_close(a, route);
        }
    aml_close(a, table);
}

static void dword_field(struct aml *a, unsigned offset, const char *name)
{
    aml_byte(a, OP_CREATE_DWORD);
    aml_byte(a, OP_ARG3);
    aml_integer(a, offset);
    aml_path(a, name);
}

static void assign(struct aml *a, uint8_t op, const char *name, uint64_t value)
{
    aml_byte(a, op);
    aml_path(a, name);
    aml_integer(a, value);
    aml_path(a, name);
}

/* The OS asks for control of PCI Express features (6.2.11.3); this bus has none of them to hand over. */
static void put_pci_osc(struct aml *a)
{
    static const uint8_t uuid[16] = {0x5b, 0x4d, 0xdb, 0x33, 0xf7, 0x1f, 0x1c, 0x40,
                                     0x96, 0x57, 0x74, 0x41, 0xc0, 0x3d, 0xd7, 0x66};
    size_t method = aml_method(a, "_OSC", 4);
    dword_field(a, 0, "CDW1");
    size_t known = aml_if(a);
    aml_byte(a, OP_LEQUAL);
    aml_byte(a, OP_ARG0);
    size_t buffer = aml_buffer(a, sizeof uuid);
    aml_bytes(a, uuid, sizeof uuid);
    aml_close(a, buffer);
    dword_field(a, 8, "CDW3");
    assign(a, OP_AND, "CDW3", 0);
    aml_close(a, known);
    size_t otherwise = aml_else(a);
    assign(a, OP_OR, "CDW1", 4); /* unrecognized UUID */
    aml_close(a, otherwise);
    aml_byte(a, OP_RETURN);
    aml_byte(a, OP_ARG3);
    aml_close(a, method);
}

static void put_pci(struct aml *a, const struct platform *p)
{
    static const struct {
        const char *name;
        uint64_t value;
    } numbers[] = {{"_UID", 0}, {"_SEG", 0}, {"_BBN", 0}};
    size_t device = aml_device(a, "PCI0");
    aml_name(a, "_HID");
    aml_eisa_id(a, "PNP0A08");
    aml_name(a, "_CID");
    aml_eisa_id(a, "PNP0A03");
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) {
        aml_name(a, numbers[i].name);
        aml_integer(a, numbers[i].value);
    }
    put_pci_windows(a, p);
    put_pci_routing(a, p);
    put_pci_osc(a);
    aml_close(a, device);
}

/* --- the board's small devices ----------------------------------------------------------------------- */

/* A device with one range of ports and perhaps an interrupt. */
static void put_simple(struct aml *a, const char *name, const char *id, unsigned uid, uint16_t port, uint8_t ports,
                       int irq)
{
    size_t device = aml_device(a, name);
    aml_name(a, "_HID");
    if (id[0] == 'P' && id[1] == 'N' && id[2] == 'P')
        aml_eisa_id(a, id);
    else
        aml_string(a, id);
    aml_name(a, "_UID");
    aml_integer(a, uid);
    aml_name(a, "_STA");
    aml_integer(a, 0xf);
    aml_name(a, "_CRS");
    size_t crs = aml_resources(a);
    aml_io(a, port, ports);
    if (irq >= 0)
        aml_irq(a, (unsigned)irq);
    aml_resources_close(a, crs);
    aml_close(a, device);
}

/* Ranges that belong to the board: ECAM (PCI Firmware 4.1.2 wants it here) and the ACPI registers. */
static void put_board(struct aml *a, const struct platform *p)
{
    size_t device = aml_device(a, "BRD");
    aml_name(a, "_HID");
    aml_eisa_id(a, "PNP0C02");
    aml_name(a, "_UID");
    aml_integer(a, 0);
    aml_name(a, "_CRS");
    size_t crs = aml_resources(a);
    aml_memory32(a, (uint32_t)p->ecam_base, (uint32_t)p->ecam_size);
    aml_io(a, p->pm1a_event, p->pm_ports);
    if (p->cpus_port)
        aml_io(a, p->cpus_port, (uint8_t)p->n_cpus);
    aml_resources_close(a, crs);
    aml_close(a, device);
}

/* As Microsoft's specification has it: the address of 16 bytes, in halves. */
static void put_generation(struct aml *a, const struct platform *p)
{
    size_t device = aml_device(a, "VGEN");
    aml_name(a, "_HID");
    aml_string(a, "GUIS0001");
    aml_name(a, "_CID");
    aml_string(a, "VM_Gen_Counter");
    aml_name(a, "_DDN");
    aml_string(a, "VM_Gen_Counter");
    aml_name(a, "ADDR");
    size_t package = aml_package(a, 2);
    aml_integer(a, (uint32_t)p->generation);
    aml_integer(a, p->generation >> 32);
    aml_close(a, package);
    aml_close(a, device);
}

void dsdt_build(struct aml *a, const struct platform *p)
{
    put_s5(a, p);
    size_t sb = aml_scope(a, "\\_SB");
    put_processors(a, p);
    put_pci(a, p);
    put_simple(a, "COM1", "PNP0501", 1, p->uart_port, 8, p->uart_irq);
    put_simple(a, "RTC", "PNP0B00", 0, 0x70, 2, 8);
    put_simple(a, "PVPN", "QEMU0001", 0, p->pvpanic_port, 1, -1);
    put_board(a, p);
    put_generation(a, p);
    aml_close(a, sb);
    put_events(a, p);
}
