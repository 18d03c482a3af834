/*
 * `guise migrate`: a virtual machine moves to another process while it runs.  docs/MIGRATION.md says what happens when,
 * and what becomes of it when somebody dies.
 *
 *      asked -> accepted -> sent, in rounds -> complete there -> [given up here] -> told to run -> runs there ->
 * removed
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/error.h"
#include "base/log.h"
#include "cli/interrupt.h"
#include "cli/migrate_int.h"
#include "cli/tls.h"
#include "host/loop.h"
#include "vm/migration.h"
#include "vm/snapshot_store.h"

#define DOWNTIME_MS 100

/* clang-format off */
const struct option_spec migrate_options[] = {
    {.name = "downtime", .kind = OPTION_NUMBER, .offset = offsetof(struct migrate_arguments, downtime_ms), .value = "MS",
     .min = 1, .max = 60000, .help = "the guest may stand still so long in the end (100 unless told)"},
    {.name = "bandwidth", .kind = OPTION_SIZE, .offset = offsetof(struct migrate_arguments, bandwidth), .value = "SIZE",
     .min = 1 << 16, .max = 1ull << 40, .examples = "10M 100M 1G", .help = "send so much a second at most"},
    {.name = "streams", .kind = OPTION_NUMBER, .offset = offsetof(struct migrate_arguments, streams), .value = "N",
     .min = 1, .max = MIGRATION_STREAMS_MAX, .help = "send by so many connections (1 unless told)"},
    {.name = "no-throttle", .kind = OPTION_FLAG, .offset = offsetof(struct migrate_arguments, no_throttle),
     .help = "do not slow a guest down that writes faster than can be sent"},
    {.name = "postcopy", .kind = OPTION_FLAG, .offset = offsetof(struct migrate_arguments, postcopy),
     .help = "when that is so go on there before all of memory is there; the rest comes when it is needed"},
    {.name = "postcopy-after", .kind = OPTION_NUMBER, .offset = offsetof(struct migrate_arguments, postcopy_after_s),
     .value = "SECONDS", .min = 0, .max = 86400,
     .help = "the same, and after so long in any case; 0: at once, memory is not sent before"},
    {.name = "storage", .kind = OPTION_WORD, .offset = offsetof(struct migrate_arguments, storage), .value = "HOW",
     .words = migrate_storage_words,
     .help = "what becomes of its disks: shared, they stay where they are; copy; auto (unless told), what can be"},
    {.name = "folders", .kind = OPTION_FLAG, .offset = offsetof(struct migrate_arguments, folders),
     .help = "its shared folders are at the destination, too, at the same paths (on this host they are)"},
    {.name = "resume", .kind = OPTION_FLAG, .offset = offsetof(struct migrate_arguments, resume),
     .help = "bring one to its end that was cut off: ask the destination, and go by what it says"},
    {.name = "here", .kind = OPTION_FLAG, .offset = offsetof(struct migrate_arguments, here),
     .help = "the same when the other side is lost: it is to run here, and you vouch that it never will there"},
    {.name = "json", .kind = OPTION_FLAG, .offset = offsetof(struct migrate_arguments, json),
     .help = "print JSON, one object a line: how far it is, in the end what came of it"},
    {.name = "quiet", .letter = 'q', .kind = OPTION_FLAG, .offset = offsetof(struct migrate_arguments, quiet),
     .help = "show no progress"},
    {.name = "verbose", .letter = 'v', .kind = OPTION_FLAG, .offset = offsetof(struct migrate_arguments, verbose),
     .help = "say how long it took, and how long the guest stood still"},
    {0},
};
/* clang-format on */

/* --- the other side ---------------------------------------------------------------------------------------------- */

static void not_trusted(char *err, size_t n)
{
    char fingerprint[TLS_FINGERPRINT_SIZE], none[1];

    if (!tls_fingerprint(fingerprint, none, sizeof none))
        error_set(err, n, 0, "the destination does not trust this host: `guise receive trust %s` there changes that",
                  fingerprint);
}

