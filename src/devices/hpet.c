#include "devices/hpet.h"

#include <errno.h>
#include <stdlib.h>

/* Registers (specification 2.3). */
enum { REG_CAPABILITIES = 0x00, REG_CONFIG = 0x10, REG_STATUS = 0x20, REG_COUNTER = 0xf0, REG_TIMER = 0x100 };
enum { TIMER_CONFIG = 0x00, TIMER_COMPARATOR = 0x08, TIMER_STRIDE = 0x20 };
enum { CONFIG_ENABLE = 1, CONFIG_LEGACY = 2 };
enum {
    T_LEVEL = 1 << 1,
    T_ENABLE = 1 << 2,
    T_PERIODIC = 1 << 3,
    T_CAN_PERIODIC = 1 << 4,
    T_64BIT = 1 << 5,
    T_SET_VALUE = 1 << 6,
    T_32MODE = 1 << 8,
    T_ROUTE_SHIFT = 9,
    T_ROUTE = 31 << T_ROUTE_SHIFT,
    T_WRITABLE = T_LEVEL | T_ENABLE | T_PERIODIC | T_SET_VALUE | T_32MODE | T_ROUTE,
};
#define ROUTES 0x00f00000u /* GSI 20-23 */
#define CAPABILITIES ((uint64_t)HPET_PERIOD_FS << 32 | 0x80860000u | 1u << 15 | 1u << 13 | (HPET_TIMERS - 1) << 8 | 1u)
#define NS_PER_TICK 10
#define MIN_PERIOD_NS 20000 /* the host is not woken more often than this */

struct timer_regs {
    uint64_t config, comparator, period;
};

struct hpet_timer {
    struct hpet *hpet;
    unsigned n;
    struct loop_timer timer;
};

struct hpet {
    struct {
        struct timer_regs timer[HPET_TIMERS];
        uint64_t config, status;
        uint64_t counter; /* the value while stopped; while running, the value at start_ns */
        uint64_t start_ns, save_ns;
    } saved;
    struct hpet_timer timer[HPET_TIMERS];
    struct bus *bus;
    struct loop *loop;
    struct irq_line *isa_irq;
    struct hpet_config wiring;
    struct bus_range range;
};

static bool running(const struct hpet *s)
{
    return s->saved.config & CONFIG_ENABLE;
}

static uint64_t counter_at(const struct hpet *s, uint64_t now)
{
    return running(s) ? s->saved.counter + (now - s->saved.start_ns) / NS_PER_TICK : s->saved.counter;
}

static bool is_32bit(const struct timer_regs *t)
{
    return t->config & T_32MODE;
}

/* --- interrupts ----------------------------------------------------------------------------------- */

static const struct irq_line *timer_line(const struct hpet *s, unsigned n)
{
    if ((s->saved.config & CONFIG_LEGACY) && n < 2)
        return &s->isa_irq[n ? 8 : 0];
    unsigned route = (s->saved.timer[n].config & T_ROUTE) >> T_ROUTE_SHIFT;
    return ROUTES >> route & 1 ? &s->isa_irq[route] : NULL;
}

/* Level timers hold the line while their status bit is set, edge timers pulse it. */
static void set_line(struct hpet *s, unsigned n, bool level)
{
    const struct irq_line *line = timer_line(s, n);
    if (line)
        irq_set(line, level);
}

static void update_level(struct hpet *s, unsigned n)
{
    const struct timer_regs *t = &s->saved.timer[n];
    if (t->config & T_LEVEL)
        set_line(s, n, (t->config & T_ENABLE) && (s->saved.status >> n & 1));
}

static void interrupt(struct hpet *s, unsigned n)
{
    const struct timer_regs *t = &s->saved.timer[n];
    if (t->config & T_LEVEL) {
        s->saved.status |= 1u << n; /* set even when no interrupt is enabled (2.3.6) */
        update_level(s, n);
    } else if (t->config & T_ENABLE) {
        set_line(s, n, true);
        set_line(s, n, false);
    }
}

/* --- time ----------------------------------------------------------------------------------------- */

/* Ticks until the counter equals the comparator: a full turn if it does now. */
static uint64_t ticks_to_match(const struct timer_regs *t, uint64_t counter)
{
    if (!is_32bit(t))
        return t->comparator == counter ? UINT64_MAX : t->comparator - counter;
    uint32_t ticks = (uint32_t)t->comparator - (uint32_t)counter;
    return ticks ? ticks : 1ull << 32;
}

