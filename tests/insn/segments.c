/* The segments of code that is not 64-bit: Linux's flat ones, and others, as of programs older than it. */
#include <asm/ldt.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "insn.h"

enum { DATA = MODIFY_LDT_CONTENTS_DATA, DOWN = MODIFY_LDT_CONTENTS_STACK, CODE = MODIFY_LDT_CONTENTS_CODE };
enum { WRITE, READ };
enum { SMALL, BIG };
enum { BYTES, PAGES };

static const struct local {
    uint32_t base, limit;
    uint8_t contents, read_only, big, in_pages;
} local[] = {
    /* as 32-bit programs have in FS and GS */
    {0x1000, 0xfffff, DATA, WRITE, BIG, PAGES},
    {0x01230000, 0xfffff, DATA, WRITE, BIG, PAGES},
    /* code: the pages of code are the last of the first one, and in the last one lie round the end of linear space */
    {(uint32_t)CODE_LOW - 0xe000, 0xffff, CODE, WRITE, SMALL, BYTES},
    {(uint32_t)CODE_LOW - 0xc123, 0x1ffff, CODE, WRITE, SMALL, BYTES},
    {(uint32_t)CODE_LOW - 0x1000, 0x2fff, CODE, WRITE, BIG, BYTES},
    {0xf0000000, 0xfffff, CODE, WRITE, BIG, PAGES},
    /* stacks: the first one is whole where sp goes round */
    {(uint32_t)DATA_LOW + 0x1000, 0xffff, DATA, WRITE, SMALL, BYTES},
    {(uint32_t)DATA_LOW - 0x321, 0x2ffff, DATA, WRITE, BIG, BYTES},
    {(uint32_t)DATA_LOW - 0x4321, 0x13000, DOWN, WRITE, BIG, BYTES},
    {(uint32_t)DATA_LOW + 0x1000, 0x1fff, DOWN, WRITE, SMALL, BYTES},
    /* data */
    {(uint32_t)DATA_LOW, 0xffff, DATA, WRITE, SMALL, BYTES},
    {(uint32_t)DATA_LOW - 0x810, 0x27ff, DATA, WRITE, BIG, BYTES},
    {(uint32_t)DATA_LOW, 0xffff, DATA, READ, SMALL, BYTES},
    {(uint32_t)DATA_LOW, 0x0fff, DOWN, WRITE, SMALL, BYTES},
    {(uint32_t)DATA_LOW - 3, 0x0fff, DOWN, WRITE, BIG, BYTES},
    {0xf0001000, 0xfffff, DATA, WRITE, BIG, PAGES},
};
enum { N_LOCAL = sizeof local / sizeof local[0], FIRST_CODE = 2, FIRST_BIG_CODE = 4, FIRST_STACK = 6, FIRST_DATA = 10 };
enum { FLAT_CODE = 0x23, FLAT_DATA = 0x2b };

static uint16_t selector_of(unsigned n)
{
    return (uint16_t)(n << 3 | 7);
}

struct segment_in segment_in(uint16_t selector)
{
    if (selector == FLAT_CODE || selector == FLAT_DATA)
        return (struct segment_in){0, 0xffffffff, selector == FLAT_CODE ? 0xcfb : 0xcf3};
    if ((selector & 7) != 7)
        return (struct segment_in){0};
    const struct local *s = &local[selector >> 3];
    uint16_t attr = (uint16_t)(0xf1 | !s->read_only << 1 | s->contents << 2 | s->big << 10 | s->in_pages << 11);
    return (struct segment_in){s->base, s->in_pages ? s->limit << 12 | 0xfff : s->limit, attr};
}

bool segment_is_big(uint16_t selector)
{
    return segment_in(selector).attr >> 10 & 1;
}

bool segments_create(void)
{
    for (unsigned n = 0; n < N_LOCAL; n++) {
        const struct local *s = &local[n];
        struct user_desc d = {.entry_number = n,
                              .base_addr = s->base,
                              .limit = s->limit,
                              .seg_32bit = s->big,
                              .contents = s->contents,
                              .read_exec_only = s->read_only,
                              .limit_in_pages = s->in_pages,
                              .useable = 1};
        if (syscall(SYS_modify_ldt, 0x11, &d, sizeof d))
            return false;
    }
    return true;
}

static uint16_t pick(struct rng *r, unsigned first, unsigned end)
{
    return selector_of(first + rng_below(r, end - first));
}

static void pick_flat(struct rng *r, bool created, uint16_t seg[6])
{
    seg[IN_CS] = FLAT_CODE;
    seg[IN_SS] = seg[IN_DS] = seg[IN_ES] = FLAT_DATA;
    seg[IN_FS] = created && rng_percent(r, 90) ? selector_of(0) : 0;
    seg[IN_GS] = created && rng_percent(r, 90) ? selector_of(1) : 0;
}

void segments_pick(struct rng *r, bool narrow, bool flat, bool created, uint16_t seg[6])
{
    pick_flat(r, created, seg);
    if (!narrow && (flat || !created || rng_percent(r, 60)))
        return;
    if (narrow)
        seg[IN_CS] = rng_percent(r, 80) ? selector_of(FIRST_CODE) : selector_of(FIRST_CODE + 1);
    else if (rng_percent(r, 50))
        seg[IN_CS] = pick(r, FIRST_BIG_CODE, FIRST_STACK);
    if (narrow || rng_percent(r, 50))
        seg[IN_SS] = rng_percent(r, 60) ? selector_of(FIRST_STACK) : pick(r, FIRST_STACK, FIRST_DATA);
    for (unsigned n = 0; n < 6; n++)
        if (n != IN_CS && n != IN_SS && rng_percent(r, narrow ? 90 : 50))
            seg[n] = rng_percent(r, 50)   ? selector_of(FIRST_DATA)
                     : rng_percent(r, 95) ? pick(r, FIRST_CODE, N_LOCAL)
                                          : 0;
}
