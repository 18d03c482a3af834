#include "backends/chr_int.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "backends/socket.h"
#include "backends/terminal.h"
#include "base/error.h"
#include "host/loop.h"

/* A paste into a terminal is kept whole up to this, so that Ctrl-] is seen behind it. */
#define TERMINAL_INPUT_BYTES (1u << 20)
#define LOG_BYTES (1u << 20)

static int open_output(struct chr *chr, int fd, const char *name, char *err, size_t n)
{
    int r = output_create(&chr->output, fd, name, chr->loop);

    return r ? error_sys(err, n, r, "the thread that writes to %s cannot be started", name) : 0;
}

static int open_null(struct chr *chr, const char *path, char *err, size_t n)
{
    return 0;
}

static int open_file(struct chr *chr, const char *path, char *err, size_t n)
{
    chr->file = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NOCTTY, 0666);
    if (chr->file < 0)
        return error_sys(err, n, -errno, "the file %s cannot be written", path);
    return open_output(chr, chr->file, path, err, n);
}

static void client_changed(void *opaque, bool present)
{
    struct chr *chr = opaque;

    if (chr->presence)
        chr->presence(chr->presence_opaque, present);
}

static int open_log(struct chr *chr, const char *path, char *err, size_t n)
{
    int r = logfile_open(&chr->log, path, LOG_BYTES, err, n);

    if (!r && (r = output_create_log(&chr->output, &chr->log, path, chr->loop)))
        error_sys(err, n, r, "the thread that writes to %s cannot be started", path);
    return r;
}

static int open_socket(struct chr *chr, const char *path, char *err, size_t n)
{
    int r = open_output(chr, -1, path, err, n);

    return r ? r : socket_open(&chr->server, path, chr->loop, &chr->input, chr->output, client_changed, chr, err, n);
}

static void on_leave(void *opaque)
{
    struct chr *chr = opaque;

    chr->user_left = true;
    loop_stop(chr->loop);
}

static void on_foreground(void *opaque, bool present)
{
    struct chr *chr = opaque;

    input_pause(&chr->input, !present);
}

static int open_stdio(struct chr *chr, const char *path, char *err, size_t n)
{
    const struct terminal_events events = {on_leave, on_foreground, chr};
    int r = open_output(chr, STDOUT_FILENO, "standard output", err, n);

    if (r)
        return r;
    if (isatty(STDIN_FILENO)) {
        r = terminal_open(&chr->terminal, STDIN_FILENO, chr->loop, &events, err, n);
        if (r)
            return r;
        chr->input.hungry = true;
        chr->input.filter = terminal_filter;
        chr->input.opaque = chr->terminal;
    }
    input_attach(&chr->input, STDIN_FILENO);
    return 0;
}

static const struct chr_kind kinds[] = {
    {"stdio", false, TERMINAL_INPUT_BYTES, open_stdio},
    {"null", false, INPUT_CHUNK, open_null},
    {"file", true, INPUT_CHUNK, open_file},
    {"log", true, INPUT_CHUNK, open_log},
    {"socket", true, 4 * INPUT_CHUNK, open_socket},
};

/* Finds the kind; *path is what follows the colon, or NULL. */
static const struct chr_kind *find_kind(const char *spec, const char **path)
{
    size_t len = strcspn(spec, ":");

    *path = spec[len] ? spec + len + 1 : NULL;
    for (size_t i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++)
        if (strlen(kinds[i].name) == len && memcmp(kinds[i].name, spec, len) == 0)
            return (kinds[i].has_path ? *path && **path : !*path) ? &kinds[i] : NULL;
    return NULL;
}

int chr_check(const char *spec, char *err, size_t n)
{
    const char *path;

    if (find_kind(spec, &path))
        return 0;
    return error_set(err, n, -EINVAL, "'%s' is not one of stdio, null, file:PATH, log:PATH, socket:PATH", spec);
}

const char *chr_socket(const char *spec)
{
    const char *path;
    const struct chr_kind *kind = find_kind(spec, &path);

    return kind && kind->open == open_socket ? path : NULL;
}

int chr_open(struct chr **out, const char *spec, struct loop *loop, char *err, size_t n)
{
    const char *path;
    const struct chr_kind *kind = find_kind(spec, &path);
    struct chr *chr;
    int r;

    if (!kind)
        return chr_check(spec, err, n);
    chr = calloc(1, sizeof(*chr));
    if (!chr)
        return error_sys(err, n, -ENOMEM, "the console cannot be set up");
    chr->loop = loop;
    chr->file = chr->space_fd = -1;
    chr->log = (struct logfile){.fd = -1, .old = -1};
    r = input_init(&chr->input, loop, kind->input_bytes);
    if (r)
        error_sys(err, n, r, "the console cannot be set up");
    else
        r = kind->open(chr, path, err, n);
    if (r) {
        chr_close(chr);
        return r;
    }
    *out = chr;
    return 0;
}

void chr_write(struct chr *chr, const void *data, size_t len)
{
    if (chr->output)
        output_write(chr->output, data, len);
}

size_t chr_try_write(struct chr *chr, const void *data, size_t len)
{
    return chr->output ? output_try(chr->output, data, len) : len;
}

static void on_space(void *opaque, uint32_t events)
{
    struct chr *chr = opaque;
    uint64_t count;

    if (read(chr->space_fd, &count, sizeof count) == sizeof count)
        chr->space(chr->space_opaque);
}

int chr_set_space(struct chr *chr, void (*fn)(void *opaque), void *opaque)
{
    chr->space = fn;
    chr->space_opaque = opaque;
    if (!chr->output || chr->space_fd >= 0)
        return 0;
    chr->space_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    int r = chr->space_fd < 0 ? -errno : loop_fd_add(chr->loop, chr->space_fd, EPOLLIN, on_space, chr);
    if (!r)
        output_set_space(chr->output, chr->space_fd);
    return r;
}

bool chr_is_present(const struct chr *chr)
{
    return !chr->server || socket_has_client(chr->server);
}

void chr_set_presence(struct chr *chr, void (*fn)(void *opaque, bool present), void *opaque)
{
    chr->presence = fn;
    chr->presence_opaque = opaque;
}

void chr_set_input(struct chr *chr, size_t (*fn)(void *opaque, const void *data, size_t len), void *opaque)
{
    input_set_sink(&chr->input, fn, opaque);
}

void chr_resume_input(struct chr *chr)
{
    input_resume(&chr->input);
}

bool chr_user_left(const struct chr *chr)
{
    return chr->user_left;
}

bool chr_is_terminal(const struct chr *chr)
{
    return chr->terminal != NULL;
}

size_t chr_tail(const struct chr *chr, char *buf, size_t n)
{
    struct stat st;

    if (chr->log.fd < 0 || fstat(chr->log.fd, &st))
        return 0;
    off_t from = (uint64_t)st.st_size > n ? st.st_size - (off_t)n : 0;
    ssize_t got = pread(chr->log.fd, buf, n, from);
    return got > 0 ? (size_t)got : 0;
}

void chr_drain(struct chr *chr)
{
    if (chr->output)
        output_flush(chr->output);
}

void chr_close(struct chr *chr)
{
    if (!chr)
        return;
    chr_drain(chr);
    chr->presence = NULL;
    socket_close(chr->server);
    input_free(&chr->input);
    output_destroy(chr->output);
    terminal_close(chr->terminal);
    if (chr->space_fd >= 0) {
        loop_fd_del(chr->loop, chr->space_fd);
        close(chr->space_fd);
    }
    if (chr->file >= 0)
        close(chr->file);
    logfile_close(&chr->log);
    free(chr);
}
