/*
 * The system's instructions: ports, CPUID and time, MSRs, control and debug registers, descriptor tables,
 * the TLB.  What they mean is in cpu/.
 */
#include "engine/soft/helpers.h"

/* Breakpoints on ports (SDM vol. 3, 17.2.4). */
static void watch_port(struct soft_vcpu *v, uint16_t port, unsigned n)
{
    const struct cpu *c = &v->cpu;
    if (!(c->cr4 & CR4_DE) || !(c->dr7 & 0xff))
        return;
    for (unsigned i = 0; i < 4; i++) {
        uint64_t length = (c->dr7 >> (18 + 4 * i) & 3) + 1, first = c->dr[i] & ~(length - 1);
        if ((c->dr7 >> (2 * i) & 3) && (c->dr7 >> (16 + 4 * i) & 3) == 2 && port < first + length && first < port + n)
            v->debug_hits |= 1u << i;
    }
}

uint64_t port_read(struct soft_vcpu *v, uint16_t port, unsigned size)
{
    uint64_t start = soft_ticks(v->engine);
    watch_port(v, port, size);
    soft_fpu_park(v);
    uint64_t value = bus_read(v->engine->config.bus, BUS_PORT, port, size);
    soft_ticks_nested(v, TIME_DEVICE, start);
    return value;
}

void port_write(struct soft_vcpu *v, uint16_t port, uint64_t value, unsigned size)
{
    uint64_t start = soft_ticks(v->engine);
    watch_port(v, port, size);
    soft_fpu_park(v);
    bus_write(v->engine->config.bus, BUS_PORT, port, value, size);
    soft_ticks_nested(v, TIME_DEVICE, start);
}

/* Zydis lists al/ax/eax first for in, last for out; the port is an immediate or dx. */
const void *helper_in(struct soft_vcpu *v, const struct site *s)
{
    unsigned size = s->size;
    uint16_t port = s->element ? (uint16_t)v->cpu.gpr[RDX] : (uint8_t)s->imm;
    if (cpu_check_io(&v->cpu, port, size))
        return fault(v);
    set_gpr(v, RAX, port_read(v, port, size), size);
    return finish(v, s);
}

const void *helper_out(struct soft_vcpu *v, const struct site *s)
{
    unsigned size = s->size;
    uint16_t port = s->element ? (uint16_t)v->cpu.gpr[RDX] : (uint8_t)s->imm;
    if (cpu_check_io(&v->cpu, port, size))
        return fault(v);
    uint64_t value = v->cpu.gpr[RAX] & (size == 4 ? UINT32_MAX : size == 2 ? 0xffff : 0xff);
    port_write(v, port, value, size);
    return finish(v, s);
}

const void *helper_cpuid(struct soft_vcpu *v, const struct site *s)
{
    struct cpuid_regs r;
    cpu_cpuid(&v->cpu, (uint32_t)v->cpu.gpr[RAX], (uint32_t)v->cpu.gpr[RCX], &r);
    v->cpu.gpr[RAX] = r.eax;
    v->cpu.gpr[RBX] = r.ebx;
    v->cpu.gpr[RCX] = r.ecx;
    v->cpu.gpr[RDX] = r.edx;
    return finish(v, s);
}

/* 0 rdtsc, 1 rdtscp, 2 rdpid */
const void *helper_rdtsc(struct soft_vcpu *v, const struct site *s)
{
    struct cpu *c = &v->cpu;
    if (arg_kind(s) == 2) {
        set_gpr(v, arg_reg(s), c->tsc_aux, 8);
        return finish(v, s);
    }
    if ((c->cr4 & CR4_TSD) && c->cpl)
        return gp0(v);
    uint64_t tsc = cpu_guest_tsc(c);
    c->gpr[RAX] = (uint32_t)tsc;
    c->gpr[RDX] = tsc >> 32;
    if (arg_kind(s) == 1)
        c->gpr[RCX] = (uint32_t)c->tsc_aux;
    return finish(v, s);
}

const void *helper_msr(struct soft_vcpu *v, const struct site *s)
{
    struct cpu *c = &v->cpu;
    if (c->cpl)
        return gp0(v);
    uint32_t index = (uint32_t)c->gpr[RCX];
    soft_fpu_park(v); /* the local APIC and the time page are behind some */
    if (arg_kind(s)) {
        uint64_t value = (uint32_t)c->gpr[RAX] | c->gpr[RDX] << 32;
        return cpu_wrmsr(c, index, value) ? fault(v) : jump_next(v, s);
    }
    uint64_t value;
    if (cpu_rdmsr(c, index, &value))
        return fault(v);
    c->gpr[RAX] = (uint32_t)value;
    c->gpr[RDX] = value >> 32;
    return finish(v, s);
}

