/*
 * EXEC: one command in the guest, its input, output and end.
 *
 *      in ──read──► stream.out ──► guest            at most `credit` bytes, which the guest grants
 *      guest ──► stream.in ──► pending ──write──► out, err     at most CHANNEL_WINDOW each, which we grant
 *
 * The stream is always read, whatever happens to out and err: a signal's or an exit's frame never waits behind bytes
 * that nobody takes.  So no order of reading and writing at the other ends can make the two sides wait for each other.
 */
#include "agent/client.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "agent/client_int.h"
#include "base/error.h"

#define READ_MAX (32u << 10)
/* A pipe that poll(2) calls writable takes this much without blocking (pipe(7): PIPE_BUF). */
#define WRITE_MAX 4096
/* So much is taken before we grant more: few frames, and the guest does not run dry. */
#define GRANT (CHANNEL_WINDOW / 4)
/* What an honest guest leaves unread: the request, its input's window, and what a person types meanwhile. */
#define UNREAD_MAX (REQUEST_MAX + 2 * CHANNEL_WINDOW)

struct output {
    int fd;        /* -1: thrown away, or its reader has gone */
    uint8_t *data; /* a ring of CHANNEL_WINDOW bytes; NULL until something comes */
    size_t start, len;
    size_t credit; /* what the guest may still send */
    size_t taken;  /* since the last grant */
};

struct agent_session {
    struct stream stream;
    const struct agent_exec *e;
    struct output output[N_CHANNELS]; /* of CHANNEL_STDOUT and CHANNEL_STDERR */
    uint64_t credit;                  /* bytes of stdin that may be sent */
    bool in_open;
    bool exited;
    struct agent_status status;
};

static const char doing[] = "running a command in the guest";

void agent_session_signal(struct agent_session *s, int number)
{
    if (!s->exited)
        stream_put_number(&s->stream, FRAME_SIGNAL, FIELD_SIGNAL, (uint64_t)number);
}

void agent_session_resize(struct agent_session *s, unsigned rows, unsigned columns)
{
    if (!s->exited)
        stream_put_numbers(&s->stream, FRAME_WINSIZE, FIELD_ROWS, rows, FIELD_COLUMNS, columns);
}

int agent_exit_code(const struct agent_status *status)
{
    return status->kind == EXIT_SIGNAL ? 128 + status->code : status->code;
}

static void put_request(struct stream *s, const struct agent_exec *e)
{
    uint64_t flags = (e->tty ? EXEC_TTY : 0) | (e->login ? EXEC_LOGIN : 0) | (e->in >= 0 ? EXEC_STDIN : 0);

    stream_begin(s, FRAME_EXEC);
    for (unsigned i = 0; e->argv && e->argv[i]; i++)
        stream_text(s, FIELD_ARGUMENT, e->argv[i]);
    for (unsigned i = 0; e->environment && e->environment[i]; i++)
        stream_text(s, FIELD_ENVIRONMENT, e->environment[i]);
    stream_text(s, FIELD_DIRECTORY, e->directory);
    stream_text(s, FIELD_USER, e->user);
    stream_number(s, FIELD_FLAGS, flags);
    stream_number(s, FIELD_ROWS, e->rows);
    stream_number(s, FIELD_COLUMNS, e->columns);
    stream_end(s);
}

/* So many bytes of a channel have been dealt with: tell the guest once it is worth a frame. */
static void take(struct agent_session *s, unsigned channel, size_t len)
{
    struct output *o = &s->output[channel];

    o->taken += len;
    if (o->taken < GRANT || s->exited)
        return;
    stream_put_numbers(&s->stream, FRAME_WINDOW, FIELD_CHANNEL, channel, FIELD_BYTES, o->taken);
    o->credit += o->taken;
    o->taken = 0;
}

static int on_output(struct agent_session *s, unsigned channel, const struct frame *f)
{
    struct output *o = &s->output[channel];

    if (f->len > o->credit)
        return -EPROTO;
    o->credit -= f->len;
    if (o->fd < 0) {
        take(s, channel, f->len);
        return 0;
    }
    if (!o->data && !(o->data = malloc(CHANNEL_WINDOW)))
        return -ENOMEM;
    size_t at = (o->start + o->len) % CHANNEL_WINDOW;
    size_t first = f->len < CHANNEL_WINDOW - at ? f->len : CHANNEL_WINDOW - at;
    memcpy(o->data + at, f->payload, first);
    memcpy(o->data, f->payload + first, f->len - first);
    o->len += f->len;
    return 0;
}

static int on_stdout(struct agent_session *s, const struct frame *f)
{
    return on_output(s, CHANNEL_STDOUT, f);
}

