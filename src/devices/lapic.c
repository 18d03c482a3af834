#include "devices/lapic_int.h"

#include <errno.h>
#include <stdlib.h>

/* --- priorities and the vCPU's view ------------------------------------------------------------- */

static int highest_bit(const uint32_t bits[8])
{
    for (int i = 7; i >= 0; i--)
        if (bits[i])
            return i * 32 + 31 - __builtin_clz(bits[i]);
    return -1;
}

static bool bit_get(const uint32_t bits[8], unsigned n)
{
    return bits[n / 32] >> (n % 32) & 1;
}

static void bit_set(uint32_t bits[8], unsigned n, bool value)
{
    uint32_t bit = 1u << (n % 32);
    bits[n / 32] = value ? bits[n / 32] | bit : bits[n / 32] & ~bit;
}

/* SDM 11.8.3.1 */
unsigned lapic_ppr(const struct lapic_regs *r)
{
    int service = highest_bit(r->isr);
    unsigned isrv = service < 0 ? 0 : (unsigned)service;
    return (r->tpr & 0xf0) >= (isrv & 0xf0) ? r->tpr : isrv & 0xf0;
}

/* Does the 8259 interrupt this CPU: through LINT0 as ExtINT, straight when the APIC is off, or
 * because an ExtINT message came? */
static bool extint_due(const struct lapic *a)
{
    const struct lapic_regs *r = a->regs;
    if (!a->set->extint)
        return false;
    if (!lapic_enabled(r))
        return a->index == 0 && a->set->saved.extint_level;
    uint32_t lint0 = r->lvt[LVT_LINT0];
    bool wired = !(lint0 & LVT_MASKED) && (lint0 >> 8 & 7) == DM_EXTINT;
    return r->extint_edge || (wired && a->set->saved.extint_level);
}

/* The vector to be taken next from IRR, or -1. */
static int fixed_due(const struct lapic_regs *r)
{
    if (!lapic_enabled(r))
        return -1;
    int vector = highest_bit(r->irr);
    return vector >= 0 && (unsigned)vector >> 4 > lapic_ppr(r) >> 4 ? vector : -1;
}

void lapic_request(struct lapic *a, uint32_t request)
{
    if (!a->cpu)
        return;
    /* A bit that is set already was followed by a kick, or is about to be. */
    if ((atomic_fetch_or(&a->cpu->request, request) & request) != request)
        a->kick(a->kick_opaque, a->index);
}

void lapic_update(struct lapic *a)
{
    /* what is in service may have ended unseen: then its vCPU has to look */
    bool due = extint_due(a) || fixed_due(a->regs) >= 0 || (a->eoi_by_memory && highest_bit(a->regs->irr) >= 0);
    atomic_store(&a->deliverable, due);
    if (due)
        lapic_request(a, REQ_IRQ);
}

void lapic_error(struct lapic *a, uint32_t esr_bit)
{
    a->regs->esr_pending |= esr_bit;
    if ((a->regs->lvt[LVT_ERROR] & 0xff) >= 16) /* else the error interrupt would itself be an error */
        lapic_local(a, LVT_ERROR);
}

void lapic_accept(struct lapic *a, unsigned vector, bool level)
{
    struct lapic_regs *r = a->regs;
    if (!lapic_enabled(r) || !(r->svr & SVR_ENABLE))
        return;
    if (vector < 16) {
        lapic_error(a, ESR_RECEIVE_VECTOR);
        return;
    }
    bit_set(r->tmr, vector, level);
    if (bit_get(r->irr, vector))
        return;
    bit_set(r->irr, vector, true);
    lapic_update(a);
}

void lapic_local(struct lapic *a, enum lvt entry)
{
    uint32_t lvt = a->regs->lvt[entry];
    if ((lvt & LVT_MASKED) || !lapic_enabled(a->regs))
        return;
    /* The timer and error entries have no delivery mode: bits 10-8 are never set there. */
    switch (lvt >> 8 & 7) {
    case DM_FIXED:
        lapic_accept(a, lvt & 0xff, false);
        break;
    case DM_NMI:
        lapic_request(a, REQ_NMI);
        break;
    case DM_INIT:
        lapic_init_reset(a);
        lapic_request(a, REQ_INIT);
        break;
    default: /* ExtINT is a level, looked at by extint_due */
        break;
    }
}

