/*
 * Code with segments that are not flat, which 16-bit code is always: limits and rights are looked at in C, before the
 * instruction; what uses the stack is done there altogether.
 */
#include "engine/soft/helpers.h"
#include "engine/soft/special.h"

static struct site *emit_segment_check(struct translator *t, const struct insn *in, struct ea *ea, bool write,
                                       unsigned size)
{
    unsigned segment = ea->segment;
    uint32_t mode = t->mode;
    ea->segment = DS;
    t->mode &= ~(uint32_t)MODE_SEGMENTED; /* the offset, without a base */
    emit_ea(t, ea, R11, R10);
    t->mode = mode;
    e_store(&t->hot, R11, VOFF(helper_ea));
    struct site *s = emit_helper(t, in, helper_segment, false);
    s->segment = (uint8_t)segment & 7;
    s->first = SEGMENT_PLAIN;
    s->x87 = in->shape->x87;
    s->clears_top = in->shape->clears_top;
    s->imm = ea->addr16 ? 0xffff : UINT32_MAX;
    s->access = write ? SITE_WRITE : SITE_READ;
    s->size = (uint16_t)size;
    return s;
}

/* Address bits that must be clear in the areas that helpers move; 0: it is none. */
static uint8_t area_alignment(const struct insn *in)
{
    switch (in->d->mnemonic) {
    case M(FXSAVE):
    case M(FXRSTOR):
        return 15;
    case M(XSAVE):
    case M(XSAVEC):
    case M(XSAVEOPT):
    case M(XRSTOR):
        return 63;
    default:
        return 0;
    }
}

static void check_operand(struct translator *t, const struct insn *in, const ZydisDecodedOperand *op)
{
    struct ea ea;
    insn_ea(t, in, op, &ea);
    unsigned size = op->size ? op->size / 8 : 1, kind = SEGMENT_PLAIN, reg = 0;
    switch (in->d->mnemonic) {
    case M(CLFLUSH):
    case M(CLFLUSHOPT):
    case M(CLWB):
        size = 1;
        break;
    case M(XLAT):
        ea.index = NO_REG;
        kind = SEGMENT_XLAT;
        break;
    case M(BT):
    case M(BTS):
    case M(BTR):
    case M(BTC):
        if (in->op[1].type == ZYDIS_OPERAND_TYPE_REGISTER) {
            kind = SEGMENT_BIT;
            reg = op_gpr(&in->op[1]);
        }
        break;
    default:
        break;
    }
    bool write = (op->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE) && in->d->mnemonic != M(ARPL);
    struct site *s = emit_segment_check(t, in, &ea, write, size);
    s->first = kind & 7;
    if (kind == SEGMENT_BIT)
        s->element = (uint8_t)reg;
    if (op != in->op + in->shape->memory)
        return;
    s->halves = area_alignment(in); /* its beginning is looked at first */
    s->gp_align = s->halves ? area_alignment(in) : in->shape->gp_align;
    if (in->d->encoding != ZYDIS_INSTRUCTION_ENCODING_LEGACY)
        masked_access(t, s, in, op);
}

/* String instructions, gathers and what uses the stack look themselves. */
void emit_segment_checks(struct translator *t, const struct insn *in)
{
    if (!in->shape->legacy)
        emit_helper(t, in, helper_protected, false);
    if (in->d->mnemonic == M(POP))
        return;

    special_fn *fn = shape_special(in->shape);
    bool legacy = in->d->encoding == ZYDIS_INSTRUCTION_ENCODING_LEGACY && in->d->opcode_map == ZYDIS_OPCODE_MAP_DEFAULT;
    if ((fn == sp_string && legacy) || fn == sp_nop || fn == sp_gather || fn == sp_undefined ||
        in->d->mnemonic == M(INVLPG))
        return;
    for (unsigned i = 0; i < in->d->operand_count; i++) {
        const ZydisDecodedOperand *op = &in->op[i];
        bool hidden_stack = op->visibility == ZYDIS_OPERAND_VISIBILITY_HIDDEN &&
                            (gpr_of(op->mem.base) == RSP || gpr_of(op->mem.base) == RBP);
        bool later = hidden_stack ||
                     (in->d->mnemonic == M(MOVDIR64B) && (op->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE));
        if (op->type == ZYDIS_OPERAND_TYPE_MEMORY && op->mem.type != ZYDIS_MEMOP_TYPE_AGEN && !later)
            check_operand(t, in, op);
    }
}

