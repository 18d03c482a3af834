/*
 * Blocks that are translated before the vCPU comes to them: those of the course that the same kernel took the last time
 * (course.h), by a thread of its own.
 *
 *     that thread                                     the vCPU's
 *     translates from the course's bytes, into        has no block for an address: looks into the index, compares the
 *     regions of the cache that are its own;          guest's bytes with those that the block was made of, and takes
 *     chains what is in one batch; enters the         the whole batch: each block of it that is still right goes into
 *     batch into the index                            the tables as if the vCPU had translated it, the others go
 *
 * Batches are in the order of the course: what was needed at about the same time, of code as it was then (kernels patch
 * themselves).  The two share nothing else: the thread has an engine of its own, with the cache's tables but its own
 * numbers, until it is through with a batch; then it does not touch it any more.
 */
#include "engine/soft/course_int.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/bytes.h"
#include "memory/ahead.h"

#define BATCH 512u
#define BATCHES_MAX (COURSE_BLOCKS_MAX / 64)
#define UNKNOWN 0xcc /* a byte of the page: INT3, behind which nothing is translated, nor looked at */

void soft_course_discard(const struct course *c)
{
    static const uint8_t nothing[COURSE_HEAD];

    (void)!pwrite(c->fd, nothing, sizeof nothing, 0);
}

/* --- the thread -------------------------------------------------------------------------------------------------- */

static void fill_page(struct course *c, const struct course_block *b, bool clear)
{
    const uint8_t *from = c->file + b->bytes;

    for (unsigned i = 0; i <= b->n_peeked; i++) {
        const unsigned to = i ? b->peeked[i - 1].first : b->place % 4096, n = i ? b->peeked[i - 1].length : b->length;
        if (clear)
            memset(c->page + to, UNKNOWN, n);
        else
            memcpy(c->page + to, from, n);
        from += n;
    }
}

/* What it was made of is what is known of the page? */
static bool is_known(const struct block *b, const struct course_block *from)
{
    if (b->length > from->length)
        return false;
    for (unsigned i = 0; i < b->n_peeked; i++) {
        bool known = false;
        for (unsigned k = 0; k < from->n_peeked && !known; k++)
            known = b->peeked[i].first == from->peeked[k].first && b->peeked[i].length <= from->peeked[k].length;
        if (!known)
            return false;
    }
    return true;
}

static struct cache_region here(const struct engine *a)
{
    return soft_region_filled(a, a->region);
}

/* The vCPU has been there before us: it has, as far as can be seen from here, a block of these very bytes. */
static bool is_late(const struct course *c, const struct course_block *from, const struct block *what)
{
    const struct engine *e = c->of;
    const uint64_t gva = what->mode & MODE_FIXED_PC ? what->gva : what->gva & 4095;
    uint32_t n = __atomic_load_n(&e->hash[soft_block_hash(what->gpa, gva, what->mode)], __ATOMIC_RELAXED);

    for (unsigned i = 0; n && i < 4; i++) {
        const struct block *b = &e->blocks[n - 1];
        if (b->gpa == what->gpa && b->gva == gva && b->mode == what->mode)
            return !memcmp(c->ram + from->place, c->file + from->bytes, from->length);
        n = __atomic_load_n(&b->next_hash, __ATOMIC_RELAXED);
    }
    return false;
}

static void make_block(struct course *c, const struct course_block *from, size_t at)
{
    struct engine *a = c->aside;
    struct soft_vcpu *v = a->vcpu;
    struct translator *t = v->translator;
    struct block *b = &a->blocks[a->n_blocks];
    const struct cache_region before = here(a);
    const uint64_t gpa = c->gpa + from->place;
    const struct block what = {.gpa = gpa,
                               .gva = from->how & COURSE_FLAT ? gpa : c->gva + from->place,
                               .mode = from->how & COURSE_MODE,
                               .no_windows = from->how & COURSE_NO_WINDOWS,
                               .hot = from->how & COURSE_HOT};

    if (from->place >= c->image || from->length > c->image - from->place || is_late(c, from, &what))
        return;
    v->computed = from->how & COURSE_COMPUTED;
    fill_page(c, from, false);
    t->page = c->page;
    const bool made = translate_into(t, v, b, &what) && is_known(b, from);
    fill_page(c, from, true);
    if (!made) {
        soft_region_at(a, &before);
        return;
    }
    b->dead = b->staged = true;
    c->n_made++;
    c->at[a->n_blocks++] = (uint32_t)at;
    soft_block_index(a, b);
}

