/* A vCPU with 4 MiB of RAM, a GDT, an IDT and page tables, for the tests of the cpu room. */
#pragma once
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "cpu/cpu.h"
#include "memory/memory.h"

enum {
    GDT_AT = 0x1000,
    IDT_AT = 0x2000,
    TSS_AT = 0x3000,
    LDT_AT = 0x3800,
    STACK0 = 0x8000,
    STACK1 = 0xa000,
    IST1 = 0x9000,
    PML4_AT = 0x10000,
    PDPT_AT = 0x11000,
    PD_AT = 0x12000,
    PT_AT = 0x13000,
    CODE_AT = 0x20000,
    USER_STACK = 0x28000,
    /* selectors */
    KCODE64 = 0x08,
    KDATA = 0x10,
    UCODE32 = 0x18 | 3,
    UDATA = 0x20 | 3,
    UCODE64 = 0x28 | 3,
    KCODE32 = 0x30,
    TSS_SEL = 0x40,
    LDT_SEL = 0x50,
    ABSENT = 0x60,
    CONFORMING = 0x68,
    GATE_SEL = 0x70,
    RODATA = 0x80,
    XONLY = 0x88,
    TSS2_SEL = 0x90,
    TASKGATE = 0x98,
    GATE_INNER = 0xa0,
    DATA16 = 0xa8,
};

struct fixture {
    struct cpu cpu;
    struct memory *memory;
    struct cpuid_table *table;
    struct cpu_engine_ops ops;
};

static inline uint64_t *at(struct fixture *f, uint64_t gpa)
{
    return (uint64_t *)(f->memory->base + gpa);
}

/* TSS fields are not aligned. */
static inline void set64(struct fixture *f, uint64_t gpa, uint64_t value)
{
    memcpy(f->memory->base + gpa, &value, 8);
}

static inline void set_descriptor(struct fixture *f, uint16_t selector, uint32_t base, uint32_t limit, uint16_t attr)
{
    uint64_t d = (limit & 0xffff) | (uint64_t)(base & 0xffffff) << 16 | (uint64_t)(attr & 0xff) << 40 |
                 (uint64_t)(limit >> 16 & 15) << 48 | (uint64_t)(attr >> 8 & 15) << 52 | (uint64_t)(base >> 24) << 56;
    *at(f, GDT_AT + (selector & 0xfff8)) = d;
}

static inline void set_gate64(struct fixture *f, unsigned vector, uint16_t selector, uint64_t offset, unsigned attr,
                              unsigned ist)
{
    uint64_t *g = at(f, IDT_AT + vector * 16);
    g[0] = (offset & 0xffff) | (uint64_t)selector << 16 | (uint64_t)ist << 32 | (uint64_t)attr << 40 |
           (offset >> 16 & 0xffff) << 48;
    g[1] = offset >> 32;
}

static inline void set_gate32(struct fixture *f, unsigned vector, uint16_t selector, uint32_t offset, unsigned attr)
{
    *at(f, IDT_AT + vector * 8) = (offset & 0xffff) | (uint64_t)selector << 16 | (uint64_t)attr << 40 |
                                  (uint64_t)(offset >> 16) << 48;
}

static inline void build_tables(struct fixture *f)
{
    set_descriptor(f, KCODE64, 0, 0xfffff, 0xa9b);
    set_descriptor(f, KDATA, 0, 0xfffff, 0xc93);
    set_descriptor(f, UCODE32, 0, 0xfffff, 0xcfb);
    set_descriptor(f, UDATA, 0, 0xfffff, 0xcf3);
    set_descriptor(f, UCODE64, 0, 0xfffff, 0xafb);
    set_descriptor(f, KCODE32, 0, 0xfffff, 0xc9b);
    set_descriptor(f, TSS_SEL, TSS_AT, 0x67, 0x89);
    set_descriptor(f, LDT_SEL, LDT_AT, 0x3f, 0x82);
    set_descriptor(f, ABSENT, 0, 0xfffff, 0xc13);
    set_descriptor(f, CONFORMING, 0, 0xfffff, 0xc9f);
    set_descriptor(f, RODATA, 0, 0xfffff, 0xc91);
    set_descriptor(f, XONLY, 0, 0xfffff, 0xc98);
    set_descriptor(f, DATA16, 0, 0xffff, 0x93);
    f->cpu.gdtr = (struct descriptor_table){GDT_AT, 0xff};
    f->cpu.idtr = (struct descriptor_table){IDT_AT, 0xfff};
}

/* gva = gpa for 2 MiB by 4 KiB pages, everything allowed to everyone. */
static inline void build_paging(struct fixture *f)
{
    *at(f, PML4_AT) = PDPT_AT | 7;
    *at(f, PDPT_AT) = PD_AT | 7;
    *at(f, PD_AT) = PT_AT | 7;
    for (unsigned i = 0; i < 512; i++)
        at(f, PT_AT)[i] = i * 4096ull | 7;
}

