/*
 * A block of translated code, and what is known of it: its ways out, the places where it enters C, and where its
 * instructions are.
 */
#pragma once
#include <stdbool.h>
#include <stdint.h>

#include "cpu/cpu.h"

/* What selects a translation besides its address; v->mode is the current value. */
enum {
    MODE_MMU = 3, /* enum mmu_index */
    MODE_CPL0 = 1 << 2,
    MODE_64 = 1 << 3,         /* 64-bit code; else 32-bit, or: */
    MODE_16 = 1 << 4,         /* 16-bit: with MODE_SEGMENTED always */
    MODE_TF = 1 << 5,         /* one instruction a block, then #DB */
    MODE_SEGMENTED = 1 << 6,  /* not flat: add segment bases and check limits; rip is an offset in CS */
    MODE_FPU_TRAP = 1 << 7,   /* CR0.EM/TS, CR4.OSFXSR or XCR0 make some SIMD instruction trap */
    MODE_BREAK = 1 << 8,      /* DR7 has an instruction breakpoint */
    MODE_ALIGN = 1 << 9,      /* CPL 3 with CR0.AM and RFLAGS.AC: misaligned accesses raise #AC */
    MODE_UNGROUPED = 1 << 11, /* no windows (window.c): a way around one that could not be had; never in v->mode */
    MODE_NULL_FS = 1 << 12,   /* 32-bit code: these segments hold nothing, and faults */
    MODE_NULL_GS = 1 << 13,
    MODE_FIXED_PC = 1 << 10, /* translation bound to its gva (kernel), else position independent */
    MODE_SMAP = 1 << 14,     /* CR4.SMAP, outside user mode: what CLAC makes of MODE_MMU */
    MODE_FSGSBASE = 1 << 15, /* CR4.FSGSBASE */
    MODE_TSD = 1 << 16,      /* CR4.TSD where it counts: RDTSC faults */
};

/* Blocks whose every end goes through C: none is chained or in an IBTC. */
#define MODE_BY_C (MODE_TF | MODE_BREAK | MODE_SEGMENTED)
/* Blocks in an IBTC are of one mode as far as these go. */
#define MODE_IBTC                                                                                                      \
    (MODE_CPL0 | MODE_64 | MODE_SEGMENTED | MODE_FPU_TRAP | MODE_ALIGN | MODE_NULL_FS | MODE_NULL_GS | MODE_SMAP |     \
     MODE_FSGSBASE | MODE_TSD)

struct block;
struct site;
struct soft_vcpu;

/* A direct branch out of a block.  Numbers + 1 in lists and of what may be missing: 0 is none. */
struct exit {
    uint32_t from, to;        /* numbers of blocks; to: 0 while unchained, else + 1 */
    uint32_t next_in;         /* list of to's incoming */
    uint32_t next_cross;      /* list of chained exits that leave their page */
    int32_t target;           /* guest pc relative to from's start */
    uint32_t patch;           /* code offset of the rel32 */
    uint32_t stub;            /* code offset that the rel32 points to when unchained */
    uint32_t mode : 17;       /* of the blocks it can lead to */
    bool poll : 1;            /* chain to the polling entry (backward branches, after sti) */
    bool cross : 1;           /* leads to another page; or, chained, to a block that goes on in one */
    bool listed : 1;          /* in the engine's list of such exits */
    bool flags_in_memory : 1; /* where it leaves them ... */
    bool flags_live : 1;      /* ... if anybody needs them */
};
_Static_assert(MODE_TSD < 1 << 17, "the mode's bits");

/* Bytes of its page, not its own, that a block was translated in the knowledge of. */
#define BLOCK_PEEKS 3
struct peeked {
    uint16_t first, length; /* offset in the page */
};

/* Two cache lines, of which a look-up needs the first: at a boot there are 70,000 of them. */
struct block {
    uint64_t gpa;       /* of its first byte */
    uint64_t gva;       /* with MODE_FIXED_PC (rip, in segments with a base), else its offset in the page */
    uint64_t gpa2;      /* second page when the last instruction straddles, else UINT64_MAX */
    uint32_t next_hash; /* number of a block + 1; 0: none */
    uint32_t mode;
    /* code offsets of the ways in: with the flags in the host's, and in v->slow_flags ... */
    uint32_t entry, entry_memory;
    uint32_t poll, poll_memory, entry_indirect; /* ... polling ones, and computed branches: 0, or made (ways.c) */
    uint16_t length;                            /* guest bytes */
    uint16_t n_insns;
    uint16_t n_sites;
    uint8_t n_peeked;
    uint8_t refusals;    /* of its windows */
    bool no_windows : 1; /* refused too often: translated again without */
    bool hot : 1;
    bool flags_live : 1; /* at its start */
    bool dead : 1;
    bool staged : 1;   /* translated ahead, and not taken yet (course_ahead.c); dead until then */
    bool unlisted : 1; /* being evicted: out of its first page's list */

