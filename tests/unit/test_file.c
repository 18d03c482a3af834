/* Small whole files and the directories that guise keeps things in. */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/error.h"
#include "base/file.h"
#include "base/logfile.h"
#include "base/path.h"

static char top[64], path[256], err[ERROR_SIZE];

static int setup(void **state)
{
    snprintf(top, sizeof top, "/tmp/guise-file-XXXXXX");
    return !mkdtemp(top);
}

static int teardown(void **state)
{
    char command[128];
    snprintf(command, sizeof command, "rm -rf %s", top);
    return system(command);
}

static void what_is_written_is_read(void **state)
{
    char *data;
    size_t len;

    snprintf(path, sizeof path, "%s/file", top);
    assert_int_equal(file_write(path, "one\0two", 7, 0600, err, sizeof err), 0);
    assert_int_equal(file_write(path, "three", 5, 0600, err, sizeof err), 0);
    assert_int_equal(file_read(path, 100, &data, &len, err, sizeof err), 0);
    assert_int_equal(len, 5);
    assert_string_equal(data, "three");
    free(data);
    assert_int_equal(file_read(path, 5, &data, NULL, err, sizeof err), 0);
    free(data);
    assert_int_equal(file_read(path, 4, &data, NULL, err, sizeof err), -EFBIG);
    assert_non_null(strstr(err, path));
}

static void a_failed_write_leaves_what_was_there(void **state)
{
    snprintf(path, sizeof path, "%s/none/file", top);
    assert_int_equal(file_write(path, "x", 1, 0600, err, sizeof err), -ENOENT);
    assert_non_null(strstr(err, "none/file"));
    snprintf(path, sizeof path, "%s/directory", top);
    assert_int_equal(mkdir(path, 0700), 0);
    assert_int_equal(file_write(path, "x", 1, 0600, err, sizeof err), -EISDIR);
    snprintf(path, sizeof path, "ls %s | grep -q new-", top);
    assert_int_not_equal(system(path), 0);
}

static void the_data_directory_is_made_and_private(void **state)
{
    char out[256];
    struct stat st;

    unsetenv("GUISE_DATA");
    setenv("XDG_DATA_HOME", top, 1);
    assert_int_equal(path_data(out, sizeof out, err, sizeof err), 0);
    assert_int_equal(stat(out, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0700);
    assert_string_equal(out + strlen(out) - 6, "/guise");
    assert_int_equal(chmod(out, 0777), 0);
    assert_int_equal(path_data(out, sizeof out, err, sizeof err), -EPERM);
    assert_non_null(strstr(err, "chmod"));
}

static void a_long_runtime_directory_is_not_taken(void **state)
{
    char out[256], longer[200];

    unsetenv("GUISE_RUNTIME");
    snprintf(longer, sizeof longer, "%s/%s", top, "a-directory-with-a-name-that-leaves-no-room-for-sockets");
    assert_int_equal(mkdir(longer, 0700), 0);
    setenv("XDG_RUNTIME_DIR", longer, 1);
    assert_int_equal(path_runtime(out, sizeof out, err, sizeof err), 0);
    assert_true(strlen(out) <= PATH_RUNTIME_MAX);
    setenv("GUISE_RUNTIME", longer, 1);
    assert_int_equal(path_runtime(out, sizeof out, err, sizeof err), -ENAMETOOLONG);
}

/* Standard error, say: its writers know nothing of a limit. */
static void a_log_that_others_write_begins_anew(void **state)
{
    struct logfile log;
    struct stat st;
    char *old;

    snprintf(path, sizeof path, "%s/log", top);
    assert_int_equal(logfile_open(&log, path, 10, err, sizeof err), 0);
    int other = open(path, O_WRONLY | O_APPEND | O_CLOEXEC);
    assert_int_equal(write(other, "0123456789", 10), 10);
    assert_int_equal(logfile_trim(&log), 0);
    assert_int_equal(fstat(other, &st), 0);
    assert_int_equal(st.st_size, 10);
    assert_int_equal(write(other, "ab", 2), 2);
    assert_int_equal(logfile_trim(&log), 0);
    assert_int_equal(write(other, "new", 3), 3);
    assert_int_equal(fstat(other, &st), 0);
    assert_int_equal(st.st_size, 3);
    logfile_close(&log);
    close(other);
    snprintf(path, sizeof path, "%s/log.1", top);
    assert_int_equal(file_read(path, 100, &old, NULL, err, sizeof err), 0);
    assert_string_equal(old, "0123456789ab");
    free(old);
}

/* Blocks of data and of nothing, a part of one at the end, at a place that is no multiple of them. */
static void zeroes_are_not_written(void **state)
{
    static uint8_t data[5 * FD_SPARSE_BLOCK + 100], back[sizeof data];
    const uint64_t at = 3 * FD_SPARSE_BLOCK;

    data[0] = data[2 * FD_SPARSE_BLOCK - 1] = data[3 * FD_SPARSE_BLOCK] = data[sizeof data - 1] = 1;
    snprintf(path, sizeof path, "%s/sparse", top);
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    memset(back, 0xee, sizeof back);
    assert_int_equal(fd_write_at(fd, back, sizeof back, at), 0); /* what is there stays where nothing is written */
    assert_int_equal(fd_write_sparse(fd, data, sizeof data, at), 0);
    assert_int_equal(pread(fd, back, sizeof back, (off_t)at), sizeof back);
    for (unsigned i = 0; i < sizeof data; i++) {
        const unsigned block = i / FD_SPARSE_BLOCK;
        assert_int_equal(back[i], block == 2 || block == 4 ? 0xee : data[i]);
    }
    close(fd);
    assert_int_equal(fd_write_at(-1, data, 1, 0), -EBADF);
}

#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
int main(void)
{
    const struct CMUnitTest tests[] = {
        T(what_is_written_is_read),
        T(a_failed_write_leaves_what_was_there),
        T(the_data_directory_is_made_and_private),
        T(a_long_runtime_directory_is_not_taken),
        T(a_log_that_others_write_begins_anew),
        T(zeroes_are_not_written),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
