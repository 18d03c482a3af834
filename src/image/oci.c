/*
 * Containers' images in the OCI layout (image-spec 1.1, image-layout.md): "oci-layout", "index.json", and the rest
 * under "blobs/sha256/HEX", each called by its digest.
 *
 *      index.json -> manifests[] (each an index again, or a manifest) -> config, layers[]
 *
 * All of it is a stranger's: names are hexadecimal digits or nothing is opened, documents have a greatest size, and
 * what is read has the digest that it is called by, so that one blob cannot stand for another.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/error.h"
#include "base/path.h"
#include "image/import.h"

#define DOCUMENT_MAX (4u << 20)
#define INDEX_DEPTH 3
#define BLOB "blobs/sha256/"

/* "sha256:HEX" of a descriptor; NULL if it is none. */
static const char *descriptor_hex(json_t *descriptor)
{
    const char *digest = json_string_value(json_object_get(descriptor, "digest"));

    if (!digest || strncmp(digest, "sha256:", 7) != 0 || strlen(digest) != 71 ||
        strspn(digest + 7, "0123456789abcdef") != 64)
        return NULL;
    return digest + 7;
}

static int open_regular(int directory, const char *path)
{
    struct stat st;
    int fd = openat(directory, path, O_RDONLY | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK);

    if (fd < 0)
        return -errno;
    if (fstat(fd, &st) == 0 && S_ISREG(st.st_mode))
        return fd;
    close(fd);
    return -EINVAL;
}

/* A blob with the digest it claims. */
static int open_blob(int directory, json_t *descriptor, char *err, size_t n)
{
    const char *hex = descriptor_hex(descriptor);
    char path[100], found[65];

    if (!hex)
        return error_set(err, n, -EBADMSG, "the container image refers to something without a SHA-256 digest");
    snprintf(path, sizeof path, BLOB "%s", hex);
    int fd = open_regular(directory, path);
    if (fd < 0)
        return error_sys(err, n, fd, "the container image lacks its part %.12s", hex);
    int failed = digest_file(fd, found);
    if (!failed && strcmp(found, hex) == 0)
        return fd;
    close(fd);
    return error_set(err, n, -EBADMSG, "the container image is damaged: its part %.12s has another content", hex);
}

static json_t *load_document(int fd, char *err, size_t n)
{
    json_error_t where;
    struct stat st;
    char *text = NULL;
    json_t *document = NULL;

    if (fstat(fd, &st) || st.st_size > DOCUMENT_MAX || !(text = malloc((size_t)st.st_size + 1)) ||
        pread(fd, text, (size_t)st.st_size, 0) != st.st_size)
        error_set(err, n, -EBADMSG, "the container image has a document that cannot be read");
    else if (!(document = json_loadb(text, (size_t)st.st_size, JSON_REJECT_DUPLICATES, &where)))
        error_set(err, n, -EBADMSG, "the container image has a document that is not JSON: %s", where.text);
    else if (!json_is_object(document)) {
        error_set(err, n, -EBADMSG, "the container image has a document that is not an object");
        json_decref(document);
        document = NULL;
    }
    free(text);
    return document;
}

static json_t *load_blob(int directory, json_t *descriptor, char *err, size_t n)
{
    int fd = open_blob(directory, descriptor, err, n);

    if (fd < 0)
        return NULL;
    json_t *document = load_document(fd, err, n);
    close(fd);
    return document;
}

/* How well an entry of an index fits: 2 it says Linux on amd64, 1 it says nothing, 0 not. */
static int fits(json_t *entry)
{
    json_t *platform = json_object_get(entry, "platform");
    const char *os = json_string_value(json_object_get(platform, "os"));
    const char *architecture = json_string_value(json_object_get(platform, "architecture"));

    if (!platform)
        return 1;
    return os && architecture && strcmp(os, "linux") == 0 && strcmp(architecture, "amd64") == 0 ? 2 : 0;
}

static json_t *choose(json_t *manifests)
{
    json_t *best = NULL, *entry;
    int best_fit = 0;
    size_t i;

    json_array_foreach(manifests, i, entry)
    {
        int fit = fits(entry);
        if (fit > best_fit) {
            best = entry;
            best_fit = fit;
        }
    }
    return best;
}

/* Takes `document` over; gives the manifest, or NULL. */
static json_t *find_manifest(int directory, json_t *document, char *err, size_t n)
{
    for (unsigned depth = 0; document && depth < INDEX_DEPTH; depth++) {
        json_t *manifests = json_object_get(document, "manifests");
        if (!manifests)
            return document;
        json_t *entry = choose(manifests);
        json_t *next = entry ? load_blob(directory, entry, err, n) : NULL;
        if (!entry)
            error_set(err, n, -EBADMSG, "the container image has nothing for Linux on amd64");
        json_decref(document);
        document = next;
    }
    if (document)
        error_set(err, n, -EBADMSG, "the container image's indexes are nested too deep");
    json_decref(document);
    return NULL;
}

