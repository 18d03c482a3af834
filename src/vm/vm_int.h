/* Shared inside vm/. */
#pragma once
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <sys/signalfd.h>

#include "backends/chr.h"
#include "engine/engine.h"
#include "host/loop.h"
#include "host/patience.h"
#include "machine/machine.h"
#include "vm/vm.h"

#define VM_MAX_CPUS 64u
#define VM_BACKENDS_MAX 32u /* more devices of a kind than a machine can have */
#define VM_INHERITED_MAX 1024

struct vm;

struct vcpu {
    struct vm *vm;
    unsigned index;
    struct cpu *cpu;
    pthread_t thread;
    _Atomic bool sleeping; /* in futex_wait, or about to be; pairs with vm_kick: request, then sleeping */
    /* the vCPU thread's own: */
    uint64_t idle_ns, exits;
    bool rested;              /* engine.h: rest has been called, or cannot be */
    struct patience patience; /* before it sleeps when halted */
};

struct vm {
    const struct vm_config *config;
    struct vm_result *result;
    struct machine *machine;
    struct bus *bus;
    struct loop *loop;
    struct chr *chr;
    pthread_cond_t console_room; /* with the bus lock: vCPUs wait here for the console's reader, or for `stop` */
    struct chr *terminal;        /* of a virtio console's port that is stdio; the device's */
    struct disk *disks[VM_BACKENDS_MAX]; /* the devices' */
    struct net *nets[VM_BACKENDS_MAX];
    struct share *shares[VM_BACKENDS_MAX]; /* the devices' */
    uint8_t macs[VM_BACKENDS_MAX][6];      /* of the cards at power-on */
    unsigned n_disks, n_nets, n_shares;
    struct net *publisher; /* the network that ports can be published on, a device's; or NULL */
    const struct engine_ops *ops;
    struct engine *engine;
    struct keeper *keeper;                     /* what needs names after the sandbox is entered; NULL: none */
    struct sandbox *sandbox;                   /* NULL: not entered */
    uint64_t inherited[VM_INHERITED_MAX / 64]; /* descriptors that were open before the VM: bits */
    struct vsock *vsock;                       /* NULL: none */
    struct balloon *balloon;                   /* NULL: none */
    struct saving *saving;                     /* snapshot_int.h; NULL: no snapshot was asked for */
    struct merging *merging;                   /* merge.c; NULL: no layers are being merged */
    struct loading *loading;                   /* restore_int.h; NULL: not restored */
    struct moving *moving;                     /* migration_int.h; NULL: it was never to move */
    struct incoming *incoming;                 /* the same; NULL: it was not received */
    struct incoming_ports *incoming_ports;     /* incoming_ports.c; NULL: none */
    _Atomic unsigned throttle;                 /* per cent of the time that vCPUs stand still */
    int parked;          /* the state that copies are made of, when it does not run any more (fork.h); or -1 */
    int parked_code;     /* and what its engine has made of code, the engine's; or -1 */
    uint64_t stopped_ns; /* when the vCPUs were stopped for one; 0: they were not */
    FILE *log;
    struct vcpu vcpus[VM_MAX_CPUS];
    unsigned n_started;
    int course_fd;          /* course.c; -1: none */
    pthread_t course;       /* the thread that makes translations ahead, */
    bool course_runs;       /* which was started */
    pthread_t ahead;        /* ahead.c; where the machine's memory has such a thread */
    _Atomic bool stop;      /* vCPU threads return; set before REQ_EXIT, read after every exit */
    _Atomic bool exhausted; /* there was no memory for the guest's: the run ends (fork.c) */
    bool ended;             /* result is final; guarded by the bus lock */
    bool reset;             /* the guest wants a reset; guarded by the bus lock */
    int signal_fd;
    sigset_t old_signals;
    struct loop_timer timeout;
    uint64_t timeout_ms; /* what it was set to */
    uint64_t start_ns;
};

/* Records how the run ends, if nothing has yet, and stops the event loop.  Bus lock held. */
__attribute__((format(printf, 3, 4))) void vm_end(struct vm *vm, enum vm_end end, const char *format, ...);

/* There is no memory for the guest's: the run ends.  On any thread, with any lock. */
void vm_exhausted(void *vm);

/* The run ends with VM_TIMEOUT when it has lasted so long from now on.  Bus lock held. */
void vm_limit(struct vm *vm, uint64_t ms);

/* --- threads (vcpu.c) ------------------------------------------------------------------------------- */
int vcpus_start(struct vm *vm);
void vcpus_stop(struct vm *vm); /* bus lock not held */
/* For machine_attach_cpu; any thread. */
void vm_kick(void *vm, unsigned i);

/* --- memory before it is used (ahead.c) --------------------------------------------------------------- */
void ahead_start(struct vm *vm); /* when the sandbox has been entered, and no vCPU runs */
void ahead_stop(struct vm *vm);

/* --- a kernel's course, from one boot to the next (course.c) ------------------------------------------- */
void course_open(struct vm *vm);  /* while there are names */
void course_start(struct vm *vm); /* the kernel is there, and no vCPU runs */
void course_stop(struct vm *vm);  /* nor do they now: another boot is none of this */

/* --- engines (choose.c) ------------------------------------------------------------------------------ */
/* The engine for the configuration; says on stderr what "auto" took.  NULL with a sentence in why. */
enum engine_direct vm_choose_direct(const struct vm_config *config); /* what --engine says of it */
const struct engine_ops *vm_choose_engine(const struct vm_config *config, char *why, size_t size);

/* --- log (log.c) ---------------------------------------------------------------------------------- */
int vm_log_open(struct vm *vm, char *error, size_t size);
void vm_log_attach(struct vm *vm, struct cpu *cpu);
void vm_log_close(struct vm *vm);
