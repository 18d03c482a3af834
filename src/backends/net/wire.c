#include "backends/net/wire.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "backends/net.h"

#define HEADER sizeof(struct net_header)
#define RECORD (4 + HEADER)
#define FRAME_SPACE (RECORD + NET_FRAME_MAX + 3)
#define MESSAGE_MAX (WIRE_GATHER + FRAME_SPACE)
#define SOCKET_BUFFER (1 << 20) /* the system gives as much of it as it allows */
/* A longer frame goes from where it is, without a copy into the message. */
#define COPY_MAX 4096u

int wire_init(struct wire *w, int fd)
{
    int size = SOCKET_BUFFER, flags = fcntl(fd, F_GETFL);

    *w = (struct wire){.fd = fd, .out = malloc(MESSAGE_MAX), .in = malloc(MESSAGE_MAX)};
    if (!w->out || !w->in) {
        wire_free(w);
        return -ENOMEM;
    }
    setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &size, sizeof size);
    if (flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0) {
        int err = -errno;
        wire_free(w);
        return err;
    }
    return 0;
}

void wire_free(struct wire *w)
{
    free(w->out);
    free(w->in);
    *w = (struct wire){.fd = -1};
}

/* 0, or -errno: -EAGAIN for want of room.  A peer that is gone takes everything. */
static int send_message(struct wire *w, const struct iovec *iov, int n)
{
    ssize_t sent;

    do
        sent = writev(w->fd, iov, n);
    while (sent < 0 && errno == EINTR);
    if (sent < 0 && (errno == EAGAIN || errno == ENOBUFS || errno == ENOMEM))
        return -EAGAIN;
    w->out_len = 0;
    return 0;
}

bool wire_flush(struct wire *w)
{
    const struct iovec whole = {w->out, w->out_len};
    return !w->out_len || send_message(w, &whole, 1) == 0;
}

static size_t frame_length(const struct iovec *iov, unsigned n)
{
    size_t len = 0;
    for (unsigned i = 1; i < n; i++)
        len += iov[i].iov_len;
    return len;
}

static void put_record(uint8_t *at, uint32_t len, const void *header)
{
    memcpy(at, &len, sizeof len);
    memcpy(at + sizeof len, header, HEADER);
}

/* What has gathered and this frame, as one message. */
static bool put_long(struct wire *w, const struct iovec *iov, unsigned n, uint32_t len)
{
    static const uint8_t padding[4];
    struct iovec v[NET_IOV_MAX + 1];

    put_record(w->out + w->out_len, len, iov[0].iov_base);
    v[0] = (struct iovec){w->out, w->out_len + RECORD};
    memcpy(v + 1, iov + 1, (n - 1) * sizeof *v);
    v[n] = (struct iovec){(void *)(uintptr_t)padding, -len & 3};
    return send_message(w, v, (int)n + 1) == 0;
}

bool wire_put(struct wire *w, const struct iovec *iov, unsigned n)
{
    size_t len = frame_length(iov, n);

    if (len > NET_FRAME_MAX || n > NET_IOV_MAX)
        return true;
    if (w->out_len >= WIRE_GATHER && !wire_flush(w))
        return false;
    if (len > COPY_MAX)
        return put_long(w, iov, n, (uint32_t)len);
    put_record(w->out + w->out_len, (uint32_t)len, iov[0].iov_base);
    w->out_len += RECORD;
    for (unsigned i = 1; i < n; i++) {
        memcpy(w->out + w->out_len, iov[i].iov_base, iov[i].iov_len);
        w->out_len += iov[i].iov_len;
    }
    w->out_len += -len & 3;
    return true;
}

int wire_fill(struct wire *w)
{
    ssize_t got;

    if (w->in_at < w->in_len)
        return 1;
    do
        got = read(w->fd, w->in, MESSAGE_MAX);
    while (got < 0 && errno == EINTR);
    if (got < 0)
        return errno == EAGAIN ? 0 : -errno;
    if (got == 0)
        return -EPIPE;
    w->in_len = (size_t)got;
    w->in_at = w->in_next = 0;
    return 1;
}

bool wire_next(struct wire *w, struct net_header **h, uint8_t **frame, size_t *len)
{
    uint32_t size;

    if (w->in_len - w->in_at < RECORD) {
        w->in_at = w->in_len;
        return false;
    }
    memcpy(&size, w->in + w->in_at, sizeof size);
    if (size > NET_FRAME_MAX || size > w->in_len - w->in_at - RECORD) {
        w->in_at = w->in_len; /* not a message of ours */
        return false;
    }
    *h = (struct net_header *)(void *)(w->in + w->in_at + 4);
    *frame = w->in + w->in_at + RECORD;
    *len = size;
    size_t next = w->in_at + RECORD + size + (-size & 3);
    w->in_next = next < w->in_len ? next : w->in_len;
    return true;
}

void wire_done(struct wire *w)
{
    w->in_at = w->in_next;
}
