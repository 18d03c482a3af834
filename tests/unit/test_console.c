/* virtio-console: control messages, ports to files and sockets, drivers that are right and drivers that are not. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "backends/chr.h"
#include "devices/virtio/console.h"
#include "virtio_guest.h"

#define MULTIPORT (1ull << 1)
#define IN_BUFFER(q, i) (0x100000ull + 0x20000ull * (q) + 0x800ull * (i))
#define OUT_BUFFER 0x300000ull
enum { READY, ADD, REMOVE, PORT_READY, CONSOLE, RESIZE, OPEN, NAME };

static char directory[64], file_path[80], socket_path[80];
static struct {
    uint32_t id;
    uint16_t event, value;
    char name[64];
} got;

static struct chr *open_chr(const char *kind, const char *path)
{
    struct chr *chr;
    char spec[128], err[256];
    snprintf(spec, sizeof spec, "%s:%s", kind, path);
    assert_int_equal(chr_open(&chr, spec, fx.loop, err, sizeof err), 0);
    return chr;
}

/* Port 0 is a console that leads to a file, port 1 "data" to a socket. */
static int setup(void **state)
{
    fixture_open(&fx);
    strcpy(directory, "/tmp/guise-console.XXXXXX");
    assert_non_null(mkdtemp(directory));
    snprintf(file_path, sizeof file_path, "%s/file", directory);
    snprintf(socket_path, sizeof socket_path, "%s/socket", directory);
    const struct console_config config = {
        .n_ports = 2,
        .ports = {{"hvc0", open_chr("file", file_path), true}, {"data", open_chr("socket", socket_path), false}}};
    assert_int_equal(virtio_console_class.create(&dev, &fx.env, &config), 0);
    driver_find(&drv, &fx, 1);
    return 0;
}

static int teardown(void **state)
{
    virtio_console_class.destroy(&dev);
    assert_null(dev.state);
    unlink(file_path);
    assert_int_equal(rmdir(directory), 0); /* the socket is gone already */
    fixture_close(&fx);
    return 0;
}

static void offer_in(unsigned q, unsigned n)
{
    for (uint16_t i = 0; i < n; i++)
        vq_buffer(q, i, IN_BUFFER(q, i), 0x800, WRITE);
    vq_kick(q);
}

static void start_guest(uint64_t features)
{
    vq_start(FEATURES_ALL | features, 6);
    for (unsigned q = 0; q < 6; q += 2)
        offer_in(q, 32);
}

static void control(uint32_t id, uint16_t event, uint16_t value)
{
    uint8_t raw[8];
    uint16_t i = (uint16_t)(vq_avail[3] % VQ_SIZE);
    memcpy(raw, &id, 4);
    memcpy(raw + 4, &event, 2);
    memcpy(raw + 6, &value, 2);
    memory_write(fx.memory, OUT_BUFFER + 0x10000 + 16 * i, raw, 8);
    vq_buffer(3, i, OUT_BUFFER + 0x10000 + 16 * i, 8, 0);
    vq_kick(3);
}

static bool take_control(void)
{
    uint32_t len;
    if (!vq_used(2))
        return false;
    uint64_t at = IN_BUFFER(2, vq_take(2, &len));
    memset(&got, 0, sizeof got);
    assert_in_range(len, 8, 8 + sizeof got.name - 1);
    memory_read(fx.memory, at, &got, 8);
    memory_read(fx.memory, at + 8, got.name, len - 8);
    return true;
}

static void expect_control(uint32_t id, uint16_t event, uint16_t value)
{
    assert_true(take_control());
    assert_int_equal(got.id, id);
    assert_int_equal(got.event, event);
    assert_int_equal(got.value, value);
}

static void open_ports(void)
{
    start_guest(MULTIPORT);
    control(0, READY, 1);
    expect_control(0, ADD, 1);
    expect_control(1, ADD, 1);
    control(0, PORT_READY, 1);
    expect_control(0, NAME, 1);
    assert_string_equal(got.name, "hvc0");
    expect_control(0, CONSOLE, 1);
    expect_control(0, OPEN, 1);
    control(1, PORT_READY, 1);
    expect_control(1, NAME, 1);
    assert_string_equal(got.name, "data");
    expect_control(1, OPEN, 0); /* no client yet */
    control(0, OPEN, 1);
    control(1, OPEN, 1);
    assert_false(take_control());
}

static bool control_there(void *opaque)
{
    return vq_used(2);
}
static bool input_there(void *opaque)
{
    return vq_used(4);
}
static bool output_taken(void *opaque)
{
    return ram16(&drv, VQ_AT(5) + 0x2002) == vq_avail[5];
}

static int client(void)
{
    struct sockaddr_un a = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    strcpy(a.sun_path, socket_path);
    assert_int_equal(connect(fd, (struct sockaddr *)&a, sizeof a), 0);
    return fd;
}

static int present_client(void)
{
    int fd = client();
    assert_true(spin_until(control_there, NULL, 1000));
    expect_control(1, OPEN, 1);
    return fd;
}

