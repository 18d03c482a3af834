/*
 * Which of the guest's pages are mapped in the process that runs its code: a TLB in the form of mappings.
 *
 * A page is mapped when it is missed, with some around it, as far as the guest's tables have marked them accessed;
 * writable only when they are marked dirty; never writable when it holds translated code, so that a store to it
 * comes to tier 1; nor before a store to it has been announced, while memory is watched (memory/watch.h).  What the
 * guest flushes is noted and done before its code runs the next time: single pages by their address; more than those
 * by comparing every mapping with the tables, since what a flush promises is that nothing is used that is not in
 * them.
 */
#include "engine/soft/direct.h"

#include <sys/mman.h>
#include <sys/syscall.h>

#include "memory/template.h"
#include "memory/watch.h"

#define PAGE 4096ull
#define LARGE MIRROR_LARGE
#define LOWEST 0x10000ull /* where a host lets its processes map */
#define AROUND 16u        /* pages looked at for a miss: they and the missed one are aligned to so many */

/* Of an address, in struct direct_slot's huge. */
static uint64_t huge_bit(uint64_t gva)
{
    return 1ull << (gva >> 30 & 63);
}

/* --- unmapping --------------------------------------------------------------------------------------------- */

static void mark_writable(struct direct *d, const struct direct_slot *s, uint64_t gpa, uint64_t size)
{
    uint8_t bit = (uint8_t)(1u << (s - d->slots));
    for (uint64_t page = gpa >> 12; page < (gpa + size) >> 12; page++)
        d->writable[page] |= bit;
}

/* Neighbours go by one call. */
static void order_unmap(struct direct_slot *s, uint64_t gva, uint64_t size)
{
    struct direct_call *last = s->n_calls ? &s->orders->calls[s->n_calls - 1] : NULL;
    s->n_unmapped++;
    if (last && last->number == SYS_munmap && last->args[0] + last->args[1] == gva)
        last->args[1] += size;
    else
        direct_call(s, SYS_munmap, gva, size, 0, 0);
}

static void unmap(struct direct *d, struct direct_slot *s, struct region *g, uint64_t *page, uint64_t gva,
                  uint64_t size)
{
    if (!*page)
        return;
    if (direct_calls_full(s)) {
        s->clear = true;
        return;
    }
    order_unmap(s, gva, size);
    pages_set(s, g, page, 0);
    d->stats.unmapped++;
}

static bool outside(uint64_t gva, uint64_t size)
{
    return gva < LOWEST || gva > DIRECT_TOP - size || (gva < DIRECT_END && gva + size > DIRECT_BASE);
}

/* Of mappings or of regions, are so many eighths there? */
static bool full(const struct direct *d, const struct direct_slot *s, unsigned eighths)
{
    return pages_mappings(s) >= d->mappings / 8 * eighths || s->n_regions >= MIRROR_REGIONS / 8 * eighths;
}

/* An eighth goes, other regions each time. */
static void make_room(struct direct *d, struct direct_slot *s)
{
    struct region *g;
    while (full(d, s, 7)) {
        if (direct_calls_full(s)) {
            s->clear = true;
            return;
        }
        if (!(g = pages_next(s, &s->hand))) {
            s->hand = 0;
            continue;
        }
        if (outside(g->base, LARGE)) /* in part */
            continue;
        const unsigned before = s->n_pages;
        order_unmap(s, g->base, LARGE);
        pages_drop(s, g);
        s->n_unmapped += before - s->n_pages;
        d->stats.unmapped += before - s->n_pages;
    }
    d->stats.evicted++;
}

/* --- code that tells --------------------------------------------------------------------------------------- */

static uint64_t xcr0_differs(const struct direct *d)
{
    return d->host_xcr0 ^ d->engine->xcr0;
}

/* Is what an XSAVE saves said just before it (mov eax, MASK; xor edx, edx), and the same by either XCR0?  Then it does
 * not tell.  The C library's do so, where the dynamic linker looks up a function: no program could be without. */
static bool saves_the_same(const struct direct *d, const uint8_t *page, const uint8_t *p)
{
    enum { FARTHEST = 80 };
    for (const uint8_t *q = p - 7; q >= page && p - q <= FARTHEST; q--) {
        uint32_t mask;
        if (q[0] != 0xb8 || q[5] != 0x31 || q[6] != 0xd2)
            continue;
        cpu_copy(&mask, q + 1, 4);
        return !(mask & xcr0_differs(d));
    }
    return false;
}

/* Instructions that would answer with the host's: where the processor cannot be told to trap them, pages that contain
 * their bytes, be it by chance, are not executed here.  (RDTSC and RDTSCP trap.) */
