/*
 * The guest's own instruction, with its memory operand replaced by one of the engine's.
 */
#include "engine/soft/translate_int.h"

/* 16-bit code: operands are as large without 66h as they are with it here.  Each prefix once, for the instruction must
 * not become too long. */
static void copy_resized_prefixes(struct emit *e, const uint8_t *b, unsigned n)
{
    uint8_t rep = 0;
    bool size = false, lock = false;
    for (unsigned i = 0; i < n; i++) {
        rep = b[i] == 0xf2 || b[i] == 0xf3 ? b[i] : rep; /* the last one counts */
        size |= b[i] == 0x66;
        lock |= b[i] == 0xf0;
    }
    if (!size)
        e8(e, 0x66);
    if (lock)
        e8(e, 0xf0);
    if (rep)
        e8(e, rep);
}

/* Prefixes that change the operation: segment overrides and address size are spent. */
static void copy_prefixes(struct emit *e, const uint8_t *b, unsigned n)
{
    for (unsigned i = 0; i < n; i++)
        if (b[i] == 0x66 || b[i] == 0xf2 || b[i] == 0xf3 || b[i] == 0xf0)
            e8(e, b[i]);
}

/* VEX, EVEX or XOP and opcode bytes with the address register's high bit in B and no index. */
static void copy_vector_opcode(struct emit *e, const struct insn *in, unsigned addr)
{
    const ZydisDecodedInstruction *d = in->d;
    const uint8_t *b = in->bytes;
    unsigned high = addr >> 3, w = in->shape->host == HOST_RESIZED ? 0x7f : 0xff;
    switch (d->encoding) {
    case ZYDIS_INSTRUCTION_ENCODING_VEX:
    case ZYDIS_INSTRUCTION_ENCODING_XOP: {
        unsigned at = d->encoding == ZYDIS_INSTRUCTION_ENCODING_XOP ? d->raw.xop.offset : d->raw.vex.offset;
        if (b[at] == 0xc5) {
            e8(e, 0xc4);
            e8(e, (b[at + 1] & 0x80) | 0x40 | (high ? 0 : 0x20) | 1);
            e8(e, b[at + 1] & 0x7f);
            e8(e, b[at + 2]);
        } else {
            e8(e, b[at]);
            e8(e, (b[at + 1] & 0x9f) | 0x40 | (high ? 0 : 0x20));
            e8(e, b[at + 2] & w);
            e8(e, b[at + 3]);
        }
        return;
    }
    case ZYDIS_INSTRUCTION_ENCODING_EVEX: {
        unsigned at = d->raw.evex.offset;
        e8(e, 0x62);
        e8(e, (b[at + 1] & 0x9f) | 0x40 | (high ? 0 : 0x20));
        e8(e, b[at + 2] & w);
        e_bytes(e, b + at + 3, 2);
        return;
    }
    default:
        break;
    }
}

/* Prefixes, REX and opcode bytes, likewise. */
static void copy_legacy_opcode(struct emit *e, const struct insn *in, unsigned addr)
{
    unsigned at = in->shape->opcode, n = in->shape->modrm - at;
    bool has_rex = at && (in->bytes[at - 1] & 0xf0) == 0x40;
    if (in->shape->host == HOST_RESIZED)
        copy_resized_prefixes(e, in->bytes, at);
    else
        copy_prefixes(e, in->bytes, at);
    if (has_rex || addr >> 3)
        e8(e, 0x40u | (has_rex ? in->bytes[at - 1] & 0xcu : 0) | addr >> 3);
    memcpy(e->p, in->bytes + at, 4);
    e->p += n;
}

static void copy_opcode(struct emit *e, const struct insn *in, unsigned addr)
{
    if (in->shape->legacy)
        copy_legacy_opcode(e, in, addr);
    else
        copy_vector_opcode(e, in, addr);
}

/* What is behind the operand. */
static void copy_rest(struct emit *e, const struct insn *in)
{
    memcpy(e->p, in->bytes + in->shape->operand_end, 8);
    e->p += in->length - in->shape->operand_end;
}

void copy_insn_with_address(struct emit *e, const struct insn *in, unsigned addr_reg)
{
    unsigned addr = addr_reg;
    bool borrow = in->shape->high8;
    if (borrow) { /* AH..BH cannot be named beside a REX prefix: use rdi for the address */
        addr = RDI;
        e_store(e, RDI, GPR_OFFSET(RDI));
        e_mov(e, true, RDI, addr_reg);
    }
    copy_opcode(e, in, addr);
    e8(e, (in->bytes[in->shape->modrm] & 0x38) | (addr & 7));
    copy_rest(e, in);
    if (borrow)
        e_load(e, RDI, GPR_OFFSET(RDI));
}

/* ModRM, SIB and displacement of [base + r9 + disp]. */
static void copy_window_operand(struct emit *e, unsigned reg, unsigned base, unsigned distance, int32_t disp, bool wide)
{
    unsigned mod = disp == 0 && (base & 7) != 5 ? 0 : disp == (int8_t)disp && !wide ? 0x40 : 0x80;
    e8(e, mod | (reg & 7) << 3 | 4);
    e8(e, (distance & 7) << 3 | (base & 7));
    if (mod == 0x40)
        e8(e, (uint8_t)disp);
    else if (mod == 0x80)
        e32(e, (uint32_t)disp);
}