static void chain_block(struct engine *a, const struct block *b)
{
    for (unsigned i = 0; i < b->n_exits; i++) {
        struct exit *x = &a->exits[b->first_exit + i];
        const uint64_t to = (uint64_t)(int64_t)x->target;
        struct block *target = x->cross
                                   ? NULL
                                   : soft_block_find(a, b->gpa + to, b->gva + to, x->mode & ~(uint32_t)MODE_UNGROUPED);
        if (target)
            soft_chain(a, x, target);
    }
}

static void publish(struct course *c, uint32_t first)
{
    struct engine *a = c->aside;
    const uint32_t n = atomic_load(&c->n_batches);

    if (first == a->n_blocks || n == BATCHES_MAX)
        return;
    for (uint32_t i = first; i < a->n_blocks; i++)
        chain_block(a, &a->blocks[i]);
    memset(a->hash, 0, sizeof *a->hash << HASH_BITS);
    c->batches[n] = (struct batch){.first = first, .end = a->n_blocks, .region = a->region, .filled = here(a)};
    atomic_store(&c->n_batches, n + 1);
    for (uint32_t i = first; i < a->n_blocks; i++) {
        const struct block *b = &a->blocks[i];
        _Atomic uint32_t *head = &c->head[soft_block_hash(b->gpa, b->gva, b->mode)];
        c->next[i] = atomic_load_explicit(head, memory_order_relaxed);
        atomic_store_explicit(head, i + 1, memory_order_release);
    }
}

/* One that is not whole is not there the next time: it will be noted again. */
static bool read_file(struct course *c, size_t *blocks)
{
    uint8_t *file = malloc(c->size);
    const bool whole = file && pread(c->fd, file, c->size, 0) == (ssize_t)c->size &&
                       course_is_whole(file, c->size, blocks);

    c->file = file;
    if (file && !whole)
        soft_course_discard(c);
    return whole;
}

static void make_all(struct course *c)
{
    struct engine *a = c->aside;
    struct course_block b;
    uint32_t first = a->n_blocks;
    size_t at, here_at;

    if (!read_file(c, &at))
        return;
    for (uint32_t n = 0; n < COURSE_BLOCKS_MAX && !atomic_load(&c->stop); n++) {
        here_at = at;
        if (!course_next(c->file, c->size, &at, &b))
            break;
        if (a->n_blocks - first >= BATCH || !soft_region_has_room(a)) {
            publish(c, first);
            if (!soft_region_beside(a))
                return;
            first = a->n_blocks;
        }
        course_fix(c->file, &b, c->gva);
        make_block(c, &b, here_at);
    }
    publish(c, first);
}

/* What both will write to, here and there: as evict.c does it with what is filled. */
static void populate(void *at, size_t size)
{
    (void)madvise(at, size, MADV_POPULATE_WRITE);
}

void soft_course_serve(struct engine *e)
{
    struct course *c = e->course;
    enum course_state idle = COURSE_IDLE;

    if (!c || !atomic_compare_exchange_strong(&c->state, &idle, COURSE_RUNS))
        return;
    populate(e->hash, sizeof *e->hash << HASH_BITS);
    soft_translator_ahead(e->vcpu->translator);
    soft_translator_ahead(c->aside->vcpu->translator);
    make_all(c);
    atomic_store(&c->state, COURSE_ENDED);
}

/* --- beginning and end ------------------------------------------------------------------------------------------- */

static void aside_free(struct engine *a)
{
    if (!a)
        return;
    if (a->vcpu)
        soft_translator_destroy(a->vcpu->translator);
    soft_release(a->vcpu, sizeof *a->vcpu);
    soft_release(a->hash, sizeof *a->hash << HASH_BITS);
    free(a);
}

/* An engine that translates, with e's cache, and does nothing else. */
static struct engine *aside_create(const struct engine *e)
{
    struct engine *a = malloc(sizeof *a);

    if (!a)
        return NULL;
    *a = *e;
    a->note = NULL;
    a->course = NULL;
    a->young = NULL;
    a->hash = soft_reserve(sizeof *a->hash << HASH_BITS);
    a->vcpu = soft_reserve(sizeof *a->vcpu);
    if (!a->hash || !a->vcpu || !(a->vcpu->translator = soft_translator_create(&e->vcpu->cpu))) {
        aside_free(a);
        return NULL;
    }
    a->vcpu->engine = a;
    return a;
}

