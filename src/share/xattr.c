/*
 * Extended attributes: those of users are passed through, except our own (owner.c).  Those of the host's security
 * modules, access lists and capabilities mean the host's users and are not the guest's business.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/xattr.h>

#include "share/server_int.h"

#define LIST_MAX 65536u /* XATTR_LIST_MAX, and that of a value, of Linux */

static bool starts(const char *text, const char *with)
{
    return strncmp(text, with, strlen(with)) == 0;
}

static bool is_ours(const char *name)
{
    return starts(name, OWNER_XATTR_PREFIX);
}

/* The path of the file behind the node, and the descriptor. */
static int reach(struct call *c, char *path)
{
    int fd = c->node->covered ? -ENODATA : node_open(c->s, c->node, NULL);

    if (fd >= 0)
        proc_path(path, fd);
    return fd;
}

/* Answers with a value of `length` bytes, or with its length if that was the question. */
static int answer(struct call *c, uint32_t asked, const void *value, int length)
{
    const struct fuse_getxattr_out out = {.size = (uint32_t)length};
    size_t room;

    if (length < 0)
        return length;
    if (!asked)
        return call_body(c, &out, sizeof out);
    void *to = call_room(c, asked, &room);
    if (room < (size_t)length)
        return -ERANGE;
    memcpy(to, value, (size_t)length);
    return length;
}

int op_getxattr(struct call *c)
{
    const struct fuse_getxattr_in *in = c->arg;
    char path[PROC_PATH_SIZE];
    struct grant g = {0};
    int r, fd;

    if (!starts(c->name[0], "user."))
        return -EOPNOTSUPP;
    if (is_ours(c->name[0]))
        return -ENODATA;
    if ((fd = reach(c, path)) < 0)
        return fd;
    void *value = malloc(LIST_MAX);
    if (!value)
        return -ENOMEM;
    do
        r = sys(getxattr(path, c->name[0], value, LIST_MAX));
    while (grant_again(c->s, &g, fd, S_IRUSR, r));
    r = answer(c, in->size, value, r);
    free(value);
    return r;
}

/* Takes out what the guest has no part in.  Returns the new length. */
static int filter(char *list, int length)
{
    int kept = 0;

    for (int at = 0, size; at < length; at += size) {
        size = (int)strnlen(list + at, (size_t)(length - at)) + 1;
        if (!starts(list + at, "user.") || is_ours(list + at))
            continue;
        memmove(list + kept, list + at, (size_t)size);
        kept += size;
    }
    return kept;
}

int op_listxattr(struct call *c)
{
    const struct fuse_getxattr_in *in = c->arg;
    char path[PROC_PATH_SIZE];
    int fd = reach(c, path);

    if (fd < 0)
        return fd;
    char *list = malloc(LIST_MAX + 1);
    if (!list)
        return -ENOMEM;
    int r = sys(listxattr(path, list, LIST_MAX));
    if (r > 0)
        list[r] = 0;
    r = answer(c, in->size, list, r > 0 ? filter(list, r) : r);
    free(list);
    return r;
}

int op_setxattr(struct call *c)
{
    const struct fuse_setxattr_in *in = c->arg;
    char path[PROC_PATH_SIZE];
    struct grant g = {0};
    int r, fd;

    if (!starts(c->name[0], "user."))
        return -EOPNOTSUPP;
    if (is_ours(c->name[0]))
        return -EPERM;
    if (in->size != c->extra_length)
        return -EINVAL;
    if ((fd = reach(c, path)) < 0)
        return fd;
    do
        r = sys(setxattr(path, c->name[0], c->extra, in->size, (int)in->flags));
    while (grant_again(c->s, &g, fd, S_IWUSR, r));
    return r;
}

int op_removexattr(struct call *c)
{
    char path[PROC_PATH_SIZE];
    struct grant g = {0};
    int r, fd;

    if (!starts(c->name[0], "user."))
        return -EOPNOTSUPP;
    if (is_ours(c->name[0]))
        return -EPERM;
    if ((fd = reach(c, path)) < 0)
        return fd;
    do
        r = sys(removexattr(path, c->name[0]));
    while (grant_again(c->s, &g, fd, S_IWUSR, r));
    return r;
}
