/*
 * Differential instruction test: what every file of it shares.
 *
 * A test is a few bytes of code at an address, a complete user-visible CPU state and two small
 * patches of memory.  It is a pure function of (code address, code bytes, state seed, memory
 * mode, kind): that tuple is the one-line spec printed on failure.  The oracle is the host CPU.
 *
 *      forms.c     walks the opcode space, classifies, says what is left out and why
 *      encode.c    form + random choices -> code bytes
 *      values.c    edge values, the memory that tests run in
 *      segments.c  the segments of 32-bit and 16-bit code
 *      state.c     code bytes + seed -> registers, SIMD state, memory patch
 *      native.c    backend: the real CPU, in a sandboxed child, tests loaded through sigreturn
 *      guest.c     backend: a bare machine driven by an engine
 *      runner.c    one child process per backend, batches through shared memory
 *      compare.c   what must be equal, and what is masked for which reason
 *      known.c     differences that stay, each with its reason
 *      main.c      plans, totals, the report
 */
#pragma once
#include <Zydis/Zydis.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* ---- address space: the same in the native child and in the guest ------------------------------ */
#define PAGE 4096ull
enum region_access { REGION_RO, REGION_RW, REGION_RX };
struct region {
    uint64_t gva;
    unsigned pages;
    enum region_access access;
    unsigned arena_page; /* where it lives in the arena, in pages */
};
/* Everything beside these pages is not mapped. */
#define DATA_LOW 0x10000000ull      /* rw rw ro rw, then nothing */
#define DATA_STACK 0x1000f000ull    /* rw rw: where 16-bit segments at DATA_LOW have their end */
#define DATA_HIGH 0x123456780000ull /* rw rw */
#define CODE_LOW 0x20000000ull      /* rx rx */
#define CODE_HIGH 0x123456700000ull /* rx rx */
#define N_REGIONS 7
#define ARENA_DATA_PAGES 8 /* compared after each test; code pages follow */
#define ARENA_PAGES 12
extern const struct region regions[N_REGIONS];
/* Offset in the arena of gva, or -1; *left = bytes to the end of its region. */
int64_t arena_offset(uint64_t gva, uint64_t *left);
void arena_fill(uint8_t *arena); /* the pristine contents: edge values, valid FXSAVE/XSAVE images, int3 in code */
#define IMAGE_FXSAVE 0x800       /* offsets from DATA_LOW of valid images */
#define IMAGE_XSAVE 0x3100

/* ---- state ------------------------------------------------------------------------------------- */
#define XSTATE_MAX 2688 /* the standard-format area up to PKRU */
#define XSTATE_BITS 0xe7ull
struct xstate_layout { /* of this host, from CPUID leaf 0xD */
    uint64_t bits;     /* XCR0 & XSTATE_BITS */
    uint32_t size;
    struct {
        uint32_t offset, size;
    } part[8];
    bool segments;  /* those of segments.c can be used */
    bool high_base; /* FS and GS may have a base in the kernel's half */
    bool flat;      /* 32-bit code gets no others */
    bool any_stack; /* programs may run with an RSP that is not canonical */
};
void xstate_layout_init(struct xstate_layout *l);

struct insn_state {
    uint64_t gpr[16];
    uint64_t rip, rflags, fs_base, gs_base;
    uint8_t xstate[XSTATE_MAX] __attribute__((aligned(64)));
};

enum { GPR_RSP = 4, GPR_RBP }; /* its number in gpr */
#define CODE_MAX 96
#define PATCH_MAX 192
#define N_PATCHES 2
struct patch {
    uint64_t addr;
    uint32_t len;
    uint8_t bytes[PATCH_MAX];
};
enum test_kind { TEST_FORM, TEST_SEQUENCE, TEST_INVALID };
struct test {
    struct insn_state in;
    uint64_t addr;
    uint8_t code[CODE_MAX];
    uint8_t len;
    uint8_t kind, mode;
    bool cpl3_only;
    bool area;       /* an instruction in it moves an x87 or XSAVE area */
    bool compat;     /* 32-bit code in compatibility mode; else 64-bit */
    bool narrow;     /* 16-bit; compat, too */
    uint16_t seg[6]; /* selectors, with compat: ES, CS, SS, DS, FS, GS */
    uint64_t seed;
    uint32_t form; /* index, or UINT32_MAX */
    uint64_t undefined_flags;
    struct patch patch[N_PATCHES];
};

