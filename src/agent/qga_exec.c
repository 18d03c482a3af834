/* QEMU's guest agent: commands.  They are started, and asked about until they have ended. */
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "agent/qga_int.h"
#include "base/error.h"
#include "base/file.h"

/* Between two questions; a short command is not kept waiting, a long one does not keep the guest busy. */
#define FIRST_MS 10
#define LAST_MS 500

/* All that `in` has, in Base64; the agent takes it in one piece. */
static int read_input(int in, char **encoded, char *err, size_t n)
{
    size_t len = 0, room = 65536;
    unsigned char *data = malloc(room);
    ssize_t got = 1;
    int r = data ? 0 : -ENOMEM;

    while (!r && got != 0) {
        unsigned char *larger = len == room ? realloc(data, 2 * room) : data;
        if (!larger) {
            r = -ENOMEM;
            break;
        }
        room = len == room ? 2 * room : room;
        data = larger;
        got = read(in, data + len, room - len);
        if (got < 0 && errno != EINTR)
            r = -errno;
        len += got > 0 ? (size_t)got : 0;
        if (len > QGA_INPUT_MAX)
            r = -EFBIG;
    }
    *encoded = r ? NULL : qga_encode(data, len);
    free(data);
    if (r == -EFBIG)
        return error_set(err, n, r, "QEMU's guest agent takes at most %u MiB of input", QGA_INPUT_MAX >> 20);
    return r || !*encoded ? error_sys(err, n, r ? r : -ENOMEM, "the command's input cannot be read") : 0;
}

static json_t *list_of(const char *const *words)
{
    json_t *list = json_array();

    for (; words && *words; words++)
        json_array_append_new(list, json_string(*words));
    return list;
}

/* The agent knows neither directories nor users: the guest's own tools do. */
static json_t *make_words(const struct qga_exec *e)
{
    json_t *words = json_array(), *argv = list_of(e->argv);

    if (e->user) {
        json_array_append_new(words, json_string("runuser"));
        json_array_append_new(words, json_string("-u"));
        json_array_append_new(words, json_string(e->user));
        json_array_append_new(words, json_string("--"));
    }
    if (e->directory) {
        static const char *const enter[] = {"sh", "-c", "cd \"$1\" && shift && exec \"$@\"", "sh", NULL};
        json_t *shell = list_of(enter);
        json_array_extend(words, shell);
        json_array_append_new(words, json_string(e->directory));
        json_decref(shell);
    }
    json_array_extend(words, argv);
    json_decref(argv);
    return words;
}

static int start(struct qga *q, const struct qga_exec *e, json_int_t *pid, char *err, size_t n)
{
    char *input = NULL;
    int r = e->in >= 0 ? read_input(e->in, &input, err, n) : 0;
    json_t *words = make_words(e), *result = NULL, *arguments = json_object();

    json_object_set(arguments, "path", json_array_get(words, 0));
    json_array_remove(words, 0);
    json_object_set_new(arguments, "arg", words);
    json_object_set_new(arguments, "capture-output", json_true());
    if (e->environment)
        json_object_set_new(arguments, "env", list_of(e->environment));
    if (input)
        json_object_set_new(arguments, "input-data", json_string(input));
    free(input);
    if (r)
        json_decref(arguments);
    else
        r = qga_call(q, "guest-exec", arguments, &result, err, n);
    *pid = json_integer_value(json_object_get(result, "pid"));
    json_decref(result);
    return r;
}

static int write_output(const json_t *result, const char *key, int to, char *err, size_t n)
{
    const char *text = json_string_value(json_object_get(result, key));
    size_t len = 0;

    if (!text || to < 0)
        return 0;
    unsigned char *data = qga_decode(text, &len);
    if (!data)
        return error_set(err, n, -EPROTO, "QEMU's guest agent does not keep to its protocol");
    int r = fd_write_all(to, data, len);
    free(data);
    return r && r != -EPIPE ? error_sys(err, n, r, "cannot write the command's output") : 0;
}

static int finish(const json_t *result, const struct qga_exec *e, struct agent_status *status, char *err, size_t n)
{
    json_int_t signal = json_integer_value(json_object_get(result, "signal"));
    json_int_t code = json_integer_value(json_object_get(result, "exitcode"));
    int r = write_output(result, "out-data", e->out, err, n);

    if (!r)
        r = write_output(result, "err-data", e->err, err, n);
    if (!r && (signal < 0 || signal > 127 || code < 0 || code > 255))
        r = error_set(err, n, -EPROTO, "QEMU's guest agent does not keep to its protocol");
    if (!r && (json_is_true(json_object_get(result, "out-truncated")) ||
               json_is_true(json_object_get(result, "err-truncated"))))
        r = error_set(err, n, -EFBIG,
                      "QEMU's guest agent has cut the command's output, of which it keeps so much only");
    status->kind = signal ? EXIT_SIGNAL : EXIT_STATUS;
    status->code = (int)(signal ? signal : code);
    return r;
}

/* Waits a while, or until the caller has something to say.  A signal is sent as the guest's kill(1) does it. */
static int rest(struct qga *q, const struct qga_exec *e, json_int_t pid, int ms, char *err, size_t n)
{
    struct pollfd p = {.fd = e->wake, .events = POLLIN};
    char number[16], target[32];

    if (poll(&p, 1, ms) <= 0)
        return 0;
    int signal = e->woken(e->opaque);
    if (signal < 0)
        return error_sys(err, n, signal, "running a command in the guest");
    if (signal == 0)
        return 0;
    snprintf(number, sizeof(number), "-%d", signal);
    snprintf(target, sizeof(target), "%lld", (long long)pid);
    /* One that is not there any more is no failure: the next question tells how it ended. */
    json_t *arguments = json_pack("{s:s, s:[s, s]}", "path", "kill", "arg", number, target);
    int r = qga_call(q, "guest-exec", arguments, NULL, err, n);
    return r == -EIO || r == -ENOENT ? 0 : r;
}

int qga_exec(struct qga *q, const struct qga_exec *e, struct agent_status *status, char *err, size_t n)
{
    json_int_t pid;
    bool ended = false;
    int r = start(q, e, &pid, err, n), ms = FIRST_MS;

    *status = (struct agent_status){0};
    if (r == -EIO || r == -ENOENT) { /* it is there, and could not start the command */
        status->kind = EXIT_FAILED;
        status->code = r == -ENOENT ? 127 : 126;
        snprintf(status->message, sizeof(status->message), "%s", err);
        return 0;
    }
    while (!r && !ended) {
        json_t *result = NULL;
        r = qga_call(q, "guest-exec-status", json_pack("{s:I}", "pid", pid), &result, err, n);
        ended = !r && json_is_true(json_object_get(result, "exited"));
        if (ended)
            r = finish(result, e, status, err, n);
        else if (!r)
            r = rest(q, e, pid, ms, err, n);
        json_decref(result);
        ms = ms * 2 < LAST_MS ? ms * 2 : LAST_MS;
    }
    return r;
}
