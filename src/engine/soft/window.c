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

static unsigned gpr64(const ZydisDecodedOperand *op)
{
    if (op->type != ZYDIS_OPERAND_TYPE_REGISTER || ZydisRegisterGetClass(op->reg.value) != ZYDIS_REGCLASS_GPR64)
        return NO_REG;
    return (unsigned)(op->reg.value - ZYDIS_REGISTER_RAX);
}

static bool near_call(const struct shape *s)
{
    return s->mnemonic == ZYDIS_MNEMONIC_CALL && shape_what(s)->op[0].type == ZYDIS_OPERAND_TYPE_IMMEDIATE;
}

static bool near_ret(const struct shape *s)
{
    return s->mnemonic == ZYDIS_MNEMONIC_RET && shape_what(s)->d.meta.branch_type != ZYDIS_BRANCH_TYPE_FAR;
}

static bool is_safe(const struct shape *s)
{
    if (s->gprs >> R9 & 1)
        return false;
    if (s->passable) /* the last of a block, or passed */
        return true;
    switch (s->mnemonic) {
    case ZYDIS_MNEMONIC_PUSH:
    case ZYDIS_MNEMONIC_POP:
        return shape_what(s)->op[0].type == ZYDIS_OPERAND_TYPE_IMMEDIATE || gpr64(&shape_what(s)->op[0]) != NO_REG;
    case ZYDIS_MNEMONIC_CALL:
        return near_call(s);
    case ZYDIS_MNEMONIC_RET:
        return near_ret(s);
    case ZYDIS_MNEMONIC_LEA:
    case ZYDIS_MNEMONIC_NOP:
    case ZYDIS_MNEMONIC_ENDBR64:
    case ZYDIS_MNEMONIC_INC:
    case ZYDIS_MNEMONIC_DEC:
        break;
    case ZYDIS_MNEMONIC_MOV:
        if (!is_plain_mov(s))
            return false;
        break;
    default:
        if (s->special)
            return false;
    }
    return !(s->memory >= 0 && (s->gprs >> R10 & 1) && (s->gprs >> R11 & 1));
}

/* Of an instruction with a written-out operand: can a window serve it? */
static bool is_servable(const struct shape *s)
{
    if (s->memory < 0)
        return false;
    const ZydisDecodedOperand *op = &shape_what(s)->op[s->memory];
    if (op->size == 0 || op->size > 512 || op->mem.index != ZYDIS_REGISTER_NONE ||
        shape_what(s)->d.address_width != 64 || op->mem.segment == ZYDIS_REGISTER_FS ||
        op->mem.segment == ZYDIS_REGISTER_GS || !shape_what(s)->d.raw.modrm.offset || s->high8 ||
        (shape_what(s)->d.avx.mask.reg != ZYDIS_REGISTER_NONE && shape_what(s)->d.avx.mask.reg != ZYDIS_REGISTER_K0))
        return false;
    if (ZydisRegisterGetClass(op->mem.base) != ZYDIS_REGCLASS_GPR64)
        return false;
    switch (s->mnemonic) {
    case ZYDIS_MNEMONIC_VMASKMOVPS:
    case ZYDIS_MNEMONIC_VMASKMOVPD:
    case ZYDIS_MNEMONIC_VPMASKMOVD:
    case ZYDIS_MNEMONIC_VPMASKMOVQ:
    case ZYDIS_MNEMONIC_LEA:
    case ZYDIS_MNEMONIC_NOP:
        return false;
    default:
        return !is_stolen(gpr_of(op->mem.base));
    }
}

static void push_facts(struct shape *s, bool push)
{
    bool pops_rsp = s->mnemonic == ZYDIS_MNEMONIC_POP && gpr64(&shape_what(s)->op[0]) == RSP;
    s->served = shape_what(s)->d.operand_width == 64 && !pops_rsp;
    if (!near_ret(s) && !pops_rsp)
        s->moves_rsp = (int8_t)((push ? -1 : 1) * shape_what(s)->d.operand_width / 8);
}

void window_facts(struct shape *s)
{
    bool push = s->mnemonic == ZYDIS_MNEMONIC_PUSH || near_call(s);
    bool add = s->mnemonic == ZYDIS_MNEMONIC_ADD, sub = s->mnemonic == ZYDIS_MNEMONIC_SUB;
    s->safe = is_safe(s);
    if (push || s->mnemonic == ZYDIS_MNEMONIC_POP || near_ret(s))
        push_facts(s, push);
    else
        s->served = is_servable(s);
    if ((add || sub) && gpr64(&shape_what(s)->op[0]) != NO_REG &&
        shape_what(s)->op[1].type == ZYDIS_OPERAND_TYPE_IMMEDIATE)
        s->adds = add ? 1 : -1;
}

