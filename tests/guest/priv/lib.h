/*
 * What the bare-metal tests share.  Each test file defines `const struct test tests[]`, ended by an
 * empty entry; lib.c runs them in order and prints one line each:
 *
 *      ok NAME
 *      not ok NAME file line: what was expected
 *
 * Everything runs with interrupts off in ring 0 unless a test says otherwise.
 */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef uint64_t u64;

struct test {
    const char *name;
    void (*run)(void);
    const char *tcg; /* what QEMU's TCG does wrong here: the test is left out on it */
};
extern const struct test tests[];

/* Exceptions (SDM vol. 3, 6.3.1) */
enum {
    DE = 0,
    DB = 1,
    NMI = 2,
    BP = 3,
    OF = 4,
    BR = 5,
    UD = 6,
    NM = 7,
    DF = 8,
    TS = 10,
    NP = 11,
    SS = 12,
    GP = 13,
    PF = 14
};
enum { MF = 16, AC = 17, XM = 19, NONE = 256 };
#define BACK 0x30 /* `int $0x30` is how ring 3 says that it is done */

enum { KCODE = 0x08, KDATA = 0x10, UCODE32 = 0x18 | 3, UDATA = 0x20 | 3, UCODE = 0x28 | 3, KCODE32 = 0x30, TSS = 0x38 };
#define FREE_SELECTOR 0x48 /* first descriptor that tests may write */

/* CR0, CR4, RFLAGS, EFER */
enum { CR0_MP = 1 << 1, CR0_EM = 1 << 2, CR0_TS = 1 << 3, CR0_NE = 1 << 5, CR0_WP = 1 << 16, CR0_AM = 1 << 18 };
#define CR0_PG (1ull << 31)
enum {
    CR4_TSD = 1 << 2,
    CR4_DE = 1 << 3,
    CR4_PGE = 1 << 7,
    CR4_OSFXSR = 1 << 9,
    CR4_OSXMMEXCPT = 1 << 10,
    CR4_UMIP = 1 << 11
};
enum { CR4_FSGSBASE = 1 << 16, CR4_PCIDE = 1 << 17, CR4_OSXSAVE = 1 << 18, CR4_SMEP = 1 << 20, CR4_SMAP = 1 << 21 };
enum {
    F_CF = 1,
    F_ZF = 1 << 6,
    F_TF = 1 << 8,
    F_IF = 1 << 9,
    F_DF = 1 << 10,
    F_IOPL = 3 << 12,
    F_NT = 1 << 14,
    F_RF = 1 << 16,
    F_AC = 1 << 18
};
enum { MSR_EFER = 0xc0000080, MSR_STAR, MSR_LSTAR, MSR_CSTAR, MSR_FMASK };
enum { MSR_FS_BASE = 0xc0000100, MSR_GS_BASE, MSR_KERNEL_GS_BASE, MSR_TSC_AUX };

/* Page-table bits */
#define PTE_P 1ull
#define PTE_W 2ull
#define PTE_U 4ull
#define PTE_A 0x20ull
#define PTE_D 0x40ull
#define PTE_PS 0x80ull
#define PTE_G 0x100ull
#define PTE_NX (1ull << 63)
#define PTE_ADDRESS 0x000ffffffffff000ull

struct frame {
    u64 r15, r14, r13, r12, r11, r10, r9, r8, rbp, rdi, rsi, rdx, rcx, rbx, rax;
    u64 vector, error, rip, cs, flags, rsp, ss;
};

struct trap {
    u64 vector; /* NONE: nothing happened */
    u64 error, cr2;
    u64 frame_at; /* where the processor pushed the frame's last field, ss */
    struct frame f;
};

struct context {
    u64 rip, cs, flags, rsp, ss, rax, rbx, rcx, rdx, rsi, rdi;
};

struct tss {
    u32 reserved;
    u64 rsp[3], reserved2, ist[7], reserved3;
    u16 reserved4, io_map;
    u8 io_bitmap[8192 + 1];
} __attribute__((packed));

