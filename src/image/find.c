/* Finding, listing, naming and removing what is in the store. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/error.h"
#include "base/file.h"
#include "base/path.h"
#include "image/image_int.h"

#define LEAST_PREFIX 6
#define VM_JSON_MAX (4u << 20)

/* The digits of a digest that is given as such, or that the word could be the beginning of; NULL if it is none. */
static const char *digest_digits(const char *word)
{
    bool marked = strncmp(word, "sha256-", 7) == 0 || strncmp(word, "sha256:", 7) == 0;
    const char *digits = marked ? word + 7 : word;
    size_t len = strlen(digits);

    return len >= LEAST_PREFIX && len <= 64 && strspn(digits, "0123456789abcdef") == len ? digits : NULL;
}

static int find_digest(const char *images, const char *word, char digest[IMAGE_DIGEST_SIZE], char *err, size_t n)
{
    const char *digits = digest_digits(word);
    DIR *directory = digits ? opendir(images) : NULL;
    struct dirent *e;
    unsigned found = 0;

    while (directory && (e = readdir(directory))) {
        if (!store_is_digest(e->d_name) || strncmp(e->d_name + 7, digits, strlen(digits)) != 0)
            continue;
        memcpy(digest, e->d_name, IMAGE_DIGEST_SIZE);
        found++;
    }
    if (directory)
        closedir(directory);
    if (found > 1)
        return error_set(err, n, -ENOTUNIQ, "%u images have a digest that begins with %s: write more of it", found,
                         word);
    return found ? 0 : -ENOENT;
}

/* Says that there is none; a file of that name was probably meant. */
static int not_found(const char *word, char *err, size_t n)
{
    if (access(word, F_OK) == 0)
        return error_set(err, n, -ENOENT, "there is no image '%s'; for the file of that name write ./%s", word, word);
    return error_set(err, n, -ENOENT, "there is no image '%s': `guise image ls` lists those that are", word);
}

static int resolve(const char *images, const char *word, char digest[IMAGE_DIGEST_SIZE], bool *by_name, char *err,
                   size_t n)
{
    *by_name = false;
    if (strchr(word, '/')) {
        char key[FILE_KEY_SIZE];
        int failed = file_key(word, key, err, n);
        if (failed)
            return failed;
        failed = store_read_link(images, "files", key, digest);
        return failed ? error_set(err, n, -ENOENT, "no image was made of %s yet", word) : 0;
    }
    if (image_name_check(word, NULL, 0) == 0) {
        int failed = store_read_link(images, "names", word, digest);
        *by_name = !failed;
        if (failed != -ENOENT)
            return failed ? error_sys(err, n, failed, "the name %s is damaged", word) : 0;
    }
    int failed = find_digest(images, word, digest, err, n);
    return failed == -ENOENT ? not_found(word, err, n) : failed;
}

int image_find(const char *word, struct image_info *out, char *err, size_t n)
{
    char images[IMAGE_PATH_SIZE], digest[IMAGE_DIGEST_SIZE];
    bool by_name;
    int failed = store_path(images, err, n);

    if (!failed)
        failed = resolve(images, word, digest, &by_name, err, n);
    return failed ? failed : store_load(images, digest, by_name ? word : NULL, out, err, n);
}

/* ---- lists ---- */

static int add(struct image_info **list, size_t *count, const struct image_info *info)
{
    struct image_info *larger = realloc(*list, (*count + 1) * sizeof **list);

    if (!larger)
        return -ENOMEM;
    larger[(*count)++] = *info;
    *list = larger;
    return 0;
}

static int add_names(const char *images, struct image_info **list, size_t *count)
{
    char path[IMAGE_PATH_SIZE], digest[IMAGE_DIGEST_SIZE];
    struct image_info info;
    int failed = path_format(path, sizeof path, NULL, 0, "%s/names", images);
    DIR *directory = failed ? NULL : opendir(path);
    struct dirent *e;

    while (directory && !failed && (e = readdir(directory)))
        if (image_name_check(e->d_name, NULL, 0) == 0 && !store_read_link(images, "names", e->d_name, digest) &&
            !store_load(images, digest, e->d_name, &info, NULL, 0))
            failed = add(list, count, &info);
    if (directory)
        closedir(directory);
    return failed;
}

