/*
 * Inside the requests to an overlay: overlay.c (the disk and its reads), overlay_write.c, overlay_zero.c, and what all
 * of them are made of, overlay_part.c.
 */
#pragma once
#include <stddef.h>

#include "backends/disk/overlay_int.h"

#define GROUP_DATA (OVERLAY_GROUP * (uint64_t)OVERLAY_GRANULE)

/* In a request's `backend`. */
struct overlay_request {
    union {
        struct fileio_op op;
        struct zero_job zero;
    };
    struct overlay_write write;
    struct fill *fill; /* overlay_write.c */
    unsigned left;     /* parts at work */
    int result;
    uint64_t at, end; /* WRITE_ZEROES, DISCARD: what of the whole granules is still to do, in bytes */
};
_Static_assert(sizeof(struct overlay_request) <= sizeof(((struct disk_request *)0)->backend), "fits into a request");

static inline struct overlay_request *own(struct disk_request *r)
{
    return (struct overlay_request *)r->backend;
}
static inline struct overlay *overlay_of(struct disk_request *r)
{
    return (struct overlay *)r->disk;
}
static inline struct disk_request *request_of(const void *member, size_t offset)
{
    return (struct disk_request *)((char *)(uintptr_t)member - offset - offsetof(struct disk_request, backend));
}

/* A place in a list of memory. */
struct cursor {
    const struct iovec *iov;
    size_t used; /* of *iov */
};

/*
 * Parts: a request that is more than one operation holds itself (left = 1), makes its parts, which move the cursor on,
 * and lets go.  When the last has ended done gets the result, the last error if there was one.  False: out of memory.
 */
typedef void parts_done(struct disk_request *parent, int result);

/* Bytes [offset, offset+length) of the disk, all in one group, from or to the file. */
bool overlay_file_part(struct disk_request *parent, enum fileio_kind kind, struct cursor *c, uint64_t offset,
                       uint64_t length, parts_done *done);
/* A request to the base, or (edges of a WRITE_ZEROES) to the overlay itself. */
bool overlay_request_part(struct disk_request *parent, struct disk *disk, enum disk_op op, struct cursor *c,
                          uint64_t offset, uint64_t length, parts_done *done);
/* Reads [offset, offset+length) as the base has it: zeroes behind its end. */
bool overlay_base_part(struct disk_request *parent, struct cursor *c, uint64_t offset, uint64_t length,
                       parts_done *done);
void overlay_release(struct disk_request *r, parts_done *done);

void overlay_write_submit(struct overlay *o, struct disk_request *r);
/* Begins w now, or when no write that it must not meet is at work; overlay_write_leave ends it. */
void overlay_write_queue(struct overlay *o, struct overlay_write *w);
void overlay_write_leave(struct overlay *o, struct overlay_write *w);

void overlay_zeroes_submit(struct overlay *o, struct disk_request *r);
void overlay_zeroes_begin(struct overlay *o, struct disk_request *r); /* its write's turn has come */
void overlay_discard_submit(struct overlay *o, struct disk_request *r);
