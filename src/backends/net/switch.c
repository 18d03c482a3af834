/*
 * The `switch` network: a learning Ethernet switch among VMs that name the same socket, without a process that has to
 * be started first or stays behind.
 *
 * Each VM has a helper.  The first one listens on the socket and is the hub: it forwards among the others' sockets and
 * its own VM.  When the hub goes, its connections close, and the others choose again: who binds the socket first is
 * the next hub.  Choosing is done with the directory of the socket locked (flock), so there are never two hubs of one
 * path.
 *
 *      VM a ─ helper (hub) ═╤═ helper ─ VM b          ─ the socket pair of a VM and its helper
 *                           └═ helper ─ VM c          ═ SOCK_SEQPACKET connections; both carry net/wire.h
 *
 * A port that cannot take more makes those who send to it wait, as long as it takes anything at all.
 */
#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "backends/net/worker.h"
#include "host/loop.h"
#include "host/sandbox.h"

#define PORTS_MAX 128u
#define PORT_LIMIT (1u << 20)
#define MESSAGES_PER_PASS 8u
#define ADDRESSES 1024u /* a power of two */
#define FORGET_NS (300ull * 1000000000)
/* One that has taken nothing for so long is not waited for. */
#define PATIENCE_NS 50000000ull
#define RETRY_MS 50
#define NOBODY PORTS_MAX
#define PATH_SIZE sizeof((struct sockaddr_un *)0)->sun_path

enum { PORT_VM, PORT_FIRST_PEER }; /* at a leaf the one peer is the hub */

struct port {
    int fd; /* -1: free */
    struct wire wire;
    struct worker_out out;
    uint64_t took_ns;   /* when it last had nothing waiting, or took a frame of what was */
    unsigned waits_for; /* the port that frames of this one go to; NOBODY */
    short events;       /* of this turn */
};

struct address {
    uint8_t mac[6];
    uint8_t port;
    uint64_t seen_ns; /* 0: free */
};

struct hub {
    const char *path;
    int listener; /* -1: a leaf, or not yet anything */
    struct port ports[PORTS_MAX];
    struct address addresses[ADDRESSES];
    struct worker_watchdog watchdog;
    uint64_t now_ns;
};

/* --- ports -------------------------------------------------------------------------------------------------------- */

static int open_port(struct hub *h, unsigned i, int fd)
{
    struct port *p = &h->ports[i];
    int err = wire_init(&p->wire, fd);

    if (err)
        return err;
    worker_out_init(&p->out, &p->wire, PORT_LIMIT);
    p->fd = fd;
    p->took_ns = h->now_ns;
    p->waits_for = NOBODY;
    return 0;
}

static void close_port(struct hub *h, unsigned i)
{
    struct port *p = &h->ports[i];

    worker_out_free(&p->out);
    wire_free(&p->wire);
    close(p->fd);
    p->fd = -1;
    for (unsigned k = 0; k < PORTS_MAX; k++)
        if (h->ports[k].waits_for == i)
            h->ports[k].waits_for = NOBODY;
    for (unsigned k = 0; k < ADDRESSES; k++)
        if (h->addresses[k].port == i)
            h->addresses[k].seen_ns = 0;
}

/* --- who is hub --------------------------------------------------------------------------------------------------- */

/* `path` fits: choose() sees to that. */
static const char *directory_of(const char *path, char copy[PATH_SIZE])
{
    memcpy(copy, path, strlen(path) + 1);
    return dirname(copy);
}

static int lock_directory(const char *path)
{
    char copy[PATH_SIZE];
    int fd = open(directory_of(path, copy), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return -errno;
    while (flock(fd, LOCK_EX))
        if (errno != EINTR) {
            int err = -errno;
            close(fd);
            return err;
        }
    return fd;
}

/* Listens at the path, in the place of a socket that nobody answers at.  0 or -errno. */
static int become_hub(struct hub *h, const struct sockaddr_un *at)
{
    struct stat st;

    if (lstat(h->path, &st) == 0 && (!S_ISSOCK(st.st_mode) || unlink(h->path)))
        return -EEXIST;
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return -errno;
    mode_t mask = umask(0177);
    int err = bind(fd, (const struct sockaddr *)at, sizeof *at) || listen(fd, PORTS_MAX) ? -errno : 0;
    umask(mask);
    if (err)
        close(fd);
    else
        h->listener = fd;
    return err;
}

static int join(struct hub *h, const struct sockaddr_un *at)
{
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);

    if (fd < 0)
        return -errno;
    int err = connect(fd, (const struct sockaddr *)at, sizeof *at) ? -errno : open_port(h, PORT_FIRST_PEER, fd);
    if (err)
        close(fd);
    return err;
}

