/*
 * The software engine's inside: data structures shared by its files.
 *
 * Reading order: run.c (the loop), translate.c (a block), access.c (a memory operand), mmu.c (the
 * slow path), glue.c (the few lines of assembly between translated code and C).
 *
 * Host registers while translated code runs:
 *   rax..rdi, r8, r12..r15   the guest's, one to one; rsp holds the guest's stack pointer (a gva)
 *   r9, r10, r11             scratch; the guest's own live in cpu.gpr[] (least used by compilers)
 *   arithmetic flags         the guest's; DF is always clear, the guest's DF is in cpu.rflags
 *   x87/SSE/AVX state        the guest's
 *   gs base                  struct soft_vcpu
 */
#pragma once
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stddef.h>
#include <time.h>

#include "engine/soft/block.h"
#include "engine/soft/soft.h"
#include "memory/memory.h"
#include "bus/bus.h"

/* --- soft MMU ----------------------------------------------------------------------------------
 * One direct-mapped TLB for reads and one for writes per MMU index.  An entry hits when
 * gva - tag <= 4096 - size; host + (gva - tag) is then the address. */
enum mmu_index { MMU_USER, MMU_KERNEL, MMU_KERNEL_AC /* SMAP off or RFLAGS.AC: user pages too */, MMU_COUNT };
#define TLB_BITS 13
#define TLB_SIZE (1u << TLB_BITS)
#define TLB_MASK ((TLB_SIZE - 1) << 4) /* of gva >> 8: byte offset of the entry */
/* The tag of entry i while it is empty: a page that is looked up in another entry.  It is 0 wherever that can be, so
 * that a table of which little is in use is little memory. */
static inline uint64_t tlb_invalid(unsigned i)
{
    return i ? 0 : 4096;
}
/* A slot can be met with any address: no canonical gva is within a page of it. */
#define SLOT_INVALID 0x8000000000000000ull

#define SLOT_COUNT 256 /* see access.c */
#define HEAT_COUNT 1024
#define HEAT_START 4096
#define PROMOTE_BLOCKS 16

struct tlb_entry {
    uint64_t tag;  /* gva of the page, or tlb_invalid() */
    uint64_t host; /* hva of the page */
};
/* What is empty is not written to: the host has no memory for it yet. */
static inline void tlb_empty(struct tlb_entry *t, unsigned i)
{
    if (t[i].tag != tlb_invalid(i))
        t[i].tag = tlb_invalid(i);
}

/* Which entries are in use, so that a flush touches only those. */
#define DIRTY_MAX 2048
struct dirty_list {
    unsigned n; /* > DIRTY_MAX: overflowed, flush everything */
    uint16_t index[DIRTY_MAX];
};

/* Executable translations, used by block lookup in C only. */
#define ITLB_SIZE 1024
struct itlb_entry {
    uint64_t tag, gpa;
    bool global;
};
static inline unsigned itlb_index(uint64_t gva)
{
    return gva >> 12 & (ITLB_SIZE - 1);
}

/* Indirect branch target cache: jumped through without a compare; the target block checks the tag.  Only its beginning
 * is used, so that a machine that does little has little memory in it; the more, the more targets it loses (tlb.c). */
#define IBTC_SIZE 65536
#define IBTC_LEAST 4096
#define IBTC_RESTING 512
#define IBTC_SHIFT 2 /* call instructions are longer: two return addresses never share an entry for nearness */
struct ibtc {
    const void *entry[IBTC_SIZE]; /* a block's indirect entry, or the miss routine */
    uint64_t tag[IBTC_SIZE];      /* the target's gva; blocks that are bound to theirs compare with that */
};

enum { DR6_BS = 1 << 14 };

/* --- code cache --------------------------------------------------------------------------------- */
struct code_cache {
    int fd;
    uint8_t *rx, *rw; /* two mappings of one memfd */
    /* A copy's (carry.c): bits of pages that are still the image's in rx, and a mapping like rx that has its own
     * instead. NULL: all are its own. */
    uint64_t *lent;
    uint8_t *spare;
    uint8_t *image; /* those of the image once more, to be put back; NULL: they cannot be */
    uint8_t *tries; /* of branches there, by where they are */
    uint32_t moved; /* counts runs of pages that have become its own */
    uint32_t size;
    uint32_t hot, cold;      /* next free byte of the half that runs often, and of slow paths and exits */
    uint32_t hot_end;        /* = where the cold half starts */
    uint32_t out[OUT_COUNT]; /* code offsets */
};

#define WAYS_OUT_BYTES 4096u /* for the shared ends of ways out, in front of the cold half's slices */

/* The cache and its tables are divided into regions that are filled one after the other (evict.c). */
#define REGIONS_MAX 28
struct cache_region { /* its first of each */
    uint32_t hot, cold, block, site, exit, map;
};

