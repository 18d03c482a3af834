/*
 * Reading files out of an ext2, 3 or 4 file system where it lies, in a disk: by libext2fs, without mounting.  Symbolic
 * links are followed inside it; its root has no parent.
 */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct extfs;

/* The file system that begins at `offset` of the file; read-only.  NULL with a sentence. */
struct extfs *extfs_open(const char *path, uint64_t offset, char *err, size_t n);
void extfs_close(struct extfs *f); /* NULL: nothing */

bool extfs_has(struct extfs *f, const char *path);
bool extfs_is_directory(struct extfs *f, const char *path);

/* A regular file of at most `max` bytes, NUL-terminated; the caller frees *data.  -ENOENT, -EFBIG, -EIO. */
int extfs_read(struct extfs *f, const char *path, size_t max, char **data, size_t *len);

/* Its first bytes: returns how many (<= len), or -errno. */
int extfs_peek(struct extfs *f, const char *path, void *data, size_t len);

/* Writes the regular file, of at most `max` bytes, to `to`. */
int extfs_copy(struct extfs *f, const char *path, uint64_t max, int to);

/* Calls visit for each name in the directory, but . and ..; at most `most` names. */
int extfs_list(struct extfs *f, const char *path, unsigned most, void (*visit)(void *context, const char *name),
               void *context);
