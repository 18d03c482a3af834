/* Looking at virtual machines: ls, inspect, info, stats. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/error.h"
#include "base/log.h"
#include "cli/life.h"
#include "cli/table.h"

#define PATIENCE_MS 500

struct ls_arguments {
    bool all, json;
};
struct json_arguments {
    bool json;
};

#define JSON_ROW(type)                                                                                                 \
    {                                                                                                                  \
        .name = "json", .kind = OPTION_FLAG, .offset = offsetof(struct type, json), .help = "print one JSON document"  \
    }
const struct option_spec ls_options[] = {
    {.name = "all",
     .letter = 'a',
     .kind = OPTION_FLAG,
     .offset = offsetof(struct ls_arguments, all),
     .help = "also those that do not run"},
    JSON_ROW(ls_arguments),
    {0},
};
const struct option_spec inspect_options[] = {{0}};
const struct option_spec info_options[] = {JSON_ROW(json_arguments), {0}};

/* --- what runs is asked ------------------------------------------------------------------------------------------ */

/* The value of `key` in the answer to `command`, or all of it (key NULL), or NULL.  One that hangs is not waited for.
 */
static json_t *ask(const struct registry *r, const char *name, const char *command, const char *key)
{
    char none[1];
    struct client c;
    json_t *result = NULL, *value;

    if (client_open(&c, r, name, none, sizeof none))
        return NULL;
    c.patience_ms = PATIENCE_MS;
    if (client_call(&c, command, NULL, &result, none, sizeof none))
        result = NULL;
    client_close(&c);
    value = json_incref(key ? json_object_get(result, key) : result);
    json_decref(result);
    return value;
}

/* What leads into one that runs: an array as of the control command, or NULL. */
static json_t *published(const struct registry *r, const char *name)
{
    return ask(r, name, "publish", "ports");
}

/* Does it stand by, for copies to be made of it (vm/fork.h)? */
static bool is_parked(const struct registry *r, const char *name, bool runs)
{
    json_t *parked = runs ? ask(r, name, "status", "parked") : NULL;
    bool is = json_is_true(parked);

    json_decref(parked);
    return is;
}

/* How many CPUs it has now, or begins with. */
static unsigned count_cpus(const struct registry *r, const struct vm_record *record, bool runs)
{
    const struct vm_config *c = &record->settings.config;
    json_t *present = runs && c->max_cpus ? ask(r, record->name, "cpus", "present") : NULL;
    unsigned n = present ? (unsigned)json_integer_value(present) : (unsigned)c->n_cpus;

    json_decref(present);
    return n;
}

/* Bytes of the guest's memory that are its own, and that it has in common with others (memory/template.h), as it is
 * now: references, or NULL for one that does not run. */
static void used_memory(const struct registry *r, const char *name, bool runs, json_t **own, json_t **shared)
{
    json_t *stats = runs ? ask(r, name, "stats", NULL) : NULL;

    *own = json_incref(json_object_get(stats, "memory_private_bytes"));
    *shared = json_incref(json_object_get(stats, "memory_shared_bytes"));
    json_decref(stats);
}

static const char *size_or_none(json_t *bytes, char *buf, size_t n)
{
    return bytes ? table_size((unsigned long long)json_integer_value(bytes), buf, n) : NULL;
}

/* "8080:80,127.0.0.2:53:53/udp": as on the command line. */
static void join_ports(const json_t *ports, char *out, size_t n)
{
    size_t i, used = 0;
    json_t *p;

    out[0] = 0;
    json_array_foreach(ports, i, p)
    {
        const char *ip = json_string_value(json_object_get(p, "host_ip"));
        const char *protocol = json_string_value(json_object_get(p, "protocol"));
        bool local = ip && strcmp(ip, "127.0.0.1") == 0;
        if (used < n)
            used += (size_t)snprintf(out + used, n - used, "%s%s%s%d:%d%s", i ? "," : "", local || !ip ? "" : ip,
                                     local ? "" : ":", (int)json_integer_value(json_object_get(p, "host_port")),
                                     (int)json_integer_value(json_object_get(p, "guest_port")),
                                     protocol && strcmp(protocol, "udp") == 0 ? "/udp" : "");
    }
}

static void join_words(const struct option_list *list, char *out, size_t n)
{
    size_t used = 0;

    out[0] = 0;
    for (unsigned i = 0; i < list->n && used < n; i++)
        used += (size_t)snprintf(out + used, n - used, "%s%s", i ? "," : "", list->value[i]);
}

