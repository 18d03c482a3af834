#include "image/tree.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#define LINKS_MAX 40 /* as Linux follows */
#define NAME_LONGEST 255
#define PATH_LONGEST 4096
#define DEPTH_MAX 1000

static uint32_t hash_of(const struct tree_node *parent, const char *name, size_t len)
{
    uint32_t h = 2166136261u ^ (uint32_t)((uintptr_t)parent >> 4);

    for (size_t i = 0; i < len; i++)
        h = (h ^ (unsigned char)name[i]) * 16777619u;
    return h;
}

static void *allocate(struct tree *t, size_t size)
{
    if (t->memory + size > TREE_MEMORY_MAX)
        return NULL;
    t->memory += size;
    return calloc(1, size);
}

static struct tree_node *new_node(struct tree *t, struct tree_node *parent, const char *name, size_t len)
{
    if (t->n_nodes >= TREE_NODES_MAX)
        return NULL;
    struct tree_node *node = allocate(t, sizeof *node + len + 1);
    if (!node)
        return NULL;
    memcpy(node->name, name, len);
    node->parent = parent;
    t->n_nodes++;
    if (!parent)
        return node;
    node->layer = t->layer;
    node->hash = hash_of(parent, name, len);
    node->next = parent->children;
    if (node->next)
        node->next->previous = node;
    parent->children = node;
    struct tree_node **bucket = &t->buckets[node->hash % t->n_buckets];
    node->bucket = *bucket;
    *bucket = node;
    return node;
}

static int grow(struct tree *t)
{
    size_t n = t->n_buckets ? 4 * t->n_buckets : 1024;
    struct tree_node **buckets = calloc(n, sizeof *buckets);

    if (!buckets)
        return -ENOMEM;
    for (size_t i = 0; i < t->n_buckets; i++) {
        for (struct tree_node *node = t->buckets[i], *next; node; node = next) {
            next = node->bucket;
            node->bucket = buckets[node->hash % n];
            buckets[node->hash % n] = node;
        }
    }
    free(t->buckets);
    t->buckets = buckets;
    t->n_buckets = n;
    return 0;
}

int tree_create(struct tree *t)
{
    *t = (struct tree){0};
    if (grow(t))
        return -ENOMEM;
    t->root = new_node(t, NULL, "", 0);
    struct tree_inode *inode = tree_inode(t, S_IFDIR | 0755, 0, 0, 0);
    if (!t->root || !inode)
        return -ENOMEM;
    t->root->inode = inode;
    inode->links = 1;
    return 0;
}

static void free_inode(struct tree_inode *inode)
{
    for (struct tree_xattr *x = inode->xattrs, *next; x; x = next) {
        next = x->next;
        free(x);
    }
    free(inode->target);
    free(inode);
}

void tree_destroy(struct tree *t)
{
    if (t->root)
        tree_drop_children(t, t->root);
    free(t->root);
    free(t->buckets);
    for (struct tree_inode *inode = t->all, *next; inode; inode = next) {
        next = inode->all;
        free_inode(inode);
    }
    *t = (struct tree){0};
}

struct tree_inode *tree_inode(struct tree *t, uint32_t mode, uint32_t uid, uint32_t gid, int64_t mtime)
{
    struct tree_inode *inode = allocate(t, sizeof *inode);

    if (!inode)
        return NULL;
    *inode = (struct tree_inode){.mode = mode, .uid = uid, .gid = gid, .mtime = mtime, .all = t->all};
    t->all = inode;
    return inode;
}

int tree_set_target(struct tree *t, struct tree_inode *inode, const char *target)
{
    size_t len = strlen(target);

    if (len == 0 || len >= PATH_LONGEST)
        return -EINVAL;
    free(inode->target);
    inode->target = allocate(t, len + 1);
    if (!inode->target)
        return -E2BIG;
    memcpy(inode->target, target, len);
    return 0;
}

