#include "backends/disk/disk_away.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "backends/disk/disk_int.h"
#include "base/error.h"

#define CLAIM_TRIES 5u /* of about a second each: its last owner may be finishing what it had begun */

/* --- who has it --------------------------------------------------------------------------------------------------- */

static int set_lock(const struct disk *d, int type, uint64_t start, uint64_t length)
{
    struct flock range = {.l_type = (short)type, .l_whence = SEEK_SET, .l_start = (off_t)start, .l_len = (off_t)length};

    return fcntl(d->ops->file(d), F_OFD_SETLK, &range) ? -errno : 0;
}

bool disk_spec_can_leave(const struct disk_spec *spec)
{
    const char *format = disk_formats[spec->format].name;

    return !spec->read_only && (strcmp(format, "raw") == 0 || strcmp(format, "overlay") == 0);
}

bool disk_can_leave(const struct disk *d)
{
    struct stat st;

    return !d->read_only && d->ops->file && !fstat(d->ops->file(d), &st) && S_ISREG(st.st_mode);
}

int disk_show_lock(struct disk *d, uint64_t gap)
{
    int err = set_lock(d, F_WRLCK, 0, 0);

    return err || !gap ? err : set_lock(d, F_UNLCK, gap, 1);
}

void disk_leave(struct disk *d)
{
    d->away = true;
    set_lock(d, F_UNLCK, 0, 0);
}

int disk_return(struct disk *d)
{
    int err = set_lock(d, F_WRLCK, 0, 0);

    if (err)
        return err == -EAGAIN || err == -EACCES ? -EBUSY : err;
    d->away = false;
    return 0;
}

/* --- the other side ----------------------------------------------------------------------------------------------- */

/* 1, 0 or -errno. */
static int is_locked(int fd, uint64_t at)
{
    struct flock range = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = (off_t)at, .l_len = 1};

    return fcntl(fd, F_OFD_GETLK, &range) ? -errno : range.l_type != F_UNLCK;
}

int disk_sees(const char *path, uint64_t gap, char *err, size_t n)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK), locked[3] = {0};

    if (fd < 0)
        return error_sys(err, n, -errno, "cannot open %s", path);
    for (unsigned i = 0; i < 3; i++)
        locked[i] = is_locked(fd, gap + i - 1);
    close(fd);
    return locked[0] == 1 && !locked[1] && locked[2] == 1
               ? 0
               : error_set(err, n, -ESTALE,
                           "%s is another file here, or one on storage that does not tell hosts of each other's locks",
                           path);
}

int disk_open_away(struct disk **out, const char *words, struct loop *loop, char *err, size_t n)
{
    struct disk_spec spec;
    int failed = disk_parse(words, &spec, err, n);
    char *full = failed ? NULL : realpath(spec.path, NULL);

    if (failed)
        return failed;
    if (full && strlen(full) < sizeof spec.path)
        strcpy(spec.path, full);
    free(full);
    spec.away = true;
    return disk_open_parsed(out, &spec, loop, err, n);
}

int disk_claim(const char *path, char *err, size_t n)
{
    struct disk_spec spec = {.path = ""};
    uint64_t size;
    bool block;
    int fd = -ENAMETOOLONG;

    if (strlen(path) >= sizeof spec.path)
        return error_set(err, n, fd, "the path of a disk is too long");
    strcpy(spec.path, path);
    for (unsigned i = 0; i < CLAIM_TRIES; i++) {
        fd = disk_file_open(&spec, &size, &block, err, n);
        if (fd != -EBUSY)
            break;
    }
    return fd;
}

struct timespec disk_written(const struct disk *d)
{
    struct stat st = {0};

    fstat(d->ops->file(d), &st);
    return st.st_mtim;
}

int disk_take(struct disk *d, int fd, char *err, size_t n)
{
    struct stat was, is;

    if (fstat(d->ops->file(d), &was) || fstat(fd, &is))
        return error_sys(err, n, -errno, "cannot look at disk %s", d->spec.path);
    if (was.st_dev != is.st_dev || was.st_ino != is.st_ino)
        return error_set(err, n, -ESTALE, "%s is another file by now", d->spec.path);
    int failed = d->ops->take(d, fd, err, n);
    if (!failed)
        d->away = false;
    return failed;
}
