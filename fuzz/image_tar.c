/*
 * Archives and layers: names into a tree, then contents out again.
 *
 * The first byte chooses whether there are whiteouts, and whether the rest is an archive as it is or what a well-formed
 * one is made of: for each entry its type, the lengths of two names, and these.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "image/import.h"
#include "tar_fixture.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static int begin(void *context, struct tree_inode *inode)
{
    *(uint64_t *)context = inode->size;
    return 0;
}

static int take(void *context, const void *data, size_t len, uint64_t offset)
{
    if (len > *(uint64_t *)context || offset > *(uint64_t *)context - len)
        abort();
    return 0;
}

static int end(void *context)
{
    return 0;
}

static int check(struct tree_node *node, void *context)
{
    if (node->inode->links == 0 || strchr(node->name, '/') || (node->parent && !node->name[0]) ||
        strcmp(node->name, "..") == 0 || (node->children && !S_ISDIR(node->inode->mode)))
        abort();
    return 0;
}

static void read_all(int fd, bool whiteouts)
{
    uint64_t inode_size;
    const struct sink sink = {begin, take, end, &inode_size};
    struct source s = {.fd = fd, .name = "x", .whiteouts = whiteouts};
    struct tree t;
    char err[512];

    if (tree_create(&t) == 0) {
        /* The same twice: the second time over what is there. */
        int failed = source_scan(&s, &t, err, sizeof err);
        tree_walk(t.root, check, NULL);
        if (!failed)
            source_fill(&s, &sink, err, sizeof err);
        source_free(&s);
        t.layer = 1;
        source_scan(&s, &t, err, sizeof err);
        tree_walk(t.root, check, NULL);
    }
    source_free(&s);
    tree_destroy(&t);
}

/* Names of few letters, so that they meet each other. */
static void take_name(const uint8_t **data, size_t *size, unsigned len, char out[64])
{
    static const char letters[] = "ab/.w/h.";
    unsigned n = 0;

    if (len & 8)
        n = (unsigned)snprintf(out, 64, "%s", len & 4 ? "a/.wh." : "./");
    for (unsigned i = 0; i < len % 8 && *size; i++, (*data)++, (*size)--)
        out[n++] = **data < 128 ? letters[**data % 8] : (char)**data;
    out[n] = 0;
}

static void write_entries(FILE *out, const uint8_t *data, size_t size)
{
    static const char types[] = {TAR_FILE, TAR_FILE, TAR_DIRECTORY, TAR_SYMLINK, TAR_HARDLINK, TAR_CHAR, 'L', 'x'};

    while (size > 2) {
        char path[64], link[64];
        uint8_t type = data[0], lengths = data[1];
        data += 2;
        size -= 2;
        take_name(&data, &size, lengths & 15, path);
        take_name(&data, &size, lengths >> 4, link);
        TAR(out, types[type % 8], path, link, type & 16 ? link : NULL, .mode = type & 32 ? 04755 : 0,
            .size = type & 64 ? 700 : 0);
    }
    tar_finish(out);
}

/* A file that is emptied for each input. */
static int make_file(const void *data, size_t size)
{
    static int fd = -1;

    if (fd < 0)
        fd = memfd_create("tar", 0);
    if (fd < 0 || ftruncate(fd, 0) || pwrite(fd, data, size, 0) != (ssize_t)size || lseek(fd, 0, SEEK_SET))
        abort();
    return fd;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static char text[64 << 10];

    if (size < 2)
        return 0;
    if (!(data[0] & 2)) {
        read_all(make_file(data + 1, size - 1), data[0] & 1);
        return 0;
    }
    FILE *out = fmemopen(text, sizeof text, "w");
    if (!out)
        abort();
    write_entries(out, data + 1, size - 1 < 100 ? size - 1 : 100);
    long length = ftell(out);
    fclose(out);
    read_all(make_file(text, (size_t)length), data[0] & 1);
    return 0;
}
