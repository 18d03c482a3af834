/*
 * What all vCPUs of a machine have translated, in the cache of the first: for copies of the machine (carry.c), where
 * any vCPU may have to do what another one has done here.
 *
 * Code cannot be moved from one cache to another, for it has numbers and distances in it.  But what the others have and
 * the first has not is little, since that has booted the kernel: to translate it, too, takes a microsecond a block.
 * Chains are made as they would be if it were met.  Nothing is dropped for it: where there is no room the rest is left
 * out.  Nor is what is rare: code that is not flat or single-stepped, and blocks whose last instruction is in two
 * pages.
 */
#include "engine/soft/translate_int.h"

#define RARE (MODE_BY_C | MODE_UNGROUPED)

/* The first vCPU's, and what it gets: numbers of blocks. */
struct gathering {
    struct engine *e;
    uint32_t *block, n;
};

static bool is_wanted(struct engine *e, const struct block *b)
{
    return !b->dead && !b->staged && !(b->mode & RARE) && b->gpa2 == UINT64_MAX && b->gpa >> 12 < e->n_pages &&
           !soft_block_find(e, b->gpa, b->gva, b->mode);
}

static void translate_too(struct gathering *g, const struct block *like)
{
    struct engine *e = g->e;
    struct soft_vcpu *v = e->vcpu;
    struct translator *t = v->translator;
    struct block *b = soft_block_alloc(e);
    const struct block what = {
        .gpa = like->gpa, .gva = like->gva, .mode = like->mode, .no_windows = like->no_windows, .hot = like->hot};

    soft_code_claim(e, like->gpa >> 12);
    t->page = memory_hva_read(e->config.memory, like->gpa & ~4095ull, 4096);
    v->computed = like->entry_indirect;
    if (t->page && translate_into(t, v, b, &what)) {
        soft_block_insert(e, b);
        if (b->hot)
            soft_set_hot(e, b->gpa);
        g->block[g->n++] = soft_block_number(e, b);
    } else {
        e->n_blocks--;
    }
    v->computed = false;
    t->page = NULL;
    soft_code_claimed(e);
}

static void gather_from(struct gathering *g, const struct engine *from)
{
    for (unsigned i = 0; i < from->n_regions; i++)
        for (uint32_t n = from->inherited[i]; n < soft_region_filled(from, i).block; n++)
            if (is_wanted(g->e, &from->blocks[n])) {
                if (!soft_region_has_spare(g->e))
                    return;
                translate_too(g, &from->blocks[n]);
            }
}

/* Where a branch leads to, if that is the same in every address space, or in its page. */
static struct block *target_of(struct engine *e, const struct block *b, const struct exit *x)
{
    const uint64_t by = (uint64_t)(int64_t)x->target, gva = b->gva + by;
    uint64_t here = b->gpa & ~4095ull, there = here;

    if (x->cross && (!(b->mode & MODE_FIXED_PC) || !soft_kernel_page_listed(e, b->gva, &here) ||
                     here != (b->gpa & ~4095ull) || !soft_kernel_page_listed(e, gva, &there)))
        return NULL;
    struct block *to = soft_block_find(e, there | ((b->gpa + by) & 4095), gva, x->mode & ~(uint32_t)MODE_UNGROUPED);
    return to && to->gpa2 == UINT64_MAX ? to : NULL;
}

static void connect(struct engine *e, const struct block *b)
{
    for (unsigned i = 0; i < b->n_exits; i++) {
        struct exit *x = &e->exits[b->first_exit + i];
        struct block *to = x->to ? NULL : target_of(e, b, x);
        if (to)
            soft_chain_cross(e, x, to);
    }
}

void soft_gather(struct engine *e)
{
    const struct peers *p = e->peers;
    struct gathering g = {.e = e, .block = soft_reserve(e->max_blocks * sizeof *g.block)};

    for (unsigned i = 0; i < p->n; i++)
        soft_kernel_pages_join(e, p->of[i]);
    soft_cpu_ops.tlb_flush_all(&e->vcpu->cpu, true); /* what is chained is what the tables say now */
    for (unsigned i = 0; g.block && i < p->n; i++)
        if (p->of[i] != e)
            gather_from(&g, p->of[i]);
    soft_regions_spare(e);
    for (uint32_t i = 0; g.block && i < g.n; i++)
        connect(e, &e->blocks[g.block[i]]);
    soft_release(g.block, e->max_blocks * sizeof *g.block);
}
