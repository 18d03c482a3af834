#include "host/child.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/error.h"
#include "host/waiting.h"

#define CHILD_FDS_MAX 16u
#define ALONE_MS 200 /* to end, for one that cannot be told to */
#define WORDS_MAX 64u
#define SELF "/proc/self/exe"

/* A copy of a descriptor, with a number from `least` on; or -errno. */
static int move_up(int fd, int least)
{
    int moved = fcntl(fd, F_DUPFD_CLOEXEC, least);

    return moved >= 0 ? moved : errno == EINVAL ? -EMFILE /* it may have no such numbers */ : -errno;
}

/* Between fork and exec: moves the descriptors to their places by way of high numbers, so that none overwrites
 * another, and marks all others to be closed. */
static int arrange(const int *fds, unsigned n_fds)
{
    int high[CHILD_FDS_MAX];

    for (unsigned i = 0; i < n_fds; i++)
        if ((high[i] = move_up(fds[i], 64)) < 0)
            return high[i];
    int null = open("/dev/null", O_RDWR | O_CLOEXEC);
    if (null < 0 || dup2(null, 0) < 0 || dup2(2, 1) < 0)
        return -errno;
    for (unsigned i = 0; i < n_fds; i++)
        if (dup2(high[i], 3 + (int)i) < 0)
            return -errno;
    return syscall(SYS_close_range, 3 + n_fds, ~0u, 4 /* CLOSE_RANGE_CLOEXEC */) ? -errno : 0;
}

/* Becomes the program that waits to become this one; returns where the host does not let it. */
static void wait_until_wanted(const char *argv[], unsigned sockets)
{
    const char *words[WORDS_MAX] = {"guise-waiting", (const char[]){(char)('0' + sockets), 0}};
    int program = open(SELF, O_PATH | O_CLOEXEC), waiting = memfd_create("guise-waiting", MFD_CLOEXEC);

    for (unsigned i = 0; i + 3 < WORDS_MAX && argv[i]; i++)
        words[2 + i] = argv[i];
    if (program >= 0 && waiting >= 0 && dup2(program, WAITING_PROGRAM) >= 0 &&
        write(waiting, waiting_program, waiting_program_size) == (ssize_t)waiting_program_size)
        syscall(SYS_execveat, waiting, "", words, environ, AT_EMPTY_PATH);
    close(WAITING_PROGRAM);
}

/* Never returns: becomes the program, or writes to `report` why not.  late: guise itself, when it is wanted by one of
 * so many sockets. */
static void become(const char *argv[], const int *fds, unsigned n_fds, unsigned late, int report)
{
    sigset_t none;
    int keep[CHILD_FDS_MAX], err;

    memcpy(keep, fds, n_fds * sizeof *fds);
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    signal(SIGPIPE, SIG_DFL);
    const int moved = move_up(report, 128);
    report = moved < 0 ? report : moved;
    err = moved < 0 ? moved : arrange(keep, n_fds);
    if (!err) {
        const char *program = argv[0] ? argv[0] : SELF;
        if (!argv[0])
            argv[0] = "guise";
        if (late)
            wait_until_wanted(argv, late);
        execvp(program, (char *const *)argv);
        err = -errno;
    }
    if (write(report, &err, sizeof err) != sizeof err)
        _exit(126);
    _exit(127);
}

/* A child that is not to outlive the thread that starts it. */
static void become_helper(const char *argv[], const int *fds, unsigned n_fds, unsigned late, pid_t parent, int report)
{
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent) /* it died before we asked */
        _exit(127);
    become(argv, fds, n_fds, late, report);
}

/* A session of its own, whose leader goes away at once: so it can never get a controlling terminal, and is a child of
 * whoever adopts orphans. */
