/* The file of an overlay: making and opening it. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include "backends/disk/disk_int.h"
#include "backends/disk/overlay.h"
#include "backends/disk/overlay_int.h"
#include "base/bytes.h"
#include "base/crc32c.h"
#include "base/error.h"
#include "base/file.h"
#include "host/loop.h"

#define PRINT_PIECES 16u

/* --- the base ------------------------------------------------------------------------------------------- */

static int print_piece(struct disk *base, uint64_t offset, uint64_t length, uint8_t *buffer, uint32_t *print)
{
    if (offset >= base->size)
        return 0;
    if (length > base->size - offset)
        length = base->size - offset;
    int err = disk_read_now(base, offset, buffer, length);
    *print = crc32c(*print, buffer, length);
    return err;
}

/* Enough of the base to notice another one, or a change of this one: the beginning (partition table, superblocks with
 * the time of the last write), the end, and some places between. */
static int fingerprint(struct disk *base, uint32_t *print)
{
    const uint64_t piece = 65536;
    uint8_t *buffer = malloc(piece);
    int err = buffer ? 0 : -ENOMEM;

    *print = crc32c(0, &base->size, sizeof base->size);
    if (!err)
        err = print_piece(base, 0, piece, buffer, print);
    for (unsigned i = 1; i < PRINT_PIECES && !err; i++)
        err = print_piece(base, base->size / PRINT_PIECES * i & ~4095ull, 4096, buffer, print);
    if (!err)
        err = print_piece(base, (base->size - 1) & ~4095ull, 4096, buffer, print);
    free(buffer);
    return err;
}

static int find_format(const char *name)
{
    for (unsigned i = 0; disk_formats[i].name; i++)
        if (strcmp(disk_formats[i].name, name) == 0)
            return (int)i;
    return -EINVAL;
}

/* Layers that machines have in common have a name in the directory of each (vm/copy.h), beside each other, in `layers`
 * beside what lies on them; in the headers is that of the machine that they were of.  The base's id tells whether it is
 * the one. */
static void find_beside(const struct overlay *o, struct disk_spec *spec)
{
    static const char *const where[] = {"", "/layers"};
    const char *here = strrchr(o->disk.spec.path, '/'), *file = strrchr(spec->path, '/');
    char path[sizeof spec->path];

    for (unsigned i = 0; here && file && i < sizeof where / sizeof *where; i++) {
        int n = snprintf(path, sizeof path, "%.*s%s%s", (int)(here - o->disk.spec.path), o->disk.spec.path, where[i],
                         file);
        if (n > 0 && (size_t)n < sizeof path && access(path, F_OK) == 0) {
            memcpy(spec->path, path, sizeof path);
            return;
        }
    }
}

static int open_base(struct overlay *o, struct loop *loop, char *err, size_t n)
{
    const struct overlay_header *h = &o->header;
    struct disk_spec spec = {.read_only = true, .depth = o->disk.spec.depth + 1};
    uint32_t print = 0;
    int format = find_format(h->base_format);

    if (!h->base[0])
        return 0;
    if (spec.depth > DISK_OVERLAYS_MAX)
        return error_set(err, n, -ELOOP, "overlay %s lies on more than %u others", h->base, DISK_OVERLAYS_MAX);
    if (format < 0)
        return error_set(err, n, format, "overlay %s is damaged: its base has the unknown format '%s'",
                         o->disk.spec.path, h->base_format);
    spec.format = (unsigned)format;
    snprintf(spec.path, sizeof spec.path, "%s", h->base);
    if (strcmp(h->base_format, "overlay") == 0) {
        memcpy(spec.base, o->disk.spec.base, sizeof spec.base);
        find_beside(o, &spec);
    } else if (o->disk.spec.base[0]) {
        memcpy(spec.path, o->disk.spec.base, sizeof spec.path);
    }
    char why[ERROR_SIZE];
    int failed = disk_open_spec(&o->base, &spec, loop, why, sizeof why);
    if (failed)
        return error_set(err, n, failed, "the base of overlay %s: %s", o->disk.spec.path, why);
    if (o->base->ops == &overlay_ops && overlay_is_known(&((struct overlay *)o->base)->header, h->base_print))
        print = h->base_print; /* a layer of the same disk (overlay_stack.c) */
    else
        failed = fingerprint(o->base, &print);
    if (failed)
        return error_sys(err, n, failed, "cannot read %s, the base of overlay %s", spec.path, o->disk.spec.path);
    if (o->base->size != h->base_size || print != h->base_print)
        return error_set(
            err, n, -ESTALE,
            "%s is not what overlay %s was made over, or has been written to since: bring it back, or make a "
            "new overlay",
            spec.path, o->disk.spec.path);
    return 0;
}

