/*
 * Writing host instructions into the code cache: only the few forms that the translator needs.
 * `gs` operands are offsets into struct soft_vcpu; all of these leave the flags alone except `alu`.
 */
#pragma once
#include <stdint.h>
#include <string.h>

struct emit {
    uint8_t *p;     /* where the next byte goes, in the writable mapping; up to 16 more may be overwritten */
    uint8_t *start; /* offset 0 of the code cache, in the same mapping */
};

static inline uint32_t e_offset(const struct emit *e)
{
    return (uint32_t)(e->p - e->start);
}

/* Up to eight bytes that go to memory together. */
struct bytes {
    uint64_t value;
    unsigned n;
};
static inline void b8(struct bytes *b, unsigned v)
{
    b->value |= (uint64_t)(uint8_t)v << 8 * b->n++;
}
static inline void b32(struct bytes *b, uint32_t v) /* with room for four */
{
    b->value |= (uint64_t)v << 8 * b->n;
    b->n += 4;
}
static inline void b_rex(struct bytes *b, bool w, unsigned reg, unsigned index, unsigned base)
{
    unsigned rex = 0x40 | w << 3 | (reg >> 3) << 2 | (index >> 3) << 1 | base >> 3;
    if (rex != 0x40)
        b8(b, rex);
}
static inline void e_put(struct emit *e, struct bytes b)
{
    memcpy(e->p, &b.value, 8);
    e->p += b.n;
}

static inline void e8(struct emit *e, unsigned v)
{
    *e->p++ = (uint8_t)v;
}
static inline void e16(struct emit *e, unsigned v)
{
    e_put(e, (struct bytes){v & 0xffff, 2});
}
static inline void e32(struct emit *e, uint32_t v)
{
    e_put(e, (struct bytes){v, 4});
}
static inline void e64(struct emit *e, uint64_t v)
{
    e_put(e, (struct bytes){v, 8});
}
static inline void e_bytes(struct emit *e, const void *b, unsigned n)
{
    memcpy(e->p, b, n);
    e->p += n;
}
static inline void e_rex(struct emit *e, bool w, unsigned reg, unsigned index, unsigned base)
{
    struct bytes b = {0};
    b_rex(&b, w, reg, index, base);
    e_put(e, b);
}
/* opcode reg, reg */
static inline void e_reg(struct emit *e, unsigned opcode, bool w, unsigned reg, unsigned rm)
{
    struct bytes b = {0};
    b_rex(&b, w, reg, 0, rm);
    b8(&b, opcode);
    b8(&b, 0xc0 | (reg & 7) << 3 | (rm & 7));
    e_put(e, b);
}

/* op reg, gs:[disp] or op gs:[disp], reg: the opcode says which */
static inline void e_gs(struct emit *e, unsigned opcode, bool w, unsigned reg, uint32_t disp)
{
    struct bytes b = {0x65, 1};
    b_rex(&b, w, reg, 0, 0);
    b8(&b, opcode);
    b8(&b, 4 | (reg & 7) << 3);
    b8(&b, 0x25);
    e_put(e, b);
    e32(e, disp);
}
/* the same with gs:[base + disp]; base is not rsp or r12 */
static inline void e_gs_base(struct emit *e, unsigned opcode, bool w, unsigned reg, unsigned base, uint32_t disp)
{
    struct bytes b = {0x65, 1};
    b_rex(&b, w, reg, 0, base);
    b8(&b, opcode);
    b8(&b, 0x80 | (reg & 7) << 3 | (base & 7));
    b32(&b, disp);
    e_put(e, b);
}
/* the same with gs:[index * 8 + disp] */
static inline void e_gs_index8(struct emit *e, unsigned opcode, bool w, unsigned reg, unsigned index, uint32_t disp)
{
    struct bytes b = {0x65, 1};
    b_rex(&b, w, reg, index, 0);
    b8(&b, opcode);
    b8(&b, 4 | (reg & 7) << 3);
    b8(&b, 0xc5 | (index & 7) << 3);
    e_put(e, b);
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
    e_reg(e, 0x89, w, from, to);
}
static inline void e_xchg(struct emit *e, unsigned a, unsigned b)
{
    e_reg(e, 0x87, true, a, b);
}
static inline void e_mov_imm(struct emit *e, unsigned to, uint64_t imm)
{
    bool sign_extended = imm > UINT32_MAX && (int64_t)imm == (int32_t)imm;
    struct bytes b = {0};
    b_rex(&b, imm > UINT32_MAX, 0, 0, to);
    if (sign_extended) {
        b8(&b, 0xc7);
        b8(&b, 0xc0 | (to & 7));
    } else {
        b8(&b, 0xb8 | (to & 7));
    }
    if (imm <= UINT32_MAX || sign_extended) {
        b32(&b, (uint32_t)imm);
        e_put(e, b);
    } else {
        e_put(e, b);
        e64(e, imm);
    }
}

