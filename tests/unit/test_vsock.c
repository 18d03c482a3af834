/* virtio-vsock between a driver that is right, one that is hostile, and sockets of the host. */
#include <fcntl.h>
#include <sys/resource.h>
#include <sys/un.h>

#include "backends/vsock_host.h"
#include "vsock_driver.h"

static char directory[64], host_path[96];

/* What vsock_connect reported. */
static struct report {
    unsigned calls;
    int err;
    uint32_t host_port;
} report;

static void on_done(void *opaque, int err, uint32_t host_port)
{
    struct report *r = opaque;
    r->calls++;
    r->err = err;
    r->host_port = host_port;
}

static bool reported(void *opaque)
{
    return report.calls > 0;
}

static int setup_with(bool host_socket)
{
    struct vsock_host *host = NULL;
    char err[256];

    fixture_open(&fx);
    memset(&guest, 0, sizeof guest);
    report = (struct report){0};
    guest_alloc = 1 << 20;
    guest_consumed = 0;
    strcpy(directory, "/tmp/guise-vsock.XXXXXX");
    assert_non_null(mkdtemp(directory));
    snprintf(host_path, sizeof host_path, "%s/v", directory);
    if (host_socket)
        assert_int_equal(vsock_host_open(&host, host_path, fx.loop, NULL, err, sizeof err), 0);
    const struct vsock_config config = {.cid = 3, .host = host, .handle = &vs};
    assert_int_equal(virtio_vsock_class.create(&dev, &fx.env, &config), 0);
    driver_find(&drv, &fx, 1);
    return 0;
}

static int setup(void **state)
{
    return setup_with(true);
}

static int teardown(void **state)
{
    virtio_vsock_class.destroy(&dev);
    assert_null(dev.state);
    assert_int_not_equal(access(host_path, F_OK), 0); /* the socket's file is gone */
    assert_int_equal(rmdir(directory), 0);
    fixture_close(&fx);
    return 0;
}

/* A socket pair, one end of which is connected to the guest's port; returns our end. */
static int connect_pair(uint32_t port)
{
    int pair[2];
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, pair), 0);
    report = (struct report){0};
    assert_int_equal(vsock_connect(vs, port, pair[1], on_done, &report), 0);
    return pair[0];
}

static int open_pair(uint32_t port)
{
    int fd = connect_pair(port);
    expect_packet(VSOCK_OP_REQUEST, port);
    uint32_t host_port = guest.h.src_port;
    guest_send(port, host_port, VSOCK_OP_RESPONSE, 0, NULL, 0);
    assert_true(spin_until(reported, NULL, 1000));
    assert_int_equal(report.err, 0);
    assert_int_equal(report.host_port, host_port);
    return fd;
}

static void expect_bytes(int fd, const char *text)
{
    char got[256];
    size_t want = strlen(text), have = 0;
    for (unsigned i = 0; have < want && i < 200; i++) {
        ssize_t n = recv(fd, got + have, want - have, MSG_DONTWAIT);
        if (n > 0)
            have += (size_t)n;
        else
            spin();
    }
    assert_int_equal(have, want);
    assert_memory_equal(got, text, want);
}

static bool at_end(void *opaque)
{
    char byte;
    return recv(*(int *)opaque, &byte, 1, MSG_DONTWAIT | MSG_PEEK) == 0;
}

static void expect_end(int fd)
{
    assert_true(spin_until(at_end, &fd, 1000));
}

static bool nobody(void *opaque)
{
    return vsock_connections(vs) == 0;
}

static void expect_no_connections(void)
{
    assert_true(spin_until(nobody, NULL, 1000));
}

/* --- from the host ---------------------------------------------------------------------------------------------- */

static void identity(void **state)
{
    assert_int_equal(cfg_in(&fx, 1, 0, 4), 0x10531af4);
    assert_int_equal(mem_in(&fx, drv.device, 8), 3);
    assert_int_equal(mem_in(&fx, drv.device, 4), 3);
    assert_int_equal(mem_in(&fx, drv.device + 4, 4), 0);
}

static void bytes_go_both_ways(void **state)
{
    guest_start();
    int fd = open_pair(GUEST_PORT);
    assert_int_equal(write(fd, "hello", 5), 5);
    expect_packet(VSOCK_OP_RW, GUEST_PORT);
    assert_int_equal(guest.h.len, 5);
    assert_memory_equal(guest.data, "hello", 5);
    guest_send(GUEST_PORT, report.host_port, VSOCK_OP_RW, 0, "world", 5);
    expect_bytes(fd, "world");
    close(fd);
    expect_packet(VSOCK_OP_SHUTDOWN, GUEST_PORT);
    while (guest.h.flags != VSOCK_SHUT_BOTH)
        expect_packet(VSOCK_OP_SHUTDOWN, GUEST_PORT);
    guest_send(GUEST_PORT, report.host_port, VSOCK_OP_RST, 0, NULL, 0);
    expect_no_connections();
    expect_silence();
}

