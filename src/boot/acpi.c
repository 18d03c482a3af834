/*
 * ACPI tables (6.5, chapter 5), one after the other from BOOT_ACPI on:
 *
 *   RSDP -> XSDT -> FADT -> FACS, DSDT
 *                -> MADT, MCFG, HPET
 *
 * Every table begins with a 36-byte header: signature, length, revision, checksum, OEM and creator.
 */
#include <errno.h>
#include <stddef.h>
#include <string.h>

#include "boot/aml.h"
#include "boot/boot_int.h"
#include "boot/dsdt.h"

struct header {
    char signature[4];
    uint32_t length;
    uint8_t revision, checksum;
    char oem[6], oem_table[8];
    uint32_t oem_revision;
    char creator[4];
    uint32_t creator_revision;
} __attribute__((packed));

/* Generic address structure (5.2.3.2). */
struct address {
    uint8_t space, bits, offset, access;
    uint64_t address;
} __attribute__((packed));

struct rsdp {
    char signature[8];
    uint8_t checksum;
    char oem[6];
    uint8_t revision;
    uint32_t rsdt, length;
    uint64_t xsdt;
    uint8_t extended_checksum, reserved[3];
} __attribute__((packed));

struct fadt {
    struct header header;
    uint32_t facs, dsdt;
    uint8_t reserved0, profile;
    uint16_t sci;
    uint32_t smi_command;
    uint8_t acpi_enable, acpi_disable, s4bios, pstate;
    uint32_t pm1a_event, pm1b_event, pm1a_control, pm1b_control, pm2_control, pm_timer, gpe0, gpe1;
    uint8_t pm1_event_len, pm1_control_len, pm2_control_len, pm_timer_len, gpe0_len, gpe1_len, gpe1_base, cst;
    uint16_t c2_latency, c3_latency, flush_size, flush_stride;
    uint8_t duty_offset, duty_width, day_alarm, month_alarm, century;
    uint16_t boot_architecture;
    uint8_t reserved1;
    uint32_t flags;
    struct address reset;
    uint8_t reset_value;
    uint16_t arm_boot;
    uint8_t minor;
    uint64_t x_facs, x_dsdt;
    struct address x_pm1a_event, x_pm1b_event, x_pm1a_control, x_pm1b_control, x_pm2_control, x_pm_timer, x_gpe0,
        x_gpe1, sleep_control, sleep_status;
    uint64_t hypervisor;
} __attribute__((packed));

struct facs {
    char signature[4];
    uint32_t length, hardware, waking, lock, flags;
    uint64_t x_waking;
    uint8_t version, reserved[3];
    uint32_t ospm_flags;
    uint8_t reserved2[24];
} __attribute__((packed));

_Static_assert(sizeof(struct header) == 36, "table header, 5.2.6");
_Static_assert(sizeof(struct rsdp) == 36, "RSDP, 5.2.5.3");
_Static_assert(sizeof(struct fadt) == 276, "FADT, 5.2.9");
_Static_assert(sizeof(struct facs) == 64, "FACS, 5.2.10");

enum { SPACE_MEMORY, SPACE_IO };
enum { /* FADT flags, table 5.10 */
       FADT_WBINVD = 1 << 0,
       FADT_PROC_C1 = 1 << 2,
       FADT_SLEEP_BUTTON_METHOD = 1 << 5,
       FADT_TIMER_32 = 1 << 8,
       FADT_RESET_REGISTER = 1 << 10,
};
enum { /* IA-PC boot architecture, table 5.11: no VGA, no 8042 keyboard */
       BOOT_LEGACY_DEVICES = 1 << 0,
       BOOT_NO_VGA = 1 << 2,
};
#define NO_C2 101 /* a latency above 100 us: not supported */
#define NO_C3 1001

struct builder {
    struct memory *memory;
    const struct platform *p;
    uint8_t *area; /* all tables, until they are copied */
    size_t used;
    uint64_t tables[4];
    unsigned n_tables;
};

static uint8_t checksum(const void *data, size_t len)
{
    uint8_t sum = 0;
    for (size_t i = 0; i < len; i++)
        sum = (uint8_t)(sum + ((const uint8_t *)data)[i]);
    return (uint8_t)-sum;
}

static void fill_header(struct header *h, const char *signature, uint8_t revision, size_t length)
{
    memcpy(h->signature, signature, 4);
    h->length = (uint32_t)length;
    h->revision = revision;
    h->checksum = 0;
    memcpy(h->oem, "GUISE ", 6);
    memcpy(h->oem_table, "GUISEPC ", 8);
    h->oem_revision = 1;
    memcpy(h->creator, "GUIS", 4);
    h->creator_revision = 1;
    h->checksum = checksum(h, length);
}

