/*
 * The processes that guest code runs in, seen from the vCPU.
 *
 * What such a process says of itself is the guest's to say, once guest code has run in it: that code can write to the
 * shared state, jump into the stub, and go on while it claims to have stopped, with pages mapped that the guest's
 * kernel has since given to another program.  So the claim only wakes us.  What counts is that the kernel finds the
 * runner asleep at the door, and moves it into a cell, by FUTEX_CMP_REQUEUE: out of that nobody but we and the mapper
 * can wake it.  It goes on as the orders and the signal's frame say, which are written while it is there; so a process
 * may run one guest's program after another.
 */
#include "engine/soft/direct.h"

#include <asm/prctl.h>
#include <errno.h>
#include <linux/futex.h>
#include <sched.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "base/error.h"
#include "host/child.h"

#define LOOK_MS 20u           /* from one look at what does not stop to the next */
#define PATIENCE_NS 50000000u /* of CPU time that it may have from the first of them on, */
#define LOOK_CPU_NS 10000000u /* counted as that between two of them, at most */
#define CALL_NS 2000000u      /* for each call before, too, and each mapping that goes: a busy host may take 0.5 ms */
#define BATCH_NS 2000000000u  /* and for all of them at most */
#define AT_DOOR_LOOKS 5u      /* until who may be asleep there without having said so is looked for */
#define LOOKS 32u             /* at who has said that it sleeps, if it has another CPU */
#define YIELDS 1000u          /* of the CPU, between two of them, before it is left for longer */
#define NAP_NS 100000u

static uint64_t least(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

static long futex(uint32_t *word, int operation, uint32_t value, const void *timeout_or_count, uint32_t *other)
{
    return syscall(SYS_futex, word, operation, value, timeout_or_count, other, 0);
}

static bool moved(uint32_t *from, uint32_t *to)
{
    return futex(from, FUTEX_CMP_REQUEUE, 0, (void *)1, to) == 1;
}

/* --- the helper that makes them ---------------------------------------------------------------------------- */

struct direct_helper {
    struct child child;
    pthread_mutex_t lock; /* of the socket: vCPUs ask one after another */
    int socket;
    int ram;        /* the descriptor here of what it has been given */
    uint8_t *pages; /* the shared file: for each slot of each vCPU */
    size_t size;
};

static int map_pages(struct direct_helper *h, int *fd)
{
    *fd = memfd_create("guise-direct", MFD_CLOEXEC);
    if (*fd < 0 || ftruncate(*fd, (off_t)h->size))
        return -errno;
    void *pages = mmap(NULL, h->size, PROT_READ | PROT_WRITE, MAP_SHARED, *fd, 0);
    if (pages == MAP_FAILED)
        return -errno;
    h->pages = pages;
    return 0;
}

/* late: perhaps nothing will run directly. */
static int helper_start(struct direct_helper *h, int ram, bool late, char *err, size_t n)
{
    static const char *const argv[] = {NULL, "helper-direct", NULL};
    int ends[2] = {-1, -1}, fd = -1;

    int failed = map_pages(h, &fd);
    if (!failed && socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends))
        failed = -errno;
    if (failed)
        error_sys(err, n, failed, "guest code cannot run directly");
    else
        failed = late ? child_start_late(&h->child, argv, (const int[]){ends[1], fd, ram}, 3, 1, err, n)
                      : child_start(&h->child, argv, (const int[]){ends[1], fd, ram}, 3, err, n);
    if (fd >= 0)
        close(fd);
    if (ends[1] >= 0)
        close(ends[1]);
    h->socket = ends[0];
    h->ram = ram;
    return failed;
}

int direct_child_start(struct direct *d, char *err, size_t n)
{
    struct peers *p = d->engine->peers;
    struct direct_helper *h = p->helper;
    if (!h) {
        h = p->helper = calloc(1, sizeof *h);
        if (!h)
            return error_sys(err, n, -ENOMEM, "guest code cannot run directly");
        h->socket = -1;
        h->size = (size_t)p->n * DIRECT_SLOTS * DIRECT_SLOT_SIZE;
        pthread_mutex_init(&h->lock, NULL);
        p->helper_failed = helper_start(h, d->engine->config.memory->fd, d->engine->config.lean, err, n);
    }
    for (unsigned i = 0; i < DIRECT_SLOTS && !p->helper_failed; i++) {
        uint8_t *at = h->pages + ((size_t)d->engine->index * DIRECT_SLOTS + i) * DIRECT_SLOT_SIZE;
        d->slots[i].orders = (struct direct_orders *)at;
        d->slots[i].shared = (struct direct_state *)(at + DIRECT_SLOT_STATE);
        d->slots[i].stack = at + DIRECT_SLOT_STACK;
    }
    return p->helper_failed;
}