static void a_refusal_leaves_the_descriptor_to_its_owner(void **state)
{
    int pair[2];
    guest_start();
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, pair), 0);
    assert_int_equal(vsock_connect(vs, 7, pair[1], on_done, &report), 0);
    expect_packet(VSOCK_OP_REQUEST, 7);
    guest_send(7, guest.h.src_port, VSOCK_OP_RST, 0, NULL, 0);
    assert_true(spin_until(reported, NULL, 1000));
    assert_int_equal(report.err, -ECONNREFUSED);
    expect_no_connections();
    assert_int_equal(write(pair[1], "x", 1), 1); /* still open */
    close(pair[0]);
    close(pair[1]);
    assert_int_equal(report.calls, 1);
}

static void what_cannot_be_connected_is_said_at_once(void **state)
{
    int pair[2], pipes[2];
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, pair), 0);
    assert_int_equal(pipe(pipes), 0);
    assert_int_equal(vsock_connect(vs, 7, pair[1], on_done, &report), -EHOSTDOWN); /* no driver yet */
    guest_start();
    assert_int_equal(vsock_connect(vs, 7, pipes[1], on_done, &report), -ENOTSOCK);
    assert_int_equal(vsock_connect(vs, 7, -1, on_done, &report), -ENOTSOCK);
    close(pair[0]);
    close(pair[1]);
    close(pipes[0]);
    close(pipes[1]);
    assert_int_equal(report.calls, 0);
}

static void a_cancelled_connect_is_not_reported(void **state)
{
    int pair[2];
    guest_start();
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, pair), 0);
    assert_int_equal(vsock_connect(vs, 7, pair[1], on_done, &report), 0);
    expect_packet(VSOCK_OP_REQUEST, 7);
    vsock_connect_cancel(vs, pair[1]);
    expect_packet(VSOCK_OP_RST, 7);
    guest_send(7, guest.h.src_port, VSOCK_OP_RESPONSE, 0, NULL, 0); /* it crossed with ours */
    expect_packet(VSOCK_OP_RST, 7);
    expect_no_connections();
    assert_int_equal(report.calls, 0);
    assert_int_equal(write(pair[1], "x", 1), 1);
    close(pair[0]);
    close(pair[1]);
}

static void destruction_reports_what_was_waiting(void **state)
{
    guest_start();
    int fd = connect_pair(7);
    virtio_vsock_class.destroy(&dev);
    assert_int_equal(report.calls, 1);
    assert_int_equal(report.err, -ESHUTDOWN);
    close(fd);
}

/* --- from the guest ---------------------------------------------------------------------------------------------- */

static int accepted = -1; /* our end of the pair whose other end was handed in */

static int on_accept(void *opaque, uint32_t guest_port)
{
    int pair[2];
    assert_int_equal(guest_port, 5000);
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, pair), 0);
    accepted = pair[0];
    return pair[1];
}

static int on_accept_never(void *opaque, uint32_t guest_port)
{
    return -EACCES;
}

static void a_listener_in_the_process(void **state)
{
    guest_start();
    assert_int_equal(vsock_listen(vs, 1024, on_accept, NULL), 0);
    guest_send(5000, 1024, VSOCK_OP_REQUEST, 0, NULL, 0);
    expect_packet(VSOCK_OP_RESPONSE, 5000);
    assert_int_equal(guest.h.src_port, 1024);
    guest_send(5000, 1024, VSOCK_OP_RW, 0, "ready", 5);
    expect_bytes(accepted, "ready");
    guest_send(5000, 1024, VSOCK_OP_SHUTDOWN, VSOCK_SHUT_BOTH, NULL, 0);
    expect_packet(VSOCK_OP_RST, 5000);
    expect_end(accepted);
    close(accepted);
    expect_no_connections();
    assert_int_equal(vsock_listen(vs, 1024, on_accept_never, NULL), 0); /* in its place */
    guest_send(5000, 1024, VSOCK_OP_REQUEST, 0, NULL, 0);
    expect_packet(VSOCK_OP_RST, 5000);
    assert_int_equal(vsock_listen(vs, 1024, NULL, NULL), 0);
    guest_send(5000, 1024, VSOCK_OP_REQUEST, 0, NULL, 0);
    expect_packet(VSOCK_OP_RST, 5000);
    for (unsigned i = 0; i < VSOCK_LISTENERS_MAX; i++)
        assert_int_equal(vsock_listen(vs, i, on_accept_never, NULL), 0);
    assert_int_equal(vsock_listen(vs, 99, on_accept_never, NULL), -ENOSPC);
}