static void put(unsigned q, const char *data, uint32_t len)
{
    uint16_t i = (uint16_t)(vq_avail[q] % VQ_SIZE);
    memory_write(fx.memory, OUT_BUFFER, data, len);
    vq_buffer(q, i, OUT_BUFFER, len, 0);
    vq_kick(q);
}

static void expect_file(const char *text)
{
    char have[64] = "";
    for (unsigned i = 0; i < 200 && strlen(have) < strlen(text); i++) {
        int fd = open(file_path, O_RDONLY);
        ssize_t n = read(fd, have, sizeof have - 1);
        have[n > 0 ? n : 0] = 0;
        close(fd);
        usleep(1000);
    }
    assert_string_equal(have, text);
}

/* --- a driver that follows the rules ----------------------------------------------------------------------- */

static void identity(void **state)
{
    assert_int_equal(cfg_in(&fx, 1, 0, 4), 0x10431af4);
    assert_int_equal(mem_in(&fx, drv.device + 4, 4), 2); /* ports */
    assert_int_equal(get(&drv, 18, 2), 6);               /* queues */
}

static void ports_are_introduced(void **state)
{
    open_ports();
}

static void the_console_prints(void **state)
{
    open_ports();
    put(1, "hello ", 6);
    put(1, "file", 4);
    expect_file("hello file");
    assert_int_equal(vq_used(1), 2);
}

static void without_multiport_there_is_a_console(void **state)
{
    start_guest(0);
    put(1, "plain", 5);
    expect_file("plain");
    assert_false(take_control());
}

static void a_client_comes_and_goes(void **state)
{
    char text[16] = "";
    uint32_t len;
    open_ports();
    int fd = present_client();
    put(5, "to the host", 11);
    assert_int_equal(recv(fd, text, 11, MSG_WAITALL), 11);
    assert_string_equal(text, "to the host");
    assert_int_equal(write(fd, "to the guest", 12), 12);
    assert_true(spin_until(input_there, NULL, 1000));
    uint16_t i = vq_take(4, &len);
    assert_int_equal(len, 12);
    assert_memory_equal(memory_hva(fx.memory, IN_BUFFER(4, i), 12), "to the guest", 12);
    close(fd);
    assert_true(spin_until(control_there, NULL, 1000));
    expect_control(1, OPEN, 0);
    close(present_client());
}

static void input_waits_for_the_guest(void **state)
{
    static char block[100000], have[100000];
    size_t n = 0;
    uint32_t len;
    open_ports();
    int fd = present_client();
    control(1, OPEN, 0);
    for (size_t i = 0; i < sizeof block; i++)
        block[i] = (char)(i * 3 + i / 200);
    assert_int_equal(send(fd, block, 5000, 0), 5000);
    spin();
    assert_int_equal(vq_used(4), 0); /* not open: it is kept */
    control(1, OPEN, 1);
    for (size_t sent = 5000; n < sizeof block;) {
        ssize_t now = send(fd, block + sent, sizeof block - sent, MSG_DONTWAIT);
        sent += now > 0 ? (size_t)now : 0;
        assert_true(vq_used(4) || spin_until(input_there, NULL, 1000));
        uint16_t i = vq_take(4, &len);
        memory_read(fx.memory, IN_BUFFER(4, i), have + n, len);
        n += len;
        vq_buffer(4, i, IN_BUFFER(4, i), 0x800, WRITE);
        vq_kick(4);
    }
    assert_memory_equal(have, block, sizeof block);
    close(fd);
}

/* A reader that does not read holds up its own port; when it does, nothing is missing or doubled. */
static void a_slow_reader_holds_up_its_own_port(void **state)
{
    enum { CHUNK = 0x10000, CHUNKS = 40 }; /* more than 1 MiB of queue and the socket's buffer */
    static char block[CHUNK], have[CHUNK];
    open_ports();
    int fd = present_client();
    for (unsigned c = 0; c < CHUNKS; c++) { /* all chunks are one buffer of the guest's */
        uint16_t i = (uint16_t)(vq_avail[5] % VQ_SIZE);
        for (size_t k = 0; k < CHUNK && !c; k++)
            block[k] = (char)(k * 7 + k / 253);
        memory_write(fx.memory, OUT_BUFFER, block, CHUNK);
        vq_buffer(5, i, OUT_BUFFER, CHUNK, 0);
        vq_kick(5);
    }
    spin();
    assert_false(output_taken(NULL));
    memory_write(fx.memory, OUT_BUFFER + 0x20000, "free", 4);
    vq_buffer(1, 0, OUT_BUFFER + 0x20000, 4, 0);
    vq_kick(1);
    expect_file("free");
    for (unsigned c = 0; c < CHUNKS; c++)
        for (size_t n = 0; n < CHUNK;) {
            ssize_t now = recv(fd, have + n, CHUNK - n, MSG_DONTWAIT);
            n += now > 0 ? (size_t)now : 0;
            if (now <= 0)
                spin();
            else if (n == CHUNK)
                assert_memory_equal(have, block, CHUNK);
        }
    assert_true(spin_until(output_taken, NULL, 1000));
    close(fd);
}

/* --- others ---------------------------------------------------------------------------------------------------- */

