#include "cli/session.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/signalfd.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

#include "agent/client.h"
#include "agent/qga.h"
#include "backends/escape.h"
#include "backends/guardian.h"
#include "base/error.h"
#include "base/log.h"
#include "cli/cli.h"

#define INSIST 3       /* so many of one signal ... */
#define INSIST_MS 1000 /* ... within so long are for guise */

static const int forwarded[] = {SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGUSR1, SIGUSR2};
static const int own[] = {SIGWINCH, SIGTSTP, SIGCONT}; /* only with a raw terminal, but for the first */
#define N_FORWARDED (sizeof(forwarded) / sizeof(forwarded[0]))
#define N_OWN (sizeof(own) / sizeof(own[0]))

struct session {
    int signals; /* a signalfd */
    sigset_t before_signals;
    bool raw; /* stdin is a terminal that is ours */
    struct termios before, ours;
    struct guardian guardian;
    int last, count;  /* the forwarded signal that came last, how often in a row, */
    int64_t since_ms; /* and when the row began */
    struct escape escape;
};

static int64_t now_ms(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

/* In the background the terminal is somebody else's, and setting it would stop us. */
static bool in_foreground(void)
{
    return tcgetpgrp(STDIN_FILENO) == getpgrp();
}

static void set_terminal(const struct termios *to)
{
    if (in_foreground())
        tcsetattr(STDIN_FILENO, TCSADRAIN, to);
}

/* Raw, and put back by the guardian whatever becomes of us. */
static int open_terminal(struct session *s, char *err, size_t n)
{
    if (tcgetattr(STDIN_FILENO, &s->before))
        return error_sys(err, n, -errno, "the terminal's settings cannot be read");
    s->ours = s->before;
    cfmakeraw(&s->ours);
    s->ours.c_cc[VMIN] = 1;
    s->ours.c_cc[VTIME] = 0;
    int r = guardian_start(&s->guardian, STDIN_FILENO, &s->before, &s->ours);
    if (r)
        return error_sys(err, n, r, "the process that would restore the terminal cannot be started");
    s->raw = true;
    set_terminal(&s->ours);
    return 0;
}

static void close_terminal(struct session *s)
{
    if (!s->raw)
        return;
    set_terminal(&s->before);
    guardian_dismiss(&s->guardian);
    s->raw = false;
}

static int open_signals(struct session *s)
{
    sigset_t set;

    sigemptyset(&set);
    for (size_t i = 0; i < N_FORWARDED; i++)
        sigaddset(&set, forwarded[i]);
    for (size_t i = 0; i < (s->raw ? N_OWN : 1); i++)
        sigaddset(&set, own[i]);
    pthread_sigmask(SIG_BLOCK, &set, &s->before_signals);
    s->signals = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
    return s->signals < 0 ? -errno : 0;
}

static void close_signals(struct session *s)
{
    if (s->signals >= 0)
        close(s->signals);
    pthread_sigmask(SIG_SETMASK, &s->before_signals, NULL);
}

static void read_size(struct winsize *size)
{
    *size = (struct winsize){0};
    if (ioctl(STDIN_FILENO, TIOCGWINSZ, size) && ioctl(STDOUT_FILENO, TIOCGWINSZ, size))
        *size = (struct winsize){.ws_row = 24, .ws_col = 80};
}

/* Stopped from outside, as by `kill -TSTP`: the shell is to find its terminal as it was. */
static void stop_here(struct session *s)
{
    set_terminal(&s->before);
    kill(getpid(), SIGSTOP);
    set_terminal(&s->ours);
}

/* Is this one more of a row that is meant for us? */
static bool insists(struct session *s, int number)
{
    int64_t now = now_ms();

    if (number != s->last || now - s->since_ms > INSIST_MS) {
        s->last = number;
        s->count = 0;
        s->since_ms = now;
    }
    return ++s->count >= INSIST;
}

static int on_signals(void *opaque, struct agent_session *to)
{
    struct session *s = opaque;
    struct signalfd_siginfo info;
    struct winsize size;

    while (read(s->signals, &info, sizeof(info)) == sizeof(info)) {
        int number = (int)info.ssi_signo;
        if (number == SIGTSTP) {
            stop_here(s);
        } else if (number == SIGCONT) {
            set_terminal(&s->ours);
        } else if (number == SIGWINCH) {
            read_size(&size);
            agent_session_resize(to, size.ws_row, size.ws_col);
        } else if (insists(s, number)) {
            return -ECANCELED;
        } else {
            agent_session_signal(to, number);
        }
    }
    return 0;
}

static ssize_t on_typed(void *opaque, const uint8_t *from, size_t len, uint8_t *to)
{
    struct session *s = opaque;
    size_t n = escape_filter(&s->escape, from, len, to);

    return s->escape.leave ? -ECANCELED : (ssize_t)n;
}

static int outcome(const struct session *s, int r, const struct agent_status *status, const char *err)
{
    if (r == -ECANCELED)
        return s->escape.leave ? STATUS_OK : STATUS_SIGNAL + s->last;
    if (r)
        log_say("%s", err);
    else if (status->kind == EXIT_FAILED)
        log_say("%s", status->message);
    return r ? STATUS_OURS : agent_exit_code(status);
}

int session_run(int fd, const struct session_options *o)
{
    struct session s = {.signals = -1};
    struct agent_status status = {0};
    struct winsize size;
    char err[ERROR_SIZE];
    int r = 0;

    if (o->tty && o->interactive && isatty(STDIN_FILENO))
        r = open_terminal(&s, err, sizeof(err));
    if (!r && (r = open_signals(&s)) != 0)
        error_sys(err, sizeof(err), r, "signals cannot be received");
    read_size(&size);
    const struct agent_exec e = {
        .argv = o->argv,
        .environment = o->environment,
        .directory = o->directory,
        .user = o->user,
        .tty = o->tty,
        .login = o->login,
        .rows = size.ws_row,
        .columns = size.ws_col,
        .in = o->interactive ? STDIN_FILENO : -1,
        .out = STDOUT_FILENO,
        .err = STDERR_FILENO,
        .typed = s.raw ? on_typed : NULL,
        .wake = s.signals,
        .woken = on_signals,
        .opaque = &s,
    };
    if (!r)
        r = agent_exec(fd, &e, &status, err, sizeof(err));
    close_signals(&s);
    close_terminal(&s);
    return outcome(&s, r, &status, err);
}

/* The signal to send, 0 for none. */
static int on_signals_qga(void *opaque)
{
    struct session *s = opaque;
    struct signalfd_siginfo info;

    if (read(s->signals, &info, sizeof(info)) != sizeof(info) || info.ssi_signo == SIGWINCH)
        return 0;
    return insists(s, (int)info.ssi_signo) ? -ECANCELED : (int)info.ssi_signo;
}

static int run_by_qga(struct session *s, int fd, const struct session_options *o, struct agent_status *status,
                      char *err, size_t n)
{
    static const char *const shell[] = {"sh", NULL};
    const struct qga_exec e = {
        .argv = o->login ? shell : o->argv,
        .environment = o->environment && o->environment[0] ? o->environment : NULL,
        .directory = o->directory,
        .user = o->user,
        .in = o->interactive ? STDIN_FILENO : -1,
        .out = STDOUT_FILENO,
        .err = STDERR_FILENO,
        .wake = s->signals,
        .woken = on_signals_qga,
        .opaque = s,
    };
    struct qga q;
    int r = qga_open(&q, fd, err, n);

    if (r)
        return r;
    r = qga_exec(&q, &e, status, err, n);
    qga_close(&q);
    return r;
}

int session_run_qga(int fd, const struct session_options *o)
{
    struct session s = {.signals = -1};
    struct agent_status status = {0};
    char err[ERROR_SIZE];

    if (o->tty) {
        log_say("QEMU's guest agent has no terminals: leave out --tty, or use `guise ssh`");
        return STATUS_OURS;
    }
    int r = open_signals(&s);
    if (r)
        error_sys(err, sizeof(err), r, "signals cannot be received");
    else
        r = run_by_qga(&s, fd, o, &status, err, sizeof(err));
    close_signals(&s);
    return outcome(&s, r, &status, err);
}
