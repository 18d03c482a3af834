/*
 * The soft MMU's slow path: TLB refills, page crossings, MMIO, writes to translated code, masked
 * accesses; and the flushes that the architecture asks for.
 *
 * Compiled without SIMD: the guest's SIMD state is in the host's registers unless soft_fpu_park was
 * called.
 */
#include "engine/soft/soft_int.h"

const void *soft_slow(struct soft_vcpu *v);
const void *helper_no_segment(struct soft_vcpu *v, const struct site *s);
const void *soft_window(struct soft_vcpu *v);
const void *soft_demote(struct soft_vcpu *v);
const void *soft_commit(struct soft_vcpu *v);

static unsigned mmu_of(const struct soft_vcpu *v)
{
    return v->mode & MODE_MMU;
}

static void dirty_add(struct dirty_list *d, unsigned index)
{
    if (d->n < DIRTY_MAX)
        d->index[d->n] = (uint16_t)index;
    if (d->n <= DIRTY_MAX)
        d->n++;
}

/* --- breakpoints on data (SDM vol. 3, 17.2.4) ---------------------------------------------------------- */

static void watch_one(struct soft_vcpu *v, unsigned i)
{
    static const uint8_t lengths[4] = {1, 2, 8, 4};
    uint64_t dr7 = v->cpu.dr7, length = lengths[dr7 >> (18 + 4 * i) & 3], first = v->cpu.dr[i] & ~(length - 1);
    unsigned kind = dr7 >> (16 + 4 * i) & 3;
    if ((dr7 >> (2 * i) & 3) && (kind & 1))
        v->watch[v->n_watch++] = (struct watch){
            .first = first, .last = first + length - 1, .reads = kind == 3, .bit = 1u << i};
}

static void tlb_flush(struct soft_vcpu *v, unsigned mmu, bool globals_too);

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
        tlb_flush(v, mmu, true);
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

/* --- filling ------------------------------------------------------------------------------------- */

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
    unsigned half = gva >> 63;
    if (tr->page_size >= 1u << 30)
        v->large_bloom[half][1] |= 1ull << (gva >> 30 & 63);
    else if (tr->page_size > 4096)
        v->large_bloom[half][0] |= 1ull << (gva >> 21 & 63);
}

/* Enters a RAM page into the TLBs that its permissions allow.  A page that holds translated code stays
 * out of the write TLB, and a clean one too, so that its dirty bit is set by the walk. */
static void tlb_fill(struct soft_vcpu *v, unsigned mmu, uint64_t gva, const struct translation *tr, uint8_t *page)
{
    struct engine *e = v->engine;
    if (!soft_watched(v, gva, false))
        tlb_insert(v, mmu, 0, gva, page, tr->global);
    bool may_write = tr->dirty && (tr->writable || (mmu != MMU_USER && !(v->cpu.cr0 & CR0_WP)));
    if (may_write && !e->code_granules[tr->gpa >> 12] && !soft_watched(v, gva, true))
        tlb_insert(v, mmu, 1, gva, page, tr->global);
    note_large(v, gva, tr);
}

static uint64_t granule_mask(uint64_t gpa, uint64_t len)
{
    unsigned first = gpa >> 6 & 63, last = (gpa + len - 1) >> 6 & 63;
    return (~0ull >> (63 - (last - first))) << first;
}

/* Does [gpa, gpa+len), inside one page, hold translated code? */
static bool holds_code(const struct engine *e, uint64_t gpa, uint64_t len)
{
    uint64_t page = gpa >> 12;
    return page < e->n_pages && (e->code_granules[page] & granule_mask(gpa, len));
}

/* --- pieces: an access cut at page boundaries ----------------------------------------------------- */

struct piece {
    uint64_t gpa;
    uint8_t *hva;         /* NULL: not RAM */
    unsigned offset, len; /* in the access */
};

static uint64_t wrap(const struct soft_vcpu *v, uint64_t gva)
{
    return v->mode & MODE_64 ? gva : (uint32_t)gva;
}

