/*
 *  port   +i  CPU i, 8 bits.  Read:  0 present, 1 inserted, 2 to leave
 *                             Write: 1 and 2 acknowledge these, 3 ejects, 4 refuses to let it go
 *
 *      insert:  present and inserted are set, notify     guest: acknowledges, starts the CPU
 *      ask:     leave is set, notify                     guest: acknowledges, stops the CPU, ejects or refuses
 *
 * A register a CPU needs no index, so methods that the guest runs at the same time do not disturb each other.  A guest
 * may eject without being asked.  CPU 0 stays: a reset starts there.
 */
#include "devices/acpi_cpus.h"

#include <errno.h>
#include <stddef.h>
#include <stdlib.h>

struct acpi_cpus_state { /* a bit each */
    uint64_t present, inserted, leave;
    uint64_t leaving; /* asked to leave, whether that was acknowledged or not */
};

struct acpi_cpus {
    struct acpi_cpus_state saved;
    struct device_env env;
    struct acpi_cpus_config config;
    struct bus_range registers;
};

static uint64_t bit(unsigned i)
{
    return 1ull << i;
}

static uint64_t first(unsigned n)
{
    return n >= 64 ? ~0ull : bit(n) - 1;
}

/* --- the host's side ------------------------------------------------------------------------------- */

uint64_t acpi_cpus_present(const struct device *dev)
{
    return ((const struct acpi_cpus *)dev->state)->saved.present;
}

uint64_t acpi_cpus_leaving(const struct device *dev)
{
    return ((const struct acpi_cpus *)dev->state)->saved.leaving;
}

void acpi_cpus_insert(struct device *dev, unsigned i)
{
    struct acpi_cpus *c = dev->state;

    c->saved.present |= bit(i);
    c->saved.inserted |= bit(i);
    c->config.connect(c->config.opaque, i, true);
    c->config.notify(c->config.opaque);
}

void acpi_cpus_ask(struct device *dev, unsigned i, bool leave)
{
    struct acpi_cpus *c = dev->state;

    if (leave) {
        c->saved.leave |= bit(i);
        c->saved.leaving |= bit(i);
        c->config.notify(c->config.opaque);
    } else {
        c->saved.leave &= ~bit(i);
        c->saved.leaving &= ~bit(i);
    }
}

/* --- the guest's --------------------------------------------------------------------------------------- */

static void eject(struct acpi_cpus *c, unsigned i)
{
    struct acpi_cpus_state *s = &c->saved;

    if (i == 0 || !(s->present & bit(i)))
        return;
    s->present &= ~bit(i);
    s->inserted &= ~bit(i);
    s->leave &= ~bit(i);
    s->leaving &= ~bit(i);
    c->config.connect(c->config.opaque, i, false);
    c->config.answer(c->config.opaque, i, true);
}

static void refuse(struct acpi_cpus *c, unsigned i)
{
    if (!(c->saved.leaving & bit(i)))
        return;
    c->saved.leave &= ~bit(i);
    c->saved.leaving &= ~bit(i);
    c->config.answer(c->config.opaque, i, false);
}

static uint64_t register_read(const struct acpi_cpus_state *s, unsigned i)
{
    return (s->present >> i & 1) * ACPI_CPU_PRESENT | (s->inserted >> i & 1) * ACPI_CPU_INSERTED |
           (s->leave >> i & 1) * ACPI_CPU_LEAVE;
}

static void register_write(struct acpi_cpus *c, unsigned i, uint8_t value)
{
    if (value & ACPI_CPU_INSERTED)
        c->saved.inserted &= ~bit(i);
    if (value & ACPI_CPU_LEAVE)
        c->saved.leave &= ~bit(i);
    if (value & ACPI_CPU_EJECT)
        eject(c, i);
    else if (value & ACPI_CPU_REFUSE)
        refuse(c, i);
}

static uint64_t cpus_read(void *opaque, uint64_t offset, unsigned size)
{
    const struct acpi_cpus *c = opaque;
    uint64_t value = 0;

    for (unsigned i = 0; i < size && offset + i < c->config.n_cpus; i++)
        value |= register_read(&c->saved, (unsigned)offset + i) << 8 * i;
    return value;
}

static void cpus_write(void *opaque, uint64_t offset, uint64_t value, unsigned size)
{
    struct acpi_cpus *c = opaque;

    for (unsigned i = 0; i < size && offset + i < c->config.n_cpus; i++)
        register_write(c, (unsigned)offset + i, (uint8_t)(value >> 8 * i));
}

static const struct bus_ops cpus_ops = {.read = cpus_read, .write = cpus_write};

/* --- assembly ------------------------------------------------------------------------------------------ */

static bool fixed(const struct acpi_cpus *c)
{
    return !c->config.n_present;
}

/* The CPUs that there are stay: the guest begins again with them, and finds them in its tables.  Those that were
 * to leave have nothing to do any more, and go. */
static void acpi_cpus_reset(struct device *dev)
{
    struct acpi_cpus *c = dev->state;
    uint64_t leaving = c->saved.leaving;

    c->saved.inserted = 0;
    for (unsigned i = 1; i < c->config.n_cpus; i++)
        if (leaving & bit(i))
            eject(c, i);
    c->saved.leave = c->saved.leaving = 0;
}

static int acpi_cpus_create(struct device *dev, const struct device_env *env, const void *config)
{
    struct acpi_cpus *c = calloc(1, sizeof *c);
    int err = 0;

    if (!c)
        return -ENOMEM;
    c->env = *env;
    c->config = *(const struct acpi_cpus_config *)config;
    c->registers = (struct bus_range){ACPI_CPUS_PORT, ACPI_CPUS_MAX, &cpus_ops, c, "acpi-cpus", 0, 0};
    if (!c->config.n_cpus || c->config.n_cpus > ACPI_CPUS_MAX || c->config.n_present > c->config.n_cpus)
        err = -EINVAL;
    else if (!fixed(c))
        err = bus_map(env->bus, BUS_PORT, &c->registers);
    if (err) {
        free(c);
        return err;
    }
    c->saved.present = first(fixed(c) ? c->config.n_cpus : c->config.n_present);
    for (unsigned i = 0; i < c->config.n_cpus && !fixed(c); i++)
        c->config.connect(c->config.opaque, i, c->saved.present >> i & 1);
    dev->state = c;
    return 0;
}

static void acpi_cpus_destroy(struct device *dev)
{
    struct acpi_cpus *c = dev->state;

    if (!c)
        return;
    if (!fixed(c))
        bus_unmap(c->env.bus, BUS_PORT, &c->registers);
    free(c);
    dev->state = NULL;
}

static void acpi_cpus_restored(struct device *dev)
{
    struct acpi_cpus *c = dev->state;
    struct acpi_cpus_state *s = &c->saved;
    uint64_t possible = first(c->config.n_cpus);

    s->present = (fixed(c) ? possible : s->present & possible) | bit(0);
    s->inserted &= s->present;
    s->leaving &= s->present & ~bit(0);
    s->leave &= s->leaving;
    for (unsigned i = 0; i < c->config.n_cpus && !fixed(c); i++)
        c->config.connect(c->config.opaque, i, s->present >> i & 1);
}

const struct device_class acpi_cpus_class = {
    .type = "acpi-cpus",
    .create = acpi_cpus_create,
    .reset = acpi_cpus_reset,
    .destroy = acpi_cpus_destroy,
    .save_offset = offsetof(struct acpi_cpus, saved),
    .save_size = sizeof(struct acpi_cpus_state),
    .post_restore = acpi_cpus_restored,
};
