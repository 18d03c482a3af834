#include "vm/process.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/error.h"
#include "base/log.h"
#include "base/path.h"
#include "host/child.h"
#include "vm/fork.h"
#include "vm/life.h"
#include "vm/migration.h"
#include "vm/migration_record.h"
#include "vm/prepare.h"
#include "vm/snapshot.h"

#define CLIENT_FD 3
#define LOCK_FD 4
#define LOG_MOST (1u << 20)

/* --- the one who starts ------------------------------------------------------------------------------------- */

/* guise.log, what the process has to say. */
static int open_log(const struct registry *r, const char *name, char *err, size_t n)
{
    char path[PATH_MAX];
    int failed = registry_path(r, name, "guise.log", path, err, n);

    if (failed)
        return failed;
    int fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NOFOLLOW, 0600);
    return fd < 0 ? error_sys(err, n, -errno, "cannot write %s", path) : fd;
}

int process_start(const struct registry *r, const struct vm_record *record, int lock, bool attached,
                  const struct process_source *source, int *client, char *err, size_t n)
{
    const char *argv[10] = {NULL, "vm", record->name};
    char count[16];
    unsigned argc = 3, n_fds = source ? source->n_copy : 0;
    bool incoming = source && source->incoming;
    int fds[2 + FORK_FDS_MAX], ends[2], failed = incoming ? 0 : migration_may_start(r, record->name, err, n);
    int log = failed ? failed : open_log(r, record->name, err, n);

    if (attached)
        argv[argc++] = "--attached";
    if (source && source->snapshot) {
        argv[argc++] = "--restore";
        argv[argc++] = source->snapshot;
    }
    if (n_fds) {
        snprintf(count, sizeof count, "%u", n_fds);
        argv[argc++] = "--copy";
        argv[argc++] = count;
        memcpy(fds + 2, source->copy, n_fds * sizeof *fds);
    }
    if (incoming) {
        argv[argc++] = source->disk_away ? "--incoming=shared" : "--incoming=copied";
        argv[argc++] = "--engine";
        argv[argc++] = source->engine;
    }
    if (log < 0)
        return log;
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends)) {
        close(log);
        return error_sys(err, n, -errno, "cannot talk to a new process");
    }
    fds[0] = ends[1];
    fds[1] = lock;
    failed = child_detach(argv, fds, 2 + n_fds, log, err, n);
    close(log);
    close(ends[1]);
    if (failed)
        close(ends[0]);
    else
        *client = ends[0];
    return failed;
}

int process_wait(const struct registry *r, const char *name, int timeout_ms)
{
    struct vm_run run;

    registry_run(r, name, &run);
    int fd = run.held && run.pid > 0 ? (int)syscall(SYS_pidfd_open, run.pid, 0) : -1;
    if (fd < 0)
        return 0;
    int ended = poll(&(struct pollfd){.fd = fd, .events = POLLIN}, 1, timeout_ms);
    close(fd);
    return ended == 1 ? 0 : -ETIMEDOUT;
}

/* --- the process itself ------------------------------------------------------------------------------------------ */

static int set_up(const struct registry *r, struct prepared *p, struct vm_life *life, bool runs, const char *serial,
                  char *err, size_t n)
{
    if (chdir(life->record->directory) && chdir("/"))
        log_say("cannot go to %s: relative paths may lead nowhere", life->record->directory);
    int failed = prepare(r, life->record, runs, p, err, n);
    p->config.serial = serial;
    p->config.life = life;
    return failed;
}

