/*
 * The process that makes an image, and its parent.
 *
 * Over a pipe, one struct message for each thing there is to say; each is smaller than PIPE_BUF and so arrives whole.
 * The child is in a process group of its own: Ctrl-C reaches the parent only, which asks the child to end, so that the
 * child can ask its own tools.  If the parent is killed the child is asked in the same way (PR_SET_PDEATHSIG). Whatever
 * then is left, of its tools, is killed with its process group; of its draft, is swept by the next job.
 */
#include "image/job.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <locale.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/error.h"
#include "base/file.h"
#include "base/path.h"
#include "host/child.h"

#define GRACE_MS 15000 /* for a child that was asked to end */
#define LOG_MAX (4u << 20)
#define REPORT_MS 100

enum message_kind { MESSAGE_STAGE, MESSAGE_DONE, MESSAGE_FAILED };

struct message {
    enum message_kind kind;
    int code;
    uint64_t done, total;
    char text[ERROR_SIZE];
};

static uint64_t now_ms(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
}

void job_now(char out[32])
{
    time_t now = time(NULL);
    struct tm tm;

    strftime(out, 32, "%Y-%m-%dT%H:%M:%SZ", gmtime_r(&now, &tm));
}

void job_path(const struct job *j, const char *name, char *out)
{
    /* The store's directories leave room for the names of files. */
    snprintf(out, IMAGE_PATH_SIZE, "%.960s/%.60s", j->draft, name);
}

/* ---- in the child ---- */

static void tell(const struct job *j, const struct message *m)
{
    /* A parent that is gone takes us with it: nothing to do about a failure. */
    if (j->report >= 0 && write(j->report, m, sizeof *m) < 0)
        return;
}

static void tell_stage(struct job *j, uint64_t done, uint64_t total)
{
    struct message m = {.kind = MESSAGE_STAGE, .done = done, .total = total};

    snprintf(m.text, sizeof m.text, "%s", j->stage);
    tell(j, &m);
}

static bool is_to_end(const struct job *j)
{
    struct signalfd_siginfo taken;

    return j->own && read(j->signals, &taken, sizeof taken) == sizeof taken;
}

static void end_if_asked(struct job *j)
{
    if (!is_to_end(j))
        return;
    store_discard(j->own);
    _exit(1);
}

void job_stage(struct job *j, const char *stage)
{
    end_if_asked(j);
    if (strcmp(j->stage, stage) == 0)
        return;
    snprintf(j->stage, sizeof j->stage, "%s", stage);
    j->reported_ms = now_ms();
    tell_stage(j, 0, 0);
}

void job_progress(struct job *j, uint64_t done, uint64_t total)
{
    uint64_t now = now_ms();

    end_if_asked(j);
    if (now - j->reported_ms < REPORT_MS)
        return;
    j->reported_ms = now;
    tell_stage(j, done, total);
}

bool job_has_program(const char *name)
{
    static const char more[] = ":/usr/sbin:/sbin:/usr/bin:/bin";
    char path[PATH_MAX], all[8192];
    const char *variable = getenv("PATH");

    snprintf(all, sizeof all, "%.8000s%s", variable ? variable : "", more);
    for (char *rest = all, *directory; (directory = strsep(&rest, ":"));) {
        int len = snprintf(path, sizeof path, "%s/%s", directory, name);
        if (len < (int)sizeof path && access(path, X_OK) == 0)
            return true;
    }
    return false;
}

/* As apt and mmdebstrap, and dpkg below them, say what has failed. */
static bool is_error(const char *line)
{
    return strncmp(line, "E: ", 3) == 0 || strncmp(line, "dpkg: error", 11) == 0;
}

/* The last lines of the log that say something, those with an error first of all, as one line. */
static void quote_tail(const char *log, char *out, size_t size)
{
    const char *lines[4], *start = log;
    size_t n = 0, used = 0;
    bool errors = is_error(log) || strstr(log, "\nE: ");

    for (const char *line = start; *line; line += strcspn(line, "\n"), line += *line == '\n') {
        if (*line == '\n' || (errors && !is_error(line)))
            continue;
        if (n == 4)
            memmove(lines, lines + 1, 3 * sizeof *lines);
        lines[n < 4 ? n++ : 3] = line;
    }
    out[0] = 0;
    for (size_t i = 0; i < n && used < size; i++)
        used += (size_t)snprintf(out + used, size - used, "%s%.*s", i ? "; " : "", (int)strcspn(lines[i], "\n"),
                                 lines[i]);
    for (char *c = out; *c; c++)
        if ((unsigned char)*c < 0x20)
            *c = ' ';
}

