/*
 * The one seam between a VM and what executes its instructions.
 *
 * An engine is a const table of functions.  It owns the vCPUs' execution and nothing else: RAM is
 * memory/, everything that is not RAM leaves through bus/, the architecture is cpu/.
 */
#pragma once
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "cpu/cpu.h"

enum engine_exit {
    ENGINE_EXIT_REQUEST,  /* REQ_EXIT was set; struct cpu is all of its state, but for the SIMD registers */
    ENGINE_EXIT_HALT,     /* HLT with nothing pending: call engine_vcpu_wait or sleep until a request */
    ENGINE_EXIT_SHUTDOWN, /* triple fault */
    ENGINE_EXIT_ERROR,    /* the engine cannot go on; vcpu->error says why in one sentence */
};

enum engine_direct { ENGINE_DIRECT_OFF, ENGINE_DIRECT_ON, ENGINE_DIRECT_ALWAYS, ENGINE_DIRECT_RANDOM };

struct engine_config {
    struct memory *memory;
    struct bus *bus;
    unsigned n_cpus;
    uint64_t code_cache_bytes; /* soft: 0 = default */
    bool precise_flags;        /* soft: a fault shows even the flags that its instruction would overwrite (slower) */
    bool always_hot;           /* soft: every block is translated as one that runs often (tests of that code) */
    uint64_t stress;           /* soft: not 0: throw things away and translate again at random, by this seed */
    uint64_t tsc_khz;          /* soft: the host's, where it is known; 0: to be measured */
    bool boots;                /* soft: `ready` will be called; until then tsc_khz is about that */
    bool lean;                 /* soft: of many that are alike: touches no more memory than it has to */
    bool timing;               /* soft: take the time of everything but translated code, for stats */
    enum engine_direct direct; /* soft: user code that computes runs in a process of its own; always: all of it, and
                                  random: any of it, for tests */
    uint32_t log_items;        /* enum engine_log */
};
enum engine_log { ENGINE_LOG_TRANSLATE = 1, ENGINE_LOG_EXC = 2, ENGINE_LOG_IRQ = 4, ENGINE_LOG_DEVICE = 8 };

struct engine_code {
    uint8_t *bytes;
    size_t n;
};

/* The course that a kernel takes when it boots (soft/course.h): as it was the last time, or to be noted. */
struct engine_course {
    uint64_t gpa, gva, size; /* the kernel's image: where it is, and is mapped; bytes */
    int fd;                  /* a file of anybody's making, or an empty one */
};

struct engine;

struct engine_ops {
    const char *name;
    /* Can this host run it?  true, or false with one sentence in why[size]. */
    bool (*probe)(char *why, size_t size);
    int (*create)(struct engine **out, const struct engine_config *config);
    void (*destroy)(struct engine *e);
    /* A machine that boots is about to run for the first time.  NULL: nothing is left to do. */
    void (*ready)(struct engine *e);
    /* The architectural state of vCPU i; valid while it is not running. */
    struct cpu *(*vcpu)(struct engine *e, unsigned i);
    /* Runs vCPU i on the calling thread until an exit.  `error` (size 256) is set for ERROR. */
    enum engine_exit (*run)(struct engine *e, unsigned i, char *error);
    /* vCPU i has done nothing for a while: gives back what it can do without.  On its thread.  true: it is one of a
     * copy's, and keeps no address in memory to write to.  NULL: nothing. */
    bool (*rest)(struct engine *e, unsigned i);
    /* Makes vCPU i notice cpu->request soon; any thread. */
    void (*kick)(struct engine *e, unsigned i);
    void (*stats)(struct engine *e, FILE *out); /* --stats */
    /* What the guest of a machine with so many CPUs is shown on this host; the caller's to destroy.  0/-errno. */
    int (*show)(struct cpuid_table **out, unsigned n_cpus);
    /* --- snapshots; while no vCPU runs --- */
    /* The SIMD state of vCPU i as XSAVE's standard format has it (SDM vol. 1, 13.4.1-2): into out[ENGINE_SIMD_MAX], the
     * length or -errno; and back, of anybody's making: 0 or -errno. */
    int (*get_simd)(struct engine *e, unsigned i, uint8_t *out);
    int (*set_simd)(struct engine *e, unsigned i, const uint8_t *bytes, size_t n);
    /* Memory begins to be watched (memory/watch.h), or has another file (memory/template.h): forgets by what it is
     * accessed without announcement, and what it is mapped by. */
    void (*watch)(struct engine *e);
    /* What it has made of the guest's code, for engines of the same program that run copies of the machine.  fd is an
     * empty file of memory that allows seals, and is taken over.  Returns the descriptor of a file that has it, which
     * stays the engine's, with the head of it, which is the caller's to free; or -errno. */
    int (*get_code)(struct engine *e, int fd, struct engine_code *head);
    /* The same, into one that has not run.  0; -ENOTSUP: it begins without; any other -errno: it is of no use now. Only
     * what the former has given out is taken.  NULL: nothing can be taken along. */
    int (*set_code)(struct engine *e, int fd, const struct engine_code *head);
    /* A machine that boots has its kernel, and has not run.  fd is taken over.  0/-errno: it does without.  c NULL,
     * while no vCPU runs: that boot is over, if it is not yet.  NULL: it is of no use here. */
    int (*set_course)(struct engine *e, const struct engine_course *c);
    /* A thread's work beside the vCPUs', after set_course; returns when it is done, soon after the engine lost
     * interest. */
    void (*serve_course)(struct engine *e);
};

#define ENGINE_SIMD_MAX 4096u

extern const struct engine_ops engine_soft;
extern const struct engine_ops engine_kvm;
