/* Disks by words, raw files, and both ways of file operations. */
#include "disk_fixture.h"

#include <signal.h>
#include <sys/resource.h>

#include "backends/disk/fileio.h"

#define MIB (1u << 20)

/* --- words ------------------------------------------------------------------------------------------------ */

static void words_are_taken(void **state)
{
    struct disk_spec s;

    assert_int_equal(disk_parse("a,,b.img,ro,serial=X-1,bus=nvme,format=raw", &s, fx.error, sizeof fx.error), 0);
    assert_string_equal(s.path, "a,b.img");
    assert_true(s.read_only);
    assert_string_equal(s.serial, "X-1");
    assert_int_equal(s.bus, DISK_BUS_NVME);
    assert_false(s.guessed);
    assert_int_equal(disk_parse("/dev/null", &s, fx.error, sizeof fx.error), 0);
    assert_true(s.guessed);
    assert_int_equal(strlen(s.serial), 17); /* the same path gets the same one */
}

static void words_are_refused(void **state)
{
    static const struct {
        const char *words, *why;
    } wrong[] = {
        {"", "begins with its path"},  {",ro", "begins with its path"}, {"a,rw", "'rw' is not a word"},
        {"a,ro=1", "takes no value"},  {"a,format", "needs a value"},   {"a,format=zip", "no disk format 'zip'"},
        {"a,bus=scsi", "not 'scsi'"},  {"a,serial=", "1 to 20"},        {"a,serial=123456789012345678901", "1 to 20"},
        {"a,serial=a b", "printable"}, {"a,bps=100", "unit"},           {"a,bps=0M", "more than zero"},
        {"a,iops=0", "between 1 and"},
    };
    for (unsigned i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        assert_int_equal(disk_check(wrong[i].words, fx.error, sizeof fx.error), -EINVAL);
        if (!strstr(fx.error, wrong[i].why))
            fail_msg("%s: %s", wrong[i].words, fx.error);
    }
    char longest[PATH_MAX + 10];
    memset(longest, 'x', sizeof longest - 1);
    longest[sizeof longest - 1] = 0;
    assert_int_equal(disk_check(longest, fx.error, sizeof fx.error), -EINVAL);
}

static void refused(const char *words, const char *why)
{
    struct disk *disk;
    assert_true(disk_open(&disk, words, fx.loop, fx.error, sizeof fx.error) < 0);
    if (!strstr(fx.error, why))
        fail_msg("%s: %s", words, fx.error);
}

static void files_are_refused(void **state)
{
    char words[200];

    refused("/nonexistent/disk", "No such file");
    refused("/tmp", "Is a directory");
    refused("/dev/null", "neither a file nor a block device");
    refused(disk_file(&fx, "empty", 0), "is empty");
    mkfifo(disk_path(&fx, "fifo"), 0600);
    refused(disk_path(&fx, "fifo"), "neither a file nor");
    snprintf(words, sizeof words, "%s,ro", disk_path(&fx, "fifo"));
    refused(words, "neither a file nor");
}

static void two_writers_are_refused(void **state)
{
    const char *path = disk_file(&fx, "a", MIB);
    char read_only[200];
    struct disk *first = disk_must_open(&fx, path);

    snprintf(read_only, sizeof read_only, "%s,ro", path);
    refused(path, "is in use by another virtual machine");
    refused(read_only, "may write to it");
    disk_close(first);
    first = disk_must_open(&fx, read_only);
    struct disk *second = disk_must_open(&fx, read_only);
    refused(path, "is in use");
    disk_close(first);
    disk_close(second);
    disk_close(disk_must_open(&fx, path));
}

/* --- a raw file --------------------------------------------------------------------------------------------- */

