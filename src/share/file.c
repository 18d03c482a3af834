/* Operations on open files. */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

#include "share/server_int.h"

/* Of the guest's flags these mean something to the host.  Not O_APPEND: the guest's cache writes at places of its own
 * through any descriptor, so each write says whether it appends.  Not O_DIRECT: it is about the guest's cache. */
#define OPEN_FLAGS (OPEN_LASTING | O_TRUNC)
#define COPY_MAX (64u << 20)    /* of one COPY_FILE_RANGE; the guest asks for the rest again */
#define QUICK_WRITE (64u << 10) /* takes no longer than to wake another thread */
#define SETTLED_NS 2000000000ll

static bool writes(uint32_t flags)
{
    return (flags & O_ACCMODE) != O_RDONLY;
}

static int64_t ns_of(const struct statx_timestamp *t)
{
    return t->tv_sec * 1000000000ll + t->tv_nsec;
}

/*
 * May the guest keep what it has cached of the file?  If nothing about it has changed since it was opened last, and if
 * that was not so recent that a change since then could have the same time.
 */
static uint32_t keep_cache(struct node *node, const struct statx *st)
{
    struct version now = {ns_of(&st->stx_mtime), ns_of(&st->stx_ctime), st->stx_size};
    bool same = memcmp(&now, &node->version, sizeof now) == 0;
    struct timespec t;

    clock_gettime(CLOCK_REALTIME_COARSE, &t);
    bool settled = t.tv_sec * 1000000000ll + t.tv_nsec - now.changed_ns > SETTLED_NS;
    node->version = settled ? now : (struct version){0};
    return same ? FOPEN_KEEP_CACHE : 0;
}

/* Opens a node that is a regular file.  Nothing else is ever opened but directories: a device or a FIFO of the host
 * does things when it is. */
int file_open(struct server *s, struct node *node, uint32_t flags, struct statx *st)
{
    mode_t need = (flags & O_ACCMODE) == O_RDONLY   ? S_IRUSR
                  : (flags & O_ACCMODE) == O_WRONLY ? S_IWUSR
                                                    : S_IRUSR | S_IWUSR;
    char path[PROC_PATH_SIZE];
    struct grant g = {0};
    int fd;

    if ((writes(flags) || (flags & O_TRUNC)) && s->config.read_only)
        return -EROFS;
    if (node->type != S_IFREG)
        return node->type == S_IFDIR ? -EISDIR : node->type == S_IFLNK ? -ELOOP : -ENXIO;
    int at = node_open(s, node, st);
    if (at < 0)
        return at;
    proc_path(path, at);
    do {
        do
            fd = sys(open(path, (int)(flags & OPEN_FLAGS) | O_CLOEXEC | O_NOCTTY));
        while ((fd == -EMFILE || fd == -ENFILE) && s->cached > 16 && nodes_evict(s));
    } while (grant_again(s, &g, at, need, fd));
    return fd;
}

static int reply_open(struct call *c, struct handle *h, const struct statx *st)
{
    const struct fuse_open_out out = {.fh = h->id, .open_flags = keep_cache(h->node, st)};
    int r = call_body(c, &out, sizeof out);

    if (r < 0)
        handle_release(c->s, h);
    return r;
}

int op_open(struct call *c)
{
    const struct fuse_open_in *in = c->arg;
    struct handle *h;
    struct statx st;
    int fd = file_open(c->s, c->node, in->flags, &st);

    if (fd < 0)
        return fd;
    if ((in->flags & O_TRUNC) && (in->open_flags & FUSE_OPEN_KILL_SUIDGID))
        owner_kill_bits(c->s, c->node, fd);
    int err = handle_add(c->s, c->node, fd, false, writes(in->flags), &h);
    if (err)
        return err;
    h->flags = in->flags & OPEN_LASTING;
    return reply_open(c, h, &st);
}

/* --- CREATE -------------------------------------------------------------------------------------------------- */

static int create_file(struct call *c, uint32_t flags, mode_t mode)
{
    int fd, directory = node_open_to_change(c->s, c->node);
    struct grant g = {0};

    if (directory < 0)
        return directory;
    do
        fd = sys(openat(directory, c->name[0],
                        (int)(flags & OPEN_FLAGS) | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC | O_NOCTTY,
                        mode & 01777));
    while (grant_again(c->s, &g, directory, S_IWUSR | S_IXUSR, fd));
    return fd;
}