static int add_nameless(const char *images, struct image_info **list, size_t *count)
{
    struct image_info info;
    DIR *directory = opendir(images);
    struct dirent *e;
    size_t named = *count;
    int failed = 0;

    while (directory && !failed && (e = readdir(directory))) {
        bool known = !store_is_digest(e->d_name);
        for (size_t i = 0; i < named && !known; i++)
            known = strcmp((*list)[i].digest, e->d_name) == 0;
        if (!known && !store_load(images, e->d_name, "", &info, NULL, 0))
            failed = add(list, count, &info);
    }
    if (directory)
        closedir(directory);
    return failed;
}

static int compare(const void *a, const void *b)
{
    const struct image_info *one = a, *other = b;
    int order = strcmp(one->name, other->name);

    return order ? order : strcmp(one->digest, other->digest);
}

int image_list(struct image_info **list, size_t *count, char *err, size_t n)
{
    char images[IMAGE_PATH_SIZE];
    int failed = store_path(images, err, n);

    *list = NULL;
    *count = 0;
    if (failed)
        return failed;
    failed = add_names(images, list, count);
    if (!failed)
        failed = add_nameless(images, list, count);
    if (failed) {
        free(*list);
        *list = NULL;
        *count = 0;
        return error_sys(err, n, failed, "cannot list the images");
    }
    if (*count)
        qsort(*list, *count, sizeof **list, compare);
    return 0;
}

/* ---- names ---- */

int image_tag(const char *word, const char *name, char *err, size_t n)
{
    char images[IMAGE_PATH_SIZE], digest[IMAGE_DIGEST_SIZE];
    bool by_name;
    int failed = image_name_check(name, err, n);

    if (!failed)
        failed = store_path(images, err, n);
    if (failed)
        return failed;
    int lock = store_lock(images, err, n);
    if (lock < 0)
        return lock;
    failed = resolve(images, word, digest, &by_name, err, n);
    if (!failed)
        failed = store_link(images, "names", name, digest, err, n);
    close(lock);
    return failed;
}

/* ---- removing ---- */

int image_hold(const struct image_info *info, char *err, size_t n)
{
    int fd = open(info->directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);

    /* A lock that somebody has who removes it just now means that it is gone. */
    if (fd >= 0 && flock(fd, LOCK_SH | LOCK_NB) == 0 && access(info->disk, F_OK) == 0)
        return fd;
    if (fd >= 0)
        close(fd);
    return error_set(err, n, -ENOENT, "the image %s was removed just now", info->name[0] ? info->name : info->digest);
}

/* Does this VM's description hold the digest, in whatever field? */
static bool vm_uses(const char *path, const char *digest)
{
    char *text;
    bool uses;

    if (file_read(path, VM_JSON_MAX, &text, NULL, NULL, 0))
        return false;
    uses = strstr(text, digest);
    free(text);
    return uses;
}

/* The name of a VM that has the image as its disk, into vm[n_vm]. */
static bool find_user(const char *images, const char *digest, char *vm, size_t n_vm)
{
    char vms[IMAGE_PATH_SIZE], path[IMAGE_PATH_SIZE];
    bool found = false;
    struct dirent *e;

    if (path_format(vms, sizeof vms, NULL, 0, "%.*s/vms", (int)(strrchr(images, '/') - images), images))
        return false;
    DIR *directory = opendir(vms);
    while (directory && !found && (e = readdir(directory))) {
        if (e->d_name[0] == '.' || path_format(path, sizeof path, NULL, 0, "%s/%s/vm.json", vms, e->d_name))
            continue;
        found = vm_uses(path, digest);
        if (found)
            snprintf(vm, n_vm, "%s", e->d_name);
    }
    if (directory)
        closedir(directory);
    return found;
}

