/*
 * The sandbox, from inside: each attempt is a process of its own that enters it and tries.  What is forbidden ends by
 * SIGSYS with a line that names the call; what a role needs works.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/bpf.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/error.h"
#include "host/keeper.h"
#include "host/sandbox.h"

#if defined(__SANITIZE_ADDRESS__) || defined(GUISE_COVERAGE)
#define INSTRUMENTED 1 /* such builds are allowed more; see sandbox_calls.c */
#else
#define INSTRUMENTED 0
#endif

static char last_words[512]; /* of the last process that tried */

/* Runs `try` in a process that has entered the sandbox; returns its wait status. */
static int status_of(const struct sandbox_spec *spec, int (*try)(void))
{
    int out[2], status;
    size_t len = 0;
    ssize_t n;

    assert_int_equal(pipe(out), 0);
    pid_t pid = fork();
    if (pid == 0) {
        char err[ERROR_SIZE];
        dup2(out[1], 2);
        close(out[0]);
        if (sandbox_enter(spec, NULL, err, sizeof err))
            _exit(100);
        _exit(try());
    }
    close(out[1]);
    while (len < sizeof last_words - 1 && (n = read(out[0], last_words + len, sizeof last_words - 1 - len)) > 0)
        len += (size_t)n;
    last_words[len] = 0;
    close(out[0]);
    waitpid(pid, &status, 0);
    return status;
}

static const struct sandbox_spec soft = {.role = SANDBOX_VM_SOFT}, kvm = {.role = SANDBOX_VM_KVM},
                                 keeper = {.role = SANDBOX_KEEPER};

static void assert_forbidden(const struct sandbox_spec *spec, int (*try)(void), const char *name)
{
    int status = status_of(spec, try);

    if (!WIFSIGNALED(status) || WTERMSIG(status) != SIGSYS || !strstr(last_words, name))
        fail_msg("%s was not stopped: status %#x, %s", name, (unsigned)status, last_words);
}

/* --- what must not be -------------------------------------------------------------------------------------------- */