static void arm(struct hpet *s, unsigned n)
{
    const struct timer_regs *t = &s->saved.timer[n];
    uint64_t now = clock_ns(), at = UINT64_MAX;
    if (running(s) && (t->config & (T_ENABLE | T_LEVEL))) {
        uint64_t ticks = ticks_to_match(t, counter_at(s, now));
        if (ticks < INT64_MAX / NS_PER_TICK) {
            /* Count from the tick's beginning, or half a tick would be added each time. */
            uint64_t phase = (now - s->saved.start_ns) % NS_PER_TICK;
            at = now - phase + ticks * NS_PER_TICK;
        }
        if ((t->config & T_PERIODIC) && t->period * NS_PER_TICK < MIN_PERIOD_NS && at < now + MIN_PERIOD_NS)
            at = now + MIN_PERIOD_NS;
    }
    loop_timer_set(s->loop, &s->timer[n].timer, at);
}

/* Moves a periodic comparator past the counter; missed periods coalesce (2.3.9.2.2). */
static void advance(struct hpet *s, unsigned n)
{
    struct timer_regs *t = &s->saved.timer[n];
    uint64_t counter = counter_at(s, clock_ns());
    uint64_t behind = is_32bit(t) ? (uint32_t)counter - (uint32_t)t->comparator : counter - t->comparator;
    if (!t->period || behind > INT64_MAX)
        return;
    t->comparator += (behind / t->period + 1) * t->period;
    if (is_32bit(t))
        t->comparator = (uint32_t)t->comparator;
}

static void timer_fired(void *opaque)
{
    struct hpet_timer *timer = opaque;
    struct hpet *s = timer->hpet;
    if (s->saved.timer[timer->n].config & T_PERIODIC)
        advance(s, timer->n);
    interrupt(s, timer->n);
    arm(s, timer->n);
}

static void arm_all(struct hpet *s)
{
    for (unsigned n = 0; n < HPET_TIMERS; n++)
        arm(s, n);
}

/* --- registers: 64-bit values, written whole ------------------------------------------------------ */

static void config_write(struct hpet *s, uint64_t value)
{
    uint64_t now = clock_ns(), changed = value ^ s->saved.config;
    if (changed & CONFIG_LEGACY)
        for (unsigned n = 0; n < 2; n++)
            set_line(s, n, false); /* the old wiring lets go */
    if (changed & CONFIG_ENABLE) {
        s->saved.counter = counter_at(s, now);
        s->saved.start_ns = now;
    }
    s->saved.config = value & (CONFIG_ENABLE | CONFIG_LEGACY);
    if ((changed & CONFIG_LEGACY) && s->wiring.legacy)
        s->wiring.legacy(s->wiring.opaque, value & CONFIG_LEGACY);
    for (unsigned n = 0; n < HPET_TIMERS; n++)
        update_level(s, n);
    arm_all(s);
}

static void status_write(struct hpet *s, uint64_t value)
{
    s->saved.status &= ~value; /* write 1 to clear */
    for (unsigned n = 0; n < HPET_TIMERS; n++)
        if (value >> n & 1)
            update_level(s, n);
}

static void timer_config_write(struct hpet *s, unsigned n, uint64_t value)
{
    struct timer_regs *t = &s->saved.timer[n];
    if (t->config & T_LEVEL)
        set_line(s, n, false); /* the old route lets go */
    t->config = (t->config & ~(uint64_t)T_WRITABLE) | (value & T_WRITABLE);
    if (is_32bit(t)) {
        t->comparator = (uint32_t)t->comparator;
        t->period = (uint32_t)t->period;
    }
    update_level(s, n);
    arm(s, n);
}

/* 2.3.9.2.2: in periodic mode a write sets the period, and with SET_VALUE (once) the comparator. */
static void comparator_write(struct hpet *s, unsigned n, uint64_t value, uint64_t written)
{
    struct timer_regs *t = &s->saved.timer[n];
    uint64_t mask = is_32bit(t) ? 0xffffffff : UINT64_MAX;
    if (!(t->config & T_PERIODIC) || (t->config & T_SET_VALUE))
        t->comparator = value & mask;
    if (t->config & T_PERIODIC)
        t->period = ((t->period & ~written) | (value & written)) & mask;
    t->config &= ~(uint64_t)T_SET_VALUE;
    arm(s, n);
}

static uint64_t register_read(const struct hpet *s, unsigned reg)
{
    if (reg >= REG_TIMER && reg < REG_TIMER + HPET_TIMERS * TIMER_STRIDE) {
        const struct timer_regs *t = &s->saved.timer[(reg - REG_TIMER) / TIMER_STRIDE];
        switch (reg % TIMER_STRIDE) {
        case TIMER_CONFIG:
            return t->config & ~(uint64_t)T_SET_VALUE;
        case TIMER_COMPARATOR:
            return t->comparator;
        default:
            return 0;
        }
    }
    switch (reg) {
    case REG_CAPABILITIES:
        return CAPABILITIES;
    case REG_CONFIG:
        return s->saved.config;
    case REG_STATUS:
        return s->saved.status;
    case REG_COUNTER:
        return counter_at(s, clock_ns());
    default:
        return 0;
    }
}

