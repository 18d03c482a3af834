/*
 * What goes when the code cache is full.
 *
 * The cache's two halves and the tables beside them are cut into regions, and a region has a slice of each: code of
 * both kinds, blocks, sites, exits, maps.  They are filled one after the other; who comes round to the first again
 * drops the blocks that it still has, the oldest, and fills it anew.  So a program whose code is larger than the
 * cache loses an eighth of it at a time, and what it goes on using is translated again there.  Where that happens too
 * often, regions are added to the eight that are used at first, unless the cache's size has been set.
 *
 * A way into a block that is made later (ways.c) lies in a younger region than its block, and outlives it.  What
 * another thread fills is older than all that the vCPU does.  A copy (carry.c) gets regions of its own, too.
 */
#include "engine/soft/soft_int.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "base/large_page.h"

#define BLOCK_CODE_MAX (64u << 10) /* more than one block can need, in either half */
#define REGIONS_AT_FIRST 8u
#define ROUNDS_MS 8000u /* in which three rounds through all of them are too many */

static struct cache_region region_start(const struct engine *e, unsigned i)
{
    const struct code_cache *c = &e->cache;
    uint32_t n = e->n_regions_most, cold = c->hot_end + WAYS_OUT_BYTES;
    return (struct cache_region){
        .hot = 16 + (uint32_t)((uint64_t)(c->hot_end - 16) * i / n & ~15ull), /* 0 means none */
        .cold = cold + (uint32_t)((uint64_t)(c->size - cold) * i / n),
        .block = (uint32_t)((uint64_t)e->max_blocks * i / n),
        .site = (uint32_t)((uint64_t)e->max_sites * i / n),
        .exit = (uint32_t)((uint64_t)e->max_exits * i / n),
        .map = (uint32_t)((uint64_t)e->max_maps * i / n),
    };
}

struct cache_region soft_region_filled(const struct engine *e, unsigned i)
{
    if (i != e->region)
        return e->filled[i];
    return (struct cache_region){e->cache.hot, e->cache.cold, e->n_blocks, e->n_sites, e->n_exits, e->n_maps};
}

/* --- pages of the host's ------------------------------------------------------------------------------------- */

/* What will be filled next is asked for by so much at a time: a page that comes by a fault costs several times as much,
 * and a boot fills 12,000 of them.  A copy, which may never translate much, gets an eighth of what it has filled. */
#define AHEAD_MOST (128u << 10)
#define AHEAD_LEAST (8u << 10)

static bool is_due(struct cache_ahead *a, uint64_t used)
{
    if (used + a->size / 4 <= a->end)
        return false;
    a->end &= -4096ull;
    return true;
}

static void advance(struct cache_ahead *a)
{
    a->end += a->size;
    while (a->size < AHEAD_MOST && a->end - a->start >= 16 * a->size)
        a->size *= 2;
}

static void table_ahead(const void *base, uint64_t used, struct cache_ahead *a)
{
    if (!is_due(a, used))
        return;
    /* older kernels cannot: then by faults */
    (void)madvise((char *)(uintptr_t)base + a->end, a->size, MADV_POPULATE_WRITE);
    advance(a);
}

/* Code is mapped twice.  It runs faster in large pages: it has them where a cache will be filled from end to end, which
 * a copy's is not. */
static void code_ahead(const struct code_cache *c, uint64_t used, struct cache_ahead *a)
{
    if (!is_due(a, used))
        return;
    if (a->end % LARGE_PAGE == 0 && a->end + LARGE_PAGE <= a->large_end && large_page_ask(c->rw + a->end)) {
        (void)madvise(c->rx + a->end, LARGE_PAGE, MADV_POPULATE_READ);
        a->end += LARGE_PAGE;
        return;
    }
    (void)madvise(c->rw + a->end, a->size, MADV_POPULATE_WRITE);
    (void)madvise(c->rx + a->end, a->size, MADV_POPULATE_READ);
    advance(a);
}

static void all_ahead(struct engine *e)
{
    const struct code_cache *c = &e->cache;
    struct cache_ahead *a = e->ahead;
    code_ahead(c, c->hot, &a[AHEAD_HOT]);
    code_ahead(c, c->cold, &a[AHEAD_COLD]);
    table_ahead(e->blocks, e->n_blocks * sizeof *e->blocks, &a[AHEAD_BLOCKS]);
    table_ahead(e->sites, e->n_sites * sizeof *e->sites, &a[AHEAD_SITES]);
    table_ahead(e->exits, e->n_exits * sizeof *e->exits, &a[AHEAD_EXITS]);
    table_ahead(e->maps, e->n_maps * sizeof *e->maps, &a[AHEAD_MAPS]);
}

