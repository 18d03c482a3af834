/*
 * Which pages of a private mapping of a file are this process's own: those that have been written to, of which the
 * host's kernel has made copies.  /proc/self/pagemap says so, eight bytes for a page (Linux,
 * Documentation/admin-guide/mm/pagemap.rst).
 */
#pragma once
#include <stdbool.h>
#include <stdint.h>

#define PAGEMAP_PAGES 512u /* asked about at a time */

/* Answers about an address range, asked one after another.  What cannot be told is said to be written to. */
struct pagemap {
    int fd;
    uint64_t first, n; /* pages of the address space that `entries` are of */
    uint64_t entries[PAGEMAP_PAGES];
};

/* While there are names; it stays this process's as it is now.  The descriptor, or -errno. */
int pagemap_open(void);

static inline void pagemap_begin(struct pagemap *p, int fd)
{
    p->fd = fd;
    p->first = p->n = 0;
}

/* Has the page at that address, of a private mapping of a file, been written to? */
bool pagemap_is_written(struct pagemap *p, const void *address);
