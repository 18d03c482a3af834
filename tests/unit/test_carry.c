/* Translations that a copy of a machine begins with (engine/soft/carry.c). */
#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>

#include "copy_fixture.h"

#define CODE_AT 0x7c00u
#define OTHER_AT 0x3c00u

/* In real mode: 5 times round, and stop. */
static const uint8_t code[] = {0xb8, 5, 0, /* mov ax, 5 */ 0x48, /* dec ax */ 0x75, 0xfd, /* jnz */ 0xf4 /* hlt */};

static void run_at(struct engine *e, uint32_t at)
{
    struct cpu *c = engine_soft.vcpu(e, 0);
    char error[256] = "";
    cpu_reset(c);
    c->seg[CS].base = 0;
    c->seg[CS].selector = 0;
    c->rip = at;
    assert_int_equal(engine_soft.run(e, 0, error), ENGINE_EXIT_HALT);
    assert_int_equal(c->gpr[RAX] & 0xffff, 0);
    assert_int_equal(c->rip, at + sizeof code);
    c->halted = 0;
}

static void run(struct engine *e)
{
    run_at(e, CODE_AT);
}

static int set_up(void **state)
{
    struct fixture *f = *state = fixture_make(1);
    memcpy(f->memory->base + CODE_AT, code, sizeof code);
    memcpy(f->memory->base + OTHER_AT, code, sizeof code);
    run(f->from);
    assert_true(f->from->vcpu->stats.blocks > 0);
    hand_out(f);
    return 0;
}

static void a_copy_translates_nothing_again(void **state)
{
    struct fixture *f = *state;
    take(f);
    run(f->to);
    assert_true(f->to->vcpu->stats.blocks == 0);
}

static void what_changes_is_translated_again(void **state)
{
    struct fixture *f = *state;
    take(f);
    assert_true(soft_holds_code(f->to, CODE_AT, 1));
    assert_true(soft_invalidate(f->to, CODE_AT, 4));
    f->memory->base[CODE_AT + 1] = 7;
    run(f->to);
    assert_true(f->to->vcpu->stats.blocks > 0);
}

/* In which page of the cache's a block is, and whether it is the image's. */
static bool is_lent(const struct engine *e, uint32_t at)
{
    return e->cache.lent[at / 4096 / 64] >> at / 4096 % 64 & 1;
}

static void a_page_that_is_patched_is_ones_own(void **state)
{
    struct fixture *f = *state;
    take(f);
    const uint32_t at = f->to->blocks[0].hot_start;
    assert_true(is_lent(f->to, at));
    run(f->to);
    assert_true(is_lent(f->to, at)); /* there was nothing to be patched */
    for (unsigned round = 0; round < 2; round++) {
        assert_memory_equal(f->to->cache.rx + at, f->from->cache.rx + at, 64);
        uint32_t target;
        memcpy(&target, f->to->cache.rx + at + 4, sizeof target);
        soft_code_own(f->to, at + 4, at + 8);
        assert_false(is_lent(f->to, at));
        f->to->cache.rw[at + 4] ^= 0xff;
        assert_int_equal(f->to->cache.rx[at + 4], f->to->cache.rw[at + 4]); /* is what is executed */
        assert_int_not_equal(f->to->cache.rx[at + 4], f->from->cache.rx[at + 4]);
        memcpy(f->to->cache.rw + at + 4, &target, sizeof target);
    }
    run(f->to);
    run(f->from);
}

static unsigned mappings(void)
{
    FILE *maps = fopen("/proc/self/maps", "r");
    unsigned n = 0;
    assert_non_null(maps);
    for (int c; (c = getc(maps)) != EOF;)
        n += c == '\n';
    fclose(maps);
    return n;
}

/* However many pages become its own, here and there. */
static void a_copy_has_not_too_many_mappings(void **state)
{
    struct fixture *f = *state;
    take(f);
    const struct code_cache *c = &f->to->cache;
    assert_ptr_equal(mmap(c->rx, c->size, PROT_READ | PROT_EXEC, MAP_PRIVATE | MAP_FIXED, f->image, 0), c->rx);
    soft_code_lent(f->to, 0, c->size);
    const unsigned before = mappings();
    for (uint32_t at = 0; at < c->size; at += 3 * 4096) {
        soft_code_own(f->to, at, at + 8);
        assert_false(is_lent(f->to, at));
        c->rw[at] = 0x5a;
        assert_int_equal(c->rx[at], 0x5a);
    }
    assert_true(c->size / (3 * 4096) > 4096); /* there were more than that */
    assert_in_range(mappings() - before, 2048, 9000);
}

