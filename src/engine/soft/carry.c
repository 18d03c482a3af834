/*
 * Translations that copies of a machine have in common: what a machine has translated when it is forked (vm/fork.h) is
 * right for its copies, whose memory is the same, and code in the cache has no address of the host's in it, nor have
 * the tables.  So all of it goes into a file of memory, the image, which every copy maps and nobody can write to:
 *
 *     tables   private mappings: what a copy writes to becomes its own, by the host's pages
 *     code     the image's pages instead of its own in the mapping that is executed, until one of them is patched: then
 *              it is copied to the cache's own file and that page is moved there, from a second executable mapping of
 *              that (the sandbox forbids new ones); the other mapping of the code, that is written to, is of its own
 *              file from the beginning
 *
 *     image    code   blocks   incoming   sites   exits   maps   hash   page_blocks   code_granules   kernel_pages
 *              shapes, each with room for all of it, at a multiple of 4096
 *     head     struct carried, and the numbers of blocks that have been dropped since the image was made
 *
 * What copies have to have is what the forked machine had when it was forked.  The image is made at the first fork,
 * which takes milliseconds; what is translated afterwards copies translate themselves, what is dropped is listed.  It
 * is made anew when it may not be used any more: something was evicted, or kernel code of different pages, whose chains
 * are valid as long as no TLB is flushed, has been unchained; or when much has happened.
 *
 * Helpers' addresses are told by their distance from one of them (struct site), which is the same in every process of
 * the same program: anything else is refused, as are more vCPUs than one.
 */
#include "engine/soft/soft_int.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/file.h"

#define PAGE 4096ull
#define MOST (64u << 20) /* of a cache: beyond that, it takes longer than translating what is needed */
#define DROPPED_MAX 4096u
#define NEW_MAX 8192u /* blocks */

struct carried {
    uint64_t program;       /* soft_program */
    uint64_t n_pages;       /* of RAM */
    uint32_t size, hot_end; /* of the cache */
    uint32_t n_regions;     /* in use */
    uint32_t region;        /* that is being filled */
    uint32_t cross;         /* struct engine */
    uint64_t shapes;        /* bytes of them in use */
    uint32_t out[OUT_COUNT];
    struct cache_region filled[REGIONS_MAX]; /* up to where they are */
    uint32_t filled_as[REGIONS_MAX];
    uint64_t often[INDEXED_BITS / 64], indexed[INDEXED_BITS / 64];
    uint64_t exec_bloom[2][64], large_bloom[2][2], large_global[2][2], large_ever[2][2]; /* struct soft_vcpu */
    uint32_t n_dropped;
    uint32_t dropped[DROPPED_MAX];
};

struct carry {
    int fd;
    bool lost; /* not to be handed out any more; who stands by may still do so (vm->parked_code) */
    struct carried head;
};

uint64_t soft_program(const struct engine_config *config)
{
    struct stat st = {0};
    uint64_t h = 0xcbf29ce484222325;

    stat("/proc/self/exe", &st);
    const uint64_t words[] = {(uint64_t)st.st_dev,
                              (uint64_t)st.st_ino,
                              (uint64_t)st.st_size,
                              (uint64_t)st.st_mtim.tv_sec,
                              (uint64_t)st.st_mtim.tv_nsec,
                              config->precise_flags | config->always_hot << 1 | config->timing << 2 |
                                  (uint64_t)config->log_items << 8,
                              config->stress};
    for (size_t i = 0; i < sizeof words / sizeof *words; i++)
        h = (h ^ words[i]) * 0x9e3779b97f4a7c15, h ^= h >> 29;
    return h;
}

/* --- the image ---------------------------------------------------------------------------------------------------- */

enum { CODE, BLOCKS, INCOMING, SITES, EXITS, MAPS, HASH, PAGES, GRANULES, KERNEL, SHAPES, PARTS };

/* A table, and where it is in the image. */
struct part {
    uint8_t *at;
    uint64_t size, offset;
    uint64_t used; /* of HASH and what is behind it, whose beginning is in use */
};

