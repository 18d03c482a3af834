/* The copy-on-write overlay: against a plain model, and through crashes of the process and of the host. */
#include "disk_fixture.h"

#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>

#include "backends/disk/overlay.h"
#include "backends/disk/overlay_format.h"
#include "base/crc32c.h"
#include "crash_io.h"

#define KIB 1024ull
#define MIB (1024 * KIB)
#define GROUP (OVERLAY_GROUP * (uint64_t)OVERLAY_GRANULE)

static const char *make_base(const char *name, uint64_t size, uint64_t seed)
{
    const char *path = disk_file(&fx, name, size);
    uint8_t *data = malloc(size);
    int fd = open(path, O_WRONLY);

    disk_fill(data, size, seed);
    assert_int_equal(write(fd, data, size), size);
    close(fd);
    free(data);
    return path;
}

static void must_create(const char *path, const char *base, uint64_t size)
{
    if (disk_overlay_create(path, base, size, fx.error, sizeof fx.error))
        fail_msg("%s", fx.error);
}

static void check(const char *path, uint64_t owned)
{
    struct disk_overlay_report report;

    if (disk_overlay_check(path, &report, fx.error, sizeof fx.error))
        fail_msg("%s", fx.error);
    if (owned != ~0ull)
        assert_int_equal(report.owned, owned);
}

/* --- what it is ---------------------------------------------------------------------------------------------- */

static void check_sums(void **state)
{
    assert_int_equal(crc32c(0, "123456789", 9), 0xe3069283);
    assert_int_equal(crc32c(crc32c(0, "1234", 4), "56789", 5), 0xe3069283);
}

static void the_base_shines_through(void **state)
{
    const char *base = make_base("base.img", MIB, 1), *path = disk_path(&fx, "a.overlay");
    uint8_t *want = malloc(MIB), *got = malloc(MIB), block[4096];

    disk_fill(want, MIB, 1);
    must_create(path, base, 0);
    struct disk *d = disk_must_open(&fx, path);
    assert_int_equal(d->size, MIB);
    assert_int_equal(disk_read(d, 0, got, MIB), 0);
    assert_memory_equal(want, got, MIB);
    memset(block, 0x5a, sizeof block);
    assert_int_equal(disk_write(d, 8192, block, 4096), 0);       /* one granule */
    assert_int_equal(disk_write(d, 16384 + 512, block, 512), 0); /* a part: the rest comes from the base */
    assert_int_equal(disk_write(d, 32768 - 512, block, 1024), 0);
    memcpy(want + 8192, block, 4096);
    memcpy(want + 16384 + 512, block, 512);
    memcpy(want + 32768 - 512, block, 1024);
    assert_int_equal(disk_read(d, 0, got, MIB), 0);
    assert_memory_equal(want, got, MIB);
    disk_close(d);
    check(path, 4);
    d = disk_must_open(&fx, path);
    assert_int_equal(disk_read(d, 0, got, MIB), 0);
    assert_memory_equal(want, got, MIB);
    disk_close(d);
    assert_true(disk_blocks(path) < 512); /* 256 KiB: it holds what was written, not the base */
    free(want);
    free(got);
}

static void larger_than_the_base_and_without_one(void **state)
{
    const char *base = make_base("base.img", 5 * 4096 + 512, 1);
    uint8_t got[8192], want[8192];

    must_create(disk_path(&fx, "a.overlay"), base, MIB);
    struct disk *d = disk_must_open(&fx, disk_path(&fx, "a.overlay"));
    uint8_t all[5 * 4096 + 512];
    disk_fill(all, sizeof all, 1);
    memset(want, 0, sizeof want);
    memcpy(want, all + 4 * 4096, 4096 + 512);
    assert_int_equal(disk_read(d, 4 * 4096, got, 8192), 0);
    assert_memory_equal(got, want, 8192);
    assert_int_equal(disk_write(d, 5 * 4096 + 1024, want, 512), 0); /* the granule in which the base ends */
    memcpy(want + 4096 + 1024, want, 512);
    assert_int_equal(disk_read(d, 4 * 4096, got, 8192), 0);
    assert_memory_equal(got, want, 8192);
    assert_int_equal(disk_read(d, MIB - 8192, got, 8192), 0);
    for (unsigned i = 0; i < 8192; i++)
        assert_int_equal(got[i], 0);
    disk_close(d);
    must_create(disk_path(&fx, "b.overlay"), NULL, MIB);
    d = disk_must_open(&fx, disk_path(&fx, "b.overlay"));
    assert_int_equal(disk_write(d, 512, want, 512), 0);
    assert_int_equal(disk_read(d, 0, got, 1024), 0);
    assert_int_equal(got[0], 0);
    assert_memory_equal(got + 512, want, 512);
    disk_close(d);
}

