/* The initramfs writer: what cpio(1) and the kernel must be able to read. */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "agent/cpio.h"

static char bytes[1 << 20];

static size_t content(int fd)
{
    ssize_t n = pread(fd, bytes, sizeof(bytes), 0);

    assert_true(n >= 0);
    return (size_t)n;
}

static uint32_t field(const char *header, unsigned i)
{
    char digits[9] = {0};

    memcpy(digits, header + 6 + i * 8, 8);
    return (uint32_t)strtoul(digits, NULL, 16);
}

enum { MODE = 1, UID = 2, NLINK = 4, MTIME = 5, SIZE = 6, RMAJOR = 9, RMINOR = 10, NAMESIZE = 11 };

static void entries_have_the_kernels_layout(void **state)
{
    struct cpio c;
    int fd = memfd_create("cpio", 0);

    cpio_begin(&c, fd);
    cpio_directory(&c, "dev", 0755);
    cpio_node(&c, "dev/console", S_IFCHR | 0600, 5, 1);
    cpio_file(&c, "guise-config", 0600, "abcde", 5);
    cpio_symlink(&c, "sh", "bin/sh");
    assert_int_equal(cpio_end(&c), 0);
    size_t len = content(fd);
    assert_int_equal(len % 512, 0);

    static const struct {
        const char *name;
        uint32_t mode, size, links, major, minor;
        const char *content;
    } want[] = {
        {"dev", S_IFDIR | 0755, 0, 2, 0, 0, ""},
        {"dev/console", S_IFCHR | 0600, 0, 1, 5, 1, ""},
        {"guise-config", S_IFREG | 0600, 5, 1, 0, 0, "abcde"},
        {"sh", S_IFLNK | 0777, 6, 1, 0, 0, "bin/sh"},
        {"TRAILER!!!", 0, 0, 1, 0, 0, ""},
    };
    size_t at = 0;
    for (size_t i = 0; i < sizeof(want) / sizeof(want[0]); i++) {
        assert_true(at + 110 < len);
        const char *h = bytes + at;
        assert_memory_equal(h, "070701", 6);
        assert_int_equal(field(h, MODE), want[i].mode);
        assert_int_equal(field(h, UID), 0);
        assert_int_equal(field(h, MTIME), 0);
        assert_int_equal(field(h, SIZE), want[i].size);
        assert_int_equal(field(h, NLINK), want[i].links);
        assert_int_equal(field(h, RMAJOR), want[i].major);
        assert_int_equal(field(h, RMINOR), want[i].minor);
        assert_int_equal(field(h, NAMESIZE), strlen(want[i].name) + 1);
        assert_string_equal(h + 110, want[i].name);
        at = (at + 110 + field(h, NAMESIZE) + 3) & ~3ul;
        assert_memory_equal(bytes + at, want[i].content, want[i].size);
        at = (at + want[i].size + 3) & ~3ul;
    }
    for (; at < len; at++)
        assert_int_equal(bytes[at], 0);
    close(fd);
}

static void a_large_file_is_copied_whole(void **state)
{
    struct cpio c;
    int fd = memfd_create("cpio", 0), from = memfd_create("from", 0);
    char *pattern = malloc(100001);

    for (unsigned i = 0; i < 100001; i++)
        pattern[i] = (char)(i * 7 + i / 256);
    assert_int_equal(write(from, pattern, 100001), 100001);
    cpio_begin(&c, fd);
    cpio_file_from(&c, "big", 0644, from); /* whatever the position */
    assert_int_equal(cpio_end(&c), 0);
    content(fd);
    assert_int_equal(field(bytes, SIZE), 100001);
    assert_memory_equal(bytes + 116, pattern, 100001);
    assert_memory_equal(bytes + 116 + 100004, "070701", 6);
    free(pattern);
    close(fd);
    close(from);
}

static void the_same_content_gives_the_same_bytes(void **state)
{
    size_t len[2];
    char *first = NULL;

    for (int i = 0; i < 2; i++) {
        struct cpio c;
        int fd = memfd_create("cpio", 0);
        cpio_begin(&c, fd);
        cpio_directory(&c, "a", 0755);
        cpio_file(&c, "a/b", 0644, "x", 1);
        assert_int_equal(cpio_end(&c), 0);
        len[i] = content(fd);
        if (!first)
            first = memcpy(malloc(len[0]), bytes, len[0]);
        close(fd);
    }
    assert_int_equal(len[0], len[1]);
    assert_memory_equal(first, bytes, len[0]);
    free(first);
}

static void failures_are_kept(void **state)
{
    struct cpio c;
    int full = open("/dev/full", O_WRONLY);

    cpio_begin(&c, full);
    cpio_file(&c, "a", 0644, bytes, sizeof(bytes));
    cpio_file(&c, "b", 0644, "", 0);
    assert_int_equal(cpio_end(&c), -ENOSPC);
    close(full);

    int fd = memfd_create("cpio", 0), huge = memfd_create("huge", 0);
    assert_int_equal(ftruncate(huge, 1ll << 32), 0);
    cpio_begin(&c, fd);
    cpio_file_from(&c, "huge", 0644, huge);
    assert_int_equal(cpio_end(&c), -EFBIG);

    cpio_begin(&c, fd);
    cpio_directory(&c, "/absolute", 0755);
    assert_int_equal(cpio_end(&c), -EINVAL);
    close(fd);
    close(huge);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(entries_have_the_kernels_layout),
        cmocka_unit_test(a_large_file_is_copied_whole),
        cmocka_unit_test(the_same_content_gives_the_same_bytes),
        cmocka_unit_test(failures_are_kept),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
