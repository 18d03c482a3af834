/* The table of what is mapped in a process for guest code (engine/soft/direct_pages.c), against one that is simpler. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
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

/* --- the guest's entries ----------------------------------------------------------------------------------- */

static struct soft_vcpu vcpu;
static struct engine engine;
enum { MARKED = PTE_P | PTE_W | PTE_U | PTE_A };
#define AT (3 * MIRROR_LARGE + 7 * 4096)

static uint64_t *table(unsigned i)
{
    return (uint64_t *)(engine.config.memory->base + 0x10000) + i * 512;
}

static void make_tables(void)
{
    assert_int_equal(memory_create(&engine.config.memory, 4 << 20), 0);
    vcpu.engine = &engine;
    vcpu.cpu.cr3 = 0x10000;
    table(0)[0] = 0x11000 | MARKED;
    table(1)[0] = 0x12000 | MARKED;
    table(2)[3] = 0x13000 | MARKED;
    table(3)[7] = 0x200000 | MARKED | PTE_D;
}

static bool remember(struct region *g, uint64_t page)
{
    return pages_remember(&vcpu, g, AT, page, 4096);
}

/* What a flush will compare with has to be what has been mapped, whatever the entry was before and is afterwards. */
static void what_is_remembered_is_what_is_mapped(void **state)
{
    make_tables();
    struct region *g = pages_new_region(&slot, AT);
    const uint64_t entry = table(3)[7], page = 0x200000 | PROT_READ, writable = page | PROT_WRITE;
    assert_true(pages_of_large(g)); /* for all that is known */
    assert_true(remember(g, page));
    assert_false(pages_of_large(g));
    assert_true(remember(g, writable));
    assert_true(remember(g, writable | PROT_EXEC));
    const uint64_t others[] = {0, entry & ~1ull, entry + 4096, entry & ~(uint64_t)PTE_U, entry & ~(uint64_t)PTE_A};
    for (unsigned i = 0; i < sizeof others / sizeof *others; i++) {
        table(3)[7] = others[i];
        assert_false(remember(g, page));
    }
    const uint64_t less[] = {entry & ~(uint64_t)PTE_W, entry & ~(uint64_t)PTE_D};
    for (unsigned i = 0; i < sizeof less / sizeof *less; i++) {
        table(3)[7] = less[i];
        assert_true(remember(g, page));
        assert_false(remember(g, writable));
    }
    table(3)[7] = entry | PTE_NX;
    assert_true(remember(g, writable));
    assert_false(remember(g, page | PROT_EXEC));
    table(3)[7] = entry;
    table(1)[0] &= ~(uint64_t)PTE_W;
    assert_false(remember(g, writable));
    assert_false(pages_same_path(&vcpu, g)); /* of which others in the region may be */
    assert_true(pages_of_large(g));
    pages_free(&slot);
    memory_destroy(engine.config.memory);
}

static void of_large_pages_too(void **state)
{
    make_tables();
    struct region *g = pages_new_region(&slot, AT);
    const uint64_t page = 0x200000 | 7 * 4096 | PROT_READ;
    table(2)[3] = 0x200000 | MARKED | PTE_PS;
    assert_true(remember(g, page));
    assert_true(pages_of_large(g));
    assert_false(remember(g, page | PROT_WRITE));
    assert_false(remember(g, page + 4096));
    assert_true(pages_remember(&vcpu, g, 3 * MIRROR_LARGE, 0x200000 | PROT_READ, MIRROR_LARGE));
    assert_true(pages_same_path(&vcpu, g));
    table(1)[0] = 0x40000000 | MARKED | PTE_PS | PTE_D;
    const uint64_t huge = 0x40000000 | AT | PROT_READ | PROT_WRITE;
    assert_true(remember(g, huge));
    assert_true(pages_remember(&vcpu, g, 3 * MIRROR_LARGE, huge & -MIRROR_LARGE, MIRROR_LARGE));
    assert_false(pages_remember(&vcpu, g, 3 * MIRROR_LARGE, 0x200000 | PROT_READ, MIRROR_LARGE));
    table(1)[0] = 0x12000 | MARKED;
    table(2)[3] = 0x13000 | MARKED; /* small ones: not as a large one, even if they follow one another */
    table(3)[0] = 0x200000 | MARKED;
    assert_false(pages_remember(&vcpu, g, 3 * MIRROR_LARGE, 0x200000 | PROT_READ, MIRROR_LARGE));
    assert_true(pages_remember(&vcpu, g, 3 * MIRROR_LARGE, 0x200000 | PROT_READ, 4096));
    table(3)[0] += 4096; /* the small one that is mapped is still of the entry before */
    assert_false(pages_remember(&vcpu, g, 3 * MIRROR_LARGE, 0x200000 | PROT_READ, MIRROR_LARGE));
    assert_false(pages_same(g, table(3), 0));
    table(0)[0] = 0;
    assert_false(remember(g, page));
    pages_free(&slot);
    memory_destroy(engine.config.memory);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(as_a_simpler_one),
        cmocka_unit_test(all_regions),
        cmocka_unit_test(what_is_remembered_is_what_is_mapped),
        cmocka_unit_test(of_large_pages_too),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
