/*
 * virtio-rng (5.4): one queue of buffers to fill with random bytes.  The smallest complete device:
 * copy this file to begin another.
 */
#include <errno.h>
#include <stddef.h>
#include <stdlib.h>
#include <sys/random.h>

#include "devices/virtio/virtio.h"

/* A request is answered with at most this much; the driver asks again if it wants more. */
#define RNG_BYTES_MAX 4096u
/* Chains served for one notification; a driver that refills faster than we answer waits for its next. */
#define RNG_CHAINS_MAX 256u

struct rng {
    struct rng_state {
        struct virtio_state virtio;
    } saved;
    struct virtio_device virtio;
};

static uint32_t rng_fill(struct virtio_device *v, const struct virtio_chain *chain)
{
    uint8_t bytes[RNG_BYTES_MAX];
    size_t want = chain->in_bytes < sizeof bytes ? chain->in_bytes : sizeof bytes;
    ssize_t got = getrandom(bytes, want, 0);

    return got > 0 ? (uint32_t)virtio_chain_write(v, chain, 0, bytes, (size_t)got) : 0;
}

static void rng_notify(struct virtio_device *v, unsigned q)
{
    struct virtio_chain chain;
    unsigned budget = RNG_CHAINS_MAX;

    do {
        while (budget && virtio_pop(v, q, &chain) > 0) {
            virtio_push(v, &chain, rng_fill(v, &chain));
            budget--;
        }
    } while (virtio_rearm(v, q) && budget && virtio_live(v));
    virtio_signal(v, q);
}

static const struct virtio_ops rng_ops = {
    .name = "virtio-rng",
    .device_id = 4,
    .class_code = 0x00ff00,
    .n_queues = 1,
    .queue_size = 64,
    .notify = rng_notify,
};

static int rng_create(struct device *dev, const struct device_env *env, const void *config)
{
    struct rng *r = calloc(1, sizeof *r);
    if (!r)
        return -ENOMEM;
    int err = virtio_init(&r->virtio, &r->saved.virtio, &rng_ops, env);
    if (err) {
        free(r);
        return err;
    }
    dev->state = r;
    return 0;
}

static void rng_reset(struct device *dev)
{
    struct rng *r = dev->state;
    virtio_reset(&r->virtio);
}

static void rng_destroy(struct device *dev)
{
    struct rng *r = dev->state;
    if (!r)
        return;
    virtio_destroy(&r->virtio);
    free(r);
    dev->state = NULL;
}

static void rng_restored(struct device *dev)
{
    struct rng *r = dev->state;
    virtio_restored(&r->virtio);
}

const struct device_class virtio_rng_class = {
    .type = "virtio-rng",
    .create = rng_create,
    .reset = rng_reset,
    .destroy = rng_destroy,
    .save_offset = offsetof(struct rng, saved),
    .save_size = sizeof(struct rng_state),
    .post_restore = rng_restored,
};
