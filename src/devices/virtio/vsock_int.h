/*
 * Shared between vsock.c (queues, the device) and vsock_conn.c (connections).
 *
 * A packet (5.10.6), in one descriptor chain: this header, then `len` bytes.
 *
 *      0 src_cid  8 dst_cid  16 src_port  20 dst_port  24 len  28 type(16)  30 op(16)  32 flags  36 buf_alloc  40
 * fwd_cnt
 *
 * Credit (5.10.6.3): what is sent and not yet consumed never exceeds the receiver's buf_alloc; fwd_cnt, a
 * free-running count of bytes consumed, is in every packet.
 */
#pragma once
#include <stdbool.h>
#include <stdint.h>

#include "backends/ring.h"
#include "devices/virtio/virtio.h"
#include "devices/virtio/vsock.h"

#define VSOCK_PACKET_MAX 65536u         /* bytes of payload, either way */
#define VSOCK_WINDOW_LARGE (256u << 10) /* buf_alloc of the first connections ... */
#define VSOCK_WINDOW_SMALL (16u << 10)  /* ... and of more: so all of them together hold less than 100 MiB */
#define VSOCK_LARGE_MAX 128u
#define VSOCK_REPLIES_MAX 128u
#define VSOCK_LISTENERS_MAX 16u
#define VSOCK_BUCKETS 512u
#define VSOCK_TYPE_STREAM 1u
#define VSOCK_CONNECT_NS 5000000000ull /* the guest answers a request within this */
#define VSOCK_CLOSE_NS 8000000000ull   /* the guest answers a shutdown of both directions */
#define VSOCK_DRAIN_NS 60000000000ull  /* a client takes what a closed connection has left */

enum vsock_op {
    VSOCK_OP_REQUEST = 1,
    VSOCK_OP_RESPONSE,
    VSOCK_OP_RST,
    VSOCK_OP_SHUTDOWN,
    VSOCK_OP_RW,
    VSOCK_OP_CREDIT_UPDATE,
    VSOCK_OP_CREDIT_REQUEST,
};
enum { VSOCK_SHUT_RCV = 1, VSOCK_SHUT_SEND = 2, VSOCK_SHUT_BOTH = 3 }; /* the sender of it will not ... any more */

struct __attribute__((packed)) vsock_header {
    uint64_t src_cid, dst_cid;
    uint32_t src_port, dst_port, len;
    uint16_t type, op;
    uint32_t flags, buf_alloc, fwd_cnt;
};
_Static_assert(sizeof(struct vsock_header) == 44, "5.10.6");

enum conn_state {
    CONN_ASKED,      /* the guest's request waits for the host's answer */
    CONN_CONNECTING, /* ours waits for the guest's */
    CONN_OPEN,
    CONN_CLOSING,   /* fd is closed; the guest has been told and owes a RST */
    CONN_DRAINING,  /* the guest is done with it; fd takes what is left.  Not in the table any more */
    CONN_RESETTING, /* a RST is due to the guest, and then that is all */
    CONN_DEAD,      /* to be freed by the loop's thread */
};

struct conn {
    struct vsock *vs;
    struct conn *prev, *next;             /* all of them */
    struct conn *bucket_next;             /* when hashed */
    struct conn *ready_prev, *ready_next; /* when ready: it may have a packet for the guest */
    bool hashed, ready, watched;
    enum conn_state state;
    uint32_t guest_port, host_port;
    int fd; /* -1: closed */
    void (*done)(void *opaque, int err, uint32_t host_port);
    void *opaque;
    int error;                     /* for done, of a dead one */
    uint64_t deadline_ns;          /* UINT64_MAX: none */
    bool asked;                    /* our request is on its way */
    bool respond, credit;          /* a RESPONSE, a CREDIT_UPDATE is due */
    bool readable;                 /* fd may have bytes: its last read did not say otherwise */
    bool fd_eof;                   /* nothing more comes from fd */
    bool fd_closed;                /* nothing more goes to fd */
    uint8_t guest_shut, told_shut; /* VSOCK_SHUT_ of the guest; those we have sent */
    bool write_shut;               /* the guest's SHUT_SEND was passed on to fd */
    uint32_t window;               /* our buf_alloc */
    uint32_t received, forwarded;  /* bytes from the guest; of these, consumed: our fwd_cnt */
    uint32_t forwarded_told;       /* the last fwd_cnt sent */
    uint32_t sent, peer_alloc, peer_forwarded;
    struct ring out; /* from the guest, for fd; data NULL when empty */
};

struct vsock_reply { /* a RST for a connection that does not exist (any more) */
    uint32_t guest_port, host_port;
    uint16_t type;
};

struct vsock {
    struct vsock_saved {
        struct virtio_state virtio;
        uint32_t reset_due; /* the guest must hear that its connections are gone (5.10.6.7) */
    } saved;
    struct virtio_device virtio;
    struct loop *loop;
    struct vsock_host *host;
    uint64_t cid;
    struct loop_timer work, deadlines;
    struct conn *all, *ready_first, *ready_last;
    struct conn *buckets[VSOCK_BUCKETS];
    unsigned n_conns, n_large;
    uint32_t next_port;
    struct vsock_listener {
        uint32_t port;
        int (*accept)(void *opaque, uint32_t guest_port);
        void *opaque;
    } listeners[VSOCK_LISTENERS_MAX];
    unsigned n_listeners;
    struct vsock_reply replies[VSOCK_REPLIES_MAX]; /* oldest first */
    unsigned n_replies;
    bool asked; /* some connection is CONN_ASKED */
    uint8_t payload[VSOCK_PACKET_MAX];
};

/* --- vsock.c ------------------------------------------------------------------------------------------------ */
/* Has the loop's thread look at queues and connections, soon. */
void vsock_schedule(struct vsock *vs);
void vsock_deadline(struct vsock *vs, struct conn *c, uint64_t after_ns);

/* --- vsock_conn.c ------------------------------------------------------------------------------------------- */
struct conn *conn_find(struct vsock *vs, uint32_t guest_port, uint32_t host_port);
/* NULL: too many, or no memory. */
struct conn *conn_new(struct vsock *vs, enum conn_state state, uint32_t guest_port, uint32_t host_port, int fd);
/* Ends it without a word to the guest; freed at the next conn_reap.  Any thread. */
void conn_kill(struct conn *c, int error);
/* Calls `done` of what has failed and frees what is dead; on the loop's thread. */
void conn_reap(struct vsock *vs);
/* The guest's request for it. */
void conn_asked(struct conn *c, const struct vsock_header *h);
/* Forgets the caller of vsock_connect. */
void conn_cancel(struct conn *c);
/* The host took the guest's connection (fd) or not (-errno). */
void conn_answer(struct conn *c, int fd);
/* A packet from the guest; its payload is in vs->payload. */
void conn_packet(struct conn *c, const struct vsock_header *h);
/* The next packet for the guest, with at most room bytes in vs->payload, filled in but for addresses.  False: none now.
 */
bool conn_next(struct conn *c, struct vsock_header *h, uint32_t room);
void conn_expired(struct conn *c);
void conn_ready(struct conn *c);
void conn_idle(struct conn *c); /* out of the ready list */
