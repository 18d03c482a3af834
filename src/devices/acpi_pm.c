/*
 *  port   +0 PM1_STS  bits: 0 timer carry, 5 global lock, 8 power button, 9 sleep button, 10 RTC, 15 wake
 *         +2 PM1_EN   the same bits 0-10 enable the SCI
 *         +4 PM1_CNT  0 SCI_EN (always one: there is no legacy mode to switch from), 10-12 SLP_TYP, 13 SLP_EN
 *         +8 PM_TMR   32 bits at 3.579545 MHz; its bit 31 changing sets PM1_STS bit 0
 *        +12 GPE0_STS 8 bits: general-purpose events, which are edges
 *        +13 GPE0_EN  the same bits enable the SCI
 */
#include "devices/acpi_pm.h"

#include <errno.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

enum {
    STS_TIMER = 1 << 0,
    STS_GLOBAL_LOCK = 1 << 5,
    STS_POWER_BUTTON = 1 << 8,
    STS_SLEEP_BUTTON = 1 << 9,
    STS_RTC = 1 << 10,
    STS_WAKE = 1 << 15
};
enum { CNT_SCI_EN = 1 << 0, CNT_WRITABLE = 7 << 10 | 2, CNT_TYPE_SHIFT = 10, CNT_SLEEP = 1 << 13 };
#define STS_MASK (STS_TIMER | STS_GLOBAL_LOCK | STS_POWER_BUTTON | STS_SLEEP_BUTTON | STS_RTC | STS_WAKE)
#define EN_MASK (STS_MASK & ~STS_WAKE)
#define BLOCK_SIZE ACPI_PM_PORTS
#define HALF_PERIOD (1ull << 31)
#define SECOND_NS 1000000000ull

struct acpi_pm_state {
    uint16_t status, enable, control;
    uint64_t start_ns; /* clock_ns() when the timer was zero */
    uint64_t halves;   /* half periods whose carry has been put into status */
    uint64_t save_ns;  /* clock_ns() of the save */
    uint8_t gpe_status, gpe_enable;
    uint8_t pad[6];
};

struct acpi_pm {
    struct acpi_pm_state saved;
    struct device_env env;
    struct bus_range block;
    struct loop_timer timer;
};

static uint64_t ticks(const struct acpi_pm *pm)
{
    return (uint64_t)((unsigned __int128)(clock_ns() - pm->saved.start_ns) * ACPI_PM_TIMER_HZ / SECOND_NS);
}

/* Puts carries into status, drives the SCI, and arms the timer only while somebody waits for it. */
static void update(struct acpi_pm *pm)
{
    struct acpi_pm_state *s = &pm->saved;
    uint64_t halves = ticks(pm) / HALF_PERIOD;

    if (halves != s->halves) {
        s->halves = halves;
        s->status |= STS_TIMER;
    }
    irq_set(&pm->env.isa_irq[ACPI_SCI_GSI], (s->status & s->enable & EN_MASK) || (s->gpe_status & s->gpe_enable));
    if ((s->enable & STS_TIMER) && !(s->status & STS_TIMER)) {
        unsigned __int128 next = (unsigned __int128)(halves + 1) * HALF_PERIOD;
        loop_timer_set(pm->env.loop, &pm->timer, s->start_ns + (uint64_t)(next * SECOND_NS / ACPI_PM_TIMER_HZ) + 1);
    } else {
        loop_timer_cancel(pm->env.loop, &pm->timer);
    }
}

static void timer_fired(void *opaque)
{
    update(opaque);
}

void acpi_pm_power_button(struct device *dev)
{
    struct acpi_pm *pm = dev->state;
    pm->saved.status |= STS_POWER_BUTTON;
    update(pm);
}

void acpi_pm_event(struct device *dev, unsigned n)
{
    struct acpi_pm *pm = dev->state;
    pm->saved.gpe_status |= (uint8_t)(1u << n);
    update(pm);
}

/* --- registers ------------------------------------------------------------------------------------ */

static uint64_t block_read(void *opaque, uint64_t offset, unsigned size)
{
    struct acpi_pm *pm = opaque;
    uint8_t image[BLOCK_SIZE + 4] = {0};
    uint64_t value = 0;

    update(pm);
    uint32_t now = (uint32_t)ticks(pm);
    memcpy(image + 0, &pm->saved.status, 2);
    memcpy(image + 2, &pm->saved.enable, 2);
    memcpy(image + 4, &pm->saved.control, 2);
    memcpy(image + 8, &now, 4);
    image[12] = pm->saved.gpe_status;
    image[13] = pm->saved.gpe_enable;
    memcpy(&value, image + offset, size);
    return value;
}

