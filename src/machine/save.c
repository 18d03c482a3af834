/*
 * Saving and restoring the machine: one section for each part of the array of pc.c, in its order, and for each vCPU.
 *
 *      kind      name          version               bytes
 *      machine   shape         1                     struct shape
 *      cpuid     table         1                     cpu.h: cpuid_save
 *      cpu       0, 1, ...     1                     cpu.h: cpu_save
 *      TYPE      com1.0, ...   device_class's own    struct device_class: the saved bytes
 *
 * The rule for devices: a section of another version is refused; a shorter one of the same version is an older
 * guise's, which did not know the fields at the end: they keep their values after reset.  A longer one is a newer
 * guise's, and refused.  So fields are only ever added at the end, and whoever changes anything else raises
 * save_version.  A part that every machine has and a snapshot has not was not there for that guest, which cannot miss
 * it: it stays as after reset.
 *
 * Everything that is read may be a stranger's: cpu_load checks, and so does each device's post_restore.
 */
#include <errno.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include "base/error.h"
#include "base/sections.h"
#include "cpu/cpu.h"
#include "machine/pc.h"
#include "memory/memory.h"

struct shape {
    uint64_t memory_bytes;
    uint32_t n_cpus;
    uint8_t gsi_level[PC_GSIS];
    uint8_t pad[4];
    uint64_t host_tsc, host_ns; /* at the save: its TSC, CLOCK_MONOTONIC.  Not in older ones */
};
#define SHAPE_LEAST offsetof(struct shape, host_tsc)

/* A pause of the same host's that is no longer is one for the guest, too, as if its CPUs had had to wait so long: its
 * TSC remains the host's then, which programs that run directly can read.  Linux complains of CPUs that stood still
 * for 20 s. */
#define SHORT_PAUSE_NS 5000000000u
#define APART_NS 5000000u /* may the pause by the one clock and by the other be; both are read one after the other */

static uint64_t host_tsc(void)
{
    return __builtin_ia32_rdtsc();
}

/* Parts may share a name: "nvme.0" is the first of that name. */
static void part_name(const struct machine *m, unsigned part, char name[SECTION_NAME_SIZE])
{
    unsigned nth = 0;

    for (unsigned i = 0; i < part; i++)
        nth += strcmp(m->parts[i].name, m->parts[part].name) == 0;
    snprintf(name, SECTION_NAME_SIZE, "%.30s.%u", m->parts[part].name, nth);
}

/* --- save ----------------------------------------------------------------------------------------------------- */

static void save_cpus(struct machine *m, uint64_t now, struct sections *out)
{
    uint8_t bytes[CPU_SAVED_MAX], table[CPUID_SAVED_MAX];
    char name[16];

    if (m->cpus[0]->cpuid)
        sections_add(out, "cpuid", "table", 1, table, cpuid_save(m->cpus[0]->cpuid, table));
    for (unsigned i = 0; i < m->config.n_cpus; i++) {
        snprintf(name, sizeof name, "%u", i);
        sections_add(out, "cpu", name, 1, bytes, cpu_save(m->cpus[i], now, bytes));
    }
}

int machine_save(struct machine *m, struct sections *out)
{
    struct shape shape = {.memory_bytes = m->memory->size, .n_cpus = m->config.n_cpus};
    char name[SECTION_NAME_SIZE];

    for (unsigned i = 0; i < m->n_parts; i++) /* first all of them: what one does last may reach another */
        if (m->parts[i].class->pre_save)
            m->parts[i].class->pre_save(&m->parts[i]);
    for (unsigned i = 0; i < PC_GSIS; i++)
        shape.gsi_level[i] = m->gsi_level[i];
    shape.host_tsc = host_tsc();
    shape.host_ns = clock_ns();
    sections_add(out, "machine", "shape", 1, &shape, sizeof shape);
    save_cpus(m, shape.host_tsc, out);
    for (unsigned i = 0; i < m->n_parts; i++) {
        const struct device_class *class = m->parts[i].class;
        part_name(m, i, name);
        sections_add(out, class->type, name, class->save_version, (char *)m->parts[i].state + class->save_offset,
                     class->save_size);
    }
    return out->failed;
}

/* --- restore --------------------------------------------------------------------------------------------------- */

static int check_shape(struct machine *m, const struct sections *in, struct shape *shape, char *err, size_t n)
{
    const struct section *s = sections_find(in, "machine", "shape");

    if (!s || s->version != 1 || s->size < SHAPE_LEAST || s->size > sizeof *shape)
        return error_set(err, n, -EBADMSG, "it does not say what machine it is of");
    memset(shape, 0, sizeof *shape);
    memcpy(shape, s->bytes, s->size);
    if (shape->memory_bytes != m->memory->size)
        return error_set(err, n, -EINVAL, "it has %llu MiB of memory, this machine has %llu",
                         (unsigned long long)shape->memory_bytes >> 20, (unsigned long long)m->memory->size >> 20);
    if (shape->n_cpus != m->config.n_cpus)
        return error_set(err, n, -EINVAL, "it has %u CPUs, this machine has %u", shape->n_cpus, m->config.n_cpus);
    return 0;
}

