/* What is asked of a source by the control socket's "migrate". */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "backends/disk/disk_away.h"
#include "backends/disk/disk_log.h"
#include "base/error.h"
#include "machine/machine.h"
#include "memory/memory.h"
#include "vm/life.h"
#include "vm/migration_int.h"
#include "vm/migration_storage.h"
#include "vm/prepare.h"
#include "vm/shares.h"
#include "vm/snapshot_int.h"

#define DOWNTIME_MS_MAX 60000
#define AFTER_MS_MAX 86400000
#define LEARN_NS 200000000ull

static const char *const state_names[] = {"sending", "sending", "last", "sent", "given-up", "ended"};

/* Why this machine cannot move, as an error of the call; false: it can. */
static bool refused(struct control_call *call)
{
    const struct vm *vm = call->opaque;
    bool shared = json_is_true(json_object_get(call->arguments, "shared"));
    char why[ERROR_SIZE];

    if (vm->config->shares.n && !json_is_true(json_object_get(call->arguments, "folders")))
        return control_fail(call, "unsupported",
                            "it has shared folders, which are not sent: --folders says that the destination has them, "
                            "at the same paths"),
               true;
    if (shares_refused(vm, why, sizeof why))
        return control_fail(call, "unsupported", "%s", why), true;
    if (storage_refused(vm, shared, why, sizeof why))
        return control_fail(call, "unsupported", "%s", why), true;
    if (vm->saving && vm->saving->state < SAVING_COMPLETE)
        return control_fail(call, "wrong-state", "a snapshot of it is being taken: try again when that is complete"),
               true;
    if (migration_is_under_way(vm))
        return control_fail(call, "wrong-state", "it is on its way already, or has not come yet"), true;
    return false;
}

/* What a destination has to know before anything is sent. */
static json_t *describe(struct control_call *call)
{
    const struct vm *vm = call->opaque;
    uint8_t table[CPUID_SAVED_MAX];
    char hex[2 * CPUID_SAVED_MAX + 1] = "";
    struct cpu *cpu = vm->ops->vcpu(vm->engine, 0);

    if (refused(call))
        return NULL;
    struct stat st = {0};
    uint64_t disk_used = 0;
    struct disk *disk = moving_own_disk(vm);
    json_int_t gap = json_integer_value(json_object_get(call->arguments, "gap"));
    uint16_t *granules = disk ? calloc(disk_log_pieces(disk), sizeof *granules) : NULL;
    if (granules && !disk_overlay_mask(disk, granules))
        disk_used = moving_count(granules, disk_log_pieces(disk)) * DISK_LOG_GRANULE;
    free(granules);
    fstat(machine_memory(vm->machine)->fd, &st);
    size_t n = cpu->cpuid ? cpuid_save(cpu->cpuid, table) : 0;
    for (size_t i = 0; i < n; i++)
        snprintf(hex + 2 * i, 3, "%02x", table[i]);
    return json_pack("{s:s, s:I, s:I, s:I, s:I, s:s, s:o*}", "engine", vm->ops->name, "memory_bytes",
                     (json_int_t)machine_memory(vm->machine)->size, "memory_used", (json_int_t)st.st_blocks * 512,
                     "disk_bytes", (json_int_t)(disk ? disk->size : 0), "disk_used", (json_int_t)disk_used, "cpuid",
                     hex, "storage", gap >= (json_int_t)DISK_GAP_FIRST ? storage_show(vm, (uint64_t)gap) : NULL);
}

/* How it goes, in bytes. */
struct pace {
    uint64_t left, rate, dirtied; /* of the latter two, in a second; 0: not known yet */
};

/* Of a round that has only begun one learns nothing: the one before counts. */
static struct pace pace_of_rounds(const struct moving *m, uint64_t in_round_ns)
{
    uint64_t total = m->round_pages, sent = m->sent_pages;
    bool runs = m->state <= MOVING_SENDING && m->begun;
    uint64_t changed = runs ? moving_left(m) : 0;
    struct pace p = {.left = (total > sent ? total - sent : 0) + changed, .rate = m->rate, .dirtied = m->dirtied};

