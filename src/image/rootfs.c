/*
 * An ext4 file system made of a tree and the contents of its sources, by libext2fs: without mounting, without root, and
 * with every file's own owner.
 *
 * mke2fs makes it empty; all names and inodes go in first, then the contents in the order in which the sources have
 * them; e2fsck -D at last checks what was made and gives large directories their index.
 */
#include "image/rootfs.h"

#include <errno.h>
#include <et/com_err.h>
#include <ext2fs/ext2_fs.h>
#include <ext2fs/ext2fs.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/error.h"
#include "base/file.h"

#define BLOCK 4096u
#define LEAST_BYTES (64ull << 20)
#define DEFAULT_BYTES (4ull << 30)
#define MOST_BYTES (16ull << 40)   /* what 32-bit block numbers of 4 KiB reach */
#define SMALL_BYTES (512ull << 20) /* below this a smaller journal */

struct writer {
    ext2_filsys fs;
    struct job *j;
    ext2_file_t file; /* that is being filled */
    uint64_t done, total;
    errcode_t why; /* libext2fs's own, for the sentence */
};

static int code_of(errcode_t e)
{
    switch (e) {
    case 0:
        return 0;
    case EXT2_ET_BLOCK_ALLOC_FAIL:
    case EXT2_ET_INODE_ALLOC_FAIL:
    case EXT2_ET_INLINE_DATA_NO_SPACE:
        return -ENOSPC;
    case EXT2_ET_NO_MEMORY:
        return -ENOMEM;
    default:
        return e > 0 && e < 4096 ? -(int)e : -EIO;
    }
}

static int keep(struct writer *w, errcode_t e)
{
    if (e && !w->why)
        w->why = e;
    return code_of(e);
}

/* ---- names and inodes ---- */

static int file_type(uint32_t mode)
{
    switch (mode & S_IFMT) {
    case S_IFREG:
        return EXT2_FT_REG_FILE;
    case S_IFLNK:
        return EXT2_FT_SYMLINK;
    case S_IFCHR:
        return EXT2_FT_CHRDEV;
    case S_IFBLK:
        return EXT2_FT_BLKDEV;
    default:
        return EXT2_FT_FIFO;
    }
}

static int link_name(struct writer *w, ext2_ino_t parent, const char *name, ext2_ino_t ino, int type)
{
    errcode_t e = ext2fs_link(w->fs, parent, name, ino, type);

    if (e == EXT2_ET_DIR_NO_SPACE) {
        e = ext2fs_expand_dir(w->fs, parent);
        if (!e)
            e = ext2fs_link(w->fs, parent, name, ino, type);
    }
    return keep(w, e);
}

static int write_xattrs(struct writer *w, const struct tree_inode *inode)
{
    struct ext2_xattr_handle *h;
    errcode_t e = inode->xattrs ? ext2fs_xattrs_open(w->fs, inode->number, &h) : 0;

    if (e || !inode->xattrs)
        return keep(w, e);
    for (const struct tree_xattr *x = inode->xattrs; x && !e; x = x->next)
        e = ext2fs_xattr_set(h, x->name, x->value, x->len);
    ext2fs_xattrs_close(&h);
    return keep(w, e);
}

/* Times before 1970 and after 2106 are not worth the second field. */
static uint32_t time_of(int64_t t)
{
    return t < 0 ? 0 : t > INT32_MAX ? INT32_MAX : (uint32_t)t;
}

static void set_attributes(struct ext2_inode *to, const struct tree_inode *from)
{
    to->i_mode = (uint16_t)from->mode;
    to->i_uid = (uint16_t)from->uid;
    to->i_gid = (uint16_t)from->gid;
    ext2fs_set_i_uid_high(*to, from->uid >> 16);
    ext2fs_set_i_gid_high(*to, from->gid >> 16);
    to->i_mtime = to->i_ctime = to->i_atime = time_of(from->mtime);
}

static int update_attributes(struct writer *w, struct tree_inode *inode)
{
    struct ext2_inode disk;
    errcode_t e = ext2fs_read_inode(w->fs, inode->number, &disk);

    if (!e) {
        set_attributes(&disk, inode);
        e = ext2fs_write_inode(w->fs, inode->number, &disk);
    }
    return e ? keep(w, e) : write_xattrs(w, inode);
}

