/*
 * Instructions that are not simply copied: control transfers, the stack, the privileged set, and those
 * with a hidden or unusual memory operand.  `specials` is the summary.  Long by
 * that table and by one short function for each instruction in it.
 */
#include "engine/soft/translate_int.h"
#include "engine/soft/helpers.h"

#define M(name) ZYDIS_MNEMONIC_##name

struct special {
    special_fn *fn; /* how it is translated; NULL with a helper: sp_helper */
    helper_fn *helper;
    uint8_t arg;       /* the helper's own */
    bool ends;         /* nothing after it belongs to the block */
    bool fn_sometimes; /* fn may hand on to generic_insn */
};
static const struct special specials[ZYDIS_MNEMONIC_MAX_VALUE + 1];

static unsigned op_gpr(const ZydisDecodedOperand *op)
{
    ZydisRegister r = op->reg.value;
    switch (ZydisRegisterGetClass(r)) {
    case ZYDIS_REGCLASS_GPR8:
        return r < ZYDIS_REGISTER_AH    ? (unsigned)(r - ZYDIS_REGISTER_AL)
               : r < ZYDIS_REGISTER_SPL ? (unsigned)(r - ZYDIS_REGISTER_AH)
                                        : (unsigned)(r - ZYDIS_REGISTER_SPL) + RSP;
    case ZYDIS_REGCLASS_GPR16:
        return (unsigned)(r - ZYDIS_REGISTER_AX);
    case ZYDIS_REGCLASS_GPR32:
        return (unsigned)(r - ZYDIS_REGISTER_EAX);
    case ZYDIS_REGCLASS_GPR64:
        return (unsigned)(r - ZYDIS_REGISTER_RAX);
    default:
        return NO_REG;
    }
}

static bool code64(const struct translator *t)
{
    return (t->mode & MODE_64) != 0;
}

/* --- helpers ------------------------------------------------------------------------------------- */

/* Stores the effective address of the explicit memory operand for a helper. */
static void store_helper_ea(struct translator *t, const struct insn *in, const ZydisDecodedOperand *op)
{
    struct ea ea;
    insn_ea(t, in, op, &ea);
    emit_ea(t, &ea, R11, R10);
    e_store(&t->hot, R11, VOFF(helper_ea));
}

/* What a helper must know of its operand's segment to raise the right exception. */
static void site_segment(struct translator *t, struct site *s, const ZydisDecodedOperand *op)
{
    ZydisRegister r = op->mem.segment;
    if (r == ZYDIS_REGISTER_SS)
        s->access |= SITE_STACK;
    s->segment = r == ZYDIS_REGISTER_FS ? FS : r == ZYDIS_REGISTER_GS ? GS : 0;
}

/* arg: table's own | register << 8 | operand bytes << 16 | memory << 24 */
static void sp_helper(struct translator *t, const struct insn *in)
{
    const struct special *sp = &specials[in->d.mnemonic];
    unsigned reg = NO_REG, size = in->d.operand_width / 8;
    const ZydisDecodedOperand *memory = NULL;
    uint64_t imm = 0;
    for (unsigned i = 0; i < in->d.operand_count_visible; i++) {
        const ZydisDecodedOperand *op = &in->op[i];
        if (op->type == ZYDIS_OPERAND_TYPE_MEMORY) {
            store_helper_ea(t, in, op);
            memory = op;
            if (op->size)
                size = op->size / 8;
        } else if (op->type == ZYDIS_OPERAND_TYPE_REGISTER && reg == NO_REG) {
            reg = op_gpr(op);
        } else if (op->type == ZYDIS_OPERAND_TYPE_IMMEDIATE) {
            imm = op->imm.value.u;
        } else if (op->type == ZYDIS_OPERAND_TYPE_POINTER) {
            imm = (uint64_t)op->ptr.segment << 32 | op->ptr.offset;
        }
    }
    struct site *s = emit_helper(t, in, sp->helper, sp->ends);
    if (memory)
        site_segment(t, s, memory);
    if (sp->helper == helper_pusha)
        s->access |= SITE_STACK;
    s->arg = sp->arg | reg << 8 | (size & 0xff) << 16 | (uint32_t)(memory != NULL) << 24;
    s->arg2 = in->d.operand_width / 8;
    s->imm = imm;
}

/* --- branches -------------------------------------------------------------------------------------- */

static void end_indirect(struct translator *t)
{
    if (t->mode & MODE_BY_C) {
        e_store(&t->hot, R11, VOFF(helper_ea));
        struct site *s = emit_helper(t, &t->insns[t->n_insns - 1], helper_single_step, true);
        s->arg = 1;
    } else {
        emit_indirect(t);
    }
    t->ended = true;
}

static void end_direct(struct translator *t, const struct insn *in, int64_t target, int cc)
{
    if (!(t->mode & MODE_BY_C)) {
        emit_exit(t, target, cc);
        return;
    }
    uint32_t skip = cc >= 0 ? e_jcc(&t->hot, (unsigned)cc ^ 1, 0) : 0;
    emit_pc(t, R11, target);
    e_store(&t->hot, R11, VOFF(helper_ea));
    emit_helper(t, in, helper_single_step, false)->arg = 1;
    if (cc >= 0)
        e_patch(&t->hot, skip, e_offset(&t->hot));
}

/* Bytes of a near branch's target.  AMD: a 66h prefix makes it 16 bits in 64-bit code, too. */
static unsigned branch_size(const struct translator *t, const struct insn *in)
{
    if (code64(t))
        return t->amd && (in->d.attributes & ZYDIS_ATTRIB_HAS_OPERANDSIZE) && !in->d.raw.rex.W ? 2 : 8;
    return in->d.operand_width / 8;
}

/* A relative branch whose target is cut to 16 bits: no distance from here. */
static void end_short(struct translator *t, const struct insn *in, int cc)
{
    uint32_t skip = cc >= 0 ? e_jcc(&t->hot, (unsigned)cc ^ 1, 0) : 0;
    emit_pc(t, R11, in->pc + in->d.length + in->op[0].imm.value.s);
    e_movzx16(&t->hot, R11, R11);
    end_indirect(t);
    if (cc >= 0)
        e_patch(&t->hot, skip, e_offset(&t->hot));
}

static int64_t branch_target(const struct translator *t, const struct insn *in)
{
    int64_t target = in->pc + in->d.length + in->op[0].imm.value.s;
    if (!code64(t) && in->d.operand_width == 16)
        target = (int64_t)(uint16_t)(t->gva + (uint64_t)target) - (int64_t)t->gva;
    return target;
}

static void sp_jcc(struct translator *t, const struct insn *in)
{
    unsigned cc = in->bytes[in->d.raw.imm[0].offset - 1] & 15;
    if (code64(t) && branch_size(t, in) == 2)
        end_short(t, in, (int)cc);
    else
        end_direct(t, in, branch_target(t, in), (int)cc);
    end_direct(t, in, in->pc + in->d.length, -1);
    t->ended = true;
}

static bool addr32(const struct insn *in)
{
    return in->d.address_width == 32;
}

static bool addr16(const struct insn *in)
{
    return in->d.address_width == 16;
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
    uint8_t opcode = in->bytes[in->d.raw.imm[0].offset - 1];
    for (unsigned i = 0; t->amd && opcode <= 0xe1 && i < in->d.raw.prefix_count; i++) {
        uint8_t p = in->d.raw.prefixes[i].value;
        opcode = p == 0xf2 ? 0xe0 : p == 0xf3 ? 0xe1 : opcode;
    }
    return opcode;
}

/* loop, loope, loopne, jcxz, jecxz, jrcxz: the short branch itself is copied over a longer one */
static void sp_loop(struct translator *t, const struct insn *in)
{
    struct emit *e = &t->hot;
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
    end_direct(t, in, in->pc + in->d.length, -1);
    *rel = (uint8_t)(e->p - rel - 1);
    if (addr16(in))
        merge_count(e);
    if (code64(t) && branch_size(t, in) == 2)
        end_short(t, in, -1);
    else
        end_direct(t, in, branch_target(t, in), -1);
    t->ended = true;
}

