#include "vm/link.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "agent/client.h"
#include "agent/frame.h"
#include "agent/protocol.h"
#include "base/error.h"
#include "devices/virtio/vsock.h"
#include "vm/life.h"

#define CONNECTING_MAX 64u
#define NEWS_TRIES 50u
#define NEWS_PAUSE_NS 100000000ull
#define NEWS_PATIENCE_NS 250000000ull /* for an answer; twice as much each time, up to: */
#define NEWS_PATIENCE_DOUBLED 5u

/* Something on its way to a port of the guest.  Lives until the device calls back, which it does at its end at the
 * latest. */
struct errand {
    struct vm *vm;
    int fd;                       /* what the device was given */
    struct control_ticket ticket; /* of a "connect"; else its id is NULL */
};

struct link {
    int hello; /* our end of the agent's connection; -1: none */
    int power; /* our end of the one that asked for the shutdown; -1: none */
    size_t len;
    uint8_t bytes[AGENT_HELLO_MAX];
    unsigned connecting;
    int news; /* our end of the one that tells of a restore; -1: none */
    unsigned tries, waits;
    bool copied; /* the news are of that */
    struct loop_timer again;
};

static struct vm_life *life_of(struct vm *vm)
{
    return vm->config->life;
}

static int make_pair(int ends[2])
{
    return socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, ends) ? -errno : 0;
}

/* --- it says that it is there ------------------------------------------------------------------------------ */

static void end_hello(struct vm *vm)
{
    struct link *link = life_of(vm)->link;

    if (link->hello < 0)
        return;
    loop_fd_del(vm->loop, link->hello);
    close(link->hello);
    link->hello = -1;
}

static void greet(struct vm *vm, const struct agent_hello *hello)
{
    if (hello->failure[0]) {
        life_event(vm, "agent-failed", json_pack("{s:s}", "reason", hello->failure));
        return;
    }
    life_of(vm)->ready_ns = clock_ns();
    life_event(vm, "agent-ready",
               json_pack("{s:I, s:s}", "guest_uptime_ms", (json_int_t)hello->uptime_ms, "mode",
                         hello->boot_mode ? "boot" : "command"));
}

