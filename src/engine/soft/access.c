/*
 * Translating an instruction with a memory operand.
 *
 *     lea   A, [the guest's address]
 *     rorx  B, A, 8
 *     and   B, TLB_MASK
 *     sub   A, gs:[B + tlb.tag]        ; offset in the page, or something huge
 *     cmp   A, 4096 - size             ; one compare for a miss and for a page crossing
 *     ja    slow
 *     add   A, gs:[B + tlb.host]
 *     insn  [A]                        ; the guest's own instruction
 *
 * In a block that runs often, the place has a slot of its own (modulo their number) instead, for an
 * instruction tends to stay in one page for a while:
 *
 *     lea A, [...] ; sub A, gs:[slot.tag] ; cmp A, 4096 - size ; ja refill ; add A, gs:[slot.host]
 *
 * No index is computed from the address, which would be on the way of every load.  Nor need the load wait for the
 * check, where the operand is a base and a displacement: the slot has the distance of host and guest, too, and
 *
 *     ... ; ja refill ; mov B, gs:[slot.distance] ; insn [base + B + disp]
 *
 * A miss asks the TLB (emit_refill), still without leaving translated code; a place that misses thousands of
 * times in a tick goes back to the TLB for good (soft_demote).
 *
 * The compare destroys the flags; where the guest needs them later they wait in memory (flags.c).  The slow path
 * (mmu.c) either comes back to the instruction with a real address in A, or runs a second copy of it
 * on a bounce buffer and commits that.
 */
#include "engine/soft/helpers.h"

void tail_begin(struct tail *t)
{
    t->e.p = t->e.start = t->bytes;
}

void choose_scratch(struct translator *t, uint32_t used)
{
    static const uint8_t pool[3] = {R11, R10, R9};
    if (t->window_open) { /* r9 is the window's */
        t->A = used >> R11 & 1 ? R10 : R11;
        t->B = R11 + R10 - t->A;
        t->C = NO_REG;
        return;
    }
    unsigned a = 0;
    while (a < 2 && used >> pool[a] & 1)
        a++;
    t->A = pool[a];
    t->B = pool[(a + 1) % 3];
    t->C = pool[(a + 2) % 3];
}

void begin_access(struct translator *t, const struct insn *in, uint32_t used, struct tail *tail)
{
    choose_scratch(t, used);
    flags_spare(t, in, t->B);
    tail_begin(tail);
    if (flags_in_memory(t, in) && flags_needed(in))
        e_restore_flags(&tail->e, VOFF(slow_flags), t->B);
}

static unsigned sreg_of(ZydisRegister r)
{
    switch (r) {
    case ZYDIS_REGISTER_ES:
        return ES;
    case ZYDIS_REGISTER_CS:
        return CS;
    case ZYDIS_REGISTER_SS:
        return SS;
    case ZYDIS_REGISTER_FS:
        return FS;
    case ZYDIS_REGISTER_GS:
        return GS;
    default:
        return DS;
    }
}

/* Flat 32-bit code: nothing can be reached through an empty segment, nor written through a code segment.  ARPL writes
 * only sometimes, and FXSAVE looks at other things first: their helpers see to it. */
static bool forbidden_segment(const struct translator *t, const struct insn *in, unsigned segment,
                              const ZydisDecodedOperand *op)
{
    bool write = (op->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE) && in->shape->mnemonic != ZYDIS_MNEMONIC_ARPL &&
                 in->shape->mnemonic != ZYDIS_MNEMONIC_FXSAVE;
    return (segment == FS && (t->mode & MODE_NULL_FS)) || (segment == GS && (t->mode & MODE_NULL_GS)) ||
           (segment == CS && write);
}

/* Faults, unless a mask leaves nothing to access. */
static void emit_no_segment(struct translator *t, const struct insn *in, const ZydisDecodedOperand *op)
{
    struct site *s = emit_helper(t, in, helper_no_segment, false);
    s->x87 = in->shape->x87;
    s->clears_top = in->shape->clears_top;
    s->size = (uint16_t)(op->size / 8);
    if (in->d->encoding != ZYDIS_INSTRUCTION_ENCODING_LEGACY)
        masked_access(t, s, in, op);
}

void operand_place(const ZydisDecodedOperand *op, struct place *p)
{
    const struct ZydisDecodedOperandMem_ *m = &op->mem;
    bool pc_relative = m->base == ZYDIS_REGISTER_RIP || m->base == ZYDIS_REGISTER_EIP;
    *p = (struct place){.base = (uint8_t)gpr_of(m->base),
                        .index = (uint8_t)gpr_of(m->index),
                        .scale = (uint8_t)__builtin_ctz(m->scale ? m->scale : 1),
                        .segment = (uint8_t)sreg_of(m->segment),
                        .pc_relative = pc_relative,
                        .displaced = m->disp.has_displacement};
}

