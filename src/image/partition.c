#include "image/partition.h"

#include <errno.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <zlib.h>

#include "base/bytes.h"

#define LOGICAL_MAX 60

/* All of it, or nothing. */
static bool read_at(int fd, void *buffer, size_t len, uint64_t at)
{
    size_t got = 0;

    while (got < len) {
        ssize_t now = pread(fd, (char *)buffer + got, len - got, (off_t)(at + got));
        if (now < 0 && errno == EINTR)
            continue;
        if (now <= 0)
            return false;
        got += (size_t)now;
    }
    return true;
}

/* ---- file systems ---- */

/*
 * Superblocks of ext2, 3 and 4 are told apart by their features (Documentation/filesystems/ext4 of the kernel): offset
 * 0x5c compatible (4: a journal), 0x60 incompatible (0x40: extents, and all that came later).
 */
static const char *ext_version(const unsigned char *super)
{
    if (le32_at(super + 0x60) & ~0x1fu)
        return "ext4";
    return le32_at(super + 0x5c) & 4 ? "ext3" : "ext2";
}

static const struct {
    uint32_t at, len;
    const char *bytes, *type; /* type NULL: some ext */
} signatures[] = {
    {1024 + 0x38, 2, "\x53\xef", NULL},
    {0, 4, "XFSB", "xfs"},
    {0x10040, 8, "_BHRfS_M", "btrfs"},
    {0, 6, "LUKS\xba\xbe", "crypto_LUKS"},
    {512, 8, "LABELONE", "LVM2_member"},
    {1024, 4, "\x10\x20\xf5\xf2", "f2fs"},
    {1024, 4, "\xe2\xe1\xf5\xe0", "erofs"},
    {0, 4, "hsqs", "squashfs"},
    {4086, 10, "SWAPSPACE2", "swap"},
    {0x8001, 5, "CD001", "iso9660"},
    {3, 8, "NTFS    ", "ntfs"},
    {82, 8, "FAT32   ", "vfat"},
    {54, 4, "FAT1", "vfat"},
};

void partition_probe(int fd, uint64_t start, uint64_t bytes, char type[16])
{
    unsigned char super[1024];

    type[0] = 0;
    for (size_t i = 0; i < sizeof signatures / sizeof signatures[0] && !type[0]; i++) {
        unsigned char found[16];
        uint64_t end = (uint64_t)signatures[i].at + signatures[i].len;
        if (end > bytes || !read_at(fd, found, signatures[i].len, start + signatures[i].at) ||
            memcmp(found, signatures[i].bytes, signatures[i].len) != 0)
            continue;
        if (signatures[i].type)
            snprintf(type, 16, "%s", signatures[i].type);
        else if (bytes >= 2048 && read_at(fd, super, sizeof super, start + 1024))
            snprintf(type, 16, "%s", ext_version(super));
    }
}

/* ---- tables ---- */

struct table {
    int fd;
    uint64_t disk_bytes;
    struct partition *out;
    unsigned n;
};

/* In sectors; what does not lie on the disk is left out. */
static void add(struct table *t, unsigned number, uint64_t first, uint64_t sectors)
{
    uint64_t disk = t->disk_bytes / SECTOR;

    if (t->n == PARTITIONS_MAX || first == 0 || sectors == 0 || first >= disk || sectors > disk - first)
        return;
    struct partition *p = &t->out[t->n++];
    *p = (struct partition){.number = number, .start = first * SECTOR, .bytes = sectors * SECTOR};
    partition_probe(t->fd, p->start, p->bytes, p->type);
}

static void read_gpt_entries(struct table *t, const unsigned char *entries, uint32_t count, uint32_t size)
{
    static const unsigned char unused[16];

    for (uint32_t i = 0; i < count; i++) {
        const unsigned char *e = entries + (size_t)i * size;
        uint64_t first = le64_at(e + 32), last = le64_at(e + 40);
        if (memcmp(e, unused, sizeof unused) != 0 && last >= first && last - first < UINT64_MAX / SECTOR)
            add(t, i + 1, first, last - first + 1);
    }
}

