/* Edge values, and the memory that tests run in. */
#include <string.h>

#include "insn.h"
#include "values.h"

/* ---- values -------------------------------------------------------------------------------------- */
const uint64_t edges[N_EDGES] = {
    0,
    1,
    2,
    0x7f,
    0x80,
    0xff,
    0x100,
    0x7fff,
    0x8000,
    0xffff,
    0x10000,
    0x7fffffff,
    0x80000000,
    0xffffffff,
    0x100000000,
    0x7fffffffffffffff,
    0x8000000000000000,
    0xffffffffffffffff,
    0xfffffffffffffffe,
    0xffffffff80000000,
    0xffffffffffff8000,
    0xffffffffffffff80,
    0xaaaaaaaaaaaaaaaa,
    0x5555555555555555,
};
static const uint32_t edges_f32[] = {
    0,          0x80000000, 0x3f800000, 0xbf800000, 0x7f800000, 0xff800000, 0x7fc00000, 0xffc00000,
    0x7f800001, 0x7fbfffff, 0x00000001, 0x80000001, 0x007fffff, 0x00800000, 0x7f7fffff, 0xff7fffff,
    0x4f000000, 0xcf000000, 0x5f000000, 0x3f000000, 0x4b000000, 0x33800000, 0x40490fdb,
};
static const uint64_t edges_f64[] = {
    0,
    0x8000000000000000,
    0x3ff0000000000000,
    0xbff0000000000000,
    0x7ff0000000000000,
    0xfff0000000000000,
    0x7ff8000000000000,
    0xfff8000000000000,
    0x7ff0000000000001,
    0x7ff7ffffffffffff,
    1,
    0x8000000000000001,
    0x000fffffffffffff,
    0x0010000000000000,
    0x7fefffffffffffff,
    0xffefffffffffffff,
    0x43e0000000000000,
    0xc3e0000000000000,
    0x41dfffffffc00000,
    0xc1e0000000000000,
    0x3fe0000000000000,
    0x3ca0000000000000,
    0x47efffffe0000000,
    0x36a0000000000000,
    0x400921fb54442d18,
};
const struct f80 edges_f80[N_EDGES_F80] = {
    {0, 0},
    {0, 0x8000},
    {0x8000000000000000, 0x3fff},
    {0x8000000000000000, 0xbfff},
    {0x8000000000000000, 0x7fff},
    {0x8000000000000000, 0xffff},
    {0xc000000000000000, 0x7fff},
    {0xc000000000000000, 0xffff},
    {0xa000000000000000, 0x7fff},
    {1, 0},
    {0x7fffffffffffffff, 0},
    {0x8000000000000000, 0} /* pseudo-denormal */,
    {0x8000000000000000, 1},
    {0xffffffffffffffff, 0x7ffe},
    {0, 0x7fff} /* pseudo-infinity */,
    {0x1234, 0x3fff} /* unnormal */,
    {0x8000000000000000, 0x403e},
    {0xc90fdaa22168c235, 0x4000},
    {0x9a209a84fbcff799, 0x3ffd},
    {0xde0b6b3a76400000, 0x403a},
    {0x8000000000000000, 0x3fbf},
    {0x8000000000000000, 0x7ffd},
};
#define COUNT(a) ((uint32_t)(sizeof(a) / sizeof(a)[0]))

void fill(struct rng *r, uint8_t *p, size_t len, enum value_kind kind)
{
    static const uint8_t step[V_KINDS] = {8, 1, 2, 4, 8, 4, 8, 4, 64};
    for (size_t n = 0; n < len; n += step[kind]) {
        size_t take = len - n < step[kind] ? len - n : step[kind];
        uint64_t v = rng_next(r);
        if (kind == V_F32) {
            uint32_t e = (uint32_t)(v >> 40) % 4 ? edges_f32[(uint32_t)v % COUNT(edges_f32)]
                                                 : 0x3f800000 + ((uint32_t)v & 0x83ffffff) - 0x1000000;
            memcpy(p + n, &e, take);
        } else if (kind == V_F64) {
            uint64_t e = (uint32_t)(v >> 40) % 4 ? edges_f64[(uint32_t)v % COUNT(edges_f64)]
                                                 : 0x3ff0000000000000 + (v & 0x807fffffffffffff) - 0x40000000000000;
            memcpy(p + n, &e, take);
        } else if (kind == V_BYTE) {
            memset(p + n, (int)v, take);
        } else {
            if (kind == V_SMALL)
                v = (uint64_t)(int64_t)(int)((uint32_t)v % 65) - 32;
            else if (kind != V_RANDOM)
                v = edges[(uint32_t)v % COUNT(edges)];
            memcpy(p + n, &v, take);
        }
    }
}

