/*
 * The TLBs and the cache of indirect branch targets: filling them, and the flushes that the architecture asks
 * for.
 */
#include "engine/soft/soft_int.h"

static void dirty_add(struct dirty_list *d, unsigned index)
{
    if (d->n < DIRTY_MAX)
        d->index[d->n] = (uint16_t)index;
    if (d->n <= DIRTY_MAX)
        d->n++;
}

static void itlb_empty(struct itlb_entry *t, unsigned i)
{
    if (t[i].tag != tlb_invalid(i))
        t[i].tag = tlb_invalid(i);
}

static void tlb_insert(struct soft_vcpu *v, unsigned mmu, unsigned write, uint64_t gva, uint8_t *page, bool global)
{
    unsigned i = gva >> 12 & (TLB_SIZE - 1);
    struct tlb_entry *t = &v->tlb[mmu][write][i];
    t->tag = gva & ~4095ull;
    t->host = (uint64_t)page;
    if (!global)
        dirty_add(&v->dirty[mmu][write], i);
}

static void note_large(struct soft_vcpu *v, uint64_t gva, const struct translation *tr)
{
    unsigned half = gva >> 63, huge = tr->page_size >= 1u << 30;
    uint64_t bit = 1ull << (gva >> (huge ? 30 : 21) & 63);
    if (tr->page_size <= 4096)
        return;
    v->large_bloom[half][huge] |= bit;
    if (tr->global)
        v->large_global[half][huge] |= bit;
}

/* Enters a RAM page into the TLBs that its permissions allow.  A page that holds translated code stays
 * out of the write TLB, and a clean one too, so that its dirty bit is set by the walk. */
void soft_tlb_fill(struct soft_vcpu *v, unsigned mmu, uint64_t gva, const struct translation *tr, uint8_t *page)
{
    struct engine *e = v->engine;
    memory_touch(e->config.memory, tr->gpa);
    if (!soft_watched(v, gva, false))
        tlb_insert(v, mmu, 0, gva, page, tr->global);
    bool may_write = tr->dirty && (tr->writable || (mmu != MMU_USER && !(v->cpu.cr0 & CR0_WP)));
    if (may_write && !soft_watched(v, gva, true) && memory_may_write(e->config.memory, tr->gpa) &&
        soft_may_write(e, tr->gpa >> 12))
        tlb_insert(v, mmu, 1, gva, page, tr->global);
    note_large(v, gva, tr);
}

/* Does [gpa, gpa+len), inside one page, hold translated code? */
bool soft_holds_code(const struct engine *e, uint64_t gpa, uint64_t len)
{
    uint64_t page = gpa >> 12;
    return page < e->n_pages && (e->code_granules[page] & soft_granules(gpa, len));
}

int soft_translate_exec(struct soft_vcpu *v, uint64_t gva, uint64_t *gpa, bool *global)
{
    struct itlb_entry *t = &v->itlb[soft_mmu(v)][itlb_index(gva)];
    if (t->tag != (gva & ~4095ull)) {
        struct translation tr;
        if ((v->mode & MODE_64) && !cpu_canonical(&v->cpu, gva))
            return cpu_raise_error(&v->cpu, EXC_GP, 0);
        if (cpu_walk(&v->cpu, gva, ACCESS_EXEC, soft_mmu(v) == MMU_USER, &tr))
            return CPU_FAULT;
        v->stats.walks++;
        note_large(v, gva, &tr);
        unsigned mmu = soft_mmu(v), i = itlb_index(gva);
        v->user_code_lost |= mmu == MMU_USER && t->tag != tlb_invalid(i);
        if (!tr.global || mmu == MMU_USER)
            dirty_add(&v->itlb_dirty[mmu], i);
        else
            soft_kernel_page_used(v->engine, gva, tr.gpa);
        *t = (struct itlb_entry){.tag = gva & ~4095ull, .gpa = tr.gpa & ~4095ull, .global = tr.global};
    }
    *gpa = t->gpa | (gva & 4095);
    if (global)
        *global = t->global;
    return 0;
}

