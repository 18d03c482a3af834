/*
 * What a VM process and its file server say to each other.
 *
 * They share a SOCK_SEQPACKET socket and an arena (a sealed memfd): SHARE_SLOTS slots, then the memory of a mailbox
 * (host/mailbox.h; end 0 is the VM process).  A message of the mailbox is a packet: a head, then FUSE bytes
 * (linux/fuse.h).  Whatever is small travels in the packet; bulk lies in the slot that the VM process lent to the
 * request:
 *
 *   request of `length` bytes   packet: all of it, or its first SHARE_HEAD bytes    slot: the rest, from offset 0
 *   reply of `length` bytes     packet: all of it, or its first SHARE_REPLY_HEAD    slot: the rest, from offset 0
 *
 * so that data is copied twice on its way, guest memory to slot to file, and neither side looks at anything in the
 * slot that the other could change meanwhile: headers are in packets, which are copied out first.  The server never
 * sees guest memory.
 *
 * Neither side trusts the other: each checks every number of a head against its own.
 */
#pragma once
#include <linux/fuse.h>
#include <stdint.h>

#include "host/mailbox.h"

#define SHARE_SLOTS 16u
#define SHARE_DATA_MAX (1u << 20)                               /* bytes of file data in one request or reply */
#define SHARE_SLOT_SIZE (SHARE_DATA_MAX + 4096u)                /* and what goes with them */
#define SHARE_MAILBOX ((uint64_t)SHARE_SLOTS * SHARE_SLOT_SIZE) /* where it is in the arena */
#define SHARE_ARENA_SIZE (SHARE_MAILBOX + MAILBOX_MEMORY)
#define SHARE_NO_SLOT UINT32_MAX

#define SHARE_INLINE 4096u   /* a message of at most so many FUSE bytes needs no slot */
#define SHARE_HEAD 80u       /* of a longer request: the headers of FUSE_WRITE, so that a slot holds data alone */
#define SHARE_REPLY_HEAD 16u /* of a longer reply: struct fuse_out_header */

enum share_kind {
    SHARE_FUSE = 1,
    SHARE_RESET, /* the device was reset: all files are forgotten, this session begins; no reply */
    SHARE_STATE, /* struct share_state_head: not the guest's, but of a machine that is saved or restored */
};

/*
 * What the server knows of the guest is asked for, or told, by pieces.  Both take a slot.
 *
 *   SHARE_SAVE   the reply: u64 length of all, then a piece from `offset` on     0 is asked for first: then it is made
 *   SHARE_LOAD   the request goes on with a piece for `offset`, as long as it says; the last makes all of it count
 */
enum { SHARE_SAVE = 0x10001, SHARE_LOAD }; /* in.opcode: none of FUSE's */
#define SHARE_STATE_MAX (64u << 20)        /* of all, bytes: of some 500,000 files */
#define SHARE_PIECE SHARE_DATA_MAX
struct share_state_head {
    struct fuse_in_header in;
    uint64_t offset, total, length; /* the latter two: of a load */
    uint8_t zero[16];
};
_Static_assert(sizeof(struct share_state_head) == 80, "the rest is in the slot");

struct share_request_head {
    uint32_t kind;    /* enum share_kind */
    uint32_t index;   /* the VM process's name for the request */
    uint32_t session; /* counts resets, from 0; a request of an earlier one is answered with ECANCELED */
    uint32_t length;
    uint32_t reply_max; /* room for the whole reply, at least 16; 0: no reply is wanted */
    uint32_t slot;      /* or SHARE_NO_SLOT */
};

struct share_reply_head {
    uint32_t index;
    uint32_t length;
};
