/* virtio-net from the driver's side, right and hostile, in front of a backend that keeps what it is sent. */
#include "backends/net/net_int.h"
#include "devices/virtio/net.h"
#include "devices/virtio/net_int.h"
#include "virtio_driver.h"

/* --- a backend ---------------------------------------------------------------------------------------------------- */

struct fake {
    unsigned sent, flushed, resumed, offloads;
    unsigned room; /* frames that it takes */
    struct net_header header;
    uint8_t frame[NET_FRAME_MAX];
    size_t len;
    bool closed;
};
static struct fake fake;

static int fake_open(struct net *net, char *err, size_t n)
{
    return 0;
}
static void fake_close(struct net *net)
{
    fake.closed = true;
}
static bool fake_send(struct net *net, const struct iovec *iov, unsigned n)
{
    if (!fake.room)
        return false;
    fake.room--;
    fake.sent++;
    memcpy(&fake.header, iov[0].iov_base, sizeof fake.header);
    fake.len = 0;
    for (unsigned i = 1; i < n; i++) {
        memcpy(fake.frame + fake.len, iov[i].iov_base, iov[i].iov_len);
        fake.len += iov[i].iov_len;
    }
    return true;
}
static void fake_flush(struct net *net)
{
    fake.flushed++;
}
static void fake_resume(struct net *net)
{
    fake.resumed++;
}
static void fake_offloads(struct net *net, unsigned offloads)
{
    fake.offloads = offloads;
}
static const struct net_kind fake_kind = {.word = "fake",
                                          .open = fake_open,
                                          .close = fake_close,
                                          .send = fake_send,
                                          .flush = fake_flush,
                                          .resume = fake_resume,
                                          .offloads = fake_offloads};

/* --- a driver of three queues ------------------------------------------------------------------------------------- */

struct ring {
    unsigned index;
    uint64_t desc, avail, used;
};
static const struct ring rx = {0, 0x10000, 0x11000, 0x12000}, tx = {1, 0x14000, 0x15000, 0x16000},
                         ctrl = {2, 0x18000, 0x19000, 0x1a000};
#define BUFFERS 0x40000u

static struct fixture fx;
static struct device dev;
static struct driver drv;
static struct net *net;
static const uint8_t mac[6] = {0x52, 0x54, 1, 2, 3, 4};
static uint8_t long_frame[20000];

static struct net_card *card(void)
{
    return dev.state;
}

static void desc(const struct ring *r, unsigned i, uint64_t addr, uint32_t len, uint16_t flags, uint16_t next)
{
    put_desc(&drv, r->desc, i, addr, len, flags, next);
}

static void give(const struct ring *r, uint16_t head)
{
    uint16_t idx = ram16(&drv, r->avail + 2);
    ram16_put(&drv, r->avail + 4 + 2 * (idx % RING_SIZE), head);
    ram16_put(&drv, r->avail + 2, (uint16_t)(idx + 1));
}

static void ring_bell(const struct ring *r)
{
    mem_out(&fx, drv.notify + 4 * r->index, r->index, 2);
}

static uint16_t used(const struct ring *r)
{
    return ram16(&drv, r->used + 2);
}
static uint32_t used_len(const struct ring *r, unsigned i)
{
    return ram32(&drv, r->used + 4 + 8 * (i % RING_SIZE) + 4);
}

static void setup_ring(const struct ring *r)
{
    set(&drv, 22, r->index, 2);
    set(&drv, 24, RING_SIZE, 2);
    set(&drv, 32, r->desc, 8);
    set(&drv, 40, r->avail, 8);
    set(&drv, 48, r->used, 8);
    set(&drv, 28, 1, 2);
}

#define MERGE (1ull << NET_F_MRG_RXBUF)
#define GUEST_TSO (NET_FEATURE(GUEST_CSUM) | NET_FEATURE(GUEST_TSO4) | NET_FEATURE(GUEST_TSO6) | NET_FEATURE(GUEST_ECN))
#define CONTROL                                                                                                        \
    (NET_FEATURE(CTRL_VQ) | NET_FEATURE(CTRL_RX) | NET_FEATURE(CTRL_RX_EXTRA) | NET_FEATURE(CTRL_VLAN) |               \
     NET_FEATURE(CTRL_MAC_ADDR) | NET_FEATURE(GUEST_ANNOUNCE) | NET_FEATURE(CTRL_GUEST_OFFLOADS))

