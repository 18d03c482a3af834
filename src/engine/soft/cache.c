/*
 * The code cache and the index of blocks.
 *
 * Blocks are found by guest-physical address and mode, so that a change of address space throws nothing
 * away.  Each page with translated code has a bitmap of 64-byte granules: a store to one of those
 * drops the blocks that overlap it.  The cache is one memfd mapped twice, never writable and executable
 * at one address.  What happens when it is full is in evict.c.
 */
#include "engine/soft/soft_int.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/large_page.h"

#define CODE_BYTES_DEFAULT (REGIONS_MAX * (9u << 18)) /* 63 MB, of which 18 are used to begin with (evict.c) */
#define CODE_BYTES_LEAST (1u << 20)
#define WRITTEN_SIZE(e) ((e)->n_pages / 64 * 8 + 8)

void *soft_reserve(size_t bytes)
{
    void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return p == MAP_FAILED ? NULL : p;
}

void soft_give_back(void *p, size_t bytes)
{
    if (madvise(p, bytes, MADV_DONTNEED))
        memset(p, 0, bytes);
}

/* Aligned as pages of 2 MiB are, so that the host can have such behind it (evict.c). */
static void *map_aligned(const struct code_cache *c, int protection)
{
    void *p = large_page_map(c->size, PROT_NONE);
    return p ? mmap(p, c->size, protection, MAP_SHARED | MAP_FIXED, c->fd, 0) : MAP_FAILED;
}

static int map_code(struct code_cache *c, uint64_t bytes)
{
    c->size = (uint32_t)bytes;
    c->fd = memfd_create("guise-code", MFD_CLOEXEC);
    if (c->fd < 0 || ftruncate(c->fd, c->size) < 0)
        return -errno;
    c->rw = map_aligned(c, PROT_READ | PROT_WRITE);
    c->rx = map_aligned(c, PROT_READ | PROT_EXEC);
    if (c->rw == MAP_FAILED || c->rx == MAP_FAILED)
        return -errno;
    c->hot_end = c->size / 5 * 3 & ~4095u;
    return 0;
}

int soft_cache_create(struct engine *e)
{
    uint64_t bytes = e->config.code_cache_bytes ? e->config.code_cache_bytes : CODE_BYTES_DEFAULT;
    if (bytes < CODE_BYTES_LEAST)
        bytes = CODE_BYTES_LEAST;
    int rc = map_code(&e->cache, bytes);
    if (rc)
        return rc;
    /* an estimate with room to spare: tables are reserved, touched only as far as used */
    e->max_blocks = e->cache.size / 128;
    e->max_sites = e->cache.size / 40;
    e->max_exits = e->cache.size / 64;
    e->max_maps = e->cache.size / 24;
    e->blocks = soft_reserve(e->max_blocks * sizeof(*e->blocks));
    e->incoming = soft_reserve(e->max_blocks * sizeof(*e->incoming));
    e->sites = soft_reserve(e->max_sites * sizeof(*e->sites));
    e->exits = soft_reserve(e->max_exits * sizeof(*e->exits));
    e->maps = soft_reserve(e->max_maps * sizeof(*e->maps));
    e->n_pages = e->config.memory->end >> 12;
    e->hash = soft_reserve(sizeof(*e->hash) << HASH_BITS);
    e->page_blocks = soft_reserve(e->n_pages * sizeof(*e->page_blocks));
    e->code_granules = soft_reserve(e->n_pages * sizeof(*e->code_granules));
    e->written = soft_reserve(WRITTEN_SIZE(e));
    e->kernel_pages = soft_reserve(sizeof(*e->kernel_pages));
    if (!e->blocks || !e->incoming || !e->sites || !e->exits || !e->maps || !e->hash || !e->page_blocks ||
        !e->code_granules || !e->written || !e->kernel_pages)
        return -ENOMEM;
    soft_regions_create(e);
    return 0;
}

