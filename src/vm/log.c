/* --log ITEM,...: one line an event, with the time since the start. */
#include <errno.h>
#include <stdarg.h>
#include <string.h>

#include "base/simd.h"
#include "vm/vm_int.h"

static const struct item {
    uint32_t bit;
    const char *name;
} items[] = {
    {ENGINE_LOG_TRANSLATE, "translate"},
    {ENGINE_LOG_EXC, "exc"},
    {ENGINE_LOG_IRQ, "irq"},
    {ENGINE_LOG_DEVICE, "device"},
};

static bool wanted(const struct vm *vm, const char *name)
{
    for (size_t i = 0; i < sizeof items / sizeof *items; i++)
        if ((vm->config->log_items & items[i].bit) && !strcmp(items[i].name, name))
            return true;
    return false;
}

static void print_line(struct cpu *cpu, const char *item, const char *format, va_list args)
{
    struct vm *vm = cpu->log_opaque;
    char text[512];

    if (!wanted(vm, item))
        return;
    vsnprintf(text, sizeof text, format, args);
    fprintf(vm->log, "%10.6f cpu%u %s: %s\n", (double)(clock_ns() - vm->start_ns) / 1e9, cpu->index, item, text);
}

/* The room cpu/ calls this while the guest's SIMD state may be live in the registers. */
__attribute__((format(printf, 3, 4), target("general-regs-only"))) static void
log_line(struct cpu *cpu, const char *item, const char *format, ...)
{
    struct simd_area area;
    va_list args;

    simd_put_aside(&area);
    va_start(args, format);
    print_line(cpu, item, format, args);
    va_end(args);
    simd_take_back(&area);
}

/* Called by the bus, lock held, for each access that reached a device. */
static void log_access(void *opaque, const struct bus_range *range, bool write, uint64_t offset, uint64_t value,
                       unsigned size)
{
    struct vm *vm = opaque;
    fprintf(vm->log, "%10.6f device: %s %s +0x%llx size %u: 0x%llx\n", (double)(clock_ns() - vm->start_ns) / 1e9,
            range->name, write ? "write" : "read", (unsigned long long)offset, size, (unsigned long long)value);
}

int vm_log_open(struct vm *vm, char *error, size_t size)
{
    if (!vm->config->log_items)
        return 0;
    vm->log = vm->config->log_path ? fopen(vm->config->log_path, "we") : stderr;
    if (!vm->log) {
        int err = -errno;
        snprintf(error, size, "cannot open the log %s: %s", vm->config->log_path, strerror(errno));
        return err;
    }
    /* a first line, because stdio asks for a file's status when it gets its buffer, which the sandbox does not allow */
    fprintf(vm->log, "%10.6f log: begun\n", 0.0);
    if (vm->config->log_items & ENGINE_LOG_DEVICE) {
        vm->bus->trace = log_access;
        vm->bus->trace_opaque = vm;
    }
    return 0;
}

void vm_log_attach(struct vm *vm, struct cpu *cpu)
{
    if (!vm->log)
        return;
    cpu->log_opaque = vm;
    cpu->log = log_line;
}

void vm_log_close(struct vm *vm)
{
    if (vm->log && vm->log != stderr)
        fclose(vm->log);
    vm->log = NULL;
}