static int open_layers(struct oci *o, int directory, json_t *layers, char *err, size_t n)
{
    json_t *descriptor;
    size_t i;

    if (!json_is_array(layers) || json_array_size(layers) == 0)
        return error_set(err, n, -EBADMSG, "the container image has no layers");
    if (json_array_size(layers) > OCI_LAYERS_MAX)
        return error_set(err, n, -EBADMSG, "the container image has more than %d layers", OCI_LAYERS_MAX);
    json_array_foreach(layers, i, descriptor)
    {
        int fd = open_blob(directory, descriptor, err, n);
        if (fd < 0)
            return fd;
        o->layers[o->n_layers++] = (struct source){.fd = fd, .whiteouts = true, .name = "of a layer"};
    }
    return 0;
}

static void append_words(json_t *to, json_t *from)
{
    json_t *word;
    size_t i;

    json_array_foreach(from, i, word) if (json_is_string(word)) json_array_append(to, word);
}

json_t *oci_process(json_t *config)
{
    json_t *c = json_object_get(config, "config"), *process = json_object(), *argv = json_array(), *env = json_array();
    const char *directory = json_string_value(json_object_get(c, "WorkingDir"));
    const char *user = json_string_value(json_object_get(c, "User"));

    append_words(argv, json_object_get(c, "Entrypoint"));
    append_words(argv, json_object_get(c, "Cmd"));
    append_words(env, json_object_get(c, "Env"));
    json_object_set_new(process, "argv", argv);
    json_object_set_new(process, "env", env);
    if (directory && directory[0] == '/')
        json_object_set_new(process, "directory", json_string(directory));
    if (user && user[0])
        json_object_set_new(process, "user", json_string(user));
    return process;
}

static int open_all(struct oci *o, int directory, char *err, size_t n)
{
    int fd = open_regular(directory, "index.json");

    if (fd < 0)
        return error_sys(err, n, fd, "the container image has no index.json");
    json_t *manifest = find_manifest(directory, load_document(fd, err, n), err, n);
    close(fd);
    if (!manifest)
        return -EBADMSG;
    json_t *config = load_blob(directory, json_object_get(manifest, "config"), err, n);
    int failed = config ? open_layers(o, directory, json_object_get(manifest, "layers"), err, n) : -EBADMSG;
    if (!failed)
        o->process = oci_process(config);
    json_decref(config);
    json_decref(manifest);
    return failed;
}

int oci_open(struct oci *o, const char *path, char *err, size_t n)
{
    int directory = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);

    *o = (struct oci){0};
    if (directory < 0)
        return error_sys(err, n, -errno, "cannot open %s", path);
    int failed = open_all(o, directory, err, n);
    close(directory);
    if (failed)
        oci_close(o);
    return failed;
}

void oci_close(struct oci *o)
{
    for (unsigned i = 0; i < o->n_layers; i++) {
        source_free(&o->layers[i]);
        close(o->layers[i].fd);
    }
    json_decref(o->process);
    *o = (struct oci){0};
}

/* ---- out of a tar archive ---- */

static bool belongs(const char *path)
{
    if (strcmp(path, "index.json") == 0 || strcmp(path, "oci-layout") == 0)
        return true;
    return strncmp(path, BLOB, strlen(BLOB)) == 0 && strlen(path) == strlen(BLOB) + 64 &&
           strspn(path + strlen(BLOB), "0123456789abcdef") == 64;
}

static int open_entry(void *context, const char *path, uint64_t size)
{
    if (!belongs(path))
        return 0;
    int fd = openat(*(int *)context, path, O_RDWR | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, 0600);
    return fd < 0 ? -errno : fd;
}

int oci_unpack(const char *path, const char *directory, char *err, size_t n)
{
    char blobs[IMAGE_PATH_SIZE];
    int failed = path_format(blobs, sizeof blobs, err, n, "%s/blobs/sha256", directory), in, to;

    if (!failed)
        failed = path_make(blobs, 0700, err, n);
    if (failed)
        return failed;
    in = open(path, O_RDONLY | O_CLOEXEC);
    to = open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (in < 0 || to < 0)
        failed = error_sys(err, n, -errno, "cannot open %s", in < 0 ? path : directory);
    else
        failed = archive_extract(in, path, open_entry, &to, err, n);
    if (in >= 0)
        close(in);
    if (to >= 0)
        close(to);
    return failed;
}
