/* Inside the VM process's end of a shared folder: share.c (messages), share_state.c (for a machine that is saved). */
#pragma once
#include "backends/share.h"
#include "host/child.h"
#include "host/loop_mailbox.h"

struct share {
    char *directory; /* for messages; NULL: adopted */
    struct child child;
    struct loop *loop;
    struct mailbox mailbox; /* fd -1: the server is gone */
    struct loop_mailbox watch;
    int arena_fd;
    uint8_t *arena;
    uint32_t session;
    uint32_t free_slots[SHARE_SLOTS], n_free_slots; /* used last, used first: fewer pages are touched */
    struct share_call *in_flight[SHARE_CALLS_MAX];
    uint32_t free_index[SHARE_CALLS_MAX], n_free_index;
    struct share_call *waiting, **waiting_end; /* not sent yet, in order */
    bool full;                                 /* the mailbox: the server will say when there is room */
    unsigned vain, skips;                      /* share_await: how often not to wait after one in vain; now */
    const struct share_user *user;
    void *opaque;
    struct share_transfer *transfer; /* share_state.c; NULL: none is under way */
};

/* Takes what has come, and sends what waits. */
void share_take_mail(struct share *s);
/* As share_submit, of a message of our own, which is no file system's. */
void share_submit_state(struct share *s, struct share_call *call, uint32_t length, uint32_t reply_max);
/* Those of a transfer come back here. */
void share_transfer_fill(struct share *s, void *slot, size_t length);
void share_transfer_replied(struct share *s, const void *head, size_t head_length, const void *rest,
                            size_t rest_length);