/* --- opening --------------------------------------------------------------------------------------------------- */

int overlay_read_headers(int fd, const char *path, struct overlay_header *h, unsigned *slot, char *err, size_t n)
{
    unsigned which;
    uint8_t bytes[2 * OVERLAY_HEADER] = {0};
    ssize_t got = pread(fd, bytes, sizeof bytes, 0);

    if (got < 0)
        return error_sys(err, n, -errno, "cannot read overlay %s", path);
    const char *why = overlay_header_choose(h, bytes, slot ? slot : &which);
    return why ? error_set(err, n, -EBADMSG, "%s %s", path, why) : 0;
}

int overlay_each_map(int fd, uint64_t size, int (*fn)(void *opaque, uint64_t group, const uint8_t *sectors),
                     void *opaque)
{
    static const uint8_t empty[OVERLAY_SECTORS * OVERLAY_SECTOR];
    uint8_t sectors[sizeof empty];
    uint64_t groups = overlay_groups(size);
    int err = 0;

    for (uint64_t group = 0; group < groups && !err; group++) {
        memset(sectors, 0, sizeof sectors);
        if (pread(fd, sectors, sizeof sectors, (off_t)overlay_map_offset(group * OVERLAY_SECTORS)) < 0)
            err = -errno;
        else if (memcmp(sectors, empty, sizeof empty) != 0)
            err = fn(opaque, group, sectors);
    }
    return err;
}

struct loading_map {
    const struct overlay_header *header;
    uint8_t *map;
};

static int load_group(void *opaque, uint64_t group, const uint8_t *sectors)
{
    const struct loading_map *l = opaque;

    for (unsigned i = 0; i < OVERLAY_SECTORS; i++)
        if (!overlay_sector_ok(sectors + i * OVERLAY_SECTOR, l->header->id, (uint32_t)(group * OVERLAY_SECTORS + i)))
            return -EBADMSG;
    memcpy(l->map + group * OVERLAY_SECTORS * OVERLAY_SECTOR, sectors, OVERLAY_SECTORS * OVERLAY_SECTOR);
    return 0;
}

int overlay_load_map(int fd, const struct overlay_header *h, uint8_t **map)
{
    uint64_t missing = 0;
    int failed = overlay_check_length(fd, h, &missing);

    if (!failed && missing)
        return -EBADMSG;
    *map = calloc(overlay_sectors(h->size), OVERLAY_SECTOR);
    if (!*map)
        return -ENOMEM;
    struct loading_map l = {h, *map};
    failed = failed ? failed : overlay_each_map(fd, h->size, load_group, &l);
    if (failed) {
        free(*map);
        *map = NULL;
    }
    return failed;
}

int overlay_check_length(int fd, const struct overlay_header *h, uint64_t *missing)
{
    struct stat st;
    uint64_t length = overlay_file_size(h->size);

    if (fstat(fd, &st))
        return -errno;
    *missing = (uint64_t)st.st_size < length ? length - (uint64_t)st.st_size : 0;
    return 0;
}