static bool tells(const struct direct *d, const uint8_t *page, const uint8_t *p)
{
    switch (p[1]) {
    case 0xa2: /* cpuid */
        return d->cpuid_tells;
    case 0xc7: /* rdpid; xsavec */
        return (p > page && p[-1] == 0xf3 && p[2] >= 0xf8 && d->has_rdpid && !copies_can(page + 1, p)) ||
               ((p[2] & 0x38) == 0x20 && p[2] < 0xc0 && xcr0_differs(d) && !saves_the_same(d, page, p));
    case 0x01: /* rdpkru, wrpkru: guests have no protection keys, and with the host's a program can end its process */
        if (p[2] == 0xee || p[2] == 0xef)
            return true;
        /* xgetbv: a bit more is of no use where CPUID does not announce what it is for */
        return p[2] == 0xd0 && d->cpuid_tells && xcr0_differs(d);
    case 0xae: /* wrfsbase, wrgsbase: processors may allow them that the host's kernel does not know to allow them */
        if ((p[2] & 0xf0) == 0xd0)
            return d->bases_by_calls;
        /* xsave, xsaveopt: a program may want all that there is to be saved; with 66 it is clwb, as in libjvm */
        return (p[2] & 0x28) == 0x20 && p[2] < 0xc0 && !(p > page && p[-1] == 0x66) && xcr0_differs(d) &&
               !saves_the_same(d, page, p);
    default:
        return false;
    }
}

static uint8_t byte_at(struct soft_vcpu *v, uint64_t gva)
{
    struct translation tr;
    const uint8_t *p = cpu_walk_probe(&v->cpu, gva, &tr) ? memory_hva_read(v->engine->config.memory, tr.gpa, 1) : NULL;
    return p ? *p : 0;
}

bool mirror_hidden(const struct direct_slot *s, uint64_t gva)
{
    uint64_t page = pages_find(s, gva);
    return page && !(page & PROT_EXEC);
}

/* Can it be executed: as it is (0), or as that copy; false: no. */
static bool executable(struct soft_vcpu *v, struct direct *d, uint64_t gva, uint64_t gpa, uint64_t *copy)
{
    uint8_t bytes[4096 + 4]; /* one of the page before, three of the next */
    bool asks = false;
    bytes[0] = byte_at(v, gva - 1);
    cpu_copy(bytes + 1, d->engine->config.memory->base + gpa, 4096);
    for (unsigned i = 0; i < 3; i++)
        bytes[4097 + i] = byte_at(v, gva + 4096 + i);
    const uint8_t *end = bytes + 4098; /* a second byte may be the next page's first */
    for (const uint8_t *p = bytes; (p = scan_special(p, end)); p++) {
        if (tells(d, bytes, p))
            return false;
        asks |= copies_can(bytes + 1, p);
    }
    *copy = asks ? copies_offset(d, gpa, bytes + 1) : 0;
    return !asks || *copy;
}

/* --- mapping ----------------------------------------------------------------------------------------------- */

/* A page that is there, with what is marked; false: translated code would find out more, or has to wait for it. */
static bool look(struct soft_vcpu *v, uint64_t gva, struct translation *tr)
{
    return cpu_walk_probe(&v->cpu, gva, tr) && tr->user && tr->accessed &&
           memory_is_here(v->engine->config.memory, tr->gpa);
}

/* Is a mapping what the tables say?  Less than they allow is fine. */
static bool still_right(struct soft_vcpu *v, uint64_t page, uint64_t gva, uint64_t size)
{
    struct translation tr;
    if (!look(v, gva, &tr) || (tr.gpa & -PAGE) != (page & -PAGE) || tr.page_size < size)
        return false;
    return !((page & PROT_EXEC) && tr.no_exec) && (!(page & PROT_WRITE) || (tr.writable && tr.dirty));
}

/* The entries that a mapping is from are kept.  false: those that are there now do not say it any more.  Where pages of
 * 1 GiB are mapped is noted: what is mapped of one goes when any address in it is flushed. */
static bool remember(struct soft_vcpu *v, struct direct_slot *s, struct region *g, uint64_t page, uint64_t gva,
                     uint64_t size)
{
    if (!pages_remember(v, g, gva, page, size))
        return false;
    if (g->path[1] & PTE_PS)
        s->huge |= huge_bit(gva);
    return true;
}

/* Stores to it have to be seen. */
static bool has_code(const struct direct *d, uint64_t gpa, uint64_t size)
{
    struct engine *e = d->engine;
    for (uint64_t page = gpa >> 12; page < (gpa + size) >> 12; page++) {
        if (e->peers->n > 1) /* others go by it; this vCPU by d->writable */
            soft_note_write(e, page);
        if (e->code_granules[page] || soft_others_code(e, page))
            return true;
    }
    return copies_has(d, gpa, size);
}