/* From and up to where the host's pages have been asked for, and how many are the next time, in bytes (evict.c). */
enum { AHEAD_HOT, AHEAD_COLD, AHEAD_BLOCKS, AHEAD_SITES, AHEAD_EXITS, AHEAD_MAPS, AHEAD_COUNT };
struct cache_ahead {
    uint64_t start, end;
    uint64_t large_end; /* before it, 2 MiB may be asked for at once */
    uint32_t size;
};

/* Where time goes besides translated code; what is inside another kind is not counted twice. */
enum time_kind {
    TIME_RUN /* all of it */,
    TIME_MMU,
    TIME_HELPER,
    TIME_BRANCH,
    TIME_TRANSLATE,
    TIME_DEVICE,
    TIME_KINDS
};

struct stats {
    uint64_t blocks, insns, guest_bytes, flushes, evictions, invalidated;
    uint64_t slow_read, slow_write, window_fill, window_refused, demoted, promoted, slow_cross, slow_mmio, slow_code,
        tlb_flush, tlb_flush_kept, tlb_flush_page, cr3_writes;
    uint64_t helpers, exits, ibtc_miss, ibtc_insert, chained, faults, interrupts, exceptions[32], polls, halts, signals;
    uint64_t walks, enters;
    uint64_t ticks[TIME_KINDS]; /* TSC ticks, with engine_config.timing */
    uint64_t by_mnemonic[2048]; /* helper calls, by ZydisMnemonic */
};

#define BOUNCE_SIZE 8192
#define HASH_BITS 16

struct soft_vcpu {
    struct cpu cpu;        /* first: gpr[] at gs:0 */
    _Atomic uint32_t poll; /* non-zero: leave at the next polling block entry */
    uint32_t mode;
    uint64_t code_base; /* gva of the page being executed, for position-independent blocks */
    uint64_t host_rsp;
    struct soft_vcpu *self;
    const void *next;      /* where glue jumps after restoring the guest's registers */
    const void *target;    /* soft_jump: of a computed branch, an entry of the IBTC's for cpu.rip; */
    uint64_t target_index; /* and where that is */
    uint64_t slow_ea, slow_host, slow_flags;
    uint64_t slow_r9; /* r9 on the way back from a slow path; r10 and r11 get slow_host */
    uint32_t site;    /* index of the site, exit or block being served */
    uint16_t arith;   /* lahf/seto image */
    uint8_t fpu_live; /* guest SIMD state is in the host's registers */
    uint64_t helper_ea;
    uint64_t helper_to; /* a second operand of the helper's */
    /* glue entry points, reached by jmp gs:[...] */
    const void *glue_slow, *glue_commit, *glue_helper, *glue_exit, *glue_ibtc_miss, *glue_poll, *glue_window,
        *glue_demote, *glue_hot;

    /* mmu.c */
    struct {
        bool active;
        uint64_t gva;
        unsigned size;
        uint8_t pad;
        uint64_t active_bytes[2]; /* masked stores: bytes to commit */
        bool masked;
        bool locked; /* the peers' `split` is held */
    } bounce;

    struct tlb_entry tlb[MMU_COUNT][2][TLB_SIZE];
    struct tlb_entry slot[MMU_COUNT][2][SLOT_COUNT];  /* what single places in the code used last, */
    uint64_t slot_distance[MMU_COUNT][2][SLOT_COUNT]; /* and host - guest there */
    int32_t heat[HEAT_COUNT];                         /* executions left in this tick until a block counts as hot */
    unsigned promote_left;                            /* blocks after a hot one that are promoted with it */
    bool computed;              /* a computed branch wants a block: others will come to it so (ways.c) */
    int32_t budget[SLOT_COUNT]; /* slot misses left in it until the place is demoted */
    uint64_t renewed;           /* TSC: when the tick began */
    struct dirty_list dirty[MMU_COUNT][2];
    struct itlb_entry itlb[MMU_COUNT][ITLB_SIZE];
    struct dirty_list itlb_dirty[MMU_COUNT];
    bool user_code_lost; /* a page has left the user's ITLB for another, and may be one that an IBTC entry is from */
    struct ibtc ibtc[MMU_COUNT];
    uint32_t ibtc_mask[MMU_COUNT]; /* what is used of them, less 1 */
    struct ibtc_loss {
        uint32_t n;     /* targets lost to others since then: */
        uint64_t since; /* TSC */
    } ibtc_lost[MMU_COUNT];
    struct dirty_list ibtc_dirty[MMU_COUNT];
    bool ibtc_used[MMU_COUNT];     /* there is anything in it */
    uint64_t exec_bloom[2][2][64]; /* pages with IBTC entries: of user code, the kernel's; by half of the address space,
                                      page mod 4096 */
    /* By half of the address space: 2 MB and 1 GB regions, by number mod 64, that entries came from which are in the
     * TLBs; and the global ones of them. */
    uint64_t large_bloom[2][2], large_global[2][2];
    uint8_t bounce_buffer[BOUNCE_SIZE] __attribute__((aligned(4096)));
    uint8_t xsave[8192] __attribute__((aligned(64)));

