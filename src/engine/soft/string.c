/*
 * String instructions: element by element, or as much as a page holds at once where nobody can tell.
 */
#include "engine/soft/helpers.h"

/* An operand of a string instruction at `offset` of `segment`: its limit, or #AC. */
static int bad_string_address(struct soft_vcpu *v, unsigned segment, uint64_t offset, uint64_t gva, unsigned n)
{
    return address_fault(v, segment, segment == SS ? EXC_SS : EXC_GP, gva, n);
}

static uint64_t count_mask(unsigned width)
{
    return width == 64 ? ~0ull : width == 32 ? UINT32_MAX : 0xffff;
}

static uint64_t get_wide(const struct soft_vcpu *v, unsigned reg, unsigned width)
{
    return v->cpu.gpr[reg] & count_mask(width);
}

static void set_wide(struct soft_vcpu *v, unsigned reg, uint64_t value, unsigned width)
{
    if (width == 16)
        v->cpu.gpr[reg] = (v->cpu.gpr[reg] & ~0xffffull) | (value & 0xffff);
    else
        v->cpu.gpr[reg] = value & count_mask(width);
}

static uint64_t seg_base(const struct soft_vcpu *v, unsigned seg)
{
    if ((v->mode & MODE_64) && seg != FS && seg != GS)
        return 0;
    return v->cpu.seg[seg].base;
}

/* The host address of `bytes` guest bytes inside one page that a string instruction may touch directly, or
 * NULL: element by element then. */
static uint8_t *string_run(struct soft_vcpu *v, uint64_t gva, uint64_t bytes, unsigned access)
{
    const struct tlb_entry *t = &v->tlb[v->mode & MODE_MMU][access][gva >> 12 & (TLB_SIZE - 1)];
    if (t->tag == (gva & ~4095ull))
        return (uint8_t *)t->host + (gva & 4095);
    if (((v->mode & MODE_64) && !cpu_canonical(&v->cpu, gva)) || soft_watched(v, gva, access == ACCESS_WRITE))
        return NULL;
    struct translation tr;
    struct exception saved = v->cpu.exc;
    if (cpu_walk(&v->cpu, gva, access, user_mode(v), &tr)) {
        v->cpu.exc = saved; /* the element access raises it again, with the right progress */
        return NULL;
    }
    const struct memory *m = v->engine->config.memory;
    uint64_t at = tr.gpa & ~4095ull;
    uint8_t *page = access == ACCESS_WRITE ? memory_hva(m, at, 4096)
                                           : (uint8_t *)(uintptr_t)memory_hva_read(m, at, 4096);
    if (!page)
        return NULL;
    if (access == ACCESS_WRITE)
        soft_cpu_ops.before_write(&v->cpu, tr.gpa, bytes);
    soft_tlb_fill(v, soft_mmu(v), gva, &tr, page);
    return page + (gva & 4095);
}

/* How many elements from gva on, upwards or downwards, are in its page. */
static uint64_t run_elements(uint64_t gva, unsigned size, bool down)
{
    uint64_t offset = gva & 4095;
    return !down ? (4096 - offset) / size : offset + size <= 4096 ? offset / size + 1 : 0;
}

static void copy_forward(uint8_t *to, const uint8_t *from, uint64_t bytes)
{
    __asm__ volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(bytes)::"memory");
}

static void fill(uint8_t *to, uint64_t value, uint64_t n, unsigned size)
{
    switch (size) {
    case 1:
        __asm__ volatile("rep stosb" : "+D"(to), "+c"(n) : "a"(value) : "memory");
        break;
    case 2:
        __asm__ volatile("rep stosw" : "+D"(to), "+c"(n) : "a"(value) : "memory");
        break;
    case 4:
        __asm__ volatile("rep stosl" : "+D"(to), "+c"(n) : "a"(value) : "memory");
        break;
    default:
        __asm__ volatile("rep stosq" : "+D"(to), "+c"(n) : "a"(value) : "memory");
    }
}

struct string_op {
    unsigned kind, size, rep, segment, width;
    int64_t step;
};

static void string_advance(struct soft_vcpu *v, const struct string_op *o, uint64_t n, bool source, bool destination)
{
    int64_t by = o->step * (int64_t)n;
    if (source)
        set_wide(v, RSI, get_wide(v, RSI, o->width) + (uint64_t)by, o->width);
    if (destination)
        set_wide(v, RDI, get_wide(v, RDI, o->width) + (uint64_t)by, o->width);
    if (o->rep)
        set_wide(v, RCX, get_wide(v, RCX, o->width) - n, o->width);
}

/* Upwards.  Where the destination overlaps the source from above, a pattern repeats: in pieces that do not. */
static bool copy_up(uint8_t *to, const uint8_t *from, uint64_t bytes, unsigned size)
{
    uint64_t gap = (uint64_t)(to - from), piece = gap && gap < bytes ? gap : bytes;
    if (gap < bytes && gap % size) /* overlapping elements: one by one */
        return false;
    for (uint64_t done = 0; done < bytes; done += piece)
        copy_forward(to + done, from + done, bytes - done < piece ? bytes - done : piece);
    return true;
}

