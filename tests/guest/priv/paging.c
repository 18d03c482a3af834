/* The page walk: permissions, accessed and dirty bits, large pages, reserved bits, invalidation (SDM vol. 3, chapter
 * 4). */
#include "lib.h"

enum access { READ, WRITE, EXEC };
enum { W = 1, U = 2, X = 4 };

USER_CODE(user_read, "mov (%rdi), %al");
USER_CODE(user_write, "mov %al, (%rdi)");
USER_CODE(user_read8, "mov (%rdi), %rax");
USER_CODE(user_write8, "mov %rax, (%rdi)");

static u8 *target;
static bool has(u32 leaf, int reg, int bit)
{
    struct cpuid c = cpuid(leaf, 0);
    return (&c.a)[reg] >> bit & 1;
}
static bool has_smep(void)
{
    return has(7, 1, 7);
}
static bool has_smap(void)
{
    return has(7, 1, 20);
}
static bool has_pcid(void)
{
    return has(1, 2, 17);
}
static bool has_invpcid(void)
{
    return has(7, 1, 10);
}
static bool has_1g(void)
{
    return has(0x80000001, 3, 26);
}

static void flush(void)
{
    write_cr3(read_cr3());
}

static u64 bits(unsigned permissions)
{
    return PTE_P | (permissions & W ? PTE_W : 0) | (permissions & U ? PTE_U : 0) | (permissions & X ? 0 : PTE_NX);
}

static u8 *new_target(void)
{
    target = page_alloc();
    target[0] = 0xc3;  /* ret */
    target[16] = 0xcd; /* int $0x30 */
    target[17] = BACK;
    map(TEST_VA, (u64)target, PTE_P | PTE_W | PTE_U);
    return target;
}

static const struct trap *access_kernel(enum access access, u64 va, u64 flags)
{
    return CATCH({
        write_flags(flags);
        if (access == READ)
            (void)*(volatile u8 *)(va + 32);
        else if (access == WRITE)
            *(volatile u8 *)(va + 32) = 7;
        else
            ((void (*)(void))va)();
    });
}

static const struct trap *access_user(enum access access, u64 va)
{
    struct context c = user_context(access == READ ? user_read : user_write);
    c.rdi = va + 32;
    if (access == EXEC)
        c.rip = va + 16;
    return run(&c);
}

/* What the manual says of an access: 0 or the error code of the page fault. */
static u64 model(unsigned permissions, enum access access, bool user, u64 cr0, u64 cr4, bool ac)
{
    bool fault = access == EXEC && !(permissions & X);
    if (user)
        fault |= !(permissions & U) || (access == WRITE && !(permissions & W));
    else {
        fault |= access == WRITE && !(permissions & W) && cr0 & CR0_WP;
        if (permissions & U)
            fault |= access == EXEC ? (cr4 & CR4_SMEP) != 0 : (cr4 & CR4_SMAP) && !ac;
    }
    return fault ? 1 | (access == WRITE) << 1 | user << 2 | (access == EXEC) << 4 : 0;
}

static void one_access(unsigned leaf, unsigned upper, enum access access, bool user, bool ac)
{
    u64 wanted = model((leaf & upper), access, user, read_cr0(), read_cr4(), ac);
    flush();
    const struct trap *t = user ? access_user(access, TEST_VA) : access_kernel(access, TEST_VA, ac ? F_AC | 2 : 2);
    u64 vector = wanted ? PF : user ? BACK : NONE;
    u64 situation = (u64)leaf << 44 | (u64)upper << 40 | (u64)access << 36 | (u64)user << 33 | (u64)ac << 32;
    if (t->vector != vector || (wanted && t->error != wanted))
        EXPECT_EQ(situation | t->vector << 8 | t->error, situation | vector << 8 | wanted);
    if (wanted)
        EXPECT_EQ(t->cr2, access != EXEC ? TEST_VA + 32 : user ? TEST_VA + 16 : TEST_VA);
}

