/*
 * Instructions with a hidden or unusual operand, and those that 64-bit mode encodes in another way.
 */
#include "engine/soft/helpers.h"
#include "engine/soft/special.h"

void sp_nop(struct translator *t, const struct insn *in) {}

/* F3 90 is pause, but with REX.B the CPU takes it for the exchange of rax and r8 that 90 stands for, whatever the
 * decoder says.  A window must not miss that r8 changes: an instruction of this table ends it. */
/* Who waits for another vCPU may keep it from its CPU. */
void sp_pause(struct translator *t, const struct insn *in)
{
    if (t->engine->peers->n > 1)
        emit_helper(t, in, helper_pause, false);
    else
        copy_insn_plain(&t->hot, in);
}

/* KVM takes either instruction on either vendor's CPUs. */
void sp_hypercall(struct translator *t, const struct insn *in)
{
    emit_helper(t, in, helper_hypercall, false);
}

/* Shown on CPUs without it, too: kernels that are patching themselves are spared an IRET each time.  What it is for,
 * fetching again what has been written, is done anyway. */
void sp_serialize(struct translator *t, const struct insn *in)
{
    static const uint8_t mfence_lfence[] = {0x0f, 0xae, 0xf0, 0x0f, 0xae, 0xe8};
    e_bytes(&t->hot, mfence_lfence, sizeof mfence_lfence);
}

void sp_lea(struct translator *t, const struct insn *in)
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
void sp_xlat(struct translator *t, const struct insn *in)
{
    struct tail tail;
    begin_access(t, in, 0, &tail);
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
    for (unsigned i = 0; i < in->d->operand_count; i++)
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
void sp_bt(struct translator *t, const struct insn *in)
{
    const ZydisDecodedOperand *mem = &in->op[0];
    if (mem->type != ZYDIS_OPERAND_TYPE_MEMORY || in->op[1].type != ZYDIS_OPERAND_TYPE_REGISTER) {
        generic_insn(t, in);
        return;
    }
    struct ea ea;
    insn_ea(t, in, mem, &ea);
    unsigned size = in->d->operand_width / 8, segment = ea.segment, reg = op_gpr(&in->op[1]);
    struct emit *e = &t->hot;
    choose_scratch(t, 0);
    flags_spare(t, in, t->B);
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
    if (flags_in_memory(t, in) && flags_needed(in))
        e_restore_flags(&tail.e, VOFF(slow_flags), t->C);
    if (in->d->attributes & ZYDIS_ATTRIB_HAS_LOCK)
        e8(&tail.e, 0xf0);
    if (size == 2)
        e8(&tail.e, 0x66);
    e_rex(&tail.e, size == 8, t->B, 0, t->A);
    e8(&tail.e, 0x0f);
    e8(&tail.e, in->d->opcode);
    e8(&tail.e, (t->B & 7) << 3 | (t->A & 7));
    struct ea at = {.base = EA_SLOT, .index = NO_REG, .segment = segment, .stack = ea.stack};
    emit_access(t, in, &at, in->d->mnemonic == M(BT) ? SITE_READ : SITE_READ | SITE_WRITE, size, &tail);
}

/* CR0, CR2, CR3 and CR4 are plain values in struct cpu; each page fault reads one.  false: not here. */
static bool read_control(struct translator *t, const struct insn *in)
{
    static const uint32_t at[] = {[0] = CPUOFF(cr0), [2] = CPUOFF(cr2), [3] = CPUOFF(cr3), [4] = CPUOFF(cr4)};
    unsigned n = (unsigned)(in->op[1].reg.value - ZYDIS_REGISTER_CR0), reg = op_gpr(&in->op[0]);
    if (n >= sizeof(at) / sizeof(at[0]) || !at[n] || !code64(t) || !(t->mode & MODE_CPL0))
        return false;
    e_load(&t->hot, reg, at[n]);
    if (is_stolen(reg))
        e_store(&t->hot, reg, GPR_OFFSET(reg));
    return true;
}

static void read_selector(struct translator *t, unsigned reg, unsigned bits, ZydisRegister sreg)
{
    struct emit *e = &t->hot;
    unsigned to = bits == 16 ? R10 : reg;
    emit_load_selector(t, to, sreg);
    if (bits == 16)
        e8(e, 0x66);
    if (is_stolen(reg))
        e_gs(e, 0x89, bits != 16, to, GPR_OFFSET(reg));
    else if (bits == 16)
        e_mov(e, false, reg, R10);
}

void sp_mov(struct translator *t, const struct insn *in)
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
        if (read_control(t, in))
            return;
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
    } else if (from_class == ZYDIS_REGCLASS_SEGMENT && to->type == ZYDIS_OPERAND_TYPE_REGISTER) {
        read_selector(t, op_gpr(to), to->size, from->reg.value);
    } else if (from_class == ZYDIS_REGCLASS_SEGMENT) {
        store_helper_ea(t, in, to);
        s = emit_helper(t, in, helper_store_system, false);
        site_segment(t, s, to);
        s->arg = SYS_SELECTOR | (uint32_t)NO_REG << 8 | (uint32_t)(in->d->operand_width / 8) << 16;
        s->arg2 = (uint32_t)(from->reg.value - ZYDIS_REGISTER_ES);
    } else if (in->d->raw.modrm.offset == 0 &&
               (to->type == ZYDIS_OPERAND_TYPE_MEMORY || from->type == ZYDIS_OPERAND_TYPE_MEMORY)) {
        /* moffs: A0-A3 */
        bool write = to->type == ZYDIS_OPERAND_TYPE_MEMORY;
        const ZydisDecodedOperand *mem = write ? to : from;
        struct ea ea;
        insn_ea(t, in, mem, &ea);
        struct tail tail;
        begin_access(t, in, 0, &tail);
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
void sp_incdec(struct translator *t, const struct insn *in)
{
    uint8_t op = in->bytes[in->length - 1];
    if (!code64(t) && in->d->raw.modrm.offset == 0 && (op & 0xf0) == 0x40) {
        flags_before(t, in);
        if (in->d->operand_width == 16)
            e8(&t->hot, 0x66);
        e8(&t->hot, 0xff);
        e8(&t->hot, 0xc0 | (op & 8) | (op & 7));
        return;
    }
    generic_insn(t, in);
}

void sp_string(struct translator *t, const struct insn *in)
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
    if (in->d->encoding != ZYDIS_INSTRUCTION_ENCODING_LEGACY || in->d->opcode_map != ZYDIS_OPCODE_MAP_DEFAULT) {
        generic_insn(t, in); /* movsd and cmpsd of SSE */
        return;
    }
    unsigned i = 0;
    while (kinds[i].mnemonic != in->d->mnemonic)
        i++;
    unsigned rep = in->d->attributes & ZYDIS_ATTRIB_HAS_REPNE                           ? STR_REPNE
                   : in->d->attributes & (ZYDIS_ATTRIB_HAS_REP | ZYDIS_ATTRIB_HAS_REPE) ? STR_REPE
                                                                                        : 0;
    unsigned segment = DS;
    for (unsigned k = 0; k < in->d->operand_count; k++)
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
    struct site *s = rep_serves(t, in, kinds[i].kind, segment) ? sp_rep(t, in, kinds[i].kind == STR_MOVS, kinds[i].size)
                                                               : emit_helper(t, in, helper_string, false);
    s->arg = kinds[i].kind | (uint32_t)kinds[i].size << 8 | rep << 16;
    s->arg2 = segment | (uint32_t)in->d->address_width << 8;
}

