/* The user network with its real helper process: a guest that speaks DHCP, ARP, TCP and UDP with servers of this host.
 */
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <sys/wait.h>

#include "backends/net/control.h"
#include "backends/net/net_int.h"
#include "backends/net/worker.h"
#include "backends/net_helper.h"
#include "net_guest.h"

static struct cable cable;
static struct guest g;

static int setup(void **state)
{
    cable_open(&cable);
    guest_open(&g, &cable, "user", 1);
    return 0;
}

static int teardown(void **state)
{
    guest_close(&g);
    cable_close(&cable);
    return 0;
}

/* A socket on 127.0.0.1; *port is what it got. */
static int server(int type, unsigned *port)
{
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof at;
    int fd = socket(AF_INET, type | SOCK_CLOEXEC, 0);

    assert_int_equal(bind(fd, (struct sockaddr *)&at, sizeof at), 0);
    assert_int_equal(getsockname(fd, (struct sockaddr *)&at, &len), 0);
    if (type == SOCK_STREAM)
        assert_int_equal(listen(fd, 5), 0);
    *port = ntohs(at.sin_port);
    return fd;
}

static uint8_t *pattern(size_t len)
{
    uint8_t *data = malloc(len);
    for (size_t i = 0; i < len; i++)
        data[i] = (uint8_t)(i * 2654435761u >> 13);
    return data;
}

/* Writes in a process of its own, so that the loop can run meanwhile. */
static pid_t write_in_background(int fd, const uint8_t *data, size_t len)
{
    pid_t pid = fork();
    if (pid)
        return pid;
    for (size_t done = 0; done < len;) {
        ssize_t n = write(fd, data + done, len - done);
        if (n <= 0)
            _exit(1);
        done += (size_t)n;
    }
    shutdown(fd, SHUT_WR);
    _exit(0);
}

static bool is_dhcp(const struct frame *f, const void *opaque)
{
    return f->len > 14 + 20 + 8 + 240 && be16_get(f->bytes + 12) == 0x0800 && be16_get(f->bytes + 34) == 67;
}

static uint8_t option(const struct frame *f, uint8_t code, uint8_t value[4])
{
    for (const uint8_t *p = f->bytes + 14 + 20 + 8 + 240, *end = f->bytes + f->len; p + 1 < end && *p != 255;
         p += *p ? 2 + p[1] : 1)
        if (*p == code && p + 2 + p[1] <= end) {
            memcpy(value, p + 2, p[1] < 4 ? p[1] : 4);
            return p[1];
        }
    return 0;
}

static void dhcp(void **state)
{
    uint8_t out[600] = {0}, *bootp = out + 34 + 8, value[4] = {0};
    struct net_header h;

    memset(g.gateway, 0xff, 6);
    be16_put(out + 34, 68);
    be16_put(out + 36, 67);
    be16_put(out + 38, 8 + 300);
    memcpy(bootp, "\x01\x01\x06\x00\x12\x34\x56\x78", 8);
    memcpy(bootp + 28, g.mac, 6);
    memcpy(bootp + 236, "\x63\x82\x53\x63\x35\x01\x01\xff", 8); /* DISCOVER */
    size_t len = guest_ipv4(&g, out, "0.0.0.0", "255.255.255.255", 17, 8 + 300, &h);
    assert_true(guest_send_header(&g, &h, out, len));
    struct frame *f = guest_await(&g, is_dhcp, NULL, 5000);
    assert_non_null(f);
    assert_memory_equal(f->bytes + 34 + 8 + 16, "\x0a\0\x02\x0f", 4); /* yours: 10.0.2.15 */
    assert_int_equal(option(f, 53, value), 1);
    assert_int_equal(value[0], 2); /* OFFER */
    assert_int_equal(option(f, 1, value), 4);
    assert_memory_equal(value, "\xff\xff\xff\0", 4);
    assert_int_equal(option(f, 3, value), 4);
    assert_memory_equal(value, "\x0a\0\x02\x02", 4);
    assert_int_equal(option(f, 6, value), 4);
    assert_memory_equal(value, "\x0a\0\x02\x03", 4);
}

/* Two megabytes in, in long segments that cross whole. */
static void tcp_to_the_guest(void **state)
{
    const size_t len = 2 << 20;
    uint8_t *sent = pattern(len), *got = malloc(len);
    size_t longest;
    unsigned port;
    int listener = server(SOCK_STREAM, &port), status;
    struct tcp t = {&g, "10.0.2.2", 40000, port, 1000, 0};

    guest_arp(&g);
    tcp_connect(&t);
    int fd = accept(listener, NULL, NULL);
    pid_t pid = write_in_background(fd, sent, len);
    close(fd);
    assert_int_equal(tcp_read(&t, got, len, &longest), len);
    assert_memory_equal(got, sent, len);
    assert_in_range(longest, 20000, NET_FRAME_MAX);
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_int_equal(status, 0);
    close(listener);
    free(sent);
    free(got);
}

