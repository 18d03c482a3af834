/* Named virtual machines as files: creation, locks, what a crash leaves behind. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/error.h"
#include "base/file.h"
#include "base/path.h"
#include "vm/registry.h"
#include "vm/tree.h"

static char err[ERROR_SIZE], data[32], runtime[64];
static struct registry r;

static int set_up(void **state)
{
    snprintf(data, sizeof data, "/tmp/guise-test-XXXXXX");
    if (!mkdtemp(data))
        return -1;
    snprintf(runtime, sizeof runtime, "%s/run", data);
    setenv("GUISE_DATA", data, 1);
    setenv("GUISE_RUNTIME", runtime, 1);
    return registry_open(&r, err, sizeof err);
}

static int tear_down(void **state)
{
    return tree_remove(data);
}

static struct vm_settings settings_of(const char *name)
{
    struct vm_settings s;

    settings_init(&s);
    s.name = name;
    s.config.kernel_path = "/boot/vmlinuz";
    return s;
}

static int create(const char *name, int *lock)
{
    struct vm_settings s = settings_of(name);
    struct vm_record record;

    assert_int_equal(record_init(&record, &s, err, sizeof err), 0);
    return registry_create(&r, &record, lock, err, sizeof err);
}

static int count_entries(void)
{
    DIR *dir = opendir(r.vms);
    int n = 0;

    for (struct dirent *e; (e = readdir(dir));)
        n += strcmp(e->d_name, ".") && strcmp(e->d_name, "..");
    closedir(dir);
    return n;
}

static void names_are_host_names(void **state)
{
    static const char *const good[] = {"a", "brave-otter", "x9", "a--",
                                       "a23456789-123456789-123456789-123456789-123456789-123456789-123"};
    static const char *const bad[] = {"",
                                      "-a",
                                      "9a",
                                      "A",
                                      "a.b",
                                      "a/b",
                                      "..",
                                      "a b",
                                      "é",
                                      "a\n",
                                      "a23456789-123456789-123456789-123456789-123456789-123456789-1234"};
    char name[NAME_SIZE];

    for (size_t i = 0; i < sizeof good / sizeof *good; i++)
        assert_int_equal(name_check(good[i], err, sizeof err), 0);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        assert_int_equal(name_check(bad[i], err, sizeof err), -EINVAL);
    for (unsigned i = 0; i < 2000; i++) {
        name_random(i % 3, name);
        assert_int_equal(name_check(name, err, sizeof err), 0);
        assert_non_null(strchr(name, '-'));
    }
}

static void a_record_survives_its_file(void **state)
{
    struct vm_settings s = settings_of("alpha");
    struct vm_record from, to;
    int lock;

    s.labels = (struct option_list){.value = {"a=1", "b="}, .n = 2};
    s.config.memory_bytes = 96 << 20;
    s.config.no_reboot = true;
    s.config.append = "console=ttyS0 \"quoted\" \\ \n";
    assert_int_equal(record_init(&from, &s, err, sizeof err), 0);
    from.mode = VM_MODE_BOOT;
    assert_int_equal(registry_create(&r, &from, &lock, err, sizeof err), 0);
    assert_int_equal(registry_load(&r, "alpha", &to, err, sizeof err), 0);
    assert_string_equal(to.name, "alpha");
    assert_string_equal(to.uuid, from.uuid);
    assert_string_equal(to.mac, from.mac);
    assert_string_equal(to.created, from.created);
    assert_string_equal(to.directory, from.directory);
    assert_int_equal(to.mode, VM_MODE_BOOT);
    assert_false(to.ephemeral);
    assert_int_equal(to.settings.labels.n, 2);
    assert_string_equal(to.settings.labels.value[1], "b=");
    assert_int_equal(to.settings.config.memory_bytes, 96 << 20);
    assert_true(to.settings.config.no_reboot);
    assert_string_equal(to.settings.config.append, s.config.append);
    assert_string_equal(to.settings.config.engine, "auto");
    record_free(&to);
    close(lock);
}

static void records_of_strangers_are_refused(void **state)
{
#define HEAD                                                                                                           \
    "{\"schema_version\": 1, \"name\": \"a\", \"uuid\": \"u\", \"mac\": \"m\", \"created\": \"c\", \"mode\": "         \
    "\"boot\","                                                                                                        \
    " \"image_digest\": \"\", \"directory\": \"/\", \"options\": "
    static const struct {
        const char *text, *part;
    } cases[] = {
        {"", "line"},
        {"[]", "not a JSON object"},
        {"{}", "schema_version"},
        {"{\"schema_version\": 2}", "newer"},
        {"{\"schema_version\": 1}", "\"name\""},
        {HEAD "[]}", "\"options\""},
        {HEAD "{\"memory\": \"lots\"}}", "\"memory\""},
        {HEAD "{\"memory\": 5}}", "\"memory\""},
        {HEAD "{\"memory\": [\"1G\", {}]}}", "\"memory\""},
        {HEAD "{\"no-such\": \"x\"}}", "no such option"},
        {HEAD "{\"no-reboot\": \"x\"}}", "takes no value"},
        {HEAD "{\"kernel\": \"a\\u0000b\"}}", "line"},
        {HEAD "{}, \"name\": \"b\"}", "duplicate"},
    };
    struct vm_record record;

    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        int failed = record_parse(&record, cases[i].text, strlen(cases[i].text), err, sizeof err);
        if (failed != -EINVAL || !strstr(err, cases[i].part))
            fail_msg("case %zu: %d, %s", i, failed, err);
    }
    assert_int_equal(record_parse(&record, HEAD "{}}", strlen(HEAD "{}}"), err, sizeof err), 0);
    record_free(&record);
}

static void names_are_taken_once(void **state)
{
    int lock, other;
    char(*names)[NAME_SIZE];

    assert_int_equal(create("beta", &lock), 0);
    assert_int_equal(create("beta", &other), -EEXIST);
    assert_non_null(strstr(err, "guise start beta"));
    assert_int_equal(create("aaa", &other), 0);
    assert_int_equal(registry_names(&r, &names, err, sizeof err), 2);
    assert_string_equal(names[0], "aaa");
    assert_string_equal(names[1], "beta");
    assert_int_equal(count_entries(), 2);
    free(names);
    close(lock);
    close(other);
}

static void a_missing_one_is_named_with_the_nearest(void **state)
{
    struct vm_record record;
    int lock;

    assert_int_equal(create("alpha", &lock), 0);
    assert_int_equal(registry_load(&r, "alhpa", &record, err, sizeof err), -ENOENT);
    assert_non_null(strstr(err, "did you mean alpha?"));
    assert_int_equal(registry_load(&r, "zulu-nine", &record, err, sizeof err), -ENOENT);
    assert_null(strstr(err, "did you mean"));
    assert_int_equal(registry_load(&r, "../alpha", &record, err, sizeof err), -ENOENT);
    close(lock);
}

static void a_lock_lives_as_long_as_any_descriptor(void **state)
{
    struct vm_run run = {.state = VM_RUNNING, .pid = (int)getpid(), .started_ms = 5};
    int lock, again;

    assert_int_equal(create("alpha", &lock), 0);
    assert_int_equal(registry_lock(&r, "alpha", &again, err, sizeof err), -EBUSY);
    assert_non_null(strstr(err, "another command"));
    assert_int_equal(registry_set_run(lock, &run), 0);
    int copy = dup(lock);
    close(lock);
    assert_int_equal(registry_lock(&r, "alpha", &again, err, sizeof err), -EBUSY);
    assert_non_null(strstr(err, "guise stop alpha"));
    registry_run(&r, "alpha", &run);
    assert_int_equal(run.state, VM_RUNNING);
    assert_int_equal(run.pid, getpid());
    close(copy);
    registry_run(&r, "alpha", &run);
    assert_int_equal(run.state, VM_DIED);
    assert_true(run.failed);
    assert_int_equal(registry_lock(&r, "alpha", &again, err, sizeof err), 0);
    registry_run(&r, "alpha", &run); /* while somebody starts it again, the dead one's number is nobody's */
    assert_int_equal(run.state, VM_DIED);
    assert_true(run.held);
    assert_int_equal(run.pid, 0);
    registry_last_run(again, &run);
    assert_int_equal(run.state, VM_DIED);
    run = (struct vm_run){.state = VM_STOPPED, .reason = "the guest powered off"};
    registry_set_run(again, &run);
    registry_run(&r, "alpha", &run);
    assert_int_equal(run.state, VM_STOPPED);
    assert_string_equal(run.reason, "the guest powered off");
    memset(run.reason, 1, sizeof run.reason - 1); /* what takes most room */
    assert_int_equal(registry_set_run(again, &run), 0);
    close(again);
    registry_run(&r, "alpha", &run);
    assert_int_equal(strlen(run.reason), sizeof run.reason - 1);
}

