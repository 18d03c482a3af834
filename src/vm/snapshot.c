#include "vm/snapshot.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "backends/disk/overlay.h"
#include "base/error.h"
#include "base/timestamp.h"
#include "vm/fork.h"
#include "vm/life.h"
#include "vm/migration.h"
#include "vm/prepare.h"
#include "vm/shares.h"
#include "vm/snapshot_int.h"

#define LOOK_NS 2000000

static const char *const state_names[] = {"flushing", "flushing", "writing", "writing", "complete", "failed"};

/* --- how it ends ------------------------------------------------------------------------------------------------- */

static json_t *describe(const struct saving *s)
{
    uint64_t total = machine_memory(s->vm->machine)->size;
    uint64_t done = s->done_bytes < total ? s->done_bytes : total;
    bool writes = s->by_rounds && s->state < SAVING_COMPLETE;

    return json_pack("{s:s, s:s, s:I, s:I, s:I, s:I, s:b, s:s?, s:s?}", "state",
                     state_names[writes ? SAVING_WRITING : s->state], "tag", s->tag, "done_bytes", (json_int_t)done,
                     "total_bytes", (json_int_t)total, "file_bytes", (json_int_t)s->written_bytes, "pause_us",
                     (json_int_t)(s->pause_ns / 1000), "layered", (int)(s->layer_name[0] && s->layer < 0), "layer",
                     s->layer_name[0] ? s->layer_name : NULL, "reason", s->error[0] ? s->error : NULL);
}

/* Whoever waits for the thread need not. */
static void give_up(struct saving *s)
{
    s->give_up = true;
    pthread_mutex_lock(&s->lock);
    pthread_cond_broadcast(&s->room);
    pthread_cond_broadcast(&s->go_on);
    pthread_mutex_unlock(&s->lock);
}

/* The files are done with; what is known stays, for who asks, until the next. */
static void finish(struct saving *s, enum saving_state state)
{
    s->state = state;
    loop_timer_cancel(s->vm->loop, &s->look);
    saving_memory_end(s);
    sections_free(&s->sections);
    const int fds[] = {s->file, s->layer, s->fork};
    for (size_t i = 0; i < sizeof fds / sizeof *fds; i++)
        if (fds[i] >= 0)
            close(fds[i]);
    if (state == SAVING_COMPLETE && s->fork >= 0)
        life_event(s->vm, "forked", NULL);
    else if (state == SAVING_COMPLETE)
        life_event(s->vm, "snapshot",
                   json_pack("{s:s, s:I, s:I}", "tag", s->tag, "pause_us", (json_int_t)(s->pause_ns / 1000),
                             "file_bytes", (json_int_t)s->written_bytes));
    s->file = s->layer = s->fork = -1;
}

static void answer(struct saving *s)
{
    struct control *control = s->vm->config->life->control;

    if (!s->ticket.id)
        return;
    if (s->state == SAVING_FAILED)
        control_reply(control, &s->ticket, NULL, "failed", s->error);
    else
        control_reply(control, &s->ticket, describe(s), NULL, NULL);
}

static void fail(struct saving *s)
{
    bool layered = s->layer < 0 && s->layer_name[0];

    finish(s, SAVING_FAILED);
    if (!layered)
        s->layer_name[0] = 0;
    answer(s);
}

static void start(struct saving *s);

/* On the loop, now and then, while the thread writes; or before, while memory is still to come. */
static void look(void *opaque)
{
    struct saving *s = opaque;

    if (s->state == SAVING_FLUSHING) {
        start(s);
        return;
    }
    if (s->result == 1 && s->state == SAVING_COPYING && saving_round_is_done(s)) {
        s->last = saving_round_is_last(s);
        start(s);
    } else if (s->result == 1) {
        if (!s->give_up && !control_has(s->vm->config->life->control, s->client)) /* nobody will give it its name */
            give_up(s);
        loop_timer_set(s->vm->loop, &s->look, clock_ns() + LOOK_NS);
    } else if (s->result == 0) {
        finish(s, SAVING_COMPLETE);
    } else {
        if (s->result == -ECANCELED)
            error_set(s->error, sizeof s->error, 0, "it was cancelled");
        else
            error_sys(s->error, sizeof s->error, s->result, "the snapshot cannot be written");
        fail(s);
    }
}

