/*
 * What happened to a VM: DATA/vms/NAME/events.log, of bounded size (logfile.h), one JSON object a line.
 *
 *      {"seq": 7, "time": "2026-11-26T21:20:42.123Z", "vm": "brave-otter", "event": "started", "data": {...}}
 *
 * seq grows by one each time, over all runs of a VM.  The same lines go to the control socket's subscribers.
 */
#pragma once
#include <jansson.h>
#include <stdint.h>

#include "base/logfile.h"
#include "vm/names.h"

#define EVENT_LOG_BYTES (256u << 10)

struct event_log {
    struct logfile file;
    uint64_t seq; /* of the last event */
    char vm[NAME_SIZE];
};

/* `path`: of events.log.  0, or -errno with a sentence. */
int event_log_open(struct event_log *log, const char *path, const char *vm, char *err, size_t n);
/* Writes it and returns the line, with its line feed, for the caller to free; NULL without memory.  `data`, an object
 * or NULL, is taken over. */
char *event_log_add(struct event_log *log, const char *event, json_t *data);
void event_log_close(struct event_log *log);