static int listen_at(const char *path)
{
    struct sockaddr_un a = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    assert_true(strlen(path) < sizeof a.sun_path);
    strcpy(a.sun_path, path);
    assert_int_equal(bind(fd, (struct sockaddr *)&a, sizeof a), 0);
    assert_int_equal(listen(fd, 8), 0);
    return fd;
}

static void a_listener_at_a_path(void **state)
{
    char path[128];
    snprintf(path, sizeof path, "%s_70", host_path);
    guest_start();
    guest_send(5000, 70, VSOCK_OP_REQUEST, 0, NULL, 0);
    expect_packet(VSOCK_OP_RST, 5000);
    int listener = listen_at(path);
    guest_send(5000, 70, VSOCK_OP_REQUEST, 0, NULL, 0);
    expect_packet(VSOCK_OP_RESPONSE, 5000);
    int fd = accept(listener, NULL, NULL);
    guest_send(5000, 70, VSOCK_OP_RW, 0, "hi", 2);
    expect_bytes(fd, "hi");
    close(fd);
    close(listener);
    unlink(path);
}

/* --- the Unix socket --------------------------------------------------------------------------------------------- */

static int client(const char *words)
{
    struct sockaddr_un a = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    strcpy(a.sun_path, host_path);
    assert_int_equal(connect(fd, (struct sockaddr *)&a, sizeof a), 0);
    assert_int_equal(write(fd, words, strlen(words)), strlen(words));
    return fd;
}

static void a_client_connects_by_a_line(void **state)
{
    char ok[32];
    guest_start();
    int fd = client("CONNECT 1024\nearly");
    expect_packet(VSOCK_OP_REQUEST, GUEST_PORT);
    snprintf(ok, sizeof ok, "OK %u\n", guest.h.src_port);
    uint32_t host_port = guest.h.src_port;
    guest_send(GUEST_PORT, host_port, VSOCK_OP_RESPONSE, 0, NULL, 0);
    guest_send(GUEST_PORT, host_port, VSOCK_OP_RW, 0, "first", 5);
    expect_bytes(fd, ok);
    expect_bytes(fd, "first");
    expect_packet(VSOCK_OP_RW, GUEST_PORT);
    assert_int_equal(guest.h.len, 5);
    assert_memory_equal(guest.data, "early", 5);
    close(fd);
}

static void a_line_comes_in_pieces(void **state)
{
    guest_start();
    int fd = client("CONN");
    spin();
    assert_int_equal(write(fd, "ECT 9\n", 6), 6);
    expect_packet(VSOCK_OP_REQUEST, 9);
    guest_send(9, guest.h.src_port, VSOCK_OP_RST, 0, NULL, 0);
    expect_end(fd);
    close(fd);
}

static void a_client_that_says_something_else_is_closed(void **state)
{
    static const char *const wrong[] = {"CONNECT\n",
                                        "CONNECT x\n",
                                        "CONNECT 4294967296\n",
                                        "CONNECT -1\n",
                                        "connect 5\n",
                                        "\n",
                                        "CONNECT 0000000000000000000000000000000000000000000000005\n"};
    guest_start();
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        int fd = client(wrong[i]);
        assert_true(spin_until(at_end, &fd, 1000) || errno == ECONNRESET);
        close(fd);
    }
    int gone = client("CONNECT ");
    close(gone);
    spin();
    expect_silence();
}

static void a_client_before_there_is_a_driver_is_closed(void **state)
{
    int fd = client("CONNECT 1024\n");
    expect_end(fd);
    close(fd);
}

/* --- ends -------------------------------------------------------------------------------------------------------- */

static void the_host_half_closes(void **state)
{
    guest_start();
    int fd = open_pair(GUEST_PORT);
    assert_int_equal(write(fd, "last", 4), 4);
    shutdown(fd, SHUT_WR);
    expect_packet(VSOCK_OP_RW, GUEST_PORT);
    expect_packet(VSOCK_OP_SHUTDOWN, GUEST_PORT);
    assert_int_equal(guest.h.flags, VSOCK_SHUT_SEND);
    guest_send(GUEST_PORT, report.host_port, VSOCK_OP_RW, 0, "answer", 6);
    expect_bytes(fd, "answer");
    guest_send(GUEST_PORT, report.host_port, VSOCK_OP_SHUTDOWN, VSOCK_SHUT_BOTH, NULL, 0);
    expect_packet(VSOCK_OP_RST, GUEST_PORT);
    expect_end(fd);
    expect_no_connections();
    close(fd);
}