/* --- the stack ------------------------------------------------------------------------------------------------- */

/* What helper_push and helper_call take: a register, or memory, whose address goes to helper_ea. */
static struct site *emit_with_operand(struct translator *t, const struct insn *in, helper_fn *fn, bool ends)
{
    const ZydisDecodedOperand *op = &in->op[0];
    uint32_t size = in->d->operand_width / 8;
    bool memory = op->type == ZYDIS_OPERAND_TYPE_MEMORY;
    if (memory)
        store_helper_ea(t, in, op);
    struct site *s = emit_helper(t, in, fn, ends);
    if (memory)
        site_segment(t, s, op);
    s->arg = memory ? STACK_MEMORY : STACK_REGISTER | op_gpr(op) << 8;
    s->arg |= size << 16;
    return s;
}

static bool is_sreg(const ZydisDecodedOperand *op)
{
    return op->type == ZYDIS_OPERAND_TYPE_REGISTER && ZydisRegisterGetClass(op->reg.value) == ZYDIS_REGCLASS_SEGMENT;
}

void segmented_push(struct translator *t, const struct insn *in)
{
    const ZydisDecodedOperand *op = &in->op[0];
    uint32_t size = in->d->operand_width / 8;
    if (op->type == ZYDIS_OPERAND_TYPE_IMMEDIATE) {
        struct site *s = emit_helper(t, in, helper_push, false);
        s->arg = STACK_IMMEDIATE | size << 16;
        s->imm = (uint64_t)in->imm[0];
    } else if (is_sreg(op)) {
        struct site *s = emit_helper(t, in, helper_push, false);
        s->arg = STACK_SELECTOR | (uint32_t)(op->reg.value - ZYDIS_REGISTER_ES) << 8 | size << 16;
    } else {
        emit_with_operand(t, in, helper_push, false);
    }
}

/* Into memory: the address is made from the stack pointer behind the pop. */
void segmented_pop(struct translator *t, const struct insn *in)
{
    const ZydisDecodedOperand *op = &in->op[0];
    struct ea ea;
    if (op->type != ZYDIS_OPERAND_TYPE_MEMORY) {
        emit_with_operand(t, in, helper_pop, false);
        return;
    }
    insn_ea(t, in, op, &ea);
    if (ea.base == RSP)
        ea.disp += in->d->operand_width / 8;
    emit_ea(t, &ea, R11, R10);
    e_store(&t->hot, R11, VOFF(helper_ea));
    struct site *s = emit_helper(t, in, helper_pop, false);
    site_segment(t, s, op);
    s->arg = STACK_MEMORY | (uint32_t)in->d->operand_width / 8 << 16;
    s->arg2 = ea.segment;
}

/* Relative: its target is known. */
void segmented_call(struct translator *t, const struct insn *in, int64_t target)
{
    if (in->op[0].type != ZYDIS_OPERAND_TYPE_IMMEDIATE) {
        emit_with_operand(t, in, helper_call, true);
        return;
    }
    struct site *s = emit_helper(t, in, helper_call, true);
    s->arg = STACK_IMMEDIATE | (uint32_t)in->d->operand_width / 8 << 16;
    s->imm = (uint32_t)(t->gva + (uint64_t)target);
}

void segmented_loop(struct translator *t, const struct insn *in, unsigned opcode, int64_t target)
{
    struct site *s = emit_helper(t, in, helper_loop, true);
    s->arg = (opcode & 3) | (uint32_t)in->d->address_width / 8 << 16;
    s->imm = (uint32_t)(t->gva + (uint64_t)target);
}

void segmented_ret(struct translator *t, const struct insn *in)
{
    struct site *s = emit_helper(t, in, helper_ret, true);
    s->arg = (uint32_t)in->d->operand_width / 8 << 16;
    s->imm = in->op[0].type == ZYDIS_OPERAND_TYPE_IMMEDIATE ? (uint16_t)in->imm[0] : 0;
}

void segmented_leave(struct translator *t, const struct insn *in)
{
    emit_helper(t, in, helper_leave, false)->arg = (uint32_t)in->d->operand_width / 8 << 16;
}
