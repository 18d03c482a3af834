/* `guise restore`: a virtual machine goes on from a snapshot. */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/error.h"
#include "base/log.h"
#include "cli/life.h"
#include "vm/snapshot.h"
#include "vm/snapshot_store.h"

struct restore_arguments {
    const char *from;
    bool quiet, verbose;
};

/* clang-format off */
const struct option_spec restore_options[] = {
    {.name = "from", .letter = 'f', .kind = OPTION_FILE, .offset = offsetof(struct restore_arguments, from),
     .value = "FILE", .help = "make a new machine of what `guise snapshot export` wrote"},
    {.name = "quiet", .letter = 'q', .kind = OPTION_FLAG, .offset = offsetof(struct restore_arguments, quiet),
     .help = "show no progress"},
    {.name = "verbose", .letter = 'v', .kind = OPTION_FLAG, .offset = offsetof(struct restore_arguments, verbose),
     .help = "say how long it took"},
    {0},
};
/* clang-format on */

/* What can be seen of it before the machine that runs now is given up. */
static int look(const char *path, const struct vm_record *record, char layer[64], char *err, size_t n)
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

/* Takes over the lock. */
static int run_from(const struct registry *r, const struct vm_record *record, int lock, const char *path,
                    const struct restore_arguments *a)
{
    struct progress progress;
    struct life_start s = {.registry = r, .record = record, .progress = &progress, .source.snapshot = path};

    progress_begin(&progress, a->verbose, a->quiet);
    int status = life_begin(&s, lock, false);
    progress_end(&progress);
    if (status == STATUS_OK)
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
    return run_from(r, record, lock, path, a);
}

/* One that cannot go on here was not worth making. */
static int bring_in(const struct registry *r, const char *name, const struct restore_arguments *a)
{
    struct vm_record record;
    char err[ERROR_SIZE], tag[NAME_SIZE], path[PATH_MAX], out[NAME_SIZE], layer[64];
    int lock, failed = snapshot_import(r, a->from, name, &record, tag, &lock, err, sizeof err);

    if (failed)
        return cli_failed(failed, err);
    failed = snapshot_find(r, record.name, tag, out, path, err, sizeof err);
    if (!failed)
        failed = look(path, &record, layer, err, sizeof err);
    int status = failed ? cli_failed(failed, err) : run_from(r, &record, lock, path, a);
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

    if (operands < 0)
        return status;
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
        failed = look(path, &record, layer, err, sizeof err);
    status = failed ? cli_failed(failed, err) : stop_running(&r, argv[1]);
    if (status == STATUS_OK)
        status = go_back(&r, &record, path, layer, &a);
    record_free(&record);
    return status;
}
