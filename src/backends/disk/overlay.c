/*
 * Requests to an overlay.
 *
 * A read is cut into runs of granules that are in the file and runs that are the base's.  A write goes to the file,
 * whole granules without a look at the base; of a granule that it covers in part and that is still the base's, the rest
 * is read from the base first and written with it.  Such a write is exclusive: another write to the same granule waits,
 * else it could be overwritten by what the base had.
 */
#include "backends/disk/overlay.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "backends/disk/overlay_int.h"

#define GROUP_DATA (OVERLAY_GROUP * (uint64_t)OVERLAY_GRANULE)

/* In a request's `backend`. */
struct overlay_request {
    union {
        struct fileio_op op;
        struct zero_job zero;
    };
    struct overlay_write write;
    struct fill *fill;
    unsigned left; /* parts at work */
    int result;
    uint64_t at, end; /* WRITE_ZEROES, DISCARD: what of the whole granules is still to do, in bytes */
};
_Static_assert(sizeof(struct overlay_request) <= sizeof(((struct disk_request *)0)->backend), "fits into a request");

/* A piece of a request that is one operation of its own, on the file, on the base or on the overlay itself. */
struct part {
    struct disk_request *parent;
    void (*done)(struct disk_request *parent, int result);
    union {
        struct fileio_op op;
        struct disk_request request;
    };
    struct iovec iov[];
};

/* The first and the last granule of an exclusive write, with what the base has around it. */
struct fill {
    uint8_t head[OVERLAY_GRANULE], tail[OVERLAY_GRANULE];
    bool has_head, has_tail;
    struct iovec iov[];
};

static struct overlay_request *own(struct disk_request *r)
{
    return (struct overlay_request *)r->backend;
}
static struct overlay *overlay_of(struct disk_request *r)
{
    return (struct overlay *)r->disk;
}
static struct disk_request *request_of(const void *member, size_t offset)
{
    return (struct disk_request *)((char *)(uintptr_t)member - offset - offsetof(struct disk_request, backend));
}
static struct disk_request *writer(const struct overlay_write *w)
{
    return request_of(w, offsetof(struct overlay_request, write));
}

/* --- pieces of lists of memory ------------------------------------------------------------------------- */

struct cursor {
    const struct iovec *iov;
    size_t used; /* of *iov */
};

/* The next `length` bytes as pieces in out (NULL: only counted, nothing is taken). */
static unsigned cut(struct cursor *c, uint64_t length, struct iovec *out)
{
    struct cursor at = *c;
    unsigned n = 0;

    for (; length; n++) {
        size_t piece = at.iov->iov_len - at.used < length ? at.iov->iov_len - at.used : length;
        if (out)
            out[n] = (struct iovec){(char *)at.iov->iov_base + at.used, piece};
        length -= piece;
        at.used += piece;
        if (at.used == at.iov->iov_len)
            at = (struct cursor){at.iov + 1, 0};
    }
    if (out)
        *c = at;
    return n;
}

static void skip_zeroed(struct cursor *c, uint64_t length)
{
    while (length) {
        size_t piece = c->iov->iov_len - c->used < length ? c->iov->iov_len - c->used : length;
        memset((char *)c->iov->iov_base + c->used, 0, piece);
        length -= piece;
        c->used += piece;
        if (c->used == c->iov->iov_len)
            *c = (struct cursor){c->iov + 1, 0};
    }
}

/* --- parts ------------------------------------------------------------------------------------------------ */

static struct part *part_new(struct disk_request *parent, struct cursor *c, uint64_t length,
                             void (*done)(struct disk_request *parent, int result), unsigned *n)
{
    *n = cut(c, length, NULL);
    struct part *p = malloc(sizeof *p + *n * sizeof *p->iov);

    if (!p)
        return NULL;
    p->parent = parent;
    p->done = done;
    cut(c, length, p->iov);
    own(parent)->left++;
    return p;
}

static void part_ended(struct part *p, int result)
{
    struct disk_request *parent = p->parent;
    void (*done)(struct disk_request *, int) = p->done;

    free(p);
    if (result)
        own(parent)->result = result;
    if (!--own(parent)->left)
        done(parent, own(parent)->result);
}

static void file_part_done(struct fileio_op *op)
{
    part_ended(op->opaque, op->result);
}

/* The base has its own operations: what follows from the end of one of them is begun here. */
static void request_part_done(struct disk_request *r)
{
    struct part *p = r->opaque;
    struct overlay *o = overlay_of(p->parent);

    part_ended(p, r->result);
    if (!o->submitting)
        disk_kick(&o->disk);
}

