/*
 * The table of what is mapped in a process for guest code: by regions of 2 MiB, as the guest's lowest tables are, each
 * with the guest's entries as they were.  So a flush of everything, which asks whether all that is still right, is a
 * comparison of tables.
 */
#include "engine/soft/direct.h"

#include <stdlib.h>
#include <sys/mman.h>

#define PLACES (2 * MIRROR_REGIONS)

static unsigned place(uint64_t base)
{
    return (unsigned)((base >> 21) * 0x9e3779b97f4a7c15ull >> 40) % PLACES;
}

static struct region **find(const struct direct_slot *s, uint64_t base)
{
    unsigned i = place(base);
    while (s->regions[i] && s->regions[i]->base != base)
        i = (i + 1) % PLACES;
    return &s->regions[i];
}

struct region *pages_region(const struct direct_slot *s, uint64_t gva)
{
    return s->regions ? *find(s, gva & -MIRROR_LARGE) : NULL;
}

struct region *pages_new_region(struct direct_slot *s, uint64_t gva)
{
    if (!s->regions)
        s->regions = calloc(PLACES, sizeof *s->regions);
    if (!s->regions)
        return NULL;
    struct region **at = find(s, gva & -MIRROR_LARGE);
    if (!*at && s->n_regions < MIRROR_REGIONS) {
        *at = calloc(1, sizeof **at);
        if (*at) {
            (*at)->base = gva & -MIRROR_LARGE;
            s->n_regions++;
        }
    }
    return *at;
}

struct region *pages_next(const struct direct_slot *s, unsigned *i)
{
    while (s->regions && *i < PLACES)
        if (s->regions[(*i)++])
            return s->regions[*i - 1];
    return NULL;
}

void pages_free(struct direct_slot *s)
{
    for (unsigned i = 0; s->regions && i < PLACES; i++)
        free(s->regions[i]);
    free(s->regions);
    s->regions = NULL;
    s->n_regions = s->n_pages = s->n_joined = 0;
    s->huge = 0;
}

uint64_t pages_find(const struct direct_slot *s, uint64_t gva)
{
    const struct region *g = pages_region(s, gva);
    return !g ? 0 : g->large ? g->large : g->page[PAGE_INDEX(gva)];
}

/* How many of the two beside it a page of the region is one mapping with: those whose memory goes on there, with the
 * same rights. */
static unsigned joined(const struct region *g, unsigned i)
{
    const uint64_t page = g->page[i];
    return !page ? 0 : (i > 0 && g->page[i - 1] == page - 4096) + (i < 511 && g->page[i + 1] == page + 4096);
}

void pages_set(struct direct_slot *s, struct region *g, uint64_t *page, uint64_t value)
{
    s->n_pages += !!value - !!*page;
    if (page == &g->large) {
        *page = value;
        return;
    }
    const unsigned i = (unsigned)(page - g->page);
    const uint64_t bit = 1ull << i % 64;
    s->n_joined -= joined(g, i);
    *page = value;
    s->n_joined += joined(g, i);
    g->mapped[i / 64] = value ? g->mapped[i / 64] | bit : g->mapped[i / 64] & ~bit;
}

void pages_drop(struct direct_slot *s, struct region *g)
{
    struct region **gone = find(s, g->base);
    if (g->large)
        pages_set(s, g, &g->large, 0);
    for (unsigned i = 0; pages_mapped(g, &i);)
        pages_set(s, g, &g->page[i], 0);
    free(g);
    s->n_regions--;
    for (unsigned i = (unsigned)(gone - s->regions), k = i;;) { /* those that were put behind it for it go on before */
        k = (k + 1) % PLACES;
        if (!s->regions[k]) {
            s->regions[i] = NULL;
            return;
        }
        const unsigned wants = place(s->regions[k]->base);
        if ((k + PLACES - wants) % PLACES >= (k + PLACES - i) % PLACES) {
            s->regions[i] = s->regions[k];
            i = k;
        }
    }
}

bool pages_mapped(const struct region *g, unsigned *i)
{
    for (; *i < 512; *i = (*i | 63) + 1) {
        uint64_t rest = g->mapped[*i / 64] >> *i % 64;
        if (rest) {
            *i += (unsigned)__builtin_ctzll(rest);
            return true;
        }
    }
    return false;
}

