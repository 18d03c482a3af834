/* `guise run`: the options of a virtual machine, handed to vm/. */
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "backends/chr.h"
#include "base/error.h"
#include "base/log.h"
#include "cli/cli.h"
#include "engine/engine.h"
#include "vm/vm.h"

/* Below the least no Linux gets far enough to say so; the most is what the page walk's tests cover. */
#define LEAST_MEMORY (32ull << 20)
#define MOST_MEMORY (1ull << 40)
#define DEFAULT_MEMORY (512ull << 20)
#define MOST_CPUS 64 /* vm/ has as many threads */

struct run_arguments {
    const char *kernel, *append, *serial, *log_file;
    uint64_t memory, cpus, timeout_ms;
    unsigned engine, log_items;
    struct option_list initrds;
    bool no_reboot, stats;
};

enum { ENGINE_AUTO, ENGINE_SOFT, ENGINE_KVM };

static const char *const engine_names[] = {[ENGINE_AUTO] = "auto", [ENGINE_SOFT] = "soft", [ENGINE_KVM] = "kvm"};
static const struct option_word engine_words[] = {
    {"auto", ENGINE_AUTO},
    {"soft", ENGINE_SOFT},
    {"kvm", ENGINE_KVM},
    {0},
};
static const struct option_word log_words[] = {
    {"translate", ENGINE_LOG_TRANSLATE},
    {"exc", ENGINE_LOG_EXC},
    {"irq", ENGINE_LOG_IRQ},
    {"device", ENGINE_LOG_DEVICE},
    {0},
};

#define AT(field) offsetof(struct run_arguments, field)
/* clang-format off */
const struct option_spec run_options[] = {
    {.name = "kernel", .letter = 'k', .kind = OPTION_FILE, .offset = AT(kernel), .value = "FILE",
     .help = "the kernel: a bzImage or a PVH ELF file (required)"},
    {.name = "initrd", .letter = 'i', .kind = OPTION_LIST, .offset = AT(initrds), .value = "FILE",
     .help = "the initial file system; several are unpacked one over the other"},
    {.name = "append", .letter = 'a', .kind = OPTION_STRING, .offset = AT(append), .value = "STRING",
     .help = "the kernel command line, as in console=ttyS0"},
    {.name = "memory", .letter = 'm', .kind = OPTION_SIZE, .offset = AT(memory), .value = "SIZE",
     .help = "the guest's memory, with a unit (512M unless told)", .min = LEAST_MEMORY, .max = MOST_MEMORY,
     .examples = "256M 512M 1G 2G 4G"},
    {.name = "cpus", .letter = 'c', .kind = OPTION_NUMBER, .offset = AT(cpus), .value = "N",
     .help = "virtual CPUs (1 unless told)", .min = 1, .max = MOST_CPUS},
    {.name = "engine", .letter = 'e', .kind = OPTION_CHOICE, .offset = AT(engine), .value = "NAME",
     .help = "what executes the guest (auto unless told)", .words = engine_words},
    {.name = "no-reboot", .kind = OPTION_FLAG, .offset = AT(no_reboot),
     .help = "a reset ends the run"},
    {.name = "timeout", .letter = 't', .kind = OPTION_SECONDS, .offset = AT(timeout_ms), .value = "SECONDS",
     .help = "end the run after this time, with status 6"},
    {.name = "serial", .letter = 's', .kind = OPTION_STRING, .offset = AT(serial), .value = "WHERE",
     .help = "stdio (unless told), null, file:PATH or socket:PATH", .examples = "stdio null file: socket:"},
    {.name = "stats", .kind = OPTION_FLAG, .offset = AT(stats),
     .help = "print at the end where time went"},
    {.name = "log", .letter = 'l', .kind = OPTION_SET, .offset = AT(log_items), .value = "ITEM,...",
     .help = "log these, on stderr", .words = log_words},
    {.name = "log-file", .kind = OPTION_FILE, .offset = AT(log_file), .value = "FILE",
     .help = "log there instead"},
    {0},
};
/* clang-format on */

/* The software engine runs one virtual CPU so far.  Returns STATUS_OK, or another after saying why. */
static int check_cpus(const struct command *self, const struct run_arguments *a)
{
    char why[ERROR_SIZE];

    if (a->cpus == 1 || a->engine == ENGINE_KVM)
        return STATUS_OK;
    if (a->engine == ENGINE_SOFT)
        return cli_usage_error(self, "--cpus: the software engine runs one virtual CPU, no more yet");
    if (engine_kvm.probe(why, sizeof(why)))
        return STATUS_OK;
    log_say("more than one virtual CPU needs the KVM engine, which does not work here: %s", why);
    return STATUS_UNAVAILABLE;
}

/* Ends the process by the signal that asked for it, so that a shell sees what happened. */
static int end_by(int number)
{
    signal(number, SIG_DFL);
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, number);
    sigprocmask(SIG_UNBLOCK, &set, NULL);
    raise(number);
    return 128 + number;
}

static int status_of(const struct vm_result *result)
{
    static const int statuses[] = {
        [VM_POWEROFF] = STATUS_OK,
        [VM_RESET] = STATUS_OK,
        [VM_USER_LEFT] = STATUS_OK,
        [VM_CRASHED] = STATUS_FAILED,
        [VM_FAILED] = STATUS_FAILED,
        [VM_TIMEOUT] = STATUS_TIMEOUT,
        [VM_UNAVAILABLE] = STATUS_UNAVAILABLE,
    };

    return result->end == VM_SIGNAL ? end_by(result->signal) : statuses[result->end];
}

int run_main(const struct command *self, int argc, char **argv)
{
    struct run_arguments a = {.memory = DEFAULT_MEMORY, .cpus = 1, .serial = "stdio"};
    struct vm_result result = {0};
    char err[ERROR_SIZE];
    int status;

    if (cli_parse(self, argc, argv, &a, 0, &status) < 0)
        return status;
    if (!a.kernel)
        return cli_usage_error(self, "a kernel must be given: --kernel FILE");
    if (chr_check(a.serial, err, sizeof(err)))
        return cli_usage_error(self, err);
    if (a.log_file && !a.log_items)
        return cli_usage_error(self, "--log-file without --log ITEM,... would stay empty");
    status = check_cpus(self, &a);
    if (status != STATUS_OK)
        return status;
    const struct vm_config config = {
        .kernel_path = a.kernel,
        .initrd_paths = a.initrds.value,
        .n_initrds = a.initrds.n,
        .append = a.append,
        .memory_bytes = a.memory,
        .n_cpus = (unsigned)a.cpus,
        .engine = engine_names[a.engine],
        .serial = a.serial,
        .no_reboot = a.no_reboot,
        .timeout_ms = a.timeout_ms,
        .stats = a.stats,
        .log_items = a.log_items,
        .log_path = a.log_file,
    };
    if (strcmp(a.serial, "stdio") == 0 && isatty(STDIN_FILENO))
        log_say("every key goes to the guest; Ctrl-] then q leaves");
    vm_run(&config, &result);
    if (result.reason[0])
        log_say("%s", result.reason);
    return status_of(&result);
}
