/* The run loop: everything asynchronous enters through cpu->request. */
#include <errno.h>
#include <pthread.h>
#include <stdarg.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "bus/bus.h"
#include "engine/kvm/kvm_int.h"

int vcpu_fail(struct vcpu *v, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    if (!v->error[0]) /* the first reason is the one to tell */
        vsnprintf(v->error, sizeof(v->error), format, args);
    va_end(args);
    return ENGINE_EXIT_ERROR;
}

static uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000ull + (uint64_t)t.tv_nsec;
}

/* The kick signal is blocked in a vCPU thread, so that it interrupts no other system call, and
 * open inside KVM_RUN only: KVM swaps in this mask for the time of the call. */
static int prepare_thread(struct vcpu *v)
{
    pthread_t self = pthread_self();
    sigset_t kick, mask;
    if (v->thread_known && pthread_equal(atomic_load(&v->thread), self))
        return 0;
    sigemptyset(&kick);
    sigaddset(&kick, KVM_KICK_SIGNAL);
    if (pthread_sigmask(SIG_BLOCK, &kick, NULL) || pthread_sigmask(SIG_BLOCK, NULL, &mask))
        return -EINVAL;
    sigdelset(&mask, KVM_KICK_SIGNAL);
    struct {
        struct kvm_signal_mask head;
        uint64_t bits;
    } m = {.head.len = 8}; /* the kernel's sigset_t */
    memcpy(m.head.sigset, &mask, 8);
    if (ioctl(v->fd, KVM_SET_SIGNAL_MASK, &m))
        return -errno;
    atomic_store(&v->thread, self);
    v->thread_known = true;
    return 0;
}

static void swallow_kick(void)
{
    static const struct timespec no_time;
    sigset_t kick;
    sigemptyset(&kick);
    sigaddset(&kick, KVM_KICK_SIGNAL);
    while (sigtimedwait(&kick, NULL, &no_time) == KVM_KICK_SIGNAL)
        ;
}

/*
 * The requester has set cpu->request.  Interleavings: the loop clears immediate_exit, then reads
 * cpu->request, then publishes running_tid, then calls KVM_RUN, which reads immediate_exit.  A kick
 * before the clearing is seen in cpu->request; one after it makes KVM_RUN return at once, or, if that
 * has begun, finds running_tid and interrupts it.  A signal too late stays pending and only makes the
 * next KVM_RUN return early once.  The vCPU's own thread (a device that it has just touched) need do
 * nothing: it looks at cpu->request before it enters the guest.
 */
void vcpu_kick(struct vcpu *v)
{
    if (pthread_equal(atomic_load(&v->thread), pthread_self()))
        return;
    atomic_fetch_add_explicit(&v->kicks, 1, memory_order_relaxed);
    __atomic_store_n(&v->run->immediate_exit, 1, __ATOMIC_SEQ_CST);
    int tid = atomic_load(&v->running_tid);
    if (tid)
        syscall(SYS_tgkill, getpid(), tid, KVM_KICK_SIGNAL);
}

/* KVM_RUN; 0, -EINTR (nothing to handle) or -errno. */
static int enter(struct vcpu *v)
{
    const struct cpu *c = &v->cpu;
    uint64_t cr8 = c->irq->get_tpr(c->irq_opaque);
    v->run->cr8 = cr8;
    v->entries++;
    uint64_t start = now_ns();
    int err = ioctl(v->fd, KVM_RUN, 0) ? -errno : 0;
    v->guest_ns += now_ns() - start;
    v->ready = v->run->ready_for_interrupt_injection;
    if (v->run->cr8 != cr8) {
        c->irq->set_tpr(c->irq_opaque, v->run->cr8);
        v->irq_check = true;
    }
    return err == -EAGAIN ? -EINTR : err;
}

static int handle_exit(struct vcpu *v)
{
    uint64_t start = now_ns();
    int action = vcpu_handle_exit(v);
    v->exit_ns += now_ns() - start;
    return action;
}

static int run_failed(struct vcpu *v, int err)
{
    return vcpu_fail(v, "KVM cannot run the virtual CPU: %s", strerror(-err));
}

/* An access that left through KVM_EXIT_IO, MMIO or an MSR is finished by KVM on the next entry; until
 * then its registers are those before the instruction.  One instruction may take several exits. */
int vcpu_settle(struct vcpu *v)
{
    while (v->unfinished) {
        v->unfinished = false;
        __atomic_store_n(&v->run->immediate_exit, 1, __ATOMIC_SEQ_CST);
        int err = enter(v);
        if (err == -EINTR) {
            swallow_kick();
            break;
        }
        int action = err ? run_failed(v, err) : handle_exit(v);
        if (action != VCPU_GO_ON)
            return action;
    }
    return VCPU_GO_ON;
}

/* INIT and SIPI replace the whole state: done on struct cpu by the architecture's own functions. */
static int take_reset_request(struct vcpu *v)
{
    struct cpu *c = &v->cpu;
    bool delivered;
    int action = vcpu_settle(v);
    if (action != VCPU_GO_ON)
        return action;
    if (vcpu_export(v, true))
        return ENGINE_EXIT_ERROR;
    uint32_t others = atomic_fetch_and(&c->request, REQ_INIT | REQ_SIPI) & ~(uint32_t)(REQ_INIT | REQ_SIPI);
    int err = cpu_take_events(c, &delivered);
    atomic_fetch_or(&c->request, others);
    v->push_events = true;
    if (err == CPU_SHUTDOWN)
        return ENGINE_EXIT_SHUTDOWN;
    return vcpu_import(v) ? ENGINE_EXIT_ERROR : VCPU_GO_ON;
}

