/*
 * What a network's helper process says, when a guest has taken it over, to the VM process that it serves: frames, news,
 * answers that nobody asked for, an end. The client takes frames or not, sends some, asks for ports. The sockets and
 * the process are made up.
 */
#include <errno.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/types.h>
#include <sys/uio.h>

#include "loop.h"
#include "records.h"

#include "backends/net/helped.c" /* the VM's end; what it keeps is nobody else's business */

#define FD_FIRST FUZZ_FD_FIRST
#define FDS 16
#define STEPS_MAX 40u

static struct target {
    struct net *net;
    struct fuzz_input *in;
    bool open[FDS];
    bool starting; /* the process has just been started and says so */
    bool full, no_room;
} t;

/* --- the system -------------------------------------------------------------------------------------------------- */

static int new_fd(void)
{
    for (int i = 0; i < FDS; i++)
        if (!t.open[i]) {
            t.open[i] = true;
            return FD_FIRST + i;
        }
    abort();
}

int __wrap_socketpair(int domain, int type, int protocol, int ends[2]);
int __wrap_socketpair(int domain, int type, int protocol, int ends[2])
{
    ends[0] = new_fd();
    ends[1] = new_fd();
    return 0;
}

int __wrap_child_start(struct child *c, const char *const argv[], const int *fds, unsigned n_fds, char *err, size_t n);
int __wrap_child_start(struct child *c, const char *const argv[], const int *fds, unsigned n_fds, char *err, size_t n)
{
    *c = (struct child){.pid = 1, .pidfd = new_fd()};
    t.starting = true;
    return 0;
}
bool __wrap_child_ended(struct child *c, int *status);
bool __wrap_child_ended(struct child *c, int *status)
{
    return true;
}
void __wrap_child_stop(struct child *c, int grace_ms);
void __wrap_child_stop(struct child *c, int grace_ms)
{
    if (c->pidfd >= 0)
        t.open[c->pidfd - FD_FIRST] = false;
    c->pidfd = -1;
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

static ssize_t read_control(struct control_message *m)
{
    const struct helped *h = t.net ? t.net->backend : NULL;
    uint8_t how = t.starting ? 0 : fuzz_u8(t.in);

    *m = (struct control_message){.type = CONTROL_UP};
    if (!t.starting && (how < 100 || !t.in->left)) {
        errno = EAGAIN;
        return -1;
    }
    if (!t.starting) {
        m->type = how % 8;
        m->id = how & 8 && h ? h->last_id : fuzz_u8(t.in);
        m->status = how & 16 ? (int32_t)fuzz_u32(t.in) : 0;
        m->publish.host_port = fuzz_u16(t.in);
        memset(m->text, 'x', how & 32 ? sizeof m->text : 9);
    }
    t.starting = false;
    return how > 252 ? 8 : (ssize_t)sizeof *m;
}

ssize_t __real_read(int fd, void *buf, size_t len);
ssize_t __wrap_read(int fd, void *buf, size_t len);
ssize_t __wrap_read(int fd, void *buf, size_t len)
{
    if (fd < FD_FIRST)
        return __real_read(fd, buf, len);
    assert_true(t.open[fd - FD_FIRST]);
    if (len == sizeof(struct control_message))
        return read_control(buf);
    uint8_t how = fuzz_u8(t.in);
    if (how > 252)
        return 0;
    assert_true(len > FUZZ_WIRE_MAX);
    if (how >= 64 && t.in->left)
        return (ssize_t)fuzz_wire_message(t.in, buf);
    errno = EAGAIN;
    return -1;
}

ssize_t __real_write(int fd, const void *buf, size_t len);
ssize_t __wrap_write(int fd, const void *buf, size_t len);
ssize_t __wrap_write(int fd, const void *buf, size_t len)
{
    return fd < FD_FIRST ? __real_write(fd, buf, len) : (ssize_t)len;
}

ssize_t __wrap_writev(int fd, const struct iovec *iov, int n);
ssize_t __wrap_writev(int fd, const struct iovec *iov, int n)
{
    errno = EAGAIN;
    return t.full ? -1 : 1;
}

int __wrap_poll(struct pollfd *p, nfds_t n, int ms);
int __wrap_poll(struct pollfd *p, nfds_t n, int ms)
{
    fuzz_loop.now += 1000000000;
    return 1;
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
void __wrap_log_say(const char *format, ...);
void __wrap_log_say(const char *format, ...) {}

/* --- the client -------------------------------------------------------------------------------------------------- */

static bool receive(void *opaque, const struct net_header *header, const uint8_t *frame, size_t len)
{
    assert_true(len >= 14 && len <= NET_FRAME_MAX);
    return !t.no_room;
}
static void received(void *opaque) {}
static void link_changed(void *opaque, bool up) {}
static const struct net_client client = {
    .receive = receive, .received = received, .writable = received, .link = link_changed};

static void step_send(uint8_t how)
{
    static uint8_t frame[6000];
    static struct net_header header;
    const struct iovec iov[] = {{&header, sizeof header}, {frame, how & 1 ? sizeof frame : 60}};

    if (how & 2)
        fuzz_bytes(t.in, &header, sizeof header);
    net_send(t.net, iov, 2);
    net_flush(t.net);
}

static void step_publish(uint8_t how)
{
    struct net_publish p = {.ip = {127, 0, 0, 1}, .host_port = how & 3, .guest_port = 80};
    char err[ERROR_SIZE] = "";

    int r = how & 4 ? net_publish_remove(t.net, &p, err, sizeof err) : net_publish_add(t.net, &p, err, sizeof err);
    assert_true(!r || err[0]);
}

static void step(uint8_t what)
{
    const struct helped *h = t.net->backend;

    t.no_room = what & 0x40;
    t.full = what & 0x80;
    switch (what % 6) {
    case 0:
    case 1:
        if (h->data >= 0)
            fuzz_loop_event(h->data, what & 8 ? EPOLLOUT : EPOLLIN);
        break;
    case 2:
        if (h->control >= 0)
            fuzz_loop_event(h->control, EPOLLIN);
        break;
    case 3:
        step_send(what >> 3);
        break;
    case 4:
        step_publish(what >> 3);
        break;
    default:
        if (what & 8)
            net_resume(t.net);
        else
            net_set_offloads(t.net, what >> 4 & 15);
        fuzz_loop_pass(1000000, 4);
    }
}

/* The wire's memory is large and stays, unless the helper has died. */
static void put_right(void)
{
    struct helped *h = t.net ? t.net->backend : NULL;
    char err[ERROR_SIZE];

    loop_set_sandbox(&fuzz_loop, NULL);
    t.full = t.no_room = false;
    if (h && h->control < 0) {
        net_close(t.net);
        t.net = NULL;
    }
    if (!t.net) {
        assert_int_equal(net_open(&t.net, "user", &fuzz_loop, err, sizeof err), 0);
        net_attach(t.net, &client, NULL);
        return;
    }
    if (!fuzz_watch(&fuzz_loop, h->data)->events)
        loop_fd_add(&fuzz_loop, h->data, EPOLLIN, on_data, h);
    h->wire.out_len = h->wire.in_len = h->wire.in_at = h->wire.in_next = 0;
    h->last_id = 0;
    h->reading = true;
    h->full = false;
    t.net->n_published = t.net->segments_done = 0;
    t.net->up = true;
    net_set_offloads(t.net, 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct fuzz_input in = {data, size};

    t.in = &in;
    fuzz_loop_begin();
    if (!t.net)
        put_right();
    /* In the sandbox a helper that has died stays dead; nobody looks into this one. */
    loop_set_sandbox(&fuzz_loop, fuzz_u8(&in) & 1 ? (const struct sandbox *)(const void *)&t : NULL);
    for (unsigned i = 0; i < STEPS_MAX && in.left; i++)
        step(fuzz_u8(&in));
    in.left = 0;
    put_right();
    return 0;
}
