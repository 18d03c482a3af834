#include "agent/frame.h"

#include <errno.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

/* One read takes at most this much, so that one full frame and the next one's header fit. */
#define FILL (FRAME_MAX + 4096)

uint64_t get_le(const uint8_t *from, unsigned bytes)
{
    uint64_t value = 0;

    for (unsigned i = 0; i < bytes; i++)
        value |= (uint64_t)from[i] << (8 * i);
    return value;
}

void put_le(uint8_t *to, uint64_t value, unsigned bytes)
{
    for (unsigned i = 0; i < bytes; i++)
        to[i] = (uint8_t)(value >> (8 * i));
}

/* Room for len more bytes behind `end`. */
static int queue_reserve(struct frame_queue *q, size_t len)
{
    size_t used = q->end - q->start, room = q->room;

    if (q->data && q->room - q->end >= len)
        return 0;
    if (q->data && q->start && q->room - used >= len) {
        memmove(q->data, q->data + q->start, used);
    } else {
        while (!room || room - used < len)
            room = room ? 2 * room : len > 4096 ? len : 4096;
        uint8_t *larger = malloc(room);
        if (!larger)
            return -ENOMEM;
        if (q->data)
            memcpy(larger, q->data + q->start, used);
        free(q->data);
        q->data = larger;
        q->room = room;
    }
    q->start = 0;
    q->end = used;
    return 0;
}

static void queue_drop(struct frame_queue *q, size_t len)
{
    q->start += len;
    if (q->start == q->end)
        q->start = q->end = 0;
}

void stream_init(struct stream *s, int fd)
{
    *s = (struct stream){.fd = fd, .limit = FRAME_MAX};
}

void stream_release(struct stream *s)
{
    free(s->in.data);
    free(s->out.data);
    *s = (struct stream){.fd = -1};
}

int stream_fill(struct stream *s)
{
    if (queue_reserve(&s->in, FILL))
        return -ENOMEM;
    ssize_t n = recv(s->fd, s->in.data + s->in.end, s->in.room - s->in.end, MSG_DONTWAIT);
    if (n < 0)
        return errno == EINTR ? -EAGAIN : -errno;
    s->ended = n == 0;
    s->in.end += (size_t)n;
    return 0;
}

/* The last frame's bytes stay where they are until the next call: stream_next drops them only then. */
int stream_next(struct stream *s, struct frame *f)
{
    size_t waiting = s->in.end - s->in.start;

    if (waiting < FRAME_HEADER)
        return 0;
    const uint8_t *header = s->in.data + s->in.start;
    size_t len = get_le(header, 4);
    if (len > s->limit || get_le(header + 5, 3))
        return -EPROTO;
    if (waiting - FRAME_HEADER < len)
        return 0;
    *f = (struct frame){.type = header[4], .payload = header + FRAME_HEADER, .len = len};
    queue_drop(&s->in, FRAME_HEADER + len);
    return 1;
}

static int wait_for(int fd, short events)
{
    struct pollfd p = {.fd = fd, .events = events};

    while (poll(&p, 1, -1) < 0)
        if (errno != EINTR)
            return -errno;
    return 0;
}

int stream_receive(struct stream *s, struct frame *f)
{
    for (;;) {
        int r = stream_next(s, f);
        if (r)
            return r < 0 ? r : 0;
        if (s->ended)
            return -ECONNRESET;
        r = stream_fill(s);
        if (r == -EAGAIN)
            r = wait_for(s->fd, POLLIN);
        if (r)
            return r;
    }
}

uint8_t *stream_space(struct stream *s, size_t len)
{
    if (s->failed || queue_reserve(&s->out, len)) {
        s->failed = s->failed ? s->failed : -ENOMEM;
        return NULL;
    }
    return s->out.data + s->out.end;
}

void stream_used(struct stream *s, size_t len)
{
    s->out.end += len;
}

void stream_begin(struct stream *s, uint8_t type)
{
    uint8_t *header = stream_space(s, FRAME_HEADER);

    if (!header)
        return;
    /* As an offset from `start`: making room moves both. */
    s->frame = s->out.end - s->out.start;
    memset(header, 0, FRAME_HEADER);
    header[4] = type;
    stream_used(s, FRAME_HEADER);
}

void stream_end(struct stream *s)
{
    size_t len = s->out.end - s->out.start - s->frame - FRAME_HEADER;

    if (!s->failed && len > REQUEST_MAX)
        s->failed = -E2BIG;
    if (!s->failed)
        put_le(s->out.data + s->out.start + s->frame, len, 4);
}

void stream_cancel(struct stream *s)
{
    if (!s->failed)
        s->out.end = s->out.start + s->frame;
}