/* Bytes [offset, offset+length) of the disk, all in one group, from or to the file. */
static bool file_part(struct disk_request *parent, enum fileio_kind kind, struct cursor *c, uint64_t offset,
                      uint64_t length, void (*done)(struct disk_request *parent, int result))
{
    struct overlay *o = overlay_of(parent);
    unsigned n;
    struct part *p = part_new(parent, c, length, done, &n);

    if (!p)
        return false;
    p->op = (struct fileio_op){.kind = kind,
                               .fd = o->file.fd,
                               .iov = p->iov,
                               .n_iov = n,
                               .offset = overlay_data_offset(offset),
                               .done = file_part_done,
                               .opaque = p};
    fileio_submit(o->file.io, &p->op);
    return true;
}

/* A request to the base, or (edges of a WRITE_ZEROES) to the overlay itself. */
static bool request_part(struct disk_request *parent, struct disk *disk, enum disk_op op, struct cursor *c,
                         uint64_t offset, uint64_t length, void (*done)(struct disk_request *parent, int result))
{
    unsigned n;
    struct part *p = part_new(parent, c, length, done, &n);

    if (!p)
        return false;
    p->request = (struct disk_request){.op = op,
                                       .offset = offset,
                                       .length = length,
                                       .iov = p->iov,
                                       .n_iov = n,
                                       .done = request_part_done,
                                       .opaque = p};
    disk_submit(disk, &p->request);
    return true;
}

/* Reads [offset, offset+length) as the base has it: zeroes behind its end. */
static bool base_part(struct disk_request *parent, struct cursor *c, uint64_t offset, uint64_t length,
                      void (*done)(struct disk_request *parent, int result))
{
    struct overlay *o = overlay_of(parent);
    uint64_t there = offset < o->header.base_size ? o->header.base_size - offset : 0;

    if (there > length)
        there = length;
    if (there && !request_part(parent, o->base, DISK_READ, c, offset, there, done))
        return false;
    skip_zeroed(c, length - there);
    return true;
}

/* Drops the hold that keeps a request from ending while its parts are being made. */
static void release(struct disk_request *r, void (*done)(struct disk_request *r, int result))
{
    if (!--own(r)->left)
        done(r, own(r)->result);
}

/* --- reads ---------------------------------------------------------------------------------------------------- */

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
    return owned ? file_part(r, FILEIO_READ, c, offset, length, finished) : base_part(r, c, offset, length, finished);
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
    release(r, finished);
}

/* --- writes at work, and those that wait for them -------------------------------------------------------------- */

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
static void zeroes_begin(struct overlay *o, struct disk_request *r);

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
        zeroes_begin(o, r);
}

static void queue(struct overlay *o, struct overlay_write *w)
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

static void leave(struct overlay *o, struct overlay_write *w)
{
    *w->link = w->next;
    if (w->next)
        w->next->link = w->link;
    o->n_exclusive -= w->exclusive;
    wake(o);
}

/* --- writes ------------------------------------------------------------------------------------------------------ */

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
    leave(o, w);
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
        if (!file_part(r, FILEIO_WRITE, &c, offset, piece, write_ended)) {
            own(r)->result = -ENOMEM;
            break;
        }
        offset += piece;
        length -= piece;
    }
    release(r, write_ended);
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

    return base_part(r, &c, granule * OVERLAY_GRANULE, OVERLAY_GRANULE, fill_ready);
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
    release(r, fill_ready);
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
    leave(o, &own(r)->write);
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

static void write_submit(struct overlay *o, struct disk_request *r)
{
    struct overlay_write *w = &own(r)->write;

    w->first = r->offset / OVERLAY_GRANULE;
    w->last = (r->offset + r->length - 1) / OVERLAY_GRANULE;
    /* What one that is at work now will have made ours by the time we begin needs no filling; exclusive all the same.
     */
    w->exclusive = needs_head(o, r, w) || needs_tail(o, r, w);
    queue(o, w);
}

/* --- zeroes and discards --------------------------------------------------------------------------------------------
 */

static void zeroes_ended(struct disk_request *r, int result)
{
    if (!result && (r->flags & DISK_FUA))
        overlay_flush_add(overlay_of(r), r);
    else
        overlay_finish(overlay_of(r), r, result);
}

