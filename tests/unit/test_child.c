/* Helper processes: what they get, how they end. */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/error.h"
#include "host/child.h"

static char err[ERROR_SIZE];

static size_t read_until_end(int fd, char *to, size_t size)
{
    size_t len = 0;
    ssize_t now;
    while (len < size - 1 && (now = read(fd, to + len, size - 1 - len)) > 0)
        len += (size_t)now;
    to[len] = 0;
    return len;
}

static void descriptors_come_from_3_and_no_others(void **state)
{
    int out[2], other = open("/dev/null", O_RDONLY); /* inheritable on purpose */
    struct child c;
    char text[256];

    assert_int_equal(pipe2(out, O_CLOEXEC), 0);
    const char *const argv[] = {"sh", "-c", "echo three >&3; echo four >&4; ls /proc/self/fd | tr '\\n' ' ' >&3", NULL};
    assert_int_equal(child_start(&c, argv, (int[]){out[1], out[1]}, 2, err, sizeof err), 0);
    close(out[1]);
    read_until_end(out[0], text, sizeof text);
    /* the pipe's own end in sh and ls's directory may be there; what we had open is not */
    assert_non_null(strstr(text, "three\nfour\n0 1 2 3 4 "));
    assert_true(strlen(text) <= strlen("three\nfour\n0 1 2 3 4 5 6 "));
    child_stop(&c, 1000);
    close(other);
    close(out[0]);
}

static void a_missing_program_is_named(void **state)
{
    struct child c;
    const char *const argv[] = {"guise-no-such-program", NULL};

    assert_int_equal(child_start(&c, argv, NULL, 0, err, sizeof err), -ENOENT);
    assert_non_null(strstr(err, "guise-no-such-program"));
    assert_int_equal(c.pid, 0);
    child_stop(&c, 0);
}

static void one_that_may_not_have_the_descriptors_is_told_of(void **state)
{
    struct rlimit all;
    struct child c;
    const char *const argv[] = {"true", NULL};

    assert_int_equal(getrlimit(RLIMIT_NOFILE, &all), 0);
    for (rlim_t few = 40; few <= 100; few += 60) {
        const struct rlimit limit = {few, all.rlim_max};
        assert_int_equal(setrlimit(RLIMIT_NOFILE, &limit), 0);
        assert_int_equal(child_start(&c, argv, (int[]){0}, 1, err, sizeof err), -EMFILE);
        assert_int_equal(child_detach(argv, (int[]){0}, 1, 2, err, sizeof err), -EMFILE);
    }
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &all), 0);
    assert_int_equal(child_start(&c, argv, (int[]){0}, 1, err, sizeof err), 0);
    child_stop(&c, 1000);
}

static void the_end_is_noticed(void **state)
{
    struct child c;
    int status = 0;
    const char *const argv[] = {"sh", "-c", "exit 3", NULL};

    assert_int_equal(child_start(&c, argv, NULL, 0, err, sizeof err), 0);
    for (int i = 0; i < 500 && !child_ended(&c, &status); i++)
        usleep(10000);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 3);
    assert_false(child_ended(&c, &status));
}

static void one_that_does_not_listen_is_killed(void **state)
{
    struct child c;
    int out[2];
    char ready[8];
    const char *const argv[] = {"sh", "-c", "trap '' TERM; echo ready >&3; while :; do sleep 1; done", NULL};

    assert_int_equal(pipe2(out, O_CLOEXEC), 0);
    assert_int_equal(child_start(&c, argv, &out[1], 1, err, sizeof err), 0);
    assert_int_equal(read(out[0], ready, 6), 6);
    pid_t pid = c.pid;
    child_stop(&c, 50);
    assert_int_equal(kill(pid, 0), -1);
    assert_int_equal(errno, ESRCH);
    close(out[0]);
    close(out[1]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(descriptors_come_from_3_and_no_others),
        cmocka_unit_test(a_missing_program_is_named),
        cmocka_unit_test(one_that_may_not_have_the_descriptors_is_told_of),
        cmocka_unit_test(the_end_is_noticed),
        cmocka_unit_test(one_that_does_not_listen_is_killed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