static void removal_takes_all_and_frees_the_name(void **state)
{
    char path[PATH_MAX], socket[108];
    int lock, again;

    assert_int_equal(create("alpha", &lock), 0);
    registry_path(&r, "alpha", "deep", path, err, sizeof err);
    mkdir(path, 0700);
    registry_path(&r, "alpha", "deep/file", path, err, sizeof err);
    assert_int_equal(file_write(path, "x", 1, 0400, err, sizeof err), 0);
    registry_path(&r, "alpha", "link", path, err, sizeof err);
    assert_int_equal(symlink(runtime, path), 0);
    registry_socket(&r, "alpha", "ctl", socket, err, sizeof err);
    assert_int_equal(file_write(socket, "x", 1, 0600, err, sizeof err), 0);
    assert_int_equal(registry_remove(&r, "alpha", lock, err, sizeof err), 0);
    assert_int_equal(count_entries(), 0);
    assert_int_equal(access(socket, F_OK), -1);
    assert_int_equal(access(runtime, F_OK), 0); /* what the link led to */
    assert_int_equal(registry_lock(&r, "alpha", &again, err, sizeof err), -ENOENT);
    assert_int_equal(create("alpha", &lock), 0);
    close(lock);
}

/* Whatever a command that dies leaves behind is not a VM, and goes. */
static void leftovers_are_swept(void **state)
{
    char path[PATH_MAX];
    struct timespec old[2] = {{.tv_sec = 1000}, {.tv_sec = 1000}};
    int lock;

    path_format(path, sizeof path, err, sizeof err, "%s/.new-gamma-1", r.vms);
    mkdir(path, 0700); /* no lock yet, and new: perhaps its maker is about to take it */
    assert_int_equal(registry_open(&r, err, sizeof err), 0);
    assert_int_equal(count_entries(), 1);
    utimensat(AT_FDCWD, path, old, 0);
    assert_int_equal(registry_open(&r, err, sizeof err), 0);
    assert_int_equal(count_entries(), 0);

    path_format(path, sizeof path, err, sizeof err, "%s/.gone-delta-1", r.vms);
    mkdir(path, 0700);
    path_format(path, sizeof path, err, sizeof err, "%s/.gone-delta-1/lock", r.vms);
    file_write(path, "", 0, 0600, err, sizeof err);
    assert_int_equal(registry_open(&r, err, sizeof err), 0);
    assert_int_equal(count_entries(), 0);

    struct vm_settings s = settings_of("throw-away");
    struct vm_record record;
    record_init(&record, &s, err, sizeof err);
    record.ephemeral = true;
    assert_int_equal(registry_create(&r, &record, &lock, err, sizeof err), 0);
    assert_int_equal(registry_open(&r, err, sizeof err), 0);
    assert_int_equal(count_entries(), 1); /* in use */
    close(lock);
    assert_int_equal(registry_open(&r, err, sizeof err), 0);
    assert_int_equal(count_entries(), 0);
}