static int piece_translate(struct soft_vcpu *v, uint64_t gva, unsigned access, struct piece *p, struct translation *tr)
{
    if (cpu_walk(&v->cpu, gva, access, mmu_of(v) == MMU_USER, tr))
        return CPU_FAULT;
    v->stats.walks++;
    p->gpa = tr->gpa;
    p->hva = memory_hva(v->engine->config.memory, tr->gpa, p->len);
    return 0;
}

/* A read of the page at the present privilege, with no fault recorded when it is not allowed. */
static bool cpu_walk_probe_access(struct soft_vcpu *v, uint64_t gva, struct translation *tr)
{
    struct exception saved = v->cpu.exc;
    v->stats.walks++;
    if (!cpu_walk(&v->cpu, gva, ACCESS_READ, mmu_of(v) == MMU_USER, tr))
        return true;
    v->cpu.exc = saved;
    return false;
}

/* --- MMIO ------------------------------------------------------------------------------------------ */

static void mmio(struct soft_vcpu *v, uint64_t gpa, uint8_t *buf, unsigned len, bool write)
{
    struct bus *bus = v->engine->config.bus;
    uint64_t start = soft_ticks(v->engine);
    soft_fpu_park(v);
    v->stats.slow_mmio++;
    while (len) {
        unsigned n = len >= 8 ? 8 : len >= 4 ? 4 : len >= 2 ? 2 : 1;
        while (gpa & (n - 1) & 7)
            n >>= 1;
        uint64_t value = 0;
        if (write) {
            cpu_copy(&value, buf, n);
            bus_write(bus, BUS_MEM, gpa, value, n);
        } else {
            value = bus_read(bus, BUS_MEM, gpa, n);
            cpu_copy(buf, &value, n);
        }
        gpa += n, buf += n, len -= n;
    }
    soft_ticks_nested(v, TIME_DEVICE, start);
}

/* --- masked accesses ------------------------------------------------------------------------------- */

static uint64_t read_k(unsigned k)
{
    uint64_t r = 0;
    switch (k) {
    case 1:
        __asm__ volatile("kmovq %%k1, %0" : "=r"(r));
        break;
    case 2:
        __asm__ volatile("kmovq %%k2, %0" : "=r"(r));
        break;
    case 3:
        __asm__ volatile("kmovq %%k3, %0" : "=r"(r));
        break;
    case 4:
        __asm__ volatile("kmovq %%k4, %0" : "=r"(r));
        break;
    case 5:
        __asm__ volatile("kmovq %%k5, %0" : "=r"(r));
        break;
    case 6:
        __asm__ volatile("kmovq %%k6, %0" : "=r"(r));
        break;
    case 7:
        __asm__ volatile("kmovq %%k7, %0" : "=r"(r));
        break;
    default:
        r = ~0ull;
    }
    return r;
}

