/* What is not there yet is made. */
#include "image/make.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "base/error.h"
#include "image/recipe.h"

/* A disk named by its path; the file's state is part of what it is remembered by. */
static int ensure_file(const char *path, const struct image_progress *progress, struct image_info *out, char *err,
                       size_t n)
{
    char images[IMAGE_PATH_SIZE], key[FILE_KEY_SIZE];
    const struct image_import in = {.source = path};
    bool waited;
    int failed = file_key(path, key, err, n);

    if (!failed)
        failed = store_path(images, err, n);
    if (failed)
        return failed;
    int lock = store_lock_name(key, &waited, err, n);
    if (lock < 0)
        return lock;
    failed = waited ? image_find(path, out, err, n) : -ENOENT;
    if (failed == -ENOENT) {
        failed = image_import(&in, progress, out, err, n);
        if (!failed)
            file_remember(images, key, out->digest);
    }
    close(lock);
    return failed;
}

int image_ensure(const char *word, const struct image_progress *progress, struct image_info *out, char *err, size_t n)
{
    int failed = image_find(word, out, err, n);

    if (failed != -ENOENT)
        return failed;
    if (strchr(word, '/'))
        return access(word, F_OK) ? failed : ensure_file(word, progress, out, err, n);
    if (!recipe_find(word))
        return failed;
    const struct image_build b = {.name = word};
    failed = image_build(&b, progress, out, err, n);
    return failed == -EEXIST ? image_find(word, out, err, n) : failed; /* another process made it while we waited */
}
