/*
 * The cache of nodes' descriptors: few, in order of their last use, and closed after some seconds without.  The root's
 * is not in it.
 */
#include <unistd.h>

#include "share/server_int.h"

static void cache_unlink(struct server *s, struct node *node)
{
    *(node->newer ? &node->newer->older : &s->newest) = node->older;
    *(node->older ? &node->older->newer : &s->oldest) = node->newer;
    s->cached--;
}

static void cache_link(struct server *s, struct node *node)
{
    node->newer = NULL;
    node->older = s->newest;
    *(s->newest ? &s->newest->newer : &s->oldest) = node;
    s->newest = node;
    s->cached++;
}

void node_uncache(struct server *s, struct node *node)
{
    if (node->fd < 0 || node == s->root)
        return;
    cache_unlink(s, node);
    close(node->fd);
    node->fd = -1;
}

bool nodes_evict(struct server *s)
{
    if (!s->oldest)
        return false;
    node_uncache(s, s->oldest);
    return true;
}

void node_used(struct server *s, struct node *node)
{
    node->used_at = now_s();
    if (node == s->root || node == s->newest)
        return;
    cache_unlink(s, node);
    cache_link(s, node);
}

void node_cache(struct server *s, struct node *node, int fd)
{
    if (s->cached >= s->cached_max)
        nodes_evict(s);
    node->fd = fd;
    node->used_at = now_s();
    cache_link(s, node);
    if (s->cached == 1)
        pthread_cond_signal(&s->wake);
}

uint32_t nodes_trim(struct server *s, uint32_t seconds)
{
    uint32_t now = now_s();

    while (s->oldest && now - s->oldest->used_at >= seconds)
        node_uncache(s, s->oldest);
    return s->cached;
}
