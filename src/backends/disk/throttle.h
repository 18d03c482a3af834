/*
 * A limit on what a disk does: bytes a second and operations a second.
 *
 * Each request moves the moment at which the next may begin; what has not been used is saved up for THROTTLE_BURST_NS,
 * so that a guest that was quiet gets its next few requests at once.  Flushes pass: they move no data.
 */
#pragma once
#include "backends/disk.h"
#include "host/loop.h"

#define THROTTLE_BURST_NS 100000000ull

struct disk_throttle {
    struct disk *disk;
    struct loop *loop;
    struct loop_timer timer;
    uint64_t bytes_per_second, operations_per_second; /* 0: no limit */
    uint64_t bytes_ns, operations_ns;                 /* when the next may begin */
    struct disk_request *waiting, **waiting_end;
};

/* As the spec says; *out is NULL when it says nothing.  0/-errno. */
int throttle_create(struct disk_throttle **out, struct disk *disk, struct loop *loop);
void throttle_destroy(struct disk_throttle *t);
/* true: r may go to the disk now.  false: it waits, and goes there by itself. */
bool throttle_pass(struct disk_throttle *t, struct disk_request *r);
/* All that waits goes to the disk. */
void throttle_release(struct disk_throttle *t);
