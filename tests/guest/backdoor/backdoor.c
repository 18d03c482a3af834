/*
 * guise with a back door, for tests/guest/sandbox.sh and nothing else: the guest asks the process of its VM to try what
 * it must not be able to do, as a guest would that has found a hole.
 *
 *      port 0x5e0, 32 bits     write: try it on the vCPU's thread        read: the result
 *      port 0x5e4              on the event loop's thread
 *
 * What is tried is the first word of --append; further words are its arguments.  Result: 0 it worked, 0xffffffff not
 * yet, else an errno.  An attempt that the sandbox answers with death has no result.
 *
 * It is linked in by --wrap, so that nothing of it is in guise itself.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/io_uring.h>
#include <netinet/in.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <unistd.h>

#include "vm/attach.h"

#define PORT 0x5e0

int __real_vm_attach_devices(struct vm *vm, char *error, size_t n);
int __wrap_vm_attach_devices(struct vm *vm, char *error, size_t n);

static char words[4][256]; /* of --append */
static uint32_t result = UINT32_MAX;
static struct bus_range range;
static struct loop_timer timer;
static struct vm *machine_of;

/* --- what is tried: 0 it worked, else -1 and errno ------------------------------------------------------------- */

static int number(void)
{
    return atoi(words[1]);
}

static int try_open(void)
{
    return open(words[1], O_RDONLY) < 0 ? -1 : 0;
}
static int try_openat2(void)
{
    const uint64_t how[3] = {O_RDONLY, 0, 0};
    return syscall(SYS_openat2, AT_FDCWD, words[1], how, sizeof how) < 0 ? -1 : 0;
}
static int try_create(void)
{
    return open(words[1], O_WRONLY | O_CREAT, 0666) < 0 ? -1 : 0;
}
static int try_unlink(void)
{
    return unlink(words[1]);
}
static int try_rename(void)
{
    return rename(words[1], "/tmp/guise-backdoor");
}
static int try_stat(void)
{
    struct stat st;
    return stat(words[1], &st);
}
static int try_descriptors(void) /* is one of them a directory, or something that was not ours? */
{
    struct stat st;
    for (int fd = 0; fd < 4096; fd++)
        if (fstat(fd, &st) == 0 && (S_ISDIR(st.st_mode) || (fd > 2 && st.st_ino == (ino_t)strtoul(words[1], NULL, 10))))
            return 0;
    errno = EBADF;
    return -1;
}
static int try_execve(void)
{
    return execl("/bin/sh", "sh", "-c", "echo executed", NULL);
}
static int try_fork(void)
{
    return fork() < 0 ? -1 : 0;
}
static int try_thread_in_namespace(void)
{
    return unshare(CLONE_NEWUSER | CLONE_NEWNS);
}
static int try_ptrace(void)
{
    return (int)ptrace(PTRACE_ATTACH, number(), NULL, NULL);
}
static int try_kill(void)
{
    return kill(number(), SIGKILL);
}
static int try_kill_group(void)
{
    return kill(0, SIGTERM);
}
static int try_other_memory(void)
{
    char byte;
    struct iovec piece = {&byte, 1};
    return process_vm_readv(number(), &piece, 1, &piece, 1, 0) < 0 && errno != EFAULT ? -1 : 0;
}
static int try_connect_unix(void)
{
    struct sockaddr_un a = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    snprintf(a.sun_path, sizeof a.sun_path, "%.100s", words[1]);
    return fd < 0 ? -1 : connect(fd, (struct sockaddr *)&a, sizeof a);
}
static int try_connect_tcp(void)
{
    struct sockaddr_in a = {
        .sin_family = AF_INET, .sin_port = htons((uint16_t)number()), .sin_addr = {htonl(0x7f000001)}};
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    return fd < 0 ? -1 : connect(fd, (struct sockaddr *)&a, sizeof a);
}
static int try_exec_memory(void)
{
    return mmap(NULL, 4096, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) == MAP_FAILED ? -1
                                                                                                                  : 0;
}
static int try_exec_protect(void)
{
    void *p = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return mprotect(p, 4096, PROT_READ | PROT_EXEC);
}
static int try_setuid(void)
{
    return (int)syscall(SYS_setuid, 0);
}
static int try_mount(void)
{
    return mount("none", "/tmp", "tmpfs", 0, NULL);
}
static int try_chroot(void)
{
    return chroot("/proc/1/root");
}
static int try_module(void)
{
    return (int)syscall(SYS_init_module, NULL, 0, "");
}
static int try_new_uring(void)
{
    struct io_uring_params p = {0};
    return syscall(SYS_io_uring_setup, 8, &p) < 0 ? -1 : 0;
}
static int try_type(void) /* into the user's terminal */
{
    return ioctl(0, TIOCSTI, "x");
}
static int try_debuggable(void)
{
    return (int)syscall(SYS_prctl, 4 /* PR_SET_DUMPABLE */, 1, 0, 0, 0);
}

/* An operation on the disk's own ring, which no system-call filter sees: one ring is mapped once more, by hand. */
static int ring_descriptor(void)
{
    for (int fd = 3; fd < 256; fd++)
        if (syscall(SYS_io_uring_enter, fd, 0, 0, 0, NULL, 0) == 0)
            return fd;
    errno = ENOTTY;
    return -1;
}