void lapic_end_of_interrupt(struct lapic *a)
{
    struct lapic_regs *r = a->regs;
    int vector = highest_bit(r->isr);
    if (vector < 0)
        return;
    bit_set(r->isr, (unsigned)vector, false);
    if (bit_get(r->tmr, (unsigned)vector) && a->set->eoi)
        a->set->eoi(a->set->eoi_opaque, (unsigned)vector);
    lapic_update(a);
}

/* --- registers, shared by both access methods ------------------------------------------------------ */

static const uint32_t lvt_writable[LVT_COUNT] = {
    [LVT_TIMER] = 0x700ff, [LVT_THERMAL] = 0x107ff, [LVT_PERF] = 0x107ff,
    [LVT_LINT0] = 0x1a7ff, [LVT_LINT1] = 0x1a7ff,   [LVT_ERROR] = 0x100ff,
};

static uint32_t x2apic_ldr(uint32_t id)
{
    return (id >> 4) << 16 | 1u << (id & 15);
}

/* False: there is no such register. */
static bool register_read(struct lapic *a, unsigned reg, uint32_t *value)
{
    const struct lapic_regs *r = a->regs;
    if (reg >= APIC_ISR && reg < APIC_ESR) {
        const uint32_t *bank = reg < APIC_TMR ? r->isr : reg < APIC_IRR ? r->tmr : r->irr;
        *value = bank[reg >> 4 & 7];
        return true;
    }
    if (reg >= APIC_LVT_TIMER && reg <= APIC_LVT_LAST) {
        *value = r->lvt[(reg - APIC_LVT_TIMER) >> 4];
        return true;
    }
    switch (reg) {
    case APIC_ID:
        *value = lapic_x2apic(r) ? r->id : r->id << 24;
        break;
    case APIC_VERSION:
        *value = 0x14 | (LVT_COUNT - 1) << 16;
        break;
    case APIC_TPR:
        *value = r->tpr;
        break;
    case APIC_APR:
    case APIC_PPR:
        *value = lapic_ppr(r);
        break;
    case APIC_EOI:
        *value = 0;
        break;
    case APIC_LDR:
        *value = r->ldr;
        break;
    case APIC_DFR:
        *value = r->dfr;
        break;
    case APIC_SVR:
        *value = r->svr;
        break;
    case APIC_ESR:
        *value = r->esr;
        break;
    case APIC_ICR:
        *value = (uint32_t)r->icr;
        break;
    case APIC_ICR_HIGH:
        *value = (uint32_t)(r->icr >> 32);
        break;
    case APIC_INITIAL_COUNT:
        *value = r->initial_count;
        break;
    case APIC_CURRENT_COUNT:
        *value = lapic_timer_count(a);
        break;
    case APIC_DIVIDE:
        *value = r->divide;
        break;
    default:
        return false;
    }
    return true;
}

static void lvt_write(struct lapic *a, enum lvt entry, uint32_t value)
{
    struct lapic_regs *r = a->regs;
    value &= lvt_writable[entry];
    if (!(r->svr & SVR_ENABLE)) /* SDM 11.4.7.2: the mask bits are held set */
        value |= LVT_MASKED;
    if (entry == LVT_TIMER)
        lapic_timer_set_lvt(a, value);
    else
        r->lvt[entry] = value;
    if (entry == LVT_LINT0)
        lapic_update(a);
}

static void svr_write(struct lapic *a, uint32_t value)
{
    struct lapic_regs *r = a->regs;
    r->svr = value & 0x1ff;
    if (r->svr & SVR_ENABLE)
        return;
    for (unsigned i = 0; i < LVT_COUNT; i++)
        r->lvt[i] |= LVT_MASKED;
    lapic_update(a);
}

