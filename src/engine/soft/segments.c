/*
 * 32-bit code with segments that are not flat: limits and rights are looked at in C, before the instruction.
 */
#include "engine/soft/helpers.h"
#include "engine/soft/special.h"

/* The stack operand that is not written out. */
static bool stack_operand(const struct insn *in, struct ea *ea, bool *write)
{
    int size = in->d->operand_width / 8;
    bool far = in->d->meta.branch_type == ZYDIS_BRANCH_TYPE_FAR;
    *ea = (struct ea){.base = RSP, .index = NO_REG, .segment = SS, .addr32 = true};
    switch (in->d->mnemonic) {
    case M(PUSH):
    case M(CALL):
        ea->disp = -size;
        *write = true;
        return !far;
    case M(LEAVE):
        ea->base = RBP;
        return true;
    case M(POP):
    case M(RET):
        return !far;
    default:
        return false;
    }
}

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
    s->arg = segment;
    s->arg2 = SEGMENT_PLAIN;
    s->imm = ea->addr16 ? 0xffff : UINT32_MAX;
    s->access = write ? SITE_WRITE : SITE_READ;
    s->size = (uint16_t)size;
    return s;
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
    case M(POP): /* its address is made from esp after the pop */
        if (ea.base == RSP)
            ea.disp += size;
        break;
    default:
        break;
    }
    bool write = (op->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE) && in->d->mnemonic != M(ARPL);
    struct site *s = emit_segment_check(t, in, &ea, write, size);
    s->arg2 = kind;
    s->element = (uint8_t)reg;
}

/* 32-bit code: limits and access rights are looked at in C, before the instruction.  String instructions,
 * gathers and what uses the stack in C look themselves. */
void emit_segment_checks(struct translator *t, const struct insn *in)
{
    special_fn *fn = in->shape->special;
    bool legacy = in->d->encoding == ZYDIS_INSTRUCTION_ENCODING_LEGACY && in->d->opcode_map == ZYDIS_OPCODE_MAP_DEFAULT;
    if ((fn == sp_string && legacy) || fn == sp_nop || fn == sp_gather || fn == sp_undefined ||
        in->d->mnemonic == M(INVLPG))
        return;
    struct ea ea;
    bool write = false;
    if (stack_operand(in, &ea, &write))
        emit_segment_check(t, in, &ea, write, in->d->operand_width / 8)->arg2 = SEGMENT_STACK;
    for (unsigned i = 0; i < in->d->operand_count; i++) {
        const ZydisDecodedOperand *op = &in->op[i];
        bool hidden_stack = op->visibility == ZYDIS_OPERAND_VISIBILITY_HIDDEN &&
                            (gpr_of(op->mem.base) == RSP || gpr_of(op->mem.base) == RBP);
        if (op->type == ZYDIS_OPERAND_TYPE_MEMORY && op->mem.type != ZYDIS_MEMOP_TYPE_AGEN && !hidden_stack)
            check_operand(t, in, op);
    }
}
