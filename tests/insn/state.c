/* The state in which a test runs: registers and SIMD state, addresses that land where the memory mode says. */
#include <string.h>

#include "insn.h"
#include "values.h"

static uint64_t gpr_value(struct rng *r)
{
    uint64_t v = rng_next(r);
    switch (rng_below(r, 8)) {
    case 0:
    case 1:
        return edges[(uint32_t)v % N_EDGES];
    case 2:
        return v & 0xff;
    case 3:
        return v & 0xffffffff;
    case 4:
        return 1ull << (v & 63);
    case 5:
        return (uint64_t)((int64_t)(v << 56) >> 56);
    default:
        return v;
    }
}

/* ---- SIMD and x87 ------------------------------------------------------------------------------------ */
static void put32(uint8_t *p, uint32_t v)
{
    memcpy(p, &v, 4);
}
static void put16(uint8_t *p, uint16_t v)
{
    memcpy(p, &v, 2);
}

static void fill_x87(struct rng *r, uint8_t *x)
{
    uint32_t c = rng_below(r, 20);
    uint16_t fcw = c < 13   ? 0x37f
                   : c < 18 ? (uint16_t)(0x7f | rng_below(r, 16) << 8)
                            : (uint16_t)(0x40 | (rng_next(r) & 0xf3f));
    uint16_t fsw = (uint16_t)(rng_below(r, 8) << 11);
    if (rng_percent(r, 20))
        fsw |= rng_next(r) & 0x473f;
    uint16_t pending = fsw & ~fcw & 0x3f;
    if (pending)
        fsw |= 0x8080; /* ES and B follow from the flags */
    put16(x, fcw);
    put16(x + 2, fsw);
    x[4] = rng_percent(r, 60) ? 0xff : rng_percent(r, 50) ? 0 : (uint8_t)rng_next(r);
    for (unsigned n = 0; n < 8; n++) {
        uint8_t *st = x + 32 + n * 16;
        uint64_t mantissa = rng_next(r);
        uint16_t exponent = 0xffff; /* as MMX leaves it */
        if (rng_percent(r, 55)) {
            uint32_t e = rng_below(r, N_EDGES_F80);
            mantissa = edges_f80[e].mantissa, exponent = edges_f80[e].exponent;
        } else if (rng_percent(r, 60)) {
            mantissa |= 1ull << 63;
            exponent = (uint16_t)(0x3fff + (int)rng_below(r, 128) - 64) | (uint16_t)(mantissa << 15);
        } else if (rng_percent(r, 50)) {
            fill(r, (uint8_t *)&mantissa, 8, (enum value_kind)rng_below(r, V_KINDS));
        }
        memcpy(st, &mantissa, 8);
        put16(st + 8, exponent);
        memset(st + 10, 0, 6);
    }
}

static void fill_xstate(struct rng *r, uint8_t *x, const struct xstate_layout *l)
{
    memset(x, 0, 576);
    fill_x87(r, x);
    uint32_t c = rng_below(r, 20), mxcsr = 0x1f80;
    if (c >= 12)
        mxcsr = 0x1f80 | (rng_next(r) & 0xe07f); /* rounding, FTZ, DAZ, flags */
    if (c == 19)
        mxcsr = rng_next(r) & 0xffff; /* exceptions unmasked */
    put32(x + 24, mxcsr);
    /* One flavour for the whole state makes operands that belong together likely. */
    enum value_kind flavour = (enum value_kind)rng_below(r, V_KINDS);
    for (unsigned n = 0; n < 32; n++) {
        enum value_kind kind = rng_percent(r, 60) ? flavour : (enum value_kind)rng_below(r, V_KINDS);
        uint8_t v[64];
        fill(r, v, 64, kind);
        if (n < 16) {
            memcpy(x + 160 + n * 16, v, 16);
            if (l->part[2].size)
                memcpy(x + l->part[2].offset + n * 16, v + 16, 16);
            if (l->part[6].size)
                memcpy(x + l->part[6].offset + n * 32, v + 32, 32);
        } else if (l->part[7].size) {
            memcpy(x + l->part[7].offset + (n - 16) * 64, v, 64);
        }
    }
    for (unsigned n = 0; n < 8 && l->part[5].size; n++) {
        uint64_t k = rng_next(r);
        uint32_t how = rng_below(r, 6);
        k = how == 0 ? 0 : how == 1 ? ~0ull : how == 2 ? k & rng_next(r) & rng_next(r) : k;
        memcpy(x + l->part[5].offset + n * 8, &k, 8);
    }
    memcpy(x + 512, &l->bits, 8);
}