/* Eight processes that create, lock and remove VMs of the same three names as fast as they can: every success is true.
 */
static void worker(unsigned seed)
{
    static const char *const names[] = {"one", "two", "three"};
    struct registry mine;
    struct vm_run run;

    for (int i = 0; i < 60; i++) {
        const char *name = names[rand_r(&seed) % 3];
        int lock = -1;
        if (registry_open(&mine, err, sizeof err))
            _exit(10);
        int failed = rand_r(&seed) % 2 ? create(name, &lock) : registry_lock(&mine, name, &lock, err, sizeof err);
        if (failed && failed != -EEXIST && failed != -EBUSY && failed != -ENOENT)
            _exit(11);
        if (failed)
            continue;
        run = (struct vm_run){.state = VM_RUNNING, .pid = (int)getpid(), .started_ms = 1};
        registry_set_run(lock, &run);
        registry_run(&mine, name, &run);
        if (run.state != VM_RUNNING || run.pid != getpid())
            _exit(12); /* somebody else has what we have */
        if (registry_remove(&mine, name, lock, err, sizeof err))
            _exit(13);
    }
    _exit(0);
}

static void processes_do_not_disturb_each_other(void **state)
{
    pid_t pids[8];
    int status;

    for (unsigned i = 0; i < 8; i++) {
        pids[i] = fork();
        if (pids[i] == 0)
            worker(i);
    }
    for (unsigned i = 0; i < 8; i++) {
        waitpid(pids[i], &status, 0);
        assert_true(WIFEXITED(status));
        assert_int_equal(WEXITSTATUS(status), 0);
    }
    registry_open(&r, err, sizeof err);
    assert_in_range(count_entries(), 0, 3);
}

