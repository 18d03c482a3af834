#include "engine/direct/helper.h"

#include <asm/prctl.h>
#include <errno.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/futex.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <signal.h>
#include <stddef.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/rseq.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/error.h"
#include "base/log.h"
#include "engine/direct/layout.h"
#include "host/sandbox.h"
#include "host/unix.h"

enum { SOCKET = 3, SHARED = 4, RAM = 5, RAM_HERE = 3 /* in a process for guest code, alone */ };

static uint64_t stub_offset(const char *label)
{
    return (uint64_t)((uintptr_t)label - (uintptr_t)direct_stub);
}

/* --- what the two threads may do --------------------------------------------------------------------------- */

/* A filter is a list of rules: what meets all conditions of one is answered so. */
struct filter {
    struct sock_filter code[192];
    unsigned short n, rule;
};

#define FIELD(name) (uint32_t) offsetof(struct seccomp_data, name)

static void emit(struct filter *f, unsigned short code, uint32_t k)
{
    f->code[f->n++] = (struct sock_filter)BPF_STMT(code, k);
}

static void word(struct filter *f, uint32_t offset, uint32_t mask, uint32_t value)
{
    emit(f, BPF_LD | BPF_W | BPF_ABS, offset);
    if (mask != UINT32_MAX)
        emit(f, BPF_ALU | BPF_AND | BPF_K, mask);
    emit(f, BPF_JMP | BPF_JEQ | BPF_K, value); /* its jump to the next rule is set by `then` */
}

static void argument(struct filter *f, unsigned n, uint64_t value)
{
    word(f, FIELD(args) + 8 * n, UINT32_MAX, (uint32_t)value);
    word(f, FIELD(args) + 8 * n + 4, UINT32_MAX, (uint32_t)(value >> 32));
}

static void then(struct filter *f, uint32_t action)
{
    emit(f, BPF_RET | BPF_K, action);
    for (unsigned i = f->rule; i < f->n; i++)
        if (f->code[i].code == (BPF_JMP | BPF_JEQ | BPF_K))
            f->code[i].jf = (uint8_t)(f->n - i - 1);
    f->rule = f->n;
}

/* Every rule begins so: the call is made by the stub, where it is to be made. */
static void call(struct filter *f, uint32_t number, const char *from)
{
    word(f, FIELD(instruction_pointer) + 4, UINT32_MAX, DIRECT_BASE >> 32);
    if (from)
        word(f, FIELD(instruction_pointer), UINT32_MAX, (uint32_t)(DIRECT_BASE + stub_offset(from)));
    word(f, FIELD(arch), UINT32_MAX, AUDIT_ARCH_X86_64);
    word(f, FIELD(nr), UINT32_MAX, number);
}

static void futex_call(struct filter *f, uint64_t address, int operation, const char *from)
{
    call(f, SYS_futex, from);
    argument(f, 0, address);
    argument(f, 1, (uint64_t)operation);
    if (operation == FUTEX_WAIT)
        argument(f, 3, 0);
    then(f, SECCOMP_RET_ALLOW);
}

static void base_call(struct filter *f, uint64_t which, const char *from)
{
    call(f, SYS_arch_prctl, from);
    argument(f, 0, which);
    then(f, SECCOMP_RET_ALLOW);
}

/* Whatever else the runner calls is its guest's, and comes back as a signal. */
static void runner_rules(struct filter *f)
{
    call(f, SYS_rt_sigreturn, direct_stub_returned);
    then(f, SECCOMP_RET_ALLOW);
    futex_call(f, DIRECT_STATE + offsetof(struct direct_state, stopped), FUTEX_WAKE, direct_stub_said);
    futex_call(f, DIRECT_ORDERS + offsetof(struct direct_orders, door), FUTEX_WAIT, direct_stub_parked);
    base_call(f, ARCH_SET_FS, direct_stub_fs_set);
    base_call(f, ARCH_SET_GS, direct_stub_gs_set);
    emit(f, BPF_RET | BPF_K, SECCOMP_RET_TRAP);
}

static void mapper_rules(struct filter *f)
{
    call(f, SYS_mmap, NULL);
    argument(f, 3, MAP_SHARED | MAP_FIXED | MAP_POPULATE);
    argument(f, 4, RAM_HERE);
    then(f, SECCOMP_RET_ALLOW);
    call(f, SYS_munmap, NULL);
    then(f, SECCOMP_RET_ALLOW);
    futex_call(f, DIRECT_ORDERS + offsetof(struct direct_orders, work), FUTEX_WAIT, NULL);
    futex_call(f, DIRECT_ORDERS + offsetof(struct direct_orders, cell), FUTEX_WAKE, NULL);
    futex_call(f, DIRECT_ORDERS + offsetof(struct direct_orders, door), FUTEX_WAKE, NULL);
    futex_call(f, DIRECT_STATE + offsetof(struct direct_state, stopped), FUTEX_WAKE, NULL);
    call(f, SYS_sched_setaffinity, NULL);
    argument(f, 0, 0);
    then(f, SECCOMP_RET_ALLOW);
    call(f, SYS_sched_setaffinity, NULL);
    argument(f, 0, (uint64_t)getpid());
    then(f, SECCOMP_RET_ALLOW);
    call(f, SYS_tgkill, NULL);
    argument(f, 0, (uint64_t)getpid());
    argument(f, 1, (uint64_t)getpid());
    argument(f, 2, SIGUSR1);
    then(f, SECCOMP_RET_ALLOW);
    call(f, SYS_exit_group, NULL);
    then(f, SECCOMP_RET_ALLOW);
    emit(f, BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS);
}