static void bloom_add(struct soft_vcpu *v, unsigned which, uint64_t gva)
{
    v->exec_bloom[which][gva >> 63][gva >> 18 & 63] |= 1ull << (gva >> 12 & 63);
}

/* What is behind it so far becomes used, too. */
static void ibtc_use(struct soft_vcpu *v, unsigned mmu, uint32_t from, uint32_t size)
{
    for (uint32_t i = from; i < size; i++)
        v->ibtc[mmu].entry[i] = soft_glue_ibtc_miss;
    v->ibtc_mask[mmu] = size - 1;
}

/* One target has taken the place of another.  Where many do in a short time, more is used: those that are there stay
 * valid, wherever the new mask looks for them. */
#define LOST_TICKS (1u << 28) /* of the TSC: about 0.1 s */
static void ibtc_note_loss(struct soft_vcpu *v, unsigned mmu)
{
    struct ibtc_loss *l = &v->ibtc_lost[mmu];
    uint32_t size = v->ibtc_mask[mmu] + 1;
    if (++l->n < size / 2 || size == IBTC_SIZE)
        return;
    uint64_t now = __builtin_ia32_rdtsc();
    if (now - l->since < LOST_TICKS)
        ibtc_use(v, mmu, size, size < IBTC_SIZE / 4 ? 4 * size : IBTC_SIZE);
    *l = (struct ibtc_loss){.since = now};
}

static void bloom_clear(struct soft_vcpu *v, unsigned which)
{
    for (unsigned i = 0; i < 64; i++)
        v->exec_bloom[which][0][i] = v->exec_bloom[which][1][i] = 0;
}

void soft_ibtc_insert(struct soft_vcpu *v, uint64_t gva, struct block *b)
{
    uint32_t entry = soft_way_in(v->engine, b, WAY_INDIRECT);
    if (!entry)
        return;
    unsigned mmu = soft_mmu(v), i = ibtc_index(v, mmu, gva);
    if (v->ibtc[mmu].entry[i] != soft_glue_ibtc_miss && v->ibtc[mmu].tag[i] != gva)
        ibtc_note_loss(v, mmu);
    i = ibtc_index(v, mmu, gva);
    v->ibtc_used[mmu] = true;
    v->ibtc[mmu].tag[i] = gva;
    v->ibtc[mmu].entry[i] = soft_code(v->engine, entry);
    if (mmu == MMU_USER || !v->itlb[mmu][itlb_index(gva)].global)
        dirty_add(&v->ibtc_dirty[mmu], i);
    bloom_add(v, mmu != MMU_USER, gva);
    v->stats.ibtc_insert++;
}

void soft_ibtc_insert_new(struct soft_vcpu *v, uint64_t gva, struct block *b)
{
    const unsigned mmu = soft_mmu(v);
    if (v->ibtc[mmu].entry[ibtc_index(v, mmu, gva)] == soft_glue_ibtc_miss)
        soft_ibtc_insert(v, gva, b);
}

static void ibtc_flush(struct soft_vcpu *v, unsigned mmu, bool globals_too)
{
    struct dirty_list *d = &v->ibtc_dirty[mmu];
    const void **entry = v->ibtc[mmu].entry;
    /* no user entry is global: their list is complete unless it overflowed */
    if ((globals_too && mmu != MMU_USER) || d->n > DIRTY_MAX) {
        for (unsigned i = 0; i <= v->ibtc_mask[mmu] && v->ibtc_used[mmu]; i++)
            if (entry[i] != soft_glue_ibtc_miss)
                entry[i] = soft_glue_ibtc_miss;
        v->ibtc_used[mmu] = false;
    } else {
        for (unsigned i = 0; i < d->n; i++)
            entry[d->index[i]] = soft_glue_ibtc_miss;
    }
    d->n = 0;
    if (mmu == MMU_USER)
        bloom_clear(v, 0);
}

