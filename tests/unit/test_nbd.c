/* Disks behind NBD servers, and disks of other formats behind a qemu-nbd of ours. */
#include "disk_fixture.h"

#include <signal.h>
#include <sys/wait.h>

#include "backends/disk/foreign.h"
#include "base/path.h"

#define MIB (1u << 20)

static bool have(const char *program)
{
    char command[100];
    snprintf(command, sizeof command, "command -v %s >/dev/null", program);
    return system(command) == 0;
}

static int setup(void **state)
{
    disk_setup(state);
    setenv("GUISE_RUNTIME", fx.directory, 1);
    return 0;
}

static void make_image(const char *name, const char *format, unsigned mib)
{
    char command[300];

    snprintf(command, sizeof command, "qemu-img create -q -f %s %s/%s %uM", format, fx.directory, name, mib);
    assert_int_equal(system(command), 0);
}

/* The process that serves us: the only child there is. */
static pid_t server(void)
{
    char command[100];
    int pid = 0;

    snprintf(command, sizeof command, "pgrep -P %d -x qemu-nbd", (int)getpid());
    FILE *out = popen(command, "r");
    assert_non_null(out);
    (void)!fscanf(out, "%d", &pid);
    pclose(out);
    return pid;
}

static void exercise(struct disk *d)
{
    uint8_t *data = malloc(8 * MIB), *back = malloc(8 * MIB);

    disk_fill(data, 8 * MIB, 3);
    assert_int_equal(disk_write(d, 512, data, 8 * MIB - 512), 0); /* several commands */
    assert_int_equal(disk_do(d, DISK_FLUSH, 0, 0, NULL, 0), 0);
    assert_int_equal(disk_read(d, 512, back, 8 * MIB - 512), 0);
    assert_memory_equal(data, back, 8 * MIB - 512);
    assert_int_equal(disk_do(d, DISK_WRITE, DISK_FUA, 4096, data, 8192), 0);
    assert_int_equal(disk_do(d, DISK_WRITE_ZEROES, DISK_UNMAP, MIB, NULL, MIB), 0);
    assert_int_equal(disk_do(d, DISK_WRITE_ZEROES, 0, 4 * MIB + 512, NULL, 512), 0);
    assert_int_equal(disk_do(d, DISK_DISCARD, 0, 2 * MIB, NULL, MIB), 0);
    assert_int_equal(disk_read(d, 0, back, 8 * MIB), 0);
    assert_int_equal(back[0], 0);
    assert_memory_equal(back + 4096, data, 8192);
    for (unsigned i = MIB; i < 2 * MIB; i++)
        assert_int_equal(back[i], 0);
    assert_memory_equal(back + 3 * MIB, data + 3 * MIB - 512, MIB);
    free(data);
    free(back);
}

/* Pieces of odd lengths, all at once. */
static void many_pieces(struct disk *d)
{
    enum { N = 40 };
    static struct disk_request r[N];
    static struct iovec iov[N][7];
    static uint8_t data[N][65536];
    static bool done[N];

    for (unsigned pass = 0; pass < 2; pass++) {
        for (unsigned i = 0; i < N; i++) {
            static const size_t lengths[7] = {1, 511, 4096, 3, 20000, 10000, 65536 - 34611};
            uint8_t *at = data[i];
            for (unsigned k = 0; k < 7; at += lengths[k++])
                iov[i][k] = (struct iovec){at, lengths[k]};
            if (pass == 0)
                disk_fill(data[i], sizeof data[i], i + 1);
            else
                memset(data[i], 0, sizeof data[i]);
            done[i] = false;
            r[i] = (struct disk_request){.op = pass ? DISK_READ : DISK_WRITE,
                                         .offset = (uint64_t)i * 65536,
                                         .length = 65536,
                                         .iov = iov[i],
                                         .n_iov = 7,
                                         .done = disk_is_done,
                                         .opaque = &done[i]};
            disk_submit(d, &r[i]);
        }
        disk_kick(d);
        disk_drain(d);
        for (unsigned i = 0; i < N; i++)
            assert_true(done[i] && !r[i].result);
    }
    uint8_t want[65536];
    for (unsigned i = 0; i < N; i++) {
        disk_fill(want, sizeof want, i + 1);
        assert_memory_equal(want, data[i], sizeof want);
    }
}

