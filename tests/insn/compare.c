/* What must be equal between the CPU and an engine, and what is masked for which reason. */
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "insn.h"

/* Components that the area marks as in their initial configuration may hold anything: write it out.
 * FIP, FDP, FOP are cleared: they are the addresses at which the host ran the instruction. */
void xstate_normalise(uint8_t *x, const struct xstate_layout *l)
{
    uint64_t bv;
    memcpy(&bv, x + 512, 8);
    if (!(bv & 1)) {
        memset(x, 0, 24);
        x[0] = 0x7f, x[1] = 0x03;
        memset(x + 32, 0, 128);
    }
    memset(x + 6, 0, 18);
    memset(x + 28, 0, 4); /* MXCSR_MASK */
    for (unsigned n = 0; n < 8; n++)
        memset(x + 32 + n * 16 + 10, 0, 6);
    if (!(bv & 2))
        memset(x + 160, 0, 256);
    memset(x + 416, 0, 160);
    for (unsigned n = 2; n < 8; n++)
        if (l->part[n].size && !(bv >> n & 1))
            memset(x + l->part[n].offset, 0, l->part[n].size);
}

struct text {
    char *p;
    size_t left;
};

__attribute__((format(printf, 2, 3))) static void say(struct text *t, const char *format, ...)
{
    va_list ap;
    va_start(ap, format);
    int n = t->left ? vsnprintf(t->p, t->left, format, ap) : 0;
    va_end(ap);
    if (n > 0) {
        size_t take = (size_t)n < t->left ? (size_t)n : t->left;
        t->p += take, t->left -= take;
    }
}

static const char *const gpr_name[16] = {"rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi",
                                         "r8",  "r9",  "r10", "r11", "r12", "r13", "r14", "r15"};

static bool differ64(struct text *t, const char *name, uint64_t cpu, uint64_t other)
{
    if (cpu != other)
        say(t, " %s: cpu %#" PRIx64 " engine %#" PRIx64 ";", name, cpu, other);
    return cpu != other;
}

static bool differ_bytes(struct text *t, const char *name, unsigned number, const uint8_t *cpu, const uint8_t *other,
                         unsigned len)
{
    if (!memcmp(cpu, other, len))
        return false;
    say(t, " %s%u: cpu ", name, number);
    for (unsigned n = len; n--;)
        say(t, "%02x", cpu[n]);
    say(t, " engine ");
    for (unsigned n = len; n--;)
        say(t, "%02x", other[n]);
    say(t, ";");
    return true;
}

static bool differ_xstate(struct text *t, const uint8_t *a, const uint8_t *b, const struct xstate_layout *l)
{
    uint32_t x, y;
    bool d = differ64(t, "fcw", a[0] | a[1] << 8, b[0] | b[1] << 8);
    d |= differ64(t, "fsw", a[2] | a[3] << 8, b[2] | b[3] << 8);
    d |= differ64(t, "ftw", a[4], b[4]);
    memcpy(&x, a + 24, 4), memcpy(&y, b + 24, 4);
    d |= differ64(t, "mxcsr", x, y);
    for (unsigned n = 0; n < 8; n++)
        d |= differ_bytes(t, "st", n, a + 32 + n * 16, b + 32 + n * 16, 10);
    for (unsigned n = 0; n < 16; n++)
        d |= differ_bytes(t, "xmm", n, a + 160 + n * 16, b + 160 + n * 16, 16);
    for (unsigned n = 0; n < 16 && l->part[2].size; n++)
        d |= differ_bytes(t, "ymm-high", n, a + l->part[2].offset + n * 16, b + l->part[2].offset + n * 16, 16);
    for (unsigned n = 0; n < 8 && l->part[5].size; n++)
        d |= differ_bytes(t, "k", n, a + l->part[5].offset + n * 8, b + l->part[5].offset + n * 8, 8);
    for (unsigned n = 0; n < 16 && l->part[6].size; n++)
        d |= differ_bytes(t, "zmm-high", n, a + l->part[6].offset + n * 32, b + l->part[6].offset + n * 32, 32);
    for (unsigned n = 0; n < 16 && l->part[7].size; n++)
        d |= differ_bytes(t, "zmm", n + 16, a + l->part[7].offset + n * 64, b + l->part[7].offset + n * 64, 64);
    return d;
}