/* Element n (of `size` bytes) of vector register `reg`. */
static void set_element(uint8_t *x, const struct xstate_layout *l, unsigned reg, unsigned n, unsigned size,
                        uint64_t value)
{
    unsigned at = n * size;
    if (reg >= 16) {
        if (l->part[7].size)
            memcpy(x + l->part[7].offset + (reg - 16) * 64 + at, &value, size);
    } else if (at < 16) {
        memcpy(x + 160 + reg * 16 + at, &value, size);
    } else if (at < 32 && l->part[2].size) {
        memcpy(x + l->part[2].offset + reg * 16 + at - 16, &value, size);
    } else if (l->part[6].size) {
        memcpy(x + l->part[6].offset + reg * 32 + at - 32, &value, size);
    }
}

/* ---- addresses ----------------------------------------------------------------------------------------- */
struct placing {
    struct test *t;
    const struct xstate_layout *l;
    struct rng *r;
    uint32_t used; /* general registers already decided */
    unsigned patches;
};

static int gpr_of(ZydisRegister reg)
{
    ZydisRegister full = ZydisRegisterGetLargestEnclosing(ZYDIS_MACHINE_MODE_LONG_64, reg);
    return full >= ZYDIS_REGISTER_RAX && full <= ZYDIS_REGISTER_R15 ? (int)(full - ZYDIS_REGISTER_RAX) : -1;
}

static void set_gpr(struct placing *p, int reg, uint64_t value, unsigned width)
{
    if (reg < 0 || (p->used >> reg & 1))
        return;
    p->used |= 1u << reg;
    if (width < 64) { /* the rest of the register must not matter */
        uint64_t rest = rng_next(p->r) << width;
        value = (value & ((1ull << width) - 1)) | (reg == GPR_RSP && !p->l->any_stack ? 0 : rest);
    }
    p->t->in.gpr[reg] = p->t->compat ? value & 0xffffffff : value;
}

/* Of the segment that an operand is in. */
static uint64_t base_of(const struct test *t, ZydisRegister segment)
{
    if (!t->compat || segment < ZYDIS_REGISTER_ES || segment > ZYDIS_REGISTER_GS)
        return segment == ZYDIS_REGISTER_FS ? t->in.fs_base : segment == ZYDIS_REGISTER_GS ? t->in.gs_base : 0;
    return segment_in(t->seg[segment - ZYDIS_REGISTER_ES]).base;
}

/* Bits of a register that count in an address: a stack's are those of SS. */
static unsigned address_width(const struct test *t, const struct insn *i, const ZydisDecodedOperand *o)
{
    int base = gpr_of(o->mem.base);
    if (!t->compat || o->visibility != ZYDIS_OPERAND_VISIBILITY_HIDDEN || (base != GPR_RSP && base != GPR_RBP))
        return i->i.address_width;
    return segment_is_big(t->seg[IN_SS]) ? 32 : 16;
}