static void become_daemon(const char *argv[], const int *fds, unsigned n_fds, int log, int report)
{
    int err = 0;

    setsid();
    pid_t pid = fork();
    if (pid > 0)
        _exit(0);
    if (pid < 0 || dup2(log, 2) < 0)
        err = -errno;
    if (!err)
        become(argv, fds, n_fds, 0, report);
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

/* argv may begin with NULL, for guise itself, and end with another. */
static void copy_words(const char *const argv[], const char *words[WORDS_MAX])
{
    unsigned count = 0;

    do
        words[count] = argv[count];
    while ((count == 0 || argv[count]) && ++count < WORDS_MAX - 1);
    words[count] = NULL;
}

static int failed_start(const char *program, int failed, char *err, size_t n)
{
    return error_sys(err, n, failed, "cannot start %s", program ? program : "a helper process of guise");
}

static int start(struct child *c, const char *const argv[], const int *fds, unsigned n_fds, unsigned late, char *err,
                 size_t n)
{
    const char *words[WORDS_MAX];
    int report[2], failed;

    *c = (struct child){.pidfd = -1};
    if (n_fds > CHILD_FDS_MAX)
        return error_set(err, n, -E2BIG, "a helper takes at most %u descriptors", CHILD_FDS_MAX);
    copy_words(argv, words);
    if (pipe2(report, O_CLOEXEC))
        return error_sys(err, n, -errno, "cannot start a helper process");
    pid_t parent = getpid(), pid = fork();
    if (pid == 0)
        become_helper(words, fds, n_fds, late, parent, report[1]);
    failed = pid < 0 ? -errno : 0;
    close(report[1]);
    if (!failed)
        failed = outcome(report[0]);
    close(report[0]);
    if (failed) {
        if (pid > 0)
            waitpid(pid, NULL, 0);
        return failed_start(argv[0], failed, err, n);
    }
    c->pid = pid;
    c->pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
    return 0;
}

int child_start(struct child *c, const char *const argv[], const int *fds, unsigned n_fds, char *err, size_t n)
{
    return start(c, argv, fds, n_fds, 0, err, n);
}

int child_start_late(struct child *c, const char *const argv[], const int *fds, unsigned n_fds, unsigned sockets,
                     char *err, size_t n)
{
    return start(c, argv, fds, n_fds, sockets, err, n);
}

int child_detach(const char *const argv[], const int *fds, unsigned n_fds, int log, char *err, size_t n)
{
    const char *words[WORDS_MAX];
    int report[2], failed;

    if (n_fds > CHILD_FDS_MAX)
        return error_set(err, n, -E2BIG, "a process takes at most %u descriptors", CHILD_FDS_MAX);
    copy_words(argv, words);
    if (pipe2(report, O_CLOEXEC))
        return failed_start(argv[0], -errno, err, n);
    pid_t pid = fork();
    if (pid == 0)
        become_daemon(words, fds, n_fds, log, report[1]);
    failed = pid < 0 ? -errno : 0;
    close(report[1]);
    if (!failed)
        failed = outcome(report[0]);
    close(report[0]);
    while (pid > 0 && waitpid(pid, NULL, 0) < 0 && errno == EINTR)
        ;
    return failed ? failed_start(argv[0], failed, err, n) : 0;
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

/* By its descriptor where there is one: that is what a sandbox allows (and a number may be somebody else's by now). */
static bool send_signal(const struct child *c, int number)
{
    return (c->pidfd >= 0 ? syscall(SYS_pidfd_send_signal, c->pidfd, number, NULL, 0) : kill(c->pid, number)) == 0;
}

/* A process in its sandbox may not signal a child that has another user: that one has been left alone by its sockets,
 * ends by itself, and at the latest when we do. */
void child_stop(struct child *c, int grace_ms)
{
    int status;

    if (c->pid <= 0 || child_ended(c, &status))
        return;
    bool may = send_signal(c, SIGTERM);
    struct pollfd ended = {.fd = c->pidfd, .events = POLLIN};
    if (!may && grace_ms < ALONE_MS)
        grace_ms = ALONE_MS;
    if (c->pidfd < 0 || poll(&ended, 1, grace_ms) != 1)
        may = send_signal(c, SIGKILL);
    waitpid(c->pid, &status, may ? 0 : WNOHANG);
    if (c->pidfd >= 0)
        close(c->pidfd);
    *c = (struct child){.pidfd = -1};
}
