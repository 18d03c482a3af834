/*
 * From guest bytes to a block of host code.
 *
 * A block is a run of instructions inside one guest page (only its last may straddle), ended by a
 * control transfer, by an instruction that may change what follows (privileged ones), or by its
 * length; in code that runs often two conditional branches are passed.  A forward branch in the page jumps to its first
 * instruction; other ways in pay for what they need (ways.c).
 */
#include "engine/soft/translate_int.h"

#include <stdlib.h>

struct translator *soft_translator_create(const struct cpu *cpu)
{
    struct translator *t = calloc(1, sizeof(*t));
    if (!t)
        return NULL;
    ZydisDecoderInit(&t->decoder64, ZYDIS_MACHINE_MODE_LONG_64, ZYDIS_STACK_WIDTH_64);
    ZydisDecoderInit(&t->decoder32, ZYDIS_MACHINE_MODE_LONG_COMPAT_32, ZYDIS_STACK_WIDTH_32);
    ZydisDecoderInit(&t->decoder16, ZYDIS_MACHINE_MODE_LONG_COMPAT_16, ZYDIS_STACK_WIDTH_16);
    isa_init(t, cpu);
    t->shapes = shapes_create();
    if (!t->shapes) {
        free(t);
        return NULL;
    }
    return t;
}

void soft_translator_destroy(struct translator *t)
{
    if (t)
        shapes_destroy(t->shapes);
    free(t);
}

uint8_t *soft_translator_shapes(struct translator *t, size_t *size, size_t *used)
{
    shapes_extent(t->shapes, size, used);
    return (uint8_t *)t->shapes;
}

void soft_translator_given(struct translator *t)
{
    shapes_given(t->shapes);
}

void soft_translator_ahead(struct translator *t)
{
    shapes_ahead(t->shapes);
}

#define FETCH_BYTES 64

/* --- decoding ------------------------------------------------------------------------------------ */

static ZyanStatus decode_at(struct translator *t, struct insn *in, unsigned pc, unsigned available)
{
    in->pc = (uint16_t)pc;
    return decode_insn(t, in, t->code + pc, available);
}

/* UD0, UD1 and VIA's instructions have operands, but AMD's CPUs refuse them without looking at those; Intel's look
 * for none of SSE4A's immediates. */
static bool undefined_already(const struct translator *t, const uint8_t *bytes, unsigned n)
{
    unsigned i = 0;
    bool prefixed = false; /* by 66h or F2h */
    while (i < n && (bytes[i] == 0x66 || bytes[i] == 0x67 || bytes[i] == 0xf2 || bytes[i] == 0xf3 || bytes[i] == 0x2e ||
                     bytes[i] == 0x36 || bytes[i] == 0x3e || bytes[i] == 0x26 || bytes[i] == 0x64 || bytes[i] == 0x65 ||
                     ((t->mode & MODE_64) && (bytes[i] & 0xf0) == 0x40))) {
        prefixed |= bytes[i] == 0x66 || bytes[i] == 0xf2;
        i++;
    }
    if (i + 1 >= n || bytes[i] != 0x0f)
        return false;
    if (!t->amd)
        return bytes[i + 1] == 0x78 && prefixed && i + 2 < n;
    return bytes[i + 1] == 0xb9 || bytes[i + 1] == 0xff || bytes[i + 1] == 0xa6 || bytes[i + 1] == 0xa7;
}

/* Reads the block's bytes up to `end`, or the page's: each of them once, for the guest may change them meanwhile. */
static void fetch(struct translator *t, const uint8_t *ram, unsigned end, unsigned room)
{
    while (t->fetched < end && t->fetched < room) {
        unsigned n = room - t->fetched < FETCH_BYTES ? room - t->fetched : FETCH_BYTES;
        if (ram)
            memcpy(t->code + t->fetched, ram + t->fetched, n);
        else
            memset(t->code + t->fetched, 0xff, n);
        t->fetched += n;
    }
}

/* Code that runs often goes on behind a conditional branch, where compilers put what is likely: a window then serves
 * the accesses on both sides of it.  All code would be twice as much to translate, for branches that are seldom met. */
static bool may_pass(const struct translator *t)
{
    return t->b->hot && (t->mode & MODE_64) && !(t->mode & MODE_BY_C);
}

