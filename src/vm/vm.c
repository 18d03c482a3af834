/*
 * The life of a VM: set up in order, run until something ends it, take down in reverse.
 *
 *   vm_run   setup -> [ threads start -> event loop -> threads stop -> reset? ]* -> statistics -> teardown
 */
#include "vm/vm.h"

#include <errno.h>
#include <malloc.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "base/error.h"
#include "base/log.h"
#include "host/keeper.h"
#include "host/sandbox.h"
#include "host/thread.h"
#include "memory/memory.h"
#include "vm/attach.h"
#include "vm/confine.h"
#include "vm/life.h"
#include "vm/merge.h"
#include "vm/migration.h"
#include "vm/snapshot.h"
#include "vm/vm_int.h"

/* --- how it ends: the first reason is kept ------------------------------------------------------------ */

static void record(struct vm *vm, enum vm_end end, const char *format, va_list args)
{
    if (vm->ended)
        return;
    vm->ended = true;
    vm->result->end = end;
    vsnprintf(vm->result->reason, sizeof vm->result->reason, format, args);
}

void vm_end(struct vm *vm, enum vm_end end, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    record(vm, end, format, args);
    va_end(args);
    if (vm->loop)
        loop_stop(vm->loop);
}

static void machine_event(void *opaque, int event)
{
    struct vm *vm = opaque;

    if (event == MACHINE_RESET && !vm->config->no_reboot) {
        life_reset(vm);
        vm->reset = true;
        loop_stop(vm->loop);
    } else if (event == MACHINE_RESET) {
        vm_end(vm, VM_RESET, "the guest reset the machine");
    } else if (event == MACHINE_POWEROFF) {
        vm_end(vm, VM_POWEROFF, "the guest powered off");
    } else {
        vm_end(vm, VM_CRASHED, "the guest's kernel panicked (reported through pvpanic)");
    }
}

static void timed_out(void *opaque)
{
    struct vm *vm = opaque;
    vm_end(vm, VM_TIMEOUT, "the guest still ran after %g s", (double)vm->timeout_ms / 1000);
}

static void signalled(void *opaque, uint32_t events)
{
    struct vm *vm = opaque;
    struct signalfd_siginfo info;

    if (read(vm->signal_fd, &info, sizeof info) != sizeof info)
        return;
    vm->result->signal = (int)info.ssi_signo;
    vm_end(vm, VM_SIGNAL, "ended by signal %u (%s)", info.ssi_signo, strsignal((int)info.ssi_signo));
}

/* --- console --------------------------------------------------------------------------------------------- */

static size_t console_output(void *opaque, const void *data, size_t len)
{
    struct vm *vm = opaque;
    size_t taken = vm->chr ? chr_try_write(vm->chr, data, len) : len;

    if (taken)
        life_console_output(vm, data, taken);
    return taken;
}

/* A vCPU has written more than the console's reader takes. */
static bool console_wait(void *opaque)
{
    struct vm *vm = opaque;

    if (!atomic_load(&vm->stop))
        pthread_cond_wait(&vm->console_room, &vm->bus->lock);
    return !atomic_load(&vm->stop);
}

static void console_room(void *opaque)
{
    struct vm *vm = opaque;

    machine_console_flush(vm->machine);
    pthread_cond_broadcast(&vm->console_room);
}

/* The guest's last words wait for a slow reader as long as the backend does. */
static void console_close(struct vm *vm)
{
    if (!vm->chr)
        return;
    pthread_mutex_lock(&vm->bus->lock);
    if (machine_console_flush(vm->machine)) {
        chr_drain(vm->chr);
        machine_console_flush(vm->machine);
    }
    pthread_mutex_unlock(&vm->bus->lock);
    chr_close(vm->chr);
    vm->chr = NULL;
}

static size_t console_input(void *opaque, const void *data, size_t len)
{
    struct vm *vm = opaque;
    return machine_console_input(vm->machine, data, len);
}

static void console_space(void *opaque)
{
    struct vm *vm = opaque;
    chr_resume_input(vm->chr);
    life_console_space(vm);
}