/* A struct sock_fprog and, from *used on, its code, where the stub can name them: they are used before guest code can
 * reach them. */
static void place_filter(struct direct_state *state, unsigned i, size_t *used, void (*rules)(struct filter *))
{
    struct filter f = {.n = 0};
    rules(&f);
    struct sock_fprog program = {
        .len = f.n,
        .filter = (struct sock_filter *)(DIRECT_STATE + offsetof(struct direct_state, filters) + *used),
    };
    memcpy(state->filters + *used, f.code, f.n * sizeof f.code[0]);
    memcpy(state->filters + i * sizeof program, &program, sizeof program);
    *used += f.n * sizeof f.code[0];
}

static void place_filters(struct direct_state *state)
{
    size_t used = 2 * sizeof(struct sock_fprog);
    place_filter(state, 0, &used, runner_rules);
    place_filter(state, 1, &used, mapper_rules);
}

/* --- a process for guest code ------------------------------------------------------------------------------ */

/* The kernel's, not the C library's: nothing but the stub is there when a signal comes. */
struct kernel_sigaction {
    uint64_t handler, flags, restorer, mask;
};

static int set_handlers(uint64_t handler)
{
    static const int signals[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGSYS, SIGUSR1};
    const struct kernel_sigaction sa = {handler, SA_SIGINFO | SA_ONSTACK | 0x04000000 /* SA_RESTORER */, handler,
                                        ~0ull};
    const uint64_t none = 0;

    for (unsigned i = 0; i < sizeof signals / sizeof *signals; i++)
        if (syscall(SYS_rt_sigaction, signals[i], &sa, NULL, sizeof sa.mask))
            return -errno;
    return syscall(SYS_rt_sigprocmask, SIG_SETMASK, &none, NULL, sizeof none) ? -errno : 0;
}

static bool put(uint64_t address, uint64_t size, int protection, uint64_t offset)
{
    void *at = (void *)(uintptr_t)address;
    return mmap(at, size, protection, MAP_SHARED | MAP_FIXED_NOREPLACE, SHARED, (off_t)offset) == at;
}

static bool put_code(void)
{
    void *at = mmap((void *)(uintptr_t)DIRECT_BASE, DIRECT_CODE_SIZE, PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
    if (at != (void *)(uintptr_t)DIRECT_BASE)
        return false;
    memcpy(at, direct_stub, stub_offset(direct_stub_end));
    return mprotect(at, DIRECT_CODE_SIZE, PROT_READ | PROT_EXEC) == 0;
}

/* The C library has told the kernel of a place in memory that goes. */
static void leave_rseq(void)
{
#ifdef RSEQ_SIG
    if (__rseq_size)
        syscall(SYS_rseq, (char *)__builtin_thread_pointer() + __rseq_offset, 32, 1 /* unregister */, RSEQ_SIG);
#endif
}

static int prepare(unsigned slot, bool trap_tsc, pid_t parent)
{
    const uint64_t offset = (uint64_t)slot * DIRECT_SLOT_SIZE;
    const stack_t stack = {.ss_sp = (void *)(uintptr_t)DIRECT_STACK, .ss_size = DIRECT_STACK_SIZE};

    signal(SIGCHLD, SIG_DFL);
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent) /* it ended before we asked */
        return -ESRCH;
    prctl(PR_SET_NAME, "guise-direct");
    if (!put_code() || !put(DIRECT_ORDERS, DIRECT_ORDERS_SIZE, PROT_READ, offset) ||
        !put(DIRECT_STATE, DIRECT_STATE_SIZE, PROT_READ | PROT_WRITE, offset + DIRECT_SLOT_STATE) ||
        !put(DIRECT_STACK, DIRECT_STACK_SIZE, PROT_READ | PROT_WRITE, offset + DIRECT_SLOT_STACK))
        return -errno;
    memset((void *)(uintptr_t)DIRECT_STATE, 0, DIRECT_STATE_SIZE); /* of whoever was here before */
    memset((void *)(uintptr_t)DIRECT_STACK, 0, DIRECT_STACK_SIZE);
    place_filters((struct direct_state *)(uintptr_t)DIRECT_STATE);
    if (dup2(RAM, RAM_HERE) < 0 || syscall(SYS_close_range, 0, 2, 0) || syscall(SYS_close_range, RAM_HERE + 1, ~0u, 0))
        return -errno;
    if (sigaltstack(&stack, NULL) || (trap_tsc && prctl(PR_SET_TSC, PR_TSC_SIGSEGV)))
        return -errno;
    syscall(SYS_arch_prctl, ARCH_SET_CPUID,
            0); /* where the processor can trap it: else the VM process looks out for it */
    leave_rseq();
    return set_handlers(DIRECT_BASE + stub_offset(direct_stub_handler));
}