static void permission_matrix(u64 cr0_clear, u64 cr4_set, int level)
{
    u64 cr0 = read_cr0(), cr4 = read_cr4();
    new_target();
    u64 upper_address = *table_entry(TEST_VA, level) & PTE_ADDRESS;
    write_cr0(cr0 & ~cr0_clear);
    write_cr4(cr4 | cr4_set);
    for (unsigned upper = 0; upper < 8; upper++)
        for (unsigned leaf = 0; leaf < 8; leaf++) {
            *table_entry(TEST_VA, level) = upper_address | bits(upper);
            *table_entry(TEST_VA, 1) = (u64)target | bits(leaf);
            for (enum access access = READ; access <= EXEC; access++) {
                one_access(leaf, upper, access, true, false);
                one_access(leaf, upper, access, false, false);
                one_access(leaf, upper, access, false, true);
            }
        }
    write_cr0(cr0);
    write_cr4(cr4);
    *table_entry(TEST_VA, level) = upper_address | PTE_P | PTE_W | PTE_U;
    flush();
}

static void matrix(u64 cr0_clear, u64 cr4_set)
{
    for (int level = 2; level <= 4; level++)
        permission_matrix(cr0_clear, cr4_set, level);
}

static void test_matrix(void)
{
    matrix(0, 0);
}
static void test_matrix_no_wp(void)
{
    matrix(CR0_WP, 0);
}
static void test_matrix_smep(void)
{
    if (!has_smep())
        return skip("no SMEP");
    matrix(0, CR4_SMEP);
}
static void test_matrix_smap(void)
{
    if (!has_smap() || !has_smep())
        return skip("no SMAP");
    matrix(0, CR4_SMAP);
    matrix(CR0_WP, CR4_SMEP | CR4_SMAP);
}

static void test_not_present(void)
{
    new_target();
    for (int level = 1; level <= 4; level++) {
        u64 *entry = table_entry(TEST_VA, level), saved = *entry;
        *entry &= ~PTE_P;
        flush();
        EXPECT_TRAP(access_kernel(READ, TEST_VA, 2), PF, 0);
        EXPECT_EQ(trap.cr2, TEST_VA + 32);
        EXPECT_TRAP(access_kernel(WRITE, TEST_VA, 2), PF, 2);
        EXPECT_TRAP(access_kernel(EXEC, TEST_VA, 2), PF, 0x10);
        EXPECT_TRAP(access_user(READ, TEST_VA), PF, 4);
        EXPECT_TRAP(access_user(WRITE, TEST_VA), PF, 6);
        EXPECT_TRAP(access_user(EXEC, TEST_VA), PF, 0x14);
        *entry = saved; /* becoming present needs no invalidation */
        EXPECT_NONE(access_kernel(READ, TEST_VA, 2));
    }
}

/* Clears A and D at all levels, does the access, returns A of levels 1-4 in bits 0-3, D of level 1 in 4. */
static unsigned accessed_dirty(enum access access, bool user)
{
    unsigned result = 0;
    for (int level = 1; level <= 4; level++)
        *table_entry(TEST_VA, level) &= ~(PTE_A | PTE_D);
    flush();
    user ? access_user(access, TEST_VA) : access_kernel(access, TEST_VA, 2);
    for (int level = 1; level <= 4; level++)
        result |= (*table_entry(TEST_VA, level) & PTE_A ? 1u : 0u) << (level - 1);
    return result | (*table_entry(TEST_VA, 1) & PTE_D ? 16 : 0);
}

static void test_accessed_dirty(void)
{
    new_target();
    for (int user = 0; user < 2; user++) {
        EXPECT_EQ(accessed_dirty(READ, user), 0x0f);
        EXPECT_EQ(accessed_dirty(WRITE, user), 0x1f);
        EXPECT_EQ(accessed_dirty(EXEC, user), 0x0f);
    }
    /* read, then write through a translation that is cached already */
    EXPECT_EQ(accessed_dirty(READ, false), 0x0f);
    *(volatile u8 *)(TEST_VA + 64) = 1;
    EXPECT_EQ(*table_entry(TEST_VA, 1) & PTE_D, PTE_D);
    /* a write that faults leaves no dirty bit */
    *table_entry(TEST_VA, 1) &= ~PTE_W;
    EXPECT_EQ(accessed_dirty(WRITE, false) & 16, 0);
    EXPECT_EQ(accessed_dirty(WRITE, true) & 16, 0);
    /* a store to a page whose D was cleared again and flushed sets it again */
    *table_entry(TEST_VA, 1) |= PTE_W;
    for (int i = 0; i < 3; i++) {
        *table_entry(TEST_VA, 1) &= ~(PTE_D | PTE_A);
        invlpg(TEST_VA);
        *(volatile u8 *)(TEST_VA + 64) = 1;
        EXPECT_EQ(*table_entry(TEST_VA, 1) & (PTE_D | PTE_A), PTE_D | PTE_A);
    }
    /* read-modify-write dirties even where the value stays */
    *table_entry(TEST_VA, 1) &= ~PTE_D;
    invlpg(TEST_VA);
    __asm__ volatile("lock orb $0, %0" : "+m"(*(u8 *)(TEST_VA + 64)));
    EXPECT_EQ(*table_entry(TEST_VA, 1) & PTE_D, PTE_D);
}

