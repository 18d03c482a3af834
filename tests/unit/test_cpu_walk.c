/* The page walk in every paging mode against a plain statement of SDM 4.6. */
#include "cpu_fixture.h"

enum { P = 1, W = 2, U = 4, A = 0x20, D = 0x40, PS = 0x80, G = 0x100 };
#define NX (1ull << 63)

enum mode { MODE_32, MODE_PSE, MODE_PAE, MODE_PAE_2M, MODE_4K, MODE_2M, MODE_1G, MODES };

/* Builds a mapping of gva 0x401234 whose upper level has `upper` rights and whose leaf has `leaf`. */
struct map {
    uint64_t gva;
    void *upper, *leaf; /* entries; upper == NULL: there is none */
    unsigned size;      /* of an entry */
    uint64_t gpa, page;
};

static void set_entry(const struct map *m, void *entry, uint64_t value)
{
    if (m->size == 4)
        *(uint32_t *)entry = value;
    else
        *(uint64_t *)entry = value;
}

static uint64_t get_entry(const struct map *m, const void *entry)
{
    return m->size == 4 ? *(const uint32_t *)entry : *(const uint64_t *)entry;
}

static struct map build(struct fixture *f, enum mode mode, uint64_t upper, uint64_t leaf)
{
    struct cpu *c = &f->cpu;
    struct map m = {.gva = 0x401234, .size = mode <= MODE_PSE ? 4 : 8};
    c->cr0 = CR0_PE | CR0_PG | CR0_WP;
    c->cr3 = PML4_AT;
    c->cr4 = mode == MODE_32 ? 0 : mode == MODE_PSE ? CR4_PSE : CR4_PAE;
    c->efer = mode >= MODE_4K ? EFER_LME | EFER_LMA : 0;
    uint64_t frame = mode == MODE_1G ? 0 : 0x200000, small = 0x5000;
    static const uint64_t pages[MODES] = {4096, 4 << 20, 4096, 2 << 20, 4096, 2 << 20, 1 << 30};
    m.page = pages[mode];
    switch (mode) {
    case MODE_32:
        m.upper = (uint32_t *)at(f, PML4_AT) + 1;
        m.leaf = (uint32_t *)at(f, PT_AT) + 1;
        break;
    case MODE_PSE:
        m.leaf = (uint32_t *)at(f, PML4_AT) + 1;
        frame = 0;
        break;
    case MODE_PAE:
    case MODE_PAE_2M:
        *at(f, PML4_AT) = PD_AT | P;
        m.upper = mode == MODE_PAE ? at(f, PD_AT) + 2 : NULL;
        m.leaf = mode == MODE_PAE ? at(f, PT_AT) + 1 : at(f, PD_AT) + 2;
        break;
    default:
        *at(f, PML4_AT) = PDPT_AT | P | W | U;
        *at(f, PDPT_AT) = PD_AT | P | W | U;
        m.upper = mode == MODE_4K ? at(f, PD_AT) + 2 : mode == MODE_2M ? at(f, PDPT_AT) : at(f, PML4_AT);
        m.leaf = mode == MODE_4K ? at(f, PT_AT) + 1 : mode == MODE_2M ? at(f, PD_AT) + 2 : at(f, PDPT_AT);
    }
    bool small_page = m.page == 4096;
    uint64_t next = mode == MODE_1G ? PDPT_AT : mode == MODE_2M ? PD_AT : PT_AT;
    if (m.upper)
        set_entry(&m, m.upper, next | P | upper);
    set_entry(&m, m.leaf, (small_page ? small : frame | PS) | P | leaf);
    m.gpa = small_page ? small + 0x234 : frame + (m.gva & (m.page - 1));
    return m;
}

/* SDM 4.6.1 in words. */
static bool allowed(const struct cpu *c, uint64_t rights, unsigned access, bool user)
{
    bool w = rights & W, u = rights & U, nx = rights & NX;
    bool wp = c->cr0 & CR0_WP, smap = c->cr4 & CR4_SMAP, smep = c->cr4 & CR4_SMEP, ac = c->rflags & FL_AC;
    if (user)
        return u && (access == ACCESS_READ || (access == ACCESS_WRITE && w) || (access == ACCESS_EXEC && !nx));
    if (access == ACCESS_EXEC)
        return !nx && !(u && smep);
    if (u && smap && !ac)
        return false;
    return access == ACCESS_READ || w || !wp;
}

