/* Reading the file of a snapshot, of which nothing is taken for granted. */
#include <errno.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zstd.h>

#include "base/crc32c.h"
#include "base/error.h"
#include "vm/snapshot_file_int.h"

struct reading {
    struct snapshot_file *f;
    const char *name;
    char *err;
    size_t n;
};

static int damaged(const struct reading *r, const char *what)
{
    return error_set(r->err, r->n, -EBADMSG, "%s is damaged: %s", r->name, what);
}

static int read_at(const struct reading *r, void *to, size_t len, uint64_t at)
{
    uint8_t *p = to;

    for (size_t done = 0; done < len;) {
        ssize_t got = pread(r->f->fd, p + done, len - done, (off_t)(at + done));
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return error_sys(r->err, r->n, -errno, "cannot read %s", r->name);
        if (got == 0)
            return damaged(r, "its end is missing");
        done += (size_t)got;
    }
    return 0;
}

/* [offset, offset + length) is between header and trailer. */
static bool inside(const struct snapshot_file *f, uint64_t offset, uint64_t length)
{
    uint64_t end = f->length - TRAILER_SIZE;

    return offset >= HEADER_SIZE && offset <= end && length <= end - offset;
}

static int read_header(const struct reading *r)
{
    uint8_t h[HEADER_SIZE];
    struct stat st;

    if (fstat(r->f->fd, &st))
        return error_sys(r->err, r->n, -errno, "cannot read %s", r->name);
    r->f->length = (uint64_t)st.st_size;
    int err = r->f->length < HEADER_SIZE ? 0 : read_at(r, h, sizeof h, 0);
    if (err)
        return err;
    if (r->f->length < HEADER_SIZE || memcmp(h, HEADER_MAGIC, MAGIC_SIZE) != 0)
        return error_set(r->err, r->n, -EBADMSG, "%s is not a snapshot of guise's", r->name);
    if (crc32c(crc32c(0, h, HEADER_CRC), h + HEADER_CRC + 4, HEADER_SIZE - 16) != le32_at(h + HEADER_CRC))
        return damaged(r, "the check sum of its beginning is wrong");
    if (le32_at(h + HEADER_VERSION) != SNAPSHOT_VERSION)
        return error_set(r->err, r->n, -ENOTSUP, "%s has format %u, this guise reads %u: a newer guise has made it",
                         r->name, le32_at(h + HEADER_VERSION), SNAPSHOT_VERSION);
    return 0;
}

static int read_trailer(const struct reading *r, uint8_t t[TRAILER_SIZE])
{
    if (r->f->length < HEADER_SIZE + TRAILER_SIZE)
        return damaged(r, "it is cut off, or was never finished");
    int err = read_at(r, t, TRAILER_SIZE, r->f->length - TRAILER_SIZE);
    if (err)
        return err;
    if (memcmp(t, TRAILER_MAGIC, MAGIC_SIZE) != 0)
        return damaged(r, "it is cut off, or was never finished");
    if (crc32c(0, t + TRAILER_ENTRIES, TRAILER_SIZE - TRAILER_ENTRIES) != le32_at(t + TRAILER_CRC) ||
        le64_at(t + TRAILER_LENGTH) != r->f->length)
        return damaged(r, "the check sum of its end is wrong");
    return 0;
}

static bool printable(const char *text, size_t size)
{
    size_t n = strnlen(text, size);

    for (size_t i = 0; i < n; i++)
        if (text[i] < ' ' || text[i] > '~')
            return false;
    return n && n < size;
}

/* --- its entries ----------------------------------------------------------------------------------------------- */

static int take_section(const struct reading *r, const uint8_t *entry, const char *kind, const char *name)
{
    uint64_t length = le64_at(entry + ENTRY_LENGTH);

    if (length > SECTION_BYTES_MAX)
        return damaged(r, "a part of it is too large");
    uint8_t *bytes = malloc(length ? length : 1);
    int err = bytes ? read_at(r, bytes, length, le64_at(entry + ENTRY_OFFSET))
                    : error_set(r->err, r->n, -ENOMEM, "out of memory");
    if (!err && crc32c(0, bytes, length) != le32_at(entry + ENTRY_CRC))
        err = error_set(r->err, r->n, -EBADMSG, "%s is damaged: the check sum of its part %s is wrong", r->name, name);
    if (!err && sections_find(&r->f->sections, kind, name))
        err = damaged(r, "a part is there twice");
    if (!err && sections_add(&r->f->sections, kind, name, le32_at(entry + ENTRY_VERSION), bytes, length))
        err = error_set(r->err, r->n, -ENOMEM, "out of memory");
    free(bytes);
    return err;
}

static int parse_index(const struct reading *r, unsigned e, const uint8_t *bytes)
{
    for (uint64_t i = 0; i < r->f->extent[e].n; i++) {
        struct snapshot_place *p = &r->f->extent[e].place[i];
        *p = (struct snapshot_place){le64_at(bytes + i * PLACE_SIZE), le32_at(bytes + i * PLACE_SIZE + 8),
                                     le32_at(bytes + i * PLACE_SIZE + 12)};
        if (p->length > SNAPSHOT_CHUNK || (p->length && !inside(r->f, p->offset, p->length)))
            return damaged(r, "its index leads out of it");
    }
    return 0;
}