static void test_large_2m(void)
{
    new_target();
    u8 *big = pages_alloc(512, 2 << 20);
    u64 *entry = table_entry(TEST_VA, 2), saved = *entry;
    big[0x12345] = 0x5a;
    *entry = (u64)big | PTE_P | PTE_U | PTE_PS;
    flush();
    EXPECT_EQ(*(volatile u8 *)(TEST_VA + 0x12345), 0x5a);
    EXPECT_EQ(*entry & (PTE_A | PTE_D), PTE_A);
    EXPECT_TRAP(access_kernel(WRITE, TEST_VA + 0x10000, 2), PF, 3);
    EXPECT_TRAP(access_user(WRITE, TEST_VA + 0x10000), PF, 7);
    EXPECT_TRAP(access_user(READ, TEST_VA + 0x10000), BACK, 0);
    *entry |= PTE_W;
    flush();
    EXPECT_NONE(access_kernel(WRITE, TEST_VA + 0x1ff000, 2));
    EXPECT_EQ(big[0x1ff020], 7);
    EXPECT_EQ(*entry & PTE_D, PTE_D);
    *entry |= PTE_NX;
    flush();
    EXPECT_TRAP(access_kernel(EXEC, TEST_VA, 2), PF, 0x11);
    /* the PAT bit of a large page is bit 12: allowed */
    *entry = (u64)big | PTE_P | PTE_PS | 1 << 12;
    flush();
    EXPECT_EQ(*(volatile u8 *)(TEST_VA + 0x12345), 0x5a);
    /* and back to small pages */
    *entry = saved;
    flush();
    EXPECT_EQ(*(volatile u8 *)TEST_VA, 0xc3);
}

static void test_large_1g(void)
{
    if (!has_1g())
        return skip("no 1 GiB pages");
    new_target();
    u64 *entry = table_entry(TEST_VA, 3), saved = *entry;
    target[100] = 0x77;
    *entry = PTE_P | PTE_W | PTE_U | PTE_PS; /* maps physical 0 to 1 GiB */
    flush();
    EXPECT_EQ(*(volatile u8 *)(TEST_VA + (u64)target + 100), 0x77);
    *(volatile u8 *)(TEST_VA + (u64)target + 101) = 0x66;
    EXPECT_EQ(target[101], 0x66);
    EXPECT_EQ(*entry & (PTE_A | PTE_D), PTE_A | PTE_D);
    EXPECT_TRAP(access_user(READ, TEST_VA + (u64)target), BACK, 0);
    *entry = saved;
    flush();
}