static void one_over_the_other(void **state)
{
    uint8_t block[4096], got[4096];
    char words[200];

    must_create(disk_path(&fx, "0.overlay"), make_base("base.img", MIB, 1), 0);
    for (unsigned i = 0; i < 3; i++) {
        char lower[128], upper[128];
        snprintf(lower, sizeof lower, "%s/%u.overlay", fx.directory, i);
        snprintf(upper, sizeof upper, "%s/%u.overlay", fx.directory, i + 1);
        struct disk *d = disk_must_open(&fx, lower);
        memset(block, (int)i + 1, sizeof block);
        assert_int_equal(disk_write(d, i * 8192, block, 4096), 0);
        disk_close(d);
        must_create(upper, lower, 0);
    }
    snprintf(words, sizeof words, "%s/3.overlay", fx.directory);
    struct disk *d = disk_must_open(&fx, words);
    for (unsigned i = 0; i < 3; i++) {
        memset(block, (int)i + 1, sizeof block);
        assert_int_equal(disk_read(d, i * 8192, got, 4096), 0);
        assert_memory_equal(got, block, 4096);
    }
    /* The lower ones are in use as bases: nobody may write to them. */
    struct disk *other;
    snprintf(words, sizeof words, "%s/1.overlay", fx.directory);
    assert_int_equal(disk_open(&other, words, fx.loop, fx.error, sizeof fx.error), -EBUSY);
    disk_close(d);
    /* What lies below was changed. */
    d = disk_must_open(&fx, words);
    assert_int_equal(disk_write(d, 0, block, 4096), 0);
    disk_close(d);
    snprintf(words, sizeof words, "%s/2.overlay", fx.directory);
    assert_int_equal(disk_open(&other, words, fx.loop, fx.error, sizeof fx.error), -ESTALE);
    assert_non_null(strstr(fx.error, "has been written to since"));
}

static void refuse(const char *path, const char *base, uint64_t size, const char *why)
{
    assert_true(disk_overlay_create(path, base, size, fx.error, sizeof fx.error) < 0);
    if (!strstr(fx.error, why))
        fail_msg("%s", fx.error);
}

static void what_cannot_be_made(void **state)
{
    const char *base = make_base("base.img", MIB, 1), *path = disk_path(&fx, "a.overlay");

    refuse(path, base, MIB - 512, "at least as large");
    refuse(path, base, MIB + 1, "multiple of 512");
    refuse(path, NULL, 0, "needs a size");
    refuse(path, NULL, 1ull << 60, "at most 16 TiB");
    refuse(path, "/nonexistent", 0, "No such file");
    refuse("/nonexistent/a.overlay", base, 0, "cannot make overlay");
    assert_int_not_equal(access(path, F_OK), 0); /* nothing is left behind */
    must_create(path, base, 0);
    refuse(path, base, 0, "File exists");
    struct disk *d;
    char words[200];
    snprintf(words, sizeof words, "%s,format=raw", path);
    d = disk_must_open(&fx, words); /* as it is, if somebody says so */
    disk_close(d);
    assert_int_equal(rename(path, disk_path(&fx, "a.img")), 0);
    assert_int_equal(disk_open(&d, disk_path(&fx, "a.img"), fx.loop, fx.error, sizeof fx.error), -EINVAL);
    assert_non_null(strstr(fx.error, "looks like overlay: add format=overlay"));
    snprintf(words, sizeof words, "%s,format=overlay", disk_path(&fx, "a.img"));
    disk_close(disk_must_open(&fx, words));
    assert_int_equal(unlink(base), 0);
    assert_int_equal(disk_open(&d, words, fx.loop, fx.error, sizeof fx.error), -ENOENT);
    assert_non_null(strstr(fx.error, "the base of overlay"));
}