    struct engine *engine;
    struct translator *translator;
    struct stats stats;
    uint64_t nested_ticks; /* of the way out being timed: counted as another kind */
    char error[256];
    bool failed, shutdown;
    uint32_t pauses;              /* counts */
    uint64_t paused, spins_since; /* TSC: behind the last of them; at the first in a row */
    uint32_t debug_hits; /* breakpoints on data and ports that the instruction under way has met: bits of DR6 */
    /* breakpoints on data: their pages stay out of the TLBs, so that accesses come to soft_slow */
    struct watch {
        uint64_t first, last;
        bool reads; /* too */
        uint32_t bit;
    } watch[4];
    unsigned n_watch;
    uint64_t watched_dr[4], watched_dr7; /* what `watch` was made from */
    uint32_t ibtc_mode[2];               /* of the blocks in the IBTCs, user and kernel: the bits of MODE_IBTC */
    /* filled by the signal handler */
    uint8_t signal_vector;
    bool signal_has_error;
    struct block *signal_around; /* raised in a window of it: to be met again without */
};

static inline unsigned ibtc_index(const struct soft_vcpu *v, unsigned mmu, uint64_t gva)
{
    return gva >> IBTC_SHIFT & v->ibtc_mask[mmu];
}

struct direct;

#define SLOT_BUDGET 16384
#define INDEXED_BITS 65536
#define SOFT_CPUS_MAX 64
#define PAGE_LIST 1024u

struct page_list {
    uint64_t page[PAGE_LIST];
    unsigned n; /* > PAGE_LIST: any */
};

/* What the vCPUs of a machine have in common (coherence.c). */
struct peers {
    unsigned n;
    struct engine *of[SOFT_CPUS_MAX];
    uint64_t *code; /* by page: bit i: vCPU i has translated code of it, or is about to; NULL for one vCPU */
    uint64_t n_pages;
    pthread_mutex_t split; /* held around a locked instruction on a bounce buffer */
    struct cpuid_table *cpuid;
    struct direct_helper *helper; /* direct_child.c; NULL: none has been wanted */
    int helper_failed;
};

/* Global pages that kernel code was fetched from (kernel_pages.c), by hash of their addresses. */
#define KERNEL_PAGES 4096
struct kernel_page {
    uint64_t gva, gpa; /* gva 0: none */
};
struct kernel_pages {
    uint32_t n;
    bool lost; /* it does not say all */
    struct kernel_page page[KERNEL_PAGES];
};

/* One vCPU's: it shares nothing with the others' but RAM, the bus and `peers`. */
struct engine {
    struct engine_config config;
    unsigned index;
    struct peers *peers;
    struct soft_vcpu *vcpu;
    struct code_cache cache;
    uint32_t *hash;        /* 1 << HASH_BITS, numbers as in block.next_hash */
    uint32_t *young;       /* a copy's: the same of blocks that are its own, with YOUNG_BITS; NULL: none (cache.c) */
    uint32_t n_young;      /* counts those that it has got */
    uint32_t *page_blocks; /* by gpa >> 12 up to memory->end: blocks with code in the page, numbers + 1 */
    uint64_t n_pages;
    uint64_t *code_granules; /* by page: 64 bits, one for each 64 bytes that hold translated code */
    uint64_t *written;       /* by page, one bit: a write TLB may have had it since it last became one with code */
    struct site *sites;
    uint32_t n_sites, max_sites;
    struct exit *exits;
    uint32_t n_exits, max_exits;
    struct pc_map *maps;
    uint32_t n_maps, max_maps;
    struct block *blocks;
    uint32_t n_blocks, max_blocks;
    uint32_t
        *incoming; /* by block: exits that lead to it: number of the first + 1.  What a copy changes lies together */
    /* n_sites and so on are the next free ones of the region being filled */
    struct cache_region regions[REGIONS_MAX + 1]; /* the last one is the end of all */
    struct cache_region filled[REGIONS_MAX];      /* ends of what is in use in the others */
    uint32_t filled_as[REGIONS_MAX];              /* in which order; 0: never */
    uint32_t inherited[REGIONS_MAX];              /* up to which block they are as a copy has got them */
    struct cache_ahead ahead[AHEAD_COUNT];
    unsigned n_regions, region;          /* in use; that is being filled */
    unsigned n_regions_most;             /* to which they may grow, */
    unsigned evicted;                    /* regions, in this round; */
    uint64_t rounds[3];                  /* and when the last ones ended: TSC */
    uint64_t hot[INDEXED_BITS / 64];     /* blocks that run so often that their accesses get slots, likewise */
    uint64_t indexed[INDEXED_BITS / 64]; /* instructions that do better without a slot, by hash of gpa */
    uint32_t cross;                      /* chained exits that leave their page: number of the first + 1 */
    struct kernel_pages *kernel_pages;
    uint64_t xcr0;                     /* SIMD components saved and restored */
    uint32_t xs_offset[8], xs_size[8]; /* of components 2-7 in the standard format (CPUID 0xD) */
    bool xs_aligned[8];
    uint64_t tsc_khz;
    uint64_t program;            /* what translations are for: carry.c */
    struct note *note;           /* of the kernel's course (course.h); NULL: none is taken */
    struct course *course;       /* blocks that another thread translates beforehand; NULL: none */
    struct course *course_ended; /* what is left of it */
    struct carry *carry;         /* what copies of this machine have in common; NULL: nothing */
    struct carried *carried;     /* what this copy has got, and is to be looked through; */
    struct carried *given;       /* and that it can go back to; NULL: nothing */
    bool amd;                    /* the guest's CPU is one of AMD's */
    bool zen5;                   /* ... of family 1Ah or later, which looks at some operands in another way */
    uint64_t random;             /* config.stress: the generator's state */
    /* what others want of this vCPU: done when it next looks up (coherence.c) */
    struct {
        pthread_mutex_t lock;     /* guards the rest but `served` */
        struct page_list changed, /* others, or a device, have written there, */
            closed;               /* or want to be sure that this one does not unnoticed */
        uint64_t tickets;         /* of those who wait for that, and up to where they were served */
        _Atomic uint64_t served;
        bool inside; /* it may be running guest code */
    } asked;
    struct {
        uint64_t wall, cpu, total; /* ns: when it was last looked at, the CPU time until then, what was stolen */
    } steal;
    uint64_t translating[2];  /* pages + 1 whose bytes are being looked at */
    struct page_list to_tell; /* pages with code of others that this one writes to */
    struct direct *direct;    /* NULL: no second tier */
};

