/*
 * The KVM engine's inside.
 *
 * Reading order: run.c (the loop), exits.c (why a guest stops), state.c (struct cpu <-> KVM),
 * cpuid.c, probe.c (is it worth having), kvm.c (making and unmaking).
 *
 * Who holds a vCPU's state: while it runs, KVM does, and struct cpu is stale but for the fields that
 * KVM never learns (request, halted, wait_sipi, tsc_offset).  vcpu_export() brings struct cpu up to
 * date before run returns; vcpu_import() hands back to KVM what differs from `known`, the state both
 * sides last agreed on, so whoever changes struct cpu while the vCPU is stopped need not say so.
 */
#pragma once
#include <linux/kvm.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "engine/engine.h"

/* Gets a thread out of KVM_RUN.  Blocked in vCPU threads except inside KVM_RUN. */
#define KVM_KICK_SIGNAL SIGUSR1

#define VCPU_MSRS 48  /* at least the number of entries in state.c's table */
#define VCPU_EXITS 40 /* exit reasons counted one by one */

/* One MSR of struct cpu that KVM keeps while the guest runs. */
struct msr_field {
    uint32_t index;
    uint16_t offset; /* of a uint64_t in struct cpu */
    bool optional;   /* a KVM that lacks it, or refuses a value, is good enough */
};
extern const struct msr_field kvm_msr_fields[];
extern const unsigned kvm_n_msr_fields;

/* The parts of the state that KVM takes by one call each. */
struct vcpu_state {
    struct kvm_regs regs;
    struct kvm_sregs sregs; /* cr8 and interrupt_bitmap zero */
    struct kvm_debugregs debug;
    uint64_t xcr0;
    uint64_t msr[VCPU_MSRS];
    int64_t tsc_offset;
    uint8_t irq_shadow, nmi_blocked;
};

struct vcpu {
    struct cpu cpu; /* first: engine_ops hands out its address */
    struct kvm_engine *engine;
    int fd;
    struct kvm_run *run;
    struct vcpu_state known;
    bool everything;  /* import all: nothing of `known` holds yet */
    bool push_events; /* import the events: struct cpu has delivered what KVM still holds */
    bool msr_absent[VCPU_MSRS];
    bool unfinished;           /* the last exit was an access that KVM completes when entered again */
    bool irq_check;            /* ask the interrupt controller before entering */
    bool ready;                /* KVM takes an interrupt now */
    bool paused;               /* left by REQ_EXIT: the guest is told that time passed */
    _Atomic(pthread_t) thread; /* the one prepared for running this vCPU */
    bool thread_known;
    _Atomic int running_tid; /* != 0 while in KVM_RUN: whom to signal; pairs with vcpu_kick */
    char error[256];

    uint64_t exits[VCPU_EXITS], guest_ns, exit_ns, entries, interrupts, nmis;
    _Atomic uint64_t kicks;
};

struct kvm_engine {
    struct engine_config config;
    int kvm, vm;
    size_t run_size;
    struct cpuid_table *cpuid;
    struct vcpu **vcpus;
    pthread_mutex_t lock; /* guards the clock of the table, and whether KVM has been told */
    bool clock_is_set;
    uint64_t *dirty[2]; /* of each slot, by page, while writes are logged */
    struct sigaction old_action;
    bool has_action;
};

/* What an exit's handler returns to the loop: go on, or an enum engine_exit. */
enum { VCPU_GO_ON = -1 };

/* --- kvm.c --- */
const char *kvm_missing_capability(int vm); /* what the engine needs and this KVM lacks, or NULL */
int kvm_set_tss(int vm);                    /* three pages that Intel's KVM wants in the 32-bit hole */

/* --- run.c --- */
int vcpu_fail(struct vcpu *v, const char *format, ...) __attribute__((format(printf, 2, 3)));
enum engine_exit vcpu_run(struct vcpu *v);
int vcpu_settle(struct vcpu *v); /* completes an access KVM has half done: VCPU_GO_ON or an exit */
void vcpu_kick(struct vcpu *v);

/* --- exits.c --- */
int vcpu_handle_exit(struct vcpu *v);
const char *kvm_exit_name(unsigned reason);

/* --- state.c --- */
void vcpu_find_msrs(struct vcpu *v);
int vcpu_import(struct vcpu *v); /* 0, or -errno with v->error set */
int vcpu_export(struct vcpu *v, bool full);
int vcpu_set_apic_base(struct vcpu *v);
int vcpu_set_tsc(struct vcpu *v);
void vcpu_resume_clock(struct vcpu *v); /* the guest has been stopped for a while */
/* As engine_ops has them. */
int vcpu_get_simd(struct vcpu *v, uint8_t *out);
int vcpu_set_simd(struct vcpu *v, const uint8_t *bytes, size_t n);

/* --- memory.c --- */
/* Gives the guest its memory; logged: KVM remembers which pages it writes to.  0/-errno. */
int kvm_set_slots(struct kvm_engine *e, bool logged);
extern const struct memory_writer_ops kvm_writer_ops; /* opaque: the engine */

/* --- cpuid.c --- */
/* What its guests with so many CPUs are shown on this host; by /dev/kvm.  0/-errno. */
int kvm_cpuid_table(struct cpuid_table **out, int kvm, unsigned n_cpus, uint64_t tsc_khz);
int vcpu_set_cpuid(struct vcpu *v); /* 0 or -errno */
