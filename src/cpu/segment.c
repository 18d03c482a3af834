/*
 * Descriptors and segment registers.  SDM vol. 3, 3.4.5 (descriptors), 5.3-5.6 (limits, types,
 * privilege), vol. 2 (MOV, LAR, LSL, VERR, VERW, LLDT, LTR); AMD APM vol. 2, 4.7-4.11.
 *
 *  high: 31..24 base  23 G  22 D/B  21 L  20 AVL  19..16 limit  15 P  14..13 DPL  12 S  11..8 type  7..0 base
 *  low:  31..16 base  15..0 limit
 */
#include "cpu/cpu_int.h"

/* A linear address of a table: 64 bits only in long mode. */
static uint64_t table_address(const struct cpu *cpu, uint64_t base, uint32_t offset)
{
    uint64_t gva = base + offset;
    return cpu_long_mode(cpu) ? gva : (uint32_t)gva;
}

static int no_descriptor(struct cpu *cpu, unsigned vector, uint16_t selector, uint32_t ext)
{
    return vector ? cpu_raise_error(cpu, vector, sel_error(selector, ext)) : DESC_NONE;
}

int desc_read(struct cpu *cpu, uint16_t selector, struct desc *d, unsigned vector, uint32_t ext)
{
    bool local = selector & 4;
    uint64_t base = local ? cpu->ldtr.base : cpu->gdtr.base, raw;
    uint32_t limit = local ? cpu->ldtr.limit : cpu->gdtr.limit;
    if ((local && !(cpu->ldtr.attr & SEG_P)) || (selector | 7u) > limit)
        return no_descriptor(cpu, vector, selector, ext);
    d->gva = table_address(cpu, base, selector & 0xfff8);
    if (sys_read(cpu, d->gva, &raw, 8))
        return CPU_FAULT;
    d->low = raw;
    d->high = raw >> 32;
    return CPU_OK;
}

int desc_read_upper(struct cpu *cpu, uint16_t selector, const struct desc *d, uint32_t *base_high, uint32_t *last)
{
    uint64_t raw;
    uint32_t limit = selector & 4 ? cpu->ldtr.limit : cpu->gdtr.limit;
    if (((selector & 0xfff8u) + 15) > limit)
        return cpu_raise_error(cpu, EXC_GP, sel_error(selector, 0));
    if (sys_read(cpu, d->gva + 8, &raw, 8))
        return CPU_FAULT;
    *base_high = raw;
    *last = raw >> 32;
    return CPU_OK;
}

int desc_set_accessed(struct cpu *cpu, const struct desc *d)
{
    if (d->high & 0x100)
        return CPU_OK; /* no write: the table may be in read-only pages */
    return sys_or_byte(cpu, d->gva + 5, 1);
}

void desc_unpack(const struct desc *d, uint16_t selector, struct segment *seg)
{
    uint32_t limit = (d->low & 0xffff) | (d->high & 0xf0000);
    seg->selector = selector;
    seg->attr = ((d->high >> 8) & 0xff) | ((d->high >> 12) & 0xf00);
    seg->limit = d->high & 0x800000 ? limit << 12 | 0xfff : limit;
    seg->base = (d->low >> 16) | (d->high & 0xff) << 16 | (d->high & 0xff000000);
}

bool seg_contains(const struct segment *seg, uint32_t offset, uint32_t len)
{
    uint32_t last = offset + len - 1;
    if (last < offset)
        return false;
    if ((seg->attr & (SEG_S | SEG_CODE | SEG_EXPAND_DOWN)) == (SEG_S | SEG_EXPAND_DOWN))
        return offset > seg->limit && last <= (seg->attr & SEG_DB ? 0xffffffff : 0xffff);
    return last <= seg->limit;
}

int cpu_check_segment(struct cpu *cpu, enum sreg reg, uint32_t offset, uint32_t len, bool write)
{
    const struct segment *seg = &cpu->seg[reg];
    bool code = (seg->attr & SEG_CODE) && !cpu_real_mode(cpu), /* there CS is as good as any other */
        allowed = write ? !code && (seg->attr & SEG_WRITABLE) : !code || (seg->attr & SEG_READABLE);
    if (!(seg->attr & SEG_P) || !allowed || !seg_contains(seg, offset, len))
        return cpu_raise_error(cpu, reg == SS ? EXC_SS : EXC_GP, 0);
    return CPU_OK;
}