static int start_tool(struct job *j, const struct job_tool *tool, struct child *c, char *err, size_t n)
{
    const char *words[64] = {"sh", "-c", "exec setsid \"$@\" >&3 2>&1", "sh"};
    char path[IMAGE_PATH_SIZE];
    int fds[8];
    unsigned count = 4;

    for (const char *const *word = tool->argv; *word && count < 62; word++)
        words[count++] = *word;
    job_path(j, "log", path);
    fds[0] = open(path, O_RDWR | O_CREAT | O_TRUNC | O_APPEND | O_CLOEXEC, 0600);
    if (fds[0] < 0)
        return error_sys(err, n, -errno, "cannot make %s", path);
    for (unsigned i = 0; i < tool->n_fds && i < 7; i++)
        fds[1 + i] = tool->fds[i];
    int failed = child_start(c, words, fds, 1 + tool->n_fds, err, n);
    close(fds[0]);
    return failed;
}

/* The tool leads a process group, to which its own helpers belong, whoever they act as. */
static void stop_tool(struct child *c, int grace_ms)
{
    pid_t group = c->pid;

    kill(-group, SIGTERM);
    child_stop(c, grace_ms);
    kill(-group, SIGKILL);
}

/* Until the tool has ended (its status) or the job is to end (-EINTR). */
static int wait_tool(struct job *j, const struct job_tool *tool, struct child *c, int *status)
{
    char path[IMAGE_PATH_SIZE], *log;
    struct pollfd poll_fds[2] = {{.fd = c->pidfd, .events = POLLIN},
                                 {.fd = j->own ? j->signals : -1, .events = POLLIN}};

    job_path(j, "log", path);
    while (!child_ended(c, status)) {
        poll(poll_fds, 2, c->pidfd < 0 ? 20 : 200);
        if (is_to_end(j)) {
            stop_tool(c, tool->grace_ms);
            return -EINTR;
        }
        if (tool->watch && file_read(path, LOG_MAX, &log, NULL, NULL, 0) == 0) {
            tool->watch(tool->context, j, log);
            free(log);
        }
    }
    return 0;
}

static int judge(struct job *j, const struct job_tool *tool, int status, char *err, size_t n)
{
    char path[IMAGE_PATH_SIZE], tail[300], *log = NULL;

    if (tool->status && WIFEXITED(status)) {
        *tool->status = WEXITSTATUS(status);
        return 0;
    }
    if (WIFEXITED(status) && WEXITSTATUS(status) == 0)
        return 0;
    job_path(j, "log", path);
    if (file_read(path, LOG_MAX, &log, NULL, NULL, 0))
        log = NULL;
    quote_tail(log ? log : "", tail, sizeof tail);
    free(log);
    const char *name = tool->name ? tool->name : tool->argv[0];
    return error_set(err, n, -EIO, "%s failed%s%s", name, tail[0] ? ": " : "", tail);
}

int job_run(struct job *j, const struct job_tool *tool, char *err, size_t n)
{
    struct child c;
    int status = 0, failed = start_tool(j, tool, &c, err, n);

    if (failed)
        return failed;
    if (wait_tool(j, tool, &c, &status))
        return error_set(err, n, -EINTR, "interrupted");
    return judge(j, tool, status, err, n);
}

static void clear_leftovers(const struct job *j)
{
    char path[IMAGE_PATH_SIZE];

    job_path(j, "log", path);
    unlink(path);
}

_Noreturn static void child_main(struct store_draft *d, const char *name, int report, pid_t parent,
                                 int (*work)(struct job *, void *, char *, size_t), void *context)
{
    struct job j = {.report = report, .own = d};
    struct message m = {.kind = MESSAGE_FAILED};
    struct image_info info;
    sigset_t end;

    sigemptyset(&end);
    sigaddset(&end, SIGTERM);
    sigprocmask(SIG_SETMASK, &end, NULL);
    j.signals = signalfd(-1, &end, SFD_CLOEXEC | SFD_NONBLOCK);
    setpgid(0, 0);
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    if (getppid() != parent)
        _exit(1);
    for (int number = 1; number < 32; number++)
        signal(number, SIG_DFL);
    signal(SIGPIPE, SIG_IGN);
    setlocale(LC_CTYPE, "C.UTF-8"); /* libarchive converts names by it; with this one it leaves them as they are */
    umask(022);
    snprintf(j.draft, sizeof j.draft, "%s", d->path);
    int failed = work(&j, context, m.text, sizeof m.text);
    if (!failed) {
        clear_leftovers(&j);
        job_stage(&j, "finishing");
        failed = store_publish(d, name, &info, m.text, sizeof m.text);
    } else
        store_discard(d);
    m.code = failed;
    if (!failed) {
        m.kind = MESSAGE_DONE;
        snprintf(m.text, sizeof m.text, "%s", info.digest);
    }
    tell(&j, &m);
    _exit(failed ? 1 : 0);
}