    uint32_t next_page, next_page2; /* numbers + 1, in the lists of its pages */
    struct peeked peeked[BLOCK_PEEKS];
    uint32_t hot_start, hot_end, cold_start, cold_end;
    uint32_t first_site, first_exit, first_map;
    uint16_t n_map; /* of both halves */
    uint8_t n_exits;
} __attribute__((aligned(64)));
_Static_assert(sizeof(struct block) == 128, "two cache lines");

struct pc_map {
    uint16_t host;       /* where the instruction begins, from the start of the block's code in that half */
    uint16_t guest : 10; /* offset in the block */
    uint16_t cold : 1;
    uint16_t flags_in_memory : 1; /* while it runs */
};
_Static_assert(sizeof(struct pc_map) == 4, "there is one for each instruction");

typedef const void *helper_fn(struct soft_vcpu *v, const struct site *s);

typedef uint64_t __attribute__((aligned(4))) site_imm;

/* A place where translated code enters C: a memory access or an instruction done by a helper. */
struct site {
    union {
        site_imm imm;        /* a helper's own */
        struct {             /* an access's code offsets: */
            uint32_t resume; /* behind the check, the host address in its register */
            uint32_t bounce; /* running on the bounce buffer */
        };
    };
    int32_t helper;     /* where it is, counted from soft_helper; 0 for memory accesses */
    uint32_t next;      /* code offset after the instruction */
    uint32_t block;     /* its number */
    uint32_t arg, arg2; /* a helper's own, or a mask's (mask.c) */
    uint16_t pc;        /* instruction's offset in the block */
    uint16_t size;      /* bytes */
    uint16_t mnemonic;  /* ZydisMnemonic, for --stats */
    uint8_t len;        /* its length */
    uint8_t access;     /* SITE_* */
    uint8_t align;      /* address bits that must be zero, with MODE_ALIGN */
    uint8_t gp_align;   /* address bits that must be zero always */
    uint8_t element;    /* masked accesses: see mask.c */
    uint8_t mask_kind : 3, mask_reg : 5;
    uint8_t address : 4;   /* host register with its address */
    uint8_t segment : 4;   /* FS or GS, when the operand is through one; else 0 */
    uint8_t first : 3;     /* of a large operand: the first so many bytes are probed, then its last byte */
    bool halves : 1;       /* the first 8 bytes are looked at before the others */
    bool x87 : 1;          /* a pending x87 exception comes before a fault */
    bool addr32 : 1;       /* its offset is cut to 32 bits */
    bool clears_top : 1;   /* a fault leaves x87 TOP at 0 */
    bool lent : 1;         /* the guest's rdi waits in cpu.gpr[] while the instruction runs */
    bool null_segment : 1; /* 32-bit code: its segment holds nothing, or must not be written */
    bool locked : 1;       /* the access is indivisible */
};
_Static_assert(sizeof(struct site) == 44, "there is one for each access");
enum {
    SITE_READ = 1,
    SITE_WRITE = 2,
    SITE_FLAGS = 4 /* flags in v->slow_flags */,
    SITE_FLAGS_AFTER = 32 /* still there behind the instruction */,
    SITE_STACK = 8 /* #SS */,
    SITE_DEAD_FLAGS = 16
};
enum { MASK_NONE, MASK_K, MASK_VEC_SIGN, MASK_BYTES_SIGN, MASK_MMX };

/* The shared ends of the ways out (ways.c): with a number in r9 unless it says something else. */
enum {
    OUT_EXIT,   /* an exit's */
    OUT_HELPER, /* a site's */
    OUT_POLL,   /* a block's; flags in memory, also in the next */
    OUT_HOT,
    OUT_IBTC_MISS, /* target gva in r11, flags in memory */
    OUT_COMMIT,    /* no number: v->site is still right */
    OUT_WINDOW,    /* r11 the address, r10 the site */
    OUT_SLOW,      /* nine of them: by the registers with the address and the site */
    OUT_COUNT = OUT_SLOW + 9
};
static inline unsigned out_slow(unsigned address, unsigned site)
{
    return OUT_SLOW + 3 * (address - R9) + (site - R9);
}

#define BLOCK_ALIGN 16u /* of a block's hot half */
