/*
 * Sockets between guest and host: packets of a hostile guest, buffers too small or too few, host programs that connect,
 * are slow, hang up, or write nonsense into the Unix socket. The sockets themselves are made up here, so that an input
 * is all there is.
 */
#include <errno.h>
#include <sys/epoll.h>
#include <sys/socket.h>

#include "loop.h"

#include "backends/vsock_host.h"
#include "devices/virtio/vsock_int.h"
#include "driver.h"

#define STEPS_MAX 100u
#define SOCKETS 32
#define LISTENER (FUZZ_FD_FIRST + SOCKETS)
#define LISTENED 2u /* a port with an `accept` of its own */
#define BUFFER 0x300u
enum { QUEUE_RX, QUEUE_TX, QUEUE_EVENT };

enum {
    STEP_PASS = DRIVER_STEPS,
    STEP_PACKET,
    STEP_BUFFERS,
    STEP_SOCKET,
    STEP_CONNECT,
    STEP_CANCEL,
    STEP_CLIENT,
    STEP_RESTORE,
    STEPS
};

struct target {
    struct fuzz_machine m;
    struct device dev;
    struct driver driver;
    struct vsock *vsock;
    bool accepting;
    struct {
        bool open, ours; /* ours: given to vsock_connect, not taken yet */
        bool broken, eof;
        size_t room, bulk; /* what send takes; what recv gives behind the line */
        uint8_t line[40];
        size_t line_len;
    } sockets[SOCKETS];
};
static struct target t;

/* --- sockets ----------------------------------------------------------------------------------------------------- */

static bool is_socket(int fd)
{
    return fd >= FUZZ_FD_FIRST && fd < FUZZ_FD_FIRST + SOCKETS;
}

static int socket_new(void)
{
    for (int i = 0; i < SOCKETS; i++)
        if (!t.sockets[i].open) {
            memset(&t.sockets[i], 0, sizeof t.sockets[i]);
            t.sockets[i].open = true;
            t.sockets[i].room = 100;
            return FUZZ_FD_FIRST + i;
        }
    return -EMFILE;
}

static __typeof__(&t.sockets[0]) socket_of(int fd)
{
    assert_true(is_socket(fd) && t.sockets[fd - FUZZ_FD_FIRST].open);
    return &t.sockets[fd - FUZZ_FD_FIRST];
}

ssize_t __wrap_recv(int fd, void *buf, size_t len, int flags);
ssize_t __wrap_recv(int fd, void *buf, size_t len, int flags)
{
    __typeof__(&t.sockets[0]) s = socket_of(fd);
    size_t n = len < s->line_len ? len : s->line_len;

    if (n) {
        memcpy(buf, s->line, n);
        if (!(flags & MSG_PEEK))
            memmove(s->line, s->line + n, s->line_len -= n);
        return (ssize_t)n;
    }
    n = len < s->bulk ? len : s->bulk;
    if (!n && !s->eof) {
        errno = EAGAIN;
        return -1;
    }
    memset(buf, 'r', n);
    if (!(flags & MSG_PEEK))
        s->bulk -= n;
    return (ssize_t)n;
}

ssize_t __wrap_send(int fd, const void *buf, size_t len, int flags);
ssize_t __wrap_send(int fd, const void *buf, size_t len, int flags)
{
    __typeof__(&t.sockets[0]) s = socket_of(fd);
    size_t n = len < s->room ? len : s->room;

    if (s->broken || (!n && len)) {
        errno = s->broken ? EPIPE : EAGAIN;
        return -1;
    }
    s->room -= n;
    return (ssize_t)n;
}

int __wrap_shutdown(int fd, int how);
int __wrap_shutdown(int fd, int how)
{
    __typeof__(&t.sockets[0]) s = socket_of(fd);

    s->eof |= how != SHUT_WR;
    return 0;
}

int __wrap_getsockopt(int fd, int level, int name, void *value, socklen_t *len);
int __wrap_getsockopt(int fd, int level, int name, void *value, socklen_t *len)
{
    *(int *)value = SOCK_STREAM;
    return 0;
}