static int choose(struct hub *h)
{
    struct sockaddr_un at = {.sun_family = AF_UNIX};

    if (strlen(h->path) >= sizeof at.sun_path)
        return -ENAMETOOLONG;
    memcpy(at.sun_path, h->path, strlen(h->path) + 1);
    int lock = lock_directory(h->path);
    if (lock < 0)
        return lock;
    int err = join(h, &at);
    if (err == -ECONNREFUSED || err == -ENOENT)
        err = become_hub(h, &at);
    close(lock);
    return err;
}

static void step_down(struct hub *h)
{
    int lock = h->listener < 0 ? -1 : lock_directory(h->path);

    if (lock < 0)
        return;
    unlink(h->path);
    close(h->listener);
    close(lock);
}

/* --- forwarding --------------------------------------------------------------------------------------------------- */

static struct address *slot(struct hub *h, const uint8_t *mac)
{
    uint64_t key = 0;

    memcpy(&key, mac, 6);
    return &h->addresses[key * 0x9e3779b97f4a7c15 >> 54 & (ADDRESSES - 1)];
}

static void learn(struct hub *h, const uint8_t *mac, unsigned port)
{
    struct address *a = slot(h, mac);

    if (mac[0] & 1)
        return;
    memcpy(a->mac, mac, sizeof a->mac);
    a->port = (uint8_t)port;
    a->seen_ns = h->now_ns;
}

static unsigned find(struct hub *h, const uint8_t *mac)
{
    struct address *a = slot(h, mac);

    return a->seen_ns && h->now_ns - a->seen_ns < FORGET_NS && memcmp(a->mac, mac, sizeof a->mac) == 0 ? a->port
                                                                                                       : NOBODY;
}

static void forward(struct hub *h, unsigned from, const struct net_header *header, uint8_t *frame, size_t len)
{
    const struct iovec iov[] = {{(void *)(uintptr_t)header, sizeof *header}, {frame, len}};

    if (len < 14)
        return;
    learn(h, frame + 6, from);
    unsigned to = frame[0] & 1 ? NOBODY : find(h, frame);
    if (to == from)
        return;
    for (unsigned i = 0; i < PORTS_MAX; i++)
        if (h->ports[i].fd >= 0 && i != from && (to == NOBODY || i == to))
            worker_out_put(&h->ports[i].out, iov, 2);
    if (to != NOBODY)
        h->ports[from].waits_for = to;
}

static bool may_read(const struct hub *h, const struct port *p)
{
    if (p->waits_for == NOBODY)
        return true;
    const struct port *to = &h->ports[p->waits_for];
    return to->out.waiting < WORKER_ENOUGH || h->now_ns - to->took_ns > PATIENCE_NS;
}

/* false: the other end is gone. */
static bool read_port(struct hub *h, unsigned i)
{
    struct port *p = &h->ports[i];
    struct net_header *header;
    uint8_t *frame;
    size_t len;
    int r = 1;

    for (unsigned k = 0; k < MESSAGES_PER_PASS && may_read(h, p) && (r = wire_fill(&p->wire)) > 0; k++)
        while (wire_next(&p->wire, &header, &frame, &len)) {
            forward(h, i, header, frame, len);
            wire_done(&p->wire);
        }
    return r >= 0;
}

static unsigned free_port(const struct hub *h)
{
    unsigned i = PORT_FIRST_PEER;

    while (i < PORTS_MAX && h->ports[i].fd >= 0)
        i++;
    return i;
}

/* All that wait: who has joined before a frame was sent gets it. */
static void welcome(struct hub *h)
{
    int fd;

    while ((fd = accept4(h->listener, NULL, NULL, SOCK_CLOEXEC)) >= 0) {
        unsigned i = free_port(h);
        if (i == PORTS_MAX || open_port(h, i, fd))
            close(fd);
    }
}

