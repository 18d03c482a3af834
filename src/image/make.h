/*
 * How images come to be: built from a distribution's packages, or imported; and how they leave.
 *
 * All of these take long and are interrupted by SIGINT, SIGTERM and SIGHUP, which then have their usual effect after
 * whatever was half-made is removed; a caller that outlives the signal gets -EINTR.  They fork: call them before there
 * are threads.  -EEXIST: the name is taken already.
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

/* A Debian system, by mmdebstrap from the mirrors that this host uses. */
struct image_build {
    const char *name;    /* that the image gets */
    const char *suite;   /* "bookworm"; NULL: that of the recipe called `name`, else the default */
    const char *include; /* further packages, separated by commas; may be NULL */
    const char *hook;    /* a program that is run at the end, inside the new system; may be NULL */
    const char *mirror;  /* a URL instead of the host's own mirrors; may be NULL */
    uint64_t bytes;      /* of the disk; 0: 4 GiB */
    bool replace;        /* the name is taken from the image that has it */
};

int image_build(const struct image_build *b, const struct image_progress *progress, struct image_info *out, char *err,
                size_t n);

/* A disk (raw, qcow2, vmdk, vhd, ...), a tar archive, a directory, a container's image (OCI layout, as a directory or
 * in a tar archive), or what image_export wrote. */
struct image_import {
    const char *source; /* a path, or a URL (http, https, ftp, file) */
    const char *name;   /* NULL: none */
    const char *kernel; /* a file, or the name of an image whose kernel to take; NULL: what is inside, else the default
                           image's, except for disks */
    const char *initrd, *append; /* a file; words for the kernel's command line; may be NULL */
    const char *sha256;          /* 64 hexadecimal digits that the file has to have; may be NULL */
    uint64_t bytes;              /* of the disk, if one is to be made; 0: enough */
    bool replace;
};

int image_import(const struct image_import *in, const struct image_progress *progress, struct image_info *out,
                 char *err, size_t n);

/* Writes the image to a new file `path`, a tar archive compressed by zstd, which image_import takes. */
int image_export(const char *word, const char *path, const struct image_progress *progress, char *err, size_t n);
