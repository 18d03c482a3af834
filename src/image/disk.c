/* DRAFT/disk.raw out of a disk that is there already. */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/fs.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/error.h"
#include "image/import.h"
#include "image/partition.h"

#define CHUNK (1u << 20)
#define GRAIN 65536u           /* of zeros that become a hole */
#define DISK_MAX (64ull << 40) /* a compressed file may claim anything */
#define ROUND 4096             /* a disk is a whole number of the largest blocks that a guest may see */

static int create_disk(struct job *j, char *path, char *err, size_t n)
{
    job_path(j, "disk.raw", path);
    int fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    return fd < 0 ? error_sys(err, n, -errno, "cannot make %s", path) : fd;
}

static int round_up(int fd)
{
    struct stat st;

    if (fstat(fd, &st))
        return -errno;
    off_t size = (st.st_size + ROUND - 1) / ROUND * ROUND;
    return size == 0 ? -ENODATA : ftruncate(fd, size) ? -errno : 0;
}

static int write_grains(int fd, const char *data, size_t len, off_t at)
{
    for (size_t done = 0; done < len;) {
        size_t part = len - done < GRAIN ? len - done : GRAIN;
        if (!bytes_all_zero(data + done, part)) {
            ssize_t now = pwrite(fd, data + done, part, at + (off_t)done);
            if (now <= 0)
                return now < 0 ? -errno : -EIO;
            part = (size_t)now;
        }
        done += part;
    }
    return 0;
}

static int copy_data(struct job *j, int in, int out, off_t size)
{
    char *buffer = malloc(CHUNK);
    int failed = buffer ? 0 : -ENOMEM;

    for (off_t at = 0; !failed && at < size;) {
        off_t data = lseek(in, at, SEEK_DATA);
        if (data < 0 && errno == ENXIO)
            break;
        at = data > at ? data : at;
        ssize_t got = pread(in, buffer, CHUNK, at);
        if (got <= 0) {
            failed = got < 0 ? -errno : 0;
            break;
        }
        failed = write_grains(out, buffer, (size_t)got, at);
        at += got;
        job_progress(j, (uint64_t)at, (uint64_t)size);
    }
    free(buffer);
    return failed;
}

int disk_copy(struct job *j, const char *path, char *err, size_t n)
{
    char disk[IMAGE_PATH_SIZE];
    struct stat st;
    int in = open(path, O_RDONLY | O_CLOEXEC), failed = 0;

    job_stage(j, "copying the disk");
    if (in < 0 || fstat(in, &st))
        return error_sys(err, n, -errno, "cannot open %s", path);
    int out = create_disk(j, disk, err, n);
    if (out < 0) {
        close(in);
        return out;
    }
    /* Where the file system can share blocks nothing is copied at all. */
    if (ioctl(out, FICLONE, in) != 0)
        failed = ftruncate(out, st.st_size) ? -errno : copy_data(j, in, out, st.st_size);
    if (!failed)
        failed = round_up(out);
    close(in);
    close(out);
    return failed ? error_sys(err, n, failed, "cannot copy %s", path) : 0;
}

static int has_content(int fd, const char *path, char *err, size_t n)
{
    struct partition *p = malloc(PARTITIONS_MAX * sizeof *p);
    struct stat st;
    int found = p && fstat(fd, &st) == 0 ? partitions_read(fd, (uint64_t)st.st_size, p) : -EIO;

    free(p);
    return found > 0 ? 0
                     : error_set(err, n, -EINVAL, "%s is no disk with a file system, no archive and no container image",
                                 path);
}

int disk_unpack(struct job *j, const char *path, char *err, size_t n)
{
    char disk[IMAGE_PATH_SIZE];
    int in = open(path, O_RDONLY | O_CLOEXEC), out;

    job_stage(j, "unpacking the disk");
    if (in < 0)
        return error_sys(err, n, -errno, "cannot open %s", path);
    out = create_disk(j, disk, err, n);
    int failed = out < 0 ? out : archive_unpack_file(in, out, DISK_MAX, err, n);
    if (!failed && (failed = round_up(out)))
        error_sys(err, n, failed, "cannot unpack %s", path);
    if (!failed)
        failed = has_content(out, path, err, n);
    close(in);
    if (out >= 0)
        close(out);
    return failed;
}

/* The format is named, not guessed again by qemu-img, and the path is absolute: neither can be read as something else.
 */
int disk_convert(struct job *j, const char *path, const char *format, char *err, size_t n)
{
    char disk[IMAGE_PATH_SIZE], real[PATH_MAX];
    const char *const argv[] = {"qemu-img", "convert", "-f", format, "-O", "raw", "-S", "64k", real, disk, NULL};

    job_stage(j, "converting the disk");
    if (!job_has_program("qemu-img"))
        return error_set(err, n, -ENOENT, "a disk of the format %s needs the package qemu-utils: install it", format);
    if (!realpath(path, real))
        return error_sys(err, n, -errno, "cannot open %s", path);
    job_path(j, "disk.raw", disk);
    int failed = job_run(j, &(struct job_tool){.argv = argv}, err, n);
    if (failed)
        return failed;
    int fd = open(disk, O_RDWR | O_CLOEXEC);
    failed = fd < 0 ? -errno : round_up(fd);
    if (fd >= 0)
        close(fd);
    return failed ? error_sys(err, n, failed, "cannot convert %s", path) : 0;
}
