/*
 * Pages of which a copy is executed: code that asks which processor it runs on.
 *
 * Linux's vDSO has getcpu() beside the clock, in a page that every program reads the time from.  It asks by RDPID, or
 * by the limit of a segment (LSL) where there is none: a processor cannot be told to trap either, and the answer would
 * be the number of the host's.  So what is executed is a copy of the page in which that one instruction faults, and
 * tier 1 answers; it runs what the guest's page says.  A program that reads the page finds the copy's two bytes there:
 * the vDSO is the only code known to have these, and nobody has a use for its instructions but to execute them.
 *
 * The copies lie behind the RAM in its file.  A page that has one is not writable for programs that run directly;
 * whoever else has written to it is noticed before the next of them runs.
 */
#include "engine/soft/direct.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>

#define PAGE 4096u

_Static_assert(SOFT_CPUS_MAX *COPIES *PAGE <= MEMORY_SPARE, "each vCPU has some");

/* Where they are in the file of the RAM. */
static uint64_t behind(const struct direct *d)
{
    return d->engine->config.memory->size + (uint64_t)d->engine->index * COPIES * PAGE;
}

int copies_start(struct direct *d)
{
    const struct memory *m = d->engine->config.memory;
    void *p = mmap(NULL, COPIES * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, m->fd, (off_t)behind(d));
    if (p == MAP_FAILED)
        return -errno;
    d->spare = p;
    return 0;
}

void copies_stop(struct direct *d)
{
    if (d->spare)
        munmap(d->spare, COPIES * PAGE);
    d->spare = NULL;
}

/* mov reg, 0x7b, the selector that Linux gives to programs for this; then rdpid, or lsl reg, reg.  In the vDSO's list
 * of instructions that the kernel has put in according to the processor rdpid is behind a rdtscp. */
bool copies_can(const uint8_t *page, const uint8_t *p)
{
    static const uint8_t selector[] = {0x7b, 0, 0, 0}, rdtscp[] = {0x0f, 0x01, 0xf9};
    bool rdpid = p > page && p[-1] == 0xf3 && p[1] == 0xc7 && p[2] >= 0xf8;
    const uint8_t *mov = p - rdpid - 5;
    if (mov < page || p + 3 > page + PAGE || !(rdpid || (p[1] == 0x03 && p[2] >= 0xc0)))
        return false;
    if (rdpid && memcmp(mov + 2, rdtscp, sizeof rdtscp) == 0)
        return true;
    return (mov[0] & 0xf8) == 0xb8 && memcmp(mov + 1, selector, sizeof selector) == 0 &&
           (rdpid || (mov[0] & 7) == (p[2] & 7));
}

static const uint8_t *page_at(const struct direct *d, uint64_t gpa)
{
    return d->engine->config.memory->base + gpa;
}

/* ud2 instead of what asks. */
static void change(uint8_t *copy)
{
    const uint8_t *end = copy + PAGE - 1;
    for (uint8_t *p = copy; (p = (uint8_t *)scan_special(p, end)); p++)
        if (copies_can(copy, p)) {
            p -= p[1] == 0xc7;
            p[0] = 0x0f, p[1] = 0x0b;
        }
}

uint64_t copies_offset(struct direct *d, uint64_t gpa, const uint8_t *page)
{
    struct page_copy *c = NULL;
    for (unsigned i = 0; i < COPIES; i++) {
        if (d->copies[i].used && d->copies[i].gpa == gpa) {
            c = &d->copies[i];
            break;
        }
        if (!d->copies[i].used && !c)
            c = &d->copies[i];
    }
    if (!c)
        return 0;
    uint64_t at = (uint64_t)(c - d->copies) * PAGE;
    if (!c->used) {
        c->used = true;
        c->gpa = gpa;
        memcpy(c->original, page, PAGE);
        memcpy(d->spare + at, page, PAGE);
        change(d->spare + at);
        soft_direct_code(d->engine, gpa >> 12); /* mappings that can write to it go */
    }
    return behind(d) + at;
}

bool copies_has(const struct direct *d, uint64_t gpa, uint64_t size)
{
    for (unsigned i = 0; i < COPIES; i++)
        if (d->copies[i].used && d->copies[i].gpa - gpa < size)
            return true;
    return false;
}

/* By words: memcmp, which has no vector registers here, takes ten times as long, and this is done for each exit. */
static bool same_page(const uint64_t *p, const void *page)
{
    const uint64_t *q = page;
    uint64_t differs = 0;
    for (unsigned i = 0; i < PAGE / 8; i += 4)
        differs |= (p[i] ^ q[i]) | (p[i + 1] ^ q[i + 1]) | (p[i + 2] ^ q[i + 2]) | (p[i + 3] ^ q[i + 3]);
    return !differs;
}

void copies_check(struct direct *d)
{
    for (unsigned i = 0; i < COPIES; i++) {
        struct page_copy *c = &d->copies[i];
        if (!c->used || same_page(c->original, page_at(d, c->gpa)))
            continue;
        c->used = false;
        for (unsigned k = 0; k < DIRECT_SLOTS; k++)
            d->slots[k].clear = true;
    }
}
