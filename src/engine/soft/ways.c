/*
 * Ways into a block that are made when somebody needs them, and what all ways out of blocks share.
 *
 * Most blocks are only entered by a forward branch that is chained to them.  So a block is translated with nothing in
 * front of its body but, where that is needed, the flags' way from one place to the other.  Who comes by a computed or
 * a backward branch gets a few instructions in the cold half that do what such an entry has to, and jump to the body:
 *
 *     indirect:  is this the block for the wanted gva (the IBTC's entry may be another's)?  Set code_base when
 *                position independent
 *     poll:      leave when something waits for this vCPU; count, so that a block that runs often is translated again,
 *                better
 *
 * A block that runs often, or that a computed branch is the first to want, as what is behind a call, has these ways in
 * front of its body (emit_ways): control goes straight on.
 *
 * Of a way out, a block only has what is its own, a number in a scratch register: the rest is here once for all.
 */
#include "engine/soft/translate_int.h"

/* --- out ---------------------------------------------------------------------------------------------- */

static void begin_out(struct engine *e, struct emit *c, unsigned way)
{
    e->cache.out[way] = e_offset(c);
}

void soft_ways_out(struct engine *e)
{
    static const struct {
        uint8_t way;
        uint32_t glue;
    } numbered[] = {{OUT_EXIT, VOFF(glue_exit)},
                    {OUT_HELPER, VOFF(glue_helper)},
                    {OUT_POLL, VOFF(glue_poll)},
                    {OUT_HOT, VOFF(glue_hot)}};
    struct emit c = {.p = e->cache.rw + e->cache.cold, .start = e->cache.rw};
    for (unsigned i = 0; i < sizeof(numbered) / sizeof(numbered[0]); i++) {
        begin_out(e, &c, numbered[i].way);
        e_store32(&c, R9, VOFF(site));
        e_gs_jump(&c, numbered[i].glue);
    }
    begin_out(e, &c, OUT_IBTC_MISS);
    e_gs_jump(&c, VOFF(glue_ibtc_miss));
    begin_out(e, &c, OUT_COMMIT);
    e_gs_jump(&c, VOFF(glue_commit));
    begin_out(e, &c, OUT_WINDOW);
    e_store(&c, R11, VOFF(slow_ea));
    e_store32(&c, R10, VOFF(site));
    e_gs_jump(&c, VOFF(glue_window));
    for (unsigned a = R9; a <= R11; a++)
        for (unsigned b = R9; b <= R11; b++) {
            begin_out(e, &c, out_slow(a, b));
            e_store(&c, a, VOFF(slow_ea));
            e_store32(&c, b, VOFF(site));
            e_gs_jump(&c, VOFF(glue_slow));
        }
    e->cache.cold = e_offset(&c);
}

void emit_way_out(const struct engine *e, struct emit *c, unsigned reg, uint32_t number, unsigned way)
{
    e_mov_imm(c, reg, number);
    e_jmp(c, e->cache.out[way]);
}

/* --- in ----------------------------------------------------------------------------------------------- */

/* r11: the wanted gva, r10: its place in the IBTC. */
static void emit_check_target(const struct engine *en, struct emit *e, const struct block *b)
{
    unsigned page_offset = b->gva & 4095;
    /* the flags are in memory, where computed branches have them */
    if ((b->mode & MODE_FIXED_PC) && (int64_t)b->gva == (int32_t)b->gva)
        e_alu_imm(e, true, 7, R11, (uint32_t)b->gva);
    else
        e_gs_index8(e, 0x3b, true, R11, R10, ibtc_offset(b->mode, tag));
    e_jcc(e, 5, en->cache.out[OUT_IBTC_MISS]);
    if (b->mode & MODE_FIXED_PC)
        return;
    if (page_offset)
        e_alu_imm(e, true, 5, R11, page_offset);
    e_store(e, R11, VOFF(code_base));
}

