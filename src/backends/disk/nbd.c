/*
 * A disk behind an NBD server, by libnbd's non-blocking calls in the event loop.
 *
 * libnbd holds its handle's lock while it calls a completion, and a controller that is told of one may at once submit
 * the next request.  So a completion only moves its request to a list, which is worked through when libnbd has
 * returned.
 *
 * A server that dies or closes the connection makes every request, those at work and all later ones, an I/O error.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "backends/disk/disk_int.h"
#include "backends/disk/nbd_int.h"
#include "backends/disk/nbd_library.h"
#include "base/error.h"
#include "base/log.h"
#include "host/loop.h"

#define CHUNK_MAX (2u << 20) /* of one command that carries data */
#define RANGE_MAX (1u << 30) /* of one that does not: lengths have 32 bits */
#define CONNECT_MS 30000
#define DRAIN_MS 10000 /* without a sign of the server when the disk is to be closed or the machine reset */
#define STOP_MS 5000

struct nbd_disk {
    struct disk disk;
    struct nbd_handle *h;
    struct loop *loop;
    struct child child;
    int fd; /* the handle's, watched by the loop; -1: dead */
    uint32_t events;
    uint32_t chunk;
    bool can_flush, can_fua, can_trim, can_zero;
    struct disk_request *completed, **completed_end;
    uint8_t *zeroes; /* for a server that cannot write zeroes by itself */
};

struct nbd_request {
    uint64_t done;
    uint32_t length; /* of the command at work */
    bool flushing;   /* the command is the flush behind a durable write */
    int error;
    uint8_t *bounce; /* for data in several pieces */
};
_Static_assert(sizeof(struct nbd_request) <= sizeof(((struct disk_request *)0)->backend), "fits into a request");

static struct nbd_request *own(struct disk_request *r)
{
    return (struct nbd_request *)r->backend;
}

/* --- one command after the other -------------------------------------------------------------------------- */

static int completed(void *opaque, int *error)
{
    struct disk_request *r = opaque;
    struct nbd_disk *d = (struct nbd_disk *)r->disk;

    own(r)->error = *error ? -*error : 0;
    r->next = NULL;
    *d->completed_end = r;
    d->completed_end = &r->next;
    return 1; /* libnbd may forget the command */
}

/* Copies between the pieces at byte `at` and buf. */
static void copy_pieces(const struct disk_request *r, uint64_t at, uint8_t *buf, uint64_t length, bool to_pieces)
{
    for (unsigned i = 0; i < r->n_iov && length; i++) {
        if (at >= r->iov[i].iov_len) {
            at -= r->iov[i].iov_len;
            continue;
        }
        uint64_t n = r->iov[i].iov_len - at < length ? r->iov[i].iov_len - at : length;
        uint8_t *piece = (uint8_t *)r->iov[i].iov_base + at;
        memcpy(to_pieces ? piece : buf, to_pieces ? buf : piece, n);
        buf += n;
        length -= n;
        at = 0;
    }
}

static uint8_t *buffer_of(struct disk_request *r)
{
    return r->n_iov == 1 ? (uint8_t *)r->iov->iov_base + own(r)->done : own(r)->bounce;
}

static int64_t begin_write(struct nbd_disk *d, struct disk_request *r, nbd_completion_callback cb, uint32_t flags)
{
    uint64_t offset = r->offset + own(r)->done;

    if (r->op == DISK_WRITE_ZEROES && d->can_zero)
        return nbd.aio_zero(d->h, own(r)->length, offset, cb,
                            flags | (r->flags & DISK_UNMAP ? 0 : LIBNBD_CMD_FLAG_NO_HOLE));
    if (r->op == DISK_WRITE_ZEROES)
        return nbd.aio_pwrite(d->h, d->zeroes, own(r)->length, offset, cb, flags);
    if (r->n_iov > 1)
        copy_pieces(r, own(r)->done, own(r)->bounce, own(r)->length, false);
    return nbd.aio_pwrite(d->h, buffer_of(r), own(r)->length, offset, cb, flags);
}