void insn_ea(struct translator *t, const struct insn *in, const ZydisDecodedOperand *op, struct ea *out)
{
    struct place p = in->shape->place;
    if (op != in->op + in->shape->memory)
        operand_place(op, &p);
    *out = (struct ea){.base = p.base,
                       .index = p.index,
                       .scale = p.index == NO_REG ? 0 : p.scale,
                       .disp = p.displaced ? in->disp : 0,
                       .pc_relative = p.pc_relative,
                       .segment = p.segment,
                       .stack = p.segment == SS};
    if (!(t->mode & (MODE_64 | MODE_SEGMENTED)) && in->shape->mnemonic != ZYDIS_MNEMONIC_LEA &&
        forbidden_segment(t, in, p.segment, op))
        emit_no_segment(t, in, op);
    unsigned width = in->shape->address_width;
    out->addr32 = width == 32;
    out->addr16 = width == 16;
    if (p.pc_relative)
        out->disp += in->pc + in->length;
}

/* The gva of block start + offset into a register. */
void emit_pc(struct translator *t, unsigned reg, int64_t offset)
{
    if (t->mode & MODE_FIXED_PC) {
        uint64_t pc = t->gva + (uint64_t)offset;
        e_mov_imm(&t->hot, reg, t->mode & MODE_64 ? pc : (uint32_t)pc);
        return;
    }
    e_load(&t->hot, reg, VOFF(code_base));
    e_lea(&t->hot, (t->mode & MODE_64) != 0, reg, reg, NO_REG, 0, (int32_t)(t->page_offset + offset));
}

void emit_load_selector(struct translator *t, unsigned reg, ZydisRegister sreg)
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

uint32_t seg_base_offset(unsigned sreg)
{
    return (uint32_t)(offsetof(struct cpu, seg) + sreg * sizeof(struct segment) + offsetof(struct segment, base));
}

/* Computes a guest address: never touches flags, nor any register but `to` and `temp`. */
void emit_ea(struct translator *t, const struct ea *ea, unsigned to, unsigned temp)
{
    struct emit *e = &t->hot;
    bool wide = !ea->addr32;
    if (ea->pc_relative) {
        emit_pc(t, to, ea->disp);
        if (ea->addr32)
            e_mov(e, false, to, to);
    } else if ((int32_t)ea->disp != ea->disp) { /* moffs */
        e_mov_imm(e, to, (uint64_t)ea->disp);
        if (ea->addr32)
            e_mov(e, false, to, to);
    } else {
        unsigned base = ea->base, index = ea->index;
        if (base == EA_SLOT) {
            e_load(e, to, SCRATCH_SLOT);
            base = to;
        } else if (base != NO_REG && is_stolen(base)) {
            e_load(e, to, GPR_OFFSET(base));
            base = to;
        }
        if (index != NO_REG && is_stolen(index)) {
            e_load(e, temp, GPR_OFFSET(index));
            index = temp;
        }
        if (!(base == to && index == NO_REG && ea->disp == 0 && wide)) {
            if (base != NO_REG && index == NO_REG && ea->disp == 0)
                e_mov(e, wide, to, base);
            else
                e_lea(e, wide, to, base, index, ea->scale, (int32_t)ea->disp);
        }
    }
    if (ea->addr16)
        e_movzx16(e, to, to);
    bool has_base = ea->segment == FS || ea->segment == GS || ((t->mode & MODE_SEGMENTED) && !(t->mode & MODE_64));
    if (!has_base)
        return;
    e_load(e, temp, seg_base_offset(ea->segment));
    e_lea(e, (t->mode & MODE_64) != 0, to, to, temp, 0, 0);
}

struct site *new_site(struct translator *t, const struct insn *in, uint32_t *index)
{
    struct engine *e = t->engine;
    *index = e->n_sites++;
    struct site *s = &e->sites[*index];
    *s = (struct site){.block = soft_block_number(e, t->b),
                       .pc = in->pc,
                       .len = in->length,
                       .mnemonic = (uint16_t)in->shape->mnemonic};
    return s;
}

uint32_t tlb_offset(const struct translator *t, bool write)
{
    return (uint32_t)(offsetof(struct soft_vcpu, tlb) +
                      ((t->mode & MODE_MMU) * 2 + write) * TLB_SIZE * sizeof(struct tlb_entry));
}

static uint32_t slot_number(const struct translator *t, bool write, uint32_t site)
{
    return ((t->mode & MODE_MMU) * 2 + write) * SLOT_COUNT + site % SLOT_COUNT;
}