void seg_set_v86(struct segment *seg, uint16_t selector)
{
    seg->selector = selector;
    seg->base = (uint32_t)selector << 4;
    seg->limit = 0xffff;
    seg->attr = SEG_P | SEG_DPL | SEG_S | SEG_WRITABLE | SEG_ACCESSED;
}

void seg_load_real(struct cpu *cpu, enum sreg reg, uint16_t selector)
{
    struct segment *seg = &cpu->seg[reg];
    if (cpu_v86(cpu)) {
        seg_set_v86(seg, selector);
        return;
    }
    /* Limit and D/B stay what protected mode left ("unreal" mode); what was null becomes usable. */
    seg->selector = selector;
    seg->base = (uint32_t)selector << 4;
    if (!(seg->attr & SEG_P))
        seg->limit = 0xffff;
    seg->attr = (seg->attr & (SEG_DB | SEG_G)) | SEG_P | SEG_S | SEG_WRITABLE | SEG_ACCESSED;
}

static void seg_set_null(struct segment *seg, uint16_t selector)
{
    /* The base is cleared too: CPUID announces it (8000_0021 EAX[6]), Intel always does so. */
    *seg = (struct segment){.selector = selector};
}

/* SDM vol. 2, IRET and RET, "RETURN-TO-OUTER-PRIVILEGE-LEVEL". */
void seg_drop_privileged(struct cpu *cpu)
{
    static const uint8_t data_registers[] = {ES, DS, FS, GS};
    for (unsigned i = 0; i < 4; i++) {
        struct segment *seg = &cpu->seg[data_registers[i]];
        bool conforming = (seg->attr & (SEG_CODE | SEG_CONFORMING)) == (SEG_CODE | SEG_CONFORMING);
        /* A null register stays as it is, with the base that WRMSR gave it. */
        if ((seg->attr & SEG_P) && !conforming && (unsigned)(seg->attr & SEG_DPL) >> SEG_DPL_SHIFT < cpu->cpl)
            seg_set_null(seg, 0);
    }
}

int seg_check_stack(struct cpu *cpu, uint16_t selector, unsigned cpl, unsigned vector, uint32_t ext,
                    struct segment *out, struct desc *d)
{
    uint32_t error = sel_error(selector, ext);
    if (sel_null(selector))
        return cpu_raise_error(cpu, vector, ext);
    if (desc_read(cpu, selector, d, vector, ext))
        return CPU_FAULT;
    if ((selector & 3) != cpl || desc_dpl(d) != cpl || !desc_writable_data(d))
        return cpu_raise_error(cpu, vector, error);
    if (!desc_present(d))
        return cpu_raise_error(cpu, EXC_SS, error);
    desc_unpack(d, selector, out);
    return CPU_OK;
}

void seg_set_flat_code(struct segment *seg, uint16_t selector, unsigned dpl, bool long_mode)
{
    *seg = (struct segment){.selector = selector,
                            .limit = 0xffffffff,
                            .attr = SEG_P | SEG_S | SEG_CODE | SEG_READABLE | SEG_ACCESSED | SEG_G |
                                    dpl << SEG_DPL_SHIFT | (long_mode ? SEG_L : SEG_DB)};
}

void seg_set_flat_data(struct segment *seg, uint16_t selector, unsigned dpl)
{
    *seg = (struct segment){.selector = selector,
                            .limit = 0xffffffff,
                            .attr = SEG_P | SEG_S | SEG_WRITABLE | SEG_ACCESSED | SEG_G | SEG_DB |
                                    dpl << SEG_DPL_SHIFT};
}

int code_check_target(struct cpu *cpu, const struct segment *cs, uint64_t offset, uint32_t selector_error)
{
    bool wide = cpu_long_mode(cpu) && (cs->attr & SEG_L);
    if (wide && (cs->attr & SEG_DB))
        return cpu_raise_error(cpu, EXC_GP, selector_error);
    if (wide ? !cpu_canonical(cpu, offset) : offset > cs->limit)
        return cpu_raise_error(cpu, EXC_GP, 0);
    return CPU_OK;
}

