/*
 * Split virtqueues (2.7).  Three areas of guest memory, all written by the guest at any time:
 *
 *   descriptors  size x { le64 addr; le32 len; le16 flags; le16 next }            align 16
 *   available    le16 flags, idx; le16 ring[size]; le16 used_event                align 2
 *   used         le16 flags, idx; { le32 id; le32 len } ring[size]; le16 avail_event  align 4
 *
 * Each number is fetched once into a local.  A walk ends after as many steps as the table has
 * entries, so a loop ends too.
 */
#include <errno.h>
#include <string.h>

#include "devices/virtio/virtio.h"
#include "memory/memory.h"

enum { DESC_NEXT = 1, DESC_WRITE = 2, DESC_INDIRECT = 4 };
enum { AVAIL_NO_INTERRUPT = 1 };
#define RING_IDX 2u
#define RING_ENTRIES 4u
#define DESC_SIZE 16u
#define USED_SIZE 8u

struct descriptor {
    uint64_t addr;
    uint32_t len;
    uint16_t flags, next;
};

static uint64_t driver_area(const struct virtio_queue_state *q)
{
    return RING_ENTRIES + 2ull * q->size + 2;
}
static uint64_t device_area(const struct virtio_queue_state *q)
{
    return RING_ENTRIES + (uint64_t)USED_SIZE * q->size + 2;
}

const char *virtio_queue_check(const struct virtio_device *v, const struct virtio_queue_state *q)
{
    const struct memory *m = v->bus->memory;

    if (!q->size || q->size > v->ops->queue_size || (q->size & (q->size - 1)))
        return "the driver chose a queue size that is not a power of two in range";
    if (q->desc % 16 || q->driver % 2 || q->device % 4)
        return "the driver placed a ring at an unaligned address";
    if (!memory_is_ram(m, q->desc, (uint64_t)DESC_SIZE * q->size) || !memory_is_ram(m, q->driver, driver_area(q)) ||
        !memory_is_ram(m, q->device, device_area(q)))
        return "the driver placed a ring outside RAM";
    return NULL;
}

/* Ring indices pair with the driver's barriers.  Sequentially consistent, because twice a store must be
 * visible before a later load: our used index before the driver's wish for an interrupt (2.7.7.2,
 * 2.7.10), our event index before its available index (2.7.10.1); either side then sees the other.
 * The addresses were checked (in RAM, aligned) when the queue was enabled, and are again here since
 * a restored state comes from outside. */
static uint16_t load16(const struct virtio_device *v, uint64_t gpa)
{
    const uint16_t *p = memory_hva_read(v->bus->memory, gpa, sizeof *p);
    return p && gpa % 2 == 0 ? __atomic_load_n(p, __ATOMIC_SEQ_CST) : 0;
}

static void store16(struct virtio_device *v, uint64_t gpa, uint16_t value)
{
    uint16_t *p = memory_hva(v->bus->memory, gpa, sizeof *p);
    if (!p || gpa % 2)
        return;
    __atomic_store_n(p, value, __ATOMIC_SEQ_CST);
    if (v->bus->dma_dirty)
        v->bus->dma_dirty(v->bus->dma_dirty_opaque, gpa, sizeof *p);
}

static const char *add_buffer(struct virtio_device *v, struct virtio_chain *c, const struct descriptor *d)
{
    bool in = d->flags & DESC_WRITE;
    uint32_t *total = in ? &c->in_bytes : &c->out_bytes;

    if (!in && c->n_in)
        return "a device-readable buffer follows a device-writable one";
    if (c->n_out + c->n_in == VIRTIO_CHAIN_MAX)
        return "a descriptor chain has too many buffers";
    if (!d->len)
        return "a descriptor has length zero";
    if (!memory_is_ram(v->bus->memory, d->addr, d->len))
        return "a descriptor points outside RAM";
    if (__builtin_add_overflow(*total, d->len, total))
        return "the lengths of a descriptor chain add up to more than 4 GiB";
    c->buf[c->n_out + c->n_in] = (struct virtio_buffer){d->addr, d->len};
    *(in ? &c->n_in : &c->n_out) += 1;
    return NULL;
}

struct walk {
    uint64_t table;
    uint32_t size; /* entries of the table */
    uint32_t index, steps;
    bool indirect;
};

static const char *enter_indirect(struct virtio_device *v, struct walk *w, const struct descriptor *d)
{
    if (!virtio_has(v, VIRTIO_F_INDIRECT_DESC))
        return "an indirect descriptor was used without the feature";
    if (w->indirect)
        return "an indirect table contains an indirect descriptor";
    if (d->flags & DESC_NEXT)
        return "an indirect descriptor has a next one";
    if (!d->len || d->len % DESC_SIZE || d->len / DESC_SIZE > VIRTIO_CHAIN_MAX)
        return "an indirect table has a wrong length";
    if (!memory_is_ram(v->bus->memory, d->addr, d->len))
        return "an indirect table lies outside RAM";
    *w = (struct walk){.table = d->addr, .size = d->len / DESC_SIZE, .indirect = true};
    return NULL;
}

static const char *walk_chain(struct virtio_device *v, struct walk *w, struct virtio_chain *c)
{
    for (;;) {
        struct descriptor d;
        const char *why;

        if (w->index >= w->size)
            return "a descriptor index is beyond its table";
        if (w->steps++ == w->size)
            return "a descriptor chain loops";
        if (dma_read(v->bus, w->table + (uint64_t)DESC_SIZE * w->index, &d, sizeof d))
            return "the descriptor table lies outside RAM";
        if (d.flags & DESC_INDIRECT) {
            why = enter_indirect(v, w, &d);
            if (why)
                return why;
            continue;
        }
        why = add_buffer(v, c, &d);
        if (why || !(d.flags & DESC_NEXT))
            return why;
        w->index = d.next;
    }
}

