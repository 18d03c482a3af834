/*
 * insn-diff: instructions on the real CPU against an engine.
 *
 *      insn-diff [--engine soft|native] [--seed N] [--rounds N] [--sequences N] [--invalid N]   fixed amount
 *      insn-diff --fuzz [--seconds N] [--seed N]                                                until stopped
 *      insn-diff --one SPEC                                                                     one failing case again
 *      ... --bits 32                                                                            compatibility mode
 *      ... --bits 16                                        16-bit code in it
 *      ... --flat                                           32-bit code with no segments but Linux's
 *      ... --hot                                            only the part in which the engine takes all code for hot
 *      ... --strict                                         differences of known.c are failures, too
 */
#include <getopt.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "insn.h"

struct options {
    const struct backend *engine;
    uint64_t seed;
    unsigned rounds, sequences, invalid, seconds, show, repeat;
    bool fuzz, left_out, compat, narrow, flat, hot, strict;
    const char *one, *only;
};

/* Failures that differ in the same way are one group; each keeps a few samples of different mnemonics. */
#define MAX_GROUPS 512
#define SAMPLES 8
#define NO_MNEMONIC (ZYDIS_MNEMONIC_MAX_VALUE + 1) /* sequences; +1: invalid encodings */
struct group {
    char key[64];
    uint32_t count, n_samples;
    uint32_t by_mnemonic[ZYDIS_MNEMONIC_MAX_VALUE + 3];
    char sample[SAMPLES][1280];
};

struct session {
    struct options o;
    struct forms forms;
    struct xstate_layout layout;
    struct batch *batch;
    struct runner *cpu, *engine;
    struct group *group;
    uint32_t n_groups;
    uint64_t executed, same, failed, undefined, no_oracle, executes_though_rejected, ud_differs_there;
    uint64_t bad_stack; /* not tried: the stack pointer is not canonical, see any_stack */
    uint64_t wavering;  /* the CPU came to another result the second time */
    uint64_t known[N_KNOWN];
    uint64_t undefined_by_mnemonic[ZYDIS_MNEMONIC_MAX_VALUE + 1];
    bool differed[BATCH];     /* at CPL3 */
    uint8_t rejected[4][256]; /* by map and opcode byte: executes though Zydis rejects it */
    struct timespec start;
};

static double elapsed(const struct session *s)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)(now.tv_sec - s->start.tv_sec) + (double)(now.tv_nsec - s->start.tv_nsec) / 1e9;
}

/* ---- reporting ----------------------------------------------------------------------------------------- */
static void spec(const struct test *t, char *out, size_t size)
{
    int n = snprintf(out, size, "%" PRIx64 ":", t->addr);
    for (unsigned k = 0; k < t->len; k++)
        n += snprintf(out + n, size - (size_t)n, "%02x", t->code[k]);
    snprintf(out + n, size - (size_t)n, ":%" PRIx64 ":%u:%u", t->seed, t->mode, t->kind);
}

static struct group *find_group(struct session *s, const char *key)
{
    for (uint32_t n = 0; n < s->n_groups; n++)
        if (!strcmp(s->group[n].key, key))
            return &s->group[n];
    if (s->n_groups == MAX_GROUPS)
        return NULL;
    struct group *g = &s->group[s->n_groups++];
    snprintf(g->key, sizeof g->key, "%s", key);
    return g;
}

/* "xmm7: cpu ..." -> "xmm"; exceptions keep both vectors; flags after a fault are a class of their own. */
static void group_key(const struct result *cpu, const struct result *other, const char *what, char *key, size_t size)
{
    int n = 0;
    if (other->status != RUN_OK)
        snprintf(key, size, "%.60s", what);
    else if (cpu->vector != other->vector)
        snprintf(key, size, "vector: cpu %u, engine %u", cpu->vector, other->vector);
    else if (cpu->vector != 3 && strstr(what, " rflags:") == what)
        snprintf(key, size, "rflags at a fault");
    else {
        while (what[n + 1] && !strchr(":,;0123456789", what[n + 1]))
            n++;
        snprintf(key, size, "%.*s%s", n, what + 1, cpu->vector == 3 ? "" : " at a fault");
    }
}

