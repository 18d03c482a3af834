/*
 * Memory that several machines have in common: a template is a memory's file that nobody writes to any more, and
 * whoever has one reads from it, and gets a page of its own where it writes.
 *
 *      m->base   | template 0 | own | template 0 | template 1 | own | ...     each page is mapped from one file, at its
 * own offset: so an address stays what it was
 *
 * The first write to a page is announced (watch.h), and before it is done the page is copied and mapped anew.  Pages
 * that are read only are never copied, and every mapping of a template is one that cannot be written to.
 *
 * Where the engine's guest writes without announcing it (memory.h), a template is mapped privately instead, and it is
 * the host's kernel that copies a page: template_private.c.
 *
 * Forking a copy of a copy makes a second template, of what that copy had written, and so on: the oldest comes first.
 *
 * Locking: freeze and adopt while nobody accesses memory, the others at any time, on any thread.
 */
#pragma once
#include <stdbool.h>
#include <stdint.h>

#include "memory/memory.h"

#define MEMORY_TEMPLATES_MAX 8u
#define MEMORY_OWN 0xffu /* instead of a template's number */

/* So many pages of the file, one after another, are in that template. */
struct memory_run {
    uint32_t pages, from;
};

/* false: the host does not tell which pages it has copied (memory.h: pagemap). */
static inline bool memory_can_be_common(const struct memory *m)
{
    return memory_is_announced(m) || m->pagemap >= 0;
}

/* What memory holds now becomes a template; what is written from now on goes to fd, an empty file of memory that allows
 * seals, which is taken over.  The engine has to forget by what it writes without announcement, and where the old file
 * is mapped.  0, or -errno: nothing has changed, and fd is still the caller's. */
int memory_freeze(struct memory *m, int fd);

/* Where the pages were at the last freeze: fds are the memory's, *runs is the caller's to free.  The number of
 * templates, or -errno. */
int memory_templates(const struct memory *m, int fds[MEMORY_TEMPLATES_MAX], struct memory_run **runs, uint32_t *n_runs);

/* A memory that nobody has used yet is that of such templates.  They are anybody's: everything is checked.  Takes the
 * descriptors over on success.  0/-errno. */
int memory_adopt(struct memory *m, const int *fds, unsigned n, const struct memory_run *runs, uint32_t n_runs);

/* There is no memory for a page that is about to be written: the machine cannot go on.  Called once; may be called with
 * locks of the engine's held. */
void memory_set_exhausted(struct memory *m, void (*exhausted)(void *opaque), void *opaque);

/* Pages of its own at [gpa, gpa+len), which is RAM: for who maps them elsewhere. */
void memory_own(struct memory *m, uint64_t gpa, uint64_t len);

/* Bytes that only this machine has; and those at most that it reads from templates. */
void memory_usage(const struct memory *m, uint64_t *own, uint64_t *shared);

/* Pages of its own that are what a template has become that template's again.  While nobody writes to memory or keeps
 * an address to write to, be it in another process.  Where memory has been watched for another reason, or writes are
 * not announced: nothing. */
void memory_share_again(struct memory *m);

/* --- for memory.c and watch.c --- */

void memory_templates_destroy(struct memory *m);
bool memory_owns(const struct memory *m, uint64_t gpa, uint64_t len);
/* The contents of [offset, offset+len) of its file, wherever they are; holes take no memory.  0/-errno. */
int memory_peek(const struct memory *m, uint64_t offset, void *out, uint64_t len);
/* The first byte from `offset` on that any file has; m->size: none. */
uint64_t memory_next_data(const struct memory *m, uint64_t offset);
/* Is there something in [offset, offset+len), in a file or not?  false: it is zeroes, and takes no memory. */
bool memory_has_data(const struct memory *m, uint64_t offset, uint64_t len);
/* The pages at [gpa, gpa+len) become its own, as zeroes. */
void memory_own_zeroes(struct memory *m, uint64_t gpa, uint64_t len);
