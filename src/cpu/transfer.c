/*
 * SYSCALL, SYSRET, SYSENTER, SYSEXIT, far jumps, calls and returns, call gates.
 * SDM vol. 3, 5.8 (privilege in transfers), vol. 2 of each; AMD APM vol. 2, 6.1 (fast calls).
 */
#include "cpu/cpu_int.h"

/* --- fast system calls ------------------------------------------------------------------------------ */
static void enter_kernel(struct cpu *cpu, uint16_t cs_selector, uint16_t ss_selector, bool long_mode)
{
    seg_set_flat_code(&cpu->seg[CS], cs_selector & 0xfffc, 0, long_mode);
    seg_set_flat_data(&cpu->seg[SS], ss_selector, 0);
    cpu->cpl = 0;
    cpu_mode_changed(cpu);
}

static void enter_user(struct cpu *cpu, uint16_t cs_selector, uint16_t ss_selector, bool long_mode)
{
    seg_set_flat_code(&cpu->seg[CS], cs_selector | 3, 3, long_mode);
    seg_set_flat_data(&cpu->seg[SS], ss_selector | 3, 3);
    cpu->cpl = 3;
    cpu_mode_changed(cpu);
}

int cpu_syscall(struct cpu *cpu, uint64_t next_rip)
{
    uint16_t selector = (cpu->star >> 32) & 0xfffc;
    bool allowed = cpu_64bit(cpu) || (cpu_is_amd(cpu) && (cpu->cr0 & CR0_PE) && !cpu_v86(cpu));
    if (!(cpu->efer & EFER_SCE) || !allowed)
        return cpu_raise(cpu, EXC_UD);
    cpu->gpr[RCX] = next_rip;
    if (cpu_long_mode(cpu)) {
        cpu->gpr[R11] = cpu->rflags & ~(uint32_t)FL_RF;
        cpu->rip = cpu_64bit(cpu) ? cpu->lstar : cpu->cstar;
        cpu->rflags = (cpu->rflags & ~(uint32_t)(cpu->sfmask | FL_RF)) | FL_ONE;
    } else {
        cpu->rip = (uint32_t)cpu->star;
        cpu->rflags &= ~(uint32_t)(FL_IF | FL_VM | FL_RF);
    }
    enter_kernel(cpu, selector, selector + 8, cpu_long_mode(cpu));
    return CPU_OK;
}

int cpu_sysret(struct cpu *cpu, unsigned size)
{
    uint16_t selector = cpu->star >> 48;
    uint64_t target = size == 8 ? cpu->gpr[RCX] : (uint32_t)cpu->gpr[RCX];
    if (!(cpu->efer & EFER_SCE) || (!cpu_64bit(cpu) && !cpu_is_amd(cpu)))
        return cpu_raise(cpu, EXC_UD);
    if (cpu->cpl || cpu_real_mode(cpu))
        return cpu_raise_error(cpu, EXC_GP, 0);
    /* Intel checks the target here, with the kernel's privilege; AMD loads it and the user-mode
     * fetch faults. */
    if (!cpu_is_amd(cpu) && !cpu_canonical(cpu, target))
        return cpu_raise_error(cpu, EXC_GP, 0);
    cpu->rip = target;
    if (cpu_long_mode(cpu)) {
        cpu->rflags = (cpu->gpr[R11] & 0x3c7fd7) | FL_ONE; /* no RF, no VM */
        if (!cpu_64bit(cpu))
            size = 4;
    } else {
        cpu->rflags |= FL_IF;
        size = 4;
    }
    enter_user(cpu, size == 8 ? selector + 16 : selector, selector + 8, size == 8);
    return CPU_OK;
}

int cpu_sysenter(struct cpu *cpu)
{
    uint16_t selector = cpu->sysenter_cs & 0xfffc;
    bool wide = cpu_long_mode(cpu);
    if (wide && cpu_is_amd(cpu)) /* AMD APM vol. 3: legacy mode only */
        return cpu_raise(cpu, EXC_UD);
    if (cpu_real_mode(cpu) || !selector)
        return cpu_raise_error(cpu, EXC_GP, 0);
    cpu->rflags &= ~(uint32_t)(FL_IF | FL_VM | FL_RF);
    cpu->gpr[RSP] = wide ? cpu->sysenter_esp : (uint32_t)cpu->sysenter_esp;
    cpu->rip = wide ? cpu->sysenter_eip : (uint32_t)cpu->sysenter_eip;
    enter_kernel(cpu, selector, selector + 8, wide);
    return CPU_OK;
}

