/*
 * Instructions done in C: each helper acts on the vCPU's state with every guest register saved in
 * cpu.gpr[] and the flags in cpu.rflags, and returns where to go on.  Long
 * because there are many; each is short.
 *
 *     finish(v, s)   the instruction is complete: on in the same block
 *     jump(v, s, pc) it changed rip or the mode: find the block there
 *     fault(v)       cpu.exc is recorded and rip still at the instruction: deliver
 */
#include "engine/soft/helpers.h"

static const void *fault(struct soft_vcpu *v)
{
    return soft_deliver(v);
}

static uint64_t next_pc(const struct soft_vcpu *v, const struct site *s)
{
    uint64_t pc = v->cpu.rip + s->len;
    return v->mode & MODE_64 ? pc : (uint32_t)pc;
}

static const void *jump(struct soft_vcpu *v)
{
    return soft_next(v);
}

static const void *jump_next(struct soft_vcpu *v, const struct site *s)
{
    v->cpu.rip = next_pc(v, s);
    return soft_step_done(v);
}

/* The same behind a load of ss, which holds off interrupts and debug traps for one instruction. */
static const void *jump_next_shadow(struct soft_vcpu *v, const struct site *s)
{
    v->cpu.rip = next_pc(v, s);
    return v->debug_hits ? soft_next_single(v) : soft_next(v);
}

static const void *finish(struct soft_vcpu *v, const struct site *s)
{
    if (s->block->dead || v->poll || v->debug_hits || (v->mode & MODE_TF))
        return jump_next(v, s);
    return soft_code(v->engine, s->next);
}

static const void *gp0(struct soft_vcpu *v)
{
    cpu_raise_error(&v->cpu, EXC_GP, 0);
    return fault(v);
}

static unsigned arg_kind(const struct site *s)
{
    return s->arg & 0xff;
}
static unsigned arg_reg(const struct site *s)
{
    return s->arg >> 8 & 0xff;
}
static unsigned arg_size(const struct site *s)
{
    return s->arg >> 16 & 0xff;
}
static bool arg_memory(const struct site *s)
{
    return s->arg >> 24 & 1;
}

static bool user_mode(const struct soft_vcpu *v)
{
    return v->cpu.cpl == 3;
}

static uint64_t linear(const struct soft_vcpu *v, uint64_t gva)
{
    return v->mode & MODE_64 ? gva : (uint32_t)gva;
}

/* With segments that are not flat: may it be accessed? */
static int segment_fault(struct soft_vcpu *v, unsigned segment, uint64_t offset, unsigned n, bool write)
{
    if (!(v->mode & MODE_SEGMENTED))
        return 0;
    return cpu_check_segment(&v->cpu, (enum sreg)segment, (uint32_t)offset, n, write);
}

/* 32-bit code on a stack that is addressed by sp: the engine cannot go on. */
static bool small_stack(struct soft_vcpu *v)
{
    bool is = (v->mode & MODE_SEGMENTED) && !(v->cpu.seg[SS].attr & SEG_DB);
    if (is)
        soft_fail(v, "the software engine does not run 32-bit code on a 16-bit stack yet");
    return is;
}

/* Breakpoints on data that the access meets. */
static void watch(struct soft_vcpu *v, uint64_t gva, unsigned n, bool write)
{
    if (v->n_watch)
        v->debug_hits |= soft_watch_hits(v, gva, n, write);
}

/* Breakpoints on ports (SDM vol. 3, 17.2.4). */
static void watch_port(struct soft_vcpu *v, uint16_t port, unsigned n)
{
    const struct cpu *c = &v->cpu;
    if (!(c->cr4 & CR4_DE) || !(c->dr7 & 0xff))
        return;
    for (unsigned i = 0; i < 4; i++) {
        uint64_t length = (c->dr7 >> (18 + 4 * i) & 3) + 1, first = c->dr[i] & ~(length - 1);
        if ((c->dr7 >> (2 * i) & 3) && (c->dr7 >> (16 + 4 * i) & 3) == 2 && port < first + length && first < port + n)
            v->debug_hits |= 1u << i;
    }
}

/* The host address of [gva, gva+n) when the TLB has it, as translated code would find it. */
static uint8_t *tlb_hit(const struct soft_vcpu *v, uint64_t gva, unsigned n, unsigned write)
{
    const struct tlb_entry *t = &v->tlb[v->mode & MODE_MMU][write][gva >> 12 & (TLB_SIZE - 1)];
    return gva - t->tag <= 4096 - n ? (uint8_t *)t->host + (gva - t->tag) : NULL;
}

/* RFLAGS.AC: only for what user code can do; anything but a whole number of 2, 4 or 8 bytes is not checked. */
static bool misaligned(const struct soft_vcpu *v, uint64_t gva, unsigned n)
{
    return (v->mode & MODE_ALIGN) && n <= 8 && !(n & (n - 1)) && (gva & (n - 1));
}

/* Past the end of a flat 32-bit segment. */
static bool wraps(const struct soft_vcpu *v, uint64_t gva, unsigned n)
{
    return !(v->mode & (MODE_64 | MODE_SEGMENTED)) && gva <= UINT32_MAX && gva + n - 1 > UINT32_MAX;
}

/* An operand of a string instruction at `offset` of `segment`: its limit, or #AC. */
static int bad_string_address(struct soft_vcpu *v, unsigned segment, uint64_t offset, uint64_t gva, unsigned n)
{
    if (v->mode & MODE_64 ? !(cpu_canonical(&v->cpu, gva) && cpu_canonical(&v->cpu, gva + n - 1)) : wraps(v, offset, n))
        return cpu_raise_error(&v->cpu, segment == SS ? EXC_SS : EXC_GP, 0);
    return misaligned(v, gva, n) ? cpu_raise_error(&v->cpu, EXC_AC, 0) : 0;
}

