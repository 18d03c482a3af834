/*
 * rep stos and rep movs in translated code: upwards, and inside one page each way, which most are.  Kernels clear
 * and copy what is on their stacks by them, and whole pages.
 *
 *     test rflags, DF ; jnz slow ; cmp rcx, 4096 / size ; ja slow
 *     A = rdi's offset in its page, by the TLB (access.c) ; ja slow
 *     lea C, [A + rcx * size] ; cmp C, 4096 ; ja slow ; add A, [host]
 *     C = rdi behind the last element ; rdi = A ; rep stos ; rdi = C
 *
 * Pages that are in the TLB cannot fault, so the host's own instruction does it all.  Everything else is left to
 * helper_string, from its start.
 */
#include "engine/soft/helpers.h"
#include "engine/soft/special.h"

#define CHECKS_MAX 6

struct rep {
    struct emit *e;
    unsigned scale; /* log2 of an element's size */
    unsigned n_checks;
    uint32_t check[CHECKS_MAX]; /* jumps to the slow path */
};

static void check(struct rep *r, unsigned cc)
{
    r->check[r->n_checks++] = e_jcc(r->e, cc, 0);
}

/* r11 = the host address of rcx elements from guest register `reg` on; r9 and r10 are lost. */
static void emit_range(struct rep *r, unsigned reg, uint32_t tlb)
{
    struct emit *e = r->e;
    e_mov(e, true, R11, reg);
    e_rorx(e, R10, R11, 8);
    e_alu_imm(e, false, 4, R10, TLB_MASK);
    e_gs_base(e, 0x2b, true, R11, R10, tlb); /* sub */
    e_alu_imm(e, true, 7, R11, 4095);        /* by itself: the sum below may wrap */
    check(r, 7 /* above */);
    e_lea(e, true, R9, R11, RCX, r->scale, 0);
    e_alu_imm(e, true, 7, R9, 4096);
    check(r, 7);
    e_gs_base(e, 0x03, true, R11, R10, tlb + 8); /* add */
}

static void emit_rep(struct emit *e, bool move, unsigned size)
{
    e8(e, 0xf3);
    if (size == 2)
        e8(e, 0x66);
    if (size == 8)
        e8(e, 0x48);
    e8(e, (move ? 0xa4 : 0xaa) | (size > 1));
}

static void emit_move(struct translator *t, struct rep *r)
{
    struct emit *e = r->e;
    emit_range(r, RDI, tlb_offset(t, true));
    e_store(e, R11, SCRATCH_SLOT);
    emit_range(r, RSI, tlb_offset(t, false));
    e_lea(e, true, R10, RSI, RCX, r->scale, 0);
    e_lea(e, true, R9, RDI, RCX, r->scale, 0);
    e_mov(e, true, RSI, R11);
    e_load(e, RDI, SCRATCH_SLOT);
    emit_rep(e, true, 1u << r->scale);
    e_mov(e, true, RSI, R10);
    e_mov(e, true, RDI, R9);
}

static void emit_store(struct translator *t, struct rep *r)
{
    struct emit *e = r->e;
    emit_range(r, RDI, tlb_offset(t, true));
    e_lea(e, true, R9, RDI, RCX, r->scale, 0);
    e_mov(e, true, RDI, R11);
    emit_rep(e, false, 1u << r->scale);
    e_mov(e, true, RDI, R9);
}

bool rep_serves(const struct translator *t, const struct insn *in, unsigned kind, unsigned segment)
{
    return code64(t) && in->d->address_width == 64 && !(t->mode & (MODE_ALIGN | MODE_BY_C)) &&
           (in->d->attributes & ZYDIS_ATTRIB_HAS_REP) && (kind == STR_STOS || kind == STR_MOVS) && segment != FS &&
           segment != GS;
}

struct site *sp_rep(struct translator *t, const struct insn *in, bool move, unsigned size)
{
    struct rep r = {.e = &t->hot, .scale = (unsigned)__builtin_ctz(size)};
    flags_spare(t, in, R10);
    e_gs(r.e, 0xf7, false, 0, CPUOFF(rflags)); /* test */
    e32(r.e, FL_DF);
    check(&r, 5 /* not zero */);
    e_alu_imm(r.e, true, 7, RCX, 4096 / size);
    check(&r, 7);
    if (move)
        emit_move(t, &r);
    else
        emit_store(t, &r);
    struct emit hot = t->hot;
    enum flags_place place = t->flags;
    t->hot = t->cold;
    for (unsigned i = 0; i < r.n_checks; i++)
        e_patch(&hot, r.check[i], e_offset(&t->hot));
    struct site *s = emit_helper(t, in, helper_string, false);
    e_jmp(&t->hot, e_offset(&hot));
    t->cold = t->hot;
    t->hot = hot;
    t->flags = place;
    return s;
}
