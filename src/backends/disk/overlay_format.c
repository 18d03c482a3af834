#include "backends/disk/overlay_format.h"

#include <stdio.h>
#include <string.h>

#include "backends/disk.h"
#include "base/bytes.h"
#include "base/crc32c.h"

enum {
    AT_VERSION = 8,
    AT_CRC = 12,
    AT_GENERATION = 16,
    AT_SIZE = 24,
    AT_BASE_SIZE = 32,
    AT_PRINT = 40,
    AT_ID = 48,
    AT_FORMAT = 64,
    AT_BASE = 80,
    AT_KNOWN = 4064,
    AT_WAS_KNOWN = 4080,
};
#define VERSION 1u
#define VERSION_KNOWN 2u /* by another's id */

static const uint8_t no_id[OVERLAY_ID];

static bool is_id(const uint8_t id[OVERLAY_ID])
{
    return memcmp(id, no_id, OVERLAY_ID) != 0;
}

static uint32_t header_crc(const uint8_t *bytes)
{
    static const uint8_t zero[4];
    uint32_t crc = crc32c(0, bytes, AT_CRC);

    crc = crc32c(crc, zero, sizeof zero);
    return crc32c(crc, bytes + AT_GENERATION, OVERLAY_HEADER - AT_GENERATION);
}

void overlay_header_encode(const struct overlay_header *h, uint8_t *bytes)
{
    memset(bytes, 0, OVERLAY_HEADER);
    memcpy(bytes, OVERLAY_MAGIC, sizeof OVERLAY_MAGIC - 1);
    le32_put(bytes + AT_VERSION, is_id(h->known_as) || is_id(h->was_known_as) ? VERSION_KNOWN : VERSION);
    le64_put(bytes + AT_GENERATION, h->generation);
    le64_put(bytes + AT_SIZE, h->size);
    le64_put(bytes + AT_BASE_SIZE, h->base_size);
    le32_put(bytes + AT_PRINT, h->base_print);
    memcpy(bytes + AT_ID, h->id, OVERLAY_ID);
    memcpy(bytes + AT_FORMAT, h->base_format, sizeof h->base_format);
    memcpy(bytes + AT_BASE, h->base, sizeof h->base);
    memcpy(bytes + AT_KNOWN, h->known_as, OVERLAY_ID);
    memcpy(bytes + AT_WAS_KNOWN, h->was_known_as, OVERLAY_ID);
    le32_put(bytes + AT_CRC, header_crc(bytes));
}

const char *overlay_header_decode(struct overlay_header *h, const uint8_t *bytes)
{
    if (memcmp(bytes, OVERLAY_MAGIC, sizeof OVERLAY_MAGIC - 1) != 0)
        return "is no overlay of guise";
    if (le32_at(bytes + AT_CRC) != header_crc(bytes))
        return "is damaged: its header's check sum is wrong";
    if (le32_at(bytes + AT_VERSION) != VERSION && le32_at(bytes + AT_VERSION) != VERSION_KNOWN)
        return "was made by a newer guise: use that";
    h->generation = le64_at(bytes + AT_GENERATION);
    h->size = le64_at(bytes + AT_SIZE);
    h->base_size = le64_at(bytes + AT_BASE_SIZE);
    h->base_print = le32_at(bytes + AT_PRINT);
    memcpy(h->id, bytes + AT_ID, OVERLAY_ID);
    memcpy(h->base_format, bytes + AT_FORMAT, sizeof h->base_format);
    memcpy(h->base, bytes + AT_BASE, sizeof h->base);
    memcpy(h->known_as, bytes + AT_KNOWN, OVERLAY_ID);
    memcpy(h->was_known_as, bytes + AT_WAS_KNOWN, OVERLAY_ID);
    /* From here on a right check sum over wrong contents: somebody made it so. */
    if (!h->size || h->size % DISK_SECTOR || h->size > OVERLAY_SIZE_MAX || h->base_size > h->size ||
        h->base_size % DISK_SECTOR || h->base_format[sizeof h->base_format - 1] || h->base[sizeof h->base - 1] ||
        (!h->base[0] && h->base_size) ||
        (le32_at(bytes + AT_VERSION) == VERSION && (is_id(h->known_as) || is_id(h->was_known_as))))
        return "is damaged: its header says what cannot be";
    return NULL;
}

const char *overlay_header_choose(struct overlay_header *h, const uint8_t *bytes, unsigned *slot)
{
    struct overlay_header second;
    const char *why = overlay_header_decode(h, bytes), *other = overlay_header_decode(&second, bytes + OVERLAY_HEADER);

    *slot = 0;
    if (!other && (why || second.generation > h->generation)) {
        *h = second;
        *slot = 1;
        return NULL;
    }
    return why;
}

static uint32_t sector_crc(const uint8_t *sector, const uint8_t id[OVERLAY_ID])
{
    return crc32c(crc32c(0, id, OVERLAY_ID), sector + 4, OVERLAY_SECTOR - 4);
}

void overlay_sector_seal(uint8_t *sector, const uint8_t id[OVERLAY_ID], uint32_t number)
{
    le32_put(sector + 4, number);
    le32_put(sector, sector_crc(sector, id));
}

bool overlay_sector_ok(const uint8_t *sector, const uint8_t id[OVERLAY_ID], uint32_t number)
{
    static const uint8_t empty[OVERLAY_SECTOR];

    if (memcmp(sector, empty, OVERLAY_SECTOR) == 0)
        return true;
    return le32_at(sector + 4) == number && le32_at(sector) == sector_crc(sector, id);
}

static uint32_t id_print(const uint8_t id[OVERLAY_ID])
{
    return crc32c(crc32c(0, "layer", 5), id, OVERLAY_ID);
}

void overlay_id_format(const uint8_t id[OVERLAY_ID], char text[2 * OVERLAY_ID + 1])
{
    for (unsigned i = 0; i < OVERLAY_ID; i++)
        snprintf(text + (size_t)2 * i, 3, "%02x", id[i]);
}

uint32_t overlay_print(const struct overlay_header *h)
{
    return id_print(is_id(h->known_as) ? h->known_as : h->id);
}

bool overlay_is_known(const struct overlay_header *h, uint32_t print)
{
    return print == overlay_print(h) || print == id_print(h->id) ||
           (is_id(h->was_known_as) && print == id_print(h->was_known_as));
}

void overlay_take_place(struct overlay_header *h, const struct overlay_header *other, uint32_t print)
{
    if (print == overlay_print(h))
        memcpy(h->was_known_as, is_id(h->known_as) ? h->known_as : h->id, OVERLAY_ID);
    memcpy(h->known_as, is_id(other->known_as) ? other->known_as : other->id, OVERLAY_ID);
}