static void the_guest_half_closes(void **state)
{
    guest_start();
    int fd = open_pair(GUEST_PORT);
    guest_send(GUEST_PORT, report.host_port, VSOCK_OP_RW, 0, "last", 4);
    guest_send(GUEST_PORT, report.host_port, VSOCK_OP_SHUTDOWN, VSOCK_SHUT_SEND, NULL, 0);
    expect_bytes(fd, "last");
    expect_end(fd);
    assert_int_equal(write(fd, "answer", 6), 6);
    expect_packet(VSOCK_OP_RW, GUEST_PORT);
    assert_memory_equal(guest.data, "answer", 6);
    close(fd);
    expect_packet(VSOCK_OP_SHUTDOWN, GUEST_PORT);
    guest_send(GUEST_PORT, report.host_port, VSOCK_OP_RST, 0, NULL, 0);
    expect_no_connections();
}

static void a_guest_that_does_not_read_any_more(void **state)
{
    guest_start();
    int fd = open_pair(GUEST_PORT);
    guest_send(GUEST_PORT, report.host_port, VSOCK_OP_SHUTDOWN, VSOCK_SHUT_RCV, NULL, 0);
    spin();
    assert_int_equal(send(fd, "x", 1, MSG_NOSIGNAL), -1);
    assert_int_equal(errno, EPIPE);
    guest_send(GUEST_PORT, report.host_port, VSOCK_OP_RW, 0, "still", 5);
    expect_bytes(fd, "still");
    close(fd);
}

static void a_packet_after_the_end_is_reset(void **state)
{
    guest_start();
    int fd = open_pair(GUEST_PORT);
    guest_send(GUEST_PORT, report.host_port, VSOCK_OP_SHUTDOWN, VSOCK_SHUT_SEND, NULL, 0);
    guest_send(GUEST_PORT, report.host_port, VSOCK_OP_RW, 0, "more", 4);
    expect_packet(VSOCK_OP_RST, GUEST_PORT);
    expect_end(fd);
    close(fd);
    expect_no_connections();
}

static bool pair_filled(int fd)
{
    char zeros[4096] = {0};
    ssize_t n;
    while ((n = send(fd, zeros, sizeof zeros, MSG_DONTWAIT)) > 0) {
    }
    return n < 0 && errno == EAGAIN;
}

/* The guest closes, and even gives up waiting, while a slow reader has not taken all yet: nothing is lost. */
static void the_rest_reaches_a_slow_reader(void **state)
{
    static char sent[60000], got[60000];
    size_t skip = 0, have = 0;
    int pair[2];
    guest_start();
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, pair), 0);
    assert_true(pair_filled(pair[1])); /* nothing fits any more */
    report = (struct report){0};
    assert_int_equal(vsock_connect(vs, 9, pair[1], on_done, &report), 0);
    expect_packet(VSOCK_OP_REQUEST, 9);
    guest_send(9, guest.h.src_port, VSOCK_OP_RESPONSE, 0, NULL, 0);
    assert_true(spin_until(reported, NULL, 1000));
    for (size_t i = 0; i < sizeof sent; i++)
        sent[i] = (char)(i * 7 + i / 251 + 1);
    guest_send(9, report.host_port, VSOCK_OP_RW, 0, sent, sizeof sent);
    guest_send(9, report.host_port, VSOCK_OP_SHUTDOWN, VSOCK_SHUT_BOTH, NULL, 0);
    spin();
    expect_silence(); /* no confirmation yet */
    guest_send(9, report.host_port, VSOCK_OP_RST, 0, NULL, 0);
    spin();
    assert_int_equal(vsock_connections(vs), 1);
    for (unsigned idle = 0; idle < 100 && !at_end(&pair[0]);) {
        char piece[4096];
        ssize_t n = recv(pair[0], piece, sizeof piece, MSG_DONTWAIT);
        for (ssize_t i = 0; i < n; i++)
            if (have || piece[i]) {
                assert_true(have < sizeof got);
                got[have++] = piece[i];
            } else {
                skip++;
            }
        if (n <= 0) {
            spin();
            idle++;
        }
    }
    assert_int_equal(have, sizeof sent);
    assert_memory_equal(got, sent, sizeof sent);
    assert_true(skip > 4096);
    expect_no_connections();
    close(pair[0]);
}