void stream_bytes(struct stream *s, uint16_t tag, const void *data, size_t len)
{
    uint8_t *to = len > REQUEST_MAX ? NULL : stream_space(s, FIELD_HEADER + len);

    if (!to) {
        s->failed = s->failed ? s->failed : -E2BIG;
        return;
    }
    put_le(to, tag, 2);
    put_le(to + 2, 0, 2);
    put_le(to + 4, len, 4);
    if (len)
        memcpy(to + FIELD_HEADER, data, len);
    stream_used(s, FIELD_HEADER + len);
}

void stream_text(struct stream *s, uint16_t tag, const char *text)
{
    if (text)
        stream_bytes(s, tag, text, strlen(text));
}

void stream_number(struct stream *s, uint16_t tag, uint64_t number)
{
    uint8_t bytes[8];

    put_le(bytes, number, 8);
    stream_bytes(s, tag, bytes, 8);
}

void stream_put(struct stream *s, uint8_t type, const void *data, size_t len)
{
    stream_begin(s, type);
    uint8_t *to = stream_space(s, len);
    if (to && len) {
        memcpy(to, data, len);
        stream_used(s, len);
    }
    stream_end(s);
}

void stream_put_number(struct stream *s, uint8_t type, uint16_t tag, uint64_t number)
{
    stream_begin(s, type);
    stream_number(s, tag, number);
    stream_end(s);
}

void stream_put_numbers(struct stream *s, uint8_t type, uint16_t tag, uint64_t number, uint16_t tag2, uint64_t number2)
{
    stream_begin(s, type);
    stream_number(s, tag, number);
    stream_number(s, tag2, number2);
    stream_end(s);
}

void stream_put_error(struct stream *s, int code, const char *format, ...)
{
    char message[1024];
    va_list ap;

    va_start(ap, format);
    vsnprintf(message, sizeof(message), format, ap);
    va_end(ap);
    stream_begin(s, FRAME_ERROR);
    stream_number(s, FIELD_CODE, (uint64_t)(code < 0 ? -code : code));
    stream_text(s, FIELD_MESSAGE, message);
    stream_end(s);
}

size_t stream_waiting(const struct stream *s)
{
    return s->out.end - s->out.start;
}

int stream_flush(struct stream *s)
{
    if (s->failed)
        return s->failed;
    while (stream_waiting(s)) {
        ssize_t n = send(s->fd, s->out.data + s->out.start, stream_waiting(s), MSG_DONTWAIT | MSG_NOSIGNAL);
        if (n < 0 && errno != EINTR)
            return errno == EWOULDBLOCK ? -EAGAIN : -errno;
        if (n > 0)
            queue_drop(&s->out, (size_t)n);
    }
    return 0;
}

int stream_send(struct stream *s)
{
    for (;;) {
        int r = stream_flush(s);
        if (r == -EAGAIN)
            r = wait_for(s->fd, POLLOUT);
        else
            return r;
        if (r)
            return r;
    }
}

void fields_begin(struct fields *i, const struct frame *f)
{
    *i = (struct fields){.at = f->payload, .end = f->payload + f->len};
}

bool fields_next(struct fields *i, struct field *field)
{
    size_t left = (size_t)(i->end - i->at);

    if (!left || i->bad)
        return false;
    size_t len = left < FIELD_HEADER ? 0 : get_le(i->at + 4, 4);
    if (left < FIELD_HEADER || len > left - FIELD_HEADER) {
        i->bad = true;
        return false;
    }
    *field = (struct field){.tag = (uint16_t)get_le(i->at, 2), .data = i->at + FIELD_HEADER, .len = len};
    i->at += FIELD_HEADER + len;
    return true;
}

uint64_t field_number(const struct field *f)
{
    return f->len == 8 ? get_le(f->data, 8) : 0;
}

char *field_text(const struct field *f)
{
    char *text = memchr(f->data, 0, f->len) ? NULL : malloc(f->len + 1);

    if (text) {
        memcpy(text, f->data, f->len);
        text[f->len] = 0;
    }
    return text;
}

static bool find(const struct frame *f, uint16_t tag, struct field *field)
{
    struct fields i;

    fields_begin(&i, f);
    while (fields_next(&i, field))
        if (field->tag == tag)
            return true;
    return false;
}

uint64_t frame_number(const struct frame *f, uint16_t tag, uint64_t otherwise)
{
    struct field field;

    return find(f, tag, &field) && field.len == 8 ? field_number(&field) : otherwise;
}

void frame_printable(const struct frame *f, uint16_t tag, char *out, size_t size)
{
    struct field field;
    size_t n = 0;

    if (find(f, tag, &field))
        for (; n < field.len && n + 1 < size; n++)
            out[n] = field.data[n] >= ' ' && field.data[n] < 0x7f ? (char)field.data[n] : '?';
    out[n] = 0;
}