/* The error code of a reserved bit has P set as well: the walk ended at an entry that is present. */
static void test_reserved(void)
{
    new_target();
    u64 *big = table_entry(TEST_VA, 2), saved2 = *big;
    *big = PTE_P | PTE_W | PTE_U | PTE_PS | 1 << 13; /* in an entry that maps 2 MiB */
    flush();
    EXPECT_TRAP(access_kernel(READ, TEST_VA, 2), PF, 9);
    EXPECT_TRAP(access_user(WRITE, TEST_VA), PF, 0xf);
    *big = saved2;
    if (has_1g()) {
        u64 *huge = table_entry(TEST_VA, 3), saved3 = *huge;
        *huge = PTE_P | PTE_W | PTE_U | PTE_PS | 1 << 21;
        flush();
        EXPECT_TRAP(access_kernel(READ, TEST_VA, 2), PF, 9);
        *huge = saved3;
        flush();
    }
    unsigned width = cpuid(0x80000008, 0).a & 0xff;
    for (int level = 1; level <= 4 && width < 52; level++) {
        u64 *entry = table_entry(TEST_VA, level), saved = *entry;
        *entry |= 1ull << width;
        flush();
        EXPECT_TRAP(access_kernel(READ, TEST_VA, 2), PF, 9);
        EXPECT_TRAP(access_user(WRITE, TEST_VA), PF, 0xf);
        *entry = saved | 0xe00 | 1ull << 52 | 1ull << 58; /* these are the system's own */
        flush();
        EXPECT_NONE(access_kernel(READ, TEST_VA, 2));
        *entry = saved;
    }
    u64 *top = table_entry(TEST_VA, 4), saved = *top;
    *top |= PTE_PS;
    flush();
    EXPECT_TRAP(access_kernel(READ, TEST_VA, 2), PF, 9);
    *top = saved;
    flush();
}

static void test_nxe_off(void)
{
    new_target();
    u64 efer = read_msr(MSR_EFER);
    write_msr(MSR_EFER, efer & ~0x800ull);
    EXPECT_NONE(access_kernel(EXEC, TEST_VA, 2));
    *table_entry(TEST_VA, 1) |= PTE_NX; /* now a reserved bit */
    flush();
    EXPECT_TRAP(access_kernel(READ, TEST_VA, 2), PF, 9);
    *table_entry(TEST_VA, 1) = 0;
    flush();
    EXPECT_TRAP(access_kernel(EXEC, TEST_VA, 2), PF, 0); /* no instruction-fetch bit without NXE and SMEP */
    write_msr(MSR_EFER, efer);
}

static void test_crossing(void)
{
    u8 *first = page_alloc();
    u64 *second;
    map(TEST_VA, (u64)first, PTE_P | PTE_W | PTE_U);
    second = map(TEST_VA + 4096, (u64)page_alloc(), 0);
    for (int i = 1; i < 8; i++) {
        u64 va = TEST_VA + 4096 - i;
        memset(first + 4088, 0x11, 8);
        EXPECT_TRAP(CATCH(*(volatile u64 *)va = ~0ull), PF, 2);
        EXPECT_EQ(trap.cr2, TEST_VA + 4096);
        EXPECT_EQ(*(u64 *)(first + 4088), 0x1111111111111111); /* nothing was written */
        EXPECT_TRAP(CATCH((void)*(volatile u64 *)va), PF, 0);
        EXPECT_EQ(trap.cr2, TEST_VA + 4096);
        struct context c = user_context(user_write8);
        c.rdi = va;
        EXPECT_TRAP(run(&c), PF, 6);
        EXPECT_EQ(trap.cr2, TEST_VA + 4096);
        EXPECT_EQ(*(u64 *)(first + 4088), 0x1111111111111111);
    }
    *second |= PTE_P; /* read-only */
    flush();
    EXPECT_TRAP(CATCH(*(volatile u64 *)(TEST_VA + 4092) = ~0ull), PF, 3);
    EXPECT_EQ(*(u64 *)(first + 4088), 0x1111111111111111);
    EXPECT_NONE(CATCH((void)*(volatile u64 *)(TEST_VA + 4092)));
    /* the first page missing: the address of the access itself */
    *second |= PTE_W;
    *table_entry(TEST_VA, 1) = 0;
    flush();
    EXPECT_TRAP(CATCH((void)*(volatile u64 *)(TEST_VA + 4092)), PF, 0);
    EXPECT_EQ(trap.cr2, TEST_VA + 4092);
}

