/*
 * Kernel code through a flush of globals.
 *
 * A kernel flushes everything when it has given up an address range, several times a second, and its own code is where
 * it was before.  Its chains across pages and its computed branches are thousands; to find them again takes
 * milliseconds, and in a copy of a machine (carry.c) each is a write to memory that it had in common with others.  So
 * the global pages that kernel code was fetched from are listed, and a flush walks the tables for each: what leads to
 * those that are still the same stays.  It is as if they had been used again just behind the flush.
 *
 * The list is never shorter than what the chains rely on: where it is not to be relied on it is lost, and the next
 * flush drops all.
 */
#include "engine/soft/soft_int.h"

#define PAGE_BITS (~4095ull)
#define FILL (KERNEL_PAGES / 4 * 3) /* at most, of the table */
#define GONE UINT64_MAX             /* a gpa: nothing leads to it any more */
#define GONE_MOST 512 /* more at once, as when globals are no more: all are dropped; at the end of a boot it is 200 */

static struct kernel_page *place_of(struct kernel_pages *k, uint64_t gva)
{
    unsigned i = (unsigned)((gva >> 12) * 0x9e3779b97f4a7c15ull >> 32) % KERNEL_PAGES;
    while (k->page[i].gva && k->page[i].gva != gva)
        i = (i + 1) % KERNEL_PAGES;
    return &k->page[i];
}

void soft_kernel_page_used(struct engine *e, uint64_t gva, uint64_t gpa)
{
    struct kernel_pages *k = e->kernel_pages;
    const struct kernel_page page = {gva & PAGE_BITS, gpa & PAGE_BITS};
    struct kernel_page *p = place_of(k, page.gva);
    if (p->gva == page.gva && p->gpa == page.gpa)
        return;
    if (p->gva ? p->gpa != GONE : k->n == FILL) {
        k->lost = true;
        return;
    }
    k->n += !p->gva;
    *p = page;
}

static bool is_still_there(struct soft_vcpu *v, const struct kernel_page *p, struct translation *tr)
{
    return cpu_walk_probe(&v->cpu, p->gva, tr) && tr->global && !tr->user && !tr->no_exec && tr->accessed &&
           (tr->gpa & PAGE_BITS) == p->gpa;
}

bool soft_kernel_page_holds(struct soft_vcpu *v, uint64_t gva)
{
    const struct kernel_page *p = place_of(v->engine->kernel_pages, gva & PAGE_BITS);
    struct translation tr;
    return p->gva && !v->engine->kernel_pages->lost && cpu_long_mode(&v->cpu) && is_still_there(v, p, &tr);
}

bool soft_kernel_page_listed(const struct engine *e, uint64_t gva, uint64_t *gpa)
{
    const struct kernel_page *p = place_of(e->kernel_pages, gva & PAGE_BITS);
    *gpa = p->gpa;
    return p->gva && p->gpa != GONE;
}

void soft_kernel_pages_join(struct engine *e, const struct engine *from)
{
    const struct kernel_pages *k = from->kernel_pages;
    for (unsigned i = 0; from != e && cpu_long_mode(&e->vcpu->cpu) && k->n && i < KERNEL_PAGES; i++) {
        struct kernel_page *p = place_of(e->kernel_pages, k->page[i].gva);
        struct translation tr;
        if (k->page[i].gva && !p->gva && e->kernel_pages->n < FILL && is_still_there(e->vcpu, &k->page[i], &tr))
            soft_kernel_page_used(e, k->page[i].gva, tr.gpa);
    }
}

bool soft_kernel_pages_same(const struct engine *e, struct soft_vcpu *v)
{
    const struct kernel_pages *k = e->kernel_pages;
    struct translation tr;
    for (unsigned i = 0; k->n && i < KERNEL_PAGES; i++)
        if (k->page[i].gva && k->page[i].gpa != GONE && !is_still_there(v, &k->page[i], &tr))
            return false;
    return cpu_long_mode(&v->cpu);
}

/* Nothing is chained to code of it any more. */
static void drop_page(struct engine *e, struct kernel_page *p)
{
    soft_carry_lost(e); /* there, it still is */
    const uint64_t page = p->gpa >> 12;
    struct block *b = page < e->n_pages ? soft_block_at(e, e->page_blocks[page]) : NULL;
    for (; b; b = soft_block_at(e, *soft_next_in_page(b, page)))
        soft_unchain_incoming(e, b);
    p->gpa = GONE;
}

/* A target may go on in the page behind its own. */
static bool is_gone(struct kernel_pages *k, uint64_t gva)
{
    return place_of(k, gva & PAGE_BITS)->gpa == GONE || place_of(k, (gva & PAGE_BITS) + 4096)->gpa == GONE;
}

static void drop_targets(struct soft_vcpu *v, unsigned mmu)
{
    struct ibtc *t = &v->ibtc[mmu];
    for (unsigned i = 0; i <= v->ibtc_mask[mmu]; i++)
        if (t->entry[i] != soft_glue_ibtc_miss && is_gone(v->engine->kernel_pages, t->tag[i]))
            t->entry[i] = soft_glue_ibtc_miss;
}

bool soft_kernel_pages_keep(struct soft_vcpu *v, void (*note)(struct soft_vcpu *, uint64_t, const struct translation *))
{
    struct kernel_pages *k = v->engine->kernel_pages;
    struct kernel_page *gone[GONE_MOST];
    unsigned n = 0;
    if (k->lost || !k->n || !cpu_long_mode(&v->cpu))
        return false;
    for (unsigned i = 0; i < KERNEL_PAGES; i++) {
        struct kernel_page *p = &k->page[i];
        struct translation tr;
        if (!p->gva || p->gpa == GONE)
            continue;
        if (is_still_there(v, p, &tr))
            note(v, p->gva, &tr);
        else if (n == GONE_MOST)
            return false;
        else
            gone[n++] = p;
    }
    for (unsigned i = 0; i < n; i++)
        drop_page(v->engine, gone[i]);
    for (unsigned mmu = MMU_KERNEL; n && mmu < MMU_COUNT; mmu++)
        drop_targets(v, mmu);
    return true;
}

void soft_kernel_pages_forget(struct engine *e)
{
    struct kernel_pages *k = e->kernel_pages;
    for (unsigned i = 0; k->n && i < KERNEL_PAGES; i++)
        k->page[i] = (struct kernel_page){0};
    k->n = 0;
    k->lost = false;
}
