/*
 * Instructions done in C that belong nowhere else: what is undefined, checks before an instruction, and what
 * compilers do not use.  helpers.h says how such a function ends.
 */
#include "engine/soft/helpers.h"

#include <sched.h>

const void *helper_undefined(struct soft_vcpu *v, const struct site *s)
{
    if (s->arg)
        return gp0(v);
    cpu_raise(&v->cpu, EXC_UD);
    return fault(v);
}

const void *helper_gp0(struct soft_vcpu *v, const struct site *s)
{
    return gp0(v);
}

/* Of an operand with a mask each element that is used.  Where there is no limit only the end of all addresses stops
 * one, and the pages of those before it come first. */
static int elements_fault(struct soft_vcpu *v, const struct site *s, uint32_t offset)
{
    bool write = s->access & SITE_WRITE, endless = v->cpu.seg[s->segment].limit == UINT32_MAX;
    uint64_t bytes = soft_active_bytes(s);
    struct translation tr;
    for (unsigned at = 0; at < s->size; at += s->element) {
        uint32_t gva = offset + at + (uint32_t)v->cpu.seg[s->segment].base;
        if ((bytes >> at & 1) &&
            (segment_fault(v, s->segment, offset + at, s->element, write) ||
             (endless && cpu_walk(&v->cpu, gva, write ? ACCESS_WRITE : ACCESS_READ, user_mode(v), &tr))))
            return CPU_FAULT;
    }
    return 0;
}

/* The limit and rights of an operand; alignment that is looked at first. */
static int operand_fault(struct soft_vcpu *v, const struct site *s, uint32_t offset)
{
    bool write = s->access & SITE_WRITE, area = s->halves;
    uint32_t gva = offset + (uint32_t)v->cpu.seg[s->segment].base;
    if (s->mask_kind && !soft_active_bytes(s))
        return 0;
    if (!area && (gva & s->gp_align) && !soft_misaligned_sse())
        return cpu_raise_error(&v->cpu, EXC_GP, 0);
    if (!segment_fault(v, s->segment, offset, s->size, write))
        return 0;
    if (s->mask_kind)
        return elements_fault(v, s, offset);
    if (!area || segment_fault(v, s->segment, offset, 4, write))
        return CPU_FAULT;
    if ((gva & 3) && (v->mode & MODE_ALIGN))
        return cpu_raise_error(&v->cpu, EXC_AC, 0);
    if (gva & s->gp_align)
        return cpu_raise_error(&v->cpu, EXC_GP, 0);
    return segment_fault(v, s->segment, offset, s->size, write);
}

/* What an x87 or MMX instruction has done before it faults. */
static void before_fault(struct soft_vcpu *v, const struct site *s)
{
    uint32_t mm0;
    if (s->clears_top)
        soft_clear_x87_top(v);
    if (s->mnemonic == ZYDIS_MNEMONIC_MASKMOVQ) /* x87 state has become MMX state */
        __asm__ volatile("movd %%mm0, %0" : "=r"(mm0));
}

/* An operand in a segment that is not flat: helper_ea is its offset. */
const void *helper_segment(struct soft_vcpu *v, const struct site *s)
{
    struct cpu *c = &v->cpu;
    uint64_t offset = v->helper_ea;
    if (s->first == SEGMENT_XLAT) {
        offset += (uint8_t)c->gpr[RAX];
    } else if (s->first == SEGMENT_BIT) {
        int64_t bit = s->size == 2 ? (int16_t)c->gpr[s->element] : (int32_t)c->gpr[s->element];
        offset += (uint64_t)(bit >> 3 & -(int64_t)s->size);
    }
    if (!v->fpu_live)
        soft_fpu_unpark(v);
    if (!operand_fault(v, s, (uint32_t)(offset & s->imm)))
        return soft_code(v->engine, s->next);
    if (s->x87 && soft_x87_pending(v))
        cpu_raise(c, EXC_MF);
    else
        before_fault(v, s);
    return fault(v);
}

/* Control comes here when the instruction of a MODE_BY_C block is complete, or (arg) is a branch to helper_ea. */
const void *helper_single_step(struct soft_vcpu *v, const struct site *s)
{
    if (s->arg && (v->mode & MODE_SEGMENTED) && v->helper_ea > v->cpu.seg[CS].limit)
        return gp0(v);
    v->cpu.rip = s->arg ? v->helper_ea : next_pc(v, s);
    return soft_step_done(v);
}

