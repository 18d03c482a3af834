/* Cables that lead to one another: the switch of several VMs, and a vde_switch where one is installed. */
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "backends/net_helper.h"
#include "net_guest.h"

static struct cable cable;
static struct guest a, b, c;
static char directory[] = "/tmp/guise-test-XXXXXX", spec[80], path[64];

static int setup(void **state)
{
    cable_open(&cable);
    strcpy(directory + sizeof directory - 7, "XXXXXX");
    assert_non_null(mkdtemp(directory));
    snprintf(path, sizeof path, "%s/switch", directory);
    snprintf(spec, sizeof spec, "switch:%s", path);
    return 0;
}

static int teardown(void **state)
{
    cable_close(&cable);
    unlink(path); /* is there only when a test has failed */
    assert_int_equal(rmdir(directory), 0);
    return 0;
}

/* A frame of `len` bytes from one to another; its first byte behind the header says which. */
static void say(struct guest *from, const uint8_t *to, uint8_t what, size_t len)
{
    uint8_t frame[2000] = {0};

    memcpy(frame, to, 6);
    memcpy(frame + 6, from->mac, 6);
    be16_put(frame + 12, 0x88b5); /* for experiments (IEEE 802) */
    frame[14] = what;
    guest_send(from, frame, len);
}

static bool is_what(const struct frame *f, const void *opaque)
{
    return f->len >= 60 && be16_get(f->bytes + 12) == 0x88b5 && f->bytes[14] == *(const uint8_t *)opaque;
}

static bool hears(struct guest *g, uint8_t what, unsigned ms)
{
    return guest_await(g, is_what, &what, ms);
}

static const uint8_t all[6] = {255, 255, 255, 255, 255, 255};

static void floods_and_learns(void **state)
{
    guest_open(&a, &cable, spec, 1);
    guest_open(&b, &cable, spec, 2);
    guest_open(&c, &cable, spec, 3);
    say(&a, all, 1, 60);
    assert_true(hears(&b, 1, 3000));
    assert_true(hears(&c, 1, 3000));
    assert_false(hears(&a, 1, 20)); /* not its own */
    say(&b, a.mac, 2, 60);
    assert_true(hears(&a, 2, 3000));
    assert_false(hears(&c, 2, 50)); /* a's place is known */
    say(&c, b.mac, 3, 60);
    assert_true(hears(&b, 3, 3000));
    assert_false(hears(&a, 3, 50));
    say(&c, (const uint8_t[]){0x52, 9, 9, 9, 9, 9}, 4, 60); /* nobody knows this one */
    assert_true(hears(&a, 4, 3000));
    assert_true(hears(&b, 4, 3000));
    struct stat st;
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0600);
    guest_close(&a);
    guest_close(&b);
    guest_close(&c);
}

/* The first is the hub: the others find another, and a new one finds them. */
static void the_hub_leaves(void **state)
{
    guest_open(&a, &cable, spec, 1);
    guest_open(&b, &cable, spec, 2);
    guest_open(&c, &cable, spec, 3);
    say(&b, all, 1, 60);
    assert_true(hears(&c, 1, 3000));
    guest_close(&a);
    bool heard = false;
    for (unsigned i = 0; i < 50 && !heard; i++) {
        say(&b, all, 2, 60);
        heard = hears(&c, 2, 100);
    }
    assert_true(heard);
    guest_open(&a, &cable, spec, 1);
    say(&a, all, 3, 60);
    assert_true(hears(&b, 3, 3000));
    assert_true(hears(&c, 3, 3000));
    guest_close(&a);
    guest_close(&b);
    guest_close(&c);
}

static pid_t child_of(pid_t parent)
{
    char name[64];
    int pid = 0;
    snprintf(name, sizeof name, "/proc/%d/task/%d/children", parent, parent);
    FILE *f = fopen(name, "re");
    if (f && fscanf(f, "%d", &pid) != 1)
        pid = 0;
    if (f)
        fclose(f);
    return pid;
}

/* A hub that was killed leaves its socket's file: the next one takes its place. */
static void the_hub_is_killed(void **state)
{
    guest_open(&a, &cable, spec, 1);
    assert_int_equal(kill(child_of(child_of(getpid())), SIGKILL), 0);
    guest_open(&b, &cable, spec, 2);
    for (unsigned i = 0; i < 3000 && a.links < 2; i++)
        cable_run(&cable, 2);
    say(&b, all, 1, 60);
    assert_true(hears(&a, 1, 3000));
    guest_close(&a);
    guest_close(&b);
}

/* One that does not read makes the sender wait; when it reads, nothing is missing and all is in order. */
static void nothing_is_lost(void **state)
{
    enum { FRAMES = 3000, LEN = 1500 };
    unsigned got = 0, sent = 0, waited = 0;
    uint8_t frame[LEN] = {0};
    struct net_header h = {0};

    guest_open(&a, &cable, spec, 1);
    guest_open(&b, &cable, spec, 2);
    say(&b, all, 1, 60);
    assert_true(hears(&a, 1, 3000));
    memcpy(frame, b.mac, 6);
    memcpy(frame + 6, a.mac, 6);
    be16_put(frame + 12, 0x88b5);
    for (uint64_t end = clock_ns() + 20000000000; got < FRAMES && clock_ns() < end;) {
        be32_put(frame + 20, sent);
        if (sent < FRAMES && guest_send_header(&a, &h, frame, LEN))
            sent++;
        else
            waited++;
        if (sent % 50 && sent < FRAMES)
            continue;
        pthread_mutex_lock(&cable.lock);
        net_resume(b.net);
        pthread_mutex_unlock(&cable.lock);
        cable_run(&cable, 1);
        for (unsigned i = 0; i < b.n_in; i++) {
            assert_int_equal(b.in[i].len, LEN);
            assert_int_equal(be32_get(b.in[i].bytes + 20), got++);
        }
        guest_forget(&b);
    }
    assert_int_equal(got, FRAMES);
    guest_close(&a);
    guest_close(&b);
}

