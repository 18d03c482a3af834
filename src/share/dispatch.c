/*
 * From bytes to an operation.  The table says all that a message is checked for before its operation sees it: the
 * length of the fixed part, the number of names, that the node exists, that a read-only share is not written to.
 */
#include <errno.h>
#include <string.h>

#include "share/server_int.h"
#include "share/wire.h"

enum {
    WRITES = 1,   /* refused on a read-only share */
    NAME = 2,     /* a name follows */
    NAMES = 4,    /* two names follow */
    TARGET = 8,   /* a name and any text follow */
    EXTRA = 16,   /* more bytes follow (so they may with any, and are ignored) */
    NO_NODE = 32, /* the header's node means nothing */
    NO_REPLY = 64,
    EARLY = 128, /* allowed before INIT */
    DOTS = 256,  /* the name may be "." or ".." */
    LOCKS = 512, /* for a share with locks: else ENOSYS, at which the guest does not ask again */
};

static const struct operation {
    int (*run)(struct call *c);
    uint16_t flags;
    uint16_t arg_length;
} operations[] = {
    [FUSE_LOOKUP] = {op_lookup, NAME | DOTS, 0},
    [FUSE_FORGET] = {op_forget, NO_NODE | NO_REPLY, sizeof(struct fuse_forget_in)},
    [FUSE_GETATTR] = {op_getattr, 0, sizeof(struct fuse_getattr_in)},
    [FUSE_SETATTR] = {op_setattr, WRITES, sizeof(struct fuse_setattr_in)},
    [FUSE_READLINK] = {op_readlink, 0, 0},
    [FUSE_SYMLINK] = {op_symlink, WRITES | TARGET, 0},
    [FUSE_MKNOD] = {op_mknod, WRITES | NAME, sizeof(struct fuse_mknod_in)},
    [FUSE_MKDIR] = {op_mkdir, WRITES | NAME, sizeof(struct fuse_mkdir_in)},
    [FUSE_UNLINK] = {op_unlink, WRITES | NAME, 0},
    [FUSE_RMDIR] = {op_rmdir, WRITES | NAME, 0},
    [FUSE_RENAME] = {op_rename, WRITES | NAMES, sizeof(struct fuse_rename_in)},
    [FUSE_LINK] = {op_link, WRITES | NAME, sizeof(struct fuse_link_in)},
    [FUSE_OPEN] = {op_open, 0, sizeof(struct fuse_open_in)},
    [FUSE_READ] = {op_read, 0, sizeof(struct fuse_read_in)},
    [FUSE_WRITE] = {op_write, WRITES | EXTRA, sizeof(struct fuse_write_in)},
    [FUSE_STATFS] = {op_statfs, NO_NODE, 0},
    [FUSE_RELEASE] = {op_release, 0, sizeof(struct fuse_release_in)},
    [FUSE_FSYNC] = {op_fsync, 0, sizeof(struct fuse_fsync_in)},
    [FUSE_SETXATTR] = {op_setxattr, WRITES | NAME | EXTRA, FUSE_COMPAT_SETXATTR_IN_SIZE},
    [FUSE_GETXATTR] = {op_getxattr, NAME, sizeof(struct fuse_getxattr_in)},
    [FUSE_LISTXATTR] = {op_listxattr, 0, sizeof(struct fuse_getxattr_in)},
    [FUSE_REMOVEXATTR] = {op_removexattr, WRITES | NAME, 0},
    [FUSE_FLUSH] = {op_flush, LOCKS, sizeof(struct fuse_flush_in)},
    [FUSE_INIT] = {op_init, NO_NODE | EARLY, 16 /* up to `flags`: older kernels send no more */},
    [FUSE_OPENDIR] = {op_opendir, 0, sizeof(struct fuse_open_in)},
    [FUSE_READDIR] = {op_readdir, 0, sizeof(struct fuse_read_in)},
    [FUSE_RELEASEDIR] = {op_releasedir, 0, sizeof(struct fuse_release_in)},
    [FUSE_FSYNCDIR] = {op_fsyncdir, 0, sizeof(struct fuse_fsync_in)},
    [FUSE_GETLK] = {op_getlk, LOCKS, sizeof(struct fuse_lk_in)},
    [FUSE_SETLK] = {op_setlk, LOCKS, sizeof(struct fuse_lk_in)},
    [FUSE_SETLKW] = {op_setlkw, LOCKS, sizeof(struct fuse_lk_in)},
    [FUSE_ACCESS] = {op_access, 0, sizeof(struct fuse_access_in)},
    [FUSE_CREATE] = {op_create, WRITES | NAME, sizeof(struct fuse_create_in)},
    [FUSE_INTERRUPT] = {op_interrupt, NO_NODE | NO_REPLY, sizeof(struct fuse_interrupt_in)},
    [FUSE_DESTROY] = {op_destroy, NO_NODE | EARLY, 0},
    [FUSE_BATCH_FORGET] = {op_batch_forget, NO_NODE | NO_REPLY | EXTRA, sizeof(struct fuse_batch_forget_in)},
    [FUSE_FALLOCATE] = {op_fallocate, WRITES, sizeof(struct fuse_fallocate_in)},
    [FUSE_READDIRPLUS] = {op_readdirplus, 0, sizeof(struct fuse_read_in)},
    [FUSE_RENAME2] = {op_rename2, WRITES | NAMES, sizeof(struct fuse_rename2_in)},
    [FUSE_LSEEK] = {op_lseek, 0, sizeof(struct fuse_lseek_in)},
    [FUSE_COPY_FILE_RANGE] = {op_copy_file_range, WRITES, sizeof(struct fuse_copy_file_range_in)},
    [FUSE_SYNCFS] = {op_syncfs, NO_NODE, 0},
};