static const char *name_of(unsigned mnemonic)
{
    return mnemonic == NO_MNEMONIC       ? "(sequence)"
           : mnemonic == NO_MNEMONIC + 1 ? "(invalid)"
                                         : ZydisMnemonicGetString(mnemonic);
}

static void failure(struct session *s, const struct test *t, const struct result *cpu, const struct result *other,
                    unsigned cpl, const char *what)
{
    char key[64], line[256], code[320], options[32];
    unsigned mnemonic = t->kind == TEST_INVALID ? NO_MNEMONIC + 1 : NO_MNEMONIC;
    if (t->form != UINT32_MAX) {
        s->forms.form[t->form].failures++;
        mnemonic = s->forms.form[t->form].mnemonic;
    }
    group_key(cpu, other, what, key, sizeof key);
    size_t n = (size_t)(t - s->batch->test);
    if (cpl == 0 && !s->differed[n])
        strncat(key, " (CPL0 only)", sizeof key - strlen(key) - 1);
    s->differed[n] = cpl == 3;
    struct group *g = find_group(s, key);
    if (!g)
        return;
    g->count++;
    if (g->by_mnemonic[mnemonic]++ && t->form != UINT32_MAX && !s->o.only)
        return;
    if (g->n_samples == SAMPLES)
        return;
    disassemble(&s->forms.decoder, t, line, sizeof line);
    spec(t, code, sizeof code);
    snprintf(options, sizeof options, "%s%s%s",
             t->narrow   ? " --bits 16"
             : t->compat ? " --bits 32"
                         : "",
             s->layout.flat ? " --flat" : "", s->o.engine->fast ? " --hot" : "");
    snprintf(g->sample[g->n_samples++], sizeof g->sample[0],
             "cpl%u %s | %s |%.400s\n        insn-diff --one %s%s (cpl%u)", cpl, line, mem_mode_name[t->mode], what,
             code, options, cpl);
}

static void print_group(const struct group *g)
{
    printf("DIFFERS %u x %s\n   ", g->count, g->key);
    unsigned listed = 0;
    for (unsigned n = 0; n <= NO_MNEMONIC + 1; n++)
        if (g->by_mnemonic[n] && listed++ < 60)
            printf(" %s:%u", name_of(n), g->by_mnemonic[n]);
    printf("%s\n", listed > 60 ? " ..." : "");
    for (unsigned k = 0; k < g->n_samples; k++)
        printf("    %s\n", g->sample[k]);
}

static int by_count(const void *a, const void *b)
{
    uint32_t x = ((const struct group *)a)->count, y = ((const struct group *)b)->count;
    return x < y ? 1 : x > y ? -1 : 0;
}

static void report_forms(struct session *s)
{
    unsigned out[OUT_REASONS] = {0}, covered = 0, failed = 0, missed = 0;
    for (uint32_t n = 0; n < s->forms.n; n++) {
        struct form *f = &s->forms.form[n];
        bool is_ud = f->mnemonic == ZYDIS_MNEMONIC_UD0 || f->mnemonic == ZYDIS_MNEMONIC_UD1 ||
                     f->mnemonic == ZYDIS_MNEMONIC_UD2;
        if (f->out == IN_SCOPE && f->runs && !f->not_ud && !is_ud)
            f->out = OUT_HOST_LACKS;
        out[f->out]++;
        if (f->out == IN_SCOPE) {
            covered += f->runs != 0;
            missed += f->runs == 0;
        }
        failed += f->failures != 0;
    }
    printf("forms covered: %u, left out: %u", covered, s->forms.n - covered - missed);
    for (unsigned n = 1; n < OUT_REASONS; n++)
        printf("%s%u %s", n == 1 ? " (" : ", ", out[n], left_out_reason[n]);
    printf(")\n");
    if (missed)
        printf("forms not reached: %u\n", missed);
    if (failed)
        printf("forms with a difference: %u\n", failed);
}