void soft_direct_helper_stop(struct peers *p)
{
    struct direct_helper *h = p->helper;
    if (!h)
        return;
    if (h->socket >= 0)
        close(h->socket);
    child_stop(&h->child, 0);
    if (h->pages)
        munmap(h->pages, h->size);
    free(h);
}

/* What it has for a slot, anew; what ran there has ended then. */
static bool helper_ask(struct direct_helper *h, uint16_t order)
{
    uint8_t answer;
    pthread_mutex_lock(&h->lock);
    bool done = write(h->socket, &order, sizeof order) == sizeof order && read(h->socket, &answer, 1) == 1;
    pthread_mutex_unlock(&h->lock);
    return done;
}

bool direct_child_memory_differs(const struct peers *p)
{
    return p->helper && !p->helper_failed && p->helper->ram != p->of[0]->config.memory->fd;
}

bool direct_child_memory(struct peers *p)
{
    struct direct_helper *h = p->helper;
    union {
        struct cmsghdr head;
        char bytes[CMSG_SPACE(sizeof(int))];
    } control = {.head = {.cmsg_len = CMSG_LEN(sizeof(int)), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS}};
    uint16_t order = DIRECT_NEW_MEMORY;
    struct iovec v = {&order, sizeof order};
    struct msghdr message = {
        .msg_iov = &v, .msg_iovlen = 1, .msg_control = control.bytes, .msg_controllen = sizeof control.bytes};
    uint8_t answer;

    h->ram = p->of[0]->config.memory->fd;
    cpu_copy(CMSG_DATA(&control.head), &h->ram, sizeof h->ram);
    if (sendmsg(h->socket, &message, MSG_NOSIGNAL) != sizeof order || read(h->socket, &answer, 1) != 1)
        p->helper_failed = -EPIPE;
    return !p->helper_failed;
}

static bool helper_ended(const struct direct_helper *h)
{
    uint8_t answer;
    return recv(h->socket, &answer, 1, MSG_PEEK | MSG_DONTWAIT) == 0;
}

/* Where the kernel has put the first signal's frame it puts all. */
static bool find_frame(struct direct *d, struct direct_slot *s)
{
    uint64_t frame = s->shared->frame - DIRECT_STACK;
    if (frame >= DIRECT_STACK_SIZE - FRAME_SIZE || frame % 8)
        return false;
    const struct direct_context *c = (const void *)(s->stack + frame + FRAME_CONTEXT);
    uint64_t fpstate = c->fpstate - DIRECT_STACK;
    if (fpstate >= DIRECT_STACK_SIZE - 576 || fpstate % 64)
        return false;
    uint32_t size;
    cpu_copy(&size, s->stack + fpstate + 464 + 16, 4); /* struct _fpx_sw_bytes: xstate_size */
    if (size > DIRECT_STACK_SIZE - fpstate - 4)
        return false;
    s->frame = frame, s->fpstate = fpstate, s->fpstate_size = size + 4;
    s->process = s->shared->process;
    free(s->initial);
    s->initial = malloc(FRAME_CONTEXT - FRAME_UCONTEXT + s->fpstate_size);
    if (!s->initial)
        return false;
    cpu_copy(s->initial, s->stack + frame + FRAME_UCONTEXT, FRAME_CONTEXT - FRAME_UCONTEXT);
    cpu_copy(s->initial + FRAME_CONTEXT - FRAME_UCONTEXT, s->stack + fpstate, s->fpstate_size);
    s->orders->frame = DIRECT_STACK + frame + FRAME_UCONTEXT;
    return true;
}

void direct_slot_replace(struct direct *d, struct direct_slot *s)
{
    uint16_t number = (uint16_t)(d->engine->index * DIRECT_SLOTS + (unsigned)(s - d->slots));
    if (d->trap_tsc)
        number |= DIRECT_TRAP_TSC;
    memset(s->orders, 0, offsetof(struct direct_orders, calls));
    for (unsigned i = 0; i < DIRECT_CALLS; i++) /* a mapper that has not ended yet finds no other than its own */
        s->orders->calls[i].number = -1;
    s->n_calls = s->n_unmapped = 0;
    s->cpu = -1;
    s->based = false;
    s->state = helper_ask(d->engine->peers->helper, number) ? SLOT_STARTING : SLOT_LOST;
    d->stats.started++;
}

