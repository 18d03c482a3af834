/* From a form and random choices to code bytes; also sequences of instructions and invalid encodings. */
#include <string.h>

#include "insn.h"

const char *const mem_mode_name[MEM_MODES] = {
    "aligned",      "unaligned", "cross",      "cross-ro",        "ro",   "cross-none", "none", "from-none",
    "noncanonical", "high",      "high-cross", "high-cross-none", "code",
};

/* An address for an access of `size` bytes. */
static uint64_t target_any(struct rng *r, enum mem_mode mode, unsigned size)
{
    if (size == 0 || size > 2048)
        size = 8;
    unsigned over = size > 1 ? 1 + rng_below(r, size - 1) : 0; /* bytes before a boundary */
    unsigned align = size > 32 ? 64 : size > 16 ? 32 : size > 8 ? 16 : 8;
    switch (mode) {
    case MEM_ALIGNED:
        return DATA_LOW + rng_below(r, (uint32_t)(2 * PAGE - 64) / align) * align;
    case MEM_UNALIGNED:
        return DATA_LOW + rng_below(r, (uint32_t)(2 * PAGE - size));
    case MEM_CROSS:
        return DATA_LOW + PAGE - over;
    case MEM_CROSS_RO: /* into it or out of it */
        return DATA_LOW + (rng_percent(r, 70) ? 2 : 3) * PAGE - over;
    case MEM_RO:
        return DATA_LOW + 2 * PAGE + rng_below(r, (uint32_t)(PAGE - size));
    case MEM_CROSS_NONE:
        return DATA_LOW + 4 * PAGE - over;
    case MEM_NONE:
        return DATA_LOW + 5 * PAGE + rng_below(r, (uint32_t)PAGE);
    case MEM_FROM_NONE:
        return DATA_LOW - over;
    case MEM_NONCANONICAL:
        return rng_percent(r, 25) ? 0x800000000000ull - over
                                  : 0x800000000000ull << rng_below(r, 17) ^ rng_below(r, 4096);
    case MEM_HIGH:
        return DATA_HIGH + rng_below(r, (uint32_t)(2 * PAGE - size));
    case MEM_HIGH_CROSS:
        return DATA_HIGH + PAGE - over;
    case MEM_HIGH_CROSS_NONE:
        return rng_percent(r, 50) ? DATA_HIGH + 2 * PAGE - over : DATA_HIGH - over;
    default:
        return (rng_percent(r, 50) ? CODE_LOW : CODE_HIGH) + rng_below(r, (uint32_t)(2 * PAGE - size));
    }
}

/* 32-bit code reaches neither high addresses nor non-canonical ones: other edges take their places. */
uint64_t target_pick(struct rng *r, enum mem_mode mode, unsigned size, bool compat)
{
    uint64_t t = target_any(r, mode, size);
    if (!compat || t < 0x100000000ull)
        return t;
    if (mode == MEM_NONCANONICAL) /* the end of the segment */
        return 0xffffffffull - rng_below(r, size ? size : 1);
    return mode == MEM_CODE ? t - CODE_HIGH + CODE_LOW : t - DATA_HIGH + DATA_STACK;
}

uint64_t code_place(struct rng *r, unsigned len, bool compat)
{
    uint64_t base = compat || rng_percent(r, 70) ? CODE_LOW : CODE_HIGH;
    unsigned c = rng_below(r, 16);
    if (c == 0 && len > 1) /* the instruction straddles the pages */
        return base + PAGE - 1 - rng_below(r, len - 1);
    if (c == 1) /* ends where nothing follows, or does not fit */
        return base + 2 * PAGE - len + (rng_percent(r, 30) ? rng_below(r, len) : 0);
    if (c == 2)
        return base + PAGE - len;
    return base + rng_below(r, (uint32_t)(2 * PAGE - 160));
}

/* ---- one instruction ------------------------------------------------------------------------------- */
struct operands {
    bool r, x, b, r2, v2, w; /* REX.RXB, EVEX.R'V' as ones, REX.W */
    uint8_t modrm, sib, disp_len;
    bool sib_used, rip;
    uint8_t disp[4];
    uint8_t vvvv;
    bool a32;
    uint8_t segment;
};

