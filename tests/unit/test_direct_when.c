/* When an address space runs directly (engine/soft/direct_when.c). */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <cmocka.h>
#include <unistd.h>

#include "engine/soft/direct.h"

#define ROOT 0x123000u
#define KHZ 1000000u /* of a TSC that counts nanoseconds */

static struct engine engine;
static struct direct direct;
static struct direct_slot slot;

static int set_up(void **state)
{
    engine = (struct engine){.tsc_khz = KHZ, .direct = &direct};
    engine.vcpu = calloc(1, sizeof *engine.vcpu);
    if (!engine.vcpu)
        return -1;
    engine.vcpu->engine = &engine;
    engine.vcpu->cpu.cr3 = ROOT;
    engine.vcpu->cpu.request = REQ_IRQ;
    direct = (struct direct){.engine = &engine, .mode = ENGINE_DIRECT_ON, .cpu = -1};
    direct.price = (struct direct_price){.known = true, .wall = 10000, .cpu = 1000};
    slot = (struct direct_slot){.process = getpid()}; /* its CPU time is ours */
    *space_of(&direct, ROOT) = (struct space){.root = ROOT};
    return 0;
}

static int tear_down(void **state)
{
    free(engine.vcpu);
    return 0;
}

/* Guest code runs for so long, and its process has as much of a CPU. */
static void runs(uint64_t ns)
{
    const uint64_t until = direct_child_cpu_ns(&slot) + ns;
    while (direct_child_cpu_ns(&slot) < until)
        ;
    direct.ran += ns;
    direct.stats.entries++;
}

static struct space *armed(void)
{
    struct space *sp = space_of(&direct, ROOT);
    sp->direct = true;
    space_begin(&direct, &slot, sp);
    return sp;
}

/* Exits with nothing between them, until it is given up. */
static void calls_only(struct space *sp)
{
    for (unsigned i = 0; i < 100 && sp->direct; i++) {
        direct.stats.entries++;
        if (!sp->began)
            space_begin(&direct, &slot, sp);
        space_judge(&direct, &slot, sp, DIRECT_SYSCALL, 0);
    }
    assert_false(sp->direct);
}

static void who_only_calls_is_given_up_for_longer_each_time(void **state)
{
    uint32_t before = 0;
    for (unsigned i = 0; i < 4; i++) {
        struct space *sp = armed();
        calls_only(sp);
        assert_true(sp->wait > before);
        before = sp->wait;
    }
}

/* A program that computes and is never asked for anything has paid: whoever gets its page tables next is not to wait
 * for longer each time. */
static void who_only_computes_has_paid(void **state)
{
    struct space *sp = armed();
    sp->fail = 5;
    runs(100000);
    space_judge(&direct, &slot, sp, DIRECT_KICK, 0);
    assert_false(sp->paid);
    runs(1000000);
    space_judge(&direct, &slot, sp, DIRECT_KICK, 0);
    assert_true(sp->direct && sp->paid);
    calls_only(sp);
    assert_int_equal(sp->wait, 0);
}

/* Failures of long ago were another program's, perhaps, and those of just now were not. */
static void failures_are_forgotten(void **state)
{
    struct space *sp = space_of(&direct, ROOT);
    sp->fail = 5, sp->wait = 32;
    sp->found = __builtin_ia32_rdtsc() - 1000ull * KHZ;
    soft_direct_tick(engine.vcpu);
    assert_int_equal(sp->wait, 0);
    sp->fail = 5, sp->wait = 32;
    soft_direct_tick(engine.vcpu);
    assert_int_equal(sp->wait, 31);
    assert_int_equal(sp->fail, 5);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(who_only_calls_is_given_up_for_longer_each_time, set_up, tear_down),
        cmocka_unit_test_setup_teardown(who_only_computes_has_paid, set_up, tear_down),
        cmocka_unit_test_setup_teardown(failures_are_forgotten, set_up, tear_down),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
