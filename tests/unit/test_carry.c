/* Translations that a copy of a machine begins with (engine/soft/carry.c). */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "bus/bus.h"
#include "engine/engine.h"
#include "engine/soft/soft.h"
#include "engine/soft/soft_int.h"
#include "memory/memory.h"

#include "../no_irq.h"

#define CODE_AT 0x7c00u

/* In real mode: 5 times round, and stop. */
static const uint8_t code[] = {0xb8, 5, 0, /* mov ax, 5 */ 0x48, /* dec ax */ 0x75, 0xfd, /* jnz */ 0xf4 /* hlt */};

struct fixture {
    struct memory *memory;
    struct bus *bus;
    struct engine *from, *to;
    struct engine_code pieces[ENGINE_CODE_PIECES];
    int n;
};

static struct engine *make(struct fixture *f)
{
    const struct engine_config config = {.memory = f->memory, .bus = f->bus, .n_cpus = 1};
    struct engine *e;
    assert_int_equal(engine_soft.create(&e, &config), 0);
    engine_soft.vcpu(e, 0)->irq = &no_irq;
    return e;
}

static void run(struct engine *e)
{
    struct cpu *c = engine_soft.vcpu(e, 0);
    char error[256] = "";
    cpu_reset(c);
    c->seg[CS].base = 0;
    c->seg[CS].selector = 0;
    c->rip = CODE_AT;
    assert_int_equal(engine_soft.run(e, 0, error), ENGINE_EXIT_HALT);
    assert_int_equal(c->gpr[RAX] & 0xffff, 0);
    assert_int_equal(c->rip, CODE_AT + sizeof code);
    c->halted = 0;
}

static int set_up(void **state)
{
    struct fixture *f = calloc(1, sizeof *f);
    *state = f;
    assert_int_equal(memory_create(&f->memory, 16 << 20), 0);
    assert_int_equal(bus_create(&f->bus, f->memory), 0);
    memcpy(f->memory->base + CODE_AT, code, sizeof code);
    f->from = make(f);
    f->to = make(f);
    run(f->from);
    assert_true(f->from->vcpu->stats.blocks > 0);
    f->n = engine_soft.get_code(f->from, f->pieces);
    assert_int_equal(f->n, 2); /* the head, and one region */
    return 0;
}

static int tear_down(void **state)
{
    struct fixture *f = *state;
    for (int i = 0; i < f->n; i++)
        free(f->pieces[i].bytes);
    engine_soft.destroy(f->to);
    engine_soft.destroy(f->from);
    bus_destroy(f->bus);
    memory_destroy(f->memory);
    free(f);
    return 0;
}

static void a_copy_translates_nothing_again(void **state)
{
    struct fixture *f = *state;
    assert_int_equal(engine_soft.set_code(f->to, f->pieces, 2), 0);
    run(f->to);
    assert_true(f->to->vcpu->stats.blocks == 0);
}

static void what_changes_is_translated_again(void **state)
{
    struct fixture *f = *state;
    assert_int_equal(engine_soft.set_code(f->to, f->pieces, 2), 0);
    assert_true(soft_holds_code(f->to, CODE_AT, 1));
    assert_true(soft_invalidate(f->to, CODE_AT, 4));
    f->memory->base[CODE_AT + 1] = 7;
    run(f->to);
    assert_true(f->to->vcpu->stats.blocks > 0);
}

static void pieces_of_something_else_are_refused(void **state)
{
    struct fixture *f = *state;
    struct engine_code cut[2] = {f->pieces[0], f->pieces[1]};
    assert_int_equal(engine_soft.set_code(f->to, f->pieces, 0), -ENOTSUP);
    assert_int_equal(engine_soft.set_code(f->to, f->pieces, 1), -ENOTSUP);
    cut[0].n--;
    assert_int_equal(engine_soft.set_code(f->to, cut, 2), -ENOTSUP);
    cut[0].n++, cut[1].n--;
    assert_int_equal(engine_soft.set_code(f->to, cut, 2), -ENOTSUP);
    for (unsigned i = 0; i < 8; i++) { /* another program's */
        f->pieces[0].bytes[i] ^= 0x80;
        assert_int_equal(engine_soft.set_code(f->to, f->pieces, 2), -ENOTSUP);
        f->pieces[0].bytes[i] ^= 0x80;
    }
    run(f->to);
}

/* The blocks in the pieces of a region, behind its code. */
static struct block *blocks_in(const struct fixture *f, unsigned *n)
{
    const struct engine *e = f->from;
    *n = e->n_blocks;
    return (struct block *)(void *)(f->pieces[1].bytes + (e->cache.hot - e->regions[0].hot) +
                                    (e->cache.cold - e->regions[0].cold));
}

static void blocks_that_lead_beyond_the_tables_are_dead(void **state)
{
    struct fixture *f = *state;
    unsigned n;
    uint8_t *at = (uint8_t *)blocks_in(f, &n); /* where it is not aligned */
    for (unsigned i = 0; i < n; i++) {
        struct block b;
        memcpy(&b, at + i * sizeof b, sizeof b);
        assert_true(b.gpa >= CODE_AT && b.gpa < CODE_AT + sizeof code); /* it is a block */
        b.gpa = f->memory->end - 4096;                                  /* the last page */
        b.n_peeked = i % 2 ? 1 : 255;
        b.peeked[0].first = 0xff00, b.peeked[0].length = 0x100;
        memcpy(at + i * sizeof b, &b, sizeof b);
    }
    assert_int_equal(engine_soft.set_code(f->to, f->pieces, 2), 0);
    for (unsigned i = 0; i < n; i++)
        assert_true(f->to->blocks[i].dead);
    run(f->to);
    assert_true(f->to->vcpu->stats.blocks > 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(a_copy_translates_nothing_again, set_up, tear_down),
        cmocka_unit_test_setup_teardown(what_changes_is_translated_again, set_up, tear_down),
        cmocka_unit_test_setup_teardown(pieces_of_something_else_are_refused, set_up, tear_down),
        cmocka_unit_test_setup_teardown(blocks_that_lead_beyond_the_tables_are_dead, set_up, tear_down),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
