/*
 * From the vCPU's state to the mode that selects translations.
 */
#include "engine/soft/soft_int.h"

static bool fpu_traps(const struct cpu *c, uint64_t all)
{
    uint64_t want = CR4_OSFXSR | CR4_OSXSAVE;
    return (c->cr0 & (CR0_EM | CR0_TS)) || (c->cr4 & want) != want || (c->xcr0 & all) != all;
}

/* Is a data segment other than 4 GB that may be read and written? */
static bool restricted(const struct segment *s)
{
    return s->limit != UINT32_MAX ||
           (s->attr & (SEG_P | SEG_CODE | SEG_EXPAND_DOWN | SEG_WRITABLE)) != (SEG_P | SEG_WRITABLE);
}

/* FS and GS have a base always, and are empty often: MODE_NULL_FS, MODE_NULL_GS. */
static bool segmented(const struct cpu *c)
{
    static const uint8_t flat[] = {ES, SS, DS};
    for (unsigned i = 0; i < sizeof(flat); i++)
        if (c->seg[flat[i]].base || restricted(&c->seg[flat[i]]))
            return true;
    return c->seg[CS].base || c->seg[CS].limit != UINT32_MAX || !(c->seg[SS].attr & SEG_DB) ||
           ((c->seg[FS].attr & SEG_P) && restricted(&c->seg[FS])) ||
           ((c->seg[GS].attr & SEG_P) && restricted(&c->seg[GS]));
}

/* How code that is not 64-bit is translated.  Without protection, and in virtual-8086 mode, segments mean something
 * else: that is looked at where they are. */
static uint32_t legacy_mode(const struct cpu *c)
{
    uint32_t mode = MODE_FIXED_PC | (c->seg[FS].attr & SEG_P ? 0 : MODE_NULL_FS) |
                    (c->seg[GS].attr & SEG_P ? 0 : MODE_NULL_GS);
    if (!(c->seg[CS].attr & SEG_DB))
        return mode | MODE_16 | MODE_SEGMENTED;
    bool real = !(c->cr0 & CR0_PE) || (c->rflags & FL_VM);
    return mode | (real || segmented(c) ? MODE_SEGMENTED : 0);
}

static bool breaks_on_instructions(const struct cpu *c)
{
    for (unsigned i = 0; i < 4; i++)
        if ((c->dr7 >> (2 * i) & 3) && (c->dr7 >> (16 + 4 * i) & 3) == 0)
            return true;
    return false;
}

void soft_update_mode(struct soft_vcpu *v)
{
    struct cpu *c = &v->cpu;
    uint32_t mode = 0;
    if (c->cpl == 3)
        mode = MMU_USER;
    else
        mode = MODE_FIXED_PC | (c->cr4 & CR4_SMAP && !(c->rflags & FL_AC) ? MMU_KERNEL : MMU_KERNEL_AC) |
               (c->cr4 & CR4_SMAP ? MODE_SMAP : 0);
    mode |= (c->cr4 & CR4_FSGSBASE ? MODE_FSGSBASE : 0) | (c->cr4 & CR4_TSD && c->cpl ? MODE_TSD : 0);
    if (c->cpl == 0)
        mode |= MODE_CPL0;
    mode |= cpu_64bit(c) ? MODE_64 : legacy_mode(c);
    if (c->cpl == 3 && (c->rflags & FL_AC) && (c->cr0 & CR0_AM))
        mode |= MODE_ALIGN;
    if (c->rflags & FL_TF)
        mode |= MODE_TF;
    if ((c->dr7 | v->watched_dr7) & 0xff)
        soft_watch_update(v);
    if ((c->dr7 & 0xff) && breaks_on_instructions(c))
        mode |= MODE_BREAK; /* helper_break ends RF, before the instruction that it was for */
    else
        c->rflags &= ~(uint32_t)FL_RF; /* without a breakpoint nobody can tell when it ends */
    if (fpu_traps(c, v->engine->xcr0))
        mode |= MODE_FPU_TRAP;
    v->mode = mode;
    unsigned which = (mode & MODE_MMU) != MMU_USER;
    if (v->ibtc_mode[which] != (mode & MODE_IBTC)) {
        v->ibtc_mode[which] = mode & MODE_IBTC;
        soft_ibtc_flush(v, which ? MMU_KERNEL : MMU_USER);
        if (which) /* translated code goes from one to the other (sp_stac) */
            soft_ibtc_flush(v, MMU_KERNEL_AC);
    }
}
