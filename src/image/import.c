/* `guise image import`: whatever it is becomes DRAFT/disk.raw, and that is looked into. */
#include "image/import.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/error.h"
#include "image/download.h"
#include "image/inspect.h"
#include "image/recipe.h"
#include "image/rootfs.h"

struct import {
    const struct image_import *in;
    struct inspect inspect;
    struct image_info base; /* whose kernel to take */
};

/* ---- root file systems that are not disks yet ---- */

static int make_root(struct job *j, const struct import *im, struct source *sources, unsigned n_sources, char *err,
                     size_t n)
{
    char disk[IMAGE_PATH_SIZE];

    job_stage(j, "writing the disk");
    job_path(j, "disk.raw", disk);
    return rootfs_make(j, disk, im->in->bytes, sources, n_sources, err, n);
}

static int from_one(struct job *j, const struct import *im, const char *path, bool directory, char *err, size_t n)
{
    struct source s = {.fd = open(path, O_RDONLY | O_CLOEXEC), .directory = directory, .name = path};

    if (s.fd < 0)
        return error_sys(err, n, -errno, "cannot open %s", path);
    int failed = make_root(j, im, &s, 1, err, n);
    source_free(&s);
    close(s.fd);
    return failed;
}

static int from_oci(struct job *j, struct import *im, const char *directory, char *err, size_t n)
{
    struct oci *o = malloc(sizeof *o);

    if (!o)
        return error_sys(err, n, -ENOMEM, "cannot read the container image");
    job_stage(j, "reading the container image");
    int failed = oci_open(o, directory, err, n);
    if (!failed) {
        im->inspect.process = json_incref(o->process);
        failed = make_root(j, im, o->layers, o->n_layers, err, n);
        oci_close(o);
    }
    free(o);
    return failed;
}

static int from_oci_tar(struct job *j, struct import *im, const char *path, char *err, size_t n)
{
    char directory[IMAGE_PATH_SIZE];

    job_stage(j, "reading the container image");
    job_path(j, "oci", directory);
    int failed = oci_unpack(path, directory, err, n);
    if (!failed)
        failed = from_oci(j, im, directory, err, n);
    files_remove(directory);
    return failed;
}

/* ---- kernels ---- */

static void report_inner(void *context, const char *stage, uint64_t done, uint64_t total)
{
    job_stage(context, stage);
    job_progress(context, done, total);
}

/* What has no kernel boots with that of the default image, which may have to be built for it. */
static int inspect(struct job *j, struct import *im, bool disk, char *err, size_t n)
{
    const struct image_progress progress = {report_inner, j};
    int failed = inspect_disk(j, &im->inspect, err, n);

    if (failed != -ENOPKG || disk || im->inspect.base)
        return failed;
    failed = image_ensure("debian", &progress, &im->base, err, n);
    if (failed)
        return failed;
    im->inspect.base = &im->base;
    return inspect_disk(j, &im->inspect, err, n);
}

/* ---- the work ---- */

static int make_disk(struct job *j, struct import *im, const char *path, enum source_kind kind, const char *format,
                     bool *whole, char *err, size_t n)
{
    switch (kind) {
    case SOURCE_DIRECTORY:
        return from_one(j, im, path, true, err, n);
    case SOURCE_TAR:
        return from_one(j, im, path, false, err, n);
    case SOURCE_OCI:
        return from_oci(j, im, path, err, n);
    case SOURCE_OCI_TAR:
        return from_oci_tar(j, im, path, err, n);
    case SOURCE_EXPORT:
        return export_unpack(j, path, whole, err, n);
    case SOURCE_RAW:
        return disk_copy(j, path, err, n);
    case SOURCE_PACKED_RAW:
        return disk_unpack(j, path, err, n);
    case SOURCE_FOREIGN:
        return disk_convert(j, path, format, err, n);
    default:
        return error_set(err, n, -EINVAL, "%s is nothing that guise knows", path);
    }
}

