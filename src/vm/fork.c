#include "vm/fork.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "backends/net.h"
#include "base/error.h"
#include "host/unix.h"
#include "vm/life.h"
#include "vm/snapshot_int.h"

#define LAYOUT_KIND "about" /* what a machine_restore passes over */
#define LAYOUT_NAME "templates"
#define CODE_NAME "code"

/* --- what cannot be copied --------------------------------------------------------------------------------------- */

bool fork_refused(struct control_call *call)
{
    const struct vm *vm = call->opaque;
    const struct vm_config *told = &vm->config->life->record->settings.config;

    if (!memory_can_be_common(machine_memory(vm->machine)))
        return control_fail(call, "unsupported",
                            "the host does not say which pages of memory the guest writes to (/proc/self/pagemap could "
                            "not be opened when the machine was started), and on the %s engine nobody else does: "
                            "`guise snapshot export` and `guise restore --from FILE --clone` make a copy of it",
                            vm->ops->name),
               true;
    for (unsigned i = 0; i < vm->n_nets; i++)
        if (!net_can_publish(vm->nets[i]))
            return control_fail(call, "unsupported",
                                "it has a card in a network with others, where a copy would have the same addresses: "
                                "only machines with networks of their own (--net user) are forked"),
                   true;
    if (told->ports.n || told->vsock_path)
        return control_fail(call, "unsupported",
                            "it has a place on the host that its %s leads to, and a copy would have the same: such a "
                            "machine is not forked",
                            told->ports.n ? "--port" : "--vsock"),
               true;
    return false;
}

/* --- there is no memory for a page ------------------------------------------------------------------------------- */

/* On any thread, with any lock: the vCPUs stop, and the loop says why. */
void vm_exhausted(void *opaque)
{
    struct vm *vm = opaque;

    atomic_store(&vm->exhausted, true);
    atomic_store(&vm->stop, true);
    for (unsigned i = 0; i < vm_vcpus(vm->config); i++) {
        atomic_fetch_or(&vm->vcpus[i].cpu->request, REQ_EXIT);
        vm_kick(vm, i);
    }
}

/* --- messages --------------------------------------------------------------------------------------------------- */

_Static_assert(FORK_FDS_MAX <= UNIX_FDS_MAX, "all go in one message");

static int send_all(int socket, const int *fds, unsigned n)
{
    ssize_t sent = unix_send_fds(socket, FORK_MESSAGE, sizeof FORK_MESSAGE, fds, n, MSG_DONTWAIT);

    return sent < 0 ? (int)sent : 0;
}

enum { OFFERED_STATE, OFFERED_RAM, OFFERED_CODE, OFFERED };

int fork_offer(int socket, char *err, size_t n)
{
    const int fds[OFFERED] = {[OFFERED_STATE] = memfd_create("guise-fork", MFD_CLOEXEC),
                              [OFFERED_RAM] = memfd_create("guise-ram", MFD_CLOEXEC | MFD_ALLOW_SEALING),
                              [OFFERED_CODE] = memfd_create("guise-code", MFD_CLOEXEC | MFD_ALLOW_SEALING)};
    int failed = fds[0] < 0 || fds[1] < 0 || fds[2] < 0 ? -errno : send_all(socket, fds, OFFERED);

    for (unsigned i = 0; i < OFFERED; i++)
        if (fds[i] >= 0)
            close(fds[i]);
    return failed ? error_sys(err, n, failed, "cannot offer memory to the machine") : 0;
}

int fork_receive(int socket, int fds[FORK_FDS_MAX], char *err, size_t n)
{
    char text[sizeof FORK_MESSAGE];
    unsigned count = FORK_FDS_MAX;
    ssize_t got = unix_receive_fds(socket, text, sizeof text, fds, &count, MSG_DONTWAIT);

    if (count < 2) {
        if (count)
            close(fds[0]);
        return error_sys(err, n, got < 0 ? (int)got : -EPROTO, "what a copy is made of was not handed over");
    }
    return (int)count;
}

/* --- the one that is forked -------------------------------------------------------------------------------------- */

/* The layout: for each run its pages and its template's number, 4 bytes each, little-endian. */
static int add_layout(struct saving *s, const struct memory_run *runs, uint32_t n)
{
    return sections_add(&s->sections, LAYOUT_KIND, LAYOUT_NAME, 1, runs, n * sizeof *runs);
}

/* What the engine has made of the guest's code: without it copies take longer.  Takes fd, an empty file of memory;
 * *code is the descriptor that they get, the engine's, or -1. */
static int add_code(struct saving *s, int fd, int *code)
{
    const struct engine_ops *ops = s->vm->ops;
    struct engine_code head;

    *code = -1;
    if (!ops->get_code) {
        close(fd);
        return 0;
    }
    int got = ops->get_code(s->vm->engine, fd, &head);
    if (got < 0)
        return 0;
    int err = sections_add(&s->sections, LAYOUT_KIND, CODE_NAME, 1, head.bytes, head.n);
    free(head.bytes);
    *code = got;
    return err;
}

