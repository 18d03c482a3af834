/* A machine's engine and that of a copy of it, over one memory, and what the one hands to the other (carry.c). */
#pragma once
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmocka.h>

#include "bus/bus.h"
#include "engine/engine.h"
#include "engine/soft/soft.h"
#include "engine/soft/soft_int.h"
#include "memory/memory.h"

#include "../no_irq.h"

struct fixture {
    struct memory *memory;
    struct bus *bus;
    struct engine *from, *to;
    struct engine_code head;
    int image; /* the engine's */
};

/* Another one over that memory. */
static struct engine *make(struct fixture *f, unsigned n_cpus)
{
    const struct engine_config config = {.memory = f->memory, .bus = f->bus, .n_cpus = n_cpus, .lean = true};
    struct engine *e;
    assert_int_equal(engine_soft.create(&e, &config), 0);
    for (unsigned i = 0; i < n_cpus; i++)
        engine_soft.vcpu(e, i)->irq = &no_irq;
    return e;
}

static void hand_out(struct fixture *f)
{
    free(f->head.bytes);
    f->image = engine_soft.get_code(f->from, memfd_create("image", MFD_CLOEXEC | MFD_ALLOW_SEALING), &f->head);
    assert_true(f->image >= 0);
}

static void take(struct fixture *f)
{
    assert_int_equal(engine_soft.set_code(f->to, f->image, &f->head), 0);
}

/* Memory, and both engines, which have done nothing. */
static struct fixture *fixture_make(unsigned n_cpus)
{
    struct fixture *f = calloc(1, sizeof *f);
    assert_non_null(f);
    assert_int_equal(memory_create(&f->memory, 16 << 20), 0);
    assert_int_equal(bus_create(&f->bus, f->memory), 0);
    f->from = make(f, n_cpus);
    f->to = make(f, n_cpus);
    return f;
}

static int tear_down(void **state)
{
    struct fixture *f = *state;
    free(f->head.bytes);
    engine_soft.destroy(f->to);
    engine_soft.destroy(f->from);
    bus_destroy(f->bus);
    memory_destroy(f->memory);
    free(f);
    return 0;
}