static int make_directory(struct writer *w, struct tree_node *node, ext2_ino_t parent)
{
    errcode_t e = EXT2_ET_DIR_NO_SPACE;
    ext2_ino_t ino = 0;

    if (!node->parent) {
        node->inode->number = EXT2_ROOT_INO;
        return update_attributes(w, node->inode);
    }
    /* mke2fs has made /lost+found. */
    if (parent == EXT2_ROOT_INO && strcmp(node->name, "lost+found") == 0 &&
        ext2fs_namei(w->fs, parent, parent, node->name, &ino) == 0) {
        node->inode->number = ino;
        return update_attributes(w, node->inode);
    }
    for (int i = 0; i < 2 && e == EXT2_ET_DIR_NO_SPACE; i++) {
        if (i)
            e = ext2fs_expand_dir(w->fs, parent);
        if (!i || !e)
            e = ext2fs_mkdir(w->fs, parent, 0, node->name);
    }
    if (!e)
        e = ext2fs_namei(w->fs, parent, parent, node->name, &ino);
    if (e)
        return keep(w, e);
    node->inode->number = ino;
    return update_attributes(w, node->inode);
}

static void encode_device(struct ext2_inode *disk, uint32_t major, uint32_t minor)
{
    if (major < 256 && minor < 256)
        disk->i_block[0] = major << 8 | minor;
    else
        disk->i_block[1] = (minor & 0xff) | major << 8 | (minor & ~0xffu) << 12;
}

/* The empty extent tree that a regular file begins with. */
static errcode_t start_extents(struct writer *w, ext2_ino_t ino, struct ext2_inode *disk)
{
    ext2_extent_handle_t h;
    errcode_t e = ext2fs_extent_open2(w->fs, ino, disk, &h);

    if (!e)
        ext2fs_extent_free(h);
    return e;
}

static int make_inode(struct writer *w, struct tree_inode *inode, ext2_ino_t parent)
{
    struct ext2_inode disk = {.i_links_count = (uint16_t)inode->links};
    ext2_ino_t ino;
    errcode_t e = ext2fs_new_inode(w->fs, parent, (int)inode->mode, NULL, &ino);

    if (e)
        return keep(w, e);
    ext2fs_inode_alloc_stats2(w->fs, ino, +1, 0);
    inode->number = ino;
    set_attributes(&disk, inode);
    if (S_ISREG(inode->mode))
        e = start_extents(w, ino, &disk);
    else if (S_ISCHR(inode->mode) || S_ISBLK(inode->mode))
        encode_device(&disk, inode->major, inode->minor);
    if (!e)
        e = ext2fs_write_new_inode(w->fs, ino, &disk);
    return e ? keep(w, e) : write_xattrs(w, inode);
}

/* Symbolic links are made with their first name at once. */
static int make_symlink(struct writer *w, struct tree_node *node, ext2_ino_t parent)
{
    errcode_t e = EXT2_ET_DIR_NO_SPACE;
    ext2_ino_t ino = 0;

    for (int i = 0; i < 2 && e == EXT2_ET_DIR_NO_SPACE; i++) {
        if (i)
            e = ext2fs_expand_dir(w->fs, parent);
        if (!i || !e)
            e = ext2fs_symlink(w->fs, parent, 0, node->name, node->inode->target);
    }
    if (!e)
        e = ext2fs_namei(w->fs, parent, parent, node->name, &ino);
    if (e)
        return keep(w, e);
    node->inode->number = ino;
    struct ext2_inode disk;
    if ((e = ext2fs_read_inode(w->fs, ino, &disk)))
        return keep(w, e);
    set_attributes(&disk, node->inode);
    disk.i_links_count = (uint16_t)node->inode->links;
    return keep(w, ext2fs_write_inode(w->fs, ino, &disk));
}

static int write_node(struct tree_node *node, void *context)
{
    struct writer *w = context;
    struct tree_inode *inode = node->inode;
    ext2_ino_t parent = node->parent ? node->parent->inode->number : 0;
    int failed = 0;

    if (S_ISDIR(inode->mode))
        return make_directory(w, node, parent);
    if (inode->links > 65000) /* EXT4_LINK_MAX */
        return -EMLINK;
    if (S_ISLNK(inode->mode) && !inode->number)
        return make_symlink(w, node, parent);
    if (!inode->number)
        failed = make_inode(w, inode, parent);
    return failed ? failed : link_name(w, parent, node->name, inode->number, file_type(inode->mode));
}

/* ---- contents ---- */

static int fill_begin(void *context, struct tree_inode *inode)
{
    struct writer *w = context;

    return keep(w, ext2fs_file_open(w->fs, inode->number, EXT2_FILE_WRITE, &w->file));
}

