/*
 * Noting a kernel's course (course.h) while it boots, and writing it down when that is over.
 */
#include "engine/soft/translate_int.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/file.h"
#include "base/simd.h"

#define LEAST_BLOCKS 1024u /* less is not worth a file */

struct note {
    int fd;
    uint64_t gpa, gva, size; /* the kernel's image */
    uint64_t until_ns;
    uint8_t *bytes; /* blocks as in a file; what was translated once more is there twice */
    size_t n;
    uint32_t *at; /* where in bytes[] the blocks are, in their order */
    uint32_t n_blocks;
    uint32_t *of;    /* by a block's number in the cache: its place in that order + 1 */
    uint32_t better; /* the next one takes that block's place: + 1 */
};

static void note_free(struct engine *e)
{
    struct note *n = e->note;

    soft_release(n->bytes, COURSE_BYTES_MAX);
    soft_release(n->at, COURSE_BLOCKS_MAX * sizeof *n->at);
    soft_release(n->of, e->max_blocks * sizeof *n->of);
    close(n->fd);
    free(n);
    e->note = NULL;
}

int soft_note_begin(struct engine *e, const struct engine_course *c)
{
    struct note *n = calloc(1, sizeof *n);

    if (!n) {
        close(c->fd);
        return -ENOMEM;
    }
    *n = (struct note){.fd = c->fd,
                       .gpa = c->gpa,
                       .gva = c->gva,
                       .size = c->size,
                       .until_ns = soft_clock_ns(CLOCK_MONOTONIC) + COURSE_LASTS_NS,
                       .bytes = soft_reserve(COURSE_BYTES_MAX),
                       .at = soft_reserve(COURSE_BLOCKS_MAX * sizeof *n->at),
                       .of = soft_reserve(e->max_blocks * sizeof *n->of)};
    e->note = n;
    if (n->bytes && n->at && n->of && !ftruncate(n->fd, 0) && !memory_note_order(e->config.memory, COURSE_PIECES_MAX))
        return 0;
    note_free(e);
    return -ENOMEM;
}

/* --- a block --------------------------------------------------------------------------------------------------- */

static void add_fix(struct fixes *f, unsigned at)
{
    if (f->n < COURSE_FIXES_MAX)
        f->at[f->n] = (uint16_t)at;
    f->n++;
}

void note_fixes(const struct translator *t, const struct insn *in, unsigned at, struct fixes *f)
{
    const struct note *n = t->engine->note;
    const struct shape *s = in->shape;
    const int64_t numbers[] = {in->disp, in->imm[0], in->imm[1]};
    const struct number *const where[] = {&s->disp, &s->imm[0], &s->imm[1]};

    if (!s->regular)
        return;
    for (unsigned i = 0; i < 3; i++)
        if (where[i]->bits >= 32 && (uint32_t)numbers[i] - (uint32_t)n->gva < n->size)
            add_fix(f, at + where[i]->at);
    /* per-CPU variables are at addresses of their own, wherever the instruction is */
    if (s->memory >= 0 && s->place.pc_relative && s->place.segment == GS && s->disp.bits == 32)
        add_fix(f, (at + s->disp.at) | COURSE_MINUS);
}

/* false: its address is neither the kernel's nor the physical one. */
static bool how_it_is(const struct note *n, const struct block *b, bool computed, uint32_t *how)
{
    *how = b->mode | (computed ? COURSE_COMPUTED : 0) | (b->hot ? COURSE_HOT : 0) |
           (b->no_windows ? COURSE_NO_WINDOWS : 0);
    if (!(b->mode & MODE_FIXED_PC) || b->gva - n->gva == b->gpa - n->gpa)
        return true;
    *how |= COURSE_FLAT;
    return b->gva == b->gpa;
}

static void list_block(struct engine *e, const struct block *b, size_t size)
{
    struct note *n = e->note;
    uint32_t place = n->better ? n->better - 1 : n->n_blocks++;

    n->better = 0;
    n->at[place] = (uint32_t)n->n;
    n->of[soft_block_number(e, b)] = place + 1;
    n->n += size;
}

/* Its bytes, and those of the ranges; false: they are outside RAM. */
static bool take_bytes(const struct translator *t, const struct block *b, uint8_t *to)
{
    memcpy(to, t->code, b->length);
    to += b->length;
    for (unsigned i = 0; i < b->n_peeked; i++) {
        const uint8_t *ram = memory_hva_read(t->engine->config.memory, (b->gpa & ~4095ull) + b->peeked[i].first,
                                             b->peeked[i].length);
        if (!ram)
            return false;
        memcpy(to, ram, b->peeked[i].length);
        to += b->peeked[i].length;
    }
    return true;
}

