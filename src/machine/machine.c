/* Building, booting and resetting the machine: everything that walks the array of pc.c. */
#include "machine/machine.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/error.h"
#include "cpu/cpu.h"
#include "devices/acpi_cpus.h"
#include "devices/acpi_pm.h"
#include "devices/generation.h"
#include "devices/lapic.h"
#include "devices/uart16550.h"
#include "machine/pc.h"
#include "memory/memory.h"

#define PAGE 4096ull

static void forward_event(void *opaque, int event)
{
    struct machine *m = opaque;
    if (m->event)
        m->event(m->event_opaque, event);
}

static int open_file(const char *path, const char *what, int *fd, char *error, size_t n)
{
    *fd = open(path, O_RDONLY | O_CLOEXEC);
    return *fd < 0 ? error_set(error, n, -errno, "cannot open the %s %s: %s", what, path, strerror(errno)) : 0;
}

static int load(struct machine *m, char *error, size_t n)
{
    struct boot_source source = {.kernel_path = m->config.kernel_path,
                                 .kernel_fd = m->kernel_fd,
                                 .n_initrds = m->n_initrds,
                                 .append = m->config.append};

    memcpy(source.initrd_fds, m->initrd_fds, sizeof source.initrd_fds);
    int err = boot_load(m->memory, &source, &m->platform, &m->entry, error, n);
    if (!err)
        generation_begin(&m->parts[PART_GENERATION]);
    return err;
}

static int open_files(struct machine *m, char *error, size_t n)
{
    const struct machine_config *c = &m->config;

    if (c->n_initrds > BOOT_INITRDS_MAX)
        return error_set(error, n, -E2BIG, "more than %u initrds are given", BOOT_INITRDS_MAX);
    int err = open_file(c->kernel_path, "kernel", &m->kernel_fd, error, n);
    while (!err && m->n_initrds < c->n_initrds) {
        err = open_file(c->initrd_paths[m->n_initrds], "initrd", &m->initrd_fds[m->n_initrds], error, n);
        m->n_initrds += !err;
    }
    return err;
}

static int build(struct machine *m, char *error, size_t n)
{
    const struct machine_config *c = &m->config;
    const char *failed = NULL;

    if (!c->n_cpus || c->n_cpus > BOOT_MAX_CPUS || c->n_present > c->n_cpus)
        return error_set(error, n, -EINVAL, "a machine has 1 to %u CPUs, not %u", BOOT_MAX_CPUS, c->n_cpus);
    int err = open_files(m, error, n);
    if (err)
        return err;
    err = memory_create(&m->memory, (c->memory_bytes + PAGE - 1) & ~(PAGE - 1));
    if (err)
        return error_set(error, n, err, "cannot reserve %llu MiB of memory for the guest: %s",
                         (unsigned long long)c->memory_bytes >> 20, strerror(-err));
    err = bus_create(&m->bus, m->memory);
    if (!err)
        err = loop_create(&m->loop, &m->bus->lock);
    if (err)
        return error_set(error, n, err, "cannot set up the machine: %s", strerror(-err));
    m->env.event = forward_event;
    m->env.event_opaque = m;
    err = pc_build(m, &failed);
    if (err)
        return error_set(error, n, err, "cannot set up the machine's device \"%s\": %s", failed, strerror(-err));
    pc_describe(m, &m->platform);
    return 0;
}

int machine_create(struct machine **out, const struct machine_config *config, char *error, size_t error_size)
{
    struct machine *m = calloc(1, sizeof *m);
    if (!m)
        return error_set(error, error_size, -ENOMEM, "out of memory");
    m->config = *config;
    m->kernel_fd = -1;
    int err = build(m, error, error_size);
    if (err) {
        machine_destroy(m);
        return err;
    }
    *out = m;
    return 0;
}

void machine_destroy(struct machine *m)
{
    if (!m)
        return;
    for (unsigned i = m->n_parts; i-- > 0;)
        if (m->parts[i].state)
            m->parts[i].class->destroy(&m->parts[i]);
    if (m->loop)
        loop_destroy(m->loop);
    if (m->bus)
        bus_destroy(m->bus);
    if (m->memory)
        memory_destroy(m->memory);
    while (m->n_initrds)
        close(m->initrd_fds[--m->n_initrds]);
    if (m->kernel_fd >= 0)
        close(m->kernel_fd);
    free(m);
}

int machine_add(struct machine *m, const char *name, const struct device_class *class, const void *config, char *error,
                size_t error_size)
{
    if (m->n_parts == PARTS + MACHINE_ADDED_MAX)
        return error_set(error, error_size, -ENOSPC, "a machine has at most %u devices of its user's choice",
                         MACHINE_ADDED_MAX);
    struct device *dev = &m->parts[m->n_parts];
    *dev = (struct device){.name = name, .class = class};
    int err = class->create(dev, &m->env, config);
    if (err)
        return error_set(error, error_size, err, "cannot set up the machine's device \"%s\": %s", name, strerror(-err));
    m->n_parts++;
    return 0;
}

bool machine_kernel(const struct machine *m, uint64_t *gpa, uint64_t *gva, uint64_t *size)
{
    *gpa = m->entry.image.gpa;
    *gva = m->entry.image.gva;
    *size = m->entry.image.size;
    return *size;
}

struct memory *machine_memory(struct machine *m)
{
    return m->memory;
}
struct bus *machine_bus(struct machine *m)
{
    return m->bus;
}
struct loop *machine_loop(struct machine *m)
{
    return m->loop;
}