/* Links of `folder` that lead to the digest: counts them, and removes them if asked to. */
static unsigned count_links(const char *images, const char *folder, const char *digest, bool remove)
{
    char path[IMAGE_PATH_SIZE], target[IMAGE_DIGEST_SIZE];
    unsigned count = 0;
    struct dirent *e;

    if (path_format(path, sizeof path, NULL, 0, "%s/%s", images, folder))
        return 0;
    DIR *directory = opendir(path);
    while (directory && (e = readdir(directory))) {
        if (store_read_link(images, folder, e->d_name, target) || strcmp(target, digest) != 0)
            continue;
        count++;
        if (remove)
            unlinkat(dirfd(directory), e->d_name, 0);
    }
    if (directory)
        closedir(directory);
    return count;
}

/* Under the lock of the store. */
static int remove_image(const char *images, const char *word, const char *digest, char *err, size_t n)
{
    char path[IMAGE_PATH_SIZE], grave[IMAGE_PATH_SIZE], vm[256];
    int failed = path_format(path, sizeof path, err, n, "%s/%s", images, digest);

    if (failed)
        return failed;
    if (find_user(images, digest, vm, sizeof vm))
        return error_set(err, n, -EBUSY, "the VM %s uses the image %s: remove it first, with `guise rm %s`", vm, word,
                         vm);
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
    if (fd < 0)
        return error_sys(err, n, -errno, "cannot open %s", path);
    if (flock(fd, LOCK_EX | LOCK_NB)) {
        close(fd);
        return error_set(err, n, -EBUSY, "a running VM uses the image %s: stop it first", word);
    }
    count_links(images, "names", digest, true);
    count_links(images, "files", digest, true);
    /* From here on it is a draft, which any sweep would finish to remove. */
    snprintf(grave, sizeof grave, "%.900s/tmp-%.64s", images, digest);
    failed = rename(path, grave) ? -errno : files_remove(grave);
    close(fd);
    return failed ? error_sys(err, n, failed, "cannot remove %s", path) : 0;
}

int image_remove(const char *word, bool *deleted, char *err, size_t n)
{
    char images[IMAGE_PATH_SIZE], digest[IMAGE_DIGEST_SIZE], path[IMAGE_PATH_SIZE];
    bool by_name;
    int failed = store_path(images, err, n);

    *deleted = false;
    if (failed)
        return failed;
    int lock = store_lock(images, err, n);
    if (lock < 0)
        return lock;
    store_sweep(images);
    failed = resolve(images, word, digest, &by_name, err, n);
    if (!failed && by_name && count_links(images, "names", digest, false) > 1) {
        failed = path_format(path, sizeof path, err, n, "%s/names/%s", images, word);
        if (!failed && unlink(path))
            failed = error_sys(err, n, -errno, "cannot remove %s", path);
    } else if (!failed) {
        failed = remove_image(images, word, digest, err, n);
        *deleted = !failed;
    }
    close(lock);
    return failed;
}

/* ---- the rest ---- */

int image_verify(const struct image_info *info, char *err, size_t n)
{
    char digest[IMAGE_DIGEST_SIZE];
    int failed = digest_image(info->directory, digest, err, n);

    if (!failed && strcmp(digest, info->digest) != 0)
        return error_set(err, n, -EBADMSG, "the image %s is damaged: its content has the digest %s",
                         info->name[0] ? info->name : info->digest, digest);
    return failed;
}

int image_process(const struct image_info *info, struct image_process *out, char *err, size_t n)
{
    char path[IMAGE_PATH_SIZE], why[ERROR_SIZE], *text;
    size_t len;
    int failed = path_format(path, sizeof path, err, n, "%s/metadata.json", info->directory);

    *out = (struct image_process){0};
    if (!failed)
        failed = file_read(path, IMAGE_METADATA_MAX, &text, &len, err, n);
    if (failed)
        return failed;
    failed = metadata_process(text, len, out, why, sizeof why);
    free(text);
    return failed ? error_set(err, n, failed, "%s is damaged: %s", path, why) : 0;
}