/* --- regions ------------------------------------------------------------------------------------------------- */

static void ahead_from(struct engine *e, const struct cache_region *at, uint32_t size)
{
    const uint64_t end[AHEAD_COUNT] = {
        [AHEAD_HOT] = at->hot,
        [AHEAD_COLD] = at->cold,
        [AHEAD_BLOCKS] = at->block * sizeof *e->blocks,
        [AHEAD_SITES] = at->site * sizeof *e->sites,
        [AHEAD_EXITS] = at->exit * sizeof *e->exits,
        [AHEAD_MAPS] = at->map * sizeof *e->maps,
    };
    for (unsigned i = 0; i < AHEAD_COUNT; i++)
        e->ahead[i] = (struct cache_ahead){.start = end[i], .end = end[i], .size = size};
    if (size == AHEAD_MOST && !e->config.lean) {
        e->ahead[AHEAD_HOT].large_end = e->regions[e->n_regions].hot;
        e->ahead[AHEAD_COLD].large_end = e->regions[e->n_regions].cold;
    }
}

void soft_region_at(struct engine *e, const struct cache_region *at)
{
    e->cache.hot = at->hot;
    e->cache.cold = at->cold;
    e->n_blocks = at->block;
    e->n_sites = at->site;
    e->n_exits = at->exit;
    e->n_maps = at->map;
}

/* Region i is filled from there on. */
static void fill_region(struct engine *e, unsigned i, const struct cache_region *at)
{
    e->filled_as[i] = e->filled_as[e->region] + 1;
    e->region = i;
    soft_region_at(e, at);
    ahead_from(e, at, AHEAD_MOST);
}

/* Both of its slices of code are about to be written to. */
static void own_code(struct engine *e, unsigned i)
{
    const struct cache_region *r = &e->regions[i];
    soft_code_own(e, r[0].hot, r[1].hot);
    soft_code_own(e, r[0].cold, r[1].cold);
}

static void all_empty(struct engine *e)
{
    for (unsigned i = 0; i < e->n_regions_most; i++) {
        e->filled[i] = e->regions[i];
        e->inherited[i] = e->regions[i].block;
    }
    own_code(e, 0);
    fill_region(e, 0, &e->regions[0]);
}

void soft_regions_create(struct engine *e)
{
    unsigned n = e->cache.hot_end / (3 * BLOCK_CODE_MAX), few = n < 2 ? 2 : n > REGIONS_AT_FIRST ? REGIONS_AT_FIRST : n;
    e->n_regions = few;
    e->n_regions_most = e->config.code_cache_bytes ? few : REGIONS_MAX;
    for (unsigned i = 0; i <= e->n_regions_most; i++)
        e->regions[i] = region_start(e, i);
    e->cache.cold = e->cache.hot_end;
    soft_ways_out(e);
    all_empty(e);
}

static uint32_t next_page(uint32_t at)
{
    return (at + 4095) & ~4095u;
}

/* It has as many regions more as a machine has at first: to drop somebody else's blocks is to write to all tables. */
void soft_regions_taken(struct engine *e, unsigned n, const struct cache_region filled[REGIONS_MAX],
                        const uint32_t as[REGIONS_MAX], unsigned region)
{
    struct cache_region at = filled[region];

    e->n_regions = n + REGIONS_AT_FIRST < e->n_regions_most ? n + REGIONS_AT_FIRST : e->n_regions_most;
    for (unsigned i = 0; i < e->n_regions; i++) {
        e->filled[i] = i < n ? filled[i] : e->regions[i];
        e->filled_as[i] = i < n ? as[i] : 0;
        e->inherited[i] = e->filled[i].block;
    }
    e->region = region;
    at.hot = next_page(at.hot); /* what is before it is somebody else's */
    at.cold = next_page(at.cold);
    fill_region(e, region, &at);
    ahead_from(e, &at, AHEAD_LEAST);
}