int cpu_sysexit(struct cpu *cpu, unsigned size)
{
    uint16_t selector = cpu->sysenter_cs & 0xfffc;
    bool wide = size == 8;
    if (cpu_long_mode(cpu) && cpu_is_amd(cpu))
        return cpu_raise(cpu, EXC_UD);
    if (cpu_real_mode(cpu) || cpu_v86(cpu) || cpu->cpl || !selector)
        return cpu_raise_error(cpu, EXC_GP, 0);
    if (wide && (!cpu_canonical(cpu, cpu->gpr[RDX]) || !cpu_canonical(cpu, cpu->gpr[RCX])))
        return cpu_raise_error(cpu, EXC_GP, 0);
    cpu->rip = wide ? cpu->gpr[RDX] : (uint32_t)cpu->gpr[RDX];
    cpu->gpr[RSP] = wide ? cpu->gpr[RCX] : (uint32_t)cpu->gpr[RCX];
    selector += wide ? 32 : 16;
    enter_user(cpu, selector, selector + 8, wide);
    return CPU_OK;
}

/* --- far transfers: what they have in common --------------------------------------------------------- */
static uint64_t truncated(uint64_t value, unsigned size)
{
    return size == 8 ? value : size == 4 ? (uint32_t)value : (uint16_t)value;
}

/* A code segment reached directly, by jump or call: at the current privilege level (SDM 5.8.1). */
static int check_direct(struct cpu *cpu, uint16_t selector, const struct desc *d, struct segment *cs)
{
    uint32_t error = sel_error(selector, 0);
    bool allowed = desc_conforming(d) ? desc_dpl(d) <= cpu->cpl
                                      : (selector & 3u) <= cpu->cpl && desc_dpl(d) == cpu->cpl;
    if (!allowed)
        return cpu_raise_error(cpu, EXC_GP, error);
    if (!desc_present(d))
        return cpu_raise_error(cpu, EXC_NP, error);
    desc_unpack(d, (selector & ~3u) | cpu->cpl, cs);
    cs->attr |= SEG_ACCESSED;
    return CPU_OK;
}

static void commit_code(struct cpu *cpu, const struct segment *cs, uint64_t rip)
{
    cpu->seg[CS] = *cs;
    cpu->rip = rip;
    cpu_mode_changed(cpu);
}

static void commit_real(struct cpu *cpu, uint16_t selector, uint64_t offset)
{
    cpu->seg[CS].selector = selector;
    cpu->seg[CS].base = (uint32_t)selector << 4;
    cpu->rip = offset;
    cpu_mode_changed(cpu);
}

/* --- gates ---------------------------------------------------------------------------------------------- */
struct call_gate {
    uint16_t selector;
    unsigned size; /* of what it pushes: 2, 4, 8 */
    unsigned params;
    uint64_t offset;
    struct desc desc; /* of the target code segment */
};

static int read_call_gate(struct cpu *cpu, uint16_t selector, const struct desc *d, struct call_gate *g)
{
    uint32_t offset_high = 0, last = 0, error = sel_error(selector, 0);
    bool wide = cpu_long_mode(cpu);
    if (desc_dpl(d) < cpu->cpl || desc_dpl(d) < (selector & 3u))
        return cpu_raise_error(cpu, EXC_GP, error);
    if (!desc_present(d))
        return cpu_raise_error(cpu, EXC_NP, error);
    if (wide && desc_read_upper(cpu, selector, d, &offset_high, &last))
        return CPU_FAULT;
    if (last & 0x1f00)
        return cpu_raise_error(cpu, EXC_GP, error);
    g->selector = d->low >> 16;
    g->size = wide ? 8 : desc_type(d) == SYS_CALL ? 4 : 2;
    g->params = wide ? 0 : d->high & 31;
    g->offset = truncated((d->low & 0xffff) | (d->high & 0xffff0000) | (uint64_t)offset_high << 32, g->size);
    error = sel_error(g->selector, 0);
    if (sel_null(g->selector))
        return cpu_raise_error(cpu, EXC_GP, 0);
    if (desc_read(cpu, g->selector, &g->desc, EXC_GP, 0))
        return CPU_FAULT;
    if (!desc_code(&g->desc) || desc_dpl(&g->desc) > cpu->cpl || (wide && (!desc_long(&g->desc) || desc_big(&g->desc))))
        return cpu_raise_error(cpu, EXC_GP, error);
    return desc_present(&g->desc) ? CPU_OK : cpu_raise_error(cpu, EXC_NP, error);
}

static bool is_call_gate(const struct cpu *cpu, const struct desc *d)
{
    return desc_type(d) == SYS_CALL || (desc_type(d) == SYS_CALL16 && !cpu_long_mode(cpu));
}

