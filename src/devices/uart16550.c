#include "devices/uart16550.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* Registers (PC16550D, table II): offset 0 and 1 are the divisor latch while LCR.DLAB is set. */
enum { REG_DATA, REG_IER, REG_IIR_FCR, REG_LCR, REG_MCR, REG_LSR, REG_MSR, REG_SCR };
enum { IER_RX = 1, IER_TX = 2, IER_LINE = 4, IER_MODEM = 8 };
enum { IIR_NONE = 1, IIR_MODEM = 0, IIR_TX = 2, IIR_RX = 4, IIR_LINE = 6, IIR_TIMEOUT = 12, IIR_FIFOS = 0xc0 };
enum { FCR_ENABLE = 1, FCR_CLEAR_RX = 2, FCR_CLEAR_TX = 4 };
enum { LCR_DLAB = 0x80 };
enum { MCR_DTR = 1, MCR_RTS = 2, MCR_OUT1 = 4, MCR_OUT2 = 8, MCR_LOOP = 16 };
enum { LSR_DATA = 1, LSR_OVERRUN = 2, LSR_THRE = 0x20, LSR_IDLE = 0x40 };
enum { MSR_CTS = 0x10, MSR_DSR = 0x20, MSR_RI = 0x40, MSR_DCD = 0x80, MSR_D_RI = 4 };

/* From OUTPUT_FULL on the transmitter is not empty; behind it is room for those who have looked before. */
enum { FIFO_SIZE = 16, QUEUE_SIZE = 4096, OUTPUT_FULL = 4096, OUTPUT_SIZE = OUTPUT_FULL + 64 };
/* Output waits this long for more: short for a reader, long for a guest that prints. */
#define OUTPUT_DELAY_NS 500000

struct uart {
    struct {
        uint8_t ier, fcr, lcr, mcr, msr, scr, dll, dlm;
        uint8_t overrun;
        uint8_t tx_empty_pending; /* the THRE interrupt condition: set by an empty THR, cleared by IIR */
        uint8_t mcr_written;
        uint8_t fifo_start, fifo_count;
        uint8_t fifo[FIFO_SIZE];
        uint32_t queue_start, queue_count; /* what the other end has sent and the FIFO has no room for */
        uint8_t queue[QUEUE_SIZE];
    } saved;
    struct bus *bus;
    struct loop *loop;
    struct irq_line irq;
    struct loop_timer output_timer;
    uint32_t output_count;
    uint8_t output[OUTPUT_SIZE];
    struct uart16550_config config;
    bool wants_space;
    void (*on_space)(void *opaque);
    void *space_opaque;
    struct bus_range range;
};

/* --- interrupts ----------------------------------------------------------------------------------- */

static unsigned fifo_depth(const struct uart *u)
{
    return u->saved.fcr & FCR_ENABLE ? FIFO_SIZE : 1;
}

static unsigned fifo_trigger(const struct uart *u)
{
    static const uint8_t levels[4] = {1, 4, 8, 14};
    return u->saved.fcr & FCR_ENABLE ? levels[u->saved.fcr >> 6] : 1;
}

/* The identification of highest priority (table III), without the FIFO bits. */
static uint8_t interrupt_id(const struct uart *u)
{
    uint8_t ier = u->saved.ier;
    if ((ier & IER_LINE) && u->saved.overrun)
        return IIR_LINE;
    if ((ier & IER_RX) && u->saved.fifo_count >= fifo_trigger(u))
        return IIR_RX;
    /* Below the trigger level the chip waits for four silent character times.  At unlimited speed
     * whatever is there is all that there is, so they have passed. */
    if ((ier & IER_RX) && u->saved.fifo_count)
        return IIR_TIMEOUT;
    if ((ier & IER_TX) && u->saved.tx_empty_pending)
        return IIR_TX;
    if ((ier & IER_MODEM) && (u->saved.msr & 0x0f))
        return IIR_MODEM;
    return IIR_NONE;
}

static void update_irq(struct uart *u)
{
    irq_set(&u->irq, interrupt_id(u) != IIR_NONE);
}

/* --- receiving ------------------------------------------------------------------------------------ */

