#include "vm/migration.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "backends/disk/disk_log.h"
#include "base/error.h"
#include "machine/machine.h"
#include "memory/memory.h"
#include "vm/life.h"
#include "vm/migration_int.h"
#include "vm/prepare.h"
#include "vm/snapshot_int.h"

#define DOWNTIME_MS_MAX 60000
#define LAST_NS 5000000ull /* of the downtime: what does not depend on how much is left */
#define PATIENCE_NS 1000000000ull
#define SHORT_NS (LAST_NS + 3000000)
#define STALLS 2u /* rounds that bring little before the guest is slowed down */
#define THROTTLE_FIRST 20u
#define THROTTLE_STEP 15u
#define THROTTLE_MOST 95u
#define SLICE_NS 5000000

const char *const moving_state_names[] = {"sending", "sending", "last", "sent", "given-up", "ended"};

static struct disk *own_disk(const struct vm *vm)
{
    return record_has_disk(vm->config->life->record) ? vm->disks[0] : NULL;
}

bool migration_due(const struct vm *vm)
{
    return (vm->moving && vm->moving->state == MOVING_DUE) || (vm->incoming && vm->incoming->state == INCOMING_DUE);
}

bool migration_holds(const struct vm *vm)
{
    return (vm->moving && vm->moving->state >= MOVING_LAST && vm->moving->state <= MOVING_GIVEN_UP) ||
           (vm->incoming && vm->incoming->state != INCOMING_GONE);
}

bool migration_is_under_way(const struct vm *vm)
{
    return (vm->moving && vm->moving->state < MOVING_ENDED) || (vm->incoming && vm->incoming->state < INCOMING_GONE);
}

/* --- how it ends -------------------------------------------------------------------------------------------------- */

/* What was begun is let go of; what is known stays, for who asks. */
static void let_go(struct moving *m)
{
    struct vm *vm = m->vm;
    const int fds[] = {m->record, m->lease, m->notice[0], m->notice[1]};

    moving_threads_stop(m);
    memory_log_end(machine_memory(vm->machine));
    if (own_disk(vm))
        disk_log_end(own_disk(vm));
    vm->throttle = 0;
    loop_timer_cancel(vm->loop, &m->slice);
    if (m->lease >= 0)
        loop_fd_del(vm->loop, m->lease);
    if (m->notice[0] >= 0)
        loop_fd_del(vm->loop, m->notice[0]);
    for (size_t i = 0; i < sizeof fds / sizeof *fds; i++)
        if (fds[i] >= 0)
            close(fds[i]);
    m->record = m->lease = m->notice[0] = m->notice[1] = -1;
    sections_free(&m->sections);
    free(m->pages);
    free(m->granules);
    m->pages = m->granules = NULL;
}

/* It came to nothing: the guest runs on.  Not after it was given up. */
static void end(struct moving *m, const char *reason)
{
    bool stood = migration_holds(m->vm);

    let_go(m);
    m->state = MOVING_ENDED;
    snprintf(m->reason, sizeof m->reason, "%s", reason);
    if (stood)
        loop_stop(m->vm->loop); /* and on again, with vCPUs */
}

static void command_gone(void *opaque, uint32_t events)
{
    struct moving *m = opaque;

    if (m->state < MOVING_GIVEN_UP)
        end(m, "the command that moved it has gone");
    else
        loop_fd_del(m->vm->loop, m->lease); /* whoever comes next will say how it goes on */
}

/* --- rounds ------------------------------------------------------------------------------------------------------ */

static uint64_t pages_left(const struct moving *m)
{
    struct disk *disk = own_disk(m->vm);

    return memory_log_count(machine_memory(m->vm->machine)) + (disk ? disk_log_count(disk) : 0);
}

static uint64_t count_bits(const uint16_t *bits, uint64_t n)
{
    uint64_t count = 0;

    for (uint64_t i = 0; i < n; i++)
        count += (unsigned)__builtin_popcount(bits[i]);
    return count;
}

static void take_logs(struct moving *m)
{
    memory_log_take(machine_memory(m->vm->machine), m->pages);
    if (own_disk(m->vm))
        disk_log_take(own_disk(m->vm), m->granules);
    m->before_pages = m->round_pages;
    m->round_pages = count_bits(m->pages, m->n_chunks) + count_bits(m->granules, m->n_disk_chunks);
}