static bool is_task(const struct cpu *cpu, const struct desc *d)
{
    unsigned type = desc_type(d);
    return !cpu_long_mode(cpu) && (type == SYS_TSS || type == SYS_TSS16 || type == SYS_TASK);
}

/* A TSS or a task gate as the target of a jump or call (SDM 8.3). */
static int transfer_task(struct cpu *cpu, uint16_t selector, const struct desc *d, enum task_cause cause,
                         uint64_t next_rip)
{
    uint32_t error = sel_error(selector, 0);
    if (desc_dpl(d) < cpu->cpl || desc_dpl(d) < (selector & 3u))
        return cpu_raise_error(cpu, EXC_GP, error);
    if (!desc_present(d))
        return cpu_raise_error(cpu, EXC_NP, error);
    if (desc_type(d) == SYS_TASK)
        selector = d->low >> 16;
    return task_switch(cpu, selector, cause, next_rip, 0, NULL);
}

/* --- far jump --------------------------------------------------------------------------------------------- */
static int jump_gate(struct cpu *cpu, uint16_t selector, const struct desc *d)
{
    struct call_gate g;
    struct segment cs;
    if (read_call_gate(cpu, selector, d, &g))
        return CPU_FAULT;
    /* The target's own RPL does not count through a gate. */
    if (check_direct(cpu, g.selector & ~3u, &g.desc, &cs) || code_check_target(cpu, &cs, g.offset, 0) ||
        desc_set_accessed(cpu, &g.desc))
        return CPU_FAULT;
    commit_code(cpu, &cs, g.offset);
    return CPU_OK;
}

/* Bytes of a ModRM operand in memory (SDM vol. 2, tables 2-1 and 2-2), ModRM included. */
static unsigned modrm_length(const uint8_t *p, bool wide_address)
{
    unsigned mod = p[0] >> 6, rm = p[0] & 7;
    if (!wide_address)
        return 1 + (mod == 1 ? 1 : mod == 2 || (mod == 0 && rm == 6) ? 2 : 0);
    unsigned sib = rm == 4, base = sib ? p[1] & 7 : rm;
    return 1 + sib + (mod == 1 ? 1 : mod == 2 || (mod == 0 && base == 5) ? 4 : 0);
}

/* The length of the far jump at rip: JMP ptr16:16/32 (EA) or JMP m16:16/32 (FF /5), with its prefixes. */
static int jump_length(struct cpu *cpu, unsigned *length)
{
    bool big = cpu->seg[CS].attr & SEG_DB, wide_operand = big, wide_address = big;
    uint8_t code[15 + 6] = {0};
    unsigned n = 0;
    for (; n < 15; n++) {
        if (cpu_fetch(cpu, (uint32_t)(cpu->seg[CS].base + cpu->rip + n), &code[n], 1))
            return CPU_FAULT;
        if (code[n] == 0xea || code[n] == 0xff)
            break;
        wide_operand = code[n] == 0x66 ? !big : wide_operand;
        wide_address = code[n] == 0x67 ? !big : wide_address;
    }
    if (n == 15)
        return cpu_raise_error(cpu, EXC_GP, 0);
    for (unsigned i = 1; code[n] == 0xff && i < 3; i++)
        if (cpu_fetch(cpu, (uint32_t)(cpu->seg[CS].base + cpu->rip + n + i), &code[n + i], 1))
            return CPU_FAULT;
    *length = n + 1 + (code[n] == 0xea ? (wide_operand ? 6 : 4) : modrm_length(&code[n + 1], wide_address));
    return CPU_OK;
}

/* A task left by a jump goes on after the jump when somebody switches back to it. */
static int jump_task(struct cpu *cpu, uint16_t selector, const struct desc *d)
{
    unsigned length = 0;
    if (jump_length(cpu, &length))
        return CPU_FAULT;
    return transfer_task(cpu, selector, d, TASK_JUMP, cpu->rip + length);
}

