/*
 * What the instructions done in C share.
 *
 * A helper acts on the vCPU's state with every guest register saved in cpu.gpr[] and the flags in
 * cpu.rflags, and returns where to go on:
 *
 *     finish(v, s)     the instruction is complete: on in the same block
 *     jump_next(v, s)  complete, but what follows must be looked for: the mode, or a translation, may have changed
 *     soft_next(v)     it changed rip: find the block there
 *     fault(v)         cpu.exc is recorded and rip still at the instruction: deliver
 */
#pragma once
#include "engine/soft/translate_int.h"

/* --- what the translator tells them in struct site's `arg` ------------------------------------------------- */

enum { STR_MOVS, STR_STOS, STR_LODS, STR_SCAS, STR_CMPS, STR_INS, STR_OUTS };
enum { STR_REPE = 1, STR_REPNE = 2 };
enum { SEGMENT_PLAIN, SEGMENT_BIT, SEGMENT_XLAT };
enum { LOOP_NE, LOOP_E, LOOP_PLAIN, LOOP_JCXZ }; /* in the order of their opcodes */
enum { STACK_IMMEDIATE, STACK_REGISTER, STACK_SELECTOR, STACK_MEMORY };
enum { INT_IMM, INT_3, INT_O, INT_1 };
enum { SYS_LGDT, SYS_LIDT, SYS_SGDT, SYS_SIDT, SYS_SLDT, SYS_STR, SYS_SMSW, SYS_SELECTOR };
enum { XS_XSAVE, XS_XSAVEOPT, XS_XSAVEC, XS_XRSTOR, XS_FXSAVE, XS_FXRSTOR, XS_KIND = 7, XS_64 = 8 };
helper_fn helper_target, helper_clzero, helper_movdir64b, helper_load_far, helper_x87_env, helper_decimal, helper_arpl,
    helper_vzero, helper_no_segment, helper_protected, helper_push, helper_pop, helper_call, helper_ret, helper_leave,
    helper_loop, helper_pause, helper_hypercall;
enum { DEC_DAA, DEC_DAS, DEC_AAA, DEC_AAS, DEC_AAM, DEC_AAD, DEC_SALC };
/* decimal.c: what the instruction makes of *ax and RFLAGS on a CPU of that vendor; imm not 0 for AAM */
uint32_t decimal_adjust(unsigned kind, uint16_t *ax, uint8_t imm, uint32_t rflags, bool amd);

/* --- for all of them --------------------------------------------------------------------------------------- */

static inline const void *fault(struct soft_vcpu *v)
{
    return soft_deliver(v);
}

static inline uint64_t next_pc(const struct soft_vcpu *v, const struct site *s)
{
    uint64_t pc = v->cpu.rip + s->len;
    return v->mode & MODE_64 ? pc : (uint32_t)pc;
}

static inline const void *jump_next(struct soft_vcpu *v, const struct site *s)
{
    v->cpu.rip = next_pc(v, s);
    return soft_step_done(v);
}

/* The same behind a load of ss, which holds off interrupts and debug traps for one instruction. */
static inline const void *jump_next_shadow(struct soft_vcpu *v, const struct site *s)
{
    v->cpu.rip = next_pc(v, s);
    return v->debug_hits ? soft_next_single(v) : soft_next(v);
}

static inline const void *finish(struct soft_vcpu *v, const struct site *s)
{
    if (soft_site_block(v->engine, s)->dead || v->poll || v->debug_hits || (v->mode & MODE_TF))
        return jump_next(v, s);
    return soft_code(v->engine, s->next);
}

static inline const void *gp0(struct soft_vcpu *v)
{
    cpu_raise_error(&v->cpu, EXC_GP, 0);
    return fault(v);
}

static inline unsigned arg_kind(const struct site *s)
{
    return s->arg & 0xff;
}

static inline unsigned arg_reg(const struct site *s)
{
    return s->arg >> 8 & 0xff;
}

static inline unsigned arg_size(const struct site *s)
{
    return s->arg >> 16 & 0xff;
}

static inline bool arg_memory(const struct site *s)
{
    return s->arg >> 24 & 1;
}

static inline bool user_mode(const struct soft_vcpu *v)
{
    return v->cpu.cpl == 3;
}

/* Neither real nor virtual-8086 mode. */
static inline bool soft_protected(const struct soft_vcpu *v)
{
    return (v->cpu.cr0 & CR0_PE) && !(v->cpu.rflags & FL_VM);
}

static inline uint64_t linear(const struct soft_vcpu *v, uint64_t gva)
{
    return v->mode & MODE_64 ? gva : (uint32_t)gva;
}

