/* A disk whose file goes from one process of a machine to another: what is proved, who has it, what is read. */
#include "disk_fixture.h"

#include "backends/disk/disk_away.h"
#include "backends/disk/overlay.h"

#define MIB (1u << 20)

static const uint64_t gap = DISK_GAP_FIRST + 0x123456789;

static int flush(struct disk *d)
{
    return disk_do(d, DISK_FLUSH, 0, 0, NULL, 0);
}

static struct disk *open_away(const char *words)
{
    struct disk *d = NULL;

    if (disk_open_away(&d, words, fx.loop, fx.error, sizeof fx.error))
        fail_msg("%s: %s", words, fx.error);
    return d;
}

static bool sees(const char *path)
{
    return !disk_sees(path, gap, fx.error, sizeof fx.error);
}

static void the_same_file_is_seen_by_any_name(void **state)
{
    const char *path = disk_file(&fx, "a", MIB), *copy = disk_file(&fx, "copy", MIB), *name = disk_path(&fx, "b");
    struct disk *d = disk_must_open(&fx, path), *other = disk_must_open(&fx, copy);

    assert_int_equal(link(path, name), 0);
    assert_false(sees(path)); /* the lock alone says nothing */
    assert_int_equal(disk_show_lock(d, gap), 0);
    assert_true(sees(path));
    assert_true(sees(name));
    assert_false(sees(copy)); /* somebody writes to it, and it has the same contents */
    assert_int_equal(disk_show_lock(other, gap + 2), 0);
    assert_false(sees(copy));
    assert_int_equal(disk_show_lock(d, gap + 5), 0); /* a gap is only there until the next one */
    assert_false(sees(path));
    assert_int_equal(disk_show_lock(d, 0), 0);
    assert_false(sees(path));
    assert_int_equal(disk_sees("/nowhere/at/all", gap, fx.error, sizeof fx.error), -ENOENT);
    disk_close(d);
    disk_close(other);
    assert_false(sees(path));
}

static void a_gap_lets_nobody_write(void **state)
{
    const char *path = disk_file(&fx, "a", MIB);
    struct disk *d = disk_must_open(&fx, path), *other = NULL;

    assert_int_equal(disk_show_lock(d, gap), 0);
    assert_int_equal(disk_open(&other, path, fx.loop, fx.error, sizeof fx.error), -EBUSY);
    disk_close(d);
}

static void who_can_leave(void **state)
{
    char words[200];
    struct disk_spec spec;
    struct disk *d;

    snprintf(words, sizeof words, "%s,ro", disk_file(&fx, "a", MIB));
    assert_int_equal(disk_parse(words, &spec, fx.error, sizeof fx.error), 0);
    assert_false(disk_spec_can_leave(&spec));
    d = disk_must_open(&fx, words);
    assert_false(disk_can_leave(d));
    disk_close(d);
    assert_int_equal(disk_parse("nbd://host/export", &spec, fx.error, sizeof fx.error), 0);
    assert_false(disk_spec_can_leave(&spec));
    assert_int_equal(disk_parse("a.qcow2", &spec, fx.error, sizeof fx.error), 0);
    assert_false(disk_spec_can_leave(&spec));
}

