/* "cpus": how many there are.  What comes is there at once; what goes the guest has to let go, and is waited for. */
#include "vm/commands.h"
#include "vm/cpus.h"
#include "vm/life.h"

#define LEAVE_NS 20000000000ull /* for one; who asks waits longer for the answer */

static struct cpus_wait *wait_of(struct vm *vm)
{
    return &vm->config->life->cpus;
}

static json_t *describe(const struct vm *vm)
{
    return json_pack("{s:I, s:I, s:b}", "present", (json_int_t)machine_cpus_present(vm->machine), "possible",
                     (json_int_t)vm_vcpus(vm->config), "vary", (int)machine_cpus_vary(vm->machine));
}

static void end_wait(struct vm *vm, json_t *result, const char *why)
{
    struct cpus_wait *w = wait_of(vm);

    loop_timer_cancel(vm->loop, &w->timer);
    w->going_on = false;
    control_reply(vm->config->life->control, &w->ticket, result, "failed", why);
}

/* In the event loop: what there is to say. */
static void look(void *opaque)
{
    struct vm *vm = opaque;
    struct cpus_wait *w = wait_of(vm);
    unsigned present = machine_cpus_present(vm->machine);
    char why[160];

    if (!w->going_on)
        return;
    if (present == machine_cpus_wanted(vm->machine) && w->refused < 0) {
        end_wait(vm, describe(vm), NULL);
        return;
    }
    if (w->refused < 0 && clock_ns() < w->until_ns) {
        loop_timer_set(vm->loop, &w->timer, w->until_ns);
        return;
    }
    machine_cpus_set(vm->machine, present); /* what it has not heard of yet it need not */
    if (w->refused >= 0)
        snprintf(why, sizeof why, "the guest refuses to let CPU %d go: %u are there", w->refused, present);
    else
        snprintf(why, sizeof why, "the guest has not let its CPUs go within %llu s: %u are there",
                 LEAVE_NS / 1000000000, present);
    end_wait(vm, NULL, why);
}

/* On a vCPU's thread. */
static void answered(void *opaque, unsigned i, bool left)
{
    struct vm *vm = opaque;
    struct cpus_wait *w = wait_of(vm);

    if (left)
        life_event(vm, "cpu-removed",
                   json_pack("{s:i, s:I}", "cpu", (int)i, "present", (json_int_t)machine_cpus_present(vm->machine)));
    if (!w->going_on)
        return;
    if (left)
        w->until_ns = clock_ns() + LEAVE_NS; /* it is at it */
    else
        w->refused = (int)i;
    loop_timer_set(vm->loop, &w->timer, clock_ns());
}

void cpus_open(struct vm *vm)
{
    machine_set_cpu_answer(vm->machine, answered, vm);
    loop_timer_init(&wait_of(vm)->timer, look, vm);
}

void cpus_close(struct vm *vm)
{
    if (wait_of(vm)->going_on)
        end_wait(vm, NULL, "the machine has ended meanwhile");
}

static json_t *change(struct control_call *call, struct vm *vm, unsigned count)
{
    struct cpus_wait *w = wait_of(vm);
    unsigned before = machine_cpus_present(vm->machine);

    if (w->going_on)
        return control_fail(call, "wrong-state", "the guest is just letting CPUs go");
    machine_cpus_set(vm->machine, count);
    unsigned present = machine_cpus_present(vm->machine);
    if (present > before)
        life_event(vm, "cpus-added", json_pack("{s:I}", "present", (json_int_t)present));
    if (present == count)
        return describe(vm);
    w->going_on = call->later = true;
    w->ticket = control_ticket(call);
    w->refused = -1;
    w->until_ns = clock_ns() + LEAVE_NS;
    loop_timer_set(vm->loop, &w->timer, w->until_ns);
    return NULL;
}

/* count: so many there are to be; without it, how many there are. */
json_t *command_cpus(struct control_call *call)
{
    struct vm *vm = call->opaque;
    json_t *count = json_object_get(call->arguments, "count");
    json_int_t n = json_integer_value(count);

    if (!count)
        return describe(vm);
    if (!machine_cpus_vary(vm->machine))
        return control_fail(call, "unsupported",
                            "the CPUs of this machine do not come and go: that takes --cpus N,max=M from its start");
    if (!json_is_integer(count) || n < 1 || n > vm_vcpus(vm->config))
        return control_fail(call, "bad-request", "\"count\" is not a number from 1 to %u", vm_vcpus(vm->config));
    return change(call, vm, (unsigned)n);
}