/* Real and virtual-8086 mode know no VEX, EVEX and XOP (SDM vol. 2, 2.3). */
const void *helper_protected(struct soft_vcpu *v, const struct site *s)
{
    if (soft_protected(v))
        return soft_code(v->engine, s->next);
    cpu_raise(&v->cpu, EXC_UD);
    return fault(v);
}

/* An instruction breakpoint in DR0-DR3 (SDM 17.2.5): a fault before the instruction, unless RF. */
const void *helper_break(struct soft_vcpu *v, const struct site *s)
{
    struct cpu *c = &v->cpu;
    uint32_t hit = 0;
    for (unsigned i = 0; i < 4; i++)
        if ((c->dr7 >> (2 * i) & 3) && (c->dr7 >> (16 + 4 * i) & 15) == 0 && c->dr[i] == soft_code_gva(v, c->rip))
            hit |= 1u << i;
    if (hit && !(c->rflags & FL_RF)) {
        cpu_raise(c, EXC_DB);
        c->exc.dr6 = hit;
        return fault(v);
    }
    c->rflags &= ~(uint32_t)FL_RF;
    return soft_code(v->engine, s->next);
}

/* Which exception an x87/SSE/AVX instruction raises in the present CR0/CR4/XCR0 (SDM 2.5, 13.4). */
const void *helper_fpu_check(struct soft_vcpu *v, const struct site *s)
{
    struct cpu *c = &v->cpu;
    enum { K_X87, K_MMX, K_SSE, K_VEX, K_EVEX, K_WAIT } kind = s->arg;
    unsigned vector = 0;
    if (kind == K_WAIT)
        vector = (c->cr0 & (CR0_MP | CR0_TS)) == (CR0_MP | CR0_TS) ? EXC_NM : 0;
    else if (kind == K_X87)
        vector = c->cr0 & (CR0_EM | CR0_TS) ? EXC_NM : 0;
    else if (kind <= K_SSE && ((c->cr0 & CR0_EM) || (kind == K_SSE && !(c->cr4 & CR4_OSFXSR))))
        vector = EXC_UD;
    else if (kind >= K_VEX &&
             (!(c->cr4 & CR4_OSXSAVE) || (c->xcr0 & (kind == K_EVEX ? 0xe6 : 6)) != (kind == K_EVEX ? 0xe6 : 6)))
        vector = EXC_UD;
    else if (c->cr0 & CR0_TS)
        vector = EXC_NM;
    if (!vector)
        return soft_code(v->engine, s->next);
    cpu_raise(c, vector);
    return fault(v);
}

/* A near branch is about to go to helper_ea. */
const void *helper_target(struct soft_vcpu *v, const struct site *s)
{
    struct translation tr;
    uint64_t sp = v->cpu.gpr[RSP] - s->arg;
    if (cpu_canonical(&v->cpu, v->helper_ea))
        return soft_code(v->engine, s->next);
    if (s->arg && !(cpu_canonical(&v->cpu, sp) && cpu_canonical(&v->cpu, sp + s->arg - 1)))
        cpu_raise_error(&v->cpu, EXC_SS, 0);
    else if (s->arg && !v->engine->amd) { /* Intel's CPUs have pushed already, but for rsp */
        uint64_t next = next_pc(v, s);
        if (!cpu_write(&v->cpu, sp, &next, s->arg, user_mode(v)))
            cpu_raise_error(&v->cpu, EXC_GP, 0);
    } else if (!s->arg ||
               (!cpu_walk(&v->cpu, sp, ACCESS_WRITE, user_mode(v), &tr) &&
                ((sp & 4095) + s->arg <= 4096 || !cpu_walk(&v->cpu, (sp | 4095) + 1, ACCESS_WRITE, user_mode(v), &tr))))
        cpu_raise_error(&v->cpu, EXC_GP, 0);
    return fault(v);
}

/*
 * One of several in a row that a spinning vCPU comes by: its host's CPU is for those that can go on.  Who spins for
 * long waits for a vCPU that has no CPU, and makes that wait for longer the more it asks the scheduler for turns.
 */