/* A process that is killed while it creates and removes never leaves a name whose vm.json cannot be read. */
static void a_kill_leaves_whole_vms_or_none(void **state)
{
    char(*names)[NAME_SIZE];
    struct vm_record record;

    for (int round = 0; round < 40; round++) {
        pid_t pid = fork();
        if (pid == 0) {
            for (int lock;;) {
                if (create("victim", &lock) == 0)
                    registry_remove(&r, "victim", lock, err, sizeof err);
            }
        }
        usleep(500 + 700 * (unsigned)round);
        kill(pid, SIGKILL);
        waitpid(pid, NULL, 0);
        assert_int_equal(registry_open(&r, err, sizeof err), 0);
        int n = registry_names(&r, &names, err, sizeof err);
        assert_in_range(n, 0, 1);
        if (n == 1) {
            int lock;
            assert_int_equal(registry_load(&r, "victim", &record, err, sizeof err), 0);
            record_free(&record);
            assert_int_equal(registry_lock(&r, "victim", &lock, err, sizeof err), 0);
            assert_int_equal(registry_remove(&r, "victim", lock, err, sizeof err), 0);
        }
        free(names);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(names_are_host_names),
        cmocka_unit_test_setup_teardown(a_record_survives_its_file, set_up, tear_down),
        cmocka_unit_test(records_of_strangers_are_refused),
        cmocka_unit_test_setup_teardown(names_are_taken_once, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_missing_one_is_named_with_the_nearest, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_lock_lives_as_long_as_any_descriptor, set_up, tear_down),
        cmocka_unit_test_setup_teardown(removal_takes_all_and_frees_the_name, set_up, tear_down),
        cmocka_unit_test_setup_teardown(leftovers_are_swept, set_up, tear_down),
        cmocka_unit_test_setup_teardown(processes_do_not_disturb_each_other, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_kill_leaves_whole_vms_or_none, set_up, tear_down),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
