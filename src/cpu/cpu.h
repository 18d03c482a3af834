/*
 * The x86-64 architecture itself, shared by every engine: state, segments, page walk, exceptions,
 * control transfers, CPUID and MSRs.  Nothing here knows how instructions are executed.
 *
 * Manual = Intel SDM vol. 3 / AMD APM vol. 2; sections are named at each function.
 *
 * Faults: a function that can raise an architectural exception returns 0, or CPU_FAULT after
 * recording it with cpu_raise() in cpu->exc; the state is then otherwise as before the instruction
 * (restartable) and the engine calls cpu_deliver().  Fatal = triple fault: CPU_SHUTDOWN.
 *
 * This room is compiled with -mgeneral-regs-only: an engine may call it while guest SIMD state is
 * live in the host's registers.  So: no libc calls that use SIMD (use cpu_copy), no floating point.
 */
#pragma once
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "memory/memory.h"

struct bus;

enum gpr { RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8, R9, R10, R11, R12, R13, R14, R15 };
enum sreg { ES, CS, SS, DS, FS, GS };

/* RFLAGS */
enum {
    FL_CF = 1u << 0,
    FL_ONE = 1u << 1,
    FL_PF = 1u << 2,
    FL_AF = 1u << 4,
    FL_ZF = 1u << 6,
    FL_SF = 1u << 7,
    FL_TF = 1u << 8,
    FL_IF = 1u << 9,
    FL_DF = 1u << 10,
    FL_OF = 1u << 11,
    FL_IOPL = 3u << 12,
    FL_NT = 1u << 14,
    FL_RF = 1u << 16,
    FL_VM = 1u << 17,
    FL_AC = 1u << 18,
    FL_VIF = 1u << 19,
    FL_VIP = 1u << 20,
    FL_ID = 1u << 21,
    FL_ARITH = FL_CF | FL_PF | FL_AF | FL_ZF | FL_SF | FL_OF,
};

enum {
    CR0_PE = 1u << 0,
    CR0_MP = 1u << 1,
    CR0_EM = 1u << 2,
    CR0_TS = 1u << 3,
    CR0_ET = 1u << 4,
    CR0_NE = 1u << 5,
    CR0_WP = 1u << 16,
    CR0_AM = 1u << 18,
    CR0_NW = 1u << 29,
    CR0_CD = 1u << 30,
    CR0_PG = 1u << 31,
};
enum {
    CR4_VME = 1u << 0,
    CR4_PVI = 1u << 1,
    CR4_TSD = 1u << 2,
    CR4_DE = 1u << 3,
    CR4_PSE = 1u << 4,
    CR4_PAE = 1u << 5,
    CR4_MCE = 1u << 6,
    CR4_PGE = 1u << 7,
    CR4_PCE = 1u << 8,
    CR4_OSFXSR = 1u << 9,
    CR4_OSXMMEXCPT = 1u << 10,
    CR4_UMIP = 1u << 11,
    CR4_LA57 = 1u << 12,
    CR4_FSGSBASE = 1u << 16,
    CR4_PCIDE = 1u << 17,
    CR4_OSXSAVE = 1u << 18,
    CR4_SMEP = 1u << 20,
    CR4_SMAP = 1u << 21,
    CR4_PKE = 1u << 22,
};
enum {
    EFER_SCE = 1u << 0,
    EFER_LME = 1u << 8,
    EFER_LMA = 1u << 10,
    EFER_NXE = 1u << 11,
    EFER_SVME = 1u << 12,
    EFER_FFXSR = 1u << 14,
};

enum vector {
    EXC_DE = 0,
    EXC_DB = 1,
    EXC_NMI = 2,
    EXC_BP = 3,
    EXC_OF = 4,
    EXC_BR = 5,
    EXC_UD = 6,
    EXC_NM = 7,
    EXC_DF = 8,
    EXC_TS = 10,
    EXC_NP = 11,
    EXC_SS = 12,
    EXC_GP = 13,
    EXC_PF = 14,
    EXC_MF = 16,
    EXC_AC = 17,
    EXC_MC = 18,
    EXC_XM = 19,
};