/* SDM vol. 2, MOV, "Loading a segment register while in protected mode", SS. */
static int load_stack_segment(struct cpu *cpu, uint16_t selector, struct segment *out)
{
    struct desc d;
    if (sel_null(selector)) {
        if (!cpu_64bit(cpu) || cpu->cpl == 3 || (selector & 3) != cpu->cpl)
            return cpu_raise_error(cpu, EXC_GP, 0);
        seg_set_null(out, selector);
        return CPU_OK;
    }
    if (seg_check_stack(cpu, selector, cpu->cpl, EXC_GP, 0, out, &d) || desc_set_accessed(cpu, &d))
        return CPU_FAULT;
    out->attr |= SEG_ACCESSED;
    return CPU_OK;
}

static int load_data_segment(struct cpu *cpu, uint16_t selector, struct segment *out)
{
    struct desc d;
    uint32_t error = sel_error(selector, 0);
    if (sel_null(selector)) {
        seg_set_null(out, selector);
        return CPU_OK;
    }
    if (desc_read(cpu, selector, &d, EXC_GP, 0))
        return CPU_FAULT;
    if (!desc_segment(&d) || (desc_code(&d) && !(d.high & 0x200)))
        return cpu_raise_error(cpu, EXC_GP, error);
    bool conforming = desc_code(&d) && desc_conforming(&d);
    if (!conforming && ((selector & 3u) > desc_dpl(&d) || cpu->cpl > desc_dpl(&d)))
        return cpu_raise_error(cpu, EXC_GP, error);
    if (!desc_present(&d))
        return cpu_raise_error(cpu, EXC_NP, error);
    if (desc_set_accessed(cpu, &d))
        return CPU_FAULT;
    desc_unpack(&d, selector, out);
    out->attr |= SEG_ACCESSED;
    return CPU_OK;
}

int cpu_load_segment(struct cpu *cpu, enum sreg reg, uint16_t selector)
{
    struct segment seg;
    if (cpu_real_mode(cpu) || cpu_v86(cpu)) {
        seg_load_real(cpu, reg, selector);
    } else {
        if (reg == SS ? load_stack_segment(cpu, selector, &seg) : load_data_segment(cpu, selector, &seg))
            return CPU_FAULT;
        cpu->seg[reg] = seg;
    }
    if (reg == SS)
        cpu->irq_shadow = 1; /* so that the stack pointer can follow (SDM 6.8.3) */
    return CPU_OK;
}

/* --- LDTR and TR -------------------------------------------------------------------------------- */
/* Reads a system descriptor for LLDT/LTR; long mode has 16-byte ones whose second type must be 0. */
static int read_system(struct cpu *cpu, uint16_t selector, struct desc *d, struct segment *out)
{
    uint32_t base_high = 0, last = 0;
    if (selector & 4)
        return cpu_raise_error(cpu, EXC_GP, sel_error(selector, 0));
    if (desc_read(cpu, selector, d, EXC_GP, 0))
        return CPU_FAULT;
    desc_unpack(d, selector, out);
    if (!cpu_long_mode(cpu) || desc_segment(d))
        return CPU_OK;
    if (desc_read_upper(cpu, selector, d, &base_high, &last))
        return CPU_FAULT;
    out->base |= (uint64_t)base_high << 32;
    if ((last & 0x1f00) || !cpu_canonical(cpu, out->base))
        return cpu_raise_error(cpu, EXC_GP, sel_error(selector, 0));
    return CPU_OK;
}

static int need_kernel_protected(struct cpu *cpu)
{
    if (cpu_real_mode(cpu) || cpu_v86(cpu))
        return cpu_raise(cpu, EXC_UD);
    return cpu->cpl ? cpu_raise_error(cpu, EXC_GP, 0) : CPU_OK;
}

int cpu_lldt(struct cpu *cpu, uint16_t selector)
{
    struct desc d;
    struct segment seg;
    if (need_kernel_protected(cpu))
        return CPU_FAULT;
    if (sel_null(selector)) {
        seg_set_null(&cpu->ldtr, selector);
        return CPU_OK;
    }
    if (read_system(cpu, selector, &d, &seg))
        return CPU_FAULT;
    if (desc_segment(&d) || desc_type(&d) != SYS_LDT)
        return cpu_raise_error(cpu, EXC_GP, sel_error(selector, 0));
    if (!desc_present(&d))
        return cpu_raise_error(cpu, EXC_NP, sel_error(selector, 0));
    cpu->ldtr = seg;
    return CPU_OK;
}