unsigned soft_region_of(const struct engine *e, uint32_t at)
{
    bool cold = at >= e->cache.hot_end;
    unsigned i = 0;
    while (i + 1 < e->n_regions && at >= (cold ? e->regions[i + 1].cold : e->regions[i + 1].hot))
        i++;
    return i;
}

/* --- the oldest region ------------------------------------------------------------------------------------ */

static bool has_block(const struct cache_region *r, uint32_t number)
{
    return number >= r[0].block && number < r[1].block;
}

static bool has_exit(const struct cache_region *r, uint32_t number)
{
    return number >= r[0].exit && number < r[1].exit;
}

/* Takes the region's blocks out of a page's list, which has the others in their order. */
static void leave_page(struct engine *e, const struct cache_region *r, uint64_t page)
{
    if (page >= e->n_pages)
        return;
    uint32_t *p = &e->page_blocks[page];
    while (*p) {
        struct block *b = soft_block_at(e, *p);
        uint32_t *next = soft_next_in_page(b, page);
        if (!has_block(r, soft_block_number(e, b))) {
            p = next;
            continue;
        }
        *p = *next;
        if (b->gpa >> 12 == page)
            b->unlisted = true;
    }
    if (!e->page_blocks[page])
        soft_code_gone(e, page);
}

/* Takes the region's exits out of a list of those that lead to one block. */
static void leave_target(struct engine *e, const struct cache_region *r, struct block *to)
{
    uint32_t *p = soft_incoming(e, to);
    while (*p) {
        struct exit *x = soft_exit_at(e, *p);
        if (!has_exit(r, *p - 1)) {
            p = &x->next_in;
            continue;
        }
        *p = x->next_in;
        x->to = 0;
    }
}

static void leave_cross(struct engine *e, const struct cache_region *r)
{
    uint32_t *p = &e->cross;
    while (*p)
        if (has_exit(r, *p - 1))
            *p = soft_exit_at(e, *p)->next_cross;
        else
            p = &soft_exit_at(e, *p)->next_cross;
}

static void evict_block(struct engine *e, const struct cache_region *r, struct block *b)
{
    soft_block_unindex(e, b);
    if (!b->unlisted)
        leave_page(e, r, b->gpa >> 12);
    if (b->gpa2 != UINT64_MAX)
        leave_page(e, r, b->gpa2 >> 12);
    soft_unchain_incoming(e, b);
    for (unsigned i = 0; i < b->n_exits; i++)
        if (e->exits[b->first_exit + i].to)
            leave_target(e, r, soft_block_at(e, e->exits[b->first_exit + i].to));
    b->dead = true;
}

static void evict(struct engine *e, unsigned i)
{
    const struct cache_region *r = &e->regions[i];
    if (e->filled[i].block == r->block)
        return;
    soft_carry_lost(e);
    soft_carry_keep(e);
    for (uint32_t n = r->block; n < e->filled[i].block; n++)
        if (!e->blocks[n].dead)
            evict_block(e, r, &e->blocks[n]);
    leave_cross(e, r);
    for (unsigned mmu = 0; mmu < MMU_COUNT; mmu++)
        soft_ibtc_flush(e->vcpu, mmu);
    e->filled[i] = *r;
    e->inherited[i] = r->block;
    e->vcpu->stats.evictions++;
}

bool soft_region_has_room(const struct engine *e)
{
    const struct cache_region *end = &e->regions[e->region + 1];
    return e->cache.hot + BLOCK_CODE_MAX <= end->hot && e->cache.cold + BLOCK_CODE_MAX <= end->cold &&
           e->n_blocks < end->block && e->n_sites + 1024 <= end->site && e->n_exits + 256 <= end->exit &&
           e->n_maps + 1024 <= end->map;
}

/* The one that was filled longest ago, or never.  Where another thread has filled some, what it has put there and
 * nobody has taken yet is lost only when there is no other. */
static unsigned oldest(const struct engine *e, unsigned from)
{
    unsigned found = e->region;

    for (unsigned i = from; i < e->n_regions; i++)
        if (i != e->region && (found == e->region || e->filled_as[i] < e->filled_as[found]))
            found = i;
    return found;
}

static unsigned next_region(struct engine *e)
{
    if (!e->course)
        return oldest(e, 0);
    soft_course_stop(e);
    const unsigned behind = oldest(e, soft_course_region(e) + 1);
    if (behind != e->region && !e->filled_as[behind])
        return behind;
    soft_course_end(e);
    return oldest(e, 0);
}