/* Each mnemonic once per reason. */
static void list_left_out(const struct session *s)
{
    for (unsigned reason = 1; reason < OUT_REASONS; reason++) {
        const char *last = "";
        printf("left out, %s:", left_out_reason[reason]);
        for (unsigned m = 0; m <= ZYDIS_MNEMONIC_MAX_VALUE; m++)
            for (uint32_t n = 0; n < s->forms.n; n++)
                if (s->forms.form[n].out == reason && s->forms.form[n].mnemonic == m &&
                    last != ZydisMnemonicGetString(m))
                    printf(" %s", last = ZydisMnemonicGetString(m));
        printf("\n");
    }
}

static void report(struct session *s)
{
    qsort(s->group, s->n_groups, sizeof *s->group, by_count);
    for (uint32_t n = 0; n < s->n_groups && n < s->o.show; n++)
        print_group(&s->group[n]);
    for (unsigned n = 0; n <= ZYDIS_MNEMONIC_MAX_VALUE; n++)
        if (s->undefined_by_mnemonic[n])
            printf("undefined flags differ (no failure): %s %" PRIu64 "\n", ZydisMnemonicGetString(n),
                   s->undefined_by_mnemonic[n]);
    report_forms(s);
    if (s->o.left_out)
        list_left_out(s);
    printf("rejected by Zydis, executed by this CPU, not held against the engine: %" PRIu64 " encodings",
           s->executes_though_rejected);
    for (unsigned map = 0; map < 4; map++)
        for (unsigned op = 0; op < 256; op++)
            if (s->rejected[map][op])
                printf(" %s%02x", (const char *[]){"", "0f", "0f38", "0f3a"}[map], op);
    printf(" (different there: %" PRIu64 ")\n", s->ud_differs_there);
    double t = elapsed(s);
    printf("%" PRIu64 " executions in %.1f s (%.0f per second), seed %#" PRIx64
           ", no oracle (endless, system call, met its own process) %" PRIu64 ", undefined flags differ %" PRIu64
           ", groups of failures %u\n",
           s->executed, t, (double)s->executed / t, s->o.seed, s->no_oracle, s->undefined, s->n_groups);
    if (s->wavering)
        printf("no oracle, the CPU itself came to another result the second time: %" PRIu64 "\n", s->wavering);
    if (!s->layout.any_stack)
        printf("not tried, since this host runs nothing with a stack pointer that is not canonical: %" PRIu64 "\n",
               s->bad_stack);
    if (!s->layout.high_base)
        printf(
            "not tried, since this host's kernel sets the bases of FS and GS only by arch_prctl: bases in its half\n");
    uint64_t known = 0;
    for (unsigned n = 0; n < N_KNOWN; n++) {
        known += s->known[n];
        if (s->known[n])
            printf("known difference: %s: %" PRIu64 "\n", known_name(n), s->known[n]);
    }
    printf("known differences: %" PRIu64 "\n", known);
    printf("%" PRIu64 " passed, %" PRIu64 " failed\n", s->same, s->failed);
    fflush(stdout);
}

/* ---- running ------------------------------------------------------------------------------------------- */
static void note_rejected(struct session *s, const struct test *t, bool differs)
{
    unsigned n = 0;
    while (n + 3 < t->len &&
           (strchr("\x66\xf2\xf3\xf0\x2e\x36\x3e\x26\x64\x65\x67", t->code[n]) || (t->code[n] & 0xf0) == 0x40))
        n++;
    unsigned map = t->code[n] != 0x0f ? 0 : t->code[n + 1] == 0x38 ? 2 : t->code[n + 1] == 0x3a ? 3 : 1;
    s->rejected[map][t->code[n + (map == 0 ? 0 : map == 1 ? 1 : 2)]] = 1;
    s->executes_though_rejected++;
    s->ud_differs_there += differs;
}

