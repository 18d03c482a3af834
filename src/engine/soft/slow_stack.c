/*
 * The stack's instructions done in C: where segments are not flat, or the stack is addressed by sp alone, and those
 * that are never worth more.  A stack's width is that of SS, whatever the code's.
 */
#include "engine/soft/helpers.h"

/* A near branch is complete but for the look at where it leads. */
static bool bad_target(struct soft_vcpu *v, uint64_t target)
{
    return target > v->cpu.seg[CS].limit && cpu_raise_error(&v->cpu, EXC_GP, 0);
}

static const void *branch_to(struct soft_vcpu *v, uint64_t target)
{
    v->cpu.rip = target;
    return soft_step_done(v);
}

static uint64_t cut(uint64_t value, unsigned size)
{
    return size == 2 ? (uint16_t)value : size == 4 ? (uint32_t)value : value;
}

/* The operand of a push or a call: in memory its linear address is in helper_ea. */
static int operand_value(struct soft_vcpu *v, const struct site *s, uint64_t *value)
{
    unsigned size = arg_size(s);
    *value = 0;
    switch (arg_kind(s)) {
    case STACK_IMMEDIATE:
        *value = s->imm;
        return 0;
    case STACK_REGISTER:
        *value = cut(v->cpu.gpr[arg_reg(s)], size);
        return 0;
    case STACK_SELECTOR:
        *value = v->cpu.seg[arg_reg(s)].selector;
        return 0;
    default:
        return data_read(v, v->helper_ea, value, size);
    }
}

const void *helper_push(struct soft_vcpu *v, const struct site *s)
{
    uint64_t value;
    /* Intel: a push of a selector in 32 bits stores only its 16 (SDM vol. 2, PUSH) */
    bool part = arg_kind(s) == STACK_SELECTOR && arg_size(s) == 4 && !v->engine->amd;
    if (operand_value(v, s, &value) || data_push_part(v, &value, arg_size(s), part ? 2 : arg_size(s)))
        return fault(v);
    return finish(v, s);
}

/* Into memory: arg2 is the segment, whose limit is looked at when the stack has been read. */
const void *helper_pop(struct soft_vcpu *v, const struct site *s)
{
    uint64_t value = 0;
    unsigned size = arg_size(s);
    if (data_peek(v, 0, &value, size))
        return fault(v);
    if (arg_kind(s) == STACK_MEMORY &&
        (segment_fault(v, s->arg2, (uint32_t)(v->helper_ea - v->cpu.seg[s->arg2].base), size, true) ||
         data_write(v, v->helper_ea, &value, size)))
        return fault(v);
    v->cpu.gpr[RSP] = stack_moved_by(v, size);
    if (arg_kind(s) == STACK_REGISTER)
        set_gpr(v, arg_reg(s), value, size); /* of sp: it wins over the increment */
    return finish(v, s);
}

const void *helper_call(struct soft_vcpu *v, const struct site *s)
{
    uint64_t target, next = next_pc(v, s), rsp = v->cpu.gpr[RSP];
    if (operand_value(v, s, &target) || (v->engine->amd && bad_target(v, target)) || data_push(v, &next, arg_size(s)))
        return fault(v);
    if (bad_target(v, target)) { /* Intel's CPUs have pushed already, but for the stack pointer */
        v->cpu.gpr[RSP] = rsp;
        return fault(v);
    }
    return branch_to(v, target);
}

const void *helper_ret(struct soft_vcpu *v, const struct site *s)
{
    uint64_t target = 0;
    if (data_peek(v, 0, &target, arg_size(s)) || bad_target(v, target))
        return fault(v);
    v->cpu.gpr[RSP] = stack_moved_by(v, arg_size(s) + (int64_t)s->imm);
    return branch_to(v, target);
}