/* Downwards: the last element first. */
static bool copy_down(uint8_t *to, const uint8_t *from, uint64_t bytes)
{
    uint64_t above = (uint64_t)(to - from), below = (uint64_t)(from - to);
    if (below && below < bytes) /* what is still to be read would be overwritten */
        return false;
    uint64_t piece = above && above < bytes ? above : bytes;
    if (piece < bytes && piece < 64)
        return false;
    for (uint64_t left = bytes; left;) {
        uint64_t n = left < piece ? left : piece;
        left -= n;
        copy_forward(to + left, from + left, n);
    }
    return true;
}

/* Many elements at once, inside one page each way; how many were done (0: not possible). */
static uint64_t string_bulk(struct soft_vcpu *v, const struct string_op *o, uint64_t count)
{
    bool null = !(v->mode & MODE_64) && !(v->cpu.seg[o->segment].attr & SEG_P), down = o->step < 0;
    if (null || (v->mode & (MODE_ALIGN | MODE_SEGMENTED)) || (o->kind != STR_MOVS && o->kind != STR_STOS) || count < 2)
        return 0;
    bool move = o->kind == STR_MOVS;
    uint64_t to = linear(v, get_wide(v, RDI, o->width) + seg_base(v, ES)), n = run_elements(to, o->size, down);
    uint64_t from = move ? linear(v, get_wide(v, RSI, o->width) + seg_base(v, o->segment)) : 0;
    uint64_t m = move ? run_elements(from, o->size, down) : n;
    n = n < m ? n : m;
    n = n < count ? n : count;
    if (!n)
        return 0;
    uint64_t bytes = n * o->size, back = down ? bytes - o->size : 0;
    const uint8_t *source = move ? string_run(v, from - back, bytes, ACCESS_READ) : NULL;
    uint8_t *host = source || !move ? string_run(v, to - back, bytes, ACCESS_WRITE) : NULL;
    if (!host)
        return 0;
    if (!move)
        fill(host, v->cpu.gpr[RAX], n, o->size);
    else if (!(down ? copy_down(host, source, bytes) : copy_up(host, source, bytes, o->size)))
        return 0;
    string_advance(v, o, n, move, true);
    return n;
}

static void compare_flags(struct soft_vcpu *v, uint64_t a, uint64_t b, unsigned size)
{
    uint64_t flags;
    switch (size) {
    case 1:
        __asm__("cmpb %b2, %b1\n pushfq\n pop %0" : "=r"(flags) : "q"(a), "q"(b) : "cc");
        break;
    case 2:
        __asm__("cmpw %w2, %w1\n pushfq\n pop %0" : "=r"(flags) : "r"(a), "r"(b) : "cc");
        break;
    case 4:
        __asm__("cmpl %k2, %k1\n pushfq\n pop %0" : "=r"(flags) : "r"(a), "r"(b) : "cc");
        break;
    default:
        __asm__("cmpq %2, %1\n pushfq\n pop %0" : "=r"(flags) : "r"(a), "r"(b) : "cc");
    }
    v->cpu.rflags = (v->cpu.rflags & ~(uint32_t)FL_ARITH) | ((uint32_t)flags & FL_ARITH);
}

/* One element at `offset` of `segment`, read or (write) from buf. */
static int string_access(struct soft_vcpu *v, const struct string_op *o, unsigned segment, uint64_t offset, void *buf,
                         bool write)
{
    if (!(v->mode & MODE_64) && !(v->cpu.seg[segment].attr & SEG_P))
        return cpu_raise_error(&v->cpu, EXC_GP, 0);
    if (segment_fault(v, segment, offset, o->size, write))
        return CPU_FAULT;
    uint64_t gva = linear(v, offset + seg_base(v, segment));
    uint8_t *hit = tlb_hit(v, gva, o->size, write);
    if (hit && !(v->mode & MODE_ALIGN)) {
        cpu_copy(write ? (void *)hit : buf, write ? buf : (void *)hit, o->size);
        return 0;
    }
    if (bad_string_address(v, segment, offset, gva, o->size))
        return CPU_FAULT;
    watch_data(v, gva, o->size, write);
    return write ? cpu_write(&v->cpu, gva, buf, o->size, user_mode(v))
                 : cpu_read(&v->cpu, gva, buf, o->size, user_mode(v));
}

static int read_source(struct soft_vcpu *v, const struct string_op *o, void *buf)
{
    return string_access(v, o, o->segment, get_wide(v, RSI, o->width), buf, false);
}

static int read_destination(struct soft_vcpu *v, const struct string_op *o, void *buf)
{
    return string_access(v, o, ES, get_wide(v, RDI, o->width), buf, false);
}

static int write_destination(struct soft_vcpu *v, const struct string_op *o, void *buf)
{
    return string_access(v, o, ES, get_wide(v, RDI, o->width), buf, true);
}

