/*
 * virtio-console (5.3).  Queues: 0 and 1 of port 0, 2 and 3 of control, then two for each further port; the first of a
 * pair is for the guest to receive from.
 *
 * A control message is le32 id, le16 event, le16 value, and for a name its bytes.  Those for the guest are kept as
 * what is still to be said about each port, so that a guest that offers no buffers makes nothing grow.
 *
 * A chain that the reader has no room for goes back into its queue (virtio_unpop) with a count of the bytes that are
 * through: so nothing is in flight when the machine is saved.
 */
#include "devices/virtio/console.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "backends/chr.h"
#include "devices/virtio/virtio.h"

enum { F_MULTIPORT = 1 };
enum {
    EVENT_DEVICE_READY,
    EVENT_DEVICE_ADD,
    EVENT_DEVICE_REMOVE,
    EVENT_PORT_READY,
    EVENT_CONSOLE_PORT,
    EVENT_RESIZE,
    EVENT_PORT_OPEN,
    EVENT_PORT_NAME,
};
#define QUEUE_CONTROL_IN 2u
#define QUEUE_CONTROL_OUT 3u
#define PIECE 4096u
#define CHAINS_MAX 256u /* for one notification */

struct message {
    uint32_t id;
    uint16_t event, value;
};

struct console;

struct port {
    struct console *console;
    uint32_t id;
    char name[CONSOLE_NAME_MAX];
    struct chr *chr; /* NULL: no such port */
    bool is_console;
};

struct console {
    struct console_saved {
        struct virtio_state virtio;
        struct {
            uint32_t due;     /* bits 1 << EVENT_: what the guest has not been told yet */
            uint32_t written; /* bytes of the chain at the head of its queue that are through */
            uint32_t ready;   /* the guest knows the port ... */
            uint32_t open;    /* ... and has it open */
        } ports[CONSOLE_PORTS_MAX];
    } saved;
    struct virtio_device virtio;
    struct loop *loop;
    struct virtio_ops ops;                /* the number of queues is this device's own */
    struct loop_timer output;             /* goes on with what was left for want of budget */
    struct port ports[CONSOLE_PORTS_MAX]; /* by id */
    unsigned n_ports;                     /* ids are below; 0 may be missing */
};

static struct console *of(struct virtio_device *v)
{
    return (struct console *)((char *)v - offsetof(struct console, virtio));
}

static unsigned queue_in(uint32_t id)
{
    return id ? 2 * id + 2 : 0;
}

/* --- control ---------------------------------------------------------------------------------------------- */

/* In this order a port is introduced (5.3.6.1). */
static const uint16_t order[] = {EVENT_DEVICE_ADD, EVENT_PORT_NAME, EVENT_CONSOLE_PORT, EVENT_PORT_OPEN};
#define DUE_MASK (1u << EVENT_DEVICE_ADD | 1u << EVENT_PORT_NAME | 1u << EVENT_CONSOLE_PORT | 1u << EVENT_PORT_OPEN)

/* The next thing to say about port p, whose bit is taken away. */
static bool next_message(struct console *c, struct port *p, struct message *m)
{
    uint32_t *due = &c->saved.ports[p->id].due;

    for (size_t i = 0; p->chr && i < sizeof order / sizeof *order; i++)
        if (*due & 1u << order[i]) {
            *due &= ~(1u << order[i]);
            *m = (struct message){p->id, order[i], 1};
            if (order[i] == EVENT_PORT_OPEN)
                m->value = chr_is_present(p->chr);
            return true;
        }
    return false;
}

static void send_message(struct console *c, const struct virtio_chain *chain, const struct port *p,
                         const struct message *m)
{
    uint8_t bytes[sizeof *m + CONSOLE_NAME_MAX];
    size_t len = sizeof *m;

    memcpy(bytes, m, len);
    if (m->event == EVENT_PORT_NAME) {
        memcpy(bytes + len, p->name, strlen(p->name));
        len += strlen(p->name);
    }
    virtio_push(&c->virtio, chain, (uint32_t)virtio_chain_write(&c->virtio, chain, 0, bytes, len));
}

static bool has_message(const struct console *c)
{
    for (unsigned i = 0; i < c->n_ports; i++)
        if (c->ports[i].chr && c->saved.ports[i].due)
            return true;
    return false;
}

static void control_send(struct console *c)
{
    struct virtio_chain chain;
    struct message m;
    bool sent = false;

    if (!virtio_has(&c->virtio, F_MULTIPORT))
        return;
    while (has_message(c)) {
        if (virtio_pop(&c->virtio, QUEUE_CONTROL_IN, &chain) <= 0) {
            if (virtio_rearm(&c->virtio, QUEUE_CONTROL_IN))
                continue;
            break;
        }
        struct port *p = c->ports;
        while (!next_message(c, p, &m))
            p++;
        send_message(c, &chain, p, &m);
        sent = true;
    }
    if (sent)
        virtio_signal(&c->virtio, QUEUE_CONTROL_IN);
}