static void raw_reads_what_was_written(void **state)
{
    const char *path = disk_file(&fx, "a", 4 * MIB);
    struct disk *d = disk_must_open(&fx, path);
    uint8_t *data = malloc(MIB), *back = malloc(MIB);

    assert_int_equal(d->size, 4 * MIB);
    disk_fill(data, MIB, 1);
    assert_int_equal(disk_write(d, MIB - 512, data, MIB), 0);
    assert_int_equal(disk_do(d, DISK_WRITE, DISK_FUA, 3 * MIB, data, 512), 0);
    assert_int_equal(disk_do(d, DISK_FLUSH, 0, 0, NULL, 0), 0);
    disk_close(d);
    d = disk_must_open(&fx, path);
    assert_int_equal(disk_read(d, MIB - 512, back, MIB), 0);
    assert_memory_equal(data, back, MIB);
    assert_int_equal(disk_read(d, 3 * MIB, back, 512), 0);
    assert_memory_equal(data, back, 512);
    disk_close(d);
    free(data);
    free(back);
}

static void out_of_range_and_read_only(void **state)
{
    char words[200], data[1024] = {0};

    snprintf(words, sizeof words, "%s,ro", disk_file(&fx, "a", MIB));
    struct disk *d = disk_must_open(&fx, words);
    assert_int_equal(disk_write(d, 0, data, 512), -EROFS);
    assert_int_equal(disk_do(d, DISK_DISCARD, 0, 0, NULL, 512), -EROFS);
    assert_int_equal(disk_do(d, DISK_WRITE_ZEROES, 0, 0, NULL, 512), -EROFS);
    assert_int_equal(disk_do(d, DISK_FLUSH, 0, 0, NULL, 0), 0);
    d->said = true;
    assert_int_equal(disk_read(d, MIB, data, 512), -EINVAL);
    assert_int_equal(disk_read(d, MIB - 512, data, 1024), -EINVAL);
    assert_int_equal(disk_read(d, ~0ull - 511, data, 512), -EINVAL);
    assert_int_equal(disk_read(d, 1, data, 512), -EINVAL);
    assert_int_equal(disk_read(d, MIB, data, 0), 0);
    disk_close(d);
}

static void last_sector_of_an_odd_file(void **state)
{
    const char *path = disk_file(&fx, "a", 1000);
    struct disk *d = disk_must_open(&fx, path);
    uint8_t data[1024];

    memset(data, 0xff, sizeof data);
    assert_int_equal(d->size, 1024);
    assert_int_equal(disk_read(d, 0, data, 1024), 0);
    for (unsigned i = 0; i < 1024; i++)
        assert_int_equal(data[i], 0); /* also what lies behind the file's end */
    disk_close(d);
}

static void zeroes_and_discard(void **state)
{
    const char *path = disk_file(&fx, "a", 4 * MIB);
    struct disk *d = disk_must_open(&fx, path);
    uint8_t *data = malloc(4 * MIB), *back = malloc(4 * MIB);

    disk_fill(data, 4 * MIB, 2);
    assert_int_equal(disk_write(d, 0, data, 4 * MIB), 0);
    assert_int_equal(disk_do(d, DISK_FLUSH, 0, 0, NULL, 0), 0);
    uint64_t full = disk_blocks(path);
    assert_int_equal(disk_do(d, DISK_DISCARD, 0, MIB, NULL, MIB), 0);
    assert_int_equal(disk_do(d, DISK_WRITE_ZEROES, 0, 512, NULL, 1024), 0);
    assert_int_equal(disk_do(d, DISK_WRITE_ZEROES, DISK_UNMAP | DISK_FUA, 3 * MIB, NULL, MIB / 2), 0);
    assert_true(disk_blocks(path) < full);
    assert_int_equal(disk_read(d, 0, back, 4 * MIB), 0);
    memset(data + 512, 0, 1024);
    memset(data + 3 * MIB, 0, MIB / 2);
    memset(data + MIB, 0, MIB); /* true of files with holes: /tmp can have them */
    assert_memory_equal(data, back, 4 * MIB);
    disk_close(d);
    free(data);
    free(back);
}

