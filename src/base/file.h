/* Whole small files: configurations, metadata, keys. */
#pragma once
#include <stddef.h>
#include <stdint.h>

/* Reads all of `path` into a new NUL-terminated string (the caller frees it); *len may be NULL.  0, or -errno with a
 * sentence; -EFBIG when it is larger than `max`. */
int file_read(const char *path, size_t max, char **data, size_t *len, char *err, size_t n);

/* Replaces `path` as one step: after a crash at any moment there is the old content or the new one, on disk. */
int file_write(const char *path, const void *data, size_t len, unsigned mode, char *err, size_t n);

/* write(2) until all is written, whatever interrupts it.  0/-errno. */
int fd_write_all(int fd, const void *data, size_t len);
/* The same at a place of the file, pwrite(2). */
int fd_write_at(int fd, const void *data, size_t len, uint64_t offset);
/* The same, but for blocks of FD_SPARSE_BLOCK bytes, counted from `data`, of nothing but zeroes: holes stay there. */
#define FD_SPARSE_BLOCK 4096u
int fd_write_sparse(int fd, const void *data, size_t len, uint64_t offset);

/* fsync of the directory that holds `path`: a rename or unlink in it lasts.  0/-errno. */
int file_sync_directory(const char *path);
