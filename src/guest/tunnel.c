/* TUNNEL: from the stream to a port or socket of the guest, bytes both ways, each direction with an end of its own. */
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
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
    strcpy(address.sun_path, path);
    return connect_to(AF_UNIX, (const struct sockaddr *)&address, sizeof(address));
}

/* In command mode nothing starts the image's ssh server: it can serve one connection by itself. */
static int start_sshd(struct guest *g)
{
    static const char program[] = "/usr/sbin/sshd";
    int ends[2];

    if (!g->inside || g->config.mode != GUEST_COMMAND || access(program, X_OK))
        return -ECONNREFUSED;
    setup_host_keys(false);
    mkdir("/run/sshd", 0755);
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends))
        return -errno;
    pid_t pid = fork();
    if (pid == 0) {
        signal(SIGPIPE, SIG_DFL);
        dup2(ends[1], 0);
        dup2(ends[1], 1);
        execl(program, program, "-i", NULL);
        _exit(127);
    }
    close(ends[1]);
    if (pid < 0) {
        close(ends[0]);
        return -EAGAIN;
    }
    return ends[0];
}

static int open_target(struct guest *g, const struct frame *request)
{
    uint64_t port = frame_number(request, FIELD_PORT, 0);
    struct fields i;
    struct field field;

    fields_begin(&i, request);
    while (fields_next(&i, &field))
        if (field.tag == FIELD_PATH) {
            char *path = field_text(&field);
            int fd = connect_path(path);
            free(path);
            return fd;
        }
    int fd = connect_port(port);
    return fd == -ECONNREFUSED && port == SSH_PORT ? start_sshd(g) : fd;
}

void tunnel_serve(struct guest *g, struct stream *s, const struct frame *request)
{
    int fd = open_target(g, request);

    if (fd < 0) {
        stream_put_error(s, fd, "the guest cannot connect there: %s", strerror(-fd));
        return;
    }
    stream_put(s, FRAME_OK, NULL, 0);
    if (stream_send(s) == 0)
        relay(s->fd, s->fd, fd, false);
    close(fd);
}
