#include "devices/i8042.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

enum { STATUS_OBF = 0x01, STATUS_SYSTEM = 0x04, STATUS_COMMAND = 0x08, STATUS_UNLOCKED = 0x10, STATUS_TIMEOUT = 0x40 };
enum { MODE_IRQ1 = 0x01, MODE_SYSTEM = 0x04, MODE_KEYBOARD_OFF = 0x10, MODE_MOUSE_OFF = 0x20 };
enum { OUTPUT_NOT_RESET = 0x01, OUTPUT_A20 = 0x02 };
enum {
    CMD_READ_RAM = 0x20,
    CMD_WRITE_RAM = 0x60,
    CMD_MOUSE_OFF = 0xa7,
    CMD_MOUSE_ON = 0xa8,
    CMD_TEST_MOUSE = 0xa9,
    CMD_SELF_TEST = 0xaa,
    CMD_TEST_KEYBOARD = 0xab,
    CMD_KEYBOARD_OFF = 0xad,
    CMD_KEYBOARD_ON = 0xae,
    CMD_READ_INPUT = 0xc0,
    CMD_READ_OUTPUT = 0xd0,
    CMD_WRITE_OUTPUT = 0xd1,
    CMD_LOOP_KEYBOARD = 0xd2,
    CMD_LOOP_MOUSE = 0xd3,
    CMD_WRITE_MOUSE = 0xd4,
    CMD_PULSE = 0xf0,
};
enum { PORT92_RESET = 0x01, PORT92_A20 = 0x02 };
#define NO_ANSWER 0xfe /* what the controller says for a device that does not answer, with STATUS_TIMEOUT */

struct i8042 {
    struct {
        uint8_t status, data, ram[32]; /* ram[0] is the mode ("command byte") */
        uint8_t output, port92;
        uint8_t expect; /* the command whose data byte comes next; 0: a byte for the keyboard */
    } saved;
    struct bus *bus;
    struct irq_line irq;
    void (*event)(void *opaque, int event);
    void *event_opaque;
    struct bus_range data_range, command_range, port92_range;
};

static void update_irq(struct i8042 *s)
{
    irq_set(&s->irq, (s->saved.status & STATUS_OBF) && (s->saved.ram[0] & MODE_IRQ1));
}

static void reply(struct i8042 *s, uint8_t data, uint8_t flags)
{
    s->saved.data = data;
    s->saved.status = (s->saved.status & ~STATUS_TIMEOUT) | STATUS_OBF | flags;
    update_irq(s);
}

static void request_reset(struct i8042 *s)
{
    if (s->event)
        s->event(s->event_opaque, MACHINE_RESET);
}

static void output_write(struct i8042 *s, uint8_t value)
{
    s->saved.output = value;
    if (!(value & OUTPUT_NOT_RESET))
        request_reset(s);
}

static void command_write(void *opaque, uint64_t offset, uint64_t value, unsigned size)
{
    struct i8042 *s = opaque;
    uint8_t command = (uint8_t)value;
    s->saved.status |= STATUS_COMMAND;
    s->saved.expect = 0;
    if (command >= CMD_PULSE) { /* low bits that are 0 pulse output lines; line 0 is the CPU's reset */
        if (!(command & OUTPUT_NOT_RESET))
            request_reset(s);
        return;
    }
    if (command >= CMD_READ_RAM && command < CMD_READ_RAM + 32) {
        reply(s, s->saved.ram[command & 31], 0);
        return;
    }
    if (command >= CMD_WRITE_RAM && command < CMD_WRITE_RAM + 32) {
        s->saved.expect = command;
        return;
    }
    switch (command) {
    case CMD_SELF_TEST:
        reply(s, 0x55, 0);
        s->saved.status |= STATUS_SYSTEM;
        break;
    case CMD_TEST_KEYBOARD:
        reply(s, 0x00, 0);
        break;
    case CMD_TEST_MOUSE:
        reply(s, 0x01, 0);
        break; /* clock line stuck low: no second port */
    case CMD_KEYBOARD_OFF:
        s->saved.ram[0] |= MODE_KEYBOARD_OFF;
        break;
    case CMD_KEYBOARD_ON:
        s->saved.ram[0] &= ~MODE_KEYBOARD_OFF;
        break;
    case CMD_MOUSE_OFF:
        s->saved.ram[0] |= MODE_MOUSE_OFF;
        break;
    case CMD_MOUSE_ON:
        s->saved.ram[0] &= ~MODE_MOUSE_OFF;
        break;
    case CMD_READ_INPUT:
        reply(s, 0x80, 0);
        break;
    case CMD_READ_OUTPUT:
        reply(s, s->saved.output, 0);
        break;
    case CMD_WRITE_OUTPUT:
    case CMD_LOOP_KEYBOARD:
    case CMD_LOOP_MOUSE:
    case CMD_WRITE_MOUSE:
        s->saved.expect = command;
        break;
    default:
        break;
    }
}

