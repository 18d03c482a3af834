/*
 * Merging layers of a disk that a machine has open: they are read only, so a thread can do it while the disk is used;
 * then the merged file takes their place in the chain, with the disk at rest.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "backends/disk/overlay.h"
#include "backends/disk/overlay_int.h"
#include "backends/disk/overlay_merge.h"
#include "base/bytes.h"
#include "base/error.h"

struct disk_merge {
    struct overlay *above;                    /* lies on those that become one: */
    struct overlay *parts[DISK_OVERLAYS_MAX]; /* n_parts of them, the uppermost first */
    unsigned n_parts;
    struct overlay *into; /* one of them, whose place it is that the file has */
    struct merge_layer layers[DISK_OVERLAYS_MAX];
    unsigned n, place;      /* as of struct overlay_merge */
    int writable, readable; /* the file: two descriptors of it */
    struct overlay_header header;
    uint8_t *map;
};

static struct overlay *base_of(const struct overlay *o)
{
    return o->base && o->base->ops == &overlay_ops ? (struct overlay *)o->base : NULL;
}

static bool has_id(const struct overlay *o, const char *id)
{
    char text[DISK_OVERLAY_ID_SIZE];

    overlay_id_format(o->header.id, text);
    return strcmp(text, id) == 0;
}

/* --- beginning --------------------------------------------------------------------------------------------------- */

static int find_parts(struct disk_merge *m, struct disk *disk, const char *upper, const char *lower)
{
    struct overlay *o = disk->ops == &overlay_ops ? (struct overlay *)disk : NULL, *last = NULL;

    while (o && base_of(o) && !has_id(base_of(o), upper))
        o = base_of(o);
    m->above = o;
    for (o = o ? base_of(o) : NULL; o && !last; o = base_of(o)) {
        if (m->n_parts == DISK_OVERLAYS_MAX)
            return -E2BIG;
        m->parts[m->n_parts++] = o;
        last = has_id(o, lower) ? o : NULL;
    }
    return last ? 0 : -ENOENT;
}

static bool is_one_file(int a, int b)
{
    struct stat x, y;

    return !fstat(a, &x) && !fstat(b, &y) && x.st_dev == y.st_dev && x.st_ino == y.st_ino && S_ISREG(x.st_mode);
}

/* Whose file it is, if it is not a new one. */
static void list_layers(struct disk_merge *m, bool *fresh)
{
    *fresh = true;
    m->into = m->parts[m->n_parts - 1];
    for (unsigned i = 0; i < m->n_parts; i++) {
        struct overlay *o = m->parts[i];
        if (memcmp(o->header.id, m->header.id, OVERLAY_ID) == 0) {
            *fresh = false;
            m->into = o;
            m->place = m->n;
        } else {
            m->layers[m->n++] = (struct merge_layer){o->file.fd, o->map};
        }
    }
    if (*fresh)
        m->place = m->n;
}

/* One of theirs, or a new one in the place of the lowest with nothing in it. */
static int take_file(struct disk_merge *m, char *err, size_t n)
{
    bool fresh;

    if (!is_one_file(m->writable, m->readable))
        return error_set(err, n, -EINVAL, "it is not one file");
    int failed = overlay_read_headers(m->writable, "it", &m->header, NULL, err, n);
    if (failed)
        return failed;
    list_layers(m, &fresh);
    const struct overlay_header *h = &m->header, *like = &m->into->header;
    if (h->size != like->size || h->base_size != like->base_size || h->base_print != like->base_print || !m->n)
        return error_set(err, n, -EINVAL, "it is neither one of the layers nor like the lower one");
    for (unsigned i = 0; i < m->n_parts; i++)
        if (m->parts[i]->header.size != h->size)
            return error_set(err, n, -EINVAL, "layers of different sizes are not merged");
    failed = overlay_load_map(m->writable, h, &m->map);
    if (failed)
        return error_sys(err, n, failed, "its map cannot be read");
    return fresh && !bytes_all_zero(m->map, (size_t)m->into->n_sectors * OVERLAY_SECTOR)
               ? error_set(err, n, -EINVAL, "it is not empty")
               : 0;
}

int disk_merge_begin(struct disk_merge **out, struct disk *disk, const char *upper, const char *lower, const int fds[2],
                     char *err, size_t n)
{
    struct disk_merge *m = calloc(1, sizeof *m);
    char why[ERROR_SIZE];

    if (!m)
        return error_set(err, n, -ENOMEM, "out of memory");
    m->writable = fds[0];
    m->readable = fds[1];
    int failed = find_parts(m, disk, upper, lower);
    if (failed)
        error_set(err, n, failed, "disk %s has no such layers", disk->spec.path);
    else if ((failed = take_file(m, why, sizeof why)))
        error_set(err, n, failed, "the file for merged layers of disk %s: %s", disk->spec.path, why);
    if (failed) {
        free(m->map);
        free(m);
        return failed;
    }
    *out = m;
    return 0;
}

int disk_merge_run(struct disk_merge *m, const _Atomic bool *give_up)
{
    struct overlay_merge merge = {.layers = m->layers,
                                  .n = m->n,
                                  .place = m->place,
                                  .into = m->writable,
                                  .header = &m->header,
                                  .map = m->map,
                                  .io = &merge_io_host,
                                  .give_up = give_up};

    return overlay_merge(&merge);
}

/* --- ending ------------------------------------------------------------------------------------------------------ */

/* The one that `o` lies on goes; the operations that they have in common stay. */
static void drop_base(struct overlay *o)
{
    struct overlay *gone = base_of(o);

    o->base = gone->base;
    gone->base = NULL;
    if (o->shares_io && !gone->shares_io) {
        o->shares_io = false;
        gone->shares_io = true;
    }
    overlay_free(gone);
}

/* The merged file is in the place of one of them, and the others go. */
static void take_over(struct disk_merge *m)
{
    struct flock whole = {.l_type = F_RDLCK, .l_whence = SEEK_SET};
    const struct overlay *lower = m->parts[m->n_parts - 1];
    struct overlay *o = m->into;

    (void)fcntl(m->readable, F_OFD_SETLK, &whole); /* nobody writes to it; or there are no locks here */
    close(o->file.fd);
    o->file.fd = m->readable;
    m->readable = -1;
    free(o->map);
    o->map = m->map;
    m->map = NULL;
    overlay_stand_on(&m->header, &lower->header);
    o->header = m->header;
    for (unsigned i = 0; i < m->n_parts && m->parts[i] != o; i++)
        drop_base(m->above);
    while (lower != o) {
        bool last = base_of(o) == lower;
        drop_base(o);
        if (last)
            break;
    }
}

void disk_merge_end(struct disk_merge *m, bool use)
{
    if (use)
        take_over(m);
    if (m->readable >= 0)
        close(m->readable);
    close(m->writable);
    free(m->map);
    free(m);
}
