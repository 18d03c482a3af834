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
    return rip >= t->addr && rip < t->addr + t->len &&
           insn_decode(s->d, t->code + (rip - t->addr), t->addr + t->len - rip, out);
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
    if (s->t->kind != TEST_FORM || !insn_at(s, s->t->addr, &i))
        return false;
    if (i.i.mnemonic == M(XGETBV))
        r.out.gpr[0] |= s->cpu->out.gpr[0] & hidden;
    else if ((i.i.meta.category == ZYDIS_CATEGORY_XSAVE || i.i.meta.category == ZYDIS_CATEGORY_XSAVEOPT) &&
             (asked & hidden))
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