static void begin(uint64_t features)
{
    memset(memory_hva(fx.memory, 0x10000, 0x10000), 0, 0x10000);
    negotiate(&drv, FEATURES_ALL | features);
    assert_true(status(&drv) & VIRTIO_FEATURES_OK);
    setup_ring(&rx);
    setup_ring(&tx);
    setup_ring(&ctrl);
    set(&drv, 20, status(&drv) | VIRTIO_DRIVER_OK, 1);
}

/* n receive buffers of `size` bytes. */
static void give_buffers(unsigned n, uint32_t size)
{
    for (unsigned i = 0; i < n; i++) {
        desc(&rx, i, BUFFERS + 0x1000 * i, size, WRITE, 0);
        give(&rx, (uint16_t)i);
    }
    ring_bell(&rx);
}

static const uint8_t *buffer(unsigned i)
{
    return memory_hva(fx.memory, BUFFERS + 0x1000 * i, 0x1000);
}

static bool arrive(const void *frame, size_t len)
{
    struct net_header h = {.flags = NET_DATA_VALID};
    uint8_t copy[NET_FRAME_MAX];

    memcpy(copy, frame, len);
    bool taken = net_deliver(net, &h, copy, len);
    net_delivered(net);
    return taken;
}

static bool arrives_to(const uint8_t to[6])
{
    uint8_t frame[60] = {0};
    uint16_t before = used(&rx);

    memcpy(frame, to, 6);
    assert_true(arrive(frame, sizeof frame));
    return used(&rx) != before;
}

static void send_chain(void)
{
    give(&tx, 0);
    ring_bell(&tx);
}

static void stop_loop(void *opaque)
{
    loop_stop(fx.loop);
}

static void run_loop(unsigned ms)
{
    struct loop_timer stop;
    pthread_mutex_lock(&fx.bus->lock);
    loop_timer_init(&stop, stop_loop, NULL);
    loop_timer_set(fx.loop, &stop, clock_ns() + ms * 1000000ull);
    pthread_mutex_unlock(&fx.bus->lock);
    loop_run(fx.loop);
}

static uint8_t control(uint8_t class, uint8_t command, const void *data, uint32_t len)
{
    const uint8_t head[2] = {class, command};
    uint16_t before = used(&ctrl);

    memory_write(fx.memory, DATA, head, 2);
    if (len)
        memory_write(fx.memory, DATA + 0x100, data, len);
    memory_write(fx.memory, DATA + 0xf00, "\xee", 1);
    desc(&ctrl, 0, DATA, 2, NEXT, len ? 1 : 2);
    desc(&ctrl, 1, DATA + 0x100, len ? len : 1, NEXT, 2);
    desc(&ctrl, 2, DATA + 0xf00, 1, WRITE, 0);
    give(&ctrl, 0);
    ring_bell(&ctrl);
    assert_int_equal(used(&ctrl), (uint16_t)(before + 1));
    return *(uint8_t *)memory_hva(fx.memory, DATA + 0xf00, 1);
}

static int setup(void **state)
{
    fixture_open(&fx);
    memset(&fake, 0, sizeof fake);
    fake.room = 1000000;
    net = calloc(1, sizeof *net);
    assert_non_null(net);
    net->spec.kind = &fake_kind;
    net->loop = fx.env.loop;
    net->up = true;
    loop_timer_init(&net->in.timer, NULL, NULL);
    loop_timer_init(&net->out.timer, NULL, NULL);
    struct virtio_net_config_words words = {.net = net};
    memcpy(words.mac, mac, 6);
    assert_int_equal(virtio_net_class.create(&dev, &fx.env, &words), 0);
    driver_find(&drv, &fx, 1);
    for (unsigned i = 0; i < sizeof long_frame; i++)
        long_frame[i] = (uint8_t)(i * 7 + i / 256);
    return 0;
}

