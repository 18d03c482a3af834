#include "backends/terminal.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/signalfd.h>
#include <termios.h>
#include <unistd.h>

#include "backends/escape.h"
#include "backends/guardian.h"
#include "base/error.h"
#include "host/loop.h"

#define BACKGROUND_POLL_NS 250000000ull

struct terminal {
    int fd;
    int signals; /* signalfd of SIGTSTP and SIGCONT */
    struct loop *loop;
    struct terminal_events events;
    struct termios before, raw;
    bool is_raw;
    struct escape escape;
    struct guardian guardian;
    struct loop_timer poll; /* runs while in the background: nothing tells a process that it has come to the front */
    sigset_t old_mask;
};

/* c_oflag too: with OPOST a bare line feed, by which full-screen programs move down, would go to column 0. */
static void make_raw(const struct termios *from, struct termios *raw)
{
    *raw = *from;
    cfmakeraw(raw);
    raw->c_cc[VMIN] = 1;
    raw->c_cc[VTIME] = 0;
}

bool terminal_in_foreground(const struct terminal *t)
{
    return tcgetpgrp(t->fd) == getpgrp();
}

static void restore(struct terminal *t)
{
    if (t->is_raw)
        tcsetattr(t->fd, TCSANOW, &t->before);
    t->is_raw = false;
}

/* In the background the terminal belongs to somebody else: reading or setting it would stop us. */
static void take_or_wait(struct terminal *t)
{
    bool front = terminal_in_foreground(t);

    if (front && !t->is_raw)
        t->is_raw = tcsetattr(t->fd, TCSANOW, &t->raw) == 0;
    if (!front)
        loop_timer_set(t->loop, &t->poll, clock_ns() + BACKGROUND_POLL_NS);
    t->events.foreground(t->events.opaque, front);
}

static void on_poll(void *opaque)
{
    take_or_wait(opaque);
}

static void on_signal(void *opaque, uint32_t events)
{
    struct terminal *t = opaque;
    struct signalfd_siginfo info;

    if (read(t->signals, &info, sizeof(info)) != sizeof(info))
        return;
    if (info.ssi_signo == SIGTSTP) {
        if (terminal_in_foreground(t))
            restore(t);
        kill(getpid(), SIGSTOP); /* all threads; comes back at SIGCONT */
    }
    /* After SIGSTOP from outside the shell has set the terminal its own way. */
    t->is_raw = false;
    take_or_wait(t);
}

static int watch_signals(struct terminal *t)
{
    sigset_t set;

    sigemptyset(&set);
    sigaddset(&set, SIGTSTP);
    sigaddset(&set, SIGCONT);
    pthread_sigmask(SIG_BLOCK, &set, &t->old_mask);
    t->signals = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
    if (t->signals < 0)
        return -errno;
    return loop_fd_add(t->loop, t->signals, EPOLLIN, on_signal, t);
}

int terminal_open(struct terminal **out, int fd, struct loop *loop, const struct terminal_events *events, char *err,
                  size_t n)
{
    struct terminal *t = calloc(1, sizeof(*t));
    int r;

    if (!t)
        return error_sys(err, n, -ENOMEM, "the terminal cannot be set up");
    *t = (struct terminal){.fd = fd, .loop = loop, .events = *events, .signals = -1};
    loop_timer_init(&t->poll, on_poll, t);
    if (tcgetattr(fd, &t->before) < 0) {
        r = error_sys(err, n, -errno, "the terminal's settings cannot be read");
        goto free_terminal;
    }
    make_raw(&t->before, &t->raw);
    r = guardian_start(&t->guardian, fd, &t->before, &t->raw);
    if (r) {
        error_sys(err, n, r, "the process that would restore the terminal cannot be started");
        goto free_terminal;
    }
    r = watch_signals(t);
    if (r) {
        error_sys(err, n, r, "the terminal's signals cannot be received");
        goto dismiss;
    }
    take_or_wait(t);
    *out = t;
    return 0;

dismiss:
    if (t->signals >= 0)
        close(t->signals);
    pthread_sigmask(SIG_SETMASK, &t->old_mask, NULL);
    guardian_dismiss(&t->guardian);
free_terminal:
    free(t);
    return r;
}

size_t terminal_filter(void *terminal, const uint8_t *from, size_t len, uint8_t *to)
{
    struct terminal *t = terminal;
    size_t n = escape_filter(&t->escape, from, len, to);

    if (t->escape.leave)
        t->events.leave(t->events.opaque);
    t->escape.leave = false;
    return n;
}

void terminal_close(struct terminal *t)
{
    if (!t)
        return;
    loop_fd_del(t->loop, t->signals);
    loop_timer_cancel(t->loop, &t->poll);
    close(t->signals);
    if (terminal_in_foreground(t))
        restore(t);
    guardian_dismiss(&t->guardian);
    pthread_sigmask(SIG_SETMASK, &t->old_mask, NULL);
    free(t);
}
