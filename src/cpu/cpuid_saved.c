/*
 * What a guest was shown of its CPU, for snapshots: 24 bytes an entry, which are leaf, subleaf, EAX, EBX, ECX, EDX.  A
 * guest looks once and then takes for granted what it saw, so a host must have all of it; more does no harm.
 */
#include "cpu/cpu_int.h"

#define ENTRY 24u

/* Where the bits are features. */
static const struct feature_register {
    uint32_t leaf, subleaf;
    unsigned reg; /* 0 EAX .. 3 EDX */
} registers[] = {
    {1, 0, 2},          {1, 0, 3},          {7, 0, 1},          {7, 0, 2},          {7, 0, 3},
    {7, 1, 0},          {7, 1, 3},          {7, 2, 3},          {0xd, 0, 0},        {0xd, 1, 0},
    {0x40000001, 0, 0}, {0x80000001, 0, 2}, {0x80000001, 0, 3}, {0x80000008, 0, 1}, {0x80000021, 0, 0},
};

static const struct {
    uint32_t leaf, subleaf;
    uint8_t reg, bit;
    const char *name;
} names[] = {
    {1, 0, 2, 0, "sse3"},
    {1, 0, 2, 1, "pclmulqdq"},
    {1, 0, 2, 9, "ssse3"},
    {1, 0, 2, 12, "fma"},
    {1, 0, 2, 13, "cx16"},
    {1, 0, 2, 17, "pcid"},
    {1, 0, 2, 19, "sse4_1"},
    {1, 0, 2, 20, "sse4_2"},
    {1, 0, 2, 22, "movbe"},
    {1, 0, 2, 23, "popcnt"},
    {1, 0, 2, 25, "aes"},
    {1, 0, 2, 26, "xsave"},
    {1, 0, 2, 28, "avx"},
    {1, 0, 2, 29, "f16c"},
    {1, 0, 2, 30, "rdrand"},
    {7, 0, 1, 0, "fsgsbase"},
    {7, 0, 1, 3, "bmi1"},
    {7, 0, 1, 5, "avx2"},
    {7, 0, 1, 7, "smep"},
    {7, 0, 1, 8, "bmi2"},
    {7, 0, 1, 9, "erms"},
    {7, 0, 1, 16, "avx512f"},
    {7, 0, 1, 17, "avx512dq"},
    {7, 0, 1, 18, "rdseed"},
    {7, 0, 1, 19, "adx"},
    {7, 0, 1, 20, "smap"},
    {7, 0, 1, 21, "avx512ifma"},
    {7, 0, 1, 23, "clflushopt"},
    {7, 0, 1, 24, "clwb"},
    {7, 0, 1, 28, "avx512cd"},
    {7, 0, 1, 29, "sha_ni"},
    {7, 0, 1, 30, "avx512bw"},
    {7, 0, 1, 31, "avx512vl"},
    {7, 0, 2, 1, "avx512vbmi"},
    {7, 0, 2, 2, "umip"},
    {7, 0, 2, 6, "avx512_vbmi2"},
    {7, 0, 2, 8, "gfni"},
    {7, 0, 2, 9, "vaes"},
    {7, 0, 2, 10, "vpclmulqdq"},
    {7, 0, 2, 11, "avx512_vnni"},
    {7, 0, 2, 12, "avx512_bitalg"},
    {7, 0, 2, 14, "avx512_vpopcntdq"},
    {7, 0, 2, 22, "rdpid"},
    {7, 0, 3, 4, "fsrm"},
    {7, 0, 3, 23, "avx512_fp16"},
    {7, 1, 0, 4, "avx_vnni"},
    {7, 1, 0, 5, "avx512_bf16"},
    {0xd, 1, 0, 1, "xsavec"},
    {0x80000001, 0, 2, 5, "abm"},
    {0x80000001, 0, 2, 6, "sse4a"},
    {0x80000001, 0, 3, 20, "nx"},
    {0x80000001, 0, 3, 26, "pdpe1gb"},
    {0x80000001, 0, 3, 27, "rdtscp"},
    {0x80000008, 0, 1, 0, "clzero"},
};

static void put32(uint8_t *out, uint32_t v)
{
    cpu_copy(out, &v, 4);
}

static uint32_t get32(const uint8_t *from)
{
    uint32_t v;

    cpu_copy(&v, from, 4);
    return v;
}

