/*
 * Which of the instructions that the decoder knows this guest's CPU has.
 *
 * A copied instruction that the host lacks would raise #UD by itself, but only after the soft MMU had
 * looked at its memory operand, and one that the host has but the guest's CPUID hides would run.  So the
 * question is asked at translation, of the guest's CPUID alone.
 */
#include "engine/soft/translate_int.h"

enum { ALWAYS, NEVER, L1C, L1D, L7B, L7C, L7D, L71A, LD1A, X1C, X1D, X8B, L19B, N_WORDS };

/* Where each word of feature bits comes from. */
static const struct {
    uint32_t leaf, subleaf;
    uint8_t reg; /* eax, ebx, ecx, edx */
} words[N_WORDS] = {
    [L1C] = {1, 0, 2},          [L1D] = {1, 0, 3},          [L7B] = {7, 0, 1},     [L7C] = {7, 0, 2},
    [L7D] = {7, 0, 3},          [L71A] = {7, 1, 0},         [LD1A] = {0xd, 1, 0},  [X1C] = {0x80000001, 0, 2},
    [X1D] = {0x80000001, 0, 3}, [X8B] = {0x80000008, 0, 1}, [L19B] = {0x19, 0, 1},
};

/* vl: AVX512VL is needed too */
struct need {
    uint8_t word, bit;
    bool vl;
};
#define I(name) [ZYDIS_ISA_SET_##name]
#define SIMD512(name, w, b) I(name##_128) = {w, b, true}, I(name##_256) = {w, b, true}, I(name##_512) = {w, b, false}

