/* A raw disk: a file or block device whose bytes are the guest's. */
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "backends/disk/disk_int.h"
#include "backends/disk/zero.h"
#include "base/error.h"

#define LOCK_TRIES 100u
#define LOCK_PAUSE_US 10000u

struct raw {
    struct disk disk;
    struct zero_file file;
    int sync_error; /* the kernel reports a lost write once: after it no flush may say that all is well */
};

union raw_request {
    struct fileio_op op;
    struct zero_job zero;
};

_Static_assert(sizeof(union raw_request) <= sizeof(((struct disk_request *)0)->backend), "fits into a request");

static union raw_request *own(struct disk_request *r)
{
    return (union raw_request *)r->backend;
}

static struct disk_request *request_of(struct fileio_op *op)
{
    return (struct disk_request *)((char *)op - offsetof(struct disk_request, backend));
}

static struct raw *raw_of(struct disk_request *r)
{
    return (struct raw *)r->disk;
}

/* --- flush ------------------------------------------------------------------------------------------- */

static void synced(struct fileio_op *op)
{
    struct disk_request *r = request_of(op);
    struct raw *raw = raw_of(r);

    if (op->result && !raw->sync_error)
        raw->sync_error = op->result;
    disk_done(r, raw->sync_error);
}

static void sync_start(struct disk_request *r)
{
    struct raw *raw = raw_of(r);

    own(r)->op.kind = FILEIO_SYNC;
    own(r)->op.fd = raw->file.fd;
    own(r)->op.done = synced;
    fileio_submit(raw->file.io, &own(r)->op);
}

/* --- zeroes and holes ---------------------------------------------------------------------------------- */

static void zeroed(struct zero_job *job)
{
    struct disk_request *r = request_of(&job->op);

    if (!job->op.result && r->op == DISK_WRITE_ZEROES && (r->flags & DISK_FUA))
        sync_start(r);
    else
        disk_done(r, job->op.result);
}

static void zeroes_start(struct disk_request *r)
{
    own(r)->zero.done = zeroed;
    zero_start(&own(r)->zero, &raw_of(r)->file, r->offset, r->length, r->flags & DISK_UNMAP);
}

static void discard_start(struct disk_request *r)
{
    own(r)->zero.done = zeroed;
    zero_discard(&own(r)->zero, &raw_of(r)->file, r->offset, r->length);
}

/* --- requests -------------------------------------------------------------------------------------------- */

static void transferred(struct fileio_op *op)
{
    struct disk_request *r = request_of(op);
    struct raw *raw = raw_of(r);

    if (op->result == -EIO && (op->flags & RWF_DSYNC) && !raw->sync_error) /* others: not written, so not lost */
        raw->sync_error = op->result;
    disk_done(r, op->result);
}

static void transfer_start(struct disk_request *r)
{
    bool durable = r->op == DISK_WRITE && (r->flags & DISK_FUA);

    own(r)->op = (struct fileio_op){.kind = r->op == DISK_READ ? FILEIO_READ : FILEIO_WRITE,
                                    .fd = raw_of(r)->file.fd,
                                    .flags = durable ? RWF_DSYNC : 0,
                                    .iov = r->iov,
                                    .n_iov = r->n_iov,
                                    .offset = r->offset,
                                    .done = transferred};
    fileio_submit(raw_of(r)->file.io, &own(r)->op);
}

static void raw_submit(struct disk *d, struct disk_request *r)
{
    struct raw *raw = (struct raw *)d;

    memset(own(r), 0, sizeof *own(r));
    if (raw->sync_error && (r->op == DISK_FLUSH || (r->flags & DISK_FUA)))
        disk_done_later(r, raw->sync_error);
    else if (r->op == DISK_FLUSH)
        sync_start(r);
    else if (r->op == DISK_WRITE_ZEROES)
        zeroes_start(r);
    else if (r->op != DISK_DISCARD)
        transfer_start(r);
    else if (raw->file.no_hole)
        disk_done_later(r, 0);
    else
        discard_start(r);
}

static void raw_kick(struct disk *d)
{
    fileio_kick(((struct raw *)d)->file.io);
}

static bool raw_wait(struct disk *d)
{
    return fileio_wait(((struct raw *)d)->file.io);
}

static void raw_close(struct disk *d)
{
    struct raw *raw = (struct raw *)d;

    if (!d->read_only && !d->away)
        (void)!fdatasync(raw->file.fd); /* whoever stops a VM may pull the plug next */
    fileio_destroy(raw->file.io);
    close(raw->file.fd);
    zero_file_destroy(&raw->file);
    free(raw);
}

static int raw_file(const struct disk *d)
{
    return ((const struct raw *)d)->file.fd;
}

static int raw_take(struct disk *d, int fd, char *err, size_t n)
{
    struct raw *raw = (struct raw *)d;
    struct stat st;

    if (fstat(fd, &st))
        return error_sys(err, n, -errno, "cannot look at disk %s", d->spec.path);
    if ((((uint64_t)st.st_size + DISK_SECTOR - 1) & ~(uint64_t)(DISK_SECTOR - 1)) != d->size)
        return error_set(err, n, -ESTALE, "disk %s has another size by now", d->spec.path);
    close(raw->file.fd);
    raw->file.fd = fd;
    return 0;
}

