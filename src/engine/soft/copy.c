/*
 * The guest's own instruction, with its memory operand replaced by one of the engine's.
 */
#include "engine/soft/translate_int.h"

bool has_high8(const struct insn *in)
{
    for (unsigned i = 0; i < in->d.operand_count; i++)
        if (in->op[i].type == ZYDIS_OPERAND_TYPE_REGISTER && is_high8(in->op[i].reg.value))
            return true;
    return false;
}

static unsigned opcode_length(const ZydisDecodedInstruction *d)
{
    switch (d->opcode_map) {
    case ZYDIS_OPCODE_MAP_DEFAULT:
        return 1;
    case ZYDIS_OPCODE_MAP_0F:
        return 2;
    case ZYDIS_OPCODE_MAP_0F0F:
        return 2;
    default:
        return 3;
    }
}

/* Prefixes that change the operation: segment overrides and address size are spent. */
static void copy_prefixes(struct emit *e, const struct insn *in)
{
    for (unsigned i = 0; i < in->d.raw.prefix_count; i++) {
        uint8_t p = in->d.raw.prefixes[i].value;
        if (p == 0x66 || p == 0xf2 || p == 0xf3 || p == 0xf0)
            e8(e, p);
    }
}

/* Prefix, REX/VEX/EVEX and opcode bytes with the address register's high bit in B and no index. */
static void copy_opcode(struct emit *e, const struct insn *in, unsigned addr)
{
    const ZydisDecodedInstruction *d = &in->d;
    const uint8_t *b = in->bytes;
    unsigned high = addr >> 3;
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
            e8(e, b[at + 2]);
            e8(e, b[at + 3]);
        }
        return;
    }
    case ZYDIS_INSTRUCTION_ENCODING_EVEX: {
        unsigned at = d->raw.evex.offset;
        e8(e, 0x62);
        e8(e, (b[at + 1] & 0x9f) | 0x40 | (high ? 0 : 0x20));
        e_bytes(e, b + at + 2, 3);
        return;
    }
    default: {
        copy_prefixes(e, in);
        unsigned rex = (d->attributes & ZYDIS_ATTRIB_HAS_REX ? 0x40u | d->raw.rex.W << 3 | d->raw.rex.R << 2 : 0) |
                       (high ? 0x41 : 0);
        if (rex)
            e8(e, rex);
        unsigned n = opcode_length(d);
        unsigned end = d->raw.modrm.offset;
        if (d->opcode_map == ZYDIS_OPCODE_MAP_0F0F)
            end = d->raw.modrm.offset;
        e_bytes(e, b + end - n, n);
    }
    }
}

void copy_insn_with_address(struct emit *e, const struct insn *in, unsigned addr_reg)
{
    const ZydisDecodedInstruction *d = &in->d;
    unsigned addr = addr_reg;
    bool borrow = d->encoding == ZYDIS_INSTRUCTION_ENCODING_LEGACY && has_high8(in);
    if (borrow) { /* AH..BH cannot be named beside a REX prefix: use rdi for the address */
        addr = RDI;
        e_store(e, RDI, GPR_OFFSET(RDI));
        e_mov(e, true, RDI, addr_reg);
    }
    copy_opcode(e, in, addr);
    e8(e, (in->bytes[d->raw.modrm.offset] & 0x38) | (addr & 7));
    unsigned rest = d->raw.modrm.offset + 1;
    rest += d->address_width != 16 && (in->bytes[d->raw.modrm.offset] & 7) == 4; /* SIB */
    rest += d->raw.disp.size / 8;
    e_bytes(e, in->bytes + rest, d->length - rest);
    if (borrow)
        e_load(e, RDI, GPR_OFFSET(RDI));
}

/* ModRM, SIB and displacement of [base + r9 + disp]. */
static void copy_window_operand(struct emit *e, unsigned reg, unsigned base, int32_t disp, bool wide)
{
    unsigned mod = disp == 0 && (base & 7) != 5 ? 0 : disp == (int8_t)disp && !wide ? 0x40 : 0x80;
    e8(e, mod | (reg & 7) << 3 | 4);
    e8(e, (R9 & 7) << 3 | (base & 7));
    if (mod == 0x40)
        e8(e, (uint8_t)disp);
    else if (mod == 0x80)
        e32(e, (uint32_t)disp);
}