static void tpr_write(struct lapic *a, uint32_t value)
{
    __atomic_store_n(&a->regs->tpr, value & 0xff, __ATOMIC_RELAXED);
    lapic_update(a);
}

/* False: there is no such register, or it cannot be written. */
static bool register_write(struct lapic *a, unsigned reg, uint32_t value)
{
    struct lapic_regs *r = a->regs;
    if (reg >= APIC_LVT_TIMER && reg <= APIC_LVT_LAST) {
        lvt_write(a, (reg - APIC_LVT_TIMER) >> 4, value);
        return true;
    }
    switch (reg) {
    case APIC_TPR:
        tpr_write(a, value);
        break;
    case APIC_EOI:
        lapic_end_of_interrupt(a);
        break;
    case APIC_LDR:
        r->ldr = value & 0xff000000;
        break;
    case APIC_DFR:
        r->dfr = value | 0x0fffffff;
        break;
    case APIC_SVR:
        svr_write(a, value);
        break;
    case APIC_ESR:
        r->esr = r->esr_pending;
        r->esr_pending = 0;
        break;
    case APIC_INITIAL_COUNT:
        lapic_timer_load(a, value);
        break;
    case APIC_DIVIDE:
        lapic_timer_set_divide(a, value);
        break;
    default:
        return false;
    }
    return true;
}

/* --- xAPIC: memory-mapped ------------------------------------------------------------------------- */

static struct lapic *mmio_target(struct lapic_set *s)
{
    unsigned i = bus_initiator(s->bus);
    struct lapic *a = i < s->n_cpus ? &s->apic[i] : NULL;
    if (!a || !lapic_enabled(a->regs) || lapic_x2apic(a->regs))
        return NULL;
    lapic_pv_look(a);
    return a;
}

static uint64_t mmio_read(void *opaque, uint64_t offset, unsigned size)
{
    struct lapic *a = mmio_target(opaque);
    uint32_t value = 0;
    if (!a)
        return UINT64_MAX;
    if ((offset & 15) >= 4) /* registers are the first four bytes of each sixteen */
        return 0;
    if (!register_read(a, offset & ~15u, &value))
        lapic_error(a, ESR_REGISTER);
    return value >> ((offset & 3) * 8);
}

static void mmio_write(void *opaque, uint64_t offset, uint64_t value, unsigned size)
{
    struct lapic *a = mmio_target(opaque);
    if (!a || (offset & 15) || size < 4) /* SDM 11.4.1: 32-bit aligned accesses only */
        return;
    struct lapic_regs *r = a->regs;
    uint32_t v = (uint32_t)value;
    if (offset == APIC_ICR_HIGH) {
        r->icr = (uint32_t)r->icr | (uint64_t)(v & 0xff000000) << 32;
    } else if (offset == APIC_ICR) {
        r->icr = (r->icr & ~0xffffffffull) | (v & 0xccfff);
        lapic_send_icr(a, (r->icr >> 56) << 32 | (uint32_t)r->icr);
    } else if (offset != APIC_ID && !register_write(a, (unsigned)offset, v)) {
        lapic_error(a, ESR_REGISTER); /* the ID is fixed here, as on recent processors */
    }
}

static const struct bus_ops lapic_ops = {mmio_read, mmio_write};

/* --- x2APIC: MSRs (SDM 11.12.1) ------------------------------------------------------------------- */

/* Which bits a write may set; registers not listed are read-only or absent. */
static bool x2apic_writable(unsigned reg, uint64_t *allowed)
{
    if (reg >= APIC_LVT_TIMER && reg <= APIC_LVT_LAST) {
        *allowed = lvt_writable[(reg - APIC_LVT_TIMER) >> 4] | 1u << 12 | 1u << 14; /* read-only bits */
        return true;
    }
    switch (reg) {
    case APIC_TPR:
        *allowed = 0xff;
        return true;
    case APIC_EOI:
    case APIC_ESR:
        *allowed = 0;
        return true;
    case APIC_SVR:
        *allowed = 0x1ff;
        return true;
    case APIC_ICR:
        *allowed = 0xffffffff000ccfffull | 1u << 12;
        return true;
    case APIC_INITIAL_COUNT:
        *allowed = 0xffffffff;
        return true;
    case APIC_DIVIDE:
        *allowed = 0xb;
        return true;
    case APIC_SELF_IPI:
        *allowed = 0xff;
        return true;
    default:
        return false;
    }
}

