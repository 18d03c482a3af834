/* Layers of a disk that are merged: against what the disk was, through power cuts, errors of the host, and in use. */
#include "disk_fixture.h"

#include <stdatomic.h>

#include "backends/disk/overlay.h"
#include "backends/disk/overlay_int.h"
#include "backends/disk/overlay_merge.h"

#define SIZE (4ull << 20)
#define GRANULES (SIZE / OVERLAY_GRANULE)
#define LAYERS 5u /* above the image: 0 is the uppermost, which is written to */

static uint8_t want[SIZE], got[SIZE];
static char paths[LAYERS][128];

static void must(int failed)
{
    if (failed)
        fail_msg("%s", fx.error);
}

/* Writes of all kinds, to the disk and to `want`. */
static void scribble(struct disk *d, unsigned times, uint64_t *seed)
{
    static uint8_t data[65536];

    for (unsigned i = 0; i < times; i++) {
        uint64_t at = disk_random(seed) % (SIZE / 512) * 512, length = (1 + disk_random(seed) % 128) * 512;
        unsigned kind = (unsigned)(disk_random(seed) % 4);
        length = length > SIZE - at ? SIZE - at : length;
        if (kind == 0) {
            assert_int_equal(disk_do(d, DISK_WRITE_ZEROES, DISK_UNMAP, at, NULL, length), 0);
            memset(want + at, 0, length);
            continue;
        }
        disk_fill(data, length, disk_random(seed) | 1);
        assert_int_equal(disk_write(d, at, data, length), 0);
        memcpy(want + at, data, length);
    }
    assert_int_equal(disk_do(d, DISK_FLUSH, 0, 0, NULL, 0), 0);
}

static void verify(struct disk *d)
{
    assert_int_equal(disk_read(d, 0, got, SIZE), 0);
    assert_memory_equal(got, want, SIZE);
}

static void verify_file(const char *path)
{
    struct disk *d = disk_must_open(&fx, path);

    verify(d);
    disk_close(d);
}

static void make_image(uint64_t *seed)
{
    const char *image = disk_file(&fx, "image.img", SIZE);
    int fd = open(image, O_WRONLY);

    disk_fill(want, SIZE, disk_random(seed) | 1);
    assert_int_equal(pwrite(fd, want, SIZE, 0), SIZE);
    close(fd);
    for (unsigned i = 0; i < LAYERS; i++)
        snprintf(paths[i], sizeof paths[i], "%s/%u.overlay", fx.directory, i);
    must(disk_overlay_create(paths[LAYERS - 1], image, 0, fx.error, sizeof fx.error));
}

/* All layers, each written to, by files that are opened one by one. */
static void make_chain(uint64_t *seed)
{
    for (unsigned i = 0; i < LAYERS; i++)
        unlink(disk_path(&fx, (char[]){(char)('0' + (int)i), '.', 'o', 'v', 'e', 'r', 'l', 'a', 'y', 0}));
    make_image(seed);
    for (unsigned i = LAYERS; i-- > 0;) {
        if (i < LAYERS - 1)
            must(disk_overlay_stack_create(paths[i], paths[i + 1], fx.error, sizeof fx.error));
        struct disk *d = disk_must_open(&fx, paths[i]);
        scribble(d, 20, seed);
        disk_close(d);
    }
}

static void is_sound(const char *path)
{
    struct disk_overlay_report report;

    must(disk_overlay_check(path, &report, fx.error, sizeof fx.error));
}

/* --- files that nobody has open ----------------------------------------------------------------------------------- */

static const char *const *from(unsigned upper)
{
    static const char *list[LAYERS];

    for (unsigned i = upper; i < LAYERS; i++)
        list[i - upper] = paths[i];
    return list;
}

/* paths[upper] and all below it, into one of them. */
static void merge_from(unsigned upper, unsigned count, unsigned into)
{
    must(disk_overlay_merge(from(upper), count, into, NULL, fx.error, sizeof fx.error));
}

static void replace_from(unsigned upper, unsigned count, unsigned into)
{
    must(disk_overlay_replace(from(upper), count, into, NULL, fx.error, sizeof fx.error));
    for (unsigned i = upper + 1; i < upper + count; i++)
        unlink(paths[i]);
}

