/* The requests that are answered by one frame. */
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "agent/client_int.h"
#include "base/error.h"

int client_failed(int code, const char *doing, char *err, size_t n)
{
    if (code == -ECONNRESET || code == -EPIPE || code == -ENOTCONN)
        return error_set(err, n, -ECONNRESET, "%s: the connection to the guest's agent has ended", doing);
    if (code == -EPROTO)
        return error_set(err, n, code, "%s: the guest's agent does not keep to the protocol", doing);
    return error_sys(err, n, code, "%s", doing);
}

int client_refused(const struct frame *f, char *err, size_t n)
{
    char message[ERROR_SIZE];
    uint64_t code = frame_number(f, FIELD_CODE, EIO);

    frame_printable(f, FIELD_MESSAGE, message, sizeof(message));
    return error_set(err, n, code > 0 && code < 4096 ? -(int)code : -EIO, "%s",
                     message[0] ? message : "the guest's agent refuses, and gives no reason");
}

/* Sends what has been written and waits for OK, which stays in *f. */
static int ask(struct stream *s, struct frame *f, const char *doing, char *err, size_t n)
{
    int r = stream_send(s);

    if (!r)
        r = stream_receive(s, f);
    if (!r && f->type == FRAME_ERROR)
        return client_refused(f, err, n);
    if (!r && f->type != FRAME_OK)
        r = -EPROTO;
    return r ? client_failed(r, doing, err, n) : 0;
}

int agent_power(int fd, enum power_action action, char *err, size_t n)
{
    struct stream s;
    struct frame f;

    stream_init(&s, fd);
    stream_put_number(&s, FRAME_POWER, FIELD_ACTION, action);
    int r = ask(&s, &f, "asking the guest to end", err, n);
    stream_release(&s);
    return r;
}

int agent_identify(int fd, const struct agent_identity *identity, char *err, size_t n)
{
    struct stream s;
    struct frame f;

    stream_init(&s, fd);
    stream_begin(&s, FRAME_IDENTITY);
    stream_text(&s, FIELD_HOSTNAME, identity->hostname);
    if (identity->seed)
        stream_bytes(&s, FIELD_SEED, identity->seed, identity->seed_len);
    if (identity->time_ns)
        stream_number(&s, FIELD_TIME, identity->time_ns);
    stream_end(&s);
    int r = ask(&s, &f, "giving the guest its identity", err, n);
    stream_release(&s);
    return r;
}

/* "KEY=VALUE" of a guest, printable. */
static void one_fact(const struct field *field, void (*fact)(void *opaque, const char *key, const char *value),
                     void *opaque)
{
    const struct frame alone = {.payload = field->data - FIELD_HEADER, .len = FIELD_HEADER + field->len};
    char text[1024];

    frame_printable(&alone, FIELD_INFO, text, sizeof(text));
    char *value = strchr(text, '=');
    if (value && value > text) {
        *value++ = 0;
        fact(opaque, text, value);
    }
}

int agent_info(int fd, void (*fact)(void *opaque, const char *key, const char *value), void *opaque, char *err,
               size_t n)
{
    struct stream s;
    struct frame f;
    struct fields i;
    struct field field;

    stream_init(&s, fd);
    stream_put(&s, FRAME_INFO, NULL, 0);
    int r = ask(&s, &f, "asking the guest about itself", err, n);
    if (!r) {
        fields_begin(&i, &f);
        while (fields_next(&i, &field))
            if (field.tag == FIELD_INFO)
                one_fact(&field, fact, opaque);
        if (i.bad)
            r = client_failed(-EPROTO, "asking the guest about itself", err, n);
    }
    stream_release(&s);
    return r;
}

static int read_exactly(int fd, uint8_t *to, size_t len)
{
    for (size_t done = 0; done < len;) {
        ssize_t now = recv(fd, to + done, len - done, MSG_WAITALL);
        if (now == 0)
            return -ECONNRESET;
        if (now < 0 && errno == EAGAIN) {
            struct pollfd p = {.fd = fd, .events = POLLIN};
            poll(&p, 1, -1);
        } else if (now < 0 && errno != EINTR) {
            return -errno;
        }
        if (now > 0)
            done += (size_t)now;
    }
    return 0;
}

/* The answer alone and not a byte more: what follows it is the tunnel's. */
static int tunnel_answer(int fd, uint8_t *buffer, struct frame *f)
{
    int r = read_exactly(fd, buffer, FRAME_HEADER);

    if (r)
        return r;
    size_t len = get_le(buffer, 4);
    if (len > FRAME_MAX)
        return -EPROTO;
    *f = (struct frame){.type = buffer[4], .payload = buffer + FRAME_HEADER, .len = len};
    return read_exactly(fd, buffer + FRAME_HEADER, len);
}

int agent_tunnel(int fd, unsigned port, const char *path, unsigned patience_ms, char *err, size_t n)
{
    uint8_t *buffer = malloc(FRAME_HEADER + FRAME_MAX);
    struct stream s;
    struct frame f;

    if (!buffer)
        return error_sys(err, n, -ENOMEM, "connecting in the guest");
    stream_init(&s, fd);
    stream_begin(&s, FRAME_TUNNEL);
    if (path)
        stream_text(&s, FIELD_PATH, path);
    else
        stream_number(&s, FIELD_PORT, port);
    stream_number(&s, FIELD_PATIENCE, patience_ms);
    stream_end(&s);
    int r = stream_send(&s);
    stream_release(&s);
    if (!r)
        r = tunnel_answer(fd, buffer, &f);
    if (!r && f.type == FRAME_ERROR)
        r = client_refused(&f, err, n);
    else if (r || f.type != FRAME_OK)
        r = client_failed(r ? r : -EPROTO, "connecting in the guest", err, n);
    free(buffer);
    return r;
}

int agent_hello_parse(const void *data, size_t len, struct agent_hello *hello)
{
    const uint8_t *bytes = data;
    char mode[16];

    if (len < FRAME_HEADER)
        return 0;
    size_t size = get_le(bytes, 4);
    if (size > AGENT_HELLO_MAX - FRAME_HEADER || bytes[4] != FRAME_HELLO || get_le(bytes + 5, 3))
        return -EPROTO;
    if (len - FRAME_HEADER < size)
        return 0;
    const struct frame f = {.type = bytes[4], .payload = bytes + FRAME_HEADER, .len = size};
    *hello = (struct agent_hello){.version = (unsigned)frame_number(&f, FIELD_VERSION, 0),
                                  .uptime_ms = frame_number(&f, FIELD_UPTIME, 0)};
    frame_printable(&f, FIELD_MODE, mode, sizeof(mode));
    hello->boot_mode = strcmp(mode, "boot") == 0;
    frame_printable(&f, FIELD_MESSAGE, hello->failure, sizeof(hello->failure));
    return (int)(FRAME_HEADER + size);
}