static void fifo_push(struct uart *u, uint8_t byte)
{
    if (u->saved.fifo_count >= fifo_depth(u)) {
        u->saved.overrun = 1;
        return;
    }
    u->saved.fifo[(u->saved.fifo_start + u->saved.fifo_count++) % FIFO_SIZE] = byte;
}

static uint8_t fifo_pop(struct uart *u)
{
    if (!u->saved.fifo_count)
        return 0;
    uint8_t byte = u->saved.fifo[u->saved.fifo_start];
    u->saved.fifo_start = (u->saved.fifo_start + 1) % FIFO_SIZE;
    u->saved.fifo_count--;
    return byte;
}

/*
 * The other end honours RTS: what is typed, or piped in, before the guest's driver opens the port
 * is kept for it and not thrown away with the FIFO when that driver starts.  A guest that never
 * touches MCR, or asks for receive interrupts without RTS, is sent to as well.
 */
static bool may_receive(const struct uart *u)
{
    if (u->saved.mcr & MCR_LOOP)
        return false;
    return (u->saved.mcr & MCR_RTS) || (u->saved.ier & IER_RX) || !u->saved.mcr_written;
}

static void refill(struct uart *u)
{
    while (may_receive(u) && u->saved.queue_count && u->saved.fifo_count < fifo_depth(u)) {
        fifo_push(u, u->saved.queue[u->saved.queue_start]);
        u->saved.queue_start = (u->saved.queue_start + 1) % QUEUE_SIZE;
        u->saved.queue_count--;
    }
    if (u->wants_space && u->saved.queue_count <= QUEUE_SIZE / 2) {
        u->wants_space = false;
        if (u->on_space)
            u->on_space(u->space_opaque);
    }
}

/* RTS went away: bytes that the guest has not seen were not sent yet. */
static void take_back(struct uart *u)
{
    while (u->saved.fifo_count && u->saved.queue_count < QUEUE_SIZE) {
        unsigned last = (u->saved.fifo_start + --u->saved.fifo_count) % FIFO_SIZE;
        u->saved.queue_start = (u->saved.queue_start + QUEUE_SIZE - 1) % QUEUE_SIZE;
        u->saved.queue[u->saved.queue_start] = u->saved.fifo[last];
        u->saved.queue_count++;
    }
}

size_t uart16550_input(void *state, const void *data, size_t len)
{
    struct uart *u = state;
    const uint8_t *bytes = data;
    size_t n = 0;
    while (n < len && u->saved.queue_count < QUEUE_SIZE) {
        u->saved.queue[(u->saved.queue_start + u->saved.queue_count++) % QUEUE_SIZE] = bytes[n++];
        if (u->saved.queue_count == QUEUE_SIZE)
            refill(u);
    }
    u->wants_space = n < len;
    refill(u);
    update_irq(u);
    return n;
}

void uart16550_set_space(void *state, void (*on_space)(void *opaque), void *opaque)
{
    struct uart *u = state;
    u->on_space = on_space;
    u->space_opaque = opaque;
}

/* --- sending -------------------------------------------------------------------------------------- */

static bool is_busy(const struct uart *u)
{
    return u->output_count >= OUTPUT_FULL;
}

/* What is not taken stays in front. */
static void hand_over(struct uart *u)
{
    size_t taken = u->output_count;
    loop_timer_cancel(u->loop, &u->output_timer);
    if (taken && u->config.output)
        taken = u->config.output(u->config.opaque, u->output, taken);
    u->output_count -= (uint32_t)taken;
    memmove(u->output, u->output + taken, u->output_count);
}

size_t uart16550_flush(void *state)
{
    struct uart *u = state;
    bool busy = is_busy(u);
    hand_over(u);
    if (busy && !is_busy(u)) {
        u->saved.tx_empty_pending = 1;
        update_irq(u);
    }
    return u->output_count;
}

static void output_due(void *opaque)
{
    uart16550_flush(opaque);
}

