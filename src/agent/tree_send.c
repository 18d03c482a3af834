/* Trees: the sender. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <search.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "agent/client_int.h"
#include "agent/tree.h"
#include "base/error.h"

#define PIECE (60u << 10)   /* bytes of a file in one frame */
#define QUEUED (256u << 10) /* more does not wait to be sent */

#define LINKS_MAX 100000u /* files with several names that are remembered */

/* A file that has other names, and the one under which it was sent. */
struct known {
    dev_t dev;
    ino_t ino;
    char path[];
};

struct sender {
    struct stream *s;
    const struct tree_watch *w;
    uint64_t flags;
    void *links; /* of tsearch(3): struct known */
    unsigned n_links;
    char path[PATH_MAX]; /* of the entry in hand, from the first directory */
    unsigned too_long;   /* not 0: that is cut */
    char *err;
    size_t n;
};

/* What the receiver says in the middle of a tree can only be that it has had enough. */
static int heed(struct sender *t)
{
    struct frame f;
    int r = stream_fill(t->s);

    if (r && r != -EAGAIN)
        return client_failed(r, "copying", t->err, t->n);
    r = stream_next(t->s, &f);
    if (r > 0 && f.type == FRAME_ERROR)
        return client_refused(&f, t->err, t->n);
    if (r || t->s->ended)
        return client_failed(r ? -EPROTO : -ECONNRESET, "copying", t->err, t->n);
    return 0;
}

/* Sends until at most `most` bytes wait. */
static int push(struct sender *t, size_t most)
{
    while (stream_waiting(t->s) > most) {
        struct pollfd p = {.fd = t->s->fd, .events = POLLIN | POLLOUT};
        int r = stream_flush(t->s);
        if (r == 0)
            break;
        if (r != -EAGAIN && r != -EPIPE)
            return client_failed(r, "copying", t->err, t->n);
        if (poll(&p, 1, -1) > 0 && p.revents & ~POLLOUT && (r = heed(t)) != 0)
            return r;
    }
    return t->s->failed ? client_failed(t->s->failed, "copying", t->err, t->n) : 0;
}

static void note(struct sender *t, const char *name, const char *why)
{
    char text[512];

    snprintf(text, sizeof(text), "%s: %s", name, why);
    stream_begin(t->s, FRAME_NOTE);
    stream_text(t->s, FIELD_MESSAGE, text);
    stream_end(t->s);
}

bool tree_keeps_xattr(const char *name)
{
    return strncmp(name, "user.", 5) == 0 || strcmp(name, "security.capability") == 0 ||
           strcmp(name, "system.posix_acl_access") == 0 || strcmp(name, "system.posix_acl_default") == 0;
}

static bool put_xattr(struct sender *t, int fd, const char *name, size_t *room)
{
    static const size_t overhead = 16;
    uint8_t field[TREE_XATTRS_MAX];
    size_t len = strlen(name) + 1;
    ssize_t got = len < *room ? fgetxattr(fd, name, field + len, *room - len) : -1;

    if (got < 0 || len + (size_t)got + overhead > *room)
        return false;
    memcpy(field, name, len);
    stream_bytes(t->s, FIELD_XATTR, field, len + (size_t)got);
    *room -= len + (size_t)got + overhead;
    return true;
}

/* Into the entry that has been begun.  False: not all of them. */
static bool put_xattrs(struct sender *t, int fd)
{
    char names[16384];
    ssize_t len = t->flags & TREE_OWNERS && fd >= 0 ? flistxattr(fd, names, sizeof(names)) : 0;
    size_t room = TREE_XATTRS_MAX;
    bool all = len >= 0 || errno == ENOTSUP;

    for (const char *name = names; len > 0 && name < names + len; name += strlen(name) + 1)
        if (tree_keeps_xattr(name) && !put_xattr(t, fd, name, &room))
            all = false;
    return all;
}

/* fd: the open file or directory, or -1. */
static void put_entry(struct sender *t, const char *name, enum tree_kind kind, const struct stat *st,
                      const char *target, int fd)
{
    stream_begin(t->s, FRAME_ENTRY);
    stream_text(t->s, FIELD_NAME, name);
    stream_number(t->s, FIELD_KIND, kind);
    stream_number(t->s, FIELD_MODE, st->st_mode & 07777);
    stream_number(t->s, FIELD_UID, st->st_uid);
    stream_number(t->s, FIELD_GID, st->st_gid);
    stream_number(t->s, FIELD_SECONDS, (uint64_t)st->st_mtim.tv_sec);
    stream_number(t->s, FIELD_NANOSECONDS, (uint64_t)st->st_mtim.tv_nsec);
    stream_number(t->s, FIELD_SIZE, kind == TREE_FILE ? (uint64_t)st->st_size : 0);
    stream_text(t->s, FIELD_TARGET, target);
    bool all = put_xattrs(t, fd);
    stream_end(t->s);
    if (!all)
        note(t, name, "not all of its extended attributes can be copied");
}

