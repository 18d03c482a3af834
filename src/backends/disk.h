/*
 * Disks: what a storage controller reads and writes.
 *
 * A disk is named by words, as on the command line:
 *
 *      PATH[,format=FORMAT][,base=PATH][,ro][,bus=nvme|virtio][,serial=S][,bps=SIZE][,iops=N]
 *
 * A comma in PATH is written twice.  Without format= the name decides (see disk_formats of disk/spec.c): never what is
 * inside, for the guest can write there.  All work is asynchronous: a controller submits any number of requests, then
 * kicks; `done` is called once for each, in any order, with the lock of the loop held: on the loop's thread, or inside
 * disk_kick or disk_drain, but never inside disk_submit.  All functions: that lock held, or no other thread running.
 */
#pragma once
#include <limits.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#define DISK_SECTOR 512u
#define DISK_SERIAL_MAX 20u
#define DISK_IOV_MAX 1000u /* pieces of one request; the kernel's limit is 1024, and some of that is for backends */

struct disk;
struct loop;

enum disk_op {
    DISK_READ,
    DISK_WRITE,
    DISK_FLUSH,        /* what was done before it was submitted is on stable storage when it is done */
    DISK_DISCARD,      /* the contents are of no use any more; reading gives anything that was ever there, or zeroes */
    DISK_WRITE_ZEROES, /* reading gives zeroes */
};

enum {
    DISK_FUA = 1,   /* WRITE, WRITE_ZEROES: on stable storage when done */
    DISK_UNMAP = 2, /* WRITE_ZEROES: the space may be given back */
};

struct disk_request {
    enum disk_op op;
    uint32_t flags;
    uint64_t offset, length; /* bytes, multiples of DISK_SECTOR, inside the disk; FLUSH: both 0 */
    /* READ, WRITE: n_iov pieces, `length` in all.  The disk's until done, and used up by it. */
    struct iovec *iov;
    unsigned n_iov;
    void (*done)(struct disk_request *r);
    void *opaque;
    int result; /* in done: 0 or -errno */
    /* Below: the disk's own. */
    struct disk *disk;
    struct disk_request *next;
    _Alignas(16) unsigned char backend[320];
};

enum disk_bus { DISK_BUS_NVME, DISK_BUS_VIRTIO };

struct disk_spec {
    char path[PATH_MAX]; /* or a URI */
    char base[PATH_MAX]; /* of an overlay: where what it lies on in the end is now; empty: where it was */
    unsigned format;     /* index into disk_formats of disk/spec.c */
    bool guessed;        /* the format comes from the name */
    bool read_only;
    bool away;      /* another process writes to its file: disk_away.h */
    unsigned depth; /* how many overlays are above it */
    enum disk_bus bus;
    char serial[DISK_SERIAL_MAX + 1];                 /* printable ASCII; made from the path unless told */
    uint64_t bytes_per_second, operations_per_second; /* at most; 0: no limit */
};

/* What was done without an error. */
struct disk_counters {
    uint64_t reads, writes, flushes, others, read_bytes, written_bytes, errors;
};

struct disk_ops {
    void (*submit)(struct disk *d, struct disk_request *r); /* checked; ends in disk_done, later */
    void (*kick)(struct disk *d);                           /* begins what was submitted */
    bool (*wait)(struct disk *d); /* blocks until some request went further; false: none will any more */
    void (*close)(struct disk *d);
    /* disk_away.h; both NULL: its file cannot be another process's for a time. */
    int (*file)(const struct disk *d);                        /* the descriptor that has the lock */
    int (*take)(struct disk *d, int fd, char *err, size_t n); /* fd, the same file, takes its place: 0/-errno */
};

struct disk {
    const struct disk_ops *ops;
    uint64_t size;        /* bytes, a multiple of DISK_SECTOR */
    uint32_t granularity; /* bytes, a power of two: pieces of this size and alignment are written without reading */
    bool read_only;
    bool away; /* it has no file for the moment: requests fail with -EBUSY */
    struct disk_spec spec;
    unsigned in_flight;
    struct disk_counters counters;
    /* disk.c's own. */
    struct disk_request *ready, **ready_end;
    bool kicking, again, said;
    struct disk_throttle *throttle; /* NULL: no limit */
    struct disk_log *log;           /* disk_log.h; NULL: nobody wants to know what is written */
};

/* Are these words right?  0, or -EINVAL with one sentence in err[n].  Opens nothing. */
int disk_check(const char *words, char *err, size_t n);
/* The same, and what they say. */
int disk_parse(const char *words, struct disk_spec *spec, char *err, size_t n);

/* The words for this path and (NULL: without) format, in a new string that the caller frees; NULL: no memory. */
char *disk_quote(const char *path, const char *format);

/* 0, or -errno with one sentence. */
int disk_open(struct disk **out, const char *words, struct loop *loop, char *err, size_t n);
/* The same, of words already taken apart. */
int disk_open_spec(struct disk **out, const struct disk_spec *spec, struct loop *loop, char *err, size_t n);
/* Waits for all that is in flight, calls its `done`, makes what was written durable, frees.  disk may be NULL. */
void disk_close(struct disk *disk);

void disk_submit(struct disk *disk, struct disk_request *r);
void disk_kick(struct disk *disk);
/* Returns when nothing is in flight any more. */
void disk_drain(struct disk *disk);

/* Copies a disk, by words, into the new file `path`, which has holes where the disk has zeroes.  Durable on return; on
 * failure nothing is left.  0, or -errno with one sentence. */
int disk_export(const char *words, const char *path, char *err, size_t n);

/* --- for backends --------------------------------------------------------------------------------- */

/* Initializes what is common: size and the rest are the caller's. */
void disk_init(struct disk *d, const struct disk_ops *ops, const struct disk_spec *spec);
/* Ends a request; not inside ops->submit. */
void disk_done(struct disk_request *r, int result);
/* Ends it from anywhere: `done` is called by the next disk_kick or disk_drain. */
void disk_done_later(struct disk_request *r, int result);
