/*
 * Reading the port gives the events that are understood, writing one reports it:
 *   bit 0  the kernel has panicked; nobody will handle it
 *   bit 1  the kernel has panicked and a crash kernel takes over: nothing to do for us
 */
#include "devices/pvpanic.h"

#include <errno.h>
#include <stdlib.h>

enum { PVPANIC_PANICKED = 1, PVPANIC_CRASH_LOADED = 2 };

struct pvpanic {
    struct device_env env;
    struct bus_range port;
};

static uint64_t pvpanic_read(void *opaque, uint64_t offset, unsigned size)
{
    return PVPANIC_PANICKED | PVPANIC_CRASH_LOADED;
}

static void pvpanic_write(void *opaque, uint64_t offset, uint64_t value, unsigned size)
{
    struct pvpanic *p = opaque;
    if ((value & PVPANIC_PANICKED) && p->env.event)
        p->env.event(p->env.event_opaque, MACHINE_PANIC);
}

static const struct bus_ops pvpanic_ops = {.read = pvpanic_read, .write = pvpanic_write};

static int pvpanic_create(struct device *dev, const struct device_env *env, const void *config)
{
    struct pvpanic *p = calloc(1, sizeof *p);
    if (!p)
        return -ENOMEM;
    p->env = *env;
    p->port = (struct bus_range){PVPANIC_PORT, 1, &pvpanic_ops, p, "pvpanic", 0, 0};
    int err = bus_map(env->bus, BUS_PORT, &p->port);
    if (err) {
        free(p);
        return err;
    }
    dev->state = p;
    return 0;
}

static void pvpanic_reset(struct device *dev) {}

static void pvpanic_destroy(struct device *dev)
{
    struct pvpanic *p = dev->state;
    if (!p)
        return;
    bus_unmap(p->env.bus, BUS_PORT, &p->port);
    free(p);
    dev->state = NULL;
}

const struct device_class pvpanic_class = {
    .type = "pvpanic",
    .create = pvpanic_create,
    .reset = pvpanic_reset,
    .destroy = pvpanic_destroy,
};
