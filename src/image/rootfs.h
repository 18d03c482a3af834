/* Root file systems: ext4 made of a tree (rootfs.c), and read where they are, in a disk (extfs.c). */
#pragma once
#include "image/job.h"
#include "image/source.h"

/*
 * Makes `path` an ext4 of `bytes` (0: as large as what is in it, and room) with what the sources have; the disk has no
 * partitions.  -ENOSPC when it does not fit.
 */
int rootfs_make(struct job *j, const char *path, uint64_t bytes, struct source *sources, unsigned n_sources, char *err,
                size_t n);
