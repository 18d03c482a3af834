/* Starting and ending virtual machines: start, stop, kill, restart, rm. */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "agent/qga.h"
#include "base/error.h"
#include "base/log.h"
#include "cli/reach.h"
#include "cli/wait.h"

#define STOP_MS 30000
#define ASK_AGAIN_MS 5000

struct start_arguments {
    const char *wait;
};

struct stop_arguments {
    bool force;
    uint64_t timeout_ms;
};

struct restart_arguments {
    struct start_arguments start;
    struct stop_arguments stop;
};

struct rm_arguments {
    bool force;
};

const struct option_spec kill_options[] = {{0}};
/* clang-format off */
const struct option_spec start_options[] = {
    WAIT_OPTION(struct start_arguments, wait),
    {0},
};
const struct option_spec stop_options[] = {
    {.name = "force", .letter = 'f', .kind = OPTION_FLAG, .offset = offsetof(struct stop_arguments, force),
     .help = "cut the power instead of asking the guest"},
    {.name = "timeout", .letter = 't', .kind = OPTION_SECONDS, .offset = offsetof(struct stop_arguments, timeout_ms),
     .value = "SECONDS", .help = "give up after this time, with status 6 (30 unless told)"},
    {0},
};
const struct option_spec restart_options[] = {
    WAIT_OPTION(struct restart_arguments, start.wait),
    {.more = stop_options, .offset = offsetof(struct restart_arguments, stop)},
};
const struct option_spec rm_options[] = {
    {.name = "force", .letter = 'f', .kind = OPTION_FLAG, .offset = offsetof(struct rm_arguments, force),
     .help = "cut the power of one that runs, then remove it"},
    {0},
};
/* clang-format on */

/* --- start ------------------------------------------------------------------------------------------------- */

static int start(const struct registry *r, const char *name, const void *arguments)
{
    const struct start_arguments *a = arguments;
    char err[ERROR_SIZE];
    struct vm_record record;
    struct progress progress;
    struct vm_run run;
    int lock, failed = registry_load(r, name, &record, err, sizeof err);

    if (failed)
        return cli_failed(failed, err);
    failed = registry_lock(r, name, &lock, err, sizeof err);
    if (failed) {
        record_free(&record);
        registry_run(r, name, &run);
        if (failed == -EBUSY && run.state == VM_RUNNING)
            error_set(err, sizeof err, 0, "%s runs already; `guise console %s` leads to it", name, name);
        return cli_failed(failed, err);
    }
    progress_begin(&progress, false, false);
    struct life_start s = {.registry = r, .record = &record, .progress = &progress};
    int status = life_begin(&s, lock, false);
    if (status == STATUS_OK) {
        status = wait_until(&s, a->wait);
        progress_end(&progress);
        client_close(&s.client);
    }
    record_free(&record);
    return status;
}

int start_main(const struct command *self, int argc, char **argv)
{
    struct start_arguments a = {.wait = "agent"};

    return life_each(self, argc, argv, &a, start);
}

/* --- stop --------------------------------------------------------------------------------------------------- */

/* A guest without our agent may have QEMU's. */
static bool ask_qemu_agent(const char *name)
{
    char none[ERROR_SIZE];
    struct qga q;
    int fd = reach_qga(name);
    bool asked = false;

    if (fd >= 0 && qga_open(&q, fd, none, sizeof none) == 0) {
        asked = qga_power(&q, POWER_OFF, none, sizeof none) == 0;
        qga_close(&q);
    }
    if (fd >= 0)
        close(fd);
    return asked;
}

static int ask_once(const struct registry *r, const char *name, char *err, size_t n)
{
    struct client c;
    int failed = client_open(&c, r, name, err, n);

    if (!failed && ask_qemu_agent(name)) {
        client_close(&c);
        return 0;
    }
    if (!failed)
        failed = client_call(&c, "stop", json_pack("{s:s}", "mode", "auto"), NULL, err, n);
    client_close(&c);
    return failed == -ECONNRESET ? 0 : failed;
}

/* A guest that has only just begun to boot does not hear yet: it is asked again and again. */
static int ask_to_stop(const struct registry *r, const char *name, uint64_t timeout_ms)
{
    char err[ERROR_SIZE];
    int left = (int)timeout_ms, failed = ask_once(r, name, err, sizeof err);

    if (failed)
        return cli_failed(failed, err);
    for (int now; left > 0; left -= now) {
        now = left < ASK_AGAIN_MS ? left : ASK_AGAIN_MS;
        if (process_wait(r, name, now) == 0)
            return STATUS_OK;
        if (left > now)
            ask_once(r, name, err, sizeof err);
    }
    error_set(err, sizeof err, 0, "%s has not shut down after %g s; `guise stop --force %s` cuts its power", name,
              (double)timeout_ms / 1000, name);
    return cli_failed(-ETIMEDOUT, err);
}

static int stop(const struct registry *r, const char *name, const void *arguments)
{
    const struct stop_arguments *a = arguments;

    return a->force ? life_cut_power(r, name) : ask_to_stop(r, name, a->timeout_ms);
}

int stop_main(const struct command *self, int argc, char **argv)
{
    struct stop_arguments a = {.timeout_ms = STOP_MS};

    return life_each(self, argc, argv, &a, stop);
}

static int kill_one(const struct registry *r, const char *name, const void *arguments)
{
    return life_cut_power(r, name);
}

int kill_main(const struct command *self, int argc, char **argv)
{
    return life_each(self, argc, argv, NULL, kill_one);
}

/* --- restart, rm ------------------------------------------------------------------------------------------------ */

static int restart(const struct registry *r, const char *name, const void *arguments)
{
    const struct restart_arguments *a = arguments;
    struct vm_run run;

    registry_run(r, name, &run);
    int status = run.state == VM_RUNNING ? stop(r, name, &a->stop) : STATUS_OK;
    return status ? status : start(r, name, &a->start);
}

int restart_main(const struct command *self, int argc, char **argv)
{
    struct restart_arguments a = {.start.wait = "agent", .stop.timeout_ms = STOP_MS};

    return life_each(self, argc, argv, &a, restart);
}

static int rm(const struct registry *r, const char *name, const void *arguments)
{
    const struct rm_arguments *a = arguments;
    char err[ERROR_SIZE];
    struct vm_run run;
    int lock, failed, status;

    if (a->force) {
        registry_run(r, name, &run);
        bool lives = run.held && (run.state == VM_RUNNING || run.state == VM_INCOMING || run.state == VM_MOVED);
        status = lives ? life_cut_power(r, name) : STATUS_OK;
        if (status)
            return status;
    }
    failed = registry_exists(r, name, err, sizeof err);
    if (!failed)
        failed = registry_lock(r, name, &lock, err, sizeof err);
    if (!failed)
        failed = registry_remove(r, name, lock, err, sizeof err);
    return failed ? cli_failed(failed, err) : STATUS_OK;
}

int rm_main(const struct command *self, int argc, char **argv)
{
    struct rm_arguments a = {0};

    return life_each(self, argc, argv, &a, rm);
}