void soft_ibtc_flush(struct soft_vcpu *v, unsigned mmu)
{
    ibtc_flush(v, mmu, true);
}

/* An empty slot can be hit, by the guest's address SLOT_INVALID: so its host address is not canonical either,
 * and the access raises the #GP (or #SS) that the guest's own would (signal.c).  So it is with any distance that stays:
 * none is as long as 2^63. */
void soft_slots_clear(struct soft_vcpu *v, unsigned mmu, unsigned write)
{
    void *t = v->slot[mmu][write];
    uint64_t n = sizeof(v->slot[mmu][write]) / 8;
    __asm__ volatile("rep stosq" : "+D"(t), "+c"(n) : "a"(SLOT_INVALID) : "memory");
}

void soft_tlb_flush(struct soft_vcpu *v, unsigned mmu, bool globals_too)
{
    for (unsigned write = 0; write < 2; write++) {
        struct dirty_list *d = &v->dirty[mmu][write];
        struct tlb_entry *t = v->tlb[mmu][write];
        if (!globals_too && !d->n)
            continue; /* nothing but globals in it */
        soft_slots_clear(v, mmu, write);
        if (globals_too || d->n > DIRTY_MAX) {
            for (unsigned i = 0; i < TLB_SIZE; i++)
                tlb_empty(t, i);
        } else {
            for (unsigned i = 0; i < d->n; i++)
                t[d->index[i]].tag = tlb_invalid(d->index[i]);
        }
        d->n = 0;
    }
}

static void itlb_flush(struct soft_vcpu *v, unsigned mmu, bool globals_too)
{
    struct dirty_list *d = &v->itlb_dirty[mmu];
    struct itlb_entry *t = v->itlb[mmu];
    if (globals_too || d->n > DIRTY_MAX) {
        for (unsigned i = 0; i < ITLB_SIZE; i++)
            if (globals_too || !t[i].global)
                itlb_empty(t, i);
    } else {
        for (unsigned k = 0; k < d->n; k++)
            if (!t[d->index[k]].global)
                t[d->index[k]].tag = tlb_invalid(d->index[k]);
    }
    d->n = 0;
}

/* --- user code through a flush ---------------------------------------------------------------------------------
 * The tables nearly always say of the pages of user code what they said before: of a parent's and a child's, or when
 * a program's turn comes again.  A walk for each page is cheaper than the look-ups that would bring its targets
 * back.  It is as if the pages had been used again just behind the flush.
 *
 * A page that is not what it was leaves its address in the gpa of its empty entry. */

static bool still_there(struct soft_vcpu *v, const struct itlb_entry *t, struct translation *tr)
{
    return cpu_walk_probe(&v->cpu, t->tag, tr) && tr->user && !tr->no_exec && tr->accessed &&
           (tr->gpa & ~4095ull) == t->gpa;
}

/* false: some are gone */
static bool user_pages_keep(struct soft_vcpu *v)
{
    bool all = true;
    struct dirty_list *d = &v->itlb_dirty[MMU_USER];
    unsigned n = d->n;
    d->n = 0;
    for (unsigned k = 0; k < n; k++) {
        unsigned i = d->index[k];
        struct itlb_entry *t = &v->itlb[MMU_USER][i];
        struct translation tr;
        if (t->tag == tlb_invalid(i))
            continue;
        if (still_there(v, t, &tr)) {
            note_large(v, t->tag, &tr);
            dirty_add(d, i);
        } else {
            *t = (struct itlb_entry){.tag = tlb_invalid(i), .gpa = t->tag};
            all = false;
        }
    }
    return all;
}

/* Targets in pages that are still there, unless they may go on in one that is not.  Every page that a target's code
 * is in has been in the ITLB since the last flush of all, or user_code_lost is set. */
