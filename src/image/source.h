/*
 * Where the files of a root file system come from: archives (tar, also compressed by gzip, xz or zstd) and directories
 * of the host.  Each is gone through twice: once to put all names into a tree (tree.h), once to give the contents of
 * those regular files that are still in the tree when all sources have been read.
 */
#pragma once
#include "image/tree.h"

/* Takes contents: begin, data (ascending offsets; what is left out is zeros), end, for one file after the other.  Each
 * returns 0 or -errno, which ends the reading. */
struct sink {
    int (*begin)(void *context, struct tree_inode *inode);
    int (*data)(void *context, const void *data, size_t len, uint64_t offset);
    int (*end)(void *context);
    void *context;
};

struct source_file {
    struct tree_inode *inode; /* NULL: not a regular file */
    char *path;               /* below the directory; NULL for an archive, whose entries are counted */
};

struct source {
    int fd; /* an archive: the file; a directory: itself.  The caller's. */
    bool directory;
    bool whiteouts;   /* an OCI layer: ".wh." names remove what lower layers have */
    const char *name; /* for sentences */
    struct source_file *files;
    size_t n_files, room;
};

int source_scan(struct source *s, struct tree *t, char *err, size_t n);
int source_fill(struct source *s, const struct sink *sink, char *err, size_t n);
void source_free(struct source *s); /* what it has allocated */

/* For source.c's parts. */
int source_add_file(struct source *s, struct tree_inode *inode, const char *path);
int archive_scan(struct source *s, struct tree *t, char *err, size_t n);
int archive_fill(struct source *s, const struct sink *sink, char *err, size_t n);

/* Calls visit with the names of the first entries of a tar archive, compressed or not, until it returns true; at most
 * `most`.  Returns how many there were, or -errno when it is none. */
int archive_list(int fd, unsigned most, bool (*visit)(void *context, const char *path), void *context);

/* Regular files of a tar archive that are wanted: open_entry returns a descriptor to write the entry to (closed
 * here), 0 to leave it out, or -errno to stop.  Zeros become holes. */
int archive_extract(int fd, const char *name, int (*open_entry)(void *context, const char *path, uint64_t size),
                    void *context, char *err, size_t n);

/* Decompresses (gzip, xz, zstd, or nothing) at most `max` bytes of data[0..len).  The caller frees *out. */
int archive_unpack(const void *data, size_t len, size_t max, char **out, size_t *out_len);
/* The same from one file to another, for disks; zeros become holes. */
int archive_unpack_file(int from, int to, uint64_t max, char *err, size_t n);