static void all_become_one(void **state)
{
    uint64_t seed = 1;

    for (unsigned into = 0; into < LAYERS; into++) {
        make_chain(&seed);
        merge_from(0, LAYERS, into);
        for (unsigned i = 0; i < LAYERS; i++)
            is_sound(paths[i]);
        verify_file(paths[0]);
        replace_from(0, LAYERS, into);
        is_sound(paths[0]);
        verify_file(paths[0]);
        struct disk *d = disk_must_open(&fx, paths[0]); /* and is written to */
        scribble(d, 20, &seed);
        disk_close(d);
        verify_file(paths[0]);
    }
}

static void some_become_one(void **state)
{
    uint64_t seed = 11;

    for (unsigned into = 0; into < 3; into++) {
        make_chain(&seed);
        merge_from(1, 3, into);
        verify_file(paths[0]);
        replace_from(1, 3, into);
        is_sound(paths[1]);
        verify_file(paths[0]);
        assert_int_equal(access(paths[4], F_OK), 0); /* on which they lay */
    }
}

static void or_a_new_one_beside_what_others_have(void **state)
{
    uint64_t seed = 2;
    const char *fresh = disk_path(&fx, "fresh.overlay");
    char other[128];

    make_chain(&seed);
    snprintf(other, sizeof other, "%s/other.overlay", fx.directory);
    must(disk_overlay_stack_create(other, paths[1], fx.error, sizeof fx.error)); /* on the same, with another top */
    must(disk_overlay_merge_create(fresh, paths[3], fx.error, sizeof fx.error));
    must(disk_overlay_merge(from(1), 3, 0, fresh, fx.error, sizeof fx.error));
    must(disk_overlay_replace(from(1), 3, 0, fresh, fx.error, sizeof fx.error));
    unlink(paths[2]);
    unlink(paths[3]); /* but 4 stays, which they lay on */
    is_sound(paths[1]);
    verify_file(paths[0]);
    struct disk *d = disk_must_open(&fx, other); /* the one that knows it by the same id */
    disk_close(d);
}

/* The same again and again, each time by names that it got the last time. */
static void again_and_again(void **state)
{
    uint64_t seed = 3;

    make_chain(&seed);
    for (unsigned round = 0; round < 6; round++) {
        merge_from(1, LAYERS - 1, round % (LAYERS - 1));
        replace_from(1, LAYERS - 1, round % (LAYERS - 1));
        verify_file(paths[0]);
        /* The top is a layer from now on, and new ones come: files are renamed, as headers do not know. */
        assert_int_equal(rename(paths[1], paths[4]), 0);
        assert_int_equal(unlink(paths[0]), 0);
        must(disk_overlay_stack_create(paths[3], paths[4], fx.error, sizeof fx.error));
        struct disk *d = disk_must_open(&fx, paths[3]);
        static uint8_t all[65536];
        memset(want, (int)round + 1, SIZE); /* what was on top is gone */
        memset(all, (int)round + 1, sizeof all);
        for (uint64_t at = 0; at < SIZE; at += sizeof all)
            assert_int_equal(disk_write(d, at, all, sizeof all), 0);
        disk_close(d);
        for (unsigned i = 3; i-- > 0;) {
            must(disk_overlay_stack_create(paths[i], paths[i + 1], fx.error, sizeof fx.error));
            d = disk_must_open(&fx, paths[i]);
            scribble(d, 10, &seed);
            disk_close(d);
        }
        verify_file(paths[0]);
    }
}

static void what_does_not_belong_together_is_refused(void **state)
{
    uint64_t seed = 4;

    make_chain(&seed);
    assert_int_equal(
        disk_overlay_merge((const char *const[]){paths[0], paths[2]}, 2, 1, NULL, fx.error, sizeof fx.error), -ESTALE);
    assert_non_null(strstr(fx.error, "does not lie on"));
    struct disk *d = disk_must_open(&fx, paths[0]);
    for (unsigned into = 0; into < LAYERS - 1; into++) /* it is in use */
        assert_true(disk_overlay_merge(from(1), LAYERS - 1, into, NULL, fx.error, sizeof fx.error) < 0);
    verify(d);
    disk_close(d);
}

