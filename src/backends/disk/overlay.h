/*
 * Copy-on-write overlays: files of guise's own format (overlay_format.h) over a disk that is only read.  They open as
 * any disk does (format=overlay, or a name that ends in .overlay); here is what else can be done with them.
 */
#pragma once
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct disk;
struct fileio;
struct loop;
struct disk_spec;

/* Makes the file `path`, which must not be there, over the disk that `base` names by words as of disk.h (NULL: over
 * zeroes).  size 0: the base's; else a multiple of 512, not less.  Nothing is left behind on failure.  Durable on
 * return. 0, or -errno with one sentence. */
int disk_overlay_create(const char *path, const char *base, uint64_t size, char *err, size_t n);

/* Overlays that may lie on one another. */
#define DISK_OVERLAYS_MAX 32u

/* Makes the disk larger; nobody has it open.  A smaller size is refused. */
int disk_overlay_grow(const char *path, uint64_t size, char *err, size_t n);

/* The path of what the overlay lies on, empty for none, without opening it as a disk.  0/-errno. */
int disk_overlay_base(const char *path, char base[4096]);

/* Sets owned[i] for each piece of 2^shift bytes that the overlay has any contents of, i < n.  0, or -errno with a
 * sentence. */
int disk_overlay_owned(const char *path, unsigned shift, uint8_t *owned, uint64_t n, char *err, size_t size);

struct disk_overlay_report {
    uint64_t size, base_size, granules, owned; /* granules of 4096 bytes; those whose contents are here */
    char base[4096];                           /* path; empty: none */
    uint64_t bad_sectors;                      /* map sectors with a wrong check sum */
    uint64_t stray_bits;                       /* bits for granules behind the end */
    uint64_t missing_bytes;                    /* the file is shorter than its header says by this */
    int bad_headers;                           /* copies of the header that are not valid: one may be */
};

/* Looks through the whole map; nobody writes to it meanwhile.  0 when nothing is wrong; -EBADMSG with a sentence and
 * the report when something is; another -errno with a sentence when it could not be read. */
int disk_overlay_check(const char *path, struct disk_overlay_report *report, char *err, size_t n);

/* --- layers: a new overlay on one that a machine has open (overlay_stack.c) --- */

/* Makes the file `path`, which must not be there, over the overlay `base`, which may be written to meanwhile; `base` is
 * the path that it will be found by.  Durable on return.  0, or -errno with one sentence. */
int disk_overlay_stack_create(const char *path, const char *base, char *err, size_t n);
/* Opens and locks it, for disk_overlay_stack in another process.  The descriptor, or -errno with one sentence. */
int disk_overlay_stack_open(const char *path, char *err, size_t n);
/* From now on `disk`, an overlay that is at rest and flushed, writes to that file and only reads what it was.  Takes fd
 * over on success.  0, or -errno with one sentence, and nothing has changed. */
int disk_overlay_stack(struct disk *disk, int fd, char *err, size_t n);

/* --- layers become fewer (overlay_merge.h) --- */

#define DISK_OVERLAY_ID_SIZE 33u

/* What tells an overlay from any other, in hexadecimal digits: of a file, 0/-errno; of a disk that is open, which it
 * writes to; false: it is no overlay. */
int disk_overlay_id(const char *path, char id[DISK_OVERLAY_ID_SIZE]);
bool disk_overlay_id_of(const struct disk *disk, char id[DISK_OVERLAY_ID_SIZE]);
/* Of the disk that it is, in bytes; 0: it cannot be read. */
uint64_t disk_overlay_size(const char *path);
/* Makes the file `path`, empty, in the place of the overlay `lower`.  0, or -errno with one sentence. */
int disk_overlay_merge_create(const char *path, const char *lower, char *err, size_t n);
/* Overlays of one size, paths[0] on paths[1] and so on, that nobody has open, become one: in `fresh`, which was made so
 * for the last of them; or (NULL) in paths[into].  Durable on return; what each of them reads as stays what it was.  0,
 * or -errno with one sentence. */
int disk_overlay_merge(const char *const *paths, unsigned count, unsigned into, const char *fresh, char *err, size_t n);
/* Then that file takes the place and the name of paths[0]; the others may be removed.  Durable on return.  0, or -errno
 * with one sentence. */
int disk_overlay_replace(const char *const *paths, unsigned count, unsigned into, const char *fresh, char *err,
                         size_t n);

/* The same for a disk that is in use: its layers, but not the uppermost, which is written to. */
struct disk_merge;
/* Those with the ids `upper` to `lower` are to be merged into a file, one of theirs or a new one as above: fds[0] is
 * opened for writing, fds[1] for reading; both are taken over on success.  No other merge is under way.  0, or -errno
 * with one sentence. */
int disk_merge_begin(struct disk_merge **out, struct disk *disk, const char *upper, const char *lower, const int fds[2],
                     char *err, size_t n);
/* On any thread, without a lock.  0, -ECANCELED, -errno. */
int disk_merge_run(struct disk_merge *m, const _Atomic bool *give_up);
/* use: the disk, which is at rest, reads the merged file from now on.  Frees m. */
void disk_merge_end(struct disk_merge *m, bool use);

/* For tests: opens with file operations of one's own, which become the disk's. */
int overlay_open_with(struct disk **out, const struct disk_spec *spec, struct loop *loop, struct fileio *io, char *err,
                      size_t n);
