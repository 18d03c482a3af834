#include "vm/migration_wire.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>
#include <zstd.h>

#include "base/bytes.h"
#include "base/crc32c.h"
#include "host/loop.h"

#define HEADER 24u
#define SECTION_HEAD (SECTION_KIND_SIZE + SECTION_NAME_SIZE + 4u)
#define PAYLOAD_MOST (SECTION_HEAD + SECTION_BYTES_MAX)
#define PACKED 1u
#define LEVEL 1
#define IDLE_NS 20000000ull

enum { PRESENT = 2, ZEROES = 4, LENGTH = 8, CRC = 12, NUMBER = 16 };

int wire_open(struct wire *w, int fd, bool compress)
{
    *w = (struct wire){.fd = fd, .compress = compress};
    w->packed_room = ZSTD_compressBound(WIRE_CHUNK);
    w->packed = malloc(w->packed_room);
    w->pages = malloc(WIRE_CHUNK);
    w->zstd_out = ZSTD_createCCtx();
    w->zstd_in = ZSTD_createDCtx();
    return w->packed && w->pages && w->zstd_out && w->zstd_in ? 0 : -ENOMEM;
}

void wire_close(struct wire *w)
{
    ZSTD_freeCCtx(w->zstd_out);
    ZSTD_freeDCtx(w->zstd_in);
    free(w->packed);
    free(w->pages);
    *w = (struct wire){.fd = -1};
}

/* --- sending ------------------------------------------------------------------------------------------------------ */

/* Waits until so much more may be sent.  Time in which nothing was sent is not made up for. */
static void keep_pace(struct wire *w, uint64_t more)
{
    uint64_t now = clock_ns();

    if (!w->pace)
        return;
    w->paced += more;
    uint64_t due = w->paced_since_ns + w->paced * 1000000000 / w->pace;
    if (now > due + IDLE_NS) {
        w->paced_since_ns = now;
        w->paced = 0;
    } else if (now < due) {
        nanosleep(&(struct timespec){(time_t)((due - now) / 1000000000), (long)((due - now) % 1000000000)}, NULL);
    }
}

static int write_all(struct wire *w, struct iovec *iov, int n)
{
    while (n) {
        ssize_t done = writev(w->fd, iov, n);
        if (done < 0 && errno != EINTR)
            return errno == ECONNRESET ? -EPIPE : -errno;
        for (w->bytes += done > 0 ? (size_t)done : 0; n && done >= (ssize_t)iov->iov_len; n--)
            done -= (ssize_t)(iov++)->iov_len;
        if (n && done > 0) {
            iov->iov_base = (uint8_t *)iov->iov_base + done;
            iov->iov_len -= (size_t)done;
        }
    }
    return 0;
}

static int put(struct wire *w, uint8_t header[HEADER], const void *a, uint32_t a_length, const void *b,
               uint32_t b_length)
{
    struct iovec iov[] = {{header, HEADER}, {(void *)(uintptr_t)a, a_length}, {(void *)(uintptr_t)b, b_length}};

    le32_put(header + LENGTH, a_length + b_length);
    le32_put(header + CRC, crc32c(crc32c(crc32c(0, header, HEADER), a, a_length), b, b_length));
    w->frames++;
    keep_pace(w, HEADER + a_length + b_length);
    return write_all(w, iov, 3);
}

static bool is_zero(const uint8_t *page)
{
    static const uint8_t zeroes[WIRE_PAGE];

    return page[0] == 0 && memcmp(page, zeroes, WIRE_PAGE) == 0;
}

static int put_chunk(struct wire *w, enum wire_type type, uint64_t number, const uint8_t *bytes, uint16_t pages,
                     bool fresh, bool always)
{
    uint8_t header[HEADER] = {(uint8_t)type};
    uint16_t present = 0, zeroes = 0;
    uint32_t length = 0;

    for (unsigned i = 0; i < WIRE_PAGES; i++) {
        if (!(pages >> i & 1))
            continue;
        if (is_zero(bytes + i * WIRE_PAGE)) {
            zeroes |= fresh ? 0 : (uint16_t)(1u << i);
            continue;
        }
        present |= (uint16_t)(1u << i);
        memcpy(w->pages + length, bytes + i * WIRE_PAGE, WIRE_PAGE);
        length += WIRE_PAGE;
    }
    if (!present && !zeroes && !always)
        return 0;
    le16_put(header + PRESENT, present);
    le16_put(header + ZEROES, zeroes);
    le64_put(header + NUMBER, number);
    size_t packed = w->compress && length
                        ? ZSTD_compressCCtx(w->zstd_out, w->packed, w->packed_room, w->pages, length, LEVEL)
                        : length;
    if (ZSTD_isError(packed) || packed >= length)
        return put(w, header, w->pages, length, NULL, 0);
    header[1] = PACKED;
    return put(w, header, w->packed, (uint32_t)packed, NULL, 0);
}

int wire_put_chunk(struct wire *w, enum wire_type type, uint64_t number, const uint8_t *bytes, uint16_t pages,
                   bool fresh)
{
    return put_chunk(w, type, number, bytes, pages, fresh, false);
}

int wire_answer_chunk(struct wire *w, uint64_t number, const uint8_t *bytes, uint16_t pages)
{
    return put_chunk(w, WIRE_MEMORY, number, bytes, pages, false, true);
}

int wire_put_section(struct wire *w, const struct section *s)
{
    uint8_t header[HEADER] = {WIRE_SECTION}, head[SECTION_HEAD] = {0};

    memcpy(head, s->kind, SECTION_KIND_SIZE);
    memcpy(head + SECTION_KIND_SIZE, s->name, SECTION_NAME_SIZE);
    le32_put(head + SECTION_KIND_SIZE + SECTION_NAME_SIZE, s->version);
    return put(w, header, head, sizeof head, s->bytes, s->size);
}

