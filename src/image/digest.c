/*
 * The digest of an image: SHA-256 of a list with one line for each of its files, in the order of `files`,
 *
 *      guise-image 1 LF
 *      NAME SP size in bytes SP hexadecimal SHA-256 of the content LF
 *
 * For disk.raw the content is its blocks of 64 KiB that are not all zeros, each after its offset in the disk as a
 * little-endian 64-bit number; the last one may be shorter.  So it is the same disk whether zeros are stored or are
 * holes.
 */
#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/error.h"
#include "base/openssl_library.h"
#include "base/path.h"
#include "image/image_int.h"

#define BLOCK 65536

static const struct {
    const char *name;
    bool optional;
    int (*digest)(int fd, char out[65]);
} files[] = {
    {"disk.raw", false, digest_disk}, {"kernel", false, digest_file},        {"modules.cpio", false, digest_file},
    {"initrd", true, digest_file},    {"metadata.json", false, digest_file},
};

static int finish(EVP_MD_CTX *md, char out[65])
{
    unsigned char sum[EVP_MAX_MD_SIZE];
    unsigned len = 0;

    if (!openssl.EVP_DigestFinal_ex(md, sum, &len) || len != 32)
        return -ENOMEM;
    for (unsigned i = 0; i < len; i++)
        snprintf(out + 2 * i, 3, "%02x", sum[i]);
    return 0;
}

static EVP_MD_CTX *begin(void)
{
    char none[1];
    EVP_MD_CTX *md = openssl_load(none, sizeof none) ? NULL : openssl.EVP_MD_CTX_new();

    if (md && !openssl.EVP_DigestInit_ex(md, openssl.EVP_sha256(), NULL)) {
        openssl.EVP_MD_CTX_free(md);
        return NULL;
    }
    return md;
}

static void end(EVP_MD_CTX *md)
{
    if (md)
        openssl.EVP_MD_CTX_free(md);
}

/* Up to a block at `offset`; fewer only at the end of the file. */
static ssize_t read_block(int fd, void *buffer, off_t offset)
{
    size_t got = 0;

    while (got < BLOCK) {
        ssize_t now = pread(fd, (char *)buffer + got, BLOCK - got, offset + (off_t)got);
        if (now < 0 && errno == EINTR)
            continue;
        if (now < 0)
            return -errno;
        if (now == 0)
            break;
        got += (size_t)now;
    }
    return (ssize_t)got;
}

static int add_block(EVP_MD_CTX *md, const char *data, size_t len, off_t offset)
{
    uint64_t place = htole64((uint64_t)offset);

    if (bytes_all_zero(data, len))
        return 0;
    return openssl.EVP_DigestUpdate(md, &place, sizeof place) && openssl.EVP_DigestUpdate(md, data, len) ? 0 : -ENOMEM;
}

/* The next offset, a multiple of BLOCK and at least `from`, whose block may hold data; -1: none is left.  A file system
 * that knows no holes says that all is data. */
static off_t next_data(int fd, off_t from)
{
    off_t data = lseek(fd, from, SEEK_DATA);

    if (data < 0)
        return errno == ENXIO ? -1 : from;
    return data & ~(off_t)(BLOCK - 1);
}

static int add_blocks(EVP_MD_CTX *md, int fd, char *buffer)
{
    for (off_t at = next_data(fd, 0); at >= 0; at = next_data(fd, at + BLOCK)) {
        ssize_t len = read_block(fd, buffer, at);
        if (len <= 0)
            return (int)len;
        int failed = add_block(md, buffer, (size_t)len, at);
        if (failed)
            return failed;
    }
    return 0;
}

int digest_disk(int fd, char out[65])
{
    EVP_MD_CTX *md = begin();
    char *buffer = malloc(BLOCK);
    int failed = md && buffer ? add_blocks(md, fd, buffer) : -ENOMEM;

    if (!failed)
        failed = finish(md, out);
    free(buffer);
    end(md);
    return failed;
}

int digest_file(int fd, char out[65])
{
    EVP_MD_CTX *md = begin();
    char *buffer = malloc(BLOCK);
    int failed = md && buffer ? 0 : -ENOMEM;

    for (off_t at = 0; !failed;) {
        ssize_t len = read_block(fd, buffer, at);
        if (len <= 0) {
            failed = (int)len;
            break;
        }
        failed = openssl.EVP_DigestUpdate(md, buffer, (size_t)len) ? 0 : -ENOMEM;
        at += len;
    }
    if (!failed)
        failed = finish(md, out);
    free(buffer);
    end(md);
    return failed;
}

/* One line of the list into line[200]; empty for an optional file that is not there. */
static int digest_line(const char *directory, size_t i, char line[200], char *err, size_t n)
{
    char path[IMAGE_PATH_SIZE], hex[65] = "";
    struct stat st = {0};
    int failed = path_format(path, sizeof path, err, n, "%s/%s", directory, files[i].name);

    line[0] = 0;
    if (failed)
        return failed;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    if (fd < 0 && errno == ENOENT && files[i].optional)
        return 0;
    if (fd < 0 || fstat(fd, &st))
        failed = -errno;
    else
        failed = files[i].digest(fd, hex);
    if (fd >= 0)
        close(fd);
    if (failed)
        return error_sys(err, n, failed, "cannot read %s", path);
    snprintf(line, 200, "%s %" PRId64 " %s\n", files[i].name, (int64_t)st.st_size, hex);
    return 0;
}

int digest_image(const char *directory, char out[IMAGE_DIGEST_SIZE], char *err, size_t n)
{
    static const char title[] = "guise-image 1\n";
    char line[200], hex[65] = "";
    int failed = openssl_load(err, n);

    if (failed)
        return failed;
    EVP_MD_CTX *md = begin();
    if (!md || !openssl.EVP_DigestUpdate(md, title, strlen(title))) {
        end(md);
        return error_sys(err, n, -ENOMEM, "no digest");
    }
    for (size_t i = 0; i < sizeof files / sizeof files[0] && !failed; i++) {
        failed = digest_line(directory, i, line, err, n);
        if (!failed && !openssl.EVP_DigestUpdate(md, line, strlen(line)))
            failed = error_sys(err, n, -ENOMEM, "no digest");
    }
    if (!failed && (failed = finish(md, hex)))
        error_sys(err, n, failed, "no digest");
    if (!failed)
        snprintf(out, IMAGE_DIGEST_SIZE, "sha256-%s", hex);
    end(md);
    return failed;
}