static void write_control(struct acpi_pm *pm, uint16_t value)
{
    pm->saved.control = (uint16_t)((value & CNT_WRITABLE) | CNT_SCI_EN);
    if ((value & CNT_SLEEP) && ((value >> CNT_TYPE_SHIFT) & 7) == ACPI_S5_TYPE && pm->env.event)
        pm->env.event(pm->env.event_opaque, MACHINE_POWEROFF);
}

/* One 16-bit register; `mask` has the bits that the access covers. */
static void write_register(struct acpi_pm *pm, unsigned offset, uint16_t value, uint16_t mask)
{
    struct acpi_pm_state *s = &pm->saved;
    switch (offset) {
    case 0:
        s->status &= (uint16_t) ~(value & mask & STS_MASK);
        break;
    case 2:
        s->enable = (uint16_t)(((s->enable & ~mask) | (value & mask)) & EN_MASK);
        break;
    case 4:
        write_control(pm, (uint16_t)((s->control & ~mask) | (value & mask)));
        break;
    case 12:
        s->gpe_status &= (uint8_t) ~(value & mask);
        if (mask >> 8)
            s->gpe_enable = (uint8_t)(value >> 8);
        break;
    }
}

static void block_write(void *opaque, uint64_t offset, uint64_t value, unsigned size)
{
    struct acpi_pm *pm = opaque;

    update(pm); /* a carry that is due belongs before the write */
    for (unsigned i = 0; i < size;) {
        unsigned reg = (unsigned)(offset + i) & ~1u, shift = 8 * ((unsigned)(offset + i) & 1);
        unsigned bytes = shift || size - i == 1 ? 1 : 2;
        uint32_t part = (uint32_t)(value >> 8 * i) & (bytes == 2 ? 0xffff : 0xff);
        write_register(pm, reg, (uint16_t)(part << shift), (uint16_t)((bytes == 2 ? 0xffff : 0xff) << shift));
        i += bytes;
    }
    update(pm);
}

static const struct bus_ops block_ops = {.read = block_read, .write = block_write};

/* --- assembly -------------------------------------------------------------------------------------- */

static void acpi_pm_reset(struct device *dev)
{
    struct acpi_pm *pm = dev->state;
    pm->saved = (struct acpi_pm_state){.control = CNT_SCI_EN, .start_ns = clock_ns()};
    update(pm);
}

static int acpi_pm_create(struct device *dev, const struct device_env *env, const void *config)
{
    struct acpi_pm *pm = calloc(1, sizeof *pm);
    if (!pm)
        return -ENOMEM;
    pm->env = *env;
    loop_timer_init(&pm->timer, timer_fired, pm);
    pm->block = (struct bus_range){ACPI_PM1A_EVT, BLOCK_SIZE, &block_ops, pm, "acpi-pm", 0, 0};
    int err = bus_map(env->bus, BUS_PORT, &pm->block);
    if (err) {
        free(pm);
        return err;
    }
    dev->state = pm;
    acpi_pm_reset(dev);
    return 0;
}

static void acpi_pm_destroy(struct device *dev)
{
    struct acpi_pm *pm = dev->state;
    if (!pm)
        return;
    loop_timer_cancel(pm->env.loop, &pm->timer);
    bus_unmap(pm->env.bus, BUS_PORT, &pm->block);
    free(pm);
    dev->state = NULL;
}

static void acpi_pm_pre_save(struct device *dev)
{
    struct acpi_pm *pm = dev->state;
    pm->saved.save_ns = clock_ns();
}

/* The clock that it counts by may be another one now; the guest's timer goes on where it was. */
static void acpi_pm_restored(struct device *dev)
{
    struct acpi_pm *pm = dev->state;

    pm->saved.start_ns += device_later(dev, pm->saved.save_ns);
    pm->saved.control = (uint16_t)((pm->saved.control & CNT_WRITABLE) | CNT_SCI_EN);
    update(pm);
}

const struct device_class acpi_pm_class = {
    .type = "acpi-pm",
    .create = acpi_pm_create,
    .reset = acpi_pm_reset,
    .destroy = acpi_pm_destroy,
    .save_offset = offsetof(struct acpi_pm, saved),
    .save_size = sizeof(struct acpi_pm_state),
    .pre_save = acpi_pm_pre_save,
    .post_restore = acpi_pm_restored,
};