struct slot_offsets slot_offsets(const struct translator *t, bool write, uint32_t site)
{
    const uint32_t n = slot_number(t, write, site);
    const uint32_t entry = (uint32_t)(offsetof(struct soft_vcpu, slot) + n * sizeof(struct tlb_entry));
    return (struct slot_offsets){
        .tag = entry + (uint32_t)offsetof(struct tlb_entry, tag),
        .host = entry + (uint32_t)offsetof(struct tlb_entry, host),
        .distance = (uint32_t)(offsetof(struct soft_vcpu, slot_distance) + n * sizeof(uint64_t)),
    };
}

/* A place that misses its slot all the time is translated again without (soft_demote). */
void emit_budget(struct translator *t, const struct site *s)
{
    struct emit *c = &t->cold;
    uint32_t index = (uint32_t)(s - t->engine->sites);
    e_gs(c, 0x83, false, 5, (uint32_t)offsetof(struct soft_vcpu, budget[index % SLOT_COUNT])); /* sub dword, 1 */
    e8(c, 1);
    uint32_t enough = e_jcc(c, 9 /* not negative */, 0);
    e_store_imm32(c, VOFF(site), index);
    e_gs_jump(c, VOFF(glue_demote));
    e_patch(c, enough, e_offset(c));
}

/* The slot missed: ask the TLB, and when that knows, remember its answer in the slot. */
static void emit_refill(struct translator *t, const struct site *s, const struct slot_offsets *slot, uint32_t tlb,
                        uint32_t beside)
{
    struct emit *c = &t->cold;
    e_gs(c, 0x03, true, t->A, slot->tag); /* add: the gva again */
    emit_budget(t, s);
    e_rorx(c, t->B, t->A, 8);
    e_alu_imm(c, false, 4, t->B, TLB_MASK);
    e_gs_base(c, 0x2b, true, t->A, t->B, tlb); /* sub */
    e_alu_imm(c, true, 7, t->A, 4096 - s->size);
    uint32_t miss = e_jcc(c, 7, 0);
    bool free = t->C != NO_REG && !t->window_open;
    unsigned temp = free ? t->C : t->A;
    if (!free)
        e_store(c, t->A, VOFF(slow_ea));
    e_gs_base(c, 0x8b, true, temp, t->B, tlb);
    e_store(c, temp, slot->tag);
    e_gs_base(c, 0x8b, true, temp, t->B, tlb + 8);
    e_store(c, temp, slot->host);
    e_gs_base(c, 0x2b, true, temp, t->B, tlb);
    e_store(c, temp, slot->distance);
    if (beside) {
        e_jmp(c, beside);
    } else {
        if (!free)
            e_load(c, t->A, VOFF(slow_ea));
        e_gs(c, 0x03, true, t->A, slot->host);
        e_jmp(c, s->resume);
    }
    e_patch(c, miss, e_offset(c));
    e_gs_base(c, 0x03, true, t->A, t->B, tlb); /* add A, tag */
}

static void emit_slow_path(struct translator *t, const struct insn *in, struct site *s, uint32_t index,
                           const struct tail *tail)
{
    struct emit *c = &t->cold;
    emit_way_out(t->engine, c, t->B, index, out_slow(t->A, t->B));
    /* the same instruction on the bounce buffer, whose address is in A */
    s->bounce = e_offset(c);
    add_map(t, s->bounce, in);
    e_bytes(c, tail->bytes, (unsigned)(tail->e.p - tail->e.start));
    e_jmp(c, s->access & SITE_WRITE ? t->engine->cache.out[OUT_COMMIT] : s->next);
}

/* Behind the check nothing waits for it: the instruction finds its operand by its own registers. */
static uint32_t emit_beside(struct translator *t, struct site *s, uint32_t distance, const struct tail *beside)
{
    struct emit *e = &t->hot;
    uint32_t at = e_offset(e);
    e_load(e, t->B, distance);
    e_bytes(e, beside->bytes, (unsigned)(beside->e.p - beside->e.start));
    s->next = e_offset(e);
    return at;
}

/* A slow path that has found the operand comes back here. */
static void emit_resume(struct translator *t, const struct insn *in, struct site *s, const struct tail *tail)
{
    struct emit *c = &t->cold;
    s->resume = e_offset(c);
    add_map(t, s->resume, in);
    e_bytes(c, tail->bytes, (unsigned)(tail->e.p - tail->e.start));
    e_jmp(c, s->next);
}

bool access_can_be_beside(const struct translator *t, const struct insn *in, const struct ea *ea)
{
    const struct shape *s = in->shape;
    return t->b->hot && !ea->stack && s->served && s->memory >= 0 && !(s->gprs & STOLEN) && (t->mode & MODE_64) &&
           !(t->mode & (MODE_ALIGN | MODE_TF | MODE_BREAK | MODE_FPU_TRAP)) &&
           !(flags_in_memory(t, in) && flags_needed(in)) && !soft_is_indexed(t->engine, t->b->gpa + in->pc);
}

