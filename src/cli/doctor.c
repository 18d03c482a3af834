/* `guise doctor`: what this host offers, why that matters, and what to do about what is missing. */
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/error.h"
#include "cli/cli.h"
#include "cli/version.h"
#include "engine/engine.h"
#include "host/probe.h"

struct doctor_arguments {
    bool json;
};

const struct option_spec doctor_options[] = {
    {.name = "json",
     .kind = OPTION_FLAG,
     .offset = offsetof(struct doctor_arguments, json),
     .help = "print one JSON document instead of a table"},
    {0},
};

/* In the order in which --engine auto tries them. */
static const struct {
    const struct engine_ops *ops;
    const char *device; /* what it needs, or NULL */
    const char *id, *title, *works, *why, *fix;
} engines[] = {
    {
        .ops = &engine_kvm,
        .device = "/dev/kvm",
        .id = "engine_kvm",
        .title = "KVM engine",
        .works = "/dev/kvm is there, and a guest really runs on it at speed",
        .why = "guests run in the software engine",
        .fix = "nothing has to be done; for KVM's speed use a host with hardware virtualization (or nested "
               "virtualization) and join the group that owns /dev/kvm",
    },
    {
        .ops = &engine_soft,
        .id = "engine_soft",
        .title = "software engine",
        .works = "translates guests' code, needs no /dev/kvm",
        .why = "without it and without KVM no guest can run",
        .fix = "see the lines above that say \"missing\"",
    },
};
#define N_ENGINES (sizeof(engines) / sizeof(engines[0]))

/* Returns the engine that --engine auto would take, or NULL. */
static const struct engine_ops *probe_engines(struct probe_result *results)
{
    const struct engine_ops *best = NULL;

    for (size_t i = 0; i < N_ENGINES; i++) {
        struct probe_result *r = &results[i];
        *r = (struct probe_result){.id = engines[i].id, .title = engines[i].title};
        if (engines[i].ops->probe(r->found, sizeof(r->found))) {
            snprintf(r->found, sizeof(r->found), "%s", engines[i].works);
            best = best ? best : engines[i].ops;
            continue;
        }
        /* A /dev/kvm that is there and does not serve is worth another word than none. */
        r->level = engines[i].device && access(engines[i].device, F_OK) == 0 ? PROBE_LIMITED : PROBE_MISSING;
        snprintf(r->why, sizeof(r->why), "%s", engines[i].why);
        snprintf(r->fix, sizeof(r->fix), "%s", engines[i].fix);
    }
    return best;
}

static const char *level_name(enum probe_level level)
{
    static const char *const names[] = {"ok", "limited", "missing"};

    return names[level];
}

static void print_table(const struct probe_result *results, size_t n, const struct engine_ops *best)
{
    for (size_t i = 0; i < n; i++) {
        const struct probe_result *r = &results[i];
        printf("%-8s %-20s %s\n", r->level == PROBE_OK ? "OK" : level_name(r->level), r->title, r->found);
        if (r->level != PROBE_OK)
            printf("%8s %-20s why: %s\n%8s %-20s do:  %s\n", "", "", r->why, "", "", r->fix);
    }
    if (best)
        printf("\nVirtual machines can run here: --engine auto takes \"%s\".\n", best->name);
    else
        printf("\nVirtual machines cannot run here: no engine works on this host.\n");
}

static void print_json_string(const char *text)
{
    putchar('"');
    for (; *text; text++) {
        unsigned char c = (unsigned char)*text;
        if (c == '"' || c == '\\')
            printf("\\%c", c);
        else if (c < 0x20)
            printf("\\u%04x", c);
        else
            putchar(c);
    }
    putchar('"');
}

static void print_json_pair(const char *name, const char *text)
{
    printf("\"%s\": ", name);
    print_json_string(text);
}

static void print_json(const struct probe_result *results, size_t n, const struct engine_ops *best)
{
    printf("{\"schema_version\": 1, ");
    print_json_pair("version", GUISE_VERSION);
    printf(", \"can_run\": %s, \"engine\": ", best ? "true" : "false");
    if (best)
        print_json_string(best->name);
    else
        fputs("null", stdout);
    fputs(", \"checks\": [", stdout);
    for (size_t i = 0; i < n; i++) {
        const struct probe_result *r = &results[i];
        printf("%s\n  {", i ? "," : "");
        print_json_pair("id", r->id);
        printf(", \"required\": %s, ", r->required ? "true" : "false");
        print_json_pair("level", level_name(r->level));
        fputs(", ", stdout);
        print_json_pair("found", r->found);
        fputs(", ", stdout);
        print_json_pair("why", r->why);
        fputs(", ", stdout);
        print_json_pair("fix", r->fix);
        putchar('}');
    }
    puts("\n]}");
}

int doctor_main(const struct command *self, int argc, char **argv)
{
    struct doctor_arguments a = {0};
    struct probe_result results[PROBE_MAX + N_ENGINES];
    int status;

    if (cli_parse(self, argc, argv, &a, 0, &status) < 0)
        return status;
    size_t n = host_probe(results);
    const struct engine_ops *best = probe_engines(results + n);
    (a.json ? print_json : print_table)(results, n + N_ENGINES, best);
    if (cli_flush() != STATUS_OK)
        return STATUS_FAILED;
    return best ? STATUS_OK : STATUS_UNAVAILABLE;
}
