/* `guise run`: the options of a virtual machine, handed to vm/. */
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/error.h"
#include "base/log.h"
#include "cli/cli.h"
#include "engine/engine.h"
#include "vm/vm.h"

struct run_arguments {
    struct vm_config config;
};

#define AT(field) offsetof(struct run_arguments, field)
/* clang-format off */
const struct option_spec run_options[] = {
    {.name = "timeout", .letter = 't', .kind = OPTION_SECONDS, .offset = AT(config.timeout_ms), .value = "SECONDS",
     .help = "end the run after this time, with status 6"},
    {.more = vm_options, .offset = AT(config)},
};
/* clang-format on */

/* The software engine runs one virtual CPU so far.  Returns STATUS_OK, or another after saying why. */
static int check_cpus(const struct command *self, const struct vm_config *c)
{
    char why[ERROR_SIZE];

    if (c->n_cpus == 1 || strcmp(c->engine, "kvm") == 0)
        return STATUS_OK;
    if (strcmp(c->engine, "soft") == 0)
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
    struct run_arguments a = {
        .config = {.memory_bytes = VM_DEFAULT_MEMORY, .n_cpus = 1, .engine = "auto", .serial = "stdio"}};
    struct vm_result result = {0};
    int status;

    if (cli_parse(self, argc, argv, &a, 0, &status) < 0)
        return status;
    if (!a.config.kernel_path)
        return cli_usage_error(self, "a kernel must be given: --kernel FILE");
    if (a.config.log_path && !a.config.log_items)
        return cli_usage_error(self, "--log-file without --log ITEM,... would stay empty");
    status = check_cpus(self, &a.config);
    if (status != STATUS_OK)
        return status;
    if (strcmp(a.config.serial, "stdio") == 0 && isatty(STDIN_FILENO))
        log_say("every key goes to the guest; Ctrl-] then q leaves");
    vm_run(&a.config, &result);
    if (result.reason[0])
        log_say("%s", result.reason);
    return status_of(&result);
}