/* Where a page was moved from nothing else is mapped by anybody, which its way back would take away. */
static void where_pages_came_from_is_nobody_elses(void **state)
{
    struct fixture *f = *state;
    const struct code_cache *c = &f->to->cache;
    take(f);
    const uint32_t at = f->to->blocks[0].hot_start & -4096u;
    unsigned char there;
    soft_code_own(f->to, at, at + 8);
    assert_int_equal(mincore(c->spare + at, 4096, &there), 0);
    soft_code_lent_again(f->to, at, at + 8);
    assert_int_equal(mincore(c->spare + at, 4096, &there), 0);
    assert_int_equal(mincore(c->image + at, 4096, &there), 0);
    run(f->to);
    soft_code_own(f->to, at, at + 8);
    run(f->to);
}

static uint64_t rest(struct engine *e)
{
    engine_soft.rest(e, 0);
    return e->vcpu->stats.blocks;
}

static void a_copy_that_rests_has_what_it_was_given(void **state)
{
    struct fixture *f = *state;
    take(f);
    run(f->to);
    const uint32_t at = f->to->blocks[0].hot_start, n = f->to->n_blocks;
    run_at(f->to, OTHER_AT);
    assert_true(f->to->n_blocks > n);
    soft_code_own(f->to, at, at + 8);
    f->to->cache.rw[at + 4] ^= 0xff;
    const uint64_t blocks = rest(f->to);
    assert_int_equal(f->to->n_blocks, n);
    assert_false(soft_holds_code(f->to, OTHER_AT, 1));
    assert_true(is_lent(f->to, at));
    assert_memory_equal(f->to->cache.rx + at, f->from->cache.rx + at, 64);
    run(f->to);
    assert_int_equal(f->to->vcpu->stats.blocks, blocks);
    run_at(f->to, OTHER_AT);
    assert_true(f->to->vcpu->stats.blocks > blocks);
    soft_code_own(f->to, at, at + 8); /* it can be patched as before */
    assert_ptr_equal(memcpy(f->to->cache.rw + at, f->from->cache.rx + at, 8), f->to->cache.rw + at);
    run(f->to);
    run(f->from);
}

/* It begins with little of its caches of computed branches: two targets that lose one place to one another make it use
 * more, and no more than there is. */
static void a_copy_that_has_rested_uses_no_more_than_it_has(void **state)
{
    struct fixture *f = *state;
    take(f);
    run(f->to);
    rest(f->to);
    run(f->to);
    struct soft_vcpu *v = f->to->vcpu;
    const uint32_t *mask = &v->ibtc_mask[soft_mmu(v)];
    assert_true(*mask < IBTC_LEAST);
    for (uint64_t i = 0; i < 4 * IBTC_SIZE; i++) {
        soft_ibtc_insert(v, CODE_AT + (i & 1) * 4 * IBTC_SIZE, &f->to->blocks[0]);
        assert_true(*mask < IBTC_SIZE);
    }
    assert_int_equal(*mask, IBTC_SIZE - 1);
}

static void what_a_copy_has_dropped_stays_so_when_it_rests(void **state)
{
    struct fixture *f = *state;
    take(f);
    run(f->to);
    assert_true(soft_invalidate(f->to, CODE_AT, sizeof code));
    f->memory->base[CODE_AT + 1] = 7;
    const uint64_t blocks = rest(f->to);
    assert_false(soft_holds_code(f->to, CODE_AT, 1));
    run(f->to);
    assert_true(f->to->vcpu->stats.blocks > blocks);
}

