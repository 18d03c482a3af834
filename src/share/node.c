/*
 * The files that the guest knows.
 *
 * A guest may know a million files, a process may have far fewer descriptors.  So a node remembers where its file was
 * seen (directory and name) and what it was (device, inode, time of birth); node_open goes there again, one name at a
 * time from the nearest directory that is still open, follows no link, and compares.  What is no longer the same file
 * is ESTALE, at which Linux looks the name up again.  Descriptors of nodes are a cache: few, and closed after some
 * seconds without use, so that a file which the host deletes gives its space back.
 *
 * Nodes form a tree by `parent`, like the guest's directory entries, with one hold for each child.  It is as the guest
 * last saw the host's tree.  When directories move on the host while the guest looks, a piece of it could become a
 * ring: node_moved cuts that open.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/error.h"
#include "share/server_int.h"

#define NODES_MAX (1u << 22)
#define STATX_WANTED (STATX_BASIC_STATS | STATX_BTIME | STATX_MNT_ID)

static uint64_t device_of(const struct statx *st)
{
    return (uint64_t)st->stx_dev_major << 32 | st->stx_dev_minor;
}

static int stat_fd(int fd, struct statx *st)
{
    return sys(statx(fd, "", AT_EMPTY_PATH | AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT, STATX_WANTED, st));
}

static bool is_same(const struct node *node, const struct statx *st)
{
    return node->ino == st->stx_ino && node->dev == device_of(st) && node->type == (st->stx_mode & S_IFMT) &&
           node->born.tv_sec == st->stx_btime.tv_sec && node->born.tv_nsec == st->stx_btime.tv_nsec;
}

/* openat(2) of one name, without following it; a full table of descriptors makes the cache smaller. */
static int open_name(struct server *s, int directory, const char *name)
{
    for (;;) {
        int fd = sys(openat(directory, name, O_PATH | O_NOFOLLOW | O_CLOEXEC));
        if ((fd != -EMFILE && fd != -ENFILE) || s->cached <= 16)
            return fd;
        nodes_evict(s); /* never `directory`, which is among the newest */
    }
}

/* --- nodes by what they are ---------------------------------------------------------------------------------- */

static uint32_t hash(uint64_t dev, uint64_t ino)
{
    uint64_t h = (ino ^ dev * 0x9e3779b97f4a7c15ull) * 0xff51afd7ed558ccdull;
    return (uint32_t)(h >> 32);
}

static struct node **bucket(struct server *s, uint64_t dev, uint64_t ino)
{
    return &s->buckets[hash(dev, ino) & (s->n_buckets - 1)];
}

static void grow_buckets(struct server *s)
{
    uint32_t n = 4 * s->n_buckets;
    struct node **old = s->buckets, **new = calloc(n, sizeof *new), *node;

    if (!new)
        return; /* slower, not wrong */
    uint32_t n_old = s->n_buckets;
    s->buckets = new;
    s->n_buckets = n;
    for (uint32_t i = 0; i < n_old; i++)
        while ((node = old[i])) {
            old[i] = node->same_hash;
            struct node **b = bucket(s, node->dev, node->ino);
            node->same_hash = *b;
            *b = node;
        }
    free(old);
}

static struct node *find_same(struct server *s, const struct statx *st)
{
    struct node *node = *bucket(s, device_of(st), st->stx_ino);

    while (node && !is_same(node, st))
        node = node->same_hash;
    return node;
}

/* It has an id, and is found by device and inode from now on. */
static void enter(struct server *s, struct node *node)
{
    if (s->nodes.n > 2 * s->n_buckets)
        grow_buckets(s);
    struct node **b = bucket(s, node->dev, node->ino);
    node->same_hash = *b;
    *b = node;
}

static int add(struct server *s, const struct statx *st, struct node **out)
{
    struct node *node = calloc(1, sizeof *node);

    if (!node)
        return -ENOMEM;
    *node = (struct node){
        .dev = device_of(st), .ino = st->stx_ino, .born = st->stx_btime, .type = st->stx_mode & S_IFMT, .fd = -1};
    int err = id_add(&s->nodes, node, NODES_MAX, &node->id);
    if (err) {
        free(node);
        return err;
    }
    enter(s, node);
    *out = node;
    return 0;
}

static void unparent(struct server *s, struct node *node)
{
    struct node *parent = node->parent;

    node->parent = NULL;
    free(node->name);
    node->name = NULL;
    if (parent)
        node_drop(s, parent);
}

