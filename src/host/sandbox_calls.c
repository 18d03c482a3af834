/*
 * The system calls of each role, each with the reason for it.
 *
 * What is not in the list stops the process with a line that names the call (sandbox.c).  Some calls are answered with
 * an error instead, because libraries try them by the way and do well without.
 *
 * A thread's list applies on top of its process's: only what is in both is allowed.  Whoever has taken over one thread
 * can write to the stacks of the others, so it is the process's list that a guest must not get past; the threads' lists
 * make that the longer way.  Longer than 600 lines would be a sign that something is allowed for convenience.
 */
#include <asm/prctl.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/if_tun.h>
#include <linux/kvm.h>
#include <linux/seccomp.h>
#include <linux/userfaultfd.h>
#include <sched.h>
#include <seccomp.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "host/sandbox_int.h"

#define BIT(role) (1u << SANDBOX_##role)
#define VM (BIT(VM_SOFT) | BIT(VM_KVM))
#define VM_K BIT(VM_KVM)
#define VCPU (BIT(VCPU_SOFT) | BIT(VCPU_KVM))
#define V_SOFT BIT(VCPU_SOFT)
#define V_KVM BIT(VCPU_KVM)
#define WORKER BIT(WORKER)
#define WRITER BIT(WRITER)
#define KEEPER BIT(KEEPER)
#define NET BIT(NET)
#define SWITCH BIT(SWITCH)
#define SHARE BIT(SHARE)
#define DIRECT BIT(DIRECT)
#define HELPERS (KEEPER | NET | SWITCH | SHARE)
#define PROCESS (VM | HELPERS)
#define ANY ((1u << SANDBOX_ROLES) - 1)

/* An argument that must be so; a row is allowed when all of its conditions hold. */
enum { NONE, IS, MASKED, BELOW, IS_SELF };
struct condition {
    uint8_t kind, argument;
    uint64_t mask, value;
};
#define ARG_IS(n, v)                                                                                                   \
    {                                                                                                                  \
        IS, (n), 0, (uint64_t)(v)                                                                                      \
    }
#define ARG_HAS(n, m, v)                                                                                               \
    {                                                                                                                  \
        MASKED, (n), (uint64_t)(m), (uint64_t)(v)                                                                      \
    } /* argument & m == v */
#define ARG_BELOW(n, v)                                                                                                \
    {                                                                                                                  \
        BELOW, (n), 0, (uint64_t)(v)                                                                                   \
    }
#define ARG_IS_SELF(n)                                                                                                 \
    {                                                                                                                  \
        IS_SELF, (n), 0, 0                                                                                             \
    } /* this process's id */

struct call {
    int number;
    unsigned roles;
    const char *why;
    struct condition conditions[2];
    int error; /* 0: allowed, else what it is answered with */
};
#define SYS(name) SCMP_SYS(name)

/* The kernel's other ways to make memory executable, or code of files, are not in the list at all. */
#define NOT_EXECUTABLE(n) ARG_HAS(n, PROT_EXEC, 0)