/* Bytes from the block's start up to the end of the page, or of its segment. */
static unsigned room_for_code(const struct translator *t)
{
    unsigned page = 4096 - t->page_offset;
    uint64_t limit = t->v->cpu.seg[CS].limit;
    return (t->mode & MODE_SEGMENTED) && limit - t->gva + 1 < page ? (unsigned)(limit - t->gva + 1) : page;
}

/* What an instruction that does not fit there has in the next page.  false: a fault is recorded. */
static bool fetch_second(struct translator *t, unsigned room)
{
    uint64_t gpa;
    if (t->page) /* it is not known */
        return false;
    if ((t->mode & MODE_SEGMENTED) && t->gva + room > t->v->cpu.seg[CS].limit) {
        cpu_raise_error(&t->v->cpu, EXC_GP, 0);
        return false;
    }
    if (soft_translate_exec(t->v, soft_code_gva(t->v, t->gva + room), &gpa, NULL))
        return false;
    soft_code_claim(t->engine, gpa >> 12);
    const uint8_t *more = memory_hva_read(t->engine->config.memory, gpa, 16);
    if (more)
        memcpy(t->code + room, more, 16);
    else
        memset(t->code + room, 0xff, 16);
    t->b->gpa2 = gpa;
    return true;
}

/* Reads the guest's bytes up to the end of the page; the second page only if the first instruction
 * needs it.  false: a fetch fault is recorded. */
static bool decode_block(struct translator *t, uint64_t gpa, unsigned max_insns)
{
    struct engine *e = t->engine;
    unsigned room = room_for_code(t);
    const uint8_t *ram = t->page ? t->page + t->page_offset : memory_hva_read(e->config.memory, gpa, room);
    decode_begin(t);
    t->n_insns = t->fetched = 0;
    t->straddles = false;
    unsigned pc = 0, passes = may_pass(t) ? BLOCK_MAX_PASSED : 0;
    while (t->n_insns < max_insns && pc < room) {
        struct insn *in = &t->insns[t->n_insns];
        fetch(t, ram, pc + 15, room);
        ZyanStatus status = decode_at(t, in, pc, room - pc > 15 ? 15 : room - pc);
        if (status == ZYDIS_STATUS_NO_MORE_DATA && undefined_already(t, t->code + pc, room - pc))
            status = ZYDIS_STATUS_DECODING_ERROR;
        if (status == ZYDIS_STATUS_NO_MORE_DATA) {
            t->straddles = t->n_insns > 0;
            if (t->straddles)
                break; /* the straddling instruction gets its own block */
            if (!fetch_second(t, room))
                return false;
            status = decode_at(t, in, 0, 15);
        }
        if (ZYAN_FAILED(status))
            undefined_insn(t, in, t->code + pc, status);
        t->n_insns++;
        pc += in->length;
        if (ZYAN_FAILED(status) || (in->shape->ends && !(in->shape->passable && passes > 0)))
            break;
        passes -= in->shape->ends;
    }
    return true;
}

/* --- exits ---------------------------------------------------------------------------------------- */

void add_map(struct translator *t, uint32_t host, const struct insn *in)
{
    struct engine *e = t->engine;
    bool cold = host >= e->cache.hot_end;
    uint32_t start = cold ? t->b->cold_start : t->b->hot_start;
    e->maps[e->n_maps++] = (struct pc_map){.host = (uint16_t)(host - start), .guest = in->pc & 1023, .cold = cold};
}

void emit_indirect(struct translator *t, const struct insn *in)
{
    struct emit *e = &t->hot;
    enum flags_place place = t->flags; /* as it still is where this is jumped over */
    if (in->live_after)
        flags_to_memory(t, R10);
    t->flags = place;
    e_rorx(e, R10, R11, IBTC_SHIFT);                                                                /* ibtc_index() */
    e_gs(e, 0x23, false, R10, (uint32_t)offsetof(struct soft_vcpu, ibtc_mask[t->mode & MODE_MMU])); /* and */
    e_gs_index8(e, 0xff, false, 4, R10, ibtc_offset(t->mode, entry));
}

static bool in_page(const struct translator *t, int64_t target)
{
    int64_t offset = (int64_t)t->page_offset + target;
    return offset >= 0 && offset < 4096;
}

