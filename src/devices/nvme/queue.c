/*
 * Submission and completion queues (4.1): rings in guest memory.  The guest says by doorbells how far it has written
 * one and read the other; we write completions with a phase bit that changes with each round.
 *
 * A completion for which there is no room keeps its request until there is; so a guest that never reads its completion
 * queue holds NVME_REQUESTS requests and gets no more done.
 */
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "devices/nvme/nvme_int.h"
#include "memory/memory.h"

#define DOORBELLS 0x1000u
#define STATUS_FAILED 2u /* CSTS.CFS */

void nvme_fatal(struct nvme *n)
{
    n->saved.csts |= STATUS_FAILED;
}

static bool alive(const struct nvme *n)
{
    return (n->saved.cc & 1) && (n->saved.csts & 3) == 1 && !n->resetting && !n->restoring && pci_is_master(&n->pci);
}

bool nvme_ring_ok(const struct nvme *n, uint64_t base, unsigned entries, unsigned entry_size)
{
    return base % NVME_PAGE == 0 && memory_is_ram(n->bus->memory, base, (uint64_t)entries * entry_size);
}

/* --- completions -------------------------------------------------------------------------------------- */

/* The word with the phase is written last: the guest may look at any time. */
static bool put(struct nvme *n, uint64_t at, const struct nvme_completion *entry)
{
    uint32_t *to = memory_hva(n->bus->memory, at, sizeof *entry);

    if (!to)
        return false;
    memcpy(to, entry, offsetof(struct nvme_completion, cid));
    __atomic_store_n(&to[3], entry->cid | (uint32_t)entry->status << 16, __ATOMIC_RELEASE);
    if (n->bus->dma_dirty)
        n->bus->dma_dirty(n->bus->dma_dirty_opaque, at, sizeof *entry);
    return true;
}

bool nvme_complete(struct nvme *n, uint16_t sq_id, uint16_t cid, uint16_t status, uint32_t dw0)
{
    const struct nvme_sq *sq = &n->saved.sq[sq_id];
    struct nvme_cq *cq = &n->saved.cq[sq->cq];

    if (!sq->valid || !cq->valid || !alive(n))
        return true; /* its queue was deleted: nobody waits for it */
    uint16_t next = (uint16_t)((cq->tail + 1) % cq->size);
    if (next == cq->head)
        return false;
    struct nvme_completion entry = {.dw0 = dw0, .sq_head = sq->head, .sq_id = sq_id, .cid = cid};
    entry.status = (uint16_t)(status << 1 | cq->phase);
    if (!put(n, cq->base + (uint64_t)cq->tail * sizeof entry, &entry)) {
        nvme_fatal(n);
        return true;
    }
    cq->tail = next;
    cq->phase ^= next == 0;
    n->notify |= 1u << sq->cq;
    return true;
}

struct nvme_request *nvme_request_take(struct nvme *n)
{
    struct nvme_request *r = n->free;

    if (r) {
        n->free = r->next;
    } else if (n->n_requests < NVME_REQUESTS && (r = calloc(1, sizeof *r))) {
        r->nvme = n;
        n->requests[n->n_requests++] = r;
    }
    return r;
}

static void release(struct nvme_request *r)
{
    struct nvme *n = r->nvme;

    r->next = n->free;
    n->free = r;
}

void nvme_request_done(struct nvme_request *r, uint16_t status)
{
    struct nvme *n = r->nvme;

    if (!alive(n)) { /* the numbers of its queues may mean nothing any more */
        release(r);
        return;
    }
    unsigned cq = n->saved.sq[r->sq].cq;
    r->status = status;
    r->next = NULL;
    if (!n->full[cq] && nvme_complete(n, r->sq, r->cid, status, 0)) {
        release(r);
    } else {
        *n->full_end[cq] = r;
        n->full_end[cq] = &r->next;
    }
}

/* There is room again in completion queue `cq`. */
static void unblock(struct nvme *n, unsigned cq)
{
    struct nvme_request *r;

    while ((r = n->full[cq]) && nvme_complete(n, r->sq, r->cid, r->status, 0)) {
        if (!(n->full[cq] = r->next))
            n->full_end[cq] = &n->full[cq];
        release(r);
    }
}

