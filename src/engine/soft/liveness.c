/*
 * Which arithmetic flags somebody may still read.
 *
 * A check of an address destroys the flags, so each one whose flags are alive must save them.  Compiled code reads its
 * flags at once, and what is behind a branch writes new ones before long; so a block's direct successors in its page
 * are looked at for as long as it takes to know.  The block then depends on those bytes as on its own: they are its
 * `peeked` ranges, whose change drops it.
 */
#include "engine/soft/translate_int.h"

#define PEEK_INSNS 8u

static uint8_t flag_bits(ZydisAccessedFlagsMask f)
{
    return (f & ZYDIS_CPUFLAG_CF ? F_CF : 0) | (f & ZYDIS_CPUFLAG_PF ? F_PF : 0) | (f & ZYDIS_CPUFLAG_AF ? F_AF : 0) |
           (f & ZYDIS_CPUFLAG_ZF ? F_ZF : 0) | (f & ZYDIS_CPUFLAG_SF ? F_SF : 0) | (f & ZYDIS_CPUFLAG_OF ? F_OF : 0);
}

/* Flags that the instruction surely overwrites.  "Undefined" counts only where real CPUs are known to
 * write; shifts and repeated comparisons by a count that may be zero write nothing. */
uint8_t flags_killed(const struct insn *in)
{
    const ZydisAccessedFlags *f = in->d.cpu_flags;
    if (!f)
        return 0;
    uint8_t sure = flag_bits(f->modified | f->set_0 | f->set_1);
    switch (in->d.mnemonic) {
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
        if (in->op[1].type == ZYDIS_OPERAND_TYPE_IMMEDIATE && (in->op[1].imm.value.u & 31))
            return in->op[0].size >= 32 ? F_ALL : 0;
        return 0;
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

uint8_t flags_tested(const struct insn *in)
{
    return in->d.cpu_flags ? flag_bits(in->d.cpu_flags->tested) : 0;
}

uint8_t flags_written(const struct insn *in)
{
    const ZydisAccessedFlags *f = in->d.cpu_flags;
    return f ? flag_bits(f->modified | f->set_0 | f->set_1 | f->undefined) : 0;
}

/* Code that goes on with the next instruction, and of which the tables know what it does to flags. */
static bool transparent(const struct insn *in)
{
    switch (in->d.mnemonic) {
    case ZYDIS_MNEMONIC_MOV:
        return is_plain_mov(in);
    case ZYDIS_MNEMONIC_PUSH:
    case ZYDIS_MNEMONIC_POP:
    case ZYDIS_MNEMONIC_LEA:
    case ZYDIS_MNEMONIC_NOP:
    case ZYDIS_MNEMONIC_ENDBR64:
    case ZYDIS_MNEMONIC_INC:
    case ZYDIS_MNEMONIC_DEC:
    case ZYDIS_MNEMONIC_BT:
    case ZYDIS_MNEMONIC_LEAVE:
        return !insn_ends_block(in);
    default:
        return !special_for(in);
    }
}

/* The flags that the code at block start + target reads before it writes them; all when it cannot be known. */
static uint8_t peek(struct translator *t, int64_t target)
{
    int64_t offset = (int64_t)t->page_offset + target;
    uint8_t live = 0, written = 0;
    unsigned pc = 0;

    if (offset < 0 || offset >= 4096 || t->b->n_peeked == BLOCK_PEEKS)
        return F_ALL;
    unsigned room = 4096 - (unsigned)offset;
    const uint8_t *ram = memory_hva(t->engine->config.memory, (t->b->gpa & ~4095ull) + (uint64_t)offset, room);
    if (!ram)
        return F_ALL;
    if (room > sizeof t->peek_code)
        room = sizeof t->peek_code;
    memcpy(t->peek_code, ram, room);
    for (unsigned i = 0; i < PEEK_INSNS && written != F_ALL; i++) {
        struct insn *in = &t->peek_insn;
        if (ZYAN_FAILED(decode_insn(t, in, t->peek_code + pc, room - pc > 15 ? 15 : room - pc)) || !transparent(in))
            break;
        live |= flags_tested(in) & (uint8_t)~written;
        written |= flags_killed(in);
        pc += in->d.length;
    }
    live |= F_ALL & (uint8_t)~written;
    if (live != F_ALL)
        t->b->peeked[t->b->n_peeked++] = (struct peeked){.first = (uint16_t)offset, .length = (uint16_t)pc};
    return live;
}

/* Ends its block and needs none of the flags. */
static bool goes_on(const struct insn *in)
{
    return in->d.mnemonic == ZYDIS_MNEMONIC_STAC || in->d.mnemonic == ZYDIS_MNEMONIC_CLAC;
}

/* What is alive behind the block's last instruction. */
static uint8_t live_at_end(struct translator *t)
{
    const struct insn *last = &t->insns[t->n_insns - 1];
    int64_t next = last->pc + last->d.length;
    /* who steps or sets breakpoints looks at the flags; a second page may be another's neighbour tomorrow */
    if (!(t->mode & MODE_64) || (t->mode & MODE_BY_C) || t->engine->config.precise_flags || t->b->gpa2 != UINT64_MAX)
        return F_ALL;
    if (last->d.meta.branch_type == ZYDIS_BRANCH_TYPE_NONE)
        return special_for(last) && insn_ends_block(last) && !goes_on(last) ? F_ALL : peek(t, next);
    if (last->d.meta.branch_type == ZYDIS_BRANCH_TYPE_FAR || last->op[0].type != ZYDIS_OPERAND_TYPE_IMMEDIATE)
        return F_ALL;
    int64_t target = next + last->op[0].imm.value.s;
    if (last->d.meta.category == ZYDIS_CATEGORY_COND_BR)
        return peek(t, next) | peek(t, target);
    return peek(t, target);
}

void flag_liveness(struct translator *t)
{
    uint8_t live = live_at_end(t);
    for (unsigned i = t->n_insns; i-- > 0;) {
        struct insn *in = &t->insns[i];
        in->live_after = live;
        live &= (uint8_t)~flags_killed(in);
        live |= flags_tested(in);
        if (t->engine->config.precise_flags) /* nearly any may fault, be it by an x87 exception that was pending */
            live = F_ALL;
        in->live_before = live;
    }
}
