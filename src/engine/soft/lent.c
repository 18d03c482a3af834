/*
 * Code in pages of somebody else's: a copy executes what the machine that it was made of has translated (carry.c), in
 * that one's pages.  One that is about to be written to becomes the copy's own.  The sandbox lets nobody make an
 * executable mapping, but those that there are can be moved:
 *
 *     rx      what is executed: the image's pages, and the cache's own
 *     spare   the cache's own, too
 *     image   the image's, too
 */
#include "engine/soft/soft_int.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define PAGE 4096u
#define TRIES 16384u
#define CHAIN_AFTER 16
#define PAGES_OF(bytes) (((bytes) + PAGE - 1) / PAGE)

void soft_code_lent(struct engine *e, uint32_t from, uint32_t end)
{
    struct code_cache *c = &e->cache;

    for (uint32_t k = from / PAGE; k < PAGES_OF(end); k++)
        c->lent[k / 64] |= 1ull << k % 64;
}

int soft_code_lend(struct engine *e, int fd, uint64_t offset)
{
    struct code_cache *c = &e->cache;

    c->lent = calloc(PAGES_OF(c->size) / 64 + 1, sizeof *c->lent);
    c->spare = mmap(NULL, c->size, PROT_READ | PROT_EXEC, MAP_SHARED, c->fd, 0);
    if (c->spare == MAP_FAILED)
        c->spare = NULL;
    c->image = mmap(NULL, c->size, PROT_READ | PROT_EXEC, MAP_PRIVATE | MAP_NORESERVE, fd, (off_t)offset);
    if (c->image == MAP_FAILED)
        c->image = NULL;
    c->tries = soft_reserve(TRIES);
    return c->lent && c->spare && c->image && c->tries ? 0 : -ENOMEM;
}

bool soft_code_spared_page(struct engine *e, uint32_t at)
{
    struct code_cache *c = &e->cache;

    return c->lent[at / PAGE / 64] >> at / PAGE % 64 & 1 && ++c->tries[at * 2654435761u % TRIES] < CHAIN_AFTER;
}

/* Pages of executable mappings, to where others are.  Where they were they stay mapped, too: in a hole other threads
 * might get memory, which the way back would take from them.  (Linux before 5.13 cannot, and leaves one.) */
static void move(struct engine *e, uint8_t *from, uint8_t *to, size_t size)
{
    const int flags = MREMAP_MAYMOVE | MREMAP_FIXED;

    if (mremap(from, size, size, flags | MREMAP_DONTUNMAP, to) == MAP_FAILED &&
        mremap(from, size, size, flags, to) == MAP_FAILED)
        soft_fail(e->vcpu, "the host has no mapping left for a page of code");
}

/* From page *k on, before `end`: the next run of pages that are lent, or not; from now on they are the other.  *k is
 * its first; 0: there are no more. */
static uint32_t turn_next(struct code_cache *c, uint32_t *k, uint32_t end, bool lent)
{
    uint32_t n = 0;

    while (*k < end && (c->lent[*k / 64] >> *k % 64 & 1) != lent)
        ++*k;
    for (; *k + n < end && (c->lent[(*k + n) / 64] >> (*k + n) % 64 & 1) == lent; n++)
        c->lent[(*k + n) / 64] ^= 1ull << (*k + n) % 64;
    return n;
}

/* A process may have 65530 mappings, of which its RAM may take two thirds (memory/template.c), and a page that is moved
 * by itself makes two more: so of the caches of all vCPUs together 4096 are.  Then those around them go along. */
static uint32_t grain(const struct engine *e)
{
    const uint32_t moved = e->cache.moved * e->peers->n;
    return moved < 4096 ? 1 : moved < 6144 ? 16 : 256;
}

static bool has_lent(const struct code_cache *c, uint32_t k, uint32_t end)
{
    while (k < end && !(c->lent[k / 64] >> k % 64 & 1))
        k++;
    return k < end;
}

void soft_code_own_pages(struct engine *e, uint32_t from, uint32_t end)
{
    struct code_cache *c = &e->cache;
    const uint32_t pages = grain(e), most = PAGES_OF(c->size), last = (PAGES_OF(end) + pages - 1) & -pages;

    if (!has_lent(c, from / PAGE, PAGES_OF(end)))
        return;
    for (uint32_t k = from / PAGE & -pages, n; (n = turn_next(c, &k, last < most ? last : most, true)); k += n) {
        const size_t at = (size_t)k * PAGE, size = (size_t)n * PAGE;
        memcpy(c->rw + at, c->rx + at, size);
        move(e, c->spare + at, c->rx + at, size);
        c->moved++;
    }
}

/* The pages that have become its own, and have to be writable no more, go back to where they came from. */
void soft_code_lent_again(struct engine *e, uint32_t from, uint32_t end)
{
    struct code_cache *c = &e->cache;

    for (uint32_t k = from / PAGE, n; (n = turn_next(c, &k, PAGES_OF(end), false)); k += n) {
        const size_t at = (size_t)k * PAGE, size = (size_t)n * PAGE;
        move(e, c->rx + at, c->spare + at, size);
        move(e, c->image + at, c->rx + at, size);
    }
}

/* But for the ends of ways out (ways.c).  Mapped anew, for the sake of page tables. */
void soft_code_empty(struct engine *e)
{
    struct code_cache *c = &e->cache;
    const uint32_t behind = c->hot_end + WAYS_OUT_BYTES;

    (void)fallocate(c->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, c->hot_end);
    (void)fallocate(c->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, behind, c->size - behind);
    (void)mmap(c->rw, c->size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, c->fd, 0);
    soft_give_back(c->tries, TRIES);
    soft_release(c->image, c->size);
    c->image = NULL;
    c->moved = 0;
}

void soft_code_lend_end(struct engine *e)
{
    struct code_cache *c = &e->cache;

    free(c->lent);
    soft_release(c->tries, TRIES);
    soft_release(c->image, c->size);
    soft_release(c->spare, c->size);
}
