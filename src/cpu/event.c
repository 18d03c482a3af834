/*
 * Exceptions and interrupts: SDM vol. 3 chapter 6 (6.12 delivery, 6.13 error code, 6.14 in 64-bit
 * mode, table 6-5 for double faults), 20.1.4 real mode, 20.3 virtual-8086 mode.
 *
 * One delivery computes everything, writes the frame and only then touches the state: a fault on
 * the way leaves the interrupted state for the next event, as the processor does.
 */
#include "cpu/cpu_int.h"

struct event {
    unsigned vector;
    enum exc_kind kind;
    bool has_error;
    uint32_t error;
    uint32_t ext;     /* bit 0 of the error codes of nested faults */
    bool dpl_checked; /* int n, int3, into: the gate's DPL counts */
    uint64_t rip;     /* return address */
    uint32_t rflags;  /* as pushed */
};

/* An IDT entry in both its forms. */
struct gate {
    uint16_t selector;
    unsigned type, ist;
    uint64_t offset;
};

/* --- table 6-5 ---------------------------------------------------------------------------------- */
enum event_class { CLASS_NONE, CLASS_BENIGN, CLASS_CONTRIBUTORY, CLASS_PAGE_FAULT, CLASS_DOUBLE };

static const uint8_t vector_class[32] = {
    [EXC_DE] = CLASS_CONTRIBUTORY, [EXC_TS] = CLASS_CONTRIBUTORY, [EXC_NP] = CLASS_CONTRIBUTORY,
    [EXC_SS] = CLASS_CONTRIBUTORY, [EXC_GP] = CLASS_CONTRIBUTORY, [EXC_PF] = CLASS_PAGE_FAULT,
    [EXC_DF] = CLASS_DOUBLE,
};

static unsigned class_of(const struct event *ev)
{
    unsigned class = ev->kind == EXC_HARD && ev->vector < 32 ? vector_class[ev->vector] : CLASS_BENIGN;
    return class ? class : CLASS_BENIGN;
}

static bool becomes_double(unsigned first, unsigned second)
{
    return (first == CLASS_CONTRIBUTORY && second == CLASS_CONTRIBUTORY) ||
           (first == CLASS_PAGE_FAULT && second >= CLASS_CONTRIBUTORY);
}

/* --- gates -------------------------------------------------------------------------------------- */
static uint32_t idt_error(const struct event *ev)
{
    return ev->vector << 3 | 2 | ev->ext;
}

static int read_gate(struct cpu *cpu, const struct event *ev, struct gate *g)
{
    uint32_t size = cpu_long_mode(cpu) ? 16 : 8, high[2];
    uint64_t raw[2] = {0}, gva = cpu->idtr.base + ev->vector * size;
    if (ev->vector * size + size - 1 > cpu->idtr.limit)
        return cpu_raise_error(cpu, EXC_GP, idt_error(ev));
    if (sys_read(cpu, size == 16 ? gva : (uint32_t)gva, raw, size))
        return CPU_FAULT;
    high[0] = raw[0] >> 32;
    g->selector = raw[0] >> 16;
    g->type = (high[0] >> 8) & 0x1f;
    g->offset = (raw[0] & 0xffff) | (high[0] & 0xffff0000);
    g->ist = 0;
    if (size == 16) {
        g->ist = high[0] & 7;
        g->offset |= raw[1] << 32;
    } else if (g->type == SYS_INT16 || g->type == SYS_TRAP16) {
        g->offset &= 0xffff;
    }
    bool interrupt_gate = g->type == SYS_INT || g->type == SYS_TRAP ||
                          (size == 8 && (g->type == SYS_INT16 || g->type == SYS_TRAP16 || g->type == SYS_TASK));
    if (!interrupt_gate || (ev->dpl_checked && ((high[0] >> 13) & 3) < cpu->cpl))
        return cpu_raise_error(cpu, EXC_GP, idt_error(ev));
    if (!(high[0] & 0x8000))
        return cpu_raise_error(cpu, EXC_NP, idt_error(ev));
    return CPU_OK;
}