/* A direct branch to block start + target; cc < 0: always. */
void emit_exit(struct translator *t, const struct insn *in, int64_t target, int cc)
{
    struct engine *en = t->engine;
    struct emit *e = &t->hot;
    if (!(t->mode & MODE_64))
        target = (int32_t)((uint32_t)(t->gva + (uint64_t)target)) - (int64_t)(int32_t)(uint32_t)t->gva;
    bool cross = !in_page(t, target) || t->b->gpa2 != UINT64_MAX || (t->straddles && target == t->b->length);
    bool poll = t->poll_after || target <= (int64_t)in->pc;
    if (cross && !(t->mode & MODE_FIXED_PC)) {
        /* another page in position-independent code: by address, through the IBTC */
        uint32_t skip = 0;
        if (cc >= 0)
            skip = e_jcc(e, (unsigned)cc ^ 1, 0);
        emit_pc(t, R11, target);
        emit_indirect(t, in);
        if (cc >= 0)
            e_patch(e, skip, e_offset(e));
        return;
    }
    uint32_t index = en->n_exits++;
    struct exit *x = &en->exits[index];
    *x = (struct exit){.from = soft_block_number(en, t->b),
                       .mode = t->mode & 0x1ffff,
                       .target = (int32_t)target,
                       .poll = poll,
                       .cross = cross};
    x->flags_in_memory = t->flags == FLAGS_MEMORY;
    x->flags_live = in->live_after;
    x->stub = e_offset(&t->cold);
    emit_way_out(en, &t->cold, R9, index, OUT_EXIT);
    x->patch = cc < 0 ? e_jmp(e, x->stub) : e_jcc(e, (unsigned)cc, x->stub);
}

/* --- the block -------------------------------------------------------------------------------------- */

/* The body wants the flags in one place; who comes with them in the other moves them. */
static void emit_entries(struct translator *t)
{
    struct emit *e = &t->hot, *c = &t->cold;
    struct block *b = t->b;
    bool live = t->insns[0].live_before;
    flags_place_at_entry(t);
    b->entry_memory = e_offset(e);
    if (live && t->flags == FLAGS_HOST)
        e_restore_flags(e, VOFF(slow_flags), R9);
    b->entry = e_offset(e);
    if (live && t->flags == FLAGS_MEMORY) {
        b->entry = e_offset(c);
        e_save_flags(c, VOFF(slow_flags), R9);
        e_jmp(c, b->entry_memory);
    }
    b->flags_live = live;
}

/* Which rule of "device not available" an instruction falls under. */
static uint32_t simd_kind(const struct insn *in)
{
    if (in->d->encoding == ZYDIS_INSTRUCTION_ENCODING_EVEX)
        return 4;
    if (in->d->encoding == ZYDIS_INSTRUCTION_ENCODING_VEX)
        return 3;
    if (in->d->meta.isa_set == ZYDIS_ISA_SET_X87)
        return in->d->mnemonic == ZYDIS_MNEMONIC_FWAIT ? 5 : 0;
    for (unsigned i = 0; i < in->d->operand_count; i++)
        if (in->op[i].type == ZYDIS_OPERAND_TYPE_REGISTER &&
            ZydisRegisterGetClass(in->op[i].reg.value) == ZYDIS_REGCLASS_XMM)
            return 2;
    return in->d->mnemonic == ZYDIS_MNEMONIC_LDMXCSR || in->d->mnemonic == ZYDIS_MNEMONIC_STMXCSR ? 2 : 1;
}

static void translate_insn(struct translator *t, const struct insn *in)
{
    uint32_t first = t->engine->n_maps;
    add_map(t, e_offset(&t->hot), in);
    if (in >= t->insns + t->window_end)
        t->window_open = false;
    window_hoist(t, in);
    if (t->mode & MODE_BREAK)
        emit_helper(t, in, helper_break, false);
    if ((t->mode & MODE_FPU_TRAP) && in->shape->simd) {
        struct site *s = emit_helper(t, in, helper_fpu_check, false);
        s->arg = simd_kind(in);
    }
    if ((t->mode & MODE_SEGMENTED) && !(t->mode & MODE_64))
        emit_segment_checks(t, in);
    special_fn *fn = shape_special(in->shape);
    if (fn)
        fn(t, in);
    else
        generic_insn(t, in);
    for (uint32_t i = first; i < t->engine->n_maps; i++)
        t->engine->maps[i].flags_in_memory = flags_in_memory(t, in);
    flags_after(t, in);
}