static int fill_data(void *context, const void *data, size_t len, uint64_t offset)
{
    struct writer *w = context;
    errcode_t e = ext2fs_file_llseek(w->file, offset, EXT2_SEEK_SET, NULL);

    while (!e && len) {
        unsigned now = len < (1u << 30) ? (unsigned)len : 1u << 30, written = 0;
        e = ext2fs_file_write(w->file, data, now, &written);
        data = (const char *)data + written;
        len -= written;
        w->done += written;
    }
    job_progress(w->j, w->done, w->total);
    return keep(w, e);
}

static int fill_end(void *context)
{
    struct writer *w = context;
    errcode_t e = ext2fs_file_close(w->file);

    w->file = NULL;
    return keep(w, e);
}

/* A file that ends with a hole is as long as it says. */
static int set_size(struct tree_node *node, void *context)
{
    struct writer *w = context;
    struct tree_inode *inode = node->inode;
    struct ext2_inode disk;

    if (!S_ISREG(inode->mode) || inode->size == 0)
        return 0;
    errcode_t e = ext2fs_read_inode(w->fs, inode->number, &disk);
    if (!e && EXT2_I_SIZE(&disk) != inode->size) {
        e = ext2fs_inode_size_set(w->fs, &disk, (ext2_off64_t)inode->size);
        if (!e)
            e = ext2fs_write_inode(w->fs, inode->number, &disk);
    }
    return keep(w, e);
}

/* ---- the whole ---- */

struct totals {
    uint64_t bytes, inodes;
};

static int add_node(struct tree_node *node, void *context)
{
    struct totals *t = context;

    t->inodes++;
    if (S_ISREG(node->inode->mode) &&
        !__builtin_add_overflow(t->bytes, node->inode->size / node->inode->links, &t->bytes))
        t->bytes += BLOCK;
    return t->bytes > MOST_BYTES ? -EFBIG : 0;
}

/* mke2fs reads a configuration of the system's: the features of an image shall not depend on the host that made it.
 * Without lazy initialization no thread of the guest's kernel writes inode tables at the first boots; the journal
 * consists of the zeros that a new file has. */
static const char configuration[] =
    "[defaults]\n"
    "  base_features = sparse_super,large_file,filetype,resize_inode,dir_index,ext_attr\n"
    "  default_mntopts = acl,user_xattr\n"
    "  enable_periodic_fsck = 0\n"
    "  blocksize = 4096\n"
    "  inode_size = 256\n"
    "  inode_ratio = 16384\n"
    "  lazy_itable_init = 0\n"
    "[fs_types]\n"
    "  ext4 = {\n"
    "    features = has_journal,extent,huge_file,flex_bg,metadata_csum,64bit,dir_nlink,"
    "extra_isize\n"
    "  }\n";

static int format(struct job *j, const char *path, uint64_t bytes, uint64_t inodes, char *err, size_t n)
{
    char config[IMAGE_PATH_SIZE + 32], inode_count[32];
    int fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    int failed = fd < 0 || ftruncate(fd, (off_t)bytes) ? error_sys(err, n, -errno, "cannot make %s", path) : 0;

    if (fd >= 0)
        close(fd);
    snprintf(config, sizeof config, "MKE2FS_CONFIG=%s/mke2fs.conf", j->draft);
    if (!failed)
        failed = file_write(config + strlen("MKE2FS_CONFIG="), configuration, strlen(configuration), 0600, err, n);
    if (failed)
        return failed;
    /* As many inodes as the size makes usual, or twice what is needed. */
    uint64_t usual = bytes / 16384;
    snprintf(inode_count, sizeof inode_count, "%" PRIu64, usual > 2 * inodes + 1024 ? usual : 2 * inodes + 1024);
    const char *const argv[] = {"env",
                                config,
                                "PATH=/usr/sbin:/usr/bin:/sbin:/bin",
                                "mke2fs",
                                "-q",
                                "-F",
                                "-t",
                                "ext4",
                                "-L",
                                "root",
                                "-m",
                                "1",
                                "-N",
                                inode_count,
                                "-J",
                                bytes < SMALL_BYTES ? "size=8" : "size=32",
                                "-E",
                                "nodiscard,root_owner=0:0,lazy_journal_init=1",
                                path,
                                NULL};
    failed = job_run(j, &(struct job_tool){.argv = argv}, err, n);
    unlink(config + strlen("MKE2FS_CONFIG="));
    return failed;
}