static void place_vsib(struct placing *p, const struct insn *i, const ZydisDecodedOperand *o, uint64_t want)
{
    set_gpr(p, gpr_of(o->mem.base), want - (uint64_t)o->mem.disp.value, i->i.address_width);
    unsigned reg = ZydisRegisterGetId(o->mem.index), scale = o->mem.scale ? o->mem.scale : 1;
    const char *name = ZydisMnemonicGetString(i->i.mnemonic);
    bool q = strstr(name, "qq") || strstr(name, "qp") || strstr(name, "qd"); /* index is a quadword */
    for (unsigned n = 0; n < (q ? 8u : 16u); n++) {
        int64_t index = ((int)rng_below(p->r, 512) - 256) / (int)scale;
        if (p->t->mode >= MEM_CROSS_NONE && p->t->mode != MEM_HIGH && rng_percent(p->r, 25))
            index = rng_percent(p->r, 70) ? 0x5000 : (int64_t)(int32_t)rng_next(p->r);
        set_element(p->t->in.xstate, p->l, reg, n, q ? 8 : 4, (uint64_t)index);
    }
}

static void place_registers(struct placing *p, const struct insn *i, const ZydisDecodedOperand *o, uint64_t want)
{
    int base = gpr_of(o->mem.base), index = gpr_of(o->mem.index);
    unsigned scale = o->mem.scale ? o->mem.scale : 1, width = address_width(p->t, i, o);
    uint64_t d = (uint64_t)o->mem.disp.value;
    if (o->mem.index == ZYDIS_REGISTER_AL) { /* xlat */
        set_gpr(p, base, want - (p->t->in.gpr[0] & 0xff), width);
    } else if (base < 0) {
        set_gpr(p, index, (want - d) / scale, width);
    } else if (base == index) {
        set_gpr(p, base, (want - d) / (scale + 1), width);
    } else {
        if (index >= 0) {
            bool small = rng_percent(p->r, 60) || (base == GPR_RSP && !p->l->any_stack);
            set_gpr(p, index, small ? (uint64_t)(int64_t)((int)rng_below(p->r, 129) - 64) : rng_next(p->r), 64);
            d += p->t->in.gpr[index] * scale;
        }
        set_gpr(p, base, want - d, width);
    }
}

/* ---- what single instructions need to be interesting ------------------------------------------------------ */
static bool is_push_like(const struct insn *i)
{
    switch (i->i.meta.category) {
    case ZYDIS_CATEGORY_CALL:
    case ZYDIS_CATEGORY_PUSH:
        return true;
    default:
        return i->i.mnemonic == ZYDIS_MNEMONIC_ENTER;
    }
}

static bool is_branch(const struct insn *i)
{
    return i->i.meta.branch_type != ZYDIS_BRANCH_TYPE_NONE || i->i.meta.category == ZYDIS_CATEGORY_RET;
}

static uint64_t code_target(struct placing *p)
{
    uint64_t page = (p->t->addr >= CODE_HIGH ? CODE_HIGH : CODE_LOW) - base_of(p->t, ZYDIS_REGISTER_CS);
    return rng_percent(p->r, 90) ? page + rng_below(p->r, 2 * PAGE) : gpr_value(p->r);
}

static void add_patch(struct placing *p, const struct insn *i, uint64_t gva, unsigned size)
{
    if (p->patches >= N_PATCHES || size == 0 || size > PATCH_MAX)
        return;
    struct patch *patch = &p->t->patch[p->patches++];
    patch->addr = gva, patch->len = size;
    fill(p->r, patch->bytes, size, (enum value_kind)rng_below(p->r, V_KINDS));
    if (is_branch(i)) {
        uint64_t to = code_target(p);
        memcpy(patch->bytes, &to, 8);
    }
    if (size == 10 && rng_percent(p->r, 70)) {
        uint32_t e = rng_below(p->r, N_EDGES_F80);
        memcpy(patch->bytes, &edges_f80[e].mantissa, 8);
        memcpy(patch->bytes + 8, &edges_f80[e].exponent, 2);
        if (i->i.mnemonic == ZYDIS_MNEMONIC_FBLD)
            for (unsigned n = 0; n < 9; n++)
                patch->bytes[n] = (uint8_t)(rng_below(p->r, 10) << 4 | rng_below(p->r, 10));
    }
    switch (i->i.mnemonic) {
    case ZYDIS_MNEMONIC_LDMXCSR:
    case ZYDIS_MNEMONIC_VLDMXCSR:
        patch->bytes[2] = patch->bytes[3] = rng_percent(p->r, 90) ? 0 : patch->bytes[3];
        break;
    case ZYDIS_MNEMONIC_CMPXCHG:
    case ZYDIS_MNEMONIC_CMPXCHG8B:
    case ZYDIS_MNEMONIC_CMPXCHG16B:
        if (rng_percent(p->r, 50)) {
            memcpy(patch->bytes, &p->t->in.gpr[0], 8);
            memcpy(patch->bytes + (size == 16 ? 8 : 4), &p->t->in.gpr[2], size == 16 ? 8 : 4);
        }
        break;
    case ZYDIS_MNEMONIC_POPF:
    case ZYDIS_MNEMONIC_POPFQ:
        patch->bytes[1] &= rng_percent(p->r, 95) ? ~1 : ~0; /* TF */
        break;
    default:
        break;
    }
}

