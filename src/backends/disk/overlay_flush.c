/*
 * Flushes of an overlay: first the data, then the bits that speak of it (overlay_format.h says why).
 *
 *      copy the dirty map sectors -> sync -> write the copies -> sync
 *
 * The copies are made before the first sync, so no bit is among them whose data that sync does not cover.  One flush
 * runs at a time; those that arrive meanwhile share the next.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "backends/disk/overlay_int.h"

static void start(struct overlay *o);
static void begin_round(struct overlay *o);

void overlay_own(struct overlay *o, uint64_t first, uint64_t last)
{
    for (uint64_t g = first; g <= last; g++) {
        uint32_t number = (uint32_t)(g / OVERLAY_SECTOR_BITS);
        unsigned bit = (unsigned)(g % OVERLAY_SECTOR_BITS);
        uint8_t *byte = o->map + (uint64_t)number * OVERLAY_SECTOR + 8 + bit / 8;

        if (*byte >> bit % 8 & 1)
            continue;
        *byte |= (uint8_t)(1u << bit % 8);
        if (!o->dirty[number])
            o->dirty_list[o->n_dirty++] = number;
        o->dirty[number] = 1;
    }
}

static void end(struct overlay *o, int result)
{
    struct overlay_flush *f = o->flush;
    struct disk_request *r = f->current, *next;

    f->current = NULL;
    f->running = false;
    for (; r; r = next) {
        next = r->next;
        overlay_finish(o, r, result);
    }
    start(o);
}

static void sync_failed(struct overlay *o, int result)
{
    if (!o->sync_error)
        o->sync_error = result;
    end(o, result);
}

static void sync_file(struct overlay *o, void (*done)(struct fileio_op *op))
{
    o->flush->sync = (struct fileio_op){.kind = FILEIO_SYNC, .fd = o->file.fd, .done = done, .opaque = o};
    fileio_submit(o->file.io, &o->flush->sync);
}

static void map_synced(struct fileio_op *op)
{
    struct overlay *o = op->opaque;

    if (op->result)
        sync_failed(o, op->result);
    else
        end(o, 0);
}

static void map_written(struct fileio_op *op)
{
    struct overlay *o = op->opaque;
    struct overlay_flush *f = o->flush;

    if (op->result)
        f->result = op->result;
    if (--f->writes)
        return;
    if (f->result) { /* nothing is lost: the bits are as good as never written, and the next flush tries again */
        for (uint32_t i = 0; i < f->n; i++)
            if (!o->dirty[f->numbers[i]]) {
                o->dirty[f->numbers[i]] = 1;
                o->dirty_list[o->n_dirty++] = f->numbers[i];
            }
        end(o, f->result);
    } else if (f->left) {
        begin_round(o);
    } else {
        sync_file(o, map_synced);
    }
}

/* Neighbours in the file are one write. */
static void write_map(struct overlay *o)
{
    struct overlay_flush *f = o->flush;

    f->result = 0;
    f->writes = 1; /* until all are handed over */
    for (uint32_t i = 0, n; i < f->n; i += n) {
        for (n = 1; i + n < f->n && f->numbers[i + n] == f->numbers[i] + n && f->numbers[i + n] % OVERLAY_SECTORS; n++)
            ;
        f->iov[i] = (struct iovec){f->sectors[i], n * OVERLAY_SECTOR};
        f->write[i] = (struct fileio_op){.kind = FILEIO_WRITE,
                                         .fd = o->file.fd,
                                         .iov = &f->iov[i],
                                         .n_iov = 1,
                                         .offset = overlay_map_offset(f->numbers[i]),
                                         .done = map_written,
                                         .opaque = o};
        f->writes++;
        fileio_submit(o->file.io, &f->write[i]);
    }
    f->writes--;
}

static void data_synced(struct fileio_op *op)
{
    struct overlay *o = op->opaque;

    if (op->result)
        sync_failed(o, op->result);
    else if (o->flush->n)
        write_map(o);
    else
        end(o, 0);
}

static int by_number(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return x < y ? -1 : x > y;
}

/* Takes the oldest dirty sectors, at most as many as were dirty when the flush began. */
static void begin_round(struct overlay *o)
{
    struct overlay_flush *f = o->flush;

    f->n = f->left < f->room ? f->left : f->room;
    f->left -= f->n;
    memcpy(f->numbers, o->dirty_list, f->n * sizeof *f->numbers);
    o->n_dirty -= f->n;
    memmove(o->dirty_list, o->dirty_list + f->n, o->n_dirty * sizeof *o->dirty_list);
    qsort(f->numbers, f->n, sizeof *f->numbers, by_number);
    for (uint32_t i = 0; i < f->n; i++) {
        o->dirty[f->numbers[i]] = 0;
        memcpy(f->sectors[i], o->map + (uint64_t)f->numbers[i] * OVERLAY_SECTOR, OVERLAY_SECTOR);
        overlay_sector_seal(f->sectors[i], o->header.id, f->numbers[i]);
    }
    sync_file(o, data_synced);
}

static void start(struct overlay *o)
{
    struct overlay_flush *f = o->flush;

    if (f->running || !f->waiting)
        return;
    f->current = f->waiting;
    f->waiting = NULL;
    f->waiting_end = &f->waiting;
    f->running = true;
    f->written = false;
    f->left = o->n_dirty;
    begin_round(o);
}

void overlay_flush_add(struct overlay *o, struct disk_request *r)
{
    struct overlay_flush *f = o->flush;

    if (o->sync_error || (!f->running && !f->written && !o->n_dirty)) {
        overlay_finish(o, r, o->sync_error);
        return;
    }
    r->next = NULL;
    *f->waiting_end = r;
    f->waiting_end = &r->next;
    start(o);
}

struct overlay_flush *overlay_flush_create(uint32_t n_sectors)
{
    struct overlay_flush *f = calloc(1, sizeof *f);

    if (!f)
        return NULL;
    f->waiting_end = &f->waiting;
    f->room = n_sectors < FLUSH_SECTORS ? n_sectors : FLUSH_SECTORS;
    f->numbers = calloc(f->room, sizeof *f->numbers);
    f->sectors = calloc(f->room, sizeof *f->sectors);
    f->write = calloc(f->room, sizeof *f->write);
    f->iov = calloc(f->room, sizeof *f->iov);
    if (f->numbers && f->sectors && f->write && f->iov)
        return f;
    overlay_flush_destroy(f);
    return NULL;
}

void overlay_flush_destroy(struct overlay_flush *f)
{
    if (!f)
        return;
    free(f->numbers);
    free(f->sectors);
    free(f->write);
    free(f->iov);
    free(f);
}