static void put_disp(struct operands *o, struct rng *r, unsigned len)
{
    uint32_t v = rng_percent(r, 50) ? (uint32_t)rng_next(r) : rng_below(r, 4096) - 2048;
    o->disp_len = (uint8_t)len;
    memcpy(o->disp, &v, 4);
}

/* [base + disp8]: what compiled code does most, several times off one register. */
static void choose_near_base(struct operands *o, struct rng *r, unsigned base)
{
    o->modrm = (uint8_t)((o->modrm & 0x38) | 0x40 | (base & 7));
    o->b = base & 8;
    if ((base & 7) == 4) {
        o->sib = 0x24;
        o->sib_used = true;
    }
    put_disp(o, r, 1);
    o->disp[0] = (uint8_t)(rng_below(r, 9) * 8 - (rng_percent(r, 30) ? 32 : 0));
}

static void choose_memory(struct operands *o, const struct form *f, struct rng *r, enum mem_mode mode, bool compat)
{
    unsigned kind = rng_below(r, 16), regs = compat ? 8 : 16, base = rng_below(r, regs), index = rng_below(r, regs);
    uint8_t reg = o->modrm & 0x38;
    o->modrm = reg;
    if (kind == 15 && !f->vsib) { /* rip-relative; the displacement comes when the length is known */
        uint32_t v = (uint32_t)target_pick(r, mode, f->mem_size, compat);
        memcpy(o->disp, &v, 4); /* absolute in 32-bit code */
        o->modrm |= 5, o->rip = !compat, o->disp_len = 4;
        return;
    }
    if (kind == 14) { /* no base */
        uint32_t v = kind == 14 && index == 4 && !f->vsib ? (uint32_t)target_pick(r, mode, f->mem_size, compat)
                                                          : rng_below(r, 65536);
        o->modrm |= 4, o->sib_used = true, o->disp_len = 4;
        memcpy(o->disp, &v, 4);
        o->sib = (uint8_t)(rng_below(r, 4) << 6 | (index & 7) << 3 | 5);
        o->x = index & 8;
        o->v2 = f->vsib && !compat && rng_percent(r, 50);
        return;
    }
    unsigned disp = rng_below(r, 3); /* mod */
    if ((base & 7) == 5 && disp == 0)
        disp = 1;
    o->b = base & 8;
    if (kind < 6 && (base & 7) != 4 && !f->vsib) {
        o->modrm |= base & 7;
    } else {
        if (kind < 6 && !f->vsib)
            index = 4; /* rsp, r12 as base need a SIB byte */
        o->modrm |= 4, o->sib_used = true;
        o->sib = (uint8_t)(rng_below(r, 4) << 6 | (index & 7) << 3 | (base & 7));
        o->x = index & 8;
        o->v2 = f->vsib && !compat && rng_percent(r, 50);
    }
    o->modrm |= disp << 6;
    put_disp(o, r, disp == 0 ? 0 : disp == 1 ? 1 : 4);
}

/* The same with an address of 16 bits, in an instruction without 67h. */
static void choose_narrow_memory(struct operands *o, const struct form *f, struct rng *r, enum mem_mode mode,
                                 unsigned base)
{
    static const uint8_t near[8] = {[3] = 7, [5] = 6, [6] = 4, [7] = 5}; /* bx, bp, si, di */
    bool by_base = base < 8 && near[base];
    unsigned mod = by_base ? 1 : rng_below(r, 3), rm = by_base ? near[base] : rng_below(r, 8);
    o->modrm = (uint8_t)((o->modrm & 0x38) | mod << 6 | rm);
    if (mod == 0 && rm == 6) {
        uint32_t v = (uint32_t)(target_pick(r, mode, f->mem_size, true) - DATA_LOW);
        memcpy(o->disp, &v, 4);
        o->disp_len = 2;
        return;
    }
    put_disp(o, r, mod);
    if (by_base)
        o->disp[0] = (uint8_t)(rng_below(r, 9) * 8 - (rng_percent(r, 30) ? 32 : 0));
}

