/*
 * The page walk.  SDM vol. 3, 4.3 (32-bit), 4.4 (PAE), 4.5 (4-level and 5-level), 4.6 (access
 * rights), 4.7 (error codes), 4.8 (accessed and dirty).
 *
 *      63  62..52   51..M  M-1..12   11..9  8  7   6  5  4   3   2   1   0
 *      NX  software  zero   address  soft   G  PS  D  A  PCD PWT U/S R/W P      (PS: PAT in a 4K leaf)
 *
 * Entries are read once, atomically: another vCPU may change them meanwhile.  A and D are set by
 * compare-and-swap against the value the walk used; when that fails the walk starts over.
 */
#include "cpu/cpu_int.h"
#include "memory/memory.h"

/* One walk's findings: the entries it used and the rights of all levels together. */
struct walk {
    uint64_t gva;
    unsigned n;          /* entries used; the last is the leaf */
    unsigned entry_size; /* 4 or 8 */
    const void *where[5];
    uint64_t value[5];
    uint64_t all;   /* AND of all: W, U and A count */
    uint64_t any;   /* OR of all: NX counts */
    unsigned shift; /* log2 of the page's size */
    uint64_t frame;
};

enum { WALK_OK, WALK_ABSENT, WALK_RESERVED };

/* Bits that must be zero at a level whose entries span 1 << shift; indexed by (shift - 12) / 9. */
static inline uint64_t reserved_bits(const struct cpu *cpu, unsigned shift, uint64_t entry)
{
    uint64_t bits = cpu_phys_reserved(cpu) | (cpu->efer & EFER_NXE ? 0 : PTE_NX);
    if (shift > 30 || (shift == 30 && !(cpu->cpuid && cpu->cpuid->gbpages)))
        bits |= PTE_PS;
    if (shift > 12 && (entry & PTE_PS))
        bits |= ((1ull << shift) - 1) & ~0x1fffull; /* bit 12 is PAT */
    return bits;
}

/* The levels with 8-byte entries, from the table at `table` whose entries span 1 << shift. */
static inline int walk_levels(const struct cpu *cpu, struct walk *w, uint64_t table, unsigned shift)
{
    for (;; shift -= 9) {
        const uint64_t *p = memory_hva_read(cpu->memory, table + ((w->gva >> shift) & 511) * 8, 8);
        uint64_t entry = p ? __atomic_load_n(p, __ATOMIC_RELAXED) : 0;
        if (!(entry & PTE_P))
            return WALK_ABSENT;
        if (__builtin_expect((entry & reserved_bits(cpu, shift, entry)) != 0, 0))
            return WALK_RESERVED;
        w->where[w->n] = p;
        w->value[w->n++] = entry;
        w->all &= entry;
        w->any |= entry;
        table = entry & PTE_ADDR;
        if (shift == 12 || (entry & PTE_PS)) {
            w->shift = shift;
            w->frame = table & ~((1ull << shift) - 1);
            return WALK_OK;
        }
    }
}

/* PAE: the four top entries carry no rights and no A bit (SDM table 4-8).  They are read here and
 * not latched at MOV CR3: as AMD's processors do, and what Intel's manual lets software expect. */
static int walk_pae(const struct cpu *cpu, struct walk *w)
{
    const uint64_t *p = memory_hva_read(cpu->memory, (cpu->cr3 & 0xffffffe0) + ((w->gva >> 30) & 3) * 8, 8);
    uint64_t entry = p ? __atomic_load_n(p, __ATOMIC_RELAXED) : 0;
    if (!(entry & PTE_P))
        return WALK_ABSENT;
    if (entry & (cpu_phys_reserved(cpu) | 0xfff00000000001e6ull))
        return WALK_RESERVED;
    return walk_levels(cpu, w, entry & PTE_ADDR, 21);
}

static int walk_32(const struct cpu *cpu, struct walk *w)
{
    uint64_t table = cpu->cr3 & 0xfffff000;
    w->entry_size = 4;
    for (unsigned shift = 22;; shift = 12) {
        const uint32_t *p = memory_hva_read(cpu->memory, table + ((w->gva >> shift) & 1023) * 4, 4);
        uint32_t entry = p ? __atomic_load_n(p, __ATOMIC_RELAXED) : 0;
        if (!(entry & PTE_P))
            return WALK_ABSENT;
        bool large = shift == 22 && (entry & PTE_PS) && (cpu->cr4 & CR4_PSE);
        if (large && (entry & (1u << 21)))
            return WALK_RESERVED;
        w->where[w->n] = p;
        w->value[w->n++] = entry;
        w->all &= entry;
        table = entry & 0xfffff000;
        if (large || shift == 12) {
            w->shift = shift;
            /* PSE-36: bits 20..13 are address bits 39..32 */
            w->frame = large ? (entry & 0xffc00000) | (uint64_t)((entry >> 13) & 0xff) << 32 : table;
            return WALK_OK;
        }
    }
}

