/*
 * What the guest knows and has open, as bytes: for a machine that is saved, copied or moved.
 *
 *      struct state_header; for each file struct state_node, its name, zeroes up to a multiple of 8; struct
 * state_handle for each that is open
 *
 * A file is found again as it is by a server that runs on (node.c): by its directory and name, if it is still the same
 * by device, inode and time of birth.  So nothing is looked up when the bytes are loaded but what is open.  The device
 * of the shared directory itself may have another number by then, after a boot, or on another host.
 *
 * What was open and cannot be opened again is lost: ESTALE from then on, and never another file.  That is so of files
 * without a name.  Where a directory had been read up to the guest says itself each time.  Locks that the host sees
 * cannot be had again without a gap, in which others take them: a server with such locks is not saved.
 *
 * The bytes may be a stranger's.  They can say what a guest could have said, and no more: names are single ones, there
 * are no rings, and what is on another file system is noticed when it is opened.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/bytes.h"
#include "share/server_int.h"

#define STATE_VERSION 1u

/* Little-endian, as the host is. */
struct state_header {
    uint32_t version, minor;
    uint64_t features, root_device;
    uint32_t node_uses, handle_uses; /* of numbers (table.c) */
    uint32_t n_nodes, n_handles;
};

struct state_node {
    uint64_t id, parent; /* 0: nobody knows where it is, and it has no name */
    uint64_t dev, ino, lookups;
    int64_t born_s;
    uint32_t born_ns;
    uint32_t type; /* S_IFMT */
    uint16_t name_length;
    uint8_t covered, zero[5];
};

struct state_handle {
    uint64_t id, node;
    uint32_t flags;
    uint8_t directory, zero[3];
};

/* --- save -------------------------------------------------------------------------------------------------------- */

static size_t padded(size_t length)
{
    return (length + 7) & ~(size_t)7;
}

static size_t size_of_node(const struct node *node)
{
    return sizeof(struct state_node) + (node->parent ? padded(strlen(node->name)) : 0);
}

static struct node *node_at(const struct server *s, uint32_t i)
{
    struct node *node = s->nodes.slots[i].object;

    return node == s->root ? NULL : node;
}

static size_t measure(const struct server *s, struct state_header *h)
{
    size_t size = sizeof *h;

    for (uint32_t i = 0; i < s->nodes.n; i++)
        if (node_at(s, i)) {
            size += size_of_node(node_at(s, i));
            h->n_nodes++;
        }
    for (uint32_t i = 0; i < s->handles.n; i++)
        h->n_handles += s->handles.slots[i].object != NULL;
    return size + h->n_handles * sizeof(struct state_handle);
}

static uint8_t *put_node(const struct node *node, uint8_t *to)
{
    const struct state_node record = {
        .id = node->id,
        .parent = node->parent ? node->parent->id : 0,
        .dev = node->dev,
        .ino = node->ino,
        .lookups = node->lookups,
        .born_s = node->born.tv_sec,
        .born_ns = node->born.tv_nsec,
        .type = node->type,
        .name_length = (uint16_t)(node->parent ? strlen(node->name) : 0),
        .covered = node->covered,
    };

    memcpy(to, &record, sizeof record);
    if (record.name_length)
        memcpy(to + sizeof record, node->name, record.name_length);
    return to + size_of_node(node);
}

static uint8_t *put_handle(const struct handle *h, uint8_t *to)
{
    const struct state_handle record = {.id = h->id, .node = h->node->id, .flags = h->flags, .directory = h->directory};

    memcpy(to, &record, sizeof record);
    return to + sizeof record;
}

static int save(struct server *s, size_t most, uint8_t **bytes, size_t *size)
{
    struct state_header h = {.version = STATE_VERSION,
                             .minor = s->minor,
                             .features = s->features,
                             .root_device = node_root_device(s),
                             .node_uses = id_uses(&s->nodes),
                             .handle_uses = id_uses(&s->handles)};

    if (s->config.locks)
        return -ENOTSUP;
    *size = measure(s, &h);
    if (*size > most)
        return -E2BIG;
    uint8_t *to = *bytes = calloc(1, *size);
    if (!to)
        return -ENOMEM;
    memcpy(to, &h, sizeof h);
    to += sizeof h;
    for (uint32_t i = 0; i < s->nodes.n; i++)
        if (node_at(s, i))
            to = put_node(node_at(s, i), to);
    for (uint32_t i = 0; i < s->handles.n; i++)
        if (s->handles.slots[i].object)
            to = put_handle(s->handles.slots[i].object, to);
    return 0;
}

int server_save(struct server *s, size_t most, uint8_t **bytes, size_t *size)
{
    pthread_mutex_lock(&s->lock);
    int err = save(s, most, bytes, size);
    pthread_mutex_unlock(&s->lock);
    return err;
}

/* --- load -------------------------------------------------------------------------------------------------------- */

/* What is left to be read. */
struct source {
    const uint8_t *at;
    size_t left;
};

