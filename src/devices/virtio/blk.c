/*
 * virtio-blk (5.2).  A request is a chain: 16 readable bytes that say what, data, one writable byte for the outcome;
 * how these are cut into buffers is the driver's business.
 *
 * At most REQUESTS are at work; further chains stay in their queues.  After a reset the driver is kept waiting until
 * the disk has done what it was given, for that may still write to the guest's memory.
 */
#include "devices/virtio/blk.h"

#include <errno.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "backends/disk.h"
#include "devices/virtio/virtio.h"
#include "memory/memory.h"
/* Behind virtio.h: it has macros of the names that are enumerators there. */
#include <linux/virtio_blk.h>

#define QUEUES 8u
#define QUEUE_SIZE 256u
#define REQUESTS 128u
#define CHAINS_MAX 512u /* taken in one go: a driver that refills as fast as we empty does not keep us for ever */
#define SEGMENTS (VIRTIO_CHAIN_MAX - 2u) /* one buffer each for header and outcome */
#define RANGES 32u                       /* of one discard or write of zeroes */
#define DISCARD_SECTORS (1u << 21)
#define ZEROES_SECTORS (1u << 17)

#define FEATURE(bit) (1ull << VIRTIO_BLK_F_##bit)
#define WRITE_FEATURES (FEATURE(DISCARD) | FEATURE(WRITE_ZEROES))

struct blk_header { /* of a request */
    uint32_t type, reserved;
    uint64_t sector;
};

struct blk_range {
    uint64_t sector;
    uint32_t sectors, flags;
};

struct blk_request {
    struct disk_request disk;
    struct blk *blk;
    struct blk_request *next; /* free */
    unsigned n_ranges, range;
    struct blk_range ranges[RANGES];
    struct iovec iov[VIRTIO_CHAIN_MAX];
    struct virtio_chain chain;
};

struct blk {
    struct blk_state {
        struct virtio_state virtio;
        uint8_t write_back; /* the configuration field */
    } saved;
    struct virtio_device virtio;
    struct loop *loop;
    struct loop_timer more; /* chains are left over from CHAINS_MAX */
    struct disk *disk;
    struct blk_request *requests[REQUESTS], *free; /* all that have been needed so far; a list */
    unsigned n_requests;
    unsigned at_work, stale; /* stale: of those at work, the ones from before a reset */
    unsigned budget;         /* chains that may still be taken before the driver's next kick, or `more` */
    uint32_t ready, notify;  /* queues that may have chains; that have news for the driver: a bit each */
    bool running;
};

static struct blk *blk_of(struct virtio_device *v)
{
    return (struct blk *)((char *)v - offsetof(struct blk, virtio));
}

/* --- configuration (5.2.4) ------------------------------------------------------------------------------ */

static void config_read(struct virtio_device *v, uint32_t offset, void *buf, unsigned size)
{
    const struct blk *b = blk_of(v);
    const uint32_t granule = b->disk->granularity / DISK_SECTOR;
    const struct virtio_blk_config c = {
        .capacity = b->disk->size / DISK_SECTOR,
        .seg_max = SEGMENTS,
        .blk_size = DISK_SECTOR,
        .physical_block_exp = (uint8_t)__builtin_ctz(granule),
        .min_io_size = (uint16_t)granule,
        .wce = b->saved.write_back,
        .num_queues = QUEUES,
        .max_discard_sectors = DISCARD_SECTORS,
        .max_discard_seg = RANGES,
        .discard_sector_alignment = granule,
        .max_write_zeroes_sectors = ZEROES_SECTORS,
        .max_write_zeroes_seg = RANGES,
        .write_zeroes_may_unmap = 1,
    };

    memcpy(buf, (const char *)&c + offset, size);
}

static void config_write(struct virtio_device *v, uint32_t offset, const void *buf, unsigned size)
{
    uint8_t value;

    memcpy(&value, buf, 1);
    if (offset == offsetof(struct virtio_blk_config, wce) && size == 1 && virtio_has(v, VIRTIO_BLK_F_CONFIG_WCE))
        blk_of(v)->saved.write_back = value & 1;
}

/* Without a way to flush, or with write-back switched off, each write is durable when it is done (5.2.6.2). */
static bool writes_through(struct blk *b)
{
    return !virtio_has(&b->virtio, VIRTIO_BLK_F_FLUSH) ||
           (virtio_has(&b->virtio, VIRTIO_BLK_F_CONFIG_WCE) && !b->saved.write_back);
}

/* --- requests ---------------------------------------------------------------------------------------------- */

static struct blk_request *take_request(struct blk *b)
{
    struct blk_request *r = b->free;

