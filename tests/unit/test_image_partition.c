/* Partition tables and signatures: what Linux would see, and nothing outside the disk, whatever the numbers say. */
#include "image_fixture.h"

#include <endian.h>
#include <zlib.h>

#include "image/import.h"
#include "image/inspect.h"
#include "image/partition.h"

#define DISK (64u << 20)

static struct partition p[PARTITIONS_MAX];
static int fd;
static char disk[128];

static int disk_setup(void **state)
{
    int failed = store_setup(state);

    snprintf(disk, sizeof disk, "%s/disk", top);
    fd = open(disk, O_RDWR | O_CREAT | O_TRUNC, 0600);
    return failed || fd < 0 || ftruncate(fd, DISK);
}

static int disk_teardown(void **state)
{
    close(fd);
    return store_teardown(state);
}

static void at(uint64_t offset, const void *data, size_t len)
{
    assert_int_equal(pwrite(fd, data, len, (off_t)offset), (ssize_t)len);
}

static int read_table(void)
{
    return partitions_read(fd, DISK, p);
}

/* ---- MBR ---- */

static void mbr_entry(unsigned sector, unsigned i, unsigned char type, uint32_t first, uint32_t count)
{
    unsigned char e[16] = {0};
    uint32_t numbers[2] = {htole32(first), htole32(count)};

    e[4] = type;
    memcpy(e + 8, numbers, sizeof numbers);
    at(sector * 512ull + 446 + 16 * i, e, sizeof e);
    at(sector * 512ull + 510, "\x55\xaa", 2);
}

static void primary_partitions_are_numbered_by_their_place(void **state)
{
    mbr_entry(0, 1, 0x83, 2048, 100);
    mbr_entry(0, 3, 0x83, 4096, 200);
    assert_int_equal(read_table(), 2);
    assert_int_equal(p[0].number, 2);
    assert_int_equal(p[1].number, 4);
    assert_int_equal(p[1].start, 4096 * 512);
    assert_int_equal(p[1].bytes, 200 * 512);
}

static void logical_partitions_begin_at_5(void **state)
{
    mbr_entry(0, 0, 0x83, 100, 100);
    mbr_entry(0, 1, 0x05, 1000, 10000);
    mbr_entry(1000, 0, 0x83, 10, 50);
    mbr_entry(1000, 1, 0x05, 500, 100);
    mbr_entry(1500, 0, 0x83, 20, 60);
    assert_int_equal(read_table(), 3);
    assert_int_equal(p[1].number, 5);
    assert_int_equal(p[1].start, 1010 * 512);
    assert_int_equal(p[2].number, 6);
    assert_int_equal(p[2].start, 1520 * 512);
}

static void a_chain_that_goes_round_ends(void **state)
{
    mbr_entry(0, 0, 0x05, 1000, 10000);
    mbr_entry(1000, 0, 0x83, 10, 50);
    mbr_entry(1000, 1, 0x05, 500, 100);
    mbr_entry(1500, 0, 0x83, 10, 50);
    mbr_entry(1500, 1, 0x05, 500, 100); /* itself */
    assert_true(read_table() <= 61);
}

static void what_lies_outside_the_disk_is_left_out(void **state)
{
    mbr_entry(0, 0, 0x83, DISK / 512 - 1, 2);
    mbr_entry(0, 1, 0x83, 0xffffffff, 0xffffffff);
    mbr_entry(0, 2, 0x83, 0, 100);
    mbr_entry(0, 3, 0x83, DISK / 512 - 1, 1);
    assert_int_equal(read_table(), 1);
    assert_int_equal(p[0].number, 4);
    mbr_entry(0, 3, 0x05, 0xfffffff0, 0xffffffff);
    assert_int_equal(read_table(), 0);
}

static void a_boot_sector_of_a_file_system_is_no_table(void **state)
{
    mbr_entry(0, 0, 0x83, 100, 100);
    at(446, "X", 1);
    assert_int_equal(read_table(), 0);
}

/* ---- GPT ---- */

struct gpt {
    uint64_t entries_at;
    uint32_t header_size, count, size;
};

static void put32(unsigned char *to, uint32_t value)
{
    value = htole32(value);
    memcpy(to, &value, sizeof value);
}

static void put64(unsigned char *to, uint64_t value)
{
    value = htole64(value);
    memcpy(to, &value, sizeof value);
}

