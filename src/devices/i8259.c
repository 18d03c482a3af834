#include "devices/i8259.h"

#include <errno.h>
#include <stdlib.h>

/* 8259A data sheet: the first two writes after ICW1 with bit 4 set are ICW2, ICW3; ICW4 if asked. */
enum {
    ICW1_INIT = 0x10,
    ICW1_LEVEL = 0x08,
    ICW1_SINGLE = 0x02,
    ICW1_IC4 = 0x01,
    ICW4_SFNM = 0x10,
    ICW4_AEOI = 0x02,
    OCW3_SELECT = 0x08,
    OCW3_ESMM = 0x40,
    OCW3_SMM = 0x20,
    OCW3_POLL = 0x04,
    OCW3_RR = 0x02,
    OCW3_RIS = 0x01,
    CASCADE = 2,
};
enum init_step { STEP_READY, STEP_ICW2, STEP_ICW3, STEP_ICW4 };

struct chip {
    uint8_t lines; /* levels of the eight inputs */
    uint8_t irr, isr, imr;
    uint8_t elcr, elcr_mask; /* a set bit: level-triggered; which bits can be set */
    uint8_t vector_base;
    uint8_t lowest; /* the input with the lowest priority; 7 unless rotated */
    uint8_t step;   /* enum init_step */
    uint8_t wants_icw4, single;
    uint8_t read_isr, poll;
    uint8_t special_mask, auto_eoi, rotate_on_auto_eoi, fully_nested;
};

struct i8259 {
    struct {
        struct chip chip[2]; /* master, slave */
    } saved;
    const struct irq_line *intr;
    struct bus *bus;
    struct bus_range range[2], elcr_range;
    struct port {
        struct i8259 *pic;
        unsigned n;
    } port[2];
};

/* The requesting input of highest priority that nothing in service keeps back, or -1. */
static int chip_request(const struct chip *c, bool master)
{
    uint8_t requests = c->irr & ~c->imr;
    /* In special mask mode a masked input in service does not hold back those below it. */
    uint8_t service = c->special_mask ? c->isr & ~c->imr : c->isr;

    for (unsigned i = 1; requests && i <= 8; i++) {
        unsigned input = (c->lowest + i) & 7;
        uint8_t bit = 1u << input;
        /* Special fully nested mode: a slave in service may interrupt again. */
        bool nested = master && c->fully_nested && input == CASCADE;
        if ((service & bit) && !nested)
            return -1;
        if (requests & bit)
            return (int)input;
        if (service & bit)
            return -1;
    }
    return -1;
}

static void chip_set_line(struct chip *c, unsigned input, bool level)
{
    uint8_t bit = 1u << input;
    if (c->elcr & bit)
        c->irr = level ? c->irr | bit : c->irr & ~bit;
    else if (level && !(c->lines & bit))
        c->irr |= bit;
    c->lines = level ? c->lines | bit : c->lines & ~bit;
}

static void chip_acknowledge(struct chip *c, unsigned input)
{
    uint8_t bit = 1u << input;
    if (!c->auto_eoi)
        c->isr |= bit;
    else if (c->rotate_on_auto_eoi)
        c->lowest = input;
    if (!(c->elcr & bit))
        c->irr &= ~bit;
}

/* Recomputes slave INT -> master IR2 -> INTR.  The master sees a request of its slave as a new edge
 * after each acknowledge, since INT drops during it. */
static void update(struct i8259 *s)
{
    struct chip *master = &s->saved.chip[0], *slave = &s->saved.chip[1];
    bool slave_int = chip_request(slave, false) >= 0;
    uint8_t bit = 1u << CASCADE;
    master->irr = slave_int ? master->irr | bit : master->irr & ~bit;
    master->lines = slave_int ? master->lines | bit : master->lines & ~bit;
    irq_set(s->intr, chip_request(master, true) >= 0);
}

void i8259_set_irq(void *opaque, unsigned irq, bool level)
{
    struct i8259 *s = opaque;
    if (irq >= 16 || irq == CASCADE)
        return;
    chip_set_line(&s->saved.chip[irq / 8], irq % 8, level);
    update(s);
}