static const void *take(struct source *in, size_t length)
{
    const uint8_t *at = in->at;

    if (length > in->left)
        return NULL;
    in->at += length;
    in->left -= length;
    return at;
}

static bool is_type(uint32_t type)
{
    return type == S_IFREG || type == S_IFDIR || type == S_IFLNK || type == S_IFCHR || type == S_IFBLK ||
           type == S_IFIFO || type == S_IFSOCK;
}

static bool is_name(const char *name, size_t length)
{
    return length && length <= SHARE_NAME_MAX && !memchr(name, 0, length) && !memchr(name, '/', length) &&
           !(length <= 2 && name[0] == '.' && name[length - 1] == '.');
}

static int load_node(struct server *s, const struct state_header *h, struct source *in)
{
    char name[SHARE_NAME_MAX + 1] = "";
    struct state_node record;
    const void *at = take(in, sizeof record);

    if (!at)
        return -EBADMSG;
    memcpy(&record, at, sizeof record);
    const char *text = take(in, padded(record.name_length));
    if (!text || !is_type(record.type) || record.covered > 1 || !record.parent != !record.name_length ||
        record.id == s->root->id || (record.parent && !is_name(text, record.name_length)))
        return -EBADMSG;
    memcpy(name, text, record.name_length);
    const struct node_was was = {.id = record.id,
                                 .dev = record.dev == h->root_device ? node_root_device(s) : record.dev,
                                 .ino = record.ino,
                                 .lookups = record.lookups,
                                 .born = {.tv_sec = record.born_s, .tv_nsec = record.born_ns},
                                 .type = record.type,
                                 .covered = record.covered};
    return node_put(s, &was, record.parent ? name : NULL);
}

/* Once more, when all are there. */
static int join_node(struct server *s, struct source *in)
{
    struct state_node record;

    memcpy(&record, take(in, sizeof record), sizeof record);
    take(in, padded(record.name_length));
    return record.parent ? node_join(node_find(s, record.id), node_find(s, record.parent)) : 0;
}

/* What is open, as it was opened.  Whatever is in the way, the guest hears of it when it uses it. */
static int load_handle(struct server *s, struct source *in)
{
    struct state_handle record;
    const void *at = take(in, sizeof record);
    struct statx st;
    int fd = -1;

    if (!at)
        return -EBADMSG;
    memcpy(&record, at, sizeof record);
    struct node *node = node_find(s, record.node);
    if (!node || record.directory > 1 || (record.directory ? node->type != S_IFDIR : node->type != S_IFREG) ||
        record.flags & ~(uint32_t)OPEN_LASTING)
        return -EBADMSG;
    if ((uint32_t)record.id - 1 >= s->handles_max)
        return -EMFILE;
    if (record.directory && !node->covered)
        fd = directory_open(s, node);
    if (node->covered && fd >= 0) { /* as we have just seen */
        close(fd);
        fd = -1;
    }
    if (!record.directory)
        fd = file_open(s, node, record.flags, &st);
    return handle_put(s, record.id, node, fd < 0 ? -1 : fd, record.directory, record.flags);
}

static int load_all(struct server *s, const struct state_header *h, struct source in)
{
    struct source nodes = in;
    int err = 0;

    for (uint32_t i = 0; i < h->n_nodes && !err; i++)
        err = load_node(s, h, &in);
    id_settle(&s->nodes, h->node_uses + 1);
    for (uint32_t i = 0; i < h->n_nodes && !err; i++)
        err = join_node(s, &nodes);
    if (!err)
        err = nodes_joined(s); /* before anybody goes up there */
    for (uint32_t i = 0; i < h->n_handles && !err; i++)
        err = load_handle(s, &in);
    id_settle(&s->handles, h->handle_uses + 1);
    if (!err)
        nodes_settle(s);
    return err ? err : in.left ? -EBADMSG : 0;
}

/* All, and how large the tables were: for the numbers that come are those of another server. */
static void forget(struct server *s)
{
    session_forget(s);
    id_cut(&s->nodes, 1); /* the shared directory */
    id_cut(&s->handles, 0);
}

static int load(struct server *s, struct source in)
{
    struct state_header h;
    const void *at = take(&in, sizeof h);

    forget(s);
    if (!at)
        return -EBADMSG;
    memcpy(&h, at, sizeof h);
    if (h.version != STATE_VERSION || h.features & ~session_features)
        return -ENOTSUP;
    if (h.minor > FUSE_KERNEL_MINOR_VERSION || h.node_uses == UINT32_MAX || h.handle_uses == UINT32_MAX)
        return -EBADMSG;
    int err = load_all(s, &h, in);
    if (err) {
        forget(s);
        return err == -EINVAL || err == -EEXIST ? -EBADMSG : err;
    }
    s->minor = h.minor;
    s->features = h.features;
    return 0;
}

int server_load(struct server *s, const uint8_t *bytes, size_t size)
{
    pthread_mutex_lock(&s->lock);
    int err = load(s, (struct source){bytes, size});
    pthread_mutex_unlock(&s->lock);
    return err;
}