/* The same for a guest that takes neither long segments nor open checksums. */
static void tcp_to_a_plain_guest(void **state)
{
    const size_t len = 300000;
    uint8_t *sent = pattern(len), *got = malloc(len);
    size_t longest;
    unsigned port;
    int listener = server(SOCK_STREAM, &port);
    struct tcp t = {&g, "10.0.2.2", 40000, port, 1000, 0};

    net_set_offloads(g.net, 0);
    guest_arp(&g);
    tcp_connect(&t);
    int fd = accept(listener, NULL, NULL);
    pid_t pid = write_in_background(fd, sent, len);
    close(fd);
    assert_int_equal(tcp_read(&t, got, len, &longest), len);
    assert_memory_equal(got, sent, len);
    assert_int_equal(longest, 1514);
    waitpid(pid, NULL, 0);
    close(listener);
    free(sent);
    free(got);
}

static void tcp_from_the_guest(void **state)
{
    const size_t len = 60000;
    uint8_t *sent = pattern(len), *got = malloc(len);
    unsigned port;
    int listener = server(SOCK_STREAM, &port);
    struct tcp t = {&g, "10.0.2.2", 40001, port, 5000, 0};

    guest_arp(&g);
    tcp_connect(&t);
    int fd = accept(listener, NULL, NULL);
    tcp_put(&t, ACK | PSH, sent, len); /* one frame */
    for (size_t done = 0; done < len;) {
        cable_run(&cable, 1);
        ssize_t n = recv(fd, got + done, len - done, MSG_DONTWAIT);
        assert_true(n > 0 || errno == EAGAIN);
        done += n > 0 ? (size_t)n : 0;
    }
    assert_memory_equal(got, sent, len);
    close(fd);
    close(listener);
    free(sent);
    free(got);
}

static bool is_udp(const struct frame *f, const void *opaque)
{
    struct offload_frame p;
    return offload_parse(f->bytes, f->len, &p) && p.version == 4 && f->bytes[p.l3 + 9] == 17;
}

/* A datagram of 4000 bytes comes back in fragments that a wire takes. */
static void udp_both_ways(void **state)
{
    uint8_t out[100] = {0}, answer[4000], got[4008] = {0};
    struct sockaddr_in from;
    socklen_t size = sizeof from;
    struct net_header h;
    unsigned port;
    int fd = server(SOCK_DGRAM, &port);

    guest_arp(&g);
    be16_put(out + 34, 1234);
    be16_put(out + 36, port);
    be16_put(out + 38, 8 + 5);
    memcpy(out + 42, "hello", 5);
    size_t len = guest_ipv4(&g, out, "10.0.2.15", "10.0.2.2", 17, 8 + 5, &h);
    assert_true(guest_send_header(&g, &h, out, len));
    cable_run(&cable, 50);
    assert_int_equal(recvfrom(fd, got, sizeof got, 0, (struct sockaddr *)&from, &size), 5);
    memset(answer, 0x5a, sizeof answer);
    assert_int_equal(sendto(fd, answer, sizeof answer, 0, (struct sockaddr *)&from, size), sizeof answer);
    for (size_t have = 0; have < 4008;) {
        struct frame *f = guest_await(&g, is_udp, NULL, 5000);
        assert_non_null(f);
        assert_in_range(f->len, 35, 1514);
        unsigned field = be16_get(f->bytes + 20), at = (field & 0x1fff) * 8, bytes = be16_get(f->bytes + 16) - 20;
        assert_in_range(at + bytes, 1, 4008);
        assert_int_equal(!(field & 0x2000), at + bytes == 4008);
        memcpy(got + at, f->bytes + 34, bytes);
        have += bytes;
    }
    assert_int_equal(be16_get(got), port);
    assert_memory_equal(got + 8, answer, sizeof answer);
    close(fd);
}