void nvme_drop_waiting(struct nvme *n, unsigned sq)
{
    unsigned cq = n->saved.sq[sq].cq;
    struct nvme_request *r = n->full[cq], *next;

    n->full[cq] = NULL;
    n->full_end[cq] = &n->full[cq];
    for (; r; r = next) {
        next = r->next;
        r->next = NULL;
        if (r->sq == sq) {
            release(r);
        } else {
            *n->full_end[cq] = r;
            n->full_end[cq] = &r->next;
        }
    }
}

static void interrupt(struct nvme *n)
{
    for (uint32_t bits = n->notify; bits; bits &= bits - 1) {
        const struct nvme_cq *cq = &n->saved.cq[__builtin_ctz(bits)];
        if (cq->valid && cq->interrupts)
            pci_msix_notify(&n->pci, cq->vector);
    }
    n->notify = 0;
}

/* --- commands -------------------------------------------------------------------------------------------- */

/* Is there room to take a command from queue q now?  The admin queue's are answered at once, so that needs room in
 * its completion queue; another's need a free request. */
static bool may_take(const struct nvme *n, unsigned q)
{
    const struct nvme_cq *cq = &n->saved.cq[n->saved.sq[q].cq];

    if (q)
        return n->free || n->n_requests < NVME_REQUESTS;
    return (cq->tail + 1) % cq->size != cq->head;
}

/* false: there was no memory for a request; those at work will come back. */
static bool take(struct nvme *n, unsigned q)
{
    struct nvme_sq *sq = &n->saved.sq[q];
    struct nvme_request *r = q ? nvme_request_take(n) : NULL;
    struct nvme_command c;
    uint32_t dw0 = 0;
    uint16_t status;

    if (q && !r)
        return false;
    if (dma_read(n->bus, sq->base + (uint64_t)sq->head * sizeof c, &c, sizeof c)) {
        nvme_fatal(n);
        if (r)
            release(r);
        return true;
    }
    sq->head = (uint16_t)((sq->head + 1) % sq->size);
    if (!q) {
        status = nvme_admin(n, &c, &dw0);
        if (status != NVME_LATER)
            nvme_complete(n, 0, c.cid, status, dw0);
        return true;
    }
    r->sq = (uint16_t)q;
    r->cid = c.cid;
    status = nvme_io(n, r, &c);
    if (status != NVME_LATER)
        nvme_request_done(r, status);
    return true;
}

static bool has_work(const struct nvme *n, unsigned q)
{
    const struct nvme_sq *sq = &n->saved.sq[q];
    return alive(n) && sq->valid && sq->head != sq->tail && !(n->saved.deleting & 1u << q);
}

/* One command of each queue in turn (4.13, round robin).  true: something was taken. */
static bool run_round(struct nvme *n)
{
    bool taken = false;

    for (unsigned i = 0; i < NVME_QUEUES; i++) {
        unsigned q = (n->turn + i) % NVME_QUEUES;
        if (!(n->ready & 1u << q))
            continue;
        if (!has_work(n, q)) {
            n->ready &= ~(1u << q);
        } else if (may_take(n, q)) {
            taken |= take(n, q);
        }
    }
    n->turn = (n->turn + 1) % NVME_QUEUES;
    return taken;
}

void nvme_run(struct nvme *n)
{
    if (n->running)
        return;
    n->running = true;
    do {
        while (n->ready && run_round(n))
            ;
        disk_kick(n->disk); /* may complete requests, and so make room */
    } while (n->ready && run_round(n));
    n->running = false;
    interrupt(n);
}

void nvme_request_ended(struct nvme *n, unsigned sq)
{
    if (n->resetting)
        nvme_reset_finish(n);
    if (n->resetting || n->stopped)
        return;
    if (n->saved.deleting & 1u << sq)
        nvme_admin_resume(n);
    nvme_run(n);
}

/* --- doorbells (3.1.24) -------------------------------------------------------------------------------------- */

static void tail_doorbell(struct nvme *n, unsigned q, uint32_t value)
{
    struct nvme_sq *sq = &n->saved.sq[q];

    if (value >= sq->size) {
        nvme_event(n, NVME_EVENT_BAD_VALUE);
        return;
    }
    sq->tail = (uint16_t)value;
    n->ready |= 1u << q;
}

/* The new head must be one of the places from the old head to the tail. */
static void head_doorbell(struct nvme *n, unsigned q, uint32_t value)
{
    struct nvme_cq *cq = &n->saved.cq[q];

    if (value >= cq->size ||
        (value + cq->size - cq->head) % cq->size > (unsigned)(cq->tail + cq->size - cq->head) % cq->size) {
        nvme_event(n, NVME_EVENT_BAD_VALUE);
        return;
    }
    cq->head = (uint16_t)value;
    unblock(n, q);
    if (!q)
        nvme_admin_resume(n);
}

