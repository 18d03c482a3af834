/* `guise stats`: what virtual machines use, once or again and again. */
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/error.h"
#include "cli/life.h"
#include "cli/table.h"

#define REFRESH_MS 2000
#define MOST 256

struct stats_arguments {
    bool json, once;
};

/* clang-format off */
const struct option_spec stats_options[] = {
    {.name = "json", .kind = OPTION_FLAG, .offset = offsetof(struct stats_arguments, json),
     .help = "print one JSON document"},
    {.name = "once", .kind = OPTION_FLAG, .offset = offsetof(struct stats_arguments, once),
     .help = "print one table, also on a terminal"},
    {0},
};
/* clang-format on */

/* What was seen of a VM the last time. */
struct sample {
    char name[NAME_SIZE];
    json_int_t uptime_ms, cpu_us;
};

struct stats {
    const struct registry *r;
    char **only; /* names that were asked for */
    int n_only;
    struct sample before[MOST];
    int n_before;
};

static json_int_t number(const json_t *stats, const char *key)
{
    return json_integer_value(json_object_get(stats, key));
}

static bool wanted(const struct stats *s, const char *name)
{
    for (int i = 0; i < s->n_only; i++)
        if (strcmp(s->only[i], name) == 0)
            return true;
    return s->n_only == 0;
}

/* Every VM that answers: an array of {"name", "stats"}. */
static json_t *collect(const struct stats *s)
{
    char(*names)[NAME_SIZE], err[ERROR_SIZE];
    json_t *all = json_array();
    int n = registry_names(s->r, &names, err, sizeof err);

    for (int i = 0; i < n; i++) {
        struct client c;
        json_t *result;
        if (!wanted(s, names[i]) || client_open(&c, s->r, names[i], err, sizeof err))
            continue;
        if (client_call(&c, "stats", NULL, &result, err, sizeof err) == 0)
            json_array_append_new(all, json_pack("{s:s, s:o}", "name", names[i], "stats", result));
        client_close(&c);
    }
    free(names);
    return all;
}

/* Per cent of one CPU since the last time; the first time, since it was started. */
static double load(const struct stats *s, const char *name, const json_t *stats)
{
    json_int_t cpu = number(stats, "cpu_user_us") + number(stats, "cpu_system_us"), ms = number(stats, "uptime_ms");

    for (int i = 0; i < s->n_before; i++) {
        if (strcmp(s->before[i].name, name) == 0 && s->before[i].uptime_ms < ms) {
            cpu -= s->before[i].cpu_us;
            ms -= s->before[i].uptime_ms;
        }
    }
    return ms ? (double)cpu / (double)ms / 10 : 0;
}

static void remember(struct stats *s, const json_t *all)
{
    size_t i;
    json_t *vm;

    s->n_before = 0;
    json_array_foreach(all, i, vm)
    {
        const json_t *stats = json_object_get(vm, "stats");
        if (s->n_before == MOST)
            break;
        struct sample *b = &s->before[s->n_before++];
        snprintf(b->name, sizeof b->name, "%s", json_string_value(json_object_get(vm, "name")));
        b->cpu_us = number(stats, "cpu_user_us") + number(stats, "cpu_system_us");
        b->uptime_ms = number(stats, "uptime_ms");
    }
}

static int print_table(struct stats *s, const json_t *all)
{
    struct table t;
    size_t i;
    json_t *vm;

    table_init(&t, "NAME CPU% RSS MEMORY DISK-READ DISK-WRITTEN NET-IN NET-OUT");
    json_array_foreach(all, i, vm)
    {
        const json_t *stats = json_object_get(vm, "stats");
        const char *name = json_string_value(json_object_get(vm, "name"));
        static const char *const keys[] = {"memory_rss_bytes",   "memory_bytes",       "disk_read_bytes",
                                           "disk_written_bytes", "net_received_bytes", "net_sent_bytes"};
        char cpu[16], sizes[6][16];
        const char *cells[8] = {name, cpu};
        snprintf(cpu, sizeof cpu, "%.1f", load(s, name, stats));
        for (size_t k = 0; k < 6; k++)
            cells[2 + k] = table_size((unsigned long long)number(stats, keys[k]), sizes[k], sizeof sizes[k]);
        table_add(&t, cells);
    }
    table_print(&t, stdout);
    table_free(&t);
    return cli_flush();
}

static int refresh(struct stats *s)
{
    int status = STATUS_OK;

    while (status == STATUS_OK) {
        json_t *all = collect(s);
        fputs("\033[H\033[2J", stdout);
        status = print_table(s, all);
        remember(s, all);
        json_decref(all);
        poll(NULL, 0, REFRESH_MS);
    }
    return status;
}

int stats_main(const struct command *self, int argc, char **argv)
{
    struct stats_arguments a = {0};
    struct registry r;
    char err[ERROR_SIZE];
    int status, operands = life_parse(self, argc, argv, &a, MOST, &r, &status);

    if (operands < 0)
        return status;
    struct stats s = {.r = &r, .only = argv + 1, .n_only = operands};
    for (int i = 0; i < operands; i++) {
        int failed = registry_exists(&r, argv[1 + i], err, sizeof err);
        if (failed)
            return cli_failed(failed, err);
    }
    if (!a.json && !a.once && isatty(STDOUT_FILENO))
        return refresh(&s);
    json_t *all = collect(&s);
    if (a.json) {
        json_dumpf(all, stdout, JSON_INDENT(2));
        putchar('\n');
        status = cli_flush();
    } else {
        status = print_table(&s, all);
    }
    json_decref(all);
    return status;
}
