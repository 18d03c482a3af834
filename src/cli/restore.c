/* `guise restore`: a virtual machine goes on from a snapshot. */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "backends/net.h"
#include "base/error.h"
#include "base/log.h"
#include "cli/forking.h"
#include "cli/life.h"
#include "vm/snapshot.h"
#include "vm/snapshot_store.h"

struct restore_arguments {
    const char *from;
    bool clone, quiet, verbose;
    struct option_list publish;
};

/* clang-format off */
const struct option_spec restore_options[] = {
    {.name = "from", .letter = 'f', .kind = OPTION_FILE, .offset = offsetof(struct restore_arguments, from),
     .value = "FILE", .help = "make a new machine of what `guise snapshot export` wrote"},
    {.name = "clone", .kind = OPTION_FLAG, .offset = offsetof(struct restore_arguments, clone),
     .help = "with --from: it is another machine, as of `guise fork`, with a name and addresses of its own"},
    {.name = "publish", .letter = 'p', .kind = OPTION_LIST, .offset = offsetof(struct restore_arguments, publish),
     .value = "PORTS", .help = "with --clone: lead a port of the host to it, as `guise run --publish`",
     .check = net_publish_check},
    {.name = "quiet", .letter = 'q', .kind = OPTION_FLAG, .offset = offsetof(struct restore_arguments, quiet),
     .help = "show no progress"},
    {.name = "verbose", .letter = 'v', .kind = OPTION_FLAG, .offset = offsetof(struct restore_arguments, verbose),
     .help = "say how long it took"},
    {0},
};
/* clang-format on */

/* What can be seen of it before the machine that runs now is given up. */
static int look(const char *path, const struct vm_record *record, char layer[64], bool *agent, char *err, size_t n)
{
    struct restore restore;
    int failed = restore_open(&restore, path, false, err, n);

    if (failed)
        return failed;
    failed = restore_check(&restore, record, err, n);
    json_t *about = failed ? NULL : snapshot_about(&restore.file, path, err, n);
    if (!failed && !about)
        failed = -EBADMSG;
    const char *text = json_string_value(json_object_get(about, "layer"));
    snprintf(layer, 64, "%s", text ? text : "");
    *agent = json_is_true(json_object_get(about, "agent"));
    json_decref(about);
    restore_close(&restore);
    return failed;
}

static int stop_running(const struct registry *r, const char *name)
{
    struct vm_run run;

    registry_run(r, name, &run);
    return run.state == VM_RUNNING ? life_cut_power(r, name) : STATUS_OK;
}

/* Its agent has told it who it is. */
static int wait_identity(const struct life_start *s)
{
    const struct forking f = {.registry = s->registry, .agent = true};
    struct forked c = {.record = *s->record, .client = s->client, .lock = -1, .runs = true};
    char err[ERROR_SIZE];
    int failed = forking_wait(&f, &c, err, sizeof err);

    return failed ? cli_failed(failed, err) : STATUS_OK;
}

/* Takes over the lock.  identify: it is somebody else now, and is to know. */
static int run_from(const struct registry *r, const struct vm_record *record, int lock, const char *path, bool identify,
                    const struct restore_arguments *a)
{
    struct progress progress;
    struct life_start s = {.registry = r, .record = record, .progress = &progress, .source.snapshot = path};

    progress_begin(&progress, a->verbose, a->quiet);
    int status = life_begin(&s, lock, false);
    progress_end(&progress);
    if (status != STATUS_OK)
        return status;
    if (identify)
        status = wait_identity(&s);
    client_close(&s.client);
    return status;
}

static int go_back(const struct registry *r, const struct vm_record *record, const char *path, const char *layer,
                   const struct restore_arguments *a)
{
    char err[ERROR_SIZE];
    int lock, failed = registry_lock(r, record->name, &lock, err, sizeof err);

    if (failed)
        return cli_failed(failed, err);
    if (*layer && (failed = snapshot_disk_back(r, record->name, layer, err, sizeof err))) {
        close(lock);
        return cli_failed(failed, err);
    }
    return run_from(r, record, lock, path, false, a);
}

/* One that cannot go on here was not worth making. */
static int bring_in(const struct registry *r, const char *name, const struct restore_arguments *a)
{
    struct copy_words words = {.name = name, .publish = &a->publish};
    struct vm_record record;
    char err[ERROR_SIZE], tag[NAME_SIZE], path[PATH_MAX], out[NAME_SIZE], layer[64];
    bool agent = false;
    int lock,
        failed = snapshot_import(r, a->from, name, a->clone ? &words : NULL, &record, tag, &lock, err, sizeof err);

    if (failed)
        return cli_failed(failed, err);
    failed = snapshot_find(r, record.name, tag, out, path, err, sizeof err);
    if (!failed)
        failed = look(path, &record, layer, &agent, err, sizeof err);
    int status = failed ? cli_failed(failed, err) : run_from(r, &record, lock, path, a->clone && agent, a);
    if (failed)
        registry_remove(r, record.name, lock, err, sizeof err);
    if (status == STATUS_OK) {
        puts(record.name);
        status = cli_flush();
    }
    record_free(&record);
    return status;
}

int restore_main(const struct command *self, int argc, char **argv)
{
    struct restore_arguments a = {0};
    struct vm_record record;
    struct registry r;
    char err[ERROR_SIZE], path[PATH_MAX], tag[NAME_SIZE], layer[64];
    int status, operands = life_parse(self, argc, argv, &a, 2, &r, &status);

    bool agent;

    if (operands < 0)
        return status;
    if ((a.clone && !a.from) || (a.publish.n && !a.clone))
        return cli_usage_error(self, a.clone ? "--clone goes with --from" : "--publish goes with --clone");
    if (a.from && operands < 2)
        return bring_in(&r, operands ? argv[1] : NULL, &a);
    if (operands == 0 || a.from)
        return cli_usage_error(self, a.from ? "--from takes the name of the new machine, and no tag"
                                            : "the name of a virtual machine must be given");
    int failed = registry_load(&r, argv[1], &record, err, sizeof err);
    if (failed)
        return cli_failed(failed, err);
    failed = snapshot_find(&r, argv[1], operands == 2 ? argv[2] : NULL, tag, path, err, sizeof err);
    if (!failed)
        failed = look(path, &record, layer, &agent, err, sizeof err);
    status = failed ? cli_failed(failed, err) : stop_running(&r, argv[1]);
    if (status == STATUS_OK)
        status = go_back(&r, &record, path, layer, &a);
    record_free(&record);
    return status;
}