static int teardown(void **state)
{
    virtio_net_class.destroy(&dev);
    assert_true(fake.closed);
    fixture_close(&fx);
    return 0;
}

/* --- what a right driver sees ------------------------------------------------------------------------------------- */

static void configuration(void **state)
{
    assert_int_equal(cfg_in(&fx, 1, 2, 2), 0x1041);
    for (unsigned i = 0; i < 6; i++)
        assert_int_equal(mem_in(&fx, drv.device + i, 1), mac[i]);
    assert_int_equal(mem_in(&fx, drv.device + 6, 2), 1); /* link up */
    assert_int_equal(mem_in(&fx, drv.device + 12, 4), 10000);
    assert_int_equal(mem_in(&fx, drv.device + 16, 1), 1);
    set(&drv, 0, 0, 4);
    assert_false(get(&drv, 4, 4) >> NET_F_MTU & 1); /* none was given */
}

static void a_frame_is_sent(void **state)
{
    struct net_header h = {.flags = NET_NEEDS_CSUM, .csum_start = 34, .csum_offset = 16};
    begin(0);
    memory_write(fx.memory, DATA, &h, sizeof h);
    memory_write(fx.memory, DATA + sizeof h, "abcdef", 6);
    memory_write(fx.memory, DATA + 0x1000, "ghijkl", 6);
    desc(&tx, 0, DATA, sizeof h + 6, NEXT, 1); /* the header shares a buffer with the frame */
    desc(&tx, 1, DATA + 0x1000, 6, 0, 0);
    send_chain();
    assert_int_equal(fake.sent, 1);
    assert_int_equal(fake.len, 12);
    assert_memory_equal(fake.frame, "abcdefghijkl", 12);
    assert_int_equal(fake.header.csum_start, 34);
    assert_int_equal(used(&tx), 1);
    assert_int_equal(used_len(&tx, 0), 0);
    assert_int_equal(fake.flushed, 1);
}

static void a_header_in_pieces(void **state)
{
    struct net_header h = {.csum_start = 99};
    begin(0);
    memory_write(fx.memory, DATA, &h, sizeof h);
    memory_write(fx.memory, DATA + sizeof h, "frame", 5);
    desc(&tx, 0, DATA, 5, NEXT, 1);
    desc(&tx, 1, DATA + 5, 3, NEXT, 2);
    desc(&tx, 2, DATA + 8, 9, 0, 0);
    send_chain();
    assert_int_equal(fake.header.csum_start, 99);
    assert_memory_equal(fake.frame, "frame", 5);
}

static void sending_waits_for_room(void **state)
{
    begin(0);
    fake.room = 2;
    for (unsigned i = 0; i < 4; i++) {
        desc(&tx, i, DATA, 100, 0, 0);
        give(&tx, (uint16_t)i);
    }
    ring_bell(&tx);
    assert_int_equal(fake.sent, 2);
    assert_int_equal(used(&tx), 2);
    fake.room = 10;
    ring_bell(&tx); /* the backend says when */
    assert_int_equal(fake.sent, 2);
    net_writable(net);
    assert_int_equal(fake.sent, 4);
    assert_int_equal(used(&tx), 4);
}

/* Sends until the card takes it for a stream: a busy host may stop us for longer than a stream's gaps. */
static void make_stream(void)
{
    for (unsigned tries = 0; !card()->looking; tries++) {
        assert_true(tries < 10000);
        card()->kicks = 100;
        card()->kick_ns = clock_ns();
        send_chain();
    }
}