/* *out and *hot: the jumps to patch; 0: none. */
static void emit_poll(const struct engine *en, struct emit *e, const struct block *b, uint32_t *out, uint32_t *hot)
{
    uint32_t number = soft_block_number(en, b);
    e_gs(e, 0x83, false, 7, VOFF(poll)); /* cmp dword gs:[poll], 0 */
    e8(e, 0);
    *out = e_jcc(e, 5, 0);
    if (b->hot)
        return;
    e_gs(e, 0x83, false, 5, (uint32_t)offsetof(struct soft_vcpu, heat[number % HEAT_COUNT])); /* sub dword, 1 */
    e8(e, 1);
    *hot = e_jcc(e, 8 /* negative */, 0);
}

void emit_ways(struct translator *t)
{
    struct block *b = t->b;
    uint32_t out = 0, hot = 0;
    if (!(b->hot || t->v->computed) || (b->mode & MODE_BY_C))
        return;
    b->entry_indirect = e_offset(&t->hot);
    emit_check_target(t->engine, &t->hot, b);
    b->poll_memory = e_offset(&t->hot);
    emit_poll(t->engine, &t->hot, b, &out, &hot);
    e_patch(&t->hot, out, e_offset(&t->cold));
    emit_way_out(t->engine, &t->cold, R9, soft_block_number(t->engine, b), OUT_POLL);
    if (!hot)
        return;
    e_patch(&t->hot, hot, e_offset(&t->cold));
    emit_way_out(t->engine, &t->cold, R9, soft_block_number(t->engine, b), OUT_HOT);
}

#define WAY_IN_MAX 176 /* bytes, with what emitting may overwrite */

/* A way in with the flags in memory, where the poll and all behind it want them. */
static void make_poll_memory(struct engine *e, struct emit *c, struct block *b)
{
    uint32_t out = 0, hot = 0;
    b->poll_memory = e_offset(c);
    emit_poll(e, c, b, &out, &hot);
    e_jmp(c, b->entry_memory);
    e_patch(c, out, e_offset(c));
    emit_way_out(e, c, R9, soft_block_number(e, b), OUT_POLL);
    if (!hot)
        return;
    e_patch(c, hot, e_offset(c));
    emit_way_out(e, c, R9, soft_block_number(e, b), OUT_HOT);
}

/* Where nobody reads the flags it is the same as the one with them in memory. */
static void make_poll(struct engine *e, struct emit *c, struct block *b)
{
    b->poll = !b->flags_live && b->poll_memory ? b->poll_memory : e_offset(c);
    if (b->poll == b->poll_memory)
        return;
    if (b->flags_live)
        e_save_flags(c, VOFF(slow_flags), R9);
    if (b->poll_memory)
        e_jmp(c, b->poll_memory);
    else
        make_poll_memory(e, c, b);
}

static void make_indirect(struct engine *e, struct emit *c, struct block *b)
{
    b->entry_indirect = e_offset(c);
    emit_check_target(e, c, b);
    if (b->poll_memory)
        e_jmp(c, b->poll_memory);
    else
        make_poll_memory(e, c, b);
}

/* 0: the region is full. */
uint32_t soft_way_in(struct engine *e, struct block *b, enum way_in way)
{
    static void (*const make[])(struct engine *, struct emit *, struct block *) = {
        [WAY_POLL] = make_poll, [WAY_POLL_MEMORY] = make_poll_memory, [WAY_INDIRECT] = make_indirect};
    uint32_t *at = way == WAY_POLL ? &b->poll : way == WAY_POLL_MEMORY ? &b->poll_memory : &b->entry_indirect;
    struct code_cache *cache = &e->cache;
    if (*at || cache->cold + WAY_IN_MAX > e->regions[e->region + 1].cold)
        return *at;
    struct emit c = {.p = cache->rw + cache->cold, .start = cache->rw};
    make[way](e, &c, b);
    if (way == WAY_INDIRECT && e->note)
        soft_note_computed(e, b);
    cache->cold = e_offset(&c);
    return *at;
}
