/*
 * Blocks that were translated ahead (course_ahead.c) become the vCPU's: when it has none for an address, and only if
 * the guest has at this moment the bytes that they were made of.
 */
#include "engine/soft/course_int.h"

#include <string.h>

#define MISSES 2048u /* in a boot, and a quarter of what was taken: the course is not that of this kernel any more */

static bool same(const struct engine *e, uint64_t gpa, const uint8_t *bytes, unsigned n)
{
    const uint8_t *ram = memory_hva_read(e->config.memory, gpa, n);

    return ram && !memcmp(ram, bytes, n);
}

/* Is it what the guest has there? */
static bool is_right(const struct engine *e, const struct block *b)
{
    const struct course *c = e->course;
    struct course_block from;
    size_t at = c->at[soft_block_number(e, b)];

    if (!course_next(c->file, c->size, &at, &from) || !same(e, b->gpa, c->file + from.bytes, from.length))
        return false;
    const uint8_t *bytes = c->file + from.bytes + from.length;
    for (unsigned i = 0; i < from.n_peeked; bytes += from.peeked[i++].length)
        if (!same(e, (b->gpa & ~4095ull) + from.peeked[i].first, bytes, from.peeked[i].length))
            return false;
    return true;
}

static void take_block(struct engine *e, struct block *b)
{
    struct course *c = e->course;

    if (!b->staged)
        return;
    b->staged = false;
    soft_code_claim(e, b->gpa >> 12);
    if (is_right(e, b) && !soft_block_find(e, b->gpa, b->gva, b->mode)) {
        b->dead = false;
        soft_block_insert(e, b);
        if (b->hot)
            soft_set_hot(e, b->gpa);
        c->n_taken++;
    } else {
        soft_block_unlink(e, b);
        c->n_refused++;
    }
    soft_code_claimed(e);
}

#define SOON 8u /* blocks */

/* What looking for the block's like will want. */
static void prefetch(const struct engine *e, const struct block *soon)
{
    __builtin_prefetch(&e->hash[soft_block_hash(soon->gpa, soon->gva, soon->mode)]);
}

static void prefetch_chain(const struct engine *e, const struct block *soon)
{
    const uint32_t n = e->hash[soft_block_hash(soon->gpa, soon->gva, soon->mode)];

    if (n)
        __builtin_prefetch(&e->blocks[n - 1]);
}

/* Is the kernel's page at b's address that of b, in every address space? */
static bool is_mapped(struct soft_vcpu *v, const struct block *b)
{
    const struct exception saved = v->cpu.exc;
    uint64_t gpa;
    bool global = false;

    if (!(b->mode & MODE_FIXED_PC) || ((b->mode ^ v->mode) & (MODE_MMU | MODE_IBTC)) ||
        soft_translate_exec(v, b->gva, &gpa, &global)) {
        v->cpu.exc = saved;
        return false;
    }
    return global && gpa == b->gpa;
}

/* What would be done when it is met: branches out of its page, and computed ones to it, find their targets. */
static void connect(struct engine *e, struct block *b)
{
    struct soft_vcpu *v = e->vcpu;

    if (b->dead || !is_mapped(v, b))
        return;
    if (b->entry_indirect)
        soft_ibtc_insert_new(v, b->gva, b);
    for (unsigned i = 0; i < b->n_exits; i++) {
        struct exit *x = &e->exits[b->first_exit + i];
        const uint64_t by = (uint64_t)(int64_t)x->target;
        struct block *to = x->to ? NULL
                                 : soft_block_find(e, b->gpa + by, b->gva + by, x->mode & ~(uint32_t)MODE_UNGROUPED);
        if (to && to->gpa2 == UINT64_MAX && (!x->cross || is_mapped(v, to)))
            soft_chain_cross(e, x, to);
    }
}

static void take_batch(struct engine *e, struct batch *of)
{
    soft_region_taken(e, of->region, &of->filled);
    for (uint32_t i = of->first; i < of->end; i++) {
        if (i + SOON < of->end)
            prefetch(e, &e->blocks[i + SOON]);
        if (i + SOON / 2 < of->end)
            prefetch_chain(e, &e->blocks[i + SOON / 2]);
        take_block(e, &e->blocks[i]);
    }
    for (uint32_t i = of->first; i < of->end; i++)
        connect(e, &e->blocks[i]);
    of->taken = true;
}

static struct batch *batch_of(struct course *c, uint32_t number)
{
    uint32_t low = 0, high = atomic_load(&c->n_batches);

    while (low < high) {
        const uint32_t mid = low + (high - low) / 2;
        if (c->batches[mid].end <= number)
            low = mid + 1;
        else
            high = mid;
    }
    return &c->batches[low];
}

bool soft_course_take(struct engine *e, uint64_t gpa, uint64_t gva, uint32_t mode)
{
    struct course *c = e->course;
    const uint64_t key = mode & MODE_FIXED_PC ? gva : gva & 4095;

    for (uint32_t n = atomic_load_explicit(&c->head[soft_block_hash(gpa, key, mode)], memory_order_acquire); n;
         n = c->next[n - 1]) {
        const struct block *b = &e->blocks[n - 1];
        if (b->staged && b->gpa == gpa && b->gva == key && b->mode == mode && is_right(e, b)) {
            take_batch(e, batch_of(c, n - 1));
            return true;
        }
    }
    return false;
}

/* It is another one by now, of other settings perhaps: it will be noted again. */
void soft_course_missed(struct engine *e, uint64_t gpa)
{
    struct course *c = e->course;

    if (c->is_old || gpa - c->gpa >= c->image || atomic_load(&c->state) != COURSE_ENDED ||
        ++c->n_missed < MISSES + c->n_taken / 4)
        return;
    c->is_old = true;
    soft_course_discard(c);
}

void soft_course_tick(struct engine *e)
{
    if (soft_clock_ns(CLOCK_MONOTONIC) >= e->course->until_ns)
        soft_course_end(e);
}

void soft_course_stats(const struct engine *e, FILE *out)
{
    const struct course *c = e->course ? e->course : e->course_ended;

    if (c)
        fprintf(out, "translated ahead: %u blocks, %u taken, %u refused\n", c->n_made, c->n_taken, c->n_refused);
}
