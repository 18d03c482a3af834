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

#include "guest/guest.h"

#define PIECE (64u << 10)
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

/* One direction: what has been read and not yet written. */
struct way {
    int from, to;
    bool ended;
    size_t start, len;
    uint8_t data[PIECE];
};

static void way_read(struct way *w)
{
    ssize_t n = recv(w->from, w->data, PIECE, MSG_DONTWAIT);

    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (n <= 0) {
        w->ended = true;
        shutdown(w->to, SHUT_WR);
        return;
    }
    w->start = 0;
    w->len = (size_t)n;
}

/* False: nobody takes it any more. */
static bool way_write(struct way *w)
{
    ssize_t n = send(w->to, w->data + w->start, w->len, MSG_DONTWAIT | MSG_NOSIGNAL);

    if (n < 0)
        return errno == EAGAIN || errno == EINTR;
    w->start += (size_t)n;
    w->len -= (size_t)n;
    return true;
}

static void pump(struct way *out, struct way *in)
{
    struct way *ways[] = {out, in};

    while (!out->ended || !in->ended) {
        struct pollfd p[4];
        for (int i = 0; i < 2; i++) {
            p[2 * i] = (struct pollfd){.fd = ways[i]->ended || ways[i]->len ? -1 : ways[i]->from, .events = POLLIN};
            p[2 * i + 1] = (struct pollfd){.fd = ways[i]->len ? ways[i]->to : -1, .events = POLLOUT};
        }
        if (poll(p, 4, -1) < 0)
            return;
        for (int i = 0; i < 2; i++) {
            if (p[2 * i].revents)
                way_read(ways[i]);
            if (ways[i]->len && !way_write(ways[i]))
                return;
        }
    }
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
    struct way *ways = fd >= 0 ? calloc(2, sizeof(*ways)) : NULL;

    if (!ways) {
        int code = fd < 0 ? fd : -ENOMEM;
        stream_put_error(s, code, "the guest cannot connect there: %s", strerror(-code));
        return;
    }
    stream_put(s, FRAME_OK, NULL, 0);
    if (stream_send(s))
        return;
    ways[0].from = ways[1].to = fd;
    ways[0].to = ways[1].from = s->fd;
    pump(&ways[0], &ways[1]);
    free(ways);
    close(fd);
}
