/* What the files of the cpu room share among themselves; nobody else includes this. */
#pragma once
#include "cpu/cpu.h"

/* --- the guest's CPUID, and what other files derive from it ------------------------------------- */
#define CPUID_MAX_ENTRIES 96

struct cpuid_entry {
    uint32_t leaf, subleaf;
    bool indexed; /* ECX selects: only this subleaf */
    struct cpuid_regs regs;
};

struct cpuid_table {
    bool amd; /* the vendor string is AMD's (or Hygon's): its manual decides where the two differ */
    bool gbpages;
    unsigned phys_bits;
    uint64_t phys_reserved;                  /* bits 51..phys_bits: must be zero in page-table entries */
    uint64_t cr4_mask, efer_mask, xcr0_mask; /* bits that may be set */
    uint64_t tsc_khz;
    uint64_t tsc_base; /* the host's TSC when the machine's clock read 0; one for all vCPUs */
    uint32_t pv_mul;   /* pvclock: ns = (tsc << shift) * mul >> 32 */
    int8_t pv_shift;
    unsigned n_entries;
    struct cpuid_entry entries[CPUID_MAX_ENTRIES];
};

enum { EFER_AIBRSE = 1u << 21 }; /* automatic IBRS */

const struct cpuid_regs *cpuid_find(const struct cpuid_table *t, uint32_t leaf, uint32_t subleaf);

/* The machine's clock: the TSC's frequency and the host's TSC when it read 0. */
void cpuid_table_clock(struct cpuid_table *t, uint64_t tsc_khz, uint64_t tsc_base);

static inline bool cpu_is_amd(const struct cpu *c)
{
    return c->cpuid && c->cpuid->amd;
}
static inline unsigned cpu_phys_bits(const struct cpu *c)
{
    return c->cpuid ? c->cpuid->phys_bits : 48;
}
/* Bits 63..52 are not in it: in entries they are NX and software's; in CR3 see system.c. */
static inline uint64_t cpu_phys_reserved(const struct cpu *c)
{
    return c->cpuid ? c->cpuid->phys_reserved : 0x000f000000000000ull;
}
static inline bool cpu_real_mode(const struct cpu *c)
{
    return !(c->cr0 & CR0_PE);
}
static inline bool cpu_v86(const struct cpu *c)
{
    return c->rflags & FL_VM;
}
static inline unsigned cpu_iopl(const struct cpu *c)
{
    return (c->rflags >> 12) & 3;
}

/* --- linear.c ----------------------------------------------------------------------------------- */
/* In `access`, beside enum access: an implicit supervisor access; RFLAGS.AC does not open SMAP. */
enum { ACCESS_IMPLICIT = 4 };
/* Descriptor tables and TSS: supervisor whatever the CPL. */
int sys_read(struct cpu *cpu, uint64_t gva, void *buf, size_t len);
int sys_write(struct cpu *cpu, uint64_t gva, const void *buf, size_t len);
int sys_or_byte(struct cpu *cpu, uint64_t gva, uint8_t bits);  /* locked */
int sys_and_byte(struct cpu *cpu, uint64_t gva, uint8_t bits); /* locked */
/* Raises nothing when all of [gva, gva+len) can be written at that privilege. */
int cpu_probe_write(struct cpu *cpu, uint64_t gva, size_t len, bool user);

/* A stack as delivery and far transfers see it. */
struct stack {
    struct segment ss;
    uint64_t rsp;
    uint64_t mask;  /* 0xffff, 0xffffffff or all ones */
    bool flat;      /* 64-bit: base and limit do not count */
    bool user;      /* accesses are user-mode */
    uint32_t error; /* the error code of a #SS about this stack */
};
void stack_current(const struct cpu *cpu, struct stack *s);
void stack_set_mask(struct stack *s, bool flat);
/* Reads n values of `size` bytes starting `skip` bytes above the top; no state changes. */
int stack_peek(struct cpu *cpu, const struct stack *s, unsigned skip, unsigned n, unsigned size, uint64_t *out);
/* Pushes value[0] first; moves s->rsp only on CPU_OK. */
int stack_push(struct cpu *cpu, struct stack *s, unsigned n, unsigned size, const uint64_t *value);
/* rsp moved by delta as the stack's width says. */
uint64_t stack_moved(const struct stack *s, int64_t delta);

