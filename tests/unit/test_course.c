/* What a kernel translated when it booted is translated ahead the next time (engine/soft/course.h). */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/bytes.h"
#include "boot/boot.h"
#include "bus/bus.h"
#include "engine/engine.h"
#include "engine/soft/course.h"
#include "engine/soft/course_int.h"
#include "engine/soft/soft.h"
#include "memory/memory.h"

#include "../no_irq.h"

/* --- the file ---------------------------------------------------------------------------------------------------- */

static const struct course_block sample = {.place = 0x1234,
                                           .how = MODE_64 | MODE_CPL0 | MODE_FIXED_PC | MODE_FSGSBASE | COURSE_HOT,
                                           .length = 5,
                                           .n_peeked = 1,
                                           .n_fixes = 2,
                                           .peeked = {{.first = 0x300, .length = 6}},
                                           .n_bytes = 11};
static const uint16_t sample_fixes[] = {1, 7 | COURSE_MINUS};
static const uint8_t sample_bytes[] = {0xb8, 0, 0x10, 0, 0, 0x48, 0x8b, 0, 0x20, 0, 0};

struct file {
    uint8_t bytes[4096];
    size_t size;
};

static struct file one_block(const struct course_block *b)
{
    struct file f = {.size = COURSE_HEAD};

    f.size += course_put(f.bytes + f.size, b, sample_fixes, sample_bytes);
    course_head(f.bytes, 1, 0, f.bytes + COURSE_HEAD, f.size - COURSE_HEAD);
    return f;
}

static bool first_block(struct file *f, struct course_block *b)
{
    size_t at = COURSE_HEAD;

    return course_next(f->bytes, f->size, &at, b);
}

static void what_is_written_is_read(void **state)
{
    struct file f = one_block(&sample);
    struct course_block b;
    size_t at;

    assert_true(course_is_whole(f.bytes, f.size, &at));
    assert_int_equal(at, COURSE_HEAD);
    assert_true(course_next(f.bytes, f.size, &at, &b));
    assert_int_equal(b.place, sample.place);
    assert_int_equal(b.how, sample.how);
    assert_int_equal(b.length, sample.length);
    assert_int_equal(b.n_peeked, 1);
    assert_memory_equal(b.peeked, sample.peeked, sizeof *b.peeked);
    assert_memory_equal(f.bytes + b.bytes, sample_bytes, sizeof sample_bytes);
    assert_false(course_next(f.bytes, f.size, &at, &b));
}

static void numbers_move_with_the_kernel(void **state)
{
    struct file f = one_block(&sample);
    struct course_block b;

    assert_true(first_block(&f, &b));
    course_fix(f.bytes, &b, 0xffffffff81000000);
    assert_int_equal(le32_at(f.bytes + b.bytes + 1), 0x81001000);
    assert_int_equal(le32_at(f.bytes + b.bytes + 7), 0x2000 - 0x81000000u);
    course_fix(f.bytes, &b, -0xffffffff81000000);
    assert_memory_equal(f.bytes + b.bytes, sample_bytes, sizeof sample_bytes);
}

static void a_file_that_is_not_whole_is_none(void **state)
{
    size_t at;

    for (unsigned i = 0; i < COURSE_HEAD + 12; i++) { /* any byte of the head, and some of the rest */
        struct file f = one_block(&sample);
        f.bytes[i] ^= 0x40;
        assert_false(course_is_whole(f.bytes, f.size, &at));
    }
    struct file f = one_block(&sample);
    for (size_t size = 0; size < f.size; size++)
        assert_false(course_is_whole(f.bytes, size, &at));
}

