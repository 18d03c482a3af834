/*
 * Branches, calls and returns: where a block ends.  Direct ones become exits that are chained, computed ones
 * go through the IBTC.
 */
#include "engine/soft/helpers.h"
#include "engine/soft/special.h"

static void end_indirect(struct translator *t)
{
    if (t->mode & MODE_BY_C) {
        e_store(&t->hot, R11, VOFF(helper_ea));
        struct site *s = emit_helper(t, &t->insns[t->n_insns - 1], helper_single_step, true);
        s->arg = 1;
    } else {
        emit_indirect(t, &t->insns[t->n_insns - 1]);
    }
    t->ended = true;
}

static void end_direct(struct translator *t, const struct insn *in, int64_t target, int cc)
{
    if (!(t->mode & MODE_BY_C)) {
        emit_exit(t, in, target, cc);
        return;
    }
    uint32_t skip = cc >= 0 ? e_jcc(&t->hot, (unsigned)cc ^ 1, 0) : 0;
    emit_pc(t, R11, target);
    e_store(&t->hot, R11, VOFF(helper_ea));
    emit_helper(t, in, helper_single_step, false)->arg = target != in->pc + in->length;
    if (cc >= 0)
        e_patch(&t->hot, skip, e_offset(&t->hot));
}

/* Bytes of a near branch's target.  AMD: a 66h prefix makes it 16 bits in 64-bit code, too. */
static unsigned branch_size(const struct translator *t, const struct insn *in)
{
    if (code64(t))
        return t->amd && (in->d->attributes & ZYDIS_ATTRIB_HAS_OPERANDSIZE) && !in->d->raw.rex.W ? 2 : 8;
    return in->d->operand_width / 8;
}

/* A relative branch whose target is cut to 16 bits: no distance from here. */
static void end_short(struct translator *t, const struct insn *in, int cc)
{
    uint32_t skip = cc >= 0 ? e_jcc(&t->hot, (unsigned)cc ^ 1, 0) : 0;
    emit_pc(t, R11, in->pc + in->length + in->imm[0]);
    e_movzx16(&t->hot, R11, R11);
    end_indirect(t);
    if (cc >= 0)
        e_patch(&t->hot, skip, e_offset(&t->hot));
}

static int64_t branch_target(const struct translator *t, const struct insn *in)
{
    int64_t target = in->pc + in->length + in->imm[0];
    if (!code64(t) && in->d->operand_width == 16)
        target = (int64_t)(uint16_t)(t->gva + (uint64_t)target) - (int64_t)t->gva;
    return target;
}

void sp_jcc(struct translator *t, const struct insn *in)
{
    unsigned cc = in->bytes[in->d->raw.imm[0].offset - 1] & 15;
    flags_before(t, in);
    if (code64(t) && branch_size(t, in) == 2)
        end_short(t, in, (int)cc);
    else
        end_direct(t, in, branch_target(t, in), (int)cc);
    if (in < &t->insns[t->n_insns - 1])
        return; /* the block goes on behind it */
    end_direct(t, in, in->pc + in->length, -1);
    t->ended = true;
}

/* A count in cx: it has been run in ecx, r10 has the rest of rcx. */
static void merge_count(struct emit *e)
{
    e8(e, 0x66);
    e_mov(e, false, R10, RCX);
    e_mov(e, true, RCX, R10);
}

/* AMD: a REP prefix says which of loope and loopne it is. */
static uint8_t loop_opcode(const struct translator *t, const struct insn *in)
{
    uint8_t opcode = in->bytes[in->d->raw.imm[0].offset - 1];
    for (unsigned i = 0; t->amd && opcode <= 0xe1 && i < in->d->raw.prefix_count; i++) {
        uint8_t p = in->d->raw.prefixes[i].value;
        opcode = p == 0xf2 ? 0xe0 : p == 0xf3 ? 0xe1 : opcode;
    }
    return opcode;
}

/* loop, loope, loopne, jcxz, jecxz, jrcxz: the short branch itself is copied over a longer one */
void sp_loop(struct translator *t, const struct insn *in)
{
    struct emit *e = &t->hot;
    if (t->mode & MODE_SEGMENTED) {
        segmented_loop(t, in, loop_opcode(t, in), branch_target(t, in));
        return;
    }
    flags_to_host(t, R10); /* both ways out begin with them there */
    if (addr16(in)) {
        e_mov(e, true, R10, RCX);
        e_movzx16(e, RCX, RCX);
    }
    if (addr32(in) || addr16(in))
        e8(e, 0x67);
    e8(e, loop_opcode(t, in));
    uint8_t *rel = e->p;
    e8(e, 0);
    if (addr16(in))
        merge_count(e);
    end_direct(t, in, in->pc + in->length, -1);
    *rel = (uint8_t)(e->p - rel - 1);
    if (addr16(in))
        merge_count(e);
    if (code64(t) && branch_size(t, in) == 2)
        end_short(t, in, -1);
    else
        end_direct(t, in, branch_target(t, in), -1);
    t->ended = true;
}

