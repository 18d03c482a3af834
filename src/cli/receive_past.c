/*
 * Machines that came here before: one that is not to run is removed, and whoever asks what has become of one is told.
 *
 * What is said counts for ever: the source runs it again after "unknown".  So that is said only of one that cannot be
 * told to run any more, by anybody.
 */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/error.h"
#include "cli/receive_int.h"

#define END_MS 60000

/* Is the machine of that name the one of this migration?  By now there may be another. */
static bool is_of(const struct registry *r, const char *name, const char *id)
{
    struct migration_record m;
    char none[1];

    return !migration_record_read(r, name, &m, none, sizeof none) && m.destination && !m.decided &&
           strcmp(m.id, id) == 0;
}

int receive_remove(const struct registry *r, const char *name, const char *id)
{
    struct vm_run run;
    char none[1];
    int lock = -1, failed = is_of(r, name, id) ? 0 : -ENOENT;

    if (!failed) {
        registry_run(r, name, &run);
        if (run.held && run.pid > 0) {
            kill(run.pid, SIGKILL);
            process_wait(r, name, END_MS);
        }
        failed = registry_lock(r, name, &lock, none, sizeof none);
    }
    if (!failed && !is_of(r, name, id)) { /* it was told to run at the last moment */
        close(lock);
        return -ENOENT;
    }
    if (!failed)
        failed = registry_remove(r, name, lock, none, sizeof none);
    if (!failed || failed == -ENOENT)
        migration_record_forget(r, id);
    return failed;
}

/* What its process says: complete, or lacking some memory, or running, or something else; empty: nothing. */
static void ask_state(struct client *c, char state[16])
{
    json_t *status = NULL;
    char none[1];

    if (client_call(c, "incoming", json_pack("{s:s}", "action", "status"), &status, none, sizeof none))
        status = NULL;
    snprintf(state, 16, "%s", text_of(status, "state"));
    if (strcmp(state, "complete") == 0 && number_of(status, "left_bytes"))
        snprintf(state, 16, "lacking");
    json_decref(status);
}

/* It runs, and some of its memory is still at the source; or did when it died.  Its event loop may be waiting for
 * that, so that it is not asked itself. */
static bool runs_partly(const struct registry *r, const struct migration_record *m, char state[16])
{
    struct vm_run run;

    if (!m->partly)
        return false;
    registry_run(r, m->name, &run);
    snprintf(state, 16, receive_lives(&run) ? "arriving" : "died");
    return true;
}

static bool has_run(const struct registry *r, const char *id)
{
    struct migration_record m;
    char none[1];

    return !migration_record_find(r, id, &m, none, sizeof none) && m.decided;
}

/* What is to be said: running; complete or lacking, with its process in v->client; arriving; died; or unknown, and then
 * it never will run here. */
static int find_state(struct receiving *v, const char *id, char state[16], char *err, size_t n)
{
    const struct registry *r = &v->r->registry;
    struct migration_record m;
    int failed = migration_is_id(id) ? migration_record_find(r, id, &m, err, n) : -ENOENT;

    snprintf(state, 16, "unknown");
    if (failed)
        return failed == -ENOENT ? 0 : failed;
    memcpy(v->record.name, m.name, sizeof m.name);
    memcpy(v->id, m.id, sizeof m.id);
    if (runs_partly(r, &m, state))
        return 0;
    if (!m.decided && is_of(r, m.name, id) && !client_open(&v->client, r, m.name, err, n)) {
        ask_state(&v->client, state);
        if (strcmp(state, "complete") == 0 || strcmp(state, "lacking") == 0 || strcmp(state, "running") == 0)
            return 0;
    }
    if (!m.decided && !has_run(r, id))
        failed = receive_remove(r, m.name, id);
    snprintf(state, 16, has_run(r, id) ? "running" : "unknown");
    return failed && failed != -ENOENT
               ? error_set(err, n, failed, "%s can be neither run nor removed at the destination", m.name)
               : 0;
}

int receive_resolve(struct receiver *r, struct peer *p, const json_t *question, char name[NAME_SIZE], char *err,
                    size_t n)
{
    struct receiving v = {.r = r, .peer = p, .lock = -1, .file = -1, .client.fd = -1};
    char state[16];

    for (unsigned i = 0; i < MIGRATION_ALL_MAX; i++)
        v.streams[i] = -1;
    int failed = find_state(&v, text_of(question, "id"), state, err, n);
    if (!failed)
        failed = peer_send(p, json_pack("{s:s}", "state", state));
    memcpy(name, v.record.name, NAME_SIZE);
    v.lacking = strcmp(state, "lacking") == 0;
    if (!failed && strcmp(state, "complete") == 0) {
        failed = receive_wait_for_word(&v, err, n);
    } else if (!failed && (v.lacking || strcmp(state, "arriving") == 0 || strcmp(state, "died") == 0)) {
        failed = receive_again(&v, !v.lacking, err, n);
    } else if (!failed) {
        failed = -EAGAIN; /* that was all */
    }
    receive_clean_up(&v, false);
    return failed;
}