#define YMM(n)                                                                                                         \
    case n:                                                                                                            \
        __asm__ volatile("vmovdqu %%ymm" #n ", (%0)" ::"r"(out) : "memory");                                           \
        break
static void read_ymm(unsigned n, uint8_t out[32])
{
    switch (n) {
        YMM(0);
        YMM(1);
        YMM(2);
        YMM(3);
        YMM(4);
        YMM(5);
        YMM(6);
        YMM(7);
        YMM(8);
        YMM(9);
        YMM(10);
        YMM(11);
        YMM(12);
        YMM(13);
        YMM(14);
        YMM(15);
    }
}

/* Which elements the instruction will really touch, bit i for element i. */
static uint64_t active_elements(const struct site *s)
{
    if (s->mask_kind == MASK_K) {
        uint64_t k = read_k(s->mask_reg);
        if (s->arg == 1) { /* broadcast: an element is used when any of its copies is */
            uint64_t used = 0;
            for (unsigned i = 0; i < s->arg2; i++)
                used |= (k >> i & 1) << i % (s->size / s->element);
            return used;
        }
        if (s->arg == 2) { /* compress, expand: packed from the start */
            unsigned n = (unsigned)__builtin_popcountll(
                k & (s->size / s->element >= 64 ? ~0ull : (1ull << s->size / s->element) - 1));
            return n >= 64 ? ~0ull : (1ull << n) - 1;
        }
        return k;
    }
    uint8_t ymm[32];
    uint64_t bits = 0;
    read_ymm(s->mask_reg, ymm);
    for (unsigned i = 0; i < s->size / s->element; i++)
        bits |= (uint64_t)(ymm[(i + 1) * s->element - 1] >> 7) << i;
    return bits;
}

static uint64_t active_bytes(const struct site *s)
{
    if (s->mask_kind == MASK_NONE)
        return ~0ull;
    uint64_t elements = active_elements(s), bytes = 0;
    unsigned n = s->size / s->element;
    for (unsigned i = 0; i < n && i < 64; i++)
        if (elements >> i & 1)
            bytes |= (s->element >= 8 ? 0xffull : (1ull << s->element) - 1) << i * s->element;
    return bytes;
}

/* --- the slow path ---------------------------------------------------------------------------------- */

static bool x87_pending(const struct soft_vcpu *v)
{
    uint16_t fsw;
    if (v->fpu_live)
        __asm__ volatile("fnstsw %0" : "=a"(fsw));
    else
        cpu_copy(&fsw, v->xsave + 2, 2);
    return fsw & 0x80;
}

/* 32-bit code: an operand in an empty segment, or a store to the code segment. */
const void *helper_no_segment(struct soft_vcpu *v, const struct site *s)
{
    if (s->mask_kind) {
        if (!v->fpu_live)
            soft_fpu_unpark(v);
        if (!active_bytes(s))
            return soft_code(v->engine, s->next);
    }
    if (s->x87 && x87_pending(v))
        cpu_raise(&v->cpu, EXC_MF);
    else
        cpu_raise_error(&v->cpu, EXC_GP, 0);
    return soft_deliver(v);
}

static bool misaligned_sse(const struct soft_vcpu *v)
{
    uint32_t mxcsr;
    __asm__ volatile("stmxcsr %0" : "=m"(mxcsr));
    return mxcsr & 1u << 17; /* AMD: packed operands need no alignment */
}

static const void *access_fault(struct soft_vcpu *v, const struct site *s)
{
    if (s->access & SITE_FLAGS)
        v->arith = (uint16_t)v->slow_flags;
    v->cpu.rip = soft_site_pc(v, s->block) + s->pc;
    soft_flags_in(v);
    if (s->x87 && x87_pending(v))
        cpu_raise(&v->cpu, EXC_MF);
    const void *next = soft_deliver(v);
    soft_flags_out(v);
    return next;
}

static uint8_t *bounce_at(struct soft_vcpu *v, uint64_t gva)
{
    return v->bounce_buffer + (gva & 4095); /* keeps every alignment that the instruction could check */
}

static bool canonical(const struct soft_vcpu *v, uint64_t gva)
{
    return !(v->mode & MODE_64) || cpu_canonical(&v->cpu, gva);
}

/* Byte `at` of an operand.  Operands masked by a vector are seen to wrap where their offset does. */
static uint64_t byte_gva(const struct soft_vcpu *v, const struct site *s, uint64_t gva, unsigned at)
{
    if (!s->addr32 || s->mask_kind != MASK_VEC_SIGN)
        return wrap(v, gva + at);
    uint64_t offset = soft_offset(v, s, gva);
    return wrap(v, gva - offset + (uint32_t)(offset + at));
}

/* An operand at gva that wraps at the end of a flat segment (SDM vol. 3, 5.3), as far as its byte `high`. */
static bool beyond_limit(const struct soft_vcpu *v, const struct site *s, uint64_t gva, unsigned high)
{
    if (s->mask_kind == MASK_VEC_SIGN) { /* CPUs are seen to go on at 0: only an element must not wrap */
        unsigned last = s->element - 1u;
        gva += high - last;
        high = last;
    }
    return !(v->mode & (MODE_64 | MODE_SEGMENTED)) && (uint32_t)soft_offset(v, s, gva) > UINT32_MAX - high;
}

/* Reads (or validates, for a store) [gva, gva+size) into the bounce buffer. */
static int bounce_fill(struct soft_vcpu *v, const struct site *s, uint64_t gva, uint64_t bytes)
{
    unsigned access = s->access & SITE_WRITE ? ACCESS_WRITE : ACCESS_READ;
    uint8_t *buf = bounce_at(v, gva);
    unsigned split = 4096 - (gva & 4095);
    struct piece p[2] = {{.len = s->size < split ? s->size : split}};
    unsigned n = 1;
    if (p[0].len < s->size) {
        p[1] = (struct piece){.offset = p[0].len, .len = s->size - p[0].len};
        n = 2;
    }
    bool used[2];
    for (unsigned i = 0; i < n; i++) {
        uint64_t mask = p[i].len >= 64 ? ~0ull : (1ull << p[i].len) - 1;
        uint64_t here = s->mask_kind ? bytes >> p[i].offset & mask : 1;
        used[i] = here != 0;
        if (!used[i])
            continue;
        struct translation tr;
        unsigned first = s->mask_kind ? p[i].offset + (unsigned)__builtin_ctzll(here) : p[i].offset;
        unsigned skip = first - p[i].offset;
        if (i && s->first && p[0].len >= s->first) { /* its last byte is looked at before the rest */
            first = s->size - 1;
            skip = first - p[i].offset;
        }
        if (!canonical(v, gva + first) ||
            (s->mask_kind != MASK_VEC_SIGN &&
             beyond_limit(v, s, gva, first))) /* of a large operand: the rest was looked at */
            return cpu_raise_error(&v->cpu, s->access & SITE_STACK ? EXC_SS : EXC_GP, 0);
        if (piece_translate(v, byte_gva(v, s, gva, first), access, &p[i], &tr))
            return CPU_FAULT;
        p[i].gpa -= skip;
        p[i].hva = memory_hva(v->engine->config.memory, p[i].gpa, p[i].len);
    }
    for (unsigned i = 0; i < n; i++) {
        if (!used[i] || !(s->access & SITE_READ))
            continue;
        if (p[i].hva)
            cpu_copy(buf + p[i].offset, p[i].hva, p[i].len);
        else
            mmio(v, p[i].gpa, buf + p[i].offset, p[i].len, false);
    }
    return 0;
}

static const void *slow_bounce(struct soft_vcpu *v, const struct site *s, uint64_t gva)
{
    uint64_t bytes = active_bytes(s);
    if (bounce_fill(v, s, gva, bytes))
        return access_fault(v, s);
    v->bounce.gva = gva;
    v->bounce.active_bytes[0] = bytes;
    v->slow_host = (uint64_t)bounce_at(v, gva);
    if (!v->fpu_live)
        soft_fpu_unpark(v);
    return soft_code(v->engine, s->bounce);
}

static const void *slow_resume(struct soft_vcpu *v, const struct site *s, uint8_t *host)
{
    v->slow_host = (uint64_t)host;
    return soft_code(v->engine, s->resume);
}

static uint32_t site_hits(const struct soft_vcpu *v, const struct site *s, uint64_t gva)
{
    bool write = s->access & SITE_WRITE;
    if (!s->mask_kind)
        return soft_watch_hits(v, gva, s->size, write);
    uint32_t hits = 0;
    for (uint64_t bytes = active_bytes(s); bytes; bytes &= bytes - 1)
        hits |= soft_watch_hits(v, gva + (unsigned)__builtin_ctzll(bytes), 1, write);
    return hits;
}

/* The access will meet a breakpoint: the instruction is begun again in a block of its own, whose end raises it. */
static const void *restart_single(struct soft_vcpu *v, const struct site *s)
{
    if (s->access & SITE_FLAGS)
        v->arith = (uint16_t)v->slow_flags;
    v->cpu.rip = soft_site_pc(v, s->block) + s->pc;
    soft_flags_in(v);
    const void *next = soft_next_single(v);
    soft_flags_out(v);
    return next;
}

/* From glue: the TLB had no answer for v->slow_ea. */
const void *soft_slow(struct soft_vcpu *v)
{
    struct engine *e = v->engine;
    const struct site *s = &e->sites[v->site];
    uint64_t gva = v->slow_ea;
    bool write = s->access & SITE_WRITE;
    if (write)
        v->stats.slow_write++;
    else
        v->stats.slow_read++;
    if (s->mask_kind && !active_bytes(s))
        return slow_bounce(v, s, gva);
    if ((gva & s->gp_align) && !misaligned_sse(v)) {
        cpu_raise_error(&v->cpu, EXC_GP, 0);
        return access_fault(v, s);
    }
    /* what is looked at first: a store of 64 bytes is two, so are operands of 80 bits and masks by byte */
    unsigned part = s->first ? s->first : s->size == 64 && !(s->access & SITE_READ) ? 32 : s->halves ? 8 : s->size;
    unsigned low = 0, high = part - 1;
    if (s->mask_kind) {
        low = (unsigned)__builtin_ctzll(active_bytes(s)); /* the first element: the others come one by one */
        high = low + s->element - 1;
    }
    if (!canonical(v, gva + low) || !canonical(v, gva + high) || beyond_limit(v, s, gva, high) ||
        soft_bad_offset(v, s, gva + low)) {
        cpu_raise_error(&v->cpu, s->access & SITE_STACK ? EXC_SS : EXC_GP, 0);
        return access_fault(v, s);
    }
    if (gva & s->align) {
        cpu_raise_error(&v->cpu, EXC_AC, 0);
        return access_fault(v, s);
    }
    uint32_t hits = v->n_watch ? site_hits(v, s, wrap(v, gva)) : 0;
    if (hits && !(s->block->mode & MODE_TF))
        return restart_single(v, s);
    v->debug_hits |= hits;
    if (s->mask_kind || (part < s->size && (gva & 4095) + s->size > 4096))
        return slow_bounce(v, s, gva);
    if ((gva & 4095) + s->size > 4096) {
        v->stats.slow_cross++;
        return slow_bounce(v, s, gva);
    }
    struct piece p = {.len = s->size};
    struct translation tr;
    if (piece_translate(v, gva, write ? ACCESS_WRITE : ACCESS_READ, &p, &tr))
        return access_fault(v, s);
    if (!p.hva)
        return slow_bounce(v, s, gva);
    if (write && e->code_granules[p.gpa >> 12]) {
        v->stats.slow_code++;
        if (holds_code(e, p.gpa, s->size))
            return slow_bounce(v, s, gva);
        return slow_resume(v, s, p.hva);
    }
    tlb_fill(v, mmu_of(v), gva, &tr, p.hva - (gva & 4095));
    return slow_resume(v, s, p.hva);
}

/* From glue: a window's range is not in the TLB.  Either it is now, and the check is done again; or the
 * block is left for one without windows. */
const void *soft_window(struct soft_vcpu *v)
{
    const struct site *s = &v->engine->sites[v->site];
    uint64_t gva = v->slow_ea;
    bool write = s->access & SITE_WRITE;
    struct translation tr;
    if (cpu_canonical(&v->cpu, gva) && (gva & 4095) + s->size <= 4096 && cpu_walk_probe_access(v, gva, &tr)) {
        uint8_t *page = memory_hva(v->engine->config.memory, tr.gpa & ~4095ull, 4096);
        if (page) {
            unsigned mmu = mmu_of(v);
            tlb_fill(v, mmu, gva, &tr, page);
            if (v->tlb[mmu][write][gva >> 12 & (TLB_SIZE - 1)].tag == (gva & ~4095ull)) {
                v->stats.window_fill++;
                return soft_code(v->engine, s->resume);
            }
        }
    }
    v->stats.window_refused++;
    if (s->access & SITE_FLAGS)
        v->arith = (uint16_t)v->slow_flags;
    v->cpu.rip = soft_site_pc(v, s->block) + s->pc;
    soft_flags_in(v);
    const void *next = soft_next_ungrouped(v, s->block);
    soft_flags_out(v);
    return next;
}

/* From glue: a place in the code has missed its slot too often. */
const void *soft_demote(struct soft_vcpu *v)
{
    struct engine *e = v->engine;
    const struct site *s = &e->sites[v->site];
    unsigned bit = soft_indexed_bit(s->block->gpa + s->pc);
    if (s->access & SITE_FLAGS)
        v->arith = (uint16_t)v->slow_flags;
    v->cpu.rip = soft_site_pc(v, s->block) + s->pc;
    v->stats.demoted++;
    e->indexed[bit / 64] |= 1ull << (bit % 64);
    v->budget[v->site % SLOT_COUNT] = SLOT_BUDGET;
    soft_flags_in(v);
    if (!s->block->dead) {
        soft_fpu_park(v);
        soft_block_kill(e, s->block);
    }
    const void *next = soft_next(v);
    if (!v->fpu_live && next != soft_leave)
        soft_fpu_unpark(v);
    soft_flags_out(v);
    return next;
}

static void commit_ram(struct soft_vcpu *v, const struct piece *p, const uint8_t *from, uint64_t bytes, bool masked)
{
    if (holds_code(v->engine, p->gpa, p->len)) {
        soft_fpu_park(v);
        soft_invalidate(v->engine, p->gpa, p->len);
    }
    if (!masked) {
        cpu_copy(p->hva, from, p->len);
        return;
    }
    for (unsigned i = 0; i < p->len; i++)
        if (bytes >> (p->offset + i) & 1)
            p->hva[i] = from[i];
}

/* From glue: the instruction has run on the bounce buffer; make its store real. */
const void *soft_commit(struct soft_vcpu *v)
{
    struct engine *e = v->engine;
    const struct site *s = &e->sites[v->site];
    uint64_t gva = v->bounce.gva;
    unsigned done = 0;
    while (done < s->size) {
        unsigned room = 4096 - ((gva + done) & 4095);
        struct piece p = {.offset = done, .len = s->size - done < room ? s->size - done : room};
        uint64_t mask = (p.len >= 64 ? ~0ull : (1ull << p.len) - 1) << (p.offset & 63);
        if (!s->mask_kind || (v->bounce.active_bytes[0] & mask)) {
            struct translation tr;
            unsigned skip = s->mask_kind ? (unsigned)__builtin_ctzll(v->bounce.active_bytes[0] & mask) - p.offset : 0;
            if (piece_translate(v, byte_gva(v, s, gva, done + skip), ACCESS_WRITE, &p, &tr))
                return access_fault(v, s);
            p.gpa -= skip;
            p.hva = memory_hva(e->config.memory, p.gpa, p.len);
            const uint8_t *from = bounce_at(v, gva) + done;
            if (p.hva)
                commit_ram(v, &p, from, v->bounce.active_bytes[0], s->mask_kind != MASK_NONE);
            else
                mmio(v, p.gpa, (uint8_t *)(uintptr_t)from, p.len, true);
        }
        done += p.len;
    }
    const void *next = soft_code(e, s->next);
    if (s->block->dead || v->cpu.request) { /* it patched itself, or the device wants attention */
        soft_flags_in(v);
        v->cpu.rip = soft_site_pc(v, s->block) + s->pc + s->len;
        if (s->block->dead)
            next = soft_step_done(v);
        soft_flags_out(v);
    }
    if (!v->fpu_live)
        soft_fpu_unpark(v);
    return next;
}

/* --- execution --------------------------------------------------------------------------------------- */

int soft_translate_exec(struct soft_vcpu *v, uint64_t gva, uint64_t *gpa, bool *global)
{
    struct itlb_entry *t = &v->itlb[mmu_of(v)][gva >> 12 & (ITLB_SIZE - 1)];
    if (t->tag != (gva & ~4095ull)) {
        struct translation tr;
        if ((v->mode & MODE_64) && !cpu_canonical(&v->cpu, gva))
            return cpu_raise_error(&v->cpu, EXC_GP, 0);
        if (cpu_walk(&v->cpu, gva, ACCESS_EXEC, mmu_of(v) == MMU_USER, &tr))
            return CPU_FAULT;
        v->stats.walks++;
        note_large(v, gva, &tr);
        *t = (struct itlb_entry){.tag = gva & ~4095ull, .gpa = tr.gpa & ~4095ull, .global = tr.global};
    }
    *gpa = t->gpa | (gva & 4095);
    if (global)
        *global = t->global;
    return 0;
}

void soft_ibtc_insert(struct soft_vcpu *v, uint64_t gva, const struct block *b)
{
    unsigned which = mmu_of(v) != MMU_USER, i = gva & (IBTC_SIZE - 1);
    struct ibtc_entry *t = &v->ibtc[which][i];
    t->minus_tag = -gva;
    t->entry = soft_code(v->engine, b->entry_indirect);
    struct itlb_entry *it = &v->itlb[mmu_of(v)][gva >> 12 & (ITLB_SIZE - 1)];
    if (!which || !it->global)
        dirty_add(&v->ibtc_dirty[which], i);
    v->exec_bloom[which][gva >> 63][gva >> 18 & 63] |= 1ull << (gva >> 12 & 63);
    v->stats.ibtc_insert++;
}

/* --- flushing ------------------------------------------------------------------------------------------ */

static void ibtc_clear(struct ibtc_entry *t)
{
    t->entry = soft_glue_ibtc_miss;
}

static void ibtc_flush(struct soft_vcpu *v, unsigned which, bool globals_too)
{
    struct dirty_list *d = &v->ibtc_dirty[which];
    /* no user entry is global: their list is complete unless it overflowed */
    if ((globals_too && which) || d->n > DIRTY_MAX) {
        for (unsigned i = 0; i < IBTC_SIZE; i++)
            if (v->ibtc[which][i].entry != soft_glue_ibtc_miss)
                ibtc_clear(&v->ibtc[which][i]);
    } else {
        for (unsigned i = 0; i < d->n; i++)
            ibtc_clear(&v->ibtc[which][d->index[i]]);
    }
    d->n = 0;
    if (which == 0)
        for (unsigned i = 0; i < 64; i++)
            v->exec_bloom[0][0][i] = v->exec_bloom[0][1][i] = 0;
}

void soft_ibtc_flush(struct soft_vcpu *v, unsigned which)
{
    ibtc_flush(v, which, true);
}

/* An empty slot can be hit, by the guest's address TLB_INVALID: so its host address is not canonical either,
 * and the access raises the #GP (or #SS) that the guest's own would (signal.c). */
void soft_slots_clear(struct soft_vcpu *v, unsigned mmu, unsigned write)
{
    void *t = v->slot[mmu][write];
    uint64_t n = sizeof(v->slot[mmu][write]) / 8;
    __asm__ volatile("rep stosq" : "+D"(t), "+c"(n) : "a"(TLB_INVALID) : "memory");
}

static void tlb_flush(struct soft_vcpu *v, unsigned mmu, bool globals_too)
{
    for (unsigned write = 0; write < 2; write++) {
        struct dirty_list *d = &v->dirty[mmu][write];
        struct tlb_entry *t = v->tlb[mmu][write];
        if (!globals_too && !d->n)
            continue; /* nothing but globals in it */
        soft_slots_clear(v, mmu, write);
        if (globals_too || d->n > DIRTY_MAX) {
            for (unsigned i = 0; i < TLB_SIZE; i++)
                t[i].tag = tlb_invalid(i);
        } else {
            for (unsigned i = 0; i < d->n; i++)
                t[d->index[i]].tag = tlb_invalid(d->index[i]);
        }
        d->n = 0;
    }
    for (unsigned i = 0; i < ITLB_SIZE; i++)
        if (globals_too || !v->itlb[mmu][i].global)
            v->itlb[mmu][i].tag = tlb_invalid(i);
}

static void flush_all(struct cpu *cpu, bool globals_too)
{
    struct soft_vcpu *v = vcpu_of(cpu);
    v->stats.tlb_flush++;
    for (unsigned i = 0; i < MMU_COUNT; i++)
        tlb_flush(v, i, globals_too);
    ibtc_flush(v, 0, globals_too);
    ibtc_flush(v, 1, globals_too);
    if (globals_too) {
        soft_unchain_cross(v->engine);
        for (unsigned half = 0; half < 2; half++)
            v->large_bloom[half][0] = v->large_bloom[half][1] = 0;
        for (unsigned i = 0; i < 64; i++)
            v->exec_bloom[0][0][i] = v->exec_bloom[0][1][i] = v->exec_bloom[1][0][i] = v->exec_bloom[1][1][i] = 0;
    }
}

static void flush_region(struct soft_vcpu *v, uint64_t gva, unsigned shift)
{
    for (unsigned mmu = 0; mmu < MMU_COUNT; mmu++)
        for (unsigned i = 0; i < TLB_SIZE; i++) {
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

static void flush_page(struct cpu *cpu, uint64_t gva)
{
    struct soft_vcpu *v = vcpu_of(cpu);
    v->stats.tlb_flush_page++;
    unsigned i = gva >> 12 & (TLB_SIZE - 1), x = gva >> 12 & (ITLB_SIZE - 1);
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
    if (huge)
        flush_region(v, gva, 30);
    else if (large)
        flush_region(v, gva, 21);
    /* code that was reached through this page, or straddles into it, in either mode */
    for (unsigned which = 0; which < 2; which++) {
        if (!large && !huge && !bloom_has(v, which, gva) && !bloom_has(v, which, gva - 4096))
            continue;
        ibtc_flush(v, which, true);
        if (which == 0)
            continue; /* only code in global pages is chained across pages: the kernel's */
        soft_unchain_cross(v->engine);
        for (unsigned k = 0; k < 64; k++)
            v->exec_bloom[1][0][k] = v->exec_bloom[1][1][k] = 0;
    }
}

static void address_space_changed(struct cpu *cpu, bool keep)
{
    struct soft_vcpu *v = vcpu_of(cpu);
    v->stats.cr3_writes++;
    for (unsigned i = 0; i < MMU_COUNT; i++)
        tlb_flush(v, i, false);
    ibtc_flush(v, 0, false);
    ibtc_flush(v, 1, false);
}

static void flush_pcid(struct cpu *cpu, uint16_t pcid)
{
    flush_all(cpu, false);
}

static void mode_changed(struct cpu *cpu)
{
    soft_update_mode(vcpu_of(cpu));
}

static void before_write(struct cpu *cpu, uint64_t gpa, uint64_t len)
{
    struct soft_vcpu *v = vcpu_of(cpu);
    if (holds_code(v->engine, gpa, len)) {
        soft_fpu_park(v);
        soft_invalidate(v->engine, gpa, len);
    }
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
    uint8_t *hva = memory_hva(v->engine->config.memory, out->gpa & ~4095ull, 4096);
    if (hva)
        tlb_fill(v, user ? MMU_USER : MMU_KERNEL, gva, out, hva);
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

void soft_tlb_init(struct soft_vcpu *v)
{
    for (unsigned mmu = 0; mmu < MMU_COUNT; mmu++) {
        soft_slots_clear(v, mmu, 0);
        soft_slots_clear(v, mmu, 1);
        for (unsigned i = 0; i < TLB_SIZE; i++)
            v->tlb[mmu][0][i].tag = v->tlb[mmu][1][i].tag = tlb_invalid(i);
        for (unsigned i = 0; i < ITLB_SIZE; i++)
            v->itlb[mmu][i].tag = tlb_invalid(i);
    }
    for (unsigned i = 0; i < IBTC_SIZE; i++) {
        ibtc_clear(&v->ibtc[0][i]);
        ibtc_clear(&v->ibtc[1][i]);
    }
}
