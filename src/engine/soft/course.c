#include "engine/soft/course.h"

#include <string.h>

#include "base/bytes.h"
#include "base/crc32c.h"

#define PAGE 4096u
#define BLOCK_HEAD 12u

/* Of the whole file but itself. */
static uint32_t check_sum(const uint8_t head[COURSE_HEAD], const uint8_t *rest, size_t n)
{
    return crc32c(crc32c(crc32c(0, head, 24), head + 28, COURSE_HEAD - 28), rest, n);
}

bool course_begins(const uint8_t head[COURSE_HEAD], size_t size, uint32_t *n_pieces)
{
    *n_pieces = le32_at(head + 28);
    return size > COURSE_HEAD && size <= COURSE_BYTES_MAX && !memcmp(head, COURSE_MAGIC, 16) &&
           le32_at(head + 16) <= COURSE_BLOCKS_MAX && le32_at(head + 20) == size - COURSE_HEAD &&
           *n_pieces <= COURSE_PIECES_MAX && 4ul * *n_pieces <= size - COURSE_HEAD;
}

bool course_is_whole(const uint8_t *file, size_t size, size_t *at)
{
    uint32_t n_pieces;

    if (size < COURSE_HEAD || !course_begins(file, size, &n_pieces))
        return false;
    *at = COURSE_HEAD + 4ul * n_pieces;
    return le32_at(file + 24) == check_sum(file, file + COURSE_HEAD, size - COURSE_HEAD);
}

static bool peeks_well(const uint8_t *p, struct course_block *b)
{
    for (unsigned i = 0; i < b->n_peeked; i++) {
        b->peeked[i] = (struct peeked){le16_at(p + 4 * i), le16_at(p + 4 * i + 2)};
        if (!b->peeked[i].length || b->peeked[i].first >= PAGE || b->peeked[i].length > PAGE - b->peeked[i].first)
            return false;
        b->n_bytes += b->peeked[i].length;
    }
    return true;
}

static bool fixes_well(const struct course_block *b)
{
    for (unsigned i = 0; i < b->n_fixes; i++)
        if ((le16_at(b->fixes + 2 * i) & (COURSE_MINUS - 1)) + 4u > b->n_bytes)
            return false;
    return true;
}

bool course_next(const uint8_t *file, size_t size, size_t *at, struct course_block *b)
{
    const uint8_t *p = file + *at;
    const size_t room = size - *at;

    if (room < BLOCK_HEAD)
        return false;
    *b = (struct course_block){.place = le32_at(p),
                               .how = le32_at(p + 4),
                               .length = le16_at(p + 8),
                               .n_peeked = p[10],
                               .n_fixes = p[11],
                               .n_bytes = le16_at(p + 8)};
    const size_t lists = BLOCK_HEAD + 4u * b->n_peeked + 2u * b->n_fixes;
    if (b->n_peeked > BLOCK_PEEKS || b->n_fixes > COURSE_FIXES_MAX || lists > room || !b->length ||
        b->length > COURSE_LENGTH_MAX || b->length > PAGE - b->place % PAGE || !(b->how & MODE_64) ||
        (b->how & COURSE_MODE & ~COURSE_MODES) || (b->how & MODE_MMU) >= 3 || b->how >= COURSE_FLAT << 1)
        return false;
    b->fixes = p + BLOCK_HEAD + 4u * b->n_peeked;
    b->bytes = (uint32_t)(*at + lists);
    if (!peeks_well(p + BLOCK_HEAD, b) || !fixes_well(b) || b->n_bytes > room - lists)
        return false;
    const size_t whole = (lists + b->n_bytes + 3) & ~3ul;
    *at = whole > room ? size : *at + whole;
    return true;
}

void course_fix(uint8_t *file, const struct course_block *b, uint64_t address)
{
    for (unsigned i = 0; i < b->n_fixes; i++) {
        const unsigned fix = le16_at(b->fixes + 2 * i);
        uint8_t *p = file + b->bytes + (fix & (COURSE_MINUS - 1));
        le32_put(p, le32_at(p) + (uint32_t)(fix & COURSE_MINUS ? -address : address));
    }
}

size_t course_put(uint8_t *to, const struct course_block *b, const uint16_t *fixes, const uint8_t *bytes)
{
    uint8_t *p = to + BLOCK_HEAD;

    le32_put(to, b->place);
    le32_put(to + 4, b->how);
    le16_put(to + 8, b->length);
    to[10] = b->n_peeked;
    to[11] = b->n_fixes;
    for (unsigned i = 0; i < b->n_peeked; i++, p += 4) {
        le16_put(p, b->peeked[i].first);
        le16_put(p + 2, b->peeked[i].length);
    }
    for (unsigned i = 0; i < b->n_fixes; i++, p += 2)
        le16_put(p, fixes[i]);
    memcpy(p, bytes, b->n_bytes);
    p += b->n_bytes;
    while ((p - to) % 4)
        *p++ = 0;
    return (size_t)(p - to);
}

void course_head(uint8_t head[COURSE_HEAD], uint32_t n_blocks, uint32_t n_pieces, const uint8_t *rest, size_t n)
{
    memcpy(head, COURSE_MAGIC, 16);
    le32_put(head + 16, n_blocks);
    le32_put(head + 20, (uint32_t)n);
    le32_put(head + 28, n_pieces);
    le32_put(head + 24, check_sum(head, rest, n));
}
