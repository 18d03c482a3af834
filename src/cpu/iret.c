/* IRET in every mode, POPF and PUSHF: SDM vol. 2 (IRET, POPF), vol. 3 6.14.3, 20.3; AMD APM vol. 2, 8.9. */
#include "cpu/cpu_int.h"

/* What a return pops, and the segments it will load. */
struct frame {
    uint64_t rip, rflags, rsp;
    uint16_t cs_selector, ss_selector;
    struct segment cs, ss;
    struct desc cs_desc, ss_desc;
    bool new_stack; /* RSP and SS are popped too */
    unsigned pops;
};

enum { FL_ALL = FL_ARITH | FL_DF | FL_TF | FL_IF | FL_IOPL | FL_NT | FL_RF | FL_VM | FL_AC | FL_VIF | FL_VIP | FL_ID };

uint32_t cpu_flags_mask(const struct cpu *cpu, unsigned size)
{
    uint32_t mask = FL_ARITH | FL_DF | FL_TF | FL_NT;
    if (size != 2)
        mask |= FL_AC | FL_ID;
    if (cpu_v86(cpu))
        return mask | FL_IF; /* IOPL is 3 here, or #GP came first */
    if (cpu->cpl <= cpu_iopl(cpu))
        mask |= FL_IF;
    if (cpu->cpl == 0)
        mask |= FL_IOPL;
    return mask;
}

void cpu_set_flags(struct cpu *cpu, uint32_t value, uint32_t mask)
{
    uint32_t before = cpu->rflags;
    cpu->rflags = (before & ~mask) | (value & mask) | FL_ONE;
    if ((before ^ cpu->rflags) & (FL_TF | FL_AC | FL_VM))
        cpu_mode_changed(cpu);
}

uint64_t cpu_pushf_value(const struct cpu *cpu)
{
    return cpu->rflags & ~(uint32_t)(FL_RF | FL_VM);
}

int cpu_popf(struct cpu *cpu, uint64_t value, unsigned size)
{
    if (cpu_v86(cpu) && cpu_iopl(cpu) < 3)
        return cpu_raise_error(cpu, EXC_GP, 0);
    /* RF is cleared by every POPF but the 16-bit one; VIF, VIP and VM stay (VIF and VIP are cleared
     * at CPL 0, SDM vol. 2 table 4-16). */
    uint32_t mask = cpu_flags_mask(cpu, size);
    if (size != 2)
        mask |= FL_RF | (cpu->cpl == 0 ? FL_VIF | FL_VIP : 0);
    cpu_set_flags(cpu, value & ~(uint64_t)(FL_RF | FL_VIF | FL_VIP), mask);
    return CPU_OK;
}

/* --- real and virtual-8086 mode -------------------------------------------------------------------- */
static int iret_real(struct cpu *cpu, unsigned size)
{
    struct stack stack;
    uint64_t value[3];
    if (cpu_v86(cpu) && cpu_iopl(cpu) < 3)
        return cpu_raise_error(cpu, EXC_GP, 0);
    stack_current(cpu, &stack);
    if (stack_peek(cpu, &stack, 0, 3, size, value))
        return CPU_FAULT;
    if (value[0] > cpu->seg[CS].limit)
        return cpu_raise_error(cpu, EXC_GP, 0);
    cpu->rip = value[0];
    cpu->gpr[RSP] = stack_moved(&stack, 3 * size);
    cpu->seg[CS].selector = value[1];
    cpu->seg[CS].base = (value[1] & 0xffff) << 4;
    cpu_set_flags(cpu, value[2], cpu_flags_mask(cpu, size) | (size == 2 ? 0 : FL_RF));
    cpu_mode_changed(cpu);
    return CPU_OK;
}

/* From CPL 0 of legacy protected mode: EIP CS EFLAGS ESP SS ES DS FS GS. */
static int iret_to_v86(struct cpu *cpu, const struct stack *stack, uint32_t rflags)
{
    static const uint8_t order[] = {SS, ES, DS, FS, GS};
    uint64_t value[9];
    if (stack_peek(cpu, stack, 0, 9, 4, value))
        return CPU_FAULT;
    if (value[0] > 0xffff)
        return cpu_raise_error(cpu, EXC_GP, 0);
    cpu->rip = value[0];
    cpu->rflags = (rflags & FL_ALL) | FL_ONE;
    cpu->gpr[RSP] = value[3];
    seg_set_v86(&cpu->seg[CS], value[1]);
    for (unsigned i = 0; i < 5; i++)
        seg_set_v86(&cpu->seg[order[i]], value[4 + i]);
    cpu->cpl = 3;
    cpu_mode_changed(cpu);
    return CPU_OK;
}

/* --- protected and long mode ------------------------------------------------------------------------ */
static int check_return_code(struct cpu *cpu, struct frame *f)
{
    uint32_t error = sel_error(f->cs_selector, 0);
    unsigned rpl = f->cs_selector & 3;
    if (sel_null(f->cs_selector))
        return cpu_raise_error(cpu, EXC_GP, 0);
    if (desc_read(cpu, f->cs_selector, &f->cs_desc, EXC_GP, 0))
        return CPU_FAULT;
    unsigned dpl = desc_dpl(&f->cs_desc);
    if (!desc_code(&f->cs_desc) || rpl < cpu->cpl || (desc_conforming(&f->cs_desc) ? dpl > rpl : dpl != rpl))
        return cpu_raise_error(cpu, EXC_GP, error);
    if (!desc_present(&f->cs_desc))
        return cpu_raise_error(cpu, EXC_NP, error);
    desc_unpack(&f->cs_desc, f->cs_selector, &f->cs);
    f->cs.attr |= SEG_ACCESSED;
    return CPU_OK;
}