/* Pushes host register `reg` (2, 4 or 8 bytes) on the guest's stack; rsp moves after the store. */
static void emit_push(struct translator *t, const struct insn *in, unsigned reg, unsigned size, uint32_t used)
{
    choose_scratch(t, used | 1u << reg);
    flags_guard(t, in);
    struct tail tail;
    tail_begin(&tail);
    tail_restore_flags(t, &tail);
    if (size == 2)
        e8(&tail.e, 0x66);
    e_mem(&tail.e, 0x89, size == 8, reg, t->A, NO_REG, 0, 0);
    e_lea(&tail.e, code64(t), RSP, RSP, NO_REG, 0, -(int)size);
    struct ea ea = {
        .base = RSP, .index = NO_REG, .disp = -(int)size, .segment = SS, .addr32 = !code64(t), .stack = true};
    emit_access(t, in, &ea, SITE_WRITE, size, &tail);
}

/* Loads from the guest's stack into a host register; rsp is left. */
static void emit_stack_load(struct translator *t, const struct insn *in, unsigned reg, unsigned size, int disp,
                            const struct tail *after)
{
    flags_guard(t, in);
    struct tail tail;
    tail_begin(&tail);
    tail_restore_flags(t, &tail);
    if (size == 2)
        e8(&tail.e, 0x66);
    e_mem(&tail.e, 0x8b, size == 8, reg, t->A, NO_REG, 0, 0);
    if (after)
        e_bytes(&tail.e, after->bytes, (unsigned)(after->e.p - after->e.start));
    struct ea ea = {.base = RSP, .index = NO_REG, .disp = disp, .segment = SS, .addr32 = !code64(t), .stack = true};
    emit_access(t, in, &ea, SITE_READ, size, &tail);
}

static void load_operand_into(struct translator *t, const struct insn *in, const ZydisDecodedOperand *op, unsigned reg,
                              unsigned size);
static void sp_far(struct translator *t, const struct insn *in);

