#include "vm/events.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/timestamp.h"
#include "vm/json_line.h"

#define TAIL 8192 /* longer than any line */

/* The number on the last whole line of the file, or 0. */
static uint64_t last_seq(int fd, uint64_t size)
{
    char tail[TAIL + 1];
    off_t from = size > TAIL ? (off_t)(size - TAIL) : 0;
    ssize_t len = pread(fd, tail, TAIL, from);
    uint64_t seq = 0;

    if (len <= 0)
        return 0;
    tail[len] = 0;
    for (char *line = tail, *end; (end = strchr(line, '\n')); line = end + 1) {
        json_t *all = json_loadb(line, (size_t)(end - line), 0, NULL);
        json_int_t n = json_integer_value(json_object_get(all, "seq"));
        if (n > 0)
            seq = (uint64_t)n;
        json_decref(all);
    }
    return seq;
}

int event_log_open(struct event_log *log, const char *path, const char *vm, char *err, size_t n)
{
    int failed = logfile_open(&log->file, path, EVENT_LOG_BYTES, err, n);

    if (failed)
        return failed;
    snprintf(log->vm, sizeof log->vm, "%s", vm);
    log->seq = last_seq(log->file.fd, log->file.size);
    if (!log->seq) /* it has just been rotated */
        log->seq = last_seq(log->file.old, (uint64_t)lseek(log->file.old, 0, SEEK_END));
    return 0;
}

char *event_log_add(struct event_log *log, const char *event, json_t *data)
{
    char now[TIMESTAMP_SIZE];

    timestamp_format(timestamp_ms(), now);
    size_t len;
    char *line = json_line(json_pack("{s:I, s:s, s:s, s:s, s:o}", "seq", (json_int_t)++log->seq, "time", now, "vm",
                                     log->vm, "event", event, "data", data ? data : json_object()),
                           &len);

    if (line)
        logfile_write(&log->file, line, len); /* a full disk costs the record of it, not the VM */
    return line;
}

void event_log_close(struct event_log *log)
{
    logfile_close(&log->file);
}