static int on_stderr(struct agent_session *s, const struct frame *f)
{
    return on_output(s, CHANNEL_STDERR, f);
}

static int on_window(struct agent_session *s, const struct frame *f)
{
    uint64_t bytes = frame_number(f, FIELD_BYTES, 0);

    if (frame_number(f, FIELD_CHANNEL, N_CHANNELS) != CHANNEL_STDIN || bytes > CHANNEL_WINDOW - s->credit)
        return -EPROTO;
    s->credit += bytes;
    return 0;
}

static int on_close(struct agent_session *s, const struct frame *f)
{
    if (frame_number(f, FIELD_CHANNEL, N_CHANNELS) == CHANNEL_STDIN)
        s->in_open = false;
    return 0;
}

static int on_exited(struct agent_session *s, const struct frame *f)
{
    uint64_t kind = frame_number(f, FIELD_KIND, EXIT_FAILED), code = frame_number(f, FIELD_CODE, 125);
    static const struct {
        unsigned least, most;
    } range[] = {[EXIT_STATUS] = {0, 255}, [EXIT_SIGNAL] = {1, 127}, [EXIT_FAILED] = {125, 127}};

    if (kind > EXIT_FAILED || code < range[kind].least || code > range[kind].most)
        return -EPROTO;
    s->status.kind = (enum exit_kind)kind;
    s->status.code = (int)code;
    frame_printable(f, FIELD_MESSAGE, s->status.message, sizeof(s->status.message));
    s->exited = true;
    s->in_open = false;
    return 0;
}

static const struct {
    enum frame_type type;
    int (*fn)(struct agent_session *s, const struct frame *f);
} frames[] = {
    {FRAME_STDOUT, on_stdout}, {FRAME_STDERR, on_stderr}, {FRAME_WINDOW, on_window},
    {FRAME_CLOSE, on_close},   {FRAME_EXIT, on_exited},
};

static int on_frame(struct agent_session *s, const struct frame *f)
{
    for (unsigned i = 0; i < sizeof(frames) / sizeof(frames[0]); i++)
        if (frames[i].type == f->type)
            return frames[i].fn(s, f);
    return -EPROTO;
}

static int read_stream(struct agent_session *s, char *err, size_t n)
{
    struct frame f;
    int r = stream_fill(&s->stream), more;

    if (r && r != -EAGAIN)
        return client_failed(r, doing, err, n);
    while (!s->exited && (more = stream_next(&s->stream, &f)) != 0) {
        if (more > 0 && f.type == FRAME_ERROR)
            return client_refused(&f, err, n);
        r = more < 0 ? more : on_frame(s, &f);
        if (r)
            return client_failed(r, doing, err, n);
    }
    return s->stream.ended && !s->exited ? client_failed(-ECONNRESET, doing, err, n) : 0;
}

/* read(2), with what is typed filtered.  0: the end of file; -ENODATA: nothing of it is for the guest. */
static ssize_t take_input(struct agent_session *s, uint8_t *space, size_t most)
{
    uint8_t keys[1024];
    ssize_t got;

    if (!s->e->typed) {
        got = read(s->e->in, space, most);
        return got < 0 ? -errno : got;
    }
    got = read(s->e->in, keys, most / 2 < sizeof(keys) ? most / 2 : sizeof(keys));
    if (got <= 0)
        return got < 0 ? -errno : 0;
    got = s->e->typed(s->e->opaque, keys, (size_t)got, space);
    return got ? got : -ENODATA;
}

/* Reads what is there of our stdin, straight into a frame.  0, or what the session is to end with. */
static int read_input(struct agent_session *s)
{
    size_t most = s->credit < READ_MAX ? (size_t)s->credit : READ_MAX;
    struct stream *to = &s->stream;

    stream_begin(to, FRAME_STDIN);
    uint8_t *space = stream_space(to, most);
    if (!space)
        return 0;
    ssize_t got = take_input(s, space, most);
    if (got > 0) {
        stream_used(to, (size_t)got);
        stream_end(to);
        s->credit -= (uint64_t)got;
        return 0;
    }
    stream_cancel(to);
    if (got == -EINTR || got == -EAGAIN || got == -ENODATA)
        return 0;
    if (got == -ECANCELED)
        return -ECANCELED;
    /* The end of file, or a terminal that is gone. */
    stream_put_number(to, FRAME_CLOSE, FIELD_CHANNEL, CHANNEL_STDIN);
    s->in_open = false;
    return 0;
}

static void drop_output(struct agent_session *s, unsigned channel)
{
    struct output *o = &s->output[channel];

    o->fd = -1;
    if (!s->exited)
        stream_put_number(&s->stream, FRAME_CLOSE, FIELD_CHANNEL, channel);
    take(s, channel, o->len);
    o->len = 0;
}