static void check_one(struct fixture *f, enum mode mode, uint64_t upper, uint64_t leaf, unsigned flags, unsigned access,
                      bool user)
{
    struct cpu *c = &f->cpu;
    struct translation t;
    struct map m = build(f, mode, upper, leaf);
    bool nx_on = mode >= MODE_PAE;
    uint64_t rights = (m.upper ? upper & leaf & (W | U) : leaf & (W | U)) | ((m.upper ? upper | leaf : leaf) & NX);
    if (nx_on)
        c->efer |= EFER_NXE;
    c->cr0 = flags & 1 ? c->cr0 : c->cr0 & ~(uint64_t)CR0_WP;
    c->cr4 |= (flags & 2 ? CR4_SMEP : 0) | (flags & 4 ? CR4_SMAP : 0);
    c->rflags = FL_ONE | (flags & 8 ? FL_AC : 0);
    c->cpl = user ? 3 : 0;
    int r = cpu_walk(c, m.gva, access, user, &t);
    if (!allowed(c, rights, access, user)) {
        unsigned fetch = access == ACCESS_EXEC && (nx_on || (c->cr4 & CR4_SMEP)) ? PFERR_I : 0;
        assert_fault(r, EXC_PF, PFERR_P | (access == ACCESS_WRITE ? PFERR_W : 0) | (user ? PFERR_U : 0) | fetch);
        assert_true(c->exc.cr2 == m.gva);
        assert_false(get_entry(&m, m.leaf) & D);
        return;
    }
    assert_ok(r);
    assert_true(t.gpa == m.gpa && t.page_size == m.page);
    assert_int_equal(t.writable, (rights & W) != 0);
    assert_int_equal(t.user, (rights & U) != 0);
    assert_int_equal(t.no_exec, (rights & NX) != 0);
    assert_int_equal(t.dirty, access == ACCESS_WRITE);
    assert_true(get_entry(&m, m.leaf) & A);
    assert_int_equal((get_entry(&m, m.leaf) & D) != 0, access == ACCESS_WRITE);
    if (m.upper) {
        assert_true(get_entry(&m, m.upper) & A);
        assert_false(get_entry(&m, m.upper) & D);
    }
}

static void every_permission_in_every_mode(void **state)
{
    struct fixture *f = *state;
    static const uint64_t nx[2] = {0, NX};
    for (enum mode mode = 0; mode < MODES; mode++) {
        struct cpuid_regs x;
        cpu_cpuid(&f->cpu, 0x80000001, 0, &x);
        if (mode == MODE_1G && !(x.edx & 1u << 26))
            continue;
        for (unsigned i = 0; i < 64 * 16 * 6; i++) {
            unsigned rights = i & 63, flags = i >> 6 & 15, access = (i >> 10) % 3, user = (i >> 10) / 3;
            bool has_nx = mode >= MODE_PAE;
            uint64_t upper = (rights & 1 ? W : 0) | (rights & 2 ? U : 0) | (has_nx ? nx[rights >> 2 & 1] : 0);
            uint64_t leaf = (rights & 8 ? W : 0) | (rights & 16 ? U : 0) | (has_nx ? nx[rights >> 5 & 1] : 0);
            check_one(f, mode, upper, leaf, flags, access, user);
        }
    }
}

static void not_present_at_each_level(void **state)
{
    struct fixture *f = *state;
    struct translation t;
    for (enum mode mode = 0; mode < MODES; mode++) {
        struct map m = build(f, mode, W | U, W | U);
        set_entry(&m, m.leaf, get_entry(&m, m.leaf) & ~1ull);
        assert_fault(cpu_walk(&f->cpu, m.gva, ACCESS_WRITE, true, &t), EXC_PF, PFERR_W | PFERR_U);
        assert_false(cpu_walk_probe(&f->cpu, m.gva, &t));
        if (!m.upper)
            continue;
        m = build(f, mode, W | U, W | U);
        set_entry(&m, m.upper, 0);
        assert_fault(cpu_walk(&f->cpu, m.gva, ACCESS_READ, false, &t), EXC_PF, 0);
    }
}

