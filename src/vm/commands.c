/* What can be asked of a VM process (docs/CONTROL.md): one function and one row each. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/timestamp.h"
#include "host/sandbox.h"
#include "vm/commands.h"
#include "vm/fork.h"
#include "vm/life.h"
#include "vm/link.h"
#include "vm/merge.h"
#include "vm/migration.h"
#include "vm/registry.h"
#include "vm/snapshot.h"

#define GRACE_MS_MAX 3600000
#define LOG_BYTES_MAX 65536
#define LIMIT_MS_MAX 1000000000000ll

static struct vm_life *life_of(const struct control_call *call)
{
    struct vm *vm = call->opaque;
    return vm->config->life;
}

static const char *text_argument(const struct control_call *call, const char *key, const char *otherwise)
{
    const char *text = json_string_value(json_object_get(call->arguments, key));
    return text ? text : otherwise;
}

static json_t *command_status(struct control_call *call)
{
    const struct vm *vm = call->opaque;
    const struct vm_life *life = life_of(call);

    return json_pack("{s:s, s:s, s:b, s:b, s:I}", "name", life->record->name, "state", "running", "agent",
                     (int)(life->ready_ns != 0), "parked", (int)(vm->parked >= 0), "uptime_ms",
                     (json_int_t)(timestamp_ms() - life->run.started_ms));
}

/* The steps that were taken, by name; the user when that is not the one who started it. */
static json_t *describe_sandbox(const struct sandbox *s)
{
    json_t *steps = json_array();

    for (unsigned i = 0; s && i < SANDBOX_STEPS; i++)
        if (sandbox_did(s, i))
            json_array_append_new(steps, json_string(sandbox_step_name(i)));
    return steps;
}

static json_t *command_info(struct control_call *call)
{
    const struct vm *vm = call->opaque;
    const struct vm_life *life = life_of(call);
    char started[TIMESTAMP_SIZE];
    char *record = record_format(life->record);
    json_t *described = record ? json_loads(record, 0, NULL) : NULL;

    free(record);
    timestamp_format(life->run.started_ms, started);
    return json_pack("{s:s, s:s, s:i, s:s, s:s, s:I, s:I, s:b, s:o, s:o?}", "name", life->record->name, "state",
                     "running", "pid", (int)getpid(), "engine", vm->ops->name, "started", started, "memory_bytes",
                     (json_int_t)vm->config->memory_bytes, "cpus", (json_int_t)machine_cpus_present(vm->machine),
                     "agent", (int)(life->ready_ns != 0), "sandbox", describe_sandbox(vm->sandbox), "configuration",
                     described);
}

static json_t *command_events(struct control_call *call)
{
    control_subscribe(call->client);
    return json_pack("{s:I}", "seq", (json_int_t)life_of(call)->events.seq);
}

static json_t *command_console(struct control_call *call)
{
    control_make_console(call);
    return json_object();
}

/* --- stop --------------------------------------------------------------------------------------------------- */

static json_t *stop_acpi(struct control_call *call)
{
    struct vm *vm = call->opaque;

    machine_power_button(vm->machine);
    return json_pack("{s:s}", "mode", "acpi");
}

static json_t *stop_agent(struct control_call *call)
{
    int failed = link_power_off(call->opaque);

    if (failed == -EHOSTDOWN)
        return control_fail(call, "wrong-state", "there is no agent in the guest, or not yet");
    if (failed)
        return control_fail(call, "failed", "the guest's agent cannot be asked: %s", strerror(-failed));
    return json_pack("{s:s}", "mode", "agent");
}

/* The agent when there is one, else the button.  Who asks again has been waiting: both, as the agent may hang. */
static json_t *stop_auto(struct control_call *call)
{
    bool again = link_power_was_asked(call->opaque);
    int failed = link_power_off(call->opaque);

    return failed || again ? stop_acpi(call) : json_pack("{s:s}", "mode", "agent");
}

static json_t *stop_force(struct control_call *call)
{
    vm_end(call->opaque, VM_USER_LEFT, "switched off");
    return json_pack("{s:s}", "mode", "force");
}

static const struct {
    const char *mode;
    json_t *(*stop)(struct control_call *call);
} stops[] = {{"auto", stop_auto}, {"agent", stop_agent}, {"acpi", stop_acpi}, {"force", stop_force}};