/* Frees nodes that nobody needs: this one, then perhaps its parent.  No recursion, paths may be long. */
static void release(struct server *s, struct node *node)
{
    while (node && node != s->root && !node->lookups && !node->holds) {
        struct node *parent = node->parent;
        struct node **b = bucket(s, node->dev, node->ino);
        while (*b != node)
            b = &(*b)->same_hash;
        *b = node->same_hash;
        node_uncache(s, node);
        locks_drop_node(s, node);
        id_remove(&s->nodes, node->id);
        free(node->name);
        free(node);
        if (parent)
            parent->holds--;
        node = parent;
    }
}

void node_hold(struct node *node)
{
    node->holds++;
}

void node_drop(struct server *s, struct node *node)
{
    node->holds--;
    release(s, node);
}

void node_forget(struct server *s, struct node *node, uint64_t lookups)
{
    node->lookups -= lookups < node->lookups ? lookups : node->lookups;
    release(s, node);
}

struct node *node_find(struct server *s, uint64_t id)
{
    return id_find(&s->nodes, id);
}

/* --- where they are ------------------------------------------------------------------------------------------ */

/* Were `node` a child of `directory`, would its ancestors be a ring?  Then the one that closes it is lost instead. */
static void cut_ring(struct server *s, struct node *node, struct node *directory)
{
    struct node *up = directory;

    while (up && up != node && up->parent != node)
        up = up->parent;
    if (up && up != node)
        unparent(s, up);
}

void node_moved(struct server *s, struct node *node, struct node *directory, const char *name)
{
    if (node == s->root || node == directory || (node->parent == directory && strcmp(node->name, name) == 0))
        return;
    char *copy = strdup(name);
    node_hold(node);
    node_hold(directory);
    if (copy && node->parent != directory && node->type == S_IFDIR)
        cut_ring(s, node, directory);
    unparent(s, node);
    if (copy) {
        node->name = copy;
        node->parent = directory; /* with the hold */
    } else {
        node_drop(s, directory);
    }
    node_drop(s, node);
}

static void note_mount(struct server *s, struct node *node, const struct statx *st);

/* Opens one node whose parent is open. */
static int open_below(struct server *s, struct node *node, struct statx *st)
{
    int fd = node->parent->covered ? -ESTALE : open_name(s, node->parent->fd, node->name);

    if (fd < 0)
        return fd == -ENOENT || fd == -ENOTDIR ? -ESTALE : fd;
    int err = stat_fd(fd, st);
    if (!err && !is_same(node, st))
        err = -ESTALE;
    if (err) {
        close(fd);
        return err;
    }
    note_mount(s, node, st); /* it may be on what was not here when the guest was told */
    node_cache(s, node, fd);
    return fd;
}

int node_open(struct server *s, struct node *node, struct statx *st)
{
    struct statx mine;
    struct node *up = node;

    if (node->fd >= 0) {
        node_used(s, node);
        int err = st ? stat_fd(node->fd, st) : 0;
        return err ? err : node->fd;
    }
    for (node->down = NULL; up->fd < 0; up = up->parent) {
        if (!up->parent)
            return -ESTALE;
        up->parent->down = up;
    }
    node_used(s, up);
    while (up != node) {
        up = up->down;
        int fd = open_below(s, up, st && up == node ? st : &mine);
        if (fd < 0)
            return fd;
    }
    return node->fd;
}

int node_open_both(struct server *s, struct node *a, struct node *b, int *a_fd, int *b_fd)
{
    for (unsigned i = 0; i < 2; i++) {
        if ((*a_fd = node_open(s, a, NULL)) < 0)
            return *a_fd;
        if ((*b_fd = node_open(s, b, NULL)) < 0)
            return *b_fd;
        if (a->fd >= 0) /* a's is the older one, and if it had to go then b has been opened by now */
            return 0;
    }
    return -EMFILE;
}

int node_open_to_change(struct server *s, struct node *node)
{
    return node->covered ? -EROFS : node_open(s, node, NULL);
}

/* --- names --------------------------------------------------------------------------------------------------- */

static void note_mount(struct server *s, struct node *node, const struct statx *st)
{
    bool elsewhere = node->type == S_IFDIR && (st->stx_mask & STATX_MNT_ID) && st->stx_mnt_id != s->root_mount;

    node->covered = elsewhere && !s->config.cross_mounts;
}

static int stat_name(struct server *s, int directory, const char *name, struct statx *st)
{
    struct grant g = {0};
    int r;

    do
        r = sys(statx(directory, name, AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT, STATX_WANTED, st));
    while (grant_again(s, &g, directory, S_IXUSR, r));
    return r;
}

/* Which node it is that was found, counted as told or held. */
static int identify(struct server *s, struct node *directory, const char *name, bool told, const struct statx *st,
                    struct node **out)
{
    struct node *node = find_same(s, st);
    int err = node ? 0 : add(s, st, &node);

    if (err)
        return err;
    if (told)
        node->lookups++;
    else
        node_hold(node);
    note_mount(s, node, st);
    node_moved(s, node, directory, name);
    *out = node;
    return 0;
}