static bool x2apic_read(struct lapic *a, unsigned reg, uint64_t *value)
{
    uint32_t low;
    if (reg == APIC_ICR) {
        *value = a->regs->icr;
        return true;
    }
    if (reg == APIC_APR || reg == APIC_EOI || reg == APIC_DFR || reg == APIC_ICR_HIGH || !register_read(a, reg, &low))
        return false;
    *value = low;
    return true;
}

static bool x2apic_write(struct lapic *a, unsigned reg, uint64_t value)
{
    uint64_t allowed;
    if (!x2apic_writable(reg, &allowed) || (value & ~allowed))
        return false;
    if (reg == APIC_ICR) {
        a->regs->icr = value & ~(1ull << 12);
        lapic_send_icr(a, value);
    } else if (reg == APIC_SELF_IPI) {
        if (value < 16)
            lapic_error(a, ESR_SEND_VECTOR);
        else
            lapic_accept(a, (unsigned)value, false);
    } else {
        return register_write(a, reg, (uint32_t)value);
    }
    return true;
}

/* --- IA32_APIC_BASE (SDM 11.4.3, 11.12.5) ----------------------------------------------------------- */

static void registers_reset(struct lapic *a)
{
    a->eoi_by_memory = false;
    struct lapic_regs *r = a->regs;
    uint64_t base = r->base;
    *r = (struct lapic_regs){.base = base, .id = a->index, .dfr = 0xffffffff, .svr = 0xff};
    if (lapic_x2apic(r))
        r->ldr = x2apic_ldr(r->id);
    for (unsigned i = 0; i < LVT_COUNT; i++)
        r->lvt[i] = LVT_MASKED;
    loop_timer_cancel(a->set->loop, &a->timer);
}

void lapic_init_reset(struct lapic *a)
{
    registers_reset(a);
    lapic_update(a);
}

static bool base_write(struct lapic *a, uint64_t value)
{
    struct lapic_regs *r = a->regs;
    uint64_t mode = value & (BASE_ENABLE | BASE_X2APIC), old = r->base & (BASE_ENABLE | BASE_X2APIC);
    /* The page stays at its default place: no system moves it, and one bus serves all vCPUs. */
    if ((value & ~(uint64_t)(BASE_BSP | BASE_ENABLE | BASE_X2APIC)) != LAPIC_BASE)
        return false;
    /* x2APIC is entered from xAPIC and left by switching off, by no other way. */
    if (mode == BASE_X2APIC || (mode == BASE_ENABLE && (old & BASE_X2APIC)) || ((mode & BASE_X2APIC) && !old))
        return false;
    r->base = value;
    if (!mode && old)
        registers_reset(a);
    if ((mode & BASE_X2APIC) && !(old & BASE_X2APIC))
        r->ldr = x2apic_ldr(r->id);
    lapic_update(a);
    return true;
}

/* --- struct cpu_irq_ops: called by vCPU threads without the bus lock ------------------------------- */

static bool op_pending(void *opaque)
{
    struct lapic *a = opaque;
    return atomic_load(&a->deliverable);
}

static int op_acknowledge(void *opaque)
{
    struct lapic *a = opaque;
    int vector;
    pthread_mutex_lock(&a->set->bus->lock);
    lapic_pv_look(a);
    if (extint_due(a)) {
        a->regs->extint_edge = 0;
        vector = a->set->extint(a->set->extint_opaque);
    } else {
        vector = fixed_due(a->regs);
        if (vector >= 0) {
            bit_set(a->regs->irr, (unsigned)vector, false);
            bit_set(a->regs->isr, (unsigned)vector, true);
            lapic_pv_taken(a, (unsigned)vector);
        }
    }
    lapic_update(a);
    pthread_mutex_unlock(&a->set->bus->lock);
    return vector;
}

