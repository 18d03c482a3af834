#include "cli/life.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <fcntl.h>

#include "base/error.h"
#include "base/log.h"
#include "host/loop.h"
#include "vm/layers.h"
#include "vm/prepare.h"
#include "vm/snapshot_store.h"

#define QUOTED_BYTES 2048
#define QUOTED_LINES 10
#define START_MS 60000
#define KILL_MS 10000

int life_parse(const struct command *self, int argc, char **argv, void *out, int most, struct registry *r, int *status)
{
    char err[ERROR_SIZE];
    int operands = cli_parse(self, argc, argv, out, most, status);

    if (operands < 0)
        return -1;
    int failed = registry_open(r, err, sizeof err);
    if (!failed)
        return operands;
    *status = cli_failed(failed, err);
    return -1;
}

int life_each(const struct command *self, int argc, char **argv, void *out,
              int (*each)(const struct registry *r, const char *name, const void *arguments))
{
    struct registry r;
    int status, first = STATUS_OK, operands = life_parse(self, argc, argv, out, INT_MAX, &r, &status);

    if (operands < 0)
        return status;
    if (operands == 0)
        return cli_usage_error(self, "the name of a virtual machine must be given");
    for (int i = 1; i <= operands; i++) {
        status = each(&r, argv[i], out);
        first = first ? first : status;
    }
    return first;
}

/* Terminals interpret what a guest prints: only text is quoted. */
static void print_quoted(const char *text)
{
    fputs("    | ", stderr);
    for (; *text; text++) {
        if (*text == '\033') { /* an escape sequence, up to its letter */
            while (text[1] && !(text[1] >= '@' && text[1] <= '~' && text[1] != '['))
                text++;
            if (text[1])
                text++;
        } else if ((unsigned char)*text >= ' ' || *text == '\t') {
            fputc(*text, stderr);
        }
    }
    fputc('\n', stderr);
}

void life_quote_serial(const struct registry *r, const char *name)
{
    char path[PATH_MAX], none[1], text[QUOTED_BYTES + 1], *lines[QUOTED_LINES], *save = NULL;
    int n = 0,
        fd = registry_path(r, name, "serial.log", path, none, sizeof none) ? -1 : open(path, O_RDONLY | O_CLOEXEC);
    struct stat st;

    if (fd < 0)
        return;
    off_t from = fstat(fd, &st) == 0 && st.st_size > QUOTED_BYTES ? st.st_size - QUOTED_BYTES : 0;
    ssize_t len = pread(fd, text, QUOTED_BYTES, from);
    close(fd);
    if (len <= 0)
        return;
    text[len] = 0;
    for (char *line = strtok_r(text, "\r\n", &save); line; line = strtok_r(NULL, "\r\n", &save)) {
        if (n == QUOTED_LINES)
            memmove(lines, lines + 1, sizeof *lines * (QUOTED_LINES - 1));
        lines[n < QUOTED_LINES ? n++ : n - 1] = line;
    }
    for (int i = 0; i < n; i++)
        print_quoted(lines[i]);
}

/* The process is gone, or has said that it fails. */
static int begin_failed(struct life_start *s, int failed, json_t *event)
{
    const char *stage = progress_end(s->progress);
    const char *reason = json_string_value(json_object_get(json_object_get(event, "data"), "reason"));
    const char *end = json_string_value(json_object_get(json_object_get(event, "data"), "end"));
    int status = end && strcmp(end, "unavailable") == 0 ? STATUS_UNAVAILABLE : STATUS_FAILED;

    if (reason)
        log_say("%s could not be started (%s): %s", s->record->name, stage, reason);
    else if (failed == -ETIMEDOUT)
        log_say("%s could not be started (%s): its process says nothing", s->record->name, stage);
    else
        log_say("%s could not be started (%s): its process died; `guise logs --engine %s` may say why", s->record->name,
                stage, s->record->name);
    life_quote_serial(s->registry, s->record->name);
    json_decref(event);
    client_close(&s->client);
    return status;
}

