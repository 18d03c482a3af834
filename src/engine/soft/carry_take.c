/*
 * A copy takes what the machine that it was made of has translated (carry.c), and goes back to that once.
 */
#include "engine/soft/carry_int.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

/* --- into a copy ------------------------------------------------------------------------------------------------- */

static bool is_within(const struct cache_region *from, const struct cache_region *at, const struct cache_region *to)
{
    return at->hot >= from->hot && at->hot <= to->hot && at->cold >= from->cold && at->cold <= to->cold &&
           at->block >= from->block && at->block <= to->block && at->site >= from->site && at->site <= to->site &&
           at->exit >= from->exit && at->exit <= to->exit && at->map >= from->map && at->map <= to->map;
}

/* It is of a cache like ours, and in its regions. */
static bool fits(const struct engine *e, const struct carried *c, size_t size)
{
    if (size < offsetof(struct carried, dropped) || c->n_dropped > DROPPED_MAX ||
        size != offsetof(struct carried, dropped) + c->n_dropped * sizeof *c->dropped || c->program != e->program ||
        c->n_pages != e->n_pages || (c->takers & ~(~0ull >> (64 - e->peers->n))) || c->size != e->cache.size ||
        c->hot_end != e->cache.hot_end || memcmp(c->out, e->cache.out, sizeof c->out) != 0 ||
        c->n_regions > e->n_regions_most || c->region >= c->n_regions)
        return false;
    for (unsigned i = 0; i < c->n_regions; i++)
        if (!is_within(&e->regions[i], &c->filled[i], &e->regions[i + 1]))
            return false;
    return true;
}

static bool is_sealed(int fd, uint64_t size)
{
    const int want = F_SEAL_WRITE | F_SEAL_SHRINK | F_SEAL_GROW;
    struct stat st;

    return fstat(fd, &st) == 0 && (uint64_t)st.st_size == size && (fcntl(fd, F_GET_SEALS) & want) == want;
}

/* [from, end) of a part, whole pages. */
static int map_part(int fd, const struct part *p, uint64_t from, uint64_t end, int protection)
{
    from &= -PAGE;
    end = (end + PAGE - 1) & -PAGE;
    if (from == end)
        return 0;
    void *at = mmap(p->at + from, end - from, protection, MAP_PRIVATE | MAP_FIXED | MAP_NORESERVE, fd,
                    (off_t)(p->offset + from));
    return at == MAP_FAILED ? -errno : 0;
}

static int map_code(struct engine *e, int fd, const struct part *p, uint32_t from, uint32_t end)
{
    if (from == end)
        return 0;
    soft_code_lent(e, from, end);
    return map_part(fd, p, from, end, PROT_READ | PROT_EXEC);
}

/* What there is, and no more: a hole of the image's that is written to would take memory in it, too. */
static int map_image(struct engine *e, int fd, const struct carried *c)
{
    struct part part[PARTS];
    uint64_t slice[2];

    carry_parts(e, part);
    int err = soft_code_lend(e, fd, part[CODE].offset);
    if (!err)
        err = soft_index_young(e);
    part[SHAPES].used = c->shapes;
    for (unsigned k = HASH; k < NOTE && !err; k++)
        err = map_part(fd, &part[k], 0, part[k].used, PROT_READ | PROT_WRITE);
    for (unsigned i = 0; i < c->n_regions && !err; i++) {
        const struct cache_region *from = &e->regions[i], *to = &c->filled[i];
        for (unsigned k = BLOCKS; k <= MAPS && !err; k++) {
            carry_slice(e, c, i, k, slice);
            err = map_part(fd, &part[k], slice[0], slice[1], PROT_READ | PROT_WRITE);
        }
        if (!err)
            err = map_code(e, fd, &part[CODE], from->hot, to->hot);
        if (!err)
            err = map_code(e, fd, &part[CODE], from->cold, to->cold);
    }
    return err;
}

static int take(struct engine *e, int fd, const struct carried *c, size_t size)
{
    struct soft_vcpu *v = e->vcpu;

    if (!(e->carried = malloc(sizeof *e->carried))) /* with room for those that are dropped later */
        return -ENOMEM;
    memcpy(e->carried, c, size);
    int err = map_image(e, fd, c);
    if (err) { /* a part may be mapped: there is no way back */
        free(e->carried);
        e->carried = NULL;
        return err;
    }
    soft_regions_taken(e, c->n_regions, c->filled, c->filled_as, c->region);
    e->cross = c->cross;
    memcpy(e->hot, c->often, sizeof c->often);
    memcpy(e->indexed, c->indexed, sizeof c->indexed);
    memcpy(v->exec_bloom[1], c->exec_bloom, sizeof c->exec_bloom);
    memcpy(v->large_bloom, c->large_bloom, sizeof c->large_bloom);
    memcpy(v->large_global, c->large_global, sizeof c->large_global);
    return 0;
}

