/* QEMU's guest agent: lines, answers, and the small commands. */
#include "agent/qga.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/types.h>
#include <time.h>
#include <unistd.h>

#include "agent/qga_int.h"
#include "base/error.h"
#include "base/file.h"
#include "base/openssl_library.h"

/* The agent gives at most 16 MiB of each output of a command: two of those in Base64. */
#define LINE_MAX_BYTES (48u << 20)
#define HELLO_MS 5000
#define ANSWER_MS 60000
#define FILE_PIECE (48u << 10) /* the agent gives no more at once; a multiple of three */

static int64_t now_ms(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

char *qga_encode(const void *data, size_t len)
{
    char *text = malloc(len / 3 * 4 + 8);

    if (text)
        text[openssl.EVP_EncodeBlock((unsigned char *)text, data, (int)len)] = 0;
    return text;
}

unsigned char *qga_decode(const char *text, size_t *len)
{
    size_t n = strlen(text);
    unsigned char *data = n % 4 == 0 && n <= LINE_MAX_BYTES ? malloc(n / 4 * 3 + 4) : NULL;
    int decoded = data ? openssl.EVP_DecodeBlock(data, (const unsigned char *)text, (int)n) : -1;

    if (decoded < 0) {
        free(data);
        return NULL;
    }
    *len = (size_t)decoded - (n && text[n - 1] == '=') - (n > 1 && text[n - 2] == '=');
    return data;
}

/* Room for what comes next. */
static int make_room(struct qga *q)
{
    if (q->len < q->room)
        return 0;
    size_t room = q->room ? 2 * q->room : 65536;
    char *larger = q->room >= LINE_MAX_BYTES ? NULL : realloc(q->line, room);
    if (!larger)
        return q->room >= LINE_MAX_BYTES ? -EPROTO : -ENOMEM;
    q->line = larger;
    q->room = room;
    return 0;
}

/* One line, without its end, in new memory; `until` is a time. */
static int read_line(struct qga *q, int64_t until, char **line)
{
    size_t seen = 0;

    for (;;) {
        char *end = memchr(q->line + seen, '\n', q->len - seen);
        if (end) {
            *end = 0;
            *line = strdup(q->line);
            q->len -= (size_t)(end + 1 - q->line);
            memmove(q->line, end + 1, q->len);
            return *line ? 0 : -ENOMEM;
        }
        seen = q->len;
        struct pollfd p = {.fd = q->fd, .events = POLLIN};
        int64_t left = until - now_ms();
        if (left <= 0 || poll(&p, 1, (int)left) == 0)
            return -ETIMEDOUT;
        int r = make_room(q);
        if (r)
            return r;
        ssize_t got = recv(q->fd, q->line + q->len, q->room - q->len, MSG_DONTWAIT);
        if (got == 0)
            return -ECONNRESET;
        if (got < 0 && errno != EAGAIN && errno != EINTR)
            return -errno;
        q->len += got > 0 ? (size_t)got : 0;
    }
}

static int failed(int r, char *err, size_t n)
{
    if (r == -ETIMEDOUT)
        return error_set(err, n, r, "QEMU's guest agent does not answer: is it installed and running in the guest?");
    if (r == -EPROTO)
        return error_set(err, n, r, "QEMU's guest agent does not keep to its protocol");
    return error_sys(err, n, r, "QEMU's guest agent cannot be asked");
}

/* The agent's own error, fit for a terminal. */
static int refused(const json_t *error, char *err, size_t n)
{
    const char *desc = json_string_value(json_object_get(error, "desc"));
    char text[ERROR_SIZE];
    size_t i = 0;

    for (; desc && desc[i] && i + 1 < sizeof(text); i++)
        text[i] = desc[i] >= ' ' && desc[i] < 0x7f ? desc[i] : '?';
    text[i] = 0;
    return error_set(err, n, strstr(text, "No such file") ? -ENOENT : -EIO, "QEMU's guest agent refuses: %s",
                     i ? text : "it does not say why");
}

static int send_all(int fd, const char *text, size_t len)
{
    for (size_t done = 0; done < len;) {
        ssize_t now = send(fd, text + done, len - done, MSG_NOSIGNAL);
        if (now < 0 && errno != EINTR && errno != EAGAIN)
            return -errno;
        struct pollfd p = {.fd = fd, .events = POLLOUT};
        if (now < 0)
            poll(&p, 1, -1);
        else
            done += (size_t)now;
    }
    return 0;
}

int qga_send(struct qga *q, const char *command, json_t *arguments, char *err, size_t n)
{
    json_t *request = json_pack("{s:s, s:o*}", "execute", command, "arguments", arguments);
    char *text = request ? json_dumps(request, JSON_COMPACT) : NULL;
    int r = text ? send_all(q->fd, text, strlen(text)) : -ENOMEM;

    if (!r)
        r = send_all(q->fd, "\n", 1);
    free(text);
    json_decref(request);
    return r ? failed(r, err, n) : 0;
}

int qga_call(struct qga *q, const char *command, json_t *arguments, json_t **result, char *err, size_t n)
{
    char *line = NULL;
    int r = qga_send(q, command, arguments, err, n);

    if (r)
        return r;
    r = read_line(q, now_ms() + ANSWER_MS, &line);
    json_t *answer = r ? NULL : json_loads(line, 0, NULL), *error = json_object_get(answer, "error");
    free(line);
    if (r)
        return failed(r, err, n);
    if (error)
        r = refused(error, err, n);
    else if (!json_object_get(answer, "return"))
        r = failed(-EPROTO, err, n);
    else if (result)
        *result = json_incref(json_object_get(answer, "return"));
    json_decref(answer);
    return r;
}

/*
 * guest-sync-delimited: the byte 0xff makes the agent forget a half line of somebody before us, and it puts one before
 * its answer.  Answers of earlier clients may come first.
 */
int qga_open(struct qga *q, int fd, char *err, size_t n)
{
    int64_t until = now_ms() + HELLO_MS;
    json_int_t id = (json_int_t)(now_ms() % 1000000007) * 1000 + getpid() % 1000;
    bool synced = false;
    int r;

    *q = (struct qga){.fd = fd};
    r = openssl_load(err, n);
    if (r)
        return r;
    r = make_room(q);
    if (!r)
        r = send_all(fd, "\xff", 1);
    if (r)
        return failed(r, err, n);
    r = qga_send(q, "guest-sync-delimited", json_pack("{s:I}", "id", id), err, n);
    while (!r && !synced) {
        char *line = NULL;
        r = read_line(q, until, &line);
        const char *mark = r ? NULL : strrchr(line, 0xff);
        json_t *answer = mark ? json_loads(mark + 1, 0, NULL) : NULL;
        synced = json_integer_value(json_object_get(answer, "return")) == id;
        json_decref(answer);
        free(line);
        if (r)
            failed(r, err, n);
    }
    if (r)
        qga_close(q);
    return r;
}

void qga_close(struct qga *q)
{
    free(q->line);
    q->line = NULL;
}

static int open_file(struct qga *q, const char *path, const char *mode, json_int_t *handle, char *err, size_t n)
{
    json_t *result = NULL;
    int r = qga_call(q, "guest-file-open", json_pack("{s:s, s:s}", "path", path, "mode", mode), &result, err, n);

    *handle = json_integer_value(result);
    json_decref(result);
    return r;
}

static int close_file(struct qga *q, json_int_t handle, int r, char *err, size_t n)
{
    char ignored[ERROR_SIZE];
    int closed = qga_call(q, "guest-file-close", json_pack("{s:I}", "handle", handle), NULL, r ? ignored : err,
                          r ? sizeof(ignored) : n);

    return r ? r : closed;
}

static int read_piece(struct qga *q, json_int_t handle, int to, bool *end, char *err, size_t n)
{
    json_t *result = NULL;
    size_t len = 0;
    int r = qga_call(q, "guest-file-read", json_pack("{s:I, s:I}", "handle", handle, "count", (json_int_t)FILE_PIECE),
                     &result, err, n);

    if (r)
        return r;
    const char *text = json_string_value(json_object_get(result, "buf-b64"));
    unsigned char *data = text ? qga_decode(text, &len) : NULL;
    /* Nothing and no end would go on for ever. */
    *end = json_is_true(json_object_get(result, "eof"));
    if (!data || (!len && !*end))
        r = failed(-EPROTO, err, n);
    else if ((r = fd_write_all(to, data, len)) != 0)
        error_sys(err, n, r, "cannot write what is copied");
    free(data);
    json_decref(result);
    return r;
}

int qga_read_file(struct qga *q, const char *path, int to, char *err, size_t n)
{
    json_int_t handle;
    bool end = false;
    int r = open_file(q, path, "r", &handle, err, n);

    if (r)
        return r;
    while (!r && !end)
        r = read_piece(q, handle, to, &end, err, n);
    return close_file(q, handle, r, err, n);
}

static int write_piece(struct qga *q, json_int_t handle, const unsigned char *data, size_t len, char *err, size_t n)
{
    while (len) {
        char *text = qga_encode(data, len);
        json_t *result = NULL;
        int r = text ? qga_call(q, "guest-file-write", json_pack("{s:I, s:s}", "handle", handle, "buf-b64", text),
                                &result, err, n)
                     : error_sys(err, n, -ENOMEM, "cannot copy");
        json_int_t count = json_integer_value(json_object_get(result, "count"));
        json_decref(result);
        free(text);
        if (!r && (count <= 0 || (uint64_t)count > len))
            r = failed(-EPROTO, err, n);
        if (r)
            return r;
        data += count;
        len -= (size_t)count;
    }
    return 0;
}

int qga_write_file(struct qga *q, int from, const char *path, char *err, size_t n)
{
    unsigned char piece[FILE_PIECE];
    json_int_t handle;
    ssize_t got = 0;
    int r = open_file(q, path, "w", &handle, err, n);

    if (r)
        return r;
    do {
        got = read(from, piece, sizeof(piece));
        if (got < 0 && errno != EINTR)
            r = error_sys(err, n, -errno, "cannot read what is to be copied");
        if (got > 0)
            r = write_piece(q, handle, piece, (size_t)got, err, n);
    } while (!r && got != 0);
    return close_file(q, handle, r, err, n);
}

/* It answers only when it fails. */
int qga_power(struct qga *q, enum power_action action, char *err, size_t n)
{
    const char *mode = action == POWER_REBOOT ? "reboot" : "powerdown";
    char *line = NULL;
    int r = qga_send(q, "guest-shutdown", json_pack("{s:s}", "mode", mode), err, n);

    if (r || read_line(q, now_ms() + 1000, &line))
        return r;
    json_t *answer = json_loads(line, 0, NULL), *error = json_object_get(answer, "error");
    if (error)
        r = refused(error, err, n);
    json_decref(answer);
    free(line);
    return r;
}