/* A computed target in r11 that is not canonical faults in the branch.  Looking at each would cost more than
 * it is worth: normally the fault is found at the target (docs/QUIRKS.md).  A push of `pushed` bytes that
 * faults comes first. */
static void check_target(struct translator *t, const struct insn *in, unsigned pushed)
{
    if (!code64(t) || !t->engine->config.precise_flags)
        return;
    e_store(&t->hot, R11, VOFF(helper_ea));
    emit_helper(t, in, helper_target, false)->arg = pushed;
    e_load(&t->hot, R11, VOFF(helper_ea));
}

/* jmp and call through a far pointer, lfs & co. */
static void sp_far(struct translator *t, const struct insn *in)
{
    const ZydisDecodedOperand *op = &in->op[0];
    if (op->type == ZYDIS_OPERAND_TYPE_MEMORY)
        store_helper_ea(t, in, op);
    struct site *s = emit_helper(t, in, helper_far, true);
    if (op->type == ZYDIS_OPERAND_TYPE_MEMORY)
        site_segment(t, s, op);
    s->arg = (in->d->mnemonic == M(CALL)) | (uint32_t)(op->type == ZYDIS_OPERAND_TYPE_MEMORY) << 24;
    s->arg2 = in->d->operand_width / 8;
    if (op->type == ZYDIS_OPERAND_TYPE_POINTER)
        s->imm = (uint64_t)op->ptr.segment << 32 | op->ptr.offset;
}

void sp_call(struct translator *t, const struct insn *in)
{
    const ZydisDecodedOperand *op = &in->op[0];
    if (in->d->meta.branch_type == ZYDIS_BRANCH_TYPE_FAR) {
        sp_far(t, in);
        return;
    }
    if (t->mode & MODE_SEGMENTED) {
        segmented_call(t, in, branch_target(t, in));
        return;
    }
    unsigned size = branch_size(t, in);
    if (op->type == ZYDIS_OPERAND_TYPE_IMMEDIATE) {
        emit_push_pc(t, in, size);
        if (code64(t) && size == 2)
            end_short(t, in, -1);
        else
            end_direct(t, in, branch_target(t, in), -1);
        t->ended = true;
        return;
    }
    load_operand_into(t, in, op, R11, size);
    check_target(t, in, size);
    e_store(&t->hot, R11, VOFF(helper_ea));
    emit_push_pc(t, in, size);
    e_load(&t->hot, R11, VOFF(helper_ea));
    end_indirect(t);
}

void sp_jmp(struct translator *t, const struct insn *in)
{
    const ZydisDecodedOperand *op = &in->op[0];
    if (in->d->meta.branch_type == ZYDIS_BRANCH_TYPE_FAR) {
        sp_far(t, in);
        return;
    }
    if (op->type == ZYDIS_OPERAND_TYPE_IMMEDIATE) {
        if (code64(t) && branch_size(t, in) == 2)
            end_short(t, in, -1);
        else
            end_direct(t, in, branch_target(t, in), -1);
        t->ended = true;
        return;
    }
    load_operand_into(t, in, op, R11, branch_size(t, in));
    check_target(t, in, 0);
    end_indirect(t);
}

void sp_ret(struct translator *t, const struct insn *in)
{
    if (in->d->meta.branch_type == ZYDIS_BRANCH_TYPE_FAR) {
        sp_helper(t, in);
        return;
    }
    if (t->mode & MODE_SEGMENTED) {
        segmented_ret(t, in);
        return;
    }
    unsigned size = branch_size(t, in);
    unsigned extra = in->op[0].type == ZYDIS_OPERAND_TYPE_IMMEDIATE ? (unsigned)in->imm[0] : 0;
    if (size == 8 && window_serves(t, in)) {
        e_mem(&t->hot, 0x8b, true, R11, RSP, R9, 0, 0);
        e_lea(&t->hot, true, RSP, RSP, NO_REG, 0, (int)(size + extra));
        end_indirect(t);
        return;
    }
    choose_scratch(t, 0); /* A = r11 */
    struct tail after;
    tail_begin(&after);
    if (size == 2)
        e_movzx16(&after.e, R11, R11);
    bool check = t->engine->config.precise_flags && code64(t);
    if (check) { /* rsp waits for it */
        emit_stack_load(t, in, R11, size, 0, &after);
        check_target(t, in, 0);
        e_lea(&t->hot, true, RSP, RSP, NO_REG, 0, (int)(size + extra));
    } else {
        e_lea(&after.e, code64(t), RSP, RSP, NO_REG, 0, (int)(size + extra));
        emit_stack_load(t, in, R11, size, 0, &after);
    }
    end_indirect(t);
}