/* Returns the image's size. */
static uint64_t list_parts(const struct engine *e, struct part part[PARTS])
{
    uint64_t offset = 0;

    part[CODE] = (struct part){e->cache.rx, e->cache.size};
    part[BLOCKS] = (struct part){(uint8_t *)e->blocks, e->max_blocks * sizeof *e->blocks};
    part[INCOMING] = (struct part){(uint8_t *)e->incoming, e->max_blocks * sizeof *e->incoming};
    part[SITES] = (struct part){(uint8_t *)e->sites, e->max_sites * sizeof *e->sites};
    part[EXITS] = (struct part){(uint8_t *)e->exits, e->max_exits * sizeof *e->exits};
    part[MAPS] = (struct part){(uint8_t *)e->maps, e->max_maps * sizeof *e->maps};
    part[HASH] = (struct part){(uint8_t *)e->hash, sizeof *e->hash << HASH_BITS};
    part[PAGES] = (struct part){(uint8_t *)e->page_blocks, e->n_pages * sizeof *e->page_blocks};
    part[GRANULES] = (struct part){(uint8_t *)e->code_granules, e->n_pages * sizeof *e->code_granules};
    part[KERNEL] = (struct part){(uint8_t *)e->kernel_pages, sizeof *e->kernel_pages};
    for (unsigned k = HASH; k < SHAPES; k++)
        part[k].used = part[k].size;
    part[SHAPES].at = soft_translator_shapes(e->vcpu->translator, &part[SHAPES].size, &part[SHAPES].used);
    for (unsigned k = 0; k < PARTS; k++) {
        part[k].offset = offset;
        offset += (part[k].size + PAGE - 1) & -PAGE;
    }
    return offset;
}

/* What a region has of each part; of the code this is the hot half. */
static void region_slice(const struct engine *e, const struct carried *c, unsigned i, unsigned k, uint64_t slice[2])
{
    const struct cache_region *r[2] = {&e->regions[i], &c->filled[i]};

    for (unsigned j = 0; j < 2; j++)
        slice[j] = k == CODE       ? r[j]->hot
                   : k == BLOCKS   ? r[j]->block * sizeof *e->blocks
                   : k == INCOMING ? r[j]->block * sizeof *e->incoming
                   : k == SITES    ? r[j]->site * sizeof *e->sites
                   : k == EXITS    ? r[j]->exit * sizeof *e->exits
                                   : r[j]->map * sizeof *e->maps;
}

static bool can_be_carried(const struct engine *e)
{
    return e->peers->n == 1 && !e->config.stress && e->cache.size <= MOST;
}

/* --- from the machine that is forked ----------------------------------------------------------------------------- */

/* [from, end) of a part, whole pages; those that are empty take no memory. */
static int write_part(int fd, const struct part *p, uint64_t from, uint64_t end)
{
    from &= -PAGE;
    return fd_write_sparse(fd, p->at + from, end - from, p->offset + from);
}

static void fill_head(struct engine *e, struct carried *c)
{
    const struct soft_vcpu *v = e->vcpu;

    *c = (struct carried){.program = e->program,
                          .n_pages = e->n_pages,
                          .size = e->cache.size,
                          .hot_end = e->cache.hot_end,
                          .n_regions = e->n_regions,
                          .region = e->region,
                          .cross = e->cross};
    for (unsigned i = 0; i < e->n_regions; i++)
        c->filled[i] = soft_region_filled(e, i);
    memcpy(c->filled_as, e->filled_as, sizeof c->filled_as);
    memcpy(c->out, e->cache.out, sizeof c->out);
    memcpy(c->often, e->hot, sizeof c->often);
    memcpy(c->indexed, e->indexed, sizeof c->indexed);
    memcpy(c->exec_bloom, v->exec_bloom[1], sizeof c->exec_bloom);
    memcpy(c->large_bloom, v->large_bloom, sizeof c->large_bloom);
    memcpy(c->large_global, v->large_global, sizeof c->large_global);
    memcpy(c->large_ever, v->large_ever, sizeof c->large_ever);
}

static int write_image(struct engine *e, int fd, struct carried *c)
{
    struct part part[PARTS];
    uint64_t slice[2];
    int err = ftruncate(fd, (off_t)list_parts(e, part)) ? -errno : 0;

    c->shapes = part[SHAPES].used;
    for (unsigned i = 0; i < e->n_regions && !err; i++) {
        for (unsigned k = CODE; k <= MAPS && !err; k++) {
            region_slice(e, c, i, k, slice);
            err = write_part(fd, &part[k], slice[0], slice[1]);
        }
        if (!err)
            err = write_part(fd, &part[CODE], e->regions[i].cold, c->filled[i].cold);
    }
    for (unsigned k = HASH; k < PARTS && !err; k++)
        err = write_part(fd, &part[k], 0, part[k].used);
    if (!err && fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL))
        err = -errno;
    return err;
}

void soft_carry_keep(struct engine *e)
{
    free(e->given);
    e->given = NULL;
}

void soft_carry_lost(struct engine *e)
{
    if (e->carry)
        e->carry->lost = true;
}

void soft_carry_forget(struct engine *e)
{
    if (!e->carry)
        return;
    close(e->carry->fd);
    free(e->carry);
    e->carry = NULL;
}

static bool is_in(const struct engine *e, const struct carried *c, uint32_t number)
{
    for (unsigned i = 0; i < c->n_regions; i++)
        if (number >= e->regions[i].block && number < c->filled[i].block)
            return true;
    return false;
}

