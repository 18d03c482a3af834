/*
 * Reading directories.  What getdents64 gives is kept with the open directory and handed to the guest piece by piece; a
 * guest that goes back or jumps makes us read again from there.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "share/server_int.h"

struct entries {
    uint64_t position; /* offset of the entry at `at`: what the guest has to ask for to get it */
    size_t at, length;
    _Alignas(struct dirent64) uint8_t bytes[16384];
};

struct entries *entries_new(void)
{
    return calloc(1, sizeof(struct entries));
}

int directory_open(struct server *s, struct node *node)
{
    char path[PROC_PATH_SIZE];
    struct grant g = {0};
    int fd, at = node->type == S_IFDIR ? node_open(s, node, NULL) : -ENOTDIR;

    if (at < 0)
        return at;
    proc_path(path, at);
    do
        fd = sys(open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    while (grant_again(s, &g, at, S_IRUSR, fd));
    return fd;
}

int op_opendir(struct call *c)
{
    struct fuse_open_out out = {0};
    struct handle *h;
    int fd = -1;

    if (c->node->type != S_IFDIR)
        return -ENOTDIR;
    if (!c->node->covered && (fd = directory_open(c->s, c->node)) < 0)
        return fd;
    int err = handle_add(c->s, c->node, fd, true, false, &h);
    if (err)
        return err;
    h->entries = entries_new();
    out.fh = h->id;
    int r = h->entries ? call_body(c, &out, sizeof out) : -ENOMEM;
    if (r < 0)
        handle_release(c->s, h);
    return r;
}

int op_releasedir(struct call *c)
{
    const struct fuse_release_in *in = c->arg;
    struct handle *h = handle_find(c->s, in->fh, c->node, true);

    if (!h)
        return -EBADF;
    handle_release(c->s, h);
    return 0;
}

/* The next entry, NULL at the end or (then *err) on an error. */
static const struct dirent64 *peek(struct handle *h, int *err)
{
    struct entries *e = h->entries;

    *err = 0;
    if (e->at == e->length) {
        ssize_t n = getdents64(h->fd, e->bytes, sizeof e->bytes);
        if (n <= 0) {
            *err = n < 0 ? -errno : 0;
            return NULL;
        }
        e->at = 0;
        e->length = (size_t)n;
    }
    return (const struct dirent64 *)(e->bytes + e->at);
}

static int seek(struct handle *h, uint64_t position)
{
    struct entries *e = h->entries;

    if (position == e->position)
        return 0;
    if (position > INT64_MAX || lseek(h->fd, (off_t)position, SEEK_SET) < 0)
        return -EINVAL;
    *e = (struct entries){.position = position};
    return 0;
}

static bool is_dots(const char *name)
{
    return name[0] == '.' && (!name[1] || (name[1] == '.' && !name[2]));
}

/* The inode number of "..", which in the root is the root's. */
static uint64_t dots_ino(struct call *c, const char *name)
{
    const struct node *node = name[1] && c->node->parent ? c->node->parent : c->node;

    return attr_ino(c->s, node->dev, node->ino);
}

static uint64_t entry_ino(struct call *c, const struct dirent64 *d)
{
    return is_dots(d->d_name) ? dots_ino(c, d->d_name) : attr_ino(c->s, c->node->dev, d->d_ino);
}

static void put_dirent(const struct dirent64 *d, uint64_t ino, struct fuse_dirent *out)
{
    size_t length = strlen(d->d_name);

    *out = (struct fuse_dirent){.ino = ino, .off = (uint64_t)d->d_off, .namelen = (uint32_t)length, .type = d->d_type};
    memcpy(out->name, d->d_name, length);
    memset(out->name + length, 0, FUSE_DIRENT_ALIGN(length) - length);
}

/* An entry and what it is.  One that cannot be looked up stands there without: the guest will see why when it tries. */
static void put_plus(struct call *c, const struct dirent64 *d, struct fuse_direntplus *out)
{
    struct attributes a;
    struct node *node;

    if (is_dots(d->d_name) || node_lookup(c->s, c->node, d->d_name, true, &node, &a)) {
        memset(&out->entry_out, 0, sizeof out->entry_out);
        put_dirent(d, entry_ino(c, d), &out->dirent);
        return;
    }
    entry_fill(c->s, node, &a, &out->entry_out);
    put_dirent(d, attr_ino(c->s, node->dev, node->ino), &out->dirent);
}

static size_t entry_size(const struct dirent64 *d, bool plus)
{
    return FUSE_DIRENT_ALIGN((plus ? FUSE_NAME_OFFSET_DIRENTPLUS : FUSE_NAME_OFFSET) + strlen(d->d_name));
}

static int fill(struct call *c, struct handle *h, bool plus, uint8_t *to, size_t room)
{
    const struct dirent64 *d;
    size_t used = 0, size;
    int err = 0;

    while ((d = peek(h, &err)) && (size = entry_size(d, plus)) <= room - used) {
        if (plus)
            put_plus(c, d, (struct fuse_direntplus *)(to + used));
        else
            put_dirent(d, entry_ino(c, d), (struct fuse_dirent *)(to + used));
        used += size;
        h->entries->at += d->d_reclen;
        h->entries->position = (uint64_t)d->d_off;
    }
    return used || !err ? (int)used : err;
}

/* A directory on which something else is mounted has nothing in it. */
static int fill_covered(struct call *c, uint64_t offset, bool plus, uint8_t *to, size_t room)
{
    struct dirent64 d = {.d_type = DT_DIR};
    size_t used = 0;

    for (uint64_t i = offset; i < 2; i++) {
        strcpy(d.d_name, i ? ".." : ".");
        d.d_off = (off_t)i + 1;
        size_t size = entry_size(&d, plus);
        if (size > room - used)
            break;
        if (plus)
            put_plus(c, &d, (struct fuse_direntplus *)(to + used));
        else
            put_dirent(&d, entry_ino(c, &d), (struct fuse_dirent *)(to + used));
        used += size;
    }
    return (int)used;
}

static int read_directory(struct call *c, bool plus)
{
    const struct fuse_read_in *in = c->arg;
    struct handle *h = handle_find(c->s, in->fh, c->node, true);
    size_t room;

    if (handle_check(h))
        return handle_check(h);
    uint8_t *to = call_room(c, in->size, &room);
    if (h->fd < 0)
        return fill_covered(c, in->offset, plus, to, room);
    int err = seek(h, in->offset);
    return err ? err : fill(c, h, plus, to, room);
}

int op_readdir(struct call *c)
{
    return read_directory(c, false);
}

int op_readdirplus(struct call *c)
{
    return read_directory(c, true);
}