static int write_state(struct saving *s, int fd)
{
    struct snapshot_writer *w;
    int err = snapshot_writer_create(&w, fd);

    if (err)
        return err;
    err = snapshot_write_sections(w, &s->sections);
    if (!err)
        err = snapshot_write_end(w);
    snapshot_writer_destroy(w);
    return err;
}

/* The machine does not run on, nor does it end with whoever has started it. */
static void park(struct saving *s, int state, int code)
{
    s->vm->parked = state;
    s->vm->parked_code = code;
    s->vm->config->life->attached = false;
    s->vm->config->life->ready_ns = 0; /* nobody answers inside */
}

bool fork_again(struct control_call *call)
{
    struct vm *vm = call->opaque;
    struct memory_run *runs = NULL;
    uint32_t n_runs = 0;
    int socket[CONTROL_FDS_MAX], fds[FORK_FDS_MAX] = {vm->parked};
    int offered[FORK_FDS_MAX];
    unsigned given = control_take_fds(call, socket);
    int unused = given == 1 ? fork_receive(socket[0], offered, NULL, 0) : 0; /* it needs no memory any more */
    int n = given == 1 ? memory_templates(machine_memory(vm->machine), fds + 1, &runs, &n_runs) : -EINVAL;
    if (n >= 0 && vm->parked_code >= 0)
        fds[1 + n++] = vm->parked_code;
    int err = n < 0 ? n : send_all(socket[0], fds, 1 + (unsigned)n);

    free(runs);
    while (unused > 0)
        close(offered[--unused]);
    while (given)
        close(socket[--given]);
    if (err)
        control_fail(call, "failed", "the copies' state cannot be handed over: %s", strerror(-err));
    return !err;
}

/* state: a file for it, which stays the caller's; code: one that is taken over, and then *code as add_code says. */
static int send_copies_parts(struct saving *s, int state, int *code)
{
    struct memory_run *runs = NULL;
    uint32_t n_runs = 0;
    int fds[FORK_FDS_MAX] = {state};
    int n = memory_templates(machine_memory(s->vm->machine), fds + 1, &runs, &n_runs);
    int err = n < 0 ? n : add_layout(s, runs, n_runs);

    free(runs);
    if (err)
        close(*code);
    else
        err = add_code(s, *code, code);
    if (!err && *code >= 0)
        fds[1 + n++] = *code;
    if (!err)
        err = write_state(s, state);
    if (!err)
        err = send_all(s->fork, fds, 1 + (unsigned)n);
    return err ? error_sys(s->error, sizeof s->error, err, "the copies' state cannot be handed over") : 0;
}

int fork_hand_over(struct saving *s)
{
    struct memory *m = machine_memory(s->vm->machine);
    int fds[FORK_FDS_MAX], n = fork_receive(s->fork, fds, s->error, sizeof s->error);
    int err = n < OFFERED ? -EPROTO : memory_freeze(m, fds[OFFERED_RAM]);

    if (!err) {
        int code = fds[OFFERED_CODE];
        fds[OFFERED_RAM] = fds[OFFERED_CODE] = -1;
        memory_set_exhausted(m, vm_exhausted, s->vm);
        s->vm->ops->watch(s->vm->engine);
        err = send_copies_parts(s, fds[OFFERED_STATE], &code);
        if (!err && s->park) {
            park(s, fds[OFFERED_STATE], code);
            fds[OFFERED_STATE] = -1;
        }
    } else if (n >= OFFERED) {
        error_sys(s->error, sizeof s->error, err, "memory cannot become a template");
    }
    for (int i = 0; i < n; i++)
        if (fds[i] >= 0)
            close(fds[i]);
    return err;
}

/* --- a copy ------------------------------------------------------------------------------------------------------ */

int fork_adopt(struct vm *vm, struct restore *r, char *err, size_t n)
{
    struct memory *m = machine_memory(vm->machine);
    const struct section *s = sections_find(&r->file.sections, LAYOUT_KIND, LAYOUT_NAME);
    int failed = s && s->version == 1 && s->size % sizeof(struct memory_run) == 0 ? 0 : -EBADMSG;

    if (!failed) /* sections are allocated: they are aligned */
        failed = memory_adopt(m, r->templates, r->n_templates, (const struct memory_run *)(const void *)s->bytes,
                              s->size / (uint32_t)sizeof(struct memory_run));
    if (failed)
        return error_sys(err, n, failed, "the memory that is to be copied cannot be used");
    r->n_templates = 0; /* the memory's now */
    memory_set_exhausted(m, vm_exhausted, vm);
    return 0;
}

static const struct section *find_code(const struct restore *r)
{
    const struct section *s = sections_find(&r->file.sections, LAYOUT_KIND, CODE_NAME);

    return s && s->version == 1 ? s : NULL;
}

bool fork_has_code(const struct restore *r)
{
    return find_code(r) != NULL;
}

int fork_take_code(struct vm *vm, const struct restore *r, char *err, size_t n)
{
    const struct section *s = find_code(r);

    if (!s || r->code < 0 || !vm->ops->set_code)
        return 0;
    const struct engine_code head = {s->bytes, s->size};
    int failed = vm->ops->set_code(vm->engine, r->code, &head);
    return failed && failed != -ENOTSUP
               ? error_sys(err, n, failed, "what the copied machine's engine has made cannot be used")
               : 0;
}
