#include "devices/i8254.h"

#include <errno.h>
#include <stdlib.h>

#define NS_PER_S 1000000000ull

/* Control word, port 0x43: 7-6 channel (3 = read-back), 5-4 access (0 = latch), 3-1 mode, 0 BCD. */
enum { ACCESS_LATCH, ACCESS_LOW, ACCESS_HIGH, ACCESS_BOTH };
enum { READBACK_NO_COUNT = 0x20, READBACK_NO_STATUS = 0x10 };
/* Port 0x61 */
enum { P61_GATE2 = 0x01, P61_SPEAKER = 0x02, P61_WRITABLE = 0x0f, P61_REFRESH = 0x10, P61_OUT2 = 0x20 };

/* A running channel is described by when it was loaded; what the counter shows is worked out when asked. */
struct channel {
    uint64_t load_ns; /* when counting began */
    uint32_t reload;  /* 1..65536 (10000 in BCD) */
    uint16_t latch;
    uint8_t access, mode, bcd;
    uint8_t gate;
    uint8_t loaded;    /* a count was written since the control word */
    uint8_t triggered; /* modes 1, 5: the gate has risen since; else always true once loaded */
    uint8_t latched;   /* bytes of `latch` still to be read: 0, 1 or 2 */
    uint8_t status_latched, status;
    uint8_t read_high, write_high, write_low; /* ACCESS_BOTH: which byte is next; low byte held */
    uint64_t held_ticks;                      /* how far it had counted when the gate went low (modes 0, 2, 3, 4) */
    uint8_t stopped;
};

struct i8254 {
    struct {
        struct channel channel[3];
        uint64_t save_ns;
        uint64_t next_ns; /* channel 0's next edge; UINT64_MAX: none */
        uint8_t port61;
        uint8_t connected;
    } saved;
    struct bus *bus;
    struct loop *loop;
    struct irq_line irq;
    struct loop_timer timer;
    struct bus_range range, range61;
};

static uint64_t ticks_to_ns(uint64_t ticks)
{
    return (uint64_t)(((unsigned __int128)ticks * NS_PER_S + I8254_HZ - 1) / I8254_HZ);
}

static uint64_t channel_ticks(const struct channel *c, uint64_t now)
{
    if (c->stopped)
        return c->held_ticks;
    return now <= c->load_ns ? 0 : (uint64_t)((unsigned __int128)(now - c->load_ns) * I8254_HZ / NS_PER_S);
}

static bool channel_running(const struct channel *c)
{
    return c->loaded && c->triggered && !c->stopped;
}

static uint32_t channel_modulus(const struct channel *c)
{
    return c->bcd ? 10000 : 65536;
}

/* The counting element's value, binary. */
static uint32_t channel_count(const struct channel *c, uint64_t now)
{
    if (!c->loaded)
        return 0;
    if (!c->triggered)
        return c->reload % channel_modulus(c);
    uint64_t t = channel_ticks(c, now);
    switch (c->mode) {
    case 2:
        return c->reload - (uint32_t)(t % c->reload);
    case 3: /* counts down by two, twice in a period */
        return c->reload - (uint32_t)(2 * (t % c->reload) % c->reload);
    default: /* goes on from the top after the terminal count */
        return (uint32_t)((c->reload + channel_modulus(c) - t % channel_modulus(c)) % channel_modulus(c));
    }
}

static bool channel_out(const struct channel *c, uint64_t now)
{
    if (!c->loaded || !c->triggered)
        return c->mode != 0;
    uint64_t t = channel_ticks(c, now);
    switch (c->mode) {
    case 0:
    case 1:
        return t >= c->reload;
    case 2:
        return c->stopped || t % c->reload != c->reload - 1;
    case 3:
        return c->stopped || t % c->reload < (c->reload + 1) / 2;
    default:
        return t != c->reload; /* low for one clock */
    }
}

static uint16_t to_bcd(uint32_t n)
{
    return (uint16_t)(n % 10 | n / 10 % 10 << 4 | n / 100 % 10 << 8 | n / 1000 % 10 << 12);
}

static uint32_t from_bcd(uint16_t n)
{
    return (n & 15) + (n >> 4 & 15) * 10 + (n >> 8 & 15) * 100 + (n >> 12) * 1000u;
}

static uint16_t channel_shown(const struct channel *c, uint64_t now)
{
    uint32_t n = channel_count(c, now);
    return c->bcd ? to_bcd(n % 10000) : (uint16_t)n;
}

/* --- channel 0's interrupt ---------------------------------------------------------------------- */

/* When OUT of channel 0 rises next after `now`: each period in modes 2 and 3, once in 0 and 4.
 * Worked out from the load time, so that no error adds up over periods. */
static uint64_t next_edge(const struct channel *c, uint64_t now)
{
    if (!channel_running(c))
        return UINT64_MAX;
    uint64_t t = channel_ticks(c, now);
    if (c->mode == 2 || c->mode == 3) {
        uint64_t at = c->load_ns + ticks_to_ns((t / c->reload + 1) * c->reload);
        return at > now ? at : c->load_ns + ticks_to_ns((t / c->reload + 2) * c->reload);
    }
    uint64_t terminal = c->reload + (c->mode == 4 || c->mode == 5 ? 1 : 0);
    uint64_t at = c->load_ns + ticks_to_ns(terminal);
    return at > now ? at : UINT64_MAX;
}

