#include "cli/wait.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "agent/client.h"
#include "base/error.h"
#include "base/log.h"
#include "cli/reach.h"
#include "host/loop.h"

#define SSH_PORT 22
#define BOOT_MS 600000
#define RETRY_MS 200

const struct option_word wait_words[] = {{"none", 0}, {"agent", 0}, {"boot", 0}, {"ssh", 0}, {0}};

/*
 * systemd is asked, which answers when it has started everything: "running", or "degraded" when some unit has failed.
 * Before it has set itself up it cannot be asked; another init is not waited for.
 */
static int wait_boot(struct life_start *s, char *err, size_t n)
{
    static const char script[] = "i=0\n"
                                 "while [ $i -lt 1500 ]; do\n"
                                 "    case $(systemctl is-system-running --wait 2>/dev/null) in\n"
                                 "    running|degraded|maintenance|stopping) exit 0 ;;\n"
                                 "    esac\n"
                                 "    read -r init </proc/1/comm\n"
                                 "    case $init in systemd|init|guise*) ;; *) exit 0 ;; esac\n"
                                 "    command -v systemctl >/dev/null || exit 0\n"
                                 "    i=$((i + 1))\n"
                                 "    sleep 0.4\n"
                                 "done\n"
                                 "exit 1\n";
    static const char *const argv[] = {"/bin/sh", "-c", script, NULL};
    const struct agent_exec e = {.argv = argv, .in = -1, .out = -1, .err = -1, .wake = -1};
    struct agent_status status;
    int fd = reach_guest(s->record->name, AGENT_PORT, err, n);

    if (fd < 0)
        return fd;
    int failed = agent_exec(fd, &e, &status, err, n);
    close(fd);
    if (!failed && agent_exit_code(&status))
        failed = error_set(err, n, -ETIMEDOUT, "its init has not started everything after ten minutes");
    return failed;
}

/* A server says hello first: "SSH-2.0-...". */
static int hear_ssh(const char *name, char *err, size_t n)
{
    char hello[4];
    int fd = reach_guest(name, AGENT_PORT, err, n);
    int failed = fd < 0 ? fd : agent_tunnel(fd, SSH_PORT, NULL, 0, err, n);

    if (!failed && (poll(&(struct pollfd){.fd = fd, .events = POLLIN}, 1, 10000) != 1 ||
                    recv(fd, hello, sizeof hello, MSG_WAITALL) != sizeof hello || memcmp(hello, "SSH-", 4)))
        failed = error_set(err, n, -ECONNRESET, "what answers on port %d is no ssh server", SSH_PORT);
    if (fd >= 0)
        close(fd);
    return failed;
}

static int wait_ssh(struct life_start *s, char *err, size_t n)
{
    uint64_t until = clock_ns() + BOOT_MS * 1000000ull;
    int failed;

    while ((failed = hear_ssh(s->record->name, err, n)) && clock_ns() < until) {
        json_t *event = NULL;
        int gone = client_event(&s->client, RETRY_MS, &event);
        json_decref(event);
        if (gone == -ECONNRESET)
            break;
        progress_tick(s->progress);
    }
    return failed;
}

int wait_until(struct life_start *s, const char *what)
{
    static const struct {
        const char *what, *stage;
        int (*wait)(struct life_start *s, char *err, size_t n);
    } waits[] = {{"boot", "boot", wait_boot}, {"ssh", "ssh", wait_ssh}};
    char err[ERROR_SIZE];

    if (strcmp(what, "none") == 0 || s->record->mode == VM_MODE_KERNEL)
        return STATUS_OK;
    int status = life_wait_ready(s, READY_MS);
    for (size_t i = 0; i < sizeof waits / sizeof *waits && status == STATUS_OK; i++) {
        if (strcmp(waits[i].what, what) != 0)
            continue;
        progress_stage(s->progress, waits[i].stage, NULL);
        int failed = waits[i].wait(s, err, sizeof err);
        if (!failed)
            continue;
        progress_end(s->progress);
        log_say("%s runs, but (%s): %s", s->record->name, waits[i].stage, err);
        status = STATUS_TIMEOUT;
    }
    return status;
}
