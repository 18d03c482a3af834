/* An overlay as a disk.  A read is cut into runs of granules that are in the file and runs that are the base's. */
#include "backends/disk/overlay.h"

#include <errno.h>
#include <string.h>

#include "backends/disk/overlay_request.h"

/* --- reads --- */

/* Of granules [first, last]: how many, from the first on, are alike and, if they are in the file, of one group. */
static uint64_t run_length(const struct overlay *o, uint64_t first, uint64_t last, bool *owned)
{
    uint64_t g = first + 1;

    *owned = overlay_owned(o, first);
    while (g <= last && overlay_owned(o, g) == *owned && (!*owned || g % OVERLAY_GROUP))
        g++;
    return g - first;
}

static void finished(struct disk_request *r, int result)
{
    overlay_finish(overlay_of(r), r, result);
}

static void direct_done(struct fileio_op *op)
{
    overlay_finish(op->opaque, request_of(op, 0), op->result);
}

static bool read_run(struct disk_request *r, struct cursor *c, uint64_t offset, uint64_t length, bool owned)
{
    return owned ? overlay_file_part(r, FILEIO_READ, c, offset, length, finished)
                 : overlay_base_part(r, c, offset, length, finished);
}

static void read_start(struct overlay *o, struct disk_request *r)
{
    struct cursor c = {r->iov, 0};
    uint64_t at = r->offset, end = r->offset + r->length, last = (end - 1) / OVERLAY_GRANULE;
    bool owned;

    if (run_length(o, at / OVERLAY_GRANULE, last, &owned) == last - at / OVERLAY_GRANULE + 1 && owned) {
        own(r)->op = (struct fileio_op){.kind = FILEIO_READ,
                                        .fd = o->file.fd,
                                        .iov = r->iov,
                                        .n_iov = r->n_iov,
                                        .offset = overlay_data_offset(at),
                                        .done = direct_done,
                                        .opaque = o};
        fileio_submit(o->file.io, &own(r)->op);
        return;
    }
    own(r)->left = 1;
    while (at < end) {
        uint64_t first = at / OVERLAY_GRANULE;
        uint64_t stop = (first + run_length(o, first, last, &owned)) * OVERLAY_GRANULE;
        if (stop > end)
            stop = end;
        if (!read_run(r, &c, at, stop - at, owned)) {
            own(r)->result = -ENOMEM;
            break;
        }
        at = stop;
    }
    overlay_release(r, finished);
}

/* --- the disk --- */

static void flush_submit(struct overlay *o, struct disk_request *r)
{
    overlay_flush_add(o, r);
}

static void overlay_submit(struct disk *d, struct disk_request *r)
{
    static void (*const starts[])(struct overlay * o, struct disk_request * r) = {
        [DISK_READ] = read_start,
        [DISK_WRITE] = overlay_write_submit,
        [DISK_FLUSH] = flush_submit,
        [DISK_DISCARD] = overlay_discard_submit,
        [DISK_WRITE_ZEROES] = overlay_zeroes_submit,
    };
    struct overlay *o = (struct overlay *)d;
    bool before = o->submitting;

    memset(own(r), 0, sizeof *own(r));
    o->submitting = true;
    starts[r->op](o, r);
    o->submitting = before;
}

static void overlay_kick(struct disk *d)
{
    struct overlay *o = (struct overlay *)d;

    if (o->base)
        disk_kick(o->base);
    fileio_kick(o->file.io);
}

static bool overlay_wait(struct disk *d)
{
    struct overlay *o = (struct overlay *)d;

    if (o->base && o->base->in_flight && o->base->ops->wait(o->base))
        return true;
    return fileio_wait(o->file.io);
}

static void closed(struct disk_request *r) {}

static void overlay_close(struct disk *d)
{
    struct overlay *o = (struct overlay *)d;
    struct disk_request last = {.op = DISK_FLUSH, .done = closed};

    if (!d->read_only && !d->away) {
        disk_submit(d, &last);
        disk_drain(d);
    }
    overlay_free(o);
}

static int overlay_file(const struct disk *d)
{
    return ((const struct overlay *)d)->file.fd;
}

const struct disk_ops overlay_ops = {.submit = overlay_submit,
                                     .kick = overlay_kick,
                                     .wait = overlay_wait,
                                     .close = overlay_close,
                                     .file = overlay_file,
                                     .take = overlay_take};