static bool differ_memory(struct text *t, const struct result *a, const struct result *b)
{
    if (a->diff_hash == b->diff_hash && a->n_diffs == b->n_diffs)
        return false;
    const struct result *r[2] = {a, b};
    for (unsigned k = 0; k < 2; k++) {
        say(t, " memory written, %s %u words:", k ? "engine" : "cpu", r[k]->n_diffs);
        for (unsigned n = 0; n < r[k]->n_diffs && n < N_DIFFS; n++)
            say(t, " [%#" PRIx64 "]=%#" PRIx64, r[k]->diff[n].gva, r[k]->diff[n].value);
        say(t, ";");
    }
    return true;
}

static bool has_error_code(unsigned vector)
{
    return 1u << (vector & 31) & 0x227d00;
}

static bool differ_exception(struct text *t, const struct test *test, const struct result *a, const struct result *b,
                             unsigned cpl)
{
    if (differ64(t, "vector", a->vector, b->vector)) {
        if (a->vector == 14 || b->vector == 14)
            say(t, " (cr2 %#" PRIx64 " / %#" PRIx64 ")", a->cr2, b->cr2);
        return true;
    }
    if (!has_error_code(a->vector))
        return false;
    uint64_t want = a->error, got = b->error;
    if (a->vector == 14 && cpl == 0)
        want &= ~4ull; /* U: the privilege of the access */
    if (a->vector == 14 && a->cr2 >= 0x7ffffffff000)
        want |= 1, got |= 1; /* beyond user space the host's kernel always reports a present page */
    bool d = differ64(t, "error", want, got);
    /* An area is moved in pieces, in an order and size of the CPU's own: CR2 is some byte of it. */
    bool same_area = test->area && a->cr2 - b->cr2 + PAGE < 2 * PAGE;
    if (a->vector == 14 && !same_area)
        d |= differ64(t, "cr2", a->cr2, b->cr2);
    return d;
}

/* The upper halves are undefined after 32-bit code (SDM vol. 1, 3.4.1.1). */
static uint64_t mask_of(const struct test *t, unsigned gpr)
{
    return t->compat && gpr < 8 ? 0xffffffff : ~0ull;
}

/* General registers that an instruction writes, by the decoder's tables: bit n for register n. */
static uint32_t written_gprs(const struct insn *i)
{
    uint32_t mask = 0;
    for (unsigned n = 0; n < i->i.operand_count; n++) {
        const ZydisDecodedOperand *o = &i->op[n];
        if (o->type != ZYDIS_OPERAND_TYPE_REGISTER || !(o->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE))
            continue;
        ZydisRegister whole = ZydisRegisterGetLargestEnclosing(ZYDIS_MACHINE_MODE_LONG_64, o->reg.value);
        if (ZydisRegisterGetClass(whole) == ZYDIS_REGCLASS_GPR64)
            mask |= 1u << ZydisRegisterGetId(whole);
    }
    /* Not in the tables, and known to the engine, which takes neither into a window: comparing strings moves rsi
     * and rdi, and F3 REX.B 90 is the exchange of rax and r8. */
    if (i->i.meta.category == ZYDIS_CATEGORY_STRINGOP)
        mask |= 0xc0;
    return i->i.mnemonic == ZYDIS_MNEMONIC_PAUSE ? mask | 0x101 : mask;
}

