/*
 * Differences that are known and stay: what, when, why.  Each names its instructions and everything that must be so
 * beside; whatever else is different in the same test is a failure all the same.
 */
#include <cpuid.h>
#include <string.h>

#include "insn.h"

#define M(name) ZYDIS_MNEMONIC_##name

/* Would there be no difference if the engine's result had been this? */
static bool seen_same(const struct seen *s, const struct result *other)
{
    return compare(s->t, s->cpu, other, s->cpl, s->fast, s->layout, NULL, 0) != DIFFERENT;
}

/* The instruction at rip in the test's code. */
static bool insn_at(const struct seen *s, uint64_t rip, struct insn *out)
{
    const struct test *t = s->t;
    uint64_t at = rip - t->in.rip;
    return at < t->len && insn_decode(s->d, t->code + at, t->len - at, out);
}

/* The instruction that faults in the engine, with a memory operand, on a CPU of Intel's; NULL: none. */
static const ZydisDecodedOperand *faulting_on_intel(const struct seen *s, struct insn *i)
{
    unsigned max, b, c, d;
    bool fault = s->other->vector == 12 || s->other->vector == 13 || s->other->vector == 14 || s->other->vector == 17;
    if (!fault || !__get_cpuid(0, &max, &b, &c, &d) || b != signature_INTEL_ebx || !insn_at(s, s->other->out.rip, i))
        return NULL;
    return insn_mem(i);
}

static bool is_x87(const struct insn *i)
{
    return i->i.encoding == ZYDIS_INSTRUCTION_ENCODING_LEGACY && i->i.opcode_map == ZYDIS_OPCODE_MAP_DEFAULT &&
           (i->i.opcode & 0xf8) == 0xd8;
}

/* A near branch through a register or memory, or a return, to an address that is not canonical: the CPU faults in
 * the branch, the engine without precise_flags at the target, with the stack already changed. */
static bool far_off_branch(const struct seen *s)
{
    const struct result *cpu = s->cpu, *other = s->other;
    struct insn i;
    if (!s->fast || s->t->compat || cpu->vector != 13 || other->vector != 13 || cpu->error || other->error ||
        canonical(other->out.rip) || !insn_at(s, cpu->out.rip, &i))
        return false;
    bool branch = i.i.mnemonic == M(RET) ||
                  ((i.i.mnemonic == M(JMP) || i.i.mnemonic == M(CALL)) && i.op[0].type != ZYDIS_OPERAND_TYPE_IMMEDIATE);
    /* nothing but rip, rsp and what a call pushes may differ: the rest is compared as if the branch had faulted */
    for (unsigned n = 0; n < 16; n++)
        if (n != 4 /* rsp */ && cpu->out.gpr[n] != other->out.gpr[n])
            return false;
    return branch && (i.i.mnemonic == M(CALL) || cpu->diff_hash == other->diff_hash);
}

/* XGETBV and the XSAVE family tell of state components that this host has and guests have not. */
static bool hidden_component(const struct seen *s)
{
    uint32_t low, high;
    struct insn i;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    uint64_t hidden = ((uint64_t)high << 32 | low) & ~XSTATE_BITS;
    uint64_t asked = s->t->in.gpr[2] << 32 | (uint32_t)s->t->in.gpr[0];
    struct result r = *s->other;
    if (s->t->kind != TEST_FORM || !insn_at(s, s->t->in.rip, &i))
        return false;
    bool area = i.i.meta.category == ZYDIS_CATEGORY_XSAVE || i.i.meta.category == ZYDIS_CATEGORY_XSAVEOPT;
    if (i.i.mnemonic == M(XGETBV))
        r.out.gpr[0] |= s->cpu->out.gpr[0] & hidden;
    else if (area && (asked & hidden) && s->cpu->vector == 14) /* met behind what guests have */
        return true;
    else if (area && (asked & hidden))
        r.n_diffs = s->cpu->n_diffs, r.diff_hash = s->cpu->diff_hash;
    return seen_same(s, &r);
}

/* Intel: an x87 store that meets an unmasked exception stores nothing, and so does not fault.  The engine looks at
 * the address first, as AMD's CPUs do. */
static bool x87_store_unmasked(const struct seen *s)
{
    enum { INVALID = 1, OVERFLOW = 8, UNDERFLOW = 16 };
    struct insn i;
    const ZydisDecodedOperand *mem = faulting_on_intel(s, &i);
    bool masked = !(~s->other->out.xstate[0] & (INVALID | OVERFLOW | UNDERFLOW)); /* FCW */
    return mem && is_x87(&i) && (mem->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE) && !masked &&
           (s->cpu->out.rip != s->other->out.rip || s->cpu->vector != s->other->vector);
}

/* Intel: the first 8 bytes of an x87 store of 80 bits are written before the others fault in the next page. */
static bool x87_store_in_part(const struct seen *s)
{
    struct insn i;
    const ZydisDecodedOperand *mem = faulting_on_intel(s, &i);
    struct result r = *s->other;
    r.n_diffs = s->cpu->n_diffs, r.diff_hash = s->cpu->diff_hash;
    return mem && is_x87(&i) && mem->size == 80 && s->other->vector == 14 && s->other->cr2 % PAGE == 0 &&
           seen_same(s, &r);
}

/* Intel: VCVTPS2PH has converted, with what that does to MXCSR, before its store faults. */
static bool converted_before_fault(const struct seen *s)
{
    struct insn i;
    struct result r = *s->other;
    memcpy(r.out.xstate + 24, s->cpu->out.xstate + 24, 4);
    if (s->cpu->vector == 19)
        r.vector = 19, r.error = 0;
    else if (s->cpu->cr2 - r.cr2 < 64) /* as in masked_store_address */
        r.cr2 = s->cpu->cr2;
    return faulting_on_intel(s, &i) && i.i.mnemonic == M(VCVTPS2PH) && seen_same(s, &r);
}