/* So long it takes to send what is left, at the pace so far. */
static uint64_t last_ns(const struct moving *m, uint64_t left)
{
    return m->rate ? LAST_NS + left * 1000000000 / m->rate : UINT64_MAX;
}

static void slice_over(void *opaque)
{
    struct moving *m = opaque;
    struct vm *vm = m->vm;

    for (unsigned i = 0; i < vm_vcpus(vm->config); i++) {
        atomic_fetch_or(&vm->vcpus[i].cpu->request, REQ_EXIT);
        vm_kick(vm, i);
    }
    loop_timer_set(vm->loop, &m->slice, clock_ns() + SLICE_NS);
}

/* Is it time to stand still for good?  When what is left can be sent in the time allowed; but as long as rounds become
 * much smaller, another one makes that time shorter still. */
static bool is_last(const struct moving *m)
{
    uint64_t left = pages_left(m), ns = last_ns(m, left);

    return ns <= m->downtime_ns && (ns <= SHORT_NS || left * 2 > m->round_pages);
}

/* What comes next leaves the guest running as long as there is more than fits into the downtime.  When rounds do not
 * become smaller it runs slower. */
static void look_whether_it_converges(struct moving *m)
{
    unsigned now = m->vm->throttle;

    if (m->rounds < 2 || m->round_pages * 10 < m->before_pages * 7) {
        m->stalls = 0;
        return;
    }
    if (++m->stalls < STALLS || !m->throttles)
        return;
    now = now ? now + THROTTLE_STEP : THROTTLE_FIRST;
    m->vm->throttle = now < THROTTLE_MOST ? now : THROTTLE_MOST;
    loop_timer_set(m->vm->loop, &m->slice, clock_ns() + SLICE_NS);
}

static void cannot_be_sent(struct moving *m, int err)
{
    char why[256];

    error_sys(why, sizeof why, err, "it cannot be sent any further");
    end(m, err == -EPIPE ? "the destination has gone"
           : err == -ETIMEDOUT
               ? "the last of it could not be sent in time, and the guest was not to stand still for longer"
               : why);
}

/* A byte has come: the threads have sent the round, or cannot. */
static void round_ended(void *opaque, uint32_t events)
{
    struct moving *m = opaque;
    char byte;

    (void)!read(m->notice[0], &byte, 1);
    if (m->state != MOVING_SENDING) /* the last has been waited for */
        return;
    if (m->failed) {
        cannot_be_sent(m, m->failed);
        return;
    }
    uint64_t took = clock_ns() - m->round_ns + 1;
    if (m->round_pages > 256 || !m->rate) /* of little one learns nothing */
        m->rate = m->sent_pages * 1000000000 / took + 1;
    look_whether_it_converges(m);
    m->state = MOVING_DUE;
    loop_stop(m->vm->loop);
}

static int save_about(struct moving *m)
{
    json_t *about = json_pack("{s:b, s:o}", "agent", (int)(m->vm->config->life->ready_ns != 0), "ports",
                              moving_ports(m->vm));
    char *text = about ? json_dumps(about, JSON_COMPACT) : NULL;
    int err = text ? sections_add(&m->sections, "about", "json", 1, text, strlen(text)) : -ENOMEM;

    free(text);
    json_decref(about);
    return err;
}

/* --- with no vCPU running ---------------------------------------------------------------------------------------- */

static int begin_logs(struct moving *m)
{
    struct disk *disk = own_disk(m->vm);
    struct memory *memory = machine_memory(m->vm->machine);
    int err = memory_log_begin(memory);

    m->n_chunks = memory_chunks(memory);
    m->n_disk_chunks = disk ? disk_log_pieces(disk) : 0;
    m->pages = malloc(m->n_chunks * sizeof *m->pages);
    m->granules = calloc(m->n_disk_chunks + 1, sizeof *m->granules);
    if (!err && (!m->pages || !m->granules))
        err = -ENOMEM;
    if (!err && disk)
        err = disk_log_begin(disk);
    if (!err && disk)
        err = disk_overlay_mask(disk, m->granules);
    if (err)
        return err;
    memset(m->pages, 0xff, m->n_chunks * sizeof *m->pages);
    if (memory->size % WATCH_CHUNK) /* the last has fewer */
        m->pages[m->n_chunks - 1] = (uint16_t)((1u << memory->size % WATCH_CHUNK / 4096) - 1);
    m->round_pages = count_bits(m->pages, m->n_chunks) + count_bits(m->granules, m->n_disk_chunks);
    m->begun = true;
    return moving_threads_start(m);
}

