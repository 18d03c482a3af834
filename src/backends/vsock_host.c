#include "backends/vsock_host.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/error.h"
#include "base/parse.h"
#include "host/keeper.h"
#include "host/loop.h"
#include "host/unix.h"

#define CID_LEAST 3 /* 0 to 2 are the hypervisor, the loopback and the host */
#define CID_MOST 0xfffffffeu
#define LINE_MAX_BYTES 32u /* of "CONNECT PORT\n" */
#define CLIENTS_MAX 64u    /* that have not said yet, or not heard yet, what becomes of them */
#define PATIENCE_NS 5000000000ull
#define DESCRIPTORS_KEPT 128  /* a guest's connections leave so many to all else in the process */
#define PAUSE_NS 500000000ull /* of accepting, when there are too many clients or descriptors */

/* A client before its connection is the guest's. */
struct client {
    struct vsock_host *host;
    struct client *next;
    int fd;
    bool handed; /* the device has it and will call client_done */
    uint64_t deadline_ns;
    unsigned len;
    char line[LINE_MAX_BYTES + 1];
};

struct vsock_host {
    char path[VSOCK_HOST_PATH_MAX];
    struct loop *loop;
    struct keeper *keeper;
    int descriptors_most; /* of connections out of the guest: above it all is kept */
    int listener;
    bool listening; /* the listener is in the loop */
    vsock_connect_fn *connect;
    void *opaque;
    struct client *clients;
    unsigned n_clients;
    struct loop_timer timer; /* the next client's deadline, or the end of a pause */
};

/* --- its words ------------------------------------------------------------------------------------------- */

int vsock_host_parse(const char *text, struct vsock_host_spec *spec, char *err, size_t n)
{
    const char *comma = strchr(text, ',');
    size_t len = comma ? (size_t)(comma - text) : strlen(text);

    *spec = (struct vsock_host_spec){.cid = CID_LEAST};
    if (!len || len >= sizeof spec->path)
        return error_set(err, n, -EINVAL, "a vsock socket's path has 1 to %zu bytes, not %zu", sizeof spec->path - 1,
                         len);
    memcpy(spec->path, text, len);
    if (!comma)
        return 0;
    if (strncmp(comma, ",cid=", 5) != 0)
        return error_set(err, n, -EINVAL, "'%s' is not understood: a vsock is PATH or PATH,cid=N", comma + 1);
    return parse_number(comma + 5, CID_LEAST, CID_MOST, &spec->cid, err, n);
}

int vsock_host_check(const char *text, char *err, size_t n)
{
    struct vsock_host_spec spec;

    return vsock_host_parse(text, &spec, err, n);
}

/* --- clients --------------------------------------------------------------------------------------------- */

static void on_listener(void *opaque, uint32_t events);

static void listen_again(struct vsock_host *h)
{
    if (!h->listening && h->connect)
        h->listening = loop_fd_add(h->loop, h->listener, EPOLLIN, on_listener, h) == 0;
}

/* What waits in the listener's queue goes on waiting there, without keeping the loop awake. */
static void pause_listening(struct vsock_host *h)
{
    loop_fd_del(h->loop, h->listener);
    h->listening = false;
    uint64_t end = clock_ns() + PAUSE_NS;
    if (end < h->timer.deadline_ns)
        loop_timer_set(h->loop, &h->timer, end);
}

/* Forgets the client; its descriptor has been given away or closed. */
static void client_free(struct client *c)
{
    struct vsock_host *h = c->host;
    struct client **at = &h->clients;

    while (*at != c)
        at = &(*at)->next;
    *at = c->next;
    h->n_clients--;
    free(c);
}

static void client_drop(struct client *c)
{
    loop_fd_del(c->host->loop, c->fd);
    close(c->fd);
    client_free(c);
}

static void client_done(void *opaque, int err, uint32_t host_port)
{
    struct client *c = opaque;
    char line[32];
    int len = snprintf(line, sizeof line, "OK %u\n", host_port);

    /* A new connection's buffer is empty: the line fits, or the client has gone. */
    if (!err)
        (void)!send(c->fd, line, (size_t)len, MSG_NOSIGNAL | MSG_DONTWAIT);
    else
        close(c->fd);
    client_free(c);
}

/* "CONNECT PORT", the line feed taken off. */
static bool parse_line(const char *line, uint32_t *port)
{
    uint64_t number;

    if (strncmp(line, "CONNECT ", 8) != 0 || parse_number(line + 8, 0, UINT32_MAX, &number, NULL, 0))
        return false;
    *port = (uint32_t)number;
    return true;
}

