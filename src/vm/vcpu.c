/*
 * vCPU threads.  The run loop of a vCPU is vcpu_main; everything asynchronous reaches it through
 * cpu->request followed by a kick.
 */
#include <errno.h>
#include <linux/futex.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "backends/disk.h"
#include "host/loop_mailbox.h"
#include "host/sandbox.h"
#include "memory/template.h"
#include "vm/confine.h"
#include "vm/vm_int.h"

/* A halted vCPU mostly waits for a device: it looks for what backends have for it, too. */
static bool vcpu_look(void *opaque)
{
    struct vcpu *v = opaque;

    loop_look(v->vm->loop);
    return atomic_load(&v->cpu->request);
}

static bool vcpu_look_a_while(struct vcpu *v, uint64_t since_ns)
{
    if (!v->patience.ns)
        return false;
    loop_look_begin(v->vm->loop);
    bool there = patience_look(&v->patience, since_ns, vcpu_look, v);
    loop_look_end(v->vm->loop);
    return there;
}

static bool disks_are_idle(const struct vm *vm)
{
    for (unsigned i = 0; i < vm->n_disks; i++)
        if (vm->disks[i]->in_flight)
            return false;
    return true;
}

/* Of a copy: pages that are what they were when it was made are a quarter of those that it has written to.  With the
 * bus lock no device writes to memory, unless a disk is at work; and there is no other vCPU. */
static void vcpu_rest(struct vcpu *v)
{
    struct vm *vm = v->vm;

    v->rested = true;
    if (!vm->ops->rest(vm->engine, v->index) || vm_vcpus(vm->config) > 1 || vm->n_shares)
        return;
    pthread_mutex_lock(&vm->bus->lock);
    if (disks_are_idle(vm))
        memory_share_again(machine_memory(vm->machine));
    pthread_mutex_unlock(&vm->bus->lock);
}

#define REST_NS (100 * 1000000l)

/* Until there is a request, or for the first time after REST_NS without one. */
static void vcpu_sleep(struct vcpu *v)
{
    const struct timespec rest = {.tv_nsec = REST_NS};

    while (!atomic_load(&v->cpu->request))
        if (syscall(SYS_futex, &v->cpu->request, FUTEX_WAIT_PRIVATE, 0, v->rested ? NULL : &rest, NULL, 0) &&
            errno == ETIMEDOUT)
            vcpu_rest(v);
}

/* Waits until a request is there.  No wake-up is lost: the kicker sets request, then looks at sleeping; we
 * set sleeping, then the kernel looks at request (both orders sequentially consistent). */
static void vcpu_wait(struct vcpu *v)
{
    uint64_t before = clock_ns();

    if (!vcpu_look_a_while(v, before)) {
        atomic_store(&v->sleeping, true);
        vcpu_sleep(v);
        atomic_store(&v->sleeping, false);
    }
    uint64_t waited = clock_ns() - before;
    patience_waited(&v->patience, waited);
    v->idle_ns += waited;
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

static void exhausted(struct vm *vm)
{
    pthread_mutex_lock(&vm->bus->lock);
    vm_end(vm, VM_FAILED, "the host has no memory left for what the guest writes");
    pthread_mutex_unlock(&vm->bus->lock);
}

/* A guest that changes memory faster than it can be sent elsewhere: each piece of time that it runs, which the loop
 * ends (migration.c), is followed by one in which it stands still. */
static void stand_still(const struct vcpu *v, uint64_t ran_ns)
{
    unsigned percent = v->vm->throttle;

    if (!percent || percent >= 100)
        return;
    for (uint64_t until = clock_ns() + ran_ns * percent / (100 - percent);
         clock_ns() < until && !atomic_load(&v->vm->stop);)
        nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
}

/* It has been told to stop, and stops as the engine was asked to: only then struct cpu is all of its state. */
static bool is_over(const struct vcpu *v, enum engine_exit exit)
{
    return atomic_load(&v->vm->stop) && exit == ENGINE_EXIT_REQUEST;
}

static void *vcpu_main(void *opaque)
{
    struct vcpu *v = opaque;
    struct vm *vm = v->vm;
    enum engine_exit exit;
    char error[256] = "", name[16];

    snprintf(name, sizeof name, "vcpu%u", v->index & 0xff);
    prctl(PR_SET_NAME, name);
    v->rested = !vm->ops->rest;
    if (sandbox_thread(vm->sandbox, vm_vcpu_role(vm))) {
        failed(v, "its thread cannot enter the sandbox");
        return NULL;
    }
    do {
        uint64_t began = vm->throttle ? clock_ns() : 0;
        exit = vm->ops->run(vm->engine, v->index, error);
        v->exits++;
        switch (exit) {
        case ENGINE_EXIT_REQUEST:
            if (began)
                stand_still(v, clock_ns() - began);
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
    } while (!is_over(v, exit));
    if (atomic_load(&vm->exhausted))
        exhausted(vm);
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
    for (vm->n_started = 0; vm->n_started < vm_vcpus(vm->config); vm->n_started++) {
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