static const struct call calls[] = {
    /* --- to be a thread --- */
    {SYS(futex), ANY, "locks, conditions, sleeping vCPUs"},
    {SYS(exit), ANY, "a thread ends"},
    {SYS(exit_group), ANY, "the process ends"},
    {SYS(rt_sigreturn), ANY, "a signal handler returns"},
    {SYS(rt_sigprocmask), ANY, "pthread_create, pthread_sigmask and abort block signals"},
    {SYS(restart_syscall), ANY, "the kernel continues a sleep after a stop"},
    {SYS(sched_yield), ANY, "locks of libraries; a halted vCPU that looks for a request before it sleeps"},
    {SYS(set_robust_list), ANY, "a thread begins"},
    {SYS(rseq), ANY, "a thread begins"},
    {SYS(gettid), ANY, "raise, and names of threads"},
    {SYS(getpid), ANY, "raise; the KVM engine kicks by it"},
    {SYS(tgkill), ANY, "raise, abort, kicks of vCPU threads, pthread_cancel: this process only", {ARG_IS_SELF(0)}},
    {SYS(sigaltstack), VM | VCPU, "the soft engine's handlers have a stack of their own"},
    {SYS(clone), VM | SHARE, "threads, not processes", {ARG_HAS(0, CLONE_THREAD | CLONE_VM, CLONE_THREAD | CLONE_VM)}},
    {SYS(clone3), VM | SHARE, "its flags are in memory, where no filter sees them: glibc then takes clone",
     .error = ENOSYS},
    {SYS(prctl), PROCESS, "a thread's name", {ARG_IS(0, PR_SET_NAME)}},
    {SYS(seccomp), VM, "a thread takes its shorter list", {ARG_IS(0, SECCOMP_SET_MODE_FILTER)}},
    {SYS(sched_getaffinity), ANY, "malloc counts processors"},
    {SYS(sched_setaffinity),
     BIT(VM_SOFT) | V_SOFT,
     "a vCPU stays where the process is that runs its programs",
     {ARG_IS(0, 0)}},
    {SYS(sched_setaffinity), DIRECT, "and that process where the vCPU is: its own filter has the numbers"},

    /* --- memory: none of it executable --- */
    {SYS(mmap), ANY, "malloc, stacks", {NOT_EXECUTABLE(2)}},
    {SYS(mprotect), ANY, "malloc's arenas, guard pages of stacks", {NOT_EXECUTABLE(2)}},
    {SYS(munmap), ANY, "malloc, stacks"},
    {SYS(mremap), ANY, "realloc of something large"},
    {SYS(brk), ANY, "malloc"},
    {SYS(madvise), ANY, "malloc and ended threads give pages back"},
    {SYS(fcntl), VM, "nobody writes any more to the memory of a machine that is forked", {ARG_IS(1, F_ADD_SEALS)}},

    /* --- time --- */
    {SYS(clock_gettime), ANY, "where the clock is not readable without the kernel"},
    {SYS(gettimeofday), ANY, "the same"},
    {SYS(clock_nanosleep), ANY, "sleeps"},
    {SYS(nanosleep), ANY, "sleeps"},
    {SYS(timerfd_settime), VM | VCPU, "the loop's timer, which devices move on a vCPU's thread"},
    {SYS(getrandom), ANY, "virtio-rng; seeds of hash tables"},

    /* --- descriptors that are open --- */
    {SYS(read), ANY, "files, sockets, event descriptors"},
    {SYS(write), ANY, "files, sockets, event descriptors, messages"},
    {SYS(readv), ANY & ~WRITER, "disks, network frames"},
    {SYS(writev), ANY & ~WRITER, "disks, network frames, stdio"},
    {SYS(pread64), VM | VCPU | WORKER | WRITER | SHARE,
     "disks; the kernel's file, again, at a reset; logs; /proc/self/pagemap"},
    {SYS(pwrite64), VM | VCPU | WORKER | WRITER, "disks, the record of a VM, logs"},
    {SYS(preadv), VM | VCPU | WORKER, "disks"},
    {SYS(pwritev), VM | VCPU | WORKER, "disks"},
    {SYS(preadv2), VM | VCPU | WORKER | SHARE, "disks"},
    {SYS(pwritev2), VM | VCPU | WORKER | SHARE, "disks: written through"},
    {SYS(fsync), VM | VCPU | WORKER | SHARE, "what a guest flushes is durable"},
    {SYS(fdatasync), VM | VCPU | WORKER | SHARE, "the same"},
    {SYS(sync_file_range), VM | VCPU | WORKER, "overlays"},
    {SYS(fallocate), VM | VCPU | WORKER | SHARE, "discard, write zeroes, the balloon"},
    {SYS(ftruncate), VM | WORKER | WRITER | SHARE, "logs begin anew, overlays grow"},
    {SYS(lseek), VM | VCPU | WORKER | SHARE | NET, "stdio, data and holes of a disk"},
    {SYS(newfstatat), PROCESS, "fstat", {ARG_HAS(3, AT_EMPTY_PATH, AT_EMPTY_PATH)}},
    {SYS(fstat), PROCESS, "stdio; sizes"},
    {SYS(close), ANY, "connections end"},
    {SYS(shutdown), VM | VCPU | NET, "half-closes of vsock and network connections"},
    {SYS(dup), VM, "a control connection becomes a guest's"},
    {SYS(fcntl), PROCESS, "duplicates that are closed on exec", {ARG_IS(1, F_DUPFD_CLOEXEC)}},
    {SYS(fcntl), PROCESS, "stdio, jansson, libslirp", {ARG_IS(1, F_GETFL)}},
    {SYS(fcntl), PROCESS, "non-blocking sockets", {ARG_IS(1, F_SETFL)}},
    {SYS(fcntl), PROCESS, "close on exec", {ARG_IS(1, F_SETFD)}},
    {SYS(fcntl), VM, "a layer of a disk that is not written to any more is others' to read", {ARG_IS(1, F_OFD_SETLK)}},
    {SYS(flock), VM, "the record of a VM"},
    {SYS(io_uring_enter), VM | VCPU, "disks; the ring itself allows reads, writes, flushes and allocation only"},

    /* --- waiting --- */
    {SYS(epoll_wait), VM | NET, "the event loop"},
    {SYS(epoll_pwait), VM | NET, "the same, by other libraries"},
    {SYS(epoll_ctl), VM | VCPU | NET, "what the loop waits for; devices say so on a vCPU's thread"},
    {SYS(poll), ANY, "last words to slow readers; NBD"},
    {SYS(ppoll), ANY, "the same"},

    /* --- connections that exist --- */
    {SYS(recvfrom), VM | VCPU | HELPERS, "vsock, control socket, network frames"},
    {SYS(recvmsg), VM | VCPU | HELPERS, "the same; descriptors from the keeper, and with requests"},
    {SYS(recvmsg), DIRECT, "orders, and the file of the guest's memory when that is another one"},
    {SYS(recvmmsg), VM | VCPU | NET, "network frames"},
    {SYS(sendto), VM | VCPU | HELPERS, "vsock, control socket, network frames"},
    {SYS(sendmsg), VM | VCPU | HELPERS, "the same; what the keeper hands over"},
    {SYS(sendmmsg), VM | VCPU | NET, "network frames"},
    {SYS(accept4), VM | NET | SWITCH, "clients of control socket, vsock, consoles, forwarded ports"},
    {SYS(getsockopt), VM | NET, "who a client is; whether a descriptor is a stream"},
    {SYS(socketpair), VM, "the agent's connection within guise", {ARG_IS(0, AF_UNIX)}},

    /* --- the terminal --- */
    {SYS(ioctl),
     VM | VCPU,
     "raw mode, when put back into the foreground; is the terminal raw that a message goes to?",
     {ARG_IS(1, TCGETS)}},
    {SYS(ioctl), VM, "the same", {ARG_IS(1, TCSETS)}},
    {SYS(ioctl), VM, "the same", {ARG_IS(1, TCSETSW)}},
    {SYS(ioctl), VM, "the same", {ARG_IS(1, TCSETSF)}},
    {SYS(ioctl), VM, "who is in the foreground", {ARG_IS(1, TIOCGPGRP)}},
    {SYS(ioctl), VM, "its size", {ARG_IS(1, TIOCGWINSZ)}},
    {SYS(getpgrp), VM, "the same"},
    {SYS(kill), VM, "Ctrl-Z stops this process", {ARG_IS_SELF(0)}},
    {SYS(rt_sigaction),
     VM | NET | SHARE,
     "handlers are put back at the end, but for that of forbidden calls",
     {ARG_BELOW(0, SIGSYS)}},
    {SYS(rt_sigaction),
     VM | SHARE | NET,
     "the signal that kicks vCPUs, and those of glibc's threads",
     {ARG_HAS(0, ~0x1full, 32)}},

    /* --- children that exist --- */
    {SYS(wait4), VM, "helpers that have ended"},
    {SYS(waitid), VM, "the same"},
    {SYS(pidfd_send_signal), VM, "helpers are asked to end: children only, others have no such descriptor"},

    /* --- about itself --- */
    {SYS(getrusage), VM, "stats"},
    {SYS(getuid), PROCESS, "libraries"},
    {SYS(geteuid), PROCESS, "libraries"},
    {SYS(getgid), PROCESS, "libraries"},
    {SYS(getegid), PROCESS, "libraries"},
    {SYS(sysinfo), PROCESS, "qsort asks how much memory there is"},
    {SYS(uname), PROCESS, "libraries"},

    /* --- engines --- */
    {SYS(arch_prctl), V_SOFT, "the base of gs points to the virtual CPU", {ARG_IS(0, ARCH_SET_GS)}},
    {SYS(arch_prctl), VM, "the same", {ARG_IS(0, ARCH_SET_GS)}},
    {SYS(arch_prctl),
     BIT(VM_SOFT) | V_SOFT,
     "CPUID traps in a vCPU's thread as in the programs that it runs",
     {ARG_IS(0, ARCH_SET_CPUID)}},
    {SYS(rt_sigtimedwait), VM_K | V_KVM, "a kick that came outside the guest is taken back"},
    {SYS(ioctl), VM_K | V_KVM, "KVM's own requests", {ARG_HAS(1, 0xff00, KVMIO << 8)}},
    {SYS(ioctl),
     VM_K | V_KVM | WORKER,
     "memory of a restored guest that comes later",
     {ARG_HAS(1, 0xff00, UFFDIO << 8)}},

    /* --- libraries try, and do without --- */
    {SYS(openat), VM | VCPU | WORKER | WRITER, "time zones, locales, processors: nothing is opened any more",
     .error = EACCES},
    {SYS(open), VM | VCPU | WORKER | WRITER, "the same", .error = EACCES},
    {SYS(access), VM | VCPU, "the same", .error = EACCES},
    {SYS(readlink), VM | VCPU, "the same", .error = EACCES},
    {SYS(unlink), VM, "sockets' files are removed by the keeper", .error = EACCES},
    {SYS(unlinkat), VM, "the same", .error = EACCES},
    {SYS(prlimit64), VM | SHARE | NET, "sizes of stacks", .error = EPERM},

    /* --- the file server: names below the shared directory, which it has confined itself to --- */
    {SYS(openat), SHARE, "files, by names relative to a directory that is open, or by /proc/self/fd"},
    {SYS(access), SHARE, "what the guest asks"},
    {SYS(statx), SHARE, "attributes"},
    {SYS(newfstatat), SHARE, "fstat"},
    {SYS(fstatfs), SHARE, "df"},
    {SYS(readlinkat), SHARE, "symbolic links"},
    {SYS(getdents64), SHARE, "what a directory contains"},
    {SYS(mkdirat), SHARE, "directories"},
    {SYS(mknodat), SHARE, "files, FIFOs, sockets; devices need a capability that it does not have"},
    {SYS(symlinkat), SHARE, "symbolic links"},
    {SYS(linkat), SHARE, "links"},
    {SYS(unlinkat), SHARE, "removals"},
    {SYS(renameat2), SHARE, "renames"},
    {SYS(renameat), SHARE, "what the C library makes of it without flags"},
    {SYS(utimensat), SHARE, "times"},
    {SYS(chmod), SHARE, "modes, by /proc/self/fd"},
    {SYS(truncate), SHARE, "sizes, by /proc/self/fd"},
    {SYS(copy_file_range), SHARE, "copies"},
    {SYS(getxattr), SHARE, "extended attributes, by /proc/self/fd"},
    {SYS(lgetxattr), SHARE, "the same, of a name in a directory"},
    {SYS(setxattr), SHARE, "the same"},
    {SYS(listxattr), SHARE, "the same"},
    {SYS(removexattr), SHARE, "the same"},
    {SYS(syncfs), SHARE, "sync"},
    {SYS(flock), SHARE, "locks"},
    {SYS(fcntl), SHARE, "locks", {ARG_IS(1, F_OFD_SETLK)}},
    {SYS(fcntl), SHARE, "locks", {ARG_IS(1, F_OFD_GETLK)}},

    {SYS(ioctl), VM | VCPU, "what a tap interface may leave undone, when a driver says so", {ARG_IS(1, TUNSETOFFLOAD)}},

    /* --- networks --- */
    {SYS(socket), NET, "the guest's connections", {ARG_IS(0, AF_INET)}},
    {SYS(socket), NET, "the guest's connections", {ARG_IS(0, AF_INET6)}},
    {SYS(connect), NET, "the same; there are no sockets of other kinds"},
    {SYS(bind), NET, "published ports, UDP"},
    {SYS(listen), NET, "published ports"},
    {SYS(accept), NET, "published ports"},
    {SYS(getsockname), NET, "published ports that were chosen"},
    {SYS(getpeername), NET, "who connects to a published port"},
    {SYS(setsockopt), NET | SWITCH, "reuse of addresses, urgent data, sizes of buffers"},
    {SYS(ioctl), NET, "how much waits", {ARG_IS(1, FIONREAD)}},
    {SYS(ioctl), NET, "non-blocking", {ARG_IS(1, FIONBIO)}},
    {SYS(openat), NET, "/etc/resolv.conf: landlock has no other file", {ARG_HAS(2, O_ACCMODE | O_CREAT, O_RDONLY)}},
    {SYS(newfstatat), NET, "whether it has changed"},
    {SYS(socket), SWITCH, "the switch's socket", {ARG_IS(0, AF_UNIX)}},
    {SYS(connect), SWITCH, "to the hub"},
    {SYS(bind), SWITCH, "as the hub"},
    {SYS(listen), SWITCH, "as the hub"},
    {SYS(umask), SWITCH, "the socket is its user's"},
    {SYS(openat), SWITCH, "its directory, to lock it", {ARG_HAS(2, O_ACCMODE | O_CREAT, O_RDONLY)}},
    {SYS(newfstatat), SWITCH, "whether there is a socket"},
    {SYS(lstat), SWITCH, "the same"},
    {SYS(flock), SWITCH, "two do not become hub at once"},
    {SYS(unlink), SWITCH, "a socket that nobody answers at"},
    {SYS(unlinkat), SWITCH, "the same"},

    /* --- processes for guest code: each takes a list of its own, of four calls --- */
    {SYS(clone), DIRECT, "such a process, its second thread"},
    {SYS(kill), DIRECT, "such a process is ended"},
    {SYS(wait4), DIRECT, "and has ended"},
    {SYS(getppid), DIRECT, "it ends with this process, also when that was faster"},
    {SYS(mmap), DIRECT, "guest code is executable"},
    {SYS(mprotect), DIRECT, "so is the stub"},
    {SYS(rt_sigaction), DIRECT, "what stops guest code is a signal"},
    {SYS(sigaltstack), DIRECT, "on a stack that is not the guest's"},
    {SYS(tgkill), DIRECT,
     "its second thread interrupts the first; the filter of this process does not know its number"},
    {SYS(prctl), DIRECT, "a name; its end with this process's; the time-stamp counter is the guest's"},
    {SYS(arch_prctl), DIRECT, "CPUID, too, where the processor can trap it"},
    {SYS(seccomp), DIRECT, "its own list", {ARG_IS(0, SECCOMP_SET_MODE_FILTER)}},
    {SYS(close_range), DIRECT, "no descriptor but that of the guest's memory"},
    {SYS(dup2), DIRECT, "the same"},

    /* --- the keeper --- */
    {SYS(socket), KEEPER, "connects to a socket's file for the guest", {ARG_IS(0, AF_UNIX)}},
    {SYS(connect), KEEPER, "the same: no other address family has a socket"},
    {SYS(newfstatat), KEEPER, "whether a socket's file is still the one that it knew"},
    {SYS(lstat), KEEPER, "the same"},
    {SYS(unlink), KEEPER, "removes it at the end"},
    {SYS(unlinkat), KEEPER, "the same"},
};

