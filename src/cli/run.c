/* `guise run`: a virtual machine in this terminal, whose options are handed to vm/. */
#include "cli/run.h"

#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/error.h"
#include "base/log.h"
#include "engine/engine.h"
#include "vm/vm.h"

#define AT(field) offsetof(struct run_arguments, field)
/* clang-format off */
const struct option_spec run_options[] = {
    {.name = "rm", .kind = OPTION_FLAG, .offset = AT(remove),
     .help = "remove it when it ends"},
    {.name = "warm", .kind = OPTION_FLAG, .offset = AT(warm),
     .help = "begin with a copy of one that was booted before, and remove it when it ends"},
    {.name = "detach", .kind = OPTION_FLAG, .offset = AT(detach),
     .help = "leave it in the background and print its name"},
    {.name = "env", .letter = 'e', .kind = OPTION_LIST, .offset = AT(environment), .value = "NAME[=VALUE]",
     .help = "set an environment variable of the command; without a value to what it is here"},
    {.name = "workdir", .letter = 'w', .kind = OPTION_STRING, .offset = AT(directory), .value = "DIRECTORY",
     .help = "where the command runs (the user's home unless told)"},
    {.name = "user", .letter = 'u', .kind = OPTION_STRING, .offset = AT(user), .value = "USER[:GROUP]",
     .help = "as whom the command runs (root unless told)"},
    {.name = "cwd", .kind = OPTION_FLAG, .offset = AT(current_directory),
     .help = "share this directory at the same path, and run the command there"},
    {.name = "timeout", .letter = 't', .kind = OPTION_SECONDS, .offset = AT(settings.config.timeout_ms),
     .value = "SECONDS", .help = "end the run after this time, with status 6"},
    VERBOSITY_OPTIONS(struct run_arguments),
    CONFIG_OPTION(struct run_arguments, config_file),
    {.more = vm_settings_options, .offset = AT(settings)},
};
/* clang-format on */

bool run_is_ours(const struct command *command)
{
    return command->options == run_options || command->options == launch_options || command->options == create_options;
}

int run_parse(const struct command *self, int argc, char **argv, struct run_arguments *a, int most, char ***command,
              int *status)
{
    int words = 1;

    while (words < argc && strcmp(argv[words], "--") != 0)
        words++;
    *command = words + 1 < argc ? argv + words + 1 : NULL;
    *a = (struct run_arguments){.wait = "agent"};
    settings_init(&a->settings);
    return config_parse(self, words, argv, a, &a->config_file, &a->config, most, status);
}

void run_free(struct run_arguments *a)
{
    config_free(&a->config);
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

/* A kernel of one's own, in this process, with the serial console here. */
static int run_kernel(const struct command *self, struct vm_config *config)
{
    struct vm_result result = {0};

    if (!config->kernel_path)
        return cli_usage_error(self,
                               "an image must be given, or a kernel: guise run IMAGE, or guise run --kernel FILE");
    if (config->log_path && !config->log_items)
        return cli_usage_error(self, "--log-file without --log ITEM,... would stay empty");
    if (!config->serial)
        config->serial = "stdio";
    if (strcmp(config->serial, "stdio") == 0 && isatty(STDIN_FILENO))
        log_say("every key goes to the guest; Ctrl-] then q leaves");
    vm_run(config, &result);
    if (result.reason[0])
        log_say("%s", result.reason);
    return status_of(&result);
}

/* Options that make no sense without what an image brings. */
static int check_kernel_only(const struct command *self, const struct run_arguments *a, char **command)
{
    const struct {
        const char *name;
        bool given;
    } options[] = {
        {"--rm", a->remove},
        {"--detach", a->detach},
        {"--env", a->environment.n > 0},
        {"--workdir", a->directory},
        {"--user", a->user},
        {"--cwd", a->current_directory},
        {"--warm", a->warm},
        {"a command", command != NULL},
        {"--name", a->settings.name},
        {"--hostname", a->settings.hostname},
    };
    char err[ERROR_SIZE];

    for (size_t i = 0; i < sizeof options / sizeof *options; i++) {
        if (options[i].given) {
            error_set(err, sizeof err, 0, "%s needs an image: guise run IMAGE", options[i].name);
            return cli_usage_error(self, err);
        }
    }
    return STATUS_OK;
}

int run_take_image(const struct command *self, struct run_arguments *a, int operands, char **argv)
{
    char err[ERROR_SIZE];

    if (operands > 1) {
        error_set(err, sizeof err, 0, "'%s' is one word too many: a command goes behind --", argv[2]);
        return cli_usage_error(self, err);
    }
    if (operands == 1)
        a->settings.image = argv[1];
    return STATUS_OK;
}

int run_main(const struct command *self, int argc, char **argv)
{
    struct run_arguments a;
    char **command;
    int status, operands = run_parse(self, argc, argv, &a, 2, &command, &status);

    if (operands < 0)
        return status;
    status = run_take_image(self, &a, operands, argv);
    if (status == STATUS_OK && (a.settings.image || a.settings.root)) {
        status = run_image(self, &a, command);
    } else if (status == STATUS_OK) {
        status = check_kernel_only(self, &a, command);
        if (status == STATUS_OK)
            status = run_kernel(self, &a.settings.config);
    }
    run_free(&a);
    return status;
}