/* loop, loope, loopne, and jcxz by its two widths: the counter stays where the target is refused. */
const void *helper_loop(struct soft_vcpu *v, const struct site *s)
{
    struct cpu *c = &v->cpu;
    unsigned width = arg_size(s);
    uint64_t rcx = c->gpr[RCX], count = cut(rcx - (arg_kind(s) != LOOP_JCXZ), width);
    bool zero = c->rflags & FL_ZF, taken = arg_kind(s) == LOOP_JCXZ ? !count : count;
    taken &= !(arg_kind(s) == LOOP_E && !zero) && !(arg_kind(s) == LOOP_NE && zero);
    if (taken && bad_target(v, s->imm))
        return fault(v);
    set_gpr(v, RCX, arg_kind(s) == LOOP_JCXZ ? rcx : count, width == 2 ? 2 : 8);
    return branch_to(v, taken ? s->imm : next_pc(v, s));
}

const void *helper_leave(struct soft_vcpu *v, const struct site *s)
{
    struct cpu *c = &v->cpu;
    uint64_t value = 0, frame = stack_offset(v, c->gpr[RBP]);
    if (data_stack(v, frame, &value, arg_size(s)))
        return fault(v);
    c->gpr[RSP] = stack_at(v, frame + arg_size(s));
    set_gpr(v, RBP, value, arg_size(s));
    return finish(v, s);
}

/* The last check of ENTER: could its frame's end be written? */
static int enter_end(struct soft_vcpu *v, uint64_t sp, unsigned size)
{
    struct cpu *c = &v->cpu;
    struct translation tr;
    if ((v->mode & MODE_64) && !cpu_canonical(c, sp))
        return cpu_raise_error(c, EXC_SS, 0);
    if (segment_fault(v, SS, sp, size, true))
        return CPU_FAULT;
    if (misaligned(v, sp, size))
        return cpu_raise_error(c, EXC_AC, 0);
    return cpu_walk(c, linear(v, sp + (v->mode & MODE_64 ? 0 : c->seg[SS].base)), ACCESS_WRITE, user_mode(v), &tr);
}

const void *helper_enter(struct soft_vcpu *v, const struct site *s)
{
    struct cpu *c = &v->cpu;
    unsigned size = s->arg2, level = s->element & 31;
    uint64_t rsp = c->gpr[RSP], value = c->gpr[RBP];
    if (data_push(v, &value, size))
        return fault(v);
    uint64_t frame = linear(v, rsp - size); /* all of it, even where the stack is addressed by sp */
    bool failed = false;
    for (unsigned i = 1; i < level && !failed; i++) {
        uint64_t up = 0;
        failed = data_stack(v, c->gpr[RBP] - i * size, &up, size) || data_push(v, &up, size);
    }
    failed = failed || (level && data_push(v, &frame, size));
    uint64_t sp = c->gpr[RSP] - (uint16_t)s->imm;
    if (failed || enter_end(v, stack_offset(v, sp), size)) {
        c->gpr[RSP] = rsp;
        return fault(v);
    }
    c->gpr[RSP] = stack_at(v, sp);
    set_gpr(v, RBP, frame, size);
    return finish(v, s);
}

/* One by one, as CPUs are seen to do: what came before a fault is done, but for the stack pointer. */
static const void *pop_all(struct soft_vcpu *v, const struct site *s, unsigned size)
{
    for (unsigned i = 0; i < 8; i++) {
        uint64_t value = 0;
        if (data_peek(v, i * size, &value, size))
            return fault(v);
        if (7 - i != RSP)
            set_gpr(v, 7 - i, value, size);
    }
    v->cpu.gpr[RSP] = stack_moved_by(v, 8 * size);
    return finish(v, s);
}

const void *helper_pusha(struct soft_vcpu *v, const struct site *s)
{
    struct cpu *c = &v->cpu;
    unsigned size = s->arg & 0x7f;
    uint64_t before = c->gpr[RSP];
    if (s->arg & 0x80)
        return pop_all(v, s, size);
    for (unsigned i = 0; i < 8; i++)
        if (data_push(v, i == RSP ? &before : &c->gpr[i], size)) {
            c->gpr[RSP] = before;
            return fault(v);
        }
    return finish(v, s);
}
