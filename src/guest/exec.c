/*
 * EXEC: the guest's end.  The session process is the parent of the command and pumps between its pipes, or the master
 * of its terminal, and the stream:
 *
 *      stream.in ──► ring ──► in            at most CHANNEL_WINDOW bytes, granted to the host as they are taken
 *      out, err ──► stream.out ──► host     at most `credit` bytes each, which the host grants
 *
 * The stream is always read (agent/client.c has the other half of the argument why nothing can lock up).
 *
 * When the command has ended, what it wrote is in the pipes already and is sent, however slow the host is.  Background
 * children may hold the pipes open: they get DRAIN_MS to finish, then their output has no reader any more.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "guest/exec.h"

#define READ_MAX (32u << 10)
#define GRANT (CHANNEL_WINDOW / 4)
#define DRAIN_MS 250
#define END_OF_INPUT 4 /* Ctrl-D, to a terminal */

struct source {
    int fd; /* -1: at its end */
    enum frame_type frame;
    uint64_t credit;
    int must; /* after the command's end: bytes that were there and have to be sent */
};

struct pump {
    struct stream *s;
    struct exec_child child;
    bool tty;
    struct source source[N_CHANNELS];
    uint8_t *ring; /* CHANNEL_WINDOW bytes for stdin */
    size_t start, len, taken;
    bool in_ends;     /* the host sends no more */
    bool ended, gone; /* the command has; the host has */
    int status;
    int signals;
    int64_t deadline_ms;
};

