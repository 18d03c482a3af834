/* Which tier a program gets whose exits are close to one another (engine/soft/direct_compare.c). */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <cmocka.h>

#include <Zydis/Zydis.h>

#include "engine/soft/direct.h"

#define SECOND 1000000000ull /* in ticks of a TSC that counts nanoseconds */

static struct engine engine;
static struct direct direct = {.engine = &engine};
static struct compare compare;

static int set_up(void **state)
{
    engine.tsc_khz = SECOND / 1000;
    engine.vcpu = calloc(1, sizeof *engine.vcpu);
    compare = (struct compare){0};
    compare_begin(&direct, &compare);
    return engine.vcpu ? 0 : -1;
}

static int tear_down(void **state)
{
    free(engine.vcpu);
    return 0;
}

/* A second in which so many system calls were done. */
static void passes(uint64_t events)
{
    engine.vcpu->stats.by_mnemonic[ZYDIS_MNEMONIC_SYSCALL] += events;
    compare.start -= SECOND;
}

/* Windows that ran directly until a trial is wanted. */
static unsigned windows(uint64_t events)
{
    unsigned n = 0;
    do {
        passes(events);
        n++;
    } while (!compare_wanted(&direct, &compare) && n < 100);
    return n;
}

static enum compare_result trial(uint64_t events)
{
    assert_int_equal(compare_tick(&direct, &compare), COMPARE_GOES_ON); /* not long enough yet */
    passes(events);
    assert_int_equal(compare_tick(&direct, &compare), COMPARE_GOES_ON); /* warm */
    passes(events);
    return compare_tick(&direct, &compare);
}

static void the_faster_one(void **state)
{
    assert_in_range(windows(100000), 4, 6);
    assert_int_equal(trial(150000), COMPARE_TRANSLATED);
    assert_int_equal(compare_tick(&direct, &compare), COMPARE_NOTHING);
    assert_in_range(windows(100000), 4, 6);
    assert_int_equal(trial(60000), COMPARE_DIRECT);
}

static void not_soon_again(void **state)
{
    assert_in_range(windows(100000), 4, 6);
    assert_int_equal(trial(60000), COMPARE_DIRECT);
    assert_int_equal(windows(100000), 100);
    unsigned ticks = 0;
    while (compare.wait && ticks++ < 1000)
        assert_int_equal(compare_tick(&direct, &compare), COMPARE_NOTHING);
    assert_in_range(ticks, 10, 999);
    assert_in_range(windows(100000), 1, 6);
}

/* Whoever has few events, or now many and now few, is not tried. */
static void others_are_left_alone(void **state)
{
    assert_int_equal(windows(1000), 100);
    for (unsigned i = 0; i < 100; i++) {
        passes(i % 2 ? 100000 : 200000);
        assert_false(compare_wanted(&direct, &compare));
    }
}

/* How many page faults there are is no measure of speed. */
static void page_faults_say_nothing(void **state)
{
    for (unsigned i = 0; i < 100; i++) {
        engine.vcpu->stats.exceptions[EXC_PF] += 100000;
        passes(1000);
        assert_false(compare_wanted(&direct, &compare));
    }
}

/* Another program has run meanwhile: nothing is known, and it goes on directly. */
static void another_program(void **state)
{
    assert_in_range(windows(100000), 4, 6);
    passes(1);
    assert_int_equal(compare_tick(&direct, &compare), COMPARE_GOES_ON);
    direct.loads++;
    passes(1000000);
    assert_int_equal(compare_tick(&direct, &compare), COMPARE_DIRECT);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(the_faster_one, set_up, tear_down),
        cmocka_unit_test_setup_teardown(not_soon_again, set_up, tear_down),
        cmocka_unit_test_setup_teardown(others_are_left_alone, set_up, tear_down),
        cmocka_unit_test_setup_teardown(page_faults_say_nothing, set_up, tear_down),
        cmocka_unit_test_setup_teardown(another_program, set_up, tear_down),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
