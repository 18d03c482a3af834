/*
 * Which of the guest's pages are mapped in the process that runs its code: a TLB in the form of mappings.
 *
 * A page is mapped when it is missed, with some around it, as far as the guest's tables have marked them accessed;
 * writable only when they are marked dirty; and never writable when it holds translated code, so that a store to it
 * comes to tier 1.  What the guest flushes is noted and done before its code runs the next time: single pages by
 * their address; more than those by comparing every mapping with the tables, since what a flush promises is that
 * nothing is used that is not in them.
 */
#include "engine/soft/direct.h"

#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#define PAGE 4096ull
#define LARGE (512 * PAGE)
#define LOWEST 0x10000ull /* where a host lets its processes map */
#define AROUND 16u        /* pages looked at for a miss: they and the missed one are aligned to so many */

/* --- the table of pieces ----------------------------------------------------------------------------------- */

static unsigned place(const struct direct_slot *s, uint64_t key)
{
    return (unsigned)(key * 0x9e3779b97f4a7c15ull >> 40) & (s->n_places - 1);
}

static unsigned next_place(const struct direct_slot *s, unsigned i)
{
    return (i + 1) & (s->n_places - 1);
}

static struct piece *find(const struct direct_slot *s, uint64_t key)
{
    for (unsigned i = place(s, key); s->n_places && s->pieces[i].gva; i = next_place(s, i))
        if (s->pieces[i].gva == key)
            return &s->pieces[i];
    return NULL;
}

static void insert(struct direct_slot *s, uint64_t key, uint64_t gpa)
{
    unsigned i = place(s, key);
    while (s->pieces[i].gva && s->pieces[i].gva != key)
        i = next_place(s, i);
    s->n_pieces += !s->pieces[i].gva;
    s->pieces[i] = (struct piece){key, gpa};
}

/* What was put behind it for want of room moves up. */
static void erase(struct direct_slot *s, struct piece *p)
{
    unsigned hole = (unsigned)(p - s->pieces), mask = s->n_places - 1;
    s->n_pieces--;
    for (unsigned i = next_place(s, hole); s->pieces[i].gva; i = next_place(s, i)) {
        unsigned home = place(s, s->pieces[i].gva);
        if (((i - home) & mask) >= ((i - hole) & mask)) {
            s->pieces[hole] = s->pieces[i];
            hole = i;
        }
    }
    s->pieces[hole].gva = 0;
}

/* Room for the pieces of one miss or prefill; at most half of the places are taken. */
static bool make_room(struct direct_slot *s)
{
    unsigned n = s->n_places, old = n;
    while (n < 2 * (s->n_pieces + MIRROR_ROOM))
        n = n ? 2 * n : 1024;
    if (n == old)
        return true;
    struct piece *from = s->pieces, *to = calloc(n, sizeof *to);
    if (!to)
        return false;
    s->pieces = to, s->n_places = n, s->n_pieces = 0;
    for (unsigned i = 0; i < old; i++)
        if (from[i].gva)
            insert(s, from[i].gva, from[i].gpa);
    free(from);
    return true;
}

static uint64_t size_of(uint64_t key)
{
    return key & MIRROR_LARGE ? LARGE : PAGE;
}

static void mark_writable(struct direct *d, const struct direct_slot *s, uint64_t gpa, uint64_t size)
{
    uint8_t bit = (uint8_t)(1u << (s - d->slots));
    for (uint64_t page = gpa >> 12; page < (gpa + size) >> 12; page++)
        d->writable[page] |= bit;
}

static void unmap(struct direct *d, struct direct_slot *s, struct piece *p)
{
    if (direct_calls_full(s)) {
        s->clear = true;
        return;
    }
    direct_call(s, SYS_munmap, p->gva & -PAGE, size_of(p->gva), 0, 0);
    d->stats.unmapped++;
    erase(s, p);
}