static void a_block_that_cannot_be_is_the_end(void **state)
{
    static const struct {
        uint32_t place, how;
        uint16_t length;
        struct peeked peeked;
    } bad[] = {{0x1234, MODE_64, 0, {0, 1}},
               {0x1ffe, MODE_64, 5, {0, 1}},
               {0x1234, MODE_CPL0, 5, {0, 1}},
               {0x1234, MODE_64 | MODE_TF, 5, {0, 1}},
               {0x1234, MODE_64 | MODE_SEGMENTED, 5, {0, 1}},
               {0x1234, MODE_64 | MODE_MMU, 5, {0, 1}},
               {0x1234, MODE_64 | COURSE_FLAT << 1, 5, {0, 1}},
               {0x1234, MODE_64, COURSE_LENGTH_MAX + 1, {0, 1}},
               {0x1234, MODE_64, 5, {0, 0}},
               {0x1234, MODE_64, 5, {0xfff, 2}},
               {0x1234, MODE_64, 5, {0x1000, 1}}};

    for (unsigned i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct course_block b = sample;
        b.place = bad[i].place;
        b.how = bad[i].how;
        b.length = bad[i].length;
        b.peeked[0] = bad[i].peeked;
        struct file f = one_block(&b);
        f.size = sizeof f.bytes;
        assert_false(first_block(&f, &b));
    }
}

static void lists_stay_inside_the_file(void **state)
{
    struct file f = one_block(&sample), g;
    struct course_block b;

    g = f;
    g.bytes[COURSE_HEAD + 10] = BLOCK_PEEKS + 1;
    assert_false(first_block(&g, &b));
    g = f;
    g.bytes[COURSE_HEAD + 11] = COURSE_FIXES_MAX + 1;
    assert_false(first_block(&g, &b));
    g = f;
    le16_put(g.bytes + COURSE_HEAD + 16, sizeof sample_bytes - 3); /* the first fix */
    assert_false(first_block(&g, &b));
    for (size_t size = COURSE_HEAD; size < COURSE_HEAD + 12 + 4 + 4 + sizeof sample_bytes; size++) {
        g = f;
        g.size = size;
        assert_false(first_block(&g, &b));
    }
}

/* --- a kernel ---------------------------------------------------------------------------------------------------- */

#define IMAGE 0x10000u
#define JUMPS 3000u

/* One that jumps 3000 times to what is next, and then knows where its data is. */
struct machine {
    struct memory *memory;
    struct bus *bus;
    struct engine *engine;
    uint64_t at;
    int file;
};

static void put_kernel(struct machine *m)
{
    uint8_t *p = m->memory->base + m->at;

    for (unsigned i = 0; i < JUMPS; i++, p += 2)
        memcpy(p, "\xeb\x00", 2); /* jmp */
    memcpy(p, "\xb8", 1);         /* mov eax, the image's address + 0x123 */
    le32_put(p + 1, (uint32_t)m->at + 0x123);
    p[5] = 0xf4; /* hlt */
}

static struct machine begin(uint64_t at, int file)
{
    struct machine m = {.at = at, .file = file};
    assert_int_equal(memory_create(&m.memory, 16 << 20), 0);
    assert_int_equal(bus_create(&m.bus, m.memory), 0);
    const struct engine_config config = {.memory = m.memory, .bus = m.bus, .n_cpus = 1};
    assert_int_equal(engine_soft.create(&m.engine, &config), 0);
    engine_soft.vcpu(m.engine, 0)->irq = &no_irq;
    put_kernel(&m);
    const struct engine_course c = {.gpa = at, .gva = at, .size = IMAGE, .fd = dup(file)};
    assert_int_equal(engine_soft.set_course(m.engine, &c), 0);
    return m;
}

static void boot(struct machine *m)
{
    struct cpu *c = engine_soft.vcpu(m->engine, 0);
    const struct boot_entry entry = {.protocol = BOOT_LINUX64, .rip = m->at};
    char error[256] = "";
    cpu_reset(c);
    boot_set_cpu(&entry, c);
    assert_int_equal(engine_soft.run(m->engine, 0, error), ENGINE_EXIT_HALT);
    assert_int_equal(c->gpr[RAX], m->at + 0x123);
    assert_int_equal(c->rip, m->at + 2 * JUMPS + 6);
}

static void end(struct machine *m)
{
    engine_soft.destroy(m->engine);
    bus_destroy(m->bus);
    memory_destroy(m->memory);
}

static int note(void **state)
{
    int file = memfd_create("course", MFD_CLOEXEC);
    struct machine m = begin(0x200000, file);
    boot(&m);
    assert_true(m.engine->vcpu->stats.blocks > JUMPS);
    end(&m);
    *state = malloc(sizeof file);
    *(int *)*state = file;
    return 0;
}

static int forget(void **state)
{
    close(*(int *)*state);
    free(*state);
    return 0;
}