/* The handler's code segment; *cpl is its privilege level. */
static int read_handler(struct cpu *cpu, const struct event *ev, const struct gate *g, struct segment *cs,
                        struct desc *d, unsigned *cpl)
{
    uint32_t error = sel_error(g->selector, ev->ext);
    if (sel_null(g->selector))
        return cpu_raise_error(cpu, EXC_GP, ev->ext);
    if (desc_read(cpu, g->selector, d, EXC_GP, ev->ext))
        return CPU_FAULT;
    if (!desc_code(d) || desc_dpl(d) > cpu->cpl || (cpu_long_mode(cpu) && (!desc_long(d) || desc_big(d))))
        return cpu_raise_error(cpu, EXC_GP, error);
    if (!desc_present(d))
        return cpu_raise_error(cpu, EXC_NP, error);
    *cpl = desc_conforming(d) ? cpu->cpl : desc_dpl(d);
    if (cpu_v86(cpu) && *cpl)
        return cpu_raise_error(cpu, EXC_GP, error);
    desc_unpack(d, (g->selector & ~3u) | *cpl, cs);
    cs->attr |= SEG_ACCESSED;
    return CPU_OK;
}

/* SDM 8.7 (64-bit TSS), 8.2.1 (32-bit), 8.6 (16-bit). */
int tss_stack(struct cpu *cpu, unsigned cpl, unsigned ist, uint32_t ext, struct stack *out, struct desc *d)
{
    bool wide = cpu_long_mode(cpu), old = (cpu->tr.attr & 15) == SYS_TSS16_BUSY || (cpu->tr.attr & 15) == SYS_TSS16;
    uint32_t offset = wide ? (ist ? 0x24 + 8 * (ist - 1) : 4 + 8 * cpl) : old ? 2 + 4 * cpl : 4 + 8 * cpl;
    uint32_t len = wide ? 8 : old ? 4 : 6;
    uint64_t raw = 0, gva = cpu->tr.base + offset;
    if (!(cpu->tr.attr & SEG_P) || offset + len - 1 > cpu->tr.limit)
        return cpu_raise_error(cpu, EXC_TS, sel_error(cpu->tr.selector, ext));
    if (sys_read(cpu, wide ? gva : (uint32_t)gva, &raw, len))
        return CPU_FAULT;
    d->gva = 0;
    d->high = 0x100; /* no descriptor to mark accessed */
    out->user = cpl == 3;
    if (wide) {
        out->ss = (struct segment){.selector = cpl};
        out->rsp = raw;
        out->error = ext;
    } else {
        uint16_t selector = old ? raw >> 16 : raw >> 32;
        out->rsp = raw & (old ? 0xffff : 0xffffffff);
        if (seg_check_stack(cpu, selector, cpl, EXC_TS, ext, &out->ss, d))
            return CPU_FAULT;
        out->error = sel_error(selector, ext);
    }
    stack_set_mask(out, wide);
    return CPU_OK;
}

/* --- delivery in protected and long mode ---------------------------------------------------------- */
/* The frame, first pushed first.  Returns how many values. */
static unsigned build_frame(const struct cpu *cpu, const struct event *ev, bool with_stack, uint64_t *frame)
{
    unsigned n = 0;
    if (cpu_v86(cpu)) {
        frame[n++] = cpu->seg[GS].selector;
        frame[n++] = cpu->seg[FS].selector;
        frame[n++] = cpu->seg[DS].selector;
        frame[n++] = cpu->seg[ES].selector;
    }
    if (with_stack) {
        frame[n++] = cpu->seg[SS].selector;
        frame[n++] = cpu->gpr[RSP];
    }
    frame[n++] = ev->rflags;
    frame[n++] = cpu->seg[CS].selector;
    frame[n++] = ev->rip;
    if (ev->has_error)
        frame[n++] = ev->error;
    return n;
}

