/* The socket's end of the file server: packets of share/wire.h to calls and back, by a few threads. */
#include <errno.h>
#include <linux/fuse.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include "base/error.h"
#include "share/server.h"
#include "share/wire.h"

#define THREADS_MAX 16u
#define LONG_MAX_BYTES (128u << 10) /* a long request that is not a write: an attribute's value, many FORGETs */

struct service {
    int fd;
    uint8_t *arena;
    struct server *server;
    pthread_mutex_t lock;   /* guards what follows */
    pthread_cond_t no_lead; /* has_lead became false */
    bool has_lead, ended;
    uint32_t session;
};

/*
 * One thread has the lead: it receives and answers, one message after the other, and nobody has to be woken for that.
 * Before an operation that may take long it gives up the lead, and another thread takes it.
 */
struct worker {
    struct service *service;
    bool leads;
};

/* One packet; what is in it nobody else can change. */
struct packet {
    struct share_request_head head;
    _Alignas(uint64_t) uint8_t bytes[SHARE_INLINE];
};

static void send_reply(void *opaque, uint32_t index, const void *head, size_t head_length, size_t rest_length)
{
    struct service *v = opaque;
    struct share_reply_head h = {.index = index, .length = (uint32_t)(head_length + rest_length)};
    struct iovec pieces[2] = {{&h, sizeof h}, {(void *)(uintptr_t)head, head_length}};
    struct msghdr m = {.msg_iov = pieces, .msg_iovlen = 2};

    while (sendmsg(v->fd, &m, MSG_NOSIGNAL) < 0 && errno == EINTR)
        ;
}

static void refuse(struct service *v, const struct packet *p, int error)
{
    struct fuse_in_header in;
    struct fuse_out_header out = {.len = sizeof out, .error = error};

    memcpy(&in, p->bytes, sizeof in);
    out.unique = in.unique;
    if (p->head.reply_max)
        send_reply(v, p->head.index, &out, sizeof out, 0);
}

/* How the bytes are split between packet and slot must be as wire.h says. */
static bool is_well_formed(const struct packet *p, size_t got)
{
    const struct share_request_head *h = &p->head;
    size_t here = h->length <= SHARE_INLINE ? h->length : SHARE_HEAD;

    if (got != offsetof(struct packet, bytes) + here || here < sizeof(struct fuse_in_header))
        return false;
    if (h->slot != SHARE_NO_SLOT && h->slot >= SHARE_SLOTS)
        return false;
    return here == h->length || (h->slot != SHARE_NO_SLOT && h->length - here <= SHARE_SLOT_SIZE);
}

static void call(struct worker *w, const struct packet *p, uint8_t *slot)
{
    struct service *v = w->service;
    const struct share_request_head *h = &p->head;
    struct server_message m = {.index = h->index,
                               .caller = w,
                               .head = p->bytes,
                               .head_length = h->length <= SHARE_INLINE ? h->length : SHARE_HEAD,
                               .slot = slot,
                               .reply_max = h->reply_max};
    struct fuse_in_header in;

    memcpy(&in, p->bytes, sizeof in);
    m.rest_length = h->length - m.head_length;
    m.rest = slot;
    if (m.rest_length == 0 || in.opcode == FUSE_WRITE) {
        server_call(v->server, &m);
        return;
    }
    uint8_t *copy = h->length <= LONG_MAX_BYTES ? malloc(h->length) : NULL;
    if (!copy) {
        refuse(v, p, h->length <= LONG_MAX_BYTES ? -ENOMEM : -E2BIG);
        return;
    }
    memcpy(copy, p->bytes, m.head_length);
    memcpy(copy + m.head_length, slot, m.rest_length);
    m.head = copy;
    m.head_length = h->length;
    m.rest_length = 0;
    server_call(v->server, &m);
    free(copy);
}

/*
 * Packets are taken in order, but by several threads: the first request of a new session may be looked at before the
 * reset that begins it.  So whoever sees the new number first makes the change.  Returns false for an earlier session.
 */
static bool enter_session(struct service *v, uint32_t session)
{
    pthread_mutex_lock(&v->lock);
    int32_t ahead = (int32_t)(session - v->session);
    if (ahead > 0) {
        v->session = session;
        server_reset(v->server);
    }
    pthread_mutex_unlock(&v->lock);
    return ahead >= 0;
}

static void lose_lead(void *caller)
{
    struct worker *w = caller;
    struct service *v = w->service;

    if (!w->leads)
        return;
    w->leads = false;
    pthread_mutex_lock(&v->lock);
    v->has_lead = false;
    pthread_cond_signal(&v->no_lead);
    pthread_mutex_unlock(&v->lock);
}

/* Waits until nobody has the lead and takes it.  false: it is over. */
static bool take_lead(struct worker *w)
{
    struct service *v = w->service;

    pthread_mutex_lock(&v->lock);
    while (v->has_lead && !v->ended)
        pthread_cond_wait(&v->no_lead, &v->lock);
    w->leads = v->has_lead = !v->ended;
    pthread_mutex_unlock(&v->lock);
    return w->leads;
}

static void end(struct service *v)
{
    pthread_mutex_lock(&v->lock);
    v->ended = true;
    pthread_cond_broadcast(&v->no_lead);
    pthread_mutex_unlock(&v->lock);
}

static void handle(struct worker *w, const struct packet *p, size_t got)
{
    struct service *v = w->service;

    if (got < sizeof p->head)
        return;
    bool current = enter_session(v, p->head.session);
    if (p->head.kind != SHARE_FUSE || !is_well_formed(p, got))
        return;
    if (current)
        call(w, p, p->head.slot == SHARE_NO_SLOT ? NULL : v->arena + (size_t)p->head.slot * SHARE_SLOT_SIZE);
    else
        refuse(v, p, -ECANCELED);
}

static void *serve(void *opaque)
{
    struct worker w = {.service = opaque};
    struct packet p;

    while (w.leads || take_lead(&w)) {
        ssize_t got = recv(w.service->fd, &p, sizeof p, 0);
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0) {
            end(w.service);
            return NULL;
        }
        handle(&w, &p, (size_t)got);
    }
    return NULL;
}

int server_run(int fd, void *arena, const struct server_config *config, unsigned threads, char *err, size_t n)
{
    struct service v = {
        .fd = fd, .arena = arena, .lock = PTHREAD_MUTEX_INITIALIZER, .no_lead = PTHREAD_COND_INITIALIZER};
    struct server_config c = *config;
    pthread_t thread[THREADS_MAX];
    unsigned started = 0;

    c.reply = send_reply;
    c.slow = lose_lead;
    c.opaque = &v;
    int r = server_create(&v.server, &c, err, n);
    if (r)
        return r;
    while (started + 1 < threads && started < THREADS_MAX && !pthread_create(&thread[started], NULL, serve, &v))
        started++;
    serve(&v);
    while (started)
        pthread_join(thread[--started], NULL);
    server_destroy(v.server);
    return 0;
}
