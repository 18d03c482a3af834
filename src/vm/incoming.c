/* The destination of a migration: a machine that waits, is received, and runs when it is told to. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/error.h"
#include "base/log.h"
#include "host/unix.h"
#include "machine/machine.h"
#include "memory/faults.h"
#include "memory/memory.h"
#include "vm/life.h"
#include "vm/link.h"
#include "vm/migration_int.h"
#include "vm/migration_storage.h"
#include "vm/prepare.h"
#include "vm/shares.h"
#include "vm/snapshot.h"

#define AGAIN_NS 1000000000ull

const char *const incoming_state_names[] = {"waiting", "receiving", "complete", "complete", "arriving", "running"};

static void arrived(void *opaque);

int incoming_open(struct vm *vm, char *err, size_t n)
{
    struct incoming *in = vm->incoming = calloc(1, sizeof *in);

    if (!in)
        return error_sys(err, n, -ENOMEM, "it cannot be received");
    *in = (struct incoming){.vm = vm, .record = -1, .notice = {-1, -1}, .owner = geteuid()};
    pthread_mutex_init(&in->lock, NULL);
    loop_timer_init(&in->again, arrived, in);
    in->door = unix_listen(vm->config->life->door, 4, err, n);
    if (!memory_is_announced(machine_memory(vm->machine)))
        (void)memory_faults_open(machine_memory(vm->machine), true); /* else it will be refused what needs it */
    return in->door < 0 ? in->door : 0;
}

static void let_go(struct incoming *in)
{
    const int fds[] = {in->record, in->notice[0], in->notice[1], in->door};

    arriving_end(in);
    incoming_threads_stop(in);
    loop_timer_cancel(in->vm->loop, &in->again);
    if (in->notice[0] >= 0)
        loop_fd_del(in->vm->loop, in->notice[0]);
    for (size_t i = 0; i < sizeof fds / sizeof *fds; i++)
        if (fds[i] >= 0)
            close(fds[i]);
    in->record = in->notice[0] = in->notice[1] = in->door = -1;
    sections_free(&in->sections);
}

/* One that has ended in an orderly way has no use for the rest of its memory: what there is of it is here. */
void incoming_close(struct vm *vm)
{
    if (vm->incoming->state == INCOMING_ARRIVING)
        migration_decide(vm->incoming->record, true);
    let_go(vm->incoming);
    pthread_mutex_destroy(&vm->incoming->lock);
    free(vm->incoming);
    vm->incoming = NULL;
}

static struct control *control_of(const struct incoming *in)
{
    return in->vm->config->life->control;
}

/* It will not run: says why, to who waits, and ends. */
static void fail(struct incoming *in, const char *reason)
{
    if (in->wait.id)
        control_reply(control_of(in), &in->wait, NULL, "failed", reason);
    if (in->go.id)
        control_reply(control_of(in), &in->go, NULL, "failed", reason);
    vm_end(in->vm, VM_FAILED, "it could not be received: %s", reason);
}

/* --- complete ---------------------------------------------------------------------------------------------------- */

static void flushed(struct disk_request *r) {}

/* What was received of the disk is on stable storage. */
static int flush_disk(struct incoming *in)
{
    struct disk_request flush = {.op = DISK_FLUSH, .done = flushed, .result = -EIO};

    if (!record_has_disk(in->vm->config->life->record) || in->vm->disks[0]->away)
        return 0;
    disk_submit(in->vm->disks[0], &flush);
    disk_drain(in->vm->disks[0]);
    return flush.result;
}

static int check(struct incoming *in, char *why, size_t n)
{
    unsigned bad;
    int failed = snapshot_load_simd(in->vm, &in->sections, &bad);

    if (failed)
        return error_set(why, n, failed, "CPU %u has no SIMD registers, or impossible ones", bad);
    failed = machine_restore_check(in->vm->machine, &in->sections, why, n);
    if (!failed)
        failed = shares_load(in->vm, &in->sections, why, n);
    if (!failed && (failed = flush_disk(in)))
        error_sys(why, n, failed, "its disk cannot be written");
    return failed;
}

