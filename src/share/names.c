/* Operations on names in directories. */
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "share/server_int.h"

/* Answers with the entry that now has this name; it counts as told. */
static int reply_entry(struct call *c, struct node *directory, const char *name)
{
    struct fuse_entry_out out;
    struct attributes a;
    struct node *node;
    int err;

    if (c->room < sizeof out)
        return -EINVAL;
    err = node_lookup(c->s, directory, name, true, &node, &a);
    if (err)
        return err;
    entry_fill(c->s, node, &a, &out);
    return call_body(c, &out, sizeof out);
}

/* "." and "..", by which a file server in the guest finds its way back.  Above the root there is the root. */
static int lookup_dots(struct call *c)
{
    struct node *node = c->name[0][1] && c->node != c->s->root ? c->node->parent : c->node;
    struct fuse_entry_out out;
    struct attributes a;

    if (c->node->type != S_IFDIR && c->name[0][1])
        return -ENOTDIR;
    if (!node)
        return -ESTALE;
    int err = node_attributes(c->s, node, &a);
    if (err || c->room < sizeof out)
        return err ? err : -EINVAL;
    node->lookups++;
    entry_fill(c->s, node, &a, &out);
    return call_body(c, &out, sizeof out);
}

int op_lookup(struct call *c)
{
    struct fuse_entry_out none = {.entry_valid = 1};

    if (strcmp(c->name[0], ".") == 0 || strcmp(c->name[0], "..") == 0)
        return lookup_dots(c);
    int r = reply_entry(c, c->node, c->name[0]);
    if (r == -ENOENT && c->s->config.read_only) /* the guest may remember that there is none: it cannot make one */
        return call_body(c, &none, sizeof none);
    return r;
}

static void forget(struct server *s, uint64_t id, uint64_t lookups)
{
    struct node *node = node_find(s, id);

    if (node && node != s->root)
        node_forget(s, node, lookups);
}

int op_forget(struct call *c)
{
    const struct fuse_forget_in *in = c->arg;

    forget(c->s, c->in.nodeid, in->nlookup);
    return CALL_SILENT;
}

int op_batch_forget(struct call *c)
{
    const struct fuse_batch_forget_in *in = c->arg;
    const struct fuse_forget_one *one = c->extra;

    for (size_t i = 0; i < in->count && (i + 1) * sizeof *one <= c->extra_length; i++) {
        struct fuse_forget_one copy;
        memcpy(&copy, &one[i], sizeof copy);
        forget(c->s, copy.nodeid, copy.nlookup);
    }
    return CALL_SILENT;
}

int op_readlink(struct call *c)
{
    size_t room;
    char *text = call_room(c, SHARE_PATH_MAX + 1, &room);
    int fd = node_open(c->s, c->node, NULL);

    if (fd < 0)
        return fd;
    if (c->node->type != S_IFLNK)
        return -EINVAL;
    return sys(readlinkat(fd, "", text, room));
}

/* --- making -------------------------------------------------------------------------------------------------- */

/* What was made gets the owner that the guest means it to have.  Where attributes cannot be stored, the default. */
static int reply_new(struct call *c, const struct owner *owner)
{
    struct fuse_entry_out out;
    struct attributes a;
    struct node *node;
    int err = node_lookup(c->s, c->node, c->name[0], true, &node, &a);

    if (err)
        return err;
    int fd = memcmp(owner, &a.owner, sizeof *owner) ? node_open(c->s, node, NULL) : -1;
    if (fd >= 0 && owner_store(c->s, node, fd, &a.st, owner) == 0)
        owner_load(c->s, node, fd, &a.st, &a.owner);
    entry_fill(c->s, node, &a, &out);
    return call_body(c, &out, sizeof out);
}

static int make(struct call *c, mode_t mode)
{
    struct grant g = {0};
    struct owner owner;
    int err = owner_of_new(c, c->node, &mode, &owner), fd, r;

    if (err || c->room < sizeof(struct fuse_entry_out))
        return err ? err : -EINVAL;
    if ((fd = node_open_to_change(c->s, c->node)) < 0)
        return fd;
    do {
        if (S_ISDIR(mode))
            r = sys(mkdirat(fd, c->name[0], mode & 07777));
        else if (S_ISLNK(mode))
            r = sys(symlinkat(c->name[1], fd, c->name[0]));
        else
            r = sys(mknodat(fd, c->name[0], mode, 0));
    } while (grant_again(c->s, &g, fd, S_IWUSR | S_IXUSR, r));
    return r ? r : reply_new(c, &owner);
}