static inline uint32_t soft_block_number(const struct engine *e, const struct block *b)
{
    return (uint32_t)(b - e->blocks);
}
static inline uint32_t *soft_incoming(const struct engine *e, const struct block *b)
{
    return &e->incoming[soft_block_number(e, b)];
}
static inline struct block *soft_site_block(const struct engine *e, const struct site *s)
{
    return &e->blocks[s->block];
}
/* By number + 1; NULL for 0. */
static inline struct exit *soft_exit_at(const struct engine *e, uint32_t n)
{
    return n ? &e->exits[n - 1] : NULL;
}
static inline struct block *soft_block_at(const struct engine *e, uint32_t n)
{
    return n ? &e->blocks[n - 1] : NULL;
}
/* Where a block of the page says which one is next. */
static inline uint32_t *soft_next_in_page(struct block *b, uint64_t page)
{
    return b->gpa >> 12 == page ? &b->next_page : &b->next_page2;
}

/* Bits of code_granules for [gpa, gpa+len), inside one page. */
static inline uint64_t soft_granules(uint64_t gpa, uint64_t len)
{
    unsigned first = gpa >> 6 & 63, last = (gpa + len - 1) >> 6 & 63;
    return (~0ull >> (63 - (last - first))) << first;
}

static inline unsigned soft_indexed_bit(uint64_t gpa)
{
    return (unsigned)(gpa * 0x9e3779b97f4a7c15ull >> 48) % INDEXED_BITS;
}
static inline bool soft_is_indexed(const struct engine *e, uint64_t gpa)
{
    unsigned bit = soft_indexed_bit(gpa);
    return e->indexed[bit / 64] >> (bit % 64) & 1;
}

static inline void soft_set_hot(struct engine *e, uint64_t gpa)
{
    unsigned bit = soft_indexed_bit(gpa);
    e->hot[bit / 64] |= 1ull << (bit % 64);
}

static inline bool soft_is_hot(const struct engine *e, uint64_t gpa)
{
    unsigned bit = soft_indexed_bit(gpa);
    return e->hot[bit / 64] >> (bit % 64) & 1;
}

/* The linear address of code at that rip. */
static inline uint64_t soft_code_gva(const struct soft_vcpu *v, uint64_t rip)
{
    return v->mode & MODE_64 ? rip : (uint32_t)(v->cpu.seg[CS].base + rip);
}

static inline struct soft_vcpu *vcpu_of(struct cpu *cpu)
{
    return (struct soft_vcpu *)cpu;
}

/* The offset in FS or GS behind a gva that was reached through one; else the gva itself. */
static inline uint64_t soft_offset(const struct soft_vcpu *v, const struct site *s, uint64_t gva)
{
    return s->segment ? gva - v->cpu.seg[s->segment].base : gva;
}
/* AMD wants an offset canonical before the base of FS or GS is added (64-bit code), too. */
static inline bool soft_bad_offset(const struct soft_vcpu *v, const struct site *s, uint64_t gva)
{
    return s->segment && v->engine->amd && (v->mode & MODE_64) && !cpu_canonical(&v->cpu, soft_offset(v, s, gva));
}

/* Flags: cpu.rflags is right in helpers and in the run loop, v->arith while translated code runs. */
static inline void soft_flags_in(struct soft_vcpu *v)
{
    v->cpu.rflags = (v->cpu.rflags & ~(uint32_t)FL_ARITH) | ((v->arith >> 8) & (FL_ARITH & 0xff)) |
                    (v->arith & 1u) << 11;
}
static inline void soft_flags_out(struct soft_vcpu *v)
{
    v->arith = (uint16_t)(((v->cpu.rflags & FL_ARITH & 0xff) | 2) << 8 | (v->cpu.rflags >> 11 & 1));
}