int tree_add_xattr(struct tree *t, struct tree_inode *inode, const char *name, const void *value, size_t len)
{
    size_t name_len = strlen(name) + 1;

    if (name_len > 256 || len > 65536)
        return -EINVAL;
    struct tree_xattr *x = allocate(t, sizeof *x + len + name_len);
    if (!x)
        return -E2BIG;
    if (len)
        memcpy(x->value, value, len);
    memcpy(x->value + len, name, name_len);
    x->name = (char *)x->value + len;
    x->len = len;
    x->next = inode->xattrs;
    inode->xattrs = x;
    return 0;
}

static struct tree_node *find_child(const struct tree *t, const struct tree_node *parent, const char *name, size_t len)
{
    uint32_t hash = hash_of(parent, name, len);
    struct tree_node *node = t->buckets[hash % t->n_buckets];

    while (node && !(node->parent == parent && node->hash == hash && strlen(node->name) == len &&
                     memcmp(node->name, name, len) == 0))
        node = node->bucket;
    return node;
}

struct tree_node *tree_child(const struct tree *t, const struct tree_node *parent, const char *name)
{
    return find_child(t, parent, name, strlen(name));
}

static bool is_directory(const struct tree_node *node)
{
    return S_ISDIR(node->inode->mode);
}

/* One walk along a path. */
struct walk {
    struct tree *t;    /* changed only if `make` */
    bool make, follow; /* directories that are not there; a link at the end */
    unsigned links;    /* followed so far */
    const char *last;  /* the last component, which was not looked up (`parent_only`) */
    size_t last_len;
    bool parent_only;
    int failed;
};

static struct tree_node *walk_from(struct walk *w, struct tree_node *at, const char *path);

/* Where the link leads; its last component is always followed. */
static struct tree_node *walk_link(struct walk *w, struct tree_node *link)
{
    struct walk inner = {.t = w->t, .make = w->make, .follow = true, .links = w->links + 1};

    if (inner.links > LINKS_MAX) {
        w->failed = -ELOOP;
        return NULL;
    }
    const char *target = link->inode->target ? link->inode->target : ".";
    struct tree_node *node = walk_from(&inner, target[0] == '/' ? w->t->root : link->parent, target);
    w->links = inner.links;
    w->failed = inner.failed;
    return node;
}

static struct tree_node *make_directory(struct walk *w, struct tree_node *parent, const char *name, size_t len)
{
    struct tree_inode *inode = tree_inode(w->t, S_IFDIR | 0755, 0, 0, parent->inode->mtime);
    struct tree_node *node = inode ? new_node(w->t, parent, name, len) : NULL;

    if (!node) {
        w->failed = -E2BIG;
        return NULL;
    }
    node->inode = inode;
    inode->links = 1;
    return node;
}

static struct tree_node *step(struct walk *w, struct tree_node *at, const char *name, size_t len, bool last)
{
    if (!is_directory(at)) {
        w->failed = -ENOTDIR;
        return NULL;
    }
    if (len == 1 && name[0] == '.')
        return at;
    if (len == 2 && name[0] == '.' && name[1] == '.')
        return at->parent ? at->parent : at;
    if (len > NAME_LONGEST) {
        w->failed = -EINVAL;
        return NULL;
    }
    struct tree_node *node = find_child(w->t, at, name, len);
    if (!node && w->make)
        node = make_directory(w, at, name, len);
    if (node && S_ISLNK(node->inode->mode) && (!last || w->follow))
        return walk_link(w, node);
    return node;
}

/* NULL with failed 0: it is not there. */
static struct tree_node *walk_from(struct walk *w, struct tree_node *at, const char *path)
{
    while (at) {
        path += strspn(path, "/");
        size_t len = strcspn(path, "/");
        const char *rest = path + len + strspn(path + len, "/");
        if (len == 0)
            return at;
        if (w->parent_only && !*rest) {
            w->last = path;
            w->last_len = len;
            return at;
        }
        at = step(w, at, path, len, !*rest);
        path += len;
    }
    return NULL;
}

struct tree_node *tree_find(const struct tree *t, const char *path, bool follow)
{
    struct walk w = {.t = (struct tree *)(uintptr_t)t, .follow = follow};