static void growing(void **state)
{
    const char *base = make_base("base.img", MIB - 512, 1), *path = disk_path(&fx, "a.overlay");
    uint8_t block[4096], got[4096];

    must_create(path, base, 0);
    struct disk *d = disk_must_open(&fx, path);
    memset(block, 7, sizeof block);
    assert_int_equal(disk_write(d, MIB - 1024, block, 512), 0); /* the last, incomplete granule */
    disk_close(d);
    assert_int_equal(disk_overlay_grow(path, MIB - 1024, fx.error, sizeof fx.error), -EINVAL);
    assert_int_equal(disk_overlay_grow(path, 300 * MIB, fx.error, sizeof fx.error), 0);
    assert_int_equal(disk_overlay_grow(path, 300 * MIB, fx.error, sizeof fx.error), 0);
    d = disk_must_open(&fx, path);
    assert_int_equal(d->size, 300 * MIB);
    assert_int_equal(disk_read(d, MIB - 1024, got, 4096), 0);
    for (unsigned i = 0; i < 4096; i++)
        assert_int_equal(got[i], i < 512 ? 7 : 0);
    assert_int_equal(disk_write(d, 300 * MIB - 4096, block, 4096), 0);
    assert_int_equal(disk_write(d, 200 * MIB, block, 4096), 0);
    disk_close(d);
    check(path, 3);
}

static void discards_free(void **state)
{
    const char *base = make_base("base.img", 8 * MIB, 1), *path = disk_path(&fx, "a.overlay");
    uint8_t *data = malloc(4 * MIB), *got = malloc(4 * MIB);

    must_create(path, base, 0);
    struct disk *d = disk_must_open(&fx, path);
    disk_fill(data, 4 * MIB, 5);
    assert_int_equal(disk_write(d, 0, data, 4 * MIB), 0);
    assert_int_equal(disk_do(d, DISK_FLUSH, 0, 0, NULL, 0), 0);
    uint64_t before = disk_blocks(path);
    assert_true(before >= 4 * MIB / 512);
    assert_int_equal(disk_do(d, DISK_DISCARD, 0, 4096 - 512, NULL, 4 * MIB - 4096), 0);
    assert_true(disk_blocks(path) <= before - 4 * MIB / 512 + 64);
    assert_int_equal(disk_read(d, 0, got, 4096), 0); /* the ends are no whole granules */
    assert_memory_equal(got, data, 4096);
    assert_int_equal(disk_read(d, 4096, got, 4096), 0);
    assert_int_equal(got[0], 0);
    /* Zeroes over what is the base's hide it. */
    assert_int_equal(disk_do(d, DISK_WRITE_ZEROES, 0, 5 * MIB + 512, NULL, 3 * 4096), 0);
    assert_int_equal(disk_read(d, 5 * MIB, got, 5 * 4096), 0);
    uint8_t *want = malloc(8 * MIB);
    disk_fill(want, 8 * MIB, 1);
    memset(want + 5 * MIB + 512, 0, 3 * 4096);
    assert_memory_equal(got, want + 5 * MIB, 5 * 4096);
    assert_int_equal(disk_do(d, DISK_WRITE_ZEROES, DISK_FUA, 6 * MIB + 512, NULL, 1024), 0); /* within one granule */
    memset(want + 6 * MIB + 512, 0, 1024);
    assert_int_equal(disk_read(d, 6 * MIB, got, 4096), 0);
    assert_memory_equal(got, want + 6 * MIB, 4096);
    disk_close(d);
    check(path, 1024 + 4 + 1);
    free(data);
    free(got);
    free(want);
}

/* --- damage ---------------------------------------------------------------------------------------------------- */

static void poke(const char *path, uint64_t at, uint8_t value)
{
    int fd = open(path, O_RDWR);
    uint8_t old;
    assert_int_equal(pread(fd, &old, 1, (off_t)at), 1);
    old ^= value;
    assert_int_equal(pwrite(fd, &old, 1, (off_t)at), 1);
    close(fd);
}

