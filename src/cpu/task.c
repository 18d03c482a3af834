/*
 * Hardware task switching: SDM vol. 3, chapter 8 (8.2.1 the TSS, 8.3 switching, table 8-1 checks,
 * table 8-2 busy and NT flags).  Legacy protected mode only.
 *
 *      32-bit TSS: link 0, ESP0.. 4, CR3 1c, EIP 20, EFLAGS 24, EAX..EDI 28, ES..GS 48, LDT 60, T 64, map 66
 *      16-bit TSS: link 0, SP0.. 2, IP e, FLAGS 10, AX..DI 12, ES..DS 22, LDT 2a
 */
#include "cpu/cpu_int.h"

/* Where things are in the two formats. */
struct layout {
    uint32_t ip, flags, gpr, sreg, ldt, size;
    unsigned width, n_sregs, sreg_step;
};
static const struct layout layouts[2] = {
    {.ip = 0x0e,
     .flags = 0x10,
     .gpr = 0x12,
     .sreg = 0x22,
     .ldt = 0x2a,
     .size = 0x2c,
     .width = 2,
     .n_sregs = 4,
     .sreg_step = 2},
    {.ip = 0x20,
     .flags = 0x24,
     .gpr = 0x28,
     .sreg = 0x48,
     .ldt = 0x60,
     .size = 0x68,
     .width = 4,
     .n_sregs = 6,
     .sreg_step = 4},
};

static const struct layout *layout_of(unsigned type)
{
    return &layouts[(type & 8) != 0];
}

static uint32_t get(const uint8_t *p, unsigned size)
{
    return p[0] | p[1] << 8 | (size == 4 ? p[2] << 16 | (uint32_t)p[3] << 24 : 0);
}

static void put(uint8_t *p, uint32_t value, unsigned size)
{
    for (unsigned i = 0; i < size; i++)
        p[i] = value >> (8 * i);
}

/* The TSS to switch to, checked (table 8-1). */
static int read_tss(struct cpu *cpu, uint16_t selector, enum task_cause cause, uint32_t ext, struct desc *d,
                    struct segment *tss)
{
    unsigned vector = cause == TASK_IRET ? EXC_TS : EXC_GP;
    uint32_t error = sel_error(selector, ext);
    if (sel_null(selector) || (selector & 4))
        return cpu_raise_error(cpu, vector, error);
    if (desc_read(cpu, selector, d, vector, ext))
        return CPU_FAULT;
    unsigned type = desc_type(d), wanted = cause == TASK_IRET ? 2 : 0;
    if (desc_segment(d) || (type & 5) != 1 || (type & 2) != wanted)
        return cpu_raise_error(cpu, vector, error);
    if (!desc_present(d))
        return cpu_raise_error(cpu, EXC_NP, error);
    desc_unpack(d, selector, tss);
    if (tss->limit < layout_of(type)->size - 1)
        return cpu_raise_error(cpu, EXC_TS, error);
    return CPU_OK;
}

static int save_old(struct cpu *cpu, enum task_cause cause, uint64_t rip)
{
    const struct layout *l = layout_of(cpu->tr.attr & 15);
    static const uint8_t order[] = {ES, CS, SS, DS, FS, GS};
    uint8_t image[0x68];
    uint32_t rflags = cpu->rflags;
    if (cause == TASK_IRET)
        rflags &= ~(uint32_t)FL_NT;
    if (sys_read(cpu, cpu->tr.base, image, l->size))
        return CPU_FAULT;
    put(image + l->ip, rip, l->width);
    put(image + l->flags, rflags, l->width);
    for (unsigned i = 0; i < 8; i++)
        put(image + l->gpr + i * l->width, cpu->gpr[i], l->width);
    for (unsigned i = 0; i < l->n_sregs; i++)
        put(image + l->sreg + i * l->sreg_step, cpu->seg[order[i]].selector, 2);
    return sys_write(cpu, cpu->tr.base + l->ip, image + l->ip, l->ldt - l->ip);
}

/* Busy bits and the back link (table 8-2). */
static int mark_tasks(struct cpu *cpu, enum task_cause cause, const struct desc *d, const struct segment *tss)
{
    uint64_t old = cpu->gdtr.base + (cpu->tr.selector & 0xfff8) + 5;
    uint16_t link = cpu->tr.selector;
    if ((cause == TASK_JUMP || cause == TASK_IRET) && sys_and_byte(cpu, (uint32_t)old, (uint8_t)~2u))
        return CPU_FAULT;
    if (cause != TASK_IRET && sys_or_byte(cpu, d->gva + 5, 2))
        return CPU_FAULT;
    if ((cause == TASK_CALL || cause == TASK_GATE_EVENT) && sys_write(cpu, (uint32_t)tss->base, &link, 2))
        return CPU_FAULT;
    return CPU_OK;
}

static int load_ldt(struct cpu *cpu, uint16_t selector)
{
    struct desc d;
    cpu->ldtr = (struct segment){.selector = selector};
    if (sel_null(selector))
        return CPU_OK;
    if (selector & 4)
        return cpu_raise_error(cpu, EXC_TS, sel_error(selector, 0));
    if (desc_read(cpu, selector, &d, EXC_TS, 0))
        return CPU_FAULT;
    if (desc_segment(&d) || desc_type(&d) != SYS_LDT || !desc_present(&d))
        return cpu_raise_error(cpu, EXC_TS, sel_error(selector, 0));
    desc_unpack(&d, selector, &cpu->ldtr);
    return CPU_OK;
}