/* Of a mapping; and the copy of the page that it is to be of, or 0. */
static unsigned protection(struct soft_vcpu *v, struct direct *d, const struct translation *tr, uint64_t gva,
                           uint64_t gpa, uint64_t size, uint64_t *copy)
{
    unsigned prot = PROT_READ;
    *copy = 0;
    if (!tr->no_exec && size == PAGE && executable(v, d, gva, gpa, copy))
        prot |= PROT_EXEC;
    if (tr->writable && tr->dirty && memory_may_write(d->engine->config.memory, gpa) && !has_code(d, gpa, size))
        prot |= PROT_WRITE;
    return prot;
}

/* The mappings that one call is for: they follow one another in both address spaces. */
struct run {
    uint64_t gva, offset, size;
    unsigned prot;
};

static void map_run(struct direct_slot *s, struct run *r)
{
    if (r->size)
        direct_call(s, SYS_mmap, r->gva, r->size, r->prot, r->offset);
    r->size = 0;
}

/* As the guest's tables have it.  false: it cannot be mapped.  A page that is in a template (memory/template.h) becomes
 * the machine's own first: it would have to be found and mapped anew when somebody writes to it. */
static bool map(struct soft_vcpu *v, struct direct *d, struct direct_slot *s, uint64_t gva,
                const struct translation *tr, struct run *r)
{
    const struct memory *m = d->engine->config.memory;
    uint64_t size = PAGE, gpa = tr->gpa & -PAGE, copy;
    gva &= -PAGE;
    if (tr->page_size >= LARGE && tr->no_exec && !memory_is_watched(m) && memory_is_ram(m, gpa & -LARGE, LARGE) &&
        gva >= LARGE && !has_code(d, gpa & -LARGE, LARGE))
        size = LARGE, gva &= -LARGE, gpa &= -LARGE;
    if (!memory_is_ram(m, gpa, size) || outside(gva, size) || tr->global || pages_mappings(s) >= d->mappings)
        return false;
    memory_own(d->engine->config.memory, gpa, size);
    struct region *g = pages_new_region(s, gva);
    if (!g)
        return false;
    if (size == PAGE && g->large)
        return true; /* was one page, is many, and nobody has flushed it yet */
    unsigned prot = protection(v, d, tr, gva, gpa, size, &copy);
    uint64_t offset = copy ? copy : memory_offset(m, gpa);
    uint64_t *page = size == LARGE ? &g->large : &g->page[PAGE_INDEX(gva)];
    const bool mapped = *page == (gpa | prot);
    if (!mapped && direct_calls_full(s))
        return false;
    if (!remember(v, s, g, gpa | prot, gva, size)) { /* what is mapped there is not what is remembered now */
        map_run(s, r);                               /* which may be a part of it: it goes after it has come */
        unmap(d, s, g, page, gva, size);
        return false;
    }
    if (mapped)
        return true;
    if (r->size && (r->gva + r->size != gva || r->offset + r->size != offset || r->prot != prot))
        map_run(s, r);
    if (!r->size)
        *r = (struct run){gva, offset, 0, prot};
    r->size += size;
    pages_set(s, g, page, gpa | prot);
    if (prot & PROT_WRITE)
        mark_writable(d, s, gpa, size);
    d->stats.mapped++;
    return true;
}

/* Those that are mapped, and whose entries nobody has touched since, stay as they are. */
static void map_around(struct soft_vcpu *v, struct direct *d, struct direct_slot *s, uint64_t gva)
{
    struct run r = {0};
    const uint64_t first = gva & -(AROUND * PAGE);
    const struct region *g = pages_region(s, gva);
    const volatile uint64_t *table = g && pages_same_path(v, g) ? pages_table(v, g) : NULL;
    for (uint64_t at = first; at < first + AROUND * PAGE; at += PAGE) {
        struct translation tr;
        if (table && pages_untouched(g, table, PAGE_INDEX(at)))
            continue;
        if (look(v, at, &tr))
            map(v, d, s, at, &tr, &r);
    }
    map_run(s, &r);
}