static void damage_is_found(void **state)
{
    const char *base = make_base("base.img", MIB, 1), *path = disk_path(&fx, "a.overlay");
    struct disk_overlay_report report;
    uint8_t block[4096] = {1};
    struct disk *d;

    must_create(path, base, 0);
    d = disk_must_open(&fx, path);
    assert_int_equal(disk_write(d, 0, block, 4096), 0);
    disk_close(d);
    for (unsigned at = 0; at < 4096; at += 37) { /* anything in the only header */
        poke(path, at, 0x10);
        assert_int_equal(disk_open(&d, path, fx.loop, fx.error, sizeof fx.error), -EBADMSG);
        poke(path, at, 0x10);
    }
    assert_int_equal(disk_overlay_grow(path, 2 * MIB, fx.error, sizeof fx.error), 0); /* now there is a second */
    poke(path, 100, 1);
    disk_close(disk_must_open(&fx, path));
    assert_int_equal(disk_overlay_check(path, &report, fx.error, sizeof fx.error), 0);
    assert_int_equal(report.bad_headers, 1);
    poke(path, 100, 1);
    poke(path, 4096 + 100, 1); /* the second is bad: the first, older one counts */
    d = disk_must_open(&fx, path);
    assert_int_equal(d->size, MIB);
    disk_close(d);
    poke(path, 4096 + 100, 1);
    for (unsigned at = 8192; at < 8192 + 512; at += 13) {
        poke(path, at, 0x20);
        assert_int_equal(disk_open(&d, path, fx.loop, fx.error, sizeof fx.error), -EBADMSG);
        assert_int_equal(disk_overlay_check(path, &report, fx.error, sizeof fx.error), -EBADMSG);
        assert_int_equal(report.bad_sectors, 1);
        poke(path, at, 0x20);
    }
    check(path, 1);
    assert_int_equal(truncate(path, 100000), 0);
    assert_int_equal(disk_open(&d, path, fx.loop, fx.error, sizeof fx.error), -EBADMSG);
    assert_non_null(strstr(fx.error, "its end is missing"));
    assert_int_equal(truncate(path, 100), 0);
    assert_int_equal(disk_open(&d, path, fx.loop, fx.error, sizeof fx.error), -EBADMSG);
}

static void another_base_is_noticed(void **state)
{
    const char *base = make_base("base.img", MIB, 1), *path = disk_path(&fx, "a.overlay");
    struct disk *d;

    must_create(path, base, 0);
    poke(base, 1024 + 48, 1); /* as a mount would */
    assert_int_equal(disk_open(&d, path, fx.loop, fx.error, sizeof fx.error), -ESTALE);
    poke(base, 1024 + 48, 1);
    disk_close(disk_must_open(&fx, path));
    assert_int_equal(truncate(base, 2 * MIB), 0);
    assert_int_equal(disk_open(&d, path, fx.loop, fx.error, sizeof fx.error), -ESTALE);
}

/* --- a model with versions ---------------------------------------------------------------------------------------- */

/*
 * Each sector has a history: version 0 is what it was at the start, each write to it is the next.  A write stamps its
 * version into the sector.  Reading must give the newest.  After a crash it may be any from `floor` on, the newest one
 * that a flush has covered.
 */
#define AREA_SECTORS 2048u
#define VERSIONS_MAX 100000u
#define REQUESTS 24u

enum { KIND_DATA, KIND_ZERO, KIND_ANY };

struct sector {
    uint32_t newest, completed, floor;
    bool busy;
    uint8_t kinds[256]; /* of the version modulo 256: crashes come before a sector has so many at once */
};

struct pending {
    struct disk_request r;
    struct iovec iov[3];
    uint8_t data[64 * 512];
    bool used, read;
    unsigned first, count;
    uint32_t covered[AREA_SECTORS]; /* FLUSH: what was completed when it began */
    struct model *model;
};

struct model {
    struct disk *disk;
    uint64_t offset; /* of the area on the disk */
    struct sector sectors[AREA_SECTORS];
    struct pending pending[REQUESTS];
    uint64_t seed;
    bool may_fail; /* errors are injected: a failed write leaves old or new */
    unsigned wrong, failed, done;
};

static void stamp(uint8_t *sector, unsigned index, uint32_t version)
{
    uint64_t seed = ((uint64_t)index << 32 | version) * 0x9e3779b97f4a7c15ull + 1;

    disk_fill(sector, 512, seed);
    memcpy(sector, &index, 4);
    memcpy(sector + 4, &version, 4);
}

/* Is this one of versions [low, high] of the sector? */
static bool is_version(const struct model *m, unsigned index, const uint8_t *sector, uint32_t low, uint32_t high)
{
    const struct sector *s = &m->sectors[index];
    static const uint8_t zeroes[512];
    uint8_t want[512];
    uint32_t i, v;

    memcpy(&i, sector, 4);
    memcpy(&v, sector + 4, 4);
    for (uint32_t k = low;; k++) {
        uint8_t kind = s->kinds[k % 256];
        if (kind == KIND_ANY)
            return true;
        if (kind == KIND_ZERO && memcmp(sector, zeroes, 512) == 0)
            return true;
        if (kind == KIND_DATA && i == index && v == k) {
            stamp(want, index, v);
            if (memcmp(sector, want, 512) == 0)
                return true;
        }
        if (k == high)
            return false;
    }
}

