/*
 * The network card: descriptors, registers and control commands of a hostile driver, frames of a hostile neighbour, a
 * backend that is full, slow or gone. What the driver sends goes the way of a backend that must finish frames itself,
 * so the code that cuts long segments sees it too. The card is live when the input begins.
 */
#include "fixture.h"

#include "backends/net/net_int.h"
#include "backends/net/plain.h"
#include "devices/virtio/net.h"
#include "devices/virtio/net_int.h"

#define RING_SIZE 16u
#define RING(q) (0x10000u + 0x4000u * (q)) /* descriptors; available and used rings behind, a page each */
#define AVAIL 0x1000u
#define USED 0x2000u
#define DATA 0x40000u
#define STEPS_MAX 200u
enum { NEXT = 1, WRITE = 2, INDIRECT = 4 };

enum {
    STEP_CHAIN,
    STEP_NOTIFY,
    STEP_FRAME,
    STEP_MEMORY,
    STEP_BACKEND,
    STEP_REGISTER,
    STEP_CONFIG,
    STEP_CONTROL,
    STEP_SAVE,
    STEP_START,
    STEPS
};

struct target {
    struct fuzz_machine m;
    struct device dev;
    struct net *net;
    struct net_plain plain;
    bool full, closed;
    uint64_t regs;
};
static struct target t;

/* --- the backend ------------------------------------------------------------------------------------------------- */

static int backend_open(struct net *net, char *err, size_t n)
{
    return 0;
}
static void backend_close(struct net *net)
{
    t.closed = true;
}
static bool emit(void *opaque, const uint8_t *frame, size_t len)
{
    assert_true(len >= 14 && len <= NET_FRAME_MAX);
    return !(t.full && frame[len - 1] & 1);
}
static bool backend_send(struct net *net, const struct iovec *iov, unsigned n)
{
    return net_plain_send(&t.plain, iov, n, emit, NULL);
}
static void backend_resume(struct net *net) {}
static const struct net_kind kind = {
    .word = "fuzz", .open = backend_open, .close = backend_close, .send = backend_send, .resume = backend_resume};

/* --- the driver -------------------------------------------------------------------------------------------------- */

static void out(uint64_t at, uint64_t value, unsigned size)
{
    bus_write(t.m.bus, BUS_MEM, t.regs + at, value, size);
}

static void start(uint64_t features)
{
    const struct net_card *card = t.dev.state;

    if (features & 1) /* most of the time only such as are offered, else nothing would go on */
        features &= card->virtio.features;
    features |= 1ull << VIRTIO_F_VERSION_1;
    out(20, 0, 1);
    out(20, 3, 1);
    for (unsigned i = 0; i < 2; i++) {
        out(8, i, 4);
        out(12, (uint32_t)(features >> 32 * i), 4);
    }
    out(20, 3 | VIRTIO_FEATURES_OK, 1);
    for (unsigned q = 0; q < 3; q++) {
        out(22, q, 2);
        out(24, RING_SIZE, 2);
        out(32, RING(q), 8);
        out(40, RING(q) + AVAIL, 8);
        out(48, RING(q) + USED, 8);
        out(28, 1, 2);
    }
    out(20, 3 | VIRTIO_FEATURES_OK | VIRTIO_DRIVER_OK, 1);
}

static void put(uint64_t at, const void *bytes, size_t len)
{
    fuzz_put(&t.m, at, bytes, len);
}

static void offer(unsigned q, uint16_t head)
{
    uint16_t idx = 0;

    memory_read(t.m.memory, RING(q) + AVAIL + 2, &idx, 2);
    put(RING(q) + AVAIL + 4 + 2 * (idx % RING_SIZE), &head, 2);
    idx++;
    put(RING(q) + AVAIL + 2, &idx, 2);
}

