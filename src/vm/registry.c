#include "vm/registry.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base/error.h"
#include "base/file.h"
#include "base/path.h"
#include "base/similar.h"
#include "vm/tree.h"

#define NEW ".new-"
#define GONE ".gone-"
#define NAME_ATTEMPTS 50u
#define RUN_BYTES 4096       /* a reason of which each byte needs six in JSON has room */
#define LOCK_PATIENCE_MS 200 /* a look at the state takes the lock for a moment */
#define COMMAND_PATIENCE_MS 5000
#define LEFTOVER_SECONDS 60

const char *const vm_state_names[] = {"created", "running", "stopped", "crashed", "incoming", "moved"};

int registry_path(const struct registry *r, const char *name, const char *file, char out[PATH_MAX], char *err, size_t n)
{
    return path_format(out, PATH_MAX, err, n, "%s/%s/%s", r->vms, name, file);
}

int registry_socket(const struct registry *r, const char *name, const char *suffix, char out[108], char *err, size_t n)
{
    return path_format(out, 108, err, n, "%s/%s.%s", r->runtime, name, suffix);
}

/* --- locks ------------------------------------------------------------------------------------------------ */

/* Opens the lock of vms/`entry` and takes it.  -EWOULDBLOCK: it has been held for all of patience_ms. */
static int take_lock(const struct registry *r, const char *entry, int create, int patience_ms, int *lock)
{
    char path[PATH_MAX], none[1];
    int failed = registry_path(r, entry, "lock", path, none, sizeof none);

    if (failed)
        return failed;
    *lock = open(path, O_RDWR | create | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (*lock < 0)
        return -errno;
    for (int waited = 0; flock(*lock, LOCK_EX | LOCK_NB); waited += 5) {
        failed = errno == EINTR ? 0 : -errno;
        if (failed && (failed != -EWOULDBLOCK || waited >= patience_ms)) {
            close(*lock);
            *lock = -1;
            return failed;
        }
        usleep(5000);
    }
    return 0;
}

/* What was removed or replaced while we waited is not what the caller wants. */
static bool is_current(const struct registry *r, const char *name, int lock)
{
    char path[PATH_MAX], none[1];
    struct stat here, there;

    return !registry_path(r, name, "lock", path, none, sizeof none) && !fstat(lock, &here) && !stat(path, &there) &&
           here.st_ino == there.st_ino && here.st_dev == there.st_dev;
}

/* What the file says of a process is about one that has gone: nobody may take that number for the new holder's. */
static void forget_process(int lock)
{
    struct vm_run run;

    registry_last_run(lock, &run);
    if (run.state != VM_CREATED)
        registry_set_run(lock, &run);
}

/* Held by its process: it will not be free before long. */
static bool is_machine(const struct vm_run *run)
{
    return run->state == VM_RUNNING || run->state == VM_INCOMING || run->state == VM_MOVED;
}

int registry_lock(const struct registry *r, const char *name, int *lock, char *err, size_t n)
{
    struct vm_run run = {.pid = 0};
    int failed, waited = 0;

    do { /* a command is done before long, a running machine is not */
        failed = take_lock(r, name, O_CREAT, LOCK_PATIENCE_MS, lock);
        if (failed == -EWOULDBLOCK)
            registry_run(r, name, &run);
        waited += LOCK_PATIENCE_MS;
    } while (failed == -EWOULDBLOCK && !is_machine(&run) && waited < COMMAND_PATIENCE_MS);
    if (failed == -EWOULDBLOCK && (run.state == VM_INCOMING || run.state == VM_MOVED))
        return error_set(err, n, -EBUSY,
                         run.state == VM_INCOMING
                             ? "%s is being received, or waits for its source to let it run"
                             : "%s is on its way to another process: `guise migrate --resume %s` if "
                               "that was cut off",
                         name, name);
    if (failed == -EWOULDBLOCK)
        return error_set(err, n, -EBUSY,
                         run.state == VM_RUNNING ? "%s is running: `guise stop %s` first"
                                                 : "another command is at work with %s",
                         name, name);
    if (!failed && !is_current(r, name, *lock)) {
        close(*lock);
        failed = -ENOENT;
    }
    if (failed == -ENOENT)
        return error_set(err, n, -ENOENT, "there is no virtual machine '%s'", name);
    if (failed)
        return error_sys(err, n, failed, "cannot lock %s", name);
    forget_process(*lock);
    return 0;
}

/* --- the state of a run --------------------------------------------------------------------------------------- */

int registry_set_run(int lock, const struct vm_run *run)
{
    char text[RUN_BYTES];
    json_t *all = json_pack("{s:s, s:i, s:I, s:I, s:s, s:s, s:b, s:o}", "state", vm_state_names[run->state], "pid",
                            run->pid, "started_ms", (json_int_t)run->started_ms, "ended_ms", (json_int_t)run->ended_ms,
                            "engine", run->engine, "reason", run->reason, "failed", (int)run->failed, "exit_status",
                            run->exited ? json_integer(run->exit_status) : json_null());
    size_t len = all ? json_dumpb(all, text, sizeof text - 1, JSON_COMPACT) : 0;

    json_decref(all);
    if (!len || len > sizeof text - 1)
        return -EINVAL;
    memset(text + len, ' ', sizeof text - len); /* one write of one size: nothing of a longer one before stays */
    text[sizeof text - 1] = '\n';
    return pwrite(lock, text, sizeof text, 0) == sizeof text ? 0 : -EIO;
}

static void parse_run(const char *text, size_t len, struct vm_run *run)
{
    json_t *all = json_loadb(text, len, JSON_DISABLE_EOF_CHECK, NULL);
    const char *state = json_string_value(json_object_get(all, "state"));
    const char *engine = json_string_value(json_object_get(all, "engine"));
    const char *reason = json_string_value(json_object_get(all, "reason"));

    for (int i = VM_CREATED; state && i <= VM_MOVED; i++)
        if (strcmp(state, vm_state_names[i]) == 0)
            run->state = (enum vm_state)i;
    run->pid = (int)json_integer_value(json_object_get(all, "pid"));
    run->started_ms = (uint64_t)json_integer_value(json_object_get(all, "started_ms"));
    run->ended_ms = (uint64_t)json_integer_value(json_object_get(all, "ended_ms"));
    run->failed = json_is_true(json_object_get(all, "failed"));
    run->exited = json_is_integer(json_object_get(all, "exit_status"));
    run->exit_status = (int)json_integer_value(json_object_get(all, "exit_status"));
    snprintf(run->engine, sizeof run->engine, "%s", engine ? engine : "");
    snprintf(run->reason, sizeof run->reason, "%s", reason ? reason : "");
    json_decref(all);
}

void registry_last_run(int lock, struct vm_run *run)
{
    char text[RUN_BYTES];
    ssize_t len = pread(lock, text, sizeof text, 0);

    *run = (struct vm_run){.state = VM_CREATED};
    if (len > 0)
        parse_run(text, (size_t)len, run);
    run->pid = 0;
    if (run->state != VM_RUNNING)
        return;
    run->state = VM_DIED;
    run->failed = true;
    snprintf(run->reason, sizeof run->reason, "its process died without a word (killed, or the host went down)");
}

void registry_run(const struct registry *r, const char *name, struct vm_run *run)
{
    char path[PATH_MAX], text[RUN_BYTES], none[1];
    int lock = registry_path(r, name, "lock", path, none, sizeof none) ? -1 : open(path, O_RDONLY | O_CLOEXEC);

    *run = (struct vm_run){.state = VM_CREATED};
    if (lock < 0)
        return;
    bool held = flock(lock, LOCK_SH | LOCK_NB) && errno == EWOULDBLOCK;
    if (held) {
        ssize_t len = pread(lock, text, sizeof text, 0);
        if (len > 0)
            parse_run(text, (size_t)len, run);
        run->held = true;
    } else {
        registry_last_run(lock, run);
    }
    close(lock);
}

/* --- directories -------------------------------------------------------------------------------------------------- */

/* Half made or half removed, and nobody is at it: its lock is free, or there is none and nothing happens any more. */
static void sweep_leftover(const struct registry *r, const char *entry)
{
    char path[PATH_MAX], none[1];
    struct stat st;
    int lock, failed = take_lock(r, entry, 0, 0, &lock);

    if (path_format(path, sizeof path, none, sizeof none, "%s/%s", r->vms, entry) == 0 &&
        (!failed || (failed == -ENOENT && !lstat(path, &st) && st.st_mtime + LEFTOVER_SECONDS < time(NULL))))
        tree_remove(path);
    if (!failed)
        close(lock);
}

/* A throw-away VM that has ended without being thrown away. */
static void sweep_ephemeral(const struct registry *r, const char *name)
{
    char none[1];
    int lock;

    if (take_lock(r, name, 0, 0, &lock) == 0)
        registry_remove(r, name, lock, none, sizeof none);
}

/* A file beside vm.json marks them, so that this reads no file of the others. */
static bool is_ephemeral(const struct registry *r, const char *name)
{
    char path[PATH_MAX], none[1];

    return !registry_path(r, name, "ephemeral", path, none, sizeof none) && access(path, F_OK) == 0;
}

static void sweep(const struct registry *r)
{
    DIR *dir = opendir(r->vms);
    struct dirent *e;

    while (dir && (e = readdir(dir))) {
        bool leftover = strncmp(e->d_name, NEW, strlen(NEW)) == 0 || strncmp(e->d_name, GONE, strlen(GONE)) == 0;
        if (leftover)
            sweep_leftover(r, e->d_name);
        else if (e->d_name[0] != '.' && is_ephemeral(r, e->d_name))
            sweep_ephemeral(r, e->d_name);
    }
    if (dir)
        closedir(dir);
}

int registry_find(struct registry *r, char *err, size_t n)
{
    char data[PATH_MAX];
    int failed = path_data(data, sizeof data, err, n);

    if (!failed)
        failed = path_runtime(r->runtime, sizeof r->runtime, err, n);
    if (!failed)
        failed = path_format(r->vms, sizeof r->vms, err, n, "%s/vms", data);
    if (!failed)
        failed = path_make(r->vms, 0700, err, n);
    return failed;
}

int registry_open(struct registry *r, char *err, size_t n)
{
    int failed = registry_find(r, err, n);

    if (!failed)
        sweep(r);
    return failed;
}

static int by_name(const void *a, const void *b)
{
    return strcmp(a, b);
}

int registry_names(const struct registry *r, char (**names)[NAME_SIZE], char *err, size_t n)
{
    DIR *dir = opendir(r->vms);
    char none[1];
    struct dirent *e;
    int count = 0, room = 0;

    *names = NULL;
    if (!dir)
        return error_sys(err, n, -errno, "cannot look into %s", r->vms);
    while ((e = readdir(dir))) {
        if (name_check(e->d_name, none, sizeof none))
            continue;
        if (count == room) {
            room = room ? 2 * room : 16;
            char(*larger)[NAME_SIZE] = realloc(*names, (size_t)room * sizeof **names);
            if (!larger) {
                count = error_sys(err, n, -ENOMEM, "cannot list the virtual machines");
                break;
            }
            *names = larger;
        }
        memcpy((*names)[count++], e->d_name, strlen(e->d_name) + 1); /* name_check has measured it */
    }
    closedir(dir);
    if (count > 0 && *names)
        qsort(*names, (size_t)count, sizeof **names, by_name);
    return count;
}

/* --- records ----------------------------------------------------------------------------------------------------- */

static int no_such(const struct registry *r, const char *name, char *err, size_t n)
{
    struct similar near = {.word = name};
    char(*names)[NAME_SIZE], none[1];
    int count = registry_names(r, &names, none, sizeof none);

    for (int i = 0; i < count; i++)
        similar_try(&near, names[i]);
    if (near.best)
        error_set(err, n, 0, "there is no virtual machine '%.64s'; did you mean %s?", name, near.best);
    else
        error_set(err, n, 0, "there is no virtual machine '%.64s'; `guise ls -a` shows those that there are", name);
    free(names);
    return -ENOENT;
}

int registry_exists(const struct registry *r, const char *name, char *err, size_t n)
{
    char path[PATH_MAX], none[1];

    if (name_check(name, none, sizeof none) || registry_path(r, name, ".", path, err, n) || access(path, F_OK))
        return no_such(r, name, err, n);
    return 0;
}

int registry_load(const struct registry *r, const char *name, struct vm_record *record, char *err, size_t n)
{
    char path[PATH_MAX], why[ERROR_SIZE], *text;
    size_t len;
    int failed = registry_exists(r, name, err, n);

    if (!failed)
        failed = registry_path(r, name, "vm.json", path, err, n);
    if (failed)
        return failed;
    failed = file_read(path, RECORD_BYTES_MAX, &text, &len, err, n);
    if (failed)
        return failed;
    failed = record_parse(record, text, len, why, sizeof why);
    free(text);
    if (failed)
        return error_set(err, n, failed, "%s cannot be used: %s", path, why);
    if (strcmp(record->name, name) == 0)
        return 0;
    record_free(record);
    return error_set(err, n, -EINVAL, "%s is that of another virtual machine", path);
}

int registry_save(const struct registry *r, const struct vm_record *record, char *err, size_t n)
{
    char path[PATH_MAX];
    int failed = registry_path(r, record->name, "vm.json", path, err, n);
    char *text = failed ? NULL : record_format(record);

    if (!failed)
        failed = text ? file_write(path, text, strlen(text), 0600, err, n)
                      : error_sys(err, n, -ENOMEM, "cannot save %s", record->name);
    free(text);
    return failed;
}

int registry_keep(const struct registry *r, struct vm_record *record, char *err, size_t n)
{
    char path[PATH_MAX];
    int failed = registry_path(r, record->name, "ephemeral", path, err, n);

    record->ephemeral = false;
    if (!failed)
        failed = registry_save(r, record, err, n);
    if (!failed && unlink(path) && errno != ENOENT)
        failed = error_sys(err, n, -errno, "cannot remove %s", path);
    if (!failed && (failed = file_sync_directory(path)))
        error_sys(err, n, failed, "cannot save %s", record->name);
    return failed;
}

/* Fills vms/ENTRY, whose lock is held. */
static int fill(const struct registry *r, const char *entry, const struct vm_record *record, char *err, size_t n)
{
    char path[PATH_MAX];
    char *text = record_format(record);
    int failed = registry_path(r, entry, "vm.json", path, err, n);

    if (!failed && !text)
        failed = error_sys(err, n, -ENOMEM, "cannot save it");
    else if (!failed)
        failed = file_write(path, text, strlen(text), 0600, err, n);
    free(text);
    if (!failed && record->ephemeral) {
        failed = registry_path(r, entry, "ephemeral", path, err, n);
        if (!failed)
            failed = file_write(path, "", 0, 0600, err, n);
    }
    return failed;
}

/* Gives the directory its name.  rename(2) would put it in the place of an empty one, too: there is none of those. */
static int publish(const struct registry *r, const char *entry, const char *name, char *err, size_t n)
{
    char from[PATH_MAX], to[PATH_MAX];
    int failed = path_format(from, sizeof from, err, n, "%s/%s", r->vms, entry);

    if (!failed)
        failed = path_format(to, sizeof to, err, n, "%s/%s", r->vms, name);
    if (failed)
        return failed;
    if (!rename(from, to))
        return 0;
    if (errno == ENOTEMPTY || errno == EEXIST)
        return error_set(err, n, -EEXIST, "there is a virtual machine '%s' already; `guise start %s` starts it", name,
                         name);
    return error_sys(err, n, -errno, "cannot make %s", to);
}

/* Makes the directory vms/`entry` with a lock that is ours.  -EAGAIN, -EWOULDBLOCK: another command took it for a
 * leftover before it was locked. */
static int begin(const struct registry *r, const char *entry, const char *path, int *lock)
{
    tree_remove(path); /* of a process that had our number */
    if (mkdir(path, 0700))
        return -errno;
    int failed = take_lock(r, entry, O_CREAT, LOCK_PATIENCE_MS, lock);
    if (!failed && !is_current(r, entry, *lock)) {
        close(*lock);
        failed = -EAGAIN;
    }
    if (failed)
        tree_remove(path);
    return failed == -ENOENT ? -EAGAIN : failed;
}

static int create_named(const struct registry *r, const struct vm_record *record, int *lock, char *err, size_t n)
{
    char entry[NAME_SIZE + 32], path[PATH_MAX];
    int failed;

    snprintf(entry, sizeof entry, NEW "%s-%d", record->name, (int)getpid());
    failed = path_format(path, sizeof path, err, n, "%s/%s", r->vms, entry);
    if (failed)
        return failed;
    for (unsigned i = 0; i < NAME_ATTEMPTS; i++) {
        failed = begin(r, entry, path, lock);
        if (failed != -EAGAIN && failed != -EWOULDBLOCK)
            break;
    }
    if (failed)
        return error_sys(err, n, failed, "cannot make %s", path);
    failed = fill(r, entry, record, err, n);
    if (!failed)
        failed = publish(r, entry, record->name, err, n);
    if (!failed && (failed = file_sync_directory(path))) {
        error_sys(err, n, failed, "cannot write %s to the disk", r->vms);
        registry_remove(r, record->name, *lock, NULL, 0);
        *lock = -1;
        return failed;
    }
    if (!failed)
        return 0;
    tree_remove(path);
    close(*lock);
    *lock = -1;
    return failed;
}

int registry_create(const struct registry *r, struct vm_record *record, int *lock, char *err, size_t n)
{
    int failed = -EEXIST;

    *lock = -1;
    if (record->settings.name) {
        snprintf(record->name, sizeof record->name, "%s", record->settings.name);
        failed = name_check(record->name, err, n);
        return failed ? failed : create_named(r, record, lock, err, n);
    }
    for (unsigned i = 0; i < NAME_ATTEMPTS && failed == -EEXIST; i++) {
        name_random(i, record->name);
        failed = create_named(r, record, lock, err, n);
    }
    return failed;
}

static void remove_sockets(const struct registry *r, const char *name)
{
    static const char *const suffixes[] = {"ctl", "vsock", "pages"};
    char path[108], none[1];

    for (size_t i = 0; i < sizeof suffixes / sizeof *suffixes; i++)
        if (!registry_socket(r, name, suffixes[i], path, none, sizeof none))
            unlink(path);
}

int registry_remove(const struct registry *r, const char *name, int lock, char *err, size_t n)
{
    char from[PATH_MAX], to[PATH_MAX];
    int failed = path_format(from, sizeof from, err, n, "%s/%s", r->vms, name);

    if (!failed)
        failed = path_format(to, sizeof to, err, n, "%s/" GONE "%s-%d", r->vms, name, (int)getpid());
    if (!failed)
        tree_remove(to);
    if (!failed && rename(from, to))
        failed = error_sys(err, n, -errno, "cannot remove %s", from);
    if (!failed) {
        remove_sockets(r, name);
        failed = tree_remove(to);
        if (failed)
            error_sys(err, n, failed, "cannot remove all of %s", to);
    }
    close(lock);
    return failed;
}
