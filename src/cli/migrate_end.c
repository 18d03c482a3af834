/* The end of a migration: the source gives the machine up, the destination is told to run, and what was cut off is
 * resolved. */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/error.h"
#include "base/log.h"
#include "cli/migrate_int.h"

#define ASK_AGAIN_MS 500
#define ASK_FOR_MS 30000

/* The source's process has died, which only now can be seen: what it would have written down we do, as long as
 * nobody has started it again. */
static int give_up_for_it(struct migrate *m, char *err, size_t n)
{
    struct migration_record record;

    if (registry_lock(&m->registry, m->record.name, &m->lock, err, n))
        return -EBUSY;
    int failed = migration_record_read(&m->registry, m->record.name, &record, err, n);
    int fd = failed ? failed : migration_record_open(&m->registry, m->record.name, err, n);
    if (fd >= 0 && strcmp(record.id, m->id) == 0 && !record.destination) {
        failed = migration_decide(fd, true);
        if (failed)
            error_sys(err, n, failed, "it cannot be written down that %s is given up", m->record.name);
    } else {
        failed = fd < 0 ? fd : error_set(err, n, -EBUSY, "%s has been started again", m->record.name);
    }
    if (fd >= 0)
        close(fd);
    if (failed) {
        close(m->lock);
        m->lock = -1;
        return failed;
    }
    client_close(&m->source);
    log_say("%s has died at the last moment: the destination has all of it, and goes on", m->record.name);
    return 0;
}

int migrate_give_up(struct migrate *m, char *err, size_t n)
{
    json_t *status = NULL;
    int failed = migrate_ask(m, "give-up", &status, err, n);

    if (failed == -ECONNRESET && m->lacking)
        return migrate_lost(m, false, err, n);
    if (failed == -ECONNRESET)
        return give_up_for_it(m, err, n);
    if (!failed) {
        json_decref(m->status);
        m->status = status;
    }
    return failed;
}

int migrate_finish(struct migrate *m, char *err, size_t n)
{
    char none[1];
    int failed = 0;

    if (m->lock < 0) {
        migrate_look(m, none, sizeof none);
        if (!m->lacking)
            m->downtime_us = migrate_said(m, "stopped_us");
        migrate_ask(m, "finish", NULL, none, sizeof none);
        process_wait(&m->registry, m->record.name, MIGRATE_END_MS);
        failed = registry_lock(&m->registry, m->record.name, &m->lock, err, n);
    }
    if (!failed) {
        failed = registry_remove(&m->registry, m->record.name, m->lock, err, n);
        m->lock = -1;
    }
    return failed;
}

/* It never will run there. */
int migrate_take_back(struct migrate *m, char *err, size_t n)
{
    int failed = m->lock < 0 ? migrate_ask(m, "take-back", NULL, err, n) : 0;

    if (!failed)
        failed = migration_record_remove(&m->registry, m->record.name, err, n);
    if (m->lock >= 0)
        close(m->lock);
    if (!failed && m->lock >= 0)
        error_set(err, n, 0,
                  "%s runs nowhere: the destination does not have it, and its process has died here; `guise "
                  "start %s` boots it from its disk",
                  m->record.name, m->record.name);
    else if (!failed)
        error_set(err, n, 0, "%s stays here, and runs: the destination does not have it", m->record.name);
    m->lock = -1;
    return failed ? failed : -EIO;
}

/* What has become of it there. */
static const struct {
    const char *word;
    enum fate { RUNS, COMPLETE, LACKING, ARRIVING, DIED, UNKNOWN } fate;
} fates[] = {
    {"running", RUNS},      {"complete", COMPLETE}, {"lacking", LACKING}, /* complete, but for some of its memory */
    {"arriving", ARRIVING},                                               /* it runs without that */
    {"died", DIED},                                                       /* and has died before it had that */
    {"unknown", UNKNOWN},                                                 /* it never will run */
};

