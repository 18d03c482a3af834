/*
 * How images come to be: built from a distribution's packages, or imported.
 *
 * All of these take long and are interrupted by SIGINT, SIGTERM and SIGHUP, which then have their usual effect after
 * whatever was half-made is removed; a caller that outlives the signal gets -EINTR.  They fork: call them before there
 * are threads.
 */
#pragma once
#include "image/image.h"

/* Called as the work goes on, now and then and at each new stage ("installing packages").  `total` 0: not known. */
struct image_progress {
    void (*report)(void *context, const char *stage, uint64_t done, uint64_t total);
    void *context;
};

/*
 * Finds the image that `word` means, as image_find; if there is none, makes it when that is possible without being told
 * more: the names of built-in recipes ("debian") are built, a path of a disk is imported (the file itself is never
 * changed), and again when the file has changed.  `progress` may be NULL.
 */
int image_ensure(const char *word, const struct image_progress *progress, struct image_info *out, char *err, size_t n);
