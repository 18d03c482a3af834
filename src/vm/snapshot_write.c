/* Writing the file of a snapshot: appended to from the beginning to the end, in large pieces. */
#include <errno.h>
#include <stdlib.h>
#include <unistd.h>
#include <zstd.h>

#include "base/crc32c.h"
#include "base/file.h"
#include "vm/snapshot_file_int.h"

#define BUFFER (1u << 20)
#define LEVEL 1 /* most of memory is copied at the speed of this */

struct snapshot_writer {
    int fd;
    uint64_t at; /* of the file, with what is in the buffer */
    size_t held;
    uint8_t *buffer, *packed;
    size_t packed_room;
    ZSTD_CCtx *zstd;
    uint8_t *table;
    uint32_t n_entries;
    struct {
        uint64_t bytes, n;
        uint8_t *index;
    } extent[SNAPSHOT_EXTENTS];
};

uint64_t snapshot_written(const struct snapshot_writer *w)
{
    return w->at;
}

static int flush(struct snapshot_writer *w)
{
    int err = fd_write_at(w->fd, w->buffer, w->held, w->at - w->held);

    if (!err)
        w->held = 0;
    return err;
}

static int append(struct snapshot_writer *w, const void *bytes, size_t len)
{
    const uint8_t *from = bytes;
    int err = 0;

    while (len && !err) {
        size_t now = BUFFER - w->held < len ? BUFFER - w->held : len;
        memcpy(w->buffer + w->held, from, now);
        w->held += now;
        w->at += now;
        from += now;
        len -= now;
        if (w->held == BUFFER)
            err = flush(w);
    }
    return err;
}

int snapshot_writer_create(struct snapshot_writer **out, int fd)
{
    struct snapshot_writer *w = calloc(1, sizeof *w);
    uint8_t header[HEADER_SIZE] = HEADER_MAGIC;

    if (!w)
        return -ENOMEM;
    w->fd = fd;
    w->packed_room = ZSTD_compressBound(SNAPSHOT_CHUNK);
    w->buffer = malloc(BUFFER);
    w->packed = malloc(w->packed_room);
    w->zstd = ZSTD_createCCtx();
    w->table = calloc(ENTRIES_MAX, ENTRY_SIZE);
    le32_put(header + HEADER_VERSION, SNAPSHOT_VERSION);
    le32_put(header + HEADER_CRC, crc32c(crc32c(0, header, HEADER_CRC), header + HEADER_CRC + 4, HEADER_SIZE - 16));
    int err = w->buffer && w->packed && w->zstd && w->table ? append(w, header, sizeof header) : -ENOMEM;
    if (err) {
        snapshot_writer_destroy(w);
        return err;
    }
    *out = w;
    return 0;
}

void snapshot_writer_destroy(struct snapshot_writer *w)
{
    if (!w)
        return;
    for (unsigned e = 0; e < SNAPSHOT_EXTENTS; e++)
        free(w->extent[e].index);
    ZSTD_freeCCtx(w->zstd);
    free(w->table);
    free(w->packed);
    free(w->buffer);
    free(w);
}

/* --- chunks ---------------------------------------------------------------------------------------------------- */

int snapshot_write_extent(struct snapshot_writer *w, enum snapshot_extent e, uint64_t bytes)
{
    if (!bytes || bytes > SNAPSHOT_EXTENT_MAX || w->extent[e].index)
        return -EINVAL;
    w->extent[e].bytes = bytes;
    w->extent[e].n = chunks_of(bytes);
    w->extent[e].index = calloc(w->extent[e].n, PLACE_SIZE);
    return w->extent[e].index ? 0 : -ENOMEM;
}

static int place(struct snapshot_writer *w, enum snapshot_extent e, uint64_t i, const void *bytes, uint32_t length)
{
    uint8_t *p = w->extent[e].index + i * PLACE_SIZE;

    le64_put(p, w->at);
    le32_put(p + 8, length);
    le32_put(p + 12, crc32c(0, bytes, length));
    return append(w, bytes, length);
}