/* --- hard links --------------------------------------------------------------------------------------------- */

static int compare(const void *a, const void *b)
{
    const struct known *x = a, *y = b;

    if (x->dev != y->dev)
        return x->dev < y->dev ? -1 : 1;
    return x->ino < y->ino ? -1 : x->ino > y->ino;
}

static bool may_be_linked(const struct sender *t, const struct stat *st)
{
    return t->flags & TREE_OWNERS && st->st_nlink > 1 && t->path[0] && !t->too_long;
}

/* The name under which it was sent before, or NULL. */
static const char *sent_as(const struct sender *t, const struct stat *st)
{
    const struct known key = {.dev = st->st_dev, .ino = st->st_ino};
    struct known *const *found = may_be_linked(t, st) ? tfind(&key, &t->links, compare) : NULL;

    return found ? (*found)->path : NULL;
}

/* Without memory for it the next name becomes a file of its own. */
static void remember(struct sender *t, const struct stat *st)
{
    size_t len = strlen(t->path) + 1;
    struct known *k = may_be_linked(t, st) && t->n_links < LINKS_MAX ? malloc(sizeof(*k) + len) : NULL;

    if (!k)
        return;
    k->dev = st->st_dev;
    k->ino = st->st_ino;
    memcpy(k->path, t->path, len);
    if (!tsearch(k, &t->links, compare))
        free(k);
    else
        t->n_links++;
}

/* --- files ---------------------------------------------------------------------------------------------------- */

/* One piece, read straight into its frame: how many bytes, 0 at the end, or -errno of the file. */
static ssize_t put_piece(struct sender *t, int fd, uint64_t offset, size_t most)
{
    ssize_t got = -1;

    stream_begin(t->s, FRAME_DATA);
    uint8_t *space = stream_space(t->s, 8 + most);
    if (space) {
        put_le(space, offset, 8);
        do
            got = read(fd, space + 8, most);
        while (got < 0 && errno == EINTR);
    }
    int r = space ? -errno : -ENOMEM;
    if (got > 0) {
        stream_used(t->s, 8 + (size_t)got);
        stream_end(t->s);
        if (t->w->progress)
            t->w->progress(t->w->opaque, (uint64_t)got);
    } else {
        stream_cancel(t->s);
    }
    return got < 0 ? r : got;
}

/* The next part of the file that is no hole: [*from, *to).  False: there is none. */
static bool next_extent(int fd, off_t *from, off_t *to)
{
    off_t data = lseek(fd, *from, SEEK_DATA);

    if (data < 0 && errno == ENXIO)
        return false;
    off_t hole = data < 0 ? -1 : lseek(fd, data, SEEK_HOLE);
    if (data < 0 || hole <= data) { /* a file system that knows no holes, or a file of /proc: to its end */
        lseek(fd, *from, SEEK_SET);
        *to = -1;
        return true;
    }
    lseek(fd, data, SEEK_SET);
    *from = data;
    *to = hole;
    return true;
}

static int send_content(struct sender *t, int fd, const char *name)
{
    off_t at = 0, end = 0;
    int r = 0;

    while (!r && next_extent(fd, &at, &end)) {
        while (!r && at != end) {
            size_t most = end > 0 && end - at < PIECE ? (size_t)(end - at) : PIECE;
            ssize_t got = put_piece(t, fd, (uint64_t)at, most);
            if (got < 0)
                note(t, name, strerror((int)-got));
            if (got <= 0)
                return 0;
            at += got;
            r = push(t, QUEUED);
        }
    }
    return r;
}

static int send_file(struct sender *t, int directory, const char *name, struct stat *st)
{
    int fd = openat(directory, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);

    if (fd < 0 || fstat(fd, st) || !S_ISREG(st->st_mode)) {
        note(t, name, strerror(fd < 0 ? errno : EAGAIN));
        if (fd >= 0)
            close(fd);
        return 0;
    }
    const char *before = sent_as(t, st);
    put_entry(t, name, before ? TREE_HARDLINK : TREE_FILE, st, before, before ? -1 : fd);
    int r = before ? push(t, QUEUED) : send_content(t, fd, name);
    if (!before)
        remember(t, st);
    close(fd);
    return r;
}