static void reserved_bits_fault(void **state)
{
    struct fixture *f = *state;
    struct translation t;
    struct map m = build(f, MODE_4K, W | U, W | U);
    struct cpuid_regs sizes;
    cpu_cpuid(&f->cpu, 0x80000008, 0, &sizes);
    *(uint64_t *)m.leaf |= 1ull << (sizes.eax & 0xff);
    assert_fault(cpu_walk(&f->cpu, m.gva, ACCESS_READ, false, &t), EXC_PF, PFERR_P | PFERR_RSVD);
    m = build(f, MODE_4K, W | U, W | U | NX); /* NXE is off */
    assert_fault(cpu_walk(&f->cpu, m.gva, ACCESS_READ, true, &t), EXC_PF, PFERR_P | PFERR_RSVD | PFERR_U);
    m = build(f, MODE_2M, W | U, W | U | 1 << 13);
    assert_fault(cpu_walk(&f->cpu, m.gva, ACCESS_WRITE, false, &t), EXC_PF, PFERR_P | PFERR_RSVD | PFERR_W);
    m = build(f, MODE_4K, W | U, W | U);
    *at(f, PML4_AT) |= PS;
    assert_fault(cpu_walk(&f->cpu, m.gva, ACCESS_READ, false, &t), EXC_PF, PFERR_P | PFERR_RSVD);
    build(f, MODE_PAE, W | U, W | U);
    *at(f, PML4_AT) |= W;
    assert_fault(cpu_walk(&f->cpu, m.gva, ACCESS_READ, false, &t), EXC_PF, PFERR_P | PFERR_RSVD);
    m = build(f, MODE_PSE, W | U, W | U | 1 << 21);
    assert_fault(cpu_walk(&f->cpu, m.gva, ACCESS_READ, false, &t), EXC_PF, PFERR_P | PFERR_RSVD);
}

static void five_levels(void **state)
{
    struct fixture *f = *state;
    struct translation t;
    build_paging(f);
    enter_long(f);
    *at(f, 0x14000) = PML4_AT | 7;
    f->cpu.cr3 = 0x14000;
    f->cpu.cr4 |= CR4_LA57;
    assert_ok(cpu_walk(&f->cpu, 0x5678, ACCESS_READ, false, &t));
    assert_true(t.gpa == 0x5678);
    assert_true(cpu_canonical(&f->cpu, 0x00ff000000000000));
    assert_fault(cpu_walk(&f->cpu, 0x00ff000000000000, ACCESS_READ, false, &t), EXC_PF, 0);
}

static void global_probe_and_outside_ram(void **state)
{
    struct fixture *f = *state;
    struct translation t;
    struct map m = build(f, MODE_4K, W | U, W | U | G);
    assert_true(cpu_walk_probe(&f->cpu, m.gva, &t));
    assert_false(t.global);
    assert_int_equal(get_entry(&m, m.leaf) & A, 0); /* probing leaves no trace */
    f->cpu.cr4 |= CR4_PGE;
    assert_ok(cpu_walk(&f->cpu, m.gva, ACCESS_READ, false, &t));
    assert_true(t.global);
    f->cpu.cr3 = 0xd0000000; /* in the hole */
    assert_fault(cpu_walk(&f->cpu, m.gva, ACCESS_READ, false, &t), EXC_PF, 0);
    f->cpu.cr0 &= ~(uint64_t)CR0_PG;
    assert_ok(cpu_walk(&f->cpu, m.gva, ACCESS_WRITE, false, &t));
    assert_true(t.gpa == m.gva);
}

static void pse36_reaches_above_4g(void **state)
{
    struct fixture *f = *state;
    struct translation t;
    struct map m = build(f, MODE_PSE, 0, W | 0x2000 /* address bit 32 */);
    assert_ok(cpu_walk(&f->cpu, m.gva, ACCESS_READ, false, &t));
    assert_true(t.gpa == 0x100000000ull + (m.gva & 0x3fffff));
}

static void accesses_cross_pages_or_not_at_all(void **state)
{
    struct fixture *f = *state;
    uint64_t value = 0x1122334455667788, back = 0;
    enter_long(f);
    at(f, PT_AT)[0x31] = 0x40000 | 7;
    assert_ok(cpu_write(&f->cpu, 0x30ffc, &value, 8, false));
    assert_ok(cpu_read(&f->cpu, 0x30ffc, &back, 8, false));
    assert_true(back == value);
    assert_int_equal(*(uint32_t *)(f->memory->base + 0x40000), 0x11223344);
    at(f, PT_AT)[0x31] = 0;
    value = 0;
    assert_fault(cpu_write(&f->cpu, 0x30ffc, &value, 8, false), EXC_PF, PFERR_W);
    assert_true(f->cpu.exc.cr2 == 0x31000);
    assert_int_equal(*(uint32_t *)(f->memory->base + 0x30ffc), 0x55667788);
    at(f, PT_AT)[0x32] = 0x200000000 | 7; /* nobody there */
    assert_ok(cpu_read(&f->cpu, 0x32000, &back, 8, false));
    assert_true(back == ~0ull);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        CPU_TEST(every_permission_in_every_mode),
        CPU_TEST(not_present_at_each_level),
        CPU_TEST(reserved_bits_fault),
        CPU_TEST(five_levels),
        CPU_TEST(global_probe_and_outside_ram),
        CPU_TEST(pse36_reaches_above_4g),
        CPU_TEST(accesses_cross_pages_or_not_at_all),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
