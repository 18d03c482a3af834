/* The translator's inside: the state of one block under translation (translate.c, access.c, special.c and their
 * relatives). */
#pragma once
#include <Zydis/Zydis.h>
#include <stdbool.h>

#include "engine/soft/course.h"
#include "engine/soft/soft_int.h"
#include "engine/soft/emit.h"

#define BLOCK_MAX_INSNS 48
#define BLOCK_MAX_PASSED 2u /* conditional branches that a hot block goes on behind */
#define TAIL_MAX 160
#define PEEK_INSNS 8u /* of a successor, to know which flags are alive: liveness.c */
#define CODE_MAX (BLOCK_MAX_INSNS * 15)

struct insn;
struct translator;
typedef void special_fn(struct translator *t, const struct insn *in);

/* What Zydis makes of an instruction.  The numbers in it are those of the first that had its shape. */
struct decoded {
    ZydisDecodedInstruction d;
    ZydisDecodedOperand op[ZYDIS_MAX_OPERAND_COUNT];
};

/* An operand's registers, in the guest's numbers, or NO_REG. */
struct place {
    uint8_t base, index, scale /* shift count */, segment;
    bool pc_relative, displaced;
};

/* A number in an instruction, and how it is read; without bits, which it always is. */
struct number {
    uint8_t at, bits;
};

/* What is known of an instruction whatever the numbers in it are, its displacement and immediates (decode.c): one cache
 * line, and for most instructions all that is looked at. */
struct shape {
    uint64_t key;           /* 0: none */
    int32_t what, special;  /* shape_what, shape_special: no address is in it, so that copies can have it (carry.c) */
    uint16_t gprs, written; /* general registers among its operands; those of them that it writes */
    uint16_t mnemonic;
    uint16_t size;                                     /* bytes of the operand in memory */
    uint8_t flags_tested, flags_written, flags_killed; /* read, perhaps overwritten, surely overwritten: F_* */
    uint8_t length, address_width;
    uint8_t opcode, modrm, operand_end; /* offsets: of 0F or what there is instead, of ModRM, behind the displacement */
    int8_t memory;                      /* the operand in memory that it accesses, or -1 */
    struct place place;                 /* of that operand */
    uint8_t access;                     /* what it does to it: SITE_READ, SITE_WRITE */
    uint8_t gp_align;                   /* address bits that must be clear */
    struct number disp, imm[2];
    /* window.c: what push, pop and call add to rsp; 1, -1: an addition or subtraction of its immediate */
    int8_t moves_rsp, adds;
    bool imm_signed : 1;
    bool counted : 1;     /* no flag is overwritten when its immediate count is 0 */
    bool wants_flags : 1; /* in the host's: it reads them there */
    bool ends : 1;        /* nothing after it belongs to the block, */
    bool passable : 1;    /* but in a hot one that goes on where a conditional branch is not taken */
    bool high8 : 1;       /* names AH, CH, DH or BH */
    bool transparent : 1; /* control goes on behind it, and the tables know what it does to flags */
    bool regular : 1;     /* its numbers are as they stand in the bytes; else they are what Zydis says */
    bool legacy : 1;      /* neither VEX nor EVEX nor XOP */
    bool simd : 1;        /* x87, MMX, SSE and after */
    bool x87 : 1;         /* a pending x87 exception comes before its access */
    bool clears_top : 1;  /* and a fault leaves x87 TOP at 0: how Intel's CPUs begin a store of an MMX register */
    bool masked : 1;      /* by mask.c's rules */
    bool safe : 1;        /* a window stays open: leaves r9 alone, and can do with r10 and r11 */
    bool locked : 1;      /* its access is indivisible */
    bool served : 1;      /* a window can serve its access */
    /* code that is not 64-bit: how the host wants it, HOST_* of resize.c */
    uint8_t host : 2;
} __attribute__((aligned(64)));
_Static_assert(sizeof(struct shape) == 64, "one cache line");

/* It lies a fixed number of bytes from the shape. */
static inline const struct decoded *shape_what(const struct shape *s)
{
    return (const struct decoded *)((const uint8_t *)s + s->what);
}
static inline void shape_set_what(struct shape *s, const struct decoded *what)
{
    s->what = (int32_t)((const uint8_t *)what - (const uint8_t *)s);
}
/* How it is translated; NULL: generic_insn. */
static inline special_fn *shape_special(const struct shape *s)
{
    return s->special ? (special_fn *)((intptr_t)soft_translate + s->special) : NULL;
}
static inline void shape_set_special(struct shape *s, special_fn *fn)
{
    s->special = fn ? (int32_t)((intptr_t)fn - (intptr_t)soft_translate) : 0;
}

