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
 * No index is computed from the address, which would be on the way of every load.  A miss asks the TLB
 * (emit_refill), still without leaving translated code; a place that misses thousands of times in a tick
 * goes back to the TLB for good (soft_demote).
 *
 * The compare destroys the flags; where the guest needs them later they wait in C.  The slow path
 * (mmu.c) either comes back to the instruction with a real address in A, or runs a second copy of it
 * on a bounce buffer and commits that.
 */
#include "engine/soft/helpers.h"

void tail_begin(struct tail *t)
{
    t->e.p = t->e.start = t->bytes;
}

/* Guest register number of a Zydis general register, or NO_REG. */
unsigned gpr_of(ZydisRegister r)
{
    switch (ZydisRegisterGetClass(r)) {
    case ZYDIS_REGCLASS_GPR8:
        if (r >= ZYDIS_REGISTER_AH && r <= ZYDIS_REGISTER_BH)
            return (unsigned)(r - ZYDIS_REGISTER_AH);
        return r >= ZYDIS_REGISTER_SPL ? (unsigned)(r - ZYDIS_REGISTER_SPL) + RSP : (unsigned)(r - ZYDIS_REGISTER_AL);
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

static bool is_high8(ZydisRegister r)
{
    return r >= ZYDIS_REGISTER_AH && r <= ZYDIS_REGISTER_BH;
}

uint32_t gpr_mask_of(const struct insn *in)
{
    uint32_t mask = 0;
    for (unsigned i = 0; i < in->d.operand_count; i++)
        if (in->op[i].type == ZYDIS_OPERAND_TYPE_REGISTER) {
            unsigned r = gpr_of(in->op[i].reg.value);
            if (r != NO_REG)
                mask |= 1u << r;
        }
    return mask;
}

void choose_scratch(struct translator *t, uint32_t used)
{
    static const uint8_t pool[3] = {R11, R10, R9};
    if (t->window_open) { /* r9 is the window's; flags wait in memory */
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

/* The host must keep what this instruction, or a later one in the block, reads. */
void flags_guard(struct translator *t, const struct insn *in)
{
    t->flags_saved = in->live_before != 0;
    if (!t->flags_saved)
        return;
    if (t->C == NO_REG)
        e_save_flags_memory(&t->hot, VOFF(slow_rax), VOFF(slow_flags));
    else
        e_save_flags(&t->hot, t->C);
}

void tail_restore_flags(struct translator *t, struct tail *tail)
{
    if (!t->flags_saved)
        return;
    if (t->C == NO_REG)
        e_restore_flags_memory(&tail->e, VOFF(slow_rax), VOFF(slow_flags));
    else
        e_restore_flags(&tail->e, t->C);
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

/* 32-bit code: nothing can be reached through an empty segment, nor written through a code segment.  ARPL writes
 * only sometimes: its helper looks. */
static bool forbidden_segment(const struct translator *t, const struct insn *in, unsigned segment,
                              const ZydisDecodedOperand *op)
{
    bool write = (op->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE) && in->d.mnemonic != ZYDIS_MNEMONIC_ARPL;
    return (segment == FS && (t->mode & MODE_NULL_FS)) || (segment == GS && (t->mode & MODE_NULL_GS)) ||
           (segment == CS && (t->v->cpu.cr0 & CR0_PE) && write);
}

static void masked_access(struct site *s, const struct insn *in, const ZydisDecodedOperand *mem);
static bool waits_for_x87(const struct insn *in);

/* Faults, unless a mask leaves nothing to access. */
static void emit_no_segment(struct translator *t, const struct insn *in, const ZydisDecodedOperand *op)
{
    struct site *s = emit_helper(t, in, helper_no_segment, false);
    s->x87 = waits_for_x87(in);
    s->size = (uint16_t)(op->size / 8);
    if (in->d.encoding != ZYDIS_INSTRUCTION_ENCODING_LEGACY)
        masked_access(s, in, op);
}

void insn_ea(struct translator *t, const struct insn *in, const ZydisDecodedOperand *op, struct ea *out)
{
    const struct ZydisDecodedOperandMem_ *m = &op->mem;
    *out = (struct ea){.base = NO_REG,
                       .index = NO_REG,
                       .disp = m->disp.has_displacement ? m->disp.value : 0,
                       .segment = sreg_of(m->segment)};
    if (!(t->mode & MODE_64) && in->d.mnemonic != ZYDIS_MNEMONIC_LEA && forbidden_segment(t, in, out->segment, op))
        emit_no_segment(t, in, op);
    out->addr32 = in->d.address_width == 32;
    out->addr16 = in->d.address_width == 16;
    if (m->base == ZYDIS_REGISTER_RIP || m->base == ZYDIS_REGISTER_EIP) {
        out->pc_relative = true;
        out->disp += in->pc + in->d.length;
    } else if (m->base != ZYDIS_REGISTER_NONE) {
        out->base = gpr_of(m->base);
    }
    if (m->index != ZYDIS_REGISTER_NONE) {
        out->index = gpr_of(m->index);
        out->scale = (unsigned)__builtin_ctz(m->scale ? m->scale : 1);
    }
    out->stack = out->segment == SS;
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

static uint32_t seg_base_offset(unsigned sreg)
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
    *s = (struct site){.block = t->b, .pc = in->pc, .len = in->d.length, .mnemonic = (uint16_t)in->d.mnemonic};
    return s;
}

uint32_t tlb_offset(const struct translator *t, bool write)
{
    return (uint32_t)(offsetof(struct soft_vcpu, tlb) +
                      ((t->mode & MODE_MMU) * 2 + write) * TLB_SIZE * sizeof(struct tlb_entry));
}

uint32_t slot_offset(const struct translator *t, bool write, uint32_t site)
{
    return (uint32_t)(offsetof(struct soft_vcpu, slot) +
                      (((t->mode & MODE_MMU) * 2 + write) * SLOT_COUNT + site % SLOT_COUNT) * sizeof(struct tlb_entry));
}

/* --- alignment ------------------------------------------------------------------------------------ */

static bool packs_elements(ZydisMnemonic m);

/* Accessed by element under a mask register; compressing stores are without one, too. */
static bool is_masked(const struct insn *in)
{
    if (packs_elements(in->d.mnemonic) && in->op[0].type == ZYDIS_OPERAND_TYPE_MEMORY)
        return true;
    return in->d.encoding == ZYDIS_INSTRUCTION_ENCODING_EVEX && in->d.avx.mask.reg != ZYDIS_REGISTER_NONE &&
           in->d.avx.mask.reg != ZYDIS_REGISTER_K0;
}

/* AVX-512 exception types "NF": the memory operand is accessed whole, whatever the mask says. */
static bool no_fault_suppression(const struct insn *in)
{
    switch (in->d.mnemonic) { /* where the table has another type than the manual */
    case ZYDIS_MNEMONIC_VGF2P8AFFINEQB:
    case ZYDIS_MNEMONIC_VGF2P8AFFINEINVQB:
    case ZYDIS_MNEMONIC_VCVTNE2PS2BF16:
    case ZYDIS_MNEMONIC_VDBPSADBW:
        return true;
    default:
        break;
    }
    switch (in->d.meta.exception_class) {
    case ZYDIS_EXCEPTION_CLASS_E1NF:
    case ZYDIS_EXCEPTION_CLASS_E2NF:
    case ZYDIS_EXCEPTION_CLASS_E3NF:
    case ZYDIS_EXCEPTION_CLASS_E4NF:
    case ZYDIS_EXCEPTION_CLASS_E5NF:
    case ZYDIS_EXCEPTION_CLASS_E6NF:
    case ZYDIS_EXCEPTION_CLASS_E9NF:
    case ZYDIS_EXCEPTION_CLASS_E10NF:
    case ZYDIS_EXCEPTION_CLASS_E11NF:
        return true;
    default:
        return false;
    }
}

/* Address bits that must be clear or #GP is raised, before anything else about the address is looked at
 * (SDM vol. 2, 2.4: types 1, 2 and 4).  On a TLB hit the host's own instruction raises it. */
static unsigned gp_alignment(const struct translator *t, const struct insn *in, unsigned size)
{
    switch (in->d.mnemonic) {
    case ZYDIS_MNEMONIC_MOVUPS:
    case ZYDIS_MNEMONIC_MOVUPD:
    case ZYDIS_MNEMONIC_MOVDQU:
    case ZYDIS_MNEMONIC_LDDQU:
    case ZYDIS_MNEMONIC_PCMPESTRI:
    case ZYDIS_MNEMONIC_PCMPESTRM:
    case ZYDIS_MNEMONIC_PCMPISTRI:
    case ZYDIS_MNEMONIC_PCMPISTRM:
    case ZYDIS_MNEMONIC_MASKMOVDQU:
        return 0;
    case ZYDIS_MNEMONIC_CMPXCHG16B:
    case ZYDIS_MNEMONIC_CVTPD2PI:
    case ZYDIS_MNEMONIC_CVTTPD2PI:
        return 15;
    case ZYDIS_MNEMONIC_SHA1MSG1:
    case ZYDIS_MNEMONIC_SHA1MSG2:
    case ZYDIS_MNEMONIC_SHA1NEXTE:
    case ZYDIS_MNEMONIC_SHA1RNDS4:
    case ZYDIS_MNEMONIC_SHA256MSG1:
    case ZYDIS_MNEMONIC_SHA256MSG2:
    case ZYDIS_MNEMONIC_SHA256RNDS2:
        return t->amd ? 0 : 15;
    default:
        break;
    }
    switch (in->d.meta.exception_class) {
    case ZYDIS_EXCEPTION_CLASS_SSE1:
    case ZYDIS_EXCEPTION_CLASS_SSE2:
    case ZYDIS_EXCEPTION_CLASS_SSE4:
        return size == 16 ? 15 : 0;
    case ZYDIS_EXCEPTION_CLASS_AVX1:
    case ZYDIS_EXCEPTION_CLASS_E1:
    case ZYDIS_EXCEPTION_CLASS_E1NF:
        return size - 1;
    default:
        return 0;
    }
}

/* Address bits that must be clear with RFLAGS.AC, as CPUs are seen to check: up to 16 bytes, by element
 * where a mask selects, never for the instructions that mask by a vector register. */
static unsigned ac_alignment(const struct insn *in, unsigned size)
{
    switch (in->d.mnemonic) {
    case ZYDIS_MNEMONIC_VMASKMOVPS:
    case ZYDIS_MNEMONIC_VMASKMOVPD:
    case ZYDIS_MNEMONIC_VPMASKMOVD:
    case ZYDIS_MNEMONIC_VPMASKMOVQ:
    case ZYDIS_MNEMONIC_CLFLUSH:
    case ZYDIS_MNEMONIC_CLFLUSHOPT:
    case ZYDIS_MNEMONIC_CLWB:
        return 0;
    default:
        break;
    }
    if (size == 14 || size == 94) /* x87 environment */
        return 1;
    if (size == 28 || size == 108)
        return 3;
    if (in->d.mnemonic == ZYDIS_MNEMONIC_MASKMOVDQU || in->d.mnemonic == ZYDIS_MNEMONIC_VMASKMOVDQU)
        return 7;
    if (is_masked(in) && !no_fault_suppression(in))
        for (unsigned i = 0; i < in->d.operand_count; i++)
            if (in->op[i].type == ZYDIS_OPERAND_TYPE_MEMORY && in->op[i].element_size >= 8 &&
                in->op[i].element_size / 8u < size)
                size = in->op[i].element_size / 8u;
    return size >= 16 ? 15 : size >= 8 ? 7 : size >= 4 ? 3 : size - 1;
}

static bool is_x87(const struct insn *in)
{
    return in->d.encoding == ZYDIS_INSTRUCTION_ENCODING_LEGACY && in->d.opcode_map == ZYDIS_OPCODE_MAP_DEFAULT &&
           (in->d.opcode & 0xf8) == 0xd8;
}

/* x87 and MMX instructions that report a pending x87 exception before they touch memory. */
static bool waits_for_x87(const struct insn *in)
{
    switch (in->d.mnemonic) {
    case ZYDIS_MNEMONIC_FNSTCW:
    case ZYDIS_MNEMONIC_FNSTSW:
    case ZYDIS_MNEMONIC_FNSTENV:
    case ZYDIS_MNEMONIC_FNSAVE:
        return false;
    default:
        break;
    }
    if (is_x87(in))
        return true;
    for (unsigned i = 0; i < in->d.operand_count_visible; i++)
        if (in->op[i].type == ZYDIS_OPERAND_TYPE_REGISTER &&
            ZydisRegisterGetClass(in->op[i].reg.value) == ZYDIS_REGCLASS_MMX)
            return true;
    return false;
}

/* A place that misses its slot all the time is translated again without (soft_demote). */
void emit_budget(struct translator *t, const struct site *s)
{
    struct emit *c = &t->cold;
    uint32_t index = (uint32_t)(s - t->engine->sites);
    e_gs(c, 0x83, false, 5, (uint32_t)offsetof(struct soft_vcpu, budget[index % SLOT_COUNT])); /* sub dword, 1 */
    e8(c, 1);
    uint32_t enough = e_jcc(c, 9 /* not negative */, 0);
    if (t->flags_saved && t->C != NO_REG)
        e_store(c, t->C, VOFF(slow_flags));
    e_store_imm32(c, VOFF(site), index);
    e_gs_jump(c, VOFF(glue_demote));
    e_patch(c, enough, e_offset(c));
}

/* The slot missed: ask the TLB, and when that knows, remember its answer in the slot. */
static void emit_refill(struct translator *t, const struct site *s, uint32_t slot, uint32_t tlb)
{
    struct emit *c = &t->cold;
    e_gs(c, 0x03, true, t->A, slot); /* add A, slot.tag: the gva again */
    emit_budget(t, s);
    e_rorx(c, t->B, t->A, 8);
    e_alu_imm(c, false, 4, t->B, TLB_MASK);
    e_gs_base(c, 0x2b, true, t->A, t->B, tlb); /* sub */
    e_alu_imm(c, true, 7, t->A, 4096 - s->size);
    uint32_t miss = e_jcc(c, 7, 0);
    bool free = t->C != NO_REG && !t->flags_saved && !t->window_open;
    unsigned temp = free ? t->C : t->A;
    if (!free)
        e_store(c, t->A, VOFF(slow_ea));
    e_gs_base(c, 0x8b, true, temp, t->B, tlb);
    e_store(c, temp, slot);
    e_gs_base(c, 0x8b, true, temp, t->B, tlb + 8);
    e_store(c, temp, slot + 8);
    if (free)
        e_lea(c, true, t->A, t->A, temp, 0, 0);
    else
        e_gs(c, 0x03, true, t->A, VOFF(slow_ea));
    e_jmp(c, s->resume);
    e_patch(c, miss, e_offset(c));
    e_gs_base(c, 0x03, true, t->A, t->B, tlb); /* add A, tag */
}

static void emit_slow_path(struct translator *t, const struct insn *in, struct site *s, uint32_t index,
                           const struct tail *tail)
{
    struct emit *c = &t->cold;
    e_store(c, t->A, VOFF(slow_ea));
    bool in_register = t->flags_saved && t->C != NO_REG;
    if (in_register)
        e_store(c, t->C, VOFF(slow_flags));
    if (t->window_open)
        e_store(c, R9, VOFF(slow_r9));
    e_store_imm32(c, VOFF(site), index);
    e_gs_jump(c, VOFF(glue_slow));
    /* landing: the address is real */
    uint32_t landing = e_offset(c);
    e_load(c, t->A, VOFF(slow_host));
    if (in_register)
        e_load(c, t->C, VOFF(slow_flags));
    if (t->window_open)
        e_load(c, R9, VOFF(slow_r9));
    e_jmp(c, s->resume);
    s->resume = landing;
    /* the same instruction on the bounce buffer */
    s->bounce = e_offset(c);
    add_map(t, s->bounce, in);
    e_load(c, t->A, VOFF(slow_host));
    if (in_register)
        e_load(c, t->C, VOFF(slow_flags));
    if (t->window_open)
        e_load(c, R9, VOFF(slow_r9));
    e_bytes(c, tail->bytes, (unsigned)(tail->e.p - tail->e.start));
    if (s->access & SITE_WRITE) {
        e_store_imm32(c, VOFF(site), index);
        if (t->window_open) { /* the commit comes back here, r9 first */
            e_store(c, R9, VOFF(slow_r9));
            e_gs_jump(c, VOFF(glue_commit));
            uint32_t next = s->next;
            s->next = e_offset(c);
            e_load(c, R9, VOFF(slow_r9));
            e_jmp(c, next);
        } else {
            e_gs_jump(c, VOFF(glue_commit));
        }
    } else {
        e_jmp(c, s->next);
    }
}

void emit_access(struct translator *t, const struct insn *in, const struct ea *ea, unsigned access, unsigned size,
                 const struct tail *tail)
{
    struct emit *e = &t->hot;
    uint32_t index;
    struct site *s = new_site(t, in, &index);
    uint32_t tlb = tlb_offset(t, (access & SITE_WRITE) != 0);
    s->access = (uint8_t)(access | (t->flags_saved ? SITE_FLAGS : 0) | (ea->stack ? SITE_STACK : 0));
    s->size = (uint16_t)size;
    uint32_t slot = slot_offset(t, (access & SITE_WRITE) != 0, index);
    bool indexed = !t->b->hot || soft_is_indexed(t->engine, t->b->gpa + in->pc);
    emit_ea(t, ea, t->A, t->B);
    if (indexed) {
        e_rorx(e, t->B, t->A, 8);
        e_alu_imm(e, false, 4, t->B, TLB_MASK);
        e_gs_base(e, 0x2b, true, t->A, t->B, tlb); /* sub A, tlb.tag */
    } else {
        e_gs(e, 0x2b, true, t->A, slot); /* sub A, slot.tag */
    }
    uint32_t misaligned = 0;
    s->segment = ea->segment == FS || ea->segment == GS ? (uint8_t)ea->segment : 0;
    s->address = (uint8_t)t->A;
    s->addr32 = ea->addr32;
    s->gp_align = (uint8_t)gp_alignment(t, in, size);
    s->halves = size == 10 || in->d.mnemonic == ZYDIS_MNEMONIC_MASKMOVDQU ||
                in->d.mnemonic == ZYDIS_MNEMONIC_VMASKMOVDQU;
    s->x87 = waits_for_x87(in);
    if (in->d.mnemonic == ZYDIS_MNEMONIC_FLDENV || in->d.mnemonic == ZYDIS_MNEMONIC_FRSTOR)
        s->first = size == 14 || size == 94 ? 2 : 4;
    if (t->mode & MODE_ALIGN)
        s->align = s->gp_align ? 0 : (uint8_t)ac_alignment(in, size);
    if (s->align) {
        e_rex(e, false, 0, 0, t->A); /* test A, align */
        e8(e, 0xf7);
        e8(e, 0xc0 | (t->A & 7));
        e32(e, s->align);
        misaligned = e_jcc(e, 5, 0);
    }
    e_alu_imm(e, true, 7, t->A, 4096 - size);
    uint32_t slow = e_jcc(e, 7 /* above */, 0);
    if (indexed)
        e_gs_base(e, 0x03, true, t->A, t->B, tlb + 8); /* add A, tlb.host */
    else
        e_gs(e, 0x03, true, t->A, slot + 8); /* add A, slot.host */
    s->resume = e_offset(e);
    e_bytes(e, tail->bytes, (unsigned)(tail->e.p - tail->e.start));
    s->next = e_offset(e);
    uint32_t skip = 0;
    if (misaligned) {
        e_patch(e, misaligned, e_offset(&t->cold));
        if (indexed)
            e_gs_base(&t->cold, 0x03, true, t->A, t->B, tlb);
        else
            e_gs(&t->cold, 0x03, true, t->A, slot);
        skip = e_jmp(&t->cold, 0);
    }
    e_patch(e, slow, e_offset(&t->cold));
    if (indexed)
        e_gs_base(&t->cold, 0x03, true, t->A, t->B, tlb);
    else
        emit_refill(t, s, slot, tlb);
    if (misaligned)
        e_patch(&t->cold, skip, e_offset(&t->cold));
    emit_slow_path(t, in, s, index, tail);
}

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

static bool packs_elements(ZydisMnemonic m)
{
    switch (m) {
    case ZYDIS_MNEMONIC_VCOMPRESSPD:
    case ZYDIS_MNEMONIC_VCOMPRESSPS:
    case ZYDIS_MNEMONIC_VPCOMPRESSB:
    case ZYDIS_MNEMONIC_VPCOMPRESSW:
    case ZYDIS_MNEMONIC_VPCOMPRESSD:
    case ZYDIS_MNEMONIC_VPCOMPRESSQ:
    case ZYDIS_MNEMONIC_VEXPANDPD:
    case ZYDIS_MNEMONIC_VEXPANDPS:
    case ZYDIS_MNEMONIC_VPEXPANDB:
    case ZYDIS_MNEMONIC_VPEXPANDW:
    case ZYDIS_MNEMONIC_VPEXPANDD:
    case ZYDIS_MNEMONIC_VPEXPANDQ:
        return true;
    default:
        return false;
    }
}

/* Result elements that one broadcast memory operand feeds. */
static unsigned broadcast_elements(ZydisBroadcastMode mode)
{
    switch (mode) {
    case ZYDIS_BROADCAST_MODE_1_TO_2:
        return 2;
    case ZYDIS_BROADCAST_MODE_1_TO_4:
    case ZYDIS_BROADCAST_MODE_2_TO_4:
        return 4;
    case ZYDIS_BROADCAST_MODE_1_TO_8:
    case ZYDIS_BROADCAST_MODE_2_TO_8:
    case ZYDIS_BROADCAST_MODE_4_TO_8:
        return 8;
    case ZYDIS_BROADCAST_MODE_1_TO_32:
        return 32;
    case ZYDIS_BROADCAST_MODE_1_TO_64:
        return 64;
    default:
        return 16;
    }
}

static void masked_access(struct site *s, const struct insn *in, const ZydisDecodedOperand *mem)
{
    if (is_masked(in)) {
        const struct ZydisDecodedInstructionAvx_ *avx = &in->d.avx;
        if (no_fault_suppression(in)) {
            if (s->access & SITE_WRITE)
                s->access |= SITE_READ; /* a bounce buffer keeps what the mask spares */
            return;
        }
        s->mask_kind = MASK_K;
        s->mask_reg = (uint8_t)(in->d.avx.mask.reg - ZYDIS_REGISTER_K0);
        s->element = (uint8_t)(mem->element_size / 8);
        if (avx->broadcast.mode != ZYDIS_BROADCAST_MODE_INVALID) {
            s->arg = 1;
            s->arg2 = broadcast_elements(avx->broadcast.mode);
        } else if (packs_elements(in->d.mnemonic)) {
            s->arg = 2;
        }
        return;
    }
    switch (in->d.mnemonic) {
    case ZYDIS_MNEMONIC_VMASKMOVPS:
    case ZYDIS_MNEMONIC_VMASKMOVPD:
    case ZYDIS_MNEMONIC_VPMASKMOVD:
    case ZYDIS_MNEMONIC_VPMASKMOVQ: {
        ZydisRegister r = in->op[1].reg.value;
        s->mask_kind = MASK_VEC_SIGN;
        s->mask_reg = (uint8_t)ZydisRegisterGetId(r);
        bool quad = in->d.mnemonic == ZYDIS_MNEMONIC_VMASKMOVPD || in->d.mnemonic == ZYDIS_MNEMONIC_VPMASKMOVQ;
        s->element = quad ? 8 : 4;
        return;
    }
    default:
        return;
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
        stolen_loads(&t->hot, in);
        copy_insn_plain(&t->hot, in);
        stolen_stores(&t->hot, in);
        return;
    }
    struct ea ea;
    insn_ea(t, in, mem, &ea);
    if (window_serves(t, in)) {
        stolen_loads(&t->hot, in);
        copy_insn_in_window(&t->hot, in, ea.base, (int32_t)ea.disp);
        stolen_stores(&t->hot, in);
        return;
    }
    choose_scratch(t, gpr_mask_of(in));
    flags_guard(t, in);
    struct tail tail;
    tail_begin(&tail);
    tail_restore_flags(t, &tail);
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
    masked_access(&t->engine->sites[first], in, mem);
    t->engine->sites[first].lent = in->d.encoding == ZYDIS_INSTRUCTION_ENCODING_LEGACY && has_high8(in);
}

struct site *emit_helper(struct translator *t, const struct insn *in, helper_fn *fn, bool ends)
{
    uint32_t index;
    struct site *s = new_site(t, in, &index);
    s->helper = fn;
    e_store_imm32(&t->hot, VOFF(site), index);
    e_gs_jump(&t->hot, VOFF(glue_helper));
    s->next = e_offset(&t->hot);
    t->ended |= ends;
    return s;
}