/* An answer, of which `key` is expected. */
int migrate_expect(struct migrate *m, int timeout_ms, const char *key, char *err, size_t n)
{
    json_t *answer = NULL;
    int failed = peer_receive(&m->peer, timeout_ms, &answer);
    const char *refused = json_string_value(json_object_get(answer, "refused"));

    json_decref(m->answer);
    m->answer = answer;
    if (failed == -EACCES)
        not_trusted(err, n);
    else if (failed)
        error_sys(err, n, failed, "the destination does not answer");
    else if (refused)
        failed = error_set(err, n, json_is_true(json_object_get(answer, "unavailable")) ? -ENOTSUP : -ECONNREFUSED,
                           "%s stays here: %s", m->record.name, refused);
    else if (!json_object_get(answer, key))
        failed = error_set(err, n, -EPROTO, "the destination says something unknown: is it of another version?");
    return failed;
}

/* --- what the source says ---------------------------------------------------------------------------------------- */

int migrate_ask(struct migrate *m, const char *action, json_t **result, char *err, size_t n)
{
    return client_call(&m->source, "migrate",
                       json_pack("{s:s, s:s, s:b}", "action", action, "id", m->id, "vouched", (int)m->vouched), result,
                       err, n);
}

uint64_t migrate_said(const struct migrate *m, const char *key)
{
    return (uint64_t)json_integer_value(json_object_get(m->status, key));
}

int migrate_look(struct migrate *m, char *err, size_t n)
{
    json_decref(m->status);
    m->status = NULL;
    return migrate_ask(m, "status", &m->status, err, n);
}

/* --- before anything is decided ---------------------------------------------------------------------------------- */

static int refuse(const struct migrate *m, char *err, size_t n)
{
    struct snapshot_info *list = NULL;
    const char *name = m->record.name;

    if (m->record.ephemeral)
        return error_set(err, n, -EBUSY, "%s goes away when the command ends that it was made for: it stays here",
                         name);
    int snapshots = snapshot_list(&m->registry, name, &list, err, n);
    free(list);
    if (snapshots > 0)
        return error_set(err, n, -EBUSY,
                         "%s has snapshots, which would stay behind: `guise snapshot rm` removes them, `export` keeps "
                         "them elsewhere",
                         name);
    return snapshots < 0 ? snapshots : 0;
}

static int make_id(struct migrate *m, char *err, size_t n)
{
    uint8_t random[16];

    if (getrandom(random, sizeof random, 0) != sizeof random)
        return error_sys(err, n, -errno, "there is no randomness for a number");
    for (unsigned i = 0; i < sizeof random; i++)
        snprintf(m->id + 2 * i, 3, "%02x", random[i]);
    return 0;
}

/* Is it welcome?  Everything that can be known is known before a byte of it is sent. */
static int ask_destination(struct migrate *m, char *err, size_t n)
{
    json_t *about = NULL, *hello;
    int failed = migrate_storage_describe(m, &about, err, n);
    char *record = failed ? NULL : record_format(&m->record);

    if (failed)
        return failed;
    hello = json_pack("{s:s, s:i, s:s, s:i, s:b, s:o?}", "guise", "migration", "version",
                      m->needs_storage ? MIGRATE_STORAGE_VERSION
                      : m->a->postcopy ? MIGRATE_POSTCOPY_VERSION
                                       : MIGRATE_VERSION,
                      "id", m->id, "streams", (int)m->a->streams, "postcopy", (int)m->a->postcopy, "machine",
                      record ? json_loads(record, 0, NULL) : NULL);
    if (hello)
        json_object_update(hello, about);
    free(record);
    json_decref(about);
    failed = peer_connect(&m->peer, &m->to, err, n);
    if (failed)
        json_decref(hello);
    else
        peer_send(&m->peer, hello); /* if it cannot be sent, the answer says why */
    receive_stop_at("asked");
    if (!failed)
        failed = migrate_expect(m, 2 * MIGRATE_END_MS + PEER_PATIENCE_MS, "ready", err, n);
    if (!failed)
        m->own_stays = json_is_true(json_object_get(m->answer, "own_stays"));
    return failed;
}