static int take_index(const struct reading *r, const uint8_t *entry, unsigned e)
{
    uint64_t bytes = le64_at(entry + ENTRY_EXTENT), length = le64_at(entry + ENTRY_LENGTH);

    if (le32_at(entry + ENTRY_VERSION) != 1)
        return error_set(r->err, r->n, -ENOTSUP, "%s keeps its %s in a way that this guise does not know", r->name,
                         extent_names[e]);
    if (!bytes || bytes > SNAPSHOT_EXTENT_MAX || length != chunks_of(bytes) * PLACE_SIZE || r->f->extent[e].bytes)
        return damaged(r, "its index has the wrong size");
    uint8_t *raw = malloc(length);
    r->f->extent[e].place = malloc(chunks_of(bytes) * sizeof(struct snapshot_place));
    int err = raw && r->f->extent[e].place ? read_at(r, raw, length, le64_at(entry + ENTRY_OFFSET))
                                           : error_set(r->err, r->n, -ENOMEM, "out of memory");
    if (!err && crc32c(0, raw, length) != le32_at(entry + ENTRY_CRC))
        err = damaged(r, "the check sum of its index is wrong");
    if (!err) {
        r->f->extent[e].bytes = bytes;
        r->f->extent[e].n = chunks_of(bytes);
        err = parse_index(r, e, raw);
    }
    free(raw);
    return err;
}

static int take_entry(const struct reading *r, const uint8_t *entry)
{
    char kind[SECTION_KIND_SIZE], name[SECTION_NAME_SIZE];

    memcpy(kind, entry, sizeof kind);
    memcpy(name, entry + ENTRY_NAME, sizeof name);
    if (!printable(kind, sizeof kind) || !printable(name, sizeof name))
        return damaged(r, "a part of it has no name");
    if (!inside(r->f, le64_at(entry + ENTRY_OFFSET), le64_at(entry + ENTRY_LENGTH)))
        return damaged(r, "a part of it lies outside");
    if (strcmp(kind, CHUNKS_KIND) != 0)
        return take_section(r, entry, kind, name);
    for (unsigned e = 0; e < SNAPSHOT_EXTENTS; e++)
        if (strcmp(name, extent_names[e]) == 0)
            return take_index(r, entry, e);
    return error_set(r->err, r->n, -ENOTSUP, "%s has %s, which this guise does not know: a newer guise has made it",
                     r->name, name);
}

static int read_table(const struct reading *r, const uint8_t t[TRAILER_SIZE])
{
    uint32_t entries = le32_at(t + TRAILER_ENTRIES);
    uint64_t at = le64_at(t + TRAILER_TABLE);

    if (!entries || entries > ENTRIES_MAX || !inside(r->f, at, (uint64_t)entries * ENTRY_SIZE))
        return damaged(r, "its table lies outside");
    uint8_t *table = malloc((size_t)entries * ENTRY_SIZE);
    int err = table ? read_at(r, table, (size_t)entries * ENTRY_SIZE, at)
                    : error_set(r->err, r->n, -ENOMEM, "out of memory");
    if (!err && crc32c(0, table, (size_t)entries * ENTRY_SIZE) != le32_at(t + TRAILER_TABLE_CRC))
        err = damaged(r, "the check sum of its table is wrong");
    for (uint32_t i = 0; i < entries && !err; i++)
        err = take_entry(r, table + (size_t)i * ENTRY_SIZE);
    free(table);
    return err;
}

int snapshot_open(struct snapshot_file *f, int fd, const char *name, char *err, size_t n)
{
    struct reading r = {f, name, err, n};
    uint8_t trailer[TRAILER_SIZE];

    *f = (struct snapshot_file){.fd = fd, .scratch = malloc(SNAPSHOT_CHUNK)};
    int failed = f->scratch ? read_header(&r) : error_set(err, n, -ENOMEM, "out of memory");
    if (!failed)
        failed = read_trailer(&r, trailer);
    return failed ? failed : read_table(&r, trailer);
}

void snapshot_close(struct snapshot_file *f)
{
    sections_free(&f->sections);
    for (unsigned e = 0; e < SNAPSHOT_EXTENTS; e++)
        free(f->extent[e].place);
    free(f->scratch);
    *f = (struct snapshot_file){.fd = -1};
}

/* --- chunks ---------------------------------------------------------------------------------------------------- */

int snapshot_read_chunk(const struct snapshot_file *f, enum snapshot_extent e, uint64_t i, void *out)
{
    if (i >= f->extent[e].n)
        return -EINVAL;
    const struct snapshot_place *p = &f->extent[e].place[i];
    if (!p->length) {
        memset(out, 0, SNAPSHOT_CHUNK);
        return 0;
    }
    void *raw = p->length == SNAPSHOT_CHUNK ? out : f->scratch;
    ssize_t got = pread(f->fd, raw, p->length, (off_t)p->offset);
    if (got < 0)
        return -errno;
    if (got != (ssize_t)p->length || crc32c(0, raw, p->length) != p->crc)
        return -EBADMSG;
    if (raw != out && ZSTD_decompress(out, SNAPSHOT_CHUNK, raw, p->length) != SNAPSHOT_CHUNK)
        return -EBADMSG;
    return 1;
}

uint64_t snapshot_kept(const struct snapshot_file *f, enum snapshot_extent e)
{
    uint64_t kept = 0;

    for (uint64_t i = 0; i < f->extent[e].n; i++)
        kept += f->extent[e].place[i].length != 0;
    return kept;
}
