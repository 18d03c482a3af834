/* Shared inside boot/. */
#pragma once
#include <stdbool.h>
#include <sys/types.h>

#include "boot/boot.h"
#include "memory/memory.h"

#define BOOT_BDA 0x400u
#define BOOT_GDT 0x500u
#define BOOT_SEED 0x6000u
#define BOOT_ZERO_PAGE 0x7000u
#define BOOT_START_INFO 0x8000u
#define BOOT_PAGE_TABLES 0x9000u /* PML4, PDPT, four page directories */
#define BOOT_COMMAND_LINE 0x10000u
#define BOOT_COMMAND_LINE_MAX 0x10000u
#define BOOT_EBDA 0x9fc00u
#define BOOT_ACPI 0xe0000u
#define BOOT_ACPI_SIZE 0xff00u /* behind them is the generation ID (devices/generation.h) */
#define BOOT_SMBIOS 0xf0000u
#define BOOT_SMBIOS_SIZE 0x10000u
#define BOOT_HIGH 0x100000u /* kernels and initrds are at or above 1 MiB */

enum { REGION_RAM = 1, REGION_RESERVED = 2 }; /* E820 types, the same in PVH's map */

struct boot_region {
    uint64_t base, size;
    uint32_t type;
};

#define BOOT_REGIONS_MAX 8u

/* The memory map; returns the number of regions. */
unsigned boot_memory_map(const struct memory *m, const struct platform *p, struct boot_region out[BOOT_REGIONS_MAX]);

/* Reads exactly [offset, offset+len) of fd.  0, -EIO when the file is shorter, or -errno. */
int boot_pread(int fd, void *buf, size_t len, uint64_t offset);

/* Reads [offset, offset+len) of fd into RAM at gpa.  -EFAULT if it does not fit. */
int boot_read_to_ram(struct memory *m, int fd, uint64_t offset, uint64_t gpa, uint64_t len);

/* The command line into its place.  max: longest the kernel takes, without the NUL. */
int boot_put_command_line(struct memory *m, const char *text, size_t max, char *error, size_t error_size);

struct boot_initrd {
    uint64_t base, size;
};

/* Loads the initrds, as one, as high as it goes below `limit` and not below `floor`. */
int boot_load_initrd(struct memory *m, const struct boot_source *source, uint64_t floor, uint64_t limit,
                     struct boot_initrd *out, char *error, size_t error_size);

int linux_load(struct memory *m, const struct boot_source *source, const struct platform *platform,
               struct boot_entry *entry, char *error, size_t error_size);
int pvh_load(struct memory *m, const struct boot_source *source, const struct platform *platform,
             struct boot_entry *entry, char *error, size_t error_size);

/* Build the tables into RAM at their place.  0 or -errno; -ENOSPC if they do not fit. */
int acpi_build(struct memory *m, const struct platform *p);
int smbios_build(struct memory *m, const struct platform *p);