static void the_second_boot_translates_nothing(void **state)
{
    struct machine m = begin(0x301000, *(int *)*state); /* elsewhere */
    engine_soft.serve_course(m.engine);
    boot(&m);
    assert_int_equal(m.engine->vcpu->stats.blocks, 0);
    assert_true(m.engine->course->n_taken > JUMPS);
    assert_true(soft_holds_code(m.engine, m.at, 1));
    end(&m);
}

static void what_is_different_is_translated(void **state)
{
    struct machine m = begin(0x301000, *(int *)*state);
    engine_soft.serve_course(m.engine);
    memcpy(m.memory->base + m.at + 200, "\x90\x90", 2);
    boot(&m);
    assert_in_range(m.engine->vcpu->stats.blocks, 1, 8);
    assert_true(m.engine->course->n_refused > 0);
    end(&m);
}

static void what_is_written_afterwards_is_translated_again(void **state)
{
    struct machine m = begin(0x301000, *(int *)*state);
    engine_soft.serve_course(m.engine);
    boot(&m);
    memcpy(m.memory->base + m.at + 200, "\x90\x90", 2);
    assert_true(soft_invalidate(m.engine, m.at + 200, 2));
    boot(&m);
    assert_in_range(m.engine->vcpu->stats.blocks, 1, 8);
    end(&m);
}

static void who_boots_before_it_is_there_translates(void **state)
{
    struct machine m = begin(0x301000, *(int *)*state);
    boot(&m);
    assert_true(m.engine->vcpu->stats.blocks > JUMPS);
    engine_soft.set_course(m.engine, NULL);
    engine_soft.serve_course(m.engine); /* too late */
    end(&m);
}

static void the_cache_is_emptied_with_it(void **state)
{
    struct machine m = begin(0x301000, *(int *)*state);
    engine_soft.serve_course(m.engine);
    boot(&m);
    for (unsigned i = 0; i < 2 * m.engine->n_regions; i++) {
        soft_region_next(m.engine);
        boot(&m);
    }
    assert_null(m.engine->course);
    assert_true(m.engine->vcpu->stats.blocks > 0);
    soft_cache_flush(m.engine);
    boot(&m);
    end(&m);
}

static void a_spoilt_file_is_noted_again(void **state)
{
    const int file = *(int *)*state;
    uint8_t byte;
    size_t at;

    assert_int_equal(pread(file, &byte, 1, 20000), 1);
    byte ^= 1;
    assert_int_equal(pwrite(file, &byte, 1, 20000), 1);
    struct machine m = begin(0x301000, file);
    engine_soft.serve_course(m.engine);
    boot(&m);
    assert_true(m.engine->vcpu->stats.blocks > JUMPS);
    end(&m);
    lseek(file, 0, SEEK_SET);
    assert_int_equal(pwrite(file, &byte, 1, 1 << 20), 1); /* longer than it will be */
    m = begin(0x200000, file);
    assert_non_null(m.engine->note);
    boot(&m);
    end(&m);
    struct stat st;
    assert_int_equal(fstat(file, &st), 0);
    uint8_t *bytes = malloc((size_t)st.st_size);
    assert_int_equal(pread(file, bytes, (size_t)st.st_size, 0), st.st_size);
    assert_true(course_is_whole(bytes, (size_t)st.st_size, &at));
    free(bytes);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_is_written_is_read),
        cmocka_unit_test(numbers_move_with_the_kernel),
        cmocka_unit_test(a_file_that_is_not_whole_is_none),
        cmocka_unit_test(a_block_that_cannot_be_is_the_end),
        cmocka_unit_test(lists_stay_inside_the_file),
        cmocka_unit_test_setup_teardown(the_second_boot_translates_nothing, note, forget),
        cmocka_unit_test_setup_teardown(what_is_different_is_translated, note, forget),
        cmocka_unit_test_setup_teardown(what_is_written_afterwards_is_translated_again, note, forget),
        cmocka_unit_test_setup_teardown(who_boots_before_it_is_there_translates, note, forget),
        cmocka_unit_test_setup_teardown(the_cache_is_emptied_with_it, note, forget),
        cmocka_unit_test_setup_teardown(a_spoilt_file_is_noted_again, note, forget),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