static void not_a_socket(void **state)
{
    char err[512] = "";
    struct net *net;
    FILE *f = fopen(path, "we");

    fclose(f);
    assert_true(net_open(&net, spec, cable.loop, err, sizeof err) < 0);
    assert_non_null(strstr(err, "choose another name"));
    unlink(path);
    assert_true(net_open(&net, "switch:/nonexistent/switch", cable.loop, err, sizeof err) < 0);
    assert_non_null(strstr(err, "No such file"));
}

/* A stranger at the hub's socket says what it likes. */
static void garbage_at_the_socket(void **state)
{
    struct sockaddr_un {
        sa_family_t family;
        char path[108];
    } at = {.family = AF_UNIX};
    uint64_t seed = 3;

    guest_open(&a, &cable, spec, 1);
    guest_open(&b, &cable, spec, 2);
    strcpy(at.path, path);
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    assert_int_equal(connect(fd, (struct sockaddr *)&at, sizeof at), 0);
    for (unsigned i = 0; i < 3000; i++) {
        uint8_t message[4000];
        seed = seed * 6364136223846793005ull + 1442695040888963407ull;
        for (size_t k = 0; k < sizeof message; k++)
            message[k] = (uint8_t)(seed >> k % 57);
        uint32_t len = (uint32_t)(seed >> 50 & 1023);
        if (seed & 3)
            memcpy(message, &len, 4);
        send(fd, message, seed >> 40 & 4000 % sizeof message, MSG_DONTWAIT);
    }
    close(fd);
    cable_run(&cable, 100);
    guest_forget(&a);
    guest_forget(&b);
    say(&a, all, 1, 60);
    assert_true(hears(&b, 1, 3000));
    guest_close(&a);
    guest_close(&b);
}

/* --- vde_switch --------------------------------------------------------------------------------------------------- */

/* *input: it ends when that is closed. */
static pid_t start_vde_switch(const char *socket, int *input)
{
    char ctl[80];
    struct stat st;
    int ends[2];

    assert_int_equal(pipe2(ends, O_CLOEXEC), 0);
    pid_t pid = fork();
    if (pid == 0) {
        dup2(ends[0], 0);
        close(1);
        execlp("vde_switch", "vde_switch", "-s", socket, "-x", "-n", "32", (char *)NULL); /* -x: a hub */
        _exit(127);
    }
    snprintf(ctl, sizeof ctl, "%s/ctl", socket);
    for (unsigned i = 0; i < 200 && stat(ctl, &st); i++)
        usleep(10000);
    close(ends[0]);
    *input = ends[1];
    return pid;
}

/* A long segment goes out in frames of a wire, with complete checksums. */
static void vde(void **state)
{
    static uint8_t payload[10000];
    struct frame *f;
    struct tcp t = {&a, "10.0.2.2", 1000, 2000, 77, 0}, reverse = {&b, "10.0.2.15", 2000, 1000, 0, 0};

    if (system("command -v vde_switch >/dev/null"))
        skip();
    snprintf(path, sizeof path, "%s/vde", directory);
    snprintf(spec, sizeof spec, "vde:%s", path);
    setenv("GUISE_RUNTIME", directory, 1);
    int input;
    pid_t pid = start_vde_switch(path, &input);
    guest_open(&a, &cable, spec, 1);
    guest_open(&b, &cable, spec, 2);
    say(&a, all, 1, 60);
    assert_true(hears(&b, 1, 3000));
    memcpy(a.gateway, b.mac, 6);
    for (size_t i = 0; i < sizeof payload; i++)
        payload[i] = (uint8_t)(i * 31 >> 3);
    tcp_put(&t, ACK, payload, sizeof payload);
    for (size_t got = 0; got < sizeof payload;) {
        struct offload_frame p;
        f = guest_await(&b, is_tcp, &reverse, 3000);
        assert_non_null(f);
        assert_in_range(f->len, 54, 1514);
        assert_true(offload_parse(f->bytes, f->len, &p));
        uint64_t sum = offload_pseudo(f->bytes, &p, p.end - p.l4);
        assert_int_equal(offload_fold(offload_sum(f->bytes + p.l4, p.end - p.l4, sum)), 0xffff);
        assert_memory_equal(f->bytes + p.payload, payload + (be32_get(f->bytes + p.l4 + 4) - 77), p.end - p.payload);
        got += p.end - p.payload;
    }
    close(input);
    waitpid(pid, NULL, 0);
    for (unsigned i = 0; i < 1000 && a.up; i++)
        cable_run(&cable, 2);
    assert_false(a.up);
    guest_close(&a);
    guest_close(&b);
    rmdir(path);
}

static void no_vde_switch(void **state)
{
    char err[512] = "";
    struct net *net;

    setenv("GUISE_RUNTIME", directory, 1);
    assert_true(net_open(&net, "vde:/nonexistent", cable.loop, err, sizeof err) < 0);
    assert_non_null(strstr(err, "no vde_switch answers at /nonexistent"));
}

#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
int main(int argc, char **argv)
{
    if (argc > 1 && strcmp(argv[1], "helper-net") == 0)
        return net_helper_main(argc - 1, argv + 1);
    const struct CMUnitTest tests[] = {
        T(floods_and_learns),
        T(the_hub_leaves),
        T(the_hub_is_killed),
        T(nothing_is_lost),
        T(not_a_socket),
        T(garbage_at_the_socket),
        T(vde),
        T(no_vde_switch),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
