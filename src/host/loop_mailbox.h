/*
 * Mailboxes (mailbox.h) of an event loop: it is woken for them, or a thread that has nothing to do looks into them.
 */
#pragma once
#include "host/loop.h"
#include "host/mailbox.h"

struct loop_mailbox {
    struct mailbox *mailbox;
    /* Called, lock held, when there may be messages or room, which it may leave for the next time; at the end, and then
     * on the loop's thread, with `gone`. */
    void (*fn)(void *opaque, bool gone);
    void *opaque;
    struct loop *loop; /* these three are loop_mailbox.c's business */
    struct loop_timer again;
    struct loop_mailbox *next;
};

/* Before any other thread looks, and after all have ended.  0 or -errno. */
int loop_mailbox_add(struct loop *loop, struct loop_mailbox *b);
void loop_mailbox_del(struct loop *loop, struct loop_mailbox *b);

/* For a thread that does not hold the lock: from begin to end nobody is woken, and each loop_look calls the `fn` of
 * those that have something, unless the lock is taken. */
void loop_look_begin(struct loop *loop);
void loop_look(struct loop *loop);
void loop_look_end(struct loop *loop);