/* --- set-up, in order --------------------------------------------------------------------------------------- */

/* It begins at its kernel, not where another process has left it. */
static bool vm_boots(const struct vm *vm)
{
    return !vm->config->restore && !vm->config->incoming;
}

static int setup_machine(struct vm *vm, char *error, size_t n)
{
    const struct vm_config *c = vm->config;
    const struct machine_config config = {
        .memory_bytes = c->memory_bytes,
        .n_cpus = vm_vcpus(c),
        .n_present = c->max_cpus ? (unsigned)c->n_cpus : 0,
        .kernel_path = c->kernel_path,
        .initrd_paths = c->initrds.value,
        .n_initrds = c->initrds.n,
        .append = c->append,
        .console_output = console_output,
        .console_wait = console_wait,
        .console_opaque = vm,
    };
    int err = machine_create(&vm->machine, &config, error, n);

    if (err)
        return err;
    vm->bus = machine_bus(vm->machine);
    vm->loop = machine_loop(vm->machine);
    machine_set_event(vm->machine, machine_event, vm);
    return 0;
}

static int setup_cpu(struct vm *vm, unsigned i)
{
    struct vcpu *v = &vm->vcpus[i];

    *v = (struct vcpu){.vm = vm, .index = i, .cpu = vm->ops->vcpu(vm->engine, i)};
    vm_log_attach(vm, v->cpu);
    return machine_attach_cpu(vm->machine, v->cpu, i, vm_kick, vm);
}

static int setup_engine(struct vm *vm, char *error, size_t n)
{
    const struct engine_config config = {.memory = machine_memory(vm->machine),
                                         .bus = vm->bus,
                                         .n_cpus = vm_vcpus(vm->config),
                                         .direct = vm_choose_direct(vm->config),
                                         .log_items = vm->config->log_items,
                                         .stress = vm->config->stress,
                                         .code_cache_bytes = vm->config->code_cache_bytes,
                                         .lean = vm->config->restore && vm->config->restore->copy,
                                         .tsc_khz = vm->config->restore ? vm->config->restore->tsc_khz : 0,
                                         .boots = vm_boots(vm),
                                         .timing = vm->config->stats};

    if (config.stress && strcmp(vm->ops->name, "soft")) {
        snprintf(error, n, "--stress is for the software engine: add --engine soft");
        return -EINVAL;
    }

    int err = vm->ops->create(&vm->engine, &config);

    if (err) {
        vm->engine = NULL;
        snprintf(error, n, "cannot start the %s engine: %s", vm->ops->name, strerror(-err));
        return err;
    }
    for (unsigned i = 0; i < vm_vcpus(vm->config) && !err; i++)
        err = setup_cpu(vm, i);
    if (err)
        snprintf(error, n, "cannot set up the guest's CPUs: %s", strerror(-err));
    return err;
}

/* SIGPIPE is blocked as well: a reader of our output that went away is an error of write(2). */
static int setup_signals(struct vm *vm, char *error, size_t n)
{
    sigset_t set;

    sigemptyset(&set);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGHUP);
    vm->signal_fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
    sigaddset(&set, SIGPIPE);
    pthread_sigmask(SIG_BLOCK, &set, NULL);
    int err = vm->signal_fd < 0 ? -errno : loop_fd_add(vm->loop, vm->signal_fd, EPOLLIN, signalled, vm);
    if (err)
        snprintf(error, n, "cannot watch for signals: %s", strerror(-err));
    return err;
}

void vm_limit(struct vm *vm, uint64_t ms)
{
    vm->timeout_ms = ms;
    loop_timer_set(vm->loop, &vm->timeout, clock_ns() + ms * 1000000);
}

static void arm_timeout(struct vm *vm)
{
    loop_timer_init(&vm->timeout, timed_out, vm);
    if (vm->config->timeout_ms)
        vm_limit(vm, vm->config->timeout_ms);
}

/* Devices go on at once: helpers of theirs may answer. */
static int setup_restore(struct vm *vm, char *error, size_t n)
{
    pthread_mutex_lock(&vm->bus->lock);
    int err = restore_machine(vm, vm->config->restore, error, n);
    pthread_mutex_unlock(&vm->bus->lock);
    return err;
}