/* Have the host's clocks gone on since, and not for long?  Two that agree on how long it was are the same host's. */
static bool clocks_go_on(const struct machine *m, const struct shape *shape)
{
    const uint64_t khz = m->cpus[0]->tsc_khz, ticks = host_tsc() - shape->host_tsc, ns = clock_ns() - shape->host_ns;

    if (!shape->host_tsc || !khz || ns > SHORT_PAUSE_NS || ticks > SHORT_PAUSE_NS / 1000000 * khz)
        return false;
    const uint64_t by_tsc = ticks * 1000000 / khz;
    return (by_tsc > ns ? by_tsc - ns : ns - by_tsc) < APART_NS;
}

static int load_cpus(struct machine *m, const struct sections *in, uint64_t now, char *err, size_t n)
{
    const struct section *table = sections_find(in, "cpuid", "table");
    char why[128] = "", name[16];

    if (m->cpus[0]->cpuid && table && !cpuid_check(m->cpus[0]->cpuid, table->bytes, table->size, why, sizeof why))
        return error_set(err, n, -ENOTSUP, "this host's CPU %s, unlike the one that its guest was shown", why);
    for (unsigned i = 0; i < m->config.n_cpus; i++) {
        snprintf(name, sizeof name, "%u", i);
        const struct section *s = sections_find(in, "cpu", name);
        if (!s || s->version != 1)
            return error_set(err, n, -EBADMSG, "the state of CPU %u is missing, or a newer guise's", i);
        const char *reason = cpu_load(m->cpus[i], now, s->bytes, s->size);
        if (reason)
            return error_set(err, n, -EBADMSG, "the state of CPU %u cannot be used: %s", i, reason);
    }
    return 0;
}

static int load_part(struct machine *m, unsigned i, const struct sections *in, bool only_check, char *err, size_t n)
{
    const struct device *dev = &m->parts[i];
    char name[SECTION_NAME_SIZE];

    part_name(m, i, name);
    const struct section *s = sections_find(in, dev->class->type, name);
    if (!s)
        return i < PARTS ? 0 : error_set(err, n, -EINVAL, "it has no device %s, which this machine has", name);
    if (s->version != dev->class->save_version || s->size > dev->class->save_size)
        return error_set(err, n, -ENOTSUP, "its device %s is another version's (%u, %u bytes) than this guise knows",
                         name, s->version, s->size);
    if (!only_check)
        memcpy((char *)dev->state + dev->class->save_offset, s->bytes, s->size);
    return 0;
}

static bool is_part(const struct machine *m, const struct section *s)
{
    char name[SECTION_NAME_SIZE];

    for (unsigned i = 0; i < m->n_parts; i++) {
        part_name(m, i, name);
        if (strcmp(s->kind, m->parts[i].class->type) == 0 && strcmp(s->name, name) == 0)
            return true;
    }
    return false;
}

/* Sections that are not the machine's: vm/ has those of memory and shared folders, and what it says about itself. */
static bool is_other(const struct section *s)
{
    static const char *const kinds[] = {"machine", "cpuid", "cpu", "simd", "about", "absent", "share"};

    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++)
        if (strcmp(s->kind, kinds[i]) == 0)
            return true;
    return false;
}

static int check_parts(const struct machine *m, const struct sections *in, char *err, size_t n)
{
    for (unsigned i = 0; i < in->n; i++)
        if (!is_other(&in->all[i]) && !is_part(m, &in->all[i]))
            return error_set(err, n, -EINVAL, "it has a device %s (%s), which this machine has not", in->all[i].name,
                             in->all[i].kind);
    return 0;
}

/* All that can fail. */
static int load(struct machine *m, const struct sections *in, struct shape *shape, bool only_check, char *err, size_t n)
{
    int failed = check_shape(m, in, shape, err, n);
    const bool goes_on = !failed && clocks_go_on(m, shape);

    if (!failed)
        failed = check_parts(m, in, err, n);
    if (!failed)
        failed = load_cpus(m, in, goes_on ? shape->host_tsc : host_tsc(), err, n);
    for (unsigned i = 0; i < m->n_parts; i++)
        m->parts[i].clock_goes_on = goes_on;
    for (unsigned i = 0; i < m->n_parts && !failed; i++)
        failed = load_part(m, i, in, only_check, err, n);
    return failed;
}

int machine_restore_check(struct machine *m, const struct sections *in, char *err, size_t n)
{
    struct shape shape;

    return load(m, in, &shape, true, err, n);
}

int machine_restore(struct machine *m, const struct sections *in, char *err, size_t n)
{
    struct shape shape;
    int failed = load(m, in, &shape, false, err, n);

    if (failed)
        return failed;
    for (unsigned i = 0; i < PC_GSIS; i++)
        m->gsi_level[i] = shape.gsi_level[i] & 1;
    for (unsigned i = 0; i < m->n_parts; i++)
        if (m->parts[i].class->post_restore)
            m->parts[i].class->post_restore(&m->parts[i]);
    return 0;
}