/* Between the two steps by which a merged file takes its place both are what the upper one was.  The first step alone:
 * by other names of the two. */
static void first_step(unsigned upper, unsigned count, unsigned into)
{
    char merged[128], place[128];
    const char *list[LAYERS];

    memcpy(list, from(upper), count * sizeof *list);
    snprintf(merged, sizeof merged, "%s/merged", fx.directory);
    snprintf(place, sizeof place, "%s/place", fx.directory);
    assert_int_equal(link(list[into], merged), 0);
    assert_int_equal(link(list[0], place), 0);
    list[into] = merged;
    list[0] = place;
    must(disk_overlay_replace(list, count, into, NULL, fx.error, sizeof fx.error));
    unlink(place);
}

static void halfway_into_its_place(void **state)
{
    uint64_t seed = 5;

    for (unsigned times = 0; times < 6; times++) { /* some were known by another's id before */
        unsigned count = times % 2 ? 3 : 4, into = 1 + times / 2 % (count - 1);
        make_chain(&seed);
        if (times % 2) {
            merge_from(3, 2, 1);
            replace_from(3, 2, 1);
        }
        merge_from(1, count, into);
        first_step(1, count, into);
        verify_file(paths[0]);
        if (into > 1) { /* the command dies there, and the next one merges fewer, or more */
            first_step(2, into, into - 1);
            verify_file(paths[0]);
        }
        count = into + 1; /* it does not lie on the others any more */
        replace_from(1, count, into);
        verify_file(paths[0]);
    }
}

/* --- a host that loses power, or has no room --------------------------------------------------------------------- */

static struct power {
    unsigned left; /* operations; then the power is off, or all fail */
    bool dead, holes;
    int error;
    uint8_t *stable;
    size_t size;
} power;

static bool is_off(void)
{
    if (!power.dead && power.left)
        power.left--;
    else
        power.dead = true;
    errno = power.error;
    return power.dead;
}

static ssize_t power_write(int fd, const void *data, size_t length, off_t offset)
{
    size_t some = length > 512 ? length / 1024 * 512 : length; /* it may take less */

    return is_off() ? -1 : pwrite(fd, data, some ? some : length, offset);
}

static int power_hole(int fd, off_t offset, off_t length)
{
    return !power.holes || is_off() ? -1 : merge_io_host.hole(fd, offset, length);
}

static int power_sync(int fd)
{
    if (is_off())
        return -1;
    assert_int_equal(pread(fd, power.stable, power.size, 0), power.size);
    return 0;
}

static const struct merge_io power_io = {power_write, power_hole, power_sync};

/* Of what is not on stable storage any part is there afterwards. */
static void lose_power(int fd, uint64_t *seed)
{
    uint8_t now[512];

    for (size_t at = 0; at < power.size; at += 512) {
        size_t n = power.size - at < 512 ? power.size - at : 512;
        assert_int_equal(pread(fd, now, n, (off_t)at), n);
        if (disk_random(seed) % 2 && memcmp(now, power.stable + at, n) != 0)
            assert_int_equal(pwrite(fd, power.stable + at, n, (off_t)at), n);
    }
}

/* Merges layers 1 to 4 into one of them or (into 4) into `path`, with so many operations. */
static int merge_with(const char *path, unsigned into, unsigned operations, uint64_t *seed, bool cut)
{
    struct overlay_header *h = calloc(LAYERS + 1, sizeof *h);
    struct merge_layer layers[LAYERS];
    uint8_t *map;
    unsigned n = 0;
    int fd = open(path, O_RDWR);

    for (unsigned i = 0; i < 4; i++) {
        if (i == into)
            continue;
        layers[n].fd = open(paths[i + 1], O_RDONLY);
        must(overlay_read_headers(layers[n].fd, paths[i + 1], &h[i], NULL, fx.error, sizeof fx.error));
        assert_int_equal(overlay_load_map(layers[n].fd, &h[i], (uint8_t **)(uintptr_t)&layers[n].map), 0);
        n++;
    }
    must(overlay_read_headers(fd, path, &h[LAYERS], NULL, fx.error, sizeof fx.error));
    assert_int_equal(overlay_load_map(fd, &h[LAYERS], &map), 0);
    power = (struct power){.left = operations,
                           .holes = disk_random(seed) % 2,
                           .error = cut ? EIO : ENOSPC,
                           .size = overlay_file_size(SIZE),
                           .stable = malloc(overlay_file_size(SIZE))};
    assert_int_equal(pread(fd, power.stable, power.size, 0), power.size);
    struct overlay_merge m = {
        .layers = layers, .n = n, .place = into, .into = fd, .header = &h[LAYERS], .map = map, .io = &power_io};
    int failed = overlay_merge(&m);
    if (cut)
        lose_power(fd, seed);
    for (unsigned i = 0; i < n; i++) {
        close(layers[i].fd);
        free((void *)(uintptr_t)layers[i].map);
    }
    free(map);
    free(power.stable);
    free(h);
    close(fd);
    return failed;
}