static uint64_t most(const struct nbd_disk *d, const struct disk_request *r)
{
    bool data = r->op == DISK_READ || r->op == DISK_WRITE || (r->op == DISK_WRITE_ZEROES && !d->can_zero);
    return data ? d->chunk : RANGE_MAX;
}

/* The next command of a request.  0, or -errno. */
static int begin(struct nbd_disk *d, struct disk_request *r)
{
    struct nbd_request *q = own(r);
    nbd_completion_callback cb = {.callback = completed, .user_data = r};
    uint64_t left = r->length - q->done, offset = r->offset + q->done;
    bool last = left <= most(d, r);
    uint32_t flags = (r->flags & DISK_FUA) && d->can_fua && last ? LIBNBD_CMD_FLAG_FUA : 0;
    int64_t cookie;

    if (d->fd < 0)
        return -EIO;
    q->length = (uint32_t)(last ? left : most(d, r));
    if (r->op == DISK_FLUSH || q->flushing)
        cookie = nbd.aio_flush(d->h, cb, 0);
    else if (r->op == DISK_READ)
        cookie = nbd.aio_pread(d->h, buffer_of(r), q->length, offset, cb, 0);
    else if (r->op == DISK_DISCARD)
        cookie = nbd.aio_trim(d->h, q->length, offset, cb, 0);
    else
        cookie = begin_write(d, r, cb, flags);
    return cookie < 0 ? -EIO : 0;
}

/* A durable write of several commands: the earlier ones were not; and where the server has no durable writes none is.
 */
static bool needs_flush(const struct nbd_disk *d, const struct disk_request *r)
{
    return (r->flags & DISK_FUA) && d->can_flush && !own((struct disk_request *)(uintptr_t)r)->flushing &&
           (!d->can_fua || r->length > most(d, r));
}

static void finish(struct disk_request *r, int result)
{
    free(own(r)->bounce);
    disk_done(r, result);
}

static void go_on(struct nbd_disk *d, struct disk_request *r)
{
    struct nbd_request *q = own(r);

    if (!q->error && r->op == DISK_READ && r->n_iov > 1)
        copy_pieces(r, q->done, q->bounce, q->length, true);
    q->done += q->flushing ? 0 : q->length;
    if (q->error) {
        finish(r, q->error);
        return;
    }
    if (q->done == r->length && !needs_flush(d, r)) {
        finish(r, 0);
        return;
    }
    q->flushing = q->done == r->length;
    int err = begin(d, r);
    if (err)
        finish(r, err);
}

/* --- the connection ------------------------------------------------------------------------------------------ */

static void lost(struct nbd_disk *d)
{
    if (d->fd < 0)
        return;
    loop_fd_del(d->loop, d->fd);
    d->fd = -1;
    d->disk.said = true;
    log_say("disk %s: %s; the guest gets I/O errors from it", d->disk.spec.path,
            d->child.pid ? "qemu-nbd has ended" : "the connection to the NBD server is lost");
}

static void watch(struct nbd_disk *d)
{
    unsigned direction = nbd.aio_get_direction(d->h);
    uint32_t events = (direction & LIBNBD_AIO_DIRECTION_READ ? EPOLLIN : 0u) |
                      (direction & LIBNBD_AIO_DIRECTION_WRITE ? EPOLLOUT : 0u);

    if (d->fd >= 0 && (nbd.aio_is_dead(d->h) || nbd.aio_is_closed(d->h)))
        lost(d);
    if (d->fd >= 0 && events != d->events) {
        loop_fd_mod(d->loop, d->fd, events);
        d->events = events;
    }
}

/* After libnbd has run: what it has completed, and what it wants to be told of next. */
static void settle(struct nbd_disk *d)
{
    struct disk_request *r;

    watch(d); /* first, so that the end of a server is what is said, not the first request that it failed */
    while ((r = d->completed)) {
        if (!(d->completed = r->next))
            d->completed_end = &d->completed;
        go_on(d, r);
    }
    watch(d);
}