/* Builds for tests: what sanitizers and coverage do besides, at any time and at the end. */
static const struct call instrumented[] = {
    {SYS(openat), ANY, "maps of memory, symbols; files of coverage"},
    {SYS(open), ANY, "the same"},
    {SYS(readlink), ANY, "where the program is"},
    {SYS(readlinkat), ANY, "the same"},
    {SYS(newfstatat), ANY, "the same"},
    {SYS(stat), ANY, "the same"},
    {SYS(access), ANY, "the same"},
    {SYS(getcwd), ANY, "the same"},
    {SYS(mkdir), ANY, "files of coverage"},
    {SYS(fcntl), ANY, "the same"},
    {SYS(ftruncate), ANY, "the same"},
    {SYS(lseek), ANY, "the same"},
    {SYS(fstat), ANY, "the same"},
    {SYS(pipe2), ANY, "whether memory can be read"},
    {SYS(pipe), ANY, "the same"},
    {SYS(prctl), ANY, "the search for leaks"},
    {SYS(ptrace), ANY, "the same"},
    {SYS(clone), ANY, "the same"},
    {SYS(wait4), ANY, "the same"},
    {SYS(waitid), ANY, "the same"},
    {SYS(getppid), ANY, "the same"},
    {SYS(kill), ANY, "the same"},
    {SYS(sigaltstack), ANY, "the same"},
    {SYS(rt_sigaction), ANY, "the same"},
    {SYS(process_vm_readv), ANY, "whether memory can be read"},
    {SYS(prlimit64), ANY, "sizes of stacks"},
    {SYS(getdents64), ANY, "threads"},
    {SYS(getuid), ANY, "the same"},
    {SYS(geteuid), ANY, "the same"},
    {SYS(uname), ANY, "the same"},
    {SYS(sysinfo), ANY, "the same"},
    {SYS(personality), ANY, "the same"},
};

