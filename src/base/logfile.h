/*
 * A log of bounded size: PATH and, behind it, PATH.1 with what came before.
 *
 * When PATH has grown to `limit` its content is copied to PATH.1 and PATH is cut to nothing; so the two descriptors
 * that were opened at the start are all that is ever needed, in a sandbox too.  A reader that follows PATH sees it
 * shrink.
 */
#pragma once
#include <stddef.h>
#include <stdint.h>

struct logfile {
    int fd, old; /* -1: not open */
    uint64_t size, limit;
};

/* Appends to what is there; new files get mode 0600.  0, or -errno with one sentence in err[n]. */
int logfile_open(struct logfile *log, const char *path, uint64_t limit, char *err, size_t n);
/* Appends a piece, which is cut in two only when it alone is larger than the limit.  0/-errno. */
int logfile_write(struct logfile *log, const void *data, size_t len);
/* For a log that others write, too: begins anew if it has grown beyond the limit.  0/-errno. */
int logfile_trim(struct logfile *log);
void logfile_close(struct logfile *log);