int __real_close(int fd);
int __wrap_close(int fd);
int __wrap_close(int fd)
{
    if (fd == LISTENER)
        return 0;
    if (!is_socket(fd))
        return __real_close(fd);
    assert_true(!socket_of(fd)->ours && !fuzz_watch(&fuzz_loop, fd)->events);
    socket_of(fd)->open = false;
    return 0;
}

int __wrap_accept4(int fd, struct sockaddr *address, socklen_t *len, int flags);
int __wrap_accept4(int fd, struct sockaddr *address, socklen_t *len, int flags)
{
    int new = t.accepting ? socket_new() : -EAGAIN;

    t.accepting = false;
    if (new < 0)
        errno = -new;
    return new < 0 ? -1 : new;
}

int __wrap_unix_listen(const char *path, int backlog, char *err, size_t n);
int __wrap_unix_listen(const char *path, int backlog, char *err, size_t n)
{
    return LISTENER;
}
int __wrap_unix_connect(const char *path);
int __wrap_unix_connect(const char *path)
{
    return strchr(path, '_')[1] == '1' ? socket_new() : -ECONNREFUSED;
}
int __wrap_unlink(const char *path);
int __wrap_unlink(const char *path)
{
    return 0;
}

/* --- the guest --------------------------------------------------------------------------------------------------- */

static uint32_t some_port(uint8_t n)
{
    return (n & 8 ? 0x40000000u : 0) + (n & 7);
}

/* A packet that is right but for what the input wants, in one or two buffers. */
static void step_packet(struct fuzz_input *in)
{
    uint8_t how = fuzz_u8(in), ports = fuzz_u8(in);
    struct vsock_header h = {.src_cid = VSOCK_CID_GUEST,
                             .dst_cid = VSOCK_CID_HOST,
                             .src_port = some_port(ports & 3),
                             .dst_port = some_port(ports >> 4),
                             .type = VSOCK_TYPE_STREAM,
                             .op = how & 7,
                             .buf_alloc = 0x1000};
    struct descriptor d[2] = {{.addr = DATA, .len = sizeof h, .flags = NEXT, .next = 1}, {.addr = DATA + 0x100}};

    if (h.op == VSOCK_OP_RW)
        h.len = fuzz_u16(in) >> (how & 8 ? 0 : 7);
    if (h.op == VSOCK_OP_SHUTDOWN)
        h.flags = how >> 3;
    d[1].len = h.len < 0x7000 ? h.len : 0x7000;
    if (how & 0x40) {
        h.buf_alloc = fuzz_u32(in);
        h.fwd_cnt = fuzz_u32(in);
    }
    if (how & 0x80)
        ((uint8_t *)&h)[fuzz_u8(in) % sizeof h] = fuzz_u8(in);
    if (!d[1].len)
        d[0].flags = 0;
    driver_put(&t.driver, DATA, &h, sizeof h);
    driver_put(&t.driver, RING(QUEUE_TX), d, sizeof d);
    driver_offer(&t.driver, QUEUE_TX, 0);
    driver_notify(&t.driver, QUEUE_TX);
}

static void step_buffers(struct fuzz_input *in)
{
    uint8_t how = fuzz_u8(in);
    unsigned q = how & 0x80 ? QUEUE_EVENT : QUEUE_RX;
    const struct descriptor d = {
        .addr = DATA + 0x4000, .len = how & 0x40 ? fuzz_u16(in) % BUFFER + 1 : BUFFER, .flags = WRITE};

    driver_put(&t.driver, RING(q), &d, sizeof d);
    for (unsigned i = how % RING_SIZE; i; i--)
        driver_offer(&t.driver, q, 0);
    driver_notify(&t.driver, q);
}

/* --- the host ---------------------------------------------------------------------------------------------------- */

static int accept_one(void *opaque, uint32_t guest_port)
{
    return guest_port == 1 ? -ECONNREFUSED : socket_new();
}

static void connected(void *opaque, int err, uint32_t host_port)
{
    int fd = (int)(intptr_t)opaque;

    socket_of(fd)->ours = false;
    if (err)
        __wrap_close(fd);
}

static void step_connect(struct fuzz_input *in)
{
    int fd = socket_new();

    if (fd < 0)
        return;
    socket_of(fd)->ours = true;
    if (vsock_connect(t.vsock, some_port(fuzz_u8(in) & 3), fd, connected, (void *)(intptr_t)fd) == 0)
        return;
    socket_of(fd)->ours = false;
    __wrap_close(fd);
}