/* A limit on the size of files stands for a full disk. */
static void a_full_host_is_an_error(void **state)
{
    const char *path = disk_file(&fx, "a", MIB);
    struct rlimit old, limit;
    char data[4096] = {1};
    struct disk *d = disk_must_open(&fx, path);

    d->said = true;
    assert_int_equal(truncate(path, 8192), 0); /* sparse to the extreme: the file ends before the disk */
    getrlimit(RLIMIT_FSIZE, &old);
    limit = (struct rlimit){8192, old.rlim_max};
    signal(SIGXFSZ, SIG_IGN);
    setrlimit(RLIMIT_FSIZE, &limit);
    int inside = disk_write(d, 4096, data, sizeof data), beyond = disk_write(d, 65536, data, sizeof data);
    setrlimit(RLIMIT_FSIZE, &old);
    assert_int_equal(inside, 0);
    assert_int_equal(beyond, -EFBIG);
    assert_int_equal(disk_write(d, 65536, data, sizeof data), 0);
    disk_close(d);
}

/* --- many at once, against a plain array ------------------------------------------------------------------------ */

#define SLOTS 64
#define AREA (64u << 10) /* each slot has its own: what is at work at once does not overlap */

struct slot {
    struct disk_request r;
    struct iovec iov[8];
    uint8_t data[AREA];
    bool busy, read;
    uint64_t at, len;
};

static uint8_t *model;
static unsigned mismatches;

static void slot_done(struct disk_request *r)
{
    struct slot *s = r->opaque;

    s->busy = false;
    if (r->result || (s->read && memcmp(s->data, model + s->at, s->len)))
        mismatches++;
}

static void slot_start(struct disk *d, struct slot *s, unsigned index, uint64_t *seed)
{
    uint64_t sector = disk_random(seed) % (AREA / 512), sectors = 1 + disk_random(seed) % (AREA / 512 - sector);
    unsigned op = (unsigned)(disk_random(seed) % 8);
    static const enum disk_op ops[8] = {DISK_READ,  DISK_READ,         DISK_READ,         DISK_WRITE,
                                        DISK_WRITE, DISK_WRITE_ZEROES, DISK_WRITE_ZEROES, DISK_FLUSH};

    s->at = (uint64_t)index * AREA + sector * 512;
    s->len = sectors * 512;
    s->read = ops[op] == DISK_READ;
    s->r = (struct disk_request){.op = ops[op], .done = slot_done, .opaque = s, .iov = s->iov};
    s->r.flags = op == 4 ? DISK_FUA : op == 6 ? DISK_UNMAP : 0;
    if (ops[op] != DISK_FLUSH) {
        s->r.offset = s->at;
        s->r.length = s->len;
    }
    if (ops[op] == DISK_WRITE) {
        disk_fill(s->data, s->len, disk_random(seed));
        memcpy(model + s->at, s->data, s->len);
    } else if (ops[op] == DISK_WRITE_ZEROES) {
        memset(model + s->at, 0, s->len);
    }
    if (ops[op] <= DISK_WRITE) { /* in pieces of odd lengths */
        uint64_t left = s->len;
        while (left) {
            uint64_t piece = s->r.n_iov == 7 ? left : 1 + disk_random(seed) % left;
            s->iov[s->r.n_iov++] = (struct iovec){s->data + (s->len - left), piece};
            left -= piece;
        }
    }
    s->busy = true;
    disk_submit(d, &s->r);
}

static void random_operations(struct disk *d, uint64_t seed, unsigned rounds)
{
    struct slot *slots = calloc(SLOTS, sizeof *slots);

    for (unsigned i = 0; i < rounds; i++) {
        unsigned index = (unsigned)(disk_random(&seed) % SLOTS);
        if (!slots[index].busy)
            slot_start(d, &slots[index], index, &seed);
        if (disk_random(&seed) % 4 == 0)
            disk_kick(d);
        if (disk_random(&seed) % 256 == 0)
            disk_drain(d);
    }
    disk_drain(d);
    assert_int_equal(mismatches, 0);
    free(slots);
}

static void many_at_once(void **state)
{
    const char *path = disk_file(&fx, "a", SLOTS * AREA);
    struct disk *d = disk_must_open(&fx, path);

    model = calloc(1, SLOTS * AREA);
    random_operations(d, 11, 20000);
    uint8_t *all = malloc(SLOTS * AREA);
    assert_int_equal(disk_read(d, 0, all, SLOTS * AREA), 0);
    assert_memory_equal(all, model, SLOTS * AREA);
    free(all);
    free(model);
    disk_close(d);
}