/* `from` has it and goes on having it, or `to` gets it: at no time can both write. */
static void hand_over(const char *words, const char *path)
{
    uint8_t block[4096], got[4096];
    struct disk *from = disk_must_open(&fx, words), *to = open_away(words);

    assert_true(disk_can_leave(from));
    assert_int_equal(from->size, to->size);
    disk_fill(block, sizeof block, 7);
    assert_int_equal(disk_write(from, 8192, block, sizeof block), 0);
    assert_int_equal(disk_write(to, 8192, block, sizeof block), -EBUSY);
    assert_int_equal(disk_read(to, 8192, got, sizeof got), -EBUSY);
    assert_int_equal(disk_claim(path, fx.error, sizeof fx.error), -EBUSY);

    assert_int_equal(flush(from), 0);
    disk_leave(from);
    assert_int_equal(disk_write(from, 8192, block, sizeof block), -EBUSY);
    assert_int_equal(disk_return(from), 0);
    disk_fill(block, sizeof block, 8);
    assert_int_equal(disk_write(from, 12288, block, sizeof block), 0);
    assert_int_equal(flush(from), 0);
    disk_leave(from);

    int fd = disk_claim(path, fx.error, sizeof fx.error);
    assert_true(fd >= 0);
    assert_int_equal(disk_return(from), -EBUSY);
    assert_int_equal(disk_take(to, fd, fx.error, sizeof fx.error), 0);
    assert_int_equal(disk_read(to, 12288, got, sizeof got), 0);
    assert_memory_equal(got, block, sizeof block);
    disk_fill(block, sizeof block, 9);
    assert_int_equal(disk_write(to, 12288, block, sizeof block), 0);
    disk_close(from); /* and that writes nothing any more */
    disk_close(to);
    to = disk_must_open(&fx, words);
    assert_int_equal(disk_read(to, 12288, got, sizeof got), 0);
    assert_memory_equal(got, block, sizeof block);
    disk_fill(block, sizeof block, 7);
    assert_int_equal(disk_read(to, 8192, got, sizeof got), 0);
    assert_memory_equal(got, block, sizeof block);
    disk_close(to);
}

static void a_file_is_handed_over(void **state)
{
    const char *path = disk_file(&fx, "a.img", MIB);

    hand_over(path, path);
}

static void an_overlay_is_handed_over(void **state)
{
    const char *path = disk_path(&fx, "a.overlay");

    assert_int_equal(disk_overlay_create(path, disk_file(&fx, "base", MIB), 4 * MIB, fx.error, sizeof fx.error), 0);
    hand_over(path, path);
}

static void another_file_is_not_taken(void **state)
{
    const char *path = disk_file(&fx, "a", MIB), *other = disk_file(&fx, "b", MIB);
    struct disk *to = open_away(path);
    int fd = disk_claim(other, fx.error, sizeof fx.error);

    assert_true(fd >= 0);
    assert_int_equal(disk_take(to, fd, fx.error, sizeof fx.error), -ESTALE);
    close(fd);
    assert_true(to->away);
    fd = disk_claim(path, fx.error, sizeof fx.error);
    assert_int_equal(ftruncate(fd, 2 * MIB), 0);
    assert_int_equal(disk_take(to, fd, fx.error, sizeof fx.error), -ESTALE);
    close(fd);
    disk_close(to);
}

static void the_base_may_be_elsewhere(void **state)
{
    const char *base = disk_file(&fx, "base", MIB), *moved = disk_path(&fx, "moved"),
               *top = disk_path(&fx, "top.overlay"), *below = disk_path(&fx, "below.overlay");
    char words[300];
    uint8_t got[512];

    assert_int_equal(disk_overlay_create(below, base, 0, fx.error, sizeof fx.error), 0);
    assert_int_equal(disk_overlay_create(top, below, 0, fx.error, sizeof fx.error), 0);
    assert_int_equal(rename(base, moved), 0);
    struct disk *d = NULL;
    assert_int_equal(disk_open(&d, top, fx.loop, fx.error, sizeof fx.error), -ENOENT);
    snprintf(words, sizeof words, "%s,base=%s", top, moved);
    d = disk_must_open(&fx, words);
    assert_int_equal(disk_read(d, 0, got, sizeof got), 0);
    disk_close(d);
    snprintf(words, sizeof words, "%s,base=%s", top, disk_file(&fx, "other", 2 * MIB));
    assert_int_equal(disk_open(&d, words, fx.loop, fx.error, sizeof fx.error), -ESTALE);
    snprintf(words, sizeof words, "%s,base=%s", moved, moved);
    assert_int_equal(disk_check(words, fx.error, sizeof fx.error), -EINVAL);
}

#define T(name) cmocka_unit_test_setup_teardown(name, disk_setup, disk_teardown)
int main(void)
{
    const struct CMUnitTest tests[] = {
        T(the_same_file_is_seen_by_any_name),
        T(a_gap_lets_nobody_write),
        T(who_can_leave),
        T(a_file_is_handed_over),
        T(an_overlay_is_handed_over),
        T(another_file_is_not_taken),
        T(the_base_may_be_elsewhere),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
