/*
 * The file of a copy-on-write overlay, version 1, or 2 when it is known by another's id.  Numbers are little-endian.
 *
 *      0       header, copy 0        4096 bytes
 *      4096    header, copy 1        4096 bytes
 *      8192    group 0:  map         4096 bytes: 8 sectors of 512
 *                        data        32256 granules of 4096 bytes
 *      ...     group 1, 2, ...       until the disk's size is covered
 *
 * Granule g of the disk has one bit in the map of group g / 32256, and one place in the data behind it.  The bit set:
 * the contents are in that place (a hole there reads as zeroes).  Clear: they are the base's, and zeroes behind its
 * end; what the place holds then means nothing.  The file is sparse; a discard makes a hole and leaves the bit.
 *
 *      header          0   "GUISEOVL"            8   version (4)          12  crc32c of 4096 bytes, this field zero (4)
 *                      16  generation (8)        24  size of the disk (8) 32  size of the base (8)
 *                      40  fingerprint of the base (4)                    48  unique id (16)
 *                      64  format of the base, text (16)                  80  path of the base, text (3984); empty:
 * none 4064 id that it is known by (16); 0: its own       4080 and was before (16) map sector      0   crc32c of the
 * id, then of the 508 bytes behind this field (4) 4   number of the sector, from 0 through all groups (4)    8  4032
 * bits, lowest first all zero: no bit is set
 *
 * The fingerprint of the base is crc32c of parts of its contents; of an overlay that this one was put on while a
 * machine wrote to it, which has the same size, it may be crc32c of "layer" and the id that it is known by.
 *
 * An overlay that another one's contents were merged into (overlay_merge.h) takes that one's place: it is known by its
 * id from then on, to those that lie on it.  By the id before it is known to the one whose place it is about to take.
 *
 * Two copies of the header, of which the valid one with the higher generation counts, make a change of it one step.
 *
 * What makes a flush true: bits only ever go from clear to set, and reach the file after the data that they speak of is
 * on stable storage.  So whichever of the sectors of a map a crash leaves old or new, each granule is either what was
 * written or what was there before, and all that a flush had covered is what was written.
 */
#pragma once
#include <limits.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define OVERLAY_GRANULE 4096u
#define OVERLAY_SECTOR 512u
#define OVERLAY_SECTOR_BITS ((OVERLAY_SECTOR - 8) * 8) /* 4032 */
#define OVERLAY_SECTORS 8u                             /* map sectors of a group */
#define OVERLAY_GROUP (OVERLAY_SECTORS * OVERLAY_SECTOR_BITS)
#define OVERLAY_HEADER 4096u
#define OVERLAY_FIRST (2 * OVERLAY_HEADER)
#define OVERLAY_GROUP_BYTES (OVERLAY_GRANULE * (OVERLAY_GROUP + 1ull))
#define OVERLAY_SIZE_MAX (1ull << 44)
#define OVERLAY_ID 16u
#define OVERLAY_MAGIC "GUISEOVL" /* without its terminator */

struct overlay_header {
    uint64_t generation, size, base_size;
    uint32_t base_print;
    uint8_t id[OVERLAY_ID];
    char base_format[16];
    char base[OVERLAY_HEADER - 80 - 2 * OVERLAY_ID];
    uint8_t known_as[OVERLAY_ID], was_known_as[OVERLAY_ID]; /* all zeroes: by its id */
};

/* Writes h as the OVERLAY_HEADER bytes of a copy. */
void overlay_header_encode(const struct overlay_header *h, uint8_t *bytes);
/* NULL, or the sentence's rest about what is wrong: "has no valid header". */
const char *overlay_header_decode(struct overlay_header *h, const uint8_t *bytes);
/* Of two copies the one that counts; *slot says which. */
const char *overlay_header_choose(struct overlay_header *h, const uint8_t *bytes, unsigned *slot);

/* A map sector in memory is as in the file; seal before writing, check after reading. */
void overlay_sector_seal(uint8_t *sector, const uint8_t id[OVERLAY_ID], uint32_t number);
bool overlay_sector_ok(const uint8_t *sector, const uint8_t id[OVERLAY_ID], uint32_t number);

/* An id in hexadecimal digits. */
void overlay_id_format(const uint8_t id[OVERLAY_ID], char text[2 * OVERLAY_ID + 1]);

/* The fingerprint of an overlay as a layer, by the id that it is known by. */
uint32_t overlay_print(const struct overlay_header *h);
/* Is it the layer with that fingerprint? */
bool overlay_is_known(const struct overlay_header *h, uint32_t print);
/* From now on it is known by the id that `other` is, and still to the one with that fingerprint of it. */
void overlay_take_place(struct overlay_header *h, const struct overlay_header *other, uint32_t print);

static inline uint64_t overlay_granules(uint64_t size)
{
    return (size + OVERLAY_GRANULE - 1) / OVERLAY_GRANULE;
}
static inline uint64_t overlay_groups(uint64_t size)
{
    return (overlay_granules(size) + OVERLAY_GROUP - 1) / OVERLAY_GROUP;
}
static inline uint32_t overlay_sectors(uint64_t size)
{
    return (uint32_t)(overlay_groups(size) * OVERLAY_SECTORS);
}
static inline uint64_t overlay_map_offset(uint64_t sector)
{
    return OVERLAY_FIRST + sector / OVERLAY_SECTORS * OVERLAY_GROUP_BYTES + sector % OVERLAY_SECTORS * OVERLAY_SECTOR;
}
/* Where in the file byte `offset` of the disk is. */
static inline uint64_t overlay_data_offset(uint64_t offset)
{
    uint64_t g = offset / OVERLAY_GRANULE;
    return OVERLAY_FIRST + g / OVERLAY_GROUP * OVERLAY_GROUP_BYTES + OVERLAY_GRANULE * (1 + g % OVERLAY_GROUP) +
           offset % OVERLAY_GRANULE;
}
static inline uint64_t overlay_file_size(uint64_t size)
{
    return overlay_data_offset((overlay_granules(size) - 1) * OVERLAY_GRANULE) + OVERLAY_GRANULE;
}