/* Stands still from here on, until it is decided where it runs on. */
static int take_state(struct moving *m)
{
    int err = machine_save(m->vm->machine, &m->sections);

    if (!err)
        err = snapshot_save_simd(m->vm, &m->sections);
    if (!err)
        err = save_about(m);
    m->stopped_ns = m->vm->stopped_ns;
    return err;
}

/* Waits with the lock held, so that no device changes memory behind the state that was taken of it: what comes by the
 * network or the console is for who runs then. */
static void send_last(struct moving *m)
{
    int err = moving_wait(m, 2 * m->downtime_ns + PATIENCE_NS);

    if (err)
        cannot_be_sent(m, err);
    else
        m->state = MOVING_SENT;
}

static void source_step(struct vm *vm)
{
    struct moving *m = vm->moving;
    bool last = m->begun && is_last(m);
    char why[256];
    int err = 0;

    for (unsigned i = 0; i < vm->n_disks; i++)
        disk_drain(vm->disks[i]);
    m->state = last ? MOVING_LAST : MOVING_SENDING;
    if (last)
        err = take_state(m);
    if (!err && m->begun)
        take_logs(m);
    else if (!err)
        err = begin_logs(m);
    if (err) {
        error_sys(why, sizeof why, err, "the machine cannot be sent");
        end(m, why);
        return;
    }
    vm->ops->watch(vm->engine);
    m->rounds++;
    m->round_ns = clock_ns();
    moving_round(m, last);
    if (last)
        send_last(m);
}

void migration_step(struct vm *vm)
{
    if (vm->moving && vm->moving->state == MOVING_DUE)
        source_step(vm);
    else
        incoming_step(vm);
}

void migration_abandon(struct vm *vm)
{
    if (vm->incoming)
        incoming_close(vm);
    if (!vm->moving)
        return;
    if (vm->moving->state < MOVING_ENDED)
        let_go(vm->moving);
    pthread_cond_destroy(&vm->moving->sent);
    pthread_cond_destroy(&vm->moving->wake);
    pthread_mutex_destroy(&vm->moving->lock);
    free(vm->moving);
    vm->moving = NULL;
}

/* --- what is asked ----------------------------------------------------------------------------------------------- */

/* Why this machine cannot move, as an error of the call; false: it can. */
static bool refused(struct control_call *call)
{
    const struct vm *vm = call->opaque;

    if (!vm->ops->get_simd)
        return control_fail(call, "unsupported",
                            "machines of the %s engine cannot move while they run: start it with --engine soft",
                            vm->ops->name),
               true;
    if (vm->config->shares.n)
        return control_fail(call, "unsupported",
                            "it has shared folders, and what the guest has open in them cannot move"),
               true;
    for (unsigned i = record_has_disk(vm->config->life->record); i < vm->n_disks; i++)
        if (!vm->disks[i]->read_only)
            return control_fail(call, "unsupported",
                                "it writes to disk %s, which is not its own and stays where it is: only disks of "
                                "images, and disks that are ro, move with a machine",
                                vm->disks[i]->spec.path),
                   true;
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
    struct disk *disk = own_disk(vm);
    uint16_t *granules = disk ? calloc(disk_log_pieces(disk), sizeof *granules) : NULL;
    if (granules && !disk_overlay_mask(disk, granules))
        disk_used = count_bits(granules, disk_log_pieces(disk)) * DISK_LOG_GRANULE;
    free(granules);
    fstat(machine_memory(vm->machine)->fd, &st);
    size_t n = cpu->cpuid ? cpuid_save(cpu->cpuid, table) : 0;
    for (size_t i = 0; i < n; i++)
        snprintf(hex + 2 * i, 3, "%02x", table[i]);
    return json_pack("{s:s, s:I, s:I, s:I, s:I, s:s}", "engine", vm->ops->name, "memory_bytes",
                     (json_int_t)machine_memory(vm->machine)->size, "memory_used", (json_int_t)st.st_blocks * 512,
                     "disk_bytes", (json_int_t)(disk ? disk->size : 0), "disk_used", (json_int_t)disk_used, "cpuid",
                     hex);
}

