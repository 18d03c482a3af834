/*
 * Merging layers of a disk that a machine has open: they are read only, so a thread can do it while the disk is used;
 * then the merged file takes their place in the chain, with the disk at rest.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
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
    struct overlay *above, *upper, *lower; /* upper to lower become one, on which `above` lies */
    struct merge_layer from[DISK_OVERLAYS_MAX];
    unsigned n;
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

    for (unsigned i = 0; i < OVERLAY_ID; i++)
        snprintf(text + (size_t)2 * i, 3, "%02x", o->header.id[i]);
    return strcmp(text, id) == 0;
}

/* --- beginning --------------------------------------------------------------------------------------------------- */

static int find_chain(struct disk_merge *m, struct disk *disk, const char *upper, const char *lower)
{
    struct overlay *o = disk->ops == &overlay_ops ? (struct overlay *)disk : NULL;

    for (; o && !m->lower; o = base_of(o)) {
        if (!m->upper && base_of(o) && has_id(base_of(o), upper)) {
            m->above = o;
            m->upper = base_of(o);
            continue;
        }
        if (!m->upper || o == m->above)
            continue;
        if (m->n == DISK_OVERLAYS_MAX)
            return -E2BIG;
        m->from[m->n++] = (struct merge_layer){o->file.fd, o->map};
        if (has_id(o, lower))
            m->lower = o;
    }
    return m->lower ? 0 : -ENOENT;
}

static bool is_one_file(int a, int b)
{
    struct stat x, y;

    return !fstat(a, &x) && !fstat(b, &y) && x.st_dev == y.st_dev && x.st_ino == y.st_ino && S_ISREG(x.st_mode);
}

/* The lower one itself, or a new one in its place with nothing in it. */
static int take_file(struct disk_merge *m, char *err, size_t n)
{
    const struct overlay_header *h = &m->header, *l = &m->lower->header;
    int failed = is_one_file(m->writable, m->readable)
                     ? overlay_read_headers(m->writable, "it", &m->header, NULL, err, n)
                     : error_set(err, n, -EINVAL, "it is not one file");

    if (failed)
        return failed;
    bool in_place = memcmp(h->id, l->id, OVERLAY_ID) == 0;
    if (h->size != l->size || h->base_size != l->base_size || h->base_print != l->base_print ||
        m->upper->header.size != l->size || (in_place && m->n < 2))
        return error_set(err, n, -EINVAL, "it is neither the lower layer nor one like it");
    failed = overlay_load_map(m->writable, h, &m->map);
    if (!failed && !in_place && !bytes_all_zero(m->map, (size_t)m->lower->n_sectors * OVERLAY_SECTOR))
        failed = error_set(err, n, -EINVAL, "it is not empty");
    else if (failed)
        error_sys(err, n, failed, "its map cannot be read");
    m->n -= in_place;
    return failed;
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
    int failed = find_chain(m, disk, upper, lower);
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
    struct overlay_merge merge = {.from = m->from,
                                  .n = m->n,
                                  .into = m->writable,
                                  .header = &m->header,
                                  .map = m->map,
                                  .io = &merge_io_host,
                                  .give_up = give_up};

    return overlay_merge(&merge);
}

/* --- ending ------------------------------------------------------------------------------------------------------ */

/* Those from m->upper to above m->lower go.  The operations that `above` has in common with them stay, for it. */
static void drop_uppers(struct disk_merge *m)
{
    struct overlay *owner = m->upper, *next;

    while (owner->shares_io && owner != m->lower)
        owner = base_of(owner);
    if (m->above->shares_io && owner != m->lower) {
        m->above->shares_io = false;
        owner->shares_io = true;
    }
    for (struct overlay *o = m->upper; o != m->lower; o = next) {
        next = base_of(o);
        o->base = NULL;
        overlay_free(o);
    }
    m->above->base = &m->lower->disk;
}

/* The lower one's place in the chain is the merged file's. */
static void take_over(struct disk_merge *m)
{
    struct flock whole = {.l_type = F_RDLCK, .l_whence = SEEK_SET};
    struct overlay *l = m->lower;

    (void)fcntl(m->readable, F_OFD_SETLK, &whole); /* nobody writes to it; or there are no locks here */
    close(l->file.fd);
    l->file.fd = m->readable;
    m->readable = -1;
    free(l->map);
    l->map = m->map;
    m->map = NULL;
    l->header = m->header;
    l->disk.size = m->header.size;
}

void disk_merge_end(struct disk_merge *m, bool use)
{
    if (use) {
        take_over(m);
        drop_uppers(m);
    }
    if (m->readable >= 0)
        close(m->readable);
    close(m->writable);
    free(m->map);
    free(m);
}