static void device_ready(struct console *c, const struct message *m)
{
    for (unsigned i = 0; m->value == 1 && i < c->n_ports; i++)
        c->saved.ports[i].due = 1u << EVENT_DEVICE_ADD;
}

static void port_ready(struct console *c, const struct message *m)
{
    const struct port *p = &c->ports[m->id];

    c->saved.ports[m->id].ready = m->value == 1;
    if (m->value == 1)
        c->saved.ports[m->id].due |= 1u << EVENT_PORT_NAME | 1u << EVENT_PORT_OPEN |
                                     (p->is_console ? 1u << EVENT_CONSOLE_PORT : 0);
}

static void port_open(struct console *c, const struct message *m)
{
    c->saved.ports[m->id].open = m->value == 1;
    chr_resume_input(c->ports[m->id].chr);
}

static void control_message(struct console *c, const struct message *m)
{
    bool known = m->id < c->n_ports && c->ports[m->id].chr;

    if (m->event == EVENT_DEVICE_READY)
        device_ready(c, m);
    else if (m->event == EVENT_PORT_READY && known)
        port_ready(c, m);
    else if (m->event == EVENT_PORT_OPEN && known)
        port_open(c, m);
}

static void control_receive(struct console *c)
{
    struct virtio_chain chain;
    struct message m;
    unsigned budget = CHAINS_MAX;
    bool more;

    do {
        while (budget && virtio_pop(&c->virtio, QUEUE_CONTROL_OUT, &chain) > 0) {
            budget--;
            if (virtio_chain_read(&c->virtio, &chain, 0, &m, sizeof m) == sizeof m)
                control_message(c, &m);
            virtio_push(&c->virtio, &chain, 0);
        }
        more = virtio_rearm(&c->virtio, QUEUE_CONTROL_OUT);
    } while (more && budget);
    virtio_signal(&c->virtio, QUEUE_CONTROL_OUT);
    control_send(c);
}

/* --- from the guest ----------------------------------------------------------------------------------------- */

/* True: all of the chain is through; else the reader has no room for the rest. */
static bool write_chain(struct console *c, struct port *p, const struct virtio_chain *chain)
{
    uint32_t *written = &c->saved.ports[p->id].written;
    uint8_t bytes[PIECE];
    size_t n;

    while ((n = virtio_chain_read(&c->virtio, chain, *written, bytes, sizeof bytes)) > 0) {
        size_t taken = chr_try_write(p->chr, bytes, n);
        *written += (uint32_t)taken;
        if (taken < n)
            return false;
    }
    *written = 0;
    return true;
}

static void port_output(struct console *c, struct port *p)
{
    unsigned queue = queue_in(p->id) + 1, budget = CHAINS_MAX;
    struct virtio_chain chain;
    bool more = true, pushed = false;

    while (more && budget--) {
        if (virtio_pop(&c->virtio, queue, &chain) <= 0) {
            more = virtio_rearm(&c->virtio, queue);
        } else if (write_chain(c, p, &chain)) {
            virtio_push(&c->virtio, &chain, 0);
            pushed = true;
        } else {
            virtio_unpop(&c->virtio, &chain); /* until there is space: on_space */
            more = false;
        }
    }
    if (more)
        loop_timer_set(c->loop, &c->output, 0);
    if (pushed)
        virtio_signal(&c->virtio, queue);
}

static void on_space(void *opaque)
{
    struct port *p = opaque;

    port_output(p->console, p);
}

static void on_output(void *opaque)
{
    struct console *c = opaque;

    for (unsigned i = 0; i < c->n_ports; i++)
        if (c->ports[i].chr)
            port_output(c, &c->ports[i]);
}

/* --- to the guest --------------------------------------------------------------------------------------------- */

/* Without multiport there is nothing to open. */
static bool is_open(const struct console *c, const struct port *p)
{
    return !virtio_has(&c->virtio, F_MULTIPORT) || c->saved.ports[p->id].open;
}

static size_t on_input(void *opaque, const void *data, size_t len)
{
    struct port *p = opaque;
    struct console *c = p->console;
    unsigned queue = queue_in(p->id);
    struct virtio_chain chain;
    unsigned budget = CHAINS_MAX;
    size_t done = 0;

    while (done < len && is_open(c, p) && budget--) {
        if (virtio_pop(&c->virtio, queue, &chain) <= 0) {
            if (virtio_rearm(&c->virtio, queue))
                continue;
            break;
        }
        size_t n = virtio_chain_write(&c->virtio, &chain, 0, (const char *)data + done, len - done);
        virtio_push(&c->virtio, &chain, (uint32_t)n);
        done += n;
    }
    if (done)
        virtio_signal(&c->virtio, queue);
    if (!(budget + 1)) /* it wrapped: the guest gave many buffers without room in them */
        chr_resume_input(p->chr);
    return done;
}

static void on_presence(void *opaque, bool present)
{
    struct port *p = opaque;

    if (!p->console->saved.ports[p->id].ready)
        return;
    p->console->saved.ports[p->id].due |= 1u << EVENT_PORT_OPEN;
    control_send(p->console);
}