/* --- credit ------------------------------------------------------------------------------------------------------ */

static void the_host_keeps_to_the_guests_credit(void **state)
{
    char text[300];
    size_t have = 0;
    memset(text, 'a', sizeof text);
    guest_alloc = 100;
    guest_start();
    int fd = open_pair(GUEST_PORT);
    assert_int_equal(write(fd, text, sizeof text), sizeof text);
    expect_packet(VSOCK_OP_RW, GUEST_PORT);
    assert_int_equal(guest.h.len, 100);
    expect_silence();
    guest_consumed = 40;
    guest_send(GUEST_PORT, report.host_port, VSOCK_OP_CREDIT_UPDATE, 0, NULL, 0);
    expect_packet(VSOCK_OP_RW, GUEST_PORT);
    assert_int_equal(guest.h.len, 40);
    expect_silence();
    guest_alloc = 1000;
    guest_send(GUEST_PORT, report.host_port, VSOCK_OP_CREDIT_UPDATE, 0, NULL, 0);
    for (have = 140; have < sizeof text; have += guest.h.len)
        expect_packet(VSOCK_OP_RW, GUEST_PORT);
    assert_int_equal(have, sizeof text);
    guest_consumed = 5000; /* more than was ever sent */
    guest_send(GUEST_PORT, report.host_port, VSOCK_OP_CREDIT_UPDATE, 0, NULL, 0);
    assert_int_equal(write(fd, "b", 1), 1);
    expect_silence();
    close(fd);
}

static void the_guest_is_told_of_its_credit(void **state)
{
    static char block[32768];
    unsigned told = 0;
    guest_start();
    int fd = open_pair(GUEST_PORT);
    guest_send(GUEST_PORT, report.host_port, VSOCK_OP_CREDIT_REQUEST, 0, NULL, 0);
    expect_packet(VSOCK_OP_CREDIT_UPDATE, GUEST_PORT);
    assert_int_equal(guest.h.buf_alloc, VSOCK_WINDOW_LARGE);
    assert_int_equal(guest.h.fwd_cnt, 0);
    for (unsigned i = 0; i < 64; i++) { /* 2 MiB, eight windows */
        guest_send(GUEST_PORT, report.host_port, VSOCK_OP_RW, 0, block, sizeof block);
        spin();
        for (size_t have = 0; have < sizeof block;) {
            ssize_t n = recv(fd, block, sizeof block - have, MSG_DONTWAIT);
            assert_true(n > 0 || errno == EAGAIN);
            have += n > 0 ? (size_t)n : 0;
            if (n <= 0)
                spin();
        }
        while (guest_take_within(1)) {
            assert_int_equal(guest.h.op, VSOCK_OP_CREDIT_UPDATE);
            told = guest.h.fwd_cnt;
        }
        assert_true((i + 1) * sizeof block - told < VSOCK_WINDOW_LARGE);
    }
    close(fd);
}

static void a_guest_that_sends_beyond_its_credit_is_reset(void **state)
{
    static char block[65536];
    guest_start();
    int fd = open_pair(GUEST_PORT);
    unsigned packets = 0;
    do {
        assert_true(packets++ < 64); /* nobody reads: a socket's buffer, then the window */
        guest_send(GUEST_PORT, report.host_port, VSOCK_OP_RW, 0, block, sizeof block);
        spin();
    } while (!guest_take_within(1) || guest.h.op == VSOCK_OP_CREDIT_UPDATE);
    assert_int_equal(guest.h.op, VSOCK_OP_RST);
    expect_no_connections();
    close(fd);
}

/* --- much -------------------------------------------------------------------------------------------------------- */

static void a_slow_reader_holds_up_nobody_else(void **state)
{
    static char block[65536];
    guest_start();
    int slow = open_pair(GUEST_PORT);
    uint32_t slow_port = report.host_port;
    int quick = open_pair(GUEST_PORT);
    for (unsigned i = 0; i < VSOCK_WINDOW_LARGE / sizeof block; i++)
        guest_send(GUEST_PORT, slow_port, VSOCK_OP_RW, 0, block, sizeof block);
    spin();
    guest_send(GUEST_PORT, report.host_port, VSOCK_OP_RW, 0, "quick", 5);
    expect_bytes(quick, "quick");
    close(slow);
    close(quick);
}