    if (in_round_ns > LEARN_NS) {
        p.rate = p.rate ? p.rate : sent * 1000000000 / in_round_ns;
        p.dirtied = runs ? changed * 1000000000 / in_round_ns : 0;
    }
    return (struct pace){p.left * 4096, p.rate * 4096, p.dirtied * 4096};
}

static struct pace pace_of(const struct moving *m, uint64_t now)
{
    if (m->state == MOVING_ENDED)
        return (struct pace){0};
    if (m->serving)
        return (struct pace){serving_left(m), serving_rate(m), 0};
    return pace_of_rounds(m, m->round_ns ? now - m->round_ns : 0);
}

/* What is left is sent while more of it comes; -1: it is not known how long that takes, or it never ends so. */
static json_int_t remaining_ms(const struct pace *p)
{
    return !p->left ? 0 : p->rate > p->dirtied ? (json_int_t)(p->left * 1000 / (p->rate - p->dirtied)) : -1;
}

static json_t *describe_progress(const struct moving *m)
{
    uint64_t now = clock_ns(), bytes = m->sent_before, elapsed_ms = (now - m->began_ns) / 1000000;
    struct pace p = pace_of(m, now);
    json_int_t remaining = remaining_ms(&p);

    for (unsigned i = 0; i < m->n_streams + m->n_extra; i++)
        bytes += m->streams[i].wire.bytes;
    return json_pack("{s:s, s:s, s:b, s:b, s:I, s:I, s:I, s:I, s:I, s:o, s:I, s:I, s:I, s:s?}", "state",
                     state_names[m->state], "id", m->id, "postcopy", m->serving != NULL, "cut",
                     m->serving && serving_is_cut(m), "round", (json_int_t)m->rounds, "sent_bytes", (json_int_t)bytes,
                     "left_bytes", (json_int_t)p.left, "bytes_per_second", (json_int_t)p.rate, "dirty_bytes_per_second",
                     (json_int_t)p.dirtied, "remaining_ms", remaining < 0 ? json_null() : json_integer(remaining),
                     "throttle_percent", (json_int_t)m->vm->throttle, "elapsed_ms", (json_int_t)elapsed_ms,
                     "stopped_us", (json_int_t)(m->stopped_ns ? (now - m->stopped_ns) / 1000 : 0), "reason",
                     m->reason[0] ? m->reason : NULL);
}

static json_t *status(struct control_call *call)
{
    const struct vm *vm = call->opaque;

    return vm->moving ? describe_progress(vm->moving) : json_pack("{s:s}", "state", "none");
}

/* Zeroed but for its lock, which one that had it may still look at. */
static struct moving *renew(struct vm *vm)
{
    struct moving *m = vm->moving;

    if (!m) {
        m = vm->moving = calloc(1, sizeof *m);
        if (!m)
            return NULL;
        pthread_mutex_init(&m->lock, NULL);
        pthread_cond_init(&m->wake, NULL);
        pthread_cond_init(&m->sent, NULL);
    }
    memset(m, 0, offsetof(struct moving, lock));
    m->round = 0;
    m->last = m->stop = m->disk_only = false;
    m->failed = 0;
    m->sent_pages = m->n_chunks = m->n_disk_chunks = 0;
    m->vm = vm;
    m->record = m->lease = m->notice[0] = m->notice[1] = -1;
    moving_prepare(m);
    return m;
}

/* Of n streams the last are the extra ones, of a machine that may be moved by post-copy; what is asked for goes as fast
 * as it can. */
