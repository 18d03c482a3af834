#include "devices/lapic_int.h"

/* Who an interrupt message is for, and what it does there (SDM 11.6, 11.10, 11.11). */

struct message {
    uint32_t destination;
    bool logical, wide; /* wide: a 32-bit destination as x2APIC sends it; else 8 bits */
    bool level, assert;
    enum delivery mode;
    uint8_t vector;
};

enum shorthand { TO_FIELD, TO_SELF, TO_ALL, TO_OTHERS };

static bool logical_match(const struct lapic_regs *r, const struct message *m)
{
    uint32_t d = m->destination;
    if (lapic_x2apic(r)) /* cluster in the high half, one bit for each of its 16 members below */
        return d >> 16 == r->ldr >> 16 && (d & r->ldr & 0xffff);
    uint32_t ldr = r->ldr >> 24;
    if (m->wide && d > 0xff)
        return false;
    if (r->dfr >> 28 == 0xf) /* flat */
        return d & ldr;
    return (d >> 4 == ldr >> 4 || d >> 4 == 0xf) && (d & ldr & 0xf);
}

static bool matches(const struct lapic *a, const struct message *m)
{
    const struct lapic_regs *r = a->regs;
    if (!lapic_listens(a))
        return false;
    if (m->destination == (m->wide ? 0xffffffffu : 0xffu))
        return true;
    return m->logical ? logical_match(r, m) : m->destination == r->id;
}

static void deliver(struct lapic *a, const struct message *m)
{
    switch (m->mode) {
    case DM_FIXED:
    case DM_LOWEST:
        lapic_accept(a, m->vector, m->level);
        break;
    case DM_NMI:
        lapic_request(a, REQ_NMI);
        break;
    case DM_INIT:
        if (m->level && !m->assert)
            break; /* INIT level de-assert only ever synchronized arbitration ids */
        lapic_init_reset(a);
        lapic_request(a, REQ_INIT);
        break;
    case DM_SIPI:
        if (a->cpu)
            a->cpu->sipi_vector = m->vector;
        lapic_request(a, REQ_SIPI);
        break;
    case DM_EXTINT:
        a->regs->extint_edge = 1;
        lapic_update(a);
        break;
    default: /* SMI: no SMM here; reserved: nothing */
        break;
    }
}

bool lapic_deliver_ipi(struct lapic *a, uint32_t icr)
{
    const struct message m = {.mode = icr >> 8 & 7, .vector = (uint8_t)icr};
    if (!lapic_listens(a) || (m.mode != DM_FIXED && m.mode != DM_NMI))
        return false;
    deliver(a, &m);
    return true;
}

/* Lowest priority: the CPU with the lowest processor priority; equals take turns. */
static void deliver_lowest(struct lapic_set *s, const struct message *m)
{
    struct lapic *best = NULL;
    unsigned best_priority = 0x100;
    for (unsigned k = 0; k < s->n_cpus; k++) {
        struct lapic *a = &s->apic[(s->saved.round_robin + k) % s->n_cpus];
        if (!matches(a, m) || !(a->regs->svr & SVR_ENABLE))
            continue;
        unsigned priority = lapic_ppr(a->regs) >> 4;
        if (priority < best_priority) {
            best_priority = priority;
            best = a;
        }
    }
    if (!best)
        return;
    s->saved.round_robin = (best->index + 1) % s->n_cpus;
    deliver(best, m);
}

static void send(struct lapic_set *s, const struct message *m, bool one_of)
{
    if (one_of) {
        deliver_lowest(s, m);
        return;
    }
    for (unsigned i = 0; i < s->n_cpus; i++)
        if (matches(&s->apic[i], m))
            deliver(&s->apic[i], m);
}

void lapic_send_icr(struct lapic *a, uint64_t icr)
{
    struct lapic_set *s = a->set;
    uint32_t low = (uint32_t)icr;
    enum shorthand to = low >> 18 & 3;
    struct message m = {
        .destination = (uint32_t)(icr >> 32),
        .logical = low & ICR_LOGICAL,
        .wide = lapic_x2apic(a->regs),
        .level = low & ICR_LEVEL,
        .assert = low & ICR_ASSERT,
        .mode = low >> 8 & 7,
        .vector = (uint8_t)low,
    };
    if ((m.mode == DM_FIXED || m.mode == DM_LOWEST) && m.vector < 16) {
        lapic_error(a, ESR_SEND_VECTOR);
        return;
    }
    if (m.mode != DM_INIT)
        m.level = false; /* IPIs are edges, whatever the trigger bit says (SDM 11.6.1) */
    if (m.mode == DM_EXTINT || m.mode == DM_RESERVED)
        return; /* not IPIs */
    if (to == TO_FIELD) {
        send(s, &m, m.mode == DM_LOWEST);
        return;
    }
    for (unsigned i = 0; i < s->n_cpus; i++) {
        bool self = &s->apic[i] == a;
        if (lapic_listens(&s->apic[i]) && (to == TO_ALL || (to == TO_SELF) == self))
            deliver(&s->apic[i], &m);
    }
}

/* SDM 11.11: address 19-12 destination, 3 redirection hint, 2 logical; data 7-0 vector, 10-8 mode,
 * 14 assert, 15 level. */
void lapic_msi(void *opaque, uint64_t address, uint32_t data)
{
    struct lapic_set *s = opaque;
    struct message m = {
        .destination = address >> 12 & 0xff,
        .logical = address & 4,
        .level = data & 1u << 15,
        .assert = data & 1u << 14,
        .mode = data >> 8 & 7,
        .vector = (uint8_t)data,
    };
    bool hint = (address & 8) && m.logical && m.mode == DM_FIXED;
    send(s, &m, m.mode == DM_LOWEST || hint);
}