/* With segments that are not flat: may it be accessed?  Where there is no limit Intel's CPUs go on at 0. */
static inline int segment_fault(struct soft_vcpu *v, unsigned segment, uint64_t offset, unsigned n, bool write)
{
    const struct segment *s = &v->cpu.seg[segment];
    uint32_t room = UINT32_MAX - (uint32_t)offset;
    if (!(v->mode & MODE_SEGMENTED))
        return 0;
    if (room < n - 1 && s->limit == UINT32_MAX && !s->base && !v->engine->amd)
        n = room + 1;
    return cpu_check_segment(&v->cpu, (enum sreg)segment, (uint32_t)offset, n, write);
}

/* The host address of [gva, gva+n) when the TLB has it, as translated code would find it. */
static inline uint8_t *tlb_hit(const struct soft_vcpu *v, uint64_t gva, unsigned n, unsigned write)
{
    const struct tlb_entry *t = &v->tlb[v->mode & MODE_MMU][write][gva >> 12 & (TLB_SIZE - 1)];
    return gva - t->tag <= 4096 - n ? (uint8_t *)t->host + (gva - t->tag) : NULL;
}

/* RFLAGS.AC: only for what user code can do; anything but a whole number of 2, 4 or 8 bytes is not checked. */
static inline bool misaligned(const struct soft_vcpu *v, uint64_t gva, unsigned n)
{
    return (v->mode & MODE_ALIGN) && n <= 8 && !(n & (n - 1)) && (gva & (n - 1));
}

/* n bytes at `offset` go past the end of a 32-bit segment without a limit.  Intel's CPUs go on at its beginning where
 * that is at 0. */
static inline bool wraps(const struct soft_vcpu *v, unsigned segment, uint64_t offset, unsigned n)
{
    return !(v->mode & (MODE_64 | MODE_SEGMENTED)) && (uint32_t)offset > UINT32_MAX - (n - 1) &&
           (v->engine->amd || v->cpu.seg[segment].base);
}

/* The part of a stack pointer that addresses its stack: rsp, esp or, on a stack of 64 KiB, sp. */
static inline uint64_t stack_offset(const struct soft_vcpu *v, uint64_t sp)
{
    return v->mode & MODE_64 ? sp : v->cpu.seg[SS].attr & SEG_DB ? (uint32_t)sp : (uint16_t)sp;
}

/* What is in rsp when the stack pointer becomes sp: the rest of it stays. */
static inline uint64_t stack_at(const struct soft_vcpu *v, uint64_t sp)
{
    bool small = !(v->mode & MODE_64) && !(v->cpu.seg[SS].attr & SEG_DB);
    return small ? (v->cpu.gpr[RSP] & ~0xffffull) | (uint16_t)sp : stack_offset(v, sp);
}

static inline uint64_t stack_moved_by(const struct soft_vcpu *v, int64_t by)
{
    return stack_at(v, v->cpu.gpr[RSP] + (uint64_t)by);
}

/* Writes a general register as an instruction of that operand size does. */
static inline void set_gpr(struct soft_vcpu *v, unsigned reg, uint64_t value, unsigned size)
{
    uint64_t *r = &v->cpu.gpr[reg & 15];
    switch (size) {
    case 1:
        *r = (*r & ~0xffull) | (value & 0xff);
        break;
    case 2:
        *r = (*r & ~0xffffull) | (value & 0xffff);
        break;
    case 4:
        *r = (uint32_t)value;
        break;
    default:
        *r = value;
    }
}

/* --- operand.c: 0, or CPU_FAULT with the exception recorded --------------------------------------------------- */
int address_fault(struct soft_vcpu *v, unsigned segment, unsigned vector, uint64_t gva, unsigned n);
int data_read(struct soft_vcpu *v, uint64_t gva, void *buf, unsigned n);
int data_write(struct soft_vcpu *v, uint64_t gva, const void *buf, unsigned n);
int data_write_es(struct soft_vcpu *v, uint64_t gva, const void *buf, unsigned n);
int data_push(struct soft_vcpu *v, const void *value, unsigned size);
int data_push_part(struct soft_vcpu *v, const void *value, unsigned size, unsigned stored); /* rsp moves by size */
int data_stack(struct soft_vcpu *v, uint64_t sp, void *value, unsigned size);
int data_peek(struct soft_vcpu *v, unsigned offset, void *value, unsigned size); /* at rsp + offset */
void watch_data(struct soft_vcpu *v, uint64_t gva, unsigned n, bool write);      /* breakpoints on data that it meets */

/* --- system.c: ports, with breakpoints on them ---------------------------------------------------------------- */
uint64_t port_read(struct soft_vcpu *v, uint16_t port, unsigned size);
void port_write(struct soft_vcpu *v, uint16_t port, uint64_t value, unsigned size);
