/* Administration commands (5): queues, features, events.  Identify and logs are in identify.c. */
#include <string.h>

#include "devices/nvme/nvme_int.h"
#include "memory/memory.h"

enum {
    ADMIN_DELETE_SQ = 0x00,
    ADMIN_CREATE_SQ = 0x01,
    ADMIN_GET_LOG = 0x02,
    ADMIN_DELETE_CQ = 0x04,
    ADMIN_CREATE_CQ = 0x05,
    ADMIN_IDENTIFY = 0x06,
    ADMIN_ABORT = 0x08,
    ADMIN_SET_FEATURES = 0x09,
    ADMIN_GET_FEATURES = 0x0a,
    ADMIN_ASYNC_EVENT = 0x0c,
};

/* --- queues (5.3 - 5.6) -------------------------------------------------------------------------------- */

static uint16_t check_ring(const struct nvme *n, const struct nvme_command *c, unsigned entry_size)
{
    unsigned entries = (c->cdw10 >> 16) + 1;

    if (entries < 2 || entries > NVME_ENTRIES_MAX)
        return NVME_INVALID_QSIZE;
    if (!(c->cdw11 & 1) || !nvme_ring_ok(n, c->prp1, entries, entry_size))
        return NVME_INVALID_FIELD; /* rings are contiguous (CAP.CQR), at a page's start, in RAM */
    return NVME_OK;
}

static uint16_t create_cq(struct nvme *n, const struct nvme_command *c, uint32_t *dw0)
{
    unsigned q = c->cdw10 & 0xffff, vector = c->cdw11 >> 16;

    if (!q || q >= NVME_QUEUES || n->saved.cq[q].valid)
        return NVME_INVALID_QID;
    if (vector >= NVME_QUEUES)
        return NVME_INVALID_VECTOR;
    if ((n->saved.cc >> 20 & 15) != 4)
        return NVME_INVALID_QSIZE; /* CC.IOCQES: entries of 16 bytes */
    uint16_t status = check_ring(n, c, sizeof(struct nvme_completion));
    if (!status)
        n->saved.cq[q] = (struct nvme_cq){.base = c->prp1,
                                          .size = (uint16_t)((c->cdw10 >> 16) + 1),
                                          .vector = (uint16_t)vector,
                                          .valid = 1,
                                          .phase = 1,
                                          .interrupts = c->cdw11 >> 1 & 1};
    return status;
}

static uint16_t create_sq(struct nvme *n, const struct nvme_command *c, uint32_t *dw0)
{
    unsigned q = c->cdw10 & 0xffff, cq = c->cdw11 >> 16;

    if (!q || q >= NVME_QUEUES || n->saved.sq[q].valid)
        return NVME_INVALID_QID;
    if (!cq || cq >= NVME_QUEUES || !n->saved.cq[cq].valid)
        return NVME_INVALID_CQ;
    if ((n->saved.cc >> 16 & 15) != 6)
        return NVME_INVALID_QSIZE; /* CC.IOSQES: entries of 64 bytes */
    uint16_t status = check_ring(n, c, sizeof(struct nvme_command));
    if (!status)
        n->saved.sq[q] = (struct nvme_sq){
            .base = c->prp1, .size = (uint16_t)((c->cdw10 >> 16) + 1), .cq = (uint16_t)cq, .valid = 1};
    return status;
}

/* Over when no command of the queue is at work: the guest may then use its buffers for other things. */
static uint16_t delete_sq(struct nvme *n, const struct nvme_command *c, uint32_t *dw0)
{
    unsigned q = c->cdw10 & 0xffff;

    if (!q || q >= NVME_QUEUES || !n->saved.sq[q].valid || (n->saved.deleting & 1u << q))
        return NVME_INVALID_QID;
    n->saved.deleting |= 1u << q;
    n->saved.delete_cid[q] = c->cid;
    nvme_admin_resume(n);
    return NVME_LATER;
}

static uint16_t delete_cq(struct nvme *n, const struct nvme_command *c, uint32_t *dw0)
{
    unsigned q = c->cdw10 & 0xffff;

    if (!q || q >= NVME_QUEUES || !n->saved.cq[q].valid)
        return NVME_INVALID_QID;
    for (unsigned i = 0; i < NVME_QUEUES; i++)
        if (n->saved.sq[i].valid && n->saved.sq[i].cq == q)
            return NVME_INVALID_DELETION;
    n->saved.cq[q] = (struct nvme_cq){0};
    n->notify &= ~(1u << q);
    return NVME_OK;
}

/* --- features (5.14, 5.21) -------------------------------------------------------------------------------- */

static const struct feature {
    const char *name; /* NULL: there is no such feature */
    uint32_t initial, changeable;
} features[NVME_FEATURES] = {
    [0x01] = {"arbitration", 0, 0xffffff07},
    [0x02] = {"power management", 0, 0},
    [0x04] = {"temperature threshold", 0x157, 0x3fffff},
    [0x05] = {"error recovery", 0, 0xffff},
    [NVME_FEATURE_CACHE] = {"volatile write cache", 1, 1},
    [NVME_FEATURE_QUEUES] = {"number of queues", (NVME_IO_QUEUES - 1) * 0x10001u, 0},
    [0x08] = {"interrupt coalescing", 0, 0xffff},
    [0x09] = {"interrupt vector configuration", 0, 0x1ffff},
    [0x0a] = {"write atomicity", 0, 1},
    [0x0b] = {"asynchronous events", 0, 0x7fff},
};

