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
 *              shapes   note, each with room for all of it, at a multiple of 4096
 *     head     struct carried, and the numbers of blocks that have been dropped since the image was made
 *
 * What copies have to have is what the forked machine had when it was forked.  The image is made at the first fork,
 * which takes milliseconds; what is translated afterwards copies translate themselves, what is dropped is listed.  It
 * is made anew when it may not be used any more: something was evicted, or kernel code of different pages, whose chains
 * are valid as long as no TLB is flushed, has been unchained; or when much has happened.
 *
 * Of several vCPUs there is one image, that of the first, which has translated what the others have before (gather.c):
 * for a program goes on in a copy on any of them.  Each that has run takes it, as its own engine's.  The note (of who
 * has code of which page, coherence.c) says so from the beginning, whichever of them runs first.  Chains of the
 * kernel's are right for all of them: the tables of each are looked at when the image is handed out.
 *
 * Helpers' addresses are told by their distance from one of them (struct site), which is the same in every process of
 * the same program: anything else is refused.
 */
#include "engine/soft/carry_int.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/file.h"

#define MOST (64u << 20) /* of a cache: beyond that, it takes longer than translating what is needed */
#define NEW_MAX 8192u    /* blocks */

struct carry {
    int fd;
    bool lost;           /* not to be handed out any more; who stands by may still do so (vm->parked_code) */
    uint64_t translated; /* all_translated() when it was made */
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

uint64_t carry_parts(const struct engine *e, struct part part[PARTS])
{
    uint64_t offset = 0;

    memset(part, 0, PARTS * sizeof *part);
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
    if (e->peers->n > 1)
        part[NOTE] = (struct part){(uint8_t *)e->peers->code, e->n_pages * sizeof *e->peers->code};
    for (unsigned k = 0; k < PARTS; k++) {
        part[k].offset = offset;
        offset += (part[k].size + PAGE - 1) & -PAGE;
    }
    return offset;
}

void carry_slice(const struct engine *e, const struct carried *c, unsigned i, unsigned k, uint64_t slice[2])
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

bool carry_possible(const struct engine *e)
{
    return !e->config.stress && e->cache.size <= MOST;
}

/* --- from the machine that is forked ----------------------------------------------------------------------------- */

/* [from, end) of a part, whole pages; those that are empty take no memory. */
static int write_part(int fd, const struct part *p, uint64_t from, uint64_t end)
{
    from &= -PAGE;
    return fd_write_sparse(fd, p->at + from, end - from, p->offset + from);
}

/* Those that have run, and for which the kernel's code is where it is for the first. */
static uint64_t who_takes(const struct peers *p)
{
    uint64_t takers = 1;

    for (unsigned i = 1; i < p->n; i++)
        if ((p->of[i]->region || p->of[i]->n_blocks) && soft_kernel_pages_same(p->of[0], p->of[i]->vcpu))
            takers |= 1ull << i;
    return takers;
}

static void fill_head(struct engine *e, struct carried *c)
{
    const struct soft_vcpu *v = e->vcpu;

    *c = (struct carried){.program = e->program,
                          .n_pages = e->n_pages,
                          .size = e->cache.size,
                          .hot_end = e->cache.hot_end,
                          .takers = who_takes(e->peers),
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
}

/* Whoever takes the image has code of all pages that it has code of. */
static int write_note(const struct engine *e, int fd, const struct part *p, uint64_t takers)
{
    enum { AT_ONCE = PAGE / sizeof(uint64_t) };
    int err = 0;

    for (uint64_t page = 0; page < p->size / sizeof(uint64_t) && !err; page += AT_ONCE) {
        uint64_t note[AT_ONCE] = {0}, any = 0;
        for (unsigned i = 0; i < AT_ONCE && page + i < e->n_pages; i++) {
            any |= e->code_granules[page + i];
            note[i] = e->code_granules[page + i] ? takers : 0;
        }
        if (any)
            err = fd_write_at(fd, note, sizeof note, p->offset + page * sizeof *note);
    }
    return err;
}

static int write_image(struct engine *e, int fd, struct carried *c)
{
    struct part part[PARTS];
    uint64_t slice[2];
    int err = ftruncate(fd, (off_t)carry_parts(e, part)) ? -errno : 0;

    c->shapes = part[SHAPES].used;
    for (unsigned i = 0; i < e->n_regions && !err; i++) {
        for (unsigned k = CODE; k <= MAPS && !err; k++) {
            carry_slice(e, c, i, k, slice);
            err = write_part(fd, &part[k], slice[0], slice[1]);
        }
        if (!err)
            err = write_part(fd, &part[CODE], e->regions[i].cold, c->filled[i].cold);
    }
    for (unsigned k = HASH; k < NOTE && !err; k++)
        err = write_part(fd, &part[k], 0, part[k].used);
    if (!err)
        err = write_note(e, fd, &part[NOTE], c->takers);
    if (!err && fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL))
        err = -errno;
    return err;
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

static uint64_t all_translated(const struct peers *p)
{
    uint64_t all = 0;

    for (unsigned i = 0; i < p->n; i++)
        all += p->of[i]->vcpu->stats.blocks;
    return all;
}

/* It is not valid; or much is new, which copies would have to translate again; or it would be others who take it. */
static bool is_old(const struct peers *p, const struct carry *c)
{
    return c->lost || all_translated(p) - c->translated > NEW_MAX || who_takes(p) != c->head.takers;
}

/* fd is taken over. */
static int make_image(struct engine *e, int fd)
{
    struct carry *carry = calloc(1, sizeof *carry);

    if (!carry)
        return -ENOMEM;
    if (e->peers->n > 1)
        soft_gather(e);
    soft_index_settle(e);
    fill_head(e, &carry->head);
    carry->translated = all_translated(e->peers);
    carry->fd = fd;
    int err = write_image(e, fd, &carry->head);
    if (err)
        free(carry);
    else
        e->carry = carry;
    return err;
}

int soft_get_code(struct engine *e, int fd, struct engine_code *head)
{
    const struct peers *p = e->peers;
    int err = carry_possible(e) ? 0 : -ENOTSUP;

    if (!err && e->course)
        soft_course_end(e);
    for (unsigned i = 0; i < p->n && !err; i++)
        if (p->of[i]->carried)
            soft_carry_begin(p->of[i]);
    if (!err && e->carry && is_old(p, e->carry))
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