int migrate_open_streams(struct migrate *m, bool extra, int streams[], char *err, size_t n)
{
    unsigned all = (unsigned)m->a->streams + (extra ? MIGRATION_EXTRA : 0);
    int failed = 0;

    for (unsigned i = 0; i < all && !failed; i++) {
        struct peer p;
        failed = peer_connect(&p, &m->to, err, n);
        if (!failed)
            failed = peer_send(
                &p, json_pack("{s:s, s:s, s:i}", "guise", "migration-stream", "id", m->id, "stream", (int)i));
        bool asks = extra && i == all - 1; /* by the last the destination talks */
        streams[i] = failed ? -1 : peer_stream(&p, !asks);
    }
    return failed ? failed : migrate_expect(m, PEER_PATIENCE_MS, "receiving", err, n);
}

/* *lease is what the source sees the end of when we die. */
static int begin(struct migrate *m, int *lease, char *err, size_t n)
{
    struct migration_record record = {.destination = false};
    int fds[2 + MIGRATION_ALL_MAX] = {-1, -1}, ends[2] = {-1, -1};
    unsigned n_fds = 2 + (unsigned)m->a->streams + (m->a->postcopy ? MIGRATION_EXTRA : 0);
    json_t *arguments = json_pack("{s:s, s:s, s:I, s:I, s:b, s:b, s:b}", "action", "begin", "id", m->id, "downtime_ms",
                                  (json_int_t)m->a->downtime_ms, "bandwidth", (json_int_t)m->a->bandwidth, "throttle",
                                  (int)!m->a->no_throttle, "compress", (int)(m->to.kind == PEER_TCP), "postcopy",
                                  (int)m->a->postcopy);

    json_object_set_new(arguments, "shared", json_boolean(m->shares));
    json_object_set_new(arguments, "folders", json_boolean(m->a->folders || m->receiver > 0));
    json_object_set_new(arguments, "own_stays", json_boolean(m->own_stays));
    if (m->a->postcopy_after_s != MIGRATE_NEVER)
        json_object_set_new(arguments, "postcopy_after_ms", json_integer((json_int_t)m->a->postcopy_after_s * 1000));
    memset(fds, 0xff, sizeof fds);
    memcpy(record.id, m->id, sizeof record.id);
    memcpy(record.name, m->record.name, sizeof record.name);
    memcpy(record.peer, m->to.text, sizeof record.peer);
    int failed = migrate_open_streams(m, m->a->postcopy, fds + 2, err, n);
    receive_stop_at("receiving");
    if (!failed && (fds[0] = migration_record_make(&m->registry, &record, err, n)) < 0)
        failed = fds[0];
    if (!failed && socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends))
        failed = error_sys(err, n, -errno, "no socket can be made");
    fds[1] = ends[1];
    if (!failed)
        failed = client_call_fds(&m->source, "migrate", json_incref(arguments), fds, n_fds, NULL, err, n);
    json_decref(arguments);
    if (!failed)
        failed = migrate_storage_same(m, err, n);
    for (size_t i = 0; i < sizeof fds / sizeof *fds; i++)
        if (fds[i] >= 0)
            close(fds[i]);
    *lease = ends[0];
    return failed;
}

static int take_complete(struct migrate *m, char *err, size_t n)
{
    int failed = migrate_expect(m, PEER_PATIENCE_MS, "complete", err, n);
    char none[1];

    if (!failed && !migrate_look(m, none, sizeof none))
        m->lacking = json_is_true(json_object_get(m->status, "postcopy"));
    return failed;
}

/* Until the destination has everything.  It is the first to know. */
static int follow(struct migrate *m, char *err, size_t n)
{
    for (;;) {
        if (poll(&(struct pollfd){.fd = m->peer.fd, .events = POLLIN}, 1, MIGRATE_LOOK_MS) > 0)
            return take_complete(m, err, n);
        int failed = interrupt_came() ? error_set(err, n, -EINTR, "interrupted: %s stays here", m->record.name)
                                      : migrate_look(m, err, n);
        if (failed)
            return failed;
        if (migrate_is(m, "ended"))
            return error_set(err, n, -EIO, "%s stays here: %s", m->record.name,
                             json_string_value(json_object_get(m->status, "reason")));
        migrate_show(m);
    }
}

