/*
 * Archives by libarchive.  Only the reader of tar and the decompressors of gzip, xz and zstd are asked for, so nothing
 * else of it is in the program.
 */
#include <archive.h>
#include <archive_entry.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/error.h"
#include "image/source.h"

#define CHUNK 65536

static void take_filters(struct archive *a)
{
    archive_read_support_filter_gzip(a);
    archive_read_support_filter_xz(a);
    archive_read_support_filter_zstd(a);
}

static int fail(struct archive *a, const char *name, char *err, size_t n)
{
    const char *why = archive_error_string(a);

    return error_set(err, n, -EBADMSG, "cannot read the archive %s: %s", name, why ? why : "it is damaged");
}

static struct archive *open_tar(struct source *s, char *err, size_t n)
{
    struct archive *a = archive_read_new();

    if (!a) {
        error_sys(err, n, -ENOMEM, "cannot read the archive %s", s->name);
        return NULL;
    }
    take_filters(a);
    archive_read_support_format_tar(a);
    if (lseek(s->fd, 0, SEEK_SET) == 0 && archive_read_open_fd(a, s->fd, CHUNK) == ARCHIVE_OK)
        return a;
    fail(a, s->name, err, n);
    archive_read_free(a);
    return NULL;
}

/* 1: an entry; 0: the end; -errno.  What libarchive only warns of (an unknown attribute) is taken as it is. */
static int next_entry(struct archive *a, struct archive_entry **e, const char *name, char *err, size_t n)
{
    int got = archive_read_next_header(a, e);

    if (got == ARCHIVE_EOF)
        return 0;
    return got == ARCHIVE_OK || got == ARCHIVE_WARN ? 1 : fail(a, name, err, n);
}

/* Access control lists are left out; what a file's capabilities and labels are stays. */
static bool wanted_xattr(const char *name)
{
    return strncmp(name, "security.", 9) == 0 || strncmp(name, "user.", 5) == 0 || strncmp(name, "trusted.", 8) == 0;
}

static int copy_xattrs(struct tree *t, struct tree_inode *inode, struct archive_entry *e)
{
    const char *name;
    const void *value;
    size_t len;
    int failed = 0;

    archive_entry_xattr_reset(e);
    while (!failed && archive_entry_xattr_next(e, &name, &value, &len) == ARCHIVE_OK)
        if (name && wanted_xattr(name))
            failed = tree_add_xattr(t, inode, name, value, len);
    return failed;
}

static uint32_t id_of(int64_t id)
{
    return id < 0 || id > UINT32_MAX ? 0 : (uint32_t)id;
}

/* The inode of an entry that is no hard link. */
static int make_inode(struct tree *t, struct archive_entry *e, struct tree_inode **out)
{
    uint32_t mode = (uint32_t)archive_entry_mode(e);
    struct tree_inode *inode = tree_inode(t, mode, id_of(archive_entry_uid(e)), id_of(archive_entry_gid(e)),
                                          archive_entry_mtime(e));
    int failed = inode ? 0 : -E2BIG;

    *out = inode;
    if (!failed && S_ISREG(mode)) {
        if (archive_entry_size(e) < 0)
            return -EINVAL;
        inode->size = (uint64_t)archive_entry_size(e);
    } else if (!failed && S_ISLNK(mode)) {
        const char *target = archive_entry_symlink(e);
        failed = target ? tree_set_target(t, inode, target) : -EINVAL;
    } else if (!failed && (S_ISCHR(mode) || S_ISBLK(mode))) {
        inode->major = (uint32_t)archive_entry_rdevmajor(e);
        inode->minor = (uint32_t)archive_entry_rdevminor(e);
    } else if (!failed && !S_ISDIR(mode) && !S_ISFIFO(mode)) {
        return -EINVAL;
    }
    return failed ? failed : copy_xattrs(t, inode, e);
}

/* Does the name say that something of a lower layer is gone (OCI image specification, "Whiteouts")?  Then it is. */
static int take_whiteout(struct tree *t, const char *path, bool *was)
{
    const char *slash = strrchr(path, '/'), *name = slash ? slash + 1 : path;
    size_t len = (size_t)(name - path);
    char directory[4097];

    *was = strncmp(name, ".wh.", 4) == 0;
    if (!*was)
        return 0;
    if (len >= sizeof directory)
        return -EINVAL;
    memcpy(directory, path, len);
    directory[len] = 0;
    struct tree_node *parent = tree_find(t, directory, true), *node;
    if (!parent || !S_ISDIR(parent->inode->mode))
        return 0;
    if (strcmp(name, ".wh..wh..opq") == 0)
        tree_hide_children(t, parent);
    else if ((node = tree_child(t, parent, name + 4)))
        tree_hide(t, node);
    return 0;
}

