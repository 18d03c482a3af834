/*
 * Writes an initramfs: the cpio format "newc" that the kernel unpacks (Documentation/driver-api/early-userspace/
 * buffer-format.rst of the kernel).
 *
 *      "070701" ino mode uid gid nlink mtime size devmajor devminor rdevmajor rdevminor namesize check
 *                                          thirteen times eight hexadecimal digits
 *      name NUL, zeros up to a multiple of 4; content, zeros up to a multiple of 4
 *      ... and at last an entry named TRAILER!!!
 *
 * Everything belongs to root and has the time 0, so that the same content gives the same bytes.  The first failure is
 * kept and later calls do nothing: cpio_end tells it.
 */
#pragma once
#include <stddef.h>
#include <stdint.h>

struct cpio {
    int fd;          /* where to, the caller's; written from its present position on, in order */
    int error;       /* 0, or the -errno of the first failure */
    uint32_t inode;  /* of the last entry */
    uint64_t offset; /* bytes so far */
    size_t used;     /* bytes that wait in buffer */
    char buffer[16384];
};

void cpio_begin(struct cpio *c, int fd);

/*
 * One entry each.  `path` is relative to the root, without a leading slash, at most 4095 bytes; `mode` has the
 * permission bits only.  Directories are not made by themselves: give each before what is in it.  The same path given
 * again replaces the content of a file; for a directory it is harmless.
 */
void cpio_directory(struct cpio *c, const char *path, unsigned mode);
void cpio_file(struct cpio *c, const char *path, unsigned mode, const void *data, size_t len);
void cpio_symlink(struct cpio *c, const char *path, const char *target);

/* A file with what `from` (a regular file's descriptor) holds, from its beginning; less than 4 GiB. */
void cpio_file_from(struct cpio *c, const char *path, unsigned mode, int from);

/* A device; `mode` with S_IFCHR or S_IFBLK. */
void cpio_node(struct cpio *c, const char *path, unsigned mode, unsigned major, unsigned minor);

/* The trailer, padded so that another archive may follow in the same file.  0, or the -errno of the first failure:
 * -EFBIG a file of 4 GiB or more, -EIO one that became shorter while it was copied. */
int cpio_end(struct cpio *c);
