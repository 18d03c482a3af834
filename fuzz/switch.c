/*
 * The switch among virtual machines: records and frames of guests, or of a neighbour's process that has lost its mind,
 * ports that take nothing, come and go. Its sockets are made up; the rest is the helper process's own loop.
 */
#include <errno.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/types.h>
#include <sys/uio.h>

#include "loop.h"
#include "records.h"

#include "backends/net/switch.c" /* its ports and its turn of the loop are nobody else's business */

#define LISTENER 1000
#define FD_FIRST 1001
#define FDS 32
#define PEERS 3u
#define TURNS_MAX 24u

static struct target {
    struct hub hub;
    struct fuzz_input *in;
    bool open[FDS];
    uint32_t full; /* bits: descriptors that take nothing */
    bool accepting;
    unsigned changes; /* ports that may still come or go: each takes much memory */
} t;

static int new_fd(void)
{
    for (int i = 0; i < FDS; i++)
        if (!t.open[i]) {
            t.open[i] = true;
            return FD_FIRST + i;
        }
    errno = EMFILE;
    return -1;
}

/* --- the system -------------------------------------------------------------------------------------------------- */

ssize_t __real_read(int fd, void *buf, size_t len);
ssize_t __wrap_read(int fd, void *buf, size_t len);
ssize_t __wrap_read(int fd, void *buf, size_t len)
{
    uint8_t how;

    if (fd < FD_FIRST && fd != HELPER_CONTROL)
        return __real_read(fd, buf, len);
    how = fd == HELPER_CONTROL ? 0 : fuzz_u8(t.in);
    if (how > 250 && t.changes) {
        t.changes--;
        return 0;
    }
    if (how < 64 || !t.in->left) {
        errno = EAGAIN;
        return -1;
    }
    assert_true(t.open[fd - FD_FIRST] && len > 130000);
    return (ssize_t)fuzz_wire_message(t.in, buf);
}

ssize_t __wrap_writev(int fd, const struct iovec *iov, int n);
ssize_t __wrap_writev(int fd, const struct iovec *iov, int n)
{
    size_t len = 0;

    assert_true(fd >= FD_FIRST && t.open[fd - FD_FIRST]);
    if (t.full >> (fd - FD_FIRST) & 1) {
        errno = EAGAIN;
        return -1;
    }
    for (int i = 0; i < n; i++)
        len += iov[i].iov_len;
    return (ssize_t)len;
}

int __wrap_poll(struct pollfd *p, nfds_t n, int ms);
int __wrap_poll(struct pollfd *p, nfds_t n, int ms)
{
    uint8_t ready = fuzz_u8(t.in);

    for (nfds_t i = 1; i < n; i++)
        if (p[i].fd >= 0 && ready >> (i - 1) % 8 & 1)
            p[i].revents = p[i].events | (ready == 255 ? POLLHUP : 0);
    return 1;
}

int __wrap_accept4(int fd, struct sockaddr *address, socklen_t *len, int flags);
int __wrap_accept4(int fd, struct sockaddr *address, socklen_t *len, int flags)
{
    bool one = t.accepting && t.changes;

    t.accepting = false;
    t.changes -= one;
    errno = EAGAIN;
    return one ? new_fd() : -1;
}

int __real_close(int fd);
int __wrap_close(int fd);
int __wrap_close(int fd)
{
    if (fd < FD_FIRST)
        return __real_close(fd);
    assert_true(t.open[fd - FD_FIRST]);
    t.open[fd - FD_FIRST] = false;
    return 0;
}

int __wrap_fcntl64(int fd, int command, ...);
int __wrap_fcntl64(int fd, int command, ...)
{
    return 0;
}
int __wrap_setsockopt(int fd, int level, int name, const void *value, socklen_t len);
int __wrap_setsockopt(int fd, int level, int name, const void *value, socklen_t len)
{
    return 0;
}

/* --- inputs ------------------------------------------------------------------------------------------------------ */

/* A port's memory is large and stays; what an input left in it does not. */
static void empty_port(struct port *p)
{
    worker_out_free(&p->out);
    worker_out_init(&p->out, &p->wire, PORT_LIMIT);
    p->wire.out_len = p->wire.in_len = p->wire.in_at = p->wire.in_next = 0;
    p->waits_for = NOBODY;
    p->took_ns = t.hub.now_ns;
    p->events = 0;
}

/* The same ports at the end of each input, so that what it takes it gives back. */
static void put_right(struct hub *h)
{
    for (unsigned i = 0; i < PORTS_MAX; i++) {
        if (h->ports[i].fd >= 0 && i > PEERS)
            close_port(h, i);
        else if (h->ports[i].fd >= 0)
            empty_port(&h->ports[i]);
        else if (i <= PEERS)
            assert_int_equal(open_port(h, i, new_fd()), 0);
    }
}

static void begin(struct hub *h)
{
    fuzz_loop_begin();
    h->now_ns = clock_ns();
    memset(h->addresses, 0, sizeof h->addresses);
    if (h->path)
        return;
    h->path = "/x/switch";
    h->listener = LISTENER;
    for (unsigned i = 0; i < PORTS_MAX; i++)
        h->ports[i] = (struct port){.fd = -1, .waits_for = NOBODY};
    put_right(h);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct fuzz_input in = {data, size};

    t.in = &in;
    t.full = 0;
    t.changes = 2;
    t.accepting = false;
    begin(&t.hub);
    for (unsigned i = 0; i < TURNS_MAX && in.left; i++) {
        uint8_t how = fuzz_u8(&in);
        t.full = how & 1 ? fuzz_u8(&in) : t.full;
        t.accepting = how > 250;
        fuzz_loop.now += (uint64_t)(how >> 1 & 15) * (how & 0x20 ? 30000000000 : 10000000);
        if (!turn(&t.hub)) {
            close_port(&t.hub, PORT_VM);
            break;
        }
        for (unsigned k = 0; k < PORTS_MAX; k++)
            assert_true(t.hub.ports[k].fd < 0 || t.hub.ports[k].out.waiting <= PORT_LIMIT);
    }
    t.hub.now_ns = 0;
    put_right(&t.hub);
    return 0;
}