static int try_execve(void)
{
    char *const argv[] = {"/bin/true", NULL};
    return execve(argv[0], argv, NULL);
}
static int try_execveat(void)
{
    char *const argv[] = {"true", NULL};
    return (int)syscall(SYS_execveat, 0, "", argv, NULL, AT_EMPTY_PATH);
}
static int try_fork(void)
{
    return (int)syscall(SYS_fork);
}
static int try_vfork_by_clone(void)
{
    return (int)syscall(SYS_clone, CLONE_VM | CLONE_VFORK | SIGCHLD, 0, 0, 0, 0);
}
static int try_namespace(void)
{
    return unshare(CLONE_NEWUSER);
}
static int try_ptrace(void)
{
    return (int)syscall(SYS_ptrace, 16 /* attach */, 1, 0, 0);
}
static int try_other_memory(void)
{
    char byte;
    struct iovec piece = {&byte, 1};
    return (int)process_vm_readv(1, &piece, 1, &piece, 1, 0);
}
static int try_kill(void)
{
    return kill((pid_t)1, 0);
}
static int try_kill_all(void)
{
    return kill(-1, 0);
}
static int try_tgkill(void)
{
    return (int)syscall(SYS_tgkill, 1, 1, 0);
}
static int try_sigqueue(void)
{
    return (int)syscall(SYS_rt_sigqueueinfo, 1, SIGUSR1, NULL);
}
static int try_pidfd(void)
{
    return (int)syscall(SYS_pidfd_open, 1, 0);
}
static int try_socket(void)
{
    return socket(AF_INET, SOCK_STREAM, 0);
}
static int try_unix_socket(void)
{
    return socket(AF_UNIX, SOCK_STREAM, 0);
}
static int try_netlink(void)
{
    return socket(AF_NETLINK, SOCK_RAW, 0);
}
static int try_connect(void)
{
    struct sockaddr_un a = {.sun_family = AF_UNIX, .sun_path = "/run/docker.sock"};
    return connect(0, (struct sockaddr *)&a, sizeof a);
}
static int try_bind(void)
{
    struct sockaddr_un a = {.sun_family = AF_UNIX, .sun_path = "/tmp/x"};
    return bind(0, (struct sockaddr *)&a, sizeof a);
}
static int try_inet_pair(void)
{
    int pair[2];
    return socketpair(AF_INET, SOCK_STREAM, 0, pair);
}
static int try_executable_memory(void)
{
    return mmap(NULL, 4096, PROT_READ | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) != MAP_FAILED;
}
static int try_make_executable(void)
{
    void *p = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return mprotect(p, 4096, PROT_READ | PROT_EXEC);
}
static int try_make_executable_by_key(void)
{
    return (int)syscall(SYS_pkey_mprotect, 0, 4096, PROT_EXEC, -1);
}
static int try_read_implies_exec(void)
{
    return (int)syscall(SYS_personality, 0x0400000);
}
static int try_setuid(void)
{
    return (int)syscall(SYS_setuid, 0);
}
static int try_setresuid(void)
{
    return (int)syscall(SYS_setresuid, 0, 0, 0);
}
static int try_capset(void)
{
    return (int)syscall(SYS_capset, NULL, NULL);
}
static int try_mount(void)
{
    return (int)syscall(SYS_mount, "none", "/tmp", "tmpfs", 0, NULL);
}
static int try_chroot(void)
{
    return (int)syscall(SYS_chroot, "/");
}
static int try_chdir(void)
{
    return (int)syscall(SYS_chdir, "/");
}
static int try_openat2(void)
{
    return (int)syscall(SYS_openat2, AT_FDCWD, "/etc/passwd", NULL, 0);
}
static int try_handle(void)
{
    return (int)syscall(SYS_open_by_handle_at, 0, NULL, 0);
}
static int try_stat(void)
{
    struct stat st;
    return fstatat(AT_FDCWD, "/etc/passwd", &st, 0);
}
static int try_rename(void)
{
    return (int)syscall(SYS_renameat2, AT_FDCWD, "a", AT_FDCWD, "b", 0);
}
static int try_uring(void)
{
    return (int)syscall(SYS_io_uring_setup, 1, NULL);
}
static int try_bpf(void)
{
    return (int)syscall(SYS_bpf, BPF_MAP_CREATE, NULL, 0);
}
static int try_perf(void)
{
    return (int)syscall(SYS_perf_event_open, NULL, 0, -1, -1, 0);
}
static int try_userfaultfd(void)
{
    return (int)syscall(SYS_userfaultfd, 0);
}
static int try_keys(void)
{
    return (int)syscall(SYS_keyctl, 0, 0, 0, 0, 0);
}
static int try_module(void)
{
    return (int)syscall(SYS_init_module, NULL, 0, "");
}
static int try_memfd(void)
{
    return memfd_create("x", 0);
}
static int try_terminal_input(void)
{
    return (int)syscall(SYS_ioctl, 0, 0x5412 /* TIOCSTI: types for the user */, "x");
}
static int try_kvm(void)
{
    return (int)syscall(SYS_ioctl, 0, 0xae01, 0);
}
static int try_owner(void)
{
    return fcntl(0, F_SETOWN, 1);
}
static int try_debuggable(void)
{
    return prctl(PR_SET_DUMPABLE, 1);
}
static int try_handler(void)
{
    return signal(SIGSYS, SIG_IGN) == SIG_ERR;
}
static int try_listener(void)
{
    return (int)syscall(SYS_seccomp, 3 /* SECCOMP_GET_NOTIF_SIZES */, 0, NULL);
}
static int try_limits(void)
{
    struct rlimit l = {0, 0};
    return (int)syscall(SYS_setrlimit, RLIMIT_NOFILE, &l);
}

static const struct attempt {
    int (*try)(void);
    const char *name;
    bool also_instrumented;
} forbidden[] = {
    {try_execve, "execve", true},
    {try_execveat, "execveat", true},
    {try_fork, "fork", true},
    {try_vfork_by_clone, "clone"},
    {try_namespace, "unshare", true},
    {try_ptrace, "ptrace"},
    {try_other_memory, "process_vm_readv"},
    {try_kill, "kill"},
    {try_kill_all, "kill"},
    {try_tgkill, "tgkill", true},
    {try_sigqueue, "rt_sigqueueinfo", true},
    {try_pidfd, "pidfd_open", true},
    {try_socket, "socket", true},
    {try_unix_socket, "socket", true},
    {try_netlink, "socket", true},
    {try_connect, "connect", true},
    {try_bind, "bind", true},
    {try_inet_pair, "socketpair", true},
    {try_executable_memory, "mmap", true},
    {try_make_executable, "mprotect", true},
    {try_make_executable_by_key, "pkey_mprotect", true},
    {try_read_implies_exec, "personality"},
    {try_setuid, "setuid", true},
    {try_setresuid, "setresuid", true},
    {try_capset, "capset", true},
    {try_mount, "mount", true},
    {try_chroot, "chroot", true},
    {try_chdir, "chdir", true},
    {try_openat2, "openat2", true},
    {try_handle, "open_by_handle_at", true},
    {try_stat, "newfstatat"},
    {try_rename, "renameat2", true},
    {try_uring, "io_uring_setup", true},
    {try_bpf, "bpf", true},
    {try_perf, "perf_event_open", true},
    {try_userfaultfd, "userfaultfd", true},
    {try_keys, "keyctl", true},
    {try_module, "init_module", true},
    {try_memfd, "memfd_create", true},
    {try_terminal_input, "ioctl", true},
    {try_kvm, "ioctl", true},
    {try_owner, "fcntl"},
    {try_debuggable, "prctl"},
    {try_handler, "rt_sigaction"},
    {try_listener, "seccomp", true},
    {try_limits, "setrlimit", true},
};