/* One element; CPU_FAULT leaves the registers at it. */
static int string_element(struct soft_vcpu *v, const struct string_op *o)
{
    uint64_t value = 0, other = 0;
    uint16_t port = (uint16_t)v->cpu.gpr[RDX];
    switch (o->kind) {
    case STR_MOVS:
        if (read_source(v, o, &value) || write_destination(v, o, &value))
            return CPU_FAULT;
        string_advance(v, o, 1, true, true);
        return 0;
    case STR_STOS:
        if (write_destination(v, o, &v->cpu.gpr[RAX]))
            return CPU_FAULT;
        string_advance(v, o, 1, false, true);
        return 0;
    case STR_LODS:
        if (read_source(v, o, &value))
            return CPU_FAULT;
        set_gpr(v, RAX, value, o->size);
        string_advance(v, o, 1, true, false);
        return 0;
    case STR_SCAS:
        if (read_destination(v, o, &other))
            return CPU_FAULT;
        compare_flags(v, v->cpu.gpr[RAX], other, o->size);
        string_advance(v, o, 1, false, true);
        return 0;
    case STR_CMPS:
        /* CPUs are seen to read [rdi] first, but Zen 5, and Zen 4 where it compares byte by byte in a fast way */
        if (v->engine->amd && (v->engine->zen5 || (o->rep == STR_REPE && o->size == 1)) && read_source(v, o, &value))
            return CPU_FAULT;
        if (read_destination(v, o, &other) || read_source(v, o, &value))
            return CPU_FAULT;
        compare_flags(v, value, other, o->size);
        string_advance(v, o, 1, true, true);
        return 0;
    case STR_INS:
        if (cpu_check_io(&v->cpu, port, o->size) ||
            segment_fault(v, ES, get_wide(v, RDI, o->width), o->size, true)) /* before anything is read */
            return CPU_FAULT;
        value = port_read(v, port, o->size);
        if (write_destination(v, o, &value))
            return CPU_FAULT;
        string_advance(v, o, 1, false, true);
        return 0;
    default:
        if (cpu_check_io(&v->cpu, port, o->size) || read_source(v, o, &value))
            return CPU_FAULT;
        port_write(v, port, value, o->size);
        string_advance(v, o, 1, true, false);
        return 0;
    }
}

/* Intel's CPUs cut the registers to 32 bits before the first element, even if there is none. */
static void cut_registers(struct soft_vcpu *v, const struct string_op *o)
{
    if (v->engine->amd || !o->rep || o->width != 32)
        return;
    string_advance(v, o, 0, o->kind == STR_MOVS, o->kind == STR_MOVS || o->kind == STR_STOS);
}

/* A fault behind some elements.  Intel: with the flags as before the first of them (SDM vol. 2, REP). */
static const void *string_fault(struct soft_vcpu *v, uint32_t rflags)
{
    if (!v->engine->amd)
        v->cpu.rflags = rflags;
    return fault(v);
}

/* Elements between looks at v->poll: a long rep is interruptible, as the architecture has it. */
#define STRING_SLICE 65536

const void *helper_string(struct soft_vcpu *v, const struct site *s)
{
    struct string_op o = {.kind = s->arg & 0xff,
                          .size = s->arg >> 8 & 0xff,
                          .rep = s->arg >> 16 & 0xff,
                          .segment = s->arg2 & 0xff,
                          .width = s->arg2 >> 8};
    o.step = v->cpu.rflags & FL_DF ? -(int64_t)o.size : (int64_t)o.size;
    if (!o.rep)
        return string_element(v, &o) ? fault(v) : finish(v, s);
    uint64_t budget = STRING_SLICE;
    uint32_t rflags = v->cpu.rflags;
    cut_registers(v, &o);
    for (;;) {
        uint64_t count = get_wide(v, RCX, o.width);
        if (!count)
            return finish(v, s);
        if (!budget && v->poll) {
            if (v->mode & MODE_BREAK)
                v->cpu.rflags |= FL_RF; /* a breakpoint on it has been passed */
            return soft_next(v);        /* rip is still at the instruction */
        }
        budget = budget ? budget : STRING_SLICE;
        uint64_t done = v->mode & MODE_TF ? 0 : string_bulk(v, &o, count < budget ? count : budget);
        if (done) {
            budget -= done;
            continue;
        }
        if (string_element(v, &o))
            return string_fault(v, rflags);
        budget--;
        if (o.kind == STR_SCAS || o.kind == STR_CMPS) {
            bool equal = v->cpu.rflags & FL_ZF;
            if (equal == (o.rep == STR_REPNE))
                return finish(v, s);
        }
        if (((v->mode & MODE_TF) || v->debug_hits) && get_wide(v, RCX, o.width)) { /* a step is one element */
            if ((v->mode & MODE_BREAK) || !v->engine->amd) /* Intel: in any case (SDM vol. 3, 17.3.1.1) */
                v->cpu.rflags |= FL_RF;                    /* a breakpoint on it has been passed */
            return soft_step_done(v);
        }
    }
}