void soft_release(void *p, size_t bytes)
{
    if (p)
        munmap(p, bytes);
}

void soft_cache_destroy(struct engine *e)
{
    soft_course_forget(e);
    soft_carry_forget(e);
    soft_carry_keep(e);
    free(e->carried);
    soft_index_forget_young(e);
    soft_code_lend_end(e);
    soft_release(e->cache.rx, e->cache.size);
    soft_release(e->cache.rw, e->cache.size);
    close(e->cache.fd);
    soft_release(e->blocks, e->max_blocks * sizeof(*e->blocks));
    soft_release(e->incoming, e->max_blocks * sizeof(*e->incoming));
    soft_release(e->sites, e->max_sites * sizeof(*e->sites));
    soft_release(e->exits, e->max_exits * sizeof(*e->exits));
    soft_release(e->maps, e->max_maps * sizeof(*e->maps));
    soft_release(e->hash, sizeof(*e->hash) << HASH_BITS);
    soft_release(e->page_blocks, e->n_pages * sizeof(*e->page_blocks));
    soft_release(e->code_granules, e->n_pages * sizeof(*e->code_granules));
    soft_release(e->written, WRITTEN_SIZE(e));
    soft_release(e->kernel_pages, sizeof(*e->kernel_pages));
}

/* --- the index ------------------------------------------------------------------------------------ */

unsigned soft_block_hash(uint64_t gpa, uint64_t gva, uint32_t mode)
{
    uint64_t h = (gpa ^ gva << 20 ^ (uint64_t)mode << 40) * 0x9e3779b97f4a7c15ull;
    return (unsigned)(h >> (64 - HASH_BITS));
}

/* The index of a copy is the forked machine's, which each new block would write to anywhere.  So its own blocks have a
 * small one, as long as they are few. */
#define YOUNG_BITS 12
#define YOUNG_SIZE (sizeof(uint32_t) << YOUNG_BITS)
#define YOUNG_MOST (4u << YOUNG_BITS)

static uint32_t *young_head(struct engine *e, unsigned hash)
{
    return &e->young[hash >> (HASH_BITS - YOUNG_BITS)];
}

int soft_index_young(struct engine *e)
{
    e->young = soft_reserve(YOUNG_SIZE);
    return e->young ? 0 : -ENOMEM;
}

void soft_index_forget_young(struct engine *e)
{
    soft_release(e->young, YOUNG_SIZE);
    e->young = NULL;
}

void soft_index_empty_young(struct engine *e)
{
    soft_give_back(e->young, YOUNG_SIZE);
    e->n_young = 0;
}

static void index_put(struct engine *e, struct block *b, uint32_t *head)
{
    b->next_hash = *head;
    *head = soft_block_number(e, b) + 1;
}

void soft_index_settle(struct engine *e)
{
    for (unsigned i = 0; e->young && i < 1u << YOUNG_BITS; i++)
        for (uint32_t n = e->young[i], next; n; n = next) {
            struct block *b = &e->blocks[n - 1];
            next = b->next_hash;
            index_put(e, b, &e->hash[soft_block_hash(b->gpa, b->gva, b->mode)]);
        }
    soft_index_forget_young(e);
}

void soft_block_index(struct engine *e, struct block *b)
{
    const unsigned hash = soft_block_hash(b->gpa, b->gva, b->mode);
    if (e->young && e->n_young == YOUNG_MOST)
        soft_index_settle(e);
    e->n_young += e->young != NULL;
    index_put(e, b, e->young ? young_head(e, hash) : &e->hash[hash]);
}

static struct block *find_from(struct engine *e, uint32_t n, uint64_t gpa, uint64_t key, uint32_t mode)
{
    for (; n; n = e->blocks[n - 1].next_hash) {
        struct block *b = &e->blocks[n - 1];
        if (b->gpa == gpa && b->gva == key && b->mode == mode)
            return b;
    }
    return NULL;
}