static int64_t now_ms(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

static void close_input(struct pump *p)
{
    if (p->child.in >= 0 && !p->tty)
        close(p->child.in);
    p->child.in = -1;
    p->len = 0;
}

/* All that the host sent has been written: pass its end of file on. */
static void end_input(struct pump *p)
{
    static const char end = END_OF_INPUT;

    if (p->tty && p->child.in >= 0 && write(p->child.in, &end, 1) < 0)
        p->len = 0;
    close_input(p);
}

static void on_stdin(struct pump *p, const struct frame *f)
{
    if (p->child.in < 0 || f->len > CHANNEL_WINDOW - p->len)
        return;
    size_t at = (p->start + p->len) % CHANNEL_WINDOW;
    size_t first = f->len < CHANNEL_WINDOW - at ? f->len : CHANNEL_WINDOW - at;
    memcpy(p->ring + at, f->payload, first);
    memcpy(p->ring, f->payload + first, f->len - first);
    p->len += f->len;
}

static void write_input(struct pump *p)
{
    size_t most = p->len < CHANNEL_WINDOW - p->start ? p->len : CHANNEL_WINDOW - p->start;
    ssize_t done = write(p->child.in, p->ring + p->start, most);

    if (done < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (done < 0) { /* it reads no more: tell the host that it need not either */
        close_input(p);
        stream_put_number(p->s, FRAME_CLOSE, FIELD_CHANNEL, CHANNEL_STDIN);
        return;
    }
    p->start = (p->start + (size_t)done) % CHANNEL_WINDOW;
    p->len -= (size_t)done;
    p->taken += (size_t)done;
    if (p->taken >= GRANT) {
        stream_put_numbers(p->s, FRAME_WINDOW, FIELD_CHANNEL, CHANNEL_STDIN, FIELD_BYTES, p->taken);
        p->taken = 0;
    }
    if (!p->len && p->in_ends)
        end_input(p);
}

static void close_source(struct pump *p, unsigned channel)
{
    struct source *from = &p->source[channel];

    if (from->fd >= 0 && !p->tty)
        close(from->fd);
    from->fd = -1;
}

static void on_window(struct pump *p, const struct frame *f)
{
    uint64_t channel = frame_number(f, FIELD_CHANNEL, 0);

    if (channel == CHANNEL_STDOUT || channel == CHANNEL_STDERR)
        p->source[channel].credit += frame_number(f, FIELD_BYTES, 0);
}

static void on_close(struct pump *p, const struct frame *f)
{
    uint64_t channel = frame_number(f, FIELD_CHANNEL, N_CHANNELS);

    if (channel == CHANNEL_STDIN) {
        p->in_ends = true;
        if (!p->len)
            end_input(p);
    } else if (channel < N_CHANNELS) {
        close_source(p, (unsigned)channel); /* its writer gets SIGPIPE, as it would from a local reader */
    }
}

static void on_signal(struct pump *p, const struct frame *f)
{
    uint64_t number = frame_number(f, FIELD_SIGNAL, 0);

    if (number > 0 && number < (uint64_t)SIGRTMAX && !p->ended)
        kill(-p->child.pid, (int)number);
}

static void on_winsize(struct pump *p, const struct frame *f)
{
    const struct winsize size = {.ws_row = (unsigned short)frame_number(f, FIELD_ROWS, 0),
                                 .ws_col = (unsigned short)frame_number(f, FIELD_COLUMNS, 0)};

    if (p->tty)
        ioctl(p->child.master, TIOCSWINSZ, &size);
}

static const struct {
    enum frame_type type;
    void (*fn)(struct pump *p, const struct frame *f);
} frames[] = {
    {FRAME_STDIN, on_stdin},   {FRAME_WINDOW, on_window},   {FRAME_CLOSE, on_close},
    {FRAME_SIGNAL, on_signal}, {FRAME_WINSIZE, on_winsize},
};

/* What has arrived, the frames behind the request first. */
static void read_frames(struct pump *p)
{
    struct frame f;
    int r;

    while ((r = stream_next(p->s, &f)) > 0)
        for (size_t i = 0; i < sizeof(frames) / sizeof(frames[0]); i++)
            if (frames[i].type == f.type)
                frames[i].fn(p, &f);
    if (r < 0 || p->s->ended)
        p->gone = true;
}

static void read_source(struct pump *p, unsigned channel)
{
    struct source *from = &p->source[channel];
    size_t most = from->credit < READ_MAX ? (size_t)from->credit : READ_MAX;
    ssize_t got = -1;

    stream_begin(p->s, (uint8_t)from->frame);
    uint8_t *space = stream_space(p->s, most);
    if (space)
        got = read(from->fd, space, most);
    if (got > 0) {
        stream_used(p->s, (size_t)got);
        stream_end(p->s);
        from->credit -= (uint64_t)got;
        from->must -= from->must < got ? from->must : (int)got;
        return;
    }
    stream_cancel(p->s);
    /* A terminal whose last user has gone gives EIO. */
    if (got == 0 || (errno != EAGAIN && errno != EINTR))
        close_source(p, channel);
}

static void on_child(struct pump *p)
{
    struct signalfd_siginfo info;

    if (read(p->signals, &info, sizeof(info)) < 0 || p->ended)
        return;
    if (waitpid(p->child.pid, &p->status, WNOHANG) != p->child.pid)
        return;
    p->ended = true;
    p->deadline_ms = now_ms() + DRAIN_MS;
    for (unsigned i = CHANNEL_STDOUT; i <= CHANNEL_STDERR; i++)
        if (p->source[i].fd >= 0 && ioctl(p->source[i].fd, FIONREAD, &p->source[i].must))
            p->source[i].must = 0;
}

/* Is there nothing more to come from this one? */
static bool is_drained(const struct pump *p, unsigned channel)
{
    const struct source *from = &p->source[channel];

    return from->fd < 0 || (from->must == 0 && now_ms() >= p->deadline_ms);
}

static bool is_over(const struct pump *p)
{
    return p->gone || (p->ended && is_drained(p, CHANNEL_STDOUT) && is_drained(p, CHANNEL_STDERR));
}

static int wait_ms(const struct pump *p)
{
    if (!p->ended)
        return -1;
    int64_t left = p->deadline_ms - now_ms();
    return left > 0 ? (int)left : -1; /* afterwards only the host keeps us */
}

static void step(struct pump *p)
{
    bool room = stream_waiting(p->s) < CHANNEL_WINDOW;
    struct pollfd fds[] = {
        {.fd = p->s->fd, .events = (short)(POLLIN | (stream_waiting(p->s) ? POLLOUT : 0))},
        {.fd = p->len ? p->child.in : -1, .events = POLLOUT},
        {.fd = room && p->source[CHANNEL_STDOUT].credit ? p->source[CHANNEL_STDOUT].fd : -1, .events = POLLIN},
        {.fd = room && p->source[CHANNEL_STDERR].credit ? p->source[CHANNEL_STDERR].fd : -1, .events = POLLIN},
        {.fd = p->ended ? -1 : p->signals, .events = POLLIN},
    };

    if (poll(fds, sizeof(fds) / sizeof(fds[0]), wait_ms(p)) < 0)
        return;
    if (fds[0].revents & ~POLLOUT) {
        int r = stream_fill(p->s);
        if (r && r != -EAGAIN)
            p->gone = true;
        read_frames(p);
    }
    if (fds[1].revents && p->child.in >= 0)
        write_input(p);
    if (fds[2].revents && p->source[CHANNEL_STDOUT].fd >= 0)
        read_source(p, CHANNEL_STDOUT);
    if (fds[3].revents && p->source[CHANNEL_STDERR].fd >= 0)
        read_source(p, CHANNEL_STDERR);
    if (fds[4].revents)
        on_child(p);
    int r = stream_flush(p->s);
    if (r && r != -EAGAIN)
        p->gone = true;
}

static void put_exit(struct stream *s, enum exit_kind kind, int code, const char *message)
{
    stream_begin(s, FRAME_EXIT);
    stream_number(s, FIELD_KIND, kind);
    stream_number(s, FIELD_CODE, (uint64_t)code);
    stream_text(s, FIELD_MESSAGE, message);
    stream_end(s);
}

/* Whoever asked for the command has gone, and so is whoever could use its output. */
static void hang_up(const struct pump *p)
{
    static const int numbers[] = {SIGHUP, SIGCONT, SIGTERM};

    for (size_t i = 0; i < sizeof(numbers) / sizeof(numbers[0]) && !p->ended; i++)
        kill(-p->child.pid, numbers[i]);
}

static void pump_run(struct pump *p)
{
    read_frames(p);
    while (!is_over(p))
        step(p);
    if (p->gone)
        hang_up(p);
    else if (WIFSIGNALED(p->status))
        put_exit(p->s, EXIT_SIGNAL, WTERMSIG(p->status), NULL);
    else
        put_exit(p->s, EXIT_STATUS, WEXITSTATUS(p->status), NULL);
}

/* When the system ends all processes get SIGTERM: the command is to get it, and we to tell how it took that. */
static int open_signals(void)
{
    sigset_t set;

    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGHUP);
    sigprocmask(SIG_BLOCK, &set, NULL);
    sigemptyset(&set);
    sigaddset(&set, SIGCHLD);
    sigprocmask(SIG_BLOCK, &set, NULL);
    return signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
}

void exec_serve(struct guest *g, struct stream *s, const struct frame *request)
{
    struct pump p = {.s = s, .signals = open_signals(), .ring = malloc(CHANNEL_WINDOW)};
    struct exec_request r = {0};
    char why[256] = "the guest is out of memory";
    int code = 125;

    if (p.ring && p.signals >= 0 && exec_parse(request, &r, why, sizeof(why)) == 0)
        code = exec_start(&r, &p.child, why, sizeof(why));
    p.tty = r.flags & EXEC_TTY;
    exec_release(&r);
    if (code) {
        put_exit(s, EXIT_FAILED, code, why);
    } else {
        p.source[CHANNEL_STDOUT] = (struct source){.fd = p.child.out, .frame = FRAME_STDOUT, .credit = CHANNEL_WINDOW};
        p.source[CHANNEL_STDERR] = (struct source){.fd = p.child.err, .frame = FRAME_STDERR, .credit = CHANNEL_WINDOW};
        pump_run(&p);
    }
    free(p.ring);
}