/* ---- memory ---------------------------------------------------------------------------------------- */
const struct region regions[N_REGIONS] = {
    {DATA_LOW, 2, REGION_RW, 0},   {DATA_LOW + 2 * PAGE, 1, REGION_RO, 2}, {DATA_LOW + 3 * PAGE, 1, REGION_RW, 3},
    {DATA_STACK, 2, REGION_RW, 4}, {DATA_HIGH, 2, REGION_RW, 6},           {CODE_LOW, 2, REGION_RX, 8},
    {CODE_HIGH, 2, REGION_RX, 10},
};

int64_t arena_offset(uint64_t gva, uint64_t *left)
{
    for (unsigned n = 0; n < N_REGIONS; n++) {
        uint64_t off = gva - regions[n].gva, size = regions[n].pages * PAGE;
        if (off < size) {
            if (left)
                *left = size - off;
            return (int64_t)(regions[n].arena_page * PAGE + off);
        }
    }
    return -1;
}

void arena_fill(uint8_t *arena)
{
    struct rng r = {42};
    for (size_t n = 0; n < ARENA_DATA_PAGES * PAGE; n += 128)
        fill(&r, arena + n, 128, (enum value_kind)rng_below(&r, V_KINDS));
    memset(arena + ARENA_DATA_PAGES * PAGE, 0xcc, (ARENA_PAGES - ARENA_DATA_PAGES) * PAGE);
    /* Images that fxrstor and xrstor take; the test's patch varies the header. */
    uint8_t *fx = arena + IMAGE_FXSAVE, *xs = arena + IMAGE_XSAVE;
    uint16_t fcw = 0x37f;
    uint32_t mxcsr = 0x1f80;
    for (unsigned k = 0; k < 2; k++, fx = xs) {
        memcpy(fx, &fcw, 2);
        memset(fx + 6, 0, 18);
        memcpy(fx + 24, &mxcsr, 4);
        memset(fx + 416, 0, 96);
    }
    memset(xs + 512, 0, 64);
    xs[512] = 7;
}

static void patch_in(uint8_t *arena, const uint8_t *pristine, const struct patch *p, bool back)
{
    for (uint32_t n = 0; n < p->len; n++) {
        int64_t off = arena_offset(p->addr + n, NULL);
        if (off >= 0 && off < (int64_t)(ARENA_DATA_PAGES * PAGE))
            arena[off] = back ? pristine[off] : p->bytes[n];
    }
}

static void patch_all(struct arena_view *v, const struct test *t, bool back)
{
    for (unsigned k = 0; k < N_PATCHES; k++) {
        patch_in(v->live, v->pristine, &t->patch[k], back);
        patch_in(v->shadow, v->pristine, &t->patch[k], back);
    }
}

void arena_prepare(struct arena_view *v, const struct test *t)
{
    patch_all(v, t, false);
}

static uint64_t arena_gva(size_t off)
{
    for (unsigned n = 0; n < N_REGIONS; n++)
        if (off - regions[n].arena_page * PAGE < regions[n].pages * PAGE)
            return regions[n].gva + (off - regions[n].arena_page * PAGE);
    return 0;
}

/* Code pages are not compared: they are not writable and the harness rewrites them through an alias. */
void arena_collect(struct arena_view *v, const struct test *t, struct result *r)
{
    r->n_diffs = 0;
    r->diff_hash = 0;
    for (unsigned page = 0; page < ARENA_DATA_PAGES; page++) {
        uint64_t *live = (uint64_t *)(v->live + page * PAGE), *shadow = (uint64_t *)(v->shadow + page * PAGE);
        for (unsigned n = 0; n < PAGE / 8; n += 8) {
            uint64_t any = 0;
            for (unsigned k = 0; k < 8; k++)
                any |= live[n + k] ^ shadow[n + k];
            for (unsigned k = n; any && k < n + 8; k++) {
                if (live[k] == shadow[k])
                    continue;
                if (r->n_diffs < N_DIFFS) {
                    r->diff[r->n_diffs].gva = arena_gva(page * PAGE + k * 8);
                    r->diff[r->n_diffs].value = live[k];
                }
                r->n_diffs++;
                r->diff_hash = (r->diff_hash ^ live[k] ^ (page * PAGE + k)) * 0x9e3779b97f4a7c15ull +
                               (r->diff_hash >> 31);
                live[k] = shadow[k];
            }
        }
    }
    patch_all(v, t, true);
}

void xstate_layout_init(struct xstate_layout *l)
{
    uint32_t a, b, c, d, lo, hi;
    __asm__("xgetbv" : "=a"(lo), "=d"(hi) : "c"(0));
    memset(l, 0, sizeof *l);
    l->bits = lo & XSTATE_BITS;
    l->size = 576;
    for (unsigned n = 2; n < 8; n++) {
        if (!(l->bits >> n & 1))
            continue;
        __asm__("cpuid" : "=a"(a), "=b"(b), "=c"(c), "=d"(d) : "a"(0xd), "c"(n));
        l->part[n].offset = b, l->part[n].size = a;
        if (a + b > l->size)
            l->size = a + b;
    }
}
