/*
 * The file of an overlay, as a stranger may have made it: both copies of the header and the maps of two groups, then
 * what is done with the disk.  Check sums are made right for most inputs, else nothing would come behind them.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "backends/disk.h"
#include "backends/disk/fileio_int.h"
#include "backends/disk/overlay.h"
#include "backends/disk/overlay_format.h"
#include "backends/disk/overlay_int.h"
#include "backends/disk/overlay_merge.h"
#include "base/crc32c.h"
#include "fixture.h"

#define STEPS_MAX 40u
#define DISK_MAX (400ull << 20)
#define REQUEST_MAX 32768u

/* --- file operations at once -------------------------------------------------------------------------- */

static bool start(struct fileio *io)
{
    struct fileio_op *op;

    while ((op = fileio_next(io))) {
        int64_t result = 0;
        io->in_flight++;
        if (op->kind == FILEIO_READ)
            result = preadv(op->fd, op->iov, (int)op->n_iov, (off_t)op->offset);
        else if (op->kind == FILEIO_WRITE)
            result = pwritev(op->fd, op->iov, (int)op->n_iov, (off_t)op->offset);
        else if (op->kind == FILEIO_ALLOCATE)
            result = fallocate(op->fd, op->flags, (off_t)op->offset, (off_t)op->length);
        fileio_ended(io, op, result < 0 ? -errno : result);
    }
    return true;
}
static unsigned reap(struct fileio *io)
{
    return 0;
}
static void nothing(struct fileio *io) {}
static void quiet(struct fileio *io, bool on) {}
static const struct fileio_ops at_once = {
    .start = start, .reap = reap, .wait = nothing, .quiet = quiet, .destroy = nothing};

static struct fileio *make_io(struct loop *loop)
{
    struct fileio *io = calloc(1, sizeof *io);

    assert_true(io);
    io->ops = &at_once;
    io->loop = loop;
    io->pending_end = &io->pending;
    loop_timer_init(&io->retry, NULL, NULL);
    io->event_fd = -1; /* nothing is ever awaited */
    return io;
}

/* --- the file ---------------------------------------------------------------------------------------------- */

static void put_crc(uint8_t *bytes, size_t at, uint32_t crc)
{
    memcpy(bytes + at, &crc, sizeof crc);
}

static void write_header(struct fuzz_input *in, int fd, unsigned slot, uint8_t how)
{
    static uint8_t bytes[OVERLAY_HEADER];
    struct overlay_header *h = calloc(1, sizeof *h);

    assert_true(h);
    if (how & 1) { /* all of it from the input */
        fuzz_bytes(in, bytes, 160);
        memcpy(bytes, OVERLAY_MAGIC, 8);
        memset(bytes + 12, 0, 4);
        put_crc(bytes, 12, how & 2 ? crc32c(0, bytes, sizeof bytes) : fuzz_u32(in));
    } else {
        h->generation = fuzz_u8(in);
        h->size = (uint64_t)(fuzz_u32(in) % (DISK_MAX / 512)) * 512;
        overlay_header_encode(h, bytes);
    }
    assert_true(pwrite(fd, bytes, sizeof bytes, slot * OVERLAY_HEADER) == sizeof bytes);
    free(h);
}

static void write_map(struct fuzz_input *in, int fd, const struct overlay_header *h, uint8_t how)
{
    for (unsigned i = 0; i < 2 && in->left; i++) {
        uint8_t sector[OVERLAY_SECTOR];
        uint32_t number = fuzz_u8(in) % (2 * OVERLAY_SECTORS);
        memset(sector, fuzz_u8(in), sizeof sector);
        fuzz_bytes(in, sector + 8, 32);
        if (how & 4)
            overlay_sector_seal(sector, h->id, number);
        assert_true(pwrite(fd, sector, sizeof sector, (off_t)overlay_map_offset(number)) == sizeof sector);
    }
}

/* --- what is done with it ------------------------------------------------------------------------------------- */

static void done(struct disk_request *r)
{
    *(bool *)r->opaque = true;
}

