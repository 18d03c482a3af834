/* One connection of the control server: bounded buffers both ways. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "vm/control_int.h"

#define FIRST_ROOM 1024u
#define BUSY (CONTROL_QUEUE_MAX / 2) /* with more than this unread, no further command is taken */

/* More than there is room for are closed at once. */
static void keep_fds(struct control_client *c, struct msghdr *msg)
{
    for (struct cmsghdr *h = CMSG_FIRSTHDR(msg); h; h = CMSG_NXTHDR(msg, h)) {
        if (h->cmsg_level != SOL_SOCKET || h->cmsg_type != SCM_RIGHTS)
            continue;
        for (size_t i = 0; i < (h->cmsg_len - CMSG_LEN(0)) / sizeof(int); i++) {
            int fd;
            memcpy(&fd, CMSG_DATA(h) + i * sizeof fd, sizeof fd);
            if (c->n_fds < CONTROL_FDS_MAX)
                c->fds[c->n_fds++] = fd;
            else
                close(fd);
        }
    }
}

unsigned control_take_fds(const struct control_call *call, int fds[CONTROL_FDS_MAX])
{
    struct control_client *c = call->client;
    unsigned n = c->n_fds;

    memcpy(fds, c->fds, n * sizeof *fds);
    c->n_fds = 0;
    return n;
}

int client_fill(struct control_client *c)
{
    char ancillary[CMSG_SPACE(CONTROL_FDS_MAX * sizeof(int))] __attribute__((aligned(8)));
    if (c->in_len == c->in_room && c->in_room < CONTROL_LINE_MAX) {
        size_t room = c->in_room ? 2 * c->in_room : FIRST_ROOM;
        char *larger = realloc(c->in, room);
        if (!larger)
            return -1;
        c->in = larger;
        c->in_room = room;
    }
    if (c->in_len == c->in_room)
        return 0;
    struct iovec piece = {c->in + c->in_len, c->in_room - c->in_len};
    struct msghdr msg = {
        .msg_iov = &piece, .msg_iovlen = 1, .msg_control = ancillary, .msg_controllen = sizeof ancillary};
    ssize_t n = recvmsg(c->fd, &msg, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    if (n >= 0)
        keep_fds(c, &msg);
    if (n < 0)
        return errno == EAGAIN || errno == EINTR ? 0 : -1;
    c->in_len += (size_t)n;
    c->active_ns = clock_ns();
    return n ? 1 : -1;
}

void client_flush(struct control_client *c)
{
    while (c->out_len) {
        ssize_t n = send(c->fd, c->out + c->out_start, c->out_len, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0) {
            if (errno != EAGAIN)
                client_drop(c);
            return;
        }
        c->out_start += (size_t)n;
        c->out_len -= (size_t)n;
    }
    c->out_start = 0;
}

/* Room for len more bytes behind what is queued; false: that would be too much. */
static bool make_room(struct control_client *c, size_t len)
{
    if (c->out_len + len > CONTROL_QUEUE_MAX)
        return false;
    if (c->out_start + c->out_len + len <= c->out_room)
        return true;
    if (c->out_start)
        memmove(c->out, c->out + c->out_start, c->out_len);
    c->out_start = 0;
    size_t room = c->out_room ? c->out_room : FIRST_ROOM;
    while (room < c->out_len + len)
        room *= 2;
    if (room == c->out_room)
        return true;
    char *larger = realloc(c->out, room);
    if (!larger)
        return false;
    c->out = larger;
    c->out_room = room;
    return true;
}

static void queue(struct control_client *c, const void *data, size_t len)
{
    memcpy(c->out + c->out_start + c->out_len, data, len);
    c->out_len += len;
}

/* A console that is too slow misses something, and is told so when there is room again. */
static bool tell_loss(struct control_client *c, size_t len)
{
    char notice[64];
    int n = snprintf(notice, sizeof notice, "\r\n[guise: %llu bytes were not shown]\r\n", (unsigned long long)c->lost);

    if (!make_room(c, len + (size_t)n))
        return false;
    queue(c, notice, (size_t)n);
    c->lost = 0;
    return true;
}

void client_send(struct control_client *c, const void *data, size_t len)
{
    if (c->fd < 0)
        return;
    if (c->console && c->lost && !tell_loss(c, len)) {
        c->lost += len;
        return;
    }
    if (!make_room(c, len)) {
        if (c->console)
            c->lost += len;
        else
            client_drop(c);
        return;
    }
    queue(c, data, len);
    client_flush(c);
    client_watch(c);
}

const char *client_line(const struct control_client *c, size_t *len)
{
    const char *end = c->in_len ? memchr(c->in, '\n', c->in_len) : NULL;

    if (!end || c->out_len > BUSY)
        return NULL;
    *len = (size_t)(end - c->in);
    return c->in;
}

void client_consume(struct control_client *c, size_t len)
{
    c->in_len -= len;
    if (len)
        memmove(c->in, c->in + len, c->in_len);
}

void client_watch(struct control_client *c)
{
    bool room = c->in_len < CONTROL_LINE_MAX && c->out_len <= BUSY && !c->ended;
    uint32_t want = (room ? EPOLLIN : 0) | (c->out_len ? EPOLLOUT : 0);

    if (c->fd < 0 || want == c->watching)
        return;
    c->watching = want;
    loop_fd_mod(c->control->config.loop, c->fd, want);
}

void client_was_first(struct control_client *c)
{
    bool first = c->first;

    c->first = false;
    if (first && c->control->config.client_gone)
        c->control->config.client_gone(c->control->config.opaque);
}

void client_drop(struct control_client *c)
{
    if (c->fd < 0)
        return;
    loop_fd_del(c->control->config.loop, c->fd);
    close(c->fd);
    c->fd = -1;
    client_was_first(c);
    loop_timer_set(c->control->config.loop, &c->control->later, clock_ns());
}

void client_free(struct control_client *c)
{
    while (c->n_fds)
        close(c->fds[--c->n_fds]);
    free(c->in);
    free(c->out);
    free(c);
}