    return walk_from(&w, t->root, path);
}

static void replace_inode(struct tree_node *node, struct tree_inode *inode)
{
    inode->links++;
    node->inode->links--;
    node->inode = inode;
}

static bool too_deep(const struct tree_node *node)
{
    unsigned depth = 0;

    while (node && depth <= DEPTH_MAX) {
        node = node->parent;
        depth++;
    }
    return depth > DEPTH_MAX;
}

int tree_put(struct tree *t, const char *path, struct tree_inode *inode, struct tree_node **out)
{
    struct walk w = {.t = t, .make = true, .parent_only = true};
    bool directory = S_ISDIR(inode->mode);

    if (strlen(path) >= PATH_LONGEST)
        return -EINVAL;
    struct tree_node *parent = walk_from(&w, t->root, path), *node;
    if (!parent)
        return w.failed ? w.failed : -EINVAL;
    if (!w.last || (w.last_len == 1 && w.last[0] == '.')) { /* "/" or "." or "a/.": the directory itself */
        if (!directory)
            return -EINVAL;
        replace_inode(parent, inode);
        if (out)
            *out = parent;
        return 0;
    }
    if (!is_directory(parent))
        return -ENOTDIR;
    if (w.last_len > NAME_LONGEST || (w.last_len == 2 && memcmp(w.last, "..", 2) == 0) || too_deep(parent))
        return -EINVAL;
    node = find_child(t, parent, w.last, w.last_len);
    if (node) {
        if (!directory)
            tree_drop_children(t, node);
        replace_inode(node, inode);
        node->layer = t->layer;
    } else {
        if (t->n_nodes > 2 * t->n_buckets && grow(t))
            return -E2BIG;
        node = new_node(t, parent, w.last, w.last_len);
        if (!node)
            return -E2BIG;
        node->inode = inode;
        inode->links++;
    }
    if (out)
        *out = node;
    return 0;
}

/* A node without children. */
static void take_out(struct tree *t, struct tree_node *node)
{
    struct tree_node **at = &t->buckets[node->hash % t->n_buckets];

    while (*at != node)
        at = &(*at)->bucket;
    *at = node->bucket;
    if (node->next)
        node->next->previous = node->previous;
    if (node->previous)
        node->previous->next = node->next;
    else
        node->parent->children = node->next;
    node->inode->links--;
    t->n_nodes--;
    t->memory -= sizeof *node + strlen(node->name) + 1;
    free(node);
}

/* Without recursion: goes down to a leaf, takes it out, goes on with its parent. */
void tree_drop_children(struct tree *t, struct tree_node *top)
{
    struct tree_node *node = top;

    while (top->children) {
        while (node->children)
            node = node->children;
        struct tree_node *parent = node->parent;
        take_out(t, node);
        node = parent;
    }
}

void tree_drop(struct tree *t, struct tree_node *node)
{
    tree_drop_children(t, node);
    take_out(t, node);
}

static struct tree_node *deepest_first(struct tree_node *node)
{
    while (node->children)
        node = node->children;
    return node;
}

/* Children before parents: a directory stays for what this layer put into it. */
void tree_hide_children(struct tree *t, struct tree_node *top)
{
    struct tree_node *node = deepest_first(top);

    while (node != top) {
        struct tree_node *next = node->next ? deepest_first(node->next) : node->parent;
        if (node->layer != t->layer && !node->children)
            take_out(t, node);
        node = next;
    }
}

void tree_hide(struct tree *t, struct tree_node *node)
{
    tree_hide_children(t, node);
    if (node->layer != t->layer && !node->children)
        take_out(t, node);
}

int tree_walk(struct tree_node *top, int (*visit)(struct tree_node *, void *), void *context)
{
    struct tree_node *node = top;

    for (;;) {
        int stop = visit(node, context);
        if (stop)
            return stop;
        if (node->children) {
            node = node->children;
            continue;
        }
        while (node != top && !node->next)
            node = node->parent;
        if (node == top)
            return 0;
        node = node->next;
    }
}
