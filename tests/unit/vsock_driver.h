/* The guest's side of virtio-vsock, for tests: three queues, packets in and out, a loop that runs until something is
 * so. */
#pragma once
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/socket.h>
#include <unistd.h>

#include "devices/virtio/vsock_int.h"
#include "virtio_guest.h"

#define RX_BUFFER(i) (0x100000ull + 0x1000ull * (i))
#define TX_BUFFER 0x180000ull
#define EVENT_BUFFER 0x80000ull
#define GUEST_PORT 1024u

struct vsock_guest {
    struct vsock_header h; /* of the last packet received ... */
    uint8_t data[8192];    /* ... and its payload */
};

static struct vsock *vs;
static struct vsock_guest guest;

static inline void rx_offer(uint16_t i)
{
    vq_buffer(0, i, RX_BUFFER(i), 4096, WRITE);
}

static inline void guest_start_with(unsigned rx_buffers)
{
    vq_start(FEATURES_ALL, 3);
    for (uint16_t i = 0; i < rx_buffers; i++)
        rx_offer(i);
    vq_kick(0);
    vq_buffer(2, 0, EVENT_BUFFER, 64, WRITE);
}

static inline void guest_start(void)
{
    guest_start_with(VQ_SIZE - 1);
}

/* A packet of the guest as it is: two descriptors, the header and `len` bytes of payload. */
static inline void guest_put(const struct vsock_header *h, const void *payload, uint32_t len)
{
    uint16_t i = (uint16_t)(2 * (vq_avail[1] % (VQ_SIZE / 2)));
    uint64_t at = TX_BUFFER + 0x10400ull * (i / 2);

    memory_write(fx.memory, at, h, sizeof *h);
    put_desc(&drv, VQ_AT(1), i, at, sizeof *h, len ? NEXT : 0, (uint16_t)(i + 1));
    if (len) {
        memory_write(fx.memory, at + 64, payload, len);
        put_desc(&drv, VQ_AT(1), i + 1, at + 64, len, 0, 0);
    }
    vq_offer(1, i);
    vq_kick(1);
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
    return vq_used(0);
}

/* Takes the next packet, gives its buffer back.  False: none comes. */
static inline bool guest_take_within(unsigned ms)
{
    if (!packet_there(NULL) && !spin_until(packet_there, NULL, ms))
        return false;
    uint32_t len;
    uint16_t i = vq_take(0, &len);
    assert_in_range(len, sizeof guest.h, 4096);
    memory_read(fx.memory, RX_BUFFER(i), &guest.h, sizeof guest.h);
    assert_int_equal(guest.h.len, len - sizeof guest.h);
    memory_read(fx.memory, RX_BUFFER(i) + sizeof guest.h, guest.data, guest.h.len);
    rx_offer(i);
    vq_kick(0);
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
