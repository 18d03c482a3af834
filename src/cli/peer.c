#include "cli/peer.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/error.h"
#include "base/file.h"
#include "cli/tls.h"
#include "host/loop.h"
#include "host/unix.h"
#include "vm/json_line.h"

#define LINE_MOST (512u << 10)
#define CONNECT_MS 10000
#define RELAY_BYTES (256u << 10)

/* --- addresses --------------------------------------------------------------------------------------------------- */

static int parse_unix(struct peer_address *a, const char *path, char *err, size_t n)
{
    char here[PATH_MAX] = "";
    bool relative = path[0] != '/';

    if (!*path || (relative && !getcwd(here, sizeof here)))
        return error_set(err, n, -EINVAL, "unix: is followed by the path of a socket");
    int len = snprintf(a->path, sizeof a->path, "%s%s%s", here, relative ? "/" : "", path);
    if (len >= (int)sizeof a->path)
        return error_set(err, n, -EINVAL, "the path of a Unix socket has at most %zu bytes", sizeof a->path - 1);
    snprintf(a->text, sizeof a->text, "unix:%s", a->path);
    return 0;
}

/* HOST, HOST:PORT, [ADDRESS]:PORT */
static int parse_tcp(struct peer_address *a, const char *text, char *err, size_t n)
{
    const char *host = text + strlen("tcp://"), *end = strrchr(host, ':'), *bracket = strrchr(host, ']');

    if (bracket && end && end < bracket)
        end = NULL;
    const char *port = end ? end + 1 : PEER_PORT;
    size_t len = end ? (size_t)(end - host) : strlen(host);
    if (len > 1 && host[0] == '[' && host[len - 1] == ']') {
        host++;
        len -= 2;
    }
    if (!len || len >= sizeof a->host || !*port || strlen(port) >= sizeof a->port ||
        strspn(port, "0123456789") != strlen(port))
        return error_set(err, n, -EINVAL, "'%.100s' is not tcp://HOST[:PORT]", text);
    memcpy(a->host, host, len);
    snprintf(a->port, sizeof a->port, "%s", port);
    snprintf(a->text, sizeof a->text, "%s", text);
    return 0;
}

int peer_parse(struct peer_address *a, const char *text, char *err, size_t n)
{
    *a = (struct peer_address){.kind = PEER_NAME};
    if (strncmp(text, "unix:", 5) == 0) {
        a->kind = PEER_UNIX;
        return parse_unix(a, text + 5, err, n);
    }
    if (strncmp(text, "tcp://", 6) == 0) {
        a->kind = PEER_TCP;
        return parse_tcp(a, text, err, n);
    }
    if (strchr(text, ':') || strchr(text, '/'))
        return error_set(err, n, -EINVAL,
                         "'%.100s' is neither the name of a machine nor unix:PATH or tcp://HOST[:PORT]", text);
    snprintf(a->text, sizeof a->text, "%s", text);
    return name_check(text, err, n);
}

/* --- connections ------------------------------------------------------------------------------------------------- */

static int set_blocking(int fd)
{
    int flags = fcntl(fd, F_GETFL);

    return flags < 0 || fcntl(fd, F_SETFL, flags & ~O_NONBLOCK) ? -errno : 0;
}

/* A network that is cut says nothing: who is silent for so long is taken to be gone. */
static void watch_over(int fd)
{
    const int on = 1, idle = 5, interval = 2, times = 3, unanswered_ms = 10000;

    setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on);
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &idle, sizeof idle);
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &interval, sizeof interval);
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPCNT, &times, sizeof times);
    setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &unanswered_ms, sizeof unanswered_ms);
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
}