/* --- segment.c ---------------------------------------------------------------------------------- */
struct desc {
    uint32_t low, high;
    uint64_t gva; /* where it was read */
};
static inline unsigned desc_type(const struct desc *d)
{
    return (d->high >> 8) & 15;
}
static inline unsigned desc_dpl(const struct desc *d)
{
    return (d->high >> 13) & 3;
}
static inline bool desc_present(const struct desc *d)
{
    return d->high & 0x8000;
}
static inline bool desc_segment(const struct desc *d)
{
    return d->high & 0x1000;
} /* S: code or data */
static inline bool desc_code(const struct desc *d)
{
    return (d->high & 0x1800) == 0x1800;
}
static inline bool desc_conforming(const struct desc *d)
{
    return d->high & 0x400;
}
static inline bool desc_writable_data(const struct desc *d)
{
    return (d->high & 0x1a00) == 0x1200;
}
static inline bool desc_long(const struct desc *d)
{
    return d->high & 0x200000;
}
static inline bool desc_big(const struct desc *d)
{
    return d->high & 0x400000;
}

/* Types of system descriptors (S = 0). */
enum {
    SYS_TSS16 = 1,
    SYS_LDT = 2,
    SYS_TSS16_BUSY = 3,
    SYS_CALL16 = 4,
    SYS_TASK = 5,
    SYS_INT16 = 6,
    SYS_TRAP16 = 7,
    SYS_TSS = 9,
    SYS_TSS_BUSY = 11,
    SYS_CALL = 12,
    SYS_INT = 14,
    SYS_TRAP = 15
};

/* Reads the descriptor of a non-null selector; outside its table: `vector` with selector | ext.
 * vector 0: returns DESC_NONE instead of raising. */
enum { DESC_NONE = 3 };
int desc_read(struct cpu *cpu, uint16_t selector, struct desc *d, unsigned vector, uint32_t ext);
/* The second half of a 16-byte system descriptor. */
int desc_read_upper(struct cpu *cpu, uint16_t selector, const struct desc *d, uint32_t *base_high, uint32_t *last);
int desc_set_accessed(struct cpu *cpu, const struct desc *d);
void desc_unpack(const struct desc *d, uint16_t selector, struct segment *seg);
static inline uint32_t sel_error(uint16_t selector, uint32_t ext)
{
    return (selector & 0xfffcu) | ext;
}
static inline bool sel_null(uint16_t selector)
{
    return !(selector & 0xfffc);
}
/* [offset, offset+len) inside a segment's limit (legacy and compatibility mode). */
bool seg_contains(const struct segment *seg, uint32_t offset, uint32_t len);
/* Real and virtual-8086 mode: base = selector * 16. */
void seg_load_real(struct cpu *cpu, enum sreg reg, uint16_t selector);
void seg_set_v86(struct segment *seg, uint16_t selector);
/* After a return to a less privileged level: segments that CPL may not hold become null. */
void seg_drop_privileged(struct cpu *cpu);
/* A stack segment for privilege level `cpl`; faults other than #SS are `vector`. */
int seg_check_stack(struct cpu *cpu, uint16_t selector, unsigned cpl, unsigned vector, uint32_t ext,
                    struct segment *out, struct desc *d);
void seg_set_flat_code(struct segment *seg, uint16_t selector, unsigned dpl, bool long_mode);
void seg_set_flat_data(struct segment *seg, uint16_t selector, unsigned dpl);
/* The new CS is allowed as it is (L and D); `offset` lies inside it. */
int code_check_target(struct cpu *cpu, const struct segment *cs, uint64_t offset, uint32_t selector_error);

/* --- the rest ----------------------------------------------------------------------------------- */
void cpu_mode_changed(struct cpu *cpu);
/* Commits a new flags value through one mask; tells the engine when TF, AC or VM moved. */
void cpu_set_flags(struct cpu *cpu, uint32_t value, uint32_t mask);
/* Bits that popf/iret may change at this CPL (SDM vol. 2, POPF). */
uint32_t cpu_flags_mask(const struct cpu *cpu, unsigned size);
/* The stack of privilege level `cpl` (or of IST n) from the current TSS. */
int tss_stack(struct cpu *cpu, unsigned cpl, unsigned ist, uint32_t ext, struct stack *out, struct desc *d);

/* pvclock.c: answers a write to the wall-clock MSR, once. */
void pvclock_write_wall(struct cpu *cpu, uint64_t gpa);

/* task.c: hardware task switch (SDM 8.3), legacy mode only. */
enum task_cause { TASK_JUMP, TASK_CALL, TASK_IRET, TASK_GATE_EVENT };
int task_switch(struct cpu *cpu, uint16_t selector, enum task_cause cause, uint64_t next_rip, uint32_t ext,
                const uint32_t *error_code);
