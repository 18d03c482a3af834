/* The thread that asks the host for memory before the guest uses it (memory/ahead.h): where there is a CPU for it. */
#include <sched.h>
#include <sys/prctl.h>

#include "host/sandbox.h"
#include "host/thread.h"
#include "machine/machine.h"
#include "memory/ahead.h"
#include "vm/confine.h"
#include "vm/vm_int.h"

static void *ahead_main(void *opaque)
{
    struct vm *vm = opaque;

    prctl(PR_SET_NAME, "ahead");
    if (sandbox_thread(vm->sandbox, SANDBOX_WORKER) == 0)
        memory_ahead_serve(machine_memory(vm->machine));
    return NULL;
}

/* Without it the guest's memory comes when it is used.  A copy's comes from templates (memory/template.h). */
void ahead_start(struct vm *vm)
{
    struct memory *m = machine_memory(vm->machine);
    cpu_set_t cpus;

    if (vm_is_kvm(vm) || m->templates || sched_getaffinity(0, sizeof cpus, &cpus) || CPU_COUNT(&cpus) < 2 ||
        memory_ahead_create(m))
        return;
    if (thread_start(&vm->ahead, NULL, ahead_main, vm))
        memory_ahead_destroy(m);
}

void ahead_stop(struct vm *vm)
{
    struct memory *m = vm->machine ? machine_memory(vm->machine) : NULL;

    if (!m || !m->ahead)
        return;
    memory_ahead_end(m);
    pthread_join(vm->ahead, NULL);
    memory_ahead_destroy(m);
}
