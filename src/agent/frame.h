/*
 * Frames on a stream socket, from either end: a queue of bytes in each direction, which hold whole frames.
 *
 * Nothing that the peer says is believed: lengths are bounded before a byte is stored, and a frame is handed out
 * only when it is complete.  The queues grow to what is needed and are bounded by whoever uses them (agent/protocol.h:
 * windows).
 */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "agent/protocol.h"

struct frame_queue {
    uint8_t *data;
    size_t room, start, end; /* bytes [start, end) wait */
};

struct stream {
    int fd; /* the caller's */
    struct frame_queue in, out;
    size_t limit; /* the largest payload that is taken; FRAME_MAX unless the user sets another */
    bool ended;   /* the peer sends no more */
    size_t frame; /* where in `out` the frame that is being written begins */
    int failed;   /* kept until stream_flush */
};

struct frame {
    uint8_t type;
    const uint8_t *payload; /* inside the stream's queue: until the next call on that stream */
    size_t len;
};

void stream_init(struct stream *s, int fd);
void stream_release(struct stream *s); /* frees the queues; fd stays open */

/*
 * Takes what fd has now into the queue, with one read(2).  0; -EAGAIN; -ENOMEM; another -errno when the connection is
 * broken.  The end of the stream is no error: s->ended.
 */
int stream_fill(struct stream *s);

/* The next whole frame in the queue: 1, 0 when it is not whole yet, -EPROTO when the peer breaks the protocol. */
int stream_next(struct stream *s, struct frame *f);

/* Waits for a whole frame.  0, -ECONNRESET at the end of the stream, or another -errno. */
int stream_receive(struct stream *s, struct frame *f);
/* Waits until all is sent.  0 or -errno. */
int stream_send(struct stream *s);

/*
 * Appends a frame.  Failures (no memory, too long) are kept: the next stream_flush returns them.
 *
 * Between begin and end the payload is written field by field; or raw, into what stream_space gives, of which the
 * first stream_used bytes count.
 */
void stream_begin(struct stream *s, uint8_t type);
void stream_bytes(struct stream *s, uint16_t tag, const void *data, size_t len);
void stream_text(struct stream *s, uint16_t tag, const char *text); /* nothing when text is NULL */
void stream_number(struct stream *s, uint16_t tag, uint64_t number);
uint8_t *stream_space(struct stream *s, size_t len); /* NULL: no memory */
void stream_used(struct stream *s, size_t len);
void stream_end(struct stream *s);
void stream_cancel(struct stream *s); /* instead of end: there is no frame after all */

/* One frame with these raw bytes. */
void stream_put(struct stream *s, uint8_t type, const void *data, size_t len);
/* One frame with one number, and one with two. */
void stream_put_number(struct stream *s, uint8_t type, uint16_t tag, uint64_t number);
void stream_put_numbers(struct stream *s, uint8_t type, uint16_t tag, uint64_t number, uint16_t tag2, uint64_t number2);
void stream_put_error(struct stream *s, int code, const char *format, ...) __attribute__((format(printf, 3, 4)));

/* Sends what waits, as far as fd takes it.  0: all is sent; -EAGAIN: not all; another -errno: it never will be. */
int stream_flush(struct stream *s);
size_t stream_waiting(const struct stream *s); /* bytes to send */

/* Walks a payload's fields.  True and *tag, *data, *len; false at the end, and then *bad tells whether the payload was
 * malformed. */
struct fields {
    const uint8_t *at, *end;
    bool bad;
};
struct field {
    uint16_t tag;
    const uint8_t *data;
    size_t len;
};
void fields_begin(struct fields *i, const struct frame *f);
bool fields_next(struct fields *i, struct field *field);

/* The value as a number; 0 when it has not 8 bytes. */
uint64_t field_number(const struct field *f);
/* The value as a new string; NULL without memory, or when there is a NUL in it. */
char *field_text(const struct field *f);
/* The first field with this tag as a number; `otherwise` if there is none. */
uint64_t frame_number(const struct frame *f, uint16_t tag, uint64_t otherwise);
/* The first field with this tag into out[size], cut to fit, what is not printable ASCII replaced by '?': fit for a
 * terminal, whoever sent it.  Empty if there is none. */
void frame_printable(const struct frame *f, uint16_t tag, char *out, size_t size);

/* Little-endian integers at any address. */
uint64_t get_le(const uint8_t *from, unsigned bytes);
void put_le(uint8_t *to, uint64_t value, unsigned bytes);
