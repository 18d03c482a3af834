/* NVM commands (NVM Command Set, section 6 of 1.4): each becomes a request to the disk. */
#include <errno.h>
#include <string.h>

#include "devices/nvme/nvme_int.h"
#include "memory/memory.h"

enum { OP_FLUSH = 0x00, OP_WRITE = 0x01, OP_READ = 0x02, OP_WRITE_ZEROES = 0x08, OP_DATASET = 0x09 };
#define NSID_ALL 0xffffffffu
#define FLAG_FUA (1u << 30)
#define FLAG_DEALLOCATE (1u << 25)
#define DATASET_DEALLOCATE 4u

static uint16_t status_of(const struct disk_request *d)
{
    switch (d->result) {
    case 0:
        return NVME_OK;
    case -EROFS:
        return NVME_READ_ONLY;
    case -ENOSPC:
    case -EDQUOT:
    case -EFBIG:
        return NVME_CAPACITY_EXCEEDED;
    default:
        return d->op == DISK_READ ? NVME_READ_ERROR : NVME_WRITE_FAULT;
    }
}

static bool in_range(const struct nvme *n, uint64_t start, uint64_t blocks)
{
    return start <= n->blocks && blocks <= n->blocks - start;
}

/* Frees the request, answers the guest, and goes on with what waited for a free request. */
static void end(struct nvme_request *r, uint16_t status)
{
    struct nvme *n = r->nvme;

    unsigned sq = r->sq;

    n->at_work--;
    n->queue_work[sq]--;
    nvme_request_done(r, status);
    nvme_request_ended(n, sq);
}

static void done(struct disk_request *d)
{
    end(d->opaque, status_of(d));
}

static void read_done(struct disk_request *d)
{
    struct nvme_request *r = d->opaque;
    struct bus *bus = r->nvme->bus;

    /* Also after an error: some of it may have arrived. */
    for (unsigned i = 0; i < r->n_pieces && bus->dma_dirty; i++)
        bus->dma_dirty(bus->dma_dirty_opaque, r->pieces[i].gpa, r->pieces[i].len);
    end(r, status_of(d));
}

static uint16_t start(struct nvme_request *r, enum disk_op op, uint64_t block, uint64_t blocks,
                      void (*fn)(struct disk_request *))
{
    struct nvme *n = r->nvme;
    bool through = (op == DISK_WRITE || op == DISK_WRITE_ZEROES) && !(n->saved.features[NVME_FEATURE_CACHE] & 1);

    r->disk.op = op;
    r->disk.flags |= through ? DISK_FUA : 0;
    r->disk.offset = block << NVME_LBA_SHIFT;
    r->disk.length = blocks << NVME_LBA_SHIFT;
    r->disk.done = fn;
    r->disk.opaque = r;
    n->at_work++;
    n->queue_work[r->sq]++;
    disk_submit(n->disk, &r->disk);
    return NVME_LATER;
}

static uint16_t transfer(struct nvme *n, struct nvme_request *r, const struct nvme_command *c)
{
    uint64_t block = c->cdw10 | (uint64_t)c->cdw11 << 32;
    uint32_t blocks = (c->cdw12 & 0xffff) + 1;
    bool read = c->opcode == OP_READ;

    if (blocks > NVME_TRANSFER_MAX >> NVME_LBA_SHIFT)
        return NVME_INVALID_FIELD;
    if (!in_range(n, block, blocks))
        return NVME_LBA_RANGE;
    if (!read && n->disk->read_only)
        return NVME_READ_ONLY;
    uint16_t status = nvme_map(n, c, blocks << NVME_LBA_SHIFT, r->pieces, &r->n_pieces);
    if (status)
        return status;
    for (unsigned i = 0; i < r->n_pieces; i++) {
        const struct nvme_piece *p = &r->pieces[i];
        r->iov[i] = (struct iovec){read ? memory_hva(n->bus->memory, p->gpa, p->len)
                                        : (void *)(uintptr_t)memory_hva_read(n->bus->memory, p->gpa, p->len),
                                   p->len};
    }
    r->disk.iov = r->iov;
    r->disk.n_iov = r->n_pieces;
    r->disk.flags = !read && (c->cdw12 & FLAG_FUA) ? DISK_FUA : 0;
    n->saved.reads += read;
    n->saved.writes += !read;
    *(read ? &n->saved.sectors_read : &n->saved.sectors_written) += blocks;
    return start(r, read ? DISK_READ : DISK_WRITE, block, blocks, read ? read_done : done);
}