static void enter_handler(struct cpu *cpu, const struct gate *g, const struct segment *cs, unsigned cpl)
{
    uint32_t clear = FL_TF | FL_NT | FL_RF | FL_VM;
    if (g->type == SYS_INT || g->type == SYS_INT16)
        clear |= FL_IF;
    if (cpu_v86(cpu)) {
        static const uint8_t data_registers[] = {ES, DS, FS, GS};
        for (unsigned i = 0; i < 4; i++)
            cpu->seg[data_registers[i]] = (struct segment){0};
    }
    cpu->rflags &= ~clear;
    cpu->seg[CS] = *cs;
    cpu->cpl = cpl;
    cpu->rip = g->offset;
    cpu->irq_shadow = 0;
    cpu_mode_changed(cpu);
}

static int through_task_gate(struct cpu *cpu, const struct event *ev, const struct gate *g)
{
    return task_switch(cpu, g->selector, TASK_GATE_EVENT, ev->rip, ev->ext, ev->has_error ? &ev->error : NULL);
}

static int deliver_protected(struct cpu *cpu, const struct event *ev)
{
    struct gate g = {0};
    struct segment cs;
    struct stack stack;
    struct desc cs_desc, ss_desc = {.high = 0x100};
    uint64_t frame[12];
    unsigned cpl = 0;
    bool wide = cpu_long_mode(cpu);
    if (read_gate(cpu, ev, &g))
        return CPU_FAULT;
    if (g.type == SYS_TASK)
        return through_task_gate(cpu, ev, &g);
    if (read_handler(cpu, ev, &g, &cs, &cs_desc, &cpl))
        return CPU_FAULT;
    bool inner = cpl != cpu->cpl;
    if (inner || g.ist) {
        if (tss_stack(cpu, cpl, g.ist, ev->ext, &stack, &ss_desc))
            return CPU_FAULT;
        if (wide && !cpu_canonical(cpu, stack.rsp)) /* as loaded, before anything is pushed */
            return cpu_raise_error(cpu, EXC_SS, ev->ext);
        if (!inner)
            stack.ss = cpu->seg[SS]; /* IST without a change of level: SS stays */
    } else {
        stack_current(cpu, &stack);
        stack.error = ev->ext;
        stack_set_mask(&stack, wide);
    }
    if (wide)
        stack.rsp &= ~15ull;
    unsigned n = build_frame(cpu, ev, wide || inner, frame);
    unsigned size = wide ? 8 : g.type == SYS_INT || g.type == SYS_TRAP ? 4 : 2;
    if (wide ? !cpu_canonical(cpu, g.offset) : g.offset > cs.limit)
        return cpu_raise_error(cpu, EXC_GP, ev->ext);
    if (desc_set_accessed(cpu, &cs_desc) || desc_set_accessed(cpu, &ss_desc) || stack_push(cpu, &stack, n, size, frame))
        return CPU_FAULT;
    cpu->seg[SS] = stack.ss;
    cpu->gpr[RSP] = stack.rsp;
    enter_handler(cpu, &g, &cs, cpl);
    return CPU_OK;
}

/* --- delivery in real mode (SDM 20.1.4) ----------------------------------------------------------- */
static int deliver_real(struct cpu *cpu, const struct event *ev)
{
    struct stack stack;
    uint32_t entry;
    uint64_t frame[3] = {ev->rflags, cpu->seg[CS].selector, ev->rip};
    if (ev->vector * 4 + 3 > cpu->idtr.limit)
        return cpu_raise_error(cpu, EXC_GP, idt_error(ev));
    if (sys_read(cpu, (uint32_t)(cpu->idtr.base + ev->vector * 4), &entry, 4))
        return CPU_FAULT;
    stack_current(cpu, &stack);
    if (stack_push(cpu, &stack, 3, 2, frame))
        return CPU_FAULT;
    cpu->gpr[RSP] = stack.rsp;
    cpu->rflags &= ~(uint32_t)(FL_IF | FL_TF | FL_AC | FL_RF);
    cpu->seg[CS].selector = entry >> 16;
    cpu->seg[CS].base = (entry >> 16) << 4;
    cpu->rip = entry & 0xffff;
    cpu->irq_shadow = 0;
    cpu_mode_changed(cpu);
    return CPU_OK;
}

