/*
 * The stack: push, pop and what else uses it.  rsp moves after the access, which may fault.
 */
#include "engine/soft/helpers.h"
#include "engine/soft/special.h"

static struct ea stack_ea(const struct translator *t, unsigned base, int disp)
{
    return (struct ea){.base = base, .index = NO_REG, .disp = disp, .segment = SS, .addr32 = !code64(t), .stack = true};
}

/* The tail stores `stored` bytes at A, `size` below rsp: then rsp moves. */
static void end_push_part(struct translator *t, const struct insn *in, unsigned size, unsigned stored,
                          struct tail *tail)
{
    struct ea ea = stack_ea(t, RSP, -(int)size);
    e_lea(&tail->e, code64(t), RSP, RSP, NO_REG, 0, -(int)size);
    emit_access(t, in, &ea, SITE_WRITE, stored, tail);
}

static void end_push(struct translator *t, const struct insn *in, unsigned size, struct tail *tail)
{
    end_push_part(t, in, size, size, tail);
}

/* Pushes host register `reg` (2, 4 or 8 bytes). */
static void emit_push(struct translator *t, const struct insn *in, unsigned reg, unsigned size)
{
    struct tail tail;
    begin_access(t, in, 1u << reg, &tail);
    if (size == 2)
        e8(&tail.e, 0x66);
    e_mem(&tail.e, 0x89, size == 8, reg, t->A, NO_REG, 0, 0);
    end_push(t, in, size, &tail);
}

/* Loads from the guest's stack into a host register; rsp is left. */
void emit_stack_load(struct translator *t, const struct insn *in, unsigned reg, unsigned size, int disp,
                     const struct tail *after)
{
    struct tail tail;
    flags_spare(t, in, t->B);
    tail_begin(&tail);
    if (size == 2)
        e8(&tail.e, 0x66);
    e_mem(&tail.e, 0x8b, size == 8, reg, t->A, NO_REG, 0, 0);
    if (after)
        e_bytes(&tail.e, after->bytes, (unsigned)(after->e.p - after->e.start));
    struct ea ea = stack_ea(t, RSP, disp);
    emit_access(t, in, &ea, SITE_READ, size, &tail);
}

/* Pushes the address of the next instruction. */
void emit_push_pc(struct translator *t, const struct insn *in, unsigned size)
{
    if (size == 8 && window_serves(t, in)) {
        emit_pc(t, R10, in->pc + in->length);
        e_mem(&t->hot, 0x89, true, R10, RSP, R9, 0, -8);
        e_lea(&t->hot, true, RSP, RSP, NO_REG, 0, -8);
        return;
    }
    struct tail tail;
    begin_access(t, in, 0, &tail);
    uint64_t pc = t->gva + in->pc + in->length;
    if (size == 8 && (t->mode & MODE_FIXED_PC) && (int64_t)pc == (int32_t)pc) {
        e_mem(&tail.e, 0xc7, true, 0, t->A, NO_REG, 0, 0);
        e32(&tail.e, (uint32_t)pc);
    } else {
        struct emit hot = t->hot;
        t->hot = tail.e;
        emit_pc(t, t->B, in->pc + in->length);
        tail.e = t->hot;
        t->hot = hot;
        if (size == 2)
            e8(&tail.e, 0x66);
        e_mem(&tail.e, 0x89, size == 8, t->B, t->A, NO_REG, 0, 0);
    }
    end_push(t, in, size, &tail);
}