/* base: a register for all memory operands, or ANY_BASE. */
#define ANY_BASE 16
static void choose_operands(struct operands *o, const struct forms *forms, const struct form *f, struct rng *r,
                            enum mem_mode mode, unsigned base)
{
    bool compat = forms->compat, narrow = forms->narrow;
    *o = (struct operands){.w = f->w, .modrm = f->modrm, .vvvv = 15};
    bool high = !compat && rng_percent(r, 60); /* r8 and up, xmm8 and up */
    if (f->has_modrm && f->reg_free) {
        o->modrm = (uint8_t)((o->modrm & 0xc7) | rng_below(r, 8) << 3);
        o->r = high && rng_percent(r, 60);
        o->r2 = !compat && rng_percent(r, 30);
    }
    if (f->is_mem) {
        o->a32 = narrow && (f->vsib || rng_percent(r, 25));
        if (narrow && !o->a32)
            choose_narrow_memory(o, f, r, mode, base);
        else if (base != ANY_BASE && !f->vsib)
            choose_near_base(o, r, base);
        else
            choose_memory(o, f, r, mode, compat);
        if (!compat && rng_percent(r, 12)) /* 67h would change the meaning of ModRM in 32-bit code */
            o->a32 = true;
        if (rng_percent(r, 16))
            o->segment = rng_percent(r, 50) ? 0x64 : 0x65;
    } else if (f->has_modrm && f->rm_free) {
        o->modrm = (uint8_t)((o->modrm & 0xf8) | rng_below(r, 8));
        o->b = high && rng_percent(r, 60);
        o->x = !compat && f->encoding == ZYDIS_INSTRUCTION_ENCODING_EVEX && rng_percent(r, 30);
    } else if (f->opcode_reg) {
        o->b = high && rng_percent(r, 60);
    }
    if (f->vvvv_free) {
        o->vvvv = (uint8_t)(rng_below(r, 16) | (compat && rng_percent(r, 90) ? 8 : 0));
        if (!f->vsib && !compat)
            o->v2 = rng_percent(r, 30);
    }
    if (compat && f->encoding != ZYDIS_INSTRUCTION_ENCODING_LEGACY) { /* bits that mean something in 64-bit code only */
        o->b = rng_percent(r, 10);
        o->r2 = rng_percent(r, 10);
        o->w ^= rng_percent(r, 15);
    }
    if (!f->has_modrm && f->disp && (!compat || narrow) && rng_percent(r, 12))
        o->a32 = true;
    if (rng_percent(r, narrow ? 12 : 4)) /* redundant ones too */
        o->segment = "\x2e\x36\x3e\x26\x64\x65"[rng_below(r, 6)];
    if (f->mem_size && !f->has_modrm && !f->disp && rng_percent(r, 8))
        o->a32 = true; /* string operations, xlat, push: esi, edi, ecx */
}

static unsigned put_legacy(const struct form *f, const struct operands *o, struct rng *r, uint8_t *out, bool compat)
{
    unsigned n = 0;
    uint8_t prefix[15], count = 0;
    if (f->lock)
        prefix[count++] = 0xf0;
    if (f->p66)
        prefix[count++] = 0x66;
    if (f->rep)
        prefix[count++] = f->rep;
    if (o->a32)
        prefix[count++] = 0x67;
    if (o->segment)
        prefix[count++] = o->segment;
    if (rng_percent(r, 4)) /* prefix soup: whatever still decodes to the form */
        for (unsigned more = 1 + rng_below(r, 5); more--;)
            prefix[count++] = "\x2e\x36\x3e\x26\x66\xf2\xf3\x67\x48\x41"[rng_below(r, compat ? 7 : 10)];
    while (count) { /* in any order */
        unsigned k = rng_below(r, count);
        out[n++] = prefix[k];
        prefix[k] = prefix[--count];
    }
    uint8_t rex = (uint8_t)(o->w << 3 | o->r << 2 | o->x << 1 | o->b);
    if (!compat && (rex || rng_percent(r, 15)))
        out[n++] = 0x40 | rex;
    if (f->map)
        out[n++] = 0x0f;
    if (f->map > 1)
        out[n++] = f->map == 2 ? 0x38 : 0x3a;
    out[n++] = f->opcode_reg ? (f->opcode & 0xf8) | rng_below(r, 8) : f->opcode;
    return n;
}

