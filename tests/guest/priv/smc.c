/* Code that changes: itself, its neighbour, through another address, under it by the page tables (SDM vol. 3, 8.1.3
 * and 11.6). */
#include "lib.h"

static u8 *code; /* two pages of code, one to one, with an alias at TEST_VA */

static const u8 return_imm[] = {0xb8, 0, 0, 0, 0, 0xc3}; /* mov $0, %eax; ret */
#define CALL(address) (((u32(*)(void))(u64)(address))())

static void put(u8 *at, u32 value)
{
    memcpy(at, return_imm, sizeof return_imm);
    *(volatile u32 *)(at + 1) = value;
}

static void prepare(void)
{
    code = pages_alloc(2, 4096);
    map(TEST_VA, (u64)code, PTE_P | PTE_W | PTE_U);
    map(TEST_VA + 4096, (u64)code + 4096, PTE_P | PTE_W | PTE_U);
}

static void test_rewrite(void)
{
    prepare();
    for (u32 i = 0; i < 2000; i++) {
        put(code + 64, i);
        EXPECT_EQ(CALL(code + 64), i);
    }
}

static void test_rewrite_one_byte(void)
{
    prepare();
    put(code, 0);
    for (u32 i = 0; i < 256; i++) {
        code[1] = (u8)i;
        EXPECT_EQ(CALL(code), i | i << 8);
        __asm__ volatile("lock incb %0" : "+m"(code[2]));
        EXPECT_EQ(CALL(code), i | ((i + 1) & 0xff) << 8);
    }
}

static void test_alias(void)
{
    prepare();
    for (u32 i = 0; i < 500; i++) {
        put((u8 *)TEST_VA + 128, i); /* written at one address, run at the other, and run where it was written */
        EXPECT_EQ(CALL(code + 128), i);
        EXPECT_EQ(CALL(TEST_VA + 128), i);
        put(code + 128, i + 7);
        EXPECT_EQ(CALL(TEST_VA + 128), i + 7);
    }
}

/* The instruction right behind the store is the one that is stored to: x86 processors see it at once. */
static void test_next_instruction(void)
{
    for (u32 i = 0; i < 100; i++) {
        u32 result;
        __asm__ volatile("mov %1, smc_next + 1; smc_next: mov $0x11223344, %%eax"
                         : "=a"(result)
                         : "r"(i * 0x01010101)
                         : "memory");
        EXPECT_EQ(result, i * 0x01010101);
    }
}

/* Further ahead in the same straight line, with other instructions between. */
static void test_ahead(void)
{
    for (u32 i = 0; i < 100; i++) {
        u64 a = 0, b = 0;
        __asm__ volatile("movb %b2, smc_a + 3; lea 5(%0), %0; imul $3, %0, %0; movb %b2, smc_b + 3; nop; nop;"
                         "smc_a: add $0x10, %0; xor %1, %1; smc_b: add $0x20, %1"
                         : "+&r"(a), "+&r"(b)
                         : "q"((i & 0x7f))
                         : "memory", "cc");
        EXPECT_EQ(a, 15 + (i & 0x7f));
        EXPECT_EQ(b, i & 0x7f);
    }
}

/* A loop that rewrites its own body, each time round. */
static void test_loop(void)
{
    u64 sum = 0;
    __asm__ volatile("mov $0, %%ecx; movl $0, smc_loop + 3; 1: smc_loop: add $0x12345678, %0; incl smc_loop + 3; inc "
                     "%%ecx; cmp $1000, %%ecx; jne 1b"
                     : "+b"(sum)
                     :
                     : "rcx", "memory", "cc");
    EXPECT_EQ(sum, 999 * 1000 / 2);
}

/* Flags that the code behind a branch does not read, until it is changed into code that does. */
static void test_flags_behind_a_branch(void)
{
    /* mov %edi, %eax; sub $5, %eax; mov %rax, -8(%rsp); jmp +16 */
    static const u8 function[] = {0x89, 0xf8, 0x83, 0xe8, 5, 0x48, 0x89, 0x44, 0x24, 0xf8, 0xeb, 16};
    static const u8 writes[] = {0x31, 0xc0, 0x90, 0x90, 0x90, 0x90, 0xc3}; /* xor %eax, %eax; ...; ret */
    static const u8 reads[] = {0x0f, 0x92, 0xc0, 0x0f, 0xb6, 0xc0, 0xc3};  /* setc %al; movzbl %al, %eax; ret */
    u8 *target;

    prepare();
    target = code + 32 + sizeof function + 16;
    memcpy(code + 32, function, sizeof function);
    for (u32 i = 0; i < 300; i++) {
        u32 (*call)(u32) = (u32(*)(u32))(u64)(code + 32);
        memcpy(target, writes, sizeof writes);
        EXPECT_EQ(call(i % 10), 0);
        memcpy(target, reads, sizeof reads);
        EXPECT_EQ(call(i % 10), i % 10 < 5);
        *(volatile u8 *)(target + 1) = 0x93; /* setnc */
        EXPECT_EQ(call(i % 10), i % 10 >= 5);
    }
}