static void test_crossing_pages_apart(void)
{
    u8 *a = page_alloc(), *gap = page_alloc(), *b = page_alloc();
    (void)gap;
    map(TEST_VA, (u64)b, PTE_P | PTE_W); /* neighbours here, not in physical memory */
    map(TEST_VA + 4096, (u64)a, PTE_P | PTE_W);
    *(volatile u64 *)(TEST_VA + 4093) = 0x8877665544332211;
    EXPECT_EQ(b[4093] | b[4094] << 8 | b[4095] << 16, 0x332211);
    EXPECT_EQ(*(u32 *)a | (u64)a[4] << 32, 0x8877665544);
    EXPECT_EQ(*(volatile u64 *)(TEST_VA + 4093), 0x8877665544332211);
    __asm__ volatile("lock xaddq %0, %1" : : "r"(1ull), "m"(*(volatile u64 *)(TEST_VA + 4096)));
    EXPECT_EQ(a[0], 0x45);
}

static void test_fetch_crossing(void)
{
    u8 *first = page_alloc(), *second = page_alloc();
    static const u8 code[] = {0x48, 0xb8, 1, 2, 3, 4, 5, 6, 7, 8, 0xc3}; /* movabs $..., %rax; ret */
    for (unsigned i = 1; i < 10; i++) {
        memcpy(first + 4096 - i, code, i);
        memcpy(second, code + i, sizeof code - i);
        map(TEST_VA, (u64)first, PTE_P);
        map(TEST_VA + 4096, (u64)second, 0);
        u64 va = TEST_VA + 4096 - i;
        EXPECT_TRAP(CATCH(((void (*)(void))va)()), PF, 0x10);
        EXPECT_EQ(trap.cr2, TEST_VA + 4096);
        EXPECT_EQ(trap.f.rip, va);
        *table_entry(TEST_VA + 4096, 1) |= PTE_P;
        EXPECT_EQ(((u64(*)(void))va)(), 0x0807060504030201);
        *table_entry(TEST_VA + 4096, 1) |= PTE_NX;
        flush();
        EXPECT_TRAP(CATCH(((void (*)(void))va)()), PF, 0x11);
        EXPECT_EQ(trap.cr2, TEST_VA + 4096);
    }
}

static void test_invlpg(void)
{
    u8 *a = page_alloc(), *b = page_alloc();
    a[5] = 1;
    b[5] = 2;
    for (int i = 0; i < 4; i++) {
        map(TEST_VA, (u64)a, PTE_P | PTE_W | PTE_G);
        EXPECT_EQ(*(volatile u8 *)(TEST_VA + 5), 1);
        *table_entry(TEST_VA, 1) = (u64)b | PTE_P | PTE_G;
        invlpg(TEST_VA + 123);
        EXPECT_EQ(*(volatile u8 *)(TEST_VA + 5), 2);
        EXPECT_TRAP(CATCH(*(volatile u8 *)TEST_VA = 1), PF, 3);
        *table_entry(TEST_VA, 1) = 0;
        invlpg(TEST_VA);
        EXPECT_TRAP(CATCH((void)*(volatile u8 *)TEST_VA), PF, 0);
    }
    EXPECT_NONE(TRY("mov $0x8000000000000000, %%rax; invlpg (%%rax)")); /* not canonical: nothing happens */
}

static void test_cr3_flush(void)
{
    u8 *a = page_alloc(), *b = page_alloc();
    a[5] = 1;
    b[5] = 2;
    map(TEST_VA, (u64)a, PTE_P);
    EXPECT_EQ(*(volatile u8 *)(TEST_VA + 5), 1);
    *table_entry(TEST_VA, 1) = (u64)b | PTE_P;
    write_cr3(read_cr3());
    EXPECT_EQ(*(volatile u8 *)(TEST_VA + 5), 2);
    /* a change of CR4.PGE drops global translations too */
    u64 cr4 = read_cr4();
    write_cr4(cr4 | CR4_PGE);
    map(TEST_VA, (u64)a, PTE_P | PTE_G);
    EXPECT_EQ(*(volatile u8 *)(TEST_VA + 5), 1);
    *table_entry(TEST_VA, 1) = (u64)b | PTE_P | PTE_G;
    write_cr4(cr4 & ~(u64)CR4_PGE);
    EXPECT_EQ(*(volatile u8 *)(TEST_VA + 5), 2);
    write_cr4(cr4);
    /* so does CR0.PG, and the paging mode's other bits; here CR0.WP changes what a store may do at once */
    map(TEST_VA, (u64)a, PTE_P);
    EXPECT_TRAP(CATCH(*(volatile u8 *)TEST_VA = 9), PF, 3);
    write_cr0(read_cr0() & ~(u64)CR0_WP);
    EXPECT_NONE(CATCH(*(volatile u8 *)TEST_VA = 9));
    write_cr0(read_cr0() | CR0_WP);
    EXPECT_TRAP(CATCH(*(volatile u8 *)TEST_VA = 8), PF, 3);
    EXPECT_EQ(a[0], 9);
}