static void translate_body(struct translator *t)
{
    struct insn *last = NULL;
    bool stop = false;
    t->ended = t->shadow = t->window_open = false;
    t->window_end = 0;
    for (unsigned i = 0; i < t->n_insns && !t->ended && !stop; i++) {
        stop = t->shadow;
        t->poll_after |= stop;
        last = &t->insns[i];
        translate_insn(t, last);
    }
    if (!t->ended) {
        if (t->mode & MODE_BY_C)
            emit_helper(t, last, helper_single_step, true);
        else
            emit_exit(t, last, last->pc + last->length, CC_NONE);
    }
}

/* Into the next free block, for which there is room.  false: exception recorded, or its bytes are not known. */
bool translate_into(struct translator *t, struct soft_vcpu *v, struct block *b, const struct block *what)
{
    struct engine *e = v->engine;
    t->v = v;
    t->engine = e;
    t->b = b;
    t->mode = what->mode;
    t->no_windows = what->no_windows || (what->mode & MODE_UNGROUPED);
    t->gva = what->gva;
    t->page_offset = what->gpa & 4095;
    t->poll_after = false;
    t->fixes.n = 0;
    *b = *what;
    if (!(b->mode & MODE_FIXED_PC))
        b->gva = t->page_offset;
    b->gpa2 = UINT64_MAX;
    if (!decode_block(t, b->gpa, b->mode & (MODE_TF | MODE_BREAK) ? 1 : BLOCK_MAX_INSNS))
        return false;
    flag_liveness(t);
    struct insn *last = &t->insns[t->n_insns - 1];
    b->n_insns = (uint16_t)t->n_insns;
    b->length = (uint16_t)(last->pc + last->length);
    b->first_map = e->n_maps;
    b->first_exit = e->n_exits;
    t->hot = (struct emit){.p = e->cache.rw + e->cache.hot, .start = e->cache.rw};
    t->cold = (struct emit){.p = e->cache.rw + e->cache.cold, .start = e->cache.rw};
    b->hot_start = e->cache.hot;
    b->cold_start = e->cache.cold;
    b->first_site = e->n_sites;
    emit_ways(t);
    emit_entries(t);
    translate_body(t);
    b->n_sites = (uint16_t)(e->n_sites - b->first_site);
    b->hot_end = e_offset(&t->hot);
    b->cold_end = e_offset(&t->cold);
    b->n_exits = (uint8_t)(e->n_exits - b->first_exit);
    b->n_map = (uint16_t)(e->n_maps - b->first_map);
    e->cache.hot = (b->hot_end + BLOCK_ALIGN - 1) & ~(BLOCK_ALIGN - 1);
    e->cache.cold = b->cold_end;
    v->stats.blocks++;
    v->stats.insns += t->n_insns;
    v->stats.guest_bytes += b->length;
    return true;
}

struct block *soft_translate(struct soft_vcpu *v, uint64_t rip, uint64_t gpa, uint32_t mode, bool no_windows)
{
    struct engine *e = v->engine;
    struct translator *t = v->translator;
    struct block *b = soft_block_alloc(e);
    const struct block what = {.gpa = gpa,
                               .gva = rip,
                               .mode = mode,
                               .no_windows = no_windows,
                               .hot = e->config.always_hot || soft_is_hot(e, gpa)};
    soft_code_claim(e, gpa >> 12);
    if (!translate_into(t, v, b, &what)) {
        e->n_blocks--;
        soft_code_claimed(e);
        return NULL;
    }
    soft_block_insert(e, b);
    soft_code_claimed(e);
    if (e->note)
        note_block(t);
    if (v->cpu.log && (e->config.log_items & ENGINE_LOG_TRANSLATE))
        v->cpu.log(&v->cpu, "translate",
                   "%#llx (gpa %#llx, mode %#x%s): %u instructions, %u bytes to %u at %#x and %u at %#x",
                   (unsigned long long)rip, (unsigned long long)gpa, mode, b->hot ? ", hot" : "", b->n_insns, b->length,
                   b->hot_end - b->hot_start, b->hot_start, b->cold_end - b->cold_start, b->cold_start);
    return b;
}
