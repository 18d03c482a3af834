#include "backends/disk/overlay_merge.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "backends/disk/overlay_int.h"
#include "base/bytes.h"

#define PIECE_GRANULES 256u /* at a time: 1 MiB */
#define NOBODY (~0u)

static int host_hole(int fd, off_t offset, off_t length)
{
    return fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, length);
}

const struct merge_io merge_io_host = {pwrite, host_hole, fdatasync};

/* Map sectors whose data is written, and which are not. */
struct round {
    uint32_t numbers[FLUSH_SECTORS];
    uint32_t n;
    uint8_t *piece;
};

static uint8_t *sector_of(uint8_t *map, uint32_t number)
{
    return map + (uint64_t)number * OVERLAY_SECTOR;
}

static bool has(const uint8_t *map, uint32_t number, unsigned bit)
{
    return map[(uint64_t)number * OVERLAY_SECTOR + 8 + bit / 8] >> bit % 8 & 1;
}

/* Whose contents of that granule count; NOBODY: the file's own, or those of what all lie on. */
static unsigned source_of(const struct overlay_merge *m, uint32_t number, unsigned bit)
{
    for (unsigned i = 0; i < m->n; i++) {
        if (i == m->place && has(m->map, number, bit))
            break;
        if (has(m->layers[i].map, number, bit))
            return i;
    }
    return NOBODY;
}

static int write_all(const struct overlay_merge *m, const uint8_t *data, size_t length, uint64_t offset)
{
    while (length) {
        ssize_t put = m->io->write(m->into, data, length, (off_t)offset);
        if (put < 0 && errno == EINTR)
            continue;
        if (put <= 0)
            return put < 0 ? -errno : -EIO;
        data += put;
        length -= (size_t)put;
        offset += (uint64_t)put;
    }
    return 0;
}

static int read_all(int fd, uint8_t *data, size_t length, uint64_t offset)
{
    while (length) {
        ssize_t got = pread(fd, data, length, (off_t)offset);
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            return got < 0 ? -errno : -EIO;
        data += got;
        length -= (size_t)got;
        offset += (uint64_t)got;
    }
    return 0;
}

/* Holes stay holes. */
static int put(const struct overlay_merge *m, const uint8_t *data, size_t length, uint64_t offset)
{
    int err = 0;

    for (size_t at = 0, n; at < length && !err; at += n) {
        bool zero = bytes_all_zero(data + at, OVERLAY_GRANULE);
        for (n = OVERLAY_GRANULE; at + n < length && bytes_all_zero(data + at + n, OVERLAY_GRANULE) == zero;)
            n += OVERLAY_GRANULE;
        if (!zero || m->io->hole(m->into, (off_t)(offset + at), (off_t)n))
            err = write_all(m, data + at, n, offset + at);
    }
    return err;
}

/* All of a sector's granules, which lie in one piece in either file. */
static int copy_sector(struct overlay_merge *m, struct round *r, uint32_t number)
{
    uint8_t *bits = sector_of(m->map, number) + 8;
    bool news = false;
    int err = 0;

    for (unsigned bit = 0, n; bit < OVERLAY_SECTOR_BITS && !err; bit += n) {
        unsigned source = source_of(m, number, bit);
        for (n = 1; bit + n < OVERLAY_SECTOR_BITS && n < PIECE_GRANULES && source_of(m, number, bit + n) == source;)
            n++;
        if (source == NOBODY)
            continue;
        uint64_t at = ((uint64_t)number * OVERLAY_SECTOR_BITS + bit) * OVERLAY_GRANULE;
        size_t length = (size_t)n * OVERLAY_GRANULE;
        err = m->give_up && *m->give_up ? -ECANCELED : 0;
        if (!err)
            err = read_all(m->layers[source].fd, r->piece, length, overlay_data_offset(at));
        if (!err)
            err = put(m, r->piece, length, overlay_data_offset(at));
        for (unsigned i = bit; i < bit + n; i++) {
            news |= !has(m->map, number, i);
            bits[i / 8] |= (uint8_t)(1u << i % 8);
        }
    }
    if (news)
        r->numbers[r->n++] = number;
    return err;
}

/* First the data, then the bits that speak of it. */
static int end_round(struct overlay_merge *m, struct round *r)
{
    int err = m->io->sync(m->into) ? -errno : 0;

    for (uint32_t i = 0; i < r->n && !err; i++) {
        uint8_t sector[OVERLAY_SECTOR];
        memcpy(sector, sector_of(m->map, r->numbers[i]), sizeof sector);
        overlay_sector_seal(sector, m->header->id, r->numbers[i]);
        err = write_all(m, sector, sizeof sector, overlay_map_offset(r->numbers[i]));
    }
    r->n = 0;
    return err;
}

/* Places whose bits have not come to be: nothing is in them that anybody will read. */
static void give_back(const struct overlay_merge *m)
{
    uint8_t *map;

    if (overlay_load_map(m->into, m->header, &map))
        return;
    for (uint64_t g = 0; g < overlay_granules(m->header->size); g++) {
        uint32_t number = (uint32_t)(g / OVERLAY_SECTOR_BITS);
        unsigned bit = (unsigned)(g % OVERLAY_SECTOR_BITS);
        if (has(m->map, number, bit) && !has(map, number, bit))
            (void)m->io->hole(m->into, (off_t)overlay_data_offset(g * OVERLAY_GRANULE), OVERLAY_GRANULE);
    }
    free(map);
}

static bool is_empty(const struct overlay_merge *m, uint32_t number)
{
    static const uint8_t none[OVERLAY_SECTOR - 8];

    for (unsigned i = 0; i < m->n; i++)
        if (memcmp(m->layers[i].map + (uint64_t)number * OVERLAY_SECTOR + 8, none, sizeof none) != 0)
            return false;
    return true;
}

int overlay_merge(struct overlay_merge *m)
{
    struct round r = {.piece = malloc((size_t)PIECE_GRANULES * OVERLAY_GRANULE)};
    uint32_t n = overlay_sectors(m->header->size);
    int err = r.piece ? 0 : -ENOMEM;

    for (uint32_t i = 0; i < n && !err; i++) {
        if (!is_empty(m, i))
            err = copy_sector(m, &r, i);
        if (!err && r.n == FLUSH_SECTORS)
            err = end_round(m, &r);
    }
    if (!err)
        err = end_round(m, &r);
    if (!err && m->io->sync(m->into))
        err = -errno;
    if (err && r.piece)
        give_back(m);
    free(r.piece);
    return err;
}