/* The entries lie in the disk already; the sums are right. */
static void gpt_header(struct gpt g)
{
    unsigned char h[512] = "EFI PART", *entries;
    size_t bytes = (size_t)g.count * g.size;

    mbr_entry(0, 0, 0xee, 1, DISK / 512 - 1);
    put32(h + 8, 0x10000);
    put32(h + 12, g.header_size);
    put64(h + 72, g.entries_at);
    put32(h + 80, g.count);
    put32(h + 84, g.size);
    if (bytes < 8u << 20 && g.entries_at < DISK && (entries = calloc(1, bytes + 1))) {
        assert_true(pread(fd, entries, bytes, (off_t)(g.entries_at * 512)) >= 0);
        put32(h + 88, (uint32_t)crc32(0, entries, (uInt)bytes));
        free(entries);
    }
    put32(h + 16, (uint32_t)crc32(0, h, g.header_size < 512 ? g.header_size : 512));
    at(512, h, sizeof h);
}

static void gpt_entry(unsigned i, uint64_t first, uint64_t last)
{
    unsigned char e[128] = "some type of it";

    put64(e + 32, first);
    put64(e + 40, last);
    at(1024 + 128ull * i, e, sizeof e);
}

static const struct gpt usual = {.entries_at = 2, .header_size = 92, .count = 128, .size = 128};

static void entries_of_a_gpt_are_numbered_by_their_place(void **state)
{
    gpt_entry(1, 2048, 4095);
    gpt_entry(127, 8192, 8192);
    gpt_header(usual);
    assert_int_equal(read_table(), 2);
    assert_int_equal(p[0].number, 2);
    assert_int_equal(p[0].bytes, 2048 * 512);
    assert_int_equal(p[1].number, 128);
    assert_int_equal(p[1].bytes, 512);
}

static void entries_that_wrap_are_left_out(void **state)
{
    gpt_entry(0, 100, 50);
    gpt_entry(1, 1, UINT64_MAX);
    gpt_entry(2, UINT64_MAX, UINT64_MAX);
    gpt_entry(3, 0, UINT64_MAX);
    gpt_entry(4, 1ull << 55, (1ull << 55) + 1);
    gpt_entry(5, DISK / 512 - 1, DISK / 512);
    gpt_header(usual);
    assert_int_equal(read_table(), 0);
}

static void headers_that_make_no_sense_are_no_table(void **state)
{
    static const struct gpt wrong[] = {
        {.entries_at = 2, .header_size = 91, .count = 128, .size = 128},
        {.entries_at = 2, .header_size = 513, .count = 128, .size = 128},
        {.entries_at = 2, .header_size = 92, .count = 0xffffffff, .size = 128},
        {.entries_at = 2, .header_size = 92, .count = 128, .size = 64},
        {.entries_at = 2, .header_size = 92, .count = 1024, .size = 0xffffff80},
        {.entries_at = UINT64_MAX, .header_size = 92, .count = 128, .size = 128},
        {.entries_at = DISK / 512 - 1, .header_size = 92, .count = 128, .size = 128},
    };

    gpt_entry(0, 2048, 4095);
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        gpt_header(wrong[i]);
        assert_int_equal(read_table(), 0);
    }
    gpt_header(usual);
    assert_int_equal(read_table(), 1);
    at(1024 + 40, "\x01", 1); /* the sum of the entries is another now */
    assert_int_equal(read_table(), 0);
}

/* ---- file systems ---- */

static const char *type_at_0(uint64_t bytes)
{
    static char type[16];
    partition_probe(fd, 0, bytes, type);
    return type;
}

static void signatures_are_known(void **state)
{
    at(0x10040, "_BHRfS_M", 8);
    assert_string_equal(type_at_0(DISK), "btrfs");
    assert_string_equal(type_at_0(0x10040), ""); /* what is read must lie inside */
    at(0, "XFSB", 4);
    assert_string_equal(type_at_0(DISK), "xfs");
    at(1024 + 0x38, "\x53\xef", 2);
    assert_string_equal(type_at_0(DISK), "ext2");
    at(1024 + 0x5c, "\x04", 1);
    assert_string_equal(type_at_0(DISK), "ext3");
    at(1024 + 0x60, "\x42", 1);
    assert_string_equal(type_at_0(DISK), "ext4");
    assert_int_equal(read_table(), 1);
    assert_int_equal(p[0].number, 0);
    assert_int_equal(p[0].bytes, DISK);
}

/* ---- what a file is ---- */

static int detect(enum source_kind *kind, const char **format)
{
    return detect_source(disk, kind, format, err, sizeof err);
}