static void release_all(struct engine *e, struct course *c)
{
    aside_free(c->aside);
    soft_release(c->batches, BATCHES_MAX * sizeof *c->batches);
    soft_release(c->head, sizeof *c->head << HASH_BITS);
    soft_release(c->next, e->max_blocks * sizeof *c->next);
    soft_release(c->at, e->max_blocks * sizeof *c->at);
    free(c->file);
    close(c->fd);
}

/* The guest's memory that was used the last time, for who asks for it before it is (memory/ahead.h). */
static void expect_memory(struct engine *e, int fd, uint32_t n)
{
    uint32_t *list = malloc(n * sizeof *list);
    const ssize_t size = (ssize_t)(n * sizeof *list);

    if (!list || pread(fd, list, (size_t)size, COURSE_HEAD) != size) {
        free(list);
        return;
    }
    for (uint32_t i = 0; i < n; i++)
        list[i] = le32_at(&list[i]);
    memory_ahead_expect(e->config.memory, list, n);
}

static int course_begin(struct engine *e, const struct engine_course *from, size_t size)
{
    struct course *c = calloc(1, sizeof *c);

    if (!c) {
        close(from->fd);
        return -ENOMEM;
    }
    c->fd = from->fd;
    c->size = size;
    c->gpa = from->gpa;
    c->gva = from->gva;
    c->image = from->size;
    c->of = e;
    c->ram = e->config.memory->base + from->gpa;
    c->until_ns = soft_clock_ns(CLOCK_MONOTONIC) + COURSE_LASTS_NS;
    memset(c->page, UNKNOWN, sizeof c->page);
    c->aside = aside_create(e);
    c->batches = soft_reserve(BATCHES_MAX * sizeof *c->batches);
    c->head = soft_reserve(sizeof *c->head << HASH_BITS);
    c->next = soft_reserve(e->max_blocks * sizeof *c->next);
    c->at = soft_reserve(e->max_blocks * sizeof *c->at);
    if (!c->aside || !c->batches || !c->head || !c->next || !c->at) {
        release_all(e, c);
        free(c);
        return -ENOMEM;
    }
    e->course = c;
    soft_regions_beside(e, c->aside);
    return 0;
}

unsigned soft_course_region(const struct engine *e)
{
    return e->course->aside->region;
}

void soft_course_stop(struct engine *e)
{
    struct course *c = e->course;
    enum course_state idle = COURSE_IDLE;

    atomic_store(&c->stop, true);
    if (!atomic_compare_exchange_strong(&c->state, &idle, COURSE_ENDED))
        for (unsigned i = 0; atomic_load(&c->state) != COURSE_ENDED; i++)
            soft_spin(i);
}

/* The thread may still be about to begin: it finds that there is nothing to do. */
void soft_course_end(struct engine *e)
{
    struct course *c = e->course;

    soft_course_stop(e);
    release_all(e, c);
    free(e->course_ended);
    e->course = NULL;
    e->course_ended = c;
}

void soft_course_forget(struct engine *e)
{
    if (e->note)
        soft_note_end(e);
    if (e->course)
        soft_course_end(e);
    free(e->course_ended);
}

static bool is_course(int fd, size_t *size, uint32_t *n_pieces)
{
    uint8_t head[COURSE_HEAD];
    struct stat st;

    if (fstat(fd, &st) || st.st_size < 0 || pread(fd, head, sizeof head, 0) != sizeof head)
        return false;
    *size = (size_t)st.st_size;
    return course_begins(head, *size, n_pieces);
}

int soft_set_course(struct engine *e, const struct engine_course *c)
{
    uint32_t n_pieces;
    size_t size;

    if (!c) {
        if (e->note)
            soft_note_end(e);
        if (e->course)
            soft_course_end(e);
        return 0;
    }
    int err = e->config.stress || e->config.precise_flags || e->config.always_hot ? -ENOTSUP : 0;

    if (!err && !memory_is_ram(e->config.memory, c->gpa, c->size))
        err = -EINVAL;
    if (!err && is_course(c->fd, &size, &n_pieces)) {
        expect_memory(e, c->fd, n_pieces);
        err = course_begin(e, c, size);
    } else if (!err && !flock(c->fd, LOCK_EX | LOCK_NB)) {
        err = soft_note_begin(e, c);
    } else {
        err = -ENOTSUP;
        close(c->fd);
    }
    return err;
}
