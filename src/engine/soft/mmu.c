/*
 * The soft MMU's slow path: TLB refills, page crossings, MMIO, writes to translated code, masked accesses.
 *
 * Compiled without SIMD: the guest's SIMD state is in the host's registers unless soft_fpu_park was
 * called.
 */
#include "engine/soft/soft_int.h"

struct piece {
    uint64_t gpa;
    uint8_t *hva;         /* NULL: not RAM */
    unsigned offset, len; /* in the access */
};

static uint64_t wrap(const struct soft_vcpu *v, uint64_t gva)
{
    return v->mode & MODE_64 ? gva : (uint32_t)gva;
}

/* The hva for an access, or NULL: not RAM. */
static uint8_t *ram_at(struct soft_vcpu *v, uint64_t gpa, unsigned len, unsigned access)
{
    const struct memory *m = v->engine->config.memory;
    return access == ACCESS_WRITE ? memory_hva(m, gpa, len) : (uint8_t *)(uintptr_t)memory_hva_read(m, gpa, len);
}

static int piece_translate(struct soft_vcpu *v, uint64_t gva, unsigned access, struct piece *p, struct translation *tr)
{
    if (cpu_walk(&v->cpu, gva, access, soft_mmu(v) == MMU_USER, tr))
        return CPU_FAULT;
    v->stats.walks++;
    p->gpa = tr->gpa;
    p->hva = ram_at(v, tr->gpa, p->len, access);
    return 0;
}

/* A read of the page at the present privilege, with no fault recorded when it is not allowed. */
static bool cpu_walk_probe_access(struct soft_vcpu *v, uint64_t gva, struct translation *tr)
{
    struct exception saved = v->cpu.exc;
    v->stats.walks++;
    if (!cpu_walk(&v->cpu, gva, ACCESS_READ, soft_mmu(v) == MMU_USER, tr))
        return true;
    v->cpu.exc = saved;
    return false;
}

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

bool soft_x87_pending(const struct soft_vcpu *v)
{
    uint16_t fsw;
    if (v->fpu_live)
        __asm__ volatile("fnstsw %0" : "=a"(fsw));
    else
        cpu_copy(&fsw, v->xsave + 2, 2);
    return fsw & 0x80;
}

bool soft_misaligned_sse(void)
{
    uint32_t mxcsr;
    __asm__ volatile("stmxcsr %0" : "=m"(mxcsr));
    return mxcsr & 1u << 17; /* AMD: packed operands need no alignment */
}

/* x87 TOP as a store of an MMX register leaves it on Intel's CPUs, even when it faults. */
void soft_clear_x87_top(struct soft_vcpu *v)
{
    uint32_t env[7];
    if (!v->fpu_live)
        soft_fpu_unpark(v);
    __asm__ volatile("fnstenv %0" : "=m"(env));
    env[1] &= ~0x3800u;
    __asm__ volatile("fldenv %0" ::"m"(env));
}

/* Locked instructions on a bounce buffer, since their operands cross pages, are indivisible for one another and for
 * other stores across pages, which is what there is of that without stopping the other vCPUs.  A mutex, which whoever
 * runs may take again: with turns, each instruction would wait until the next thread in line gets a CPU. */
static void begin_locked(struct soft_vcpu *v, const struct site *s, uint64_t gva)
{
    bool crosses = (s->access & SITE_WRITE) && (gva & 4095) + s->size > 4096;
    if (!(s->locked || crosses) || v->engine->peers->n == 1 || v->bounce.locked)
        return;
    pthread_mutex_lock(&v->engine->peers->split);
    v->bounce.locked = true;
}

void soft_end_locked(struct soft_vcpu *v)
{
    if (!v->bounce.locked)
        return;
    v->bounce.locked = false;
    pthread_mutex_unlock(&v->engine->peers->split);
}