struct insn {
    const struct shape *shape;
    const ZydisDecodedInstruction *d; /* the shape's, but for the numbers in it */
    const ZydisDecodedOperand *op;
    const uint8_t *bytes;
    int64_t disp, imm[2]; /* of the operand in memory; the values of the immediate operands, in order */
    uint8_t length;
    uint16_t pc;         /* offset in the block */
    uint8_t live_before; /* FLAG_* needed at its start: by it or later */
    uint8_t live_after;
};

/* A memory operand in the guest's terms.  The scratch slot (cpu.rip, which C sets when it is entered)
 * can serve as a base. */
enum { EA_SLOT = 17 };
struct ea {
    unsigned base, index; /* guest register or NO_REG; base also EA_SLOT */
    unsigned scale;       /* shift count */
    int64_t disp;
    bool pc_relative;    /* disp is relative to the block's start */
    unsigned segment;    /* enum sreg; only those with a base matter */
    bool addr32, addr16; /* truncate to 32 or 16 bits before adding the segment base */
    bool stack;          /* faults are #SS */
};

/* Host bytes that run with the host address in register A, emitted for the fast path and again for
 * the bounce buffer: so nothing in them is relative to their own place. */
struct tail {
    struct emit e;
    uint8_t bytes[TAIL_MAX + 16];
};

/* Where there are numbers in a block's bytes that depend on where the kernel is (course.h). */
struct fixes {
    uint16_t at[COURSE_FIXES_MAX];
    unsigned n; /* > COURSE_FIXES_MAX: too many */
};

struct translator {
    ZydisDecoder decoder64, decoder32, decoder16;
    struct shapes *shapes;
    bool isa[ZYDIS_ISA_SET_MAX_VALUE + 1]; /* what the guest's CPU has: isa.c */
    bool movdir64b;
    bool amd, zen5;
    struct soft_vcpu *v;
    struct engine *engine;
    struct block *b;
    struct emit hot, cold;
    uint8_t code[CODE_MAX + 128]; /* guest bytes of the block */
    unsigned fetched;             /* of them, so far */
    const uint8_t *page; /* instead of the guest's memory (course_ahead.c): what is known of the page; or NULL */
    struct fixes fixes;  /* of what was peeked at: course_note.c */
    struct insn insns[BLOCK_MAX_INSNS];
    unsigned n_insns;
    struct insn peek_insn; /* liveness.c */
    uint8_t peek_code[32];
    uint32_t mode;
    uint64_t gva; /* cpu.rip at its start */
    unsigned page_offset;
    unsigned A, B, C; /* scratch roles for the instruction at hand: address, temporary, another or NO_REG */
    enum flags_place { FLAGS_HOST, FLAGS_MEMORY } flags; /* where the guest's are: flags.c */
    bool ended;
    bool shadow; /* the instruction before was sti: end after this one */
    /* window.c: while instructions before window_end run, r9 = host - guest for window_base's page */
    bool window_open, no_windows;
    unsigned window_base, window_end;
    bool straddles;  /* the instruction behind the block goes on in the next page */
    bool poll_after; /* the block's ending exits go to polling entries */
};

#define GPR_OFFSET(r) ((uint32_t)(offsetof(struct cpu, gpr) + 8 * (r)))
#define VOFF(field) ((uint32_t)offsetof(struct soft_vcpu, field))
#define CPUOFF(field) ((uint32_t)offsetof(struct cpu, field))

#define STOLEN (1u << R9 | 1u << R10 | 1u << R11)
static inline bool is_stolen(unsigned reg)
{
    return reg >= R9 && reg <= R11;
}
#define SCRATCH_SLOT GPR_OFFSET(16) /* cpu.rip */

/* access.c */
void operand_place(const ZydisDecodedOperand *op, struct place *p);
void tail_begin(struct tail *t);
void insn_ea(struct translator *t, const struct insn *in, const ZydisDecodedOperand *op, struct ea *out);
void emit_ea(struct translator *t, const struct ea *ea, unsigned to, unsigned temp);
void choose_scratch(struct translator *t, uint32_t used_mask);
void emit_access(struct translator *t, const struct insn *in, const struct ea *ea, unsigned access, unsigned size,
                 const struct tail *tail);
