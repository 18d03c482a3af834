/* Directories of the host as a source, and the choice between the kinds. */
#include "image/source.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <search.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "base/error.h"

#define PATH_LONGEST 4096
#define BUFFER (1u << 20)

int source_add_file(struct source *s, struct tree_inode *inode, const char *path)
{
    if (s->n_files == s->room) {
        size_t room = s->room ? 2 * s->room : 256;
        if (room > 4 * (size_t)TREE_NODES_MAX)
            return -E2BIG;
        struct source_file *larger = realloc(s->files, room * sizeof *larger);
        if (!larger)
            return -E2BIG;
        s->files = larger;
        s->room = room;
    }
    struct source_file file = {inode, path ? strdup(path) : NULL};
    if (path && !file.path)
        return -ENOMEM;
    s->files[s->n_files++] = file;
    return 0;
}

void source_free(struct source *s)
{
    for (size_t i = 0; i < s->n_files; i++)
        free(s->files[i].path);
    free(s->files);
    s->files = NULL;
    s->n_files = s->room = 0;
}

/* ---- directories ---- */

/* Inodes with several names, found again by their number. */
struct seen {
    ino_t inode;
    dev_t device;
    char path[];
};

struct scan {
    struct source *s;
    struct tree *t;
    dev_t device; /* what is mounted below is left out */
    uid_t self;   /* not root: this user's files become root's, as they are when root makes the same */
    gid_t self_group;
    void *seen;              /* a tree of struct seen (tsearch) */
    char path[PATH_LONGEST]; /* where it failed, for the sentence */
};

static int add_capabilities(struct scan *c, struct tree_inode *inode, int directory, const char *name)
{
    char path[64 + 256], value[1024];

    snprintf(path, sizeof path, "/proc/self/fd/%d/%s", directory, name);
    ssize_t len = lgetxattr(path, "security.capability", value, sizeof value);
    return len > 0 ? tree_add_xattr(c->t, inode, "security.capability", value, (size_t)len) : 0;
}

static struct tree_inode *inode_of(struct scan *c, const struct stat *st)
{
    uint32_t uid = c->self && st->st_uid == c->self ? 0 : st->st_uid;
    uint32_t gid = c->self && st->st_gid == c->self_group ? 0 : st->st_gid;
    struct tree_inode *inode = tree_inode(c->t, st->st_mode, uid, gid, st->st_mtime);

    if (inode && S_ISREG(st->st_mode))
        inode->size = (uint64_t)st->st_size;
    if (inode && (S_ISCHR(st->st_mode) || S_ISBLK(st->st_mode))) {
        inode->major = major(st->st_rdev);
        inode->minor = minor(st->st_rdev);
    }
    return inode;
}

static int take_link_target(struct scan *c, struct tree_inode *inode, int directory, const char *name)
{
    char target[PATH_LONGEST];
    ssize_t len = readlinkat(directory, name, target, sizeof target - 1);

    if (len < 0)
        return -errno;
    target[len] = 0;
    return tree_set_target(c->t, inode, target);
}

static int compare_seen(const void *a, const void *b)
{
    const struct seen *x = a, *y = b;

    if (x->inode != y->inode)
        return x->inode < y->inode ? -1 : 1;
    return x->device < y->device ? -1 : x->device > y->device;
}

/* 1: it is another name of a file that is there already, and has been put. */
static int take_known(struct scan *c, const struct stat *st, const char *path)
{
    if (st->st_nlink < 2)
        return 0;
    struct seen *s = malloc(sizeof *s + strlen(path) + 1), **found;
    if (!s)
        return -ENOMEM;
    s->inode = st->st_ino;
    s->device = st->st_dev;
    memcpy(s->path, path, strlen(path) + 1);
    found = tsearch(s, &c->seen, compare_seen);
    if (found && *found == s)
        return 0;
    free(s);
    if (!found)
        return -ENOMEM;
    struct tree_node *node = tree_find(c->t, (*found)->path, false);
    int failed = node ? tree_put(c->t, path, node->inode, NULL) : -ENOENT;
    return failed ? failed : 1;
}

static int scan_directory(struct scan *c, int fd, const char *path);

