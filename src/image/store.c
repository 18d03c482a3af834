/*
 * DATA/images: the directory of images, its names and its locks.
 *
 * An image comes into being by one rename of a complete directory and goes by one rename to a draft's name, so that
 * whoever dies in between leaves a draft, and drafts are swept.  What changes DATA/images takes DATA/images/lock for
 * that moment; readers take nothing.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/error.h"
#include "base/file.h"
#include "base/path.h"
#include "image/image_int.h"

int store_path(char *out, char *err, size_t n)
{
    static const char *const folders[] = {"names", "files", "locks"};
    char path[IMAGE_PATH_SIZE], data[IMAGE_PATH_SIZE];
    int failed = path_data(data, sizeof data, err, n);

    if (!failed)
        failed = path_format(out, IMAGE_PATH_SIZE - 128, err, n, "%s/images", data);
    for (size_t i = 0; i < sizeof folders / sizeof folders[0] && !failed; i++) {
        failed = path_format(path, sizeof path, err, n, "%s/%s", out, folders[i]);
        if (!failed)
            failed = path_make(path, 0700, err, n);
    }
    return failed;
}

static int lock_file(const char *path, bool *waited, char *err, size_t n)
{
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);

    if (fd < 0)
        return error_sys(err, n, -errno, "cannot open %s", path);
    if (flock(fd, LOCK_EX | LOCK_NB) == 0)
        return fd;
    if (waited)
        *waited = true;
    while (flock(fd, LOCK_EX)) {
        if (errno != EINTR) {
            int failed = -errno;
            close(fd);
            return error_sys(err, n, failed, "cannot lock %s", path);
        }
    }
    return fd;
}

int store_lock(const char *images, char *err, size_t n)
{
    char path[IMAGE_PATH_SIZE];
    int failed = path_format(path, sizeof path, err, n, "%s/lock", images);

    return failed ? failed : lock_file(path, NULL, err, n);
}

int store_lock_name(const char *name, bool *waited, char *err, size_t n)
{
    char images[IMAGE_PATH_SIZE], path[IMAGE_PATH_SIZE];
    int failed = store_path(images, err, n);

    *waited = false;
    if (!failed)
        failed = path_format(path, sizeof path, err, n, "%s/locks/%s", images, name);
    return failed ? failed : lock_file(path, waited, err, n);
}

/* ---- drafts ---- */

static int lock_directory(const char *path, int operation)
{
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);

    if (fd < 0)
        return -errno;
    if (flock(fd, operation | LOCK_NB) == 0)
        return fd;
    int failed = -errno;
    close(fd);
    return failed;
}

int store_draft(struct store_draft *d, char *err, size_t n)
{
    char images[IMAGE_PATH_SIZE];

    d->lock = -1;
    int failed = store_path(images, err, n);
    if (failed)
        return failed;
    /* Between mkdir and flock a sweep would take it for a dead one's. */
    int lock = store_lock(images, err, n);
    if (lock < 0)
        return lock;
    store_sweep(images);
    snprintf(d->path, sizeof d->path, "%.900s/tmp-XXXXXX", images);
    if (!mkdtemp(d->path))
        failed = error_sys(err, n, -errno, "cannot make a directory in %s", images);
    else if ((d->lock = lock_directory(d->path, LOCK_EX)) < 0)
        failed = error_sys(err, n, d->lock, "cannot lock %s", d->path);
    close(lock);
    return failed;
}

#define SCRATCH "/var/tmp/guise-build-"

int store_scratch(const char *draft, char *out, char *err, size_t n)
{
    char link[IMAGE_PATH_SIZE];

    snprintf(link, sizeof link, "%.1000s/scratch", draft);
    if (geteuid() == 0) {
        snprintf(out, IMAGE_PATH_SIZE, "%s", link);
        return mkdir(out, 0711) ? error_sys(err, n, -errno, "cannot make %s", out) : 0;
    }
    snprintf(out, IMAGE_PATH_SIZE, SCRATCH "XXXXXX");
    if (!mkdtemp(out) || chmod(out, 0755) || symlink(out, link))
        return error_sys(err, n, -errno, "cannot make a directory in /var/tmp");
    return 0;
}

/* What belongs to subordinate ids can only be removed in a user namespace that has them, as mmdebstrap's helper makes.
 * It empties what it owns; the directory that was made for it, and what is empty in there, is ours to remove. */
