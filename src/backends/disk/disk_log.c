#include "backends/disk/disk_log.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

struct disk_log {
    uint64_t count;
    uint16_t granules[];
};

int disk_log_begin(struct disk *d)
{
    d->log = calloc(1, sizeof *d->log + disk_log_pieces(d) * sizeof *d->log->granules);
    return d->log ? 0 : -ENOMEM;
}

void disk_log_end(struct disk *d)
{
    free(d->log);
    d->log = NULL;
}

void disk_log_take(struct disk *d, uint16_t *granules)
{
    size_t size = disk_log_pieces(d) * sizeof *granules;

    memcpy(granules, d->log->granules, size);
    memset(d->log->granules, 0, size);
    d->log->count = 0;
}

uint64_t disk_log_count(const struct disk *d)
{
    return d->log ? d->log->count : 0;
}

void disk_log_note(struct disk *d, const struct disk_request *r)
{
    if (r->op == DISK_READ || r->op == DISK_FLUSH || !r->length)
        return;
    uint64_t last = (r->offset + r->length - 1) / DISK_LOG_GRANULE;
    for (uint64_t g = r->offset / DISK_LOG_GRANULE; g <= last; g++) {
        uint16_t *piece = &d->log->granules[g / DISK_LOG_GRANULES], bit = (uint16_t)(1u << g % DISK_LOG_GRANULES);
        d->log->count += !(*piece & bit);
        *piece |= bit;
    }
}