struct block *soft_block_find(struct engine *e, uint64_t gpa, uint64_t gva, uint32_t mode)
{
    uint64_t key = mode & MODE_FIXED_PC ? gva : gva & 4095;
    unsigned hash = soft_block_hash(gpa, key, mode);
    struct block *b = e->young ? find_from(e, *young_head(e, hash), gpa, key, mode) : NULL;
    return b ? b : find_from(e, e->hash[hash], gpa, key, mode);
}

struct block *soft_block_alloc(struct engine *e)
{
    soft_region_make_room(e);
    e->incoming[e->n_blocks] = 0;
    return &e->blocks[e->n_blocks++];
}

/* A page that now holds code must be written through the slow path. */
static void drop_write_entries(struct engine *e, uint64_t page)
{
    struct soft_vcpu *v = e->vcpu;
    uint64_t host = (uint64_t)e->config.memory->base + (page << 12);
    for (unsigned mmu = 0; mmu < MMU_COUNT; mmu++) {
        soft_slots_clear(v, mmu, 1);
        for (unsigned k = 0; k < TLB_SIZE; k++)
            if (v->tlb[mmu][1][k].host == host)
                v->tlb[mmu][1][k].tag = tlb_invalid(k);
    }
}

void soft_close_page(struct engine *e, uint64_t page)
{
    uint64_t *written = &e->written[page / 64], bit = 1ull << page % 64;
    soft_direct_code(e, page);
    if (!(*written & bit))
        return;
    drop_write_entries(e, page);
    *written &= ~bit;
}

void soft_close_all(struct engine *e)
{
    for (uint64_t page = 0; page < e->n_pages; page++) {
        if (!(e->written[page / 64] >> page % 64 & 1))
            continue;
        soft_direct_code(e, page);
        e->written[page / 64] &= ~(1ull << page % 64);
    }
    for (unsigned mmu = 0; mmu < MMU_COUNT; mmu++) {
        soft_slots_clear(e->vcpu, mmu, 1);
        for (unsigned k = 0; k < TLB_SIZE; k++)
            tlb_empty(e->vcpu->tlb[mmu][1], k);
    }
}

static void mark_page(struct engine *e, uint64_t gpa, uint64_t len)
{
    uint64_t page = gpa >> 12;
    if (!e->code_granules[page])
        soft_close_page(e, page);
    e->code_granules[page] |= soft_granules(gpa, len);
}

static uint64_t first_part(const struct block *b)
{
    uint64_t room = 4096 - (b->gpa & 4095);
    return b->length < room ? b->length : room;
}

void soft_block_insert(struct engine *e, struct block *b)
{
    const uint32_t number = soft_block_number(e, b) + 1;
    uint64_t page = b->gpa >> 12;
    soft_block_index(e, b);
    if (page < e->n_pages) { /* code outside RAM (a ROM, or nothing) cannot change under us */
        b->next_page = e->page_blocks[page];
        e->page_blocks[page] = number;
        mark_page(e, b->gpa, first_part(b));
        for (unsigned i = 0; i < b->n_peeked; i++)
            mark_page(e, (page << 12) + b->peeked[i].first, b->peeked[i].length);
    }
    if (b->gpa2 != UINT64_MAX && b->gpa2 >> 12 < e->n_pages) {
        b->next_page2 = e->page_blocks[b->gpa2 >> 12];
        e->page_blocks[b->gpa2 >> 12] = number;
        mark_page(e, b->gpa2, b->length - first_part(b) ? b->length - first_part(b) : 1);
    }
}

/* --- chaining -------------------------------------------------------------------------------------- */

enum { JMP = 0xe9, NOP = 0x0f /* 5 bytes of it, where a jmp was */ };

