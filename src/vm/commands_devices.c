/* "publish" and "balloon": devices that can be told something while they work. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "backends/net.h"
#include "base/error.h"
#include "devices/virtio/balloon.h"
#include "vm/commands.h"
#include "vm/life.h"

/* --- publish ----------------------------------------------------------------------------------------------- */

static json_t *describe(const struct net_publish *p)
{
    char host[24];

    snprintf(host, sizeof host, "%u.%u.%u.%u", p->ip[0], p->ip[1], p->ip[2], p->ip[3]);
    return json_pack("{s:s, s:i, s:i, s:s}", "host_ip", host, "host_port", p->host_port, "guest_port", p->guest_port,
                     "protocol", p->udp ? "udp" : "tcp");
}

static json_t *list(const struct net *net)
{
    json_t *all = json_array();
    const struct net_publish *p;

    for (unsigned i = 0; (p = net_published(net, i)); i++)
        json_array_append_new(all, describe(p));
    return all;
}

static const char *code_of(int failed)
{
    return failed == -ENOENT ? "not-found" : failed == -EEXIST || failed == -EADDRINUSE ? "wrong-state" : "failed";
}

struct change {
    struct vm *vm;
    struct control_ticket ticket;
};

/* The life, or its control socket, may be gone already. */
static void changed(void *opaque, int failed, const struct net_publish *p, const char *why)
{
    struct change *c = opaque;
    struct vm_life *life = c->vm->config->life;

    if (!life || !life->control)
        json_decref(c->ticket.id);
    else
        control_reply(life->control, &c->ticket, failed ? NULL : describe(p), code_of(failed), why);
    free(c);
}

/* The answer comes when the network's helper process has given its own. */
static json_t *change(struct control_call *call, struct vm *vm, bool remove)
{
    const char *word = json_string_value(json_object_get(call->arguments, "port"));
    struct net_publish p;
    char err[ERROR_SIZE];

    if (!word)
        return control_fail(call, "bad-request", "\"port\" is missing: [IP:]HOST:GUEST[/udp]");
    if (net_publish_parse(word, &p, err, sizeof err))
        return control_fail(call, "bad-request", "%s", err);
    struct change *c = calloc(1, sizeof *c);
    if (!c)
        return control_fail(call, "failed", "out of memory");
    c->vm = vm;
    int failed = net_publish_ask(vm->publisher, &p, !remove, changed, c, err, sizeof err);
    if (failed) {
        free(c);
        return control_fail(call, code_of(failed), "%s", err);
    }
    c->ticket = control_ticket(call);
    call->later = true;
    return NULL;
}

/* action: add or remove, a port; or list. */
json_t *command_publish(struct control_call *call)
{
    struct vm *vm = call->opaque;
    const char *action = json_string_value(json_object_get(call->arguments, "action"));

    if (!vm->publisher)
        return control_fail(call, "unsupported", "this machine has no network of the kind \"user\"");
    if (!action || strcmp(action, "list") == 0)
        return json_pack("{s:o}", "ports", list(vm->publisher));
    if (strcmp(action, "add") == 0 || strcmp(action, "remove") == 0)
        return change(call, vm, action[0] == 'r');
    return control_fail(call, "bad-request", "\"action\" is not one of list, add, remove");
}

/* --- balloon ------------------------------------------------------------------------------------------------ */

static void add_known(json_t *to, const char *key, uint64_t value)
{
    if (value != UINT64_MAX)
        json_object_set_new(to, key, json_integer((json_int_t)value));
}

/* What the guest says of its memory, as long as it has said anything. */
static json_t *guest_memory(const struct balloon *b)
{
    struct balloon_stats s;
    uint64_t when = balloon_stats(b, &s);
    json_t *all = when ? json_object() : json_null();

    if (!when)
        return all;
    json_object_set_new(all, "age_ms", json_integer((json_int_t)((clock_ns() - when) / 1000000)));
    add_known(all, "total_bytes", s.total);
    add_known(all, "free_bytes", s.free);
    add_known(all, "available_bytes", s.available);
    add_known(all, "cache_bytes", s.caches);
    add_known(all, "swap_in_bytes", s.swap_in);
    add_known(all, "swap_out_bytes", s.swap_out);
    add_known(all, "major_faults", s.major_faults);
    add_known(all, "minor_faults", s.minor_faults);
    return all;
}

/* bytes: so much of its memory the guest is to give up; without it, how things are. */
json_t *balloon_describe(const struct vm *vm)
{
    balloon_refresh(vm->balloon);
    return json_pack("{s:I, s:I, s:I, s:o}", "target_bytes", (json_int_t)balloon_target(vm->balloon), "actual_bytes",
                     (json_int_t)balloon_actual(vm->balloon), "returned_bytes",
                     (json_int_t)balloon_returned(vm->balloon), "guest", guest_memory(vm->balloon));
}

json_t *command_balloon(struct control_call *call)
{
    struct vm *vm = call->opaque;
    json_t *bytes = json_object_get(call->arguments, "bytes");

    if (!vm->balloon)
        return control_fail(call, "unsupported", "this machine has no balloon");
    if (bytes && (!json_is_integer(bytes) || json_integer_value(bytes) < 0))
        return control_fail(call, "bad-request", "\"bytes\" is not a number from 0");
    if (bytes && balloon_set_target(vm->balloon, (uint64_t)json_integer_value(bytes)))
        return control_fail(call, "bad-request", "the guest would be left with less than %llu MiB",
                            BALLOON_LEAST >> 20);
    return balloon_describe(vm);
}
