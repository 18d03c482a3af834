/*
 * Writing host instructions into the code cache: only the few forms that the translator needs.
 * `gs` operands are offsets into struct soft_vcpu; all of these leave the flags alone except `alu`.
 */
#pragma once
#include <stdint.h>
#include <string.h>

struct emit {
    uint8_t *p;     /* where the next byte goes, in the writable mapping */
    uint8_t *start; /* offset 0 of the code cache, in the same mapping */
};

static inline uint32_t e_offset(const struct emit *e)
{
    return (uint32_t)(e->p - e->start);
}
static inline void e8(struct emit *e, unsigned v)
{
    *e->p++ = (uint8_t)v;
}
static inline void e16(struct emit *e, unsigned v)
{
    e8(e, v);
    e8(e, v >> 8);
}
static inline void e32(struct emit *e, uint32_t v)
{
    memcpy(e->p, &v, 4);
    e->p += 4;
}
static inline void e64(struct emit *e, uint64_t v)
{
    memcpy(e->p, &v, 8);
    e->p += 8;
}
static inline void e_bytes(struct emit *e, const void *b, unsigned n)
{
    memcpy(e->p, b, n);
    e->p += n;
}

static inline void e_rex(struct emit *e, bool w, unsigned reg, unsigned index, unsigned base)
{
    unsigned rex = 0x40 | w << 3 | (reg >> 3) << 2 | (index >> 3) << 1 | base >> 3;
    if (rex != 0x40)
        e8(e, rex);
}

/* op reg, gs:[disp] or op gs:[disp], reg: the opcode says which */
static inline void e_gs(struct emit *e, unsigned opcode, bool w, unsigned reg, uint32_t disp)
{
    e8(e, 0x65);
    e_rex(e, w, reg, 0, 0);
    e8(e, opcode);
    e8(e, 4 | (reg & 7) << 3);
    e8(e, 0x25);
    e32(e, disp);
}
/* the same with gs:[base + disp]; base is not rsp or r12 */
static inline void e_gs_base(struct emit *e, unsigned opcode, bool w, unsigned reg, unsigned base, uint32_t disp)
{
    e8(e, 0x65);
    e_rex(e, w, reg, 0, base);
    e8(e, opcode);
    e8(e, 0x80 | (reg & 7) << 3 | (base & 7));
    e32(e, disp);
}
/* the same with gs:[index * 8 + disp] */
static inline void e_gs_index8(struct emit *e, unsigned opcode, bool w, unsigned reg, unsigned index, uint32_t disp)
{
    e8(e, 0x65);
    e_rex(e, w, reg, index, 0);
    e8(e, opcode);
    e8(e, 4 | (reg & 7) << 3);
    e8(e, 0xc5 | (index & 7) << 3);
    e32(e, disp);
}
static inline void e_load(struct emit *e, unsigned reg, uint32_t gs)
{
    e_gs(e, 0x8b, true, reg, gs);
}
static inline void e_load32(struct emit *e, unsigned reg, uint32_t gs)
{
    e_gs(e, 0x8b, false, reg, gs);
}
static inline void e_store(struct emit *e, unsigned reg, uint32_t gs)
{
    e_gs(e, 0x89, true, reg, gs);
}
static inline void e_store32(struct emit *e, unsigned reg, uint32_t gs)
{
    e_gs(e, 0x89, false, reg, gs);
}
static inline void e_store_imm32(struct emit *e, uint32_t gs, uint32_t imm)
{
    e_gs(e, 0xc7, false, 0, gs);
    e32(e, imm);
}
static inline void e_gs_jump(struct emit *e, uint32_t gs)
{
    e_gs(e, 0xff, false, 4, gs);
}

static inline void e_mov(struct emit *e, bool w, unsigned to, unsigned from)
{
    e_rex(e, w, from, 0, to);
    e8(e, 0x89);
    e8(e, 0xc0 | (from & 7) << 3 | (to & 7));
}
static inline void e_xchg(struct emit *e, unsigned a, unsigned b)
{
    e_rex(e, true, a, 0, b);
    e8(e, 0x87);
    e8(e, 0xc0 | (a & 7) << 3 | (b & 7));
}
static inline void e_mov_imm(struct emit *e, unsigned to, uint64_t imm)
{
    if (imm <= UINT32_MAX) {
        e_rex(e, false, 0, 0, to);
        e8(e, 0xb8 | (to & 7));
        e32(e, (uint32_t)imm);
    } else if ((int64_t)imm == (int32_t)imm) {
        e_rex(e, true, 0, 0, to);
        e8(e, 0xc7);
        e8(e, 0xc0 | (to & 7));
        e32(e, (uint32_t)imm);
    } else {
        e_rex(e, true, 0, 0, to);
        e8(e, 0xb8 | (to & 7));
        e64(e, imm);
    }
}