/* Code that does nothing, in as few instructions as may be. */
static void fill(uint8_t *p, unsigned n)
{
    static const uint8_t nop[8][8] = {{0x90},
                                      {0x66, 0x90},
                                      {0x0f, 0x1f, 0x00},
                                      {0x0f, 0x1f, 0x40, 0x00},
                                      {0x0f, 0x1f, 0x44, 0x00, 0x00},
                                      {0x66, 0x0f, 0x1f, 0x44, 0x00, 0x00},
                                      {0x0f, 0x1f, 0x80, 0x00, 0x00, 0x00, 0x00},
                                      {0x0f, 0x1f, 0x84, 0x00, 0x00, 0x00, 0x00, 0x00}};
    for (; n > 8; p += 8, n -= 8)
        memcpy(p, nop[7], 8);
    if (n)
        memcpy(p, nop[n - 1], n);
}

/* A jump, conditional or not, goes to `target`.  To the next block, for which only what its beginning is aligned by is
 * jumped over, control goes straight on: most blocks are translated in the order that they first run in. */
void soft_patch(struct engine *e, uint32_t at, uint32_t target)
{
    uint32_t rel = target - (at + 4);
    uint8_t *p = e->cache.rw + at - 1;
    soft_code_own(e, at - 1, at + 4 + BLOCK_ALIGN);
    if ((*p == JMP || *p == NOP) && rel < BLOCK_ALIGN && target % BLOCK_ALIGN == 0) {
        fill(p, 5);
        fill(p + 5, rel);
        return;
    }
    if (*p == NOP)
        *p = JMP;
    memcpy(e->cache.rw + at, &rel, 4);
}

void soft_chain(struct engine *e, struct exit *x, struct block *to)
{
    uint32_t entry = x->poll              ? soft_way_in(e, to, x->flags_in_memory ? WAY_POLL_MEMORY : WAY_POLL)
                     : x->flags_in_memory ? to->entry_memory
                                          : to->entry;
    if (!entry)
        return;
    soft_patch(e, x->patch, entry);
    uint32_t number = (uint32_t)(x - e->exits) + 1;
    x->to = soft_block_number(e, to) + 1;
    x->next_in = *soft_incoming(e, to);
    *soft_incoming(e, to) = number;
    if (x->cross && !x->listed) {
        x->listed = true;
        x->next_cross = e->cross;
        e->cross = number;
    }
}

static void unchain(struct engine *e, struct exit *x)
{
    uint32_t number = (uint32_t)(x - e->exits) + 1, *p = soft_incoming(e, soft_block_at(e, x->to));
    while (*p && *p != number)
        p = &soft_exit_at(e, *p)->next_in;
    if (*p)
        *p = x->next_in;
    soft_patch(e, x->patch, x->stub);
    x->to = 0;
}

void soft_unchain_cross(struct engine *e)
{
    if (e->cross)
        soft_carry_lost(e);
    for (struct exit *x = soft_exit_at(e, e->cross); x; x = soft_exit_at(e, x->next_cross)) {
        x->listed = false;
        if (x->to) /* else unchained since then for another reason */
            unchain(e, x);
    }
    e->cross = 0;
}

void soft_unchain_incoming(struct engine *e, struct block *b)
{
    uint32_t *first = soft_incoming(e, b);
    for (struct exit *x = soft_exit_at(e, *first); x; x = soft_exit_at(e, x->next_in)) {
        soft_patch(e, x->patch, x->stub);
        x->to = 0;
    }
    if (*first)
        *first = 0;
}

/* --- dropping --------------------------------------------------------------------------------------- */

static void remove_from_page(struct engine *e, struct block *b, uint64_t page)
{
    uint32_t number = soft_block_number(e, b) + 1, *p = &e->page_blocks[page];
    while (*p && *p != number)
        p = soft_next_in_page(soft_block_at(e, *p), page);
    if (*p)
        *p = *soft_next_in_page(b, page);
    if (!e->page_blocks[page])
        soft_code_gone(e, page);
}

static bool index_remove(struct engine *e, const struct block *b, uint32_t *p)
{
    const uint32_t number = soft_block_number(e, b) + 1;
    while (*p && *p != number)
        p = &e->blocks[*p - 1].next_hash;
    if (!*p)
        return false;
    *p = b->next_hash;
    return true;
}

