/*
 * A small FAT12 file system ("FAT: General Overview of On-Disk Format", Microsoft 2000):
 *
 *      sector 0         boot sector with the BIOS parameter block
 *      1 .. 6           first table     2040 clusters of one sector, 12 bits each
 *      7 .. 12          second table
 *      13 .. 16         root directory, 64 entries of 32 bytes
 *      17 .. 2047       clusters, from number 2 on
 *
 * Names longer than 8.3 have entries of 13 UTF-16 characters before the short one, last part first; the short one's
 * checksum is in each.
 */
#include <errno.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/error.h"
#include "base/file.h"
#include "image/seed.h"

#define SECTOR 512u
#define SECTORS (SEED_BYTES / SECTOR)
#define FAT_SECTORS 6u
#define ROOT_ENTRIES 64u
#define ROOT_AT (1 + 2 * FAT_SECTORS)
#define DATA_AT (ROOT_AT + ROOT_ENTRIES * 32 / SECTOR)
#define CLUSTERS (SECTORS - DATA_AT)
#define LAST 0xfffu
#define NAME_LONGEST 39u

#define ATTRIBUTE_LABEL 0x08
#define ATTRIBUTE_FILE 0x20
#define ATTRIBUTE_LONG 0x0f

static void write_boot_sector(unsigned char *b, const char label[11])
{
    static const char type[8] = "FAT12   ";
    static const unsigned char start[] = {0xeb, 0x3c, 0x90, 'g', 'u', 'i', 's', 'e', ' ', ' ', ' '};

    memcpy(b, start, sizeof start);
    le16_put(b + 11, SECTOR);
    b[13] = 1;           /* sectors a cluster */
    le16_put(b + 14, 1); /* reserved sectors: this one */
    b[16] = 2;           /* tables */
    le16_put(b + 17, ROOT_ENTRIES);
    le16_put(b + 19, SECTORS);
    b[21] = 0xf8; /* a fixed disk */
    le16_put(b + 22, FAT_SECTORS);
    le16_put(b + 24, 32); /* sectors a track, heads: nobody asks */
    le16_put(b + 26, 2);
    b[36] = 0x80;
    b[38] = 0x29; /* serial number, label and type follow */
    le32_put(b + 39, 0x47554953);
    memcpy(b + 43, label, 11);
    memcpy(b + 54, type, sizeof type);
    le16_put(b + 510, 0xaa55);
}

/* Entry i of both tables. */
static void set_fat(unsigned char *disk, unsigned i, unsigned value)
{
    for (unsigned copy = 0; copy < 2; copy++) {
        unsigned char *p = disk + (1 + copy * FAT_SECTORS) * SECTOR + i + i / 2;
        if (i & 1) {
            p[0] = (unsigned char)((p[0] & 0x0f) | value << 4);
            p[1] = (unsigned char)(value >> 4);
        } else {
            p[0] = (unsigned char)value;
            p[1] = (unsigned char)((p[1] & 0xf0) | (value >> 8 & 0x0f));
        }
    }
}

static unsigned char checksum(const unsigned char name[11])
{
    unsigned char sum = 0;

    for (unsigned i = 0; i < 11; i++)
        sum = (unsigned char)((sum >> 1 | sum << 7) + name[i]);
    return sum;
}

/* "FILE000N": long names are what counts. */
static void short_name(unsigned char out[11], unsigned number)
{
    char text[12];

    snprintf(text, sizeof text, "FILE%04u   ", number % 10000);
    memcpy(out, text, 11);
}

/* The part of the name with the order number `order` (from 1): characters at 1, 14 and 28 of the entry, a NUL after the
 * last, and 0xffff after that. */
static void write_long_part(unsigned char *e, const char *name, unsigned order, bool last, unsigned char sum)
{
    static const unsigned char places[13] = {1, 3, 5, 7, 9, 14, 16, 18, 20, 22, 24, 28, 30};
    size_t len = strlen(name), at = (size_t)(order - 1) * 13;

    e[0] = (unsigned char)(order | (last ? 0x40 : 0));
    e[11] = ATTRIBUTE_LONG;
    e[13] = sum;
    for (unsigned i = 0; i < 13; i++, at++)
        le16_put(e + places[i], at < len ? (unsigned char)name[at] : at == len ? 0 : 0xffff);
}

/* The entries of one file from *entry on. */
static void write_entries(unsigned char *root, unsigned *entry, const struct seed_file *file, unsigned number,
                          unsigned first)
{
    unsigned char name[11], *e;
    unsigned parts = (unsigned)(strlen(file->name) + 12) / 13;

    short_name(name, number);
    for (unsigned order = parts; order > 0; order--)
        write_long_part(root + 32 * (*entry)++, file->name, order, order == parts, checksum(name));
    e = root + 32 * (*entry)++;
    memcpy(e, name, 11);
    e[11] = ATTRIBUTE_FILE;
    le16_put(e + 24, 0x0021); /* the first day that there is: 1980-01-01 */
    le16_put(e + 26, file->len ? first : 0);
    le32_put(e + 28, (uint32_t)file->len);
}

static int add_file(unsigned char *disk, unsigned *entry, unsigned *cluster, const struct seed_file *file,
                    unsigned number)
{
    unsigned clusters = (unsigned)((file->len + SECTOR - 1) / SECTOR), first = *cluster;
    size_t name = strlen(file->name);

    if (name == 0 || name > NAME_LONGEST || *entry + 4 > ROOT_ENTRIES)
        return -EINVAL;
    if (file->len > SEED_BYTES || clusters > CLUSTERS - (first - 2))
        return -EFBIG;
    if (file->len)
        memcpy(disk + (size_t)(DATA_AT + first - 2) * SECTOR, file->data, file->len);
    for (unsigned i = 0; i < clusters; i++)
        set_fat(disk, first + i, i + 1 < clusters ? first + i + 1 : LAST);
    write_entries(disk + ROOT_AT * SECTOR, entry, file, number, first);
    *cluster += clusters;
    return 0;
}

int fat_write(int fd, const char label[11], const struct seed_file *files, unsigned n_files, char *err, size_t n)
{
    unsigned char *disk = calloc(1, SEED_BYTES);
    unsigned entry = 1, cluster = 2;
    int failed = 0;

    if (!disk)
        return error_sys(err, n, -ENOMEM, "cannot make the seed disk");
    write_boot_sector(disk, label);
    set_fat(disk, 0, 0xff8);
    set_fat(disk, 1, LAST);
    memcpy(disk + ROOT_AT * SECTOR, label, 11);
    disk[ROOT_AT * SECTOR + 11] = ATTRIBUTE_LABEL;
    for (unsigned i = 0; i < n_files && !failed; i++) {
        failed = add_file(disk, &entry, &cluster, &files[i], i);
        if (failed)
            error_set(err, n, failed, "the file %s does not fit into the seed disk", files[i].name);
    }
    if (!failed && (failed = fd_write_at(fd, disk, SEED_BYTES, 0)))
        error_sys(err, n, failed, "cannot write the seed disk");
    free(disk);
    return failed;
}
