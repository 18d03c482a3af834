/*
 * Virtio over PCI, modern only (4.1).  BAR 0 holds four windows, BAR 2 the MSI-X table:
 *
 *   0x0000 common configuration   0x1000 ISR   0x2000 device configuration   0x3000 notifications, 4 bytes a queue
 *
 * Four or five vendor capabilities say so; the last one, PCI_CFG, reaches BAR 0 from configuration space.
 */
#include <errno.h>
#include <string.h>

#include "devices/virtio/virtio.h"

#define PCI_VENDOR_VIRTIO 0x1af4
#define PCI_DEVICE_VIRTIO 0x1040
#define BAR_REGISTERS 0u
#define BAR_MSIX 2u
#define WINDOW 0x1000u
#define BAR_SIZE (4 * WINDOW)
#define NOTIFY_STRIDE 4u
enum { WINDOW_COMMON, WINDOW_ISR, WINDOW_DEVICE, WINDOW_NOTIFY };
enum { CFG_COMMON = 1, CFG_NOTIFY, CFG_ISR, CFG_DEVICE, CFG_PCI };
enum { ISR_QUEUE = 1, ISR_CONFIG = 2 };
#define COMMON_SIZE 56u

bool virtio_has(const struct virtio_device *v, unsigned feature)
{
    return v->state->driver_features >> feature & 1;
}

bool virtio_live(const struct virtio_device *v)
{
    uint8_t s = v->state->status;
    return (s & VIRTIO_DRIVER_OK) && !(s & VIRTIO_NEEDS_RESET) && pci_is_master(&v->pci);
}

/* --- interrupts (4.1.4.5, 4.1.5.1) ------------------------------------------------------------------ */

static void interrupt(struct virtio_device *v, uint16_t vector, uint8_t isr_bit)
{
    if (pci_msix_enabled(&v->pci)) {
        pci_msix_notify(&v->pci, vector); /* NO_VECTOR is beyond the table: nothing happens */
        return;
    }
    v->state->isr |= isr_bit;
    pci_set_intx(&v->pci, true);
}

void virtio_queue_interrupt(struct virtio_device *v, unsigned q)
{
    interrupt(v, v->state->queues[q].vector, ISR_QUEUE);
}

void virtio_config_changed(struct virtio_device *v)
{
    v->state->config_generation++;
    if (v->state->status & VIRTIO_DRIVER_OK)
        interrupt(v, v->state->config_vector, ISR_CONFIG);
}

void virtio_fail(struct virtio_device *v, const char *why)
{
    if (v->state->status & VIRTIO_NEEDS_RESET)
        return;
    v->error = why;
    v->state->status |= VIRTIO_NEEDS_RESET;
    if (v->state->status & VIRTIO_DRIVER_OK)
        interrupt(v, v->state->config_vector, ISR_CONFIG);
}

/* --- device status (2.1, 3.1.1) --------------------------------------------------------------------- */

/* What writing 0 to the status does: the device's side, not configuration space. */
static void device_reset(struct virtio_device *v)
{
    struct virtio_state *s = v->state;

    v->generation++;
    v->error = NULL;
    s->driver_features = 0;
    s->device_feature_select = s->driver_feature_select = 0;
    s->config_vector = VIRTIO_NO_VECTOR;
    s->queue_select = 0;
    s->status = s->isr = 0;
    memset(s->queues, 0, sizeof s->queues);
    for (unsigned i = 0; i < v->ops->n_queues; i++) {
        s->queues[i].size = v->ops->queue_size;
        s->queues[i].vector = VIRTIO_NO_VECTOR;
    }
    pci_set_intx(&v->pci, false);
    if (v->ops->reset)
        v->ops->reset(v);
}

