/*
 * Post-copy, seen from who receives: the machine runs here, and its memory follows, from process to process.  Whether
 * all of it is there stands in the file (vm/migration_record.h), which is asked rather than the process: its event loop
 * may be waiting for that memory.
 */
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/error.h"
#include "base/log.h"
#include "cli/receive_int.h"

#define LOOK_MS 20
#define END_MS 20000

enum whereabouts { MISSING, ARRIVED, DIED };

static enum whereabouts look(const struct receiving *v)
{
    const struct registry *r = &v->r->registry;
    struct migration_record m;
    struct vm_run run;
    char none[1];

    registry_run(r, v->record.name, &run); /* before the record, which it may write at its end */
    if (!migration_record_find(r, v->id, &m, none, sizeof none) && m.decided && !m.partly)
        return ARRIVED;
    return receive_lives(&run) ? MISSING : DIED;
}

/* What the source says meanwhile; there is something to be read. */
static int hear(struct receiving *v, char *err, size_t n)
{
    json_t *word = NULL;
    int failed = peer_receive(v->peer, PEER_PATIENCE_MS, &word);
    bool lost = json_is_true(json_object_get(word, "lost"));

    json_decref(word);
    if (lost)
        return receive_lost(v, true, err, n);
    log_say(
        "%s runs, and waits where it needs the memory that is still at its source, which %s: `guise migrate --resume` "
        "there goes on",
        v->record.name, failed ? "was cut off" : "says something unknown");
    return -EAGAIN;
}

int receive_arrive(struct receiving *v, char *err, size_t n)
{
    enum whereabouts now;
    char none[1];

    receive_stop_at("arrives");
    while ((now = look(v)) == MISSING)
        if (poll(&(struct pollfd){.fd = v->peer->fd, .events = POLLIN}, 1, LOOK_MS) > 0)
            return hear(v, err, n);
    if (now == DIED) {
        peer_send(v->peer, json_pack("{s:b}", "died", 1));
        return error_set(err, n, -EIO, "%s has died before all of its memory was here", v->record.name);
    }
    migration_record_remove(&v->r->registry, v->record.name, none, sizeof none);
    peer_send(v->peer, json_pack("{s:b}", "arrived", 1));
    return 0;
}

/* What there is of it, its disk, is here: it may be started. */
static int keep_disk(const struct receiving *v, char *err, size_t n)
{
    const struct registry *r = &v->r->registry;
    int lock, failed = registry_lock(r, v->record.name, &lock, err, n);

    if (failed)
        return failed;
    int fd = migration_record_open(r, v->record.name, err, n);
    failed = fd < 0 ? fd : migration_decide(fd, true);
    if (fd >= 0)
        close(fd);
    close(lock);
    return failed;
}

int receive_lost(struct receiving *v, bool runs, char *err, size_t n)
{
    const struct registry *r = &v->r->registry;
    int failed;

    if (!runs)
        failed = receive_remove(r, v->record.name, v->id);
    else if (look(v) == DIED)
        failed = keep_disk(v, err, n);
    else if (!(failed = arriving_tell(r, v->record.name, NULL, 0, err, n)))
        process_wait(r, v->record.name, END_MS);
    if (failed)
        return failed;
    peer_send(v->peer, json_pack("{s:b}", "ended", 1));
    if (!runs)
        return error_set(err, n, -EIO, "%s was not received: its source died while it had part of the memory",
                         v->record.name);
    return error_set(
        err, n, -EIO,
        "%s has ended: its source died before all of its memory was here, and what was not is lost; `guise "
        "start %s` boots it from its disk",
        v->record.name, v->record.name);
}

static int take_streams(struct receiving *v, const json_t *word, char *err, size_t n)
{
    v->n_streams = (unsigned)number_of(word, "streams");
    v->n_extra = MIGRATION_EXTRA;
    if (!v->n_streams || v->n_streams > MIGRATION_STREAMS_MAX)
        return error_set(err, n, -EBADMSG, "what the source says about its streams makes no sense");
    int failed = receive_streams(v, err, n);
    if (!failed)
        failed = arriving_tell(&v->r->registry, v->record.name, v->streams, v->n_streams + v->n_extra, err, n);
    receive_close_streams(v);
    return failed ? failed : peer_send(v->peer, json_pack("{s:b}", "receiving", 1));
}

int receive_again(struct receiving *v, bool runs, char *err, size_t n)
{
    json_t *word = NULL;
    int failed = peer_receive(v->peer, PEER_PATIENCE_MS, &word);
    bool lost = !failed && json_is_true(json_object_get(word, "lost"));

    if (failed)
        error_set(err, n, failed, "the source asked for %s, and has gone", v->record.name);
    else if (!lost)
        failed = take_streams(v, word, err, n);
    json_decref(word);
    if (lost)
        return receive_lost(v, runs, err, n);
    if (failed)
        return failed;
    return runs ? receive_arrive(v, err, n) : receive_wait_for_word(v, err, n);
}
