/*
 * The second tier: user code that computes runs in a process of its own, natively (docs/ENGINE.md).
 *
 *      direct.c         between the vCPU's state and that process's
 *      direct_when.c    when: measured for each address space
 *      direct_compare.c which tier is faster, where that is not clear
 *      direct_mirror.c  which of the guest's pages are mapped there, and for how long that is right
 *      direct_pages.c   the table of these
 *      direct_copies.c  pages of which a copy is executed
 *      direct_scan.c    finds bytes that may be such, or must not be executed
 *      direct_child.c   the process: orders to it, and that it stands still
 *
 * All of it is called on the vCPU's thread, but for soft_direct_kick.
 */
#pragma once
#include "engine/direct/layout.h"
#include "engine/soft/soft_int.h"

/* Why guest code came back. */
enum direct_exit {
    DIRECT_MAPPED, /* a page that was not mapped there yet is now: it goes on */
    DIRECT_KICK,   /* an interrupt, or somebody wants the vCPU */
    DIRECT_SYSCALL,
    DIRECT_FAULT,     /* a page fault of the guest's */
    DIRECT_EXCEPTION, /* another; or an instruction that is not the processor's to answer */
    DIRECT_TRAP,      /* a single step */
    DIRECT_CODE,      /* a store to a page with translated code */
    DIRECT_HIDDEN,    /* a page of code with an instruction that tells what the guest must not see */
    DIRECT_REFUSED,   /* a page cannot be mapped */
    DIRECT_STRAY, /* guest code had jumped into the stub: it has stopped there, or sleeps there and does not say so */
    DIRECT_LOST,  /* the process has ended, or does not stop */
    DIRECT_ENDED, /* it had ended before it went on: the guest's state is what it was */
    DIRECT_EXITS,
};

#define MIRROR_PENDING 64u
#define MIRROR_MAPPINGS 65530u /* that a process may have, where the host does not say */
#define MIRROR_REGIONS 2048u
#define MIRROR_LARGE 0x200000ull
#define PAGE_INDEX(gva) ((gva) >> 12 & 511)
#define REGION_PATH 3

/* 2 MiB of an address space.  What is mapped has its physical address with PROT_* in the low bits, else 0. */
struct region {
    uint64_t base;
    bool known;                 /* path */
    uint64_t path[REGION_PATH]; /* the guest's entries above those of its pages, as they were */
    uint64_t large;             /* mapped as one page */
    uint64_t mapped[512 / 64];  /* which of the pages there are: bits */
    uint64_t page[512];
    uint64_t entry[512]; /* the guest's, as it was, for each page that is mapped */
};

/* A page of which another is executed (direct_copies.c). */
#define COPIES 4
struct page_copy {
    bool used;
    uint64_t gpa;
    uint64_t original[4096 / 8];
};

enum slot_state { SLOT_NONE, SLOT_STARTING, SLOT_READY, SLOT_LOST };

struct direct_slot {
    enum slot_state state;
    struct direct_orders *orders;
    struct direct_state *shared;
    uint8_t *stack;
    uint64_t frame, fpstate; /* offsets in the stack: always the same */
    uint32_t fpstate_size;
    uint8_t *initial; /* the first frame's struct ucontext up to its registers, and SIMD state; no guest has seen it */
    uint32_t stopped; /* last seen */
    unsigned n_calls, n_unmapped; /* in the orders: system calls, and what these unmap */
    uint64_t patience;            /* ns of CPU time that it may have when it is wanted */
    bool based;                   /* fs_base and gs_base are what the runner has, since `loads` */
    uint64_t fs_base, gs_base, loads;
    int cpu;       /* the host's that it runs on; -1: any */
    pid_t process; /* by its own count */

    /* the mirror */
    uint64_t root, used; /* CR3's address; when it ran last */
    uint16_t pcid;
    bool stale; /* translations may have changed: look at each again */
    bool clear; /* unmap everything */
    uint64_t pending[MIRROR_PENDING], code[MIRROR_PENDING];
    unsigned n_pending, n_code; /* pages that lose their mapping; physical pages that hold translated code now */
    uint64_t fault;             /* of the guest's, here: its kernel has mapped that page when it comes back */
    unsigned n_pages, n_joined; /* mapped; and how many of those go on with the mapping of the page before */
    unsigned n_regions, hand;   /* hand: where room is made next */
    struct region **regions;    /* by hash */
    uint64_t huge;              /* where pages of 1 GiB may be mapped: bits by address */
};

/* Whether a program whose exits are close is faster in translated code (direct_compare.c). */
struct compare {
    uint64_t start, events, loads; /* of the window of time: TSC; and events and struct direct's loads until then */
    uint64_t direct;               /* events in a second of the last window that ran directly */
    unsigned steady;               /* so many of those were alike */
    unsigned trial;                /* of translated code: 1 while it gets warm, 2 while it is measured */
    unsigned wait, again;          /* ticks until the next; and after that */
};
enum compare_result { COMPARE_NOTHING, COMPARE_GOES_ON, COMPARE_DIRECT, COMPARE_TRANSLATED };