/* Gathers and scatters: element by element in simd.c. */
void sp_gather(struct translator *t, const struct insn *in)
{
    const ZydisDecodedOperand *mem = NULL, *data = NULL, *mask = NULL;
    for (unsigned i = 0; i < in->d->operand_count_visible; i++) {
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
    bool quad_index = in->d->mnemonic == M(VGATHERQPD) || in->d->mnemonic == M(VGATHERQPS) ||
                      in->d->mnemonic == M(VPGATHERQD) || in->d->mnemonic == M(VPGATHERQQ) ||
                      in->d->mnemonic == M(VSCATTERQPD) || in->d->mnemonic == M(VSCATTERQPS) ||
                      in->d->mnemonic == M(VPSCATTERQD) || in->d->mnemonic == M(VPSCATTERQQ);
    bool quad_data = in->d->mnemonic == M(VGATHERQPD) || in->d->mnemonic == M(VPGATHERQQ) ||
                     in->d->mnemonic == M(VGATHERDPD) || in->d->mnemonic == M(VPGATHERDQ) ||
                     in->d->mnemonic == M(VSCATTERQPD) || in->d->mnemonic == M(VPSCATTERQQ) ||
                     in->d->mnemonic == M(VSCATTERDPD) || in->d->mnemonic == M(VPSCATTERDQ);
    element = quad_data ? 8 : 4;
    unsigned index_size = quad_index ? 8 : 4, vector = in->d->avx.vector_length / 8;
    unsigned widest = element > index_size ? element : index_size, count = vector / widest;
    s->arg = (uint32_t)ZydisRegisterGetId(data->reg.value) | (uint32_t)ZydisRegisterGetId(mask->reg.value) << 8 |
             (uint32_t)ZydisRegisterGetId(m->index) << 16;
    s->arg2 = element | index_size << 8 | (uint32_t)(m->scale ? m->scale : 1) << 16 | (uint32_t)addr32(in) << 24 |
              segment << 28;
    s->imm = m->disp.has_displacement ? (uint64_t)in->disp : 0;
    s->size = (uint16_t)count;
    s->element = (uint8_t)(count * element);
    s->mask_kind = in->d->encoding == ZYDIS_INSTRUCTION_ENCODING_EVEX ? MASK_K : MASK_VEC_SIGN;
    s->null_segment = !code64(t) &&
                      ((segment == FS && (t->mode & MODE_NULL_FS)) || (segment == GS && (t->mode & MODE_NULL_GS)) ||
                       (segment == CS && !(data->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE)));
    s->access = (data->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE ? SITE_READ : SITE_WRITE) |
                (m->segment == ZYDIS_REGISTER_SS ? SITE_STACK : 0);
}

/* clears the 64 bytes around [rax] */
void sp_clzero(struct translator *t, const struct insn *in)
{
    struct ea ea = {.base = RAX, .index = NO_REG, .segment = DS, .addr32 = addr32(in)};
    for (unsigned i = 0; i < in->d->operand_count; i++)
        if (in->op[i].type == ZYDIS_OPERAND_TYPE_MEMORY)
            insn_ea(t, in, &in->op[i], &ea);
    emit_ea(t, &ea, R11, R10);
    e_store(&t->hot, R11, VOFF(helper_ea));
    emit_helper(t, in, helper_clzero, false);
}

/* from memory to where its register points, in ES */
void sp_movdir64b(struct translator *t, const struct insn *in)
{
    struct ea ea;
    insn_ea(t, in, &in->op[2], &ea);
    ea.segment = ES; /* whatever prefix there is: that is the source's */
    emit_ea(t, &ea, R11, R10);
    e_store(&t->hot, R11, VOFF(helper_to));
    store_helper_ea(t, in, &in->op[1]);
    emit_helper(t, in, helper_movdir64b, false);
    site_segment(t, &t->engine->sites[t->engine->n_sites - 1], &in->op[1]);
}

void sp_x87_env(struct translator *t, const struct insn *in)
{
    sp_helper(t, in);
    t->engine->sites[t->engine->n_sites - 1].arg2 = in->op[0].size == 14 * 8 || in->op[0].size == 94 * 8 ? 2 : 4;
}

/* Its address size and segment are spent; a REX prefix in front of such a prefix means nothing. */
static void copy_without_segment(struct emit *e, const struct insn *in)
{
    unsigned at = in->d->raw.modrm.offset - 2;
    if (in->d->encoding == ZYDIS_INSTRUCTION_ENCODING_VEX) {
        at = in->d->raw.vex.offset;
    } else {
        if (in->d->mnemonic == M(MASKMOVDQU))
            e8(e, 0x66);
        if (in->d->attributes & ZYDIS_ATTRIB_HAS_REX)
            e8(e, 0x40 | in->d->raw.rex.W << 3 | in->d->raw.rex.R << 2 | in->d->raw.rex.B);
    }
    e_bytes(e, in->bytes + at, in->length - at);
}

/* maskmovq, maskmovdqu: rdi is lent to the host address.  The whole operand must be writable, whatever the
 * mask says. */
void sp_maskmov(struct translator *t, const struct insn *in)
{
    const ZydisDecodedOperand *mem = NULL;
    for (unsigned i = 0; i < in->d->operand_count; i++)
        if (in->op[i].type == ZYDIS_OPERAND_TYPE_MEMORY)
            mem = &in->op[i];
    flags_spare(t, in, R11);                /* before the first that may fault */
    e_store(&t->hot, RDI, GPR_OFFSET(RDI)); /* a pending x87 exception, met by the movd, leaves it so */
    if (in->d->mnemonic == M(MASKMOVQ))
        e_bytes(&t->hot, "\x41\x0f\x7e\xc2", 4); /* movd r10d, mm0: x87 state becomes MMX state even on a fault */
    struct ea ea;
    insn_ea(t, in, mem, &ea);
    struct tail tail;
    begin_access(t, in, 0, &tail);
    e_store(&tail.e, RDI, GPR_OFFSET(RDI));
    e_mov(&tail.e, true, RDI, t->A);
    copy_without_segment(&tail.e, in);
    e_load(&tail.e, RDI, GPR_OFFSET(RDI));
    uint32_t first = t->engine->n_sites;
    emit_access(t, in, &ea, SITE_READ | SITE_WRITE, in->d->mnemonic == M(MASKMOVQ) ? 8 : 16, &tail);
    t->engine->sites[first].lent = true;
}

/* 64-bit code runs these as they are; in 32-bit code registers 8 and up stay. */
void sp_vzero(struct translator *t, const struct insn *in)
{
    if (code64(t))
        generic_insn(t, in);
    else
        sp_helper(t, in);
}

/* VEX.W is ignored in 32-bit code, but the host is in 64-bit mode: there it widens the lengths in rax and rdx. */
void sp_pcmpestr(struct translator *t, const struct insn *in)
{
    uint8_t bytes[16];
    struct insn narrow = *in;
    if (!code64(t) && in->d->encoding == ZYDIS_INSTRUCTION_ENCODING_VEX && in->bytes[in->d->raw.vex.offset] == 0xc4) {
        for (unsigned i = 0; i < in->length; i++)
            bytes[i] = in->bytes[i];
        bytes[in->d->raw.vex.offset + 2] &= 0x7f;
        narrow.bytes = bytes;
    }
    generic_insn(t, &narrow);
}