/* Opens the next table's space, aligned; what is written there is finished by finish(). */
static struct aml begin(struct builder *b, size_t align, uint64_t *gpa)
{
    b->used = (b->used + align - 1) & ~(align - 1);
    *gpa = BOOT_ACPI + b->used;
    return (struct aml){.data = b->area + b->used, .size = BOOT_ACPI_SIZE - b->used};
}

static int finish(struct builder *b, struct aml *a)
{
    b->used += a->len;
    return a->overflow ? -ENOSPC : 0;
}

/* A table of fixed content: header space in front, `signature` filled in at the end. */
static int finish_table(struct builder *b, struct aml *a, const char *signature, uint8_t revision, uint64_t gpa)
{
    if (!a->overflow) {
        fill_header((struct header *)a->data, signature, revision, a->len);
        if (strcmp(signature, "DSDT") && strcmp(signature, "XSDT"))
            b->tables[b->n_tables++] = gpa;
    }
    return finish(b, a);
}

static void skip_header(struct aml *a)
{
    static const struct header blank;
    aml_bytes(a, &blank, sizeof blank);
}

/* --- DSDT, FACS, FADT ------------------------------------------------------------------------------ */

static int put_dsdt(struct builder *b, uint64_t *gpa)
{
    struct aml a = begin(b, 16, gpa);
    skip_header(&a);
    dsdt_build(&a, b->p);
    return finish_table(b, &a, "DSDT", 2, *gpa);
}

static int put_facs(struct builder *b, uint64_t *gpa)
{
    const struct facs facs = {.signature = {'F', 'A', 'C', 'S'}, .length = sizeof facs, .version = 2};
    struct aml a = begin(b, 64, gpa);
    aml_bytes(&a, &facs, sizeof facs);
    return finish(b, &a);
}

static struct address port(uint16_t at, uint8_t bits)
{
    static const uint8_t access[] = {[1] = 1, [2] = 2, [4] = 3};
    return (struct address){SPACE_IO, bits, 0, bits > 32 ? 3 : access[bits / 8], at};
}

static int put_fadt(struct builder *b, uint64_t facs, uint64_t dsdt)
{
    const struct platform *p = b->p;
    uint64_t gpa;
    struct aml a = begin(b, 16, &gpa);
    struct fadt f = {
        .facs = (uint32_t)facs,
        .dsdt = (uint32_t)dsdt,
        .sci = p->sci_gsi,
        .pm1a_event = p->pm1a_event,
        .pm1a_control = p->pm1a_control,
        .pm_timer = p->pm_timer,
        .pm1_event_len = 4,
        .pm1_control_len = 2,
        .pm_timer_len = 4,
        .gpe0 = p->gpe0,
        .gpe0_len = 2,
        .c2_latency = NO_C2,
        .c3_latency = NO_C3,
        .century = p->century,
        .boot_architecture = BOOT_LEGACY_DEVICES | BOOT_NO_VGA,
        .flags = FADT_WBINVD | FADT_PROC_C1 | FADT_SLEEP_BUTTON_METHOD | FADT_TIMER_32 | FADT_RESET_REGISTER,
        .reset = port(p->reset_port, 8),
        .reset_value = p->reset_value,
        .minor = 3,
        .x_dsdt = dsdt, /* x_facs stays zero: it is for a FACS above 4 GiB */
        .x_pm1a_event = port(p->pm1a_event, 32),
        .x_pm1a_control = port(p->pm1a_control, 16),
        .x_pm_timer = port(p->pm_timer, 32),
    };
    f.x_pm1a_event.access = 2; /* two registers of 16 bits */
    f.x_gpe0 = port(p->gpe0, 16);
    f.x_gpe0.access = 1; /* of 8 */
    memcpy(&f.hypervisor, "guise\0\0", sizeof f.hypervisor);
    aml_bytes(&a, &f, sizeof f);
    return finish_table(b, &a, "FACP", 6, gpa);
}

/* --- MADT, MCFG, HPET --------------------------------------------------------------------------------- */

static void put_bytes(struct aml *a, const uint8_t *bytes, uint32_t value)
{
    aml_bytes(a, bytes, 4);
    aml_bytes(a, &value, 4);
}

/* Interrupt source override: ISA interrupt, its global number, MPS flags (polarity, trigger). */
static void put_override(struct aml *a, uint8_t irq, uint32_t gsi, uint16_t flags)
{
    put_bytes(a, (const uint8_t[]){2, 10, 0, irq}, gsi);
    aml_bytes(a, &flags, 2);
}