static struct scmp_arg_cmp comparison(const struct condition *c)
{
    switch (c->kind) {
    case MASKED:
        return SCMP_CMP64(c->argument, SCMP_CMP_MASKED_EQ, c->mask, c->value);
    case BELOW:
        return SCMP_CMP64(c->argument, SCMP_CMP_LT, c->value);
    case IS_SELF:
        return SCMP_CMP64(c->argument, SCMP_CMP_EQ, (uint64_t)getpid());
    default:
        return SCMP_CMP64(c->argument, SCMP_CMP_EQ, c->value);
    }
}

/* -EEXIST: said already, in other words. */
static int add(scmp_filter_ctx ctx, const struct call *c)
{
    struct scmp_arg_cmp args[2];
    unsigned n = 0;

    while (n < 2 && c->conditions[n].kind != NONE) {
        args[n] = comparison(&c->conditions[n]);
        n++;
    }
    int err = seccomp_rule_add_array(ctx, c->error ? SCMP_ACT_ERRNO((uint32_t)c->error) : SCMP_ACT_ALLOW, c->number, n,
                                     args);
    return err == -EEXIST ? 0 : err;
}

/* In a build for tests, what is allowed there is not answered with an error here. */
static bool is_overruled(const struct call *c)
{
    for (size_t i = 0; c->error && i < sizeof instrumented / sizeof *instrumented; i++)
        if (instrumented[i].number == c->number)
            return SANDBOX_INSTRUMENTED;
    return false;
}

