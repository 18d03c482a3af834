/*
 * virtio-balloon (5.5).  Queues: 0 inflate, 1 deflate (arrays of le32 page numbers, 4 KiB each), 2 statistics, 3 free
 * page hints, 4 free page reports (the buffers themselves are the free memory).
 *
 * A queue exists only if its feature is negotiated, and drivers disagree whether the later ones then move up: Linux up
 * to 6.9 says yes, the specification no.  So hints are offered, but never asked for, which puts reports at 4 for
 * everybody who takes both; for others, 3 is a queue of reports as well.
 *
 * The statistics buffer is read and put back (virtio_unpop): it is the driver's turn only when new ones are wanted
 * (5.5.6.3).  So nothing is in flight when the machine is saved.
 *
 * Pages are given back by the loop's thread, some at a time, so that a large report does not stop the machine.  A chain
 * of which some is left goes back into its queue; after a restore it is begun anew, which does no harm.
 */
#include "devices/virtio/balloon.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "devices/virtio/virtio.h"
#include "memory/memory.h"

enum { F_STATS = 1, F_DEFLATE_ON_OOM = 2, F_HINTS = 3, F_REPORTING = 5 };
enum { QUEUE_INFLATE, QUEUE_DEFLATE, QUEUE_STATS, QUEUE_HINTS, QUEUE_REPORTS, QUEUES };
#define PAGE_SHIFT 12u
#define CHAINS_MAX 32u    /* in one go */
#define RANGES_MAX 1024u  /* given back in one go, each by a system call */
#define PAGES_MAX 16384u  /* page numbers of one chain; Linux sends 256 */
#define PAGES_PIECE 1024u /* of them, read at a time */
#define STAT_SIZE 10u     /* le16 tag, le64 value */
#define STATS_MAX 64u

struct balloon {
    struct balloon_saved {
        struct virtio_state virtio;
        uint32_t target, actual; /* pages */
    } saved;
    struct virtio_device virtio;
    struct loop *loop;
    struct loop_timer work;
    unsigned ranges;       /* that may still be given back in this go */
    uint32_t done[QUEUES]; /* of the chain at the head of a queue: page numbers or buffers that are through */
    struct balloon_stats stats;
    uint64_t stats_ns, returned;
};

static struct balloon *of(struct virtio_device *v)
{
    return (struct balloon *)((char *)v - offsetof(struct balloon, virtio));
}

/* --- pages that come back ------------------------------------------------------------------------------------ */

static void give_back(struct balloon *b, uint64_t gpa, uint64_t len)
{
    b->ranges--;
    if (dma_discard(b->virtio.bus, gpa, len) == 0)
        b->returned += len;
}

/* Page numbers that follow each other are one range.  Returns how many are through. */
static unsigned inflate_pages(struct balloon *b, const uint32_t *pages, unsigned n)
{
    unsigned i = 0;

    for (unsigned run; i < n && b->ranges; i += run) {
        for (run = 1; i + run < n && pages[i + run] == pages[i] + run; run++) {
        }
        give_back(b, (uint64_t)pages[i] << PAGE_SHIFT, (uint64_t)run << PAGE_SHIFT);
    }
    return i;
}

/* A handler goes on at *done with a chain.  True: all of it is through. */
typedef bool page_handler(struct balloon *b, const struct virtio_chain *chain, uint32_t *done);

static bool inflate(struct balloon *b, const struct virtio_chain *chain, uint32_t *done)
{
    uint32_t pages[PAGES_PIECE];
    unsigned n;

    while (*done < PAGES_MAX) {
        n = (unsigned)(virtio_chain_read(&b->virtio, chain, *done * sizeof *pages, pages, sizeof pages) /
                       sizeof *pages);
        unsigned through = inflate_pages(b, pages, n);
        *done += through;
        if (through < n || !n)
            return !n;
    }
    return true;
}

static bool deflate(struct balloon *b, const struct virtio_chain *chain, uint32_t *done)
{
    return true;
}