static json_t *describe_complete(const struct incoming *in)
{
    return json_pack("{s:b}", "lacking", in->arriving != NULL);
}

/* All of the memory is there, too.  Until that is written down a death here would be taken for a loss of memory. */
static void arrived(void *opaque)
{
    struct incoming *in = opaque;
    int failed = migration_decide(in->record, true);

    if (failed) {
        log_say("it cannot be written down that all memory is here, and is tried again: %s", strerror(-failed));
        loop_timer_set(in->vm->loop, &in->again, clock_ns() + AGAIN_NS);
        return;
    }
    in->state = INCOMING_GONE;
    life_event(in->vm, "arrived", NULL);
    let_go(in);
}

/* A byte has come: all streams have ended, or one is of no use; or the last of the memory that was left is there. */
static void received(void *opaque, uint32_t events)
{
    struct incoming *in = opaque;
    char byte, why[ERROR_SIZE];

    (void)!read(in->notice[0], &byte, 1);
    if (in->state == INCOMING_ARRIVING && !arriving_left(in))
        arrived(in);
    if (in->state != INCOMING_RECEIVING)
        return;
    pthread_mutex_lock(&in->lock);
    int failed = in->failed;
    snprintf(why, sizeof why, "%s", in->reason);
    pthread_mutex_unlock(&in->lock);
    if (!failed)
        failed = check(in, why, sizeof why);
    if (!failed && sections_find(&in->sections, "absent", "memory")) {
        incoming_threads_join(in);
        failed = arriving_begin(in, why, sizeof why);
    }
    if (failed) {
        in->state = INCOMING_WAITING; /* nothing is worth keeping */
        fail(in, why);
        return;
    }
    in->state = INCOMING_COMPLETE;
    storage_note(in);
    in->vm->config->life->attached = false; /* it waits, whoever goes away */
    if (in->wait.id)
        control_reply(control_of(in), &in->wait, describe_complete(in), NULL, NULL);
}

/* --- go ---------------------------------------------------------------------------------------------------------- */

/* What the source says of it beside its state; NULL: nothing. */
static json_t *read_about(const struct incoming *in)
{
    const struct section *s = sections_find(&in->sections, "about", "json");

    return s ? json_loadb((const char *)s->bytes, s->size, 0, NULL) : NULL;
}

void incoming_step(struct vm *vm)
{
    struct incoming *in = vm->incoming;
    char why[ERROR_SIZE];
    int failed = in->arriving ? migration_decide_partly(in->record) : migration_decide(in->record, true);

    if (failed) { /* it may be tried again */
        migration_decide(in->record, false);
        storage_put_back(vm);
        in->state = INCOMING_COMPLETE;
        error_sys(why, sizeof why, failed, "it cannot be written down that it runs here");
        control_reply(control_of(in), &in->go, NULL, "failed", why);
        return;
    }
    failed = in->arriving ? arriving_start(in) : 0;
    if (failed)
        error_sys(why, sizeof why, failed, "its memory cannot be received");
    else
        failed = machine_restore(vm->machine, &in->sections, why, sizeof why);
    if (failed && in->arriving) /* it has not run: the source, which has all of it, may go on */
        migration_decide(in->record, false);
    in->state = in->arriving && !failed ? INCOMING_ARRIVING : INCOMING_GONE;
    if (failed) {
        fail(in, why);
        return;
    }
    life_started(vm);
    life_event(vm, "migrated", NULL);
    control_reply(control_of(in), &in->go, json_object(), NULL, NULL);
    json_t *about = read_about(in);
    if (json_is_true(json_object_get(about, "agent")))
        link_restored(vm, false);
    incoming_ports_begin(vm, json_object_get(about, "ports"));
    json_decref(about);
    if (!in->arriving)
        let_go(in);
    else if (!arriving_left(in))
        arrived(in);
}

/* --- what is asked ----------------------------------------------------------------------------------------------- */