/* mode: how; timeout_ms: after which a guest that is still there is switched off. */
static json_t *command_stop(struct control_call *call)
{
    struct vm *vm = call->opaque;
    const char *mode = text_argument(call, "mode", "auto");
    json_t *timeout = json_object_get(call->arguments, "timeout_ms");
    json_int_t ms = json_integer_value(timeout);

    if (timeout && (ms <= 0 || ms > GRACE_MS_MAX))
        return control_fail(call, "bad-request", "\"timeout_ms\" is not between 1 and %d", GRACE_MS_MAX);
    for (size_t i = 0; i < sizeof stops / sizeof *stops; i++) {
        if (strcmp(stops[i].mode, mode) != 0)
            continue;
        json_t *result = stops[i].stop(call);
        if (result && timeout)
            loop_timer_set(vm->loop, &life_of(call)->grace, clock_ns() + (uint64_t)ms * 1000000);
        if (result && stops[i].stop != stop_force)
            life_event(vm, "stopping", json_pack("{s:O}", "mode", json_object_get(result, "mode")));
        return result;
    }
    return control_fail(call, "bad-request", "\"mode\" is not one of auto, agent, acpi, force");
}

/* timeout_ms: the run ends after this time, whatever the guest does. */
static json_t *command_limit(struct control_call *call)
{
    struct vm *vm = call->opaque;
    json_int_t ms = json_integer_value(json_object_get(call->arguments, "timeout_ms"));

    if (ms <= 0 || ms > LIMIT_MS_MAX)
        return control_fail(call, "bad-request", "\"timeout_ms\" is not between 1 and %lld", LIMIT_MS_MAX);
    vm_limit(vm, (uint64_t)ms);
    return json_object();
}

/* The command that the machine was started for has ended: told by who has attended it. */
static json_t *command_exited(struct control_call *call)
{
    struct vm_life *life = life_of(call);
    json_t *status = json_object_get(call->arguments, "status");

    if (!json_is_integer(status) || json_integer_value(status) < 0 || json_integer_value(status) > 255)
        return control_fail(call, "bad-request", "\"status\" is not a number from 0 to 255");
    life->run.exited = true;
    life->run.exit_status = (int)json_integer_value(status);
    registry_set_run(life->lock, &life->run);
    life_event(call->opaque, "exited", json_pack("{s:O}", "status", status));
    return json_object();
}

/* --- log ---------------------------------------------------------------------------------------------------- */

/* The end of the serial log.  JSON has no bytes that are not UTF-8: those become question marks. */
static json_t *command_log(struct control_call *call)
{
    const struct vm *vm = call->opaque;
    json_t *bytes = json_object_get(call->arguments, "bytes");
    json_int_t most = bytes ? json_integer_value(bytes) : LOG_BYTES_MAX;
    char *text;

    if (most < 1 || most > LOG_BYTES_MAX)
        return control_fail(call, "bad-request", "\"bytes\" is not between 1 and %d", LOG_BYTES_MAX);
    text = malloc((size_t)most);
    size_t len = text ? chr_tail(vm->chr, text, (size_t)most) : 0;
    json_t *result = json_pack("{s:o?}", "serial", json_stringn(text, len));
    if (text && !json_object_get(result, "serial")) {
        for (size_t i = 0; i < len; i++)
            if ((unsigned char)text[i] >= 0x80)
                text[i] = '?';
        json_object_set_new(result, "serial", json_stringn(text, len));
    }
    free(text);
    return result;
}
/* clang-format off */
const struct control_command vm_commands[] = {
    {"status", command_status},
    {"info", command_info},
    {"stats", command_stats},
    {"events", command_events},
    {"stop", command_stop},
    {"limit", command_limit},
    {"exited", command_exited},
    {"publish", command_publish},
    {"balloon", command_balloon},
    {"cpus", command_cpus},
    {"log", command_log},
    {"connect", link_connect},
    {"console", command_console},
    {"snapshot", command_snapshot},
    {"fork", command_fork},
    {"merge", command_merge},
    {"migrate", command_migrate},
    {"incoming", command_incoming},
    {0},
};
/* clang-format on */
