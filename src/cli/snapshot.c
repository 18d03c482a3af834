/* The states of virtual machines that were kept, and going back to them: snapshot, restore. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/error.h"
#include "base/log.h"
#include "cli/interrupt.h"
#include "cli/life.h"
#include "cli/table.h"
#include "vm/snapshot.h"
#include "vm/snapshot_store.h"

#define SCHEMA 1
#define POLL_US 20000
#define BEGIN_MS 120000 /* a busy disk's flush, and the moment itself */

struct snapshot_arguments {
    bool quiet, verbose;
};

struct ls_arguments {
    bool json;
};

/* clang-format off */
const struct option_spec snapshot_options[] = {
    {.name = "quiet", .letter = 'q', .kind = OPTION_FLAG, .offset = offsetof(struct snapshot_arguments, quiet),
     .help = "show no progress"},
    {.name = "verbose", .letter = 'v', .kind = OPTION_FLAG, .offset = offsetof(struct snapshot_arguments, verbose),
     .help = "say how long the guest stood still, and how much was written"},
    {0},
};
static const struct option_spec ls_snapshot_options[] = {
    {.name = "json", .kind = OPTION_FLAG, .offset = offsetof(struct ls_arguments, json),
     .help = "print one JSON document"},
    {0},
};
static const struct option_spec no_options[] = {{0}};
/* clang-format on */

/* --- take ------------------------------------------------------------------------------------------------------- */

static bool is_state(const json_t *status, const char *state)
{
    const char *now = json_string_value(json_object_get(status, "state"));

    return now && strcmp(now, state) == 0;
}

/* Until the file is complete; or, after a signal, given up.  *status is the last that was said. */
static int follow(struct client *c, struct progress *p, json_t **status, char *err, size_t n)
{
    for (;;) {
        if (interrupt_came())
            client_call(c, "snapshot", json_pack("{s:s}", "action", "cancel"), NULL, err, n);
        json_decref(*status);
        *status = NULL;
        int failed = client_call(c, "snapshot", json_pack("{s:s}", "action", "status"), status, err, n);
        if (failed)
            return failed;
        if (is_state(*status, "complete"))
            return 0;
        if (!is_state(*status, "writing")) {
            const char *reason = json_string_value(json_object_get(*status, "reason"));
            return error_set(err, n, -EIO, "%s", reason ? reason : "the snapshot was not completed");
        }
        progress_part(p, (uint64_t)json_integer_value(json_object_get(*status, "done_bytes")),
                      (uint64_t)json_integer_value(json_object_get(*status, "total_bytes")));
        usleep(POLL_US);
    }
}

static int take(struct client *c, struct snapshot_making *m, struct progress *p, json_t **status, char *err, size_t n)
{
    const int fds[] = {m->state, m->top};
    json_t *arguments = json_pack("{s:s, s:s, s:s?}", "action", "begin", "tag", m->tag, "layer",
                                  m->top >= 0 ? m->layer : NULL);

    progress_stage(p, "state", NULL);
    c->patience_ms = BEGIN_MS;
    int failed = client_call_fds(c, "snapshot", arguments, fds, 1 + (m->top >= 0), status, err, n);
    progress_stage(p, "memory", NULL);
    return failed ? failed : follow(c, p, status, err, n);
}

static void say_result(const struct snapshot_making *m, const json_t *status)
{
    char size[16];

    table_size((unsigned long long)json_integer_value(json_object_get(status, "file_bytes")), size, sizeof size);
    log_say("snapshot %s: the guest stood still for %.1f ms; %s were written", m->tag,
            (double)json_integer_value(json_object_get(status, "pause_us")) / 1000, size);
}

static int take_one(const struct registry *r, const struct vm_record *record, const char *tag,
                    const struct snapshot_arguments *a)
{
    struct snapshot_making m;
    struct progress progress;
    struct client c;
    json_t *status = NULL;
    char err[ERROR_SIZE];
    int failed = client_open(&c, r, record->name, err, sizeof err);

    if (!failed && record->ephemeral)
        failed = error_set(err, sizeof err, -EBUSY,
                           "%s goes away with all that it has when it ends: a snapshot would, too", record->name);
    if (!failed)
        failed = snapshot_make(r, record, &c, tag, &m, err, sizeof err);
    if (failed) {
        client_close(&c);
        return cli_failed(failed, err);
    }
    progress_begin(&progress, a->verbose, a->quiet);
    failed = take(&c, &m, &progress, &status, err, sizeof err);
    progress_end(&progress);
    if (failed && interrupt_came())
        error_set(err, sizeof err, failed, "interrupted: there is no snapshot %s", m.tag);
    if (failed)
        snapshot_make_abort(&m, snapshot_is_layered(&m, &c));
    else
        failed = snapshot_make_commit(&m, err, sizeof err);
    client_close(&c);
    if (!failed && a->verbose)
        say_result(&m, status);
    json_decref(status);
    if (failed)
        return cli_failed(failed, err);
    puts(m.tag);
    return cli_flush();
}

