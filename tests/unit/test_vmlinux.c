/*
 * The kernel proper out of a bzImage: each way of packing, segments at their places, relocations, KASLR and what is
 * against it; and whatever is not as it should be is left to the kernel's own code.
 */
#include <elf.h>
#include <lz4.h>
#include <lzma.h>
#include <zlib.h>
#include <zstd.h>

#include "base/bytes.h"
#include "boot/boot_int.h"
#include "boot_fixture.h"

#define RAM (256u << 20)
#define PREFERRED 0x1000000u
#define HEADER (2u << 20)   /* of the ELF file */
#define TEXT 0x300000u      /* bytes of the first segment */
#define DATA_AT 0x800000u   /* of the second one, from the first */
#define DATA_FILE 0xc00000u /* where it is in the file: not as far from the first one as in memory */
#define DATA 0x2000u
#define SPAN 0x1000000u
#define FILE_MAX (16u << 20)
#define START_MAP 0xffffffff80000000ull

static uint8_t kernel[FILE_MAX]; /* the ELF file and relocations */
static size_t kernel_size;
static uint8_t packed[BZIMAGE_SIZE + FILE_MAX + (1u << 20)];
static struct memory *ram;
static char error[256];

/* Where fields are that relocations are of, from the beginning. */
enum { FIELD32 = 0x100, FIELD_INVERSE = 0x200, FIELD64 = DATA_AT + 0x10 };

static void put_kernel(bool inverse)
{
    const Elf64_Ehdr h = {.e_ident = {0x7f, 'E', 'L', 'F', ELFCLASS64, ELFDATA2LSB, EV_CURRENT},
                          .e_type = ET_EXEC,
                          .e_machine = EM_X86_64,
                          .e_entry = PREFERRED + 0x40,
                          .e_phoff = sizeof h,
                          .e_shoff = DATA_FILE + DATA,
                          .e_phentsize = sizeof(Elf64_Phdr),
                          .e_phnum = 2,
                          .e_shentsize = sizeof(Elf64_Shdr),
                          .e_shnum = 1};
    const Elf64_Phdr ph[2] = {
        {.p_type = PT_LOAD, .p_offset = HEADER, .p_paddr = PREFERRED, .p_filesz = TEXT, .p_memsz = TEXT},
        {.p_type = PT_LOAD,
         .p_offset = DATA_FILE,
         .p_paddr = PREFERRED + DATA_AT,
         .p_filesz = DATA,
         .p_memsz = DATA * 2}};
    uint32_t table[8], n = 0;

    memset(kernel, 0, sizeof kernel);
    memcpy(kernel, &h, sizeof h);
    memcpy(kernel + sizeof h, ph, sizeof ph);
    for (unsigned i = 0; i < TEXT; i++)
        kernel[HEADER + i] = (uint8_t)(i * 2654435761u >> 24);
    memset(kernel + DATA_FILE, 0xda, DATA);
    le32_put(kernel + HEADER + FIELD32, 0x81234567);
    le32_put(kernel + HEADER + FIELD_INVERSE, 0x1000);
    le64_put(kernel + DATA_FILE + FIELD64 - DATA_AT, 0xffffffff81234567);
    const uint32_t base = (uint32_t)(START_MAP + PREFERRED);
    table[n++] = 0;
    table[n++] = base + FIELD64;
    table[n++] = 0;
    if (inverse) {
        table[n++] = base + FIELD_INVERSE;
        table[n++] = 0;
    }
    table[n++] = base + FIELD32;
    kernel_size = DATA_FILE + DATA + sizeof(Elf64_Shdr);
    memcpy(kernel + kernel_size, table, n * 4);
    kernel_size += n * 4;
}

/* --- ways of packing -------------------------------------------------------------------------------------------- */

static size_t pack_gzip(uint8_t *to, size_t room)
{
    z_stream z = {.next_in = kernel, .avail_in = (uInt)kernel_size, .next_out = to, .avail_out = (uInt)room};

    assert_int_equal(deflateInit2(&z, 1, Z_DEFLATED, 31, 8, Z_DEFAULT_STRATEGY), Z_OK);
    assert_int_equal(deflate(&z, Z_FINISH), Z_STREAM_END);
    deflateEnd(&z);
    return z.total_out - 4; /* the size is its own trailer's */
}

static size_t pack_xz(uint8_t *to, size_t room)
{
    size_t n = 0;

    assert_int_equal(lzma_easy_buffer_encode(0, LZMA_CHECK_CRC32, NULL, kernel, kernel_size, to, &n, room), LZMA_OK);
    return n;
}

