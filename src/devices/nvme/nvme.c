/*
 * The controller's registers (3.1) and life cycle.
 *
 * BAR 0, 16 KiB:  0x00 CAP   0x08 VS   0x14 CC   0x1c CSTS   0x24 AQA   0x28 ASQ   0x30 ACQ   0x1000 doorbells
 * BAR 4:          MSI-X
 *
 * A reset (CC.EN cleared) is over when CSTS.RDY falls: not before the disk has done what it was given, for it may still
 * write to the guest's memory.
 */
#include "devices/nvme/nvme.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "devices/nvme/nvme_int.h"
#include "memory/memory.h"

#define BAR_SIZE 0x4000u
#define BAR_MSIX 4u
#define DOORBELLS 0x1000u
#define VENDOR 0x1b36u
#define DEVICE 0x00f0u /* not the number of another implementation: drivers know faults by it */

enum { REG_CAP = 0x00, REG_VS = 0x08, REG_CC = 0x14, REG_CSTS = 0x1c, REG_AQA = 0x24, REG_ASQ = 0x28, REG_ACQ = 0x30 };
/* CAP: queue entries, contiguous queues, 20 s to become ready, the NVM command set; pages of 4 KiB only. */
#define CAP ((NVME_ENTRIES_MAX - 1) | 1ull << 16 | 40ull << 24 | 1ull << 37)
#define VERSION 0x00010400u
#define CC_WRITABLE 0x00fffff1u
enum { CC_ENABLE = 1, CC_SHUTDOWN = 3 << 14 };
enum { CSTS_READY = 1, CSTS_SHUTDOWN = 3 << 2, CSTS_SHUTTING_DOWN = 1 << 2, CSTS_SHUT_DOWN = 2 << 2 };

/* --- enable, disable, shut down --------------------------------------------------------------------------- */

void nvme_reset_finish(struct nvme *n)
{
    if (n->at_work || n->flushing)
        return;
    n->resetting = false;
    nvme_queues_reset(n);
    nvme_features_reset(n);
    n->saved.csts = 0;
}

static bool admin_queues_ok(const struct nvme *n)
{
    const struct nvme_state *s = &n->saved;
    unsigned sq = (s->aqa & 0xfff) + 1, cq = (s->aqa >> 16 & 0xfff) + 1;

    return sq >= 2 && cq >= 2 && sq <= NVME_ENTRIES_MAX && cq <= NVME_ENTRIES_MAX &&
           nvme_ring_ok(n, s->asq, sq, sizeof(struct nvme_command)) &&
           nvme_ring_ok(n, s->acq, cq, sizeof(struct nvme_completion));
}

/* Memory page size 4 KiB, NVM command set, round robin (3.1.5): what CAP offers. */
static void enable(struct nvme *n)
{
    struct nvme_state *s = &n->saved;

    if ((s->cc & 0x3ff0) || !admin_queues_ok(n)) {
        nvme_fatal(n);
        return;
    }
    s->sq[0] = (struct nvme_sq){.base = s->asq, .size = (uint16_t)((s->aqa & 0xfff) + 1), .valid = 1};
    s->cq[0] = (struct nvme_cq){
        .base = s->acq, .size = (uint16_t)((s->aqa >> 16 & 0xfff) + 1), .valid = 1, .phase = 1, .interrupts = 1};
    s->csts |= CSTS_READY;
}

static void flushed(struct disk_request *r)
{
    struct nvme *n = r->opaque;

    n->flushing = false;
    n->saved.csts = (n->saved.csts & ~(uint32_t)CSTS_SHUTDOWN) | CSTS_SHUT_DOWN;
    if (n->resetting)
        nvme_reset_finish(n);
}

static void shut_down(struct nvme *n)
{
    if (n->flushing || (n->saved.csts & CSTS_SHUTDOWN))
        return;
    n->saved.csts |= CSTS_SHUTTING_DOWN;
    n->flushing = true;
    n->shutdown = (struct disk_request){.op = DISK_FLUSH, .done = flushed, .opaque = n};
    disk_submit(n->disk, &n->shutdown);
    disk_kick(n->disk);
}

static void write_cc(struct nvme *n, uint32_t value)
{
    uint32_t before = n->saved.cc;

    if (n->resetting)
        return; /* a driver waits for CSTS.RDY */
    n->saved.cc = value & CC_WRITABLE;
    if ((value & CC_SHUTDOWN) && !(before & CC_SHUTDOWN))
        shut_down(n);
    if ((before & CC_ENABLE) && !(value & CC_ENABLE)) {
        n->resetting = true;
        nvme_reset_finish(n);
    } else if (!(before & CC_ENABLE) && (value & CC_ENABLE)) {
        enable(n);
    }
}

/* --- registers ----------------------------------------------------------------------------------------------- */

static uint32_t read_word(struct nvme *n, uint64_t offset)
{
    const struct nvme_state *s = &n->saved;

    switch (offset) {
    case REG_CAP:
        return (uint32_t)CAP;
    case REG_CAP + 4:
        return (uint32_t)(CAP >> 32);
    case REG_VS:
        return VERSION;
    case REG_CC:
        return s->cc;
    case REG_CSTS:
        return s->csts;
    case REG_AQA:
        return s->aqa;
    case REG_ASQ:
        return (uint32_t)s->asq;
    case REG_ASQ + 4:
        return (uint32_t)(s->asq >> 32);
    case REG_ACQ:
        return (uint32_t)s->acq;
    case REG_ACQ + 4:
        return (uint32_t)(s->acq >> 32);
    default:
        return 0; /* interrupt masks have no use with MSI-X; doorbells cannot be read */
    }
}