static int take_nmi(struct vcpu *v)
{
    if (ioctl(v->fd, KVM_NMI, 0))
        return vcpu_fail(v, "KVM takes no NMI: %s", strerror(errno));
    v->cpu.halted = 0;
    v->nmis++;
    return VCPU_GO_ON;
}

/* Hands the highest pending vector to KVM, or asks to be told when it may. */
static int take_interrupt(struct vcpu *v)
{
    struct cpu *c = &v->cpu;
    v->irq_check = c->irq->pending(c->irq_opaque);
    if (v->irq_check && v->ready) {
        int vector = c->irq->acknowledge(c->irq_opaque);
        if (vector >= 0) {
            struct kvm_interrupt irq = {.irq = (uint32_t)vector};
            if (ioctl(v->fd, KVM_INTERRUPT, &irq))
                return vcpu_fail(v, "KVM takes no interrupt: %s", strerror(errno));
            if (c->log)
                c->log(c, "irq", "vector %d", vector);
            v->ready = false; /* one at a time */
            v->interrupts++;
            c->halted = 0;
        }
        v->irq_check = c->irq->pending(c->irq_opaque);
    }
    v->run->request_interrupt_window = v->irq_check;
    return VCPU_GO_ON;
}

/* Acts on cpu->request; VCPU_GO_ON: enter the guest. */
static int take_requests(struct vcpu *v)
{
    struct cpu *c = &v->cpu;
    uint32_t request = atomic_load(&c->request);
    int action = VCPU_GO_ON;
    if (request & REQ_EXIT) {
        atomic_fetch_and(&c->request, ~(uint32_t)REQ_EXIT);
        return ENGINE_EXIT_REQUEST;
    }
    if (request & REQ_INIT || (request & REQ_SIPI && c->wait_sipi))
        action = take_reset_request(v);
    else if (request & REQ_SIPI) /* not waited for: ignored */
        atomic_fetch_and(&c->request, ~(uint32_t)REQ_SIPI);
    if (action == VCPU_GO_ON && c->wait_sipi) {
        /* Nothing but SIPI matters now; left set, the others would keep the caller from sleeping. */
        atomic_fetch_and(&c->request, ~(uint32_t)(REQ_NMI | REQ_IRQ | REQ_WINDOW | REQ_FLUSH));
        return ENGINE_EXIT_HALT;
    }
    if (action == VCPU_GO_ON && request & REQ_NMI) {
        atomic_fetch_and(&c->request, ~(uint32_t)REQ_NMI);
        action = take_nmi(v);
    }
    /* Cleared before asking: a vector that arrives after the question sets it again.  REQ_FLUSH is
     * for engines that keep translations. */
    if (request & (REQ_IRQ | REQ_WINDOW | REQ_FLUSH)) {
        atomic_fetch_and(&c->request, ~(uint32_t)(REQ_IRQ | REQ_WINDOW | REQ_FLUSH));
        v->irq_check = true;
    }
    if (action == VCPU_GO_ON && v->irq_check)
        action = take_interrupt(v);
    if (action == VCPU_GO_ON && c->halted)
        action = ENGINE_EXIT_HALT;
    return action;
}

static int run_once(struct vcpu *v)
{
    __atomic_store_n(&v->run->immediate_exit, 0, __ATOMIC_SEQ_CST);
    int action = take_requests(v);
    if (action != VCPU_GO_ON || atomic_load(&v->cpu.request))
        return action;
    v->unfinished = false;
    atomic_store(&v->running_tid, gettid());
    int err = enter(v);
    atomic_store(&v->running_tid, 0);
    if (err == -EINTR) {
        swallow_kick();
        return VCPU_GO_ON;
    }
    return err ? run_failed(v, err) : handle_exit(v);
}

/* Leaves struct cpu as the truth.  After HLT the MSRs stay with KVM: a halted CPU's are seldom wanted,
 * and its next run is soon. */
static enum engine_exit leave(struct vcpu *v, int action)
{
    if (action == ENGINE_EXIT_REQUEST) {
        int settled = vcpu_settle(v);
        if (settled != VCPU_GO_ON)
            action = settled;
        v->paused = true;
    }
    if (vcpu_export(v, action == ENGINE_EXIT_REQUEST) && action != ENGINE_EXIT_SHUTDOWN)
        return ENGINE_EXIT_ERROR;
    return action;
}

enum engine_exit vcpu_run(struct vcpu *v)
{
    int err = prepare_thread(v);
    if (err)
        return vcpu_fail(v, "this thread cannot run a virtual CPU: %s", strerror(-err));
    bus_set_initiator(v->cpu.bus, v->cpu.index);
    if (vcpu_import(v))
        return ENGINE_EXIT_ERROR;
    if (v->paused)
        vcpu_resume_clock(v);
    v->paused = false;
    v->irq_check = true;
    int action;
    do
        action = run_once(v);
    while (action == VCPU_GO_ON);
    return leave(v, action);
}