/* false: there is no room for it. */
static bool note_dropped(const struct engine *e, struct carried *c, const struct block *b)
{
    const uint32_t number = soft_block_number(e, b);

    if (!is_in(e, c, number))
        return true;
    if (c->n_dropped == DROPPED_MAX)
        return false;
    c->dropped[c->n_dropped++] = number;
    return true;
}

void soft_carry_dropped(struct engine *e, const struct block *b)
{
    if (e->carry && !note_dropped(e, &e->carry->head, b))
        e->carry->lost = true;
    if (e->given && !note_dropped(e, e->given, b))
        soft_carry_keep(e);
}

/* It is not valid; or much is new, which copies would have to translate again.  (The region is the same: going on to
 * the next one evicts.) */
static bool is_old(const struct engine *e)
{
    return e->carry->lost || e->n_blocks - e->carry->head.filled[e->carry->head.region].block > NEW_MAX;
}

/* fd is taken over. */
static int make_image(struct engine *e, int fd)
{
    struct carry *carry = calloc(1, sizeof *carry);

    if (!carry)
        return -ENOMEM;
    soft_index_settle(e);
    fill_head(e, &carry->head);
    carry->fd = fd;
    int err = write_image(e, fd, &carry->head);
    if (err)
        free(carry);
    else
        e->carry = carry;
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
}

int soft_get_code(struct engine *e, int fd, struct engine_code *head)
{
    int err = can_be_carried(e) ? 0 : -ENOTSUP;

    if (!err && e->course)
        soft_course_end(e);
    if (!err && e->carried)
        soft_carry_begin(e);
    if (!err && e->carry && is_old(e))
        soft_carry_forget(e);
    if (err || e->carry)
        close(fd);
    else if ((err = make_image(e, fd)))
        close(fd);
    if (err)
        return err;
    const struct carried *c = &e->carry->head;
    const size_t size = offsetof(struct carried, dropped) + c->n_dropped * sizeof *c->dropped;
    *head = (struct engine_code){malloc(size), size};
    if (!head->bytes)
        return -ENOMEM;
    memcpy(head->bytes, c, size);
    return e->carry->fd;
}

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
        c->n_pages != e->n_pages || c->size != e->cache.size || c->hot_end != e->cache.hot_end ||
        memcmp(c->out, e->cache.out, sizeof c->out) != 0 || c->n_regions > e->n_regions_most ||
        c->region >= c->n_regions)
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

    if (!is_sealed(fd, list_parts(e, part)) || c->shapes > part[SHAPES].size)
        return -EINVAL;
    int err = soft_code_lend(e, fd, part[CODE].offset);
    if (!err)
        err = soft_index_young(e);
    part[SHAPES].used = c->shapes;
    for (unsigned k = HASH; k < PARTS && !err; k++)
        err = map_part(fd, &part[k], 0, part[k].used, PROT_READ | PROT_WRITE);
    for (unsigned i = 0; i < c->n_regions && !err; i++) {
        const struct cache_region *from = &e->regions[i], *to = &c->filled[i];
        for (unsigned k = BLOCKS; k <= MAPS && !err; k++) {
            region_slice(e, c, i, k, slice);
            err = map_part(fd, &part[k], slice[0], slice[1], PROT_READ | PROT_WRITE);
        }
        if (!err)
            err = map_code(e, fd, &part[CODE], from->hot, to->hot);
        if (!err)
            err = map_code(e, fd, &part[CODE], from->cold, to->cold);
    }
    return err;
}

/* The tables are anybody's: nobody looks into them before the sandbox is closed (soft_carry_begin). */
int soft_set_code(struct engine *e, int fd, const struct engine_code *head)
{
    const struct carried *c = (const struct carried *)(const void *)head->bytes;
    struct soft_vcpu *v = e->vcpu;

    if (!can_be_carried(e) || e->region || e->n_blocks || e->carried || !fits(e, c, head->n))
        return -ENOTSUP;
    if (!(e->carried = malloc(sizeof *e->carried))) /* with room for those that are dropped later */
        return -ENOMEM;
    memcpy(e->carried, c, head->n);
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
    memcpy(v->large_ever, c->large_ever, sizeof c->large_ever);
    return 0;
}

/* --- and back to that --------------------------------------------------------------------------------------------- */

/* Pages that have been written to are the image's again, and what is behind it is nothing. */
static void tables_again(struct engine *e)
{
    struct part part[PARTS];

    list_parts(e, part);
    for (unsigned k = BLOCKS; k < PARTS; k++)
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

/* Blocks that are not dropped are as right as they were: whoever had written to their bytes would have dropped them. */
void soft_carry_again(struct engine *e)
{
    struct carried *c = e->given;

    if (!c || e->carry || !e->young)
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
}