static void user_targets_keep(struct soft_vcpu *v)
{
    const struct itlb_entry *pages = v->itlb[MMU_USER];
    struct dirty_list *d = &v->ibtc_dirty[MMU_USER];
    struct ibtc *t = &v->ibtc[MMU_USER];
    unsigned n = d->n;
    d->n = 0;
    bloom_clear(v, 0);
    for (unsigned k = 0; k < n; k++) {
        unsigned i = d->index[k];
        uint64_t page = t->tag[i] & ~4095ull, next = page + 4096;
        if (t->entry[i] == soft_glue_ibtc_miss)
            continue;
        if (pages[itlb_index(page)].tag == page && pages[itlb_index(next)].gpa != next) {
            dirty_add(d, i);
            bloom_add(v, 0, page);
        } else {
            t->entry[i] = soft_glue_ibtc_miss;
        }
    }
}

/* Targets in the pages at [first, first+size), or that may go on there: a program that writes to its data has such a
 * page flushed every few microseconds, and its targets are not many. */
static void user_targets_drop(struct soft_vcpu *v, uint64_t first, uint64_t size)
{
    struct dirty_list *d = &v->ibtc_dirty[MMU_USER];
    struct ibtc *t = &v->ibtc[MMU_USER];
    unsigned n = d->n;
    if (n > DIRTY_MAX) {
        ibtc_flush(v, MMU_USER, true);
        return;
    }
    d->n = 0;
    for (unsigned k = 0; k < n; k++) {
        unsigned i = d->index[k];
        if (t->tag[i] - (first - 4096) < size + 4096)
            t->entry[i] = soft_glue_ibtc_miss;
        else if (t->entry[i] != soft_glue_ibtc_miss)
            dirty_add(d, i);
    }
}

static void user_code_flush(struct soft_vcpu *v)
{
    if (v->user_code_lost || v->itlb_dirty[MMU_USER].n > DIRTY_MAX || v->ibtc_dirty[MMU_USER].n > DIRTY_MAX ||
        !cpu_long_mode(&v->cpu)) {
        v->user_code_lost = false;
        itlb_flush(v, MMU_USER, true);
        ibtc_flush(v, MMU_USER, true);
        return;
    }
    if (!user_pages_keep(v))
        user_targets_keep(v);
}

static void large_forget(struct soft_vcpu *v, bool globals_too)
{
    for (unsigned i = 0; i < 4; i++) {
        unsigned half = i & 1, huge = i >> 1;
        if (globals_too)
            v->large_global[half][huge] = 0;
        v->large_bloom[half][huge] = v->large_global[half][huge];
    }
}

/* false: what leads to kernel code from another page is not valid any more. */
static bool flush_modes(struct soft_vcpu *v, bool globals_too)
{
    bool keep;
    for (unsigned i = 0; i < MMU_COUNT; i++)
        soft_tlb_flush(v, i, globals_too);
    large_forget(v, globals_too);
    keep = !globals_too || soft_kernel_pages_keep(v, note_large);
    for (unsigned i = globals_too ? MMU_USER : MMU_KERNEL; i < MMU_COUNT; i++) {
        itlb_flush(v, i, globals_too);
        ibtc_flush(v, i, i == MMU_USER || !keep);
    }
    if (!globals_too)
        user_code_flush(v);
    return keep;
}

/* The write TLBs are empty: a page that becomes one with code need not be looked for there. */
static void forget_written(struct engine *e)
{
    if (e->peers->n > 1) /* the others go by it for mirrors, too */
        return;
    for (uint64_t i = 0; i <= e->n_pages / 64; i++)
        e->written[i] = 0;
}

static void flush_all_here(struct cpu *cpu, bool globals_too)
{
    struct soft_vcpu *v = vcpu_of(cpu);
    bool keep = flush_modes(v, globals_too);
    v->stats.tlb_flush++;
    if (!globals_too)
        return;
    v->stats.tlb_flush_kept += keep;
    forget_written(v->engine);
    bloom_clear(v, 0);
    if (keep)
        return;
    soft_unchain_cross(v->engine);
    soft_kernel_pages_forget(v->engine);
    bloom_clear(v, 1);
}