void note_block(struct translator *t)
{
    struct engine *e = t->engine;
    struct note *n = e->note;
    const struct block *b = t->b;
    struct course_block c = {.place = (uint32_t)(b->gpa - n->gpa), .length = b->length, .n_peeked = b->n_peeked};
    struct fixes f = {.n = 0};
    uint8_t bytes[COURSE_LENGTH_MAX + 4096 * BLOCK_PEEKS];

    n->of[soft_block_number(e, b)] = 0;
    if (b->gpa - n->gpa >= n->size || b->gpa2 != UINT64_MAX || !how_it_is(n, b, t->v->computed, &c.how) ||
        (c.how & COURSE_MODE & ~COURSE_MODES) || n->n_blocks == COURSE_BLOCKS_MAX ||
        n->n + COURSE_HEAD + 4 * COURSE_PIECES_MAX + COURSE_BLOCK_MAX > COURSE_BYTES_MAX)
        return;
    c.n_bytes = b->length;
    for (unsigned i = 0; i < b->n_peeked; i++) {
        c.peeked[i] = b->peeked[i];
        c.n_bytes += b->peeked[i].length;
    }
    for (unsigned i = 0; i < t->n_insns; i++)
        note_fixes(t, &t->insns[i], t->insns[i].pc, &f);
    for (unsigned i = 0; i < t->fixes.n && t->fixes.n <= COURSE_FIXES_MAX; i++)
        add_fix(&f, t->fixes.at[i]);
    if (f.n > COURSE_FIXES_MAX || t->fixes.n > COURSE_FIXES_MAX || !take_bytes(t, b, bytes))
        return;
    c.n_fixes = (uint8_t)f.n;
    for (unsigned i = 0; i < f.n; i++) {
        uint8_t *p = bytes + (f.at[i] & (COURSE_MINUS - 1));
        le32_put(p, le32_at(p) + (uint32_t)(f.at[i] & COURSE_MINUS ? n->gva : -n->gva));
    }
    list_block(e, b, course_put(n->bytes + n->n, &c, f.at, bytes));
}

/* Called while the guest's SIMD state is in the registers. */
SIMD_GENERAL void soft_note_better(struct engine *e, const struct block *b)
{
    e->note->better = e->note->of[soft_block_number(e, b)];
}

SIMD_GENERAL void soft_note_computed(struct engine *e, const struct block *b)
{
    struct note *n = e->note;
    const uint32_t place = n->of[soft_block_number(e, b)];

    if (place) {
        uint8_t *how = n->bytes + n->at[place - 1] + 4;
        le32_put(how, le32_at(how) | COURSE_COMPUTED);
    }
}

/* --- the end ---------------------------------------------------------------------------------------------------- */

static size_t block_size(const uint8_t *bytes, size_t n, size_t at)
{
    struct course_block b;
    const size_t from = at;

    return course_next(bytes, n, &at, &b) ? at - from : 0;
}

/* What the guest has come to use; returns how many. */
static uint32_t put_pieces(const struct memory *m, uint8_t *to)
{
    const uint32_t n = m->n_order < COURSE_PIECES_MAX ? m->n_order : COURSE_PIECES_MAX;

    for (uint32_t i = 0; i < n; i++)
        le32_put(to + 4ul * i, m->order[i]);
    return n;
}

static void write_course(const struct engine *e, uint8_t *file)
{
    const struct note *n = e->note;
    const uint32_t n_pieces = put_pieces(e->config.memory, file + COURSE_HEAD);
    size_t size = COURSE_HEAD + 4ul * n_pieces;

    for (uint32_t i = 0; i < n->n_blocks; i++) {
        const size_t one = block_size(n->bytes, n->n, n->at[i]);
        memcpy(file + size, n->bytes + n->at[i], one);
        size += one;
    }
    course_head(file, n->n_blocks, n_pieces, file + COURSE_HEAD, size - COURSE_HEAD);
    (void)fd_write_all(n->fd, file, size); /* no room: it will not be whole */
}

void soft_note_end(struct engine *e)
{
    uint8_t *file = e->note->n_blocks < LEAST_BLOCKS ? NULL : soft_reserve(COURSE_BYTES_MAX);

    if (file)
        write_course(e, file);
    soft_release(file, COURSE_BYTES_MAX);
    note_free(e);
}

void soft_note_tick(struct engine *e)
{
    if (soft_clock_ns(CLOCK_MONOTONIC) >= e->note->until_ns)
        soft_note_end(e);
}
