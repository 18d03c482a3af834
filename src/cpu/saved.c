/*
 * A vCPU as bytes, for snapshots: records of a name (12 bytes, zero-padded), a length (4) and that many bytes, in any
 * order.  One table says which, so that what is written and what is read cannot differ.
 *
 * Fields may be added: of one that a snapshot does not have the value is that after reset.  One that this guise does
 * not know is refused, for it may matter.
 *
 * Times are the guest's: its TSC at the moment of the save, and the line of its paravirtual clock in those terms.  The
 * host's own TSC means nothing elsewhere.
 */
#include "cpu/cpu_int.h"

#define NAME 12u
#define RECORD (NAME + 4u)
#define EVENTS (REQ_IRQ | REQ_NMI | REQ_INIT | REQ_SIPI | REQ_WINDOW | REQ_WAKE)
#define KHZ_TOLERANCE 500u /* a host's TSC against the same, or the next one's: one part in so many */

struct saved_field {
    char name[NAME];
    uint16_t offset, size;
};
#define FIELD(text, member)                                                                                            \
    {                                                                                                                  \
        text, offsetof(struct cpu, member), sizeof(((struct cpu *)0)->member)                                          \
    }

/* clang-format off */
static const struct saved_field fields[] = {
    FIELD("gpr", gpr), FIELD("rip", rip), FIELD("rflags", rflags), FIELD("segments", seg), FIELD("kernelgs", kernel_gs_base),
    FIELD("cr0", cr0), FIELD("cr2", cr2), FIELD("cr3", cr3), FIELD("cr4", cr4), FIELD("efer", efer), FIELD("xcr0", xcr0),
    FIELD("cpl", cpl), FIELD("shadow", irq_shadow), FIELD("nmiblock", nmi_blocked), FIELD("halted", halted),
    FIELD("waitsipi", wait_sipi), FIELD("sipivector", sipi_vector), FIELD("ldtr", ldtr), FIELD("tr", tr),
    FIELD("gdtbase", gdtr.base), FIELD("gdtlimit", gdtr.limit), FIELD("idtbase", idtr.base), FIELD("idtlimit", idtr.limit),
    FIELD("dr", dr), FIELD("dr6", dr6), FIELD("dr7", dr7), FIELD("star", star), FIELD("lstar", lstar),
    FIELD("cstar", cstar), FIELD("sfmask", sfmask), FIELD("sysentercs", sysenter_cs), FIELD("sysentersp", sysenter_esp),
    FIELD("sysenterip", sysenter_eip), FIELD("pat", pat), FIELD("tscaux", tsc_aux), FIELD("miscenable", misc_enable),
    FIELD("specctrl", spec_ctrl), FIELD("mtrrtype", mtrr_def_type), FIELD("mtrrfixed", mtrr_fixed),
    FIELD("mtrrbase", mtrr_base), FIELD("mtrrmask", mtrr_mask), FIELD("tscadjust", tsc_adjust),
    FIELD("pvtime", kvmclock_system_time), FIELD("pvwall", kvmclock_wall), FIELD("mcgstatus", mcg_status),
    FIELD("debugctl", debug_control), FIELD("vspecctrl", virt_spec_ctrl), FIELD("decodecfg", decode_config),
    FIELD("stealtime", steal_time), FIELD("pveoi", pv_eoi), FIELD("unhalted", unhalted),
};
/* clang-format on */
#define FIELDS (sizeof fields / sizeof *fields)

/* What is not simply a field. */
struct derived {
    uint64_t tsc, pv_start, khz;
    uint32_t events;
};
static const struct saved_field derived_fields[] = {
    {"tsc", offsetof(struct derived, tsc), 8},
    {"pvstart", offsetof(struct derived, pv_start), 8},
    {"khz", offsetof(struct derived, khz), 8},
    {"events", offsetof(struct derived, events), 4},
};
#define DERIVED (sizeof derived_fields / sizeof *derived_fields)

/* --- out ----------------------------------------------------------------------------------------------------- */

static size_t put(uint8_t *out, const struct saved_field *f, const void *from)
{
    uint32_t size = f->size;

    cpu_copy(out, f->name, NAME);
    cpu_copy(out + NAME, &size, 4);
    cpu_copy(out + RECORD, (const uint8_t *)from + f->offset, size);
    return RECORD + size;
}

size_t cpu_save(const struct cpu *cpu, uint64_t host_tsc, uint8_t out[CPU_SAVED_MAX])
{
    struct derived d = {.tsc = host_tsc + (uint64_t)cpu->tsc_offset,
                        .pv_start = cpu->cpuid ? cpu->cpuid->tsc_base + (uint64_t)cpu->tsc_offset : 0,
                        .khz = cpu->tsc_khz,
                        .events = cpu->request & EVENTS};
    size_t at = 0, need = 0;

    for (size_t i = 0; i < FIELDS; i++)
        need += RECORD + fields[i].size;
    if (need + DERIVED * (RECORD + 8) > CPU_SAVED_MAX)
        return 0;
    for (size_t i = 0; i < FIELDS; i++)
        at += put(out + at, &fields[i], cpu);
    for (size_t i = 0; i < DERIVED; i++)
        at += put(out + at, &derived_fields[i], &d);
    return at;
}

/* --- in: a stranger's bytes ----------------------------------------------------------------------------------- */

static bool same_name(const uint8_t *a, const char *b)
{
    for (unsigned i = 0; i < NAME; i++)
        if (a[i] != (uint8_t)b[i])
            return false;
    return true;
}

