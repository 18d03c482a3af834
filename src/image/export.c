/* An image as one file: its files in a tar archive, compressed; and back. */
#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/error.h"
#include "base/file.h"
#include "base/path.h"
#include "image/import.h"
#include "image/inspect.h"
#include "image/tar.h"

/* metadata.json first: it is what says that this is an image. */
static const struct {
    const char *name;
    bool required, sparse;
    uint64_t most;
} files[] = {
    {"metadata.json", true, false, IMAGE_METADATA_MAX},
    {"kernel", true, false, 512ull << 20},
    {"modules.cpio", true, false, 2ull << 30},
    {"initrd", false, false, 2ull << 30},
    {"disk.raw", true, true, 64ull << 40},
};
#define FILES (sizeof files / sizeof files[0])

struct export
{
    const struct image_progress *progress;
    uint64_t total;
};

static void report(void *context, uint64_t bytes)
{
    struct export *x = context;

    if (x->progress)
        x->progress->report(x->progress->context, "writing the archive", bytes, x->total);
}

static int add_file(struct tar *t, const struct image_info *info, size_t i, char *err, size_t n)
{
    char path[IMAGE_PATH_SIZE];
    int failed = path_format(path, sizeof path, err, n, "%s/%s", info->directory, files[i].name);
    int fd = failed ? -1 : open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);

    if (failed)
        return failed;
    if (fd < 0 && errno == ENOENT && !files[i].required)
        return 0;
    if (fd < 0)
        return error_sys(err, n, -errno, "cannot open %s", path);
    tar_file(t, files[i].name, fd, 0, files[i].sparse);
    close(fd);
    return 0;
}

static int write_archive(int fd, const struct image_info *info, struct export *x, const char *path, char *err, size_t n)
{
    struct tar *t = malloc(sizeof *t);
    int failed = t ? tar_begin(t, fd) : -ENOMEM;

    if (failed) {
        free(t);
        return error_sys(err, n, failed, "cannot write %s", path);
    }
    t->progress = report;
    t->context = x;
    for (size_t i = 0; i < FILES && !failed; i++)
        failed = add_file(t, info, i, err, n);
    int written = tar_end(t);
    free(t);
    if (!failed && !written && fsync(fd) && errno != EINVAL)
        written = -errno;
    return failed ? failed : written ? error_sys(err, n, written, "cannot write %s", path) : 0;
}

/* A file without a name until it is complete, where the file system knows such; else one that the caller removes. */
static int open_new(const char *path, bool *nameless, char *err, size_t n)
{
    char copy[PATH_MAX];

    if (access(path, F_OK) == 0)
        return error_set(err, n, -EEXIST, "%s is there already: remove it first, or write another name", path);
    snprintf(copy, sizeof copy, "%s", path);
    int fd = open(dirname(copy), O_TMPFILE | O_RDWR | O_CLOEXEC, 0644);
    *nameless = fd >= 0;
    if (fd < 0)
        fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
    return fd < 0 ? error_sys(err, n, -errno, "cannot make %s", path) : fd;
}

static int give_name(int fd, const char *path, char *err, size_t n)
{
    char link[64];

    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    if (linkat(AT_FDCWD, link, AT_FDCWD, path, AT_SYMLINK_FOLLOW))
        return error_sys(err, n, -errno, "cannot make %s", path);
    return 0;
}

int image_export(const char *word, const char *path, const struct image_progress *progress, char *err, size_t n)
{
    struct export x = {.progress = progress};
    struct image_info info;
    bool nameless = false;
    int failed = image_find(word, &info, err, n);

    if (failed)
        return failed;
    x.total = info.used_bytes;
    int held = image_hold(&info, err, n);
    if (held < 0)
        return held;
    int fd = open_new(path, &nameless, err, n);
    failed = fd < 0 ? fd : write_archive(fd, &info, &x, path, err, n);
    if (fd >= 0 && !failed && nameless)
        failed = give_name(fd, path, err, n);
    if (fd >= 0 && failed && !nameless)
        unlink(path);
    if (fd >= 0)
        close(fd);
    close(held);
    return failed;
}

/* ---- and back ---- */

struct unpack {
    struct job *j;
    bool there[FILES];
};

static int open_entry(void *context, const char *name, uint64_t size)
{
    struct unpack *u = context;
    char path[IMAGE_PATH_SIZE];

    for (size_t i = 0; i < FILES; i++) {
        if (strcmp(files[i].name, name) != 0)
            continue;
        if (u->there[i])
            return -EEXIST;
        if (size > files[i].most)
            return -EFBIG;
        u->there[i] = true;
        job_path(u->j, name, path);
        int fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
        return fd < 0 ? -errno : fd;
    }
    return 0;
}

/* Its words make sense, its disk has the size they say and its kernel is one. */
static int check_image(struct job *j, const char *from, char *err, size_t n)
{
    char path[IMAGE_PATH_SIZE], why[ERROR_SIZE], release[128], *text;
    struct image_info *info = malloc(sizeof *info);
    unsigned char header[4096];
    struct stat st;
    bool long_mode;
    size_t len;
    ssize_t got;

    job_path(j, "metadata.json", path);
    int failed = info ? file_read(path, IMAGE_METADATA_MAX, &text, &len, err, n) : -ENOMEM;
    if (!failed) {
        failed = metadata_parse(text, len, info, why, sizeof why);
        free(text);
        if (failed)
            error_set(err, n, failed, "the metadata.json in %s is damaged: %s", from, why);
    }
    job_path(j, "disk.raw", path);
    if (!failed && (stat(path, &st) || (uint64_t)st.st_size != info->disk_bytes))
        failed = error_set(err, n, -EBADMSG, "the disk in %s has another size than its metadata.json says", from);
    job_path(j, "kernel", path);
    int fd = failed ? -1 : open(path, O_RDONLY | O_CLOEXEC);
    if (fd >= 0 &&
        ((got = pread(fd, header, sizeof header, 0)) < 0 || bzimage_release(header, (size_t)got, release, &long_mode)))
        failed = error_set(err, n, -EBADMSG, "the kernel in %s is none", from);
    if (fd >= 0)
        close(fd);
    free(info);
    return failed;
}

int export_unpack(struct job *j, const char *path, bool *whole, char *err, size_t n)
{
    struct unpack u = {.j = j};
    bool any = false;
    int fd = open(path, O_RDONLY | O_CLOEXEC);

    job_stage(j, "unpacking the image");
    if (fd < 0)
        return error_sys(err, n, -errno, "cannot open %s", path);
    int failed = archive_extract(fd, path, open_entry, &u, err, n);
    close(fd);
    *whole = true;
    for (size_t i = 0; i < FILES; i++) {
        *whole = *whole && (u.there[i] || !files[i].required);
        any = any || (u.there[i] && !files[i].sparse);
    }
    /* Distributions put their disk alone into an archive: then it is looked into like any other. */
    if (!failed && !*whole && (any || !u.there[FILES - 1]))
        return error_set(err, n, -EBADMSG, "the archive %s has not all parts of an image", path);
    return failed || !*whole ? failed : check_image(j, path, err, n);
}