static void other_formats(void **state)
{
    static const char *const formats[][2] = {{"a.qcow2", "qcow2"}, {"a.vmdk", "vmdk"}, {"a.vhdx", "vhdx"},
                                             {"a.vdi", "vdi"},     {"a.qed", "qed"},   {"a.vhd", "vpc"}};

    if (!have("qemu-nbd"))
        skip();
    for (unsigned i = 0; i < sizeof formats / sizeof *formats; i++) {
        make_image(formats[i][0], formats[i][1], 64);
        struct disk *d = disk_must_open(&fx, disk_path(&fx, formats[i][0]));
        assert_true(d->size >= 64 * MIB);
        exercise(d);
        many_pieces(d);
        disk_close(d);
        assert_int_equal(server(), 0); /* it has ended */
        uint8_t block[512], want[512];
        d = disk_must_open(&fx, disk_path(&fx, formats[i][0]));
        assert_int_equal(disk_read(d, 0, block, 512), 0);
        disk_fill(want, 512, 1);
        assert_memory_equal(block, want, 512);
        disk_close(d);
    }
}

static void read_only_and_locks(void **state)
{
    char words[200];
    uint8_t block[512] = {0};
    struct disk *other;

    if (!have("qemu-nbd"))
        skip();
    make_image("a.qcow2", "qcow2", 16);
    snprintf(words, sizeof words, "%s,ro", disk_path(&fx, "a.qcow2"));
    struct disk *d = disk_must_open(&fx, words);
    assert_int_equal(disk_write(d, 0, block, 512), -EROFS);
    assert_int_equal(disk_read(d, 0, block, 512), 0);
    disk_close(d);
    d = disk_must_open(&fx, disk_path(&fx, "a.qcow2"));
    assert_int_equal(disk_open(&other, disk_path(&fx, "a.qcow2"), fx.loop, fx.error, sizeof fx.error), -EIO);
    assert_non_null(strstr(fx.error, "qemu-nbd cannot open disk"));
    disk_close(d);
}

static void a_backing_file_lies_beside_its_disk(void **state)
{
    char command[400];
    struct disk *d = NULL;

    (void)d;
    if (!have("qemu-nbd"))
        skip();
    make_image("below.qcow2", "qcow2", 16);
    snprintf(command, sizeof command,
             "cd %s && qemu-img create -q -f qcow2 -b below.qcow2 -F qcow2 above.qcow2 && mkdir -p elsewhere && "
             "qemu-img create -q -f qcow2 -b ../below.qcow2 -F qcow2 elsewhere/far.qcow2",
             fx.directory);
    assert_int_equal(system(command), 0);
    disk_close(disk_must_open(&fx, disk_path(&fx, "above.qcow2")));
#ifndef __SANITIZE_ADDRESS__ /* such builds confine less */
    assert_int_equal(disk_open(&d, disk_path(&fx, "elsewhere/far.qcow2"), fx.loop, fx.error, sizeof fx.error), -EIO);
#endif
    snprintf(command, sizeof command, "rm -r %s/elsewhere", fx.directory);
    assert_int_equal(system(command), 0);
}

static void what_cannot_be_opened(void **state)
{
    struct disk *d;
    char *path = strdup(getenv("PATH"));

    assert_int_equal(disk_open(&d, "/nonexistent.qcow2", fx.loop, fx.error, sizeof fx.error), -ENOENT);
    disk_file(&fx, "b.qcow2", 4096);
    setenv("PATH", "/nonexistent", 1);
    assert_int_equal(disk_open(&d, disk_path(&fx, "b.qcow2"), fx.loop, fx.error, sizeof fx.error), -ENOENT);
    assert_non_null(strstr(fx.error, "the package qemu-utils"));
    setenv("PATH", path, 1);
    free(path);
    if (have("qemu-nbd")) {
        assert_int_equal(disk_open(&d, disk_path(&fx, "b.qcow2"), fx.loop, fx.error, sizeof fx.error), -EIO);
        assert_non_null(strstr(fx.error, "cannot open disk"));
    }
    assert_int_equal(disk_open(&d, "nbd+unix:///?socket=/nonexistent", fx.loop, fx.error, sizeof fx.error), -EIO);
    assert_non_null(strstr(fx.error, "cannot connect to NBD disk"));
    assert_int_equal(disk_open(&d, "nbd://127.0.0.1:1/x", fx.loop, fx.error, sizeof fx.error), -EIO);
    assert_int_equal(server(), 0);
}