static int deliver_once(struct cpu *cpu, const struct event *ev)
{
    if (cpu->log)
        cpu->log(cpu, ev->kind == EXC_EXTERNAL ? "irq" : "exc", "vector %u error %x rip %llx cpl %u rsp %llx cr2 %llx",
                 ev->vector, ev->error, (unsigned long long)ev->rip, cpu->cpl, (unsigned long long)cpu->gpr[RSP],
                 (unsigned long long)cpu->cr2);
    return cpu_real_mode(cpu) ? deliver_real(cpu, ev) : deliver_protected(cpu, ev);
}

/* The event for what cpu->exc holds; its side effects on CR2 and DR6 happen here. */
static void event_from_exception(struct cpu *cpu, struct event *ev)
{
    const struct exception *exc = &cpu->exc;
    *ev = (struct event){.vector = exc->vector,
                         .kind = EXC_HARD,
                         .ext = 1,
                         .rip = cpu->rip,
                         .rflags = cpu->rflags,
                         .has_error = exc->has_error && !cpu_real_mode(cpu),
                         .error = exc->error};
    if (exc->vector == EXC_PF)
        cpu->cr2 = exc->cr2;
    if (exc->vector == EXC_DB) {
        cpu->dr6 |= exc->dr6;
        cpu->dr7 &= ~(1ull << 13); /* GD: the handler may touch the registers (SDM 17.2.4) */
    }
    /* SDM 17.3.1.1: faults push RF = 1 so that an instruction breakpoint does not hit again on
     * return; #DB does so only for general detect, traps and breakpoints push it as it is. */
    if (exc->vector != EXC_DB || (exc->dr6 & (1u << 13)))
        ev->rflags |= FL_RF;
}

/* Delivers, and what its delivery causes, until a handler is entered or nothing can be. */
static int deliver(struct cpu *cpu, struct event *ev)
{
    for (;;) {
        unsigned first = class_of(ev);
        cpu->delivering = first;
        int r = deliver_once(cpu, ev);
        if (r == CPU_OK) {
            cpu->delivering = CLASS_NONE;
            return CPU_OK;
        }
        if (first == CLASS_DOUBLE) {
            cpu->delivering = CLASS_NONE;
            return CPU_SHUTDOWN;
        }
        event_from_exception(cpu, ev);
        if (becomes_double(first, class_of(ev))) {
            cpu->exc = (struct exception){.vector = EXC_DF, .has_error = true};
            event_from_exception(cpu, ev);
        }
    }
}

int cpu_deliver(struct cpu *cpu)
{
    struct event ev;
    event_from_exception(cpu, &ev);
    return deliver(cpu, &ev);
}

int cpu_deliver_interrupt(struct cpu *cpu, unsigned vector)
{
    struct event ev = {.vector = vector, .kind = EXC_EXTERNAL, .ext = 1, .rip = cpu->rip, .rflags = cpu->rflags};
    cpu->halted = 0;
    return deliver(cpu, &ev);
}

int cpu_deliver_nmi(struct cpu *cpu)
{
    struct event ev = {.vector = EXC_NMI, .kind = EXC_EXTERNAL, .ext = 1, .rip = cpu->rip, .rflags = cpu->rflags};
    cpu->halted = 0;
    cpu->nmi_blocked = 1;
    return deliver(cpu, &ev);
}

int cpu_soft_interrupt(struct cpu *cpu, unsigned vector, enum exc_kind kind, uint64_t next_rip)
{
    /* int1 (icebp) is as privileged as an exception: no DPL check, and its faults are external. */
    bool icebp = kind == EXC_HARD || (kind == EXC_SOFT_TRAP && vector == EXC_DB);
    struct event ev = {
        .vector = vector, .kind = kind, .ext = icebp, .dpl_checked = !icebp, .rip = next_rip, .rflags = cpu->rflags};
    if (cpu_v86(cpu) && kind == EXC_SOFT_INT && cpu_iopl(cpu) < 3)
        return cpu_raise_error(cpu, EXC_GP, 0);
    return deliver_once(cpu, &ev);
}