/* Asks for that: an enum fate, or -errno with a sentence. */
static int question(struct migrate *m, char *err, size_t n)
{
    json_t *answer = NULL;
    int fate = -EPROTO;

    peer_close(&m->peer);
    int failed = peer_connect(&m->peer, &m->to, err, n);
    if (failed)
        return failed;
    failed = peer_send(
        &m->peer, json_pack("{s:s, s:i, s:s}", "guise", "migration-question", "version", MIGRATE_VERSION, "id", m->id));
    if (!failed)
        failed = peer_receive(&m->peer, PEER_PATIENCE_MS, &answer);
    if (failed)
        return error_sys(err, n, failed, "the destination does not answer");
    const char *state = json_string_value(json_object_get(answer, "state"));
    for (size_t i = 0; i < sizeof fates / sizeof *fates; i++)
        if (state && strcmp(state, fates[i].word) == 0)
            fate = fates[i].fate;
    json_decref(answer);
    return fate < 0 ? error_set(err, n, fate, "the destination says something unknown") : fate;
}

static int go(struct migrate *m, char *err, size_t n)
{
    int failed = peer_send(&m->peer, json_pack("{s:b}", "go", 1));

    return failed ? error_sys(err, n, failed, "the destination does not answer")
                  : migrate_expect(m, PEER_PATIENCE_MS, "running", err, n);
}

static int died_there(const struct migrate *m, char *err, size_t n)
{
    return error_set(err, n, -EIO,
                     "%s has died at %s before all of its memory was there.  `guise migrate --here %s` lets it go on "
                     "here from the moment when it left, without what it has done since; or there, with what is on "
                     "its disk and without its memory",
                     m->record.name, m->to.text, m->record.name);
}

/* *done: that is the end of it; else it has to be asked for again. */
static int go_by(struct migrate *m, int fate, bool *done, char *err, size_t n)
{
    int failed = fate == COMPLETE ? go(m, err, n) : 0;

    *done = !failed;
    if (failed)
        return failed;
    if (fate == RUNS || fate == COMPLETE)
        return migrate_finish(m, err, n);
    if (fate == UNKNOWN)
        return migrate_take_back(m, err, n);
    if (m->lock >= 0)
        return migrate_lost(m, fate != LACKING, err, n);
    if (fate == DIED)
        return died_there(m, err, n);
    failed = migrate_reconnect(m, fate == ARRIVING, err, n);
    *done = failed != -EAGAIN;
    return failed;
}

/* It is given up: from here on only the destination's word counts, which is asked for until it comes. */
int migrate_resolve(struct migrate *m, int for_ms, char *err, size_t n)
{
    int result;
    bool done = false;

    for (int waited = 0;; waited += ASK_AGAIN_MS) {
        result = question(m, err, n);
        if (result >= 0)
            result = go_by(m, result, &done, err, n);
        if (done)
            return result;
        if (waited >= for_ms)
            break;
        usleep(ASK_AGAIN_MS * 1000);
    }
    char why[ERROR_SIZE];
    snprintf(why, sizeof why, "%s", err);
    if (m->lacking)
        return error_set(err, n, result,
                         "part of the memory of %s is still here, and %s does not take it: %s.  It waits for that "
                         "where it needs it, and `guise migrate --resume %s` goes on",
                         m->record.name, m->to.text, why, m->record.name);
    return error_set(err, n, result,
                     "%s stands still here, and whether it runs at %s is not known: %s.  `guise migrate --resume %s` "
                     "asks again",
                     m->record.name, m->to.text, why, m->record.name);
}

int migrate_tell(struct migrate *m, char *err, size_t n)
{
    int failed = peer_send(&m->peer, json_pack("{s:b}", "go", 1));

    receive_stop_at("told");
    if (!failed)
        failed = migrate_expect(m, PEER_PATIENCE_MS, "running", err, n);
    if (!failed) {
        receive_stop_at("arriving");
        failed = m->lacking ? migrate_arrive(m, err, n) : migrate_finish(m, err, n);
        if (failed != -EAGAIN)
            return failed;
    }
    progress_stage(&m->progress, "asking", "the destination does not answer");
    return migrate_resolve(m, ASK_FOR_MS, err, n);
}
