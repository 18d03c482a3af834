/*
 * The console with several ports: control messages, output to readers that are slow or gone, input that nobody has
 * buffers for, a guest that opens and closes.
 */
#include "loop.h"

#include "chr.h"
#include "devices/virtio/console.h"
#include "driver.h"

#define STEPS_MAX 100u
#define PORTS 3u
#define CONTROL_IN 2u
#define CONTROL_OUT 3u

enum { STEP_PASS = DRIVER_STEPS, STEP_CONTROL, STEP_ROOM, STEP_INPUT, STEP_PRESENCE, STEP_RESTORE, STEPS };

struct target {
    struct fuzz_machine m;
    struct device dev;
    struct driver driver;
    struct chr chrs[PORTS];
};

/* A message of the guest, well-formed but for what the input wants, and buffers for the answers. */
static void step_control(struct target *t, struct fuzz_input *in)
{
    struct {
        uint32_t id;
        uint16_t event, value;
    } message = {.id = fuzz_u8(in) % (PORTS + 2), .event = fuzz_u8(in) % 10};
    uint8_t how = fuzz_u8(in);
    const struct descriptor out = {.addr = DATA, .len = how & 0x10 ? how & 15 : sizeof message};
    const struct descriptor buffer = {.addr = DATA + 0x100, .len = 1 + (how & 0x20 ? how & 15 : 100), .flags = WRITE};

    message.value = how & 1;
    if (how & 0x40)
        message.id = fuzz_u32(in);
    driver_put(&t->driver, DATA, &message, sizeof message);
    driver_put(&t->driver, RING(CONTROL_IN), &buffer, sizeof buffer);
    driver_put(&t->driver, RING(CONTROL_OUT), &out, sizeof out);
    for (unsigned i = how >> 1 & 7; i; i--)
        driver_offer(&t->driver, CONTROL_IN, 0);
    driver_offer(&t->driver, CONTROL_OUT, 0);
    driver_notify(&t->driver, CONTROL_OUT);
}

static void step(struct target *t, struct fuzz_input *in)
{
    uint8_t what = fuzz_u8(in);
    struct chr *chr = &t->chrs[(what >> 4) % PORTS];

    what %= STEPS;
    switch (what) {
    case STEP_PASS:
        fuzz_loop_pass(fuzz_u16(in), 4);
        break;
    case STEP_CONTROL:
        step_control(t, in);
        break;
    case STEP_ROOM:
        fuzz_chr_room(chr, fuzz_u16(in));
        break;
    case STEP_INPUT:
        fuzz_chr_input(chr, in);
        break;
    case STEP_PRESENCE:
        fuzz_chr_present(chr, fuzz_u8(in) & 1);
        break;
    case STEP_RESTORE:
        driver_restore(&t->dev, in);
        break;
    default:
        driver_step(&t->driver, in, what);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct target t;
    struct fuzz_input in = {data, size};
    uint8_t how = fuzz_u8(&in);
    struct console_config config = {.n_ports = PORTS};

    fuzz_loop_begin();
    fuzz_machine_ready(&t.m);
    for (unsigned i = 0; i < PORTS; i++) {
        t.chrs[i] = (struct chr){.open = true, .present = how >> i & 1, .room = 1000};
        config.ports[i] = (struct console_port_config){
            .name = i == 1 ? "org.example.a-name-of-the-greatest-length-that-fits-into-64-bytes" : "port",
            .chr = &t.chrs[i]};
    }
    config.ports[0].console = how & 0x80;
    t.dev = (struct device){.name = "console", .class = &virtio_console_class};
    assert_int_equal(virtio_console_class.create(&t.dev, &t.m.env, &config), 0);
    driver_attach(&t.driver, &t.m);
    driver_start(&t.driver, fuzz_u64(&in) | 3);
    for (unsigned i = 0; i < STEPS_MAX && in.left; i++)
        step(&t, &in);
    fuzz_loop_pass(0, 4);
    virtio_console_class.destroy(&t.dev);
    fuzz_loop_is_empty();
    for (unsigned i = 0; i < PORTS; i++)
        assert_true(!t.chrs[i].open);
    return 0;
}
