/*
 * Writes to an overlay.
 *
 * A write goes to the file, whole granules without a look at the base; of a granule that it covers in part and that is
 * still the base's, the rest is read from the base first and written with it.  Such a write is exclusive: another write
 * to the same granule waits, else it could be overwritten by what the base had.
 */
#include "backends/disk/overlay_request.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>

/* The first and the last granule of an exclusive write, with what the base has around it. */
struct fill {
    uint8_t head[OVERLAY_GRANULE], tail[OVERLAY_GRANULE];
    bool has_head, has_tail;
    struct iovec iov[];
};

static struct disk_request *writer(const struct overlay_write *w)
{
    return request_of(w, offsetof(struct overlay_request, write));
}

/* --- at work, and those that wait for them --- */

static bool overlap(const struct overlay_write *a, const struct overlay_write *b)
{
    return (a->exclusive || b->exclusive) && a->first <= b->last && b->first <= a->last;
}

static bool must_wait(const struct overlay *o, const struct overlay_write *w, const struct overlay_write *queue_end)
{
    if (w->exclusive || o->n_exclusive)
        for (const struct overlay_write *i = o->writes; i; i = i->next)
            if (overlap(i, w))
                return true;
    for (const struct overlay_write *i = o->waiting; i && i != queue_end; i = i->next)
        if (overlap(i, w))
            return true;
    return false;
}

static void write_begin(struct overlay *o, struct overlay_write *w);

static void enter(struct overlay *o, struct overlay_write *w)
{
    struct disk_request *r = writer(w);

    w->next = o->writes;
    w->link = &o->writes;
    if (w->next)
        w->next->link = &w->next;
    o->writes = w;
    o->n_exclusive += w->exclusive;
    if (r->op == DISK_WRITE)
        write_begin(o, w);
    else
        overlay_zeroes_begin(o, r);
}

void overlay_write_queue(struct overlay *o, struct overlay_write *w)
{
    if (!must_wait(o, w, NULL)) {
        enter(o, w);
        return;
    }
    w->next = NULL;
    *o->waiting_end = w;
    o->waiting_end = &w->next;
}

static void wake(struct overlay *o)
{
    struct overlay_write **link = &o->waiting, *w;

    while ((w = *link)) {
        if (must_wait(o, w, w)) {
            link = &w->next;
            continue;
        }
        if (!(*link = w->next))
            o->waiting_end = link;
        enter(o, w);
        link = &o->waiting; /* enter may have ended it at once, and woken others */
    }
}

void overlay_write_leave(struct overlay *o, struct overlay_write *w)
{
    *w->link = w->next;
    if (w->next)
        w->next->link = w->link;
    o->n_exclusive -= w->exclusive;
    wake(o);
}

/* --- a write --- */

/* Data is in the file, or has failed to get there; the granules of a failed write stay whose they were. */
static void write_ended(struct disk_request *r, int result)
{
    struct overlay *o = overlay_of(r);
    struct overlay_write *w = &own(r)->write;

    free(own(r)->fill);
    own(r)->fill = NULL;
    if (!result) {
        overlay_own(o, w->first, w->last);
        o->flush->written = true;
    }
    overlay_write_leave(o, w);
    if (!result && (r->flags & DISK_FUA))
        overlay_flush_add(o, r);
    else
        overlay_finish(o, r, result);
}

static void write_done(struct fileio_op *op)
{
    write_ended(request_of(op, 0), op->result);
}

/* Writes n_iov pieces to [offset, offset+length) of the disk: one operation for each group. */
static void write_range(struct overlay *o, struct disk_request *r, struct iovec *iov, unsigned n_iov, uint64_t offset,
                        uint64_t length)
{
    struct cursor c = {iov, 0};

    if (offset / GROUP_DATA == (offset + length - 1) / GROUP_DATA) {
        own(r)->op = (struct fileio_op){.kind = FILEIO_WRITE,
                                        .fd = o->file.fd,
                                        .iov = iov,
                                        .n_iov = n_iov,
                                        .offset = overlay_data_offset(offset),
                                        .done = write_done};
        fileio_submit(o->file.io, &own(r)->op);
        return;
    }
    own(r)->left = 1;
    while (length) {
        uint64_t piece = GROUP_DATA - offset % GROUP_DATA < length ? GROUP_DATA - offset % GROUP_DATA : length;
        if (!overlay_file_part(r, FILEIO_WRITE, &c, offset, piece, write_ended)) {
            own(r)->result = -ENOMEM;
            break;
        }
        offset += piece;
        length -= piece;
    }
    overlay_release(r, write_ended);
}

