/*
 * Which parts of a disk are written to, for who copies a disk that is in use: the counterpart of memory/watch.h's log,
 * by pieces of 64 KiB of 16 granules of 4 KiB each.  All functions: the lock of the disk's loop held.
 */
#pragma once
#include <stdbool.h>
#include <stdint.h>

#include "backends/disk.h"

#define DISK_LOG_SHIFT 16
#define DISK_LOG_GRANULE 4096u
#define DISK_LOG_GRANULES 16u

static inline uint64_t disk_log_pieces(const struct disk *d)
{
    return (d->size + (1u << DISK_LOG_SHIFT) - 1) >> DISK_LOG_SHIFT;
}
/* From now on what is submitted is noted.  0/-errno. */
int disk_log_begin(struct disk *d);
/* granules[i]: the bits of piece i, lowest first, that were noted since the last time; of a disk that is at rest
 * (disk_drain), else what is being written may come later. */
void disk_log_take(struct disk *d, uint16_t *granules);
/* How many granules are noted. */
uint64_t disk_log_count(const struct disk *d);
void disk_log_end(struct disk *d);

/* For disk.c. */
void disk_log_note(struct disk *d, const struct disk_request *r);

/* --- what an overlay has (overlay_log.c) --- */

/* Sets the bits of the granules that `d`, an overlay, or an overlay below it has.  -EINVAL: it is none. */
int disk_overlay_mask(const struct disk *d, uint16_t *granules);
/* Where granule g (of 4096 bytes) is: a descriptor that stays the disk's, and an offset in that file.  false: it is not
 * in an overlay.  While that is looked at a write may change it: which the log knows. */
bool disk_overlay_find(const struct disk *d, uint64_t g, int *fd, uint64_t *offset);
