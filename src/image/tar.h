/*
 * Writes tar archives (POSIX pax), compressed by zstd: a header block of 512 bytes a file, its content, padded.
 *
 * A sparse file is written as GNU tar's format 1.0 (tar manual, "Storing Sparse Files"): a pax header with
 * GNU.sparse.*, then as content the map (decimal numbers, one a line: how many extents, then offset and length of each;
 * padded) and the extents' data one after the other.
 */
#pragma once
#include <stdint.h>
#include <zstd.h>

struct tar {
    int fd; /* where to, the caller's */
    int failed;
    ZSTD_CCtx *zstd;
    uint64_t used; /* bytes in the present block of 512 */
    void (*progress)(void *context, uint64_t bytes);
    void *context;
    uint64_t bytes; /* of content so far */
    char buffer[65536];
};

int tar_begin(struct tar *t, int fd);
/* A regular file with the content of `from`, mode 0644; with its holes and zeros left out if `sparse`. */
void tar_file(struct tar *t, const char *name, int from, int64_t mtime, int sparse);
/* 0, or the first failure's -errno. */
int tar_end(struct tar *t);