static void calls_that_are_not_in_the_list(void **state)
{
    for (size_t i = 0; i < sizeof forbidden / sizeof *forbidden; i++)
        if (!INSTRUMENTED || forbidden[i].also_instrumented)
            assert_forbidden(&soft, forbidden[i].try, forbidden[i].name);
}

static int try_kvm_request(void)
{
    return syscall(SYS_ioctl, 0, 0xae80, 0) == -1 && errno == ENOTTY ? 42 : 1;
}

static void kvm_requests_only_for_kvm(void **state)
{
    assert_forbidden(&soft, try_kvm_request, "ioctl");
    assert_int_equal(status_of(&kvm, try_kvm_request), 42 << 8);
}

/* Another architecture's calls would have other numbers: int 0x80, and the x32 bit. */
static int try_int80(void)
{
    long r;
    __asm__ volatile("int $0x80" : "=a"(r) : "a"(20) : "memory", "r8", "r9", "r10", "r11");
    return 7;
}
static int try_x32(void)
{
    return (int)syscall(0x40000000 + SYS_getpid);
}

static void other_architectures(void **state)
{
    int status = status_of(&soft, try_int80);
    assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGSYS);
    status = status_of(&soft, try_x32);
    assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGSYS);
}

static int try_open(void)
{
    return open("/etc/passwd", O_RDONLY) == -1 && errno == EACCES ? 42 : 1;
}

static void files_cannot_be_opened(void **state)
{
    if (INSTRUMENTED)
        skip();
    assert_int_equal(status_of(&soft, try_open), 42 << 8);
}

/* --- what must be ------------------------------------------------------------------------------------------------ */

static void *thread_main(void *opaque)
{
    volatile char *p = malloc(1 << 20);
    p[5000] = 1;
    free((void *)p);
    return opaque;
}

static int try_life(void)
{
    pthread_t thread;
    void *result = NULL;
    int pair[2];
    char byte = 'x';

    for (unsigned i = 0; i < 20; i++)
        if (pthread_create(&thread, NULL, thread_main, &byte) || pthread_join(thread, &result) || result != &byte)
            return 1;
    if (socketpair(AF_UNIX, SOCK_STREAM, 0, pair) || send(pair[0], &byte, 1, 0) != 1 || recv(pair[1], &byte, 1, 0) != 1)
        return 2;
    return 42;
}

static void threads_and_memory_work(void **state)
{
    assert_int_equal(status_of(&soft, try_life), 42 << 8);
    assert_string_equal(last_words, "");
}

static void *cancelled(void *opaque)
{
    char byte;
    return (void *)read(*(int *)opaque, &byte, 1);
}

/* pthread_cancel wants the unwinder, which is loaded at its first use: before. */
static int try_cancel(void)
{
    pthread_t thread;
    int pair[2];
    if (socketpair(AF_UNIX, SOCK_STREAM, 0, pair) || pthread_create(&thread, NULL, cancelled, &pair[0]))
        return 1;
    usleep(1000);
    return pthread_cancel(thread) || pthread_join(thread, NULL) ? 2 : 42;
}

static void threads_can_be_cancelled(void **state)
{
    assert_int_equal(status_of(&soft, try_cancel), 42 << 8);
}

static int try_abort(void)
{
    abort();
}

static void an_abort_is_an_abort(void **state)
{
    assert_int_equal(WTERMSIG(status_of(&soft, try_abort)), SIGABRT);
}

/* --- threads ----------------------------------------------------------------------------------------------------- */

static struct sandbox *entered;