int snapshot_main(const struct command *self, int argc, char **argv)
{
    struct snapshot_arguments a = {0};
    struct vm_record record;
    struct registry r;
    char err[ERROR_SIZE];
    int status;

    if (argc > 1 && cli_find_sub(self, argv[1]))
        return cli_sub_main(self, argc, argv);
    int operands = life_parse(self, argc, argv, &a, 2, &r, &status);
    if (operands < 0)
        return status;
    if (operands == 0)
        return cli_usage_error(self, "the name of a virtual machine must be given");
    int failed = registry_load(&r, argv[1], &record, err, sizeof err);
    if (failed)
        return cli_failed(failed, err);
    interrupt_catch();
    status = take_one(&r, &record, operands == 2 ? argv[2] : NULL, &a);
    record_free(&record);
    if (status != STATUS_OK)
        interrupt_end();
    return status;
}

/* --- ls, rm ------------------------------------------------------------------------------------------------------- */

static void print_json(const struct snapshot_info *list, int n)
{
    json_t *all = json_array();

    for (int i = 0; i < n; i++) {
        const struct snapshot_info *s = &list[i];
        json_array_append_new(all, json_pack("{s:s, s:s, s:s, s:I, s:I, s:I, s:I, s:s?}", "tag", s->tag, "created",
                                             s->created, "engine", s->engine, "memory_bytes",
                                             (json_int_t)s->memory_bytes, "cpus", (json_int_t)s->cpus, "file_bytes",
                                             (json_int_t)s->file_bytes, "disk_bytes", (json_int_t)s->disk_bytes,
                                             "damage", s->damage[0] ? s->damage : NULL));
    }
    json_t *document = json_pack("{s:i, s:o}", "schema_version", SCHEMA, "snapshots", all);
    json_dumpf(document, stdout, JSON_INDENT(2));
    putchar('\n');
    json_decref(document);
}

static int print_table(const struct snapshot_info *list, int n)
{
    struct table t;
    char memory[16], file[16], disk[16], err[ERROR_SIZE];
    int failed = table_init(&t, "TAG CREATED MEMORY STATE DISK");

    for (int i = 0; i < n && !failed; i++) {
        const struct snapshot_info *s = &list[i];
        const char *cells[] = {s->tag, s->damage[0] ? "(damaged)" : s->created,
                               table_size(s->memory_bytes, memory, sizeof memory),
                               table_size(s->file_bytes, file, sizeof file),
                               s->layer[0] ? table_size(s->disk_bytes, disk, sizeof disk) : "-"};
        failed = table_add(&t, cells);
    }
    if (failed)
        return cli_failed(failed, (error_sys(err, sizeof err, failed, "cannot list the snapshots"), err));
    table_print(&t, stdout);
    table_free(&t);
    return STATUS_OK;
}

static int ls(const struct command *self, int argc, char **argv)
{
    struct ls_arguments a = {0};
    struct snapshot_info *list = NULL;
    struct registry r;
    char err[ERROR_SIZE];
    int status, operands = life_parse(self, argc, argv, &a, 1, &r, &status);

    if (operands < 0)
        return status;
    if (operands == 0)
        return cli_usage_error(self, "the name of a virtual machine must be given");
    int failed = registry_exists(&r, argv[1], err, sizeof err);
    if (failed)
        return cli_failed(failed, err);
    int n = snapshot_list(&r, argv[1], &list, err, sizeof err);
    if (n < 0)
        return cli_failed(n, err);
    status = STATUS_OK;
    if (a.json)
        print_json(list, n);
    else
        status = print_table(list, n);
    free(list);
    return status ? status : cli_flush();
}

