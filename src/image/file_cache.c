/*
 * Disks that are named by their path (`guise run ./disk.qcow2`): the image made of one is kept and found again while
 * the file is as it was.  DATA/images/files/PATH-SIZE-TIME-INODE is a link to it; PATH is a digest of the real path.
 */
#include <dirent.h>
#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/error.h"
#include "base/openssl_library.h"
#include "base/path.h"
#include "image/image_int.h"

#define PATH_DIGITS 32

int file_key(const char *path, char out[FILE_KEY_SIZE], char *err, size_t n)
{
    unsigned char sum[EVP_MAX_MD_SIZE];
    char real[PATH_MAX];
    struct stat st;

    if (!realpath(path, real) || stat(real, &st))
        return error_sys(err, n, -errno, "cannot open %s", path);
    int failed = openssl_load(err, n);
    if (failed)
        return failed;
    if (!openssl.EVP_Digest(real, strlen(real), sum, NULL, openssl.EVP_sha256(), NULL))
        return error_sys(err, n, -ENOMEM, "no digest of %s", path);
    for (unsigned i = 0; i < PATH_DIGITS / 2; i++)
        snprintf(out + 2 * i, 3, "%02x", sum[i]);
    snprintf(out + PATH_DIGITS, FILE_KEY_SIZE - PATH_DIGITS, "-%" PRIx64 "-%" PRIx64 ".%09ld-%" PRIx64,
             (uint64_t)st.st_size, (uint64_t)st.st_mtim.tv_sec, st.st_mtim.tv_nsec, (uint64_t)st.st_ino);
    return 0;
}

/* Is it there only because of the link files/NAME?  Then it may go with it. */
static bool is_named(const char *images, const char *digest)
{
    char path[IMAGE_PATH_SIZE], target[IMAGE_DIGEST_SIZE];
    bool named = false;
    struct dirent *e;

    if (path_format(path, sizeof path, NULL, 0, "%s/names", images))
        return true;
    DIR *directory = opendir(path);
    while (directory && !named && (e = readdir(directory)))
        named = !store_read_link(images, "names", e->d_name, target) && strcmp(target, digest) == 0;
    if (directory)
        closedir(directory);
    return named;
}

static void forget(const char *images, const char *name, const char *replacement)
{
    char digest[IMAGE_DIGEST_SIZE], path[IMAGE_PATH_SIZE];
    bool deleted;

    if (store_read_link(images, "files", name, digest) == 0 && strcmp(digest, replacement) != 0 &&
        !is_named(images, digest))
        image_remove(digest, &deleted, NULL, 0); /* one that is used stays, without a link */
    if (path_format(path, sizeof path, NULL, 0, "%s/files/%s", images, name) == 0)
        unlink(path);
}

void file_remember(const char *images, const char *key, const char *digest)
{
    char path[IMAGE_PATH_SIZE];
    struct dirent *e;

    store_link(images, "files", key, digest, NULL, 0);
    if (path_format(path, sizeof path, NULL, 0, "%s/files", images))
        return;
    DIR *directory = opendir(path);
    while (directory && (e = readdir(directory)))
        if (strncmp(e->d_name, key, PATH_DIGITS + 1) == 0 && strcmp(e->d_name, key) != 0)
            forget(images, e->d_name, digest);
    if (directory)
        closedir(directory);
}