/* --- run.c --- */
void soft_fpu_park(struct soft_vcpu *v); /* guest SIMD state to v->xsave, host defaults in */
void soft_fpu_unpark(struct soft_vcpu *v);
const void *soft_next(struct soft_vcpu *v); /* code to run at cpu.rip, or the way out to the loop */
/* An exit leads to that block from now on, which may be in another page: soft_exit says when it may. */
void soft_chain_cross(struct engine *e, struct exit *x, struct block *to);
const void *soft_step_done(struct soft_vcpu *v);   /* the instruction before cpu.rip is complete: traps, or soft_next */
const void *soft_next_single(struct soft_vcpu *v); /* the same for one instruction, then helper_single_step */
/* The same when a window of `b` was refused: around it, or for good when that is usual. */
const void *soft_next_ungrouped(struct soft_vcpu *v, struct block *b);
const void *soft_deliver(struct soft_vcpu *v);                        /* deliver cpu.exc, then soft_next */
enum engine_exit soft_run(struct engine *e, unsigned i, char *error); /* engine.h: run */
static inline uint64_t soft_site_pc(const struct soft_vcpu *v, const struct block *b)
{
    return b->mode & MODE_FIXED_PC ? b->gva : v->code_base + b->gva;
}
void soft_fail(struct soft_vcpu *v, const char *why); /* the engine cannot go on */

/* --- mode.c --- */
void soft_update_mode(struct soft_vcpu *v);

/* --- stats.c --- */
void soft_stats(struct engine *e, FILE *out); /* engine.h: stats */

/* --- glue.c, and the ways out of translated code that it calls: each returns the host address to go on at --- */
const void *soft_slow(struct soft_vcpu *v);      /* mmu.c: the TLB has no answer for v->slow_ea */
const void *soft_commit(struct soft_vcpu *v);    /* an instruction has run on the bounce buffer: make its store real */
const void *soft_window(struct soft_vcpu *v);    /* a window's range is not in the TLB */
const void *soft_demote(struct soft_vcpu *v);    /* a place in the code has missed its slot too often */
const void *soft_helper(struct soft_vcpu *v);    /* run.c: an instruction done in C */
const void *soft_exit(struct soft_vcpu *v);      /* a direct branch that is not chained */
const void *soft_ibtc_miss(struct soft_vcpu *v); /* a computed one to cpu.rip that the IBTC does not know */
const void *soft_hot(struct soft_vcpu *v);       /* the block has run often in this tick */
const void *soft_poll(struct soft_vcpu *v);      /* v->poll is set */
const void *soft_signal_fault(struct soft_vcpu *v); /* signal.c: an exception of the host's in translated code */
void soft_enter(struct soft_vcpu *v);
extern const char soft_leave[], soft_jump[], soft_glue_slow[], soft_glue_commit[], soft_glue_helper[], soft_glue_exit[],
    soft_glue_ibtc_miss[], soft_glue_poll[], soft_glue_window[], soft_glue_demote[], soft_glue_hot[],
    soft_glue_signal[], soft_glue_end[];

/* --- timing.c: entry points like glue's, that take the time for --stats --- */
void soft_timing_install(struct soft_vcpu *v);
static inline uint64_t soft_ticks(const struct engine *e)
{
    return e->config.timing ? __builtin_ia32_rdtsc() : 0;
}
/* Time since `start` was of that kind, and not of the kind around it. */
void soft_ticks_nested(struct soft_vcpu *v, enum time_kind kind, uint64_t start);
void soft_timing_print(const struct soft_vcpu *v, FILE *out);

/* --- mmu.c --- */
bool soft_x87_pending(const struct soft_vcpu *v); /* an unmasked x87 exception waits for the next instruction */
void soft_end_locked(struct soft_vcpu *v); /* an instruction that ran on the bounce buffer has not got to its end */
void soft_clear_x87_top(struct soft_vcpu *v);
bool soft_misaligned_sse(void); /* packed operands need no alignment: MXCSR as it is now */

/* --- mask.c --- */
uint64_t soft_active_bytes(const struct site *s); /* of an operand with a mask: bit i for byte i; else all ones */

/* --- rest.c --- */
bool soft_rest(struct engine *e, unsigned i); /* engine.h: rest */

/* --- tlb.c --- */
void soft_tlb_init(struct soft_vcpu *v, uint32_t targets); /* so many entries of the IBTCs are used at first */
/* Enters a RAM page into the TLBs that its permissions allow. */
void soft_tlb_fill(struct soft_vcpu *v, unsigned mmu, uint64_t gva, const struct translation *tr, uint8_t *page);
void soft_tlb_flush(struct soft_vcpu *v, unsigned mmu, bool globals_too);
bool soft_holds_code(const struct engine *e, uint64_t gpa, uint64_t len); /* inside one page: translated code? */
static inline unsigned soft_mmu(const struct soft_vcpu *v)
{
    return v->mode & MODE_MMU;
}
void soft_slots_clear(struct soft_vcpu *v, unsigned mmu, unsigned write);
extern const struct cpu_engine_ops soft_cpu_ops;
int soft_translate_exec(struct soft_vcpu *v, uint64_t gva, uint64_t *gpa, bool *global);
void soft_ibtc_flush(struct soft_vcpu *v, unsigned which);
void soft_ibtc_insert_new(struct soft_vcpu *v, uint64_t gva, struct block *b); /* where there is nothing yet */
void soft_ibtc_insert(struct soft_vcpu *v, uint64_t gva, struct block *b);