int wire_put_end(struct wire *w)
{
    uint8_t header[HEADER] = {WIRE_END};

    le64_put(header + NUMBER, w->frames);
    return put(w, header, NULL, 0, NULL, 0);
}

int wire_put_lacks(struct wire *w, const uint8_t *bits, uint32_t length)
{
    uint8_t header[HEADER] = {WIRE_LACKS};

    return put(w, header, bits, length, NULL, 0);
}

int wire_put_ask(struct wire *w, uint64_t chunk)
{
    uint8_t header[HEADER] = {WIRE_ASK};

    le64_put(header + NUMBER, chunk);
    return put(w, header, NULL, 0, NULL, 0);
}

/* --- receiving --------------------------------------------------------------------------------------------------- */

static int read_all(struct wire *w, void *to, size_t length)
{
    uint8_t *p = to;

    while (length) {
        ssize_t got = read(w->fd, p, length);
        if (got == 0 || (got < 0 && errno == EPIPE))
            return -ECONNRESET;
        if (got < 0 && errno != EINTR)
            return -errno;
        if (got > 0) {
            p += got;
            length -= (size_t)got;
            w->bytes += (size_t)got;
        }
    }
    return 0;
}

static const char *check_header(const uint8_t h[HEADER], uint32_t length)
{
    unsigned pages = (unsigned)__builtin_popcount(le16_at(h + PRESENT)), type = h[0];
    bool chunk = type == WIRE_MEMORY || type == WIRE_DISK;

    if (type < WIRE_MEMORY || type > WIRE_ASK || h[6] || h[7])
        return "a frame of it is of no kind that this guise knows";
    if (h[1] & ~PACKED || (h[1] && !chunk))
        return "a frame of it has flags that this guise does not know";
    if (!chunk && (le16_at(h + PRESENT) | le16_at(h + ZEROES)))
        return "a frame of it has pages that is no chunk";
    if (chunk && (le16_at(h + PRESENT) & le16_at(h + ZEROES)))
        return "a page of it is there twice";
    if (chunk && (h[1] ? length == 0 || length >= pages * WIRE_PAGE : length != pages * WIRE_PAGE))
        return "the length of a chunk is wrong";
    if (type == WIRE_SECTION && (length < SECTION_HEAD || length > PAYLOAD_MOST))
        return "the length of a part is wrong";
    if (type == WIRE_LACKS && (length == 0 || length > WIRE_BITS_MAX))
        return "the length of a list is wrong";
    return (type == WIRE_END || type == WIRE_ASK) && length ? "a frame has contents that is only a number" : NULL;
}

/* The payload, into the buffer that holds it: there is always room for a chunk, for a section it is made. */
static int read_payload(struct wire *w, uint32_t length)
{
    if (length > w->packed_room) {
        uint8_t *larger = realloc(w->packed, length);
        if (!larger)
            return -ENOMEM;
        w->packed = larger;
        w->packed_room = length;
    }
    return read_all(w, w->packed, length);
}

static const char *take_chunk(struct wire *w, struct wire_frame *f, bool packed, uint32_t length)
{
    size_t whole = (size_t)__builtin_popcount(f->present) * WIRE_PAGE;

    f->bytes = w->packed;
    if (!packed)
        return NULL;
    f->bytes = w->pages;
    return ZSTD_decompressDCtx(w->zstd_in, w->pages, WIRE_CHUNK, w->packed, length) == whole
               ? NULL
               : "a chunk cannot be uncompressed";
}

static bool is_text(const char *text, size_t size)
{
    size_t n = strnlen(text, size);

    for (size_t i = 0; i < n; i++)
        if (text[i] < ' ' || text[i] > '~')
            return false;
    return n && n < size;
}

static const char *take_section(struct wire *w, struct wire_frame *f, uint32_t length)
{
    struct section *s = &f->own;

    memcpy(s->kind, w->packed, sizeof s->kind);
    memcpy(s->name, w->packed + sizeof s->kind, sizeof s->name);
    s->version = le32_at(w->packed + sizeof s->kind + sizeof s->name);
    s->size = length - SECTION_HEAD;
    s->bytes = w->packed + SECTION_HEAD;
    f->section = s;
    return is_text(s->kind, sizeof s->kind) && is_text(s->name, sizeof s->name) ? NULL : "a part of it has no name";
}

int wire_get(struct wire *w, struct wire_frame *f, const char **why)
{
    uint8_t h[HEADER];
    int err = read_all(w, h, sizeof h);

    if (err)
        return err;
    uint32_t length = le32_at(h + LENGTH), crc = le32_at(h + CRC);
    *f = (struct wire_frame){.type = h[0], .number = le64_at(h + NUMBER)};
    if ((*why = check_header(h, length)))
        return -EBADMSG;
    if ((err = read_payload(w, length)))
        return err;
    le32_put(h + CRC, 0);
    if (crc32c(crc32c(0, h, sizeof h), w->packed, length) != crc)
        *why = "a check sum in it is wrong";
    f->present = le16_at(h + PRESENT);
    f->zeroes = le16_at(h + ZEROES);
    if (!*why && (f->type == WIRE_MEMORY || f->type == WIRE_DISK))
        *why = take_chunk(w, f, h[1] & PACKED, length);
    if (!*why && f->type == WIRE_SECTION)
        *why = take_section(w, f, length);
    if (f->type == WIRE_LACKS) {
        f->bytes = w->packed;
        f->length = length;
    }
    if (!*why && f->type == WIRE_END && f->number != w->frames)
        *why = "frames of it are missing";
    w->frames++;
    return *why ? -EBADMSG : 0;
}
