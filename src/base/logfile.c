#include "base/logfile.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/error.h"
#include "base/file.h"
#include "base/path.h"

#define FLAGS (O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW | O_NOCTTY)

int logfile_open(struct logfile *log, const char *path, uint64_t limit, char *err, size_t n)
{
    char old[PATH_MAX];
    struct stat st;
    int failed = path_format(old, sizeof old, err, n, "%s.1", path);

    *log = (struct logfile){.fd = -1, .old = -1, .limit = limit};
    if (failed)
        return failed;
    log->fd = open(path, FLAGS | O_APPEND, 0600);
    if (log->fd >= 0)
        log->old = open(old, FLAGS, 0600);
    if (log->fd < 0 || log->old < 0 || fstat(log->fd, &st)) {
        failed = error_sys(err, n, -errno, "the log %s cannot be written", path);
        logfile_close(log);
        return failed;
    }
    log->size = (uint64_t)st.st_size;
    return 0;
}

/* PATH becomes PATH.1.  After a crash in between there is more in PATH.1, or less, but PATH goes on. */
static int rotate(struct logfile *log)
{
    char piece[16384];
    off_t at = 0;
    ssize_t got;

    if (ftruncate(log->old, 0))
        return -errno;
    while ((got = pread(log->fd, piece, sizeof piece, at)) > 0) {
        ssize_t put = pwrite(log->old, piece, (size_t)got, at);
        if (put <= 0)
            break; /* a full disk: what follows is worth more than what was before */
        at += put;
    }
    if (ftruncate(log->fd, 0))
        return -errno;
    log->size = 0;
    return 0;
}

int logfile_write(struct logfile *log, const void *data, size_t len)
{
    const char *from = data;
    int failed = 0;

    while (len && !failed) {
        size_t now = len < log->limit ? len : log->limit;
        if (log->size && log->size + now > log->limit)
            failed = rotate(log);
        if (!failed)
            failed = fd_write_all(log->fd, from, now);
        log->size += now;
        from += now;
        len -= now;
    }
    return failed;
}

int logfile_trim(struct logfile *log)
{
    struct stat st;

    if (fstat(log->fd, &st))
        return -errno;
    log->size = (uint64_t)st.st_size;
    return log->size > log->limit ? rotate(log) : 0;
}

void logfile_close(struct logfile *log)
{
    if (log->fd >= 0)
        close(log->fd);
    if (log->old >= 0)
        close(log->old);
    log->fd = log->old = -1;
}