    if (r) {
        b->free = r->next;
    } else if (b->n_requests < REQUESTS && (r = calloc(1, sizeof *r))) {
        r->blk = b;
        b->requests[b->n_requests++] = r;
    }
    return r;
}

static void release(struct blk_request *r)
{
    r->next = r->blk->free;
    r->blk->free = r;
}

/* Gives the chain back with its outcome, after `data` bytes; the request is free again. */
static void answer(struct blk_request *r, uint8_t outcome, uint32_t data)
{
    struct blk *b = r->blk;

    virtio_chain_write(&b->virtio, &r->chain, r->chain.in_bytes - 1, &outcome, 1);
    virtio_push(&b->virtio, &r->chain, data + 1);
    b->notify |= 1u << r->chain.queue;
    release(r);
}

static void run(struct blk *b);

static void end(struct blk_request *r, int result)
{
    struct blk *b = r->blk;
    bool read = r->disk.op == DISK_READ;

    b->at_work--;
    if (r->chain.generation != b->virtio.generation)
        b->stale--;
    answer(r, result ? VIRTIO_BLK_S_IOERR : VIRTIO_BLK_S_OK, read ? r->chain.in_bytes - 1 : 0);
    run(b);
}

static void done(struct disk_request *d)
{
    end(d->opaque, d->result);
}

static void read_done(struct disk_request *d)
{
    struct blk_request *r = d->opaque;
    struct bus *bus = r->blk->virtio.bus;

    /* Also after an error: some of it may have arrived. */
    for (unsigned i = r->chain.n_out; i < r->chain.n_out + r->chain.n_in && bus->dma_dirty; i++)
        bus->dma_dirty(bus->dma_dirty_opaque, r->chain.buf[i].gpa, r->chain.buf[i].len);
    end(r, d->result);
}

static void start(struct blk_request *r, enum disk_op op, uint32_t flags, uint64_t sector, uint64_t length,
                  void (*fn)(struct disk_request *d))
{
    struct blk *b = r->blk;
    bool through = (op == DISK_WRITE || op == DISK_WRITE_ZEROES) && writes_through(b);

    r->disk.op = op;
    r->disk.flags = flags | (through ? DISK_FUA : 0);
    r->disk.offset = sector * DISK_SECTOR;
    r->disk.length = length;
    r->disk.iov = r->iov;
    r->disk.done = fn;
    r->disk.opaque = r;
    b->at_work++;
    disk_submit(b->disk, &r->disk);
}

static bool in_range(const struct blk *b, uint64_t sector, uint64_t sectors)
{
    uint64_t all = b->disk->size / DISK_SECTOR;
    return sector <= all && sectors <= all - sector;
}

/* The pieces of guest memory behind `skip` bytes of n buffers, `length` bytes in all. */
static unsigned pieces(struct blk *b, const struct virtio_buffer *buf, unsigned n, uint32_t skip, uint32_t length,
                       struct iovec *iov, bool written)
{
    const struct memory *m = b->virtio.bus->memory;
    unsigned count = 0;

    for (unsigned i = 0; i < n && length; i++) {
        if (skip >= buf[i].len) {
            skip -= buf[i].len;
            continue;
        }
        uint32_t piece = buf[i].len - skip < length ? buf[i].len - skip : length;
        uint64_t at = buf[i].gpa + skip;
        iov[count++] = (struct iovec){
            written ? memory_hva(m, at, piece) : (void *)(uintptr_t)memory_hva_read(m, at, piece), piece};
        length -= piece;
        skip = 0;
    }
    return count;
}

static int transfer(struct blk_request *r, const struct blk_header *h)
{
    const struct virtio_chain *c = &r->chain;
    struct blk *b = r->blk;
    bool read = h->type == VIRTIO_BLK_T_IN;
    uint32_t length = read ? c->in_bytes - 1 : c->out_bytes - (uint32_t)sizeof *h;

    if (length % DISK_SECTOR || !in_range(b, h->sector, length / DISK_SECTOR) || (!read && b->disk->read_only))
        return VIRTIO_BLK_S_IOERR;
    r->disk.n_iov = read ? pieces(b, c->buf + c->n_out, c->n_in, 0, length, r->iov, true)
                         : pieces(b, c->buf, c->n_out, sizeof *h, length, r->iov, false);
    start(r, read ? DISK_READ : DISK_WRITE, 0, h->sector, length, read ? read_done : done);
    return -1;
}

static int flush(struct blk_request *r, const struct blk_header *h)
{
    r->disk.n_iov = 0;
    start(r, DISK_FLUSH, 0, 0, 0, done);
    return -1;
}

