#include "agent/cpio.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/file.h"

#define TRAILER "TRAILER!!!"
#define HEADER_SIZE 110
/* Archives in one file must begin at a multiple of four; cpio(1) takes this one, and so do we. */
#define BLOCK 512

void cpio_begin(struct cpio *c, int fd)
{
    c->fd = fd;
    c->error = 0;
    c->inode = 0;
    c->offset = 0;
    c->used = 0;
}

static void flush(struct cpio *c)
{
    if (!c->error)
        c->error = fd_write_all(c->fd, c->buffer, c->used);
    c->used = 0;
}

static void put(struct cpio *c, const void *data, size_t len)
{
    const char *from = data;

    c->offset += len;
    while (len && !c->error) {
        size_t room = sizeof(c->buffer) - c->used;
        size_t now = len < room ? len : room;

        memcpy(c->buffer + c->used, from, now);
        c->used += now;
        from += now;
        len -= now;
        if (c->used == sizeof(c->buffer))
            flush(c);
    }
}

static void pad(struct cpio *c, unsigned to)
{
    static const char zeros[BLOCK];

    put(c, zeros, -c->offset & (to - 1));
}

struct entry {
    const char *path;
    unsigned mode, links, major, minor;
    uint64_t size;
};

static void put_header(struct cpio *c, const struct entry *e)
{
    char header[HEADER_SIZE + 1];
    size_t name_size = strlen(e->path) + 1;

    if (e->size > UINT32_MAX && !c->error)
        c->error = -EFBIG;
    if ((name_size > 4096 || name_size == 1 || e->path[0] == '/') && !c->error)
        c->error = -EINVAL;
    if (c->error)
        return;
    snprintf(header, sizeof(header), "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x", ++c->inode, e->mode,
             0u, 0u, e->links, 0u, (unsigned)e->size, 0u, 0u, e->major, e->minor, (unsigned)name_size, 0u);
    put(c, header, HEADER_SIZE);
    put(c, e->path, name_size);
    pad(c, 4);
}

void cpio_directory(struct cpio *c, const char *path, unsigned mode)
{
    put_header(c, &(struct entry){.path = path, .mode = S_IFDIR | (mode & 07777), .links = 2});
}

void cpio_file(struct cpio *c, const char *path, unsigned mode, const void *data, size_t len)
{
    put_header(c, &(struct entry){.path = path, .mode = S_IFREG | (mode & 07777), .links = 1, .size = len});
    put(c, data, len);
    pad(c, 4);
}

void cpio_symlink(struct cpio *c, const char *path, const char *target)
{
    size_t len = strlen(target);

    put_header(c, &(struct entry){.path = path, .mode = S_IFLNK | 0777, .links = 1, .size = len});
    put(c, target, len);
    pad(c, 4);
}

void cpio_node(struct cpio *c, const char *path, unsigned mode, unsigned major, unsigned minor)
{
    put_header(c, &(struct entry){.path = path, .mode = mode, .links = 1, .major = major, .minor = minor});
}

/* The header has promised `size` bytes: exactly as many are copied, however the file changes meanwhile. */
static void copy(struct cpio *c, int from, uint64_t size)
{
    for (uint64_t at = 0; at < size && !c->error;) {
        char piece[16384];
        uint64_t want = size - at < sizeof(piece) ? size - at : sizeof(piece);
        ssize_t n = pread(from, piece, want, (off_t)at);

        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0) {
            c->error = n < 0 ? -errno : -EIO;
            return;
        }
        put(c, piece, (size_t)n);
        at += (uint64_t)n;
    }
}

void cpio_file_from(struct cpio *c, const char *path, unsigned mode, int from)
{
    struct stat st;

    if (!c->error && fstat(from, &st) < 0)
        c->error = -errno;
    if (c->error)
        return;
    put_header(
        c, &(struct entry){.path = path, .mode = S_IFREG | (mode & 07777), .links = 1, .size = (uint64_t)st.st_size});
    copy(c, from, (uint64_t)st.st_size);
    pad(c, 4);
}

int cpio_end(struct cpio *c)
{
    put_header(c, &(struct entry){.path = TRAILER, .links = 1});
    pad(c, BLOCK);
    flush(c);
    return c->error;
}
