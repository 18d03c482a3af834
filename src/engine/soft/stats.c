/*
 * --stats: what the engine counted.
 */
#include "engine/soft/soft_int.h"

#include <Zydis/Zydis.h>

/* The instructions most often done by a helper. */
static void print_helpers(const struct stats *s, FILE *out)
{
    bool shown[2048] = {false};
    for (unsigned n = 0; n < 24; n++) {
        unsigned best = 0;
        for (unsigned k = 1; k < 2048; k++)
            if (!shown[k] && s->by_mnemonic[k] > s->by_mnemonic[best])
                best = k;
        if (!best || !s->by_mnemonic[best])
            return;
        shown[best] = true;
        fprintf(out, "  helper %-14s %12llu\n", ZydisMnemonicGetString((ZydisMnemonic)best),
                (unsigned long long)s->by_mnemonic[best]);
    }
}

#define STAT(name) fprintf(out, "  %-14s %12llu\n", #name, (unsigned long long)s->name)

static void print_one(struct engine *e, FILE *out)
{
    const struct stats *s = &e->vcpu->stats;
    fprintf(out, "vcpu %u (software engine)\n", e->index);
    if (e->config.timing)
        soft_timing_print(e->vcpu, out);
    STAT(blocks);
    STAT(insns);
    STAT(guest_bytes);
    STAT(evictions);
    STAT(invalidated);
    STAT(enters);
    STAT(slow_read);
    STAT(slow_write);
    STAT(window_fill);
    STAT(window_refused);
    STAT(demoted);
    STAT(promoted);
    STAT(slow_cross);
    STAT(slow_mmio);
    STAT(slow_code);
    STAT(walks);
    STAT(tlb_flush);
    STAT(tlb_flush_kept);
    STAT(tlb_flush_page);
    STAT(cr3_writes);
    STAT(helpers);
    STAT(exits);
    STAT(chained);
    STAT(ibtc_miss);
    STAT(ibtc_insert);
    STAT(interrupts);
    STAT(polls);
    STAT(halts);
    STAT(signals);
    print_helpers(s, out);
    for (unsigned k = 0; k < 32; k++)
        if (s->exceptions[k])
            fprintf(out, "  exception %-4u %12llu\n", k, (unsigned long long)s->exceptions[k]);
    soft_course_stats(e, out);
    soft_direct_stats(e, out);
    uint32_t hot = 0, cold = 0;
    for (unsigned i = 0; i < e->n_regions; i++) {
        struct cache_region end = soft_region_filled(e, i);
        hot += end.hot - e->regions[i].hot;
        cold += end.cold - e->regions[i].cold;
    }
    fprintf(out, "code cache: %u bytes hot, %u bytes cold\n", hot, cold);
}

void soft_stats(struct engine *e, FILE *out)
{
    const struct peers *p = e->peers;
    for (unsigned i = 0; i < p->n; i++)
        print_one(p->of[i], out);
}
