/* The life of a VM on an engine that only pretends: its "guest" is a C function a test chooses. */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <sys/stat.h>

#include "boot_fixture.h"
#include "bus/bus.h"
#include "devices/acpi_pm.h"
#include "engine/engine.h"
#include "host/loop.h"
#include "vm/vm.h"

struct engine {
    struct engine_config config;
    struct cpu cpus[64];
};

/* What vCPU i does when run; `runs` counts over the whole VM. */
static enum engine_exit (*guest)(struct engine *e, unsigned i, char *error);
static _Atomic unsigned runs, created;
static int create_error;

static bool toy_probe(char *why, size_t size)
{
    return true;
}

static int toy_create(struct engine **out, const struct engine_config *config)
{
    if (create_error)
        return create_error;
    struct engine *e = calloc(1, sizeof *e);
    e->config = *config;
    for (unsigned i = 0; i < config->n_cpus; i++) {
        e->cpus[i].index = i;
        e->cpus[i].n_cpus = config->n_cpus;
        e->cpus[i].memory = config->memory;
        e->cpus[i].bus = config->bus;
    }
    created++;
    *out = e;
    return 0;
}

static void toy_destroy(struct engine *e)
{
    created--;
    free(e);
}

static struct cpu *toy_vcpu(struct engine *e, unsigned i)
{
    return &e->cpus[i];
}
static void toy_kick(struct engine *e, unsigned i) {}
static void toy_stats(struct engine *e, FILE *out) {}

static enum engine_exit toy_run(struct engine *e, unsigned i, char *error)
{
    runs++;
    if (atomic_fetch_and(&e->cpus[i].request, 0) & REQ_EXIT)
        return ENGINE_EXIT_REQUEST;
    return e->cpus[i].wait_sipi ? ENGINE_EXIT_HALT : guest(e, i, error);
}

static const struct engine_ops toy_engine = {.name = "toy",
                                             .probe = toy_probe,
                                             .create = toy_create,
                                             .destroy = toy_destroy,
                                             .vcpu = toy_vcpu,
                                             .run = toy_run,
                                             .kick = toy_kick,
                                             .stats = toy_stats};

static uint8_t image[BZIMAGE_SIZE];
static char kernel_path[] = "/tmp/guise-kernel-XXXXXX";
static struct vm_result result;

static int make_kernel(void **state)
{
    make_bzimage(image, "", 0);
    int fd = mkstemp(kernel_path);
    return fd < 0 || write(fd, image, sizeof image) != sizeof image || close(fd);
}

static int remove_kernel(void **state)
{
    return unlink(kernel_path);
}

static struct vm_config config_of(void)
{
    return (struct vm_config){.sandbox = "off", /* this process is to live on */
                              .kernel_path = kernel_path,
                              .memory_bytes = 64 << 20,
                              .n_cpus = 3,
                              .engine_ops = &toy_engine,
                              .serial = "null",
                              .timeout_ms = 20000};
}

static enum vm_end run(const struct vm_config *config, const char *part)
{
    enum vm_end end = vm_run(config, &result);
    assert_int_equal(end, result.end);
    assert_non_null(strstr(result.reason, part));
    assert_int_equal(created, 0);
    return end;
}

static enum engine_exit powers_off(struct engine *e, unsigned i, char *error)
{
    bus_write(e->config.bus, BUS_PORT, ACPI_PM1A_CNT, ACPI_S5_TYPE << 10 | 1 << 13, 2);
    return ENGINE_EXIT_HALT;
}

static enum engine_exit panics(struct engine *e, unsigned i, char *error)
{
    bus_write(e->config.bus, BUS_PORT, 0x505, 1, 1);
    return ENGINE_EXIT_HALT;
}

static enum engine_exit shuts_down(struct engine *e, unsigned i, char *error)
{
    return ENGINE_EXIT_SHUTDOWN;
}
static enum engine_exit sleeps(struct engine *e, unsigned i, char *error)
{
    return ENGINE_EXIT_HALT;
}

static enum engine_exit breaks(struct engine *e, unsigned i, char *error)
{
    snprintf(error, 256, "a spring came loose");
    return ENGINE_EXIT_ERROR;
}