static void transmit(struct uart *u, uint8_t byte)
{
    if (u->saved.mcr & MCR_LOOP) {
        u->saved.tx_empty_pending = 1;
        fifo_push(u, byte);
        return;
    }
    while (u->output_count == OUTPUT_SIZE && u->config.wait && u->config.wait(u->config.opaque)) {
    }
    if (u->output_count < OUTPUT_SIZE)
        u->output[u->output_count++] = byte;
    if (is_busy(u))
        hand_over(u);
    else if (u->output_count == 1)
        loop_timer_set(u->loop, &u->output_timer, clock_ns() + OUTPUT_DELAY_NS);
    u->saved.tx_empty_pending = !is_busy(u); /* else sent at once */
}

/* --- registers ------------------------------------------------------------------------------------ */

/* Modem status: a peer that is always ready, or our own outputs in loopback (MCR, bit 4). */
static void update_modem(struct uart *u)
{
    uint8_t mcr = u->saved.mcr, lines = MSR_CTS | MSR_DSR | MSR_DCD;
    if (mcr & MCR_LOOP)
        lines = (mcr & MCR_RTS ? MSR_CTS : 0) | (mcr & MCR_DTR ? MSR_DSR : 0) | (mcr & MCR_OUT1 ? MSR_RI : 0) |
                (mcr & MCR_OUT2 ? MSR_DCD : 0);
    uint8_t changed = (lines ^ u->saved.msr) & 0xf0, delta = changed >> 4;
    if (lines & MSR_RI)
        delta &= ~MSR_D_RI; /* only the trailing edge of RI counts */
    u->saved.msr = lines | (u->saved.msr & 0x0f) | delta;
}

static uint8_t iir_read(struct uart *u)
{
    uint8_t id = interrupt_id(u);
    if (id == IIR_TX)
        u->saved.tx_empty_pending = 0;
    return id | (u->saved.fcr & FCR_ENABLE ? IIR_FIFOS : 0);
}

static uint8_t register_read(struct uart *u, unsigned reg)
{
    bool dlab = u->saved.lcr & LCR_DLAB;
    uint8_t value;
    switch (reg) {
    case REG_DATA:
        if (dlab)
            return u->saved.dll;
        value = fifo_pop(u);
        refill(u);
        return value;
    case REG_IER:
        return dlab ? u->saved.dlm : u->saved.ier;
    case REG_IIR_FCR:
        return iir_read(u);
    case REG_LCR:
        return u->saved.lcr;
    case REG_MCR:
        return u->saved.mcr;
    case REG_LSR:
        value = (is_busy(u) ? 0 : LSR_THRE | LSR_IDLE) | (u->saved.fifo_count ? LSR_DATA : 0) |
                (u->saved.overrun ? LSR_OVERRUN : 0);
        u->saved.overrun = 0;
        return value;
    case REG_MSR:
        value = u->saved.msr;
        u->saved.msr &= 0xf0;
        return value;
    default:
        return u->saved.scr;
    }
}

static void fcr_write(struct uart *u, uint8_t value)
{
    if ((value ^ u->saved.fcr) & FCR_ENABLE) /* turning the FIFOs on or off empties them */
        value |= FCR_CLEAR_RX;
    /* Linux turns the FIFOs on after it has asked for receive interrupts: what came in between is sent again. */
    if ((value & FCR_CLEAR_RX) && !(u->saved.mcr & MCR_LOOP))
        take_back(u);
    if (value & FCR_CLEAR_RX)
        u->saved.fifo_count = 0;
    u->saved.fcr = value & FCR_ENABLE ? value & (FCR_ENABLE | 0xc0) : 0;
    refill(u);
}

static void mcr_write(struct uart *u, uint8_t value)
{
    bool received = may_receive(u);
    u->saved.mcr = value & 0x1f;
    u->saved.mcr_written = 1;
    if (received && !may_receive(u))
        take_back(u);
    update_modem(u);
    refill(u);
}

static void ier_write(struct uart *u, uint8_t value)
{
    /* While THR is empty, enabling its interrupt raises it, each time. */
    if ((value & IER_TX) && !(u->saved.ier & IER_TX) && !is_busy(u))
        u->saved.tx_empty_pending = 1;
    u->saved.ier = value & 0x0f;
    refill(u);
}

