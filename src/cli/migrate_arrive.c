/*
 * Post-copy, seen from the source's command: the machine runs at the destination, and its memory follows, from process
 * to process.  The command waits for the word that all of it is there; makes new connections when they are cut; and
 * says so when the source's process dies, for nobody else can tell that from a cut network.
 */
#include <errno.h>
#include <poll.h>
#include <string.h>
#include <unistd.h>

#include "base/error.h"
#include "cli/migrate_int.h"
#include "vm/migration.h"

#define LAST_WORD_MS 1000 /* streams end when all is there, too: then that is said within this time */

/* What the destination says, if it does so within timeout_ms.  0: it is there; 1: nothing; -EAGAIN: the connection was
 * cut; another -errno with a sentence. */
static int hear(struct migrate *m, int timeout_ms, char *err, size_t n)
{
    json_t *word = NULL;

    if (poll(&(struct pollfd){.fd = m->peer.fd, .events = POLLIN}, 1, timeout_ms) <= 0)
        return 1;
    int failed = peer_receive(&m->peer, PEER_PATIENCE_MS, &word);
    bool arrived = json_is_true(json_object_get(word, "arrived"));
    json_decref(word);
    if (arrived)
        return 0;
    return error_set(err, n, -EAGAIN, failed ? "the destination does not answer" : "it has died there");
}

int migrate_arrive(struct migrate *m, char *err, size_t n)
{
    char none[1];

    m->lacking = true;
    progress_stage(&m->progress, "memory", NULL);
    if (!m->downtime_us && !migrate_look(m, none, sizeof none))
        m->downtime_us = migrate_said(m, "stopped_us");
    for (;;) {
        int heard = hear(m, MIGRATE_LOOK_MS, err, n);
        if (heard <= 0)
            return heard ? heard : migrate_finish(m, err, n);
        int failed = migrate_look(m, err, n);
        if (failed == -ECONNRESET)
            return migrate_lost(m, true, err, n);
        if (failed)
            return failed;
        if (json_is_true(json_object_get(m->status, "cut"))) {
            heard = hear(m, LAST_WORD_MS, err, n);
            return heard == 1   ? error_set(err, n, -EAGAIN, "the connections were cut")
                   : heard == 0 ? migrate_finish(m, err, n)
                                : heard;
        }
        migrate_show(m);
    }
}

static int make_streams(struct migrate *m, char *err, size_t n)
{
    int fds[MIGRATION_ALL_MAX];
    unsigned all = (unsigned)m->a->streams + MIGRATION_EXTRA;

    memset(fds, 0xff, sizeof fds);
    int failed = peer_send(&m->peer, json_pack("{s:i}", "streams", (int)m->a->streams));
    if (!failed)
        failed = migrate_open_streams(m, true, fds, err, n);
    if (!failed)
        failed = client_call_fds(&m->source, "migrate", json_pack("{s:s, s:s}", "action", "reconnect", "id", m->id),
                                 fds, all, NULL, err, n);
    for (unsigned i = 0; i < all; i++)
        if (fds[i] >= 0)
            close(fds[i]);
    return failed;
}

int migrate_reconnect(struct migrate *m, bool runs, char *err, size_t n)
{
    int failed = make_streams(m, err, n);

    if (failed == -ECONNRESET && m->source.fd >= 0 && migrate_look(m, err, n) == -ECONNRESET)
        return migrate_lost(m, runs, err, n);
    if (!failed && !runs && !(failed = peer_send(&m->peer, json_pack("{s:b}", "go", 1))))
        failed = migrate_expect(m, PEER_PATIENCE_MS, "running", err, n);
    return failed ? -EAGAIN : migrate_arrive(m, err, n);
}

/* What is left of it is the destination's, if it has run there: its disk there is the newer one. */
int migrate_lost(struct migrate *m, bool runs, char *err, size_t n)
{
    char none[1];
    const char *name = m->record.name;
    int failed = peer_send(&m->peer, json_pack("{s:b}", "lost", 1));

    if (!failed)
        failed = migrate_expect(m, PEER_PATIENCE_MS, "ended", none, sizeof none);
    if (failed)
        return error_set(err, n, -EIO,
                         "the process of %s has died here before all of its memory was at %s, which could not be told: "
                         "`guise migrate --resume %s` tells it",
                         name, m->to.text, name);
    if (m->lock < 0 && (failed = registry_lock(&m->registry, name, &m->lock, err, n)))
        return failed;
    if (!runs) {
        migration_record_remove(&m->registry, name, none, sizeof none);
        return error_set(err, n, -EIO,
                         "%s runs nowhere: its process has died here before all of its memory was at %s; `guise start "
                         "%s` boots it from its disk",
                         name, m->to.text, name);
    }
    failed = registry_remove(&m->registry, name, m->lock, err, n);
    m->lock = -1;
    return failed ? failed
                  : error_set(err, n, -EIO,
                              "%s has ended: its process has died here before all of its memory was at %s; `guise "
                              "start` there boots it from its disk, which is there as a whole",
                              name, m->to.text);
}