/* An area of the ring; the kernel wants its whole size. */
static void *map_ring(int fd, off_t area)
{
    void *p = MAP_FAILED;
    for (size_t size = 8192; size <= 65536 && p == MAP_FAILED; size *= 2)
        p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, area);
    return p;
}

static int try_ring(void)
{
    int fd = ring_descriptor();
    if (fd < 0)
        return -1;
    uint8_t *ring = map_ring(fd, IORING_OFF_SQ_RING);
    struct io_uring_sqe *sqes = map_ring(fd, IORING_OFF_SQES);
    /* Offsets as every kernel lays a ring out: heads and tails of both queues, a cache line apart each. */
    uint32_t *sq_tail = (uint32_t *)(ring + 4), *mask = (uint32_t *)(ring + 16), *cq_tail = (uint32_t *)(ring + 12);
    if (ring == MAP_FAILED || sqes == MAP_FAILED)
        return -1;
    uint32_t entries = *mask + 1, before = *cq_tail, *array = NULL;
    /* The index array lies behind the completions, which are twice as many, of 16 bytes, at 64. */
    array = (uint32_t *)(ring + ((64 + 2 * entries * 16 + 63) & ~63u));
    struct io_uring_sqe *sqe = &sqes[*sq_tail & *mask];
    *sqe = (struct io_uring_sqe){.opcode = IORING_OP_OPENAT, .fd = AT_FDCWD, .addr = (uint64_t)(uintptr_t)words[1]};
    array[*sq_tail & *mask] = *sq_tail & *mask;
    __atomic_store_n(sq_tail, *sq_tail + 1, __ATOMIC_RELEASE);
    if (syscall(SYS_io_uring_enter, fd, 1, 1, IORING_ENTER_GETEVENTS, NULL, 0) < 0)
        return -1;
    const struct io_uring_cqe *cqe = (const struct io_uring_cqe *)(ring + 64) + (before & (2 * entries - 1));
    int res = cqe->res;
    __atomic_store_n((uint32_t *)(ring + 8), before + 1, __ATOMIC_RELEASE); /* the disk is not to see it */
    errno = res < 0 ? -res : 0;
    return res < 0 ? -1 : 0;
}

/* Strings of the environment lie behind the arguments' on the first thread's stack. */
static int try_environment(void)
{
    const char *at = program_invocation_name, *end = (const char *)getauxval(AT_EXECFN);
    for (; at < end; at++)
        if (strncmp(at, "GUISE_TEST_", 11) == 0 && strncmp(at + 11, "SECRET=", 7) == 0)
            return 0;
    errno = ENOENT;
    return -1;
}

static const struct {
    const char *name;
    int (*fn)(void);
} attempts[] = {
    {"open", try_open},
    {"openat2", try_openat2},
    {"create", try_create},
    {"unlink", try_unlink},
    {"rename", try_rename},
    {"stat", try_stat},
    {"descriptors", try_descriptors},
    {"execve", try_execve},
    {"fork", try_fork},
    {"namespace", try_thread_in_namespace},
    {"ptrace", try_ptrace},
    {"kill", try_kill},
    {"kill-group", try_kill_group},
    {"other-memory", try_other_memory},
    {"connect-unix", try_connect_unix},
    {"connect-tcp", try_connect_tcp},
    {"exec-memory", try_exec_memory},
    {"exec-protect", try_exec_protect},
    {"setuid", try_setuid},
    {"mount", try_mount},
    {"chroot", try_chroot},
    {"module", try_module},
    {"new-uring", try_new_uring},
    {"ring", try_ring},
    {"type", try_type},
    {"debuggable", try_debuggable},
    {"environment", try_environment},
};

static void attempt(void *opaque)
{
    result = ENOSYS; /* no such attempt */
    for (size_t i = 0; i < sizeof attempts / sizeof *attempts; i++)
        if (strcmp(attempts[i].name, words[0]) == 0)
            result = attempts[i].fn() == 0 ? 0 : (uint32_t)errno;
}

/* --- the port ---------------------------------------------------------------------------------------------------- */

static uint64_t port_read(void *opaque, uint64_t offset, unsigned size)
{
    return result;
}

static void port_write(void *opaque, uint64_t offset, uint64_t value, unsigned size)
{
    if (offset < 4)
        attempt(NULL);
    else
        loop_timer_set(machine_of->loop, &timer, 0);
}

static const struct bus_ops ops = {port_read, port_write};

int __wrap_vm_attach_devices(struct vm *vm, char *error, size_t n)
{
    int err = __real_vm_attach_devices(vm, error, n);

    if (err)
        return err;
    machine_of = vm;
    loop_timer_init(&timer, attempt, NULL);
    range = (struct bus_range){.base = PORT, .size = 8, .ops = &ops, .name = "backdoor"};
    sscanf(vm->config->append ? vm->config->append : "", "%255s %255s %255s", words[0], words[1], words[2]);
    return bus_map(vm->bus, BUS_PORT, &range);
}