static inline int walk_tables(const struct cpu *cpu, struct walk *w, uint64_t gva)
{
    w->n = 0;
    w->entry_size = 8;
    w->all = ~0ull;
    w->any = 0;
    w->gva = gva;
    if (__builtin_expect((cpu->efer & EFER_LMA) != 0, 1))
        return walk_levels(cpu, w, cpu->cr3 & PTE_ADDR, cpu->cr4 & CR4_LA57 ? 48 : 39);
    w->gva = (uint32_t)gva;
    return cpu->cr4 & CR4_PAE ? walk_pae(cpu, w) : walk_32(cpu, w);
}

/* SDM 4.6.1: true when the access is allowed by the rights found. */
static inline bool walk_allowed(const struct cpu *cpu, const struct walk *w, unsigned access, bool user)
{
    bool user_page = w->all & PTE_U;
    if (access & ACCESS_EXEC) {
        if (w->any & PTE_NX)
            return false;
        return user ? user_page : !(user_page && (cpu->cr4 & CR4_SMEP));
    }
    if (user)
        return user_page && (!(access & ACCESS_WRITE) || (w->all & PTE_W));
    /* At CPL 3 a supervisor access can only be implicit. */
    bool ac = (cpu->rflags & FL_AC) && !(access & ACCESS_IMPLICIT) && cpu->cpl < 3;
    if (user_page && (cpu->cr4 & CR4_SMAP) && !ac)
        return false;
    return !(access & ACCESS_WRITE) || (w->all & PTE_W) || !(cpu->cr0 & CR0_WP);
}

static inline bool entry_or(const struct walk *w, unsigned i, uint64_t bits)
{
    if (w->entry_size == 8) {
        uint64_t seen = w->value[i];
        return __atomic_compare_exchange_n((uint64_t *)w->where[i], &seen, seen | bits, false, __ATOMIC_SEQ_CST,
                                           __ATOMIC_RELAXED);
    }
    uint32_t seen = w->value[i];
    return __atomic_compare_exchange_n((uint32_t *)w->where[i], &seen, seen | (uint32_t)bits, false, __ATOMIC_SEQ_CST,
                                       __ATOMIC_RELAXED);
}

/* Sets what is missing of A and D; false: an entry changed under us. */
static bool walk_mark(const struct memory *m, struct walk *w, bool write)
{
    for (unsigned i = 0; i < w->n; i++) {
        uint64_t bits = PTE_A | (write && i == w->n - 1 ? PTE_D : 0);
        if ((w->value[i] & bits) == bits)
            continue;
        if (memory_is_watched(m))
            memory_announce(m, (uint64_t)((const uint8_t *)w->where[i] - m->base), w->entry_size, true);
        if (!entry_or(w, i, bits))
            return false;
        w->value[i] |= bits;
    }
    return true;
}

static inline void walk_result(const struct cpu *cpu, const struct walk *w, struct translation *out)
{
    uint64_t leaf = w->value[w->n - 1];
    out->page_size = 1ull << w->shift;
    out->gpa = w->frame | (w->gva & (out->page_size - 1));
    out->writable = w->all & PTE_W;
    out->user = w->all & PTE_U;
    out->no_exec = (w->any & PTE_NX) != 0;
    out->global = (leaf & PTE_G) && (cpu->cr4 & CR4_PGE);
    out->accessed = w->all & PTE_A;
    out->dirty = leaf & PTE_D;
}

static void identity(uint64_t gva, struct translation *out)
{
    *out = (struct translation){.gpa = (uint32_t)gva, .page_size = 4096, .writable = true, .user = true, .dirty = true};
}

