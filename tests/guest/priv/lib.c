/* The part of the bare-metal tests that is the same in all of them: lib.h says what is where. */
#include "lib.h"

#define COM1 0x3f8

u64 idt[512] __attribute__((aligned(16)));
struct tss tss __attribute__((aligned(16)));
volatile struct trap trap;
volatile bool armed;
void (*volatile handlers[256])(struct frame *);
extern u8 stubs[256 * 16];
extern u8 user_start[], user_end[];
void resume_point(void) __attribute__((noreturn));
void trap_entry(struct frame *f);
void lib_main(void);

static u8 ring0_stack[32768] __attribute__((aligned(16)));
static u8 ist_stack[2][16384] __attribute__((aligned(16)));
static u8 user_stack[2][8192] __attribute__((aligned(4096)));
static u8 pool[16 << 20] __attribute__((aligned(2 << 20)));
static size_t pool_used;
static const char *current;
static bool failed, skipped;

void *memset(void *p, int c, size_t n)
{
    void *start = p;
    __asm__ volatile("rep stosb" : "+D"(p), "+c"(n) : "a"(c) : "memory");
    return start;
}

void *memcpy(void *to, const void *from, size_t n)
{
    void *start = to;
    __asm__ volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(n) : : "memory");
    return start;
}

int memcmp(const void *a, const void *b, size_t n)
{
    const u8 *x = a, *y = b;
    for (; n--; x++, y++)
        if (*x != *y)
            return *x < *y ? -1 : 1;
    return 0;
}

void print(const char *text)
{
    for (; *text; text++) {
        while (!(in8(COM1 + 5) & 0x20))
            ;
        out8(COM1, (u8)*text);
    }
}

void print_hex(u64 value)
{
    char text[17], *p = text + 16;
    *p = 0;
    do {
        *--p = "0123456789abcdef"[value & 15];
        value >>= 4;
    } while (value);
    print(p);
}

void print_decimal(u64 value)
{
    char text[21], *p = text + 20;
    *p = 0;
    do {
        *--p = (char)('0' + value % 10);
        value /= 10;
    } while (value);
    print(p);
}

void fail(const char *file, int line, const char *text, u64 got, u64 wanted)
{
    if (failed) /* the first reason is the one that counts */
        return;
    failed = true;
    print("not ok ");
    print(current);
    print(" ");
    print(file);
    print(":");
    print_decimal((u64)line);
    print(": ");
    print(text);
    print(", got ");
    print_hex(got);
    print(", wanted ");
    print_hex(wanted);
    print("\n");
}

void skip(const char *reason)
{
    if (failed || skipped)
        return;
    skipped = true;
    print("ok ");
    print(current);
    print(" # skipped: ");
    print(reason);
    print("\n");
}

bool on_tcg(void)
{
    struct cpuid c = cpuid(0x40000000, 0);
    return (cpuid(1, 0).c >> 31 & 1) && c.b == 0x54474354 && c.c == 0x43544743; /* "TCGTCGTCGTCG" */
}

/* Power off by reset: 0xcf9 where a chipset has it, the keyboard controller, then a triple fault. */
static void __attribute__((noreturn)) finish(void)
{
    while (!(in8(COM1 + 5) & 0x40))
        ;
    out8(0xcf9, 6);
    out8(0x64, 0xfe);
    load_idt(0);
    __asm__ volatile("ud2");
    for (;;)
        ;
}

void trap_entry(struct frame *f)
{
    if (handlers[f->vector]) {
        handlers[f->vector](f);
        return;
    }
    trap.vector = f->vector;
    trap.error = f->error;
    trap.cr2 = read_cr2();
    trap.frame_at = (u64)&f->ss;
    *(struct frame *)&trap.f = *f;
    if (armed) {
        armed = false;
        resume_point();
    }
    print("not ok ");
    print(current ? current : "start");
    print(" unexpected trap ");
    print_decimal(f->vector);
    print(" error ");
    print_hex(f->error);
    print(" rip ");
    print_hex(f->rip);
    print(" cr2 ");
    print_hex(trap.cr2);
    print("\nEND\n");
    finish();
}

void set_gate(unsigned vector, u64 address, u16 selector, u8 type, u8 ist)
{
    idt[2 * vector] = (address & 0xffff) | (u64)selector << 16 | (u64)ist << 32 | (u64)type << 40 |
                      (address >> 16 & 0xffff) << 48;
    idt[2 * vector + 1] = address >> 32;
}

void gate_default(unsigned vector)
{
    bool user = vector == BP || vector == OF || vector == BACK;
    set_gate(vector, (u64)(stubs + 16 * vector), KCODE, user ? 0xee : 0x8e, vector == DF ? 1 : vector == NMI ? 2 : 0);
}

void set_handler(unsigned vector, void (*handler)(struct frame *))
{
    handlers[vector] = handler;
}

