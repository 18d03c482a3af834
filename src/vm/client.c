#include "vm/client.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/error.h"
#include "base/file.h"
#include "host/loop.h"
#include "host/unix.h"
#include "vm/control.h"
#include "vm/json_line.h"

#define LINE_MOST (4u << 20) /* an answer with a whole log in it */

void client_adopt(struct client *c, int fd)
{
    *c = (struct client){.fd = fd, .events = json_array(), .patience_ms = CLIENT_ANSWER_MS};
}

void client_close(struct client *c)
{
    if (c->fd >= 0)
        close(c->fd);
    json_decref(c->events);
    *c = (struct client){.fd = -1};
}

static int not_running(const struct registry *r, const char *name, char *err, size_t n)
{
    struct vm_record record;
    int failed = registry_load(r, name, &record, err, n); /* has a better sentence when there is none such */

    if (failed)
        return failed;
    record_free(&record);
    return error_set(err, n, -ECONNREFUSED, "%s does not run; `guise start %s` starts it", name, name);
}

int client_open(struct client *c, const struct registry *r, const char *name, char *err, size_t n)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int failed = name_check(name, err, n) ? not_running(r, name, err, n) : 0;

    *c = (struct client){.fd = -1};
    if (!failed)
        failed = registry_socket(r, name, "ctl", address.sun_path, err, n);
    if (failed)
        return failed;
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return error_sys(err, n, -errno, "no socket can be made");
    if (connect(fd, (struct sockaddr *)&address, sizeof address)) {
        failed = errno == ENOENT || errno == ECONNREFUSED
                     ? not_running(r, name, err, n)
                     : error_sys(err, n, -errno, "cannot reach %s by %s", name, address.sun_path);
        close(fd);
        return failed;
    }
    client_adopt(c, fd);
    return 0;
}

/* Waits until something can be read.  0, -ETIMEDOUT; until_ns 0: for ever. */
static int wait_readable(int fd, uint64_t until_ns)
{
    for (;;) {
        int ms = -1;
        if (until_ns) {
            uint64_t now = clock_ns();
            ms = now < until_ns ? (int)((until_ns - now + 999999) / 1000000) : 0;
        }
        int ready = poll(&(struct pollfd){.fd = fd, .events = POLLIN}, 1, ms);
        if (ready > 0)
            return 0;
        if (ready == 0)
            return -ETIMEDOUT;
        if (errno != EINTR)
            return -errno;
    }
}

/* One line, and not a byte behind it: what follows may be a stream.  The caller frees it. */
static int read_line(int fd, uint64_t until_ns, char **line, size_t *len)
{
    char piece[4096], *text = NULL;
    size_t size = 0;
    bool whole = false;
    int failed = 0;

    while (!failed && !whole) {
        failed = wait_readable(fd, until_ns);
        ssize_t seen = failed ? 0 : recv(fd, piece, sizeof piece, MSG_PEEK);
        if (!failed && seen <= 0)
            failed = seen < 0 && errno == EINTR ? 0 : -ECONNRESET;
        if (failed || seen <= 0)
            continue;
        char *end = memchr(piece, '\n', (size_t)seen);
        size_t now = end ? (size_t)(end - piece) + 1 : (size_t)seen;
        char *larger = size + now > LINE_MOST ? NULL : realloc(text, size + now);
        if (!larger) {
            failed = -ENOMEM;
            break;
        }
        text = larger;
        ssize_t got = recv(fd, text + size, now, 0);
        if (got > 0)
            size += (size_t)got;
        whole = size && text[size - 1] == '\n';
    }
    if (failed) {
        free(text);
        return failed;
    }
    *line = text;
    *len = size - 1;
    return 0;
}