static void step(struct fuzz_input *in, struct disk *d)
{
    static uint8_t data[REQUEST_MAX];
    uint64_t sectors = d->size / DISK_SECTOR, first = fuzz_u32(in) % sectors,
             n = 1 + fuzz_u16(in) % (REQUEST_MAX / DISK_SECTOR);
    uint8_t kind = fuzz_u8(in);
    bool ended = false;

    if (n > sectors - first)
        n = sectors - first;
    struct iovec iov[2] = {{data, n * DISK_SECTOR / 3},
                           {data + n * DISK_SECTOR / 3, n * DISK_SECTOR - n * DISK_SECTOR / 3}};
    struct disk_request r = {.op = kind % 5, .flags = kind >> 6, .iov = iov, .done = done, .opaque = &ended};
    if (r.op != DISK_FLUSH) {
        r.offset = first * DISK_SECTOR;
        r.length = n * DISK_SECTOR;
    }
    r.n_iov = r.op == DISK_READ || r.op == DISK_WRITE ? 2 : 0;
    disk_submit(d, &r);
    disk_drain(d);
    assert_true(ended && !d->in_flight);
}

/* Into a new file, as of a machine that runs or not. */
static void merge(int fd, const struct overlay_header *h)
{
    static struct overlay_header to;
    static int into = -1;
    struct merge_layer from = {.fd = fd};
    uint8_t *map = NULL, *to_map = NULL, *merged = NULL;

    if (overlay_load_map(fd, h, &map))
        return;
    assert_true(into >= 0 || (into = memfd_create("merged", MFD_CLOEXEC)) >= 0);
    assert_true(!ftruncate(into, 0) && !ftruncate(into, (off_t)overlay_file_size(h->size)));
    to.size = h->size;
    assert_true(!overlay_load_map(into, &to, &to_map));
    from.map = map;
    struct overlay_merge m = {
        .layers = &from, .n = 1, .place = 1, .into = into, .header = &to, .map = to_map, .io = &merge_io_host};
    if (overlay_merge(&m) == 0)
        assert_true(!overlay_load_map(into, &to, &merged));
    free(map);
    free(to_map);
    free(merged);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    static struct disk_overlay_report report;
    static struct disk_spec spec;
    static uint8_t headers[2 * OVERLAY_HEADER];
    static struct overlay_header h;
    struct fuzz_input in = {data, size};
    static struct loop *loop;
    struct disk *d = NULL;
    char err[512];
    unsigned slot;
    uint8_t how = fuzz_u8(&in);
    static int fd = -1; /* of a file that is emptied for each input */

    assert_true(fd >= 0 || (fd = memfd_create("overlay", MFD_CLOEXEC)) >= 0);
    assert_true(!ftruncate(fd, 0));
    write_header(&in, fd, 0, how);
    write_header(&in, fd, 1, how >> 4);
    assert_true(pread(fd, headers, sizeof headers, 0) == sizeof headers);
    memset(&h, 0, sizeof h);
    bool valid = !overlay_header_choose(&h, headers, &slot) && h.size <= DISK_MAX;
    if (valid && !(how & 8))
        assert_true(!ftruncate(fd, (off_t)overlay_file_size(h.size)));
    write_map(&in, fd, &h, how);
    memset(&spec, 0, sizeof spec);
    snprintf(spec.path, sizeof spec.path, "/proc/self/fd/%d", fd);
    if (h.size <= DISK_MAX) { /* a larger one takes memory for its map, as it should */
        assert_true(loop || !loop_create(&loop, &lock));
        if (overlay_open_with(&d, &spec, loop, make_io(loop), err, sizeof err) == 0) {
            d->said = true;
            for (unsigned i = 0; i < STEPS_MAX && in.left; i++)
                step(&in, d);
            disk_close(d);
            assert_true(disk_overlay_check(spec.path, &report, err, sizeof err) == 0 || report.stray_bits);
            merge(fd, &h);
        }
    }
    return 0;
}