void load_idt(u16 limit)
{
    struct {
        u16 limit;
        u64 base;
    } __attribute__((packed)) pointer = {limit, (u64)idt};
    __asm__ volatile("lidt %0" : : "m"(pointer));
}

static void make_tss(void)
{
    u64 base = (u64)&tss, limit = sizeof tss - 1;
    tss.rsp[0] = (u64)(ring0_stack + sizeof ring0_stack);
    tss.ist[0] = (u64)(ist_stack[0] + sizeof ist_stack[0]);
    tss.ist[1] = (u64)(ist_stack[1] + sizeof ist_stack[1]);
    tss.io_map = offsetof(struct tss, io_bitmap);
    memset(tss.io_bitmap, 0xff, sizeof tss.io_bitmap);
    gdt[TSS / 8] = (limit & 0xffff) | (base & 0xffffff) << 16 | 0x89ull << 40 | (limit >> 16 & 15) << 48 |
                   (base >> 24 & 0xff) << 56;
    gdt[TSS / 8 + 1] = base >> 32;
    __asm__ volatile("ltr %w0; lldt %w1" : : "r"(TSS), "r"(0)); /* after reset the LDT is all of 64 KiB at 0 */
}

void *pages_alloc(unsigned n, u64 align)
{
    pool_used = (pool_used + align - 1) & ~(align - 1);
    void *p = pool + pool_used;
    pool_used += n * 4096ul;
    if (pool_used > sizeof pool) {
        print("not ok the pool of pages is empty\nEND\n");
        finish();
    }
    return memset(p, 0, n * 4096ul);
}

void *page_alloc(void)
{
    return pages_alloc(1, 4096);
}

u64 *table_entry(u64 va, int level)
{
    u64 *table = (u64 *)(read_cr3() & PTE_ADDRESS);
    for (int l = 4;; l--) {
        u64 *entry = &table[va >> (12 + 9 * (l - 1)) & 511];
        if (l == level)
            return entry;
        if (!(*entry & PTE_P) || (l < 4 && *entry & PTE_PS))
            return NULL;
        table = (u64 *)(*entry & PTE_ADDRESS);
    }
}

u64 *map(u64 va, u64 pa, u64 flags)
{
    for (int level = 4; level > 1; level--) {
        u64 *entry = table_entry(va, level);
        if (!(*entry & PTE_P) || (level < 4 && *entry & PTE_PS))
            *entry = (u64)page_alloc() | PTE_P;
        *entry |= PTE_W | PTE_U;
    }
    u64 *entry = table_entry(va, 1);
    *entry = pa | flags;
    invlpg(va);
    return entry;
}

u64 user_address(const void *symbol)
{
    return USER_VA + (u64)((const u8 *)symbol - user_start);
}

u64 user_address32(const void *symbol)
{
    return USER_VA32 + (u64)((const u8 *)symbol - user_start);
}

struct context user_context(const void *symbol)
{
    return (struct context){
        .rip = user_address(symbol), .cs = UCODE, .flags = 2, .rsp = USER_STACK + 8192 - 64, .ss = UDATA};
}

struct context user_context32(const void *symbol)
{
    return (struct context){
        .rip = user_address32(symbol), .cs = UCODE32, .flags = 2, .rsp = USER_STACK32 + 8192 - 64, .ss = UDATA};
}

const struct trap *run(const struct context *c)
{
    return CATCH(enter(c));
}

static void map_user(void)
{
    for (u8 *p = user_start; p < user_end; p += 4096) {
        u64 offset = (u64)(p - user_start);
        map(USER_VA + offset, (u64)p, PTE_P | PTE_W | PTE_U);
        map(USER_VA32 + offset, (u64)p, PTE_P | PTE_W | PTE_U);
    }
    for (u64 offset = 0; offset < 8192; offset += 4096) {
        map(USER_STACK + offset, (u64)user_stack[0] + offset, PTE_P | PTE_W | PTE_U);
        map(USER_STACK32 + offset, (u64)user_stack[1] + offset, PTE_P | PTE_W | PTE_U);
    }
}

void lib_main(void)
{
    out8(COM1 + 1, 0); /* no interrupts of the serial port; 8 bits, no parity */
    out8(COM1 + 3, 3);
    out8(0x21, 0xff); /* nor of the interrupt controllers */
    out8(0xa1, 0xff);
    for (unsigned vector = 0; vector < 256; vector++)
        gate_default(vector);
    load_idt(sizeof idt - 1);
    make_tss();
    map_user();
    for (const struct test *t = tests; t->name; t++) {
        current = t->name;
        failed = skipped = false;
        if (t->tcg && on_tcg())
            skip(t->tcg);
        else
            t->run();
        if (failed || skipped)
            continue;
        print("ok ");
        print(t->name);
        print("\n");
    }
    print("END\n");
    finish();
}
