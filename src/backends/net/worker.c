/* The helper's two processes (control.h), and what both kinds of helper need. */
#include "backends/net/worker.h"

#include <errno.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "backends/net_helper.h"
#include "host/loop.h"

/* A guest chooses how many connections it opens; each is a descriptor here. */
#define DESCRIPTORS 1024u
/* One that ends at once, again and again, is started at this pace in the end. */
#define PAUSE_FIRST_MS 50u
#define PAUSE_MOST_MS 5000u
#define STEADY_NS 10000000000ull

void worker_up(void)
{
    control_send(HELPER_CONTROL, &(struct control_message){.type = CONTROL_UP});
}

int worker_hopeless(int status, const char *format, ...)
{
    struct control_message m = {.type = CONTROL_DOWN, .status = status};
    va_list ap;

    va_start(ap, format);
    vsnprintf(m.text, sizeof m.text, format, ap);
    va_end(ap);
    control_send(HELPER_CONTROL, &m);
    return WORKER_HOPELESS;
}

static void check_turns(int number, siginfo_t *info, void *context)
{
    struct worker_watchdog *w = info->si_value.sival_ptr;

    if (info->si_code != SI_TIMER)
        return;
    if (w->turns == w->seen)
        _exit(WORKER_STUCK);
    w->seen = w->turns;
}

int worker_watch(struct worker_watchdog *w, unsigned seconds)
{
    struct sigaction action = {.sa_sigaction = check_turns, .sa_flags = SA_SIGINFO | SA_RESTART};
    struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGALRM, .sigev_value.sival_ptr = w};
    const struct itimerspec period = {{(time_t)seconds, 0}, {(time_t)seconds, 0}};
    timer_t timer;

    sigemptyset(&action.sa_mask);
    if (sigaction(SIGALRM, &action, NULL) || timer_create(CLOCK_MONOTONIC, &event, &timer) ||
        timer_settime(timer, 0, &period, NULL))
        return -errno;
    return 0;
}

/* --- frames that wait --------------------------------------------------------------------------------------------- */

struct worker_frame {
    struct worker_frame *next;
    size_t len; /* of the frame */
    struct net_header header;
    uint8_t frame[];
};

void worker_out_init(struct worker_out *o, struct wire *wire, size_t limit)
{
    *o = (struct worker_out){.wire = wire, .last = &o->first, .limit = limit};
}

static void drop_first(struct worker_out *o)
{
    struct worker_frame *f = o->first;

    o->waiting -= f->len;
    o->first = f->next;
    if (!o->first)
        o->last = &o->first;
    free(f);
}

void worker_out_free(struct worker_out *o)
{
    while (o->first)
        drop_first(o);
}

static void keep(struct worker_out *o, const struct iovec *iov, unsigned n)
{
    size_t len = 0, at = 0;

    for (unsigned i = 1; i < n; i++)
        len += iov[i].iov_len;
    struct worker_frame *f = o->waiting + len <= o->limit ? malloc(sizeof *f + len) : NULL;
    if (!f)
        return;
    f->next = NULL;
    f->len = len;
    memcpy(&f->header, iov[0].iov_base, sizeof f->header);
    for (unsigned i = 1; i < n; at += iov[i++].iov_len)
        memcpy(f->frame + at, iov[i].iov_base, iov[i].iov_len);
    *o->last = f;
    o->last = &f->next;
    o->waiting += len;
}

void worker_out_put(struct worker_out *o, const struct iovec *iov, unsigned n)
{
    if (o->first || !wire_put(o->wire, iov, n))
        keep(o, iov, n);
}

bool worker_out_flush(struct worker_out *o)
{
    while (o->first) {
        struct worker_frame *f = o->first;
        const struct iovec iov[] = {{&f->header, sizeof f->header}, {f->frame, f->len}};
        if (!wire_put(o->wire, iov, 2))
            return false;
        drop_first(o);
    }
    return wire_flush(o->wire);
}

/* --- the outer process -------------------------------------------------------------------------------------------- */

static pid_t start_inner(const struct worker_kind *kind, const char *where)
{
    pid_t pid = fork();

    if (pid)
        return pid;
    signal(SIGTERM, SIG_DFL);
    _exit(kind->main(where));
}

static void tell_end(int status)
{
    struct control_message m = {.type = CONTROL_DOWN};

    if (WIFSIGNALED(status))
        snprintf(m.text, sizeof m.text, "the helper process was ended by signal %d (%s)", WTERMSIG(status),
                 strsignal(WTERMSIG(status)));
    else if (WEXITSTATUS(status) == WORKER_STUCK)
        snprintf(m.text, sizeof m.text, "the helper process got stuck");
    else
        snprintf(m.text, sizeof m.text, "the helper process has ended with status %d", WEXITSTATUS(status));
    control_send(HELPER_CONTROL, &m);
}

static int supervise(const struct worker_kind *kind, const char *where)
{
    unsigned pause_ms = PAUSE_FIRST_MS;
    int status = 0;

    for (;;) {
        uint64_t start = clock_ns();
        pid_t pid = start_inner(kind, where);
        if (pid < 0)
            return worker_hopeless(-errno, "the helper process cannot be started: %s", strerror(errno));
        while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
            ;
        if (WIFEXITED(status) && (WEXITSTATUS(status) == WORKER_DONE || WEXITSTATUS(status) == WORKER_HOPELESS))
            return WEXITSTATUS(status);
        tell_end(status);
        if (clock_ns() - start > STEADY_NS)
            pause_ms = PAUSE_FIRST_MS;
        nanosleep(&(struct timespec){pause_ms / 1000, pause_ms % 1000 * 1000000}, NULL);
        pause_ms = 2 * pause_ms < PAUSE_MOST_MS ? 2 * pause_ms : PAUSE_MOST_MS;
    }
}

static void confine(void)
{
    struct rlimit files, core = {0, 0};

    prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    setrlimit(RLIMIT_CORE, &core); /* the guest's traffic does not belong into a file */
    if (getrlimit(RLIMIT_NOFILE, &files) == 0) {
        files.rlim_cur = files.rlim_max < DESCRIPTORS ? files.rlim_max : DESCRIPTORS;
        setrlimit(RLIMIT_NOFILE, &files);
    }
}

int net_helper_main(int argc, char **argv)
{
    static const struct worker_kind *const kinds[] = {&worker_slirp, &worker_switch};

    signal(SIGPIPE, SIG_IGN);
    signal(SIGTERM, SIG_IGN); /* the inner one has its own mind; this one goes when that has gone */
    confine();
    for (size_t i = 0; argc >= 2 && i < sizeof kinds / sizeof *kinds; i++)
        if (strcmp(argv[1], kinds[i]->word) == 0)
            return supervise(kinds[i], argc > 2 ? argv[2] : "");
    return WORKER_HOPELESS;
}