static void write_status(struct virtio_device *v, uint64_t value)
{
    struct virtio_state *s = v->state;
    uint8_t set = (uint8_t)(value & ~VIRTIO_NEEDS_RESET);

    if (!set) {
        device_reset(v);
        return;
    }
    bool acceptable = !(s->driver_features & ~v->features) && virtio_has(v, VIRTIO_F_VERSION_1);
    if ((set & VIRTIO_FEATURES_OK) && !(s->status & VIRTIO_FEATURES_OK) && !acceptable)
        set &= (uint8_t)~VIRTIO_FEATURES_OK;
    if (!(set & VIRTIO_FEATURES_OK))
        set &= (uint8_t)~VIRTIO_DRIVER_OK; /* 3.1.1: no DRIVER_OK without agreed features */
    bool starts = (set & VIRTIO_DRIVER_OK) && !(s->status & VIRTIO_DRIVER_OK);
    s->status |= set;
    if (starts && v->ops->started)
        v->ops->started(v);
}

/* --- common configuration (4.1.4.3): one table row a field ------------------------------------------ */

static struct virtio_queue_state *selected(struct virtio_device *v)
{
    return v->state->queue_select < v->ops->n_queues ? &v->state->queues[v->state->queue_select] : NULL;
}

/* A queue's description is fixed once it is enabled (4.1.4.3.2). */
static struct virtio_queue_state *selected_idle(struct virtio_device *v)
{
    struct virtio_queue_state *q = selected(v);
    return q && !q->enabled ? q : NULL;
}

static uint64_t get_device_feature_select(struct virtio_device *v)
{
    return v->state->device_feature_select;
}
static void set_device_feature_select(struct virtio_device *v, uint64_t x)
{
    v->state->device_feature_select = (uint32_t)x;
}
static uint64_t get_driver_feature_select(struct virtio_device *v)
{
    return v->state->driver_feature_select;
}
static void set_driver_feature_select(struct virtio_device *v, uint64_t x)
{
    v->state->driver_feature_select = (uint32_t)x;
}

static uint64_t get_device_feature(struct virtio_device *v)
{
    uint32_t select = v->state->device_feature_select;
    return select < 2 ? (uint32_t)(v->features >> 32 * select) : 0;
}

static uint64_t get_driver_feature(struct virtio_device *v)
{
    uint32_t select = v->state->driver_feature_select;
    return select < 2 ? (uint32_t)(v->state->driver_features >> 32 * select) : 0;
}

static void set_driver_feature(struct virtio_device *v, uint64_t x)
{
    unsigned shift = v->state->driver_feature_select ? 32 : 0;
    if (v->state->driver_feature_select < 2 && !(v->state->status & VIRTIO_FEATURES_OK))
        v->state->driver_features = (v->state->driver_features & ~(0xffffffffull << shift)) | x << shift;
}

/* A vector that does not exist reads back as NO_VECTOR (4.1.5.1.2.1). */
static uint16_t usable_vector(struct virtio_device *v, uint64_t x)
{
    return x < v->pci.n_vectors ? (uint16_t)x : VIRTIO_NO_VECTOR;
}

static uint64_t get_config_vector(struct virtio_device *v)
{
    return v->state->config_vector;
}
static void set_config_vector(struct virtio_device *v, uint64_t x)
{
    v->state->config_vector = usable_vector(v, x);
}
static uint64_t get_num_queues(struct virtio_device *v)
{
    return v->ops->n_queues;
}
static uint64_t get_status(struct virtio_device *v)
{
    bool busy = v->ops->busy && v->ops->busy(v);
    return v->state->status | (busy ? VIRTIO_NEEDS_RESET : 0);
}
static uint64_t get_generation(struct virtio_device *v)
{
    return v->state->config_generation;
}
static uint64_t get_queue_select(struct virtio_device *v)
{
    return v->state->queue_select;
}
static void set_queue_select(struct virtio_device *v, uint64_t x)
{
    v->state->queue_select = (uint16_t)x;
}
static uint64_t get_queue_size(struct virtio_device *v)
{
    return selected(v) ? selected(v)->size : 0;
}
static uint64_t get_queue_vector(struct virtio_device *v)
{
    return selected(v) ? selected(v)->vector : VIRTIO_NO_VECTOR;
}
static uint64_t get_queue_enable(struct virtio_device *v)
{
    return selected(v) ? selected(v)->enabled : 0;
}
static uint64_t get_notify_off(struct virtio_device *v)
{
    return selected(v) ? v->state->queue_select : 0;
}
static uint64_t get_desc(struct virtio_device *v)
{
    return selected(v) ? selected(v)->desc : 0;
}
static uint64_t get_driver(struct virtio_device *v)
{
    return selected(v) ? selected(v)->driver : 0;
}
static uint64_t get_device(struct virtio_device *v)
{
    return selected(v) ? selected(v)->device : 0;
}

