/*
 * What the file server knows of the guest, for a machine that is saved, and back (share/wire.h).  The guest stands
 * still meanwhile, and nobody else looks for messages: so it is waited for, piece by piece.
 */
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>

#include "backends/share_int.h"
#include "base/error.h"

#define DRAIN_MS 30000 /* what the guest has asked for may be on a slow disk */
#define PIECE_MS 30000 /* and a directory with much that is to be opened again */

struct share_transfer {
    struct share_call call;
    uint8_t *bytes; /* of all */
    uint64_t at, total, length;
    bool saves, over;
    bool submitted; /* and not come back: then it is not ours to free */
    int result;
};

/* --- waiting ------------------------------------------------------------------------------------------------------ */

static bool is_idle(const struct share *s)
{
    return s->n_free_index == SHARE_CALLS_MAX && !s->waiting;
}

/* Until nothing is at work.  A server that has gone is for the event loop to see, too.  In the end it is rested, as the
 * loop left it: else nobody would be woken for what comes. */
static int wait_until_idle(struct share *s, int ms)
{
    const uint64_t end = clock_ns() + (uint64_t)ms * 1000000;

    while (s->mailbox.fd >= 0) {
        share_take_mail(s);
        if (clock_ns() > end) {
            loop_timer_set(s->loop, &s->watch.again, clock_ns());
            return -ETIMEDOUT;
        }
        if (!mailbox_rest(&s->mailbox))
            continue;
        if (is_idle(s))
            return 0;
        if (poll(&(struct pollfd){.fd = s->mailbox.fd, .events = POLLIN}, 1, 100) > 0 && !mailbox_woken(&s->mailbox))
            return -EPIPE;
    }
    return -EPIPE;
}

int share_drain(struct share *s)
{
    return s->mailbox.fd < 0 ? -EPIPE : wait_until_idle(s, DRAIN_MS);
}

/* --- a piece ------------------------------------------------------------------------------------------------------ */

void share_transfer_fill(struct share *s, void *slot, size_t length)
{
    const struct share_transfer *t = s->transfer;

    if (t && !t->saves && length == t->length && length > SHARE_INLINE - SHARE_HEAD)
        memcpy(slot, t->bytes + t->at, length);
}

/* The reply of a server that may be a guest's by now. */
static int take_piece(struct share_transfer *t, const uint8_t *rest, size_t length)
{
    uint64_t total;

    if (length < sizeof total)
        return -EPROTO;
    memcpy(&total, rest, sizeof total);
    length -= sizeof total;
    if (!t->at && total && total <= SHARE_STATE_MAX) {
        t->total = total;
        t->bytes = malloc(total);
        if (!t->bytes)
            return -ENOMEM;
    }
    if (!t->bytes || total != t->total || !length || length > total - t->at)
        return -EPROTO;
    memcpy(t->bytes + t->at, rest + sizeof total, length);
    t->at += length;
    return 0;
}

void share_transfer_replied(struct share *s, const void *head, size_t head_length, const void *rest, size_t rest_length)
{
    struct share_transfer *t = s->transfer;
    struct fuse_out_header out = {.error = -EIO};

    if (!t)
        return;
    if (head_length >= sizeof out)
        memcpy(&out, head, sizeof out);
    t->submitted = false;
    t->over = true;
    t->result = out.error > 0 ? -EPROTO : out.error;
    if (!t->result && t->saves)
        t->result = take_piece(t, rest, rest_length);
}

static int transfer_piece(struct share *s, struct share_transfer *t)
{
    const struct share_state_head head = {.in = {.len = (uint32_t)(sizeof head + t->length),
                                                 .opcode = t->saves ? SHARE_SAVE : SHARE_LOAD,
                                                 .unique = t->at + 1},
                                          .offset = t->at,
                                          .total = t->total,
                                          .length = t->length};

    t->over = false;
    t->submitted = true;
    memcpy(t->call.packet.bytes, &head, sizeof head);
    if (t->length && sizeof head + t->length <= SHARE_INLINE)
        memcpy(t->call.packet.bytes + sizeof head, t->bytes + t->at, t->length);
    share_submit_state(s, &t->call, (uint32_t)(sizeof head + t->length), SHARE_REPLY_HEAD + SHARE_SLOT_SIZE);
    int err = wait_until_idle(s, PIECE_MS);
    return err ? err : t->over ? t->result : -EIO;
}

/* --- all of it ---------------------------------------------------------------------------------------------------- */

/* On the heap, and left there if the server does not answer: it has the call, and may yet. */
static int run(struct share *s, struct share_transfer *t)
{
    int err = share_drain(s);

    if (err)
        return err;
    s->transfer = t;
    do {
        t->length = t->saves ? 0 : t->total - t->at < SHARE_PIECE ? t->total - t->at : SHARE_PIECE;
        err = transfer_piece(s, t);
        t->at += t->length;
    } while (!err && t->at < t->total);
    s->transfer = NULL;
    return err;
}

static const char *name_of(const struct share *s)
{
    return s->directory ? s->directory : "";
}

int share_save(struct share *s, uint8_t **bytes, size_t *size, char *err, size_t n)
{
    struct share_transfer *t = calloc(1, sizeof *t);

    if (!t)
        return error_set(err, n, -ENOMEM, "out of memory");
    t->saves = true;
    int failed = run(s, t);
    *bytes = failed ? NULL : t->bytes;
    *size = t->total;
    if (failed)
        free(t->bytes);
    if (!t->submitted)
        free(t);
    if (failed == -ENOTSUP)
        return error_set(err, n, failed,
                         "its shared folder %s has `locks`, which the host's programs and other machines see: they "
                         "cannot be had again later without a gap",
                         name_of(s));
    if (failed == -E2BIG)
        return error_set(err, n, failed,
                         "its guest knows too many files of the shared folder %s: `echo 2 >/proc/sys/vm/drop_caches` "
                         "in it makes them fewer",
                         name_of(s));
    return failed == -EPIPE ? error_set(err, n, failed, "the file server of its shared folder %s has ended", name_of(s))
           : failed         ? error_sys(err, n, failed,
                                        "the file server of its shared folder %s does not say what it "
                                                "has open",
                                        name_of(s))
                            : 0;
}

int share_load(struct share *s, const uint8_t *bytes, size_t size, char *err, size_t n)
{
    struct share_transfer *t = size && size <= SHARE_STATE_MAX ? calloc(1, sizeof *t) : NULL;

    if (!t)
        return error_set(err, n, size ? -ENOMEM : -EBADMSG, "what the guest knew of the shared folder %s %s",
                         name_of(s), size ? "is too much" : "is missing");
    t->bytes = (uint8_t *)(uintptr_t)bytes;
    t->total = size;
    int failed = run(s, t);
    if (!t->submitted)
        free(t);
    if (failed == -EBADMSG)
        return error_set(err, n, failed, "what the guest knew of the shared folder %s makes no sense", name_of(s));
    if (failed == -ENOTSUP)
        return error_set(err, n, failed, "what the guest knew of the shared folder %s is a newer guise's", name_of(s));
    return failed ? error_sys(err, n, failed, "the file server of the shared folder %s cannot open again what was open",
                              name_of(s))
                  : 0;
}