static void model_done(struct disk_request *r)
{
    struct pending *p = r->opaque;
    struct model *m = p->model;

    p->used = false;
    m->done++;
    m->failed += r->result != 0;
    if (r->result && !m->may_fail)
        m->wrong++;
    for (unsigned i = 0; r->op != DISK_FLUSH && i < p->count; i++) {
        struct sector *s = &m->sectors[p->first + i];
        s->busy = false;
        if (p->read && !r->result && !is_version(m, p->first + i, p->data + i * 512, s->completed, s->newest))
            m->wrong++;
        if (!p->read && !r->result) {
            s->completed = s->newest;
            if (r->flags & DISK_FUA)
                s->floor = s->newest;
        }
    }
    if (r->op == DISK_FLUSH && !r->result)
        for (unsigned i = 0; i < AREA_SECTORS; i++)
            if (p->covered[i] > m->sectors[i].floor)
                m->sectors[i].floor = p->covered[i];
}

static void pieces(struct model *m, struct pending *p)
{
    uint64_t left = p->count * 512ull, at = 0;

    for (p->r.n_iov = 0; left; p->r.n_iov++) {
        uint64_t piece = p->r.n_iov == 2 ? left : 1 + disk_random(&m->seed) % left;
        p->iov[p->r.n_iov] = (struct iovec){p->data + at, piece};
        at += piece;
        left -= piece;
    }
    p->r.iov = p->iov;
}

static void prepare_write(struct model *m, struct pending *p, unsigned kind)
{
    for (unsigned i = 0; i < p->count; i++) {
        struct sector *s = &m->sectors[p->first + i];
        s->newest++;
        s->kinds[s->newest % 256] = (uint8_t)kind;
        if (kind == KIND_DATA)
            stamp(p->data + i * 512, p->first + i, s->newest);
    }
}

/* Begins something on sectors that nothing else is at work on; false: it did not find any. */
static bool model_step(struct model *m)
{
    static const uint8_t ops[] = {DISK_READ,  DISK_READ,  DISK_WRITE,   DISK_WRITE,        DISK_WRITE,
                                  DISK_WRITE, DISK_FLUSH, DISK_DISCARD, DISK_WRITE_ZEROES, DISK_WRITE};
    struct pending *p = &m->pending[disk_random(&m->seed) % REQUESTS];
    uint64_t dice = disk_random(&m->seed);
    enum disk_op op = (enum disk_op)ops[dice % 10];

    if (p->used)
        return false;
    p->first = (unsigned)(disk_random(&m->seed) % AREA_SECTORS);
    p->count = 1 + (unsigned)(disk_random(&m->seed) % (dice & 1024 ? 64 : 8));
    if (p->count > AREA_SECTORS - p->first)
        p->count = AREA_SECTORS - p->first;
    for (unsigned i = 0; op != DISK_FLUSH && i < p->count; i++)
        if (m->sectors[p->first + i].busy || m->sectors[p->first + i].newest - m->sectors[p->first + i].floor > 200)
            return false;
    p->used = true;
    p->model = m;
    p->read = op == DISK_READ;
    p->r = (struct disk_request){.op = op, .done = model_done, .opaque = p};
    if (op == DISK_FLUSH) {
        for (unsigned i = 0; i < AREA_SECTORS; i++)
            p->covered[i] = m->sectors[i].completed;
    } else {
        p->r.offset = m->offset + p->first * 512ull;
        p->r.length = p->count * 512ull;
        for (unsigned i = 0; i < p->count; i++)
            m->sectors[p->first + i].busy = true;
    }
    if (op == DISK_WRITE)
        prepare_write(m, p, KIND_DATA);
    if (op == DISK_WRITE_ZEROES)
        prepare_write(m, p, KIND_ZERO);
    if (op == DISK_DISCARD)
        prepare_write(m, p, KIND_ANY);
    if ((op == DISK_WRITE || op == DISK_WRITE_ZEROES) && dice % 7 == 0)
        p->r.flags = DISK_FUA;
    if (op == DISK_READ || op == DISK_WRITE)
        pieces(m, p);
    disk_submit(m->disk, &p->r);
    return true;
}

