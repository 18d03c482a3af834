/* What the vCPUs of a machine have translated, for all of a copy's (engine/soft/gather.c). */
#include "boot/boot.h"

#include "copy_fixture.h"

/* Programs, each in a page of its own: 5 times round, and stop with a number. */
enum { FIRST = 0x200000, SECOND = 0x202000, THIRD = 0x204000, NUMBER_AT = 10 };
static const uint8_t code[] = {0xb8, 5,    0, 0, 0, /* mov eax, 5 */ 0xff, 0xc8, /* dec eax */
                               0x75, 0xfc,                                       /* jnz */
                               0xb9, 7,    0, 0, 0, /* mov ecx, 7 */ 0xf4};

/* Returns how many blocks the vCPU has translated for it. */
static uint64_t run(struct engine *e, unsigned i, uint64_t at, uint8_t number)
{
    const struct boot_entry entry = {.protocol = BOOT_LINUX64, .rip = at};
    const struct stats *stats = &e->peers->of[i]->vcpu->stats;
    const uint64_t before = stats->blocks;
    struct cpu *c = engine_soft.vcpu(e, i);
    char error[256] = "";
    cpu_reset(c);
    boot_set_cpu(&entry, c);
    c->wait_sipi = c->halted = 0; /* no start-up interrupt is waited for */
    assert_int_equal(engine_soft.run(e, i, error), ENGINE_EXIT_HALT);
    assert_int_equal(c->gpr[RAX], 0);
    assert_int_equal(c->gpr[RCX], number);
    assert_int_equal(c->rip, at + sizeof code);
    c->halted = 0;
    return stats->blocks - before;
}

/* A device's. */
static void write_number(struct fixture *f, struct engine *e, uint64_t at, uint8_t number)
{
    f->memory->base[at + NUMBER_AT] = number;
    soft_device_wrote(e->peers, at + NUMBER_AT, 1);
}

static int set_up(void **state)
{
    struct fixture *f = *state = fixture_make(3);
    for (uint64_t at = FIRST; at <= THIRD; at += SECOND - FIRST)
        memcpy(f->memory->base + at, code, sizeof code);
    assert_true(run(f->from, 0, FIRST, 7) > 0);
    assert_true(run(f->from, 1, SECOND, 7) > 0);
    return 0;
}

static void each_vcpu_of_a_copy_has_what_any_had(void **state)
{
    struct fixture *f = *state;
    hand_out(f);
    take(f);
    for (unsigned i = 0; i < 2; i++) {
        assert_int_equal(run(f->to, i, FIRST, 7), 0);
        assert_int_equal(run(f->to, i, SECOND, 7), 0);
    }
    assert_int_equal(run(f->from, 0, SECOND, 7), 0); /* so has the machine's first */
    assert_true(run(f->from, 1, FIRST, 7) > 0);
}

static void a_vcpu_that_has_not_run_has_nothing(void **state)
{
    struct fixture *f = *state;
    hand_out(f);
    take(f);
    const struct engine *third = f->to->peers->of[2];
    assert_null(third->carried);
    assert_null(third->cache.lent);
    assert_int_equal(third->n_blocks, 0);
    assert_int_equal(f->to->peers->code[FIRST >> 12], 3); /* and nobody asks it */
    assert_true(run(f->to, 2, FIRST, 7) > 0);
    run(f->from, 2, THIRD, 7);
    hand_out(f); /* it has run now: there is another image */
    struct engine *other = make(f, 3);
    assert_int_equal(engine_soft.set_code(other, f->image, &f->head), 0);
    for (unsigned i = 0; i < 3; i++)
        assert_int_equal(run(other, i, THIRD, 7), 0);
    engine_soft.destroy(other);
}

/* Whoever writes to code finds all those who have it, before any of them has run. */
static void what_is_written_all_translate_again(void **state)
{
    struct fixture *f = *state;
    hand_out(f);
    take(f);
    for (unsigned i = 0; i < 2; i++)
        assert_true(soft_others_code(f->to->peers->of[i], SECOND >> 12));
    write_number(f, f->to, SECOND, 9);
    for (unsigned i = 0; i < 2; i++) {
        assert_true(run(f->to, i, SECOND, 9) > 0);
        assert_int_equal(run(f->to, i, FIRST, 7), 0);
    }
    write_number(f, f->to, SECOND, 11);
    for (unsigned i = 0; i < 2; i++)
        assert_true(run(f->to, i, SECOND, 11) > 0);
}

