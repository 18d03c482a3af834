/* GETATTR, SETATTR, ACCESS: what a file is. */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "share/server_int.h"

int node_attributes(struct server *s, struct node *node, struct attributes *a)
{
    int fd = -ESTALE;

    if (node->fd < 0 && node->handles) /* open files may have been deleted */
        fd = node->handles->fd;
    if (fd >= 0) {
        int err = sys(statx(fd, "", AT_EMPTY_PATH, STATX_BASIC_STATS, &a->st));
        if (err)
            return err;
    } else {
        fd = node_open(s, node, &a->st);
        if (fd < 0)
            return fd;
    }
    owner_load(s, node, fd, &a->st, &a->owner);
    return 0;
}

/* Two file systems below one directory may use a number twice; programs such as tar and find want them distinct.  They
 * are not announced as file systems of their own (FUSE_ATTR_SUBMOUNT): an overlay over the share, as `run --root`
 * makes, could not look into them. */
uint64_t attr_ino(struct server *s, uint64_t dev, uint64_t ino)
{
    return dev == s->root->dev ? ino : ino ^ dev * 0x9e3779b97f4a7c15ull << 16;
}

static uint32_t device_number(const struct statx *st)
{
    uint32_t minor = st->stx_rdev_minor;

    return (minor & 0xff) | st->stx_rdev_major << 8 | (minor & ~0xffu) << 12; /* new_encode_dev of Linux */
}

void attr_fill(struct server *s, const struct node *node, const struct attributes *a, struct fuse_attr *out)
{
    const struct statx *st = &a->st;
    uint32_t mode = (st->stx_mode & ~(uint32_t)(S_ISUID | S_ISGID)) | a->owner.bits;

    if (node->covered)
        mode = S_IFDIR | 0555;
    *out = (struct fuse_attr){
        .ino = attr_ino(s, node->dev, node->ino),
        .size = st->stx_size,
        .blocks = st->stx_blocks,
        .atime = (uint64_t)st->stx_atime.tv_sec,
        .mtime = (uint64_t)st->stx_mtime.tv_sec,
        .ctime = (uint64_t)st->stx_ctime.tv_sec,
        .atimensec = st->stx_atime.tv_nsec,
        .mtimensec = st->stx_mtime.tv_nsec,
        .ctimensec = st->stx_ctime.tv_nsec,
        .mode = mode,
        .nlink = st->stx_nlink,
        .uid = a->owner.uid,
        .gid = a->owner.gid,
        .rdev = device_number(st),
        .blksize = st->stx_blksize,
    };
}

void entry_fill(struct server *s, const struct node *node, const struct attributes *a, struct fuse_entry_out *out)
{
    *out = (struct fuse_entry_out){.nodeid = node->id, .entry_valid = VALID_S, .attr_valid = VALID_S};
    attr_fill(s, node, a, &out->attr);
}

static int reply_attributes(struct call *c)
{
    struct fuse_attr_out out = {.attr_valid = VALID_S};
    struct attributes a;
    int err = node_attributes(c->s, c->node, &a);

    if (err)
        return err;
    attr_fill(c->s, c->node, &a, &out.attr);
    return call_body(c, &out, sizeof out);
}

int op_getattr(struct call *c)
{
    return reply_attributes(c);
}

/* --- SETATTR ------------------------------------------------------------------------------------------------- */

/* The file as an operand: a descriptor that may be O_PATH, and its state before. */
struct target {
    int fd;
    struct attributes a;
};

static int set_size(struct call *c, const struct fuse_setattr_in *in, const struct target *t)
{
    struct handle *h = in->valid & FATTR_FH ? handle_find(c->s, in->fh, c->node, false) : NULL;
    struct grant g = {0};
    char path[PROC_PATH_SIZE];
    int r;

    if (in->size > INT64_MAX)
        return -EFBIG;
    if (h && h->lost)
        return -ESTALE;
    if (!S_ISREG(t->a.st.stx_mode)) /* a device or FIFO must not be opened, a directory cannot be cut */
        return S_ISDIR(t->a.st.stx_mode) ? -EISDIR : -EINVAL;
    if (in->valid & FATTR_KILL_SUIDGID)
        owner_kill_bits(c->s, c->node, t->fd);
    if (h && h->writable)
        return sys(ftruncate(h->fd, (off_t)in->size));
    proc_path(path, t->fd);
    do
        r = sys(truncate(path, (off_t)in->size));
    while (grant_again(c->s, &g, t->fd, S_IWUSR, r));
    return r;
}