void emit_access(struct translator *t, const struct insn *in, const struct ea *ea, unsigned access, unsigned size,
                 const struct tail *tail)
{
    emit_access_beside(t, in, ea, access, size, tail, NULL);
}

void emit_access_beside(struct translator *t, const struct insn *in, const struct ea *ea, unsigned access,
                        unsigned size, const struct tail *tail, const struct tail *beside)
{
    struct emit *e = &t->hot;
    uint32_t index;
    struct site *s = new_site(t, in, &index);
    uint32_t tlb = tlb_offset(t, (access & SITE_WRITE) != 0);
    bool flags = flags_in_memory(t, in), stay = flags && !flags_needed(in) && !in->shape->flags_written;
    s->access = (uint8_t)(access | (flags ? SITE_FLAGS : 0) | (stay ? SITE_FLAGS_AFTER : 0) |
                          (ea->stack ? SITE_STACK : 0));
    s->size = (uint16_t)size;
    const struct slot_offsets slot = slot_offsets(t, (access & SITE_WRITE) != 0, index);
    bool indexed = !t->b->hot || soft_is_indexed(t->engine, t->b->gpa + in->pc);
    emit_ea(t, ea, t->A, t->B);
    if (indexed) {
        e_rorx(e, t->B, t->A, 8);
        e_alu_imm(e, false, 4, t->B, TLB_MASK);
        e_gs_base(e, 0x2b, true, t->A, t->B, tlb); /* sub A, tlb.tag */
    } else {
        e_gs(e, 0x2b, true, t->A, slot.tag); /* sub */
    }
    uint32_t misaligned = 0;
    s->segment = ea->segment == FS || ea->segment == GS ? (uint8_t)ea->segment : 0;
    s->address = (uint8_t)t->A;
    s->addr32 = ea->addr32;
    s->locked = in->shape->locked;
    s->gp_align = in->shape->gp_align;
    s->halves = size == 10 || (t->amd && (in->shape->mnemonic == ZYDIS_MNEMONIC_MASKMOVDQU ||
                                          in->shape->mnemonic == ZYDIS_MNEMONIC_VMASKMOVDQU));
    s->x87 = in->shape->x87;
    if (in->shape->mnemonic == ZYDIS_MNEMONIC_FLDENV || in->shape->mnemonic == ZYDIS_MNEMONIC_FRSTOR)
        s->first = size == 14 || size == 94 ? 2 : 4;
    if (t->mode & MODE_ALIGN)
        s->align = s->gp_align ? 0 : (uint8_t)ac_alignment(t, in, size);
    if (s->align) {
        e_rex(e, false, 0, 0, t->A); /* test A, align */
        e8(e, 0xf7);
        e8(e, 0xc0 | (t->A & 7));
        e32(e, s->align);
        misaligned = e_jcc(e, 5, 0);
    }
    e_alu_imm(e, true, 7, t->A, 4096 - size);
    uint32_t slow = e_jcc(e, 7 /* above */, 0);
    uint32_t filled = 0;
    if (beside) {
        filled = emit_beside(t, s, slot.distance, beside);
    } else {
        if (indexed)
            e_gs_base(e, 0x03, true, t->A, t->B, tlb + 8); /* add A, tlb.host */
        else
            e_gs(e, 0x03, true, t->A, slot.host); /* add */
        s->resume = e_offset(e);
        e_bytes(e, tail->bytes, (unsigned)(tail->e.p - tail->e.start));
        s->next = e_offset(e);
    }
    uint32_t skip = 0;
    if (misaligned) {
        e_patch(e, misaligned, e_offset(&t->cold));
        if (indexed)
            e_gs_base(&t->cold, 0x03, true, t->A, t->B, tlb);
        else
            e_gs(&t->cold, 0x03, true, t->A, slot.tag);
        skip = e_jmp(&t->cold, 0);
    }
    e_patch(e, slow, e_offset(&t->cold));
    if (indexed)
        e_gs_base(&t->cold, 0x03, true, t->A, t->B, tlb);
    else
        emit_refill(t, s, &slot, tlb, filled);
    if (misaligned)
        e_patch(&t->cold, skip, e_offset(&t->cold));
    emit_slow_path(t, in, s, index, tail);
    if (beside)
        emit_resume(t, in, s, tail);
    if (flags_needed(in))
        t->flags = FLAGS_HOST; /* the tail has brought them back */
}

struct site *emit_helper(struct translator *t, const struct insn *in, helper_fn *fn, bool ends)
{
    uint32_t index;
    flags_to_host(t, R10);
    struct site *s = new_site(t, in, &index);
    s->helper = (int32_t)((intptr_t)fn - (intptr_t)soft_helper);
    emit_way_out(t->engine, &t->hot, R9, index, OUT_HELPER);
    s->next = e_offset(&t->hot);
    t->ended |= ends;
    return s;
}
