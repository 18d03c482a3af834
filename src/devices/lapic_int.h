/* What lapic.c, lapic_message.c and lapic_timer.c share. */
#pragma once
#include <stdatomic.h>

#include "cpu/cpu.h"
#include "devices/lapic.h"

/* Register offsets (SDM table 11-1); an x2APIC MSR is 0x800 + offset / 16. */
enum {
    APIC_ID = 0x20,
    APIC_VERSION = 0x30,
    APIC_TPR = 0x80,
    APIC_APR = 0x90,
    APIC_PPR = 0xa0,
    APIC_EOI = 0xb0,
    APIC_LDR = 0xd0,
    APIC_DFR = 0xe0,
    APIC_SVR = 0xf0,
    APIC_ISR = 0x100,
    APIC_TMR = 0x180,
    APIC_IRR = 0x200,
    APIC_ESR = 0x280,
    APIC_ICR = 0x300,
    APIC_ICR_HIGH = 0x310,
    APIC_LVT_TIMER = 0x320,
    APIC_LVT_LAST = 0x370,
    APIC_INITIAL_COUNT = 0x380,
    APIC_CURRENT_COUNT = 0x390,
    APIC_DIVIDE = 0x3e0,
    APIC_SELF_IPI = 0x3f0,
};

enum lvt { LVT_TIMER, LVT_THERMAL, LVT_PERF, LVT_LINT0, LVT_LINT1, LVT_ERROR, LVT_COUNT };
enum delivery { DM_FIXED, DM_LOWEST, DM_SMI, DM_RESERVED, DM_NMI, DM_INIT, DM_SIPI, DM_EXTINT };
enum {
    LVT_MASKED = 1 << 16,
    LVT_TIMER_MODE = 3 << 17,
    LVT_PERIODIC = 1 << 17,
    LVT_DEADLINE = 2 << 17,
    SVR_ENABLE = 1 << 8,
    ESR_SEND_VECTOR = 1 << 5,
    ESR_RECEIVE_VECTOR = 1 << 6,
    ESR_REGISTER = 1 << 7,
    BASE_BSP = 1 << 8,
    BASE_X2APIC = 1 << 10,
    BASE_ENABLE = 1 << 11,
};

/* The architectural registers of one APIC. */
struct lapic_regs {
    uint64_t base; /* IA32_APIC_BASE */
    uint64_t icr;
    uint64_t tsc_deadline; /* IA32_TSC_DEADLINE; 0: not armed */
    uint64_t timer_start;  /* CLOCK_MONOTONIC ns at which the initial count was loaded; 0: stopped */
    uint32_t isr[8], irr[8], tmr[8];
    uint32_t lvt[LVT_COUNT];
    uint32_t id, ldr, dfr, svr, tpr;
    uint32_t esr, esr_pending; /* what reads see, and what the next write to ESR will show */
    uint32_t initial_count, divide;
    uint8_t extint_edge; /* an ExtINT message came and was not acknowledged yet */
    uint8_t lint1;
};

struct lapic {
    struct lapic_set *set;
    struct lapic_regs *regs; /* in set->saved */
    unsigned index;
    /* Whether there is something to acknowledge: written with the bus lock held whenever registers
     * change, read by the vCPU's thread without it.  Pairs with REQ_IRQ: stored before the request. */
    _Atomic bool deliverable;
    bool absent;        /* there is no such CPU now: no message reaches it */
    bool eoi_by_memory; /* lapic_pv.c: it may have ended without our having seen that */
    struct loop_timer timer;
    struct cpu *cpu;
    void (*kick)(void *opaque, unsigned i);
    void *kick_opaque;
};

struct lapic_set {
    struct {
        struct lapic_regs regs[LAPIC_MAX_CPUS];
        uint64_t save_ns;
        uint32_t round_robin; /* where the search for the lowest priority starts */
        uint8_t extint_level; /* the 8259's INTR */
    } saved;
    struct bus *bus;
    struct loop *loop;
    unsigned n_cpus;
    bool virtual_wire;
    struct bus_range range;
    int (*extint)(void *opaque);
    void *extint_opaque;
    void (*eoi)(void *opaque, unsigned vector);
    void *eoi_opaque;
    struct lapic apic[];
};

static inline bool lapic_enabled(const struct lapic_regs *r)
{
    return r->base & BASE_ENABLE;
}
/* Does it take messages? */
static inline bool lapic_listens(const struct lapic *a)
{
    return !a->absent && lapic_enabled(a->regs);
}
static inline bool lapic_x2apic(const struct lapic_regs *r)
{
    return r->base & BASE_X2APIC;
}

/* lapic.c */
void lapic_update(struct lapic *a);                    /* after any change: tells the vCPU */
void lapic_request(struct lapic *a, uint32_t request); /* sets cpu->request and kicks */
void lapic_accept(struct lapic *a, unsigned vector, bool level);
void lapic_error(struct lapic *a, uint32_t esr_bit);
void lapic_end_of_interrupt(struct lapic *a);
enum { ICR_LOGICAL = 1 << 11, ICR_ASSERT = 1 << 14, ICR_LEVEL = 1 << 15, ICR_SHORTHAND = 3 << 18 };
bool lapic_deliver_ipi(struct lapic *a, uint32_t icr); /* fixed or NMI: true; else, or when it is off, nothing */
/* lapic_pv.c */
void lapic_pv_taken(struct lapic *a, unsigned vector); /* it is in service now: its end may come by memory */
void lapic_pv_look(struct lapic *a); /* has it come?  On its vCPU's thread, or while that stands still */
int64_t lapic_pv_send(void *opaque, const uint64_t args[4]);
int64_t lapic_pv_wake(void *opaque, uint64_t id);
void lapic_local(struct lapic *a, enum lvt entry); /* a local source fires */
unsigned lapic_ppr(const struct lapic_regs *r);
void lapic_init_reset(struct lapic *a); /* INIT (SDM 11.4.7.3) */

/* lapic_message.c */
void lapic_send_icr(struct lapic *a, uint64_t icr); /* destination in bits 63-32, x2APIC's layout */

/* lapic_timer.c */
void lapic_timer_fired(void *opaque);
void lapic_timer_arm(struct lapic *a); /* from the registers as they are */
uint32_t lapic_timer_count(const struct lapic *a);
void lapic_timer_load(struct lapic *a, uint32_t initial);
void lapic_timer_set_divide(struct lapic *a, uint32_t divide);
void lapic_timer_set_lvt(struct lapic *a, uint32_t lvt);
void lapic_timer_set_deadline(struct lapic *a, uint64_t tsc);