static uint64_t op_get_tpr(void *opaque)
{
    struct lapic *a = opaque;
    return __atomic_load_n(&a->regs->tpr, __ATOMIC_RELAXED) >> 4; /* only its own vCPU changes it */
}

static void op_set_tpr(void *opaque, uint64_t cr8)
{
    struct lapic *a = opaque;
    pthread_mutex_lock(&a->set->bus->lock);
    tpr_write(a, (uint32_t)(cr8 & 15) << 4);
    pthread_mutex_unlock(&a->set->bus->lock);
}

enum { MSR_APIC_BASE = 0x1b, MSR_TSC_DEADLINE = 0x6e0, MSR_X2APIC = 0x800, MSR_X2APIC_END = 0x900 };

static bool op_read_msr(void *opaque, uint32_t index, uint64_t *value)
{
    struct lapic *a = opaque;
    bool ok = true;
    pthread_mutex_lock(&a->set->bus->lock);
    lapic_pv_look(a);
    if (index == MSR_APIC_BASE)
        *value = a->regs->base;
    else if (index == MSR_TSC_DEADLINE)
        *value = a->regs->tsc_deadline;
    else if (index >= MSR_X2APIC && index < MSR_X2APIC_END && lapic_x2apic(a->regs))
        ok = x2apic_read(a, (index - MSR_X2APIC) << 4, value);
    else
        ok = false;
    pthread_mutex_unlock(&a->set->bus->lock);
    return ok;
}

static bool op_write_msr(void *opaque, uint32_t index, uint64_t value)
{
    struct lapic *a = opaque;
    bool ok = true;
    pthread_mutex_lock(&a->set->bus->lock);
    lapic_pv_look(a);
    if (index == MSR_TSC_DEADLINE)
        lapic_timer_set_deadline(a, value);
    else if (index >= MSR_X2APIC && index < MSR_X2APIC_END && lapic_x2apic(a->regs))
        ok = x2apic_write(a, (index - MSR_X2APIC) << 4, value);
    else if (index == MSR_APIC_BASE)
        ok = base_write(a, value);
    else
        ok = false;
    pthread_mutex_unlock(&a->set->bus->lock);
    return ok;
}

static const struct cpu_irq_ops lapic_cpu_ops = {
    .pending = op_pending,
    .acknowledge = op_acknowledge,
    .get_tpr = op_get_tpr,
    .set_tpr = op_set_tpr,
    .read_msr = op_read_msr,
    .write_msr = op_write_msr,
    .send_ipi = lapic_pv_send,
    .wake = lapic_pv_wake,
};

/* --- wiring --------------------------------------------------------------------------------------- */

void lapic_attach_cpu(void *state, unsigned i, struct cpu *cpu, void (*kick)(void *opaque, unsigned i), void *opaque)
{
    struct lapic_set *s = state;
    struct lapic *a = &s->apic[i];
    a->kick = kick;
    a->kick_opaque = opaque;
    a->cpu = cpu;
    cpu->irq = &lapic_cpu_ops;
    cpu->irq_opaque = a;
}

void lapic_set_present(void *state, unsigned i, bool present)
{
    struct lapic_set *s = state;
    struct lapic *a = &s->apic[i];
    a->absent = !present;
    if (present)
        return;
    lapic_init_reset(a);
    lapic_request(a, REQ_INIT);
}

void lapic_set_lint(void *opaque, unsigned pin, bool level)
{
    struct lapic_set *s = opaque;
    bool rises = false;
    if (pin == 0) {
        rises = level && !s->saved.extint_level;
        if (s->saved.extint_level == level)
            return;
        s->saved.extint_level = level;
    }
    for (unsigned i = 0; i < s->n_cpus; i++) {
        struct lapic *a = &s->apic[i];
        if (pin != 0) {
            rises = level && !a->regs->lint1;
            a->regs->lint1 = level;
        }
        if (rises)
            lapic_local(a, pin ? LVT_LINT1 : LVT_LINT0);
        if (pin == 0)
            lapic_update(a);
    }
}

