/*
 * SMBIOS 2.8 (DMTF DSP0134): an entry point at BOOT_SMBIOS and the structures after it, as many as a
 * machine must have.  Each is a formatted part whose second byte is its length, then its strings, each
 * ended by a NUL, and one NUL more.
 */
#include <errno.h>
#include <stddef.h>
#include <string.h>

#include "boot/boot_int.h"

#define TABLE (BOOT_SMBIOS + 0x20u)
#define KIB_PER_RANGE_MAX 0xffffffffu

struct entry_point { /* 5.2.1 */
    char anchor[4];
    uint8_t checksum, length, major, minor;
    uint16_t largest;
    uint8_t revision, formatted[5];
    char intermediate[5];
    uint8_t intermediate_checksum;
    uint16_t table_length;
    uint32_t table_address;
    uint16_t count;
    uint8_t bcd;
} __attribute__((packed));

struct writer {
    uint8_t *data;
    size_t len, size, start;
    uint16_t count, largest;
    int error;
};

static void put(struct writer *w, uint64_t value, unsigned bytes)
{
    for (unsigned i = 0; i < bytes; i++) {
        if (w->len == w->size) {
            w->error = -ENOSPC;
            return;
        }
        w->data[w->len++] = (uint8_t)(value >> 8 * i);
    }
}

static void zeros(struct writer *w, unsigned bytes)
{
    while (bytes--)
        put(w, 0, 1);
}

/* Handles are type << 8 | number. */
static void begin(struct writer *w, uint8_t type, unsigned number)
{
    w->start = w->len;
    put(w, type, 1);
    put(w, 0, 1);
    put(w, (uint64_t)type << 8 | number, 2);
}

/* strings: one after another, each with its NUL, as a literal gives them; "" when there are none. */
static void end(struct writer *w, const char *strings, size_t len)
{
    if (!w->error)
        w->data[w->start + 1] = (uint8_t)(w->len - w->start);
    for (size_t i = 0; i < len; i++)
        put(w, (uint8_t)strings[i], 1);
    zeros(w, len ? 1 : 2);
    w->count++;
    if (w->len - w->start > w->largest)
        w->largest = (uint16_t)(w->len - w->start);
}
#define END(w, strings) end(w, strings, sizeof(strings) - 1)

static void put_bios(struct writer *w) /* 7.1 */
{
    begin(w, 0, 0);
    put(w, 1, 1); /* vendor, version */
    put(w, 2, 1);
    put(w, 0xf000, 2); /* segment */
    put(w, 3, 1);      /* release date */
    zeros(w, 1);
    put(w, 1 << 3, 8);     /* "characteristics not supported" */
    put(w, 0x1001, 2);     /* ACPI; a virtual machine */
    put(w, 0xffffffff, 4); /* no release numbers */
    END(w, "guise\0"
           "1.0\0"
           "01/01/2024\0");
}

static void put_system(struct writer *w) /* 7.2 */
{
    begin(w, 1, 0);
    put(w, 1, 1);
    put(w, 2, 1);
    put(w, 3, 1);
    put(w, 0, 1);
    zeros(w, 16); /* UUID not set */
    put(w, 6, 1); /* power switch */
    put(w, 0, 2);
    END(w, "guise\0"
           "guise virtual machine\0"
           "1.0\0");
}

static void put_chassis(struct writer *w) /* 7.4 */
{
    begin(w, 3, 0);
    put(w, 1, 1);
    put(w, 1, 1); /* type: other */
    zeros(w, 3);
    put(w, 0x03030303, 4); /* states safe, security: none */
    put(w, 0x00000000, 4);
    zeros(w, 4);
    put(w, 0, 1); /* SKU */
    END(w, "guise\0");
}

static void put_processor(struct writer *w, const struct platform *p) /* 7.5 */
{
    begin(w, 4, 0);
    put(w, 1, 1); /* socket */
    put(w, 3, 1); /* central processor */
    put(w, 1, 1); /* family: other */
    put(w, 2, 1); /* manufacturer */
    zeros(w, 8);  /* id */
    put(w, 0, 1);
    put(w, 0, 1);
    zeros(w, 6);                  /* external clock, maximum and current speed: unknown */
    put(w, 0x41, 1);              /* populated, enabled */
    put(w, 1, 1);                 /* upgrade: other */
    put(w, 0xffffffffffffull, 6); /* caches: not provided */
    zeros(w, 3);
    put(w, p->n_cpus, 1);
    put(w, p->n_cpus, 1);
    put(w, p->n_cpus, 1);
    put(w, 0x0c, 2); /* 64-bit, multi-core */
    put(w, 1, 2);
    put(w, p->n_cpus, 2);
    put(w, p->n_cpus, 2);
    put(w, p->n_cpus, 2);
    END(w, "CPU 0\0"
           "guise\0");
}