static int open_map(struct overlay *o, char *err, size_t n)
{
    const char *path = o->disk.spec.path;
    uint64_t missing = 0;

    if (!overlay_check_length(o->file.fd, &o->header, &missing) && missing)
        return error_set(err, n, -EBADMSG, "overlay %s is damaged: its end is missing (%llu bytes)", path,
                         (unsigned long long)missing);
    o->n_sectors = overlay_sectors(o->header.size);
    o->dirty = calloc(o->n_sectors, 1);
    o->dirty_list = calloc(o->n_sectors, sizeof *o->dirty_list);
    o->flush = overlay_flush_create(o->n_sectors);
    int failed = o->dirty && o->dirty_list && o->flush ? 0 : -ENOMEM;
    if (!failed && o->disk.away) /* it is written to: read when it is ours */
        failed = (o->map = calloc(o->n_sectors, OVERLAY_SECTOR)) ? 0 : -ENOMEM;
    else if (!failed)
        failed = overlay_load_map(o->file.fd, &o->header, &o->map);
    o->waiting_end = &o->waiting;
    if (failed == -ENOMEM)
        return error_set(err, n, failed, "out of memory for the map of overlay %s", path);
    if (failed == -EBADMSG)
        return error_set(err, n, failed,
                         "overlay %s is damaged: a check sum in its map is wrong (guise disk check says more)", path);
    return failed ? error_sys(err, n, failed, "cannot read the map of overlay %s", path) : 0;
}

void overlay_free(struct overlay *o)
{
    disk_close(o->base);
    if (!o->shares_io)
        fileio_destroy(o->file.io);
    zero_file_destroy(&o->file);
    if (o->file.fd >= 0)
        close(o->file.fd);
    free(o->map);
    free(o->dirty);
    free(o->dirty_list);
    overlay_flush_destroy(o->flush);
    free(o);
}

static int open_file(struct overlay *o, char *err, size_t n)
{
    uint64_t size;
    unsigned slot;
    bool block;
    int fd = disk_file_open(&o->disk.spec, &size, &block, err, n);

    if (fd < 0)
        return fd;
    o->file.fd = fd;
    /* The one before may have been killed: what of it is only in the page cache, data and bits, is made to last before
     * it is taken for granted. */
    if (!block && !o->disk.read_only && !o->disk.away && fdatasync(fd))
        return error_sys(err, n, -errno, "cannot write to overlay %s", o->disk.spec.path);
    if (block)
        return error_set(err, n, -EINVAL, "overlay %s is a block device: an overlay is a file", o->disk.spec.path);
    return overlay_read_headers(fd, o->disk.spec.path, &o->header, &slot, err, n);
}

int overlay_open_with(struct disk **out, const struct disk_spec *spec, struct loop *loop, struct fileio *io, char *err,
                      size_t n)
{
    struct overlay *o = calloc(1, sizeof *o);

    if (!o) {
        fileio_destroy(io);
        return error_set(err, n, -ENOMEM, "out of memory");
    }
    disk_init(&o->disk, &overlay_ops, spec);
    int failed = zero_file_init(&o->file, io, -1);
    if (failed)
        error_set(err, n, failed, "out of memory");
    else
        failed = open_file(o, err, n);
    if (!failed)
        failed = open_map(o, err, n);
    if (!failed)
        failed = open_base(o, loop, err, n);
    if (failed) {
        overlay_free(o);
        return failed;
    }
    o->disk.size = o->header.size;
    o->disk.granularity = OVERLAY_GRANULE;
    *out = &o->disk;
    return 0;
}

int disk_overlay_open(struct disk **out, const struct disk_spec *spec, struct loop *loop, char *err, size_t n)
{
    struct fileio *io;
    int failed = fileio_create(&io, loop, FILEIO_AUTO);

    if (failed)
        return error_sys(err, n, failed, "cannot set up input and output for disk %s", spec->path);
    return overlay_open_with(out, spec, loop, io, err, n);
}

int overlay_take(struct disk *d, int fd, char *err, size_t n)
{
    struct overlay *o = (struct overlay *)d;
    struct overlay_header *h = malloc(sizeof *h);
    uint8_t *map = NULL;

    if (!h)
        return error_set(err, n, -ENOMEM, "out of memory");
    int failed = overlay_read_headers(fd, d->spec.path, h, NULL, err, n);
    if (!failed && (memcmp(h->id, o->header.id, sizeof h->id) != 0 || h->size != d->size))
        failed = error_set(err, n, -ESTALE, "overlay %s is another one by now", d->spec.path);
    if (!failed && (failed = fdatasync(fd) ? -errno : overlay_load_map(fd, h, &map)))
        error_sys(err, n, failed, "cannot read the map of overlay %s", d->spec.path);
    if (!failed) {
        close(o->file.fd);
        o->file.fd = fd;
        o->header = *h;
        free(o->map);
        o->map = map;
    }
    free(h);
    return failed;
}

