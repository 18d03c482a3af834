#include "host/loop_mailbox.h"

#include <sys/epoll.h>

/* What is left is for the next pass: a sender without end does not keep the lock. */
static void rest_or_again(struct loop_mailbox *b)
{
    if (!mailbox_rest(b->mailbox))
        loop_timer_set(b->loop, &b->again, clock_ns());
}

static void take(void *opaque)
{
    struct loop_mailbox *b = opaque;

    b->fn(b->opaque, false);
    rest_or_again(b);
}

static void on_socket(void *opaque, uint32_t events)
{
    struct loop_mailbox *b = opaque;

    if (mailbox_woken(b->mailbox)) {
        take(b);
        return;
    }
    loop_fd_del(b->loop, b->mailbox->fd);
    loop_timer_cancel(b->loop, &b->again);
    b->fn(b->opaque, true);
}

int loop_mailbox_add(struct loop *loop, struct loop_mailbox *b)
{
    struct loop_mailbox **list = loop_mailboxes(loop);
    int err = loop_fd_add(loop, b->mailbox->fd, EPOLLIN, on_socket, b);

    if (err)
        return err;
    b->loop = loop;
    loop_timer_init(&b->again, take, b);
    b->next = *list;
    *list = b;
    rest_or_again(b);
    return 0;
}

void loop_mailbox_del(struct loop *loop, struct loop_mailbox *b)
{
    struct loop_mailbox **p = loop_mailboxes(loop);

    while (*p && *p != b)
        p = &(*p)->next;
    if (*p)
        *p = b->next;
    loop_timer_cancel(loop, &b->again);
    loop_fd_del(loop, b->mailbox->fd);
}

void loop_look_begin(struct loop *loop)
{
    for (struct loop_mailbox *b = *loop_mailboxes(loop); b; b = b->next)
        mailbox_look(b->mailbox);
}

void loop_look(struct loop *loop)
{
    for (struct loop_mailbox *b = *loop_mailboxes(loop); b; b = b->next)
        if (mailbox_ready(b->mailbox) && pthread_mutex_trylock(loop_lock(loop)) == 0) {
            b->fn(b->opaque, false);
            pthread_mutex_unlock(loop_lock(loop));
        }
}

void loop_look_end(struct loop *loop)
{
    for (struct loop_mailbox *b = *loop_mailboxes(loop); b; b = b->next)
        if (!mailbox_rest(b->mailbox)) {
            pthread_mutex_lock(loop_lock(loop));
            take(b);
            pthread_mutex_unlock(loop_lock(loop));
        }
}
