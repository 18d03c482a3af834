/* What of a disk is in overlays, and where: for who copies it while a machine writes to it. */
#include <errno.h>

#include "backends/disk/disk_log.h"
#include "backends/disk/overlay_int.h"

_Static_assert(OVERLAY_GRANULE == DISK_LOG_GRANULE, "");

static const struct overlay *overlay_at(const struct disk *d)
{
    return d && d->ops == &overlay_ops ? (const struct overlay *)d : NULL;
}

/* Eight granules at a time: most of most disks is not there. */
static void mask_sector(const struct overlay *o, uint64_t sector, uint16_t *granules)
{
    const uint8_t *bits = o->map + sector * OVERLAY_SECTOR + 8;
    uint64_t first = sector * OVERLAY_SECTOR_BITS, n = overlay_granules(o->disk.size);

    for (unsigned i = 0; i < OVERLAY_SECTOR_BITS; i++) {
        if (i % 8 == 0 && !bits[i / 8]) {
            i += 7;
            continue;
        }
        uint64_t g = first + i;
        if (g < n && bits[i / 8] >> i % 8 & 1)
            granules[g / DISK_LOG_GRANULES] |= (uint16_t)(1u << g % DISK_LOG_GRANULES);
    }
}

int disk_overlay_mask(const struct disk *d, uint16_t *granules)
{
    if (!overlay_at(d))
        return -EINVAL;
    for (const struct overlay *o = overlay_at(d); o; o = overlay_at(o->base))
        for (uint64_t i = 0; i < o->n_sectors; i++)
            mask_sector(o, i, granules);
    return 0;
}

bool disk_overlay_find(const struct disk *d, uint64_t g, int *fd, uint64_t *offset)
{
    for (const struct overlay *o = overlay_at(d); o; o = overlay_at(o->base)) {
        if (g >= overlay_granules(o->disk.size) || !overlay_owned(o, g))
            continue;
        *fd = o->file.fd;
        *offset = overlay_data_offset(g * OVERLAY_GRANULE);
        return true;
    }
    return false;
}
