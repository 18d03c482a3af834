/*
 * A board for device tests: RAM, a bus, an event loop that runs when asked to, and 24 interrupt
 * lines that remember their levels and rising edges.
 */
#pragma once
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>

#include "devices/device.h"
#include "memory/memory.h"

struct board {
    struct memory *memory;
    struct bus *bus;
    struct loop *loop;
    struct irq_line line[24];
    bool level[24];
    unsigned edges[24];
    unsigned resets;
    struct device_env env;
    struct device device;
    struct loop_timer stop;
};

static inline void board_set_irq(void *opaque, unsigned n, bool level)
{
    struct board *b = opaque;
    if (level && !b->level[n])
        b->edges[n]++;
    b->level[n] = level;
}

static inline void board_event(void *opaque, int event)
{
    struct board *b = opaque;
    b->resets += event == MACHINE_RESET;
}

static inline void board_stop(void *opaque)
{
    struct board *b = opaque;
    loop_stop(b->loop);
}

static inline struct board *board_create(const struct device_class *class, const void *config)
{
    struct board *b = calloc(1, sizeof(*b));
    assert_non_null(b);
    assert_int_equal(memory_create(&b->memory, 2 << 20), 0);
    assert_int_equal(bus_create(&b->bus, b->memory), 0);
    assert_int_equal(loop_create(&b->loop, &b->bus->lock), 0);
    for (unsigned i = 0; i < 24; i++)
        b->line[i] = (struct irq_line){board_set_irq, b, i};
    b->env = (struct device_env){
        .bus = b->bus, .loop = b->loop, .isa_irq = b->line, .event = board_event, .event_opaque = b};
    loop_timer_init(&b->stop, board_stop, b);
    b->device = (struct device){.name = class ? class->type : NULL, .class = class};
    if (class)
        assert_int_equal(class->create(&b->device, &b->env, config), 0);
    return b;
}

static inline void board_destroy(struct board *b)
{
    if (b->device.class)
        b->device.class->destroy(&b->device);
    assert_int_equal(b->bus->n_ranges[BUS_MEM] + b->bus->n_ranges[BUS_PORT], 0); /* nothing left mapped */
    loop_destroy(b->loop);
    bus_destroy(b->bus);
    memory_destroy(b->memory);
    free(b);
}

/* Lets the event loop run for a while. */
static inline void board_run(struct board *b, uint64_t ns)
{
    pthread_mutex_lock(&b->bus->lock);
    loop_timer_set(b->loop, &b->stop, clock_ns() + ns);
    pthread_mutex_unlock(&b->bus->lock);
    loop_run(b->loop);
}

static inline uint8_t inb(struct board *b, uint16_t port)
{
    return (uint8_t)bus_read(b->bus, BUS_PORT, port, 1);
}
static inline void outb(struct board *b, uint16_t port, uint8_t v)
{
    bus_write(b->bus, BUS_PORT, port, v, 1);
}
static inline uint32_t readl(struct board *b, uint64_t gpa)
{
    return (uint32_t)bus_read(b->bus, BUS_MEM, gpa, 4);
}
static inline void writel(struct board *b, uint64_t gpa, uint32_t v)
{
    bus_write(b->bus, BUS_MEM, gpa, v, 4);
}

/* xorshift: the same accesses in every run. */
static inline uint64_t board_random(uint64_t *seed)
{
    *seed ^= *seed << 13;
    *seed ^= *seed >> 7;
    return *seed ^= *seed << 17;
}

/* 100,000 accesses of any size with any value inside [base, base+size), then a save and a restore of
 * random bytes.  What must hold is that nothing is touched that should not be: a sanitizer's business. */
static inline void board_garbage(struct board *b, enum bus_space space, uint64_t base, uint64_t size, uint64_t seed)
{
    for (unsigned i = 0; i < 100000; i++) {
        uint64_t r = board_random(&seed);
        unsigned width = 1u << (r & (space == BUS_PORT ? 1 : 3));
        uint64_t addr = base + (r >> 8) % size;
        uint64_t value = r & 16 ? board_random(&seed) : board_random(&seed) & 0xff;
        if (r & 32)
            bus_write(b->bus, space, addr, value, width);
        else
            bus_read(b->bus, space, addr, width);
    }
    board_run(b, 1000000);
    b->device.class->reset(&b->device);
}

/* Overwrites the saved state with random bytes, as a hostile image would, and carries on. */
static inline void board_garbage_state(struct board *b, enum bus_space space, uint64_t base, uint64_t size)
{
    const struct device_class *class = b->device.class;
    uint8_t *state = (uint8_t *)b->device.state + class->save_offset;
    uint64_t seed = 7;
    for (unsigned round = 0; round < 20; round++) {
        if (class->pre_save)
            class->pre_save(&b->device);
        for (size_t i = 0; i < class->save_size; i++)
            state[i] = (uint8_t)(board_random(&seed) >> 32);
        if (class->post_restore)
            class->post_restore(&b->device);
        for (unsigned i = 0; i < 200; i++) {
            bus_read(b->bus, space, base + board_random(&seed) % size, 4);
            bus_write(b->bus, space, base + board_random(&seed) % size, board_random(&seed), 4);
        }
        board_run(b, 100000);
        class->reset(&b->device);
    }
}
