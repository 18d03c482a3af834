/* Both loaders: what they put where, and every file they must refuse with a sentence. */
#include <elf.h>
#include <errno.h>

#include "boot/boot_int.h"
#include "boot_fixture.h"
#include "cpu/cpu.h"

static uint8_t image[BZIMAGE_SIZE];
static struct memory *ram;
static char error[256];

static int setup(void **state)
{
    make_bzimage(image, "\x0f\x0b", 2);
    error[0] = 0;
    return memory_create(&ram, 64 << 20);
}

static int teardown(void **state)
{
    memory_destroy(ram);
    return 0;
}

static int load(const void *file, size_t len, int initrd, const char *append, struct boot_entry *entry)
{
    int fd = file_of(file, len);
    const struct boot_source source = {
        .kernel_path = "KERNEL", .kernel_fd = fd, .initrd_fds = {initrd}, .n_initrds = initrd >= 0, .append = append};
    int err = boot_load(ram, &source, &test_platform, entry, error, sizeof error);
    close(fd);
    return err;
}

static uint64_t zero_page(unsigned at, unsigned bytes)
{
    uint64_t v = 0;
    memory_read(ram, BOOT_ZERO_PAGE + at, &v, bytes);
    return v;
}

static void expect_refused(int err, const char *part)
{
    assert_true(err < 0);
    assert_non_null(strstr(error, part));
}

static void a_bzimage_is_placed(void **state)
{
    struct boot_entry entry;
    uint8_t code[2];
    char line[32];
    assert_int_equal(load(image, sizeof image, -1, "console=ttyS0", &entry), 0);
    assert_int_equal(entry.protocol, BOOT_LINUX64);
    assert_int_equal(entry.rip, BZIMAGE_LOAD + 0x200);
    memory_read(ram, entry.rip, code, 2);
    assert_memory_equal(code, "\x0f\x0b", 2);
    memory_read(ram, zero_page(0x228, 4), line, 14);
    assert_string_equal(line, "console=ttyS0");
    assert_int_equal(zero_page(0x210, 1), 0xff);
    assert_int_equal(zero_page(0x214, 4), BZIMAGE_LOAD);
    assert_int_equal(zero_page(0x70, 8), BOOT_ACPI);
    assert_int_equal(zero_page(0x1ef, 1), 0); /* sentinel */
}

static void memory_map_has_ram_and_holes(void **state)
{
    struct boot_entry entry;
    assert_int_equal(load(image, sizeof image, -1, NULL, &entry), 0);
    uint64_t usable = 0, last = 0;
    for (unsigned i = 0; i < zero_page(0x1e8, 1); i++) {
        uint64_t base = zero_page(0x2d0 + 20 * i, 8), size = zero_page(0x2d8 + 20 * i, 8);
        assert_true(base >= last);
        last = base + size;
        if (zero_page(0x2e0 + 20 * i, 4) == 1) {
            usable += size;
            assert_true(memory_is_ram(ram, base, size));
        }
    }
    assert_int_equal(usable, 0x9fc00 + (63 << 20));
}

static void a_seed_is_passed(void **state)
{
    struct boot_entry entry;
    uint8_t first[32], second[32];
    assert_int_equal(load(image, sizeof image, -1, NULL, &entry), 0);
    uint64_t at = zero_page(0x250, 8);
    memory_read(ram, at + 16, first, 32);
    assert_int_equal(load(image, sizeof image, -1, NULL, &entry), 0);
    memory_read(ram, at + 16, second, 32);
    assert_memory_not_equal(first, second, 32);
}

static void the_initrd_goes_high_but_below_the_limit(void **state)
{
    struct boot_entry entry;
    static uint8_t content[10000];
    memset(content, 0xab, sizeof content);
    int fd = file_of(content, sizeof content);
    assert_int_equal(load(image, sizeof image, fd, NULL, &entry), 0);
    assert_int_equal(zero_page(0x218, 4), (64 << 20) - 12288);
    assert_int_equal(zero_page(0x21c, 4), sizeof content);
    poke(image, 0x22c, 0x1ffffff, 4); /* initrd_addr_max: below 32 MiB */
    assert_int_equal(load(image, sizeof image, fd, NULL, &entry), 0);
    assert_int_equal(zero_page(0x218, 4), (32 << 20) - 12288);
    uint8_t *there = memory_hva(ram, (32 << 20) - 12288, sizeof content);
    assert_memory_equal(there, content, sizeof content);
    poke(image, 0x22c, BZIMAGE_LOAD + 0x10000, 4); /* would overlap the kernel */
    expect_refused(load(image, sizeof image, fd, NULL, &entry), "initrd");
    close(fd);
}

static void several_initrds_are_one_behind_the_other(void **state)
{
    struct boot_entry entry;
    int kernel = file_of(image, sizeof image), first = file_of("12345", 5), second = file_of("abc", 3);
    const struct boot_source source = {
        .kernel_path = "KERNEL", .kernel_fd = kernel, .initrd_fds = {first, second}, .n_initrds = 2};
    char loaded[11];

    assert_int_equal(boot_load(ram, &source, &test_platform, &entry, error, sizeof error), 0);
    assert_int_equal(zero_page(0x21c, 4), sizeof loaded);
    memory_read(ram, zero_page(0x218, 4), loaded, sizeof loaded);
    assert_memory_equal(loaded, "12345\0\0\0abc", sizeof loaded);
    close(kernel);
    close(first);
    close(second);
}

