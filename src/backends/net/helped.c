/*
 * The networks that a helper process provides: `user` and `switch`, seen from the VM.  After the start they need
 * read(2), write(2) and poll(2) on the descriptors that are open by then.
 */
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "backends/net/announcement.h"
#include "backends/net/control.h"
#include "backends/net/net_int.h"
#include "backends/net/wire.h"
#include "base/error.h"
#include "base/log.h"
#include "host/child.h"

#define START_MS 10000
#define ANSWER_MS 3000
#define STOP_MS 500
/* Messages handed to the guest before others of the event loop get their turn. */
#define MESSAGES_PER_PASS 8u
/* A helper whose guest has taken it over could go up and down for ever: the log is not the place for that. */
#define NEWS_SAID 200u

/* What the helper was asked while the loop goes on; the answers come in the same order. */
struct asked {
    uint32_t id;
    bool add;
    struct net_publish port;
    uint64_t deadline_ns;
    net_publish_done *done; /* NULL: a port that a new helper is to have as the old one had */
    void *opaque;
    bool late; /* has been told that there is no answer */
};

#define ASKED_MAX (NET_PUBLISH_MAX * 2u + 16u)

struct helped {
    struct net *net;
    struct wire wire;
    struct child child;
    int data, control; /* -1: none */
    uint32_t last_id;
    unsigned news;
    struct loop_timer up;   /* CONTROL_UP came while an answer was awaited */
    struct loop_timer late; /* of the first one that was asked */
    struct asked asked[ASKED_MAX];
    unsigned n_asked;
    bool coming;  /* the link goes up when the new helper has its ports */
    bool reading; /* else the guest has no room */
    bool full;    /* the socket has no room for the guest's frames */
    bool waiting; /* the helper has nothing to do yet (child_start_late), and has not said that it is at work */
};

static int start(struct helped *h, char *err, size_t n);
static void gone(struct helped *h);
static void on_data(void *opaque, uint32_t events);

/* --- frames ------------------------------------------------------------------------------------------------------- */

static void watch(struct helped *h, bool reading, bool full)
{
    if (h->reading == reading && h->full == full)
        return;
    h->reading = reading;
    h->full = full;
    loop_fd_mod(h->net->loop, h->data, (reading ? EPOLLIN : 0u) | (full ? EPOLLOUT : 0u));
}

/* The frames of the message in hand.  false: the guest has no room. */
static bool deliver_message(struct helped *h)
{
    struct net_header *header;
    uint8_t *frame;
    size_t len;

    while (wire_next(&h->wire, &header, &frame, &len)) {
        if (!net_deliver(h->net, header, frame, len))
            return false;
        wire_done(&h->wire);
    }
    return true;
}

static void pump(struct helped *h)
{
    bool room = true;
    int r = 1;

    for (unsigned i = 0; i < MESSAGES_PER_PASS && room && (r = wire_fill(&h->wire)) > 0; i++)
        room = deliver_message(h);
    if (r < 0)
        loop_fd_del(h->net->loop, h->data); /* its end is told by the control socket */
    else
        watch(h, room, h->full);
    net_delivered(h->net);
}

static void on_data(void *opaque, uint32_t events)
{
    struct helped *h = opaque;

    if (events & EPOLLOUT) {
        watch(h, h->reading, !wire_flush(&h->wire));
        if (!h->full)
            net_writable(h->net);
    }
    if (events & (EPOLLIN | EPOLLHUP | EPOLLERR))
        pump(h);
}

static bool helped_send(struct net *net, const struct iovec *iov, unsigned n)
{
    struct helped *h = net->backend;

    if (h->waiting && net_is_announcement(iov, n))
        return true;
    h->waiting = false;
    if (wire_put(&h->wire, iov, n))
        return true;
    watch(h, h->reading, true);
    return false;
}

static void helped_flush(struct net *net)
{
    struct helped *h = net->backend;

    if (!wire_flush(&h->wire))
        watch(h, h->reading, true);
}

static void helped_resume(struct net *net)
{
    struct helped *h = net->backend;

    if (!h->reading)
        pump(h);
}

/* --- news and requests -------------------------------------------------------------------------------------------- */

/* The link goes up when all ports lead into the guest again, or cannot. */
static void come_up(struct helped *h)
{
    bool waits = false;

    for (unsigned i = 0; i < h->n_asked; i++)
        waits |= !h->asked[i].done && !h->asked[i].late;
    if (!h->coming || waits)
        return;
    h->coming = false;
    if (h->news < NEWS_SAID)
        log_say("network: it works again; connections that were open are lost");
    net_set_link(h->net, true);
}