/* While the machine stands still devices end what they were at. */
static void what_was_written_at_the_last_moment(void **state)
{
    struct fixture *f = *state;
    write_number(f, f->from, SECOND, 9);
    hand_out(f);
    take(f);
    assert_true(run(f->to, 0, SECOND, 9) > 0);
    write_number(f, f->from, FIRST, 11);
    hand_out(f); /* the same image, with what has been dropped */
    struct engine *other = make(f, 3);
    assert_int_equal(engine_soft.set_code(other, f->image, &f->head), 0);
    for (unsigned i = 0; i < 2; i++)
        assert_true(run(other, i, FIRST, 11) > 0);
    engine_soft.destroy(other);
}

static void a_copy_of_a_copy(void **state)
{
    struct fixture *f = *state;
    hand_out(f);
    take(f);
    assert_true(run(f->to, 1, THIRD, 7) > 0);
    struct engine *first = f->from;
    f->from = f->to;
    f->to = make(f, 3);
    hand_out(f);
    take(f);
    for (uint64_t at = FIRST; at <= THIRD; at += SECOND - FIRST)
        for (unsigned i = 0; i < 2; i++)
            assert_int_equal(run(f->to, i, at, 7), 0);
    engine_soft.destroy(first);
}

/* One of them goes back to what it was given; what it has translated nobody asks it for any more. */
static void a_vcpu_that_rests(void **state)
{
    struct fixture *f = *state;
    hand_out(f);
    take(f);
    for (unsigned i = 0; i < 2; i++)
        assert_true(run(f->to, i, THIRD, 7) > 0);
    write_number(f, f->to, FIRST, 9);
    assert_int_equal(f->to->peers->code[THIRD >> 12], 3);
    assert_int_equal(f->to->peers->code[FIRST >> 12], 0);
    engine_soft.rest(f->to, 1);
    assert_int_equal(f->to->peers->code[THIRD >> 12], 1);
    assert_int_equal(f->to->peers->code[SECOND >> 12], 3);
    assert_int_equal(f->to->peers->code[FIRST >> 12], 0);
    for (unsigned i = 0; i < 2; i++) {
        assert_int_equal(run(f->to, i, SECOND, 7), 0);
        assert_true(run(f->to, i, FIRST, 9) > 0);
        assert_int_equal(run(f->to, i, THIRD, 7) > 0, i);
    }
    write_number(f, f->to, THIRD, 11);
    for (unsigned i = 0; i < 2; i++)
        assert_true(run(f->to, i, THIRD, 11) > 0);
}

/* Branches between what was gathered are chained. */
static void chains_are_there(void **state)
{
    struct fixture *f = *state;
    hand_out(f);
    const uint64_t exits = f->from->vcpu->stats.exits;
    assert_int_equal(run(f->from, 0, SECOND, 7), 0);
    assert_int_equal(f->from->vcpu->stats.exits, exits);
}

static void a_cache_that_is_full_gathers_what_it_can(void **state)
{
    struct fixture *f = *state;
    while (soft_region_has_spare(f->from))
        soft_block_alloc(f->from)->dead = true;
    hand_out(f);
    take(f);
    assert_int_equal(run(f->to, 0, FIRST, 7), 0);
    assert_true(run(f->to, 0, SECOND, 7) > 0);
}

static void one_of_another_shape_is_refused(void **state)
{
    struct fixture *f = *state;
    struct engine *two = make(f, 2);
    run(f->from, 2, THIRD, 7);
    hand_out(f);
    assert_int_equal(engine_soft.set_code(two, f->image, &f->head), -ENOTSUP);
    run(two, 1, FIRST, 7);
    engine_soft.destroy(two);
}

#define T(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        T(each_vcpu_of_a_copy_has_what_any_had),
        T(a_vcpu_that_has_not_run_has_nothing),
        T(what_is_written_all_translate_again),
        T(what_was_written_at_the_last_moment),
        T(a_copy_of_a_copy),
        T(a_vcpu_that_rests),
        T(chains_are_there),
        T(a_cache_that_is_full_gathers_what_it_can),
        T(one_of_another_shape_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