/* Many frames on their own are taken together, with one interrupt, and notifications are asked for in the end. */
static void a_stream_is_looked_at(void **state)
{
    begin(0);
    desc(&tx, 0, DATA, 100, 0, 0);
    make_stream();
    for (unsigned i = 0; i < 10; i++)
        send_chain();
    uint16_t asked = ram16(&drv, tx.used + 4 + 8 * RING_SIZE);
    assert_int_not_equal(asked, ram16(&drv, tx.avail + 2)); /* no wish to be notified of the next */
    unsigned flushed = fake.flushed;
    for (unsigned i = 0; i < 1000 && card()->looking; i++)
        run_loop(5);
    assert_int_equal(used(&tx), ram16(&drv, tx.avail + 2));
    assert_int_equal(fake.sent, used(&tx));
    assert_in_range(fake.flushed, flushed + 1, flushed + 4);
    assert_false(card()->looking);
    assert_int_equal(ram16(&drv, tx.used + 4 + 8 * RING_SIZE), ram16(&drv, tx.avail + 2));
    card()->kicks = 0;
    send_chain();
    assert_int_equal(used(&tx), ram16(&drv, tx.avail + 2));
}

/* It is full while the queue is looked at: nothing is forgotten. */
static void a_stream_waits_for_room(void **state)
{
    begin(0);
    desc(&tx, 0, DATA, 100, 0, 0);
    make_stream();
    unsigned before = used(&tx); /* and one waits to be looked at */
    fake.room = 1;
    send_chain();
    send_chain();
    for (unsigned i = 0; i < 1000 && !card()->blocked; i++)
        run_loop(5);
    assert_int_equal(used(&tx), before + 1);
    fake.room = 100;
    net_writable(net);
    assert_int_equal(used(&tx), before + 3);
    assert_false(card()->looking);
    send_chain();
    for (unsigned i = 0; i < 1000 && used(&tx) == before + 3; i++)
        run_loop(5);
    assert_int_equal(used(&tx), before + 4);
}

static void a_frame_arrives(void **state)
{
    begin(0);
    give_buffers(2, 2000);
    assert_true(arrive("to whom it may concern", 22));
    assert_int_equal(used(&rx), 1);
    assert_int_equal(used_len(&rx, 0), 12 + 22);
    assert_memory_equal(buffer(0) + 12, "to whom it may concern", 22);
    assert_int_equal(buffer(0)[10], 1); /* num_buffers */
    assert_true(fx.level[17]);
}

static void a_frame_over_several_buffers(void **state)
{
    begin(MERGE);
    give_buffers(8, 0x1000);
    assert_true(arrive(long_frame, 0x1000 * 3));
    assert_int_equal(used(&rx), 4);
    assert_int_equal(used_len(&rx, 0), 0x1000);
    assert_int_equal(used_len(&rx, 3), 12);
    assert_int_equal(buffer(0)[10], 4);
    assert_memory_equal(buffer(0) + 12, long_frame, 0x1000 - 12);
    assert_memory_equal(buffer(1), long_frame + 0x1000 - 12, 0x1000);
    assert_memory_equal(buffer(3), long_frame + 0x3000 - 12, 12);
}

static void receiving_waits_for_buffers(void **state)
{
    begin(MERGE);
    give_buffers(2, 0x1000);
    assert_false(arrive(long_frame, 0x1000 * 3)); /* two are not enough, but there may be more */
    assert_int_equal(used(&rx), 0);
    assert_int_equal(fake.resumed, 1); /* of the attachment */
    desc(&rx, 2, BUFFERS + 0x2000, 0x1000, WRITE, 0);
    desc(&rx, 3, BUFFERS + 0x3000, 0x1000, WRITE, 0);
    give(&rx, 2);
    give(&rx, 3);
    ring_bell(&rx);
    assert_int_equal(fake.resumed, 2);
    assert_true(arrive(long_frame, 0x1000 * 3));
    assert_int_equal(used(&rx), 4);
    assert_memory_equal(buffer(1), long_frame + 0x1000 - 12, 0x1000);
}

static void too_large_for_one_buffer_is_lost(void **state)
{
    begin(0);
    give_buffers(1, 1500);
    assert_true(arrive(long_frame, 3000));
    assert_int_equal(used(&rx), 0);
    assert_true(arrive(long_frame, 1000)); /* the buffer was kept */
    assert_int_equal(used(&rx), 1);
}

static void nobody_is_there(void **state)
{
    assert_true(arrive(long_frame, 100)); /* before the driver */
    negotiate(&drv, FEATURES_ALL);
    assert_true(arrive(long_frame, 100));
}