/* --- making ------------------------------------------------------------------------------------------------------ */

int overlay_write_header(int fd, const struct overlay_header *h, unsigned slot)
{
    uint8_t bytes[OVERLAY_HEADER];

    overlay_header_encode(h, bytes);
    ssize_t done = pwrite(fd, bytes, sizeof bytes, slot * OVERLAY_HEADER);
    return done < 0 ? -errno : done != sizeof bytes ? -EIO : 0;
}

/* The base by words, looked at and closed again: its full path, format, size and fingerprint. */
static int describe_base(struct overlay_header *h, const char *words, struct loop *loop, char *err, size_t n)
{
    struct disk_spec spec;
    struct disk *base;
    int failed = disk_parse(words, &spec, err, n);

    if (failed)
        return failed;
    spec.read_only = true;
    failed = disk_open_spec(&base, &spec, loop, err, n);
    if (failed)
        return failed;
    char *full = realpath(spec.path, NULL); /* what is no path on this host, such as a URI, stays as it is */
    const char *path = full ? full : spec.path;
    h->base_size = base->size;
    snprintf(h->base_format, sizeof h->base_format, "%s", disk_formats[spec.format].name);
    if (strlen(path) >= sizeof h->base) {
        failed = error_set(err, n, -ENAMETOOLONG, "the path of the base, %s, is too long", path);
    } else {
        snprintf(h->base, sizeof h->base, "%s", path);
        failed = fingerprint(base, &h->base_print);
        if (failed)
            error_sys(err, n, failed, "cannot read %s", path);
    }
    free(full);
    disk_close(base);
    return failed;
}

static int choose_size(struct overlay_header *h, uint64_t size, char *err, size_t n)
{
    h->size = size ? size : h->base_size;
    if (!h->size)
        return error_set(err, n, -EINVAL, "an overlay without a base needs a size");
    if (h->size % DISK_SECTOR || h->size > OVERLAY_SIZE_MAX)
        return error_set(err, n, -EINVAL, "a disk's size is a multiple of %u and at most %llu TiB", DISK_SECTOR,
                         OVERLAY_SIZE_MAX >> 40);
    if (h->size < h->base_size)
        return error_set(err, n, -EINVAL, "an overlay is at least as large as its base, which has %llu bytes",
                         (unsigned long long)h->base_size);
    return 0;
}

int overlay_write_file(const char *path, const struct overlay_header *h, char *err, size_t n)
{
    int fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);

    if (fd < 0)
        return error_sys(err, n, -errno, "cannot make overlay %s", path);
    int failed = overlay_write_header(fd, h, 0);
    if (!failed && ftruncate(fd, (off_t)overlay_file_size(h->size)))
        failed = -errno;
    if (!failed && fsync(fd))
        failed = -errno;
    if (close(fd) && !failed)
        failed = -errno;
    if (!failed)
        failed = file_sync_directory(path);
    if (failed) {
        unlink(path);
        return error_sys(err, n, failed, "cannot write overlay %s", path);
    }
    return 0;
}

int disk_overlay_create(const char *path, const char *base, uint64_t size, char *err, size_t n)
{
    pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    struct overlay_header *h = calloc(1, sizeof *h);
    struct loop *loop = NULL;
    int failed = h ? loop_create(&loop, &lock) : -ENOMEM;

    if (failed) {
        error_sys(err, n, failed, "cannot make overlay %s", path);
    } else if (getrandom(h->id, sizeof h->id, 0) != sizeof h->id) {
        failed = error_sys(err, n, -errno, "cannot make overlay %s: no random numbers", path);
    } else {
        h->generation = 1;
        if (base)
            failed = describe_base(h, base, loop, err, n);
        if (!failed)
            failed = choose_size(h, size, err, n);
        if (!failed)
            failed = overlay_write_file(path, h, err, n);
    }
    loop_destroy(loop);
    free(h);
    return failed;
}