static void flush_all(struct cpu *cpu, bool globals_too)
{
    soft_direct_flush(vcpu_of(cpu), -1);
    flush_all_here(cpu, globals_too);
}

/* Of 2 MB, or 1 GB, which can be anywhere in the TLBs. */
static void flush_region(struct soft_vcpu *v, uint64_t gva, unsigned shift)
{
    unsigned pages = 1u << (shift - 12), first = gva >> shift << (shift - 12) & (TLB_SIZE - 1);
    unsigned end = pages < TLB_SIZE ? first + pages : TLB_SIZE;
    for (unsigned mmu = 0; mmu < MMU_COUNT; mmu++)
        for (unsigned i = pages < TLB_SIZE ? first : 0; i < end; i++) {
            if (v->tlb[mmu][0][i].tag >> shift == gva >> shift)
                v->tlb[mmu][0][i].tag = tlb_invalid(i);
            if (v->tlb[mmu][1][i].tag >> shift == gva >> shift)
                v->tlb[mmu][1][i].tag = tlb_invalid(i);
        }
    for (unsigned mmu = 0; mmu < MMU_COUNT; mmu++)
        for (unsigned i = 0; i < ITLB_SIZE; i++)
            if (v->itlb[mmu][i].tag >> shift == gva >> shift)
                v->itlb[mmu][i].tag = tlb_invalid(i);
}

static bool bloom_has(const struct soft_vcpu *v, unsigned which, uint64_t gva)
{
    return v->exec_bloom[which][gva >> 63][gva >> 18 & 63] >> (gva >> 12 & 63) & 1;
}

/* Of the region of 2^shift bytes at gva: 4 KiB, 2 MiB, which are eight words, or 1 GiB. */
static bool bloom_has_any(const struct soft_vcpu *v, unsigned which, uint64_t gva, unsigned shift)
{
    const uint64_t *words = v->exec_bloom[which][gva >> 63];
    unsigned first = shift == 21 ? gva >> 18 & 63 : 0, n = shift == 21 ? 8 : 64;
    uint64_t any = 0;
    if (shift == 12)
        return bloom_has(v, which, gva);
    for (unsigned i = first; i < first + n; i++)
        any |= words[i];
    return any;
}

/* Has nothing come through this page of the kernel's, or is it still the same? */
static bool kernel_code_holds(struct soft_vcpu *v, uint64_t gva)
{
    return !bloom_has(v, 1, gva) || soft_kernel_page_holds(v, gva);
}

static void flush_page(struct cpu *cpu, uint64_t gva)
{
    struct soft_vcpu *v = vcpu_of(cpu);
    v->stats.tlb_flush_page++;
    soft_direct_flush_page(v, gva);
    unsigned i = gva >> 12 & (TLB_SIZE - 1), x = itlb_index(gva);
    uint64_t page = gva & ~4095ull;
    for (unsigned mmu = 0; mmu < MMU_COUNT; mmu++) {
        for (unsigned write = 0; write < 2; write++) {
            /* without AC the kernel has no user page in its TLB */
            if (!(mmu == MMU_KERNEL && gva >> 63 == 0))
                soft_slots_clear(v, mmu, write);
            if (v->tlb[mmu][write][i].tag == page)
                v->tlb[mmu][write][i].tag = tlb_invalid(i);
        }
        if (v->itlb[mmu][x].tag == page)
            v->itlb[mmu][x].tag = tlb_invalid(x);
    }
    unsigned half = gva >> 63;
    bool large = v->large_bloom[half][0] >> (gva >> 21 & 63) & 1,
         huge = v->large_bloom[half][1] >> (gva >> 30 & 63) & 1;
    unsigned shift = huge ? 30 : large ? 21 : 12;
    uint64_t first = gva >> shift << shift;
    if (shift > 12)
        flush_region(v, gva, shift);
    /* code that was reached through this page, or straddles into it, in either mode */
    for (unsigned which = 0; which < 2; which++) {
        if (!bloom_has_any(v, which, first, shift) && !bloom_has(v, which, first - 4096))
            continue;
        if (which == 0) {
            user_targets_drop(v, first, 1ull << shift);
            continue; /* only code in global pages is chained across pages: the kernel's */
        }
        if (shift == 12 && kernel_code_holds(v, first - 4096) && kernel_code_holds(v, first))
            continue;
        ibtc_flush(v, MMU_KERNEL, true);
        ibtc_flush(v, MMU_KERNEL_AC, true);
        soft_unchain_cross(v->engine);
        bloom_clear(v, 1);
    }
}