static void offloads_are_told(void **state)
{
    uint64_t set_to = NET_FEATURE(GUEST_CSUM) | NET_FEATURE(GUEST_TSO6);
    begin(GUEST_TSO | CONTROL);
    assert_int_equal(fake.offloads, NET_CSUM | NET_TSO4 | NET_TSO6 | NET_ECN);
    assert_int_equal(control(5, 0, &set_to, 8), 0);
    assert_int_equal(fake.offloads, NET_CSUM | NET_TSO6);
    set_to = NET_FEATURE(GUEST_TSO6); /* without checksums: nothing */
    assert_int_equal(control(5, 0, &set_to, 8), 0);
    assert_int_equal(fake.offloads, 0);
    set_to = 1ull << 50;
    assert_int_equal(control(5, 0, &set_to, 8), 1);
    begin(0);
    assert_int_equal(fake.offloads, 0);
    begin(NET_FEATURE(GUEST_CSUM));
    assert_int_equal(fake.offloads, NET_CSUM);
}

static void receive_modes(void **state)
{
    static const uint8_t other[6] = {0x52, 9, 9, 9, 9, 9}, group[6] = {1, 0, 0x5e, 0, 0, 1},
                         all[6] = {255, 255, 255, 255, 255, 255};
    const uint8_t on = 1, off = 0;

    begin(CONTROL);
    give_buffers(14, 2000);
    assert_true(arrives_to(other)); /* promiscuous to begin with */
    assert_int_equal(control(0, 0, &off, 1), 0);
    assert_false(arrives_to(other));
    assert_true(arrives_to(mac));
    assert_true(arrives_to(all));
    assert_false(arrives_to(group));
    assert_int_equal(control(0, 1, &on, 1), 0);
    assert_true(arrives_to(group));
    assert_int_equal(control(0, 2, &on, 1), 0);
    assert_true(arrives_to(other));
    assert_int_equal(control(0, 5, &on, 1), 0);
    assert_false(arrives_to(all));
    assert_int_equal(control(0, 3, &on, 1), 0);
    assert_false(arrives_to(group));
    assert_int_equal(control(0, 4, &on, 1), 0);
    assert_false(arrives_to(mac));
}

static void address_tables(void **state)
{
    uint8_t table[4 + 6 + 4 + 6] = {1, 0, 0, 0, 0x52, 7, 7, 7, 7, 7, 1, 0, 0, 0, 0x33, 0x33, 0, 0, 0, 1};
    static const uint8_t off;

    begin(CONTROL);
    give_buffers(8, 2000);
    control(0, 0, &off, 1);
    assert_int_equal(control(1, 0, table, sizeof table), 0);
    assert_true(arrives_to(table + 4));
    assert_true(arrives_to(table + 14));
    table[4] ^= 2;
    assert_false(arrives_to(table + 4));
    static const uint8_t address[6] = {0x52, 1, 1, 1, 1, 1};
    assert_int_equal(control(1, 1, address, 6), 0);
    assert_true(arrives_to(address));
    assert_false(arrives_to(mac));
    assert_int_equal(mem_in(&fx, drv.device + 1, 1), 1); /* and reads back */
    begin(CONTROL);
    assert_int_equal(mem_in(&fx, drv.device + 1, 1), mac[1]); /* until a reset */
}

static void a_full_table_means_all(void **state)
{
    uint8_t table[8 + 6 * 65] = {65};
    static const uint8_t off;

    begin(CONTROL);
    give_buffers(2, 2000);
    control(0, 0, &off, 1);
    assert_int_equal(control(1, 0, table, sizeof table), 0);
    assert_true(arrives_to((const uint8_t[6]){0x52, 8, 8, 8, 8, 8}));
    assert_false(arrives_to((const uint8_t[6]){1, 8, 8, 8, 8, 8}));
}