static void ready(void *opaque, uint32_t events)
{
    struct nbd_disk *d = opaque;
    unsigned direction = nbd.aio_get_direction(d->h);

    if ((events & (EPOLLIN | EPOLLHUP | EPOLLERR)) && (direction & LIBNBD_AIO_DIRECTION_READ))
        nbd.aio_notify_read(d->h);
    else if ((events & (EPOLLOUT | EPOLLHUP | EPOLLERR)) && (direction & LIBNBD_AIO_DIRECTION_WRITE))
        nbd.aio_notify_write(d->h);
    settle(d);
}

static void nbd_submit(struct disk *disk, struct disk_request *r)
{
    struct nbd_disk *d = (struct nbd_disk *)disk;

    memset(own(r), 0, sizeof *own(r));
    if ((r->op == DISK_FLUSH && !d->can_flush) || (r->op == DISK_DISCARD && !d->can_trim)) {
        disk_done_later(r, d->fd < 0 ? -EIO : 0);
        return;
    }
    if (r->n_iov > 1)
        own(r)->bounce = malloc(r->length < d->chunk ? r->length : d->chunk);
    int err = r->n_iov > 1 && !own(r)->bounce ? -ENOMEM : begin(d, r);
    if (err) {
        free(own(r)->bounce);
        disk_done_later(r, err);
    }
}

static void nbd_kick(struct disk *disk)
{
    settle((struct nbd_disk *)disk);
}

/* For one of our own a silence means that it hangs; either way somebody waits for us. */
static bool nbd_wait(struct disk *disk)
{
    struct nbd_disk *d = (struct nbd_disk *)disk;

    settle(d);
    if (!disk->in_flight || disk->ready)
        return disk->ready != NULL;
    if (d->fd < 0)
        return false;
    if (nbd.poll(d->h, DRAIN_MS) == 0)
        shutdown(d->fd, SHUT_RDWR);
    watch(d);
    settle(d);
    return true;
}

/* Says good-bye, so that the server knows that nothing is missing, and does not wait for long. */
static void disconnect(struct nbd_disk *d)
{
    uint64_t end = clock_ns() + STOP_MS * 1000000ull;

    loop_fd_del(d->loop, d->fd);
    if (nbd.aio_disconnect(d->h, 0) < 0)
        return;
    while (!nbd.aio_is_closed(d->h) && !nbd.aio_is_dead(d->h) && clock_ns() < end)
        if (nbd.poll(d->h, 100) < 0)
            return;
}

static void nbd_destroy(struct nbd_disk *d)
{
    if (d->fd >= 0)
        disconnect(d);
    nbd.close(d->h);
    child_stop(&d->child, STOP_MS);
    free(d->zeroes);
    free(d);
}

static void flushed(struct disk_request *r) {}

static void nbd_closed(struct disk *disk)
{
    struct nbd_disk *d = (struct nbd_disk *)disk;
    struct disk_request last = {.op = DISK_FLUSH, .done = flushed};

    if (!disk->read_only && d->fd >= 0) {
        disk_submit(disk, &last);
        disk_drain(disk);
    }
    nbd_destroy(d);
}

static const struct disk_ops nbd_ops = {.submit = nbd_submit, .kick = nbd_kick, .wait = nbd_wait, .close = nbd_closed};

/* --- opening ----------------------------------------------------------------------------------------------------- */

static int explain(const struct nbd_disk *d, const char *what, char *err, size_t n)
{
    const char *why = nbd.get_error();

    if (d->child.pid)
        return error_set(err, n, -EIO, "qemu-nbd cannot open disk %s (it says why above)", d->disk.spec.path);
    return error_set(err, n, -EIO, "%s NBD disk %s: %s", what, d->disk.spec.path,
                     why ? why : "the server does not answer");
}

static int begin_connect(struct nbd_disk *d, int fd)
{
    const char *path = d->disk.spec.path;

    if (fd >= 0)
        return nbd.aio_connect_socket(d->h, fd);
    return strstr(path, "://") ? nbd.aio_connect_uri(d->h, path) : nbd.aio_connect_unix(d->h, path);
}