static void address_space_changed(struct cpu *cpu, bool keep)
{
    struct soft_vcpu *v = vcpu_of(cpu);
    v->stats.cr3_writes++;
    soft_direct_cr3(v, keep);
    flush_modes(v, false);
}

static void flush_pcid(struct cpu *cpu, uint16_t pcid)
{
    soft_direct_flush(vcpu_of(cpu), pcid);
    flush_all_here(cpu, false);
}

static void mode_changed(struct cpu *cpu)
{
    soft_update_mode(vcpu_of(cpu));
}

static void before_write(struct cpu *cpu, uint64_t gpa, uint64_t len)
{
    struct soft_vcpu *v = vcpu_of(cpu);
    if (soft_holds_code(v->engine, gpa, len)) {
        soft_fpu_park(v);
        soft_invalidate(v->engine, gpa, len);
    }
    soft_others_tell_later(v, gpa, len);
}

/* cpu/'s accesses through the same TLB: the address of a hit says the gpa. */
static int translate(struct cpu *cpu, uint64_t gva, unsigned access, bool user, struct translation *out)
{
    struct soft_vcpu *v = vcpu_of(cpu);
    unsigned kind = access & 3; /* the room's own flag beside enum access: an implicit supervisor access */
    if (kind != ACCESS_EXEC) {
        const struct tlb_entry *t = &v->tlb[user ? MMU_USER : MMU_KERNEL][kind][gva >> 12 & (TLB_SIZE - 1)];
        if (t->tag == (gva & ~4095ull)) {
            out->gpa = (uint64_t)((uint8_t *)t->host - v->engine->config.memory->base) + (gva & 4095);
            out->page_size = 4096;
            return 0;
        }
    }
    v->stats.walks++;
    int rc = cpu_walk(cpu, gva, access, user, out);
    if (rc || kind == ACCESS_EXEC || user != out->user)
        return rc;
    const struct memory *m = v->engine->config.memory;
    uint64_t at = out->gpa & ~4095ull;
    uint8_t *hva = kind == ACCESS_WRITE ? memory_hva(m, at, 4096) : (uint8_t *)(uintptr_t)memory_hva_read(m, at, 4096);
    if (hva)
        soft_tlb_fill(v, user ? MMU_USER : MMU_KERNEL, gva, out, hva);
    return 0;
}

const struct cpu_engine_ops soft_cpu_ops = {
    .tlb_flush_all = flush_all,
    .tlb_flush_page = flush_page,
    .tlb_flush_pcid = flush_pcid,
    .address_space_changed = address_space_changed,
    .mode_changed = mode_changed,
    .before_write = before_write,
    .translate = translate,
};

/* All is zero before. */
void soft_tlb_init(struct soft_vcpu *v, uint32_t targets)
{
    for (unsigned mmu = 0; mmu < MMU_COUNT; mmu++) {
        soft_slots_clear(v, mmu, 0);
        soft_slots_clear(v, mmu, 1);
        v->tlb[mmu][0][0].tag = v->tlb[mmu][1][0].tag = v->itlb[mmu][0].tag = tlb_invalid(0);
    }
    for (unsigned mmu = 0; mmu < MMU_COUNT; mmu++)
        ibtc_use(v, mmu, 0, targets);
}