/* A null SS is good for 64-bit code above ring 3 (SDM vol. 2, IRET). */
static int check_return_stack(struct cpu *cpu, struct frame *f)
{
    unsigned rpl = f->cs_selector & 3;
    bool wide = cpu_long_mode(cpu) && (f->cs.attr & SEG_L);
    if (sel_null(f->ss_selector) && wide && rpl != 3 && (f->ss_selector & 3u) == rpl) {
        f->ss = (struct segment){.selector = f->ss_selector};
        f->ss_desc.high = 0x100;
        return CPU_OK;
    }
    if (seg_check_stack(cpu, f->ss_selector, rpl, EXC_GP, 0, &f->ss, &f->ss_desc))
        return CPU_FAULT;
    f->ss.attr |= SEG_ACCESSED;
    return CPU_OK;
}

static int read_frame(struct cpu *cpu, const struct stack *stack, unsigned size, struct frame *f)
{
    uint64_t value[5];
    f->new_stack = cpu_64bit(cpu);
    f->pops = f->new_stack ? 5 : 3;
    if (stack_peek(cpu, stack, 0, f->pops, size, value))
        return CPU_FAULT;
    if (!f->new_stack && (value[1] & 3) > cpu->cpl) {
        f->new_stack = true;
        f->pops = 5;
        if (stack_peek(cpu, stack, 0, 5, size, value))
            return CPU_FAULT;
    }
    f->rip = value[0];
    f->cs_selector = value[1];
    f->rflags = value[2];
    f->rsp = f->new_stack ? value[3] : stack_moved(stack, 3 * size);
    f->ss_selector = f->new_stack ? value[4] : 0;
    return CPU_OK;
}

static void commit_return(struct cpu *cpu, const struct stack *stack, unsigned size, const struct frame *f)
{
    uint32_t mask = cpu_flags_mask(cpu, size); /* by the old CPL */
    if (size != 2)
        mask |= FL_RF;
    if (size != 2 && cpu->cpl == 0)
        mask |= FL_VIF | FL_VIP;
    unsigned old_cpl = cpu->cpl;
    cpu->rip = f->rip;
    cpu->rflags = (cpu->rflags & ~mask) | ((uint32_t)f->rflags & mask) | FL_ONE;
    cpu->seg[CS] = f->cs;
    cpu->cpl = f->cs_selector & 3;
    if (f->new_stack) {
        /* A 16-bit stack keeps the upper bits of ESP (the "espfix" leak, as on the processor). */
        bool small = !(cpu_long_mode(cpu) && (f->cs.attr & SEG_L)) && !(f->ss.attr & SEG_DB);
        cpu->seg[SS] = f->ss;
        cpu->gpr[RSP] = small && size != 8 ? (stack->rsp & ~0xffffull) | (f->rsp & 0xffff) : f->rsp;
    } else {
        cpu->gpr[RSP] = f->rsp;
    }
    if (cpu->cpl != old_cpl)
        seg_drop_privileged(cpu);
    cpu_mode_changed(cpu);
}

static int iret_protected(struct cpu *cpu, unsigned size)
{
    struct stack stack;
    struct frame f;
    stack_current(cpu, &stack);
    if (cpu->rflags & FL_NT) {
        if (cpu_long_mode(cpu))
            return cpu_raise_error(cpu, EXC_GP, 0);
        /* The left task goes on after this IRET: one byte, and a prefix when its size is not CS's. */
        unsigned length = 1 + ((size == 4) != !!(cpu->seg[CS].attr & SEG_DB));
        return task_switch(cpu, 0, TASK_IRET, cpu->rip + length, 0, NULL);
    }
    if (read_frame(cpu, &stack, size, &f))
        return CPU_FAULT;
    if (size == 4 && (f.rflags & FL_VM) && cpu->cpl == 0 && !cpu_long_mode(cpu))
        return iret_to_v86(cpu, &stack, f.rflags);
    if (check_return_code(cpu, &f) || (f.new_stack && check_return_stack(cpu, &f)) ||
        code_check_target(cpu, &f.cs, f.rip, sel_error(f.cs_selector, 0)))
        return CPU_FAULT;
    if (desc_set_accessed(cpu, &f.cs_desc) || (f.new_stack && desc_set_accessed(cpu, &f.ss_desc)))
        return CPU_FAULT;
    commit_return(cpu, &stack, size, &f);
    return CPU_OK;
}

int cpu_iret(struct cpu *cpu, unsigned size)
{
    cpu->nmi_blocked = 0; /* even when it faults (SDM 6.7.1) */
    int r = cpu_real_mode(cpu) || cpu_v86(cpu) ? iret_real(cpu, size) : iret_protected(cpu, size);
    if (r == CPU_OK)
        cpu->irq_shadow = 0;
    return r;
}