/* More than 15 bytes: #GP, not #UD. */
static bool too_long(const struct session *s, const struct test *t)
{
    struct insn i;
    uint8_t code[CODE_MAX + 16];
    memset(code, 0xcc, sizeof code);
    memcpy(code, t->code, t->len);
    return ZydisDecoderDecodeFull(&s->forms.decoder, code, t->len + 16u, &i.i, i.op) ==
           ZYDIS_STATUS_INSTRUCTION_TOO_LONG;
}

/* --one: what happened, each way. */
static void print_result(const char *who, unsigned cpl, const struct result *r)
{
    printf("%s (cpl%u): vector %u error %#" PRIx64 " cr2 %#" PRIx64 " rip %#" PRIx64 " rflags %#" PRIx64 " %s\n", who,
           cpl, r->vector, r->error, r->cr2, r->out.rip, r->out.rflags, r->note);
    for (unsigned n = 0; n < 16; n++)
        printf("r%-2u %016" PRIx64 "%s", n, r->out.gpr[n], n % 4 == 3 ? "\n" : "  ");
}

/* Ended by a host without any_stack whenever it would have returned here: by #GP, or by #UD where a hypervisor tried to
 * emulate the instruction instead. */
static bool lost_stack(const struct result *r)
{
    return r->status == RUN_OK && (r->vector == 13 || r->vector == 6) && !canonical(r->out.gpr[GPR_RSP]);
}

/* Does the CPU itself come to another result the second time?  Then the host has meddled, as one whose kernel now and
 * then loses RFLAGS.NT where it interrupts a program.  Not asked when much is wrong. */
static bool oracle_wavers(struct session *s, const struct test *t, const struct result *cpu)
{
    struct result first = *cpu;
    if (s->failed >= 200)
        return false;
    const struct result *again = runner_again(s->cpu, (uint32_t)(t - s->batch->test));
    return again && compare(t, &first, again, 3, false, &s->layout, NULL, 0) == DIFFERENT;
}

static void judge(struct session *s, const struct test *t, const struct result *cpu, const struct result *other,
                  unsigned cpl)
{
    char what[4096];
    enum verdict v = compare(t, cpu, other, cpl, s->o.engine->fast, &s->layout, what, sizeof what);
    int known;
    s->executed++;
    bool lost = !s->layout.any_stack && (lost_stack(cpu) || lost_stack(other));
    v = lost ? NO_ORACLE : v;
    if (s->o.one && t == s->batch->test) {
        print_result("cpu", 3, cpu);
        print_result("engine", cpl, other);
    }
    if (t->form != UINT32_MAX && v != NO_ORACLE) {
        struct form *f = &s->forms.form[t->form];
        f->runs++;
        bool fetch = cpu->vector == 14 && cpu->error & 16 && cpu->out.rip == t->in.rip;
        f->not_ud += !(cpu->vector == 6 && cpu->out.rip == t->in.rip) && !fetch;
    }
    if (v != NO_ORACLE && t->kind == TEST_INVALID && !(cpu->vector == 6 && cpu->out.rip == t->in.rip) &&
        !too_long(s, t)) {
        note_rejected(s, t, v != SAME);
        return;
    }
    if (writes_unlisted(t, &s->forms.decoder, cpu, what, sizeof what)) {
        s->failed++;
        failure(s, t, cpu, cpu, cpl, what);
    }
    switch (v) {
    case NO_ORACLE:
        *(lost ? &s->bad_stack : &s->no_oracle) += 1;
        break;
    case SAME_BUT_UNDEFINED_FLAGS:
        s->undefined++;
        if (t->form != UINT32_MAX)
            s->undefined_by_mnemonic[s->forms.form[t->form].mnemonic]++;
        s->same++;
        break;
    case SAME:
        s->same++;
        break;
    case DIFFERENT:
        if (other->vector == 14 && arena_offset(other->cr2, NULL) < 0 && runner_maps(s->cpu, other->cr2)) {
            s->no_oracle++; /* it met the process that it ran in, such as its stack */
            break;
        }
        known = known_difference(&(struct seen){t, &s->forms.decoder, cpu, other, cpl, s->o.engine->fast, &s->layout});
        if (known >= 0 && !s->o.strict) {
            s->known[known]++;
            break;
        }
        if (oracle_wavers(s, t, cpu)) {
            s->wavering++;
            break;
        }
        s->failed++;
        failure(s, t, cpu, other, cpl, what);
    }
}