/* A chain that is right but for what the input wants. */
static void step_chain(struct fuzz_input *in)
{
    unsigned q = fuzz_u8(in) % 3, n = 1 + fuzz_u8(in) % 5, head = fuzz_u8(in) % RING_SIZE;
    uint8_t wrong = fuzz_u8(in);

    for (unsigned i = 0; i < n; i++) {
        struct {
            uint64_t addr;
            uint32_t len;
            uint16_t flags, next;
        } d = {.addr = DATA + (uint64_t)fuzz_u8(in) * 0x800, .len = fuzz_u16(in) & 0x3fff};
        d.flags = (uint16_t)((i + 1 < n ? NEXT : 0) | (q == 0 ? WRITE : 0));
        d.next = (uint16_t)((head + i + 1) % RING_SIZE);
        if (wrong & 1 << i) {
            d.flags ^= fuzz_u8(in) & 7;
            d.addr ^= wrong & 0x40 ? fuzz_u64(in) : 0;
            d.next = wrong & 0x80 ? fuzz_u16(in) : d.next;
        }
        put(RING(q) + 16 * ((head + i) % RING_SIZE), &d, sizeof d);
    }
    offer(q, (uint16_t)head);
    out(0x3000 + 4 * q, 0, 2);
}

static void step_control(struct fuzz_input *in)
{
    uint8_t command[300];
    size_t len = 2 + (fuzz_u8(in) & 1 ? fuzz_u8(in) % 12 : fuzz_u16(in) % (sizeof command - 2));
    const struct {
        uint64_t addr;
        uint32_t len;
        uint16_t flags, next;
    } d[2] = {{DATA, (uint32_t)len, NEXT, 1}, {DATA + 0x1000, 1, WRITE, 0}};

    fuzz_bytes(in, command, len);
    command[0] %= 7;
    command[1] %= 7;
    put(DATA, command, len);
    put(RING(2), d, sizeof d);
    offer(2, 0);
    out(0x3000 + 8, 0, 2);
}

/* --- the neighbour ----------------------------------------------------------------------------------------------- */

static void step_frame(struct fuzz_input *in)
{
    static const uint8_t tcp[] = {0x52, 0x54, 0, 0, 0, 1, 0x52, 0x54, 0, 0, 0, 2, 8, 0, 0x45, 0, 0, 0};
    static uint8_t frame[NET_FRAME_MAX];
    struct net_header h;
    uint8_t how = fuzz_u8(in);
    size_t len = how & 1 ? fuzz_u16(in) : 60 + fuzz_u8(in);

    memset(frame, how, len);
    memcpy(frame, tcp, sizeof tcp);
    frame[16] = (uint8_t)((len - 14) >> 8);
    frame[17] = (uint8_t)(len - 14);
    frame[20] = frame[21] = 0;
    frame[23] = 6;
    frame[46] = 0x50;
    h = (struct net_header){NET_NEEDS_CSUM, NET_SEGMENT_TCP4, 54, 200, 34, 16, 0};
    if (how & 16) { /* IPv6 */
        frame[12] = 0x86;
        frame[13] = 0xdd;
        frame[14] = 0x60;
        frame[18] = (uint8_t)((len - 54) >> 8);
        frame[19] = (uint8_t)(len - 54);
        frame[20] = 6;
        frame[66] = 0x50;
        h = (struct net_header){NET_NEEDS_CSUM, NET_SEGMENT_TCP6, 74, 200, 54, 16, 0};
    }
    if (how & 2)
        fuzz_bytes(in, &h, sizeof h);
    if (how & 4)
        fuzz_bytes(in, frame + fuzz_u8(in) % 80, fuzz_u8(in) % 80);
    if (how & 8)
        h.gso_type = 0;
    for (unsigned tries = 0; tries < 3; tries++) /* again, as after net_resume */
        if (net_deliver(t.net, &h, frame, len))
            break;
    net_delivered(t.net);
}