static void vlans(void **state)
{
    uint8_t frame[64] = {0x52, 0x54, 1, 2, 3, 4, 0, 0, 0, 0, 0, 0, 0x81, 0, 0xe0, 42};
    static const uint8_t off;
    const uint16_t id = 42, large = 4096;

    begin(CONTROL);
    give_buffers(2, 2000);
    control(0, 0, &off, 1);
    arrive(frame, sizeof frame);
    assert_int_equal(used(&rx), 0);
    assert_int_equal(control(2, 0, &id, 2), 0);
    arrive(frame, sizeof frame);
    assert_int_equal(used(&rx), 1);
    assert_int_equal(control(2, 1, &id, 2), 0);
    arrive(frame, sizeof frame);
    assert_int_equal(used(&rx), 1);
    assert_int_equal(control(2, 0, &large, 2), 1);
}

static void the_link_goes_down_and_up(void **state)
{
    begin(CONTROL);
    desc(&tx, 0, DATA, 100, 0, 0);
    net_set_link(net, false);
    assert_int_equal(mem_in(&fx, drv.device + 6, 2), 0);
    assert_int_equal(mem_in(&fx, drv.isr, 1) & 2, 2);
    send_chain();
    assert_int_equal(used(&tx), 1); /* into the void, not stuck */
    assert_int_equal(fake.sent, 0);
    net_set_link(net, true);
    assert_int_equal(mem_in(&fx, drv.device + 6, 2), 3); /* up, please announce yourself */
    assert_int_equal(control(3, 0, NULL, 0), 0);
    assert_int_equal(mem_in(&fx, drv.device + 6, 2), 1);
}

static void saved_and_restored(void **state)
{
    const struct device_class *c = &virtio_net_class;
    const uint64_t set_to = NET_FEATURE(GUEST_CSUM);
    uint8_t *saved = malloc(c->save_size);

    begin(GUEST_TSO | CONTROL | MERGE);
    control(5, 0, &set_to, 8);
    give_buffers(3, 2000);
    memcpy(saved, (char *)dev.state + c->save_offset, c->save_size);
    c->reset(&dev);
    assert_int_equal(fake.offloads, 0);
    memcpy((char *)dev.state + c->save_offset, saved, c->save_size);
    c->post_restore(&dev);
    assert_int_equal(fake.offloads, NET_CSUM);
    assert_true(arrive(long_frame, 100));
    assert_int_equal(used(&rx), 1);
    free(saved);
}

/* A switch would go on sending its frames to where it was before. */
static void one_that_is_restored_says_where_it_is(void **state)
{
    const struct device_class *c = &virtio_net_class;

    c->post_restore(&dev);
    assert_int_equal(fake.sent, 0); /* no driver, nobody to be found */
    begin(CONTROL);
    c->post_restore(&dev);
    assert_int_equal(fake.sent, 1);
    assert_int_equal(fake.len, 60);
    for (unsigned i = 0; i < 6; i++)
        assert_int_equal(fake.frame[i], 0xff);
    assert_memory_equal(fake.frame + 6, mac, 6);
    assert_memory_equal(fake.frame + 12, "\x80\x35\0\1\10\0\6\4\0\3", 10);
    assert_memory_equal(fake.frame + 22, mac, 6);
    assert_memory_equal(fake.frame + 32, mac, 6);
    assert_int_equal(mem_in(&fx, drv.device + 6, 2), 3); /* and the guest is asked to */
}

/* --- hostile drivers, by name ------------------------------------------------------------------------------------- */

static void expect_failed(const char *part)
{
    assert_non_null(card()->virtio.error);
    assert_non_null(strstr(card()->virtio.error, part));
    assert_true(status(&drv) & VIRTIO_NEEDS_RESET);
    assert_true(arrive(long_frame, 100)); /* nobody is there */
    begin(MERGE);
    give_buffers(1, 2000);
    assert_true(arrive(long_frame, 100));
    assert_int_equal(used(&rx), 1);
}

static void loop_in_chain(void **state)
{
    begin(MERGE);
    desc(&tx, 0, DATA, 8, NEXT, 1);
    desc(&tx, 1, DATA, 8, NEXT, 0);
    send_chain();
    assert_int_equal(fake.sent, 0);
    expect_failed("loops");
    begin(MERGE);
    desc(&rx, 0, DATA, 8, NEXT | WRITE, 0);
    give(&rx, 0);
    assert_true(arrive(long_frame, 100));
    expect_failed("loops");
}