/* One that runs is asked, since it may have chosen a port; of the others what they will ask for. */
static void list_ports(const struct registry *r, const struct vm_record *record, bool runs, char *out, size_t n)
{
    json_t *ports = runs ? published(r, record->name) : NULL;

    if (ports)
        join_ports(ports, out, n);
    else
        join_words(&record->settings.config.publish, out, n);
    json_decref(ports);
}

/* --- one VM as JSON --------------------------------------------------------------------------------------- */

static void set_time(json_t *all, const char *key, uint64_t ms)
{
    char text[TIMESTAMP_SIZE];

    timestamp_format(ms, text);
    json_object_set_new(all, key, ms ? json_string(text) : json_null());
}

/* What is saved about it and how it is: the document of `inspect`. */
static json_t *describe(const struct registry *r, const struct vm_record *record)
{
    struct vm_run run;
    char *text = record_format(record);
    json_t *all = text ? json_loads(text, 0, NULL) : NULL;

    free(text);
    registry_run(r, record->name, &run);
    if (!all)
        return NULL;
    json_object_set_new(all, "state", json_string(vm_state_names[run.state]));
    json_object_set_new(all, "parked", json_boolean(is_parked(r, record->name, run.state == VM_RUNNING)));
    json_object_set_new(all, "pid", run.pid ? json_integer(run.pid) : json_null());
    json_object_set_new(all, "engine", run.engine[0] ? json_string(run.engine) : json_null());
    json_object_set_new(all, "reason", run.reason[0] ? json_string(run.reason) : json_null());
    json_object_set_new(all, "exit_status", run.exited ? json_integer(run.exit_status) : json_null());
    json_object_set_new(all, "memory_bytes", json_integer((json_int_t)record->settings.config.memory_bytes));
    json_t *own, *shared;
    used_memory(r, record->name, run.state == VM_RUNNING, &own, &shared);
    json_object_set_new(all, "memory_private_bytes", own ? own : json_null());
    json_object_set_new(all, "memory_shared_bytes", shared ? shared : json_null());
    json_object_set_new(all, "cpus", json_integer(count_cpus(r, record, run.state == VM_RUNNING)));
    json_object_set_new(all, "image", record->settings.image ? json_string(record->settings.image) : json_null());
    json_t *ports = run.state == VM_RUNNING ? published(r, record->name) : NULL;
    json_object_set_new(all, "ports", ports ? ports : json_array());
    set_time(all, "started", run.started_ms);
    set_time(all, "ended", run.ended_ms);
    return all;
}

/* --- ls -------------------------------------------------------------------------------------------------------- */

/* What it boots: an image's name, or else its kernel's, without the path. */
static const char *what_boots(const struct vm_record *record)
{
    const char *kernel = record->settings.config.kernel_path, *slash = kernel ? strrchr(kernel, '/') : NULL;

    return record->settings.image ? record->settings.image : slash ? slash + 1 : kernel;
}

static int add_row(struct table *t, const struct registry *r, const struct vm_record *record, const struct vm_run *run)
{
    const struct vm_config *c = &record->settings.config;
    char state[32], memory[16], private[16], common[16], cpus[8], uptime[TIMESTAMP_SIZE] = "", ports[128];

    table_size(c->memory_bytes, memory, sizeof memory);
    snprintf(cpus, sizeof cpus, "%u", count_cpus(r, record, run->state == VM_RUNNING));
    const bool parked = is_parked(r, record->name, run->state == VM_RUNNING);
    int len = snprintf(state, sizeof state, "%s", parked ? "parked" : vm_state_names[run->state]);
    if (run->exited && run->state != VM_RUNNING)
        snprintf(state + len, sizeof state - (size_t)len, " (%d)", run->exit_status);
    list_ports(r, record, run->state == VM_RUNNING, ports, sizeof ports);
    if (run->state == VM_RUNNING)
        timestamp_duration(timestamp_ms() - run->started_ms, uptime);
    json_t *own, *shared;
    used_memory(r, record->name, run->state == VM_RUNNING, &own, &shared);
    const char *const cells[] = {record->name,
                                 state,
                                 what_boots(record),
                                 memory,
                                 size_or_none(own, private, sizeof private),
                                 size_or_none(shared, common, sizeof common),
                                 cpus,
                                 uptime,
                                 ports};
    json_decref(own);
    json_decref(shared);
    return table_add(t, cells);
}

static void broken(const char *err)
{
    log_say("%s", err);
}