/* Each would write its own record of where the migration stands.  A descriptor that holds others off, or -errno with a
 * sentence. */
static int move_alone(const struct migrate *m, char *err, size_t n)
{
    char path[PATH_MAX];
    int failed = registry_path(&m->registry, m->record.name, ".", path, err, n);

    if (failed)
        return failed;
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd >= 0 && flock(fd, LOCK_EX | LOCK_NB) == 0)
        return fd;
    failed = errno == EWOULDBLOCK ? error_set(err, n, -EBUSY, "another command is moving %s", m->record.name)
                                  : error_sys(err, n, -errno, "cannot lock %s", path);
    if (fd >= 0)
        close(fd);
    return failed;
}

/* --- the command ------------------------------------------------------------------------------------------------- */

static int move(struct migrate *m, char *err, size_t n)
{
    char none[1];
    int lease = -1, failed = refuse(m, err, n), alone = failed ? -1 : move_alone(m, err, n);

    failed = failed ? failed : alone < 0 ? alone : 0;

    if (!failed && m->to.kind == PEER_NAME)
        failed = migrate_receive_here(m, err, n);
    if (!failed)
        failed = make_id(m, err, n);
    progress_stage(&m->progress, "asking", m->to.text);
    if (!failed)
        failed = ask_destination(m, err, n);
    progress_stage(&m->progress, "memory", NULL);
    if (!failed)
        failed = begin(m, &lease, err, n);
    receive_stop_at("sending");
    interrupt_catch();
    if (!failed)
        failed = follow(m, err, n);
    receive_stop_at("complete");
    if (!failed)
        failed = migrate_give_up(m, err, n);
    if (failed) { /* it goes on here; when that is not sure the record stays, and --resume goes by it */
        if (!migrate_ask(m, "cancel", NULL, none, sizeof none))
            migration_record_remove(&m->registry, m->record.name, none, sizeof none);
    } else {
        receive_stop_at("given-up");
        failed = migrate_tell(m, err, n);
    }
    if (lease >= 0)
        close(lease);
    if (alone >= 0)
        close(alone);
    return failed;
}

/* A migration that was given up, and cut off. */
static int resume(struct migrate *m, char *err, size_t n)
{
    struct migration_record record;
    const char *name = m->record.name;
    int failed = migration_record_read(&m->registry, name, &record, err, n);

    if (failed == -ENOENT || (!failed && !record.destination && !record.decided))
        return error_set(err, n, -EBUSY, "%s is in no migration that was cut off", name);
    if (failed)
        return failed;
    if (record.destination)
        return error_set(err, n, -EBUSY,
                         "%s came here: `guise migrate --resume` is for where it came from; if that is lost, `guise "
                         "migrate --here %s` lets it run",
                         name, name);
    memcpy(m->id, record.id, sizeof m->id);
    failed = peer_parse(&m->to, record.peer, err, n);
    if (!failed && m->to.kind == PEER_NAME)
        failed = migrate_receive_here(m, err, n);
    if (!failed && m->source.fd >= 0 && !(failed = migrate_look(m, err, n)))
        m->lacking = json_is_true(json_object_get(m->status, "postcopy"));
    return failed ? failed : migrate_resolve(m, 0, err, n);
}

/* What was received here is to run, whatever the source is. */
static int run_received(struct migrate *m, const struct migration_record *record, char *err, size_t n)
{
    const char *name = m->record.name;
    json_t *status = NULL;

    if (m->source.fd < 0 && record->partly) { /* only its disk is here, and it may be started from that */
        log_say("`guise start %s` boots it from its disk: its memory is lost", name);
        return migration_record_remove(&m->registry, name, err, n);
    }
    if (m->source.fd < 0)
        return error_set(err, n, -EBUSY,
                         "%s was never received as a whole, or its process has died since: `guise rm %s` removes it",
                         name, name);
    int failed = record->partly
                     ? 0
                     : client_call(&m->source, "incoming", json_pack("{s:s}", "action", "status"), &status, err, n);
    bool lacks = record->partly || json_integer_value(json_object_get(status, "left_bytes"));
    json_decref(status);
    if (failed)
        return failed;
    if (lacks)
        return error_set(err, n, -EBUSY,
                         "part of the memory of %s is still at its source, and it cannot run without: `guise migrate "
                         "--resume` there brings it, `guise rm --force %s` gives it up here",
                         name, name);
    failed = receive_go(&m->source, true, err, n);
    return failed ? failed : migration_record_remove(&m->registry, name, err, n);
}

