/*
 * The decimal adjustments (SDM vol. 2: DAA, DAS, AAA, AAS, AAM, AAD) and SALC.
 *
 * Flags that the manual leaves undefined are those of the addition or subtraction that CPUs are seen to do:
 * one of 8 bits for DAA, DAS and AAD, of the whole of AX for AAA and AAS; AAM is a division, whose flags say
 * nothing.  So AMD's; Intel's clear OF in the first four, and AAA and AAS set the others by AL.
 */
#include "engine/soft/helpers.h"

/* All arithmetic flags of a + b (or a - b) in `bits` bits. */
static uint32_t sum_flags(uint32_t a, uint32_t b, unsigned bits, bool subtract)
{
    uint32_t mask = (1u << bits) - 1, sign = 1u << (bits - 1), r = (subtract ? a - b : a + b) & mask;
    uint32_t overflow = subtract ? (a ^ b) & (a ^ r) : (a ^ r) & (b ^ r);
    return (subtract       ? a < b
            : a + b > mask ? FL_CF
                           : 0) |
           (__builtin_parity(r & 0xff) ? 0 : FL_PF) | ((a ^ b ^ r) & FL_AF) | (r ? 0 : FL_ZF) | (r & sign ? FL_SF : 0) |
           (overflow & sign ? FL_OF : 0);
}

uint32_t decimal_adjust(unsigned kind, uint16_t *ax, uint8_t imm, uint32_t rflags, bool amd)
{
    uint8_t al = (uint8_t)*ax, ah = (uint8_t)(*ax >> 8);
    bool cf = rflags & FL_CF, low = (al & 15) > 9 || (rflags & FL_AF), high = al > 0x99 || cf;
    bool subtract = kind == DEC_DAS || kind == DEC_AAS;
    uint32_t by, flags = 0;
    switch (kind) {
    case DEC_DAA:
    case DEC_DAS:
        by = (low ? 6 : 0) + (high ? 0x60 : 0);
        flags = sum_flags(al, by, 8, subtract) & ~(uint32_t)(FL_CF | FL_AF);
        /* the carry is that of the first step, or says that the second was due */
        cf = high || (low && subtract && al < 6);
        flags |= (cf ? FL_CF : 0) | (low ? FL_AF : 0);
        flags &= amd ? ~0u : ~(uint32_t)FL_OF;
        al = (uint8_t)(subtract ? al - by : al + by);
        break;
    case DEC_AAA:
    case DEC_AAS:
        by = low ? 0x106 : 0;
        flags = sum_flags(*ax, by, 16, subtract);
        *ax = (uint16_t)(subtract ? *ax - by : *ax + by);
        al = *ax & 15;
        flags = ((amd ? flags : sum_flags(al, 0, 8, false)) & ~(uint32_t)(FL_CF | FL_AF)) | (low ? FL_CF | FL_AF : 0);
        ah = (uint8_t)(*ax >> 8);
        break;
    case DEC_AAM:
        ah = al / imm;
        al = al % imm;
        flags = sum_flags(al, 0, 8, false);
        break;
    case DEC_AAD:
        by = (uint8_t)(ah * imm);
        flags = sum_flags(al, by, 8, false);
        al = (uint8_t)(al + by);
        ah = 0;
        break;
    default: /* salc */
        al = cf ? 0xff : 0;
        flags = rflags & FL_ARITH;
    }
    *ax = (uint16_t)(ah << 8 | al);
    return (rflags & ~(uint32_t)FL_ARITH) | flags;
}