static void unmap_page(struct direct *d, struct direct_slot *s, uint64_t gva)
{
    struct piece *p = find(s, gva & -PAGE);
    if (p)
        unmap(d, s, p);
    p = find(s, (gva & -LARGE) | MIRROR_LARGE);
    if (p)
        unmap(d, s, p);
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
        return (p > page && p[-1] == 0xf3 && p[2] >= 0xf8 && d->has_rdpid) ||
               ((p[2] & 0x38) == 0x20 && p[2] < 0xc0 && xcr0_differs(d) && !saves_the_same(d, page, p));
    case 0x01: /* xgetbv: a bit more is of no use where CPUID does not announce what it is for */
        return p[2] == 0xd0 && d->cpuid_tells && xcr0_differs(d);
    case 0xae: /* xsave, xsaveopt: a program may want all that there is to be saved */
        return (p[2] & 0x28) == 0x20 && p[2] < 0xc0 && xcr0_differs(d) && !saves_the_same(d, page, p);
    default:
        return false;
    }
}

static uint8_t byte_at(struct soft_vcpu *v, uint64_t gva)
{
    struct translation tr;
    const uint8_t *p = cpu_walk_probe(&v->cpu, gva, &tr) ? memory_hva(v->engine->config.memory, tr.gpa, 1) : NULL;
    return p ? *p : 0;
}

bool mirror_hidden(const struct direct_slot *s, uint64_t gva)
{
    const struct piece *p = find(s, gva & -PAGE);
    return p && !(p->gpa & PROT_EXEC);
}

static bool hides(struct soft_vcpu *v, const struct direct *d, uint64_t gva, uint64_t gpa)
{
    uint8_t bytes[4096 + 4]; /* one of the page before, three of the next */
    bytes[0] = byte_at(v, gva - 1);
    cpu_copy(bytes + 1, d->engine->config.memory->base + gpa, 4096);
    for (unsigned i = 0; i < 3; i++)
        bytes[4097 + i] = byte_at(v, gva + 4096 + i);
    for (unsigned i = 0; i < 4097; i++)
        if (bytes[i] == 0x0f && tells(d, bytes, bytes + i))
            return true;
    return false;
}

/* --- mapping ----------------------------------------------------------------------------------------------- */

static bool has_code(const struct engine *e, uint64_t gpa, uint64_t size)
{
    for (uint64_t page = gpa >> 12; page < (gpa + size) >> 12; page++)
        if (e->code_granules[page])
            return true;
    return false;
}

static unsigned protection(struct soft_vcpu *v, const struct direct *d, const struct translation *tr, uint64_t gva,
                           uint64_t gpa, uint64_t size)
{
    unsigned prot = PROT_READ;
    if (tr->writable && tr->dirty && !has_code(d->engine, gpa, size))
        prot |= PROT_WRITE;
    if (!tr->no_exec && size == PAGE && !hides(v, d, gva, gpa))
        prot |= PROT_EXEC;
    return prot;
}

static uint64_t file_offset(const struct memory *m, uint64_t gpa)
{
    return gpa < m->low_size ? gpa : gpa - MEMORY_HOLE_END + m->low_size;
}

static bool outside(uint64_t gva, uint64_t size)
{
    return gva < LOWEST || gva + size > DIRECT_TOP || (gva < DIRECT_END && gva + size > DIRECT_BASE);
}

/* The mappings that one call is for: they follow one another in both address spaces. */
struct run {
    uint64_t gva, gpa, size;
    unsigned prot;
};

static void map_run(struct direct *d, struct direct_slot *s, struct run *r)
{
    if (r->size)
        direct_call(s, SYS_mmap, r->gva, r->size, r->prot, file_offset(d->engine->config.memory, r->gpa));
    r->size = 0;
}