int i8259_acknowledge(void *opaque)
{
    struct i8259 *s = opaque;
    struct chip *master = &s->saved.chip[0], *slave = &s->saved.chip[1];
    int input = chip_request(master, true);
    int vector;
    if (input < 0) {
        vector = master->vector_base + 7;
    } else if (input != CASCADE) {
        chip_acknowledge(master, (unsigned)input);
        vector = master->vector_base + input;
    } else {
        chip_acknowledge(master, CASCADE);
        input = chip_request(slave, false);
        if (input >= 0)
            chip_acknowledge(slave, (unsigned)input);
        vector = slave->vector_base + (input < 0 ? 7 : input);
    }
    update(s);
    return vector;
}

static void chip_init(struct chip *c, uint8_t icw1)
{
    c->imr = c->isr = c->irr = 0;
    c->lowest = 7;
    c->special_mask = c->auto_eoi = c->rotate_on_auto_eoi = c->fully_nested = 0;
    c->read_isr = c->poll = 0;
    c->irr = c->lines & c->elcr; /* an edge-triggered input must rise again to request */
    c->single = icw1 & ICW1_SINGLE;
    c->wants_icw4 = icw1 & ICW1_IC4;
    c->step = STEP_ICW2;
}

/* Ends the service of one input: OCW2 with EOI; `specific` names it, else the highest in service. */
static int chip_eoi(struct chip *c, bool specific, unsigned input)
{
    if (specific) {
        c->isr &= ~(1u << input);
        return (int)input;
    }
    for (unsigned i = 1; i <= 8; i++) {
        unsigned at = (c->lowest + i) & 7;
        bool skip = c->special_mask && (c->imr >> at & 1);
        if ((c->isr >> at & 1) && !skip) {
            c->isr &= ~(1u << at);
            return (int)at;
        }
    }
    return -1;
}

/* OCW2: bits 7-5 are rotate, specific, EOI. */
static void chip_ocw2(struct chip *c, uint8_t value)
{
    bool rotate = value & 0x80, specific = value & 0x40, eoi = value & 0x20;
    unsigned input = value & 7;
    if (eoi) {
        int ended = chip_eoi(c, specific, input);
        if (rotate && ended >= 0)
            c->lowest = (uint8_t)ended;
    } else if (specific) {
        if (rotate)
            c->lowest = (uint8_t)input; /* set priority; without rotate it is no operation */
    } else {
        c->rotate_on_auto_eoi = rotate;
    }
}

static void chip_ocw3(struct chip *c, uint8_t value)
{
    if (value & OCW3_ESMM)
        c->special_mask = !!(value & OCW3_SMM);
    if (value & OCW3_POLL)
        c->poll = 1;
    if (value & OCW3_RR)
        c->read_isr = value & OCW3_RIS;
}

static void chip_data_write(struct chip *c, uint8_t value)
{
    switch (c->step) {
    case STEP_READY:
        c->imr = value;
        return;
    case STEP_ICW2:
        c->vector_base = value & 0xf8;
        c->step = !c->single ? STEP_ICW3 : c->wants_icw4 ? STEP_ICW4 : STEP_READY;
        return;
    case STEP_ICW3: /* the wiring of a PC is what it is */
        c->step = c->wants_icw4 ? STEP_ICW4 : STEP_READY;
        return;
    default:
        c->fully_nested = !!(value & ICW4_SFNM);
        c->auto_eoi = !!(value & ICW4_AEOI);
        c->step = STEP_READY;
    }
}

static void pic_write(void *opaque, uint64_t offset, uint64_t value, unsigned size)
{
    struct port *port = opaque;
    struct chip *c = &port->pic->saved.chip[port->n];
    uint8_t byte = (uint8_t)value;
    if (offset == 1)
        chip_data_write(c, byte);
    else if (byte & ICW1_INIT)
        chip_init(c, byte);
    else if (byte & OCW3_SELECT)
        chip_ocw3(c, byte);
    else
        chip_ocw2(c, byte);
    update(port->pic);
}