/* Page-fault error code bits (SDM 4.7). */
enum { PFERR_P = 1, PFERR_W = 2, PFERR_U = 4, PFERR_RSVD = 8, PFERR_I = 16 };

/* A segment register with its hidden part.  attr: bits 0-3 type, 4 S, 5-6 DPL, 7 P, 8 AVL, 9 L,
 * 10 D/B, 11 G (the SVM layout: descriptor bits 40-47 and 52-55).  limit is in bytes, expanded. */
struct segment {
    uint16_t selector;
    uint16_t attr;
    uint32_t limit;
    uint64_t base;
};
enum {
    SEG_TYPE = 0xf,
    SEG_ACCESSED = 1,
    SEG_WRITABLE = 2 /* data */,
    SEG_READABLE = 2 /* code */,
    SEG_EXPAND_DOWN = 4,
    SEG_CONFORMING = 4,
    SEG_CODE = 8,
    SEG_S = 1 << 4,
    SEG_DPL_SHIFT = 5,
    SEG_DPL = 3 << 5,
    SEG_P = 1 << 7,
    SEG_AVL = 1 << 8,
    SEG_L = 1 << 9,
    SEG_DB = 1 << 10,
    SEG_G = 1 << 11,
};

struct descriptor_table {
    uint64_t base;
    uint32_t limit;
};

enum exc_kind { EXC_HARD, EXC_SOFT_INT, EXC_SOFT_TRAP /* int3, into */, EXC_EXTERNAL };

struct exception {
    uint8_t vector;
    bool has_error;
    uint32_t error;
    uint64_t cr2; /* for #PF: the address; stored to CR2 when the fault is delivered */
    uint32_t dr6; /* for #DB: bits to set in DR6 */
};

/* Why a vCPU must leave translated code; set in cpu->request by any thread, followed by a kick. */
enum cpu_request {
    REQ_IRQ = 1, /* the interrupt controller may have something: ask cpu->irq->pending */
    REQ_NMI = 2,
    REQ_INIT = 4,
    REQ_SIPI = 8,    /* cpu->sipi_vector */
    REQ_EXIT = 16,   /* return from the engine's run function to its caller */
    REQ_FLUSH = 32,  /* another vCPU or a device changed code or mappings: engine drops and goes on */
    REQ_WAKE = 128,  /* HLT ends, or the next one does not begin: another vCPU of the guest's has asked for that */
    REQ_WINDOW = 64, /* an interrupt waits for the end of an interrupt shadow or for IF */
};

/* The local interrupt controller as the CPU sees it; supplied by the machine (devices/lapic.c). */
struct cpu_irq_ops {
    bool (*pending)(void *opaque);     /* is there a vector above the processor priority? */
    int (*acknowledge)(void *opaque);  /* take it: its vector, or -1 when it has gone */
    uint64_t (*get_tpr)(void *opaque); /* CR8 */
    void (*set_tpr)(void *opaque, uint64_t cr8);
    /* APIC_BASE (0x1b), TSC_DEADLINE (0x6e0), x2APIC (0x800-0x8ff).  false: #GP. */
    bool (*read_msr)(void *opaque, uint32_t index, uint64_t *value);
    bool (*write_msr)(void *opaque, uint32_t index, uint64_t value);
    /* KVM's hypercalls of these names: their arguments and results.  NULL: there are none. */
    int64_t (*send_ipi)(void *opaque, const uint64_t args[4]);
    int64_t (*wake)(void *opaque, uint64_t id);
};

struct cpu;

enum access { ACCESS_READ = 0, ACCESS_WRITE = 1, ACCESS_EXEC = 2 };

