/*
 * A new layer on top of an overlay, while a machine has the overlay open: what was written so far stays as it is from
 * then on, and what is written goes to the new file.
 *
 * The new file exists, under the disk's own name, before the machine knows of it.  Until it does it writes to the old
 * one, which the new one lies on: so whoever dies at whatever moment, what the two files hold together is the disk.
 * For that the new one knows its base by the base's id, which does not change when it is written to.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include "backends/disk/overlay.h"
#include "backends/disk/overlay_int.h"
#include "base/error.h"

/* --- the file ----------------------------------------------------------------------------------------------------- */

/* Without a lock: a machine may have it open, and its header does not change. */
static int read_base(const char *base, struct overlay_header *h, char *err, size_t n)
{
    int fd = open(base, O_RDONLY | O_CLOEXEC);

    if (fd < 0)
        return error_sys(err, n, -errno, "cannot open overlay %s", base);
    int failed = overlay_read_headers(fd, base, h, NULL, err, n);
    close(fd);
    return failed;
}

int disk_overlay_base(const char *path, char base[4096])
{
    struct overlay_header *h = calloc(1, sizeof *h);
    int failed = h ? read_base(path, h, NULL, 0) : -ENOMEM;

    if (!failed)
        memcpy(base, h->base, strlen(h->base) + 1);
    free(h);
    return failed;
}

int disk_overlay_stack_create(const char *path, const char *base, char *err, size_t n)
{
    struct overlay_header *h = calloc(2, sizeof *h);

    if (!h)
        return error_set(err, n, -ENOMEM, "out of memory");
    struct overlay_header *below = h + 1;
    int failed = read_base(base, below, err, n);
    if (!failed && strlen(base) >= sizeof h->base)
        failed = error_set(err, n, -ENAMETOOLONG, "the path of the base, %s, is too long", base);
    if (!failed && getrandom(h->id, sizeof h->id, 0) != sizeof h->id)
        failed = error_sys(err, n, -errno, "cannot make overlay %s: no random numbers", path);
    if (!failed) {
        h->generation = 1;
        h->size = h->base_size = below->size;
        h->base_print = overlay_print(below);
        memcpy(h->base_format, "overlay", sizeof "overlay");
        memcpy(h->base, base, strlen(base) + 1);
        failed = overlay_write_file(path, h, err, n);
    }
    free(h);
    return failed;
}

int disk_overlay_stack_open(const char *path, char *err, size_t n)
{
    struct disk_spec *spec = calloc(1, sizeof *spec);
    uint64_t size;
    bool block;

    if (!spec)
        return error_set(err, n, -ENOMEM, "out of memory");
    memcpy(spec->path, path, strnlen(path, sizeof spec->path - 1));
    int fd = disk_file_open(spec, &size, &block, err, n);
    free(spec);
    return fd;
}

/* --- the machine's disk ------------------------------------------------------------------------------------------ */

/* The overlay as it is becomes what `o` lies on; `o`, which the machine knows, is the new file. */
static void move_down(struct overlay *o, struct overlay *below)
{
    disk_init(&below->disk, &overlay_ops, &o->disk.spec);
    below->disk.read_only = true;
    below->disk.size = o->disk.size;
    below->disk.granularity = o->disk.granularity;
    below->header = o->header;
    below->file = o->file;
    below->base = o->base;
    below->map = o->map;
    below->n_sectors = o->n_sectors;
    below->dirty = o->dirty;
    below->dirty_list = o->dirty_list;
    below->flush = o->flush;
    below->waiting_end = &below->waiting;
    below->shares_io = o->shares_io;
    o->map = o->dirty = NULL;
    o->dirty_list = NULL;
    o->n_dirty = 0;
    o->base = &below->disk;
}

/* Others may read the lower one now. */
static void share_lock(int fd)
{
    struct flock whole = {.l_type = F_RDLCK, .l_whence = SEEK_SET};

    (void)fcntl(fd, F_OFD_SETLK, &whole); /* or there are no locks here */
}

struct new_layer {
    struct overlay_header header;
    struct overlay *below;
    struct zero_file file;
    uint8_t *map, *dirty;
    uint32_t *dirty_list;
    struct overlay_flush *flush;
};

static void free_layer(struct new_layer *l)
{
    free(l->below);
    free(l->map);
    free(l->dirty);
    free(l->dirty_list);
    overlay_flush_destroy(l->flush);
    zero_file_destroy(&l->file);
    free(l);
}

/* What is written there is to be found again. */
static bool has_name(int fd)
{
    struct stat st;

    return fstat(fd, &st) == 0 && st.st_nlink;
}

static int make_layer(struct overlay *o, int fd, struct new_layer **out, char *err, size_t n)
{
    struct new_layer *l = calloc(1, sizeof *l);
    int failed = 0;

    if (!l) {
        error_set(err, n, -ENOMEM, "out of memory");
        return -ENOMEM;
    }
    l->below = calloc(1, sizeof *l->below);
    l->map = calloc(o->n_sectors, OVERLAY_SECTOR);
    l->dirty = calloc(o->n_sectors, 1);
    l->dirty_list = calloc(o->n_sectors, sizeof *l->dirty_list);
    l->flush = overlay_flush_create(o->n_sectors);
    if (zero_file_init(&l->file, o->file.io, fd) || !l->below || !l->map || !l->dirty || !l->dirty_list || !l->flush)
        failed = error_set(err, n, -ENOMEM, "out of memory for a new layer of disk %s", o->disk.spec.path);
    if (!failed && !has_name(fd))
        failed = error_set(err, n, -ENOENT, "the new layer of disk %s has been removed meanwhile", o->disk.spec.path);
    if (!failed)
        failed = overlay_read_headers(fd, o->disk.spec.path, &l->header, NULL, err, n);
    if (!failed && (l->header.size != o->header.size || !overlay_is_known(&o->header, l->header.base_print)))
        failed = error_set(err, n, -EINVAL, "the new layer is not one of disk %s", o->disk.spec.path);
    if (failed) {
        free_layer(l);
        return failed;
    }
    *out = l;
    return 0;
}

bool disk_overlay_id_of(const struct disk *disk, char id[DISK_OVERLAY_ID_SIZE])
{
    if (disk->ops != &overlay_ops)
        return false;
    overlay_id_format(((const struct overlay *)disk)->header.id, id);
    return true;
}

int disk_overlay_stack(struct disk *disk, int fd, char *err, size_t n)
{
    struct overlay *o = (struct overlay *)disk;
    struct new_layer *l = NULL;

    if (disk->ops != &overlay_ops || disk->in_flight || o->writes || o->n_dirty || o->sync_error)
        return error_set(err, n, -EBUSY, "disk %s is not at rest", disk->spec.path);
    int failed = make_layer(o, fd, &l, err, n);
    if (failed)
        return failed;
    move_down(o, l->below);
    share_lock(l->below->file.fd);
    o->header = l->header;
    o->file = l->file;
    o->map = l->map;
    o->dirty = l->dirty;
    o->dirty_list = l->dirty_list;
    o->flush = l->flush;
    o->shares_io = true;
    free(l);
    return 0;
}
