#include "sockets.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#define FIRST_FD 4096 /* no descriptor of the kernel's is that high here */
#define DESCRIPTORS 32u
#define BACKLOG 8u
#define ROOM (64u << 10)

/* One end.  `bytes` is what has been sent to it; a packet has its length in front. */
struct end {
    struct end *peer; /* NULL: closed */
    bool packets, listens, shut, reset;
    unsigned descriptors;
    size_t at, filled;
    uint8_t *bytes; /* ROOM */
    char path[sizeof((struct sockaddr_un *)0)->sun_path];
    struct end *waiting[BACKLOG]; /* for accept */
    unsigned n_waiting;
};

void clock_advance(uint64_t ns) __attribute__((weak)); /* of socket_loop.c, where there is one */

static struct end *table[DESCRIPTORS];
static struct end *spare; /* ends that are not used, by `peer`: their memory is kept */

#define CALL(type, name, ...)                                                                                          \
    type __real_##name(__VA_ARGS__);                                                                                   \
    type __wrap_##name(__VA_ARGS__);                                                                                   \
    type __wrap_##name(__VA_ARGS__)

static int fail(int error)
{
    errno = error;
    return -1;
}

static struct end *end_of(int fd)
{
    return fd >= FIRST_FD && fd < FIRST_FD + (int)DESCRIPTORS ? table[fd - FIRST_FD] : NULL;
}

static struct end *make_end(int type)
{
    struct end *e = spare;

    if (e)
        spare = e->peer;
    else if (!(e = calloc(1, sizeof *e)) || !(e->bytes = malloc(ROOM)))
        abort();
    *e = (struct end){.bytes = e->bytes, .packets = (type & 0xf) == SOCK_SEQPACKET};
    return e;
}

static void free_end(struct end *e)
{
    e->peer = spare;
    spare = e;
}

static int give_fd(struct end *e)
{
    for (unsigned i = 0; i < DESCRIPTORS; i++)
        if (!table[i]) {
            table[i] = e;
            e->descriptors++;
            return FIRST_FD + (int)i;
        }
    return fail(EMFILE);
}

static void end_close(struct end *e)
{
    if (e->peer) {
        e->peer->peer = NULL;
        e->peer->reset = e->filled > e->at;
    }
    while (e->n_waiting)
        end_close(e->waiting[--e->n_waiting]);
    free_end(e);
}

uint32_t sockets_events(int fd)
{
    const struct end *e = end_of(fd), *peer = e ? e->peer : NULL;
    bool ended = !peer || peer->shut;

    if (!e)
        return 0;
    if (e->listens)
        return e->n_waiting ? POLLIN : 0;
    return (e->filled > e->at || ended ? POLLIN : 0) | (ended ? POLLRDHUP : 0) |
           (!peer || (peer->shut && e->shut) ? POLLHUP : 0) | (e->reset ? POLLERR : 0) |
           (!peer || peer->filled - peer->at < ROOM / 2 ? POLLOUT : 0);
}

unsigned sockets_open(void)
{
    unsigned n = 0;

    for (unsigned i = 0; i < DESCRIPTORS; i++)
        n += table[i] != NULL;
    return n;
}

/* --- their beginning and end -------------------------------------------------------------------------------- */

CALL(int, socketpair, int domain, int type, int protocol, int fds[2])
{
    struct end *a = make_end(type), *b = make_end(type);

    a->peer = b;
    b->peer = a;
    fds[0] = give_fd(a);
    fds[1] = give_fd(b);
    return fds[0] < 0 || fds[1] < 0 ? -1 : 0;
}

CALL(int, socket, int domain, int type, int protocol)
{
    return domain == AF_UNIX ? give_fd(make_end(type)) : __real_socket(domain, type, protocol);
}

CALL(int, bind, int fd, const struct sockaddr *address, socklen_t len)
{
    struct end *e = end_of(fd);

    if (!e)
        return __real_bind(fd, address, len);
    memcpy(e->path, ((const struct sockaddr_un *)address)->sun_path, sizeof e->path);
    return 0;
}

static struct end *find_listener(const char *path)
{
    for (unsigned i = 0; i < DESCRIPTORS; i++)
        if (table[i] && table[i]->path[0] && !strncmp(table[i]->path, path, sizeof table[i]->path))
            return table[i];
    return NULL;
}

CALL(int, chmod, const char *path, mode_t mode)
{
    return find_listener(path) ? 0 : __real_chmod(path, mode);
}

CALL(int, listen, int fd, int backlog)
{
    struct end *e = end_of(fd);

    if (!e)
        return __real_listen(fd, backlog);
    e->listens = true;
    return 0;
}

CALL(int, connect, int fd, const struct sockaddr *address, socklen_t len)
{
    struct end *e = end_of(fd), *to;

    if (!e)
        return __real_connect(fd, address, len);
    to = find_listener(((const struct sockaddr_un *)address)->sun_path);
    if (!to || !to->listens)
        return fail(ECONNREFUSED);
    if (to->n_waiting == BACKLOG)
        return fail(EAGAIN);
    e->peer = make_end(SOCK_STREAM);
    e->peer->peer = e;
    to->waiting[to->n_waiting++] = e->peer;
    return 0;
}