bool direct_slot_ready(struct direct *d, struct direct_slot *s)
{
    if (s->state == SLOT_NONE)
        direct_slot_replace(d, s);
    else if (s->state == SLOT_STARTING && moved(&s->orders->door, &s->orders->cell)) {
        s->stopped = __atomic_load_n(&s->shared->stopped, __ATOMIC_ACQUIRE);
        s->state = find_frame(d, s) ? SLOT_READY : SLOT_LOST;
        s->orders->calls[0].number = -1; /* the mapper has its own filter before it answers: let it be the first */
    }
    return s->state == SLOT_READY;
}

/* --- orders ------------------------------------------------------------------------------------------------ */

void direct_call(struct direct_slot *s, int64_t number, uint64_t a, uint64_t b, uint64_t c, uint64_t offset)
{
    struct direct_call *call = &s->orders->calls[s->n_calls++];
    *call = (struct direct_call){number, {a, b, c, MAP_SHARED | MAP_FIXED | MAP_POPULATE, 3, offset}, 0};
}

static void order(struct direct_slot *s, uint32_t *what)
{
    __atomic_fetch_add(what, 1, __ATOMIC_SEQ_CST);
    __atomic_fetch_add(&s->orders->work, 1, __ATOMIC_SEQ_CST);
    futex(&s->orders->work, FUTEX_WAKE, 1, NULL, NULL);
}

/* --- on one CPU -------------------------------------------------------------------------------------------- */

/*
 * The vCPU's thread, the runner and the mapper take turns.  A scheduler that sees them wake one another spreads them
 * over idle CPUs, and pays for that with interrupts to those, most dearly where the host is a virtual machine itself:
 * an exit costs half as much on one CPU.  Now and then the vCPU is free to be moved, where a CPU is idle and its own is
 * not, and the others follow it.
 */
#define PINNED_MS 50u
#define MOVES 4u

static void set_cpu(uint8_t *set, int cpu)
{
    memset(set, 0, DIRECT_CPUS / 8);
    set[cpu / 8] = (uint8_t)(1u << cpu % 8);
}

static void move_freely(struct direct *d)
{
    if (d->cpu >= 0)
        syscall(SYS_sched_setaffinity, 0, sizeof d->cpus, d->cpus);
    d->cpu = -1;
    d->moves = 0;
}

/*
 * CPUID traps in programs, where the processor can do that.  Switching between a thread where it does and one where it
 * does not writes a model-specific register, which a host that is a virtual machine itself pays with an exit of its
 * own: 13 us of 16 on Sapphire Rapids.  So it traps in the vCPU's thread as well, while it runs programs.
 */
static void trap_cpuid(struct direct *d, bool trap)
{
    if (!d->cpuid_traps || d->vcpu_traps == trap)
        return;
    d->vcpu_traps = trap;
    syscall(SYS_arch_prctl, ARCH_SET_CPUID, !trap);
}

void direct_child_release(struct direct *d)
{
    move_freely(d);
    trap_cpuid(d, false);
}

bool soft_direct_cpuid(struct engine *e)
{
    if (!e->direct || !e->direct->vcpu_traps)
        return false;
    trap_cpuid(e->direct, false);
    return true;
}

static unsigned others_there(const struct direct *d, int cpu)
{
    const struct peers *p = d->engine->peers;
    unsigned n = 0;
    for (unsigned i = 0; i < p->n; i++)
        n += p->of[i]->direct && p->of[i]->direct != d && p->of[i]->direct->cpu == cpu;
    return n;
}

/* Not where another vCPU has to stay, if there is a better place: neither could leave. */
static int least_crowded(const struct direct *d, int cpu)
{
    unsigned least = others_there(d, cpu);
    for (int i = 0; i < (int)DIRECT_CPUS && least; i++) {
        if (!(d->cpus[i / 8] >> i % 8 & 1) || others_there(d, i) >= least)
            continue;
        least = others_there(d, i);
        cpu = i;
    }
    return cpu;
}