/* The tables are anybody's: nobody looks into them before the sandbox is closed (soft_carry_begin). */
int soft_set_code(struct engine *e, int fd, const struct engine_code *head)
{
    const struct carried *c = (const struct carried *)(const void *)head->bytes;
    const struct peers *p = e->peers;
    struct part part[PARTS];

    if (!carry_possible(e) || e->region || e->n_blocks || e->carried || !fits(e, c, head->n))
        return -ENOTSUP;
    if (!is_sealed(fd, carry_parts(e, part)) || c->shapes > part[SHAPES].size)
        return -EINVAL;
    int err = map_part(fd, &part[NOTE], 0, part[NOTE].size, PROT_READ | PROT_WRITE);
    for (unsigned i = 0; i < p->n && !err; i++)
        if (c->takers >> i & 1)
            err = take(p->of[i], fd, c, head->n);
    return err;
}

static void drop(struct engine *e, const struct carried *c)
{
    for (uint32_t i = 0; i < c->n_dropped; i++)
        if (c->dropped[i] < e->max_blocks && !e->blocks[c->dropped[i]].dead)
            soft_block_kill(e, &e->blocks[c->dropped[i]]);
}

void soft_carry_begin(struct engine *e)
{
    soft_translator_given(e->vcpu->translator);
    drop(e, e->carried);
    e->given = e->carried;
    e->carried = NULL;
    soft_serve(e); /* what has been written to since */
}

void soft_carry_keep(struct engine *e)
{
    free(e->given);
    e->given = NULL;
}

/* --- and back to that --------------------------------------------------------------------------------------------- */

/* Pages that have been written to are the image's again, and what is behind it is nothing. */
static void tables_again(struct engine *e)
{
    struct part part[PARTS];

    carry_parts(e, part);
    for (unsigned k = BLOCKS; k < NOTE; k++)
        if (madvise(part[k].at, part[k].size, MADV_DONTNEED))
            soft_fail(e->vcpu, "the host keeps pages that it was to give up");
    soft_index_empty_young(e);
    soft_translator_given(e->vcpu->translator);
}

static void code_again(struct engine *e, const struct carried *c)
{
    for (unsigned i = 0; i < c->n_regions; i++) {
        soft_code_lent_again(e, e->regions[i].hot, c->filled[i].hot);
        soft_code_lent_again(e, e->regions[i].cold, c->filled[i].cold);
    }
    soft_code_empty(e);
}

struct pages {
    uint64_t *page;
    uint32_t n;
};

/* Pages that it has translated from itself, some more than once.  false: there is no memory for that. */
static bool list_own_pages(const struct engine *e, struct pages *own)
{
    uint32_t n = 0;

    for (unsigned i = 0; i < e->n_regions; i++)
        n += soft_region_filled(e, i).block - e->inherited[i];
    *own = (struct pages){.page = malloc((2 * (size_t)n + 1) * sizeof *own->page)};
    for (unsigned i = 0; own->page && i < e->n_regions; i++)
        for (uint32_t k = e->inherited[i]; k < soft_region_filled(e, i).block; k++) {
            own->page[own->n++] = e->blocks[k].gpa >> 12;
            own->page[own->n++] = e->blocks[k].gpa2 >> 12;
        }
    return own->page;
}

/* Of those that the image has none of nobody needs to tell it any more. */
static void forget_own_pages(struct engine *e, const struct pages *own)
{
    for (uint32_t i = 0; i < own->n; i++)
        if (own->page[i] < e->n_pages && !e->code_granules[own->page[i]])
            soft_code_none(e, own->page[i]);
    free(own->page);
}

/* Blocks that are not dropped are as right as they were: whoever had written to their bytes would have dropped them. */
void soft_carry_again(struct engine *e)
{
    struct carried *c = e->given;

    struct pages own;

    if (!c || e->carry || !e->young || !list_own_pages(e, &own))
        return;
    e->given = NULL;
    tables_again(e);
    code_again(e, c);
    soft_regions_taken(e, c->n_regions, c->filled, c->filled_as, c->region);
    e->cross = c->cross;
    for (unsigned i = 0; i < 64; i++) {
        e->vcpu->exec_bloom[1][0][i] |= c->exec_bloom[0][i];
        e->vcpu->exec_bloom[1][1][i] |= c->exec_bloom[1][i];
    }
    drop(e, c);
    free(c);
    forget_own_pages(e, &own);
}