static void model_run(struct model *m, unsigned steps)
{
    for (unsigned i = 0; i < steps; i++) {
        model_step(m);
        if (disk_random(&m->seed) % 3 == 0)
            disk_kick(m->disk);
        if (disk_random(&m->seed) % 64 == 0)
            disk_drain(m->disk);
    }
}

/* Reads all of the area; each sector is one of the versions that it may be.  From here on that is version 0. */
static void model_verify(struct model *m, bool crashed)
{
    uint8_t *all = malloc(AREA_SECTORS * 512);

    assert_int_equal(disk_read(m->disk, m->offset, all, AREA_SECTORS * 512), 0);
    for (unsigned i = 0; i < AREA_SECTORS; i++) {
        const struct sector *s = &m->sectors[i];
        if (!is_version(m, i, all + i * 512, crashed ? s->floor : s->completed, s->newest)) {
            uint32_t index, version;
            memcpy(&index, all + i * 512, 4);
            memcpy(&version, all + i * 512 + 4, 4);
            fail_msg("sector %u has (%u, %u), not one of %u..%u", i, index, version, s->floor, s->newest);
        }
    }
    free(all);
}

/* What the sectors hold now is written once more, so that each has a known version, and flushed. */
static void model_settle(struct model *m)
{
    uint8_t *all = malloc(AREA_SECTORS * 512);

    for (unsigned i = 0; i < AREA_SECTORS; i++) {
        struct sector *s = &m->sectors[i];
        *s = (struct sector){.newest = s->newest + 1};
        s->completed = s->floor = s->newest;
        stamp(all + i * 512, i, s->newest);
    }
    assert_int_equal(disk_write(m->disk, m->offset, all, AREA_SECTORS * 512), 0);
    assert_int_equal(disk_do(m->disk, DISK_FLUSH, 0, 0, NULL, 0), 0);
    free(all);
}

/* A base whose area has version 0 of each sector. */
static void model_base(const char *path, uint64_t offset)
{
    uint8_t sector[512];
    int fd = open(path, O_WRONLY);

    for (unsigned i = 0; i < AREA_SECTORS; i++) {
        stamp(sector, i, 0);
        assert_int_equal(pwrite(fd, sector, 512, (off_t)(offset + i * 512ull)), 512);
    }
    close(fd);
}

static struct model *model_new(uint64_t offset, uint64_t seed)
{
    struct model *m = calloc(1, sizeof *m);
    m->offset = offset;
    m->seed = seed;
    return m;
}

/* Reads, writes, zeroes, discards and flushes at once, also over the border of two groups. */
static void equals_a_plain_model(void **state)
{
    static const uint64_t offsets[] = {0, 4096 - 512, GROUP - 100 * 512ull};

    for (unsigned round = 0; round < 3; round++) {
        char path[128];
        const char *base = disk_file(&fx, "base.img", GROUP + MIB);
        snprintf(path, sizeof path, "%s/%u.overlay", fx.directory, round);
        model_base(base, offsets[round]);
        must_create(path, base, 0);
        struct model *m = model_new(offsets[round], 100 + round);
        m->disk = disk_must_open(&fx, path);
        for (unsigned i = 0; i < 10; i++) {
            model_run(m, 3000);
            disk_drain(m->disk);
            assert_int_equal(m->wrong, 0);
            model_verify(m, false);
            disk_close(m->disk);
            check(path, ~0ull);
            m->disk = disk_must_open(&fx, path);
            model_verify(m, false);
            model_settle(m);
        }
        assert_true(m->done > 3000);
        disk_close(m->disk);
        free(m);
    }
}

/* --- crashes ----------------------------------------------------------------------------------------------------- */

static struct disk *open_crashing(const char *path, struct crash_io *io)
{
    struct disk_spec spec;
    struct disk *disk = NULL;

    assert_int_equal(disk_parse(path, &spec, fx.error, sizeof fx.error), 0);
    if (overlay_open_with(&disk, &spec, fx.loop, &io->io, fx.error, sizeof fx.error))
        fail_msg("%s", fx.error);
    return disk;
}

/* Runs until the power fails or the process is killed; then looks at what is left.  Mostly with a new overlay, since
 * one that has been written to all over has no bits to set any more; each fourth time with the old one. */
