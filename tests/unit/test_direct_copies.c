/* Which instructions of a page of code are left to a copy of it (engine/soft/direct_copies.c), and how those are found
 * that may be such (direct_scan.c). */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>
#include <cmocka.h>

#include "engine/soft/direct.h"

static uint8_t page[4096 + 16];

/* Puts bytes at `at` and asks about the one 0x0f in them. */
static bool asks(unsigned at, const char *bytes, size_t n)
{
    memset(page, 0x90, sizeof page);
    memcpy(page + at, bytes, n);
    return copies_can(page, memchr(page + at, 0x0f, n));
}
#define ASKS(at, bytes) asks(at, bytes, sizeof bytes - 1)

static void getcpu_of_the_vdso(void **state)
{
    assert_true(ASKS(100, "\xb8\x7b\0\0\0\xf3\x0f\xc7\xf8")); /* mov eax, 0x7b; rdpid rax */
    assert_true(ASKS(100, "\xba\x7b\0\0\0\x0f\x03\xc2"));     /* mov edx, 0x7b; lsl eax, edx */
    assert_true(ASKS(100, "\xb8\x7b\0\0\0\x0f\x03\xc0\x90")); /* mov eax, 0x7b; lsl eax, eax */
    assert_true(ASKS(0, "\xb8\x7b\0\0\0\xf3\x0f\xc7\xf8"));
    assert_true(ASKS(4087, "\xb8\x7b\0\0\0\xf3\x0f\xc7\xf8"));
}

static void rdpid_that_nobody_executes(void **state)
{
    memset(page, 0x90, sizeof page);
    memcpy(page + 200, "\x0f\x01\xf9\xf3\x0f\xc7\xf8", 7); /* rdtscp; rdpid rax */
    assert_true(copies_can(page, page + 204));
    assert_false(copies_can(page, page + 200));
}

static void others_are_not_touched(void **state)
{
    assert_false(ASKS(100, "\xb8\x7c\0\0\0\xf3\x0f\xc7\xf8")); /* another selector */
    assert_false(ASKS(100, "\xb8\x7b\0\0\1\xf3\x0f\xc7\xf8"));
    assert_false(ASKS(100, "\x90\x90\x90\x90\x90\xf3\x0f\xc7\xf8"));
    assert_false(ASKS(100, "\xb8\x7b\0\0\0\x90\x0f\xc7\xf8")); /* rdseed */
    assert_false(ASKS(100, "\xb8\x7b\0\0\0\xf3\x0f\xc7\x38")); /* of memory */
    assert_false(ASKS(100, "\xb9\x7b\0\0\0\x0f\x03\xc2"));     /* lsl of another register */
    assert_false(ASKS(100, "\xba\x7b\0\0\0\x0f\x03\x02"));     /* of memory */
    assert_false(ASKS(100, "\xba\x7b\0\0\0\x0f\x02\xc2"));     /* lar */
}

/* What is not in the page as a whole cannot be changed in a copy of it. */
static void the_ends_of_the_page(void **state)
{
    assert_false(ASKS(4088, "\xb8\x7b\0\0\0\xf3\x0f\xc7\xf8"));
    assert_true(ASKS(4088, "\xba\x7b\0\0\0\x0f\x03\xc2"));
    assert_false(ASKS(4089, "\xba\x7b\0\0\0\x0f\x03\xc2"));
    memset(page, 0x90, sizeof page);
    memcpy(page, "\xf3\x0f\xc7\xf8", 4);
    assert_false(copies_can(page, page + 1));
    memcpy(page, "\x0f\xc7\xf8", 3);
    assert_false(copies_can(page, page));
}

/* Byte by byte, what scan_special() finds sixteen bytes at a time. */
static const uint8_t *slowly(const uint8_t *p, const uint8_t *end)
{
    for (; end - p > 1; p++)
        if (p[0] == 0x0f && memchr("\xa2\xc7\x01\xae\x03", p[1], 5))
            return p;
    return NULL;
}

static void all_are_found(void **state)
{
    static const uint8_t often[] = {0x0f, 0x0f, 0x0f, 0xa2, 0xc7, 0x01, 0xae, 0x03, 0x05, 0x90};
    uint8_t bytes[80];
    uint32_t random = 1;
    for (unsigned turn = 0; turn < 20000; turn++) {
        for (unsigned i = 0; i < sizeof bytes; i++) {
            random = random * 1664525 + 1013904223;
            bytes[i] = random >> 31 ? 0x90 : often[(random >> 16) % sizeof often];
        }
        const uint8_t *first = bytes + turn % 20, *end = bytes + sizeof bytes - turn / 20 % 20;
        assert_ptr_equal(scan_special(first, end), slowly(first, end));
        memset(bytes, 0x90, sizeof bytes);
        memcpy(bytes + turn % 79, "\x0f\xa2", 2);
        assert_ptr_equal(scan_special(bytes, bytes + sizeof bytes), bytes + turn % 79);
        assert_null(scan_special(bytes, bytes + turn % 79 + 1));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(all_are_found),
        cmocka_unit_test(getcpu_of_the_vdso),
        cmocka_unit_test(rdpid_that_nobody_executes),
        cmocka_unit_test(others_are_not_touched),
        cmocka_unit_test(the_ends_of_the_page),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