enum run_status { RUN_NONE, RUN_OK, RUN_TIMEOUT, RUN_SYSCALL, RUN_DIED, RUN_ODD };
#define N_DIFFS 12
struct result {
    struct insn_state out;
    uint8_t status;
    uint8_t vector;
    uint64_t error, cr2;
    uint32_t n_diffs; /* 8-byte words of memory that changed */
    uint64_t diff_hash;
    struct {
        uint64_t gva, value;
    } diff[N_DIFFS];
    char note[80];
};

/* ---- segments.c: of code that is not 64-bit ------------------------------------------------------- */
/* In the native child's LDT; the guest has them in the hidden parts only.  Others are Linux's flat ones, and null. */
enum { IN_ES, IN_CS, IN_SS, IN_DS, IN_FS, IN_GS };
struct segment_in {
    uint32_t base, limit; /* in bytes */
    uint16_t attr;        /* as in cpu/cpu.h */
};
struct segment_in segment_in(uint16_t selector);
bool segment_is_big(uint16_t selector); /* D/B */
bool segments_create(void);             /* children inherit them; not every kernel and container has modify_ldt */
struct rng;
/* flat: as 32-bit programs have them; else others, too. */
void segments_pick(struct rng *r, bool narrow, bool flat, bool created, uint16_t seg[6]);

/* Does the host's kernel let programs use RDFSBASE, WRFSBASE and so on? */
bool fsgsbase_offered(void);
static inline bool canonical(uint64_t a)
{
    return (uint64_t)((int64_t)(a << 16) >> 16) == a;
}

/* ---- batches ----------------------------------------------------------------------------------- */
#define BATCH 1024
struct batch {
    uint32_t n;
    struct test test[BATCH];
};
struct backend {
    const char *name;
    bool has_cpl0;
    bool fast;                 /* flags and branch targets at faults are not precise: docs/QUIRKS.md */
    const struct backend *hot; /* the same engine, all code treated as hot, and fast; NULL: there is none */
    /* Runs in the child.  0 or -errno. */
    int (*open)(void **ctx, const struct xstate_layout *layout);
    /* Runs tests [from, n) of the batch; stores *progress = index before each. */
    void (*run)(void *ctx, const struct batch *b, struct result *results, uint32_t from, unsigned cpl,
                volatile uint32_t *progress);
};
extern const struct backend backend_native;
extern const struct backend backend_soft, backend_soft_hot;

struct runner;
int runner_create(struct runner **out, const struct backend *backend, struct batch *shared_batch);
void runner_destroy(struct runner *r);
int runner_start(struct runner *r, unsigned cpl);
/* Waits for the batch given to runner_start; results are indexed like the batch. */
struct result *runner_finish(struct runner *r);
/* Runs one test of it once more; its result is replaced. */
struct result *runner_again(struct runner *r, uint32_t index);
/* Is something mapped there in the backend's process? */
bool runner_maps(const struct runner *r, uint64_t address);
void *shared_alloc(size_t size);

/* ---- memory bookkeeping of a backend ------------------------------------------------------------ */
struct arena_view {
    uint8_t *live;   /* what the test sees */
    uint8_t *shadow; /* what it should look like if nothing was written */
    uint8_t *pristine;
};
void arena_prepare(struct arena_view *v, const struct test *t);
void arena_collect(struct arena_view *v, const struct test *t, struct result *r); /* diff and restore */

/* ---- random ------------------------------------------------------------------------------------ */
struct rng {
    uint64_t s;
};
static inline uint64_t rng_next(struct rng *r)
{
    uint64_t z = (r->s += 0x9e3779b97f4a7c15ull);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
}
static inline uint32_t rng_below(struct rng *r, uint32_t n)
{
    return (uint32_t)(((rng_next(r) >> 32) * n) >> 32);
}
static inline bool rng_percent(struct rng *r, uint32_t p)
{
    return rng_below(r, 100) < p;
}

/* ---- forms -------------------------------------------------------------------------------------- */
enum left_out {
    IN_SCOPE,
    OUT_PRIVILEGED,
    OUT_KERNEL_ENTRY,
    OUT_IO,
    OUT_NONDETERMINISTIC,
    OUT_DESCRIPTOR,
    OUT_UMIP,
    OUT_SEGMENT,
    OUT_FAR,
    OUT_NOT_OFFERED,
    OUT_OFFERED,
    OUT_FSGSBASE,
    OUT_HOST_LACKS,
    OUT_REASONS,
};
extern const char *const left_out_reason[OUT_REASONS];

struct insn { /* a decoded instruction */
    ZydisDecodedInstruction i;
    ZydisDecodedOperand op[ZYDIS_MAX_OPERAND_COUNT];
};