static int put_link(struct tree *t, const char *path, const char *target)
{
    struct tree_node *to = tree_find(t, target, false);

    if (!to || S_ISDIR(to->inode->mode))
        return -ENOENT;
    return tree_put(t, path, to->inode, NULL);
}

/* Every entry has its number in s->files, whatever it is: archive_fill counts them the same way. */
static int take_entry(struct source *s, struct tree *t, struct archive_entry *e)
{
    const char *path = archive_entry_pathname(e), *target = archive_entry_hardlink(e);
    struct tree_inode *inode = NULL;
    bool whiteout = false;
    int failed = path && *path ? 0 : -EINVAL;

    if (!failed && s->whiteouts)
        failed = take_whiteout(t, path, &whiteout);
    if (failed || whiteout)
        return failed ? failed : source_add_file(s, NULL, NULL);
    if (target)
        failed = put_link(t, path, target);
    else if (!(failed = make_inode(t, e, &inode)))
        failed = tree_put(t, path, inode, NULL);
    return failed ? failed : source_add_file(s, inode && S_ISREG(inode->mode) ? inode : NULL, NULL);
}

static const char *reason(int failed)
{
    switch (failed) {
    case -ENOTDIR:
        return "a file is in its way";
    case -ENOENT:
        return "what it is a link to is not there";
    case -ELOOP:
        return "symbolic links on its way go round in a circle";
    case -E2BIG:
        return "there are too many files";
    default:
        return "it is not something a file system can hold";
    }
}

int archive_scan(struct source *s, struct tree *t, char *err, size_t n)
{
    struct archive_entry *e;
    struct archive *a = open_tar(s, err, n);
    int got = a ? 1 : -EBADMSG;

    while (got > 0 && (got = next_entry(a, &e, s->name, err, n)) > 0) {
        int failed = take_entry(s, t, e);
        if (failed) {
            const char *path = archive_entry_pathname(e);
            got = error_set(err, n, failed == -E2BIG ? -E2BIG : -EBADMSG, "cannot take %.200s of the archive %s: %s",
                            path ? path : "a nameless entry", s->name, reason(failed));
        }
    }
    archive_read_free(a);
    return got;
}

static int fill_one(struct archive *a, struct tree_inode *inode, const struct sink *sink, const char *name, char *err,
                    size_t n)
{
    const void *data;
    size_t len;
    la_int64_t offset;
    int got, failed = sink->begin(sink->context, inode);

    while (!failed && (got = archive_read_data_block(a, &data, &len, &offset)) != ARCHIVE_EOF) {
        if (got != ARCHIVE_OK && got != ARCHIVE_WARN)
            return fail(a, name, err, n);
        if (offset < 0 || len > inode->size || (uint64_t)offset > inode->size - len)
            return error_set(err, n, -EBADMSG, "the archive %s is damaged: a file is longer than it says", name);
        if (len)
            failed = sink->data(sink->context, data, len, (uint64_t)offset);
    }
    return failed ? failed : sink->end(sink->context);
}

int archive_fill(struct source *s, const struct sink *sink, char *err, size_t n)
{
    struct archive_entry *e;
    struct archive *a = open_tar(s, err, n);
    size_t i = 0;
    int got = a ? 1 : -EBADMSG;

    while (got > 0 && (got = next_entry(a, &e, s->name, err, n)) > 0) {
        struct tree_inode *inode = i < s->n_files ? s->files[i].inode : NULL;
        i++;
        if (!inode || inode->links == 0 || inode->size == 0)
            continue;
        if ((uint64_t)archive_entry_size(e) != inode->size) /* somebody writes to it */
            got = error_set(err, n, -EBADMSG, "the archive %s changed while it was read", s->name);
        else if ((got = fill_one(a, inode, sink, s->name, err, n)) == 0)
            got = 1;
    }
    archive_read_free(a);
    return got;
}

int archive_list(int fd, unsigned most, bool (*visit)(void *context, const char *path), void *context)
{
    struct source s = {.fd = fd, .name = ""};
    struct archive_entry *e;
    struct archive *a = open_tar(&s, NULL, 0);
    int count = 0, got = a ? 1 : -EBADMSG;

    while (got > 0 && (unsigned)count < most && (got = next_entry(a, &e, "", NULL, 0)) > 0) {
        const char *path = archive_entry_pathname(e);
        count++;
        if (path && visit(context, path))
            break;
    }
    archive_read_free(a);
    return got < 0 && count == 0 ? got : count;
}

/* ---- single compressed files ---- */

static struct archive *open_raw(void)
{
    struct archive *a = archive_read_new();