void lapic_set_extint(void *state, int (*acknowledge)(void *opaque), void *opaque)
{
    struct lapic_set *s = state;
    s->extint = acknowledge;
    s->extint_opaque = opaque;
}

void lapic_set_eoi(void *state, void (*eoi)(void *opaque, unsigned vector), void *opaque)
{
    struct lapic_set *s = state;
    s->eoi = eoi;
    s->eoi_opaque = opaque;
}

/* --- struct device_class --------------------------------------------------------------------------- */

static void lapic_reset(struct device *dev)
{
    struct lapic_set *s = dev->state;
    s->saved.round_robin = 0;
    for (unsigned i = 0; i < s->n_cpus; i++) {
        struct lapic *a = &s->apic[i];
        a->regs->base = LAPIC_BASE | BASE_ENABLE | (i == 0 ? BASE_BSP : 0);
        registers_reset(a);
        if (s->virtual_wire) {
            a->regs->svr |= SVR_ENABLE;
            a->regs->lvt[LVT_LINT0] = DM_EXTINT << 8 | (i ? LVT_MASKED : 0);
            a->regs->lvt[LVT_LINT1] = DM_NMI << 8;
        }
        lapic_update(a);
    }
}

static int lapic_create(struct device *dev, const struct device_env *env, const void *config)
{
    const struct lapic_config *c = config;
    if (c->n_cpus < 1 || c->n_cpus > LAPIC_MAX_CPUS)
        return -EINVAL;
    struct lapic_set *s = calloc(1, sizeof(*s) + c->n_cpus * sizeof(s->apic[0]));
    if (!s)
        return -ENOMEM;
    s->bus = env->bus;
    s->loop = env->loop;
    s->n_cpus = c->n_cpus;
    s->virtual_wire = c->virtual_wire;
    dev->state = s;
    for (unsigned i = 0; i < s->n_cpus; i++) {
        s->apic[i].set = s;
        s->apic[i].index = i;
        s->apic[i].regs = &s->saved.regs[i];
        loop_timer_init(&s->apic[i].timer, lapic_timer_fired, &s->apic[i]);
    }
    lapic_reset(dev);
    s->range = (struct bus_range){LAPIC_BASE, 0x1000, &lapic_ops, s, "lapic"};
    return bus_map(s->bus, BUS_MEM, &s->range);
}

static void lapic_destroy(struct device *dev)
{
    struct lapic_set *s = dev->state;
    if (!s)
        return;
    for (unsigned i = 0; i < s->n_cpus; i++)
        loop_timer_cancel(s->loop, &s->apic[i].timer);
    bus_unmap(s->bus, BUS_MEM, &s->range);
    free(s);
    dev->state = NULL;
}

static void lapic_pre_save(struct device *dev)
{
    struct lapic_set *s = dev->state;
    for (unsigned i = 0; i < s->n_cpus; i++)
        lapic_pv_look(&s->apic[i]);
    s->saved.save_ns = clock_ns();
}

/* The vCPUs' TSC offsets are restored before the devices. */
static void lapic_post_restore(struct device *dev)
{
    struct lapic_set *s = dev->state;
    uint64_t shift = device_later(dev, s->saved.save_ns);
    for (unsigned i = 0; i < s->n_cpus; i++) {
        struct lapic *a = &s->apic[i];
        if (a->regs->timer_start)
            a->regs->timer_start += shift;
        lapic_timer_arm(a);
        lapic_update(a);
    }
}

const struct device_class lapic_class = {
    .type = "lapic",
    .create = lapic_create,
    .reset = lapic_reset,
    .destroy = lapic_destroy,
    .save_offset = offsetof(struct lapic_set, saved),
    .save_size = sizeof(((struct lapic_set *)0)->saved),
    .pre_save = lapic_pre_save,
    .post_restore = lapic_post_restore,
};