void nvme_doorbell(struct nvme *n, uint64_t offset, uint32_t value)
{
    uint64_t index = (offset - DOORBELLS) / 4;
    unsigned q = (unsigned)(index / 2);
    bool completion = index % 2;

    if (!alive(n))
        return;
    if (q >= NVME_QUEUES || !(completion ? n->saved.cq[q].valid : n->saved.sq[q].valid))
        nvme_event(n, NVME_EVENT_BAD_DOORBELL);
    else if (completion)
        head_doorbell(n, q, value);
    else
        tail_doorbell(n, q, value);
    nvme_run(n);
}

static void forget_waiting(struct nvme *n)
{
    for (unsigned q = 0; q < NVME_QUEUES; q++) {
        struct nvme_request *r;
        while ((r = n->full[q])) {
            n->full[q] = r->next;
            release(r);
        }
        n->full_end[q] = &n->full[q];
    }
}

void nvme_queues_reset(struct nvme *n)
{
    forget_waiting(n);
    memset(n->saved.sq, 0, sizeof n->saved.sq);
    memset(n->saved.cq, 0, sizeof n->saved.cq);
    n->saved.deleting = n->saved.n_waiting = 0;
    n->saved.n_events = n->saved.event_waiting = 0;
    n->ready = n->notify = 0;
}

/* --- save and restore -------------------------------------------------------------------------------------- */

void nvme_queues_save(struct nvme *n)
{
    interrupt(n);
    n->saved.n_waiting = 0;
    for (unsigned q = 0; q < NVME_QUEUES; q++)
        for (const struct nvme_request *r = n->full[q]; r; r = r->next)
            n->saved.waiting[n->saved.n_waiting++] = (struct nvme_waiting){r->sq, r->cid, r->status};
}

static bool sq_ok(const struct nvme *n, const struct nvme_sq *sq)
{
    return sq->size >= 2 && sq->size <= NVME_ENTRIES_MAX && sq->head < sq->size && sq->tail < sq->size &&
           sq->cq < NVME_QUEUES && n->saved.cq[sq->cq].valid &&
           nvme_ring_ok(n, sq->base, sq->size, sizeof(struct nvme_command));
}

static bool cq_ok(const struct nvme *n, const struct nvme_cq *cq)
{
    return cq->size >= 2 && cq->size <= NVME_ENTRIES_MAX && cq->head < cq->size && cq->tail < cq->size &&
           cq->phase <= 1 && nvme_ring_ok(n, cq->base, cq->size, sizeof(struct nvme_completion));
}

static bool restored_ok(const struct nvme *n)
{
    const struct nvme_state *s = &n->saved;
    bool ready = s->csts & 1;

    if (s->n_events > NVME_EVENTS || s->n_waiting > NVME_REQUESTS || s->deleting >> NVME_QUEUES || (s->deleting & 1))
        return false;
    if (ready && (!s->sq[0].valid || s->sq[0].cq))
        return false;
    for (unsigned q = 0; q < NVME_QUEUES; q++)
        if ((s->cq[q].valid && !cq_ok(n, &s->cq[q])) || (s->sq[q].valid && !sq_ok(n, &s->sq[q])) ||
            (s->deleting & 1u << q && !s->sq[q].valid))
            return false;
    for (unsigned i = 0; i < s->n_waiting; i++)
        if (s->waiting[i].sq >= NVME_QUEUES || !s->sq[s->waiting[i].sq].valid)
            return false;
    return true;
}

void nvme_queues_restored(struct nvme *n)
{
    forget_waiting(n);
    if (!restored_ok(n)) {
        nvme_queues_reset(n);
        nvme_fatal(n);
        return;
    }
    for (unsigned i = 0; i < n->saved.n_waiting; i++) {
        const struct nvme_waiting *w = &n->saved.waiting[i];
        struct nvme_request *r = nvme_request_take(n);
        if (!r) { /* no memory: the guest will wait for this one in vain, as after a lost command */
            nvme_fatal(n);
            return;
        }
        r->sq = w->sq;
        r->cid = w->cid;
        nvme_request_done(r, w->status);
    }
    n->ready = (1u << NVME_QUEUES) - 1;
}
