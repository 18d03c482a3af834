#include "vm/life.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/utf8.h"
#include "vm/cpus.h"
#include "vm/link.h"

#define TRIM_NS 60000000000ull

static struct vm_life *life_of(struct vm *vm)
{
    return vm->config->life;
}

static void client_gone(void *opaque)
{
    struct vm *vm = opaque;

    if (life_of(vm)->attached)
        vm_end(vm, VM_USER_LEFT, "the command that it ran for has gone");
}

static size_t typed(void *opaque, const void *data, size_t len)
{
    struct vm *vm = opaque;

    return machine_console_input(vm->machine, data, len);
}

static void grace_over(void *opaque)
{
    vm_end(opaque, VM_USER_LEFT, "switched off: the guest did not shut down in time");
}

/* Now and then: what is said there is for a person to read, and little. */
static void trim_log(void *opaque)
{
    struct vm *vm = opaque;

    logfile_trim(&life_of(vm)->said);
    loop_timer_set(vm->loop, &life_of(vm)->trim, clock_ns() + TRIM_NS);
}

int life_open(struct vm *vm, char *err, size_t n)
{
    struct vm_life *life = life_of(vm);

    if (!life)
        return 0;
    const struct control_config config = {.path = life->socket,
                                          .client = life->client,
                                          .loop = vm->loop,
                                          .commands = vm_commands,
                                          .opaque = vm,
                                          .client_gone = client_gone};
    loop_timer_init(&life->grace, grace_over, vm);
    loop_timer_init(&life->trim, trim_log, vm);
    cpus_open(vm);
    int failed = control_create(&life->control, &config, err, n);
    if (failed)
        return failed;
    if (life->said.limit)
        trim_log(vm);
    life->client = -1;
    life->statm = open("/proc/self/statm", O_RDONLY | O_CLOEXEC);
    control_set_console_input(life->control, typed, vm);
    return link_open(vm, err, n);
}

/* To the log, and to who listens: before there is a control socket that is the connection we were started with. */
static void tell(struct vm_life *life, const char *event, json_t *data)
{
    char *line = event_log_add(&life->events, event, data);

    if (line && life->control)
        control_event(life->control, line, strlen(line));
    else if (line && life->client >= 0)
        (void)!send(life->client, line, strlen(line), MSG_NOSIGNAL);
    free(line);
}

void life_event(struct vm *vm, const char *event, json_t *data)
{
    if (life_of(vm))
        tell(life_of(vm), event, data);
    else
        json_decref(data);
}

void life_started(struct vm *vm)
{
    struct vm_life *life = life_of(vm);

    if (!life)
        return;
    life->run = (struct vm_run){.state = VM_RUNNING, .pid = (int)getpid(), .started_ms = timestamp_ms()};
    snprintf(life->run.engine, sizeof life->run.engine, "%s", vm->ops->name);
    registry_set_run(life->lock, &life->run);
    tell(life, "started", json_pack("{s:s, s:i}", "engine", vm->ops->name, "pid", (int)getpid()));
}

void life_incoming(struct vm *vm)
{
    struct vm_life *life = life_of(vm);

    life->run = (struct vm_run){.state = VM_INCOMING, .pid = (int)getpid(), .started_ms = timestamp_ms()};
    snprintf(life->run.engine, sizeof life->run.engine, "%s", vm->ops->name);
    registry_set_run(life->lock, &life->run);
    tell(life, "incoming", NULL);
}

void life_moved(struct vm *vm, bool moved)
{
    struct vm_life *life = life_of(vm);

    life->run.state = moved ? VM_MOVED : VM_RUNNING;
    registry_set_run(life->lock, &life->run);
    tell(life, moved ? "given-up" : "taken-back", NULL);
}

static const struct {
    const char *word, *event;
    bool failed;
} ends[] = {
    [VM_POWEROFF] = {"poweroff", "stopped", false},      [VM_RESET] = {"reset", "stopped", false},
    [VM_USER_LEFT] = {"switched-off", "stopped", false}, [VM_CRASHED] = {"crash", "crashed", true},
    [VM_FAILED] = {"failure", "failed", true},           [VM_TIMEOUT] = {"timeout", "stopped", true},
    [VM_UNAVAILABLE] = {"unavailable", "failed", true},  [VM_SIGNAL] = {"signal", "stopped", false},
    [VM_MOVED_AWAY] = {"moved", "stopped", false},
};

static void set_ended(struct vm_life *life, enum vm_end end, const char *reason)
{
    life->run.state = end == VM_MOVED_AWAY ? VM_MOVED : VM_STOPPED;
    life->run.ended_ms = timestamp_ms();
    life->run.failed = ends[end].failed;
    snprintf(life->run.reason, sizeof life->run.reason, "%s", reason);
    utf8_repair(life->run.reason); /* it may name a file */
    registry_set_run(life->lock, &life->run);
    tell(life, ends[end].event, json_pack("{s:s, s:s}", "end", ends[end].word, "reason", life->run.reason));
}

void life_ended(struct vm *vm)
{
    if (life_of(vm))
        set_ended(life_of(vm), vm->result->end, vm->result->reason);
}

void life_never_began(struct vm_life *life, const char *reason)
{
    set_ended(life, VM_FAILED, reason);
}

void life_console_output(struct vm *vm, const void *data, size_t len)
{
    if (life_of(vm) && life_of(vm)->control)
        control_console_write(life_of(vm)->control, data, len);
}

void life_console_space(struct vm *vm)
{
    if (life_of(vm) && life_of(vm)->control)
        control_console_resume(life_of(vm)->control);
}

void life_reset(struct vm *vm)
{
    link_reset(vm);
    life_event(vm, "reset", NULL);
}

void life_close(struct vm *vm)
{
    struct vm_life *life = life_of(vm);

    if (!life || !life->control)
        return;
    loop_timer_cancel(vm->loop, &life->grace);
    loop_timer_cancel(vm->loop, &life->trim);
    cpus_close(vm);
    control_destroy(life->control);
    close(life->statm);
    life->control = NULL;
    link_close(vm);
}