extern u64 gdt[32];
extern struct tss tss;
extern u64 boot_pml4[512];
extern volatile struct trap trap;
extern volatile bool armed;
/* A handler that returns resumes what was interrupted; a vector without one ends the CATCH in progress. */
extern void (*volatile handlers[256])(struct frame *);

int save_point(void) __attribute__((returns_twice));
void enter(const struct context *c);

/* Does something; the trap it ended with, or vector NONE. */
#define CATCH(...)                                                                                                     \
    ({                                                                                                                 \
        if (!save_point()) {                                                                                           \
            armed = true;                                                                                              \
            __VA_ARGS__;                                                                                               \
            trap.vector = NONE;                                                                                        \
        }                                                                                                              \
        armed = false;                                                                                                 \
        (const struct trap *)&trap;                                                                                    \
    })
/* One instruction or a few, without operands of C. */
#define TRY(text)                                                                                                      \
    CATCH(__asm__ volatile(text : : : "rax", "rcx", "rdx", "rsi", "rdi", "r8", "r9", "r10", "r11", "cc", "memory"))

void fail(const char *file, int line, const char *text, u64 got, u64 wanted);
#define EXPECT(condition)                                                                                              \
    do {                                                                                                               \
        if (!(condition))                                                                                              \
            fail(__FILE__, __LINE__, #condition, 0, 1);                                                                \
    } while (0)
#define EXPECT_EQ(got, wanted)                                                                                         \
    do {                                                                                                               \
        u64 got_ = (u64)(got), wanted_ = (u64)(wanted);                                                                \
        if (got_ != wanted_)                                                                                           \
            fail(__FILE__, __LINE__, #got " == " #wanted, got_, wanted_);                                              \
    } while (0)
#define EXPECT_TRAP(t, vector_, error_)                                                                                \
    do {                                                                                                               \
        const struct trap *t_ = (t);                                                                                   \
        if (t_->vector != (vector_))                                                                                   \
            fail(__FILE__, __LINE__, "vector of " #t, t_->vector, (vector_));                                          \
        else if (t_->error != (u64)(error_))                                                                           \
            fail(__FILE__, __LINE__, "error code of " #t, t_->error, (error_));                                        \
    } while (0)
#define EXPECT_NONE(t) EXPECT_EQ((t)->vector, NONE)
bool on_tcg(void);
void skip(const char *reason); /* what the processor does not offer: the test counts as ok */

void print(const char *text);
void print_hex(u64 value);
void print_decimal(u64 value);

/* Ring 3: a snippet of assembly in a page of its own section, and running it. */
#define USER_VA 0x100000000000ull /* the section .user, and below: */
#define USER_VA32 0xc0000000ull   /* the same below 4 GiB for 32-bit code */
#define USER_STACK 0x100000200000ull
#define USER_STACK32 0xc0200000ull
#define USER_CODE(name, text)                                                                                          \
    __asm__(".pushsection .user, \"awx\", @progbits\n" #name ":\n" text "\nint $0x30\n.popsection\n");                 \
    extern u8 name[]
#define USER_CODE32(name, text)                                                                                        \
    __asm__(".pushsection .user, \"awx\", @progbits\n.code32\n" #name ":\n" text                                       \
            "\nint $0x30\n.code64\n.popsection\n");                                                                    \
    extern u8 name[]
u64 user_address(const void *symbol); /* of .user, as ring 3 sees it */
u64 user_address32(const void *symbol);
struct context user_context(const void *symbol);   /* 64-bit, ring 3, interrupts off */
struct context user_context32(const void *symbol); /* compatibility mode, ring 3 */
const struct trap *run(const struct context *c);

/* Page tables: maps one page in the current tables; `flags` for the leaf, upper levels get P, W, U. */
#define TEST_VA 0x200000000000ull /* free for tests */
u64 *map(u64 va, u64 pa, u64 flags);
u64 *table_entry(u64 va, int level); /* 4 = PML4 ... 1 = page table; NULL where the walk ends earlier */
void *page_alloc(void);              /* zeroed, mapped one to one */
void *pages_alloc(unsigned n, u64 align);

void set_gate(unsigned vector, u64 address, u16 selector, u8 type, u8 ist);
void gate_default(unsigned vector);
extern u64 idt[512];
void load_idt(u16 limit);
void set_handler(unsigned vector, void (*handler)(struct frame *));

static inline u64 read_cr0(void)
{
    u64 v;
    __asm__ volatile("mov %%cr0, %0" : "=r"(v));
    return v;
}
static inline u64 read_cr2(void)
{
    u64 v;
    __asm__ volatile("mov %%cr2, %0" : "=r"(v));
    return v;
}
static inline u64 read_cr3(void)
{
    u64 v;
    __asm__ volatile("mov %%cr3, %0" : "=r"(v));
    return v;
}
static inline u64 read_cr4(void)
{
    u64 v;
    __asm__ volatile("mov %%cr4, %0" : "=r"(v));
    return v;
}
static inline u64 read_cr8(void)
{
    u64 v;
    __asm__ volatile("mov %%cr8, %0" : "=r"(v));
    return v;
}
static inline void write_cr0(u64 v)
{
    __asm__ volatile("mov %0, %%cr0" : : "r"(v) : "memory");
}
static inline void write_cr2(u64 v)
{
    __asm__ volatile("mov %0, %%cr2" : : "r"(v) : "memory");
}
static inline void write_cr3(u64 v)
{
    __asm__ volatile("mov %0, %%cr3" : : "r"(v) : "memory");
}
static inline void write_cr4(u64 v)
{
    __asm__ volatile("mov %0, %%cr4" : : "r"(v) : "memory");
}
static inline void write_cr8(u64 v)
{
    __asm__ volatile("mov %0, %%cr8" : : "r"(v) : "memory");
}
static inline void invlpg(u64 va)
{
    __asm__ volatile("invlpg (%0)" : : "r"(va) : "memory");
}
static inline u64 read_flags(void)
{
    u64 v;
    __asm__ volatile("pushf; pop %0" : "=r"(v));
    return v;
}
static inline void write_flags(u64 v)
{
    __asm__ volatile("push %0; popf" : : "r"(v) : "cc", "memory");
}
static inline void out8(u16 port, u8 v)
{
    __asm__ volatile("outb %0, %1" : : "a"(v), "Nd"(port));
}
static inline u8 in8(u16 port)
{
    u8 v;
    __asm__ volatile("inb %1, %0" : "=a"(v) : "Nd"(port));
    return v;
}
static inline u64 read_tsc(void)
{
    u32 low, high;
    __asm__ volatile("lfence; rdtsc" : "=a"(low), "=d"(high) : : "memory");
    return (u64)high << 32 | low;
}
static inline u64 read_msr(u32 msr)
{
    u32 low, high;
    __asm__ volatile("rdmsr" : "=a"(low), "=d"(high) : "c"(msr));
    return (u64)high << 32 | low;
}
static inline void write_msr(u32 msr, u64 v)
{
    __asm__ volatile("wrmsr" : : "c"(msr), "a"((u32)v), "d"((u32)(v >> 32)) : "memory");
}
struct cpuid {
    u32 a, b, c, d;
};
static inline struct cpuid cpuid(u32 leaf, u32 sub)
{
    struct cpuid r;
    __asm__ volatile("cpuid" : "=a"(r.a), "=b"(r.b), "=c"(r.c), "=d"(r.d) : "a"(leaf), "c"(sub));
    return r;
}
void *memset(void *p, int c, size_t n);
void *memcpy(void *to, const void *from, size_t n);
int memcmp(const void *a, const void *b, size_t n);