static void settle(struct helped *h, const struct asked *a, int failed, const char *why)
{
    if (a->done) {
        if (!failed)
            net_publish_settled(h->net, &a->port, a->add);
        a->done(a->opaque, failed, &a->port, why);
    } else if (failed && a->add) {
        log_say("network: %s", why);
    }
}

static void set_late_timer(struct helped *h)
{
    for (unsigned i = 0; i < h->n_asked; i++)
        if (!h->asked[i].late) {
            loop_timer_set(h->net->loop, &h->late, h->asked[i].deadline_ns);
            return;
        }
    loop_timer_cancel(h->net->loop, &h->late);
}

static struct asked take_asked(struct helped *h, unsigned i)
{
    struct asked a = h->asked[i];

    memmove(h->asked + i, h->asked + i + 1, (--h->n_asked - i) * sizeof *h->asked);
    set_late_timer(h);
    return a;
}

static void fail_asked(struct helped *h, const char *why)
{
    while (h->n_asked) {
        struct asked a = take_asked(h, 0);
        if (a.done && !a.late)
            settle(h, &a, -EPIPE, why);
    }
}

/* Who asked is told; the request stays, as it may still be carried out. */
static void on_late(void *opaque)
{
    struct helped *h = opaque;
    uint64_t now = clock_ns();

    for (unsigned i = 0; i < h->n_asked; i++) {
        if (h->asked[i].late || h->asked[i].deadline_ns > now)
            continue;
        h->asked[i].late = true;
        settle(h,
               &(struct asked){.add = h->asked[i].add,
                               .port = h->asked[i].port,
                               .done = h->asked[i].done,
                               .opaque = h->asked[i].opaque},
               -ETIMEDOUT, "the network's helper process does not answer");
    }
    set_late_timer(h);
    come_up(h);
}

static int ask(struct helped *h, const struct asked *what, char *err, size_t n);

/* It was carried out after all: what was to be published is taken back, what was to be taken back is. */
static void undo_late(struct helped *h, const struct asked *a)
{
    char none[ERROR_SIZE];

    if (a->done && a->add)
        ask(h, &(struct asked){.port = a->port}, none, sizeof none);
    else if (a->done)
        net_publish_settled(h->net, &a->port, false);
}

static void on_answer(struct helped *h, const struct control_message *m)
{
    for (unsigned i = 0; i < h->n_asked; i++) {
        if (h->asked[i].id != m->id)
            continue;
        struct asked a = take_asked(h, i);
        if (!m->status && a.add)
            a.port.host_port = m->publish.host_port;
        if (!a.late)
            settle(h, &a, m->status, m->text);
        else if (!m->status)
            undo_late(h, &a);
        come_up(h);
        return;
    }
}

static uint32_t next_id(struct helped *h)
{
    return ++h->last_id ? h->last_id : ++h->last_id;
}

static int ask(struct helped *h, const struct asked *what, char *err, size_t n)
{
    struct asked a = *what;

    if (h->control < 0)
        return error_set(err, n, -EPIPE, "the network's helper process has ended");
    if (h->n_asked == ASKED_MAX)
        return error_set(err, n, -EBUSY, "the network's helper process has too much to do");
    a.id = next_id(h);
    a.deadline_ns = clock_ns() + ANSWER_MS * 1000000ull;
    const struct control_message m = {.type = a.add ? CONTROL_ADD : CONTROL_REMOVE, .id = a.id, .publish = a.port};
    int r = control_send(h->control, &m);
    if (r)
        return error_sys(err, n, r, "cannot ask the network's helper process");
    h->asked[h->n_asked++] = a;
    set_late_timer(h);
    return 0;
}

static int helped_ask(struct net *net, const struct net_publish *p, bool add, net_publish_done *done, void *opaque,
                      char *err, size_t n)
{
    return ask(net->backend, &(struct asked){.add = add, .port = *p, .done = done, .opaque = opaque}, err, n);
}

/* The new process knows nothing of the ports that the old one had; `afresh`: or of some. */
static void publish_again(struct helped *h, bool afresh)
{
    char err[ERROR_SIZE];

    for (unsigned i = 0; i < h->net->n_published; i++) {
        struct asked a = {.port = h->net->published[i]};
        int r = afresh ? 0 : ask(h, &a, err, sizeof err);
        a.add = true;
        if (!r)
            r = ask(h, &a, err, sizeof err);
        if (r)
            log_say("network: %s", err);
    }
}

