#include "devices/ioapic.h"

#include <errno.h>
#include <stdlib.h>

/*
 * Redirection entry (82093AA, 3.2.4):
 *   0-7 vector  8-10 delivery mode  11 logical  12 delivery status (ro)  13 active low
 *   14 remote IRR (ro)  15 level  16 masked  56-63 destination
 */
#define RTE_REMOTE_IRR (1ull << 14)
#define RTE_LEVEL (1ull << 15)
#define RTE_MASKED (1ull << 16)
#define RTE_LOGICAL (1ull << 11)
#define RTE_WRITABLE 0xff0000000001afffull

enum { REG_ID = 0, REG_VERSION = 1, REG_ARBITRATION = 2, REG_RTE = 0x10 };
enum { OFFSET_SELECT = 0x00, OFFSET_WINDOW = 0x10, OFFSET_EOI = 0x40 };
enum { VERSION = 0x20 };

struct ioapic {
    struct {
        uint64_t rte[IOAPIC_PINS];
        uint32_t lines;   /* levels of the pins */
        uint32_t pending; /* edges that came while masked */
        uint32_t id;
        uint8_t select;
    } saved;
    struct bus *bus;
    struct bus_range range;
};

/* Sends what pin has to send, if anything. */
static void service(struct ioapic *s, unsigned pin)
{
    uint64_t rte = s->saved.rte[pin];
    uint32_t bit = 1u << pin;
    if (rte & RTE_MASKED)
        return;
    if (rte & RTE_LEVEL) {
        if (!(s->saved.lines & bit) || (rte & RTE_REMOTE_IRR))
            return;
        s->saved.rte[pin] |= RTE_REMOTE_IRR;
    } else {
        if (!(s->saved.pending & bit))
            return;
        s->saved.pending &= ~bit;
    }
    /* The same fields in a message's places (SDM 3, 11.11). */
    uint64_t address = 0xfee00000u | (rte >> 56) << 12 | (rte & RTE_LOGICAL ? 1u << 2 : 0);
    uint32_t data = (rte & 0x7ff) | (rte & RTE_LEVEL) | 1u << 14;
    bus_msi(s->bus, address, data);
}

void ioapic_set_irq(void *opaque, unsigned pin, bool level)
{
    struct ioapic *s = opaque;
    if (pin >= IOAPIC_PINS)
        return;
    uint32_t bit = 1u << pin;
    /* `level` means asserted: the polarity bit says how the board wires it, and ours always agrees. */
    if (level && !(s->saved.lines & bit))
        s->saved.pending |= bit;
    s->saved.lines = level ? s->saved.lines | bit : s->saved.lines & ~bit;
    if (level)
        service(s, pin);
}

void ioapic_eoi(void *opaque, unsigned vector)
{
    struct ioapic *s = opaque;
    for (unsigned pin = 0; pin < IOAPIC_PINS; pin++) {
        if (!(s->saved.rte[pin] & RTE_REMOTE_IRR) || (s->saved.rte[pin] & 0xff) != vector)
            continue;
        s->saved.rte[pin] &= ~RTE_REMOTE_IRR;
        service(s, pin);
    }
}

static uint32_t register_read(const struct ioapic *s)
{
    unsigned reg = s->saved.select;
    if (reg >= REG_RTE && reg < REG_RTE + 2 * IOAPIC_PINS)
        return (uint32_t)(s->saved.rte[(reg - REG_RTE) / 2] >> (reg & 1 ? 32 : 0));
    switch (reg) {
    case REG_ID:
    case REG_ARBITRATION:
        return s->saved.id;
    case REG_VERSION:
        return VERSION | (IOAPIC_PINS - 1) << 16;
    default:
        return 0;
    }
}

static void rte_write(struct ioapic *s, unsigned pin, bool high, uint32_t value)
{
    uint64_t old = s->saved.rte[pin];
    uint64_t wanted = high ? (uint32_t)old | (uint64_t)value << 32 : (old & ~0xffffffffull) | value;
    uint64_t rte = (wanted & RTE_WRITABLE) | (old & RTE_REMOTE_IRR);
    /* Remote IRR has no meaning for edges; guests clear a stuck one by a turn to edge and back. */
    if (!(rte & RTE_LEVEL))
        rte &= ~RTE_REMOTE_IRR;
    s->saved.rte[pin] = rte;
    /* An edge that came while the pin was masked or level-triggered is lost, as on the chip. */
    if ((old & RTE_MASKED) || (rte & RTE_LEVEL))
        s->saved.pending &= ~(1u << pin);
    service(s, pin);
}

static void register_write(struct ioapic *s, uint32_t value)
{
    unsigned reg = s->saved.select;
    if (reg >= REG_RTE && reg < REG_RTE + 2 * IOAPIC_PINS)
        rte_write(s, (reg - REG_RTE) / 2, reg & 1, value);
    else if (reg == REG_ID)
        s->saved.id = value & 0x0f000000;
}

static uint64_t ioapic_read(void *opaque, uint64_t offset, unsigned size)
{
    struct ioapic *s = opaque;
    uint64_t value = 0;
    if ((offset & ~3ull) == OFFSET_SELECT)
        value = s->saved.select;
    else if ((offset & ~3ull) == OFFSET_WINDOW)
        value = register_read(s);
    return value >> ((offset & 3) * 8);
}

static void ioapic_write(void *opaque, uint64_t offset, uint64_t value, unsigned size)
{
    struct ioapic *s = opaque;
    if (offset == OFFSET_SELECT)
        s->saved.select = (uint8_t)value;
    else if (offset == OFFSET_WINDOW && size >= 4)
        register_write(s, (uint32_t)value);
    else if (offset == OFFSET_EOI)
        ioapic_eoi(s, value & 0xff);
}

static const struct bus_ops ioapic_ops = {ioapic_read, ioapic_write};

static void ioapic_reset(struct device *dev)
{
    struct ioapic *s = dev->state;
    for (unsigned i = 0; i < IOAPIC_PINS; i++)
        s->saved.rte[i] = RTE_MASKED;
    s->saved.pending = s->saved.id = s->saved.select = 0;
}

static int ioapic_create(struct device *dev, const struct device_env *env, const void *config)
{
    struct ioapic *s = calloc(1, sizeof(*s));
    if (!s)
        return -ENOMEM;
    s->bus = env->bus;
    dev->state = s;
    s->range = (struct bus_range){IOAPIC_BASE, 0x1000, &ioapic_ops, s, "ioapic"};
    ioapic_reset(dev);
    return bus_map(s->bus, BUS_MEM, &s->range);
}

static void ioapic_destroy(struct device *dev)
{
    struct ioapic *s = dev->state;
    if (!s)
        return;
    bus_unmap(s->bus, BUS_MEM, &s->range);
    free(s);
    dev->state = NULL;
}

const struct device_class ioapic_class = {
    .type = "ioapic",
    .create = ioapic_create,
    .reset = ioapic_reset,
    .destroy = ioapic_destroy,
    .save_offset = offsetof(struct ioapic, saved),
    .save_size = sizeof(((struct ioapic *)0)->saved),
};