enum { NO_REG = 16 };
/* opcode reg, [base + index << scale + disp]; base or index may be NO_REG; index is not rsp */
static inline void e_mem(struct emit *e, unsigned opcode, bool w, unsigned reg, unsigned base, unsigned index,
                         unsigned scale, int32_t disp)
{
    unsigned b = base == NO_REG ? 0 : base, x = index == NO_REG ? 0 : index, r = (reg & 7) << 3;
    unsigned sib = scale << 6 | (index == NO_REG ? 4u : (x & 7)) << 3;
    struct bytes c = {0};
    b_rex(&c, w, reg, x, b);
    b8(&c, opcode);
    if (base == NO_REG) {
        b8(&c, 4 | r);
        b8(&c, sib | 5);
        b32(&c, (uint32_t)disp);
        e_put(e, c);
        return;
    }
    unsigned mod = disp == 0 && (b & 7) != 5 ? 0 : disp == (int8_t)disp ? 0x40 : 0x80;
    if (index != NO_REG || (b & 7) == 4) {
        b8(&c, mod | r | 4);
        b8(&c, sib | (b & 7));
    } else {
        b8(&c, mod | r | (b & 7));
    }
    if (mod == 0x40)
        b8(&c, (uint8_t)disp);
    else if (mod == 0x80)
        b32(&c, (uint32_t)disp);
    e_put(e, c);
}
static inline void e_lea(struct emit *e, bool w, unsigned reg, unsigned base, unsigned index, unsigned scale,
                         int32_t disp)
{
    e_mem(e, 0x8d, w, reg, base, index, scale, disp);
}
/* group 1: n = 0 add, 1 or, 4 and, 5 sub, 7 cmp */
static inline void e_alu_imm(struct emit *e, bool w, unsigned n, unsigned reg, uint32_t imm)
{
    struct bytes b = {0};
    b_rex(&b, w, 0, 0, reg);
    b8(&b, 0x81);
    b8(&b, 0xc0 | n << 3 | (reg & 7));
    b32(&b, imm);
    e_put(e, b);
}
/* reg op= from, one of the same eight by their opcodes: 0x01 add, 0x09 or, 0x21 and, 0x29 sub, 0x39 cmp */
static inline void e_alu(struct emit *e, bool w, unsigned opcode, unsigned reg, unsigned from)
{
    e_reg(e, opcode, w, from, reg);
}
/* n = 4 shl, 5 shr, 7 sar */
static inline void e_shift(struct emit *e, bool w, unsigned n, unsigned reg, unsigned count)
{
    e_reg(e, 0xc1, w, n, reg);
    e8(e, count);
}
static inline void e_rorx(struct emit *e, unsigned to, unsigned from, unsigned count)
{
    struct bytes b = {0xc4, 1}; /* VEX.LZ.F2.0F3A.W1 F0 /r ib */
    b8(&b, (to & 8 ? 0 : 0x80) | 0x40 | (from & 8 ? 0 : 0x20) | 3);
    b8(&b, 0xfb);
    b8(&b, 0xf0);
    b8(&b, 0xc0 | (to & 7) << 3 | (from & 7));
    b8(&b, count);
    e_put(e, b);
}
static inline void e_movzx16(struct emit *e, unsigned to, unsigned from)
{
    struct bytes b = {0};
    b_rex(&b, false, to, 0, from);
    b8(&b, 0x0f);
    b8(&b, 0xb7);
    b8(&b, 0xc0 | (to & 7) << 3 | (from & 7));
    e_put(e, b);
}
/* Jumps to a code offset; returns the offset of the rel32 for later patching. */
static inline uint32_t e_jmp(struct emit *e, uint32_t target)
{
    uint32_t at = e_offset(e) + 1;
    struct bytes b = {0xe9, 1};
    b32(&b, target - (at + 4));
    e_put(e, b);
    return at;
}
static inline uint32_t e_jcc(struct emit *e, unsigned cc, uint32_t target)
{
    uint32_t at = e_offset(e) + 2;
    struct bytes b = {0x800f | cc << 8, 2};
    b32(&b, target - (at + 4));
    e_put(e, b);
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
    e32(e, 0xc0900f9f); /* lahf ; seto al */
    e_store32(e, 0, at);
    e_mov(e, true, 0, temp);
}
static inline void e_restore_flags(struct emit *e, uint32_t at, unsigned temp)
{
    e_mov(e, true, temp, 0);
    e_load32(e, 0, at);
    e_put(e, (struct bytes){0x9e7f04, 3}); /* add al, 127: OF ; sahf */
    e_mov(e, true, 0, temp);
}