static int ls_json(const struct registry *r, char (*names)[NAME_SIZE], int n, bool all)
{
    json_t *list = json_array();
    char err[ERROR_SIZE];

    for (int i = 0; i < n; i++) {
        struct vm_record record;
        if (registry_load(r, names[i], &record, err, sizeof err)) {
            broken(err);
            continue;
        }
        json_t *vm = describe(r, &record);
        const char *state = json_string_value(json_object_get(vm, "state"));
        if (all || strcmp(state, "running") == 0 || strcmp(state, "incoming") == 0 || strcmp(state, "moved") == 0)
            json_array_append_new(list, vm);
        else
            json_decref(vm);
        record_free(&record);
    }
    json_dumpf(list, stdout, JSON_INDENT(2));
    putchar('\n');
    json_decref(list);
    return cli_flush();
}

static int ls_table(const struct registry *r, char (*names)[NAME_SIZE], int n, bool all)
{
    struct table t;
    char err[ERROR_SIZE];
    int hidden = 0;

    table_init(&t, "NAME STATE IMAGE MEMORY PRIVATE SHARED CPUS UPTIME PORTS");
    for (int i = 0; i < n; i++) {
        struct vm_record record;
        struct vm_run run;
        if (registry_load(r, names[i], &record, err, sizeof err)) {
            broken(err);
            continue;
        }
        registry_run(r, names[i], &run);
        if (all || run.state == VM_RUNNING || run.state == VM_INCOMING || run.state == VM_MOVED)
            add_row(&t, r, &record, &run);
        else
            hidden++;
        record_free(&record);
    }
    table_print(&t, stdout);
    table_free(&t);
    int status = cli_flush();
    if (hidden && isatty(STDERR_FILENO))
        log_say("%d more do not run: `guise ls -a` shows them", hidden);
    return status;
}

int ls_main(const struct command *self, int argc, char **argv)
{
    struct ls_arguments a = {0};
    struct registry r;
    char(*names)[NAME_SIZE], err[ERROR_SIZE];
    int status;

    if (life_parse(self, argc, argv, &a, 0, &r, &status) < 0)
        return status;
    int n = registry_names(&r, &names, err, sizeof err);
    if (n < 0)
        return cli_failed(n, err);
    status = (a.json ? ls_json : ls_table)(&r, names, n, a.all);
    free(names);
    return status;
}

/* --- inspect, info ------------------------------------------------------------------------------------------------ */

static int inspect(const struct registry *r, const char *name, const void *arguments)
{
    struct vm_record record;
    char err[ERROR_SIZE];
    int failed = registry_load(r, name, &record, err, sizeof err);

    if (failed)
        return cli_failed(failed, err);
    json_t *all = describe(r, &record);
    json_dumpf(all, stdout, JSON_INDENT(2));
    putchar('\n');
    json_decref(all);
    record_free(&record);
    return cli_flush();
}

int inspect_main(const struct command *self, int argc, char **argv)
{
    return life_each(self, argc, argv, NULL, inspect);
}

static void line(const char *key, const char *value)
{
    if (value && *value)
        printf("%-12s%s\n", key, value);
}

static void print_options(const struct vm_settings *s)
{
    struct options_cursor c = {.at = vm_settings_options};
    const struct option_spec *o;
    const char *text;
    char buf[128];

    while ((o = options_next(&c)))
        for (unsigned i = 0; strcmp(o->name, "name") && (text = options_text(&c, o, s, i, buf, sizeof buf)); i++)
            printf("%-12s--%s%s%s\n", "", o->name, o->kind == OPTION_FLAG ? "" : " ",
                   o->kind == OPTION_FLAG ? "" : text);
}

static int info(const struct registry *r, const char *name, const void *arguments)
{
    const struct json_arguments *a = arguments;
    struct vm_record record;
    struct vm_run run;
    char err[ERROR_SIZE], time[TIMESTAMP_SIZE] = "", status[16];

    if (a->json)
        return inspect(r, name, NULL);
    int failed = registry_load(r, name, &record, err, sizeof err);
    if (failed)
        return cli_failed(failed, err);
    registry_run(r, name, &run);
    line("name", record.name);
    line("state", vm_state_names[run.state]);
    line("reason", run.reason);
    snprintf(status, sizeof status, "%d", run.exit_status);
    line("status", run.exited ? status : NULL);
    line("engine", run.engine);
    if (run.state == VM_RUNNING)
        timestamp_duration(timestamp_ms() - run.started_ms, time);
    line("uptime", time);
    line("created", record.created);
    line("image", record.settings.image);
    line("digest", record.image_digest);
    line("uuid", record.uuid);
    line("options", " ");
    print_options(&record.settings);
    record_free(&record);
    return cli_flush();
}

int info_main(const struct command *self, int argc, char **argv)
{
    struct json_arguments a = {0};

    return life_each(self, argc, argv, &a, info);
}