static void drive_irq(struct i8254 *s, bool level)
{
    if (s->saved.connected)
        irq_set(&s->irq, level);
}

static void arm(struct i8254 *s, uint64_t now)
{
    s->saved.next_ns = next_edge(&s->saved.channel[0], now);
    /* Counts of a few clocks are within the chip's rights; the host is not asked for more than 20 kHz. */
    uint64_t at = s->saved.next_ns;
    if (at != UINT64_MAX && at < now + 50000 && s->saved.channel[0].reload < 60)
        at = now + 50000;
    loop_timer_set(s->loop, &s->timer, at);
}

static void timer_fired(void *opaque)
{
    struct i8254 *s = opaque;
    /* The low phase before the edge lasts a clock in modes 2 and 4 and is not worth a wake-up. */
    drive_irq(s, false);
    drive_irq(s, true);
    arm(s, clock_ns());
}

/* After a control word, a count or a gate change on channel n. */
static void channel_changed(struct i8254 *s, unsigned n, uint64_t now)
{
    if (n != 0)
        return;
    drive_irq(s, channel_out(&s->saved.channel[0], now));
    arm(s, now);
}

/* --- registers ---------------------------------------------------------------------------------- */

static void channel_load(struct channel *c, uint16_t value, uint64_t now)
{
    uint32_t n = c->bcd ? from_bcd(value) : value;
    c->reload = n ? n : channel_modulus(c);
    /* Data sheet, mode 2 and 3: a count of one is not allowed. */
    if (c->reload == 1 && (c->mode == 2 || c->mode == 3))
        c->reload = 2;
    c->load_ns = now;
    c->loaded = 1;
    c->triggered = c->mode != 1 && c->mode != 5;
    c->stopped = c->triggered && !c->gate;
    c->held_ticks = 0;
}

static void count_write(struct i8254 *s, unsigned n, uint8_t byte)
{
    struct channel *c = &s->saved.channel[n];
    uint64_t now = clock_ns();
    if (c->access == ACCESS_LOW) {
        channel_load(c, byte, now);
    } else if (c->access == ACCESS_HIGH) {
        channel_load(c, (uint16_t)(byte << 8), now);
    } else if (!c->write_high) {
        c->write_low = byte;
        c->write_high = 1;
        if (c->mode == 0) /* the first byte stops the count */
            c->loaded = 0;
    } else {
        c->write_high = 0;
        channel_load(c, (uint16_t)(c->write_low | byte << 8), now);
    }
    channel_changed(s, n, now);
}

static void latch_count(struct channel *c, uint64_t now)
{
    if (c->latched)
        return; /* the first latch stands until read */
    c->latch = channel_shown(c, now);
    c->latched = c->access == ACCESS_BOTH ? 2 : 1;
    c->read_high = 0;
}

static void latch_status(struct channel *c, uint64_t now)
{
    if (c->status_latched)
        return;
    c->status = (uint8_t)(channel_out(c, now) << 7 | !c->loaded << 6 | c->access << 4 | c->mode << 1 | c->bcd);
    c->status_latched = 1;
}

static void read_back(struct i8254 *s, uint8_t value, uint64_t now)
{
    for (unsigned n = 0; n < 3; n++) {
        if (!(value & 2u << n))
            continue;
        if (!(value & READBACK_NO_COUNT))
            latch_count(&s->saved.channel[n], now);
        if (!(value & READBACK_NO_STATUS))
            latch_status(&s->saved.channel[n], now);
    }
}

static void control_write(struct i8254 *s, uint8_t value)
{
    uint64_t now = clock_ns();
    unsigned n = value >> 6;
    if (n == 3) {
        read_back(s, value, now);
        return;
    }
    struct channel *c = &s->saved.channel[n];
    uint8_t access = value >> 4 & 3;
    if (access == ACCESS_LATCH) {
        latch_count(c, now);
        return;
    }
    uint8_t mode = value >> 1 & 7;
    c->access = access;
    c->mode = mode > 5 ? mode - 4 : mode; /* 6 and 7 are 2 and 3 */
    c->bcd = value & 1;
    c->loaded = c->triggered = c->stopped = 0;
    c->latched = c->status_latched = c->read_high = c->write_high = 0;
    channel_changed(s, n, now);
}

static uint8_t count_read(struct channel *c)
{
    if (c->status_latched) {
        c->status_latched = 0;
        return c->status;
    }
    uint16_t value = c->latched ? c->latch : channel_shown(c, clock_ns());
    bool high = c->access == ACCESS_HIGH || (c->access == ACCESS_BOTH && c->read_high);
    if (c->access == ACCESS_BOTH)
        c->read_high = !c->read_high;
    if (c->latched)
        c->latched--;
    return (uint8_t)(high ? value >> 8 : value);
}