static void back_at_work(struct helped *h, bool afresh)
{
    if (net_link(h->net))
        return;
    h->coming = true;
    publish_again(h, afresh);
    come_up(h);
}

static void handle_news(struct helped *h, const struct control_message *m)
{
    if (m->type == CONTROL_DOWN) {
        if (h->news++ < NEWS_SAID)
            log_say("network: %s%s", m->text, m->status ? "; the guest has no network now" : "; starting it again");
        h->coming = false;
        net_set_link(h->net, false);
        fail_asked(h, "the network's helper process has ended");
    } else if (m->type == CONTROL_UP) {
        h->waiting = false;
        back_at_work(h, true);
    } else if (m->type == CONTROL_ANSWER) {
        on_answer(h, m);
    }
}

/* The new process may know one of the ports: that of the request during which it came. */
static void on_up(void *opaque)
{
    back_at_work(opaque, false);
}

static void on_control(void *opaque, uint32_t events)
{
    struct helped *h = opaque;
    struct control_message m;
    int r = 1;

    for (unsigned i = 0; i < MESSAGES_PER_PASS && (r = control_receive(h->control, &m)) > 0; i++)
        handle_news(h, &m);
    if (r < 0)
        gone(h);
}

/* Waits for a message that ends with the answer to `id`, or with news when id is 0. */
static int await(struct helped *h, uint32_t id, struct control_message *m, int ms, char *err, size_t n)
{
    uint64_t end = clock_ns() + (uint64_t)ms * 1000000, now;

    while ((now = clock_ns()) < end) {
        struct pollfd p = {.fd = h->control, .events = POLLIN};
        if (poll(&p, 1, (int)((end - now) / 1000000) + 1) < 0 && errno != EINTR)
            return error_sys(err, n, -errno, "cannot wait for the network's helper");
        int r = control_receive(h->control, m);
        if (r < 0)
            return error_sys(err, n, -EPIPE, "the network's helper process has ended");
        if (r == 0)
            continue;
        if (!id || (m->type == CONTROL_ANSWER && m->id == id))
            return 0;
        if (m->type == CONTROL_DOWN) {
            handle_news(h, m);
            return error_set(err, n, -EPIPE, "the network's helper process has ended");
        }
        if (m->type == CONTROL_UP)
            loop_timer_set(h->net->loop, &h->up, clock_ns());
        if (m->type == CONTROL_ANSWER)
            on_answer(h, m);
    }
    return error_set(err, n, -ETIMEDOUT, "the network's helper process does not answer within %d s", ms / 1000);
}

static int request(struct helped *h, struct control_message *m, int ms, char *err, size_t n)
{
    struct control_message answer = {0};

    if (h->control < 0)
        return error_set(err, n, -EPIPE, "the network's helper process has ended");
    m->id = next_id(h);
    int r = control_send(h->control, m);
    if (r)
        return error_sys(err, n, r, "cannot ask the network's helper process");
    r = await(h, m->id, &answer, ms, err, n);
    if (r)
        return r;
    m->publish = answer.publish;
    return answer.status ? error_set(err, n, answer.status, "%s", answer.text) : 0;
}

/* Before the loop runs. */
static int helped_publish(struct net *net, struct net_publish *p, bool add, char *err, size_t n)
{
    struct control_message m = {.type = add ? CONTROL_ADD : CONTROL_REMOVE, .publish = *p};
    int r = request(net->backend, &m, ANSWER_MS, err, n);

    if (!r)
        p->host_port = m.publish.host_port;
    return r;
}

/* --- the process -------------------------------------------------------------------------------------------------- */

static void drop(struct helped *h)
{
    int *fds[] = {&h->data, &h->control};

    if (h->child.pidfd >= 0)
        loop_fd_del(h->net->loop, h->child.pidfd);
    loop_timer_cancel(h->net->loop, &h->up);
    fail_asked(h, "the network's helper process has ended");
    h->coming = false;
    wire_free(&h->wire);
    for (unsigned i = 0; i < 2; i++)
        if (*fds[i] >= 0) {
            loop_fd_del(h->net->loop, *fds[i]);
            close(*fds[i]);
            *fds[i] = -1;
        }
    child_stop(&h->child, STOP_MS); /* it ends by itself, now that there is nobody to talk to */
}

/* The outer process has been killed; the inner one, which does the work, need not be. */
static void on_end(void *opaque, uint32_t events)
{
    struct helped *h = opaque;
    int status, pidfd = h->child.pidfd;

    loop_fd_del(h->net->loop, pidfd);
    if (child_ended(&h->child, &status))
        log_say("network: the process that watches over the helper process has been killed");
}

