/*
 * Windows: one TLB check for several accesses off the same base register.
 *
 * Most accesses of compiled code come in clusters: push, push, [rsp+8], [rsp+16], call.  At the first
 * of a cluster the translator looks ahead for those off the same base whose displacements are known
 * relative to each other, checks the whole range at once, and keeps host - guest in r9.  Each of
 * them is then the guest's own instruction with r9 as its index:
 *
 *     mov rax, [rsp + 8]   ->   mov rax, [rsp + r9 + 8]
 *
 * The check asks for no more than all of them together will do, and never faults: when the range
 * leaves its page, or is not plain RAM, or not yet dirty though written, the block is left for one
 * translated without windows (MODE_UNGROUPED), which meets the fault, if any, at the right
 * instruction.  A block that is refused often (its stack frame straddles a page, say) is translated
 * again without windows, for good.
 */
#include "engine/soft/translate_int.h"

#define WINDOW_SPAN 1024 /* bytes between the lowest and the highest access: a longer one crosses pages more often */

struct reference {
    unsigned base, size;
    int64_t disp;
    bool write;
};

static unsigned gpr64(const ZydisDecodedOperand *op)
{
    if (op->type != ZYDIS_OPERAND_TYPE_REGISTER || ZydisRegisterGetClass(op->reg.value) != ZYDIS_REGCLASS_GPR64)
        return NO_REG;
    return (unsigned)(op->reg.value - ZYDIS_REGISTER_RAX);
}

static bool is_push(const struct insn *in)
{
    return in->d.mnemonic == ZYDIS_MNEMONIC_PUSH;
}
static bool is_pop(const struct insn *in)
{
    return in->d.mnemonic == ZYDIS_MNEMONIC_POP;
}

static bool near_call(const struct insn *in)
{
    return in->d.mnemonic == ZYDIS_MNEMONIC_CALL && in->op[0].type == ZYDIS_OPERAND_TYPE_IMMEDIATE;
}

static bool near_ret(const struct insn *in)
{
    return in->d.mnemonic == ZYDIS_MNEMONIC_RET && in->d.meta.branch_type != ZYDIS_BRANCH_TYPE_FAR;
}

static const ZydisDecodedOperand *memory_operand(const struct insn *in)
{
    for (unsigned i = 0; i < in->d.operand_count; i++)
        if (in->op[i].type == ZYDIS_OPERAND_TYPE_MEMORY && in->op[i].mem.type != ZYDIS_MEMOP_TYPE_AGEN)
            return &in->op[i];
    return NULL;
}

/* Instructions that leave r9 alone while a window is open, and can do with r10 and r11. */
static bool safe(const struct insn *in)
{
    uint32_t mask = gpr_mask_of(in);
    if (mask >> R9 & 1)
        return false;
    switch (in->d.mnemonic) {
    case ZYDIS_MNEMONIC_PUSH:
    case ZYDIS_MNEMONIC_POP:
        return in->op[0].type == ZYDIS_OPERAND_TYPE_IMMEDIATE || gpr64(&in->op[0]) != NO_REG;
    case ZYDIS_MNEMONIC_CALL:
        return near_call(in);
    case ZYDIS_MNEMONIC_RET:
        return near_ret(in);
    case ZYDIS_MNEMONIC_LEA:
    case ZYDIS_MNEMONIC_NOP:
    case ZYDIS_MNEMONIC_ENDBR64:
    case ZYDIS_MNEMONIC_INC:
    case ZYDIS_MNEMONIC_DEC:
        break;
    case ZYDIS_MNEMONIC_MOV:
        if (!is_plain_mov(in))
            return false;
        break;
    default:
        if (special_for(in))
            return false;
    }
    return !(memory_operand(in) && (mask >> R10 & 1) && (mask >> R11 & 1));
}