static int run_here(struct migrate *m, char *err, size_t n)
{
    struct migration_record record;
    const char *name = m->record.name;
    int failed = migration_record_read(&m->registry, name, &record, err, n);
    bool open = !failed && (record.destination ? !record.decided || record.partly : record.decided);

    if (failed == -ENOENT || (!failed && !open))
        return error_set(err, n, -EBUSY, "%s is in no migration that was cut off", name);
    if (failed)
        return failed;
    memcpy(m->id, record.id, sizeof m->id);
    m->vouched = true;
    if (record.destination)
        return run_received(m, &record, err, n);
    char none[1];
    bool ran = m->source.fd >= 0 && !migrate_look(m, none, sizeof none) &&
               json_is_true(json_object_get(m->status, "postcopy"));
    failed = migrate_take_back(m, err, n);
    if (failed == -EIO && ran)
        log_say("%s goes on from the moment when it left: what it has done at %s since then it has not done here", name,
                record.peer);
    return failed == -EIO && m->source.fd >= 0 ? 0 : failed;
}

/* The process, or the lock that says that there is none. */
static int find_source(struct migrate *m, bool must_run, char *err, size_t n)
{
    int failed = client_open(&m->source, &m->registry, m->record.name, err, n);

    if (!failed || must_run || failed != -ECONNREFUSED)
        return failed;
    return registry_lock(&m->registry, m->record.name, &m->lock, err, n);
}

int migrate_main(const struct command *self, int argc, char **argv)
{
    struct migrate_arguments a = {
        .downtime_ms = DOWNTIME_MS, .streams = 1, .storage = "auto", .postcopy_after_s = MIGRATE_NEVER};
    struct migrate m = {.a = &a, .lock = -1, .peer.fd = -1, .source.fd = -1};
    char err[ERROR_SIZE];
    int status, operands = life_parse(self, argc, argv, &a, 2, &m.registry, &status);
    bool moves = !a.resume && !a.here;

    if (operands < 0)
        return status;
    if (operands != 1 + moves || (a.resume && a.here))
        return cli_usage_error(self, moves ? "the name of a virtual machine, and where it is to go, must be given"
                                           : "--resume and --here take the name of a virtual machine, one of them");
    if (strcmp(a.storage, "shared") == 0 && (a.postcopy || a.postcopy_after_s != MIGRATE_NEVER))
        return cli_usage_error(self, "by --postcopy disks are copied: --storage shared cannot be had with it");
    a.postcopy = a.postcopy || a.postcopy_after_s != MIGRATE_NEVER;
    int failed = moves ? peer_parse(&m.to, argv[2], err, sizeof err) : 0;
    if (failed)
        return cli_usage_error(self, err);
    failed = registry_load(&m.registry, argv[1], &m.record, err, sizeof err);
    if (failed)
        return cli_failed(failed, err);
    signal(SIGPIPE, SIG_IGN);
    progress_begin(&m.progress, false, a.quiet || a.json);
    failed = find_source(&m, moves, err, sizeof err);
    if (!failed)
        failed = (a.resume ? resume : a.here ? run_here : move)(&m, err, sizeof err);
    progress_end(&m.progress);
    migrate_receive_end(&m);
    if (m.lock >= 0)
        close(m.lock);
    if (!failed && moves)
        migrate_report(&m);
    client_close(&m.source);
    peer_close(&m.peer);
    json_decref(m.status);
    json_decref(m.answer);
    record_free(&m.record);
    status = failed ? cli_failed(failed, err) : cli_flush();
    if (failed)
        interrupt_end();
    return status;
}