static bool flush_batch(struct session *s)
{
    struct batch *b = s->batch;
    if (!b->n)
        return true;
    runner_start(s->cpu, 3);
    runner_start(s->engine, 3);
    struct result *cpu = runner_finish(s->cpu), *other = runner_finish(s->engine);
    for (unsigned pass = 0; pass < 2; pass++) {
        if (!cpu || !other) {
            fprintf(stderr, "insn-diff: a test process could not be started again\n");
            return false;
        }
        for (uint32_t n = 0; n < b->n; n++)
            if (pass == 0 || !b->test[n].cpl3_only)
                judge(s, &b->test[n], &cpu[n], &other[n], pass ? 0 : 3);
        if (pass || !s->o.engine->has_cpl0)
            break;
        runner_start(s->engine, 0);
        other = runner_finish(s->engine);
    }
    memset(s->differed, 0, sizeof s->differed);
    b->n = 0;
    return true;
}

static bool push(struct session *s, uint64_t addr, const uint8_t *code, unsigned len, enum test_kind kind,
                 unsigned mode, uint64_t seed, uint32_t form)
{
    struct test *t = &s->batch->test[s->batch->n];
    t->addr = addr, t->len = (uint8_t)len, t->kind = kind, t->mode = (uint8_t)mode, t->seed = seed, t->form = form;
    t->compat = s->forms.compat;
    t->narrow = s->forms.narrow;
    memcpy(t->code, code, len);
    if (!test_fill(t, &s->forms.decoder, &s->layout))
        return true;
    if (!s->layout.any_stack && !canonical(t->in.gpr[GPR_RSP])) {
        s->bad_stack++;
        return true;
    }
    return ++s->batch->n < BATCH || flush_batch(s);
}

static bool push_form(struct session *s, uint32_t index, enum mem_mode mode, uint64_t seed)
{
    struct rng r = {seed};
    uint8_t code[192];
    for (unsigned attempt = 0; attempt < 60; attempt++) {
        uint64_t addr = code_place(&r, 6, s->o.compat);
        unsigned len = form_encode(&s->forms, &s->forms.form[index], &r, addr, mode, code);
        if (!len)
            continue;
        bool x87 = s->forms.form[index].x87 && rng_percent(&r, 40);
        if (x87)
            code[len++] = 0x9b; /* fwait: where a pending x87 exception is reported */
        return push(s, addr, code, len, TEST_FORM, mode, rng_next(&r), index) &&
               push(s, addr, code, len, TEST_FORM, mode, rng_next(&r), index);
    }
    return true;
}

static bool push_sequence(struct session *s, uint64_t seed)
{
    struct rng r = {seed};
    uint8_t code[256];
    uint64_t addr = code_place(&r, 24, s->o.compat);
    unsigned len = sequence_encode(&s->forms, &r, addr, code);
    if (len == 0 || len > CODE_MAX)
        return true;
    for (unsigned n = 0; n < (s->o.engine->fast ? 3 : 1);
         n++) { /* a second run meets what the first left in the slots */
        unsigned mode = rng_percent(&r, 85) ? rng_below(&r, 3) : rng_below(&r, MEM_MODES);
        if (!push(s, addr, code, len, TEST_SEQUENCE, mode, rng_next(&r), UINT32_MAX))
            return false;
    }
    return true;
}