/* Connects within CONNECT_MS, or listens.  -errno. */
static int try_tcp(const struct addrinfo *at, bool listens)
{
    const int on = 1;
    int fd = socket(at->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0), err = 0;
    socklen_t size = sizeof err;

    if (fd < 0)
        return -errno;
    if (listens) {
        setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
        err = bind(fd, at->ai_addr, at->ai_addrlen) || listen(fd, 16) ? errno : 0;
    } else if (connect(fd, at->ai_addr, at->ai_addrlen) && errno != EINPROGRESS) {
        err = errno;
    } else if (poll(&(struct pollfd){.fd = fd, .events = POLLOUT}, 1, CONNECT_MS) != 1) {
        err = ETIMEDOUT;
    } else {
        getsockopt(fd, SOL_SOCKET, SO_ERROR, &err, &size);
    }
    if (err)
        close(fd);
    return err ? -err : fd;
}

static int open_tcp(const struct peer_address *a, bool listens, char *err, size_t n)
{
    const struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = listens ? AI_PASSIVE : 0};
    struct addrinfo *all = NULL;
    int fd = -EHOSTUNREACH, failed = getaddrinfo(a->host, a->port, &hints, &all);

    if (failed)
        return error_set(err, n, -EHOSTUNREACH, "%s cannot be found: %s", a->host, gai_strerror(failed));
    for (const struct addrinfo *at = all; at && fd < 0; at = at->ai_next)
        fd = try_tcp(at, listens);
    freeaddrinfo(all);
    return fd < 0 ? error_sys(err, n, fd, listens ? "cannot listen at %s" : "nobody receives at %s", a->text) : fd;
}

/* TLS, for what comes by a network. */
static int secure(struct peer *p, const struct peer_address *a, bool server, char *err, size_t n)
{
    set_blocking(p->fd);
    if (a->kind != PEER_TCP)
        return 0;
    watch_over(p->fd);
    int failed = tls_open(&p->tls, p->fd, server, err, n);
    if (failed)
        peer_close(p);
    return failed;
}

int peer_connect(struct peer *p, const struct peer_address *a, char *err, size_t n)
{
    int fd = a->kind == PEER_TCP ? open_tcp(a, false, err, n) : unix_connect(a->path);

    *p = (struct peer){.fd = -1};
    if (fd < 0 && a->kind != PEER_TCP)
        return error_sys(err, n, fd == -ENOENT ? -ECONNREFUSED : fd, "nobody receives at %s", a->text);
    if (fd < 0)
        return fd;
    p->fd = fd;
    return secure(p, a, false, err, n);
}

int peer_listen(const struct peer_address *a, char *err, size_t n)
{
    return a->kind == PEER_TCP ? open_tcp(a, true, err, n) : unix_listen(a->path, 16, err, n);
}

/* Only the same user, or root. */
static int check_user(int fd, char *err, size_t n)
{
    struct ucred who;
    socklen_t size = sizeof who;

    if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &who, &size))
        return error_sys(err, n, -errno, "cannot see who connects");
    if (who.uid && who.uid != geteuid())
        return error_set(err, n, -EACCES, "user %u may not send machines here", (unsigned)who.uid);
    return 0;
}

int peer_accept(struct peer *p, int listening, const struct peer_address *a, char *err, size_t n)
{
    int fd = accept4(listening, NULL, NULL, SOCK_CLOEXEC);

    *p = (struct peer){.fd = fd};
    if (fd < 0)
        return -EAGAIN;
    int failed = a->kind == PEER_TCP ? 0 : check_user(fd, err, n);
    if (!failed)
        failed = secure(p, a, true, err, n);
    if (!failed)
        return 0;
    peer_close(p);
    return -EAGAIN;
}

void peer_close(struct peer *p)
{
    tls_close(p->tls);
    if (p->fd >= 0)
        close(p->fd);
    *p = (struct peer){.fd = -1};
}

/* --- messages ---------------------------------------------------------------------------------------------------- */

static int write_tls(struct tls *t, const char *bytes, size_t len)
{
    while (len) {
        ssize_t done = tls_write(t, bytes, len);
        if (done <= 0)
            return -errno;
        bytes += done;
        len -= (size_t)done;
    }
    return 0;
}

int peer_send(struct peer *p, json_t *message)
{
    size_t len;
    char *line = json_line(message, &len);
    int err = !line ? -ENOMEM : p->tls ? write_tls(p->tls, line, len) : fd_write_all(p->fd, line, len);

    free(line);
    return err;
}

