/*
 * The system's instructions as far as they are translated; the others are helpers altogether (system.c).
 */
#include "engine/soft/helpers.h"
#include "engine/soft/special.h"

/* and/or on cpu.rflags; the arithmetic flags survive when somebody needs them */
static void rflags_op(struct translator *t, const struct insn *in, unsigned group, uint32_t imm)
{
    flags_spare(t, in, R10);
    e_gs(&t->hot, 0x81, false, group, CPUOFF(rflags));
    e32(&t->hot, imm);
}

void sp_cld(struct translator *t, const struct insn *in)
{
    rflags_op(t, in, 4, ~(uint32_t)FL_DF);
}

void sp_std(struct translator *t, const struct insn *in)
{
    rflags_op(t, in, 1, FL_DF);
}

void sp_cli(struct translator *t, const struct insn *in)
{
    if (t->mode & MODE_CPL0)
        rflags_op(t, in, 4, ~(uint32_t)FL_IF);
    else
        sp_helper(t, in);
}

/* The instruction after sti still runs in its shadow; then the block ends and looks for interrupts. */
void sp_sti(struct translator *t, const struct insn *in)
{
    struct emit *e = &t->hot;
    bool last = in == &t->insns[t->n_insns - 1];
    if (last || !(t->mode & MODE_CPL0)) {
        emit_helper(t, in, helper_sti, false)->arg = last;
        t->shadow = !last;
        return;
    }
    flags_spare(t, in, R10);
    e_gs(e, 0x81, false, 1, CPUOFF(rflags)); /* or */
    e32(e, FL_IF);
    e_gs(e, 0x83, false, 7, CPUOFF(request)); /* cmp, 0: does something wait for IF? */
    e8(e, 0);
    e8(e, 0x74);
    uint8_t *skip = e->p;
    e8(e, 0);
    e_store_imm32(e, VOFF(poll), 1);
    *skip = (uint8_t)(e->p - skip - 1);
    t->shadow = true;
}

/* RFLAGS.AC decides which TLB the kernel uses: what follows is another mode's. */
void sp_stac(struct translator *t, const struct insn *in)
{
    bool set = in->d->mnemonic == M(STAC);
    uint32_t mode = t->mode, open = set || !(mode & MODE_SMAP) ? MMU_KERNEL_AC : MMU_KERNEL;
    if (!(mode & MODE_CPL0) || (mode & MODE_BY_C)) {
        sp_helper(t, in);
        return;
    }
    rflags_op(t, in, set ? 1 : 4, set ? FL_AC : ~(uint32_t)FL_AC);
    t->mode = (mode & ~(uint32_t)(MODE_MMU | MODE_UNGROUPED)) | open;
    e_store_imm32(&t->hot, VOFF(mode), t->mode);
    emit_exit(t, in, in->pc + in->length, CC_NONE);
    t->mode = mode;
    t->ended = true;
}

/* The two GS bases change places. */
void sp_swapgs(struct translator *t, const struct insn *in)
{
    if (!(t->mode & MODE_CPL0) || !code64(t)) {
        sp_helper(t, in);
        return;
    }
    uint32_t active = seg_base_offset(GS);
    e_load(&t->hot, R11, active);
    e_load(&t->hot, R10, CPUOFF(kernel_gs_base));
    e_store(&t->hot, R10, active);
    e_store(&t->hot, R11, CPUOFF(kernel_gs_base));
}

/* The host's counter and the guest's offset, flags untouched. */
void sp_rdtsc(struct translator *t, const struct insn *in)
{
    struct emit *e = &t->hot;
    bool rdtscp = in->d->mnemonic == M(RDTSCP);
    if (t->mode & MODE_TSD) {
        sp_helper(t, in);
        return;
    }
    e_bytes(e, rdtscp ? "\x0f\x01\xf9" : "\x0f\x31", rdtscp ? 3 : 2);
    if (rdtscp)
        e_load32(e, RCX, CPUOFF(tsc_aux));
    e_rorx(e, RDX, RDX, 32);
    e_lea(e, true, RAX, RAX, RDX, 0, 0);
    e_load(e, R11, CPUOFF(tsc_offset));
    e_lea(e, true, RAX, RAX, R11, 0, 0);
    e_rorx(e, RDX, RAX, 32);
    e_mov(e, false, RDX, RDX);
    e_mov(e, false, RAX, RAX);
}

/* in and out: the port is dx or an immediate byte */
void sp_port(struct translator *t, const struct insn *in)
{
    bool input = in->d->mnemonic == M(IN);
    const ZydisDecodedOperand *data = &in->op[input ? 0 : 1], *port = &in->op[input ? 1 : 0];
    struct site *s = emit_helper(t, in, input ? helper_in : helper_out, false);
    s->size = data->size / 8;
    s->element = port->type == ZYDIS_OPERAND_TYPE_REGISTER;
    s->imm = port->type == ZYDIS_OPERAND_TYPE_IMMEDIATE ? (uint64_t)in->imm[0] : 0;
}

void sp_query(struct translator *t, const struct insn *in)
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

static void write_base(struct translator *t, const struct insn *in, unsigned sreg)
{
    struct emit *e = &t->hot;
    unsigned reg = op_gpr(&in->op[0]);
    choose_scratch(t, 0);
    flags_spare(t, in, t->B);
    if (is_stolen(reg))
        e_load(e, t->A, GPR_OFFSET(reg));
    else
        e_mov(e, true, t->A, reg);
    if (in->op[0].size == 32)
        e_mov(e, false, t->A, t->A);
    e_mov(e, true, t->B, t->A); /* canonical? */
    e_shift(e, true, 4, t->B, 16);
    e_shift(e, true, 7, t->B, 16);
    e_alu(e, true, 0x39, t->B, t->A);
    e_patch(e, e_jcc(e, 5, 0), e_offset(&t->cold));
    e_store(e, t->A, seg_base_offset(sreg));
    struct emit hot = t->hot;
    enum flags_place place = t->flags;
    t->hot = t->cold;
    emit_helper(t, in, helper_gp0, false);
    t->cold = t->hot;
    t->hot = hot;
    t->flags = place;
}

/* A 66h prefix does not make its operand 16 bits. */
void sp_fsgsbase(struct translator *t, const struct insn *in)
{
    struct emit *e = &t->hot;
    bool gs = in->d->mnemonic == M(RDGSBASE) || in->d->mnemonic == M(WRGSBASE);
    unsigned reg = op_gpr(&in->op[0]), sreg = gs ? GS : FS;
    if (!code64(t) || !(t->mode & MODE_FSGSBASE)) {
        sp_helper(t, in);
        t->engine->sites[t->engine->n_sites - 1].arg2 = in->op[0].size / 8;
    } else if (in->d->mnemonic == M(WRFSBASE) || in->d->mnemonic == M(WRGSBASE)) {
        write_base(t, in, sreg);
    } else {
        e_gs(e, 0x8b, in->op[0].size == 64, reg, seg_base_offset(sreg));
        if (is_stolen(reg))
            e_store(e, reg, GPR_OFFSET(reg));
    }
}

void sp_undefined(struct translator *t, const struct insn *in)
{
    emit_helper(t, in, helper_undefined, true)->arg = in->length == 16;
}