static bool report(struct balloon *b, const struct virtio_chain *chain, uint32_t *done)
{
    for (; *done < chain->n_in && b->ranges; ++*done)
        give_back(b, chain->buf[chain->n_out + *done].gpa, chain->buf[chain->n_out + *done].len);
    return *done >= chain->n_in;
}

static page_handler *handler_of(const struct balloon *b, unsigned q)
{
    bool reports = virtio_has(&b->virtio, F_REPORTING);

    if (q == QUEUE_INFLATE)
        return inflate;
    if (reports && (q == QUEUE_REPORTS || (q == QUEUE_HINTS && !virtio_has(&b->virtio, F_HINTS))))
        return report;
    return deflate; /* nothing to do with what is offered */
}

static bool serve(struct balloon *b, unsigned q)
{
    page_handler *handler = handler_of(b, q);
    struct virtio_chain chain;
    unsigned budget = CHAINS_MAX;
    bool more = true, pushed = false;

    while (more && budget--) {
        if (virtio_pop(&b->virtio, q, &chain) <= 0) {
            more = virtio_rearm(&b->virtio, q);
            continue;
        }
        if (!handler(b, &chain, &b->done[q])) {
            virtio_unpop(&b->virtio, &chain);
            break;
        }
        b->done[q] = 0;
        virtio_push(&b->virtio, &chain, 0);
        pushed = true;
    }
    if (pushed)
        virtio_signal(&b->virtio, q);
    return more;
}

static void work(void *opaque)
{
    struct balloon *b = opaque;
    bool more = false;

    b->ranges = RANGES_MAX;
    for (unsigned q = 0; q < QUEUES; q++)
        if (q != QUEUE_STATS)
            more |= serve(b, q);
    if (more)
        loop_timer_set(b->loop, &b->work, 0);
}

/* --- statistics -------------------------------------------------------------------------------------------------- */

static const size_t stat_offset[] = {
    /* by tag, 5.5.6.4 */
    offsetof(struct balloon_stats, swap_in),
    offsetof(struct balloon_stats, swap_out),
    offsetof(struct balloon_stats, major_faults),
    offsetof(struct balloon_stats, minor_faults),
    offsetof(struct balloon_stats, free),
    offsetof(struct balloon_stats, total),
    offsetof(struct balloon_stats, available),
    offsetof(struct balloon_stats, caches),
    offsetof(struct balloon_stats, hugepages_allocated),
    offsetof(struct balloon_stats, hugepages_failed),
};

static void read_stats(struct balloon *b, const struct virtio_chain *chain)
{
    uint8_t raw[STAT_SIZE * STATS_MAX];
    size_t len = virtio_chain_read(&b->virtio, chain, 0, raw, sizeof raw);

    memset(&b->stats, 0xff, sizeof b->stats);
    for (size_t at = 0; at + STAT_SIZE <= len; at += STAT_SIZE) {
        uint16_t tag = pci_get16(raw + at);
        if (tag < sizeof stat_offset / sizeof *stat_offset)
            memcpy((char *)&b->stats + stat_offset[tag], raw + at + 2, sizeof(uint64_t));
    }
    b->stats_ns = clock_ns();
}

static void stats_offered(struct balloon *b)
{
    struct virtio_chain chain;

    if (!virtio_has(&b->virtio, F_STATS) || virtio_pop(&b->virtio, QUEUE_STATS, &chain) <= 0)
        return;
    read_stats(b, &chain);
    virtio_unpop(&b->virtio, &chain);
}

void balloon_refresh(struct balloon *b)
{
    struct virtio_chain chain;

    if (!virtio_has(&b->virtio, F_STATS) || virtio_pop(&b->virtio, QUEUE_STATS, &chain) <= 0)
        return;
    virtio_push(&b->virtio, &chain, 0);
    virtio_rearm(&b->virtio, QUEUE_STATS);
    virtio_signal(&b->virtio, QUEUE_STATS);
}

uint64_t balloon_stats(const struct balloon *b, struct balloon_stats *stats)
{
    *stats = b->stats;
    return b->stats_ns;
}

/* --- the target -------------------------------------------------------------------------------------------------- */