/* clang-format off: a table */
/* Sets that are missing here are ALWAYS: the basic instructions. */
static const struct need needs[ZYDIS_ISA_SET_MAX_VALUE + 1] = {
    I(X87) = {L1D, 0},
    I(CLFSH) = {L1D, 19},
    I(CMOV) = {L1D, 15},
    I(FCMOV) = {L1D, 15},
    I(PENTIUMMMX) = {L1D, 23},
    I(FXSAVE) = {L1D, 24},
    I(FXSAVE64) = {L1D, 24},
    I(SSE) = {L1D, 25},
    I(SSEMXCSR) = {L1D, 25},
    I(SSE2) = {L1D, 26},
    I(SSE2MMX) = {L1D, 26},
    I(SSE3) = {L1C, 0},
    I(SSE3X87) = {L1C, 0},
    I(PCLMULQDQ) = {L1C, 1},
    I(MONITOR) = {L1C, 3},
    I(VTX) = {L1C, 5},
    I(VMFUNC) = {L1C, 5},
    I(SMX) = {L1C, 6},
    I(SSSE3) = {L1C, 9},
    I(SSSE3MMX) = {L1C, 9},
    I(FMA) = {L1C, 12},
    I(CMPXCHG16B) = {L1C, 13},
    I(SSE4) = {L1C, 19},
    I(SSE42) = {L1C, 20},
    I(MOVBE) = {L1C, 22},
    I(POPCNT) = {L1C, 23},
    I(AES) = {L1C, 25},
    I(XSAVE) = {L1C, 26},
    I(AVX) = {L1C, 28},
    I(AVXAES) = {L1C, 25},
    I(F16C) = {L1C, 29},
    I(RDRAND) = {L1C, 30},
    I(RDWRFSGS) = {L7B, 0},
    I(SGX) = {L7B, 2},
    I(SGX_ENCLV) = {L7B, 2},
    I(BMI1) = {L7B, 3},
    I(AVX2) = {L7B, 5},
    I(AVX2GATHER) = {L7B, 5},
    I(BMI2) = {L7B, 8},
    I(INVPCID) = {L7B, 10},
    I(RTM) = {L7B, 11},
    I(MPX) = {NEVER},
    I(RDSEED) = {L7B, 18},
    I(ADOX_ADCX) = {L7B, 19},
    I(SMAP) = {L7B, 20},
    I(CLFLUSHOPT) = {L7B, 23},
    I(CLWB) = {L7B, 24},
    I(PT) = {L7B, 25},
    I(SHA) = {L7B, 29},
    SIMD512(AVX512F, L7B, 16),
    I(AVX512F_128N) = {L7B, 16},
    I(AVX512F_SCALAR) = {L7B, 16},
    I(AVX512F_KOP) = {L7B, 16},
    SIMD512(AVX512DQ, L7B, 17),
    I(AVX512DQ_128N) = {L7B, 17},
    I(AVX512DQ_SCALAR) = {L7B, 17},
    I(AVX512DQ_KOP) = {L7B, 17},
    SIMD512(AVX512_IFMA, L7B, 21),
    I(AVX512PF_512) = {L7B, 26},
    I(AVX512ER_512) = {L7B, 27},
    I(AVX512ER_SCALAR) = {L7B, 27},
    SIMD512(AVX512CD, L7B, 28),
    SIMD512(AVX512BW, L7B, 30),
    I(AVX512BW_128N) = {L7B, 30},
    I(AVX512BW_KOP) = {L7B, 30},
    SIMD512(AVX512_VBMI, L7C, 1),
    I(PKU) = {L7C, 3},
    I(WAITPKG) = {L7C, 5},
    SIMD512(AVX512_VBMI2, L7C, 6),
    I(CET) = {L7C, 7},
    I(GFNI) = {L7C, 8},
    I(AVX_GFNI) = {L7C, 8},
    SIMD512(AVX512_GFNI, L7C, 8),
    I(VAES) = {L7C, 9},
    SIMD512(AVX512_VAES, L7C, 9),
    I(VPCLMULQDQ) = {L7C, 10},
    SIMD512(AVX512_VPCLMULQDQ, L7C, 10),
    SIMD512(AVX512_VNNI, L7C, 11),
    SIMD512(AVX512_BITALG, L7C, 12),
    SIMD512(AVX512_VPOPCNTDQ, L7C, 14),
    I(RDPID) = {L7C, 22},
    I(KEYLOCKER) = {L19B, 0},
    I(KEYLOCKER_WIDE) = {L19B, 2},
    I(CLDEMOTE) = {L7C, 25},
    I(MOVDIR) = {L7C, 27},
    I(ENQCMD) = {L7C, 29},
    I(AVX512_4VNNIW_512) = {L7D, 2},
    I(AVX512_4FMAPS_512) = {L7D, 3},
    I(AVX512_4FMAPS_SCALAR) = {L7D, 3},
    I(UINTR) = {L7D, 5},
    SIMD512(AVX512_VP2INTERSECT, L7D, 8),
    I(SERIALIZE) = {L7D, 14},
    I(TSX_LDTRK) = {L7D, 16},
    I(PCONFIG) = {L7D, 18},
    I(AMX_BF16) = {L7D, 22},
    SIMD512(AVX512_FP16, L7D, 23),
    I(AVX512_FP16_128N) = {L7D, 23},
    I(AVX512_FP16_SCALAR) = {L7D, 23},
    I(AMX_TILE) = {L7D, 24},
    I(AMX_INT8) = {L7D, 25},
    I(AVX_VNNI) = {L71A, 4},
    SIMD512(AVX512_BF16, L71A, 5),
    I(HRESET) = {L71A, 22},
    I(XSAVEOPT) = {LD1A, 0},
    I(XSAVEC) = {LD1A, 1},
    I(XSAVES) = {LD1A, 3},
    I(SVM) = {X1C, 2},
    I(LZCNT) = {X1C, 5},
    I(SSE4A) = {X1C, 6},
    I(XOP) = {X1C, 11},
    I(LWP) = {X1C, 15},
    I(FMA4) = {X1C, 16},
    I(TBM) = {X1C, 21},
    I(MONITORX) = {X1C, 29},
    I(RDTSCP) = {X1D, 27},
    I(AMD3DNOW) = {X1D, 31},
    I(CLZERO) = {X8B, 0},
    I(AMD_INVLPGB) = {X8B, 3},
    I(RDPRU) = {X8B, 4},
    I(MCOMMIT) = {X8B, 8},
    I(SNP) = {NEVER},
    I(TDX) = {NEVER},
    I(KNCE) = {NEVER},
    I(KNCJKBR) = {NEVER},
    I(KNCSTREAM) = {NEVER},
    I(KNCV) = {NEVER},
    I(KNC_MISC) = {NEVER},
    I(KNC_PF_HINT) = {NEVER},
    I(PADLOCK_ACE) = {NEVER},
    I(PADLOCK_PHE) = {NEVER},
    I(PADLOCK_PMM) = {NEVER},
    I(PADLOCK_RNG) = {NEVER},
};
/* clang-format on */