static uint64_t pit_read(void *opaque, uint64_t offset, unsigned size)
{
    struct i8254 *s = opaque;
    return offset == 3 ? 0xff : count_read(&s->saved.channel[offset]);
}

static void pit_write(void *opaque, uint64_t offset, uint64_t value, unsigned size)
{
    struct i8254 *s = opaque;
    if (offset == 3)
        control_write(s, (uint8_t)value);
    else
        count_write(s, (unsigned)offset, (uint8_t)value);
}

/* The gate: a rising edge (re)starts modes 1, 2, 3, 5; low stops 0, 2, 3, 4. */
static void set_gate(struct channel *c, bool level, uint64_t now)
{
    if (level == c->gate)
        return;
    if (!level && channel_running(c) && c->mode != 1 && c->mode != 5) {
        c->held_ticks = channel_ticks(c, now);
        c->stopped = 1;
    }
    c->gate = level;
    if (!level || !c->loaded)
        return;
    if (c->stopped && (c->mode == 0 || c->mode == 4)) /* counting goes on where it was held */
        c->load_ns = now - ticks_to_ns(c->held_ticks);
    else
        c->load_ns = now;
    c->triggered = 1;
    c->stopped = 0;
}

static uint64_t port61_read(void *opaque, uint64_t offset, unsigned size)
{
    struct i8254 *s = opaque;
    uint64_t now = clock_ns();
    uint8_t value = s->saved.port61;
    if (channel_out(&s->saved.channel[2], now))
        value |= P61_OUT2;
    if (now / 15085 & 1) /* the refresh request toggles each 15 us; old delay loops count it */
        value |= P61_REFRESH;
    return value;
}

static void port61_write(void *opaque, uint64_t offset, uint64_t value, unsigned size)
{
    struct i8254 *s = opaque;
    s->saved.port61 = value & P61_WRITABLE;
    set_gate(&s->saved.channel[2], value & P61_GATE2, clock_ns());
}

static const struct bus_ops pit_ops = {pit_read, pit_write};
static const struct bus_ops port61_ops = {port61_read, port61_write};

void i8254_connect_irq(void *opaque, bool connected)
{
    struct i8254 *s = opaque;
    if (s->saved.connected == connected)
        return;
    if (!connected)
        irq_set(&s->irq, false);
    s->saved.connected = connected;
    if (connected)
        irq_set(&s->irq, channel_out(&s->saved.channel[0], clock_ns()));
}

static void i8254_reset(struct device *dev)
{
    struct i8254 *s = dev->state;
    loop_timer_cancel(s->loop, &s->timer);
    for (unsigned n = 0; n < 3; n++)
        s->saved.channel[n] = (struct channel){.access = ACCESS_BOTH, .mode = 3, .gate = n != 2, .reload = 65536};
    s->saved.port61 = 0;
    s->saved.next_ns = UINT64_MAX;
    s->saved.connected = 1;
    irq_set(&s->irq, false);
}

static int i8254_create(struct device *dev, const struct device_env *env, const void *config)
{
    struct i8254 *s = calloc(1, sizeof(*s));
    if (!s)
        return -ENOMEM;
    s->bus = env->bus;
    s->loop = env->loop;
    s->irq = env->isa_irq[0];
    dev->state = s;
    loop_timer_init(&s->timer, timer_fired, s);
    s->range = (struct bus_range){0x40, 4, &pit_ops, s, "i8254"};
    s->range61 = (struct bus_range){0x61, 1, &port61_ops, s, "port61"};
    i8254_reset(dev);
    int err = bus_map(s->bus, BUS_PORT, &s->range);
    return err ? err : bus_map(s->bus, BUS_PORT, &s->range61);
}

static void i8254_destroy(struct device *dev)
{
    struct i8254 *s = dev->state;
    if (!s)
        return;
    loop_timer_cancel(s->loop, &s->timer);
    bus_unmap(s->bus, BUS_PORT, &s->range);
    bus_unmap(s->bus, BUS_PORT, &s->range61);
    free(s);
    dev->state = NULL;
}

static void i8254_pre_save(struct device *dev)
{
    struct i8254 *s = dev->state;
    s->saved.save_ns = clock_ns();
}

/* The clock that load times refer to may be another one now; the guest's timer goes on where it was. */
static void i8254_post_restore(struct device *dev)
{
    struct i8254 *s = dev->state;
    uint64_t later = device_later(dev, s->saved.save_ns);
    for (unsigned n = 0; n < 3; n++) {
        struct channel *c = &s->saved.channel[n];
        c->load_ns += later;
        if (!c->reload || c->reload > 65536) /* saved bytes may come from a stranger; it is divided by */
            c->reload = 65536;
    }
    arm(s, clock_ns());
}

const struct device_class i8254_class = {
    .type = "i8254",
    .create = i8254_create,
    .reset = i8254_reset,
    .destroy = i8254_destroy,
    .save_offset = offsetof(struct i8254, saved),
    .save_size = sizeof(((struct i8254 *)0)->saved),
    .pre_save = i8254_pre_save,
    .post_restore = i8254_post_restore,
};
