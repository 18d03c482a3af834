/* `guise run IMAGE [-- COMMAND]`: a command, or a shell, in a virtual machine that lives as long as it does. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "agent/protocol.h"
#include "base/error.h"
#include "base/log.h"
#include "cli/attend.h"
#include "cli/bring.h"
#include "cli/environment.h"
#include "cli/reach.h"
#include "cli/session.h"
#include "cli/warm.h"

/* This directory at the same path inside, and the command there. */
static int share_here(const struct command *self, struct run_arguments *a)
{
    char here[PATH_MAX], err[ERROR_SIZE];

    if (!getcwd(here, sizeof here) || (size_t)snprintf(a->here, sizeof a->here, "%s:%s", here, here) >= sizeof a->here)
        return cli_failed(-errno, "the current directory has no name");
    if (strcmp(here, "/") == 0)
        return cli_usage_error(self, "--cwd: the whole file system of this host is not shared; go to a directory");
    if (options_set(vm_options, "share", a->here, &a->settings.config, err, sizeof err))
        return cli_usage_error(self, err);
    if (!a->directory)
        a->directory = a->here + strlen(here) + 1;
    return STATUS_OK;
}

/* By the agent: the command, or the user's shell. */
static int session(const struct bring *b, const struct run_arguments *a, char **command)
{
    static const char *const nothing[] = {NULL};
    char err[ERROR_SIZE];
    int fd = reach_guest(b->record.name, AGENT_PORT, err, sizeof err);

    if (fd < 0) {
        log_say("%s", err);
        return STATUS_OURS;
    }
    bool tty = isatty(STDIN_FILENO) && isatty(STDOUT_FILENO);
    char **environment = environment_make(&a->environment, tty);
    const struct session_options o = {
        .argv = command ? (const char *const *)command : nothing,
        .environment = (const char *const *)environment,
        .directory = a->directory,
        .user = a->user,
        .interactive = true,
        .tty = tty,
        .login = !command,
    };
    int status = session_run(fd, &o);
    environment_free(environment);
    close(fd);
    return status;
}

/* Did its time run out?  Then that is what the session's end was about. */
static bool timed_out(struct bring *b)
{
    json_t *event;

    while (client_event(&b->start.client, 1000, &event) == 0) {
        const char *end = json_string_value(json_object_get(json_object_get(event, "data"), "end"));
        bool yes = end && strcmp(end, "timeout") == 0;
        json_decref(event);
        if (yes)
            return true;
    }
    return false;
}

static int attached(struct bring *b, const struct run_arguments *a, char **command)
{
    int status = session(b, a, command);

    if (status == STATUS_OURS && a->settings.config.timeout_ms && timed_out(b)) {
        log_say("%s still ran after %g s", b->record.name, (double)a->settings.config.timeout_ms / 1000);
        status = STATUS_TIMEOUT;
    }
    bring_end(b);
    if (!b->record.ephemeral && isatty(STDERR_FILENO) && !a->quiet)
        log_say("%s is kept: `guise start %s` starts it, `guise rm %s` removes it", b->record.name, b->record.name,
                b->record.name);
    return status;
}

/* In the background: the command's attendant, or nobody, looks after it. */
static int detached(struct bring *b, const struct run_arguments *a, char **command)
{
    char err[ERROR_SIZE];
    int failed = command ? attend_start(b, a, command, err, sizeof err) : 0;

    if (failed) {
        bring_end(b);
        log_say("%s", err);
        return STATUS_OURS;
    }
    client_close(&b->start.client);
    puts(b->record.name);
    if (isatty(STDERR_FILENO) && !a->quiet)
        log_say(command ? "`guise logs -f %s` shows what it prints, `guise stop %s` ends it"
                        : "`guise shell %s` leads to it, `guise stop %s` ends it",
                b->record.name, b->record.name);
    return cli_flush();
}

/* guise's own failures before the command began have the status that docker and podman gave them. */
static int ours(int status)
{
    return status == STATUS_FAILED || status == STATUS_UNREACHABLE ? STATUS_OURS : status;
}

int run_image(const struct command *self, struct run_arguments *a, char **command)
{
    struct bring b;
    int status = a->current_directory ? share_here(self, a) : STATUS_OK;

    if (status != STATUS_OK)
        return status;
    if (a->warm) {
        status = warm_start(self, &b, a);
    } else {
        status = bring_create(&b, a, VM_MODE_COMMAND, a->remove);
        if (status == STATUS_OK)
            status = bring_start(&b, !a->detach);
        if (status == STATUS_OK)
            status = bring_wait_agent(&b);
    }
    if (status != STATUS_OK)
        return ours(status);
    if (a->settings.config.timeout_ms)
        client_call(&b.start.client, "limit",
                    json_pack("{s:I}", "timeout_ms", (json_int_t)a->settings.config.timeout_ms), NULL, NULL, 0);
    progress_end(&b.progress);
    if (!a->detach)
        return attached(&b, a, command);
    return detached(&b, a, command);
}
