/* The file of an overlay that nobody has open as a disk: growing it, and looking through it. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "backends/disk/overlay.h"
#include "backends/disk/overlay_int.h"
#include "base/bytes.h"
#include "base/error.h"

int overlay_open_plain(const char *path, bool read_only, struct overlay_header *h, unsigned *slot, char *err, size_t n)
{
    struct disk_spec *spec = calloc(1, sizeof *spec);
    uint64_t size;
    bool block;

    if (!spec)
        return error_set(err, n, -ENOMEM, "out of memory");
    spec->read_only = read_only;
    snprintf(spec->path, sizeof spec->path, "%s", path);
    int fd = disk_file_open(spec, &size, &block, err, n);
    free(spec);
    if (fd < 0)
        return fd;
    int failed = overlay_read_headers(fd, path, h, slot, err, n);
    if (failed) {
        close(fd);
        return failed;
    }
    return fd;
}

/* The longer file first, then the header that speaks of it. */
static int grow(int fd, struct overlay_header *h, unsigned slot, uint64_t size)
{
    struct stat st;
    uint64_t length = overlay_file_size(size);

    if (fstat(fd, &st))
        return -errno;
    if ((uint64_t)st.st_size < length && ftruncate(fd, (off_t)length))
        return -errno;
    if (fsync(fd))
        return -errno;
    h->size = size;
    h->generation++;
    int err = overlay_write_header(fd, h, !slot);
    return err ? err : fsync(fd) ? -errno : 0;
}

int disk_overlay_grow(const char *path, uint64_t size, char *err, size_t n)
{
    struct overlay_header *h = calloc(1, sizeof *h);
    unsigned slot = 0;

    if (!h)
        return error_set(err, n, -ENOMEM, "out of memory");
    int fd = overlay_open_plain(path, false, h, &slot, err, n), failed = fd < 0 ? fd : 0;
    if (!failed && size < h->size)
        failed = error_set(err, n, -EINVAL, "overlay %s has %llu bytes already: it can only grow", path,
                           (unsigned long long)h->size);
    if (!failed && (size % DISK_SECTOR || size > OVERLAY_SIZE_MAX))
        failed = error_set(err, n, -EINVAL, "a disk's size is a multiple of %u and at most %llu TiB", DISK_SECTOR,
                           OVERLAY_SIZE_MAX >> 40);
    if (!failed && size > h->size && (failed = grow(fd, h, slot, size)))
        error_sys(err, n, failed, "cannot make overlay %s larger", path);
    if (fd >= 0)
        close(fd);
    free(h);
    return failed;
}

struct check {
    const struct overlay_header *header;
    struct disk_overlay_report *report;
};

static int check_map(void *opaque, uint64_t group, const uint8_t *sectors)
{
    struct check *c = opaque;
    struct disk_overlay_report *report = c->report;

    for (uint64_t i = 0; i < OVERLAY_SECTORS; i++) {
        const uint8_t *sector = sectors + i * OVERLAY_SECTOR;
        uint64_t number = group * OVERLAY_SECTORS + i, first = number * OVERLAY_SECTOR_BITS;
        if (!overlay_sector_ok(sector, c->header->id, (uint32_t)number)) {
            report->bad_sectors++;
            continue;
        }
        for (unsigned bit = 0; bit < OVERLAY_SECTOR_BITS; bit += 64) {
            uint64_t granule = first + bit, here = report->granules > granule ? report->granules - granule : 0;
            uint64_t valid = here < 64 ? (1ull << here) - 1 : ~0ull, bits = le64_at(sector + 8 + bit / 8);
            report->owned += (unsigned)__builtin_popcountll(bits & valid);
            report->stray_bits += (unsigned)__builtin_popcountll(bits & ~valid);
        }
    }
    return 0;
}

static int check_open(int fd, const char *path, const struct overlay_header *h, struct disk_overlay_report *r,
                      char *err, size_t n)
{
    uint8_t bytes[2 * OVERLAY_HEADER] = {0};
    struct overlay_header *other = malloc(sizeof *other);
    struct check check = {h, r};

    if (!other)
        return error_set(err, n, -ENOMEM, "out of memory");
    r->size = h->size;
    r->base_size = h->base_size;
    r->granules = overlay_granules(h->size);
    snprintf(r->base, sizeof r->base, "%s", h->base);
    int failed = pread(fd, bytes, sizeof bytes, 0) < 0 ? -errno : 0;
    for (unsigned i = 0; i < 2; i++)
        r->bad_headers += overlay_header_decode(other, bytes + i * OVERLAY_HEADER) != NULL;
    free(other);
    if (!failed)
        failed = overlay_check_length(fd, h, &r->missing_bytes);
    if (!failed)
        failed = overlay_each_map(fd, h->size, check_map, &check);
    if (failed)
        return error_sys(err, n, failed, "cannot read overlay %s", path);
    if (r->missing_bytes || r->bad_sectors || r->stray_bits)
        return error_set(
            err, n, -EBADMSG,
            "overlay %s is damaged: %llu map sectors have a wrong check sum, %llu bits speak of what is behind "
            "the end, %llu bytes are missing at its end",
            path, (unsigned long long)r->bad_sectors, (unsigned long long)r->stray_bits,
            (unsigned long long)r->missing_bytes);
    return 0;
}

int disk_overlay_check(const char *path, struct disk_overlay_report *report, char *err, size_t n)
{
    struct overlay_header *h = calloc(1, sizeof *h);
    unsigned slot;

    memset(report, 0, sizeof *report);
    if (!h)
        return error_set(err, n, -ENOMEM, "out of memory");
    int fd = overlay_open_plain(path, true, h, &slot, err, n), failed = fd < 0 ? fd : 0;
    if (!failed) {
        failed = check_open(fd, path, h, report, err, n);
        close(fd);
    }
    free(h);
    return failed;
}

struct owned {
    unsigned shift;
    uint8_t *bits;
    uint64_t n;
};

static int note_owned(void *opaque, uint64_t group, const uint8_t *sectors)
{
    const struct owned *o = opaque;

    for (uint64_t i = 0; i < OVERLAY_GROUP; i++) {
        const uint8_t *sector = sectors + i / OVERLAY_SECTOR_BITS * OVERLAY_SECTOR;
        uint64_t at = (group * OVERLAY_GROUP + i) * OVERLAY_GRANULE >> o->shift, bit = i % OVERLAY_SECTOR_BITS;
        if (at < o->n && (sector[8 + bit / 8] >> bit % 8 & 1))
            o->bits[at] = 1;
    }
    return 0;
}

int disk_overlay_owned(const char *path, unsigned shift, uint8_t *owned, uint64_t n, char *err, size_t size)
{
    struct overlay_header *h = calloc(1, sizeof *h);
    struct owned o = {shift, owned, n};
    int fd = open(path, O_RDONLY | O_CLOEXEC), failed = h ? 0 : -ENOMEM;

    if (!failed && fd < 0)
        failed = -errno;
    if (failed)
        error_sys(err, size, failed, "cannot read overlay %s", path);
    else if (!(failed = overlay_read_headers(fd, path, h, NULL, err, size)) &&
             (failed = overlay_each_map(fd, h->size, note_owned, &o)))
        error_sys(err, size, failed, "cannot read overlay %s", path);
    if (fd >= 0)
        close(fd);
    free(h);
    return failed;
}