/* ---- in the parent ---- */

struct parent {
    pid_t pid;
    int report, signals;
    int signal; /* that ends the job; 0: none */
    struct message last;
    const struct image_progress *progress;
};

/* False: the child has ended. */
static bool take_message(struct parent *p)
{
    struct message m;
    ssize_t got = read(p->report, &m, sizeof m);

    if (got != sizeof m)
        return got < 0 && (errno == EINTR || errno == EAGAIN);
    m.text[sizeof m.text - 1] = 0;
    if (m.kind != MESSAGE_STAGE)
        p->last = m;
    else if (p->progress)
        p->progress->report(p->progress->context, m.text, m.done, m.total);
    return true;
}

static void take_signal(struct parent *p)
{
    struct signalfd_siginfo info;

    if (read(p->signals, &info, sizeof info) == sizeof info && !p->signal) {
        p->signal = (int)info.ssi_signo;
        kill(p->pid, SIGTERM);
    }
}

static void supervise(struct parent *p)
{
    struct pollfd fds[2] = {{.fd = p->report, .events = POLLIN}, {.fd = p->signals, .events = POLLIN}};
    uint64_t deadline = 0;

    for (;;) {
        if (p->signal && !deadline)
            deadline = now_ms() + GRACE_MS;
        int ready = poll(fds, 2, deadline ? 500 : -1);
        if (deadline && now_ms() > deadline)
            kill(p->pid, SIGKILL);
        if (ready <= 0)
            continue;
        if (fds[1].revents & POLLIN)
            take_signal(p);
        if ((fds[0].revents & (POLLIN | POLLHUP)) && !take_message(p))
            return;
    }
}

static int outcome(const struct parent *p, int status, char *err, size_t n)
{
    if (p->signal)
        return error_set(err, n, -EINTR, "interrupted");
    if (p->last.kind == MESSAGE_DONE && p->last.text[0])
        return 0;
    if (p->last.kind == MESSAGE_FAILED && p->last.code)
        return error_set(err, n, p->last.code, "%s", p->last.text);
    if (WIFSIGNALED(status))
        return error_set(err, n, -EIO, "the process that made the image was ended by signal %d", WTERMSIG(status));
    return error_set(err, n, -EIO, "the process that made the image ended without a result");
}

static int run_child(struct parent *p, struct store_draft *d, const char *name,
                     int (*work)(struct job *, void *, char *, size_t), void *context, char *err, size_t n)
{
    int report[2], status = 0;
    pid_t parent = getpid();

    if (pipe2(report, O_CLOEXEC))
        return error_sys(err, n, -errno, "cannot start a process");
    p->pid = fork();
    if (p->pid == 0) {
        close(report[0]);
        child_main(d, name, report[1], parent, work, context);
    }
    close(report[1]);
    int failed = p->pid < 0 ? error_sys(err, n, -errno, "cannot start a process") : 0;
    p->report = report[0];
    if (!failed) {
        supervise(p);
        while (waitpid(p->pid, &status, 0) < 0 && errno == EINTR)
            ;
        kill(-p->pid, SIGKILL);
        failed = outcome(p, status, err, n);
    }
    close(report[0]);
    return failed;
}

/* Those that end a program, but for what it was told to ignore (nohup). */
static void watched_signals(sigset_t *set)
{
    static const int numbers[] = {SIGINT, SIGTERM, SIGHUP};
    struct sigaction present;

    sigemptyset(set);
    for (size_t i = 0; i < sizeof numbers / sizeof numbers[0]; i++)
        if (sigaction(numbers[i], NULL, &present) == 0 && present.sa_handler != SIG_IGN)
            sigaddset(set, numbers[i]);
}

int job_make(const char *name, int (*work)(struct job *j, void *context, char *err, size_t n), void *context,
             const struct image_progress *progress, struct image_info *out, char *err, size_t n)
{
    struct parent p = {.progress = progress};
    char images[IMAGE_PATH_SIZE];
    struct store_draft d;
    sigset_t set, old;
    int failed = store_draft(&d, err, n);

    if (failed)
        return failed;
    watched_signals(&set);
    sigprocmask(SIG_BLOCK, &set, &old);
    p.signals = signalfd(-1, &set, SFD_CLOEXEC);
    fflush(NULL); /* what is buffered is not to be written by both */
    failed = run_child(&p, &d, name, work, context, err, n);
    store_discard(&d);
    close(p.signals);
    sigprocmask(SIG_SETMASK, &old, NULL);
    if (p.signal)
        raise(p.signal);
    if (!failed)
        failed = store_path(images, err, n);
    return failed ? failed : store_load(images, p.last.text, name, out, err, n);
}