int cpu_far_jump(struct cpu *cpu, uint16_t selector, uint64_t offset, unsigned size)
{
    struct desc d;
    struct segment cs;
    offset = truncated(offset, size);
    if (cpu_real_mode(cpu) || cpu_v86(cpu)) {
        if (offset > cpu->seg[CS].limit)
            return cpu_raise_error(cpu, EXC_GP, 0);
        commit_real(cpu, selector, offset);
        return CPU_OK;
    }
    if (sel_null(selector))
        return cpu_raise_error(cpu, EXC_GP, 0);
    if (desc_read(cpu, selector, &d, EXC_GP, 0))
        return CPU_FAULT;
    if (!desc_segment(&d) && is_call_gate(cpu, &d))
        return jump_gate(cpu, selector, &d);
    if (!desc_segment(&d) && is_task(cpu, &d))
        return jump_task(cpu, selector, &d);
    if (!desc_code(&d))
        return cpu_raise_error(cpu, EXC_GP, sel_error(selector, 0));
    if (check_direct(cpu, selector, &d, &cs) || code_check_target(cpu, &cs, offset, sel_error(selector, 0)) ||
        desc_set_accessed(cpu, &d))
        return CPU_FAULT;
    commit_code(cpu, &cs, offset);
    return CPU_OK;
}

/* --- far call --------------------------------------------------------------------------------------------- */
static int push_return(struct cpu *cpu, unsigned size, uint64_t next_rip)
{
    struct stack stack;
    uint64_t frame[2] = {cpu->seg[CS].selector, next_rip};
    stack_current(cpu, &stack);
    if (stack_push(cpu, &stack, 2, size, frame))
        return CPU_FAULT;
    cpu->gpr[RSP] = stack.rsp;
    return CPU_OK;
}

static int call_gate_inner(struct cpu *cpu, const struct call_gate *g, struct segment *cs, uint64_t next_rip)
{
    struct stack from, to;
    struct desc ss_desc;
    uint64_t params[31], frame[4 + 31];
    unsigned n = 0, cpl = desc_dpl(&g->desc);
    cs->selector = (g->selector & ~3u) | cpl;
    if (tss_stack(cpu, cpl, 0, 0, &to, &ss_desc))
        return CPU_FAULT;
    stack_current(cpu, &from);
    if (g->params && stack_peek(cpu, &from, 0, g->params, g->size, params))
        return CPU_FAULT;
    frame[n++] = cpu->seg[SS].selector;
    frame[n++] = cpu->gpr[RSP];
    for (unsigned i = g->params; i-- > 0;)
        frame[n++] = params[i];
    frame[n++] = cpu->seg[CS].selector;
    frame[n++] = next_rip;
    if (code_check_target(cpu, cs, g->offset, 0) || desc_set_accessed(cpu, &g->desc) ||
        desc_set_accessed(cpu, &ss_desc) || stack_push(cpu, &to, n, g->size, frame))
        return CPU_FAULT;
    cpu->seg[SS] = to.ss;
    cpu->gpr[RSP] = to.rsp;
    cpu->cpl = cpl;
    commit_code(cpu, cs, g->offset);
    return CPU_OK;
}

static int call_gate(struct cpu *cpu, uint16_t selector, const struct desc *d, uint64_t next_rip)
{
    struct call_gate g;
    struct segment cs;
    struct stack stack;
    if (read_call_gate(cpu, selector, d, &g))
        return CPU_FAULT;
    desc_unpack(&g.desc, (g.selector & ~3u) | cpu->cpl, &cs);
    cs.attr |= SEG_ACCESSED;
    if (!desc_conforming(&g.desc) && desc_dpl(&g.desc) < cpu->cpl)
        return call_gate_inner(cpu, &g, &cs, next_rip);
    uint64_t frame[2] = {cpu->seg[CS].selector, next_rip};
    stack_current(cpu, &stack);
    stack_set_mask(&stack, cpu_long_mode(cpu)); /* the target is 64-bit code */
    if (code_check_target(cpu, &cs, g.offset, 0) || desc_set_accessed(cpu, &g.desc) ||
        stack_push(cpu, &stack, 2, g.size, frame))
        return CPU_FAULT;
    cpu->gpr[RSP] = stack.rsp;
    commit_code(cpu, &cs, g.offset);
    return CPU_OK;
}

int cpu_far_call(struct cpu *cpu, uint16_t selector, uint64_t offset, unsigned size, uint64_t next_rip)
{
    struct desc d;
    struct segment cs;
    offset = truncated(offset, size);
    if (cpu_real_mode(cpu) || cpu_v86(cpu)) {
        if (offset > cpu->seg[CS].limit)
            return cpu_raise_error(cpu, EXC_GP, 0);
        if (push_return(cpu, size, next_rip))
            return CPU_FAULT;
        commit_real(cpu, selector, offset);
        return CPU_OK;
    }
    if (sel_null(selector))
        return cpu_raise_error(cpu, EXC_GP, 0);
    if (desc_read(cpu, selector, &d, EXC_GP, 0))
        return CPU_FAULT;
    if (!desc_segment(&d) && is_call_gate(cpu, &d))
        return call_gate(cpu, selector, &d, next_rip);
    if (!desc_segment(&d) && is_task(cpu, &d))
        return transfer_task(cpu, selector, &d, TASK_CALL, next_rip);
    if (!desc_code(&d))
        return cpu_raise_error(cpu, EXC_GP, sel_error(selector, 0));
    if (check_direct(cpu, selector, &d, &cs) || code_check_target(cpu, &cs, offset, sel_error(selector, 0)) ||
        desc_set_accessed(cpu, &d) || push_return(cpu, size, next_rip))
        return CPU_FAULT;
    commit_code(cpu, &cs, offset);
    return CPU_OK;
}