static unsigned put_vector(const struct form *f, const struct operands *o, struct rng *r, uint8_t *out, bool compat)
{
    unsigned n = 0;
    if (o->segment)
        out[n++] = o->segment;
    if (o->a32)
        out[n++] = 0x67;
    uint8_t rxb = (uint8_t)(!o->r << 7 | !o->x << 6 | !o->b << 5), vvvv = o->vvvv << 3;
    if (f->encoding == ZYDIS_INSTRUCTION_ENCODING_EVEX) {
        uint8_t aaa = f->aaa ? (uint8_t)(1 + rng_below(r, 7)) : 0;
        out[n++] = 0x62;
        out[n++] = (uint8_t)(rxb | !o->r2 << 4 | f->map);
        out[n++] = (uint8_t)(o->w << 7 | vvvv | 4 | f->pp);
        out[n++] = (uint8_t)(f->z << 7 | f->l << 5 | f->b << 4 | !o->v2 << 3 | aaa);
    } else if (f->map == 1 && !o->w && !o->x && !o->b && (o->vvvv & 8 || !compat) && rng_percent(r, 70)) {
        out[n++] = 0xc5;
        out[n++] = (uint8_t)(!o->r << 7 | vvvv | f->l << 2 | f->pp);
    } else {
        out[n++] = 0xc4;
        out[n++] = rxb | f->map;
        out[n++] = (uint8_t)(o->w << 7 | vvvv | f->l << 2 | f->pp);
    }
    out[n++] = f->opcode;
    return n;
}

static uint64_t near_data(struct rng *r, uint64_t addr, enum mem_mode mode, unsigned size)
{
    static const enum mem_mode high[MEM_MODES] = {
        MEM_HIGH,
        MEM_HIGH,
        MEM_HIGH_CROSS,
        MEM_CODE,
        MEM_CODE,
        MEM_HIGH_CROSS_NONE,
        MEM_HIGH_CROSS_NONE,
        MEM_HIGH_CROSS_NONE,
        MEM_HIGH_CROSS_NONE,
        MEM_HIGH,
        MEM_HIGH_CROSS,
        MEM_HIGH_CROSS_NONE,
        MEM_CODE,
    };
    uint64_t t = target_pick(r, addr >= CODE_HIGH ? high[mode] : mode, size, false);
    int64_t delta = (int64_t)(t - addr);
    if (delta != (int32_t)delta || (addr < CODE_HIGH) != (t < 0x100000000ull))
        t = addr < CODE_HIGH ? DATA_LOW + rng_below(r, 8192) : DATA_HIGH + rng_below(r, 8192);
    return t;
}

static unsigned form_encode_off(const struct forms *f, const struct form *form, struct rng *r, uint64_t addr,
                                enum mem_mode mode, unsigned base, uint8_t *out)
{
    struct operands o;
    struct insn i;
    choose_operands(&o, f, form, r, mode, base);
    unsigned n = form->encoding == ZYDIS_INSTRUCTION_ENCODING_LEGACY ? put_legacy(form, &o, r, out, f->compat)
                                                                     : put_vector(form, &o, r, out, f->compat);
    unsigned disp_at = 0;
    if (form->has_modrm) {
        out[n++] = o.modrm;
        if (o.sib_used)
            out[n++] = o.sib;
        disp_at = n;
        memcpy(out + n, o.disp, 4);
        n += o.disp_len;
    } else if (form->disp) {
        uint64_t t = target_pick(r, mode, form->mem_size, f->compat) - (f->narrow ? DATA_LOW : 0);
        memcpy(out + n, &t, 8);
        n += o.a32 ? 4 : form->disp;
    }
    unsigned imm_at = n;
    for (unsigned k = 0; k < 2; k++) {
        uint64_t v = rng_percent(r, 60) ? rng_next(r) : (uint64_t)(int64_t)(int)(rng_below(r, 17) - 8);
        memcpy(out + n, &v, 8);
        n += form->imm[k];
    }
    if (n > 24)
        return 0;
    if (o.rip) {
        uint32_t d = (uint32_t)(near_data(r, addr, mode, form->mem_size) - (addr + n));
        memcpy(out + disp_at, &d, 4);
    }
    if (form->relative && rng_percent(r, 85)) { /* into the code pages, which are full of int3 */
        int64_t to = (int64_t)((addr & ~(2 * PAGE - 1)) + rng_below(r, 2 * PAGE)) - (int64_t)(addr + n);
        if (form->imm[0] > 1)
            memcpy(out + imm_at, &to, form->imm[0]);
    }
    memset(out + n, 0xcc, 16);
    if (!insn_decode(&f->decoder, out, n + 16, &i) || i.i.mnemonic != form->mnemonic || i.i.length != n)
        return 0;
    return i.i.length;
}