int snapshot_write_chunk(struct snapshot_writer *w, enum snapshot_extent e, uint64_t i, const void *bytes,
                         uint32_t length)
{
    static const uint8_t zeroes[SNAPSHOT_CHUNK];
    uint8_t whole[SNAPSHOT_CHUNK];

    if (!w->extent[e].index || i >= w->extent[e].n || length > SNAPSHOT_CHUNK)
        return -EINVAL;
    if (length < SNAPSHOT_CHUNK) {
        memcpy(whole, bytes, length);
        memset(whole + length, 0, SNAPSHOT_CHUNK - length);
        bytes = whole;
    }
    if (e == SNAPSHOT_MEMORY && memcmp(bytes, zeroes, SNAPSHOT_CHUNK) == 0) {
        memset(w->extent[e].index + i * PLACE_SIZE, 0, PLACE_SIZE); /* it may have been something before */
        return 0;
    }
    size_t packed = ZSTD_compressCCtx(w->zstd, w->packed, w->packed_room, bytes, SNAPSHOT_CHUNK, LEVEL);
    if (ZSTD_isError(packed) || packed >= SNAPSHOT_CHUNK)
        return place(w, e, i, bytes, SNAPSHOT_CHUNK);
    return place(w, e, i, w->packed, (uint32_t)packed);
}

int snapshot_copy_chunk(struct snapshot_writer *w, enum snapshot_extent e, uint64_t i, const struct snapshot_file *f)
{
    uint8_t bytes[SNAPSHOT_CHUNK];

    if (!w->extent[e].index || i >= w->extent[e].n || i >= f->extent[e].n)
        return -EINVAL;
    const struct snapshot_place *p = &f->extent[e].place[i];
    if (!p->length)
        return 0;
    if (pread(f->fd, bytes, p->length, (off_t)p->offset) != (ssize_t)p->length || crc32c(0, bytes, p->length) != p->crc)
        return -EBADMSG;
    return place(w, e, i, bytes, p->length);
}

/* --- sections, table, trailer ---------------------------------------------------------------------------------- */

static int add_entry(struct snapshot_writer *w, const struct section *s, const void *bytes, uint64_t length,
                     uint64_t extent)
{
    uint8_t *entry = w->table + w->n_entries * ENTRY_SIZE;

    if (w->n_entries == ENTRIES_MAX)
        return -E2BIG;
    w->n_entries++;
    memcpy(entry, s->kind, SECTION_KIND_SIZE);
    memcpy(entry + ENTRY_NAME, s->name, SECTION_NAME_SIZE);
    le32_put(entry + ENTRY_VERSION, s->version);
    le32_put(entry + ENTRY_CRC, crc32c(0, bytes, length));
    le64_put(entry + ENTRY_OFFSET, w->at);
    le64_put(entry + ENTRY_LENGTH, length);
    le64_put(entry + ENTRY_EXTENT, extent);
    return append(w, bytes, length);
}

int snapshot_write_sections(struct snapshot_writer *w, const struct sections *s)
{
    int err = 0;

    for (unsigned i = 0; i < s->n && !err; i++)
        err = add_entry(w, &s->all[i], s->all[i].bytes, s->all[i].size, 0);
    return err;
}

static int write_indexes(struct snapshot_writer *w)
{
    int err = 0;

    for (unsigned e = 0; e < SNAPSHOT_EXTENTS && !err; e++) {
        struct section s = {.kind = CHUNKS_KIND, .version = 1};
        if (!w->extent[e].index)
            continue;
        memcpy(s.name, extent_names[e], strlen(extent_names[e]));
        err = add_entry(w, &s, w->extent[e].index, w->extent[e].n * PLACE_SIZE, w->extent[e].bytes);
    }
    return err;
}

int snapshot_write_end(struct snapshot_writer *w)
{
    uint8_t trailer[TRAILER_SIZE] = TRAILER_MAGIC;
    int err = write_indexes(w);
    size_t size = w->n_entries * ENTRY_SIZE;

    le32_put(trailer + TRAILER_ENTRIES, w->n_entries);
    le64_put(trailer + TRAILER_TABLE, w->at);
    le32_put(trailer + TRAILER_TABLE_CRC, crc32c(0, w->table, size));
    le64_put(trailer + TRAILER_LENGTH, w->at + size + TRAILER_SIZE);
    le32_put(trailer + TRAILER_CRC, crc32c(0, trailer + TRAILER_ENTRIES, TRAILER_SIZE - TRAILER_ENTRIES));
    if (!err)
        err = append(w, w->table, size);
    if (!err)
        err = append(w, trailer, sizeof trailer);
    if (!err)
        err = flush(w);
    return err ? err : fsync(w->fd) ? -errno : 0;
}