static bool push_invalid(struct session *s, uint64_t seed)
{
    struct rng r = {seed};
    uint8_t code[192];
    uint64_t addr = CODE_LOW + rng_below(&r, (uint32_t)PAGE * 2 - 128);
    for (unsigned attempt = 0; attempt < 30; attempt++) {
        unsigned len = invalid_encode(&s->forms, &r, addr, code);
        if (len)
            return push(s, addr, code, len, TEST_INVALID, MEM_ALIGNED, rng_next(&r), UINT32_MAX);
    }
    return true;
}

static uint64_t seed_of(const struct session *s, uint64_t a, uint64_t b)
{
    struct rng r = {s->o.seed ^ a * 0x9e3779b97f4a7c15ull ^ b << 40};
    return rng_next(&r);
}

static bool selected(const struct session *s, const struct form *f)
{
    return f->out == IN_SCOPE && (!s->o.only || !strcmp(s->o.only, ZydisMnemonicGetString(f->mnemonic)));
}

/* Every form: `rounds` register instances, or every memory mode `rounds`/4 times, rounded up. */
static bool run_fixed(struct session *s)
{
    for (uint32_t n = 0; n < s->forms.n; n++) {
        const struct form *f = &s->forms.form[n];
        bool mem = f->mem_size || f->is_mem;
        unsigned times = mem ? MEM_MODES * ((s->o.rounds + 3) / 4) : s->o.rounds;
        for (unsigned k = 0; selected(s, f) && k < times; k++)
            if (!push_form(s, n, mem ? k % MEM_MODES : MEM_ALIGNED, seed_of(s, n, k)))
                return false;
    }
    for (uint32_t n = 0; n < s->o.sequences; n++)
        if (!push_sequence(s, seed_of(s, n, 1u << 20)))
            return false;
    for (uint32_t n = 0; n < s->o.invalid; n++)
        if (!push_invalid(s, seed_of(s, n, 1u << 21)))
            return false;
    return flush_batch(s);
}

/* Part of it again, with the engine's code for what runs often. */
static bool run_fixed_hot(struct session *s)
{
    runner_destroy(s->engine);
    s->engine = NULL;
    s->o.engine = s->o.engine->hot;
    s->o.rounds = (s->o.rounds + 3) / 4;
    s->o.sequences /= 4;
    s->o.invalid = 0;
    return runner_create(&s->engine, s->o.engine, s->batch) == 0 && run_fixed(s);
}

static bool run_fuzz(struct session *s)
{
    struct rng r = {s->o.seed};
    double next = 10;
    while (!s->o.seconds || elapsed(s) < s->o.seconds) {
        uint32_t form = rng_below(&r, s->forms.n), how = rng_below(&r, 10);
        uint64_t seed = rng_next(&r);
        bool ok = how == 0  ? push_invalid(s, seed)
                  : how < 6 ? push_sequence(s, seed)
                  : !selected(s, &s->forms.form[form])
                      ? true
                      : push_form(s, form,
                                  s->forms.form[form].mem_size || s->forms.form[form].is_mem ? rng_below(&r, MEM_MODES)
                                                                                             : MEM_ALIGNED,
                                  seed);
        if (!ok)
            return false;
        if (elapsed(s) > next) {
            printf("%" PRIu64 " executions, %" PRIu64 " failed, %.0f s\n", s->executed, s->failed, elapsed(s));
            fflush(stdout);
            next += 10;
        }
    }
    return flush_batch(s);
}