/* fxrstor and xrstor mostly fault on random bytes: point them at an image with a varied header. */
static bool place_image(struct placing *p, const struct insn *i, uint64_t *want)
{
    ZydisMnemonic m = i->i.mnemonic;
    bool fx = m == ZYDIS_MNEMONIC_FXRSTOR || m == ZYDIS_MNEMONIC_FXRSTOR64;
    bool xr = m == ZYDIS_MNEMONIC_XRSTOR || m == ZYDIS_MNEMONIC_XRSTOR64;
    bool xs = i->i.meta.category == ZYDIS_CATEGORY_XSAVE || i->i.meta.category == ZYDIS_CATEGORY_XSAVEOPT;
    if (xs && rng_percent(p->r, 80)) {
        p->t->in.gpr[0] = rng_below(p->r, 256), p->t->in.gpr[2] = 0;
        p->used |= 5;
        if (!xr)
            *want &= ~63ull;
    }
    if ((!fx && !xr) || p->t->mode > MEM_UNALIGNED || rng_percent(p->r, 15))
        return false;
    *want = DATA_LOW + (fx ? IMAGE_FXSAVE : IMAGE_XSAVE);
    struct patch *patch = &p->t->patch[p->patches++];
    patch->addr = *want + (fx ? 0 : 512), patch->len = fx ? 28 : 24;
    memset(patch->bytes, 0, PATCH_MAX);
    if (fx) {
        fill_x87(p->r, patch->bytes);
        put32(patch->bytes + 24, rng_next(p->r) & (rng_percent(p->r, 90) ? 0xffff : 0x1ffff));
        memset(patch->bytes + 6, 0, 18);
        patch->len = 160;
    } else {
        patch->bytes[0] = (uint8_t)(rng_next(p->r) & p->l->bits);
        if (rng_percent(p->r, 25))
            patch->bytes[15] = 0x80; /* compacted */
        if (rng_percent(p->r, 5))
            patch->bytes[rng_below(p->r, 24)] ^= 1 << rng_below(p->r, 8);
        if (patch->bytes[15] & 0x80)
            patch->bytes[8] = rng_percent(p->r, 90) ? patch->bytes[0] | (uint8_t)(rng_next(p->r) & p->l->bits) : 0;
    }
    return true;
}