/* --- the moment -------------------------------------------------------------------------------------------------- */

bool snapshot_due(const struct vm *vm)
{
    return vm->saving && vm->saving->state == SAVING_DUE;
}

int snapshot_save_simd(struct vm *vm, struct sections *out)
{
    uint8_t bytes[ENGINE_SIMD_MAX];
    char name[16];

    for (unsigned i = 0; i < vm_vcpus(vm->config); i++) {
        int size = vm->ops->get_simd(vm->engine, i, bytes);
        if (size < 0)
            return size;
        snprintf(name, sizeof name, "%u", i);
        sections_add(out, "simd", name, 1, bytes, (size_t)size);
    }
    return out->failed;
}

static int save_about(struct saving *s)
{
    const struct vm_life *life = s->vm->config->life;
    char now[TIMESTAMP_SIZE];
    char *record = record_format(life->record);
    json_t *record_json = record ? json_loads(record, 0, NULL) : NULL;

    timestamp_format(timestamp_ms(), now);
    json_t *about = json_pack(
        "{s:i, s:s, s:s, s:s, s:s, s:I, s:I, s:b, s:s?, s:I, s:o}", "schema_version", SNAPSHOT_ABOUT_SCHEMA, "name",
        life->record->name, "tag", s->tag, "created", now, "engine", s->vm->ops->name, "memory_bytes",
        (json_int_t)machine_memory(s->vm->machine)->size, "cpus", (json_int_t)machine_cpus_present(s->vm->machine),
        "agent", (int)(life->ready_ns != 0), "layer", s->layer_name[0] ? s->layer_name : NULL, "tsc_khz",
        (json_int_t)s->vm->vcpus[0].cpu->tsc_khz, "machine", record_json);
    char *text = about ? json_dumps(about, JSON_INDENT(2)) : NULL;
    int err = text ? sections_add(&s->sections, "about", "json", 1, text, strlen(text)) : -ENOMEM;
    free(text);
    json_decref(about);
    free(record);
    return err;
}

static void flushed(struct disk_request *r) {}

/* What the guest was told to be durable is in the layer that stays behind. */
static int freeze_disk(struct saving *s)
{
    struct disk *disk = s->vm->disks[0];

    if (s->layer < 0)
        return 0;
    s->flush = (struct disk_request){.op = DISK_FLUSH, .done = flushed, .result = 1};
    disk_submit(disk, &s->flush);
    disk_drain(disk);
    if (s->flush.result)
        return error_sys(s->error, sizeof s->error, s->flush.result < 0 ? s->flush.result : -EIO,
                         "the disk cannot be written to");
    int failed = disk_overlay_stack(disk, s->layer, s->error, sizeof s->error);
    if (!failed)
        s->layer = -1;
    return failed;
}

/* It stands still only for that. */
static void take_round(struct saving *s)
{
    struct vm *vm = s->vm;

    for (unsigned i = 0; i < vm->n_disks; i++)
        disk_drain(vm->disks[i]);
    int failed = s->give_up ? -ECANCELED : saving_round_begin(s);
    s->state = SAVING_COPYING;
    if (failed) {
        error_sys(s->error, sizeof s->error, failed, "memory cannot be saved");
        give_up(s);
        fail(s);
        return;
    }
    loop_timer_set(vm->loop, &s->look, clock_ns() + LOOK_NS);
}

static int save_memory(struct saving *s)
{
    return s->by_rounds ? saving_round_last(s) : saving_memory_begin(s);
}