/* --- processors -------------------------------------------------------------------------------------- */

static void power_on(struct machine *m, unsigned i)
{
    cpu_reset(m->cpus[i]);
    if (i == 0)
        boot_set_cpu(&m->entry, m->cpus[i]);
}

int machine_attach_cpu(struct machine *m, struct cpu *cpu, unsigned i, void (*kick)(void *opaque, unsigned i),
                       void *opaque)
{
    if (i >= m->config.n_cpus)
        return -EINVAL;
    m->cpus[i] = cpu;
    lapic_attach_cpu(m->parts[PART_LAPIC].state, i, cpu, kick, opaque);
    cpu_reset(cpu);
    return 0;
}

int machine_boot(struct machine *m, char *error, size_t error_size)
{
    int err = load(m, error, error_size);

    for (unsigned i = 0; i < m->config.n_cpus && !err; i++)
        if (m->cpus[i])
            power_on(m, i);
    return err;
}

void machine_new_generation(struct machine *m)
{
    generation_renew(&m->parts[PART_GENERATION]);
}

int machine_reset(struct machine *m, char *error, size_t error_size)
{
    for (unsigned i = 0; i < m->n_parts; i++)
        m->parts[i].class->reset(&m->parts[i]);
    if (m->bus->dma_dirty) { /* the kernel is about to be written over itself */
        m->bus->dma_dirty(m->bus->dma_dirty_opaque, 0, m->memory->low_size);
        if (m->memory->high_size)
            m->bus->dma_dirty(m->bus->dma_dirty_opaque, MEMORY_HOLE_END, m->memory->high_size);
    }
    pc_describe_cpus(m, &m->platform);
    m->memory->old = true;
    return machine_boot(m, error, error_size);
}

void machine_power_button(struct machine *m)
{
    acpi_pm_power_button(&m->parts[PART_POWER]);
}

void machine_set_event(struct machine *m, void (*event)(void *opaque, int event), void *opaque)
{
    m->event = event;
    m->event_opaque = opaque;
}

/* --- CPUs that come and go --------------------------------------------------------------------------------- */

bool machine_cpus_vary(const struct machine *m)
{
    return m->config.n_present;
}

unsigned machine_cpus_present(const struct machine *m)
{
    return (unsigned)__builtin_popcountll(acpi_cpus_present(&m->parts[PART_CPUS]));
}

unsigned machine_cpus_wanted(const struct machine *m)
{
    const struct device *dev = &m->parts[PART_CPUS];
    return (unsigned)__builtin_popcountll(acpi_cpus_present(dev) & ~acpi_cpus_leaving(dev));
}

void machine_cpus_set(struct machine *m, unsigned count)
{
    struct device *dev = &m->parts[PART_CPUS];

    for (unsigned i = 1; i < m->config.n_cpus && machine_cpus_wanted(m) < count; i++)
        if (acpi_cpus_leaving(dev) >> i & 1)
            acpi_cpus_ask(dev, i, false);
    for (unsigned i = 1; i < m->config.n_cpus && machine_cpus_wanted(m) < count; i++)
        if (!(acpi_cpus_present(dev) >> i & 1))
            acpi_cpus_insert(dev, i);
    for (unsigned i = m->config.n_cpus - 1; i > 0 && machine_cpus_wanted(m) > count; i--)
        if (acpi_cpus_present(dev) & ~acpi_cpus_leaving(dev) & 1ull << i)
            acpi_cpus_ask(dev, i, true);
}

void machine_set_cpu_answer(struct machine *m, void (*answer)(void *opaque, unsigned i, bool left), void *opaque)
{
    m->cpu_answer = answer;
    m->cpu_answer_opaque = opaque;
}

/* --- console ------------------------------------------------------------------------------------------- */

size_t machine_console_input(struct machine *m, const void *data, size_t len)
{
    return uart16550_input(m->parts[PART_COM1].state, data, len);
}

void machine_set_console_space(struct machine *m, void (*on_space)(void *opaque), void *opaque)
{
    uart16550_set_space(m->parts[PART_COM1].state, on_space, opaque);
}

size_t machine_console_flush(struct machine *m)
{
    return uart16550_flush(m->parts[PART_COM1].state);
}

/* --- statistics ------------------------------------------------------------------------------------------ */

static int by_use(const void *a, const void *b)
{
    const struct bus_range *x = *(struct bus_range *const *)a, *y = *(struct bus_range *const *)b;
    uint64_t used_x = x->reads + x->writes, used_y = y->reads + y->writes;
    return used_x < used_y ? 1 : used_x > used_y ? -1 : 0;
}

void machine_stats(struct machine *m, FILE *out)
{
    const struct bus_range *all[BUS_SPACES * BUS_MAX_RANGES];
    size_t n = 0;

    for (unsigned space = 0; space < BUS_SPACES; space++)
        for (unsigned i = 0; i < m->bus->n_ranges[space]; i++)
            all[n++] = m->bus->ranges[space][i];
    qsort(all, n, sizeof *all, by_use);
    fprintf(out, "device accesses    base          reads         writes\n");
    for (size_t i = 0; i < n && all[i]->reads + all[i]->writes; i++)
        fprintf(out, "  %-14s 0x%-8llx %12llu %12llu\n", all[i]->name, (unsigned long long)all[i]->base,
                (unsigned long long)all[i]->reads, (unsigned long long)all[i]->writes);
}