static void test_address_spaces(void)
{
    u8 *a = page_alloc(), *b = page_alloc();
    u64 *other = page_alloc(), first = read_cr3();
    a[5] = 1;
    b[5] = 2;
    map(TEST_VA, (u64)a, PTE_P);
    memcpy(other, boot_pml4, 4096);
    other[TEST_VA >> 39 & 511] = 0;
    write_cr3((u64)other);
    EXPECT_TRAP(CATCH((void)*(volatile u8 *)TEST_VA), PF, 0);
    map(TEST_VA, (u64)b, PTE_P);
    for (int i = 0; i < 10; i++) {
        write_cr3(first);
        EXPECT_EQ(*(volatile u8 *)(TEST_VA + 5), 1);
        write_cr3((u64)other);
        EXPECT_EQ(*(volatile u8 *)(TEST_VA + 5), 2);
    }
    write_cr3(first);
}

static void invpcid(u64 type, u64 pcid, u64 address)
{
    struct {
        u64 pcid, address;
    } d = {pcid, address};
    __asm__ volatile("invpcid %0, %1" : : "m"(d), "r"(type) : "memory");
}

static void test_pcid(void)
{
    if (!has_pcid())
        return skip("no PCID");
    u64 cr4 = read_cr4(), cr3 = read_cr3();
    u8 *a = page_alloc(), *b = page_alloc();
    a[5] = 1;
    b[5] = 2;
    u64 *other = page_alloc();
    memcpy(other, boot_pml4, 4096);
    write_cr3(cr3 | 8); /* PCD: not a PCID of 0 */
    EXPECT_TRAP(CATCH(write_cr4(cr4 | CR4_PCIDE)), GP, 0);
    write_cr3(cr3);
    write_cr4(cr4 | CR4_PCIDE | CR4_PGE);
    map(TEST_VA, (u64)a, PTE_P);
    u64 *entry = table_entry(TEST_VA, 1);
    u64 *other_page = page_alloc(); /* the other space maps the same address elsewhere */
    write_cr3((u64)other | 2);
    other[TEST_VA >> 39 & 511] = 0;
    map(TEST_VA, (u64)b, PTE_P);
    (void)other_page;
    u64 *other_entry = table_entry(TEST_VA, 1);
    for (int i = 0; i < 10; i++) {
        write_cr3(cr3 | 1 | (i ? 1ull << 63 : 0));
        EXPECT_EQ(*(volatile u8 *)(TEST_VA + 5), 1);
        write_cr3((u64)other | 2 | 1ull << 63);
        EXPECT_EQ(*(volatile u8 *)(TEST_VA + 5), 2);
        EXPECT_EQ(read_cr3(), (u64)other | 2); /* bit 63 is not kept */
    }
    /* a write without bit 63 drops what is cached for that PCID */
    *other_entry = (u64)a | PTE_P;
    write_cr3((u64)other | 2);
    EXPECT_EQ(*(volatile u8 *)(TEST_VA + 5), 1);
    *other_entry = (u64)b | PTE_P;
    invlpg(TEST_VA);
    EXPECT_EQ(*(volatile u8 *)(TEST_VA + 5), 2);
    if (has_invpcid()) {
        for (u64 type = 0; type < 4; type++) {
            write_cr3(cr3 | 1 | 1ull << 63);
            EXPECT_EQ(*(volatile u8 *)(TEST_VA + 5), type & 1 ? 2 : 1);
            write_cr3((u64)other | 2 | 1ull << 63);
            *entry = (u64)(type & 1 ? a : b) | PTE_P; /* of the space that is not the current one */
            invpcid(type, 1, TEST_VA);
            write_cr3(cr3 | 1 | 1ull << 63);
            EXPECT_EQ(*(volatile u8 *)(TEST_VA + 5), type & 1 ? 1 : 2);
        }
        EXPECT_TRAP(CATCH(invpcid(4, 0, 0)), GP, 0);
        EXPECT_TRAP(CATCH(invpcid(0, 0x1000, 0)), GP, 0);
        EXPECT_TRAP(CATCH(invpcid(0, 0, 1ull << 63)), GP, 0);
    }
    /* PCIDE needs long mode's bits; clearing it flushes */
    write_cr3(cr3);
    write_cr4(cr4);
    EXPECT_EQ(*(volatile u8 *)(TEST_VA + 5), *entry == ((u64)a | PTE_P | PTE_A) ? 1 : 2);
}