void snapshot_take(struct vm *vm)
{
    struct saving *s = vm->saving;
    uint64_t began = clock_ns();

    s->stood = true;
    if (s->by_rounds && !s->last) {
        take_round(s);
        return;
    }
    int failed = machine_save(vm->machine, &s->sections);

    s->state = SAVING_WRITING;
    if (!failed)
        failed = snapshot_save_simd(vm, &s->sections);
    if (!failed)
        failed = save_about(s);
    if (failed)
        error_sys(s->error, sizeof s->error, failed, "the machine cannot be saved");
    else if (!(failed = shares_save(vm, &s->sections, s->error, sizeof s->error)) && !(failed = freeze_disk(s)) &&
             s->fork < 0 && (failed = save_memory(s)))
        error_sys(s->error, sizeof s->error, failed, "memory cannot be saved");
    if (!failed && s->fork >= 0)
        failed = fork_hand_over(s);
    s->pause_ns = clock_ns() - began;
    if (failed) {
        give_up(s);
        fail(s);
    } else if (s->fork >= 0)
        finish(s, SAVING_COMPLETE);
    else
        loop_timer_set(vm->loop, &s->look, clock_ns() + LOOK_NS);
}

void snapshot_taken(struct vm *vm, uint64_t pause_ns)
{
    struct saving *s = vm->saving;

    if (!s || !s->stood) /* it stood still for something else */
        return;
    s->stood = false;
    s->pause_ns = pause_ns > s->pause_ns ? pause_ns : s->pause_ns;
    answer(s);
}

void snapshot_abandon(struct vm *vm)
{
    struct saving *s = vm->saving;

    if (!s)
        return;
    if (s->state == SAVING_FLUSHING && s->layer >= 0)
        disk_drain(vm->disks[0]);
    if (s->state < SAVING_COMPLETE) {
        error_set(s->error, sizeof s->error, 0, "the machine has ended meanwhile");
        give_up(s);
        fail(s);
    }
    pthread_cond_destroy(&s->go_on);
    pthread_cond_destroy(&s->room);
    pthread_mutex_destroy(&s->lock);
    free(s);
    vm->saving = NULL;
}

/* --- what is asked ----------------------------------------------------------------------------------------------- */

/* Why this machine cannot be saved, as an error of the call; false: it can. */
static bool refused(struct control_call *call)
{
    const struct vm *vm = call->opaque;
    const struct vm_record *record = vm->config->life->record;
    bool own_disk = record_has_disk(record);

    if (vm->parked >= 0)
        return control_fail(call, "wrong-state", "it only stands by, for copies to be made of it"), true;
    char why[ERROR_SIZE];
    if (shares_refused(vm, why, sizeof why))
        return control_fail(call, "unsupported", "%s", why), true;
    for (unsigned i = own_disk; i < vm->n_disks; i++)
        if (!vm->disks[i]->read_only)
            return control_fail(call, "unsupported",
                                "it writes to disk %s, which is not its own and would go on without it: only disks of "
                                "images, and disks that are ro, are part of a snapshot",
                                vm->disks[i]->spec.path),
                   true;
    if (vm->saving && vm->saving->state < SAVING_COMPLETE)
        return control_fail(call, "wrong-state", "a snapshot is being taken already"), true;
    if (migration_is_under_way(vm))
        return control_fail(call, "wrong-state", "it is on its way to another process, or from one"), true;
    return false;
}

static void disk_flushed(struct disk_request *r)
{
    struct saving *s = r->opaque;

    s->state = SAVING_DUE; /* whether it could is seen when it is done again, in the pause */
    loop_stop(s->vm->loop);
}

/* One for all snapshots of the machine: a vCPU that has only just seen that a chunk is to be kept may look at it when
 * the snapshot is over. */
static struct saving *renew(struct vm *vm, bool fork)
{
    struct saving *s = vm->saving;

    if (!s) {
        s = vm->saving = calloc(1, sizeof *s);
        if (!s)
            return NULL;
        pthread_mutex_init(&s->lock, NULL);
        pthread_cond_init(&s->room, NULL);
        pthread_cond_init(&s->go_on, NULL);
        loop_timer_init(&s->look, look, s);
        s->vm = vm;
        s->kept_end = &s->kept;
    }
    s->layer_name[0] = s->error[0] = 0;
    s->pause_ns = 0;
    s->give_up = s->stood = s->last = s->last_begun = s->all_kept = false;
    s->done_bytes = 0;
    s->written_bytes = 0;
    s->round = 0;
    s->written = 0;
    s->stalls = 0;
    s->by_rounds = !fork && !memory_is_announced(machine_memory(vm->machine));
    return s;
}