int life_begin(struct life_start *s, int lock, bool attached)
{
    char err[ERROR_SIZE];
    json_t *event = NULL;
    int fd, failed;

    if (record_has_disk(s->record)) /* or it reads a little slower */
        (void)snapshot_merge_layers(s->registry, s->record->name, true, LAYERS_FEW, err, sizeof err);
    progress_stage(s->progress, "engine", NULL);
    failed = process_start(s->registry, s->record, lock, attached, &s->source, &fd, err, sizeof err);
    close(lock);
    if (failed) {
        progress_end(s->progress);
        return cli_failed(failed, err);
    }
    client_adopt(&s->client, fd);
    failed = client_event(&s->client, START_MS, &event);
    const char *name = json_string_value(json_object_get(event, "event"));
    if (failed || !name || strcmp(name, "started") != 0)
        return begin_failed(s, failed, event);
    progress_stage(s->progress, "boot", NULL);
    json_decref(event);
    return STATUS_OK;
}

/* --- ready, and off --------------------------------------------------------------------------------------- */

/* Why it will not be ready: an event says so, or there are no more. */
static int not_ready(struct life_start *s, int failed, json_t *event)
{
    const char *stage = progress_end(s->progress);
    const char *reason = json_string_value(json_object_get(json_object_get(event, "data"), "reason"));
    const char *end = json_string_value(json_object_get(json_object_get(event, "data"), "end"));
    int status = failed == -ETIMEDOUT || (end && strcmp(end, "timeout") == 0) ? STATUS_TIMEOUT : STATUS_FAILED;

    if (failed == -ETIMEDOUT)
        log_say("%s does not come up (%s): there is no word from inside the guest", s->record->name, stage);
    else
        log_say("%s has not come up (%s): %s", s->record->name, stage, reason ? reason : "its process died");
    life_quote_serial(s->registry, s->record->name);
    json_decref(event);
    client_close(&s->client);
    return status;
}

int life_wait_ready(struct life_start *s, int timeout_ms)
{
    static const char *const ends[] = {"agent-failed", "stopped", "crashed", "failed", "reset"};
    uint64_t until = clock_ns() + (uint64_t)timeout_ms * 1000000;

    for (;;) {
        json_t *event = NULL;
        int tick = progress_tick(s->progress), left = (int)((until - clock_ns()) / 1000000) + 1;
        int failed = client_event(&s->client, tick >= 0 && tick < left ? tick : left, &event);
        if (failed == -ETIMEDOUT && clock_ns() < until)
            continue;
        if (failed)
            return not_ready(s, failed, NULL);
        const char *name = json_string_value(json_object_get(event, "event"));
        if (name && strcmp(name, "agent-ready") == 0) {
            json_decref(event);
            return STATUS_OK;
        }
        for (size_t i = 0; name && i < sizeof ends / sizeof *ends; i++)
            if (strcmp(name, ends[i]) == 0)
                return not_ready(s, 0, event);
        json_decref(event);
    }
}

/* One that does not even answer has no power to lose: its process is killed. */
static int kill_process(const struct registry *r, const char *name)
{
    struct vm_run run;

    registry_run(r, name, &run);
    if (!run.held || run.pid <= 0)
        return STATUS_OK;
    if (kill(run.pid, SIGKILL) && errno != ESRCH)
        return cli_failed(-errno, "its process cannot be killed");
    return process_wait(r, name, KILL_MS) ? cli_failed(-ETIMEDOUT, "its process was killed and does not end")
                                          : STATUS_OK;
}

int life_cut_power(const struct registry *r, const char *name)
{
    char err[ERROR_SIZE];
    struct client c;
    int failed = client_open(&c, r, name, err, sizeof err);

    if (failed == -ENOENT || failed == -ECONNREFUSED) {
        struct vm_run run;
        registry_run(r, name, &run);
        return failed == -ECONNREFUSED && run.pid > 0 ? kill_process(r, name) : cli_failed(failed, err);
    }
    if (!failed)
        failed = client_call(&c, "stop", json_pack("{s:s}", "mode", "force"), NULL, err, sizeof err);
    client_close(&c);
    if ((!failed || failed == -ECONNRESET) && process_wait(r, name, KILL_MS) == 0)
        return STATUS_OK;
    return kill_process(r, name);
}

int life_cut_power_if_on(const struct registry *r, const char *name)
{
    struct vm_run run;

    registry_run(r, name, &run);
    return run.held ? life_cut_power(r, name) : STATUS_OK;
}
