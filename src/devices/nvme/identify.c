/* What the controller says of itself: Identify (5.15) and log pages (5.14.1). */
#include <stdio.h>
#include <string.h>

#include "devices/nvme/nvme_int.h"

enum { CNS_NAMESPACE = 0, CNS_CONTROLLER = 1, CNS_ACTIVE_LIST = 2, CNS_DESCRIPTORS = 3 };
enum { LOG_ERROR = 1, LOG_SMART = 2, LOG_FIRMWARE = 3 };
#define NSID_ALL 0xffffffffu
#define ERROR_ENTRY 64u
#define KELVIN 273u

static void put16(uint8_t *p, uint16_t v)
{
    pci_put16(p, v);
}

static void put64(uint8_t *p, uint64_t v)
{
    pci_put32(p, (uint32_t)v);
    pci_put32(p + 4, (uint32_t)(v >> 32));
}

/* ASCII, filled up with blanks, without a final zero (1.6). */
static void put_text(uint8_t *p, const char *text, size_t len)
{
    memset(p, ' ', len);
    memcpy(p, text, strnlen(text, len));
}

/* A stable 64-bit name of the disk, from its serial number: FNV-1a. */
static uint64_t name_hash(const struct nvme *n)
{
    uint64_t hash = 0xcbf29ce484222325ull;

    for (const char *p = n->disk->spec.serial; *p; p++)
        hash = (hash ^ (unsigned char)*p) * 0x100000001b3ull;
    return hash;
}

static void make_uuid(const struct nvme *n, uint8_t uuid[16])
{
    uint64_t hash = name_hash(n);

    memcpy(uuid, "guise-ns", 8);
    put64(uuid + 8, hash);
    uuid[6] = (uint8_t)((uuid[6] & 0x0f) | 0x80); /* version 8: made by a rule of one's own (RFC 9562) */
    uuid[8] = (uint8_t)((uuid[8] & 0x3f) | 0x80);
}

static void describe_controller(struct nvme *n, uint8_t *d)
{
    uint8_t u[16];

    put16(d + 0, 0x1b36);
    put16(d + 2, 0x1b36);
    put_text(d + 4, n->disk->spec.serial, 20);
    put_text(d + 24, "guise disk", 40);
    put_text(d + 64, "1", 8);
    d[77] = NVME_MDTS;
    put16(d + 78, 1); /* controller identifier */
    pci_put32(d + 80, 0x00010400);
    d[111] = 1;               /* an I/O controller */
    d[258] = 3;               /* aborts at a time, 0-based */
    d[259] = NVME_EVENTS - 1; /* event requests at a time, 0-based */
    d[260] = 3;               /* one firmware slot, read-only */
    put16(d + 266, KELVIN + 80);
    put16(d + 268, KELVIN + 90);
    d[512] = 0x66; /* queue entries of 64 bytes */
    d[513] = 0x44; /* and 16 */
    pci_put32(d + 516, 1);
    put16(d + 520, 1 << 2 | 1 << 3 | 1 << 4);     /* dataset management, write zeroes, select of features */
    d[525] = n->disk->read_only ? 0 : 1 | 3 << 1; /* a volatile write cache, flushed for all namespaces at once */
    make_uuid(n, u);
    snprintf((char *)d + 768, 256,
             "nqn.2014-08.org.nvmexpress:uuid:%02x%02x%02x%02x-%02x%02x-%02x%02x-%02x%02x-%02x%02x%02x%02x%02x%02x",
             u[0], u[1], u[2], u[3], u[4], u[5], u[6], u[7], u[8], u[9], u[10], u[11], u[12], u[13], u[14], u[15]);
}

static void describe_namespace(struct nvme *n, uint8_t *d)
{
    uint16_t grain = (uint16_t)(n->disk->granularity / NVME_LBA - 1); /* 0-based, in blocks */

    put64(d + 0, n->blocks);
    put64(d + 8, n->blocks);
    put64(d + 16, n->blocks);
    d[24] = 1 << 4;     /* the grains below are given */
    d[33] = 1 | 1 << 3; /* deallocated blocks read as zeroes; Write Zeroes may deallocate */
    put16(d + 64, grain);
    put16(d + 66, grain);
    put16(d + 68, grain);
    put16(d + 70, grain);
    put16(d + 72, 255); /* transfers of 128 KiB are best */
    d[99] = n->disk->read_only;
    put64(d + 120, __builtin_bswap64(name_hash(n))); /* EUI64 */
    d[130] = NVME_LBA_SHIFT;                         /* format 0, the only one */
}

static uint16_t describe_ids(struct nvme *n, uint8_t *d)
{
    d[0] = 3; /* a UUID */
    d[1] = 16;
    make_uuid(n, d + 4);
    return NVME_OK;
}

uint16_t nvme_identify(struct nvme *n, const struct nvme_command *c)
{
    uint8_t d[NVME_PAGE] = {0};

    switch (c->cdw10 & 0xff) {
    case CNS_NAMESPACE:
        if (c->nsid == NVME_NSID || c->nsid == NSID_ALL)
            describe_namespace(n, d);
        else if (!c->nsid)
            return NVME_INVALID_NAMESPACE; /* others are valid and inactive: all zeroes */
        break;
    case CNS_CONTROLLER:
        describe_controller(n, d);
        break;
    case CNS_ACTIVE_LIST:
        if (c->nsid >= 0xfffffffe)
            return NVME_INVALID_NAMESPACE;
        if (c->nsid < NVME_NSID)
            pci_put32(d, NVME_NSID);
        break;
    case CNS_DESCRIPTORS:
        if (c->nsid != NVME_NSID)
            return NVME_INVALID_NAMESPACE;
        describe_ids(n, d);
        break;
    default:
        return NVME_INVALID_FIELD;
    }
    return nvme_answer(n, c, d, sizeof d);
}

/* --- logs ------------------------------------------------------------------------------------------------- */

static void smart_log(const struct nvme *n, uint8_t *d)
{
    const struct nvme_state *s = &n->saved;

    put16(d + 1, KELVIN + 35);
    d[3] = 100; /* spare left, and when to worry */
    d[4] = 10;
    put64(d + 32, (s->sectors_read + 999) / 1000);
    put64(d + 48, (s->sectors_written + 999) / 1000);
    put64(d + 64, s->reads);
    put64(d + 80, s->writes);
    put64(d + 112, 1); /* power cycles */
}

uint16_t nvme_get_log(struct nvme *n, const struct nvme_command *c)
{
    uint8_t d[512] = {0};
    uint64_t dwords = ((c->cdw10 >> 16) | (uint64_t)(c->cdw11 & 0xffff) << 16) + 1;
    uint64_t offset = c->cdw12 | (uint64_t)c->cdw13 << 32, size = sizeof d;

    switch (c->cdw10 & 0xff) {
    case LOG_ERROR:
        size = ERROR_ENTRY; /* one entry, empty: errors of commands are in their completions */
        break;
    case LOG_SMART:
        smart_log(n, d);
        break;
    case LOG_FIRMWARE:
        d[0] = 1; /* slot 1 is active */
        put_text(d + 8, "1", 8);
        break;
    default:
        return NVME_INVALID_LOG;
    }
    if (offset % 4 || offset > size)
        return NVME_INVALID_FIELD;
    uint64_t len = dwords * 4 < size - offset ? dwords * 4 : size - offset;
    return nvme_answer(n, c, d + offset, (uint32_t)len);
}