static void a_megabyte_to_the_guest(void **state)
{
    static uint8_t sent[1 << 20];
    size_t written = 0, have = 0;
    guest_alloc = 1 << 21;
    guest_start();
    int fd = open_pair(GUEST_PORT);
    for (size_t i = 0; i < sizeof sent; i++)
        sent[i] = (uint8_t)(i * 31 + i / 255);
    while (have < sizeof sent) {
        ssize_t n = send(fd, sent + written, sizeof sent - written, MSG_DONTWAIT);
        written += n > 0 ? (size_t)n : 0;
        expect_packet(VSOCK_OP_RW, GUEST_PORT);
        assert_memory_equal(guest.data, sent + have, guest.h.len);
        have += guest.h.len;
    }
    assert_int_equal(have, sizeof sent);
    close(fd);
}

static void thousands_of_connections_are_bounded(void **state)
{
    int pair[2], err = 0;
    unsigned n = 0;
    guest_start();
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, pair), 0);
    while (n < VSOCK_CONNECTIONS_MAX && (err = vsock_connect(vs, 100 + n, pair[1], on_done, &report)) == 0)
        n++;
    assert_int_equal(n, VSOCK_CONNECTIONS_MAX);
    assert_int_equal(vsock_connect(vs, 99, pair[1], on_done, &report), -EMFILE);
    guest_send(6000, 70, VSOCK_OP_REQUEST, 0, NULL, 0); /* nor does the guest get more */
    unsigned refused = 0;
    for (unsigned i = 0; i <= n; i++) {
        assert_true(guest_take_within(1000));
        refused += guest.h.op == VSOCK_OP_RST && guest.h.dst_port == 6000;
    }
    assert_int_equal(refused, 1);
    assert_int_equal(report.calls, 0);
    set(&drv, 20, 0, 1); /* the driver resets the device */
    expect_no_connections();
    assert_int_equal(report.calls, n);
    assert_int_equal(report.err, -ECONNRESET);
    close(pair[0]);
    close(pair[1]);
}

/* --- a hostile guest --------------------------------------------------------------------------------------------- */

static void packets_for_nobody_are_reset_once_each(void **state)
{
    guest_start();
    for (uint16_t op = 0; op < 12; op++) {
        guest_send(1, 2, op, 0, NULL, 0);
        if (op == VSOCK_OP_RST)
            expect_silence();
        else
            expect_packet(VSOCK_OP_RST, 1);
    }
    struct vsock_header h = guest_header(1, 2, VSOCK_OP_REQUEST);
    h.type = 2; /* not a stream */
    guest_put(&h, NULL, 0);
    expect_packet(VSOCK_OP_RST, 1);
    assert_int_equal(guest.h.type, 2);
    h = guest_header(1, 2, VSOCK_OP_REQUEST);
    h.src_cid = 4;
    guest_put(&h, NULL, 0);
    h = guest_header(1, 2, VSOCK_OP_REQUEST);
    h.dst_cid = 5;
    guest_put(&h, NULL, 0);
    expect_silence();
}

static void a_short_packet_is_dropped(void **state)
{
    guest_start();
    put_desc(&drv, VQ_AT(1), 0, TX_BUFFER, 43, 0, 0);
    vq_offer(1, 0);
    vq_kick(1);
    spin();
    assert_int_equal(ram16(&drv, VQ_AT(1) + 0x2002), 1); /* it was taken */
    expect_silence();
    assert_int_equal(status(&drv) & VIRTIO_NEEDS_RESET, 0);
}

static void a_packet_with_less_than_it_says_resets_the_connection(void **state)
{
    guest_start();
    for (unsigned i = 0; i < 2; i++) {
        int fd = open_pair(GUEST_PORT);
        struct vsock_header h = guest_header(GUEST_PORT, report.host_port, VSOCK_OP_RW);
        h.len = i ? 0xffffffff : 11;
        guest_put(&h, "0123456789", 10);
        expect_packet(VSOCK_OP_RST, GUEST_PORT);
        expect_end(fd);
        close(fd);
    }
}

static void every_operation_in_every_state(void **state)
{
    guest_start();
    assert_int_equal(vsock_listen(vs, 80, on_accept, NULL), 0);
    for (uint16_t first = 0; first < 9; first++)
        for (uint16_t second = 0; second < 9; second++) {
            int fd = connect_pair(GUEST_PORT);
            expect_packet(VSOCK_OP_REQUEST, GUEST_PORT);
            uint32_t port = guest.h.src_port;
            guest_send(GUEST_PORT, port, first, VSOCK_SHUT_BOTH, "abc", 3);
            guest_send(GUEST_PORT, port, second, VSOCK_SHUT_BOTH, "abc", 3);
            guest_send(5000, 80, first, VSOCK_SHUT_SEND, "abc", 3);
            guest_send(5000, 80, second, VSOCK_SHUT_SEND, "abc", 3);
            spin();
            if (accepted >= 0)
                close(accepted);
            accepted = -1;
            guest_send(5000, 80, VSOCK_OP_RST, 0, NULL, 0);
            guest_send(GUEST_PORT, port, VSOCK_OP_RST, 0, NULL, 0);
            expect_no_connections();
            while (guest_take_within(1))
                ;
            close(fd);
        }
    assert_int_equal(status(&drv) & VIRTIO_NEEDS_RESET, 0);
}