/* In the new task: faults are the new task's. */
static int load_code(struct cpu *cpu, uint16_t selector)
{
    struct desc d;
    unsigned cpl = selector & 3;
    uint32_t error = sel_error(selector, 0);
    cpu->seg[CS] = (struct segment){.selector = selector};
    cpu->cpl = cpl;
    if (sel_null(selector))
        return cpu_raise_error(cpu, EXC_TS, error);
    if (desc_read(cpu, selector, &d, EXC_TS, 0))
        return CPU_FAULT;
    if (!desc_code(&d) || (desc_conforming(&d) ? desc_dpl(&d) > cpl : desc_dpl(&d) != cpl))
        return cpu_raise_error(cpu, EXC_TS, error);
    if (!desc_present(&d))
        return cpu_raise_error(cpu, EXC_NP, error);
    if (desc_set_accessed(cpu, &d))
        return CPU_FAULT;
    desc_unpack(&d, selector, &cpu->seg[CS]);
    cpu->seg[CS].attr |= SEG_ACCESSED;
    return CPU_OK;
}

static int load_stack(struct cpu *cpu, uint16_t selector)
{
    struct desc d;
    if (seg_check_stack(cpu, selector, cpu->cpl, EXC_TS, 0, &cpu->seg[SS], &d))
        return CPU_FAULT;
    return desc_set_accessed(cpu, &d);
}

static int load_segments(struct cpu *cpu, const uint16_t *selector)
{
    static const uint8_t data_registers[] = {ES, DS, FS, GS};
    for (unsigned i = 0; i < 6; i++) {
        if (cpu_v86(cpu))
            seg_set_v86(&cpu->seg[i], selector[i]);
        else
            cpu->seg[i] = (struct segment){.selector = selector[i]};
    }
    if (cpu_v86(cpu)) {
        cpu->cpl = 3;
        return CPU_OK;
    }
    if (load_code(cpu, selector[CS]) || load_stack(cpu, selector[SS]))
        return CPU_FAULT;
    for (unsigned i = 0; i < 4; i++) {
        unsigned reg = data_registers[i];
        if (cpu_load_segment(cpu, reg, selector[reg])) {
            if (cpu->exc.vector == EXC_GP)
                cpu->exc.vector = EXC_TS; /* table 8-1: invalid TSS, not general protection */
            return CPU_FAULT;
        }
    }
    return CPU_OK;
}

/* From here on the new task runs: a fault is reported in it. */
static int load_new(struct cpu *cpu, enum task_cause cause, const uint8_t *image, const struct layout *l)
{
    uint16_t selector[6] = {0};
    uint32_t rflags = get(image + l->flags, l->width);
    bool wide = l->width == 4;
    if (wide && (cpu->cr0 & CR0_PG)) {
        cpu->cr3 = get(image + 0x1c, 4);
        if (cpu->ops && cpu->ops->address_space_changed)
            cpu->ops->address_space_changed(cpu, false);
    }
    cpu->rip = get(image + l->ip, l->width);
    if (cause == TASK_CALL || cause == TASK_GATE_EVENT)
        rflags |= FL_NT;
    cpu->rflags = (rflags & 0x3f7fd7) | FL_ONE;
    for (unsigned i = 0; i < 8; i++)
        cpu->gpr[i] = get(image + l->gpr + i * l->width, l->width) | (wide ? 0 : 0xffff0000u);
    for (unsigned i = 0; i < l->n_sregs; i++)
        selector[i] = get(image + l->sreg + i * l->sreg_step, 2);
    cpu->dr7 &= ~0x55ull; /* local breakpoints end with the task */
    cpu->cr0 |= CR0_TS;
    int r = load_ldt(cpu, get(image + l->ldt, 2));
    if (!r)
        r = load_segments(cpu, selector);
    cpu_mode_changed(cpu);
    return r;
}

static int push_error(struct cpu *cpu, unsigned width, uint32_t error)
{
    struct stack stack;
    uint64_t value = error;
    stack_current(cpu, &stack);
    if (stack_push(cpu, &stack, 1, width, &value))
        return CPU_FAULT;
    cpu->gpr[RSP] = stack.rsp;
    return CPU_OK;
}

int task_switch(struct cpu *cpu, uint16_t selector, enum task_cause cause, uint64_t next_rip, uint32_t ext,
                const uint32_t *error_code)
{
    struct desc d;
    struct segment tss;
    uint8_t image[0x68];
    if (cause == TASK_IRET && sys_read(cpu, cpu->tr.base, &selector, 2))
        return CPU_FAULT;
    if (read_tss(cpu, selector, cause, ext, &d, &tss))
        return CPU_FAULT;
    const struct layout *l = layout_of(desc_type(&d));
    if (sys_read(cpu, tss.base, image, l->size) || save_old(cpu, cause, next_rip) || mark_tasks(cpu, cause, &d, &tss))
        return CPU_FAULT;
    tss.attr |= 2;
    cpu->tr = tss;
    cpu->irq_shadow = 0;
    if (load_new(cpu, cause, image, l))
        return CPU_FAULT;
    if (error_code && push_error(cpu, l->width, *error_code))
        return CPU_FAULT;
    if (l->width == 4 && (image[0x64] & 1)) /* the T flag: a debug trap in the new task */
        return cpu_raise_debug(cpu, 1u << 15);
    return cpu->rip > cpu->seg[CS].limit ? cpu_raise_error(cpu, EXC_GP, 0) : CPU_OK;
}