static void step_cancel(struct fuzz_input *in)
{
    unsigned i = fuzz_u8(in) % SOCKETS;

    if (!t.sockets[i].open || !t.sockets[i].ours)
        return;
    vsock_connect_cancel(t.vsock, FUZZ_FD_FIRST + (int)i);
    t.sockets[i].ours = false;
    __wrap_close(FUZZ_FD_FIRST + (int)i);
}

/* Something happens at the other end of a socket. */
static void step_socket(struct fuzz_input *in)
{
    unsigned i = fuzz_u8(in) % SOCKETS;
    uint8_t how = fuzz_u8(in);

    if (!t.sockets[i].open || t.sockets[i].ours)
        return;
    t.sockets[i].broken |= how & 1;
    t.sockets[i].eof |= (how & 2) != 0;
    t.sockets[i].room = how & 4 ? fuzz_u16(in) : t.sockets[i].room;
    t.sockets[i].bulk = how & 8 ? fuzz_u16(in) : t.sockets[i].bulk;
    fuzz_loop_event(FUZZ_FD_FIRST + (int)i, (how & 0x10 ? EPOLLIN : 0) | (how & 0x20 ? EPOLLOUT : 0) |
                                                (how & 0x40 ? EPOLLHUP : 0) | (how & 0x80 ? EPOLLRDHUP : 0));
}

/* A client of the Unix socket, with some or all of its line. */
static void step_client(struct fuzz_input *in)
{
    uint8_t how = fuzz_u8(in);
    unsigned i = how % SOCKETS;

    if (how & 0x80) {
        t.accepting = true;
        fuzz_loop_event(LISTENER, EPOLLIN);
        return;
    }
    if (!t.sockets[i].open || t.sockets[i].ours)
        return;
    if (how & 0x40)
        t.sockets[i].line_len = (size_t)snprintf((char *)t.sockets[i].line, sizeof t.sockets[i].line, "CONNECT %u\n",
                                                 some_port(fuzz_u8(in) & 3));
    else
        fuzz_bytes(in, t.sockets[i].line, t.sockets[i].line_len = fuzz_u8(in) % sizeof t.sockets[i].line);
    fuzz_loop_event(FUZZ_FD_FIRST + (int)i, EPOLLIN);
}

static void step(struct fuzz_input *in)
{
    uint8_t what = fuzz_u8(in) % STEPS;
    static void (*const steps[])(struct fuzz_input * in) = {
        [STEP_PACKET] = step_packet,   [STEP_BUFFERS] = step_buffers, [STEP_SOCKET] = step_socket,
        [STEP_CONNECT] = step_connect, [STEP_CANCEL] = step_cancel,   [STEP_CLIENT] = step_client,
    };

    if (what == STEP_PASS)
        fuzz_loop_pass((uint64_t)fuzz_u8(in) << 28, 8);
    else if (what == STEP_RESTORE)
        driver_restore(&t.dev, in);
    else if (what < DRIVER_STEPS)
        driver_step(&t.driver, in, what);
    else
        steps[what](in);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct fuzz_input in = {data, size};
    struct vsock_config config = {.cid = VSOCK_CID_GUEST, .handle = &t.vsock};

    fuzz_loop_begin();
    fuzz_machine_ready(&t.m);
    t.accepting = false;
    assert_int_equal(vsock_host_open(&config.host, "/x/vm.vsock", t.m.loop, NULL, NULL, 0), 0);
    t.dev = (struct device){.name = "vsock", .class = &virtio_vsock_class};
    assert_int_equal(virtio_vsock_class.create(&t.dev, &t.m.env, &config), 0);
    assert_int_equal(vsock_listen(t.vsock, LISTENED, accept_one, NULL), 0);
    driver_attach(&t.driver, &t.m);
    driver_start(&t.driver, fuzz_u64(&in) | 1);
    for (unsigned i = 0; i < STEPS_MAX && in.left; i++)
        step(&in);
    fuzz_loop_pass(0, 8);
    virtio_vsock_class.destroy(&t.dev);
    fuzz_loop_is_empty();
    for (int i = 0; i < SOCKETS; i++)
        assert_true(!t.sockets[i].open);
    return 0;
}
