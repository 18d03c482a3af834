/*
 * A container's image in the OCI layout: an index that leads to indexes, manifests, configurations and layers, each as
 * the input wants it. The files are made up, and each has the digest that it is asked for.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <sys/stat.h>
#include <sys/types.h>

#include "json.h"

#include "base/error.h"
#include "image/import.h"

#define FD_FIRST 1000
#define FILES 200 /* more than there can be layers */
#define HEX "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcde"
#define DIGEST(n) "sha256:" HEX #n

static struct target {
    struct fuzz_input *in;
    unsigned opened; /* documents so far: index, manifest, configuration */
    char text[4096];
    size_t len;
    char asked[65]; /* the name of the blob that was opened last */
    bool open[FILES];
} t;

static const char *const keys[] = {"manifests", "config",       "layers",     "digest",     "platform",
                                   "os",        "architecture", "Env",        "Cmd",        "User",
                                   "size",      "mediaType",    "Entrypoint", "WorkingDir", NULL};
static const char *const texts[] = {DIGEST(0), DIGEST(1), DIGEST(2), DIGEST(g), "sha256:", "",        "linux", "amd64",
                                    "arm64",   "/",       "root",    "A=b",     "../x",    "\\u0000", NULL};

/* What comes first, second and third in an image that is right. */
static size_t right_document(char *out, size_t size)
{
    uint8_t how = fuzz_u8(t.in);
    size_t len = 0;

    if (how & 1 && t.opened < 5)
        return (size_t)snprintf(out, size,
                                "{\"manifests\":[{\"platform\":{\"os\":\"%s\",\"architecture\":\"%s\"}%s},"
                                "{\"digest\":\"" DIGEST(0) "\"}]}",
                                how & 2 ? "linux" : "other", how & 4 ? "amd64" : "arm64",
                                how & 8 ? ",\"digest\":\"" DIGEST(1) "\"" : "");
    if (how & 2)
        return (size_t)snprintf(out, size,
                                "{\"config\":{\"Entrypoint\":[\"a\",%s],\"Env\":[\"A=b\"],\"User\":\"%s\","
                                "\"WorkingDir\":\"%s\"}}",
                                how & 4 ? "1" : "\"b\"", how & 8 ? "me" : "", how & 16 ? "/x" : "x");
    len = (size_t)snprintf(out, size, "{\"config\":{\"digest\":\"" DIGEST(0) "\"},\"layers\":[");
    for (unsigned i = how >> 2; i && len + 100 < size; i--)
        len += (size_t)snprintf(out + len, size - len, "{\"digest\":\"" DIGEST(1) "\"}%s", i > 1 ? "," : "");
    len += (size_t)snprintf(out + len, size - len, "]}");
    return len;
}

static int new_file(void)
{
    uint8_t how = fuzz_u8(t.in);
    int i = 0;

    while (i < FILES && t.open[i])
        i++;
    if (how == 255 || i == FILES || (!t.in->left && t.opened > 8)) {
        errno = how & 1 ? ENOENT : ELOOP;
        return -1;
    }
    t.open[i] = true;
    t.opened++;
    if (how < 32)
        t.len = fuzz_json(t.in, keys, texts, t.text, sizeof t.text);
    else if (t.in->left)
        t.len = right_document(t.text, sizeof t.text);
    return FD_FIRST + i;
}

/* --- the system -------------------------------------------------------------------------------------------------- */

int __real_open64(const char *path, int flags, ...);
int __wrap_open64(const char *path, int flags, ...);
int __wrap_open64(const char *path, int flags, ...)
{
    if (!strcmp(path, "layout")) {
        t.open[0] = true;
        return FD_FIRST;
    }
    va_list args;
    va_start(args, flags);
    int fd = __real_open64(path, flags, va_arg(args, int));
    va_end(args);
    return fd;
}

int __wrap_openat64(int directory, const char *path, int flags, ...);
int __wrap_openat64(int directory, const char *path, int flags, ...)
{
    assert_int_equal(directory, FD_FIRST);
    assert_true((flags & O_NOFOLLOW) && (!strcmp(path, "index.json") || !strncmp(path, "blobs/sha256/0123", 17)));
    assert_true(strlen(path) < 80 && !strstr(path, ".."));
    if (strlen(path) == 77)
        memcpy(t.asked, path + 13, 64);
    return new_file();
}

int __real_close(int fd);
int __wrap_close(int fd);
int __wrap_close(int fd)
{
    if (fd < FD_FIRST)
        return __real_close(fd);
    assert_true(t.open[fd - FD_FIRST]);
    t.open[fd - FD_FIRST] = false;
    return 0;
}

int __wrap_fstat64(int fd, struct stat *st);
int __wrap_fstat64(int fd, struct stat *st)
{
    *st = (struct stat){.st_mode = S_IFREG, .st_size = (off_t)t.len};
    return 0;
}

ssize_t __wrap_pread64(int fd, void *buf, size_t len, off_t offset);
ssize_t __wrap_pread64(int fd, void *buf, size_t len, off_t offset)
{
    assert_true(len <= t.len && !offset);
    memcpy(buf, t.text, len);
    return (ssize_t)len;
}

int __wrap_digest_file(int fd, char hex[65]);
int __wrap_digest_file(int fd, char hex[65])
{
    snprintf(hex, 65, "%s", t.asked);
    if (fuzz_u8(t.in) > 240)
        hex[0] = 'f';
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct oci oci;
    struct fuzz_input in = {data, size};
    char err[ERROR_SIZE] = "";

    memset(t.open, 0, sizeof t.open);
    t.opened = 0;
    t.len = 0;
    t.in = &in;
    if (oci_open(&oci, "layout", err, sizeof err) == 0) {
        assert_true(oci.process && oci.n_layers && oci.n_layers <= OCI_LAYERS_MAX);
        oci_close(&oci);
    } else {
        assert_true(err[0]);
    }
    for (unsigned i = 0; i < FILES; i++)
        assert_true(!t.open[i]);
    return 0;
}