size_t cpuid_save(const struct cpuid_table *t, uint8_t out[CPUID_SAVED_MAX])
{
    size_t at = 0;

    _Static_assert(CPUID_MAX_ENTRIES * ENTRY <= CPUID_SAVED_MAX, "there is room for all");
    for (unsigned i = 0; i < t->n_entries; i++, at += ENTRY) {
        const struct cpuid_entry *e = &t->entries[i];
        const uint32_t words[6] = {e->leaf, e->subleaf, e->regs.eax, e->regs.ebx, e->regs.ecx, e->regs.edx};
        for (unsigned k = 0; k < 6; k++)
            put32(out + at + 4 * k, words[k]);
    }
    return at;
}

static uint32_t reg_of(const struct cpuid_regs *r, unsigned i)
{
    return i == 0 ? r->eax : i == 1 ? r->ebx : i == 2 ? r->ecx : r->edx;
}

/* Without stdio, as the whole room is: appends text, or a number in base 16. */
static size_t append(char *why, size_t size, size_t at, const char *text)
{
    for (; *text && at + 1 < size; at++)
        why[at] = *text++;
    if (size)
        why[at] = 0;
    return at;
}

static size_t append_hex(char *why, size_t size, size_t at, uint32_t number)
{
    char text[9] = "";
    unsigned n = 1;

    while (n < 8 && number >> 4 * n)
        n++;
    for (unsigned i = 0; i < n; i++)
        text[i] = "0123456789abcdef"[number >> 4 * (n - 1 - i) & 15];
    return append(why, size, at, text);
}

static void say_bit(char *why, size_t size, const struct feature_register *r, unsigned bit)
{
    static const char *const regs[] = {"eax", "ebx", "ecx", "edx"};
    size_t at = append(why, size, 0, "lacks ");

    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (names[i].leaf == r->leaf && names[i].subleaf == r->subleaf && names[i].reg == r->reg &&
            names[i].bit == bit) {
            append(why, size, at, names[i].name);
            return;
        }
    at = append(why, size, at, "a feature (CPUID 0x");
    at = append_hex(why, size, at, r->leaf);
    at = append(why, size, at, ", ");
    at = append(why, size, at, regs[r->reg]);
    at = append(why, size, at, " bit 0x");
    at = append_hex(why, size, at, bit);
    append(why, size, at, ")");
}

static bool has_features(const struct cpuid_table *t, uint32_t leaf, uint32_t subleaf, const struct cpuid_regs *then,
                         char *why, size_t size)
{
    const struct cpuid_regs *now = cpuid_find(t, leaf, subleaf);

    for (size_t i = 0; i < sizeof registers / sizeof *registers; i++) {
        const struct feature_register *r = &registers[i];
        if (r->leaf != leaf || r->subleaf != subleaf)
            continue;
        uint32_t missing = reg_of(then, r->reg) & ~(now ? reg_of(now, r->reg) : 0);
        if (missing) {
            say_bit(why, size, r, (unsigned)__builtin_ctz(missing));
            return false;
        }
    }
    return true;
}

/* The vendor decides about instructions' finer points, and the layout of the SIMD state is the processor's. */
static bool is_alike(const struct cpuid_table *t, uint32_t leaf, uint32_t subleaf, const struct cpuid_regs *then,
                     char *why, size_t size)
{
    const struct cpuid_regs *now = cpuid_find(t, leaf, subleaf);

    if (leaf == 0 && now && (then->ebx != now->ebx || then->ecx != now->ecx || then->edx != now->edx)) {
        append(why, size, 0, "is another vendor's");
        return false;
    }
    if (leaf == 0xd && subleaf >= 2 && then->eax && (!now || then->eax != now->eax || then->ebx != now->ebx)) {
        append(why, size, 0, "keeps its SIMD registers in another order");
        return false;
    }
    if (leaf == 0x80000008 && (then->eax & 0xff) > t->phys_bits) {
        append(why, size, 0, "has fewer address bits");
        return false;
    }
    return true;
}

bool cpuid_check(const struct cpuid_table *t, const uint8_t *saved, size_t n, char *why, size_t size)
{
    for (; n >= ENTRY; saved += ENTRY, n -= ENTRY) {
        uint32_t leaf = get32(saved), subleaf = get32(saved + 4);
        const struct cpuid_regs then = {get32(saved + 8), get32(saved + 12), get32(saved + 16), get32(saved + 20)};
        if (!is_alike(t, leaf, subleaf, &then, why, size) || !has_features(t, leaf, subleaf, &then, why, size))
            return false;
    }
    if (n)
        append(why, size, 0, "is described by half an entry");
    return n == 0;
}