int cpu_ltr(struct cpu *cpu, uint16_t selector)
{
    struct desc d;
    struct segment seg;
    if (need_kernel_protected(cpu))
        return CPU_FAULT;
    if (sel_null(selector))
        return cpu_raise_error(cpu, EXC_GP, 0);
    if (read_system(cpu, selector, &d, &seg))
        return CPU_FAULT;
    bool available = desc_type(&d) == SYS_TSS || (desc_type(&d) == SYS_TSS16 && !cpu_long_mode(cpu));
    if (desc_segment(&d) || !available)
        return cpu_raise_error(cpu, EXC_GP, sel_error(selector, 0));
    if (!desc_present(&d))
        return cpu_raise_error(cpu, EXC_NP, sel_error(selector, 0));
    if (sys_or_byte(cpu, d.gva + 5, 2)) /* busy */
        return CPU_FAULT;
    seg.attr |= 2;
    cpu->tr = seg;
    return CPU_OK;
}

/* --- LAR, LSL, VERR, VERW ----------------------------------------------------------------------- */
enum { OF_LEGACY_LAR = 1, OF_LEGACY_LSL = 2, OF_LONG_LAR = 4, OF_LONG_LSL = 8 };
/* Which system types LAR and LSL accept (SDM vol. 2, tables 3-53 and 3-56). */
static const uint8_t system_types[16] = {
    [SYS_TSS16] = OF_LEGACY_LAR | OF_LEGACY_LSL,
    [SYS_LDT] = OF_LEGACY_LAR | OF_LEGACY_LSL | OF_LONG_LAR | OF_LONG_LSL,
    [SYS_TSS16_BUSY] = OF_LEGACY_LAR | OF_LEGACY_LSL,
    [SYS_CALL16] = OF_LEGACY_LAR,
    [SYS_TASK] = OF_LEGACY_LAR,
    [SYS_TSS] = OF_LEGACY_LAR | OF_LEGACY_LSL | OF_LONG_LAR | OF_LONG_LSL,
    [SYS_TSS_BUSY] = OF_LEGACY_LAR | OF_LEGACY_LSL | OF_LONG_LAR | OF_LONG_LSL,
    [SYS_CALL] = OF_LEGACY_LAR | OF_LONG_LAR,
};

static bool query_allows(const struct cpu *cpu, int what, const struct desc *d, uint16_t selector)
{
    bool conforming = desc_code(d) && desc_conforming(d);
    if (!desc_segment(d)) {
        unsigned bit = what == DESC_LAR ? OF_LEGACY_LAR : what == DESC_LSL ? OF_LEGACY_LSL : 0;
        if (cpu_long_mode(cpu))
            bit <<= 2;
        if (!(system_types[desc_type(d)] & bit))
            return false;
    }
    if (!conforming && (cpu->cpl > desc_dpl(d) || (selector & 3u) > desc_dpl(d)))
        return false;
    if (what == DESC_VERR)
        return !desc_code(d) || (d->high & 0x200);
    return what != DESC_VERW || desc_writable_data(d);
}

int cpu_query_descriptor(struct cpu *cpu, int what, uint16_t selector, bool *zf, uint64_t *value)
{
    struct desc d;
    struct segment seg;
    *zf = false;
    if (cpu_real_mode(cpu) || cpu_v86(cpu))
        return cpu_raise(cpu, EXC_UD);
    if (sel_null(selector))
        return CPU_OK;
    int r = desc_read(cpu, selector, &d, 0, 0);
    if (r)
        return r == DESC_NONE ? CPU_OK : CPU_FAULT;
    if (!query_allows(cpu, what, &d, selector))
        return CPU_OK;
    desc_unpack(&d, selector, &seg);
    if (what == DESC_LAR)
        *value = d.high & 0x00ffff00;
    if (what == DESC_LSL)
        *value = seg.limit;
    *zf = true;
    return CPU_OK;
}

int cpu_swapgs(struct cpu *cpu)
{
    if (!cpu_64bit(cpu))
        return cpu_raise(cpu, EXC_UD);
    if (cpu->cpl)
        return cpu_raise_error(cpu, EXC_GP, 0);
    uint64_t base = cpu->seg[GS].base;
    cpu->seg[GS].base = cpu->kernel_gs_base;
    cpu->kernel_gs_base = base;
    return CPU_OK;
}
