/*
 * Control transfers that change more than rip, the flags that decide about interrupts, and segments.
 * What they mean is in cpu/transfer.c.
 */
#include "engine/soft/helpers.h"

#include <sched.h>

const void *helper_cli(struct soft_vcpu *v, const struct site *s)
{
    struct cpu *c = &v->cpu;
    if (c->cpl > (c->rflags >> 12 & 3))
        return gp0(v);
    c->rflags &= ~(uint32_t)FL_IF;
    return finish(v, s);
}

const void *helper_sti(struct soft_vcpu *v, const struct site *s)
{
    struct cpu *c = &v->cpu;
    if (c->cpl > (c->rflags >> 12 & 3))
        return gp0(v);
    if (!(c->rflags & FL_IF) && s->arg)
        c->irq_shadow = 1;
    c->rflags |= FL_IF;
    const void *next = soft_site_block(v->engine, s)->dead ? jump_next(v, s) : soft_code(v->engine, s->next);
    if (v->cpu.request)
        atomic_store(&v->poll, 1); /* seen after the next instruction */
    return next;
}

const void *helper_stac(struct soft_vcpu *v, const struct site *s)
{
    struct cpu *c = &v->cpu;
    if (c->cpl) {
        cpu_raise(c, EXC_UD);
        return fault(v);
    }
    c->rflags = arg_kind(s) ? c->rflags | FL_AC : c->rflags & ~(uint32_t)FL_AC;
    soft_update_mode(v);
    return jump_next(v, s);
}

const void *helper_pushf(struct soft_vcpu *v, const struct site *s)
{
    uint64_t value = cpu_pushf_value(&v->cpu);
    if ((v->cpu.rflags & FL_VM) && (v->cpu.rflags & FL_IOPL) != FL_IOPL)
        return gp0(v);
    return data_push(v, &value, arg_kind(s)) ? fault(v) : finish(v, s);
}

const void *helper_popf(struct soft_vcpu *v, const struct site *s)
{
    uint64_t value = 0;
    unsigned size = arg_kind(s);
    bool was = v->mode & MODE_TF;
    if (data_peek(v, 0, &value, size) || cpu_popf(&v->cpu, value, size))
        return fault(v);
    v->cpu.gpr[RSP] = stack_moved_by(v, size);
    soft_update_mode(v);
    v->cpu.rip = next_pc(v, s);
    if (was || v->debug_hits) {
        cpu_raise_debug(&v->cpu, v->debug_hits | (was ? DR6_BS : 0));
        return fault(v);
    }
    return soft_next(v);
}

/* cpu/ has said that the mode changed. */
static const void *transferred(struct soft_vcpu *v, int rc)
{
    if (rc == CPU_SHUTDOWN) {
        v->shutdown = true;
        atomic_store(&v->poll, 1);
        return soft_leave;
    }
    if (rc)
        return fault(v);
    if (v->debug_hits) {
        cpu_raise_debug(&v->cpu, v->debug_hits);
        return fault(v);
    }
    if (v->cpu.cpl == 3 && v->engine->direct && soft_direct_armed(v))
        atomic_store(&v->poll, 1); /* the loop takes it from here */
    return soft_next(v);
}

const void *helper_iret(struct soft_vcpu *v, const struct site *s)
{
    return transferred(v, cpu_iret(&v->cpu, arg_kind(s)));
}

const void *helper_syscall(struct soft_vcpu *v, const struct site *s)
{
    return transferred(v, cpu_syscall(&v->cpu, next_pc(v, s)));
}

const void *helper_sysret(struct soft_vcpu *v, const struct site *s)
{
    return transferred(v, cpu_sysret(&v->cpu, s->arg2 == 8 ? 8 : 4));
}

const void *helper_sysenter(struct soft_vcpu *v, const struct site *s)
{
    return transferred(v, cpu_sysenter(&v->cpu));
}

const void *helper_sysexit(struct soft_vcpu *v, const struct site *s)
{
    return transferred(v, cpu_sysexit(&v->cpu, s->arg2 == 8 ? 8 : 4));
}

