/* A virtio driver with several queues, for tests, and a loop that runs until something is so. */
#pragma once
#include "host/loop.h"
#include "virtio_driver.h"

#define VQ_MAX 16u
#define VQ_SIZE 64u
#define VQ_AT(q) (0x10000ull + 0x4000ull * (q)) /* descriptors; +0x1000 available; +0x2000 used */

static struct fixture fx;
static struct device dev;
static struct driver drv;
static uint16_t vq_avail[VQ_MAX], vq_seen[VQ_MAX]; /* entries offered; used ones looked at */

/* --- the loop ----------------------------------------------------------------------------------------------- */

struct spin {
    bool (*done)(void *opaque);
    void *opaque;
    uint64_t end;
    unsigned passes; /* of the loop: on a busy host the time may be up before anything was done */
    bool reached;
    struct loop_timer timer;
};

static void spin_check(void *opaque)
{
    struct spin *s = opaque;
    s->reached = s->done && s->done(s->opaque);
    if (s->reached || (++s->passes > 30 && clock_ns() > s->end))
        loop_stop(fx.loop);
    else
        loop_timer_set(fx.loop, &s->timer, clock_ns() + 100000);
}

/* Runs the loop until done() says so; false after `ms` milliseconds. */
static bool spin_until(bool (*done)(void *opaque), void *opaque, unsigned ms)
{
    struct spin s = {.done = done, .opaque = opaque, .end = clock_ns() + ms * 1000000ull};
    loop_timer_init(&s.timer, spin_check, &s);
    loop_timer_set(fx.loop, &s.timer, clock_ns());
    loop_run(fx.loop);
    return s.reached;
}

static void spin(void)
{
    spin_until(NULL, NULL, 3);
}

/* --- the driver ----------------------------------------------------------------------------------------------- */

static inline void vq_setup(unsigned q)
{
    set(&drv, 22, q, 2);
    set(&drv, 24, VQ_SIZE, 2);
    set(&drv, 32, VQ_AT(q), 8);
    set(&drv, 40, VQ_AT(q) + 0x1000, 8);
    set(&drv, 48, VQ_AT(q) + 0x2000, 8);
    set(&drv, 28, 1, 2);
    vq_avail[q] = vq_seen[q] = 0;
}

/* With all of these features and queues. */
static inline void vq_start(uint64_t features, unsigned n_queues)
{
    memset(memory_hva(fx.memory, 0x10000, 0x4000 * n_queues), 0, 0x4000 * n_queues);
    negotiate(&drv, features);
    for (unsigned q = 0; q < n_queues; q++)
        vq_setup(q);
    set(&drv, 20, status(&drv) | VIRTIO_DRIVER_OK, 1);
}

static inline void vq_offer(unsigned q, uint16_t head)
{
    ram16_put(&drv, VQ_AT(q) + 0x1004 + 2 * (vq_avail[q] % VQ_SIZE), head);
    ram16_put(&drv, VQ_AT(q) + 0x1002, ++vq_avail[q]);
}

static inline void vq_kick(unsigned q)
{
    mem_out(&fx, drv.notify + 4 * q, q, 2);
}

/* One buffer, as descriptor i, offered; flags: 0 or WRITE. */
static inline void vq_buffer(unsigned q, uint16_t i, uint64_t at, uint32_t len, uint16_t flags)
{
    put_desc(&drv, VQ_AT(q), i, at, len, flags, 0);
    vq_offer(q, i);
}

/* How many were used that vq_take has not taken. */
static inline uint16_t vq_used(unsigned q)
{
    return (uint16_t)(ram16(&drv, VQ_AT(q) + 0x2002) - vq_seen[q]);
}

/* The next used entry: its descriptor, and in *len what was written. */
static inline uint16_t vq_take(unsigned q, uint32_t *len)
{
    uint64_t entry = VQ_AT(q) + 0x2004 + 8 * (vq_seen[q]++ % VQ_SIZE);
    if (len)
        *len = ram32(&drv, entry + 4);
    return ram16(&drv, entry);
}
