/*
 * Translations that a copy of a machine begins with: what a parked machine has translated (vm/fork.h) is right for its
 * copies, whose memory is the same, and code in the cache has no address of the host's in it.  So it is taken along as
 * it is: code, blocks, sites, exits, maps.  What is found by address (hash, pages) is made anew; TLBs begin empty.
 *
 *      a piece          struct carried
 *      one a region     code of both halves   blocks   sites   exits   maps
 *
 * Helpers' addresses are told by their distance from one of them (struct site), which is the same in every process of
 * the same program: anything else is refused, as is a cache that has begun to evict, or more vCPUs than one.
 */
#include "engine/soft/soft_int.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#define MOST (40u << 20) /* beyond that, copying takes longer than translating what is needed */

struct carried {
    uint64_t program;       /* soft_program */
    uint32_t size, hot_end; /* of the cache */
    uint32_t regions;       /* that have something; the last of them is being filled */
    uint32_t out[OUT_COUNT];
    struct cache_region filled[REGIONS_MAX]; /* up to where they are */
    uint64_t often[INDEXED_BITS / 64], indexed[INDEXED_BITS / 64];
};

uint64_t soft_program(const struct engine_config *config)
{
    struct stat st = {0};
    uint64_t h = 0xcbf29ce484222325;

    stat("/proc/self/exe", &st);
    const uint64_t words[] = {(uint64_t)st.st_dev,
                              (uint64_t)st.st_ino,
                              (uint64_t)st.st_size,
                              (uint64_t)st.st_mtim.tv_sec,
                              (uint64_t)st.st_mtim.tv_nsec,
                              config->precise_flags | config->always_hot << 1 | config->timing << 2 |
                                  (uint64_t)config->log_items << 8,
                              config->stress};
    for (size_t i = 0; i < sizeof words / sizeof *words; i++)
        h = (h ^ words[i]) * 0x9e3779b97f4a7c15, h ^= h >> 29;
    return h;
}

/* What a region has, in order: where it is, and how much. */
struct part {
    void *at;
    size_t size;
};
enum { PARTS = 6 };

static size_t list_parts(const struct engine *e, const struct carried *c, unsigned i, struct part part[PARTS])
{
    const struct cache_region *from = &e->regions[i], *to = &c->filled[i];
    size_t size = 0;

    part[0] = (struct part){e->cache.rw + from->hot, to->hot - from->hot};
    part[1] = (struct part){e->cache.rw + from->cold, to->cold - from->cold};
    part[2] = (struct part){e->blocks + from->block, (to->block - from->block) * sizeof *e->blocks};
    part[3] = (struct part){e->sites + from->site, (to->site - from->site) * sizeof *e->sites};
    part[4] = (struct part){e->exits + from->exit, (to->exit - from->exit) * sizeof *e->exits};
    part[5] = (struct part){e->maps + from->map, (to->map - from->map) * sizeof *e->maps};
    for (unsigned k = 0; k < PARTS; k++)
        size += part[k].size;
    return size;
}

/* It has not come round to its first region again. */
static bool can_be_carried(const struct engine *e)
{
    if (e->peers->n != 1 || e->config.stress)
        return false;
    for (unsigned i = e->region + 1; i < e->n_regions; i++)
        if (e->filled[i].block != e->regions[i].block)
            return false;
    return true;
}

/* --- from the machine that is parked ----------------------------------------------------------------------------- */

static int put_head(struct engine *e, struct engine_code *piece)
{
    struct carried *c = calloc(1, sizeof *c);

    if (!c)
        return -ENOMEM;
    *piece = (struct engine_code){(uint8_t *)c, sizeof *c};
    c->program = e->program;
    c->size = e->cache.size;
    c->hot_end = e->cache.hot_end;
    c->regions = e->region + 1;
    for (unsigned i = 0; i < c->regions; i++)
        c->filled[i] = soft_region_filled(e, i);
    memcpy(c->out, e->cache.out, sizeof c->out);
    memcpy(c->often, e->hot, sizeof c->often);
    memcpy(c->indexed, e->indexed, sizeof c->indexed);
    return 0;
}

static int put_region(struct engine *e, const struct carried *c, unsigned i, struct engine_code *piece)
{
    struct part part[PARTS];
    size_t size = list_parts(e, c, i, part);

    *piece = (struct engine_code){malloc(size), size};
    if (!piece->bytes)
        return -ENOMEM;
    uint8_t *to = piece->bytes;
    for (unsigned k = 0; k < PARTS; to += part[k++].size)
        memcpy(to, part[k].at, part[k].size);
    return 0;
}