const void *helper_far_ret(struct soft_vcpu *v, const struct site *s)
{
    return transferred(v, cpu_far_return(&v->cpu, s->arg2, (unsigned)s->imm & 0xffff));
}

const void *helper_int(struct soft_vcpu *v, const struct site *s)
{
    struct cpu *c = &v->cpu;
    uint64_t next = next_pc(v, s);
    switch (arg_kind(s)) {
    case INT_3:
        return transferred(v, cpu_soft_interrupt(c, EXC_BP, EXC_SOFT_TRAP, next));
    case INT_O:
        if (!(c->rflags & FL_OF))
            return jump_next(v, s);
        return transferred(v, cpu_soft_interrupt(c, EXC_OF, EXC_SOFT_TRAP, next));
    case INT_1:
        return transferred(v, cpu_soft_interrupt(c, EXC_DB, EXC_SOFT_TRAP, next));
    default:
        return transferred(v, cpu_soft_interrupt(c, (uint8_t)s->imm, EXC_SOFT_INT, next));
    }
}

const void *helper_far(struct soft_vcpu *v, const struct site *s)
{
    struct cpu *c = &v->cpu;
    uint16_t selector = (uint16_t)(s->imm >> 32);
    uint64_t offset = (uint32_t)s->imm;
    unsigned size = s->arg2;
    if (arg_memory(s)) {
        uint8_t raw[10] = {0};
        if (data_read(v, v->helper_ea, raw, size + 2))
            return fault(v);
        offset = 0;
        cpu_copy(&offset, raw, size);
        cpu_copy(&selector, raw + size, 2);
    }
    return transferred(v, arg_kind(s) ? cpu_far_call(c, selector, offset, size, next_pc(v, s))
                                      : cpu_far_jump(c, selector, offset, size));
}

const void *helper_hlt(struct soft_vcpu *v, const struct site *s)
{
    if (v->cpu.cpl)
        return gp0(v);
    v->cpu.rip = next_pc(v, s);
    v->cpu.halted = !v->cpu.unhalted;
    v->cpu.unhalted = 0;
    atomic_store(&v->poll, 1);
    return soft_leave;
}

const void *helper_hypercall(struct soft_vcpu *v, const struct site *s)
{
    soft_fpu_park(v);
    if (cpu_hypercall(&v->cpu))
        sched_yield();
    return finish(v, s);
}

/* bit 31 of arg: pop, else from a register or (register 16) memory */
const void *helper_load_segment(struct soft_vcpu *v, const struct site *s)
{
    uint16_t selector = (uint16_t)v->cpu.gpr[arg_reg(s) & 15];
    bool pop = s->arg >> 31;
    if (pop) {
        if (data_peek(v, 0, &selector, 2))
            return fault(v);
    } else if (arg_reg(s) == NO_REG && data_read(v, v->helper_ea, &selector, 2)) {
        return fault(v);
    }
    if (arg_kind(s) == CS) {
        cpu_raise(&v->cpu, EXC_UD);
        return fault(v);
    }
    uint64_t popped = stack_moved_by(v, s->arg >> 16 & 0xff); /* as the old SS is */
    if (cpu_load_segment(&v->cpu, (enum sreg)arg_kind(s), selector))
        return fault(v);
    if (pop)
        v->cpu.gpr[RSP] = popped;
    soft_update_mode(v);
    return arg_kind(s) == SS ? jump_next_shadow(v, s) : jump_next(v, s);
}

/* lfs, lgs, lss, lds, les */
const void *helper_load_far(struct soft_vcpu *v, const struct site *s)
{
    uint8_t raw[10] = {0};
    unsigned size = s->arg2;
    uint16_t selector;
    uint64_t offset = 0;
    if (data_read(v, v->helper_ea, raw, size + 2))
        return fault(v);
    cpu_copy(&offset, raw, size);
    cpu_copy(&selector, raw + size, 2);
    if (cpu_load_segment(&v->cpu, (enum sreg)arg_kind(s), selector))
        return fault(v);
    set_gpr(v, arg_reg(s), offset, size);
    soft_update_mode(v);
    return jump_next(v, s);
}
