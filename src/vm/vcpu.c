/*
 * vCPU threads.  The run loop of a vCPU is vcpu_main; everything asynchronous reaches it through
 * cpu->request followed by a kick.
 */
#include <errno.h>
#include <linux/futex.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "host/sandbox.h"
#include "vm/confine.h"
#include "vm/vm_int.h"

/*
 * A halted vCPU that is woken within POLL_MOST_NS again and again waits for a device, and waking a thread on an idle
 * CPU takes as long as the device does.  Such a vCPU looks for its request a little while before it sleeps: twice as
 * long as last time while that would have helped, not at all once it has slept longer.  It yields to whoever wants the
 * CPU.
 */
#define POLL_LEAST_NS 10000u
#define POLL_MOST_NS 160000u

static bool vcpu_poll(const struct vcpu *v, uint64_t until)
{
    do {
        for (unsigned i = 0; i < 32; i++) {
            if (atomic_load(&v->cpu->request))
                return true;
            __builtin_ia32_pause();
        }
        sched_yield();
    } while (clock_ns() < until);
    return false;
}

static void vcpu_waited(struct vcpu *v, uint64_t ns)
{
    if (ns > POLL_MOST_NS)
        v->poll_ns = 0;
    else if (ns > v->poll_ns)
        v->poll_ns = v->poll_ns < POLL_LEAST_NS ? POLL_LEAST_NS : 2 * v->poll_ns;
    if (v->poll_ns > POLL_MOST_NS)
        v->poll_ns = POLL_MOST_NS;
    v->idle_ns += ns;
}

/* Waits until a request is there.  No wake-up is lost: the kicker sets request, then looks at sleeping; we
 * set sleeping, then the kernel looks at request (both orders sequentially consistent). */
static void vcpu_wait(struct vcpu *v)
{
    uint64_t before = clock_ns();

    if (!v->poll_ns || !vcpu_poll(v, before + v->poll_ns)) {
        atomic_store(&v->sleeping, true);
        while (!atomic_load(&v->cpu->request))
            syscall(SYS_futex, &v->cpu->request, FUTEX_WAIT_PRIVATE, 0, NULL, NULL, 0);
        atomic_store(&v->sleeping, false);
    }
    vcpu_waited(v, clock_ns() - before);
}

void vm_kick(void *opaque, unsigned i)
{
    struct vm *vm = opaque;
    struct vcpu *v = &vm->vcpus[i];

    vm->ops->kick(vm->engine, i);
    if (atomic_load(&v->sleeping))
        syscall(SYS_futex, &v->cpu->request, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
}

static void crashed(struct vcpu *v)
{
    pthread_mutex_lock(&v->vm->bus->lock);
    vm_end(v->vm, VM_CRASHED, "the guest crashed: triple fault on CPU %u", v->index);
    pthread_mutex_unlock(&v->vm->bus->lock);
}

static void failed(struct vcpu *v, const char *error)
{
    pthread_mutex_lock(&v->vm->bus->lock);
    vm_end(v->vm, VM_FAILED, "the %s engine cannot go on with CPU %u: %s", v->vm->ops->name, v->index, error);
    pthread_mutex_unlock(&v->vm->bus->lock);
}

static void *vcpu_main(void *opaque)
{
    struct vcpu *v = opaque;
    struct vm *vm = v->vm;
    char error[256] = "", name[16];

    snprintf(name, sizeof name, "vcpu%u", v->index & 0xff);
    prctl(PR_SET_NAME, name);
    if (sandbox_thread(vm->sandbox, vm_is_kvm(vm) ? SANDBOX_VCPU_KVM : SANDBOX_VCPU_SOFT)) {
        failed(v, "its thread cannot enter the sandbox");
        return NULL;
    }
    while (!atomic_load(&vm->stop)) {
        enum engine_exit exit = vm->ops->run(vm->engine, v->index, error);
        v->exits++;
        switch (exit) {
        case ENGINE_EXIT_REQUEST:
            break;
        case ENGINE_EXIT_HALT:
            vcpu_wait(v);
            break;
        case ENGINE_EXIT_SHUTDOWN:
            crashed(v);
            return NULL;
        case ENGINE_EXIT_ERROR:
            failed(v, error);
            return NULL;
        }
    }
    return NULL;
}

/* Signals are the event loop's; a vCPU thread takes only those that its own instructions cause. */
static void block_signals(sigset_t *old)
{
    static const int synchronous[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP};
    sigset_t set;

    sigfillset(&set);
    for (size_t i = 0; i < sizeof synchronous / sizeof *synchronous; i++)
        sigdelset(&set, synchronous[i]);
    pthread_sigmask(SIG_BLOCK, &set, old);
}

int vcpus_start(struct vm *vm)
{
    sigset_t old;
    int err = 0;

    atomic_store(&vm->stop, false);
    block_signals(&old);
    for (vm->n_started = 0; vm->n_started < vm->config->n_cpus; vm->n_started++) {
        struct vcpu *v = &vm->vcpus[vm->n_started];
        err = pthread_create(&v->thread, NULL, vcpu_main, v);
        if (err)
            break;
    }
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    return -err;
}

void vcpus_stop(struct vm *vm)
{
    atomic_store(&vm->stop, true);
    pthread_mutex_lock(&vm->bus->lock);
    pthread_cond_broadcast(&vm->console_room);
    pthread_mutex_unlock(&vm->bus->lock);
    for (unsigned i = 0; i < vm->n_started; i++) {
        atomic_fetch_or(&vm->vcpus[i].cpu->request, REQ_EXIT);
        vm_kick(vm, i);
    }
    for (unsigned i = 0; i < vm->n_started; i++)
        pthread_join(vm->vcpus[i].thread, NULL);
    vm->n_started = 0;
}