static void test_canonical(void)
{
    volatile u8 v = 0;
    (void)v;
    EXPECT_TRAP(CATCH(v = *(volatile u8 *)0x800000000000), GP, 0);
    EXPECT_TRAP(CATCH(v = *(volatile u8 *)0xffff7fffffffffff), GP, 0);
    map(0x7ffffffff000, (u64)page_alloc(), PTE_P | PTE_W); /* so that only the second half can fault */
    EXPECT_TRAP(CATCH(*(volatile u64 *)0x7ffffffffffc = 0), GP, 0);
    EXPECT_TRAP(TRY("mov $0x800000000000, %%rax; jmp *%%rax"), GP, 0);
    EXPECT_TRAP(TRY("mov $0x800000000000, %%rax; call *%%rax"), GP, 0);
    struct context c = user_context(user_read);
    c.rdi = 0x8000000000000000;
    EXPECT_TRAP(run(&c), GP, 0);
    c.rdi = 0xffff800000000000; /* canonical, not mapped */
    EXPECT_TRAP(run(&c), PF, 4);
    EXPECT_EQ(trap.cr2, 0xffff800000000000);
}

/* An address made from rbp is one of the stack segment. */
static void test_canonical_stack(void)
{
    EXPECT_TRAP(TRY("mov $0x800000000000, %%rax; xchg %%rax, %%rbp; movb (%%rbp), %%dl; xchg %%rax, %%rbp"), SS, 0);
    EXPECT_TRAP(TRY("mov $0x800000000000, %%rax; xchg %%rax, %%rbp; movb %%ds:(%%rbp), %%dl; xchg %%rax, %%rbp"), SS,
                0);
}

static void test_alias(void)
{
    u8 *a = page_alloc();
    for (int i = 0; i < 8; i++)
        map(TEST_VA + (u64)i * 4096, (u64)a, PTE_P | PTE_W);
    for (int i = 0; i < 8; i++) {
        *(volatile u32 *)(TEST_VA + (u64)i * 4096 + 40) = (u32)i * 77;
        for (int j = 0; j < 8; j++)
            EXPECT_EQ(*(volatile u32 *)(TEST_VA + (u64)j * 4096 + 40), (u32)i * 77);
    }
}

const struct test tests[] = {
    {"permission-matrix", test_matrix, NULL},
    {"permission-matrix-without-wp", test_matrix_no_wp, NULL},
    {"permission-matrix-smep", test_matrix_smep, NULL},
    {"permission-matrix-smap", test_matrix_smap, NULL},
    {"not-present", test_not_present, NULL},
    {"accessed-dirty", test_accessed_dirty, NULL},
    {"large-2m", test_large_2m, NULL},
    {"large-1g", test_large_1g, NULL},
    {"reserved-bits", test_reserved, "the error code of a reserved bit lacks P"},
    {"nxe-off", test_nxe_off, "the error code of a reserved bit lacks P"},
    {"access-crossing-pages", test_crossing, NULL},
    {"access-crossing-frames", test_crossing_pages_apart, NULL},
    {"fetch-crossing-pages", test_fetch_crossing, NULL},
    {"invlpg", test_invlpg, NULL},
    {"cr3-cr4-cr0-flush", test_cr3_flush, NULL},
    {"address-spaces", test_address_spaces, NULL},
    {"pcid-invpcid", test_pcid, NULL},
    {"canonical", test_canonical, NULL},
    {"canonical-stack", test_canonical_stack, "#GP instead of #SS"},
    {"aliases", test_alias, NULL},
    {NULL, NULL, NULL},
};