/* The base's part of the granules has been read: around the data with it. */
static void fill_ready(struct disk_request *r, int result)
{
    struct overlay *o = overlay_of(r);
    struct fill *f = own(r)->fill;
    uint64_t start = r->offset, end = r->offset + r->length;
    unsigned before = (unsigned)(start % OVERLAY_GRANULE), behind = (unsigned)(end % OVERLAY_GRANULE), n = 0;

    if (result) {
        write_ended(r, result);
        return;
    }
    if (f->has_head) {
        f->iov[n++] = (struct iovec){f->head, before};
        start -= before;
    }
    memcpy(f->iov + n, r->iov, r->n_iov * sizeof *r->iov);
    n += r->n_iov;
    if (f->has_tail) {
        /* One granule for both ends was read once. */
        uint8_t *from = f->has_head && own(r)->write.first == own(r)->write.last ? f->head : f->tail;
        f->iov[n++] = (struct iovec){from + behind, OVERLAY_GRANULE - behind};
        end += OVERLAY_GRANULE - behind;
    }
    write_range(o, r, f->iov, n, start, end - start);
}

static bool fill_granule(struct disk_request *r, uint64_t granule, uint8_t *buffer)
{
    struct iovec whole = {buffer, OVERLAY_GRANULE};
    struct cursor c = {&whole, 0};

    return overlay_base_part(r, &c, granule * OVERLAY_GRANULE, OVERLAY_GRANULE, fill_ready);
}

static void fill_start(struct overlay *o, struct disk_request *r, bool head, bool tail)
{
    const struct overlay_write *w = &own(r)->write;
    struct fill *f = malloc(sizeof *f + (r->n_iov + 2) * sizeof *f->iov);

    if (!f) {
        write_ended(r, -ENOMEM);
        return;
    }
    f->has_head = head;
    f->has_tail = tail;
    own(r)->fill = f;
    own(r)->left = 1;
    if ((head && !fill_granule(r, w->first, f->head)) ||
        (tail && !(head && w->first == w->last) && !fill_granule(r, w->last, f->tail)))
        own(r)->result = -ENOMEM;
    if (o->base && !o->submitting)
        disk_kick(o->base);
    overlay_release(r, fill_ready);
}

/* Which ends of a write cover in part a granule that is still the base's? */
static bool needs_head(const struct overlay *o, const struct disk_request *r, const struct overlay_write *w)
{
    return r->offset % OVERLAY_GRANULE && !overlay_owned(o, w->first);
}
static bool needs_tail(const struct overlay *o, const struct disk_request *r, const struct overlay_write *w)
{
    return (r->offset + r->length) % OVERLAY_GRANULE && !overlay_owned(o, w->last);
}

static bool all_owned(const struct overlay *o, const struct overlay_write *w)
{
    for (uint64_t g = w->first; g <= w->last; g++)
        if (!overlay_owned(o, g))
            return false;
    return true;
}

static void durable_done(struct fileio_op *op)
{
    struct disk_request *r = request_of(op, 0);
    struct overlay *o = overlay_of(r);

    if (op->result == -EIO && !o->sync_error)
        o->sync_error = op->result;
    overlay_write_leave(o, &own(r)->write);
    overlay_finish(o, r, op->result);
}

static void write_begin(struct overlay *o, struct overlay_write *w)
{
    struct disk_request *r = writer(w);
    bool head = needs_head(o, r, w), tail = needs_tail(o, r, w);

    if (head || tail) {
        fill_start(o, r, head, tail);
        return;
    }
    write_range(o, r, r->iov, r->n_iov, r->offset, r->length);
    /* No bit changes, none is on its way: such a write is durable by itself. */
    if ((r->flags & DISK_FUA) && !o->n_dirty && !o->flush->running && !o->sync_error &&
        r->offset / GROUP_DATA == (r->offset + r->length - 1) / GROUP_DATA && all_owned(o, w)) {
        own(r)->op.flags = RWF_DSYNC;
        own(r)->op.done = durable_done;
    }
}

void overlay_write_submit(struct overlay *o, struct disk_request *r)
{
    struct overlay_write *w = &own(r)->write;

    w->first = r->offset / OVERLAY_GRANULE;
    w->last = (r->offset + r->length - 1) / OVERLAY_GRANULE;
    /* What one that is at work now will have made ours by the time we begin needs no filling; exclusive all the same.
     */
    w->exclusive = needs_head(o, r, w) || needs_tail(o, r, w);
    overlay_write_queue(o, w);
}