static void an_initrd_larger_than_memory(void **state)
{
    struct boot_entry entry;
    int fd = memfd_create("big", MFD_CLOEXEC);
    assert_int_equal(ftruncate(fd, 1ll << 40), 0);
    expect_refused(load(image, sizeof image, fd, NULL, &entry), "does not fit");
    close(fd);
}

static void a_small_guest_gets_the_kernel_lower(void **state)
{
    struct boot_entry entry;
    memory_destroy(ram);
    assert_int_equal(memory_create(&ram, 8 << 20), 0);
    assert_int_equal(load(image, sizeof image, -1, NULL, &entry), 0);
    assert_int_equal(entry.rip, 0x200000 + 0x200);
    poke(image, 0x234, 0, 1); /* not relocatable */
    expect_refused(load(image, sizeof image, -1, NULL, &entry), "memory");
    poke(image, 0x234, 1, 1);
    poke(image, 0x260, 0xffffffff, 4); /* init_size */
    expect_refused(load(image, sizeof image, -1, NULL, &entry), "memory");
}

static void command_line_length(void **state)
{
    struct boot_entry entry;
    char line[300];
    memset(line, 'x', sizeof line);
    line[255] = 0;
    assert_int_equal(load(image, sizeof image, -1, line, &entry), 0);
    line[255] = 'x';
    line[256] = 0;
    expect_refused(load(image, sizeof image, -1, line, &entry), "command line");
    poke(image, 0x238, 0xffffffff, 4); /* "any length": still bounded by its place */
    static char huge[70000];
    memset(huge, 'x', sizeof huge - 1);
    expect_refused(load(image, sizeof image, -1, huge, &entry), "command line");
}

static void files_that_are_no_kernel(void **state)
{
    static const struct {
        unsigned at, bytes;
        uint64_t value;
        const char *why;
    } wrong[] = {
        {0x1fe, 2, 0, "neither"}, {0x202, 4, 0, "neither"}, {0x206, 2, 0x20b, "2.11"},
        {0x236, 2, 0, "64-bit"},  {0x211, 1, 0, "zImage"},  {0x1f1, 1, 255, "cut off"},
    };
    struct boot_entry entry;
    for (unsigned i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        make_bzimage(image, "", 0);
        poke(image, wrong[i].at, wrong[i].value, wrong[i].bytes);
        expect_refused(load(image, sizeof image, -1, NULL, &entry), wrong[i].why);
    }
    make_bzimage(image, "", 0);
    for (size_t len = 0; len <= BZIMAGE_SETUP + 0x200; len += 64)
        assert_true(load(image, len, -1, NULL, &entry) < 0);
}

static void headers_at_random(void **state)
{
    uint64_t seed = 1;
    struct boot_entry entry;
    for (unsigned i = 0; i < 3000; i++) {
        make_bzimage(image, "", 0);
        for (unsigned k = 0; k < 4; k++) {
            seed = seed * 6364136223846793005ull + 1442695040888963407ull;
            image[0x1f1 + (seed >> 33) % 0x80] = (uint8_t)(seed >> 56);
        }
        load(image, sizeof image, -1, "x", &entry);
    }
}

/* --- ELF with a PVH note ------------------------------------------------------------------------------- */

struct elf64 {
    Elf64_Ehdr header;
    Elf64_Phdr segments[2];
    struct {
        uint32_t name_size, desc_size, type;
        char name[4];
        uint64_t entry;
    } note;
    uint8_t code[64];
};

static struct elf64 elf(void)
{
    struct elf64 e = {
        .header = {.e_ident = {0x7f, 'E', 'L', 'F', ELFCLASS64, ELFDATA2LSB, 1},
                   .e_type = ET_EXEC,
                   .e_machine = EM_X86_64,
                   .e_phoff = offsetof(struct elf64, segments),
                   .e_phentsize = sizeof(Elf64_Phdr),
                   .e_phnum = 2},
        .segments = {{.p_type = PT_LOAD,
                      .p_offset = offsetof(struct elf64, code),
                      .p_paddr = 0x200000,
                      .p_filesz = 64,
                      .p_memsz = 4096},
                     {.p_type = PT_NOTE, .p_offset = offsetof(struct elf64, note), .p_filesz = 24, .p_align = 4}},
        .note = {4, 8, 18, "Xen", 0x200010},
    };
    memset(e.code, 0xcc, sizeof e.code);
    return e;
}

