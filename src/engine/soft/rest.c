/*
 * A copy that rests.
 *
 * When a copy of a machine (carry.c) has taken on its identity it mostly waits for what it was made for, with many
 * others.  What it has done so far is in the TLBs and in the caches of computed branches, most of which it will not ask
 * for again, and in some thousand blocks, on pages of tables and code that it had in common with the others before. All
 * of that can be had again: so, when it first does nothing for a while, it goes, the blocks once and for all.  What it
 * translates afterwards is for what it does in its life, and stays.
 */
#include "engine/soft/soft_int.h"

#include <string.h>

/* Pages of the structure's that are nothing but these arrays. */
static void empty(void *p, size_t size)
{
    const uintptr_t first = ((uintptr_t)p + 4095) & ~4095ull, end = ((uintptr_t)p + size) & ~4095ull;
    if (end <= first) {
        memset(p, 0, size);
        return;
    }
    memset(p, 0, first - (uintptr_t)p);
    soft_give_back((void *)first, end - first);
    memset((void *)end, 0, (uintptr_t)p + size - end);
}

/* They have been flushed. */
static void give_back_caches(struct soft_vcpu *v)
{
    empty(v->tlb, sizeof v->tlb);
    empty(v->dirty, sizeof v->dirty);
    empty(v->itlb, sizeof v->itlb);
    empty(v->itlb_dirty, sizeof v->itlb_dirty);
    empty(v->ibtc, sizeof v->ibtc);
    empty(v->ibtc_dirty, sizeof v->ibtc_dirty);
    soft_tlb_init(v, IBTC_RESTING);
}

bool soft_rest(struct engine *e, unsigned i)
{
    e = e->peers->of[i];
    if (!e->config.lean)
        return false;
    pthread_mutex_lock(&e->asked.lock); /* others drop what is in their way */
    soft_carry_again(e);
    soft_cpu_ops.tlb_flush_all(&e->vcpu->cpu, true); /* what leads to other pages is looked at, as it is any time */
    give_back_caches(e->vcpu);
    pthread_mutex_unlock(&e->asked.lock);
    return !soft_direct_began(e);
}