static void place_mem(struct placing *p, const struct insn *i, const ZydisDecodedOperand *o, enum mem_mode mode)
{
    unsigned size = o->size / 8 ? o->size / 8 : 8;
    uint64_t want = target_pick(p->r, mode, size, p->t->compat), segment = base_of(p->t, o->mem.segment);
    bool image = place_image(p, i, &want);
    if (p->t->compat && mode == MEM_NONCANONICAL) /* the end of the segment */
        want = segment + segment_in(p->t->seg[o->mem.segment - ZYDIS_REGISTER_ES]).limit - rng_below(p->r, size);
    if (o->mem.base == ZYDIS_REGISTER_RIP || o->mem.base == ZYDIS_REGISTER_EIP) {
        want = p->t->addr + i->i.length + (uint64_t)o->mem.disp.value + segment;
    } else if (o->mem.type == ZYDIS_MEMOP_TYPE_VSIB) {
        place_vsib(p, i, o, want - segment);
    } else if (o->mem.base != ZYDIS_REGISTER_NONE || o->mem.index != ZYDIS_REGISTER_NONE) {
        bool push = is_push_like(i) && o->visibility == ZYDIS_OPERAND_VISIBILITY_HIDDEN;
        place_registers(p, i, o, want - segment + (push ? size : 0));
    } else {
        want = (uint64_t)o->mem.disp.value + segment;
    }
    if (!image && (o->actions & ZYDIS_OPERAND_ACTION_MASK_READ) && rng_percent(p->r, 65))
        add_patch(p, i, want, size);
}

static void tune(struct placing *p, const struct insn *i)
{
    uint64_t *gpr = p->t->in.gpr;
    switch (i->i.mnemonic) {
    case ZYDIS_MNEMONIC_DIV:
    case ZYDIS_MNEMONIC_IDIV:
        if (rng_percent(p->r, 60))
            gpr[2] = rng_percent(p->r, 50) ? 0 : (uint64_t)((int64_t)gpr[0] >> 63);
        if (rng_percent(p->r, 30))
            gpr[0] &= 0xff;
        break;
    case ZYDIS_MNEMONIC_BT:
    case ZYDIS_MNEMONIC_BTS:
    case ZYDIS_MNEMONIC_BTR:
    case ZYDIS_MNEMONIC_BTC: {
        int reg = i->op[1].type == ZYDIS_OPERAND_TYPE_REGISTER ? gpr_of(i->op[1].reg.value) : -1;
        if (reg >= 0 && rng_percent(p->r, 75)) { /* bit offsets reach other pages */
            gpr[reg] = (uint64_t)(int64_t)((int)rng_below(p->r, 80000) - 40000);
            p->used |= 1u << reg;
        }
        break;
    }
    case ZYDIS_MNEMONIC_XGETBV:
        gpr[1] = rng_percent(p->r, 80) ? 0 : 2 + rng_below(p->r, 100); /* 1 reads in-use bits, which may vary */
        break;
    case ZYDIS_MNEMONIC_LEAVE:
        break;
    default:
        if (is_branch(i) && i->op[0].type == ZYDIS_OPERAND_TYPE_REGISTER)
            set_gpr(p, gpr_of(i->op[0].reg.value), code_target(p), 64);
        if (i->i.mnemonic == ZYDIS_MNEMONIC_LOOP || i->i.mnemonic == ZYDIS_MNEMONIC_LOOPE ||
            i->i.mnemonic == ZYDIS_MNEMONIC_LOOPNE || i->i.mnemonic == ZYDIS_MNEMONIC_JRCXZ ||
            i->i.mnemonic == ZYDIS_MNEMONIC_JECXZ)
            gpr[1] = rng_percent(p->r, 50) ? rng_below(p->r, 3) : gpr[1] & ~0xffffffffull;
    }
    if (i->i.meta.category == ZYDIS_CATEGORY_STRINGOP && !(p->used & 2)) {
        static const uint32_t most[] = {1, 3, 20, 300, 2500};
        gpr[1] = rng_percent(p->r, 95) ? rng_below(p->r, most[rng_below(p->r, 5)]) : rng_next(p->r);
        if (i->i.address_width == 16) /* the rest of it must not matter */
            gpr[1] = (uint16_t)gpr[1] | rng_next(p->r) << 16;
        p->used |= 2;
        if (rng_percent(p->r, 40))
            p->t->in.rflags ^= 0x400;
    }
}

