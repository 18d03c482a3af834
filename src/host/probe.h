/*
 * What this host offers to virtual machines: each check really tries the thing where that is possible,
 * instead of reading a version number.  Has no lasting effect on the process or the host.
 */
#pragma once
#include <stdbool.h>
#include <stddef.h>

enum probe_level {
    PROBE_OK,
    PROBE_LIMITED, /* works, but something will be slower, smaller or less isolated */
    PROBE_MISSING,
};

struct probe_result {
    const char *id;    /* snake_case, stable: programs read it */
    const char *title; /* for people */
    bool required;     /* MISSING: the software engine cannot run here */
    enum probe_level level;
    char found[256]; /* what there is */
    char why[256];   /* unless OK: what follows from that */
    char fix[256];   /* unless OK: what to do about it */
};

#define PROBE_MAX 24

/* Fills results[0..n) and returns n <= PROBE_MAX.  Takes some milliseconds (it forks once or twice). */
size_t host_probe(struct probe_result results[PROBE_MAX]);
