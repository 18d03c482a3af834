#include "image/tar.h"

#include <errno.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/file.h"

#define BLOCK 512u
#define GRAIN 65536u
#define LEVEL 6
#define LARGEST_OCTAL 077777777777ull /* a size of more digits is in the pax header */

struct extent {
    uint64_t offset, len;
};

int tar_begin(struct tar *t, int fd)
{
    t->fd = fd;
    t->failed = 0;
    t->used = t->bytes = 0;
    t->progress = NULL;
    t->zstd = ZSTD_createCCtx();
    if (!t->zstd)
        return t->failed = -ENOMEM;
    ZSTD_CCtx_setParameter(t->zstd, ZSTD_c_compressionLevel, LEVEL);
    ZSTD_CCtx_setParameter(t->zstd, ZSTD_c_checksumFlag, 1);
    ZSTD_CCtx_setParameter(t->zstd, ZSTD_c_nbWorkers, 2); /* if the library was built without threads: alone */
    return 0;
}

static void compress(struct tar *t, const void *data, size_t len, ZSTD_EndDirective how)
{
    ZSTD_inBuffer in = {data, len, 0};
    size_t left = 1;

    while (!t->failed && (in.pos < in.size || (how == ZSTD_e_end && left))) {
        ZSTD_outBuffer out = {t->buffer, sizeof t->buffer, 0};
        left = ZSTD_compressStream2(t->zstd, &out, &in, how);
        if (ZSTD_isError(left))
            t->failed = -EIO;
        else
            t->failed = fd_write_all(t->fd, t->buffer, out.pos);
    }
}

static void put(struct tar *t, const void *data, size_t len)
{
    compress(t, data, len, ZSTD_e_continue);
    t->used = (t->used + len) % BLOCK;
}

static void pad(struct tar *t)
{
    static const char zeros[BLOCK];

    if (t->used)
        put(t, zeros, BLOCK - t->used);
}

/* `width` - 1 octal digits and a NUL. */
static void put_octal(unsigned char *to, unsigned width, uint64_t value)
{
    to[--width] = 0;
    while (width-- > 0) {
        to[width] = (unsigned char)('0' + (value & 7));
        value >>= 3;
    }
}

/* ustar: name 0, mode 100, uid 108, gid 116, size 124, mtime 136, checksum 148, type 156, magic 257. */
static void put_header(struct tar *t, const char *name, char type, uint64_t size, int64_t mtime)
{
    static const char magic[8] = {'u', 's', 't', 'a', 'r', 0, '0', '0'};
    unsigned char h[BLOCK] = {0};
    unsigned sum = 0;

    snprintf((char *)h, 100, "%s", name);
    put_octal(h + 100, 8, 0644);
    put_octal(h + 108, 8, 0);
    put_octal(h + 116, 8, 0);
    put_octal(h + 124, 12, size <= LARGEST_OCTAL ? size : 0);
    put_octal(h + 136, 12, mtime > 0 ? (uint64_t)mtime : 0);
    memset(h + 148, ' ', 8);
    h[156] = (unsigned char)type;
    memcpy(h + 257, magic, sizeof magic);
    for (unsigned i = 0; i < BLOCK; i++)
        sum += h[i];
    put_octal(h + 148, 7, sum);
    put(t, h, sizeof h);
}

/* "LEN KEY=VALUE\n", LEN being the length of all of it, in decimal. */
static size_t pax_record(char *out, size_t n, const char *key, const char *value)
{
    size_t rest = strlen(key) + strlen(value) + 3, len = rest + 1;

    while (rest + (size_t)snprintf(NULL, 0, "%zu", len) != len)
        len = rest + (size_t)snprintf(NULL, 0, "%zu", len);
    return (size_t)snprintf(out, n, "%zu %s=%s\n", len, key, value);
}

static void put_pax(struct tar *t, const char *name, uint64_t stored, const char *real_size, int64_t mtime)
{
    char text[1024], number[32];
    size_t len = 0;

    snprintf(number, sizeof number, "%" PRIu64, stored);
    if (stored > LARGEST_OCTAL)
        len += pax_record(text + len, sizeof text - len, "size", number);
    if (real_size) {
        len += pax_record(text + len, sizeof text - len, "GNU.sparse.major", "1");
        len += pax_record(text + len, sizeof text - len, "GNU.sparse.minor", "0");
        len += pax_record(text + len, sizeof text - len, "GNU.sparse.name", name);
        len += pax_record(text + len, sizeof text - len, "GNU.sparse.realsize", real_size);
    }
    if (len == 0)
        return;
    put_header(t, "PaxHeaders/file", 'x', len, mtime);
    put(t, text, len);
    pad(t);
}