static json_t *begin(struct incoming *in, struct control_call *call)
{
    int fds[CONTROL_FDS_MAX], err = 0;
    unsigned extra = json_is_true(json_object_get(call->arguments, "postcopy")) ? MIGRATION_EXTRA : 0;
    unsigned n = control_take_fds(call, fds);

    if (n < 2 + extra || n > 1 + extra + MIGRATION_STREAMS_MAX || in->state != INCOMING_WAITING || in->n_streams) {
        while (n)
            close(fds[--n]);
        return control_fail(call, "bad-request", "the descriptors of a record and of streams must be given, once");
    }
    in->record = fds[0];
    in->n_streams = n - 1 - extra;
    in->n_extra = extra;
    in->n_chunks = memory_chunks(machine_memory(in->vm->machine));
    if (!extra)
        memory_faults_close(machine_memory(in->vm->machine));
    for (unsigned i = 0; i < n - 1; i++) {
        in->streams[i].incoming = in;
        int failed = wire_open(&in->streams[i].wire, fds[1 + i], false);
        err = err ? err : failed;
    }
    if (!err && socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, in->notice))
        err = -errno;
    if (!err)
        err = loop_fd_add(in->vm->loop, in->notice[0], EPOLLIN, received, in);
    if (!err) {
        in->state = INCOMING_RECEIVING;
        err = incoming_threads_start(in);
    }
    return err ? control_fail(call, "failed", "it cannot be received: %s", strerror(-err)) : json_object();
}

static json_t *wait(struct incoming *in, struct control_call *call)
{
    if (in->state == INCOMING_COMPLETE)
        return describe_complete(in);
    if (in->state != INCOMING_RECEIVING || in->wait.id)
        return control_fail(call, "wrong-state", "it is not being received");
    in->wait = control_ticket(call);
    call->later = true;
    return NULL;
}

static json_t *go(struct incoming *in, struct control_call *call)
{
    int fds[CONTROL_FDS_MAX];
    unsigned n = control_take_fds(call, fds);
    char why[ERROR_SIZE] = "it has not been received as a whole";
    bool vouched = json_is_true(json_object_get(call->arguments, "vouched"));

    if (in->state != INCOMING_COMPLETE || (vouched && !storage_is_noted(in, why, sizeof why))) {
        while (n)
            close(fds[--n]);
        return control_fail(call, "wrong-state", "%s", why);
    }
    if (storage_take(in->vm, fds, n, why, sizeof why))
        return control_fail(call, "failed", "%s", why);
    in->go = control_ticket(call);
    call->later = true;
    in->state = INCOMING_DUE;
    loop_stop(in->vm->loop);
    return NULL;
}

static json_t *status(struct incoming *in, struct control_call *call)
{
    uint64_t bytes = in->arriving ? arriving_received(in) : 0;

    for (unsigned i = 0; i < in->n_streams && !in->arriving; i++)
        bytes += in->streams[i].wire.bytes;
    return json_pack("{s:s, s:I, s:I, s:o}", "state", incoming_state_names[in->state], "received_bytes",
                     (json_int_t)bytes, "left_bytes", (json_int_t)(in->arriving ? arriving_left(in) : 0), "files",
                     storage_wanted(in->vm));
}

static const struct {
    const char *action;
    json_t *(*run)(struct incoming *in, struct control_call *call);
} actions[] = {{"begin", begin}, {"wait", wait}, {"go", go}, {"status", status}};

json_t *command_incoming(struct control_call *call)
{
    struct vm *vm = call->opaque;
    const char *action = json_string_value(json_object_get(call->arguments, "action"));

    if (!vm->incoming)
        return control_fail(call, "wrong-state", "it is not being received");
    for (size_t i = 0; i < sizeof actions / sizeof *actions; i++)
        if (action && strcmp(actions[i].action, action) == 0)
            return actions[i].run(vm->incoming, call);
    return control_fail(call, "bad-request", "\"action\" is not one of begin, wait, go, status");
}