/* Branch targets and conditions patched as Linux patches static keys: a nop becomes a jump and back. */
static void test_static_key(void)
{
    static const u8 function[] = {0x31, 0xc0, 0x0f, 0x1f, 0x44, 0, 0, 0xc3, 0xb8, 1, 0, 0, 0, 0xc3};
    prepare();
    memcpy(code + 32, function, sizeof function);
    for (u32 i = 0; i < 300; i++) {
        EXPECT_EQ(CALL(code + 32), 0);
        code[34] = 0xcc; /* the first byte as a breakpoint meanwhile */
        EXPECT_TRAP(CATCH(CALL(code + 32)), BP, 0);
        *(volatile u32 *)(code + 35) = 1;
        code[34] = 0xe9; /* jmp +1 */
        EXPECT_EQ(CALL(code + 32), 1);
        code[34] = 0xcc;
        *(volatile u32 *)(code + 35) = 0x0000441f;
        code[34] = 0x0f;
    }
}

/* An instruction on two pages; either part changes. */
static void test_crossing(void)
{
    prepare();
    u8 *at = code + 4096 - 3;
    for (u32 i = 0; i < 300; i++) {
        put(at, 0);
        at[1] = (u8)i; /* first page */
        EXPECT_EQ(CALL(at), i & 0xff);
        at[4] = (u8)(i + 1); /* second page */
        EXPECT_EQ(CALL(at), (i & 0xff) | ((i + 1) & 0xff) << 24);
        ((u8 *)TEST_VA)[4096 - 3 + 3] = 0x55; /* second page, through the alias */
        EXPECT_EQ(CALL(at), (i & 0xff) | 0x55 << 16 | ((i + 1) & 0xff) << 24);
        EXPECT_EQ(CALL(TEST_VA + 4096 - 3), (i & 0xff) | 0x55 << 16 | ((i + 1) & 0xff) << 24);
    }
}

/* Flags and registers live on over the edge of a page, wherever it falls. */
static void test_state_over_edge(void)
{
    /* mov %edi, %eax; sub $1, %eax; mov %eax, %ecx; lea 1(%rcx), %edx; pushf; pop %rax; ret */
    static const u8 program[] = {0x89, 0xf8, 0x83, 0xe8, 1, 0x89, 0xc1, 0x8d, 0x51, 1, 0x9c, 0x58, 0xc3};
    static const struct {
        u32 value;
        u64 flags;
    } cases[] = {{0, 0x97}, {1, 0x46}, {2, 0x02}, {0x80000000, 0x816}, {0xffffffff, 0x82}};
    prepare();
    for (int round = 0; round < 3; round++)
        for (u32 i = 0; i <= sizeof program; i++)
            for (u32 c = 0; c < 5; c++) {
                u64 flags;
                memcpy(code + 4096 - i, program, sizeof program);
                __asm__ volatile("call *%1"
                                 : "=a"(flags)
                                 : "r"((u64)code + 4096 - i), "D"(cases[c].value)
                                 : "rcx", "rdx", "cc", "memory");
                EXPECT_EQ(flags & 0x8d7, cases[c].flags & 0x8d7);
            }
}

/* The same for what decides a branch, where the second page is not there until it is fetched. */
static u64 faults;
static void on_fetch_fault(struct frame *f)
{
    (void)f;
    faults++;
    *table_entry(TEST_VA + 4096, 1) |= PTE_P;
}