/* #GP, or #SS through the stack segment; then #AC. */
static int bad_address(struct soft_vcpu *v, uint64_t gva, unsigned n)
{
    const struct site *s = &v->engine->sites[v->site];
    if ((v->mode & MODE_64) &&
        (!(cpu_canonical(&v->cpu, gva) && cpu_canonical(&v->cpu, gva + n - 1)) || soft_bad_offset(v, s, gva)))
        return cpu_raise_error(&v->cpu, s->access & SITE_STACK ? EXC_SS : EXC_GP, 0);
    if (wraps(v, s->segment ? (uint32_t)soft_offset(v, s, gva) : gva, n))
        return cpu_raise_error(&v->cpu, s->access & SITE_STACK ? EXC_SS : EXC_GP, 0);
    return misaligned(v, gva, n) ? cpu_raise_error(&v->cpu, EXC_AC, 0) : 0;
}

static int data_read(struct soft_vcpu *v, uint64_t gva, void *buf, unsigned n)
{
    const uint8_t *hit = tlb_hit(v, linear(v, gva), n, 0);
    if (hit && !(v->mode & MODE_ALIGN)) {
        cpu_copy(buf, hit, n);
        return 0;
    }
    if (bad_address(v, gva, n))
        return CPU_FAULT;
    watch(v, linear(v, gva), n, false);
    return cpu_read(&v->cpu, linear(v, gva), buf, n, user_mode(v));
}

static int data_write(struct soft_vcpu *v, uint64_t gva, const void *buf, unsigned n)
{
    uint8_t *hit = tlb_hit(v, linear(v, gva), n, 1);
    if (hit && !(v->mode & MODE_ALIGN)) {
        cpu_copy(hit, buf, n);
        return 0;
    }
    if (bad_address(v, gva, n))
        return CPU_FAULT;
    watch(v, linear(v, gva), n, true);
    return cpu_write(&v->cpu, linear(v, gva), buf, n, user_mode(v));
}

/* Writes a general register as an instruction of that operand size does. */
static void set_gpr(struct soft_vcpu *v, unsigned reg, uint64_t value, unsigned size)
{
    uint64_t *r = &v->cpu.gpr[reg & 15];
    switch (size) {
    case 1:
        *r = (*r & ~0xffull) | (value & 0xff);
        break;
    case 2:
        *r = (*r & ~0xffffull) | (value & 0xffff);
        break;
    case 4:
        *r = (uint32_t)value;
        break;
    default:
        *r = value;
    }
}

/* --- undefined and debug ---------------------------------------------------------------------------- */

const void *helper_undefined(struct soft_vcpu *v, const struct site *s)
{
    if (s->arg)
        return gp0(v);
    cpu_raise(&v->cpu, EXC_UD);
    return fault(v);
}

const void *helper_gp0(struct soft_vcpu *v, const struct site *s)
{
    return gp0(v);
}

/* An operand in a segment that is not flat: helper_ea is its offset, arg the segment. */
const void *helper_segment(struct soft_vcpu *v, const struct site *s)
{
    struct cpu *c = &v->cpu;
    uint64_t offset = v->helper_ea;
    if (s->arg2 == SEGMENT_XLAT) {
        offset += (uint8_t)c->gpr[RAX];
    } else if (s->arg2 == SEGMENT_BIT) {
        int64_t bit = s->size == 2 ? (int16_t)c->gpr[s->element] : (int32_t)c->gpr[s->element];
        offset += (uint64_t)(bit >> 3 & -(int64_t)s->size);
    } else if (s->arg2 == SEGMENT_STACK && small_stack(v)) {
        return soft_leave;
    }
    if (cpu_check_segment(c, (enum sreg)s->arg, (uint32_t)(offset & s->imm), s->size, s->access & SITE_WRITE))
        return fault(v);
    return soft_code(v->engine, s->next);
}

/* Control comes here when the instruction of a MODE_TF block is complete. */
const void *helper_single_step(struct soft_vcpu *v, const struct site *s)
{
    v->cpu.rip = s->arg ? v->helper_ea : next_pc(v, s);
    return soft_step_done(v);
}

/* An instruction breakpoint in DR0-DR3 (SDM 17.2.5): a fault before the instruction, unless RF. */
const void *helper_break(struct soft_vcpu *v, const struct site *s)
{
    struct cpu *c = &v->cpu;
    uint32_t hit = 0;
    for (unsigned i = 0; i < 4; i++)
        if ((c->dr7 >> (2 * i) & 3) && (c->dr7 >> (16 + 4 * i) & 15) == 0 && c->dr[i] == c->rip)
            hit |= 1u << i;
    if (hit && !(c->rflags & FL_RF)) {
        cpu_raise(c, EXC_DB);
        c->exc.dr6 = hit;
        return fault(v);
    }
    c->rflags &= ~(uint32_t)FL_RF;
    return soft_code(v->engine, s->next);
}

/* Which exception an x87/SSE/AVX instruction raises in the present CR0/CR4/XCR0 (SDM 2.5, 13.4). */
const void *helper_fpu_check(struct soft_vcpu *v, const struct site *s)
{
    struct cpu *c = &v->cpu;
    enum { K_X87, K_MMX, K_SSE, K_VEX, K_EVEX, K_WAIT } kind = s->arg;
    unsigned vector = 0;
    if (kind == K_WAIT)
        vector = (c->cr0 & (CR0_MP | CR0_TS)) == (CR0_MP | CR0_TS) ? EXC_NM : 0;
    else if (kind == K_X87)
        vector = c->cr0 & (CR0_EM | CR0_TS) ? EXC_NM : 0;
    else if (kind <= K_SSE && ((c->cr0 & CR0_EM) || (kind == K_SSE && !(c->cr4 & CR4_OSFXSR))))
        vector = EXC_UD;
    else if (kind >= K_VEX &&
             (!(c->cr4 & CR4_OSXSAVE) || (c->xcr0 & (kind == K_EVEX ? 0xe6 : 6)) != (kind == K_EVEX ? 0xe6 : 6)))
        vector = EXC_UD;
    else if (c->cr0 & CR0_TS)
        vector = EXC_NM;
    if (!vector)
        return soft_code(v->engine, s->next);
    cpu_raise(c, vector);
    return fault(v);
}