static int connect_server(struct nbd_disk *d, int fd, char *err, size_t n)
{
    uint64_t end = clock_ns() + CONNECT_MS * 1000000ull;
    int failed = begin_connect(d, fd);

    while (!failed && !nbd.aio_is_ready(d->h)) {
        uint64_t now = clock_ns();
        if (now >= end || nbd.poll(d->h, (int)((end - now) / 1000000)) <= 0 || nbd.aio_is_dead(d->h) ||
            nbd.aio_is_closed(d->h))
            failed = -1;
    }
    return failed ? explain(d, "cannot connect to", err, n) : 0;
}

static int learn(struct nbd_disk *d, char *err, size_t n)
{
    int64_t size = nbd.get_size(d->h), least = nbd.get_block_size(d->h, LIBNBD_SIZE_MINIMUM);
    int64_t best = nbd.get_block_size(d->h, LIBNBD_SIZE_PREFERRED),
            most_bytes = nbd.get_block_size(d->h, LIBNBD_SIZE_MAXIMUM);

    if (size < 0)
        return explain(d, "cannot ask for the size of", err, n);
    if (size < (int64_t)DISK_SECTOR || least > (int64_t)DISK_SECTOR)
        return error_set(err, n, -EINVAL, "NBD disk %s is empty, or has blocks of more than %u bytes",
                         d->disk.spec.path, DISK_SECTOR);
    if (!d->disk.read_only && nbd.is_read_only(d->h) == 1)
        return error_set(err, n, -EROFS, "NBD disk %s is read-only: add ro", d->disk.spec.path);
    d->disk.size = (uint64_t)size & ~(uint64_t)(DISK_SECTOR - 1);
    d->disk.granularity = best >= (int64_t)DISK_SECTOR && best <= 65536 && !(best & (best - 1)) ? (uint32_t)best : 4096;
    d->chunk = most_bytes >= (int64_t)DISK_SECTOR && most_bytes < (int64_t)CHUNK_MAX
                   ? (uint32_t)most_bytes & ~(DISK_SECTOR - 1)
                   : CHUNK_MAX;
    d->can_flush = nbd.can_flush(d->h) == 1;
    d->can_fua = nbd.can_fua(d->h) == 1;
    d->can_trim = nbd.can_trim(d->h) == 1;
    d->can_zero = nbd.can_zero(d->h) == 1;
    if (!d->can_zero && !d->disk.read_only && !(d->zeroes = calloc(1, d->chunk)))
        return error_set(err, n, -ENOMEM, "out of memory");
    return 0;
}

int nbd_disk_open(struct disk **out, const struct disk_spec *spec, struct loop *loop, int fd, struct child child,
                  char *err, size_t n)
{
    struct nbd_disk *d = calloc(1, sizeof *d);
    int failed = nbd_library_load(err, n);

    if (!failed && (!d || !(d->h = nbd.create())))
        failed = error_set(err, n, -ENOMEM, "out of memory");
    if (failed) {
        free(d);
        if (fd >= 0)
            close(fd);
        child_stop(&child, STOP_MS);
        return failed;
    }
    disk_init(&d->disk, &nbd_ops, spec);
    d->loop = loop;
    d->child = child;
    d->fd = -1;
    d->completed_end = &d->completed;
    nbd.set_pread_initialize(d->h, false); /* what is read goes to the guest only when it has arrived */
    failed = connect_server(d, fd, err, n);
    if (!failed)
        failed = learn(d, err, n);
    if (!failed) {
        d->fd = nbd.aio_get_fd(d->h);
        d->events = EPOLLIN;
        failed = loop_fd_add(loop, d->fd, EPOLLIN, ready, d);
        if (failed) {
            d->fd = -1;
            error_sys(err, n, failed, "cannot watch the connection of disk %s", spec->path);
        }
    }
    if (failed) {
        nbd_destroy(d);
        return failed;
    }
    *out = &d->disk;
    return 0;
}

int disk_nbd_open(struct disk **out, const struct disk_spec *spec, struct loop *loop, char *err, size_t n)
{
    return nbd_disk_open(out, spec, loop, -1, (struct child){.pidfd = -1}, err, n);
}