int balloon_set_target(struct balloon *b, uint64_t bytes)
{
    uint64_t ram = b->virtio.bus->memory->size;

    if (bytes && (bytes > ram || ram - bytes < BALLOON_LEAST))
        return -ERANGE;
    b->saved.target = (uint32_t)(bytes >> PAGE_SHIFT); /* RAM is less than 2^44 */
    virtio_config_changed(&b->virtio);
    return 0;
}

uint64_t balloon_target(const struct balloon *b)
{
    return (uint64_t)b->saved.target << PAGE_SHIFT;
}
uint64_t balloon_actual(const struct balloon *b)
{
    return (uint64_t)b->saved.actual << PAGE_SHIFT;
}
uint64_t balloon_returned(const struct balloon *b)
{
    return b->returned;
}

/* --- the device -------------------------------------------------------------------------------------------------- */

/* le32 num_pages, actual, free_page_hint_cmd_id (0: none wanted), poison_val (not offered). */
static void config_read(struct virtio_device *v, uint32_t offset, void *buf, unsigned size)
{
    const uint32_t config[4] = {of(v)->saved.target, of(v)->saved.actual, 0, 0};

    memcpy(buf, (const char *)config + offset, size);
}

/* `actual` is the one field that the driver writes; in what pieces is its choice. */
static void config_write(struct virtio_device *v, uint32_t offset, const void *buf, unsigned size)
{
    uint32_t config[4] = {0, of(v)->saved.actual};

    memcpy((char *)config + offset, buf, size);
    of(v)->saved.actual = config[1];
}

static void on_notify(struct virtio_device *v, unsigned q)
{
    struct balloon *b = of(v);

    if (q == QUEUE_STATS)
        stats_offered(b);
    else
        loop_timer_set(b->loop, &b->work, 0);
}

/* The target is the host's wish, and stays. */
static void on_reset(struct virtio_device *v)
{
    struct balloon *b = of(v);

    b->saved.actual = 0;
    memset(b->done, 0, sizeof b->done);
    b->stats_ns = 0;
    memset(&b->stats, 0xff, sizeof b->stats);
}

static const struct virtio_ops balloon_ops = {
    .name = "virtio-balloon",
    .device_id = 5,
    .class_code = 0x00ff00,
    .n_queues = QUEUES,
    .queue_size = 128,
    .features = 1ull << F_STATS | 1ull << F_DEFLATE_ON_OOM | 1ull << F_HINTS | 1ull << F_REPORTING,
    .config_size = 16,
    .config_read = config_read,
    .config_write = config_write,
    .notify = on_notify,
    .reset = on_reset,
};

static int balloon_create(struct device *dev, const struct device_env *env, const void *config)
{
    const struct balloon_config *c = config;
    struct balloon *b = calloc(1, sizeof *b);

    if (!b)
        return -ENOMEM;
    b->loop = env->loop;
    loop_timer_init(&b->work, work, b);
    int err = virtio_init(&b->virtio, &b->saved.virtio, &balloon_ops, env);
    if (err) {
        free(b);
        return err;
    }
    if (c->handle)
        *c->handle = b;
    dev->state = b;
    return 0;
}

static void balloon_reset(struct device *dev)
{
    struct balloon *b = dev->state;
    virtio_reset(&b->virtio);
}

static void balloon_destroy(struct device *dev)
{
    struct balloon *b = dev->state;

    if (!b)
        return;
    loop_timer_cancel(b->loop, &b->work);
    virtio_destroy(&b->virtio);
    free(b);
    dev->state = NULL;
}

static void balloon_restored(struct device *dev)
{
    struct balloon *b = dev->state;

    memset(b->done, 0, sizeof b->done);
    virtio_restored(&b->virtio);
    loop_timer_set(b->loop, &b->work, 0);
}

const struct device_class virtio_balloon_class = {
    .type = "virtio-balloon",
    .create = balloon_create,
    .reset = balloon_reset,
    .destroy = balloon_destroy,
    .save_offset = offsetof(struct balloon, saved),
    .save_size = sizeof(struct balloon_saved),
    .post_restore = balloon_restored,
};