static int connect_to(unsigned port)
{
    struct sockaddr_in at = {
        .sin_family = AF_INET, .sin_port = htons((uint16_t)port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (connect(fd, (struct sockaddr *)&at, sizeof at) == 0)
        return fd;
    close(fd);
    return -1;
}

static bool is_syn(const struct frame *f, const void *opaque)
{
    struct offload_frame p;
    return offload_parse(f->bytes, f->len, &p) && p.protocol == 6 && f->bytes[p.l4 + 13] == SYN &&
           be16_get(f->bytes + p.l4 + 2) == *(const unsigned *)opaque;
}

/* libslirp forwards to 10.0.2.15 when it knows where that is: any frame of the guest says so. */
static void expect_reaches(unsigned host_port, unsigned guest_port)
{
    guest_arp(&g);
    int fd = connect_to(host_port);
    assert_true(fd >= 0);
    struct frame *f = guest_await(&g, is_syn, &guest_port, 5000);
    assert_non_null(f);
    close(fd);
}

static void publish_busy_chosen_removed(void **state)
{
    char err[512];
    unsigned busy;
    int holder = server(SOCK_STREAM, &busy);
    struct net_publish p;

    net_publish_parse("0:80", &p, err, sizeof err);
    p.host_port = (uint16_t)busy;
    assert_int_equal(net_publish_add(g.net, &p, err, sizeof err), -EADDRINUSE);
    assert_non_null(strstr(err, "it is in use"));
    close(holder);
    p.host_port = 0;
    assert_int_equal(net_publish_add(g.net, &p, err, sizeof err), 0);
    assert_true(p.host_port > 0);
    assert_int_equal(net_publish_add(g.net, &p, err, sizeof err), -EEXIST);
    assert_int_equal(net_published(g.net, 0)->host_port, p.host_port);
    assert_null(net_published(g.net, 1));
    expect_reaches(p.host_port, 80);
    struct net_publish udp = {.ip = {127, 0, 0, 1}, .guest_port = 53, .udp = true};
    assert_int_equal(net_publish_add(g.net, &udp, err, sizeof err), 0);
    assert_int_equal(net_publish_remove(g.net, &p, err, sizeof err), 0);
    assert_int_equal(connect_to(p.host_port), -1);
    assert_int_equal(net_publish_remove(g.net, &p, err, sizeof err), -ENOENT);
    assert_int_equal(net_published(g.net, 0)->host_port, udp.host_port);
    net_publish_parse("192.0.2.1:0:80", &p, err, sizeof err);
    p.host_port = 8080;
    assert_int_equal(net_publish_add(g.net, &p, err, sizeof err), -EADDRNOTAVAIL);
    assert_non_null(strstr(err, "does not have that address"));
}

/* The children of a process, of which a helper has one. */
static pid_t child_of(pid_t parent)
{
    char path[64], text[64] = "";
    snprintf(path, sizeof path, "/proc/%d/task/%d/children", parent, parent);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return 0;
    ssize_t got = read(fd, text, sizeof text - 1);
    close(fd);
    return got > 0 ? atoi(text) : 0;
}

/* Until the link is up after having gone down and up `times` times. */
static void await_link(unsigned times)
{
    for (unsigned i = 0; i < 3000 && g.links < 2 * times; i++)
        cable_run(&cable, 2);
    assert_int_equal(g.links, 2 * times);
    assert_true(g.up);
}

static void the_helper_is_killed(void **state)
{
    char err[512];
    struct net_publish p = {.ip = {127, 0, 0, 1}, .guest_port = 22};

    assert_int_equal(net_publish_add(g.net, &p, err, sizeof err), 0);
    pid_t outer = child_of(getpid()), inner = child_of(outer);
    assert_true(outer > 0 && inner > 0);
    assert_int_equal(kill(inner, SIGKILL), 0);
    await_link(1);
    assert_int_not_equal(child_of(outer), inner);
    expect_reaches(p.host_port, 22); /* published again */
    inner = child_of(outer);
    assert_int_equal(kill(outer, SIGKILL), 0);
    cable_run(&cable, 50);
    expect_reaches(p.host_port, 22); /* that does not stop the one that does the work */
    assert_int_equal(kill(inner, SIGKILL), 0);
    await_link(2);
    assert_int_not_equal(child_of(getpid()), outer);
    expect_reaches(p.host_port, 22);
}

/* That it is up again comes while the answer to something else is awaited. */
static void a_port_is_published_while_the_helper_starts(void **state)
{
    char err[512];
    struct net_publish p = {.ip = {127, 0, 0, 1}, .guest_port = 22};

    assert_int_equal(kill(child_of(child_of(getpid())), SIGKILL), 0);
    for (unsigned i = 0; i < 3000 && g.up; i++)
        cable_run(&cable, 1);
    assert_false(g.up);
    assert_int_equal(net_publish_add(g.net, &p, err, sizeof err), 0);
    await_link(1);
    expect_reaches(p.host_port, 22);
}

static int answered;
static struct net_publish answer;

static void on_answer(void *opaque, int failed, const struct net_publish *p, const char *why)
{
    answered = failed ? failed : 1;
    answer = *p;
}

static int ask(struct net_publish p, bool add)
{
    char err[512];

    answered = 0;
    assert_int_equal(net_publish_ask(g.net, &p, add, on_answer, NULL, err, sizeof err), 0);
    for (unsigned i = 0; i < 10000 && !answered; i++)
        cable_run(&cable, 1);
    return answered;
}

static void a_helper_that_hangs_holds_nobody_up(void **state)
{
    const struct net_publish p = {.ip = {127, 0, 0, 1}, .guest_port = 22};
    char err[512];
    uint64_t before;

    assert_int_equal(ask(p, true), 1);
    expect_reaches(answer.host_port, 22);
    assert_int_equal(net_published(g.net, 0)->host_port, answer.host_port);
    assert_int_equal(ask(answer, false), 1);
    assert_null(net_published(g.net, 0));

    pid_t inner = child_of(child_of(getpid()));
    assert_int_equal(kill(inner, SIGSTOP), 0);
    before = clock_ns();
    answered = 0;
    assert_int_equal(net_publish_ask(g.net, &p, true, on_answer, NULL, err, sizeof err), 0);
    cable_run(&cable, 10);
    assert_true(clock_ns() - before < 1000000000u);
    assert_int_equal(answered, 0);
    for (unsigned i = 0; i < 10000 && !answered; i++)
        cable_run(&cable, 1);
    assert_int_equal(answered, -ETIMEDOUT);
    assert_int_equal(kill(inner, SIGCONT), 0);
    assert_int_equal(ask(p, true), 1);
    expect_reaches(answer.host_port, 22);
    assert_null(net_published(g.net, 1));
}

/* From within a sandbox nothing can be started. */
static void both_helpers_are_killed_in_a_sandbox(void **state)
{
    int any = 0; /* what is in it does not matter */
    char err[512];
    struct net_publish p = {.ip = {127, 0, 0, 1}, .guest_port = 22};

    loop_set_sandbox(cable.loop, (const struct sandbox *)&any);
    pid_t outer = child_of(getpid()), inner = child_of(outer);
    assert_int_equal(kill(outer, SIGKILL), 0);
    assert_int_equal(kill(inner, SIGKILL), 0);
    for (unsigned i = 0; i < 3000 && g.up; i++)
        cable_run(&cable, 2);
    assert_false(g.up);
    uint8_t frame[60] = {0};
    for (unsigned i = 0; i < 100; i++)
        guest_send(&g, frame, sizeof frame); /* into the void */
    assert_int_equal(net_publish_add(g.net, &p, err, sizeof err), -EPIPE);
    cable_run(&cable, 20);
    assert_int_equal(g.links, 1);
    assert_int_equal(child_of(getpid()), 0);
}

/* A process that loops ends by itself; one that turns does not. */
static void a_stuck_worker_ends(void **state)
{
    int status;
    pid_t pid = fork();

    if (pid == 0) {
        static struct worker_watchdog w;
        if (worker_watch(&w, 1))
            _exit(1);
        for (uint64_t end = clock_ns() + 2500000000; clock_ns() < end;)
            w.turns++;
        for (;;)
            ;
    }
    uint64_t start = clock_ns();
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(clock_ns() - start > 2500000000);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), WORKER_STUCK);
}

