/* `guise exec`, `guise shell`: commands in a VM that runs. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/error.h"
#include "base/log.h"
#include "cli/cli.h"
#include "cli/reach.h"
#include "cli/session.h"

#define OPERANDS_MAX 100000

struct exec_arguments {
    bool interactive, tty;
    struct option_list environment;
    const char *directory, *user;
};

#define AT(field) offsetof(struct exec_arguments, field)
/* clang-format off */
const struct option_spec exec_options[] = {
    {.name = "interactive", .letter = 'i', .kind = OPTION_FLAG, .offset = AT(interactive),
     .help = "the command reads this command's standard input"},
    {.name = "tty", .letter = 't', .kind = OPTION_FLAG, .offset = AT(tty),
     .help = "run it on a terminal"},
    {.name = "env", .letter = 'e', .kind = OPTION_LIST, .offset = AT(environment), .value = "NAME[=VALUE]",
     .help = "set an environment variable; without a value to what it is here"},
    {.name = "workdir", .letter = 'w', .kind = OPTION_STRING, .offset = AT(directory), .value = "DIRECTORY",
     .help = "where it runs (the user's home unless told)"},
    {.name = "user", .letter = 'u', .kind = OPTION_STRING, .offset = AT(user), .value = "USER[:GROUP]",
     .help = "as whom it runs (root unless told)"},
    {0},
};

const struct option_spec shell_options[] = {
    {.name = "env", .letter = 'e', .kind = OPTION_LIST, .offset = AT(environment), .value = "NAME[=VALUE]",
     .help = "set an environment variable; without a value to what it is here"},
    {.name = "workdir", .letter = 'w', .kind = OPTION_STRING, .offset = AT(directory), .value = "DIRECTORY",
     .help = "where it begins (the user's home unless told)"},
    {.name = "user", .letter = 'u', .kind = OPTION_STRING, .offset = AT(user), .value = "USER[:GROUP]",
     .help = "whose shell it is (root's unless told)"},
    {0},
};
/* clang-format on */

/* "NAME=VALUE", or NAME alone for what it is here; `term`: what the terminal is goes first.  The list and its strings
 * live as long as the process. */
static const char **make_environment(const struct option_list *given, bool term)
{
    const char **list = calloc(given->n + 2, sizeof(*list)), *value = getenv("TERM");
    unsigned n = 0;
    char *text;

    if (list && term && value && asprintf(&text, "TERM=%s", value) >= 0)
        list[n++] = text;
    for (unsigned i = 0; list && i < given->n; i++) {
        if (strchr(given->value[i], '='))
            list[n++] = given->value[i];
        else if ((value = getenv(given->value[i])) && asprintf(&text, "%s=%s", given->value[i], value) >= 0)
            list[n++] = text;
    }
    return list;
}

static int run(const char *vm, struct session_options *o, const struct exec_arguments *a)
{
    char err[ERROR_SIZE];
    int fd = reach_guest(vm, AGENT_PORT, err, sizeof(err)), qga = fd < 0 ? reach_qga(vm) : -1;

    if (fd < 0 && qga < 0) {
        log_say("%s", err);
        return STATUS_OURS;
    }
    o->directory = a->directory;
    o->user = a->user;
    o->environment = make_environment(&a->environment, o->tty);
    int status = fd < 0 ? session_run_qga(qga, o) : session_run(fd, o);
    close(fd < 0 ? qga : fd);
    return status;
}

int exec_main(const struct command *self, int argc, char **argv)
{
    struct exec_arguments a = {0};
    int status, operands = cli_parse(self, argc, argv, &a, OPERANDS_MAX, &status);

    if (operands < 0)
        return status;
    if (operands < 2)
        return cli_usage_error(self,
                               operands ? "a command must be given" : "the name of a virtual machine must be given");
    struct session_options o = {.argv = (const char *const *)argv + 2, .interactive = a.interactive, .tty = a.tty};
    argv[1 + operands] = NULL;
    return run(argv[1], &o, &a);
}

/* On a terminal if we are on one; else the shell reads commands from stdin, as sh does. */
int shell_main(const struct command *self, int argc, char **argv)
{
    struct exec_arguments a = {0};
    int status, operands = cli_parse(self, argc, argv, &a, 1, &status);

    if (operands < 0)
        return status;
    if (operands == 0)
        return cli_usage_error(self, "the name of a virtual machine must be given");
    static const char *const none[] = {NULL};
    struct session_options o = {
        .argv = none, .interactive = true, .tty = isatty(STDIN_FILENO) && isatty(STDOUT_FILENO), .login = true};
    return run(argv[1], &o, &a);
}