/* The instruction with its memory operand replaced by [base + r9 + disp] (window.c). */
void copy_insn_in_window(struct emit *e, const struct insn *in, unsigned base, int32_t disp)
{
    const ZydisDecodedInstruction *d = &in->d;
    uint8_t *start = e->p;
    copy_opcode(e, in, base);
    /* set the index bit: in REX, or inverted in VEX and EVEX */
    switch (d->encoding) {
    case ZYDIS_INSTRUCTION_ENCODING_VEX:
    case ZYDIS_INSTRUCTION_ENCODING_XOP:
    case ZYDIS_INSTRUCTION_ENCODING_EVEX:
        start[1] &= (uint8_t)~0x40;
        break;
    default: {
        uint8_t *opcode = e->p - opcode_length(d);
        if (opcode > start && (opcode[-1] & 0xf0) == 0x40) {
            opcode[-1] |= 0x42;
        } else {
            memmove(opcode + 1, opcode, opcode_length(d));
            *opcode = 0x42;
            e->p++;
        }
    }
    }
    unsigned modrm = in->bytes[d->raw.modrm.offset];
    copy_window_operand(e, modrm >> 3 & 7, base, disp, d->encoding == ZYDIS_INSTRUCTION_ENCODING_EVEX);
    unsigned rest = d->raw.modrm.offset + 1;
    rest += (modrm >> 6) != 3 && (modrm & 7) == 4;
    rest += d->raw.disp.size / 8;
    e_bytes(e, in->bytes + rest, d->length - rest);
}

void copy_insn_plain(struct emit *e, const struct insn *in)
{
    e_bytes(e, in->bytes, in->d.length);
}

/* The guest's r9-r11 as register operands: loaded before and stored after the instruction. */
static void stolen_loads(struct emit *e, const struct insn *in)
{
    for (unsigned i = 0; i < in->d.operand_count; i++) {
        const ZydisDecodedOperand *op = &in->op[i];
        if (op->type != ZYDIS_OPERAND_TYPE_REGISTER)
            continue;
        unsigned r = gpr_of(op->reg.value);
        if (r == NO_REG || !is_stolen(r))
            continue;
        bool keeps = in->d.mnemonic == ZYDIS_MNEMONIC_BSF || in->d.mnemonic == ZYDIS_MNEMONIC_BSR; /* of zero */
        bool pure_write = op->size >= 32 && op->actions == ZYDIS_OPERAND_ACTION_WRITE && !keeps;
        if (!pure_write)
            e_load(e, r, GPR_OFFSET(r));
    }
}

static void stolen_stores(struct emit *e, const struct insn *in)
{
    for (unsigned i = 0; i < in->d.operand_count; i++) {
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
    const ZydisDecodedOperand *mem = NULL;
    for (unsigned i = 0; i < in->d.operand_count; i++)
        if (in->op[i].type == ZYDIS_OPERAND_TYPE_MEMORY && in->op[i].mem.type != ZYDIS_MEMOP_TYPE_AGEN)
            mem = &in->op[i];
    if (!mem) {
        flags_before(t, in);
        stolen_loads(&t->hot, in);
        copy_insn_plain(&t->hot, in);
        stolen_stores(&t->hot, in);
        return;
    }
    struct ea ea;
    insn_ea(t, in, mem, &ea);
    if (window_serves(t, in)) {
        flags_before(t, in);
        stolen_loads(&t->hot, in);
        copy_insn_in_window(&t->hot, in, ea.base, (int32_t)ea.disp);
        stolen_stores(&t->hot, in);
        return;
    }
    struct tail tail;
    begin_access(t, in, gpr_mask_of(in), &tail);
    stolen_loads(&tail.e, in);
    copy_insn_with_address(&tail.e, in, t->A);
    stolen_stores(&tail.e, in);
    unsigned access = (mem->actions & ZYDIS_OPERAND_ACTION_MASK_READ ? SITE_READ : 0) |
                      (mem->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE ? SITE_WRITE : 0);
    unsigned size = mem->size / 8;
    if (in->d.mnemonic == ZYDIS_MNEMONIC_CLFLUSH || in->d.mnemonic == ZYDIS_MNEMONIC_CLFLUSHOPT ||
        in->d.mnemonic == ZYDIS_MNEMONIC_CLWB) { /* of a line, but checked as a byte read */
        access = SITE_READ;
        size = 1;
    }
    if (access == SITE_WRITE && is_x87(in)) /* stores nothing when it meets an unmasked exception */
        access |= SITE_READ;
    uint32_t first = t->engine->n_sites;
    emit_access(t, in, &ea, access ? access : SITE_READ, size ? size : 1, &tail);
    masked_access(t, &t->engine->sites[first], in, mem);
    t->engine->sites[first].clears_top = clears_x87_top(t, in, mem);
    t->engine->sites[first].lent = in->d.encoding == ZYDIS_INSTRUCTION_ENCODING_LEGACY && has_high8(in);
}
