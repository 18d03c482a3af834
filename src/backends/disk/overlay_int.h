/* Inside the overlay: overlay_file.c (opening, creating), overlay_request.h (requests), overlay_flush.c. */
#pragma once
#include "backends/disk.h"
#include "backends/disk/disk_int.h"
#include "backends/disk/overlay_format.h"
#include "backends/disk/zero.h"

#define FLUSH_SECTORS 256u /* map sectors that one round of a flush writes at most: those of 4 GiB of data */

/* A write, or the whole granules of a WRITE_ZEROES, while it is at work. */
struct overlay_write {
    struct overlay_write *next, **link;
    uint64_t first, last; /* granules */
    bool exclusive;       /* fills up a granule from the base: no other write may touch it meanwhile */
};

struct overlay_flush {
    struct disk_request *waiting, **waiting_end; /* came after the one that runs had begun */
    struct disk_request *current;
    bool running;
    bool written;      /* something was written since the last one began */
    uint32_t left;     /* dirty map sectors that this one has still to write */
    uint32_t room, n;  /* of them in a round at most, in this one: */
    uint32_t *numbers; /* which, in ascending order */
    uint8_t (*sectors)[OVERLAY_SECTOR];
    unsigned writes; /* at work */
    int result;
    struct fileio_op sync, *write;
    struct iovec *iov;
};

struct overlay {
    struct disk disk;
    struct overlay_header header;
    struct zero_file file;
    bool shares_io;    /* with its base, an overlay too, which will destroy it (overlay_stack.c) */
    struct disk *base; /* NULL: zeroes */
    uint8_t *map;      /* all map sectors, as in the file but for their check sums */
    uint32_t n_sectors;
    /* Map sectors that differ from the file's: a byte each, and their numbers in the order of changing. */
    uint8_t *dirty;
    uint32_t *dirty_list, n_dirty;
    struct overlay_write *writes;                 /* at work */
    struct overlay_write *waiting, **waiting_end; /* for one that they overlap with */
    unsigned n_exclusive;
    bool submitting; /* inside submit: nothing may be done yet */
    int sync_error;  /* a flush has failed: from then on all do */
    struct overlay_flush *flush;
};

static inline bool overlay_owned(const struct overlay *o, uint64_t granule)
{
    const uint8_t *sector = o->map + granule / OVERLAY_SECTOR_BITS * OVERLAY_SECTOR;
    unsigned bit = (unsigned)(granule % OVERLAY_SECTOR_BITS);
    return sector[8 + bit / 8] >> bit % 8 & 1;
}

/* Notes that granules [first, last] are in the file (overlay_flush.c). */
void overlay_own(struct overlay *o, uint64_t first, uint64_t last);
/* Ends a request, now or, inside submit, a little later. */
static inline void overlay_finish(struct overlay *o, struct disk_request *r, int result)
{
    if (o->submitting)
        disk_done_later(r, result);
    else
        disk_done(r, result);
}

extern const struct disk_ops overlay_ops;
/* overlay_file.c */
void overlay_free(struct overlay *o);
int overlay_take(struct disk *d, int fd, char *err, size_t n);
/* slot, which of the two copies it was, may be NULL. */
int overlay_read_headers(int fd, const char *path, struct overlay_header *h, unsigned *slot, char *err, size_t n);
int overlay_write_file(const char *path, const struct overlay_header *h, char *err, size_t n);
/* slot: of the copy; the one that counts stays as it is until this one does.  0/-errno. */
int overlay_write_header(int fd, const struct overlay_header *h, unsigned slot);
/* The whole map as it is in the file, the caller's to free.  -EBADMSG: a check sum is wrong, or the end is missing. */
int overlay_load_map(int fd, const struct overlay_header *h, uint8_t **map);
/* Calls fn for each group's map that is not empty, as most are; stops at the first that is not 0. */
int overlay_each_map(int fd, uint64_t size, int (*fn)(void *opaque, uint64_t group, const uint8_t *sectors),
                     void *opaque);
/* h lies on what `lower` lies on. */
void overlay_stand_on(struct overlay_header *h, const struct overlay_header *lower);
/* By how many bytes the file is shorter than its header says.  0/-errno. */
int overlay_check_length(int fd, const struct overlay_header *h, uint64_t *missing);
/* Opens, locks and reads the headers of one that nobody else has open.  The descriptor, or -errno with a sentence. */
int overlay_open_plain(const char *path, bool read_only, struct overlay_header *h, unsigned *slot, char *err, size_t n);

/* For a map of so many sectors; NULL: no memory. */
struct overlay_flush *overlay_flush_create(uint32_t n_sectors);
void overlay_flush_destroy(struct overlay_flush *f);

/* r, a FLUSH or a write with FUA whose data is written, is done when all that was written before is on stable storage
 * (overlay_flush.c). */
void overlay_flush_add(struct overlay *o, struct disk_request *r);