const void *helper_cr_read(struct soft_vcpu *v, const struct site *s)
{
    uint64_t value;
    if (v->cpu.cpl)
        return gp0(v);
    if (arg_kind(s) == 8)
        soft_fpu_park(v);
    if (cpu_read_cr(&v->cpu, arg_kind(s), &value))
        return fault(v);
    set_gpr(v, arg_reg(s), value, v->mode & MODE_64 ? 8 : 4);
    return finish(v, s);
}

const void *helper_cr_write(struct soft_vcpu *v, const struct site *s)
{
    if (v->cpu.cpl)
        return gp0(v);
    uint64_t value = v->cpu.gpr[arg_reg(s)];
    if (!(v->mode & MODE_64))
        value = (uint32_t)value;
    if (arg_kind(s) == 8)
        soft_fpu_park(v);
    if (cpu_write_cr(&v->cpu, arg_kind(s), value))
        return fault(v);
    return jump_next(v, s);
}

const void *helper_dr(struct soft_vcpu *v, const struct site *s)
{
    uint64_t value = v->cpu.gpr[arg_reg(s)];
    if (v->cpu.cpl)
        return gp0(v);
    if (arg_size(s)) {
        if (!(v->mode & MODE_64))
            value = (uint32_t)value;
        return cpu_write_dr(&v->cpu, arg_kind(s), value) ? fault(v) : jump_next(v, s);
    }
    if (cpu_read_dr(&v->cpu, arg_kind(s), &value))
        return fault(v);
    set_gpr(v, arg_reg(s), value, v->mode & MODE_64 ? 8 : 4);
    return finish(v, s);
}

const void *helper_clts_lmsw(struct soft_vcpu *v, const struct site *s)
{
    struct cpu *c = &v->cpu;
    if (c->cpl)
        return gp0(v);
    if (arg_kind(s) == 0)
        return cpu_write_cr(c, 0, c->cr0 & ~(uint64_t)CR0_TS) ? fault(v) : jump_next(v, s);
    uint16_t value = (uint16_t)c->gpr[arg_reg(s) & 15];
    if (arg_memory(s) && data_read(v, v->helper_ea, &value, 2))
        return fault(v);
    return cpu_lmsw(c, value) ? fault(v) : jump_next(v, s);
}

const void *helper_xsetbv(struct soft_vcpu *v, const struct site *s)
{
    struct cpu *c = &v->cpu;
    if (cpu_xsetbv(c, (uint32_t)c->gpr[RCX], (uint32_t)c->gpr[RAX] | c->gpr[RDX] << 32))
        return fault(v);
    return jump_next(v, s);
}

const void *helper_xgetbv(struct soft_vcpu *v, const struct site *s)
{
    struct cpu *c = &v->cpu;
    uint32_t index = (uint32_t)c->gpr[RCX];
    if (!(c->cr4 & CR4_OSXSAVE)) {
        cpu_raise(c, EXC_UD);
        return fault(v);
    }
    if (index > 1)
        return gp0(v);
    uint64_t value = c->xcr0;
    if (index == 1) { /* XINUSE: components not in their initial state */
        uint32_t a, d;
        __asm__ volatile("xgetbv" : "=a"(a), "=d"(d) : "c"(1));
        value &= (uint64_t)d << 32 | a;
    }
    c->gpr[RAX] = (uint32_t)value;
    c->gpr[RDX] = value >> 32;
    return finish(v, s);
}

static bool umip_blocks(const struct cpu *c)
{
    return c->cpl && (c->cr4 & CR4_UMIP);
}

const void *helper_descriptor_table(struct soft_vcpu *v, const struct site *s)
{
    struct cpu *c = &v->cpu;
    unsigned kind = arg_kind(s), wide = v->mode & MODE_64 ? 8 : 4;
    uint8_t raw[10];
    struct descriptor_table *t = kind == SYS_LGDT || kind == SYS_SGDT ? &c->gdtr : &c->idtr;
    if (kind == SYS_SGDT || kind == SYS_SIDT) {
        if (umip_blocks(c))
            return gp0(v);
        cpu_copy(raw, &t->limit, 2);
        cpu_copy(raw + 2, &t->base, wide);
        return data_write(v, v->helper_ea, raw, 2 + wide) ? fault(v) : finish(v, s);
    }
    if (c->cpl)
        return gp0(v);
    if (data_read(v, v->helper_ea, raw, 2 + wide))
        return fault(v);
    struct descriptor_table value = {0};
    cpu_copy(&value.limit, raw, 2);
    cpu_copy(&value.base, raw + 2, wide);
    if (wide == 4 && s->arg2 == 2)
        value.base &= 0xffffff;
    if (wide == 8 && !cpu_canonical(c, value.base))
        return gp0(v);
    *t = value;
    return jump_next(v, s);
}