static void stay_here(struct direct *d)
{
    uint8_t set[DIRECT_CPUS / 8];
    int cpu = sched_getcpu();
    if (cpu < 0 || cpu >= (int)DIRECT_CPUS)
        return;
    cpu = least_crowded(d, cpu);
    set_cpu(set, cpu);
    if (syscall(SYS_sched_setaffinity, 0, sizeof set, set) == 0)
        d->cpu = cpu;
    d->since = __builtin_ia32_rdtsc();
}

static void share_cpu(struct direct *d, struct direct_slot *s)
{
    if (d->cpu >= 0 && __builtin_ia32_rdtsc() - d->since > (uint64_t)PINNED_MS * d->engine->tsc_khz)
        move_freely(d);
    if (d->cpu < 0 && ++d->moves > MOVES) {
        stay_here(d);
        trap_cpuid(d, true);
    }
    if (d->cpu < 0 || s->cpu == d->cpu || direct_calls_full(s))
        return;
    set_cpu(s->orders->cpus, d->cpu);
    const uint64_t set = DIRECT_ORDERS + offsetof(struct direct_orders, cpus);
    direct_call(s, SYS_sched_setaffinity, (uint64_t)s->process, DIRECT_CPUS / 8, set, 0);
    direct_call(s, SYS_sched_setaffinity, 0, DIRECT_CPUS / 8, set, 0);
    s->cpu = d->cpu;
}

void soft_direct_kick(struct engine *e)
{
    struct direct_slot *s = e->direct ? atomic_load(&e->direct->running) : NULL;
    if (s)
        order(s, &s->orders->kick);
}

static void let_go(struct direct_slot *s)
{
    s->patience = PATIENCE_NS;
    __atomic_store_n(&s->orders->go, 1, __ATOMIC_SEQ_CST);
    if (s->n_calls || !s->orders->batch) {
        s->orders->calls[s->n_calls].number = -1;
        s->patience += least((uint64_t)(s->n_calls + s->n_unmapped) * CALL_NS, BATCH_NS);
        s->n_calls = s->n_unmapped = 0;
        order(s, &s->orders->batch);
    } else if (futex(&s->orders->cell, FUTEX_WAKE, 1, NULL, NULL) != 1) {
        futex(&s->orders->door, FUTEX_WAKE, 1, NULL, NULL); /* a stop of the process had brought it back there */
    }
}

/* Is it in its cell, since the mapper gave up? */
static bool call_failed(struct direct_slot *s)
{
    if (!s->shared->failed || !moved(&s->orders->cell, &s->orders->door))
        return false;
    return moved(&s->orders->door, &s->orders->cell);
}

static clockid_t process_clock(const struct direct_slot *s)
{
    return (clockid_t)(~(unsigned)s->process << 3 | 2); /* clock_getcpuclockid, less its check */
}

/* What its process has had: it may have to wait for a CPU, or be stopped as a whole, and is not to blame. */
uint64_t direct_child_cpu_ns(const struct direct_slot *s)
{
    return soft_clock_ns(process_clock(s));
}

uint64_t soft_direct_cpu_ns(const struct engine *e)
{
    uint64_t sum = 0;
    for (unsigned i = 0; e->direct && i < DIRECT_SLOTS; i++)
        if (e->direct->slots[i].state == SLOT_READY)
            sum += direct_child_cpu_ns(&e->direct->slots[i]);
    return sum;
}

/*
 * Is it of no more use, since it has ended or has gone on for too long after it was first asked for?  What counts is
 * CPU time alone: a process that does as it should may have to wait for any time, for a CPU or for a lock of the host's
 * kernel that somebody holds who has to wait for one.  And of that no more than LOOK_CPU_NS from look to look: where
 * the host is a virtual machine, time that another one had may be counted as the process's own.
 */