/* --- the loop ----------------------------------------------------------------------------------------------------- */

static void flush(struct port *p, uint64_t now_ns)
{
    size_t before = p->out.waiting;
    bool done = worker_out_flush(&p->out);

    if (done || p->out.waiting < before)
        p->took_ns = now_ns;
    p->events = done ? 0 : POLLOUT;
}

/* A leaf whose hub has gone: the frames of a moment are lost, as when a cable is moved. */
static bool is_alone(const struct hub *h)
{
    return h->listener < 0 && h->ports[PORT_FIRST_PEER].fd < 0;
}

/* fds[0]: the control socket, [1]: the listener, [2 + i]: port i. */
static int wait_for_events(struct hub *h, struct pollfd fds[PORTS_MAX + 2])
{
    int timeout_ms = is_alone(h) ? RETRY_MS : WORKER_TURN_MS;

    fds[0] = (struct pollfd){HELPER_CONTROL, POLLIN, 0};
    fds[1] = (struct pollfd){h->listener, POLLIN, 0};
    for (unsigned i = 0; i < PORTS_MAX; i++) {
        struct port *p = &h->ports[i];
        if (p->fd >= 0) {
            flush(p, h->now_ns);
            if (may_read(h, p))
                p->events |= POLLIN;
            else
                timeout_ms = RETRY_MS;
        }
        fds[2 + i] = (struct pollfd){p->fd, p->events, 0};
    }
    return poll(fds, PORTS_MAX + 2, timeout_ms);
}

static bool vm_is_there(short events)
{
    struct control_message m;
    int r;

    if (!events)
        return true;
    while ((r = control_receive(HELPER_CONTROL, &m)) > 0)
        ;
    return r == 0;
}

/* false: the VM has gone. */
static bool turn(struct hub *h)
{
    struct pollfd fds[PORTS_MAX + 2];
    int n = wait_for_events(h, fds);

    h->watchdog.turns++;
    h->now_ns = clock_ns();
    if (n < 0)
        return errno == EINTR;
    if (!vm_is_there(fds[0].revents))
        return false;
    if (fds[1].revents)
        welcome(h);
    for (unsigned i = 0; i < PORTS_MAX; i++) {
        if (!(fds[2 + i].revents & (POLLIN | POLLHUP | POLLERR)) || read_port(h, i))
            continue;
        if (i == PORT_VM)
            return false;
        close_port(h, i);
    }
    return true;
}

/* It stays who it is: the next hub makes the socket anew, in the same directory. */
static int confine(const char *path)
{
    char copy[PATH_SIZE];
    const struct sandbox_path directory = {directory_of(path, copy), SANDBOX_READ | SANDBOX_CHANGE};
    const struct sandbox_spec spec = {.role = SANDBOX_SWITCH, .paths = &directory, .n_paths = 1, .keep_user = true};

    return sandbox_enter(&spec, NULL, NULL, 0);
}

static int switch_main(const char *path)
{
    struct hub *h = calloc(1, sizeof *h);
    int err = h ? 0 : -ENOMEM;

    if (!err) {
        h->path = path;
        h->listener = -1;
        h->now_ns = clock_ns();
        for (unsigned i = 0; i < PORTS_MAX; i++)
            h->ports[i] = (struct port){.fd = -1, .waits_for = NOBODY};
        err = open_port(h, PORT_VM, HELPER_DATA);
    }
    if (!err)
        err = choose(h);
    if (!err)
        err = worker_watch(&h->watchdog, WORKER_WATCH_S);
    if (!err)
        err = confine(path);
    if (err == -EEXIST)
        return worker_hopeless(err, "the switch %s is a file of another kind: choose another name", path);
    if (err)
        return worker_hopeless(err, "the switch %s cannot be used: %s", path, strerror(-err));
    worker_up();
    while (turn(h))
        if (is_alone(h))
            choose(h); /* or in the next turn */
    step_down(h);
    return WORKER_DONE;
}

const struct worker_kind worker_switch = {"switch", switch_main};