/* --- file operations --------------------------------------------------------------------------------------------- */

static unsigned ended;
static void op_done(struct fileio_op *op)
{
    ended++;
}

static void file_operations(enum fileio_engine engine)
{
    struct fileio *io;
    int err = fileio_create(&io, fx.loop, engine);
    if (err && engine == FILEIO_URING)
        skip();
    assert_int_equal(err, 0);
    int fd = open(disk_file(&fx, "a", MIB), O_RDWR | O_CLOEXEC);
    char out[3][100], in[300];
    for (unsigned i = 0; i < 3; i++)
        memset(out[i], 'a' + (int)i, 100);
    struct iovec v[3] = {{out[0], 100}, {out[1], 100}, {out[2], 100}}, w = {in, 300}, x = {in, 300};
    struct fileio_op write = {.kind = FILEIO_WRITE, .fd = fd, .iov = v, .n_iov = 3, .offset = 50, .done = op_done};
    fileio_submit(io, &write);
    while (fileio_wait(io))
        ;
    assert_int_equal(write.result, 0);
    struct fileio_op read = {.kind = FILEIO_READ, .fd = fd, .iov = &w, .n_iov = 1, .offset = 50, .done = op_done};
    struct fileio_op sync = {.kind = FILEIO_SYNC, .fd = fd, .done = op_done};
    fileio_submit(io, &read);
    fileio_submit(io, &sync);
    while (fileio_wait(io))
        ;
    assert_int_equal(read.result | sync.result, 0);
    assert_memory_equal(in, out, 300);
    struct fileio_op beyond = {
        .kind = FILEIO_READ, .fd = fd, .iov = &x, .n_iov = 1, .offset = MIB - 10, .done = op_done};
    struct fileio_op bad = {.kind = FILEIO_SYNC, .fd = -1, .done = op_done};
    fileio_submit(io, &beyond);
    fileio_submit(io, &bad);
    while (fileio_wait(io))
        ;
    assert_int_equal(beyond.result, 0);
    for (unsigned i = 0; i < 300; i++)
        assert_int_equal(in[i], 0);
    assert_int_equal(bad.result, -EBADF);
    close(fd);
    fileio_destroy(io);
}

static void by_io_uring(void **state)
{
    file_operations(FILEIO_URING);
}

static void by_threads(void **state)
{
    file_operations(FILEIO_THREADS);
}

struct late {
    struct disk_request r;
    struct loop *loop;
    pthread_t thread;
    bool done;
};

static void late_done(struct disk_request *r)
{
    struct late *l = r->opaque;
    l->done = true;
    l->thread = pthread_self();
    loop_stop(l->loop);
}

/* A request that does not end within the kick ends on the loop's thread. */
static void the_loop_delivers(void **state)
{
    struct disk *d = disk_must_open(&fx, disk_file(&fx, "a", MIB));
    struct late late = {.loop = fx.loop};

    late.r = (struct disk_request){.op = DISK_FLUSH, .done = late_done, .opaque = &late};
    disk_submit(d, &late.r);
    disk_kick(d);
    loop_run(fx.loop);
    assert_true(late.done);
    disk_close(d);
}

/* The thread that submitted is gone before the operation ends: it is not lost with it. */
static void *submit_and_leave(void *opaque)
{
    struct late *l = opaque;
    pthread_mutex_lock(&fx.lock);
    disk_submit(l->r.disk, &l->r);
    disk_kick(l->r.disk);
    pthread_mutex_unlock(&fx.lock);
    return NULL;
}