static void set_queue_size(struct virtio_device *v, uint64_t x)
{
    if (selected_idle(v))
        selected(v)->size = (uint16_t)x;
}

static void set_queue_vector(struct virtio_device *v, uint64_t x)
{
    if (selected(v))
        selected(v)->vector = usable_vector(v, x);
}

static void set_queue_enable(struct virtio_device *v, uint64_t x)
{
    struct virtio_queue_state *q = selected_idle(v);
    if (!q || x != 1)
        return;
    const char *why = virtio_queue_check(v, q);
    if (why)
        virtio_fail(v, why);
    else
        q->enabled = 1;
}

static void set_desc(struct virtio_device *v, uint64_t x)
{
    if (selected_idle(v))
        selected(v)->desc = x;
}

static void set_driver(struct virtio_device *v, uint64_t x)
{
    if (selected_idle(v))
        selected(v)->driver = x;
}

static void set_device(struct virtio_device *v, uint64_t x)
{
    if (selected_idle(v))
        selected(v)->device = x;
}

static const struct common_field {
    uint8_t offset, size;
    uint64_t (*get)(struct virtio_device *v);
    void (*set)(struct virtio_device *v, uint64_t value);
} common_fields[] = {
    {0, 4, get_device_feature_select, set_device_feature_select},
    {4, 4, get_device_feature, NULL},
    {8, 4, get_driver_feature_select, set_driver_feature_select},
    {12, 4, get_driver_feature, set_driver_feature},
    {16, 2, get_config_vector, set_config_vector},
    {18, 2, get_num_queues, NULL},
    {20, 1, get_status, write_status},
    {21, 1, get_generation, NULL},
    {22, 2, get_queue_select, set_queue_select},
    {24, 2, get_queue_size, set_queue_size},
    {26, 2, get_queue_vector, set_queue_vector},
    {28, 2, get_queue_enable, set_queue_enable},
    {30, 2, get_notify_off, NULL},
    {32, 8, get_desc, set_desc},
    {40, 8, get_driver, set_driver},
    {48, 8, get_device, set_device},
};

static const struct common_field *common_field(uint64_t offset)
{
    for (size_t i = 0; i < sizeof common_fields / sizeof *common_fields; i++)
        if (offset >= common_fields[i].offset && offset < common_fields[i].offset + common_fields[i].size)
            return &common_fields[i];
    return NULL;
}

static uint64_t common_read(struct virtio_device *v, uint64_t offset, unsigned size)
{
    const struct common_field *f = common_field(offset);
    return f ? f->get(v) >> 8 * (offset - f->offset) : 0;
}

/* Fields are written whole, 64-bit ones also as two halves (4.1.3.1). */
static void common_write(struct virtio_device *v, uint64_t offset, uint64_t value, unsigned size)
{
    const struct common_field *f = common_field(offset);

    if (!f || !f->set)
        return;
    if (offset == f->offset && size == f->size) {
        f->set(v, value);
    } else if (f->size == 8 && size == 4 && offset % 4 == 0) {
        unsigned shift = 8 * (unsigned)(offset - f->offset);
        f->set(v, (f->get(v) & ~(0xffffffffull << shift)) | (value & 0xffffffffu) << shift);
    }
}