static int scan_entry(struct scan *c, int directory, const char *name, const char *path)
{
    struct stat st;

    if (fstatat(directory, name, &st, AT_SYMLINK_NOFOLLOW))
        return errno == ENOENT ? 0 : -errno;
    if (S_ISSOCK(st.st_mode) || st.st_dev != c->device)
        return 0;
    int known = S_ISDIR(st.st_mode) ? 0 : take_known(c, &st, path);
    if (known)
        return known < 0 ? known : 0;
    struct tree_inode *inode = inode_of(c, &st);
    int failed = inode ? add_capabilities(c, inode, directory, name) : -E2BIG;
    if (!failed && S_ISLNK(st.st_mode))
        failed = take_link_target(c, inode, directory, name);
    if (!failed)
        failed = tree_put(c->t, path, inode, NULL);
    if (!failed && S_ISREG(st.st_mode))
        failed = source_add_file(c->s, inode, path);
    if (failed || !S_ISDIR(st.st_mode))
        return failed;
    int fd = openat(directory, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    return fd < 0 ? -errno : scan_directory(c, fd, path);
}

/* Closes fd. */
static int scan_directory(struct scan *c, int fd, const char *path)
{
    DIR *directory = fdopendir(fd);
    char below[PATH_LONGEST];
    struct dirent *e;
    int failed = 0;

    if (!directory) {
        close(fd);
        return -errno;
    }
    while (!failed && (e = readdir(directory))) {
        if (strcmp(e->d_name, ".") == 0 || strcmp(e->d_name, "..") == 0)
            continue;
        int len = snprintf(below, sizeof below, "%s%s%s", path, *path ? "/" : "", e->d_name);
        failed = len < (int)sizeof below ? scan_entry(c, dirfd(directory), e->d_name, below) : -ENAMETOOLONG;
        if (failed && !c->path[0])
            memcpy(c->path, below, sizeof c->path);
    }
    closedir(directory);
    return failed;
}

static int directory_scan(struct source *s, struct tree *t, char *err, size_t n)
{
    struct scan c = {.s = s, .t = t, .self = geteuid(), .self_group = getegid()};
    struct stat st;
    int fd = openat(s->fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC), failed;

    if (fd < 0 || fstat(fd, &st)) {
        failed = -errno;
        if (fd >= 0)
            close(fd);
        return error_sys(err, n, failed, "cannot read %s", s->name);
    }
    c.device = st.st_dev;
    /* The top may be as private as the directory that it was made in; as / it is everybody's. */
    struct tree_inode *root = tree_inode(t, S_IFDIR | 0755, 0, 0, st.st_mtime);
    failed = root ? tree_put(t, "/", root, NULL) : -E2BIG;
    if (failed)
        close(fd);
    else
        failed = scan_directory(&c, fd, "");
    tdestroy(c.seen, free);
    return failed ? error_sys(err, n, failed, "cannot read %s/%.3000s", s->name, c.path) : 0;
}

static int fill_file(const struct source_file *file, int fd, const struct sink *sink, char *buffer)
{
    uint64_t offset = 0, size = file->inode->size;
    int failed = sink->begin(sink->context, file->inode);

    while (!failed && offset < size) {
        off_t data = lseek(fd, (off_t)offset, SEEK_DATA);
        if (data < 0 && errno == ENXIO)
            break;
        if (data > (off_t)offset)
            offset = (uint64_t)data;
        size_t want = size - offset < BUFFER ? (size_t)(size - offset) : BUFFER;
        ssize_t now = offset < size ? pread(fd, buffer, want, (off_t)offset) : 0;
        if (now <= 0) /* shorter than it was: the rest is zeros */
            return now < 0 ? -errno : sink->end(sink->context);
        failed = sink->data(sink->context, buffer, (size_t)now, offset);
        offset += (uint64_t)now;
    }
    return failed ? failed : sink->end(sink->context);
}

static int directory_fill(struct source *s, const struct sink *sink, char *err, size_t n)
{
    char *buffer = malloc(BUFFER);
    int failed = buffer ? 0 : -ENOMEM;

    for (size_t i = 0; i < s->n_files && !failed; i++) {
        const struct source_file *file = &s->files[i];
        if (file->inode->links == 0 || file->inode->size == 0)
            continue;
        int fd = openat(s->fd, file->path, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
        failed = fd < 0 ? -errno : fill_file(file, fd, sink, buffer);
        if (fd >= 0)
            close(fd);
        if (failed)
            error_sys(err, n, failed, "cannot read %s/%s", s->name, file->path);
    }
    free(buffer);
    return failed;
}

int source_scan(struct source *s, struct tree *t, char *err, size_t n)
{
    return s->directory ? directory_scan(s, t, err, n) : archive_scan(s, t, err, n);
}

int source_fill(struct source *s, const struct sink *sink, char *err, size_t n)
{
    return s->directory ? directory_fill(s, sink, err, n) : archive_fill(s, sink, err, n);
}
