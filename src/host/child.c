#include "host/child.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/error.h"

#define CHILD_FDS_MAX 16u
#define SELF "/proc/self/exe"

/* Between fork and exec: moves the descriptors to their places by way of high numbers, so that none overwrites
 * another, and marks all others to be closed. */
static int arrange(const int *fds, unsigned n_fds)
{
    int high[CHILD_FDS_MAX];

    for (unsigned i = 0; i < n_fds; i++)
        if ((high[i] = fcntl(fds[i], F_DUPFD_CLOEXEC, 64)) < 0)
            return -errno;
    int null = open("/dev/null", O_RDWR | O_CLOEXEC);
    if (null < 0 || dup2(null, 0) < 0 || dup2(2, 1) < 0)
        return -errno;
    for (unsigned i = 0; i < n_fds; i++)
        if (dup2(high[i], 3 + (int)i) < 0)
            return -errno;
    return syscall(SYS_close_range, 3 + n_fds, ~0u, 4 /* CLOSE_RANGE_CLOEXEC */) ? -errno : 0;
}

static void become(const char *argv[], const int *fds, unsigned n_fds, pid_t parent, int report)
{
    sigset_t none;
    int keep[CHILD_FDS_MAX + 1], err;

    memcpy(keep, fds, n_fds * sizeof *fds);
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    signal(SIGPIPE, SIG_DFL);
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent) /* it died before we asked */
        _exit(127);
    report = fcntl(report, F_DUPFD_CLOEXEC, 128);
    err = report < 0 ? -errno : arrange(keep, n_fds);
    if (!err) {
        const char *program = argv[0] ? argv[0] : SELF;
        if (!argv[0])
            argv[0] = "guise";
        execvp(program, (char *const *)argv);
        err = -errno;
    }
    if (write(report, &err, sizeof err) != sizeof err)
        _exit(126);
    _exit(127);
}

/* What went wrong between fork and exec, or 0: the pipe's end closes when exec succeeds. */
static int outcome(int report)
{
    int err = 0;
    ssize_t got;

    do
        got = read(report, &err, sizeof err);
    while (got < 0 && errno == EINTR);
    return got == sizeof err ? err : 0;
}

int child_start(struct child *c, const char *const argv[], const int *fds, unsigned n_fds, char *err, size_t n)
{
    const char *words[64];
    int report[2], failed;
    unsigned count = 0;

    *c = (struct child){.pidfd = -1};
    if (n_fds > CHILD_FDS_MAX)
        return error_set(err, n, -E2BIG, "a helper takes at most %u descriptors", CHILD_FDS_MAX);
    do
        words[count] = argv[count];
    while ((count == 0 || argv[count]) && ++count < 63);
    words[count] = NULL;
    if (pipe2(report, O_CLOEXEC))
        return error_sys(err, n, -errno, "cannot start a helper process");
    pid_t parent = getpid(), pid = fork();
    if (pid == 0)
        become(words, fds, n_fds, parent, report[1]);
    failed = pid < 0 ? -errno : 0;
    close(report[1]);
    if (!failed)
        failed = outcome(report[0]);
    close(report[0]);
    if (failed) {
        if (pid > 0)
            waitpid(pid, NULL, 0);
        return error_sys(err, n, failed, "cannot start %s", argv[0] ? argv[0] : "a helper process of guise");
    }
    c->pid = pid;
    c->pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
    return 0;
}

bool child_ended(struct child *c, int *status)
{
    if (c->pid <= 0 || waitpid(c->pid, status, WNOHANG) != c->pid)
        return false;
    if (c->pidfd >= 0)
        close(c->pidfd);
    *c = (struct child){.pidfd = -1};
    return true;
}

void child_stop(struct child *c, int grace_ms)
{
    int status;

    if (c->pid <= 0 || child_ended(c, &status))
        return;
    kill(c->pid, SIGTERM);
    struct pollfd ended = {.fd = c->pidfd, .events = POLLIN};
    if (c->pidfd < 0 || poll(&ended, 1, grace_ms) != 1)
        kill(c->pid, SIGKILL);
    waitpid(c->pid, &status, 0);
    if (c->pidfd >= 0)
        close(c->pidfd);
    *c = (struct child){.pidfd = -1};
}
