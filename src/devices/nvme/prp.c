/*
 * Guest memory of a command: Physical Region Pages (4.3).
 *
 *   PRP1   first page, at any offset that is a multiple of 4
 *   PRP2   the second page if that is all, else a list: 8 bytes a page, and in a list's last place (when more pages
 *          than that are to come) the address of the next list
 *
 * Each page of a list is copied once.  The walk is as long as the transfer, so no arrangement of lists makes it longer.
 */
#include <string.h>

#include "devices/nvme/nvme_int.h"
#include "memory/memory.h"

#define LIST_ENTRIES (NVME_PAGE / 8u)

struct list {
    uint64_t entry[LIST_ENTRIES];
    unsigned n, at;
};

static uint16_t add(struct nvme *n, struct nvme_piece *pieces, unsigned *count, uint64_t gpa, uint32_t len)
{
    struct nvme_piece *last = *count ? &pieces[*count - 1] : NULL;

    if (!memory_is_ram(n->bus->memory, gpa, len))
        return NVME_DATA_TRANSFER_ERROR;
    /* Contiguous pages become one piece if the sum is RAM: it does not reach over the hole below 4 GiB. */
    if (last && last->gpa + last->len == gpa && memory_is_ram(n->bus->memory, last->gpa, (uint64_t)last->len + len))
        last->len += len;
    else
        pieces[(*count)++] = (struct nvme_piece){gpa, len};
    return NVME_OK;
}

static uint16_t load(struct nvme *n, struct list *list, uint64_t gpa)
{
    if (gpa % 8)
        return NVME_PRP_OFFSET;
    list->at = 0;
    list->n = (NVME_PAGE - (unsigned)(gpa % NVME_PAGE)) / 8;
    return dma_read(n->bus, gpa, list->entry, list->n * 8) ? NVME_DATA_TRANSFER_ERROR : NVME_OK;
}

static uint16_t walk(struct nvme *n, uint64_t gpa, uint32_t len, struct nvme_piece *pieces, unsigned *count)
{
    struct list list;
    uint16_t status = load(n, &list, gpa);

    while (!status && len) {
        if (list.at + 1 == list.n && len > NVME_PAGE) {
            uint64_t next = list.entry[list.at];
            status = next % NVME_PAGE ? NVME_PRP_OFFSET : load(n, &list, next);
            continue;
        }
        uint64_t page = list.entry[list.at++];
        uint32_t piece = len < NVME_PAGE ? len : NVME_PAGE;
        status = page % NVME_PAGE ? NVME_PRP_OFFSET : add(n, pieces, count, page, piece);
        len -= piece;
    }
    return status;
}

uint16_t nvme_map(struct nvme *n, const struct nvme_command *c, uint32_t len, struct nvme_piece *pieces,
                  unsigned *n_pieces)
{
    uint32_t first = NVME_PAGE - (uint32_t)(c->prp1 % NVME_PAGE);

    *n_pieces = 0;
    if (c->flags >> 6 || len > NVME_TRANSFER_MAX)
        return NVME_INVALID_FIELD; /* no scatter-gather lists here */
    if (c->prp1 % 4)
        return NVME_PRP_OFFSET;
    if (first > len)
        first = len;
    uint16_t status = add(n, pieces, n_pieces, c->prp1, first);
    len -= first;
    if (status || !len)
        return status;
    if (len > NVME_PAGE)
        return walk(n, c->prp2, len, pieces, n_pieces);
    return c->prp2 % NVME_PAGE ? NVME_PRP_OFFSET : add(n, pieces, n_pieces, c->prp2, len);
}

uint16_t nvme_answer(struct nvme *n, const struct nvme_command *c, const void *data, uint32_t len)
{
    struct nvme_piece pieces[3];
    unsigned count;
    uint16_t status = len ? nvme_map(n, c, len, pieces, &count) : NVME_OK;

    for (unsigned i = 0, done = 0; !status && done < len; done += pieces[i++].len)
        if (dma_write(n->bus, pieces[i].gpa, (const uint8_t *)data + done, pieces[i].len))
            status = NVME_DATA_TRANSFER_ERROR;
    return status;
}

uint16_t nvme_fetch(struct nvme *n, const struct nvme_command *c, void *data, uint32_t len)
{
    struct nvme_piece pieces[3];
    unsigned count;
    uint16_t status = nvme_map(n, c, len, pieces, &count);

    for (unsigned i = 0, done = 0; !status && done < len; done += pieces[i++].len)
        if (dma_read(n->bus, pieces[i].gpa, (uint8_t *)data + done, pieces[i].len))
            status = NVME_DATA_TRANSFER_ERROR;
    return status;
}