#define SPACES 256u
/* What is known of an address space. */
struct space {
    uint64_t root;
    bool direct;         /* it runs so, until that does not pay; */
    bool paid;           /* but it has, since it was armed: it may be back soon */
    uint32_t seen;       /* ticks that found it in user mode, one after another */
    uint64_t found;      /* when the last tick found it, there or in its kernel: TSC */
    uint32_t wait, fail; /* ticks until it may try again; log2 of what the next failure costs */
    uint32_t misses;     /* of pages: the first ones have to be */
    uint32_t exits;      /* that count: there is a price to them */
    uint64_t began;      /* CPU time of its process before those, ns; */
    uint64_t entries;    /* and how often any program had been let go then, */
    uint64_t ran;        /* and how long any had run, in ticks of the TSC */
    struct compare compare;
};

/* What an exit costs on this host, measured when the first process is there. */
struct direct_price {
    bool known;
    uint64_t wall;    /* ns by the clock: from leaving guest code to being in it again */
    uint64_t cpu;     /* ns of CPU time of its process */
    uint64_t through; /* between the process's two time stamps, in ticks of the TSC */
};

struct direct_stats {
    uint64_t entries, exits[DIRECT_EXITS], ticks, misses, mapped, unmapped, checked, cleared, evicted, tried, given_up,
        compared, started;
};

struct direct {
    struct engine *engine;
    enum engine_direct mode;
    struct direct_slot slots[DIRECT_SLOTS];
    struct direct_slot *_Atomic running; /* for whoever kicks */
    struct direct_slot *current;         /* for the address space that is current */
    unsigned mappings;                   /* that a mirror may have; pages that follow one another share one */
    uint8_t *writable;                   /* by physical page: the slots where it can be written */
    uint8_t *spare;                      /* the copies, one a page */
    struct page_copy copies[COPIES];
    uint64_t clock;
    bool cpuid_traps, cpuid_tells; /* in programs; and what the guest's would not */
    bool vcpu_traps;               /* in the vCPU's thread, too */
    bool has_rdpid;
    bool bases_by_calls;  /* FS's and GS's: the host's kernel does not let programs set them */
    uint64_t loads, root; /* of CR3, with another program's root; the last one */
    bool trap_tsc;        /* the guest has set its own: what programs read is not the host's */
    unsigned pieces;      /* of translated code, since it has run directly */
    uint64_t host_xcr0;
    uint32_t mxcsr_mask;
    uint8_t cpus[DIRECT_CPUS / 8]; /* where the vCPU may run */
    int cpu;                       /* where it has to; -1: it may move */
    unsigned moves;                /* chances that it had to */
    uint64_t since;                /* TSC */
    uint64_t entries;              /* at the last tick */
    struct space spaces[SPACES];
    const struct space *last;                   /* that a tick found, */
    uint64_t last_tick, last_work, last_blocks; /* and when; calls of C by translated code and blocks until then */
    uint32_t random;
    struct direct_price price;
    uint64_t ran; /* what programs have run, in ticks of the TSC */
    struct direct_stats stats;
    char why[160]; /* there is none */
};

/* What a mirror belongs to: the root of the page tables, and their PCID. */
static inline uint64_t direct_root(const struct soft_vcpu *v)
{
    return v->cpu.cr3 & PTE_ADDR;
}

static inline uint16_t direct_pcid(const struct soft_vcpu *v)
{
    return v->cpu.cr4 & CR4_PCIDE ? v->cpu.cr3 & 0xfff : 0;
}

/* --- direct.c --- */
bool direct_suitable(const struct soft_vcpu *v, const struct direct *d); /* its state now, for a process */

/* --- direct_when.c --- */
struct space *space_of(struct direct *d, uint64_t root);
/* Back to translated code, for as many ticks as the failures before cost; or the longest that there is. */
void space_give_up(struct direct *d, struct space *sp, bool for_long);
/* The next exits are judged together from here on; and each of them, with so many pages that were missed in it. */
void space_begin(struct direct *d, const struct direct_slot *s, struct space *sp);
void space_judge(struct direct *d, const struct direct_slot *s, struct space *sp, enum direct_exit exit,
                 unsigned misses);

/* --- direct_compare.c --- */
void compare_begin(const struct direct *d, struct compare *c); /* a window, for a program that runs directly */
/* Some exits later: is translated code to be tried? */
bool compare_wanted(const struct direct *d, struct compare *c);
/* A tick: is there no such trial, does it go on, or which of the two is faster? */
enum compare_result compare_tick(const struct direct *d, struct compare *c);

