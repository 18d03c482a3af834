/*
 * The file of a snapshot, version 1 (docs/SNAPSHOTS.md).  Numbers are little-endian; nothing is written twice.
 *
 *      0       header      64 bytes: "GUISESNP"  version (4)  crc32c of the rest (4)  zeroes
 *      64      pieces, in any order: the bytes of sections, and chunks of 64 KiB, most of them compressed
 *      T       table       an entry of 96 bytes for each section and each index of chunks
 *      end-64  trailer     "GUISEEND"  crc32c of the rest (4)  entries (4)  T (8)  crc32c of the table (4)  zeroes (4)
 *                          length of the file (8)  zeroes
 *
 *      entry           0 kind (16)   16 name (40)   56 version (4)   60 crc32c of its bytes (4)
 *                      64 offset (8)   72 length (8)   80 size of what is indexed (8; else 0)   88 zeroes
 *      index           kind "chunks", name "memory" or "disk": for each 64 KiB of that an offset (8), a length (4) and
 * a crc32c (4) of the bytes there.  Length 0: nothing is kept of it, which for memory means zeroes and for a disk what
 * its image has.  65536: as it is.  Else one frame of zstd.
 *
 * The trailer is written last, so that a file without one was never finished.  What is read is anybody's: lengths are
 * checked before they are used, sums before contents are.
 */
#pragma once
#include <limits.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/sections.h"

#define SNAPSHOT_CHUNK_SHIFT 16
#define SNAPSHOT_CHUNK (1u << SNAPSHOT_CHUNK_SHIFT)
#define SNAPSHOT_EXTENT_MAX (1ull << 46) /* of memory, or of a disk */

enum snapshot_extent { SNAPSHOT_MEMORY, SNAPSHOT_DISK, SNAPSHOT_EXTENTS };

/* --- writing --------------------------------------------------------------------------------------------- */

struct snapshot_writer;

/* Writes from the beginning of fd, which stays the caller's.  0/-errno. */
int snapshot_writer_create(struct snapshot_writer **out, int fd);
void snapshot_writer_destroy(struct snapshot_writer *w);
/* There is such an extent, of so many bytes. */
int snapshot_write_extent(struct snapshot_writer *w, enum snapshot_extent e, uint64_t bytes);
/* Chunk i of it: `length` bytes, all of a chunk but for the last one.  Of memory: zeroes take no room. */
int snapshot_write_chunk(struct snapshot_writer *w, enum snapshot_extent e, uint64_t i, const void *bytes,
                         uint32_t length);
/* The same as another file has it. */
struct snapshot_file;
int snapshot_copy_chunk(struct snapshot_writer *w, enum snapshot_extent e, uint64_t i, const struct snapshot_file *f);
int snapshot_write_sections(struct snapshot_writer *w, const struct sections *s);
/* Table and trailer, and all of it onto stable storage. */
int snapshot_write_end(struct snapshot_writer *w);
/* Bytes written so far. */
uint64_t snapshot_written(const struct snapshot_writer *w);

/* --- reading ------------------------------------------------------------------------------------------------ */

struct snapshot_place {
    uint64_t offset;
    uint32_t length, crc;
};

struct snapshot_file {
    int fd; /* the caller's */
    uint64_t length;
    struct sections sections;
    struct {
        uint64_t bytes, n;            /* 0: there is no such extent */
        struct snapshot_place *place; /* of n chunks */
    } extent[SNAPSHOT_EXTENTS];
    void *scratch; /* of snapshot_read_chunk */
};

/* Everything but the chunks is read and checked.  0, or -errno with a sentence about `name`; what was opened is to be
 * closed in any case. */
int snapshot_open(struct snapshot_file *f, int fd, const char *name, char *err, size_t n);
void snapshot_close(struct snapshot_file *f);
/* Chunk i into out[SNAPSHOT_CHUNK], by one thread at a time.  1: it was kept; 0: nothing is kept of it, and out is
 * zeroes; -EBADMSG: it is damaged; or another -errno. */
int snapshot_read_chunk(const struct snapshot_file *f, enum snapshot_extent e, uint64_t i, void *out);
/* How many of an extent's chunks are kept. */
uint64_t snapshot_kept(const struct snapshot_file *f, enum snapshot_extent e);
