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

static const struct known {
    bool (*is)(const struct test *t, const ZydisDecoder *d, const struct result *cpu, const struct result *other,
               bool fast);
    const char *what;
} table[N_KNOWN] = {
    {far_off_branch, "computed branch to a non-canonical address"},
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
