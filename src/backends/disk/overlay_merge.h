/*
 * Merging layers: overlays that lie on one another and that nobody writes to become one file.
 *
 *      A  (the upper)                      A' = all of them, in the file of the one that has most, which
 *      B                       ->               takes the name and the place of A; or in a new file, when
 *      C  (the lower)                           all of these are somebody else's, too
 *      what C lies on                      what C lies on
 *
 * What is above that file goes down into places of it that those above hide; what is below it comes up into places that
 * it has nothing in.  So at each moment the chain is what it was, for who reads it meanwhile and for who comes after a
 * crash.  A granule's bit reaches the file after its data is on stable storage, as in a flush.  Only then the file
 * takes A's place, in two steps (disk_overlay_replace), between which both are what A was.
 */
#pragma once
#include <stdatomic.h>
#include <sys/types.h>

#include "backends/disk/overlay_format.h"

/* What is done to the file that is written: the host's, or a test's. */
struct merge_io {
    ssize_t (*write)(int fd, const void *data, size_t length, off_t offset);
    int (*hole)(int fd, off_t offset, off_t length); /* 0, or -1: there can be none */
    int (*sync)(int fd);
};
extern const struct merge_io merge_io_host;

struct merge_layer {
    int fd;
    const uint8_t *map; /* as in the file; nobody changes it meanwhile */
};

struct overlay_merge {
    /* n of them, the uppermost first: the first `place` hide what the file has, the others are below it. */
    const struct merge_layer *layers;
    unsigned n, place;
    int into;
    const struct overlay_header *header; /* of `into`, whose size is that of all */
    uint8_t *map;                        /* what `into` has, and then also what the others have */
    const struct merge_io *io;
    const _Atomic bool *give_up; /* NULL: nobody will want that */
};

/* Returns when all is on stable storage.  0; -ECANCELED; -errno of the host.  What was written in vain is given back.
 */
int overlay_merge(struct overlay_merge *m);