/* SDM 4.7: I/D is reported only where instruction fetches can be told apart. */
static int walk_fault(struct cpu *cpu, uint64_t gva, unsigned access, bool user, uint32_t error)
{
    if (access & ACCESS_WRITE)
        error |= PFERR_W;
    if (user)
        error |= PFERR_U;
    if ((access & ACCESS_EXEC) && ((cpu->cr4 & CR4_SMEP) || ((cpu->cr4 & CR4_PAE) && (cpu->efer & EFER_NXE))))
        error |= PFERR_I;
    return cpu_raise_page_fault(cpu, gva, error);
}

/* An entry of a page table inside RAM (whose parts are whole pages), or NULL; that, too, while memory is watched, which
 * is the general walk's to announce. */
static inline const uint64_t *table_entry(const struct memory *m, uint64_t gpa)
{
    bool ram = (gpa < m->low_size || gpa - MEMORY_HOLE_END < m->high_size) && !memory_is_watched(m);
    return __builtin_expect(ram, 1) ? (const uint64_t *)(m->base + gpa) : NULL;
}

/* Long mode with four levels, nothing to set and nothing wrong: nearly every walk.  Anything else is
 * left, without a trace, to the general walk (false). */
static inline bool walk_fast(const struct cpu *cpu, uint64_t gva, unsigned access, bool user, struct translation *out)
{
    const uint64_t zero = cpu_phys_reserved(cpu) | (cpu->efer & EFER_NXE ? 0 : PTE_NX);
    struct walk w; /* what is not set here is not looked at: clearing it all costs as much as the walk */
    uint64_t table = cpu->cr3 & PTE_ADDR, entry = 0;
    w.gva = gva;
    w.all = ~0ull;
    w.any = 0;
#pragma GCC unroll 4
    for (w.shift = 39; w.shift >= 12; w.shift -= 9) {
        const uint64_t *p = table_entry(cpu->memory, table + ((gva >> w.shift) & 511) * 8);
        if (!p)
            return false;
        entry = __atomic_load_n(p, __ATOMIC_RELAXED);
        w.all &= entry;
        w.any |= entry;
        table = entry & PTE_ADDR;
        if (w.shift == 12 || (entry & PTE_PS))
            break;
        if (!(entry & PTE_P))
            return false;
    }
    if ((w.all & (PTE_P | PTE_A)) != (PTE_P | PTE_A) || (w.any & zero) ||
        (w.shift > 12 && (w.shift > 21 || (entry & 0x1fe000))))
        return false;
    if (((access & ACCESS_WRITE) && !(entry & PTE_D)) || !walk_allowed(cpu, &w, access, user))
        return false;
    w.n = 1;
    w.value[0] = entry;
    w.frame = table & ~((1ull << w.shift) - 1);
    walk_result(cpu, &w, out);
    return true;
}

static int walk_slow(struct cpu *cpu, uint64_t gva, unsigned access, bool user, struct translation *out)
{
    struct walk w;
    bool write = access & ACCESS_WRITE;
    if (!(cpu->efer & EFER_LMA))
        gva = (uint32_t)gva;
    do {
        int found = walk_tables(cpu, &w, gva);
        if (found != WALK_OK)
            return walk_fault(cpu, gva, access, user, found == WALK_RESERVED ? PFERR_P | PFERR_RSVD : 0);
        if (!walk_allowed(cpu, &w, access, user))
            return walk_fault(cpu, gva, access, user, PFERR_P);
    } while (!walk_mark(cpu->memory, &w, write));
    walk_result(cpu, &w, out);
    out->accessed = true;
    return CPU_OK;
}

int cpu_walk(struct cpu *cpu, uint64_t gva, unsigned access, bool user, struct translation *out)
{
    if (!(cpu->cr0 & CR0_PG)) {
        identity(gva, out);
        return CPU_OK;
    }
    if ((cpu->efer & EFER_LMA) && !(cpu->cr4 & CR4_LA57) && walk_fast(cpu, gva, access, user, out))
        return CPU_OK;
    return walk_slow(cpu, gva, access, user, out);
}

bool cpu_walk_probe(struct cpu *cpu, uint64_t gva, struct translation *out)
{
    struct walk w;
    if (!(cpu->cr0 & CR0_PG)) {
        identity(gva, out);
        return true;
    }
    if ((cpu->efer & EFER_LMA) && !(cpu->cr4 & CR4_LA57) && walk_fast(cpu, gva, ACCESS_READ, true, out))
        return true; /* a user page that has been used, as nearly all that are asked for */
    if (walk_tables(cpu, &w, gva) != WALK_OK)
        return false;
    walk_result(cpu, &w, out);
    return true;
}