static void length_wrap(void **state)
{
    begin(MERGE);
    desc(&tx, 0, ~0ull - 15, 16, 0, 0);
    send_chain();
    expect_failed("outside RAM");
    begin(MERGE);
    desc(&rx, 0, DATA, 0xffffffff, WRITE, 0);
    give(&rx, 0);
    arrive(long_frame, 100);
    expect_failed("outside RAM");
}

/* Each buffer is in RAM, all of them together are longer than any frame. */
static void more_than_a_frame(void **state)
{
    begin(0);
    for (unsigned i = 0; i < 8; i++)
        desc(&tx, i, 0, 0x8000, i < 7 ? NEXT : 0, (uint16_t)(i + 1));
    send_chain();
    assert_int_equal(fake.sent, 0);
    assert_int_equal(used(&tx), 1);
    assert_null(card()->virtio.error);
}

static void shorter_than_a_header(void **state)
{
    begin(MERGE);
    for (uint32_t len = 1; len <= 12; len++) {
        desc(&tx, 0, DATA, len, 0, 0);
        send_chain();
    }
    run_loop(10); /* it may have looked like a stream */
    assert_int_equal(fake.sent, 0);
    assert_int_equal(used(&tx), 12);
    desc(&rx, 0, DATA, 12, WRITE, 0); /* a header and nothing more: not usable either */
    give(&rx, 0);
    assert_true(arrive(long_frame, 100));
    expect_failed("too short");
    begin(0);
    desc(&rx, 0, DATA, 11, WRITE, 0);
    give(&rx, 0);
    assert_true(arrive(long_frame, 100));
    expect_failed("too short");
}

static void buffers_of_the_wrong_direction(void **state)
{
    begin(MERGE);
    desc(&tx, 0, DATA, 100, WRITE, 0);
    send_chain();
    assert_int_equal(fake.sent, 0);
    assert_int_equal(used(&tx), 1);
    desc(&rx, 0, DATA, 100, 0, 0);
    give(&rx, 0);
    assert_true(arrive(long_frame, 100));
    expect_failed("too short");
}

/* A whole ring of buffers that together cannot hold a frame: it must not wait for ever. */
static void buffers_of_one_byte(void **state)
{
    begin(MERGE);
    desc(&rx, 0, BUFFERS, 13, WRITE, 0);
    for (unsigned i = 1; i < RING_SIZE; i++)
        desc(&rx, i, BUFFERS + i, 1, WRITE, 0);
    for (unsigned i = 0; i < RING_SIZE; i++)
        give(&rx, (uint16_t)i);
    assert_true(arrive(long_frame, 100));
    assert_int_equal(used(&rx), 0);
    assert_true(arrive(long_frame, 16));
    assert_int_equal(used(&rx), 16);
}

static void index_beyond_queue_size(void **state)
{
    begin(MERGE);
    give(&tx, RING_SIZE);
    ring_bell(&tx);
    expect_failed("beyond its table");
    begin(MERGE);
    ram16_put(&drv, rx.avail + 2, RING_SIZE + 1);
    assert_true(arrive(long_frame, 100));
    expect_failed("more than the queue size");
}

static void reset_in_the_middle(void **state)
{
    begin(MERGE);
    fake.room = 0;
    desc(&tx, 0, DATA, 100, 0, 0);
    send_chain(); /* waits */
    begin(MERGE);
    fake.room = 10;
    net_writable(net);
    assert_int_equal(fake.sent, 0);
    assert_int_equal(used(&tx), 0);
    assert_false(arrive(long_frame, 100)); /* no buffer */
    unsigned resumed = fake.resumed;
    set(&drv, 20, 0, 1);
    assert_int_equal(fake.resumed, resumed + 1); /* what waited is let go */
    begin(MERGE);
    desc(&tx, 0, DATA, 100, 0, 0);
    send_chain();
    assert_int_equal(fake.sent, 1);
}