static size_t pack_zstd(uint8_t *to, size_t room)
{
    return ZSTD_compress(to, room, kernel, kernel_size, 1);
}

static size_t pack_lz4(uint8_t *to, size_t room)
{
    const size_t block = 8u << 20;
    size_t n = 4;

    le32_put(to, 0x184c2102);
    for (size_t at = 0; at < kernel_size; at += block) {
        size_t len = kernel_size - at < block ? kernel_size - at : block;
        int size = LZ4_compress_default((char *)kernel + at, (char *)to + n + 4, (int)len, (int)(room - n - 4));
        assert_true(size > 0);
        le32_put(to + n, (uint32_t)size);
        n += 4 + (size_t)size;
    }
    return n;
}

/* A bzImage of it; returns its size. */
static size_t make(size_t (*pack)(uint8_t *to, size_t room))
{
    make_bzimage(packed, "\x0f\x0b", 2);
    uint8_t *payload = packed + BZIMAGE_SIZE;
    size_t n = pack(payload, sizeof packed - BZIMAGE_SIZE - 4);
    le32_put(payload + n, (uint32_t)kernel_size);
    poke(packed, 0x248, BZIMAGE_KERNEL, 4);
    poke(packed, 0x24c, n + 4, 4);
    poke(packed, 0x260, SPAN, 4);
    return BZIMAGE_SIZE + n + 4;
}

static struct boot_entry load(size_t size, const char *append)
{
    int fd = file_of(packed, size);
    const struct boot_source source = {.kernel_path = "KERNEL", .kernel_fd = fd, .append = append};
    struct boot_entry entry;

    assert_int_equal(boot_load(ram, &source, &test_platform, &entry, error, sizeof error), 0);
    assert_int_equal(entry.protocol, BOOT_LINUX64);
    close(fd);
    return entry;
}

static uint8_t load_flags(void)
{
    uint8_t flags;

    memory_read(ram, BOOT_ZERO_PAGE + 0x211, &flags, 1);
    return flags;
}

static int setup(void **state)
{
    put_kernel(true);
    return memory_create(&ram, RAM);
}

static int teardown(void **state)
{
    memory_destroy(ram);
    return 0;
}

/* It is at `at`, whole, moved virtually by *by, which is found. */
static void expect_kernel(uint64_t at, bool inverse, uint64_t *by)
{
    const uint8_t *image = memory_hva(ram, at, SPAN);

    assert_non_null(image);
    *by = (uint64_t)le32_at(image + FIELD32) - 0x81234567;
    assert_int_equal(le64_at(image + FIELD64), 0xffffffff81234567 + *by);
    assert_int_equal(le32_at(image + FIELD_INVERSE), (uint32_t)(0x1000 - (inverse ? *by : 0)));
    for (unsigned i = FIELD_INVERSE + 4; i < TEXT; i++)
        if (image[i] != kernel[HEADER + i])
            fail_msg("byte %u of the text", i);
    for (unsigned i = FIELD64 + 8; i < DATA_AT + DATA; i++)
        assert_int_equal(image[i], 0xda);
}

static void each_way_of_packing(void **state)
{
    size_t (*const ways[])(uint8_t *, size_t) = {pack_gzip, pack_xz, pack_zstd, pack_lz4};

    for (unsigned i = 0; i < sizeof ways / sizeof *ways; i++) {
        uint64_t by;
        struct boot_entry entry = load(make(ways[i]), "quiet nokaslr");
        assert_int_equal(entry.rip, PREFERRED + 0x40);
        expect_kernel(PREFERRED, true, &by);
        assert_int_equal(by, 0);
        assert_false(load_flags() & 2);
        memory_destroy(ram); /* what one has unpacked the next must not find */
        assert_int_equal(memory_create(&ram, RAM), 0);
    }
}

static void addresses_are_random(void **state)
{
    const size_t size = make(pack_lz4);
    uint64_t by[6], at[6];
    bool differ = false, differ_physically = false;

    for (unsigned i = 0; i < 6; i++) {
        at[i] = load(size, NULL).rip - 0x40;
        assert_int_equal(at[i] % 0x200000, 0);
        assert_true(at[i] >= PREFERRED && at[i] + SPAN <= RAM);
        expect_kernel(at[i], true, &by[i]);
        assert_int_equal(by[i] % 0x200000, 0);
        assert_true(PREFERRED + by[i] + SPAN <= 1u << 30);
        assert_true(load_flags() & 2);
        differ |= by[i] != by[0];
        differ_physically |= at[i] != at[0];
    }
    assert_true(differ); /* but for one time in 10^13 */
    assert_true(differ_physically);
}