static uint64_t set_half(uint64_t old, bool high, uint32_t value)
{
    return high ? (uint32_t)old | (uint64_t)value << 32 : (old & ~0xffffffffull) | value;
}

static void write_word(struct nvme *n, uint64_t offset, uint32_t value)
{
    struct nvme_state *s = &n->saved;

    switch (offset) {
    case REG_CC:
        write_cc(n, value);
        break;
    case REG_AQA:
        s->aqa = value & 0x0fff0fff;
        break;
    case REG_ASQ:
    case REG_ASQ + 4:
        s->asq = set_half(s->asq, offset & 4, value) & ~0xfffull;
        break;
    case REG_ACQ:
    case REG_ACQ + 4:
        s->acq = set_half(s->acq, offset & 4, value) & ~0xfffull;
        break;
    default:
        break;
    }
}

static uint64_t registers_read(void *opaque, uint64_t offset, unsigned size)
{
    uint64_t at = offset & ~3ull, value = read_word(opaque, at);

    if (offset + size > at + 4)
        value |= (uint64_t)read_word(opaque, at + 4) << 32;
    return value >> 8 * (offset - at);
}

/* Registers are written whole, 64-bit ones also by halves (3.1); other accesses have no effect. */
static void registers_write(void *opaque, uint64_t offset, uint64_t value, unsigned size)
{
    struct nvme *n = opaque;

    if (size < 4 || offset % 4)
        return;
    if (offset >= DOORBELLS) {
        if (size == 4)
            nvme_doorbell(n, offset, (uint32_t)value);
        return;
    }
    write_word(n, offset, (uint32_t)value);
    if (size == 8)
        write_word(n, offset + 4, (uint32_t)(value >> 32));
}

static const struct bus_ops registers_ops = {.read = registers_read, .write = registers_write};

/* --- the device -------------------------------------------------------------------------------------------------- */

/* Waits for the disk: afterwards it neither writes to the guest's memory nor calls back. */
static void quiesce(struct nvme *n)
{
    n->resetting = true;
    disk_drain(n->disk);
    nvme_reset_finish(n);
}

static void nvme_reset(struct device *dev)
{
    struct nvme *n = dev->state;

    quiesce(n);
    n->saved.cc = n->saved.aqa = 0;
    n->saved.asq = n->saved.acq = 0;
    pci_function_reset(&n->pci);
}

static void free_all(struct nvme *n)
{
    while (n->n_requests)
        free(n->requests[--n->n_requests]);
    free(n);
}

static void nvme_destroy(struct device *dev)
{
    struct nvme *n = dev->state;

    if (!n)
        return;
    quiesce(n);
    pci_function_destroy(&n->pci);
    disk_close(n->disk);
    free_all(n);
    dev->state = NULL;
}

static int nvme_create(struct device *dev, const struct device_env *env, const void *config)
{
    static const struct pci_identity id = {.vendor = VENDOR,
                                           .device = DEVICE,
                                           .subsystem_vendor = VENDOR,
                                           .subsystem = DEVICE,
                                           .class_code = 0x010802,
                                           .revision = 1};
    const struct nvme_config *c = config;
    struct nvme *n = calloc(1, sizeof *n);

    if (!n)
        return -ENOMEM;
    n->free = nvme_request_take(n); /* one at least, so that there is always one that comes back */
    int err = !n->free ? -ENOMEM : !env->pci ? -EINVAL : 0;
    if (!err) {
        n->bus = env->bus;
        n->disk = c->disk;
        n->blocks = c->disk->size >> NVME_LBA_SHIFT;
        nvme_queues_reset(n);
        nvme_features_reset(n);
        pci_function_init(&n->pci, &n->saved.pci, "nvme", &id);
        pci_bar_init(&n->pci, 0, PCI_BAR_MEM64, BAR_SIZE, &registers_ops, n);
        pci_msix_init(&n->pci, BAR_MSIX, NVME_QUEUES);
        err = pci_add(env->pci, &n->pci);
    }
    if (err) {
        free_all(n);
        return err;
    }
    dev->state = n;
    return 0;
}

/* Waits for what is at work, so that it is part of the saved memory and of the disk; no new command is taken. */
static void stop(struct nvme *n)
{
    n->stopped = true;
    disk_drain(n->disk);
    n->stopped = false;
}

static void nvme_pre_save(struct device *dev)
{
    struct nvme *n = dev->state;

    stop(n);
    nvme_admin_resume(n); /* deletions that waited for it */
    nvme_queues_save(n);
}

static void nvme_post_restore(struct device *dev)
{
    struct nvme *n = dev->state;

    n->resetting = false; /* that was the other state's */
    n->restoring = true;
    stop(n);
    n->restoring = false;
    nvme_queues_restored(n);
    pci_function_restored(&n->pci);
    nvme_run(n);
}

const struct device_class nvme_class = {
    .type = "nvme",
    .create = nvme_create,
    .reset = nvme_reset,
    .destroy = nvme_destroy,
    .save_offset = offsetof(struct nvme, saved),
    .save_size = sizeof(struct nvme_state),
    .pre_save = nvme_pre_save,
    .post_restore = nvme_post_restore,
};