static bool run_one(struct session *s)
{
    uint8_t code[CODE_MAX];
    unsigned len = 0, mode, kind, byte;
    uint64_t seed;
    char *p;
    uint64_t addr = strtoull(s->o.one, &p, 16);
    for (p += *p == ':'; len < CODE_MAX && sscanf(p, "%2x", &byte) == 1 && *p != ':'; p += 2)
        code[len++] = (uint8_t)byte;
    if (sscanf(p, ":%" SCNx64 ":%u:%u", &seed, &mode, &kind) != 3 || mode >= MEM_MODES) {
        fprintf(stderr, "insn-diff: not a case: %s\n", s->o.one);
        return false;
    }
    push(s, addr, code, len, kind, mode, seed, UINT32_MAX);
    const struct test *t = &s->batch->test[0];
    char line[512];
    disassemble(&s->forms.decoder, t, line, sizeof line);
    printf("%s\n", line);
    for (unsigned n = 0; n < 16; n++)
        printf("r%-2u %016" PRIx64 "%s", n, t->in.gpr[n], n % 4 == 3 ? "\n" : "  ");
    printf("rip %#" PRIx64 " rflags %#" PRIx64 " fs %#" PRIx64 " gs %#" PRIx64 "\n", t->in.rip, t->in.rflags,
           t->in.fs_base, t->in.gs_base);
    for (unsigned n = 1; n < s->o.repeat; n++) /* the same code in other states: what a translation keeps may matter */
        if (!push(s, addr, code, len, kind, mode, seed + n % 64, UINT32_MAX))
            return false;
    return flush_batch(s);
}

/* ---- what the host lets programs do ---------------------------------------------------------------------- */
/* Runs a no-operation from this stack pointer.  true: the host did not let it begin. */
static bool nop_refused(struct session *s, bool compat, bool narrow, uint64_t rsp)
{
    struct test *t = &s->batch->test[0];
    *t = (struct test){
        .addr = CODE_LOW, .code = {0x90}, .len = 1, .compat = compat, .narrow = narrow, .form = UINT32_MAX};
    if (!test_fill(t, &s->forms.decoder, &s->layout))
        return false;
    t->in.gpr[GPR_RSP] = rsp;
    t->in.rflags = 0x202;
    s->batch->n = 1;
    runner_start(s->cpu, 3);
    const struct result *r = runner_finish(s->cpu);
    s->batch->n = 0;
    if (!r || r->status == RUN_DIED)
        return true;
    return r->status == RUN_OK && (r->vector == 13 || r->vector == 6) && r->out.rip == t->in.rip;
}

/* false: nothing can be tried here, and why has been said. */
static bool probe_host(struct session *s)
{
    s->layout.high_base = fsgsbase_offered();
    bool sound = !nop_refused(s, false, false, DATA_STACK + PAGE);
    s->layout.any_stack = s->o.compat || !nop_refused(s, false, false, 0x5555000000000000);
    if (s->o.narrow && !s->layout.segments) {
        printf("this host's kernel has no modify_ldt, or no 16-bit segments\n");
        return false;
    }
    s->layout.flat = true;
    bool refused = s->o.compat && sound && nop_refused(s, true, s->o.narrow, DATA_STACK + PAGE);
    s->layout.flat = s->o.flat;
    if (!refused)
        return true;
    printf("this host's kernel runs no %s code\n", s->o.narrow ? "16-bit" : "32-bit");
    return false;
}

