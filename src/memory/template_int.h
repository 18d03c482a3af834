/* What template.c and template_share.c have in common. */
#pragma once
#include <pthread.h>

#include "base/simd.h"
#include "memory/template.h"

#define PAGE_SHIFT 12
#define PAGE (1u << PAGE_SHIFT)
#define BATCH 16u /* pages copied at a time */

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
/* There are templates: nothing is asked of the host's kernel ahead of writes, and all writes are announced. */
void templates_begin(struct memory *m);
/* The first byte from `offset` on that a file has, or `none`. */
uint64_t templates_next_data(int fd, uint64_t offset, uint64_t none);