static void *as_vcpu(void *opaque)
{
    if (sandbox_thread(entered, SANDBOX_VCPU_SOFT))
        return NULL;
    close(socket(AF_UNIX, SOCK_STREAM, 0)); /* not even the process may */
    return NULL;
}
static void *as_writer(void *opaque)
{
    struct sockaddr_un a;
    socklen_t len = sizeof a;
    if (sandbox_thread(entered, SANDBOX_WRITER))
        return NULL;
    accept4(0, (struct sockaddr *)&a, &len, 0); /* the loop's thread may */
    return opaque;
}

static int with_thread(void *(*fn)(void *))
{
    const struct sandbox_spec spec = {.role = SANDBOX_VM_SOFT};
    int status;
    pid_t pid = fork();
    if (pid == 0) {
        char err[ERROR_SIZE];
        pthread_t thread;
        close(2);
        if (sandbox_enter(&spec, &entered, err, sizeof err))
            _exit(100);
        accept4(0, NULL, NULL, 0);
        pthread_create(&thread, NULL, fn, NULL);
        pthread_join(thread, NULL);
        _exit(0);
    }
    waitpid(pid, &status, 0);
    return status;
}

static void threads_have_shorter_lists(void **state)
{
    assert_int_equal(WTERMSIG(with_thread(as_vcpu)), SIGSYS);
    assert_int_equal(WTERMSIG(with_thread(as_writer)), SIGSYS);
    assert_int_equal(sandbox_thread(NULL, SANDBOX_WRITER), 0); /* without a sandbox there is nothing to do */
}

static int inherited_pipe[2];

static void *there_before(void *opaque)
{
    char byte;
    (void)!read(inherited_pipe[0], &byte, 1); /* until the sandbox is entered */
    socket(AF_UNIX, SOCK_STREAM, 0);
    return NULL;
}

static void threads_that_were_there_are_confined(void **state)
{
    int status;
    pid_t pid = fork();
    if (pid == 0) {
        char err[ERROR_SIZE];
        pthread_t thread;
        close(2);
        if (pipe(inherited_pipe) || pthread_create(&thread, NULL, there_before, NULL) ||
            sandbox_enter(&soft, NULL, err, sizeof err))
            _exit(100);
        (void)!write(inherited_pipe[1], "x", 1);
        pthread_join(thread, NULL);
        _exit(0);
    }
    waitpid(pid, &status, 0);
    assert_int_equal(WTERMSIG(status), SIGSYS);
}

/* --- the other steps --------------------------------------------------------------------------------------------- */

static int look_around(void)
{
    char *leftover = getenv("GUISE_SECRET");
    struct rlimit core;

    if (leftover)
        return 1;
    if (getrlimit(RLIMIT_CORE, &core) == 0 && core.rlim_max)
        return 3;
    if (!INSTRUMENTED && geteuid() == 0)
        return 4;
    return 42;
}

/* Everything but the filter, to look at what it leaves. */
static void root_is_somebody_else(void **state)
{
    setenv("GUISE_SECRET", "x", 1);
    assert_int_equal(status_of(&soft, look_around) == 42 << 8 || INSTRUMENTED, 1);
    unsetenv("GUISE_SECRET");
}

static void it_says_what_was_done(void **state)
{
    int out[2], status;
    char text[256] = "";
    assert_int_equal(pipe(out), 0);
    pid_t pid = fork();
    if (pid == 0) {
        struct sandbox *s;
        char err[ERROR_SIZE];
        if (sandbox_enter(&soft, &s, err, sizeof err))
            _exit(100);
        for (unsigned i = 0; i < SANDBOX_STEPS; i++)
            if (sandbox_did(s, i))
                dprintf(out[1], "%s ", sandbox_step_name(i));
        dprintf(out[1], "%u %s", sandbox_user(s) != 0, sandbox_missing(s));
        sandbox_free(s);
        _exit(0);
    }
    close(out[1]);
    waitpid(pid, &status, 0);
    (void)!read(out[0], text, sizeof text - 1);
    close(out[0]);
    assert_int_equal(status, 0);
    assert_non_null(strstr(text, "no-new-privileges"));
    assert_non_null(strstr(text, "capabilities"));
    assert_non_null(strstr(text, "seccomp"));
}

/* --- the keeper -------------------------------------------------------------------------------------------------- */

static char directory[64], socket_path[96], other_path[96];