/* The poll command: the next read is an acknowledge that returns bit 7 and the input. */
static uint8_t chip_poll(struct chip *c, bool master)
{
    int input = chip_request(c, master);
    c->poll = 0;
    if (input < 0)
        return 0;
    chip_acknowledge(c, (unsigned)input);
    return (uint8_t)(0x80 | input);
}

static uint64_t pic_read(void *opaque, uint64_t offset, unsigned size)
{
    struct port *port = opaque;
    struct chip *c = &port->pic->saved.chip[port->n];
    uint8_t value;
    if (c->poll) {
        value = chip_poll(c, port->n == 0);
        update(port->pic);
    } else if (offset == 1) {
        value = c->imr;
    } else {
        value = c->read_isr ? c->isr : c->irr;
    }
    return value | (size > 1 ? 0xffffff00u : 0);
}

static uint64_t elcr_read(void *opaque, uint64_t offset, unsigned size)
{
    struct i8259 *s = opaque;
    uint64_t both = s->saved.chip[0].elcr | s->saved.chip[1].elcr << 8;
    return size == 1 ? both >> (offset * 8) : both;
}

static void elcr_write(void *opaque, uint64_t offset, uint64_t value, unsigned size)
{
    struct i8259 *s = opaque;
    for (unsigned i = 0; i < size && offset + i < 2; i++) {
        struct chip *c = &s->saved.chip[offset + i];
        c->elcr = value >> (i * 8) & c->elcr_mask;
        c->irr |= c->lines & c->elcr;
    }
    update(s);
}

static const struct bus_ops pic_ops = {pic_read, pic_write};
static const struct bus_ops elcr_ops = {elcr_read, elcr_write};

static void i8259_reset(struct device *dev)
{
    struct i8259 *s = dev->state;
    for (unsigned i = 0; i < 2; i++) {
        uint8_t lines = s->saved.chip[i].lines;
        /* IRQ 0-2, 8 and 13 cannot be level-triggered (ICH, ELCR1/ELCR2). */
        s->saved.chip[i] = (struct chip){.lines = lines, .elcr_mask = i ? 0xde : 0xf8, .lowest = 7, .imr = 0xff};
    }
    update(s);
}

static int i8259_create(struct device *dev, const struct device_env *env, const void *config)
{
    static const uint16_t base[2] = {0x20, 0xa0};
    const struct i8259_config *c = config;
    struct i8259 *s = calloc(1, sizeof(*s));
    if (!s)
        return -ENOMEM;
    s->bus = env->bus;
    s->intr = c->intr;
    dev->state = s;
    int err = 0;
    for (unsigned i = 0; i < 2 && !err; i++) {
        s->port[i] = (struct port){s, i};
        s->range[i] = (struct bus_range){base[i], 2, &pic_ops, &s->port[i], "i8259"};
        err = bus_map(s->bus, BUS_PORT, &s->range[i]);
    }
    s->elcr_range = (struct bus_range){0x4d0, 2, &elcr_ops, s, "elcr"};
    if (!err)
        err = bus_map(s->bus, BUS_PORT, &s->elcr_range);
    if (!err)
        i8259_reset(dev);
    return err;
}

static void i8259_destroy(struct device *dev)
{
    struct i8259 *s = dev->state;
    if (!s)
        return;
    bus_unmap(s->bus, BUS_PORT, &s->range[0]);
    bus_unmap(s->bus, BUS_PORT, &s->range[1]);
    bus_unmap(s->bus, BUS_PORT, &s->elcr_range);
    free(s);
    dev->state = NULL;
}

/* Saved bytes may come from another host: a vector is one byte, and there are eight inputs. */
static void i8259_post_restore(struct device *dev)
{
    struct i8259 *s = dev->state;
    for (unsigned i = 0; i < 2; i++) {
        s->saved.chip[i].vector_base &= 0xf8;
        s->saved.chip[i].lowest &= 7;
    }
    update(s);
}

const struct device_class i8259_class = {
    .type = "i8259",
    .create = i8259_create,
    .reset = i8259_reset,
    .destroy = i8259_destroy,
    .save_offset = offsetof(struct i8259, saved),
    .save_size = sizeof(((struct i8259 *)0)->saved),
    .post_restore = i8259_post_restore,
};