unsigned form_encode(const struct forms *f, const struct form *form, struct rng *r, uint64_t addr, enum mem_mode mode,
                     uint8_t *out)
{
    return form_encode_off(f, form, r, addr, mode, ANY_BASE, out);
}

/* ---- sequences --------------------------------------------------------------------------------------- */
static bool fits_sequence(const struct form *f)
{
    switch (f->category) {
    case ZYDIS_CATEGORY_CALL:
    case ZYDIS_CATEGORY_COND_BR:
    case ZYDIS_CATEGORY_UNCOND_BR:
    case ZYDIS_CATEGORY_RET:
    case ZYDIS_CATEGORY_INTERRUPT:
    case ZYDIS_CATEGORY_XSAVE:
    case ZYDIS_CATEGORY_XSAVEOPT:
        return false;
    default:
        return f->out == IN_SCOPE;
    }
}

static bool is_integer(const struct form *f)
{
    return f->encoding == ZYDIS_INSTRUCTION_ENCODING_LEGACY && f->map < 2 &&
           (f->category == ZYDIS_CATEGORY_BINARY || f->category == ZYDIS_CATEGORY_LOGICAL ||
            f->category == ZYDIS_CATEGORY_DATAXFER || f->category == ZYDIS_CATEGORY_SHIFT ||
            f->category == ZYDIS_CATEGORY_ROTATE || f->category == ZYDIS_CATEGORY_BITBYTE ||
            f->category == ZYDIS_CATEGORY_CMOV || f->category == ZYDIS_CATEGORY_SETCC ||
            f->category == ZYDIS_CATEGORY_FLAGOP || f->category == ZYDIS_CATEGORY_PUSH ||
            f->category == ZYDIS_CATEGORY_POP || f->category == ZYDIS_CATEGORY_SEMAPHORE ||
            f->category == ZYDIS_CATEGORY_STRINGOP || f->category == ZYDIS_CATEGORY_MISC);
}

static bool writes_rcx(const struct insn *i)
{
    for (unsigned n = 0; n < i->i.operand_count; n++)
        if (i->op[n].type == ZYDIS_OPERAND_TYPE_REGISTER && (i->op[n].actions & ZYDIS_OPERAND_ACTION_MASK_WRITE) &&
            ZydisRegisterGetLargestEnclosing(ZYDIS_MACHINE_MODE_LONG_64, i->op[n].reg.value) == ZYDIS_REGISTER_RCX)
            return true;
    return false;
}

/* Which instructions of a sequence begin where, so that jumps land on beginnings. */
struct plan {
    uint8_t at[16], n;
    unsigned len;
    bool x87, loop_ok;
    uint8_t leaning;
    unsigned base; /* of most memory operands */
};

/* Mostly integer code; some sequences lean to x87 and MMX, some to whatever there is. */
static const struct form *choose_form(const struct forms *f, struct rng *r, unsigned leaning)
{
    const struct form *form = &f->form[rng_below(r, f->n)];
    bool other = leaning == 9 || rng_percent(r, 20);
    bool x87 = leaning == 8;
    for (unsigned k = 0; k < 8000 && !other && !(x87 ? form->x87 : is_integer(form)); k++)
        form = &f->form[rng_below(r, f->n)];
    return form;
}

static bool add_body(const struct forms *f, struct rng *r, uint64_t addr, uint8_t *out, struct plan *p)
{
    for (unsigned attempt = 0; attempt < 200; attempt++) {
        const struct form *form = choose_form(f, r, p->leaning);
        if (!fits_sequence(form))
            continue;
        enum mem_mode mode = rng_percent(r, 90) ? (enum mem_mode)rng_below(r, 3)
                                                : (enum mem_mode)rng_below(r, MEM_MODES);
        unsigned base = rng_percent(r, 90) ? p->base : ANY_BASE;
        unsigned n = form_encode_off(f, form, r, addr + p->len, mode, base, out + p->len);
        struct insn i;
        if (!n || !insn_decode(&f->decoder, out + p->len, n, &i) || insn_left_out(&i))
            continue;
        if (insn_saves_x87_pointers(&i) && p->x87)
            continue;
        p->x87 |= form->x87;
        p->loop_ok &= !insn_saves_x87_pointers(&i); /* the next round would store what this one left */
        p->loop_ok &= !writes_rcx(&i);
        p->at[p->n++] = (uint8_t)p->len;
        p->len += n;
        return true;
    }
    return false;
}

