/*
 * One VM = one process: configuration and life cycle.
 *
 * The calling thread becomes the event loop; each vCPU is a thread.  The first cause that ends the run
 * is kept; a guest's reset, unless no_reboot, starts the machine again in place.
 */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/options.h"

struct engine_ops;
struct vm_life;
struct restore;

#define VM_DEFAULT_MEMORY (512ull << 20)

struct vm_config {
    const char *kernel_path, *append; /* append may be NULL */
    struct option_list initrds;       /* unpacked one over the other; at most 4 */
    /* NULL, or called before a machine that has not booted here boots: one of the initrds is empty so far. */
    int (*write_initrd)(void *opaque, char *err, size_t n);
    void *write_initrd_opaque;
    uint64_t memory_bytes;
    uint64_t n_cpus;                     /* at the start */
    uint64_t max_cpus;                   /* so many there can be, as they come and go; 0: they do not */
    const char *engine;                  /* "auto", "soft" or "kvm" */
    const struct engine_ops *engine_ops; /* not NULL: this one, without a choice or a word about it */
    const char *serial;                  /* as backends/chr.h */
    /* Devices by their words, as on the command line; attach.c lists who reads which. */
    struct option_list disks;   /* backends/disk.h */
    struct option_list nets;    /* backends/net.h */
    struct option_list publish; /* ports of the host, for a user-mode network */
    struct option_list shares;  /* backends/share.h */
    struct option_list ports;   /* of a virtio-console: NAME=WHERE, as backends/chr.h */
    const char *vsock_path;     /* the host's end of virtio-vsock, as backends/vsock_host.h; NULL: no such device */
    bool balloon;
    const char *course;  /* "on" (NULL, too) or "off" */
    const char *sandbox; /* "on" (NULL, too), "require" or "off" */
    bool no_reboot;
    uint64_t timeout_ms;       /* 0: none */
    uint64_t stress;           /* engine_config.stress */
    uint64_t code_cache_bytes; /* engine_config.code_cache_bytes */
    bool stats;                /* print where time went, on stderr, at the end */
    unsigned log_items;        /* enum engine_log */
    const char *log_path;      /* NULL: stderr */
    struct vm_life *life;      /* life.h; NULL: a VM without a name */
    struct restore *restore;   /* snapshot.h: begin with what that holds; NULL: from the beginning */
    bool incoming;             /* migration.h: wait to be received; needs `life` */
    bool disk_away;            /* and the file of its own disk is its source's until it runs here */
};

/* What of a vm_config can be said on a command line (options.c): each text is checked as it is stored. */
extern const struct option_spec vm_options[];

/* How many vCPUs it has, those whose CPU is not there included. */
static inline unsigned vm_vcpus(const struct vm_config *config)
{
    return (unsigned)(config->max_cpus ? config->max_cpus : config->n_cpus);
}

/* The engine that a machine goes on with which was on the engine `last`: what its configuration says, or, where that is
 * "auto", that one.  `last` may be a stranger's word, or NULL. */
const char *vm_engine_again(const char *configured, const char *last);

/* Can a guest on that engine, in a process with our rights, run before all of its memory is there? */
bool vm_guest_can_wait(const char *engine);
/* Does that engine work here, and does it show a guest all that this one was shown (cpu.h: cpuid_save)?  0, or -errno
 * with a clause in err[n], which calls this host `where`. */
int vm_engine_check(const char *engine, unsigned n_cpus, const uint8_t *shown, size_t size, const char *where,
                    char *err, size_t n);

enum vm_end {
    VM_POWEROFF,  /* the guest switched itself off */
    VM_RESET,     /* it reset, under no_reboot */
    VM_USER_LEFT, /* Ctrl-] q */
    VM_CRASHED,   /* triple fault, or a panic reported through pvpanic */
    VM_FAILED,    /* guise could not go on, or the configuration could not be set up */
    VM_TIMEOUT,
    VM_UNAVAILABLE, /* this host has no engine that works */
    VM_SIGNAL,      /* SIGINT, SIGTERM or SIGHUP */
    VM_MOVED_AWAY,  /* it runs elsewhere (migration.h) */
};

struct vm_result {
    enum vm_end end;
    int signal;       /* for VM_SIGNAL */
    char reason[512]; /* one sentence, without a final full stop */
};

/* Runs the VM until it ends.  Returns result->end. */
enum vm_end vm_run(const struct vm_config *config, struct vm_result *result);
