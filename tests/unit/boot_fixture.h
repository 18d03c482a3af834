/* Kernel files made on the spot, and the platform that tests describe. */
#pragma once
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmocka.h>

#include "boot/boot.h"
#include "memory/memory.h"

static const struct platform test_platform = {
    .n_cpus = 2,
    .lapic_base = 0xfee00000,
    .ioapic_base = 0xfec00000,
    .hpet_base = 0xfed00000,
    .ecam_base = 0xe0000000,
    .ecam_size = 0x100000,
    .mmio32_base = 0xc0000000,
    .mmio32_size = 0x20000000,
    .mmio64_base = 0x1000000000,
    .mmio64_size = 0x1000000000,
    .pci_gsi_base = 16,
    .pci_gsi_count = 4,
    .pm1a_event = 0x600,
    .pm1a_control = 0x604,
    .pm_timer = 0x608,
    .gpe0 = 0x60c,
    .pm_ports = 14,
    .reset_port = 0xcf9,
    .pvpanic_port = 0x505,
    .uart_port = 0x3f8,
    .sci_gsi = 9,
    .s5_type = 5,
    .reset_value = 6,
    .uart_irq = 4,
    .century = 0x32,
};

static inline void poke(uint8_t *file, unsigned at, uint64_t value, unsigned bytes)
{
    for (unsigned i = 0; i < bytes; i++)
        file[at + i] = (uint8_t)(value >> 8 * i);
}

#define BZIMAGE_SETUP 1024u /* boot sector and one setup sector */
#define BZIMAGE_KERNEL 0x3000u
#define BZIMAGE_SIZE (BZIMAGE_SETUP + BZIMAGE_KERNEL)
#define BZIMAGE_LOAD 0x1000000u

/* The least that is a 64-bit, relocatable bzImage; the code at its 64-bit entry is `code`. */
static inline void make_bzimage(uint8_t file[BZIMAGE_SIZE], const void *code, size_t len)
{
    memset(file, 0, BZIMAGE_SIZE);
    poke(file, 0x1f1, 1, 1);
    poke(file, 0x1fe, 0xaa55, 2);
    poke(file, 0x200, 0x6aeb, 2); /* jump over the header */
    memcpy(file + 0x202, "HdrS", 4);
    poke(file, 0x206, 0x20f, 2);
    poke(file, 0x211, 1, 1);
    poke(file, 0x22c, 0x7fffffff, 4);
    poke(file, 0x230, 0x200000, 4);
    poke(file, 0x234, 1, 1);
    poke(file, 0x236, 1, 2);
    poke(file, 0x238, 255, 4);
    poke(file, 0x258, BZIMAGE_LOAD, 8);
    poke(file, 0x260, 0x10000, 4);
    memset(file + BZIMAGE_SETUP, 0xf4, BZIMAGE_KERNEL);
    memcpy(file + BZIMAGE_SETUP + 0x200, code, len);
}

static inline int file_of(const void *data, size_t len)
{
    int fd = memfd_create("test", MFD_CLOEXEC);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, data, len), len);
    return fd;
}