/* Header at LBA 1: signature, revision, header size, CRC32 of it (with 0 in its place), ..., LBA of the entries at 72,
 * their count at 80, size at 84, CRC32 at 88. */
static bool read_gpt(struct table *t)
{
    unsigned char header[SECTOR];

    if (!read_at(t->fd, header, sizeof header, SECTOR) || memcmp(header, "EFI PART", 8) != 0)
        return false;
    uint32_t len = le32_at(header + 12), sum = le32_at(header + 16);
    uint32_t count = le32_at(header + 80), size = le32_at(header + 84);
    uint64_t at = le64_at(header + 72);
    if (len < 92 || len > SECTOR || count > 1024 || size < 128 || size > 4096 || at > t->disk_bytes / SECTOR)
        return false;
    memset(header + 16, 0, 4);
    if (crc32(0, header, len) != sum)
        return false;
    size_t bytes = (size_t)count * size;
    unsigned char *entries = malloc(bytes ? bytes : 1);
    bool good = entries && read_at(t->fd, entries, bytes, at * SECTOR) &&
                crc32(0, entries, (uInt)bytes) == le32_at(header + 88);
    if (good)
        read_gpt_entries(t, entries, count < PARTITIONS_MAX ? count : PARTITIONS_MAX, size);
    free(entries);
    return good;
}

static bool is_extended(unsigned char type)
{
    return type == 0x05 || type == 0x0f || type == 0x85;
}

/* The chain of extended boot records: each has one logical partition, relative to itself, and the next record, relative
 * to the first. */
static void read_logical(struct table *t, uint64_t extended)
{
    unsigned char sector[SECTOR];
    uint64_t at = extended;

    for (unsigned i = 0; i < LOGICAL_MAX; i++) {
        if (at >= t->disk_bytes / SECTOR || !read_at(t->fd, sector, sizeof sector, at * SECTOR) ||
            le16_at(sector + 510) != 0xaa55)
            return;
        const unsigned char *own = sector + 446, *next = sector + 462;
        if (own[4] && !is_extended(own[4]))
            add(t, 5 + i, at + le32_at(own + 8), le32_at(own + 12));
        if (!is_extended(next[4]) || le32_at(next + 8) == 0)
            return;
        at = extended + le32_at(next + 8);
    }
}

/* A boot sector of a file system has the same signature: then the flags of its "entries" are not 0 or 0x80. */
static bool looks_like_mbr(const unsigned char *sector)
{
    for (unsigned i = 0; i < 4; i++)
        if (sector[446 + 16 * i] & 0x7f)
            return false;
    return le16_at(sector + 510) == 0xaa55;
}

static void read_mbr(struct table *t, const unsigned char *sector)
{
    for (unsigned i = 0; i < 4; i++) {
        const unsigned char *e = sector + 446 + 16 * i;
        uint32_t first = le32_at(e + 8);
        if (is_extended(e[4]) && first)
            read_logical(t, first);
        else if (e[4] && e[4] != 0xee)
            add(t, i + 1, first, le32_at(e + 12));
    }
}

int partitions_read(int fd, uint64_t disk_bytes, struct partition out[PARTITIONS_MAX])
{
    struct table t = {.fd = fd, .disk_bytes = disk_bytes, .out = out};
    unsigned char sector[SECTOR];
    char type[16];

    if (!read_at(fd, sector, sizeof sector, 0))
        return disk_bytes < SECTOR ? 0 : -EIO;
    partition_probe(fd, 0, disk_bytes, type);
    if (type[0]) {
        out[0] = (struct partition){.bytes = disk_bytes};
        memcpy(out[0].type, type, sizeof type);
        return 1;
    }
    if (!read_gpt(&t) && looks_like_mbr(sector))
        read_mbr(&t, sector);
    return (int)t.n;
}