static void test_branch_over_edge(void)
{
    /* push %rbp; mov %edi, %eax; sub $1, %eax; mov %eax, %ebp; js 1f; pop %rbp; mov $0, %eax; ret; 1: ... $1 */
    static u8 program[] = {0x55, 0x89, 0xf8, 0x83, 0xe8, 1,    0x89, 0xc5, 0x78, 7, 0x5d, 0xb8,
                           0,    0,    0,    0,    0xc3, 0x5d, 0xb8, 1,    0,    0, 0,    0xc3};
    static const struct {
        u32 value;
        u8 opcode, taken;
    } cases[] = {{0, 0x78, 1}, {1, 0x78, 0}, {0xffffffff, 0x78, 1}, {0, 0x72, 1},
                 {1, 0x72, 0}, {1, 0x74, 1}, {2, 0x74, 0},          {0x80000000, 0x70, 1}};
    prepare();
    set_handler(PF, on_fetch_fault);
    for (u32 absent = 0; absent < 2; absent++)
        for (u32 i = 0; i <= 12; i++)
            for (u32 c = 0; c < 8; c++) {
                program[8] = cases[c].opcode;
                memcpy(code + 4096 - i, program, sizeof program);
                for (u32 round = 0; round < 3; round++) {
                    u32 result;
                    u64 before = faults;
                    if (absent) {
                        *table_entry(TEST_VA + 4096, 1) &= ~PTE_P;
                        invlpg(TEST_VA + 4096);
                    }
                    __asm__ volatile("call *%1"
                                     : "=a"(result)
                                     : "r"(TEST_VA + 4096 - i), "D"(cases[c].value)
                                     : "rcx", "rdx", "cc", "memory");
                    EXPECT_EQ(result | i << 16 | c << 24, cases[c].taken | i << 16 | c << 24);
                    EXPECT_EQ(faults - before, absent);
                }
            }
    set_handler(PF, NULL);
}

/* The second page of such an instruction is replaced through the page tables. */
static void test_crossing_remap(void)
{
    prepare();
    u8 *other = page_alloc();
    put(code + 4096 - 3, 0x11111111);
    memcpy(other, code + 4096, 16);
    other[0] = other[1] = 0x22;
    for (int i = 0; i < 100; i++) {
        map(TEST_VA + 4096, (u64)(i & 1 ? other : code + 4096), PTE_P);
        EXPECT_EQ(CALL(TEST_VA + 4096 - 3), i & 1 ? 0x22221111 : 0x11111111);
    }
    map(TEST_VA + 4096, (u64)other, 0);
    EXPECT_TRAP(CATCH(CALL(TEST_VA + 4096 - 3)), PF, 0x10);
}

static void test_remap(void)
{
    prepare();
    u8 *other = page_alloc();
    put(code, 1);
    put(other, 2);
    for (int i = 0; i < 200; i++) {
        map(TEST_VA, (u64)(i & 1 ? other : code), PTE_P);
        EXPECT_EQ(CALL(TEST_VA), i & 1 ? 2 : 1);
    }
    *table_entry(TEST_VA, 1) |= PTE_NX;
    invlpg(TEST_VA);
    EXPECT_TRAP(CATCH(CALL(TEST_VA)), PF, 0x11);
}

/* One address, two address spaces, two programs. */
static void test_address_spaces(void)
{
    prepare();
    u64 *pml4 = page_alloc(), first = read_cr3();
    u8 *other = page_alloc();
    put(code, 1);
    put(other, 2);
    memcpy(pml4, boot_pml4, 4096);
    pml4[TEST_VA >> 39 & 511] = 0;
    write_cr3((u64)pml4);
    map(TEST_VA, (u64)other, PTE_P);
    for (int i = 0; i < 200; i++) {
        write_cr3(i & 1 ? (u64)pml4 : first);
        EXPECT_EQ(CALL(TEST_VA), i & 1 ? 2 : 1);
        if (i == 100)
            put(other, 2);
    }
    write_cr3(first);
}

/* Stores of all kinds hit code: string operations, push, call, cmpxchg, xmm-free bulk copies. */
static void test_kinds_of_stores(void)
{
    prepare();
    static u8 source[64];
    for (u32 i = 1; i < 50; i++) {
        put(source, i * 3);
        put(code, 0);
        EXPECT_EQ(CALL(code), 0);
        __asm__ volatile("rep movsb" : : "S"(source), "D"(code), "c"(6ul) : "memory");
        EXPECT_EQ(CALL(code), i * 3);
        __asm__ volatile("rep stosl" : : "D"(code + 1), "a"(i * 5), "c"(1ul) : "memory");
        EXPECT_EQ(CALL(code), i * 5);
        __asm__ volatile("mov %%rsp, %%rbx; lea 9(%0), %%rsp; push %1; mov %%rbx, %%rsp"
                         :
                         : "r"(code), "r"((u64)0xc3 << 32 | i * 7)
                         : "rbx", "memory");
        EXPECT_EQ(CALL(code), i * 7);
        u32 old = i * 7, new = i * 11;
        __asm__ volatile("lock cmpxchgl %2, %0" : "+m"(*(u32 *)(code + 1)), "+a"(old) : "r"(i * 9) : "memory", "cc");
        EXPECT_EQ(CALL(code), i * 9);
        __asm__ volatile("xchgl %0, %1" : "+m"(*(u32 *)(code + 1)), "+r"(new) : : "memory");
        EXPECT_EQ(CALL(code), i * 11);
        __asm__ volatile("lock btsl $31, %0" : "+m"(*(u32 *)(code + 1)) : : "memory", "cc");
        EXPECT_EQ(CALL(code), i * 11 | 1u << 31);
        __asm__ volatile("notl %0" : "+m"(*(u32 *)(code + 1)) : : "memory");
        EXPECT_EQ(CALL(code), ~(i * 11 | 1u << 31));
    }
}