enum direct_exit mirror_miss(struct soft_vcpu *v, struct direct *d, struct direct_slot *s, uint64_t gva,
                             unsigned access)
{
    struct translation tr;
    struct run r = {0};
    if (!cpu_canonical(&v->cpu, gva))
        return DIRECT_EXCEPTION;
    if (cpu_walk(&v->cpu, gva, access, true, &tr)) {
        s->fault = gva;
        return DIRECT_FAULT;
    }
    if (full(d, s, 8))
        make_room(d, s);
    const struct memory *m = d->engine->config.memory;
    const uint64_t page_gpa = tr.gpa & -PAGE;
    if (access != ACCESS_WRITE)
        (void)memory_hva_read(m, page_gpa, PAGE); /* announced, so that it is there */
    else if (memory_hva(m, page_gpa, PAGE))
        soft_invalidate(d->engine, page_gpa, PAGE); /* code that was translated before it ran here: it can do without */
    struct region *g = pages_region(s, gva);
    if (g) { /* what it was missed for is not there, whatever we thought: it is mapped over, or goes */
        pages_set(s, g, &g->page[PAGE_INDEX(gva)], 0);
        unmap(d, s, g, &g->large, g->base, LARGE);
    }
    if (!map(v, d, s, gva, &tr, &r)) {
        map_run(s, &r);
        if (direct_calls_full(s))
            s->clear = true;
        else if (!outside(gva & -PAGE, PAGE))
            order_unmap(s, gva & -PAGE, PAGE);
        return DIRECT_REFUSED;
    }
    map_run(s, &r);
    uint64_t page = pages_find(s, gva);
    if (access == ACCESS_EXEC && !(page & PROT_EXEC))
        return DIRECT_HIDDEN;
    if (access == ACCESS_WRITE && !(page & PROT_WRITE))
        return DIRECT_CODE;
    d->stats.misses++;
    map_around(v, d, s, gva);
    return DIRECT_MAPPED;
}

void mirror_prefill(struct soft_vcpu *v, struct direct *d, struct direct_slot *s)
{
    struct run r = {0};
    struct translation tr;
    for (unsigned i = 0; i < TLB_SIZE && s->n_calls < DIRECT_CALLS / 2; i++) {
        const struct tlb_entry *t = &v->tlb[MMU_USER][0][i];
        if (t->tag >> 47 == 0 && t->tag != tlb_invalid(i) && look(v, t->tag, &tr))
            map(v, d, s, t->tag, &tr, &r);
    }
    for (unsigned i = 0; i < ITLB_SIZE && s->n_calls < DIRECT_CALLS / 2; i++) {
        const struct itlb_entry *t = &v->itlb[MMU_USER][i];
        if (t->tag >> 47 == 0 && t->tag != tlb_invalid(i) && look(v, t->tag, &tr))
            map(v, d, s, t->tag, &tr, &r);
    }
    map_run(s, &r);
}

/* --- flushes ----------------------------------------------------------------------------------------------- */

static void check_page(struct soft_vcpu *v, struct direct *d, struct direct_slot *s, struct region *g, uint64_t *page,
                       uint64_t gva, uint64_t size)
{
    if (!still_right(v, *page, gva, size) || !remember(v, s, g, *page, gva, size))
        unmap(d, s, g, page, gva, size);
}

/* One after another, in the order of addresses: what goes, goes by few calls. */
static void check_region(struct soft_vcpu *v, struct direct *d, struct direct_slot *s, struct region *g)
{
    bool same = pages_same_path(v, g);
    g->known &= same;
    if (g->large && !same)
        check_page(v, d, s, g, &g->large, g->base, LARGE);
    const volatile uint64_t *table = same ? pages_table(v, g) : NULL;
    for (unsigned i = 0; !s->clear && pages_mapped(g, &i); i++) {
        d->stats.checked++;
        if (!same || !pages_same(g, table, i))
            check_page(v, d, s, g, &g->page[i], g->base + i * PAGE, PAGE);
    }
}

/* Of a large page all that is mapped is meant, as one or in pieces. */
static void flush_page(struct soft_vcpu *v, struct direct *d, struct direct_slot *s, uint64_t gva)
{
    struct region *g = pages_region(s, gva);
    if (g && pages_of_large(g))
        check_region(v, d, s, g);
    else if (g)
        unmap(d, s, g, &g->page[PAGE_INDEX(gva)], gva & -PAGE, PAGE);
}

static void check_all(struct soft_vcpu *v, struct direct *d, struct direct_slot *s)
{
    struct region *g;
    for (unsigned i = 0; (g = pages_next(s, &i)) && !s->clear;)
        check_region(v, d, s, g);
}

/* A page that may be written and holds translated code since it was mapped. */
static void protect(struct direct *d, struct direct_slot *s, struct region *g, uint64_t *page, uint64_t gva,
                    uint64_t size)
{
    uint64_t first = *page & -PAGE;
    if (!(*page & PROT_WRITE))
        return;
    for (unsigned i = 0; i < s->n_code; i++)
        if (s->code[i] >= first && s->code[i] < first + size) {
            unmap(d, s, g, page, gva, size);
            return;
        }
}