/* The line without what follows it, which is the guest's.  1: it is whole, 0: not yet, -1: it never will be. */
static int read_line(struct client *c)
{
    char *at = c->line + c->len;
    ssize_t got = recv(c->fd, at, LINE_MAX_BYTES - c->len, MSG_PEEK | MSG_DONTWAIT);

    if (got < 0 && (errno == EAGAIN || errno == EINTR))
        return 0;
    if (got <= 0)
        return -1;
    char *end = memchr(at, '\n', (size_t)got);
    size_t take = end ? (size_t)(end - at) + 1 : (size_t)got;
    if (recv(c->fd, at, take, MSG_DONTWAIT) != (ssize_t)take)
        return -1;
    c->len += (unsigned)take;
    if (end)
        *end = 0;
    return end ? 1 : c->len == LINE_MAX_BYTES ? -1 : 0;
}

static void on_client(void *opaque, uint32_t events)
{
    struct client *c = opaque;
    struct vsock_host *h = c->host;
    uint32_t port;
    int whole = read_line(c);

    if (!whole)
        return;
    if (whole < 0 || !parse_line(c->line, &port)) {
        client_drop(c);
        return;
    }
    loop_fd_del(h->loop, c->fd);
    c->handed = true;
    if (h->connect(h->opaque, port, c->fd, client_done, c)) {
        close(c->fd);
        client_free(c);
    }
}

static void client_new(struct vsock_host *h, int fd)
{
    struct client *c = calloc(1, sizeof *c);

    if (!c || loop_fd_add(h->loop, fd, EPOLLIN, on_client, c)) {
        free(c);
        close(fd);
        return;
    }
    c->host = h;
    c->fd = fd;
    c->deadline_ns = clock_ns() + PATIENCE_NS;
    c->next = h->clients;
    h->clients = c;
    h->n_clients++;
    if (c->deadline_ns < h->timer.deadline_ns)
        loop_timer_set(h->loop, &h->timer, c->deadline_ns);
}

static void on_listener(void *opaque, uint32_t events)
{
    struct vsock_host *h = opaque;
    int fd = h->n_clients < CLIENTS_MAX ? accept4(h->listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK) : -1;

    if (fd >= 0)
        client_new(h, fd);
    else if (h->n_clients == CLIENTS_MAX || (errno != EAGAIN && errno != EINTR && errno != ECONNABORTED))
        pause_listening(h);
}

static void on_timer(void *opaque)
{
    struct vsock_host *h = opaque;
    uint64_t now = clock_ns(), next = UINT64_MAX;

    for (struct client *c = h->clients, *after; c; c = after) {
        after = c->next;
        if (c->handed)
            continue; /* the device's own limit is shorter than for ever */
        if (c->deadline_ns <= now)
            client_drop(c);
        else if (c->deadline_ns < next)
            next = c->deadline_ns;
    }
    loop_timer_set(h->loop, &h->timer, next);
    listen_again(h);
}

/* --- the whole -------------------------------------------------------------------------------------------- */

static int most_descriptors(void)
{
    struct rlimit l;

    if (getrlimit(RLIMIT_NOFILE, &l) || l.rlim_cur > INT_MAX)
        return INT_MAX;
    return (int)l.rlim_cur - DESCRIPTORS_KEPT;
}

int vsock_host_open(struct vsock_host **out, const char *path, struct loop *loop, struct keeper *keeper, char *err,
                    size_t n)
{
    if (strlen(path) >= VSOCK_HOST_PATH_MAX)
        return error_set(err, n, -ENAMETOOLONG, "the vsock socket's path %s is longer than %d bytes", path,
                         VSOCK_HOST_PATH_MAX - 1);
    struct vsock_host *h = calloc(1, sizeof *h);
    if (!h)
        return error_sys(err, n, -ENOMEM, "the socket %s cannot be made", path);
    memcpy(h->path, path, strlen(path) + 1);
    h->loop = loop;
    h->keeper = keeper;
    h->descriptors_most = most_descriptors(); /* in the sandbox nobody can ask */
    loop_timer_init(&h->timer, on_timer, h);
    h->listener = unix_listen(path, 64, err, n);
    if (h->listener < 0) {
        int r = h->listener;
        free(h);
        return r;
    }
    *out = h;
    return 0;
}

void vsock_host_serve(struct vsock_host *h, vsock_connect_fn *connect, void *opaque)
{
    h->connect = connect;
    h->opaque = opaque;
    listen_again(h);
}

static int dial(struct vsock_host *h, uint32_t port)
{
    char path[VSOCK_HOST_PATH_MAX + 12];

    if (h->keeper)
        return keeper_dial(h->keeper, port);
    snprintf(path, sizeof path, "%s_%u", h->path, port);
    return unix_connect(path);
}

int vsock_host_dial(struct vsock_host *h, uint32_t port)
{
    int fd = dial(h, port);

    if (fd < h->descriptors_most || fd < 0)
        return fd;
    close(fd); /* the lowest that is free: few are left */
    return -EMFILE;
}

void vsock_host_close(struct vsock_host *h)
{
    if (!h)
        return;
    while (h->clients)
        client_drop(h->clients);
    if (h->listening)
        loop_fd_del(h->loop, h->listener);
    loop_timer_cancel(h->loop, &h->timer);
    close(h->listener);
    unlink(h->path);
    free(h);
}