/* What is set up is for all of a machine's life, and many buffers are never full: large ones are taken from the host by
 * themselves, and cost what is used of them.  When it runs, they are taken for a request, and come from the heap. */
static void heap_begins(void)
{
    mallopt(M_MMAP_THRESHOLD, 8 << 10);
    mallopt(M_TOP_PAD, 16 << 10);
}

static void heap_begun(void)
{
    malloc_trim(0);
    thread_trim_stack();
    mallopt(M_MMAP_THRESHOLD, 1 << 20);
    mallopt(M_TRIM_THRESHOLD, 2 << 20);
    mallopt(M_TOP_PAD, 128 << 10);
}

static int setup(struct vm *vm, char *error, size_t n)
{
    int err = vm_confine_prepare(vm, error, n);

    if (!err)
        err = setup_machine(vm, error, n);
    if (!err)
        err = vm_attach_devices(vm, error, n);
    if (!err)
        err = vm_log_open(vm, error, n);
    if (!err)
        err = setup_engine(vm, error, n);
    if (!err)
        err = net_cards_ready(vm, error, n);
    if (!err)
        err = setup_signals(vm, error, n);
    if (!err)
        err = chr_open(&vm->chr, vm->config->serial ? vm->config->serial : "null", vm->loop, error, n);
    if (!err && (err = chr_set_space(vm->chr, console_room, vm)))
        error_sys(error, n, err, "the console cannot be set up");
    if (!err)
        err = life_open(vm, error, n);
    if (!err && vm->config->restore)
        err = setup_restore(vm, error, n);
    if (!err && vm->config->incoming)
        err = incoming_open(vm, error, n);
    if (!err && vm_boots(vm))
        course_open(vm);
    if (!err)
        err = vm_confine(vm, error, n);
    if (!err && vm_boots(vm))
        err = machine_boot(vm->machine, error, n);
    if (!err && vm->config->restore)
        err = restore_load(vm, error, n);
    if (err)
        return err;
    if (vm_boots(vm) && vm->ops->ready)
        vm->ops->ready(vm->engine);
    course_start(vm);
    ahead_start(vm);
    heap_begun();
    pthread_mutex_lock(&vm->bus->lock);
    machine_set_console_space(vm->machine, console_space, vm);
    chr_set_input(vm->chr, console_input, vm);
    arm_timeout(vm);
    if (vm->config->incoming)
        life_incoming(vm);
    else
        life_started(vm);
    if (vm->config->restore)
        restore_started(vm, vm->config->restore);
    pthread_mutex_unlock(&vm->bus->lock);
    return 0;
}

/* --- the run --------------------------------------------------------------------------------------------------- */

static bool stop_is_due(const struct vm *vm)
{
    return snapshot_due(vm) || migration_due(vm);
}

/* Runs vCPUs, unless they are held, and loop until the run ends, the guest resets, it is to stand still for a snapshot
 * or a migration, or to be held no longer. */
static void run_once(struct vm *vm)
{
    bool held = migration_holds(vm);
    int err = held || vm->parked >= 0 ? 0 : vcpus_start(vm);
    pthread_mutex_lock(&vm->bus->lock);
    if (err)
        vm_end(vm, VM_FAILED, "cannot start the CPUs' threads: %s", strerror(-err));
    if (vm->stopped_ns)
        snapshot_taken(vm, clock_ns() - vm->stopped_ns);
    vm->stopped_ns = 0;
    while (!vm->ended && !vm->reset && !stop_is_due(vm) && held == migration_holds(vm)) {
        pthread_mutex_unlock(&vm->bus->lock);
        loop_run(vm->loop);
        pthread_mutex_lock(&vm->bus->lock);
        if (chr_user_left(vm->chr) || (vm->terminal && chr_user_left(vm->terminal)))
            vm_end(vm, VM_USER_LEFT, "left by Ctrl-] q");
    }
    if (stop_is_due(vm))
        vm->stopped_ns = clock_ns();
    pthread_mutex_unlock(&vm->bus->lock);
    vcpus_stop(vm);
}

