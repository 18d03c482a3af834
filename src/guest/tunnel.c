/* TUNNEL: from the stream to a port or socket of the guest, bytes both ways, each direction with an end of its own. */
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "agent/relay.h"
#include "guest/guest.h"

#define SSH_PORT 22
#define SSHD "/usr/sbin/sshd"
#define TRY_AGAIN_MS 200

static int connect_to(int family, const struct sockaddr *address, socklen_t len)
{
    int fd = socket(family, SOCK_STREAM | SOCK_CLOEXEC, 0);

    if (fd < 0)
        return -errno;
    if (connect(fd, address, len)) {
        int r = -errno;
        close(fd);
        return r;
    }
    return fd;
}

/* Servers may listen on either loopback address. */
static int connect_port(uint64_t port)
{
    const struct sockaddr_in four = {
        .sin_family = AF_INET, .sin_port = htons((uint16_t)port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    const struct sockaddr_in6 six = {
        .sin6_family = AF_INET6, .sin6_port = htons((uint16_t)port), .sin6_addr = IN6ADDR_LOOPBACK_INIT};

    if (port < 1 || port > 65535)
        return -EINVAL;
    int fd = connect_to(AF_INET, (const struct sockaddr *)&four, sizeof(four));
    if (fd == -ECONNREFUSED) {
        int second = connect_to(AF_INET6, (const struct sockaddr *)&six, sizeof(six));
        fd = second >= 0 ? second : fd;
    }
    return fd;
}

static int connect_path(const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};

    if (!path || strlen(path) >= sizeof(address.sun_path))
        return -EINVAL;
    memcpy(address.sun_path, path, strlen(path));
    return connect_to(AF_UNIX, (const struct sockaddr *)&address, sizeof(address));
}

/* In command mode nothing starts the image's ssh server: it can serve one connection by itself. */
static int start_sshd(struct guest *g)
{
    int ends[2];

    if (!g->inside || g->config.mode != GUEST_COMMAND || access(SSHD, X_OK))
        return -ECONNREFUSED;
    setup_keys(&g->config);
    setup_host_keys(false);
    mkdir("/run/sshd", 0755);
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends))
        return -errno;
    pid_t pid = fork();
    if (pid == 0) {
        signal(SIGPIPE, SIG_DFL);
        dup2(ends[1], 0);
        dup2(ends[1], 1);
        execl(SSHD, SSHD, "-i", NULL);
        _exit(127);
    }
    close(ends[1]);
    if (pid < 0) {
        close(ends[0]);
        return -EAGAIN;
    }
    return ends[0];
}

/* Nobody is there, but may come: a server that is being started, a loopback device that is not up yet. */
static bool may_change(int r)
{
    return r == -ECONNREFUSED || r == -ENETUNREACH || r == -ENOENT;
}

static int try_target(struct guest *g, const char *path, uint64_t port)
{
    int fd = path ? connect_path(path) : connect_port(port);

    return fd == -ECONNREFUSED && port == SSH_PORT ? start_sshd(g) : fd;
}

/* An image without an ssh server will never have one by waiting. */
static bool is_worth_waiting(const char *path, uint64_t port)
{
    return path || port != SSH_PORT || access(SSHD, X_OK) == 0;
}

/* Until it is there, patience is at its end, or the host does not wait any more. */
static int open_target(struct guest *g, struct stream *s, const char *path, uint64_t port, uint64_t patience_ms)
{
    struct pollfd host = {.fd = s->fd, .events = POLLIN};
    int fd = try_target(g, path, port);

    for (uint64_t waited = 0; may_change(fd) && waited < patience_ms && is_worth_waiting(path, port);
         waited += TRY_AGAIN_MS) {
        if (poll(&host, 1, TRY_AGAIN_MS) != 0)
            break;
        fd = try_target(g, path, port);
    }
    return fd;
}

void tunnel_serve(struct guest *g, struct stream *s, const struct frame *request)
{
    uint64_t port = frame_number(request, FIELD_PORT, 0), patience_ms = frame_number(request, FIELD_PATIENCE, 0);
    char *path = NULL;
    struct fields i;
    struct field field;

    fields_begin(&i, request);
    while (fields_next(&i, &field))
        if (field.tag == FIELD_PATH && !path)
            path = field_text(&field);
    int fd = open_target(g, s, path, port, patience_ms);
    free(path);
    if (fd == -ECONNREFUSED && port == SSH_PORT && access(SSHD, X_OK))
        stream_put_error(s, fd, "the guest has no ssh server: install openssh-server in it, or use `guise shell`");
    else if (fd < 0)
        stream_put_error(s, fd, "the guest cannot connect there: %s", strerror(-fd));
    if (fd < 0)
        return;
    stream_put(s, FRAME_OK, NULL, 0);
    if (stream_send(s) == 0)
        relay(s->fd, s->fd, fd, false);
    close(fd);
}