/* Fills what of the life is known before the machine exists. */
static int begin(const struct registry *r, struct vm_record *record, struct vm_life *life, char *serial, char *err,
                 size_t n)
{
    char path[PATH_MAX];
    int failed = registry_path(r, record->name, "events.log", path, err, n);

    if (!failed)
        failed = event_log_open(&life->events, path, record->name, err, n);
    if (!failed)
        failed = registry_path(r, record->name, "guise.log", path, err, n);
    if (!failed)
        failed = logfile_open(&life->said, path, LOG_MOST, err, n);
    if (!failed)
        failed = registry_socket(r, record->name, "ctl", life->socket, err, n);
    if (!failed)
        failed = registry_socket(r, record->name, MIGRATION_DOOR, life->door, err, n);
    if (!failed)
        failed = registry_path(r, record->name, "serial.log", path, err, n);
    if (!failed)
        failed = path_format(serial, PATH_MAX + 4, err, n, "log:%s", path);
    return failed;
}

/* A run before that ended without a word gets its word now. */
static void note_death(struct vm_life *life)
{
    struct vm_run last;

    registry_last_run(life->lock, &last);
    if (last.state == VM_DIED)
        free(event_log_add(&life->events, "crashed", json_pack("{s:s, s:s}", "end", "died", "reason", last.reason)));
}

/* The descriptors begin behind the lock's. */
static int open_copy(struct restore *restore, unsigned copy, char *err, size_t n)
{
    int fds[FORK_FDS_MAX];

    for (unsigned i = 0; i < copy; i++) {
        fds[i] = LOCK_FD + 1 + (int)i;
        if (fcntl(fds[i], F_SETFD, FD_CLOEXEC))
            return error_set(err, n, -EINVAL, "`guise vm --copy` is what `guise fork` starts");
    }
    return restore_open_copy(restore, fds, copy, err, n);
}

static int open_source(struct restore *restore, const char *snapshot, unsigned copy, struct vm_config *config,
                       char *err, size_t n)
{
    if (!snapshot && !copy)
        return 0;
    config->restore = restore;
    int failed = copy ? open_copy(restore, copy, err, n) : restore_open(restore, snapshot, true, err, n);
    if (!failed)
        restore_choose_engine(restore, config);
    return failed;
}

int process_main(const char *name, bool attached, const char *snapshot, unsigned copy, const char *incoming,
                 const char *engine)
{
    struct registry r;
    struct vm_record record;
    struct prepared prepared = {.initrd = -1};
    struct vm_result result = {0};
    struct restore restore = {.file.fd = -1, .set_fd = -1};
    struct vm_life life = {
        .record = &record, .said = {.fd = -1, .old = -1}, .lock = LOCK_FD, .client = CLIENT_FD, .attached = attached};
    char err[ERROR_SIZE], serial[PATH_MAX + 4];

    if (fcntl(CLIENT_FD, F_SETFD, FD_CLOEXEC) || fcntl(LOCK_FD, F_SETFD, FD_CLOEXEC)) {
        log_say("`guise vm` is what other commands start; `guise start %s` starts a virtual machine", name);
        return 2;
    }
    fcntl(CLIENT_FD, F_SETFL, O_NONBLOCK);
    int failed = registry_find(&r, err, sizeof err);
    if (!failed)
        failed = registry_load(&r, name, &record, err, sizeof err);
    if (failed) {
        log_say("%s", err);
        return 1;
    }
    failed = begin(&r, &record, &life, serial, err, sizeof err);
    if (!failed) {
        note_death(&life);
        failed = set_up(&r, &prepared, &life, copy > 0, serial, err, sizeof err);
    }
    if (!failed)
        failed = open_source(&restore, snapshot, copy, &prepared.config, err, sizeof err);
    if (!failed && incoming) {
        prepared.config.incoming = true;
        prepared.config.disk_away = strcmp(incoming, "shared") == 0;
        prepared.config.engine = vm_engine_again(prepared.config.engine, engine);
    }
    if (!failed) {
        vm_run(&prepared.config, &result);
        snprintf(err, sizeof err, "%s", result.reason);
    } else {
        life_never_began(&life, err);
    }
    log_say("%s", err);
    restore_close(&restore);
    prepare_free(&prepared);
    event_log_close(&life.events);
    logfile_close(&life.said);
    record_free(&record);
    return failed || result.end == VM_FAILED;
}