/* A device writes to what has been translated before the copy has run: nobody has looked at what it was given yet. */
static void what_is_written_before_a_copy_runs_is_dropped(void **state)
{
    struct fixture *f = *state;
    const uint8_t other = 7;
    take(f);
    assert_int_equal(dma_write(f->bus, CODE_AT + 1, &other, sizeof other), 0);
    assert_false(f->to->blocks[0].dead);
    run(f->to);
    const uint64_t blocks = rest(f->to);
    assert_true(blocks > 0);
    assert_false(soft_holds_code(f->to, CODE_AT, 1));
    run(f->to);
    assert_true(f->to->vcpu->stats.blocks > blocks);
}

/* So is what is handed on to a copy of the copy. */
static void what_is_written_before_a_copy_runs_is_not_handed_on(void **state)
{
    struct fixture *f = *state;
    const uint8_t other = 7;
    take(f);
    assert_int_equal(dma_write(f->bus, CODE_AT + 1, &other, sizeof other), 0);
    engine_soft.destroy(f->from);
    f->from = f->to;
    f->to = make(f, 1);
    hand_out(f);
    take(f);
    run(f->to);
    assert_true(f->to->vcpu->stats.blocks > 0);
}

static void a_copy_rests_once(void **state)
{
    struct fixture *f = *state;
    take(f);
    run(f->to);
    rest(f->to);
    run_at(f->to, OTHER_AT);
    const uint64_t blocks = rest(f->to);
    run_at(f->to, OTHER_AT);
    assert_int_equal(f->to->vcpu->stats.blocks, blocks);
}

static void a_copy_that_has_evicted_keeps_what_it_has(void **state)
{
    struct fixture *f = *state;
    take(f);
    run(f->to);
    for (unsigned i = 0; i < f->to->n_regions; i++)
        soft_region_next(f->to);
    run(f->to);
    const uint64_t blocks = rest(f->to);
    run(f->to);
    assert_int_equal(f->to->vcpu->stats.blocks, blocks);
}

/* Copies of it have all that it had, whatever it does then. */
static void one_that_was_copied_keeps_what_it_has(void **state)
{
    struct fixture *f = *state;
    take(f);
    run_at(f->to, OTHER_AT);
    engine_soft.destroy(f->from);
    f->from = f->to;
    f->to = make(f, 1);
    hand_out(f);
    const uint64_t blocks = rest(f->from);
    run_at(f->from, OTHER_AT);
    assert_int_equal(f->from->vcpu->stats.blocks, blocks);
    take(f);
    run_at(f->to, OTHER_AT);
    assert_int_equal(f->to->vcpu->stats.blocks, 0);
}

static void what_was_dropped_since_then_is_not_used(void **state)
{
    struct fixture *f = *state;
    const int image = f->image;
    assert_true(soft_invalidate(f->from, CODE_AT, sizeof code));
    f->memory->base[CODE_AT + 1] = 9;
    hand_out(f);
    assert_int_equal(f->image, image); /* the same one */
    take(f);
    run(f->to);
    assert_true(f->to->vcpu->stats.blocks > 0);
    assert_false(soft_invalidate(f->to, CODE_AT + 4096, 4096));
}

static void an_image_that_holds_no_longer_is_made_anew(void **state)
{
    struct fixture *f = *state;
    struct stat before, after;
    assert_int_equal(fstat(f->image, &before), 0);
    soft_cache_flush(f->from);
    assert_int_equal(fcntl(f->image, F_GETFD), FD_CLOEXEC); /* who has been given it may hand it on */
    run(f->from);
    hand_out(f);
    assert_int_equal(fstat(f->image, &after), 0);
    assert_int_not_equal(before.st_ino, after.st_ino);
    take(f);
    run(f->to);
    assert_true(f->to->vcpu->stats.blocks == 0);
}

/* A copy's regions are filled anew where the image's code is. */
static void a_copy_evicts(void **state)
{
    struct fixture *f = *state;
    take(f);
    run(f->to);
    for (unsigned i = 0; i < 2 * f->to->n_regions; i++) {
        soft_region_next(f->to);
        assert_false(is_lent(f->to, f->to->cache.hot));
        run(f->to);
    }
    assert_true(f->to->vcpu->stats.blocks > 0);
    soft_cache_flush(f->to);
    run(f->to);
}

static void rounds(struct engine *e, unsigned n)
{
    for (unsigned i = 0; i < n * e->n_regions; i++) {
        soft_region_next(e);
        run(e);
    }
}