static int wait_readable(const struct peer *p, uint64_t until_ns)
{
    if (p->tls && tls_pending(p->tls))
        return 0;
    for (;;) {
        uint64_t now = clock_ns();
        int ms = until_ns == UINT64_MAX ? -1 : now < until_ns ? (int)((until_ns - now) / 1000000) + 1 : 0;
        int ready = poll(&(struct pollfd){.fd = p->fd, .events = POLLIN}, 1, ms);
        if (ready > 0)
            return 0;
        if (ready == 0)
            return -ETIMEDOUT;
        if (errno != EINTR)
            return -errno;
    }
}

static int read_byte(struct peer *p, char *byte, uint64_t until_ns)
{
    int err = wait_readable(p, until_ns);
    ssize_t got = err ? 0 : p->tls ? tls_read(p->tls, byte, 1) : read(p->fd, byte, 1);

    return err ? err : got == 1 ? 0 : got < 0 && errno == EACCES ? -EACCES : -ECONNRESET;
}

/* Byte by byte: what follows the line may be a stream, and somebody else's. */
static int read_line(struct peer *p, uint64_t until_ns, char **line, size_t *len)
{
    size_t room = 4096;
    char *text = malloc(room);
    int err = text ? 0 : -ENOMEM;

    for (*len = 0; !err; ++*len) {
        if (*len == room) {
            char *larger = room < LINE_MOST ? realloc(text, room *= 2) : NULL;
            if (!larger) {
                err = -EBADMSG;
                break;
            }
            text = larger;
        }
        err = read_byte(p, text + *len, until_ns);
        if (!err && text[*len] == '\n')
            break;
    }
    if (err)
        free(text);
    *line = err ? NULL : text;
    return err;
}

int peer_receive(struct peer *p, int timeout_ms, json_t **message)
{
    char *line;
    size_t len;
    int err = read_line(p, timeout_ms < 0 ? UINT64_MAX : clock_ns() + (uint64_t)timeout_ms * 1000000, &line, &len);

    if (err)
        return err;
    *message = json_loadb(line, len, JSON_REJECT_DUPLICATES, NULL);
    free(line);
    if (json_is_object(*message))
        return 0;
    json_decref(*message);
    return -EBADMSG;
}

/* --- streams by TLS ---------------------------------------------------------------------------------------------- */

/* The VM process has one end of a pair of sockets, a thread of ours carries what it sends, or is sent, to the network.
 */
struct relay {
    struct peer peer;
    int inner;
    bool sends;
};

static bool carry(struct relay *r, char *buffer, size_t room)
{
    ssize_t got = r->sends ? read(r->inner, buffer, room) : tls_read(r->peer.tls, buffer, room);

    if (got <= 0)
        return false;
    return (r->sends ? write_tls(r->peer.tls, buffer, (size_t)got) : fd_write_all(r->inner, buffer, (size_t)got)) == 0;
}

static void *relay_main(void *opaque)
{
    struct relay *r = opaque;
    char *buffer = malloc(RELAY_BYTES);

    while (buffer && carry(r, buffer, RELAY_BYTES))
        ;
    free(buffer);
    peer_close(&r->peer);
    close(r->inner);
    free(r);
    return NULL;
}

static int start_relay(struct peer *p, bool sends)
{
    struct relay *r = calloc(1, sizeof *r);
    pthread_t thread;
    int ends[2], err = r ? 0 : -ENOMEM;

    if (!err && socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends))
        err = -errno;
    if (err) {
        free(r);
        return err;
    }
    *r = (struct relay){*p, ends[0], sends};
    *p = (struct peer){.fd = -1};
    err = -pthread_create(&thread, NULL, relay_main, r);
    if (!err)
        pthread_detach(thread);
    return err ? err : ends[1];
}

int peer_stream(struct peer *p, bool sends)
{
    int fd = p->fd;

    if (p->tls)
        return start_relay(p, sends);
    p->fd = -1;
    return fd;
}
