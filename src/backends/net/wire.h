/*
 * Frames between a VM and its network helper, over a SOCK_SEQPACKET socket.  A message holds one frame or more, so that
 * many small ones cost one system call, and one process that dies leaves the other at a message's beginning:
 *
 *      record   u32 length of the frame, struct net_header (12 bytes), the frame, up to 3 bytes of padding
 *
 * Both ends are on one machine: numbers are in its order.  Neither end trusts the other's lengths.
 */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#include "backends/net.h"

/* A message is sent when this much has gathered; a single frame may make it longer. */
#define WIRE_GATHER (64u << 10)

struct wire {
    int fd; /* not closed by wire_free */
    uint8_t *out, *in;
    size_t out_len;
    size_t in_len, in_at; /* the message in hand, and how far it has been read */
    size_t in_next;       /* the record behind the one that wire_next gave */
};

/* Makes fd non-blocking and its buffers large.  0 or -errno. */
int wire_init(struct wire *w, int fd);
void wire_free(struct wire *w);

/* Adds a frame; iov[0] is its header of 12 bytes, and n <= NET_IOV_MAX.  false: no room, nothing is taken. */
bool wire_put(struct wire *w, const struct iovec *iov, unsigned n);
/* Sends what has gathered.  false: no room (then wait for POLLOUT). */
bool wire_flush(struct wire *w);
static inline bool wire_pending(const struct wire *w)
{
    return w->out_len > 0;
}

/* Takes the next message, when the one in hand is used up.  1: there is one in hand; 0: not now; -errno: never again.
 */
int wire_fill(struct wire *w);
/* The next frame of the message in hand, which stays until wire_done; false: there is no more.  Header and frame are
 * in w->in and may be changed. */
bool wire_next(struct wire *w, struct net_header **h, uint8_t **frame, size_t *len);
void wire_done(struct wire *w);