/* The same; where the slot knows, `beside` runs instead of the tail, with the distance of host and guest in B. */
void emit_access_beside(struct translator *t, const struct insn *in, const struct ea *ea, unsigned access,
                        unsigned size, const struct tail *tail, const struct tail *beside);
bool access_can_be_beside(const struct translator *t, const struct insn *in, const struct ea *ea);
/* The usual beginning: scratch registers beside those in `used`, flags kept, a tail that brings back those that the
 * instruction needs. */
void begin_access(struct translator *t, const struct insn *in, uint32_t used, struct tail *tail);
struct site *new_site(struct translator *t, const struct insn *in, uint32_t *index);
void emit_load_selector(struct translator *t, unsigned reg, ZydisRegister sreg); /* zero-extended */
uint32_t seg_base_offset(unsigned sreg);                                         /* in struct soft_vcpu */
void emit_pc(struct translator *t, unsigned reg, int64_t offset);
/* Ends an instruction by a C helper; `ends` when control does not come back to this block here. */
struct site *emit_helper(struct translator *t, const struct insn *in, helper_fn *fn, bool ends);

/* ways.c */
#define ibtc_offset(mode, field) ((uint32_t)offsetof(struct soft_vcpu, ibtc[(mode)&MODE_MMU].field))
void emit_ways(struct translator *t); /* those that a hot block has in front of its body */
void emit_way_out(const struct engine *e, struct emit *c, unsigned reg, uint32_t number, unsigned way);

/* copy.c */
void copy_insn_with_address(struct emit *e, const struct insn *in, unsigned addr_reg);
void copy_insn_plain(struct emit *e, const struct insn *in);
void copy_insn_in_window(struct emit *e, const struct insn *in, unsigned base, unsigned distance, int32_t disp);
void generic_insn(struct translator *t, const struct insn *in); /* anything without privilege */

/* resize.c: of code that is not 64-bit, how the host has the same instruction */
enum { HOST_AS_IT_IS, HOST_RESIZED /* with the other operand size: 66h, or the W bit */, HOST_NEVER };
uint8_t host_form_of(const struct translator *t, const struct shape *s, const uint8_t *bytes);

/* rules.c */
void operand_rules(const struct translator *t, struct shape *s);
unsigned ac_alignment(const struct translator *t, const struct insn *in, unsigned size);
void masked_access(const struct translator *t, struct site *s, const struct insn *in, const ZydisDecodedOperand *mem);

/* isa.c */
void isa_init(struct translator *t, const struct cpu *cpu);
bool isa_has(const struct translator *t, const ZydisDecodedInstruction *d);

static inline bool is_high8(ZydisRegister r)
{
    return r >= ZYDIS_REGISTER_AH && r <= ZYDIS_REGISTER_BH;
}
/* Guest register number of a Zydis general register, or NO_REG. */
static inline unsigned gpr_of(ZydisRegister r)
{
    if (r >= ZYDIS_REGISTER_RAX && r <= ZYDIS_REGISTER_R15)
        return (unsigned)(r - ZYDIS_REGISTER_RAX);
    if (r >= ZYDIS_REGISTER_EAX && r <= ZYDIS_REGISTER_R15D)
        return (unsigned)(r - ZYDIS_REGISTER_EAX);
    if (r >= ZYDIS_REGISTER_AX && r <= ZYDIS_REGISTER_R15W)
        return (unsigned)(r - ZYDIS_REGISTER_AX);
    if (is_high8(r))
        return (unsigned)(r - ZYDIS_REGISTER_AH);
    if (r >= ZYDIS_REGISTER_SPL && r <= ZYDIS_REGISTER_R15B)
        return (unsigned)(r - ZYDIS_REGISTER_SPL) + RSP;
    return r >= ZYDIS_REGISTER_AL && r <= ZYDIS_REGISTER_BL ? (unsigned)(r - ZYDIS_REGISTER_AL) : NO_REG;
}
uint32_t tlb_offset(const struct translator *t, bool write);
void emit_budget(struct translator *t, const struct site *s);
/* Where a place's slot is, in the vCPU's structure. */
struct slot_offsets {
    uint32_t tag, host, distance;
};
struct slot_offsets slot_offsets(const struct translator *t, bool write, uint32_t site);

