/* What template.c, template_private.c and template_share.c have in common. */
#pragma once
#include <pthread.h>

#include "base/simd.h"
#include "memory/template.h"

#define PAGE_SHIFT 12
#define PAGE (1u << PAGE_SHIFT)
#define BATCH 16u       /* pages copied at a time */
#define RUNS_MOST 1024u /* pieces of what a machine has written, when that becomes a template: each is a mapping */

struct memory_templates {
    pthread_mutex_t lock; /* of those who make pages their own: `from` changes with it held */
    int fd[MEMORY_TEMPLATES_MAX];
    unsigned n;
    uint64_t n_pages;
    struct memory_run *runs; /* where the pages were at the last freeze */
    uint32_t n_runs;
    unsigned pieces;       /* mappings of its own, at most */
    uint64_t next, length; /* the last one ended there, and was so long */
    void (*exhausted)(void *opaque);
    void *opaque;
    uint8_t buffer[BATCH * PAGE]; /* of the holder of the lock */
    _Atomic uint8_t from[];       /* by page of the file: a template's number or MEMORY_OWN; read at any time */
};

static inline uint8_t *at(const struct memory *m, uint64_t page)
{
    uint64_t offset = page << PAGE_SHIFT;
    return m->base + (offset < m->low_size ? offset : offset - m->low_size + MEMORY_HOLE_END);
}

SIMD_GENERAL static inline uint64_t page_of(const struct memory *m, uint64_t gpa)
{
    return memory_offset(m, gpa) >> PAGE_SHIFT;
}

SIMD_GENERAL static inline uint8_t from(const struct memory_templates *t, uint64_t page)
{
    return atomic_load_explicit(&t->from[page], memory_order_acquire);
}

/* All pages are from there; NULL: there is no memory. */
struct memory_templates *templates_create(const struct memory *m, uint8_t where);
/* There are templates: nothing is asked of the host's kernel ahead of writes, and writes are announced if they can be.
 */
void templates_begin(struct memory *m);
/* Pages [first, end), inside one of the parts of RAM, become the memory's own, with the contents that they have or as
 * zeroes.  The lock is held, or nobody accesses memory.  0/-ENOMEM: they are what they were. */
int templates_own(struct memory *m, uint64_t first, uint64_t end, bool contents);
/* Pages [first, end) are read from that template's file.  false: errno. */
bool templates_map(const struct memory *m, int fd, uint64_t first, uint64_t end);
/* The first byte from `offset` on that a file has, or `none`. */
uint64_t templates_next_data(int fd, uint64_t offset, uint64_t none);

/* --- where writes are not announced (template_private.c) --- */

/* Nobody accesses memory: what was written to templates' pages is put into the memory's file, and they are its own.
 * 0/-ENOMEM. */
int private_gather(struct memory *m);
/* So many of those are there. */
uint64_t private_pages(const struct memory *m);