static int rm(const struct command *self, int argc, char **argv)
{
    struct registry r;
    struct progress progress;
    char err[ERROR_SIZE];
    int status, operands = life_parse(self, argc, argv, NULL, INT_MAX, &r, &status);

    if (operands < 0)
        return status;
    if (operands < 2)
        return cli_usage_error(self, "the name of a virtual machine and the tag of a snapshot must be given");
    int failed = registry_exists(&r, argv[1], err, sizeof err);
    for (int i = 2; i <= operands && !failed; i++)
        failed = snapshot_remove(&r, argv[1], argv[i], err, sizeof err);
    if (failed)
        return cli_failed(failed, err);
    progress_begin(&progress, false, false);
    progress_alone(&progress, "merging what they kept of the disk");
    failed = snapshot_merge_layers(&r, argv[1], false, 1, err, sizeof err);
    progress_end(&progress);
    if (failed) /* the layers are what they were, and take more room */
        log_say("what the disk of %s has kept for it stays as it is: %s", argv[1], err);
    return STATUS_OK;
}

/* --- export ------------------------------------------------------------------------------------------------------ */

static int export(const struct command *self, int argc, char **argv)
{
    struct registry r;
    struct progress progress;
    char err[ERROR_SIZE];
    int status, operands = life_parse(self, argc, argv, NULL, 3, &r, &status);

    if (operands < 0)
        return status;
    if (operands < 3)
        return cli_usage_error(self, "the name of a virtual machine, the tag of a snapshot and a file must be given");
    int failed = registry_exists(&r, argv[1], err, sizeof err);
    progress_begin(&progress, false, false);
    progress_alone(&progress, "writing");
    if (!failed)
        failed = snapshot_export(&r, argv[1], argv[2], argv[3], err, sizeof err);
    progress_end(&progress);
    return failed ? cli_failed(failed, err) : STATUS_OK;
}

/* --- check ------------------------------------------------------------------------------------------------------- */

/* Every piece of memory, which restoring looks at one by one only when it is needed. */
static int check_chunks(const struct snapshot_file *f, struct progress *p, const char *path, char *err, size_t n)
{
    uint8_t bytes[SNAPSHOT_CHUNK];
    uint64_t done = 0, total = 0;

    for (unsigned e = 0; e < SNAPSHOT_EXTENTS; e++)
        total += f->extent[e].n;
    for (unsigned e = 0; e < SNAPSHOT_EXTENTS; e++)
        for (uint64_t i = 0; i < f->extent[e].n; i++, done++) {
            if (done % 1024 == 0)
                progress_part(p, done, total);
            if (snapshot_read_chunk(f, e, i, bytes) < 0)
                return error_set(err, n, -EBADMSG, "%s is damaged: the check sum of piece %llu of its %s is wrong",
                                 path, (unsigned long long)i, e == SNAPSHOT_MEMORY ? "memory" : "disk");
        }
    return 0;
}

static int check(const struct command *self, int argc, char **argv)
{
    struct registry r;
    struct restore restore;
    struct progress progress;
    char err[ERROR_SIZE], path[PATH_MAX], tag[NAME_SIZE];
    int status, operands = life_parse(self, argc, argv, NULL, 2, &r, &status);

    if (operands < 0)
        return status;
    if (operands < 2)
        return cli_usage_error(self, "the name of a virtual machine and the tag of a snapshot must be given");
    int failed = registry_exists(&r, argv[1], err, sizeof err);
    if (!failed)
        failed = snapshot_find(&r, argv[1], argv[2], tag, path, err, sizeof err);
    if (!failed)
        failed = restore_open(&restore, path, false, err, sizeof err);
    if (failed)
        return cli_failed(failed, err);
    progress_begin(&progress, false, false);
    progress_stage(&progress, "reading", NULL);
    failed = check_chunks(&restore.file, &progress, path, err, sizeof err);
    progress_end(&progress);
    restore_close(&restore);
    return failed ? cli_failed(failed, err) : STATUS_OK;
}

const struct command snapshot_commands[] = {
    {"snapshot ls", "list the snapshots of a virtual machine", "NAME [--json]", NULL, ls_snapshot_options, "@vm", ls},
    {"snapshot rm", "remove snapshots", "NAME TAG...",
     "What they kept of the disk is merged into what stands on it, while the machine runs on if it does.\n", no_options,
     "@vm", rm},
    {"snapshot export", "write a snapshot into a file for another host", "NAME TAG FILE",
     "`guise restore --from FILE NAME` goes on from it, where the same image is.\n", no_options, "@vm", export},
    {"snapshot check", "read all of a snapshot, and say what is damaged", "NAME TAG", "Exit status 1: it is.\n",
     no_options, "@vm", check},
    {0},
};