static const void *access_fault(struct soft_vcpu *v, const struct site *s)
{
    soft_end_locked(v);
    if (s->access & SITE_FLAGS)
        v->arith = (uint16_t)v->slow_flags;
    v->cpu.rip = soft_site_pc(v, soft_site_block(v->engine, s)) + s->pc;
    soft_flags_in(v);
    if (s->x87 && soft_x87_pending(v))
        cpu_raise(&v->cpu, EXC_MF);
    else if (s->clears_top)
        soft_clear_x87_top(v);
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

/* Byte `at` of an operand.  On AMD's CPUs operands masked by a vector are seen to wrap where their offset does. */
static uint64_t byte_gva(const struct soft_vcpu *v, const struct site *s, uint64_t gva, unsigned at)
{
    if (!s->addr32 || s->mask_kind != MASK_VEC_SIGN || !v->engine->amd)
        return wrap(v, gva + at);
    uint64_t offset = soft_offset(v, s, gva);
    return wrap(v, gva - offset + (uint32_t)(offset + at));
}

/* CPUs are seen to go on at 0 behind such an operand: only an element must not wrap. */
static bool wraps_by_element(const struct soft_vcpu *v, const struct site *s)
{
    return s->mask_kind == MASK_VEC_SIGN || (s->mask_kind && !v->engine->amd);
}

/* An operand at gva that wraps at the end of a flat segment (SDM vol. 3, 5.3), as far as its byte `high`. */
static bool beyond_limit(const struct soft_vcpu *v, const struct site *s, uint64_t gva, unsigned high)
{
    if (wraps_by_element(v, s)) {
        unsigned last = s->element - 1u;
        gva += high - last;
        high = last;
    }
    bool looks = v->engine->amd || v->cpu.seg[s->segment].base; /* Intel's CPUs go on at 0 in a flat one */
    return looks && !(v->mode & (MODE_64 | MODE_SEGMENTED)) && (uint32_t)soft_offset(v, s, gva) > UINT32_MAX - high;
}

/* The exception for an operand whose bytes `low` to `high` are looked at first, or 0.  Intel's CPUs look at the
 * alignment before they look where it ends in 64-bit code. */
static unsigned bad_operand(const struct soft_vcpu *v, const struct site *s, uint64_t gva, unsigned low, unsigned high)
{
    unsigned outside = s->access & SITE_STACK ? EXC_SS : EXC_GP;
    bool misaligned = gva & s->align;
    if (!canonical(v, gva + low) || soft_bad_offset(v, s, gva + low) || beyond_limit(v, s, gva, high))
        return outside;
    if (misaligned && !v->engine->amd && !s->mask_kind)
        return EXC_AC;
    if (!canonical(v, gva + high))
        return outside;
    return misaligned ? EXC_AC : 0;
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
            (!wraps_by_element(v, s) &&
             beyond_limit(v, s, gva, first))) /* of a large operand: the rest was looked at */
            return cpu_raise_error(&v->cpu, s->access & SITE_STACK ? EXC_SS : EXC_GP, 0);
        if (piece_translate(v, byte_gva(v, s, gva, first), access, &p[i], &tr))
            return CPU_FAULT;
        p[i].gpa -= skip;
        p[i].hva = ram_at(v, p[i].gpa, p[i].len, access);
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

/* What glue will put into the register that has the address. */
static void set_address(struct soft_vcpu *v, const struct site *s, uint8_t *host)
{
    v->slow_host = (uint64_t)host;
    if (s->address == R9)
        v->slow_r9 = (uint64_t)host;
}

static const void *slow_bounce(struct soft_vcpu *v, const struct site *s, uint64_t gva)
{
    uint64_t bytes = soft_active_bytes(s);
    begin_locked(v, s, gva);
    if (bounce_fill(v, s, gva, bytes))
        return access_fault(v, s);
    v->bounce.gva = gva;
    v->bounce.active_bytes[0] = bytes;
    set_address(v, s, bounce_at(v, gva));
    if (!v->fpu_live)
        soft_fpu_unpark(v);
    return soft_code(v->engine, s->bounce);
}

static const void *slow_resume(struct soft_vcpu *v, const struct site *s, uint8_t *host)
{
    set_address(v, s, host);
    return soft_code(v->engine, s->resume);
}

/* A bounce buffer would divide it: it runs on the memory itself, and who has code there is told at the next branch. */
static const void *slow_locked(struct soft_vcpu *v, const struct site *s, const struct piece *p)
{
    if (soft_holds_code(v->engine, p->gpa, s->size)) {
        soft_fpu_park(v);
        soft_invalidate(v->engine, p->gpa, s->size);
        soft_fpu_unpark(v);
    }
    soft_others_tell_later(v, p->gpa, s->size);
    atomic_store(&v->poll, 1);
    return slow_resume(v, s, p->hva);
}

static uint32_t site_hits(const struct soft_vcpu *v, const struct site *s, uint64_t gva)
{
    bool write = s->access & SITE_WRITE;
    if (!s->mask_kind)
        return soft_watch_hits(v, gva, s->size, write);
    uint32_t hits = 0;
    for (uint64_t bytes = soft_active_bytes(s); bytes; bytes &= bytes - 1)
        hits |= soft_watch_hits(v, gva + (unsigned)__builtin_ctzll(bytes), 1, write);
    return hits;
}

/* The access will meet a breakpoint: the instruction is begun again in a block of its own, whose end raises it. */
static const void *restart_single(struct soft_vcpu *v, const struct site *s)
{
    if (s->access & SITE_FLAGS)
        v->arith = (uint16_t)v->slow_flags;
    v->cpu.rip = soft_site_pc(v, soft_site_block(v->engine, s)) + s->pc;
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
    if (s->mask_kind && !soft_active_bytes(s))
        return slow_bounce(v, s, gva);
    if ((gva & s->gp_align) && !soft_misaligned_sse()) {
        cpu_raise_error(&v->cpu, EXC_GP, 0);
        return access_fault(v, s);
    }
    /* what is looked at first: operands of 80 bits are two, so are Zen 4's stores of 64 bytes and masks by byte */
    unsigned part = s->first                                                          ? s->first
                    : s->size == 64 && !(s->access & SITE_READ) && e->amd && !e->zen5 ? 32
                    : s->halves                                                       ? 8
                                                                                      : s->size;
    unsigned low = 0, high = part - 1;
    if (s->mask_kind) {
        uint64_t bytes = soft_active_bytes(s);
        low = (unsigned)__builtin_ctzll(bytes);
        high = low + s->element - 1; /* the first element: the others come one by one ... */
        if (!e->amd && (v->mode & MODE_64))
            high = 63 - (unsigned)__builtin_clzll(bytes); /* ... but Intel's 64-bit code */
    }
    unsigned vector = bad_operand(v, s, gva, low, high);
    if (vector) {
        cpu_raise_error(&v->cpu, vector, 0);
        return access_fault(v, s);
    }
    uint32_t hits = v->n_watch ? site_hits(v, s, wrap(v, gva)) : 0;
    if (hits && !(soft_site_block(v->engine, s)->mode & MODE_TF))
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
    if (write && e->peers->n > 1)
        soft_note_write(e, p.gpa >> 12);
    bool others = soft_others_code(e, p.gpa >> 12);
    if (write && (e->code_granules[p.gpa >> 12] || others)) {
        v->stats.slow_code++;
        if (s->locked && e->peers->n > 1)
            return slow_locked(v, s, &p);
        if (others || soft_holds_code(e, p.gpa, s->size))
            return slow_bounce(v, s, gva);
        return slow_resume(v, s, p.hva);
    }
    soft_tlb_fill(v, soft_mmu(v), gva, &tr, p.hva - (gva & 4095));
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
        uint8_t *page = ram_at(v, tr.gpa & ~4095ull, 4096, write ? ACCESS_WRITE : ACCESS_READ);
        if (page) {
            unsigned mmu = soft_mmu(v);
            soft_tlb_fill(v, mmu, gva, &tr, page);
            if (v->tlb[mmu][write][gva >> 12 & (TLB_SIZE - 1)].tag == (gva & ~4095ull)) {
                v->stats.window_fill++;
                return soft_code(v->engine, s->resume);
            }
        }
    }
    v->stats.window_refused++;
    if (s->access & SITE_FLAGS)
        v->arith = (uint16_t)v->slow_flags;
    v->cpu.rip = soft_site_pc(v, soft_site_block(v->engine, s)) + s->pc;
    soft_flags_in(v);
    const void *next = soft_next_ungrouped(v, soft_site_block(v->engine, s));
    soft_flags_out(v);
    return next;
}