/* Bits of paging entries (SDM 4.5). */
enum { PTE_P = 1, PTE_W = 2, PTE_U = 4, PTE_A = 1 << 5, PTE_D = 1 << 6, PTE_PS = 1 << 7, PTE_G = 1 << 8 };
#define PTE_NX (1ull << 63)
#define PTE_ADDR 0x000ffffffffff000ull

/* One page translation (SDM 4.2-4.6). */
struct translation {
    uint64_t gpa;       /* of the exact byte asked for */
    uint64_t page_size; /* 4K, 2M, 1G (or the whole space without paging: 4K pieces) */
    bool writable;      /* all levels have R/W */
    bool user;          /* all levels have U/S */
    bool no_exec;       /* some level has NX (and EFER.NXE) */
    bool global;        /* leaf G and CR4.PGE */
    bool accessed;      /* all levels have A set (after the walk) */
    bool dirty;         /* leaf D is set (after the walk) */
};

/* What the engine supplies to this room. */
struct cpu_engine_ops {
    /* Called after the paging state changed: which entries die (SDM 4.10.4). */
    void (*tlb_flush_all)(struct cpu *cpu, bool globals_too);
    void (*tlb_flush_page)(struct cpu *cpu, uint64_t gva);     /* invlpg: current PCID and globals */
    void (*tlb_flush_pcid)(struct cpu *cpu, uint16_t pcid);    /* invpcid type 1 */
    void (*address_space_changed)(struct cpu *cpu, bool keep); /* CR3 written; keep = bit 63 (no flush) */
    /* Called after CPL, CS.L/D, RFLAGS.TF/AC/VM, CR0, CR4, EFER, XCR0 or DR7 changed. */
    void (*mode_changed)(struct cpu *cpu);
    /* Called before guest RAM [gpa, gpa+len) is written by this room (page tables' A/D bits excepted). */
    void (*before_write)(struct cpu *cpu, uint64_t gpa, uint64_t len);
    /* A cached cpu_walk, with the same contract; NULL: cpu_walk itself is used. */
    int (*translate)(struct cpu *cpu, uint64_t gva, unsigned access, bool user, struct translation *out);
};

/*
 * One virtual CPU.  The software engine embeds it at the start of its own structure and reaches it
 * through the host's GS base, so what translated code touches comes first and fits disp8/disp32.
 */
struct cpu {
    uint64_t gpr[16];
    uint64_t rip;
    uint32_t rflags;          /* everything but IF's fast copy below; bit 1 always set */
    _Atomic uint32_t request; /* enum cpu_request; any thread sets, the vCPU thread clears */
    struct segment seg[6];
    uint64_t kernel_gs_base;
    uint64_t cr0, cr2, cr3, cr4, efer, xcr0;
    uint8_t cpl;
    uint8_t irq_shadow; /* 1: the next instruction boundary takes no interrupt (sti, mov ss, pop ss) */
    uint8_t nmi_blocked;
    uint8_t halted; /* in HLT, or waiting for INIT/SIPI when wait_sipi */
    uint8_t wait_sipi, sipi_vector;
    struct segment ldtr, tr;
    struct descriptor_table gdtr, idtr;
    uint64_t dr[4], dr6, dr7;

    /* MSRs that are plain storage or have simple rules (cpu/msr.c). */
    uint64_t star, lstar, cstar, sfmask;
    uint64_t sysenter_cs, sysenter_esp, sysenter_eip;
    uint64_t pat, tsc_aux, misc_enable, spec_ctrl;
    uint64_t debug_control, virt_spec_ctrl, decode_config; /* an engine's that has them; 0: never written */
    uint64_t mtrr_def_type, mtrr_fixed[11], mtrr_base[8], mtrr_mask[8];
    int64_t tsc_offset; /* guest TSC = host TSC + tsc_offset */
    uint64_t tsc_adjust;
    uint64_t kvmclock_system_time, kvmclock_wall; /* pvclock MSRs */
    uint64_t steal_time, pv_eoi;                  /* pvsched.c's, and the local APIC's: where, and bit 0 whether */
    uint8_t unhalted;                             /* woken before it halted: the next HLT is none */
    uint64_t mcg_status;

