/* What tests of memory in common share (memory/template.h), whether writes to it are announced or not. */
#pragma once
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmocka.h>

#include "memory/memory.h"
#include "memory/template.h"

#define SIZE (16ull << 20)
#define PAGE 4096u
#define PAGES (SIZE / PAGE)

static inline int new_file(void)
{
    return memfd_create("test-ram", MFD_CLOEXEC | MFD_ALLOW_SEALING);
}

static inline void freeze(struct memory *m)
{
    assert_int_equal(memory_freeze(m, new_file()), 0);
}

/* Into memory that nobody has used: what another process would have. */
static inline struct memory *adopt(struct memory *copy, const struct memory *m)
{
    struct memory_run *runs;
    uint32_t n_runs;
    int fds[MEMORY_TEMPLATES_MAX], n = memory_templates(m, fds, &runs, &n_runs);

    assert_in_range(n, 1, MEMORY_TEMPLATES_MAX);
    for (int i = 0; i < n; i++)
        fds[i] = dup(fds[i]);
    assert_int_equal(memory_adopt(copy, fds, (unsigned)n, runs, n_runs), 0);
    free(runs);
    return copy;
}

static inline uint64_t own_bytes(const struct memory *m)
{
    uint64_t own, shared;

    memory_usage(m, &own, &shared);
    return own;
}