static int listen_at(const char *path)
{
    struct sockaddr_un a = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    assert_true(strlen(path) < sizeof a.sun_path);
    strcpy(a.sun_path, path);
    assert_int_equal(bind(fd, (struct sockaddr *)&a, sizeof a), 0);
    assert_int_equal(listen(fd, 4), 0);
    return fd;
}

static int keeper_setup(void **state)
{
    strcpy(directory, "/tmp/guise-keeper.XXXXXX");
    assert_non_null(mkdtemp(directory));
    snprintf(socket_path, sizeof socket_path, "%s/s", directory);
    snprintf(other_path, sizeof other_path, "%s/s_77", directory);
    return 0;
}

static int keeper_teardown(void **state)
{
    unlink(other_path);
    return rmdir(directory);
}

static struct keeper *start_keeper(const char *prefix)
{
    const struct keeper_config config = {.sockets = {socket_path}, .n_sockets = 1, .prefix = prefix};
    struct keeper *k;
    char err[ERROR_SIZE];
    assert_int_equal(keeper_start(&k, &config, err, sizeof err), 0);
    return k;
}

static void the_keeper_removes_and_dials(void **state)
{
    struct keeper *k = start_keeper(socket_path);
    int listener = listen_at(socket_path), other = listen_at(other_path);
    assert_int_equal(keeper_seal(k), 0);
    int fd = keeper_dial(k, 77);
    assert_true(fd >= 0);
    int peer = accept(other, NULL, NULL);
    assert_int_equal(write(fd, "x", 1), 1);
    char byte;
    assert_int_equal(read(peer, &byte, 1), 1);
    assert_int_equal(fcntl(fd, F_GETFL) & O_NONBLOCK, O_NONBLOCK);
    assert_int_equal(fcntl(fd, F_GETFD), FD_CLOEXEC);
    assert_int_equal(keeper_dial(k, 78), -ENOENT);
    assert_int_equal(keeper_seal(k), -EINVAL); /* once */
    keeper_stop(k);
    assert_int_not_equal(access(socket_path, F_OK), 0);
    assert_int_equal(access(other_path, F_OK), 0); /* not its own */
    close(fd);
    close(peer);
    close(listener);
    close(other);
}

static void the_keeper_leaves_a_successors_socket(void **state)
{
    struct keeper *k = start_keeper(NULL);
    int listener = listen_at(socket_path);
    assert_int_equal(keeper_seal(k), 0);
    assert_int_equal(keeper_dial(k, 77), -ECONNREFUSED);
    unlink(socket_path);
    int second = listen_at(socket_path);
    keeper_stop(k);
    assert_int_equal(access(socket_path, F_OK), 0);
    unlink(socket_path);
    close(listener);
    close(second);
}

static void the_keeper_outlives_a_kill(void **state)
{
    int ready[2];
    char byte;
    assert_int_equal(pipe(ready), 0);
    pid_t pid = fork();
    if (pid == 0) {
        struct keeper *k = start_keeper(NULL);
        listen_at(socket_path);
        if (keeper_seal(k) == 0)
            (void)!write(ready[1], "x", 1);
        pause();
    }
    close(ready[1]);
    assert_int_equal(read(ready[0], &byte, 1), 1);
    close(ready[0]);
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
    for (unsigned i = 0; i < 2000 && access(socket_path, F_OK) == 0; i++)
        usleep(1000);
    assert_int_not_equal(access(socket_path, F_OK), 0);
}

static pid_t only_child(void)
{
    char path[64], text[64] = "";

    snprintf(path, sizeof path, "/proc/self/task/%d/children", getpid());
    int fd = open(path, O_RDONLY);
    assert_true(fd >= 0 && read(fd, text, sizeof text - 1) > 0);
    close(fd);
    return atoi(text);
}

static void a_late_answer_is_not_the_next_ones(void **state)
{
    struct keeper *k = start_keeper(socket_path);
    int other = listen_at(other_path);
    pid_t pid = only_child();

    kill(pid, SIGSTOP);
    assert_int_equal(keeper_dial(k, 77), -EPIPE); /* in time there is no answer */
    kill(pid, SIGCONT);
    assert_int_equal(keeper_dial(k, 78), -ENOENT);
    int fd = keeper_dial(k, 77);
    assert_true(fd >= 0);
    close(fd);
    keeper_stop(k);
    close(other);
}

static int try_inet_in_keeper(void)
{
    return socket(AF_INET, SOCK_STREAM, 0);
}

static void the_keeper_has_a_list_of_its_own(void **state)
{
    assert_forbidden(&keeper, try_inet_in_keeper, "socket");
    assert_forbidden(&keeper, try_execve, "execve");
    assert_forbidden(&keeper, try_fork, "fork");
}