/* As the guest's tables have it.  false: it cannot be mapped. */
static bool map(struct soft_vcpu *v, struct direct *d, struct direct_slot *s, uint64_t gva,
                const struct translation *tr, struct run *r)
{
    const struct memory *m = d->engine->config.memory;
    uint64_t size = PAGE, gpa = tr->gpa & -PAGE;
    gva &= -PAGE;
    if (tr->page_size >= LARGE && tr->no_exec && memory_is_ram(m, gpa & -LARGE, LARGE) && gva >= LARGE &&
        !has_code(d->engine, gpa & -LARGE, LARGE))
        size = LARGE, gva &= -LARGE, gpa &= -LARGE;
    if (!memory_is_ram(m, gpa, size) || outside(gva, size) || tr->global || s->n_pieces >= MIRROR_PIECES_MAX)
        return false;
    unsigned prot = protection(v, d, tr, gva, gpa, size);
    uint64_t key = gva | (size == LARGE ? MIRROR_LARGE : 0);
    if (size == PAGE && find(s, (gva & -LARGE) | MIRROR_LARGE))
        return true; /* was one page, is many, and nobody has flushed it yet */
    struct piece *old = find(s, key);
    if (old && old->gpa == (gpa | prot))
        return true;
    if (direct_calls_full(s))
        return false;
    if (r->size && (r->gva + r->size != gva || r->gpa + r->size != gpa || r->prot != prot))
        map_run(d, s, r);
    if (!r->size)
        *r = (struct run){gva, gpa, 0, prot};
    r->size += size;
    insert(s, key, gpa | prot);
    if (prot & PROT_WRITE)
        mark_writable(d, s, gpa, size);
    d->stats.mapped++;
    return true;
}

/* A page that is there, with what is marked; false: translated code would find out more. */
static bool look(struct soft_vcpu *v, uint64_t gva, struct translation *tr)
{
    return cpu_walk_probe(&v->cpu, gva, tr) && tr->user && tr->accessed;
}

static void map_around(struct soft_vcpu *v, struct direct *d, struct direct_slot *s, uint64_t gva)
{
    struct run r = {0};
    uint64_t first = gva & -(AROUND * PAGE);
    for (uint64_t at = first; at < first + AROUND * PAGE; at += PAGE) {
        struct translation tr;
        if (look(v, at, &tr))
            map(v, d, s, at, &tr, &r);
    }
    map_run(d, s, &r);
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
    if (access == ACCESS_WRITE && memory_is_ram(d->engine->config.memory, tr.gpa & -PAGE, PAGE))
        soft_invalidate(d->engine, tr.gpa & -PAGE, PAGE); /* code of before it ran here, which it can do without */
    struct piece *old = find(s, gva & -PAGE), *large = find(s, (gva & -LARGE) | MIRROR_LARGE);
    if (large) /* what it was missed for is not there, whatever we thought */
        erase(s, large);
    if (old)
        erase(s, find(s, gva & -PAGE));
    if (!make_room(s) || !map(v, d, s, gva, &tr, &r)) {
        map_run(d, s, &r);
        s->clear |= s->n_pieces >= MIRROR_PIECES_MAX;
        return DIRECT_REFUSED;
    }
    map_run(d, s, &r);
    const struct piece *p = find(s, gva & -PAGE);
    if (!p)
        p = find(s, (gva & -LARGE) | MIRROR_LARGE);
    if (access == ACCESS_EXEC && !(p->gpa & PROT_EXEC))
        return DIRECT_HIDDEN;
    if (access == ACCESS_WRITE && !(p->gpa & PROT_WRITE))
        return DIRECT_CODE;
    d->stats.misses++;
    map_around(v, d, s, gva);
    return DIRECT_MAPPED;
}

void mirror_prefill(struct soft_vcpu *v, struct direct *d, struct direct_slot *s)
{
    struct run r = {0};
    struct translation tr;
    if (!make_room(s))
        return;
    for (unsigned i = 0; i < TLB_SIZE && s->n_calls < DIRECT_CALLS / 2; i++) {
        const struct tlb_entry *t = &v->tlb[MMU_USER][0][i];
        if (t->tag >> 47 == 0 && look(v, t->tag, &tr))
            map(v, d, s, t->tag, &tr, &r);
    }
    for (unsigned i = 0; i < ITLB_SIZE && s->n_calls < DIRECT_CALLS / 2; i++) {
        const struct itlb_entry *t = &v->itlb[MMU_USER][i];
        if (t->tag >> 47 == 0 && look(v, t->tag, &tr))
            map(v, d, s, t->tag, &tr, &r);
    }
    map_run(d, s, &r);
}

/* --- flushes ----------------------------------------------------------------------------------------------- */