/* From glue: a place in the code has missed its slot too often. */
const void *soft_demote(struct soft_vcpu *v)
{
    struct engine *e = v->engine;
    const struct site *s = &e->sites[v->site];
    unsigned bit = soft_indexed_bit(soft_site_block(v->engine, s)->gpa + s->pc);
    if (s->access & SITE_FLAGS)
        v->arith = (uint16_t)v->slow_flags;
    v->cpu.rip = soft_site_pc(v, soft_site_block(v->engine, s)) + s->pc;
    v->stats.demoted++;
    e->indexed[bit / 64] |= 1ull << (bit % 64);
    v->budget[v->site % SLOT_COUNT] = SLOT_BUDGET;
    soft_flags_in(v);
    if (!soft_site_block(v->engine, s)->dead) {
        soft_fpu_park(v);
        soft_block_kill(e, soft_site_block(e, s));
    }
    const void *next = soft_next(v);
    if (!v->fpu_live && next != soft_leave)
        soft_fpu_unpark(v);
    soft_flags_out(v);
    return next;
}

static void commit_ram(struct soft_vcpu *v, const struct piece *p, const uint8_t *from, uint64_t bytes, bool masked)
{
    if (soft_holds_code(v->engine, p->gpa, p->len)) {
        soft_fpu_park(v);
        soft_invalidate(v->engine, p->gpa, p->len);
    }
    if (v->engine->peers->n > 1)
        soft_note_write(v->engine, p->gpa >> 12);
    if (!masked)
        cpu_copy(p->hva, from, p->len);
    for (unsigned i = 0; masked && i < p->len; i++)
        if (bytes >> (p->offset + i) & 1)
            p->hva[i] = from[i];
    soft_others_tell(v, p->gpa, p->len);
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
    soft_end_locked(v);
    const void *next = soft_code(e, s->next);
    if (soft_site_block(v->engine, s)->dead || v->cpu.request) { /* it patched itself, or the device wants attention */
        if (s->access & SITE_FLAGS_AFTER)
            v->arith = (uint16_t)v->slow_flags;
        soft_flags_in(v);
        v->cpu.rip = soft_site_pc(v, soft_site_block(v->engine, s)) + s->pc + s->len;
        if (soft_site_block(v->engine, s)->dead)
            next = soft_step_done(v);
        soft_flags_out(v);
    }
    if (!v->fpu_live)
        soft_fpu_unpark(v);
    return next;
}
