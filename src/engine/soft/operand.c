/*
 * Memory operands of instructions done in C: every check that the CPU makes of an address, then the access,
 * through the TLB when it has the page.
 */
#include "engine/soft/helpers.h"

/* Breakpoints on data that the access meets. */
void watch_data(struct soft_vcpu *v, uint64_t gva, unsigned n, bool write)
{
    if (v->n_watch)
        v->debug_hits |= soft_watch_hits(v, gva, n, write);
}

/* What is wrong with an operand of n bytes at gva: `vector` (#GP or #SS) where it cannot be, or #AC.  Intel's CPUs
 * look at the alignment before they look where it ends in 64-bit code. */
int address_fault(struct soft_vcpu *v, unsigned segment, unsigned vector, uint64_t gva, unsigned n)
{
    bool code64 = v->mode & MODE_64, begins = !code64 || cpu_canonical(&v->cpu, gva);
    bool ends = code64 ? cpu_canonical(&v->cpu, gva + n - 1) : !wraps(v, segment, gva - v->cpu.seg[segment].base, n);
    if (begins && (ends || (code64 && !v->engine->amd)) && misaligned(v, gva, n))
        return cpu_raise_error(&v->cpu, EXC_AC, 0);
    return begins && ends ? 0 : cpu_raise_error(&v->cpu, vector, 0);
}

/* The operand at the present site. */
static int bad_address(struct soft_vcpu *v, uint64_t gva, unsigned n)
{
    const struct site *s = &v->engine->sites[v->site];
    unsigned vector = s->access & SITE_STACK ? EXC_SS : EXC_GP;
    if (soft_bad_offset(v, s, gva))
        return cpu_raise_error(&v->cpu, vector, 0);
    return address_fault(v, s->segment, vector, gva, n);
}

int data_read(struct soft_vcpu *v, uint64_t gva, void *buf, unsigned n)
{
    const uint8_t *hit = tlb_hit(v, linear(v, gva), n, 0);
    if (hit && !(v->mode & MODE_ALIGN)) {
        cpu_copy(buf, hit, n);
        return 0;
    }
    if (bad_address(v, gva, n))
        return CPU_FAULT;
    watch_data(v, linear(v, gva), n, false);
    return cpu_read(&v->cpu, linear(v, gva), buf, n, user_mode(v));
}

int data_write(struct soft_vcpu *v, uint64_t gva, const void *buf, unsigned n)
{
    uint8_t *hit = tlb_hit(v, linear(v, gva), n, 1);
    if (hit && !(v->mode & MODE_ALIGN)) {
        cpu_copy(hit, buf, n);
        return 0;
    }
    if (bad_address(v, gva, n))
        return CPU_FAULT;
    watch_data(v, linear(v, gva), n, true);
    return cpu_write(&v->cpu, linear(v, gva), buf, n, user_mode(v));
}

/* Through ES, whatever segment the site's operand has. */
int data_write_es(struct soft_vcpu *v, uint64_t gva, const void *buf, unsigned n)
{
    if (segment_fault(v, ES, gva - v->cpu.seg[ES].base, n, true) || address_fault(v, ES, EXC_GP, gva, n))
        return CPU_FAULT;
    watch_data(v, linear(v, gva), n, true);
    return cpu_write(&v->cpu, linear(v, gva), buf, n, user_mode(v));
}

/* Every check of a stack access at `sp`; the linear address in *at. */
static int stack_address(struct soft_vcpu *v, uint64_t sp, unsigned size, bool write, uint64_t *at)
{
    if (segment_fault(v, SS, sp, size, write))
        return CPU_FAULT;
    uint64_t base = v->mode & MODE_64 ? 0 : v->cpu.seg[SS].base;
    if (address_fault(v, SS, EXC_SS, sp + base, size))
        return CPU_FAULT;
    *at = linear(v, sp + base);
    watch_data(v, *at, size, write);
    return 0;
}

int data_push_part(struct soft_vcpu *v, const void *value, unsigned size, unsigned stored)
{
    uint64_t sp = stack_offset(v, v->cpu.gpr[RSP] - size), at;
    if (stack_address(v, sp, stored, true, &at) || cpu_write(&v->cpu, at, value, stored, user_mode(v)))
        return CPU_FAULT;
    v->cpu.gpr[RSP] = stack_at(v, sp);
    return 0;
}

int data_push(struct soft_vcpu *v, const void *value, unsigned size)
{
    return data_push_part(v, value, size, size);
}

int data_stack(struct soft_vcpu *v, uint64_t sp, void *value, unsigned size)
{
    uint64_t at;
    if (stack_address(v, stack_offset(v, sp), size, false, &at))
        return CPU_FAULT;
    return cpu_read(&v->cpu, at, value, size, user_mode(v));
}

int data_peek(struct soft_vcpu *v, unsigned offset, void *value, unsigned size)
{
    return data_stack(v, v->cpu.gpr[RSP] + offset, value, size);
}