static void an_elf_with_a_pvh_note(void **state)
{
    struct boot_entry entry;
    struct elf64 e = elf();
    uint32_t info[12], fill = 0x55aa55aa;
    int fd = file_of("initrd", 6);
    memory_write(ram, 0x200000 + 64, &fill, 4);
    assert_int_equal(load(&e, sizeof e, fd, "a b", &entry), 0);
    assert_int_equal(entry.protocol, BOOT_PVH);
    assert_int_equal(entry.rip, 0x200010);
    memory_read(ram, entry.info, info, sizeof info);
    assert_int_equal(info[0], 0x336ec578);
    assert_int_equal(info[1], 1);
    assert_int_equal(info[3], 1);
    assert_int_equal(info[8], BOOT_ACPI);
    uint64_t module[2];
    memory_read(ram, info[4], module, sizeof module);
    assert_int_equal(module[0], (64 << 20) - 4096);
    assert_int_equal(module[1], 6);
    memory_read(ram, 0x200000 + 64, &fill, 4);
    assert_int_equal(fill, 0); /* the rest of the segment is cleared */
    close(fd);
}

static void elf_files_that_are_wrong(void **state)
{
    struct boot_entry entry;
    struct elf64 e = elf();
    e.note.type = 17;
    expect_refused(load(&e, sizeof e, -1, NULL, &entry), "PVH");
    e = elf();
    e.note.desc_size = 0xfffffff0;
    expect_refused(load(&e, sizeof e, -1, NULL, &entry), "PVH");
    e = elf();
    e.note.name_size = 0xffffffff;
    expect_refused(load(&e, sizeof e, -1, NULL, &entry), "PVH");
    e = elf();
    e.segments[0].p_paddr = ~0ull - 100;
    expect_refused(load(&e, sizeof e, -1, NULL, &entry), "memory at");
    e = elf();
    e.segments[0].p_memsz = 1ull << 63;
    expect_refused(load(&e, sizeof e, -1, NULL, &entry), "memory at");
    e = elf();
    e.segments[0].p_paddr = 0x8000; /* over our tables */
    expect_refused(load(&e, sizeof e, -1, NULL, &entry), "memory at");
    e = elf();
    e.segments[0].p_filesz = 8192;
    expect_refused(load(&e, sizeof e, -1, NULL, &entry), "damaged");
    e = elf();
    e.segments[0].p_offset = ~0ull - 10;
    expect_refused(load(&e, sizeof e, -1, NULL, &entry), "damaged");
    e = elf();
    e.header.e_phnum = 0xffff;
    expect_refused(load(&e, sizeof e, -1, NULL, &entry), "ELF");
    e = elf();
    e.header.e_machine = EM_AARCH64;
    expect_refused(load(&e, sizeof e, -1, NULL, &entry), "ELF");
    for (size_t len = 4; len < sizeof e; len += 8) {
        e = elf();
        assert_true(load(&e, len, -1, NULL, &entry) < 0);
    }
}

/* --- the processor --------------------------------------------------------------------------------------- */

static void long_mode_entry(void **state)
{
    static struct cpu cpu;
    const struct boot_entry entry = {BOOT_LINUX64, 0x1000200, BOOT_ZERO_PAGE};
    struct translation t;
    memset(&cpu, 0, sizeof cpu);
    cpu.memory = ram;
    boot_set_cpu(&entry, &cpu);
    assert_int_equal(cpu.rip, 0x1000200);
    assert_int_equal(cpu.gpr[RSI], BOOT_ZERO_PAGE);
    assert_true(cpu_64bit(&cpu));
    assert_int_equal(cpu.rflags & FL_IF, 0);
    assert_int_equal(cpu.seg[CS].selector, 0x10);
    assert_int_equal(cpu.seg[DS].selector, 0x18);
    for (uint64_t gva = 0x1234; gva < 1ull << 32; gva += 0x12345678) {
        assert_true(cpu_walk_probe(&cpu, gva, &t));
        assert_int_equal(t.gpa, gva);
        assert_true(t.writable);
    }
    assert_false(cpu_walk_probe(&cpu, 1ull << 32, &t));
}

static void protected_mode_entry(void **state)
{
    static struct cpu cpu;
    const struct boot_entry entry = {BOOT_PVH, 0x200010, BOOT_START_INFO};
    memset(&cpu, 0, sizeof cpu);
    cpu.memory = ram;
    boot_set_cpu(&entry, &cpu);
    assert_int_equal(cpu.gpr[RBX], BOOT_START_INFO);
    assert_int_equal(cpu.cr0 & (CR0_PE | CR0_PG), CR0_PE);
    assert_int_equal(cpu.efer, 0);
    assert_true(cpu.seg[CS].attr & SEG_DB);
    assert_int_equal(cpu.seg[SS].limit, 0xffffffff);
}

#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
int main(void)
{
    const struct CMUnitTest tests[] = {
        T(a_bzimage_is_placed),
        T(memory_map_has_ram_and_holes),
        T(a_seed_is_passed),
        T(the_initrd_goes_high_but_below_the_limit),
        T(several_initrds_are_one_behind_the_other),
        T(an_initrd_larger_than_memory),
        T(a_small_guest_gets_the_kernel_lower),
        T(command_line_length),
        T(files_that_are_no_kernel),
        T(headers_at_random),
        T(an_elf_with_a_pvh_note),
        T(elf_files_that_are_wrong),
        T(long_mode_entry),
        T(protected_mode_entry),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