/* More packets that need an answer than there is room for answers: they wait, none is lost. */
static void replies_wait_for_buffers(void **state)
{
    guest_start_with(0);
    unsigned n = 0, answered = 0;
    for (unsigned round = 0; round < 8; round++) {
        for (unsigned i = 0; i < VQ_SIZE / 2; i++)
            guest_send(1000 + n++, 2, VSOCK_OP_RW, 0, NULL, 0);
        spin();
        if (ram16(&drv, VQ_AT(1) + 0x2002) != n)
            break; /* the device waits for us */
    }
    assert_in_range(n, VSOCK_REPLIES_MAX, VSOCK_REPLIES_MAX + VQ_SIZE);
    for (uint16_t i = 0; i < VQ_SIZE - 1; i++)
        rx_offer(i);
    vq_kick(0);
    while (guest_take_within(20)) {
        assert_int_equal(guest.h.op, VSOCK_OP_RST);
        assert_int_equal(guest.h.dst_port, 1000 + answered);
        answered++;
    }
    assert_int_equal(answered, n);
    assert_int_equal(ram16(&drv, VQ_AT(1) + 0x2002), n);
}

static void a_buffer_smaller_than_a_header_stops_the_device(void **state)
{
    guest_start_with(0);
    put_desc(&drv, VQ_AT(0), 0, RX_BUFFER(0), 43, WRITE, 0);
    vq_offer(0, 0);
    guest_send(1, 2, VSOCK_OP_RW, 0, NULL, 0);
    spin();
    assert_true(status(&drv) & VIRTIO_NEEDS_RESET);
}

static void a_chain_that_loops_stops_the_device(void **state)
{
    guest_start();
    put_desc(&drv, VQ_AT(1), 0, TX_BUFFER, 64, NEXT, 1);
    put_desc(&drv, VQ_AT(1), 1, TX_BUFFER, 64, NEXT, 0);
    vq_offer(1, 0);
    vq_kick(1);
    spin();
    assert_true(status(&drv) & VIRTIO_NEEDS_RESET);
}

static void memory_outside_ram_stops_the_device(void **state)
{
    guest_start();
    put_desc(&drv, VQ_AT(1), 0, drv.notify, 64, 0, 0); /* its own registers */
    vq_offer(1, 0);
    vq_kick(1);
    spin();
    assert_true(status(&drv) & VIRTIO_NEEDS_RESET);
}

/* --- resets ------------------------------------------------------------------------------------------------------ */

static void a_reset_in_the_middle_closes_everything(void **state)
{
    static char block[65536];
    guest_start();
    int open = open_pair(GUEST_PORT), draining = open_pair(GUEST_PORT);
    for (unsigned i = 0; i < 4; i++)
        guest_send(GUEST_PORT, report.host_port, VSOCK_OP_RW, 0, block, sizeof block);
    int waiting = connect_pair(GUEST_PORT);
    set(&drv, 20, 0, 1);
    assert_true(spin_until(reported, NULL, 1000));
    assert_int_equal(report.err, -ECONNRESET);
    expect_no_connections();
    expect_end(open);
    guest_start(); /* and it works again */
    int fd = open_pair(GUEST_PORT);
    guest_send(GUEST_PORT, report.host_port, VSOCK_OP_RW, 0, "again", 5);
    expect_bytes(fd, "again");
    close(fd);
    close(open);
    close(draining);
    close(waiting);
}

static bool event_there(void *opaque)
{
    return ram16(&drv, VQ_AT(2) + 0x2002) == 1;
}

static void a_restored_guest_hears_that_its_connections_are_gone(void **state)
{
    const struct device_class *c = &virtio_vsock_class;
    uint8_t *saved = malloc(c->save_size);
    guest_start();
    int fd = open_pair(GUEST_PORT);
    memcpy(saved, (char *)dev.state + c->save_offset, c->save_size);
    c->reset(&dev);
    memcpy((char *)dev.state + c->save_offset, saved, c->save_size);
    c->post_restore(&dev);
    memset(memory_hva(fx.memory, EVENT_BUFFER, 4), 0xff, 4);
    assert_true(spin_until(event_there, NULL, 1000));
    assert_int_equal(ram32(&drv, EVENT_BUFFER), 0);
    assert_int_equal(ram32(&drv, VQ_AT(2) + 0x2008), 4);
    expect_no_connections();
    close(fd);
    fd = open_pair(GUEST_PORT);
    close(fd);
    free(saved);
}

