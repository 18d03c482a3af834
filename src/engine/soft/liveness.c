/*
 * Which arithmetic flags somebody may still read.
 *
 * A check of an address destroys the flags, so each one whose flags are alive must save them.  Compiled code reads its
 * flags at once, and what is behind a branch writes new ones before long; so a block's direct successors in its page
 * are looked at for as long as it takes to know.  The block then depends on those bytes as on its own: they are its
 * `peeked` ranges, whose change drops it.
 */
#include "engine/soft/translate_int.h"

static uint8_t flag_bits(ZydisAccessedFlagsMask f)
{
    return (f & ZYDIS_CPUFLAG_CF ? F_CF : 0) | (f & ZYDIS_CPUFLAG_PF ? F_PF : 0) | (f & ZYDIS_CPUFLAG_AF ? F_AF : 0) |
           (f & ZYDIS_CPUFLAG_ZF ? F_ZF : 0) | (f & ZYDIS_CPUFLAG_SF ? F_SF : 0) | (f & ZYDIS_CPUFLAG_OF ? F_OF : 0);
}

/* Flags that the instruction surely overwrites.  "Undefined" counts only where real CPUs are known to
 * write; shifts and repeated comparisons by a count that may be zero write nothing. */
static uint8_t killed(const struct shape *s)
{
    const ZydisAccessedFlags *f = shape_what(s)->d.cpu_flags;
    if (!f)
        return 0;
    uint8_t sure = flag_bits(f->modified | f->set_0 | f->set_1);
    switch (s->mnemonic) {
    case ZYDIS_MNEMONIC_AND:
    case ZYDIS_MNEMONIC_OR:
    case ZYDIS_MNEMONIC_XOR:
    case ZYDIS_MNEMONIC_TEST:
    case ZYDIS_MNEMONIC_ADD:
    case ZYDIS_MNEMONIC_SUB:
    case ZYDIS_MNEMONIC_CMP:
    case ZYDIS_MNEMONIC_NEG:
        return F_ALL;
    case ZYDIS_MNEMONIC_SHL:
    case ZYDIS_MNEMONIC_SHR:
    case ZYDIS_MNEMONIC_SAR:
        return s->counted && shape_what(s)->op[0].size >= 32 ? F_ALL : 0;
    case ZYDIS_MNEMONIC_FCOMI: /* nothing when they meet an unmasked exception, which waits for the next instruction */
    case ZYDIS_MNEMONIC_FCOMIP:
    case ZYDIS_MNEMONIC_FUCOMI:
    case ZYDIS_MNEMONIC_FUCOMIP:
    case ZYDIS_MNEMONIC_ROL:
    case ZYDIS_MNEMONIC_ROR:
    case ZYDIS_MNEMONIC_RCL:
    case ZYDIS_MNEMONIC_RCR:
    case ZYDIS_MNEMONIC_SHLD:
    case ZYDIS_MNEMONIC_SHRD:
    case ZYDIS_MNEMONIC_SCASB:
    case ZYDIS_MNEMONIC_SCASW:
    case ZYDIS_MNEMONIC_SCASD:
    case ZYDIS_MNEMONIC_SCASQ:
    case ZYDIS_MNEMONIC_CMPSB:
    case ZYDIS_MNEMONIC_CMPSW:
    case ZYDIS_MNEMONIC_CMPSD: /* that of SSE has no flags */
    case ZYDIS_MNEMONIC_CMPSQ:
        return 0;
    default:
        return sure & (uint8_t)~flag_bits(f->undefined);
    }
}

static bool is_shift(ZydisMnemonic m)
{
    return m == ZYDIS_MNEMONIC_SHL || m == ZYDIS_MNEMONIC_SHR || m == ZYDIS_MNEMONIC_SAR;
}

/* Code that goes on with the next instruction, and of which the tables know what it does to flags. */
static bool transparent(const struct shape *s)
{
    switch (s->mnemonic) {
    case ZYDIS_MNEMONIC_MOV:
        return is_plain_mov(s);
    case ZYDIS_MNEMONIC_PUSH:
    case ZYDIS_MNEMONIC_POP:
    case ZYDIS_MNEMONIC_LEA:
    case ZYDIS_MNEMONIC_NOP:
    case ZYDIS_MNEMONIC_ENDBR64:
    case ZYDIS_MNEMONIC_INC:
    case ZYDIS_MNEMONIC_DEC:
    case ZYDIS_MNEMONIC_BT:
    case ZYDIS_MNEMONIC_LEAVE:
        return !s->ends;
    default:
        return !s->special;
    }
}

void flag_facts(struct shape *s)
{
    const ZydisAccessedFlags *f = shape_what(s)->d.cpu_flags;
    s->counted = is_shift(s->mnemonic) && shape_what(s)->op[1].type == ZYDIS_OPERAND_TYPE_IMMEDIATE;
    s->flags_killed = killed(s);
    s->flags_tested = f ? flag_bits(f->tested) : 0;
    s->flags_written = f ? flag_bits(f->modified | f->set_0 | f->set_1 | f->undefined) : 0;
    s->wants_flags = s->flags_tested && s->mnemonic != ZYDIS_MNEMONIC_PUSHFQ; /* that reads them in memory */
    s->transparent = transparent(s);
}