static const struct disk_ops raw_ops = {
    .submit = raw_submit, .kick = raw_kick, .wait = raw_wait, .close = raw_close, .file = raw_file, .take = raw_take};

/* --- opening ------------------------------------------------------------------------------------------------ */

/* One writer, or any number of readers.  The lock belongs to the open file, so it ends with the process however that
 * ends: not at once, though.  After a kill -9 the kernel still finishes what io_uring had begun, and only when the last
 * write has landed may somebody else write here.  So a lock that is taken is asked for again for a while.  File systems
 * without locks go without. */
static int lock(int fd, const struct disk_spec *s, char *err, size_t n)
{
    struct flock whole = {.l_type = s->read_only ? F_RDLCK : F_WRLCK, .l_whence = SEEK_SET};

    for (unsigned i = 0; i < LOCK_TRIES; i++) {
        if (fcntl(fd, F_OFD_SETLK, &whole) == 0 || (errno != EAGAIN && errno != EACCES))
            return 0;
        usleep(LOCK_PAUSE_US);
    }
    return error_set(err, n, -EBUSY, "disk %s is in use by another virtual machine or program%s", s->path,
                     s->read_only ? ", which may write to it: stop that first"
                                  : ": stop that first, or use an overlay of one's own for each");
}

static int find_size(int fd, const struct disk_spec *s, uint64_t *size, bool *block, char *err, size_t n)
{
    struct stat st;

    if (fstat(fd, &st))
        return error_sys(err, n, -errno, "cannot look at disk %s", s->path);
    *block = S_ISBLK(st.st_mode);
    if (!*block && !S_ISREG(st.st_mode))
        return error_set(err, n, -EINVAL, "disk %s is neither a file nor a block device", s->path);
    *size = (uint64_t)st.st_size;
    if (*block && ioctl(fd, BLKGETSIZE64, size))
        return error_sys(err, n, -errno, "cannot ask block device %s for its size", s->path);
    if (!*size)
        return error_set(err, n, -EINVAL, "disk %s is empty: give it a size first, as in truncate -s 4G %s", s->path,
                         s->path);
    return 0;
}

int disk_file_open(const struct disk_spec *s, uint64_t *size, bool *block, char *err, size_t n)
{
    struct stat st;
    int flags = (s->read_only || s->away ? O_RDONLY : O_RDWR) | O_CLOEXEC;

    /* O_EXCL: a block device that the host has mounted is refused.  O_NONBLOCK: a pipe is refused, not waited for. */
    if (!s->read_only && !s->away && stat(s->path, &st) == 0 && S_ISBLK(st.st_mode))
        flags |= O_EXCL;
    int fd = open(s->path, flags | O_NONBLOCK);
    if (fd < 0)
        return error_sys(err, n, -errno, "cannot open disk %s%s", s->path,
                         errno == EACCES && !s->read_only ? " for writing (ro opens it read-only)" : "");
    int failed = find_size(fd, s, size, block, err, n);
    if (!failed && !s->away)
        failed = lock(fd, s, err, n);
    if (failed) {
        close(fd);
        return failed;
    }
    return fd;
}

/* A name that says nothing and contents that say something: better asked than guessed. */
static int check_contents(int fd, const struct disk_spec *s, char *err, size_t n)
{
    char head[16] = "";

    if (!s->guessed || pread(fd, head, sizeof head, 0) < 0)
        return 0;
    for (const struct disk_format *f = disk_formats; f->name; f++)
        if (f->magic && memcmp(head, f->magic, f->magic_length) == 0)
            return error_set(err, n, -EINVAL, "disk %s looks like %s: add format=%s, or format=raw to use it as it is",
                             s->path, f->name, f->name);
    return 0;
}

static int open_io(struct raw *raw, int fd, struct loop *loop)
{
    struct fileio *io;
    int err = fileio_create(&io, loop, FILEIO_AUTO);

    if (err)
        return err;
    err = zero_file_init(&raw->file, io, fd);
    if (err)
        fileio_destroy(io);
    return err;
}

int disk_raw_open(struct disk **out, const struct disk_spec *spec, struct loop *loop, char *err, size_t n)
{
    uint64_t size = 0;
    bool block = false;
    int fd = disk_file_open(spec, &size, &block, err, n);

    if (fd < 0)
        return fd;
    struct raw *raw = NULL;
    int failed = check_contents(fd, spec, err, n);
    if (!failed && !(raw = calloc(1, sizeof *raw)))
        error_set(err, n, failed = -ENOMEM, "out of memory");
    if (!failed) {
        disk_init(&raw->disk, &raw_ops, spec);
        raw->disk.size = (size + DISK_SECTOR - 1) & ~(uint64_t)(DISK_SECTOR - 1);
        raw->disk.granularity = 4096;
        failed = open_io(raw, fd, loop);
        if (failed)
            error_sys(err, n, failed, "cannot set up input and output for disk %s", spec->path);
    }
    if (failed) {
        free(raw);
        close(fd);
        return failed;
    }
    *out = &raw->disk;
    return 0;
}