static int add_all(scmp_filter_ctx ctx, const struct call *table, size_t n, enum sandbox_role role)
{
    int err = 0;

    for (size_t i = 0; i < n && !err; i++)
        if (table[i].roles & 1u << role && !is_overruled(&table[i]))
            err = add(ctx, &table[i]);
    return err;
}

/* Reads the program out of libseccomp, by way of a file as its version 2.5 wants it. */
static int export_filter(scmp_filter_ctx ctx, struct sock_fprog *filter)
{
    int fd = memfd_create("guise-filter", MFD_CLOEXEC), err;

    if (fd < 0)
        return -errno;
    err = seccomp_export_bpf(ctx, fd);
    off_t size = err ? 0 : lseek(fd, 0, SEEK_END);
    filter->filter = err ? NULL : malloc((size_t)size);
    if (!err && (!filter->filter || pread(fd, filter->filter, (size_t)size, 0) != size))
        err = -ENOMEM;
    filter->len = (unsigned short)((size_t)size / sizeof *filter->filter);
    close(fd);
    return err;
}

int sandbox_compile(enum sandbox_role role, struct sock_fprog *filter)
{
    scmp_filter_ctx ctx = seccomp_init(SCMP_ACT_TRAP);
    int err = ctx ? 0 : -ENOMEM;

    if (!err)
        err = seccomp_attr_set(ctx, SCMP_FLTATR_ACT_BADARCH,
                               role == SANDBOX_DIRECT ? SCMP_ACT_TRAP /* int 0x80 of a guest's */
                                                      : SCMP_ACT_KILL_PROCESS);
    if (!err)
        err = add_all(ctx, calls, sizeof calls / sizeof *calls, role);
    if (!err && SANDBOX_INSTRUMENTED)
        err = add_all(ctx, instrumented, sizeof instrumented / sizeof *instrumented, role);
    if (!err)
        err = export_filter(ctx, filter);
    seccomp_release(ctx);
    return err;
}