static void disks_that_need_other_files_are_refused(void **state)
{
    enum source_kind kind;
    const char *format;
    unsigned char head[80] = "QFI\xfb\0\0\0\3";

    at(0, head, sizeof head);
    assert_int_equal(detect(&kind, &format), 0);
    assert_int_equal(kind, SOURCE_FOREIGN);
    assert_string_equal(format, "qcow2");
    at(15, "\x70", 1); /* a backing file's name */
    assert_int_equal(detect(&kind, &format), -EINVAL);
    assert_non_null(strstr(err, "backing file"));
    at(15, "\0", 1);
    at(79, "\x04", 1); /* a data file */
    assert_int_equal(detect(&kind, &format), -EINVAL);
    at(4, "\0\0\0\x09", 4);
    assert_int_equal(detect(&kind, &format), -EINVAL);

    at(0, "KDMV\1\0\0\0\3\0\0\0\0\0\0\0\0\0\0\0", 20); /* without a capacity it is a list of others */
    assert_int_equal(detect(&kind, &format), -EINVAL);
    at(12, "\0\1", 2);
    at(28, "\1\0\0\0\0\0\0\0\1\0\0\0\0\0\0\0", 16);
    at(512, "parentCID=ffffffff\n", 19);
    assert_int_equal(detect(&kind, &format), 0);
    assert_string_equal(format, "vmdk");
    at(512, "parentCID=12345678\n", 19);
    assert_int_equal(detect(&kind, &format), -EINVAL);
    at(512, "parentCID=ffffffff\nparentFileNameHint=\"/etc/shadow\"\n", 53);
    assert_int_equal(detect(&kind, &format), -EINVAL);
    at(28, "\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0", 16); /* the header says that there is none */
    assert_int_equal(detect(&kind, &format), -EINVAL);
    at(0, "# Disk DescriptorFile\nRW 1 FLAT \"/etc/shadow\" 0\n", 48);
    assert_int_equal(detect(&kind, &format), -EINVAL);
}

static void kernels_are_recognized(void **state)
{
    static unsigned char image[8192];
    char release[128];
    bool long_mode;

    assert_int_equal(bzimage_release(image, sizeof image, release, &long_mode), -EINVAL);
    memcpy(image + 0x1fe, "\x55\xaa", 2);
    memcpy(image + 0x202, "HdrS", 4);
    image[0x236] = 1;
    image[0x20f] = 0x10; /* 0x1000 + 0x200 */
    memcpy(image + 0x1200, "6.1.0-x (gcc) #1", 16);
    assert_int_equal(bzimage_release(image, sizeof image, release, &long_mode), 0);
    assert_string_equal(release, "6.1.0-x");
    assert_true(long_mode);
    assert_int_equal(bzimage_release(image, 0x1203, release, &long_mode), 0);
    assert_string_equal(release, "6.1");
    assert_int_equal(bzimage_release(image, 0x1000, release, &long_mode), 0);
    assert_string_equal(release, "");
    memcpy(image + 0x1200, "../../etc", 9);
    assert_int_equal(bzimage_release(image, sizeof image, release, &long_mode), -EINVAL);
    memset(image + 0x1200, 'x', 3000);
    assert_int_equal(bzimage_release(image, sizeof image, release, &long_mode), 0);
    assert_int_equal(strlen(release), 127);
}

static void os_release_is_read_as_a_shell_would(void **state)
{
    static const char text[] =
        "ID=debian\nVERSION_ID=\"12\"\nNAME='a \"b\"'\nESC=\"a \\\"b\\\"\"\nXID=no\nPRETTY_NAME=\"cut";
    char out[16];

    os_release_value(text, "ID", out, sizeof out);
    assert_string_equal(out, "debian");
    os_release_value(text, "VERSION_ID", out, sizeof out);
    assert_string_equal(out, "12");
    os_release_value(text, "NAME", out, sizeof out);
    assert_string_equal(out, "a \"b\"");
    os_release_value(text, "ESC", out, sizeof out);
    assert_string_equal(out, "a \"b\"");
    os_release_value(text, "PRETTY_NAME", out, sizeof out);
    assert_string_equal(out, "cut");
    os_release_value(text, "NONE", out, sizeof out);
    assert_string_equal(out, "");
    os_release_value(text, "ID", out, 4);
    assert_string_equal(out, "deb");
}

#define T(name) cmocka_unit_test_setup_teardown(name, disk_setup, disk_teardown)
int main(void)
{
    const struct CMUnitTest tests[] = {
        T(primary_partitions_are_numbered_by_their_place),
        T(logical_partitions_begin_at_5),
        T(a_chain_that_goes_round_ends),
        T(what_lies_outside_the_disk_is_left_out),
        T(a_boot_sector_of_a_file_system_is_no_table),
        T(entries_of_a_gpt_are_numbered_by_their_place),
        T(entries_that_wrap_are_left_out),
        T(headers_that_make_no_sense_are_no_table),
        T(signatures_are_known),
        T(disks_that_need_other_files_are_refused),
        T(kernels_are_recognized),
        T(os_release_is_read_as_a_shell_would),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