static int get_id(struct blk_request *r, const struct blk_header *h)
{
    struct blk *b = r->blk;
    char id[VIRTIO_BLK_ID_BYTES] = "";
    uint32_t room = r->chain.in_bytes - 1;

    memcpy(id, b->disk->spec.serial, strnlen(b->disk->spec.serial, sizeof id));
    virtio_chain_write(&b->virtio, &r->chain, 0, id, room < sizeof id ? room : sizeof id);
    return VIRTIO_BLK_S_OK;
}

/* --- discard and write zeroes: one range after the other in the same request --------------------------------- */

static void next_range(struct blk_request *r);

static void range_done(struct disk_request *d)
{
    struct blk_request *r = d->opaque;
    struct blk *b = r->blk;

    if (d->result || r->range == r->n_ranges || r->chain.generation != b->virtio.generation) {
        end(r, d->result);
        return;
    }
    b->at_work--;
    next_range(r);
    disk_kick(b->disk);
}

static void next_range(struct blk_request *r)
{
    const struct blk_range *range = &r->ranges[r->range++];
    uint32_t flags = range->flags & VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP ? DISK_UNMAP : 0;

    start(r, r->disk.op, flags, range->sector, (uint64_t)range->sectors * DISK_SECTOR, range_done);
}

static int check_range(const struct blk *b, const struct blk_range *range, bool discard)
{
    uint32_t known = discard ? 0 : VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP;

    if (range->flags & ~known)
        return VIRTIO_BLK_S_UNSUPP;
    if (range->sectors > (discard ? DISCARD_SECTORS : ZEROES_SECTORS) || !in_range(b, range->sector, range->sectors))
        return VIRTIO_BLK_S_IOERR;
    return 0;
}

static int ranges(struct blk_request *r, const struct blk_header *h)
{
    struct blk *b = r->blk;
    bool discard = h->type == VIRTIO_BLK_T_DISCARD;
    uint32_t length = r->chain.out_bytes - (uint32_t)sizeof *h;
    int wrong = 0;

    if (!virtio_has(&b->virtio, discard ? VIRTIO_BLK_F_DISCARD : VIRTIO_BLK_F_WRITE_ZEROES))
        return VIRTIO_BLK_S_UNSUPP;
    if (!length || length % sizeof *r->ranges || length > sizeof r->ranges || b->disk->read_only)
        return VIRTIO_BLK_S_IOERR;
    if (virtio_chain_read(&b->virtio, &r->chain, sizeof *h, r->ranges, length) != length)
        return VIRTIO_BLK_S_IOERR;
    r->n_ranges = length / (uint32_t)sizeof *r->ranges;
    for (unsigned i = 0; i < r->n_ranges && !wrong; i++)
        wrong = check_range(b, &r->ranges[i], discard);
    if (wrong)
        return wrong;
    r->range = 0;
    r->disk.n_iov = 0;
    r->disk.op = discard ? DISK_DISCARD : DISK_WRITE_ZEROES;
    next_range(r);
    return -1;
}

/* --- the queues ------------------------------------------------------------------------------------------------ */

static const struct blk_command {
    uint32_t type;
    int (*run)(struct blk_request *r, const struct blk_header *h); /* outcome, or -1: the disk has it */
} commands[] = {
    {VIRTIO_BLK_T_IN, transfer},   {VIRTIO_BLK_T_OUT, transfer},   {VIRTIO_BLK_T_FLUSH, flush},
    {VIRTIO_BLK_T_GET_ID, get_id}, {VIRTIO_BLK_T_DISCARD, ranges}, {VIRTIO_BLK_T_WRITE_ZEROES, ranges},
};

static void serve(struct blk *b, struct blk_request *r)
{
    struct blk_header h;

    if (!r->chain.in_bytes || virtio_chain_read(&b->virtio, &r->chain, 0, &h, sizeof h) != sizeof h) {
        virtio_fail(&b->virtio, "a request has no header, or no place for its outcome");
        release(r);
        return;
    }
    int outcome = VIRTIO_BLK_S_UNSUPP;
    for (unsigned i = 0; i < sizeof commands / sizeof *commands; i++)
        if (commands[i].type == h.type)
            outcome = commands[i].run(r, &h);
    if (outcome >= 0)
        answer(r, (uint8_t)outcome, h.type == VIRTIO_BLK_T_IN ? r->chain.in_bytes - 1 : 0);
}

/* One chain of queue q, if there is one and a request for it.  false: neither now. */
static bool serve_one(struct blk *b, unsigned q)
{
    struct blk_request *r = take_request(b);

    if (!r)
        return false; /* the queue stays ready: those at work come back */
    if (virtio_pop(&b->virtio, q, &r->chain) > 0) {
        serve(b, r);
        return true;
    }
    release(r);
    if (!virtio_rearm(&b->virtio, q))
        b->ready &= ~(1u << q);
    return b->ready & 1u << q;
}

