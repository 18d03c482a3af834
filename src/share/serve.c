/* The mailbox's end of the file server: packets of share/wire.h to calls and back, by a few threads. */
#include <errno.h>
#include <linux/fuse.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <time.h>

#include "base/error.h"
#include "host/loop.h"
#include "host/patience.h"
#include "share/server.h"
#include "share/wire.h"

#define THREADS_MAX 16u
#define FULL_NS 1000000             /* the VM process takes no replies just now */
#define OWED_NS 20000               /* a guest that waits for its reply has halted by then, and its vCPU looks for it */
#define LONG_MAX_BYTES (128u << 10) /* a long request that is not a write: an attribute's value, many FORGETs */

struct service {
    struct mailbox mailbox;
    struct patience patience; /* these three are of who has the lead */
    bool owed;                /* a reply has been put there of which the VM process has not been told */
    uint64_t owed_ns;         /* since when */
    uint8_t *arena;
    struct server *server;
    pthread_mutex_t sending; /* one at a time; taken last */
    pthread_mutex_t lock;    /* guards what follows */
    pthread_cond_t no_lead;  /* has_lead became false */
    uint8_t *state;          /* of a server that is being saved or loaded: state_size bytes */
    uint64_t state_size;
    bool has_lead;
    _Atomic pthread_t leader; /* who has it; only its own number means anything to a thread */
    _Atomic bool ended;       /* set under lock, read by senders without */
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

/* --- replies ------------------------------------------------------------------------------------------------- */

static int put_reply(struct service *v, const struct iovec *pieces)
{
    pthread_mutex_lock(&v->sending);
    int r = mailbox_put(&v->mailbox, pieces, 2);
    pthread_mutex_unlock(&v->sending);
    return r;
}

/* Who has the lead, and looks for messages anyway, looks first whether the reply is taken without a wake-up. */
static void tell(struct service *v)
{
    if (!pthread_equal(v->leader, pthread_self()) || !v->patience.ns) {
        mailbox_wake(&v->mailbox);
    } else if (!v->owed) {
        v->owed = true;
        v->owed_ns = clock_ns();
    }
}

/* The wake-up that says there is room may be taken by whoever has the lead: so this looks again and again. */
static void send_reply(void *opaque, uint32_t index, const void *head, size_t head_length, size_t rest_length)
{
    struct service *v = opaque;
    struct share_reply_head h = {.index = index, .length = (uint32_t)(head_length + rest_length)};
    const struct iovec pieces[2] = {{&h, sizeof h}, {(void *)(uintptr_t)head, head_length}};

    while (put_reply(v, pieces) == -EAGAIN && !v->ended) {
        mailbox_wake(&v->mailbox);
        nanosleep(&(struct timespec){.tv_nsec = FULL_NS}, NULL);
    }
    tell(v);
}

static void settle(struct service *v)
{
    if (v->owed && !mailbox_taken(&v->mailbox))
        mailbox_wake(&v->mailbox);
    v->owed = false;
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

/* --- what a snapshot has of us ------------------------------------------------------------------------------------ */

static void drop_state(struct service *v)
{
    free(v->state);
    v->state = NULL;
    v->state_size = 0;
}

static int save_piece(struct service *v, const struct share_state_head *h, uint8_t *slot, size_t *length)
{
    int err = 0;

    if (!h->offset) {
        drop_state(v);
        size_t size = 0;
        err = server_save(v->server, SHARE_STATE_MAX, &v->state, &size);
        v->state_size = err ? 0 : size;
    }
    if (!err && (!v->state || h->offset > v->state_size))
        err = -EINVAL;
    if (err)
        return err;
    *length = v->state_size - h->offset < SHARE_PIECE ? v->state_size - h->offset : SHARE_PIECE;
    memcpy(slot, &v->state_size, sizeof v->state_size);
    memcpy(slot + sizeof v->state_size, v->state + h->offset, *length);
    if (h->offset + *length == v->state_size)
        drop_state(v);
    *length += sizeof v->state_size;
    return 0;
}

static int load_piece(struct service *v, const struct share_state_head *h, const uint8_t *bytes)
{
    if (!h->offset) {
        drop_state(v);
        v->state = h->total <= SHARE_STATE_MAX ? malloc(h->total + 1) : NULL;
        v->state_size = h->total;
    }
    if (!v->state || h->total != v->state_size || h->length > SHARE_PIECE || h->offset > h->total ||
        h->length > h->total - h->offset)
        return v->state ? -EINVAL : -ENOMEM;
    memcpy(v->state + h->offset, bytes, h->length);
    if (h->offset + h->length < h->total)
        return 0;
    int err = server_load(v->server, v->state, v->state_size);
    drop_state(v);
    return err;
}

/* The VM process asks for one after the other. */
static void do_state(struct service *v, const struct packet *p, uint8_t *slot)
{
    struct share_state_head h;
    size_t length = 0;

    memcpy(&h, p->bytes, sizeof h);
    bool here = p->head.length <= SHARE_INLINE;
    int err = h.in.opcode == SHARE_SAVE ? save_piece(v, &h, slot, &length)
              : h.in.opcode != SHARE_LOAD || h.length != p->head.length - sizeof h
                  ? -EINVAL
                  : load_piece(v, &h, here ? p->bytes + sizeof h : slot);
    const struct fuse_out_header out = {.len = (uint32_t)(sizeof out + length), .error = err, .unique = h.in.unique};
    send_reply(v, p->head.index, &out, sizeof out, length);
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
    settle(v);
    w->leads = false;
    pthread_mutex_lock(&v->lock);
    v->leader = 0;
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
    if (w->leads)
        v->leader = pthread_self();
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
    if ((p->head.kind != SHARE_FUSE && p->head.kind != SHARE_STATE) || !is_well_formed(p, got))
        return;
    if (p->head.kind == SHARE_STATE) {
        if (current && p->head.length >= sizeof(struct share_state_head) && p->head.slot != SHARE_NO_SLOT)
            do_state(v, p, v->arena + (size_t)p->head.slot * SHARE_SLOT_SIZE);
    } else if (current)
        call(w, p, p->head.slot == SHARE_NO_SLOT ? NULL : v->arena + (size_t)p->head.slot * SHARE_SLOT_SIZE);
    else
        refuse(v, p, -ECANCELED);
}

static bool is_ready(void *mailbox)
{
    return mailbox_ready(mailbox);
}

static bool is_ready_or_taken(void *mailbox)
{
    return mailbox_ready(mailbox) || mailbox_taken(mailbox);
}

/* Waits for a message.  false: the VM process is gone. */
static bool wait_for_message(struct service *v)
{
    const struct patience owed = {v->owed ? OWED_NS : 0};
    uint64_t before = clock_ns();

    patience_look(&owed, v->owed_ns, is_ready_or_taken, &v->mailbox);
    if (mailbox_ready(&v->mailbox))
        return true;
    settle(v);
    bool there = patience_look(&v->patience, before, is_ready, &v->mailbox);
    while (!there) {
        there = !mailbox_rest(&v->mailbox);
        if (!there && !mailbox_sleep(&v->mailbox))
            return false;
    }
    mailbox_look(&v->mailbox);
    patience_waited(&v->patience, clock_ns() - before);
    return true;
}

static void *serve(void *opaque)
{
    struct worker w = {.service = opaque};
    struct packet p;

    while (w.leads || take_lead(&w)) {
        ssize_t got = mailbox_receive(&w.service->mailbox, &p, sizeof p);
        if (w.service->owed && clock_ns() - w.service->owed_ns > OWED_NS)
            settle(w.service);
        if (got >= 0) {
            handle(&w, &p, (size_t)got);
        } else if (got != -EAGAIN || !wait_for_message(w.service)) {
            end(w.service);
            return NULL;
        }
    }
    return NULL;
}

int server_run(int fd, void *arena, const struct server_config *config, unsigned threads, char *err, size_t n)
{
    struct service v = {.arena = arena,
                        .sending = PTHREAD_MUTEX_INITIALIZER,
                        .lock = PTHREAD_MUTEX_INITIALIZER,
                        .no_lead = PTHREAD_COND_INITIALIZER};
    struct server_config c = *config;
    pthread_t thread[THREADS_MAX];
    unsigned started = 0;

    c.reply = send_reply;
    c.slow = lose_lead;
    c.opaque = &v;
    mailbox_init(&v.mailbox, v.arena + SHARE_MAILBOX, fd, 1);
    int r = server_create(&v.server, &c, err, n);
    if (r)
        return r;
    while (started + 1 < threads && started < THREADS_MAX && !pthread_create(&thread[started], NULL, serve, &v))
        started++;
    serve(&v);
    while (started)
        pthread_join(thread[--started], NULL);
    server_destroy(v.server);
    free(v.state);
    return 0;
}