/* --- instruction boundaries ------------------------------------------------------------------------ */
static void start_by_sipi(struct cpu *cpu)
{
    cpu->seg[CS].selector = cpu->sipi_vector << 8;
    cpu->seg[CS].base = (uint64_t)cpu->sipi_vector << 12;
    cpu->rip = 0;
    cpu->wait_sipi = cpu->halted = 0;
    cpu_mode_changed(cpu);
}

static int take_interrupt(struct cpu *cpu, bool blocked, bool *delivered)
{
    /* Cleared before the controller is asked: what arrives later sets the bit again. */
    atomic_fetch_and(&cpu->request, ~(uint32_t)(REQ_IRQ | REQ_WINDOW));
    if (!cpu->irq || !cpu->irq->pending || !cpu->irq->pending(cpu->irq_opaque))
        return CPU_OK;
    if (blocked || !(cpu->rflags & FL_IF)) {
        /* In HLT with IF clear no window can open before an NMI: do not keep the sleeper awake. */
        if (!cpu->halted)
            atomic_fetch_or(&cpu->request, REQ_WINDOW);
        return CPU_OK;
    }
    int vector = cpu->irq->acknowledge(cpu->irq_opaque);
    if (vector < 0)
        return CPU_OK;
    *delivered = true;
    int r = cpu_deliver_interrupt(cpu, vector);
    if (cpu->irq->pending(cpu->irq_opaque))
        atomic_fetch_or(&cpu->request, REQ_WINDOW);
    return r;
}

int cpu_take_events(struct cpu *cpu, bool *delivered)
{
    uint32_t request = atomic_load(&cpu->request);
    *delivered = false;
    if (request & REQ_INIT) {
        atomic_fetch_and(&cpu->request, ~(uint32_t)(REQ_INIT | REQ_NMI));
        cpu_init_signal(cpu);
        *delivered = true;
        request &= ~(uint32_t)REQ_NMI;
    }
    if (request & REQ_SIPI) {
        atomic_fetch_and(&cpu->request, ~(uint32_t)REQ_SIPI);
        if (cpu->wait_sipi) { /* otherwise ignored (SDM 8.4.3) */
            start_by_sipi(cpu);
            *delivered = true;
        }
    }
    if (request & REQ_WAKE) {
        atomic_fetch_and(&cpu->request, ~(uint32_t)REQ_WAKE);
        if (!cpu->wait_sipi) {
            if (cpu->halted)
                atomic_fetch_or(&cpu->request, REQ_IRQ); /* one may have waited for IF through HLT */
            cpu->unhalted = !cpu->halted;
            cpu->halted = 0;
        }
    }
    if (cpu->wait_sipi) /* everything else is blocked (SDM 8.4.2) and would only keep the thread awake */
        atomic_fetch_and(&cpu->request, ~(uint32_t)(REQ_NMI | REQ_IRQ | REQ_WINDOW));
    if (*delivered || cpu->wait_sipi)
        return CPU_OK;

    /* HLT, having executed, ended any shadow.  A shadow covers this one boundary. */
    bool blocked = cpu->irq_shadow && !cpu->halted;
    cpu->irq_shadow = 0;
    if ((request & REQ_NMI) && !blocked && !cpu->nmi_blocked) {
        atomic_fetch_and(&cpu->request, ~(uint32_t)REQ_NMI);
        atomic_fetch_or(&cpu->request, REQ_IRQ); /* one may have waited for IF through HLT */
        *delivered = true;
        return cpu_deliver_nmi(cpu);
    }
    if (request & (REQ_IRQ | REQ_WINDOW))
        return take_interrupt(cpu, blocked, delivered);
    return CPU_OK;
}