/* --- kernel_pages.c --- */
void soft_kernel_page_used(struct engine *e, uint64_t gva, uint64_t gpa); /* a global one */
bool soft_kernel_page_holds(struct soft_vcpu *v, uint64_t gva);           /* it is known, and still what it was */
/* Globals are flushed: true: what leads to kernel code from another page stays, after all to pages that are not what
 * they were has been dropped; `note` has seen the others.  false: it has to be dropped. */
bool soft_kernel_pages_keep(struct soft_vcpu *v,
                            void (*note)(struct soft_vcpu *, uint64_t, const struct translation *));
void soft_kernel_pages_forget(struct engine *e);                                   /* it has been */
bool soft_kernel_page_listed(const struct engine *e, uint64_t gva, uint64_t *gpa); /* where it was found */
/* Those of `from` that are the same by the tables of e's vCPU. */
void soft_kernel_pages_join(struct engine *e, const struct engine *from);
/* All of e's are for that vCPU, too. */
bool soft_kernel_pages_same(const struct engine *e, struct soft_vcpu *v);

/* --- ways.c --- */
enum way_in { WAY_POLL, WAY_POLL_MEMORY, WAY_INDIRECT };
void soft_ways_out(struct engine *e); /* the cache is empty */
/* Code offset of a way into the block, made if need be; 0: there is no room. */
uint32_t soft_way_in(struct engine *e, struct block *b, enum way_in way);

/* --- watch.c --- */
void soft_watch_update(struct soft_vcpu *v);                            /* DR0-DR3 or DR7 may have changed */
bool soft_watched(const struct soft_vcpu *v, uint64_t gva, bool write); /* has its page a breakpoint on data? */
uint32_t soft_watch_hits(const struct soft_vcpu *v, uint64_t gva, uint64_t n, bool write); /* bits of DR6 */

/* --- evict.c --- */
void soft_regions_create(struct engine *e);
/* n of them are filled as far as that, in that order, by somebody else, and `region` goes on being filled. */
void soft_regions_taken(struct engine *e, unsigned n, const struct cache_region filled[REGIONS_MAX],
                        const uint32_t as[REGIONS_MAX], unsigned region);
void soft_region_next(struct engine *e); /* on to the next region, whose blocks are dropped */
/* `aside` fills the regions from the first on, and e the last one, until soft_course_end. */
void soft_regions_beside(struct engine *e, struct engine *aside);
void soft_region_taken(struct engine *e, unsigned i, const struct cache_region *filled); /* up to there, of aside's */
bool soft_region_has_room(const struct engine *e);                                       /* for one block more */
/* Likewise, in the next one if need be, or in one more, but nothing is dropped for it. */
bool soft_region_has_spare(struct engine *e);
void soft_regions_spare(struct engine *e);     /* that it will have one for some time, too, if it may grow */
bool soft_region_beside(struct engine *aside); /* makes it, in the next region if need be; false: there is none */
void soft_region_at(struct engine *e, const struct cache_region *at); /* it is filled from there on: in the same one */
void soft_region_make_room(struct engine *e); /* for one block more: on to the next if need be */
void soft_cache_flush(struct engine *e);
unsigned soft_region_of(const struct engine *e, uint32_t code_offset);
struct cache_region soft_region_filled(const struct engine *e, unsigned i); /* the end of what is in use of it */