/* Pushes the address of the next instruction. */
static void emit_push_pc(struct translator *t, const struct insn *in, unsigned size)
{
    if (size == 8 && window_serves(t, in)) {
        emit_pc(t, R10, in->pc + in->d.length);
        e_mem(&t->hot, 0x89, true, R10, RSP, R9, 0, -8);
        e_lea(&t->hot, true, RSP, RSP, NO_REG, 0, -8);
        return;
    }
    choose_scratch(t, 0);
    flags_guard(t, in);
    struct tail tail;
    tail_begin(&tail);
    tail_restore_flags(t, &tail);
    uint64_t pc = t->gva + in->pc + in->d.length;
    if (size == 8 && (t->mode & MODE_FIXED_PC) && (int64_t)pc == (int32_t)pc) {
        e_mem(&tail.e, 0xc7, true, 0, t->A, NO_REG, 0, 0);
        e32(&tail.e, (uint32_t)pc);
    } else {
        struct emit hot = t->hot;
        t->hot = tail.e;
        emit_pc(t, t->B, in->pc + in->d.length);
        tail.e = t->hot;
        t->hot = hot;
        if (size == 2)
            e8(&tail.e, 0x66);
        e_mem(&tail.e, 0x89, size == 8, t->B, t->A, NO_REG, 0, 0);
    }
    e_lea(&tail.e, code64(t), RSP, RSP, NO_REG, 0, -(int)size);
    struct ea ea = {
        .base = RSP, .index = NO_REG, .disp = -(int)size, .segment = SS, .addr32 = !code64(t), .stack = true};
    emit_access(t, in, &ea, SITE_WRITE, size, &tail);
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

static void sp_call(struct translator *t, const struct insn *in)
{
    const ZydisDecodedOperand *op = &in->op[0];
    if (in->d.meta.branch_type == ZYDIS_BRANCH_TYPE_FAR) {
        sp_far(t, in);
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

/* A register or memory operand, zero-extended, into scratch register `reg`. */
static void load_operand_into(struct translator *t, const struct insn *in, const ZydisDecodedOperand *op, unsigned reg,
                              unsigned size)
{
    if (op->type == ZYDIS_OPERAND_TYPE_REGISTER) {
        unsigned r = op_gpr(op);
        if (is_stolen(r))
            e_load(&t->hot, reg, GPR_OFFSET(r));
        else
            e_mov(&t->hot, true, reg, r);
        if (size == 4)
            e_mov(&t->hot, false, reg, reg);
        if (size == 2)
            e_movzx16(&t->hot, reg, reg);
        return;
    }
    struct ea ea;
    insn_ea(t, in, op, &ea);
    choose_scratch(t, 0);
    flags_guard(t, in);
    struct tail tail;
    tail_begin(&tail);
    tail_restore_flags(t, &tail);
    if (size == 2) { /* movzx reg, word [A] */
        e_rex(&tail.e, false, reg, 0, t->A);
        e8(&tail.e, 0x0f);
        e8(&tail.e, 0xb7);
        e8(&tail.e, (reg & 7) << 3 | (t->A & 7));
    } else {
        e_mem(&tail.e, 0x8b, size == 8, reg, t->A, NO_REG, 0, 0);
    }
    emit_access(t, in, &ea, SITE_READ, size, &tail);
}

static void sp_jmp(struct translator *t, const struct insn *in)
{
    const ZydisDecodedOperand *op = &in->op[0];
    if (in->d.meta.branch_type == ZYDIS_BRANCH_TYPE_FAR) {
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

static void sp_ret(struct translator *t, const struct insn *in)
{
    if (in->d.meta.branch_type == ZYDIS_BRANCH_TYPE_FAR) {
        sp_helper(t, in);
        return;
    }
    unsigned size = branch_size(t, in);
    unsigned extra = in->op[0].type == ZYDIS_OPERAND_TYPE_IMMEDIATE ? (unsigned)in->op[0].imm.value.u : 0;
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

/* --- the stack -------------------------------------------------------------------------------------- */

static bool is_sreg(const ZydisDecodedOperand *op)
{
    return op->type == ZYDIS_OPERAND_TYPE_REGISTER && ZydisRegisterGetClass(op->reg.value) == ZYDIS_REGCLASS_SEGMENT;
}

static void emit_load_selector(struct translator *t, unsigned reg, ZydisRegister sreg)
{
    struct emit *e = &t->hot;
    uint32_t at = (uint32_t)(offsetof(struct cpu, seg) + (unsigned)(sreg - ZYDIS_REGISTER_ES) * sizeof(struct segment));
    e8(e, 0x65);
    e_rex(e, false, reg, 0, 0);
    e8(e, 0x0f);
    e8(e, 0xb7);
    e8(e, 4 | (reg & 7) << 3);
    e8(e, 0x25);
    e32(e, at);
}

/* push and pop with an open window: the guest's own store or load, then rsp */
static void window_push(struct translator *t, const struct insn *in)
{
    const ZydisDecodedOperand *op = &in->op[0];
    if (op->type == ZYDIS_OPERAND_TYPE_IMMEDIATE) {
        e_mem(&t->hot, 0xc7, true, 0, RSP, R9, 0, -8);
        e32(&t->hot,
            (uint32_t)(in->d.raw.imm[0].is_signed ? in->d.raw.imm[0].value.s : (int64_t)in->d.raw.imm[0].value.u));
    } else {
        unsigned reg = op_gpr(op);
        if (is_stolen(reg))
            e_load(&t->hot, reg, GPR_OFFSET(reg));
        e_mem(&t->hot, 0x89, true, reg, RSP, R9, 0, -8);
    }
    e_lea(&t->hot, true, RSP, RSP, NO_REG, 0, -8);
}

static void window_pop(struct translator *t, const struct insn *in)
{
    unsigned reg = op_gpr(&in->op[0]);
    e_mem(&t->hot, 0x8b, true, reg, RSP, R9, 0, 0);
    if (is_stolen(reg))
        e_store(&t->hot, reg, GPR_OFFSET(reg));
    e_lea(&t->hot, true, RSP, RSP, NO_REG, 0, 8);
}

static void sp_push(struct translator *t, const struct insn *in)
{
    const ZydisDecodedOperand *op = &in->op[0];
    unsigned size = in->d.operand_width / 8;
    if (window_serves(t, in)) {
        window_push(t, in);
        return;
    }
    if (op->type == ZYDIS_OPERAND_TYPE_IMMEDIATE) {
        int64_t value = in->d.raw.imm[0].is_signed ? in->d.raw.imm[0].value.s : (int64_t)in->d.raw.imm[0].value.u;
        choose_scratch(t, 0);
        flags_guard(t, in);
        struct tail tail;
        tail_begin(&tail);
        tail_restore_flags(t, &tail);
        if (size == 2)
            e8(&tail.e, 0x66);
        e_mem(&tail.e, 0xc7, size == 8, 0, t->A, NO_REG, 0, 0);
        if (size == 2)
            e16(&tail.e, (unsigned)value);
        else
            e32(&tail.e, (uint32_t)value);
        e_lea(&tail.e, code64(t), RSP, RSP, NO_REG, 0, -(int)size);
        struct ea ea = {
            .base = RSP, .index = NO_REG, .disp = -(int)size, .segment = SS, .addr32 = !code64(t), .stack = true};
        emit_access(t, in, &ea, SITE_WRITE, size, &tail);
        return;
    }
    uint32_t slot = SCRATCH_SLOT;
    if (is_sreg(op)) {
        emit_load_selector(t, R9, op->reg.value);
    } else if (op->type != ZYDIS_OPERAND_TYPE_REGISTER) {
        load_operand_into(t, in, op, R9, size);
    } else if (is_stolen(op_gpr(op))) {
        slot = GPR_OFFSET(op_gpr(op));
    } else {
        emit_push(t, in, op_gpr(op), size, 0);
        return;
    }
    if (slot == SCRATCH_SLOT) /* the check needs every scratch register */
        e_store(&t->hot, R9, slot);
    choose_scratch(t, 0);
    flags_guard(t, in);
    struct tail tail;
    tail_begin(&tail);
    tail_restore_flags(t, &tail);
    e_load(&tail.e, t->B, slot);
    if (size == 2)
        e8(&tail.e, 0x66);
    e_mem(&tail.e, 0x89, size == 8, t->B, t->A, NO_REG, 0, 0);
    e_lea(&tail.e, code64(t), RSP, RSP, NO_REG, 0, -(int)size);
    struct ea ea = {
        .base = RSP, .index = NO_REG, .disp = -(int)size, .segment = SS, .addr32 = !code64(t), .stack = true};
    emit_access(t, in, &ea, SITE_WRITE, size, &tail);
}

static void sp_pop(struct translator *t, const struct insn *in)
{
    const ZydisDecodedOperand *op = &in->op[0];
    unsigned size = in->d.operand_width / 8;
    if (window_serves(t, in)) {
        window_pop(t, in);
        return;
    }
    if (is_sreg(op)) {
        struct site *s = emit_helper(t, in, helper_load_segment, true);
        s->arg = (uint32_t)(op->reg.value - ZYDIS_REGISTER_ES) | (uint32_t)NO_REG << 8 | size << 16 | 1u << 31;
        return;
    }
    struct tail after;
    tail_begin(&after);
    if (op->type == ZYDIS_OPERAND_TYPE_REGISTER) {
        unsigned reg = op_gpr(op);
        choose_scratch(t, 1u << reg);
        if (reg == RSP) {
            /* the popped value wins over the increment */
        } else {
            e_lea(&after.e, code64(t), RSP, RSP, NO_REG, 0, (int)size);
        }
        if (is_stolen(reg)) {
            if (size == 2) { /* merge into the slot */
                e8(&after.e, 0x66);
                e_gs(&after.e, 0x89, false, reg, GPR_OFFSET(reg));
            } else {
                e_store(&after.e, reg, GPR_OFFSET(reg));
            }
        }
        if (reg == RSP && size == 2)
            e_lea(&after.e, true, RSP, RSP, NO_REG, 0, 0);
        emit_stack_load(t, in, reg, size, 0, &after);
        return;
    }
    /* pop [mem]: the address is computed with the incremented rsp */
    choose_scratch(t, 0);
    e_store(&after.e, R11, SCRATCH_SLOT);
    emit_stack_load(t, in, R11, size, 0, &after);
    struct ea ea;
    insn_ea(t, in, op, &ea);
    if (ea.base == RSP)
        ea.disp += size;
    choose_scratch(t, 0);
    flags_guard(t, in);
    struct tail tail;
    tail_begin(&tail);
    tail_restore_flags(t, &tail);
    e_load(&tail.e, t->B, SCRATCH_SLOT);
    if (size == 2)
        e8(&tail.e, 0x66);
    e_mem(&tail.e, 0x89, size == 8, t->B, t->A, NO_REG, 0, 0);
    e_lea(&tail.e, code64(t), RSP, RSP, NO_REG, 0, (int)size);
    emit_access(t, in, &ea, SITE_WRITE, size, &tail);
}

static void sp_leave(struct translator *t, const struct insn *in)
{
    unsigned size = code64(t) ? in->d.operand_width / 8 : in->d.operand_width / 8;
    choose_scratch(t, 0);
    flags_guard(t, in);
    struct tail tail;
    tail_begin(&tail);
    tail_restore_flags(t, &tail);
    if (size == 2)
        e8(&tail.e, 0x66);
    e_mem(&tail.e, 0x8b, size == 8, t->B, t->A, NO_REG, 0, 0); /* the load may fault: nothing has changed yet */
    e_lea(&tail.e, code64(t), RSP, RBP, NO_REG, 0, (int)size);
    if (size == 2)
        e8(&tail.e, 0x66);
    e_mov(&tail.e, size == 8, RBP, t->B);
    struct ea ea = {.base = RBP, .index = NO_REG, .segment = SS, .addr32 = !code64(t), .stack = true};
    emit_access(t, in, &ea, SITE_READ, size, &tail);
}

/* --- flags ------------------------------------------------------------------------------------------ */

/* and/or on cpu.rflags; the arithmetic flags survive when somebody needs them */
static void rflags_op(struct translator *t, const struct insn *in, unsigned group, uint32_t imm)
{
    choose_scratch(t, 0);
    if (in->live_before)
        e_save_flags(&t->hot, t->C);
    e_gs(&t->hot, 0x81, false, group, CPUOFF(rflags));
    e32(&t->hot, imm);
    if (in->live_before)
        e_restore_flags(&t->hot, t->C);
}
static void sp_cld(struct translator *t, const struct insn *in)
{
    rflags_op(t, in, 4, ~(uint32_t)FL_DF);
}
static void sp_std(struct translator *t, const struct insn *in)
{
    rflags_op(t, in, 1, FL_DF);
}

static void sp_cli(struct translator *t, const struct insn *in)
{
    if (t->mode & MODE_CPL0)
        rflags_op(t, in, 4, ~(uint32_t)FL_IF);
    else
        sp_helper(t, in);
}

/* The instruction after sti still runs in its shadow; then the block ends and looks for interrupts. */
static void sp_sti(struct translator *t, const struct insn *in)
{
    struct emit *e = &t->hot;
    bool last = in == &t->insns[t->n_insns - 1];
    if (last || !(t->mode & MODE_CPL0)) {
        emit_helper(t, in, helper_sti, false)->arg = last;
        t->shadow = !last;
        return;
    }
    choose_scratch(t, 0);
    flags_guard(t, in);
    e_gs(e, 0x81, false, 1, CPUOFF(rflags)); /* or */
    e32(e, FL_IF);
    e_gs(e, 0x83, false, 7, CPUOFF(request)); /* cmp, 0: does something wait for IF? */
    e8(e, 0);
    e8(e, 0x74);
    uint8_t *skip = e->p;
    e8(e, 0);
    e_store_imm32(e, VOFF(poll), 1);
    *skip = (uint8_t)(e->p - skip - 1);
    if (t->flags_saved)
        e_restore_flags(e, t->C);
    t->flags_saved = false;
    t->shadow = true;
}

/* F3 90 is pause, but with REX.B the CPU takes it for the exchange of rax and r8 that 90 stands for, whatever the
 * decoder says.  A window must not miss that r8 changes: an instruction of this table ends it. */
static void sp_pause(struct translator *t, const struct insn *in)
{
    copy_insn_plain(&t->hot, in);
}

/* The two GS bases change places. */
static void sp_swapgs(struct translator *t, const struct insn *in)
{
    if (!(t->mode & MODE_CPL0) || !code64(t)) {
        sp_helper(t, in);
        return;
    }
    uint32_t active = (uint32_t)(offsetof(struct cpu, seg) + GS * sizeof(struct segment) +
                                 offsetof(struct segment, base));
    e_load(&t->hot, R11, active);
    e_load(&t->hot, R10, CPUOFF(kernel_gs_base));
    e_store(&t->hot, R10, active);
    e_store(&t->hot, R11, CPUOFF(kernel_gs_base));
}

/* The kernel's: the host's counter and the guest's offset, flags untouched.  In user mode CR4.TSD may
 * forbid it. */
static void sp_rdtsc(struct translator *t, const struct insn *in)
{
    struct emit *e = &t->hot;
    if (!(t->mode & MODE_CPL0)) {
        sp_helper(t, in);
        return;
    }
    e8(e, 0x0f);
    e8(e, 0x31);
    e_rorx(e, RDX, RDX, 32);
    e_lea(e, true, RAX, RAX, RDX, 0, 0);
    e_load(e, R11, CPUOFF(tsc_offset));
    e_lea(e, true, RAX, RAX, R11, 0, 0);
    e_rorx(e, RDX, RAX, 32);
    e_mov(e, false, RDX, RDX);
    e_mov(e, false, RAX, RAX);
}

/* --- odd ones ---------------------------------------------------------------------------------------- */

static void sp_nop(struct translator *t, const struct insn *in) {}

static void sp_lea(struct translator *t, const struct insn *in)
{
    const ZydisDecodedOperand *mem = &in->op[1];
    struct ea ea;
    unsigned reg = op_gpr(&in->op[0]);
    insn_ea(t, in, mem, &ea);
    bool plain = !ea.pc_relative && !is_stolen(reg) && (ea.base == NO_REG || !is_stolen(ea.base)) &&
                 (ea.index == NO_REG || !is_stolen(ea.index)) && code64(t);
    if (plain) {
        copy_insn_plain(&t->hot, in);
        return;
    }
    ea.segment = DS;
    uint32_t mode = t->mode;
    t->mode &= ~(uint32_t)MODE_SEGMENTED; /* lea adds no segment base */
    unsigned to = in->op[0].size == 64 && !is_stolen(reg) && !ea.addr32 && ea.base != reg && ea.index != reg ? reg
                                                                                                             : R11;
    emit_ea(t, &ea, to, R10);
    t->mode = mode;
    if (to == reg && !is_stolen(reg))
        return;
    switch (in->op[0].size) {
    case 64:
        if (is_stolen(reg))
            e_store(&t->hot, R11, GPR_OFFSET(reg));
        else
            e_mov(&t->hot, true, reg, R11);
        break;
    case 32:
        e_mov(&t->hot, false, R11, R11);
        if (is_stolen(reg))
            e_store(&t->hot, R11, GPR_OFFSET(reg));
        else
            e_mov(&t->hot, false, reg, R11);
        break;
    default:
        if (is_stolen(reg)) {
            e8(&t->hot, 0x65); /* mov gs:[slot], r11w */
            e8(&t->hot, 0x66);
            e8(&t->hot, 0x44);
            e8(&t->hot, 0x89);
            e8(&t->hot, 0x1c);
            e8(&t->hot, 0x25);
            e32(&t->hot, GPR_OFFSET(reg));
        } else {
            e8(&t->hot, 0x66);
            e_mov(&t->hot, false, reg, R11);
        }
    }
}

/* al = [rbx + al] */
static void sp_xlat(struct translator *t, const struct insn *in)
{
    choose_scratch(t, 0);
    flags_guard(t, in);
    struct tail tail;
    tail_begin(&tail);
    tail_restore_flags(t, &tail);
    e_mem(&tail.e, 0x8a, false, RAX, t->A, NO_REG, 0, 0);
    struct emit *e = &t->hot;
    e_rex(e, false, t->B, 0, RAX);
    e8(e, 0x0f);
    e8(e, 0xb6);
    e8(e, 0xc0 | (t->B & 7) << 3 | RAX);
    e_lea(e, true, t->B, RBX, t->B, 0, 0);
    if (addr32(in))
        e_mov(e, false, t->B, t->B);
    else if (addr16(in))
        e_movzx16(e, t->B, t->B);
    e_mov(e, true, t->A, t->B);
    const ZydisDecodedOperand *mem = NULL;
    for (unsigned i = 0; i < in->d.operand_count; i++)
        if (in->op[i].type == ZYDIS_OPERAND_TYPE_MEMORY)
            mem = &in->op[i];
    struct ea ea = {.base = NO_REG, .index = NO_REG, .segment = DS};
    if (mem) {
        struct ea full;
        insn_ea(t, in, mem, &full);
        ea.segment = full.segment;
    }
    e_store(e, t->A, SCRATCH_SLOT);
    ea.base = EA_SLOT;
    emit_access(t, in, &ea, SITE_READ, 1, &tail);
}

/* bt family with a register offset reaches outside the operand: its high part goes into the address, and
 * the instruction (LOCK and all) runs with the low part. */
static void sp_bt(struct translator *t, const struct insn *in)
{
    const ZydisDecodedOperand *mem = &in->op[0];
    if (mem->type != ZYDIS_OPERAND_TYPE_MEMORY || in->op[1].type != ZYDIS_OPERAND_TYPE_REGISTER) {
        generic_insn(t, in);
        return;
    }
    struct ea ea;
    insn_ea(t, in, mem, &ea);
    unsigned size = in->d.operand_width / 8, segment = ea.segment, reg = op_gpr(&in->op[1]);
    struct emit *e = &t->hot;
    choose_scratch(t, 0);
    flags_guard(t, in);
    ea.segment = DS;
    uint32_t mode = t->mode;
    t->mode &= ~(uint32_t)MODE_SEGMENTED; /* the segment's base comes after the bit offset */
    emit_ea(t, &ea, t->A, t->B);
    t->mode = mode;
    if (is_stolen(reg))
        e_load(e, t->B, GPR_OFFSET(reg));
    else
        e_mov(e, true, t->B, reg);
    if (size == 2) { /* sign-extend B */
        e_rex(e, true, t->B, 0, t->B);
        e8(e, 0x0f);
        e8(e, 0xbf);
        e8(e, 0xc0 | (t->B & 7) * 9);
    } else if (size == 4) {
        e_rex(e, true, t->B, 0, t->B);
        e8(e, 0x63);
        e8(e, 0xc0 | (t->B & 7) * 9);
    }
    e_rex(e, true, 0, 0, t->B); /* sar B, 3 */
    e8(e, 0xc1);
    e8(e, 0xf8 | (t->B & 7));
    e8(e, 3);
    e_alu_imm(e, true, 4, t->B, -size);
    e_lea(e, !ea.addr32, t->A, t->A, t->B, 0, 0);
    if (ea.addr16)
        e_movzx16(e, t->A, t->A);
    e_store(e, t->A, SCRATCH_SLOT);

    struct tail tail;
    tail_begin(&tail);
    if (is_stolen(reg))
        e_load(&tail.e, t->B, GPR_OFFSET(reg));
    else
        e_mov(&tail.e, true, t->B, reg);
    e_alu_imm(&tail.e, false, 4, t->B, size * 8 - 1);
    tail_restore_flags(t, &tail);
    if (in->d.attributes & ZYDIS_ATTRIB_HAS_LOCK)
        e8(&tail.e, 0xf0);
    if (size == 2)
        e8(&tail.e, 0x66);
    e_rex(&tail.e, size == 8, t->B, 0, t->A);
    e8(&tail.e, 0x0f);
    e8(&tail.e, in->d.opcode);
    e8(&tail.e, (t->B & 7) << 3 | (t->A & 7));
    struct ea at = {.base = EA_SLOT, .index = NO_REG, .segment = segment, .stack = ea.stack};
    emit_access(t, in, &at, in->d.mnemonic == M(BT) ? SITE_READ : SITE_READ | SITE_WRITE, size, &tail);
}

static void sp_mov(struct translator *t, const struct insn *in)
{
    const ZydisDecodedOperand *to = &in->op[0], *from = &in->op[1];
    ZydisRegisterClass to_class = to->type == ZYDIS_OPERAND_TYPE_REGISTER ? ZydisRegisterGetClass(to->reg.value) : 0;
    ZydisRegisterClass from_class = from->type == ZYDIS_OPERAND_TYPE_REGISTER ? ZydisRegisterGetClass(from->reg.value)
                                                                              : 0;
    struct site *s;
    if (to_class == ZYDIS_REGCLASS_CONTROL) {
        s = emit_helper(t, in, helper_cr_write, true);
        s->arg = (uint32_t)(to->reg.value - ZYDIS_REGISTER_CR0) | op_gpr(from) << 8;
    } else if (from_class == ZYDIS_REGCLASS_CONTROL) {
        s = emit_helper(t, in, helper_cr_read, false);
        s->arg = (uint32_t)(from->reg.value - ZYDIS_REGISTER_CR0) | op_gpr(to) << 8;
    } else if (to_class == ZYDIS_REGCLASS_DEBUG) {
        s = emit_helper(t, in, helper_dr, true);
        s->arg = (uint32_t)(to->reg.value - ZYDIS_REGISTER_DR0) | op_gpr(from) << 8 | 1 << 16;
    } else if (from_class == ZYDIS_REGCLASS_DEBUG) {
        s = emit_helper(t, in, helper_dr, false);
        s->arg = (uint32_t)(from->reg.value - ZYDIS_REGISTER_DR0) | op_gpr(to) << 8;
    } else if (to_class == ZYDIS_REGCLASS_SEGMENT) {
        bool memory = from->type == ZYDIS_OPERAND_TYPE_MEMORY;
        if (memory)
            store_helper_ea(t, in, from);
        s = emit_helper(t, in, helper_load_segment, true);
        if (memory)
            site_segment(t, s, from);
        s->arg = (uint32_t)(to->reg.value - ZYDIS_REGISTER_ES) | (memory ? (uint32_t)NO_REG : op_gpr(from)) << 8 |
                 2 << 16;
    } else if (from_class == ZYDIS_REGCLASS_SEGMENT) {
        if (to->type == ZYDIS_OPERAND_TYPE_MEMORY)
            store_helper_ea(t, in, to);
        s = emit_helper(t, in, helper_store_system, false);
        if (to->type == ZYDIS_OPERAND_TYPE_MEMORY)
            site_segment(t, s, to);
        s->arg = SYS_SELECTOR | (to->type == ZYDIS_OPERAND_TYPE_MEMORY ? (uint32_t)NO_REG : op_gpr(to)) << 8 |
                 (uint32_t)(in->d.operand_width / 8) << 16;
        s->arg2 = (uint32_t)(from->reg.value - ZYDIS_REGISTER_ES);
    } else if (in->d.raw.modrm.offset == 0 &&
               (to->type == ZYDIS_OPERAND_TYPE_MEMORY || from->type == ZYDIS_OPERAND_TYPE_MEMORY)) {
        /* moffs: A0-A3 */
        bool write = to->type == ZYDIS_OPERAND_TYPE_MEMORY;
        const ZydisDecodedOperand *mem = write ? to : from;
        struct ea ea;
        insn_ea(t, in, mem, &ea);
        choose_scratch(t, 0);
        flags_guard(t, in);
        struct tail tail;
        tail_begin(&tail);
        tail_restore_flags(t, &tail);
        unsigned bits = mem->size;
        if (bits == 16)
            e8(&tail.e, 0x66);
        e_mem(&tail.e, (write ? 0x88 : 0x8a) | (bits != 8), bits == 64, RAX, t->A, NO_REG, 0, 0);
        emit_access(t, in, &ea, write ? SITE_WRITE : SITE_READ, bits / 8, &tail);
    } else {
        generic_insn(t, in);
    }
}

/* inc/dec 40-4F of 32-bit code are REX prefixes here */
static void sp_incdec(struct translator *t, const struct insn *in)
{
    uint8_t op = in->bytes[in->d.length - 1];
    if (!code64(t) && in->d.raw.modrm.offset == 0 && (op & 0xf0) == 0x40) {
        if (in->d.operand_width == 16)
            e8(&t->hot, 0x66);
        e8(&t->hot, 0xff);
        e8(&t->hot, 0xc0 | (op & 8) | (op & 7));
        return;
    }
    generic_insn(t, in);
}

static void sp_string(struct translator *t, const struct insn *in)
{
    static const struct {
        uint16_t mnemonic;
        uint8_t kind, size;
    } kinds[] = {
        {M(MOVSB), STR_MOVS, 1}, {M(MOVSW), STR_MOVS, 2}, {M(MOVSD), STR_MOVS, 4}, {M(MOVSQ), STR_MOVS, 8},
        {M(STOSB), STR_STOS, 1}, {M(STOSW), STR_STOS, 2}, {M(STOSD), STR_STOS, 4}, {M(STOSQ), STR_STOS, 8},
        {M(LODSB), STR_LODS, 1}, {M(LODSW), STR_LODS, 2}, {M(LODSD), STR_LODS, 4}, {M(LODSQ), STR_LODS, 8},
        {M(SCASB), STR_SCAS, 1}, {M(SCASW), STR_SCAS, 2}, {M(SCASD), STR_SCAS, 4}, {M(SCASQ), STR_SCAS, 8},
        {M(CMPSB), STR_CMPS, 1}, {M(CMPSW), STR_CMPS, 2}, {M(CMPSD), STR_CMPS, 4}, {M(CMPSQ), STR_CMPS, 8},
        {M(INSB), STR_INS, 1},   {M(INSW), STR_INS, 2},   {M(INSD), STR_INS, 4},   {M(OUTSB), STR_OUTS, 1},
        {M(OUTSW), STR_OUTS, 2}, {M(OUTSD), STR_OUTS, 4},
    };
    if (in->d.encoding != ZYDIS_INSTRUCTION_ENCODING_LEGACY || in->d.opcode_map != ZYDIS_OPCODE_MAP_DEFAULT) {
        generic_insn(t, in); /* movsd and cmpsd of SSE */
        return;
    }
    unsigned i = 0;
    while (kinds[i].mnemonic != in->d.mnemonic)
        i++;
    unsigned rep = in->d.attributes & ZYDIS_ATTRIB_HAS_REPNE                           ? STR_REPNE
                   : in->d.attributes & (ZYDIS_ATTRIB_HAS_REP | ZYDIS_ATTRIB_HAS_REPE) ? STR_REPE
                                                                                       : 0;
    unsigned segment = DS;
    for (unsigned k = 0; k < in->d.operand_count; k++)
        if (in->op[k].type == ZYDIS_OPERAND_TYPE_MEMORY && in->op[k].mem.base != ZYDIS_REGISTER_NONE &&
            (in->op[k].mem.base == ZYDIS_REGISTER_RSI || in->op[k].mem.base == ZYDIS_REGISTER_ESI ||
             in->op[k].mem.base == ZYDIS_REGISTER_SI))
            switch (in->op[k].mem.segment) {
            case ZYDIS_REGISTER_FS:
                segment = FS;
                break;
            case ZYDIS_REGISTER_GS:
                segment = GS;
                break;
            case ZYDIS_REGISTER_ES:
                segment = ES;
                break;
            case ZYDIS_REGISTER_CS:
                segment = CS;
                break;
            case ZYDIS_REGISTER_SS:
                segment = SS;
                break;
            default:
                break;
            }
    struct site *s = emit_helper(t, in, helper_string, false);
    s->arg = kinds[i].kind | (uint32_t)kinds[i].size << 8 | rep << 16;
    s->arg2 = segment | (uint32_t)in->d.address_width << 8;
}

/* Gathers and scatters: element by element in simd.c. */
static void sp_gather(struct translator *t, const struct insn *in)
{
    const ZydisDecodedOperand *mem = NULL, *data = NULL, *mask = NULL;
    for (unsigned i = 0; i < in->d.operand_count_visible; i++) {
        const ZydisDecodedOperand *op = &in->op[i];
        if (op->type == ZYDIS_OPERAND_TYPE_MEMORY)
            mem = op;
        else if (ZydisRegisterGetClass(op->reg.value) == ZYDIS_REGCLASS_MASK || data)
            mask = op;
        else
            data = op;
    }
    if (!mem || !data || !mask) { /* the prefetching forms touch nothing */
        return;
    }
    struct ea ea = {.base = NO_REG, .index = NO_REG, .segment = DS};
    const struct ZydisDecodedOperandMem_ *m = &mem->mem;
    unsigned segment = m->segment == ZYDIS_REGISTER_NONE ? DS : (unsigned)(m->segment - ZYDIS_REGISTER_ES);
    if (m->base != ZYDIS_REGISTER_NONE)
        ea.base = (unsigned)ZydisRegisterGetId(m->base);
    uint32_t mode = t->mode;
    t->mode &= ~(uint32_t)MODE_SEGMENTED; /* the helper adds the segment's base, after the index */
    emit_ea(t, &ea, R11, R10);
    t->mode = mode;
    e_store(&t->hot, R11, VOFF(helper_ea));
    struct site *s = emit_helper(t, in, helper_gather, false);
    unsigned element = data->element_size / 8;
    bool quad_index = in->d.mnemonic == M(VGATHERQPD) || in->d.mnemonic == M(VGATHERQPS) ||
                      in->d.mnemonic == M(VPGATHERQD) || in->d.mnemonic == M(VPGATHERQQ) ||
                      in->d.mnemonic == M(VSCATTERQPD) || in->d.mnemonic == M(VSCATTERQPS) ||
                      in->d.mnemonic == M(VPSCATTERQD) || in->d.mnemonic == M(VPSCATTERQQ);
    bool quad_data = in->d.mnemonic == M(VGATHERQPD) || in->d.mnemonic == M(VPGATHERQQ) ||
                     in->d.mnemonic == M(VGATHERDPD) || in->d.mnemonic == M(VPGATHERDQ) ||
                     in->d.mnemonic == M(VSCATTERQPD) || in->d.mnemonic == M(VPSCATTERQQ) ||
                     in->d.mnemonic == M(VSCATTERDPD) || in->d.mnemonic == M(VPSCATTERDQ);
    element = quad_data ? 8 : 4;
    unsigned index_size = quad_index ? 8 : 4, vector = in->d.avx.vector_length / 8;
    unsigned widest = element > index_size ? element : index_size, count = vector / widest;
    s->arg = (uint32_t)ZydisRegisterGetId(data->reg.value) | (uint32_t)ZydisRegisterGetId(mask->reg.value) << 8 |
             (uint32_t)ZydisRegisterGetId(m->index) << 16;
    s->arg2 = element | index_size << 8 | (uint32_t)(m->scale ? m->scale : 1) << 16 | (uint32_t)addr32(in) << 24 |
              segment << 28;
    s->imm = m->disp.has_displacement ? (uint64_t)m->disp.value : 0;
    s->size = (uint16_t)count;
    s->element = (uint8_t)(count * element);
    s->mask_kind = in->d.encoding == ZYDIS_INSTRUCTION_ENCODING_EVEX ? MASK_K : MASK_VEC_SIGN;
    s->null_segment = !code64(t) &&
                      ((segment == FS && (t->mode & MODE_NULL_FS)) || (segment == GS && (t->mode & MODE_NULL_GS)) ||
                       (segment == CS && !(data->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE)));
    s->access = (data->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE ? SITE_READ : SITE_WRITE) |
                (m->segment == ZYDIS_REGISTER_SS ? SITE_STACK : 0);
}

/* in and out: the port is dx or an immediate byte */
static void sp_port(struct translator *t, const struct insn *in)
{
    bool input = in->d.mnemonic == M(IN);
    const ZydisDecodedOperand *data = &in->op[input ? 0 : 1], *port = &in->op[input ? 1 : 0];
    struct site *s = emit_helper(t, in, input ? helper_in : helper_out, false);
    s->size = data->size / 8;
    s->element = port->type == ZYDIS_OPERAND_TYPE_REGISTER;
    s->imm = port->type == ZYDIS_OPERAND_TYPE_IMMEDIATE ? port->imm.value.u : 0;
}

static void sp_query(struct translator *t, const struct insn *in)
{
    const ZydisDecodedOperand *from = &in->op[1];
    sp_helper(t, in);
    struct site *s = &t->engine->sites[t->engine->n_sites - 1];
    if (from->type == ZYDIS_OPERAND_TYPE_REGISTER)
        s->element = (uint8_t)op_gpr(from);
    s->arg2 = in->op[0].size / 8;
    if (in->op[0].type == ZYDIS_OPERAND_TYPE_MEMORY) /* ARPL's, which it writes sometimes only */
        s->imm = (uint64_t)(in->op[0].mem.segment - ZYDIS_REGISTER_ES);
}

static void sp_enter(struct translator *t, const struct insn *in)
{
    struct site *s = emit_helper(t, in, helper_enter, false);
    s->arg2 = in->d.operand_width / 8;
    s->imm = in->op[0].imm.value.u;
    s->element = (uint8_t)in->op[1].imm.value.u;
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
    s->arg = (in->d.mnemonic == M(CALL)) | (uint32_t)(op->type == ZYDIS_OPERAND_TYPE_MEMORY) << 24;
    s->arg2 = in->d.operand_width / 8;
    if (op->type == ZYDIS_OPERAND_TYPE_POINTER)
        s->imm = (uint64_t)op->ptr.segment << 32 | op->ptr.offset;
}

/* a 66h prefix does not make its operand 16 bits */
static void sp_fsgsbase(struct translator *t, const struct insn *in)
{
    sp_helper(t, in);
    t->engine->sites[t->engine->n_sites - 1].arg2 = in->op[0].size / 8;
}

/* clears the 64 bytes around [rax] */
static void sp_clzero(struct translator *t, const struct insn *in)
{
    struct ea ea = {.base = RAX, .index = NO_REG, .segment = DS, .addr32 = addr32(in)};
    for (unsigned i = 0; i < in->d.operand_count; i++)
        if (in->op[i].type == ZYDIS_OPERAND_TYPE_MEMORY)
            insn_ea(t, in, &in->op[i], &ea);
    emit_ea(t, &ea, R11, R10);
    e_store(&t->hot, R11, VOFF(helper_ea));
    emit_helper(t, in, helper_clzero, false);
}

static void sp_x87_env(struct translator *t, const struct insn *in)
{
    sp_helper(t, in);
    t->engine->sites[t->engine->n_sites - 1].arg2 = in->op[0].size == 14 * 8 || in->op[0].size == 94 * 8 ? 2 : 4;
}

/* maskmovq, maskmovdqu: rdi is lent to the host address.  The whole operand must be writable, whatever the
 * mask says. */
static void sp_maskmov(struct translator *t, const struct insn *in)
{
    const ZydisDecodedOperand *mem = NULL;
    for (unsigned i = 0; i < in->d.operand_count; i++)
        if (in->op[i].type == ZYDIS_OPERAND_TYPE_MEMORY)
            mem = &in->op[i];
    e_store(&t->hot, RDI, GPR_OFFSET(RDI)); /* a pending x87 exception, met by the movd, leaves it so */
    if (in->d.mnemonic == M(MASKMOVQ) && t->amd)
        e_bytes(&t->hot, "\x41\x0f\x7e\xc2", 4); /* movd r10d, mm0: x87 state becomes MMX state even on a fault */
    struct ea ea;
    insn_ea(t, in, mem, &ea);
    choose_scratch(t, 0);
    flags_guard(t, in);
    struct tail tail;
    tail_begin(&tail);
    tail_restore_flags(t, &tail);
    e_store(&tail.e, RDI, GPR_OFFSET(RDI));
    e_mov(&tail.e, true, RDI, t->A);
    for (unsigned i = 0; i < in->d.length; i++) {
        uint8_t b = in->bytes[i];
        bool spent = b == 0x67 || b == 0x26 || b == 0x2e || b == 0x36 || b == 0x3e || b == 0x64 || b == 0x65;
        if (i >= in->d.raw.prefix_count || !spent)
            e8(&tail.e, b);
    }
    e_load(&tail.e, RDI, GPR_OFFSET(RDI));
    uint32_t first = t->engine->n_sites;
    emit_access(t, in, &ea, SITE_READ | SITE_WRITE, in->d.mnemonic == M(MASKMOVQ) ? 8 : 16, &tail);
    t->engine->sites[first].lent = true;
}

static void sp_undefined(struct translator *t, const struct insn *in)
{
    emit_helper(t, in, helper_undefined, true)->arg = in->d.length == 16;
}

/* --- segments that are not flat ------------------------------------------------------------------------ */

/* The stack operand that is not written out. */
static bool stack_operand(const struct insn *in, struct ea *ea, bool *write)
{
    int size = in->d.operand_width / 8;
    bool far = in->d.meta.branch_type == ZYDIS_BRANCH_TYPE_FAR;
    *ea = (struct ea){.base = RSP, .index = NO_REG, .segment = SS, .addr32 = true};
    switch (in->d.mnemonic) {
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
    switch (in->d.mnemonic) {
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
    bool write = (op->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE) && in->d.mnemonic != M(ARPL);
    struct site *s = emit_segment_check(t, in, &ea, write, size);
    s->arg2 = kind;
    s->element = (uint8_t)reg;
}

/* 32-bit code: limits and access rights are looked at in C, before the instruction.  String instructions,
 * gathers and what uses the stack in C look themselves. */
void emit_segment_checks(struct translator *t, const struct insn *in)
{
    special_fn *fn = special_for(in);
    bool legacy = in->d.encoding == ZYDIS_INSTRUCTION_ENCODING_LEGACY && in->d.opcode_map == ZYDIS_OPCODE_MAP_DEFAULT;
    if ((fn == sp_string && legacy) || fn == sp_nop || fn == sp_gather || fn == sp_undefined ||
        in->d.mnemonic == M(INVLPG))
        return;
    struct ea ea;
    bool write = false;
    if (stack_operand(in, &ea, &write))
        emit_segment_check(t, in, &ea, write, in->d.operand_width / 8)->arg2 = SEGMENT_STACK;
    for (unsigned i = 0; i < in->d.operand_count; i++) {
        const ZydisDecodedOperand *op = &in->op[i];
        bool hidden_stack = op->visibility == ZYDIS_OPERAND_VISIBILITY_HIDDEN &&
                            (gpr_of(op->mem.base) == RSP || gpr_of(op->mem.base) == RBP);
        if (op->type == ZYDIS_OPERAND_TYPE_MEMORY && op->mem.type != ZYDIS_MEMOP_TYPE_AGEN && !hidden_stack)
            check_operand(t, in, op);
    }
}

/* 64-bit code runs these as they are; in 32-bit code registers 8 and up stay. */
static void sp_vzero(struct translator *t, const struct insn *in)
{
    if (code64(t))
        generic_insn(t, in);
    else
        sp_helper(t, in);
}

/* VEX.W is ignored in 32-bit code, but the host is in 64-bit mode: there it widens the lengths in rax and rdx. */
static void sp_pcmpestr(struct translator *t, const struct insn *in)
{
    uint8_t bytes[16];
    struct insn narrow = *in;
    if (!code64(t) && in->d.encoding == ZYDIS_INSTRUCTION_ENCODING_VEX && in->bytes[in->d.raw.vex.offset] == 0xc4) {
        for (unsigned i = 0; i < in->d.length; i++)
            bytes[i] = in->bytes[i];
        bytes[in->d.raw.vex.offset + 2] &= 0x7f;
        narrow.bytes = bytes;
    }
    generic_insn(t, &narrow);
}

#define HELP(mn, f, a) [M(mn)] = {.fn = sp_helper, .helper = f, .arg = (a)}
#define ENDS(mn, f, a) [M(mn)] = {.fn = sp_helper, .helper = f, .arg = (a), .ends = true}
#define JCC(mn) [M(mn)] = {.fn = sp_jcc, .ends = true}
#define SOME(mn, f) [M(mn)] = {.fn = f, .fn_sometimes = true}
#define UNDEF(mn) [M(mn)] = {.fn = sp_undefined, .ends = true}

/* clang-format off: a table */
static const struct special specials[ZYDIS_MNEMONIC_MAX_VALUE + 1] = {
    [M(INVALID)] = {.fn = sp_undefined, .ends = true},
    /* branches */
    JCC(JB),
    JCC(JBE),
    JCC(JL),
    JCC(JLE),
    JCC(JNB),
    JCC(JNBE),
    JCC(JNL),
    JCC(JNLE),
    JCC(JNO),
    JCC(JNP),
    JCC(JNS),
    JCC(JNZ),
    JCC(JO),
    JCC(JP),
    JCC(JS),
    JCC(JZ),
    [M(JRCXZ)] = {.fn = sp_loop, .ends = true},
    [M(JECXZ)] = {.fn = sp_loop, .ends = true},
    [M(JCXZ)] = {.fn = sp_loop, .ends = true},
    [M(LOOP)] = {.fn = sp_loop, .ends = true},
    [M(LOOPE)] = {.fn = sp_loop, .ends = true},
    [M(LOOPNE)] = {.fn = sp_loop, .ends = true},
    [M(JMP)] = {.fn = sp_jmp, .ends = true},
    [M(CALL)] = {.fn = sp_call, .ends = true},
    [M(RET)] = {.fn = sp_ret, .helper = helper_far_ret, .ends = true},
    ENDS(IRET, helper_iret, 2),
    ENDS(IRETD, helper_iret, 4),
    ENDS(IRETQ, helper_iret, 8),
    ENDS(SYSCALL, helper_syscall, 0),
    ENDS(SYSRET, helper_sysret, 0),
    ENDS(SYSENTER, helper_sysenter, 0),
    ENDS(SYSEXIT, helper_sysexit, 0),
    ENDS(INT, helper_int, INT_IMM),
    ENDS(INT3, helper_int, INT_3),
    ENDS(INTO, helper_int, INT_O),
    ENDS(INT1, helper_int, INT_1),
    ENDS(HLT, helper_hlt, 0),
    /* the stack */
    SOME(PUSH, sp_push),
    SOME(POP, sp_pop),
    SOME(LEAVE, sp_leave),
    SOME(ENTER, sp_enter),
    HELP(PUSHF, helper_pushf, 2),
    HELP(PUSHFD, helper_pushf, 4),
    HELP(PUSHFQ, helper_pushf, 8),
    ENDS(POPF, helper_popf, 2),
    ENDS(POPFD, helper_popf, 4),
    ENDS(POPFQ, helper_popf, 8),
    [M(PUSHA)] = {.fn = sp_helper, .helper = helper_pusha, .arg = 2},
    [M(PUSHAD)] = {.fn = sp_helper, .helper = helper_pusha, .arg = 4},
    [M(POPA)] = {.fn = sp_helper, .helper = helper_pusha, .arg = 2 | 0x80},
    [M(POPAD)] = {.fn = sp_helper, .helper = helper_pusha, .arg = 4 | 0x80},
    /* flags */
    [M(CLI)] = {.fn = sp_cli, .helper = helper_cli},
    SOME(STI, sp_sti),
    SOME(CLD, sp_cld),
    SOME(STD, sp_std),
    ENDS(STAC, helper_stac, 1),
    ENDS(CLAC, helper_stac, 0),
    /* no effect that a guest could see */
    SOME(NOP, sp_nop),
    SOME(PAUSE, sp_pause),
    SOME(PREFETCH, sp_nop),
    SOME(PREFETCHW, sp_nop),
    SOME(PREFETCHWT1, sp_nop),
    SOME(PREFETCHNTA, sp_nop),
    SOME(PREFETCHT0, sp_nop),
    SOME(PREFETCHT1, sp_nop),
    SOME(PREFETCHT2, sp_nop),
    SOME(ENDBR32, sp_nop),
    SOME(ENDBR64, sp_nop),
    SOME(CLDEMOTE, sp_nop),
    /* odd operands */
    SOME(LEA, sp_lea),
    SOME(XLAT, sp_xlat),
    SOME(BT, sp_bt),
    SOME(BTS, sp_bt),
    SOME(BTR, sp_bt),
    SOME(BTC, sp_bt),
    SOME(MOV, sp_mov),
    SOME(INC, sp_incdec),
    SOME(DEC, sp_incdec),
    SOME(MOVSB, sp_string),
    SOME(MOVSW, sp_string),
    SOME(MOVSD, sp_string),
    SOME(MOVSQ, sp_string),
    SOME(STOSB, sp_string),
    SOME(STOSW, sp_string),
    SOME(STOSD, sp_string),
    SOME(STOSQ, sp_string),
    SOME(LODSB, sp_string),
    SOME(LODSW, sp_string),
    SOME(LODSD, sp_string),
    SOME(LODSQ, sp_string),
    SOME(SCASB, sp_string),
    SOME(SCASW, sp_string),
    SOME(SCASD, sp_string),
    SOME(SCASQ, sp_string),
    SOME(CMPSB, sp_string),
    SOME(CMPSW, sp_string),
    SOME(CMPSD, sp_string),
    SOME(CMPSQ, sp_string),
    SOME(INSB, sp_string),
    SOME(INSW, sp_string),
    SOME(INSD, sp_string),
    SOME(OUTSB, sp_string),
    SOME(OUTSW, sp_string),
    SOME(OUTSD, sp_string),
    [M(VZEROALL)] = {.fn = sp_vzero, .helper = helper_vzero, .arg = 1, .fn_sometimes = true},
    [M(VZEROUPPER)] = {.fn = sp_vzero, .helper = helper_vzero, .fn_sometimes = true},
    SOME(VPCMPESTRI, sp_pcmpestr),
    SOME(VPCMPESTRM, sp_pcmpestr),
    HELP(XSAVE, helper_xstate, XS_XSAVE),
    HELP(XSAVE64, helper_xstate, XS_XSAVE | XS_64),
    HELP(XSAVEOPT, helper_xstate, XS_XSAVEOPT),
    HELP(XSAVEOPT64, helper_xstate, XS_XSAVEOPT | XS_64),
    HELP(XSAVEC, helper_xstate, XS_XSAVEC),
    HELP(XSAVEC64, helper_xstate, XS_XSAVEC | XS_64),
    HELP(XRSTOR, helper_xstate, XS_XRSTOR),
    HELP(XRSTOR64, helper_xstate, XS_XRSTOR | XS_64),
    HELP(FXSAVE, helper_xstate, XS_FXSAVE),
    HELP(FXSAVE64, helper_xstate, XS_FXSAVE | XS_64),
    HELP(FXRSTOR, helper_xstate, XS_FXRSTOR),
    HELP(FXRSTOR64, helper_xstate, XS_FXRSTOR | XS_64),
    UNDEF(XSAVES),
    UNDEF(XSAVES64),
    UNDEF(XRSTORS),
    UNDEF(XRSTORS64),
    SOME(MASKMOVQ, sp_maskmov),
    SOME(MASKMOVDQU, sp_maskmov),
    SOME(VMASKMOVDQU, sp_maskmov),
    [M(FNSTENV)] = {.fn = sp_x87_env, .helper = helper_x87_env, .arg = 0},
    [M(FNSAVE)] = {.fn = sp_x87_env, .helper = helper_x87_env, .arg = 1},
    /* ports, CPUID, MSRs */
    SOME(IN, sp_port),
    SOME(OUT, sp_port),
    HELP(CPUID, helper_cpuid, 0),
    [M(RDTSC)] = {.fn = sp_rdtsc, .helper = helper_rdtsc},
    HELP(RDTSCP, helper_rdtsc, 1),
    HELP(RDPID, helper_rdtsc, 2),
    HELP(RDMSR, helper_msr, 0),
    ENDS(WRMSR, helper_msr, 1),
    HELP(RDPMC, helper_gp0, 0),
    ENDS(XSETBV, helper_xsetbv, 0),
    HELP(XGETBV, helper_xgetbv, 0),
    /* system tables and registers */
    ENDS(LGDT, helper_descriptor_table, SYS_LGDT),
    ENDS(LIDT, helper_descriptor_table, SYS_LIDT),
    HELP(SGDT, helper_descriptor_table, SYS_SGDT),
    HELP(SIDT, helper_descriptor_table, SYS_SIDT),
    ENDS(LLDT, helper_descriptor_load, 0),
    ENDS(LTR, helper_descriptor_load, 1),
    HELP(SLDT, helper_store_system, SYS_SLDT),
    HELP(STR, helper_store_system, SYS_STR),
    HELP(SMSW, helper_store_system, SYS_SMSW),
    ENDS(LMSW, helper_clts_lmsw, 1),
    ENDS(CLTS, helper_clts_lmsw, 0),
    [M(LAR)] = {.fn = sp_query, .helper = helper_query, .arg = DESC_LAR},
    [M(LSL)] = {.fn = sp_query, .helper = helper_query, .arg = DESC_LSL},
    HELP(VERR, helper_query, DESC_VERR),
    HELP(VERW, helper_query, DESC_VERW),
    [M(SWAPGS)] = {.fn = sp_swapgs, .helper = helper_swapgs},
    ENDS(INVLPG, helper_invlpg, 0),
    ENDS(INVPCID, helper_invpcid, 0),
    [M(RDFSBASE)] = {.fn = sp_fsgsbase, .helper = helper_fsgsbase, .arg = 0},
    [M(RDGSBASE)] = {.fn = sp_fsgsbase, .helper = helper_fsgsbase, .arg = 1},
    [M(WRFSBASE)] = {.fn = sp_fsgsbase, .helper = helper_fsgsbase, .arg = 2},
    [M(WRGSBASE)] = {.fn = sp_fsgsbase, .helper = helper_fsgsbase, .arg = 3},
    HELP(WBINVD, helper_wbinvd, 0),
    HELP(INVD, helper_wbinvd, 0),
    ENDS(LFS, helper_load_far, FS),
    ENDS(LGS, helper_load_far, GS),
    ENDS(LSS, helper_load_far, SS),
    ENDS(LDS, helper_load_far, DS),
    ENDS(LES, helper_load_far, ES),
    HELP(BOUND, helper_bound, 0),
    HELP(DAA, helper_decimal, DEC_DAA),
    HELP(DAS, helper_decimal, DEC_DAS),
    HELP(AAA, helper_decimal, DEC_AAA),
    HELP(AAS, helper_decimal, DEC_AAS),
    HELP(AAM, helper_decimal, DEC_AAM),
    HELP(AAD, helper_decimal, DEC_AAD),
    HELP(SALC, helper_decimal, DEC_SALC),
    [M(ARPL)] = {.fn = sp_query, .helper = helper_arpl},
    /* what CPUID says is not there */
    UNDEF(UD0),
    UNDEF(UD1),
    UNDEF(UD2),
    UNDEF(MONITOR),
    UNDEF(MWAIT),
    UNDEF(MONITORX),
    UNDEF(MWAITX),
    UNDEF(RSM),
    UNDEF(VMCALL),
    UNDEF(VMMCALL),
    UNDEF(VMLAUNCH),
    UNDEF(VMRESUME),
    UNDEF(VMXOFF),
    UNDEF(VMXON),
    UNDEF(VMCLEAR),
    UNDEF(VMPTRLD),
    UNDEF(VMPTRST),
    UNDEF(VMREAD),
    UNDEF(VMWRITE),
    UNDEF(VMFUNC),
    UNDEF(VMRUN),
    UNDEF(VMLOAD),
    UNDEF(VMSAVE),
    UNDEF(STGI),
    UNDEF(CLGI),
    UNDEF(SKINIT),
    UNDEF(INVLPGA),
    UNDEF(INVEPT),
    UNDEF(INVVPID),
    UNDEF(RDPKRU),
    UNDEF(WRPKRU),
    UNDEF(XBEGIN),
    UNDEF(XEND),
    UNDEF(XABORT),
    UNDEF(XTEST),
    UNDEF(UMONITOR),
    UNDEF(UMWAIT),
    UNDEF(TPAUSE),
    UNDEF(GETSEC),
    UNDEF(ENCLS),
    UNDEF(ENCLU),
    UNDEF(ENCLV),
    UNDEF(PCONFIG),
    UNDEF(INCSSPD),
    UNDEF(INCSSPQ),
    UNDEF(RSTORSSP),
    UNDEF(SAVEPREVSSP),
    UNDEF(SETSSBSY),
    UNDEF(CLRSSBSY),
    UNDEF(WRSSD),
    UNDEF(WRSSQ),
    UNDEF(WRUSSD),
    UNDEF(WRUSSQ),
    UNDEF(PTWRITE),
    UNDEF(RDPRU),
    UNDEF(INVLPGB),
    UNDEF(TLBSYNC),
    UNDEF(PSMASH),
    UNDEF(PVALIDATE),
    UNDEF(RMPADJUST),
    UNDEF(RMPUPDATE),
    UNDEF(MCOMMIT),
    SOME(CLZERO, sp_clzero),
    UNDEF(ENQCMD),
    UNDEF(ENQCMDS),
    UNDEF(LLWPCB),
    UNDEF(SLWPCB),
    UNDEF(LWPINS),
    UNDEF(LWPVAL),
    SOME(RDSSPD, sp_nop),
    SOME(RDSSPQ, sp_nop),
};
/* clang-format on */

bool is_plain_mov(const struct insn *in)
{
    for (unsigned i = 0; i < 2; i++) {
        if (in->op[i].type != ZYDIS_OPERAND_TYPE_REGISTER)
            continue;
        switch (ZydisRegisterGetClass(in->op[i].reg.value)) {
        case ZYDIS_REGCLASS_CONTROL:
        case ZYDIS_REGCLASS_DEBUG:
        case ZYDIS_REGCLASS_SEGMENT:
            return false;
        default:
            break;
        }
    }
    bool memory = in->op[0].type == ZYDIS_OPERAND_TYPE_MEMORY || in->op[1].type == ZYDIS_OPERAND_TYPE_MEMORY;
    return !memory || in->d.raw.modrm.offset; /* moffs has none */
}

special_fn *special_for(const struct insn *in)
{
    for (unsigned i = 0; i < in->d.operand_count; i++)
        if (in->op[i].type == ZYDIS_OPERAND_TYPE_MEMORY && in->op[i].mem.type == ZYDIS_MEMOP_TYPE_VSIB)
            return sp_gather;
    return specials[in->d.mnemonic].fn;
}

bool insn_ends_block(const struct insn *in)
{
    if (in->d.mnemonic == M(MOV) || in->d.mnemonic == M(POP)) {
        const ZydisDecodedOperand *to = &in->op[0];
        if (to->type != ZYDIS_OPERAND_TYPE_REGISTER)
            return false;
        ZydisRegisterClass c = ZydisRegisterGetClass(to->reg.value);
        return c == ZYDIS_REGCLASS_CONTROL || c == ZYDIS_REGCLASS_DEBUG || c == ZYDIS_REGCLASS_SEGMENT;
    }
    return specials[in->d.mnemonic].ends;
}
