#include "vm/merge.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "backends/disk.h"
#include "backends/disk/overlay.h"
#include "base/error.h"
#include "host/sandbox.h"
#include "host/thread.h"
#include "vm/control.h"
#include "vm/life.h"
#include "vm/migration.h"
#include "vm/prepare.h"
#include "vm/vm_int.h"

#define LOOK_NS 2000000

struct merging {
    struct vm *vm;
    struct disk_merge *merge;
    struct control_ticket ticket;
    struct loop_timer look; /* after the thread */
    pthread_t thread;
    _Atomic bool give_up;
    _Atomic int result; /* 1: at work; 0 or -errno: it has ended */
};

static void *merge_main(void *opaque)
{
    struct merging *m = opaque;

    prctl(PR_SET_NAME, "merge");
    int err = sandbox_thread(m->vm->sandbox, SANDBOX_WORKER);
    if (!err)
        err = disk_merge_run(m->merge, &m->give_up);
    m->result = err;
    return NULL;
}

/* code NULL: it is done. */
static void finish(struct merging *m, const char *code, const char *why)
{
    struct vm *vm = m->vm;

    pthread_join(m->thread, NULL);
    if (!code)
        disk_drain(vm->disks[0]);
    disk_merge_end(m->merge, !code);
    control_reply(vm->config->life->control, &m->ticket, code ? NULL : json_object(), code, why);
    loop_timer_cancel(vm->loop, &m->look);
    free(m);
    vm->merging = NULL;
}

/* On the loop, now and then. */
static void look(void *opaque)
{
    struct merging *m = opaque;
    char why[ERROR_SIZE];

    if (m->result == 1) {
        loop_timer_set(m->vm->loop, &m->look, clock_ns() + LOOK_NS);
    } else if (m->result) {
        error_sys(why, sizeof why, m->result, "the layers of its disk cannot be merged");
        finish(m, "failed", why);
    } else if (migration_is_under_way(m->vm)) { /* which has noted what is where */
        finish(m, "wrong-state", "it is on its way to another process, or from one");
    } else {
        finish(m, NULL, NULL);
    }
}

void merge_abandon(struct vm *vm)
{
    if (!vm->merging)
        return;
    vm->merging->give_up = true;
    finish(vm->merging, "wrong-state", "the machine has ended meanwhile");
}

static json_t *begin(struct control_call *call, const char *upper, const char *lower, const int fds[2])
{
    struct vm *vm = call->opaque;
    struct merging *m = calloc(1, sizeof *m);
    char why[ERROR_SIZE];
    int failed = m ? disk_merge_begin(&m->merge, vm->disks[0], upper, lower, fds, why, sizeof why)
                   : error_set(why, sizeof why, -ENOMEM, "out of memory");

    if (failed) {
        close(fds[0]);
        close(fds[1]);
        free(m);
        return control_fail(call, failed == -ENOENT ? "not-found" : "failed", "%s", why);
    }
    m->vm = vm;
    m->result = 1;
    loop_timer_init(&m->look, look, m);
    failed = thread_start(&m->thread, NULL, merge_main, m);
    if (failed) {
        disk_merge_end(m->merge, false);
        free(m);
        return control_fail(call, "failed", "no thread can be started: %s", strerror(-failed));
    }
    vm->merging = m;
    m->ticket = control_ticket(call);
    call->later = true;
    loop_timer_set(vm->loop, &m->look, clock_ns() + LOOK_NS);
    return NULL;
}

json_t *command_merge(struct control_call *call)
{
    const struct vm *vm = call->opaque;
    const char *upper = json_string_value(json_object_get(call->arguments, "upper"));
    const char *lower = json_string_value(json_object_get(call->arguments, "lower"));
    int fds[CONTROL_FDS_MAX];
    unsigned n = control_take_fds(call, fds);

    if (n != 2 || !upper || !lower)
        control_fail(call, "bad-request", "\"upper\", \"lower\" and two descriptors of a file must be given");
    else if (!record_has_disk(vm->config->life->record))
        control_fail(call, "unsupported", "it has no disk of its own");
    else if (vm->merging || migration_is_under_way(vm))
        control_fail(call, "wrong-state",
                     vm->merging ? "layers of its disk are being merged already"
                                 : "it is on its way to another process, or from one");
    else
        return begin(call, upper, lower, fds);
    while (n)
        close(fds[--n]);
    return NULL;
}