/* Nobody is at the other end any more.  From within the sandbox no process can be started. */
static void gone(struct helped *h)
{
    bool again = !loop_sandbox(h->net->loop);
    char err[ERROR_SIZE];

    log_say("network: the helper process has been killed%s", again ? "; starting it again" : "");
    net_set_link(h->net, false);
    drop(h);
    if (again && start(h, err, sizeof err) == 0)
        handle_news(h, &(struct control_message){.type = CONTROL_UP});
    else
        log_say("network: %s%sthe guest has no network until the virtual machine is started again", again ? err : "",
                again ? "; " : "");
}

static int start_child(struct helped *h, char *err, size_t n)
{
    const struct net_spec *spec = &h->net->spec;
    const char *const argv[] = {NULL, "helper-net", spec->kind->word, spec->kind->where ? spec->where : spec->reach,
                                NULL};
    int data[2], control[2];

    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, data))
        return error_sys(err, n, -errno, "cannot make a socket for the network");
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, control)) {
        int r = error_sys(err, n, -errno, "cannot make a socket for the network");
        close(data[0]);
        close(data[1]);
        return r;
    }
    h->data = data[0];
    h->control = control[0];
    const int fds[] = {data[1], control[1]};
    h->waiting = h->net->late && h->net->spec.kind == &net_kind_user;
    int r = h->waiting ? child_start_late(&h->child, argv, fds, 2, 2, err, n)
                       : child_start(&h->child, argv, fds, 2, err, n);
    h->net->late = false; /* who starts it again needs it */
    close(data[1]);
    close(control[1]);
    return r;
}

/* What start_child has begun. */
static int started(struct helped *h, char *err, size_t n)
{
    struct control_message first = {.type = CONTROL_UP};
    int r = h->waiting ? 0 : await(h, 0, &first, START_MS, err, n);

    if (!r && first.type != CONTROL_UP)
        r = error_set(err, n, first.status ? first.status : -EIO, "%s", first.text);
    if (!r && (r = wire_init(&h->wire, h->data)))
        error_sys(err, n, r, "cannot set up the network");
    if (!r) {
        h->reading = true;
        h->full = false;
        r = loop_fd_add(h->net->loop, h->data, EPOLLIN, on_data, h);
        if (!r)
            r = loop_fd_add(h->net->loop, h->control, EPOLLIN, on_control, h);
        if (!r)
            r = loop_fd_add(h->net->loop, h->child.pidfd, EPOLLIN, on_end, h);
        if (r)
            error_sys(err, n, r, "cannot watch the network");
    }
    if (r)
        drop(h);
    return r;
}

static int start(struct helped *h, char *err, size_t n)
{
    int r = start_child(h, err, n);

    if (r)
        drop(h);
    return r ? r : started(h, err, n);
}

static int helped_open(struct net *net, char *err, size_t n)
{
    struct helped *h = calloc(1, sizeof *h);

    if (!h)
        return error_sys(err, n, -ENOMEM, "cannot set up the network");
    *h = (struct helped){.net = net, .data = -1, .control = -1, .child = {.pidfd = -1}, .wire = {.fd = -1}};
    loop_timer_init(&h->up, on_up, h);
    loop_timer_init(&h->late, on_late, h);
    int r = start_child(h, err, n);
    if (r) {
        drop(h);
        free(h);
        return r;
    }
    net->backend = h;
    return 0;
}

static int helped_ready(struct net *net, char *err, size_t n)
{
    struct helped *h = net->backend;

    return h->wire.fd >= 0  ? 0
           : h->control < 0 ? error_set(err, n, -EPIPE, "the network's helper process has ended")
                            : started(h, err, n);
}

static void helped_close(struct net *net)
{
    struct helped *h = net->backend;

    drop(h);
    free(h);
}

const struct net_kind net_kind_user = {
    .word = "user",
    .open = helped_open,
    .ready = helped_ready,
    .close = helped_close,
    .send = helped_send,
    .flush = helped_flush,
    .resume = helped_resume,
    .publish = helped_publish,
    .ask = helped_ask,
};

const struct net_kind net_kind_switch = {
    .word = "switch",
    .where = "PATH",
    .open = helped_open,
    .ready = helped_ready,
    .close = helped_close,
    .send = helped_send,
    .flush = helped_flush,
    .resume = helped_resume,
};
