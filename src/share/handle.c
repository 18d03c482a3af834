/* Files and directories that the guest has open. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

#include "share/server_int.h"

/* It has a number, and is the node's from now on. */
static void enter(struct server *s, struct handle *h, struct node *node)
{
    h->node = node;
    h->uses = 1;
    h->next_of_node = node->handles;
    node->handles = h;
    node_hold(node);
    s->n_open++;
}

int handle_add(struct server *s, struct node *node, int fd, bool directory, bool writable, struct handle **out)
{
    struct handle *h = s->n_open < s->handles_max ? calloc(1, sizeof *h) : NULL;
    int err = h ? 0 : s->n_open < s->handles_max ? -ENOMEM : -EMFILE;

    if (!err)
        err = id_add(&s->handles, h, s->handles_max, &h->id);
    if (err) {
        if (fd >= 0)
            close(fd);
        free(h);
        return err;
    }
    h->fd = fd;
    h->directory = directory;
    h->writable = writable;
    enter(s, h, node);
    *out = h;
    return 0;
}

int handle_put(struct server *s, uint64_t id, struct node *node, int fd, bool directory, uint32_t flags)
{
    struct handle *h = s->n_open < s->handles_max ? calloc(1, sizeof *h) : NULL;
    int err = h ? 0 : s->n_open < s->handles_max ? -ENOMEM : -EMFILE;

    if (!err && directory && !(h->entries = entries_new()))
        err = -ENOMEM;
    if (!err)
        err = id_put(&s->handles, id, h, s->handles_max);
    if (err) {
        if (fd >= 0)
            close(fd);
        free(h ? h->entries : NULL);
        free(h);
        return err;
    }
    h->id = id;
    h->fd = fd;
    h->directory = directory;
    h->writable = (flags & O_ACCMODE) != O_RDONLY;
    h->lost = fd < 0 && !node->covered;
    h->flags = flags;
    enter(s, h, node);
    return 0;
}

struct handle *handle_find(struct server *s, uint64_t id, const struct node *node, bool directory)
{
    struct handle *h = id_find(&s->handles, id);

    return h && h->node == node && h->directory == directory ? h : NULL;
}

void handle_hold(struct handle *h)
{
    h->uses++;
}

void handle_drop(struct server *s, struct handle *h)
{
    if (--h->uses)
        return;
    if (h->fd >= 0)
        close(h->fd);
    free(h->entries);
    s->n_open--;
    struct handle **p = &h->node->handles;
    while (*p != h)
        p = &(*p)->next_of_node;
    *p = h->next_of_node;
    node_drop(s, h->node);
    free(h);
}

void handle_release(struct server *s, struct handle *h)
{
    locks_cancel(s, h, -EINTR);
    id_remove(&s->handles, h->id);
    handle_drop(s, h);
}

void handles_clear(struct server *s)
{
    for (uint32_t i = 0; i < s->handles.n; i++)
        if (s->handles.slots[i].object)
            handle_release(s, s->handles.slots[i].object);
}