int virtio_pop(struct virtio_device *v, unsigned index, struct virtio_chain *chain)
{
    struct virtio_queue_state *q = &v->state->queues[index];

    if (!virtio_live(v) || !q->enabled)
        return 0;
    uint16_t waiting = (uint16_t)(load16(v, q->driver + RING_IDX) - q->last_avail);
    if (!waiting)
        return 0;
    if (waiting > q->size) {
        virtio_fail(v, "the available index moved by more than the queue size");
        return -EINVAL;
    }
    uint16_t head = load16(v, q->driver + RING_ENTRIES + 2ull * (q->last_avail & (q->size - 1)));
    chain->queue = (uint16_t)index;
    chain->head = head;
    chain->generation = v->generation;
    chain->n_out = chain->n_in = 0;
    chain->out_bytes = chain->in_bytes = 0;
    struct walk w = {.table = q->desc, .size = q->size, .index = head};
    const char *why = walk_chain(v, &w, chain);
    if (why) {
        virtio_fail(v, why);
        return -EINVAL;
    }
    q->last_avail++;
    return 1;
}

void virtio_unpop(struct virtio_device *v, const struct virtio_chain *chain)
{
    if (chain->generation == v->generation)
        v->state->queues[chain->queue].last_avail--;
}

static bool may_give(const struct virtio_device *v, const struct virtio_queue_state *q)
{
    return virtio_live(v) && q->enabled;
}

void virtio_fill(struct virtio_device *v, const struct virtio_chain *chain, unsigned ahead, uint32_t written)
{
    struct virtio_queue_state *q = &v->state->queues[chain->queue];
    uint32_t entry[2] = {chain->head, written};

    if (chain->generation == v->generation && may_give(v, q))
        dma_write(v->bus, q->device + RING_ENTRIES + (uint64_t)USED_SIZE * ((q->used + ahead) & (q->size - 1u)), entry,
                  sizeof entry);
}

void virtio_publish(struct virtio_device *v, unsigned index, unsigned n)
{
    struct virtio_queue_state *q = &v->state->queues[index];

    if (!may_give(v, q))
        return;
    q->used = (uint16_t)(q->used + n);
    store16(v, q->device + RING_IDX, q->used);
}

void virtio_push(struct virtio_device *v, const struct virtio_chain *chain, uint32_t written)
{
    if (chain->generation != v->generation)
        return;
    virtio_fill(v, chain, 0, written);
    virtio_publish(v, chain->queue, 1);
}

static bool wants_interrupt(struct virtio_device *v, struct virtio_queue_state *q)
{
    if (!virtio_has(v, VIRTIO_F_EVENT_IDX))
        return !(load16(v, q->driver) & AVAIL_NO_INTERRUPT);
    uint16_t event = load16(v, q->driver + RING_ENTRIES + 2ull * q->size);
    uint16_t before = q->signalled;
    bool valid = q->signalled_valid;
    q->signalled = q->used;
    q->signalled_valid = true;
    return !valid || (uint16_t)(q->used - event - 1) < (uint16_t)(q->used - before);
}

void virtio_signal(struct virtio_device *v, unsigned index)
{
    struct virtio_queue_state *q = &v->state->queues[index];

    if (virtio_live(v) && q->enabled && wants_interrupt(v, q))
        virtio_queue_interrupt(v, index);
}

bool virtio_rearm(struct virtio_device *v, unsigned index)
{
    struct virtio_queue_state *q = &v->state->queues[index];

    if (!virtio_live(v) || !q->enabled)
        return false;
    if (virtio_has(v, VIRTIO_F_EVENT_IDX))
        store16(v, q->device + RING_ENTRIES + (uint64_t)USED_SIZE * q->size, q->last_avail);
    return load16(v, q->driver + RING_IDX) != q->last_avail;
}

/* One direction of a chain as a byte stream: calls dma on each piece of [offset, offset+len). */
static size_t copy(struct virtio_device *v, const struct virtio_buffer *buf, unsigned n, size_t offset, uint8_t *data,
                   size_t len, bool to_guest)
{
    size_t done = 0;

    for (unsigned i = 0; i < n && done < len; i++) {
        if (offset >= buf[i].len) {
            offset -= buf[i].len;
            continue;
        }
        size_t piece = buf[i].len - offset < len - done ? buf[i].len - offset : len - done;
        int err = to_guest ? dma_write(v->bus, buf[i].gpa + offset, data + done, piece)
                           : dma_read(v->bus, buf[i].gpa + offset, data + done, piece);
        if (err)
            break;
        done += piece;
        offset = 0;
    }
    return done;
}

size_t virtio_chain_read(struct virtio_device *v, const struct virtio_chain *c, size_t offset, void *buf, size_t len)
{
    return copy(v, c->buf, c->n_out, offset, buf, len, false);
}

/* A chain taken before a reset names memory that the guest has since put to other use. */
size_t virtio_chain_write(struct virtio_device *v, const struct virtio_chain *c, size_t offset, const void *buf,
                          size_t len)
{
    if (c->generation != v->generation)
        return 0;
    return copy(v, c->buf + c->n_out, c->n_in, offset, (uint8_t *)(uintptr_t)buf, len, true);
}