static void run(unsigned slot, bool trap_tsc, pid_t parent)
{
    if (prepare(slot, trap_tsc, parent))
        _exit(1);
    ((void (*)(void))(uintptr_t)(DIRECT_BASE + stub_offset(direct_stub_start)))();
}

/* --- the process that makes them --------------------------------------------------------------------------- */

static int confine(char *err, size_t n)
{
    const struct sandbox_spec spec = {.role = SANDBOX_DIRECT};
    struct sandbox *s;
    int failed = sandbox_enter(&spec, &s, err, n);

    if (failed)
        return failed;
    bool calls = sandbox_did(s, SANDBOX_SECCOMP);
    sandbox_free(s);
    return calls ? 0 : error_set(err, n, -ENOSYS, "this host has no system-call filters: no guest code runs directly");
}

static pid_t slots[DIRECT_SLOTS_MAX]; /* 0: no process, or its end has been seen */

/* Who ends by itself leaves at once: by that the VM process knows it, who asks for its clock. */
static void reap(int signal)
{
    (void)signal;
    const int interrupted = errno;
    for (pid_t pid; (pid = waitpid(-1, NULL, WNOHANG)) > 0;)
        for (unsigned i = 0; i < DIRECT_SLOTS_MAX; i++)
            if (slots[i] == pid)
                slots[i] = 0;
    errno = interrupted;
}

static void end(unsigned slot)
{
    if (!slots[slot])
        return;
    kill(slots[slot], SIGKILL);
    while (waitpid(slots[slot], NULL, 0) < 0 && errno == EINTR)
        ;
    slots[slot] = 0;
}

/* Another process for a slot; what ran there before has ended when the answer is sent. */
static bool replace(unsigned slot, bool trap_tsc)
{
    end(slot);
    if (write(SOCKET, "", 1) != 1)
        return false;
    pid_t self = getpid();
    slots[slot] = fork();
    if (slots[slot] == 0)
        run(slot, trap_tsc, self);
    return slots[slot] > 0;
}

static int watch_ends(void)
{
    const struct sigaction sa = {.sa_handler = reap};
    sigset_t ends;
    sigemptyset(&ends);
    sigaddset(&ends, SIGCHLD);
    return sigprocmask(SIG_BLOCK, &ends, NULL) || sigaction(SIGCHLD, &sa, NULL) ? -errno : 0;
}

/* Until there is an order; processes that end meanwhile are seen here, and nowhere else. */
static bool wait_order(void)
{
    struct pollfd p = {.fd = SOCKET, .events = POLLIN};
    sigset_t none;
    sigemptyset(&none);
    while (ppoll(&p, 1, NULL, &none) < 0)
        if (errno != EINTR)
            return false;
    return true;
}

static void end_all(void)
{
    for (unsigned i = 0; i < DIRECT_SLOTS_MAX; i++) {
        if (slots[i])
            kill(slots[i], SIGKILL);
    }
    for (unsigned i = 0; i < DIRECT_SLOTS_MAX; i++)
        end(i);
}

/* The order; and the descriptor that came along, or -1. */
static bool take_order(uint16_t *order, int *fd)
{
    unsigned n = 1;

    *fd = -1;
    return unix_receive_fds(SOCKET, order, sizeof *order, fd, &n, 0) == sizeof *order;
}

static bool take_memory(int fd)
{
    end_all();
    bool taken = fd >= 0 && dup2(fd, RAM) == RAM;
    if (fd >= 0)
        close(fd);
    return taken && write(SOCKET, "", 1) == 1;
}

int direct_helper_main(int argc, char **argv)
{
    char err[ERROR_SIZE];
    uint16_t order;
    int fd;

    if (argc > 1 || confine(err, sizeof err)) {
        log_say("%s", argc > 1 ? "this is for other commands of guise" : err);
        return 1;
    }
    if (watch_ends())
        return 1;
    while (wait_order() && take_order(&order, &fd)) {
        if (order == DIRECT_NEW_MEMORY) {
            if (!take_memory(fd))
                return 1;
            continue;
        }
        unsigned slot = order & ~DIRECT_TRAP_TSC;
        if (slot >= DIRECT_SLOTS_MAX || !replace(slot, order & DIRECT_TRAP_TSC))
            return 1;
    }
    return 0;
}
