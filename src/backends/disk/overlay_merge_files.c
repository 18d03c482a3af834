/* Merging overlays that no machine has open; and how a merged one takes the place of the upper one. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

#include "backends/disk/overlay.h"
#include "backends/disk/overlay_int.h"
#include "backends/disk/overlay_merge.h"
#include "base/error.h"
#include "base/file.h"

/* Without a lock: a machine may have it open. */
static int open_header(const char *path, int flags, struct overlay_header *h, unsigned *slot, char *err, size_t n)
{
    int fd = open(path, flags | O_CLOEXEC);

    if (fd < 0)
        return error_sys(err, n, -errno, "cannot open overlay %s", path);
    int failed = overlay_read_headers(fd, path, h, slot, err, n);
    if (failed)
        close(fd);
    return failed ? failed : fd;
}

int disk_overlay_id(const char *path, char id[DISK_OVERLAY_ID_SIZE])
{
    struct overlay_header *h = calloc(1, sizeof *h);
    int fd = h ? open_header(path, O_RDONLY, h, NULL, NULL, 0) : -ENOMEM;

    if (fd >= 0)
        overlay_id_format(h->id, id);
    free(h);
    if (fd < 0)
        return fd;
    close(fd);
    return 0;
}

uint64_t disk_overlay_size(const char *path)
{
    struct overlay_header *h = calloc(1, sizeof *h);
    int fd = h ? open_header(path, O_RDONLY, h, NULL, NULL, 0) : -ENOMEM;
    uint64_t size = fd < 0 ? 0 : h->size;

    free(h);
    if (fd >= 0)
        close(fd);
    return size;
}

int disk_overlay_merge_create(const char *path, const char *lower, char *err, size_t n)
{
    struct overlay_header *h = calloc(1, sizeof *h);

    if (!h)
        return error_set(err, n, -ENOMEM, "out of memory");
    int fd = open_header(lower, O_RDONLY, h, NULL, err, n), failed = fd < 0 ? fd : 0;
    if (!failed && getrandom(h->id, sizeof h->id, 0) != sizeof h->id)
        failed = error_sys(err, n, -errno, "cannot make overlay %s: no random numbers", path);
    h->generation = 1;
    memset(h->known_as, 0, sizeof h->known_as);
    memset(h->was_known_as, 0, sizeof h->was_known_as);
    if (!failed)
        failed = overlay_write_file(path, h, err, n);
    if (fd >= 0)
        close(fd);
    free(h);
    return failed;
}

/* --- merging ----------------------------------------------------------------------------------------------------- */

struct open_layer {
    int fd;
    uint8_t *map;
    struct overlay_header header;
};

static int open_layer(struct open_layer *l, const char *path, bool read_only, char *err, size_t n)
{
    l->fd = overlay_open_plain(path, read_only, &l->header, NULL, err, n);
    if (l->fd < 0)
        return l->fd;
    int failed = overlay_load_map(l->fd, &l->header, &l->map);
    return failed ? error_sys(err, n, failed, "cannot read the map of overlay %s", path) : 0;
}

static int open_layers(struct open_layer *layers, const char *const *paths, unsigned count, unsigned into, char *err,
                       size_t n)
{
    int failed = 0;

    for (unsigned i = 0; i < count && !failed; i++) {
        failed = open_layer(&layers[i], paths[i], i != into, err, n);
        if (!failed && i &&
            (layers[i].header.size != layers[0].header.size ||
             !overlay_is_known(&layers[i].header, layers[i - 1].header.base_print)))
            failed = error_set(err, n, -ESTALE, "overlay %s does not lie on %s", paths[i - 1], paths[i]);
    }
    return failed;
}

static int merge_opened(struct open_layer *layers, unsigned count, unsigned into)
{
    struct merge_layer others[DISK_OVERLAYS_MAX];
    unsigned n = 0;

    for (unsigned i = 0; i < count; i++)
        if (i != into)
            others[n++] = (struct merge_layer){layers[i].fd, layers[i].map};
    struct overlay_merge m = {.layers = others,
                              .n = n,
                              .place = into,
                              .into = layers[into].fd,
                              .header = &layers[into].header,
                              .map = layers[into].map,
                              .io = &merge_io_host};
    return overlay_merge(&m);
}