static int boot_again(struct vm *vm, char *error, size_t n)
{
    const struct vm_config *c = vm->config;
    int err = c->write_initrd ? c->write_initrd(c->write_initrd_opaque, error, n) : 0;

    course_stop(vm);
    return err ? err : machine_reset(vm->machine, error, n);
}

static void run(struct vm *vm)
{
    char error[256];

    for (;;) {
        run_once(vm);
        pthread_mutex_lock(&vm->bus->lock);
        machine_console_flush(vm->machine);
        if (!vm->ended && vm->reset && boot_again(vm, error, sizeof error))
            vm_end(vm, VM_FAILED, "cannot start the machine again: %s", error);
        vm->reset = false;
        if (!vm->ended && snapshot_due(vm))
            snapshot_take(vm);
        if (!vm->ended && migration_due(vm))
            migration_step(vm);
        bool ended = vm->ended;
        pthread_mutex_unlock(&vm->bus->lock);
        if (ended)
            return;
    }
}

static void print_stats(struct vm *vm)
{
    double seconds = (double)(clock_ns() - vm->start_ns) / 1e9;

    fprintf(stderr, "guise: statistics of %.3f s\n", seconds);
    for (unsigned i = 0; i < vm_vcpus(vm->config); i++) {
        const struct vcpu *v = &vm->vcpus[i];
        fprintf(stderr, "cpu %u: idle %.3f s, %llu exits to the run loop\n", i, (double)v->idle_ns / 1e9,
                (unsigned long long)v->exits);
    }
    vm->ops->stats(vm->engine, stderr);
    machine_stats(vm->machine, stderr);
}

static void teardown(struct vm *vm)
{
    snapshot_abandon(vm);
    merge_abandon(vm);
    migration_abandon(vm);
    restore_stop(vm);
    ahead_stop(vm);
    console_close(vm);
    if (vm->config->stats && vm->engine && vm->start_ns)
        print_stats(vm);
    course_stop(vm);
    life_ended(vm);
    life_close(vm);
    if (vm->signal_fd >= 0)
        close(vm->signal_fd);
    if (vm->parked >= 0)
        close(vm->parked);
    if (vm->engine)
        vm->ops->destroy(vm->engine);
    vm_log_close(vm);
    machine_destroy(vm->machine);
    free(vm->incoming_ports);
    keeper_stop(vm->keeper);
    sandbox_free(vm->sandbox);
}

/* Everything but the choice of an engine. */
static void set_up_and_run(struct vm *vm)
{
    char error[512] = "";
    sigset_t signals;

    heap_begins();
    pthread_sigmask(SIG_BLOCK, NULL, &signals);
    if (setup(vm, error, sizeof error))
        snprintf(vm->result->reason, sizeof vm->result->reason, "%s", error);
    else
        run(vm);
    teardown(vm);
    pthread_sigmask(SIG_SETMASK, &signals, NULL);
}

enum vm_end vm_run(const struct vm_config *config, struct vm_result *result)
{
    struct vm vm = {.config = config,
                    .result = result,
                    .console_room = PTHREAD_COND_INITIALIZER,
                    .signal_fd = -1,
                    .parked = -1,
                    .course_fd = -1,
                    .parked_code = -1,
                    .start_ns = clock_ns()};

    *result = (struct vm_result){.end = VM_FAILED};
    if (!config->n_cpus || config->n_cpus > vm_vcpus(config) || vm_vcpus(config) > VM_MAX_CPUS) {
        snprintf(result->reason, sizeof result->reason, "a machine has 1 to %u CPUs, not %llu of %u", VM_MAX_CPUS,
                 (unsigned long long)config->n_cpus, vm_vcpus(config));
        life_ended(&vm);
        return result->end;
    }
    vm.ops = vm_choose_engine(config, result->reason, sizeof result->reason);
    if (vm.ops) {
        set_up_and_run(&vm);
    } else {
        result->end = VM_UNAVAILABLE;
        life_ended(&vm);
    }
    return result->end;
}
