/* A whole disk into a file. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "backends/disk/disk_int.h"
#include "base/error.h"
#include "base/file.h"
#include "host/loop.h"

#define PIECE (1u << 20)

static int copy(struct disk *d, int fd, const char *path, char *err, size_t n)
{
    uint8_t *piece = malloc(PIECE);
    int failed = 0;

    if (!piece) {
        error_set(err, n, -ENOMEM, "out of memory");
        return -ENOMEM;
    }
    for (uint64_t at = 0; at < d->size && !failed; at += PIECE) {
        uint64_t len = d->size - at < PIECE ? d->size - at : PIECE;
        failed = disk_read_now(d, at, piece, len);
        if (failed)
            error_sys(err, n, failed, "cannot read disk %s", d->spec.path);
        else if ((failed = fd_write_sparse(fd, piece, len, at)))
            error_sys(err, n, failed, "cannot write %s", path);
    }
    free(piece);
    if (!failed && (ftruncate(fd, (off_t)d->size) || fsync(fd)))
        failed = error_sys(err, n, -errno, "cannot write %s", path);
    return failed;
}

int disk_export(const char *words, const char *path, char *err, size_t n)
{
    pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    struct disk_spec *spec = malloc(sizeof *spec);
    struct loop *loop = NULL;
    struct disk *disk = NULL;
    int fd = -1, failed = spec ? loop_create(&loop, &lock) : -ENOMEM;

    if (failed) {
        error_sys(err, n, failed, "cannot copy disk %s", words);
        goto out;
    }
    failed = disk_parse(words, spec, err, n);
    if (failed)
        goto out;
    spec->read_only = true;
    failed = disk_open_spec(&disk, spec, loop, err, n);
    if (failed)
        goto out;
    fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    failed = fd < 0 ? error_sys(err, n, -errno, "cannot make %s", path) : copy(disk, fd, path, err, n);
    if (!failed && file_sync_directory(path) == -EIO) /* not every file system knows it for directories */
        failed = error_sys(err, n, -EIO, "cannot write %s", path);
    if (fd >= 0 && failed)
        unlink(path);
out:
    if (fd >= 0)
        close(fd);
    disk_close(disk);
    loop_destroy(loop);
    free(spec);
    return failed;
}