/* A store that overlaps code only with its last bytes, coming from the page before. */
static void test_store_into_page(void)
{
    prepare();
    put(code + 4096, 5);
    EXPECT_EQ(CALL(code + 4096), 5);
    for (u32 i = 0; i < 100; i++) {
        /* 8 bytes: 5 on the first page, 3 on the second: mov opcode, two bytes of its operand */
        *(volatile u64 *)(code + 4096 - 5) = (u64)(0xb8 | (i & 0xff) << 8 | 0x66 << 16) << 40;
        EXPECT_EQ(CALL(code + 4096), (i & 0xff) | 0x6600);
    }
}

/* Much code in one page, some of it changed, all of it run. */
static void test_many(void)
{
    prepare();
    for (u32 i = 0; i < 256; i++)
        put(code + i * 16, i);
    for (u32 round = 0; round < 20; round++) {
        for (u32 i = round; i < 256; i += 17)
            put(code + i * 16, i + round * 1000);
        for (u32 i = 0; i < 256; i++) {
            u32 wanted = i;
            for (u32 r = 0; r <= round; r++)
                if (i >= r && (i - r) % 17 == 0)
                    wanted = i + r * 1000;
            EXPECT_EQ(CALL(code + i * 16), wanted);
        }
    }
}

USER_CODE(u_patch, "mov %edi, 1f + 1(%rip)\n1: mov $0, %eax");
static void test_user(void)
{
    for (u32 i = 0; i < 50; i++) {
        struct context c = user_context(u_patch);
        c.rdi = i * 0x10101;
        EXPECT_TRAP(run(&c), BACK, 0);
        EXPECT_EQ(trap.f.rax, i * 0x10101);
    }
}

/* rep movsb that overwrites the code behind it, and itself with what it is already. */
static void test_rep_over_itself(void)
{
    prepare();
    /* mov $16, %ecx; rep movsb; mov $1, %eax; ret */
    static const u8 program[] = {0xb9, 16, 0, 0, 0, 0xf3, 0xa4, 0xb8, 1, 0, 0, 0, 0xc3};
    for (u32 i = 0; i < 50; i++) {
        u8 *copy = code + 2048, *at = code + 512;
        memcpy(at, program, sizeof program);
        memcpy(copy, program, sizeof program);
        *(volatile u32 *)(copy + 8) = i + 2;
        u32 result;
        __asm__ volatile("call *%4" : "=a"(result), "+S"(copy), "+D"(at) : "0"(0), "r"((u64)at) : "rcx", "memory");
        EXPECT_EQ(result, i + 2);
    }
}

const struct test tests[] = {
    {"rewrite", test_rewrite, NULL},
    {"rewrite-one-byte", test_rewrite_one_byte, NULL},
    {"alias", test_alias, NULL},
    {"next-instruction", test_next_instruction, NULL},
    {"ahead", test_ahead, NULL},
    {"loop", test_loop, NULL},
    {"static-key", test_static_key, NULL},
    {"flags-behind-a-branch", test_flags_behind_a_branch, NULL},
    {"crossing-pages", test_crossing, NULL},
    {"state-over-edge", test_state_over_edge, NULL},
    {"branch-over-edge", test_branch_over_edge, NULL},
    {"crossing-pages-remapped", test_crossing_remap, NULL},
    {"remap", test_remap, NULL},
    {"address-spaces", test_address_spaces, NULL},
    {"kinds-of-stores", test_kinds_of_stores, NULL},
    {"store-into-page", test_store_into_page, NULL},
    {"many-in-a-page", test_many, NULL},
    {"user", test_user, NULL},
    {"rep-over-itself", test_rep_over_itself, NULL},
    {NULL, NULL, NULL},
};
