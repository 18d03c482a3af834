/* `guise launch IMAGE`: a virtual machine in the background that boots as a server would, by its own init. */
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "agent/client.h"
#include "base/error.h"
#include "base/log.h"
#include "cli/bring.h"
#include "cli/reach.h"
#include "host/loop.h"

#define AT(field) offsetof(struct run_arguments, field)
#define SSH_PORT 22
#define BOOT_MS 600000
#define RETRY_MS 200

static const struct option_word wait_words[] = {{"none", 0}, {"agent", 0}, {"boot", 0}, {"ssh", 0}, {0}};

/* clang-format off */
const struct option_spec launch_options[] = {
    {.name = "wait", .kind = OPTION_WORD, .offset = AT(wait), .value = "WHAT",
     .help = "return when this is there (agent unless told, boot if only --wait is)", .words = wait_words, .implied = "boot"},
    VERBOSITY_OPTIONS(struct run_arguments),
    CONFIG_OPTION(struct run_arguments, config_file),
    {.more = vm_settings_options, .offset = AT(settings)},
};
/* clang-format on */

/* --- what to wait for -------------------------------------------------------------------------------------- */

/* systemd is asked, which answers when it is done; other inits are not waited for. */
static int wait_boot(struct bring *b, char *err, size_t n)
{
    static const char *const argv[] = {
        "/bin/sh", "-c", "command -v systemctl >/dev/null || exit 0; exec systemctl is-system-running --wait", NULL};
    const struct agent_exec e = {.argv = argv, .in = -1, .out = -1, .err = -1, .wake = -1};
    struct agent_status status;
    int fd = reach_guest(b->record.name, AGENT_PORT, err, n);

    if (fd < 0)
        return fd;
    int failed = agent_exec(fd, &e, &status, err, n);
    close(fd);
    /* "degraded" is a status of its own: some unit has failed, and the system is up. */
    return failed;
}

/* A server says hello first: "SSH-2.0-...". */
static int hear_ssh(const char *name, char *err, size_t n)
{
    char hello[4];
    int fd = reach_guest(name, AGENT_PORT, err, n);
    int failed = fd < 0 ? fd : agent_tunnel(fd, SSH_PORT, NULL, err, n);

    if (!failed && (poll(&(struct pollfd){.fd = fd, .events = POLLIN}, 1, 10000) != 1 ||
                    recv(fd, hello, sizeof hello, MSG_WAITALL) != sizeof hello || memcmp(hello, "SSH-", 4)))
        failed = error_set(err, n, -ECONNRESET, "what answers on port %d is no ssh server", SSH_PORT);
    if (fd >= 0)
        close(fd);
    return failed;
}

static int wait_ssh(struct bring *b, char *err, size_t n)
{
    uint64_t until = clock_ns() + BOOT_MS * 1000000ull;
    int failed;

    while ((failed = hear_ssh(b->record.name, err, n)) && clock_ns() < until) {
        json_t *event = NULL;
        int gone = client_event(&b->start.client, RETRY_MS, &event);
        json_decref(event);
        if (gone == -ECONNRESET)
            break;
        progress_tick(&b->progress);
    }
    return failed;
}

static int wait_for(struct bring *b, const char *what)
{
    static const struct {
        const char *what, *stage;
        int (*wait)(struct bring *b, char *err, size_t n);
    } waits[] = {{"boot", "boot", wait_boot}, {"ssh", "ssh", wait_ssh}};
    char err[ERROR_SIZE];

    if (strcmp(what, "none") == 0)
        return STATUS_OK;
    int status = bring_wait_agent(b);
    for (size_t i = 0; i < sizeof waits / sizeof *waits && status == STATUS_OK; i++) {
        if (strcmp(waits[i].what, what) != 0)
            continue;
        progress_stage(&b->progress, waits[i].stage, NULL);
        int failed = waits[i].wait(b, err, sizeof err);
        if (!failed)
            continue;
        progress_end(&b->progress);
        log_say("%s runs, but (%s): %s", b->record.name, waits[i].stage, err);
        status = STATUS_TIMEOUT;
    }
    return status;
}

static int launch(const struct run_arguments *a)
{
    struct bring b;
    int status = bring_create(&b, a, VM_MODE_BOOT, false);

    if (status == STATUS_OK)
        status = bring_start(&b, false);
    if (status != STATUS_OK)
        return status;
    status = wait_for(&b, a->wait);
    progress_end(&b.progress);
    client_close(&b.start.client);
    if (status != STATUS_OK)
        return status;
    puts(b.record.name);
    if (isatty(STDERR_FILENO) && !a->quiet)
        log_say("`guise shell %s` leads to it, `guise ls` lists it, `guise stop %s` shuts it down", b.record.name,
                b.record.name);
    return cli_flush();
}

int launch_main(const struct command *self, int argc, char **argv)
{
    struct run_arguments a;
    char **command;
    int status, operands = run_parse(self, argc, argv, &a, 2, &command, &status);

    if (operands < 0)
        return status;
    status = run_take_image(self, &a, operands, argv);
    if (status == STATUS_OK && command)
        status = cli_usage_error(self, "it boots the image's own init; `guise run` takes a command");
    else if (status == STATUS_OK && !a.settings.image)
        status = cli_usage_error(self, "an image must be given: guise launch debian");
    else if (status == STATUS_OK && a.settings.root)
        status = cli_usage_error(self, "--root: the host's own init is not started; `guise run` takes a command");
    if (status == STATUS_OK)
        status = launch(&a);
    run_free(&a);
    return status;
}