int soft_get_code(struct engine *e, struct engine_code pieces[ENGINE_CODE_PIECES])
{
    struct part part[PARTS];
    size_t size = 0;
    int n = 0;

    if (!can_be_carried(e))
        return -ENOTSUP;
    soft_unchain_cross(e); /* they hold as long as no TLB is flushed, and those of a copy are empty */
    int err = put_head(e, &pieces[n++]);
    const struct carried *c = (const struct carried *)(void *)pieces[0].bytes;
    for (unsigned i = 0; !err && i < c->regions; i++)
        size += list_parts(e, c, i, part);
    if (!err && size > MOST)
        err = -E2BIG;
    for (unsigned i = 0; !err && i < c->regions; i++)
        err = put_region(e, c, i, &pieces[n++]);
    while (err && n)
        free(pieces[--n].bytes);
    return err ? err : n;
}

/* --- into a copy ------------------------------------------------------------------------------------------------- */

static bool is_within(const struct cache_region *from, const struct cache_region *at, const struct cache_region *to)
{
    return at->hot >= from->hot && at->hot <= to->hot && at->cold >= from->cold && at->cold <= to->cold &&
           at->block >= from->block && at->block <= to->block && at->site >= from->site && at->site <= to->site &&
           at->exit >= from->exit && at->exit <= to->exit && at->map >= from->map && at->map <= to->map;
}

/* It is of a cache like ours, and in its regions. */
static bool fits(const struct engine *e, const struct engine_code *pieces, unsigned n)
{
    const struct carried *c = (const struct carried *)(const void *)pieces[0].bytes;
    struct part part[PARTS];

    if (pieces[0].n != sizeof *c || c->program != e->program || c->size != e->cache.size ||
        c->hot_end != e->cache.hot_end || memcmp(c->out, e->cache.out, sizeof c->out) != 0 || !c->regions ||
        c->regions > e->n_regions || n != 1 + c->regions)
        return false;
    for (unsigned i = 0; i < c->regions; i++) {
        struct cache_region end = e->regions[i + 1];
        if (i + 1 == e->n_regions)
            end.hot = e->cache.hot_end;
        if (!is_within(&e->regions[i], &c->filled[i], &end) || list_parts(e, c, i, part) != pieces[1 + i].n)
            return false;
    }
    return true;
}

/* This is done before the sandbox closes, and who is copied may have been taken over by its guest: what a block says of
 * itself must not lead beyond the tables.  (Its code is run in the sandbox.) */
static bool is_sound(const struct block *b)
{
    if (!b->length || b->length > 4096 || b->n_peeked > BLOCK_PEEKS)
        return false;
    for (unsigned i = 0; i < b->n_peeked; i++)
        if (!b->peeked[i].length || b->peeked[i].first + b->peeked[i].length > 4096)
            return false;
    return true;
}

/* The host's pages, at once: by faults they take several times as long. */
static void populate(const struct part *p)
{
    uintptr_t first = (uintptr_t)p->at & -4096ull, end = ((uintptr_t)p->at + p->size + 4095) & -4096ull;

    (void)madvise((void *)first, end - first, MADV_POPULATE_WRITE);
}

static void take_region(struct engine *e, const struct carried *c, unsigned i, const uint8_t *from)
{
    struct part part[PARTS];

    list_parts(e, c, i, part);
    for (unsigned k = 0; k < PARTS; from += part[k++].size) {
        populate(&part[k]);
        memcpy(part[k].at, from, part[k].size);
    }
    for (uint32_t n = e->regions[i].block; n < c->filled[i].block; n++) {
        struct block *b = &e->blocks[n];
        b->next_page = b->next_page2 = 0;
        b->next_hash = 0;
        b->dead |= !is_sound(b);
        if (!b->dead)
            soft_block_insert(e, b);
    }
}

int soft_set_code(struct engine *e, const struct engine_code *pieces, unsigned n)
{
    if (!n || !can_be_carried(e) || e->n_blocks || !fits(e, pieces, n))
        return -ENOTSUP;
    const struct carried *c = (const struct carried *)(const void *)pieces[0].bytes;
    for (unsigned i = 0; i < c->regions; i++)
        take_region(e, c, i, pieces[1 + i].bytes);
    soft_regions_taken(e, c->filled, c->regions);
    memcpy(e->hot, c->often, sizeof c->often);
    memcpy(e->indexed, c->indexed, sizeof c->indexed);
    return 0;
}
