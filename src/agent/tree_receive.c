/* Trees: the receiver, which believes nothing. */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "agent/client_int.h"
#include "agent/tree.h"
#include "base/error.h"
#include "base/file.h"

struct attributes {
    enum tree_kind kind;
    mode_t mode;
    uid_t uid;
    gid_t gid;
    struct timespec modified;
    uint64_t size;
    uint8_t
        *xattrs; /* each a length of 4 bytes, then NAME, a NUL and the value; whoever has the struct last frees it */
    size_t xattrs_len;
};

struct level {
    int fd;
    bool keep; /* the directory was there before: its mode and time are not the sender's business */
    struct attributes a;
};

struct receiver {
    const struct tree_target *target;
    const struct tree_watch *w;
    uint64_t flags;
    struct level level[TREE_DEPTH_MAX + 1]; /* [0] is the target's directory */
    int depth;                              /* of the directory we are in; 0: outside of the tree */
    bool begun;                             /* the first entry has come */
    int file;                               /* the file that DATA belongs to, or -1 */
    struct attributes a;                    /* its */
    uint64_t at;                            /* behind the last byte of it */
    char *err;
    size_t n;
};

void tree_source_name(const char *path, char *name, size_t size)
{
    size_t end = strlen(path);

    while (end > 0 && path[end - 1] == '/')
        end--;
    size_t start = end;
    while (start > 0 && path[start - 1] != '/')
        start--;
    snprintf(name, size, "%.*s", (int)(end - start), path + start);
    if (strcmp(name, ".") == 0 || strcmp(name, "..") == 0)
        name[0] = 0;
}

