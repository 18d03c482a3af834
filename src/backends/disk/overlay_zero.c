/* WRITE_ZEROES and DISCARD of an overlay: whole granules by the file, what is less by a write. */
#include "backends/disk/overlay_request.h"

#include <errno.h>

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
    overlay_write_leave(o, &own(r)->write);
    overlay_release(r, zeroes_ended);
}

void overlay_zeroes_begin(struct overlay *o, struct disk_request *r)
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
    if (!overlay_request_part(r, &o->disk, DISK_WRITE, &c, at, length, zeroes_ended))
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

void overlay_zeroes_submit(struct overlay *o, struct disk_request *r)
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
        overlay_write_queue(o, &q->write);
    }
    overlay_release(r, zeroes_ended);
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
void overlay_discard_submit(struct overlay *o, struct disk_request *r)
{
    if (whole_granules(r) && !o->file.no_hole) {
        own(r)->zero.op.result = 0;
        discard_next(&own(r)->zero);
    } else {
        overlay_finish(o, r, 0);
    }
}