/* The instruction with its memory operand replaced by [base + r9 + disp] (window.c). */
void copy_insn_in_window(struct emit *e, const struct insn *in, unsigned base, unsigned distance, int32_t disp)
{
    uint8_t *start = e->p;
    unsigned n = in->shape->modrm - in->shape->opcode;
    copy_opcode(e, in, base);
    /* set the index bit: in REX, or inverted in VEX and EVEX */
    uint8_t *opcode = e->p - n;
    if (!in->shape->legacy) {
        start[1] &= (uint8_t)~0x40;
    } else if (opcode > start && (opcode[-1] & 0xf0) == 0x40) {
        opcode[-1] |= 0x42;
    } else {
        memmove(opcode + 1, opcode, n);
        *opcode = 0x42;
        e->p++;
    }
    bool evex = !in->shape->legacy && in->d->encoding == ZYDIS_INSTRUCTION_ENCODING_EVEX;
    copy_window_operand(e, in->bytes[in->shape->modrm] >> 3 & 7, base, distance, disp, evex);
    copy_rest(e, in);
}

void copy_insn_plain(struct emit *e, const struct insn *in)
{
    if (in->shape->host == HOST_RESIZED && in->shape->legacy) {
        unsigned n = in->d->raw.prefix_count;
        copy_resized_prefixes(e, in->bytes, n);
        e_bytes(e, in->bytes + n, in->length - n);
        return;
    }
    if (in->shape->host == HOST_RESIZED) { /* the W bit is in the second byte behind the first, whichever it is */
        unsigned w = in->d->raw.prefix_count + 2u;
        e_bytes(e, in->bytes, in->length);
        e->p[(int)w - (int)in->length] &= 0x7f;
        return;
    }
    memcpy(e->p, in->bytes, 16);
    e->p += in->length;
}

/* The guest's r9-r11 as register operands: loaded before and stored after the instruction. */
static void stolen_loads(struct emit *e, const struct insn *in)
{
    for (unsigned i = 0; (in->shape->gprs & STOLEN) && i < in->d->operand_count; i++) {
        const ZydisDecodedOperand *op = &in->op[i];
        if (op->type != ZYDIS_OPERAND_TYPE_REGISTER)
            continue;
        unsigned r = gpr_of(op->reg.value);
        if (r == NO_REG || !is_stolen(r))
            continue;
        bool keeps = in->d->mnemonic == ZYDIS_MNEMONIC_BSF || in->d->mnemonic == ZYDIS_MNEMONIC_BSR; /* of zero */
        bool pure_write = op->size >= 32 && op->actions == ZYDIS_OPERAND_ACTION_WRITE && !keeps;
        if (!pure_write)
            e_load(e, r, GPR_OFFSET(r));
    }
}

static void stolen_stores(struct emit *e, const struct insn *in)
{
    for (unsigned i = 0; (in->shape->written & STOLEN) && i < in->d->operand_count; i++) {
        const ZydisDecodedOperand *op = &in->op[i];
        if (op->type != ZYDIS_OPERAND_TYPE_REGISTER || !(op->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE))
            continue;
        unsigned r = gpr_of(op->reg.value);
        if (r != NO_REG && is_stolen(r))
            e_store(e, r, GPR_OFFSET(r));
    }
}

/* Anything without privilege: copied, with at most one memory operand rewritten. */
void generic_insn(struct translator *t, const struct insn *in)
{
    if (in->shape->host == HOST_NEVER) { /* the host would take it for something else */
        emit_helper(t, in, helper_undefined, true);
        return;
    }
    if (in->shape->memory < 0) {
        flags_before(t, in);
        stolen_loads(&t->hot, in);
        copy_insn_plain(&t->hot, in);
        stolen_stores(&t->hot, in);
        return;
    }
    const ZydisDecodedOperand *mem = &in->op[in->shape->memory];
    struct ea ea;
    insn_ea(t, in, mem, &ea);
    if (window_serves(t, in)) {
        flags_before(t, in);
        stolen_loads(&t->hot, in);
        copy_insn_in_window(&t->hot, in, ea.base, R9, (int32_t)ea.disp);
        stolen_stores(&t->hot, in);
        return;
    }
    struct tail tail;
    begin_access(t, in, in->shape->gprs, &tail);
    stolen_loads(&tail.e, in);
    copy_insn_with_address(&tail.e, in, t->A);
    stolen_stores(&tail.e, in);
    uint32_t first = t->engine->n_sites;
    struct tail beside;
    const bool can = access_can_be_beside(t, in, &ea);
    tail_begin(&beside);
    if (can)
        copy_insn_in_window(&beside.e, in, ea.base, t->B, (int32_t)ea.disp);
    emit_access_beside(t, in, &ea, in->shape->access, in->shape->size, &tail, can ? &beside : NULL);
    masked_access(t, &t->engine->sites[first], in, mem);
    t->engine->sites[first].clears_top = in->shape->clears_top;
    t->engine->sites[first].lent = in->shape->high8;
}
