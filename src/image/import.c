/* `guise image import`: whatever it is becomes DRAFT/disk.raw, and that is looked into. */
#include "image/import.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/error.h"
#include "host/sandbox.h"
#include "image/download.h"
#include "image/inspect.h"
#include "image/recipe.h"
#include "image/rootfs.h"

/* What the process says when the default image's kernel would do. */
#define ENOKERNEL ENOLINK

struct import {
    const struct image_import *in;
    const char *path; /* the source's, absolute; NULL: it is a URL */
    struct inspect inspect;
    struct image_info base; /* whose kernel to take */
    char paths[3][PATH_MAX];
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

/* ---- what is left to the process that reads a stranger's files ---- */

/* An absolute path: the sandbox may take the working directory. */
static int absolute(const char *path, char out[PATH_MAX], char *err, size_t n)
{
    return realpath(path, out) ? 0 : error_sys(err, n, -errno, "cannot read %s", path);
}

static int confine(const struct import *im, char *err, size_t n)
{
    char images[IMAGE_PATH_SIZE];
    struct sandbox_path paths[4] = {{images, SANDBOX_READ | SANDBOX_WRITE | SANDBOX_CHANGE}};
    const char *const sources[] = {im->path, im->inspect.kernel, im->inspect.initrd};
    unsigned count = 1;
    bool names;
    int failed = store_path(images, err, n);

    for (size_t i = 0; i < sizeof sources / sizeof sources[0]; i++)
        if (sources[i])
            paths[count++] = (struct sandbox_path){sources[i], SANDBOX_READ | SANDBOX_DEVICE};
    if (!failed)
        failed = sandbox_program(SANDBOX_IMAGE_MAKER, paths, count, &names, err, n);
    return failed;
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
    } else {
        path = im->path;
    }
    if (!failed && j->own)
        failed = confine(im, err, n);
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
        failed = inspect_disk(j, &im->inspect, err, n);
    if (failed == -ENOPKG && makes_root(kind) && !im->inspect.base)
        failed = -ENOKERNEL;
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
        im->inspect.kernel = im->paths[1];
        return absolute(kernel, im->paths[1], err, n);
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

static int resolve(struct import *im, char *err, size_t n)
{
    int failed = 0;

    if (!download_is_url(im->in->source)) {
        im->path = im->paths[0];
        failed = absolute(im->in->source, im->paths[0], err, n);
    }
    if (!failed && im->in->initrd) {
        im->inspect.initrd = im->paths[2];
        failed = absolute(im->in->initrd, im->paths[2], err, n);
    }
    return failed;
}

/* A root without a kernel boots with that of the default image, which may have to be built for it; that cannot be done
 * by the process that is confined. */
static int make(struct import *im, const struct image_progress *progress, struct image_info *out, char *err, size_t n)
{
    int failed = job_make(im->in->name, import, im, progress, out, err, n);

    if (failed != -ENOKERNEL)
        return failed;
    failed = image_ensure("debian", progress, &im->base, err, n);
    im->inspect.base = &im->base;
    return failed ? failed : job_make(im->in->name, import, im, progress, out, err, n);
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
        im->inspect = (struct inspect){.append = in->append, .name = in->name, .source = in->source};
        failed = choose_kernel(im, progress, err, n);
    }
    if (!failed)
        failed = resolve(im, err, n);
    if (!failed && in->name)
        failed = lock = store_lock_name(in->name, &waited, err, n);
    failed = failed > 0 ? 0 : failed;
    if (!failed && in->name && !in->replace && image_find(in->name, out, why, sizeof why) != -ENOENT)
        failed = error_set(err, n, -EEXIST, "there is an image '%s' already: remove it first, or take another name",
                           in->name);
    if (!failed)
        failed = make(im, progress, out, err, n);
    if (lock >= 0)
        close(lock);
    if (im)
        json_decref(im->inspect.process);
    free(im);
    return failed;
}