static bool take(const struct saved_field *all, size_t n, void *to, const uint8_t *record, uint32_t size)
{
    for (size_t i = 0; i < n; i++)
        if (same_name(record, all[i].name) && size == all[i].size) {
            cpu_copy((uint8_t *)to + all[i].offset, record + RECORD, size);
            return true;
        }
    return false;
}

static bool canonical48(uint64_t a)
{
    return (uint64_t)((int64_t)(a << 16) >> 16) == a;
}

static bool addresses_ok(const struct cpu *c)
{
    const uint64_t all[] = {c->seg[FS].base, c->seg[GS].base, c->kernel_gs_base, c->ldtr.base,
                            c->tr.base,      c->gdtr.base,    c->idtr.base,      c->lstar,
                            c->cstar,        c->sysenter_esp, c->sysenter_eip};

    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        if (!canonical48(all[i]))
            return false;
    return true;
}

/* What no processor could have got into, and the rest of guise takes for granted. */
static const char *check(const struct cpu *c)
{
    enum { CR0_ALL = CR0_PE | CR0_MP | CR0_EM | CR0_TS | CR0_ET | CR0_NE | CR0_WP | CR0_AM | CR0_NW | CR0_CD };
    const struct cpuid_table *t = c->cpuid;
    bool paging = c->cr0 & CR0_PG, lme = c->efer & EFER_LME;

    if ((c->cr0 & ~(uint64_t)(CR0_ALL | CR0_PG)) || (paging && !(c->cr0 & CR0_PE)))
        return "its CR0 is impossible";
    if (t && ((c->cr4 & ~t->cr4_mask) || (c->efer & ~t->efer_mask) || (c->xcr0 & ~t->xcr0_mask)))
        return "it uses features that this host's CPU cannot give";
    if (!!(c->efer & EFER_LMA) != (paging && lme) || ((c->efer & EFER_LMA) && !(c->cr4 & CR4_PAE)))
        return "its EFER is impossible";
    if (!(c->xcr0 & 1) || ((c->xcr0 & 4) && !(c->xcr0 & 2)) || ((c->xcr0 & 0xe0) && (c->xcr0 & 0xe4) != 0xe4))
        return "its XCR0 is impossible";
    if ((c->cr3 & cpu_phys_reserved(c)) || !addresses_ok(c))
        return "an address in its registers is impossible";
    for (unsigned i = 0; i < 8; i++)
        if ((c->pat >> 8 * i & 0xff) > 7 || ((c->pat >> 8 * i & 0xfe) == 2))
            return "its PAT is impossible";
    return c->cpl > 3 ? "its privilege level is impossible" : NULL;
}

/* Values that are merely out of range are brought into it. */
static void tidy(struct cpu *c)
{
    c->rflags = (c->rflags & 0x3f7fd5) | FL_ONE;
    c->irq_shadow = !!c->irq_shadow;
    c->nmi_blocked = !!c->nmi_blocked;
    c->halted = !!c->halted;
    c->wait_sipi = !!c->wait_sipi;
    c->unhalted = !!c->unhalted;
    for (unsigned i = 0; i < 6; i++)
        c->seg[i].attr &= 0xfff;
    c->ldtr.attr &= 0xfff;
    c->tr.attr &= 0xfff;
    c->gdtr.limit &= 0xffff;
    c->idtr.limit &= 0xffff;
    c->dr6 = (c->dr6 & 0xe00f) | 0xffff0ff0;
    c->dr7 = (c->dr7 & 0xffff23ff) | 0x400;
    c->tsc_aux = (uint32_t)c->tsc_aux;
    c->delivering = 0;
}

/* The guest's time goes on where it was, at the speed that it was told. */
static const char *resume_time(struct cpu *c, const struct derived *d, uint64_t host_tsc)
{
    struct cpuid_table *t = (struct cpuid_table *)c->cpuid; /* this room's own; the engine only keeps it */
    uint64_t apart = d->khz > c->tsc_khz ? d->khz - c->tsc_khz : c->tsc_khz - d->khz;

    if (apart > c->tsc_khz / KHZ_TOLERANCE)
        return "its time-stamp counter runs at another speed than this host's";
    c->tsc_offset = (int64_t)(d->tsc - host_tsc);
    c->tsc_khz = d->khz;
    if (t && c->index == 0)
        cpuid_table_clock(t, d->khz, d->pv_start - (uint64_t)c->tsc_offset);
    return NULL;
}

const char *cpu_load(struct cpu *cpu, uint64_t host_tsc, const uint8_t *bytes, size_t n)
{
    struct derived d = {.tsc = host_tsc, .pv_start = host_tsc, .khz = cpu->tsc_khz};

    while (n) {
        uint32_t size = 0;
        if (n >= RECORD)
            cpu_copy(&size, bytes + NAME, 4);
        if (n < RECORD || size > n - RECORD)
            return "a record of it is cut off";
        if (!take(fields, FIELDS, cpu, bytes, size) && !take(derived_fields, DERIVED, &d, bytes, size))
            return "it has something that this guise does not know: a newer guise has made it";
        bytes += RECORD + size;
        n -= RECORD + size;
    }
    const char *why = check(cpu);
    if (!why)
        why = resume_time(cpu, &d, host_tsc);
    tidy(cpu);
    atomic_fetch_or(&cpu->request, (d.events & EVENTS) | REQ_IRQ);
    return why;
}