static uint16_t flush(struct nvme *n, struct nvme_request *r, const struct nvme_command *c)
{
    return start(r, DISK_FLUSH, 0, 0, done);
}

static uint16_t write_zeroes(struct nvme *n, struct nvme_request *r, const struct nvme_command *c)
{
    uint64_t block = c->cdw10 | (uint64_t)c->cdw11 << 32;
    uint32_t blocks = (c->cdw12 & 0xffff) + 1;

    if (!in_range(n, block, blocks))
        return NVME_LBA_RANGE;
    if (n->disk->read_only)
        return NVME_READ_ONLY;
    r->disk.flags = (c->cdw12 & FLAG_FUA ? DISK_FUA : 0) | (c->cdw12 & FLAG_DEALLOCATE ? DISK_UNMAP : 0);
    return start(r, DISK_WRITE_ZEROES, block, blocks, done);
}

/* One range of a Dataset Management command after the other, in the same request. */
static uint16_t next_range(struct nvme_request *r);

static void range_done(struct disk_request *d)
{
    struct nvme_request *r = d->opaque;
    uint16_t status = status_of(d);

    if (status || r->nvme->resetting || r->nvme->restoring || r->range == r->n_ranges) {
        end(r, status);
        return;
    }
    r->nvme->at_work--;
    r->nvme->queue_work[r->sq]--;
    next_range(r);
    disk_kick(r->nvme->disk);
}

static uint16_t next_range(struct nvme_request *r)
{
    const struct nvme_range *range = &r->ranges[r->range++];
    return start(r, DISK_DISCARD, range->start, range->blocks, range_done);
}

static uint16_t dataset(struct nvme *n, struct nvme_request *r, const struct nvme_command *c)
{
    r->n_ranges = (c->cdw10 & 0xff) + 1;
    r->range = 0;
    uint16_t status = nvme_fetch(n, c, r->ranges, r->n_ranges * (uint32_t)sizeof *r->ranges);

    if (status)
        return status;
    for (unsigned i = 0; i < r->n_ranges; i++)
        if (!in_range(n, r->ranges[i].start, r->ranges[i].blocks))
            return NVME_LBA_RANGE;
    if (!(c->cdw11 & DATASET_DEALLOCATE))
        return NVME_OK; /* hints how data will be used: of no use here */
    if (n->disk->read_only)
        return NVME_READ_ONLY;
    return next_range(r);
}

static const struct io_command {
    uint8_t opcode;
    uint16_t (*run)(struct nvme *n, struct nvme_request *r, const struct nvme_command *c);
} io_commands[] = {
    {OP_FLUSH, flush},     {OP_WRITE, transfer}, {OP_READ, transfer}, {OP_WRITE_ZEROES, write_zeroes},
    {OP_DATASET, dataset},
};

uint16_t nvme_io(struct nvme *n, struct nvme_request *r, const struct nvme_command *c)
{
    r->disk.flags = 0;
    r->disk.iov = NULL;
    r->disk.n_iov = 0;
    for (unsigned i = 0; i < sizeof io_commands / sizeof *io_commands; i++) {
        if (io_commands[i].opcode != c->opcode)
            continue;
        if (c->flags & 3)
            return NVME_INVALID_FIELD; /* no fused operations */
        if (c->nsid != NVME_NSID && !(c->opcode == OP_FLUSH && c->nsid == NSID_ALL))
            return NVME_INVALID_NAMESPACE;
        return io_commands[i].run(n, r, c);
    }
    return NVME_INVALID_OPCODE;
}