struct asked {
    unsigned looks;
    uint64_t last, used; /* CPU time: at the last look; since the first */
};
static bool lost(const struct direct *d, const struct direct_slot *s, struct asked *a)
{
    struct timespec t;
    if (clock_gettime(process_clock(s), &t) || helper_ended(d->engine->peers->helper))
        return true; /* the helper has seen its end; or has ended, and all of them with it */
    uint64_t now = (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec;
    if (a->looks++)
        a->used += least(now - a->last, LOOK_CPU_NS);
    a->last = now;
    return a->used > s->patience;
}

static bool found_asleep(struct direct_slot *s, unsigned looks)
{
    for (unsigned i = 0; i < looks; i++)
        if (moved(&s->orders->door, &s->orders->cell))
            return true;
    return false;
}

/* It has said that it stops.  On the vCPU's own CPU it sleeps by now, nine times of ten, or cannot before it has it. */
static int wait_asleep(const struct direct *d, struct direct_slot *s)
{
    const unsigned looks = d->cpu >= 0 && s->cpu == d->cpu ? 1 : LOOKS;
    const struct timespec nap = {0, NAP_NS};
    struct asked asked = {0};
    for (unsigned i = 0; !found_asleep(s, looks); i++) {
        if (lost(d, s, &asked))
            return -ESRCH;
        if (i < YIELDS)
            syscall(SYS_sched_yield);
        else
            nanosleep(&nap, NULL);
    }
    s->stopped = __atomic_load_n(&s->shared->stopped, __ATOMIC_ACQUIRE);
    return 0;
}

static int wait_stopped(struct soft_vcpu *v, const struct direct *d, struct direct_slot *s)
{
    const struct timespec a_while = {0, LOOK_MS * 1000000};
    struct asked asked = {0};
    unsigned looks = 0;

    for (;;) {
        uint32_t now = __atomic_load_n(&s->shared->stopped, __ATOMIC_ACQUIRE);
        if (now != s->stopped)
            break;
        if (futex(&s->shared->stopped, FUTEX_WAIT, now, &a_while, NULL) == 0 || errno != ETIMEDOUT)
            continue;
        if (!atomic_load(&v->poll))
            continue;
        if (lost(d, s, &asked))
            return -ESRCH;
        if (++looks > AT_DOOR_LOOKS && moved(&s->orders->door, &s->orders->cell))
            return -EPROTO;
        order(s, &s->orders->kick);
    }
    if (call_failed(s)) {
        s->stopped = __atomic_load_n(&s->shared->stopped, __ATOMIC_ACQUIRE);
        s->orders->go = 0;
        return -ENOMEM;
    }
    __atomic_store_n(&s->orders->go, 0, __ATOMIC_SEQ_CST); /* it has gone, to say what it says now */
    return wait_asleep(d, s);
}

int direct_child_run(struct soft_vcpu *v, struct direct *d, struct direct_slot *s)
{
    s->shared->failed = 0;
    share_cpu(d, s);
    atomic_store(&d->running, s);
    if (atomic_load(&v->poll)) { /* whoever set it before has not seen that there is somebody to kick */
        atomic_store(&d->running, NULL);
        return -ECANCELED;
    }
    let_go(s);
    int r = wait_stopped(v, d, s);
    atomic_store(&d->running, NULL);
    return r;
}

/* --- what an exit costs ------------------------------------------------------------------------------------- */

enum { WARM = 8, SAMPLES = 16 };
#define NOWHERE 0x10000u /* nothing is mapped there yet: going on there is an exit */

static uint64_t between(const struct direct_slot *s)
{
    uint64_t gone = s->shared->gone, came = s->shared->came;
    return came > gone ? came - gone : 0;
}

uint64_t direct_child_ran(const struct direct *d, const struct direct_slot *s)
{
    uint64_t ticks = between(s);
    return ticks > d->price.through ? ticks - d->price.through : 0;
}

void direct_child_measure(struct soft_vcpu *v, struct direct *d, struct direct_slot *s)
{
    struct direct_context *k = (struct direct_context *)(s->stack + s->frame + FRAME_CONTEXT);
    struct direct_price p = {false, UINT64_MAX, UINT64_MAX, UINT64_MAX};
    k->rip = NOWHERE;
    s->orders->tasks = d->trap_tsc ? 0 : TASK_CLOCK;
    s->orders->flags = FL_ONE;
    for (unsigned i = 0; i < WARM + SAMPLES; i++) {
        uint64_t used = direct_child_cpu_ns(s), start = __builtin_ia32_rdtsc();
        int r = direct_child_run(v, d, s);
        if (r == -ESRCH || r == -EPROTO)
            direct_slot_replace(d, s);
        if (r)
            return;
        if (i < WARM)
            continue;
        p.wall = least(p.wall, (__builtin_ia32_rdtsc() - start) * 1000000 / d->engine->tsc_khz);
        p.cpu = least(p.cpu, direct_child_cpu_ns(s) - used);
        p.through = least(p.through, between(s));
    }
    p.known = true;
    d->price = p;
}