static int create_or_open(struct call *c, const struct fuse_create_in *in, struct node **node, struct attributes *a)
{
    mode_t mode = in->mode & 07777;
    struct owner owner;
    int err = owner_of_new(c, c->node, &mode, &owner);

    if (err)
        return err;
    int fd = create_file(c, in->flags, mode);
    if (fd >= 0) {
        err = node_of_new_file(c->s, c->node, c->name[0], fd, node, a);
        if (!err && memcmp(&owner, &a->owner, sizeof owner) && !owner_store(c->s, *node, fd, &a->st, &owner))
            owner_load(c->s, *node, fd, &a->st, &a->owner);
    } else if (fd == -EEXIST && !(in->flags & O_EXCL)) {
        err = node_lookup(c->s, c->node, c->name[0], true, node, a);
        fd = err ? err : file_open(c->s, *node, in->flags, &a->st);
        if (!err && fd < 0)
            node_forget(c->s, *node, 1);
        else if (!err && (in->flags & O_TRUNC) && (err = sys(statx(fd, "", AT_EMPTY_PATH, STATX_BASIC_STATS, &a->st))))
            node_forget(c->s, *node, 1);
    }
    if (fd >= 0 && err)
        close(fd);
    return fd >= 0 && err ? err : fd;
}

int op_create(struct call *c)
{
    const struct fuse_create_in *in = c->arg;
    struct {
        struct fuse_entry_out entry;
        struct fuse_open_out open;
    } out;
    struct attributes a;
    struct handle *h;
    struct node *node;

    if (c->room < sizeof out)
        return -EINVAL;
    int fd = create_or_open(c, in, &node, &a);
    if (fd < 0)
        return fd;
    int err = handle_add(c->s, node, fd, false, writes(in->flags), &h);
    if (err) {
        node_forget(c->s, node, 1);
        return err;
    }
    h->flags = in->flags & OPEN_LASTING;
    entry_fill(c->s, node, &a, &out.entry);
    out.open = (struct fuse_open_out){.fh = h->id};
    return call_body(c, &out, sizeof out);
}

/* --- data ---------------------------------------------------------------------------------------------------- */

/*
 * What is in the host's page cache is read at once.  A read of less than was asked for is one at the end of the file if
 * a read behind it gives nothing; else it has to wait for the disk.
 */
static int read_cached(int fd, uint8_t *to, size_t length, off_t offset)
{
    struct iovec piece = {to, length};
    int r = sys(preadv2(fd, &piece, 1, offset, RWF_NOWAIT));

    if (r >= 0 && (size_t)r < length) {
        piece.iov_len = 1;
        piece.iov_base = to + r;
        if (preadv2(fd, &piece, 1, offset + r, RWF_NOWAIT) != 0)
            return -EAGAIN;
    }
    return r;
}

int op_read(struct call *c)
{
    const struct fuse_read_in *in = c->arg;
    struct handle *h = handle_find(c->s, in->fh, c->node, false);
    size_t length;

    if (handle_check(h))
        return handle_check(h);
    if (in->offset > INT64_MAX)
        return -EINVAL;
    void *to = call_room(c, in->size, &length);
    int r = read_cached(h->fd, to, length, (off_t)in->offset);
    if (r != -EAGAIN && r != -EOPNOTSUPP)
        return r;
    handle_hold(h);
    call_unlock(c);
    r = sys(pread(h->fd, to, length, (off_t)in->offset));
    call_lock(c);
    handle_drop(c->s, h);
    return r;
}

static int write_data(struct call *c, const struct fuse_write_in *in, int fd)
{
    bool append = (in->flags & O_APPEND) && !(in->write_flags & FUSE_WRITE_CACHE);
    struct iovec pieces[2] = {{(void *)(uintptr_t)c->extra, c->extra_length},
                              {(void *)(uintptr_t)c->data, c->data_length}};
    int r = sys(pwritev2(fd, pieces, 2, (off_t)in->offset, append ? RWF_APPEND : 0));
    const struct fuse_write_out out = {.size = (uint32_t)r};

    return r < 0 ? r : call_body(c, &out, sizeof out);
}