static void step_save(struct fuzz_input *in)
{
    uint8_t *state = (uint8_t *)t.dev.state + virtio_net_class.save_offset;

    if (fuzz_u8(in) & 1) {
        virtio_net_class.reset(&t.dev);
        return;
    }

    for (unsigned n = fuzz_u8(in) % 8; n; n--) {
        size_t at = sizeof(struct pci_state) + fuzz_u16(in) % (virtio_net_class.save_size - sizeof(struct pci_state));
        state[at] = fuzz_u8(in);
    }
    virtio_net_class.post_restore(&t.dev);
}

static void step_memory(struct fuzz_input *in)
{
    uint8_t bytes[64], len = fuzz_u8(in) % sizeof bytes;
    uint64_t at = RING(fuzz_u8(in) % 3) + (fuzz_u16(in) & 0x3fff);

    fuzz_bytes(in, bytes, len);
    put(fuzz_u8(in) & 1 ? at : DATA + (at & 0xfff), bytes, len);
}

static void step_backend(struct fuzz_input *in)
{
    struct net_card *card = t.dev.state;
    uint8_t what = fuzz_u8(in);

    t.full = what & 1;
    if (what & 2)
        net_writable(t.net);
    if (what & 4)
        net_set_link(t.net, what & 8);
    if (what & 16)
        net_resume(t.net);
    if (what & 32 && card->again.heap_index >= 0) { /* its time has come */
        loop_timer_cancel(t.m.loop, &card->again);
        card->again.fn(card->again.opaque);
    }
}

static void step_register(struct fuzz_input *in)
{
    uint16_t at = fuzz_u16(in) % 0x3ff8;
    unsigned size = 1u << fuzz_u8(in) % 4;

    if (at & 0x100)
        out(at % 64, fuzz_u64(in), size);
    else
        bus_read(t.m.bus, BUS_MEM, t.regs + at, size);
}

static void step(struct fuzz_input *in)
{
    switch (fuzz_u8(in) % STEPS) {
    case STEP_CHAIN:
        step_chain(in);
        break;
    case STEP_NOTIFY:
        out(0x3000 + 4 * (fuzz_u8(in) % 4), 0, 2);
        break;
    case STEP_FRAME:
        step_frame(in);
        break;
    case STEP_MEMORY:
        step_memory(in);
        break;
    case STEP_BACKEND:
        step_backend(in);
        break;
    case STEP_REGISTER:
        step_register(in);
        break;
    case STEP_CONFIG:
        bus_write(t.m.bus, BUS_MEM, FUZZ_SLOT_CONFIG + fuzz_u8(in), fuzz_u32(in), 4);
        break;
    case STEP_CONTROL:
        step_control(in);
        break;
    case STEP_SAVE:
        step_save(in);
        break;
    case STEP_START:
        start(fuzz_u64(in));
        break;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct fuzz_input in = {data, size};

    fuzz_machine_ready(&t.m);
    t.net = calloc(1, sizeof *t.net);
    assert_true(t.net);
    *t.net = (struct net){.spec.kind = &kind, .loop = t.m.loop, .up = true};
    loop_timer_init(&t.net->in.timer, NULL, NULL);
    loop_timer_init(&t.net->out.timer, NULL, NULL);
    t.plain.done = 0;
    t.full = t.closed = false;
    const struct virtio_net_config_words words = {.net = t.net, .mac = {0x52, 0x54, 0, 0, 0, 1}};
    t.dev = (struct device){.name = "net0", .class = &virtio_net_class};
    assert_int_equal(virtio_net_class.create(&t.dev, &t.m.env, &words), 0);
    bus_write(t.m.bus, BUS_MEM, FUZZ_SLOT_CONFIG + PCI_COMMAND, PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER, 2);
    t.regs = fuzz_bar(&t.m, 0);
    start(fuzz_u8(&in) & 1 ? ~0ull : fuzz_u64(&in));
    for (unsigned i = 0; i < STEPS_MAX && in.left; i++)
        step(&in);
    virtio_net_class.destroy(&t.dev);
    assert_true(t.closed);
    return 0;
}
