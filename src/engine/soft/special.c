/*
 * Instructions that are not simply copied: `specials` is the summary, special.h says where each is translated.
 */
#include "engine/soft/helpers.h"
#include "engine/soft/special.h"

struct special {
    special_fn *fn; /* how it is translated; NULL with a helper: sp_helper */
    helper_fn *helper;
    uint8_t arg;       /* the helper's own */
    bool ends;         /* nothing after it belongs to the block */
    bool fn_sometimes; /* fn may hand on to generic_insn */
};

static const struct special specials[ZYDIS_MNEMONIC_MAX_VALUE + 1];

/* Stores the effective address of the explicit memory operand for a helper. */
void store_helper_ea(struct translator *t, const struct insn *in, const ZydisDecodedOperand *op)
{
    struct ea ea;
    insn_ea(t, in, op, &ea);
    emit_ea(t, &ea, R11, R10);
    e_store(&t->hot, R11, VOFF(helper_ea));
}

/* What a helper must know of its operand's segment to raise the right exception. */
void site_segment(struct translator *t, struct site *s, const ZydisDecodedOperand *op)
{
    ZydisRegister r = op->mem.segment;
    if (r == ZYDIS_REGISTER_SS)
        s->access |= SITE_STACK;
    s->segment = r == ZYDIS_REGISTER_FS ? FS : r == ZYDIS_REGISTER_GS ? GS : 0;
}

/* arg: table's own | register << 8 | operand bytes << 16 | memory << 24 */
void sp_helper(struct translator *t, const struct insn *in)
{
    const struct special *sp = &specials[in->d->mnemonic];
    unsigned reg = NO_REG, size = in->d->operand_width / 8;
    const ZydisDecodedOperand *memory = NULL;
    uint64_t imm = 0;
    for (unsigned i = 0; i < in->d->operand_count_visible; i++) {
        const ZydisDecodedOperand *op = &in->op[i];
        if (op->type == ZYDIS_OPERAND_TYPE_MEMORY) {
            store_helper_ea(t, in, op);
            memory = op;
            if (op->size)
                size = op->size / 8;
        } else if (op->type == ZYDIS_OPERAND_TYPE_REGISTER && reg == NO_REG) {
            reg = op_gpr(op);
        } else if (op->type == ZYDIS_OPERAND_TYPE_IMMEDIATE) {
            imm = (uint64_t)in->imm[0];
        } else if (op->type == ZYDIS_OPERAND_TYPE_POINTER) {
            imm = (uint64_t)op->ptr.segment << 32 | op->ptr.offset;
        }
    }
    struct site *s = emit_helper(t, in, sp->helper, sp->ends);
    if (memory)
        site_segment(t, s, memory);
    s->addr32 = addr32(in);
    s->null_segment = in->d->mnemonic == M(FXSAVE) && !code64(t) && memory->mem.segment == ZYDIS_REGISTER_CS;
    if (sp->helper == helper_pusha)
        s->access |= SITE_STACK;
    s->arg = sp->arg | reg << 8 | (size & 0xff) << 16 | (uint32_t)(memory != NULL) << 24;
    s->arg2 = in->d->operand_width / 8;
    s->imm = imm;
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
    [M(PUSHFQ)] = {.fn = sp_pushf, .helper = helper_pushf, .arg = 8},
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
    [M(STAC)] = {.fn = sp_stac, .helper = helper_stac, .arg = 1, .ends = true},
    [M(CLAC)] = {.fn = sp_stac, .helper = helper_stac, .arg = 0, .ends = true},
    /* no effect that a guest could see */
    SOME(NOP, sp_nop),
    SOME(PAUSE, sp_pause),
    SOME(SERIALIZE, sp_serialize),
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
    [M(RDTSCP)] = {.fn = sp_rdtsc, .helper = helper_rdtsc, .arg = 1},
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
    SOME(VMCALL, sp_hypercall),
    SOME(VMMCALL, sp_hypercall),
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
    SOME(MOVDIR64B, sp_movdir64b),
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

bool is_plain_mov(const struct shape *s)
{
    for (unsigned i = 0; i < 2; i++) {
        if (shape_what(s)->op[i].type != ZYDIS_OPERAND_TYPE_REGISTER)
            continue;
        switch (ZydisRegisterGetClass(shape_what(s)->op[i].reg.value)) {
        case ZYDIS_REGCLASS_CONTROL:
        case ZYDIS_REGCLASS_DEBUG:
        case ZYDIS_REGCLASS_SEGMENT:
            return false;
        default:
            break;
        }
    }
    bool memory = shape_what(s)->op[0].type == ZYDIS_OPERAND_TYPE_MEMORY ||
                  shape_what(s)->op[1].type == ZYDIS_OPERAND_TYPE_MEMORY;
    return !memory || shape_what(s)->d.raw.modrm.offset; /* moffs has none */
}

static bool ends_block(const struct shape *s)
{
    if (s->mnemonic == M(MOV) || s->mnemonic == M(POP)) {
        const ZydisDecodedOperand *to = &shape_what(s)->op[0];
        if (to->type != ZYDIS_OPERAND_TYPE_REGISTER)
            return false;
        ZydisRegisterClass c = ZydisRegisterGetClass(to->reg.value);
        return c == ZYDIS_REGCLASS_CONTROL || c == ZYDIS_REGCLASS_DEBUG || c == ZYDIS_REGCLASS_SEGMENT;
    }
    return specials[s->mnemonic].ends;
}

void special_facts(struct shape *s)
{
    bool plain = s->mnemonic == M(MOV) && is_plain_mov(s);
    special_fn *fn = plain ? NULL : specials[s->mnemonic].fn;
    for (unsigned i = 0; i < shape_what(s)->d.operand_count; i++)
        if (shape_what(s)->op[i].type == ZYDIS_OPERAND_TYPE_MEMORY &&
            shape_what(s)->op[i].mem.type == ZYDIS_MEMOP_TYPE_VSIB)
            fn = sp_gather;
    shape_set_special(s, fn);
    s->ends = ends_block(s);
    s->passable = fn == sp_jcc && !(shape_what(s)->d.attributes & ZYDIS_ATTRIB_HAS_OPERANDSIZE);
}
