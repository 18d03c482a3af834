/* Entering the sandbox: the steps in their order.  What each of them is good for is in sandbox.h and docs/THREATS.md.
 */
#include "host/sandbox_int.h"

#include <errno.h>
#include <execinfo.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/capability.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "base/error.h"

#define NOBODY 65534u
/* A user for each process, so that two VMs of root cannot touch each other: far beyond what systems hand out. */
#define USER_BASE 0x70000000u

extern char **environ;

#ifdef __SANITIZE_ADDRESS__
/* Asked at the end: the search for leaks stops all threads as a debugger does, which is not possible in here.  A
 * process that has not entered a sandbox is searched; for one that would, --sandbox off. */
int __lsan_is_turned_off(void);
int __lsan_is_turned_off(void)
{
    return prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) == 1;
}
#endif

/* --- preparation: what will not work any more later ---------------------------------------------------------- */

/* Libraries load something at their first use: time zones, the unwinder that ends a cancelled thread. */
static void warm_up(void)
{
    void *frame[1];

    tzset();
    (void)!backtrace(frame, 1);
}

/* Which lists are needed beside the role's own. */
static unsigned roles_with(enum sandbox_role role)
{
    const unsigned threads = 1u << SANDBOX_WORKER | 1u << SANDBOX_WRITER;

    switch (role) {
    case SANDBOX_VM_SOFT:
        return 1u << role | threads | 1u << SANDBOX_VCPU_SOFT;
    case SANDBOX_VM_KVM:
        return 1u << role | threads | 1u << SANDBOX_VCPU_KVM;
    default:
        return 1u << role;
    }
}

static int compile(struct sandbox *s, enum sandbox_role role)
{
    int err = 0;

    for (unsigned r = 0; r < SANDBOX_ROLES && !err; r++)
        if (roles_with(role) & 1u << r)
            err = sandbox_compile(r, &s->filters[r]);
    return err;
}

static void limit(int what, rlim_t value)
{
    const struct rlimit l = {value, value};
    setrlimit(what, &l);
}

/* Lowering a limit cannot fail.  Not limited: RLIMIT_NPROC counts a user's other processes, too, and threads with them;
 * RLIMIT_FSIZE would have to know all disks. */
static void limit_all(void)
{
    limit(RLIMIT_CORE, 0); /* the guest's memory is in it */
    limit(RLIMIT_MSGQUEUE, 0);
    limit(RLIMIT_RTPRIO, 0);
    limit(RLIMIT_NICE, 0);
    if (!SANDBOX_INSTRUMENTED)
        prctl(PR_SET_DUMPABLE, 0); /* nor may a debugger of the same user look into it */
}

static void erase_environment(void)
{
    for (char **e = environ; e && *e; e++)
        explicit_bzero(*e, strlen(*e));
    if (environ)
        environ[0] = NULL;
}

/* --- names ------------------------------------------------------------------------------------------------------- */

/* For root: an empty directory that nobody can put anything into, because it is deleted. */
static bool leave_root_directory(void)
{
    char path[] = "/tmp/guise-empty.XXXXXX";

    if (geteuid() != 0 || SANDBOX_INSTRUMENTED || !mkdtemp(path))
        return false;
    int fd = open(path, O_PATH | O_DIRECTORY | O_CLOEXEC);
    rmdir(path);
    bool left = fd >= 0 && fchdir(fd) == 0 && chroot(".") == 0;
    if (fd >= 0)
        close(fd);
    return left;
}

static int restrict_names(struct sandbox *s, const struct sandbox_spec *spec)
{
    int err = SANDBOX_INSTRUMENTED ? -ENOSYS : sandbox_landlock(spec->paths, spec->n_paths, spec->network);

    if (!err)
        s->done |= 1u << SANDBOX_LANDLOCK;
    return err == -ENOSYS ? 0 : err;
}

/* --- who we are -------------------------------------------------------------------------------------------------- */

static bool become(uid_t user)
{
    return setgroups(0, NULL) == 0 && setresgid(user, user, user) == 0 && setresuid(user, user, user) == 0;
}

/* A change of the user takes back the wish to die with the parent. */
static int drop_user(struct sandbox *s, bool keep, uint64_t capabilities)
{
    int death = 0;

    prctl(PR_GET_PDEATHSIG, &death);
    if (capabilities)
        prctl(PR_SET_KEEPCAPS, 1);
    if (geteuid() == 0 && !keep && !SANDBOX_INSTRUMENTED && !become(USER_BASE + (uid_t)getpid()))
        become(NOBODY); /* a container may know these only */
    if (death)
        prctl(PR_SET_PDEATHSIG, death);
    s->user = geteuid();
    if (s->user == 0)
        return 0;
    s->done |= 1u << SANDBOX_USER;
    if (setresuid((uid_t)-1, 0, (uid_t)-1) == 0) /* belt and braces */
        return -EPERM;
    return 0;
}