static void put_data(struct tar *t, int from, uint64_t offset, uint64_t len)
{
    char *data = malloc(GRAIN);

    t->failed = data || t->failed ? t->failed : -ENOMEM;
    while (!t->failed && len) {
        ssize_t got = pread(from, data, len < GRAIN ? (size_t)len : GRAIN, (off_t)offset);
        if (got <= 0) { /* it became shorter: what was promised cannot be kept */
            t->failed = got < 0 ? -errno : -EIO;
            break;
        }
        put(t, data, (size_t)got);
        offset += (uint64_t)got;
        len -= (uint64_t)got;
        t->bytes += (uint64_t)got;
        if (t->progress)
            t->progress(t->context, t->bytes);
    }
    free(data);
}

/* ---- sparse files ---- */

static int add_extent(struct extent **list, size_t *n, uint64_t offset, uint64_t len)
{
    struct extent *last = *n ? &(*list)[*n - 1] : NULL;

    if (last && last->offset + last->len == offset) {
        last->len += len;
        return 0;
    }
    if ((*n & (*n - 1)) == 0) { /* none, or a power of two: full */
        struct extent *larger = realloc(*list, (*n ? 2 * *n : 1) * sizeof *larger);
        if (!larger)
            return -ENOMEM;
        *list = larger;
    }
    (*list)[(*n)++] = (struct extent){offset, len};
    return 0;
}

/* Grains that are not all zeros. */
static int find_extents(int fd, uint64_t size, struct extent **list, size_t *n)
{
    char *data = malloc(GRAIN);
    int failed = data ? 0 : -ENOMEM;

    for (uint64_t at = 0; !failed && at < size; at += GRAIN) {
        off_t next = lseek(fd, (off_t)at, SEEK_DATA);
        if (next < 0 && errno == ENXIO)
            break;
        if (next > (off_t)at)
            at = (uint64_t)next & ~(uint64_t)(GRAIN - 1);
        uint64_t len = size - at < GRAIN ? size - at : GRAIN;
        ssize_t got = pread(fd, data, (size_t)len, (off_t)at);
        if (got != (ssize_t)len)
            failed = got < 0 ? -errno : -EIO;
        else if (!bytes_all_zero(data, (size_t)len))
            failed = add_extent(list, n, at, len);
    }
    free(data);
    return failed;
}

static void put_sparse(struct tar *t, const char *name, int from, uint64_t size, int64_t mtime)
{
    struct extent *list = NULL;
    char *map = NULL, real_size[32], stored_name[100];
    size_t n = 0, map_len = 0;
    uint64_t data = 0;
    FILE *out;

    t->failed = t->failed ? t->failed : find_extents(from, size, &list, &n);
    if (!t->failed && (out = open_memstream(&map, &map_len))) {
        fprintf(out, "%zu\n", n);
        for (size_t i = 0; i < n; i++) {
            fprintf(out, "%" PRIu64 "\n%" PRIu64 "\n", list[i].offset, list[i].len);
            data += list[i].len;
        }
        fclose(out);
        uint64_t stored = (map_len + BLOCK - 1) / BLOCK * BLOCK + data;
        snprintf(real_size, sizeof real_size, "%" PRIu64, size);
        snprintf(stored_name, sizeof stored_name, "GNUSparseFile.0/%.60s", name);
        put_pax(t, name, stored, real_size, mtime);
        put_header(t, stored_name, '0', stored, mtime);
        put(t, map, map_len);
        pad(t);
        for (size_t i = 0; i < n; i++)
            put_data(t, from, list[i].offset, list[i].len);
        pad(t);
    }
    free(map);
    free(list);
}

void tar_file(struct tar *t, const char *name, int from, int64_t mtime, int sparse)
{
    struct stat st;

    if (!t->failed && fstat(from, &st))
        t->failed = -errno;
    if (t->failed)
        return;
    uint64_t size = (uint64_t)st.st_size;
    if (sparse) {
        put_sparse(t, name, from, size, mtime);
        return;
    }
    put_pax(t, name, size, NULL, mtime);
    put_header(t, name, '0', size, mtime);
    put_data(t, from, 0, size);
    pad(t);
}

int tar_end(struct tar *t)
{
    static const char zeros[2 * BLOCK];

    put(t, zeros, sizeof zeros);
    compress(t, NULL, 0, ZSTD_e_end);
    ZSTD_freeCCtx(t->zstd);
    t->zstd = NULL;
    return t->failed;
}
