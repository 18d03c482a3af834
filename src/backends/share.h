/*
 * Shared folders: a directory of the host that a guest mounts by virtio-fs.  This is the VM process's end; the file
 * server is a process of its own (room share), which is all that interprets the guest's messages.
 *
 *   DIR[:PATH][:ro][:mounts][:locks]     DIR of the host; PATH where the guest's init mounts it (not this program's
 *           business); ro: the guest cannot change it; mounts: with what is mounted below DIR; locks: the guest's locks
 *           hold on the host, too
 *
 * A message goes out by share_submit and its reply comes back by a callback, in any order.  The caller owns the
 * struct share_call and its memory all along.  All functions and callbacks: bus lock held.
 */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "share/wire.h"

struct loop;
struct share;

struct share_words {
    const char *directory; /* of share_parse's copy */
    const char *path;      /* NULL: none was given */
    bool read_only, mounts, locks;
    char copy[4096];
};

/* Takes the words apart.  0, or -EINVAL with one sentence. */
int share_parse(const char *spec, struct share_words *words, char *err, size_t n);
/* For the command line: the words make sense and the directory is one.  0, or -errno with one sentence. */
int share_check(const char *spec, char *err, size_t n);
/* The tag by which the guest finds the share number i: "share0", "share1", ... */
#define SHARE_TAG_SIZE 36
void share_tag(char tag[SHARE_TAG_SIZE], unsigned i);

struct share_call {
    struct share_call *next; /* the backend's, like all but `packet` */
    uint32_t kind, length, reply_max, slot;
    uint32_t index;
    struct {
        struct share_request_head head;
        uint8_t bytes[SHARE_INLINE]; /* the message, or its first SHARE_HEAD bytes */
    } packet;
};

#define SHARE_CALLS_MAX 1024u

struct share_user {
    /* Copies the message from SHARE_HEAD on to `slot`; false: the message is no more, drop the call (it comes back by
     * `replied` without a reply). */
    bool (*fill)(void *opaque, struct share_call *call, void *slot, size_t length);
    /* The reply: head, then rest; or nothing (head_length 0) when there is none.  The call is the caller's again. */
    void (*replied)(void *opaque, struct share_call *call, const void *head, size_t head_length, const void *rest,
                    size_t rest_length);
    void (*idle)(void *opaque); /* after one or more `replied` */
};

/* Starts the file server.  0, or -errno with one sentence. */
int share_open(struct share **out, const char *spec, struct loop *loop, char *err, size_t n);
/* For tests and for who has a server already: `fd` is its socket, `arena` what it maps; share_close closes both. */
int share_adopt(struct share **out, int fd, int arena, struct loop *loop);
void share_close(struct share *s);
void share_set_user(struct share *s, const struct share_user *user, void *opaque);

/* Sends a message of `length` bytes (at least 40) whose beginning is in call->packet.bytes, when the server and a slot
 * are ready for it.  reply_max 0: no reply is wanted, `replied` follows when it is sent.  When the server has died,
 * each call is answered with EIO.  Not more than SHARE_CALLS_MAX at a time. */
void share_submit(struct share *s, struct share_call *call, uint32_t length, uint32_t reply_max);

/* Waits some microseconds for a reply, if the server is likely to have one by then, and calls back: for after a submit,
 * on behalf of a guest that is likely to wait for it. */
void share_await(struct share *s);

/* For a machine whose CPUs stand still; no other thread looks for messages.  Waits until all that was submitted is
 * answered: 0, -ETIMEDOUT, or -EPIPE: the server has died. */
int share_drain(struct share *s);
/* Then: what the server knows of the guest, as bytes that the caller frees; and back, in a new machine.  They may be a
 * stranger's.  0, or -errno with one sentence: of share_save -ENOTSUP when it has locks. */
int share_save(struct share *s, uint8_t **bytes, size_t *size, char *err, size_t n);
int share_load(struct share *s, const uint8_t *bytes, size_t size, char *err, size_t n);

/* The device was reset: the server forgets everything.  Calls come back without a reply, some only later. */
void share_reset(struct share *s);