/* Is a mapping what the tables say?  Less than they allow is fine. */
static bool still_right(struct soft_vcpu *v, const struct piece *p)
{
    struct translation tr;
    uint64_t prot = p->gpa & (PAGE - 1);
    if (!look(v, p->gva & -PAGE, &tr) || (tr.gpa & -PAGE) != (p->gpa & -PAGE))
        return false;
    if ((p->gva & MIRROR_LARGE) && tr.page_size < LARGE)
        return false;
    return !((prot & PROT_EXEC) && tr.no_exec) && (!(prot & PROT_WRITE) || (tr.writable && tr.dirty));
}

static void check_all(struct soft_vcpu *v, struct direct *d, struct direct_slot *s)
{
    for (unsigned i = 0; i < s->n_places && !s->clear; i++)
        while (s->pieces[i].gva && !s->clear) {
            d->stats.checked++;
            if (still_right(v, &s->pieces[i]))
                break;
            unmap(d, s, &s->pieces[i]); /* another may move up to its place */
        }
}

/* Pages that hold translated code since they were mapped. */
static void protect_code(struct direct *d, struct direct_slot *s)
{
    for (unsigned i = 0; i < s->n_places && !s->clear; i++) {
        while (s->pieces[i].gva && !s->clear && (s->pieces[i].gpa & PROT_WRITE)) {
            uint64_t first = s->pieces[i].gpa & -PAGE, end = first + size_of(s->pieces[i].gva);
            bool hit = false;
            for (unsigned k = 0; k < s->n_code; k++)
                hit |= s->code[k] >= first && s->code[k] < end;
            if (!hit)
                break;
            unmap(d, s, &s->pieces[i]);
        }
    }
}

static void forget_pieces(struct direct *d, struct direct_slot *s)
{
    uint8_t bit = (uint8_t)(1u << (s - d->slots));
    for (unsigned i = 0; i < s->n_places && s->n_pieces; i++) {
        if (!s->pieces[i].gva)
            continue;
        uint64_t gpa = s->pieces[i].gpa & -PAGE, end = gpa + size_of(s->pieces[i].gva);
        for (uint64_t page = gpa >> 12; page < end >> 12; page++)
            d->writable[page] &= (uint8_t)~bit;
        s->pieces[i].gva = 0;
        s->n_pieces--;
    }
}

void mirror_forget(struct direct *d, struct direct_slot *s)
{
    forget_pieces(d, s);
    s->n_calls = 0;
    direct_call(s, SYS_munmap, 0, DIRECT_BASE, 0, 0);
    direct_call(s, SYS_munmap, DIRECT_END, DIRECT_TOP - DIRECT_END, 0, 0);
    s->clear = s->stale = false;
    s->n_pending = s->n_code = 0;
    d->stats.cleared++;
}

void mirror_refresh(struct soft_vcpu *v, struct direct *d, struct direct_slot *s)
{
    if (s->clear)
        mirror_forget(d, s);
    if (s->stale)
        check_all(v, d, s);
    for (unsigned i = 0; i < s->n_pending && !s->stale && !s->clear; i++)
        unmap_page(d, s, s->pending[i]);
    if (s->n_code)
        protect_code(d, s);
    s->stale = false;
    s->n_pending = s->n_code = 0;
    if (s->clear)
        mirror_forget(d, s);
    if (s->fault && make_room(s))
        map_around(v, d, s, s->fault);
    s->fault = 0;
}

/* Called while the guest's SIMD state is in the registers: what is noted here is done later. */
void soft_direct_flush_page(struct soft_vcpu *v, uint64_t gva)
{
    struct direct *d = v->engine->direct;
    struct direct_slot *s = d ? d->current : NULL;
    if (!s || gva >> 63 || s->stale)
        return;
    if (s->n_pending == MIRROR_PENDING || (v->large_ever[0][0] >> (gva >> 21 & 63) & 1) ||
        (v->large_ever[0][1] >> (gva >> 30 & 63) & 1))
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
    bool tagged = v->cpu.cr4 & CR4_PCIDE;
    uint16_t pcid = tagged ? v->cpu.cr3 & 0xfff : 0;
    uint64_t root = v->cpu.cr3 & 0x000ffffffffff000ull;
    if (!keep)
        soft_direct_flush(v, tagged ? pcid : -1);
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