static void empty_foreign(const char *path)
{
    pid_t pid = fork();

    if (pid == 0) {
        int null = open("/dev/null", O_RDWR);
        dup2(null, 0);
        dup2(null, 1);
        dup2(null, 2);
        execlp("mmdebstrap", "mmdebstrap", "--unshare-helper", "rm", "-rf", path, NULL);
        _exit(127);
    }
    while (pid > 0 && waitpid(pid, NULL, 0) < 0 && errno == EINTR)
        ;
}

void store_scratch_remove(const char *draft)
{
    char link[IMAGE_PATH_SIZE], target[IMAGE_PATH_SIZE];

    snprintf(link, sizeof link, "%.1000s/scratch", draft);
    ssize_t len = readlink(link, target, sizeof target - 1);
    target[len > 0 ? len : 0] = 0;
    if (strncmp(target, SCRATCH, strlen(SCRATCH)) == 0 && !strchr(target + strlen(SCRATCH), '/')) {
        if (rmdir(target) && errno != ENOENT && chmod(target, 0755) == 0)
            empty_foreign(target);
        files_remove(target);
    }
    files_remove(link);
}

static void remove_draft(const char *path)
{
    store_scratch_remove(path);
    files_remove(path);
}

void store_discard(struct store_draft *d)
{
    if (d->lock < 0)
        return;
    remove_draft(d->path);
    close(d->lock);
    d->lock = -1;
}

void store_sweep(const char *images)
{
    char path[IMAGE_PATH_SIZE];
    DIR *directory = opendir(images);
    struct dirent *e;

    while (directory && (e = readdir(directory))) {
        if (strncmp(e->d_name, "tmp-", 4) != 0 || path_format(path, sizeof path, NULL, 0, "%s/%s", images, e->d_name))
            continue;
        int fd = lock_directory(path, LOCK_EX);
        if (fd < 0)
            continue; /* its process lives */
        remove_draft(path);
        close(fd);
    }
    if (directory)
        closedir(directory);
}