/* chmod and chown are one: set-id bits are kept with the owner, and giving a file away takes them (owner.c). */
static int set_owner_and_mode(struct call *c, const struct fuse_setattr_in *in, struct target *t)
{
    const struct statx *st = &t->a.st;
    struct owner owner = t->a.owner;
    char path[PROC_PATH_SIZE];
    int err = 0;

    if (in->valid & FATTR_UID)
        owner.uid = in->uid;
    if (in->valid & FATTR_GID)
        owner.gid = in->gid;
    if ((in->valid & (FATTR_UID | FATTR_GID)) && S_ISREG(st->stx_mode))
        owner.bits &= st->stx_mode & S_IXGRP ? 0 : ~(uint32_t)S_ISUID;
    if (in->valid & FATTR_MODE)
        owner.bits = in->mode & (S_ISUID | S_ISGID);
    if (memcmp(&owner, &t->a.owner, sizeof owner))
        err = owner_store(c->s, c->node, t->fd, st, &owner);
    if (err || !(in->valid & FATTR_MODE))
        return err;
    if (S_ISLNK(st->stx_mode))
        return -EOPNOTSUPP;
    proc_path(path, t->fd);
    return sys(chmod(path, in->mode & (S_ISDIR(st->stx_mode) ? 07777 : 01777)));
}

static struct timespec time_wanted(uint32_t valid, uint32_t set, uint32_t now, uint64_t s, uint32_t ns)
{
    if (!(valid & set))
        return (struct timespec){.tv_nsec = UTIME_OMIT};
    if (valid & now)
        return (struct timespec){.tv_nsec = UTIME_NOW};
    return (struct timespec){.tv_sec = (time_t)s, .tv_nsec = ns};
}

static int set_times(struct call *c, const struct fuse_setattr_in *in, const struct target *t)
{
    struct timespec times[2] = {
        time_wanted(in->valid, FATTR_ATIME, FATTR_ATIME_NOW, in->atime, in->atimensec),
        time_wanted(in->valid, FATTR_MTIME, FATTR_MTIME_NOW, in->mtime, in->mtimensec),
    };
    char path[PROC_PATH_SIZE];

    if (in->atimensec > 999999999 || in->mtimensec > 999999999)
        return -EINVAL;
    proc_path(path, t->fd);
    return sys(utimensat(AT_FDCWD, path, times, 0));
}

int op_setattr(struct call *c)
{
    const struct fuse_setattr_in *in = c->arg;
    struct target t;
    int err = node_attributes(c->s, c->node, &t.a);

    if (err || c->node->covered)
        return err ? err : -EROFS;
    t.fd = c->node->fd >= 0 ? c->node->fd : c->node->handles->fd;
    if (in->valid & (FATTR_UID | FATTR_GID | FATTR_MODE))
        err = set_owner_and_mode(c, in, &t);
    if (!err && (in->valid & FATTR_SIZE))
        err = set_size(c, in, &t);
    if (!err && (in->valid & (FATTR_ATIME | FATTR_MTIME)))
        err = set_times(c, in, &t);
    return err ? err : reply_attributes(c);
}

int op_access(struct call *c)
{
    const struct fuse_access_in *in = c->arg;
    char path[PROC_PATH_SIZE];
    int fd = node_open(c->s, c->node, NULL);

    if (fd < 0)
        return fd;
    if (in->mask & ~(uint32_t)(R_OK | W_OK | X_OK))
        return -EINVAL;
    if ((in->mask & W_OK) && c->s->config.read_only)
        return -EROFS;
    proc_path(path, fd);
    return sys(access(path, (int)in->mask));
}
