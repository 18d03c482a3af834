/*
 * A disk in memory for tests, between a controller and nothing: it can fail operations, and hold requests until told.
 */
#pragma once
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "backends/disk.h"

#define MOCK_OPS 5
#define MOCK_HELD_MAX 4096

struct mock_disk {
    struct disk disk;
    uint8_t *data;
    int fail[MOCK_OPS]; /* the result of each operation of this kind, or 0 */
    bool hold;          /* requests wait for mock_release */
    struct disk_request *held[MOCK_HELD_MAX];
    unsigned n_held;
    unsigned count[MOCK_OPS];
    unsigned fua, unmap; /* requests that had the flag */
    uint64_t last_offset, last_length;
    bool closed;
};

static inline int mock_transfer(struct mock_disk *m, struct disk_request *r)
{
    uint8_t *at = m->data + r->offset;

    if (m->fail[r->op])
        return m->fail[r->op];
    if (r->op == DISK_DISCARD || r->op == DISK_WRITE_ZEROES)
        memset(at, 0, r->length);
    for (unsigned i = 0; i < r->n_iov && (r->op == DISK_READ || r->op == DISK_WRITE); i++) {
        if (r->op == DISK_READ)
            memcpy(r->iov[i].iov_base, at, r->iov[i].iov_len);
        else
            memcpy(at, r->iov[i].iov_base, r->iov[i].iov_len);
        at += r->iov[i].iov_len;
    }
    return 0;
}

static inline void mock_finish(struct mock_disk *m, struct disk_request *r)
{
    int result = mock_transfer(m, r);
    if (r->n_iov)
        memset(r->iov, 0, r->n_iov * sizeof *r->iov); /* used up */
    disk_done_later(r, result);
}

static inline void mock_submit(struct disk *d, struct disk_request *r)
{
    struct mock_disk *m = (struct mock_disk *)d;
    uint64_t sum = 0;

    for (unsigned i = 0; i < r->n_iov; i++)
        sum += r->iov[i].iov_len;
    assert_true(r->op > DISK_WRITE || sum == r->length);
    m->count[r->op]++;
    m->fua += !!(r->flags & DISK_FUA);
    m->unmap += !!(r->flags & DISK_UNMAP);
    m->last_offset = r->offset;
    m->last_length = r->length;
    if (m->hold)
        m->held[m->n_held++] = r;
    else
        mock_finish(m, r);
}

/* Lets the held requests go, last one first. */
static inline void mock_release(struct mock_disk *m)
{
    while (m->n_held)
        mock_finish(m, m->held[--m->n_held]);
    disk_kick(&m->disk);
}

static inline void mock_kick(struct disk *d) {}

static inline bool mock_wait(struct disk *d)
{
    struct mock_disk *m = (struct mock_disk *)d;
    bool any = m->n_held;

    while (m->n_held)
        mock_finish(m, m->held[--m->n_held]);
    return any;
}

static inline void mock_close(struct disk *d)
{
    ((struct mock_disk *)d)->closed = true;
}

static const struct disk_ops mock_ops = {
    .submit = mock_submit, .kick = mock_kick, .wait = mock_wait, .close = mock_close};

static inline void mock_open(struct mock_disk *m, uint64_t size)
{
    struct disk_spec spec = {.path = "mock", .serial = "MOCK1"};

    memset(m, 0, sizeof *m);
    disk_init(&m->disk, &mock_ops, &spec);
    m->disk.size = size;
    m->disk.said = true; /* no log lines from errors that are meant */
    m->data = calloc(1, size);
}

static inline void mock_free(struct mock_disk *m)
{
    free(m->data);
}
