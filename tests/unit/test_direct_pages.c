/* The table of what is mapped in a process for guest code (engine/soft/direct_pages.c), against one that is simpler. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "engine/soft/direct.h"

enum { REGIONS = 60, PAGES = REGIONS * 512, STEPS = 200000 };
static uint64_t model[PAGES]; /* what is mapped at each page, in regions that are far apart */
static struct direct_slot slot;
static uint32_t seed = 1;

static unsigned below(unsigned n)
{
    seed = seed * 1664525 + 1013904223;
    return (seed >> 8) % n;
}

static uint64_t address(unsigned page)
{
    return (uint64_t)(page / 512 * 977 + 3) * MIRROR_LARGE + page % 512 * 4096;
}

static void set(unsigned page, uint64_t value)
{
    struct region *g = pages_new_region(&slot, address(page));
    assert_non_null(g);
    pages_set(&slot, g, &g->page[page % 512], value);
    model[page] = value;
}

static void drop(unsigned region)
{
    struct region *g = pages_region(&slot, address(region * 512));
    if (g)
        pages_drop(&slot, g);
    memset(model + region * 512, 0, 512 * sizeof *model);
}

/* What the host's kernel has: pages that follow one another here and in memory, with the same rights, are one. */
static void compare(void)
{
    unsigned pages = 0, mappings = 0;
    for (unsigned i = 0; i < PAGES; i++) {
        assert_int_equal(pages_find(&slot, address(i)), model[i]);
        pages += !!model[i];
        mappings += model[i] && !(i % 512 && model[i - 1] && model[i - 1] + 4096 == model[i]);
    }
    assert_int_equal(slot.n_pages, pages);
    assert_int_equal(pages_mappings(&slot), mappings);
}

static void as_a_simpler_one(void **state)
{
    for (unsigned i = 0; i < STEPS; i++) {
        const unsigned page = below(PAGES), what = below(100);
        if (what < 60)
            set(page, (page + below(3)) * 4096ull | below(2));
        else if (what < 90)
            set(page, 0);
        else if (what < 99)
            for (unsigned k = page; k < PAGES && k < page + 20; k++)
                set(k, k * 4096ull | 1);
        else if (below(10) == 0)
            drop(page / 512);
        if (i % 1000 == 0)
            compare();
    }
    compare();
    for (unsigned i = 0; i < REGIONS; i++)
        drop(i);
    assert_int_equal(slot.n_regions, 0);
    compare();
    pages_free(&slot);
}

/* Regions whose places collide are found after any of them has gone. */
static void all_regions(void **state)
{
    struct region *g;
    for (unsigned i = 0; i < MIRROR_REGIONS; i++)
        assert_non_null(pages_new_region(&slot, (uint64_t)i * i * MIRROR_LARGE));
    assert_null(pages_new_region(&slot, (uint64_t)MIRROR_REGIONS * MIRROR_REGIONS * MIRROR_LARGE));
    for (unsigned i = 0; i < MIRROR_REGIONS; i += 3)
        pages_drop(&slot, pages_region(&slot, (uint64_t)i * i * MIRROR_LARGE));
    for (unsigned i = 0; i < MIRROR_REGIONS; i++)
        assert_true(!pages_region(&slot, (uint64_t)i * i * MIRROR_LARGE) == (i % 3 == 0));
    unsigned n = 0;
    for (unsigned i = 0; (g = pages_next(&slot, &i)); n++)
        ;
    assert_int_equal(n, slot.n_regions);
    pages_free(&slot);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(as_a_simpler_one),
        cmocka_unit_test(all_regions),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