static void a_submitter_that_ends(void **state)
{
    struct disk *d = disk_must_open(&fx, disk_file(&fx, "a", 64 * MIB));
    static struct late late[64];
    uint8_t *data = malloc(MIB);
    struct iovec iov[64];

    disk_fill(data, MIB, 3);
    for (unsigned i = 0; i < 64; i++) {
        pthread_t thread;
        iov[i] = (struct iovec){data, MIB};
        late[i] = (struct late){.loop = fx.loop};
        late[i].r = (struct disk_request){.op = DISK_WRITE,
                                          .flags = i % 8 ? 0 : DISK_FUA,
                                          .offset = (uint64_t)i * MIB,
                                          .length = MIB,
                                          .iov = &iov[i],
                                          .n_iov = 1,
                                          .done = late_done,
                                          .opaque = &late[i]};
        late[i].r.disk = d;
        pthread_create(&thread, NULL, submit_and_leave, &late[i]);
        pthread_join(thread, NULL);
    }
    disk_drain(d);
    uint8_t *back = malloc(MIB);
    for (unsigned i = 0; i < 64; i++) {
        assert_true(late[i].done);
        assert_int_equal(late[i].r.result, 0);
        assert_int_equal(disk_read(d, (uint64_t)i * MIB, back, MIB), 0);
        assert_memory_equal(data, back, MIB);
    }
    free(data);
    free(back);
    disk_close(d);
}

/* --- limits ------------------------------------------------------------------------------------------------------ */

struct stream { /* one request after the other */
    struct disk_request r;
    struct iovec iov;
    struct disk *disk;
    uint8_t data[65536];
    unsigned done;
    bool stop;
};

static void stream_next(struct stream *s);

static void stream_done(struct disk_request *r)
{
    struct stream *s = r->opaque;
    s->done++;
    if (!s->stop)
        stream_next(s);
}

static void stream_next(struct stream *s)
{
    s->iov = (struct iovec){s->data, sizeof s->data};
    s->r = (struct disk_request){.op = s->done % 2 ? DISK_READ : DISK_WRITE,
                                 .length = sizeof s->data,
                                 .iov = &s->iov,
                                 .n_iov = 1,
                                 .done = stream_done,
                                 .opaque = s};
    disk_submit(s->disk, &s->r);
    disk_kick(s->disk);
}

static void stop_loop(void *opaque)
{
    loop_stop(fx.loop);
}

/* How many requests of 64 KiB end within a second, four at a time. */
static unsigned in_a_second(const char *words)
{
    static struct stream streams[4];
    struct loop_timer stop;
    struct disk *d = disk_must_open(&fx, words);
    unsigned n = 0;

    loop_timer_init(&stop, stop_loop, NULL);
    loop_timer_set(fx.loop, &stop, clock_ns() + 1000000000);
    for (unsigned i = 0; i < 4; i++) {
        streams[i] = (struct stream){.disk = d};
        stream_next(&streams[i]);
    }
    loop_run(fx.loop);
    for (unsigned i = 0; i < 4; i++) {
        n += streams[i].done;
        streams[i].stop = true;
    }
    assert_int_equal(disk_do(d, DISK_FLUSH, 0, 0, NULL, 0),
                     0); /* passes what waits, and a drain does not wait for it */
    assert_int_equal(d->in_flight, 0);
    disk_close(d);
    return n;
}

static void limits(void **state)
{
    const char *path = disk_file(&fx, "a", MIB);
    char words[200];

    snprintf(words, sizeof words, "%s,iops=100", path);
    assert_in_range(in_a_second(words), 60, 130); /* with what is saved up; fewer on a busy host */
    snprintf(words, sizeof words, "%s,bps=4M", path);
    assert_in_range(in_a_second(words), 40, 85);
    assert_true(in_a_second(path) > 300);
}

#define T(name) cmocka_unit_test_setup_teardown(name, disk_setup, disk_teardown)
int main(void)
{
    const struct CMUnitTest tests[] = {
        T(words_are_taken),
        T(words_are_refused),
        T(files_are_refused),
        T(two_writers_are_refused),
        T(raw_reads_what_was_written),
        T(out_of_range_and_read_only),
        T(last_sector_of_an_odd_file),
        T(zeroes_and_discard),
        T(a_full_host_is_an_error),
        T(many_at_once),
        T(by_io_uring),
        T(by_threads),
        T(the_loop_delivers),
        T(a_submitter_that_ends),
        T(limits),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