/* The owner of a node found as `name` in an open directory; opens it only if there is no other way. */
static int load_owner(struct server *s, struct node *node, int directory, const char *name, struct attributes *a)
{
    int fd = node->fd;

    if (fd < 0 && !owner_is_at_hand(s, node, &a->st) && owner_look(s, node, directory, name) < 0) {
        fd = node_open(s, node, NULL);
        if (fd < 0)
            return fd;
    }
    owner_load(s, node, fd, &a->st, &a->owner);
    return 0;
}

int node_lookup(struct server *s, struct node *directory, const char *name, bool told, struct node **out,
                struct attributes *a)
{
    int parent = directory->covered ? -ENOENT : node_open(s, directory, NULL);

    if (parent < 0)
        return parent;
    int err = stat_name(s, parent, name, &a->st);
    if (!err)
        err = identify(s, directory, name, told, &a->st, out);
    if (err)
        return err;
    err = load_owner(s, *out, parent, name, a);
    if (err && told)
        node_forget(s, *out, 1);
    else if (err)
        node_drop(s, *out);
    return err;
}

int node_of_new_file(struct server *s, struct node *directory, const char *name, int fd, struct node **out,
                     struct attributes *a)
{
    int err = stat_fd(fd, &a->st);

    if (!err)
        err = identify(s, directory, name, true, &a->st, out);
    if (err)
        return err;
    owner_is_default(*out);
    owner_load(s, *out, fd, &a->st, &a->owner);
    return 0;
}

/* --- as they were ------------------------------------------------------------------------------------------------ */

uint64_t node_root_device(const struct server *s)
{
    return s->root->dev;
}

int node_put(struct server *s, const struct node_was *was, const char *name)
{
    struct node *node = calloc(1, sizeof *node);
    char *copy = name ? strdup(name) : NULL;

    if (!node || (name && !copy)) {
        free(copy);
        free(node);
        return -ENOMEM;
    }
    *node = (struct node){.id = was->id,
                          .dev = was->dev,
                          .ino = was->ino,
                          .born = was->born,
                          .type = was->type,
                          .lookups = was->lookups,
                          .name = copy,
                          .covered = was->covered,
                          .fd = -1};
    int err = id_put(&s->nodes, node->id, node, NODES_MAX);
    if (err) {
        free(copy);
        free(node);
        return err;
    }
    enter(s, node);
    return 0;
}

int node_join(struct node *node, struct node *parent)
{
    if (!parent || parent->type != S_IFDIR || parent == node || !node->name)
        return -EINVAL;
    node->parent = parent;
    node_hold(parent);
    return 0;
}

/* Each way up is gone once: used_at, of nodes that are not open, says on which. */
static bool are_rings(struct server *s)
{
    for (uint32_t i = 0; i < s->nodes.n; i++) {
        struct node *up = s->nodes.slots[i].object;
        while (up && up != s->root && !up->used_at) {
            up->used_at = i + 1;
            up = up->parent;
        }
        if (up && up != s->root && up->used_at == i + 1)
            return true;
    }
    return false;
}

int nodes_joined(struct server *s)
{
    if (!are_rings(s))
        return 0;
    for (uint32_t i = 0; i < s->nodes.n; i++) { /* or they would hold each other for ever */
        struct node *node = s->nodes.slots[i].object;
        if (node && node->parent) {
            node->parent->holds--;
            node->parent = NULL;
        }
    }
    return -EINVAL;
}

void nodes_settle(struct server *s)
{
    for (uint32_t i = 0; i < s->nodes.n; i++)
        if (s->nodes.slots[i].object)
            release(s, s->nodes.slots[i].object);
}

/* --- all of them --------------------------------------------------------------------------------------------- */

int nodes_create(struct server *s)
{
    struct statx st;

    s->n_buckets = 1024;
    s->buckets = calloc(s->n_buckets, sizeof(struct node *));
    if (!s->buckets)
        return -ENOMEM;
    int err = stat_fd(s->config.root_fd, &st);
    if (!err)
        err = add(s, &st, &s->root);
    if (err)
        return err;
    s->root->fd = s->config.root_fd;
    s->root_mount = st.stx_mnt_id;
    return 0;
}

void nodes_clear(struct server *s)
{
    for (uint32_t i = 0; i < s->nodes.n; i++) {
        struct node *node = s->nodes.slots[i].object;
        if (node)
            node_forget(s, node, UINT64_MAX);
    }
}

void nodes_destroy(struct server *s)
{
    nodes_clear(s);
    free(s->root);
    free(s->buckets);
    id_free(&s->nodes);
    if (s->config.root_fd >= 0)
        close(s->config.root_fd);
}