static bool place_insn(struct placing *p, const struct insn *i)
{
    bool first = true;
    tune(p, i);
    unsigned swap = rng_below(p->r, 2); /* two memory operands: which of them gets the mode */
    for (unsigned k = 0; k < i->i.operand_count; k++) {
        const ZydisDecodedOperand *o = &i->op[swap ? k : i->i.operand_count - 1u - k];
        if (o->type != ZYDIS_OPERAND_TYPE_MEMORY)
            continue;
        enum mem_mode mode = first                   ? p->t->mode
                             : rng_percent(p->r, 90) ? rng_below(p->r, 3)
                                                     : rng_below(p->r, MEM_MODES);
        place_mem(p, i, o, mode);
        first = false;
    }
    if (i->i.cpu_flags)
        p->t->undefined_flags |= i->i.cpu_flags->undefined;
    p->t->cpl3_only |= insn_differs_at_cpl0(i);
    p->t->area |= insn_moves_area(i);
    return insn_left_out(i) == IN_SCOPE;
}

static uint64_t segment_base(struct rng *r, const struct xstate_layout *l)
{
    static const uint64_t bases[] = {0, 0x1000, 0x123450000000, 0xfffffffffffff000, 0x7fffffff0000, 0x10};
    uint64_t base = bases[rng_below(r, (uint32_t)(sizeof bases / sizeof bases[0]))];
    return base >> 63 && !l->high_base ? 0x7fffffffe000 : base; /* the last page that programs may have */
}

/* What depends on segments with a base. */
static void place_segments(struct test *t, struct rng *r)
{
    uint64_t *rsp = &t->in.gpr[GPR_RSP];
    t->in.fs_base = base_of(t, ZYDIS_REGISTER_FS);
    t->in.gs_base = base_of(t, ZYDIS_REGISTER_GS);
    t->in.rip = (uint32_t)(t->addr - base_of(t, ZYDIS_REGISTER_CS));
    *rsp = (uint32_t)(*rsp - base_of(t, ZYDIS_REGISTER_SS));
    if (segment_is_big(t->seg[IN_SS]))
        return;
    if (rng_percent(r, 15)) /* goes round */
        *rsp = rng_below(r, 33) - 16;
    *rsp = (uint16_t)*rsp | (uint32_t)(rng_next(r) << 16);
}

bool test_fill(struct test *t, const ZydisDecoder *d, const struct xstate_layout *l)
{
    struct rng r = {t->seed};
    struct placing p = {t, l, &r, 0, 0};
    t->undefined_flags = 0;
    t->area = false;
    t->cpl3_only = t->kind == TEST_INVALID || t->compat;
    for (unsigned n = 0; n < N_PATCHES; n++)
        t->patch[n].len = 0;
    for (unsigned n = 0; n < 16; n++)
        t->in.gpr[n] = gpr_value(&r) & (t->compat && n < 8 ? 0xffffffff : ~0ull);
    if (t->compat)
        segments_pick(&r, t->narrow, l->flat, l->segments, t->seg);
    t->in.gpr[GPR_RSP] = DATA_STACK + PAGE + (rng_percent(&r, 80) ? rng_below(&r, 256) * 8 : rng_below(&r, 2048));
    t->in.fs_base = segment_base(&r, l);
    t->in.gs_base = segment_base(&r, l);
    t->in.rip = t->addr;
    if (t->compat)
        place_segments(t, &r);
    t->in.rflags = 0x202 | (rng_next(&r) & 0x8d5) | (rng_percent(&r, 6) ? 0x400 : 0) |
                   (rng_percent(&r, 2) ? 0x40000 : 0);
    if (t->in.rflags & 0x40000)
        t->cpl3_only = true; /* alignment checks exist at CPL3 only */
    fill_xstate(&r, t->in.xstate, l);
    bool ok = true;
    for (unsigned at = 0; at < t->len && t->kind != TEST_INVALID;) {
        struct insn i;
        if (!insn_decode(d, t->code + at, t->len - at, &i))
            return t->kind == TEST_SEQUENCE && at > 0;
        ok &= place_insn(&p, &i);
        at += i.i.length;
    }
    for (unsigned n = 0; n < 8 && t->compat; n++)
        t->in.gpr[n] &= 0xffffffff;
    return ok;
}
