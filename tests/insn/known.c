/*
 * Differences that are known and stay: what, when, why.  Each names its instructions and everything that must be so
 * beside; whatever else is different in the same test is a failure all the same.
 */
#include "insn.h"

#define M(name) ZYDIS_MNEMONIC_##name

/* The instruction at rip in the test's code. */
static bool insn_at(const struct test *t, const ZydisDecoder *d, uint64_t rip, struct insn *out)
{
    return rip >= t->addr && rip < t->addr + t->len &&
           insn_decode(d, t->code + (rip - t->addr), t->addr + t->len - rip, out);
}

static bool canonical(uint64_t a)
{
    return (uint64_t)((int64_t)(a << 16) >> 16) == a;
}

/* A near branch through a register or memory, or a return, to an address that is not canonical: the CPU faults in
 * the branch, the engine without precise_flags at the target, with the stack already changed. */
static bool far_off_branch(const struct test *t, const ZydisDecoder *d, const struct result *cpu,
                           const struct result *other, bool fast)
{
    struct insn i;
    if (!fast || t->compat || cpu->vector != 13 || other->vector != 13 || cpu->error || other->error ||
        canonical(other->out.rip) || !insn_at(t, d, cpu->out.rip, &i))
        return false;
    bool branch = i.i.mnemonic == M(RET) ||
                  ((i.i.mnemonic == M(JMP) || i.i.mnemonic == M(CALL)) && i.op[0].type != ZYDIS_OPERAND_TYPE_IMMEDIATE);
    /* nothing but rip, rsp and what a call pushes may differ: the rest is compared as if the branch had faulted */
    for (unsigned n = 0; n < 16; n++)
        if (n != 4 /* rsp */ && cpu->out.gpr[n] != other->out.gpr[n])
            return false;
    return branch && (i.i.mnemonic == M(CALL) || cpu->diff_hash == other->diff_hash);
}

/* Flags that the SDM leaves undefined after a decimal adjustment, when an instruction of the sequence reads them: the
 * engine computes other ones than AMD's CPUs, which differ among themselves. */
static bool decimal_flags(const struct test *t, const ZydisDecoder *d, const struct result *cpu,
                          const struct result *other, bool fast)
{
    struct insn i;
    uint32_t undefined = 0, read = 0;
    if (!t->compat || t->kind != TEST_SEQUENCE)
        return false;
    for (unsigned at = 0; at < t->len && insn_decode(d, t->code + at, t->len - at, &i); at += i.i.length) {
        bool decimal = i.i.mnemonic == M(DAA) || i.i.mnemonic == M(DAS) || i.i.mnemonic == M(AAA) ||
                       i.i.mnemonic == M(AAS) || i.i.mnemonic == M(AAM) || i.i.mnemonic == M(AAD);
        if (i.i.cpu_flags)
            read |= i.i.cpu_flags->tested;
        if (decimal && i.i.cpu_flags)
            undefined |= i.i.cpu_flags->undefined;
    }
    return (undefined & read) != 0;
}

/* FCOMI and its relatives with an unmasked exception: the flags that the following #MF shows. */
static bool compare_flags(const struct test *t, const ZydisDecoder *d, const struct result *cpu, const struct result *other,
                          bool fast)
{
    struct insn i;
    bool found = false;
    if (t->kind != TEST_SEQUENCE || cpu->vector != 16 || other->vector != 16 || cpu->out.rip != other->out.rip ||
        cpu->diff_hash != other->diff_hash || (cpu->out.rflags ^ other->out.rflags) & ~0x45ull)
        return false;
    for (unsigned at = 0; at < t->len && insn_decode(d, t->code + at, t->len - at, &i); at += i.i.length)
        found |= i.i.mnemonic == M(FCOMI) || i.i.mnemonic == M(FCOMIP) || i.i.mnemonic == M(FUCOMI) ||
                 i.i.mnemonic == M(FUCOMIP);
    for (unsigned n = 0; n < 16; n++)
        found &= (uint32_t)cpu->out.gpr[n] == (uint32_t)other->out.gpr[n];
    return found;
}

/* CMPS of 32-bit code of which one operand wraps at 4 GiB and the other is not mapped: which fault comes first. */
static bool compare_order(const struct test *t, const ZydisDecoder *d, const struct result *cpu, const struct result *other,
                          bool fast)
{
    struct insn i;
    if (!t->compat || cpu->out.rip != other->out.rip || cpu->diff_hash != other->diff_hash ||
        (cpu->vector != 14) == (other->vector != 14) || !insn_at(t, d, cpu->out.rip, &i))
        return false;
    unsigned limit = cpu->vector == 14 ? other->vector : cpu->vector;
    return (limit == 12 || limit == 13) &&
           (i.i.mnemonic == M(CMPSB) || i.i.mnemonic == M(CMPSW) || i.i.mnemonic == M(CMPSD));
}

/* 32-bit code: ARPL to the code segment reads first, and a string operand through SS that wraps raises #SS. */
static bool segment_order(const struct test *t, const ZydisDecoder *d, const struct result *cpu, const struct result *other,
                          bool fast)
{
    struct insn i;
    if (!t->compat || other->vector != 13 || cpu->out.rip != other->out.rip || cpu->diff_hash != other->diff_hash ||
        !insn_at(t, d, cpu->out.rip, &i))
        return false;
    if (i.i.mnemonic == M(ARPL))
        return cpu->vector == 14 && i.op[0].mem.segment == ZYDIS_REGISTER_CS;
    return cpu->vector == 12 && i.i.meta.category == ZYDIS_CATEGORY_STRINGOP;
}

static const struct known {
    bool (*is)(const struct test *t, const ZydisDecoder *d, const struct result *cpu, const struct result *other,
               bool fast);
    const char *what;
} table[N_KNOWN] = {
    {far_off_branch, "computed branch to a non-canonical address"},
    {decimal_flags, "undefined flags of a decimal adjustment read in a sequence"},
    {compare_flags, "flags of FCOMI with an unmasked exception, at the #MF"},
    {compare_order, "which operand of CMPS faults first at the end of a segment"},
    {segment_order, "order and vector of segment faults of ARPL and string instructions"},
};

int known_difference(const struct test *t, const ZydisDecoder *d, const struct result *cpu, const struct result *other,
                     bool fast)
{
    if (cpu->status != RUN_OK || other->status != RUN_OK)
        return -1;
    for (unsigned n = 0; n < N_KNOWN; n++)
        if (table[n].is(t, d, cpu, other, fast))
            return (int)n;
    return -1;
}

const char *known_name(unsigned n)
{
    return table[n].what;
}