/* Resets until it has been started three times. */
static unsigned starts;
static enum engine_exit resets(struct engine *e, unsigned i, char *error)
{
    if (e->cpus[0].rip != BZIMAGE_LOAD + 0x200)
        return ENGINE_EXIT_HALT; /* has asked, and waits for it to happen */
    e->cpus[0].rip = 0;
    if (++starts == 3)
        return powers_off(e, i, error);
    bus_write(e->config.bus, BUS_PORT, 0xcf9, 6, 1);
    return ENGINE_EXIT_HALT;
}

static void ends(void **state)
{
    struct vm_config c = config_of();
    guest = powers_off;
    assert_int_equal(run(&c, "powered off"), VM_POWEROFF);
    guest = panics;
    assert_int_equal(run(&c, "panicked"), VM_CRASHED);
    guest = shuts_down;
    assert_int_equal(run(&c, "triple fault on CPU 0"), VM_CRASHED);
    guest = breaks;
    assert_int_equal(run(&c, "a spring came loose"), VM_FAILED);
}

static void resets_in_place(void **state)
{
    struct vm_config c = config_of();
    guest = resets;
    starts = 0;
    assert_int_equal(run(&c, "powered off"), VM_POWEROFF);
    assert_int_equal(starts, 3);
    c.no_reboot = true;
    starts = 0;
    assert_int_equal(run(&c, "reset"), VM_RESET);
    assert_int_equal(starts, 1);
}

static void times_out_and_sleeps_meanwhile(void **state)
{
    struct vm_config c = config_of();
    c.timeout_ms = 200;
    guest = sleeps;
    runs = 0;
    uint64_t before = clock_ns();
    assert_int_equal(run(&c, "0.2 s"), VM_TIMEOUT);
    assert_in_range(clock_ns() - before, 200000000, 5000000000);
    assert_in_range(runs, 3, 100); /* no spinning */
}

static enum engine_exit raises(struct engine *e, unsigned i, char *error)
{
    kill(getpid(), SIGTERM);
    return ENGINE_EXIT_HALT;
}

static void a_signal_ends_it(void **state)
{
    struct vm_config c = config_of();
    guest = raises;
    assert_int_equal(run(&c, "signal"), VM_SIGNAL);
    assert_int_equal(result.signal, SIGTERM);
}

/* --- a console whose reader stops reading -------------------------------------------------------------- */

enum { SAID = 3 << 20, THRE = 0x20 };
static struct bus *_Atomic talking; /* the guest's, while it talks */
static _Atomic bool endless;

static enum engine_exit talks(struct engine *e, unsigned i, char *error)
{
    talking = e->config.bus;
    for (size_t n = 0; n < SAID || endless; n++) {
        bus_write(e->config.bus, BUS_PORT, 0x3f8, 'a' + n % 23, 1);
        if (atomic_load(&e->cpus[i].request) & REQ_EXIT)
            return ENGINE_EXIT_REQUEST;
    }
    return powers_off(e, i, error);
}

/* Is the machine free for others, and its transmitter full?  Waits for it. */
static bool is_full(void)
{
    for (unsigned tries = 0; tries < 2000; tries++, usleep(10000)) {
        struct timespec until;
        clock_gettime(CLOCK_REALTIME, &until);
        until.tv_sec += 10;
        if (!talking)
            continue;
        if (pthread_mutex_timedlock(&talking->lock, &until))
            return false;
        pthread_mutex_unlock(&talking->lock);
        if (!(bus_read(talking, BUS_PORT, 0x3fd, 1) & THRE))
            return true;
    }
    return false;
}

struct listener {
    int fd;
    int signal; /* is sent when the guest is held */
    bool was_full, in_order;
    size_t heard;
};

static void *listen_late(void *opaque)
{
    struct listener *l = opaque;
    char piece[4096];
    sigset_t set;
    ssize_t n;

    sigemptyset(&set); /* the signal is the machine's */
    sigaddset(&set, SIGTERM);
    pthread_sigmask(SIG_BLOCK, &set, NULL);
    l->was_full = is_full();
    if (l->signal) {
        kill(getpid(), l->signal);
        usleep(100000);
    }
    l->in_order = true;
    while ((n = read(l->fd, piece, sizeof piece)) > 0)
        for (ssize_t i = 0; i < n; i++, l->heard++)
            l->in_order &= piece[i] == (char)('a' + l->heard % 23);
    return NULL;
}