/* liveness.c: fills live_before and live_after; arithmetic flags are FLAG_* */
enum { F_CF = 1, F_PF = 2, F_AF = 4, F_ZF = 8, F_SF = 16, F_OF = 32, F_ALL = 63 };
void flag_liveness(struct translator *t);
void flag_facts(struct shape *s);
uint8_t flags_killed(const struct insn *in);

/* flags.c; `temp` is a scratch register with nothing in it, which is lost */
bool flags_needed(const struct insn *in); /* it wants the flags in the host's: reads them, or keeps some */
void flags_to_memory(struct translator *t, unsigned temp);
void flags_to_host(struct translator *t, unsigned temp);
void flags_spare(struct translator *t, const struct insn *in,
                 unsigned temp);                                         /* the engine is about to destroy the host's */
bool flags_in_memory(const struct translator *t, const struct insn *in); /* those alive in front of it */
void flags_before(struct translator *t, const struct insn *in); /* an instruction that is copied without a check ... */
void flags_after(struct translator *t, const struct insn *in);  /* any instruction has been translated */
void flags_place_at_entry(struct translator *t);                /* where the block's body wants them */

/* window.c */
/* Opens a window before an instruction that overwrites flags which the accesses after it would have to save. */
void window_hoist(struct translator *t, const struct insn *in);
bool window_serves(struct translator *t, const struct insn *in);
void window_facts(struct shape *s);

/* decode.c */
struct shapes *shapes_create(void); /* NULL: no memory */
void shapes_destroy(struct shapes *s);
/* What copies of the machine can use as it is: from its beginning `size` bytes, whole pages, of which `used`. */
void shapes_extent(const struct shapes *s, size_t *size, size_t *used);
void shapes_given(struct shapes *s);     /* a copy has those of another there */
void shapes_ahead(struct shapes *s);     /* any thread: asks the host for its pages */
void decode_begin(struct translator *t); /* a block: what was decoded for the one before is gone */
/* One instruction of the block's mode from `bytes`, of which there are `available` and room for 32; what the guest's
 * CPU does not have is an error. */
ZyanStatus decode_insn(const struct translator *t, struct insn *in, uint8_t *bytes, unsigned available);
void undefined_insn(struct translator *t, struct insn *in, const uint8_t *bytes, ZyanStatus status);

/* course_note.c: an instruction whose bytes begin at `at` of what is noted */
void note_block(struct translator *t); /* it has been translated: with t->engine->note */
void note_fixes(const struct translator *t, const struct insn *in, unsigned at, struct fixes *f);

/* translate.c */
enum { CC_NONE = -1 };
bool translate_into(struct translator *t, struct soft_vcpu *v, struct block *b, const struct block *what);
void emit_exit(struct translator *t, const struct insn *in, int64_t target, int cc); /* cc: CC_NONE for always */
void emit_indirect(struct translator *t, const struct insn *in);                     /* target gva in r11 */
void add_map(struct translator *t, uint32_t host, const struct insn *in);

/* special.c: a translator for each mnemonic that is not simply copied; NULL: generic_insn */
void special_facts(struct shape *s);
void emit_segment_checks(struct translator *t, const struct insn *in);
bool is_plain_mov(const struct shape *s); /* a mov that generic_insn translates */

/* helpers.c, control.c, system.c, string.c, simd.c */
helper_fn helper_undefined, helper_string, helper_hlt, helper_in, helper_out, helper_cpuid, helper_rdtsc, helper_msr,
    helper_cr_read, helper_cr_write, helper_dr, helper_iret, helper_syscall, helper_sysret, helper_sysenter,
    helper_sysexit, helper_int, helper_pushf, helper_popf, helper_cli, helper_sti, helper_load_segment, helper_far,
    helper_far_ret, helper_descriptor_table, helper_descriptor_load, helper_query, helper_swapgs, helper_invlpg,
    helper_invpcid, helper_fsgsbase, helper_xsetbv, helper_xgetbv, helper_xstate, helper_stac, helper_clts_lmsw,
    helper_wbinvd, helper_store_system, helper_enter, helper_single_step, helper_fpu_check, helper_gp0, helper_gather,
    helper_break, helper_ac_check, helper_segment, helper_pusha, helper_bound;