static void data_write(void *opaque, uint64_t offset, uint64_t value, unsigned size)
{
    struct i8042 *s = opaque;
    uint8_t data = (uint8_t)value, command = s->saved.expect;
    s->saved.status &= ~STATUS_COMMAND;
    s->saved.expect = 0;
    if (command >= CMD_WRITE_RAM && command < CMD_WRITE_RAM + 32) {
        s->saved.ram[command & 31] = data;
        update_irq(s);
        return;
    }
    switch (command) {
    case CMD_WRITE_OUTPUT:
        output_write(s, data);
        break;
    /* A controller with one port knows no mouse loop: the byte comes back as the keyboard's. */
    case CMD_LOOP_KEYBOARD:
    case CMD_LOOP_MOUSE:
        reply(s, data, 0);
        break;
    default:
        reply(s, NO_ANSWER, STATUS_TIMEOUT);
        break;
    }
}

static uint64_t data_read(void *opaque, uint64_t offset, unsigned size)
{
    struct i8042 *s = opaque;
    s->saved.status &= ~(STATUS_OBF | STATUS_TIMEOUT);
    update_irq(s);
    return s->saved.data;
}

static uint64_t status_read(void *opaque, uint64_t offset, unsigned size)
{
    struct i8042 *s = opaque;
    return s->saved.status;
}

/* RAM above 1 MiB is always reachable (A20 is open); the bit is kept so that code that polls it goes on. */
static uint64_t port92_read(void *opaque, uint64_t offset, unsigned size)
{
    struct i8042 *s = opaque;
    return s->saved.port92;
}

static void port92_write(void *opaque, uint64_t offset, uint64_t value, unsigned size)
{
    struct i8042 *s = opaque;
    bool rises = (value & PORT92_RESET) && !(s->saved.port92 & PORT92_RESET);
    s->saved.port92 = (uint8_t)value;
    if (rises)
        request_reset(s);
}

static const struct bus_ops data_ops = {data_read, data_write};
static const struct bus_ops command_ops = {status_read, command_write};
static const struct bus_ops port92_ops = {port92_read, port92_write};

static void i8042_reset(struct device *dev)
{
    struct i8042 *s = dev->state;
    memset(&s->saved, 0, sizeof(s->saved));
    s->saved.status = STATUS_SYSTEM | STATUS_COMMAND | STATUS_UNLOCKED;
    s->saved.ram[0] = MODE_SYSTEM | MODE_MOUSE_OFF;
    s->saved.output = 0xcc | OUTPUT_NOT_RESET | OUTPUT_A20;
    s->saved.port92 = PORT92_A20;
    update_irq(s);
}

static int i8042_create(struct device *dev, const struct device_env *env, const void *config)
{
    struct i8042 *s = calloc(1, sizeof(*s));
    if (!s)
        return -ENOMEM;
    s->bus = env->bus;
    s->irq = env->isa_irq[1];
    s->event = env->event;
    s->event_opaque = env->event_opaque;
    dev->state = s;
    s->data_range = (struct bus_range){0x60, 1, &data_ops, s, "i8042"};
    s->command_range = (struct bus_range){0x64, 1, &command_ops, s, "i8042"};
    s->port92_range = (struct bus_range){0x92, 1, &port92_ops, s, "port92"};
    i8042_reset(dev);
    int err = bus_map(s->bus, BUS_PORT, &s->data_range);
    if (!err)
        err = bus_map(s->bus, BUS_PORT, &s->command_range);
    return err ? err : bus_map(s->bus, BUS_PORT, &s->port92_range);
}

static void i8042_destroy(struct device *dev)
{
    struct i8042 *s = dev->state;
    if (!s)
        return;
    bus_unmap(s->bus, BUS_PORT, &s->data_range);
    bus_unmap(s->bus, BUS_PORT, &s->command_range);
    bus_unmap(s->bus, BUS_PORT, &s->port92_range);
    free(s);
    dev->state = NULL;
}

static void i8042_post_restore(struct device *dev)
{
    update_irq(dev->state);
}

const struct device_class i8042_class = {
    .type = "i8042",
    .create = i8042_create,
    .reset = i8042_reset,
    .destroy = i8042_destroy,
    .save_offset = offsetof(struct i8042, saved),
    .save_size = sizeof(((struct i8042 *)0)->saved),
    .post_restore = i8042_post_restore,
};
