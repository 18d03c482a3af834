/*
 * What the local APICs do for a guest that knows KVM (Linux: Documentation/virt/kvm/x86): an end of interrupt without
 * an access to the APIC, an IPI to many at once, and the wake-up of one that halts to wait for a lock.
 *
 * The end of interrupt: when an edge is taken while nothing else is in service or pending, bit 0 of a word in memory
 * says that clearing it is enough.  Whether the guest has is seen when that matters next: before another interrupt is
 * chosen, and before the guest looks at its APIC.  Only the vCPU's own thread looks, and no guest code runs meanwhile.
 */
#include "cpu/cpu.h"
#include "devices/lapic_int.h"

enum { NOT_VALID = -22 };

/* --- the end of an interrupt ------------------------------------------------------------------------------------ */

static uint32_t *eoi_word(const struct lapic *a)
{
    if (!a->cpu || !(a->cpu->pv_eoi & 1))
        return NULL;
    return cpu_hva_for_write(a->cpu, a->cpu->pv_eoi & ~3ull, sizeof(uint32_t));
}

static bool is_single(const uint32_t bits[8])
{
    unsigned n = 0;
    for (unsigned i = 0; i < 8; i++)
        n += (unsigned)__builtin_popcount(bits[i]);
    return n == 1;
}

void lapic_pv_taken(struct lapic *a, unsigned vector)
{
    const struct lapic_regs *r = a->regs;
    bool level = r->tmr[vector / 32] >> vector % 32 & 1;
    for (unsigned i = 0; i < 8; i++)
        level |= r->irr[i] != 0;
    uint32_t *word = level || !is_single(r->isr) ? NULL : eoi_word(a);
    if (!word)
        return;
    *word |= 1;
    a->eoi_by_memory = true;
}

void lapic_pv_look(struct lapic *a)
{
    if (!a->eoi_by_memory)
        return;
    a->eoi_by_memory = false;
    uint32_t *word = eoi_word(a);
    if (word && (*word & 1))
        *word &= ~1u; /* not yet: then by the APIC */
    else
        lapic_end_of_interrupt(a);
}

/* --- hypercalls --------------------------------------------------------------------------------------------------- */

int64_t lapic_pv_send(void *opaque, const uint64_t args[4])
{
    struct lapic *a = opaque;
    struct lapic_set *s = a->set;
    const uint32_t icr = (uint32_t)args[3];
    int64_t sent = 0;
    if (icr & (ICR_LOGICAL | ICR_SHORTHAND))
        return NOT_VALID;
    pthread_mutex_lock(&s->bus->lock);
    for (unsigned i = 0; i < 128; i++) {
        const uint64_t id = args[2] + i;
        if ((args[i / 64] >> i % 64 & 1) && id < s->n_cpus)
            sent += lapic_deliver_ipi(&s->apic[id], icr);
    }
    pthread_mutex_unlock(&s->bus->lock);
    return sent;
}

int64_t lapic_pv_wake(void *opaque, uint64_t id)
{
    struct lapic *a = opaque;
    if (id < a->set->n_cpus)
        lapic_request(&a->set->apic[id], REQ_WAKE);
    return 0;
}