/* Who goes through the whole cache again and again gets more of it; and so does its copy. */
static void a_cache_that_is_too_small_grows(void **state)
{
    struct fixture *f = *state;
    const unsigned at_first = f->from->n_regions;
    rounds(f->from, 2);
    assert_int_equal(f->from->n_regions, at_first);
    rounds(f->from, 3);
    assert_in_range(f->from->n_regions, at_first + 1, REGIONS_MAX - 1);
    hand_out(f);
    assert_int_equal(engine_soft.set_code(f->to, f->image, &f->head), 0);
    assert_in_range(f->to->n_regions, f->from->n_regions + 1, REGIONS_MAX); /* it has some of its own */
    run(f->to);
    rounds(f->from, 30);
    assert_int_equal(f->from->n_regions, REGIONS_MAX);
    soft_cache_flush(f->from);
    run(f->from);
}

/* But not if that takes its time. */
static void rounds_that_take_long(void **state)
{
    struct fixture *f = *state;
    const unsigned at_first = f->from->n_regions;
    for (unsigned i = 0; i < 10; i++) {
        rounds(f->from, 1);
        for (unsigned k = 0; k < 3; k++)
            f->from->rounds[k] -= f->from->rounds[k] ? 5000 * f->from->tsc_khz : 0;
    }
    assert_int_equal(f->from->n_regions, at_first);
}

static void a_copy_of_a_copy(void **state)
{
    struct fixture *f = *state;
    take(f);
    soft_code_own(f->to, f->to->blocks[0].hot_start, f->to->blocks[0].hot_end);
    run(f->to);
    struct engine *first = f->from;
    f->from = f->to;
    f->to = make(f, 1);
    hand_out(f);
    take(f);
    run(f->to);
    assert_true(f->to->vcpu->stats.blocks == 0);
    engine_soft.destroy(first);
    run(f->to);
}

static void what_is_something_elses_is_refused(void **state)
{
    struct fixture *f = *state;
    struct engine_code cut = f->head;
    cut.n = 0;
    assert_int_equal(engine_soft.set_code(f->to, f->image, &cut), -ENOTSUP);
    cut.n = f->head.n - 1;
    assert_int_equal(engine_soft.set_code(f->to, f->image, &cut), -ENOTSUP);
    for (unsigned i = 0; i < 8; i++) { /* another program's */
        f->head.bytes[i] ^= 0x80;
        assert_int_equal(engine_soft.set_code(f->to, f->image, &f->head), -ENOTSUP);
        f->head.bytes[i] ^= 0x80;
    }
    run(f->to);
}

static void a_file_that_somebody_can_write_to_is_refused(void **state)
{
    struct fixture *f = *state;
    int fd = memfd_create("open", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    struct stat st;
    assert_int_equal(fstat(f->image, &st), 0);
    assert_int_equal(ftruncate(fd, st.st_size), 0);
    int err = engine_soft.set_code(f->to, fd, &f->head);
    assert_true(err && err != -ENOTSUP);
    close(fd);
    assert_int_equal(pwrite(f->image, "x", 1, 0), -1);
}

#define T(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        T(a_copy_translates_nothing_again),
        T(what_changes_is_translated_again),
        T(a_page_that_is_patched_is_ones_own),
        T(a_copy_has_not_too_many_mappings),
        T(where_pages_came_from_is_nobody_elses),
        T(a_copy_that_rests_has_what_it_was_given),
        T(a_copy_that_has_rested_uses_no_more_than_it_has),
        T(what_a_copy_has_dropped_stays_so_when_it_rests),
        T(what_is_written_before_a_copy_runs_is_dropped),
        T(what_is_written_before_a_copy_runs_is_not_handed_on),
        T(a_copy_rests_once),
        T(a_copy_that_has_evicted_keeps_what_it_has),
        T(one_that_was_copied_keeps_what_it_has),
        T(what_was_dropped_since_then_is_not_used),
        T(an_image_that_holds_no_longer_is_made_anew),
        T(a_copy_evicts),
        T(a_cache_that_is_too_small_grows),
        T(rounds_that_take_long),
        T(a_copy_of_a_copy),
        T(what_is_something_elses_is_refused),
        T(a_file_that_somebody_can_write_to_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