bool writes_unlisted(const struct test *t, const ZydisDecoder *d, const struct result *cpu, char *text, size_t size)
{
    struct text s = {text, size};
    uint32_t listed = t->compat ? 0xff00 : 0; /* nothing 32-bit code names; the host's kernel may have used them */
    if (cpu->status != RUN_OK || t->kind == TEST_INVALID)
        return false;
    for (unsigned at = 0; at < t->len;) {
        struct insn i;
        if (!insn_decode(d, t->code + at, t->len - at, &i))
            break;
        if (t->kind == TEST_FORM && i.i.meta.branch_type != ZYDIS_BRANCH_TYPE_NONE)
            return false; /* into the middle of itself, maybe */
        listed |= written_gprs(&i);
        at += i.i.length;
    }
    bool any = false;
    for (unsigned n = 0; n < 16; n++)
        if (!(listed >> n & 1) && ((cpu->out.gpr[n] ^ t->in.gpr[n]) & mask_of(t, n))) {
            say(&s, " %s is written, the decoder does not say so;", gpr_name[n]);
            any = true;
        }
    return any;
}

enum verdict compare(const struct test *t, const struct result *oracle, const struct result *other, unsigned cpl,
                     bool fast, const struct xstate_layout *l, char *text, size_t size)
{
    struct text s = {text, size};
    if (text)
        text[0] = 0;
    if (oracle->status != RUN_OK)
        return NO_ORACLE;
    if (other->status != RUN_OK) {
        say(&s, " engine: %s",
            other->note[0]                 ? other->note
            : other->status == RUN_TIMEOUT ? "does not end"
                                           : "did not run");
        return DIFFERENT;
    }
    bool d = differ_exception(&s, t, oracle, other, cpl);
    d |= differ64(&s, "rip", oracle->out.rip, other->out.rip);
    for (unsigned n = 0; n < 16; n++)
        d |= differ64(&s, gpr_name[n], oracle->out.gpr[n] & mask_of(t, n), other->out.gpr[n] & mask_of(t, n));
    d |= differ64(&s, "fs.base", oracle->out.fs_base, other->out.fs_base);
    d |= differ64(&s, "gs.base", oracle->out.gs_base, other->out.gs_base);
    d |= differ_memory(&s, oracle, other);
    uint8_t x[2][XSTATE_MAX] __attribute__((aligned(64)));
    memcpy(x[0], oracle->out.xstate, l->size);
    memcpy(x[1], other->out.xstate, l->size);
    xstate_normalise(x[0], l);
    xstate_normalise(x[1], l);
    if (memcmp(x[0], x[1], l->size))
        d |= differ_xstate(&s, x[0], x[1], l);
    uint64_t flags = (oracle->out.rflags ^ other->out.rflags);
    if (fast && oracle->vector != 3)
        flags &= ~0x8d5ull; /* as docs/QUIRKS.md has it */
    if (t->compat && oracle->vector == 13 && oracle->out.rip > segment_in(t->seg[IN_CS]).limit)
        flags &= ~0x10000ull; /* RF: the host's kernel may have returned there, which is what faulted then */
    if (flags) {
        differ64(&s, flags & ~t->undefined_flags ? "rflags" : "undefined rflags", oracle->out.rflags,
                 other->out.rflags);
        d |= (flags & ~t->undefined_flags) != 0;
    }
    return d ? DIFFERENT : flags ? SAME_BUT_UNDEFINED_FLAGS : SAME;
}

void disassemble(const ZydisDecoder *d, const struct test *t, char *text, size_t size)
{
    struct text s = {text, size};
    ZydisFormatter formatter;
    ZydisFormatterInit(&formatter, ZYDIS_FORMATTER_STYLE_INTEL);
    text[0] = 0;
    for (unsigned at = 0; at < t->len;) {
        struct insn i;
        char line[128];
        if (!insn_decode(d, t->code + at, t->len - at, &i)) {
            say(&s, "%s(invalid)", at ? "; " : "");
            return;
        }
        ZydisFormatterFormatInstruction(&formatter, &i.i, i.op, i.i.operand_count_visible, line, sizeof line,
                                        t->addr + at, NULL);
        say(&s, "%s%s", at ? "; " : "", line);
        at += i.i.length;
    }
}