static int open_streams(struct moving *m, const int *fds, unsigned n)
{
    int err = 0;

    m->n_extra = m->postcopy ? MIGRATION_EXTRA : 0;
    m->n_streams = n - m->n_extra;
    for (unsigned i = 0; i < n; i++) {
        m->streams[i] = (struct moving_stream){.has_thread = false};
        int failed = wire_open(&m->streams[i].wire, fds[i], m->compresses);
        err = err ? err : failed;
    }
    moving_set_pace(m, m->bandwidth);
    return err;
}

static int open_all(struct moving *m, const int *fds, unsigned n)
{
    int err = 0;

    m->record = fds[0];
    m->lease = fds[1];
    err = open_streams(m, fds + 2, n - 2);
    return err ? err : moving_listen(m);
}

_Static_assert(CONTROL_FDS_MAX == 2 + MIGRATION_ALL_MAX, "no more streams can come along");

static json_t *begin(struct control_call *call)
{
    struct vm *vm = call->opaque;
    const char *id = json_string_value(json_object_get(call->arguments, "id"));
    json_int_t downtime = json_integer_value(json_object_get(call->arguments, "downtime_ms"));
    json_int_t bandwidth = json_integer_value(json_object_get(call->arguments, "bandwidth"));
    const json_t *after = json_object_get(call->arguments, "postcopy_after_ms");
    json_int_t after_ms = json_integer_value(after);
    bool postcopy = json_is_true(json_object_get(call->arguments, "postcopy"));
    int fds[CONTROL_FDS_MAX], err;
    unsigned n = control_take_fds(call, fds);
    struct moving *m = NULL;

    if (n < 3 + (postcopy ? MIGRATION_EXTRA : 0) || n > 2 + MIGRATION_STREAMS_MAX + (postcopy ? MIGRATION_EXTRA : 0) ||
        !migration_is_id(id) || downtime < 1 || downtime > DOWNTIME_MS_MAX || bandwidth < 0 || after_ms < 0 ||
        after_ms > AFTER_MS_MAX)
        control_fail(call, "bad-request",
                     "\"id\", \"downtime_ms\" and the descriptors of a record, of a socket that ends with you and of "
                     "streams must be given");
    else if (!refused(call) && !(m = renew(vm)))
        control_fail(call, "failed", "out of memory");
    if (!m) {
        while (n)
            close(fds[--n]);
        return NULL;
    }
    snprintf(m->id, sizeof m->id, "%s", id);
    m->downtime_ns = (uint64_t)downtime * 1000000;
    m->throttles = !json_is_false(json_object_get(call->arguments, "throttle"));
    m->compresses = json_is_true(json_object_get(call->arguments, "compress"));
    m->bandwidth = (uint64_t)bandwidth;
    m->own_stays = json_is_true(json_object_get(call->arguments, "own_stays"));
    storage_hide(vm);
    m->postcopy = postcopy;
    m->began_ns = clock_ns();
    if (postcopy && after)
        loop_timer_set(vm->loop, &m->after, m->began_ns + (uint64_t)after_ms * 1000000);
    m->disk_only = postcopy && after && !after_ms;
    err = open_all(m, fds, n);
    if (err) {
        moving_end(m, "");
        return control_fail(call, "failed", "it cannot be sent: %s", strerror(-err));
    }
    m->state = MOVING_DUE;
    loop_stop(vm->loop);
    return json_object();
}

/* --- the end of it ----------------------------------------------------------------------------------------------- */

static struct moving *moving_in(struct control_call *call, enum moving_state state, const char *what)
{
    struct vm *vm = call->opaque;
    const char *id = json_string_value(json_object_get(call->arguments, "id"));

    if (!vm->moving || vm->moving->state != state || !id || strcmp(id, vm->moving->id) != 0)
        return control_fail(call, "wrong-state", "%s", what), NULL;
    return vm->moving;
}