static void rounds_of(unsigned rounds, bool cut)
{
    uint64_t seed = cut ? 6 : 7;
    unsigned ended = 0;

    for (unsigned round = 0; round < rounds; round++) {
        unsigned into = round % 5; /* 4: a new file */
        char path[sizeof paths[0]];
        make_chain(&seed);
        if (into < 4) {
            memcpy(path, paths[1 + into], sizeof path);
        } else {
            snprintf(path, sizeof path, "%s/fresh", fx.directory);
            unlink(path);
            must(disk_overlay_merge_create(path, paths[LAYERS - 1], fx.error, sizeof fx.error));
        }
        int failed = merge_with(path, into, (unsigned)(disk_random(&seed) % 500), &seed, cut);
        if (failed)
            assert_int_equal(failed, cut ? -EIO : -ENOSPC);
        is_sound(path);
        verify_file(paths[0]);
        if (failed)
            continue;
        ended++;
        must(disk_overlay_replace(from(1), 4, into % 4, into == 4 ? path : NULL, fx.error, sizeof fx.error));
        verify_file(paths[0]);
    }
    assert_in_range(ended, 1, rounds - 1);
}

static void power_cuts(void **state)
{
    rounds_of(getenv("ROUNDS") ? (unsigned)atoi(getenv("ROUNDS")) : 15, true);
}

static void a_disk_that_is_full(void **state)
{
    rounds_of(15, false);
}

static ssize_t filling_write(int fd, const void *data, size_t length, off_t offset)
{
    errno = ENOSPC;
    return power.left && power.left-- ? pwrite(fd, data, length, offset) : -1;
}

static void what_was_written_in_vain_is_given_back(void **state)
{
    static const struct merge_io filling = {filling_write, NULL, NULL};
    uint64_t seed = 8;

    make_chain(&seed);
    uint64_t before = disk_blocks(paths[LAYERS - 1]);
    struct overlay_header h[2];
    struct merge_layer layer = {.fd = open(paths[3], O_RDONLY)};
    struct merge_io io = filling;
    uint8_t *map;
    int fd = open(paths[4], O_RDWR);
    io.hole = merge_io_host.hole;
    io.sync = merge_io_host.sync;
    must(overlay_read_headers(layer.fd, paths[3], &h[0], NULL, fx.error, sizeof fx.error));
    must(overlay_read_headers(fd, paths[4], &h[1], NULL, fx.error, sizeof fx.error));
    assert_int_equal(overlay_load_map(layer.fd, &h[0], (uint8_t **)(uintptr_t)&layer.map), 0);
    assert_int_equal(overlay_load_map(fd, &h[1], &map), 0);
    struct overlay_merge m = {.layers = &layer, .n = 1, .place = 1, .into = fd, .header = &h[1], .map = map, .io = &io};
    power.left = 6;
    assert_int_equal(overlay_merge(&m), -ENOSPC);
    assert_int_equal(power.left, 0);
    assert_true(disk_blocks(paths[4]) <= before);
    close(layer.fd);
    close(fd);
    free(map);
    free((void *)(uintptr_t)layer.map);
}

/* --- a disk that is in use --------------------------------------------------------------------------------------- */

static const char *id_of(const char *path)
{
    static char ids[2][DISK_OVERLAY_ID_SIZE];
    static unsigned turn;
    char *id = ids[turn++ % 2];

    assert_int_equal(disk_overlay_id(path, id), 0);
    return id;
}