static int check_sha256(const struct import *im, const char *path, char *err, size_t n)
{
    char found[65];
    struct stat st;

    if (!im->in->sha256)
        return 0;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &st) || !S_ISREG(st.st_mode)) {
        if (fd >= 0)
            close(fd);
        return error_set(err, n, -EINVAL, "--sha256 needs a file, which %s is not", path);
    }
    int failed = digest_file(fd, found);
    close(fd);
    if (failed)
        return error_sys(err, n, failed, "cannot read %s", path);
    if (strcmp(found, im->in->sha256) != 0)
        return error_set(err, n, -EBADMSG, "%s is not what was asked for: its SHA-256 is %s", im->in->source, found);
    return 0;
}

static bool makes_root(enum source_kind kind)
{
    return kind == SOURCE_DIRECTORY || kind == SOURCE_TAR || kind == SOURCE_OCI || kind == SOURCE_OCI_TAR;
}

static int import(struct job *j, void *context, char *err, size_t n)
{
    struct import *im = context;
    char downloaded[IMAGE_PATH_SIZE];
    const char *path = im->in->source, *format;
    enum source_kind kind;
    bool whole = false;
    int failed = 0;

    if (download_is_url(path)) {
        job_path(j, "download", downloaded);
        failed = download(j, path, downloaded, err, n);
        path = downloaded;
    }
    if (!failed)
        failed = check_sha256(im, path, err, n);
    if (!failed)
        failed = detect_source(path, &kind, &format, err, n);
    if (!failed && im->in->bytes && !makes_root(kind))
        failed = error_set(err, n, -EINVAL,
                           "--size is for directories, archives and container images: a disk has its size");
    if (!failed)
        failed = make_disk(j, im, path, kind, format, &whole, err, n);
    if (path == downloaded)
        unlink(downloaded);
    if (!failed && !whole)
        failed = inspect(j, im, !makes_root(kind), err, n);
    return failed;
}

/* ---- what may be asked for ---- */

/* --kernel is a file, or else an image's name. */
static int choose_kernel(struct import *im, const struct image_progress *progress, char *err, size_t n)
{
    const char *kernel = im->in->kernel;

    if (!kernel) { /* what an image without a kernel gets, if it is there already */
        if (image_find("debian", &im->base, NULL, 0) == 0)
            im->inspect.base = &im->base;
        return 0;
    }
    if (strchr(kernel, '/') || access(kernel, F_OK) == 0) {
        im->inspect.kernel = kernel;
        return 0;
    }
    int failed = image_ensure(kernel, progress, &im->base, err, n);
    im->inspect.base = &im->base;
    im->inspect.always_base = true;
    return failed;
}

static int check(const struct image_import *in, char *err, size_t n)
{
    if (in->sha256 && (strlen(in->sha256) != 64 || strspn(in->sha256, "0123456789abcdef") != 64))
        return error_set(err, n, -EINVAL, "'%s' is no SHA-256: it has 64 digits, 0 to 9 and a to f", in->sha256);
    if (in->append && strlen(in->append) > 1800)
        return error_set(err, n, -EINVAL, "the kernel's command line is too long");
    if (!download_is_url(in->source) && access(in->source, R_OK))
        return error_sys(err, n, -errno, "cannot read %s", in->source);
    return in->name ? image_name_check(in->name, err, n) : 0;
}

int image_import(const struct image_import *in, const struct image_progress *progress, struct image_info *out,
                 char *err, size_t n)
{
    struct import *im = calloc(1, sizeof *im);
    char why[ERROR_SIZE];
    bool waited;
    int lock = -1, failed = im ? check(in, err, n) : -ENOMEM;

    if (!failed) {
        im->in = in;
        im->inspect = (struct inspect){
            .initrd = in->initrd, .append = in->append, .name = in->name, .source = in->source};
        failed = choose_kernel(im, progress, err, n);
    }
    if (!failed && in->name)
        failed = lock = store_lock_name(in->name, &waited, err, n);
    failed = failed > 0 ? 0 : failed;
    if (!failed && in->name && !in->replace && image_find(in->name, out, why, sizeof why) != -ENOENT)
        failed = error_set(err, n, -EEXIST, "there is an image '%s' already: remove it first, or take another name",
                           in->name);
    if (!failed)
        failed = job_make(in->name, import, im, progress, out, err, n);
    if (lock >= 0)
        close(lock);
    if (im)
        json_decref(im->inspect.process);
    free(im);
    return failed;
}