/* The frame's gpa is the device's own notification register. */
static void dma_into_own_registers(void **state)
{
    begin(MERGE);
    desc(&rx, 0, drv.notify, 100, WRITE, 0);
    give(&rx, 0);
    assert_true(arrive(long_frame, 80));
    expect_failed("outside RAM");
}

static void control_commands_that_make_no_sense(void **state)
{
    uint8_t table[64] = {0};
    const uint8_t two = 2;

    begin(CONTROL);
    assert_int_equal(control(0, 0, &two, 1), 1);   /* neither on nor off */
    assert_int_equal(control(0, 0, table, 2), 1);  /* a byte too many */
    assert_int_equal(control(0, 6, table, 1), 1);  /* no such command */
    assert_int_equal(control(77, 0, table, 1), 1); /* no such class */
    assert_int_equal(control(4, 0, table, 2), 1);  /* queue pairs: not offered */
    assert_int_equal(control(1, 0, table, 3), 1);  /* half a number */
    assert_int_equal(control(1, 0, table, 4), 1);  /* one table of two */
    memset(table, 0xff, 4);
    assert_int_equal(control(1, 0, table, 64), 1);                      /* 2^32-1 addresses */
    table[0] = 0xaa, table[1] = 0xaa, table[2] = 0xaa, table[3] = 0x2a; /* times 6 it wraps to 0xfffffffc */
    assert_int_equal(control(1, 0, table, 64), 1);
    assert_int_equal(control(3, 0, table, 1), 1);
    begin(0);
    assert_int_equal(control(0, 0, &two, 0), 1); /* not agreed on */
    desc(&ctrl, 0, DATA, 1, NEXT, 1);            /* no command */
    desc(&ctrl, 1, DATA + 0xf00, 1, WRITE, 0);
    give(&ctrl, 0);
    ring_bell(&ctrl);
    assert_int_equal(*(uint8_t *)memory_hva(fx.memory, DATA + 0xf00, 1), 1);
    desc(&ctrl, 0, DATA, 2, 0, 0); /* no room for the answer */
    give(&ctrl, 0);
    ring_bell(&ctrl);
    assert_int_equal(used(&ctrl), 3);
    assert_int_equal(used_len(&ctrl, 2), 0);
}

static void hostile_saved_state(void **state)
{
    const struct device_class *c = &virtio_net_class;
    uint64_t seed = 5;

    for (unsigned round = 0; round < 200; round++) {
        begin(MERGE | CONTROL);
        uint8_t *bytes = (uint8_t *)dev.state + c->save_offset;
        size_t from = round % 2 ? offsetof(struct net_card_state, mac) : 0;
        for (size_t i = from; i < c->save_size; i++) {
            seed = seed * 6364136223846793005ull + 1442695040888963407ull;
            bytes[i] = (uint8_t)(seed >> 56);
        }
        c->post_restore(&dev);
        arrive(long_frame, 1000);
        ring_bell(&tx);
        ring_bell(&ctrl);
        c->reset(&dev);
        driver_find(&drv, &fx, 1);
    }
}

#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
int main(void)
{
    const struct CMUnitTest tests[] = {
        T(configuration),
        T(a_frame_is_sent),
        T(a_header_in_pieces),
        T(sending_waits_for_room),
        T(a_stream_is_looked_at),
        T(a_stream_waits_for_room),
        T(a_frame_arrives),
        T(a_frame_over_several_buffers),
        T(receiving_waits_for_buffers),
        T(too_large_for_one_buffer_is_lost),
        T(nobody_is_there),
        T(offloads_are_told),
        T(receive_modes),
        T(address_tables),
        T(a_full_table_means_all),
        T(vlans),
        T(the_link_goes_down_and_up),
        T(saved_and_restored),
        T(one_that_is_restored_says_where_it_is),
        T(loop_in_chain),
        T(length_wrap),
        T(more_than_a_frame),
        T(shorter_than_a_header),
        T(buffers_of_the_wrong_direction),
        T(buffers_of_one_byte),
        T(index_beyond_queue_size),
        T(reset_in_the_middle),
        T(dma_into_own_registers),
        T(control_commands_that_make_no_sense),
        T(hostile_saved_state),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
