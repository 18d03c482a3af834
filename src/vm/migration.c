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
#include "base/log.h"
#include "machine/machine.h"
#include "memory/memory.h"
#include "vm/life.h"
#include "vm/migration_int.h"
#include "vm/migration_storage.h"
#include "vm/prepare.h"
#include "vm/shares.h"
#include "vm/snapshot_int.h"

#define LAST_NS 5000000ull /* of the downtime: what does not depend on how much is left */
#define PATIENCE_NS 1000000000ull
#define SHORT_NS (LAST_NS + 3000000)
#define STALLS 2u /* rounds that bring little before the guest is slowed down */
#define THROTTLE_FIRST 20u
#define THROTTLE_STEP 15u
#define THROTTLE_MOST 95u
#define SLICE_NS 5000000

struct disk *moving_own_disk(const struct vm *vm)
{
    return record_has_disk(vm->config->life->record) ? vm->disks[0] : NULL;
}

struct disk *moving_disk(const struct vm *vm)
{
    return vm->moving && vm->moving->own_stays ? NULL : moving_own_disk(vm);
}

bool migration_due(const struct vm *vm)
{
    return (vm->moving && vm->moving->state == MOVING_DUE) || (vm->incoming && vm->incoming->state == INCOMING_DUE);
}

bool migration_holds(const struct vm *vm)
{
    return (vm->moving && vm->moving->state >= MOVING_LAST && vm->moving->state <= MOVING_GIVEN_UP) ||
           (vm->incoming && vm->incoming->state < INCOMING_ARRIVING);
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

    serving_end(m);
    moving_threads_stop(m);
    memory_log_end(machine_memory(vm->machine));
    if (moving_disk(vm))
        disk_log_end(moving_disk(vm));
    vm->throttle = 0;
    loop_timer_cancel(vm->loop, &m->slice);
    loop_timer_cancel(vm->loop, &m->after);
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
    free(m->logged);
    free(m->granules);
    free(m->begun_chunks);
    m->pages = m->logged = m->granules = NULL;
    m->begun_chunks = NULL;
}

void moving_end(struct moving *m, const char *reason)
{
    bool stood = migration_holds(m->vm);

    let_go(m);
    m->own_stays = m->round_over = false;
    m->state = MOVING_ENDED;
    snprintf(m->reason, sizeof m->reason, "%s", reason);
    if (stood)
        loop_stop(m->vm->loop); /* and on again, with vCPUs */
}

static void command_gone(void *opaque, uint32_t events)
{
    struct moving *m = opaque;

    if (m->state < MOVING_GIVEN_UP)
        moving_end(m, "the command that moved it has gone");
    else
        loop_fd_del(m->vm->loop, m->lease); /* whoever comes next will say how it goes on */
}

/* --- rounds ------------------------------------------------------------------------------------------------------ */

uint64_t moving_left(const struct moving *m)
{
    struct disk *disk = moving_disk(m->vm);
    uint64_t memory = m->disk_only ? 0 : memory_log_count(machine_memory(m->vm->machine));

    return memory + (disk ? disk_log_count(disk) : 0);
}

uint64_t moving_count(const uint16_t *bits, uint64_t n)
{
    uint64_t count = 0;

    for (uint64_t i = 0; i < n; i++)
        count += (unsigned)__builtin_popcount(bits[i]);
    return count;
}

static void take_logs(struct moving *m)
{
    memory_log_take(machine_memory(m->vm->machine), m->logged);
    for (uint64_t i = 0; i < m->n_chunks; i++)
        m->pages[i] |= m->logged[i];
    if (moving_disk(m->vm))
        disk_log_take(moving_disk(m->vm), m->granules);
    m->before_pages = m->round_pages;
    m->round_pages = (m->disk_only ? 0 : moving_count(m->pages, m->n_chunks)) +
                     moving_count(m->granules, m->n_disk_chunks);
}

/* So long it takes to send what is left, at the pace so far. */
static uint64_t last_ns(const struct moving *m, uint64_t left)
{
    return !left ? LAST_NS : m->rate ? LAST_NS + left * 1000000000 / m->rate : UINT64_MAX;
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
    uint64_t left = moving_left(m), ns = last_ns(m, left);

    return ns <= m->downtime_ns && (ns <= SHORT_NS || left * 2 > m->round_pages);
}