static json_t *cancel(struct control_call *call)
{
    struct vm *vm = call->opaque;

    const char *id = json_string_value(json_object_get(call->arguments, "id"));

    if (!vm->moving || vm->moving->state >= MOVING_GIVEN_UP)
        return control_fail(call, "wrong-state", "it is not on its way, or has been given up already");
    if (id && strcmp(id, vm->moving->id) != 0)
        return control_fail(call, "wrong-state", "it is on its way by another migration");
    moving_end(vm->moving, "it was cancelled");
    return json_object();
}

/* From here on it is the destination's, whatever becomes of us. */
static json_t *give_up(struct control_call *call)
{
    struct moving *m = moving_in(call, MOVING_SENT, "not all of it is sent");

    if (!m)
        return NULL;
    int err = migration_decide(m->record, true);
    if (err) {
        migration_decide(m->record, false);
        return control_fail(call, "failed", "it cannot be written down that it is given up: %s", strerror(-err));
    }
    m->state = MOVING_GIVEN_UP;
    storage_leave(m);
    life_moved(m->vm, true);
    return describe_progress(m);
}

/* The destination never will run it; that it never has only that one knows, not a user who vouches. */
static json_t *take_back(struct control_call *call)
{
    struct moving *m = moving_in(call, MOVING_GIVEN_UP, "it has not been given up");

    if (!m)
        return NULL;
    if (json_is_true(json_object_get(call->arguments, "vouched")) && storage_is_shared(m))
        return control_fail(call, "wrong-state",
                            "its disks are the destination's as well, which may have written to them: its memory is of "
                            "no use then.  `guise stop --force %s` and once more this boot it from its disks",
                            m->vm->config->life->record->name);
    int err = storage_return(m);
    if (err == -EBUSY)
        return control_fail(call, "wrong-state", "somebody else has its disks: it runs at the destination");
    if (!err)
        err = migration_decide(m->record, false);
    if (err)
        return control_fail(call, "failed", "it cannot be written down that it runs here: %s", strerror(-err));
    moving_end(m, "the destination does not have it");
    life_moved(m->vm, false);
    return json_object();
}

/* The streams were cut, and are others now. */
static json_t *reconnect(struct control_call *call)
{
    int fds[CONTROL_FDS_MAX];
    unsigned n = control_take_fds(call, fds);
    struct moving *m = moving_in(call, MOVING_GIVEN_UP, "it has not been given up");

    if (m && (!m->serving || n < 1 + MIGRATION_EXTRA || n > MIGRATION_ALL_MAX))
        control_fail(call, "bad-request",
                     "the descriptors of streams must be given, of a machine that has memory here");
    if (!m || !m->serving || n < 1 + MIGRATION_EXTRA || n > MIGRATION_ALL_MAX) {
        while (n)
            close(fds[--n]);
        return NULL;
    }
    serving_stop(m);
    moving_threads_stop(m);
    int err = open_streams(m, fds, n);
    if (!err)
        err = serving_start(m);
    return err ? control_fail(call, "failed", "its memory cannot be sent: %s", strerror(-err)) : json_object();
}

/* It runs there. */
static json_t *finish(struct control_call *call)
{
    struct moving *m = moving_in(call, MOVING_GIVEN_UP, "it has not been given up");

    if (!m)
        return NULL;
    vm_end(m->vm, VM_MOVED_AWAY, "moved away");
    return json_object();
}

static const struct {
    const char *action;
    json_t *(*run)(struct control_call *call);
} actions[] = {{"describe", describe}, {"begin", begin},         {"status", status},       {"cancel", cancel},
               {"give-up", give_up},   {"reconnect", reconnect}, {"take-back", take_back}, {"finish", finish}};

json_t *command_migrate(struct control_call *call)
{
    const char *action = json_string_value(json_object_get(call->arguments, "action"));

    for (size_t i = 0; i < sizeof actions / sizeof *actions; i++)
        if (action && strcmp(actions[i].action, action) == 0)
            return actions[i].run(call);
    return control_fail(
        call, "bad-request",
        "\"action\" is not one of describe, begin, status, cancel, give-up, reconnect, take-back, finish");
}