static inline uint64_t soft_clock_ns(clockid_t clock)
{
    struct timespec t = {0};
    clock_gettime(clock, &t);
    return (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec;
}

/* --- steal.c --- */
void soft_steal_begin(struct engine *e);  /* it begins to run guest code */
void soft_steal_update(struct engine *e); /* while it does */

/* --- coherence.c --- */
/* Once around a loop that waits for another vCPU: `i` counts.  Its thread may have to wait for a CPU: then this one is
 * of more use to it. */
static inline void soft_spin(unsigned i)
{
    if (i % 64 == 63)
        sched_yield();
    else
        __builtin_ia32_pause();
}
int soft_peers_create(struct peers **out, const struct engine_config *config);
void soft_peers_destroy(struct peers *p);
void soft_serve(struct engine *e);     /* REQ_FLUSH: what others want of this vCPU */
void soft_go_inside(struct engine *e); /* it begins to run guest code; and has ended */
void soft_come_out(struct engine *e);
/* Around a translation: nobody writes to the page unnoticed from here on, as long as there is code of it. */
void soft_code_claim(struct engine *e, uint64_t page);
void soft_code_claimed(struct engine *e);              /* it has come to an end */
void soft_code_gone(struct engine *e, uint64_t page);  /* no code of it is left; */
void soft_code_none(struct engine *e, uint64_t page);  /* and there was none noted */
bool soft_may_write(struct engine *e, uint64_t page);  /* without saying so each time: true, and it is noted */
void soft_note_write(struct engine *e, uint64_t page); /* it is about to write there; then it looks who has code */
bool soft_others_code(const struct engine *e, uint64_t page);
void soft_others_tell(struct soft_vcpu *v, uint64_t gpa, uint64_t len); /* a store has been made, inside a page */
/* Stores are about to be made; and have been. */
void soft_others_tell_later(struct soft_vcpu *v, uint64_t gpa, uint64_t len);
void soft_tell_now(struct soft_vcpu *v);
static inline void soft_told(struct soft_vcpu *v)
{
    if (v->engine->to_tell.n)
        soft_tell_now(v);
}
void soft_device_wrote(void *peers, uint64_t gpa, uint64_t len); /* any thread */

/* --- cache.c --- */
/* Zeroes that take memory only where they are used, or NULL; soft_release takes that NULL, too. */
void *soft_reserve(size_t bytes);
void soft_release(void *p, size_t bytes);
int soft_cache_create(struct engine *e);
void soft_cache_destroy(struct engine *e);
struct block *soft_block_find(struct engine *e, uint64_t gpa, uint64_t gva, uint32_t mode);
struct block *soft_block_alloc(struct engine *e); /* NULL: full, flush and try again */
unsigned soft_block_hash(uint64_t gpa, uint64_t gva, uint32_t mode);
void soft_block_index(struct engine *e, struct block *b);  /* it is found by address; by insert, too */
void soft_block_unlink(struct engine *e, struct block *b); /* no exit leads to it, nor out of it */
void soft_block_insert(struct engine *e, struct block *b);
void soft_block_kill(struct engine *e, struct block *b);
void soft_block_unindex(struct engine *e, struct block *b); /* it is no longer found by address */
void soft_patch(struct engine *e, uint32_t at, uint32_t target);
/* Zeroes again, and no memory.  Whole pages. */
void soft_give_back(void *p, size_t bytes);
int soft_index_young(struct engine *e);         /* the index is somebody else's: 0/-ENOMEM */
void soft_index_settle(struct engine *e);       /* all blocks are in the one index; */
void soft_index_forget_young(struct engine *e); /* only those that are there already; */
void soft_index_empty_young(struct engine *e);  /* but others will have the small one again */
void soft_chain(struct engine *e, struct exit *x, struct block *to);
void soft_unchain_cross(struct engine *e);
void soft_unchain_incoming(struct engine *e, struct block *b);
/* Drops translations that overlap [gpa, gpa+len); true when any was. */
bool soft_invalidate(struct engine *e, uint64_t gpa, uint64_t len);
struct block *soft_block_of_host(struct engine *e, uint32_t code_offset);
void soft_close_page(struct engine *e, uint64_t page); /* it leaves the write TLB, and what is like it */
void soft_close_all(struct engine *e);
static inline const void *soft_code(const struct engine *e, uint32_t offset)
{
    return e->cache.rx + offset;
}

/* --- lent.c: code executed in pages of somebody else's --- */
/* It may be: fd has them, as the whole cache, from `offset` on.  0/-errno. */
int soft_code_lend(struct engine *e, int fd, uint64_t offset);
void soft_code_lend_end(struct engine *e);
void soft_code_lent(struct engine *e, uint32_t from, uint32_t end); /* [from, end) is */
/* A branch at `at` could be chained: it is worth a page of one's own only when it is taken again and again. */
bool soft_code_spared_page(struct engine *e, uint32_t at);
static inline bool soft_code_spared(struct engine *e, uint32_t at)
{
    return e->cache.lent && soft_code_spared_page(e, at);
}
/* Those of [from, end) are so again, as they were, by way of cache.image; and nothing else is in the cache. */
void soft_code_lent_again(struct engine *e, uint32_t from, uint32_t end);
void soft_code_empty(struct engine *e);
/* [from, end) is about to be written to. */
void soft_code_own_pages(struct engine *e, uint32_t from, uint32_t end);
static inline void soft_code_own(struct engine *e, uint32_t from, uint32_t end)
{
    if (e->cache.lent)
        soft_code_own_pages(e, from, end);
}

/* --- gather.c --- */
/* The machine's first vCPU has translated all that any has; no vCPU runs. */
void soft_gather(struct engine *e);

/* --- carry.c: translations for copies of this machine; engine.h: get_code, set_code --- */
uint64_t soft_program(const struct engine_config *config);
int soft_get_code(struct engine *e, int fd, struct engine_code *head);
int soft_set_code(struct engine *e, int fd, const struct engine_code *head);
void soft_carry_begin(struct engine *e);                          /* with e->carried: a copy runs */
void soft_carry_dropped(struct engine *e, const struct block *b); /* of what copies may use, or this one was given */
void soft_carry_lost(struct engine *e);                           /* what copies may use is not valid any more */
/* A copy has what it was given, and no more, if it can still have that; nothing is in the TLBs and IBTCs. */
void soft_carry_again(struct engine *e);
void soft_carry_keep(struct engine *e); /* it cannot any more */
void soft_carry_forget(struct engine *e);

/* --- course_note.c: what a kernel that boots has translated (course.h); all but the first with e->note --- */
struct engine_course;
int soft_note_begin(struct engine *e, const struct engine_course *c); /* its descriptor is taken over */
void soft_note_better(struct engine *e, const struct block *b);       /* the next one is the same, translated better */
void soft_note_computed(struct engine *e, const struct block *b);     /* a computed branch comes to it */
void soft_note_tick(struct engine *e);                                /* ends it when it is time */
void soft_note_end(struct engine *e);

/* --- course_ahead.c, course_take.c: blocks translated by another thread; all but set, serve, forget and stats want
 * e->course --- */
int soft_set_course(struct engine *e, const struct engine_course *c); /* engine.h */
void soft_course_serve(struct engine *e);                             /* that thread: returns when there is no more */
/* There was no such block: true: now there is. */
bool soft_course_take(struct engine *e, uint64_t gpa, uint64_t gva, uint32_t mode);
void soft_course_stop(struct engine *e);                 /* the thread makes no more */
unsigned soft_course_region(const struct engine *e);     /* the last one that it has written to, when it is stopped */
void soft_course_missed(struct engine *e, uint64_t gpa); /* the vCPU has had to translate a block there */
void soft_course_tick(struct engine *e);                 /* ends it when a boot should be over */
void soft_course_end(struct engine *e);
void soft_course_forget(struct engine *e); /* whether there is one or not; that thread has returned */
void soft_course_stats(const struct engine *e, FILE *out);

/* --- translate.c --- */
struct translator *soft_translator_create(const struct cpu *cpu);
void soft_translator_destroy(struct translator *t);
/* What it knows of instructions, for copies: `size` bytes, of which `used`. */
uint8_t *soft_translator_shapes(struct translator *t, size_t *size, size_t *used);
void soft_translator_given(struct translator *t); /* a copy has them there */
void soft_translator_ahead(struct translator *t); /* any thread: asks the host for what it will fill first */
/* Translates the block at cpu.rip, already known to be executable at gpa.  NULL: exception recorded
 * in cpu.exc (fetch fault in the second page). */
struct block *soft_translate(struct soft_vcpu *v, uint64_t rip, uint64_t gpa, uint32_t mode, bool no_windows);

/* --- isa.c --- */
bool soft_is_amd(const struct cpu *cpu);  /* the guest's CPU is AMD's or Hygon's */
bool soft_is_zen5(const struct cpu *cpu); /* ... and as those of family 1Ah are */

/* --- simd.c --- */
void soft_xsave_layout(struct engine *e);

/* --- direct.c, direct_child.c, direct_mirror.c: user code that runs in a process of its own (direct.h); all but
 * create, destroy, kick and the flushes want e->direct --- */
int soft_direct_create(struct engine *e);
void soft_direct_destroy(struct engine *e);
void soft_direct_helper_stop(struct peers *p); /* when all have been destroyed */
void soft_direct_memory(struct peers *p);      /* the RAM may have another file; no vCPU runs */
void soft_direct_kick(struct engine *e);       /* any thread */
/* The vCPU's thread got a #GP of the host's at a CPUID of ours: true: it may have it, it does not trap any more. */
bool soft_direct_cpuid(struct engine *e);
void soft_direct_stats(struct engine *e, FILE *out);
bool soft_direct_began(const struct engine *e);      /* whether there ever was one */
uint64_t soft_direct_cpu_ns(const struct engine *e); /* CPU time of the processes that there are */
void soft_direct_tick(struct soft_vcpu *v);          /* the vCPU is wanted */
bool soft_direct_armed(const struct soft_vcpu *v);   /* does user code run so, in this address space? */
enum direct_next {
    DIRECT_NEXT_CODE,        /* on with translated code */
    DIRECT_NEXT_PIECE,       /* with as little of it as may be, then again */
    DIRECT_NEXT_INSTRUCTION, /* with one instruction of it, then again */
    DIRECT_NEXT_LOOP,        /* to what has come up */
    DIRECT_NEXT_DELIVER,     /* cpu.exc is recorded */
};
enum direct_next soft_direct_run(struct soft_vcpu *v);
void soft_direct_flush_page(struct soft_vcpu *v, uint64_t gva);
void soft_direct_flush(struct soft_vcpu *v, int pcid); /* -1: all of them */
void soft_direct_cr3(struct soft_vcpu *v, bool keep);
void soft_direct_code(struct engine *e, uint64_t page); /* the physical page holds translated code from now on */

/* --- signal.c --- */
int soft_signals_install(void);
void soft_signals_thread(struct soft_vcpu *v); /* alternate stack, current vCPU */