/* The guest runs while most of what it has written to its disk gets there. */
static void start(struct saving *s)
{
    struct vm *vm = s->vm;

    s->state = SAVING_FLUSHING;
    if (s->fork >= 0 && !memory_is_settled(machine_memory(vm->machine))) { /* it was restored a moment ago */
        loop_timer_set(vm->loop, &s->look, clock_ns() + LOOK_NS);
        return;
    }
    if (s->layer < 0 || (s->by_rounds && !s->last)) {
        s->state = SAVING_DUE;
        loop_stop(vm->loop);
        return;
    }
    s->flush = (struct disk_request){.op = DISK_FLUSH, .done = disk_flushed, .opaque = s};
    disk_submit(vm->disks[0], &s->flush);
    disk_kick(vm->disks[0]);
}

static json_t *begin(struct control_call *call, bool fork)
{
    struct vm *vm = call->opaque;
    bool own_disk = record_has_disk(vm->config->life->record);
    const char *tag = json_string_value(json_object_get(call->arguments, "tag"));
    const char *layer = json_string_value(json_object_get(call->arguments, "layer"));
    int fds[CONTROL_FDS_MAX];
    unsigned n = control_take_fds(call, fds);
    struct saving *s = NULL;

    if (n != 1u + own_disk || !tag || strlen(tag) >= sizeof s->tag ||
        (own_disk && (!layer || strlen(layer) >= sizeof s->layer_name)))
        control_fail(call, "bad-request",
                     "\"tag\" and the descriptor of a file must be given, and for a machine with a disk \"layer\" and "
                     "that of a new overlay on its disk");
    else if (!refused(call) && !(s = renew(vm, fork)))
        control_fail(call, "failed", "out of memory");
    if (!s) {
        while (n)
            close(fds[--n]);
        return NULL;
    }
    s->file = fork ? -1 : fds[0];
    s->fork = fork ? fds[0] : -1;
    s->park = json_is_true(json_object_get(call->arguments, "park"));
    s->layer = own_disk ? fds[1] : -1;
    snprintf(s->tag, sizeof s->tag, "%s", tag);
    snprintf(s->layer_name, sizeof s->layer_name, "%s", own_disk ? layer : "");
    s->ticket = control_ticket(call);
    s->client = s->ticket.client;
    call->later = true;
    start(s);
    return NULL;
}

static json_t *begin_snapshot(struct control_call *call)
{
    return begin(call, false);
}

json_t *command_fork(struct control_call *call)
{
    const struct vm *vm = call->opaque;

    if (vm->parked >= 0)
        return fork_again(call) ? describe(vm->saving) : NULL;
    return fork_refused(call) ? NULL : begin(call, true);
}

static json_t *status(struct control_call *call)
{
    const struct vm *vm = call->opaque;
    json_t *status = vm->saving ? describe(vm->saving) : json_pack("{s:s}", "state", "none");
    char id[DISK_OVERLAY_ID_SIZE];

    if (record_has_disk(vm->config->life->record) && disk_overlay_id_of(vm->disks[0], id))
        json_object_set_new(status, "disk", json_string(id));
    return status;
}

static json_t *cancel(struct control_call *call)
{
    const struct vm *vm = call->opaque;

    if (!vm->saving || (vm->saving->state != SAVING_WRITING && vm->saving->state != SAVING_COPYING))
        return control_fail(call, "wrong-state", "no snapshot is being written");
    give_up(vm->saving);
    return json_object();
}

static const struct {
    const char *action;
    json_t *(*run)(struct control_call *call);
} actions[] = {{"begin", begin_snapshot}, {"status", status}, {"cancel", cancel}};

json_t *command_snapshot(struct control_call *call)
{
    const char *action = json_string_value(json_object_get(call->arguments, "action"));

    for (size_t i = 0; i < sizeof actions / sizeof *actions; i++)
        if (action && strcmp(actions[i].action, action) == 0)
            return actions[i].run(call);
    return control_fail(call, "bad-request", "\"action\" is not one of begin, status, cancel");
}