/* Has about as much been written to as was sent, and too much to stand still for? */
static bool changes_as_fast(const struct moving *m)
{
    uint64_t left = moving_left(m);

    return last_ns(m, left) > m->downtime_ns && left * 10 > m->carried_pages * 7;
}

/* What comes next leaves the guest running as long as there is more than fits into the downtime.  When rounds do not
 * become smaller memory is left for later; or the guest runs slower. */
static void look_whether_it_converges(struct moving *m)
{
    unsigned now = m->vm->throttle;

    if (m->postcopy && !m->disk_only) {
        m->disk_only = changes_as_fast(m);
        return;
    }
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

/* It has taken long enough: memory that is not there by now is left for later, and the round ends as soon as the disk
 * is sent. */
static void long_enough(void *opaque)
{
    struct moving *m = opaque;

    m->disk_only = true;
}

static void cannot_be_sent(struct moving *m, int err)
{
    char why[256];

    error_sys(why, sizeof why, err, "it cannot be sent any further");
    moving_end(m, err == -EPIPE ? "the destination has gone"
                  : err == -ETIMEDOUT
                      ? "the last of it could not be sent in time, and the guest was not to stand still for longer"
                      : why);
}

/* Was waited for: what is flushed while the guest runs is not when it stands still. */
void moving_flushed(struct moving *m)
{
    if (!m->round_over || m->state != MOVING_SENDING)
        return;
    m->round_over = false;
    m->state = MOVING_DUE;
    loop_stop(m->vm->loop);
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
    m->dirtied = moving_left(m) * 1000000000 / took;
    look_whether_it_converges(m);
    m->round_over = true;
    if (!m->flushing)
        moving_flushed(m);
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
    struct disk *disk = moving_disk(m->vm);
    struct memory *memory = machine_memory(m->vm->machine);
    int err = memory_log_begin(memory);

    m->n_chunks = memory_chunks(memory);
    m->n_disk_chunks = disk ? disk_log_pieces(disk) : 0;
    m->pages = malloc(m->n_chunks * sizeof *m->pages);
    m->logged = malloc(m->n_chunks * sizeof *m->logged);
    m->begun_chunks = calloc(m->n_chunks, 1);
    m->granules = calloc(m->n_disk_chunks + 1, sizeof *m->granules);
    if (!err && (!m->pages || !m->logged || !m->begun_chunks || !m->granules))
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
    m->round_pages = moving_count(m->pages, m->n_chunks) + moving_count(m->granules, m->n_disk_chunks);
    m->begun = true;
    return moving_threads_start(m);
}

/* Stands still from here on, until it is decided where it runs on. */
static int take_state(struct moving *m)
{
    char why[ERROR_SIZE];
    int err = machine_save(m->vm->machine, &m->sections);

    if (!err && (err = shares_save(m->vm, &m->sections, why, sizeof why)))
        log_say("%s", why);
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

    if (!err && m->serving) {
        moving_threads_join(m);
        moving_set_pace(m, m->bandwidth);
        err = serving_start(m);
    }
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
    if (!err && last) /* devices do nothing any more */
        err = storage_flush(m);
    if (!err && m->begun)
        take_logs(m);
    else if (!err)
        err = begin_logs(m);
    if (!err && last && m->disk_only)
        err = serving_begin(m);
    if (err) {
        error_sys(why, sizeof why, err, "the machine cannot be sent");
        moving_end(m, why);
        return;
    }
    vm->ops->watch(vm->engine);
    m->rounds++;
    m->round_ns = clock_ns();
    if (m->serving) /* it is little, and the guest stands still */
        moving_set_pace(m, 0);
    moving_round(m, last);
    if (last)
        send_last(m);
    else
        storage_flush_early(m);
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

/* --- its beginning ------------------------------------------------------------------------------------------------ */

void moving_prepare(struct moving *m)
{
    loop_timer_init(&m->slice, slice_over, m);
    loop_timer_init(&m->after, long_enough, m);
}

int moving_listen(struct moving *m)
{
    int err = socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, m->notice) ? -errno : 0;

    if (!err)
        err = loop_fd_add(m->vm->loop, m->notice[0], EPOLLIN, round_ended, m);
    if (!err)
        err = loop_fd_add(m->vm->loop, m->lease, EPOLLIN, command_gone, m);
    return err;
}
