/* The parts that both boot protocols share: files, command line, initrd, memory map, legacy areas. */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/error.h"
#include "boot/boot_int.h"

#define PAGE 4096ull

int boot_pread(int fd, void *buf, size_t len, uint64_t offset)
{
    for (size_t done = 0; done < len;) {
        ssize_t n = pread(fd, (char *)buf + done, len - done, (off_t)(offset + done));
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return n < 0 ? -errno : -EIO;
        done += (size_t)n;
    }
    return 0;
}

int boot_read_to_ram(struct memory *m, int fd, uint64_t offset, uint64_t gpa, uint64_t len)
{
    if (!len)
        return 0;
    void *to = memory_hva(m, gpa, len);
    for (size_t done = 0; to && done < len; done += 1ul << MEMORY_CHUNK_SHIFT)
        memory_touch(m, gpa + done);
    return to ? boot_pread(fd, to, len, offset) : -EFAULT;
}

int boot_put_command_line(struct memory *m, const char *text, size_t max, char *error, size_t error_size)
{
    size_t len = text ? strlen(text) : 0;

    if (max > BOOT_COMMAND_LINE_MAX - 1)
        max = BOOT_COMMAND_LINE_MAX - 1;
    if (len > max)
        return error_set(error, error_size, -E2BIG, "the kernel command line has %zu characters; this kernel takes %zu",
                         len, max);
    return memory_write(m, BOOT_COMMAND_LINE, text ? text : "", len + 1);
}

/* Archives behind one another begin at multiples of 4; the kernel skips the zeros between them. */
static uint64_t initrd_align(uint64_t size)
{
    return (size + 3) & ~3ull;
}

/* How much memory all of them take, each one's own size in sizes[]. */
static int initrd_sizes(const struct boot_source *source, uint64_t sizes[BOOT_INITRDS_MAX], uint64_t *total)
{
    struct stat st;

    *total = 0;
    for (unsigned i = 0; i < source->n_initrds; i++) {
        if (fstat(source->initrd_fds[i], &st))
            return -errno;
        sizes[i] = (uint64_t)st.st_size;
        *total = initrd_align(*total) + sizes[i];
    }
    return 0;
}

int boot_load_initrd(struct memory *m, const struct boot_source *source, uint64_t floor, uint64_t limit,
                     struct boot_initrd *out, char *error, size_t error_size)
{
    uint64_t sizes[BOOT_INITRDS_MAX], size, at = 0;

    *out = (struct boot_initrd){0};
    int err = initrd_sizes(source, sizes, &size);
    if (err)
        return error_set(error, error_size, err, "cannot read the initrd: %s", strerror(-err));
    if (!size)
        return 0;
    if (limit > m->low_size)
        limit = m->low_size;
    if (limit < floor || size > limit - floor || ((limit - size) & ~(PAGE - 1)) < floor)
        return error_set(error, error_size, -ENOMEM,
                         "the initrd (%llu KiB) does not fit into the guest's memory beside the kernel",
                         (unsigned long long)size >> 10);
    out->base = (limit - size) & ~(PAGE - 1);
    out->size = size;
    memset(memory_hva(m, out->base, size), 0, size); /* after a reset there is something else */
    for (unsigned i = 0; i < source->n_initrds && !err; i++) {
        err = boot_read_to_ram(m, source->initrd_fds[i], 0, out->base + at, sizes[i]);
        at = initrd_align(at + sizes[i]);
    }
    return err ? error_set(error, error_size, err, "cannot read the initrd: %s", strerror(-err)) : 0;
}

unsigned boot_memory_map(const struct memory *m, const struct platform *p, struct boot_region out[BOOT_REGIONS_MAX])
{
    unsigned n = 0;

    out[n++] = (struct boot_region){0, BOOT_EBDA, REGION_RAM};
    out[n++] = (struct boot_region){BOOT_EBDA, 0xa0000 - BOOT_EBDA, REGION_RESERVED};
    out[n++] = (struct boot_region){BOOT_ACPI, BOOT_HIGH - BOOT_ACPI, REGION_RESERVED};
    if (m->low_size > BOOT_HIGH)
        out[n++] = (struct boot_region){BOOT_HIGH, m->low_size - BOOT_HIGH, REGION_RAM};
    out[n++] = (struct boot_region){p->ecam_base, p->ecam_size, REGION_RESERVED};
    if (m->high_size)
        out[n++] = (struct boot_region){MEMORY_HOLE_END, m->high_size, REGION_RAM};
    return n;
}

/* Kernels look into the BIOS data area for where conventional memory ends. */
static int put_bios_data(struct memory *m)
{
    uint16_t ebda_segment = BOOT_EBDA >> 4, kilobytes = BOOT_EBDA >> 10;
    int err = memory_write(m, BOOT_BDA + 0x0e, &ebda_segment, 2);
    return err ? err : memory_write(m, BOOT_BDA + 0x13, &kilobytes, 2);
}

int boot_load(struct memory *m, const struct boot_source *source, const struct platform *platform,
              struct boot_entry *entry, char *error, size_t error_size)
{
    unsigned char magic[4];
    int err = boot_pread(source->kernel_fd, magic, sizeof magic, 0);
    if (err)
        return error_set(error, error_size, err, "cannot read the kernel %s: %s", source->kernel_path,
                         err == -EIO ? "the file is too short" : strerror(-err));
    if (!memcmp(magic, "\177ELF", 4))
        err = pvh_load(m, source, platform, entry, error, error_size);
    else
        err = linux_load(m, source, platform, entry, error, error_size);
    if (err)
        return err;
    err = put_bios_data(m);
    if (!err)
        err = acpi_build(m, platform);
    if (!err)
        err = smbios_build(m, platform);
    return err ? error_set(error, error_size, err, "cannot build the guest's ACPI and SMBIOS tables: %s",
                           strerror(-err))
               : 0;
}