static inline struct fixture *fixture_new(void)
{
    struct fixture *f = calloc(1, sizeof *f);
    assert_int_equal(memory_create(&f->memory, 4 << 20), 0);
    assert_int_equal(cpuid_table_create(&f->table, 2, 2500000), 0);
    f->cpu.memory = f->memory;
    f->cpu.cpuid = f->table;
    f->cpu.n_cpus = 2;
    f->cpu.ops = &f->ops;
    cpu_reset(&f->cpu);
    build_tables(f);
    return f;
}

static inline void fixture_free(struct fixture *f)
{
    memory_destroy(f->memory);
    cpuid_table_destroy(f->table);
    free(f);
}

/* Ring 0, 64-bit code; handlers at 0x21000 + 16 * vector, ring 3 callable 0x80 and 3. */
static inline void enter_long(struct fixture *f)
{
    struct cpu *c = &f->cpu;
    build_paging(f);
    c->cr4 = CR4_PAE;
    c->cr3 = PML4_AT;
    c->efer = EFER_LME | EFER_LMA | EFER_SCE | EFER_NXE;
    c->cr0 = CR0_PE | CR0_PG | CR0_WP | CR0_ET | CR0_NE;
    c->seg[CS].attr = 0xa9b;
    c->seg[CS].selector = KCODE64;
    c->seg[CS].base = 0;
    for (unsigned i = 0; i < 6; i++)
        if (i != CS)
            c->seg[i] = (struct segment){KDATA, 0xc93, 0xffffffff, 0};
    c->tr = (struct segment){TSS_SEL, 0x8b, 0x67, TSS_AT};
    set64(f, TSS_AT + 4, STACK0);
    set64(f, TSS_AT + 0x24, IST1);
    for (unsigned v = 0; v < 256; v++)
        set_gate64(f, v, KCODE64, 0x21000 + 16 * v, v == 3 || v == 0x80 ? 0xee : 0x8e, 0);
    c->cpl = 0;
    c->rip = CODE_AT;
    c->gpr[RSP] = STACK1;
    c->rflags = FL_ONE | FL_IF;
}

static inline void to_user64(struct fixture *f)
{
    struct cpu *c = &f->cpu;
    c->cpl = 3;
    c->seg[CS] = (struct segment){UCODE64, 0xafb, 0xffffffff, 0};
    c->seg[SS] = (struct segment){UDATA, 0xcf3, 0xffffffff, 0};
    c->gpr[RSP] = USER_STACK;
}

/* Ring 0, 32-bit code, no paging; 32-bit TSS. */
static inline void enter_protected(struct fixture *f)
{
    struct cpu *c = &f->cpu;
    c->cr0 = CR0_PE | CR0_ET | CR0_NE;
    c->seg[CS] = (struct segment){KCODE32, 0xc9b, 0xffffffff, 0};
    for (unsigned i = 0; i < 6; i++)
        if (i != CS)
            c->seg[i] = (struct segment){KDATA, 0xc93, 0xffffffff, 0};
    c->tr = (struct segment){TSS_SEL, 0x8b, 0x67, TSS_AT};
    *(uint32_t *)(f->memory->base + TSS_AT + 4) = STACK0;
    *(uint32_t *)(f->memory->base + TSS_AT + 8) = KDATA;
    for (unsigned v = 0; v < 256; v++)
        set_gate32(f, v, KCODE32, 0x21000 + 16 * v, v == 3 || v == 0x80 ? 0xee : 0x8e);
    c->cpl = 0;
    c->rip = CODE_AT;
    c->gpr[RSP] = STACK1;
    c->rflags = FL_ONE | FL_IF;
}

static inline void to_user32(struct fixture *f)
{
    struct cpu *c = &f->cpu;
    c->cpl = 3;
    c->seg[CS] = (struct segment){UCODE32, 0xcfb, 0xffffffff, 0};
    c->seg[SS] = (struct segment){UDATA, 0xcf3, 0xffffffff, 0};
    c->gpr[RSP] = USER_STACK;
}

#define assert_fault(call, vec, err)                                                                                   \
    do {                                                                                                               \
        assert_int_equal(call, CPU_FAULT);                                                                             \
        assert_int_equal(f->cpu.exc.vector, vec);                                                                      \
        assert_int_equal(f->cpu.exc.error, err);                                                                       \
    } while (0)
#define assert_ok(call) assert_int_equal(call, CPU_OK)

/* One test of a group: its fixture comes and goes with it. */
static inline int fixture_setup(void **state)
{
    *state = fixture_new();
    return 0;
}
static inline int fixture_teardown(void **state)
{
    fixture_free(*state);
    return 0;
}
#define CPU_TEST(name) cmocka_unit_test_setup_teardown(name, fixture_setup, fixture_teardown)