int op_symlink(struct call *c)
{
    return make(c, S_IFLNK | 0777);
}

/* Devices of a guest's making have no place in the host's file system. */
int op_mknod(struct call *c)
{
    const struct fuse_mknod_in *in = c->arg;
    mode_t type = in->mode & S_IFMT;

    if (type != S_IFREG && type != S_IFIFO && type != S_IFSOCK)
        return -EPERM;
    return make(c, in->mode & (S_IFMT | 07777));
}

int op_mkdir(struct call *c)
{
    const struct fuse_mkdir_in *in = c->arg;

    return make(c, S_IFDIR | (in->mode & 07777));
}

int op_link(struct call *c)
{
    const struct fuse_link_in *in = c->arg;
    struct node *old = node_find(c->s, in->oldnodeid);
    char path[PROC_PATH_SIZE];
    struct grant g = {0};
    int r, fd, directory;

    if (!old)
        return -ESTALE;
    if (c->node->covered)
        return -EROFS;
    if ((r = node_open_both(c->s, c->node, old, &directory, &fd)))
        return r;
    proc_path(path, fd);
    do
        r = sys(linkat(AT_FDCWD, path, directory, c->name[0], AT_SYMLINK_FOLLOW));
    while (grant_again(c->s, &g, directory, S_IWUSR | S_IXUSR, r));
    return r ? r : reply_entry(c, c->node, c->name[0]);
}

/* --- removing and renaming ----------------------------------------------------------------------------------- */

static int unlink_name(struct call *c, int flags)
{
    struct grant g = {0};
    int r, fd = node_open_to_change(c->s, c->node);

    if (fd < 0)
        return fd;
    do
        r = sys(unlinkat(fd, c->name[0], flags));
    while (grant_again(c->s, &g, fd, S_IWUSR | S_IXUSR, r));
    return r;
}

int op_unlink(struct call *c)
{
    return unlink_name(c, 0);
}

int op_rmdir(struct call *c)
{
    return unlink_name(c, AT_REMOVEDIR);
}

/* A node that the guest knows follows its file: the next use need not be a stale one. */
static void follow(struct call *c, struct node *directory, const char *name)
{
    struct attributes a;
    struct node *node;

    if (node_lookup(c->s, directory, name, false, &node, &a) == 0)
        node_drop(c->s, node);
}

static int rename_to(struct call *c, uint64_t new_directory, unsigned flags)
{
    struct node *to = node_find(c->s, new_directory);
    struct grant g = {0}, h = {0};
    int r, from_fd, to_fd;

    if (!to)
        return -ESTALE;
    if (flags & ~(unsigned)(RENAME_NOREPLACE | RENAME_EXCHANGE))
        return -EINVAL;
    if (c->node->covered || to->covered)
        return -EROFS;
    if ((r = node_open_both(c->s, c->node, to, &from_fd, &to_fd)))
        return r;
    node_hold(to);
    do {
        do
            r = sys(renameat2(from_fd, c->name[0], to_fd, c->name[1], flags));
        while (grant_again(c->s, &g, from_fd, S_IWUSR | S_IXUSR, r));
    } while (grant_again(c->s, &h, to_fd, S_IWUSR | S_IXUSR, r));
    if (r == 0) {
        follow(c, to, c->name[1]);
        if (flags & RENAME_EXCHANGE)
            follow(c, c->node, c->name[0]);
    }
    node_drop(c->s, to);
    return r;
}

int op_rename(struct call *c)
{
    const struct fuse_rename_in *in = c->arg;

    return rename_to(c, in->newdir, 0);
}

int op_rename2(struct call *c)
{
    const struct fuse_rename2_in *in = c->arg;

    return rename_to(c, in->newdir, in->flags);
}