    struct exception exc; /* recorded by cpu_raise, consumed by cpu_deliver */
    uint8_t delivering;   /* nesting class of the event under delivery, for #DF (SDM 6-5) */

    unsigned index; /* APIC id */
    unsigned n_cpus;
    struct memory *memory;
    struct bus *bus;
    const struct cpu_irq_ops *irq;
    void *irq_opaque;
    const struct cpu_engine_ops *ops;
    const struct cpuid_table *cpuid;
    uint64_t tsc_khz;
    void (*log)(struct cpu *cpu, const char *item, const char *format, ...); /* NULL unless --log */
    void *log_opaque;                                                        /* of whoever set log */
};

enum { CPU_OK = 0, CPU_FAULT = 1, CPU_SHUTDOWN = 2 };

/* --- state (state.c) -------------------------------------------------------------------------- */
void cpu_reset(struct cpu *cpu);       /* power-on values (SDM 9.1.1), real mode at F000:FFF0 */
void cpu_init_signal(struct cpu *cpu); /* INIT: APs wait for SIPI */
static inline bool cpu_long_mode(const struct cpu *c)
{
    return c->efer & EFER_LMA;
}
static inline bool cpu_64bit(const struct cpu *c)
{
    return (c->efer & EFER_LMA) && (c->seg[CS].attr & SEG_L);
}

/* Records an exception and returns CPU_FAULT. */
int cpu_raise(struct cpu *cpu, unsigned vector);
int cpu_raise_error(struct cpu *cpu, unsigned vector, uint32_t error);
int cpu_raise_page_fault(struct cpu *cpu, uint64_t gva, uint32_t error);
int cpu_raise_debug(struct cpu *cpu, uint32_t dr6); /* #DB that sets these bits of DR6 */

/* --- page walk (walk.c), SDM 4.3-4.7 ---------------------------------------------------------- */
/* Walks the guest's tables for one byte; checks all permissions for `access` at privilege `user`
 * (SMEP, SMAP with AC, WP, NX, reserved bits, canonical form excepted: that is the caller's #GP/#SS),
 * sets A, and D on writes, atomically (cmpxchg on the entry).  No paging: identity.
 * Implicit supervisor accesses (descriptor tables, TSS) pass user = false and ignore AC. */
int cpu_walk(struct cpu *cpu, uint64_t gva, unsigned access, bool user, struct translation *out);
/* The same with no side effects and no fault: false if not mapped.  For debuggers. */
bool cpu_walk_probe(struct cpu *cpu, uint64_t gva, struct translation *out);
static inline bool cpu_canonical(const struct cpu *cpu, uint64_t gva)
{
    unsigned shift = cpu->cr4 & CR4_LA57 ? 7 : 16;
    return (uint64_t)((int64_t)(gva << shift) >> shift) == gva;
}

/* --- linear memory (linear.c) ----------------------------------------------------------------- */
/* Access [gva, gva+len) with len <= 4096, across pages and MMIO; on CPU_FAULT nothing was written. */
int cpu_read(struct cpu *cpu, uint64_t gva, void *buf, size_t len, bool user);
int cpu_write(struct cpu *cpu, uint64_t gva, const void *buf, size_t len, bool user);
int cpu_fetch(struct cpu *cpu, uint64_t gva, void *buf, size_t len); /* ACCESS_EXEC at current CPL */
/* RAM at a physical address that is about to be written, announced to the engine; NULL unless all of it is RAM. */
static inline void *cpu_hva_for_write(struct cpu *cpu, uint64_t gpa, size_t len)
{
    void *hva = memory_hva(cpu->memory, gpa, len);
    if (hva && cpu->ops && cpu->ops->before_write)
        cpu->ops->before_write(cpu, gpa, len);
    return hva;
}
void cpu_copy(void *to, const void *from, size_t len); /* memcpy without SIMD (rep movsb) */

