/* What `guise migrate` shows: how far it is, on the terminal or as lines of JSON, and what came of it. */
#include <stdio.h>
#include <string.h>

#include "base/log.h"
#include "cli/migrate_int.h"
#include "cli/table.h"
#include "host/loop.h"

#define SCHEMA 1
#define LINE_NS 1000000000ull

bool migrate_is(const struct migrate *m, const char *state)
{
    const char *now = json_string_value(json_object_get(m->status, "state"));

    return now && strcmp(now, state) == 0;
}

static void print_line(json_t *object)
{
    json_dumpf(object, stdout, JSON_COMPACT);
    putchar('\n');
    fflush(stdout);
    json_decref(object);
}

/* A line when something begins, and now and then. */
static void show_json(struct migrate *m)
{
    static const char *const keys[] = {
        "round",        "sent_bytes",       "left_bytes", "bytes_per_second", "dirty_bytes_per_second",
        "remaining_ms", "throttle_percent", "elapsed_ms"};
    const char *state = m->lacking ? "arriving" : migrate_is(m, "sending") ? "sending" : "stopped";
    uint64_t now = clock_ns(), round = migrate_said(m, "round");

    if (m->shown_state == state && m->shown_round == round && now - m->shown_ns < LINE_NS)
        return;
    m->shown_state = state;
    m->shown_round = round;
    m->shown_ns = now;
    json_t *line = json_pack("{s:s}", "state", state);
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++)
        json_object_set(line, keys[i], json_object_get(m->status, keys[i]));
    print_line(line);
}

void migrate_show(struct migrate *m)
{
    uint64_t left = migrate_said(m, "left_bytes"), throttle = migrate_said(m, "throttle_percent");
    const json_t *remaining = json_object_get(m->status, "remaining_ms");
    char text[160], size[16], pace[16], when[32] = "", slowed[48] = "";

    if (m->a->json && !m->a->quiet)
        show_json(m);
    table_size(left, size, sizeof size);
    table_size(migrate_said(m, "bytes_per_second"), pace, sizeof pace);
    if (throttle)
        snprintf(slowed, sizeof slowed, ", the guest slowed down by %u %%", (unsigned)throttle);
    if (json_is_integer(remaining))
        snprintf(when, sizeof when, ": %.1f s", (double)json_integer_value(remaining) / 1000);
    if (m->lacking)
        snprintf(text, sizeof text, "it runs there, %s left, %s/s%s", size, pace, when);
    else
        snprintf(text, sizeof text, "round %u, %s left, %s/s%s%s", (unsigned)migrate_said(m, "round"), size, pace, when,
                 slowed);
    progress_stage(&m->progress, "memory", text);
}

void migrate_report(const struct migrate *m)
{
    uint64_t elapsed_ms = (clock_ns() - m->progress.began_ns) / 1000000;
    uint64_t rounds = migrate_said(m, "round"), sent = migrate_said(m, "sent_bytes");
    json_t *all = json_pack("{s:i, s:s, s:s, s:s, s:I, s:I, s:I, s:I, s:I, s:b, s:s}", "schema_version", SCHEMA,
                            "state", "moved", "name", m->record.name, "to", m->to.text, "elapsed_ms",
                            (json_int_t)elapsed_ms, "downtime_us", (json_int_t)m->downtime_us, "rounds",
                            (json_int_t)rounds, "sent_bytes", (json_int_t)sent, "throttle_percent",
                            (json_int_t)migrate_said(m, "throttle_percent"), "postcopy", (int)m->lacking, "storage",
                            migrate_storage_how(m));

    if (m->a->json) {
        print_line(json_incref(all));
    } else if (m->a->verbose) {
        char size[16];
        table_size(sent, size, sizeof size);
        log_say("%s is at %s after %.2f s: %s in %u rounds%s%s; the guest stood still for %.1f ms", m->record.name,
                m->to.text, (double)elapsed_ms / 1000, size, (unsigned)rounds, m->lacking ? ", and by post-copy" : "",
                strcmp(migrate_storage_how(m), "shared") == 0 ? ", its disks stayed where they are" : "",
                (double)m->downtime_us / 1000);
    }
    json_decref(all);
}