/* A guest without a free buffer loses nothing; the helper stops reading from the world. */
static void receiving_holds_back(void **state)
{
    const size_t len = 1 << 20;
    uint8_t *sent = pattern(len), *got = malloc(len);
    size_t longest;
    unsigned port;
    int listener = server(SOCK_STREAM, &port);
    struct tcp t = {&g, "10.0.2.2", 40000, port, 1000, 0};

    guest_arp(&g);
    tcp_connect(&t);
    int fd = accept(listener, NULL, NULL);
    g.room = 1;
    pid_t pid = write_in_background(fd, sent, len);
    close(fd);
    cable_run(&cable, 200);
    assert_in_range(g.n_in, 0, 1);
    g.room = ~0u;
    assert_int_equal(tcp_read(&t, got, len, &longest), len);
    assert_memory_equal(got, sent, len);
    waitpid(pid, NULL, 0);
    close(listener);
    free(sent);
    free(got);
}

/* 2 MiB/s, and a bucket of 128 KiB or so: a megabyte takes about 0.4 s. */
static void a_rate_is_kept(void **state)
{
    const size_t len = 1 << 20;
    uint8_t *sent = pattern(len), *got = malloc(len);
    struct guest slow;
    size_t longest;
    unsigned port;
    int listener = server(SOCK_STREAM, &port);
    struct tcp t = {&slow, "10.0.2.2", 40000, port, 1000, 0};

    guest_open(&slow, &cable, "user,rate=2M", 2);
    guest_arp(&slow);
    tcp_connect(&t);
    int fd = accept(listener, NULL, NULL);
    pid_t pid = write_in_background(fd, sent, len);
    close(fd);
    uint64_t start = clock_ns();
    assert_int_equal(tcp_read(&t, got, len, &longest), len);
    assert_in_range(clock_ns() - start, 300000000, 3000000000);
    assert_memory_equal(got, sent, len);
    uint8_t frame[60000] = {0};
    struct net_header h = {0};
    unsigned taken = 0;
    while (taken < 100 && guest_send_header(&slow, &h, frame, sizeof frame))
        taken++;
    assert_in_range(taken, 1, 5);
    unsigned before = slow.writable;
    cable_run(&cable, 300);
    assert_true(slow.writable > before);
    waitpid(pid, NULL, 0);
    guest_close(&slow);
    close(listener);
    free(sent);
    free(got);
}