/* The next of the whole granules, at most to the end of their group; false: none is left. */
static bool next_range(struct disk_request *r, uint64_t *at, uint64_t *length)
{
    struct overlay_request *q = own(r);

    if (q->at >= q->end)
        return false;
    *at = q->at;
    *length = GROUP_DATA - q->at % GROUP_DATA < q->end - q->at ? GROUP_DATA - q->at % GROUP_DATA : q->end - q->at;
    q->at += *length;
    return true;
}

static void zeroes_next(struct zero_job *job)
{
    struct disk_request *r = request_of(job, 0);
    struct overlay *o = overlay_of(r);
    uint64_t at, length;

    if (!job->op.result && next_range(r, &at, &length)) {
        job->done = zeroes_next;
        zero_start(job, &o->file, overlay_data_offset(at), length, true);
        return;
    }
    if (job->op.result) {
        own(r)->result = job->op.result;
    } else {
        overlay_own(o, own(r)->write.first, own(r)->write.last);
        o->flush->written = true;
    }
    leave(o, &own(r)->write);
    release(r, zeroes_ended);
}

static void zeroes_begin(struct overlay *o, struct disk_request *r)
{
    own(r)->zero.op.result = 0;
    zeroes_next(&own(r)->zero);
}

/* Zeroes to a part of a granule: a write, unless there is nothing but zeroes. */
static void zero_edge(struct overlay *o, struct disk_request *r, uint64_t at, uint64_t length)
{
    struct iovec zeroes = {o->file.zeroes, OVERLAY_GRANULE};
    struct cursor c = {&zeroes, 0};

    if (!length || (!overlay_owned(o, at / OVERLAY_GRANULE) && at >= o->header.base_size))
        return;
    if (!request_part(r, &o->disk, DISK_WRITE, &c, at, length, zeroes_ended))
        own(r)->result = -ENOMEM;
}

/* Rounds the range to whole granules; what of it is not is in [offset, at) and [end, ...). */
static bool whole_granules(struct disk_request *r)
{
    struct overlay_request *q = own(r);

    q->at = (r->offset + OVERLAY_GRANULE - 1) & ~(uint64_t)(OVERLAY_GRANULE - 1);
    q->end = (r->offset + r->length) & ~(uint64_t)(OVERLAY_GRANULE - 1);
    return q->at < q->end;
}

static void zeroes_submit(struct overlay *o, struct disk_request *r)
{
    struct overlay_request *q = own(r);
    uint64_t end = r->offset + r->length;
    bool whole = whole_granules(r);

    q->left = 1;
    if (q->at > q->end) { /* within one granule */
        zero_edge(o, r, r->offset, r->length);
    } else {
        zero_edge(o, r, r->offset, q->at - r->offset);
        zero_edge(o, r, q->end, end - q->end);
    }
    if (whole) {
        q->left++;
        q->write.first = q->at / OVERLAY_GRANULE;
        q->write.last = q->end / OVERLAY_GRANULE - 1;
        queue(o, &q->write);
    }
    release(r, zeroes_ended);
}

static void discard_next(struct zero_job *job)
{
    struct disk_request *r = request_of(job, 0);
    uint64_t at, length;

    if (job->op.result || !next_range(r, &at, &length)) {
        overlay_finish(overlay_of(r), r, job->op.result);
        return;
    }
    job->done = discard_next;
    zero_discard(job, &overlay_of(r)->file, overlay_data_offset(at), length);
}

/* Granules that are the base's stay so: there is no space to give back.  Their places may be made holes all the same,
 * for they mean nothing. */
static void discard_submit(struct overlay *o, struct disk_request *r)
{
    if (whole_granules(r) && !o->file.no_hole) {
        own(r)->zero.op.result = 0;
        discard_next(&own(r)->zero);
    } else {
        overlay_finish(o, r, 0);
    }
}

/* --- the disk
 * ----------------------------------------------------------------------------------------------------------- */

static void flush_submit(struct overlay *o, struct disk_request *r)
{
    overlay_flush_add(o, r);
}

static void overlay_submit(struct disk *d, struct disk_request *r)
{
    static void (*const starts[])(struct overlay * o, struct disk_request * r) = {
        [DISK_READ] = read_start,        [DISK_WRITE] = write_submit,         [DISK_FLUSH] = flush_submit,
        [DISK_DISCARD] = discard_submit, [DISK_WRITE_ZEROES] = zeroes_submit,
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

    if (!d->read_only) {
        disk_submit(d, &last);
        disk_drain(d);
    }
    overlay_free(o);
}

const struct disk_ops overlay_ops = {
    .submit = overlay_submit, .kick = overlay_kick, .wait = overlay_wait, .close = overlay_close};