/* --- replies ------------------------------------------------------------------------------------------------- */

static void reply(struct server *s, uint32_t index, uint64_t unique, int error, const void *body, size_t length,
                  size_t in_slot)
{
    struct {
        struct fuse_out_header header;
        uint8_t body[REPLY_ROOM];
    } out = {.header = {.len = (uint32_t)(sizeof out.header + length + in_slot), .error = error, .unique = unique}};

    if (length)
        memcpy(out.body, body, length);
    s->config.reply(s->config.opaque, index, &out, sizeof out.header + length, in_slot);
}

void reply_error(struct server *s, uint32_t index, uint64_t unique, int error)
{
    reply(s, index, unique, error, NULL, 0, 0);
}

void *call_room(struct call *c, size_t want, size_t *got)
{
    size_t room = c->room;

    c->in_slot = c->slot && want > REPLY_ROOM;
    if (!c->in_slot && room > REPLY_ROOM)
        room = REPLY_ROOM;
    *got = want < room ? want : room;
    return c->in_slot ? c->slot : c->out;
}

int call_body(struct call *c, const void *body, size_t length)
{
    if (length > c->room || length > REPLY_ROOM)
        return -EINVAL;
    memcpy(c->out, body, length);
    return (int)length;
}

void call_unlock(struct call *c)
{
    pthread_mutex_unlock(&c->s->lock);
    if (c->s->config.slow)
        c->s->config.slow(c->caller);
}

void call_lock(struct call *c)
{
    pthread_mutex_lock(&c->s->lock);
}

/* --- the door ------------------------------------------------------------------------------------------------ */

static bool is_component(const char *name, size_t length, bool dots)
{
    if (length == 0 || length > SHARE_NAME_MAX || memchr(name, '/', length))
        return false;
    return dots || (strcmp(name, ".") && strcmp(name, ".."));
}

/* Takes a name off the front of what is left. */
static int take_name(struct call *c, unsigned i, unsigned flags)
{
    const char *name = c->extra, *end = memchr(name, 0, c->extra_length);
    bool target = i == 1 && (flags & TARGET);

    if (!end)
        return -EINVAL;
    size_t length = (size_t)(end - name);
    if (target ? !length || length > SHARE_PATH_MAX : !is_component(name, length, flags & DOTS))
        return length > SHARE_NAME_MAX ? -ENAMETOOLONG : -EINVAL;
    c->name[i] = name;
    c->extra = end + 1;
    c->extra_length -= length + 1;
    return 0;
}

static int take_names(struct call *c, unsigned flags)
{
    int err = flags & (NAME | NAMES | TARGET) ? take_name(c, 0, flags) : 0;

    return err || !(flags & (NAMES | TARGET)) ? err : take_name(c, 1, flags);
}

static int check(struct call *c, const struct operation *o, const struct server_message *m)
{
    c->arg = (const uint8_t *)m->head + sizeof c->in;
    size_t body = m->head_length - sizeof c->in;

    if (c->in.len != m->head_length + m->rest_length || body < o->arg_length)
        return -EINVAL;
    c->arg_length = body;
    c->extra = (const uint8_t *)c->arg + o->arg_length;
    c->extra_length = body - o->arg_length;
    if (!(o->flags & EARLY) && !c->s->minor)
        return -EIO;
    if ((o->flags & LOCKS) && !c->s->config.locks)
        return -ENOSYS;
    if ((o->flags & WRITES) && c->s->config.read_only)
        return -EROFS;
    c->node = o->flags & NO_NODE ? NULL : node_find(c->s, c->in.nodeid);
    if (!c->node && !(o->flags & NO_NODE))
        return -ESTALE;
    return take_names(c, o->flags);
}

static int run(struct call *c, const struct operation *o, const struct server_message *m)
{
    int r = check(c, o, m);

    if (r)
        return r;
    if (c->node)
        node_hold(c->node);
    r = o->run(c);
    if (c->node)
        node_drop(c->s, c->node);
    return r;
}

void server_call(struct server *s, const struct server_message *m)
{
    static const struct operation unknown = {0};
    _Alignas(uint64_t) uint8_t out[REPLY_ROOM];
    struct call c = {.s = s,
                     .index = m->index,
                     .caller = m->caller,
                     .out = out,
                     .slot = m->slot,
                     .data = m->rest,
                     .data_length = m->rest_length};
    const struct operation *o = &unknown;
    int r = -ENOSYS;

    if (m->head_length < sizeof c.in) { /* there is not even a number to answer to */
        reply_error(s, m->index, 0, -EINVAL);
        return;
    }
    memcpy(&c.in, m->head, sizeof c.in);
    c.room = m->reply_max > sizeof(struct fuse_out_header) ? m->reply_max - sizeof(struct fuse_out_header) : 0;
    if (c.room > SHARE_DATA_MAX)
        c.room = SHARE_DATA_MAX;
    if (c.in.opcode < sizeof operations / sizeof *operations)
        o = &operations[c.in.opcode];
    if (o->run) {
        pthread_mutex_lock(&s->lock);
        r = run(&c, o, m);
        pthread_mutex_unlock(&s->lock);
    }
    if (r == CALL_LATER || r == CALL_SILENT || (o->flags & NO_REPLY))
        return;
    size_t length = r > 0 ? (size_t)r : 0;
    reply(s, m->index, c.in.unique, r < 0 ? r : 0, out, c.in_slot ? 0 : length, c.in_slot ? length : 0);
}
