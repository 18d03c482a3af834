#include "cli/reach.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/error.h"
#include "base/path.h"
#include "cli/life.h"

/* So long may a guest take until its agent is there, between two signs of life. */
#define AGENT_WAIT_MS 120000

#define QGA_PORT "org.qemu.guest_agent.0=socket:"
#define QGA_SUFFIX ".qga"

static bool is_qga_path(const char *vm)
{
    size_t len = strlen(vm), suffix = strlen(QGA_SUFFIX);

    return strchr(vm, '/') && len > suffix && strcmp(vm + len - suffix, QGA_SUFFIX) == 0;
}

/* One line, and not a byte more: what follows is the stream's. */
static int read_line(int fd, char *line, size_t size)
{
    size_t len = 0;

    while (len + 1 < size) {
        ssize_t n = recv(fd, line + len, 1, 0);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return n < 0 ? -errno : -ECONNRESET;
        if (line[len] == '\n')
            break;
        len++;
    }
    line[len] = 0;
    return 0;
}

static int connect_unix(const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int fd;

    if (strlen(path) >= sizeof(address.sun_path))
        return -ENAMETOOLONG;
    memcpy(address.sun_path, path, strlen(path));
    fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd >= 0 && connect(fd, (const struct sockaddr *)&address, sizeof(address))) {
        int r = -errno;
        close(fd);
        return r;
    }
    return fd < 0 ? -errno : fd;
}

static int reach_socket(const char *path, unsigned port, char *err, size_t n)
{
    char line[64];
    int fd = connect_unix(path);

    if (fd < 0)
        return error_sys(err, n, fd, "cannot connect to %s", path);
    int len = snprintf(line, sizeof(line), "CONNECT %u\n", port);
    int r = send(fd, line, (size_t)len, MSG_NOSIGNAL) == len ? read_line(fd, line, sizeof(line)) : -errno;
    if (!r && strncmp(line, "OK ", 3) == 0)
        return fd;
    close(fd);
    if (r && r != -ECONNRESET)
        return error_sys(err, n, r, "cannot connect to %s", path);
    return error_set(err, n, -ECONNRESET, "nothing listens on port %u in the guest: its agent is not there, or not yet",
                     port);
}

static int connect_named(const struct registry *r, const char *vm, unsigned port, char *err, size_t n)
{
    struct client c;
    int failed = client_open(&c, r, vm, err, n);

    return failed ? failed : client_stream(&c, "connect", json_pack("{s:i}", "port", (int)port), err, n);
}

/* Will an agent come, and is not there yet?  Asks for events first, so that none is missed. */
static int agent_is_coming(struct client *c, bool *coming, char *err, size_t n)
{
    json_t *info;
    int failed = client_call(c, "events", NULL, NULL, err, n);

    if (!failed)
        failed = client_call(c, "info", NULL, &info, err, n);
    if (failed)
        return failed;
    const char *mode = json_string_value(json_object_get(json_object_get(info, "configuration"), "mode"));
    *coming = !json_is_true(json_object_get(info, "agent")) && mode && strcmp(mode, "kernel") != 0;
    json_decref(info);
    return 0;
}

/* What an event means to who waits: 0 nothing, 1 the agent is there, -errno with a sentence. */
static int judge_event(const json_t *event, char *err, size_t n)
{
    const char *name = json_string_value(json_object_get(event, "event"));
    const char *reason = json_string_value(json_object_get(json_object_get(event, "data"), "reason"));

    if (name && strcmp(name, "agent-ready") == 0)
        return 1;
    if (name && strcmp(name, "agent-failed") == 0)
        return error_set(err, n, -EIO, "the guest cannot start: %s", reason ? reason : "it does not say why");
    return 0;
}

/* A guest that has just been started is given the time to boot.  1: its agent is there now; 0: there will be none. */
static int wait_for_agent(const struct registry *r, const char *vm, char *err, size_t n)
{
    struct client c;
    bool coming = false;
    int failed = client_open(&c, r, vm, err, n), answer = 0;

    if (failed)
        return failed;
    answer = agent_is_coming(&c, &coming, err, n);
    while (!answer && coming) {
        json_t *event = NULL;
        failed = client_event(&c, AGENT_WAIT_MS, &event);
        if (failed)
            answer = error_set(err, n, failed,
                               failed == -ETIMEDOUT
                                   ? "%s has no agent yet: it is slow to boot, or stuck (see `guise logs %s`)"
                                   : "%s has ended (see `guise logs %s`)",
                               vm, vm);
        else
            answer = judge_event(event, err, n);
        json_decref(event);
    }
    client_close(&c);
    return answer;
}

int reach_guest(const char *vm, unsigned port, char *err, size_t n)
{
    struct registry r;
    char why[ERROR_SIZE];

    if (is_qga_path(vm))
        return error_set(err, n, -ENOTSUP, "%s leads to QEMU's guest agent, which cannot do this", vm);
    if (strchr(vm, '/'))
        return reach_socket(vm, port, err, n);
    int failed = registry_find(&r, err, n);
    if (failed)
        return failed;
    int fd = connect_named(&r, vm, port, err, n);
    if (fd >= 0 || fd == -ENOENT || fd == -ECONNREFUSED || port != AGENT_PORT)
        return fd;
    int ready = wait_for_agent(&r, vm, why, sizeof(why));
    if (ready < 0)
        return error_set(err, n, ready, "%s", why);
    return ready ? connect_named(&r, vm, port, err, n) : fd;
}

/* Relative paths of a record are from where it was made. */
static int connect_port(const struct vm_record *record)
{
    const struct option_list *ports = &record->settings.config.ports;
    char path[PATH_MAX], none[1];

    for (unsigned i = 0; i < ports->n; i++) {
        if (strncmp(ports->value[i], QGA_PORT, strlen(QGA_PORT)) != 0)
            continue;
        const char *word = ports->value[i] + strlen(QGA_PORT);
        if (path_format(path, sizeof(path), none, sizeof(none), "%s%s%s", *word == '/' ? "" : record->directory,
                        *word == '/' ? "" : "/", word))
            return -ENAMETOOLONG;
        return connect_unix(path);
    }
    return -ENOENT;
}

int reach_qga(const char *vm)
{
    struct registry r;
    struct vm_record record;
    char none[ERROR_SIZE];

    if (is_qga_path(vm))
        return connect_unix(vm);
    if (strchr(vm, '/'))
        return -ENOENT;
    int fd = registry_find(&r, none, sizeof(none));
    if (!fd)
        fd = registry_load(&r, vm, &record, none, sizeof(none));
    if (fd)
        return fd;
    fd = connect_port(&record);
    record_free(&record);
    return fd;
}