/* --- the device ------------------------------------------------------------------------------------------------- */

static void on_notify(struct virtio_device *v, unsigned q)
{
    struct console *c = of(v);

    if (q == QUEUE_CONTROL_IN) {
        control_send(c);
        return;
    }
    if (q == QUEUE_CONTROL_OUT) {
        control_receive(c);
        return;
    }
    struct port *p = &c->ports[q < 2 ? 0 : q / 2 - 1];
    if (p->chr && q % 2)
        port_output(c, p);
    else if (p->chr)
        chr_resume_input(p->chr);
}

static void on_reset(struct virtio_device *v)
{
    memset(of(v)->saved.ports, 0, sizeof of(v)->saved.ports);
}

/* le16 cols, rows (not offered), le32 max_nr_ports, le32 emerg_wr (not offered). */
static void config_read(struct virtio_device *v, uint32_t offset, void *buf, unsigned size)
{
    const uint32_t config[3] = {0, of(v)->n_ports, 0};

    memcpy(buf, (const char *)config + offset, size);
}

static const struct virtio_ops console_ops = {
    .name = "virtio-console",
    .device_id = 3,
    .class_code = 0x078000,
    .queue_size = 64,
    .features = 1ull << F_MULTIPORT,
    .config_size = 12,
    .config_read = config_read,
    .notify = on_notify,
    .reset = on_reset,
};

/* Port 0 is what a driver without multiport takes for a console: nothing else gets that number. */
static void place_ports(struct console *c, const struct console_config *config)
{
    c->n_ports = config->n_ports && !config->ports[0].console;
    for (unsigned i = 0; i < config->n_ports; i++) {
        struct port *p = &c->ports[c->n_ports];
        *p = (struct port){
            .console = c, .id = c->n_ports++, .chr = config->ports[i].chr, .is_console = config->ports[i].console};
        strncpy(p->name, config->ports[i].name, sizeof p->name - 1);
    }
}

static int connect_ports(struct console *c)
{
    int err = 0;

    for (unsigned i = 0; i < c->n_ports && !err; i++) {
        struct port *p = &c->ports[i];
        if (p->chr)
            err = chr_set_space(p->chr, on_space, p);
    }
    for (unsigned i = 0; i < c->n_ports && !err; i++)
        if (c->ports[i].chr) {
            chr_set_presence(c->ports[i].chr, on_presence, &c->ports[i]);
            chr_set_input(c->ports[i].chr, on_input, &c->ports[i]);
        }
    return err;
}

static int console_create(struct device *dev, const struct device_env *env, const void *config)
{
    const struct console_config *cc = config;
    unsigned extra = cc->n_ports && !cc->ports[0].console;
    if (!cc->n_ports || cc->n_ports + extra > CONSOLE_PORTS_MAX)
        return -EINVAL;
    struct console *c = calloc(1, sizeof *c);
    if (!c)
        return -ENOMEM;
    c->ops = console_ops;
    c->ops.n_queues = (uint16_t)(2 * (cc->n_ports + extra + 1));
    c->loop = env->loop;
    loop_timer_init(&c->output, on_output, c);
    place_ports(c, cc);
    int err = virtio_init(&c->virtio, &c->saved.virtio, &c->ops, env);
    if (err)
        goto no_virtio;
    err = connect_ports(c);
    if (err)
        goto no_ports;
    dev->state = c;
    return 0;

no_ports:
    virtio_destroy(&c->virtio);
no_virtio:
    free(c);
    return err;
}

static void console_reset(struct device *dev)
{
    struct console *c = dev->state;
    virtio_reset(&c->virtio);
}

static void console_destroy(struct device *dev)
{
    struct console *c = dev->state;

    if (!c)
        return;
    loop_timer_cancel(c->loop, &c->output);
    for (unsigned i = 0; i < c->n_ports; i++)
        chr_close(c->ports[i].chr);
    virtio_destroy(&c->virtio);
    free(c);
    dev->state = NULL;
}

/* Who is at the other end now may be somebody else than when the machine was saved.  What was saved may come from a
 * stranger: a message that nobody knows would be looked for in vain. */
static void console_restored(struct device *dev)
{
    struct console *c = dev->state;

    virtio_restored(&c->virtio);
    for (unsigned i = 0; i < c->n_ports; i++)
        if (c->ports[i].chr) {
            c->saved.ports[i].due &= DUE_MASK;
            c->saved.ports[i].due |= c->saved.ports[i].ready ? 1u << EVENT_PORT_OPEN : 0;
            chr_resume_input(c->ports[i].chr);
        }
    control_send(c);
    loop_timer_set(c->loop, &c->output, 0);
}

const struct device_class virtio_console_class = {
    .type = "virtio-console",
    .create = console_create,
    .reset = console_reset,
    .destroy = console_destroy,
    .save_offset = offsetof(struct console, saved),
    .save_size = sizeof(struct console_saved),
    .post_restore = console_restored,
};
