#include "image/extfs.h"

#include <errno.h>
#include <et/com_err.h>
#include <ext2fs/ext2_fs.h>
#include <ext2fs/ext2fs.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/file.h"

#define BUFFER (1u << 20)

struct extfs {
    ext2_filsys fs;
};

static int code_of(errcode_t e)
{
    if (e == 0)
        return 0;
    if (e == EXT2_ET_FILE_NOT_FOUND)
        return -ENOENT;
    if (e == EXT2_ET_NO_DIRECTORY)
        return -ENOTDIR;
    return e > 0 && e < 4096 ? -(int)e : -EIO;
}

struct extfs *extfs_open(const char *path, uint64_t offset, char *err, size_t n)
{
    struct extfs *f = calloc(1, sizeof *f);
    char options[64];
    errcode_t e;

    if (!f) {
        error_sys(err, n, -ENOMEM, "cannot read %s", path);
        return NULL;
    }
    snprintf(options, sizeof options, "offset=%" PRIu64, offset);
    e = ext2fs_open2(path, options, EXT2_FLAG_64BITS | EXT2_FLAG_SOFTSUPP_FEATURES, 0, 0, unix_io_manager, &f->fs);
    if (!e)
        return f;
    error_set(err, n, -EBADMSG, "cannot read the file system: %s", error_message(e));
    free(f);
    return NULL;
}

void extfs_close(struct extfs *f)
{
    if (!f)
        return;
    ext2fs_close_free(&f->fs);
    free(f);
}

static int find(struct extfs *f, const char *path, ext2_ino_t *ino, struct ext2_inode *inode)
{
    errcode_t e = ext2fs_namei_follow(f->fs, EXT2_ROOT_INO, EXT2_ROOT_INO, path, ino);

    if (!e)
        e = ext2fs_read_inode(f->fs, *ino, inode);
    return e ? code_of(e) : 0;
}

bool extfs_has(struct extfs *f, const char *path)
{
    struct ext2_inode inode = {0};
    ext2_ino_t ino = 0;

    return find(f, path, &ino, &inode) == 0;
}

bool extfs_is_directory(struct extfs *f, const char *path)
{
    struct ext2_inode inode = {0};
    ext2_ino_t ino = 0;

    return find(f, path, &ino, &inode) == 0 && LINUX_S_ISDIR(inode.i_mode);
}

static int open_file(struct extfs *f, const char *path, uint64_t max, ext2_file_t *file, uint64_t *size)
{
    struct ext2_inode inode = {0};
    ext2_ino_t ino = 0;
    int failed = find(f, path, &ino, &inode);

    if (failed)
        return failed;
    if (!LINUX_S_ISREG(inode.i_mode))
        return -EINVAL;
    *size = EXT2_I_SIZE(&inode);
    if (*size > max)
        return -EFBIG;
    return code_of(ext2fs_file_open(f->fs, ino, 0, file));
}

int extfs_read(struct extfs *f, const char *path, size_t max, char **data, size_t *len)
{
    ext2_file_t file;
    uint64_t size;
    unsigned got = 0;
    int failed = open_file(f, path, max < UINT32_MAX ? max : UINT32_MAX - 1, &file, &size);

    if (failed)
        return failed;
    char *buffer = malloc(size + 1);
    if (!buffer)
        failed = -ENOMEM;
    else
        failed = code_of(ext2fs_file_read(file, buffer, (unsigned)size, &got));
    ext2fs_file_close(file);
    if (!failed && got != size)
        failed = -EIO;
    if (failed) {
        free(buffer);
        return failed;
    }
    buffer[size] = 0;
    *data = buffer;
    if (len)
        *len = size;
    return 0;
}

int extfs_peek(struct extfs *f, const char *path, void *data, size_t len)
{
    ext2_file_t file;
    uint64_t size;
    unsigned got = 0;
    int failed = open_file(f, path, UINT64_MAX, &file, &size);

    if (failed)
        return failed;
    failed = code_of(ext2fs_file_read(file, data, (unsigned)len, &got));
    ext2fs_file_close(file);
    return failed ? failed : (int)got;
}

int extfs_copy(struct extfs *f, const char *path, uint64_t max, int to)
{
    ext2_file_t file;
    uint64_t size, done = 0;
    int failed = open_file(f, path, max, &file, &size);

    if (failed)
        return failed;
    char *buffer = malloc(BUFFER);
    if (!buffer)
        failed = -ENOMEM;
    while (!failed && done < size) {
        unsigned got = 0;
        failed = code_of(ext2fs_file_read(file, buffer, BUFFER, &got));
        if (!failed)
            failed = got ? fd_write_all(to, buffer, got) : -EIO;
        done += got;
    }
    free(buffer);
    ext2fs_file_close(file);
    return failed;
}

struct listing {
    void (*visit)(void *, const char *);
    void *context;
    unsigned left;
};

static int visit_entry(struct ext2_dir_entry *e, int offset, int blocksize, char *buf, void *private)
{
    struct listing *l = private;
    char name[EXT2_NAME_LEN + 1];
    int len = ext2fs_dirent_name_len(e);

    if (l->left == 0)
        return DIRENT_ABORT;
    l->left--;
    memcpy(name, e->name, (size_t)len);
    name[len] = 0;
    if (strcmp(name, ".") != 0 && strcmp(name, "..") != 0 && !memchr(name, '/', (size_t)len))
        l->visit(l->context, name);
    return 0;
}

int extfs_list(struct extfs *f, const char *path, unsigned most, void (*visit)(void *context, const char *name),
               void *context)
{
    struct listing l = {visit, context, most};
    struct ext2_inode inode = {0};
    ext2_ino_t ino = 0;
    int failed = find(f, path, &ino, &inode);

    if (!failed && !LINUX_S_ISDIR(inode.i_mode))
        failed = -ENOTDIR;
    return failed ? failed : code_of(ext2fs_dir_iterate(f->fs, ino, 0, NULL, visit_entry, &l));
}