int op_write(struct call *c)
{
    const struct fuse_write_in *in = c->arg;
    struct handle *h = handle_find(c->s, in->fh, c->node, false);

    if (handle_check(h) || !h->writable)
        return handle_check(h) ? handle_check(h) : -EBADF;
    if (in->offset > INT64_MAX || in->size != c->extra_length + c->data_length)
        return -EINVAL;
    if (in->write_flags & FUSE_WRITE_KILL_SUIDGID)
        owner_kill_bits(c->s, c->node, h->fd);
    if (in->size <= QUICK_WRITE)
        return write_data(c, in, h->fd);
    handle_hold(h);
    call_unlock(c);
    int r = write_data(c, in, h->fd);
    call_lock(c);
    handle_drop(c->s, h);
    return r;
}

int op_fallocate(struct call *c)
{
    const struct fuse_fallocate_in *in = c->arg;
    struct handle *h = handle_find(c->s, in->fh, c->node, false);

    if (handle_check(h))
        return handle_check(h);
    if (in->mode & ~(uint32_t)(FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE | FALLOC_FL_ZERO_RANGE))
        return -EOPNOTSUPP;
    handle_hold(h);
    call_unlock(c);
    int r = sys(fallocate(h->fd, (int)in->mode, (off_t)in->offset, (off_t)in->length));
    call_lock(c);
    handle_drop(c->s, h);
    return r;
}

/* Only where data and holes are: positions are the guest's business. */
int op_lseek(struct call *c)
{
    const struct fuse_lseek_in *in = c->arg;
    struct handle *h = handle_find(c->s, in->fh, c->node, false);
    struct fuse_lseek_out out;

    if (handle_check(h))
        return handle_check(h);
    if (in->whence != SEEK_DATA && in->whence != SEEK_HOLE)
        return -EINVAL;
    off_t at = lseek(h->fd, (off_t)in->offset, (int)in->whence);
    if (at < 0)
        return -errno;
    out.offset = (uint64_t)at;
    return call_body(c, &out, sizeof out);
}

int op_copy_file_range(struct call *c)
{
    const struct fuse_copy_file_range_in *in = c->arg;
    struct node *to_node = node_find(c->s, in->nodeid_out);
    struct handle *from = handle_find(c->s, in->fh_in, c->node, false);
    struct handle *to = to_node ? handle_find(c->s, in->fh_out, to_node, false) : NULL;
    off_t at = (off_t)in->off_in, to_at = (off_t)in->off_out;

    if (handle_check(from) || handle_check(to))
        return handle_check(from) ? handle_check(from) : handle_check(to);
    if (in->flags)
        return -EINVAL;
    owner_kill_bits(c->s, to_node, to->fd);
    handle_hold(from);
    handle_hold(to);
    call_unlock(c);
    int r = sys(copy_file_range(from->fd, &at, to->fd, &to_at, in->len < COPY_MAX ? in->len : COPY_MAX, 0));
    const struct fuse_write_out out = {.size = (uint32_t)r};
    r = r < 0 ? r : call_body(c, &out, sizeof out);
    call_lock(c);
    handle_drop(c->s, from);
    handle_drop(c->s, to);
    return r;
}

/* --- the end ------------------------------------------------------------------------------------------------- */

int op_flush(struct call *c)
{
    const struct fuse_flush_in *in = c->arg;

    if (!handle_find(c->s, in->fh, c->node, false))
        return -EBADF;
    locks_drop_owner(c->s, c->node, in->lock_owner);
    return 0;
}

int op_release(struct call *c)
{
    const struct fuse_release_in *in = c->arg;
    struct handle *h = handle_find(c->s, in->fh, c->node, false);

    if (!h)
        return -EBADF;
    if (in->release_flags & FUSE_RELEASE_FLUSH)
        locks_drop_owner(c->s, c->node, in->lock_owner);
    handle_release(c->s, h);
    locks_retry(c->s); /* an flock ends with its file */
    return 0;
}

static int sync_handle(struct call *c, bool directory)
{
    const struct fuse_fsync_in *in = c->arg;
    struct handle *h = handle_find(c->s, in->fh, c->node, directory);

    if (handle_check(h))
        return handle_check(h);
    if (h->fd < 0)
        return 0;
    handle_hold(h);
    call_unlock(c);
    int r = sys(in->fsync_flags & FUSE_FSYNC_FDATASYNC ? fdatasync(h->fd) : fsync(h->fd));
    call_lock(c);
    handle_drop(c->s, h);
    return r;
}

int op_fsync(struct call *c)
{
    return sync_handle(c, false);
}

int op_fsyncdir(struct call *c)
{
    return sync_handle(c, true);
}