static void stop_loop(void *opaque)
{
    loop_stop(fx.loop);
}

/* The server is killed with requests at work: they and all later ones are errors; nothing waits for ever. */
static void a_server_that_dies(void **state)
{
    enum { N = 64 };
    static struct disk_request r[N];
    static struct iovec iov[N];
    static bool done[N];
    uint8_t *data = calloc(1, MIB);
    unsigned errors = 0;

    if (!have("qemu-nbd"))
        skip();
    make_image("a.qcow2", "qcow2", 128);
    struct disk *d = disk_must_open(&fx, disk_path(&fx, "a.qcow2"));
    pid_t pid = server();
    assert_true(pid > 0);
    kill(pid, SIGSTOP);
    for (unsigned i = 0; i < N; i++) {
        iov[i] = (struct iovec){data, MIB};
        done[i] = false;
        r[i] = (struct disk_request){.op = i % 2 ? DISK_READ : DISK_WRITE,
                                     .offset = (uint64_t)i * MIB,
                                     .length = MIB,
                                     .iov = &iov[i],
                                     .n_iov = 1,
                                     .done = disk_is_done,
                                     .opaque = &done[i]};
        disk_submit(d, &r[i]);
    }
    disk_kick(d);
    kill(pid, SIGKILL);
    struct loop_timer stop;
    loop_timer_init(&stop, stop_loop, NULL);
    loop_timer_set(fx.loop, &stop, clock_ns() + 300000000ull);
    loop_run(fx.loop); /* the loop hears of it */
    for (unsigned i = 0; i < N; i++) {
        assert_true(done[i]);
        errors += r[i].result != 0;
    }
    assert_true(errors > N / 2);
    assert_int_equal(disk_read(d, 0, data, 512), -EIO);
    assert_int_equal(disk_write(d, 0, data, 512), -EIO);
    assert_int_equal(disk_do(d, DISK_FLUSH, 0, 0, NULL, 0), -EIO);
    assert_int_equal(disk_do(d, DISK_DISCARD, 0, 0, NULL, 512), -EIO);
    disk_close(d);
    free(data);
}

/* A server of somebody else's, by a socket's path and by a URI. */
static void by_unix_socket(void **state)
{
    char command[400], words[300];

    if (!have("qemu-nbd"))
        skip();
    disk_file(&fx, "plain.img", 16 * MIB);
    snprintf(command, sizeof command,
             "qemu-nbd -f raw -t -e 4 -x disk --fork --pid-file=%s/pid -k %s/socket %s/plain.img", fx.directory,
             fx.directory, fx.directory);
    assert_int_equal(system(command), 0);
    snprintf(words, sizeof words, "nbd+unix:///disk?socket=%s/socket", fx.directory);
    struct disk *d = disk_must_open(&fx, words);
    assert_int_equal(d->size, 16 * MIB);
    exercise(d);
    many_pieces(d);
    disk_close(d);
    snprintf(command, sizeof command, "kill $(cat %s/pid)", fx.directory);
    assert_int_equal(system(command), 0);
    snprintf(command, sizeof command, "qemu-nbd -f raw -t -r --fork --pid-file=%s/pid2 -k %s/socket2 %s/plain.img",
             fx.directory, fx.directory, fx.directory);
    assert_int_equal(system(command), 0);
    struct disk *refused;
    snprintf(words, sizeof words, "%s/socket2,format=nbd", fx.directory);
    assert_int_equal(disk_open(&refused, words, fx.loop, fx.error, sizeof fx.error), -EROFS);
    snprintf(words, sizeof words, "%s/socket2,format=nbd,ro", fx.directory);
    d = disk_must_open(&fx, words);
    uint8_t block[512];
    assert_int_equal(disk_read(d, 16 * MIB - 512, block, 512), 0);
    disk_close(d);
    snprintf(command, sizeof command, "kill $(cat %s/pid2)", fx.directory);
    assert_int_equal(system(command), 0);
}

#define T(name) cmocka_unit_test_setup_teardown(name, setup, disk_teardown)
int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        T(other_formats),         T(read_only_and_locks), T(a_backing_file_lies_beside_its_disk),
        T(what_cannot_be_opened), T(a_server_that_dies),  T(by_unix_socket),
    };

    if (argc > 1 && strcmp(argv[1], "helper-disk") == 0) /* as guise itself does */
        return disk_helper_main(argc - 1, argv + 1);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