void nvme_features_reset(struct nvme *n)
{
    for (unsigned i = 0; i < NVME_FEATURES; i++)
        n->saved.features[i] = features[i].initial;
}

static const struct feature *find_feature(const struct nvme_command *c)
{
    unsigned id = c->cdw10 & 0xff;
    return id < NVME_FEATURES && features[id].name ? &features[id] : NULL;
}

static uint16_t set_features(struct nvme *n, const struct nvme_command *c, uint32_t *dw0)
{
    const struct feature *f = find_feature(c);

    if (!f)
        return NVME_INVALID_FIELD;
    if (c->cdw10 >> 31)
        return NVME_FEATURE_NOT_SAVEABLE;
    if (f == &features[NVME_FEATURE_QUEUES]) { /* any wish is answered by what there is; 0xffff is none */
        if ((c->cdw11 & 0xffff) == 0xffff || c->cdw11 >> 16 == 0xffff)
            return NVME_INVALID_FIELD;
        *dw0 = f->initial;
        return NVME_OK;
    }
    if (c->cdw11 & ~f->changeable)
        return NVME_INVALID_FIELD;
    n->saved.features[f - features] = c->cdw11;
    return NVME_OK;
}

/* Select (bits 8-10): 0 current, 1 default, 2 saved (as default), 3 what can be done with it. */
static uint16_t get_features(struct nvme *n, const struct nvme_command *c, uint32_t *dw0)
{
    const struct feature *f = find_feature(c);
    unsigned select = c->cdw10 >> 8 & 7;

    if (!f || select > 3)
        return NVME_INVALID_FIELD;
    if (select == 3)
        *dw0 = f->changeable ? 4 : 0;
    else
        *dw0 = select ? f->initial : n->saved.features[f - features];
    return NVME_OK;
}

/* --- events (5.2) and what waits ---------------------------------------------------------------------------- */

static uint16_t async_event(struct nvme *n, const struct nvme_command *c, uint32_t *dw0)
{
    struct nvme_state *s = &n->saved;

    if (s->event_waiting) {
        *dw0 = s->event_waiting;
        s->event_waiting = 0;
        return NVME_OK;
    }
    if (s->n_events == NVME_EVENTS)
        return NVME_EVENT_LIMIT;
    s->events[s->n_events++] = c->cid;
    return NVME_LATER;
}

/* Of several events that nobody asks for the first is kept: all of them are the driver's own mistakes. */
void nvme_event(struct nvme *n, uint32_t dw0)
{
    struct nvme_state *s = &n->saved;

    if (!s->event_waiting)
        s->event_waiting = dw0;
    nvme_admin_resume(n);
}

static void resume_events(struct nvme *n)
{
    struct nvme_state *s = &n->saved;

    if (s->event_waiting && s->n_events && nvme_complete(n, 0, s->events[s->n_events - 1], NVME_OK, s->event_waiting)) {
        s->n_events--;
        s->event_waiting = 0;
    }
}

void nvme_admin_resume(struct nvme *n)
{
    for (uint32_t bits = n->saved.deleting; bits; bits &= bits - 1) {
        unsigned q = (unsigned)__builtin_ctz(bits);
        if (n->queue_work[q] || !nvme_complete(n, 0, n->saved.delete_cid[q], NVME_OK, 0))
            continue;
        nvme_drop_waiting(n, q);
        n->saved.sq[q] = (struct nvme_sq){0};
        n->saved.deleting &= ~(1u << q);
    }
    resume_events(n);
}

/* What an abort is for is done in no time here, or is in the hands of the disk (5.1: dword 0 says "not aborted"). */
static uint16_t abort_command(struct nvme *n, const struct nvme_command *c, uint32_t *dw0)
{
    *dw0 = 1;
    return NVME_OK;
}

static uint16_t identify(struct nvme *n, const struct nvme_command *c, uint32_t *dw0)
{
    return nvme_identify(n, c);
}

static uint16_t get_log(struct nvme *n, const struct nvme_command *c, uint32_t *dw0)
{
    return nvme_get_log(n, c);
}

static const struct admin_command {
    uint8_t opcode;
    uint16_t (*run)(struct nvme *n, const struct nvme_command *c, uint32_t *dw0);
} admin_commands[] = {
    {ADMIN_DELETE_SQ, delete_sq},     {ADMIN_CREATE_SQ, create_sq},       {ADMIN_GET_LOG, get_log},
    {ADMIN_DELETE_CQ, delete_cq},     {ADMIN_CREATE_CQ, create_cq},       {ADMIN_IDENTIFY, identify},
    {ADMIN_ABORT, abort_command},     {ADMIN_SET_FEATURES, set_features}, {ADMIN_GET_FEATURES, get_features},
    {ADMIN_ASYNC_EVENT, async_event},
};

uint16_t nvme_admin(struct nvme *n, const struct nvme_command *c, uint32_t *dw0)
{
    if (c->flags & 0xc3)
        return NVME_INVALID_FIELD; /* neither fused nor with scatter-gather lists */
    for (unsigned i = 0; i < sizeof admin_commands / sizeof *admin_commands; i++)
        if (admin_commands[i].opcode == c->opcode)
            return admin_commands[i].run(n, c, dw0);
    return NVME_INVALID_OPCODE;
}