/* Of this thread and of those that it will start; other threads have the system-call list. */
static int drop_capabilities(struct sandbox *s, uint64_t keep)
{
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct data[2];

    if (syscall(SYS_capget, &header, data))
        return -errno;
    prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0);
    for (int cap = 0; prctl(PR_CAPBSET_READ, cap) >= 0; cap++)
        if (!(keep >> cap & 1))
            prctl(PR_CAPBSET_DROP, cap);
    for (unsigned i = 0; i < 2; i++) {
        uint32_t left = data[i].permitted & (uint32_t)(keep >> 32 * i);
        data[i].permitted = data[i].effective = left;
        data[i].inheritable = 0;
    }
    if (syscall(SYS_capset, &header, data))
        return -errno;
    s->done |= 1u << SANDBOX_CAPABILITIES;
    return 0;
}

/* --- system calls ------------------------------------------------------------------------------------------------ */

/* SPEC_ALLOW: what a guest may learn by speculation it can learn without a filter, too (docs/THREATS.md); older kernels
 * would slow translated code down by a third. */
static int install(const struct sock_fprog *filter, unsigned flags)
{
    long r = syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, flags | SECCOMP_FILTER_FLAG_SPEC_ALLOW, filter);

    if (r < 0 && errno == EINVAL) /* before 4.17 */
        r = syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, flags, filter);
    return r < 0 ? -errno : r > 0 ? -EBUSY : 0; /* > 0: a thread that has another filter already */
}

static bool has_filters(void)
{
    uint32_t action = SECCOMP_RET_TRAP;

    return syscall(SYS_seccomp, SECCOMP_GET_ACTION_AVAIL, 0, &action) == 0;
}

static int filter_calls(struct sandbox *s, enum sandbox_role role)
{
    if (!has_filters())
        return 0;
    int err = sandbox_watch();
    if (!err)
        err = install(&s->filters[role], SECCOMP_FILTER_FLAG_TSYNC);
    if (!err)
        s->done |= 1u << SANDBOX_SECCOMP;
    return err;
}

int sandbox_calls(enum sandbox_role role, char *err, size_t n)
{
    struct sandbox s = {0};
    int failed = sandbox_compile(role, &s.filters[role]);

    warm_up();
    limit_all();
    if (!failed)
        failed = filter_calls(&s, role);
    free(s.filters[role].filter);
    return failed ? error_sys(err, n, failed, "cannot give up system calls") : 0;
}

int sandbox_thread(const struct sandbox *s, enum sandbox_role role)
{
    sigset_t set;

    if (!s || !s->filters[role].len || !(s->done & 1u << SANDBOX_SECCOMP))
        return 0;
    sigemptyset(&set);
    sigaddset(&set, SIGSYS);
    pthread_sigmask(SIG_UNBLOCK, &set, NULL);
    return install(&s->filters[role], 0);
}

/* --- all of it --------------------------------------------------------------------------------------------------- */

static int enter(struct sandbox *s, const struct sandbox_spec *spec)
{
    int err = compile(s, spec->role);

    if (err)
        return err;
    warm_up();
    limit_all();
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
        return -errno;
    s->done |= 1u << SANDBOX_NO_NEW_PRIVS;
    if (!spec->n_paths && leave_root_directory())
        s->done |= 1u << SANDBOX_ROOT_DIRECTORY;
    err = restrict_names(s, spec);
    if (!err)
        err = drop_user(s, spec->keep_user, spec->capabilities);
    if (!err)
        err = drop_capabilities(s, spec->capabilities);
    erase_environment();
    return err ? err : filter_calls(s, spec->role);
}

static void say_missing(struct sandbox *s)
{
    bool names = s->done & (1u << SANDBOX_LANDLOCK | 1u << SANDBOX_ROOT_DIRECTORY);

    if (!(s->done & 1u << SANDBOX_SECCOMP))
        snprintf(
            s->missing, sizeof s->missing,
            "the host's kernel or container has no system-call filters (seccomp): a guest that gets out of guise has "
            "the rights of its process");
    else if (!names && !SANDBOX_INSTRUMENTED)
        snprintf(s->missing, sizeof s->missing,
                 "the host's kernel has no landlock: system-call filters alone keep a guest from files");
}

int sandbox_enter(const struct sandbox_spec *spec, struct sandbox **out, char *err, size_t n)
{
    struct sandbox *s = calloc(1, sizeof *s);
    int failed = s ? enter(s, spec) : -ENOMEM;

    if (failed) {
        sandbox_free(s);
        return error_sys(err, n, failed, "cannot enter the sandbox");
    }
    say_missing(s);
    if (out)
        *out = s;
    else
        sandbox_free(s);
    return 0;
}

bool sandbox_did(const struct sandbox *s, enum sandbox_step step)
{
    return s->done & 1u << step;
}

const char *sandbox_step_name(enum sandbox_step step)
{
    static const char *const names[] = {
        [SANDBOX_NO_NEW_PRIVS] = "no-new-privileges", [SANDBOX_LANDLOCK] = "landlock",
        [SANDBOX_ROOT_DIRECTORY] = "root-directory",  [SANDBOX_USER] = "user",
        [SANDBOX_CAPABILITIES] = "capabilities",      [SANDBOX_SECCOMP] = "seccomp",
    };
    return names[step];
}

uid_t sandbox_user(const struct sandbox *s)
{
    return s->user;
}

const char *sandbox_missing(const struct sandbox *s)
{
    return s->missing;
}

void sandbox_free(struct sandbox *s)
{
    for (unsigned i = 0; s && i < SANDBOX_ROLES; i++)
        free(s->filters[i].filter);
    free(s);
}