/* The reference that an instruction makes, if it can be served by a window. */
static bool reference_of(const struct insn *in, struct reference *r)
{
    bool push = is_push(in) || near_call(in), pop = is_pop(in) || near_ret(in);
    if (push || pop) {
        if (in->d.operand_width != 64)
            return false;
        *r = (struct reference){.base = RSP, .size = 8, .disp = push ? -8 : 0, .write = push};
        return !(is_pop(in) && gpr64(&in->op[0]) == RSP);
    }
    const ZydisDecodedOperand *op = memory_operand(in);
    if (!op || op->size == 0 || op->size > 512 || op->mem.index != ZYDIS_REGISTER_NONE || in->d.address_width != 64 ||
        op->mem.segment == ZYDIS_REGISTER_FS || op->mem.segment == ZYDIS_REGISTER_GS || !in->d.raw.modrm.offset ||
        has_high8(in) || (in->d.avx.mask.reg != ZYDIS_REGISTER_NONE && in->d.avx.mask.reg != ZYDIS_REGISTER_K0))
        return false;
    if (ZydisRegisterGetClass(op->mem.base) != ZYDIS_REGCLASS_GPR64)
        return false;
    switch (in->d.mnemonic) {
    case ZYDIS_MNEMONIC_VMASKMOVPS:
    case ZYDIS_MNEMONIC_VMASKMOVPD:
    case ZYDIS_MNEMONIC_VPMASKMOVD:
    case ZYDIS_MNEMONIC_VPMASKMOVQ:
    case ZYDIS_MNEMONIC_LEA:
    case ZYDIS_MNEMONIC_NOP:
        return false;
    default:
        break;
    }
    *r = (struct reference){.base = (unsigned)(op->mem.base - ZYDIS_REGISTER_RAX),
                            .size = op->size / 8u,
                            .disp = op->mem.disp.has_displacement ? op->mem.disp.value : 0,
                            .write = op->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE};
    return !is_stolen(r->base);
}

/* What an instruction does to a base register: unchanged, moved by a constant, or lost. */
enum effect { KEPT, MOVED, LOST };

static enum effect effect_on(const struct insn *in, unsigned base, int64_t *by)
{
    if (base == RSP) {
        if (is_push(in) || near_call(in))
            return *by = -8, MOVED;
        if (is_pop(in) && gpr64(&in->op[0]) != RSP)
            return *by = 8, MOVED;
    }
    bool written = false;
    for (unsigned i = 0; i < in->d.operand_count; i++)
        if (in->op[i].type == ZYDIS_OPERAND_TYPE_REGISTER && (in->op[i].actions & ZYDIS_OPERAND_ACTION_MASK_WRITE) &&
            (gpr_of(in->op[i].reg.value) == base))
            written = true;
    if (!written)
        return KEPT;
    bool add = in->d.mnemonic == ZYDIS_MNEMONIC_ADD, sub = in->d.mnemonic == ZYDIS_MNEMONIC_SUB;
    if ((add || sub) && gpr64(&in->op[0]) == base && in->op[1].type == ZYDIS_OPERAND_TYPE_IMMEDIATE) {
        *by = add ? in->op[1].imm.value.s : -in->op[1].imm.value.s;
        return MOVED;
    }
    return LOST;
}

struct window_plan {
    int64_t low, high;
    bool write;
    unsigned count, end; /* references served; first instruction beyond them */
};

static void plan(struct translator *t, unsigned first, unsigned base, struct window_plan *w)
{
    int64_t offset = 0;
    *w = (struct window_plan){.low = INT64_MAX, .high = INT64_MIN};
    for (unsigned i = first; i < t->n_insns; i++) {
        const struct insn *in = &t->insns[i];
        struct reference r;
        int64_t by = 0;
        if (!safe(in))
            return;
        if (reference_of(in, &r) && r.base == base) {
            int64_t low = offset + r.disp, high = low + r.size;
            low = low < w->low ? low : w->low;
            high = high > w->high ? high : w->high;
            if (high - low > WINDOW_SPAN || low != (int32_t)low)
                return;
            w->low = low;
            w->high = high;
            w->write |= r.write;
            w->count++;
            w->end = i + 1;
        }
        switch (effect_on(in, base, &by)) {
        case KEPT:
            break;
        case MOVED:
            offset += by;
            break;
        case LOST:
            return;
        }
    }
}