static void register_write(struct uart *u, unsigned reg, uint8_t value)
{
    bool dlab = u->saved.lcr & LCR_DLAB;
    switch (reg) {
    case REG_DATA:
        if (dlab)
            u->saved.dll = value;
        else
            transmit(u, value);
        break;
    case REG_IER:
        if (dlab)
            u->saved.dlm = value;
        else
            ier_write(u, value);
        break;
    case REG_IIR_FCR:
        fcr_write(u, value);
        break;
    case REG_LCR:
        u->saved.lcr = value;
        break;
    case REG_MCR:
        mcr_write(u, value);
        break;
    case REG_SCR:
        u->saved.scr = value;
        break;
    default:
        break; /* LSR and MSR are for the factory's tests only */
    }
}

static uint64_t uart_read(void *opaque, uint64_t offset, unsigned size)
{
    struct uart *u = opaque;
    uint64_t value = 0;
    for (unsigned i = 0; i < size; i++)
        value |= (uint64_t)register_read(u, (unsigned)offset + i) << (i * 8);
    update_irq(u);
    return value;
}

static void uart_write(void *opaque, uint64_t offset, uint64_t value, unsigned size)
{
    struct uart *u = opaque;
    for (unsigned i = 0; i < size; i++)
        register_write(u, (unsigned)offset + i, (uint8_t)(value >> (i * 8)));
    update_irq(u);
}

static const struct bus_ops uart_ops = {uart_read, uart_write};

/* --- struct device_class --------------------------------------------------------------------------- */

static void uart_reset(struct device *dev)
{
    struct uart *u = dev->state;
    hand_over(u);
    take_back(u); /* what was typed is for the next system */
    u->saved.ier = u->saved.fcr = u->saved.lcr = u->saved.mcr = u->saved.scr = u->saved.dlm = 0;
    u->saved.dll = 12;
    u->saved.overrun = u->saved.mcr_written = u->saved.fifo_count = u->saved.fifo_start = 0;
    u->saved.tx_empty_pending = 0;
    u->saved.msr = MSR_CTS | MSR_DSR | MSR_DCD;
    update_irq(u);
}

static int uart_create(struct device *dev, const struct device_env *env, const void *config)
{
    const struct uart16550_config *c = config;
    struct uart *u = calloc(1, sizeof(*u));
    if (!u)
        return -ENOMEM;
    u->bus = env->bus;
    u->loop = env->loop;
    u->config = *c;
    u->irq = env->isa_irq[c->irq];
    dev->state = u;
    loop_timer_init(&u->output_timer, output_due, u);
    u->range = (struct bus_range){c->port, 8, &uart_ops, u, "uart16550"};
    uart_reset(dev);
    return bus_map(u->bus, BUS_PORT, &u->range);
}

static void uart_destroy(struct device *dev)
{
    struct uart *u = dev->state;
    if (!u)
        return;
    hand_over(u);
    bus_unmap(u->bus, BUS_PORT, &u->range);
    free(u);
    dev->state = NULL;
}

static void uart_pre_save(struct device *dev)
{
    uart16550_flush(dev->state); /* written before the save is output of the past */
}

/* Saved bytes may come from another host: indices are brought into range before use. */
static void uart_post_restore(struct device *dev)
{
    struct uart *u = dev->state;
    u->saved.fifo_start %= FIFO_SIZE;
    u->saved.queue_start %= QUEUE_SIZE;
    if (u->saved.fifo_count > FIFO_SIZE)
        u->saved.fifo_count = FIFO_SIZE;
    if (u->saved.queue_count > QUEUE_SIZE)
        u->saved.queue_count = QUEUE_SIZE;
    u->saved.tx_empty_pending |= !is_busy(u); /* when it was saved the other end may have been slow */
    update_irq(u);
}

const struct device_class uart16550_class = {
    .type = "uart16550",
    .create = uart_create,
    .reset = uart_reset,
    .destroy = uart_destroy,
    .save_offset = offsetof(struct uart, saved),
    .save_size = sizeof(((struct uart *)0)->saved),
    .pre_save = uart_pre_save,
    .post_restore = uart_post_restore,
};