static void on_hello(void *opaque, uint32_t events)
{
    struct vm *vm = opaque;
    struct link *link = life_of(vm)->link;
    struct agent_hello hello;
    ssize_t got = recv(link->hello, link->bytes + link->len, sizeof link->bytes - link->len, MSG_DONTWAIT);

    if (got < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    link->len += got > 0 ? (size_t)got : 0;
    int used = got > 0 ? agent_hello_parse(link->bytes, link->len, &hello) : -ECONNRESET;
    if (used == 0 && link->len < sizeof link->bytes)
        return; /* more must come */
    if (used > 0)
        greet(vm, &hello);
    end_hello(vm);
}

/* The newest counts: after a reset the agent is another one. */
static int accept_hello(void *opaque, uint32_t guest_port)
{
    struct vm *vm = opaque;
    struct link *link = life_of(vm)->link;
    int ends[2], failed = make_pair(ends);

    if (failed)
        return failed;
    end_hello(vm);
    failed = loop_fd_add(vm->loop, ends[0], EPOLLIN, on_hello, vm);
    if (failed) {
        close(ends[0]);
        close(ends[1]);
        return failed;
    }
    link->hello = ends[0];
    link->len = 0;
    return ends[1];
}

static void tell_news(void *opaque);

int link_open(struct vm *vm, char *err, size_t n)
{
    struct vm_life *life = life_of(vm);

    if (!life || !vm->vsock)
        return 0;
    life->link = calloc(1, sizeof *life->link);
    if (!life->link)
        return error_sys(err, n, -ENOMEM, "the way to the guest's agent cannot be made");
    life->link->hello = life->link->power = life->link->news = -1;
    loop_timer_init(&life->link->again, tell_news, vm);
    int failed = vsock_listen(vm->vsock, AGENT_PORT, accept_hello, vm);
    return failed ? error_sys(err, n, failed, "cannot listen for the guest's agent") : 0;
}

static void forget_request(struct link *link)
{
    if (link->power >= 0)
        close(link->power);
    link->power = -1;
}

static void end_news(struct vm *vm)
{
    struct link *link = life_of(vm)->link;

    loop_timer_cancel(vm->loop, &link->again);
    if (link->news < 0)
        return;
    loop_fd_del(vm->loop, link->news);
    close(link->news);
    link->news = -1;
}

void link_reset(struct vm *vm)
{
    if (!life_of(vm) || !life_of(vm)->link)
        return;
    end_hello(vm);
    end_news(vm);
    forget_request(life_of(vm)->link);
    life_of(vm)->ready_ns = 0;
}

void link_close(struct vm *vm)
{
    struct vm_life *life = life_of(vm);

    if (!life || !life->link)
        return;
    vsock_listen(vm->vsock, AGENT_PORT, NULL, NULL);
    end_hello(vm);
    end_news(vm);
    forget_request(life->link);
    free(life->link);
    life->link = NULL;
}

/* --- into the guest ------------------------------------------------------------------------------------------ */

/* Takes over fd, also when it fails. */
static int send_errand(struct vm *vm, uint32_t port, int fd, void (*done)(void *opaque, int err, uint32_t host_port),
                       struct errand **out)
{
    struct errand *e = life_of(vm)->link->connecting < CONNECTING_MAX ? calloc(1, sizeof *e) : NULL;
    int failed = e ? 0 : -EMFILE;

    if (e) {
        *e = (struct errand){.vm = vm, .fd = fd};
        failed = vsock_connect(vm->vsock, port, fd, done, e);
    }
    if (failed) {
        close(fd);
        free(e);
        return failed;
    }
    life_of(vm)->link->connecting++;
    *out = e;
    return 0;
}

/* The errand is over; the life, or its link, may be gone already. */
static struct vm_life *end_errand(struct errand *e)
{
    struct vm_life *life = life_of(e->vm);

    if (life && life->link)
        life->link->connecting--;
    return life && life->control ? life : NULL;
}

static const char *why_not(int err)
{
    static const struct {
        int err;
        const char *sentence;
    } reasons[] = {
        {-ECONNREFUSED, "nothing listens on that port in the guest"},
        {-ECONNRESET, "the guest was reset"},
        {-EHOSTDOWN, "the guest has no driver for vsock, or not yet"},
        {-ETIMEDOUT, "the guest does not answer"},
        {-EMFILE, "too many connections are being made"},
    };

    for (size_t i = 0; i < sizeof reasons / sizeof *reasons; i++)
        if (reasons[i].err == err)
            return reasons[i].sentence;
    return strerror(-err);
}

static void connected(void *opaque, int err, uint32_t host_port)
{
    struct errand *e = opaque;
    struct vm_life *life = end_errand(e);

    if (err)
        close(e->fd);
    if (!life) {
        json_decref(e->ticket.id);
    } else if (err) {
        control_reply(life->control, &e->ticket, NULL, "failed", why_not(err));
    } else {
        int taken = control_take(life->control, &e->ticket, json_pack("{s:i}", "host_port", (int)host_port));
        if (taken >= 0)
            close(taken); /* e->fd is the same connection, and the device's from now on */
        else
            shutdown(e->fd, SHUT_RDWR); /* the client has gone */
    }
    free(e);
}

json_t *link_connect(struct control_call *call)
{
    struct vm *vm = call->opaque;
    json_t *port = json_object_get(call->arguments, "port");
    struct errand *e;

    if (!json_is_integer(port) || json_integer_value(port) < 1 || json_integer_value(port) > UINT32_MAX)
        return control_fail(call, "bad-request", "\"port\" is not a number from 1 to %u", UINT32_MAX);
    if (!vm->vsock)
        return control_fail(call, "unsupported", "this machine has no vsock");
    int fd = control_connection(call);
    if (fd < 0)
        return control_fail(call, "bad-request", "a connection that waits for something cannot become a stream");
    int err = send_errand(vm, (uint32_t)json_integer_value(port), fd, connected, &e);
    if (err)
        return control_fail(call, "failed", "%s", why_not(err));
    e->ticket = control_ticket(call);
    call->later = true;
    return NULL;
}

/* --- power off -------------------------------------------------------------------------------------------------- */

static void asked(void *opaque, int err, uint32_t host_port)
{
    struct errand *e = opaque;
    struct vm_life *life = end_errand(e);

    if (err)
        close(e->fd);
    if (err && life)
        machine_power_button(e->vm->machine);
    free(e);
}

int link_power_off(struct vm *vm)
{
    struct vm_life *life = life_of(vm);
    struct errand *e;
    struct stream s;
    int ends[2];

    if (!life->link || !life->ready_ns)
        return -EHOSTDOWN;
    int failed = make_pair(ends);
    if (failed)
        return failed;
    /* The request waits in the socket until the guest has accepted.  Our end stays open: the answer has somewhere to
     * go. */
    stream_init(&s, ends[0]);
    stream_put_number(&s, FRAME_POWER, FIELD_ACTION, POWER_OFF);
    failed = stream_flush(&s);
    stream_release(&s);
    if (failed) {
        close(ends[1]);
    } else {
        failed = send_errand(vm, AGENT_PORT, ends[1], asked, &e);
    }
    if (failed) {
        close(ends[0]);
        return failed;
    }
    forget_request(life->link);
    life->link->power = ends[0];
    return 0;
}

bool link_power_was_asked(struct vm *vm)
{
    return life_of(vm)->link && life_of(vm)->link->power >= 0;
}

/* --- a restored guest -------------------------------------------------------------------------------------------- */

/* Its clock stands where it stood, and others may have the same random numbers.  The connections that it had end while
 * it goes on; so one that is made meanwhile may end with them, and another is made.  Linux ends those without a word to
 * us: one that nobody answers is not waited for any longer. */
static void news_failed(struct vm *vm)
{
    struct link *link = life_of(vm)->link;

    end_news(vm);
    if (++link->tries < NEWS_TRIES)
        loop_timer_set(vm->loop, &link->again, clock_ns() + NEWS_PAUSE_NS);
}

static void on_news(void *opaque, uint32_t events)
{
    struct vm *vm = opaque;
    uint8_t answer[FRAME_HEADER];
    ssize_t got = recv(life_of(vm)->link->news, answer, sizeof answer, MSG_DONTWAIT);

    if (got < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (got > 0) {
        end_news(vm);
        life_event(vm, "identity", NULL);
    } else
        news_failed(vm);
}

static void put_names(struct vm *vm, struct stream *s)
{
    const struct vm_settings *settings = &life_of(vm)->record->settings;

    stream_text(s, FIELD_HOSTNAME, settings->hostname ? settings->hostname : life_of(vm)->record->name);
    for (unsigned i = 0; i < vm->n_nets; i++)
        stream_bytes(s, FIELD_MAC, vm->macs[i], sizeof vm->macs[i]);
}

static int send_identity(struct vm *vm, int fd)
{
    struct timespec now;
    struct stream s;
    uint8_t seed[32];

    if (getrandom(seed, sizeof seed, 0) != sizeof seed)
        return -EIO;
    clock_gettime(CLOCK_REALTIME, &now);
    stream_init(&s, fd);
    stream_begin(&s, FRAME_IDENTITY);
    stream_bytes(&s, FIELD_SEED, seed, sizeof seed);
    stream_number(&s, FIELD_TIME, (uint64_t)now.tv_sec * 1000000000ull + (uint64_t)now.tv_nsec);
    if (life_of(vm)->link->copied)
        put_names(vm, &s);
    stream_end(&s);
    int failed = stream_flush(&s);
    stream_release(&s);
    return failed;
}

/* An end of the connection is seen at our end of the pair. */
static void news_connected(void *opaque, int err, uint32_t host_port)
{
    struct errand *e = opaque;

    end_errand(e);
    if (err)
        close(e->fd);
    free(e);
}

static void tell_news(void *opaque)
{
    struct vm *vm = opaque;
    struct link *link = life_of(vm)->link;
    struct errand *e;
    int ends[2];

    end_news(vm);
    if (make_pair(ends))
        return;
    link->news = ends[0];
    int failed = loop_fd_add(vm->loop, ends[0], EPOLLIN, on_news, vm);
    if (!failed)
        failed = send_identity(vm, ends[0]);
    if (failed)
        close(ends[1]);
    else
        failed = send_errand(vm, AGENT_PORT, ends[1], news_connected, &e);
    if (failed)
        news_failed(vm);
    else
        loop_timer_set(vm->loop, &link->again, clock_ns() + (NEWS_PATIENCE_NS << link->waits));
    link->waits += link->waits < NEWS_PATIENCE_DOUBLED;
}

void link_restored(struct vm *vm, bool copied)
{
    struct vm_life *life = life_of(vm);

    if (!life || !life->link)
        return;
    life->ready_ns = clock_ns();
    life->link->tries = life->link->waits = 0;
    life->link->copied = copied;
    loop_timer_set(vm->loop, &life->link->again, 0);
}