/* --- the other windows ------------------------------------------------------------------------------- */

static uint64_t isr_read(struct virtio_device *v, uint64_t offset, unsigned size)
{
    uint8_t isr = v->state->isr;
    if (offset)
        return 0;
    v->state->isr = 0; /* reading acknowledges (4.1.4.5) */
    pci_set_intx(&v->pci, false);
    return isr;
}

static uint64_t device_read(struct virtio_device *v, uint64_t offset, unsigned size)
{
    uint64_t value = 0;
    if (offset < v->ops->config_size && size <= v->ops->config_size - offset && v->ops->config_read)
        v->ops->config_read(v, (uint32_t)offset, &value, size);
    return value;
}

static void device_write(struct virtio_device *v, uint64_t offset, uint64_t value, unsigned size)
{
    if (offset < v->ops->config_size && size <= v->ops->config_size - offset && v->ops->config_write)
        v->ops->config_write(v, (uint32_t)offset, &value, size);
}

static void notify_write(struct virtio_device *v, uint64_t offset, uint64_t value, unsigned size)
{
    uint64_t q = offset / NOTIFY_STRIDE;
    if (offset % NOTIFY_STRIDE == 0 && q < v->ops->n_queues && virtio_live(v) && v->state->queues[q].enabled)
        v->ops->notify(v, (unsigned)q);
}

static const struct window {
    uint64_t (*read)(struct virtio_device *v, uint64_t offset, unsigned size);
    void (*write)(struct virtio_device *v, uint64_t offset, uint64_t value, unsigned size);
} windows[] = {
    [WINDOW_COMMON] = {common_read, common_write},
    [WINDOW_ISR] = {isr_read, NULL},
    [WINDOW_DEVICE] = {device_read, device_write},
    [WINDOW_NOTIFY] = {NULL, notify_write},
};

static uint64_t registers_read(void *opaque, uint64_t offset, unsigned size)
{
    const struct window *w = &windows[offset / WINDOW];
    return w->read ? w->read(opaque, offset % WINDOW, size) : 0;
}

static void registers_write(void *opaque, uint64_t offset, uint64_t value, unsigned size)
{
    const struct window *w = &windows[offset / WINDOW];
    if (w->write)
        w->write(opaque, offset % WINDOW, value, size);
}

static const struct bus_ops registers_ops = {.read = registers_read, .write = registers_write};

/* --- the PCI_CFG capability (4.1.4.9): +4 bar, +8 offset, +12 length, +16 data ------------------------ */

static bool window_access(struct virtio_device *v, unsigned offset, unsigned size, uint32_t *at, uint32_t *len)
{
    const uint8_t *cap = v->state->pci.config + v->cfg_window;

    *at = pci_get32(cap + 8);
    *len = pci_get32(cap + 12);
    return offset < v->cfg_window + 20 && v->cfg_window + 16 < offset + size && cap[4] == BAR_REGISTERS &&
           (*len == 1 || *len == 2 || *len == 4) && *at % *len == 0 && *at < BAR_SIZE && *len <= BAR_SIZE - *at;
}

static void window_read(struct pci_function *f, unsigned offset, unsigned size)
{
    struct virtio_device *v = (struct virtio_device *)((char *)f - offsetof(struct virtio_device, pci));
    uint32_t at, len;
    if (window_access(v, offset, size, &at, &len))
        pci_put32(v->state->pci.config + v->cfg_window + 16, (uint32_t)registers_read(v, at, len));
}

static void window_written(struct pci_function *f, unsigned offset, unsigned size)
{
    struct virtio_device *v = (struct virtio_device *)((char *)f - offsetof(struct virtio_device, pci));
    uint32_t at, len;
    if (!window_access(v, offset, size, &at, &len))
        return;
    uint32_t value = pci_get32(v->state->pci.config + v->cfg_window + 16);
    registers_write(v, at, len == 4 ? value : value & ((1u << 8 * len) - 1), len);
}