    if (a) {
        take_filters(a);
        archive_read_support_format_raw(a);
    }
    return a;
}

int archive_unpack(const void *data, size_t len, size_t max, char **out, size_t *out_len)
{
    struct archive_entry *e;
    struct archive *a = open_raw();
    size_t room = 0, used = 0;
    char *buffer = NULL;
    la_ssize_t got = -1;

    if (a && archive_read_open_memory(a, data, len) == ARCHIVE_OK && archive_read_next_header(a, &e) == ARCHIVE_OK) {
        do {
            if (used == room) {
                room = room ? 2 * room : 4 * len + CHUNK;
                room = room > max + 1 ? max + 1 : room;
                char *larger = used < room ? realloc(buffer, room) : NULL;
                if (!larger)
                    break;
                buffer = larger;
            }
            got = archive_read_data(a, buffer + used, room - used);
            used += got > 0 ? (size_t)got : 0;
        } while (got > 0);
    }
    archive_read_free(a);
    if (got != 0 || used > max) {
        free(buffer);
        return used > max ? -EFBIG : -EBADMSG;
    }
    *out = buffer;
    *out_len = used;
    return 0;
}

static int write_sparse(int fd, const char *data, size_t len, uint64_t offset)
{
    while (len) {
        size_t part = len < CHUNK ? len : CHUNK;
        if (!bytes_all_zero(data, part)) {
            ssize_t now = pwrite(fd, data, part, (off_t)offset);
            if (now <= 0)
                return now < 0 ? -errno : -EIO;
            part = (size_t)now;
        }
        data += part;
        len -= part;
        offset += part;
    }
    return 0;
}

static int extract_entry(struct archive *a, int to, uint64_t size)
{
    const void *data;
    size_t len;
    la_int64_t offset;
    int got, failed = ftruncate(to, (off_t)size) ? -errno : 0;

    while (!failed && (got = archive_read_data_block(a, &data, &len, &offset)) != ARCHIVE_EOF) {
        if ((got != ARCHIVE_OK && got != ARCHIVE_WARN) || offset < 0 || len > size || (uint64_t)offset > size - len)
            return -EBADMSG;
        failed = write_sparse(to, data, len, (uint64_t)offset);
    }
    return failed;
}

int archive_extract(int fd, const char *name, int (*open_entry)(void *context, const char *path, uint64_t size),
                    void *context, char *err, size_t n)
{
    struct source s = {.fd = fd, .name = name};
    struct archive_entry *e;
    struct archive *a = open_tar(&s, err, n);
    int got = a ? 1 : -EBADMSG;

    while (got > 0 && (got = next_entry(a, &e, name, err, n)) > 0) {
        const char *path = archive_entry_pathname(e);
        int64_t size = archive_entry_size(e);
        if (!path || archive_entry_filetype(e) != AE_IFREG || archive_entry_hardlink(e) || size < 0)
            continue;
        while (strncmp(path, "./", 2) == 0)
            path += 2;
        int to = open_entry(context, path, (uint64_t)size);
        if (to == 0)
            continue;
        int failed = to < 0 ? to : extract_entry(a, to, (uint64_t)size);
        if (to > 0)
            close(to);
        if (failed == -EBADMSG)
            got = fail(a, name, err, n);
        else if (failed)
            got = error_sys(err, n, failed, "cannot take %s out of %s", path, name);
    }
    archive_read_free(a);
    return got;
}

int archive_unpack_file(int from, int to, uint64_t max, char *err, size_t n)
{
    struct archive_entry *e;
    struct archive *a = open_raw();
    uint64_t size = 0;
    char *buffer = malloc(16 * CHUNK);
    int failed = -EBADMSG;

    if (buffer && a && lseek(from, 0, SEEK_SET) == 0 && archive_read_open_fd(a, from, CHUNK) == ARCHIVE_OK &&
        archive_read_next_header(a, &e) == ARCHIVE_OK) {
        la_ssize_t got;
        failed = 0;
        while (!failed && (got = archive_read_data(a, buffer, 16 * CHUNK)) != 0) {
            failed = got < 0                      ? -EBADMSG
                     : size + (uint64_t)got > max ? -EFBIG
                                                  : write_sparse(to, buffer, (size_t)got, size);
            size += got > 0 ? (uint64_t)got : 0;
        }
        if (!failed && ftruncate(to, (off_t)size))
            failed = -errno;
    }
    if (failed == -EBADMSG)
        error_set(err, n, failed, "the compressed file is damaged");
    else if (failed)
        error_sys(err, n, failed, "cannot unpack the file");
    free(buffer);
    archive_read_free(a);
    return failed;
}