static int write_output(struct agent_session *s, unsigned channel, char *err, size_t n)
{
    struct output *o = &s->output[channel];
    size_t most = o->len < WRITE_MAX ? o->len : WRITE_MAX;

    if (most > CHANNEL_WINDOW - o->start)
        most = CHANNEL_WINDOW - o->start;
    ssize_t done = write(o->fd, o->data + o->start, most);
    if (done < 0 && (errno == EINTR || errno == EAGAIN))
        return 0;
    if (done < 0 && errno != EPIPE && errno != EIO)
        return error_sys(err, n, -errno, "cannot write the command's output");
    if (done < 0) {
        drop_output(s, channel);
        return 0;
    }
    o->start = (o->start + (size_t)done) % CHANNEL_WINDOW;
    o->len -= (size_t)done;
    take(s, channel, (size_t)done);
    return 0;
}

enum { AT_STREAM, AT_IN, AT_OUT, AT_ERR, AT_WAKE, N_POLLED };

static void fill_poll(const struct agent_session *s, struct pollfd *p)
{
    const struct output *out = &s->output[CHANNEL_STDOUT], *err = &s->output[CHANNEL_STDERR];

    p[AT_STREAM] = (struct pollfd){.fd = s->exited ? -1 : s->stream.fd,
                                   .events = (short)(POLLIN | (stream_waiting(&s->stream) ? POLLOUT : 0))};
    p[AT_IN] = (struct pollfd){.fd = s->in_open && s->credit > 1 ? s->e->in : -1, .events = POLLIN};
    /* Without bytes to write it still tells that the reader has gone. */
    p[AT_OUT] = (struct pollfd){.fd = out->fd, .events = out->len ? POLLOUT : 0};
    p[AT_ERR] = (struct pollfd){.fd = err->fd, .events = err->len ? POLLOUT : 0};
    p[AT_WAKE] = (struct pollfd){.fd = s->e->wake, .events = POLLIN};
}

static int serve_output(struct agent_session *s, unsigned channel, short events, char *err, size_t n)
{
    if (s->output[channel].len && (events & (POLLOUT | POLLERR | POLLHUP | POLLNVAL)))
        return write_output(s, channel, err, n);
    if (events & (POLLERR | POLLHUP | POLLNVAL))
        drop_output(s, channel);
    return 0;
}

static int step(struct agent_session *s, char *err, size_t n)
{
    struct pollfd p[N_POLLED];
    int r = s->exited ? 0 : stream_flush(&s->stream);

    if (r && r != -EAGAIN && r != -EPIPE) /* EPIPE: what came before that is still to be read */
        return client_failed(r, doing, err, n);
    if (stream_waiting(&s->stream) >
        UNREAD_MAX) /* each frame of ours is an answer to one of a guest that never reads */
        return client_failed(-EPROTO, doing, err, n);
    fill_poll(s, p);
    if (poll(p, N_POLLED, -1) < 0)
        return errno == EINTR ? 0 : error_sys(err, n, -errno, "cannot wait for the guest");
    r = 0;
    if (p[AT_WAKE].revents)
        r = s->e->woken(s->e->opaque, s);
    if (r < 0)
        return error_sys(err, n, r, "%s", doing);
    if (p[AT_STREAM].revents)
        r = read_stream(s, err, n);
    if (!r && p[AT_IN].revents && s->in_open)
        r = read_input(s);
    if (!r && p[AT_OUT].revents)
        r = serve_output(s, CHANNEL_STDOUT, p[AT_OUT].revents, err, n);
    if (!r && p[AT_ERR].revents)
        r = serve_output(s, CHANNEL_STDERR, p[AT_ERR].revents, err, n);
    return r;
}

int agent_exec(int fd, const struct agent_exec *e, struct agent_status *status, char *err, size_t n)
{
    struct agent_session s = {.e = e, .credit = CHANNEL_WINDOW, .in_open = e->in >= 0};
    int r = 0;

    stream_init(&s.stream, fd);
    s.output[CHANNEL_STDOUT] = (struct output){.fd = e->out, .credit = CHANNEL_WINDOW};
    s.output[CHANNEL_STDERR] = (struct output){.fd = e->err, .credit = CHANNEL_WINDOW};
    put_request(&s.stream, e);
    while (!r && !(s.exited && !s.output[CHANNEL_STDOUT].len && !s.output[CHANNEL_STDERR].len))
        r = step(&s, err, n);
    *status = s.status;
    stream_release(&s.stream);
    for (unsigned i = 0; i < N_CHANNELS; i++)
        free(s.output[i].data);
    return r;
}
