/*
 * virtio-fs (5.11): carries FUSE messages from the guest's kernel to the file server and back.  Queue 0 is for FORGET
 * and INTERRUPT, which must not wait behind requests; queue 1 for all others.
 *
 *   a request   readable buffers: struct fuse_in_header, arguments, data    writable: struct fuse_out_header, results
 *
 * A request is copied out of the guest once (its bulk, when a slot is free for it) and lives in a struct fs_call until
 * its reply has come.  It may come after a reset: the chain's generation then keeps it from the guest.
 */
#include "devices/virtio/fs.h"

#include <errno.h>
#include <linux/fuse.h>
#include <stdlib.h>
#include <string.h>

#include "backends/share.h"
#include "devices/virtio/virtio.h"
#include "host/loop.h"

enum { HIPRIO, REQUESTS, QUEUES };
#define QUEUE_SIZE 256u /* Linux asks for no more pages at once than fit into a chain of this many buffers */
#define CALLS_MAX (QUEUES * QUEUE_SIZE)
#define CHAINS_MAX 512u /* taken in one go: a driver that refills as fast as we empty does not keep us for ever */

struct fs_call {
    struct share_call share; /* first: the backend hands it back */
    struct virtio_chain chain;
    struct fs_call *next_free;
};

struct fs {
    struct fs_state {
        struct virtio_state virtio;
    } saved;
    struct virtio_device virtio;
    struct share *share;
    struct fs_call *calls[CALLS_MAX], *free_calls; /* all, and those not in use */
    unsigned n_calls;
    bool left[QUEUES]; /* has chains that were not taken: goes on when a call is free, or when `more` is due */
    struct loop *loop;
    struct loop_timer more; /* chains are left over from CHAINS_MAX */
    struct {
        char tag[36];
        uint32_t n_request_queues;
    } config;
};

static struct fs *fs_of(struct virtio_device *v)
{
    return (struct fs *)((char *)v - offsetof(struct fs, virtio));
}

/* --- calls --------------------------------------------------------------------------------------------------- */

static struct fs_call *take_call(struct fs *fs)
{
    struct fs_call *call = fs->free_calls;

    if (call) {
        fs->free_calls = call->next_free;
        return call;
    }
    call = fs->n_calls < CALLS_MAX ? malloc(sizeof *call) : NULL;
    if (call)
        fs->calls[fs->n_calls++] = call;
    return call;
}

static void put_call(struct fs *fs, struct fs_call *call)
{
    call->next_free = fs->free_calls;
    fs->free_calls = call;
}

static bool wants_reply(uint32_t opcode)
{
    return opcode != FUSE_FORGET && opcode != FUSE_BATCH_FORGET && opcode != FUSE_INTERRUPT;
}

/* Copies a request's beginning out and says how long it is; 0: it is none, and cannot even be answered. */
static uint32_t read_request(struct fs *fs, struct fs_call *call, uint32_t *reply_max)
{
    const struct virtio_chain *chain = &call->chain;
    uint32_t length = chain->out_bytes, here = length <= SHARE_INLINE ? length : SHARE_HEAD;
    struct fuse_in_header in;

    if (length < sizeof in || length > SHARE_HEAD + SHARE_SLOT_SIZE ||
        virtio_chain_read(&fs->virtio, chain, 0, call->share.packet.bytes, here) != here)
        return 0;
    memcpy(&in, call->share.packet.bytes, sizeof in);
    *reply_max = wants_reply(in.opcode) ? chain->in_bytes : 0;
    if (*reply_max > SHARE_REPLY_HEAD + SHARE_SLOT_SIZE)
        *reply_max = SHARE_REPLY_HEAD + SHARE_SLOT_SIZE;
    return !wants_reply(in.opcode) || *reply_max >= sizeof(struct fuse_out_header) ? length : 0;
}

/* One chain of queue q.  false: there is none now, or no call for it. */
static bool serve_one(struct fs *fs, unsigned q)
{
    struct fs_call *call = take_call(fs);
    uint32_t reply_max = 0;

    fs->left[q] = true;
    if (!call)
        return false;
    if (virtio_pop(&fs->virtio, q, &call->chain) <= 0) {
        put_call(fs, call);
        fs->left[q] = virtio_rearm(&fs->virtio, q);
        return fs->left[q];
    }
    uint32_t length = read_request(fs, call, &reply_max);
    if (length) {
        share_submit(fs->share, &call->share, length, reply_max);
    } else {
        virtio_push(&fs->virtio, &call->chain, 0);
        put_call(fs, call);
    }
    return true;
}

static void serve_queue(struct fs *fs, unsigned q)
{
    unsigned n = 0;

    while (n < CHAINS_MAX && serve_one(fs, q))
        n++;
    if (n == CHAINS_MAX)
        loop_timer_set(fs->loop, &fs->more, clock_ns());
}

static void fs_notify(struct virtio_device *v, unsigned q)
{
    struct fs *fs = fs_of(v);

    serve_queue(fs, q);
    if (q == REQUESTS)
        share_await(fs->share);
    virtio_signal(v, q);
}