static struct disk_merge *begin(struct disk *d, unsigned upper, unsigned lower, const char *into)
{
    const int fds[] = {open(into, O_RDWR | O_CLOEXEC), open(into, O_RDONLY | O_CLOEXEC)};
    struct disk_merge *m = NULL;

    must(disk_merge_begin(&m, d, id_of(paths[upper]), id_of(paths[lower]), fds, fx.error, sizeof fx.error));
    return m;
}

/* Layers 1 to 4: some go into a new file, then all into one of them. */
static void in_use(bool reopened, unsigned into, uint64_t seed)
{
    char fresh[128];
    make_image(&seed);
    struct disk *d = disk_must_open(&fx, paths[LAYERS - 1]);

    scribble(d, 20, &seed);
    for (unsigned i = LAYERS - 1; i-- > 0;) { /* as snapshots do it */
        must(disk_overlay_stack_create(paths[i], paths[i + 1], fx.error, sizeof fx.error));
        int fd = disk_overlay_stack_open(paths[i], fx.error, sizeof fx.error);
        assert_true(fd >= 0);
        must(disk_overlay_stack(d, fd, fx.error, sizeof fx.error));
        scribble(d, 20, &seed);
    }
    if (reopened) {
        disk_close(d);
        d = disk_must_open(&fx, paths[0]);
    }
    snprintf(fresh, sizeof fresh, "%s/fresh.overlay", fx.directory);
    must(disk_overlay_merge_create(fresh, paths[2], fx.error, sizeof fx.error));
    struct disk_merge *m = begin(d, 1, 2, fresh);
    scribble(d, 10, &seed);
    assert_int_equal(disk_merge_run(m, NULL), 0);
    scribble(d, 10, &seed);
    disk_merge_end(m, true);
    must(disk_overlay_replace(from(1), 2, 0, fresh, fx.error, sizeof fx.error));
    unlink(paths[2]);
    verify(d);
    scribble(d, 10, &seed);
    m = begin(d, 3, 4, paths[4]); /* in vain */
    assert_int_equal(disk_merge_run(m, NULL), 0);
    disk_merge_end(m, false);
    verify(d);
    const char *const list[] = {paths[1], paths[3], paths[4]};
    m = begin(d, 1, 4, list[into]);
    scribble(d, 10, &seed);
    assert_int_equal(disk_merge_run(m, NULL), 0);
    disk_merge_end(m, true);
    must(disk_overlay_replace(list, 3, into, NULL, fx.error, sizeof fx.error));
    unlink(paths[3]);
    unlink(paths[4]);
    verify(d);
    scribble(d, 10, &seed);
    int fds[] = {open(paths[1], O_RDWR), open(paths[1], O_RDONLY)}; /* there is nothing left to merge */
    assert_int_equal(disk_merge_begin(&m, d, id_of(paths[1]), id_of(paths[1]), fds, fx.error, sizeof fx.error),
                     -EINVAL);
    assert_int_equal(disk_merge_begin(&m, d, id_of(paths[0]), id_of(paths[1]), fds, fx.error, sizeof fx.error),
                     -ENOENT);
    close(fds[0]);
    close(fds[1]);
    disk_close(d);
    is_sound(paths[0]);
    is_sound(paths[1]);
    verify_file(paths[0]);
    for (unsigned i = 0; i < LAYERS; i++)
        unlink(paths[i]);
}

static void layers_of_a_disk_that_was_opened(void **state)
{
    for (unsigned into = 0; into < 3; into++)
        in_use(true, into, 9 + into);
}

static void layers_that_came_while_it_was_open(void **state)
{
    for (unsigned into = 0; into < 3; into++)
        in_use(false, into, 20 + into);
}

#define T(name) cmocka_unit_test_setup_teardown(name, disk_setup, disk_teardown)
int main(void)
{
    const struct CMUnitTest tests[] = {
        T(all_become_one),
        T(some_become_one),
        T(or_a_new_one_beside_what_others_have),
        T(again_and_again),
        T(what_does_not_belong_together_is_refused),
        T(halfway_into_its_place),
        T(power_cuts),
        T(a_disk_that_is_full),
        T(what_was_written_in_vain_is_given_back),
        T(layers_of_a_disk_that_was_opened),
        T(layers_that_came_while_it_was_open),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
