/* What both sides of an image of translations share: carry.c, the machine that is forked, and carry_take.c, its copies.
 */
#pragma once
#include "engine/soft/soft_int.h"

#define PAGE 4096ull
#define DROPPED_MAX 4096u

struct carried {
    uint64_t program;       /* soft_program */
    uint64_t n_pages;       /* of RAM */
    uint32_t size, hot_end; /* of the cache */
    uint64_t takers;        /* bits of the vCPUs that begin with it */
    uint32_t n_regions;     /* in use */
    uint32_t region;        /* that is being filled */
    uint32_t cross;         /* struct engine */
    uint64_t shapes;        /* bytes of them in use */
    uint32_t out[OUT_COUNT];
    struct cache_region filled[REGIONS_MAX]; /* up to where they are */
    uint32_t filled_as[REGIONS_MAX];
    uint64_t often[INDEXED_BITS / 64], indexed[INDEXED_BITS / 64];
    uint64_t exec_bloom[2][64], large_bloom[2][2], large_global[2][2]; /* struct soft_vcpu */
    uint32_t n_dropped;
    uint32_t dropped[DROPPED_MAX];
};

enum { CODE, BLOCKS, INCOMING, SITES, EXITS, MAPS, HASH, PAGES, GRANULES, KERNEL, SHAPES, NOTE, PARTS };

/* A table, and where it is in the image. */
struct part {
    uint8_t *at;
    uint64_t size, offset;
    uint64_t used; /* of HASH and what is behind it, whose beginning is in use */
};
/* Returns the image's size. */
uint64_t carry_parts(const struct engine *e, struct part part[PARTS]);
/* What a region has of each part; of the code this is the hot half. */
void carry_slice(const struct engine *e, const struct carried *c, unsigned i, unsigned k, uint64_t slice[2]);
bool carry_possible(const struct engine *e);