CALL(int, accept4, int fd, struct sockaddr *address, socklen_t *len, int flags)
{
    struct end *e = end_of(fd);

    if (!e)
        return __real_accept4(fd, address, len, flags);
    if (!e->n_waiting)
        return fail(EAGAIN);
    int got = give_fd(e->waiting[0]);
    if (got >= 0)
        memmove(e->waiting, e->waiting + 1, --e->n_waiting * sizeof *e->waiting);
    return got;
}

CALL(int, getsockopt, int fd, int level, int name, void *value, socklen_t *len)
{
    const struct ucred me = {getpid(), geteuid(), getegid()};

    if (!end_of(fd))
        return __real_getsockopt(fd, level, name, value, len);
    memset(value, 0, *len);
    if (name == SO_PEERCRED && *len == sizeof me)
        memcpy(value, &me, sizeof me);
    return 0;
}

/* Duplicates, and flags that change nothing here. */
CALL(int, fcntl64, int fd, int command, ...)
{
    struct end *e = end_of(fd);
    va_list args;

    va_start(args, command);
    long argument = va_arg(args, long);
    va_end(args);
    if (!e)
        return __real_fcntl64(fd, command, argument);
    return command == F_DUPFD_CLOEXEC ? give_fd(e) : 0;
}

CALL(int, shutdown, int fd, int how)
{
    struct end *e = end_of(fd);

    if (!e)
        return __real_shutdown(fd, how);
    e->shut |= how != SHUT_RD;
    return 0;
}

CALL(int, close, int fd)
{
    struct end *e = end_of(fd);

    if (!e)
        return __real_close(fd);
    table[fd - FIRST_FD] = NULL;
    if (!--e->descriptors)
        end_close(e);
    return 0;
}

/* --- bytes ----------------------------------------------------------------------------------------------------- */

static ssize_t end_send(struct end *e, const void *data, size_t len)
{
    struct end *to = e->peer;
    uint32_t header = (uint32_t)len;

    if (e->shut || !to)
        return fail(EPIPE);
    if (!len)
        return 0;
    memmove(to->bytes, to->bytes + to->at, to->filled - to->at);
    to->filled -= to->at;
    to->at = 0;
    if (to->packets && ROOM - to->filled < sizeof header + len)
        return fail(EAGAIN);
    if (len > ROOM - to->filled)
        len = ROOM - to->filled;
    if (!len)
        return fail(EAGAIN);
    if (to->packets) {
        memcpy(to->bytes + to->filled, &header, sizeof header);
        to->filled += sizeof header;
    }
    memcpy(to->bytes + to->filled, data, len);
    to->filled += len;
    return (ssize_t)len;
}

static ssize_t end_receive(struct end *e, void *data, size_t len)
{
    size_t there = e->filled - e->at, take;
    uint32_t header;

    if (!there) {
        if (!e->reset)
            return !e->peer || e->peer->shut ? 0 : fail(EAGAIN);
        e->reset = false;
        return fail(ECONNRESET);
    }
    if (e->packets) {
        memcpy(&header, e->bytes + e->at, sizeof header);
        e->at += sizeof header;
        there = header;
    }
    take = len < there ? len : there;
    memcpy(data, e->bytes + e->at, take);
    e->at += e->packets ? there : take;
    return (ssize_t)take;
}

CALL(ssize_t, send, int fd, const void *data, size_t len, int flags)
{
    struct end *e = end_of(fd);
    return e ? end_send(e, data, len) : __real_send(fd, data, len, flags);
}

CALL(ssize_t, write, int fd, const void *data, size_t len)
{
    struct end *e = end_of(fd);
    return e ? end_send(e, data, len) : __real_write(fd, data, len);
}

CALL(ssize_t, recv, int fd, void *data, size_t len, int flags)
{
    struct end *e = end_of(fd);
    return e ? end_receive(e, data, len) : __real_recv(fd, data, len, flags);
}

/* No descriptor ever comes along. */
CALL(ssize_t, recvmsg, int fd, struct msghdr *m, int flags)
{
    struct end *e = end_of(fd);

    if (!e)
        return __real_recvmsg(fd, m, flags);
    m->msg_controllen = 0;
    return end_receive(e, m->msg_iov->iov_base, m->msg_iov->iov_len);
}

CALL(ssize_t, read, int fd, void *data, size_t len)
{
    struct end *e = end_of(fd);
    return e ? end_receive(e, data, len) : __real_read(fd, data, len);
}

CALL(int, poll, struct pollfd *p, nfds_t n, int timeout)
{
    bool ours = false;
    int ready = 0;

    for (nfds_t i = 0; i < n; i++)
        ours |= end_of(p[i].fd) != NULL;
    if (!ours)
        return __real_poll(p, n, timeout);
    for (nfds_t i = 0; i < n; i++) {
        const uint32_t always = POLLHUP | POLLERR;
        p[i].revents = 0;
        if (end_of(p[i].fd))
            p[i].revents = (short)(sockets_events(p[i].fd) & ((uint32_t)p[i].events | always));
        else if (p[i].fd >= 0)
            __real_poll(p + i, 1, 0);
        ready += p[i].revents != 0;
    }
    if (!ready && timeout < 0)
        abort(); /* nobody is there who could end this wait */
    if (!ready && clock_advance)
        clock_advance(1000000ull * (unsigned)timeout);
    return ready;
}