/* A register or memory operand, zero-extended, into scratch register `reg`. */
void load_operand_into(struct translator *t, const struct insn *in, const ZydisDecodedOperand *op, unsigned reg,
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
    struct tail tail;
    begin_access(t, in, 0, &tail);
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

static bool is_sreg(const ZydisDecodedOperand *op)
{
    return op->type == ZYDIS_OPERAND_TYPE_REGISTER && ZydisRegisterGetClass(op->reg.value) == ZYDIS_REGCLASS_SEGMENT;
}

/* push and pop with an open window: the guest's own store or load, then rsp */
static void window_push(struct translator *t, const struct insn *in)
{
    const ZydisDecodedOperand *op = &in->op[0];
    if (op->type == ZYDIS_OPERAND_TYPE_IMMEDIATE) {
        e_mem(&t->hot, 0xc7, true, 0, RSP, R9, 0, -8);
        e32(&t->hot, (uint32_t)in->imm[0]);
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

void sp_push(struct translator *t, const struct insn *in)
{
    const ZydisDecodedOperand *op = &in->op[0];
    unsigned size = in->d->operand_width / 8;
    if (t->mode & MODE_SEGMENTED) {
        segmented_push(t, in);
        return;
    }
    if (window_serves(t, in)) {
        window_push(t, in);
        return;
    }
    if (op->type == ZYDIS_OPERAND_TYPE_IMMEDIATE) {
        int64_t value = in->imm[0];
        struct tail tail;
        begin_access(t, in, 0, &tail);
        if (size == 2)
            e8(&tail.e, 0x66);
        e_mem(&tail.e, 0xc7, size == 8, 0, t->A, NO_REG, 0, 0);
        if (size == 2)
            e16(&tail.e, (unsigned)value);
        else
            e32(&tail.e, (uint32_t)value);
        end_push(t, in, size, &tail);
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
        emit_push(t, in, op_gpr(op), size);
        return;
    }
    if (slot == SCRATCH_SLOT) /* the check needs every scratch register */
        e_store(&t->hot, R9, slot);
    struct tail tail;
    begin_access(t, in, 0, &tail);
    e_load(&tail.e, t->B, slot);
    /* Intel: 32-bit code stores only the 16 bits of a selector (SDM vol. 2, PUSH) */
    unsigned stored = is_sreg(op) && size == 4 && !t->amd ? 2 : size;
    if (stored == 2)
        e8(&tail.e, 0x66);
    e_mem(&tail.e, 0x89, size == 8, t->B, t->A, NO_REG, 0, 0);
    end_push_part(t, in, size, stored, &tail);
}

/* rsp moves, and then its lower half is overwritten. */
static void pop_sp(struct translator *t, const struct insn *in)
{
    struct tail after;
    choose_scratch(t, 0); /* A = r11 */
    tail_begin(&after);
    e_lea(&after.e, code64(t), RSP, RSP, NO_REG, 0, 2);
    e8(&after.e, 0x66);
    e_mov(&after.e, false, RSP, R11);
    emit_stack_load(t, in, R11, 2, 0, &after);
}

void sp_pop(struct translator *t, const struct insn *in)
{
    const ZydisDecodedOperand *op = &in->op[0];
    unsigned size = in->d->operand_width / 8;
    if (window_serves(t, in)) {
        window_pop(t, in);
        return;
    }
    if (is_sreg(op)) {
        struct site *s = emit_helper(t, in, helper_load_segment, true);
        s->arg = (uint32_t)(op->reg.value - ZYDIS_REGISTER_ES) | (uint32_t)NO_REG << 8 | size << 16 | 1u << 31;
        return;
    }
    if (t->mode & MODE_SEGMENTED) {
        segmented_pop(t, in);
        return;
    }
    if (op->type == ZYDIS_OPERAND_TYPE_REGISTER && op_gpr(op) == RSP && size == 2) {
        pop_sp(t, in);
        return;
    }
    struct tail after;
    tail_begin(&after);
    if (op->type == ZYDIS_OPERAND_TYPE_REGISTER) {
        unsigned reg = op_gpr(op);
        choose_scratch(t, 1u << reg);
        if (reg != RSP) { /* else the popped value wins over the increment */
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
    struct tail tail;
    begin_access(t, in, 0, &tail);
    e_load(&tail.e, t->B, SCRATCH_SLOT);
    if (size == 2)
        e8(&tail.e, 0x66);
    e_mem(&tail.e, 0x89, size == 8, t->B, t->A, NO_REG, 0, 0);
    e_lea(&tail.e, code64(t), RSP, RSP, NO_REG, 0, (int)size);
    emit_access(t, in, &ea, SITE_WRITE, size, &tail);
}

/* The arithmetic flags go into RFLAGS by way of memory, and from there back behind the store. */
void sp_pushf(struct translator *t, const struct insn *in)
{
    struct emit *e = &t->hot;
    if (!code64(t) || in->d->operand_width != 64) {
        sp_helper(t, in);
        return;
    }
    flags_to_memory(t, R10);
    e_load32(e, R11, VOFF(slow_flags)); /* AH: the low byte, AL: OF */
    e_mov(e, false, R10, R11);
    e_alu_imm(e, false, 4, R10, 1);
    e_shift(e, false, 4, R10, 11);
    e_shift(e, false, 5, R11, 8);
    e_alu_imm(e, false, 4, R11, FL_ARITH & 0xff);
    e_alu(e, false, 0x09, R11, R10);
    e_load32(e, R10, CPUOFF(rflags));
    e_alu_imm(e, false, 4, R10, ~(uint32_t)(FL_ARITH | FL_RF | FL_VM));
    e_alu(e, false, 0x09, R11, R10);
    e_store(e, R11, SCRATCH_SLOT);
    t->A = R11, t->B = R10, t->C = NO_REG;
    struct tail tail;
    tail_begin(&tail);
    e_load(&tail.e, t->B, SCRATCH_SLOT);
    e_mem(&tail.e, 0x89, true, t->B, t->A, NO_REG, 0, 0);
    end_push(t, in, 8, &tail);
}

void sp_leave(struct translator *t, const struct insn *in)
{
    unsigned size = in->d->operand_width / 8;
    struct tail tail;
    if (t->mode & MODE_SEGMENTED) {
        segmented_leave(t, in);
        return;
    }
    begin_access(t, in, 0, &tail);
    if (size == 2)
        e8(&tail.e, 0x66);
    e_mem(&tail.e, 0x8b, size == 8, t->B, t->A, NO_REG, 0, 0); /* the load may fault: nothing has changed yet */
    e_lea(&tail.e, code64(t), RSP, RBP, NO_REG, 0, (int)size);
    if (size == 2)
        e8(&tail.e, 0x66);
    e_mov(&tail.e, size == 8, RBP, t->B);
    struct ea ea = stack_ea(t, RBP, 0);
    emit_access(t, in, &ea, SITE_READ, size, &tail);
}

void sp_enter(struct translator *t, const struct insn *in)
{
    struct site *s = emit_helper(t, in, helper_enter, false);
    s->arg2 = in->d->operand_width / 8;
    s->imm = (uint64_t)in->imm[0];
    s->element = (uint8_t)in->imm[1];
}