/* --- far return ------------------------------------------------------------------------------------------- */
static int return_real(struct cpu *cpu, unsigned size, unsigned pop_bytes)
{
    struct stack stack;
    uint64_t value[2];
    stack_current(cpu, &stack);
    if (stack_peek(cpu, &stack, 0, 2, size, value))
        return CPU_FAULT;
    if (value[0] > cpu->seg[CS].limit)
        return cpu_raise_error(cpu, EXC_GP, 0);
    cpu->gpr[RSP] = stack_moved(&stack, 2 * size + pop_bytes);
    commit_real(cpu, value[1], value[0]);
    return CPU_OK;
}

/* SS of a return to an outer level; null is good for 64-bit code above ring 3. */
static int return_stack_segment(struct cpu *cpu, uint16_t selector, unsigned cpl, const struct segment *cs,
                                struct segment *ss)
{
    struct desc d;
    bool wide = cpu_long_mode(cpu) && (cs->attr & SEG_L);
    if (sel_null(selector) && wide && cpl != 3 && (selector & 3u) == cpl) {
        *ss = (struct segment){.selector = selector};
        return CPU_OK;
    }
    if (seg_check_stack(cpu, selector, cpl, EXC_GP, 0, ss, &d) || desc_set_accessed(cpu, &d))
        return CPU_FAULT;
    ss->attr |= SEG_ACCESSED;
    return CPU_OK;
}

static int return_outer(struct cpu *cpu, const struct stack *stack, unsigned size, unsigned pop_bytes,
                        const struct segment *cs, uint64_t rip)
{
    struct stack outer;
    uint64_t value[2];
    unsigned cpl = cs->selector & 3;
    if (stack_peek(cpu, stack, 2 * size + pop_bytes, 2, size, value) ||
        return_stack_segment(cpu, value[1], cpl, cs, &outer.ss))
        return CPU_FAULT;
    outer.rsp = value[0];
    stack_set_mask(&outer, cpu_long_mode(cpu) && (cs->attr & SEG_L));
    cpu->seg[SS] = outer.ss;
    cpu->gpr[RSP] = stack_moved(&outer, pop_bytes);
    cpu->cpl = cpl;
    seg_drop_privileged(cpu);
    commit_code(cpu, cs, rip);
    return CPU_OK;
}

int cpu_far_return(struct cpu *cpu, unsigned size, unsigned pop_bytes)
{
    struct stack stack;
    struct desc d;
    struct segment cs;
    uint64_t value[2];
    if (cpu_real_mode(cpu) || cpu_v86(cpu))
        return return_real(cpu, size, pop_bytes);
    stack_current(cpu, &stack);
    if (stack_peek(cpu, &stack, 0, 2, size, value))
        return CPU_FAULT;
    uint16_t selector = value[1];
    unsigned rpl = selector & 3;
    if (sel_null(selector))
        return cpu_raise_error(cpu, EXC_GP, 0);
    if (desc_read(cpu, selector, &d, EXC_GP, 0))
        return CPU_FAULT;
    if (!desc_code(&d) || rpl < cpu->cpl || (desc_conforming(&d) ? desc_dpl(&d) > rpl : desc_dpl(&d) != rpl))
        return cpu_raise_error(cpu, EXC_GP, sel_error(selector, 0));
    if (!desc_present(&d))
        return cpu_raise_error(cpu, EXC_NP, sel_error(selector, 0));
    desc_unpack(&d, selector, &cs);
    cs.attr |= SEG_ACCESSED;
    if (code_check_target(cpu, &cs, value[0], sel_error(selector, 0)) || desc_set_accessed(cpu, &d))
        return CPU_FAULT;
    if (rpl != cpu->cpl)
        return return_outer(cpu, &stack, size, pop_bytes, &cs, value[0]);
    cpu->gpr[RSP] = stack_moved(&stack, 2 * size + pop_bytes);
    commit_code(cpu, &cs, value[0]);
    return CPU_OK;
}