unsigned sequence_encode(const struct forms *f, struct rng *r, uint64_t addr, uint8_t *out)
{
    struct plan p = {.loop_ok = true, .leaning = (uint8_t)rng_below(r, 10), .base = ANY_BASE};
    if (rng_percent(r, 40))
        p.base = rng_percent(r, 40) ? 4 : rng_below(r, f->compat ? 8 : 16);
    unsigned body = 2 + rng_below(r, 5), loop_at = 0;
    bool loop = rng_percent(r, 20);
    uint8_t skip[4][2], skips = 0;
    if (loop && f->narrow)
        out[p.len++] = 0x66;
    if (loop) {
        uint32_t count = rng_percent(r, 90) ? 1 + rng_below(r, 5) : 5000 + rng_below(r, 4000); /* few or hot */
        out[p.len++] = 0xb9;                                                                   /* mov ecx, count */
        memcpy(out + p.len, &count, 4);
        loop_at = p.len += 4;
    }
    for (unsigned n = 0; n < body && p.len < CODE_MAX - 24; n++) {
        if (rng_percent(r, 20) && skips < 4) { /* a forward branch over what follows; patched below */
            skip[skips][0] = (uint8_t)p.len;
            skip[skips++][1] = (uint8_t)(1 + rng_below(r, 2) + p.n);
            out[p.len++] = rng_percent(r, 90) ? (uint8_t)(0x70 + rng_below(r, 16)) : 0xeb;
            out[p.len++] = 0;
        }
        if (!add_body(f, r, addr, out, &p))
            break;
    }
    for (unsigned n = 0; n < skips; n++) {
        unsigned to = skip[n][1] < p.n ? p.at[skip[n][1]] : p.len;
        out[skip[n][0] + 1] = (uint8_t)(to - skip[n][0] - 2);
    }
    if (loop && p.loop_ok) {
        if (rng_percent(r, 50)) {
            out[p.len++] = 0xff, out[p.len++] = 0xc9; /* dec ecx; jnz */
            out[p.len++] = 0x75;
        } else {
            out[p.len++] = 0xe2; /* loop */
        }
        out[p.len] = (uint8_t)(loop_at - (p.len + 1));
        p.len++;
    }
    return p.len;
}

/* ---- invalid encodings ------------------------------------------------------------------------------- */
/* Bytes that Zydis rejects, found by flipping bits in valid instances, by misplaced LOCK, by too many
 * prefixes and by the holes of the opcode maps.  0: what came out is valid. */
unsigned invalid_encode(const struct forms *f, struct rng *r, uint64_t addr, uint8_t *out)
{
    struct insn i;
    unsigned how = rng_below(r, 4), n = 0;
    if (how < 2) {
        const struct form *form = &f->form[rng_below(r, f->n)];
        if (form->out != IN_SCOPE)
            return 0;
        uint8_t *at = out;
        if (how == 1)
            *at++ = 0xf0;
        n = form_encode(f, form, r, addr, MEM_ALIGNED, at);
        if (!n)
            return 0;
        n += how;
        for (unsigned k = 1 + rng_below(r, 2); how == 0 && k--;)
            out[rng_below(r, n < 5 ? n : 5)] ^= (uint8_t)(1 << rng_below(r, 8));
    } else {
        if (how == 3 && rng_percent(r, 10)) /* 16 bytes and more */
            for (unsigned k = rng_below(r, 15); k--;)
                out[n++] = "\x66\x2e\x36\x3e"[rng_below(r, 4)];
        if (rng_percent(r, 30))
            out[n++] = "\x66\xf2\xf3\xf0"[rng_below(r, 4)];
        if (rng_percent(r, 30))
            out[n++] = 0x40 | rng_below(r, 16);
        if (how == 2)
            out[n++] = 0x0f;
        if (how == 2 && rng_percent(r, 50))
            out[n++] = rng_percent(r, 50) ? 0x38 : 0x3a;
        for (unsigned k = 0; k < 3; k++)
            out[n++] = (uint8_t)rng_next(r);
    }
    memset(out + n, 0xcc, 16); /* as it is in memory */
    if (insn_decode(&f->decoder, out, n + 16, &i))
        return 0;
    return n;
}
