/* Looking at virtual machines: ls, inspect, info, stats. */
#include <errno.h>
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

/* What a machine that runs has said, by one connection: references, or NULL for what is not known. */
struct said {
    json_t *status, *stats, *cpus, *publish;
};

static const struct {
    const char *command;
    size_t offset;
} questions[] = {{"status", offsetof(struct said, status)},
                 {"stats", offsetof(struct said, stats)},
                 {"cpus", offsetof(struct said, cpus)},
                 {"publish", offsetof(struct said, publish)}};

/* One that hangs is waited for once. */
static void ask(const struct registry *r, const char *name, const struct vm_run *run, struct said *said)
{
    char none[1];
    struct client c;
    int failed = 0;

    *said = (struct said){.status = NULL};
    if (run->state != VM_RUNNING || client_open(&c, r, name, none, sizeof none))
        return;
    c.patience_ms = PATIENCE_MS;
    for (size_t i = 0; i < sizeof questions / sizeof *questions; i++) {
        json_t **answer = (json_t **)(void *)((char *)said + questions[i].offset);
        if (failed != -ETIMEDOUT && failed != -ECONNRESET)
            failed = client_call(&c, questions[i].command, NULL, answer, none, sizeof none);
    }
    client_close(&c);
}

static void forget(struct said *said)
{
    for (size_t i = 0; i < sizeof questions / sizeof *questions; i++)
        json_decref(*(json_t **)(void *)((char *)said + questions[i].offset));
}

/* Does it stand by, for copies to be made of it (vm/fork.h)? */
static bool is_parked(const struct said *said)
{
    return json_is_true(json_object_get(said->status, "parked"));
}

/* How many CPUs it has now, or begins with. */
static unsigned count_cpus(const struct vm_record *record, const struct said *said)
{
    const json_t *present = json_object_get(said->cpus, "present");

    return present ? (unsigned)json_integer_value(present) : (unsigned)record->settings.config.n_cpus;
}

/* A reference, or null. */
static json_t *or_null(json_t *value)
{
    return value ? json_incref(value) : json_null();
}

static const char *size_or_none(const json_t *bytes, char *buf, size_t n)
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

/* One that runs may have chosen a port; of the others what they will ask for. */
static void list_ports(const struct vm_record *record, const struct said *said, char *out, size_t n)
{
    const json_t *ports = json_object_get(said->publish, "ports");

    if (ports)
        join_ports(ports, out, n);
    else
        join_words(&record->settings.config.publish, out, n);
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
    struct said said;
    char *text = record_format(record);
    json_t *all = text ? json_loads(text, 0, NULL) : NULL;

    free(text);
    if (!all)
        return NULL;
    registry_run(r, record->name, &run);
    ask(r, record->name, &run, &said);
    json_object_set_new(all, "state", json_string(vm_state_names[run.state]));
    json_object_set_new(all, "parked", json_boolean(is_parked(&said)));
    json_object_set_new(all, "pid", run.pid ? json_integer(run.pid) : json_null());
    json_object_set_new(all, "engine", run.engine[0] ? json_string(run.engine) : json_null());
    json_object_set_new(all, "reason", run.reason[0] ? json_string(run.reason) : json_null());
    json_object_set_new(all, "exit_status", run.exited ? json_integer(run.exit_status) : json_null());
    json_object_set_new(all, "memory_bytes", json_integer((json_int_t)record->settings.config.memory_bytes));
    json_object_set_new(all, "memory_private_bytes", or_null(json_object_get(said.stats, "memory_private_bytes")));
    json_object_set_new(all, "memory_shared_bytes", or_null(json_object_get(said.stats, "memory_shared_bytes")));
    json_object_set_new(all, "cpus", json_integer(count_cpus(record, &said)));
    json_object_set_new(all, "image", record->settings.image ? json_string(record->settings.image) : json_null());
    json_t *ports = json_object_get(said.publish, "ports");
    json_object_set_new(all, "ports", ports ? json_incref(ports) : json_array());
    set_time(all, "started", run.started_ms);
    set_time(all, "ended", run.ended_ms);
    forget(&said);
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
    struct said said;

    ask(r, record->name, run, &said);
    table_size(c->memory_bytes, memory, sizeof memory);
    snprintf(cpus, sizeof cpus, "%u", count_cpus(record, &said));
    int len = snprintf(state, sizeof state, "%s", is_parked(&said) ? "parked" : vm_state_names[run->state]);
    if (run->exited && run->state != VM_RUNNING)
        snprintf(state + len, sizeof state - (size_t)len, " (%d)", run->exit_status);
    list_ports(record, &said, ports, sizeof ports);
    if (run->state == VM_RUNNING)
        timestamp_duration(timestamp_ms() - run->started_ms, uptime);
    const json_t *own = json_object_get(said.stats, "memory_private_bytes");
    const json_t *shared = json_object_get(said.stats, "memory_shared_bytes");
    const char *const cells[] = {record->name,
                                 state,
                                 what_boots(record),
                                 memory,
                                 size_or_none(own, private, sizeof private),
                                 size_or_none(shared, common, sizeof common),
                                 cpus,
                                 uptime,
                                 ports};
    int failed = table_add(t, cells);
    forget(&said);
    return failed;
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