/* --- what comes from the backend ----------------------------------------------------------------------------- */

static bool fs_fill(void *opaque, struct share_call *share, void *slot, size_t length)
{
    struct fs *fs = opaque;
    struct fs_call *call = (struct fs_call *)share;

    return call->chain.generation == fs->virtio.generation &&
           virtio_chain_read(&fs->virtio, &call->chain, SHARE_HEAD, slot, length) == length;
}

static void fs_replied(void *opaque, struct share_call *share, const void *head, size_t head_length, const void *rest,
                       size_t rest_length)
{
    struct fs *fs = opaque;
    struct fs_call *call = (struct fs_call *)share;
    size_t written = virtio_chain_write(&fs->virtio, &call->chain, 0, head, head_length);

    if (rest_length)
        written += virtio_chain_write(&fs->virtio, &call->chain, head_length, rest, rest_length);
    virtio_push(&fs->virtio, &call->chain, (uint32_t)written);
    put_call(fs, call);
}

static void fs_idle(void *opaque)
{
    struct fs *fs = opaque;

    for (unsigned q = 0; q < QUEUES; q++) {
        if (fs->left[q])
            serve_queue(fs, q);
        virtio_signal(&fs->virtio, q);
    }
}

static const struct share_user fs_user = {.fill = fs_fill, .replied = fs_replied, .idle = fs_idle};

/* --- the device ---------------------------------------------------------------------------------------------- */

static void fs_config_read(struct virtio_device *v, uint32_t offset, void *buf, unsigned size)
{
    memcpy(buf, (const char *)&fs_of(v)->config + offset, size);
}

static void fs_forget(struct virtio_device *v)
{
    struct fs *fs = fs_of(v);

    memset(fs->left, 0, sizeof fs->left);
    loop_timer_cancel(fs->loop, &fs->more);
    share_reset(fs->share);
}

static const struct virtio_ops fs_ops = {
    .name = "virtio-fs",
    .device_id = 26,
    .class_code = 0x018000,
    .n_queues = QUEUES,
    .queue_size = QUEUE_SIZE,
    .config_size = sizeof((struct fs *)0)->config,
    .config_read = fs_config_read,
    .notify = fs_notify,
    .reset = fs_forget,
};

static int fs_create(struct device *dev, const struct device_env *env, const void *config)
{
    const struct virtio_fs_config *c = config;
    size_t length = strlen(c->tag);
    struct fs *fs;

    if (!length || length > sizeof fs->config.tag)
        return -EINVAL;
    fs = calloc(1, sizeof *fs);
    if (!fs)
        return -ENOMEM;
    fs->share = c->share;
    fs->loop = env->loop;
    loop_timer_init(&fs->more, fs_idle, fs);
    int err = virtio_init(&fs->virtio, &fs->saved.virtio, &fs_ops, env);
    if (err) {
        free(fs);
        return err;
    }
    memcpy(fs->config.tag, c->tag, length); /* NUL only where there is room (5.11.4) */
    fs->config.n_request_queues = QUEUES - 1;
    share_set_user(fs->share, &fs_user, fs);
    dev->state = fs;
    return 0;
}

static void fs_reset(struct device *dev)
{
    struct fs *fs = dev->state;
    virtio_reset(&fs->virtio);
}

static void fs_destroy(struct device *dev)
{
    struct fs *fs = dev->state;
    if (!fs)
        return;
    share_close(fs->share);
    loop_timer_cancel(fs->loop, &fs->more);
    virtio_destroy(&fs->virtio);
    while (fs->n_calls) /* the backend is gone: nobody has one any more */
        free(fs->calls[--fs->n_calls]);
    free(fs);
    dev->state = NULL;
}

/* All that the guest has asked for is done: what it knows and has open is the server's to say then (vm/shares.c), which
 * also finds out that it does not answer. */
static void fs_pre_save(struct device *dev)
{
    struct fs *fs = dev->state;
    int err = share_drain(fs->share);

    while (!err && (fs->left[HIPRIO] || fs->left[REQUESTS])) {
        fs_idle(fs);
        err = share_drain(fs->share);
    }
    for (unsigned q = 0; q < QUEUES; q++)
        virtio_signal(&fs->virtio, q);
    if (!err)
        loop_timer_cancel(fs->loop, &fs->more);
}

static void fs_restored(struct device *dev)
{
    struct fs *fs = dev->state;

    virtio_restored(&fs->virtio);
    for (unsigned q = 0; q < QUEUES; q++)
        fs->left[q] = true;
    loop_timer_set(fs->loop, &fs->more, clock_ns()); /* not at once: the server does not know the guest yet */
}

const struct device_class virtio_fs_class = {
    .type = "virtio-fs",
    .create = fs_create,
    .reset = fs_reset,
    .destroy = fs_destroy,
    .save_offset = offsetof(struct fs, saved),
    .save_size = sizeof(struct fs_state),
    .pre_save = fs_pre_save,
    .post_restore = fs_restored,
};