static void protect_code(struct direct *d, struct direct_slot *s)
{
    struct region *g;
    for (unsigned i = 0; (g = pages_next(s, &i));) {
        protect(d, s, g, &g->large, g->base, LARGE);
        for (unsigned k = 0; pages_mapped(g, &k); k++)
            protect(d, s, g, &g->page[k], g->base + k * PAGE, PAGE);
    }
}

static void not_writable(struct direct *d, const struct direct_slot *s, uint64_t page, uint64_t size)
{
    uint8_t bit = (uint8_t)(1u << (s - d->slots));
    for (uint64_t at = page >> 12, end = at + (size >> 12); (page & PROT_WRITE) && at < end; at++)
        d->writable[at] &= (uint8_t)~bit;
}

static void forget_pages(struct direct *d, struct direct_slot *s)
{
    const struct region *g;
    for (unsigned i = 0; (g = pages_next(s, &i));) {
        not_writable(d, s, g->large, LARGE);
        for (unsigned k = 0; pages_mapped(g, &k); k++)
            not_writable(d, s, g->page[k], PAGE);
    }
    pages_free(s);
}

void mirror_forget(struct direct *d, struct direct_slot *s)
{
    s->n_unmapped += s->n_pages;
    s->n_calls = 0;
    forget_pages(d, s);
    direct_call(s, SYS_munmap, 0, DIRECT_BASE, 0, 0);
    direct_call(s, SYS_munmap, DIRECT_END, DIRECT_TOP - DIRECT_END, 0, 0);
    s->clear = s->stale = false;
    s->n_pending = s->n_code = 0;
    d->stats.cleared++;
}

void mirror_refresh(struct soft_vcpu *v, struct direct *d, struct direct_slot *s)
{
    copies_check(d);
    if (s->clear)
        mirror_forget(d, s);
    if (s->stale)
        check_all(v, d, s);
    for (unsigned i = 0; i < s->n_pending && !s->stale && !s->clear; i++)
        flush_page(v, d, s, s->pending[i]);
    s->stale = false;
    s->n_pending = 0;
    if (s->fault)
        map_around(v, d, s, s->fault);
    s->fault = 0;
    if (s->n_code)
        protect_code(d, s);
    s->n_code = 0;
    if (s->clear)
        mirror_forget(d, s);
}

/* Called while the guest's SIMD state is in the registers: what is noted here is done later. */
void soft_direct_flush_page(struct soft_vcpu *v, uint64_t gva)
{
    struct direct *d = v->engine->direct;
    struct direct_slot *s = d ? d->current : NULL;
    if (!s || gva >> 63 || s->stale)
        return;
    if (s->n_pending == MIRROR_PENDING || (s->huge & huge_bit(gva)))
        s->stale = true;
    else
        s->pending[s->n_pending++] = gva;
}

void soft_direct_flush(struct soft_vcpu *v, int pcid)
{
    struct direct *d = v->engine->direct;
    for (unsigned i = 0; d && i < DIRECT_SLOTS; i++)
        if (pcid < 0 || d->slots[i].pcid == pcid)
            d->slots[i].stale = true;
}

void soft_direct_cr3(struct soft_vcpu *v, bool keep)
{
    struct direct *d = v->engine->direct;
    if (!d)
        return;
    const uint64_t root = direct_root(v);
    const uint16_t pcid = direct_pcid(v);
    if ((root ^ d->root) & ~0x1fffull) /* a kernel that hides from its programs has two roots side by side */
        d->loads++;
    d->root = root;
    if (!keep)
        soft_direct_flush(v, v->cpu.cr4 & CR4_PCIDE ? pcid : -1);
    d->current = NULL;
    for (unsigned i = 0; i < DIRECT_SLOTS; i++)
        if (d->slots[i].state == SLOT_READY && d->slots[i].root == root && d->slots[i].pcid == pcid)
            d->current = &d->slots[i];
}

void soft_direct_code(struct engine *e, uint64_t page)
{
    struct direct *d = e->direct;
    if (!d || !d->writable[page])
        return;
    for (unsigned i = 0; i < DIRECT_SLOTS; i++) {
        struct direct_slot *s = &d->slots[i];
        if (!(d->writable[page] >> i & 1))
            continue;
        if (s->n_code == MIRROR_PENDING)
            s->clear = true;
        else
            s->code[s->n_code++] = page << 12;
        d->writable[page] &= (uint8_t) ~(1u << i);
    }
}