const void *helper_descriptor_load(struct soft_vcpu *v, const struct site *s)
{
    struct cpu *c = &v->cpu;
    if (c->cpl)
        return gp0(v);
    uint16_t selector = (uint16_t)c->gpr[arg_reg(s) & 15];
    if (arg_memory(s) && data_read(v, v->helper_ea, &selector, 2))
        return fault(v);
    int rc = arg_kind(s) ? cpu_ltr(c, selector) : cpu_lldt(c, selector);
    return rc ? fault(v) : jump_next(v, s);
}

/* sldt, str, smsw and mov from a segment register: a register or 16 bits of memory */
const void *helper_store_system(struct soft_vcpu *v, const struct site *s)
{
    struct cpu *c = &v->cpu;
    uint64_t value;
    switch (arg_kind(s)) {
    case SYS_SLDT:
        value = c->ldtr.selector;
        break;
    case SYS_STR:
        value = c->tr.selector;
        break;
    case SYS_SMSW:
        value = c->cr0;
        break;
    default:
        value = c->seg[s->arg2].selector;
        break;
    }
    if ((arg_kind(s) == SYS_SLDT || arg_kind(s) == SYS_STR) && !soft_protected(v)) {
        cpu_raise(c, EXC_UD);
        return fault(v);
    }
    if (arg_kind(s) != SYS_SELECTOR && umip_blocks(c))
        return gp0(v);
    if (arg_reg(s) == NO_REG)
        return data_write(v, v->helper_ea, &value, 2) ? fault(v) : finish(v, s);
    set_gpr(v, arg_reg(s), value, arg_size(s));
    return finish(v, s);
}

const void *helper_query(struct soft_vcpu *v, const struct site *s)
{
    struct cpu *c = &v->cpu;
    unsigned kind = arg_kind(s);
    bool two = kind == DESC_LAR || kind == DESC_LSL;
    uint16_t selector = (uint16_t)c->gpr[(two ? s->element : arg_reg(s)) & 15];
    if (arg_memory(s) && data_read(v, v->helper_ea, &selector, 2))
        return fault(v);
    bool zf;
    uint64_t value = 0;
    if (cpu_query_descriptor(c, (int)kind, selector, &zf, &value))
        return fault(v);
    c->rflags = zf ? c->rflags | FL_ZF : c->rflags & ~(uint32_t)FL_ZF;
    if (two && zf)
        set_gpr(v, arg_reg(s), value, s->arg2);
    return finish(v, s);
}

const void *helper_swapgs(struct soft_vcpu *v, const struct site *s)
{
    if (cpu_swapgs(&v->cpu))
        return fault(v);
    return jump_next(v, s);
}

/* 0 rdfsbase, 1 rdgsbase, 2 wrfsbase, 3 wrgsbase */
const void *helper_fsgsbase(struct soft_vcpu *v, const struct site *s)
{
    struct cpu *c = &v->cpu;
    if (!(c->cr4 & CR4_FSGSBASE) || !(v->mode & MODE_64)) {
        cpu_raise(c, EXC_UD);
        return fault(v);
    }
    struct segment *seg = &c->seg[arg_kind(s) & 1 ? GS : FS];
    unsigned reg = arg_reg(s), size = s->arg2;
    if (arg_kind(s) < 2) {
        set_gpr(v, reg, seg->base, size);
        return finish(v, s);
    }
    uint64_t value = size == 8 ? c->gpr[reg] : (uint32_t)c->gpr[reg];
    if (!cpu_canonical(c, value))
        return gp0(v);
    seg->base = value;
    return finish(v, s);
}

const void *helper_invlpg(struct soft_vcpu *v, const struct site *s)
{
    if (v->cpu.cpl)
        return gp0(v);
    if (!(v->mode & MODE_64) || cpu_canonical(&v->cpu, v->helper_ea))
        soft_cpu_ops.tlb_flush_page(&v->cpu, linear(v, v->helper_ea));
    return jump_next(v, s);
}

const void *helper_invpcid(struct soft_vcpu *v, const struct site *s)
{
    uint64_t descriptor[2];
    if (v->cpu.cpl)
        return gp0(v);
    if (data_read(v, v->helper_ea, descriptor, 16))
        return fault(v);
    if (cpu_invpcid(&v->cpu, v->cpu.gpr[arg_reg(s) & 15], descriptor))
        return fault(v);
    return jump_next(v, s);
}

const void *helper_wbinvd(struct soft_vcpu *v, const struct site *s)
{
    return v->cpu.cpl ? gp0(v) : finish(v, s);
}