void soft_block_unindex(struct engine *e, struct block *b)
{
    const unsigned hash = soft_block_hash(b->gpa, b->gva, b->mode);
    if (!e->young || !index_remove(e, b, young_head(e, hash)))
        index_remove(e, b, &e->hash[hash]);
}

void soft_block_unlink(struct engine *e, struct block *b)
{
    soft_unchain_incoming(e, b);
    for (unsigned i = 0; i < b->n_exits; i++)
        if (e->exits[b->first_exit + i].to)
            unchain(e, &e->exits[b->first_exit + i]);
}

void soft_block_kill(struct engine *e, struct block *b)
{
    if (e->carry || e->given)
        soft_carry_dropped(e, b);
    soft_block_unindex(e, b);
    if (b->gpa >> 12 < e->n_pages)
        remove_from_page(e, b, b->gpa >> 12);
    if (b->gpa2 != UINT64_MAX && b->gpa2 >> 12 < e->n_pages)
        remove_from_page(e, b, b->gpa2 >> 12);
    soft_block_unlink(e, b);
    b->dead = true;
    if (b->entry_indirect) {
        const unsigned mmu = b->mode & MODE_MMU;
        const void **entries = e->vcpu->ibtc[mmu].entry, *entry = soft_code(e, b->entry_indirect);
        /* every gva that maps to it ends in the same 12 bits */
        for (unsigned k = ibtc_index(e->vcpu, mmu, b->gpa & 4095); k <= e->vcpu->ibtc_mask[mmu];
             k += 4096 >> IBTC_SHIFT)
            if (entries[k] == entry)
                entries[k] = soft_glue_ibtc_miss;
    }
    e->vcpu->stats.invalidated++;
}

static bool overlaps(uint64_t a, uint64_t a_len, uint64_t b, uint64_t b_len)
{
    return a < b + b_len && b < a + a_len;
}

/* Does the block depend on a byte of [gpa, gpa+len) in this page? */
static bool depends_on(const struct block *b, uint64_t page, uint64_t gpa, uint64_t len)
{
    if (b->gpa >> 12 != page)
        return overlaps(page << 12, b->length - first_part(b), gpa, len);
    for (unsigned i = 0; i < b->n_peeked; i++)
        if (overlaps((page << 12) + b->peeked[i].first, b->peeked[i].length, gpa, len))
            return true;
    return overlaps(b->gpa, first_part(b), gpa, len);
}

bool soft_invalidate(struct engine *e, uint64_t gpa, uint64_t len)
{
    bool any = false;
    for (uint64_t page = gpa >> 12; page <= (gpa + len - 1) >> 12 && page < e->n_pages; page++) {
        if (!e->code_granules[page])
            continue;
        for (struct block *b = soft_block_at(e, e->page_blocks[page]), *next; b; b = next) {
            next = soft_block_at(e, *soft_next_in_page(b, page));
            if (depends_on(b, page, gpa, len)) {
                soft_block_kill(e, b);
                any = true;
            }
        }
        /* granules are not given back until the page is empty: pages that mix code and data are few */
    }
    return any;
}

/* Blocks lie in the order of their numbers in both halves of a region. */
struct block *soft_block_of_host(struct engine *e, uint32_t at)
{
    bool cold = at >= e->cache.hot_end;
    unsigned region = soft_region_of(e, at);
    uint32_t low = e->regions[region].block, end = soft_region_filled(e, region).block, high = end;
    while (low < high) {
        uint32_t mid = low + (high - low) / 2;
        const struct block *b = &e->blocks[mid];
        if ((cold ? b->cold_end : b->hot_end) <= at)
            low = mid + 1;
        else
            high = mid;
    }
    if (low == end)
        return NULL;
    struct block *b = &e->blocks[low];
    return at >= (cold ? b->cold_start : b->hot_start) ? b : NULL;
}