static enum vm_end talk(struct listener *l, const char *reason)
{
    char directory[] = "/tmp/guise-talk-XXXXXX", path[64], spec[80];
    struct vm_config c = config_of();
    pthread_t thread;

    assert_non_null(mkdtemp(directory));
    snprintf(path, sizeof path, "%s/fifo", directory);
    snprintf(spec, sizeof spec, "file:%s", path);
    assert_int_equal(mkfifo(path, 0600), 0);
    l->fd = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
    fcntl(l->fd, F_SETFL, 0);
    c.serial = spec;
    c.timeout_ms = 60000;
    guest = talks;
    talking = NULL;
    assert_int_equal(pthread_create(&thread, NULL, listen_late, l), 0);
    enum vm_end end = run(&c, reason);
    pthread_join(thread, NULL);
    close(l->fd);
    unlink(path);
    rmdir(directory);
    return end;
}

static void a_reader_that_stops_holds_up_who_prints_and_nobody_else(void **state)
{
    struct listener l = {0};

    endless = false;
    assert_int_equal(talk(&l, "powered off"), VM_POWEROFF);
    assert_true(l.was_full);
    assert_true(l.in_order);
    assert_int_equal(l.heard, SAID);
}

static void a_guest_that_is_held_by_its_reader_can_be_ended(void **state)
{
    struct listener l = {.signal = SIGTERM};

    endless = true;
    assert_int_equal(talk(&l, "signal"), VM_SIGNAL);
    assert_true(l.was_full);
    assert_true(l.in_order);
    assert_in_range(l.heard, 1 << 20, 2 << 20);
}

static void set_up_fails_with_a_sentence(void **state)
{
    struct vm_config c = config_of();
    c.kernel_path = "/nonexistent";
    assert_int_equal(run(&c, "/nonexistent"), VM_FAILED);
    c = config_of();
    c.n_cpus = 65;
    assert_int_equal(run(&c, "65"), VM_FAILED);
    c.n_cpus = 0;
    assert_int_equal(run(&c, "not 0"), VM_FAILED);
    c = config_of();
    c.serial = "file:/nonexistent/file";
    assert_int_equal(run(&c, "/nonexistent/file"), VM_FAILED);
    c = config_of();
    c.log_items = ENGINE_LOG_IRQ;
    c.log_path = "/nonexistent/log";
    assert_int_equal(run(&c, "log"), VM_FAILED);
    c = config_of();
    create_error = -ENOMEM;
    assert_int_equal(run(&c, "toy engine"), VM_FAILED);
    create_error = 0;
}

static void device_accesses_are_logged(void **state)
{
    char path[] = "/tmp/guise-log-XXXXXX", text[4096] = "";
    struct vm_config c = config_of();
    close(mkstemp(path));
    c.log_items = ENGINE_LOG_DEVICE;
    c.log_path = path;
    guest = powers_off;
    assert_int_equal(run(&c, ""), VM_POWEROFF);
    FILE *f = fopen(path, "r");
    assert_true(fread(text, 1, sizeof text - 1, f) > 0);
    fclose(f);
    unlink(path);
    assert_non_null(strstr(text, "acpi-pm write +0x4 size 2: 0x3400"));
}

static void every_vcpu_count(void **state)
{
    struct vm_config c = config_of();
    guest = powers_off;
    for (c.n_cpus = 1; c.n_cpus <= 64; c.n_cpus += 9)
        assert_int_equal(run(&c, ""), VM_POWEROFF);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(ends),
        cmocka_unit_test(resets_in_place),
        cmocka_unit_test(times_out_and_sleeps_meanwhile),
        cmocka_unit_test(a_signal_ends_it),
        cmocka_unit_test(a_reader_that_stops_holds_up_who_prints_and_nobody_else),
        cmocka_unit_test(a_guest_that_is_held_by_its_reader_can_be_ended),
        cmocka_unit_test(set_up_fails_with_a_sentence),
        cmocka_unit_test(device_accesses_are_logged),
        cmocka_unit_test(every_vcpu_count),
    };
    return cmocka_run_group_tests(tests, make_kernel, remove_kernel);
}