/* The reference that a window serves: of push, pop, call and ret the stack's, else the operand's. */
struct reference {
    unsigned base, size;
    int64_t disp;
    bool write;
};

static struct reference reference_of(const struct insn *in)
{
    const struct shape *s = in->shape;
    bool stack = s->moves_rsp || s->mnemonic == ZYDIS_MNEMONIC_RET;
    if (stack)
        return (struct reference){RSP, 8, s->moves_rsp < 0 ? -8 : 0, s->moves_rsp < 0};
    return (struct reference){s->place.base, s->size, s->place.displaced ? in->disp : 0, s->access & SITE_WRITE};
}

/* What an instruction does to a base register: unchanged, moved by a constant, or lost. */
enum effect { KEPT, MOVED, LOST };

static enum effect effect_on(const struct insn *in, unsigned base, int64_t *by)
{
    const struct shape *s = in->shape;
    if (base == RSP && s->moves_rsp)
        return *by = s->moves_rsp, MOVED;
    if (!(s->written >> base & 1))
        return KEPT;
    if (!s->adds)
        return LOST;
    *by = s->adds * in->imm[0];
    return MOVED;
}

struct window_plan {
    int64_t low, high;
    bool write;
    unsigned count, end; /* references served; first instruction beyond them */
};

static void plan(struct translator *t, unsigned first, unsigned base, struct window_plan *w)
{
    int64_t offset = 0;
    bool passed = false; /* a branch: what is behind it may not be executed */
    *w = (struct window_plan){.low = INT64_MAX, .high = INT64_MIN};
    for (unsigned i = first; i < t->n_insns; i++) {
        const struct insn *in = &t->insns[i];
        const struct shape *s = in->shape;
        int64_t by = 0;
        if (!s->safe)
            return;
        struct reference r = reference_of(in);
        passed |= s->passable;
        if (s->served && r.base == base) {
            if (passed && r.write && !w->write)
                return; /* read-only pages are read, and written only after a look at them */
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
static void emit_window_refill(struct translator *t, const struct site *s, unsigned size,
                               const struct slot_offsets *slot, uint32_t tlb, uint32_t checked)
{
    struct emit *c = &t->cold;
    e_gs(c, 0x03, true, R11, slot->tag);
    emit_budget(t, s);
    e_rorx(c, R10, R11, 8);
    e_alu_imm(c, false, 4, R10, TLB_MASK);
    e_gs_base(c, 0x2b, true, R11, R10, tlb);
    e_alu_imm(c, true, 7, R11, 4096 - size);
    uint32_t miss = e_jcc(c, 7, 0);
    e_gs_base(c, 0x8b, true, R11, R10, tlb);
    e_store(c, R11, slot->tag);
    e_gs_base(c, 0x8b, true, R9, R10, tlb + 8);
    e_store(c, R9, slot->host);
    e_gs_base(c, 0x2b, true, R9, R10, tlb);
    e_store(c, R9, slot->distance);
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
    const struct slot_offsets slot = slot_offsets(t, w->write, index);
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
        e_gs(e, 0x2b, true, R11, slot.tag);
        e_alu_imm(e, true, 7, R11, 4096 - size);
        slow = e_jcc(e, 7, 0);
        e_load(e, R9, slot.distance);
    }
    uint32_t checked = e_offset(e);
    e_patch(e, slow, e_offset(c));
    if (!indexed)
        emit_window_refill(t, s, size, &slot, tlb, checked);
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
        const struct shape *s = t->insns[i].shape;
        struct window_plan w;
        if (!s->safe || s->passable || (i > first && !t->insns[i].live_before))
            return;
        if (!s->served)
            continue;
        if (i == first) /* its own check comes before it, and is free */
            return;
        unsigned base = reference_of(&t->insns[i]).base;
        plan(t, first, base, &w);
        if (w.count && w.end > i)
            open_window(t, in, base, &w);
        return;
    }
}

/* Is instruction `in` served by the open window?  Opens one here when that pays. */
bool window_serves(struct translator *t, const struct insn *in)
{
    const struct shape *s = in->shape;
    unsigned i = (unsigned)(in - t->insns);
    if (!windows_allowed(t) || !s->served)
        return false;
    unsigned base = reference_of(in).base;
    if (t->window_open)
        return base == t->window_base;
    struct window_plan w;
    plan(t, i, base, &w);
    if (w.count < 2)
        return false;
    open_window(t, in, base, &w);
    return true;
}
