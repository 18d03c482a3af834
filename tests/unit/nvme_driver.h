/* A small NVMe driver for tests: admin queues, I/O queues, commands and their completions in RAM. */
#pragma once
#include "devices/nvme/nvme.h"
#include "devices/nvme/nvme_int.h"
#include "machine_fixture.h"
#include "mock_disk.h"

#define DISK_BYTES (8u << 20)
#define ASQ 0x10000ull
#define ACQ 0x11000ull
#define IOSQ 0x20000ull /* + q * 0x4000 */
#define IOCQ 0x60000ull
#define BUFFER 0x100000ull
#define LIST 0xf0000ull
#define ADMIN_ENTRIES 32u
#define IO_ENTRIES 64u
#define SLOT 1u

struct nvme_driver {
    struct fixture *f;
    uint64_t regs;
    struct {
        unsigned tail, head, phase, entries, cq_entries;
        uint64_t sq, cq;
    } q[4];
    uint16_t cid;
};

static inline uint32_t reg(struct nvme_driver *d, unsigned at)
{
    return (uint32_t)mem_in(d->f, d->regs + at, 4);
}
static inline void set_reg(struct nvme_driver *d, unsigned at, uint32_t v)
{
    mem_out(d->f, d->regs + at, v, 4);
}
static inline void doorbell(struct nvme_driver *d, unsigned q, bool cq, uint32_t value)
{
    set_reg(d, 0x1000 + 4 * (2 * q + cq), value);
}

static inline void nvme_find(struct nvme_driver *d, struct fixture *f)
{
    *d = (struct nvme_driver){.f = f};
    d->regs = (cfg_in(f, SLOT, PCI_BAR0, 4) & ~0xfu) | (uint64_t)cfg_in(f, SLOT, PCI_BAR0 + 4, 4) << 32;
    cfg_out(f, SLOT, PCI_COMMAND, PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER, 2);
    unsigned cap = find_capability(f, SLOT, PCI_CAP_MSIX, 0);
    uint64_t table = cfg_in(f, SLOT, PCI_BAR0 + 16, 4) & ~0xfu;
    for (unsigned i = 0; i < 17; i++) {
        mem_out(f, table + 16 * i, 0xfee00000, 4);
        mem_out(f, table + 16 * i + 8, 0x40 + i, 4);
        mem_out(f, table + 16 * i + 12, 0, 4);
    }
    cfg_out(f, SLOT, cap + 2, 0x8000, 2);
}

static inline void nvme_enable(struct nvme_driver *d)
{
    memset(memory_hva(d->f->memory, ASQ, 0x2000), 0, 0x2000);
    set_reg(d, 0x24, (ADMIN_ENTRIES - 1) << 16 | (ADMIN_ENTRIES - 1));
    set_reg(d, 0x28, ASQ);
    set_reg(d, 0x2c, 0);
    set_reg(d, 0x30, ACQ);
    set_reg(d, 0x34, 0);
    set_reg(d, 0x14, 4 << 20 | 6 << 16 | 1);
    d->q[0].tail = d->q[0].head = 0;
    d->q[0].phase = 1;
    d->q[0].entries = d->q[0].cq_entries = ADMIN_ENTRIES;
    d->q[0].sq = ASQ;
    d->q[0].cq = ACQ;
}

/* Puts a command into queue q without ringing; returns its identifier. */
static inline uint16_t put_command(struct nvme_driver *d, unsigned q, struct nvme_command c)
{
    c.cid = ++d->cid;
    memory_write(d->f->memory, d->q[q].sq + 64 * d->q[q].tail, &c, sizeof c);
    d->q[q].tail = (d->q[q].tail + 1) % d->q[q].entries;
    return c.cid;
}
static inline void ring(struct nvme_driver *d, unsigned q)
{
    doorbell(d, q, false, d->q[q].tail);
}

/* Takes the next completion of queue q; false: there is none. */
static inline bool take_completion(struct nvme_driver *d, unsigned q, struct nvme_completion *e)
{
    memory_read(d->f->memory, d->q[q].cq + 16 * d->q[q].head, e, sizeof *e);
    if ((e->status & 1) != d->q[q].phase)
        return false;
    d->q[q].head = (d->q[q].head + 1) % d->q[q].cq_entries;
    d->q[q].phase ^= d->q[q].head == 0;
    doorbell(d, q, true, d->q[q].head);
    return true;
}

/* One command and its status, as an enumerator of nvme_int.h. */
static inline uint16_t command(struct nvme_driver *d, unsigned q, struct nvme_command c, uint32_t *dw0)
{
    struct nvme_completion e;
    uint16_t cid = put_command(d, q, c);

    ring(d, q);
    assert_true(take_completion(d, q, &e));
    assert_int_equal(e.cid, cid);
    assert_int_equal(e.sq_id, q);
    assert_int_equal(e.sq_head, d->q[q].tail);
    if (dw0)
        *dw0 = e.dw0;
    return e.status >> 1;
}

static inline uint16_t make_cq(struct nvme_driver *d, unsigned q, uint64_t base, unsigned entries)
{
    return command(
        d, 0, (struct nvme_command){.opcode = 5, .prp1 = base, .cdw10 = (entries - 1) << 16 | q, .cdw11 = q << 16 | 3},
        NULL);
}
static inline uint16_t make_sq(struct nvme_driver *d, unsigned q, uint64_t base, unsigned entries, unsigned cq)
{
    return command(
        d, 0, (struct nvme_command){.opcode = 1, .prp1 = base, .cdw10 = (entries - 1) << 16 | q, .cdw11 = cq << 16 | 1},
        NULL);
}

/* A pair of queues. */
static inline void nvme_queue(struct nvme_driver *d, unsigned q)
{
    d->q[q].sq = IOSQ + q * 0x4000;
    d->q[q].cq = IOCQ + q * 0x4000;
    d->q[q].entries = d->q[q].cq_entries = IO_ENTRIES;
    d->q[q].head = d->q[q].tail = 0;
    d->q[q].phase = 1;
    memset(memory_hva(d->f->memory, d->q[q].cq, 0x4000), 0, 0x4000);
    assert_int_equal(make_cq(d, q, d->q[q].cq, IO_ENTRIES), NVME_OK);
    assert_int_equal(make_sq(d, q, d->q[q].sq, IO_ENTRIES, q), NVME_OK);
}

/* Read (2) or write (1) of whole blocks at a buffer of at most two pages. */
static inline struct nvme_command transfer_command(uint8_t opcode, uint64_t block, unsigned blocks, uint64_t prp1,
                                                   uint64_t prp2)
{
    return (struct nvme_command){.opcode = opcode,
                                 .nsid = 1,
                                 .prp1 = prp1,
                                 .prp2 = prp2,
                                 .cdw10 = (uint32_t)block,
                                 .cdw11 = (uint32_t)(block >> 32),
                                 .cdw12 = blocks - 1};
}