/* ---- set-up ---------------------------------------------------------------------------------------------- */
static int parse(struct options *o, int argc, char **argv)
{
    static const struct option longs[] = {
        {"engine", 1, 0, 'e'},
        {"seed", 1, 0, 's'},
        {"rounds", 1, 0, 'r'},
        {"sequences", 1, 0, 'q'},
        {"invalid", 1, 0, 'i'},
        {"seconds", 1, 0, 't'},
        {"fuzz", 0, 0, 'f'},
        {"one", 1, 0, '1'},
        {"only", 1, 0, 'm'},
        {"show", 1, 0, 'n'},
        {"left-out", 0, 0, 'l'},
        {"bits", 1, 0, 'b'},
        {"repeat", 1, 0, 'p'},
        {"hot", 0, 0, 'h'},
        {"strict", 0, 0, 'k'},
        {"flat", 0, 0, 'F'},
        {0},
    };
    for (int c; (c = getopt_long(argc, argv, "", longs, NULL)) != -1;) {
        uint64_t v = optarg ? strtoull(optarg, NULL, 0) : 0;
        switch (c) {
        case 'e':
            if (strcmp(optarg, o->engine->name))
                o->engine = !strcmp(optarg, "native") ? &backend_native : NULL;
            break;
        case 's':
            o->seed = v;
            break;
        case 'r':
            o->rounds = (unsigned)v;
            break;
        case 'q':
            o->sequences = (unsigned)v;
            break;
        case 'i':
            o->invalid = (unsigned)v;
            break;
        case 't':
            o->seconds = (unsigned)v;
            break;
        case 'n':
            o->show = (unsigned)v;
            break;
        case 'p':
            o->repeat = (unsigned)v;
            break;
        case 'b':
            o->compat = v != 64;
            o->narrow = v == 16;
            break;
        case 'l':
            o->left_out = true;
            break;
        case 'f':
            o->fuzz = true;
            break;
        case 'F':
            o->flat = true;
            break;
        case 'k':
            o->strict = true;
            break;
        case 'h':
            o->hot = true;
            break;
        case '1':
            o->one = optarg;
            break;
        case 'm':
            o->only = optarg;
            break;
        default:
            return -1;
        }
    }
    return optind == argc && o->engine ? 0 : -1;
}

int main(int argc, char **argv)
{
    static struct session s; /* large */
    s.o = (struct options){
        .engine = BACKEND_DEFAULT, .rounds = 4, .sequences = 200000, .invalid = 30000, .show = 200, .seed = 1};
    if (parse(&s.o, argc, argv)) {
        fprintf(stderr,
                "usage: insn-diff [--engine soft|native] [--seed N] [--rounds N] [--sequences N] [--invalid N] "
                "[--bits 64|32|16] [--flat] [--hot] [--strict] [--only MNEMONIC] [--show GROUPS] [--left-out] [--fuzz "
                "[--seconds N]] [--one "
                "CASE [--repeat N]]\n");
        return 2;
    }
    if (s.o.hot && s.o.engine->hot)
        s.o.engine = s.o.engine->hot;
    signal(SIGPIPE, SIG_IGN);
    xstate_layout_init(&s.layout);
    s.layout.segments = s.o.compat && segments_create();
    s.layout.flat = s.o.flat;
    s.batch = shared_alloc(sizeof *s.batch);
    s.group = calloc(MAX_GROUPS, sizeof *s.group);
    if (!s.batch || !s.group || forms_enumerate(&s.forms, s.o.compat, s.o.narrow)) {
        fprintf(stderr, "insn-diff: no memory\n");
        return 2;
    }
    int r = runner_create(&s.cpu, &backend_native, s.batch);
    if (!r && !probe_host(&s))
        return 77;
    r = r ? r : runner_create(&s.engine, s.o.engine, s.batch);
    if (r) {
        fprintf(stderr, "insn-diff: a test process could not be set up: %s\n", strerror(-r));
        return 2;
    }
    clock_gettime(CLOCK_MONOTONIC, &s.start);
    bool ok = s.o.one ? run_one(&s) : s.o.fuzz ? run_fuzz(&s) : run_fixed(&s);
    if (ok && !s.o.one && !s.o.fuzz && s.o.engine->hot)
        ok = run_fixed_hot(&s);
    report(&s);
    runner_destroy(s.cpu);
    if (s.engine)
        runner_destroy(s.engine);
    forms_free(&s.forms);
    return ok && !s.failed ? 0 : 1;
}