static void put_memory_array(struct writer *w, uint64_t bytes) /* 7.17 */
{
    begin(w, 16, 0);
    put(w, 1, 1); /* location: other */
    put(w, 3, 1); /* system memory */
    put(w, 6, 1); /* multi-bit ECC */
    put(w, 0x80000000, 4);
    put(w, 0xfffe, 2);
    put(w, 1, 2); /* one device */
    put(w, bytes, 8);
    END(w, "");
}

static void put_memory_device(struct writer *w, uint64_t bytes) /* 7.18 */
{
    uint64_t mib = bytes >> 20;
    begin(w, 17, 0);
    put(w, 16 << 8, 2);
    put(w, 0xfffe, 2);
    put(w, 0xffff, 2); /* widths unknown */
    put(w, 0xffff, 2);
    put(w, mib < 0x7fff ? mib : 0x7fff, 2);
    put(w, 9, 1); /* DIMM */
    put(w, 0, 1);
    put(w, 1, 1);
    put(w, 0, 1);
    put(w, 7, 1); /* RAM */
    put(w, 2, 2); /* other */
    put(w, 0, 2);
    put(w, 2, 1);
    zeros(w, 4);
    put(w, mib < 0x7fff ? 0 : mib & 0x7fffffff, 4);
    zeros(w, 2);
    zeros(w, 6);
    END(w, "DIMM 0\0"
           "guise\0");
}

static void put_range(struct writer *w, unsigned number, uint64_t base, uint64_t size) /* 7.20 */
{
    bool wide = (base + size) >> 10 > KIB_PER_RANGE_MAX;
    begin(w, 19, number);
    put(w, wide ? KIB_PER_RANGE_MAX : base >> 10, 4);
    put(w, wide ? KIB_PER_RANGE_MAX : (base + size - 1) >> 10, 4);
    put(w, 16 << 8, 2);
    put(w, 1, 1);
    put(w, wide ? base : 0, 8);
    put(w, wide ? base + size - 1 : 0, 8);
    END(w, "");
}

static void put_tables(struct writer *w, const struct memory *m, const struct platform *p)
{
    put_bios(w);
    put_system(w);
    put_chassis(w);
    put_processor(w, p);
    put_memory_array(w, m->size);
    put_memory_device(w, m->size);
    put_range(w, 0, 0, m->low_size);
    if (m->high_size)
        put_range(w, 1, MEMORY_HOLE_END, m->high_size);
    begin(w, 32, 0); /* boot status: no errors (7.33) */
    zeros(w, 7);
    END(w, "");
    begin(w, 127, 0);
    END(w, "");
}

static uint8_t checksum(const void *data, size_t len)
{
    uint8_t sum = 0;
    for (size_t i = 0; i < len; i++)
        sum = (uint8_t)(sum + ((const uint8_t *)data)[i]);
    return (uint8_t)-sum;
}

int smbios_build(struct memory *m, const struct platform *p)
{
    uint8_t *area = memory_hva(m, BOOT_SMBIOS, BOOT_SMBIOS_SIZE);
    struct writer w = {.size = BOOT_SMBIOS_SIZE - (TABLE - BOOT_SMBIOS)};

    if (!area)
        return -EFAULT;
    memset(area, 0, BOOT_SMBIOS_SIZE);
    w.data = area + (TABLE - BOOT_SMBIOS);
    put_tables(&w, m, p);
    struct entry_point e = {
        .anchor = {'_', 'S', 'M', '_'},
        .length = sizeof e,
        .major = 2,
        .minor = 8,
        .largest = w.largest,
        .intermediate = {'_', 'D', 'M', 'I', '_'},
        .table_length = (uint16_t)w.len,
        .table_address = TABLE,
        .count = w.count,
        .bcd = 0x28,
    };
    e.intermediate_checksum = checksum(e.intermediate, sizeof e - offsetof(struct entry_point, intermediate));
    e.checksum = checksum(&e, sizeof e);
    memcpy(area, &e, sizeof e);
    return w.error;
}