/* `written`: the bits of the register that the access reached. */
static void register_write(struct hpet *s, unsigned reg, uint64_t value, uint64_t written)
{
    if (reg >= REG_TIMER && reg < REG_TIMER + HPET_TIMERS * TIMER_STRIDE) {
        unsigned n = (reg - REG_TIMER) / TIMER_STRIDE;
        if (reg % TIMER_STRIDE == TIMER_CONFIG)
            timer_config_write(s, n, value);
        else if (reg % TIMER_STRIDE == TIMER_COMPARATOR)
            comparator_write(s, n, value, written);
        return;
    }
    switch (reg) {
    case REG_CONFIG:
        config_write(s, value);
        break;
    case REG_STATUS:
        status_write(s, value & written);
        break;
    case REG_COUNTER:
        s->saved.counter = value;
        s->saved.start_ns = clock_ns();
        arm_all(s);
        break;
    default:
        break;
    }
}

static uint64_t access_mask(unsigned size)
{
    return size >= 8 ? UINT64_MAX : (1ull << (size * 8)) - 1;
}

static uint64_t hpet_read(void *opaque, uint64_t offset, unsigned size)
{
    return register_read(opaque, offset & ~7u) >> ((offset & 7) * 8);
}

static void hpet_write(void *opaque, uint64_t offset, uint64_t value, unsigned size)
{
    unsigned reg = offset & ~7u, shift = (offset & 7) * 8;
    if (size < 4 || (offset & (size - 1))) /* 2.3.1: aligned accesses of 32 and 64 bits only */
        return;
    uint64_t written = access_mask(size) << shift;
    register_write(opaque, reg, (register_read(opaque, reg) & ~written) | (value << shift & written), written);
}

static const struct bus_ops hpet_ops = {hpet_read, hpet_write};

/* --- struct device_class --------------------------------------------------------------------------- */

static void hpet_reset(struct device *dev)
{
    struct hpet *s = dev->state;
    for (unsigned n = 0; n < HPET_TIMERS; n++) {
        loop_timer_cancel(s->loop, &s->timer[n].timer);
        set_line(s, n, false);
    }
    if ((s->saved.config & CONFIG_LEGACY) && s->wiring.legacy)
        s->wiring.legacy(s->wiring.opaque, false);
    s->saved.config = s->saved.status = s->saved.counter = 0;
    for (unsigned n = 0; n < HPET_TIMERS; n++)
        s->saved.timer[n] = (struct timer_regs){
            .config = (uint64_t)ROUTES << 32 | T_CAN_PERIODIC | T_64BIT,
            .comparator = UINT64_MAX,
        };
}

static int hpet_create(struct device *dev, const struct device_env *env, const void *config)
{
    struct hpet *s = calloc(1, sizeof(*s));
    if (!s)
        return -ENOMEM;
    s->bus = env->bus;
    s->loop = env->loop;
    s->isa_irq = env->isa_irq;
    if (config)
        s->wiring = *(const struct hpet_config *)config;
    dev->state = s;
    for (unsigned n = 0; n < HPET_TIMERS; n++) {
        s->timer[n].hpet = s;
        s->timer[n].n = n;
        loop_timer_init(&s->timer[n].timer, timer_fired, &s->timer[n]);
    }
    hpet_reset(dev);
    s->range = (struct bus_range){HPET_BASE, 0x400, &hpet_ops, s, "hpet"};
    return bus_map(s->bus, BUS_MEM, &s->range);
}

static void hpet_destroy(struct device *dev)
{
    struct hpet *s = dev->state;
    if (!s)
        return;
    for (unsigned n = 0; n < HPET_TIMERS; n++)
        loop_timer_cancel(s->loop, &s->timer[n].timer);
    bus_unmap(s->bus, BUS_MEM, &s->range);
    free(s);
    dev->state = NULL;
}

static void hpet_pre_save(struct device *dev)
{
    struct hpet *s = dev->state;
    s->saved.save_ns = clock_ns();
}

static void hpet_post_restore(struct device *dev)
{
    struct hpet *s = dev->state;
    s->saved.start_ns += device_later(dev, s->saved.save_ns);
    if (s->wiring.legacy)
        s->wiring.legacy(s->wiring.opaque, s->saved.config & CONFIG_LEGACY);
    for (unsigned n = 0; n < HPET_TIMERS; n++)
        update_level(s, n);
    arm_all(s);
}

const struct device_class hpet_class = {
    .type = "hpet",
    .create = hpet_create,
    .reset = hpet_reset,
    .destroy = hpet_destroy,
    .save_offset = offsetof(struct hpet, saved),
    .save_size = sizeof(((struct hpet *)0)->saved),
    .pre_save = hpet_pre_save,
    .post_restore = hpet_post_restore,
};
