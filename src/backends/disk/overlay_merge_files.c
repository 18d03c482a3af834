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
    struct overlay_header *h = malloc(sizeof *h);
    int fd = h ? open_header(path, O_RDONLY, h, NULL, NULL, 0) : -ENOMEM;

    for (unsigned i = 0; fd >= 0 && i < OVERLAY_ID; i++)
        snprintf(id + (size_t)2 * i, 3, "%02x", h->id[i]);
    free(h);
    if (fd < 0)
        return fd;
    close(fd);
    return 0;
}

uint64_t disk_overlay_size(const char *path)
{
    struct overlay_header *h = malloc(sizeof *h);
    int fd = h ? open_header(path, O_RDONLY, h, NULL, NULL, 0) : -ENOMEM;
    uint64_t size = fd < 0 ? 0 : h->size;

    free(h);
    if (fd >= 0)
        close(fd);
    return size;
}

int disk_overlay_merge_create(const char *path, const char *lower, char *err, size_t n)
{
    struct overlay_header *h = malloc(sizeof *h);

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

static int open_layers(struct open_layer *layers, const char *const *paths, unsigned count, bool in_place, char *err,
                       size_t n)
{
    int failed = 0;

    for (unsigned i = 0; i < count && !failed; i++) {
        failed = open_layer(&layers[i], paths[i], !in_place || i + 1 < count, err, n);
        if (!failed && i &&
            (layers[i].header.size != layers[0].header.size ||
             !overlay_is_known(&layers[i].header, layers[i - 1].header.base_print)))
            failed = error_set(err, n, -ESTALE, "overlay %s does not lie on %s", paths[i - 1], paths[i]);
    }
    return failed;
}

int disk_overlay_merge(const char *const *paths, unsigned count, const char *fresh, char *err, size_t n)
{
    struct open_layer *layers = calloc(count + 1, sizeof *layers);
    struct merge_layer from[DISK_OVERLAYS_MAX];

    if (!layers || count > DISK_OVERLAYS_MAX) {
        free(layers);
        return error_set(err, n, -ENOMEM, "out of memory");
    }
    for (unsigned i = 0; i <= count; i++)
        layers[i].fd = -1;
    int failed = open_layers(layers, paths, count, !fresh, err, n);
    struct open_layer *into = &layers[fresh ? count : count - 1];
    if (!failed && fresh)
        failed = open_layer(into, fresh, false, err, n);
    for (unsigned i = 0; i < count && !failed; i++)
        from[i] = (struct merge_layer){layers[i].fd, layers[i].map};
    struct overlay_merge m = {.from = from,
                              .n = fresh ? count : count - 1,
                              .into = into->fd,
                              .header = &into->header,
                              .map = into->map,
                              .io = &merge_io_host};
    if (!failed && (failed = overlay_merge(&m)))
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

static bool same_header(const struct overlay_header *a, const struct overlay_header *b)
{
    return memcmp(a->known_as, b->known_as, OVERLAY_ID) == 0 &&
           memcmp(a->was_known_as, b->was_known_as, OVERLAY_ID) == 0;
}

static int be_known(const char *merged, const char *path, const char *above, char *err, size_t n)
{
    struct overlay_header *h = calloc(4, sizeof *h);
    unsigned slot;

    if (!h)
        return error_set(err, n, -ENOMEM, "out of memory");
    struct overlay_header *place = h + 1, *child = h + 2, *old = h + 3;
    int fd = open_header(merged, O_RDWR, h, &slot, err, n), failed = fd < 0 ? fd : 0;
    int place_fd = failed ? -1 : open_header(path, O_RDONLY, place, NULL, err, n);
    int child_fd = failed || !above ? -1 : open_header(above, O_RDONLY, child, NULL, err, n);
    if (!failed && (place_fd < 0 || (above && child_fd < 0)))
        failed = place_fd < 0 ? place_fd : child_fd;
    if (!failed) {
        *old = *h;
        overlay_take_place(h, place, above ? child->base_print : overlay_print(h));
        h->generation++;
        if (!same_header(h, old) &&
            ((failed = overlay_write_header(fd, h, !slot)) || (failed = fsync(fd) ? -errno : 0)))
            error_sys(err, n, failed, "cannot write to overlay %s", merged);
    }
    const int fds[] = {fd, place_fd, child_fd};
    for (unsigned i = 0; i < sizeof fds / sizeof *fds; i++)
        if (fds[i] >= 0)
            close(fds[i]);
    free(h);
    return failed;
}

int disk_overlay_replace(const char *merged, const char *path, const char *above, char *err, size_t n)
{
    int failed = be_known(merged, path, above, err, n);

    if (!failed && rename(merged, path))
        failed = error_sys(err, n, -errno, "cannot put %s in the place of %s", merged, path);
    if (!failed && (failed = file_sync_directory(path)))
        error_sys(err, n, failed, "cannot save %s", path);
    return failed;
}