/* Beyond the last leaf Intel's CPUs answer with other data, which is no feature bits. */
static uint32_t word(const struct cpu *cpu, unsigned w)
{
    struct cpuid_regs r;
    cpu_cpuid(cpu, words[w].leaf & 0x80000000, 0, &r);
    if (words[w].leaf > r.eax)
        return 0;
    cpu_cpuid(cpu, words[w].leaf, words[w].subleaf, &r);
    return words[w].reg == 0 ? r.eax : words[w].reg == 1 ? r.ebx : words[w].reg == 2 ? r.ecx : r.edx;
}

bool soft_is_amd(const struct cpu *cpu)
{
    struct cpuid_regs r;
    cpu_cpuid(cpu, 0, 0, &r);
    return r.ebx == 0x68747541 || r.ebx == 0x6f677948; /* Auth(enticAMD), Hygo(nGenuine) */
}

bool soft_is_zen5(const struct cpu *cpu)
{
    struct cpuid_regs r;
    cpu_cpuid(cpu, 1, 0, &r);
    unsigned family = r.eax >> 8 & 15, extended = r.eax >> 20 & 255;
    return soft_is_amd(cpu) && family + (family == 15 ? extended : 0) >= 0x1a;
}

/* Encodings that mean one thing where a feature is and another (often nothing) where it is not. */
static void decoder_modes(ZydisDecoder *d, const uint32_t *w, bool is_amd)
{
    ZydisDecoderEnableMode(d, ZYDIS_DECODER_MODE_AMD_BRANCHES, is_amd);
    ZydisDecoderEnableMode(d, ZYDIS_DECODER_MODE_KNC, ZYAN_FALSE);
    ZydisDecoderEnableMode(d, ZYDIS_DECODER_MODE_MPX, w[L7B] >> 14 & 1);
    ZydisDecoderEnableMode(d, ZYDIS_DECODER_MODE_CET, (w[L7C] >> 7 | w[L7D] >> 20) & 1);
    ZydisDecoderEnableMode(d, ZYDIS_DECODER_MODE_LZCNT, w[X1C] >> 5 & 1);
    ZydisDecoderEnableMode(d, ZYDIS_DECODER_MODE_TZCNT, w[L7B] >> 3 & 1);
    ZydisDecoderEnableMode(d, ZYDIS_DECODER_MODE_CLDEMOTE, w[L7C] >> 25 & 1);
}

void isa_init(struct translator *t, const struct cpu *cpu)
{
    uint32_t w[N_WORDS] = {[ALWAYS] = 1}; /* ALWAYS: bit 0 is set; NEVER: none is */
    for (unsigned i = L1C; i < N_WORDS; i++)
        w[i] = word(cpu, i);
    for (unsigned i = 0; i <= ZYDIS_ISA_SET_MAX_VALUE; i++)
        t->isa[i] = (w[needs[i].word] >> needs[i].bit & 1) && (!needs[i].vl || w[L7B] >> 31);
    t->movdir64b = w[L7C] >> 28 & 1;
    t->amd = soft_is_amd(cpu);
    t->zen5 = soft_is_zen5(cpu);
    decoder_modes(&t->decoder64, w, t->amd);
    decoder_modes(&t->decoder32, w, t->amd);
    decoder_modes(&t->decoder16, w, t->amd);
}

bool isa_has(const struct translator *t, const ZydisDecodedInstruction *d)
{
    if (d->mnemonic == ZYDIS_MNEMONIC_MOVDIR64B) /* of the same set as MOVDIRI */
        return t->movdir64b;
    if (d->mnemonic == ZYDIS_MNEMONIC_VMCALL ||
        d->mnemonic == ZYDIS_MNEMONIC_VMMCALL) /* a hypervisor's, not VMX or SVM */
        return true;
    if (d->opcode_map == ZYDIS_OPCODE_MAP_0F && d->opcode == 0x0d && d->raw.modrm.mod == 3)
        return !t->amd; /* PREFETCH of a register: a no-op elsewhere */
    return t->isa[d->meta.isa_set];
}
