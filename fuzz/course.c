/*
 * A kernel's course, as anybody may have left it for the next boot: what its door lets through, and what a thread that
 * translates ahead makes of it.  The check sum is right; the input is all that it is of.
 */
#include <sanitizer/lsan_interface.h>
#include <sys/mman.h>
#include <unistd.h>

#include "fixture.h"

#include "bus/bus.h"
#include "engine/engine.h"
#include "engine/soft/course_int.h"
#include "engine/soft/soft.h"

#include "../tests/no_irq.h"

#define IMAGE_AT 0x200000u
#define IMAGE_SIZE 0x8000u
#define IMAGE_GVA 0xffffffff81000000ull
#define FILE_MAX 4096u

static uint8_t file[COURSE_HEAD + FILE_MAX];

static struct engine *engine(void)
{
    static struct engine *e;
    struct engine_config config = {.n_cpus = 1, .tsc_khz = 1000000, .code_cache_bytes = 1 << 20};

    if (e)
        return e;
    assert_int_equal(memory_create(&config.memory, 4 << 20), 0);
    assert_int_equal(bus_create(&config.bus, config.memory), 0);
    __lsan_disable(); /* what its own mappings point to is not seen */
    assert_int_equal(engine_soft.create(&e, &config), 0);
    __lsan_enable();
    engine_soft.vcpu(e, 0)->irq = &no_irq;
    return e;
}

/* Blocks are as the door promises.  The guest has there what the last one of them says. */
static void look(size_t size, size_t at)
{
    uint8_t *ram = engine()->config.memory->base;
    struct course_block b;

    memset(ram + IMAGE_AT, 0, IMAGE_SIZE + 4096);
    for (size_t from = at; course_next(file, size, &at, &b); from = at) {
        assert_true(at > from && at <= size);
        assert_true(b.length && b.place % 4096 + b.length <= 4096 && b.n_peeked <= BLOCK_PEEKS);
        assert_true(b.bytes >= from && b.bytes + b.n_bytes <= at);
        course_fix(file, &b, IMAGE_GVA);
        if (b.place < IMAGE_SIZE)
            memcpy(ram + IMAGE_AT + b.place, file + b.bytes, b.length);
        course_fix(file, &b, -IMAGE_GVA);
    }
}

/* Those that were made do what the bytes say, and no more. */
static void translate(size_t size)
{
    struct engine *e = engine();
    int fd = memfd_create("course", MFD_CLOEXEC);
    const struct engine_course c = {.gpa = IMAGE_AT, .gva = IMAGE_GVA, .size = IMAGE_SIZE, .fd = fd};

    assert_true(write(fd, file, size) == (ssize_t)size);
    assert_int_equal(engine_soft.set_course(e, &c), 0);
    engine_soft.serve_course(e);
    const struct engine *a = e->course->aside;
    for (uint32_t i = 0; i < a->n_blocks; i++) {
        const struct block *b = &e->blocks[i];
        assert_true(b->gpa >= IMAGE_AT && b->gpa + b->length <= IMAGE_AT + IMAGE_SIZE);
        assert_true(b->dead && b->staged && b->gpa2 == UINT64_MAX);
        assert_true(b->hot_start < b->hot_end && b->hot_end <= e->cache.hot_end && b->cold_end <= e->cache.size);
    }
    for (uint32_t i = 0; i < a->n_blocks; i++)
        soft_course_take(e, e->blocks[i].gpa, e->blocks[i].gva, e->blocks[i].mode);
    for (uint32_t i = 0; i < a->n_blocks; i++)
        assert_true(e->blocks[i].dead || !e->blocks[i].staged);
    engine_soft.set_course(e, NULL);
    soft_cache_flush(e);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    struct fuzz_input in = {data, n};
    const uint32_t n_pieces = fuzz_u8(&in) % 4;
    const size_t size = in.left < FILE_MAX ? in.left : FILE_MAX;
    size_t at;

    memcpy(file + COURSE_HEAD, in.data, size);
    course_head(file, 1, n_pieces, file + COURSE_HEAD, size);
    if (!course_is_whole(file, COURSE_HEAD + size, &at))
        return 0;
    look(COURSE_HEAD + size, at);
    translate(COURSE_HEAD + size);
    return 0;
}