/* Each connection to a program of the host is a descriptor, and the guest decides how many there are. */
static void descriptors_are_left_for_others(void **state)
{
    struct rlimit before, few = {256, 256};
    struct sockaddr_un a = {.sun_family = AF_UNIX};
    struct vsock_host *host;
    char err[256], path[sizeof host_path + 8];
    unsigned n = 0;
    int fds[256];

    getrlimit(RLIMIT_NOFILE, &before);
    few.rlim_max = before.rlim_max;
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &few), 0);
    snprintf(path, sizeof path, "%s/w", directory);
    assert_int_equal(vsock_host_open(&host, path, fx.loop, NULL, err, sizeof err), 0);
    snprintf(a.sun_path, sizeof a.sun_path, "%s_77", path);
    int listener = socket(AF_UNIX, SOCK_STREAM, 0);
    assert_int_equal(bind(listener, (struct sockaddr *)&a, sizeof a), 0);
    assert_int_equal(listen(listener, 512), 0);
    while (n < 256 && (fds[n] = vsock_host_dial(host, 77)) >= 0)
        n++;
    assert_true(n > 0 && fds[n - 1] < 128);
    assert_int_equal(fds[n], -EMFILE);
    int other = open("/dev/null", O_RDONLY);
    assert_true(other >= 0 && other <= 128);
    close(other);
    while (n)
        close(fds[--n]);
    close(listener);
    unlink(a.sun_path);
    vsock_host_close(host);
    setrlimit(RLIMIT_NOFILE, &before);
}

static void words(void **state)
{
    struct vsock_host_spec spec;
    char err[256];
    assert_int_equal(vsock_host_parse("/run/a", &spec, err, sizeof err), 0);
    assert_string_equal(spec.path, "/run/a");
    assert_int_equal(spec.cid, 3);
    assert_int_equal(vsock_host_parse("b,cid=77", &spec, err, sizeof err), 0);
    assert_string_equal(spec.path, "b");
    assert_int_equal(spec.cid, 77);
    static const char *const wrong[] = {"", ",cid=4", "a,cid=2", "a,cid=4294967295", "a,cid=", "a,uid=3", "a,cid=4x"};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        err[0] = 0;
        assert_true(vsock_host_check(wrong[i], err, sizeof err) < 0);
        assert_true(err[0]);
    }
}

#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
int main(void)
{
    const struct CMUnitTest tests[] = {
        T(identity),
        T(bytes_go_both_ways),
        T(a_refusal_leaves_the_descriptor_to_its_owner),
        T(what_cannot_be_connected_is_said_at_once),
        T(a_cancelled_connect_is_not_reported),
        T(destruction_reports_what_was_waiting),
        T(a_listener_in_the_process),
        T(a_listener_at_a_path),
        T(a_client_connects_by_a_line),
        T(a_line_comes_in_pieces),
        T(a_client_that_says_something_else_is_closed),
        T(a_client_before_there_is_a_driver_is_closed),
        T(the_host_half_closes),
        T(the_guest_half_closes),
        T(a_guest_that_does_not_read_any_more),
        T(a_packet_after_the_end_is_reset),
        T(the_rest_reaches_a_slow_reader),
        T(the_host_keeps_to_the_guests_credit),
        T(the_guest_is_told_of_its_credit),
        T(a_guest_that_sends_beyond_its_credit_is_reset),
        T(a_slow_reader_holds_up_nobody_else),
        T(a_megabyte_to_the_guest),
        T(thousands_of_connections_are_bounded),
        T(packets_for_nobody_are_reset_once_each),
        T(a_short_packet_is_dropped),
        T(a_packet_with_less_than_it_says_resets_the_connection),
        T(every_operation_in_every_state),
        T(replies_wait_for_buffers),
        T(a_buffer_smaller_than_a_header_stops_the_device),
        T(a_chain_that_loops_stops_the_device),
        T(memory_outside_ram_stops_the_device),
        T(a_reset_in_the_middle_closes_everything),
        T(a_restored_guest_hears_that_its_connections_are_gone),
        T(descriptors_are_left_for_others),
        cmocka_unit_test(words),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