enum { NO_REG = 16 };
/* opcode reg, [base + index << scale + disp]; base or index may be NO_REG; index is not rsp */
static inline void e_mem(struct emit *e, unsigned opcode, bool w, unsigned reg, unsigned base, unsigned index,
                         unsigned scale, int32_t disp)
{
    unsigned b = base == NO_REG ? 0 : base, x = index == NO_REG ? 0 : index;
    e_rex(e, w, reg, x, b);
    e8(e, opcode);
    unsigned r = (reg & 7) << 3;
    if (base == NO_REG) {
        e8(e, 4 | r);
        e8(e, scale << 6 | (index == NO_REG ? 4u : (x & 7)) << 3 | 5);
        e32(e, (uint32_t)disp);
        return;
    }
    unsigned mod = disp == 0 && (b & 7) != 5 ? 0 : disp == (int8_t)disp ? 0x40 : 0x80;
    if (index != NO_REG || (b & 7) == 4) {
        e8(e, mod | r | 4);
        e8(e, scale << 6 | (index == NO_REG ? 4u : (x & 7)) << 3 | (b & 7));
    } else {
        e8(e, mod | r | (b & 7));
    }
    if (mod == 0x40)
        e8(e, (uint8_t)disp);
    else if (mod == 0x80)
        e32(e, (uint32_t)disp);
}
static inline void e_lea(struct emit *e, bool w, unsigned reg, unsigned base, unsigned index, unsigned scale,
                         int32_t disp)
{
    e_mem(e, 0x8d, w, reg, base, index, scale, disp);
}
/* group 1: n = 0 add, 1 or, 4 and, 5 sub, 7 cmp */
static inline void e_alu_imm(struct emit *e, bool w, unsigned n, unsigned reg, uint32_t imm)
{
    e_rex(e, w, 0, 0, reg);
    e8(e, 0x81);
    e8(e, 0xc0 | n << 3 | (reg & 7));
    e32(e, imm);
}
/* reg op= from, one of the same eight by their opcodes: 0x01 add, 0x09 or, 0x21 and, 0x29 sub, 0x39 cmp */
static inline void e_alu(struct emit *e, bool w, unsigned opcode, unsigned reg, unsigned from)
{
    e_rex(e, w, from, 0, reg);
    e8(e, opcode);
    e8(e, 0xc0 | (from & 7) << 3 | (reg & 7));
}
/* n = 4 shl, 5 shr, 7 sar */
static inline void e_shift(struct emit *e, bool w, unsigned n, unsigned reg, unsigned count)
{
    e_rex(e, w, 0, 0, reg);
    e8(e, 0xc1);
    e8(e, 0xc0 | n << 3 | (reg & 7));
    e8(e, count);
}
static inline void e_rorx(struct emit *e, unsigned to, unsigned from, unsigned count)
{
    e8(e, 0xc4); /* VEX.LZ.F2.0F3A.W1 F0 /r ib */
    e8(e, (to & 8 ? 0 : 0x80) | 0x40 | (from & 8 ? 0 : 0x20) | 3);
    e8(e, 0xfb);
    e8(e, 0xf0);
    e8(e, 0xc0 | (to & 7) << 3 | (from & 7));
    e8(e, count);
}
static inline void e_movzx16(struct emit *e, unsigned to, unsigned from)
{
    e_rex(e, false, to, 0, from);
    e8(e, 0x0f);
    e8(e, 0xb7);
    e8(e, 0xc0 | (to & 7) << 3 | (from & 7));
}
/* Jumps to a code offset; returns the offset of the rel32 for later patching. */
static inline uint32_t e_jmp(struct emit *e, uint32_t target)
{
    e8(e, 0xe9);
    uint32_t at = e_offset(e);
    e32(e, target - (at + 4));
    return at;
}
static inline uint32_t e_jcc(struct emit *e, unsigned cc, uint32_t target)
{
    e8(e, 0x0f);
    e8(e, 0x80 | cc);
    uint32_t at = e_offset(e);
    e32(e, target - (at + 4));
    return at;
}
static inline void e_patch(struct emit *e, uint32_t at, uint32_t target)
{
    uint32_t rel = target - (at + 4);
    memcpy(e->start + at, &rel, 4);
}
/* The arithmetic flags (AH of lahf, AL of seto) to gs:[at] and back; the flags stay, and so does rax, by way of the
 * scratch register `temp`. */
static inline void e_save_flags(struct emit *e, uint32_t at, unsigned temp)
{
    e_mov(e, true, temp, 0);
    e8(e, 0x9f); /* lahf */
    e8(e, 0x0f);
    e8(e, 0x90);
    e8(e, 0xc0); /* seto al */
    e_store32(e, 0, at);
    e_mov(e, true, 0, temp);
}
static inline void e_restore_flags(struct emit *e, uint32_t at, unsigned temp)
{
    e_mov(e, true, temp, 0);
    e_load32(e, 0, at);
    e8(e, 0x04);
    e8(e, 0x7f); /* add al, 127: OF */
    e8(e, 0x9e); /* sahf */
    e_mov(e, true, 0, temp);
}