static void send_link(struct sender *t, int directory, const char *name, const struct stat *st)
{
    char target[PATH_MAX];
    ssize_t len = readlinkat(directory, name, target, sizeof(target) - 1);

    if (len < 0) {
        note(t, name, strerror(errno));
        return;
    }
    target[len] = 0;
    put_entry(t, name, TREE_SYMLINK, st, target, -1);
}

static int send_entry(struct sender *t, int directory, const char *name, int depth);

static int send_directory(struct sender *t, int directory, const char *name, struct stat *st, int depth)
{
    /* "." and "x/." are no links; the last component of any other path may be one, which is then not a directory. */
    int fd = openat(directory, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC), r = 0;
    DIR *d = fd < 0 ? NULL : fdopendir(fd);
    struct dirent *e;

    if (!d || depth == TREE_DEPTH_MAX) {
        note(t, name, d ? "too many directories in one another" : strerror(errno));
        if (d)
            closedir(d);
        else if (fd >= 0)
            close(fd);
        return 0;
    }
    put_entry(t, name, TREE_DIRECTORY, st, NULL, fd);
    size_t len = strlen(t->path);
    while (!r && (e = readdir(d)) != NULL) {
        if (strcmp(e->d_name, ".") == 0 || strcmp(e->d_name, "..") == 0)
            continue;
        int more = snprintf(t->path + len, sizeof(t->path) - len, "%s%s", len ? "/" : "", e->d_name);
        bool cut = more >= (int)(sizeof(t->path) - len);
        t->too_long += cut;
        r = send_entry(t, fd, e->d_name, depth + 1);
        t->too_long -= cut;
        t->path[len] = 0;
    }
    closedir(d);
    stream_put(t->s, FRAME_LEAVE, NULL, 0);
    return r ? r : push(t, QUEUED);
}

static int send_entry(struct sender *t, int directory, const char *name, int depth)
{
    struct stat st;

    if (fstatat(directory, name, &st, AT_SYMLINK_NOFOLLOW)) {
        note(t, name, strerror(errno));
        return 0;
    }
    switch (st.st_mode & S_IFMT) {
    case S_IFREG:
        return send_file(t, directory, name, &st);
    case S_IFDIR:
        return send_directory(t, directory, name, &st, depth);
    case S_IFLNK:
        send_link(t, directory, name, &st);
        break;
    case S_IFIFO:
        put_entry(t, name, TREE_FIFO, &st, NULL, -1);
        break;
    default:
        note(t, name, "devices and sockets are not copied");
    }
    return push(t, QUEUED);
}

int tree_send(struct stream *s, const char *path, uint64_t flags, const struct tree_watch *w, char *err, size_t n)
{
    struct sender t = {.s = s, .w = w, .flags = flags, .err = err, .n = n};
    char followed[PATH_MAX];
    struct stat st;

    if (flags & TREE_FOLLOW && realpath(path, followed))
        path = followed;
    if (lstat(path, &st))
        return error_sys(err, n, -errno, "cannot copy %s", path);
    if (S_ISREG(st.st_mode) && access(path, R_OK))
        return error_sys(err, n, -errno, "cannot read %s", path);
    int r = send_entry(&t, AT_FDCWD, path, 0);
    tdestroy(t.links, free);
    stream_put(s, FRAME_END, NULL, 0);
    return r ? r : push(&t, 0);
}

int tree_send_bytes(struct stream *s, int fd, const struct tree_watch *w, char *err, size_t n)
{
    struct sender t = {.s = s, .w = w, .err = err, .n = n};
    struct stat st = {.st_mode = S_IFREG | 0644};
    uint64_t at = 0;
    ssize_t got = 1;
    int r = 0;

    clock_gettime(CLOCK_REALTIME, &st.st_mtim);
    put_entry(&t, "bytes", TREE_FILE, &st, NULL, -1);
    while (!r && (got = put_piece(&t, fd, at, PIECE)) > 0) {
        at += (uint64_t)got;
        r = push(&t, QUEUED);
    }
    if (got < 0)
        return error_sys(err, n, (int)got, "cannot read what is to be copied");
    stream_put(s, FRAME_END, NULL, 0);
    return r ? r : push(&t, 0);
}