uint8_t flags_killed(const struct insn *in)
{
    return in->shape->counted && !(in->imm[0] & 31) ? 0 : in->shape->flags_killed;
}

/* Of the block and what was peeked at. */
static unsigned bytes_noted(const struct translator *t)
{
    const struct insn *last = &t->insns[t->n_insns - 1];
    unsigned n = last->pc + last->length;
    for (unsigned i = 0; i < t->b->n_peeked; i++)
        n += t->b->peeked[i].length;
    return n;
}

/* The flags that the code at block start + target reads before it writes them; all when it cannot be known. */
static uint8_t peek(struct translator *t, int64_t target)
{
    int64_t offset = (int64_t)t->page_offset + target;
    uint8_t live = 0, written = 0;
    unsigned pc = 0;

    if (offset < 0 || offset >= 4096)
        return F_ALL;
    unsigned room = 4096 - (unsigned)offset;
    const uint8_t *ram = t->page ? t->page + offset
                                 : memory_hva_read(t->engine->config.memory, (t->b->gpa & ~4095ull) + (uint64_t)offset,
                                                   room);
    const unsigned fixes = t->fixes.n, noted = bytes_noted(t);
    if (!ram)
        return F_ALL;
    for (unsigned i = 0; i < PEEK_INSNS && written != F_ALL; i++) {
        struct insn *in = &t->peek_insn;
        unsigned n = room - pc > 15 ? 15 : room - pc;
        memcpy(t->peek_code, ram + pc, n);
        if (ZYAN_FAILED(decode_insn(t, in, t->peek_code, n)) || !in->shape->transparent)
            break;
        live |= in->shape->flags_tested & (uint8_t)~written;
        written |= flags_killed(in);
        if (t->engine->note)
            note_fixes(t, in, noted + pc, &t->fixes);
        pc += in->length;
    }
    live |= F_ALL & (uint8_t)~written;
    const struct insn *last = &t->insns[t->n_insns - 1];
    bool own = target >= 0 && target + pc <= last->pc + last->length; /* it depends on those bytes anyway */
    const bool full = t->b->n_peeked == BLOCK_PEEKS;
    if (live == F_ALL || own || full) {
        t->fixes.n = fixes;
        return full && !own ? F_ALL : live;
    }
    t->b->peeked[t->b->n_peeked++] = (struct peeked){.first = (uint16_t)offset, .length = (uint16_t)pc};
    return live;
}

/* Ends its block and needs none of the flags. */
static bool goes_on(const struct insn *in)
{
    return in->shape->mnemonic == ZYDIS_MNEMONIC_STAC || in->shape->mnemonic == ZYDIS_MNEMONIC_CLAC;
}

/* Who steps or sets breakpoints looks at the flags; a second page may be another's neighbour tomorrow. */
static bool knows_successors(const struct translator *t)
{
    return (t->mode & MODE_64) && !(t->mode & MODE_BY_C) && !t->engine->config.precise_flags &&
           t->b->gpa2 == UINT64_MAX;
}

/* What is alive behind the block's last instruction. */
static uint8_t live_at_end(struct translator *t)
{
    const struct insn *last = &t->insns[t->n_insns - 1];
    int64_t next = last->pc + last->length;
    if (!knows_successors(t))
        return F_ALL;
    if (last->d->meta.branch_type == ZYDIS_BRANCH_TYPE_NONE)
        return last->shape->special && last->shape->ends && !goes_on(last) ? F_ALL : peek(t, next);
    if (last->d->meta.branch_type == ZYDIS_BRANCH_TYPE_FAR || last->op[0].type != ZYDIS_OPERAND_TYPE_IMMEDIATE ||
        (last->d->attributes & ZYDIS_ATTRIB_HAS_OPERANDSIZE)) /* AMD: its target is cut to 16 bits */
        return F_ALL;
    int64_t target = next + last->imm[0];
    if (last->d->meta.category == ZYDIS_CATEGORY_COND_BR)
        return peek(t, next) | peek(t, target);
    return peek(t, target);
}

void flag_liveness(struct translator *t)
{
    uint8_t live = live_at_end(t);
    for (unsigned i = t->n_insns; i-- > 0;) {
        struct insn *in = &t->insns[i];
        if (in->shape->ends && i < t->n_insns - 1) /* a branch that it goes on behind */
            live |= knows_successors(t) ? peek(t, in->pc + in->length + in->imm[0]) : F_ALL;
        in->live_after = live;
        live &= (uint8_t)~flags_killed(in);
        live |= in->shape->flags_tested;
        if (t->engine->config.precise_flags) /* nearly any may fault, be it by an x87 exception that was pending */
            live = F_ALL;
        in->live_before = live;
    }
}
