/*
 * virtio-balloon (5.5): the host asks for memory, the guest gives up pages, and they go back to the host; free page
 * reporting does the same by itself for what the guest has freed.
 *
 * Pages that were given up stay mapped and read as zero (dma_discard): a guest that uses one all the same, by mistake
 * or malice, gets a new page of its own memory.  All functions: bus lock held.
 */
#pragma once
#include <stdint.h>

#include "devices/device.h"

struct balloon;

struct balloon_config {
    struct balloon **handle; /* receives the device; may be NULL */
};

extern const struct device_class virtio_balloon_class; /* config: struct balloon_config */

/* Asks the guest for `bytes` of its memory in total (rounded down to 4 KiB); 0 gives back all.  -ERANGE if the guest
 * would be left with less than BALLOON_LEAST.  It takes its time, and may not get there: see balloon_actual. */
#define BALLOON_LEAST (32ull << 20)
int balloon_set_target(struct balloon *b, uint64_t bytes);
uint64_t balloon_target(const struct balloon *b);
uint64_t balloon_actual(const struct balloon *b); /* bytes the guest says it has given up */

/* What the guest says of its memory, in bytes but for counts; UINT64_MAX: it does not say. */
struct balloon_stats {
    uint64_t swap_in, swap_out;
    uint64_t major_faults, minor_faults; /* counts */
    uint64_t free, total, available, caches;
    uint64_t hugepages_allocated, hugepages_failed; /* counts */
};

/* The last statistics and when they came (clock_ns); 0: none yet. */
uint64_t balloon_stats(const struct balloon *b, struct balloon_stats *stats);
/* Asks for new ones; they are there when the time of balloon_stats has changed, some milliseconds later. */
void balloon_refresh(struct balloon *b);

/* Bytes given back to the host so far, by either way. */
uint64_t balloon_returned(const struct balloon *b);