/* --- string instructions ------------------------------------------------------------------------------- */

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

/* The host address of a run of guest bytes inside one page that a string instruction may touch directly,
 * or NULL: element by element then. */
static uint8_t *string_run(struct soft_vcpu *v, uint64_t gva, unsigned access)
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
    if (access == ACCESS_WRITE && tr.gpa >> 12 < v->engine->n_pages && v->engine->code_granules[tr.gpa >> 12])
        return NULL;
    return memory_hva(v->engine->config.memory, tr.gpa, 1);
}

static uint64_t run_elements(uint64_t gva, unsigned size)
{
    return (4096 - (gva & 4095)) / size;
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

/* Many elements at once, forward, inside one page each way; how many were done (0: not possible). */
static uint64_t string_bulk(struct soft_vcpu *v, const struct string_op *o, uint64_t count)
{
    bool null = !(v->mode & MODE_64) && !(v->cpu.seg[o->segment].attr & SEG_P);
    if (null || (v->mode & (MODE_ALIGN | MODE_SEGMENTED)) || o->step < 0 ||
        (o->kind != STR_MOVS && o->kind != STR_STOS) || count < 2)
        return 0;
    uint64_t to = linear(v, get_wide(v, RDI, o->width) + seg_base(v, ES)), n = run_elements(to, o->size);
    if (n > count)
        n = count;
    if (o->kind == STR_STOS) {
        uint8_t *host = n ? string_run(v, to, ACCESS_WRITE) : NULL;
        if (!host)
            return 0;
        fill(host, v->cpu.gpr[RAX], n, o->size);
        string_advance(v, o, n, false, true);
        return n;
    }
    uint64_t from = linear(v, get_wide(v, RSI, o->width) + seg_base(v, o->segment)), m = run_elements(from, o->size);
    if (n > m)
        n = m;
    const uint8_t *source = n ? string_run(v, from, ACCESS_READ) : NULL;
    uint8_t *host = source ? string_run(v, to, ACCESS_WRITE) : NULL;
    if (!host)
        return 0;
    uint64_t gap = (uint64_t)(host - source);
    if (gap < n * o->size && gap % o->size) /* overlapping elements: one by one */
        return 0;
    if (gap && gap < n * o->size) { /* a pattern that repeats: in pieces that do not overlap */
        uint64_t piece = gap / o->size;
        for (uint64_t done = 0; done < n; done += piece)
            copy_forward(host + done * o->size, source + done * o->size,
                         (n - done < piece ? n - done : piece) * o->size);
    } else {
        copy_forward(host, source, n * o->size);
    }
    string_advance(v, o, n, true, true);
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

static uint64_t port_read(struct soft_vcpu *v, uint16_t port, unsigned size);
static void port_write(struct soft_vcpu *v, uint16_t port, uint64_t value, unsigned size);

/* One element at `offset` of `segment`, read or (write) from buf. */
static int string_access(struct soft_vcpu *v, const struct string_op *o, unsigned segment, uint64_t offset, void *buf,
                         bool write)
{
    if (!(v->mode & MODE_64) && !(v->cpu.seg[segment].attr & SEG_P))
        return cpu_raise_error(&v->cpu, EXC_GP, 0);
    uint64_t gva = linear(v, offset + seg_base(v, segment));
    uint8_t *hit = tlb_hit(v, gva, o->size, write);
    if (hit && !(v->mode & MODE_ALIGN)) {
        cpu_copy(write ? (void *)hit : buf, write ? buf : (void *)hit, o->size);
        return 0;
    }
    if (bad_string_address(v, segment, offset, gva, o->size))
        return CPU_FAULT;
    watch(v, gva, o->size, write);
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
    bool source = o->kind == STR_MOVS || o->kind == STR_LODS || o->kind == STR_CMPS || o->kind == STR_OUTS;
    bool destination = o->kind != STR_LODS && o->kind != STR_OUTS, write = o->kind != STR_SCAS && o->kind != STR_CMPS;
    if ((source && segment_fault(v, o->segment, get_wide(v, RSI, o->width), o->size, false)) ||
        (destination && segment_fault(v, ES, get_wide(v, RDI, o->width), o->size, write)))
        return CPU_FAULT;
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
        /* CPUs are seen to read [rdi] first, but not where they compare byte by byte in a fast way */
        if (o->rep == STR_REPE && o->size == 1 && read_source(v, o, &value))
            return CPU_FAULT;
        if (read_destination(v, o, &other) || read_source(v, o, &value))
            return CPU_FAULT;
        compare_flags(v, value, other, o->size);
        string_advance(v, o, 1, true, true);
        return 0;
    case STR_INS:
        if (cpu_check_io(&v->cpu, port, o->size))
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
            return fault(v);
        budget--;
        if (o.kind == STR_SCAS || o.kind == STR_CMPS) {
            bool equal = v->cpu.rflags & FL_ZF;
            if (equal == (o.rep == STR_REPNE))
                return finish(v, s);
        }
        if (((v->mode & MODE_TF) || v->debug_hits) && get_wide(v, RCX, o.width)) { /* a step is one element */
            if (v->mode & MODE_BREAK)
                v->cpu.rflags |= FL_RF; /* a breakpoint on it has been passed */
            return soft_step_done(v);
        }
    }
}

/* --- ports -------------------------------------------------------------------------------------------- */

static uint64_t port_read(struct soft_vcpu *v, uint16_t port, unsigned size)
{
    uint64_t start = soft_ticks(v->engine);
    watch_port(v, port, size);
    soft_fpu_park(v);
    uint64_t value = bus_read(v->engine->config.bus, BUS_PORT, port, size);
    soft_ticks_nested(v, TIME_DEVICE, start);
    return value;
}

static void port_write(struct soft_vcpu *v, uint16_t port, uint64_t value, unsigned size)
{
    uint64_t start = soft_ticks(v->engine);
    watch_port(v, port, size);
    soft_fpu_park(v);
    bus_write(v->engine->config.bus, BUS_PORT, port, value, size);
    soft_ticks_nested(v, TIME_DEVICE, start);
}

/* Zydis lists al/ax/eax first for in, last for out; the port is an immediate or dx. */
const void *helper_in(struct soft_vcpu *v, const struct site *s)
{
    unsigned size = s->size;
    uint16_t port = s->element ? (uint16_t)v->cpu.gpr[RDX] : (uint8_t)s->imm;
    if (cpu_check_io(&v->cpu, port, size))
        return fault(v);
    set_gpr(v, RAX, port_read(v, port, size), size);
    return finish(v, s);
}

const void *helper_out(struct soft_vcpu *v, const struct site *s)
{
    unsigned size = s->size;
    uint16_t port = s->element ? (uint16_t)v->cpu.gpr[RDX] : (uint8_t)s->imm;
    if (cpu_check_io(&v->cpu, port, size))
        return fault(v);
    uint64_t value = v->cpu.gpr[RAX] & (size == 4 ? UINT32_MAX : size == 2 ? 0xffff : 0xff);
    port_write(v, port, value, size);
    return finish(v, s);
}

/* --- identification and time ------------------------------------------------------------------------ */

const void *helper_cpuid(struct soft_vcpu *v, const struct site *s)
{
    struct cpuid_regs r;
    cpu_cpuid(&v->cpu, (uint32_t)v->cpu.gpr[RAX], (uint32_t)v->cpu.gpr[RCX], &r);
    v->cpu.gpr[RAX] = r.eax;
    v->cpu.gpr[RBX] = r.ebx;
    v->cpu.gpr[RCX] = r.ecx;
    v->cpu.gpr[RDX] = r.edx;
    return finish(v, s);
}

/* 0 rdtsc, 1 rdtscp, 2 rdpid */
const void *helper_rdtsc(struct soft_vcpu *v, const struct site *s)
{
    struct cpu *c = &v->cpu;
    if (arg_kind(s) == 2) {
        set_gpr(v, arg_reg(s), c->tsc_aux, 8);
        return finish(v, s);
    }
    if ((c->cr4 & CR4_TSD) && c->cpl)
        return gp0(v);
    uint64_t tsc = cpu_guest_tsc(c);
    c->gpr[RAX] = (uint32_t)tsc;
    c->gpr[RDX] = tsc >> 32;
    if (arg_kind(s) == 1)
        c->gpr[RCX] = (uint32_t)c->tsc_aux;
    return finish(v, s);
}

const void *helper_msr(struct soft_vcpu *v, const struct site *s)
{
    struct cpu *c = &v->cpu;
    if (c->cpl)
        return gp0(v);
    uint32_t index = (uint32_t)c->gpr[RCX];
    soft_fpu_park(v); /* the local APIC and the time page are behind some */
    if (arg_kind(s)) {
        uint64_t value = (uint32_t)c->gpr[RAX] | c->gpr[RDX] << 32;
        return cpu_wrmsr(c, index, value) ? fault(v) : jump_next(v, s);
    }
    uint64_t value;
    if (cpu_rdmsr(c, index, &value))
        return fault(v);
    c->gpr[RAX] = (uint32_t)value;
    c->gpr[RDX] = value >> 32;
    return finish(v, s);
}

/* --- control and debug registers ------------------------------------------------------------------------ */

const void *helper_cr_read(struct soft_vcpu *v, const struct site *s)
{
    uint64_t value;
    if (v->cpu.cpl)
        return gp0(v);
    if (arg_kind(s) == 8)
        soft_fpu_park(v);
    if (cpu_read_cr(&v->cpu, arg_kind(s), &value))
        return fault(v);
    set_gpr(v, arg_reg(s), value, v->mode & MODE_64 ? 8 : 4);
    return finish(v, s);
}

const void *helper_cr_write(struct soft_vcpu *v, const struct site *s)
{
    if (v->cpu.cpl)
        return gp0(v);
    uint64_t value = v->cpu.gpr[arg_reg(s)];
    if (!(v->mode & MODE_64))
        value = (uint32_t)value;
    if (arg_kind(s) == 8)
        soft_fpu_park(v);
    if (cpu_write_cr(&v->cpu, arg_kind(s), value))
        return fault(v);
    return jump_next(v, s);
}

const void *helper_dr(struct soft_vcpu *v, const struct site *s)
{
    uint64_t value = v->cpu.gpr[arg_reg(s)];
    if (v->cpu.cpl)
        return gp0(v);
    if (arg_size(s)) {
        if (!(v->mode & MODE_64))
            value = (uint32_t)value;
        return cpu_write_dr(&v->cpu, arg_kind(s), value) ? fault(v) : jump_next(v, s);
    }
    if (cpu_read_dr(&v->cpu, arg_kind(s), &value))
        return fault(v);
    set_gpr(v, arg_reg(s), value, v->mode & MODE_64 ? 8 : 4);
    return finish(v, s);
}

const void *helper_clts_lmsw(struct soft_vcpu *v, const struct site *s)
{
    struct cpu *c = &v->cpu;
    if (c->cpl)
        return gp0(v);
    if (arg_kind(s) == 0)
        return cpu_write_cr(c, 0, c->cr0 & ~(uint64_t)CR0_TS) ? fault(v) : jump_next(v, s);
    uint16_t value = (uint16_t)c->gpr[arg_reg(s) & 15];
    if (arg_memory(s) && data_read(v, v->helper_ea, &value, 2))
        return fault(v);
    return cpu_lmsw(c, value) ? fault(v) : jump_next(v, s);
}

const void *helper_xsetbv(struct soft_vcpu *v, const struct site *s)
{
    struct cpu *c = &v->cpu;
    if (cpu_xsetbv(c, (uint32_t)c->gpr[RCX], (uint32_t)c->gpr[RAX] | c->gpr[RDX] << 32))
        return fault(v);
    return jump_next(v, s);
}

const void *helper_xgetbv(struct soft_vcpu *v, const struct site *s)
{
    struct cpu *c = &v->cpu;
    uint32_t index = (uint32_t)c->gpr[RCX];
    if (!(c->cr4 & CR4_OSXSAVE)) {
        cpu_raise(c, EXC_UD);
        return fault(v);
    }
    if (index > 1)
        return gp0(v);
    uint64_t value = c->xcr0;
    if (index == 1) { /* XINUSE: components not in their initial state */
        uint32_t a, d;
        __asm__ volatile("xgetbv" : "=a"(a), "=d"(d) : "c"(1));
        value &= (uint64_t)d << 32 | a;
    }
    c->gpr[RAX] = (uint32_t)value;
    c->gpr[RDX] = value >> 32;
    return finish(v, s);
}

/* --- flags ------------------------------------------------------------------------------------------------ */

const void *helper_cli(struct soft_vcpu *v, const struct site *s)
{
    struct cpu *c = &v->cpu;
    if (c->cpl > (c->rflags >> 12 & 3))
        return gp0(v);
    c->rflags &= ~(uint32_t)FL_IF;
    return finish(v, s);
}

const void *helper_sti(struct soft_vcpu *v, const struct site *s)
{
    struct cpu *c = &v->cpu;
    if (c->cpl > (c->rflags >> 12 & 3))
        return gp0(v);
    if (!(c->rflags & FL_IF) && s->arg)
        c->irq_shadow = 1;
    c->rflags |= FL_IF;
    const void *next = s->block->dead ? jump_next(v, s) : soft_code(v->engine, s->next);
    if (v->cpu.request)
        atomic_store(&v->poll, 1); /* seen after the next instruction */
    return next;
}

const void *helper_stac(struct soft_vcpu *v, const struct site *s)
{
    struct cpu *c = &v->cpu;
    if (c->cpl) {
        cpu_raise(c, EXC_UD);
        return fault(v);
    }
    c->rflags = arg_kind(s) ? c->rflags | FL_AC : c->rflags & ~(uint32_t)FL_AC;
    soft_update_mode(v);
    return jump_next(v, s);
}

/* Every check of a stack access at `sp`; the linear address in *at. */
static int stack_address(struct soft_vcpu *v, uint64_t sp, unsigned size, bool write, uint64_t *at)
{
    if (small_stack(v) || segment_fault(v, SS, sp, size, write))
        return CPU_FAULT;
    uint64_t base = v->mode & MODE_64 ? 0 : v->cpu.seg[SS].base;
    if ((v->mode & MODE_64) && !(cpu_canonical(&v->cpu, sp) && cpu_canonical(&v->cpu, sp + size - 1)))
        return cpu_raise_error(&v->cpu, EXC_SS, 0);
    if (wraps(v, sp, size))
        return cpu_raise_error(&v->cpu, EXC_SS, 0);
    if (misaligned(v, sp, size))
        return cpu_raise_error(&v->cpu, EXC_AC, 0);
    *at = linear(v, sp + base);
    watch(v, *at, size, write);
    return 0;
}

static unsigned stack_push(struct soft_vcpu *v, const void *value, unsigned size)
{
    uint64_t sp = linear(v, v->cpu.gpr[RSP] - size), at;
    if (stack_address(v, sp, size, true, &at) || cpu_write(&v->cpu, at, value, size, user_mode(v)))
        return CPU_FAULT;
    v->cpu.gpr[RSP] = sp;
    return 0;
}

static unsigned stack_read(struct soft_vcpu *v, uint64_t sp, void *value, unsigned size)
{
    uint64_t at;
    if (stack_address(v, linear(v, sp), size, false, &at))
        return CPU_FAULT;
    return (unsigned)cpu_read(&v->cpu, at, value, size, user_mode(v));
}

static unsigned stack_peek(struct soft_vcpu *v, unsigned offset, void *value, unsigned size)
{
    return stack_read(v, v->cpu.gpr[RSP] + offset, value, size);
}

const void *helper_pushf(struct soft_vcpu *v, const struct site *s)
{
    uint64_t value = cpu_pushf_value(&v->cpu);
    return stack_push(v, &value, arg_kind(s)) ? fault(v) : finish(v, s);
}

const void *helper_popf(struct soft_vcpu *v, const struct site *s)
{
    uint64_t value = 0;
    unsigned size = arg_kind(s);
    bool was = v->mode & MODE_TF;
    if (stack_peek(v, 0, &value, size) || cpu_popf(&v->cpu, value, size))
        return fault(v);
    v->cpu.gpr[RSP] = linear(v, v->cpu.gpr[RSP] + size);
    soft_update_mode(v);
    v->cpu.rip = next_pc(v, s);
    if (was || v->debug_hits) {
        cpu_raise_debug(&v->cpu, v->debug_hits | (was ? DR6_BS : 0));
        return fault(v);
    }
    return soft_next(v);
}

/* --- control transfers -------------------------------------------------------------------------------------- */

static const void *transferred(struct soft_vcpu *v, int rc)
{
    if (rc == CPU_SHUTDOWN) {
        v->shutdown = true;
        atomic_store(&v->poll, 1);
        return soft_leave;
    }
    if (rc)
        return fault(v);
    soft_update_mode(v);
    if (v->debug_hits) {
        cpu_raise_debug(&v->cpu, v->debug_hits);
        return fault(v);
    }
    return jump(v);
}

const void *helper_iret(struct soft_vcpu *v, const struct site *s)
{
    return transferred(v, cpu_iret(&v->cpu, arg_kind(s)));
}
const void *helper_syscall(struct soft_vcpu *v, const struct site *s)
{
    return transferred(v, cpu_syscall(&v->cpu, next_pc(v, s)));
}
const void *helper_sysret(struct soft_vcpu *v, const struct site *s)
{
    return transferred(v, cpu_sysret(&v->cpu, s->arg2 == 8 ? 8 : 4));
}
const void *helper_sysenter(struct soft_vcpu *v, const struct site *s)
{
    return transferred(v, cpu_sysenter(&v->cpu));
}
const void *helper_sysexit(struct soft_vcpu *v, const struct site *s)
{
    return transferred(v, cpu_sysexit(&v->cpu, s->arg2 == 8 ? 8 : 4));
}
const void *helper_far_ret(struct soft_vcpu *v, const struct site *s)
{
    return transferred(v, cpu_far_return(&v->cpu, s->arg2, (unsigned)s->imm & 0xffff));
}

const void *helper_int(struct soft_vcpu *v, const struct site *s)
{
    struct cpu *c = &v->cpu;
    uint64_t next = next_pc(v, s);
    switch (arg_kind(s)) {
    case INT_3:
        return transferred(v, cpu_soft_interrupt(c, EXC_BP, EXC_SOFT_TRAP, next));
    case INT_O:
        if (!(c->rflags & FL_OF))
            return jump_next(v, s);
        return transferred(v, cpu_soft_interrupt(c, EXC_OF, EXC_SOFT_TRAP, next));
    case INT_1:
        return transferred(v, cpu_soft_interrupt(c, EXC_DB, EXC_SOFT_TRAP, next));
    default:
        return transferred(v, cpu_soft_interrupt(c, (uint8_t)s->imm, EXC_SOFT_INT, next));
    }
}

const void *helper_far(struct soft_vcpu *v, const struct site *s)
{
    struct cpu *c = &v->cpu;
    uint16_t selector = (uint16_t)(s->imm >> 32);
    uint64_t offset = (uint32_t)s->imm;
    unsigned size = s->arg2;
    if (arg_memory(s)) {
        uint8_t raw[10] = {0};
        if (data_read(v, v->helper_ea, raw, size + 2))
            return fault(v);
        offset = 0;
        cpu_copy(&offset, raw, size);
        cpu_copy(&selector, raw + size, 2);
    }
    return transferred(v, arg_kind(s) ? cpu_far_call(c, selector, offset, size, next_pc(v, s))
                                      : cpu_far_jump(c, selector, offset, size));
}

const void *helper_hlt(struct soft_vcpu *v, const struct site *s)
{
    if (v->cpu.cpl)
        return gp0(v);
    v->cpu.rip = next_pc(v, s);
    v->cpu.halted = 1;
    atomic_store(&v->poll, 1);
    return soft_leave;
}

/* --- segments and tables ---------------------------------------------------------------------------------------- */

/* bit 31 of arg: pop, else from a register or (register 16) memory */
const void *helper_load_segment(struct soft_vcpu *v, const struct site *s)
{
    uint16_t selector = (uint16_t)v->cpu.gpr[arg_reg(s) & 15];
    bool pop = s->arg >> 31;
    if (pop) {
        if (stack_peek(v, 0, &selector, 2))
            return fault(v);
    } else if (arg_reg(s) == NO_REG && data_read(v, v->helper_ea, &selector, 2)) {
        return fault(v);
    }
    if (arg_kind(s) == CS) {
        cpu_raise(&v->cpu, EXC_UD);
        return fault(v);
    }
    if (cpu_load_segment(&v->cpu, (enum sreg)arg_kind(s), selector))
        return fault(v);
    if (pop)
        v->cpu.gpr[RSP] = linear(v, v->cpu.gpr[RSP] + (s->arg >> 16 & 0xff));
    soft_update_mode(v);
    return arg_kind(s) == SS ? jump_next_shadow(v, s) : jump_next(v, s);
}

/* lfs, lgs, lss, lds, les */
const void *helper_load_far(struct soft_vcpu *v, const struct site *s)
{
    uint8_t raw[10] = {0};
    unsigned size = s->arg2;
    uint16_t selector;
    uint64_t offset = 0;
    if (data_read(v, v->helper_ea, raw, size + 2))
        return fault(v);
    cpu_copy(&offset, raw, size);
    cpu_copy(&selector, raw + size, 2);
    if (cpu_load_segment(&v->cpu, (enum sreg)arg_kind(s), selector))
        return fault(v);
    set_gpr(v, arg_reg(s), offset, size);
    soft_update_mode(v);
    return jump_next(v, s);
}

static bool umip_blocks(const struct cpu *c)
{
    return c->cpl && (c->cr4 & CR4_UMIP);
}

const void *helper_descriptor_table(struct soft_vcpu *v, const struct site *s)
{
    struct cpu *c = &v->cpu;
    unsigned kind = arg_kind(s), wide = v->mode & MODE_64 ? 8 : 4;
    uint8_t raw[10];
    struct descriptor_table *t = kind == SYS_LGDT || kind == SYS_SGDT ? &c->gdtr : &c->idtr;
    if (kind == SYS_SGDT || kind == SYS_SIDT) {
        if (umip_blocks(c))
            return gp0(v);
        cpu_copy(raw, &t->limit, 2);
        cpu_copy(raw + 2, &t->base, wide);
        return data_write(v, v->helper_ea, raw, 2 + wide) ? fault(v) : finish(v, s);
    }
    if (c->cpl)
        return gp0(v);
    if (data_read(v, v->helper_ea, raw, 2 + wide))
        return fault(v);
    struct descriptor_table value = {0};
    cpu_copy(&value.limit, raw, 2);
    cpu_copy(&value.base, raw + 2, wide);
    if (wide == 4 && s->arg2 == 2)
        value.base &= 0xffffff;
    if (wide == 8 && !cpu_canonical(c, value.base))
        return gp0(v);
    *t = value;
    return jump_next(v, s);
}

const void *helper_descriptor_load(struct soft_vcpu *v, const struct site *s)
{
    struct cpu *c = &v->cpu;
    if (c->cpl)
        return gp0(v);
    uint16_t selector = (uint16_t)c->gpr[arg_reg(s) & 15];
    if (arg_memory(s) && data_read(v, v->helper_ea, &selector, 2))
        return fault(v);
    int rc = arg_kind(s) ? cpu_ltr(c, selector) : cpu_lldt(c, selector);
    return rc ? fault(v) : jump_next(v, s);
}

/* sldt, str, smsw and mov from a segment register: a register or 16 bits of memory */
const void *helper_store_system(struct soft_vcpu *v, const struct site *s)
{
    struct cpu *c = &v->cpu;
    uint64_t value;
    switch (arg_kind(s)) {
    case SYS_SLDT:
        value = c->ldtr.selector;
        break;
    case SYS_STR:
        value = c->tr.selector;
        break;
    case SYS_SMSW:
        value = c->cr0;
        break;
    default:
        value = c->seg[s->arg2].selector;
        break;
    }
    if (arg_kind(s) != SYS_SELECTOR && umip_blocks(c))
        return gp0(v);
    if (arg_reg(s) == NO_REG)
        return data_write(v, v->helper_ea, &value, 2) ? fault(v) : finish(v, s);
    set_gpr(v, arg_reg(s), value, arg_size(s));
    return finish(v, s);
}

const void *helper_query(struct soft_vcpu *v, const struct site *s)
{
    struct cpu *c = &v->cpu;
    unsigned kind = arg_kind(s);
    bool two = kind == DESC_LAR || kind == DESC_LSL;
    uint16_t selector = (uint16_t)c->gpr[(two ? s->element : arg_reg(s)) & 15];
    if (arg_memory(s) && data_read(v, v->helper_ea, &selector, 2))
        return fault(v);
    bool zf;
    uint64_t value = 0;
    if (cpu_query_descriptor(c, (int)kind, selector, &zf, &value))
        return fault(v);
    c->rflags = zf ? c->rflags | FL_ZF : c->rflags & ~(uint32_t)FL_ZF;
    if (two && zf)
        set_gpr(v, arg_reg(s), value, s->arg2);
    return finish(v, s);
}

const void *helper_swapgs(struct soft_vcpu *v, const struct site *s)
{
    if (cpu_swapgs(&v->cpu))
        return fault(v);
    return jump_next(v, s);
}

/* 0 rdfsbase, 1 rdgsbase, 2 wrfsbase, 3 wrgsbase */
const void *helper_fsgsbase(struct soft_vcpu *v, const struct site *s)
{
    struct cpu *c = &v->cpu;
    if (!(c->cr4 & CR4_FSGSBASE) || !(v->mode & MODE_64)) {
        cpu_raise(c, EXC_UD);
        return fault(v);
    }
    struct segment *seg = &c->seg[arg_kind(s) & 1 ? GS : FS];
    unsigned reg = arg_reg(s), size = s->arg2;
    if (arg_kind(s) < 2) {
        set_gpr(v, reg, seg->base, size);
        return finish(v, s);
    }
    uint64_t value = size == 8 ? c->gpr[reg] : (uint32_t)c->gpr[reg];
    if (!cpu_canonical(c, value))
        return gp0(v);
    seg->base = value;
    return finish(v, s);
}

/* --- memory management ------------------------------------------------------------------------------------------- */

const void *helper_invlpg(struct soft_vcpu *v, const struct site *s)
{
    if (v->cpu.cpl)
        return gp0(v);
    if (!(v->mode & MODE_64) || cpu_canonical(&v->cpu, v->helper_ea))
        soft_cpu_ops.tlb_flush_page(&v->cpu, linear(v, v->helper_ea));
    return jump_next(v, s);
}

const void *helper_invpcid(struct soft_vcpu *v, const struct site *s)
{
    uint64_t descriptor[2];
    if (v->cpu.cpl)
        return gp0(v);
    if (data_read(v, v->helper_ea, descriptor, 16))
        return fault(v);
    if (cpu_invpcid(&v->cpu, v->cpu.gpr[arg_reg(s) & 15], descriptor))
        return fault(v);
    return jump_next(v, s);
}

const void *helper_wbinvd(struct soft_vcpu *v, const struct site *s)
{
    return v->cpu.cpl ? gp0(v) : finish(v, s);
}

/* --- the rest ------------------------------------------------------------------------------------------------------
 */

const void *helper_enter(struct soft_vcpu *v, const struct site *s)
{
    struct cpu *c = &v->cpu;
    unsigned size = s->arg2, level = s->element & 31;
    uint64_t rsp = c->gpr[RSP], frame;
    uint64_t value = c->gpr[RBP];
    if (stack_push(v, &value, size))
        return fault(v);
    frame = c->gpr[RSP];
    for (unsigned i = 1; i < level; i++) {
        uint64_t up = 0;
        if (stack_read(v, c->gpr[RBP] - i * size, &up, size) || stack_push(v, &up, size)) {
            c->gpr[RSP] = rsp;
            return fault(v);
        }
    }
    if (level && stack_push(v, &frame, size)) {
        c->gpr[RSP] = rsp;
        return fault(v);
    }
    uint64_t sp = linear(v, c->gpr[RSP] - (uint16_t)s->imm);
    struct translation tr;
    if (((v->mode & MODE_64) && !cpu_canonical(c, sp) && cpu_raise_error(c, EXC_SS, 0)) ||
        (misaligned(v, sp, size) && cpu_raise_error(c, EXC_AC, 0)) ||
        cpu_walk(c, linear(v, sp + (v->mode & MODE_64 ? 0 : c->seg[SS].base)), ACCESS_WRITE, user_mode(v), &tr)) {
        c->gpr[RSP] = rsp;
        return fault(v);
    }
    set_gpr(v, RBP, frame, size);
    c->gpr[RSP] = sp;
    return finish(v, s);
}

/* A near branch is about to go to helper_ea. */
const void *helper_target(struct soft_vcpu *v, const struct site *s)
{
    struct translation tr;
    uint64_t sp = v->cpu.gpr[RSP] - s->arg;
    if (cpu_canonical(&v->cpu, v->helper_ea))
        return soft_code(v->engine, s->next);
    if (s->arg && !(cpu_canonical(&v->cpu, sp) && cpu_canonical(&v->cpu, sp + s->arg - 1)))
        cpu_raise_error(&v->cpu, EXC_SS, 0);
    else if (!s->arg ||
             (!cpu_walk(&v->cpu, sp, ACCESS_WRITE, user_mode(v), &tr) &&
              ((sp & 4095) + s->arg <= 4096 || !cpu_walk(&v->cpu, (sp | 4095) + 1, ACCESS_WRITE, user_mode(v), &tr))))
        cpu_raise_error(&v->cpu, EXC_GP, 0);
    return fault(v);
}

const void *helper_clzero(struct soft_vcpu *v, const struct site *s)
{
    static const uint8_t zero[64];
    return data_write(v, v->helper_ea & ~63ull, zero, sizeof(zero)) ? fault(v) : finish(v, s);
}

const void *helper_pusha(struct soft_vcpu *v, const struct site *s)
{
    struct cpu *c = &v->cpu;
    unsigned size = s->arg & 0x7f;
    uint32_t base = (uint32_t)c->seg[SS].base;
    /* one by one, as CPUs are seen to do: what came before a fault is done, but for esp */
    if (s->arg & 0x80) {
        if (small_stack(v) || segment_fault(v, SS, c->gpr[RSP], 8 * size, false))
            return fault(v);
        for (unsigned i = 0; i < 8; i++) {
            uint64_t value = 0;
            if (data_read(v, (uint32_t)(c->gpr[RSP] + i * size + base), &value, size))
                return fault(v);
            if (7 - i != RSP)
                set_gpr(v, 7 - i, value, size);
        }
        c->gpr[RSP] = (uint32_t)(c->gpr[RSP] + 8 * size);
        return finish(v, s);
    }
    uint32_t sp = (uint32_t)c->gpr[RSP] - 8 * size;
    if (small_stack(v) || segment_fault(v, SS, sp, 8 * size, true))
        return fault(v);
    for (unsigned i = 0; i < 8; i++)
        if (data_write(v, (uint32_t)(sp + (7 - i) * size + base), &c->gpr[i], size))
            return fault(v);
    c->gpr[RSP] = sp;
    return finish(v, s);
}

const void *helper_bound(struct soft_vcpu *v, const struct site *s)
{
    int32_t limits[2];
    unsigned size = s->arg2;
    uint8_t raw[8];
    if (data_read(v, v->helper_ea, raw, size) || data_read(v, linear(v, v->helper_ea + size), raw + size, size))
        return fault(v);
    int32_t index = (int32_t)v->cpu.gpr[arg_reg(s)];
    for (unsigned i = 0; i < 2; i++) {
        int32_t value = 0;
        cpu_copy(&value, raw + i * size, size);
        limits[i] = size == 2 ? (int16_t)value : value;
    }
    if (size == 2)
        index = (int16_t)index;
    if (index < limits[0] || index > limits[1]) {
        cpu_raise(&v->cpu, EXC_BR);
        return fault(v);
    }
    return finish(v, s);
}

/* ARPL: the destination's RPL rises to the source's.  It writes only then, and only then must the segment allow it. */
const void *helper_arpl(struct soft_vcpu *v, const struct site *s)
{
    struct cpu *c = &v->cpu;
    uint16_t to = (uint16_t)c->gpr[arg_reg(s) & 15], from = (uint16_t)c->gpr[s->element & 15];
    if (arg_memory(s) && data_read(v, v->helper_ea, &to, 2))
        return fault(v);
    bool raised = (to & 3) < (from & 3);
    if (raised) {
        to = (uint16_t)((to & ~3) | (from & 3));
        if (arg_memory(s) && (c->seg[s->imm].attr & (SEG_CODE | SEG_WRITABLE)) != SEG_WRITABLE)
            return gp0(v);
        if (arg_memory(s) && data_write(v, v->helper_ea, &to, 2))
            return fault(v);
        if (!arg_memory(s))
            set_gpr(v, arg_reg(s), to, 2);
    }
    c->rflags = raised ? c->rflags | FL_ZF : c->rflags & ~(uint32_t)FL_ZF;
    return finish(v, s);
}

/* The decimal adjustments of 32-bit code, and salc. */
const void *helper_decimal(struct soft_vcpu *v, const struct site *s)
{
    struct cpu *c = &v->cpu;
    if (arg_kind(s) == DEC_AAM && !(uint8_t)s->imm) {
        cpu_raise(c, EXC_DE);
        return fault(v);
    }
    uint16_t ax = (uint16_t)c->gpr[RAX];
    c->rflags = decimal_adjust(arg_kind(s), &ax, (uint8_t)s->imm, c->rflags);
    set_gpr(v, RAX, ax, 2);
    return finish(v, s);
}
