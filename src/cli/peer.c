#include "cli/peer.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/error.h"
#include "base/file.h"
#include "host/loop.h"
#include "host/unix.h"

#define LINE_MOST (512u << 10)

/* --- addresses ------------------------------------------------------------------------------------------------------
 */

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

int peer_parse(struct peer_address *a, const char *text, char *err, size_t n)
{
    *a = (struct peer_address){.kind = PEER_NAME};
    if (strncmp(text, "unix:", 5) == 0) {
        a->kind = PEER_UNIX;
        return parse_unix(a, text + 5, err, n);
    }
    if (strchr(text, ':') || strchr(text, '/'))
        return error_set(err, n, -EINVAL, "'%.100s' is neither the name of a machine nor unix:PATH", text);
    snprintf(a->text, sizeof a->text, "%s", text);
    return name_check(text, err, n);
}

/* --- connections ----------------------------------------------------------------------------------------------------
 */

static int set_blocking(int fd)
{
    int flags = fcntl(fd, F_GETFL);

    return flags < 0 || fcntl(fd, F_SETFL, flags & ~O_NONBLOCK) ? -errno : 0;
}

int peer_connect(struct peer *p, const struct peer_address *a, char *err, size_t n)
{
    int fd = unix_connect(a->path);

    *p = (struct peer){.fd = -1};
    if (fd < 0)
        return error_sys(err, n, fd, "nobody receives at %s", a->text);
    set_blocking(fd);
    p->fd = fd;
    return 0;
}

int peer_listen(const struct peer_address *a, char *err, size_t n)
{
    return unix_listen(a->path, 16, err, n);
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
    int failed = check_user(fd, err, n);
    if (failed) {
        peer_close(p);
        return -EAGAIN;
    }
    return 0;
}

void peer_close(struct peer *p)
{
    if (p->fd >= 0)
        close(p->fd);
    *p = (struct peer){.fd = -1};
}

/* --- messages --------------------------------------------------------------------------------------------------------
 */

int peer_send(struct peer *p, json_t *message)
{
    char *text = message ? json_dumps(message, JSON_COMPACT) : NULL;
    int err = text ? 0 : -ENOMEM;

    json_decref(message);
    if (text) {
        size_t len = strlen(text);
        text[len] = '\n';
        err = fd_write_all(p->fd, text, len + 1);
    }
    free(text);
    return err;
}

static int wait_readable(const struct peer *p, uint64_t until_ns)
{
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
    ssize_t got = err ? 0 : read(p->fd, byte, 1);

    return err ? err : got == 1 ? 0 : -ECONNRESET;
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
    *line = text;
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

int peer_stream(struct peer *p, bool sends)
{
    int fd = p->fd;

    p->fd = -1;
    return fd;
}
