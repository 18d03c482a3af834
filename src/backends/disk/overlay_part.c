/* What a request to an overlay is cut into: operations on its file, on its base, on itself. */
#include "backends/disk/overlay_request.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* A piece of a request that is one operation of its own, on the file, on the base or on the overlay itself. */
struct part {
    struct disk_request *parent;
    parts_done *done;
    union {
        struct fileio_op op;
        struct disk_request request;
    };
    struct iovec iov[];
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

static struct part *part_new(struct disk_request *parent, struct cursor *c, uint64_t length, parts_done *done,
                             unsigned *n)
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
    parts_done *done = p->done;

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

bool overlay_file_part(struct disk_request *parent, enum fileio_kind kind, struct cursor *c, uint64_t offset,
                       uint64_t length, parts_done *done)
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

bool overlay_request_part(struct disk_request *parent, struct disk *disk, enum disk_op op, struct cursor *c,
                          uint64_t offset, uint64_t length, parts_done *done)
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

bool overlay_base_part(struct disk_request *parent, struct cursor *c, uint64_t offset, uint64_t length,
                       parts_done *done)
{
    struct overlay *o = overlay_of(parent);
    uint64_t there = offset < o->header.base_size ? o->header.base_size - offset : 0;

    if (there > length)
        there = length;
    if (there && !overlay_request_part(parent, o->base, DISK_READ, c, offset, there, done))
        return false;
    skip_zeroed(c, length - there);
    return true;
}

/* Drops the hold that keeps a request from ending while its parts are being made. */
void overlay_release(struct disk_request *r, parts_done *done)
{
    if (!--own(r)->left)
        done(r, own(r)->result);
}