static void crash_rounds(unsigned rounds, bool larger, uint64_t seed)
{
    const char *base = disk_file(&fx, "base.img", 2 * MIB);
    char path[128], stable[128];

    snprintf(path, sizeof path, "%s/work.overlay", fx.directory);
    snprintf(stable, sizeof stable, "%s/stable.overlay", fx.directory);
    model_base(base, 4096);
    struct model *m = model_new(4096, seed);
    for (unsigned round = 0; round < rounds; round++) {
        if (round % 4 != 3) {
            unlink(path);
            must_create(path, base, larger ? 4 * MIB : 0);
            memset(m->sectors, 0, sizeof m->sectors);
        }
        struct crash_io *io = crash_create(fx.loop, path, stable, disk_random(&seed));
        bool killed = disk_random(&seed) % 2;

        m->disk = open_crashing(path, io);
        m->disk->said = true;
        model_run(m, 20 + (unsigned)(disk_random(&seed) % 400));
        assert_int_equal(m->wrong, 0);
        if (killed)
            io->dead = true; /* the host lives: what was written is in its page cache */
        else
            crash_power_off(io);
        m->may_fail = true;
        /* The process ends: what it would still do goes nowhere, the model does not believe any of it. */
        struct sector before[AREA_SECTORS];
        memcpy(before, m->sectors, sizeof before);
        disk_close(m->disk);
        memcpy(m->sectors, before, sizeof before);
        m->may_fail = false;
        if (!killed)
            assert_int_equal(rename(stable, path), 0);
        check(path, ~0ull);
        m->disk = disk_must_open(&fx, path);
        model_verify(m, true);
        if (round % 4 == 2)
            model_settle(m);
        disk_close(m->disk);
    }
    free(m);
}

static void what_was_flushed_survives(void **state)
{
    crash_rounds(getenv("ROUNDS") ? (unsigned)atoi(getenv("ROUNDS")) : 120, false, 42);
}

static void also_behind_the_end_of_the_base(void **state)
{
    crash_rounds(20, true, 43);
}

/* The same with a host that fails one operation in twenty: a failed flush promises nothing, a failed write may or may
 * not have happened, and all the rest holds. */
static void errors_of_the_host(void **state)
{
    static const int errors[] = {-EIO, -ENOSPC};

    for (unsigned round = 0; round < 16; round++) {
        const char *base = disk_file(&fx, "base.img", 2 * MIB);
        char path[128], stable[128];

        snprintf(path, sizeof path, "%s/work%u.overlay", fx.directory, round);
        snprintf(stable, sizeof stable, "%s/stable.overlay", fx.directory);
        model_base(base, 4096);
        must_create(path, base, 0);
        struct crash_io *io = crash_create(fx.loop, path, stable, round + 7);
        struct model *m = model_new(4096, round + 1);
        m->disk = open_crashing(path, io);
        m->disk->said = true;
        m->may_fail = true;
        io->fail = 20;
        io->fail_with = errors[round % 2];
        model_run(m, 500);
        disk_drain(m->disk);
        assert_int_equal(m->disk->in_flight, 0);
        assert_int_equal(m->wrong, 0);
        assert_int_not_equal(m->failed, 0);
        io->fail = 0;
        crash_power_off(io);
        disk_close(m->disk);
        assert_int_equal(rename(stable, path), 0);
        check(path, ~0ull);
        m->disk = disk_must_open(&fx, path);
        model_verify(m, true);
        disk_close(m->disk);
        free(m);
    }
}

/* After a sync that failed the kernel forgets: no flush may say again that all is well. */
static void a_failed_sync_is_not_forgotten(void **state)
{
    const char *path = disk_path(&fx, "a.overlay");
    char stable[128];
    uint8_t block[4096] = {1};

    snprintf(stable, sizeof stable, "%s/stable", fx.directory);
    must_create(path, NULL, MIB);
    struct crash_io *io = crash_create(fx.loop, path, stable, 1);
    struct disk *d = open_crashing(path, io);
    d->said = true;
    io->orderly = true;
    assert_int_equal(disk_write(d, 0, block, 4096), 0);
    io->fail = 1;
    assert_int_equal(disk_do(d, DISK_FLUSH, 0, 0, NULL, 0), -EIO);
    io->fail = 0;
    assert_int_equal(disk_do(d, DISK_FLUSH, 0, 0, NULL, 0), -EIO);
    assert_int_equal(disk_do(d, DISK_WRITE, DISK_FUA, 0, block, 4096), -EIO);
    assert_int_equal(disk_write(d, 0, block, 4096), 0);
    assert_int_equal(disk_read(d, 0, block, 4096), 0);
    disk_close(d);
}