/* --- assembly ------------------------------------------------------------------------------------------ */

static unsigned add_window(struct virtio_device *v, uint8_t type, unsigned window, uint32_t len, unsigned cap_len)
{
    unsigned at = pci_add_capability(&v->pci, PCI_CAP_VENDOR, cap_len);
    uint8_t *cap = v->pci.power_on + at;

    cap[2] = (uint8_t)cap_len;
    cap[3] = type;
    cap[4] = BAR_REGISTERS;
    pci_put32(cap + 8, window * WINDOW);
    pci_put32(cap + 12, len);
    return at;
}

static void add_capabilities(struct virtio_device *v)
{
    add_window(v, CFG_COMMON, WINDOW_COMMON, COMMON_SIZE, 16);
    add_window(v, CFG_ISR, WINDOW_ISR, 1, 16);
    if (v->ops->config_size)
        add_window(v, CFG_DEVICE, WINDOW_DEVICE, v->ops->config_size, 16);
    unsigned notify = add_window(v, CFG_NOTIFY, WINDOW_NOTIFY, NOTIFY_STRIDE * v->ops->n_queues, 20);
    pci_put32(v->pci.power_on + notify + 16, NOTIFY_STRIDE);
    v->cfg_window = add_window(v, CFG_PCI, 0, 0, 20);
    v->pci.writable[v->cfg_window + 4] = 0xff;
    memset(v->pci.writable + v->cfg_window + 8, 0xff, 12);
    v->pci.config_read = window_read;
    v->pci.config_written = window_written;
}

int virtio_init(struct virtio_device *v, struct virtio_state *state, const struct virtio_ops *ops,
                const struct device_env *env)
{
    const struct pci_identity id = {
        .vendor = PCI_VENDOR_VIRTIO,
        .device = (uint16_t)(PCI_DEVICE_VIRTIO + ops->device_id),
        .revision = 1,
        .subsystem_vendor = PCI_VENDOR_VIRTIO,
        .subsystem = 0x1100,
        .class_code = ops->class_code,
        .intx = true,
    };

    if (!env->pci || ops->n_queues > VIRTIO_QUEUES_MAX || ops->queue_size > VIRTIO_QUEUE_SIZE_MAX)
        return -EINVAL;
    memset(state, 0, sizeof *state);
    *v = (struct virtio_device){.state = state, .ops = ops, .bus = env->bus};
    v->features = ops->features | 1ull << VIRTIO_F_VERSION_1 | 1ull << VIRTIO_F_INDIRECT_DESC |
                  1ull << VIRTIO_F_EVENT_IDX;
    pci_function_init(&v->pci, &state->pci, ops->name, &id);
    pci_bar_init(&v->pci, BAR_REGISTERS, PCI_BAR_MEM64, BAR_SIZE, &registers_ops, v);
    pci_msix_init(&v->pci, BAR_MSIX, ops->n_queues + 1u);
    add_capabilities(v);
    device_reset(v);
    return pci_add(env->pci, &v->pci);
}

void virtio_reset(struct virtio_device *v)
{
    device_reset(v);
    pci_function_reset(&v->pci);
}

/* A saved state may come from a stranger: a queue that does not check out is not used. */
void virtio_restored(struct virtio_device *v)
{
    v->generation++;
    for (unsigned i = 0; i < v->ops->n_queues; i++) {
        struct virtio_queue_state *q = &v->state->queues[i];
        const char *why = q->enabled ? virtio_queue_check(v, q) : NULL;
        if (why) {
            q->enabled = 0;
            virtio_fail(v, why);
        }
    }
    pci_function_restored(&v->pci);
}

void virtio_destroy(struct virtio_device *v)
{
    pci_function_destroy(&v->pci);
}