int disk_overlay_merge(const char *const *paths, unsigned count, unsigned into, const char *fresh, char *err, size_t n)
{
    struct open_layer *layers = calloc(count + 1, sizeof *layers); /* the last: the fresh one */

    if (!layers || count > DISK_OVERLAYS_MAX) {
        free(layers);
        return error_set(err, n, -ENOMEM, "out of memory");
    }
    for (unsigned i = 0; i <= count; i++)
        layers[i].fd = -1;
    if (fresh)
        into = count;
    int failed = open_layers(layers, paths, count, into, err, n);
    if (!failed && fresh)
        failed = open_layer(&layers[count], fresh, false, err, n);
    if (!failed && (failed = merge_opened(layers, count, into)))
        error_sys(err, n, failed, "the layers of disk %s cannot be merged", paths[0]);
    for (unsigned i = 0; i <= count; i++) {
        if (layers[i].fd >= 0)
            close(layers[i].fd);
        free(layers[i].map);
    }
    free(layers);
    return failed;
}

/* --- taking the place ---------------------------------------------------------------------------------------- */

static int read_header(const char *path, struct overlay_header *h, char *err, size_t n)
{
    int fd = open_header(path, O_RDONLY, h, NULL, err, n);

    if (fd >= 0)
        close(fd);
    return fd < 0 ? fd : 0;
}

void overlay_stand_on(struct overlay_header *h, const struct overlay_header *lower)
{
    h->base_size = lower->base_size;
    h->base_print = lower->base_print;
    memcpy(h->base_format, lower->base_format, sizeof h->base_format);
    memcpy(h->base, lower->base, sizeof h->base);
}

/* What it is to be: on what the lowest lies on, and known by the id that the uppermost is. */
static int change_header(struct overlay_header *h, const char *const *paths, unsigned count, unsigned into, bool fresh,
                         char *err, size_t n)
{
    struct overlay_header *other = calloc(1, sizeof *other);
    uint32_t print = overlay_print(h);
    int failed = 0;

    if (!other)
        return error_set(err, n, -ENOMEM, "out of memory");
    if (!fresh && into) { /* the one above knows it so until it is gone */
        failed = read_header(paths[into - 1], other, err, n);
        print = failed ? 0 : other->base_print;
    }
    if (!failed && (fresh || into) && !(failed = read_header(paths[0], other, err, n)))
        overlay_take_place(h, other, print);
    if (!failed && !fresh && into + 1 < count && !(failed = read_header(paths[count - 1], other, err, n)))
        overlay_stand_on(h, other);
    free(other);
    return failed;
}

static int write_change(const char *merged, const char *const *paths, unsigned count, unsigned into, bool fresh,
                        char *err, size_t n)
{
    uint8_t before[OVERLAY_HEADER], after[OVERLAY_HEADER];
    struct overlay_header *h = calloc(1, sizeof *h);
    unsigned slot = 0;

    if (!h)
        return error_set(err, n, -ENOMEM, "out of memory");
    int fd = open_header(merged, O_RDWR, h, &slot, err, n), failed = fd < 0 ? fd : 0;
    if (!failed) {
        overlay_header_encode(h, before);
        failed = change_header(h, paths, count, into, fresh, err, n);
        overlay_header_encode(h, after);
    }
    if (!failed && memcmp(before, after, sizeof before) != 0) {
        h->generation++;
        failed = overlay_write_header(fd, h, !slot);
        failed = failed ? failed : fsync(fd) ? -errno : 0;
        if (failed)
            error_sys(err, n, failed, "cannot write to overlay %s", merged);
    }
    if (fd >= 0)
        close(fd);
    free(h);
    return failed;
}

int disk_overlay_replace(const char *const *paths, unsigned count, unsigned into, const char *fresh, char *err,
                         size_t n)
{
    const char *merged = fresh ? fresh : paths[into];
    int failed = write_change(merged, paths, count, into, fresh, err, n);

    if (!failed && merged != paths[0] && rename(merged, paths[0]))
        failed = error_sys(err, n, -errno, "cannot put %s in the place of %s", merged, paths[0]);
    if (!failed && (failed = file_sync_directory(paths[0])))
        error_sys(err, n, failed, "cannot save %s", paths[0]);
    return failed;
}