/* --- events (event.c), SDM chapter 6 ---------------------------------------------------------- */
/* Delivers cpu->exc (already recorded), with double-fault escalation.  CPU_OK: rip and the rest are
 * the handler's; CPU_SHUTDOWN: triple fault. */
int cpu_deliver(struct cpu *cpu);
int cpu_deliver_interrupt(struct cpu *cpu, unsigned vector); /* external, from acknowledge */
int cpu_deliver_nmi(struct cpu *cpu);
/* int n / int3 / into / int1; next_rip = the return address.  Handles its own faults via cpu_raise. */
int cpu_soft_interrupt(struct cpu *cpu, unsigned vector, enum exc_kind kind, uint64_t next_rip);
/* Interrupts, NMI, INIT, SIPI, single-step: what is due at an instruction boundary.  Consumes
 * request bits.  Returns CPU_OK or CPU_SHUTDOWN; *delivered says whether rip changed. */
int cpu_take_events(struct cpu *cpu, bool *delivered);

/* --- control transfers and segments (transfer.c, segment.c), SDM 5 and AMD APM 4 ---------------- */
/* Each acts on the instruction at cpu->rip; on CPU_OK rip is the new one, on CPU_FAULT unchanged.
 * `size` is the operand size in bytes (2, 4, 8); gpr[RSP] is the stack pointer. */
int cpu_iret(struct cpu *cpu, unsigned size);
int cpu_syscall(struct cpu *cpu, uint64_t next_rip);
int cpu_sysret(struct cpu *cpu, unsigned size);
int cpu_sysenter(struct cpu *cpu);
int cpu_sysexit(struct cpu *cpu, unsigned size);
int cpu_far_jump(struct cpu *cpu, uint16_t selector, uint64_t offset, unsigned size);
int cpu_far_call(struct cpu *cpu, uint16_t selector, uint64_t offset, unsigned size, uint64_t next_rip);
int cpu_far_return(struct cpu *cpu, unsigned size, unsigned pop_bytes);
int cpu_load_segment(struct cpu *cpu, enum sreg reg, uint16_t selector); /* mov/pop/lfs; CS excluded */
/* May [offset, offset+len) of a segment be accessed, 64-bit mode excepted (SDM vol. 3, 5.3, 5.5)?  #SS(0) or #GP(0). */
int cpu_check_segment(struct cpu *cpu, enum sreg reg, uint32_t offset, uint32_t len, bool write);
int cpu_lldt(struct cpu *cpu, uint16_t selector);
int cpu_ltr(struct cpu *cpu, uint16_t selector);
/* lar/lsl/verr/verw: true = ZF set; *value for lar (access rights) and lsl (limit). */
enum { DESC_LAR, DESC_LSL, DESC_VERR, DESC_VERW };
int cpu_query_descriptor(struct cpu *cpu, int what, uint16_t selector, bool *zf, uint64_t *value);
int cpu_swapgs(struct cpu *cpu);
/* pushf/popf semantics: what pushf stores, and what a popf/iret at this CPL may change. */
uint64_t cpu_pushf_value(const struct cpu *cpu);
int cpu_popf(struct cpu *cpu, uint64_t value, unsigned size);

/* --- system registers (system.c) -------------------------------------------------------------- */
int cpu_write_cr(struct cpu *cpu, unsigned n, uint64_t value); /* 0,2,3,4,8; all #GP rules */
int cpu_read_cr(struct cpu *cpu, unsigned n, uint64_t *value);
int cpu_write_dr(struct cpu *cpu, unsigned n, uint64_t value);
int cpu_read_dr(struct cpu *cpu, unsigned n, uint64_t *value);
int cpu_lmsw(struct cpu *cpu, uint16_t value);
int cpu_xsetbv(struct cpu *cpu, uint32_t index, uint64_t value);
int cpu_invpcid(struct cpu *cpu, uint64_t type, const uint64_t descriptor[2]);
/* I/O permission: CPL <= IOPL or the TSS bitmap allows [port, port+size). */
int cpu_check_io(struct cpu *cpu, uint16_t port, unsigned size);