static void control_messages_that_mean_nothing(void **state)
{
    open_ports();
    for (uint16_t event = 0; event < 20; event++) {
        control(2, event, 1);
        control(0xffffffff, event, 1);
        control(0x80000001, event, 1);
    }
    while (take_control()) /* DEVICE_READY has no port: it introduces them again */
        assert_int_equal(got.event, ADD);
    vq_buffer(3, 0, OUT_BUFFER, 7, 0); /* too short */
    vq_kick(3);
    assert_int_equal(status(&drv) & VIRTIO_NEEDS_RESET, 0);
}

static void messages_without_buffers_do_not_pile_up(void **state)
{
    vq_start(FEATURES_ALL | MULTIPORT, 6);
    for (unsigned i = 0; i < 1000; i++) {
        control(0, READY, 1);
        control(0, PORT_READY, 1);
        control(1, PORT_READY, 1);
    }
    offer_in(2, 32);
    unsigned n = 0;
    while (take_control())
        n++;
    assert_int_equal(n, 7);
}

static void buffers_without_room_do_not_hang(void **state)
{
    open_ports();
    int fd = present_client();
    for (unsigned i = 0; i < 32; i++)
        vq_buffer(4, (uint16_t)(32 + i), IN_BUFFER(4, 0), 8, 0); /* readable: nothing can be put there */
    vq_kick(4);
    assert_int_equal(write(fd, "x", 1), 1);
    assert_true(spin_until(input_there, NULL, 1000));
    close(fd);
}

static void a_loop_and_memory_outside_stop_the_device(void **state)
{
    open_ports();
    put_desc(&drv, VQ_AT(1), 0, OUT_BUFFER, 8, NEXT, 0);
    vq_offer(1, 0);
    vq_kick(1);
    assert_true(status(&drv) & VIRTIO_NEEDS_RESET);
    open_ports();
    vq_buffer(1, 0, drv.notify, 8, 0);
    vq_kick(1);
    assert_true(status(&drv) & VIRTIO_NEEDS_RESET);
    open_ports();
}

/* The chain that a full reader has left half done is forgotten with the rest. */
static void a_reset_in_the_middle(void **state)
{
    static char block[0x10000];
    char byte;
    open_ports();
    int fd = present_client();
    for (unsigned i = 0; i < 40; i++)
        put(5, block, sizeof block);
    spin();
    assert_false(output_taken(NULL));
    set(&drv, 20, 0, 1);
    while (recv(fd, block, sizeof block, MSG_DONTWAIT) > 0)
        spin();
    close(fd);
    spin();
    open_ports();
    fd = present_client();
    put(5, "new", 3);
    assert_int_equal(recv(fd, block, 3, MSG_WAITALL), 3);
    assert_memory_equal(block, "new", 3);
    assert_int_equal(recv(fd, &byte, 1, MSG_DONTWAIT), -1);
    close(fd);
}

static void save_and_restore(void **state)
{
    const struct device_class *c = &virtio_console_class;
    uint8_t *saved = malloc(c->save_size);
    open_ports();
    memcpy(saved, (char *)dev.state + c->save_offset, c->save_size);
    c->reset(&dev);
    memcpy((char *)dev.state + c->save_offset, saved, c->save_size);
    c->post_restore(&dev);
    expect_control(0, OPEN, 1);
    expect_control(1, OPEN, 0);
    put(1, "after", 5);
    expect_file("after");
    free(saved);
}

/* The first words behind virtio's state are what port 0 has still to be told. */
static void saved_messages_that_do_not_exist(void **state)
{
    const struct device_class *c = &virtio_console_class;
    open_ports();
    memset((char *)dev.state + c->save_offset + sizeof(struct virtio_state), 0xff, 4);
    c->post_restore(&dev);
    expect_control(0, ADD, 1);
}

static void port_0_is_for_a_console_only(void **state)
{
    struct device other;
    const struct console_config config = {.n_ports = 1, .ports = {{"data", open_chr("file", file_path), false}}};
    const struct console_config none = {0};
    assert_int_equal(virtio_console_class.create(&other, &fx.env, &none), -EINVAL);
    assert_int_equal(virtio_console_class.create(&other, &fx.env, &config), 0);
    driver_find(&drv, &fx, 2);
    start_guest(MULTIPORT);
    control(0, READY, 1);
    expect_control(1, ADD, 1);
    assert_false(take_control());
    put(1, "nowhere", 7);
    virtio_console_class.destroy(&other);
}

#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
int main(void)
{
    const struct CMUnitTest tests[] = {
        T(identity),
        T(ports_are_introduced),
        T(the_console_prints),
        T(without_multiport_there_is_a_console),
        T(a_client_comes_and_goes),
        T(input_waits_for_the_guest),
        T(a_slow_reader_holds_up_its_own_port),
        T(control_messages_that_mean_nothing),
        T(messages_without_buffers_do_not_pile_up),
        T(buffers_without_room_do_not_hang),
        T(a_loop_and_memory_outside_stop_the_device),
        T(a_reset_in_the_middle),
        T(save_and_restore),
        T(saved_messages_that_do_not_exist),
        T(port_0_is_for_a_console_only),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