/* Local APIC flags (table 5.22): one that is not there may come later, which must be said. */
enum { APIC_ENABLED = 1 << 0, APIC_ONLINE_CAPABLE = 1 << 1 };

static int put_madt(struct builder *b)
{
    uint64_t gpa;
    struct aml a = begin(b, 16, &gpa);
    uint32_t lapic = (uint32_t)b->p->lapic_base, ioapic[2] = {(uint32_t)b->p->ioapic_base, 0}, pcat_compat = 1;

    skip_header(&a);
    aml_bytes(&a, &lapic, 4);
    aml_bytes(&a, &pcat_compat, 4);
    for (unsigned i = 0; i < b->p->n_cpus; i++)
        put_bytes(&a, (const uint8_t[]){0, 8, (uint8_t)i, (uint8_t)i},
                  b->p->absent_cpus >> i & 1 ? APIC_ONLINE_CAPABLE : APIC_ENABLED);
    aml_bytes(&a, (const uint8_t[]){1, 12, 0, 0}, 4);
    aml_bytes(&a, ioapic, 8);
    put_override(&a, 0, 2, 0);
    put_override(&a, b->p->sci_gsi, b->p->sci_gsi, 0x0d /* level, active high */);
    aml_bytes(&a, (const uint8_t[]){4, 6, 0xff, 0, 0, 1}, 6); /* NMI on LINT1 of all */
    return finish_table(b, &a, "APIC", 5, gpa);
}

static int put_mcfg(struct builder *b)
{
    uint64_t gpa, reserved = 0;
    struct aml a = begin(b, 16, &gpa);

    skip_header(&a);
    aml_bytes(&a, &reserved, 8);
    aml_bytes(&a, &b->p->ecam_base, 8);
    aml_bytes(&a, (const uint8_t[]){0, 0, 0, (uint8_t)(b->p->ecam_size / 0x100000 - 1), 0, 0, 0, 0}, 8);
    return finish_table(b, &a, "MCFG", 1, gpa);
}

static int put_hpet(struct builder *b)
{
    uint64_t gpa;
    struct aml a = begin(b, 16, &gpa);
    uint32_t id = 0x8086a201; /* Intel, legacy routing, 64-bit counter, three comparators */
    struct address at = {SPACE_MEMORY, 64, 0, 0, b->p->hpet_base};

    skip_header(&a);
    aml_bytes(&a, &id, 4);
    aml_bytes(&a, &at, sizeof at);
    aml_bytes(&a, (const uint8_t[]){0, 100, 0, 0}, 4); /* number, minimum tick, no page protection */
    return finish_table(b, &a, "HPET", 1, gpa);
}

/* --- the roots ------------------------------------------------------------------------------------------ */

static int put_xsdt(struct builder *b, uint64_t *gpa)
{
    struct aml a = begin(b, 16, gpa);
    skip_header(&a);
    aml_bytes(&a, b->tables, b->n_tables * sizeof b->tables[0]);
    return finish_table(b, &a, "XSDT", 1, *gpa);
}

static void put_rsdp(struct builder *b, uint64_t xsdt)
{
    struct rsdp r = {.signature = "RSD PTR ", .oem = "GUISE ", .revision = 2, .length = sizeof r, .xsdt = xsdt};

    r.checksum = checksum(&r, offsetof(struct rsdp, length)); /* of ACPI 1.0's part */
    r.extended_checksum = checksum(&r, sizeof r);
    memcpy(b->area, &r, sizeof r);
}

static int build(struct builder *b)
{
    uint64_t facs = 0, dsdt = 0, xsdt = 0;
    int err = put_facs(b, &facs);

    if (!err)
        err = put_dsdt(b, &dsdt);
    if (!err)
        err = put_fadt(b, facs, dsdt);
    if (!err)
        err = put_madt(b);
    if (!err)
        err = put_mcfg(b);
    if (!err && b->p->hpet_base)
        err = put_hpet(b);
    if (!err)
        err = put_xsdt(b, &xsdt);
    if (!err)
        put_rsdp(b, xsdt);
    return err;
}

int acpi_build(struct memory *m, const struct platform *p)
{
    uint8_t *area = memory_hva(m, BOOT_ACPI, BOOT_ACPI_SIZE);
    struct builder b = {.memory = m, .p = p, .area = area, .used = sizeof(struct rsdp)};

    if (!area)
        return -EFAULT;
    if (!p->n_cpus || p->n_cpus > BOOT_MAX_CPUS)
        return -EINVAL;
    memset(area, 0, BOOT_ACPI_SIZE);
    return build(&b);
}
