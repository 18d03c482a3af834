/*
 * Breakpoints on data (SDM vol. 3, 17.2.4): their pages stay out of the TLBs, so that every access comes to
 * the slow path, which looks.
 */
#include "engine/soft/soft_int.h"

static void watch_one(struct soft_vcpu *v, unsigned i)
{
    static const uint8_t lengths[4] = {1, 2, 8, 4};
    uint64_t dr7 = v->cpu.dr7, length = lengths[dr7 >> (18 + 4 * i) & 3], first = v->cpu.dr[i] & ~(length - 1);
    unsigned kind = dr7 >> (16 + 4 * i) & 3;
    if ((dr7 >> (2 * i) & 3) && (kind & 1))
        v->watch[v->n_watch++] = (struct watch){
            .first = first, .last = first + length - 1, .reads = kind == 3, .bit = 1u << i};
}

void soft_watch_update(struct soft_vcpu *v)
{
    const struct cpu *c = &v->cpu;
    bool same = v->watched_dr7 == c->dr7;
    for (unsigned i = 0; i < 4; i++) {
        same &= v->watched_dr[i] == c->dr[i];
        v->watched_dr[i] = c->dr[i];
    }
    v->watched_dr7 = c->dr7;
    if (same)
        return;
    unsigned before = v->n_watch;
    v->n_watch = 0;
    for (unsigned i = 0; i < 4; i++)
        watch_one(v, i);
    for (unsigned mmu = 0; mmu < MMU_COUNT && (before || v->n_watch); mmu++)
        soft_tlb_flush(v, mmu, true);
}

bool soft_watched(const struct soft_vcpu *v, uint64_t gva, bool write)
{
    for (unsigned i = 0; i < v->n_watch; i++)
        if (v->watch[i].first >> 12 == gva >> 12 && (write || v->watch[i].reads))
            return true;
    return false;
}

uint32_t soft_watch_hits(const struct soft_vcpu *v, uint64_t gva, uint64_t n, bool write)
{
    uint32_t hits = 0;
    for (unsigned i = 0; i < v->n_watch; i++) {
        const struct watch *w = &v->watch[i];
        if ((write || w->reads) && gva <= w->last && gva + n - 1 >= w->first)
            hits |= w->bit;
    }
    return hits;
}
