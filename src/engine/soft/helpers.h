/* What special.c tells helpers.c in struct site's `arg`. */
#pragma once
#include "engine/soft/translate_int.h"

enum { STR_MOVS, STR_STOS, STR_LODS, STR_SCAS, STR_CMPS, STR_INS, STR_OUTS };
enum { STR_REPE = 1, STR_REPNE = 2 };
enum { SEGMENT_PLAIN, SEGMENT_BIT, SEGMENT_XLAT, SEGMENT_STACK };
enum { INT_IMM, INT_3, INT_O, INT_1 };
enum { SYS_LGDT, SYS_LIDT, SYS_SGDT, SYS_SIDT, SYS_SLDT, SYS_STR, SYS_SMSW, SYS_SELECTOR };
enum { XS_XSAVE, XS_XSAVEOPT, XS_XSAVEC, XS_XRSTOR, XS_FXSAVE, XS_FXRSTOR, XS_KIND = 7, XS_64 = 8 };
helper_fn helper_target, helper_clzero, helper_load_far, helper_x87_env, helper_decimal, helper_arpl, helper_vzero,
    helper_no_segment;
enum { DEC_DAA, DEC_DAS, DEC_AAA, DEC_AAS, DEC_AAM, DEC_AAD, DEC_SALC };
/* decimal.c: what the instruction makes of *ax and RFLAGS; imm not 0 for AAM */
uint32_t decimal_adjust(unsigned kind, uint16_t *ax, uint8_t imm, uint32_t rflags);