/* The slot missed: ask the TLB. */
static void emit_window_refill(struct translator *t, const struct site *s, unsigned size, uint32_t slot, uint32_t tlb,
                               uint32_t checked)
{
    struct emit *c = &t->cold;
    e_gs(c, 0x03, true, R11, slot);
    emit_budget(t, s);
    e_rorx(c, R10, R11, 8);
    e_alu_imm(c, false, 4, R10, TLB_MASK);
    e_gs_base(c, 0x2b, true, R11, R10, tlb);
    e_alu_imm(c, true, 7, R11, 4096 - size);
    uint32_t miss = e_jcc(c, 7, 0);
    e_gs_base(c, 0x8b, true, R11, R10, tlb);
    e_store(c, R11, slot);
    e_gs_base(c, 0x8b, true, R9, R10, tlb + 8);
    e_store(c, R9, slot + 8);
    e_gs_base(c, 0x2b, true, R9, R10, tlb);
    e_jmp(c, checked);
    e_patch(c, miss, e_offset(c));
}

static void emit_window_check(struct translator *t, const struct insn *in, unsigned base, const struct window_plan *w)
{
    struct emit *e = &t->hot, *c = &t->cold;
    uint32_t index, tlb = tlb_offset(t, w->write);
    struct site *s = new_site(t, in, &index);
    unsigned size = (unsigned)(w->high - w->low);
    t->A = R11, t->B = R10, t->C = NO_REG;
    flags_spare(t, in, R10);
    s->access = (uint8_t)((w->write ? SITE_WRITE : SITE_READ) | (flags_in_memory(t, in) ? SITE_FLAGS : 0));
    s->size = (uint16_t)size;
    s->resume = e_offset(e);
    uint32_t slot = slot_offset(t, w->write, index);
    e_lea(e, true, R11, base, NO_REG, 0, (int32_t)w->low);
    bool indexed = !t->b->hot || soft_is_indexed(t->engine, t->b->gpa + in->pc);
    uint32_t slow;
    if (indexed) {
        e_rorx(e, R10, R11, 8);
        e_alu_imm(e, false, 4, R10, TLB_MASK);
        e_gs_base(e, 0x2b, true, R11, R10, tlb);
        e_alu_imm(e, true, 7, R11, 4096 - size);
        slow = e_jcc(e, 7, 0);
        e_gs_base(e, 0x8b, true, R9, R10, tlb + 8);
        e_gs_base(e, 0x2b, true, R9, R10, tlb);
    } else {
        e_gs(e, 0x2b, true, R11, slot);
        e_alu_imm(e, true, 7, R11, 4096 - size);
        slow = e_jcc(e, 7, 0);
        e_gs(e, 0x8b, true, R9, slot + 8);
        e_gs(e, 0x2b, true, R9, slot); /* host page - guest page */
    }
    uint32_t checked = e_offset(e);
    e_patch(e, slow, e_offset(c));
    if (!indexed)
        emit_window_refill(t, s, size, slot, tlb, checked);
    e_gs_base(c, 0x03, true, R11, R10, tlb);
    emit_way_out(t->engine, c, R10, index, OUT_WINDOW);
}

static bool windows_allowed(const struct translator *t)
{
    return !t->no_windows && !(t->mode & (MODE_ALIGN | MODE_TF | MODE_BREAK | MODE_FPU_TRAP)) && (t->mode & MODE_64);
}

static void open_window(struct translator *t, const struct insn *in, unsigned base, const struct window_plan *w)
{
    emit_window_check(t, in, base, w);
    t->window_open = true;
    t->window_base = base;
    t->window_end = w->end;
}

void window_hoist(struct translator *t, const struct insn *in)
{
    unsigned first = (unsigned)(in - t->insns);
    if (t->window_open || in->live_before || !in->live_after || !windows_allowed(t))
        return;
    for (unsigned i = first; i < t->n_insns; i++) {
        struct reference r;
        struct window_plan w;
        if (!safe(&t->insns[i]) || (i > first && !t->insns[i].live_before))
            return;
        if (!reference_of(&t->insns[i], &r))
            continue;
        if (i == first) /* its own check comes before it, and is free */
            return;
        plan(t, first, r.base, &w);
        if (w.count && w.end > i)
            open_window(t, in, r.base, &w);
        return;
    }
}

/* Is instruction `in` served by the open window?  Opens one here when that pays. */
bool window_serves(struct translator *t, const struct insn *in)
{
    struct reference r;
    unsigned i = (unsigned)(in - t->insns);
    if (!windows_allowed(t) || !reference_of(in, &r))
        return false;
    if (t->window_open)
        return r.base == t->window_base;
    struct window_plan w;
    plan(t, i, r.base, &w);
    if (w.count < 2)
        return false;
    open_window(t, in, r.base, &w);
    return true;
}