/* How many syncs things cost: a flush with nothing new none, one with new data but old granules one, else two. */
static void flushes_cost_what_they_must(void **state)
{
    const char *path = disk_path(&fx, "a.overlay");
    char stable[128];
    uint8_t block[4096] = {1};

    snprintf(stable, sizeof stable, "%s/stable", fx.directory);
    must_create(path, NULL, MIB);
    struct crash_io *io = crash_create(fx.loop, path, stable, 1);
    struct disk *d = open_crashing(path, io);
    io->orderly = true;
    assert_int_equal(disk_do(d, DISK_FLUSH, 0, 0, NULL, 0), 0);
    assert_int_equal(io->syncs, 0);
    assert_int_equal(disk_write(d, 0, block, 4096), 0);
    assert_int_equal(disk_do(d, DISK_FLUSH, 0, 0, NULL, 0), 0);
    assert_int_equal(io->syncs, 2);
    assert_int_equal(disk_write(d, 0, block, 4096), 0);
    assert_int_equal(disk_do(d, DISK_FLUSH, 0, 0, NULL, 0), 0);
    assert_int_equal(io->syncs, 3);
    assert_int_equal(disk_do(d, DISK_WRITE, DISK_FUA, 0, block, 4096), 0); /* by itself */
    assert_int_equal(io->syncs, 3);
    assert_int_equal(disk_do(d, DISK_WRITE, DISK_FUA, 4096, block, 4096), 0);
    assert_int_equal(io->syncs, 5);
    disk_close(d);
}

/* --- a process that is killed ------------------------------------------------------------------------------------ */

struct journal { /* shared with the child: what it had flushed */
    uint32_t flushed[AREA_SECTORS], submitted[AREA_SECTORS];
};

static void child(const char *path, struct journal *j, uint64_t seed)
{
    struct disk *d = NULL;
    uint8_t sector[512];
    uint32_t version[AREA_SECTORS];

    memcpy(version, j->flushed, sizeof version);
    if (disk_open(&d, path, fx.loop, fx.error, sizeof fx.error))
        _exit(1);
    for (;;) {
        for (unsigned i = 0; i < 8; i++) {
            unsigned s = (unsigned)(disk_random(&seed) % AREA_SECTORS);
            stamp(sector, s, ++version[s]);
            j->submitted[s] = version[s];
            if (disk_write(d, s * 512ull, sector, 512))
                _exit(2);
        }
        if (disk_do(d, DISK_FLUSH, 0, 0, NULL, 0))
            _exit(3);
        memcpy(j->flushed, version, sizeof version);
    }
}

static void kill_9(void **state)
{
    const char *path = disk_path(&fx, "a.overlay");
    char copy[128];
    struct journal *j = mmap(NULL, sizeof *j, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    uint64_t seed = 77;
    int status;

    snprintf(copy, sizeof copy, "%s", path);
    must_create(copy, NULL, AREA_SECTORS * 512);
    for (unsigned round = 0; round < 20; round++) {
        pid_t pid = fork();
        if (pid == 0)
            child(copy, j, disk_random(&seed) + round);
        usleep((useconds_t)(1000 + disk_random(&seed) % 40000));
        kill(pid, SIGKILL);
        waitpid(pid, &status, 0);
        assert_true(WIFSIGNALED(status));
        check(copy, ~0ull);
        struct disk *d = disk_must_open(&fx, copy);
        for (unsigned i = 0; i < AREA_SECTORS; i++) {
            uint8_t sector[512];
            uint32_t version;
            assert_int_equal(disk_read(d, i * 512ull, sector, 512), 0);
            memcpy(&version, sector + 4, 4);
            assert_in_range(version, j->flushed[i], j->submitted[i]);
            j->flushed[i] = j->submitted[i] = version;
        }
        disk_close(d);
    }
    munmap(j, sizeof *j);
}

#define T(name) cmocka_unit_test_setup_teardown(name, disk_setup, disk_teardown)
int main(void)
{
    const struct CMUnitTest tests[] = {
        T(check_sums),
        T(the_base_shines_through),
        T(larger_than_the_base_and_without_one),
        T(one_over_the_other),
        T(what_cannot_be_made),
        T(growing),
        T(discards_free),
        T(damage_is_found),
        T(another_base_is_noticed),
        T(equals_a_plain_model),
        T(what_was_flushed_survives),
        T(also_behind_the_end_of_the_base),
        T(errors_of_the_host),
        T(a_failed_sync_is_not_forgotten),
        T(flushes_cost_what_they_must),
        T(kill_9),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
