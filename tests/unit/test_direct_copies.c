/* Which instructions of a page of code are left to a copy of it (engine/soft/direct_copies.c). */
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

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(getcpu_of_the_vdso),
        cmocka_unit_test(rdpid_that_nobody_executes),
        cmocka_unit_test(others_are_not_touched),
        cmocka_unit_test(the_ends_of_the_page),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