int tree_target_open(const char *path, const char *source_name, bool contents, struct tree_target *t, char *err,
                     size_t n)
{
    char parent[PATH_MAX];
    struct stat st;
    size_t len = strlen(path);
    bool is_directory = stat(path, &st) == 0 && S_ISDIR(st.st_mode);

    *t = (struct tree_target){.directory = -1, .stream = -1};
    t->must_be_directory = contents || (!is_directory && len && path[len - 1] == '/');
    if (!len || len >= sizeof(parent))
        return error_set(err, n, len ? -ENAMETOOLONG : -ENOENT, "the destination's path is %s",
                         len ? "too long" : "empty");
    if (is_directory) {
        snprintf(parent, sizeof(parent), "%s", path);
        snprintf(t->name, sizeof(t->name), "%s", contents ? "" : source_name);
    } else {
        tree_source_name(path, t->name, sizeof(t->name));
        while (path[len - 1] == '/')
            len--;
        size_t slash = len - strlen(t->name);
        snprintf(parent, sizeof(parent), "%.*s", slash ? (int)slash : 1, slash ? path : ".");
    }
    t->directory = open(parent, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    return t->directory < 0 ? error_sys(err, n, -errno, "cannot copy to %s", path) : 0;
}

void tree_target_close(struct tree_target *t)
{
    if (t->directory >= 0)
        close(t->directory);
    t->directory = -1;
}

static int broken(struct receiver *t, const char *what)
{
    return error_set(t->err, t->n, -EPROTO, "the tree that is being received is malformed: %s", what);
}

static int failed(struct receiver *t, const char *name)
{
    /* Other threads' and other programs' terminals: the name may be a stranger's. */
    char printable[256];
    int code = -errno;
    size_t i = 0;

    for (; name[i] && i + 1 < sizeof(printable); i++)
        printable[i] = name[i] >= ' ' && name[i] < 0x7f ? name[i] : '?';
    printable[i] = 0;
    return error_sys(t->err, t->n, code, "cannot write %s", printable);
}

static bool is_component(const char *name)
{
    return *name && strlen(name) <= NAME_MAX && !strchr(name, '/') && strcmp(name, ".") != 0 && strcmp(name, "..") != 0;
}

static void apply_xattrs(int fd, const struct attributes *a)
{
    for (size_t at = 0; at < a->xattrs_len;) {
        const char *name = (const char *)a->xattrs + at + 4;
        size_t len = (size_t)get_le(a->xattrs + at, 4), name_len = strlen(name) + 1;
        (void)fsetxattr(fd, name, name + name_len, len - name_len, 0);
        at += 4 + len;
    }
}

/* What owner, mode and time say: of the open file fd, or, with a name, of that in `directory`. */
static void apply(const struct receiver *t, int fd, int directory, const char *name, const struct attributes *a)
{
    bool owners = t->flags & TREE_OWNERS;
    const struct timespec times[2] = {{.tv_nsec = UTIME_OMIT}, a->modified};
    int r = 0;

    /* Who is not root cannot give files away, and keeps them: as cp -a does it, without a word. */
    if (owners)
        r |= name ? fchownat(directory, name, a->uid, a->gid, AT_SYMLINK_NOFOLLOW) : fchown(fd, a->uid, a->gid);
    bool kept = owners && r == 0;
    if (a->kind != TREE_SYMLINK)
        r |= name ? fchmodat(directory, name, a->mode & 0777, 0) : fchmod(fd, a->mode & (kept ? 07777 : 01777));
    if (!name)
        apply_xattrs(fd, a);
    r |= name ? utimensat(directory, name, times, AT_SYMLINK_NOFOLLOW) : futimens(fd, times);
    /* A file system that keeps no such attribute still has the content. */
    if (r)
        return;
}

/* A file's attributes wait for its end. */
static void take(struct receiver *t, struct attributes *a)
{
    free(t->a.xattrs);
    t->a = *a;
    t->at = 0;
    a->xattrs = NULL;
}

static int finish_file(struct receiver *t)
{
    int r = 0;

    if (t->file < 0)
        return 0;
    if (t->a.size > t->at && t->a.size <= INT64_MAX && ftruncate(t->file, (off_t)t->a.size)) /* ends in a hole */
        r = failed(t, "a file");
    apply(t, t->file, -1, NULL, &t->a);
    free(t->a.xattrs);
    t->a.xattrs = NULL;
    if (close(t->file) && !r)
        r = failed(t, "a file");
    t->file = -1;
    return r;
}

/* A file or link of that name gives way; a directory or a device does not. */
static int make_way(struct receiver *t, int directory, const char *name)
{
    struct stat st;

    if (fstatat(directory, name, &st, AT_SYMLINK_NOFOLLOW))
        return errno == ENOENT ? 0 : failed(t, name);
    if (!S_ISREG(st.st_mode) && !S_ISLNK(st.st_mode) && !S_ISFIFO(st.st_mode)) {
        errno = S_ISDIR(st.st_mode) ? EISDIR : EEXIST;
        return failed(t, name);
    }
    /* A file that is mounted cannot be removed: it is written to in place (open_file). */
    return unlinkat(directory, name, 0) && errno != EBUSY ? failed(t, name) : 0;
}

static int open_file(struct receiver *t, int directory, const char *name)
{
    int r = make_way(t, directory, name);
    struct stat st;

    if (r)
        return r;
    t->file = openat(directory, name, O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC,
                     0600);
    if (t->file < 0)
        return failed(t, name);
    if (fstat(t->file, &st) || !S_ISREG(st.st_mode)) {
        errno = EEXIST;
        return failed(t, name);
    }
    return 0;
}

static int enter_directory(struct receiver *t, int directory, const char *name, struct attributes *a)
{
    bool here = !*name, kept = here; /* the target itself */

    if (t->depth == TREE_DEPTH_MAX)
        return broken(t, "too many directories in one another");
    if (!here && mkdirat(directory, name, 0700)) {
        if (errno != EEXIST)
            return failed(t, name);
        kept = !(t->flags & TREE_OWNERS); /* as with cp -r and with cp -a */
    }
    int fd = openat(directory, here ? "." : name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0)
        return failed(t, name);
    t->level[++t->depth] = (struct level){.fd = fd, .keep = kept, .a = *a};
    a->xattrs = NULL; /* the level's now */
    return 0;
}

static int make_other(struct receiver *t, int directory, const char *name, const struct attributes *a,
                      const char *target)
{
    int r = make_way(t, directory, name);

    if (r)
        return r;
    if (a->kind == TREE_SYMLINK && (!target || !*target))
        return broken(t, "a link without a target");
    if (a->kind == TREE_SYMLINK ? symlinkat(target, directory, name) : mkfifoat(directory, name, 0600))
        return failed(t, name);
    apply(t, -1, directory, name, a);
    return 0;
}

/* A directory in the one at `at`, which is closed; no link is followed. */
static int descend(int at, const char *name)
{
    int fd = is_component(name) ? openat(at, name, O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC) : -1;

    close(at);
    return fd;
}

/* Another name of a file in the tree: nothing outside of its first directory can be meant. */
static int make_hardlink(struct receiver *t, int directory, const char *name, char *target)
{
    int at = t->depth && target ? fcntl(t->level[1].fd, F_DUPFD_CLOEXEC, 0) : -1, r;
    char *word = target, *slash;
    struct stat st;

    for (; at >= 0 && (slash = strchr(word, '/')); word = slash + 1) {
        *slash = 0;
        at = descend(at, word);
    }
    if (at < 0 || !is_component(word) || fstatat(at, word, &st, AT_SYMLINK_NOFOLLOW) || !S_ISREG(st.st_mode))
        r = broken(t, "a link to a file that did not come before");
    else if ((r = make_way(t, directory, name)) == 0 && linkat(at, word, directory, name, 0))
        r = failed(t, name);
    if (at >= 0)
        close(at);
    return r;
}

static int create(struct receiver *t, int directory, const char *name, struct attributes *a, char *target)
{
    switch (a->kind) {
    case TREE_FILE:
        take(t, a);
        return open_file(t, directory, name);
    case TREE_DIRECTORY:
        return enter_directory(t, directory, name, a);
    case TREE_SYMLINK:
    case TREE_FIFO:
        return make_other(t, directory, name, a, target);
    case TREE_HARDLINK:
        return make_hardlink(t, directory, name, target);
    }
    return broken(t, "an entry of an unknown kind");
}

static int first_entry(struct receiver *t, struct attributes *a, char *target)
{
    const struct tree_target *to = t->target;

    t->begun = true;
    if (to->stream >= 0) {
        if (a->kind != TREE_FILE)
            return error_set(t->err, t->n, -EISDIR, "only a file can be written to standard output");
        take(t, a);
        return 0;
    }
    if (a->kind != TREE_DIRECTORY && (to->must_be_directory || !to->name[0]))
        return error_set(t->err, t->n, -ENOTDIR, "the destination is not a directory, or the source is none");
    return create(t, to->directory, to->name, a, target);
}

static int next_entry(struct receiver *t, const char *name, struct attributes *a, char *target)
{
    if (t->depth == 0)
        return broken(t, "an entry outside of the tree");
    if (!name || !is_component(name))
        return broken(t, "a name that leads elsewhere");
    return create(t, t->level[t->depth].fd, name, a, target);
}

static struct attributes read_attributes(const struct frame *f)
{
    return (struct attributes){
        .kind = (enum tree_kind)frame_number(f, FIELD_KIND, 0),
        .mode = (mode_t)frame_number(f, FIELD_MODE, 0600),
        .uid = (uid_t)frame_number(f, FIELD_UID, 0),
        .gid = (gid_t)frame_number(f, FIELD_GID, 0),
        .modified = {.tv_sec = (time_t)frame_number(f, FIELD_SECONDS, 0),
                     .tv_nsec = (long)(frame_number(f, FIELD_NANOSECONDS, 0) % 1000000000u)},
        .size = frame_number(f, FIELD_SIZE, 0),
    };
}

/* Of the names that are kept, as many as an entry may have; a value without its name is none. */
static void take_xattr(struct attributes *a, const struct field *field)
{
    const char *name = (const char *)field->data;
    size_t room = a->xattrs ? TREE_XATTRS_MAX - a->xattrs_len : TREE_XATTRS_MAX;

    if (!memchr(name, 0, field->len) || !tree_keeps_xattr(name) || room < field->len + 4)
        return;
    if (!a->xattrs && !(a->xattrs = malloc(TREE_XATTRS_MAX)))
        return;
    put_le(a->xattrs + a->xattrs_len, field->len, 4);
    memcpy(a->xattrs + a->xattrs_len + 4, name, field->len);
    a->xattrs_len += field->len + 4;
}

static int on_entry(struct receiver *t, const struct frame *f)
{
    struct attributes a = read_attributes(f);
    char *name = NULL, *target = NULL;
    struct fields i;
    struct field field;
    int r = finish_file(t);

    fields_begin(&i, f);
    while (fields_next(&i, &field)) {
        char **to = field.tag == FIELD_NAME ? &name : field.tag == FIELD_TARGET ? &target : NULL;
        if (to && !*to)
            *to = field_text(&field);
        if (field.tag == FIELD_XATTR && t->flags & TREE_OWNERS)
            take_xattr(&a, &field);
    }
    if (!r && i.bad)
        r = broken(t, "an entry");
    if (!r)
        r = t->begun ? next_entry(t, name, &a, target) : first_entry(t, &a, target);
    free(a.xattrs);
    free(name);
    free(target);
    return r;
}

/* Standard output cannot be positioned: a hole is written as what it reads as. */
static int write_zeros(int fd, uint64_t len)
{
    static const char zeros[4096];

    while (len) {
        size_t now = len < sizeof(zeros) ? (size_t)len : sizeof(zeros);
        int r = fd_write_all(fd, zeros, now);
        if (r)
            return r;
        len -= now;
    }
    return 0;
}

static int on_data(struct receiver *t, const struct frame *f)
{
    bool streams = t->target->stream >= 0 && t->begun;
    int r = 0;

    if ((t->file < 0 && !streams) || f->len < 8)
        return broken(t, "bytes that belong to no file");
    uint64_t offset = get_le(f->payload, 8);
    size_t len = f->len - 8;
    if (offset < t->at || offset > INT64_MAX - len)
        return broken(t, "bytes that are not in order");
    if (streams)
        r = write_zeros(t->target->stream, offset - t->at);
    if (!r)
        r = streams ? fd_write_all(t->target->stream, f->payload + 8, len)
                    : fd_write_at(t->file, f->payload + 8, len, offset);
    if (r)
        return error_sys(t->err, t->n, r, "cannot write what is copied");
    t->at = offset + len;
    if (t->w->progress)
        t->w->progress(t->w->opaque, len);
    return 0;
}

static int on_leave(struct receiver *t, const struct frame *f)
{
    int r = finish_file(t);

    if (r || t->depth == 0)
        return r ? r : broken(t, "it leaves a directory that it never entered");
    struct level *l = &t->level[t->depth--];
    if (!l->keep)
        apply(t, l->fd, -1, NULL, &l->a);
    free(l->a.xattrs);
    close(l->fd);
    return 0;
}

static int on_note(struct receiver *t, const struct frame *f)
{
    char text[512];

    frame_printable(f, FIELD_MESSAGE, text, sizeof(text));
    if (t->w->note)
        t->w->note(t->w->opaque, text);
    return 0;
}

static int on_end(struct receiver *t, const struct frame *f)
{
    int r = finish_file(t);

    if (!r && t->depth != 0)
        r = broken(t, "it ends inside a directory");
    if (!r && !t->begun)
        r = error_set(t->err, t->n, -ENOENT, "there was nothing to copy");
    if (!r && t->target->stream >= 0 && t->a.size > t->at)
        r = write_zeros(t->target->stream, t->a.size - t->at);
    return r ? r : 1;
}

static int on_error(struct receiver *t, const struct frame *f)
{
    return client_refused(f, t->err, t->n);
}

static const struct {
    enum frame_type type;
    int (*fn)(struct receiver *t, const struct frame *f); /* 1: the tree is complete */
} frames[] = {
    {FRAME_ENTRY, on_entry}, {FRAME_DATA, on_data}, {FRAME_LEAVE, on_leave},
    {FRAME_NOTE, on_note},   {FRAME_END, on_end},   {FRAME_ERROR, on_error},
};

static int dispatch(struct receiver *t, const struct frame *f)
{
    for (size_t i = 0; i < sizeof(frames) / sizeof(frames[0]); i++)
        if (frames[i].type == f->type)
            return frames[i].fn(t, f);
    return broken(t, "a frame that has no place there");
}

int tree_receive(struct stream *s, const struct tree_target *target, uint64_t flags, const struct tree_watch *w,
                 char *err, size_t n)
{
    struct receiver *t = calloc(1, sizeof(*t));
    struct frame f;
    int r = 0;

    if (!t)
        return error_sys(err, n, -ENOMEM, "cannot copy");
    *t = (struct receiver){.target = target, .w = w, .flags = flags, .file = -1, .err = err, .n = n};
    while (r == 0) {
        r = stream_receive(s, &f);
        if (r)
            r = client_failed(r, "copying", err, n);
        else
            r = dispatch(t, &f);
    }
    if (t->file >= 0)
        close(t->file);
    for (; t->depth > 0; t->depth--) {
        free(t->level[t->depth].a.xattrs);
        close(t->level[t->depth].fd);
    }
    free(t->a.xattrs);
    free(t);
    return r > 0 ? 0 : r;
}