static json_t *describe_progress(const struct moving *m)
{
    uint64_t now = clock_ns(), total = m->round_pages, sent = m->sent_pages, bytes = 0;
    bool runs = m->state <= MOVING_SENDING, over = m->state == MOVING_ENDED;
    uint64_t left = over ? 0 : (total > sent ? total - sent : 0) + (runs && m->begun ? pages_left(m) : 0);
    uint64_t rate = m->rate * 4096, elapsed_ms = (now - m->began_ns) / 1000000;

    left *= 4096;
    for (unsigned i = 0; i < m->n_streams; i++)
        bytes += m->streams[i].wire.bytes;
    return json_pack("{s:s, s:s, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:s?}", "state", moving_state_names[m->state], "id",
                     m->id, "round", (json_int_t)m->rounds, "sent_bytes", (json_int_t)bytes, "left_bytes",
                     (json_int_t)left, "bytes_per_second", (json_int_t)rate, "throttle_percent",
                     (json_int_t)m->vm->throttle, "elapsed_ms", (json_int_t)elapsed_ms, "stopped_us",
                     (json_int_t)(m->stopped_ns ? (now - m->stopped_ns) / 1000 : 0), "reason",
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
    m->last = m->stop = false;
    m->failed = 0;
    m->sent_pages = m->n_chunks = m->n_disk_chunks = 0;
    m->vm = vm;
    loop_timer_init(&m->slice, slice_over, m);
    m->record = m->lease = m->notice[0] = m->notice[1] = -1;
    return m;
}

static int open_all(struct moving *m, const int *fds, unsigned n, bool compress, uint64_t bandwidth)
{
    int err = 0;

    m->record = fds[0];
    m->lease = fds[1];
    m->n_streams = n - 2;
    for (unsigned i = 0; i < m->n_streams; i++) {
        m->streams[i] = (struct moving_stream){.has_thread = false};
        int failed = wire_open(&m->streams[i].wire, fds[2 + i], compress);
        m->streams[i].wire.pace = bandwidth / m->n_streams;
        err = err ? err : failed;
    }
    if (!err && socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, m->notice))
        err = -errno;
    if (!err)
        err = loop_fd_add(m->vm->loop, m->notice[0], EPOLLIN, round_ended, m);
    if (!err)
        err = loop_fd_add(m->vm->loop, m->lease, EPOLLIN, command_gone, m);
    return err;
}

_Static_assert(CONTROL_FDS_MAX == 2 + MIGRATION_STREAMS_MAX, "no more streams can come along");

static json_t *begin(struct control_call *call)
{
    struct vm *vm = call->opaque;
    const char *id = json_string_value(json_object_get(call->arguments, "id"));
    json_int_t downtime = json_integer_value(json_object_get(call->arguments, "downtime_ms"));
    json_int_t bandwidth = json_integer_value(json_object_get(call->arguments, "bandwidth"));
    int fds[CONTROL_FDS_MAX], err;
    unsigned n = control_take_fds(call, fds);
    struct moving *m = NULL;

    if (n < 3 || !migration_is_id(id) || downtime < 1 || downtime > DOWNTIME_MS_MAX || bandwidth < 0)
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
    m->began_ns = clock_ns();
    err = open_all(m, fds, n, json_is_true(json_object_get(call->arguments, "compress")), (uint64_t)bandwidth);
    if (err) {
        end(m, "");
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

    if (!vm->moving || vm->moving->state >= MOVING_GIVEN_UP)
        return control_fail(call, "wrong-state", "it is not on its way, or has been given up already");
    end(vm->moving, "it was cancelled");
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
    life_moved(m->vm, true);
    return describe_progress(m);
}

/* The destination never will run it. */
static json_t *take_back(struct control_call *call)
{
    struct moving *m = moving_in(call, MOVING_GIVEN_UP, "it has not been given up");

    if (!m)
        return NULL;
    int err = migration_decide(m->record, false);
    if (err)
        return control_fail(call, "failed", "it cannot be written down that it runs here: %s", strerror(-err));
    end(m, "the destination does not have it");
    life_moved(m->vm, false);
    return json_object();
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
} actions[] = {{"describe", describe}, {"begin", begin},         {"status", status}, {"cancel", cancel},
               {"give-up", give_up},   {"take-back", take_back}, {"finish", finish}};

json_t *command_migrate(struct control_call *call)
{
    const char *action = json_string_value(json_object_get(call->arguments, "action"));

    for (size_t i = 0; i < sizeof actions / sizeof *actions; i++)
        if (action && strcmp(actions[i].action, action) == 0)
            return actions[i].run(call);
    return control_fail(call, "bad-request",
                        "\"action\" is not one of describe, begin, status, cancel, give-up, take-back, finish");
}