const void *helper_pause(struct soft_vcpu *v, const struct site *s)
{
    enum { PATIENCE = 32, APART_US = 5, LONG_US = 50, NAP_NS = 20000 };
    const struct timespec nap = {0, NAP_NS};
    const uint64_t now = __builtin_ia32_rdtsc(), us = v->engine->tsc_khz / 1000;
    if (now - v->paused > APART_US * us)
        v->spins_since = now;
    __builtin_ia32_pause();
    if (++v->pauses % PATIENCE == 0) {
        if (now - v->spins_since > LONG_US * us)
            nanosleep(&nap, NULL);
        else
            sched_yield();
    }
    v->paused = __builtin_ia32_rdtsc();
    return finish(v, s);
}

const void *helper_clzero(struct soft_vcpu *v, const struct site *s)
{
    static const uint8_t zero[64];
    return data_write(v, v->helper_ea & ~63ull, zero, sizeof(zero)) ? fault(v) : finish(v, s);
}

/* SDM volume 2: 64 bytes at a place that is a multiple of that. */
const void *helper_movdir64b(struct soft_vcpu *v, const struct site *s)
{
    uint8_t bytes[64];
    uint64_t from = v->helper_ea;
    bool there = !(v->mode & MODE_64) || (cpu_canonical(&v->cpu, from) && cpu_canonical(&v->cpu, from + 63));
    if (v->engine->amd && (v->mode & MODE_ALIGN) && (from & 15) && there) {
        cpu_raise_error(&v->cpu, EXC_AC, 0);
        return fault(v);
    }
    if (data_read(v, from, bytes, sizeof bytes)) /* looked at first, as CPUs are seen to do */
        return fault(v);
    if (v->helper_to & 63) {
        cpu_raise_error(&v->cpu, EXC_GP, 0);
        return fault(v);
    }
    if (data_write_es(v, v->helper_to, bytes, sizeof bytes))
        return fault(v);
    return finish(v, s);
}

const void *helper_bound(struct soft_vcpu *v, const struct site *s)
{
    int32_t limits[2] = {0};
    unsigned size = s->arg2;
    int32_t index = (int32_t)v->cpu.gpr[arg_reg(s)];
    if (size == 2)
        index = (int16_t)index;
    for (unsigned i = 0; i < 2; i++) {
        int32_t value = 0;
        if (data_read(v, linear(v, v->helper_ea + i * size), &value, size))
            return fault(v);
        limits[i] = size == 2 ? (int16_t)value : value;
        if (!v->engine->amd && index < limits[0]) /* Intel's CPUs look no further */
            break;
    }
    if (index < limits[0] || index > limits[1]) {
        cpu_raise(&v->cpu, EXC_BR);
        return fault(v);
    }
    return finish(v, s);
}

/* ARPL: the destination's RPL rises to the source's.  It writes only then, and only then must the segment allow it. */
const void *helper_arpl(struct soft_vcpu *v, const struct site *s)
{
    struct cpu *c = &v->cpu;
    uint16_t to = (uint16_t)c->gpr[arg_reg(s) & 15], from = (uint16_t)c->gpr[s->element & 15];
    if (!soft_protected(v)) {
        cpu_raise(c, EXC_UD);
        return fault(v);
    }
    if (arg_memory(s) && data_read(v, v->helper_ea, &to, 2))
        return fault(v);
    bool raised = (to & 3) < (from & 3);
    if (raised) {
        to = (uint16_t)((to & ~3) | (from & 3));
        if (arg_memory(s) && (c->seg[s->imm].attr & (SEG_CODE | SEG_WRITABLE)) != SEG_WRITABLE)
            return gp0(v);
        if (arg_memory(s) && data_write(v, v->helper_ea, &to, 2))
            return fault(v);
        if (!arg_memory(s))
            set_gpr(v, arg_reg(s), to, 2);
    }
    c->rflags = raised ? c->rflags | FL_ZF : c->rflags & ~(uint32_t)FL_ZF;
    return finish(v, s);
}

/* The decimal adjustments of 32-bit code, and salc. */
const void *helper_decimal(struct soft_vcpu *v, const struct site *s)
{
    struct cpu *c = &v->cpu;
    if (arg_kind(s) == DEC_AAM && !(uint8_t)s->imm) {
        cpu_raise(c, EXC_DE);
        return fault(v);
    }
    uint16_t ax = (uint16_t)c->gpr[RAX];
    c->rflags = decimal_adjust(arg_kind(s), &ax, (uint8_t)s->imm, c->rflags, v->engine->amd);
    set_gpr(v, RAX, ax, 2);
    return finish(v, s);
}
