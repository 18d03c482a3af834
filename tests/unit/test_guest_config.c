/* The guest's configuration: what one side writes the other reads, and nothing else. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmocka.h>

#include "agent/config.h"
#include "agent/initrd.h"
#include "base/error.h"

static char err[ERROR_SIZE];

static void what_is_written_is_read(void **state)
{
    const struct guest_config c = {
        .mode = GUEST_BOOT,
        .hostname = "one",
        .root = "/dev/nvme0n1",
        .root_overlay = true,
        .shares = {.n = 2, .value = {"rw guise0 /a b/c=d", "ro guise1 /line\nfeed\\n"}},
        .keys = {.n = 1, .value = {"ssh-ed25519 AAAA me@here"}},
        .first_boot = true,
        .init = "",
    };
    struct guest_config d;
    char *text, *storage;
    size_t len;

    assert_int_equal(guest_config_format(&c, &text, &len, err, sizeof(err)), 0);
    assert_non_null(strstr(text, "share=ro guise1 /line\\nfeed\\\\n\n"));
    assert_int_equal(guest_config_parse(&d, text, len, &storage, err, sizeof(err)), 0);
    assert_int_equal(d.mode, GUEST_BOOT);
    assert_string_equal(d.hostname, c.hostname);
    assert_string_equal(d.root, c.root);
    assert_true(d.root_overlay && d.first_boot && !d.root_grow && !d.console);
    assert_int_equal(d.shares.n, 2);
    assert_string_equal(d.shares.value[0], c.shares.value[0]);
    assert_string_equal(d.shares.value[1], c.shares.value[1]);
    assert_string_equal(d.keys.value[0], c.keys.value[0]);
    assert_string_equal(d.init, "");
    assert_null(d.user);
    free(text);
    free(storage);
}

static void wrong_lines_are_named(void **state)
{
    static const struct {
        const char *text, *sentence;
    } wrong[] = {
        {"mode=boot\nhostname", "line 2 of the configuration has no '='"},
        {"speed=1\n", "line 1 of the configuration has an unknown key"},
        {"mode=fast\n", "line 1 of the configuration is neither command nor boot"},
        {"console=1\n", "line 1 of the configuration is neither yes nor no"},
        {"root=a\nroot=b\n", "line 2 of the configuration is given twice"},
        {"root=a\\x41\n", "line 1 of the configuration has a backslash before something else than n and a backslash"},
        {"root=a\\", "line 1 of the configuration has a backslash before something else than n and a backslash"},
    };
    struct guest_config c;
    char *storage;

    for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++) {
        assert_int_equal(guest_config_parse(&c, wrong[i].text, strlen(wrong[i].text), &storage, err, sizeof(err)),
                         -EINVAL);
        assert_string_equal(err, wrong[i].sentence);
    }
    assert_int_equal(guest_config_parse(&c, "root=a\0b\n", 9, &storage, err, sizeof(err)), -EINVAL);
}

static void a_list_has_an_end(void **state)
{
    char text[OPTION_LIST_MAX * 8 + 16] = "", *storage;
    struct guest_config c;

    for (int i = 0; i < OPTION_LIST_MAX; i++)
        strcat(text, "key=a\n");
    assert_int_equal(guest_config_parse(&c, text, strlen(text), &storage, err, sizeof(err)), 0);
    assert_int_equal(c.keys.n, OPTION_LIST_MAX);
    free(storage);
    strcat(text, "key=a\n");
    assert_int_equal(guest_config_parse(&c, text, strlen(text), &storage, err, sizeof(err)), -EINVAL);
    assert_non_null(strstr(err, "too often"));
}

static void the_initramfs_has_program_and_configuration(void **state)
{
    const struct guest_config c = {.root = "/dev/nvme0n1"};
    int fd = memfd_create("initrd", 0);

    assert_int_equal(agent_initrd_append(fd, &c, err, sizeof(err)), 0);
    off_t len = lseek(fd, 0, SEEK_END);
    char *bytes = mmap(NULL, (size_t)len, PROT_READ, MAP_PRIVATE, fd, 0);
    assert_ptr_not_equal(bytes, MAP_FAILED);
    assert_non_null(memmem(bytes, (size_t)len, "guise/init\0", 11));
    assert_non_null(memmem(bytes, (size_t)len, "\177ELF", 4));
    assert_non_null(memmem(bytes, (size_t)len, "mode=command\nroot=/dev/nvme0n1\n", 31));
    assert_non_null(memmem(bytes, (size_t)len, "TRAILER!!!", 10));
    munmap(bytes, (size_t)len);
    close(fd);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_is_written_is_read),
        cmocka_unit_test(wrong_lines_are_named),
        cmocka_unit_test(a_list_has_an_end),
        cmocka_unit_test(the_initramfs_has_program_and_configuration),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