/* --- direct_child.c --- */
int direct_child_start(struct direct *d, char *err, size_t n);
/* Is the RAM in another file now than its processes map? */
bool direct_child_memory_differs(const struct peers *p);
/* Those that there are end, and new ones get that file.  false: there will be none. */
bool direct_child_memory(struct peers *p);
bool direct_slot_ready(struct direct *d, struct direct_slot *s); /* starts it, when there is none */
/* Another process; what there was has ended when this returns. */
void direct_slot_replace(struct direct *d, struct direct_slot *s);
void direct_call(struct direct_slot *s, int64_t number, uint64_t a, uint64_t b, uint64_t c, uint64_t offset);
static inline bool direct_calls_full(const struct direct_slot *s)
{
    return s->n_calls >= DIRECT_CALLS - 4;
}
/* The vCPU may run where it could at first: it does not run programs any more, or has not for a while. */
void direct_child_release(struct direct *d);
/* Does the calls, lets guest code go on and waits until it has stopped: 0; or -ECANCELED: it has not run since the
 * vCPU is wanted; -ENOMEM: nor since a call failed; -ESRCH: it is lost; -EPROTO: it sleeps where it would have
 * to say so, and does not. */
int direct_child_run(struct soft_vcpu *v, struct direct *d, struct direct_slot *s);
/* Finds d->price, by some exits of a process that has run nothing yet; later, if the vCPU is wanted meanwhile. */
void direct_child_measure(struct soft_vcpu *v, struct direct *d, struct direct_slot *s);
uint64_t direct_child_cpu_ns(const struct direct_slot *s); /* CPU time that the process has had */
/* How long guest code has run since it was let go, in ticks of the TSC, if its process does not lie. */
uint64_t direct_child_ran(const struct direct *d, const struct direct_slot *s);

/* --- direct_pages.c --- */
struct region *pages_region(const struct direct_slot *s, uint64_t gva); /* NULL: nothing is mapped there */
struct region *pages_new_region(struct direct_slot *s, uint64_t gva);   /* or the one that there is; NULL: no room */
struct region *pages_next(const struct direct_slot *s, unsigned *i);    /* each of them, *i from 0; NULL: no more */
uint64_t pages_find(const struct direct_slot *s, uint64_t gva);         /* what is mapped */
static inline unsigned pages_mappings(const struct direct_slot *s)      /* that the process has for them */
{
    return s->n_pages - s->n_joined;
}
void pages_set(struct direct_slot *s, struct region *g, uint64_t *page, uint64_t value); /* page or large of g */
/* Takes g out of the table.  Whatever *i has gone past stays so, for pages_next. */
void pages_drop(struct direct_slot *s, struct region *g);
bool pages_mapped(const struct region *g, unsigned *i); /* *i becomes the next that is, from *i on; false: no more */
void pages_free(struct direct_slot *s);
/* The guest's entries for what is mapped at gva, `page` as in struct region.  Another vCPU may have changed them since
 * they were looked at, and may change them back: false if what is remembered does not say that it may be mapped so. */
bool pages_remember(struct soft_vcpu *v, struct region *g, uint64_t gva, uint64_t page, uint64_t size);
/* Whether they are the same now, but for marks that have been added: those above the pages of a region, and, with these
 * the same, that of its page i in the table that they lead to (NULL: its pages are part of a large one). */
bool pages_same_path(struct soft_vcpu *v, const struct region *g);
bool pages_of_large(const struct region *g); /* is it one, or may its pages be parts of one? */
const volatile uint64_t *pages_table(struct soft_vcpu *v, const struct region *g);
bool pages_same(const struct region *g, const volatile uint64_t *table, unsigned i);
/* Is it mapped, and its entry in the table to the bit what it was, marks and all? */
bool pages_untouched(const struct region *g, const volatile uint64_t *table, unsigned i);

/* --- direct_copies.c --- */
int copies_start(struct direct *d); /* 0 or -errno */
void copies_stop(struct direct *d);
/* Does the instruction with the byte 0x0f at p, in these bytes of a page, ask for the number of its processor, in a way
 * that a copy can do without? */
bool copies_can(const uint8_t *page, const uint8_t *p);
/* What is to be executed for a page of these bytes, with such an instruction: an offset in the RAM's file; 0: there is
 * no room. */
uint64_t copies_offset(struct direct *d, uint64_t gpa, const uint8_t *page);
bool copies_has(const struct direct *d, uint64_t gpa, uint64_t size); /* one of them is of a page there */
/* A page that has changed since loses its copy, and whatever maps that is cleared. */
void copies_check(struct direct *d);

/* --- direct_scan.c --- */
/* The next byte 0x0f, from p on, whose follower before `end` makes it the beginning of an instruction that tells() or
 * copies_can() may know; NULL: there is none. */
const uint8_t *scan_special(const uint8_t *p, const uint8_t *end);

/* --- direct_mirror.c --- */
/* Makes what is mapped right again, as far as flushes and translated code ask for it. */
void mirror_refresh(struct soft_vcpu *v, struct direct *d, struct direct_slot *s);
void mirror_forget(struct direct *d, struct direct_slot *s);
/* The page at gva was missed: maps it and some around.  DIRECT_MAPPED, or why not. */
enum direct_exit mirror_miss(struct soft_vcpu *v, struct direct *d, struct direct_slot *s, uint64_t gva,
                             unsigned access);
/* Is this page known as one that cannot be executed there? */
bool mirror_hidden(const struct direct_slot *s, uint64_t gva);
/* What translated code has used last: to begin with. */
void mirror_prefill(struct soft_vcpu *v, struct direct *d, struct direct_slot *s);
