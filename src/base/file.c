#include "base/file.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/error.h"

int fd_write_all(int fd, const void *data, size_t len)
{
    for (size_t done = 0; done < len;) {
        ssize_t now = write(fd, (const char *)data + done, len - done);
        if (now < 0 && errno != EINTR)
            return -errno;
        if (now > 0)
            done += (size_t)now;
    }
    return 0;
}

int fd_write_at(int fd, const void *data, size_t len, uint64_t offset)
{
    for (size_t done = 0; done < len;) {
        ssize_t now = pwrite(fd, (const char *)data + done, len - done, (off_t)(offset + done));
        if (now < 0 && errno != EINTR)
            return -errno;
        if (now == 0)
            return -EIO;
        done += now > 0 ? (size_t)now : 0;
    }
    return 0;
}

/* Of the block at `at`. */
static size_t block_length(size_t len, size_t at)
{
    return len - at < FD_SPARSE_BLOCK ? len - at : FD_SPARSE_BLOCK;
}

int fd_write_sparse(int fd, const void *data, size_t len, uint64_t offset)
{
    const char *bytes = data;
    int err = 0;

    for (size_t at = 0, n; at < len && !err; at += n) {
        n = block_length(len, at);
        if (bytes_all_zero(bytes + at, n))
            continue;
        while (at + n < len && !bytes_all_zero(bytes + at + n, block_length(len, at + n)))
            n += block_length(len, at + n);
        err = fd_write_at(fd, bytes + at, n, offset + at);
    }
    return err;
}

/* All that is left of fd, at most max bytes and a NUL; -EFBIG if there is more. */
static int read_all(int fd, size_t max, char **data, size_t *len)
{
    size_t size = 0, room = 0;
    char *buf = NULL;

    for (;;) {
        if (size == room) {
            room = room ? 2 * room : 4096;
            char *larger = realloc(buf, room + 1);
            if (!larger) {
                free(buf);
                return -ENOMEM;
            }
            buf = larger;
        }
        ssize_t now = read(fd, buf + size, room - size);
        if (now < 0 && errno == EINTR)
            continue;
        if (now > 0)
            size += (size_t)now;
        if (now < 0 || size > max) {
            int err = now < 0 ? -errno : -EFBIG;
            free(buf);
            return err;
        }
        if (now == 0)
            break;
    }
    buf[size] = 0;
    *data = buf;
    if (len)
        *len = size;
    return 0;
}

int file_read(const char *path, size_t max, char **data, size_t *len, char *err, size_t n)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);

    if (fd < 0)
        return error_sys(err, n, -errno, "cannot open %s", path);
    int failed = read_all(fd, max, data, len);
    close(fd);
    if (failed == -EFBIG)
        return error_set(err, n, failed, "%s is larger than the %zu bytes such a file may have", path, max);
    return failed ? error_sys(err, n, failed, "cannot read %s", path) : 0;
}

int file_sync_directory(const char *path)
{
    char directory[PATH_MAX];
    const char *slash = strrchr(path, '/');
    int len = snprintf(directory, sizeof directory, "%.*s", slash ? (int)(slash - path) + 1 : 1, slash ? path : ".");

    if (len < 0 || (size_t)len >= sizeof directory)
        return -ENAMETOOLONG;
    int fd = open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return -errno;
    int err = fsync(fd) ? -errno : 0;
    close(fd);
    return err;
}

int file_write(const char *path, const void *data, size_t len, unsigned mode, char *err, size_t n)
{
    char temporary[PATH_MAX];
    int size = snprintf(temporary, sizeof temporary, "%s.new-%d", path, (int)getpid());

    if (size < 0 || (size_t)size >= sizeof temporary)
        return error_set(err, n, -ENAMETOOLONG, "the path %.60s... is too long", path);
    int fd = open(temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, mode);
    if (fd < 0)
        return error_sys(err, n, -errno, "cannot create %s", temporary);
    int failed = fd_write_all(fd, data, len);
    if (!failed && fsync(fd))
        failed = -errno;
    if (close(fd) && !failed)
        failed = -errno;
    if (!failed && rename(temporary, path))
        failed = -errno;
    if (failed) {
        unlink(temporary);
        return error_sys(err, n, failed, "cannot write %s", path);
    }
    failed = file_sync_directory(path);
    return failed ? error_sys(err, n, failed, "cannot write %s to the disk", path) : 0;
}