static int read_json(int fd, uint64_t until_ns, json_t **out)
{
    char *line;
    size_t len;
    int failed = read_line(fd, until_ns, &line, &len);

    if (failed)
        return failed;
    json_t *value = json_loadb(line, len, 0, NULL);
    free(line);
    if (!json_is_object(value)) {
        json_decref(value);
        return -EPROTO;
    }
    *out = value;
    return 0;
}

static int send_request(struct client *c, const char *command, json_t *arguments, const int *fds, unsigned n_fds)
{
    size_t len;
    char *line = json_line(json_pack("{s:I, s:s, s:o}", "id", ++c->next_id, "command", command, "arguments",
                                     arguments ? arguments : json_object()),
                           &len);
    ssize_t sent = line && n_fds ? unix_send_fds(c->fd, line, 1, fds, n_fds, 0) : 0; /* with the first byte */
    int failed = !line ? -ENOMEM : sent < 0 ? (int)sent : fd_write_all(c->fd, line + !!n_fds, len - !!n_fds);

    free(line);
    return failed == -EPIPE ? -ECONNRESET : failed;
}

static const struct {
    const char *code;
    int number;
} codes[] = {{"bad-request", -EINVAL}, {"not-found", -ENOENT}, {"wrong-state", -EBUSY}, {"unsupported", -ENOTSUP}};

static int take_error(json_t *error, char *err, size_t n)
{
    const char *code = json_string_value(json_object_get(error, "code"));
    const char *message = json_string_value(json_object_get(error, "message"));
    int number = -EIO;

    for (size_t i = 0; code && i < sizeof codes / sizeof *codes; i++)
        if (strcmp(codes[i].code, code) == 0)
            number = codes[i].number;
    return error_set(err, n, number, "%s", message && *message ? message : "the VM process gave no reason");
}

static int explain(int failed, char *err, size_t n)
{
    if (failed == -ECONNRESET)
        return error_set(err, n, failed, "the VM process has ended");
    if (failed == -ETIMEDOUT)
        return error_set(err, n, failed, "the VM process does not answer; `guise kill` ends it");
    return error_sys(err, n, failed, "talking to the VM process failed");
}

/* What comes is an event, to be kept, or the answer. */
static int read_answer(struct client *c, json_t **out)
{
    uint64_t until = clock_ns() + (uint64_t)c->patience_ms * 1000000;

    for (;;) {
        json_t *line;
        int failed = read_json(c->fd, until, &line);
        if (failed)
            return failed;
        if (!json_object_get(line, "event")) {
            *out = line;
            return 0;
        }
        json_array_append_new(c->events, line);
    }
}

int client_call(struct client *c, const char *command, json_t *arguments, json_t **result, char *err, size_t n)
{
    return client_call_fds(c, command, arguments, NULL, 0, result, err, n);
}

int client_call_fds(struct client *c, const char *command, json_t *arguments, const int *fds, unsigned n_fds,
                    json_t **result, char *err, size_t n)
{
    json_t *line = NULL;
    int failed = send_request(c, command, arguments, fds, n_fds);

    if (!failed)
        failed = read_answer(c, &line);
    if (failed)
        return explain(failed, err, n);
    json_t *value = json_object_get(line, "result");
    if (!value)
        failed = take_error(json_object_get(line, "error"), err, n);
    else if (result)
        *result = json_incref(value);
    json_decref(line);
    return failed;
}

int client_event(struct client *c, int timeout_ms, json_t **event)
{
    uint64_t until = timeout_ms < 0 ? 0 : clock_ns() + (uint64_t)timeout_ms * 1000000 + 1;

    if (json_array_size(c->events)) {
        *event = json_incref(json_array_get(c->events, 0));
        json_array_remove(c->events, 0);
        return 0;
    }
    return read_json(c->fd, until, event);
}

int client_stream(struct client *c, const char *command, json_t *arguments, char *err, size_t n)
{
    int fd = client_call(c, command, arguments, NULL, err, n);

    if (!fd) {
        fd = c->fd;
        c->fd = -1;
    }
    client_close(c);
    return fd;
}
