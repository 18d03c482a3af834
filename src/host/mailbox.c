#include "host/mailbox.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>

#define LENGTH sizeof(uint32_t)
#define WAKE_UPS_MAX 64u /* taken in one go */

_Static_assert((MAILBOX_RING & (MAILBOX_RING - 1)) == 0, "positions are masked");

static uint32_t record_size(uint32_t length)
{
    return (uint32_t)((LENGTH + length + 7) & ~7u);
}

/* --- the ring's bytes ---------------------------------------------------------------------------------------- */

/* Of the record at `at`, which is a multiple of 8.  Read once: it may change. */
static _Atomic uint32_t *length_at(struct mailbox_ring *r, uint32_t at)
{
    return (_Atomic uint32_t *)(void *)(r->bytes + (at & (MAILBOX_RING - 1)));
}

static void put(struct mailbox_ring *r, uint32_t at, const void *data, size_t n)
{
    size_t first = MAILBOX_RING - (at & (MAILBOX_RING - 1));

    if (first > n)
        first = n;
    memcpy(r->bytes + (at & (MAILBOX_RING - 1)), data, first);
    memcpy(r->bytes, (const uint8_t *)data + first, n - first);
}

static void get(const struct mailbox_ring *r, uint32_t at, void *data, size_t n)
{
    size_t first = MAILBOX_RING - (at & (MAILBOX_RING - 1));

    if (first > n)
        first = n;
    memcpy(data, r->bytes + (at & (MAILBOX_RING - 1)), first);
    memcpy((uint8_t *)data + first, r->bytes, n - first);
}

/* --- waking -------------------------------------------------------------------------------------------------- */

/* If the socket is full of wake-ups, one more would change nothing. */
static void wake(struct mailbox *m, _Atomic uint32_t *wanted)
{
    if (atomic_load(wanted) && atomic_exchange(wanted, 0))
        send(m->fd, "", 1, MSG_DONTWAIT | MSG_NOSIGNAL);
}

void mailbox_look(struct mailbox *m)
{
    atomic_store(&m->in->asleep, 0);
}

/* No wake-up is lost: we set asleep, then look at written; the sender sets written, then looks at asleep (sequentially
 * consistent all of it). */
bool mailbox_rest(struct mailbox *m)
{
    atomic_store(&m->in->asleep, 1);
    return !mailbox_ready(m);
}

static bool gone(struct mailbox *m)
{
    atomic_store(&m->broken, true);
    return false;
}

bool mailbox_woken(struct mailbox *m)
{
    char bytes[64];

    for (unsigned i = 0; i < WAKE_UPS_MAX; i++) {
        ssize_t n = recv(m->fd, bytes, sizeof bytes, MSG_DONTWAIT);
        if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR))
            return gone(m);
        if (n < 0 && errno == EAGAIN)
            break;
    }
    return true;
}

bool mailbox_sleep(struct mailbox *m)
{
    char bytes[64];
    ssize_t n;

    do
        n = recv(m->fd, bytes, sizeof bytes, 0);
    while (n < 0 && errno == EINTR);
    return n > 0 || gone(m);
}

/* --- messages ------------------------------------------------------------------------------------------------ */

void mailbox_init(struct mailbox *m, void *memory, int fd, unsigned end)
{
    struct mailbox_ring *rings = memory;

    *m = (struct mailbox){.fd = fd, .out = &rings[end], .in = &rings[!end]};
}

static bool has_room(const struct mailbox *m, uint32_t size)
{
    uint32_t used = atomic_load(&m->written) - atomic_load(&m->out->read);

    return used <= MAILBOX_RING && MAILBOX_RING - used >= size;
}

int mailbox_put(struct mailbox *m, const struct iovec *iov, unsigned n)
{
    size_t total = 0;

    for (unsigned i = 0; i < n; i++)
        total += iov[i].iov_len;
    if (total > MAILBOX_MESSAGE_MAX)
        return -EMSGSIZE;
    uint32_t length = (uint32_t)total, begin = atomic_load(&m->written), at = begin;
    if (!has_room(m, record_size(length))) {
        atomic_store(&m->out->wants_room, 1);
        if (!has_room(m, record_size(length)))
            return -EAGAIN;
    }
    atomic_store_explicit(length_at(m->out, at), length, memory_order_relaxed);
    at += LENGTH;
    for (unsigned i = 0; i < n; i++) {
        put(m->out, at, iov[i].iov_base, iov[i].iov_len);
        at += (uint32_t)iov[i].iov_len;
    }
    atomic_store(&m->written, begin + record_size(length));
    atomic_store(&m->out->written, begin + record_size(length));
    return 0;
}

void mailbox_wake(struct mailbox *m)
{
    wake(m, &m->out->asleep);
}

int mailbox_send(struct mailbox *m, const struct iovec *iov, unsigned n)
{
    int r = mailbox_put(m, iov, n);

    if (!r)
        mailbox_wake(m);
    return r;
}

bool mailbox_taken(const struct mailbox *m)
{
    return atomic_load(&m->out->read) == atomic_load(&m->written);
}

bool mailbox_is_watched(const struct mailbox *m)
{
    return !atomic_load(&m->out->asleep);
}

bool mailbox_ready(const struct mailbox *m)
{
    return !atomic_load(&m->broken) && atomic_load(&m->in->written) != atomic_load(&m->read);
}

static ssize_t give_up(struct mailbox *m)
{
    atomic_store(&m->broken, true);
    return -EPROTO;
}

ssize_t mailbox_receive(struct mailbox *m, void *to, size_t size)
{
    uint32_t at = atomic_load(&m->read), waiting = atomic_load(&m->in->written) - at, length;

    if (atomic_load(&m->broken))
        return -EPROTO;
    if (!waiting)
        return -EAGAIN;
    if (waiting > MAILBOX_RING || waiting < LENGTH)
        return give_up(m);
    length = atomic_load_explicit(length_at(m->in, at), memory_order_relaxed);
    if (length > size || record_size(length) > waiting)
        return give_up(m);
    get(m->in, at + LENGTH, to, length);
    at += record_size(length);
    atomic_store(&m->read, at);
    atomic_store(&m->in->read, at);
    wake(m, &m->in->wants_room);
    return length;
}