#define K(name) cmocka_unit_test_setup_teardown(name, keeper_setup, keeper_teardown)
/* --- programs that are not ours ---------------------------------------------------------------------------------- */

static char room[] = "/tmp/guise-programs.XXXXXX", listed[64], other[64];

/* As a kernel without landlock, or a container's filter, has it. */
static void without_landlock(void)
{
    struct sock_filter filter[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_landlock_create_ruleset, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | ENOSYS),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    const struct sock_fprog program = {sizeof filter / sizeof filter[0], filter};

    prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program))
        _exit(101);
}

static bool can_open(const char *path, int flags)
{
    int fd = open(path, flags | O_CLOEXEC);

    if (fd >= 0)
        close(fd);
    return fd >= 0;
}

static bool runs(const char *program)
{
    int status = 1;
    pid_t pid = fork();

    if (pid == 0) {
        execl(program, program, NULL);
        _exit(1);
    }
    return waitpid(pid, &status, 0) == pid && status == 0;
}

/* A bit for each thing that is not as it should be; 99: this host offers nothing. */
static int attempts(enum sandbox_program program, unsigned access, bool landlock)
{
    const struct sandbox_path path = {listed, access};
    char err[ERROR_SIZE];
    bool names;

    if (!landlock)
        without_landlock();
    if (sandbox_program(program, &path, 1, &names, err, sizeof err))
        return 98;
    if (!names)
        return 99;
    const bool wrong[] = {
        !can_open(listed, O_RDONLY), can_open(listed, O_RDWR) != ((access & SANDBOX_WRITE) != 0),
        can_open(other, O_RDONLY),   can_open("/etc/passwd", O_RDONLY),
        !runs("/bin/true"),          connect(-1, NULL, 0) == 0 || errno != EPERM,
    };
    int bits = 0;
    for (unsigned i = 0; i < sizeof wrong; i++)
        bits |= wrong[i] << i;
    return bits;
}

static void check_program(enum sandbox_program program, unsigned access, bool landlock)
{
    int status;
    pid_t pid = fork();

    if (pid == 0)
        _exit(attempts(program, access, landlock));
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFEXITED(status));
    if (WEXITSTATUS(status) != 99) /* else there is neither landlock nor the right to mount */
        assert_int_equal(WEXITSTATUS(status), 0);
}

static void programs_have_their_files_only(void **state)
{
    if (INSTRUMENTED)
        skip();
    assert_non_null(mkdtemp(room));
    snprintf(listed, sizeof listed, "%s/listed", room);
    snprintf(other, sizeof other, "%s/other", room);
    close(open(listed, O_CREAT | O_WRONLY, 0600));
    close(open(other, O_CREAT | O_WRONLY, 0600));
    for (unsigned landlock = 0; landlock < 2; landlock++) {
        check_program(SANDBOX_DISK_SERVER, SANDBOX_READ | SANDBOX_WRITE, landlock);
        check_program(SANDBOX_DISK_SERVER, SANDBOX_READ, landlock);
        check_program(SANDBOX_IMAGE_MAKER, SANDBOX_READ | SANDBOX_WRITE, landlock);
    }
    unlink(listed);
    unlink(other);
    rmdir(room);
}

int main(int argc, char **argv)
{
    if (argc > 1 && strcmp(argv[1], "helper-dial") == 0) /* as guise itself does: for the keeper */
        return keeper_dial_main(argc - 1, argv + 1);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(programs_have_their_files_only),
        cmocka_unit_test(calls_that_are_not_in_the_list),
        cmocka_unit_test(kvm_requests_only_for_kvm),
        cmocka_unit_test(other_architectures),
        cmocka_unit_test(files_cannot_be_opened),
        cmocka_unit_test(threads_and_memory_work),
        cmocka_unit_test(threads_can_be_cancelled),
        cmocka_unit_test(an_abort_is_an_abort),
        cmocka_unit_test(threads_have_shorter_lists),
        cmocka_unit_test(threads_that_were_there_are_confined),
        cmocka_unit_test(root_is_somebody_else),
        cmocka_unit_test(it_says_what_was_done),
        K(the_keeper_removes_and_dials),
        K(the_keeper_leaves_a_successors_socket),
        K(the_keeper_outlives_a_kill),
        K(a_late_answer_is_not_the_next_ones),
        cmocka_unit_test(the_keeper_has_a_list_of_its_own),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
