/*
 * Messages between two processes through memory that both have mapped, so that neither makes a system call for them
 * while the other looks.  Each direction is a ring:
 *
 *      bytes    |....|record|record|......|      record   u32 length, the message, padding to a multiple of 8
 *                    ^read         ^written      both count bytes for ever, modulo 2^32
 *
 * Who receives looks for messages, or says that he sleeps (mailbox_rest) and is then woken by a byte through a socket,
 * whose end is the other process's end.  Who sends and finds no room is woken in the same way when there is some.
 *
 * Neither end trusts the other: each keeps its own counter to itself, checks the other's, and copies a message out
 * before it is looked at.
 */
#pragma once
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <sys/uio.h>

#define MAILBOX_RING (128u << 10)
#define MAILBOX_MESSAGE_MAX (MAILBOX_RING / 4)

/* In shared memory: anything may stand in it at any time.  Zeroes are an empty one. */
struct mailbox_ring {
    _Alignas(64) _Atomic uint32_t written; /* by the sender, after the bytes; pairs with asleep */
    _Atomic uint32_t wants_room;           /* by the sender; the receiver clears it and wakes him; pairs with read */
    _Alignas(64) _Atomic uint32_t read;    /* by the receiver, after copying */
    _Atomic uint32_t asleep;               /* by the receiver; the sender clears it and wakes him */
    _Alignas(64) uint8_t bytes[MAILBOX_RING];
};
#define MAILBOX_MEMORY (2 * sizeof(struct mailbox_ring))

struct mailbox {
    int fd; /* SOCK_SEQPACKET or SOCK_STREAM; not closed here */
    struct mailbox_ring *out, *in;
    _Atomic uint32_t written, read; /* changed by one sender and one receiver at a time, looked at by others */
    _Atomic bool broken;            /* nothing is received any more */
};

/* The two ends have the same memory, MAILBOX_MEMORY bytes on a page of its own, and different `end` (0, 1). */
void mailbox_init(struct mailbox *m, void *memory, int fd, unsigned end);

/* 0; -EAGAIN: no room, a wake-up comes when there is; -EMSGSIZE.  mailbox_put leaves it to mailbox_wake to wake the
 * receiver if he sleeps, which is not needed when he has taken all before (mailbox_taken). */
int mailbox_send(struct mailbox *m, const struct iovec *iov, unsigned n);
int mailbox_put(struct mailbox *m, const struct iovec *iov, unsigned n);
void mailbox_wake(struct mailbox *m);
bool mailbox_taken(const struct mailbox *m);
/* Does the receiver look, so that he will see a message without a wake-up? */
bool mailbox_is_watched(const struct mailbox *m);
/* The length of the next message; -EAGAIN: there is none; -EPROTO: the other end's counter or a length was nonsense, or
 * it is gone, and nothing is received any more. */
ssize_t mailbox_receive(struct mailbox *m, void *to, size_t size);

/* Is there one?  Any thread. */
bool mailbox_ready(const struct mailbox *m);
/* Looks from now on: no wake-ups needed.  Any thread, which must call mailbox_rest in the end. */
void mailbox_look(struct mailbox *m);
/* Looks no more.  false: there is a message now, for which no wake-up comes. */
bool mailbox_rest(struct mailbox *m);

/* After a wake-up: takes what came through the socket.  false: the other end is gone, nothing is received any more. */
bool mailbox_woken(struct mailbox *m);
/* Sleeps until a wake-up, after mailbox_rest.  false: the other end is gone. */
bool mailbox_sleep(struct mailbox *m);