/* What listens on the host's loopback is out of reach, or everything is; published ports work all the same. */
static void reach_is_limited(void **state)
{
    static const char *const specs[] = {"user,reach=world", "user,reach=none"};
    char err[512];
    unsigned port;
    int listener = server(SOCK_STREAM, &port);

    for (unsigned i = 0; i < 2; i++) {
        struct net_publish p = {.ip = {127, 0, 0, 1}, .guest_port = 80};
        guest_close(&g);
        guest_open(&g, &cable, specs[i], 1);
        guest_arp(&g);
        struct tcp t = {&g, "10.0.2.2", 40000, port, 1000, 0};
        tcp_put(&t, SYN, NULL, 0);
        struct frame *f = guest_await(&g, is_tcp, &t, 300);
        assert_true(!f || f->bytes[34 + 13] & RST);
        struct pollfd nobody = {.fd = listener, .events = POLLIN};
        assert_int_equal(poll(&nobody, 1, 0), 0);
        assert_int_equal(net_publish_add(g.net, &p, err, sizeof err), 0);
        expect_reaches(p.host_port, 80);
    }
    close(listener);
}

/* Whatever a guest sends, the network lives, or comes back. */
static void garbage(void **state)
{
    uint64_t seed = 77;

    guest_arp(&g);
    for (unsigned i = 0; i < 20000; i++) {
        uint8_t out[1600];
        struct net_header h = {0};
        seed = seed * 6364136223846793005ull + 1442695040888963407ull;
        size_t len = seed % 3 ? seed >> 54 : seed >> 53 & 1500;
        for (size_t k = 0; k < len; k++)
            out[k] = (uint8_t)((seed >> k % 57) * (k + 1));
        if (len >= 54) {
            memcpy(out, g.gateway, 6);
            be16_put(out + 12, seed & 1 ? 0x0800 : seed & 2 ? 0x86dd : 0x0806);
            if (seed & 1) {
                guest_ipv4(&g, out, "10.0.2.15", "10.0.2.2", seed & 4 ? 6 : seed & 8 ? 17 : 1, len - 34, &h);
                be16_put(out + 36, 1);
            }
        }
        for (unsigned tries = 0; !guest_send_header(&g, &h, out, len) && tries < 1000; tries++)
            cable_run(&cable, 1);
        guest_forget(&g);
    }
    cable_run(&cable, 100);
    guest_forget(&g);
    guest_arp(&g);
}

#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
int main(int argc, char **argv)
{
    if (argc > 1 && strcmp(argv[1], "helper-net") == 0)
        return net_helper_main(argc - 1, argv + 1);
    const struct CMUnitTest tests[] = {
        T(dhcp),
        T(tcp_to_the_guest),
        T(tcp_to_a_plain_guest),
        T(tcp_from_the_guest),
        T(udp_both_ways),
        T(publish_busy_chosen_removed),
        T(the_helper_is_killed),
        T(a_port_is_published_while_the_helper_starts),
        T(a_helper_that_hangs_holds_nobody_up),
        T(both_helpers_are_killed_in_a_sandbox),
        cmocka_unit_test(a_stuck_worker_ends),
        T(receiving_holds_back),
        T(a_rate_is_kept),
        T(reach_is_limited),
        T(garbage),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