/* --- MSRs and CPUID (msr.c, cpuid.c) ----------------------------------------------------------- */
int cpu_rdmsr(struct cpu *cpu, uint32_t index, uint64_t *value); /* #GP for what does not exist */
int cpu_wrmsr(struct cpu *cpu, uint32_t index, uint64_t value);
struct cpuid_regs {
    uint32_t eax, ebx, ecx, edx;
};
void cpu_cpuid(const struct cpu *cpu, uint32_t leaf, uint32_t subleaf, struct cpuid_regs *out);
/* Builds the guest's CPUID from the host's: what the host has, less what guise does not do. */
int cpuid_table_create(struct cpuid_table **out, unsigned n_cpus, uint64_t tsc_khz);
/* The TSC's frequency, known better; no vCPU has run. */
void cpuid_table_set_tsc(struct cpuid_table *t, uint64_t tsc_khz);
void cpuid_table_show_kvm(struct cpuid_table *t, uint32_t features); /* more of leaf 0x40000001's EAX */
/* What an engine shows less of, or only its host knows: `adapt` is called with each entry, to change it. */
void cpuid_table_adapt(struct cpuid_table *t,
                       void (*adapt)(void *opaque, uint32_t leaf, uint32_t subleaf, struct cpuid_regs *r),
                       void *opaque);
void cpuid_table_destroy(struct cpuid_table *t);
/* The machine's clock, which its paravirtual one shows, in ns at the moment when the host's TSC is host_tsc. */
uint64_t cpuid_table_now(const struct cpuid_table *t, uint64_t host_tsc);
void cpuid_table_set_now(struct cpuid_table *t, uint64_t host_tsc, uint64_t ns);
uint64_t cpu_guest_tsc(const struct cpu *cpu);
/* What a guest was shown, as bytes (CPUID_SAVED_MAX of them at most); and whether this table has all of that.  A
 * sentence's rest about what is missing goes to why[n]: "lacks avx2".  false: something is. */
#define CPUID_SAVED_MAX 4096u
size_t cpuid_save(const struct cpuid_table *t, uint8_t out[CPUID_SAVED_MAX]);
bool cpuid_check(const struct cpuid_table *t, const uint8_t *saved, size_t n, char *why, size_t size);

/* --- vCPUs that do not run (pvsched.c): KVM's MSR 0x4b564d03 and hypercalls ----------------------- */
void cpu_steal_update(struct cpu *cpu, uint64_t ns); /* how long it has wanted to run and could not, in all */
uint64_t cpu_steal_shown(struct cpu *cpu);           /* what the guest was told last */
/* Around a time in which it runs no guest code. */
void cpu_halts(struct cpu *cpu);
void cpu_goes_on(struct cpu *cpu);
/* VMCALL: all but rip.  true: the guest has nothing better to do than to let others run. */
bool cpu_hypercall(struct cpu *cpu);

/* --- paravirtual clock (pvclock.c), KVM's MSRs 0x4b564d00/01 and 0x11/0x12 ------------------------ */
void cpu_pvclock_update(struct cpu *cpu); /* rewrites the guest's time page; on MSR write and after a pause */

/* --- saving and restoring (saved.c) ---------------------------------------------------------------- */
#define CPU_SAVED_MAX 4096u
/* All of it but the SIMD state, which the engine has, at the moment when the host's TSC is host_tsc (one for all
 * vCPUs); not while it runs.  Returns the length. */
size_t cpu_save(const struct cpu *cpu, uint64_t host_tsc, uint8_t out[CPU_SAVED_MAX]);
/* The reverse, on one that was reset; the bytes may be anybody's.  NULL, or why it is refused: a sentence's rest.
 * The guest's time goes on where it was. */
const char *cpu_load(struct cpu *cpu, uint64_t host_tsc, const uint8_t *bytes, size_t n);