/* Of what may be added to each vCPU's there is so much for all of them. */
static unsigned may_grow_to(const struct engine *e)
{
    const unsigned most = REGIONS_AT_FIRST + (REGIONS_MAX - REGIONS_AT_FIRST) / e->peers->n;
    return most < e->n_regions_most ? most : e->n_regions_most;
}

/* A region is to be filled anew.  Three rounds through all of them in a few seconds are a guest that runs more code
 * again and again than there is room for, a build for one: it gets half as much again. */
static bool grows(struct engine *e)
{
    if (++e->evicted < e->n_regions)
        return false;
    e->evicted = 0;
    const uint64_t now = __builtin_ia32_rdtsc(), before = e->rounds[0];
    const unsigned most = may_grow_to(e), more = e->n_regions + e->n_regions / 2;
    e->rounds[0] = e->rounds[1], e->rounds[1] = e->rounds[2], e->rounds[2] = now;
    if (!before || now - before > (uint64_t)ROUNDS_MS * e->tsc_khz || e->n_regions >= most)
        return false;
    e->n_regions = more < most ? more : most;
    e->rounds[0] = e->rounds[1] = e->rounds[2] = 0;
    return true;
}

void soft_region_next(struct engine *e)
{
    unsigned next = next_region(e);
    if (e->filled_as[next] && grows(e))
        next = oldest(e, 0);
    e->filled[e->region] = soft_region_filled(e, e->region);
    evict(e, next);
    own_code(e, next);
    fill_region(e, next, &e->regions[next]);
}

static bool has_empty(const struct engine *e)
{
    const unsigned next = oldest(e, 0);
    return next != e->region && e->filled[next].block == e->regions[next].block;
}

void soft_regions_spare(struct engine *e)
{
    if (!has_empty(e) && e->n_regions < e->n_regions_most)
        e->n_regions++;
}

bool soft_region_has_spare(struct engine *e)
{
    if (soft_region_has_room(e))
        return true;
    soft_regions_spare(e);
    if (!has_empty(e))
        return false;
    soft_region_next(e);
    return true;
}

void soft_region_make_room(struct engine *e)
{
    if (!soft_region_has_room(e))
        soft_region_next(e);
    all_ahead(e);
}

/* --- filled by two ------------------------------------------------------------------------------------------- */

void soft_regions_beside(struct engine *e, struct engine *aside)
{
    fill_region(aside, 0, &e->regions[0]);
    fill_region(e, e->n_regions - 1, &e->regions[e->n_regions - 1]);
    for (unsigned i = 0; i + 1 < e->n_regions; i++)
        e->filled_as[i] = 0;
}

void soft_region_taken(struct engine *e, unsigned i, const struct cache_region *filled)
{
    e->filled_as[i] = 1; /* before the first of its own */
    if (e->filled[i].block < filled->block)
        e->filled[i] = *filled;
}

bool soft_region_beside(struct engine *aside)
{
    if (!soft_region_has_room(aside)) {
        if (aside->region + 2 >= aside->n_regions)
            return false;
        fill_region(aside, aside->region + 1, &aside->regions[aside->region + 1]);
    }
    all_ahead(aside);
    return true;
}

/* --- everything ---------------------------------------------------------------------------------------------- */

static void forget_page(struct engine *e, uint64_t page)
{
    if (page >= e->n_pages)
        return;
    e->page_blocks[page] = 0;
    soft_code_gone(e, page);
}

void soft_cache_flush(struct engine *e)
{
    if (e->course)
        soft_course_end(e);
    soft_carry_lost(e);
    soft_carry_keep(e);
    memset(e->hash, 0, sizeof(*e->hash) << HASH_BITS);
    soft_index_forget_young(e);
    for (unsigned i = 0; i < e->n_regions; i++)
        for (uint32_t n = e->regions[i].block; n < soft_region_filled(e, i).block; n++) {
            forget_page(e, e->blocks[n].gpa >> 12);
            forget_page(e, e->blocks[n].gpa2 >> 12);
        }
    e->cross = 0;
    all_empty(e);
    for (unsigned mmu = 0; mmu < MMU_COUNT; mmu++)
        soft_ibtc_flush(e->vcpu, mmu);
    e->vcpu->stats.evictions++;
}
