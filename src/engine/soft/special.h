/* What the files that translate special instructions share (special.c has their table). */
#pragma once
#include "engine/soft/translate_int.h"

#define M(name) ZYDIS_MNEMONIC_##name

static inline unsigned op_gpr(const ZydisDecodedOperand *op)
{
    return gpr_of(op->reg.value);
}
static inline bool code64(const struct translator *t)
{
    return (t->mode & MODE_64) != 0;
}
static inline bool addr32(const struct insn *in)
{
    return in->d->address_width == 32;
}
static inline bool addr16(const struct insn *in)
{
    return in->d->address_width == 16;
}

/* special.c */
void store_helper_ea(struct translator *t, const struct insn *in, const ZydisDecodedOperand *op);
void site_segment(struct translator *t, struct site *s, const ZydisDecodedOperand *op);
special_fn sp_helper; /* by the helper of the table alone */

/* branch.c */
special_fn sp_jcc, sp_loop, sp_call, sp_jmp, sp_ret;

/* segments.c: the same with segments that are not flat */
void segmented_push(struct translator *t, const struct insn *in);
void segmented_pop(struct translator *t, const struct insn *in);
void segmented_call(struct translator *t, const struct insn *in, int64_t target);
void segmented_loop(struct translator *t, const struct insn *in, unsigned opcode, int64_t target);
void segmented_ret(struct translator *t, const struct insn *in);
void segmented_leave(struct translator *t, const struct insn *in);

/* stack.c */
special_fn sp_push, sp_pop, sp_pushf, sp_leave, sp_enter;
void emit_stack_load(struct translator *t, const struct insn *in, unsigned reg, unsigned size, int disp,
                     const struct tail *after);
void emit_push_pc(struct translator *t, const struct insn *in, unsigned size);
void load_operand_into(struct translator *t, const struct insn *in, const ZydisDecodedOperand *op, unsigned reg,
                       unsigned size);

/* privileged.c */
special_fn sp_cld, sp_std, sp_cli, sp_sti, sp_stac, sp_swapgs, sp_rdtsc, sp_port, sp_query, sp_fsgsbase, sp_undefined;

/* rep.c: a string instruction that may run as it stands, with helper_string (whose site it is) for when it may not */
bool rep_serves(const struct translator *t, const struct insn *in, unsigned kind, unsigned segment);
struct site *sp_rep(struct translator *t, const struct insn *in, bool move, unsigned size);

/* unusual.c */
special_fn sp_nop, sp_pause, sp_hypercall, sp_serialize, sp_lea, sp_xlat, sp_bt, sp_mov, sp_incdec, sp_string,
    sp_gather, sp_clzero, sp_movdir64b, sp_x87_env, sp_maskmov, sp_vzero, sp_pcmpestr;