static bool serve_round(struct blk *b)
{
    bool any = false;

    for (unsigned q = 0; q < QUEUES && b->budget; q++)
        if ((b->ready & 1u << q) && serve_one(b, q)) {
            any = true;
            b->budget--;
        }
    return any;
}

static void signal_driver(struct blk *b)
{
    for (; b->notify; b->notify &= b->notify - 1)
        virtio_signal(&b->virtio, (unsigned)__builtin_ctz(b->notify));
}

static void run(struct blk *b)
{
    if (b->running)
        return;
    b->running = true;
    do {
        while (b->ready && serve_round(b))
            ;
        disk_kick(b->disk); /* what ends at once makes room */
    } while (b->ready && serve_round(b));
    b->running = false;
    signal_driver(b);
    if (!b->budget && b->ready)
        loop_timer_set(b->loop, &b->more, clock_ns());
}

static void run_afresh(struct blk *b)
{
    b->budget = CHAINS_MAX;
    run(b);
}

static void run_more(void *opaque)
{
    run_afresh(opaque);
}

static void notify(struct virtio_device *v, unsigned q)
{
    blk_of(v)->ready |= 1u << q;
    run_afresh(blk_of(v));
}

static void reset(struct virtio_device *v)
{
    struct blk *b = blk_of(v);

    b->stale = b->at_work;
    b->ready = b->notify = 0;
    b->saved.write_back = 1;
}

static bool busy(struct virtio_device *v)
{
    return blk_of(v)->stale;
}

/* --- the device --------------------------------------------------------------------------------------------------- */

static const struct virtio_ops blk_ops = {
    .name = "virtio-blk",
    .device_id = 2,
    .class_code = 0x018000,
    .n_queues = QUEUES,
    .queue_size = QUEUE_SIZE,
    .features = FEATURE(SEG_MAX) | FEATURE(BLK_SIZE) | FEATURE(FLUSH) | FEATURE(TOPOLOGY) | FEATURE(CONFIG_WCE) |
                FEATURE(MQ) | WRITE_FEATURES,
    .config_size = sizeof(struct virtio_blk_config),
    .config_read = config_read,
    .config_write = config_write,
    .notify = notify,
    .reset = reset,
    .busy = busy,
};

static void free_all(struct blk *b)
{
    while (b->n_requests)
        free(b->requests[--b->n_requests]);
    free(b);
}

static int blk_create(struct device *dev, const struct device_env *env, const void *config)
{
    const struct blk_config *c = config;
    struct blk *b = calloc(1, sizeof *b);

    if (!b)
        return -ENOMEM;
    b->disk = c->disk;
    b->loop = env->loop;
    loop_timer_init(&b->more, run_more, b);
    b->free = take_request(b); /* one at least, so that there is always one that comes back */
    int err = b->free ? virtio_init(&b->virtio, &b->saved.virtio, &blk_ops, env) : -ENOMEM;
    if (err) {
        free_all(b);
        return err;
    }
    if (b->disk->read_only)
        b->virtio.features = (b->virtio.features & ~WRITE_FEATURES) | FEATURE(RO);
    dev->state = b;
    return 0;
}

static void blk_reset(struct device *dev)
{
    struct blk *b = dev->state;

    virtio_reset(&b->virtio);
    disk_drain(b->disk);
    loop_timer_cancel(b->loop, &b->more);
}

static void blk_destroy(struct device *dev)
{
    struct blk *b = dev->state;

    if (!b)
        return;
    virtio_reset(&b->virtio);
    disk_close(b->disk);
    loop_timer_cancel(b->loop, &b->more);
    virtio_destroy(&b->virtio);
    free_all(b);
    dev->state = NULL;
}

/* Waits for the disk without taking more from the queues. */
static void finish_work(struct blk *b)
{
    b->running = true;
    disk_drain(b->disk);
    b->running = false;
}

/* What is at work becomes part of the saved memory and of the disk. */
static void blk_pre_save(struct device *dev)
{
    struct blk *b = dev->state;

    finish_work(b);
    signal_driver(b);
}

static void blk_restored(struct device *dev)
{
    struct blk *b = dev->state;

    b->virtio.generation++; /* what is at work is nobody's any more */
    b->stale = b->at_work;
    finish_work(b);
    b->saved.write_back &= 1;
    virtio_restored(&b->virtio);
    b->notify = 0;
    b->ready = (1u << QUEUES) - 1;
    run_afresh(b);
}

const struct device_class virtio_blk_class = {
    .type = "virtio-blk",
    .create = blk_create,
    .reset = blk_reset,
    .destroy = blk_destroy,
    .save_offset = offsetof(struct blk, saved),
    .save_size = sizeof(struct blk_state),
    .pre_save = blk_pre_save,
    .post_restore = blk_restored,
};