/* Every file of the draft read-only and on disk, for good. */
static int seal(const char *path, char *err, size_t n)
{
    DIR *directory = opendir(path);
    struct dirent *e;
    int failed = 0;

    if (!directory)
        return error_sys(err, n, -errno, "cannot finish %s", path);
    while (!failed && (e = readdir(directory))) {
        if (e->d_name[0] == '.')
            continue;
        int fd = openat(dirfd(directory), e->d_name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
        if (fd < 0 || fchmod(fd, 0444) || fsync(fd))
            failed = -errno;
        if (fd >= 0)
            close(fd);
    }
    if (!failed && (fchmod(dirfd(directory), 0555) || fsync(dirfd(directory))))
        failed = -errno;
    closedir(directory);
    return failed ? error_sys(err, n, failed, "cannot finish %s", path) : 0;
}

int store_publish(struct store_draft *d, const char *name, struct image_info *out, char *err, size_t n)
{
    char images[IMAGE_PATH_SIZE], digest[IMAGE_DIGEST_SIZE], target[IMAGE_PATH_SIZE] = "";
    int lock = -1, failed = store_path(images, err, n);

    if (!failed)
        failed = digest_image(d->path, digest, err, n);
    if (!failed)
        failed = path_format(target, sizeof target, err, n, "%s/%s", images, digest);
    if (!failed)
        failed = seal(d->path, err, n);
    if (!failed)
        failed = lock = store_lock(images, err, n);
    if (failed > 0)
        failed = 0;
    /* The same content may be there already, then that one stays. */
    if (!failed && rename(d->path, target) && errno != ENOTEMPTY && errno != EEXIST)
        failed = error_sys(err, n, -errno, "cannot name %s", target);
    if (!failed && (failed = file_sync_directory(target)))
        error_sys(err, n, failed, "cannot write %s to the disk", images);
    if (!failed && name)
        failed = store_link(images, "names", name, digest, err, n);
    if (!failed)
        failed = store_load(images, digest, name, out, err, n);
    store_discard(d); /* what is there still: all of it after a failure, or a copy of what was there */
    if (lock >= 0)
        close(lock);
    return failed;
}

/* ---- names ---- */

int image_name_check(const char *name, char *err, size_t n)
{
    size_t len = strlen(name);

    if (len == 0 || len >= IMAGE_NAME_SIZE || strspn(name, "abcdefghijklmnopqrstuvwxyz0123456789._:-") != len ||
        strchr("._:-", name[0]) || strncmp(name, "sha256-", 7) == 0 || strncmp(name, "sha256:", 7) == 0)
        return error_set(
            err, n, -EINVAL,
            "'%s' cannot be the name of an image: take 1 to 63 of a-z 0-9 . _ : - beginning with a letter or "
            "digit",
            name);
    return 0;
}

bool store_is_digest(const char *text)
{
    return strncmp(text, "sha256-", 7) == 0 && strlen(text) == 71 && strspn(text + 7, "0123456789abcdef") == 64;
}

int store_link(const char *images, const char *folder, const char *name, const char *digest, char *err, size_t n)
{
    char path[IMAGE_PATH_SIZE], temporary[IMAGE_PATH_SIZE], target[IMAGE_DIGEST_SIZE + 3];
    int failed = path_format(path, sizeof path, err, n, "%s/%s/%s", images, folder, name);

    if (!failed)
        failed = path_format(temporary, sizeof temporary, err, n, "%s/%s/.%s", images, folder, name);
    if (failed)
        return failed;
    snprintf(target, sizeof target, "../%s", digest);
    unlink(temporary); /* a dead one's; the caller has the lock */
    if (symlink(target, temporary) || rename(temporary, path))
        return error_sys(err, n, -errno, "cannot make %s", path);
    failed = file_sync_directory(path);
    return failed ? error_sys(err, n, failed, "cannot write %s to the disk", path) : 0;
}

int store_read_link(const char *images, const char *folder, const char *name, char digest[IMAGE_DIGEST_SIZE])
{
    char path[IMAGE_PATH_SIZE], target[IMAGE_DIGEST_SIZE + 4];

    if (path_format(path, sizeof path, NULL, 0, "%s/%s/%s", images, folder, name))
        return -ENAMETOOLONG;
    ssize_t len = readlink(path, target, sizeof target - 1);
    if (len < 0)
        return -errno;
    target[len] = 0;
    if (strncmp(target, "../", 3) != 0 || !store_is_digest(target + 3))
        return -EBADMSG;
    memcpy(digest, target + 3, IMAGE_DIGEST_SIZE);
    return 0;
}

/* ---- reading ---- */

static uint64_t used_bytes(const struct image_info *info)
{
    return files_allocated(info->disk) + files_allocated(info->kernel) + files_allocated(info->modules) +
           (info->initrd[0] ? files_allocated(info->initrd) : 0);
}

static int fill_paths(const char *images, const char *digest, struct image_info *out, char *err, size_t n)
{
    int failed = path_format(out->directory, sizeof out->directory, err, n, "%s/%s", images, digest);

    if (failed)
        return failed;
    /* store_path leaves room for the digest and the names of the files. */
    snprintf(out->disk, sizeof out->disk, "%.1000s/disk.raw", out->directory);
    snprintf(out->kernel, sizeof out->kernel, "%.1000s/kernel", out->directory);
    snprintf(out->modules, sizeof out->modules, "%.1000s/modules.cpio", out->directory);
    snprintf(out->initrd, sizeof out->initrd, "%.1000s/initrd", out->directory);
    if (access(out->initrd, F_OK))
        out->initrd[0] = 0;
    snprintf(out->digest, sizeof out->digest, "%s", digest);
    out->used_bytes = used_bytes(out);
    return 0;
}

int store_load(const char *images, const char *digest, const char *name, struct image_info *out, char *err, size_t n)
{
    char path[IMAGE_PATH_SIZE], why[ERROR_SIZE], *text;
    size_t len;
    int failed = path_format(path, sizeof path, err, n, "%s/%s/metadata.json", images, digest);

    if (!failed)
        failed = file_read(path, IMAGE_METADATA_MAX, &text, &len, err, n);
    if (failed)
        return failed;
    failed = metadata_parse(text, len, out, why, sizeof why);
    free(text);
    if (failed)
        return error_set(err, n, -EBADMSG, "%s is damaged: %s", path, why);
    if (name)
        snprintf(out->name, sizeof out->name, "%s", name);
    return fill_paths(images, digest, out, err, n);
}