static void relocations_of_newer_kernels(void **state)
{
    uint64_t by;

    put_kernel(false);
    struct boot_entry entry = load(make(pack_lz4), NULL);
    expect_kernel(entry.rip - 0x40, false, &by);
}

static void a_kernel_that_cannot_be_moved(void **state)
{
    uint64_t by;

    kernel_size = DATA_FILE + DATA + sizeof(Elf64_Shdr);
    const size_t size = make(pack_lz4);
    poke(packed, 0x234, 0, 1);
    for (unsigned i = 0; i < 4; i++) {
        assert_int_equal(load(size, NULL).rip, PREFERRED + 0x40);
        expect_kernel(PREFERRED, false, &by);
        assert_int_equal(by, 0);
        assert_false(load_flags() & 2);
    }
}

static void memory_that_the_user_has_divided(void **state)
{
    const size_t size = make(pack_lz4);

    for (unsigned i = 0; i < 6; i++)
        assert_int_equal(load(size, i & 1 ? "mem=128M" : "quiet memmap=1M$64M").rip, PREFERRED + 0x40);
    assert_true(load_flags() & 2); /* virtually it is somewhere else nevertheless */
}

/* Its own code then does what it does: it is where it was before there was this. */
static void expect_left(size_t size)
{
    uint8_t code[2];
    struct boot_entry entry = load(size, NULL);

    assert_int_equal(entry.rip, PREFERRED + 0x200);
    memory_read(ram, entry.rip, code, 2);
    assert_memory_equal(code, "\x0f\x0b", 2);
    assert_false(load_flags() & 2);
}

static void what_is_damaged_is_left_to_the_kernel(void **state)
{
    size_t (*const ways[])(uint8_t *, size_t) = {pack_gzip, pack_xz, pack_zstd, pack_lz4};

    for (unsigned i = 0; i < sizeof ways / sizeof *ways; i++) {
        size_t size = make(ways[i]);
        memset(packed + BZIMAGE_SIZE + (size - BZIMAGE_SIZE) / 2, 0x55, 64);
        expect_left(size);
    }
    size_t size = make(pack_zstd);
    packed[BZIMAGE_SIZE] ^= 1; /* a way that nobody knows */
    expect_left(size);
    size = make(pack_zstd);
    poke(packed, 0x24c, size, 4); /* it is said to be longer than the file */
    expect_left(size);
    size = make(pack_zstd);
    poke(packed, 0x260, 0x100000, 4); /* and to need less than it is */
    expect_left(size);
}

static void elf_files_that_are_wrong(void **state)
{
    static const struct {
        unsigned at, bytes;
        uint64_t value;
    } wrong[] = {
        {0, 1, 0},                                   /* magic */
        {18, 2, EM_386},                             /* machine */
        {24, 8, PREFERRED - 1},                      /* entry */
        {24, 8, PREFERRED + SPAN},                   /* entry */
        {32, 8, UINT64_MAX},                         /* program headers */
        {40, 8, UINT64_MAX},                         /* section headers */
        {56, 2, 1000},                               /* how many */
        {64 + 24, 8, PREFERRED - 0x1000},            /* first segment: address */
        {64 + 40, 8, SPAN + 1},                      /* its size */
        {64 + 32, 8, FILE_MAX},                      /* its size in the file */
        {64 + 56 + 8, 8, HEADER},                    /* second one: where it is, so that it would move up */
        {64 + 56 + 24, 8, UINT64_MAX - 0x1000},      /* its address */
        {DATA_FILE + DATA + 64 + 4, 4, 0x80000000u}, /* a relocation below the kernel */
        {DATA_FILE + DATA + 64 + 4, 4, 0xbfffffffu}, /* and above it */
        {DATA_FILE + DATA + 64 + 4, 4, 0},           /* one list too many */
        {DATA_FILE + DATA + 64, 4, 1},               /* no beginning */
    };

    for (unsigned i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        put_kernel(true);
        poke(kernel, wrong[i].at, wrong[i].value, wrong[i].bytes);
        expect_left(make(pack_lz4));
    }
}

static void little_memory(void **state)
{
    memory_destroy(ram);
    assert_int_equal(memory_create(&ram, PREFERRED + SPAN), 0);
    for (unsigned i = 0; i < 3; i++)
        assert_int_equal(load(make(pack_lz4), NULL).rip, PREFERRED + 0x40); /* there is one place */
}

#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        T(each_way_of_packing),
        T(addresses_are_random),
        T(relocations_of_newer_kernels),
        T(a_kernel_that_cannot_be_moved),
        T(memory_that_the_user_has_divided),
        T(what_is_damaged_is_left_to_the_kernel),
        T(elf_files_that_are_wrong),
        T(little_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