struct form {
    uint8_t encoding; /* ZydisInstructionEncoding: LEGACY, VEX, EVEX */
    bool p66, w, lock, has_modrm, is_mem, reg_free, rm_free, vvvv_free, opcode_reg, vsib, x87;
    uint8_t rep;                                  /* 0, F2, F3 */
    uint8_t map, opcode, modrm, pp, l, b, z, aaa; /* map: 0 one-byte, 1 0F, 2 0F38, 3 0F3A */
    uint8_t disp, imm[2];                         /* sizes in bytes; disp only without modrm (moffs) */
    bool relative;                                /* imm[0] is a branch displacement */
    uint16_t mnemonic, isa_set, category;
    uint16_t mem_size; /* bytes */
    enum left_out out;
    uint64_t key;
    /* filled by the run */
    uint32_t runs, not_ud, failures;
};
struct forms {
    struct form *form;
    uint32_t n, max;
    uint32_t *hash;
    ZydisDecoder decoder;
    bool compat, narrow;
};
int forms_enumerate(struct forms *f, bool compat, bool narrow);
void forms_free(struct forms *f);
bool insn_decode(const ZydisDecoder *d, const void *bytes, size_t len, struct insn *out);
enum left_out insn_left_out(const struct insn *i);
bool insn_differs_at_cpl0(const struct insn *i);
bool insn_saves_x87_pointers(const struct insn *i);
bool insn_moves_area(const struct insn *i);
const struct ZydisDecodedOperand_ *insn_mem(const struct insn *i); /* first memory operand or NULL */

/* ---- encode.c ------------------------------------------------------------------------------------ */
enum mem_mode {
    MEM_ALIGNED,
    MEM_UNALIGNED,
    MEM_CROSS,
    MEM_CROSS_RO,
    MEM_RO,
    MEM_CROSS_NONE,
    MEM_NONE,
    MEM_FROM_NONE,
    MEM_NONCANONICAL,
    MEM_HIGH,
    MEM_HIGH_CROSS,
    MEM_HIGH_CROSS_NONE,
    MEM_CODE,
    MEM_MODES,
};
extern const char *const mem_mode_name[MEM_MODES];
uint64_t target_pick(struct rng *r, enum mem_mode mode, unsigned size, bool compat);
/* One instance of a form for address addr; its length, or 0 when the choices do not decode to it. */
unsigned form_encode(const struct forms *f, const struct form *form, struct rng *r, uint64_t addr, enum mem_mode mode,
                     uint8_t *out);
/* Where to put code of length len: mostly anywhere, sometimes across the page boundary or at the end. */
uint64_t code_place(struct rng *r, unsigned len, bool compat);
unsigned sequence_encode(const struct forms *f, struct rng *r, uint64_t addr, uint8_t *out);
unsigned invalid_encode(const struct forms *f, struct rng *r, uint64_t addr, uint8_t *out);

/* ---- state.c -------------------------------------------------------------------------------------- */
/* Fills everything of t but addr, code, len, kind, mode, compat, narrow, seed and form, which are its input.
 * false: an instruction in it is left out. */
bool test_fill(struct test *t, const ZydisDecoder *d, const struct xstate_layout *l);

/* ---- compare.c ------------------------------------------------------------------------------------- */
void xstate_normalise(uint8_t *area, const struct xstate_layout *l);
enum verdict { SAME, SAME_BUT_UNDEFINED_FLAGS, DIFFERENT, NO_ORACLE };
/* Compares and, when text is given, says what differs.  fast: arithmetic flags at faults do not count. */
enum verdict compare(const struct test *t, const struct result *oracle, const struct result *other, unsigned cpl,
                     bool fast, const struct xstate_layout *l, char *text, size_t size);
/* Has the CPU changed a general register that no instruction of the test writes by Zydis's tables?  The engine's
 * windows (src/engine/soft/window.c) trust those.  `text` says which. */
bool writes_unlisted(const struct test *t, const ZydisDecoder *d, const struct result *cpu, char *text, size_t size);
/* ---- known.c --------------------------------------------------------------------------------------- */
#define N_KNOWN 7
struct seen { /* a test and what came of it */
    const struct test *t;
    const ZydisDecoder *d;
    const struct result *cpu, *other;
    unsigned cpl;
    bool fast;
    const struct xstate_layout *layout;
};
/* Which known difference (docs/QUIRKS.md) it shows, or -1. */
int known_difference(const struct seen *s);
const char *known_name(unsigned n);

void disassemble(const ZydisDecoder *d, const struct test *t, char *text, size_t size);