/* Intel: of a store under a mask that faults in its second page CR2 shows the last byte, of MASKMOVDQU it may be one
 * of the upper half.  The engine's is the first byte that faults. */
static bool masked_store_address(const struct seen *s)
{
    struct insn i;
    struct result r = *s->other;
    const ZydisDecodedOperand *mem = faulting_on_intel(s, &i);
    bool masked = mem && (mem->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE) &&
                  (i.i.encoding == ZYDIS_INSTRUCTION_ENCODING_EVEX || i.i.meta.category == ZYDIS_CATEGORY_AVX ||
                   i.i.meta.category == ZYDIS_CATEGORY_AVX2 || i.i.mnemonic == M(MASKMOVDQU));
    r.cr2 = s->cpu->cr2;
    uint64_t by = s->t->compat ? (uint32_t)(s->cpu->cr2 - s->other->cr2) : s->cpu->cr2 - s->other->cr2;
    return masked && s->other->vector == 14 && by < 64 && seen_same(s, &r);
}

/* The offset of a memory operand, with these registers. */
static uint64_t offset_of(const struct insn *i, const ZydisDecodedOperand *mem, const uint64_t gpr[16])
{
    uint64_t offset = (uint64_t)mem->mem.disp.value;
    const ZydisRegister reg[2] = {mem->mem.base, mem->mem.index};
    for (unsigned n = 0; n < 2; n++)
        if (reg[n] != ZYDIS_REGISTER_NONE)
            offset += gpr[ZydisRegisterGetId(ZydisRegisterGetLargestEnclosing(ZYDIS_MACHINE_MODE_LONG_64, reg[n]))] *
                      (n && mem->mem.scale ? mem->mem.scale : 1u);
    return i->i.address_width == 16 ? (uint16_t)offset : (uint32_t)offset;
}

/* Under a mask register, or a store under a mask in a vector or one that packs. */
static bool is_masked(const struct insn *i, const ZydisDecodedOperand *mem)
{
    if (i->i.encoding == ZYDIS_INSTRUCTION_ENCODING_EVEX && i->i.avx.mask.reg != ZYDIS_REGISTER_NONE &&
        i->i.avx.mask.reg != ZYDIS_REGISTER_K0)
        return true;
    return (mem->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE) &&
           (i->i.mnemonic == M(VMASKMOVPS) || i->i.mnemonic == M(VMASKMOVPD) || i->i.mnemonic == M(VPMASKMOVD) ||
            i->i.mnemonic == M(VPMASKMOVQ) || i->i.meta.category == ZYDIS_CATEGORY_COMPRESS);
}

/* Does an operand that CPUs take in parts go over the end of its segment, or of a 16-bit address? */
static bool over_the_end(const struct seen *s, uint64_t rip, const uint64_t gpr[16])
{
    struct insn i;
    const ZydisDecodedOperand *mem = insn_at(s, rip, &i) ? insn_mem(&i) : NULL;
    if (!mem)
        return false;
    bool parts = insn_moves_area(&i) || mem->size == 80 || i.i.mnemonic == M(BOUND) || i.i.mnemonic == M(MASKMOVDQU) ||
                 i.i.mnemonic == M(VMASKMOVDQU) || i.i.mnemonic == M(MASKMOVQ);
    bool area = i.i.meta.category == ZYDIS_CATEGORY_XSAVE || i.i.meta.category == ZYDIS_CATEGORY_XSAVEOPT;
    uint64_t limit = segment_in(s->t->seg[mem->mem.segment - ZYDIS_REGISTER_ES]).limit;
    uint64_t end = offset_of(&i, mem, gpr) + (area ? XSTATE_MAX : mem->size / 8u) - 1;
    if (!parts)
        return is_masked(&i, mem) && end > UINT32_MAX;
    return end > limit || (i.i.address_width == 16 && end > 0xffff) || end > UINT32_MAX;
}

/* The rest of such an operand is at the segment's beginning, or what comes before its end is moved. */
static bool parts_at_the_end(const struct seen *s)
{
    const struct test *t = s->t;
    return t->compat &&
           ((t->kind == TEST_FORM && over_the_end(s, t->in.rip, t->in.gpr)) ||
            over_the_end(s, s->cpu->out.rip, s->cpu->out.gpr) || over_the_end(s, s->other->out.rip, s->other->out.gpr));
}

static const struct known {
    bool (*is)(const struct seen *s);
    const char *what;
} table[N_KNOWN] = {
    {far_off_branch, "computed branch to a non-canonical address"},
    {hidden_component, "a state component of the host that guests do not have"},
    {x87_store_unmasked, "x87 store with an unmasked exception to an address that faults (Intel)"},
    {x87_store_in_part, "x87 store of 80 bits that faults in its second page (Intel)"},
    {converted_before_fault, "MXCSR at a VCVTPS2PH that faults (Intel)"},
    {masked_store_address, "byte of a masked store that a page fault shows (Intel)"},
    {parts_at_the_end, "x87, XSAVE, BOUND and masked operands over the end of a segment"},
};

int known_difference(const struct seen *s)
{
    if (s->cpu->status != RUN_OK || s->other->status != RUN_OK)
        return -1;
    for (unsigned n = 0; n < N_KNOWN; n++)
        if (table[n].is(s))
            return (int)n;
    return -1;
}

const char *known_name(unsigned n)
{
    return table[n].what;
}
