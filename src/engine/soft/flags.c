/*
 * Where the guest's arithmetic flags are while its code runs.
 *
 * The engine's checks destroy the host's flags.  So in front of the first check with flags alive they go to memory
 * (v->slow_flags), and stay there while nobody touches them: check after check costs nothing.  They come back in
 * front of an instruction that reads them, or that writes only some of those that are alive.  A block hands them on
 * as it has them: a direct exit is chained to the entry that is for that, and computed branches always carry them in
 * memory, so that of a return and what it returns to, neither may have to move them.
 *
 * `place` is only right while flags are alive; else it does not matter.
 */
#include "engine/soft/translate_int.h"

bool flags_needed(const struct insn *in)
{
    return in->shape->wants_flags || (in->shape->flags_written && (in->live_after & (uint8_t)~flags_killed(in)));
}

void flags_to_memory(struct translator *t, unsigned temp)
{
    if (t->flags == FLAGS_HOST)
        e_save_flags(&t->hot, VOFF(slow_flags), temp);
    t->flags = FLAGS_MEMORY;
}

void flags_to_host(struct translator *t, unsigned temp)
{
    if (t->flags == FLAGS_MEMORY)
        e_restore_flags(&t->hot, VOFF(slow_flags), temp);
    t->flags = FLAGS_HOST;
}

void flags_spare(struct translator *t, const struct insn *in, unsigned temp)
{
    if (in->live_before)
        flags_to_memory(t, temp);
}

bool flags_in_memory(const struct translator *t, const struct insn *in)
{
    return in->live_before && t->flags == FLAGS_MEMORY;
}

void flags_before(struct translator *t, const struct insn *in)
{
    if (flags_needed(in) && t->flags == FLAGS_MEMORY)
        flags_to_host(t, R11);
}

void flags_after(struct translator *t, const struct insn *in)
{
    if (in->shape->flags_written)
        t->flags = FLAGS_HOST;
}

void flags_place_at_entry(struct translator *t)
{
    t->flags = FLAGS_HOST;
    for (unsigned i = 0; i < t->n_insns; i++) {
        const struct insn *in = &t->insns[i];
        if (!in->live_before || flags_needed(in) || in->shape->flags_written)
            return;
        if (in->shape->memory >= 0) { /* they would go there now */
            t->flags = FLAGS_MEMORY;
            return;
        }
    }
}
