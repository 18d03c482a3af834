/* The guest's side of virtio-vsock, for tests: three queues, packets in and out, a loop that runs until something is
 * so. */
#pragma once
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/socket.h>
#include <unistd.h>

#include "devices/virtio/vsock_int.h"
#include "virtio_driver.h"

#define VQ_SIZE 64u
#define VQ_AT(q) (0x10000ull + 0x4000ull * (q)) /* descriptors; +0x1000 available; +0x2000 used */
#define RX_BUFFER(i) (0x100000ull + 0x1000ull * (i))
#define TX_BUFFER 0x180000ull
#define EVENT_BUFFER 0x80000ull
#define GUEST_PORT 1024u

struct vsock_guest {
    struct driver drv;
    uint16_t avail[3], seen[3];
    struct vsock_header h; /* of the last packet received ... */
    uint8_t data[8192];    /* ... and its payload */
};

static struct fixture fx;
static struct device dev;
static struct vsock *vs;
static struct vsock_guest guest;
static uint64_t notify_at(unsigned q)
{
    return guest.drv.notify + 4 * q;
}

/* --- the loop ----------------------------------------------------------------------------------------------- */

struct spin {
    bool (*done)(void *opaque);
    void *opaque;
    uint64_t end;
    bool reached;
    struct loop_timer timer;
};

static void spin_check(void *opaque)
{
    struct spin *s = opaque;
    s->reached = s->done && s->done(s->opaque);
    if (s->reached || clock_ns() > s->end)
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
    set(&guest.drv, 22, q, 2);
    set(&guest.drv, 24, VQ_SIZE, 2);
    set(&guest.drv, 32, VQ_AT(q), 8);
    set(&guest.drv, 40, VQ_AT(q) + 0x1000, 8);
    set(&guest.drv, 48, VQ_AT(q) + 0x2000, 8);
    set(&guest.drv, 28, 1, 2);
    guest.avail[q] = guest.seen[q] = 0;
}

static inline void vq_offer(unsigned q, uint16_t head)
{
    ram16_put(&guest.drv, VQ_AT(q) + 0x1004 + 2 * (guest.avail[q] % VQ_SIZE), head);
    ram16_put(&guest.drv, VQ_AT(q) + 0x1002, ++guest.avail[q]);
}

static inline void rx_offer(uint16_t i)
{
    put_desc(&guest.drv, VQ_AT(0), i, RX_BUFFER(i), 4096, WRITE, 0);
    vq_offer(0, i);
}

static inline void guest_start_with(unsigned rx_buffers)
{
    struct driver *d = &guest.drv;

    memset(memory_hva(fx.memory, 0x10000, 0x10000), 0, 0x10000);
    negotiate(d, FEATURES_ALL);
    for (unsigned q = 0; q < 3; q++)
        vq_setup(q);
    set(d, 20, status(d) | VIRTIO_DRIVER_OK, 1);
    for (uint16_t i = 0; i < rx_buffers; i++)
        rx_offer(i);
    mem_out(&fx, notify_at(0), 0, 2);
    put_desc(d, VQ_AT(2), 0, EVENT_BUFFER, 64, WRITE, 0);
    vq_offer(2, 0);
}

static inline void guest_start(void)
{
    guest_start_with(VQ_SIZE - 1);
}

/* A packet of the guest as it is: two descriptors, the header and `len` bytes of payload. */
static inline void guest_put(const struct vsock_header *h, const void *payload, uint32_t len)
{
    struct driver *d = &guest.drv;
    uint16_t i = (uint16_t)(2 * (guest.avail[1] % (VQ_SIZE / 2)));
    uint64_t at = TX_BUFFER + 0x10400ull * (i / 2);

    memory_write(fx.memory, at, h, sizeof *h);
    put_desc(d, VQ_AT(1), i, at, sizeof *h, len ? NEXT : 0, (uint16_t)(i + 1));
    if (len) {
        memory_write(fx.memory, at + 64, payload, len);
        put_desc(d, VQ_AT(1), i + 1, at + 64, len, 0, 0);
    }
    vq_offer(1, i);
    mem_out(&fx, notify_at(1), 1, 2);
}

static uint32_t guest_alloc = 1 << 20, guest_consumed; /* the credit that the guest's packets give */

static inline struct vsock_header guest_header(uint32_t guest_port, uint32_t host_port, uint16_t op)
{
    return (struct vsock_header){.src_cid = 3,
                                 .dst_cid = 2,
                                 .src_port = guest_port,
                                 .dst_port = host_port,
                                 .type = 1,
                                 .op = op,
                                 .buf_alloc = guest_alloc,
                                 .fwd_cnt = guest_consumed};
}

static inline void guest_send(uint32_t guest_port, uint32_t host_port, uint16_t op, uint32_t flags, const void *payload,
                              uint32_t len)
{
    struct vsock_header h = guest_header(guest_port, host_port, op);
    h.flags = flags;
    h.len = len;
    guest_put(&h, payload, len);
}

static bool packet_there(void *opaque)
{
    return ram16(&guest.drv, VQ_AT(0) + 0x2002) != guest.seen[0];
}

/* Takes the next packet, gives its buffer back.  False: none comes. */
static inline bool guest_take_within(unsigned ms)
{
    if (!packet_there(NULL) && !spin_until(packet_there, NULL, ms))
        return false;
    uint64_t entry = VQ_AT(0) + 0x2004 + 8 * (guest.seen[0]++ % VQ_SIZE);
    uint16_t i = ram16(&guest.drv, entry);
    uint32_t len = ram32(&guest.drv, entry + 4);
    assert_in_range(len, sizeof guest.h, 4096);
    memory_read(fx.memory, RX_BUFFER(i), &guest.h, sizeof guest.h);
    assert_int_equal(guest.h.len, len - sizeof guest.h);
    memory_read(fx.memory, RX_BUFFER(i) + sizeof guest.h, guest.data, guest.h.len);
    rx_offer(i);
    mem_out(&fx, notify_at(0), 0, 2);
    return true;
}

static inline void expect_packet(uint16_t op, uint32_t guest_port)
{
    assert_true(guest_take_within(1000));
    assert_int_equal(guest.h.op, op);
    assert_int_equal(guest.h.src_cid, 2);
    assert_int_equal(guest.h.dst_cid, 3);
    assert_int_equal(guest.h.dst_port, guest_port);
}

static inline void expect_silence(void)
{
    assert_false(guest_take_within(5));
}