/* 1 is "there was something to do", which is what it was asked for. */
static int check(struct job *j, const char *path, char *err, size_t n)
{
    int status = 0;
    const char *const argv[] = {"env", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "e2fsck", "-fyD", path, NULL};
    int failed = job_run(j, &(struct job_tool){.argv = argv, .status = &status}, err, n);

    if (!failed && status > 1)
        return error_set(err, n, -EIO, "the new file system is damaged (e2fsck ends with %d)", status);
    return failed;
}

/* mke2fs reserves room on the host for what it makes zeros of: give it back.  A host that cannot loses but room. */
static void give_back(const char *path)
{
    struct stat st;
    int fd = open(path, O_RDWR | O_CLOEXEC);

    if (fd < 0 || fstat(fd, &st))
        st.st_size = 0;
    for (off_t data = 0, hole; data < st.st_size && (hole = lseek(fd, data, SEEK_HOLE)) >= 0 && hole < st.st_size;) {
        data = lseek(fd, hole, SEEK_DATA);
        data = data < 0 ? st.st_size : data;
        if (fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, hole, data - hole))
            break;
    }
    if (fd >= 0)
        close(fd);
}

static int fill_all(struct writer *w, struct source *sources, unsigned n_sources, char *err, size_t n)
{
    const struct sink sink = {fill_begin, fill_data, fill_end, w};
    int failed = 0;

    for (unsigned i = 0; i < n_sources && !failed; i++) {
        err[0] = 0;
        failed = source_fill(&sources[i], &sink, err, n);
        if (w->file)
            ext2fs_file_close(w->file);
        w->file = NULL;
    }
    return failed;
}

static int write_all(struct writer *w, struct tree *t, struct source *sources, unsigned n_sources, char *err, size_t n)
{
    err[0] = 0;
    int failed = tree_walk(t->root, write_node, w);

    if (!failed)
        failed = fill_all(w, sources, n_sources, err, n);
    if (!failed)
        failed = tree_walk(t->root, set_size, w);
    if (failed == -ENOSPC)
        error_set(err, n, failed, "it does not fit into the disk: give a larger --size");
    else if (failed && (w->why || !err[0]))
        error_set(err, n, failed, "cannot write the file system: %s",
                  w->why ? error_message(w->why) : strerror(-failed));
    return failed;
}

static int write_tree(struct job *j, const char *path, struct tree *t, struct source *sources, unsigned n_sources,
                      uint64_t total, char *err, size_t n)
{
    struct writer w = {.j = j, .total = total};
    errcode_t e = ext2fs_open2(path, NULL, EXT2_FLAG_RW | EXT2_FLAG_64BITS, 0, 0, unix_io_manager, &w.fs);

    if (!e)
        e = ext2fs_read_bitmaps(w.fs);
    int failed = e ? error_set(err, n, -EIO, "cannot open the new file system: %s", error_message(e))
                   : write_all(&w, t, sources, n_sources, err, n);
    if (w.fs) {
        e = failed ? 0 : ext2fs_flush(w.fs);
        if (e)
            failed = error_set(err, n, code_of(e), "cannot write the file system: %s", error_message(e));
        ext2fs_close_free(&w.fs);
    }
    return failed;
}

int rootfs_make(struct job *j, const char *path, uint64_t bytes, struct source *sources, unsigned n_sources, char *err,
                size_t n)
{
    struct totals totals = {0};
    struct tree t;
    int failed = tree_create(&t);

    if (failed)
        error_sys(err, n, failed, "cannot make a file system");
    for (unsigned i = 0; i < n_sources && !failed; i++) {
        t.layer = i;
        failed = source_scan(&sources[i], &t, err, n);
    }
    if (!failed && tree_walk(t.root, add_node, &totals))
        failed = error_set(err, n, -EFBIG, "it is larger than the %llu T that a disk may have", MOST_BYTES >> 40);
    if (!failed && !bytes)
        bytes = 2 * totals.bytes + (512ull << 20) > DEFAULT_BYTES ? 2 * totals.bytes + (512ull << 20) : DEFAULT_BYTES;
    if (!failed && (bytes < LEAST_BYTES || bytes > MOST_BYTES))
        failed = error_set(err, n, -ERANGE, "the size of a disk is from %lluM to %lluT", LEAST_BYTES >> 20,
                           MOST_BYTES >> 40);
    if (!failed)
        failed = format(j, path, bytes & ~(uint64_t)(BLOCK - 1), totals.inodes, err, n);
    if (!failed)
        failed = write_tree(j, path, &t, sources, n_sources, totals.bytes, err, n);
    if (!failed)
        failed = check(j, path, err, n);
    if (!failed)
        give_back(path);
    tree_destroy(&t);
    return failed;
}