/* --- the guest's entries ----------------------------------------------------------------------------------- */

#define MARKS ((uint64_t)PTE_A | PTE_D)

static const volatile uint64_t *table_at(struct soft_vcpu *v, uint64_t entry)
{
    return memory_hva_read(v->engine->config.memory, entry & PTE_ADDR, 4096);
}

/* Those above the lowest table; none below that of a large page. */
static bool path_to(struct soft_vcpu *v, uint64_t gva, uint64_t path[REGION_PATH])
{
    uint64_t entry = v->cpu.cr3;
    for (unsigned i = 0; i < REGION_PATH; i++)
        path[i] = 0;
    for (unsigned i = 0; i < REGION_PATH; i++) {
        const volatile uint64_t *table = table_at(v, entry);
        if (!table)
            return false;
        entry = path[i] = table[gva >> (39 - 9 * i) & 511];
        if (!(entry & PTE_P))
            return false;
        if (i && (entry & PTE_PS))
            break;
    }
    return true;
}

/* Marks may have been added. */
static bool alike(uint64_t then, uint64_t now)
{
    return !((then ^ now) & ~MARKS) && !(then & ~now & MARKS);
}

static bool path_alike(const struct region *g, const uint64_t now[REGION_PATH])
{
    bool is = true;
    for (unsigned i = 0; i < REGION_PATH; i++)
        is &= alike(g->path[i], now[i]);
    return is;
}

const volatile uint64_t *pages_table(struct soft_vcpu *v, const struct region *g)
{
    uint64_t last = g->path[REGION_PATH - 1];
    return last && !(last & PTE_PS) ? table_at(v, last) : NULL;
}

/* Do these say that a page is there that may be mapped so? */
static bool entries_say(const uint64_t entry[REGION_PATH + 1], uint64_t gva, uint64_t page, uint64_t size)
{
    uint64_t all = ~0ull, any = 0, leaf, span;
    unsigned i = 0;
    do {
        leaf = entry[i];
        all &= leaf;
        any |= leaf;
        span = 1ull << (39 - 9 * i);
    } while (i++ < REGION_PATH && !(i > 1 && (leaf & PTE_PS)));
    return !(~all & (PTE_P | PTE_U | PTE_A)) && size <= span &&
           (page & PTE_ADDR) == ((leaf & PTE_ADDR & -span) | (gva & (span - 1) & PTE_ADDR)) &&
           (!(page & PROT_WRITE) || ((all & PTE_W) && (leaf & PTE_D))) && !((page & PROT_EXEC) && (any & PTE_NX));
}

bool pages_remember(struct soft_vcpu *v, struct region *g, uint64_t gva, uint64_t page, uint64_t size)
{
    uint64_t now[REGION_PATH + 1];
    const bool there = path_to(v, gva, now), same = there && (!g->known || path_alike(g, now));
    for (unsigned i = 0; i < REGION_PATH; i++)
        g->path[i] = now[i];
    g->known = true;
    const volatile uint64_t *table = pages_table(v, g);
    now[REGION_PATH] = table ? table[PAGE_INDEX(gva)] : 0;
    if (size < MIRROR_LARGE) /* else there may be a small page at gva, which is of another entry */
        g->entry[PAGE_INDEX(gva)] = now[REGION_PATH];
    if (!same)
        g->path[0] = 0; /* of others in the region, too, it is not known any more: that is like nothing */
    return there && entries_say(now, gva, page, size);
}

bool pages_of_large(const struct region *g)
{
    return g->large || !g->known || !g->path[0] || ((g->path[1] | g->path[2]) & PTE_PS);
}

bool pages_same_path(struct soft_vcpu *v, const struct region *g)
{
    uint64_t path[REGION_PATH];
    return path_to(v, g->base, path) && path_alike(g, path);
}

bool pages_same(const struct region *g, const volatile uint64_t *table, unsigned i)
{
    return !table || alike(g->entry[i], table[i]);
}

bool pages_untouched(const struct region *g, const volatile uint64_t *table, unsigned i)
{
    return g->page[i] && g->entry[i] == table[i];
}
